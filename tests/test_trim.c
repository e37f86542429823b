/* SPDX-License-Identifier: BSD-3-Clause */
/* Memory that is given back: by pv_trim(), segments and all, and by the library itself when much of it lies
 * idle; and what is left works as before, whoever looks at it. */
#include <pthread.h>

#include <preserve/stats.h>
#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

#define MIB (1ull << 20)

static struct pv_options growing_options(struct keeper *k)
{
	struct pv_options o = small_options(k);

	o.window_bytes = 1 << 28;
	o.segment_bytes = 1 << 18;
	o.page_bytes = 4096;
	return o;
}

static uint64_t backed_bytes(struct pv_store *s)
{
	struct pv_stats *st;
	uint64_t bytes;

	assert_ok(pv_stats_get(s, &st));
	bytes = st->backed_bytes;
	pv_stats_free(st);
	return bytes;
}

/* pv_trim(), which says what came free. */
static uint64_t trim(struct keeper *k, struct pv_store *s)
{
	uint64_t before = keeper_bytes(k), bytes = UINT64_MAX;

	assert_ok(pv_trim(s, &bytes));
	assert_int_equal(bytes, before - keeper_bytes(k));
	assert_int_equal(backed_bytes(s), keeper_bytes(k));
	assert_int_equal(store_info(s).segments, k->n - 1);
	store_sound(s);
	return bytes;
}

static size_t size_of(size_t i)
{
	static const size_t sizes[] = {40, 700, 64, 9000, 40000, 200, 100000, 3000};

	return sizes[i % (sizeof(sizes) / sizeof(*sizes))];
}

/* Objects of all kinds in the cells [from, to). */
static void fill(struct pv_store *s, struct cells *t, size_t from, size_t to)
{
	pv_type_t type = store_bytes_type(s, "bytes");

	for (size_t i = from; i < to; i++)
		pattern_fill(publish_ok(s, type, size_of(i), &t->cells[i]), size_of(i), i);
}

static void assert_filled(const struct cells *t, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		if (!pattern_holds(t->cells[i], size_of(i), i))
			fail_msg("object %zu of %zu bytes at %p is not as it was", i, size_of(i),
				 t->cells[i]);
}

static void empty(struct pv_store *s, struct cells *t, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		assert_ok(pv_free(s, &t->cells[i]));
}

/* ---- pv_trim ---- */

static void an_empty_store_is_small_again(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	uint32_t segments;
	uint64_t small;

	store_bytes_type(s, "bytes");
	trim(k, s);
	small = keeper_bytes(k);
	assert_true(small < MIB / 4);
	for (int round = 0; round < 4; round++) {
		unsigned int drops = k->drops;

		fill(s, t, 0, CELLS);
		segments = store_info(s).segments;
		assert_true(segments >= 4);
		assert_true(keeper_bytes(k) > 8 * MIB);
		if (round >= 2) { /* what another process has left, slabs that nobody has looked at */
			keeper_crash(k, &s);
			s = store_attach(k, &o);
			t = store_moved(s, t);
		}
		empty(s, t, 0, CELLS);
		assert_true(trim(k, s) > 8 * MIB);
		assert_int_equal(store_info(s).segments, 1);
		assert_int_equal(k->drops - drops, segments - 1);
		assert_int_equal(k->last_drop, 2); /* segment 1: from the last to the first */
		assert_int_equal(keeper_fd(k, 2), -1);
		assert_in_range(keeper_bytes(k), 1, small + MIB / 16);
		/* Nothing is left to give. */
		assert_int_equal(trim(k, s), 0);
		assert_ok(pv_trim(s, NULL));
		if (round % 2) {
			keeper_crash(k, &s);
			s = store_attach(k, &o);
			t = store_moved(s, t);
			assert_int_equal(store_info(s).segments, 1);
			assert_int_equal(store_sound(s).live_objects, 1);
		}
	}
	/* It grows as ever. */
	fill(s, t, 0, CELLS);
	assert_filled(t, 0, CELLS);
	assert_int_equal(store_info(s).segments, segments);
	assert_ok(pv_close(s));
	s = store_attach(k, &o);
	t = store_moved(s, t);
	assert_filled(t, 0, CELLS);
	assert_int_equal(store_sound(s).live_objects, CELLS + 1);
	assert_ok(pv_close(s));
}

/* Only empty segments at the end leave. In the middle of the others, memory does. */
static void what_lives_stays(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	uint32_t middle, segments;
	uint8_t *p;

	fill(s, t, 0, CELLS / 2);
	middle = store_info(s).segments;
	p = publish_ok(s, type, 300000, &t->cells[CELLS - 1]);
	if (store_info(s).segments > middle)
		middle = store_info(s).segments;
	pattern_fill(p, 300000, 12);
	fill(s, t, CELLS / 2, CELLS - 1);
	segments = store_info(s).segments;
	assert_true(middle > 2 && segments > middle);
	empty(s, t, 0, CELLS - 1);
	assert_true(trim(k, s) > 4 * MIB);
	assert_int_equal(store_info(s).segments, middle);
	assert_true(keeper_bytes(k) < MIB);
	assert_true(pattern_holds(p, 300000, 12));
	/* In the holes around it. */
	fill(s, t, 0, CELLS / 2);
	assert_filled(t, 0, CELLS / 2);
	assert_true(pattern_holds(p, 300000, 12));
	assert_int_equal(store_sound(s).live_objects, CELLS / 2 + 2);
	keeper_crash(k, &s);
	s = store_attach(k, &o);
	t = store_moved(s, t);
	p = store_moved(s, p);
	assert_filled(t, 0, CELLS / 2);
	assert_true(pattern_holds(p, 300000, 12));
	/* Every other object goes: slabs stay, and so do the others. */
	for (size_t i = 0; i < CELLS / 2; i += 2)
		assert_ok(pv_free(s, &t->cells[i]));
	assert_ok(pv_free(s, &t->cells[CELLS - 1]));
	trim(k, s);
	for (size_t i = 1; i < CELLS / 2; i += 2)
		assert_true(pattern_holds(t->cells[i], size_of(i), i));
	for (size_t i = 1; i < CELLS / 2; i += 2)
		assert_ok(pv_free(s, &t->cells[i]));
	trim(k, s);
	assert_int_equal(store_info(s).segments, 1);
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

/* A reservation, and what a transaction has written down, have pages that the page map calls free. */
static void what_is_reserved_stays(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	void *slot, *extent;

	fill(s, t, 0, 64);
	slot = reserve_ok(s, type, 5000);
	extent = reserve_ok(s, type, 2 * MIB);
	pattern_fill(slot, 5000, 1);
	pattern_fill(extent, 2 * MIB, 2);
	empty(s, t, 0, 64);
	trim(k, s);
	assert_true(store_info(s).segments > 1);
	assert_true(pattern_holds(slot, 5000, 1));
	assert_true(pattern_holds(extent, 2 * MIB, 2));
	assert_ok(pv_link(s, extent, &t->cells[0]));
	assert_ok(pv_cancel(s, slot));
	trim(k, s);
	assert_true(pattern_holds(t->cells[0], 2 * MIB, 2));
	/* All of it is in the log, in several chunks. */
	assert_ok(pv_tx_begin(s));
	for (size_t at = 0; at < 2 * MIB; at += 65536) {
		assert_ok(pv_tx_add(s, (uint8_t *)extent + at, 65536));
		memset((uint8_t *)extent + at, 0x55, 65536);
	}
	trim(k, s);
	assert_ok(pv_tx_abort(s));
	assert_true(pattern_holds(t->cells[0], 2 * MIB, 2));
	assert_ok(pv_free(s, &t->cells[0]));
	trim(k, s);
	assert_int_equal(store_info(s).segments, 1);
	assert_ok(pv_close(s));
}

/* A keeper that is at its worst when a descriptor is to go. */
struct moment {
	struct keeper *k;
	struct keeper *copy; /* gets what is kept, before the descriptor is dropped */
	int refuses;
};

static int keep_moment(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	struct moment *m = ctx;

	if (what == PV_KEEP_DROP && m->copy && !m->copy->n)
		keeper_copy(m->copy, m->k);
	if (what == PV_KEEP_DROP && m->refuses)
		return m->refuses;
	return keeper_keep(m->k, what, token, fd);
}

/* Named no more, but kept: the next attach drops it. */
static void a_crash_before_the_descriptor_goes(void **state)
{
	struct keeper *k = *state, copy = {0};
	struct moment m = {.k = k};
	struct pv_options o = growing_options(k);
	struct pv_store *s;
	struct cells *t;
	uint32_t segments;

	o.keep = keep_moment;
	o.keep_ctx = &m;
	s = store_create(k, &o);
	t = store_cells(s);
	fill(s, t, 0, CELLS);
	segments = store_info(s).segments;
	empty(s, t, 4, CELLS);
	keeper_init(&copy);
	m.copy = &copy;
	assert_ok(pv_trim(s, NULL));
	m.copy = NULL;
	assert_int_equal(copy.n, segments + 1); /* all, but the index names one less */
	assert_true(store_info(s).segments < segments);
	assert_ok(pv_close(s));
	keeper_copy(k, &copy);
	keeper_free(&copy);
	k->drops = 0;
	s = store_attach(k, &o);
	t = store_moved(s, t);
	assert_int_equal(store_info(s).segments, segments - 1);
	assert_int_equal(k->drops, 1);
	assert_int_equal(k->last_drop, segments);
	assert_filled(t, 0, 4);
	assert_int_equal(store_sound(s).live_objects, 5);
	fill(s, t, 4, CELLS);
	assert_filled(t, 0, CELLS);
	assert_ok(pv_close(s));
}

/* A backend that does not drop what it is told to. */
static void a_descriptor_that_is_not_dropped(void **state)
{
	struct keeper *k = *state;
	struct moment m = {.k = k};
	struct pv_options o = growing_options(k);
	struct pv_store *s;
	struct cells *t;
	unsigned int kept;

	o.keep = keep_moment;
	o.keep_ctx = &m;
	s = store_create(k, &o);
	t = store_cells(s);
	fill(s, t, 0, CELLS);
	kept = k->n;
	empty(s, t, 0, CELLS);
	m.refuses = -EIO;
	assert_ok(pv_trim(s, NULL));
	assert_int_equal(store_info(s).segments, 1);
	assert_int_equal(k->n, kept);
	/* Growth puts others in their place, ... */
	fill(s, t, 0, CELLS);
	assert_int_equal(k->n, kept);
	keeper_crash(k, &s);
	m.refuses = 0;
	s = store_attach(k, &o);
	t = store_moved(s, t);
	assert_filled(t, 0, CELLS);
	store_sound(s);
	/* ... or the next attach drops them. */
	empty(s, t, 0, CELLS);
	m.refuses = -EIO;
	assert_ok(pv_trim(s, NULL));
	assert_int_equal(k->n, kept);
	assert_ok(pv_close(s));
	m.refuses = 0;
	s = store_attach(k, &o);
	t = store_moved(s, t);
	assert_int_equal(k->n, 2);
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

static void not_through_a_read_only_handle(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o), *r = NULL;
	struct cells *t = store_cells(s);
	uint64_t bytes = 4711, before;

	fill(s, t, 0, 100);
	empty(s, t, 0, 100);
	assert_ok(pv_close(s));
	before = keeper_bytes(k);
	assert_ok(store_try(k, &o, PV_RDONLY, &r));
	assert_fails(pv_trim(r, &bytes), -EPERM, "read-only");
	assert_int_equal(bytes, 4711);
	assert_ok(pv_close(r));
	assert_int_equal(keeper_bytes(k), before);
}

/* ---- by itself ---- */

enum { PIECES = 40 };

static void fill_pieces(struct pv_store *s, struct cells *t, size_t from, size_t to)
{
	pv_type_t type = store_bytes_type(s, "bytes");

	for (size_t i = from; i < to; i++)
		pattern_fill(publish_ok(s, type, MIB, &t->cells[i]), MIB, i);
}

static void assert_pieces(const struct cells *t, size_t from, size_t to)
{
	for (size_t i = from; i < to; i++)
		assert_true(pattern_holds(t->cells[i], MIB, i));
}

/* 16 MiB may lie idle, or a quarter of what is used. */
static void idle_memory_goes_by_itself(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct cells *t;

	o.window_bytes = 1 << 28;
	o.segment_bytes = 1 << 26;
	s = store_create(k, &o);
	t = store_cells(s);
	for (int round = 0; round < 3; round++) {
		uint64_t full, idle, less;

		fill_pieces(s, t, 0, PIECES);
		full = keeper_bytes(k);
		assert_in_range(full, PIECES * MIB, (PIECES + 6) * MIB);
		/* 8 of them: nothing goes. */
		for (size_t i = 0; i < 16; i += 2)
			assert_ok(pv_free(s, &t->cells[i]));
		idle = keeper_bytes(k);
		assert_int_equal(idle, full);
		/* And the others, 16 more than may stay. */
		for (size_t i = 16; i < PIECES; i++)
			assert_ok(pv_free(s, &t->cells[i]));
		less = keeper_bytes(k);
		assert_in_range(less, 8 * MIB, (8 + 16 + 2) * MIB);
		for (size_t i = 1; i < 16; i += 2)
			assert_pieces(t, i, i + 1);
		assert_int_equal(store_info(s).segments, 1);
		store_sound(s);
		/* Their pages serve again, as memory that works. */
		for (size_t i = 0; i < 16; i += 2)
			fill_pieces(s, t, i, i + 1);
		fill_pieces(s, t, 16, PIECES);
		assert_pieces(t, 0, PIECES);
		assert_true(keeper_bytes(k) >= PIECES * MIB);
		if (round == 1) {
			keeper_crash(k, &s);
			s = store_attach(k, &o);
			t = store_moved(s, t);
			assert_pieces(t, 0, PIECES);
		}
		for (size_t i = 0; i < PIECES; i++)
			assert_ok(pv_free(s, &t->cells[i]));
		trim(k, s);
		assert_true(keeper_bytes(k) < MIB);
	}
	assert_ok(pv_close(s));
}

/* Short runs do not go; once they are in use again, no more than ever may lie idle. */
static void short_runs_do_not_raise_the_limit(void **state)
{
	enum { RUNS = 1000, BYTES = 9 * 4096 };
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	void **runs;
	uint64_t full;

	o.window_bytes = 1 << 28;
	o.segment_bytes = 1 << 26;
	o.page_bytes = 4096;
	s = store_create(k, &o);
	assert_ok(pv_root(s, "runs", store_bytes_type(s, "runs"), RUNS * sizeof(*runs), (void **)&runs,
			  NULL));
	for (size_t i = 0; i < RUNS; i++)
		publish_ok(s, store_bytes_type(s, "bytes"), BYTES, &runs[i]);
	full = keeper_bytes(k);
	for (size_t i = 0; i < RUNS; i += 2)
		assert_ok(pv_free(s, &runs[i]));
	/* But for what was obtained ahead, behind the last one. */
	assert_in_range(keeper_bytes(k), full - MIB, full);
	for (size_t i = 0; i < RUNS; i += 2)
		publish_ok(s, store_bytes_type(s, "bytes"), BYTES, &runs[i]);
	for (size_t i = 0; i < RUNS / 5 * 4; i++) /* 28 MiB, more than 16 and less than 16 + 17 */
		assert_ok(pv_free(s, &runs[i]));
	assert_in_range(keeper_bytes(k), full / 5, full / 5 + 17 * MIB);
	assert_ok(pv_close(s));
}

/* ---- threads ---- */

enum { THREADS = 3, OWN = CELLS / THREADS };

struct worker {
	struct pv_store *s;
	void **cells;
	pv_type_t type;
	uint64_t random;
	int rounds;
	char failed[300];
};

static atomic_int working;
static atomic_bool enough;

static bool change(struct worker *w, void **cell)
{
	uint64_t r = random_below(&w->random, 10);
	size_t bytes = size_of(random_next(&w->random) >> 1);
	uint64_t *old = *cell, *fresh;

	if (old && !pattern_holds(old + 2, old[1] - 16, old[0])) {
		snprintf(w->failed, sizeof(w->failed), "%p was overwritten", (void *)old);
		return false;
	}
	if (old && r < 4)
		return pv_free(w->s, (void **)cell) == 0;
	if (old && r < 7) {
		if (pv_realloc(w->s, (void **)cell, bytes))
			return false;
		fresh = *cell;
	} else {
		if (r == 9 ? pv_reserve_aligned(w->s, w->type, bytes, 512, (void **)&fresh)
			   : pv_reserve(w->s, w->type, bytes, (void **)&fresh))
			return false;
		if (old ? pv_replace(w->s, fresh, cell, old) : pv_link(w->s, fresh, cell))
			return false;
	}
	fresh[0] = random_next(&w->random);
	fresh[1] = bytes;
	pattern_fill(fresh + 2, bytes - 16, fresh[0]);
	return true;
}

static void *work(void *arg)
{
	struct worker *w = arg;

	/* On a busy machine until something has come of it, with an end all the same. */
	for (int i = 0; i < (atomic_load(&enough) ? 1 : 100) * w->rounds && !w->failed[0]; i++) {
		/* Sometimes a lot goes at once, so that segments become empty. */
		bool all = i % 500 == 499;

		for (int n = 0; n < (all ? OWN : 1); n++) {
			void **cell = &w->cells[all ? (size_t)n : random_below(&w->random, OWN)];
			bool ok = !all ? change(w, cell) : !*cell || pv_free(w->s, cell) == 0;

			if (!ok && !w->failed[0])
				snprintf(w->failed, sizeof(w->failed), "%s", pv_last_error());
		}
	}
	atomic_fetch_sub(&working, 1);
	return NULL;
}

static void while_threads_allocate(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct worker w[THREADS] = {0};
	pthread_t threads[THREADS];
	struct pv_store *s;
	struct cells *t;
	int trims = 0;

	o.lanes = THREADS + 1;
	s = store_create(k, &o);
	t = store_cells(s);
	atomic_store(&working, THREADS);
	for (unsigned int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.s = s,
				       .cells = &t->cells[(size_t)i * OWN],
				       .type = store_bytes_type(s, "bytes"),
				       .random = i + 1,
				       .rounds = under_tsan() ? 4000 : 20000};
		assert_int_equal(pthread_create(&threads[i], NULL, work, &w[i]), 0);
	}
	atomic_store(&enough, false);
	while (atomic_load(&working)) {
		assert_ok(pv_trim(s, NULL));
		backed_bytes(s);
		if (++trims > 3 && __atomic_load_n(&k->drops, __ATOMIC_RELAXED) > 0)
			atomic_store(&enough, true);
		usleep(1000);
	}
	for (unsigned int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (unsigned int i = 0; i < THREADS; i++)
		if (w[i].failed[0])
			fail_msg("thread %u: %s", i, w[i].failed);
	assert_true(trims > 3 && k->drops > 0);
	store_sound(s);
	for (size_t i = 0; i < CELLS; i++)
		if (t->cells[i])
			assert_ok(pv_free(s, &t->cells[i]));
	trim(k, s);
	assert_int_equal(store_info(s).segments, 1);
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

/* Any address may be asked for, from any thread, also one in a segment that is just leaving. */
static void *ask(void *arg)
{
	struct worker *w = arg;
	struct pv_stats *st;
	struct pv_info info;

	while (atomic_load(&working)) {
		for (int i = 0; i < 2000; i++) {
			uint8_t *p = (uint8_t *)w->s->base + random_below(&w->random, 8 * MIB / 16) * 16;

			if (i % 2)
				p = (uint8_t *)((uintptr_t)p & ~4095ull);
			pv_prefetch(w->s, p);
			pv_usable_bytes(w->s, p);
		}
		pv_info_get(w->s, &info);
		if (pv_stats_get(w->s, &st)) {
			snprintf(w->failed, sizeof(w->failed), "%s", pv_last_error());
			return NULL;
		}
		pv_stats_free(st);
	}
	return NULL;
}

static void questions_while_segments_leave(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	struct worker w[2] = {{.s = s, .random = 1}, {.s = s, .random = 2}};
	pthread_t threads[2];

	atomic_store(&working, 1);
	for (unsigned int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask, &w[i]), 0);
	for (int round = 0; round < (under_tsan() ? 20 : 150); round++) {
		fill(s, t, 0, CELLS / 4);
		empty(s, t, 0, CELLS / 4);
		assert_ok(pv_trim(s, NULL));
		assert_int_equal(store_info(s).segments, 1);
	}
	atomic_store(&working, 0);
	for (unsigned int i = 0; i < 2; i++)
		pthread_join(threads[i], NULL);
	for (unsigned int i = 0; i < 2; i++)
		if (w[i].failed[0])
			fail_msg("%s", w[i].failed);
	store_sound(s);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(an_empty_store_is_small_again),
		with_keeper(what_lives_stays),
		with_keeper(what_is_reserved_stays),
		with_keeper(a_crash_before_the_descriptor_goes),
		with_keeper(a_descriptor_that_is_not_dropped),
		with_keeper(not_through_a_read_only_handle),
		with_keeper(idle_memory_goes_by_itself),
		with_keeper(short_runs_do_not_raise_the_limit),
		with_keeper(while_threads_allocate),
		with_keeper(questions_while_segments_leave),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
