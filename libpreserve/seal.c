/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sealing: all objects of some types are moved into a segment that is made for them and has room for just
 * that, and that segment becomes read-only. The move is move.c; its redo takes the digest and its last
 * index has it, so that the segment is sealed in the same instant in which the objects are there. What
 * the kernel does about it (the mapping, F_SEAL_WRITE) follows, here or in the next attach.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <preserve/seal.h>

#include "internal.h"
#include "move.h"
#include "typemap.h"

struct seal {
	struct pv_store *s;
	bool *chosen;	 /* by type */
	uint64_t *slots; /* by bin: objects */
	uint64_t pages;	 /* of extents, with room for their alignment */
	uint64_t objects;
	uint64_t bytes;
	const struct pvi_type *type; /* of the object that is looked at */
	const uint8_t *object;
	struct pvi_move *m;
	uint32_t segment; /* that they are moved to */
};


/* ---- what is to be sealed ---- */

static int choose(struct seal *seal, const pv_type_t *types, unsigned int n)
{
	const struct pv_store *s = seal->s;

	if (!n)
		return pvi_fail(-EINVAL, "no types to be sealed");
	for (unsigned int i = 0; i < n; i++) {
		if (types[i] == 0 || types[i] > s->index.ntypes)
			return pvi_fail(-EINVAL, "type %u is not registered", types[i]);
		if (s->index.types[types[i]].flags & PV_TYPE_PINNED)
			return pvi_fail(-EINVAL, "type %s is pinned: its objects cannot be moved",
					s->index.types[types[i]].name);
		seal->chosen[types[i]] = true;
	}
	return 0;
}

/* Does a live object of a chosen type, or a sealed one, lie at this offset? */
static bool permitted(const struct seal *seal, uint64_t off)
{
	const struct pv_store *s = seal->s;
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	uint32_t page;
	uint64_t rec;

	if (!seg || off - seg->data_off >= seg->data_bytes)
		return false;
	if (seg->sealed)
		return true;
	page = (uint32_t) ((off - seg->off) >> s->page_shift);
	rec = pvi_rec_load(seg->map, page);
	if (pvi_page_kind(rec) == PV_PAGE_OTHER) {
		page -= pvi_rec_other_back(rec);
		rec = pvi_rec_load(seg->map, page);
	}
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
		return seal->chosen[pvi_rec_extent_type(rec)];
	if (pvi_page_kind(rec) != PV_PAGE_SLAB || !seal->chosen[pvi_rec_type(rec)])
		return false;
	page -= pvi_rec_back(rec);
	off -= seg->off + ((uint64_t) page << s->page_shift);
	return off / s->classes[pvi_rec_class(rec)].slot_bytes < s->classes[pvi_rec_class(rec)].nslots &&
	       pvi_slab_bytes(s, seg, page, pvi_rec_load(seg->map, page))
			       [off / s->classes[pvi_rec_class(rec)].slot_bytes] == PV_SLOT_LIVE;
}

static int check_word(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	const struct seal *seal = ctx;
	const struct pv_store *s = seal->s;
	uint64_t names = pvi_field_target(f, at, s->base);

	if (!names || names - s->base >= s->window_bytes || permitted(seal, names - s->base))
		return 0;
	return pvi_fail(-EINVAL,
			"the object of type %s at offset 0x%" PRIx64 " refers (%s, byte %zu) to 0x%" PRIx64
			", which is neither sealed with it nor before",
			seal->type->name, (uint64_t) ((uintptr_t) seal->object - s->base), f->name,
			(size_t) (at - seal->object), names - s->base);
}

static uint32_t type_of(uint64_t rec)
{
	return pvi_page_kind(rec) == PV_PAGE_SLAB ? pvi_rec_type(rec) : pvi_rec_extent_type(rec);
}

static int look(void *ctx, void *object, size_t bytes, uint64_t rec)
{
	struct seal *seal = ctx;

	if (!seal->chosen[type_of(rec)])
		return 0;
	seal->objects++;
	seal->bytes += bytes;
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
		seal->pages += pvi_rec_extent_pages(rec) + (1ull << pvi_rec_extent_align(rec)) - 1;
	else
		seal->slots[type_of(rec) * PVI_CLASSES + pvi_rec_class(rec)]++;
	seal->type = &seal->s->index.types[type_of(rec)];
	seal->object = object;
	return pvi_typemap_visit(seal->type, object, bytes, check_word, seal);
}

/* Count what is to be sealed, and see that it refers to nothing else. */
static int survey(struct seal *seal)
{
	struct pv_store *s = seal->s;
	int err = pvi_move_each(seal->m, look, seal);

	if (!err && !seal->objects)
		err = pvi_fail(-ENOENT, "there are no objects of these types that are not sealed already");
	for (size_t i = 0; i < (s->index.ntypes + 1ul) * PVI_CLASSES && !err; i++) {
		const struct pvi_class *c = &s->classes[i % PVI_CLASSES];

		if (seal->slots[i])
			seal->pages += (seal->slots[i] + c->usable - 1) / c->usable * c->npages;
	}
	return err;
}

/* ---- moving ---- */

/* The slabs that they are in hand out no slots, so that all come to lie in the new segment. */
static void close_slabs(struct seal *seal)
{
	struct pv_store *s = seal->s;

	for (uint32_t k = 0; k < s->nsegments; k++) {
		struct pvi_segment *seg = &s->segments[k];

		for (uint32_t i = seg->first_page; i < seg->npages && !seg->sealed; i++) {
			uint64_t rec = pvi_rec_load(seg->map, i);

			if (pvi_page_kind(rec) == PV_PAGE_SLAB && pvi_rec_back(rec) == 0 &&
			    seal->chosen[pvi_rec_type(rec)])
				pvi_slab_close(s, seg, i);
		}
	}
}

static int make_segment(struct seal *seal)
{
	struct pv_store *s = seal->s;
	int err = seal->pages < PVI_PAGES_MAX ? 0 : pvi_fail(-ENOSPC, "%" PRIu64 " pages are too many for a "
								       "segment", seal->pages);

	pthread_mutex_lock(&s->heap_lock);
	if (!err)
		err = pvi_segment_grow_exactly(s, (uint32_t) seal->pages);
	if (!err)
		close_slabs(seal);
	seal->segment = s->nsegments - 1;
	pthread_mutex_unlock(&s->heap_lock);
	return err;
}

static int move_object(void *ctx, void *object, size_t bytes, uint64_t rec)
{
	struct seal *seal = ctx;
	struct pv_store *s = seal->s;
	void *fresh;
	int err;

	if (!seal->chosen[type_of(rec)])
		return 0;
	s->steer.from = seal->segment;
	s->steer.to = seal->segment + 1;
	err = pvi_page_kind(rec) == PV_PAGE_EXTENT
		      ? pvi_heap_extent(s, type_of(rec), bytes, 1u << pvi_rec_extent_align(rec), &fresh)
		      : pv_reserve(s, type_of(rec), bytes, &fresh);
	s->steer.from = s->steer.to = 0;
	if (err)
		return err;
	pvi_move_copy_all(seal->m, fresh, object, bytes, type_of(rec));
	err = pvi_move_add(seal->m, object, fresh);
	if (err)
		pv_cancel(s, fresh);
	return err;
}

/* Nothing of the new segment is in anybody's hands but the new objects. */
static void finish_segment(struct seal *seal)
{
	struct pv_store *s = seal->s;

	pthread_mutex_lock(&s->heap_lock);
	pvi_depot_drain_all(s, seal->m->t);
	pvi_seal_take(s, &s->segments[seal->segment]);
	pthread_mutex_unlock(&s->heap_lock);
	seal->m->segment = seal->segment;
}

/* The new segment has nothing in it, and nobody knows which of its pages are free. */
static void drop_segment(struct seal *seal)
{
	struct pv_store *s = seal->s;
	struct pvi_segment *seg = &s->segments[seal->segment];

	pthread_mutex_lock(&s->heap_lock);
	for (uint32_t i = seg->first_page; i < seg->npages; i++)
		if (pvi_bits_get(seg->taken, i) && pvi_rec_load(seg->map, i) == 0)
			pvi_page_free(s, seg, i, 1);
	pthread_mutex_unlock(&s->heap_lock);
	pv_trim(s, NULL);
}

static int run(struct seal *seal, struct pv_seal_report *report)
{
	struct pv_store *s = seal->s;
	char why[256];
	int err = survey(seal);

	if (!err)
		err = make_segment(seal);
	if (err) {
		pvi_move_cancel(seal->m);
		return err;
	}
	err = pvi_move_each(seal->m, move_object, seal);
	if (err) {
		pvi_move_cancel(seal->m);
	} else {
		finish_segment(seal);
		err = pvi_move_commit(seal->m);
	}
	if (err) {
		snprintf(why, sizeof(why), "%s", pv_last_error());
		drop_segment(seal);
		return pvi_fail(err, "%s", why);
	}
	pthread_mutex_lock(&s->heap_lock);
	*report = (struct pv_seal_report){
		.objects = seal->objects,
		.bytes = seal->bytes,
		.segment = seal->segment,
		.kernel_sealed = pvi_seal_freeze(s, seal->segment),
		.segment_bytes = s->segments[seal->segment].bytes,
	};
	pthread_mutex_unlock(&s->heap_lock);
	return 0;
}

int pv_seal(struct pv_store *s, const pv_type_t *types, unsigned int ntypes,
	    struct pv_seal_report *report)
{
	struct seal seal = {.s = s};
	struct pv_seal_report unused;
	int err;

	seal.chosen = calloc(1u << PV_PAGE_TYPE_BITS, sizeof(*seal.chosen));
	seal.slots = calloc((s->index.ntypes + 1ul) * PVI_CLASSES, sizeof(*seal.slots));
	err = seal.chosen && seal.slots ? choose(&seal, types, ntypes) : pvi_fail(-ENOMEM, "no memory");
	if (!err)
		err = pvi_move_begin(s, PV_MOVE_SEAL, &seal.m);
	if (!err)
		err = run(&seal, report ? report : &unused);
	free(seal.chosen);
	free(seal.slots);
	return err;
}
