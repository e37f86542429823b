/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Visiting live objects. Goes by page maps and slot bytes alone, and trusts neither: what makes no
 * sense is passed over, which pv_check() reports. Slabs of other types cost the look at their page
 * map entries.
 */
#include "internal.h"
#include "slotbytes.h"

typedef int (*visit_fn)(void *ctx, void *object, size_t bytes, pv_type_t type);

static int visit_slab(struct pv_store *s, const struct pvi_segment *seg, uint32_t page,
		      uint64_t rec, visit_fn visit, void *ctx)
{
	const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];
	const uint8_t *bytes = pvi_slab_bytes(s, seg, page, rec);
	uint8_t *slab = seg->addr + ((uint64_t)page << s->page_shift);
	uint32_t slot_bytes = c->slot_bytes, type = pvi_rec_type(rec);

	for (uint32_t i = 0; i < c->nslots; i += 8) {
		uint32_t live = pvi_slotbytes_equal(pvi_slotbytes_load(bytes, i), PV_SLOT_LIVE) &
				pvi_slotbytes_below(i, c->nslots);

		if (!live)
			continue;
		live &= ~pvi_slotbytes_covered(c, pvi_rec_meta(rec), i);
		for (; live; live &= live - 1) {
			size_t k = i + (uint32_t)__builtin_ctz(live);
			int err = visit(ctx, slab + k * slot_bytes, slot_bytes, type);

			if (err)
				return err;
		}
	}
	return 0;
}

/* Visit what begins at this page; *n: how many pages that is. */
static int visit_run(struct pv_store *s, const struct pvi_segment *seg, uint32_t page,
		     pv_type_t type, visit_fn visit, void *ctx, uint32_t *n)
{
	uint64_t rec = pvi_rec_load(seg->map, page);
	bool extent = pvi_page_kind(rec) == PV_PAGE_EXTENT;
	uint32_t has;

	*n = 1;
	if (rec == 0 || !pvi_page_run_sound(s, seg, page, rec))
		return 0;
	*n = pvi_page_span(s, rec);
	has = extent ? pvi_rec_extent_type(rec) : pvi_rec_type(rec);
	if (type ? has != type : has > s->index.ntypes)
		return 0;
	if (extent)
		return visit(ctx, seg->addr + ((size_t)page << s->page_shift),
			     (size_t)*n << s->page_shift, has);
	return pvi_slab_sound(s, seg, page, rec) ? visit_slab(s, seg, page, rec, visit, ctx) : 0;
}

static int visit_segments(struct pv_store *s, pv_type_t type, visit_fn visit, void *ctx)
{
	for (uint32_t k = 0; k < s->nsegments; k++) {
		const struct pvi_segment *seg = &s->segments[k];

		for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
			int err = visit_run(s, seg, i, type, visit, ctx, &n);

			if (err)
				return err;
		}
	}
	return 0;
}

int pv_iterate(struct pv_store *s, pv_type_t type, visit_fn visit, void *ctx)
{
	int err;

	pvi_retire_pause(s);
	err = visit_segments(s, type, visit, ctx);
	pvi_retire_resume(s);
	return err;
}
