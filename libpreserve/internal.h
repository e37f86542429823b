/* SPDX-License-Identifier: BSD-3-Clause */
/* Prototypes of the library's own functions, grouped by file, and the few inline ones that the hot
 * paths share. Unless said otherwise they return 0 or a negative errno with a message set. */
#ifndef PVI_INTERNAL_H
#define PVI_INTERNAL_H

#include <string.h>

#include "error.h"
#include "load.h"
#include "types.h"

/* ---- arena.c: addresses and memfds ---- */

/** A sealed memfd of this size; returns the descriptor or a negative errno. */
int pvi_arena_memfd(const char *name, uint64_t bytes);
/** Is fd a memfd of at least min_bytes that can neither grow nor shrink? Its size to *bytes. */
int pvi_arena_verify(int fd, const char *what, uint64_t min_bytes, uint64_t *bytes);
/** The attempt-th address at which a new store's window may be tried. */
uint64_t pvi_arena_base(const uint8_t uuid[16], uint64_t window_bytes, unsigned int attempt);
/** Could a window of this size begin here, in this build? */
bool pvi_arena_base_valid(uint64_t base, uint64_t window_bytes);
/** Where windows are put unless somebody says otherwise. */
void pvi_arena_bounds(uint64_t *low, uint64_t *high);
/** Set the window aside; -EADDRINUSE, without a message, if something is there. */
int pvi_arena_reserve(uint64_t base, uint64_t window_bytes);
/** Returns -EADDRINUSE with a message that says what is there. */
int pvi_arena_taken(uint64_t base, uint64_t window_bytes);
void pvi_arena_release(uint64_t base, uint64_t window_bytes);
/** Map a memfd into the window. */
int pvi_arena_map(void *addr, uint64_t bytes, int fd, bool readonly);
/** Map it for reading, so that it can be sealed against writing; what is written to it later, after an
 *  mprotect(), goes nowhere. */
int pvi_arena_map_private(void *addr, uint64_t bytes, int fd);
/** Undo pvi_arena_map(): the range is set aside again. */
void pvi_arena_unmap(void *addr, uint64_t bytes);
/** Obtain the memory of a range now, so that no later store to it can fail. */
int pvi_arena_commit(int fd, uint8_t *segment, uint64_t off, uint64_t bytes);
/**
 * Make one huge page of PVI_HUGE_BYTES at an address aligned to that: fewer TLB misses, and much less
 * for the kernel to do when it preserves the memory. Takes memory, keeps the contents. Works whatever
 * the system's policy for shmem is, short of `deny`. False: it is as it was, which is no harm.
 */
bool pvi_arena_collapse(uint8_t *at);

/* ---- memory.c: what the machine has left ---- */

/** May these bytes of a mapped memfd be given memory now? -ENOMEM names who has too little. */
int pvi_memory_ask(uint8_t *addr, uint64_t bytes);
/** Has all of the range its memory? */
bool pvi_memory_backed(uint8_t *addr, uint64_t bytes);
/** What the machine, or the memory cgroup with the least, could give now beside the reserve; UINT64_MAX:
 *  nothing is known of a limit. */
uint64_t pvi_memory_room(void);
/** Tests: read what is below this directory instead of /proc and /sys. */
void pvi_memory_root(const char *path);

/* ---- index.c: what is where ---- */

/** What may be done about an index that is damaged. */
enum pvi_index_how {
	PVI_INDEX_STRICT, /* nothing: the slot in force, or an error */
	PVI_INDEX_MIRROR, /* its mirror will do */
	PVI_INDEX_MEND,	  /* PV_MEND: see in_force() in index_slot.c */
};
static inline enum pvi_index_how pvi_index_how(const struct pv_store *s)
{
	return s->options.flags & PV_MEND ? PVI_INDEX_MEND : PVI_INDEX_MIRROR;
}
/** Read and check the index in force from a descriptor into idx (arrays are allocated). */
int pvi_index_read(struct pvi_index *idx, int fd, const struct index_rec *rec, enum pvi_index_how how);
/** The same from idx->fd, over what idx holds; descriptors and mapping stay. */
int pvi_index_reread(struct pvi_index *idx, const struct index_rec *rec, enum pvi_index_how how);
/** Free what pvi_index_read() or pvi_index_init() allocated. */
void pvi_index_free(struct pvi_index *idx);
int pvi_index_init(struct pvi_index *idx);
/**
 * Write idx to the slot that is not in force, for *generation, so that `slack` bytes stay free.
 * Nothing has changed for a reader until that is committed. Under index_lock.
 */
int pvi_index_stage(struct pvi_index *idx, uint32_t slack, uint64_t *generation);
/** See to it that writing an index that is no larger than the one in force cannot fail, until the caller frees
 *  idx->spare. Under index_lock. */
int pvi_index_make_sure(struct pvi_index *idx);
/** Is there room to name another segment? Under index_lock. */
bool pvi_index_has_room(struct pvi_index *idx);
/** Can the index staged for this generation be read, and is it idx but for roots? */
bool pvi_index_staged_sound(const struct pvi_index *idx, uint64_t generation);

/* ---- index_slot.c: the memfd of the index ---- */

/** Bytes of an index memfd for a store with segments of this first size. */
uint64_t pvi_index_memfd_bytes(uint64_t granule_bytes);
/** Format a fresh, mapped index memfd. */
void pvi_index_format(struct index_rec *rec, const uint8_t uuid[16], uint64_t bytes);
/** Check the fixed part of the header that was read from a descriptor. */
int pvi_index_check_header(const struct index_rec *rec, uint64_t bytes);
/** The commit word of a generation. */
uint64_t pvi_index_commit_word(const uint8_t uuid[16], uint64_t generation);
/** The generation that the commit word names. */
static inline uint64_t pvi_index_generation(const struct index_rec *rec)
{
	return __atomic_load_n(&rec->commit, __ATOMIC_ACQUIRE) & PV_COMMIT_GENERATION_MASK;
}
/** The generation of the index in force: a reader's changes under its eyes, unless the word is damaged. */
static inline uint64_t pvi_index_current(const struct pv_store *s)
{
	return s->readonly && !(s->index.mended & PV_MENDED_COMMIT)
		       ? pvi_index_generation(s->index.rec)
		       : s->index.generation;
}
/** Is it a flattened device tree, whatever libfdt's version makes of it? */
bool pvi_index_tree_sound(const void *fdt, uint64_t bytes);
/** Bytes of a tree that fit into a slot. */
uint32_t pvi_index_slot_room(const struct index_rec *rec);
/** Obtain the memory for a tree and its mirror, and write it to the slot of this generation. */
int pvi_index_slot_write(struct pvi_index *idx, uint64_t generation, const void *tree);
/** Put the staged index in force, which is a single store; then write its mirror. */
void pvi_index_commit(struct pvi_index *idx, uint64_t generation);
/** A copy of the slot in force (free()), and what is to be mended: PV_MENDED_*. */
int pvi_index_slot_read(int fd, const struct index_rec *rec, enum pvi_index_how how,
			struct index_slot_rec **out, uint32_t *mended);
/** Write to the memfd what idx->mended says is damaged there. A crash on the way: it is still so. */
void pvi_index_mend(struct pvi_index *idx);
/** Has the index that was read been written since this kernel was started? false: no, or not known. */
bool pvi_index_of_this_boot(const struct pvi_index *idx);
/** Write anew what of the memfd is damaged or missing, from what is there, or else from idx; index_lock.
 *  As pvi_index_stage(). */
int pvi_index_restore(struct pvi_index *idx);
/** Does the mapped slot for this generation, or its mirror, hold a sound FDT? */
bool pvi_index_slot_sound(const struct index_rec *rec, uint64_t generation, bool mirror);
bool pvi_index_commit_sound(const struct pvi_index *idx);

/* ---- index_type.c: its nodes /types/type@N ---- */

/** Write them into the tree that is being built, unless *err is a libfdt error already. */
void pvi_index_write_types(const struct pvi_index *idx, void *fdt, int *err);
/** Read and check them. What was read before an error is the caller's to free, by pvi_index_free(). */
int pvi_index_read_types(struct pvi_index *idx, const void *fdt);

/* ---- type.c ---- */

/** Number of the type in use that has this name; 0: none. */
uint32_t pvi_type_find(const struct pv_store *s, const char *name);
/** heap_lock and index_lock, under both of which the list of types changes. */
void pvi_types_lock(struct pv_store *s);
void pvi_types_unlock(struct pv_store *s);
/** -EMEDIUMTYPE, with both layouts; nupgrades: functions there are, none of which leads there. */
int pvi_type_differs(const struct pvi_type *have, const struct pvi_type *want, uint32_t nupgrades);

/* ---- lock.c: one writer ---- */

/** Lock the index of s->index.fd; -EBUSY names the process that has it. */
int pvi_lock_take(struct pv_store *s, const char *name, const struct index_rec *rec);
void pvi_lock_release(struct pv_store *s);
/** Has another process, or another handle of this one, the store open for writing? */
bool pvi_lock_others(const struct pv_store *s);
/** Say in the index that it is us. */
void pvi_lock_note_writer(struct pv_store *s);

/* ---- lockword.c: locks in objects ---- */

/** In a forked child: its thread has another id than the one that it was forked from. */
void pvi_lockword_forget_thread(void);

/* ---- lane.c: intents ---- */

static inline uint64_t pvi_lane_where(uint64_t op, uint64_t off)
{
	return op << PV_DO_OP_SHIFT | off;
}
/* In a single thread the compiler must keep the order of arena stores; the CPU does not matter, see
 * docs/CRASH.md. */
static inline void pvi_barrier(void)
{
	atomic_signal_fence(memory_order_seq_cst);
}
/** Is there an intent in lane->link? */
static inline bool pvi_lane_linking(const struct lane_rec *lane)
{
	return (lane->link.word_object | lane->link.word_value) != 0;
}
/** From here on a crash makes recovery do the lane's first n actions. */
static inline void pvi_lane_begin(struct lane_rec *lane, uint64_t n)
{
	pvi_debug_check(lane->count == 0 && !pvi_lane_linking(lane));
	pvi_barrier();
	__atomic_store_n(&lane->count, n, __ATOMIC_RELAXED);
	pvi_barrier();
}
/** The actions are done. */
static inline void pvi_lane_end(struct lane_rec *lane)
{
	pvi_barrier();
	__atomic_store_n(&lane->count, 0, __ATOMIC_RELAXED);
	pvi_barrier();
}
/** From here on it depends on the word whether recovery does the intent in lane->link: has it been stored
 *  to? `commit` is one of the two commit words there. */
static inline void pvi_lane_link_begin(uint64_t *commit, const void *word)
{
	pvi_debug_check(*commit == 0);
	pvi_barrier();
	__atomic_store_n(commit, (uintptr_t) word, __ATOMIC_RELAXED);
	pvi_barrier();
}
/** It is done. */
static inline void pvi_lane_link_end(uint64_t *commit)
{
	pvi_barrier();
	__atomic_store_n(commit, 0, __ATOMIC_RELAXED);
	pvi_barrier();
}
/** Is it an action that an intent or a commit can contain? */
bool pvi_lane_action_sound(const struct pv_store *s, const struct action_rec *a);
/** Do one action. */
void pvi_lane_apply(struct pv_store *s, const struct action_rec *a);
/** Do the lane's first n actions as one, and leave the lane idle. */
void pvi_lane_run(struct pv_store *s, struct lane_rec *lane, unsigned int n);
/** After a crash: is every intent one that can be redone? Attach only, as the next. */
int pvi_lane_check(const struct pv_store *s);
/** Redo the valid intents; how many. */
uint64_t pvi_lane_recover(struct pv_store *s);
/** Does an action change the page map entry of the page at this offset? Does any that is pending? */
bool pvi_lane_action_covers(const struct pv_store *s, const struct action_rec *a, uint64_t off);
bool pvi_lane_covers(const struct pv_store *s, uint64_t off);
/** Write the page map of a segment from a page on as `rec` says: SLAB, EXTENT or FREE. */
void pvi_lane_apply_pages(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint64_t rec);

/* ---- sizeclass.c ---- */

/** Fill s->classes for its page size. */
void pvi_class_init(struct pv_store *s);

static inline uint32_t pvi_class_of(size_t bytes)
{
	size_t b = bytes - 1;
	unsigned int k;

	if (b < 128)
		return (uint32_t) (b >> 4);
	k = 63u - (unsigned int) __builtin_clzll(b);
	return (k - 7) * 8 + (uint32_t) (b >> (k - 3));
}

/* ---- page.c: page maps (heap_lock) ---- */

static inline unsigned int pvi_page_kind(uint64_t rec)
{
	return (unsigned int) (rec & 3);
}
static inline uint32_t pvi_page_field(uint64_t rec, unsigned int shift, unsigned int bits)
{
	return (uint32_t) (rec >> shift) & ((1u << bits) - 1);
}
#define pvi_rec_class(rec) pvi_page_field(rec, PV_PAGE_CLASS_SHIFT, PV_PAGE_CLASS_BITS)
#define pvi_rec_back(rec)  pvi_page_field(rec, PV_PAGE_BACK_SHIFT, PV_PAGE_BACK_BITS)
#define pvi_rec_meta(rec)  (pvi_page_field(rec, PV_PAGE_META_SHIFT, PV_PAGE_META_BITS) * PV_SLAB_ALIGN)
#define pvi_rec_type(rec)  pvi_page_field(rec, PV_PAGE_TYPE_SHIFT, PV_PAGE_TYPE_BITS)
#define pvi_rec_extent_type(rec)  pvi_page_field(rec, PV_EXTENT_TYPE_SHIFT, PV_PAGE_TYPE_BITS)
#define pvi_rec_extent_pages(rec) ((uint32_t) ((rec) >> PV_EXTENT_PAGES_SHIFT))
#define pvi_rec_extent_align(rec) pvi_page_field(rec, PV_EXTENT_ALIGN_SHIFT, 6)
#define pvi_rec_other_sub(rec)	  pvi_page_field(rec, PV_OTHER_SUB_SHIFT, 2)
#define pvi_rec_other_back(rec)	  ((uint32_t) ((rec) >> PV_OTHER_BACK_SHIFT))

static inline uint64_t pvi_rec_extent(uint32_t type, uint32_t npages, uint32_t align_shift)
{
	return PV_PAGE_EXTENT | (uint64_t) type << PV_EXTENT_TYPE_SHIFT |
	       (uint64_t) npages << PV_EXTENT_PAGES_SHIFT |
	       (uint64_t) align_shift << PV_EXTENT_ALIGN_SHIFT;
}
static inline uint64_t pvi_rec_free(uint32_t npages)
{
	return PV_PAGE_FREE | (uint64_t) npages << PV_EXTENT_PAGES_SHIFT;
}
static inline uint64_t pvi_rec_load(const uint64_t *map, uint32_t page)
{
	return __atomic_load_n(&map[page], __ATOMIC_RELAXED);
}
/** Pages that an entry of a head page (or a freeing action) speaks of; 0: no head. */
uint32_t pvi_page_span(const struct pv_store *s, uint64_t rec);
/** Is `rec` at `page` a head that fits into the segment and the store's classes? */
bool pvi_page_head_sound(const struct pv_store *s, const struct pvi_segment *seg, uint32_t page,
			 uint64_t rec);
/** And do the entries behind it belong to it? */
bool pvi_page_run_sound(const struct pv_store *s, const struct pvi_segment *seg, uint32_t page,
			uint64_t rec);
/** Build a segment's bitmap and descriptors from its page map. */
int pvi_page_load(struct pv_store *s, struct pvi_segment *seg);
/** Free what pvi_page_load() made. */
void pvi_page_unload(struct pvi_segment *seg);
/**
 * Find n contiguous pages from a multiple of `align` pages on, growing the store if need be, mark them
 * taken, and obtain the memory of those from number `memory_from` on.
 */
int pvi_page_alloc(struct pv_store *s, uint32_t n, uint32_t align, uint32_t memory_from,
		   struct pvi_segment **seg, uint32_t *page);
/** Take n pages from `page` on, if they are free; false: they are not, or there is no memory. */
bool pvi_page_take_at(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n);
/** Mark pages free again (volatile; the page map is the caller's). */
void pvi_page_free(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n);
/** Write the page map of a fresh segment: header pages META, the others FREE. */
void pvi_page_format(struct pvi_segment *seg);

/**
 * Number of the slot that a distance from the slab's start lies in, without a division. The distance is
 * in units of 8 bytes, of which every slot has an even number: so the reciprocal, which is 2^32 divided by a
 * slot's units and rounded up, has 32 bits. pvi_class_init() sees to it that this is exact in every slab.
 * *start (may be NULL): does a slot begin there?
 */
static inline uint64_t pvi_page_slot(uint64_t units, uint32_t reciprocal, bool *start)
{
	uint64_t product = units * reciprocal;

	if (start)
		*start = (uint32_t) product < reciprocal;
	return product >> 32;
}
/** A distance in these units; more than any slab has if it is no multiple of them. */
static inline uint64_t pvi_page_units(uint64_t bytes)
{
	return bytes >> 3 | bytes << 61;
}

/* ---- backing.c (heap_lock) ---- */

/** Obtain the memory of pages, and perhaps of some around them. */
int pvi_backing_commit(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n);
/** Make huge pages of what is committed, or none from the return of this call on. heap_lock is not held. */
void pvi_backing_collapse(struct pv_store *s, bool wanted);
/** Give back the memory of free pages; `all`: also of short runs and of what this process has not used.
 *  False: the kernel refuses. */
bool pvi_backing_punch(struct pv_store *s, struct pvi_segment *seg, bool all);
/** Memory that the segments have. */
uint64_t pvi_backing_bytes(const struct pv_store *s);
/** The same for all segments if much lies idle. */
void pvi_backing_release(struct pv_store *s);

static inline bool pvi_bits_get(const uint64_t *bits, uint32_t i)
{
	return bits[i / 64] >> (i % 64) & 1;
}
static inline void pvi_bits_set(uint64_t *bits, uint32_t from, uint32_t n, bool on)
{
	for (uint32_t i = from; i < from + n; i++) {
		uint64_t bit = 1ull << (i % 64);

		if (on)
			bits[i / 64] |= bit;
		else
			bits[i / 64] &= ~bit;
	}
}
static inline uint32_t pvi_bits_count(const uint64_t *bits, uint32_t from, uint32_t n)
{
	uint32_t count = 0;

	for (uint32_t i = from; i < from + n; i++)
		count += pvi_bits_get(bits, i);
	return count;
}

/* ---- slab.c (heap_lock unless said otherwise) ---- */

/** The bin of a type and class, made on first use. NULL: no memory. */
struct pvi_bin *pvi_slab_bin(struct pv_store *s, uint32_t type, uint32_t class);
/** Its depot, in the same way. */
struct pvi_depot *pvi_slab_depot(struct pv_store *s, uint32_t type, uint32_t class);
/** Free the bins of a type, or NULL. */
void pvi_slab_bins_free(struct pvi_bin *bins);
/** Take some slots for an empty magazine; none is an error. */
int pvi_slab_refill(struct pv_store *s, struct pvi_thread *t, uint32_t type, uint32_t class,
		    struct pvi_magazine *m);
/** Give held slots of one bin back to their slabs: FREE. */
void pvi_slab_return(struct pv_store *s, struct pvi_thread *t, void *const *slots, uint32_t count);
/**
 * Warm up to so many cold slabs of any bin, and make free pages of those that are empty. Goes on where
 * the last call stopped. True: there were some.
 */
bool pvi_slab_reclaim_cold(struct pv_store *s, struct pvi_thread *t, uint32_t warms);
/** Make pages of all slabs of a bin that have no other slots than FREE ones. */
void pvi_slab_release_empty(struct pv_store *s, struct pvi_thread *t, struct pvi_bin *bin);
/** No slot of a warm slab is handed out any more ... */
void pvi_slab_close(struct pv_store *s, struct pvi_segment *seg, uint32_t page);
/** ... until this call, which is about all that were closed. */
void pvi_slab_reopen(struct pv_store *s);
/** Validate and tidy the slab whose head is at `page`, if that has not been done. */
int pvi_slab_warm(struct pv_store *s, struct pvi_segment *seg, uint32_t page);
/** No fast path finds a slot in this page any more. heap_lock. */
void pvi_slab_undescribe(struct pvi_page *p);
/** Is the slab_rec of this head page what the page map says? Any lock. */
bool pvi_slab_sound(const struct pv_store *s, const struct pvi_segment *seg, uint32_t page,
		    uint64_t rec);
/** The slot byte of the object at an offset of a segment, by the page map alone, without warming: for
 *  those who only look. NULL: no slot begins there. Any lock. */
uint8_t *pvi_slab_slot(const struct pv_store *s, const struct pvi_segment *seg, uint64_t seg_off,
		       uint64_t *rec);

/** pvi_slab_byte_of() where object >> shift is known, as far as page_mask goes. */
static inline uintptr_t pvi_slab_byte(uintptr_t object, uintptr_t shifted, uintptr_t page_mask)
{
	return ((shifted ^ object) & page_mask) ^ object;
}

/**
 * The slot byte of an object of 2^shift bytes whose class has a byte_shift, where a page has page_mask + 1. The bits
 * of the object's address that say which of the page's slots it is become the lowest ones, and those above them, of
 * the page's number, take their place: so no page descriptor has to be waited for, the slot bytes are a run
 * at a multiple of their number, and that run is elsewhere in the next slab (see slab_color() for why). Windows begin
 * at multiples of PVI_BASE_ALIGN, so this holds at any base.
 */
static inline uintptr_t pvi_slab_byte_of(uintptr_t object, uint32_t shift, uintptr_t page_mask)
{
	return pvi_slab_byte(object, object >> shift, page_mask);
}

/** The slot bytes of a slab. */
static inline uint8_t *pvi_slab_bytes(const struct pv_store *s, const struct pvi_segment *seg,
				      uint32_t page, uint64_t rec)
{
	uint32_t shift = s->classes[pvi_rec_class(rec)].byte_shift;
	uint64_t off = (uint64_t) page << s->page_shift;

	if (shift)
		return seg->addr +
		       (pvi_slab_byte_of(seg->off + off, shift, (1u << s->page_shift) - 1) - seg->off);
	return seg->addr + off + pvi_rec_meta(rec) + sizeof(struct slab_rec);
}

/* ---- depot.c ---- */

/** A depot for slots of this size; *held counts the bytes that are in it, with others. NULL: no memory. */
struct pvi_depot *pvi_depot_new(uint32_t slot_bytes, uint64_t *held);
/** Free a depot, or NULL, with the batches that are in it. */
void pvi_depot_free(struct pvi_depot *shards);
/** Leave the oldest `count` slots of a magazine, at most half of one; false: no memory to note them. */
bool pvi_depot_give(struct pvi_magazine *m, uint32_t count);
/** Fill an empty magazine; false: the depot has none. */
bool pvi_depot_take(const struct pv_store *s, struct pvi_magazine *m);
/** An empty magazine was filled from slabs. heap_lock. */
void pvi_depot_refilled(struct pvi_magazine *m);
/** How many slots a depot, or NULL, has. */
uint64_t pvi_depot_slots(struct pvi_depot *shards);
/** Leave everything that a thread has. heap_lock. */
void pvi_depot_leave(struct pv_store *s, struct pvi_thread *t);
/** Empty all depots and the thread's magazines into the slabs, and make free pages of the slabs that
 *  are empty. heap_lock. */
void pvi_depot_drain(struct pv_store *s, struct pvi_thread *t);
/** The same with the magazines of all threads, while no other one runs. heap_lock. */
void pvi_depot_drain_all(struct pv_store *s, struct pvi_thread *t);

/* ---- heap.c and publish.c; what they share is in heap.h ---- */

/** The action that makes a reserved object live, for an intent of the caller's own... */
int pvi_heap_live_begin(struct pv_store *s, void *object, struct action_rec *live);
/** ... and what is to be done when that intent is. */
void pvi_heap_live_end(struct pv_store *s, void *object);

/* A LIVE or FREE in three steps: what is to be done, with the errors of pv_publish(); doing it, once
 * that is committed; and what follows once the log that says so is void. */
int pvi_heap_resolve(struct pv_store *s, const struct pv_action *a, struct action_rec *rec,
		     struct pvi_object *o);
void pvi_heap_apply(struct pv_store *s, const struct pv_action *a, const struct action_rec *rec,
		    const struct pvi_object *o);
void pvi_heap_settle(struct pv_store *s, struct pvi_thread *t, const struct pv_action *a,
		     const struct pvi_object *o);
/** Zero what an object of a type with flexible arrays has beyond what was asked for: it is part of them. */
static inline void pvi_heap_clear(void *object, size_t bytes, size_t usable_bytes)
{
	memset((uint8_t *) object + bytes, 0, usable_bytes - bytes);
}
/** Reserve an object as an extent. */
int pvi_heap_reserve_extent(struct pv_store *s, pv_type_t type, size_t bytes, uint32_t align_pages,
			    void **out);
/** Reserve an extent that begins at a multiple of so many pages; the type is registered. */
int pvi_heap_extent(struct pv_store *s, pv_type_t type, size_t bytes, uint32_t align_pages,
		    void **out);
/** What is known of a live object; -EINVAL with a message if it is none. */
int pvi_heap_find_live(struct pv_store *s, const void *p, struct pvi_object *o);
/** May an intent store to this word? */
int pvi_heap_word(struct pv_store *s, const void *p);
/** Hold pages that stay FREE in the page map; pv_cancel() gives them back. */
int pvi_heap_hold(struct pv_store *s, size_t bytes, void **out);

/* ---- retire.c ---- */

/* A PV_RETIRE in three steps. Room for n objects, which is all that can fail; then, after the intent
 * or commit, each object (its slot byte, or NULL: an extent in state PVI_EXTENT_RETIRED); then all
 * of them go. After the first the last has to follow, and nothing else in between. */
int pvi_retire_room(struct pv_store *s, struct pvi_thread *t, uint32_t n);
void pvi_retire_note(struct pv_store *s, struct pvi_thread *t, void *object, uint8_t *byte);
void pvi_retire_hand_over(struct pv_store *s, struct pvi_thread *t);
/** The error of a PV_RETIRE while s->retire is NULL. */
int pvi_retire_no_flavor(void);
/** Until the second call no callback changes the heap. Taken before heap_lock. */
void pvi_retire_pause(struct pv_store *s);
void pvi_retire_resume(struct pv_store *s);
/** Free what pv_retire_flavor() made. Nothing is in flight any more: pv_retire_wait(). */
void pvi_retire_close(struct pv_store *s);

/* ---- root.c ---- */

#ifdef PVI_DEBUG_CHECKS
/** -EINVAL: it is a root object, not to be freed. A search: in debug builds only. */
int pvi_root_keep(struct pv_store *s, const void *object);
#endif

/* ---- tx.c ---- */

/** After a crash: is every lane's log sound? Attach only, as the next. */
int pvi_tx_check(const struct pv_store *s);
/** Undo or finish the transactions; how many. */
uint64_t pvi_tx_recover(struct pv_store *s);
/** Does a transaction that is being committed change the page map entry of the page at this offset? */
bool pvi_tx_covers(const struct pv_store *s, uint64_t off);
/** A thread that has just got its lane is in no transaction. */
void pvi_tx_init(struct pv_store *s, struct pvi_thread *t);
/** The thread ends: abort what it left open. */
void pvi_tx_leave(struct pv_store *s, struct pvi_thread *t);

/* ---- check.c ---- */

/** Is there a live object of this type that begins at this offset and is large enough? */
bool pvi_check_live(const struct pv_store *s, uint64_t off, uint32_t type, uint64_t bytes);

/* ---- thread.c ---- */

/** The calling thread's state, by slot of the store; NULL or one of a closed store: it has none yet. */
extern _Thread_local struct pvi_thread *pvi_tls[PVI_STORES_MAX];
/** The one of the store that the thread used last, or one that is no store's. */
extern _Thread_local struct pvi_thread *pvi_tls_last;

/** Enter the store into the process's table: sets its slot. */
int pvi_thread_store_open(struct pv_store *s);
/** Take it out again, if it is there, and free what its threads have. */
void pvi_thread_store_close(struct pv_store *s);
/** A slab or a segment has gone: threads may not go by what they found out before. heap_lock. */
void pvi_thread_forget(struct pv_store *s);
/** Make a thread's state, a lane and empty magazines, that no thread finds. */
int pvi_thread_make(struct pv_store *s, struct pvi_thread **out);
/** Give back what such a state has. */
void pvi_thread_unmake(struct pv_store *s, struct pvi_thread *t);
/** Make the calling thread's state. */
int pvi_thread_enter(struct pv_store *s, struct pvi_thread **out);
/** The magazine for a type and class, made on first use; NULL: no memory or no such type. */
struct pvi_magazine *pvi_thread_magazine(struct pv_store *s, struct pvi_thread *t, uint32_t type,
					 uint32_t class);

/** Number of the bin of a type and class. */
static inline uint32_t pvi_bin_number(uint32_t type, uint32_t class)
{
	return type << PV_PAGE_CLASS_BITS | class;
}

static inline uint32_t pvi_bin_type(uint32_t bin)
{
	return bin >> PV_PAGE_CLASS_BITS;
}
static inline uint32_t pvi_bin_class(uint32_t bin)
{
	return bin & ((1u << PV_PAGE_CLASS_BITS) - 1);
}

/** How many slots a magazine has ready. Another thread's: as of some time. */
static inline uint32_t pvi_magazine_slots(const struct pvi_magazine *m)
{
	return (uint32_t) (__atomic_load_n(&m->top, __ATOMIC_RELAXED) - m->slots);
}

/** The same without one that is handed out. */
static inline uint32_t pvi_thread_slots(const struct pvi_thread *t, uint32_t bin)
{
	const struct pvi_magazine *m = t->magazines[bin];
	uint32_t n = pvi_magazine_slots(m);

	/* Another thread may have popped it meanwhile. */
	return n && __atomic_load_n(&t->lender, __ATOMIC_RELAXED) == m ? n - 1 : n;
}

/** Take the slot that was handed out from its magazine, which then holds what it says. */
static inline void pvi_thread_settle(struct pvi_thread *t)
{
	if (t->lender == &t->none)
		return;
	__atomic_store_n(&t->lender->top, t->lender->top - 1, __ATOMIC_RELAXED);
	__atomic_store_n(&t->lender, &t->none, __ATOMIC_RELAXED);
}

/** How many it may have. */
static inline uint32_t pvi_magazine_limit(const struct pvi_magazine *m)
{
	return (uint32_t) (m->end - m->slots);
}

/** The shard of depots and bins that a thread uses. The crash sweeps are built so that all use one: there
 *  threads are to meet. */
static inline uint32_t pvi_thread_shard(const struct pvi_thread *t)
{
#ifdef PVI_ONE_SHARD
	return 0;
#else
	return t->lane_number % PVI_SHARDS;
#endif
}

/** The calling thread's state, NULL if it has none yet. */
static inline struct pvi_thread *pvi_thread_find(const struct pv_store *s)
{
	struct pvi_thread *t = pvi_tls_last;

	if (pvi_unlikely(pvi_load(&t->store) != s)) {
		t = pvi_tls[s->slot];
		if (!t || pvi_load(&t->store) != s)
			return NULL;
		pvi_tls_last = t;
	}
	return t;
}
/** The same, made if need be. */
static inline int pvi_thread_get(struct pv_store *s, struct pvi_thread **out)
{
	*out = pvi_thread_find(s);
	return pvi_likely(*out != NULL) ? 0 : pvi_thread_enter(s, out);
}

/* ---- segment.c ---- */

/** What segment_rec.checksum should be. */
uint64_t pvi_segment_checksum(const struct segment_rec *rec);
/** Make and map a segment; nobody knows it yet. */
int pvi_segment_create(struct pv_store *s, uint32_t number, uint64_t off, uint64_t bytes);
/** Undo pvi_segment_create(). */
void pvi_segment_abandon(struct pv_store *s, uint32_t number);
/** Obtain the memory of a lane that is taken for the first time. heap_lock. */
int pvi_segment_commit_lane(struct pv_store *s, uint32_t number);
/** Let lookups find it. */
void pvi_segment_publish(struct pv_store *s, uint32_t number);
/** No lookup finds the last segment any more. */
void pvi_segment_withdraw(struct pv_store *s, uint32_t number);
/** Is the header that was read from a memfd of so many bytes what the index says it must be? */
int pvi_segment_check_header(const struct pv_store *s, uint32_t number, const struct segment_rec *rec,
			     uint64_t bytes);
/** Check a descriptor against the index and map it. The descriptor is the segment's on success. */
int pvi_segment_attach(struct pv_store *s, uint32_t number, int fd);
/** Add a segment that has room for at least this many contiguous pages. heap_lock. */
int pvi_segment_grow(struct pv_store *s, uint32_t npages);
/** The same for just that many pages: the segment is no larger than it must be. heap_lock. */
int pvi_segment_grow_exactly(struct pv_store *s, uint32_t npages);
/** The most for which pvi_segment_grow() would find limit, window and index large enough. heap_lock. */
uint32_t pvi_segment_growth_pages(struct pv_store *s);

/* ---- window.c: where it goes ---- */

/** Set the window of a new store aside: s->index.base, s->base. */
int pvi_window_create(struct pv_store *s);
/** Set the window of s->index aside, at the recorded base or elsewhere: s->base. */
int pvi_window_attach(struct pv_store *s);
/** Is a window at this base the recorded one or one of those that pointers may lead into while the store is
 *  being relocated, or apart from all of them? */
bool pvi_window_apart(const struct pvi_index *idx, uint64_t base);

/* ---- relocate.c ---- */

/** The store is mapped at s->base: let the index (of which the caller puts the next one in force) say that
 *  its pointers are moved there, if they count from somewhere else. */
void pvi_relocate_begin(struct pv_store *s);
/** Move them, if the index in force says so. -EFAULT, -EBADMSG: refused and moved back. */
int pvi_relocate_run(struct pv_store *s);
/** How far from the start of the window is the address that a pointer in the store has? UINT64_MAX: it is in
 *  no window that pointers may lead into. */
uint64_t pvi_relocate_off(const struct pv_store *s, uint64_t address);

/* ---- attach.c ---- */

struct pvi_fd;

/** Attach the store of these descriptors; the ones that it takes have fd -1 afterwards. *again: what is
 *  kept has changed, fetch once more, nothing was done. */
int pvi_attach(struct pv_store *s, const char *name, struct pvi_fd *fds, unsigned int n, bool *again);
/** The descriptor of a token, or NULL. */
struct pvi_fd *pvi_attach_fd(struct pvi_fd *fds, unsigned int n, uint64_t token);
uint64_t pvi_attach_now_ns(void);

/* ---- seal_segment.c ---- */

/** Say in s->index that the segment is sealed, as it is now. Nothing in it is in anybody's hands. */
void pvi_seal_record(struct pv_store *s, uint32_t number);
/** Digest of all bytes of a segment's memfd. */
int pvi_seal_digest(int fd, uint32_t number, uint64_t bytes, uint8_t out[16]);
/** Are the contents of the descriptor those that were sealed? -EBADMSG, -ENOMEM. */
int pvi_seal_verify(const struct pv_store *s, uint32_t number, int fd);
/** The same for a descriptor that the kernel has not sealed: then it need not be so. */
int pvi_seal_attach(struct pv_store *s, uint32_t number, int fd);
/** Has the kernel sealed it, or does it now? */
bool pvi_seal_by_kernel(int fd);
/** No page of a loaded segment is free for anybody. heap_lock. */
void pvi_seal_take(struct pv_store *s, struct pvi_segment *seg);
/** The index says that the segment is sealed: let nobody write to it. heap_lock, unless it is an attach.
 *  Returns whether the kernel has sealed it. */
bool pvi_seal_freeze(struct pv_store *s, uint32_t number);
/** -EPERM with a message if an address lies in a sealed segment. */
int pvi_seal_refuse(const struct pv_store *s, const void *p);
/** Put the references in sealed segments right, in this process, if they were sealed at another base than
 *  s->index.base. */
int pvi_seal_relocate(struct pv_store *s);

/* ---- store.c ---- */

/** What follows from s->index: sizes, and empty tables. */
int pvi_store_geometry(struct pv_store *s);

/** The segment that an offset lies in, or NULL. Its last granule may be longer than the segment. */
static inline struct pvi_segment *pvi_store_segment(const struct pv_store *s, uint64_t off)
{
	if (off >= s->window_bytes)
		return NULL;
	return atomic_load_explicit(&s->segment_of[off >> s->granule_shift], memory_order_acquire);
}

/** Is [off, off + bytes) within pages of objects of one segment? */
static inline bool pvi_store_range_ok(const struct pv_store *s, uint64_t off, uint64_t bytes)
{
	const struct pvi_segment *seg = pvi_store_segment(s, off);

	if (!seg || seg->sealed)
		return false;
	off -= seg->off;
	return off >= (uint64_t) seg->first_page << s->page_shift &&
	       off < (uint64_t) seg->npages << s->page_shift &&
	       bytes <= ((uint64_t) seg->npages << s->page_shift) - off;
}

/** The descriptor of the page that an offset lies in. */
static inline struct pvi_page *pvi_store_page(const struct pv_store *s, uint64_t off)
{
	return &s->pages[off >> s->page_shift];
}

/** The slot byte of a slot of a warm slab. */
static inline uint8_t *pvi_page_byte(const struct pv_store *s, const void *slot)
{
	const struct pvi_page *page = pvi_store_page(s, (uintptr_t) slot - s->base);

	return page->bytes + pvi_page_slot(pvi_page_units((uint64_t) ((const uint8_t *) slot - page->slab)),
					   page->reciprocal, NULL);
}

/** Is it a name that may stand in an index, a socket's path and a session's name? */
bool pvi_name_valid(const char *name);

#endif
