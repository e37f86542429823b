/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The part of a move that is done again after a crash: new objects become live, every reference to an old
 * object is made to name the new one, old objects become free. It goes by the arena and the records alone, so
 * that it is the same for the process that moves and for pv_open(), which has looked at nothing yet.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "move.h"
#include "typemap.h"

/* ---- finding a record ---- */

static uint64_t object_bytes(const struct pv_store *s, uint64_t rec)
{
	return pvi_page_kind(rec) == PV_PAGE_SLAB
		       ? s->classes[pvi_rec_class(rec)].slot_bytes
		       : (uint64_t) pvi_rec_extent_pages(rec) << s->page_shift;
}

uint64_t pvi_move_target(const struct pvi_move *m, uint64_t off)
{
	const struct pvi_segment *seg = pvi_store_segment(m->s, off);
	const uint32_t *first = seg ? m->first[seg->number] : NULL;
	const struct move_rec *r;
	uint32_t page, from, to;

	if (!first || off - seg->off >= seg->bytes)
		return 0;
	page = (uint32_t) ((off - seg->off) >> m->s->page_shift);
	/* The last record that begins at or before off: in this page, or the last one before it. */
	from = first[page];
	to = first[page + 1];
	while (from < to) {
		uint32_t middle = from + (to - from) / 2;

		if (m->recs[middle].old_off <= off)
			from = middle + 1;
		else
			to = middle;
	}
	if (!from)
		return 0;
	r = &m->recs[from - 1];
	return off - r->old_off < object_bytes(m->s, r->old_rec) ? r->new_off + (off - r->old_off) : 0;
}

static int by_old(const void *a, const void *b)
{
	const struct move_rec *x = a, *y = b;

	return x->old_off < y->old_off ? -1 : x->old_off > y->old_off;
}

/* How many records lie before each page of a segment that has some: `from` is the number of the first. */
static int index_segment(struct pvi_move *m, const struct pvi_segment *seg, uint64_t *from)
{
	uint32_t *first, i = (uint32_t) *from;

	if (i == m->n || m->recs[i].old_off >= seg->off + seg->bytes)
		return 0;
	first = malloc((seg->npages + 1) * sizeof(*first));
	if (!first)
		return pvi_fail(-ENOMEM, "no memory to find the objects that move");
	m->first[seg->number] = first;
	for (uint32_t page = 0; page <= seg->npages; page++) {
		uint64_t off = seg->off + ((uint64_t) page << m->s->page_shift);

		while (i < m->n && m->recs[i].old_off < off)
			i++;
		first[page] = i;
	}
	*from = i;
	return 0;
}

int pvi_move_settle(struct pvi_move *m)
{
	uint64_t from = 0;
	int err = 0;

	for (uint64_t i = 1; i < m->n; i++) {
		if (m->recs[i - 1].old_off < m->recs[i].old_off)
			continue;
		qsort(m->recs, m->n, sizeof(*m->recs), by_old);
		break;
	}
	for (uint64_t i = 1; i < m->n; i++)
		if (m->recs[i - 1].old_off == m->recs[i].old_off)
			return pvi_fail(-EINVAL, "the object at offset 0x%" PRIx64 " is to move twice",
					m->recs[i].old_off);
	m->first = calloc(PVI_SEGMENTS_MAX, sizeof(*m->first)); /* the tables may take a segment more */
	if (!m->first)
		return pvi_fail(-ENOMEM, "no memory to find the objects that move");
	for (uint32_t i = 0; i < m->s->nsegments && !err; i++)
		err = index_segment(m, &m->s->segments[i], &from);
	return err;
}

void pvi_move_free(struct pvi_move *m)
{
	for (uint32_t i = 0; m->first && i < PVI_SEGMENTS_MAX; i++)
		free(m->first[i]);
	free(m->first);
	free(m->recs);
	m->first = NULL;
	m->recs = NULL;
	m->n = 0;
}

/* ---- references ---- */

struct visit;
/** For a word at `at` that names something in the store, at this offset: not 0 ends the walk. */
typedef int visit_fn(struct visit *v, uint8_t *at, const struct pvi_field *f, uint64_t word, uint64_t off);

struct visit {
	const struct pvi_move *m;
	visit_fn *fn;
	const struct pvi_type *type; /* of the object that is looked at */
	const uint8_t *object;
};

/* Where a word would be if the store were mapped where its pointers belong. */
static uint64_t self_of(const struct pv_store *s, const uint8_t *at)
{
	return s->index.base + ((uintptr_t) at - s->base);
}

static int visit_word(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	struct visit *v = ctx;
	const struct pv_store *s = v->m->s;
	uint64_t word = __atomic_load_n((const uint64_t *) (const void *) at, __ATOMIC_RELAXED);
	uint64_t names = pvi_field_names(f, word, self_of(s, at), s->index.base);

	if (!names || names - s->index.base >= s->window_bytes)
		return 0;
	return v->fn(v, at, f, word, names - s->index.base);
}

static int visit_object(struct visit *v, const struct pvi_type *type, uint8_t *object, size_t bytes)
{
	static const struct pvi_field plain = {.kind = PV_FIELD_POINTER, .mask = UINT64_MAX};
	int err = 0;

	v->type = type;
	v->object = object;
	if (!type->simple)
		return pvi_typemap_visit(type, object, bytes, visit_word, v);
	for (uint32_t i = 0; i < type->npointers && !err; i++)
		if (type->pointers[i] + 8ull <= bytes)
			err = visit_word(v, object + type->pointers[i], &plain);
	return err;
}

static int visit_slab(struct visit *v, const struct pvi_segment *seg, uint32_t page, uint64_t rec)
{
	const struct pv_store *s = v->m->s;
	const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];
	const struct pvi_type *type = &s->index.types[pvi_rec_type(rec)];
	const uint8_t *bytes = pvi_slab_bytes(s, seg, page, rec);
	uint8_t *slab = seg->addr + ((uint64_t) page << s->page_shift);
	int err = 0;

	for (uint32_t i = 0; i < c->nslots && !err; i++)
		if (bytes[i] == PV_SLOT_LIVE)
			err = visit_object(v, type, slab + (size_t) i * c->slot_bytes, c->slot_bytes);
	return err;
}

static int visit_segment(struct visit *v, const struct pvi_segment *seg)
{
	const struct pv_store *s = v->m->s;
	int err = 0;

	for (uint32_t i = seg->first_page, n; i < seg->npages && !err; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);
		uint32_t type;

		n = 1;
		if (!pvi_page_run_sound(s, seg, i, rec))
			continue;
		n = pvi_page_span(s, rec);
		type = pvi_page_kind(rec) == PV_PAGE_SLAB ? pvi_rec_type(rec) : pvi_rec_extent_type(rec);
		if (type > s->index.ntypes || !s->index.types[type].has_pointers ||
		    s->index.types[type].state == PVI_TYPE_FORMER) /* nobody reads them any more */
			continue;
		if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
			err = visit_object(v, &s->index.types[type],
					   seg->addr + ((size_t) i << s->page_shift),
					   (size_t) n << s->page_shift);
		else if (pvi_slab_sound(s, seg, i, rec))
			err = visit_slab(v, seg, i, rec);
	}
	return err;
}

static int each_in_segment(const struct pv_store *s, const struct pvi_segment *seg, pvi_move_fn *fn,
			   void *ctx)
{
	int err = 0;

	for (uint32_t i = seg->first_page, n; i < seg->npages && !err; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);
		uint8_t *at = seg->addr + ((uint64_t) i << s->page_shift);
		const struct pvi_class *c;

		n = pvi_page_kind(rec) == PV_PAGE_FREE ? 1 : pvi_page_span(s, rec);
		if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
			err = fn(ctx, at, (size_t) n << s->page_shift, rec);
		if (pvi_page_kind(rec) != PV_PAGE_SLAB)
			continue;
		c = &s->classes[pvi_rec_class(rec)];
		for (uint32_t k = 0; k < c->nslots && !err; k++)
			if (pvi_slab_bytes(s, seg, i, rec)[k] == PV_SLOT_LIVE)
				err = fn(ctx, at + (size_t) k * c->slot_bytes, c->slot_bytes, rec);
	}
	return err;
}

/* All references in live objects. */
static int visit_all(struct visit *v)
{
	const struct pv_store *s = v->m->s;
	uint64_t done = 0, total = 0;
	int err = 0;

	for (uint32_t i = 0; i < s->nsegments; i++)
		total += s->segments[i].bytes;
	for (uint32_t i = 0; i < s->nsegments && !err; i++) {
		if (!s->segments[i].sealed)
			err = visit_segment(v, &s->segments[i]);
		done += s->segments[i].bytes;
		if (v->m->progress)
			v->m->progress(v->m->ctx, done, total);
	}
	return err;
}

int pvi_move_each(struct pvi_move *m, pvi_move_fn *fn, void *ctx)
{
	const struct pv_store *s = m->s;
	int err = 0;

	for (uint32_t k = 0; k < s->nsegments && !err; k++)
		if (!s->segments[k].sealed)
			err = each_in_segment(s, &s->segments[k], fn, ctx);
	return err;
}

/* ---- what is done with them ---- */

static int retarget(struct visit *v, uint8_t *at, const struct pvi_field *f, uint64_t word, uint64_t off)
{
	const struct pv_store *s = v->m->s;
	uint64_t to = pvi_move_target(v->m, off);

	if (to)
		__atomic_store_n((uint64_t *) (void *) at,
				 pvi_field_word(f, word, self_of(s, at), s->index.base + to,
						s->index.base),
				 __ATOMIC_RELAXED);
	return 0;
}

/* The distance from a word to what it names, after it was copied from `ctx` bytes further down. */
static int keep_relative(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	uint64_t *word = (uint64_t *) (void *) at;

	if (f->kind == PV_FIELD_RELATIVE && *word)
		*word -= *(const uint64_t *) ctx;
	return 0;
}

void pvi_move_copy_all(struct pvi_move *m, void *fresh, const void *old, size_t bytes, uint32_t number)
{
	const struct pvi_type *type = &m->s->index.types[number];
	uint64_t distance = (uintptr_t) fresh - (uintptr_t) old;

	memcpy(fresh, old, bytes);
	if (type->has_pointers && !type->simple)
		pvi_typemap_visit(type, fresh, bytes, keep_relative, &distance);
}

void pvi_move_copy(struct pvi_move *m, void *fresh, const void *old)
{
	struct pv_store *s = m->s;
	size_t from = pv_usable_bytes(s, old), to = pv_usable_bytes(s, fresh);
	struct pvi_object o;

	if (pvi_heap_find_live(s, old, &o) == 0)
		pvi_move_copy_all(m, fresh, old, from < to ? from : to,
				  o.byte ? pvi_bin_type(o.bin) : pvi_rec_extent_type(o.rec));
}

/* ---- redo ---- */

/* The state of an object := live, or free for whoever comes next. */
static void put_state(struct pv_store *s, uint64_t off, uint64_t rec, bool live)
{
	struct pvi_segment *seg = pvi_store_segment(s, off);
	uint32_t page = (uint32_t) ((off - seg->off) >> s->page_shift), head;
	uint64_t in;

	if (pvi_page_kind(rec) == PV_PAGE_EXTENT) {
		pvi_lane_apply_pages(s, seg, page,
				     live ? rec : pvi_rec_free(pvi_rec_extent_pages(rec)));
		return;
	}
	head = page - pvi_rec_back(pvi_rec_load(seg->map, page));
	in = off - seg->off - ((uint64_t) head << s->page_shift);
	__atomic_store_n(pvi_slab_bytes(s, seg, head, rec) + in / s->classes[pvi_rec_class(rec)].slot_bytes,
			 live ? PV_SLOT_LIVE : PV_SLOT_HELD, __ATOMIC_RELAXED);
}

/* Where the roots are now, and what they are there. */
static void move_roots(const struct pvi_move *m)
{
	struct pvi_index *idx = &m->s->index;

	for (uint32_t i = 0; i < idx->nroots; i++) {
		struct pvi_root *r = &idx->roots[i];
		uint64_t to = pvi_move_target(m, r->off), usable;
		const struct move_rec key = {.old_off = r->off}, *rec;
		uint32_t type;

		if (!to)
			continue;
		r->off = to;
		rec = bsearch(&key, m->recs, m->n, sizeof(key), by_old);
		if (!rec) /* the middle of an object: pv_check() says so, here and there */
			continue;
		usable = object_bytes(m->s, rec->new_rec);
		type = pvi_page_kind(rec->new_rec) == PV_PAGE_SLAB ? pvi_rec_type(rec->new_rec)
								    : pvi_rec_extent_type(rec->new_rec);
		if (r->type != type && r->bytes < idx->types[type].bytes)
			r->bytes = idx->types[type].bytes;
		if (r->bytes > usable)
			r->bytes = usable;
		r->type = type;
	}
}

void pvi_move_redo(struct pvi_move *m)
{
	struct visit v = {.m = m, .fn = retarget};

	pvi_barrier();
	for (uint64_t i = 0; i < m->n; i++)
		put_state(m->s, m->recs[i].new_off, m->recs[i].new_rec, true);
	pvi_barrier();
	visit_all(&v);
	pvi_barrier();
	for (uint64_t i = 0; i < m->n; i++)
		put_state(m->s, m->recs[i].old_off, m->recs[i].old_rec, false);
	pvi_barrier();
	move_roots(m);
	if (m->purpose == PV_MOVE_SEAL)
		pvi_seal_record(m->s, m->segment);
	memset(&m->s->index.move, 0, sizeof(m->s->index.move));
}
