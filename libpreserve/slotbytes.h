/* SPDX-License-Identifier: BSD-3-Clause */
/* Slot bytes, eight at a time. Slot bytes begin at a multiple of 8, and up to the next multiple of
 * 8 behind the last one there is nothing but the rest of the slab. */
#ifndef PVI_SLOTBYTES_H
#define PVI_SLOTBYTES_H

#include "internal.h"

#define PVI_SLOTBYTES_ONES 0x0101010101010101ull

/** The bytes of slots i to i + 7; i is a multiple of 8. */
static inline uint64_t pvi_slotbytes_load(const uint8_t *bytes, uint32_t i)
{
	return __atomic_load_n((const uint64_t *)(const void *)(bytes + i), __ATOMIC_RELAXED);
}

/** Bit k: slot i + k is in this state. */
static inline uint32_t pvi_slotbytes_equal(uint64_t v, uint8_t state)
{
	const uint64_t high = PVI_SLOTBYTES_ONES << 7;
	uint64_t x = v ^ PVI_SLOTBYTES_ONES * state;
	/* 0x80 in bytes that are 0, exactly: no carry leaves a byte. */
	uint64_t zero = ~(((x & ~high) + ~high) | x | ~high);

	return (uint32_t)((zero >> 7) * 0x0102040810204080ull >> 56);
}

/** Bit k: i + k is below n. */
static inline uint32_t pvi_slotbytes_below(uint32_t i, uint32_t n)
{
	return n <= i ? 0 : n - i >= 8 ? 0xff : (1u << (n - i)) - 1;
}

/** Bit k: from <= i + k < to. */
static inline uint32_t pvi_slotbytes_between(uint32_t i, uint32_t from, uint32_t to)
{
	return pvi_slotbytes_below(i, to) & ~pvi_slotbytes_below(i, from);
}

/** Bit k: slot i + k lies under the slab_rec at meta_off, or under slot bytes. */
static inline uint32_t pvi_slotbytes_covered(const struct pvi_class *c, uint32_t meta_off,
					     uint32_t i)
{
	uint32_t from = meta_off / c->slot_bytes, bytes_off = meta_off ^ c->nslots, last;

	if (!c->in_grid)
		return 0;
	if (!c->byte_shift)
		return pvi_slotbytes_between(i, from, from + (c->nslots - c->usable));
	last = (meta_off + (uint32_t) sizeof(struct slab_rec) - 1) / c->slot_bytes;
	return pvi_slotbytes_between(i, from, last + 1) |
	       pvi_slotbytes_between(i, bytes_off / c->slot_bytes,
				     (bytes_off + c->nslots - 1) / c->slot_bytes + 1);
}

#endif
