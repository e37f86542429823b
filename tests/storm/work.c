/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The worker process: attaches the store, and has threads that do a few things each and end, to be
 * followed by others, until it is killed: by a timer, or by one of the threads after so many
 * operations. It never ends by itself but to report a failure.
 */
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "storm.h"

static sem_t ended;
static _Atomic bool has_ended[STORM_THREADS];
static _Atomic uint32_t ops_left; /* 0: no limit */

void storm_fail(struct storm_log *log, const char *format, ...)
{
	static _Atomic bool told;
	va_list args;

	if (!atomic_exchange(&told, true)) {
		va_start(args, format);
		vsnprintf(log->failure, sizeof(log->failure), format, args);
		va_end(args);
		_exit(9);
	}
	for (;;)
		pause();
}

bool storm_ok(struct storm_thread *t, const char *call, int rc)
{
	if (rc && rc != -ENOSPC)
		storm_fail(t->log, "thread %u: %s: %d: %s", t->number, call, rc, pv_last_error());
	return rc == 0;
}

/* ---- opening ---- */

static const void *key_of(const void *entry, size_t *bytes)
{
	*bytes = sizeof(uint64_t);
	return &((const struct storm_object *)entry)->key;
}

/* The last is the table's. */
static const struct pv_typedef defs[] = {
	PV_TYPE_BYTES("a", 1),
	PV_TYPE_BYTES("b", 1),
	PV_TYPE_BYTES("entry", 1),
	PV_TYPE(struct storm_table, "table", 1,
		PV_STRUCT(struct storm_table, cells, struct storm_cell,
			  PV_POINTER(struct storm_cell, object))),
};

static int register_types(struct storm_store *st, pv_type_t *table)
{
	pv_type_t *const out[] = {&st->types[0], &st->types[1], &st->entry, table};
	int err = 0;

	for (int i = 0; !err && i < 4; i++)
		err = pv_type_register(st->s, &defs[i], out[i]);
	return err;
}

static void reached(struct storm_log *log, uint32_t stage)
{
	if (atomic_load(&log->stage) < stage)
		atomic_store(&log->stage, stage);
}

int storm_open(struct storm_store *st, struct storm_keeper *k, const struct storm_plan *plan,
	       struct storm_log *log)
{
	const struct pv_map_options map_options = {.size = sizeof(map_options), .key = key_of};
	struct pv_options o = {
		.size = sizeof(o),
		.flags = k->n ? 0 : PV_CREATE,
		.handover = PV_HANDOVER_NONE,
		.window_bytes = 1ull << 30,
		.segment_bytes = plan->segment_bytes,
		.limit_bytes = plan->limit_bytes,
		.page_bytes = plan->page_bytes,
		.lanes = plan->lanes,
		.relocate = plan->relocate,
		.fds = k->fds,
		.nfds = k->n,
		.keep = storm_keep,
		.keep_ctx = k,
	};
	pv_type_t table_type;
	bool created = false;
	void *table;
	int err;

	memset(st, 0, sizeof(*st));
	err = pv_open("storm", &o, &st->s);
	if (err)
		return err;
	reached(log, STORM_CREATED);
	err = register_types(st, &table_type);
	if (!err)
		err = pv_root(st->s, "table", table_type, sizeof(*st->table), &table, &created);
	if (!err && created && atomic_load(&log->stage) >= STORM_TABLE)
		err = -ENODATA; /* it was there */
	if (err)
		return err;
	st->table = table;
	reached(log, STORM_TABLE);
	err = pv_map_open(st->s, "map", &map_options, &st->map);
	if (!err)
		reached(log, STORM_MAP);
	return err;
}

void storm_close(struct storm_store *st)
{
	pv_map_close(st->map);
	pv_close(st->s);
	memset(st, 0, sizeof(*st));
}

int storm_root(struct storm_store *st, unsigned int number, size_t bytes, void **out, bool *created)
{
	char name[16];

	snprintf(name, sizeof(name), "root-%u", number);
	return pv_root(st->s, name, st->types[0], bytes, out, created);
}

/* ---- threads ---- */

static void count_op(void)
{
	uint32_t left = atomic_load(&ops_left);

	if (left && atomic_fetch_sub(&ops_left, 1) == 1)
		kill(getpid(), SIGKILL);
}

static void *live(void *arg)
{
	struct storm_thread *t = arg;
	uint64_t n = 1 + storm_below(&t->random, storm_below(&t->random, 4) ? 200 : 8);

	atomic_fetch_add(&t->log->threads, 1);
	while (n--) {
		storm_op(t);
		count_op();
	}
	t->left_open = storm_below(&t->random, 4) == 0 && storm_leave_open(t, &t->place);
	atomic_store(&has_ended[t->number], true);
	sem_post(&ended);
	return NULL;
}

static void start_thread(struct storm_thread *t, pthread_t *thread)
{
	int err;

	atomic_store(&has_ended[t->number], false);
	err = pthread_create(thread, NULL, live, t);
	if (err)
		storm_fail(t->log, "pthread_create: %s", strerror(err));
}

static void run_threads(struct storm_store *st, const struct storm_plan *plan,
			struct storm_log *log)
{
	static struct storm_thread threads[STORM_THREADS], reader;
	static pthread_t ids[STORM_THREADS], id;

	sem_init(&ended, 0, 0);
	for (unsigned int i = 0; i < plan->threads; i++) {
		threads[i] = (struct storm_thread){.st = st,
						   .log = log,
						   .groups = log->groups[i],
						   .random = storm_mix(plan->seed + i),
						   .number = i};
		start_thread(&threads[i], &ids[i]);
	}
	reader = (struct storm_thread){.st = st, .log = log, .random = plan->seed};
	if (pthread_create(&id, NULL, storm_read, &reader))
		storm_fail(log, "no thread for a reader");
	for (;;) {
		while (sem_wait(&ended))
			;
		for (unsigned int i = 0; i < plan->threads; i++) {
			if (!atomic_load(&has_ended[i]))
				continue;
			pthread_join(ids[i], NULL);
			if (threads[i].left_open) /* which is aborted by now */
				storm_leave(threads[i].place);
			start_thread(&threads[i], &ids[i]);
		}
	}
}

static void arm_timer(struct storm_log *log, uint32_t ns)
{
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
	struct itimerspec when = {
		.it_value = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000}};
	timer_t timer;

	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &when, NULL))
		storm_fail(log, "timer: %s", strerror(errno));
}

void storm_work(struct storm_keeper *k, const struct storm_plan *plan, struct storm_log *log)
{
	struct storm_store st;
	int err;

	k->in_worker = true;
	atomic_store(&ops_left, plan->ops);
	if (plan->from_start)
		arm_timer(log, plan->timer_ns);
	err = storm_open(&st, k, plan, log);
	if (!err)
		err = storm_read_init(&st);
	if (err)
		storm_fail(log, "opening the store: %d: %s", err, pv_last_error());
	if (!plan->from_start)
		arm_timer(log, plan->timer_ns);
	if (!plan->attach_only)
		run_threads(&st, plan, log);
	for (;;)
		pause();
}
