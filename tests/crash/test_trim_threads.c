/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_trim_threads.c - two threads: one gives memory back while the other one takes some, or an extent
 * shrinks or grows where the other one makes one, or an object moves while another one is made.
 */
#include <stdint.h>
#include "fixture.h"

static struct fixture pairs = {.lanes = 4};
static struct fixture roomy_pairs = {.lanes = 4, .segment_bytes = 256 << 10};

#define PAIR(name, a, a_arg, b, b_arg)                    \
	static const struct crash_op name[] = {           \
		{"A: " #a, a, a_arg, CRASH_ATOMIC, NULL}, \
		{"B: " #b, b, b_arg, CRASH_ATOMIC, NULL}, \
	}

enum { LOOSE = 18 };

PAIR(trim_link, op_trim, 0, op_link, SLOT(20, 64));
PAIR(trim_extent, op_trim, 0, op_link, SLOT(20, 34000));
PAIR(link_trim, op_link, SLOT(20, 64), op_trim, 0);
PAIR(extent_trim, op_link, SLOT(20, 34000), op_trim, 0);
PAIR(unlink_trim, op_unlink, 1, op_trim, 0);
PAIR(shrink_link, op_realloc_stays, SLOT(LOOSE, 36000), op_link, SLOT(20, 34000));
PAIR(link_shrink, op_link, SLOT(20, 34000), op_realloc_stays, SLOT(LOOSE, 36000));
PAIR(grow_link, op_realloc, SLOT(LOOSE, 84000), op_link, SLOT(20, 34000));
PAIR(link_grow, op_link, SLOT(20, 34000), op_realloc, SLOT(LOOSE, 84000));
PAIR(move_link, op_realloc_moves, SLOT(1, 300), op_link, SLOT(20, 300));

/* Two segments more, with nothing in them. */
static int setup_empty_segments(void *ctx)
{
	int rc = fixture_setup_few(ctx);

	if (!rc)
		rc = op_link_grows(ctx, SLOT(20, 40000));
	if (!rc)
		rc = op_link_grows(ctx, SLOT(21, 100000));
	if (!rc)
		rc = op_unlink(ctx, 20);
	if (!rc)
		rc = op_unlink(ctx, 21);
	return rc ? rc : op_settle(ctx, 0);
}

/* An extent that can shrink and grow where it is. */
static int setup_loose(void *ctx)
{
	int rc = fixture_setup_full(ctx);

	if (!rc)
		rc = op_link_loose(ctx, SLOT(LOOSE, 80000));
	return rc ? rc : op_settle(ctx, 0);
}

#define PAIR_SCENARIO(title, set_up, operations, fixture, nothing_ok)                \
	FIXTURE_SCENARIO(title, set_up, operations, fixture, .is_switch = true, \
			 .unchanged_ok = (nothing_ok))
#define TRIM(title, operations) \
	PAIR_SCENARIO(title, setup_empty_segments, operations, &pairs, true)
#define SIZE(title, operations) \
	PAIR_SCENARIO(title, setup_loose, operations, &roomy_pairs, false)

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		TRIM("trim-link", trim_link),
		TRIM("trim-extent", trim_extent),
		TRIM("link-trim", link_trim),
		TRIM("extent-trim", extent_trim),
		TRIM("unlink-trim", unlink_trim),
		SIZE("shrink-link", shrink_link),
		SIZE("link-shrink", link_shrink),
		SIZE("grow-link", grow_link),
		SIZE("link-grow", link_grow),
		SIZE("move-link", move_link),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
