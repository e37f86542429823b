/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Objects: reserve, publish, free. The fast paths take no lock and touch only the calling thread's
 * magazine and lane, the page map entry and the slot bytes.
 *
 *	reserve		takes the magazine's top slot, slot byte HELD -> RESERVED; it is popped
 *			when it is known that nothing is written over it (pvi_thread.lender)
 *	publish LIVE	slot byte RESERVED -> LIVE, through the lane
 *	publish FREE	slot byte LIVE -> HELD, and the slot goes on top of the freeing thread's
 *			magazine, where the next reserve finds it still in cache
 *	publish RETIRE	slot byte LIVE -> RETIRED; the rest is done after a grace period (retire.c)
 *	cancel		the same with RESERVED -> HELD
 *
 * Objects larger than the largest class are extents: free in the page map until published, held
 * meanwhile by the bitmap of their segment.
 */
#include <errno.h>
#include <string.h>

#include "heap.h"

static __attribute__((noinline, cold)) int no_object(const void *p)
{
	return pvi_fail(-EINVAL, "%p is not the start of an object of this store", p);
}

static __attribute__((noinline, cold)) int damaged(const struct pvi_segment *seg, uint32_t page)
{
	return pvi_fail(-EBADMSG, "segment %u: page %u is damaged (see pv_check)", seg->number, page);
}

static int find_extent(struct pv_store *s, const void *p, struct pvi_segment *seg, uint64_t rec,
		       struct pvi_object *o)
{
	uint64_t seg_off = (uint64_t) ((uintptr_t) p - s->base) - seg->off;
	uint32_t page = (uint32_t) (seg_off >> s->page_shift);
	int err;

	*o = (struct pvi_object){.rec = rec, .seg = seg, .state = PV_SLOT_LIVE};
	if (seg_off & ((1u << s->page_shift) - 1))
		return no_object(p);
	if (s->readonly || seg->sealed)
		return pvi_page_kind(rec) == PV_PAGE_EXTENT && pvi_page_run_sound(s, seg, page, rec)
			       ? 0
			       : no_object(p);
	/* Loaded, so that the pages stay taken until pvi_heap_extent_ended(), whatever the map says. */
	err = pvi_page_load(s, seg);
	if (!err && pvi_page_kind(rec) == PV_PAGE_EXTENT) {
		/* HELD: the thread that publishes it has not come to pvi_heap_extent_published() yet. */
		if (seg->slabs[page].state != PVI_EXTENT_LIVE &&
		    seg->slabs[page].state != PVI_EXTENT_HELD)
			err = damaged(seg, page);
	} else if (!err) {
		if (pvi_page_kind(rec) == PV_PAGE_FREE &&
		    seg->slabs[page].state == PVI_EXTENT_HELD) {
			o->state = PV_SLOT_RESERVED;
			o->rec = pvi_rec_extent(seg->slabs[page].cursor, seg->slabs[page].nfree,
						seg->slabs[page].shard);
		} else if (seg->slabs[page].state == PVI_EXTENT_RETIRED) {
			o->state = PV_SLOT_RETIRED;
		} else {
			err = no_object(p);
		}
	}
	return err;
}

/* Look at the slab that `page` belongs to for the first time. */
static int warm(struct pv_store *s, struct pvi_segment *seg, uint32_t page)
{
	uint64_t rec = pvi_rec_load(seg->map, page);

	if (pvi_rec_back(rec) > page)
		return damaged(seg, page);
	return pvi_slab_warm(s, seg, page - pvi_rec_back(rec));
}

static bool slot_of(const struct pv_store *s, const void *p, struct pvi_object *o)
{
	const struct pvi_page *page;

	o->byte = NULL;
	if (!pvi_heap_slot(s, p, &page, &o->byte))
		return false;
	o->bin = page->bin;
	return true;
}

static int find_locked(struct pv_store *s, const void *p, struct pvi_object *o)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base), rec;
	struct pvi_segment *seg = pvi_store_segment(s, off);
	uint32_t page;
	int err;

	if (!seg || off - seg->data_off >= seg->data_bytes)
		return no_object(p);
	page = (uint32_t) ((off - seg->off) >> s->page_shift);
	rec = pvi_rec_load(seg->map, page);
	if (pvi_page_kind(rec) != PV_PAGE_SLAB)
		return find_extent(s, p, seg, rec, o);
	if (s->readonly || seg->sealed) {
		o->byte = pvi_slab_slot(s, seg, off - seg->off, &rec);
		o->bin = pvi_bin_number(pvi_rec_type(rec), pvi_rec_class(rec));
		return o->byte ? 0 : no_object(p);
	}
	/* Described by now, whoever did it: another look, as slot_of() may have come too early. */
	if (!__atomic_load_n(&pvi_store_page(s, off)->slab, __ATOMIC_ACQUIRE)) {
		err = warm(s, seg, page);
		if (err)
			return err;
	}
	return slot_of(s, p, o) ? 0 : no_object(p);
}

/* Any address may be asked for, and a segment that has no objects may be leaving (trim.c): hence the lock
 * from the first look at it. */
int pvi_heap_find_slow(struct pv_store *s, const void *p, struct pvi_object *o)
{
	int err;

	pthread_mutex_lock(&s->heap_lock);
	err = find_locked(s, p, o);
	pthread_mutex_unlock(&s->heap_lock);
	return err;
}

/* ---- reserve ---- */

int pvi_heap_extent(struct pv_store *s, pv_type_t type, size_t bytes, uint32_t align_pages,
		    void **out)
{
	struct pvi_segment *seg;
	bool flexible = false;
	uint32_t page, n;
	int err;

	if (bytes > s->window_bytes || bytes >> s->page_shift >= PVI_PAGES_MAX)
		return pvi_fail(-ENOSPC, "%zu bytes do not fit into the store's window", bytes);
	n = (uint32_t) ((bytes + (1u << s->page_shift) - 1) >> s->page_shift);
	pthread_mutex_lock(&s->heap_lock);
	err = pvi_page_alloc(s, n, align_pages, 0, &seg, &page);
	if (!err) {
		seg->slabs[page] = (struct pvi_slab){.nfree = n,
						     .cursor = type,
						     .segment = (uint16_t) seg->number,
						     .shard = (uint8_t) __builtin_ctz(align_pages),
						     .state = PVI_EXTENT_HELD};
		*out = seg->addr + ((uint64_t) page << s->page_shift);
		flexible = s->index.types[type].flexible;
	}
	pthread_mutex_unlock(&s->heap_lock);
	if (flexible)
		pvi_heap_clear(*out, bytes, (size_t) n << s->page_shift);
	return err;
}

/* The last slot of a magazine, if that has any. It stays there until it is known what comes in its place. */
static inline bool take(struct pvi_thread *t, struct pvi_magazine *m, void **out)
{
	const struct pvi_held *held = m->top;
	/* Atomic, so that the compiler does not make one load of 16 bytes of the slot's two words: those
	 * of one that was freed just now are in the store buffer, as two stores, and a load that wants bytes
	 * of both waits until they have left it. (replace-64: 40 -> 60 million a second.) */
	void *object = __atomic_load_n(&held->object, __ATOMIC_RELAXED);
	uint8_t *byte;

	if (pvi_unlikely(!object))
		return false;
	byte = __atomic_load_n(&held->byte, __ATOMIC_RELAXED);
	pvi_debug_check(__atomic_load_n(byte, __ATOMIC_RELAXED) == PV_SLOT_HELD);
	__atomic_store_n(byte, PV_SLOT_RESERVED, __ATOMIC_RELAXED);
	__atomic_store_n(&t->lender, m, __ATOMIC_RELAXED);
	*out = object;
	return true;
}

/* The same for an object of so many bytes of any type. */
static bool take_any(const struct pv_store *s, struct pvi_thread *t, struct pvi_magazine *m, size_t bytes,
		     void **out)
{
	if (!take(t, m, out))
		return false;
	if (m->flexible)
		pvi_heap_clear(*out, bytes, s->classes[pvi_bin_class(m->bin)].slot_bytes);
	return true;
}

/* Can there be such an object? */
static int check_request(struct pv_store *s, pv_type_t type, size_t bytes)
{
	int err = 0;

	if (!bytes)
		return pvi_fail(-EINVAL, "an object of 0 bytes");
	pthread_mutex_lock(&s->heap_lock);
	if (type == 0 || type > s->index.ntypes || s->index.types[type].state == PVI_TYPE_FORMER)
		err = pvi_fail(-EINVAL, "type %u is not registered", type);
	else if (s->index.types[type].bytes && bytes < s->index.types[type].bytes)
		err = pvi_fail(-EINVAL, "%zu bytes are too few for type %s of %u", bytes,
			       s->index.types[type].name, s->index.types[type].bytes);
	pthread_mutex_unlock(&s->heap_lock);
	return err;
}

int pvi_heap_reserve_extent(struct pv_store *s, pv_type_t type, size_t bytes, uint32_t align_pages,
			    void **out)
{
	struct pvi_thread *t;
	int err = pvi_thread_get(s, &t);

	if (!err)
		err = check_request(s, type, bytes);
	return err ? err : pvi_heap_extent(s, type, bytes, align_pages, out);
}

static __attribute__((noinline)) int reserve_slow(struct pv_store *s, pv_type_t type, size_t bytes,
						   void **out)
{
	struct pvi_magazine *m;
	struct pvi_thread *t;
	uint32_t class;
	int err = pvi_thread_get(s, &t);

	if (err)
		return err;
	pvi_thread_settle(t);
	err = check_request(s, type, bytes);
	if (err)
		return err;
	class = pvi_class_of(bytes);
	if (bytes > s->classes[s->nclasses - 1].slot_bytes)
		return pvi_heap_extent(s, type, bytes, 1, out);
	m = pvi_thread_magazine(s, t, type, class);
	if (!m)
		return pvi_fail(-ENOMEM, "no memory for a magazine");
	if (m->top == m->slots && !pvi_depot_take(s, m)) {
		pthread_mutex_lock(&s->heap_lock);
		err = pvi_slab_refill(s, t, type, class, m);
		if (!err)
			pvi_depot_refilled(m);
		pthread_mutex_unlock(&s->heap_lock);
		if (err)
			return err;
	}
	take_any(s, t, m, bytes, out);
	return 0;
}

/* When it is not only to take from a magazine that has something. */
static __attribute__((noinline)) int reserve_other(struct pv_store *s, pv_type_t type, size_t bytes, void **out)
{
	struct pvi_thread *t = pvi_thread_find(s);
	struct pvi_magazine *m;

	if (!t || type >= t->nrows || bytes > 16 * (PVI_CLASS_TABLE - 1))
		return reserve_slow(s, type, bytes, out);
	pvi_thread_settle(t);
	m = t->magazines[pvi_bin_number(type, s->class_of[(bytes + 15) / 16])];
	if (bytes < m->min_bytes || !take_any(s, t, m, bytes, out))
		return reserve_slow(s, type, bytes, out);
	return 0;
}

int pv_reserve(struct pv_store *s, pv_type_t type, size_t bytes, void **out)
{
	struct pvi_thread *t = pvi_tls_last;
	struct pvi_magazine *m;

	if (pvi_unlikely(pvi_load(&t->store) != s || t->lender != &t->none))
		return reserve_other(s, type, bytes, out);
	/* Mostly it is the same again: two loads less, each of which waits for the one before, and seven instructions.
	 * (replace-64 with two threads: 125 -> 140 million a second.) */
	if (pvi_likely(bytes == t->last_bytes && type == t->last_type))
		return pvi_likely(take(t, t->last, out)) ? 0 : reserve_other(s, type, bytes, out);
	if (pvi_unlikely(type >= t->nrows || bytes > 8 * (PVI_ROW_TABLE - 1)))
		return reserve_other(s, type, bytes, out);
	m = t->rows[type]->magazines[(bytes + 7) / 8];
	if (pvi_unlikely(!take(t, m, out)))
		return reserve_other(s, type, bytes, out);
	t->last_bytes = bytes;
	t->last_type = type;
	t->last = m;
	return 0;
}

/* ---- freed slots ---- */

int pvi_heap_keep_slow(struct pv_store *s, struct pvi_thread *t, uint32_t bin, void *slot,
		       uint8_t *byte)
{
	struct pvi_held held = {slot, byte};
	struct pvi_magazine *m = pvi_thread_magazine(s, t, pvi_bin_type(bin), pvi_bin_class(bin));

	if (m && (m->top < m->end || pvi_depot_give(m, (pvi_magazine_limit(m) + 1) / 2))) {
		pvi_heap_push(m, held);
		return 0;
	}
	/* No memory for a magazine, or for a batch: straight to the slab. */
	pthread_mutex_lock(&s->heap_lock);
	pvi_slab_return(s, t, &held.object, 1);
	pthread_mutex_unlock(&s->heap_lock);
	return 0;
}

static uint32_t extent_page(const struct pv_store *s, const struct pvi_object *o, const void *p)
{
	return (uint32_t) ((size_t) ((const uint8_t *) p - o->seg->addr) >> s->page_shift);
}

void pvi_heap_extent_ended(struct pv_store *s, const struct pvi_object *o, const void *p)
{
	uint32_t page = extent_page(s, o, p);

	pthread_mutex_lock(&s->heap_lock);
	o->seg->slabs[page].state = PVI_SLAB_NONE;
	pvi_page_free(s, o->seg, page, pvi_rec_extent_pages(o->rec));
	pthread_mutex_unlock(&s->heap_lock);
}

void pvi_heap_extent_published(struct pv_store *s, const struct pvi_object *o, const void *p)
{
	uint32_t page = extent_page(s, o, p);

	pthread_mutex_lock(&s->heap_lock);
	/* Another thread may have freed it already, and a third reserved the page again. */
	if (o->seg->slabs[page].state == PVI_EXTENT_HELD &&
	    pvi_page_kind(pvi_rec_load(o->seg->map, page)) == PV_PAGE_EXTENT)
		o->seg->slabs[page].state = PVI_EXTENT_LIVE;
	pthread_mutex_unlock(&s->heap_lock);
}

void pvi_heap_extent_retired(struct pv_store *s, const struct pvi_object *o, const void *p)
{
	struct pvi_slab *d = &o->seg->slabs[extent_page(s, o, p)];

	pthread_mutex_lock(&s->heap_lock);
	d->nfree = pvi_rec_extent_pages(o->rec);
	d->state = PVI_EXTENT_RETIRED;
	pthread_mutex_unlock(&s->heap_lock);
}

int pv_cancel(struct pv_store *s, void *p)
{
	struct pvi_thread *t;
	struct pvi_object o;
	int err = pvi_thread_get(s, &t);

	if (!err)
		err = pvi_heap_find(s, p, &o);
	if (err)
		return pvi_misuse(err);
	if (pvi_heap_state(&o) != PV_SLOT_RESERVED)
		return pvi_misuse(pvi_fail(-EINVAL, "%p is not reserved", p));
	if (o.byte) {
		__atomic_store_n(o.byte, PV_SLOT_HELD, __ATOMIC_RELAXED);
		pvi_heap_keep(s, t, o.bin, (struct pvi_held){p, o.byte});
	} else {
		pvi_heap_extent_ended(s, &o, p);
	}
	return 0;
}

int pvi_heap_hold(struct pv_store *s, size_t bytes, void **out)
{
	return pvi_heap_extent(s, 1, bytes, 1, out);
}

void pv_prefetch(const struct pv_store *s, const void *p)
{
	const struct pvi_page *page;
	uint8_t *byte;

	if (pvi_heap_slot(s, p, &page, &byte))
		__builtin_prefetch(byte, 1);
}

const struct pv_mapped *pv_mapped_get(const struct pv_store *s)
{
	return &s->mapped;
}

size_t pv_usable_bytes(struct pv_store *s, const void *p)
{
	struct pvi_object o;
	size_t bytes = 0;
	uint8_t state;

	/* Whether it is an object or not: no slab and no segment goes between the two looks. */
	pthread_mutex_lock(&s->heap_lock);
	if (slot_of(s, p, &o) || find_locked(s, p, &o) == 0) {
		state = pvi_heap_state(&o);
		if (state == PV_SLOT_LIVE || state == PV_SLOT_RESERVED)
			bytes = o.byte ? s->classes[pvi_bin_class(o.bin)].slot_bytes
				       : (size_t) pvi_rec_extent_pages(o.rec) << s->page_shift;
	}
	pthread_mutex_unlock(&s->heap_lock);
	return bytes;
}
