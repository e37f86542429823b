/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_retire.c - crash sweeps of retiring: every store of the intent and of the giving back, and
 * two threads of which one retires, or gives back, while the other one publishes.
 */
#include "fixture.h"

static struct fixture roomy = {.lanes = 4, .segment_bytes = 128 << 10, .retires = true};
static struct fixture spacious = {.lanes = 2, .segment_bytes = 512 << 10, .retires = true};

static const struct crash_op slot_ops[] = {
	{"retire", op_retire, 1, CRASH_ATOMIC, NULL},
	{"retire another", op_retire, 2, CRASH_ATOMIC, NULL},
	{"give back", op_reclaim, 0, CRASH_UNCHANGED, NULL},
	{"use the slot again", op_link, SLOT(20, 64), CRASH_ATOMIC, NULL},
	{"replace", op_retire_replace, SLOT(3, 64), CRASH_ATOMIC, NULL},
	{"five as one", op_retire_some, 4, CRASH_ATOMIC, NULL},
	{"attach, which gives back before", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"retire in a cold slab", op_retire, 10, CRASH_ATOMIC, NULL},
	{"link", op_link, SLOT(21, 64), CRASH_ATOMIC, NULL},
	{"give back once more", op_reclaim, 0, CRASH_UNCHANGED, NULL},
};
static const struct crash_op extent_ops[] = {
	{"link an extent", op_link, SLOT(40, 34000), CRASH_ATOMIC, NULL},
	{"retire it", op_retire, 40, CRASH_ATOMIC, NULL},
	{"its pages are not used", op_link, SLOT(41, 34000), CRASH_ATOMIC, NULL},
	{"give back", op_reclaim, 0, CRASH_UNCHANGED, NULL},
	{"they are now", op_link, SLOT(42, 34000), CRASH_ATOMIC, NULL},
	{"replace", op_retire_replace, SLOT(41, 35000), CRASH_ATOMIC, NULL},
	{"attach", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"retire one not yet looked at", op_retire, 42, CRASH_ATOMIC, NULL},
	{"give it back", op_reclaim, 0, CRASH_UNCHANGED, NULL},
};
static const struct crash_op tx_ops[] = {
	{"replace and unlink", op_retire_tx, SLOT(1, 2), CRASH_ATOMIC, NULL},
	{"abort", op_retire_tx_abort, 1, CRASH_UNCHANGED, NULL},
	{"link an extent", op_link, SLOT(40, 34000), CRASH_ATOMIC, NULL},
	{"unlink it", op_retire_tx, SLOT(1, 40), CRASH_ATOMIC, NULL},
	{"give back", op_reclaim, 0, CRASH_UNCHANGED, NULL},
	{"use the slots again", op_link_many, SLOT(20, 64), CRASH_STEPS, NULL},
};
/* What is given back empties slabs, which go back to the page map through the reclaimer's lane. */
static const struct crash_op slab_ops[] = {
	{"fill slabs", op_link_many, SLOT(20, 1000), CRASH_STEPS, NULL},
	{"fill more", op_link_many, SLOT(40, 1000), CRASH_STEPS, NULL},
	{"retire them", op_retire_many, 20, CRASH_STEPS, NULL},
	{"and the others", op_retire_many, 40, CRASH_STEPS, NULL},
	{"give back", op_reclaim, 0, CRASH_UNCHANGED, NULL},
	{"their pages for another size", op_link_many, SLOT(20, 600), CRASH_STEPS, NULL},
};

#define PAIR(name, a, a_arg, b, b_arg)                    \
	static const struct crash_op name[] = {           \
		{"A: " #a, a, a_arg, CRASH_ATOMIC, NULL}, \
		{"B: " #b, b, b_arg, CRASH_ATOMIC, NULL}, \
	}

PAIR(link_retire, op_link, SLOT(20, 64), op_retire, 1);
PAIR(retire_link, op_retire, 1, op_link, SLOT(20, 64));
PAIR(retire_unlink, op_retire, 1, op_unlink, 2);
PAIR(replace_replace, op_retire_replace, SLOT(1, 64), op_retire_replace, SLOT(2, 64));
PAIR(retire_reclaim, op_retire_replace, SLOT(1, 64), op_reclaim_link, SLOT(20, 64));
PAIR(reclaim_retire, op_reclaim_link, SLOT(20, 64), op_retire_replace, SLOT(1, 64));

/* Each thread has slots of the size ready, and the setup has left something to give back. */
static int warm(void *ctx)
{
	struct fixture *f = ctx;
	void *object;
	int rc = fixture_object(f, 64, 1, &object);

	return rc ? rc : pv_cancel(f->store, object);
}

static int setup_retired(void *ctx)
{
	int rc = fixture_setup_settled(ctx);

	return rc ? rc : op_retire_some(ctx, 10);
}

#define SWITCH(title, operations, ready)                                        \
	FIXTURE_SCENARIO(title, setup_retired, operations, &roomy, .is_switch = true, \
			 .warm_thread = (ready))

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		FIXTURE_SCENARIO("retire", fixture_setup_settled, slot_ops, &roomy),
		FIXTURE_SCENARIO("retire-extents", fixture_setup_few, extent_ops, &roomy),
		FIXTURE_SCENARIO("retire-tx", fixture_setup_settled, tx_ops, &roomy),
		FIXTURE_SCENARIO("retire-slabs", fixture_setup_settled, slab_ops, &spacious),
		SWITCH("warm-link-retire", link_retire, warm),
		SWITCH("warm-retire-link", retire_link, warm),
		SWITCH("warm-retire-unlink", retire_unlink, warm),
		SWITCH("warm-replace-replace", replace_replace, warm),
		SWITCH("warm-retire-reclaim", retire_reclaim, warm),
		SWITCH("warm-reclaim-retire", reclaim_retire, warm),
		SWITCH("link-retire", link_retire, NULL),
		SWITCH("retire-reclaim", retire_reclaim, NULL),
		SWITCH("reclaim-retire", reclaim_retire, NULL),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
