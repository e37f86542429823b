/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Segments: making one, taking one over from a descriptor, and growing a store by one.
 *
 * A segment joins a store in three steps: format the memfd; let the handover backend keep it; name
 * it in the index. A crash before the last leaves a descriptor that the index does not name, which
 * the next attach drops.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "handover.h"
#include "internal.h"
#include "pin.h"

#define SEGMENT_BYTES_MAX (1ull << 30)
#define SEGMENT_BYTES_MIN 32768u /* what the format allows */

uint64_t pvi_segment_checksum(const struct segment_rec *rec)
{
	return XXH3_64bits(rec, offsetof(struct segment_rec, checksum));
}

static uint64_t round_up(uint64_t v, uint64_t to)
{
	return (v + to - 1) / to * to;
}

/* Everything about a segment that follows from its number, size and the store's geometry. */
static struct segment_rec describe(const struct pv_store *s, uint32_t number, uint64_t off,
				   uint64_t bytes, uint64_t birth_generation)
{
	uint32_t nlanes = number == 0 ? s->nlanes : 0;
	struct segment_rec rec = {
		.magic = PV_SEGMENT_MAGIC,
		.format_version = PV_FORMAT_VERSION,
		.number = number,
		.bytes = bytes,
		.window_off = off,
		.birth_generation = birth_generation,
		.page_shift = s->page_shift,
		.npages = (uint32_t) (bytes >> s->page_shift),
		.map_off = PV_MAP_OFF,
		.nlanes = nlanes,
	};
	uint64_t end = rec.map_off + 8ull * rec.npages;

	memcpy(rec.uuid, s->index.uuid, 16);
	if (nlanes) {
		end = round_up(end, 64);
		rec.lanes_off = (uint32_t) end;
		end += (uint64_t) nlanes * sizeof(struct lane_rec);
	}
	rec.first_page = (uint32_t) (round_up(end, 1u << s->page_shift) >> s->page_shift);
	rec.checksum = pvi_segment_checksum(&rec);
	return rec;
}

/*
 * Lanes get their memory when they are first taken, the lowest first. So those behind the first hole were
 * never used; not to look at them saves an attach most of the pages that it would read.
 */
static uint32_t lanes_used(const struct segment_rec *rec, int fd)
{
	off_t hole = lseek(fd, rec->lanes_off, SEEK_HOLE);
	uint64_t bytes = hole < 0 ? UINT64_MAX / 2 : (uint64_t) hole - rec->lanes_off;
	uint64_t n = (bytes + sizeof(struct lane_rec) - 1) / sizeof(struct lane_rec);

	return n < rec->nlanes ? (uint32_t) n : rec->nlanes;
}

int pvi_segment_commit_lane(struct pv_store *s, uint32_t number)
{
	const struct pvi_segment *seg = &s->segments[0];
	uint64_t off = (uint64_t) ((const uint8_t *) &s->lanes[number] - seg->addr);
	uint64_t from = off & ~4095ull, to = (off + sizeof(struct lane_rec) + 4095) & ~4095ull;
	int err;

	if (number < s->lanes_used)
		return 0;
	err = pvi_arena_commit(seg->fd, seg->addr, from, to - from);
	if (!err)
		s->lanes_used = number + 1;
	return err;
}

static void enter(struct pv_store *s, const struct pvi_segment *at, struct pvi_segment *seg)
{
	for (uint64_t off = at->off; off < at->off + at->bytes; off += 1ull << s->granule_shift)
		atomic_store_explicit(&s->segment_of[off >> s->granule_shift], seg,
				      memory_order_release);
}

static void set_segment(struct pv_store *s, struct pvi_segment *seg, const struct segment_rec *rec,
			int fd)
{
	*seg = (struct pvi_segment){
		.addr = (uint8_t *) s->base + rec->window_off,
		.off = rec->window_off,
		.bytes = rec->bytes,
		.npages = rec->npages,
		.first_page = rec->first_page,
		.number = rec->number,
		.fd = fd,
		.birth_generation = rec->birth_generation,
		.sealed = s->index.segments[rec->number].sealed,
	};
	seg->data_off = seg->off + ((uint64_t) rec->first_page << s->page_shift);
	seg->data_bytes = (uint64_t) (rec->npages - rec->first_page) << s->page_shift;
	seg->map = (uint64_t *) (void *) (seg->addr + rec->map_off);
	if (rec->nlanes) {
		s->lanes = (struct lane_rec *) (void *) (seg->addr + rec->lanes_off);
		s->lanes_used = lanes_used(rec, fd);
	}
}

/* Make the descriptors of these pages writable. */
static int open_descriptors(struct pv_store *s, uint64_t off, uint64_t bytes)
{
	uintptr_t page = (uintptr_t) sysconf(_SC_PAGESIZE);
	uintptr_t from = (uintptr_t) pvi_store_page(s, off) & ~(page - 1);
	uintptr_t to = ((uintptr_t) pvi_store_page(s, off + bytes) + page - 1) & ~(page - 1);

	if (s->readonly || mprotect((void *) from, to - from, PROT_READ | PROT_WRITE) == 0)
		return 0;
	return pvi_fail(-ENOMEM, "no memory for the descriptors of %" PRIu64 " bytes of pages: %s", bytes,
			strerror(errno));
}

/* A segment that ends within a granule is followed by zeros, so that all up to the next one can be read. */
static int fill_granule(const struct pv_store *s, uint64_t off, uint64_t bytes)
{
	uint64_t end = off + bytes, next = round_up(end, 1ull << s->granule_shift);

	if (end == next || mprotect((uint8_t *) s->base + end, next - end, PROT_READ) == 0)
		return 0;
	return pvi_fail(-ENOMEM, "no memory to describe the end of a segment: %s", strerror(errno));
}

static void unmap(const struct pv_store *s, void *addr, uint64_t bytes)
{
	pvi_arena_unmap(addr, round_up(bytes, 1ull << s->granule_shift));
}

int pvi_segment_create(struct pv_store *s, uint32_t number, uint64_t off, uint64_t bytes)
{
	struct segment_rec rec = describe(s, number, off, bytes, pvi_index_generation(s->index.rec) + 1);
	struct pvi_segment *seg = &s->segments[number];
	uint8_t *addr = (uint8_t *) s->base + off;
	char name[80];
	int fd, err;

	if (rec.first_page >= rec.npages)
		return pvi_fail(-EINVAL,
				"a segment of %" PRIu64 " bytes has no room for objects beside %u lanes",
				bytes, rec.nlanes);
	snprintf(name, sizeof(name), "pv:%s:%u", s->index.name, number);
	fd = pvi_arena_memfd(name, bytes);
	if (fd < 0)
		return fd;
	err = pvi_arena_map(addr, bytes, fd, false);
	if (err) {
		close(fd);
		return err;
	}
	err = open_descriptors(s, off, bytes);
	if (!err)
		err = fill_granule(s, off, bytes);
	if (!err)
		err = pvi_arena_commit(fd, addr, 0,
				       round_up(rec.map_off + 8ull * rec.npages, 4096));
	if (err) {
		unmap(s, addr, bytes);
		close(fd);
		return err;
	}
	/* What stands there is of one that is gone, or was tried out in pvi_index_has_room(). */
	memset(&s->index.segments[number], 0, sizeof(s->index.segments[number]));
	set_segment(s, seg, &rec, fd);
	pvi_page_format(seg);
	memcpy(addr, &rec, sizeof(rec));
	return 0;
}

void pvi_segment_abandon(struct pv_store *s, uint32_t number)
{
	struct pvi_segment *seg = &s->segments[number];

	if (seg->loaded) {
		s->used_pages -= seg->npages - seg->free_pages;
		for (uint32_t i = 0; i < seg->npages; i++)
			s->idle_pages -= pvi_bits_get(seg->committed, i) &&
					 !pvi_bits_get(seg->taken, i);
	}
	pvi_page_unload(seg);
	unmap(s, seg->addr, seg->bytes);
	close(seg->fd);
	memset(seg, 0, sizeof(*seg));
}

/* The first granule is the index's; there is no hole behind it that cannot be read. */
static void set_mapped(struct pv_store *s, uint64_t end)
{
	s->mapped.base = s->base + (1ull << s->granule_shift);
	__atomic_store_n(&s->mapped.bytes, end - (1ull << s->granule_shift), __ATOMIC_RELEASE);
}

void pvi_segment_publish(struct pv_store *s, uint32_t number)
{
	enter(s, &s->segments[number], &s->segments[number]);
	set_mapped(s, s->segments[number].off + s->segments[number].bytes);
	atomic_store_explicit(&s->nsegments, number + 1, memory_order_release);
}

void pvi_segment_withdraw(struct pv_store *s, uint32_t number)
{
	atomic_store_explicit(&s->nsegments, number, memory_order_release);
	set_mapped(s, s->segments[number - 1].off + s->segments[number - 1].bytes);
	enter(s, &s->segments[number], NULL);
	pvi_thread_forget(s);
}

int pvi_segment_check_header(const struct pv_store *s, uint32_t number, const struct segment_rec *rec,
			     uint64_t bytes)
{
	struct segment_rec want;

	if (rec->magic != PV_SEGMENT_MAGIC)
		return pvi_fail(-EBADMSG,
				"segment %u: not a segment of libpreserve (magic 0x%016" PRIx64 ")",
				number, rec->magic);
	if (rec->format_version != PV_FORMAT_VERSION)
		return pvi_fail(-EPROTONOSUPPORT, "segment %u: format version %u, this library reads %u",
				number, rec->format_version, PV_FORMAT_VERSION);
	if (rec->checksum != pvi_segment_checksum(rec))
		return pvi_fail(-EBADMSG, "segment %u: the header's checksum is wrong", number);
	if (memcmp(rec->uuid, s->index.uuid, 16) != 0)
		return pvi_fail(-EBADMSG, "segment %u: belongs to another store (its UUID differs)",
				number);
	want = describe(s, number, s->index.segments[number].off, s->index.segments[number].bytes,
			s->index.segments[number].birth_generation);
	if (bytes != want.bytes)
		return pvi_fail(-EBADMSG,
				"segment %u: the memfd has %" PRIu64 " bytes, the index says %" PRIu64,
				number, bytes, want.bytes);
	if (rec->birth_generation != want.birth_generation)
		return pvi_fail(-EBADMSG,
				"segment %u: born with generation %" PRIu64 ", the index says %" PRIu64
				" (a copy of another time)",
				number, rec->birth_generation, want.birth_generation);
	if (want.first_page >= want.npages)
		return pvi_fail(-EBADMSG,
				"segment %u: %" PRIu64 " bytes have no room for its header and lanes",
				number, bytes);
	if (memcmp(rec, &want, sizeof(*rec)) != 0)
		return pvi_fail(-EBADMSG, "segment %u: the header and the index disagree on its layout",
				number);
	return 0;
}

int pvi_segment_attach(struct pv_store *s, uint32_t number, int fd)
{
	uint64_t bytes, off = s->index.segments[number].off;
	struct segment_rec rec;
	char what[32];
	int err;

	snprintf(what, sizeof(what), "segment %u", number);
	err = pvi_arena_verify(fd, what, sizeof(rec), &bytes);
	if (err)
		return err;
	if (pread(fd, &rec, sizeof(rec), 0) != (ssize_t) sizeof(rec))
		return pvi_fail(-EBADMSG, "%s: cannot read its header", what);
	err = pvi_segment_check_header(s, number, &rec, bytes);
	if (!err)
		err = open_descriptors(s, off, bytes);
	if (!err && s->index.segments[number].sealed) {
		err = pvi_seal_attach(s, number, fd);
		if (!err)
			err = pvi_arena_map_private((uint8_t *) s->base + off, bytes, fd);
	} else if (!err) {
		err = pvi_arena_map((uint8_t *) s->base + off, bytes, fd, s->readonly);
	}
	if (!err)
		err = fill_granule(s, off, bytes);
	if (err)
		return err;
	set_segment(s, &s->segments[number], &rec, fd);
	pvi_segment_publish(s, number);
	return 0;
}

/* ---- growth ---- */

/* What a segment with a run of this many free pages needs. The map of n pages takes 8 n bytes; one page
 * more covers that of the map's own pages. */
static uint64_t bytes_needed(const struct pv_store *s, uint64_t npages)
{
	uint64_t need = (npages + (8 * npages >> s->page_shift) + 2) << s->page_shift;

	return need < SEGMENT_BYTES_MIN ? SEGMENT_BYTES_MIN : need;
}

static uint64_t total_bytes(const struct pv_store *s)
{
	uint64_t total = s->index.rec->bytes;

	for (uint32_t i = 0; i < s->nsegments; i++)
		total += s->segments[i].bytes;
	return total;
}

/* Where the next segment begins. */
static uint64_t next_off(const struct pv_store *s)
{
	const struct pvi_segment *last = &s->segments[s->nsegments - 1];

	return round_up(last->off + last->bytes, 1ull << s->granule_shift);
}

/* What the store's limit leaves, in whole pages. */
static uint64_t limit_room(const struct pv_store *s, uint64_t total)
{
	if (!s->limit_bytes)
		return UINT64_MAX;
	return total < s->limit_bytes ? (s->limit_bytes - total) & ~((1ull << s->page_shift) - 1) : 0;
}

/* What the window leaves, and the format allows, behind `off`. */
static uint64_t window_room(const struct pv_store *s, uint64_t off)
{
	uint64_t most = (uint64_t) PVI_PAGES_MAX << s->page_shift, room = s->window_bytes - off;

	if (s->nsegments == PVI_SEGMENTS_MAX)
		return 0;
	return room < most ? room : most;
}

uint32_t pvi_segment_growth_pages(struct pv_store *s)
{
	uint64_t room = limit_room(s, total_bytes(s)), window = window_room(s, next_off(s)), n, step;
	bool named;

	if (room > window)
		room = window;
	pthread_mutex_lock(&s->index_lock);
	named = room >= SEGMENT_BYTES_MIN && pvi_index_has_room(&s->index);
	pthread_mutex_unlock(&s->index_lock);
	if (!named)
		return 0;
	/* The largest n that bytes_needed() says fits. */
	for (n = 0, step = PVI_PAGES_MAX; step; step /= 2)
		if (n + step < PVI_PAGES_MAX && bytes_needed(s, n + step) <= room)
			n += step;
	return (uint32_t) n;
}

/* Size of the next segment, or 0 with a message if the limit or the window forbids it. */
static uint64_t next_bytes(const struct pv_store *s, uint32_t npages, uint64_t off, bool exactly)
{
	uint64_t granule = 1ull << s->granule_shift, total = total_bytes(s);
	uint64_t need = bytes_needed(s, npages), bytes;
	const struct pvi_segment *last = &s->segments[s->nsegments - 1];

	bytes = last->bytes < SEGMENT_BYTES_MAX ? last->bytes * 2 : SEGMENT_BYTES_MAX;
	bytes = round_up(bytes < need ? need : bytes, granule);
	if (exactly)
		bytes = round_up(need, 1u << s->page_shift);
	if (bytes > limit_room(s, total))
		bytes = limit_room(s, total);
	if (bytes < need) {
		pvi_fail(-ENOSPC,
			 "the store's limit of %" PRIu64 " bytes is reached (%" PRIu64
			 " in use, %" PRIu64 " more needed)",
			 s->limit_bytes, total, need);
		return 0;
	}
	if (bytes > window_room(s, off))
		bytes = window_room(s, off);
	if (bytes < need) {
		pvi_fail(-ENOSPC, "the store's window of %" PRIu64 " MiB is full",
			 s->window_bytes >> 20);
		return 0;
	}
	return bytes;
}

/* Let the segment be kept, then named. handover_lock is held, so that a prepare at the same time
 * sees it on both sides or on neither. */
static int join(struct pv_store *s, uint32_t number)
{
	struct pvi_segment *seg = &s->segments[number];
	uint64_t generation;
	int pin = -1, err = 0;

	if (s->handover->state == PV_STATE_PREPARED && s->handover->ops->preserve)
		err = pvi_pin_begin(seg->fd, seg->addr, seg->bytes, &pin);
	if (!err)
		err = s->handover->ops->keep(s->handover, number + 1ull, seg->fd);
	pvi_pin_end(pin);
	if (err)
		return err;
	pthread_mutex_lock(&s->index_lock);
	s->index.segments[number].off = seg->off;
	s->index.segments[number].bytes = seg->bytes;
	/* An index that was written meanwhile only makes the name older than the header's. */
	s->index.segments[number].birth_generation = seg->birth_generation;
	s->index.segments[number].sealed = false;
	s->index.nsegments = number + 1;
	err = pvi_index_stage(&s->index, PVI_INDEX_SLACK, &generation);
	if (err)
		s->index.nsegments = number;
	else
		pvi_index_commit(&s->index, generation);
	pthread_mutex_unlock(&s->index_lock);
	if (err) {
		s->handover->ops->drop(s->handover, number + 1ull);
		return err;
	}
	pvi_segment_publish(s, number);
	return 0;
}

static int grow(struct pv_store *s, uint32_t npages, bool exactly)
{
	uint32_t number = s->nsegments;
	uint64_t off = next_off(s), bytes = next_bytes(s, npages, off, exactly);
	int err;

	if (!bytes)
		return -ENOSPC;
	err = pvi_segment_create(s, number, off, bytes);
	if (err)
		return err;
	err = pvi_page_load(s, &s->segments[number]);
	if (!err) {
		pthread_mutex_lock(&s->handover_lock);
		err = join(s, number);
		pthread_mutex_unlock(&s->handover_lock);
	}
	if (err)
		pvi_segment_abandon(s, number);
	return err;
}

int pvi_segment_grow(struct pv_store *s, uint32_t npages)
{
	return grow(s, npages, false);
}

int pvi_segment_grow_exactly(struct pv_store *s, uint32_t npages)
{
	return grow(s, npages, true);
}
