/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_object.c - crash sweeps of objects that get another size, in place or by moving, as slots and as
 * extents; of aligned ones; and of the short forms of the usual intents.
 */
#include "fixture.h"

static struct fixture spacious = {.lanes = 2, .segment_bytes = 512 << 10};
static struct fixture cramped = {.lanes = 2, .segment_bytes = 64 << 10};

static const struct crash_op short_ops[] = {
	{"link", op_short_link, SLOT(20, 64), CRASH_ATOMIC, NULL},
	{"replace", op_short_replace, SLOT(20, 64), CRASH_ATOMIC, NULL},
	{"replace by another size", op_short_replace, SLOT(20, 200), CRASH_ATOMIC, NULL},
	{"replace in a cold slab", op_short_replace, SLOT(1, 64), CRASH_ATOMIC, NULL},
	{"replace by what was freed", op_short_replace, SLOT(2, 64), CRASH_ATOMIC, NULL},
	{"unlink in a cold slab", op_short_unlink, 3, CRASH_ATOMIC, NULL},
	{"unlink", op_short_unlink, 20, CRASH_ATOMIC, NULL},
	{"link an extent", op_short_link, SLOT(21, 34000), CRASH_ATOMIC, NULL},
	{"replace it by another", op_short_replace, SLOT(21, 40000), CRASH_ATOMIC, NULL},
	{"replace it by a slot", op_short_replace, SLOT(21, 64), CRASH_ATOMIC, NULL},
	{"and that by an extent", op_short_replace, SLOT(21, 36000), CRASH_ATOMIC, NULL},
	{"unlink the extent", op_short_unlink, 21, CRASH_ATOMIC, NULL},
};
static const struct crash_op slot_ops[] = {
	{"link", op_link, SLOT(20, 64), CRASH_ATOMIC, NULL},
	{"to a larger class", op_realloc_moves, SLOT(20, 200), CRASH_ATOMIC, NULL},
	{"within the class", op_realloc_stays, SLOT(20, 208), CRASH_UNCHANGED, NULL},
	{"to a smaller class", op_realloc_moves, SLOT(20, 100), CRASH_ATOMIC, NULL},
	{"to one of a slab of its own", op_realloc_moves, SLOT(20, 3000), CRASH_ATOMIC, NULL},
	{"in a cold slab", op_realloc_moves, SLOT(1, 120), CRASH_ATOMIC, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"from a cold slab to the least", op_realloc_moves, SLOT(20, 64), CRASH_ATOMIC, NULL},
	{"unlink", op_unlink, 20, CRASH_ATOMIC, NULL},
};
static const struct crash_op extent_ops[] = {
	{"link", op_link_loose, SLOT(20, 200), CRASH_ATOMIC, NULL},
	{"to an extent", op_realloc_moves, SLOT(20, 40000), CRASH_ATOMIC, NULL},
	{"shrinks", op_realloc_stays, SLOT(20, 33000), CRASH_ATOMIC, NULL},
	{"grows", op_realloc_stays, SLOT(20, 60000), CRASH_ATOMIC, NULL},
	{"not by a page", op_realloc_stays, SLOT(20, 60001), CRASH_UNCHANGED, NULL},
	{"another one behind it", op_link_loose, SLOT(21, 34000), CRASH_ATOMIC, NULL},
	{"has to move", op_realloc_moves, SLOT(20, 62000), CRASH_ATOMIC, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"shrinks, not looked at before", op_realloc_stays, SLOT(20, 34000), CRASH_ATOMIC, NULL},
	{"a third one where it was", op_link_loose, SLOT(22, 50000), CRASH_ATOMIC, NULL},
	{"attach again", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"grows, not looked at before", op_realloc_stays, SLOT(20, 38000), CRASH_ATOMIC, NULL},
	{"to a slot", op_realloc_moves, SLOT(20, 64), CRASH_ATOMIC, NULL},
	{"unlink all", op_unlink, 20, CRASH_ATOMIC, NULL},
};
static const struct crash_op grow_ops[] = {
	{"link", op_link_loose, SLOT(20, 34000), CRASH_ATOMIC, NULL},
	{"into a new segment", op_realloc_moves, SLOT(20, 150000), CRASH_ATOMIC, NULL},
	{"back", op_realloc_stays, SLOT(20, 34000), CRASH_ATOMIC, NULL},
	{"further back", op_realloc_moves, SLOT(20, 64), CRASH_ATOMIC, NULL},
};
static const struct crash_op aligned_ops[] = {
	{"in the usual way", op_link_aligned, SLOT(20, 4), CRASH_ATOMIC, NULL},
	{"a slot of 512", op_link_aligned, SLOT(21, 9), CRASH_ATOMIC, NULL},
	{"a slot of a page", op_link_aligned, SLOT(22, 12), CRASH_ATOMIC, NULL},
	{"an extent", op_link_aligned, SLOT(23, 13), CRASH_ATOMIC, NULL},
	{"half of the segment", op_link_aligned, SLOT(24, 18), CRASH_ATOMIC, NULL},
	{"which stays when it shrinks", op_realloc_stays, SLOT(24, 36000), CRASH_UNCHANGED, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"unlink", op_unlink, 24, CRASH_ATOMIC, NULL},
	{"in its place", op_link_aligned, SLOT(25, 18), CRASH_ATOMIC, NULL},
};

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		FIXTURE_SCENARIO("short", fixture_setup_settled, short_ops, &spacious),
		FIXTURE_SCENARIO("realloc", fixture_setup_settled, slot_ops, &spacious),
		FIXTURE_SCENARIO("realloc-extents", fixture_setup_few, extent_ops, &spacious),
		FIXTURE_SCENARIO("realloc-grows", fixture_setup_few, grow_ops, &cramped),
		FIXTURE_SCENARIO("aligned", fixture_setup_few, aligned_ops, &spacious),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
