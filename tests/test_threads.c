/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Several threads in a store: their own objects, each other's objects, and threads that come and
 * go. Assertions of cmocka do not work outside of the main thread, so workers note their first
 * failure.
 */
#include <pthread.h>
#include <sched.h>

#include "internal.h"
#include "support.h"

#define THREADS 4
#define NCELLS	200

struct table {
	void *cells[THREADS][NCELLS];
};

struct worker {
	struct pv_store *s;
	struct table *table;
	pv_type_t type;
	pthread_barrier_t *barrier;
	int number;
	int rounds;
	uint64_t random;
	char failed[600]; /* empty: it went well */
	/* Objects passed on to another thread, see hand_over(). */
	struct mailbox *in, *out;
};

#define worker_fails(w, ...)                                                     \
	do {                                                                     \
		if (!(w)->failed[0])                                             \
			snprintf((w)->failed, sizeof((w)->failed), __VA_ARGS__); \
	} while (0)
/** In a worker: 0, or the worker ends with the message. */
#define worker_ok(w, call)                                                                \
	do {                                                                              \
		int rc_ = (call);                                                         \
		if (rc_) {                                                                \
			worker_fails(w, "thread %d: %s: %d: %s", (w)->number, #call, rc_, \
				     pv_last_error());                                    \
			return NULL;                                                      \
		}                                                                         \
	} while (0)

static const struct pv_typedef table_def =
	PV_TYPE(struct table, "table", 1, PV_POINTER(struct table, cells));

static struct table *table_of(struct pv_store *s)
{
	void *root = NULL;

	assert_ok(pv_root(s, "table", store_type(s, &table_def), sizeof(struct table), &root, NULL));
	return root;
}

static struct pv_options options(struct keeper *k)
{
	struct pv_options o = small_options(k);

	o.window_bytes = 1 << 28;
	o.lanes = THREADS + 1;
	return o;
}

static void run_workers(struct worker *w, int n, void *(*f)(void *))
{
	pthread_t threads[THREADS];
	pthread_barrier_t barrier;

	pthread_barrier_init(&barrier, NULL, (unsigned int)n);
	for (int i = 0; i < n; i++) {
		w[i].number = i;
		w[i].barrier = &barrier;
		assert_int_equal(pthread_create(&threads[i], NULL, f, &w[i]), 0);
	}
	for (int i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	pthread_barrier_destroy(&barrier);
	for (int i = 0; i < n; i++)
		if (w[i].failed[0])
			fail_msg("%s", w[i].failed);
}

static size_t size_of_number(uint64_t n)
{
	return n % 97 == 0 ? 33000 + n % 50000 : n % 11 == 0 ? 500 + n % 4000 : 16 + n % 300;
}

/* The first word of an object is the seed of the rest and says how long it is. */
static void object_fill(void *p, uint64_t seed)
{
	*(uint64_t *)p = seed;
	pattern_fill((uint8_t *)p + 8, size_of_number(seed) - 8, seed);
}

static bool object_holds(const void *p)
{
	uint64_t seed = *(const uint64_t *)p;

	return pattern_holds((const uint8_t *)p + 8, size_of_number(seed) - 8, seed);
}

/* ---- each its own table ---- */

static void *own_table(void *arg)
{
	struct worker *w = arg;
	void **cells = w->table->cells[w->number];

	pthread_barrier_wait(w->barrier);
	for (int i = 0; i < w->rounds; i++) {
		void **cell = &cells[random_below(&w->random, NCELLS)], *old = *cell, *p;
		uint64_t seed = random_next(&w->random) >> 1;

		if (old && !object_holds(old)) {
			worker_fails(w, "thread %d: %p was overwritten", w->number, old);
			return NULL;
		}
		if (old && random_below(&w->random, 4) == 0) {
			worker_ok(w, pv_free(w->s, cell));
			continue;
		}
		worker_ok(w, pv_reserve(w->s, w->type, size_of_number(seed), &p));
		if (random_below(&w->random, 16) == 0) {
			worker_ok(w, pv_cancel(w->s, p));
			continue;
		}
		object_fill(p, seed);
		worker_ok(w,
			  pv_publish(w->s,
				     (struct pv_action[]){PV_LIVE(p), PV_STORE(cell, (uintptr_t)p),
							  PV_FREE(old)},
				     old ? 3 : 2));
	}
	return NULL;
}

static size_t check_table(struct pv_store *s, const struct table *t)
{
	size_t n = 0;

	for (int i = 0; i < THREADS; i++) {
		for (int c = 0; c < NCELLS; c++) {
			if (!t->cells[i][c])
				continue;
			n++;
			assert_true(object_holds(t->cells[i][c]));
		}
	}
	assert_int_equal(store_sound(s).live_objects, n + 1);
	return n;
}

static void each_its_own_objects(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);
	uint64_t seed = random_seed_from_env("each_its_own_objects");

	for (int round = 0; round < 4; round++) {
		struct worker w[THREADS] = {0};

		for (int i = 0; i < THREADS; i++)
			w[i] = (struct worker){.s = s,
					       .table = table_of(s),
					       .type = store_bytes_type(s, i % 2 ? "a" : "b"),
					       .rounds = under_tsan() ? 2000 : 10000,
					       .random = seed + (uint64_t)(round * THREADS + i)};
		run_workers(w, THREADS, own_table);
		assert_true(check_table(s, table_of(s)) > THREADS * NCELLS / 2);
		if (round % 2)
			keeper_crash(k, &s);
		else
			assert_ok(pv_close(s));
		s = store_attach(k, &o);
		check_table(s, table_of(s));
	}
	assert_ok(pv_close(s));
}

/* ---- each frees what another allocated ---- */

struct mailbox {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	void *objects[64];
	size_t n;
	bool closed;
};

static void mailbox_put(struct mailbox *m, void *p)
{
	pthread_mutex_lock(&m->lock);
	while (m->n == sizeof(m->objects) / sizeof(*m->objects))
		pthread_cond_wait(&m->changed, &m->lock);
	m->objects[m->n++] = p;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

static void *mailbox_get(struct mailbox *m)
{
	void *p = NULL;

	pthread_mutex_lock(&m->lock);
	while (!m->n && !m->closed)
		pthread_cond_wait(&m->changed, &m->lock);
	if (m->n)
		p = m->objects[--m->n];
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
	return p;
}

static void mailbox_close(struct mailbox *m)
{
	pthread_mutex_lock(&m->lock);
	m->closed = true;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

/* Even threads make objects, odd ones take them: live ones are freed; of those that are only
 * reserved half are cancelled, half published and freed. */
static void *hand_over(void *arg)
{
	struct worker *w = arg;
	void *p;

	pthread_barrier_wait(w->barrier);
	if (w->number % 2 == 0) {
		for (int i = 0; i < w->rounds; i++) {
			uint64_t seed = random_next(&w->random) >> 1;
			int err = pv_reserve(w->s, w->type, size_of_number(seed), &p);

			if (!err) {
				object_fill(p, seed);
				if (seed % 8)
					err = pv_publish(w->s, &PV_LIVE(p), 1);
			}
			if (err) {
				worker_fails(w, "thread %d: %d: %s", w->number, err,
					     pv_last_error());
				break;
			}
			mailbox_put(w->out, p);
		}
		mailbox_close(w->out);
		return NULL;
	}
	while ((p = mailbox_get(w->in))) {
		uint64_t seed = *(uint64_t *)p;

		if (!object_holds(p))
			worker_fails(w, "thread %d: %p was overwritten", w->number, p);
		if (seed % 16 == 8) {
			worker_ok(w, pv_cancel(w->s, p));
			continue;
		}
		if (seed % 16 == 0)
			worker_ok(w, pv_publish(w->s, &PV_LIVE(p), 1));
		worker_ok(w, pv_publish(w->s, &PV_FREE(p), 1));
	}
	return NULL;
}

static void each_frees_what_another_made(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct mailbox boxes[THREADS / 2] = {0};
	struct worker w[THREADS] = {0};
	struct pv_store *s;
	uint64_t seed = random_seed_from_env("each_frees_what_another_made");

	/* 20,000 objects of 2 KB on average go through; memory for few of them is enough. */
	o.limit_bytes = 12 << 20;
	s = store_create(k, &o);
	for (int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.s = s,
				       .type = store_bytes_type(s, "bytes"),
				       .rounds = under_tsan() ? 3000 : 10000,
				       .random = seed + (uint64_t)i,
				       .in = &boxes[i / 2],
				       .out = &boxes[i / 2]};
		if (i % 2 == 0) {
			pthread_mutex_init(&boxes[i / 2].lock, NULL);
			pthread_cond_init(&boxes[i / 2].changed, NULL);
		}
	}
	run_workers(w, THREADS, hand_over);
	assert_int_equal(store_sound(s).live_objects, 0);
	for (int i = 0; i < THREADS / 2; i++) {
		pthread_mutex_destroy(&boxes[i].lock);
		pthread_cond_destroy(&boxes[i].changed);
	}
	assert_ok(pv_close(s));
}

/* ---- the first look at a slab ---- */

static void *look_at_all(void *arg)
{
	struct worker *w = arg;

	pthread_barrier_wait(w->barrier);
	for (int i = 0; i < THREADS; i++)
		for (int c = 0; c < NCELLS; c++)
			if (pv_usable_bytes(w->s, w->table->cells[i][c]) < 32)
				worker_fails(w, "thread %d: %p is no object", w->number,
					     w->table->cells[i][c]);
	pthread_barrier_wait(w->barrier);
	for (int c = 0; c < NCELLS; c++)
		worker_ok(w, pv_free(w->s, &w->table->cells[w->number][c]));
	return NULL;
}

static void cold_slabs_under_many_eyes(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);

	for (int round = 0; round < 20; round++) {
		struct worker w[THREADS] = {0};
		pv_type_t type = store_bytes_type(s, "bytes");

		for (int i = 0; i < THREADS * NCELLS; i++)
			assert_ok(pv_alloc(s, type, 32 + 10 * (size_t)(i % 60),
					   &table_of(s)->cells[i % THREADS][i / THREADS]));
		keeper_crash(k, &s);
		s = store_attach(k, &o);
		for (int i = 0; i < THREADS; i++)
			w[i] = (struct worker){.s = s, .table = table_of(s)};
		run_workers(w, THREADS, look_at_all);
		assert_int_equal(store_sound(s).live_objects, 1);
	}
	assert_ok(pv_close(s));
}

/* ---- coming and going ---- */

static void *short_life(void *arg)
{
	struct worker *w = arg;
	void *p, *q;

	for (int i = 0; i < w->rounds; i++) {
		worker_ok(w, pv_reserve(w->s, w->type, 64 + 100 * (size_t)(i % 5), &p));
		worker_ok(w, pv_publish(w->s, &PV_LIVE(p), 1));
		worker_ok(w, pv_reserve(w->s, w->type, 64 + 100 * (size_t)(i % 5), &q));
		worker_ok(w, pv_publish(w->s, (struct pv_action[]){PV_LIVE(q), PV_FREE(p)}, 2));
		worker_ok(w, pv_publish(w->s, &PV_FREE(q), 1));
	}
	return NULL;
}

static void thousands_of_threads(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s;
	uint64_t bytes = 0;

	o.lanes = 3; /* this thread's and two more */
	s = store_create(k, &o);
	table_of(s);
	for (int i = 0; i < 1500; i++) {
		struct worker w[2] = {0};

		for (int t = 0; t < 2; t++)
			w[t] = (struct worker){
				.s = s, .type = store_bytes_type(s, "bytes"), .rounds = 10};
		run_workers(w, 2, short_life);
		if (i == 10)
			bytes = store_info(s).bytes;
	}
	/* What threads had went to those that came later: not more than two had at one time. */
	assert_int_equal(store_info(s).bytes, bytes);
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_in_range(store_sound(s).reserved_objects, 0, 2 * 5 * PVI_MAGAZINE_SLOTS);
	assert_ok(pv_close(s));
}

/* ---- lanes ---- */

struct sitter {
	struct pv_store *s;
	pv_type_t type;
	pthread_barrier_t *barrier;
	const cpu_set_t *where; /* NULL: anywhere */
	uint32_t lane;
	int err;
	char message[600];
};

static void *sit(void *arg)
{
	struct sitter *t = arg;
	void *p;

	if (t->where)
		pthread_setaffinity_np(pthread_self(), sizeof(*t->where), t->where);
	t->err = pv_reserve(t->s, t->type, 100, &p);
	snprintf(t->message, sizeof(t->message), "%s", pv_last_error());
	if (!t->err) {
		pv_cancel(t->s, p);
		t->lane = pvi_thread_find(t->s)->lane_number;
	}
	pthread_barrier_wait(t->barrier);
	pthread_barrier_wait(t->barrier);
	return NULL;
}

static void no_lane_left(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL); /* two lanes */
	pv_type_t type = store_bytes_type(s, "bytes");
	pthread_barrier_t barrier;
	struct sitter sitter = {.s = s, .type = type, .barrier = &barrier};
	pthread_t thread, other;
	void *p;

	pthread_barrier_init(&barrier, NULL, 2);
	assert_ok(pv_reserve(s, type, 16, &p)); /* the first lane */
	assert_int_equal(pthread_create(&thread, NULL, sit, &sitter), 0);
	pthread_barrier_wait(&barrier);
	assert_int_equal(sitter.err, 0); /* the second */
	for (int i = 0; i < 3; i++) {
		pthread_barrier_t alone;
		struct sitter none = {.s = s, .type = type, .barrier = &alone};

		pthread_barrier_init(&alone, NULL, 1);
		assert_int_equal(pthread_create(&other, NULL, sit, &none), 0);
		pthread_join(other, NULL);
		assert_int_equal(none.err, -EUSERS);
		assert_non_null(strstr(none.message, "all 2 lanes are in use"));
		pthread_barrier_destroy(&alone);
	}
	store_sound(s);
	/* The thread ends: its lane is free again. */
	pthread_barrier_wait(&barrier);
	pthread_join(thread, NULL);
	assert_int_equal(pthread_create(&other, NULL, sit, &sitter), 0);
	pthread_barrier_wait(&barrier);
	assert_int_equal(sitter.err, 0);
	pthread_barrier_wait(&barrier);
	pthread_join(other, NULL);
	pthread_barrier_destroy(&barrier);
	assert_ok(pv_publish(s, &PV_LIVE(p), 1));
	store_sound(s);
	assert_ok(pv_close(s));
}

/* The processors that this process may use: the first, and the last, which may be the same. */
static void two_processors(cpu_set_t where[2])
{
	cpu_set_t all;
	size_t cpu = 0;

	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&where[0]);
	CPU_SET(cpu, &where[0]);
	cpu = CPU_SETSIZE - 1;
	while (!CPU_ISSET(cpu, &all))
		cpu--;
	CPU_ZERO(&where[1]);
	CPU_SET(cpu, &where[1]);
}

/* Two threads at once, on these processors; the lanes that they had. */
static void two_sit(struct pv_store *s, const cpu_set_t *first, const cpu_set_t *second,
		    uint32_t lanes[2])
{
	pv_type_t type = store_bytes_type(s, "bytes");
	const cpu_set_t *const where[] = {first, second};
	struct sitter sitters[2];
	pthread_barrier_t barriers[2];
	pthread_t threads[2];

	for (int i = 0; i < 2; i++) {
		pthread_barrier_init(&barriers[i], NULL, 2);
		sitters[i] = (struct sitter){
			.s = s, .type = type, .barrier = &barriers[i], .where = where[i]};
		assert_int_equal(pthread_create(&threads[i], NULL, sit, &sitters[i]), 0);
		pthread_barrier_wait(&barriers[i]);
		assert_int_equal(sitters[i].err, 0);
		lanes[i] = sitters[i].lane;
	}
	for (int i = 0; i < 2; i++) {
		pthread_barrier_wait(&barriers[i]);
		pthread_join(threads[i], NULL);
		pthread_barrier_destroy(&barriers[i]);
	}
}

static void lanes_stay_with_processors(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);
	uint32_t before[2], after[2];
	cpu_set_t where[2];

	two_processors(where);
	two_sit(s, &where[0], &where[1], before);
	assert_int_not_equal(before[0], before[1]);
	/* Whichever comes first. */
	two_sit(s, &where[1], &where[0], after);
	if (CPU_EQUAL(&where[0], &where[1])) {
		assert_int_equal(after[0], before[0]);
		assert_int_equal(after[1], before[1]);
	} else {
		assert_int_equal(after[0], before[1]);
		assert_int_equal(after[1], before[0]);
	}
	assert_ok(pv_close(s));
}

/* ---- slots ---- */

#define FILLED 2000

struct filler {
	struct pv_store *s;
	pv_type_t type;
	pthread_barrier_t barrier;
	void *objects[FILLED];
	int err;
};

static void *fill_and_free(void *arg)
{
	struct filler *f = arg;

	for (int i = 0; i < FILLED && !f->err; i++) {
		f->err = pv_reserve(f->s, f->type, 64, &f->objects[i]);
		if (!f->err)
			f->err = pv_publish(f->s, &PV_LIVE(f->objects[i]), 1);
	}
	for (int i = 0; i < FILLED && !f->err; i++)
		f->err = pv_publish(f->s, &PV_FREE(f->objects[i]), 1);
	pthread_barrier_wait(&f->barrier);
	pthread_barrier_wait(&f->barrier);
	return NULL;
}

/* What a thread has freed is there for it, while it lives; another one gets slots of its own. */
static void threads_keep_apart(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct filler *fillers = calloc(2, sizeof(*fillers));
	unsigned int same = 0;
	struct pv_store *s;
	pthread_t threads[2];

	o.segment_bytes = 1 << 20; /* room for both: when a segment is full, what was freed is for all */
	s = store_create(k, &o);
	assert_non_null(fillers);
	for (int t = 0; t < 2; t++) {
		fillers[t].s = s;
		fillers[t].type = store_bytes_type(s, "bytes");
		pthread_barrier_init(&fillers[t].barrier, NULL, 2);
		assert_int_equal(pthread_create(&threads[t], NULL, fill_and_free, &fillers[t]), 0);
		pthread_barrier_wait(&fillers[t].barrier);
		assert_int_equal(fillers[t].err, 0);
	}
	for (int i = 0; i < FILLED; i++)
		for (int j = 0; j < FILLED; j++)
			same += fillers[0].objects[i] == fillers[1].objects[j];
	assert_int_equal(same, 0);
	for (int t = 0; t < 2; t++) {
		pthread_barrier_wait(&fillers[t].barrier);
		pthread_join(threads[t], NULL);
		pthread_barrier_destroy(&fillers[t].barrier);
	}
	free(fillers);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* A thread that used a store outlives it, and uses another that has come in its place. */
struct survivor {
	struct keeper *k;
	pthread_barrier_t *barrier;
	struct pv_store *s;
	int err;
};

static void *survive(void *arg)
{
	struct survivor *t = arg;

	for (int i = 0; i < 3; i++) {
		void *p = NULL;

		pthread_barrier_wait(t->barrier); /* a store is open */
		t->err |= pv_reserve(t->s, 1, 100, &p);
		if (i % 2)
			t->err |= pv_cancel(t->s, p);
		pthread_barrier_wait(t->barrier); /* and is closed */
	}
	pthread_barrier_wait(t->barrier);
	return NULL; /* ends after the last store was closed */
}

static void thread_outlives_stores(void **state)
{
	struct keeper *k = *state;
	pthread_barrier_t barrier;
	struct survivor t = {.k = k, .barrier = &barrier};
	pthread_t thread;

	pthread_barrier_init(&barrier, NULL, 2);
	t.s = store_create(k, NULL);
	store_bytes_type(t.s, "bytes");
	assert_int_equal(pthread_create(&thread, NULL, survive, &t), 0);
	for (int i = 0; i < 3; i++) {
		pthread_barrier_wait(&barrier);
		pthread_barrier_wait(&barrier);
		store_sound(t.s);
		assert_ok(pv_close(t.s));
		t.s = i < 2 ? store_attach(k, NULL) : NULL;
		if (t.s)
			assert_int_equal(store_sound(t.s).reserved_objects, 0);
	}
	pthread_barrier_wait(&barrier);
	pthread_join(thread, NULL);
	pthread_barrier_destroy(&barrier);
	assert_int_equal(t.err, 0);
}

/* ---- extents ---- */

/* One thread frees extents in segments that nobody has looked at since the attach, the others want
 * pages: what is freed may be handed out once. */
static void *free_or_take_extents(void *arg)
{
	struct worker *w = arg;

	pthread_barrier_wait(w->barrier);
	for (int i = 0; i < NCELLS / 10; i++) {
		void **cell = &w->table->cells[w->number][i], *p;
		uint64_t seed = 97 * (random_next(&w->random) >> 8);

		if (w->number == 0) {
			worker_ok(w, pv_free(w->s, cell));
			continue;
		}
		worker_ok(w, pv_reserve(w->s, w->type, size_of_number(seed), &p));
		object_fill(p, seed);
		worker_ok(w,
			  pv_publish(w->s,
				     (struct pv_action[]){PV_LIVE(p), PV_STORE(cell, (uintptr_t)p)},
				     2));
	}
	return NULL;
}

static void extents_freed_while_others_allocate(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);
	uint64_t seed = random_seed_from_env("extents_freed_while_others_allocate");

	for (int round = 0; round < (under_tsan() ? 8 : 40); round++) {
		struct worker w[THREADS] = {0};
		struct table *t = table_of(s);

		for (int i = 0; i < NCELLS / 10; i++) {
			uint64_t number = 97 * (random_next(&seed) >> 8);
			void *p;

			assert_ok(pv_reserve(s, store_bytes_type(s, "bytes"),
					     size_of_number(number), &p));
			object_fill(p, number);
			assert_ok(pv_publish(
				s,
				(struct pv_action[]){PV_LIVE(p),
						     PV_STORE(&t->cells[0][i], (uintptr_t)p)},
				2));
		}
		keeper_crash(k, &s);
		s = store_attach(k, &o);
		t = table_of(s);
		for (int i = 0; i < THREADS; i++)
			w[i] = (struct worker){.s = s,
					       .table = t,
					       .type = store_bytes_type(s, "bytes"),
					       .random = random_next(&seed)};
		run_workers(w, THREADS, free_or_take_extents);
		assert_int_equal(check_table(s, t), (THREADS - 1) * NCELLS / 10);
		for (int i = 1; i < THREADS; i++)
			for (int c = 0; c < NCELLS / 10; c++)
				assert_ok(pv_free(s, &t->cells[i][c]));
	}
	assert_ok(pv_close(s));
}

/* A pointer to an extent is taken up and freed by another thread as soon as it is there, which is
 * before pv_publish() has returned. */
static void *publish_or_free_extents(void *arg)
{
	struct worker *w = arg;
	void **cell = &w->table->cells[0][w->number / 2];

	pthread_barrier_wait(w->barrier);
	for (int i = 0; i < w->rounds; i++) {
		void *p;

		if (w->number % 2) {
			while (!(p = __atomic_load_n(cell, __ATOMIC_ACQUIRE)))
				sched_yield();
			worker_ok(w, pv_publish(w->s,
						(struct pv_action[]){PV_FREE(p), PV_STORE(cell, 0)},
						2));
			continue;
		}
		while (__atomic_load_n(cell, __ATOMIC_ACQUIRE))
			sched_yield();
		worker_ok(w, pv_reserve(w->s, w->type, 40000, &p));
		worker_ok(w,
			  pv_publish(w->s,
				     (struct pv_action[]){PV_LIVE(p), PV_STORE(cell, (uintptr_t)p)},
				     2));
	}
	return NULL;
}

static void extents_freed_while_they_are_published(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);
	struct worker w[THREADS] = {0};

	for (int i = 0; i < THREADS; i++)
		w[i] = (struct worker){.s = s,
				       .table = table_of(s),
				       .type = store_bytes_type(s, "bytes"),
				       .rounds = under_tsan() ? 300 : 2000};
	run_workers(w, THREADS, publish_or_free_extents);
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_in_range(store_info(s).segments, 1, 3);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(each_its_own_objects),
		with_keeper(each_frees_what_another_made),
		with_keeper(cold_slabs_under_many_eyes),
		with_keeper(thousands_of_threads),
		with_keeper(no_lane_left),
		with_keeper(lanes_stay_with_processors),
		with_keeper(threads_keep_apart),
		with_keeper(thread_outlives_stores),
		with_keeper(extents_freed_while_others_allocate),
		with_keeper(extents_freed_while_they_are_published),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
