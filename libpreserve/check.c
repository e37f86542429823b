/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pv_check(): the order of things, and those parts whose cost does not grow with the number of
 * objects: index, headers of segments, lanes, roots. It goes by the bytes in the arena, not by what
 * this process has derived from them, and trusts neither: a check of a damaged store reports and
 * goes on.
 */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "check.h"

#define CHUNK_PAGES 256u
#define BYTES_PER_THREAD \
	(64ull << 20) /* of a store, below which another thread is not worth starting */

/* ---- telling ---- */

void pvi_check_problem(struct pvi_check *c, const char *format, ...)
{
	char line[320];
	va_list ap;

	va_start(ap, format);
	vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	pthread_mutex_lock(&c->lock);
	c->r.problems++;
	if (c->o.tell)
		c->o.tell(c->o.ctx, line);
	pthread_mutex_unlock(&c->lock);
}

void pvi_check_progress(struct pvi_check *c, const char *what, uint64_t done, uint64_t total)
{
	if (!c->o.progress)
		return;
	pthread_mutex_lock(&c->lock);
	c->o.progress(c->o.ctx, what, done < total ? done : total, total);
	pthread_mutex_unlock(&c->lock);
}

/* ---- threads ---- */

struct team {
	struct pvi_check *c;
	void (*f)(struct pvi_check *c, unsigned int number);
	pthread_mutex_t lock; /* held until it is known how many there are */
	unsigned int numbers;
};

static void *member(void *arg)
{
	struct team *team = arg;
	unsigned int number;

	pthread_mutex_lock(&team->lock);
	number = ++team->numbers;
	pthread_mutex_unlock(&team->lock);
	team->f(team->c, number);
	return NULL;
}

void pvi_check_parallel(struct pvi_check *c, void (*f)(struct pvi_check *c, unsigned int number))
{
	struct team team = {.c = c, .f = f};
	pthread_t threads[PVI_CHECK_THREADS_MAX];
	unsigned int n = 0;

	atomic_store(&c->next_chunk, 0);
	pthread_mutex_init(&team.lock, NULL);
	pthread_mutex_lock(&team.lock);
	while (n + 1 < c->nthreads && pthread_create(&threads[n], NULL, member, &team) == 0)
		n++;
	c->nthreads = n + 1; /* with fewer, if there are no more to be had */
	pthread_mutex_unlock(&team.lock);
	f(c, 0);
	while (n)
		pthread_join(threads[--n], NULL);
	pthread_mutex_destroy(&team.lock);
}

static unsigned int choose_threads(const struct pvi_check *c)
{
	uint64_t bytes = 0, n;
	cpu_set_t cpus;

	if (c->o.threads)
		return c->o.threads;
	for (uint32_t i = 0; i < c->nsegments; i++)
		bytes += c->s->segments[i].bytes;
	n = bytes / BYTES_PER_THREAD + 1;
	if (sched_getaffinity(0, sizeof(cpus), &cpus) || n > (uint64_t)CPU_COUNT(&cpus))
		n = (uint64_t)CPU_COUNT(&cpus);
	return n > PVI_CHECK_THREADS_MAX ? PVI_CHECK_THREADS_MAX : n ? (unsigned int)n : 1;
}

bool pvi_check_chunk(struct pvi_check *c, const char *what, const struct pvi_segment **seg,
		     uint32_t *from, uint32_t *to)
{
	uint64_t chunk = atomic_fetch_add(&c->next_chunk, 1), all = c->chunks[c->nsegments];
	uint32_t i = 0;

	if (chunk >= all)
		return false;
	if (chunk % 64 == 0)
		pvi_check_progress(c, what, chunk * CHUNK_PAGES, all * CHUNK_PAGES);
	while (c->chunks[i + 1] <= chunk)
		i++;
	*seg = &c->s->segments[i];
	*from = (uint32_t)(chunk - c->chunks[i]) * CHUNK_PAGES;
	*to = (*seg)->npages - *from < CHUNK_PAGES ? (*seg)->npages : *from + CHUNK_PAGES;
	return true;
}

bool pvi_check_settled(const struct pvi_check *c, const struct pvi_segment *seg, uint32_t page,
		       uint64_t rec)
{
	if (c->r.unsettled & PV_UNSETTLED_IN_USE)
		nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
	return pvi_rec_load(seg->map, page) == rec;
}

/* ---- index, headers, lanes, roots ---- */

static void check_index(struct pvi_check *c)
{
	struct pv_store *s = c->s;
	uint64_t generation = pvi_index_generation(s->index.rec);

	c->r.mirrored = pvi_index_slot_sound(s->index.rec, generation, true) &&
			pvi_index_slot_sound(s->index.rec, generation, false);
	if (c->quiet_on_index)
		return;
	if (!pvi_index_commit_sound(&s->index))
		pvi_check_problem(c, "index: the commit word 0x%016" PRIx64 " is damaged",
				  s->index.rec->commit);
	else if (!pvi_index_slot_sound(s->index.rec, generation, false) &&
		 generation == pvi_index_generation(s->index.rec))
		pvi_check_problem(c, "index: generation %" PRIu64 ": its slot is damaged",
				  generation);
	else if (!s->readonly && !pvi_index_staged_sound(&s->index, s->index.generation))
		pvi_check_problem(
			c, "index: generation %" PRIu64 " is not what this process has written",
			generation);
}

static void check_headers(struct pvi_check *c)
{
	for (uint32_t i = 0; i < c->nsegments; i++) {
		const struct pvi_segment *seg = &c->s->segments[i];
		struct segment_rec rec;

		memcpy(&rec, seg->addr, sizeof(rec));
		if (pvi_segment_check_header(c->s, i, &rec, seg->bytes))
			pvi_check_problem(c, "%s", pv_last_error());
	}
}

/* What is pending in a lane is to be seen to by the next attach: a reader has that before it,
 * unless the attach would refuse; a writer has it behind it, and only its own threads' transactions
 * are open. */
static void check_lanes(struct pvi_check *c)
{
	struct pv_store *s = c->s;

	for (uint32_t i = 0; i < s->lanes_used; i++) {
		uint64_t count = s->lanes[i].count;
		bool linking = pvi_lane_linking(&s->lanes[i]);

		c->r.intents += count || linking;
		c->r.transactions += s->lanes[i].tx != PV_TX_NONE;
		if (count && !s->readonly)
			pvi_check_problem(c,
					  "segment 0: lane %u has an intent of %" PRIu64 " actions",
					  i, count);
		if (linking && !s->readonly)
			pvi_check_problem(c, "segment 0: lane %u has an intent of one word", i);
	}
	if (!s->readonly)
		return;
	if (pvi_lock_others(s)) {
		c->r.unsettled = PV_UNSETTLED_IN_USE; /* lanes come and go */
		return;
	}
	if (c->r.intents || c->r.transactions || s->index.move.purpose || s->index.nmoving)
		c->r.unsettled = PV_UNSETTLED_PENDING;
	if (pvi_lane_check(s) || pvi_tx_check(s))
		pvi_check_problem(c, "%s", pv_last_error());
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
	page = (uint32_t)(off >> s->page_shift);
	rec = pvi_rec_load(seg->map, page);
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
		return pvi_page_run_sound(s, seg, page, rec) &&
		       off == (uint64_t)page << s->page_shift && pvi_rec_extent_type(rec) == type &&
		       (uint64_t)pvi_rec_extent_pages(rec) << s->page_shift >= bytes;
	byte = pvi_slab_slot(s, seg, off, &rec);
	return byte && *byte == PV_SLOT_LIVE && pvi_rec_type(rec) == type &&
	       s->classes[pvi_rec_class(rec)].slot_bytes >= bytes;
}

static void check_roots(struct pvi_check *c)
{
	const struct pvi_index *idx = &c->s->index;

	for (uint32_t i = 0; i < idx->nroots; i++) {
		const struct pvi_root *r = &idx->roots[i];

		/* A root that is being created, or whose page is: the next attach makes it live. */
		if (!pvi_check_live(c->s, r->off, r->type, r->bytes) && !c->r.unsettled)
			pvi_check_problem(c,
					  "index: root %s at offset 0x%" PRIx64
					  " is not a live object of type %u with %" PRIu64 " bytes",
					  r->name, r->off, r->type, r->bytes);
	}
}

/* All of what was sealed against its digest. */
static void check_seals(struct pvi_check *c)
{
	for (uint32_t i = 0; i < c->nsegments; i++) {
		const struct pvi_segment *seg = &c->s->segments[i];

		if (seg->sealed && pvi_seal_verify(c->s, i, seg->fd))
			pvi_check_problem(c, "%s", pv_last_error());
	}
}

/* ---- all of it ---- */

static int check_heap(struct pvi_check *c)
{
	int err = 0;

	c->nthreads = choose_threads(c);
	for (uint32_t i = 0; i < c->nsegments && !err; i++) {
		c->chunks[i + 1] =
			c->chunks[i] + (c->s->segments[i].npages + CHUNK_PAGES - 1) / CHUNK_PAGES;
		err = pvi_check_map(c, &c->s->segments[i]);
	}
	if (!err)
		err = pvi_check_slots(c);
	if (!err && !c->r.unsettled)
		err = pvi_check_reach(c);
	return err;
}

int pvi_check_run(struct pvi_check *c, struct pv_store *s)
{
	int err = 0;

	c->s = s;
	c->nsegments = s->nsegments;
	c->ntypes = s->index.ntypes;
	pthread_mutex_init(&c->lock, NULL);
	pvi_retire_pause(s);
	check_index(c);
	check_headers(c);
	check_lanes(c);
	check_roots(c);
	if (!(c->o.flags & PV_CHECK_FAST)) {
		check_seals(c);
		err = check_heap(c);
	}
	pvi_retire_resume(s);
	return err;
}

void pvi_check_end(struct pvi_check *c)
{
	for (uint32_t i = 0; i < c->nsegments; i++)
		free(c->pages[i]);
	for (uint32_t i = 0; c->types && i <= c->ntypes; i++)
		free(c->types[i].targets);
	free(c->types);
	free(c->live);
	free(c->reached);
	pthread_mutex_destroy(&c->lock);
}

int pvi_check_options(void *to, size_t known, const void *from, size_t size, size_t least,
		      const char *what)
{
	const uint8_t *tail = from;

	if (size < least)
		return pvi_fail(-EINVAL, "%s.size is %zu", what, size);
	for (size_t i = known; i < size; i++)
		if (tail[i])
			return pvi_fail(-EINVAL, "%s has fields that this library does not know",
					what);
	memcpy(to, from, size < known ? size : known);
	return 0;
}

int pv_check(struct pv_store *s, const struct pv_check_options *opts,
	     struct pv_check_report *report)
{
	struct pvi_check *c = calloc(1, sizeof(*c));
	int err = 0;

	if (!c)
		return pvi_fail(-ENOMEM, "no memory");
	if (opts)
		err = pvi_check_options(&c->o, sizeof(c->o), opts, opts->size,
					offsetof(struct pv_check_options, tell),
					"pv_check_options");
	if (!err && ((c->o.flags & ~PV_CHECK_FAST) || c->o.threads > PVI_CHECK_THREADS_MAX))
		err = pvi_fail(-EINVAL, "pv_check_options: flags 0x%x, %u threads", c->o.flags,
			       c->o.threads);
	if (!err) {
		err = pvi_check_run(c, s);
		if (!err)
			*report = c->r;
		pvi_check_end(c);
	}
	free(c);
	return err;
}
