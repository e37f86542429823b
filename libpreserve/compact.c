/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Compaction: which objects are to be moved together, and into which pages. The move itself is move.c.
 *
 * The objects of one type and size class need so many slabs and not more; the fullest stay. Of all segments
 * so many stay as have room for that; what lies in the others is moved too. Where room is there only
 * when the sparse slabs have gone, they go first, in a round of their own.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <preserve/compact.h>

#include "handover.h"
#include "internal.h"
#include "move.h"

/** A slab with objects. */
struct slab_ref {
	uint32_t bin;
	uint32_t live;
	uint32_t segment;
	uint32_t page;
};

/** What is there. */
struct census {
	struct pv_store *s;
	struct slab_ref *slabs; /* by bin, the fullest first */
	size_t nslabs;
	size_t room;
	uint32_t keep_min; /* so many segments stay in any case */
};

/** What it takes to have everything in the segments below `keep`. */
struct plan {
	uint32_t keep;
	uint64_t pages_needed; /* free ones, for new slabs and extents */
	uint64_t pages_freed;  /* of slabs, below `keep` */
	uint64_t pages_left;   /* of slabs and extents behind it */
	uint64_t objects;
	uint64_t bytes;
	uint64_t slabs; /* that go, without those that come */
};

/* ---- what is there ---- */

static bool pinned(const struct pv_store *s, uint32_t type)
{
	return type <= s->index.ntypes && s->index.types[type].flags & PV_TYPE_PINNED;
}

static int add_slab(struct census *c, const struct slab_ref *ref)
{
	if (c->nslabs == c->room) {
		size_t room = c->room ? 2 * c->room : 256;
		struct slab_ref *bigger = realloc(c->slabs, room * sizeof(*bigger));

		if (!bigger)
			return pvi_fail(-ENOMEM, "no memory for a list of %zu slabs", room);
		c->slabs = bigger;
		c->room = room;
	}
	c->slabs[c->nslabs++] = *ref;
	return 0;
}

static int fullest_first(const void *a, const void *b)
{
	const struct slab_ref *x = a, *y = b;

	if (x->bin != y->bin)
		return x->bin < y->bin ? -1 : 1;
	if (x->live != y->live)
		return x->live > y->live ? -1 : 1;
	if (x->segment != y->segment)
		return x->segment < y->segment ? -1 : 1;
	return x->page < y->page ? -1 : 1;
}

static int count_segment(struct census *c, const struct pvi_segment *seg)
{
	const struct pv_store *s = c->s;

	for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);
		uint32_t type = pvi_rec_extent_type(rec), class = pvi_rec_class(rec);
		struct slab_ref ref = {.segment = seg->number, .page = i};
		int err = 0;

		n = 1;
		if (pvi_page_kind(rec) == PV_PAGE_FREE)
			continue;
		n = pvi_page_span(s, rec);
		if (pvi_page_kind(rec) == PV_PAGE_SLAB) {
			type = pvi_rec_type(rec);
			ref.bin = pvi_bin_number(type, class);
			ref.live = s->classes[class].usable - seg->slabs[i].nfree;
			err = add_slab(c, &ref);
		}
		if (err)
			return err;
		if (pinned(s, type))
			c->keep_min = seg->number + 1;
	}
	return 0;
}

/* The store is quiet: pvi_move_begin(). */
static int take_census(struct census *c, struct pv_store *s)
{
	int err = 0;

	*c = (struct census){.s = s, .keep_min = 1};
	for (uint32_t i = 0; i < s->nsegments && !err; i++) {
		if (s->segments[i].sealed)
			c->keep_min = i + 1;
		else
			err = count_segment(c, &s->segments[i]);
	}
	qsort(c->slabs, c->nslabs, sizeof(*c->slabs), fullest_first);
	return err;
}

/* ---- planning ---- */

/* The slabs of one bin, n of them. `close`: those that go hand out no slots any more, from the sparsest on, as
 * long as there are not more than *most objects in them. */
static void plan_bin(const struct census *c, struct plan *p, const struct slab_ref *slabs, size_t n,
		     uint64_t *most, bool close)
{
	struct pv_store *s = c->s;
	const struct pvi_class *class = &s->classes[pvi_bin_class(slabs->bin)];
	uint64_t live = 0, want, stay, low = 0;

	if (pinned(s, pvi_bin_type(slabs->bin)))
		return;
	for (size_t i = 0; i < n; i++) {
		live += slabs[i].live;
		low += slabs[i].segment < p->keep;
	}
	want = (live + class->usable - 1) / class->usable;
	stay = low < want ? low : want;
	p->pages_needed += (want - stay) * class->npages;
	p->slabs += n - want;
	for (size_t i = n; i-- > 0;) {
		const struct slab_ref *r = &slabs[i];
		bool below = r->segment < p->keep;

		low -= below;
		if (below && low < stay)
			continue; /* of those below `keep` the first `stay` ones */
		p->objects += r->live;
		p->bytes += (uint64_t) r->live * class->slot_bytes;
		if (below)
			p->pages_freed += class->npages;
		else
			p->pages_left += class->npages;
		if (!close || r->live > *most)
			continue;
		*most -= r->live;
		pvi_slab_close(s, &s->segments[r->segment], r->page);
	}
}

static void plan_extents(const struct census *c, struct plan *p)
{
	const struct pv_store *s = c->s;

	for (uint32_t k = p->keep; k < s->nsegments; k++) {
		const struct pvi_segment *seg = &s->segments[k];

		for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
			uint64_t rec = pvi_rec_load(seg->map, i);

			n = pvi_page_kind(rec) == PV_PAGE_FREE ? 1 : pvi_page_span(s, rec);
			if (pvi_page_kind(rec) != PV_PAGE_EXTENT)
				continue;
			p->pages_needed += n;
			p->pages_left += n;
			p->objects++;
			p->bytes += (uint64_t) n << s->page_shift;
		}
	}
}

static struct plan make_plan(const struct census *c, uint32_t keep, uint64_t most, bool close)
{
	struct plan p = {.keep = keep};

	for (size_t i = 0, n; i < c->nslabs; i += n) {
		for (n = 1; i + n < c->nslabs && c->slabs[i + n].bin == c->slabs[i].bin;)
			n++;
		plan_bin(c, &p, &c->slabs[i], n, &most, close);
	}
	plan_extents(c, &p);
	return p;
}

static uint64_t free_pages(const struct pv_store *s, uint32_t keep)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < keep; i++)
		n += s->segments[i].free_pages;
	return n;
}

/* The fewest segments, at least `min`, into which everything fits; `later`: once sparse slabs have gone. */
static uint32_t fewest(const struct census *c, uint32_t min, bool later)
{
	uint32_t max = c->s->nsegments;

	while (min < max) {
		uint32_t keep = min + (max - min) / 2;
		struct plan p = make_plan(c, keep, 0, false);

		if (p.pages_needed <= free_pages(c->s, keep) + (later ? p.pages_freed : 0))
			max = keep;
		else
			min = keep + 1;
	}
	return min;
}

/* ---- moving ---- */

#define TELL_BYTES (16ull << 20) /* between two calls of pv_compact_options.progress */

struct round {
	struct pv_store *s;
	struct pvi_move *m;
	uint32_t keep;
	uint64_t done;
	uint64_t total;
	bool copied; /* there was room for all copies */
	uint64_t told; /* of `done` */
	const struct pv_compact_options *o;
};

static void tell_copied(struct round *r)
{
	r->told = r->done;
	if (r->o->progress)
		r->o->progress(r->o->ctx, "copy", r->done, r->total);
}

static int move_one(struct round *r, void *old, uint32_t type, uint64_t bytes, uint32_t align_pages)
{
	struct pv_store *s = r->s;
	void *fresh;
	int err;

	s->steer.from = 0;
	s->steer.to = r->keep;
	err = align_pages ? pvi_heap_extent(s, type, bytes, align_pages, &fresh)
			  : pv_reserve(s, type, bytes, &fresh);
	s->steer.to = 0;
	if (err)
		return err;
	pvi_move_copy_all(r->m, fresh, old, bytes, type);
	err = pvi_move_add(r->m, old, fresh);
	if (err)
		pv_cancel(s, fresh);
	r->done += bytes;
	return err;
}

static int move_slab(struct round *r, const struct pvi_segment *seg, uint32_t page, uint64_t rec)
{
	const struct pvi_class *c = &r->s->classes[pvi_rec_class(rec)];
	const uint8_t *bytes = pvi_slab_bytes(r->s, seg, page, rec);
	uint8_t *slab = seg->addr + ((uint64_t) page << r->s->page_shift);
	int err = 0;

	for (uint32_t i = 0; i < c->nslots && !err; i++)
		if (bytes[i] == PV_SLOT_LIVE)
			err = move_one(r, slab + (size_t) i * c->slot_bytes, pvi_rec_type(rec),
				       c->slot_bytes, 0);
	return err;
}

static int move_segment(struct round *r, const struct pvi_segment *seg)
{
	const struct pv_store *s = r->s;

	for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);
		int err = 0;

		n = pvi_page_kind(rec) == PV_PAGE_FREE ? 1 : pvi_page_span(s, rec);
		if (pvi_page_kind(rec) == PV_PAGE_SLAB && seg->slabs[i].state == PVI_SLAB_CLOSED)
			err = move_slab(r, seg, i, rec);
		else if (pvi_page_kind(rec) == PV_PAGE_EXTENT && seg->number >= r->keep)
			err = move_one(r, seg->addr + ((uint64_t) i << s->page_shift),
				       pvi_rec_extent_type(rec), (uint64_t) n << s->page_shift,
				       1u << pvi_rec_extent_align(rec));
		if (err)
			return err;
		if (r->done - r->told >= TELL_BYTES)
			tell_copied(r);
	}
	return 0;
}

static void tell_references(void *ctx, uint64_t done, uint64_t total)
{
	const struct pv_compact_options *o = ctx;

	if (o->progress)
		o->progress(o->ctx, "references", done, total);
}

/*
 * The segments that are to stay, at least `min`, and into which everything can be moved now. If it fits only when
 * sparse slabs have gone: these go, in all segments.
 */
static uint32_t choose_keep(const struct census *c, uint32_t min)
{
	uint32_t aim = fewest(c, min, true), now = fewest(c, min, false);

	if (aim == now)
		return now;
	return make_plan(c, c->s->nsegments, 0, false).pages_freed ? c->s->nsegments : now;
}

/* Stop the world and look at what there is. c->slabs is the caller's to free. */
static int begin(struct pv_store *s, struct pvi_move **m, struct census *c)
{
	int err = pvi_move_begin(s, PV_MOVE_COMPACT, m);

	if (err)
		return err;
	err = take_census(c, s);
	if (err) {
		free(c->slabs);
		pvi_move_cancel(*m);
	}
	return err;
}

/* One move of at most so many objects. *moved: how many there were; 0: there is nothing to be gained. */
static int run_round(struct pv_store *s, const struct pv_compact_options *o, uint32_t min,
		     uint64_t most, struct round *r, uint64_t *moved)
{
	struct pvi_move *m;
	struct census c;
	struct plan p;
	int err = begin(s, &m, &c);

	*moved = 0;
	if (err)
		return err;
	pthread_mutex_lock(&s->heap_lock);
	min = min < c.keep_min ? c.keep_min : min;
	p = make_plan(&c, most == UINT64_MAX ? choose_keep(&c, min) : s->nsegments, most, true);
	pthread_mutex_unlock(&s->heap_lock);
	free(c.slabs);
	*r = (struct round){.s = s, .m = m, .keep = p.keep, .total = p.bytes, .o = o};
	m->tables_from = p.keep;
	m->progress = tell_references;
	m->ctx = (void *) (uintptr_t) o;
	for (uint32_t i = 0; i < s->nsegments && !err; i++)
		err = move_segment(r, &s->segments[i]);
	*moved = m->n;
	r->copied = !err;
	if (r->done != r->told)
		tell_copied(r);
	if (err) {
		pvi_move_cancel(m);
		return err;
	}
	return pvi_move_commit(m);
}

/* Rounds until there is nothing to be gained. */
static int run(struct pv_store *s, const struct pv_compact_options *o, struct pv_compact_report *report)
{
	uint64_t most = UINT64_MAX, moved;
	uint32_t min = 1;
	struct round r = {0};
	int err;

	for (;;) {
		err = run_round(s, o, min, most, &r, &moved);
		if (!err) {
			report->rounds += moved != 0;
			report->objects_moved += moved;
			report->bytes_moved += r.done;
			if (!moved)
				return 0;
			err = pv_trim(s, NULL);
			if (err)
				return err;
			most = UINT64_MAX;
		} else if (err == -ENOSPC && !r.copied && r.keep < s->nsegments) {
			min = r.keep + 1; /* free pages are not where large objects need them */
		} else if (err == -ENOSPC && r.copied && moved > 1) {
			most = moved / 2; /* no room for the tables */
		} else {
			return err;
		}
	}
}

/* ---- what is returned ---- */

struct totals {
	uint64_t slabs;
	uint64_t pages;
	uint64_t segments;
	uint64_t bytes;
	uint64_t memory;
};

static struct totals count(struct pv_store *s)
{
	struct totals t = {.segments = s->nsegments, .memory = pvi_backing_bytes(s), .pages = s->used_pages};

	for (uint32_t k = 0; k < s->nsegments; k++) {
		const struct pvi_segment *seg = &s->segments[k];

		t.bytes += seg->bytes;
		for (uint32_t i = seg->first_page; i < seg->npages; i++) {
			uint64_t rec = pvi_rec_load(seg->map, i);

			t.slabs += pvi_page_kind(rec) == PV_PAGE_SLAB && pvi_rec_back(rec) == 0;
		}
	}
	return t;
}

static int dry_run(struct pv_store *s, struct pv_compact_report *report)
{
	struct pvi_move *m;
	struct census c;
	struct plan p;
	int err = begin(s, &m, &c);

	if (err)
		return err;
	pthread_mutex_lock(&s->heap_lock);
	p = make_plan(&c, fewest(&c, c.keep_min, true), 0, false);
	report->objects_moved = p.objects;
	report->bytes_moved = p.bytes;
	report->slabs_returned = p.slabs;
	report->segments_returned = s->nsegments - p.keep;
	report->pages_bytes = p.pages_freed + p.pages_left - p.pages_needed;
	for (uint32_t i = p.keep; i < s->nsegments; i++) {
		report->segments_bytes += s->segments[i].bytes;
		report->pages_bytes += s->segments[i].first_page;
	}
	report->pages_bytes <<= s->page_shift;
	pthread_mutex_unlock(&s->heap_lock);
	free(c.slabs);
	pvi_move_cancel(m);
	return 0;
}

static int take_options(struct pv_compact_options *o, const struct pv_compact_options *options)
{
	*o = (struct pv_compact_options){.size = sizeof(*o)};
	if (!options)
		return 0;
	if (options->size != sizeof(*o) || options->flags & ~PV_COMPACT_DRY_RUN || options->reserved)
		return pvi_fail(-EINVAL, "pv_compact_options: size %zu, flags 0x%x make no sense",
				options->size, options->flags);
	*o = *options;
	return 0;
}

/* What is in use by then is counted when nobody holds slots ready any more. */
static int start(struct pv_store *s, struct totals *t)
{
	struct pvi_move *m;
	int err = pvi_move_begin(s, PV_MOVE_COMPACT, &m);

	if (err)
		return err;
	pvi_move_cancel(m);
	pthread_mutex_lock(&s->heap_lock);
	*t = count(s);
	pthread_mutex_unlock(&s->heap_lock);
	return 0;
}

static void finish(struct pv_store *s, const struct totals *before, struct pv_compact_report *report)
{
	struct totals after;

	pthread_mutex_lock(&s->heap_lock);
	after = count(s);
	pthread_mutex_unlock(&s->heap_lock);
	report->slabs_returned = before->slabs - after.slabs;
	report->pages_bytes = (before->pages - after.pages) << s->page_shift;
	report->segments_returned = before->segments - after.segments;
	report->segments_bytes = before->bytes - after.bytes;
	report->memory_bytes = before->memory > after.memory ? before->memory - after.memory : 0;
}

int pv_compact(struct pv_store *s, const struct pv_compact_options *options,
	       struct pv_compact_report *report)
{
	struct pv_compact_report unused;
	struct pv_compact_options o;
	struct totals before;
	int err = take_options(&o, options), trimmed;

	report = report ? report : &unused;
	memset(report, 0, sizeof(*report));
	if (err)
		return err;
	if (__atomic_load_n(&s->handover->state, __ATOMIC_RELAXED) == PV_STATE_PREPARED)
		return pvi_fail(-EBUSY, "the store is prepared for a kexec, and no memory can be returned: "
					"compact it before, or after pv_handover_cancel()");
	if (o.flags & PV_COMPACT_DRY_RUN)
		return dry_run(s, report);
	err = start(s, &before);
	if (err)
		return err;
	err = run(s, &o, report);
	trimmed = pv_trim(s, NULL);
	finish(s, &before, report);
	return err ? err : trimmed;
}
