/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_trim.c - crash sweeps of memory that is given back: slabs that are released and segments that leave
 * the store, by pv_trim(); and what a thread or a depot holds ready, when pages are needed.
 */
#include "fixture.h"

static struct fixture small = {.lanes = 2};
static struct fixture roomy = {.lanes = 2, .segment_bytes = 128 << 10};

static const struct crash_op slab_ops[] = {
	{"fill slabs", op_link_many, SLOT(20, 1000), CRASH_STEPS, NULL},
	{"fill more", op_link_many, SLOT(40, 300), CRASH_STEPS, NULL},
	{"empty them", op_unlink_many, 20, CRASH_STEPS, NULL},
	{"hold some", op_reserve, SLOT(10, 1000), CRASH_UNCHANGED, NULL},
	{"trim", op_trim, 0, CRASH_UNCHANGED, NULL},
	{"not any more", op_cancel_held, 0, CRASH_UNCHANGED, NULL},
	{"trim again", op_trim_to, 1, CRASH_UNCHANGED, NULL},
	{"empty the others", op_unlink_many, 40, CRASH_STEPS, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"trim what is cold", op_trim_to, 1, CRASH_UNCHANGED, NULL},
	{"in that memory", op_link, SLOT(20, 34000), CRASH_ATOMIC, NULL},
};
static const struct crash_op segment_ops[] = {
	{"a segment", op_link_grows, SLOT(20, 40000), CRASH_ATOMIC, NULL},
	{"another", op_link_grows, SLOT(21, 100000), CRASH_ATOMIC, NULL},
	{"unlink the last", op_unlink, 21, CRASH_ATOMIC, NULL},
	{"one leaves", op_trim_to, 2, CRASH_UNCHANGED, NULL},
	{"a slab in the last", op_link_many, SLOT(40, 3000), CRASH_STEPS, NULL},
	{"unlink", op_unlink, 20, CRASH_ATOMIC, NULL},
	{"and again", op_unlink_many, 40, CRASH_STEPS, NULL},
	{"attach twice", op_settle, 0, CRASH_UNCHANGED, NULL},
	{"all leave", op_trim_to, 1, CRASH_UNCHANGED, NULL},
	{"grows again", op_link_grows, SLOT(20, 40000), CRASH_ATOMIC, NULL},
	{"by one more", op_link_grows, SLOT(21, 100000), CRASH_ATOMIC, NULL},
	{"unlink one", op_unlink, 20, CRASH_ATOMIC, NULL},
	{"the last one stays", op_trim_to, 3, CRASH_UNCHANGED, NULL},
	{"unlink it", op_unlink, 21, CRASH_ATOMIC, NULL},
	{"all leave again", op_trim_to, 1, CRASH_UNCHANGED, NULL},
};
static const struct crash_op drain_ops[] = {
	{"reserve more than fits into a magazine", op_reserve, SLOT(30, 3000), CRASH_UNCHANGED, NULL},
	{"cancel: some go to the depot", op_cancel_held, 0, CRASH_UNCHANGED, NULL},
	{"an extent in their pages", op_link_stays, SLOT(20, 60000), CRASH_ATOMIC, NULL},
	{"unlink", op_unlink, 20, CRASH_ATOMIC, NULL},
	{"reserve many", op_reserve, SLOT(30, 3000), CRASH_UNCHANGED, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"what an earlier process held", op_link_stays, SLOT(21, 60000), CRASH_ATOMIC, NULL},
};

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		FIXTURE_SCENARIO("slabs", fixture_setup_few, slab_ops, &roomy),
		FIXTURE_SCENARIO("segments", fixture_setup_few, segment_ops, &small),
		FIXTURE_SCENARIO("drain", fixture_setup_few, drain_ops, &roomy),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
