/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Statistics. A walk over the page maps and slot bytes, like that of check.c, but beside threads that
 * change both: under heap_lock, which keeps slabs and the pages of a loaded segment where they are, and in
 * pieces, so that nobody waits for long. Between two pieces anything may have moved; whatever is met then
 * in the middle is passed over.
 *
 * What this process has not looked at yet (segments that are not loaded, slabs that are cold) is
 * counted from the arena as it is and stays so.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <preserve/stats.h>

#include "internal.h"

/* Work done under heap_lock at a time: page map entries, and slots by the sixteen. */
#define PIECE	       4096u
#define SLOTS_PER_UNIT 16u

struct stats {
	struct pv_stats public;
	struct pv_stats_type *types;
	struct pv_stats_class **classes; /* by type, s->nclasses each, made when the type has a slab */
	struct pv_stats_thread *threads;
	char (*names)[PVI_NAME_MAX + 1];
	bool no_memory;
};

/* ---- slots ---- */

/* How many slot bytes there are of each state; others (the slab_rec's) are not counted. */
static void count_states(const uint8_t *bytes, uint32_t n, uint32_t counts[PV_SLOT_HELD + 1])
{
	const uint64_t ones = 0x0101010101010101ull;

	for (uint32_t i = 0; i < n; i += 8) {
		uint64_t v = __atomic_load_n((const uint64_t *) (const void *) (bytes + i),
					     __ATOMIC_RELAXED);
		uint32_t in = n - i < 8 ? n - i : 8;

		/* Neighbours are mostly alike. */
		if (v == (v & 0xff) * ones && (v & 0xff) <= PV_SLOT_HELD) {
			counts[v & 0xff] += in;
			continue;
		}
		for (; in; in--, v >>= 8)
			if ((v & 0xff) <= PV_SLOT_HELD)
				counts[v & 0xff]++;
	}
}

static struct pv_stats_class *class_of(struct pv_store *s, struct stats *st, uint32_t type,
				       uint32_t class)
{
	struct pv_stats_class *all = st->classes[type];

	if (!all) {
		all = st->classes[type] = calloc(s->nclasses, sizeof(*all));
		if (!all) {
			st->no_memory = true;
			return NULL;
		}
		for (uint32_t i = 0; i < s->nclasses; i++) {
			all[i].slot_bytes = s->classes[i].slot_bytes;
			all[i].slots = s->classes[i].usable;
		}
	}
	return &all[class];
}

static void count_slab(struct pv_store *s, struct stats *st, const struct pvi_segment *seg,
		       uint32_t page, uint64_t rec)
{
	const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];
	bool cold = !pvi_store_page(s, seg->off + ((uint64_t) page << s->page_shift))->slab;
	struct pv_stats_class *class = class_of(s, st, pvi_rec_type(rec), pvi_rec_class(rec));
	uint32_t n[PV_SLOT_HELD + 1] = {0};

	if (!class)
		return;
	count_states(pvi_slab_bytes(s, seg, page, rec), c->nslots, n);
	if (cold) { /* these are of a process that is gone */
		n[PV_SLOT_FREE] += n[PV_SLOT_RESERVED] + n[PV_SLOT_RETIRED] + n[PV_SLOT_HELD];
		n[PV_SLOT_RESERVED] = n[PV_SLOT_RETIRED] = n[PV_SLOT_HELD] = 0;
	}
	class->slabs.slabs++;
	class->slabs.pages += c->npages;
	class->slabs.live += n[PV_SLOT_LIVE];
	class->slabs.reserved += n[PV_SLOT_RESERVED];
	class->slabs.held += n[PV_SLOT_HELD];
	class->slabs.retired += n[PV_SLOT_RETIRED];
	class->slabs.free += n[PV_SLOT_FREE];
}

/* ---- pages ---- */

static void count_extent(struct pv_store *s, struct stats *st, uint32_t type, uint32_t npages, bool live)
{
	struct pv_stats_type *t = &st->types[type - 1];
	uint64_t bytes = (uint64_t) npages << s->page_shift;

	if (live) {
		t->extents++;
		t->extent_bytes += bytes;
	} else {
		t->reserved_extents++;
		t->reserved_extent_bytes += bytes;
	}
}

static bool known_type(const struct stats *st, uint32_t type)
{
	return type && type <= st->public.ntypes;
}

/* Count what begins at this page; how many pages that is. *work: what it cost. */
static uint32_t count_run(struct pv_store *s, struct stats *st, const struct pvi_segment *seg,
			  uint32_t page, uint32_t *work)
{
	const struct pvi_slab *d = seg->loaded ? &seg->slabs[page] : NULL;
	uint64_t rec = pvi_rec_load(seg->map, page);
	bool sound;

	*work = 1;
	if (d && d->state == PVI_EXTENT_HELD && pvi_page_kind(rec) == PV_PAGE_FREE) {
		if (known_type(st, d->cursor))
			count_extent(s, st, d->cursor, d->nfree, false);
		return d->nfree;
	}
	if (d && d->state == PVI_EXTENT_RETIRED) {
		st->public.retired_extents++;
		st->public.retired_extent_bytes += (uint64_t) d->nfree << s->page_shift;
		return d->nfree;
	}
	switch (pvi_page_kind(rec)) {
	case PV_PAGE_EXTENT:
		/* Its pages' entries come and go without the lock, the head's last. */
		sound = d ? (d->state == PVI_EXTENT_LIVE || d->state == PVI_EXTENT_HELD) &&
				    pvi_page_head_sound(s, seg, page, rec)
			  : pvi_page_run_sound(s, seg, page, rec);
		if (!sound)
			return 1;
		if (known_type(st, pvi_rec_extent_type(rec)))
			count_extent(s, st, pvi_rec_extent_type(rec), pvi_rec_extent_pages(rec), true);
		*work += seg->loaded ? 0 : pvi_rec_extent_pages(rec);
		return pvi_rec_extent_pages(rec);
	case PV_PAGE_SLAB:
		if (!pvi_page_run_sound(s, seg, page, rec) || !pvi_slab_sound(s, seg, page, rec))
			return 1;
		if (known_type(st, pvi_rec_type(rec)))
			count_slab(s, st, seg, page, rec);
		*work += pvi_page_span(s, rec) + s->classes[pvi_rec_class(rec)].nslots / SLOTS_PER_UNIT;
		return pvi_page_span(s, rec);
	}
	return 1;
}

/* Up to a piece of a segment from *page on, under heap_lock. */
static void count_piece(struct pv_store *s, struct stats *st, const struct pvi_segment *seg,
			uint32_t *page)
{
	uint32_t left = PIECE, work;

	while (*page < seg->npages && left) {
		*page += count_run(s, st, seg, *page, &work);
		left -= work < left ? work : left;
	}
}

/* Is a page free to be handed out? As pvi_page_load() will see it, if it has not yet. */
static bool page_free(const struct pvi_segment *seg, uint32_t page)
{
	if (seg->loaded)
		return !(seg->taken[page / 64] >> (page % 64) & 1);
	return pvi_page_kind(pvi_rec_load(seg->map, page)) == PV_PAGE_FREE;
}

/* Free pages of a segment, and the longest run of them. */
static uint32_t free_run(const struct pvi_segment *seg, uint32_t *free_pages)
{
	uint32_t run = 0, longest = 0;

	*free_pages = 0;
	for (uint32_t i = seg->first_page; i < seg->npages; i++) {
		if (seg->loaded && i % 64 == 0 && seg->taken[i / 64] == ~0ull) {
			run = 0;
			i += 63;
			continue;
		}
		run = page_free(seg, i) ? run + 1 : 0;
		*free_pages += run != 0;
		if (run > longest)
			longest = run;
	}
	return longest;
}

static uint64_t backed_bytes(int fd)
{
	struct stat st;

	return fstat(fd, &st) < 0 ? 0 : (uint64_t) st.st_blocks * 512;
}

/* The pages and memory of one segment. Under heap_lock. */
static void count_pages(struct pv_store *s, struct stats *st, const struct pvi_segment *seg,
			uint32_t *longest)
{
	uint32_t free_pages, run = free_run(seg, &free_pages);

	st->public.segments++;
	st->public.bytes += seg->bytes;
	st->public.backed_bytes += backed_bytes(seg->fd);
	st->public.free_bytes += (uint64_t) free_pages << s->page_shift;
	st->public.used_bytes += (uint64_t) (seg->npages - seg->first_page - free_pages)
				 << s->page_shift;
	st->public.metadata_bytes += (uint64_t) seg->first_page << s->page_shift;
	if (run > *longest)
		*longest = run;
}

/* All of a segment, unless it leaves the store meanwhile: then it is not there when the lock is taken
 * again. The longest run of free pages to *longest. */
static void count_segment(struct pv_store *s, struct stats *st, uint32_t number, uint32_t *longest)
{
	const struct pvi_segment *seg = &s->segments[number];
	bool more = true;

	for (uint32_t page = 0; more && !st->no_memory;) {
		pthread_mutex_lock(&s->heap_lock);
		more = number < s->nsegments;
		if (more) {
			page = page < seg->first_page ? seg->first_page : page;
			count_piece(s, st, seg, &page);
			more = page < seg->npages;
			if (!more)
				count_pages(s, st, seg, longest);
		}
		pthread_mutex_unlock(&s->heap_lock);
	}
}

/* ---- what could be had ---- */

/* The largest object that a run of free pages has room for: an extent, or else a slot of a new slab. */
static uint64_t largest_of_run(const struct pv_store *s, uint32_t run)
{
	uint64_t bytes = (uint64_t) run << s->page_shift, largest = 0;

	if (bytes > s->classes[s->nclasses - 1].slot_bytes)
		return bytes;
	for (uint32_t i = 0; i < s->nclasses; i++)
		if (s->classes[i].npages <= run)
			largest = s->classes[i].slot_bytes;
	return largest;
}

static void count_largest(struct pv_store *s, struct stats *st, uint32_t longest)
{
	const struct pvi_thread *t = pvi_thread_find(s);
	uint32_t grown;

	if (s->readonly)
		return;
	pthread_mutex_lock(&s->heap_lock);
	grown = pvi_segment_growth_pages(s);
	pthread_mutex_unlock(&s->heap_lock);
	st->public.largest_bytes = largest_of_run(s, grown > longest ? grown : longest);
	for (uint32_t i = 0; i < st->public.ntypes; i++) {
		struct pv_stats_type *type = &st->types[i];
		const struct pv_stats_class *classes = st->classes[type->type];

		type->largest_bytes = st->public.largest_bytes;
		for (uint32_t c = 0; c < s->nclasses; c++) {
			uint32_t bin = pvi_bin_number(type->type, c);
			bool ready = t && bin < t->nbins && pvi_thread_slots(t, bin);

			if ((ready || (classes && classes[c].slabs.free)) &&
			    s->classes[c].slot_bytes > type->largest_bytes)
				type->largest_bytes = s->classes[c].slot_bytes;
		}
	}
}

/* ---- threads ---- */

static void count_thread(const struct pv_store *s, const struct pvi_thread *t,
			 struct pv_stats_thread *out)
{
	*out = (struct pv_stats_thread){.lane = t->lane_number, .self = t == pvi_thread_find(s)};
	for (uint32_t i = 0; i < t->nbins; i++) {
		uint32_t n = pvi_thread_slots(t, i);

		out->slots += n;
		if (n)
			out->bytes += (uint64_t) n *
				      s->classes[i & ((1u << PV_PAGE_CLASS_BITS) - 1)].slot_bytes;
	}
}

static void count_depots(struct pv_store *s, struct stats *st)
{
	for (uint32_t type = 1; type <= st->public.ntypes; type++) {
		pthread_mutex_lock(&s->heap_lock);
		for (uint32_t c = 0; s->index.types[type].bins && c < s->nclasses; c++) {
			uint64_t n = pvi_depot_slots(s->index.types[type].bins[c].depot);

			st->public.depot_slots += n;
			st->public.depot_bytes += n * s->classes[c].slot_bytes;
		}
		pthread_mutex_unlock(&s->heap_lock);
	}
}

/* The thread with the next lane, or NULL. Under heap_lock. */
static const struct pvi_thread *next_thread(const struct pv_store *s, uint32_t lane)
{
	const struct pvi_thread *best = NULL;

	for (const struct pvi_thread *t = s->threads; t; t = t->next)
		if (t->lane_number >= lane && (!best || t->lane_number < best->lane_number))
			best = t;
	return best;
}

static void count_threads(struct pv_store *s, struct stats *st)
{
	const struct pvi_thread *t;
	uint32_t n = 0;

	pthread_mutex_lock(&s->heap_lock);
	for (t = s->threads; t; t = t->next)
		n++;
	pthread_mutex_unlock(&s->heap_lock);
	st->threads = calloc(n + 1, sizeof(*st->threads));
	if (!st->threads) {
		st->no_memory = true;
		return;
	}
	/* One at a time; those that came since do not all find room. */
	for (uint32_t i = 0, lane = 0; i < n; i++) {
		pthread_mutex_lock(&s->heap_lock);
		t = next_thread(s, lane);
		if (t) {
			count_thread(s, t, &st->threads[st->public.nthreads++]);
			lane = t->lane_number + 1;
		}
		pthread_mutex_unlock(&s->heap_lock);
		if (!t)
			break;
	}
}

/* ---- sums ---- */

static void add_slabs(struct pv_stats_slabs *to, const struct pv_stats_slabs *from)
{
	to->slabs += from->slabs;
	to->pages += from->pages;
	to->slab_bytes += from->slab_bytes;
	to->live += from->live;
	to->reserved += from->reserved;
	to->held += from->held;
	to->retired += from->retired;
	to->free += from->free;
	to->live_bytes += from->live_bytes;
	to->busy_bytes += from->busy_bytes;
	to->free_bytes += from->free_bytes;
	to->metadata_bytes += from->metadata_bytes;
}

static void finish_slabs(struct pv_stats_slabs *slabs)
{
	if (slabs->slab_bytes)
		slabs->fragmentation = (double) slabs->free_bytes / (double) slabs->slab_bytes;
}

static void finish_class(const struct pv_store *s, struct pv_stats_class *class)
{
	struct pv_stats_slabs *a = &class->slabs;

	a->slab_bytes = a->pages << s->page_shift;
	a->live_bytes = a->live * class->slot_bytes;
	a->busy_bytes = (a->reserved + a->held + a->retired) * class->slot_bytes;
	a->free_bytes = a->free * class->slot_bytes;
	a->metadata_bytes = a->slab_bytes - a->slabs * class->slots * class->slot_bytes;
	finish_slabs(a);
}

/* From a type's classes its sum, and those without slabs out. */
static void finish_type(struct pv_store *s, struct stats *st, struct pv_stats_type *type)
{
	struct pv_stats_class *classes = st->classes[type->type];

	for (uint32_t i = 0; classes && i < s->nclasses; i++) {
		if (!classes[i].slabs.slabs)
			continue;
		finish_class(s, &classes[i]);
		add_slabs(&type->slabs, &classes[i].slabs);
		classes[type->nclasses++] = classes[i];
	}
	type->classes = classes;
	finish_slabs(&type->slabs);
	type->live_objects = type->slabs.live + type->extents;
	type->live_bytes = type->slabs.live_bytes + type->extent_bytes;
}

static void finish(struct pv_store *s, struct stats *st)
{
	struct pv_stats *p = &st->public;

	for (uint32_t i = 0; i < p->ntypes; i++) {
		struct pv_stats_type *type = &st->types[i];

		finish_type(s, st, type);
		add_slabs(&p->slabs, &type->slabs);
		p->live_objects += type->live_objects;
		p->live_bytes += type->live_bytes;
		p->extents += type->extents;
		p->extent_bytes += type->extent_bytes;
		p->reserved_extents += type->reserved_extents;
		p->reserved_extent_bytes += type->reserved_extent_bytes;
	}
	finish_slabs(&p->slabs);
	p->metadata_bytes += p->slabs.metadata_bytes;
	p->types = st->types;
	p->threads = st->threads;
}

/* ---- public ---- */

static bool begin(struct pv_store *s, struct stats *st)
{
	uint32_t n;

	/* Types are never taken away. */
	pthread_mutex_lock(&s->heap_lock);
	n = s->index.ntypes;
	pthread_mutex_unlock(&s->heap_lock);
	st->types = calloc(n + 1ul, sizeof(*st->types));
	st->classes = calloc(n + 1ul, sizeof(*st->classes));
	st->names = calloc(n + 1ul, sizeof(*st->names));
	if (!st->types || !st->classes || !st->names)
		return false;
	st->public.ntypes = n;
	pthread_mutex_lock(&s->heap_lock);
	for (uint32_t i = 0; i < n; i++) {
		memcpy(st->names[i], s->index.types[i + 1].name, sizeof(st->names[i]));
		st->types[i] = (struct pv_stats_type){
			.name = st->names[i],
			.type = i + 1,
			.bytes = s->index.types[i + 1].bytes,
		};
	}
	pthread_mutex_unlock(&s->heap_lock);
	return true;
}

int pv_stats_get(struct pv_store *s, struct pv_stats **out)
{
	struct stats *st = calloc(1, sizeof(*st));
	uint32_t longest = 0;

	if (!st || !begin(s, st)) {
		pv_stats_free(st ? &st->public : NULL);
		return pvi_fail(-ENOMEM, "no memory for statistics");
	}
	st->public.bytes = s->index.rec->bytes;
	st->public.metadata_bytes = s->index.rec->bytes;
	st->public.backed_bytes = backed_bytes(s->index.fd);
	st->public.page_bytes = 1ull << s->page_shift;
	st->public.available_bytes = pvi_memory_room();
	st->public.limit_bytes = s->limit_bytes;
	st->public.window_bytes = s->window_bytes;
	count_threads(s, st);
	count_depots(s, st);
	for (uint32_t i = 0; i < s->nsegments; i++)
		count_segment(s, st, i, &longest);
	if (st->no_memory) {
		pv_stats_free(&st->public);
		return pvi_fail(-ENOMEM, "no memory for statistics");
	}
	count_largest(s, st, longest);
	finish(s, st);
	*out = &st->public;
	return 0;
}

void pv_stats_free(struct pv_stats *stats)
{
	struct stats *st = (struct stats *) stats;

	if (!st)
		return;
	for (uint32_t i = 1; st->classes && i <= st->public.ntypes; i++)
		free(st->classes[i]);
	free(st->classes);
	free(st->types);
	free(st->threads);
	free(st->names);
	free(st);
}
