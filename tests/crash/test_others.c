/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_others.c - two threads and what belongs to the other: objects that A has allocated and B
 * frees while A works in the same slab, and the reverse; a slab that one of them gives back,
 * because what it frees was the last in it, while the other one allocates from the same bin, or
 * wants the pages; a thread that ends and gives its magazines and its lane back while the other one
 * takes slots or begins.
 */
#include <stdint.h>
#include "fixture.h"

/* By 4 lanes: the setup's, A's, B's, one more. */
static struct fixture roomy = {.lanes = 4, .segment_bytes = 128 << 10};
/* A thread that begins has to have the lane of the one that ends, if that is gone. */
static struct fixture narrow = {.lanes = 3, .segment_bytes = 128 << 10};

enum { A_OWN = 1, A_OTHER = 6, B_OWN = 2, B_OTHER = 11, A_EXTENT = 16, B_EXTENT = 17 };
enum { HELD = 30, HELD_BYTES = 3000 };

#define PAIR(name, a, a_arg, b, b_arg)                    \
	static const struct crash_op name[] = {           \
		{"A: " #a, a, a_arg, CRASH_ATOMIC, NULL}, \
		{"B: " #b, b, b_arg, CRASH_ATOMIC, NULL}, \
	}

PAIR(link_free, op_link, SLOT(20, 64), op_unlink, A_OWN);
PAIR(free_link, op_unlink, B_OWN, op_link, SLOT(20, 64));
PAIR(free_free, op_unlink, B_OWN, op_unlink, A_OWN);
PAIR(own_free, op_unlink, A_OWN, op_unlink, A_OTHER);
PAIR(replace_replace, op_replace, SLOT(B_OWN, 64), op_replace, SLOT(A_OWN, 64));
PAIR(replace_free, op_replace, SLOT(A_OWN, 64), op_unlink, A_OTHER);
PAIR(tx_free, op_tx_replace, SLOT(A_OWN, 64), op_unlink, A_OTHER);
PAIR(free_tx, op_unlink, B_OWN, op_tx_replace, SLOT(B_OTHER, 64));
PAIR(tx_tx, op_tx_replace, SLOT(B_OWN, 64), op_tx_unlink, A_OWN);

static int op_release(void *ctx, uintptr_t slot);

PAIR(release_link, op_release, A_OWN, op_link, SLOT(20, HELD_BYTES));
PAIR(link_release, op_link, SLOT(20, HELD_BYTES), op_release, A_OWN);
PAIR(release_other, op_release, A_OWN, op_link, SLOT(20, 200));
PAIR(release_extent, op_release, A_OWN, op_link, SLOT(20, 34000));

PAIR(extent_link, op_unlink, A_EXTENT, op_link, SLOT(20, 34000));
PAIR(extent_replace, op_replace, SLOT(A_EXTENT, 33000), op_replace, SLOT(B_EXTENT, 34000));
PAIR(extent_tx, op_tx_unlink, A_EXTENT, op_link, SLOT(20, 34000));

PAIR(link_link, op_link, SLOT(20, 64), op_link, SLOT(21, 64));

/* The object of a slot of the table anew, with the same contents, by the calling thread. */
static int make_own(struct fixture *f, unsigned slot)
{
	const struct fixture_object *old = f->table[slot];
	void *object;
	int rc;

	if (!old) /* the other one has been here before, when one runs after the other */
		return 0;
	rc = fixture_object(f, old->bytes, old->key, &object);
	return rc ? rc
		  : pv_publish(f->store,
			       (struct pv_action[]){PV_LIVE(object),
						    PV_STORE(&f->table[slot], (uintptr_t)object),
						    PV_FREE(f->table[slot])},
			       3);
}

/* A is the first to be made warm. */
static int warm_own(void *ctx)
{
	struct fixture *f = ctx;
	bool is_a = f->n_warmed++ == 0;
	int rc = make_own(f, is_a ? A_OWN : B_OWN);

	return rc ? rc : make_own(f, is_a ? A_OTHER : B_OTHER);
}

/* More objects than a magazine takes, of a class with few slots in a slab. */
static int hold(struct fixture *f)
{
	return op_reserve(f, SLOT(HELD, HELD_BYTES));
}

static int warm_a_holds(void *ctx)
{
	struct fixture *f = ctx;

	return f->n_warmed++ == 0 ? hold(f) : 0;
}

static int warm_b_holds(void *ctx)
{
	struct fixture *f = ctx;

	return f->n_warmed++ == 0 ? 0 : hold(f);
}

/* Slabs that are empty give their pages back, which pv_trim() does now and growth does when there are
 * none left; then an object is freed. */
static int op_release(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	int rc = op_cancel_held(ctx, 0);

	if (!rc)
		rc = pv_trim(f->store, NULL);
	return rc ? rc : op_unlink(ctx, slot);
}

static int setup_extents(void *ctx)
{
	int rc = fixture_setup_full(ctx);

	if (!rc)
		rc = op_link(ctx, SLOT(A_EXTENT, 34000));
	if (!rc)
		rc = op_link(ctx, SLOT(B_EXTENT, 34000));
	return rc ? rc : op_settle(ctx, 0);
}

#define PAIR_SCENARIO(title, set_up, operations, fixture, ready, ending)             \
	FIXTURE_SCENARIO(title, set_up, operations, fixture, .is_switch = true, \
			 .warm_thread = (ready), .ends = (ending))
#define OWN(title, operations) \
	PAIR_SCENARIO(title, fixture_setup_settled, operations, &roomy, warm_own, 0)
#define RELEASE(title, operations, full) \
	PAIR_SCENARIO(title, fixture_setup_settled, operations, &roomy, full, 0)
#define EXTENT(title, operations) PAIR_SCENARIO(title, setup_extents, operations, &roomy, NULL, 0)
#define ENDS(title, operations, fixture, ready, ending) \
	PAIR_SCENARIO(title, fixture_setup_settled, operations, fixture, ready, ending)

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		OWN("own-link-free", link_free),
		OWN("own-free-link", free_link),
		OWN("own-free-free", free_free),
		OWN("own-own-free", own_free),
		OWN("own-replace-replace", replace_replace),
		OWN("own-replace-free", replace_free),
		OWN("own-tx-free", tx_free),
		OWN("own-free-tx", free_tx),
		OWN("own-tx-tx", tx_tx),
		RELEASE("release-link", release_link, warm_a_holds),
		RELEASE("link-release", link_release, warm_b_holds),
		RELEASE("release-other", release_other, warm_a_holds),
		RELEASE("release-extent", release_extent, warm_a_holds),
		EXTENT("extent-link", extent_link),
		EXTENT("extent-replace", extent_replace),
		EXTENT("extent-tx", extent_tx),
		ENDS("end-link", link_link, &roomy, warm_own, CRASH_A_ENDS),
		ENDS("link-end", link_link, &roomy, warm_own, CRASH_B_ENDS),
		ENDS("end-begin", link_link, &narrow, NULL, CRASH_A_ENDS),
		ENDS("begin-end", link_link, &narrow, NULL, CRASH_B_ENDS),
		ENDS("end-end", link_free, &roomy, warm_own, CRASH_A_ENDS | CRASH_B_ENDS),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
