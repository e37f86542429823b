/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where a store's window goes. A new one at addresses drawn from its UUID, one that exists where it was.
 * If those are taken in this process, or another place is asked for, it goes somewhere else.
 *
 * While pointers are being moved they may lead into the old window or the new one, and after a crash on
 * the way into several. A pointer must say by itself which, so all these windows are apart from each
 * other; a window that is one of them will do as well.
 */
#include <errno.h>
#include <inttypes.h>

#include "internal.h"

#define DRAWS 64u

static uint64_t distance(uint64_t a, uint64_t b)
{
	return a > b ? a - b : b - a;
}

bool pvi_window_apart(const struct pvi_index *idx, uint64_t base)
{
	if (base != idx->base && distance(base, idx->base) < idx->window_bytes)
		return false;
	for (uint32_t i = 0; i < idx->nmoving; i++)
		if (base != idx->moving[i] && distance(base, idx->moving[i]) < idx->window_bytes)
			return false;
	return true;
}

/* Would there be one base more than the index can name? */
static bool one_too_many(const struct pvi_index *idx, uint64_t base)
{
	for (uint32_t i = 0; i < idx->nmoving; i++)
		if (base == idx->moving[i])
			return false;
	return base != idx->base && idx->nmoving == PVI_MOVING_MAX;
}

static int reserve(struct pv_store *s, uint64_t base)
{
	int err = pvi_arena_reserve(base, s->index.window_bytes);

	if (err)
		return err;
	s->base = base;
	s->window_bytes = s->index.window_bytes;
	s->window_reserved = true;
	return 0;
}

static int reserve_forced(struct pv_store *s, uint64_t base)
{
	int err = reserve(s, base);

	return err == -EADDRINUSE ? pvi_arena_taken(base, s->index.window_bytes) : err;
}

/* A base at which a store that exists may be mapped beside the recorded one. */
static bool suitable(const struct pv_store *s, uint64_t base)
{
	return base != s->index.base && pvi_arena_base_valid(base, s->index.window_bytes) &&
	       pvi_window_apart(&s->index, base) && (s->readonly || !one_too_many(&s->index, base));
}

/* Draw some; if all of these are taken, try every address there is. */
static int reserve_elsewhere(struct pv_store *s)
{
	uint64_t window_bytes = s->index.window_bytes, low, high;
	int err = -EADDRINUSE;

	/* Those of an earlier attempt: pointers may be there already. Tests want another one. */
	for (uint32_t i = 0; i < s->index.nmoving && err == -EADDRINUSE; i++)
		if (suitable(s, s->index.moving[i]) &&
		    (s->options.relocate != PV_RELOCATE_ALWAYS || s->index.nmoving == PVI_MOVING_MAX))
			err = reserve(s, s->index.moving[i]);
	for (unsigned int i = 0; i < DRAWS && err == -EADDRINUSE; i++) {
		/* Each time others, so that tests meet many. */
		uint64_t base = pvi_arena_base(s->index.uuid, window_bytes,
					       (unsigned int) s->index.epoch * DRAWS + i);

		if (suitable(s, base))
			err = reserve(s, base);
	}
	pvi_arena_bounds(&low, &high);
	for (uint64_t base = low; base + window_bytes <= high && err == -EADDRINUSE;
	     base += PVI_BASE_ALIGN)
		if (suitable(s, base))
			err = reserve(s, base);
	if (err != -EADDRINUSE)
		return err;
	if (!s->readonly && s->index.nmoving == PVI_MOVING_MAX)
		return pvi_fail(-EADDRINUSE,
				"store %s: relocation was interrupted at %u bases, and none of these is "
				"free",
				s->index.name, PVI_MOVING_MAX + 1);
	return pvi_fail(-EADDRINUSE,
			"store %s: there is no window of %" PRIu64
			" MiB left that is apart from the one at 0x%" PRIx64,
			s->index.name, window_bytes >> 20, s->index.base);
}

/* pv_options.base of a store that exists */
static int reserve_wanted(struct pv_store *s, uint64_t base)
{
	if (base == s->index.base) {
		if (s->options.relocate == PV_RELOCATE_ALWAYS)
			return pvi_fail(-EINVAL,
					"pv_options.base 0x%" PRIx64
					" is the recorded base, but relocation is demanded",
					base);
		return reserve_forced(s, base);
	}
	if (s->options.relocate == PV_RELOCATE_NEVER)
		return pvi_fail(-EINVAL,
				"pv_options.base 0x%" PRIx64 " is not the recorded base 0x%" PRIx64
				", and relocation is forbidden",
				base, s->index.base);
	if (!pvi_arena_base_valid(base, s->index.window_bytes))
		return pvi_fail(-EINVAL,
				"pv_options.base 0x%" PRIx64
				" is not an address where a window of %" PRIu64 " MiB may lie",
				base, s->index.window_bytes >> 20);
	if (!suitable(s, base))
		return pvi_fail(-EINVAL,
				"pv_options.base 0x%" PRIx64 ": a window of %" PRIu64
				" MiB there overlaps the one that the store's pointers lead into (0x%" PRIx64
				"), or one of an interrupted relocation",
				base, s->index.window_bytes >> 20, s->index.base);
	return reserve_forced(s, base);
}

int pvi_window_attach(struct pv_store *s)
{
	uint64_t base = s->index.base;
	int err;

	s->found_base = base;
	if (s->options.base)
		return reserve_wanted(s, s->options.base);
	if (s->options.relocate == PV_RELOCATE_ALWAYS)
		return reserve_elsewhere(s);
	err = reserve(s, base);
	if (err != -EADDRINUSE)
		return err;
	return s->options.relocate == PV_RELOCATE_NEVER ? pvi_arena_taken(base, s->index.window_bytes)
							: reserve_elsewhere(s);
}

int pvi_window_create(struct pv_store *s)
{
	int err = -EADDRINUSE;

	if (s->options.base) {
		if (!pvi_arena_base_valid(s->options.base, s->index.window_bytes))
			return pvi_fail(-EINVAL,
					"pv_options.base 0x%" PRIx64
					" is not an address where a window of %" PRIu64 " MiB may lie",
					s->options.base, s->index.window_bytes >> 20);
		err = reserve_forced(s, s->options.base);
	}
	for (unsigned int i = 0; i < DRAWS && !s->options.base && err == -EADDRINUSE; i++)
		err = reserve(s, pvi_arena_base(s->index.uuid, s->index.window_bytes, i));
	if (err == -EADDRINUSE && !s->options.base)
		err = pvi_arena_taken(pvi_arena_base(s->index.uuid, s->index.window_bytes, 0),
				      s->index.window_bytes);
	s->index.base = s->base;
	return err;
}
