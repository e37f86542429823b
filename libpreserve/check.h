/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A full check under way; what its files share.
 *
 *	check.c		the order of things; index, segment headers, lanes, roots; threads
 *	check_pages.c	page maps, slabs and slot bytes; a table of what lies where
 *	check_reach.c	pointers, what the roots reach, and what they do not
 *
 * The table has an entry a page and a bit a slot, in process memory, and is filled from what has
 *been found sound. Everything after that goes by the table: so what follows pointers never reads a
 *page map or a slab header a second time, and whatever the store holds or another process writes
 *meanwhile, it stays within objects.
 */
#ifndef PVI_CHECK_H
#define PVI_CHECK_H

#include "internal.h"

#define PVI_CHECK_THREADS_MAX 64u

/** A page of a sound slab or extent; rec 0: of none. */
struct pvi_check_page {
	uint64_t rec;  /* page map entry of the head */
	uint64_t bits; /* number of the bit of the first slot, or of the extent; of slabs a multiple
			  of 64 */
	uint32_t back; /* pages back to the head */
};

/** An object, found by an offset of the window that lies in it. */
struct pvi_check_object {
	uint64_t off;
	uint64_t bytes; /* usable */
	uint64_t bit;
	uint32_t type;
};

struct pvi_check_pool;

struct pvi_check_type {
	uint32_t *targets; /* of each field the number of the type that it names; 0: any */
	uint64_t leaked_objects;
	uint64_t leaked_bytes;
};

struct pvi_check {
	struct pv_store *s;
	struct pv_check_options o;
	struct pv_check_report r;
	bool quiet_on_index; /* the caller sees to it */
	unsigned int nthreads;
	_Atomic bool no_memory;
	/* The report, `tell` and `progress`. */
	pthread_mutex_t lock;

	uint32_t nsegments; /* as of the beginning, like the number of types */
	uint32_t ntypes;
	struct pvi_check_page *pages[PVI_SEGMENTS_MAX];
	uint64_t chunks[PVI_SEGMENTS_MAX + 1]; /* of all segments before this one */
	_Atomic uint64_t next_chunk;
	uint64_t nbits;
	uint64_t *live;		      /* by bit: there is a live object */
	uint64_t *reached;	      /* and the roots lead to it */
	struct pvi_check_type *types; /* by number */
	struct pvi_check_pool *pool;
};

/* ---- check.c ---- */

/** Copy the options of a public call: `size` bytes of `from`, of which `known` are known here. */
int pvi_check_options(void *to, size_t known, const void *from, size_t size, size_t least,
		      const char *what);
/** Everything but the report's copy; c->o is set. Then pvi_check_end(), whatever it returns. */
int pvi_check_run(struct pvi_check *c, struct pv_store *s);
void pvi_check_end(struct pvi_check *c);
__attribute__((format(printf, 2, 3))) void pvi_check_problem(struct pvi_check *c,
							     const char *format, ...);
void pvi_check_progress(struct pvi_check *c, const char *what, uint64_t done, uint64_t total);
/** Call f in all threads, each with its number; returns when all have. */
void pvi_check_parallel(struct pvi_check *c, void (*f)(struct pvi_check *c, unsigned int number));
/** The next pages [*from, *to) of *seg, for whoever asks; false: there are none left. */
bool pvi_check_chunk(struct pvi_check *c, const char *what, const struct pvi_segment **seg,
		     uint32_t *from, uint32_t *to);
/** In a store that a process has open: is the entry still the one that looked wrong? */
bool pvi_check_settled(const struct pvi_check *c, const struct pvi_segment *seg, uint32_t page,
		       uint64_t rec);

/* ---- check_pages.c ---- */

/** The page map of a segment, into the table. */
int pvi_check_map(struct pvi_check *c, const struct pvi_segment *seg);
/** Slabs and slot bytes of all segments, into c->live. */
int pvi_check_slots(struct pvi_check *c);

static inline bool pvi_check_bit(const uint64_t *bits, uint64_t bit)
{
	return __atomic_load_n(&bits[bit / 64], __ATOMIC_RELAXED) >> (bit % 64) & 1;
}

/** The object, live or not, that an offset of the window lies in; false: there is none. */
static inline bool pvi_check_find(const struct pvi_check *c, uint64_t off,
				  struct pvi_check_object *o)
{
	const struct pv_store *s = c->s;
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	const struct pvi_check_page *p;
	uint64_t in, slot = 0;
	uint32_t page;

	if (!seg || off - seg->data_off >= seg->data_bytes || seg->number >= c->nsegments)
		return false;
	page = (uint32_t)((off - seg->off) >> s->page_shift);
	p = &c->pages[seg->number][page];
	o->off = seg->off + ((uint64_t)(page - p->back) << s->page_shift);
	if (pvi_page_kind(p->rec) == PV_PAGE_SLAB) {
		const struct pvi_class *class = &s->classes[pvi_rec_class(p->rec)];

		in = off - o->off;
		slot = pvi_page_slot(in / 8, class->reciprocal, NULL);
		if (slot >= class->nslots)
			return false;
		o->off += slot * class->slot_bytes;
		o->bytes = class->slot_bytes;
		o->type = pvi_rec_type(p->rec);
	} else if (pvi_page_kind(p->rec) == PV_PAGE_EXTENT) {
		o->bytes = (uint64_t)pvi_rec_extent_pages(p->rec) << s->page_shift;
		o->type = pvi_rec_extent_type(p->rec);
	} else {
		return false;
	}
	o->bit = p->bits + slot;
	return true;
}

/* ---- check_reach.c ---- */

/** Follow all pointers from the roots, then look at those that nothing leads to. */
int pvi_check_reach(struct pvi_check *c);
/** After that: the next object from slot number *slot of this page on that is live and was not
 * reached; *slot is then behind it. False: there is none, or the page is not the head of anything.
 */
bool pvi_check_next_leak(const struct pvi_check *c, const struct pvi_segment *seg, uint32_t page,
			 uint32_t *slot, uint64_t *off);

#endif
