/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What heap.c (reserve, cancel) and publish.c share: from an address to its object, and slots that go to
 * a magazine. Inline where it is on a fast path; the rest is in heap.c.
 */
#ifndef PVI_HEAP_H
#define PVI_HEAP_H

#include "internal.h"

/** Everything that pvi_heap_slot() does not answer: another look, under the lock. */
int pvi_heap_find_slow(struct pv_store *s, const void *p, struct pvi_object *o);
/** Put a freed slot away when the magazine is full, or there is none yet. Returns 0. */
int pvi_heap_keep_slow(struct pv_store *s, struct pvi_thread *t, uint32_t bin, void *slot,
		       uint8_t *byte);
/** An extent is free again; has been published; is retired. */
void pvi_heap_extent_ended(struct pv_store *s, const struct pvi_object *o, const void *p);
void pvi_heap_extent_published(struct pv_store *s, const struct pvi_object *o, const void *p);
void pvi_heap_extent_retired(struct pv_store *s, const struct pvi_object *o, const void *p);

/** The descriptor of the page at an offset. Of one outside of the window, that of another page, from which it is
 *  farther away than any slot. */
static inline const struct pvi_page *pvi_heap_page(const struct pv_store *s, uint64_t off)
{
	uint64_t at = off >> s->page_desc_shift & s->page_desc_mask;

	return (const struct pvi_page *) (const void *) ((const uint8_t *) s->pages + at);
}

/** The slot byte of an object in the page of this descriptor; false for anything else, and if there is no warm
 *  slab. */
static inline bool pvi_heap_slot_in(const struct pvi_page *page, const void *p, uint8_t **byte)
{
	uint64_t units = pvi_page_units((uint64_t) pvi_distance_acquire((const uint8_t *) p, &page->slab));
	uint64_t slot;
	bool start;

	/* Atomic, as another thread may be describing the page: then `slab` was NULL, and this is
	 * beyond any grid whatever is read here. A page that is not described has no grid. */
	if (pvi_unlikely(units >= pvi_load(&page->grid_units)))
		return false;
	slot = pvi_page_slot(units, __atomic_load_n(&page->reciprocal, __ATOMIC_RELAXED), &start);
	if (pvi_unlikely(!start))
		return false;
	*byte = page->bytes + slot;
	return true;
}

/** The page and the slot byte of an object in a warm slab; false for anything else. */
static inline bool pvi_heap_slot(const struct pv_store *s, const void *p, const struct pvi_page **page,
				 uint8_t **byte)
{
	*page = pvi_heap_page(s, (uintptr_t) p - s->base);
	return pvi_heap_slot_in(*page, p, byte);
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
	for (const struct pvi_held *h = m->slots + 1; h <= m->top; h++)
		pvi_debug_check(h->byte != held->byte);
#endif
}

static inline void pvi_heap_push(struct pvi_magazine *m, struct pvi_held held)
{
	struct pvi_held *top = m->top + 1;

	pvi_heap_check_kept(m, &held);
	*top = held;
	__atomic_store_n(&m->top, top, __ATOMIC_RELAXED);
}

/** A slot that is HELD goes to the magazine of a thread that has settled, or was not lent one from there. Returns 0,
 *  so that a caller that has nothing else to do can end with it. */
static inline int pvi_heap_keep_settled(struct pv_store *s, struct pvi_thread *t, size_t bin,
					struct pvi_held held)
{
	struct pvi_magazine *m;

	if (pvi_unlikely(bin >= t->nbins || t->magazines[bin]->top >= t->magazines[bin]->end))
		return pvi_heap_keep_slow(s, t, (uint32_t) bin, held.object, held.byte);
	m = t->magazines[bin];
	pvi_heap_push(m, held);
	return 0;
}

/** The same for any thread. */
static inline int pvi_heap_keep(struct pv_store *s, struct pvi_thread *t, size_t bin,
				struct pvi_held held)
{
	if (bin == t->lender->bin)
		pvi_thread_settle(t);
	return pvi_heap_keep_settled(s, t, bin, held);
}

#endif
