/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_heap.c - crash sweeps of objects: reserve, publish in all its forms, free, extents, slabs
 * that come and go, and long random sequences of all of it.
 */
#include <stdio.h>
#include <stdlib.h>
#include "fixture.h"

/* A store that grows writes its index; recovery then has much to write there too, and most of its
 * crash states are about that. So only some scenarios have to grow. */
static struct fixture cramped = {.lanes = 2};
static struct fixture roomy = {.lanes = 2, .segment_bytes = 128 << 10};
static struct fixture spacious = {.lanes = 2, .segment_bytes = 512 << 10};

static const struct crash_op reserve_ops[] = {
	{"reserve in a fresh slab", op_reserve, SLOT(1, 64), CRASH_UNCHANGED, NULL},
	{"reserve from the magazine", op_reserve, SLOT(2, 64), CRASH_UNCHANGED, NULL},
	{"reserve many small", op_reserve, SLOT(100, 32), CRASH_UNCHANGED, NULL},
	{"reserve an extent", op_reserve, SLOT(1, 40000), CRASH_UNCHANGED, NULL},
	{"publish the extent", op_publish_held, 50, CRASH_ATOMIC, NULL},
	{"publish one", op_publish_held, 51, CRASH_ATOMIC, NULL},
	{"cancel the others", op_cancel_held, 0, CRASH_UNCHANGED, NULL},
	{"reserve and cancel an extent", op_reserve, SLOT(1, 50000), CRASH_UNCHANGED, NULL},
	{"cancel it", op_cancel_held, 0, CRASH_UNCHANGED, NULL},
};
static const struct crash_op publish_ops[] = {
	{"link", op_link, SLOT(20, 64), CRASH_ATOMIC, NULL},
	{"link another size", op_link, SLOT(21, 200), CRASH_ATOMIC, NULL},
	{"replace", op_replace, SLOT(20, 64), CRASH_ATOMIC, NULL},
	{"replace by another size", op_replace, SLOT(21, 24), CRASH_ATOMIC, NULL},
	{"replace in a cold slab", op_replace, SLOT(1, 64), CRASH_ATOMIC, NULL},
	{"swap", op_swap, SLOT(20, 21), CRASH_ATOMIC, NULL},
	{"one word", op_word, 20, CRASH_ATOMIC, NULL},
	{"unlink", op_unlink, 20, CRASH_ATOMIC, NULL},
	{"unlink in a cold slab", op_unlink, 3, CRASH_ATOMIC, NULL},
	{"thirty actions", op_many, 4, CRASH_ATOMIC, NULL},
};
static const struct crash_op simple_ops[] = {
	{"alloc", op_alloc, SLOT(30, 100), CRASH_ATOMIC, NULL},
	{"alloc large", op_alloc, SLOT(31, 34000), CRASH_ATOMIC, NULL},
	{"free", op_free, 30, CRASH_ATOMIC, NULL},
	{"free large", op_free, 31, CRASH_ATOMIC, NULL},
	{"alloc again", op_alloc, SLOT(31, 100), CRASH_ATOMIC, NULL},
};
static const struct crash_op extent_ops[] = {
	{"link", op_link_grows, SLOT(40, 34000), CRASH_ATOMIC, NULL},
	{"link another", op_link, SLOT(41, 35000), CRASH_ATOMIC, NULL},
	{"attach twice", op_settle, 0, CRASH_UNCHANGED, NULL},
	{"replace", op_replace, SLOT(40, 45000), CRASH_ATOMIC, NULL},
	{"replace by a slot", op_replace, SLOT(41, 64), CRASH_ATOMIC, NULL},
	{"replace a slot by an extent", op_replace, SLOT(41, 36000), CRASH_ATOMIC, NULL},
	{"unlink", op_unlink, 40, CRASH_ATOMIC, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"unlink one not yet looked at", op_unlink, 41, CRASH_ATOMIC, NULL},
};
static const struct crash_op slab_ops[] = {
	{"fill slabs", op_link_many, SLOT(20, 1000), CRASH_STEPS, NULL},
	{"fill more", op_link_many, SLOT(40, 1000), CRASH_STEPS, NULL},
	{"empty them", op_unlink_many, 20, CRASH_STEPS, NULL},
	{"empty the others", op_unlink_many, 40, CRASH_STEPS, NULL},
	{"other sizes in their pages", op_link_many, SLOT(60, 3000), CRASH_STEPS, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"empty cold slabs", op_unlink_many, 60, CRASH_STEPS, NULL},
};

enum { N_RANDOM = 4, RANDOM_OPS = 100, SETTLE_EVERY = 8 };

static struct crash_op random_ops[N_RANDOM][RANDOM_OPS];

static void make_random(void)
{
	for (unsigned i = 0; i < N_RANDOM; i++) {
		for (unsigned j = 0; j < RANDOM_OPS; j++)
			random_ops[i][j] = (struct crash_op){
				.name = "random",
				.run = op_random,
				.arg = i * 1000 + j,
				.rule = CRASH_CUSTOM,
				.legal = fixture_legal,
			};
		/* Those that grow: the index's two slots should not differ for long. */
		for (unsigned j = 0; i < 2 && j < RANDOM_OPS; j += SETTLE_EVERY)
			random_ops[i][j] = (struct crash_op){"attach twice", op_settle, 0,
							     CRASH_UNCHANGED, NULL};
	}
}

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		FIXTURE_SCENARIO("reserve", fixture_setup_settled, reserve_ops, &roomy),
		FIXTURE_SCENARIO("publish", fixture_setup_settled, publish_ops, &roomy),
		FIXTURE_SCENARIO("simple", fixture_setup_settled, simple_ops, &roomy),
		FIXTURE_SCENARIO("extents", fixture_setup_few, extent_ops, &cramped),
		FIXTURE_SCENARIO("slabs", fixture_setup_settled, slab_ops, &spacious),
		FIXTURE_SCENARIO("random-0", fixture_setup_settled, random_ops[0], &cramped),
		FIXTURE_SCENARIO("random-1", fixture_setup_settled, random_ops[1], &cramped),
		FIXTURE_SCENARIO("random-2", fixture_setup_settled, random_ops[2], &spacious),
		FIXTURE_SCENARIO("random-3", fixture_setup_settled, random_ops[3], &spacious),
	};

	make_random();
	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
