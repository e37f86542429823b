/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Relocation, the pass: one walk over the page maps, in pieces that threads take one after the other. Slabs
 * and extents of types without pointers are passed over by their page map entries. Of the others the slot
 * bytes are read, and then the live objects only: the memory of dead ones is not touched, so what has none
 * gets none.
 *
 * Types whose pointers stand at fixed places, alone or in arrays, go through the loops of relocate_words.c,
 * which know one window to move from. What these find odd (neither null nor from that window), and all
 * objects whose pointers depend on a discriminator or a count, go word by word (shift_carefully()): moved
 * already, from another window of an interrupted relocation, or dangling.
 *
 * Each word is changed by one store, and no two threads have words of one object, but for what an object
 * holds beyond its piece: a slab or extent belongs to the piece in which it begins.
 */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"
#include "relocate.h"
#include "typemap.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define PIECE_BYTES	(4ull << 20)
#define PAGE_BYTES_MIN	4096u
#define THREAD_BYTES	(32ull << 20) /* for less a thread is not worth its start */
#define PROGRESS_BYTES	(64ull << 20)
#define BATCH		64u  /* objects that the loops get at a time */
#define DENSE		16u  /* words in a row from which on the loop for those is faster */
#define FAULT_BYTES	4096u
#define POPULATE_BYTES	(256u << 10) /* for less the call is not worth it */

/** Words that repeat in the same way. */
struct loop {
	uint32_t nwords;
	struct pvi_words *words;
	uint32_t count; /* PV_FLEXIBLE: up to the end */
	uint32_t stride;
};

/** What is to be done with objects of a type. */
struct plan {
	bool wanted;
	bool carefully; /* all of it word by word */
	bool spread;	/* pointers all over the object, however large it is */
	uint32_t nloops;
	struct loop *loops;
	struct pvi_words *words; /* of all loops */
};

struct pass {
	struct pv_store *s;
	struct plan *plans; /* by type */
	struct pvi_shift shift;
	uint64_t target;
	uint64_t low, high; /* offsets to which a pointer may lead */
	uint32_t policy;
	uint64_t npieces, pages_per_piece;
	uint64_t total_bytes, told_bytes;
	_Atomic uint64_t next_piece;
	_Atomic uint64_t done_bytes;
	_Atomic int err; /* the first */
	pthread_mutex_t lock; /* of what follows */
	struct pvi_pass_result result;
	char why[384];
};

/** One thread's part. */
struct worker {
	struct pass *pass;
	struct pvi_pass_result result;
	const struct pvi_type *type; /* of the object whose words are looked at */
	const uint8_t *object;
	pthread_t thread;
};

/* ---- what is to be done for a type ---- */

static bool holds_address(const struct pvi_field *f)
{
	return f->kind == PV_FIELD_POINTER || f->kind == PV_FIELD_TAGGED;
}

/* Fields that loop alike and stand beside each other become one loop. */
static void add_field(struct plan *plan, const struct pvi_field *f)
{
	struct loop *l = plan->nloops ? &plan->loops[plan->nloops - 1] : NULL;
	uint32_t stride = f->count == 1 ? 0 : f->stride;

	if (!l || l->count != f->count || l->stride != stride) {
		l = &plan->loops[plan->nloops++];
		*l = (struct loop){.words = l == plan->loops ? plan->words : l[-1].words + l[-1].nwords,
				   .count = f->count, .stride = stride};
	}
	l->words[l->nwords++] = (struct pvi_words){f->off, f->mask};
}

static int make_plan(struct pass *pass, struct plan *plan, const struct pvi_type *t, bool gaps)
{
	plan->carefully = gaps && pass->policy != PVI_DANGLING_KEEP;
	plan->loops = calloc(t->nfields, sizeof(*plan->loops));
	plan->words = calloc(t->nfields, sizeof(*plan->words));
	if (!plan->loops || !plan->words)
		return pvi_fail(-ENOMEM, "no memory for the relocation of type %s", t->name);
	for (uint32_t i = 0; i < t->nfields; i++) {
		const struct pvi_field *f = &t->fields[i];

		if (!holds_address(f))
			continue;
		plan->wanted = true;
		plan->carefully |= f->nwhen || f->count_bytes;
		plan->spread |= f->count == PV_FLEXIBLE && f->stride <= FAULT_BYTES;
		add_field(plan, f);
	}
	return 0;
}

static void free_plans(struct pass *pass)
{
	for (uint32_t i = 1; pass->plans && i <= pass->s->index.ntypes; i++) {
		free(pass->plans[i].loops);
		free(pass->plans[i].words);
	}
	free(pass->plans);
}

static int make_plans(struct pass *pass, bool gaps)
{
	const struct pvi_index *idx = &pass->s->index;
	int err = 0;

	pass->plans = calloc(idx->ntypes + 1, sizeof(*pass->plans));
	if (!pass->plans)
		return pvi_fail(-ENOMEM, "no memory for the relocation of %u types", idx->ntypes);
	for (uint32_t i = 1; i <= idx->ntypes && !err; i++)
		if (idx->types[i].nfields)
			err = make_plan(pass, &pass->plans[i], &idx->types[i], gaps);
	return err;
}

/* ---- words ---- */

static bool leads_somewhere(const struct pass *pass, uint64_t off)
{
	const struct pvi_segment *seg = pvi_store_segment(pass->s, off);

	return seg && off - seg->off < seg->bytes && off >= pass->low;
}

__attribute__((format(printf, 3, 4))) static int refuse(struct pass *pass, int err, const char *format,
							 ...)
{
	va_list ap;

	pthread_mutex_lock(&pass->lock);
	if (!atomic_load_explicit(&pass->err, memory_order_relaxed)) {
		va_start(ap, format);
		vsnprintf(pass->why, sizeof(pass->why), format, ap);
		va_end(ap);
		atomic_store_explicit(&pass->err, err, memory_order_relaxed);
	}
	pthread_mutex_unlock(&pass->lock);
	return err;
}

static int dangling(struct worker *w, uint8_t *at, const struct pvi_field *f)
{
	struct pass *pass = w->pass;
	const struct pv_options *o = &pass->s->options;
	uint64_t *word = (uint64_t *) (void *) at;
	char line[300], element[24] = "";
	bool first;

	if (f->count != 1)
		snprintf(element, sizeof(element), " (element %" PRIu64 ")",
			 ((uint64_t) (at - w->object) - f->off) / f->stride);
	snprintf(line, sizeof(line),
		 "type %s: object at offset 0x%" PRIx64 ": field %s%s: pointer 0x%" PRIx64
		 " leads nowhere in the store",
		 w->type->name, (uint64_t) ((uintptr_t) w->object - pass->s->base), f->name, element,
		 *word & f->mask);
	if (pass->policy == PV_DANGLING_REFUSE)
		refuse(pass, -EFAULT, "store %s: %s: relocation is refused", pass->s->index.name, line);
	pthread_mutex_lock(&pass->lock);
	first = pass->result.dangling++ == 0;
	if (o->tell && (first || pass->policy != PV_DANGLING_REFUSE))
		o->tell(o->tell_ctx, line);
	pthread_mutex_unlock(&pass->lock);
	if (pass->policy == PV_DANGLING_REFUSE)
		return -EFAULT;
	__atomic_store_n(word, *word & ~f->mask, __ATOMIC_RELAXED);
	return 0;
}

static int shift_carefully(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	struct worker *w = ctx;
	struct pass *pass = w->pass;
	const struct pvi_index *idx = &pass->s->index;
	bool keep = pass->policy == PVI_DANGLING_KEEP;
	uint64_t *word = (uint64_t *) (void *) at, address = *word & f->mask;

	if (!address || !holds_address(f))
		return 0;
	if (address - pass->target < idx->window_bytes)
		return keep || leads_somewhere(pass, address - pass->target) ? 0 : dangling(w, at, f);
	for (uint32_t i = 0; i < idx->nmoving; i++) {
		uint64_t off = address - idx->moving[i];

		if (off >= idx->window_bytes)
			continue;
		if (!keep && !leads_somewhere(pass, off))
			return dangling(w, at, f);
		__atomic_store_n(word, *word + (pass->target - idx->moving[i]), __ATOMIC_RELAXED);
		w->result.pointers++;
		return 0;
	}
	return keep ? 0 : dangling(w, at, f);
}

static int shift_object_carefully(struct worker *w, uint32_t type, uint8_t *object, uint64_t bytes)
{
	w->type = &w->pass->s->index.types[type];
	w->object = object;
	return pvi_typemap_visit(w->type, object, bytes, shift_carefully, w);
}

/* How many elements have room for this word. */
static uint64_t elements(const struct loop *l, const struct pvi_words *word, uint64_t bytes)
{
	uint64_t n = word->off + 8ull > bytes ? 0
		     : l->stride	      ? (bytes - word->off - 8) / l->stride + 1
					      : 1;

	return n < l->count || l->count == PV_FLEXIBLE ? n : l->count;
}

/* All of a loop's words in n objects that stand one behind the other. */
static bool shift_loop(const struct pvi_shift *shift, const struct loop *l, uint8_t *objects, uint64_t n,
		       uint32_t slot_bytes, uint64_t bytes, uint64_t *moved)
{
	uint64_t whole = UINT64_MAX; /* elements that have room for all words */
	bool odd = false;

	for (uint32_t k = 0; k < l->nwords; k++)
		if (elements(l, &l->words[k], bytes) < whole)
			whole = elements(l, &l->words[k], bytes);
	if (l->count == 1)
		return whole && pvi_words_shift(shift, objects, l->words, l->nwords, n, slot_bytes, moved);
	for (uint64_t i = 0; i < n; i++, objects += slot_bytes) {
		if (l->nwords == 1 && l->stride == 8 && whole >= DENSE)
			odd |= pvi_words_shift_dense(shift, (uint64_t *) (void *) (objects + l->words->off),
						     whole, l->words->mask, moved);
		else
			odd |= pvi_words_shift(shift, objects, l->words, l->nwords, whole, l->stride, moved);
		for (uint32_t k = 0; l->nwords > 1 && k < l->nwords; k++)
			for (uint64_t e = whole; e < elements(l, &l->words[k], bytes); e++)
				odd |= pvi_words_shift(shift, objects + e * l->stride, &l->words[k], 1, 1, 0,
						       moved);
	}
	return odd;
}

/* n live objects that stand one behind the other. */
static int shift_objects(struct worker *w, uint32_t type, uint8_t *objects, uint64_t n, uint64_t bytes)
{
	const struct plan *plan = &w->pass->plans[type];
	bool odd = plan->carefully;
	int err = 0;

	for (uint32_t i = 0; i < plan->nloops && !plan->carefully; i++)
		odd |= shift_loop(&w->pass->shift, &plan->loops[i], objects, n, (uint32_t) bytes, bytes,
				  &w->result.pointers);
	for (uint64_t i = 0; i < n && odd && !err; i++)
		err = shift_object_carefully(w, type, objects + i * bytes, bytes);
	return err;
}

/* ---- slabs and extents ---- */

/* How many slots from this one on are live; at most a batch. */
static uint32_t live_run(const uint8_t *bytes, uint32_t n)
{
	const uint64_t all = 0x0101010101010101ull * PV_SLOT_LIVE;
	uint32_t i = 0;

	if (n > BATCH)
		n = BATCH;
	for (uint64_t eight; i + 8 <= n; i += 8) {
		memcpy(&eight, bytes + i, 8);
		if (eight != all)
			break;
	}
	while (i < n && bytes[i] == PV_SLOT_LIVE)
		i++;
	return i;
}

static int shift_slab(struct worker *w, const struct pvi_segment *seg, uint32_t page, uint64_t rec)
{
	const struct pv_store *s = w->pass->s;
	const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];
	const uint8_t *bytes = pvi_slab_bytes(s, seg, page, rec);
	uint8_t *slab = seg->addr + ((uint64_t) page << s->page_shift);
	bool any = false;
	int err = 0;

	for (uint32_t i = 0, n; i < c->nslots && !err; i += n ? n : 1) {
		n = live_run(bytes + i, c->nslots - i);
		any |= n != 0;
		if (n)
			err = shift_objects(w, pvi_rec_type(rec), slab + (uint64_t) i * c->slot_bytes, n,
					    c->slot_bytes);
	}
	w->result.bytes += any ? (uint64_t) c->npages << s->page_shift : 0;
	return err;
}

static int shift_extent(struct worker *w, const struct pvi_segment *seg, uint32_t page, uint64_t rec)
{
	uint64_t bytes = (uint64_t) pvi_rec_extent_pages(rec) << w->pass->s->page_shift;

	w->result.bytes += bytes;
	return shift_objects(w, pvi_rec_extent_type(rec),
			     seg->addr + ((uint64_t) page << w->pass->s->page_shift), 1, bytes);
}

/* ---- pieces ---- */

/* A slab or extent of a type with pointers, sound as far as the page map and its header say. 0: something
 * else, 1: it is one, or an error. *pages: of whatever it is. */
static int look_at(const struct worker *w, const struct pvi_segment *seg, uint32_t page, uint32_t *pages,
		   uint64_t *rec)
{
	struct pass *pass = w->pass;
	uint32_t type;
	bool slab;

	*pages = 1;
	*rec = pvi_rec_load(seg->map, page);
	if (*rec == 0)
		return 0;
	slab = pvi_page_kind(*rec) == PV_PAGE_SLAB;
	if (pvi_page_run_sound(pass->s, seg, page, *rec)) {
		*pages = pvi_page_span(pass->s, *rec);
		type = slab ? pvi_rec_type(*rec) : pvi_rec_extent_type(*rec);
		if (type && type <= pass->s->index.ntypes) {
			if (!pass->plans[type].wanted)
				return 0;
			if (!slab || pvi_slab_sound(pass->s, seg, page, *rec))
				return 1;
		}
	}
	if (pass->policy == PVI_DANGLING_KEEP)
		return 0;
	return refuse(pass, -EBADMSG,
		      "segment %u: page %u: entry 0x%016" PRIx64 " makes no sense (see pv_check): relocation "
		      "is refused",
		      seg->number, page, *rec);
}

/* Have the pages of a run of slabs mapped at once: they are going to be written, and a fault for each costs
 * more. If it does not work they are mapped one by one. Slots of a page and more may have no memory. */
static void populate(const struct worker *w, const struct pvi_segment *seg, uint32_t from, uint32_t to)
{
	uint32_t shift = w->pass->s->page_shift;

	if ((uint64_t) (to - from) << shift < POPULATE_BYTES)
		return;
	madvise(seg->addr + ((uint64_t) from << shift), (uint64_t) (to - from) << shift, MADV_POPULATE_WRITE);
}

static bool worth_populating(const struct worker *w, uint64_t rec)
{
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
		return w->pass->plans[pvi_rec_extent_type(rec)].spread;
	return w->pass->s->classes[pvi_rec_class(rec)].slot_bytes < FAULT_BYTES;
}

/* What begins in these pages: first all of it is found and mapped, then its words are moved. */
static int shift_pages(struct worker *w, const struct pvi_segment *seg, uint32_t from, uint32_t to)
{
	struct {
		uint64_t rec;
		uint32_t page;
	} found[PIECE_BYTES / PAGE_BYTES_MIN];
	uint32_t start = from, nfound = 0, n;
	int rc = 0;

	for (uint32_t i = from; i < to && rc >= 0; i += n) {
		rc = look_at(w, seg, i, &n, &found[nfound].rec);
		found[nfound].page = i;
		nfound += rc == 1;
		if (rc == 1 && worth_populating(w, found[nfound - 1].rec))
			continue;
		if (i > start)
			populate(w, seg, start, i);
		start = i + n;
	}
	if (rc >= 0 && to > start)
		populate(w, seg, start, to);
	for (uint32_t i = 0; i < nfound && rc >= 0; i++)
		rc = pvi_page_kind(found[i].rec) == PV_PAGE_SLAB
			     ? shift_slab(w, seg, found[i].page, found[i].rec)
			     : shift_extent(w, seg, found[i].page, found[i].rec);
	return rc < 0 ? rc : 0;
}

/* Where the first slab or extent begins that does so here. */
static uint32_t first_head(const struct pvi_segment *seg, uint32_t page, uint32_t to)
{
	for (; page < to; page++) {
		uint64_t rec = pvi_rec_load(seg->map, page);

		if (!(pvi_page_kind(rec) == PV_PAGE_SLAB && pvi_rec_back(rec)) &&
		    !(pvi_page_kind(rec) == PV_PAGE_OTHER && pvi_rec_other_sub(rec) == PV_OTHER_CONT))
			break;
	}
	return page;
}

static int shift_piece(struct worker *w, uint64_t piece)
{
	struct pass *pass = w->pass;
	const struct pvi_segment *seg = pass->s->segments;
	uint64_t per = pass->pages_per_piece, from;
	uint32_t first, to;

	for (;; seg++) {
		uint64_t n = (seg->npages + per - 1) / per;

		if (piece < n)
			break;
		piece -= n;
	}
	from = piece * per;
	to = from + per < seg->npages ? (uint32_t) (from + per) : seg->npages;
	atomic_fetch_add_explicit(&pass->done_bytes, (to - from) << pass->s->page_shift,
				  memory_order_relaxed);
	first = from > seg->first_page ? first_head(seg, (uint32_t) from, to) : seg->first_page;
	/* What is sealed is put right at each attach, in memory alone: seal_segment.c. */
	return first < to && !seg->sealed ? shift_pages(w, seg, first, to) : 0;
}

/* ---- threads ---- */

static void work(struct worker *w, bool caller)
{
	struct pass *pass = w->pass;
	const struct pv_options *o = &pass->s->options;

	while (!atomic_load_explicit(&pass->err, memory_order_relaxed)) {
		uint64_t piece = atomic_fetch_add_explicit(&pass->next_piece, 1, memory_order_relaxed);
		uint64_t done;

		if (piece >= pass->npieces || shift_piece(w, piece))
			break;
		done = atomic_load_explicit(&pass->done_bytes, memory_order_relaxed);
		if (!caller || !o->progress || done - pass->told_bytes < PROGRESS_BYTES ||
		    done == pass->total_bytes)
			continue;
		pass->told_bytes = done;
		o->progress(o->tell_ctx, "relocate", done, pass->total_bytes);
	}
	pthread_mutex_lock(&pass->lock);
	pass->result.pointers += w->result.pointers;
	pass->result.bytes += w->result.bytes;
	pthread_mutex_unlock(&pass->lock);
}

static void *helper(void *arg)
{
	work(arg, false);
	return NULL;
}

static uint32_t thread_count(const struct pass *pass)
{
	uint64_t n = pass->s->options.threads, useful = pass->total_bytes / THREAD_BYTES + 1;
	cpu_set_t cpus;

	if (!n)
		n = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? (uint64_t) CPU_COUNT(&cpus) : 1;
	if (n > PVI_RELOCATE_THREADS)
		n = PVI_RELOCATE_THREADS;
	return (uint32_t) (n < useful ? n : useful);
}

/* The caller is one of them. Helpers that cannot be started are done without; the application's signal
 * handlers do not run in them. */
static void work_in_threads(struct pass *pass)
{
	struct worker workers[PVI_RELOCATE_THREADS];
	uint32_t n = thread_count(pass), started = 1;
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (uint32_t i = 0; i < n; i++)
		workers[i] = (struct worker){.pass = pass};
	while (started < n &&
	       pthread_create(&workers[started].thread, NULL, helper, &workers[started]) == 0)
		started++;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	work(&workers[0], true);
	for (uint32_t i = 1; i < started; i++)
		pthread_join(workers[i].thread, NULL);
}

/* Segments one behind the other, or with addresses between them to which nothing leads? */
static bool survey(struct pass *pass)
{
	const struct pv_store *s = pass->s;
	bool gaps = false;

	for (uint32_t i = 0; i < s->nsegments; i++) {
		const struct pvi_segment *seg = &s->segments[i];

		gaps |= i && seg->off != seg[-1].off + seg[-1].bytes;
		pass->npieces += (seg->npages + pass->pages_per_piece - 1) / pass->pages_per_piece;
		pass->total_bytes += (uint64_t) seg->npages << s->page_shift;
		pass->high = seg->off + seg->bytes;
	}
	pass->low = s->segments[0].data_off;
	return gaps;
}

int pvi_relocate_pass(struct pv_store *s, uint32_t policy, struct pvi_pass_result *result)
{
	uint64_t from = s->index.moving[s->index.nmoving - 1];
	struct pass pass = {
		.s = s,
		.policy = policy,
		.target = s->index.base,
		.pages_per_piece = PIECE_BYTES >> s->page_shift,
		.lock = PTHREAD_MUTEX_INITIALIZER,
	};
	int err = make_plans(&pass, survey(&pass));

	pass.shift = (struct pvi_shift){from, s->window_bytes, s->index.base - from};
	if (policy != PVI_DANGLING_KEEP) {
		pass.shift.from += pass.low;
		pass.shift.span = pass.high - pass.low;
	}
	if (!err) {
		work_in_threads(&pass);
		err = atomic_load(&pass.err);
		if (err)
			pvi_fail(err, "%s", pass.why);
		else if (s->options.progress)
			s->options.progress(s->options.tell_ctx, "relocate", pass.total_bytes,
					    pass.total_bytes);
	}
	free_plans(&pass);
	*result = pass.result;
	return err;
}
