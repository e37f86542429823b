/* SPDX-License-Identifier: BSD-3-Clause */
/* The part of a full check that goes by the arena's own records: page maps, slab headers, slot
 * bytes. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "check.h"
#include "slotbytes.h"

/* ---- page maps ---- */

/* Is a page map entry on its way to another state, which only an attach for writing can bring it
 * to? */
static bool in_transit(const struct pvi_check *c, const struct pvi_segment *seg, uint32_t page)
{
	uint64_t off = seg->off + ((uint64_t)page << c->s->page_shift);

	return c->s->readonly && (pvi_lane_covers(c->s, off) || pvi_tx_covers(c->s, off));
}

static void enter(struct pvi_check *c, const struct pvi_segment *seg, uint32_t page, uint32_t n,
		  uint64_t rec)
{
	bool slab = pvi_page_kind(rec) == PV_PAGE_SLAB;

	if (slab) /* words of its own: they are written by one thread */
		c->nbits = (c->nbits + 63) & ~63ull;
	for (uint32_t k = 0; k < n; k++)
		c->pages[seg->number][page + k] = (struct pvi_check_page){rec, c->nbits, k};
	c->nbits += slab ? (c->s->classes[pvi_rec_class(rec)].nslots + 63) & ~63u : 1;
}

/* What begins at this page; how many pages that is. */
static uint32_t check_run(struct pvi_check *c, const struct pvi_segment *seg, uint32_t page,
			  uint64_t rec)
{
	uint32_t n, type;

	if (!pvi_page_run_sound(c->s, seg, page, rec)) {
		bool head = pvi_page_kind(rec) != PV_PAGE_FREE &&
			    pvi_page_head_sound(c->s, seg, page, rec);

		if (in_transit(c, seg, page) || !pvi_check_settled(c, seg, page, rec))
			return 1;
		if (!head)
			pvi_check_problem(
				c, "segment %u: page %u: entry 0x%016" PRIx64 " makes no sense",
				seg->number, page, rec);
		else if (!pvi_page_run_sound(c->s, seg, page, rec))
			pvi_check_problem(
				c, "segment %u: page %u: not all %u pages of this %s belong to it",
				seg->number, page, pvi_page_span(c->s, rec),
				pvi_page_kind(rec) == PV_PAGE_SLAB ? "slab" : "extent");
		return 1;
	}
	n = pvi_page_span(c->s, rec);
	if (pvi_page_kind(rec) == PV_PAGE_SLAB) {
		enter(c, seg, page, n, rec);
		return n;
	}
	type = pvi_rec_extent_type(rec);
	c->r.extents++;
	c->r.live_objects++;
	c->r.live_bytes += (uint64_t)n << c->s->page_shift;
	if (type <= c->ntypes)
		enter(c, seg, page, n, rec);
	else if (pvi_check_settled(c, seg, page, rec))
		pvi_check_problem(c, "segment %u: page %u: extent of unknown type %u", seg->number,
				  page, type);
	return n;
}

int pvi_check_map(struct pvi_check *c, const struct pvi_segment *seg)
{
	uint64_t meta = PV_PAGE_OTHER | PV_OTHER_META << PV_OTHER_SUB_SHIFT;

	c->pages[seg->number] = calloc(seg->npages, sizeof(**c->pages));
	if (!c->pages[seg->number])
		return pvi_fail(-ENOMEM, "no memory to check %u pages of segment %u", seg->npages,
				seg->number);
	for (uint32_t i = 0; i < seg->first_page; i++)
		if (pvi_rec_load(seg->map, i) != meta)
			pvi_check_problem(
				c, "segment %u: page %u holds the header, the page map denies it",
				seg->number, i);
	for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);

		n = 1;
		if (rec) {
			n = check_run(c, seg, i, rec);
			continue;
		}
		c->r.free_pages++;
		if (seg->loaded && seg->slabs[i].state == PVI_EXTENT_RETIRED)
			c->r.retired_objects++;
	}
	return 0;
}

/* ---- slot bytes ---- */

/* What one thread has counted. */
struct counts {
	struct pvi_check *c;
	struct pv_check_report r;
};

/* A slot byte that is none of the common ones. */
static void check_slot(struct counts *n, const struct pvi_segment *seg, uint32_t page, uint64_t rec,
		       uint32_t i, uint8_t byte, bool covered, bool cold)
{
	/* RESERVED, RETIRED and HELD of a process that is gone are FREE. */
	if (cold && byte >= PV_SLOT_RESERVED && byte <= PV_SLOT_HELD)
		byte = PV_SLOT_FREE;
	if (covered != (byte == PV_SLOT_META)) {
		if (pvi_check_settled(n->c, seg, page, rec))
			pvi_check_problem(
				n->c,
				"segment %u: page %u: slot %u: state %u where the header lies",
				seg->number, page, i, byte);
		return;
	}
	switch (byte) {
	case PV_SLOT_FREE:
		n->r.free_slots++;
		break;
	case PV_SLOT_RETIRED:
		n->r.retired_objects++;
		break;
	case PV_SLOT_RESERVED:
	case PV_SLOT_HELD:
		n->r.reserved_objects++;
		break;
	case PV_SLOT_META:
		break;
	default:
		if (pvi_check_settled(n->c, seg, page, rec))
			pvi_check_problem(n->c, "segment %u: page %u: slot %u: unknown state %u",
					  seg->number, page, i, byte);
	}
}

static void check_slots(struct counts *n, const struct pvi_segment *seg, uint32_t page,
			uint64_t rec, uint64_t *live)
{
	const struct pv_store *s = n->c->s;
	const struct pvi_class *class = &s->classes[pvi_rec_class(rec)];
	const uint8_t *bytes = pvi_slab_bytes(s, seg, page, rec);
	bool cold = !pvi_store_page(s, seg->off + ((uint64_t)page << s->page_shift))->slab;
	uint64_t objects = 0;

	for (uint32_t i = 0; i < class->nslots; i += 8) {
		uint64_t v = pvi_slotbytes_load(bytes, i);
		uint32_t covered = pvi_slotbytes_covered(class, pvi_rec_meta(rec), i);
		uint32_t there = pvi_slotbytes_below(i, class->nslots);
		uint32_t is_live = pvi_slotbytes_equal(v, PV_SLOT_LIVE) & there & ~covered;
		uint32_t is_free = pvi_slotbytes_equal(v, PV_SLOT_FREE) & there & ~covered;

		live[i / 64] |= (uint64_t)is_live << (i % 64);
		objects += (uint32_t)__builtin_popcount(is_live);
		n->r.free_slots += (uint32_t)__builtin_popcount(is_free);
		for (uint32_t rest = there & ~is_live & ~is_free; rest; rest &= rest - 1) {
			uint32_t k = (uint32_t)__builtin_ctz(rest);

			check_slot(n, seg, page, rec, i + k, (uint8_t)(v >> (8 * k)),
				   covered >> k & 1, cold);
		}
	}
	n->r.live_objects += objects;
	n->r.live_bytes += objects * class->slot_bytes;
}

static void check_slab(struct counts *n, const struct pvi_segment *seg, uint32_t page,
		       const struct pvi_check_page *p)
{
	struct pvi_check *c = n->c;

	n->r.slabs++;
	if (pvi_slab_sound(c->s, seg, page, p->rec))
		check_slots(n, seg, page, p->rec, &c->live[p->bits / 64]);
	else if (pvi_check_settled(c, seg, page, p->rec))
		pvi_check_problem(c,
				  "segment %u: page %u: the slab's header contradicts the page map",
				  seg->number, page);
}

static void slots_part(struct pvi_check *c, unsigned int number)
{
	struct counts n = {.c = c};
	const struct pvi_segment *seg;
	uint32_t from, to;

	while (pvi_check_chunk(c, "slots", &seg, &from, &to)) {
		for (uint32_t i = from; i < to; i++) {
			const struct pvi_check_page *p = &c->pages[seg->number][i];

			if (p->rec && p->back == 0 && pvi_page_kind(p->rec) == PV_PAGE_SLAB)
				check_slab(&n, seg, i, p);
			else if (p->rec && p->back == 0) /* extents share words */
				__atomic_fetch_or(&c->live[p->bits / 64], 1ull << (p->bits % 64),
						  __ATOMIC_RELAXED);
		}
	}
	pthread_mutex_lock(&c->lock);
	c->r.slabs += n.r.slabs;
	c->r.live_objects += n.r.live_objects;
	c->r.live_bytes += n.r.live_bytes;
	c->r.free_slots += n.r.free_slots;
	c->r.reserved_objects += n.r.reserved_objects;
	c->r.retired_objects += n.r.retired_objects;
	pthread_mutex_unlock(&c->lock);
}

int pvi_check_slots(struct pvi_check *c)
{
	c->live = calloc(c->nbits / 64 + 1, 8);
	c->reached = calloc(c->nbits / 64 + 1, 8);
	if (!c->live || !c->reached)
		return pvi_fail(-ENOMEM, "no memory to note %" PRIu64 " objects", c->nbits);
	pvi_check_parallel(c, slots_part);
	return 0;
}
