/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A segment that is sealed: its digest, how it is mapped, and what references in it need at another base. It
 * is mapped privately, for reading, which every kernel allows; and by nobody for writing, without which
 * the kernel would not seal the memfd.
 *
 * Nothing in the process hands out what is in it: all of its pages are taken, its slabs are on no list and not
 * described, so that every way to them is the slow one, which looks at pvi_segment.sealed.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "internal.h"
#include "typemap.h"

#define READ_BYTES (256u << 10)

static void put_digest(XXH128_hash_t hash, uint8_t out[16])
{
	XXH128_canonical_t canonical;

	XXH128_canonicalFromHash(&canonical, hash);
	memcpy(out, canonical.digest, 16);
}

/* What an object's owner did not publish is free, so that the segment is the same whoever finishes. */
static void tidy(struct pv_store *s, struct pvi_segment *seg)
{
	for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);
		uint8_t *bytes;

		n = 1;
		if (!pvi_page_run_sound(s, seg, i, rec))
			continue;
		n = pvi_page_span(s, rec);
		if (pvi_page_kind(rec) != PV_PAGE_SLAB || !pvi_slab_sound(s, seg, i, rec))
			continue;
		bytes = pvi_slab_bytes(s, seg, i, rec);
		for (uint32_t k = 0; k < s->classes[pvi_rec_class(rec)].nslots; k++)
			if (bytes[k] >= PV_SLOT_RESERVED && bytes[k] <= PV_SLOT_HELD)
				__atomic_store_n(&bytes[k], PV_SLOT_FREE, __ATOMIC_RELAXED);
	}
}

void pvi_seal_record(struct pv_store *s, uint32_t number)
{
	struct pvi_segment *seg = &s->segments[number];

	tidy(s, seg);
	put_digest(XXH3_128bits(seg->addr, seg->bytes), s->index.segments[number].digest);
	s->index.segments[number].sealed_base = s->index.base;
	s->index.segments[number].sealed = true;
}

int pvi_seal_digest(int fd, uint32_t number, uint64_t bytes, uint8_t out[16])
{
	XXH3_state_t *state = XXH3_createState();
	uint8_t *buf = malloc(READ_BYTES);
	int err = state && buf ? 0 : pvi_fail(-ENOMEM, "segment %u: no memory to verify it", number);

	if (!err)
		XXH3_128bits_reset(state);
	/* By read(), which does not give memory to holes. */
	for (uint64_t at = 0; at < bytes && !err;) {
		ssize_t n = pread(fd, buf, bytes - at < READ_BYTES ? bytes - at : READ_BYTES, (off_t) at);

		if (n <= 0)
			err = pvi_fail(-EBADMSG, "segment %u: cannot read it: %s", number, strerror(errno));
		else
			XXH3_128bits_update(state, buf, (size_t) n);
		at += n > 0 ? (uint64_t) n : 0;
	}
	if (!err)
		put_digest(XXH3_128bits_digest(state), out);
	XXH3_freeState(state);
	free(buf);
	return err;
}

int pvi_seal_verify(const struct pv_store *s, uint32_t number, int fd)
{
	uint8_t digest[16];
	int err = pvi_seal_digest(fd, number, s->index.segments[number].bytes, digest);

	if (!err && memcmp(digest, s->index.segments[number].digest, 16) != 0)
		err = pvi_fail(-EBADMSG, "segment %u: it is sealed, and its contents are not those that "
					 "were sealed (its digest differs)", number);
	return err;
}

bool pvi_seal_by_kernel(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return (seals >= 0 && seals & F_SEAL_WRITE) || fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0;
}

int pvi_seal_attach(struct pv_store *s, uint32_t number, int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);

	return seals >= 0 && seals & F_SEAL_WRITE ? 0 : pvi_seal_verify(s, number, fd);
}

void pvi_seal_take(struct pv_store *s, struct pvi_segment *seg)
{
	for (uint32_t i = seg->first_page; i < seg->npages; i++) {
		if (!pvi_bits_get(seg->taken, i)) {
			pvi_bits_set(seg->taken, i, 1, true);
			seg->free_pages--;
			s->used_pages++;
			s->idle_pages -= pvi_bits_get(seg->committed, i);
		}
	}
	memset(seg->cold, 0, (seg->npages + 63) / 64 * 8);
}

bool pvi_seal_freeze(struct pv_store *s, uint32_t number)
{
	struct pvi_segment *seg = &s->segments[number];

	for (uint32_t i = seg->first_page; seg->loaded && i < seg->npages; i++) {
		uint8_t state = seg->slabs[i].state;

		if (state == PVI_SLAB_PARTIAL || state == PVI_SLAB_FULL)
			pvi_slab_close(s, seg, i);
		if (seg->slabs[i].state == PVI_SLAB_CLOSED)
			seg->slabs[i].state = PVI_SLAB_NONE;
		pvi_slab_undescribe(&pvi_store_page(s, seg->off)[i]);
	}
	seg->sealed = true;
	pvi_thread_forget(s);
	/* Should it fail, the old mapping stays, and nobody of us writes to it. */
	pvi_arena_map_private(seg->addr, seg->bytes, seg->fd);
	return pvi_seal_by_kernel(seg->fd);
}

int pvi_seal_refuse(const struct pv_store *s, const void *p)
{
	const struct pvi_segment *seg = pvi_store_segment(s, (uintptr_t) p - s->base);

	return seg && seg->sealed ? pvi_fail(-EPERM, "%p lies in segment %u, which is sealed", p, seg->number)
				  : 0;
}

/* ---- another base ---- */

struct shift {
	const struct pv_store *s;
	uint64_t from;
};

static int shift_word(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	const struct shift *shift = ctx;
	const struct pv_store *s = shift->s;
	uint64_t *word = (uint64_t *) (void *) at, names;

	if (f->kind == PV_FIELD_RELATIVE || f->kind == PV_FIELD_OFFSET)
		return 0;
	names = pvi_field_names(f, *word, 0, 0);
	if (names && names - shift->from < s->window_bytes)
		*word = pvi_field_word(f, *word, 0, names - shift->from + s->index.base, 0);
	return 0;
}

static int shift_object(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	const struct shift *shift = ctx;

	return pvi_typemap_visit(&shift->s->index.types[type], object, bytes, shift_word, ctx);
}

static void shift_segment(struct shift *shift, const struct pvi_segment *seg)
{
	const struct pv_store *s = shift->s;

	for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
		uint64_t rec = pvi_rec_load(seg->map, i);
		const struct pvi_class *c = &s->classes[pvi_rec_class(rec) % PVI_CLASSES];
		uint8_t *at = seg->addr + ((uint64_t) i << s->page_shift);

		n = 1;
		if (!pvi_page_run_sound(s, seg, i, rec))
			continue;
		n = pvi_page_span(s, rec);
		if (pvi_page_kind(rec) == PV_PAGE_EXTENT && pvi_rec_extent_type(rec) <= s->index.ntypes)
			shift_object(shift, at, (size_t) n << s->page_shift, pvi_rec_extent_type(rec));
		if (pvi_page_kind(rec) != PV_PAGE_SLAB || !pvi_slab_sound(s, seg, i, rec) ||
		    !s->index.types[pvi_rec_type(rec)].has_pointers)
			continue;
		for (uint32_t k = 0; k < c->nslots; k++)
			if (pvi_slab_bytes(s, seg, i, rec)[k] == PV_SLOT_LIVE)
				shift_object(shift, at + (size_t) k * c->slot_bytes, c->slot_bytes,
					     pvi_rec_type(rec));
	}
}

int pvi_seal_relocate(struct pv_store *s)
{
	for (uint32_t i = 0; i < s->nsegments; i++) {
		struct pvi_segment *seg = &s->segments[i];
		struct shift shift = {.s = s, .from = s->index.segments[i].sealed_base};

		if (!seg->sealed || shift.from == s->index.base)
			continue;
		/* Private pages: what is written here goes nowhere. */
		if (mprotect(seg->addr, seg->bytes, PROT_READ | PROT_WRITE))
			return pvi_fail(-ENOMEM, "segment %u: no memory to put the references of what is sealed "
						 "right: %s", i, strerror(errno));
		shift_segment(&shift, seg);
		mprotect(seg->addr, seg->bytes, PROT_READ);
	}
	return 0;
}
