/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_store.c - crash sweeps of what concerns a store as a whole: creation, types, roots and the
 * index, attaching, growth by segments, destruction.
 */
#include "fixture.h"

static struct fixture small = {.lanes = 2};
static struct fixture roomy = {.lanes = 2, .segment_bytes = 128 << 10};
static struct fixture limited = {.lanes = 2, .limit_bytes = 168 << 10};

static const struct crash_op create_ops[] = {
	{"create", op_create, PV_CREATE, CRASH_ATOMIC, NULL},
};
static const struct crash_op reset_ops[] = {
	{"destroy", op_destroy, 0, CRASH_ATOMIC, NULL},
	{"create again", op_create, PV_CREATE | PV_EXCL, CRASH_ATOMIC, NULL},
};
static const struct crash_op index_ops[] = {
	{"a type", op_type, 1, CRASH_ATOMIC, NULL},
	{"the types of the fixture", op_type, 2, CRASH_ATOMIC, NULL},
};
static const struct crash_op root_ops[] = {
	{"root in a fresh slab", op_root, SLOT(1, 48), CRASH_ATOMIC, NULL},
	{"root in the same slab", op_root, SLOT(2, 48), CRASH_ATOMIC, NULL},
	{"root in an extent", op_root, SLOT(3, 36000), CRASH_ATOMIC, NULL},
	{"type after root", op_type, 5, CRASH_ATOMIC, NULL},
};
static const struct crash_op attach_ops[] = {
	{"close and attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"warms a slab", op_replace, SLOT(1, 64), CRASH_ATOMIC, NULL},
	{"reserve", op_reserve, SLOT(5, 64), CRASH_UNCHANGED, NULL},
	{"attach with reservations", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"frees in a cold slab", op_unlink, 2, CRASH_ATOMIC, NULL},
};
static const struct crash_op grow_ops[] = {
	{"a slab that needs a segment", op_link_grows, SLOT(20, 3000), CRASH_ATOMIC, NULL},
	{"an extent that needs another", op_link_grows, SLOT(21, 40000), CRASH_ATOMIC, NULL},
	{"attach twice", op_settle, 0, CRASH_UNCHANGED, NULL},
	{"replaced by a small one", op_replace, SLOT(21, 64), CRASH_ATOMIC, NULL},
	{"its pages again", op_link, SLOT(22, 36864), CRASH_ATOMIC, NULL},
	{"more than all segments together", op_link_grows, SLOT(23, 400000), CRASH_ATOMIC, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"free one", op_unlink, 22, CRASH_ATOMIC, NULL},
};

static int op_too_much(void *ctx, uintptr_t bytes)
{
	void *object;

	return fixture_object(ctx, bytes, 1, &object) == 0;
}

static const struct crash_op limit_ops[] = {
	{"a segment", op_link_grows, SLOT(20, 40000), CRASH_ATOMIC, NULL},
	{"what the limit leaves", op_link_grows, SLOT(21, 40000), CRASH_ATOMIC, NULL},
	{"more than the limit", op_too_much, 60000, CRASH_UNCHANGED, NULL},
	{"still works", op_replace, SLOT(3, 200), CRASH_ATOMIC, NULL},
};

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		FIXTURE_SCENARIO("create", fixture_setup_nothing, create_ops, &small),
		FIXTURE_SCENARIO("destroy", fixture_setup_full, reset_ops, &small),
		FIXTURE_SCENARIO("index", fixture_setup_empty, index_ops, &small),
		FIXTURE_SCENARIO("roots", fixture_setup_table, root_ops, &roomy),
		FIXTURE_SCENARIO("attach", fixture_setup_settled, attach_ops, &small),
		FIXTURE_SCENARIO("grow", fixture_setup_few, grow_ops, &small),
		FIXTURE_SCENARIO("limit", fixture_setup_few, limit_ops, &limited),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
