/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Retiring objects under readers. Built three times, with the flavours memb, qsbr and bp of liburcu.
 *
 * ThreadSanitizer does not see how liburcu orders a reader's last load before the callback, because
 * liburcu is not instrumented and uses the memory barrier of a system call. So under it the flavour
 * that the store gets is liburcu's with the two ends of that order named (grace_begins(),
 * grace_ends()); everything else that it looks at is the library's own.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#if defined(TEST_QSBR)
#include <urcu-qsbr.h>
#elif defined(TEST_BP)
#include <urcu-bp.h>
#else
#include <urcu.h>
#endif
#include <urcu/flavor.h>

#include <preserve/retire.h>

#include "support.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WITH_TSAN 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define WITH_TSAN 1
#endif
#ifdef WITH_TSAN
#include <sanitizer/tsan_interface.h>
static char grace;

/* The same for what liburcu allocates itself. */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
#if defined(TEST_QSBR)
	return "called_from_lib:liburcu-qsbr.so";
#elif defined(TEST_BP)
	return "called_from_lib:liburcu-bp.so";
#else
	return "called_from_lib:liburcu-memb.so";
#endif
}
#endif

/* ---- flavours ---- */

static void grace_begins(void)
{
#ifdef WITH_TSAN
	__tsan_release(&grace);
#endif
}

static void grace_ends(void)
{
#ifdef WITH_TSAN
	__tsan_acquire(&grace);
#endif
}

static void (*_Atomic callback)(struct rcu_head *head);

static void call_back(struct rcu_head *head)
{
	grace_ends();
	atomic_load(&callback)(head);
}

static void call_named(struct rcu_head *head, void (*func)(struct rcu_head *head))
{
	atomic_store(&callback, func); /* always the same function */
	rcu_flavor.update_call_rcu(head, call_back);
}

static const struct rcu_flavor_struct *real_flavor(void)
{
	static struct rcu_flavor_struct named;

	if (!under_tsan())
		return &rcu_flavor;
	named = rcu_flavor;
	named.update_call_rcu = call_named;
	return &named;
}

/* ---- stores ---- */

static struct pv_options options(struct keeper *k)
{
	struct pv_options o = small_options(k);

	o.lanes = 12;
	return o;
}

static struct pv_store *create(struct keeper *k, const struct rcu_flavor_struct *flavor)
{
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);

	assert_ok(pv_retire_flavor(s, flavor));
	return s;
}

static int retire(struct pv_store *s, void **cell)
{
	return pv_publish(s, (struct pv_action[]){PV_STORE(cell, 0), PV_RETIRE(*cell)}, 2);
}

/* ---- readers ---- */

struct reader {
	pthread_t thread;
	struct cells *cells;
	_Atomic bool stop;
	_Atomic bool reads; /* it has the object, and stays */
	_Atomic unsigned int rounds;
	_Atomic bool torn;
};

/* Object: a number in every word. */
static void fill(void *object, size_t bytes, uint64_t number)
{
	uint64_t *words = object;

	for (size_t i = 0; i < bytes / 8; i++)
		words[i] = number;
}

static bool whole(const void *object, size_t bytes)
{
	const uint64_t *words = object;

	for (size_t i = 1; i < bytes / 8; i++)
		if (words[i] != words[0])
			return false;
	return true;
}

static void leave(void)
{
	grace_begins();
	rcu_read_unlock();
	rcu_quiescent_state(); /* which is what ends a section in QSBR */
}

/* Holds on to the object in cell 0 until told to stop. */
static void *hold_on(void *arg)
{
	struct reader *r = arg;
	const uint64_t *object;
	uint64_t number;

	rcu_register_thread();
	rcu_read_lock();
	object = __atomic_load_n(&r->cells->cells[0], __ATOMIC_ACQUIRE);
	number = object[0];
	r->reads = true;
	while (!r->stop) {
		for (int i = 0; i < 8; i++)
			if (object[i] != number)
				r->torn = true;
		r->rounds++;
		sched_yield();
	}
	leave();
	rcu_unregister_thread();
	return NULL;
}

static void start(struct reader *r, struct cells *c, void *(*f)(void *))
{
	*r = (struct reader){.cells = c};
	assert_int_equal(pthread_create(&r->thread, NULL, f, r), 0);
}

static void stop(struct reader *r)
{
	bool online = rcu_read_ongoing(); /* QSBR, registered: waiting must not delay others */

	r->stop = true;
	if (online)
		rcu_thread_offline();
	assert_int_equal(pthread_join(r->thread, NULL), 0);
	if (online)
		rcu_thread_online();
	assert_false(r->torn);
}

static void readers_keep_what_they_hold(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = create(k, real_flavor());
	pv_type_t type = store_bytes_type(s, "bytes");
	struct cells *c = store_cells(s);
	struct reader r;
	unsigned int seen;
	void *old;

	rcu_register_thread();
	old = publish_ok(s, type, 64, &c->cells[0]);
	fill(old, 64, 4711);
	start(&r, c, hold_on);
	while (!r.reads)
		sched_yield();
	for (uint64_t i = 0; i < 2000; i++) {
		void *fresh = reserve_ok(s, type, 64);

		assert_ptr_not_equal(fresh, old);
		fill(fresh, 64, i);
		assert_ok(pv_publish(s,
				     (struct pv_action[]){PV_LIVE(fresh),
							  PV_STORE(&c->cells[0], (uintptr_t) fresh),
							  PV_RETIRE(c->cells[0])},
				     3));
		if (i % 100 == 0) { /* let the call_rcu thread try */
			usleep(1000);
			rcu_quiescent_state();
		}
	}
	seen = r.rounds;
	assert_int_equal(store_sound(s).retired_objects, 2000);
	while (r.rounds < seen + 100)
		sched_yield();
	assert_int_equal(((uint64_t *) old)[7], 4711);
	stop(&r);
	assert_ok(pv_retire_wait(s));
	assert_int_equal(store_sound(s).retired_objects, 0);
	assert_int_equal(store_sound(s).live_objects, 2);
	assert_ok(pv_close(s));
	rcu_unregister_thread();
}

/* Fill the store with objects of a size, retire them all, wait; how many there were. */
static unsigned int fill_and_retire(struct pv_store *s, pv_type_t type, size_t bytes)
{
	void *first = NULL, *object;
	unsigned int n = 0;
	int rc;

	/* A list: each object's first word is the next one. */
	while ((rc = pv_reserve(s, type, bytes, &object)) == 0) {
		*(void **) object = first;
		assert_ok(pv_publish(s, &PV_LIVE(object), 1));
		first = object;
		n++;
	}
	assert_int_equal(rc, -ENOSPC);
	while (first) {
		void *next = *(void **) first;

		assert_ok(pv_publish(s, &PV_RETIRE(first), 1));
		first = next;
	}
	assert_ok(pv_retire_wait(s));
	assert_int_equal(store_sound(s).retired_objects, 0);
	assert_int_equal(store_sound(s).live_objects, 0);
	return n;
}

/* A slab that stays for each size divides the room, at another place each time: so two rounds of the
 * same size are compared, with little left over for what slabs of several pages do not fit into. */
static void memory_comes_back(void **state)
{
	static const size_t sizes[] = {64, 3000, 40000};
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s;
	pv_type_t type;

	o.limit_bytes = 400000;
	s = store_create(k, &o);
	assert_ok(pv_retire_flavor(s, real_flavor()));
	type = store_bytes_type(s, "bytes");
	rcu_register_thread();
	for (int round = 0; round < 9; round++) {
		size_t bytes = sizes[round % 3];
		unsigned int n = fill_and_retire(s, type, bytes), again;

		assert_true((uint64_t) n * bytes >= 80000);
		again = fill_and_retire(s, type, bytes);
		if (again * 10 < n * 9)
			fail_msg("round %d: %u objects of %zu bytes, then %u", round, n, bytes, again);
	}
	assert_ok(pv_close(s));
	rcu_unregister_thread();
}

/* The caller is a reader: what it waits for would never come. */
static void reader_does_not_wait(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = create(k, real_flavor());
	struct cells *c = store_cells(s);

	rcu_register_thread();
	publish_ok(s, store_bytes_type(s, "bytes"), 64, &c->cells[0]);
	rcu_read_lock();
	assert_ok(retire(s, &c->cells[0]));
#ifdef TEST_QSBR
	/* There all of an online thread's time is a section, and waiting ends it. */
	assert_ok(pv_retire_wait(s));
	assert_true(rcu_read_ongoing());
#else
	assert_fails(pv_retire_wait(s), -EDEADLK, "read-side");
	assert_fails(pv_close(s), -EDEADLK, "read-side");
	assert_fails(pv_destroy(s), -EDEADLK, "read-side");
	assert_int_equal(store_sound(s).retired_objects, 1); /* the handle is still good */
#endif
	leave();
	assert_ok(pv_close(s));
	rcu_unregister_thread();
}

struct writer {
	pthread_t thread;
	struct pv_store *s;
	struct cells *cells;
	pv_type_t type;
	unsigned int number, of;
	unsigned int rounds;
	size_t bytes;
	char failed[300];
};

static bool replace(struct writer *w, void **cell, uint64_t number)
{
	void *fresh;

	if (pv_reserve(w->s, w->type, w->bytes, &fresh))
		return false;
	fill(fresh, w->bytes, number);
	return !pv_publish(w->s,
			   (struct pv_action[]){PV_LIVE(fresh), PV_STORE(cell, (uintptr_t) fresh),
						PV_RETIRE(*cell)},
			   *cell ? 3 : 2);
}

/* Replaces its share of the cells, again and again, and ends with batches in flight. */
static void *write_cells(void *arg)
{
	struct writer *w = arg;
	uint64_t random = w->number + 1;

	rcu_register_thread();
	for (unsigned int i = 0; i < w->rounds; i++) {
		size_t cell = random_below(&random, CELLS / w->of) * w->of + w->number;

		if (!replace(w, &w->cells->cells[cell], random_next(&random))) {
			snprintf(w->failed, sizeof(w->failed), "%s", pv_last_error());
			break;
		}
		rcu_quiescent_state();
	}
	rcu_unregister_thread();
	return NULL;
}

static void *read_cells(void *arg)
{
	struct reader *r = arg;
	uint64_t random = 99;

	rcu_register_thread();
	while (!r->stop) {
		rcu_read_lock();
		for (int i = 0; i < 20; i++) {
			void *object = __atomic_load_n(
				&r->cells->cells[random_below(&random, CELLS)], __ATOMIC_ACQUIRE);

			if (object && !whole(object, 64))
				r->torn = true;
		}
		leave();
		r->rounds++;
	}
	rcu_unregister_thread();
	return NULL;
}

enum { WRITERS = 3, READERS = 2, GENERATIONS = 4 };

/* Threads come and go, each leaves something retired; others read all the time. */
static void writers_and_readers(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = create(k, real_flavor());
	pv_type_t type = store_bytes_type(s, "bytes");
	struct cells *c = store_cells(s);
	struct reader readers[READERS];
	struct writer writers[WRITERS];
	unsigned int cells = 0;

	for (int i = 0; i < READERS; i++)
		start(&readers[i], c, read_cells);
	for (int g = 0; g < GENERATIONS; g++) {
		for (unsigned int i = 0; i < WRITERS; i++) {
			writers[i] = (struct writer){.s = s,
						     .cells = c,
						     .type = type,
						     .number = i,
						     .of = WRITERS,
						     .rounds = under_tsan() ? 2000 : 10000,
						     .bytes = 64};
			assert_int_equal(pthread_create(&writers[i].thread, NULL, write_cells,
							&writers[i]), 0);
		}
		for (int i = 0; i < WRITERS; i++) {
			assert_int_equal(pthread_join(writers[i].thread, NULL), 0);
			if (writers[i].failed[0])
				fail_msg("writer %d: %s", i, writers[i].failed);
		}
		if (g % 2)
			assert_int_equal(store_sound(s).problems, 0); /* beside callbacks */
	}
	for (int i = 0; i < READERS; i++) {
		assert_true(readers[i].rounds > 0);
		stop(&readers[i]);
	}
	assert_ok(pv_retire_wait(s));
	assert_int_equal(store_sound(s).retired_objects, 0);
	for (int i = 0; i < CELLS; i++)
		cells += c->cells[i] != NULL;
	assert_int_equal(store_sound(s).live_objects, 1 + cells);
	assert_ok(pv_close(s));
}

/* Extents have no slot byte: what keeps their pages is in this process only. */
static void extents_under_readers(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s;
	struct cells *c;
	struct reader readers[READERS];
	struct writer w;

	o.limit_bytes = 8 << 20;
	s = store_create(k, &o);
	assert_ok(pv_retire_flavor(s, real_flavor()));
	c = store_cells(s);
	rcu_register_thread();
	w = (struct writer){.s = s, .cells = c, .type = store_bytes_type(s, "bytes"), .bytes = 40000};
	for (int i = 0; i < READERS; i++)
		start(&readers[i], c, read_cells);
	for (uint64_t i = 0; i < 1000; i++) {
		if (!replace(&w, &c->cells[i % 32], i)) {
			assert_non_null(strstr(pv_last_error(), "limit"));
			assert_ok(pv_retire_wait(s));
			assert_true(replace(&w, &c->cells[i % 32], i));
		}
		rcu_quiescent_state();
	}
	for (int i = 0; i < READERS; i++)
		stop(&readers[i]);
	assert_ok(pv_close(s)); /* with batches in flight */
	s = store_attach(k, &o);
	assert_int_equal(store_sound(s).live_objects, 33);
	assert_ok(pv_close(s));
	rcu_unregister_thread();
}

/* Closed at once after retiring, many times. */
static void close_with_batches_in_flight(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);

	rcu_register_thread();
	for (int round = 0; round < 10; round++) {
		struct cells *c = store_cells(s);
		pv_type_t type = store_bytes_type(s, "bytes");

		assert_ok(pv_retire_flavor(s, real_flavor()));
		for (int i = 0; i < 200; i++)
			publish_ok(s, type, i % 50 ? 64 : 20000, &c->cells[i]);
		for (int i = 0; i < 200; i++)
			assert_ok(retire(s, &c->cells[i]));
		assert_ok(pv_close(s));
		s = store_attach(k, &o);
		assert_int_equal(store_sound(s).live_objects, 1);
	}
	assert_ok(pv_close(s));
	rcu_unregister_thread();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(readers_keep_what_they_hold),
		with_keeper(memory_comes_back),
		with_keeper(reader_does_not_wait),
		with_keeper(writers_and_readers),
		with_keeper(extents_under_readers),
		with_keeper(close_with_batches_in_flight),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
