/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Compaction: live objects are moved together, so that what is kept, and carried across a kexec, is what
 * is used.
 *
 *	struct pv_compact_report report;
 *
 *	pv_compact(store, NULL, &report);		// or pv_options.flags = PV_COMPACT
 *	pv_handover_prepare(store);
 *
 * After churn a store has slabs with few objects in them, and segments that cannot leave it because of
 * some. Free pages have no memory, but pv_handover_prepare() gives all pages of all segments memory:
 * what counts for it is how many segments there are. pv_compact() moves the objects of sparse slabs into
 * the free slots of fuller ones, and whatever lies in the last segments into earlier ones, and lets the
 * last segments go.
 *
 * Objects get other addresses. Every reference that a type's fields declare is made to name the new ones,
 * in objects and roots. What the program has elsewhere is void: addresses in its own memory (also those
 * that pv_root() returned: ask again), an open pv_map (close it before, open it afterwards), addresses in
 * fields that are not declared. A type whose objects must not move has the flag PV_TYPE_PINNED; its
 * objects, and the segments up to the last one with any, stay.
 *
 * The world stands still: until pv_compact() has returned no other thread calls the library for this store,
 * holds a pv_lock in an object, or uses an address in the store. Nothing may be reserved, and no
 * transaction may be open.
 */
#ifndef PRESERVE_COMPACT_H
#define PRESERVE_COMPACT_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

/** pv_compact_options.flags */
#define PV_COMPACT_DRY_RUN 1u /* move nothing, say what would be returned */

/** Zero means default for every field; set `size` to sizeof(struct pv_compact_options). */
struct pv_compact_options {
	size_t size;
	uint32_t flags;	   /* PV_COMPACT_DRY_RUN */
	uint32_t reserved; /* 0 */
	/* Told, every 16 MiB or so and at the end of each, what is being done ("copy", "references") and how much
	 * of it; not told by a dry run, or where nothing is moved. May be NULL. */
	void (*progress)(void *ctx, const char *what, uint64_t done_bytes, uint64_t total_bytes);
	void *ctx;
};

/** What was done; of a dry run what would be done. */
struct pv_compact_report {
	uint64_t rounds; /* passes over all references; of a dry run 0 */
	uint64_t objects_moved;
	uint64_t bytes_moved;
	uint64_t slabs_returned; /* fewer than before */
	uint64_t pages_bytes;	 /* of pages that are in use no more */
	uint64_t segments_returned;
	uint64_t segments_bytes; /* what a pv_handover_prepare() has to preserve less */
	uint64_t memory_bytes;	 /* memory that came free; of a dry run 0: it is not known */
};

/**
 * Compact the store. `options` and `report` may be NULL. An object of whole pages is moved only out of a
 * segment that leaves.
 *
 * Takes room for what is moved and 32 bytes for each object, in free slots and pages; and time for copying
 * and for one or more passes over all references (see rounds).
 *
 * A dry run supposes that free pages can be used whatever their order: with large objects fewer segments may
 * then leave than it said.
 *
 * Errors: -EBUSY the store is prepared (no memory can be returned: compact before), a transaction is open
 * or an object is reserved; -EBADMSG the store is damaged (see pv_check()); -ENOSPC, -ENOMEM no room for
 * the move; -EPERM PV_RDONLY; -EDEADLK the caller is a reader of what was retired; -EUSERS; -EINVAL options.
 * With an error a round that was not done has changed nothing, and what earlier rounds did remains: look at
 * the report, which is always filled.
 * Crash: each round is done as a whole (the next pv_open() for writing finishes it) or not at all. One thread.
 */
int pv_compact(struct pv_store *store, const struct pv_compact_options *options,
	       struct pv_compact_report *report);

#ifdef __cplusplus
}
#endif

#endif
