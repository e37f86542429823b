/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_tx.c - crash sweeps of transactions: every store between begin and commit, every store of a
 * commit, an abort and a rollback.
 */
#include "fixture.h"

static struct fixture roomy = {.lanes = 2, .segment_bytes = 128 << 10};

static const struct crash_op tx_ops[] = {
	{"rewrite", op_tx_rewrite, 1, CRASH_ATOMIC, NULL},
	{"rewrite two", op_tx_rewrite_two, SLOT(3, 4), CRASH_ATOMIC, NULL},
	{"link", op_tx_link, SLOT(20, 64), CRASH_ATOMIC, NULL},
	{"replace", op_tx_replace, SLOT(20, 200), CRASH_ATOMIC, NULL},
	{"replace in a cold slab", op_tx_replace, SLOT(2, 64), CRASH_ATOMIC, NULL},
	{"unlink", op_tx_unlink, 20, CRASH_ATOMIC, NULL},
	{"nested", op_tx_nested, SLOT(5, 6), CRASH_ATOMIC, NULL},
	{"abort", op_tx_abort, SLOT(8, 9), CRASH_UNCHANGED, NULL},
	{"inner abort", op_tx_inner_abort, SLOT(3, 9), CRASH_UNCHANGED, NULL},
	{"allocate and free", op_tx_drop, 3, CRASH_ATOMIC, NULL},
	{"publish meanwhile", op_tx_publish, SLOT(6, 30), CRASH_STEPS, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"rewrite again", op_tx_rewrite, 1, CRASH_ATOMIC, NULL},
};
static const struct crash_op extent_ops[] = {
	{"link an extent", op_tx_link, SLOT(20, 34000), CRASH_ATOMIC, NULL},
	{"rewrite a part of it", op_word, 20, CRASH_ATOMIC, NULL},
	{"replace it", op_tx_replace, SLOT(20, 35000), CRASH_ATOMIC, NULL},
	{"unlink it", op_tx_unlink, 20, CRASH_ATOMIC, NULL},
};
static const struct crash_op long_ops[] = {
	{"a large object", op_link, SLOT(20, 3000), CRASH_ATOMIC, NULL},
	{"and a small one", op_link, SLOT(21, 64), CRASH_ATOMIC, NULL},
	{"several chunks", op_tx_long, 20, CRASH_ATOMIC, NULL},
	{"several chunks, aborted", op_tx_long_abort, 20, CRASH_UNCHANGED, NULL},
	{"their pages again", op_link, SLOT(22, 40000), CRASH_ATOMIC, NULL},
};

enum { N_RANDOM = 2, RANDOM_OPS = 80 };

static struct crash_op random_ops[N_RANDOM][RANDOM_OPS];

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		FIXTURE_SCENARIO("tx", fixture_setup_settled, tx_ops, &roomy),
		FIXTURE_SCENARIO("tx-extents", fixture_setup_few, extent_ops, &roomy),
		FIXTURE_SCENARIO("tx-long", fixture_setup_few, long_ops, &roomy),
		FIXTURE_SCENARIO("tx-random-0", fixture_setup_settled, random_ops[0], &roomy),
		FIXTURE_SCENARIO("tx-random-1", fixture_setup_settled, random_ops[1], &roomy),
	};

	for (unsigned i = 0; i < N_RANDOM * RANDOM_OPS; i++)
		random_ops[i / RANDOM_OPS][i % RANDOM_OPS] = (struct crash_op){
			"random", op_tx_random, i + 1, CRASH_CUSTOM, fixture_legal};
	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
