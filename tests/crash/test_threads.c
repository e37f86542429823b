/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_threads.c - two threads: A is stopped after each of its stores, B runs its whole operation,
 * A goes on. The threads are new to the store, so that taking and giving back lanes and magazines
 * is part of what they do, or they are warm, so that the operation runs without a lock. The objects
 * that they free were reserved by a third thread.
 */
#include "fixture.h"

static struct fixture roomy = {.lanes = 4, .segment_bytes = 128 << 10};
static struct fixture cramped = {.lanes = 4};

#define PAIR(name, a, a_arg, b, b_arg)                    \
	static const struct crash_op name[] = {           \
		{"A: " #a, a, a_arg, CRASH_ATOMIC, NULL}, \
		{"B: " #b, b, b_arg, CRASH_ATOMIC, NULL}, \
	}

PAIR(link_link, op_link, SLOT(20, 64), op_link, SLOT(21, 64));
PAIR(link_unlink, op_link, SLOT(20, 64), op_unlink, 1);
PAIR(unlink_unlink, op_unlink, 1, op_unlink, 2);
PAIR(replace_replace, op_replace, SLOT(1, 64), op_replace, SLOT(2, 64));
PAIR(replace_sizes, op_replace, SLOT(1, 200), op_replace, SLOT(3, 64));
PAIR(replace_word, op_replace, SLOT(1, 64), op_word, 2);
PAIR(swap_replace, op_swap, SLOT(1, 2), op_replace, SLOT(3, 64));
PAIR(tx_link, op_tx_rewrite, 1, op_link, SLOT(21, 64));
PAIR(tx_tx, op_tx_replace, SLOT(1, 64), op_tx_rewrite, 2);
PAIR(extent_extent, op_link, SLOT(20, 40000), op_replace, SLOT(1, 34000));
PAIR(grow_link, op_link_grows, SLOT(20, 60000), op_link, SLOT(21, 64));
PAIR(link_grow, op_link, SLOT(20, 64), op_link_grows, SLOT(21, 60000));
PAIR(root_root, op_root, SLOT(1, 48), op_root, SLOT(2, 48));
PAIR(root_type, op_root, SLOT(1, 48), op_type, 2);
PAIR(type_link, op_type, 1, op_link, SLOT(21, 64));
PAIR(root_grow, op_root, SLOT(1, 48), op_link_grows, SLOT(20, 60000));

/* Fills the thread's magazines, so that the operations need no lock. */
static int warm(void *ctx)
{
	static const size_t sizes[] = {64, 200};
	struct fixture *f = ctx;
	void *object;
	int rc = 0;

	for (unsigned i = 0; rc == 0 && i < 2; i++) {
		rc = fixture_object(f, sizes[i], 1, &object);
		if (!rc)
			rc = pv_cancel(f->store, object);
	}
	return rc;
}

#define PAIR_SCENARIO(title, set_up, operations, fixture, ...) \
	FIXTURE_SCENARIO(title, set_up, operations, fixture, .is_switch = true, __VA_ARGS__)
#define WARM(title, operations) \
	PAIR_SCENARIO(title, fixture_setup_settled, operations, &roomy, .warm_thread = warm)

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		WARM("warm-link-link", link_link),
		WARM("warm-link-unlink", link_unlink),
		WARM("warm-unlink-unlink", unlink_unlink),
		WARM("warm-replace-replace", replace_replace),
		WARM("warm-replace-sizes", replace_sizes),
		WARM("warm-replace-word", replace_word),
		WARM("warm-swap-replace", swap_replace),
		WARM("warm-tx-link", tx_link),
		WARM("warm-tx-tx", tx_tx),
		PAIR_SCENARIO("link-link", fixture_setup_settled, link_link, &roomy),
		PAIR_SCENARIO("link-unlink", fixture_setup_settled, link_unlink, &roomy),
		PAIR_SCENARIO("unlink-unlink", fixture_setup_settled, unlink_unlink, &roomy),
		PAIR_SCENARIO("replace-replace", fixture_setup_settled, replace_replace, &roomy),
		PAIR_SCENARIO("replace-sizes", fixture_setup_settled, replace_sizes, &roomy),
		PAIR_SCENARIO("extent-extent", fixture_setup_few, extent_extent, &cramped),
		PAIR_SCENARIO("grow-link", fixture_setup_few, grow_link, &cramped),
		PAIR_SCENARIO("link-grow", fixture_setup_few, link_grow, &cramped),
		PAIR_SCENARIO("root-root", fixture_setup_settled, root_root, &roomy),
		PAIR_SCENARIO("root-type", fixture_setup_settled, root_type, &roomy),
		PAIR_SCENARIO("type-link", fixture_setup_settled, type_link, &roomy),
		PAIR_SCENARIO("root-grow", fixture_setup_few, root_grow, &cramped),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
