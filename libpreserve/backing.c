/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory behind pages. It is obtained when pages are allocated, so that the lack of it is an error of
 * the allocation and not a signal in the middle of a store; somewhat more than is asked for, in proportion
 * to what the store has, so that a large store does not pay a system call for each slab. Blocks of 2 MiB that
 * are committed as a whole become huge pages. (replace-64 with 100,000 objects: 41 -> 54 million a second.) It is given back when much of it lies idle: holes are
 * punched into the memfds. (Not while a store is prepared: then the kernel refuses, and it is put off.)
 *
 * What the arena says of a page does not depend on any of this: a page that is FREE in the page map may
 * have memory or not, and its contents mean nothing.
 *
 * Under heap_lock.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "internal.h"

#define CHUNK_MIN     (16ull << 10)
#define CHUNK_SHIFT   4		    /* a chunk is at most 1/16 of what is used */
#define COLLAPSES_MAX 8u	    /* failures in a row, then no more is tried */
#define IDLE_MIN      (16ull << 20) /* that much may lie idle, */
#define IDLE_SHIFT    2		    /* or 1/4 of what is used */
#define RUN_MIN       (64ull << 10) /* shorter runs are not worth a hole, least of all in a huge page */

static bool all_committed(const struct pvi_segment *seg, uint32_t page, uint32_t n)
{
	return pvi_bits_count(seg->committed, page, n) == n;
}

/* Blocks that may become a huge page and are committed as a whole do so. */
static void collapse(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n)
{
	uint32_t pages = (uint32_t) (PVI_HUGE_BYTES >> s->page_shift);

	if (s->collapses_failed == COLLAPSES_MAX || (uintptr_t) seg->addr % PVI_HUGE_BYTES)
		return;
	for (uint32_t at = page / pages * pages; at < page + n && at + pages <= seg->npages;
	     at += pages) {
		if (!all_committed(seg, at, pages))
			continue;
		if (pvi_arena_collapse(seg->addr + ((uint64_t) at << s->page_shift)))
			s->collapses_failed = 0;
		else if (++s->collapses_failed == COLLAPSES_MAX)
			break;
	}
}

void pvi_backing_collapse(struct pv_store *s, bool wanted)
{
	pthread_mutex_lock(&s->heap_lock);
	s->collapses_failed = wanted ? 0 : COLLAPSES_MAX;
	pthread_mutex_unlock(&s->heap_lock);
}

int pvi_backing_commit(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n)
{
	uint64_t chunk = CHUNK_MIN, used = s->used_pages << s->page_shift;
	uint32_t from, to, pages;
	int err;

	if (all_committed(seg, page, n))
		return 0;
	while (2 * chunk <= used >> CHUNK_SHIFT && chunk < PVI_HUGE_BYTES)
		chunk *= 2;
	pages = (uint32_t) (chunk >> s->page_shift);
	from = page / pages * pages;
	to = (page + n + pages - 1) / pages * pages;
	if (to > seg->npages)
		to = seg->npages;
	err = pvi_arena_commit(seg->fd, seg->addr, (uint64_t) from << s->page_shift,
			       (uint64_t) (to - from) << s->page_shift);
	if (err) {
		from = page;
		to = page + n;
		err = pvi_arena_commit(seg->fd, seg->addr, (uint64_t) from << s->page_shift,
				       (uint64_t) n << s->page_shift);
	}
	if (err)
		return err;
	for (uint32_t i = from; i < to; i++) {
		if (!pvi_bits_get(seg->committed, i) && !pvi_bits_get(seg->taken, i))
			s->idle_pages++;
	}
	pvi_bits_set(seg->committed, from, to - from, true);
	collapse(s, seg, from, to - from);
	return 0;
}

/* A hole in place of a run of free pages. False: the kernel refuses. */
static bool punch(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint32_t n)
{
	if (fallocate(seg->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t) page << s->page_shift, (off_t) n << s->page_shift))
		return false;
	s->idle_pages -= pvi_bits_count(seg->committed, page, n);
	pvi_bits_set(seg->committed, page, n, false);
	return true;
}

bool pvi_backing_punch(struct pv_store *s, struct pvi_segment *seg, bool all)
{
	for (uint32_t i = seg->first_page, n; i < seg->npages; i += n) {
		bool any = false;

		for (n = 0; i + n < seg->npages && !pvi_bits_get(seg->taken, i + n); n++)
			any |= pvi_bits_get(seg->committed, i + n);
		if (n && (all || (any && (uint64_t) n << s->page_shift >= RUN_MIN)) &&
		    !punch(s, seg, i, n))
			return false;
		n += n == 0;
	}
	return true;
}

uint64_t pvi_backing_bytes(const struct pv_store *s)
{
	uint64_t blocks = 0;
	struct stat st;

	for (uint32_t i = 0; i < s->nsegments; i++)
		blocks += fstat(s->segments[i].fd, &st) == 0 ? (uint64_t) st.st_blocks : 0;
	return blocks * 512;
}

void pvi_backing_release(struct pv_store *s)
{
	uint64_t used = s->used_pages << s->page_shift;
	uint64_t most = used >> IDLE_SHIFT < IDLE_MIN ? IDLE_MIN : used >> IDLE_SHIFT;
	uint64_t idle = s->idle_pages << s->page_shift;

	/* What was refused may have been used again, or trimmed. */
	if (s->idle_refused > idle)
		s->idle_refused = idle;
	if (idle <= most + s->idle_refused)
		return;
	for (uint32_t i = 0; i < s->nsegments; i++) {
		if (s->segments[i].loaded && !pvi_backing_punch(s, &s->segments[i], false))
			break;
	}
	/* What could not be given back now is looked at again when as much more has come. */
	s->idle_refused = s->idle_pages << s->page_shift;
}
