/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Walking a whole store: pv_check() says what is wrong with it, pv_iterate() visits its objects. Both
 * go by the bytes in the arena and the index alone, not by what this process has derived from them,
 * and trust neither: a walk over a damaged store reports and goes on.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

struct walk {
	struct pv_store *s;
	struct pv_check_report *report;
	void (*tell)(void *ctx, const char *line);
	void *ctx;
};

__attribute__((format(printf, 2, 3))) static void problem(struct walk *w, const char *format, ...)
{
	char line[256];
	va_list ap;

	w->report->problems++;
	if (!w->tell)
		return;
	va_start(ap, format);
	vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	w->tell(w->ctx, line);
}

/* Is a page map entry on its way to another state, which only an attach for writing can bring it to? */
static bool in_transit(const struct walk *w, const struct pvi_segment *seg, uint32_t page)
{
	uint64_t off = seg->off + ((uint64_t) page << w->s->page_shift);

	return w->s->readonly && (pvi_lane_covers(w->s, off) || pvi_tx_covers(w->s, off));
}

/* What a slot byte means: RESERVED, RETIRED and HELD of a process that is gone are FREE. */
static uint8_t slot_state(bool cold, uint8_t byte)
{
	return cold && byte >= PV_SLOT_RESERVED && byte <= PV_SLOT_HELD ? PV_SLOT_FREE : byte;
}

static void check_slab(struct walk *w, const struct pvi_segment *seg, uint32_t page, uint64_t rec)
{
	const struct pvi_class *c = &w->s->classes[pvi_rec_class(rec)];
	const uint8_t *bytes = pvi_slab_bytes(w->s, seg, page, rec);
	uint32_t covered_from = pvi_rec_meta(rec) / c->slot_bytes;
	uint32_t covered = c->nslots - c->usable;
	bool cold = !pvi_store_page(w->s, seg->off + ((uint64_t) page << w->s->page_shift))->slab;

	w->report->slabs++;
	if (!pvi_slab_sound(w->s, seg, page, rec)) {
		problem(w, "segment %u: page %u: the slab's header contradicts the page map",
			seg->number, page);
		return;
	}
	for (uint32_t i = 0; i < c->nslots; i++) {
		bool meta = c->in_grid && i >= covered_from && i < covered_from + covered;

		if (meta != (bytes[i] == PV_SLOT_META)) {
			problem(w, "segment %u: page %u: slot %u: state %u where the header lies",
				seg->number, page, i, bytes[i]);
			continue;
		}
		switch (slot_state(cold, bytes[i])) {
		case PV_SLOT_LIVE:
			w->report->live_objects++;
			w->report->live_bytes += c->slot_bytes;
			break;
		case PV_SLOT_FREE:
			w->report->free_slots++;
			break;
		case PV_SLOT_RETIRED:
			w->report->retired_objects++;
			break;
		case PV_SLOT_RESERVED:
		case PV_SLOT_HELD:
			w->report->reserved_objects++;
			break;
		case PV_SLOT_META:
			break;
		default:
			problem(w, "segment %u: page %u: slot %u: unknown state %u", seg->number,
				page, i, bytes[i]);
		}
	}
}

static void check_extent(struct walk *w, const struct pvi_segment *seg, uint32_t page, uint64_t rec)
{
	uint32_t n = pvi_rec_extent_pages(rec);

	w->report->extents++;
	w->report->live_objects++;
	w->report->live_bytes += (uint64_t) n << w->s->page_shift;
	if (pvi_rec_extent_type(rec) > w->s->index.ntypes)
		problem(w, "segment %u: page %u: extent of unknown type %u", seg->number, page,
			pvi_rec_extent_type(rec));
}

static void check_segment(struct walk *w, const struct pvi_segment *seg)
{
	uint64_t meta = PV_PAGE_OTHER | PV_OTHER_META << PV_OTHER_SUB_SHIFT;

	for (uint32_t i = 0; i < seg->first_page; i++)
		if (pvi_rec_load(seg->map, i) != meta)
			problem(w, "segment %u: page %u holds the header, the page map denies it",
				seg->number, i);
	for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);

		n = 1;
		if (rec == 0) {
			w->report->free_pages++;
			if (seg->loaded && seg->slabs[i].state == PVI_EXTENT_RETIRED)
				w->report->retired_objects++;
			continue;
		}
		if (!pvi_page_run_sound(w->s, seg, i, rec) && in_transit(w, seg, i))
			continue;
		if (pvi_page_kind(rec) == PV_PAGE_FREE ||
		    !pvi_page_head_sound(w->s, seg, i, rec)) {
			problem(w, "segment %u: page %u: entry 0x%016" PRIx64 " makes no sense",
				seg->number, i, rec);
			continue;
		}
		if (!pvi_page_run_sound(w->s, seg, i, rec)) {
			problem(w, "segment %u: page %u: not all %u pages of this %s belong to it",
				seg->number, i, pvi_page_span(w->s, rec),
				pvi_page_kind(rec) == PV_PAGE_SLAB ? "slab" : "extent");
			continue;
		}
		n = pvi_page_span(w->s, rec);
		if (pvi_page_kind(rec) == PV_PAGE_SLAB)
			check_slab(w, seg, i, rec);
		else
			check_extent(w, seg, i, rec);
	}
}

bool pvi_check_live(const struct pv_store *s, uint64_t off, uint32_t type, uint64_t bytes)
{
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	const uint8_t *byte;
	uint64_t rec;
	uint32_t page;

	if (!seg || off - seg->data_off >= seg->data_bytes)
		return false;
	off -= seg->off;
	page = (uint32_t) (off >> s->page_shift);
	rec = pvi_rec_load(seg->map, page);
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
		return pvi_page_run_sound(s, seg, page, rec) &&
		       off == (uint64_t) page << s->page_shift &&
		       pvi_rec_extent_type(rec) == type &&
		       (uint64_t) pvi_rec_extent_pages(rec) << s->page_shift >= bytes;
	byte = pvi_slab_slot(s, seg, off, &rec);
	return byte && *byte == PV_SLOT_LIVE && pvi_rec_type(rec) == type &&
	       s->classes[pvi_rec_class(rec)].slot_bytes >= bytes;
}

static void check_roots(struct walk *w)
{
	for (uint32_t i = 0; i < w->s->index.nroots; i++) {
		const struct pvi_root *r = &w->s->index.roots[i];

		if (!pvi_check_live(w->s, r->off, r->type, r->bytes))
			problem(w,
				"index: root %s at offset 0x%" PRIx64
				" is not a live object of type %u with %" PRIu64 " bytes",
				r->name, r->off, r->type, r->bytes);
	}
}

/* What is pending in a lane is to be seen to by the next attach: a reader has that before it, unless the
 * attach would refuse; a writer has it behind it, and only its own threads' transactions are open. */
static void check_lanes(struct walk *w)
{
	for (uint32_t i = 0; i < w->s->lanes_used; i++) {
		uint64_t count = w->s->lanes[i].count;
		bool linking = pvi_lane_linking(&w->s->lanes[i]);

		w->report->intents += count || linking;
		w->report->transactions += w->s->lanes[i].tx != PV_TX_NONE;
		if (count && !w->s->readonly)
			problem(w, "segment 0: lane %u has an intent of %" PRIu64 " actions", i, count);
		if (linking && !w->s->readonly)
			problem(w, "segment 0: lane %u has an intent of one word", i);
	}
	if (w->s->readonly && (pvi_lane_check(w->s) || pvi_tx_check(w->s)))
		problem(w, "%s", pv_last_error());
}

static void check_index(struct walk *w)
{
	uint64_t generation = pvi_index_generation(w->s->index.rec);

	if (!pvi_index_commit_sound(&w->s->index))
		problem(w, "index: the commit word 0x%016" PRIx64 " is damaged", w->s->index.rec->commit);
	else if (!pvi_index_slot_sound(w->s->index.rec, generation, false) &&
		 generation == pvi_index_generation(w->s->index.rec))
		problem(w, "index: generation %" PRIu64 ": its slot is damaged", generation);
}

int pv_check(struct pv_store *s, void (*tell)(void *ctx, const char *line), void *ctx,
	     struct pv_check_report *report)
{
	struct pv_check_report r = {0};
	struct walk w = {.s = s, .report = &r, .tell = tell, .ctx = ctx};

	pvi_retire_pause(s);
	check_index(&w);
	check_lanes(&w);
	for (uint32_t i = 0; i < s->nsegments; i++)
		check_segment(&w, &s->segments[i]);
	check_roots(&w);
	for (uint32_t i = 0; i < s->nsegments; i++)
		if (s->segments[i].sealed && pvi_seal_verify(s, i, s->segments[i].fd))
			problem(&w, "%s", pv_last_error());
	pvi_retire_resume(s);
	*report = r;
	return 0;
}

/* ---- visiting ---- */

static int visit_slab(struct pv_store *s, const struct pvi_segment *seg, uint32_t page, uint64_t rec,
		      int (*visit)(void *ctx, void *object, size_t bytes, pv_type_t type), void *ctx)
{
	const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];
	const uint8_t *bytes = pvi_slab_bytes(s, seg, page, rec);
	uint8_t *slab = seg->addr + ((uint64_t) page << s->page_shift);

	for (uint32_t i = 0; i < c->nslots; i++) {
		int err;

		if (bytes[i] != PV_SLOT_LIVE)
			continue;
		err = visit(ctx, slab + (size_t) i * c->slot_bytes, c->slot_bytes, pvi_rec_type(rec));
		if (err)
			return err;
	}
	return 0;
}

static int visit_segments(struct pv_store *s, pv_type_t type,
			  int (*visit)(void *ctx, void *object, size_t bytes, pv_type_t type),
			  void *ctx)
{
	for (uint32_t k = 0; k < s->nsegments; k++) {
		const struct pvi_segment *seg = &s->segments[k];

		for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
			uint64_t rec = pvi_rec_load(seg->map, i);
			int err = 0;

			n = 1;
			if (!pvi_page_run_sound(s, seg, i, rec))
				continue;
			n = pvi_page_span(s, rec);
			if (pvi_page_kind(rec) == PV_PAGE_EXTENT) {
				if (!type || pvi_rec_extent_type(rec) == type)
					err = visit(ctx, seg->addr + ((size_t) i << s->page_shift),
						    (size_t) n << s->page_shift,
						    pvi_rec_extent_type(rec));
			} else if ((!type || pvi_rec_type(rec) == type) &&
				   pvi_slab_sound(s, seg, i, rec)) {
				err = visit_slab(s, seg, i, rec, visit, ctx);
			}
			if (err)
				return err;
		}
	}
	return 0;
}

int pv_iterate(struct pv_store *s, pv_type_t type,
	       int (*visit)(void *ctx, void *object, size_t bytes, pv_type_t type), void *ctx)
{
	int err;

	pvi_retire_pause(s);
	err = visit_segments(s, type, visit, ctx);
	pvi_retire_resume(s);
	return err;
}
