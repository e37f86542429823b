/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Moving objects, from the beginning to the end in the process that does it; see move.h. What is redone after
 * a crash is in move_redo.c.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <preserve/retire.h>

#include "internal.h"
#include "move.h"

#define RECS_FIRST 1024u
#define RECS_MAX   (UINT32_MAX - 1) /* pvi_move.first counts in 32 bits */

/* ---- begin ---- */

static int no_transactions(const struct pv_store *s)
{
	for (const struct pvi_thread *t = s->threads; t; t = t->next)
		if (t->tx.depth)
			return pvi_fail(-EBUSY, "the thread with lane %u has a transaction open",
					t->lane_number);
	return 0;
}

static int reserved(const struct pvi_segment *seg, uint32_t page, const char *what)
{
	return pvi_fail(-EBUSY, "segment %u: page %u: %s is reserved: publish or cancel it first",
			seg->number, page, what);
}

/* A warm slab whose slots are free or live? */
static int slab_quiet(const struct pv_store *s, const struct pvi_segment *seg, uint32_t page,
		      uint64_t rec)
{
	const struct pvi_slab *d = &seg->slabs[page];
	const uint8_t *bytes = pvi_slab_bytes(s, seg, page, rec);

	if (d->state != PVI_SLAB_PARTIAL && d->state != PVI_SLAB_FULL)
		return pvi_fail(-EBADMSG, "segment %u: page %u: damaged slab (see pv_check)",
				seg->number, page);
	if (memchr(bytes, PV_SLOT_RESERVED, s->classes[pvi_rec_class(rec)].nslots))
		return reserved(seg, page, "an object of this slab");
	return 0;
}

/* Is everything in the segment sound, and in nobody's hands? */
static int segment_quiet(const struct pv_store *s, const struct pvi_segment *seg)
{
	for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);
		int err = 0;

		n = 1;
		if (pvi_page_kind(rec) == PV_PAGE_FREE) {
			if (seg->slabs[i].state == PVI_EXTENT_HELD)
				return reserved(seg, i, "a large object");
			continue;
		}
		if (!pvi_page_run_sound(s, seg, i, rec))
			return pvi_fail(-EBADMSG, "segment %u: page %u is damaged (see pv_check)",
					seg->number, i);
		n = pvi_page_span(s, rec);
		if (pvi_page_kind(rec) == PV_PAGE_SLAB)
			err = slab_quiet(s, seg, i, rec);
		else if (pvi_rec_extent_type(rec) > s->index.ntypes)
			err = pvi_fail(-EBADMSG, "segment %u: page %u: extent of unknown type %u",
				       seg->number, i, pvi_rec_extent_type(rec));
		if (err)
			return err;
	}
	return 0;
}

/* Under heap_lock: nothing is in anybody's hands, and all of the store is known to this process. */
static int quiet(struct pv_store *s, struct pvi_thread *t)
{
	int err = no_transactions(s);

	if (err)
		return err;
	pvi_depot_drain_all(s, t);
	pvi_slab_reclaim_cold(s, t, UINT32_MAX);
	for (uint32_t i = 0; i < s->nsegments && !err; i++) {
		err = pvi_page_load(s, &s->segments[i]);
		if (!err && !s->segments[i].sealed)
			err = segment_quiet(s, &s->segments[i]);
	}
	return err;
}

int pvi_move_begin(struct pv_store *s, uint32_t purpose, struct pvi_move **out)
{
	struct pvi_thread *t;
	struct pvi_move *m;
	int err = pvi_thread_get(s, &t);

	if (!err)
		err = pv_retire_wait(s);
	if (err)
		return err;
	pthread_mutex_lock(&s->heap_lock);
	err = quiet(s, t);
	pthread_mutex_unlock(&s->heap_lock);
	if (err)
		return err;
	m = calloc(1, sizeof(*m));
	if (!m)
		return pvi_fail(-ENOMEM, "no memory for a move");
	m->s = s;
	m->t = t;
	m->purpose = purpose;
	*out = m;
	return 0;
}

/* ---- pairs ---- */

/* The page map entry, as it is or will be, of the head page of an object. */
static uint64_t head_rec(const struct pv_store *s, const void *p, const struct pvi_object *o)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base), rec;
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	uint32_t page = (uint32_t) ((off - seg->off) >> s->page_shift);

	if (!o->byte)
		return o->rec;
	rec = pvi_rec_load(seg->map, page);
	return pvi_rec_load(seg->map, page - pvi_rec_back(rec));
}

static int more_room(struct pvi_move *m)
{
	uint64_t room = m->room ? 2 * m->room : RECS_FIRST;
	struct move_rec *bigger;

	if (m->n < m->room)
		return 0;
	bigger = room <= RECS_MAX ? realloc(m->recs, room * sizeof(*m->recs)) : NULL;
	if (!bigger)
		return pvi_fail(-ENOMEM, "no memory to note %" PRIu64 " objects that move", room);
	m->recs = bigger;
	m->room = room;
	return 0;
}

int pvi_move_add(struct pvi_move *m, const void *old, void *fresh)
{
	struct pv_store *s = m->s;
	struct pvi_object from, to;
	struct action_rec unused;
	int err = pvi_seal_refuse(s, old);

	if (!err)
		err = more_room(m);
	if (!err)
		err = pvi_heap_find_live(s, old, &from);
	if (!err)
		err = pvi_heap_resolve(s, &PV_LIVE(fresh), &unused, &to);
	if (err)
		return err;
	m->recs[m->n++] = (struct move_rec){
		.old_off = (uint64_t) ((uintptr_t) old - s->base),
		.new_off = (uint64_t) ((uintptr_t) fresh - s->base),
		.old_rec = head_rec(s, old, &from),
		.new_rec = head_rec(s, fresh, &to),
	};
	return 0;
}

/* ---- the end ---- */

static void free_tables(struct pvi_move *m)
{
	for (uint32_t i = 0; i < PV_MOVE_TABLES; i++)
		if (m->tables[i])
			pv_cancel(m->s, m->tables[i]);
}

static void done(struct pvi_move *m)
{
	free_tables(m);
	pvi_move_free(m);
	free(m);
}

void pvi_move_cancel(struct pvi_move *m)
{
	struct pv_store *s = m->s;

	for (uint64_t i = 0; i < m->n; i++)
		pv_cancel(s, (uint8_t *) s->base + m->recs[i].new_off);
	pthread_mutex_lock(&s->heap_lock);
	pvi_slab_reopen(s);
	pthread_mutex_unlock(&s->heap_lock);
	done(m);
}

static struct pvi_slab *descriptor(struct pv_store *s, uint64_t off, struct pvi_segment **seg,
				   uint32_t *page)
{
	*seg = pvi_store_segment(s, off);
	*page = (uint32_t) ((off - (*seg)->off) >> s->page_shift);
	return &(*seg)->slabs[*page];
}

/* What the process knows of the heap follows what was redone. The tables are void. */
static void settle(struct pvi_move *m)
{
	struct pv_store *s = m->s;
	struct pvi_segment *seg;
	uint32_t page;

	pvi_slab_reopen(s);
	for (uint64_t i = 0; i < m->n; i++) {
		const struct move_rec *r = &m->recs[i];
		void *old = (uint8_t *) s->base + r->old_off;

		if (pvi_page_kind(r->new_rec) == PV_PAGE_EXTENT)
			descriptor(s, r->new_off, &seg, &page)->state = PVI_EXTENT_LIVE;
		if (pvi_page_kind(r->old_rec) == PV_PAGE_EXTENT) {
			descriptor(s, r->old_off, &seg, &page)->state = PVI_SLAB_NONE;
			pvi_page_free(s, seg, page, pvi_rec_extent_pages(r->old_rec));
		} else {
			pvi_slab_return(s, m->t, &old, 1);
		}
	}
	pvi_thread_forget(s);
}

/* Put an index in force that names the tables. index_lock. */
static int commit(struct pvi_move *m)
{
	struct pvi_index *idx = &m->s->index;
	uint64_t generation;
	int err = pvi_index_make_sure(idx);

	if (!err)
		err = pvi_index_stage(idx, 0, &generation);
	if (err)
		return err;
	pvi_index_commit(idx, generation);
	pvi_move_redo(m);
	/* It is smaller than the one in force, and both slots have their memory. Should the kernel refuse all the
	 * same, nobody may go on with this store: the next process finishes the move. */
	if (pvi_index_stage(idx, 0, &generation))
		abort();
	pvi_index_commit(idx, generation);
	free(idx->spare);
	idx->spare = NULL;
	return 0;
}

int pvi_move_commit(struct pvi_move *m)
{
	struct pv_store *s = m->s;
	int err = 0;

	if (m->n) {
		err = pvi_move_settle(m);
		if (!err)
			err = pvi_move_write_tables(m);
	}
	if (err || !m->n) {
		pvi_move_cancel(m);
		return err;
	}
	pvi_retire_pause(s);
	pthread_mutex_lock(&s->heap_lock);
	pthread_mutex_lock(&s->index_lock);
	err = commit(m);
	pthread_mutex_unlock(&s->index_lock);
	if (!err)
		settle(m);
	pthread_mutex_unlock(&s->heap_lock);
	pvi_retire_resume(s);
	if (!err) {
		done(m);
		return 0;
	}
	memset(&s->index.move, 0, sizeof(s->index.move));
	pvi_move_cancel(m);
	return err;
}
