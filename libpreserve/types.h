/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The structs of a running process. Nothing here is ever stored in an arena, and no pointer to any
 * of this is; all of it is rebuilt, lazily, after an attach.
 *
 * Glossary
 *	window	   the addresses set aside for a store
 *	segment	   a memfd of fixed size, mapped into the window
 *	page	   the unit of space in a segment (4 or 16 KiB), one word each in the page map
 *	slab	   a run of pages with slots of one type and size class
 *	extent	   a run of pages that is one large object
 *	slot	   a place for an object in a slab; its state is one byte
 *	magazine   slots that a thread holds ready, HELD in the arena, listed in ordinary memory
 *	depot	   the same, but no thread's: batches of slots between magazines
 *	bin	   the slabs of one (type, class) that have free slots
 *	lane	   a thread's intent log in segment 0
 *	intent	   a list of absolute stores, done as a whole or not at all
 *	epoch	   number of the attach for writing
 *	cold	   said of a slab not yet touched by this process; `warming` validates and tidies it
 *
 * Locks, in the order in which they may be taken
 *	prepare_lock	one prepare or cancel at a time; nothing else waits for it
 *	stores_lock	(thread.c) the process's table of open stores; a thread that ends holds it while it
 *			gives back what it has
 *	reclaiming	(retire.c) one callback at a time gives memory back; none while the heap is walked
 *	heap_lock	bins, slab descriptors, page bitmaps, segment growth, lane assignment; with
 *			index_lock, the list of types
 *	pvi_depot.lock	a shard of one bin's depot
 *	handover_lock	handover calls; held while a segment joins, so that a prepare sees it on both
 *			sides or on neither
 *	index_lock	the index and what it is made from (types, roots, segment list)
 */
#ifndef PVI_TYPES_H
#define PVI_TYPES_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <preserve/preserve.h>

#include "layout.h"

#define PVI_CLASSES	   88u
#define PVI_SEGMENTS_MAX   2048u
#define PVI_PAGES_MAX	   (1u << 28) /* in a segment */
#define PVI_HUGE_BYTES	   (2ull << 20)
#define PVI_BASE_ALIGN	   (1ull << 30) /* of windows */
#define PVI_STORES_MAX	   32u /* open in one process at a time */
#define PVI_NAME_MAX	   48u
#define PVI_ROOTS_MAX	   4096u
#define PVI_MOVING_MAX	   4u /* bases whose windows may occur in pointers, beside the recorded one */
#define PVI_INDEX_SLACK	   256u /* left free: the next attach may write longer version strings */
#define PVI_RELOCATE_THREADS 64u
#define PVI_MAGAZINE_SLOTS 128u
#define PVI_SHARDS	   8u /* of a depot, and of a bin's slabs */
#define PVI_BATCH_SLOTS	   64u /* half a magazine */
#define PVI_FIRST_REFILL   8u
#define PVI_FIRST_REFILL_BYTES 2048u
#define PVI_CLASS_TABLE	   257u
#define PVI_ROW_TABLE	   513u
#define PVI_NO_CLASS	   127u /* no bin has it */

#define pvi_likely(x)	__builtin_expect(!!(x), 1)
#define pvi_unlikely(x) __builtin_expect(!!(x), 0)

/**
 * Everything that finding an object's slot byte takes, for each page of a warm slab; zero for any
 * other page. An array over the whole window, of which only what is used takes memory.
 */
struct pvi_page {
	uint8_t *slab;	     /* first slot; NULL: not (yet) a warm slab. Written last */
	uint8_t *bytes;	     /* first slot byte */
	uint64_t grid_units; /* of all slots, see pvi_page_slot() */
	uint32_t reciprocal;
	uint32_t bin; /* pvi_bin_number() of type and class; 0 where there is no slab. Atomic */
};

/** What a size class means in a store with pages of a given size. */
struct pvi_class {
	uint32_t slot_bytes;
	uint32_t reciprocal; /* see pvi_page_slot() */
	uint32_t nslots;     /* in the grid */
	uint32_t usable;     /* of those, not under the slab_rec */
	uint32_t npages;
	uint32_t meta_bytes; /* the slab_rec, and the slot bytes if they stand behind it */
	bool in_grid;	     /* they take the place of slots; else they stand behind them */
	uint32_t byte_shift; /* log2 of slot_bytes if an object's address says where its slot byte is, see
				pvi_slab_byte_of(); else 0 */
	uint16_t magazine;   /* slots that a thread may hold */
};

enum pvi_slab_state {
	PVI_SLAB_NONE = 0, /* not the head of a slab or extent, of a damaged one, or of a cold slab */
	PVI_SLAB_PARTIAL,  /* has FREE slots, on its bin's partial list */
	PVI_SLAB_FULL,	   /* no FREE slot, on no list */
	PVI_SLAB_CLOSED,   /* its objects are about to be moved: hands out no slot, on no list */
	PVI_EXTENT_HELD,   /* extent reserved; the page map says whether it is live meanwhile */
	PVI_EXTENT_LIVE,
	PVI_EXTENT_RETIRED, /* free in the page map, kept for readers; nfree: pages */
};

/** Descriptor of a slab or of an extent, at the index of its head page. */
struct pvi_slab {
	struct pvi_slab *next;
	struct pvi_slab *prev;
	uint32_t nfree;	 /* FREE slot bytes; of a held extent: pages */
	uint32_t cursor; /* no FREE slot byte before it; of a held extent: type */
	uint16_t segment;
	uint8_t state; /* enum pvi_slab_state */
	uint8_t shard; /* of a slab: whose list it is on; of a held extent: log2 of its alignment in pages */
};

struct pvi_segment {
	uint64_t data_off;   /* where pages of objects begin */
	uint64_t data_bytes; /* and their length */
	uint64_t off;
	uint64_t *map; /* page map in the arena */
	uint8_t *addr;
	uint32_t npages;
	uint32_t first_page;
	uint32_t number;
	int fd;
	uint64_t bytes;
	uint64_t birth_generation;
	bool sealed; /* read-only for good */
	/* Under heap_lock, valid once `loaded`. */
	bool loaded;
	uint32_t free_pages;
	uint32_t cursor;       /* no page before it is free */
	uint32_t no_run;       /* there is no run of that many free pages, or of more */
	uint64_t *taken;       /* bitmap: page in use or held */
	uint64_t *committed;   /* bitmap: this process has obtained the page's memory */
	uint64_t *cold;	       /* bitmap: head of a slab that has not been warmed */
	struct pvi_slab *slabs; /* npages descriptors */
};

/** Held slots on their way from one thread's magazine to another's. */
struct pvi_batch {
	struct pvi_batch *next;
	uint32_t n;
	void *slots[PVI_BATCH_SLOTS];
};

/** Who has a lane, or had it last. */
struct pvi_lane_use {
	uint32_t processor; /* on which its last thread ended, from 1; 0: none, or not known */
	bool taken;
};

/** A shard of a depot: what threads had too many of. */
struct pvi_depot {
	_Alignas(64) pthread_mutex_t lock;
	struct pvi_batch *full;	 /* batches with slots */
	struct pvi_batch *spare; /* empty ones */
	uint32_t nslots;	 /* in the full ones */
	uint32_t refilled;	 /* slots that threads of this shard got from slabs, since it was drained; heap_lock */
	uint64_t *held;		 /* pv_store.depot_bytes */
	uint32_t slot_bytes;
};

/** The slots of one type and class that no thread has. */
struct pvi_bin {
	/* Under heap_lock. */
	struct pvi_slab *partial[PVI_SHARDS]; /* slabs that have free slots, by who made or warmed them */
	uint32_t npartial[PVI_SHARDS];
	/* None of its slabs before this place is cold. */
	uint32_t cold_segment;
	uint32_t cold_page;
	struct pvi_depot *depot; /* PVI_SHARDS; made for the first magazine, then constant */
};

/** A slot that a thread holds: the object's address and that of its slot byte. */
struct pvi_held {
	void *object;
	uint8_t *byte;
};

/** Slots that a thread has ready: HELD in the arena. */
struct pvi_magazine {
	/* The last slot that is ready, slots[0] if there is none; what it is when there is room for no more.
	 * Pointers, because the fast paths then need no arithmetic. */
	struct pvi_held *top;
	struct pvi_held *end;
	uint64_t window_slots; /* how many slots a window has room for, if the class has a byte_shift, else 0 */
	uint32_t byte_shift;
	uint32_t bin;	    /* pvi_bin_number() of type and class */
	uint32_t want;	    /* how many slots the next refill from slabs takes: more each time */
	uint32_t shard;	    /* of the depot, this thread's */
	bool flexible;	    /* the type has flexible arrays, so that what is asked for, up to the class, matters */
	uint64_t min_bytes; /* what the type is at least, which may be less than the class */
	struct pvi_depot *depot;
	struct pvi_held *slots; /* allocated with it. The first is no slot; those above `top` are what was there before */
};

/** A type's magazines by size, in units of 8 bytes, rounded up: those which may be taken from without another
 *  look at the size. */
struct pvi_row {
	struct pvi_magazine *magazines[PVI_ROW_TABLE];
};

/** An object as its address says it: a slot, or an extent. */
struct pvi_object {
	uint8_t *byte;		 /* its slot byte; NULL: an extent */
	uint32_t bin;		 /* of a slot */
	uint8_t state;		 /* of an extent: what its slot byte would be */
	uint64_t rec;		 /* of an extent: its page map entry as it is or will be */
	struct pvi_segment *seg; /* of an extent */
};

/** What a commit does to an object. */
struct pvi_tx_action {
	struct pv_action action; /* LIVE, FREE or RETIRE */
	struct action_rec rec;
	struct pvi_object object;
};

/** A thread's transaction; tx.c. */
struct pvi_tx {
	uint32_t depth;
	bool aborted;
	uint32_t chunk;	    /* of the log, being written */
	uint64_t end;	    /* bytes used of it */
	uint64_t chunk_max; /* its size */
	uint8_t *log;	    /* its address */
	struct pvi_tx_action *actions;
	uint32_t nactions;
	uint32_t room;
};

/** What a thread holds of a store. */
struct pvi_thread {
	struct pvi_magazine none; /* has nothing; first, so that its address is the thread's */
	struct pv_store *store;	  /* NULL: it was closed, and all that follows was freed. Atomic */
	struct lane_rec *lane;
	/* By pvi_bin_number(). Where there is none yet, a magazine that is both empty and full, so
	 * that the fast paths need not ask. */
	struct pvi_magazine **magazines;
	struct pvi_row **rows; /* the same by type and size */
	uint32_t nbins;
	uint32_t nrows;
	/* The magazine whose last slot was handed out but stands there yet, or `none`: whoever publishes it and frees
	 * another one, mostly of the same type and size, writes that in its place. See pvi_thread_settle(). */
	struct pvi_magazine *lender;
	/* Addresses in which words may be stored to, until a slab or a segment goes (pvi_thread_forget()). As long
	 * as there are any, what the lender's last slot says is true. Atomic. */
	uintptr_t words;
	uint64_t nwords;
	/* What was reserved last, and the magazine in `rows` that it came from. */
	uint64_t last_bytes;
	struct pvi_magazine *last;
	uint32_t last_type; /* 0: nothing yet, and `last` is `none` */
	struct pvi_tx tx;
	struct pvi_thread *next; /* in store->threads, under heap_lock */
	uint32_t lane_number;
	bool found; /* by a thread, which frees it when it ends; else the store's close does */
};

struct pvi_field;

/** What a number in the list of types stands for. */
enum pvi_type_state {
	PVI_TYPE_USED = 0,
	PVI_TYPE_DRAFT,	 /* a new layout, until its upgrade is committed; objects are reserved at most */
	PVI_TYPE_FORMER, /* a layout from which all objects were upgraded; there are none */
};

struct pvi_type {
	char name[PVI_NAME_MAX + 1];
	uint8_t state; /* enum pvi_type_state: only those in use are found by name */
	uint32_t version;
	uint32_t bytes;
	uint32_t flags;	    /* PV_TYPE_PINNED */
	bool has_pointers;  /* there are fields */
	bool flexible;	    /* some go to the end of the object, whatever its contents say */
	bool simple;	    /* nothing but plain pointers, unconditional, in fixed places: then... */
	uint32_t npointers; /* ... these are their offsets, fields in turn, all within `bytes` */
	uint32_t *pointers;
	struct pvi_field *fields; /* the flat map, typemap.h */
	uint32_t nfields;
	char *strings; /* what the fields' names point into */
	uint64_t fingerprint;
	struct pvi_bin *bins; /* PVI_CLASSES, made on first use */
};

struct pvi_root {
	char name[PVI_NAME_MAX + 1];
	uint32_t type;
	uint64_t bytes;
	uint64_t off;
};

/** A move that is committed and not finished. */
struct pvi_index_move {
	uint32_t purpose; /* PV_MOVE_...; 0: there is none */
	uint32_t ntables;
	uint64_t objects;
	uint64_t checksum; /* XXH3-64 of all records, one table behind the other */
	uint32_t segment;  /* PV_MOVE_SEAL: that is to be sealed */
	struct {
		uint64_t off;
		uint64_t objects;
	} tables[PV_MOVE_TABLES];
};

/** The index in the form in which the process uses it. */
struct pvi_index {
	struct index_rec *rec; /* mapped at the start of the window */
	int fd;
	int lock_fd; /* a second open file description, which carries the lock */
	uint64_t bytes; /* of the memfd, when it was read */
	uint64_t generation; /* that was read, or put in force last */
	uint32_t mended;     /* PV_MENDED_*: what of the memfd was damaged when it was read */
	uint64_t base; /* what pointers in the store count from; pv_store.base is where it is mapped */
	uint64_t moving[PVI_MOVING_MAX]; /* while relocating: bases that they may still count from */
	uint32_t nmoving;
	bool moving_back; /* a relocation that was refused is being undone */
	uint64_t window_bytes;
	uint64_t granule_bytes;
	uint64_t page_bytes;
	uint64_t epoch;
	uint32_t nlanes;
	uint32_t nsegments;
	uint32_t ntypes; /* types are numbered from 1 */
	uint32_t nroots;
	struct pvi_type *types; /* PV_TYPES_MAX + 1, [0] unused */
	struct pvi_root *roots; /* grows */
	struct pvi_index_move move;
	/* A slot's worth of ordinary memory, so that a write that must not fail does not; see
	 * pvi_index_make_sure(). */
	void *spare;
	struct {
		uint64_t off;
		uint64_t bytes;
		uint64_t birth_generation;
		bool sealed;
		uint8_t digest[16];   /* of a sealed one: XXH3-128 of all its bytes */
		uint64_t sealed_base; /* where references in it belong */
	} *segments; /* PVI_SEGMENTS_MAX */
	char name[PVI_NAME_MAX + 1];
	uint8_t uuid[16];
	uint8_t writer_boot[16]; /* of who wrote the tree that was read; zeros: it does not say */
};

struct pvi_handover;
struct pvi_retire;

struct pv_store {
	/* Read without a lock, constant after pv_open() but for the segment table's growth. */
	uintptr_t base;
	uint64_t window_bytes;
	uint32_t granule_shift;
	uint32_t page_shift;
	_Atomic(struct pvi_segment *) *segment_of; /* by granule */
	struct pvi_page *pages;			   /* by page of the window; mapped, mostly untouched */
	/* For the fast paths: from an offset to where its page's descriptor is in `pages`. */
	uint64_t page_desc_mask;
	uint32_t page_desc_shift;
	uint32_t page_mask;
	uint32_t slot;	   /* of the process's table of stores */
	uint32_t nclasses; /* larger objects are extents */
	bool readonly;
	struct pv_mapped mapped; /* changed where segments are entered and withdrawn */
	uint8_t class_of[PVI_CLASS_TABLE]; /* by size, rounded up to 16 bytes; [0]: no class */
	struct pvi_class classes[PVI_CLASSES];

	struct pvi_segment *segments; /* PVI_SEGMENTS_MAX */
	_Atomic uint32_t nsegments;
	struct lane_rec *lanes;
	uint32_t nlanes;
	uint32_t lanes_used; /* those from here on were never taken: all zero, and without memory */

	pthread_mutex_t heap_lock;
	struct pvi_lane_use *lane_uses; /* one for each lane */
	struct pvi_thread *threads;
	uint64_t limit_bytes;
	uint64_t used_pages;
	uint32_t reclaim_segment; /* no slab before this place is cold */
	uint32_t reclaim_page;
	uint32_t collapses_failed; /* in a row; after a few we stop trying */
	uint64_t depot_bytes;	   /* in all depots; atomic, without the lock */
	uint64_t idle_pages;	   /* free ones that have memory, as far as this process knows */
	uint64_t idle_refused;	   /* bytes of them that could not be given back */
	/* While objects are moved: pages are taken only from the segments [from, to). to 0: from all, and the
	 * store may grow. */
	struct {
		uint32_t from;
		uint32_t to;
	} steer;
	_Atomic(struct pvi_retire *) retire; /* retire.c; NULL: no flavour was chosen */

	pthread_mutex_t index_lock;
	struct pvi_index index;

	pthread_mutex_t prepare_lock;
	pthread_mutex_t handover_lock;
	struct pvi_handover *handover;

	uint64_t found_base; /* that the index named when it was attached */
	uint64_t relocated_from;
	uint64_t relocated_ns;
	uint64_t relocated_pointers;
	uint64_t relocated_bytes;
	uint64_t dangling;
	enum pv_origin origin;
	bool from_kexec;
	bool window_reserved;
	uint64_t attach_ns;
	uint64_t fetch_ns;
	uint64_t recovered;
	struct pv_options options;
};

#endif
