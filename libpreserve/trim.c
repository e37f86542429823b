/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Giving memory back: what threads and depots hold ready becomes free slots, slabs without objects become
 * free pages, the last segments leave the store if nothing is in them, and free pages lose their memory.
 *
 * A segment leaves in the order in which it came, reversed: the index names it no more; the handover
 * backend drops it; it is unmapped. A crash before the last two leaves a descriptor that the index does
 * not name, which the next attach drops.
 */
#include <errno.h>

#include "handover.h"
#include "internal.h"

static bool empty(const struct pvi_segment *seg)
{
	return seg->loaded && seg->free_pages == seg->npages - seg->first_page;
}

/* The last segment leaves. handover_lock is held, so that a prepare at the same time sees it on both sides
 * or on neither. */
static int leave(struct pv_store *s, uint32_t number)
{
	uint64_t generation;
	int err;

	pthread_mutex_lock(&s->index_lock);
	s->index.nsegments = number;
	err = pvi_index_stage(&s->index, 0, &generation);
	if (err)
		s->index.nsegments = number + 1;
	else
		pvi_index_commit(&s->index, generation);
	pthread_mutex_unlock(&s->index_lock);
	if (err)
		return err;
	pvi_segment_withdraw(s, number);
	/* If it does not work, the next attach does it. */
	s->handover->ops->drop(s->handover, number + 1ull);
	return 0;
}

int pv_trim(struct pv_store *s, uint64_t *bytes)
{
	struct pvi_thread *t;
	uint64_t before, after;
	int err = pvi_thread_get(s, &t);

	if (err)
		return err;
	pthread_mutex_lock(&s->heap_lock);
	before = pvi_backing_bytes(s);
	pvi_depot_drain(s, t);
	pvi_slab_reclaim_cold(s, t, UINT32_MAX);
	while (!err && s->nsegments > 1 && empty(&s->segments[s->nsegments - 1])) {
		uint32_t number = s->nsegments - 1;

		pthread_mutex_lock(&s->handover_lock);
		err = leave(s, number);
		pthread_mutex_unlock(&s->handover_lock);
		if (!err)
			pvi_segment_abandon(s, number);
	}
	for (uint32_t i = 0; i < s->nsegments; i++) {
		if (pvi_page_load(s, &s->segments[i]) ||
		    !pvi_backing_punch(s, &s->segments[i], true))
			break;
	}
	after = pvi_backing_bytes(s);
	pthread_mutex_unlock(&s->heap_lock);
	if (bytes && !err)
		*bytes = before > after ? before - after : 0;
	return err;
}
