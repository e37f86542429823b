/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pages: which are free, and finding runs of them. The truth is the page map in the arena; a bitmap
 * in ordinary memory also marks what is held by a reservation that is not in the map yet. The bitmap
 * of a segment is built when the segment is first needed, so an attach does not pay for it.
 *
 * Everything here runs under heap_lock.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* Where memory is at its end, a search for pages that have theirs may fail, but not take long. */
#define BACKED_LOOKS 256u

/* What may lie in depots while pages are taken, beside a quarter of what is used. */
#define DEPOTS_MIN (4ull << 20)

/* Cold slabs that are looked at before the store grows. */
#define COLD_RECLAIM 4096u

uint32_t pvi_page_span(const struct pv_store *s, uint64_t rec)
{
	switch (pvi_page_kind(rec)) {
	case PV_PAGE_SLAB:
		return pvi_rec_class(rec) < s->nclasses ? s->classes[pvi_rec_class(rec)].npages : 0;
	case PV_PAGE_EXTENT:
	case PV_PAGE_FREE:
		return pvi_rec_extent_pages(rec);
	}
	return 0;
}

bool pvi_page_head_sound(const struct pv_store *s, const struct pvi_segment *seg, uint32_t page,
			 uint64_t rec)
{
	uint32_t n = pvi_page_span(s, rec);

	if (page < seg->first_page || page >= seg->npages || !n || n > seg->npages - page)
		return false;
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
		return pvi_rec_extent_type(rec) != 0 &&
		       rec == pvi_rec_extent(pvi_rec_extent_type(rec), n, pvi_rec_extent_align(rec)) &&
		       (page & ((1ull << pvi_rec_extent_align(rec)) - 1)) == 0;
	if (pvi_page_kind(rec) == PV_PAGE_SLAB) {
		const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];

		return pvi_rec_back(rec) == 0 && pvi_rec_type(rec) != 0 &&
		       rec >> PV_PAGE_UNUSED_SHIFT == 0 &&
		       pvi_rec_meta(rec) + c->meta_bytes <= (uint64_t) n << s->page_shift;
	}
	return false;
}

bool pvi_page_run_sound(const struct pv_store *s, const struct pvi_segment *seg, uint32_t page,
			uint64_t rec)
{
	uint64_t want = rec, step = 1ull << PV_PAGE_BACK_SHIFT;

	if (!pvi_page_head_sound(s, seg, page, rec))
		return false;
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT) {
		want = PV_PAGE_OTHER | PV_OTHER_CONT << PV_OTHER_SUB_SHIFT;
		step = 1ull << PV_OTHER_BACK_SHIFT;
	}
	for (uint32_t i = 1, n = pvi_page_span(s, rec); i < n; i++)
		if (pvi_rec_load(seg->map, page + i) != want + i * step)
			return false;
	return true;
}

void pvi_page_format(struct pvi_segment *seg)
{
	for (uint32_t i = 0; i < seg->first_page; i++)
		seg->map[i] = PV_PAGE_OTHER | PV_OTHER_META << PV_OTHER_SUB_SHIFT;
}

void pvi_page_unload(struct pvi_segment *seg)
{
	free(seg->taken);
	free(seg->committed);
	free(seg->cold);
	free(seg->slabs);
	seg->taken = NULL;
	seg->committed = NULL;
	seg->cold = NULL;
	seg->slabs = NULL;
	seg->loaded = false;
}

int pvi_page_load(struct pv_store *s, struct pvi_segment *seg)
{
	if (seg->loaded)
		return 0;
	seg->taken = calloc((seg->npages + 63) / 64, 8);
	seg->committed = calloc((seg->npages + 63) / 64, 8);
	seg->cold = calloc((seg->npages + 63) / 64, 8);
	seg->slabs = calloc(seg->npages, sizeof(*seg->slabs));
	if (!seg->taken || !seg->committed || !seg->cold || !seg->slabs) {
		pvi_page_unload(seg);
		return pvi_fail(-ENOMEM, "segment %u: no memory for its descriptors", seg->number);
	}
	seg->loaded = true;
	seg->free_pages = seg->npages - seg->first_page;
	pvi_bits_set(seg->taken, 0, seg->first_page, true);
	pvi_bits_set(seg->committed, 0, seg->first_page, true);
	for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);

		n = 1;
		if (pvi_page_kind(rec) == PV_PAGE_FREE)
			continue;
		/* An entry that makes no sense keeps its page out of use; pv_check() reports it. */
		if (pvi_page_run_sound(s, seg, i, rec)) {
			n = pvi_page_span(s, rec);
			if (pvi_page_kind(rec) == PV_PAGE_SLAB)
				seg->cold[i / 64] |= 1ull << (i % 64);
			else
				seg->slabs[i].state = PVI_EXTENT_LIVE;
		}
		pvi_bits_set(seg->taken, i, n, true);
		seg->free_pages -= n;
	}
	s->used_pages += seg->npages - seg->free_pages;
	if (seg->sealed)
		pvi_seal_take(s, seg);
	seg->cursor = seg->first_page;
	seg->no_run = UINT32_MAX;
	return 0;
}

/* First run of n free pages in [from, to) that begins at a multiple of `align` pages, or `to`. */
static uint32_t find_run(const struct pvi_segment *seg, uint32_t from, uint32_t to, uint32_t n,
			 uint32_t align)
{
	uint32_t start = (from + align - 1) / align * align;

	for (uint32_t i = start; i < to;) {
		if (i % 64 == 0 && seg->taken[i / 64] == ~0ull) {
			i += 64;
			start = (i + align - 1) / align * align;
		} else if (pvi_bits_get(seg->taken, i)) {
			i++;
			start = (i + align - 1) / align * align;
		} else if (++i - start == n) {
			return start;
		}
		if (i < start)
			i = start;
	}
	return to;
}

static void take(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n)
{
	pvi_bits_set(seg->taken, page, n, true);
	seg->free_pages -= n;
	s->used_pages += n;
	s->idle_pages -= pvi_bits_count(seg->committed, page, n);
	if (page == seg->cursor)
		seg->cursor = page + n;
}

/*
 * First fit, from the first page that may be free: pages that had been in use, and so have memory, come
 * before those that were never touched, and the segment's end, and the last segments, become empty.
 */
static bool take_run(struct pv_store *s, struct pvi_segment *seg, uint32_t n, uint32_t align,
		     uint32_t *page)
{
	uint32_t at;

	if (seg->free_pages < n || n >= seg->no_run)
		return false;
	at = find_run(seg, seg->cursor, seg->npages, n, align);
	if (at == seg->npages) {
		if (align == 1)
			seg->no_run = n;
		return false;
	}
	take(s, seg, at, n);
	*page = at;
	return true;
}

static bool allowed(const struct pv_store *s, uint32_t segment)
{
	return !s->steer.to || (segment >= s->steer.from && segment < s->steer.to);
}

/* n contiguous pages of the segments that there are. 0, -ENOSPC without a message, or an error. */
static int find_pages(struct pv_store *s, uint32_t n, uint32_t align, struct pvi_segment **out,
		      uint32_t *page)
{
	for (uint32_t i = 0; i < s->nsegments; i++) {
		*out = &s->segments[i];
		if (allowed(s, i) && (*out)->loaded && take_run(s, *out, n, align, page))
			return 0;
	}
	/* The others, the newest first: it is the one that has room, and loading takes time, which the
	 * first allocation after an attach has not. */
	for (uint32_t i = s->nsegments; i-- > 0;) {
		int err;

		*out = &s->segments[i];
		if ((*out)->loaded || !allowed(s, i))
			continue;
		err = pvi_page_load(s, *out);
		if (err)
			return err;
		if (take_run(s, *out, n, align, page))
			return 0;
	}
	return -ENOSPC;
}

/* Make free pages of what depots and an earlier process hold back. */
static void reclaim(struct pv_store *s, uint32_t cold_slabs)
{
	struct pvi_thread *t = pvi_thread_find(s); /* it takes a lane */

	if (!t)
		return;
	pvi_depot_drain(s, t);
	pvi_slab_reclaim_cold(s, t, cold_slabs);
}

/*
 * The same, with whatever it takes, the cheapest first: pages that are free, unless very much lies in
 * depots; what depots hold back, and slabs that an earlier process left empty, as many as can be
 * looked at in about a millisecond; a new segment; all such slabs.
 */
static int obtain_pages(struct pv_store *s, uint32_t n, uint32_t align, struct pvi_segment **out,
			uint32_t *page)
{
	uint64_t used = s->used_pages << s->page_shift;
	int err, grown;

	if (s->steer.to) {
		err = find_pages(s, n, align, out, page);
		return err == -ENOSPC ? pvi_fail(err, "no %u free pages in the segments %u to %u", n,
						 s->steer.from, s->steer.to - 1)
				      : err;
	}
	if (__atomic_load_n(&s->depot_bytes, __ATOMIC_RELAXED) >
	    (used / 4 < DEPOTS_MIN ? DEPOTS_MIN : used / 4))
		reclaim(s, 0);
	err = find_pages(s, n, align, out, page);
	if (err != -ENOSPC)
		return err;
	reclaim(s, COLD_RECLAIM);
	err = find_pages(s, n, align, out, page);
	if (err != -ENOSPC)
		return err;
	grown = pvi_segment_grow(s, n + align - 1);
	if (grown)
		reclaim(s, UINT32_MAX);
	err = find_pages(s, n, align, out, page);
	pvi_debug_check(err != -ENOSPC || grown);
	return err == -ENOSPC && grown ? grown : err;
}

/* Memory is at its end: a run whose pages have theirs, because they were in use before. */
static bool take_backed_run(struct pv_store *s, struct pvi_segment *seg, uint32_t n, uint32_t align,
			    uint32_t *page)
{
	uint64_t bytes = (uint64_t) n << s->page_shift;
	uint32_t at = seg->cursor;

	for (unsigned int looks = BACKED_LOOKS; looks; looks--, at += align) {
		at = find_run(seg, at, seg->npages, n, align);
		if (at == seg->npages)
			return false;
		if (pvi_memory_backed(seg->addr + ((uint64_t) at << s->page_shift), bytes)) {
			take(s, seg, at, n);
			*page = at;
			return true;
		}
	}
	return false;
}

int pvi_page_alloc(struct pv_store *s, uint32_t n, uint32_t align, uint32_t memory_from,
		   struct pvi_segment **out, uint32_t *page)
{
	int err = obtain_pages(s, n, align, out, page);

	if (err)
		return err;
	err = pvi_backing_commit(s, *out, *page + memory_from, n - memory_from);
	if (!err)
		return 0;
	pvi_page_free(s, *out, *page, n);
	if (!s->steer.to)
		reclaim(s, COLD_RECLAIM);
	for (uint32_t i = 0; i < s->nsegments; i++) {
		*out = &s->segments[i];
		if (!allowed(s, i) || !(*out)->loaded || !take_backed_run(s, *out, n, align, page))
			continue;
		if (pvi_backing_commit(s, *out, *page, n) == 0)
			return 0;
		pvi_page_free(s, *out, *page, n);
	}
	return err;
}

bool pvi_page_take_at(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n)
{
	if (n > seg->npages - page || find_run(seg, page, page + n, n, 1) != page)
		return false;
	take(s, seg, page, n);
	if (pvi_backing_commit(s, seg, page, n) == 0)
		return true;
	pvi_page_free(s, seg, page, n);
	return false;
}

void pvi_page_free(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n)
{
	pvi_bits_set(seg->taken, page, n, false);
	seg->free_pages += n;
	seg->no_run = UINT32_MAX;
	s->used_pages -= n;
	s->idle_pages += pvi_bits_count(seg->committed, page, n);
	if (page < seg->cursor)
		seg->cursor = page;
	pvi_backing_release(s);
}
