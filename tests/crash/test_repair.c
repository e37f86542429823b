/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_repair.c - crash sweeps of an index that is mended, by an attach or in a running process,
 * and of leaked objects that are freed.
 */
#include "fixture.h"
#include "internal.h"

static struct fixture small = {.lanes = 2};
static struct fixture mends = {.lanes = 2, .flags = PV_MEND};
static struct fixture leaky = {
	.lanes = 2, .flags = PV_MEND, .leaky = true, .segment_bytes = 128 << 10};

#define COMMIT_WORD (offsetof(struct index_rec, commit) / 8)

static const struct crash_op mirror_ops[] = {
	{"a damaged tree", op_reopen_damaged, DAMAGED_SLOT + 30, CRASH_UNCHANGED, NULL},
	{"a damaged checksum", op_reopen_damaged, DAMAGED_SLOT + 2, CRASH_UNCHANGED, NULL},
	{"goes on", op_replace, SLOT(1, 64), CRASH_ATOMIC, NULL},
};
static const struct crash_op mend_ops[] = {
	{"a damaged commit word", op_reopen_damaged, COMMIT_WORD, CRASH_UNCHANGED, NULL},
	{"a damaged tree", op_reopen_damaged, DAMAGED_SLOT + 30, CRASH_UNCHANGED, NULL},
	{"goes on", op_root, SLOT(1, 48), CRASH_ATOMIC, NULL},
};
static const struct crash_op index_ops[] = {
	{"nothing to mend", op_repair, 0, CRASH_UNCHANGED, NULL},
	{"a damaged tree", op_repair_damaged, DAMAGED_SLOT + 30, CRASH_UNCHANGED, NULL},
	{"a damaged commit word", op_repair_damaged, COMMIT_WORD, CRASH_UNCHANGED, NULL},
	{"goes on", op_replace, SLOT(1, 64), CRASH_ATOMIC, NULL},
};
static const struct crash_op leak_ops[] = {
	{"leak", op_leak, SLOT(3, 64), CRASH_STEPS, NULL},
	{"leak others", op_leak, SLOT(2, 200), CRASH_STEPS, NULL},
	{"leak an extent", op_leak, SLOT(1, 34000), CRASH_STEPS, NULL},
	{"free them, which is one intent", op_repair, 0, CRASH_ATOMIC, NULL},
	{"leak more than an intent holds", op_leak, SLOT(35, 64), CRASH_STEPS, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"free them in a cold slab", op_repair, 0, CRASH_STEPS, NULL},
	{"goes on", op_replace, SLOT(1, 64), CRASH_ATOMIC, NULL},
};

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		FIXTURE_SCENARIO("mirror", fixture_setup_few, mirror_ops, &small),
		FIXTURE_SCENARIO("mend", fixture_setup_few, mend_ops, &mends),
		FIXTURE_SCENARIO("repair-index", fixture_setup_few, index_ops, &mends),
		FIXTURE_SCENARIO("repair-leaks", fixture_setup_few, leak_ops, &leaky),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
