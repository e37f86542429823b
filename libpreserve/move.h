/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Moving objects: many objects get other places, all at once with respect to a crash, and whatever
 * points to them follows. Compaction, upgrades of layouts and sealing are done by this.
 *
 *	pvi_move_begin		nobody else has anything in his hands; every slab is warm and sound
 *	pvi_move_add ...	a new object is RESERVED and filled for each old one	crash: all of it is free
 *	pvi_move_commit		sort the pairs, write them to tables in pages that are held	the same
 *				an index with the node `move`, which names the tables	crash from here on:
 *				redo:							pv_open() does it (again)
 *				  new objects LIVE
 *				  each reference to an old object := its new one
 *				  old objects free
 *				an index without `move`, with the roots' new places	crash from here on: done
 *
 * No old object's address is a new one's, so the redo can be done again from its beginning, whatever of
 * it has been done.
 */
#ifndef PVI_MOVE_H
#define PVI_MOVE_H

#include "types.h"

/** A move under way; the fields are for move*.c. */
struct pvi_move {
	struct pv_store *s;
	struct pvi_thread *t; /* of the caller; NULL: pv_open() finishes a move */
	uint32_t purpose;     /* PV_MOVE_... */
	uint32_t segment;     /* PV_MOVE_SEAL: number of the one that is sealed by it */
	uint32_t tables_from; /* tables are put into segments from this one on, if there is room */
	uint64_t n;
	uint64_t room;
	struct move_rec *recs; /* by old_off, once that is so */
	/* By segment and page: how many of recs lie before the page. NULL: no old object lies in the
	 * segment. */
	uint32_t **first;
	void *tables[PV_MOVE_TABLES]; /* what holds the tables' pages */
	void (*progress)(void *ctx, uint64_t done, uint64_t total); /* bytes looked at; may be NULL */
	void *ctx;
};

/**
 * Begin. No other call on the store runs until the end. Waits for what was retired, empties the magazines of
 * all threads and the depots, warms all slabs. Takes locks.
 * Errors: -EPERM read-only; -EBUSY a transaction is open, or an object is reserved; -EBADMSG damage;
 * -EDEADLK the caller is a reader; -ENOMEM.
 */
int pvi_move_begin(struct pv_store *s, uint32_t purpose, struct pvi_move **out);
/** Call fn for each live object that is not sealed; `rec` is the page map entry of its head page. It may reserve
 *  objects. Ends at what it returns, if that is not 0. */
typedef int pvi_move_fn(void *ctx, void *object, size_t bytes, uint64_t rec);
int pvi_move_each(struct pvi_move *m, pvi_move_fn *fn, void *ctx);
/** `fresh`, which the caller has reserved and filled, takes the place of the live object `old`. -ENOMEM. */
int pvi_move_add(struct pvi_move *m, const void *old, void *fresh);
/** Copy the contents, as far as both reach; relative references of `fresh` then lead to where those of
 *  `old` do. */
void pvi_move_copy(struct pvi_move *m, void *fresh, const void *old);
/** The same for who knows type and size, which both have. */
void pvi_move_copy_all(struct pvi_move *m, void *fresh, const void *old, size_t bytes, uint32_t number);
/**
 * Do it, and free m. Errors, with nothing changed and all new objects given back: -ENOMEM, -ENOSPC no room
 * for the tables or in the index. The index is written as it is in s->index. PV_MOVE_UPGRADE: no reference
 * leads into the middle of an old object, the caller has seen to that.
 */
int pvi_move_commit(struct pvi_move *m);
/** Give all new objects back, and free m. */
void pvi_move_cancel(struct pvi_move *m);

/* ---- move_redo.c ---- */

/** Sort the records and make it quick to find one. -ENOMEM; -EINVAL: an object stands twice. */
int pvi_move_settle(struct pvi_move *m);
/** Free what m has of ordinary memory, and m->recs. */
void pvi_move_free(struct pvi_move *m);
/** Offset of the place that what lies at an offset of an old object has in the new one; 0: it does not move. */
uint64_t pvi_move_target(const struct pvi_move *m, uint64_t off);
/** The redo, and the same change of s->index, which the caller has to write. */
void pvi_move_redo(struct pvi_move *m);

/* ---- index_move.c ---- */

/** The node `move`, if there is one, in the tree that is being written. */
void pvi_index_write_move(const struct pvi_index *idx, void *fdt, int *err);
/** Read it. */
int pvi_index_read_move(struct pvi_index *idx, const void *fdt);

/* ---- move_table.c ---- */

/** Write the records to tables, and say so in s->index.move. Holds pages: m->tables. */
int pvi_move_write_tables(struct pvi_move *m);
/** Of pv_open(): check everything about the move that the index names, if there is one, and read it: *m,
 *  to be freed by pvi_move_free(). Nothing is changed. */
int pvi_move_attach(struct pv_store *s, struct pvi_move *m);

#endif
