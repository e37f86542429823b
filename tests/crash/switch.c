/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * switch.c - two threads, one switch: A is stopped after its record k, B runs its whole operation,
 * A goes on to its end; every state from the switch on is recovered. All k are tried, each in a run
 * of its own from a fresh setup(), and each twice: A is stopped as soon as the store is made, and
 * just before it makes the next one, when all that it does in ordinary memory in between (putting
 * into circulation what it has freed, letting go of a lock) is done.
 *
 * If B has to wait for something that A holds, that interleaving does not exist: the run is given
 * up, both threads finish untraced, and the switch counts as blocked.
 *
 * A thread may end as part of its operation (crash_scenario.ends): then it has finished when it is
 * gone, and what the code under test does at the end of a thread is traced, too.
 *
 * Runs from the same setup should make the same stores up to the switch. Those that do not are
 * counted: memcpy() chooses its direction by the address of its source, for one.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"

enum {
	POLL_NS = 50000,
	BLOCKED_POLLS = 100, /* this long in futex() without a store: it waits for A */
	STUCK_POLLS = 40000, /* or this long without a store, whatever it does */
};

struct actor {
	const struct crash_op *op;
	pthread_t thread;
	_Atomic pid_t tid;
	sem_t go, leave;
	_Atomic bool done;
	bool ends, gone; /* its end is part of the operation; it is joined */
	int rc;
};

/* One run: where in the log things happened. */
struct run {
	size_t switch_at; /* records of A when it stopped */
	size_t a_end, b_end;
	bool a_started;	       /* before B */
	bool a_finished_first; /* A had fewer records than asked for: the last run */
	bool blocked;
	uint64_t live; /* fingerprint of the live store at the end */
};

struct outcomes {
	uint64_t before, a, b, ab, ba;
};

/* Place and instruction of A's records, as far as they are known. */
static struct {
	struct ct_record *records;
	size_t n, cap;
} reference;

static void *act(void *arg)
{
	struct actor *actor = arg;

	if (ct.scenario->warm_thread)
		actor->rc = ct.scenario->warm_thread(ct.scenario->ctx);
	atomic_store(&actor->tid, (pid_t)syscall(SYS_gettid));
	while (sem_wait(&actor->go) != 0)
		;
	if (actor->rc == 0)
		actor->rc = actor->op->run(ct.scenario->ctx, actor->op->arg);
	if (actor->ends)
		return NULL;
	atomic_store(&actor->done, true);
	/* What the code under test does when a thread ends must not run beside the other one. */
	while (sem_wait(&actor->leave) != 0)
		;
	return NULL;
}

static void nap(void)
{
	struct timespec ts = {0, POLL_NS};

	nanosleep(&ts, NULL);
}

/* Is it through with its operation? Controlling thread only. */
static bool actor_done(struct actor *actor)
{
	if (!actor->ends)
		return atomic_load(&actor->done);
	if (!actor->gone)
		actor->gone = pthread_tryjoin_np(actor->thread, NULL) == 0;
	return actor->gone;
}

static void actor_start(struct actor *actor, const struct crash_op *op)
{
	memset(actor, 0, sizeof(*actor));
	actor->op = op;
	actor->ends =
		ct.scenario->ends & (op == &ct.scenario->ops[0] ? CRASH_A_ENDS : CRASH_B_ENDS);
	sem_init(&actor->go, 0, 0);
	sem_init(&actor->leave, 0, 0);
	if (pthread_create(&actor->thread, NULL, act, actor) != 0)
		ct_panic("cannot start a thread");
	while (!atomic_load(&actor->tid))
		nap();
}

static void actor_run(struct actor *actor)
{
	sem_post(&actor->go);
}

static void actor_wait(struct actor *actor)
{
	while (!actor_done(actor))
		nap();
}

static bool actor_join(struct actor *actor)
{
	sem_post(&actor->leave);
	if (!actor->gone)
		pthread_join(actor->thread, NULL);
	sem_destroy(&actor->go);
	sem_destroy(&actor->leave);
	if (actor->rc != 0)
		ct_fail(CRASH_FAIL_SETUP, "operation %s returned %d", actor->op->name, actor->rc);
	return actor->rc == 0;
}

static bool in_futex(pid_t tid)
{
	char path[64], text[16] = "";
	int fd;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = syscall(SYS_read, fd, text, sizeof(text) - 1);
	ct_raw_close(fd);
	return n > 0 && strtol(text, NULL, 10) == SYS_futex;
}

/* True if it finished, false if it waits for the other one. */
static bool actor_finishes(struct actor *actor)
{
	size_t seen = ct.log.n;
	unsigned idle = 0, waiting = 0;

	while (!actor_done(actor)) {
		nap();
		if (ct.log.n != seen)
			idle = waiting = 0;
		seen = ct.log.n;
		idle++;
		waiting = in_futex(atomic_load(&actor->tid)) ? waiting + 1 : 0;
		if (waiting >= BLOCKED_POLLS || idle >= STUCK_POLLS)
			return false;
	}
	return true;
}

static void forget_run(void)
{
	ct_pool_clear();
	ct.shadow.n_slots = 0;
	ct.shadow.keep_last = 0;
	ct.log.n = 0;
}

static bool set_up(void)
{
	const struct crash_scenario *sc = ct.scenario;
	int rc;

	forget_run();
	ct.random = CT_RANDOM_SEED;
	rc = sc->setup(sc->ctx);
	if (rc != 0)
		ct_fail(CRASH_FAIL_SETUP, "setup() returned %d", rc);
	return rc == 0;
}

/* Operations one after the other (-1: none), untraced: what each order leads to. */
static uint64_t plain_outcome(int first, int second)
{
	const struct crash_scenario *sc = ct.scenario;
	const int order[2] = {first, second};
	struct actor actor;
	uint64_t fingerprint;
	bool ok = true;

	if (!set_up())
		return 0;
	for (int i = 0; i < 2; i++) {
		if (order[i] < 0)
			continue;
		actor_start(&actor, &sc->ops[order[i]]);
		actor_run(&actor);
		ok &= actor_join(&actor);
	}
	fingerprint = sc->check(sc->ctx);
	sc->close(sc->ctx);
	if (ok && fingerprint == 0)
		ct_fail(CRASH_FAIL_BROKEN, "the store is broken after an undisturbed run");
	return ok ? fingerprint : 0;
}

static bool find_outcomes(struct outcomes *o)
{
	o->before = plain_outcome(-1, -1);
	o->a = o->before ? plain_outcome(0, -1) : 0;
	o->b = o->a ? plain_outcome(1, -1) : 0;
	o->ab = o->b ? plain_outcome(0, 1) : 0;
	o->ba = o->ab ? plain_outcome(1, 0) : 0;
	if (!o->ba)
		return false;
	if (!ct.scenario->unchanged_ok && (o->a == o->before || o->b == o->before)) {
		ct_fail(CRASH_FAIL_SETUP, "an operation has no visible effect");
		return false;
	}
	return true;
}

static bool same_place(const struct ct_record *a, const struct ct_record *b)
{
	return a->kind == b->kind && a->slot == b->slot && a->off == b->off && a->ip == b->ip;
}

/* The first n records are A's; true if they are those that A has made in every run so far. */
static bool same_as_before(size_t n)
{
	bool same = true;

	for (size_t i = 0; i < n && i < reference.n; i++)
		same &= same_place(&reference.records[i], &ct.log.records[i]);
	if (n > reference.cap) {
		reference.cap = 2 * n;
		reference.records =
			realloc(reference.records, reference.cap * sizeof(*reference.records));
		if (!reference.records)
			ct_panic("no memory for %zu records", reference.cap);
	}
	for (size_t i = reference.n; i < n; i++)
		reference.records[i] = ct.log.records[i];
	if (n > reference.n)
		reference.n = n;
	return same;
}

/* Both threads are running or stopped; ends with both joined. False after a failure. */
static bool interleave(struct actor *a, struct actor *b, size_t k, bool before_next,
		       struct run *run)
{
	bool starts = k > 0 || before_next, ok;

	run->a_started = starts;
	if (starts) {
		ct_trap_stop_at(atomic_load(&a->tid), k, before_next);
		actor_run(a);
		while (!ct_trap_stopped() && !actor_done(a))
			nap();
		run->a_finished_first = actor_done(a);
		run->a_end = ct.log.n;
	}
	run->switch_at = ct.log.n;
	actor_run(b);
	if (!actor_finishes(b)) {
		run->blocked = true;
		ct_trace_abandon();
	}
	run->b_end = ct.log.n;
	if (starts)
		ct_trap_resume();
	else
		actor_run(a);
	actor_wait(a);
	if (!run->a_finished_first)
		run->a_end = ct.log.n;
	actor_wait(b);
	ok = actor_join(a);
	return actor_join(b) && ok;
}

static bool traced_run(size_t k, bool before_next, struct ct_image *base, struct run *run)
{
	const struct crash_scenario *sc = ct.scenario;
	struct actor a, b;
	uint64_t began;
	bool ok;

	memset(run, 0, sizeof(*run));
	if (!set_up())
		return false;
	actor_start(&a, &sc->ops[0]);
	actor_start(&b, &sc->ops[1]);
	began = ct_now_ns();
	ct_trap_other(atomic_load(&b.tid));
	ct.split_wide = !sc->keep_wide_stores;
	ct_trace_begin();
	ct_image_copy(base, &ct.shadow);
	ok = interleave(&a, &b, k, before_next, run);
	ct_trap_stop_at(0, 0, false);
	ct_trap_other(0);
	if (!run->blocked)
		ok &= ct_trace_end(true);
	ct.report->trace_ns += ct_now_ns() - began;
	ct.report->records += ct.log.n;
	if (ok) {
		run->live = sc->check(sc->ctx);
		if (run->live == 0)
			ct_fail(CRASH_FAIL_BROKEN,
				"the live store is broken after both operations");
		ok = run->live != 0;
	}
	sc->close(sc->ctx);
	ct_pool_clear();
	if (!same_as_before(run->switch_at))
		ct.report->reordered++;
	return ok;
}

struct judgement {
	bool seen_a, seen_b;
};

/* Is this outcome possible, given who had started and finished when the process died? */
static bool is_legal(const struct outcomes *o, const struct run *run, size_t n, uint64_t got,
		     struct judgement *j)
{
	bool b_started = n > run->switch_at, b_done = n >= run->b_end && b_started;
	bool a_started = run->a_started || n > run->b_end;
	bool a_done = n >= run->a_end && (run->a_finished_first || b_done);
	bool neither = got == o->before && !a_done && !b_done && !j->seen_a && !j->seen_b;
	bool only_a = got == o->a && a_started && !b_done && !j->seen_b;
	bool only_b = got == o->b && b_started && !a_done && !j->seen_a;
	bool both = (got == o->ab || got == o->ba) && a_started && b_started;

	/* What only one reading explains has been seen, and may not be lost again. */
	j->seen_a |= (only_a || both) && !neither && !only_b;
	j->seen_b |= (only_b || both) && !neither && !only_a;
	return neither || only_a || only_b || both;
}

static void judge(const struct outcomes *o, const struct run *run, size_t n, uint64_t got,
		  struct judgement *j)
{
	const struct crash_op *a = &ct.scenario->ops[0];
	struct crash_failure *f;
	struct crash_verdict v = {
		.before = o->before,
		.after = o->ab,
		.got = got,
		.returned = n >= run->a_end && n >= run->b_end,
	};

	if (got == 0)
		return;
	if (a->rule == CRASH_CUSTOM && a->legal ? a->legal(ct.scenario->ctx, &v)
						: is_legal(o, run, n, got, j))
		return;
	f = ct_fail(CRASH_FAIL_ILLEGAL, "not a state that these two operations may leave here");
	f->before = o->before;
	f->after = o->ab;
	f->got = got;
	ct_fail_stores(f, n ? n - 1 : CT_NO_RECORD, ct.log.n);
}

static void replay_run(struct ct_walk *walk, const struct outcomes *o, const struct run *run,
		       struct ct_image *image)
{
	struct judgement j = {false, false};
	size_t end = run->a_end > run->b_end ? run->a_end : run->b_end;
	bool pending = true; /* the state at the switch itself */
	uint64_t got = 0, hash;

	/* Behind that the threads end, one after the other and the same in every run. */
	if (run->switch_at == 0)
		end = ct.log.n;
	for (size_t i = 0; i < run->switch_at; i++)
		ct_image_apply(image, &ct.log.records[i]);
	for (size_t n = run->switch_at; n <= end; n++) {
		const struct ct_record *r = n ? &ct.log.records[n - 1] : NULL;

		if (n > run->switch_at) {
			pending |= ct_image_survives(image, r);
			ct_image_apply(image, r);
		}
		if (r && (r->flags & CT_JOINED))
			continue;
		if (pending) {
			ct.report->crash_points++;
			ct.report->at.prefix = (long)n;
			got = ct_walk_visit(walk, image, 0, n ? n - 1 : CT_NO_RECORD, &hash);
		}
		/* Without a new image the same outcome must still be legal: somebody returned. */
		judge(o, run, n, got, &j);
		pending = false;
		if (ct_enough())
			return;
	}
	if (run->live != o->ab && run->live != o->ba && ct.scenario->ops[0].rule != CRASH_CUSTOM)
		ct_fail(CRASH_FAIL_ILLEGAL,
			"both returned, but the live store is in neither order");
}

/* One run and its crash states. False: enough. */
static bool switch_at(size_t k, bool before_next, struct ct_walk *walk, struct ct_image *image,
		      const struct outcomes *o, struct run *run)
{
	uint64_t began;

	ct.report->at.prefix = 0;
	ct.report->at.switch_at = (long)k;
	if (!traced_run(k, before_next, image, run))
		return false;
	ct.report->switches++;
	ct.report->at.switch_at = (long)run->switch_at;
	if (run->blocked) {
		ct.report->blocked++;
		if (ct.scenario->no_block)
			ct_fail(CRASH_FAIL_BLOCKED, "B waits for A, which was stopped");
	} else {
		began = ct_now_ns();
		replay_run(walk, o, run, image);
		ct.report->replay_ns += ct_now_ns() - began;
	}
	return !ct_enough();
}

void ct_switch_run(void)
{
	static struct ct_walk walk;
	static struct ct_image image;
	struct outcomes o = {0};
	struct run run = {0}, other;

	if (ct.scenario->n_ops != 2)
		ct_panic("a switch sweep needs two operations");
	ct_walk_init(&walk);
	if (!find_outcomes(&o))
		return;
	for (size_t k = 0; !run.a_finished_first; k = run.switch_at + 1) {
		if (!switch_at(k, false, &walk, &image, &o, &run))
			return;
		if (!run.a_finished_first &&
		    !switch_at(run.switch_at, true, &walk, &image, &o, &other))
			return;
	}
	ct_walk_free(&walk);
	ct_image_free(&image);
}
