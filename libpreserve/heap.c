/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Objects: reserve, publish, free. The fast paths take no lock and touch only the calling thread's
 * magazine and lane, the page map entry and the slot bytes.
 *
 *	reserve		pops a slot, RESERVED in the arena, from the magazine
 *	publish LIVE	slot byte RESERVED -> LIVE, through the lane
 *	publish FREE	slot byte LIVE -> RESERVED, and the slot goes on top of the freeing thread's
 *			magazine, where the next reserve finds it still in cache
 *
 * Objects larger than the largest class are extents: free in the page map until published, held
 * meanwhile by the bitmap of their segment.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

/** An object as its address says it: a slot, or an extent. */
struct object {
	struct pvi_segment *seg;
	uint64_t rec;	    /* page map entry; of an extent that is held: as it will be */
	uint64_t state_off; /* offset of the slot byte, or of the extent's first page */
	uint8_t *byte;	    /* NULL: an extent */
	bool held;	    /* an extent that is not live */
};

static int no_object(const void *p)
{
	return pvi_fail(-EINVAL, "%p is not the start of an object of this store", p);
}

static int warm(struct pv_store *s, struct pvi_segment *seg, uint32_t page)
{
	uint64_t rec = pvi_rec_load(seg->map, page);
	int err;

	if (s->readonly)
		return 0;
	if (pvi_rec_back(rec) > page)
		return pvi_fail(-EBADMSG, "segment %u: page %u is damaged", seg->number, page);
	pthread_mutex_lock(&s->heap_lock);
	err = pvi_slab_warm(s, seg, page - pvi_rec_back(rec));
	pthread_mutex_unlock(&s->heap_lock);
	return err;
}

static int find_extent(struct pv_store *s, const void *p, uint64_t off, struct object *o)
{
	struct pvi_segment *seg = o->seg;
	uint32_t page = (uint32_t) ((off - seg->off) >> s->page_shift);

	if ((off - seg->off) & ((1u << s->page_shift) - 1))
		return no_object(p);
	o->byte = NULL;
	o->state_off = off;
	o->held = false;
	if (pvi_page_kind(o->rec) == PV_PAGE_EXTENT)
		return pvi_page_head_sound(s, seg, page, o->rec) ? 0 : no_object(p);
	if (pvi_page_kind(o->rec) != PV_PAGE_FREE || s->readonly)
		return no_object(p);
	pthread_mutex_lock(&s->heap_lock);
	if (seg->loaded && seg->slabs[page].state == PVI_EXTENT_HELD) {
		o->held = true;
		o->rec = pvi_rec_extent(seg->slabs[page].cursor, seg->slabs[page].nfree);
	}
	pthread_mutex_unlock(&s->heap_lock);
	return o->held ? 0 : no_object(p);
}

static inline int find_object(struct pv_store *s, const void *p, struct object *o)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base);
	struct pvi_segment *seg = pvi_store_segment(s, off);
	const struct pvi_class *c;
	uint64_t in, i, head_off;
	uint32_t page;
	int err;

	if (pvi_unlikely(!seg))
		return no_object(p);
	page = (uint32_t) ((off - seg->off) >> s->page_shift);
	if (pvi_unlikely(page >= seg->npages))
		return no_object(p);
	o->seg = seg;
	o->rec = pvi_rec_load(seg->map, page);
	if (pvi_unlikely(pvi_page_kind(o->rec) != PV_PAGE_SLAB))
		return find_extent(s, p, off, o);
	if (pvi_unlikely((o->rec & PVI_EPOCH_MASK) != s->epoch_bits)) {
		err = warm(s, seg, page);
		if (err)
			return err;
		o->rec = pvi_rec_load(seg->map, page);
	}
	c = &s->classes[pvi_rec_class(o->rec)];
	head_off = (uint64_t) (page - pvi_rec_back(o->rec)) << s->page_shift;
	in = off - seg->off - head_off;
	i = in * c->reciprocal >> 32;
	if (pvi_unlikely(i * c->slot_bytes != in || i >= c->nslots))
		return no_object(p);
	head_off += pvi_rec_meta(o->rec) + sizeof(struct slab_rec) + i;
	o->state_off = seg->off + head_off;
	o->byte = seg->addr + head_off;
	o->held = false;
	return 0;
}


static uint8_t state_of(const struct object *o)
{
	if (!o->byte)
		return o->held ? PV_SLOT_RESERVED : PV_SLOT_LIVE;
	return __atomic_load_n(o->byte, __ATOMIC_RELAXED);
}

/* ---- reserve ---- */

static int reserve_extent(struct pv_store *s, pv_type_t type, size_t bytes, void **out)
{
	struct pvi_segment *seg;
	uint32_t page, n;
	int err;

	if (bytes > s->window_bytes)
		return pvi_fail(-ENOSPC, "%zu bytes do not fit into the store's window", bytes);
	n = (uint32_t) ((bytes + (1u << s->page_shift) - 1) >> s->page_shift);
	pthread_mutex_lock(&s->heap_lock);
	err = pvi_page_alloc(s, n, &seg, &page);
	if (!err) {
		seg->slabs[page] = (struct pvi_slab){.nfree = n,
						     .cursor = type,
						     .segment = (uint16_t) seg->number,
						     .state = PVI_EXTENT_HELD};
		*out = seg->addr + ((uint64_t) page << s->page_shift);
	}
	pthread_mutex_unlock(&s->heap_lock);
	return err;
}

static __attribute__((noinline)) int reserve_slow(struct pv_store *s, struct pvi_thread *t,
						   pv_type_t type, size_t bytes, void **out)
{
	struct pvi_magazine *m;
	uint32_t class;
	int err = 0;

	if (!bytes)
		return pvi_fail(-EINVAL, "an object of 0 bytes");
	pthread_mutex_lock(&s->heap_lock);
	if (type == 0 || type > s->index.ntypes)
		err = pvi_fail(-EINVAL, "type %u is not registered", type);
	else if (s->index.types[type].bytes && bytes < s->index.types[type].bytes)
		err = pvi_fail(-EINVAL, "%zu bytes are too few for type %s of %u", bytes,
			       s->index.types[type].name, s->index.types[type].bytes);
	pthread_mutex_unlock(&s->heap_lock);
	if (err)
		return err;
	class = pvi_class_of(bytes);
	if (bytes > s->classes[s->nclasses - 1].slot_bytes)
		return reserve_extent(s, type, bytes, out);
	m = pvi_thread_magazine(s, t, type, class);
	if (!m)
		return pvi_fail(-ENOMEM, "no memory for a magazine");
	if (!m->n) {
		pthread_mutex_lock(&s->heap_lock);
		err = pvi_slab_refill(s, t, type, class, m, (m->limit + 1) / 2);
		pthread_mutex_unlock(&s->heap_lock);
		if (err)
			return err;
	}
	*out = m->slots[--m->n];
	return 0;
}

int pv_reserve(struct pv_store *s, pv_type_t type, size_t bytes, void **out)
{
	struct pvi_magazine *m;
	struct pvi_thread *t;
	uint32_t class;
	int err = pvi_thread_get(s, &t);

	if (pvi_unlikely(err))
		return err;
	class = pvi_class_of(bytes);
	if (pvi_likely(class < s->nclasses && type < t->ntypes && t->magazines[type])) {
		m = t->magazines[type][class];
		/* A magazine exists only after the slow path has accepted a size of this class for
		 * this type, so every slot of it is large enough for the type. */
		if (pvi_likely(m && m->n)) {
			*out = m->slots[--m->n];
			return 0;
		}
	}
	return reserve_slow(s, t, type, bytes, out);
}

/* ---- freed slots ---- */

static void keep_slot(struct pv_store *s, struct pvi_thread *t, uint64_t rec, void *object)
{
	uint32_t type = pvi_rec_type(rec), class = pvi_rec_class(rec);
	struct pvi_magazine *m;

	if (pvi_likely(type < t->ntypes && t->magazines[type] && t->magazines[type][class]))
		m = t->magazines[type][class];
	else
		m = pvi_thread_magazine(s, t, type, class);
	if (pvi_unlikely(!m)) { /* no memory for a magazine: straight to the slab */
		struct pvi_magazine one = {.n = 1, .slots = {object}};

		pthread_mutex_lock(&s->heap_lock);
		pvi_slab_flush(s, t, &one, 1);
		pthread_mutex_unlock(&s->heap_lock);
		return;
	}
	if (pvi_unlikely(m->n == m->limit)) {
		pthread_mutex_lock(&s->heap_lock);
		pvi_slab_flush(s, t, m, (m->limit + 1) / 2);
		pthread_mutex_unlock(&s->heap_lock);
	}
	m->slots[m->n++] = object;
}

static void extent_ended(struct pv_store *s, const struct object *o)
{
	uint32_t page = (uint32_t) ((o->state_off - o->seg->off) >> s->page_shift);

	pthread_mutex_lock(&s->heap_lock);
	if (o->seg->loaded) { /* else the page map tells when it is */
		o->seg->slabs[page].state = PVI_SLAB_NONE;
		pvi_page_free(s, o->seg, page, pvi_rec_extent_pages(o->rec));
	}
	pthread_mutex_unlock(&s->heap_lock);
}

static void extent_published(struct pv_store *s, const struct object *o)
{
	uint32_t page = (uint32_t) ((o->state_off - o->seg->off) >> s->page_shift);

	pthread_mutex_lock(&s->heap_lock);
	o->seg->slabs[page].state = PVI_SLAB_NONE;
	pthread_mutex_unlock(&s->heap_lock);
}

int pv_cancel(struct pv_store *s, void *p)
{
	struct pvi_thread *t;
	struct object o;
	int err = pvi_thread_get(s, &t);

	if (!err)
		err = find_object(s, p, &o);
	if (err)
		return err;
	if (state_of(&o) != PV_SLOT_RESERVED)
		return pvi_fail(-EINVAL, "%p is not reserved", p);
	if (o.byte)
		keep_slot(s, t, o.rec, p);
	else
		extent_ended(s, &o);
	return 0;
}

/* ---- publish ---- */

static const char *const state_names[] = {"free", "live", "reserved", "retired"};

static __attribute__((noinline, cold)) int wrong_state(const struct object *o, const void *p,
							const char *want)
{
	uint8_t state = state_of(o);

	return pvi_fail(-EINVAL, "%p is %s, not %s", p,
			state <= PV_SLOT_RETIRED ? state_names[state] : "no object", want);
}

static inline int word_ok(struct pv_store *s, const void *p)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base);
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	uint64_t page;

	if (pvi_unlikely(!seg || off % 8))
		return pvi_fail(-EINVAL, "%p is not an aligned word of this store", p);
	page = (off - seg->off) >> s->page_shift;
	if (pvi_unlikely(page < seg->first_page || page >= seg->npages))
		return pvi_fail(-EINVAL, "%p is not in a page of objects", p);
	return 0;
}

/* Resolve one action into the lane; objects that end or begin are noted in *o. */
static inline int resolve(struct pv_store *s, const struct pv_action *a, struct action_rec *out,
			  struct object *o)
{
	int err;

	switch (a->op) {
	case PV_ACTION_STORE:
		err = word_ok(s, a->target);
		if (pvi_unlikely(err))
			return err;
		out->where = pvi_lane_where(PV_DO_WORD, (uintptr_t) a->target - s->base);
		out->value = a->value;
		return 0;
	case PV_ACTION_LIVE:
		err = find_object(s, a->target, o);
		if (pvi_unlikely(err))
			return err;
		if (pvi_unlikely(state_of(o) != PV_SLOT_RESERVED))
			return wrong_state(o, a->target, "reserved");
		out->where = pvi_lane_where(o->byte ? PV_DO_SLOT : PV_DO_PAGES, o->state_off);
		out->value = o->byte ? PV_SLOT_LIVE : o->rec;
		return 0;
	case PV_ACTION_FREE:
		err = find_object(s, a->target, o);
		if (pvi_unlikely(err))
			return err;
		if (pvi_unlikely(state_of(o) != PV_SLOT_LIVE))
			return wrong_state(o, a->target, "live");
		out->where = pvi_lane_where(o->byte ? PV_DO_SLOT : PV_DO_PAGES, o->state_off);
		out->value = o->byte ? PV_SLOT_FREE : pvi_rec_free(pvi_rec_extent_pages(o->rec));
		return 0;
	}
	return pvi_fail(-EINVAL, "action %u is unknown", a->op);
}

/* The same object twice, in whatever roles, is a mistake of the caller. */
static int check_distinct(const struct pv_action *actions, const struct action_rec *recs,
			  unsigned int n)
{
	for (unsigned int i = 0; i < n; i++) {
		if (actions[i].op == PV_ACTION_STORE)
			continue;
		for (unsigned int k = 0; k < i; k++)
			if (recs[k].where == recs[i].where && actions[k].op != PV_ACTION_STORE)
				return pvi_fail(-EINVAL, "%p stands twice in one intent",
						actions[i].target);
	}
	return 0;
}

int pv_publish(struct pv_store *s, const struct pv_action *actions, unsigned int n)
{
	struct object objects[PV_ACTIONS_MAX];
	struct pvi_thread *t;
	int err = pvi_thread_get(s, &t);

	if (pvi_unlikely(err))
		return err;
	if (pvi_unlikely(n > PV_ACTIONS_MAX))
		return pvi_fail(-ENOSPC, "%u actions in an intent, the most is %u", n,
				PV_ACTIONS_MAX);
	for (unsigned int i = 0; i < n; i++) {
		err = resolve(s, &actions[i], &t->lane->actions[i], &objects[i]);
		if (pvi_unlikely(err))
			return err;
	}
	if (n > 1) {
		err = check_distinct(actions, t->lane->actions, n);
		if (pvi_unlikely(err))
			return err;
	}
	pvi_lane_run(s, t->lane, n);
	for (unsigned int i = 0; i < n; i++) {
		const struct object *o = &objects[i];

		if (actions[i].op == PV_ACTION_FREE && pvi_likely(o->byte != NULL))
			keep_slot(s, t, o->rec, actions[i].target);
		else if (actions[i].op == PV_ACTION_FREE)
			extent_ended(s, o);
		else if (actions[i].op == PV_ACTION_LIVE && !o->byte)
			extent_published(s, o);
	}
	return 0;
}

/* For whoever puts a LIVE beside actions of its own into an intent (roots). */

int pvi_heap_live_begin(struct pv_store *s, void *object, struct action_rec *live)
{
	struct object o;

	return resolve(s, &PV_LIVE(object), live, &o);
}

void pvi_heap_live_end(struct pv_store *s, void *object)
{
	struct object o;

	if (find_object(s, object, &o) == 0 && !o.byte)
		extent_published(s, &o);
}

/* ---- simple forms ---- */

int pv_alloc(struct pv_store *s, pv_type_t type, size_t bytes, void **dest)
{
	void *object;
	int err = pv_reserve(s, type, bytes, &object);

	if (err)
		return err;
	memset(object, 0, bytes);
	err = pv_publish(s, (struct pv_action[]){PV_LIVE(object), PV_STORE(dest, (uintptr_t) object)},
			 2);
	if (err)
		pv_cancel(s, object);
	return err;
}

int pv_free(struct pv_store *s, void **dest)
{
	int err = word_ok(s, dest);

	if (err)
		return err;
	return pv_publish(s, (struct pv_action[]){PV_STORE(dest, 0), PV_FREE(*dest)}, 2);
}

size_t pv_usable_bytes(struct pv_store *s, const void *p)
{
	struct object o;
	uint8_t state;

	if (find_object(s, p, &o))
		return 0;
	state = state_of(&o);
	if (state != PV_SLOT_LIVE && state != PV_SLOT_RESERVED)
		return 0;
	if (o.byte)
		return s->classes[pvi_rec_class(o.rec)].slot_bytes;
	return (size_t) pvi_rec_extent_pages(o.rec) << s->page_shift;
}
