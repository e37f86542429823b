/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pages: which are free, and finding runs of them. The truth is the page map in the arena; a bitmap
 * in ordinary memory also marks what is held by a reservation that is not in the map yet. The bitmap
 * of a segment is built when the segment is first needed, so an attach does not pay for it.
 *
 * Everything here runs under heap_lock.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* Where memory is at its end, a search for pages that have theirs may fail, but not take long. */
#define BACKED_LOOKS 256u

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
		       rec == pvi_rec_extent(pvi_rec_extent_type(rec), n);
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

static bool taken(const struct pvi_segment *seg, uint32_t page)
{
	return seg->taken[page / 64] >> (page % 64) & 1;
}

static void set_taken(struct pvi_segment *seg, uint32_t page, uint32_t n, bool on)
{
	for (uint32_t i = page; i < page + n; i++) {
		uint64_t bit = 1ull << (i % 64);

		if (on)
			seg->taken[i / 64] |= bit;
		else
			seg->taken[i / 64] &= ~bit;
	}
}

void pvi_page_unload(struct pvi_segment *seg)
{
	free(seg->taken);
	free(seg->cold);
	free(seg->slabs);
	seg->taken = NULL;
	seg->cold = NULL;
	seg->slabs = NULL;
	seg->loaded = false;
}

int pvi_page_load(struct pv_store *s, struct pvi_segment *seg)
{
	if (seg->loaded)
		return 0;
	seg->taken = calloc((seg->npages + 63) / 64, 8);
	seg->cold = calloc((seg->npages + 63) / 64, 8);
	seg->slabs = calloc(seg->npages, sizeof(*seg->slabs));
	if (!seg->taken || !seg->cold || !seg->slabs) {
		pvi_page_unload(seg);
		return pvi_fail(-ENOMEM, "segment %u: no memory for its descriptors", seg->number);
	}
	seg->loaded = true;
	seg->free_pages = seg->npages - seg->first_page;
	set_taken(seg, 0, seg->first_page, true);
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
		set_taken(seg, i, n, true);
		seg->free_pages -= n;
	}
	s->used_pages += seg->npages - seg->free_pages;
	seg->cursor = seg->first_page;
	return 0;
}

/* First run of n free pages in [from, to), or `to`. */
static uint32_t find_run(const struct pvi_segment *seg, uint32_t from, uint32_t to, uint32_t n)
{
	uint32_t run = 0;

	for (uint32_t i = from; i < to; i++) {
		if (i % 64 == 0 && seg->taken[i / 64] == ~0ull) {
			run = 0;
			i += 63;
			continue;
		}
		run = taken(seg, i) ? 0 : run + 1;
		if (run == n)
			return i + 1 - n;
	}
	return to;
}

static void take(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n)
{
	set_taken(seg, page, n, true);
	seg->free_pages -= n;
	seg->cursor = page + n;
	s->used_pages += n;
}

static bool take_run(struct pv_store *s, struct pvi_segment *seg, uint32_t n, uint32_t *page)
{
	uint32_t at;

	if (seg->free_pages < n)
		return false;
	/* Next fit: what lies before the cursor was full when it was passed. */
	at = find_run(seg, seg->cursor, seg->npages, n);
	if (at == seg->npages) {
		at = find_run(seg, seg->first_page, seg->npages, n);
		if (at == seg->npages)
			return false;
	}
	take(s, seg, at, n);
	*page = at;
	return true;
}

/* Memory is at its end: a run whose pages have theirs, because they were in use before. */
static bool take_backed_run(struct pv_store *s, struct pvi_segment *seg, uint32_t n, uint32_t *page)
{
	uint64_t bytes = (uint64_t) n << s->page_shift;
	uint32_t at = seg->first_page;

	for (unsigned int looks = BACKED_LOOKS; looks; looks--, at += n) {
		at = find_run(seg, at, seg->npages, n);
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

/* A run of n pages of this segment, with memory behind them: 1; 0: there is none. */
static int alloc_in(struct pv_store *s, struct pvi_segment *seg, uint32_t n, uint32_t *page)
{
	uint32_t cursor = seg->cursor;
	int err = 0;

	if (!take_run(s, seg, n, page))
		return 0;
	for (bool again = false;; again = true) {
		err = pvi_arena_commit(seg->fd, seg->addr, (uint64_t) *page << s->page_shift,
				       (uint64_t) n << s->page_shift);
		if (!err)
			return 1;
		pvi_page_free(s, seg, *page, n);
		seg->cursor = cursor;
		if (again || !take_backed_run(s, seg, n, page))
			return err;
	}
}

int pvi_page_alloc(struct pv_store *s, uint32_t n, struct pvi_segment **out, uint32_t *page)
{
	int got = 0, err = 0;

	/* Those looked at already, the newest first; then one more; then a new one. Where memory is at
	 * its end another segment may have pages that still have theirs; a new one has none. */
	for (int looked_at = 1; looked_at >= 0; looked_at--) {
		for (uint32_t i = s->nsegments; i-- > 0 && got != 1;) {
			struct pvi_segment *seg = *out = &s->segments[i];

			if (seg->loaded != looked_at)
				continue;
			got = pvi_page_load(s, seg);
			if (!got)
				got = alloc_in(s, seg, n, page);
			err = got < 0 ? got : err;
		}
	}
	if (got == 1 || err)
		return got == 1 ? 0 : err;
	err = pvi_segment_grow(s, n);
	if (err)
		return err;
	*out = &s->segments[s->nsegments - 1];
	got = alloc_in(s, *out, n, page);
	assert(got);
	return got == 1 ? 0 : got;
}

void pvi_page_free(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n)
{
	set_taken(seg, page, n, false);
	seg->free_pages += n;
	s->used_pages -= n;
	if (page < seg->cursor)
		seg->cursor = page;
}
