/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Statistics: where the memory of a store is, by type and size class, by thread, and how much of it can
 * still be had.
 *
 *	struct pv_stats *st;
 *
 *	if (pv_stats_get(store, &st) == 0) {
 *		printf("%llu objects, largest possible %llu\n", st->live_objects, st->largest_bytes);
 *		pv_stats_free(st);
 *	}
 *
 * What is exact. While no other thread changes the store, everything is, with a slab that nobody has
 * used since the attach as with any other. While others do, the figures are a snapshot that is taken
 * piece by piece: the objects of one slab, and the free pages of one segment, are of one instant, but
 * not of the same as those of the next. An object may then be missing, or a slab be counted in two
 * places. Slots change hands without a lock, so even in one slab an object that is just being published
 * or freed may be seen before or after.
 *
 * What it costs. It reads a word for each page and a byte for each slot (some ten milliseconds for 7
 * million objects of 64 bytes), touches no object, and holds the heap's lock for some tens of
 * microseconds at a time.
 *
 * Through a PV_RDONLY handle there are no threads, and what is live is all that counts: slots that a
 * process holds are counted as free, which they are once it is gone, and `largest_bytes` is 0. Segments
 * and types that a writer adds later than this handle was opened are not seen.
 */
#ifndef PRESERVE_STATS_H
#define PRESERVE_STATS_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Slabs: those of one size class of a type, of a type, or of the store.
 *  slab_bytes = live_bytes + busy_bytes + free_bytes + metadata_bytes. */
struct pv_stats_slabs {
	uint64_t slabs;
	uint64_t pages;
	uint64_t slab_bytes; /* of those pages */
	/* Slots by state. */
	uint64_t live;
	uint64_t reserved; /* handed out by pv_reserve(), not published */
	uint64_t held;	   /* ready to be handed out: in the caches of threads, or between them */
	uint64_t retired;  /* freed, but readers may still look at them */
	uint64_t free;
	/* The same in bytes: whole slots, whatever was asked for. */
	uint64_t live_bytes;
	uint64_t busy_bytes; /* reserved, held, retired */
	uint64_t free_bytes;
	uint64_t metadata_bytes; /* slab headers, a byte for each slot, what no slot fits into */
	/* free_bytes / slab_bytes, 0 without slabs: the part of the slabs that is reserved for a type and
	 * size and has no object. Not in it: what an object does not use of its slot. */
	double fragmentation;
};

/** A size class of a type, if the type has slabs of it. */
struct pv_stats_class {
	uint32_t slot_bytes;
	uint32_t slots; /* in one slab */
	struct pv_stats_slabs slabs;
};

struct pv_stats_type {
	const char *name;
	pv_type_t type;
	uint32_t bytes; /* as registered */
	/* In slots and extents. */
	uint64_t live_objects;
	uint64_t live_bytes;
	/* The largest pv_reserve() of this type that would succeed now in the calling thread: like
	 * pv_stats.largest_bytes, and besides a free slot of its own will do. */
	uint64_t largest_bytes;
	/* Objects larger than the largest slot; whole pages. Reserved ones of type 1 include the pages
	 * that transactions have for their logs. */
	uint64_t extents;
	uint64_t extent_bytes;
	uint64_t reserved_extents;
	uint64_t reserved_extent_bytes;
	struct pv_stats_slabs slabs; /* the sum of `classes` */
	uint32_t nclasses;
	const struct pv_stats_class *classes; /* by slot_bytes, ascending */
};

/** What a thread that uses the store holds ready for itself. */
struct pv_stats_thread {
	uint32_t lane; /* number of its lane; given back, and given out again, as threads come and go */
	bool self;     /* the calling thread */
	uint64_t slots;
	uint64_t bytes;
};

struct pv_stats {
	uint64_t live_objects;
	uint64_t live_bytes;
	uint64_t extents;
	uint64_t extent_bytes;
	uint64_t reserved_extents;
	uint64_t reserved_extent_bytes;
	uint64_t retired_extents; /* freed, but readers may still look at them; of any type */
	uint64_t retired_extent_bytes;
	struct pv_stats_slabs slabs; /* of all types */

	uint32_t segments;
	uint64_t bytes;	       /* sum of the memfds' sizes, the index included */
	uint64_t backed_bytes; /* of which so much has memory (or swap) behind it, by fstat() */
	uint64_t page_bytes;   /* unit of the next two */
	uint64_t used_bytes;   /* pages taken by slabs and extents, reserved ones included */
	uint64_t free_bytes;   /* pages that are free in the segments there are */
	/* The index, and of each segment its header, page map and lanes; and slabs.metadata_bytes. */
	uint64_t metadata_bytes;
	/* What the machine and the memory cgroups seem to have left for this process now, beside the
	 * reserve below which pages are refused with -ENOMEM: an estimate, which others use up as well.
	 * UINT64_MAX: nothing is known of a limit. */
	uint64_t available_bytes;
	uint64_t limit_bytes; /* pv_options.limit_bytes; 0: none */
	uint64_t window_bytes;
	/*
	 * The largest single pv_reserve() that would succeed now for any type, one that has no slot free
	 * included: what fits into the longest run of free pages, or into the largest segment that limit,
	 * window and index still allow. After a pv_trim() a page more would be refused with -ENOSPC; else
	 * it may succeed, as an allocation that finds no room first collects what is held and what an
	 * earlier process left. Not considered is what can be known by trying only: whether the handover
	 * backend keeps another segment, and whether there is the memory (-ENOMEM; see available_bytes).
	 * Smaller sizes need not all succeed when little is left: a slab of a smaller class can be longer
	 * than this.
	 */
	uint64_t largest_bytes;

	uint32_t ntypes;
	/* All that are registered, by number. A layout that was upgraded stays in the list, without objects,
	 * until its number is used again. */
	const struct pv_stats_type *types;
	/* Of the slots that are held, those that no thread has: on their way from one to another. */
	uint64_t depot_slots;
	uint64_t depot_bytes;
	uint32_t nthreads;
	const struct pv_stats_thread *threads; /* that have a lane; one is the reclaimer of retire.h */
};

/**
 * Collect statistics of all of the store, now. *out is owned by the caller: pv_stats_free(). The store
 * is not changed, nor is a lane taken. Errors: -ENOMEM. Any thread.
 */
int pv_stats_get(struct pv_store *store, struct pv_stats **out);

/** Free what pv_stats_get() gave, with all that it points to; it may outlive the store's handle. NULL is
 *  allowed. */
void pv_stats_free(struct pv_stats *stats);

#ifdef __cplusplus
}
#endif

#endif
