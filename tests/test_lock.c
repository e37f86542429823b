/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Locks inside of objects: between threads, and after the death of whoever held one.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>

#include <preserve/lock.h>

#include "internal.h"
#include "support.h"

enum { THREADS = 4 };

struct locked {
	struct pv_lock lock;
	uint64_t counter;
	uint64_t copy; /* of the counter, changed after it */
};

struct worker {
	pthread_t thread;
	struct pv_store *s;
	struct locked *l;
	unsigned int rounds;
	unsigned int nap_every; /* 0: never; the others then go to sleep */
	int (*take)(struct pv_store *s, struct pv_lock *lock);
	_Atomic unsigned int *ready;
	unsigned int wrong;
	int rc;
};

static struct locked *locked_of(struct pv_store *s)
{
	void *l;

	assert_ok(pv_root(s, "locked", store_bytes_type(s, "locked"), sizeof(struct locked), &l,
			  NULL));
	return l;
}

static int try_until_taken(struct pv_store *s, struct pv_lock *lock)
{
	int rc;

	while ((rc = pv_lock_try(s, lock)) == -EBUSY)
		sched_yield();
	return rc;
}

static void *count(void *arg)
{
	struct worker *w = arg;

	for (unsigned int i = 0; i < w->rounds && !w->rc; i++) {
		w->rc = w->take(w->s, &w->l->lock);
		if (w->l->counter++ != w->l->copy)
			w->wrong++;
		if (w->nap_every && i % w->nap_every == 0)
			usleep(200);
		w->l->copy++;
		if (!w->rc)
			w->rc = pv_lock_release(w->s, &w->l->lock);
	}
	return NULL;
}

static void contend(void **state, unsigned int rounds, unsigned int nap_every)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct locked *l = locked_of(s);
	struct worker w[THREADS];

	for (unsigned int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.s = s,
				       .l = l,
				       .rounds = rounds,
				       .nap_every = nap_every,
				       .take = i == 0 ? try_until_taken : pv_lock_take};
		assert_int_equal(pthread_create(&w[i].thread, NULL, count, &w[i]), 0);
	}
	for (unsigned int i = 0; i < THREADS; i++) {
		assert_int_equal(pthread_join(w[i].thread, NULL), 0);
		assert_int_equal(w[i].rc, 0);
		assert_int_equal(w[i].wrong, 0);
	}
	assert_int_equal(l->counter, (uint64_t) THREADS * rounds);
	assert_int_equal(l->lock.word, 0);
	assert_ok(pv_close(s));
}

static void short_sections(void **state)
{
	contend(state, 20000, 0);
}

/* So long that the others have to sleep, and to be woken. */
static void long_sections(void **state)
{
	contend(state, 300, 3);
}

static void *expect_busy(void *arg)
{
	struct worker *w = arg;

	w->rc = pv_lock_try(w->s, &w->l->lock) == -EBUSY &&
			pv_lock_release(w->s, &w->l->lock) == -EINVAL
			? 0
			: 1;
	return NULL;
}

static void refusals(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct locked *l = locked_of(s);
	struct worker w = {.s = s, .l = l};
	struct pv_lock elsewhere = {0};
	struct pv_lock *odd = (struct pv_lock *) (void *) ((char *) l + 4);

	assert_fails(pv_lock_release(s, &l->lock), -EINVAL, "does not hold");
	assert_ok(pv_lock_take(s, &l->lock));
	assert_fails(pv_lock_take(s, &l->lock), -EDEADLK, "already");
	assert_fails(pv_lock_try(s, &l->lock), -EBUSY, "held by thread");
	assert_int_equal(pthread_create(&w.thread, NULL, expect_busy, &w), 0);
	assert_int_equal(pthread_join(w.thread, NULL), 0);
	assert_int_equal(w.rc, 0);
	assert_ok(pv_lock_release(s, &l->lock));
	assert_fails(pv_lock_release(s, &l->lock), -EINVAL, "does not hold");
	assert_ok(pv_lock_try(s, &l->lock));
	assert_ok(pv_lock_release(s, &l->lock));
	assert_fails(pv_lock_take(s, &elsewhere), -EINVAL, "not an aligned word");
	assert_fails(pv_lock_try(s, odd), -EINVAL, "not an aligned word");
	assert_fails(pv_lock_release(s, NULL), -EINVAL, "not an aligned word");
	assert_ok(pv_lock_take(s, &l->lock));
	assert_ok(pv_close(s));

	assert_ok(store_try(k, NULL, PV_RDONLY, &s));

	assert_fails(pv_lock_take(s, &l->lock), -EPERM, "read-only");
	assert_fails(pv_lock_try(s, &l->lock), -EPERM, "read-only");
	assert_fails(pv_lock_release(s, &l->lock), -EPERM, "read-only");
	assert_ok(pv_close(s));
}

/* ---- deaths ---- */

struct death {
	struct keeper *keeper;
	int told; /* end of a pipe */
};

static void *take_it(void *arg)
{
	struct worker *w = arg;

	atomic_fetch_add(w->ready, 1);
	w->rc = pv_lock_take(w->s, &w->l->lock);
	return NULL;
}

/* Holds the lock, with threads that sleep on it, until it is killed. */
static int hold_with_waiters(void *ctx)
{
	struct death *d = ctx;
	struct worker w[THREADS];
	_Atomic unsigned int ready = 0;
	struct locked *l;
	struct pv_store *s;

	if (store_try(d->keeper, NULL, 0, &s))
		return 1;
	l = locked_of(s);
	if (pv_lock_take(s, &l->lock))
		return 2;
	for (unsigned int i = 0; i < THREADS; i++) {
		w[i] = (struct worker){.s = s, .l = l, .ready = &ready};
		if (pthread_create(&w[i].thread, NULL, take_it, &w[i]))
			return 3;
	}
	while (ready < THREADS || !(__atomic_load_n(&l->lock.word, __ATOMIC_RELAXED) & PV_LOCK_WAITERS))
		usleep(1000);
	l->counter = 4711;
	if (write(d->told, "", 1) != 1)
		return 4;
	for (;;)
		pause();
}

static void killed_with_waiters(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct death d = {.keeper = k};
	struct locked *l = locked_of(s);
	int ends[2];
	char byte;

	assert_int_equal(l->counter, 0);
	assert_ok(pv_close(s));
	for (int i = 0; i < 3; i++) {
		pid_t pid;

		assert_int_equal(pipe(ends), 0);
		d.told = ends[1];
		pid = start_child(hold_with_waiters, &d);
		assert_int_equal(read(ends[0], &byte, 1), 1);
		kill(pid, SIGKILL);
		assert_int_equal(child_wait(pid), 256 + SIGKILL);
		close(ends[0]);
		close(ends[1]);
		s = store_attach(k, NULL);
		l = locked_of(s);
		assert_int_equal(l->counter, 4711);
		l->counter = 0;
		assert_true(l->lock.word & PV_LOCK_WAITERS); /* as it was left */
		assert_true(l->lock.word & PV_LOCK_OWNER_MASK);
		if (i == 0)
			assert_ok(pv_lock_try(s, &l->lock));
		else
			assert_ok(pv_lock_take(s, &l->lock));
		assert_int_equal(l->lock.word & PV_LOCK_WAITERS, 0);
		assert_ok(pv_lock_release(s, &l->lock));
		assert_ok(pv_close(s));
	}
}

/* The same word, left by a thread with the same id: only the epoch tells that it is free. */
static void left_by_an_earlier_attach(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct locked *l = locked_of(s);
	uint64_t word;

	assert_ok(pv_lock_take(s, &l->lock));
	word = l->lock.word;
	keeper_crash(k, &s);
	s = store_attach(k, NULL);
	l = locked_of(s);
	assert_int_equal(l->lock.word, word);
	assert_fails(pv_lock_release(s, &l->lock), -EINVAL, "does not hold");
	assert_ok(pv_lock_take(s, &l->lock));
	assert_int_equal(l->lock.word, word + (1ull << PV_LOCK_EPOCH_SHIFT));
	assert_fails(pv_lock_take(s, &l->lock), -EDEADLK, "already");
	assert_ok(pv_close(s));
}

/* The epoch has 64 bits, the word has room for 40. */
static void epoch_wraps(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct locked *l = locked_of(s);
	const uint64_t epochs[] = {(1ull << 40) - 1, 1ull << 40, (1ull << 40) + 1, ~0ull};

	for (unsigned int i = 0; i < 4; i++) {
		s->index.epoch = epochs[i];
		assert_ok(pv_lock_try(s, &l->lock)); /* zero, or left by the epoch before */
		assert_fails(pv_lock_try(s, &l->lock), -EBUSY, "held");
		assert_fails(pv_lock_take(s, &l->lock), -EDEADLK, "already");
		assert_ok(pv_lock_release(s, &l->lock));
		assert_int_equal(l->lock.word, 0);
		assert_ok(pv_lock_take(s, &l->lock));
	}
	assert_ok(pv_close(s));
}

/* A child's thread has another id than the thread that it was forked from, so that two threads of a
 * store that the child opens never have the same. */
static int lock_in_child(void *ctx)
{
	struct keeper *k = ctx;
	struct pv_store *s;
	struct locked *l;
	pid_t id;

	if (store_try(k, NULL, 0, &s))
		return 1;
	l = locked_of(s);
	if (pv_lock_take(s, &l->lock))
		return 2;
	id = (pid_t) (l->lock.word & PV_LOCK_OWNER_MASK);
	return id == getpid() ? 0 : 3;
}

static void child_has_its_own_id(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct locked *l = locked_of(s);

	assert_ok(pv_lock_take(s, &l->lock));
	assert_int_equal(l->lock.word & PV_LOCK_OWNER_MASK, getpid());
	assert_ok(pv_close(s));
	assert_int_equal(run_child(lock_in_child, k), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(short_sections),
		with_keeper(long_sections),
		with_keeper(refusals),
		with_keeper(killed_with_waiters),
		with_keeper(left_by_an_earlier_attach),
		with_keeper(epoch_wraps),
		with_keeper(child_has_its_own_id),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
