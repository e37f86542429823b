/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The persistent bytes of a store, and nothing else. docs/FORMAT.md describes them in prose.
 *
 * All integers are in the byte order of the machine (little-endian on x86-64 and arm64); the FDT in
 * the index is big-endian, as everywhere. An "offset" is relative to the start of the window unless
 * its comment says otherwise. Reserved bytes are zero.
 *
 *	window:   | index memfd ... | segment 0 | segment 1 | ...      each begins on a granule
 *	index:    | index_rec (4096) | slot 0 | slot 1 |               a slot: index_slot_rec, FDT
 *	segment:  | segment_rec | page map | lanes (segment 0 only) | pages ... |
 *	slab:     slots of one type and size class, and somewhere among or behind them a slab_rec
 *	          and one byte of state for each slot
 */
#ifndef PVI_LAYOUT_H
#define PVI_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define PV_FORMAT_VERSION 1u
#define PV_COMPATIBLE	  "libpreserve,store-v1"

#define PV_INDEX_MAGIC	 0x5845444e4956504cull /* "LPVINDEX" */
#define PV_SEGMENT_MAGIC 0x544d47455356504cull /* "LPVSEGMT" */
/* Instead of the first one, in an index whose store is being destroyed by systemd.c: there is no store. */
#define PV_INDEX_GONE_MAGIC 0x454e4f474e56504cull /* "LPVNGONE" */
#define PV_SLAB_MAGIC	 0x42414c53u	       /* "SLAB" */

#define PV_TYPES_MAX 4095u

/* ---- index memfd ------------------------------------------------------------------------------ */

/** First page of the index memfd. Fixed at birth up to `checksum`. */
struct index_rec {
	uint64_t magic;
	uint32_t format_version;
	uint32_t slot_bytes; /* of each of the two slots; the first begins at PV_INDEX_HEADER_BYTES */
	uint8_t uuid[16];
	uint64_t bytes; /* of the memfd */
	uint64_t reserved[2];
	uint64_t checksum; /* XXH3-64 of everything before it */
	/*
	 * The commit word of the index: a generation, and a check of it in the upper bits, so that a
	 * damaged word does not bring an older index back. Slot (generation & 1) is in force and
	 * carries the same generation. Storing the word is what makes a new index valid; before the
	 * store the old index holds, after it the new one.
	 */
	uint64_t commit;
	uint64_t writer_pid; /* advisory: who holds the lock; for the message of -EBUSY */
};

/** Head of an index slot; the FDT follows. */
struct index_slot_rec {
	uint64_t generation;
	uint64_t bytes;	   /* of the FDT */
	uint64_t checksum; /* XXH3-64 of the FDT, seeded with the generation */
	uint64_t reserved;
};

#define PV_INDEX_HEADER_BYTES 4096u

/* The check in a commit word: bits of XXH3-64 of the UUID, seeded with the generation. */
#define PV_COMMIT_CHECK_SHIFT	  48
#define PV_COMMIT_GENERATION_MASK ((1ull << PV_COMMIT_CHECK_SHIFT) - 1)

_Static_assert(sizeof(struct index_rec) == 80, "index_rec");
_Static_assert(offsetof(struct index_rec, checksum) == 56, "index_rec.checksum");
_Static_assert(offsetof(struct index_rec, commit) == 64, "index_rec.commit");
_Static_assert(sizeof(struct index_slot_rec) == 32, "index_slot_rec");

/* ---- segment ---------------------------------------------------------------------------------- */

/** First bytes of a segment memfd: whose it is and how it is laid out. Fixed at birth. */
struct segment_rec {
	uint64_t magic;
	uint32_t format_version;
	uint32_t number; /* of the segment in its store, from 0; its token is number + 1 */
	uint8_t uuid[16];
	uint64_t bytes;		   /* of the memfd */
	uint64_t window_off;	   /* where it is mapped */
	uint64_t birth_generation; /* of the index that first named it: tells a stale copy */
	uint32_t page_shift;
	uint32_t npages;     /* bytes >> page_shift */
	uint32_t map_off;    /* page map: npages words; relative to the segment */
	uint32_t lanes_off;  /* lanes (segment 0), relative to the segment, else 0 */
	uint32_t nlanes;
	uint32_t first_page; /* pages before it hold the above */
	uint64_t reserved[4];
	uint64_t checksum; /* XXH3-64 of everything before it */
};

_Static_assert(sizeof(struct segment_rec) == 120, "segment_rec");
#define PV_MAP_OFF 128u

/*
 * Page map entry: one 64-bit word a page, written in a single store.
 *
 *	FREE	all zero
 *	SLAB	kind | class | back | meta | type	the same in every page, but for `back`
 *	EXTENT	kind | pages | type | alignment			head of a live large object
 *	OTHER	kind | sub   | back				META (header pages) or CONT
 *
 * `back` is the distance to the head page, in pages. `meta` is where the slab_rec lies in the slab,
 * in units of 64 bytes. `alignment` is the log2 of that in pages. The other bits are zero.
 */
#define PV_PAGE_FREE   0u
#define PV_PAGE_SLAB   1u
#define PV_PAGE_EXTENT 2u
#define PV_PAGE_OTHER  3u

#define PV_PAGE_KIND_BITS  2
#define PV_PAGE_CLASS_BITS 7
#define PV_PAGE_BACK_BITS  7
#define PV_PAGE_META_BITS  15
#define PV_PAGE_TYPE_BITS  13

#define PV_PAGE_CLASS_SHIFT  2
#define PV_PAGE_BACK_SHIFT   9
#define PV_PAGE_META_SHIFT   16
#define PV_PAGE_TYPE_SHIFT   31
#define PV_PAGE_UNUSED_SHIFT 44
#define PV_EXTENT_TYPE_SHIFT 2	/* 13 bits */
#define PV_EXTENT_PAGES_SHIFT 16 /* 32 bits; FREE in a lane action uses it as well */
#define PV_EXTENT_ALIGN_SHIFT 48 /* 6 bits */
#define PV_OTHER_SUB_SHIFT   2	/* 2 bits */
#define PV_OTHER_BACK_SHIFT  16 /* 32 bits */

#define PV_OTHER_META 0u
#define PV_OTHER_CONT 1u

/* ---- slab ------------------------------------------------------------------------------------- */

#define PV_SLAB_ALIGN 64u

/** In each slab at the place that the page map names. Fixed at birth. The slot bytes follow it, or lie beside it:
 *  pvi_slab_bytes(). */
struct slab_rec {
	uint32_t magic;
	uint32_t type;	     /* number of the type in the index */
	uint32_t slot_bytes; /* the size class */
	uint32_t nslots;     /* slots in the grid, those under this record or slot bytes included */
	uint64_t slab_off;   /* offset of the slab */
	uint32_t meta_off;   /* of this record, relative to the slab */
	uint32_t npages;
};

_Static_assert(sizeof(struct slab_rec) == 32, "slab_rec");

/**
 * State of a slot: one byte, one store. The last three belong to the process that wrote them: to any
 * later one they mean FREE, and it makes them so before it uses the slab.
 */
#define PV_SLOT_FREE	 0u
#define PV_SLOT_LIVE	 1u
#define PV_SLOT_RESERVED 2u /* handed out, not published */
#define PV_SLOT_RETIRED	 3u /* freed, but readers may still look at it */
#define PV_SLOT_HELD	 4u /* in a thread's magazine, ready to be handed out */
#define PV_SLOT_META	 0xffu /* under the slab_rec or slot bytes: not a slot */

/* ---- a move ----------------------------------------------------------------------------------- */

/**
 * An object that a committed move takes to another place. The index names the tables of such records, which
 * lie in pages that are FREE in the page map: nobody takes them before the move is finished. The last
 * two are entries of head pages as the page map has them or, for an extent, will have.
 */
struct move_rec {
	uint64_t old_off;
	uint64_t new_off;
	uint64_t old_rec;
	uint64_t new_rec;
};

#define PV_MOVE_TABLES 16u

/* Why objects are moved: move.purpose in the index. */
#define PV_MOVE_COMPACT 1u
#define PV_MOVE_UPGRADE 2u
#define PV_MOVE_SEAL	3u

_Static_assert(sizeof(struct move_rec) == 32, "move_rec");

/* ---- lock words ------------------------------------------------------------------------------- */

/* In objects, where the application put them (preserve/lock.h). Held by a thread of the process that has
 * the store open if there is an owner and the epoch is the current one; otherwise free. */
#define PV_LOCK_OWNER_MASK  0x3fffffull /* thread id */
#define PV_LOCK_WAITERS	    0x400000ull /* somebody may be asleep */
#define PV_LOCK_EPOCH_SHIFT 24		/* low 40 bits of the epoch */

/* ---- lane ------------------------------------------------------------------------------------- */

/** One step of an intent, absolute, so that doing it again changes nothing. */
struct action_rec {
	uint64_t where; /* operation in the top byte, offset below */
	uint64_t value;
};

#define PV_DO_LIVE  1u /* the slot byte at `where` := LIVE; value: not used */
#define PV_DO_WORD  2u /* the word at `where` := value */
#define PV_DO_PAGES 3u /* page map from the page at `where` on := value (SLAB, EXTENT or FREE) */
#define PV_DO_FLIP  4u /* index_rec.commit := the word for generation `value` */
#define PV_DO_FREE  5u /* the slot byte at `where` := FREE; value: not used */

#define PV_DO_OP_SHIFT 56
#define PV_DO_OFF_MASK ((1ull << PV_DO_OP_SHIFT) - 1)

#define PV_LANE_ACTIONS 31u

/**
 * An intent that stores one word, which says by itself how far it got: if the word has its new value,
 * recovery makes `object` live and frees `old`; otherwise `object` is free again. Addresses are those of
 * a store at the recorded base. There are two commit words, for the two values that the word can get; at
 * most one of them is not 0.
 */
struct link_rec {
	uint64_t word_object; /* address of a word that gets the address of `object` */
	uint64_t word_value;  /* address of a word that gets `value` */
	uint64_t value;
	uint64_t object; /* 0: nothing becomes live */
	uint64_t old;	 /* 0: nothing is freed */
};

/**
 * Entry of a transaction's log: either an action that the commit does, as above, or a range to be
 * put back (`where`: PV_DO_UNDO and the offset, `value`: bytes), whose old contents follow, padded to
 * 8 bytes. Either is followed by a word with the length of all of it, so that the log can be read
 * backwards.
 */
struct tx_entry_rec {
	uint64_t where;
	uint64_t value;
};

#define PV_DO_UNDO 8u

/** A piece of the log. The first is lane_rec.log; others are pages that are FREE in the page map, which
 *  nobody else takes before recovery has read them. */
struct tx_chunk_rec {
	uint64_t off;
	uint64_t bytes;
	uint64_t used; /* set before the next chunk is begun */
};

#define PV_TX_CHUNKS	21u
#define PV_TX_LOG_BYTES 992u

/* The commit word of a transaction: where its log ends, and what recovery does with it. */
#define PV_TX_NONE	  0u /* nothing */
#define PV_TX_ACTIVE	  1u /* put the ranges back */
#define PV_TX_COMMITTED	  2u /* do the actions */
#define PV_TX_CHUNK_SHIFT 2  /* 6 bits: number of the last chunk */
#define PV_TX_END_SHIFT	  8  /* bytes used of it */

/**
 * A thread's log. `count` is the commit word of its intent: 0 means that there is nothing to do,
 * otherwise that many actions are valid and recovery does them (again). `tx` is the commit word of its
 * transaction. An intent is in `actions` or in `link`, never in both.
 */
struct lane_rec {
	uint64_t count;
	uint64_t tx;
	struct link_rec link;
	struct action_rec actions[PV_LANE_ACTIONS];
	struct tx_chunk_rec chunks[PV_TX_CHUNKS];
	uint8_t log[PV_TX_LOG_BYTES];
};

_Static_assert(sizeof(struct action_rec) == 16, "action_rec");
_Static_assert(sizeof(struct tx_entry_rec) == 16, "tx_entry_rec");
_Static_assert(sizeof(struct tx_chunk_rec) == 24, "tx_chunk_rec");
_Static_assert(sizeof(struct link_rec) == 40, "link_rec");
_Static_assert(offsetof(struct lane_rec, actions) == 56, "lane_rec.actions");
_Static_assert(offsetof(struct lane_rec, chunks) == 552, "lane_rec.chunks");
_Static_assert(sizeof(struct lane_rec) == 2048, "lane_rec");

#endif
