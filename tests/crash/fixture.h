/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fixture.h - a store of libpreserve for crash sweeps: a keeper for its descriptors, recovery from
 * an image, a check that knows what an application can know, and the operations that the scenarios
 * are made of.
 *
 * The contents: a root object "table" of FIXTURE_SLOTS pointers, each NULL or the only pointer to a
 * live object that says by its bytes whether it is whole. The check demands that pv_check() finds
 * nothing, that every pointer leads to a live object of the right size, and that every live object
 * is reached exactly once, so that a leak is as much of a failure as a dangling pointer. What an object
 * could hold is part of the contents. After a recovery just those descriptors are kept that the index names.
 */
#ifndef FIXTURE_H
#define FIXTURE_H

#include <preserve/preserve.h>
#include "crashtest.h"

enum {
	FIXTURE_SLOTS = 96,
	FIXTURE_HELD = 160,
	FIXTURE_TOKENS = 16,
	FIXTURE_ROOTS = 8,
	FIXTURE_MANY = 20,
	FIXTURE_LOOSE_BYTES = 64,
};

struct fixture {
	/* set by the scenario */
	uint64_t segment_bytes; /* default 32 KiB */
	uint64_t limit_bytes;
	uint32_t lanes; /* default 4 */
	bool retires;	/* a flavour of RCU is chosen: takes a lane */
	uint32_t flags; /* of every pv_open(), beside others */
	uint32_t relocate; /* of the next pv_open(): enum pv_relocate */
	uint32_t dangling;
	int refused; /* what a relocation fails with; then the next attach is made without one */
	bool leaky;	/* objects that nothing leads to are part of the contents */
	void *retired;	/* what op_retire_replace() retired last */

	struct pv_store *store;
	pv_type_t table_type, node_type, blob_type;
	void **table;		  /* NULL: there is no such root yet */
	void *held[FIXTURE_HELD]; /* reserved by op_reserve() */
	unsigned n_held;
	unsigned n_warmed; /* threads of this run that were made warm */
	int kept[FIXTURE_TOKENS]; /* descriptor by token, -1: none */
};

/* Callbacks of struct crash_scenario; ctx is a struct fixture. */
int fixture_setup_nothing(void *ctx); /* no store */
int fixture_setup_empty(void *ctx);   /* a store, no types, no roots */
int fixture_setup_table(void *ctx);   /* the table, empty */
int fixture_setup_full(void *ctx);    /* the table with objects in its first 16 slots */
/* The same, attached twice more: all slabs are cold, and both slots of the index hold much the
 * same, so that a recovery has little to write there and its crash states are about other things.
 */
int fixture_setup_settled(void *ctx);
int fixture_setup_few(void *ctx); /* as settled, but with 4 objects of one size only */
int fixture_recover(void *ctx, const struct crash_image *image);
uint64_t fixture_check(void *ctx);
void fixture_close(void *ctx);
int fixture_probe(void *ctx);

/*
 * An object: its length, its key, a word that changes, filler that follows from key and length. Of
 * a large object only some words are filled, for each is a crash state. All zero is an object of
 * pv_alloc().
 */
struct fixture_object {
	uint32_t bytes, key;
	uint64_t word;
	uint64_t filler[];
};

/* What they are made of. */
bool fixture_has_root(struct fixture *f, const char *name);
void fixture_fill(void *object, size_t bytes, uint64_t key);
int fixture_open(struct fixture *f, uint32_t flags);
int fixture_flavor(struct fixture *f);
int fixture_types(struct fixture *f);
int fixture_table(struct fixture *f);
/* A reserved object whose bytes depend on key; fixture_check() knows them. */
int fixture_object(struct fixture *f, size_t bytes, uint64_t key, void **out);

/* For CRASH_CUSTOM: before or after, whether or not these differ. */
bool fixture_legal(void *ctx, const struct crash_verdict *verdict);

/* More members may follow, such as .is_switch = true. */
#define FIXTURE_SCENARIO(title, set_up_as, operations, fixture, ...)                         \
	{                                                                                    \
		.name = (title), .ctx = (fixture), .ops = (operations),                      \
		.n_ops = sizeof(operations) / sizeof((operations)[0]), .setup = (set_up_as), \
		.recover = fixture_recover, .check = fixture_check, .close = fixture_close,  \
		.probe = fixture_probe, .any_order = true, __VA_ARGS__                       \
	}

/*
 * Operations. `arg` packs a slot of the table and a size: SLOT(s, bytes).
 */
#define SLOT(slot, bytes) ((uintptr_t)(slot) | (uintptr_t)(bytes) << 8)

int op_link(void *ctx, uintptr_t arg);	     /* reserve, fill, publish with the pointer to it */
int op_link_grows(void *ctx, uintptr_t arg); /* op_link(), which must add a segment */
int op_replace(void *ctx, uintptr_t arg);    /* the same, and free what was there, as one */
int op_unlink(void *ctx, uintptr_t slot);    /* pointer := NULL and free, as one */
int op_alloc(void *ctx, uintptr_t arg);	     /* pv_alloc() */
int op_free(void *ctx, uintptr_t slot);	     /* pv_free() */
int op_swap(void *ctx, uintptr_t slots);     /* two pointers, as one: SLOT(a, b) */
int op_many(void *ctx, uintptr_t slot);	     /* the most actions an intent can have */
int op_reserve(void *ctx, uintptr_t arg);    /* number of objects and size: SLOT(n, bytes) */
int op_publish_held(void *ctx, uintptr_t slot);
int op_cancel_held(void *ctx, uintptr_t unused); /* all */
int op_word(void *ctx, uintptr_t slot);		 /* change a live object by one word */
int op_link_many(void *ctx, uintptr_t arg);	 /* FIXTURE_MANY objects, one after the other */
int op_unlink_many(void *ctx, uintptr_t slot);
int op_random(void *ctx, uintptr_t seed); /* one of the above, chosen by seed and contents */
/* Transactions (fixture_tx.c). To rewrite an object is to change all of its bytes in place. */
int op_tx_rewrite(void *ctx, uintptr_t slot);
int op_tx_rewrite_two(void *ctx, uintptr_t slots); /* SLOT(a, b) */
int op_tx_link(void *ctx, uintptr_t arg);
int op_tx_replace(void *ctx, uintptr_t arg);
int op_tx_unlink(void *ctx, uintptr_t slot);
int op_tx_nested(void *ctx, uintptr_t slots);
int op_tx_abort(void *ctx, uintptr_t slots);
int op_tx_inner_abort(void *ctx, uintptr_t slots);
int op_tx_drop(void *ctx, uintptr_t slot); /* rewrites; allocates and frees again */
int op_tx_long(void *ctx, uintptr_t slot); /* a log of several chunks */
int op_tx_long_abort(void *ctx, uintptr_t slot);
int op_tx_publish(void *ctx, uintptr_t slots); /* rewrites a, links b meanwhile */
int op_tx_random(void *ctx, uintptr_t seed);
/* Retiring (fixture_retire.c). */
int op_retire(void *ctx, uintptr_t slot);	/* op_unlink() with RETIRE */
int op_retire_replace(void *ctx, uintptr_t arg); /* op_replace() with RETIRE */
int op_retire_many(void *ctx, uintptr_t slot);	/* FIXTURE_MANY, one after the other */
int op_retire_some(void *ctx, uintptr_t slot);	/* five objects, as one */
int op_retire_tx(void *ctx, uintptr_t slots);	/* replaces a, unlinks b: SLOT(a, b) */
int op_retire_tx_abort(void *ctx, uintptr_t slot);
int op_reclaim(void *ctx, uintptr_t unused);	/* the grace period is over: all is given back */
int op_reclaim_link(void *ctx, uintptr_t arg);	/* and an object is linked, in that memory if it can */
/* Other sizes, alignment, memory given back (fixture_object.c). A loose object has FIXTURE_LOOSE_BYTES of
 * contents, whatever its size, and so may shrink. */
int op_link_loose(void *ctx, uintptr_t arg);
int op_link_stays(void *ctx, uintptr_t arg);	/* op_link(), which must not add a segment */
int op_short_link(void *ctx, uintptr_t arg);	/* the same as without `short`, by pv_link() ... */
int op_short_replace(void *ctx, uintptr_t arg);
int op_short_unlink(void *ctx, uintptr_t slot);
int op_realloc(void *ctx, uintptr_t arg);
int op_realloc_stays(void *ctx, uintptr_t arg); /* which must be done in place */
int op_realloc_moves(void *ctx, uintptr_t arg); /* or must not */
int op_link_aligned(void *ctx, uintptr_t arg);	/* a loose object: SLOT(s, log2 of the alignment) */
int op_trim(void *ctx, uintptr_t unused);
int op_trim_to(void *ctx, uintptr_t segments);	/* must leave so many */
int op_type(void *ctx, uintptr_t number); /* register a new type */
int op_root(void *ctx, uintptr_t number); /* create a new root */
int op_create(void *ctx, uintptr_t flags);
int op_reopen(void *ctx, uintptr_t unused);
int op_settle(void *ctx, uintptr_t unused); /* op_reopen() twice */
int op_reattach(void *ctx, uintptr_t relocate); /* enum pv_relocate; neither types nor table are looked for */
int op_destroy(void *ctx, uintptr_t unused);
/* A bit of the index is wrong, and it is attached: where in it, in words; or in the slot in force. */
int op_reopen_damaged(void *ctx, uintptr_t word);
#define DAMAGED_SLOT 0x10000u /* + word */
/* pv_repair() (fixture_repair.c), in a `leaky` store. Leaking: number of objects and size, SLOT(n, bytes). */
int op_leak(void *ctx, uintptr_t arg);
int op_repair(void *ctx, uintptr_t unused);
int op_repair_damaged(void *ctx, uintptr_t word); /* see op_reopen_damaged() */

#endif
