/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What heap.c (reserve, cancel) and publish.c share: from an address to its object, and slots that go to
 * a magazine. Inline where it is on a fast path; the rest is in heap.c.
 */
#ifndef PVI_HEAP_H
#define PVI_HEAP_H

#include "internal.h"
#include "load.h"

/** Everything that pvi_heap_slot() does not answer: another look, under the lock. */
int pvi_heap_find_slow(struct pv_store *s, const void *p, struct pvi_object *o);
/** Put a freed slot away when the magazine is full, or there is none yet. Returns 0. */
int pvi_heap_keep_slow(struct pv_store *s, struct pvi_thread *t, uint32_t bin, void *slot,
		       uint8_t *byte);
/** An extent is free again; has been published; is retired. */
void pvi_heap_extent_ended(struct pv_store *s, const struct pvi_object *o, const void *p);
void pvi_heap_extent_published(struct pv_store *s, const struct pvi_object *o, const void *p);
void pvi_heap_extent_retired(struct pv_store *s, const struct pvi_object *o, const void *p);

/** The page and the slot byte of an object in a warm slab; false for anything else. */
static inline bool pvi_heap_slot(const struct pv_store *s, const void *p, const struct pvi_page **out,
				 uint8_t **byte)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base), units;
	const struct pvi_page *page;
	uint64_t i;
	bool start;

	if (pvi_unlikely(off >= s->window_bytes))
		return false;
	page = pvi_store_page(s, off);
	units = pvi_page_units((uint64_t) pvi_distance_acquire((const uint8_t *) p, &page->slab));
	/* Atomic, as another thread may be describing the page: then `slab` was NULL, and this is
	 * beyond any grid whatever is read here. A page that is not described has no grid. */
	if (pvi_unlikely(units >= pvi_load(&page->grid_units)))
		return false;
	i = pvi_page_slot(units, __atomic_load_n(&page->reciprocal, __ATOMIC_RELAXED), &start);
	if (pvi_unlikely(!start))
		return false;
	*out = page;
	*byte = page->bytes + i;
	return true;
}

/** The object that begins at an address; -EINVAL: none does. */
static inline int pvi_heap_find(struct pv_store *s, const void *p, struct pvi_object *o)
{
	const struct pvi_page *page;

	if (pvi_unlikely(!pvi_heap_slot(s, p, &page, &o->byte))) {
		o->byte = NULL;
		return pvi_heap_find_slow(s, p, o);
	}
	o->bin = page->bin;
	return 0;
}

/** Its slot byte, or what an extent's would be. */
static inline uint8_t pvi_heap_state(const struct pvi_object *o)
{
	if (pvi_unlikely(!o->byte))
		return o->state;
	return __atomic_load_n(o->byte, __ATOMIC_RELAXED);
}

/** What a magazine takes is held by this process and by no other magazine; not twice by this one. */
static inline void pvi_heap_check_kept(const struct pvi_magazine *m, const struct pvi_held *held)
{
	pvi_debug_check(__atomic_load_n(held->byte, __ATOMIC_RELAXED) == PV_SLOT_HELD);
#ifdef PVI_DEBUG_CHECKS
	for (const struct pvi_held *h = m->slots; h < m->top; h++)
		pvi_debug_check(h->byte != held->byte);
#endif
}

static inline void pvi_heap_push(struct pvi_magazine *m, struct pvi_held held)
{
	struct pvi_held *top = m->top;

	pvi_heap_check_kept(m, &held);
	*top = held;
	__atomic_store_n(&m->top, top + 1, __ATOMIC_RELAXED);
}

/** A slot that is HELD goes to the thread's magazine. Returns 0, so that a caller that has nothing else to
 *  do can end with it. */
static inline int pvi_heap_keep(struct pv_store *s, struct pvi_thread *t, size_t bin,
				struct pvi_held held)
{
	struct pvi_magazine *m;

	if (pvi_unlikely(bin >= t->nbins))
		return pvi_heap_keep_slow(s, t, (uint32_t) bin, held.object, held.byte);
	m = t->magazines[bin];
	if (pvi_unlikely(m->top >= m->end))
		return pvi_heap_keep_slow(s, t, (uint32_t) bin, held.object, held.byte);
	pvi_heap_push(m, held);
	return 0;
}

#endif
