/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Depots: where threads' magazines exchange slots. A thread whose magazine is full leaves half of it
 * here, one whose magazine is empty takes that over, and neither touches a slab or heap_lock. So
 * objects that one thread allocates and another frees go round in batches, at the price of one short
 * lock for each.
 *
 * Slots in a depot stay HELD in the arena, so a slab is not seen to be empty while some of its slots
 * are here. Before the store grows for want of pages, all depots, and the magazines of the
 * thread that needs them, are emptied into the slabs, and slabs that are empty then give their pages
 * away. That bounds what is held back: no more than what other threads have in their magazines.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

void pvi_depot_init(struct pvi_bin *bin)
{
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	/* Held for some ten nanoseconds: spin a little before going to sleep. */
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
	pthread_mutex_init(&bin->depot_lock, &attr);
	pthread_mutexattr_destroy(&attr);
}

static void batches_free(struct pvi_batch *b)
{
	while (b) {
		struct pvi_batch *next = b->next;

		free(b);
		b = next;
	}
}

void pvi_depot_free(struct pvi_bin *bins)
{
	for (uint32_t i = 0; bins && i < PVI_CLASSES; i++) {
		batches_free(bins[i].depot);
		batches_free(bins[i].spare);
		pthread_mutex_destroy(&bins[i].depot_lock);
	}
	free(bins);
}

/* An empty batch on top of the depot. */
static struct pvi_batch *batch_new(struct pvi_bin *bin)
{
	struct pvi_batch *b = bin->spare;

	if (b)
		bin->spare = b->next;
	else
		b = malloc(sizeof(*b));
	if (!b)
		return NULL;
	b->n = 0;
	b->next = bin->depot;
	__atomic_store_n(&bin->depot, b, __ATOMIC_RELAXED);
	return b;
}

bool pvi_depot_give(struct pvi_magazine *m, uint32_t count)
{
	struct pvi_bin *bin = m->depot;
	struct pvi_batch *b;

	pthread_mutex_lock(&bin->depot_lock);
	b = bin->depot;
	if (!b || b->n + count > PVI_BATCH_SLOTS)
		b = batch_new(bin);
	if (b) {
		for (uint32_t i = 0; i < count; i++)
			b->slots[b->n++] = m->slots[i].object;
	}
	pthread_mutex_unlock(&bin->depot_lock);
	if (!b)
		return false;
	m->n -= count;
	memmove(m->slots, m->slots + count, m->n * sizeof(m->slots[0]));
	return true;
}

bool pvi_depot_take(const struct pv_store *s, struct pvi_magazine *m)
{
	struct pvi_bin *bin = m->depot;
	struct pvi_batch *b;

	if (!__atomic_load_n(&bin->depot, __ATOMIC_RELAXED))
		return false;
	pthread_mutex_lock(&bin->depot_lock);
	b = bin->depot;
	if (b) {
		__atomic_store_n(&bin->depot, b->next, __ATOMIC_RELAXED);
		for (uint32_t i = 0; i < b->n; i++)
			m->slots[i] = (struct pvi_held){b->slots[i],
							pvi_page_byte(s, b->slots[i])};
		m->n = b->n;
		b->next = bin->spare;
		bin->spare = b;
	}
	pthread_mutex_unlock(&bin->depot_lock);
	return b != NULL;
}

uint64_t pvi_depot_slots(struct pvi_bin *bin)
{
	uint64_t n = 0;

	pthread_mutex_lock(&bin->depot_lock);
	for (const struct pvi_batch *b = bin->depot; b; b = b->next)
		n += b->n;
	pthread_mutex_unlock(&bin->depot_lock);
	return n;
}

/* Empty one depot into its slabs. */
static void drain(struct pv_store *s, struct pvi_thread *t, struct pvi_bin *bin)
{
	struct pvi_batch *all;

	pthread_mutex_lock(&bin->depot_lock);
	all = bin->depot;
	__atomic_store_n(&bin->depot, NULL, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&bin->depot_lock);
	for (struct pvi_batch *b = all; b; b = b->next)
		pvi_slab_return(s, t, b->slots, b->n);
	batches_free(all);
	pthread_mutex_lock(&bin->depot_lock);
	all = bin->spare;
	bin->spare = NULL;
	pthread_mutex_unlock(&bin->depot_lock);
	batches_free(all);
}

static void flush(struct pv_store *s, struct pvi_thread *t, struct pvi_magazine *m)
{
	while (m->n)
		pvi_slab_return(s, t, &m->slots[--m->n].object, 1);
}

void pvi_depot_leave(struct pv_store *s, struct pvi_thread *t)
{
	for (uint32_t i = 0; i < t->nbins; i++) {
		struct pvi_magazine *m = t->magazines[i];

		while (m->n) {
			uint32_t n = m->n < PVI_BATCH_SLOTS ? m->n : PVI_BATCH_SLOTS;

			if (!pvi_depot_give(m, n))
				flush(s, t, m);
		}
	}
}

void pvi_depot_drain(struct pv_store *s, struct pvi_thread *t)
{
	for (uint32_t i = 0; i < t->nbins; i++)
		if (t->magazines[i]->n)
			flush(s, t, t->magazines[i]);
	for (uint32_t type = 1; type <= s->index.ntypes; type++) {
		struct pvi_bin *bins = s->index.types[type].bins;

		for (uint32_t class = 0; bins && class < s->nclasses; class++) {
			if (__atomic_load_n(&bins[class].depot, __ATOMIC_RELAXED))
				drain(s, t, &bins[class]);
			pvi_slab_release_empty(s, t, &bins[class]);
		}
	}
}
