/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Depots: where threads' magazines exchange slots. A thread whose magazine is full leaves half of it
 * here, one whose magazine is empty takes that over, and neither touches a slab or heap_lock. So
 * objects that one thread allocates and another frees go round in batches, at the price of one short
 * lock for each.
 *
 * A depot has a few shards, each with a lock of its own. A thread leaves batches in the shard of its lane
 * and looks there first, so that it gets back what it had, which may still be in its cache; in those of others
 * only for what they did not allocate themselves. (threadtest with two threads: 19 million a second with one shard,
 * most of the time waiting for slot bytes that the other processor had.)
 *
 * Slots in a depot stay HELD in the arena, so a slab is not seen to be empty while some of its slots
 * are here. Before the store grows for want of pages, or takes pages while a quarter
 * of what it uses lies in depots, all depots, and the magazines of the
 * thread that needs them, are emptied into the slabs, and slabs that are empty then give their pages
 * away. That bounds what is held back: no more than what other threads have in their magazines.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

struct pvi_depot *pvi_depot_new(uint32_t slot_bytes, uint64_t *held)
{
	struct pvi_depot *shards =
		aligned_alloc(_Alignof(struct pvi_depot), PVI_SHARDS * sizeof(*shards));
	pthread_mutexattr_t attr;

	if (!shards)
		return NULL;
	pthread_mutexattr_init(&attr);
	/* Held for some ten nanoseconds: spin a little before going to sleep. */
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
	for (uint32_t i = 0; i < PVI_SHARDS; i++) {
		shards[i] = (struct pvi_depot){.slot_bytes = slot_bytes, .held = held};
		pthread_mutex_init(&shards[i].lock, &attr);
	}
	pthread_mutexattr_destroy(&attr);
	return shards;
}

static void batches_free(struct pvi_batch *b)
{
	while (b) {
		struct pvi_batch *next = b->next;

		free(b);
		b = next;
	}
}

void pvi_depot_free(struct pvi_depot *shards)
{
	for (uint32_t i = 0; shards && i < PVI_SHARDS; i++) {
		batches_free(shards[i].full);
		batches_free(shards[i].spare);
		pthread_mutex_destroy(&shards[i].lock);
	}
	free(shards);
}

/* An empty batch on top of a shard. */
static struct pvi_batch *batch_new(struct pvi_depot *d)
{
	struct pvi_batch *b = d->spare;

	if (b)
		d->spare = b->next;
	else
		b = malloc(sizeof(*b));
	if (!b)
		return NULL;
	b->n = 0;
	b->next = d->full;
	__atomic_store_n(&d->full, b, __ATOMIC_RELAXED);
	return b;
}

static void count_held(const struct pvi_depot *d, int64_t slots)
{
	__atomic_fetch_add(d->held, (uint64_t) (slots * d->slot_bytes), __ATOMIC_RELAXED);
}

bool pvi_depot_give(struct pvi_magazine *m, uint32_t count)
{
	struct pvi_depot *d = &m->depot[m->shard];
	struct pvi_batch *b;

	pthread_mutex_lock(&d->lock);
	b = d->full;
	if (!b || b->n + count > PVI_BATCH_SLOTS)
		b = batch_new(d);
	if (b) {
		for (uint32_t i = 0; i < count; i++)
			b->slots[b->n++] = m->slots[1 + i].object;
		__atomic_store_n(&d->nslots, d->nslots + count, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&d->lock);
	if (!b)
		return false;
	count_held(d, count);
	__atomic_store_n(&m->top, m->top - count, __ATOMIC_RELAXED);
	memmove(m->slots + 1, m->slots + 1 + count, pvi_magazine_slots(m) * sizeof(m->slots[0]));
	return true;
}

static bool take(const struct pv_store *s, struct pvi_magazine *m, struct pvi_depot *d)
{
	struct pvi_batch *b;

	if (!__atomic_load_n(&d->full, __ATOMIC_RELAXED))
		return false;
	pthread_mutex_lock(&d->lock);
	b = d->full;
	if (b) {
		__atomic_store_n(&d->full, b->next, __ATOMIC_RELAXED);
		__atomic_store_n(&d->nslots, d->nslots - b->n, __ATOMIC_RELAXED);
		for (uint32_t i = 0; i < b->n; i++)
			m->slots[1 + i] = (struct pvi_held){b->slots[i],
							    pvi_page_byte(s, b->slots[i])};
		__atomic_store_n(&m->top, m->slots + b->n, __ATOMIC_RELAXED);
		b->next = d->spare;
		d->spare = b;
	}
	pthread_mutex_unlock(&d->lock);
	if (b)
		count_held(d, -(int64_t) pvi_magazine_slots(m));
	return b != NULL;
}

/* Has it slots that threads of other shards got from slabs? */
static bool has_foreign(const struct pvi_depot *d)
{
	return __atomic_load_n(&d->nslots, __ATOMIC_RELAXED) >
	       __atomic_load_n(&d->refilled, __ATOMIC_RELAXED);
}

/* From another shard only if that one has more than its own: who frees what others allocate has. What its threads
 * allocated they are about to allocate again; if others took that, the slots of two processors would be mixed for
 * good, and both would write to the same lines of slot bytes. (shbench with two threads: 23 to 70 million a
 * second, now 80 to 97; threadtest: 33 to 79, now 62 to 80.) */
bool pvi_depot_take(const struct pv_store *s, struct pvi_magazine *m)
{
	if (take(s, m, &m->depot[m->shard]))
		return true;
	for (uint32_t i = 1; i < PVI_SHARDS; i++) {
		struct pvi_depot *d = &m->depot[(m->shard + i) % PVI_SHARDS];

		if (has_foreign(d) && take(s, m, d))
			return true;
	}
	return false;
}

void pvi_depot_refilled(struct pvi_magazine *m)
{
	struct pvi_depot *own = &m->depot[m->shard];

	__atomic_store_n(&own->refilled, own->refilled + pvi_magazine_slots(m), __ATOMIC_RELAXED);
}

uint64_t pvi_depot_slots(struct pvi_depot *shards)
{
	uint64_t n = 0;

	for (uint32_t i = 0; shards && i < PVI_SHARDS; i++)
		n += __atomic_load_n(&shards[i].nslots, __ATOMIC_RELAXED);
	return n;
}

/* Empty a shard into its slabs. */
static void drain(struct pv_store *s, struct pvi_thread *t, struct pvi_depot *d)
{
	struct pvi_batch *full, *spare;

	__atomic_store_n(&d->refilled, 0, __ATOMIC_RELAXED);
	if (!__atomic_load_n(&d->full, __ATOMIC_RELAXED))
		return;
	pthread_mutex_lock(&d->lock);
	full = d->full;
	spare = d->spare;
	__atomic_store_n(&d->full, NULL, __ATOMIC_RELAXED);
	__atomic_store_n(&d->nslots, 0, __ATOMIC_RELAXED);
	d->spare = NULL;
	pthread_mutex_unlock(&d->lock);
	for (struct pvi_batch *b = full; b; b = b->next) {
		count_held(d, -(int64_t) b->n);
		pvi_slab_return(s, t, b->slots, b->n);
	}
	batches_free(full);
	batches_free(spare);
}

static void flush(struct pv_store *s, struct pvi_thread *t, struct pvi_magazine *m)
{
	while (m->top > m->slots) {
		void *object = m->top->object;

		__atomic_store_n(&m->top, m->top - 1, __ATOMIC_RELAXED);
		pvi_slab_return(s, t, &object, 1);
	}
}

void pvi_depot_leave(struct pv_store *s, struct pvi_thread *t)
{
	pvi_thread_settle(t);
	for (uint32_t i = 0; i < t->nbins; i++) {
		struct pvi_magazine *m = t->magazines[i];

		while (m->top > m->slots) {
			uint32_t n = pvi_magazine_slots(m);

			n = n < PVI_BATCH_SLOTS ? n : PVI_BATCH_SLOTS;

			if (!pvi_depot_give(m, n))
				flush(s, t, m);
		}
	}
}

/* Empty the magazines of a thread into their slabs; `t` is the calling one, which may need its lane. */
static void flush_all(struct pv_store *s, struct pvi_thread *t, struct pvi_thread *of)
{
	pvi_thread_settle(of);
	for (uint32_t i = 0; i < of->nbins; i++)
		if (pvi_magazine_slots(of->magazines[i]))
			flush(s, t, of->magazines[i]);
}

void pvi_depot_drain_all(struct pv_store *s, struct pvi_thread *t)
{
	for (struct pvi_thread *other = s->threads; other; other = other->next)
		if (other != t)
			flush_all(s, t, other);
	pvi_depot_drain(s, t);
}

void pvi_depot_drain(struct pv_store *s, struct pvi_thread *t)
{
	flush_all(s, t, t);
	for (uint32_t type = 1; type <= s->index.ntypes; type++) {
		struct pvi_bin *bins = s->index.types[type].bins;

		for (uint32_t class = 0; bins && class < s->nclasses; class++) {
			for (uint32_t i = 0; bins[class].depot && i < PVI_SHARDS; i++)
				drain(s, t, &bins[class].depot[i]);
			pvi_slab_release_empty(s, t, &bins[class]);
		}
	}
}
