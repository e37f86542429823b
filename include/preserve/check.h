/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Checking a store, and mending what can be mended without a guess.
 *
 *	struct pv_check_report r;
 *
 *	if (pv_check(store, PV_CHECK_TELL(print_line, NULL), &r) == 0 && r.problems == 0)
 *		printf("sound; %llu leaked objects\n", (unsigned long long) r.leaked_objects);
 *
 * Pointers are known by the pointer maps of types (preserve/type.h). A live object that no chain of
 * pointers from a root leads to is *leaked*. Leaks are no problems: objects of a type that is declared as
 * plain bytes lead to nothing, so what is only found through such objects counts as leaked, too. Only the
 * program knows whether that is so; see PV_REPAIR_LEAKS.
 *
 * What counts while a process has the store open. Only live objects are looked at. One that is reserved
 * belongs to nobody's data yet, and one that is retired to nobody's any more: a pointer from a live object
 * to either is a problem, as it would dangle after a crash; and what only they lead to is leaked. The one
 * exception is an open transaction of this process: a pointer to what is reserved is then taken for one to
 * what the transaction has allocated. Its ranges are looked at as they are now.
 */
#ifndef PRESERVE_CHECK_H
#define PRESERVE_CHECK_H

#include <stddef.h>
#include <stdint.h>

#include <preserve/type.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pv_store;

/** pv_check_options.flags */
#define PV_CHECK_FAST 1u /* what pv_open() looks at: index, headers of segments, lanes; and the roots */

/** Leaked objects of a type. */
struct pv_check_leak {
	pv_type_t type;
	const char *name; /* of the type */
	uint64_t objects;
	uint64_t bytes; /* their slots and extents */
};

/** Zero means default for every field; `size` is sizeof(struct pv_check_options). The callbacks are called
 *  by one thread at a time, which need not be the one that called pv_check(). They may be NULL, and must not
 *  call anything that changes the store. */
struct pv_check_options {
	size_t size;
	uint32_t flags;
	uint32_t threads; /* at most 64; default: as many as there are processors, fewer for a small store */
	/* A line for each problem, without a newline. */
	void (*tell)(void *ctx, const char *line);
	/* Once for each type of which objects are leaked. */
	void (*leak)(void *ctx, const struct pv_check_leak *leak);
	/* Now and then: so much of `what` is done. */
	void (*progress)(void *ctx, const char *what, uint64_t done, uint64_t total);
	void *ctx;
};

/** Options for pv_check() that say no more than where lines go. */
#define PV_CHECK_TELL(function, context)                                                           \
	(&(struct pv_check_options){                                                               \
		.size = sizeof(struct pv_check_options), .tell = (function), .ctx = (context)})

/** pv_check_report.unsettled */
#define PV_UNSETTLED_IN_USE  1u /* another process has the store open for writing */
#define PV_UNSETTLED_PENDING 2u /* a crash left something that the next pv_open() for writing will do */

struct pv_check_report {
	uint64_t problems; /* number of problems found; 0: the store is sound */
	uint64_t live_objects;
	uint64_t live_bytes;	   /* in slots and extents of live objects */
	uint64_t reserved_objects; /* and slots that threads hold ready */
	uint64_t free_slots;
	uint64_t slabs;
	uint64_t extents;
	uint64_t free_pages;	  /* those of reserved and retired extents included */
	uint64_t retired_objects; /* slots and extents; see preserve/retire.h */
	/* Lanes with an intent that is not done, or a transaction that has not ended. Through a PV_RDONLY
	 * handle neither is a problem, nor the pages that they are about, as long as the next pv_open()
	 * for writing can see to them. Through any other an intent is one: no call is under way. */
	uint64_t intents;
	uint64_t transactions;
	uint64_t pointers;	 /* that are not null */
	uint64_t leaked_objects; /* live, and not reached from a root; no problem as such */
	uint64_t leaked_bytes;
	/* PV_UNSETTLED_*, PV_RDONLY only. Not 0: what pointers say is not yet, or no longer, what they
	 * will say, and so none was followed; `pointers` and `leaked_objects` are 0. */
	uint32_t unsettled;
	/* The index is there twice, as it always is but for an instant after each change. */
	uint32_t mirrored;
};

/**
 * Look at everything and say what is wrong: index, headers of segments, page maps, slab headers, slot
 * bytes, extents, lanes, roots; each pointer in a live object names the start or the inside of a live
 * object, of the type that its field names if it names one, or is null; what is not reached from the roots.
 * Writes nothing. `opts` may be NULL.
 *
 * Takes about 24 bytes for each page of the store, 2 bits for each slot, and at most 16 bytes for each
 * object whose type has pointers. Some 0.1 us for each object and pointer.
 *
 * Through a PV_RDONLY handle of a store that a process has open, figures are a snapshot taken piece by
 * piece, and segments and types that were added after this handle was opened are not seen.
 *
 * Returns 0 if the walk was done (look at report->problems); -EINVAL options; -ENOMEM. One thread.
 */
int pv_check(struct pv_store *store, const struct pv_check_options *opts,
	     struct pv_check_report *report);

/** pv_repair_options.flags */
#define PV_REPAIR_DRY_RUN 1u /* say what would be done; PV_RDONLY will do */
/**
 * Free leaked objects. Not done, and listed as left, while there are problems other than the index's: a
 * damaged pointer can make a leak of whatever it led to. To be used only if all references among the
 * program's objects are declared in pointer maps (pv-typecheck(1)), and no address is kept elsewhere.
 */
#define PV_REPAIR_LEAKS 2u

/** As pv_check_options. */
struct pv_repair_options {
	size_t size;
	uint32_t flags;
	uint32_t threads;
	pv_type_t type; /* PV_REPAIR_LEAKS: of this type only; 0: of any */
	uint32_t reserved; /* 0 */
	/* A line for each thing that is done, or would be, and one for each that is left as it is. */
	void (*tell)(void *ctx, const char *line);
	void (*progress)(void *ctx, const char *what, uint64_t done, uint64_t total);
	void *ctx;
};

struct pv_repair_report {
	struct pv_check_report check; /* what was found before anything was done */
	uint64_t mended;	      /* faults of the index that were mended */
	uint64_t freed_objects;
	uint64_t freed_bytes;
	uint64_t left; /* problems that are left */
};

/**
 * Check the store and mend what can be mended without a guess: the index, if one of its copies is sound;
 * and, on request, leaked objects. Everything else is listed and left. With PV_REPAIR_DRY_RUN nothing is
 * changed, and the figures are what would be.
 *
 * An index that pv_open() refuses because its commit word is damaged, or because the slot in force is and
 * has no mirror yet, is opened with PV_MEND (with PV_RDONLY for a dry run), which mends it: see FORMAT.md,
 * "What is checked".
 *
 * Errors: -EINVAL options; -EPERM PV_RDONLY without a dry run; -EBUSY PV_REPAIR_LEAKS while a transaction
 * is open; -ENOMEM; those of writing the index. Crash: some of it is done, each object whole; call it again
 * for the rest. One thread.
 */
int pv_repair(struct pv_store *store, const struct pv_repair_options *opts,
	      struct pv_repair_report *report);

#ifdef __cplusplus
}
#endif

#endif
