/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pv_stats_get() against a model of what was allocated, against pv_check(), in stores that were just
 * attached, beside threads; and whether the largest allocation that it promises is to be had, and a
 * page more is not.
 *
 * PV_TEST_SEED=n repeats or varies a run.
 */
#include <pthread.h>

#include <preserve/stats.h>
#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

#define THINGS 400
#define TYPES  3

struct thing {
	void *p; /* NULL: none */
	size_t bytes;
	int type; /* of the model */
	bool live;
};

struct model {
	struct keeper *k;
	struct pv_options o;
	struct pv_store *s;
	struct cells *cells;
	pv_type_t types[TYPES];
	struct thing things[THINGS];
	uint64_t random;
};

static void model_open(struct model *m)
{
	static const char *const names[TYPES] = {"a", "b", "c"};

	m->s = m->k->n ? store_attach(m->k, &m->o) : store_create(m->k, &m->o);
	for (int i = 0; i < TYPES; i++)
		m->types[i] = store_bytes_type(m->s, names[i]);
	m->cells = store_cells(m->s);
}

static struct pv_stats *stats_of(struct pv_store *s)
{
	struct pv_stats *st = NULL;

	assert_ok(pv_stats_get(s, &st));
	return st;
}

static const struct pv_stats_type *type_of(const struct pv_stats *st, pv_type_t type)
{
	assert_in_range(type, 1, st->ntypes);
	assert_int_equal(st->types[type - 1].type, type);
	return &st->types[type - 1];
}

/* ---- a history of one thread ---- */

static size_t random_size(struct model *m)
{
	switch (random_below(&m->random, 12)) {
	case 0:
		return 1 + random_below(&m->random, 200000);
	case 1:
	case 2:
		return 1 + random_below(&m->random, 9000);
	default:
		return 1 + random_below(&m->random, 500);
	}
}

static void step(struct model *m)
{
	size_t i = random_below(&m->random, THINGS);
	struct thing *t = &m->things[i];
	int err;

	if (t->p && t->live) {
		assert_ok(pv_free(m->s, &m->cells->cells[i]));
		t->p = NULL;
	} else if (t->p && random_below(&m->random, 3)) {
		assert_ok(pv_publish(m->s,
				     (struct pv_action[]){
					     PV_LIVE(t->p),
					     PV_STORE(&m->cells->cells[i], (uintptr_t)t->p)},
				     2));
		t->live = true;
	} else if (t->p) {
		assert_ok(pv_cancel(m->s, t->p));
		t->p = NULL;
	} else {
		*t = (struct thing){.bytes = random_size(m),
				    .type = (int)random_below(&m->random, TYPES)};
		err = pv_reserve(m->s, m->types[t->type], t->bytes, &t->p);
		if (err) {
			assert_int_equal(err, -ENOSPC);
			t->p = NULL;
		}
	}
}

/* What the model says of a type: live and reserved objects, in slots and extents. */
struct sums {
	uint64_t live, live_bytes, reserved, reserved_bytes;
	uint64_t extents, extent_bytes, reserved_extents;
};

static struct sums sums_of(struct model *m, int type)
{
	size_t most = m->s->classes[m->s->nclasses - 1].slot_bytes;
	struct sums sum = {0};

	for (size_t i = 0; i < THINGS; i++) {
		const struct thing *t = &m->things[i];
		size_t usable;

		if (!t->p || t->type != type)
			continue;
		usable = pv_usable_bytes(m->s, t->p);
		assert_true(usable >= t->bytes);
		if (t->live) {
			sum.live++;
			sum.live_bytes += usable;
			sum.extents += t->bytes > most;
			sum.extent_bytes += t->bytes > most ? usable : 0;
		} else if (t->bytes > most) {
			sum.reserved_extents++;
		} else {
			sum.reserved++;
			sum.reserved_bytes += usable;
		}
	}
	return sum;
}

/* What holds of the figures of any slabs. */
static void slabs_add_up(const struct pv_stats_slabs *a, uint64_t page_bytes)
{
	double part = a->slab_bytes ? (double)a->free_bytes / (double)a->slab_bytes : 0;

	assert_int_equal(a->slab_bytes, a->pages * page_bytes);
	assert_int_equal(a->slab_bytes,
			 a->live_bytes + a->busy_bytes + a->free_bytes + a->metadata_bytes);
	assert_true(a->fragmentation >= part - 1e-9 && a->fragmentation <= part + 1e-9);
	assert_true(a->metadata_bytes <= a->slab_bytes);
}

/* Types add up to the store, classes to their type, and all of it is what pv_check() counts. */
static void adds_up(struct pv_store *s, const struct pv_stats *st)
{
	struct pv_check_report r = store_sound(s);
	uint64_t live = 0, slabs = 0, pages = 0;

	for (uint32_t i = 0; i < st->ntypes; i++) {
		const struct pv_stats_type *t = &st->types[i];
		struct pv_stats_slabs sum = {0};

		for (uint32_t c = 0; c < t->nclasses; c++) {
			const struct pv_stats_class *class = &t->classes[c];

			assert_true(class->slabs.slabs > 0);
			assert_true(!c || class->slot_bytes > t->classes[c - 1].slot_bytes);
			slabs_add_up(&class->slabs, st->page_bytes);
			assert_int_equal(class->slabs.slabs * class->slots,
					 class->slabs.live + class->slabs.reserved +
						 class->slabs.held + class->slabs.retired +
						 class->slabs.free);
			assert_int_equal(class->slabs.live_bytes,
					 class->slabs.live * class->slot_bytes);
			sum.slabs += class->slabs.slabs;
			sum.live += class->slabs.live;
			sum.free_bytes += class->slabs.free_bytes;
		}
		slabs_add_up(&t->slabs, st->page_bytes);
		assert_int_equal(sum.slabs, t->slabs.slabs);
		assert_int_equal(sum.live, t->slabs.live);
		assert_int_equal(sum.free_bytes, t->slabs.free_bytes);
		live += t->live_objects;
		slabs += t->slabs.slabs;
		pages += t->slabs.pages;
	}
	slabs_add_up(&st->slabs, st->page_bytes);
	assert_int_equal(live, st->live_objects);
	assert_int_equal(slabs, st->slabs.slabs);
	assert_int_equal(pages, st->slabs.pages);
	assert_int_equal(st->live_objects, r.live_objects);
	assert_int_equal(st->live_bytes, r.live_bytes);
	assert_int_equal(st->slabs.slabs, r.slabs);
	assert_int_equal(st->extents, r.extents);
	assert_int_equal(st->slabs.free, r.free_slots);
	assert_int_equal(st->slabs.reserved + st->slabs.held, r.reserved_objects);
	assert_int_equal(st->free_bytes + st->reserved_extent_bytes,
			 r.free_pages * st->page_bytes);
	/* Pages belong to slabs or extents, and the rest is metadata. */
	assert_int_equal(st->used_bytes, st->slabs.slab_bytes + st->extent_bytes +
						 st->reserved_extent_bytes +
						 st->retired_extent_bytes);
	assert_int_equal(st->bytes,
			 st->used_bytes + st->free_bytes + st->metadata_bytes - st->slabs.metadata_bytes);
	assert_int_equal(st->bytes, store_info(s).bytes);
	assert_int_equal(st->segments, store_info(s).segments);
	assert_true(st->backed_bytes <= st->bytes);
	assert_true(st->backed_bytes >= st->live_bytes);
}

static void compare(struct model *m)
{
	struct pv_stats *st = stats_of(m->s);
	uint64_t reserved_bytes = 0;

	for (int i = 0; i < TYPES; i++) {
		const struct pv_stats_type *t = type_of(st, m->types[i]);
		struct sums want = sums_of(m, i);

		assert_int_equal(t->live_objects, want.live);
		assert_int_equal(t->live_bytes, want.live_bytes);
		assert_int_equal(t->slabs.reserved, want.reserved);
		assert_int_equal(t->extents, want.extents);
		assert_int_equal(t->extent_bytes, want.extent_bytes);
		assert_int_equal(t->reserved_extents, want.reserved_extents);
		reserved_bytes += want.reserved_bytes;
	}
	/* One thread, which has all that is held but for what it left in depots. */
	assert_int_equal(st->nthreads, 1);
	assert_true(st->threads[0].self);
	assert_int_equal(st->threads[0].slots + st->depot_slots, st->slabs.held);
	assert_int_equal(st->threads[0].bytes + st->depot_bytes + reserved_bytes,
			 st->slabs.busy_bytes);
	adds_up(m->s, st);
	pv_stats_free(st);
}

static void history(struct keeper *k, struct pv_options o, uint64_t seed)
{
	struct model *m = calloc(1, sizeof(*m));

	assert_non_null(m);
	*m = (struct model){.k = k, .o = o, .random = seed};
	model_open(m);
	for (int i = 1; i <= (under_tsan() ? 1500 : 6000); i++) {
		step(m);
		if (i % 50 == 0)
			compare(m);
		if (i % 700)
			continue;
		if (i % 1400)
			keeper_crash(k, &m->s);
		else
			assert_ok(pv_close(m->s));
		for (size_t t = 0; t < THINGS; t++) /* what was only reserved is gone */
			if (!m->things[t].live)
				m->things[t].p = NULL;
		model_open(m);
		for (size_t t = 0; t < THINGS; t++)
			m->things[t].p = store_moved(m->s, m->things[t].p);
		/* pv_usable_bytes() warms; the thread has to have a lane to be counted. */
		assert_ok(pv_publish(m->s, NULL, 0));
		compare(m);
	}
	assert_ok(pv_close(m->s));
	free(m);
}

static void small_pages(void **state)
{
	struct pv_options o = small_options(*state);

	o.window_bytes = 1 << 26;
	history(*state, o, random_seed_from_env("small_pages"));
}

static void large_pages(void **state)
{
	struct pv_options o = small_options(*state);

	o.window_bytes = 1 << 28;
	o.segment_bytes = 1 << 20;
	o.page_bytes = 16384;
	o.limit_bytes = 8 << 20;
	history(*state, o, random_seed_from_env("large_pages") + 1);
}

/* ---- after an attach ---- */

/* Everything is cold: counted as it will be when it is warm, and left as it is. */
static void cold_slabs(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct pv_stats *st;
	uint8_t *before, *now;
	size_t bytes;

	for (size_t i = 0; i < 300; i++)
		publish_ok(s, type, 40 + 10 * (i % 90), &cells->cells[i]);
	publish_ok(s, type, 50000, &cells->cells[300]);
	for (size_t i = 0; i < 300; i += 3)
		assert_ok(pv_free(s, &cells->cells[i]));
	reserve_ok(s, type, 60000);
	for (int i = 0; i < 20; i++)
		reserve_ok(s, type, 100);
	st = stats_of(s);
	assert_int_equal(type_of(st, type)->slabs.reserved, 20);
	assert_int_equal(st->reserved_extents, 1);
	assert_true(st->slabs.held > 0);
	pv_stats_free(st);
	keeper_crash(k, &s);

	s = store_attach(k, NULL);
	cells = store_moved(s, cells);
	now = memfd_map(keeper_fd(k, 1), &bytes);
	before = malloc(bytes);
	assert_non_null(before);
	memcpy(before, now, bytes);
	st = stats_of(s);
	assert_memory_equal(before, now, bytes);
	for (uint32_t i = 0; i < s->nsegments; i++)
		assert_false(s->segments[i].loaded);
	assert_int_equal(st->nthreads, 0); /* nor was a lane taken */
	assert_int_equal(type_of(st, type)->live_objects, 201);
	assert_int_equal(st->live_objects, 202);
	assert_int_equal(st->extents, 1);
	assert_int_equal(st->reserved_extents, 0);
	assert_int_equal(st->slabs.busy_bytes, 0);
	adds_up(s, st);
	pv_stats_free(st);
	memfd_unmap(now, bytes);
	free(before);
	assert_ok(pv_close(s));
}

/* Through a reader, beside the writer. */
static int look_on(void *ctx)
{
	struct pv_store *s = NULL;
	struct pv_stats *st = NULL;
	bool right;

	if (store_try(ctx, NULL, PV_RDONLY, &s) || pv_stats_get(s, &st))
		return 1;
	right = st->live_objects == 2 && st->extents == 1 && st->slabs.busy_bytes == 0 &&
		st->slabs.free > 0 && st->nthreads == 0 && st->largest_bytes == 0 &&
		strcmp(st->types[1].name, "bytes") == 0 && st->types[1].live_objects == 1;
	pv_close(s);
	pv_stats_free(st); /* which may outlive the handle */
	return right ? 0 : 2;
}

static void reader(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");

	publish_ok(s, type, 50000, &cells->cells[0]);
	reserve_ok(s, type, 100);
	assert_int_equal(run_child(look_on, k), 0);
	assert_ok(pv_close(s));
}

/* ---- the largest allocation ---- */

struct full {
	struct pv_store *s;
	struct objects all;
	uint64_t random;
	unsigned int ntypes;
	size_t slots, extents, none; /* kinds of answers seen */
};

static pv_type_t fresh_type(struct full *f)
{
	char name[16];

	snprintf(name, sizeof(name), "t%u", f->ntypes++);
	return store_bytes_type(f->s, name);
}

/* A page more than `largest` is refused, and `largest` is not. */
static void largest_holds(struct pv_store *s, pv_type_t type, uint64_t largest, uint64_t page)
{
	void *p;

	assert_fails(pv_reserve(s, type, largest + page, &p), -ENOSPC, "");
	if (!largest)
		return;
	assert_ok(pv_reserve(s, type, largest, &p));
	assert_ok(pv_cancel(s, p));
}

static void try_largest(struct full *f, pv_type_t used)
{
	pv_type_t fresh = fresh_type(f);
	uint64_t trimmed;
	struct pv_stats *st;
	const struct pv_stats_type *t;
	uint64_t most = f->s->classes[f->s->nclasses - 1].slot_bytes;

	assert_ok(pv_trim(f->s, &trimmed));
	st = stats_of(f->s);
	t = type_of(st, used);

	f->slots += st->largest_bytes && st->largest_bytes <= most;
	f->extents += st->largest_bytes > most;
	f->none += !st->largest_bytes;
	assert_int_equal(type_of(st, fresh)->largest_bytes, st->largest_bytes);
	assert_true(t->largest_bytes >= st->largest_bytes);
	if (random_below(&f->random, 2)) {
		largest_holds(f->s, fresh, st->largest_bytes, st->page_bytes);
	} else {
		largest_holds(f->s, used, t->largest_bytes, st->page_bytes);
		/* One of a slot leaves the others where they are. */
		if (t->largest_bytes <= most && t->largest_bytes > st->largest_bytes)
			largest_holds(f->s, fresh, st->largest_bytes, st->page_bytes);
	}
	pv_stats_free(st);
}

/* Allocate, or free, some; the store is nearly full most of the time. */
static void shake(struct full *f, pv_type_t type)
{
	size_t n = 1 + random_below(&f->random, 60);
	void *p;

	if (f->all.n && random_below(&f->random, 5) == 0) {
		while (n-- && f->all.n) {
			size_t i = random_below(&f->random, f->all.n);

			assert_ok(pv_publish(f->s, &PV_FREE(f->all.v[i].p), 1));
			f->all.v[i] = f->all.v[--f->all.n];
		}
		return;
	}
	while (n--) {
		size_t bytes = random_below(&f->random, 4) ? 1 + random_below(&f->random, 40000)
							   : 1 + random_below(&f->random, 400000);

		if (pv_reserve(f->s, type, bytes, &p))
			continue;
		assert_ok(pv_publish(f->s, &PV_LIVE(p), 1));
		objects_add(&f->all, p, bytes, type);
	}
}

static void largest(struct keeper *k, struct pv_options o, uint64_t seed)
{
	struct full f = {.random = seed, .s = store_create(k, &o)};
	pv_type_t type = fresh_type(&f);

	for (int i = 0; i < (under_tsan() ? 60 : 300); i++) {
		shake(&f, type);
		try_largest(&f, type);
		if (i % 25 == 24) { /* cold, and no segment is loaded */
			keeper_crash(k, &f.s);
			f.s = store_attach(k, &o);
			objects_moved(&f.all, f.s);
			type = store_bytes_type(f.s, "t0");
			try_largest(&f, type);
		}
	}
	print_message("largest: %zu extents, %zu slots, %zu times nothing\n", f.extents, f.slots,
		      f.none);
	assert_true(f.extents > 5 && f.slots > 0);
	store_sound(f.s);
	objects_free(&f.all);
	assert_ok(pv_destroy(f.s));
}

static void largest_within_a_limit(void **state)
{
	struct pv_options o = small_options(*state);

	o.segment_bytes = 1 << 20;
	o.window_bytes = 1 << 28;
	o.limit_bytes = (6 << 20) + 12345;
	largest(*state, o, random_seed_from_env("largest_within_a_limit"));
	o.page_bytes = 16384;
	o.limit_bytes = (15 << 20) + 54321;
	largest(*state, o, random_seed_from_env("largest_within_a_limit") + 1);
}

static void largest_within_a_window(void **state)
{
	struct pv_options o = small_options(*state);

	o.segment_bytes = 1 << 20;
	o.window_bytes = 8 << 20;
	largest(*state, o, random_seed_from_env("largest_within_a_window"));
}

/* The index cannot name another segment: it holds some dozens, when it is small. */
static void largest_with_a_full_index(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct pv_stats *st;
	unsigned int n = 0;
	pv_type_t type;
	char name[32];
	void *p;

	o.window_bytes = 1 << 26;
	s = store_create(k, &o);
	type = store_bytes_type(s, "bytes");
	for (int err = 0; !err; n++) {
		struct pv_typedef def = PV_TYPE_BYTES(name, 1);
		pv_type_t more;

		snprintf(name, sizeof(name), "a-long-name-for-a-type-%u", n);
		err = pv_type_register(s, &def, &more);
		assert_true(err == 0 || err == -ENOSPC);
	}
	st = stats_of(s);
	assert_int_equal(st->ntypes, n);
	assert_true(st->largest_bytes < 65536);
	largest_holds(s, type, st->largest_bytes, st->page_bytes);
	assert_fails(pv_reserve(s, type, 100000, &p), -ENOSPC, "index");
	pv_stats_free(st);
	assert_ok(pv_close(s));
}

static void largest_without_a_limit(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct pv_stats *st = stats_of(s);

	/* Index and first segment have a granule each; the rest of the window is one segment. */
	assert_in_range(st->largest_bytes, (16 << 20) - (300 << 10), (16 << 20) - (128 << 10));
	assert_int_equal(st->window_bytes, 16 << 20);
	assert_int_equal(st->limit_bytes, 0);
	largest_holds(s, type, st->largest_bytes, st->page_bytes);
	pv_stats_free(st);
	assert_ok(pv_close(s));
}

/* ---- threads ---- */

#define THREADS	 6
#define PER_TURN 50

struct worker {
	struct pv_store *s;
	pv_type_t type;
	void **cells; /* PER_TURN */
	uint64_t random;
	_Atomic bool *stop; /* NULL: one turn */
	bool trims;
	pthread_barrier_t *done, *go;
};

static void turn(struct worker *w)
{
	for (size_t i = 0; i < PER_TURN; i++) {
		size_t bytes;

		if (w->cells[i])
			assert_ok(pv_free(w->s, &w->cells[i]));
		bytes = random_below(&w->random, 40) ? 5000 : 1 << 20; /* segments come and go */
		assert_ok(pv_alloc(w->s, w->type, 1 + random_below(&w->random, bytes), &w->cells[i]));
		if (random_below(&w->random, 3) == 0)
			assert_ok(pv_free(w->s, &w->cells[i]));
	}
}

static void *work(void *ctx)
{
	struct worker *w = ctx;

	do {
		turn(w);
		if (w->trims)
			assert_ok(pv_trim(w->s, NULL));
	} while (w->stop && !*w->stop);
	if (w->done) {
		pthread_barrier_wait(w->done);
		pthread_barrier_wait(w->go);
	}
	return NULL;
}

struct crew {
	struct pv_store *s;
	pthread_t threads[THREADS];
	struct worker workers[THREADS];
	pthread_barrier_t done, go;
};

static void crew_start(struct crew *c, struct pv_store *s, _Atomic bool *stop)
{
	struct cells *cells = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");

	c->s = s;
	pthread_barrier_init(&c->done, NULL, THREADS + 1);
	pthread_barrier_init(&c->go, NULL, THREADS + 1);
	for (int i = 0; i < THREADS; i++) {
		c->workers[i] = (struct worker){.s = s,
						.type = type,
						.cells = &cells->cells[i * PER_TURN],
						.random = (uint64_t)i,
						.stop = stop,
						.trims = stop && i == 0,
						.done = &c->done,
						.go = &c->go};
		assert_int_equal(pthread_create(&c->threads[i], NULL, work, &c->workers[i]), 0);
	}
}

static void crew_end(struct crew *c)
{
	pthread_barrier_wait(&c->go);
	for (int i = 0; i < THREADS; i++)
		pthread_join(c->threads[i], NULL);
	pthread_barrier_destroy(&c->done);
	pthread_barrier_destroy(&c->go);
}

static struct pv_store *store_for_threads(struct keeper *k)
{
	struct pv_options o = small_options(k);

	o.segment_bytes = 1 << 20;
	o.window_bytes = 1 << 28;
	o.lanes = THREADS + 2;
	return store_create(k, &o);
}

/* What each thread holds, by its own magazines. */
static void thread_caches(void **state)
{
	struct pv_store *s = store_for_threads(*state);
	uint64_t slots = 0;
	struct pv_stats *st;
	struct crew c;

	crew_start(&c, s, NULL);
	pthread_barrier_wait(&c.done); /* they have something, and do nothing */
	st = stats_of(s);
	adds_up(s, st);
	assert_int_equal(st->nthreads, THREADS + 1);
	for (uint32_t i = 0; i < st->nthreads; i++) {
		const struct pvi_thread *t = s->threads;
		uint64_t want = 0, bytes = 0;

		while (t->lane_number != st->threads[i].lane)
			t = t->next;
		for (uint32_t b = 0; b < t->nbins; b++) {
			want += pvi_thread_slots(t, b);
			for (uint32_t n = 0; n < pvi_thread_slots(t, b); n++)
				bytes += s->classes[b & ((1u << PV_PAGE_CLASS_BITS) - 1)].slot_bytes;
		}
		assert_int_equal(st->threads[i].slots, want);
		assert_int_equal(st->threads[i].bytes, bytes);
		assert_int_equal(st->threads[i].self, t == pvi_thread_find(s));
		assert_true(st->threads[i].self || want > 0);
		slots += want;
	}
	assert_int_equal(slots + st->depot_slots, st->slabs.held);
	pv_stats_free(st);
	crew_end(&c);
	/* They have ended, and what they had lies in the depots; a trim makes it free. */
	st = stats_of(s);
	assert_int_equal(st->nthreads, 1);
	assert_int_equal(st->threads[0].slots + st->depot_slots, st->slabs.held);
	assert_true(st->depot_slots > 0);
	adds_up(s, st);
	pv_stats_free(st);
	assert_ok(pv_trim(s, NULL));
	st = stats_of(s);
	assert_int_equal(st->depot_slots, 0);
	assert_int_equal(st->slabs.held, 0);
	adds_up(s, st);
	pv_stats_free(st);
	assert_ok(pv_close(s));
}

/* Beside threads that allocate and free: every slot of a slab is counted once, whatever its state. */
static void beside_threads(void **state)
{
	struct pv_store *s = store_for_threads(*state);
	_Atomic bool stop = false;
	struct pv_stats *st;
	struct crew c;

	crew_start(&c, s, &stop);
	for (int i = 0; i < (under_tsan() ? 50 : 500); i++) {
		st = stats_of(s);
		slabs_add_up(&st->slabs, st->page_bytes);
		for (uint32_t t = 0; t < st->ntypes; t++)
			for (uint32_t k = 0; k < st->types[t].nclasses; k++) {
				const struct pv_stats_class *class = &st->types[t].classes[k];

				slabs_add_up(&class->slabs, st->page_bytes);
				assert_int_equal(class->slabs.slabs * class->slots,
						 class->slabs.live + class->slabs.reserved +
							 class->slabs.held + class->slabs.free);
			}
		assert_true(st->live_objects <= THREADS * PER_TURN + THREADS + 1);
		pv_stats_free(st);
	}
	stop = true;
	pthread_barrier_wait(&c.done);
	st = stats_of(s);
	adds_up(s, st);
	pv_stats_free(st);
	crew_end(&c);
	assert_ok(pv_close(s));
}

/* ---- the rest ---- */

static void empty_store(void **state)
{
	struct pv_store *s = store_create(*state, NULL);
	struct pv_stats *st = stats_of(s);

	assert_int_equal(st->live_objects, 0);
	assert_int_equal(st->ntypes, 0);
	assert_int_equal(st->nthreads, 0);
	assert_int_equal(st->segments, 1);
	assert_int_equal(st->used_bytes, 0);
	assert_true(st->slabs.fragmentation < 1e-9);
	assert_true(st->metadata_bytes > 0 && st->metadata_bytes < st->bytes);
	adds_up(s, st);
	pv_stats_free(st);
	pv_stats_free(NULL);
	assert_ok(pv_close(s));
}

/* A log that has outgrown its lane has pages, which belong to no object. */
static void transaction_log(void **state)
{
	struct pv_store *s = store_create(*state, NULL);
	struct cells *cells = store_cells(s);
	struct pv_stats *st;

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_add(s, cells, sizeof(*cells)));
	st = stats_of(s);
	assert_int_equal(st->reserved_extents, 1);
	assert_int_equal(st->extents, 0);
	adds_up(s, st);
	pv_stats_free(st);
	assert_ok(pv_tx_commit(s));
	st = stats_of(s);
	assert_int_equal(st->reserved_extents, 0);
	pv_stats_free(st);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(empty_store),
		with_keeper(small_pages),
		with_keeper(large_pages),
		with_keeper(cold_slabs),
		with_keeper(reader),
		with_keeper(largest_within_a_limit),
		with_keeper(largest_within_a_window),
		with_keeper(largest_with_a_full_index),
		with_keeper(largest_without_a_limit),
		with_keeper(thread_caches),
		with_keeper(beside_threads),
		with_keeper(transaction_log),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
