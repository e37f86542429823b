/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a thread holds of a store: a lane and magazines. Made at the thread's first call, given back
 * when the thread ends, so that thousands of threads over a store's life share a few lanes.
 *
 * A thread finds its state through a small thread-local table indexed by the store's slot in the
 * process. The state is the thread's until it ends: when the store is closed, it only becomes no store's, so that
 * a look at whose it is is all that a fast path needs. stores_lock protects that, and the table of open stores,
 * against a thread that ends meanwhile.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static struct pvi_thread no_thread;

_Thread_local struct pvi_thread *pvi_tls[PVI_STORES_MAX];
_Thread_local struct pvi_thread *pvi_tls_last = &no_thread;

/* No object, whatever address a caller passes: its byte says so. Never written, as the next. */
static uint8_t no_byte;
static struct pvi_held no_slot = {NULL, &no_byte};

/* Empty and full. */
#define NO_MAGAZINE {.top = &no_slot, .end = &no_slot, .slots = &no_slot}
static struct pvi_magazine no_magazine = NO_MAGAZINE;

static struct pvi_row no_row = {.magazines = {[0 ... PVI_ROW_TABLE - 1] = &no_magazine}};

static pthread_mutex_t stores_lock = PTHREAD_MUTEX_INITIALIZER;
static struct pv_store *stores[PVI_STORES_MAX];
static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;
static int exit_key_err;

/* Zeroed memory that shares no cache line, nor a pair of them, with that of another thread, which would
 * write to it as often. */
static void *lines_alloc(size_t bytes)
{
	size_t whole = (bytes + 127) / 128 * 128;
	void *p = aligned_alloc(128, whole);

	return p ? memset(p, 0, whole) : NULL;
}

/* On which the caller runs, from 1; 0: not known. The crash sweeps repeat what they do, wherever they run. */
static uint32_t processor(void)
{
#ifdef PVI_ONE_SHARD
	return 0;
#else
	return (uint32_t) (sched_getcpu() + 1);
#endif
}

/* Give slots and lane back. heap_lock is held. */
static void thread_leave(struct pv_store *s, struct pvi_thread *t)
{
	struct pvi_thread **link = &s->threads;

	pvi_depot_leave(s, t);
	s->lane_uses[t->lane_number] = (struct pvi_lane_use){.processor = processor()};
	while (*link != t)
		link = &(*link)->next;
	*link = t->next;
}

static void free_parts(struct pvi_thread *t)
{
	for (uint32_t i = 0; i < t->nbins; i++)
		if (t->magazines[i] != &no_magazine)
			free(t->magazines[i]);
	for (uint32_t i = 0; i < t->nrows; i++)
		if (t->rows[i] != &no_row)
			free(t->rows[i]);
	free(t->magazines);
	free(t->rows);
	free(t->tx.actions);
}

static void thread_exit(void *unused)
{
	pthread_mutex_lock(&stores_lock);
	for (uint32_t i = 0; i < PVI_STORES_MAX; i++) {
		struct pvi_thread *t = pvi_tls[i];

		if (!t)
			continue;
		if (t->store) {
			pvi_tx_leave(t->store, t);
			pvi_thread_unmake(t->store, t);
		} else {
			free(t);
		}
		pvi_tls[i] = NULL;
	}
	pvi_tls_last = &no_thread;
	pthread_mutex_unlock(&stores_lock);
}

static void make_exit_key(void)
{
	exit_key_err = pthread_key_create(&exit_key, thread_exit);
}

int pvi_thread_store_open(struct pv_store *s)
{
	pthread_once(&exit_once, make_exit_key);
	if (exit_key_err)
		return pvi_fail(exit_key_err, "no thread-specific key left in this process");
	pthread_mutex_lock(&stores_lock);
	for (uint32_t i = 0; i < PVI_STORES_MAX; i++) {
		if (stores[i])
			continue;
		stores[i] = s;
		s->slot = i;
		pthread_mutex_unlock(&stores_lock);
		return 0;
	}
	pthread_mutex_unlock(&stores_lock);
	return pvi_fail(-ENOSPC, "%u stores are open in this process", PVI_STORES_MAX);
}

void pvi_thread_store_close(struct pv_store *s)
{
	pthread_mutex_lock(&stores_lock);
	if (stores[s->slot] == s)
		stores[s->slot] = NULL;
	while (s->threads) {
		struct pvi_thread *t = s->threads;

		s->threads = t->next;
		free_parts(t);
		if (t->found)
			__atomic_store_n(&t->store, NULL, __ATOMIC_RELAXED);
		else
			free(t);
	}
	pthread_mutex_unlock(&stores_lock);
}

/* The free lane whose last thread ended on this processor: what that left in its shard are slots whose bytes
 * this processor's cache may have, and no other one writes to. Else the first free one. (larson with two threads,
 * once they had swapped lanes: 83 -> 122 million a second.) */
static uint32_t choose_lane(const struct pv_store *s)
{
	uint32_t here = processor(), first = s->nlanes;

	for (uint32_t i = 0; i < s->nlanes; i++) {
		if (s->lane_uses[i].taken)
			continue;
		if (here && s->lane_uses[i].processor == here)
			return i;
		if (first == s->nlanes)
			first = i;
	}
	return first;
}

static int take_lane(struct pv_store *s, uint32_t *number)
{
	uint32_t i = choose_lane(s);
	int err;

	if (i == s->nlanes)
		return pvi_fail(-EUSERS, "all %u lanes are in use by threads (pv_options.lanes)",
				s->nlanes);
	err = pvi_segment_commit_lane(s, i);
	if (err)
		return err;
	s->lane_uses[i].taken = true;
	*number = i;
	return 0;
}

void pvi_thread_forget(struct pv_store *s)
{
	for (struct pvi_thread *t = s->threads; t; t = t->next)
		__atomic_store_n(&t->nwords, 0, __ATOMIC_RELAXED);
}

int pvi_thread_make(struct pv_store *s, struct pvi_thread **out)
{
	struct pvi_thread *t = lines_alloc(sizeof(*t));
	int err;

	if (!t)
		return pvi_fail(-ENOMEM, "no memory for a thread's state");
	pthread_mutex_lock(&s->heap_lock);
	err = take_lane(s, &t->lane_number);
	if (err) {
		pthread_mutex_unlock(&s->heap_lock);
		free(t);
		return err;
	}
	t->none = (struct pvi_magazine)NO_MAGAZINE;
	t->lender = &t->none;
	t->last = &t->none;
	t->store = s;
	t->lane = &s->lanes[t->lane_number];
	pvi_tx_init(s, t);
	t->next = s->threads;
	s->threads = t;
	pthread_mutex_unlock(&s->heap_lock);
	*out = t;
	return 0;
}

void pvi_thread_unmake(struct pv_store *s, struct pvi_thread *t)
{
	pthread_mutex_lock(&s->heap_lock);
	thread_leave(s, t);
	pthread_mutex_unlock(&s->heap_lock);
	free_parts(t);
	free(t);
}

int pvi_thread_enter(struct pv_store *s, struct pvi_thread **out)
{
	int err;

	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	/* Any non-null value: the destructor uses pvi_tls. */
	err = pthread_setspecific(exit_key, &exit_key);
	if (err)
		return pvi_fail(err, "pthread_setspecific: %s", strerror(err));
	/* There may be the one of an earlier store in the same slot. */
	if (pvi_tls_last == pvi_tls[s->slot])
		pvi_tls_last = &no_thread;
	free(pvi_tls[s->slot]);
	pvi_tls[s->slot] = NULL;
	err = pvi_thread_make(s, out);
	if (err)
		return err;
	(*out)->found = true;
	pvi_tls[s->slot] = *out;
	return 0;
}

/* Under heap_lock whoever wants to know (stats.c) may follow a thread's list of magazines: it is changed
 * under it. */
static bool more_bins(struct pv_store *s, struct pvi_thread *t, uint32_t nbins)
{
	struct pvi_magazine **old = t->magazines, **bigger = calloc(nbins, sizeof(*bigger));

	if (!bigger)
		return false;
	for (uint32_t i = 0; i < nbins; i++)
		bigger[i] = i < t->nbins ? old[i] : &no_magazine;
	pthread_mutex_lock(&s->heap_lock);
	t->magazines = bigger;
	t->nbins = nbins;
	pthread_mutex_unlock(&s->heap_lock);
	free(old);
	return true;
}

/* The row of a type, for whose bins there is room. */
static struct pvi_row *row_of(struct pvi_thread *t, uint32_t type)
{
	uint32_t nrows = t->nbins >> PV_PAGE_CLASS_BITS;
	struct pvi_row **bigger;

	if (t->nrows < nrows) {
		bigger = realloc(t->rows, nrows * sizeof(struct pvi_row *));
		if (!bigger)
			return NULL;
		t->rows = bigger;
		while (t->nrows < nrows)
			t->rows[t->nrows++] = &no_row;
	}
	if (t->rows[type] == &no_row) {
		struct pvi_row *row = lines_alloc(sizeof(*row));

		if (!row)
			return NULL;
		*row = no_row;
		t->rows[type] = row;
	}
	return t->rows[type];
}

/* Slots that a magazine takes at first: a few small ones, or a large one. Each refill takes twice as many. */
static uint32_t first_refill(uint32_t slot_bytes)
{
	uint32_t n = PVI_FIRST_REFILL_BYTES / slot_bytes;

	return n < 1 ? 1 : n > PVI_FIRST_REFILL ? PVI_FIRST_REFILL : n;
}

static struct pvi_magazine *magazine_new(uint32_t limit)
{
	/* A batch may be more than it is to hold. */
	uint32_t most = limit > PVI_BATCH_SLOTS ? limit : PVI_BATCH_SLOTS;
	struct pvi_magazine *m = lines_alloc(sizeof(*m) + (1 + most) * sizeof(m->slots[0]));

	if (!m)
		return NULL;
	m->slots = m->top = (struct pvi_held *) (void *) (m + 1);
	m->end = m->slots + limit;
	m->slots[0] = no_slot;
	return m;
}

/* Which sizes need no more than this magazine: those of which it is known that they are not too small. */
static void enter_row(const struct pv_store *s, const struct pvi_magazine *m, struct pvi_row *row, uint32_t class)
{
	for (uint32_t i = 1; i < PVI_ROW_TABLE; i++)
		if (s->class_of[(i + 1) / 2] == class && 8 * i - 7 >= m->min_bytes && !m->flexible)
			row->magazines[i] = (struct pvi_magazine *) m;
}

struct pvi_magazine *pvi_thread_magazine(struct pv_store *s, struct pvi_thread *t, uint32_t type,
					 uint32_t class)
{
	uint32_t bin = pvi_bin_number(type, class), nbins = pvi_bin_number(type + 1, 0);
	struct pvi_magazine *m;
	struct pvi_depot *depot;
	struct pvi_row *row;

	if (bin >= t->nbins && !more_bins(s, t, nbins))
		return NULL;
	row = row_of(t, type);
	if (!row)
		return NULL;
	m = t->magazines[bin];
	if (m == &no_magazine) {
		pthread_mutex_lock(&s->heap_lock);
		depot = pvi_slab_depot(s, type, class);
		pthread_mutex_unlock(&s->heap_lock);
		m = depot ? magazine_new(s->classes[class].magazine) : NULL;
		if (!m)
			return NULL;
		m->want = first_refill(s->classes[class].slot_bytes);
		m->bin = bin;
		m->byte_shift = s->classes[class].byte_shift;
		m->window_slots = m->byte_shift ? s->window_bytes >> m->byte_shift : 0;
		m->min_bytes = s->index.types[type].bytes;
		m->flexible = s->index.types[type].flexible;
		m->depot = depot;
		m->shard = pvi_thread_shard(t);
		pthread_mutex_lock(&s->heap_lock);
		t->magazines[bin] = m;
		pthread_mutex_unlock(&s->heap_lock);
		enter_row(s, m, row, class);
	}
	return m;
}
