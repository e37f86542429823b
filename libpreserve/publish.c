/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Publishing: what an intent does to objects and words. In general it is a list of actions in the thread's
 * lane (lane.c); the intents that make up nearly all work have a straight line of their own.
 */
#include <errno.h>

#include "heap.h"

static __attribute__((noinline, cold)) int wrong_state(const struct pvi_object *o, const void *p,
							const char *want)
{
	static const char *const names[] = {"free", "live", "reserved", "retired", "free"};
	uint8_t state = pvi_heap_state(o);

	return pvi_fail(-EINVAL, "%p is %s, not %s", p,
			state <= PV_SLOT_HELD ? names[state] : "no object", want);
}

static __attribute__((noinline, cold)) int no_word(const struct pv_store *s, const void *p)
{
	int err = pvi_seal_refuse(s, p);

	return err ? err : pvi_fail(-EINVAL, "%p is not an aligned word in a page of objects of this store", p);
}

static inline bool word_ok(struct pv_store *s, const void *p)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base);
	const struct pvi_segment *seg = pvi_store_segment(s, off);

	return pvi_likely(seg && off % 8 == 0 && off - seg->data_off < seg->data_bytes && !seg->sealed);
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
	int err = pvi_heap_find(s, p, o);

	if (pvi_unlikely(err))
		return err;
	if (pvi_unlikely(pvi_heap_state(o) != PV_SLOT_RESERVED))
		return wrong_state(o, p, "reserved");
	out->where = where_is(s, o, p, PV_DO_LIVE);
	out->value = o->byte ? 0 : o->rec;
	return 0;
}

static inline int resolve_free(struct pv_store *s, void *p, struct action_rec *out,
			       struct pvi_object *o)
{
	int err = pvi_heap_find(s, p, o);

	if (pvi_unlikely(err))
		return err;
	if (pvi_unlikely(pvi_heap_state(o) != PV_SLOT_LIVE))
		return wrong_state(o, p, "live");
	err = pvi_seal_refuse(s, p);
	if (pvi_unlikely(err))
		return err;
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
			return no_word(s, a->target);
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
			pvi_heap_extent_retired(s, o, a->target);
		pvi_retire_note(s, t, a->target, o->byte);
	} else if (pvi_unlikely(!o->byte))
		a->op == PV_ACTION_FREE ? pvi_heap_extent_ended(s, o, a->target)
					: pvi_heap_extent_published(s, o, a->target);
	else if (a->op == PV_ACTION_FREE)
		pvi_heap_keep(s, t, o->bin, (struct pvi_held){a->target, o->byte});
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
	pvi_thread_settle(t); /* so that the next pv_reserve() need not */
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
 * fewer operations overlap: 100,000 objects do not fit into the nearest caches, and a miss is waited for
 * less the fewer instructions lie between two. So the intent is three words, and the one that it stores
 * anyway says how far it got (struct link_rec); what is known from the reserve (magazine and byte) or the last call
 * (in which addresses words may be stored to) is not looked up again; the freed slot is written over the one that
 * was reserved; and whatever is out of the ordinary is a tail call, so that no register has to be saved. No less
 * depends on how many misses have to be waited for one after the other: see pvi_slab_byte_of().
 */

/* Is it a word of the segment whose words were stored to last? */
static inline bool word_known(const struct pvi_thread *t, const void *word)
{
	uint64_t bytes = (uintptr_t) word - pvi_load(&t->words);

	/* A high number if it is not aligned. */
	return (bytes >> 3 | bytes << 61) < pvi_load(&t->nwords);
}

/* Is it a word of any? As words are known afterwards, what the lender's last slot says has to be true then: so there
 * is no lender. */
static inline bool word_found(struct pv_store *s, struct pvi_thread *t, const void *word)
{
	const struct pvi_segment *seg;

	pvi_thread_settle(t);
	if (word_known(t, word))
		return true;
	if (!word_ok(s, word))
		return false;
	seg = pvi_store_segment(s, (uintptr_t) word - s->base);
	__atomic_store_n(&t->nwords, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&t->words, s->base + seg->data_off, __ATOMIC_RELAXED);
	__atomic_store_n(&t->nwords, seg->data_bytes / 8, __ATOMIC_RELAXED);
	return true;
}

/* The page and slot byte of an object that may be freed. */
static inline bool freeable(struct pv_store *s, void *old, const struct pvi_page **page, uint8_t **byte)
{
	return pvi_heap_slot(s, old, page, byte) && **byte == PV_SLOT_LIVE;
}

/* Where the object is in its magazine if it was the last one reserved, else NULL. What is there is true if a word
 * is known, see pvi_thread. */
static inline struct pvi_held *lent(const struct pvi_magazine *lender, const void *object)
{
	struct pvi_held *held = lender->top;

	return pvi_likely(object == held->object && *held->byte == PV_SLOT_RESERVED) ? held : NULL;
}

/* What an intent consists of, beside the word. */
enum {
	LINKS = 1, /* an object becomes live */
	FREES = 2, /* one is freed */
	SAME = 4,  /* the word gets the object's address */
};

static inline __attribute__((always_inline)) void do_link(struct pvi_thread *t, unsigned int what, void *object,
							   uint8_t *made, void *word, uint64_t value, void *old,
							   uint8_t *gone)
{
	struct link_rec *link = &t->lane->link;
	uint64_t *commit = what & SAME ? &link->word_object : &link->word_value;

	/* Atomic, so that the compiler does not make one store of 16 bytes of the two, with more instructions. */
	__atomic_store_n(&link->object, (uintptr_t) object, __ATOMIC_RELAXED);
	__atomic_store_n(&link->old, (uintptr_t) old, __ATOMIC_RELAXED);
	if (!(what & SAME))
		link->value = value;
	pvi_lane_link_begin(commit, word);
	if (what & LINKS)
		__atomic_store_n(made, PV_SLOT_LIVE, __ATOMIC_RELEASE);
	__atomic_store_n((uint64_t *) word, value, __ATOMIC_RELEASE);
	if (what & FREES)
		__atomic_store_n(gone, PV_SLOT_HELD, __ATOMIC_RELEASE);
	pvi_lane_link_end(commit);
}

/* Any word, any object. */

static __attribute__((noinline)) int link_other(struct pv_store *s, void *object, void *word, uint64_t value)
{
	struct pv_action actions[] = {PV_LIVE(object), PV_STORE(word, value)};
	struct pvi_thread *t = pvi_thread_find(s);
	const struct pvi_page *page;
	uint8_t *made;

	if (!t || !word_found(s, t, word) || !pvi_heap_slot(s, object, &page, &made) ||
	    *made != PV_SLOT_RESERVED)
		return publish_any(s, actions, 2);
	do_link(t, LINKS, object, made, word, value, NULL, NULL);
	return 0;
}

static __attribute__((noinline)) int replace_other(struct pv_store *s, void *object, void *word,
						   void *old, uint64_t value)
{
	struct pv_action actions[] = {PV_LIVE(object), PV_STORE(word, value), PV_FREE(old)};
	struct pvi_thread *t = pvi_thread_find(s);
	const struct pvi_page *page_made, *page;
	uint8_t *made, *gone;

	if (!t || check_no_root(s, old) || !word_found(s, t, word) ||
	    !pvi_heap_slot(s, object, &page_made, &made) || *made != PV_SLOT_RESERVED ||
	    !freeable(s, old, &page, &gone))
		return publish_any(s, actions, 3);
	do_link(t, LINKS | FREES, object, made, word, value, old, gone);
	return pvi_heap_keep(s, t, page->bin, (struct pvi_held){old, gone});
}

static __attribute__((noinline)) int unlink_other(struct pv_store *s, void *word, uint64_t value, void *old)
{
	struct pv_action actions[] = {PV_STORE(word, value), PV_FREE(old)};
	struct pvi_thread *t = pvi_thread_find(s);
	const struct pvi_page *page;
	uint8_t *gone;

	if (!t || check_no_root(s, old) || !word_found(s, t, word) || !freeable(s, old, &page, &gone))
		return publish_any(s, actions, 2);
	do_link(t, FREES, NULL, NULL, word, value, old, gone);
	return pvi_heap_keep(s, t, page->bin, (struct pvi_held){old, gone});
}

/* The last object reserved, and a word of the segment where the last one was. */

int pv_link(struct pv_store *s, void *object, void *word)
{
	struct pvi_thread *t = pvi_tls_last;
	struct pvi_held *held;

	if (pvi_unlikely(pvi_load(&t->store) != s || !word_known(t, word)))
		return link_other(s, object, word, (uintptr_t) object);
	held = lent(t->lender, object);
	if (pvi_unlikely(!held))
		return link_other(s, object, word, (uintptr_t) object);
	do_link(t, LINKS | SAME, object, held->byte, word, (uintptr_t) object, NULL, NULL);
	pvi_thread_settle(t);
	return 0;
}

/* The old object is not of the same type and size as the last one reserved, which is the new one, or of a size whose
 * slot byte takes the page's descriptor to find. The arguments are what pv_replace() has in registers by then, most
 * of them in the same ones. */
static __attribute__((noinline)) int replace_across(struct pv_store *s, void *object, void *word, void *old,
						    struct pvi_thread *t, const struct pvi_page *page)
{
	struct pvi_magazine *lender = t->lender;
	struct pvi_held *held = lent(lender, object);
	uint8_t *gone;

	if (pvi_unlikely(!held || !pvi_heap_slot_in(page, old, &gone) || *gone != PV_SLOT_LIVE))
		return replace_other(s, object, word, old, (uintptr_t) object);
	do_link(t, LINKS | FREES | SAME, object, held->byte, word, (uintptr_t) object, old, gone);
	__atomic_store_n(&lender->top, held - 1, __ATOMIC_RELAXED);
	__atomic_store_n(&t->lender, &t->none, __ATOMIC_RELAXED);
	return pvi_heap_keep_settled(s, t, page->bin, (struct pvi_held){old, gone});
}

/* Can a slot of the magazine's class begin at this offset, and does its address say where its slot byte is? *slot: what
 * its number would be if all of the window were one slab. */
static inline bool may_be_slot(const struct pvi_magazine *m, uint64_t off, uint64_t *slot)
{
	/* Of an offset that is no multiple, or outside of the window, a high number. */
	*slot = off >> m->byte_shift | off << (-m->byte_shift & 63);
	return *slot < m->window_slots;
}

/* The old object is looked at first: what that takes is out of registers when the new one is, so that none has to be
 * saved. */
int pv_replace(struct pv_store *s, void *object, void *word, void *old)
{
	struct pvi_thread *t = pvi_tls_last;
	const struct pvi_page *page;
	struct pvi_magazine *lender;
	uint64_t off, slot;
	struct pvi_held *held;
	uint8_t *made, *gone;

	/* The next reserve hands out the slot that is freed here, and its owner fills it: that miss
	 * would stall the stores behind it. (replace-16-1024: 13.2 -> 19.4 million a second.) */
	__builtin_prefetch(old, 1);
	if (pvi_unlikely(pvi_load(&t->store) != s || check_no_root(s, old) || !word_known(t, word)))
		return replace_other(s, object, word, old, (uintptr_t) object);
	lender = t->lender;
	off = (uintptr_t) old - s->base;
	page = pvi_heap_page(s, off);
	if (pvi_acquire(&page->bin) != lender->bin || !may_be_slot(lender, off, &slot))
		return replace_across(s, object, word, old, t, page);
	gone = (uint8_t *) pvi_slab_byte((uintptr_t) old, slot, s->page_mask);
	held = lender->top;
	made = held->byte;
	if (pvi_unlikely(*gone != PV_SLOT_LIVE || object != held->object || *made != PV_SLOT_RESERVED))
		/* t->store is s, which is in no register any more. */
		return replace_other(pvi_load(&t->store), object, word, old, (uintptr_t) object);
	do_link(t, LINKS | FREES | SAME, object, made, word, (uintptr_t) object, old, gone);
	__atomic_store_n(&t->lender, &t->none, __ATOMIC_RELAXED);
	held->object = old;
	held->byte = gone;
	return 0;
}

int pv_unlink(struct pv_store *s, void *word, uint64_t value, void *old)
{
	struct pvi_thread *t = pvi_tls_last;
	const struct pvi_page *page;
	uint8_t *gone;

	__builtin_prefetch(old, 1);
	if (pvi_unlikely(pvi_load(&t->store) != s || check_no_root(s, old) ||
			 !freeable(s, old, &page, &gone) || !word_known(t, word)))
		return unlink_other(s, word, value, old);
	do_link(t, FREES, NULL, NULL, word, value, old, gone);
	return pvi_heap_keep(s, t, page->bin, (struct pvi_held){old, gone});
}

int pv_publish(struct pv_store *s, const struct pv_action *a, unsigned int n)
{
	if (n == 3 && a[0].op == PV_ACTION_LIVE && a[1].op == PV_ACTION_STORE &&
	    a[2].op == PV_ACTION_FREE)
		return replace_other(s, a[0].target, a[1].target, a[2].target, a[1].value);
	if (n == 2 && a[0].op == PV_ACTION_LIVE && a[1].op == PV_ACTION_STORE)
		return link_other(s, a[0].target, a[1].target, a[1].value);
	if (n == 2 && a[0].op == PV_ACTION_STORE && a[1].op == PV_ACTION_FREE)
		return unlink_other(s, a[0].target, a[0].value, a[1].target);
	return publish_any(s, a, n);
}

/* For transactions. */

int pvi_heap_find_live(struct pv_store *s, const void *p, struct pvi_object *o)
{
	int err = pvi_heap_find(s, p, o);

	if (err)
		return err;
	return pvi_heap_state(o) == PV_SLOT_LIVE ? 0 : wrong_state(o, p, "live");
}

int pvi_heap_word(struct pv_store *s, const void *p)
{
	return word_ok(s, p) ? 0 : no_word(s, p);
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

	if (pvi_heap_find(s, object, &o) == 0 && !o.byte)
		pvi_heap_extent_published(s, &o, object);
}
