/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Objects: reserve, publish, free. The fast paths take no lock and touch only the calling thread's
 * magazine and lane, the page map entry and the slot bytes.
 *
 *	reserve		pops a slot from the magazine, slot byte HELD -> RESERVED
 *	publish LIVE	slot byte RESERVED -> LIVE, through the lane
 *	publish FREE	slot byte LIVE -> HELD, and the slot goes on top of the freeing thread's
 *			magazine, where the next reserve finds it still in cache
 *	cancel		the same with RESERVED -> HELD
 *
 * Objects larger than the largest class are extents: free in the page map until published, held
 * meanwhile by the bitmap of their segment.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

/** An object as its address says it: a slot, or an extent. */
struct object {
	uint8_t *byte;	      /* its slot byte; NULL: an extent */
	uint64_t rec;	      /* page map entry; of an extent that is held: as it will be */
	struct pvi_segment *seg; /* extents only */
	bool held;	      /* an extent that is not live */
};

static __attribute__((noinline, cold)) int no_object(const void *p)
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

static int find_extent(struct pv_store *s, const void *p, struct pvi_segment *seg, uint64_t rec,
		       struct object *o)
{
	uint64_t seg_off = (uint64_t) ((uintptr_t) p - s->base) - seg->off;
	uint32_t page = (uint32_t) (seg_off >> s->page_shift);

	*o = (struct object){.rec = rec, .seg = seg};
	if (seg_off & ((1u << s->page_shift) - 1))
		return no_object(p);
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
		return pvi_page_head_sound(s, seg, page, rec) ? 0 : no_object(p);
	if (pvi_page_kind(rec) != PV_PAGE_FREE || s->readonly)
		return no_object(p);
	pthread_mutex_lock(&s->heap_lock);
	if (seg->loaded && seg->slabs[page].state == PVI_EXTENT_HELD) {
		o->held = true;
		o->rec = pvi_rec_extent(seg->slabs[page].cursor, seg->slabs[page].nfree);
	}
	pthread_mutex_unlock(&s->heap_lock);
	return o->held ? 0 : no_object(p);
}

/* The slot byte of an object in a slab whose entry is `rec`; NULL: not the start of a slot. */
static inline uint8_t *slot_byte(const struct pv_store *s, const struct pvi_segment *seg,
				 uint64_t seg_off, uint64_t rec)
{
	uint32_t page = (uint32_t) (seg_off >> s->page_shift);
	const struct pvi_divisor *d = &s->divisors[pvi_rec_class(rec)];
	uint64_t slab_off = (uint64_t) (page - pvi_rec_back(rec)) << s->page_shift;
	uint64_t in = seg_off - slab_off, i = in * d->reciprocal >> 32;

	if (pvi_unlikely(i * d->slot_bytes != in || i >= d->nslots))
		return NULL;
	return seg->addr + slab_off + pvi_rec_meta(rec) + sizeof(struct slab_rec) + i;
}

/* Everything that slot_of() does not answer at once. */
static __attribute__((noinline)) int find_slow(struct pv_store *s, const void *p, struct object *o)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base), rec;
	struct pvi_segment *seg = pvi_store_segment(s, off);
	uint32_t page, head;
	int err;

	if (!seg)
		return no_object(p);
	off -= seg->off;
	page = (uint32_t) (off >> s->page_shift);
	if (page >= seg->npages)
		return no_object(p);
	rec = pvi_rec_load(seg->map, page);
	if (pvi_page_kind(rec) != PV_PAGE_SLAB)
		return find_extent(s, p, seg, rec, o);
	if ((rec & PVI_EPOCH_MASK) != s->epoch_bits) {
		err = warm(s, seg, page);
		if (err)
			return err;
		rec = pvi_rec_load(seg->map, page);
	}
	/* A read-only handle warms nothing, so the entry is checked here. */
	head = page - pvi_rec_back(rec);
	if (head > page || !pvi_page_head_sound(s, seg, head, pvi_rec_load(seg->map, head)))
		return no_object(p);
	*o = (struct object){.rec = rec, .byte = slot_byte(s, seg, off, rec)};
	return o->byte ? 0 : no_object(p);
}

/* The slot byte of an object in a slab that is warm; NULL for anything else. */
static inline uint8_t *slot_of(struct pv_store *s, const void *p, uint64_t *rec)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base);
	struct pvi_segment *seg = pvi_store_segment(s, off);
	uint32_t page;

	if (pvi_unlikely(!seg))
		return NULL;
	off -= seg->off;
	page = (uint32_t) (off >> s->page_shift);
	if (pvi_unlikely(page >= seg->npages))
		return NULL;
	*rec = pvi_rec_load(seg->map, page);
	if (pvi_unlikely((*rec & (PVI_EPOCH_MASK | 3)) != (s->epoch_bits | PV_PAGE_SLAB)))
		return NULL;
	return slot_byte(s, seg, off, *rec);
}

static inline int find_object(struct pv_store *s, const void *p, struct object *o)
{
	o->byte = slot_of(s, p, &o->rec);
	return pvi_likely(o->byte != NULL) ? 0 : find_slow(s, p, o);
}

static inline uint8_t state_of(const struct object *o)
{
	if (pvi_unlikely(!o->byte))
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

static inline void *take_slot(struct pv_store *s, struct pvi_thread *t, struct pvi_magazine *m)
{
	t->last = m->slots[--m->n];
	t->last_releases = atomic_load_explicit(&s->releases, memory_order_relaxed);
	__atomic_store_n(t->last.byte, PV_SLOT_RESERVED, __ATOMIC_RELAXED);
	return t->last.object;
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
	*out = take_slot(s, t, m);
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
			*out = take_slot(s, t, m);
			return 0;
		}
	}
	return reserve_slow(s, t, type, bytes, out);
}

/* ---- freed slots ---- */

static __attribute__((noinline)) void keep_slot_slow(struct pv_store *s, struct pvi_thread *t,
						      uint64_t rec, struct pvi_held held)
{
	struct pvi_magazine one = {.n = 1, .slots = {held}};
	struct pvi_magazine *m = pvi_thread_magazine(s, t, pvi_rec_type(rec), pvi_rec_class(rec));

	pthread_mutex_lock(&s->heap_lock);
	if (!m) /* no memory for a magazine: straight to the slab */
		pvi_slab_flush(s, t, &one, 1);
	else if (m->n == m->limit)
		pvi_slab_flush(s, t, m, (m->limit + 1) / 2);
	pthread_mutex_unlock(&s->heap_lock);
	if (m)
		m->slots[m->n++] = held;
}

static inline void keep_slot(struct pv_store *s, struct pvi_thread *t, uint64_t rec,
			     struct pvi_held held)
{
	uint32_t type = pvi_rec_type(rec);
	struct pvi_magazine *m;

	if (pvi_likely(type < t->ntypes && t->magazines[type])) {
		m = t->magazines[type][pvi_rec_class(rec)];
		if (pvi_likely(m && m->n < m->limit)) {
			m->slots[m->n++] = held;
			return;
		}
	}
	keep_slot_slow(s, t, rec, held);
}

static uint32_t extent_page(const struct pv_store *s, const struct object *o, const void *p)
{
	return (uint32_t) ((size_t) ((const uint8_t *) p - o->seg->addr) >> s->page_shift);
}

static void extent_ended(struct pv_store *s, const struct object *o, const void *p)
{
	uint32_t page = extent_page(s, o, p);

	pthread_mutex_lock(&s->heap_lock);
	if (o->seg->loaded) { /* else the page map tells when it is */
		o->seg->slabs[page].state = PVI_SLAB_NONE;
		pvi_page_free(s, o->seg, page, pvi_rec_extent_pages(o->rec));
	}
	pthread_mutex_unlock(&s->heap_lock);
}

static void extent_published(struct pv_store *s, const struct object *o, const void *p)
{
	pthread_mutex_lock(&s->heap_lock);
	o->seg->slabs[extent_page(s, o, p)].state = PVI_SLAB_NONE;
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
	if (o.byte) {
		__atomic_store_n(o.byte, PV_SLOT_HELD, __ATOMIC_RELAXED);
		keep_slot(s, t, o.rec, (struct pvi_held){p, o.byte});
	} else {
		extent_ended(s, &o, p);
	}
	return 0;
}

/* ---- publish ---- */

static __attribute__((noinline, cold)) int wrong_state(const struct object *o, const void *p,
							const char *want)
{
	static const char *const names[] = {"free", "live", "reserved", "retired", "free"};
	uint8_t state = state_of(o);

	return pvi_fail(-EINVAL, "%p is %s, not %s", p,
			state <= PV_SLOT_HELD ? names[state] : "no object", want);
}

static __attribute__((noinline, cold)) int no_word(const void *p)
{
	return pvi_fail(-EINVAL, "%p is not an aligned word in a page of objects of this store", p);
}

static inline bool word_ok(struct pv_store *s, const void *p)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base), page;
	const struct pvi_segment *seg = pvi_store_segment(s, off);

	if (pvi_unlikely(!seg || off % 8))
		return false;
	page = (off - seg->off) >> s->page_shift;
	return pvi_likely(page >= seg->first_page && page < seg->npages);
}

static inline uint64_t where_is(const struct pv_store *s, const struct object *o, const void *p)
{
	return o->byte ? pvi_lane_where(PV_DO_SLOT, (uintptr_t) o->byte - s->base)
		       : pvi_lane_where(PV_DO_PAGES, (uintptr_t) p - s->base);
}

static inline int resolve_live(struct pv_store *s, struct pvi_thread *t, void *p,
			       struct action_rec *out, struct object *o)
{
	int err;

	if (pvi_likely(t->last.object == p &&
		       t->last_releases ==
			       atomic_load_explicit(&s->releases, memory_order_relaxed))) {
		o->byte = t->last.byte;
		t->last.object = NULL;
	} else {
		err = find_object(s, p, o);
		if (pvi_unlikely(err))
			return err;
	}
	if (pvi_unlikely(state_of(o) != PV_SLOT_RESERVED))
		return wrong_state(o, p, "reserved");
	out->where = where_is(s, o, p);
	out->value = o->byte ? PV_SLOT_LIVE : o->rec;
	return 0;
}

static inline int resolve_free(struct pv_store *s, void *p, struct action_rec *out,
			       struct object *o)
{
	int err = find_object(s, p, o);

	if (pvi_unlikely(err))
		return err;
	if (pvi_unlikely(state_of(o) != PV_SLOT_LIVE))
		return wrong_state(o, p, "live");
	out->where = where_is(s, o, p);
	out->value = o->byte ? PV_SLOT_FREE : pvi_rec_free(pvi_rec_extent_pages(o->rec));
	return 0;
}

/* Translate the actions into the lane. Nothing is changed yet. */
static inline int resolve(struct pv_store *s, struct pvi_thread *t, const struct pv_action *actions,
			  unsigned int n, struct object *objects)
{
	struct action_rec *recs = t->lane->actions;
	unsigned int live = 0, freed = 0;
	int err;

	for (unsigned int i = 0; i < n; i++) {
		void *p = actions[i].target;

		switch (actions[i].op) {
		case PV_ACTION_STORE:
			if (pvi_unlikely(!word_ok(s, p)))
				return no_word(p);
			recs[i].where = pvi_lane_where(PV_DO_WORD, (uintptr_t) p - s->base);
			recs[i].value = actions[i].value;
			continue;
		case PV_ACTION_LIVE:
			err = resolve_live(s, t, p, &recs[i], &objects[i]);
			live++;
			break;
		case PV_ACTION_FREE:
			err = resolve_free(s, p, &recs[i], &objects[i]);
			freed++;
			break;
		default:
			return pvi_fail(-EINVAL, "action %u is unknown", actions[i].op);
		}
		if (pvi_unlikely(err))
			return err;
	}
	if (pvi_likely(live <= 1 && freed <= 1))
		return 0;
	/* What is reserved is not live, so the same object twice is twice live or twice free. */
	for (unsigned int i = 0; i < n; i++)
		for (unsigned int k = 0; k < i && actions[i].op != PV_ACTION_STORE; k++)
			if (recs[k].where == recs[i].where)
				return pvi_fail(-EINVAL, "%p stands twice in one intent",
						actions[i].target);
	return 0;
}

static __attribute__((noinline)) int publish_any(struct pv_store *s, struct pvi_thread *t,
						  const struct pv_action *actions, unsigned int n)
{
	struct object objects[PV_ACTIONS_MAX];
	int err;

	if (n > PV_ACTIONS_MAX)
		return pvi_fail(-ENOSPC, "%u actions in an intent, the most is %u", n,
				PV_ACTIONS_MAX);
	err = resolve(s, t, actions, n, objects);
	if (pvi_unlikely(err))
		return err;
	pvi_lane_begin(t->lane, n);
	for (unsigned int i = 0; i < n; i++) {
		const struct object *o = &objects[i];

		if (actions[i].op == PV_ACTION_STORE)
			__atomic_store_n((uint64_t *) actions[i].target, actions[i].value,
					 __ATOMIC_RELEASE);
		else if (pvi_unlikely(!o->byte))
			pvi_lane_apply(s, &t->lane->actions[i]);
		else /* what this process frees stays held: it goes to the magazine below */
			__atomic_store_n(o->byte,
					 actions[i].op == PV_ACTION_LIVE ? PV_SLOT_LIVE
									 : PV_SLOT_HELD,
					 __ATOMIC_RELEASE);
	}
	pvi_lane_end(t->lane);
	for (unsigned int i = 0; i < n; i++) {
		const struct object *o = &objects[i];
		void *p = actions[i].target;

		if (actions[i].op == PV_ACTION_STORE)
			continue;
		if (pvi_likely(o->byte != NULL)) {
			if (actions[i].op == PV_ACTION_FREE)
				keep_slot(s, t, o->rec, (struct pvi_held){p, o->byte});
		} else if (actions[i].op == PV_ACTION_FREE) {
			extent_ended(s, o, p);
		} else {
			extent_published(s, o, p);
		}
	}
	return 0;
}

/*
 * The two intents that make up nearly all work, in a straight line: {LIVE, STORE} links a new object,
 * {LIVE, STORE, FREE} replaces an old one. What is not as expected here is left to publish_any(),
 * which does the same and knows the errors. (callgrind, a replace with its reserve: 430 instructions
 * through the loops of publish_any(), 262 this way.)
 */
static inline bool publish_link(struct pv_store *s, struct pvi_thread *t, const struct pv_action *a,
				bool replace)
{
	struct action_rec *recs = t->lane->actions;
	uint8_t *fresh = t->last.byte, *old = NULL;
	uint64_t *word = a[1].target, rec = 0;

	if (pvi_unlikely(t->last.object != a[0].target ||
			 t->last_releases !=
				 atomic_load_explicit(&s->releases, memory_order_relaxed) ||
			 __atomic_load_n(fresh, __ATOMIC_RELAXED) != PV_SLOT_RESERVED ||
			 !word_ok(s, word)))
		return false;
	if (replace) {
		old = slot_of(s, a[2].target, &rec);
		if (pvi_unlikely(!old || __atomic_load_n(old, __ATOMIC_RELAXED) != PV_SLOT_LIVE))
			return false;
		recs[2].where = pvi_lane_where(PV_DO_SLOT, (uintptr_t) old - s->base);
		recs[2].value = PV_SLOT_FREE;
	}
	t->last.object = NULL;
	recs[0].where = pvi_lane_where(PV_DO_SLOT, (uintptr_t) fresh - s->base);
	recs[0].value = PV_SLOT_LIVE;
	recs[1].where = pvi_lane_where(PV_DO_WORD, (uintptr_t) word - s->base);
	recs[1].value = a[1].value;
	pvi_lane_begin(t->lane, replace ? 3 : 2);
	__atomic_store_n(fresh, PV_SLOT_LIVE, __ATOMIC_RELEASE);
	__atomic_store_n(word, a[1].value, __ATOMIC_RELEASE);
	if (replace)
		__atomic_store_n(old, PV_SLOT_HELD, __ATOMIC_RELEASE);
	pvi_lane_end(t->lane);
	if (replace)
		keep_slot(s, t, rec, (struct pvi_held){a[2].target, old});
	return true;
}

int pv_publish(struct pv_store *s, const struct pv_action *actions, unsigned int n)
{
	struct pvi_thread *t;
	int err = pvi_thread_get(s, &t);

	if (pvi_unlikely(err))
		return err;
	if ((n == 2 || n == 3) && actions[0].op == PV_ACTION_LIVE &&
	    actions[1].op == PV_ACTION_STORE) {
		if (n == 2 && pvi_likely(publish_link(s, t, actions, false)))
			return 0;
		if (n == 3 && actions[2].op == PV_ACTION_FREE &&
		    pvi_likely(publish_link(s, t, actions, true)))
			return 0;
	}
	return publish_any(s, t, actions, n);
}

/* For whoever puts a LIVE beside actions of its own into an intent (roots). */

int pvi_heap_live_begin(struct pv_store *s, void *object, struct action_rec *live)
{
	struct pvi_thread *t;
	struct object o;
	int err = pvi_thread_get(s, &t);

	return err ? err : resolve_live(s, t, object, live, &o);
}

void pvi_heap_live_end(struct pv_store *s, void *object)
{
	struct object o;

	if (find_object(s, object, &o) == 0 && !o.byte)
		extent_published(s, &o, object);
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
	if (!word_ok(s, dest))
		return no_word(dest);
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
