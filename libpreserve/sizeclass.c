/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Size classes: 16, 32, ... 128 bytes, then eight a doubling, so that at most an eighth of a slot is
 * wasted; objects larger than eight pages are extents. A class says how its slabs are laid out. All
 * of it is computed from the page size alone, so it is part of the format.
 *
 * A slab is a grid of slots from its first byte on, which aligns slots as their size allows. The
 * slab_rec with the slot bytes covers a few slots of the grid when slots are small (anywhere in it:
 * see slab_color() for why), and stands behind the last slot when they are large. Where the slot size is a
 * power of two and small, the slot bytes are apart from the slab_rec, see pvi_slab_byte_of().
 */
#include <assert.h>

#include "internal.h"

#define GRID_SLOT_MAX  512u /* above it the slab_rec stands behind the slots */
#define SLOTS_MIN      8u   /* in a slab of large slots */
#define WASTE_SHIFT    5    /* a slab may waste 1/32 at its end before a better length is sought */

static uint32_t class_bytes(uint32_t class)
{
	uint32_t k, j;

	if (class < 8)
		return (class + 1) * 16;
	k = (class - 8) / 8 + 7;
	j = (class - 8) % 8;
	return (9 + j) << (k - 3);
}

static uint32_t round_up(uint32_t v, uint32_t to)
{
	return (v + to - 1) / to * to;
}

/* Slots behind which the slab_rec and their bytes still fit. */
static uint32_t tail_slots(uint32_t slab_bytes, uint32_t slot_bytes)
{
	uint32_t n = slab_bytes / slot_bytes;

	while (n && round_up(n * slot_bytes, PV_SLAB_ALIGN) + (uint32_t) sizeof(struct slab_rec) + n >
			    slab_bytes)
		n--;
	return n;
}

static void init_tail(struct pvi_class *c, uint32_t page, uint32_t npages_min)
{
	uint32_t first = round_up(SLOTS_MIN * c->slot_bytes + PV_SLAB_ALIGN + SLOTS_MIN, page) / page;
	uint32_t best = 0, best_waste = UINT32_MAX;

	if (first < npages_min)
		first = npages_min;
	/* The first length that wastes little, else the one that wastes the smallest part. */
	for (uint32_t p = first; p <= first * 2 && p < (1u << PV_PAGE_BACK_BITS); p++) {
		uint32_t used = tail_slots(p * page, c->slot_bytes) * c->slot_bytes;
		uint32_t waste = (uint32_t) ((uint64_t) (p * page - used) * 4096 / (p * page));

		if (waste < best_waste) {
			best = p;
			best_waste = waste;
		}
		if (waste <= 4096u >> WASTE_SHIFT)
			break;
	}
	c->npages = best;
	c->nslots = c->usable = tail_slots(best * page, c->slot_bytes);
	c->meta_bytes = (uint32_t) sizeof(struct slab_rec) + c->nslots;
}

static void init_grid(struct pvi_class *c, uint32_t page, uint32_t npages_min)
{
	c->in_grid = true;
	c->npages = npages_min;
	c->nslots = npages_min * page / c->slot_bytes;
	c->meta_bytes = (uint32_t) sizeof(struct slab_rec) + c->nslots;
	c->usable = c->nslots - (c->meta_bytes + c->slot_bytes - 1) / c->slot_bytes;
	/* The slab_rec lies at a multiple of PV_SLAB_ALIGN, beside the slot bytes at a multiple of their number. */
	if (!(c->slot_bytes & (c->slot_bytes - 1)) && c->nslots >= PV_SLAB_ALIGN) {
		c->byte_shift = (uint32_t) __builtin_ctz(c->slot_bytes);
		c->meta_bytes = (uint32_t) sizeof(struct slab_rec);
	}
}

/* It exceeds 2^32 / units by a part of a unit, and so a product by as many of these as there are slots before
 * it. What the product of a slot's start has to be less than is the reciprocal. */
static void init_reciprocal(struct pvi_class *c, uint32_t page)
{
	uint64_t units = pvi_page_units(c->slot_bytes);

	c->reciprocal = (uint32_t) (((1ull << 32) + units - 1) / units);
	assert((c->npages * page / c->slot_bytes + 1) * (units * c->reciprocal - (1ull << 32)) <
	       c->reciprocal);
}

void pvi_class_init(struct pv_store *s)
{
	uint32_t page = 1u << s->page_shift;
	uint32_t npages_min = 1;

	s->nclasses = 0;
	for (uint32_t i = 0; i < PVI_CLASSES && class_bytes(i) <= 8 * page; i++) {
		struct pvi_class *c = &s->classes[i];
		uint32_t by_bytes;

		*c = (struct pvi_class){.slot_bytes = class_bytes(i)};
		assert(pvi_class_of(c->slot_bytes) == i && pvi_class_of(c->slot_bytes - 1) == i);
		if (c->slot_bytes <= GRID_SLOT_MAX)
			init_grid(c, page, npages_min);
		else
			init_tail(c, page, npages_min);
		init_reciprocal(c, page);
		by_bytes = 65536 / c->slot_bytes;
		c->magazine = (uint16_t) (by_bytes > PVI_MAGAZINE_SLOTS ? PVI_MAGAZINE_SLOTS
					  : by_bytes < 4		? 4
									: by_bytes);
		s->nclasses++;
	}
	s->class_of[0] = PVI_NO_CLASS;
	for (uint32_t i = 1; i < PVI_CLASS_TABLE; i++)
		s->class_of[i] = (uint8_t) pvi_class_of(i * 16);
}
