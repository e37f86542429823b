/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Allocation in the forms that programs know from malloc: into a persistent pointer, with a change of
 * size, with an alignment. All of it is made of reserve and publish, but for extents that grow or shrink
 * where they are: then the intent changes the page map.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"
#include "typemap.h"

int pv_alloc(struct pv_store *s, pv_type_t type, size_t bytes, void **dest)
{
	void *object;
	int err = pv_reserve(s, type, bytes, &object);

	if (err)
		return err;
	memset(object, 0, bytes);
	err = pv_link(s, object, dest);
	if (err)
		pv_cancel(s, object);
	return err;
}

int pv_free(struct pv_store *s, void **dest)
{
	int err = pvi_heap_word(s, dest);

	return err ? pvi_misuse(err) : pv_unlink(s, dest, 0, *dest);
}

/* ---- alignment ---- */

/* Reserve more than was asked for; align_pages not 0: as an extent. */
static int reserve_larger(struct pv_store *s, pv_type_t type, size_t bytes, size_t larger,
			  uint32_t align_pages, void **out)
{
	int err = align_pages ? pvi_heap_reserve_extent(s, type, larger, align_pages, out)
			      : pv_reserve(s, type, larger, out);

	if (!err && s->index.types[type].flexible)
		pvi_heap_clear(*out, bytes, larger);
	return err;
}

int pv_reserve_aligned(struct pv_store *s, pv_type_t type, size_t bytes, size_t align, void **out)
{
	uint32_t class;
	size_t larger;

	if (!align || (align & (align - 1)) || align > 1ull << s->granule_shift)
		return pvi_fail(-EINVAL, "an alignment of %zu bytes: not a power of two up to %llu",
				align, 1ull << s->granule_shift);
	/* Also for its errors: what is asked for here is rounded up, and so not to be found too small. */
	if (align <= 16 || !bytes || type > PV_TYPES_MAX || bytes < s->index.types[type].bytes)
		return pv_reserve(s, type, bytes, out);
	if (align <= 1u << s->page_shift) {
		/* Slabs begin on a page, so slots of a multiple of `align` are aligned. */
		class = pvi_class_of(bytes < align ? align : bytes);
		while (class < s->nclasses && s->classes[class].slot_bytes % align)
			class++;
		if (class < s->nclasses)
			return reserve_larger(s, type, bytes, s->classes[class].slot_bytes, 0, out);
		align = 1u << s->page_shift;
	}
	larger = s->classes[s->nclasses - 1].slot_bytes + 1ull;
	return reserve_larger(s, type, bytes, bytes > larger ? bytes : larger,
			      (uint32_t) (align >> s->page_shift), out);
}

/* ---- another size ---- */

static uint32_t pages_for(const struct pv_store *s, size_t bytes)
{
	return (uint32_t) ((bytes + (1u << s->page_shift) - 1) >> s->page_shift);
}

/* The pages behind n of `had` become free. */
static void extent_shrink(struct pv_store *s, struct pvi_thread *t, const struct pvi_object *o,
			  uint32_t page, uint32_t had, uint32_t n)
{
	uint64_t off = o->seg->off + ((uint64_t) page << s->page_shift);
	struct action_rec *a = t->lane->actions;

	a[0].where = pvi_lane_where(PV_DO_PAGES, off);
	a[0].value = pvi_rec_extent(pvi_rec_extent_type(o->rec), n, pvi_rec_extent_align(o->rec));
	a[1].where = pvi_lane_where(PV_DO_PAGES, off + ((uint64_t) n << s->page_shift));
	a[1].value = pvi_rec_free(had - n);
	pvi_lane_run(s, t->lane, 2);
	pthread_mutex_lock(&s->heap_lock);
	pvi_page_free(s, o->seg, page + n, had - n);
	pthread_mutex_unlock(&s->heap_lock);
}

/* The pages behind it become part of it, if they are free. */
static bool extent_grow(struct pv_store *s, struct pvi_thread *t, const struct pvi_object *o,
			uint32_t page, uint32_t had, uint32_t n)
{
	bool taken;

	pthread_mutex_lock(&s->heap_lock);
	taken = pvi_page_take_at(s, o->seg, page + had, n - had);
	pthread_mutex_unlock(&s->heap_lock);
	if (!taken)
		return false;
	/* What was there before is no reference of a flexible array's. */
	if (s->index.types[pvi_rec_extent_type(o->rec)].flexible)
		memset(o->seg->addr + ((uint64_t) (page + had) << s->page_shift), 0,
		       (size_t) (n - had) << s->page_shift);
	t->lane->actions[0].where = pvi_lane_where(
		PV_DO_PAGES, o->seg->off + ((uint64_t) page << s->page_shift));
	t->lane->actions[0].value =
		pvi_rec_extent(pvi_rec_extent_type(o->rec), n, pvi_rec_extent_align(o->rec));
	pvi_lane_run(s, t->lane, 1);
	return true;
}

/* True: the object has the new size where it is. */
static bool in_place(struct pv_store *s, struct pvi_thread *t, const struct pvi_object *o,
		     const void *object, size_t bytes)
{
	uint32_t page, had, n;

	if (o->byte)
		return pvi_class_of(bytes) == pvi_bin_class(o->bin);
	if (o->seg->sealed || bytes <= s->classes[s->nclasses - 1].slot_bytes ||
	    bytes > s->window_bytes || bytes >> s->page_shift >= PVI_PAGES_MAX)
		return false;
	page = (uint32_t) ((size_t) ((const uint8_t *) object - o->seg->addr) >> s->page_shift);
	had = pvi_rec_extent_pages(o->rec);
	n = pages_for(s, bytes);
	if (n < had)
		extent_shrink(s, t, o, page, had, n);
	return n <= had || extent_grow(s, t, o, page, had, n);
}

int pv_realloc(struct pv_store *s, void **dest, size_t bytes)
{
	void *object = NULL, *fresh;
	struct pvi_thread *t;
	struct pvi_object o;
	pv_type_t type;
	size_t usable;
	int err = pvi_thread_get(s, &t);

	if (!err)
		err = pvi_heap_word(s, dest);
	if (!err) {
		object = *dest;
		err = pvi_heap_find_live(s, object, &o);
	}
#ifdef PVI_DEBUG_CHECKS
	if (!err)
		err = pvi_root_keep(s, object);
#endif
	if (err)
		return pvi_misuse(err);
	type = o.byte ? pvi_bin_type(o.bin) : pvi_rec_extent_type(o.rec);
	if (!bytes || bytes < s->index.types[type].bytes)
		return pvi_fail(-EINVAL, "%zu bytes are too few for an object of type %s", bytes,
				s->index.types[type].name);
	if (in_place(s, t, &o, object, bytes))
		return 0;
	err = pv_reserve(s, type, bytes, &fresh);
	if (err)
		return err;
	usable = o.byte ? s->classes[pvi_bin_class(o.bin)].slot_bytes
			: (size_t) pvi_rec_extent_pages(o.rec) << s->page_shift;
	pvi_typemap_copy(&s->index.types[type], fresh, object, usable < bytes ? usable : bytes);
	if (usable < bytes && s->index.types[type].flexible)
		pvi_heap_clear(fresh, usable, bytes);
	err = pv_replace(s, fresh, dest, object);
	if (err)
		pv_cancel(s, fresh);
	return err;
}
