/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Memory stays bounded, whatever the pattern: threads that come and go by the thousand and leave
 * objects to others, one that allocates and one that frees, larson, everything freed and then
 * filled with another size. At any time the pages that are taken are at most 5/4 of the most bytes
 * that were live, and what magazines may hold: counted here for each thread, from the classes that
 * the test uses; the memory behind the segments is at most that, and what may lie idle: 16 MiB, or a
 * quarter; when all is freed, pv_trim() leaves the segments' page maps and no more.
 *
 * Assertions of cmocka do not work outside of the main thread, so workers note their first failure.
 */
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>

#include <preserve/stats.h>

#include "internal.h"
#include "support.h"

#define THREADS	   4
#define IDLE_BYTES (16 << 20)

/* ---- what was live, and what it took ---- */

struct meter {
	struct pv_store *s;
	pv_type_t types[2];
	_Atomic int64_t live_bytes;
	_Atomic int64_t peak_live;
	int64_t peak_used, peak_memory;
	uint64_t constant;	 /* for magazines and a slab of each class that is in use */
	_Atomic bool has_failed; /* a worker; the first one says why */
	char failed[300];
};

#define churn_fails(m, ...)                                                      \
	do {                                                                     \
		if (!atomic_exchange(&(m)->has_failed, true))                    \
			snprintf((m)->failed, sizeof((m)->failed), __VA_ARGS__); \
	} while (0)

static struct meter meter_start(struct keeper *k, uint32_t lanes, uint64_t segment_bytes,
				const struct pv_options *more)
{
	struct pv_options o = small_options(k);
	struct meter m = {.s = NULL};

	o.window_bytes = 1ull << 30;
	o.segment_bytes = segment_bytes;
	o.lanes = lanes;
	if (more)
		o.page_bytes = more->page_bytes;
	m.s = store_create(k, &o);
	m.types[0] = store_bytes_type(m.s, "a");
	m.types[1] = store_bytes_type(m.s, "b");
	return m;
}

/* A class in use by so many threads: magazines, and in its bin a slab that is
 * not full. */
static void meter_allow(struct meter *m, size_t bytes, unsigned int threads)
{
	const struct pvi_class *c = &m->s->classes[pvi_class_of(bytes)];

	if (bytes <= m->s->classes[m->s->nclasses - 1].slot_bytes)
		m->constant += (uint64_t)threads * c->magazine * c->slot_bytes +
			       2 * ((uint64_t)c->npages << m->s->page_shift);
}

/* Memory that the kernel has given the segments. */
static int64_t memory_of(struct pv_store *s)
{
	struct pv_stats *stats = NULL;
	struct stat index;
	int64_t bytes;

	assert_ok(pv_stats_get(s, &stats));
	bytes = (int64_t)stats->backed_bytes;
	pv_stats_free(stats);
	assert_int_equal(fstat(s->index.fd, &index), 0);
	return bytes - (int64_t)index.st_blocks * 512;
}

/* Main thread. */
static void meter_read(struct meter *m)
{
	int64_t used = (int64_t)store_info(m->s).used_bytes, memory = memory_of(m->s);

	if (used > m->peak_used)
		m->peak_used = used;
	if (memory > m->peak_memory)
		m->peak_memory = memory;
}

/* Nothing is live any more. */
static void meter_end(struct meter *m, const char *what)
{
	int64_t live = m->peak_live, pages = live + live / 4 + (int64_t)m->constant,
		idle = pages / 4;
	int64_t head = 0, left;

	for (uint32_t i = 0; i < m->s->nsegments; i++)
		head += (int64_t)m->s->segments[i].first_page << m->s->page_shift;
	pages += head;
	if (idle < IDLE_BYTES)
		idle = IDLE_BYTES;
	assert_false(m->has_failed);
	assert_int_equal(store_sound(m->s).live_objects, 0);
	assert_ok(pv_trim(m->s, NULL));
	left = memory_of(m->s);
	print_message("%s: at most %lld KiB live; pages taken %lld KiB of %lld "
		      "allowed (%lld for "
		      "magazines), memory %lld of %lld; %lld KiB are left\n",
		      what, (long long)live >> 10, (long long)m->peak_used >> 10,
		      (long long)pages >> 10, (long long)m->constant >> 10,
		      (long long)m->peak_memory >> 10, (long long)(pages + idle) >> 10,
		      (long long)left >> 10);
	assert_in_range(m->peak_used, live, pages);
	assert_in_range(m->peak_memory, live, pages + idle);
	assert_in_range(left, 0, head);
	assert_int_equal(store_sound(m->s).reserved_objects, 0);
	assert_ok(pv_close(m->s));
}

/* ---- objects, in any thread ---- */

struct churn_object {
	uint64_t number;
	uint64_t bytes;
	uint64_t last_word_is_number[];
};

static void *made(struct meter *m, pv_type_t type, size_t bytes, uint64_t number)
{
	struct churn_object *o;
	int64_t live, peak;
	void *p;
	int err = pv_reserve(m->s, type, bytes, &p);

	if (!err) {
		o = p;
		o->number = number;
		o->bytes = bytes;
		*(uint64_t *)(void *)((uint8_t *)p + (bytes - 8) / 8 * 8) =
			bytes > 16 ? number : bytes;
		err = pv_publish(m->s, &PV_LIVE(p), 1);
	}
	if (err) {
		churn_fails(m, "%zu bytes: %d: %s", bytes, err, pv_last_error());
		return NULL;
	}
	live = atomic_fetch_add(&m->live_bytes, (int64_t)bytes) + (int64_t)bytes;
	peak = atomic_load_explicit(&m->peak_live, memory_order_relaxed);
	while (live > peak && !atomic_compare_exchange_weak(&m->peak_live, &peak, live))
		;
	return p;
}

static void freed(struct meter *m, void *p)
{
	struct churn_object *o = p;
	uint64_t bytes = o->bytes, last = *(uint64_t *)(void *)((uint8_t *)p + (bytes - 8) / 8 * 8);
	int err;

	if (bytes > 16 && last != o->number)
		churn_fails(m, "%p of %llu bytes was overwritten", p, (unsigned long long)bytes);
	err = pv_publish(m->s, &PV_FREE(p), 1);
	if (err)
		churn_fails(m, "free: %d: %s", err, pv_last_error());
	atomic_fetch_sub(&m->live_bytes, (int64_t)bytes);
}

/* ---- threads that come and go ---- */

static const size_t short_sizes[] = {32, 64, 200, 1000, 40000};

/* Objects that threads leave to others. */
struct pool {
	pthread_mutex_t lock;
	void *objects[4000];
	size_t n;
};

struct visitor {
	struct meter *m;
	struct pool *pool;
	uint64_t random;
};

static void *pool_take(struct pool *pool, uint64_t *random)
{
	void *p = NULL;

	pthread_mutex_lock(&pool->lock);
	if (pool->n) {
		size_t i = random_below(random, pool->n);

		p = pool->objects[i];
		pool->objects[i] = pool->objects[--pool->n];
	}
	pthread_mutex_unlock(&pool->lock);
	return p;
}

static bool pool_leave(struct pool *pool, void *p)
{
	bool room;

	pthread_mutex_lock(&pool->lock);
	room = pool->n < sizeof(pool->objects) / sizeof(pool->objects[0]);
	if (room)
		pool->objects[pool->n++] = p;
	pthread_mutex_unlock(&pool->lock);
	return room;
}

static bool nearly_full(struct pool *pool)
{
	bool full;

	pthread_mutex_lock(&pool->lock);
	full = pool->n > 3500;
	pthread_mutex_unlock(&pool->lock);
	return full;
}

/* Makes some, leaves half of them; frees as many of what others have left. */
static void *visit(void *arg)
{
	struct visitor *v = arg;
	void *p;

	for (int i = 0; i < 40 && !v->m->has_failed; i++) {
		size_t bytes =
			short_sizes[random_below(&v->random, 20) ? random_below(&v->random, 4) : 4];

		p = made(v->m, v->m->types[0], bytes, random_next(&v->random));
		if (p && (i % 2 || !pool_leave(v->pool, p)))
			freed(v->m, p);
		if (nearly_full(v->pool) || random_below(&v->random, 3) == 0) {
			p = pool_take(v->pool, &v->random);
			if (p)
				freed(v->m, p);
		}
	}
	return NULL;
}

static void *take_a_lane(void *arg)
{
	struct visitor *v = arg;
	void *p = made(v->m, v->m->types[0], 64, 1);

	if (p)
		freed(v->m, p);
	pthread_barrier_wait((pthread_barrier_t *)(void *)v->pool);
	return NULL;
}

/* So many threads at the same time: there is a lane for each. */
static void all_lanes_are_there(struct meter *m, unsigned int threads)
{
	pthread_t ids[THREADS];
	pthread_barrier_t barrier;
	struct visitor v = {.m = m, .pool = (struct pool *)(void *)&barrier};

	pthread_barrier_init(&barrier, NULL, threads);
	for (unsigned int t = 0; t < threads; t++)
		assert_int_equal(pthread_create(&ids[t], NULL, take_a_lane, &v), 0);
	for (unsigned int t = 0; t < threads; t++)
		pthread_join(ids[t], NULL);
	pthread_barrier_destroy(&barrier);
}

static void thousands_of_threads_leave_objects(void **state)
{
	static struct pool pool;
	struct meter m = meter_start(*state, THREADS + 1, 1 << 20, NULL);
	uint64_t seed = random_seed_from_env("thousands_of_threads_leave_objects");
	int rounds = under_tsan() ? 250 : 1250;
	void *p;

	pthread_mutex_init(&pool.lock, NULL);
	for (size_t i = 0; i < sizeof(short_sizes) / sizeof(short_sizes[0]); i++)
		meter_allow(&m, short_sizes[i], THREADS + 1);
	for (int i = 0; i < rounds; i++) {
		struct visitor v[THREADS];
		pthread_t ids[THREADS];

		for (int t = 0; t < THREADS; t++) {
			v[t] = (struct visitor){.m = &m, .pool = &pool, .random = seed++};
			assert_int_equal(pthread_create(&ids[t], NULL, visit, &v[t]), 0);
		}
		for (int t = 0; t < THREADS; t++)
			pthread_join(ids[t], NULL);
		meter_read(&m);
		assert_false(m.has_failed);
	}
	assert_int_equal(store_sound(m.s).live_objects, pool.n);
	assert_true(pool.n > 1000);
	while ((p = pool_take(&pool, &seed)))
		freed(&m, p);
	all_lanes_are_there(&m, THREADS);
	pthread_mutex_destroy(&pool.lock);
	meter_end(&m, "thousands_of_threads_leave_objects");
}

/* ---- one allocates, another frees ---- */

#define RING 1024u

struct ring {
	struct meter *m;
	void *objects[RING];
	_Atomic uint64_t in, out;
	uint64_t count;
};

static const size_t ring_sizes[] = {64, 64, 64, 320};

static void *produce(void *arg)
{
	struct ring *r = arg;

	for (uint64_t i = 0; i < r->count && !r->m->has_failed; i++) {
		while (i - atomic_load_explicit(&r->out, memory_order_acquire) >= RING)
			sched_yield();
		r->objects[i % RING] = made(r->m, r->m->types[i % 2], ring_sizes[i / 1000 % 4], i);
		atomic_store_explicit(&r->in, i + 1, memory_order_release);
	}
	return NULL;
}

static void *consume(void *arg)
{
	struct ring *r = arg;

	for (uint64_t i = 0; i < r->count && !r->m->has_failed; i++) {
		while (atomic_load_explicit(&r->in, memory_order_acquire) <= i && !r->m->has_failed)
			sched_yield();
		if (r->objects[i % RING])
			freed(r->m, r->objects[i % RING]);
		atomic_store_explicit(&r->out, i + 1, memory_order_release);
	}
	return NULL;
}

static void one_allocates_another_frees(void **state)
{
	static struct ring r;
	struct meter m = meter_start(*state, 3, 1 << 20, NULL);
	pthread_t producer, consumer;

	r = (struct ring){.m = &m, .count = under_tsan() ? 100000 : 1000000};
	for (int type = 0; type < 2; type++) {
		meter_allow(&m, 64, 2);
		meter_allow(&m, 320, 2);
	}
	assert_int_equal(pthread_create(&producer, NULL, produce, &r), 0);
	assert_int_equal(pthread_create(&consumer, NULL, consume, &r), 0);
	while (atomic_load(&r.out) < r.count && !m.has_failed) {
		meter_read(&m);
		usleep(2000);
	}
	pthread_join(producer, NULL);
	pthread_join(consumer, NULL);
	meter_end(&m, "one_allocates_another_frees");
}

/* ---- larson: threads replace objects at random, and hand all of them to their
 * successors ---- */

#define LARSON_OBJECTS 2000

static const size_t larson_sizes[] = {16, 48, 96, 160, 256, 512, 1024};

struct server {
	struct meter *m;
	void *objects[LARSON_OBJECTS];
	uint64_t random;
	uint64_t rounds;
};

static void *serve(void *arg)
{
	struct server *v = arg;

	for (uint64_t i = 0; i < v->rounds && !v->m->has_failed; i++) {
		void **o = &v->objects[random_below(&v->random, LARSON_OBJECTS)];

		if (*o)
			freed(v->m, *o);
		*o = made(v->m, v->m->types[0], larson_sizes[random_below(&v->random, 7)], i);
	}
	return NULL;
}

static void larson(void **state)
{
	static struct server v[THREADS];
	struct meter m = meter_start(*state, THREADS + 1, 1 << 20, NULL);
	uint64_t seed = random_seed_from_env("larson");

	for (size_t i = 0; i < 7; i++)
		meter_allow(&m, larson_sizes[i], THREADS);
	for (int t = 0; t < THREADS; t++)
		v[t] = (struct server){.m = &m,
				       .random = seed + (uint64_t)t,
				       .rounds = under_tsan() ? 1000 : 5000};
	for (int generation = 0; generation < 60; generation++) {
		pthread_t ids[THREADS];

		for (int t = 0; t < THREADS; t++) {
			v[t].m = &m;
			assert_int_equal(pthread_create(&ids[t], NULL, serve, &v[t]), 0);
		}
		for (int t = 0; t < THREADS; t++) {
			pthread_join(ids[t], NULL);
			meter_read(&m);
		}
		for (int i = 0; i < LARSON_OBJECTS;
		     i++) { /* a quarter moves on to the next thread */
			void *p = v[0].objects[i];

			if (i % 4)
				continue;
			for (int t = 0; t + 1 < THREADS; t++)
				v[t].objects[i] = v[t + 1].objects[i];
			v[THREADS - 1].objects[i] = p;
		}
	}
	for (int t = 0; t < THREADS; t++)
		for (int i = 0; i < LARSON_OBJECTS; i++)
			if (v[t].objects[i])
				freed(&m, v[t].objects[i]);
	meter_end(&m, "larson");
}

/* ---- all freed, then another size ---- */

struct filler {
	struct meter *m;
	void **objects;
	size_t n;
	size_t bytes;
	int what;
};

/* In a thread of its own, or in the main thread. */
static void *fill_or_free(void *arg)
{
	struct filler *f = arg;

	for (size_t i = 0; i < f->n && !f->m->has_failed; i++) {
		/* Freed in another order than allocated. */
		size_t at = f->what ? i * 7919 % f->n : i;

		if (f->what)
			freed(f->m, f->objects[at]);
		else
			f->objects[i] = made(f->m, f->m->types[f->bytes % 5 % 2], f->bytes, i);
	}
	return NULL;
}

static void all_freed_then_another_size(struct keeper *k, uint64_t segment_bytes,
					uint32_t page_bytes, size_t all, bool threads,
					const char *name)
{
	static const size_t sizes[] = {64, 96, 1024, 40000, 16, 512, 3072, 100000, 128, 2048, 64};
	const struct pv_options o = {.page_bytes = page_bytes};
	struct meter m = meter_start(k, 4, segment_bytes, &o);

	if (under_tsan())
		all = 4 << 20;
	for (size_t round = 0; round < sizeof(sizes) / sizeof(sizes[0]); round++) {
		struct filler f = {.m = &m, .bytes = sizes[round]};
		pthread_t id;

		f.n = all / f.bytes;
		while (f.n % 7919 == 0)
			f.n--;
		f.objects = calloc(f.n, sizeof(void *));
		assert_non_null(f.objects);
		for (f.what = 0; f.what < 2; f.what++) {
			if (threads) {
				assert_int_equal(pthread_create(&id, NULL, fill_or_free, &f), 0);
				pthread_join(id, NULL);
			} else {
				fill_or_free(&f);
			}
			meter_read(&m);
		}
		free(f.objects);
		assert_int_equal(store_sound(m.s).live_objects, 0);
	}
	for (size_t i = 0; i + 1 < sizeof(sizes) / sizeof(sizes[0]); i++)
		meter_allow(&m, sizes[i], 1);
	meter_end(&m, name);
}

static void another_size(void **state)
{
	all_freed_then_another_size(*state, 1 << 20, 4096, 64 << 20, false, "another_size");
}

static void another_size_small_segments(void **state)
{
	all_freed_then_another_size(*state, 128 << 10, 4096, 12 << 20, false,
				    "another_size_small_segments");
}

static void another_size_large_pages(void **state)
{
	all_freed_then_another_size(*state, 8 << 20, 16384, 24 << 20, false,
				    "another_size_large_pages");
}

static void another_size_other_threads(void **state)
{
	all_freed_then_another_size(*state, 1 << 20, 4096, 12 << 20, true,
				    "another_size_other_threads");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(thousands_of_threads_leave_objects),
		with_keeper(one_allocates_another_frees),
		with_keeper(larson),
		with_keeper(another_size),
		with_keeper(another_size_small_segments),
		with_keeper(another_size_large_pages),
		with_keeper(another_size_other_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
