/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Objects: reserve, publish, free. The fast paths take no lock and touch only the calling thread's
 * magazine and lane, the page map entry and the slot bytes.
 *
 *	reserve		pops a slot from the magazine, slot byte HELD -> RESERVED
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

#include "internal.h"

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
	if (s->readonly)
		return pvi_page_kind(rec) == PV_PAGE_EXTENT && pvi_page_run_sound(s, seg, page, rec)
			       ? 0
			       : no_object(p);
	/* Loaded, so that the pages stay taken until extent_ended(), whatever the map says. */
	err = pvi_page_load(s, seg);
	if (!err && pvi_page_kind(rec) == PV_PAGE_EXTENT) {
		/* HELD: the thread that publishes it has not come to extent_published() yet. */
		if (seg->slabs[page].state != PVI_EXTENT_LIVE &&
		    seg->slabs[page].state != PVI_EXTENT_HELD)
			err = damaged(seg, page);
	} else if (!err) {
		if (pvi_page_kind(rec) == PV_PAGE_FREE &&
		    seg->slabs[page].state == PVI_EXTENT_HELD) {
			o->state = PV_SLOT_RESERVED;
			o->rec = pvi_rec_extent(seg->slabs[page].cursor, seg->slabs[page].nfree);
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

/* The page and the slot byte of an object in a warm slab; false for anything else. */
static inline bool find_slot(const struct pv_store *s, const void *p, const struct pvi_page **out,
			     uint8_t **byte)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base), in;
	const struct pvi_page *page;
	uint32_t i;
	bool start;

	if (pvi_unlikely(off >= s->window_bytes))
		return false;
	page = pvi_store_page(s, off);
	in = (uint64_t) ((const uint8_t *) p - __atomic_load_n(&page->slab, __ATOMIC_ACQUIRE));
	/* Atomic, as another thread may be describing the page: then `slab` was NULL, and `in` is
	 * beyond any grid whatever is read here. A page that is not described has no grid. */
	i = pvi_page_slot(in, __atomic_load_n(&page->reciprocal, __ATOMIC_RELAXED), &start);
	if (pvi_unlikely(!start || in >= __atomic_load_n(&page->grid_bytes, __ATOMIC_RELAXED)))
		return false;
	*out = page;
	*byte = page->bytes + i;
	return true;
}

/* The slot byte alone, and its bin; NULL for anything else. */
static inline uint8_t *slot_of(const struct pv_store *s, const void *p, uint32_t *bin)
{
	const struct pvi_page *page;
	uint8_t *byte;

	if (pvi_unlikely(!find_slot(s, p, &page, &byte)))
		return NULL;
	*bin = page->bin;
	return byte;
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
	if (s->readonly) {
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
	o->byte = slot_of(s, p, &o->bin);
	return o->byte ? 0 : no_object(p);
}

/* Everything that slot_of() does not answer. Any address may be asked for, and a segment that has no
 * objects may be leaving (trim.c): hence the lock from the first look at it. */
static __attribute__((noinline)) int find_slow(struct pv_store *s, const void *p,
						struct pvi_object *o)
{
	int err;

	pthread_mutex_lock(&s->heap_lock);
	err = find_locked(s, p, o);
	pthread_mutex_unlock(&s->heap_lock);
	return err;
}

static inline int find_object(struct pv_store *s, const void *p, struct pvi_object *o)
{
	o->byte = slot_of(s, p, &o->bin);
	return pvi_likely(o->byte != NULL) ? 0 : find_slow(s, p, o);
}

static inline uint8_t state_of(const struct pvi_object *o)
{
	if (pvi_unlikely(!o->byte))
		return o->state;
	return __atomic_load_n(o->byte, __ATOMIC_RELAXED);
}

/* ---- reserve ---- */

int pvi_heap_extent(struct pv_store *s, pv_type_t type, size_t bytes, uint32_t align_pages,
		    void **out)
{
	struct pvi_segment *seg;
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
						     .state = PVI_EXTENT_HELD};
		*out = seg->addr + ((uint64_t) page << s->page_shift);
	}
	pthread_mutex_unlock(&s->heap_lock);
	return err;
}

static inline void *take_slot(struct pvi_thread *t, struct pvi_magazine *m)
{
	const struct pvi_held *held = &m->slots[--m->n];
	/* Atomic, so that the compiler does not make one load of 16 bytes of the two: those of a slot
	 * that was freed just now are in the store buffer, as two stores, and a load that wants bytes
	 * of both waits until they have left it. (replace-64: 40 -> 60 million a second.) */
	void *object = __atomic_load_n(&held->object, __ATOMIC_RELAXED);
	uint8_t *byte = __atomic_load_n(&held->byte, __ATOMIC_RELAXED);

	pvi_debug_check(__atomic_load_n(byte, __ATOMIC_RELAXED) == PV_SLOT_HELD);
	__atomic_store_n(byte, PV_SLOT_RESERVED, __ATOMIC_RELAXED);
	t->fresh = (struct pvi_held){object, byte};
	return object;
}

/* Can there be such an object? */
static int check_request(struct pv_store *s, pv_type_t type, size_t bytes)
{
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
	err = check_request(s, type, bytes);
	if (err)
		return err;
	class = pvi_class_of(bytes);
	if (bytes > s->classes[s->nclasses - 1].slot_bytes)
		return pvi_heap_extent(s, type, bytes, 1, out);
	m = pvi_thread_magazine(s, t, type, class);
	if (!m)
		return pvi_fail(-ENOMEM, "no memory for a magazine");
	if (!m->n && !pvi_depot_take(s, m)) {
		pthread_mutex_lock(&s->heap_lock);
		err = pvi_slab_refill(s, t, type, class, m);
		pthread_mutex_unlock(&s->heap_lock);
		if (err)
			return err;
	}
	*out = take_slot(t, m);
	return 0;
}

int pv_reserve(struct pv_store *s, pv_type_t type, size_t bytes, void **out)
{
	struct pvi_thread *t = pvi_tls_last.thread;
	struct pvi_magazine *m;
	uint64_t bin;

	if (pvi_unlikely(pvi_tls_last.serial != s->serial || bytes > 16 * (PVI_CLASS_TABLE - 1)))
		return reserve_slow(s, type, bytes, out);
	bin = (uint64_t) type << PV_PAGE_CLASS_BITS | s->class_of[(bytes + 15) / 16];
	if (pvi_unlikely(bin >= t->nbins))
		return reserve_slow(s, type, bytes, out);
	m = t->magazines[bin];
	if (pvi_unlikely(!m->n || bytes < m->min_bytes))
		return reserve_slow(s, type, bytes, out);
	*out = take_slot(t, m);
	return 0;
}

/* ---- freed slots ---- */

/* What a magazine takes is held by this process and by no other magazine; not twice by this one. */
static inline void check_kept(const struct pvi_magazine *m, const struct pvi_held *held)
{
	pvi_debug_check(__atomic_load_n(held->byte, __ATOMIC_RELAXED) == PV_SLOT_HELD);
#ifdef PVI_DEBUG_CHECKS
	for (uint32_t i = 0; i < m->n; i++)
		pvi_debug_check(m->slots[i].byte != held->byte);
#endif
}

static __attribute__((noinline)) int keep_slot_slow(struct pv_store *s, struct pvi_thread *t,
						     uint32_t bin, struct pvi_held held)
{
	struct pvi_magazine *m =
		pvi_thread_magazine(s, t, pvi_bin_type(bin), pvi_bin_class(bin));

	if (m && (m->n < m->limit || pvi_depot_give(m, (m->limit + 1) / 2))) {
		check_kept(m, &held);
		m->slots[m->n++] = held;
		return 0;
	}
	/* No memory for a magazine, or for a batch: straight to the slab. */
	pthread_mutex_lock(&s->heap_lock);
	pvi_slab_return(s, t, &held.object, 1);
	pthread_mutex_unlock(&s->heap_lock);
	return 0;
}

/* Returns 0, so that a caller that has nothing else to do can end with it. */
static inline int keep_slot(struct pv_store *s, struct pvi_thread *t, uint32_t bin,
			    struct pvi_held held)
{
	struct pvi_magazine *m;

	if (pvi_unlikely(bin >= t->nbins))
		return keep_slot_slow(s, t, bin, held);
	m = t->magazines[bin];
	if (pvi_unlikely(m->n >= m->limit))
		return keep_slot_slow(s, t, bin, held);
	check_kept(m, &held);
	m->slots[m->n++] = held;
	return 0;
}

static uint32_t extent_page(const struct pv_store *s, const struct pvi_object *o, const void *p)
{
	return (uint32_t) ((size_t) ((const uint8_t *) p - o->seg->addr) >> s->page_shift);
}

static void extent_ended(struct pv_store *s, const struct pvi_object *o, const void *p)
{
	uint32_t page = extent_page(s, o, p);

	pthread_mutex_lock(&s->heap_lock);
	o->seg->slabs[page].state = PVI_SLAB_NONE;
	pvi_page_free(s, o->seg, page, pvi_rec_extent_pages(o->rec));
	pthread_mutex_unlock(&s->heap_lock);
}

static void extent_published(struct pv_store *s, const struct pvi_object *o, const void *p)
{
	uint32_t page = extent_page(s, o, p);

	pthread_mutex_lock(&s->heap_lock);
	/* Another thread may have freed it already, and a third reserved the page again. */
	if (o->seg->slabs[page].state == PVI_EXTENT_HELD &&
	    pvi_page_kind(pvi_rec_load(o->seg->map, page)) == PV_PAGE_EXTENT)
		o->seg->slabs[page].state = PVI_EXTENT_LIVE;
	pthread_mutex_unlock(&s->heap_lock);
}

static void extent_retired(struct pv_store *s, const struct pvi_object *o, const void *p)
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
		err = find_object(s, p, &o);
	if (err)
		return pvi_misuse(err);
	if (state_of(&o) != PV_SLOT_RESERVED)
		return pvi_misuse(pvi_fail(-EINVAL, "%p is not reserved", p));
	if (o.byte) {
		__atomic_store_n(o.byte, PV_SLOT_HELD, __ATOMIC_RELAXED);
		keep_slot(s, t, o.bin, (struct pvi_held){p, o.byte});
	} else {
		extent_ended(s, &o, p);
	}
	return 0;
}

/* ---- publish ---- */

static __attribute__((noinline, cold)) int wrong_state(const struct pvi_object *o, const void *p,
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
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base);
	const struct pvi_segment *seg = pvi_store_segment(s, off);

	return pvi_likely(seg && off % 8 == 0 && off - seg->data_off < seg->data_bytes);
}

static inline uint64_t where_is(const struct pv_store *s, const struct pvi_object *o, const void *p,
				uint64_t slot_op)
{
	return o->byte ? pvi_lane_where(slot_op, (uintptr_t) o->byte - s->base)
		       : pvi_lane_where(PV_DO_PAGES, (uintptr_t) p - s->base);
}

static inline int resolve_live(struct pv_store *s, void *p, struct action_rec *out,
			       struct pvi_object *o)
{
	int err = find_object(s, p, o);

	if (pvi_unlikely(err))
		return err;
	if (pvi_unlikely(state_of(o) != PV_SLOT_RESERVED))
		return wrong_state(o, p, "reserved");
	out->where = where_is(s, o, p, PV_DO_LIVE);
	out->value = o->byte ? 0 : o->rec;
	return 0;
}

static inline int resolve_free(struct pv_store *s, void *p, struct action_rec *out,
			       struct pvi_object *o)
{
	int err = find_object(s, p, o);

	if (pvi_unlikely(err))
		return err;
	if (pvi_unlikely(state_of(o) != PV_SLOT_LIVE))
		return wrong_state(o, p, "live");
	out->where = where_is(s, o, p, PV_DO_FREE);
	out->value = o->byte ? 0 : pvi_rec_free(pvi_rec_extent_pages(o->rec));
	return 0;
}

inline int pvi_heap_resolve(struct pv_store *s, const struct pv_action *a,
			    struct action_rec *rec, struct pvi_object *o)
{
	switch (a->op) {
	case PV_ACTION_STORE:
		if (pvi_unlikely(!word_ok(s, a->target)))
			return no_word(a->target);
		rec->where = pvi_lane_where(PV_DO_WORD, (uintptr_t) a->target - s->base);
		rec->value = a->value;
		return 0;
	case PV_ACTION_LIVE:
		return resolve_live(s, a->target, rec, o);
	case PV_ACTION_FREE:
		return resolve_free(s, a->target, rec, o);
	case PV_ACTION_RETIRE: /* to recovery it is the same: after a crash there are no readers */
		return s->retire ? resolve_free(s, a->target, rec, o) : pvi_retire_no_flavor();
	}
	return pvi_fail(-EINVAL, "action %u is unknown", a->op);
}

/* Translate the actions into the lane. Nothing is changed yet. */
static inline int resolve(struct pv_store *s, struct pvi_thread *t, const struct pv_action *actions,
			  unsigned int n, struct pvi_object *objects)
{
	struct action_rec *recs = t->lane->actions;
	unsigned int live = 0, freed = 0, retired = 0;

	for (unsigned int i = 0; i < n; i++) {
		int err = pvi_heap_resolve(s, &actions[i], &recs[i], &objects[i]);

		if (pvi_unlikely(err))
			return err;
		live += actions[i].op == PV_ACTION_LIVE;
		freed += actions[i].op == PV_ACTION_FREE;
		retired += actions[i].op == PV_ACTION_RETIRE;
	}
	/* What is reserved is not live, so the same object twice is twice live or twice free. */
	for (unsigned int i = 0; i < n && (live > 1 || freed + retired > 1); i++)
		for (unsigned int k = 0; k < i && actions[i].op != PV_ACTION_STORE; k++)
			if (recs[k].where == recs[i].where)
				return pvi_fail(-EINVAL, "%p stands twice in one intent",
						actions[i].target);
	return retired ? pvi_retire_room(s, t, retired) : 0;
}

inline void pvi_heap_apply(struct pv_store *s, const struct pv_action *a,
			   const struct action_rec *rec, const struct pvi_object *o)
{
	if (a->op == PV_ACTION_STORE)
		__atomic_store_n((uint64_t *) a->target, a->value, __ATOMIC_RELEASE);
	else if (pvi_unlikely(!o->byte))
		pvi_lane_apply(s, rec);
	else /* what this process frees stays held: it goes to a magazine when the log is void */
		__atomic_store_n(o->byte,
				 a->op == PV_ACTION_LIVE	 ? PV_SLOT_LIVE
				 : a->op == PV_ACTION_RETIRE ? PV_SLOT_RETIRED
							     : PV_SLOT_HELD,
				 __ATOMIC_RELEASE);
}

inline void pvi_heap_settle(struct pv_store *s, struct pvi_thread *t, const struct pv_action *a,
			    const struct pvi_object *o)
{
	if (a->op == PV_ACTION_RETIRE) {
		if (!o->byte)
			extent_retired(s, o, a->target);
		pvi_retire_note(s, t, a->target, o->byte);
	} else if (pvi_unlikely(!o->byte))
		a->op == PV_ACTION_FREE ? extent_ended(s, o, a->target)
					: extent_published(s, o, a->target);
	else if (a->op == PV_ACTION_FREE)
		keep_slot(s, t, o->bin, (struct pvi_held){a->target, o->byte});
}

/* Roots are not freed. To look for one is too dear for more than builds with debug checks. */
static inline int check_no_root(struct pv_store *s, const void *object)
{
#ifdef PVI_DEBUG_CHECKS
	int err = pvi_root_keep(s, object);

	if (err)
		return pvi_misuse(err);
#endif
	return 0;
}

static __attribute__((noinline)) int publish_any(struct pv_store *s,
						  const struct pv_action *actions, unsigned int n)
{
	struct pvi_object objects[PV_ACTIONS_MAX];
	bool retired = false;
	struct pvi_thread *t;
	int err = pvi_thread_get(s, &t);

	if (err)
		return err;
	if (n > PV_ACTIONS_MAX)
		return pvi_fail(-ENOSPC, "%u actions in an intent, the most is %u", n,
				PV_ACTIONS_MAX);
	for (unsigned int i = 0; i < n; i++) {
		err = actions[i].op == PV_ACTION_FREE || actions[i].op == PV_ACTION_RETIRE
			      ? check_no_root(s, actions[i].target)
			      : 0;
		if (err)
			return err;
	}
	err = resolve(s, t, actions, n, objects);
	if (pvi_unlikely(err))
		return pvi_misuse(err);
	pvi_lane_begin(t->lane, n);
	for (unsigned int i = 0; i < n; i++)
		pvi_heap_apply(s, &actions[i], &t->lane->actions[i], &objects[i]);
	pvi_lane_end(t->lane);
	for (unsigned int i = 0; i < n; i++) {
		if (actions[i].op != PV_ACTION_STORE)
			pvi_heap_settle(s, t, &actions[i], &objects[i]);
		retired |= actions[i].op == PV_ACTION_RETIRE;
	}
	if (retired)
		pvi_retire_hand_over(s, t);
	return 0;
}

/*
 * The intents that make up nearly all work, in a straight line: {LIVE, STORE} links a new object,
 * {LIVE, STORE, FREE} replaces an old one, {STORE, FREE} unlinks one. What is not as expected here is
 * left to publish_any(), which does the same and knows the errors.
 *
 * What costs here is the number of instructions and of stores: every store of an operation waits in
 * the processor's store buffer behind the one that misses the cache, and the more there are, the
 * fewer operations overlap. So an action on a slot byte has no value; what is known from the reserve
 * (the byte) or the last call (in which addresses words may be stored to) is not looked up again; and
 * whatever is out of the ordinary is a tail call, so that no register has to be saved.
 */

/* For those who go the long way: what the thread found out may be out of date, or not be known yet. */
static void refresh_found(struct pv_store *s, const void *word)
{
	struct pvi_thread *t = pvi_thread_find(s);
	uint32_t now = __atomic_load_n(&s->generation, __ATOMIC_RELAXED);
	const struct pvi_segment *seg = pvi_store_segment(s, (uintptr_t) word - s->base);

	if (!t)
		return;
	if (t->generation != now)
		pvi_thread_no_fresh(t);
	t->generation = now;
	t->words = seg ? s->base + seg->data_off : 0;
	t->words_bytes = seg ? seg->data_bytes : 0;
}

typedef int long_way(struct pv_store *s, void *object, void *word, uint64_t value, void *old);

static __attribute__((noinline)) int link_any(struct pv_store *s, void *object, void *word,
					      uint64_t value, void *old)
{
	struct pv_action actions[] = {PV_LIVE(object), PV_STORE(word, value)};

	(void) old;
	refresh_found(s, word);
	return publish_any(s, actions, 2);
}

static __attribute__((noinline)) int replace_any(struct pv_store *s, void *object, void *word,
						 uint64_t value, void *old)
{
	struct pv_action actions[] = {PV_LIVE(object), PV_STORE(word, value), PV_FREE(old)};

	refresh_found(s, word);
	return publish_any(s, actions, 3);
}

static __attribute__((noinline)) int unlink_any(struct pv_store *s, void *object, void *word,
						uint64_t value, void *old)
{
	struct pv_action actions[] = {PV_STORE(word, value), PV_FREE(old)};

	(void) object;
	refresh_found(s, word);
	return publish_any(s, actions, 2);
}

static inline __attribute__((always_inline)) int
publish_fast(struct pv_store *s, void *object, void *word, uint64_t value, void *old, bool links,
	     bool frees, long_way *any)
{
	struct pvi_thread *t = pvi_tls_last.thread;
	const struct pvi_page *page = NULL;
	struct lane_rec *lane;
	uint8_t *gone = NULL;
	unsigned int n = 0;

	/* The next reserve hands out the slot that is freed here, and its owner fills it: that miss
	 * would stall the stores behind it. (replace-16-1024: 13.2 -> 19.4 million a second.) */
	if (frees)
		__builtin_prefetch(old, 1);
	if (frees && check_no_root(s, old))
		return -EINVAL;
	if (pvi_unlikely(pvi_tls_last.serial != s->serial))
		return any(s, object, word, value, old);
	if (frees && pvi_unlikely(!find_slot(s, old, &page, &gone) || *gone != PV_SLOT_LIVE))
		return any(s, object, word, value, old);
	if (pvi_unlikely(t->generation != __atomic_load_n(&s->generation, __ATOMIC_RELAXED) ||
			 (uintptr_t) word - t->words >= t->words_bytes ||
			 (uintptr_t) word % 8 != 0 ||
			 (links && (object != t->fresh.object ||
				    *t->fresh.byte != PV_SLOT_RESERVED))))
		return any(s, object, word, value, old);
	lane = t->lane;
	if (links)
		lane->actions[n++].where = t->where_live + (uintptr_t) t->fresh.byte;
	lane->actions[n].where = t->where_word + (uintptr_t) word;
	lane->actions[n++].value = value;
	if (frees)
		lane->actions[n++].where = t->where_free + (uintptr_t) gone;
	pvi_lane_begin(lane, n);
	if (links)
		__atomic_store_n(t->fresh.byte, PV_SLOT_LIVE, __ATOMIC_RELEASE);
	__atomic_store_n((uint64_t *) word, value, __ATOMIC_RELEASE);
	if (!frees) {
		pvi_lane_end(lane);
		return 0;
	}
	__atomic_store_n(gone, PV_SLOT_HELD, __ATOMIC_RELEASE);
	pvi_lane_end(lane);
	return keep_slot(s, t, page->bin, (struct pvi_held){old, gone});
}

int pv_link(struct pv_store *s, void *object, void *word)
{
	return publish_fast(s, object, word, (uintptr_t) object, NULL, true, false, link_any);
}

int pv_replace(struct pv_store *s, void *object, void *word, void *old)
{
	return publish_fast(s, object, word, (uintptr_t) object, old, true, true, replace_any);
}

int pv_unlink(struct pv_store *s, void *word, uint64_t value, void *old)
{
	return publish_fast(s, NULL, word, value, old, false, true, unlink_any);
}

int pv_publish(struct pv_store *s, const struct pv_action *a, unsigned int n)
{
	if (n == 3 && a[0].op == PV_ACTION_LIVE && a[1].op == PV_ACTION_STORE &&
	    a[2].op == PV_ACTION_FREE)
		return publish_fast(s, a[0].target, a[1].target, a[1].value, a[2].target, true,
				    true, replace_any);
	if (n == 2 && a[0].op == PV_ACTION_LIVE && a[1].op == PV_ACTION_STORE)
		return publish_fast(s, a[0].target, a[1].target, a[1].value, NULL, true, false,
				    link_any);
	if (n == 2 && a[0].op == PV_ACTION_STORE && a[1].op == PV_ACTION_FREE)
		return publish_fast(s, NULL, a[0].target, a[0].value, a[1].target, false, true,
				    unlink_any);
	return publish_any(s, a, n);
}

/* For transactions. */

int pvi_heap_hold(struct pv_store *s, size_t bytes, void **out)
{
	return pvi_heap_extent(s, 1, bytes, 1, out);
}

bool pvi_heap_range_ok(const struct pv_store *s, uint64_t off, uint64_t bytes)
{
	const struct pvi_segment *seg = pvi_store_segment(s, off);

	if (!seg)
		return false;
	off -= seg->off;
	return off >= (uint64_t) seg->first_page << s->page_shift &&
	       off < (uint64_t) seg->npages << s->page_shift &&
	       bytes <= ((uint64_t) seg->npages << s->page_shift) - off;
}

/* For whoever puts a LIVE beside actions of its own into an intent (roots). */

int pvi_heap_live_begin(struct pv_store *s, void *object, struct action_rec *live)
{
	struct pvi_object o;

	return resolve_live(s, object, live, &o);
}

void pvi_heap_live_end(struct pv_store *s, void *object)
{
	struct pvi_object o;

	if (find_object(s, object, &o) == 0 && !o.byte)
		extent_published(s, &o, object);
}

void pv_prefetch(const struct pv_store *s, const void *p)
{
	uint32_t bin;
	const uint8_t *byte = slot_of(s, p, &bin);

	if (byte)
		__builtin_prefetch(byte, 1);
}

int pvi_heap_find_live(struct pv_store *s, const void *p, struct pvi_object *o)
{
	int err = find_object(s, p, o);

	if (err)
		return err;
	return state_of(o) == PV_SLOT_LIVE ? 0 : wrong_state(o, p, "live");
}

int pvi_heap_word(struct pv_store *s, const void *p)
{
	return word_ok(s, p) ? 0 : no_word(p);
}

size_t pv_usable_bytes(struct pv_store *s, const void *p)
{
	struct pvi_object o;
	size_t bytes = 0;
	uint8_t state;

	/* Whether it is an object or not: no slab and no segment goes between the two looks. */
	pthread_mutex_lock(&s->heap_lock);
	o.byte = slot_of(s, p, &o.bin);
	if (o.byte || find_locked(s, p, &o) == 0) {
		state = state_of(&o);
		if (state == PV_SLOT_LIVE || state == PV_SLOT_RESERVED)
			bytes = o.byte ? s->classes[pvi_bin_class(o.bin)].slot_bytes
				       : (size_t) pvi_rec_extent_pages(o.rec) << s->page_shift;
	}
	pthread_mutex_unlock(&s->heap_lock);
	return bytes;
}
