/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * kvstore's data layer: changes of many keys are done or undone as a whole when memory runs out and
 * when the process is killed at a random instant. After each the store is sound and holds nothing
 * that is not reachable.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <preserve/compact.h>

#include "db.h"

#define MAX_FDS	 64
#define KEYS	 400u
#define MANY_MAX 60u

struct fixture {
	struct pv_store *store;
	struct db db;
	int fds[MAX_FDS];
	uint32_t nfds;
	uint64_t segment_bytes;
	uint64_t limit_bytes;
};

/* ---- fixture ---- */

static void ok(int err)
{
	if (err)
		fail_msg("%s: %s", strerror(-err), pv_last_error());
}

static int keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	struct fixture *f = ctx;

	if (what == PV_KEEP_DROP) {
		close(f->fds[token]);
		f->nfds = (uint32_t)token; /* the last one */
		return 0;
	}
	assert_true(token < MAX_FDS);
	f->fds[token] = dup(fd);
	if (token >= f->nfds)
		f->nfds = (uint32_t)token + 1;
	return 0;
}

static void open_all(struct fixture *f)
{
	struct pv_options o = {.size = sizeof(o),
			       .flags = PV_CREATE,
			       .handover = PV_HANDOVER_NONE,
			       .segment_bytes = f->segment_bytes,
			       .limit_bytes = f->limit_bytes,
			       .window_bytes = 1ull << 30,
			       .lanes = 4,
			       .fds = f->fds,
			       .nfds = f->nfds,
			       .keep = keep,
			       .keep_ctx = f};

	ok(pv_open("test", &o, &f->store));
	ok(db_open(&f->db, f->store));
	f->db.now_ms = 1000;
}

static void close_all(struct fixture *f)
{
	db_close(&f->db);
	ok(pv_close(f->store));
}

static struct fixture *make(uint64_t segment_bytes, uint64_t limit_bytes)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->segment_bytes = segment_bytes;
	f->limit_bytes = limit_bytes;
	open_all(f);
	return f;
}

static void drop_all(struct fixture *f)
{
	close_all(f);
	for (uint32_t i = 0; i < f->nfds; i++)
		close(f->fds[i]);
	free(f);
}

static void tell(void *ctx, const char *line)
{
	fprintf(stderr, "  problem: %s\n", line);
}

static int count(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	(*(uint64_t *)ctx)++;
	return 0;
}

static int count_expiring(void *ctx, void *entry, bool mark)
{
	assert_int_equal(mark, entry_expiry(entry) != 0);
	*(uint64_t *)ctx += mark;
	return 0;
}

/* Sound; no entry but those in the map, no batch, and the count of expiring keys is right. */
static void check(struct fixture *f)
{
	struct pv_check_report report;
	uint64_t problems, entries = 0, batches = 0, expiring = 0;

	ok(pv_map_check(f->db.map, tell, NULL, &problems));
	assert_int_equal(problems, 0);
	ok(pv_check(f->store, PV_CHECK_TELL(tell, NULL), &report));
	assert_int_equal(report.problems, 0);
	ok(pv_iterate(f->store, f->db.entry_type, count, &entries));
	assert_int_equal(entries, pv_map_count(f->db.map));
	ok(pv_iterate(f->store, f->db.batch_type, count, &batches));
	assert_int_equal(batches, 0);
	ok(pv_map_each(f->db.map, count_expiring, &expiring));
	assert_int_equal(expiring, f->db.root->expiring);
}

static struct entry *find(struct fixture *f, const char *key)
{
	return db_find(&f->db, db_hash(&f->db, key, strlen(key)), key, strlen(key));
}

static int set(struct fixture *f, const char *key, const char *value, int64_t expiry_ms)
{
	return db_set(&f->db, db_hash(&f->db, key, strlen(key)), key, strlen(key), value,
		      strlen(value), expiry_ms);
}

static void expect(struct fixture *f, const char *key, const char *value)
{
	struct entry *e = find(f, key);

	if (!value) {
		assert_null(e);
		return;
	}
	assert_non_null(e);
	assert_int_equal(entry_value_len(e), strlen(value));
	assert_memory_equal(entry_value(e), value, strlen(value));
}

/* ---- single keys ---- */

static void test_values(void **state)
{
	struct fixture *f = make(1 << 20, 0);
	struct entry *e;
	int64_t n;
	size_t len;
	bool removed;

	ok(set(f, "a", "text", 0));
	expect(f, "a", "text");
	ok(set(f, "n", "41", 0));
	assert_true(entry_is_integer(find(f, "n")));
	ok(db_add(&f->db, db_hash(&f->db, "n", 1), "n", 1, 1, &n));
	assert_int_equal(n, 42);
	e = find(f, "n");
	ok(db_add(&f->db, db_hash(&f->db, "n", 1), "n", 1, -50, &n));
	assert_ptr_equal(find(f, "n"), e); /* in place */
	assert_int_equal(n, -8);
	assert_int_equal(db_add(&f->db, db_hash(&f->db, "n", 1), "n", 1, INT64_MIN, &n), -ERANGE);
	assert_int_equal(db_add(&f->db, db_hash(&f->db, "a", 1), "a", 1, 1, &n), -EINVAL);
	ok(db_append(&f->db, db_hash(&f->db, "n", 1), "n", 1, "x", 1, &len));
	expect(f, "n", "-8x");
	assert_int_equal(len, 3);
	ok(db_delete(&f->db, db_hash(&f->db, "a", 1), "a", 1, &removed));
	assert_true(removed);
	ok(db_delete(&f->db, db_hash(&f->db, "a", 1), "a", 1, &removed));
	assert_false(removed);
	check(f);
	drop_all(f);
}

static void test_expiry(void **state)
{
	struct fixture *f = make(1 << 20, 0);
	bool removed;

	ok(set(f, "a", "text", 2000));
	ok(set(f, "b", "7", 0));
	ok(set(f, "c", "text", 0));
	ok(db_expire(&f->db, db_hash(&f->db, "b", 1), find(f, "b"), 3000));
	ok(db_expire(&f->db, db_hash(&f->db, "c", 1), find(f, "c"), 2000));
	ok(db_expire(&f->db, db_hash(&f->db, "c", 1), find(f, "c"), 0));
	assert_int_equal(f->db.root->expiring, 2);
	check(f);
	ok(set(f, "a", "other", DB_KEEP_TTL));
	assert_int_equal(entry_expiry(find(f, "a")), 2000);
	assert_int_equal(*entry_integer(find(f, "b")), 7);
	f->db.now_ms = 2000;
	expect(f, "a", NULL);
	expect(f, "c", "text");
	ok(db_expire(&f->db, db_hash(&f->db, "c", 1), find(f, "c"), 2500));
	f->db.now_ms = 5000;
	ok(db_delete(&f->db, db_hash(&f->db, "c", 1), "c", 1, &removed));
	assert_false(removed);
	db_expire_some(&f->db, 1000000);
	assert_int_equal(pv_map_count(f->db.map), 0);
	assert_int_equal(f->db.expired, 3);
	check(f);
	drop_all(f);
}

/* Most keys go, and the store is compacted between two lives of the data layer. */
static void test_compacted(void **state)
{
	struct fixture *f = make(1 << 20, 0);
	struct pv_compact_report report;
	struct pv_info info;
	char key[32], value[600];
	bool removed;

	memset(value, 'v', sizeof(value) - 1);
	value[sizeof(value) - 1] = 0;
	for (int i = 0; i < 20000; i++) {
		snprintf(key, sizeof(key), "key:%d", i);
		ok(set(f, key, value + i % 500, i % 3 ? 0 : 100000));
	}
	for (int i = 0; i < 20000; i++) {
		snprintf(key, sizeof(key), "key:%d", i);
		if (i % 100)
			ok(db_delete(&f->db, db_hash(&f->db, key, strlen(key)), key, strlen(key), &removed));
	}
	db_close(&f->db);
	ok(pv_compact(f->store, NULL, &report));
	assert_true(report.segments_returned >= 2);
	ok(pv_info_get(f->store, &info));
	/* What a kexec would carry over is near what is used. */
	assert_true(info.bytes < 3 << 20);
	ok(db_open(&f->db, f->store));
	f->db.now_ms = 1000;
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 20000; i++) {
			snprintf(key, sizeof(key), "key:%d", i);
			expect(f, key, i % 100 ? NULL : value + i % 500);
		}
		check(f);
		close_all(f);
		open_all(f);
	}
	drop_all(f);
}

/* ---- many keys ---- */

static struct resp_arg arg(const char *s)
{
	return (struct resp_arg){.data = s, .len = strlen(s)};
}

static void test_twice_in_one_call(void **state)
{
	struct fixture *f = make(1 << 20, 0);
	struct resp_arg pairs[] = {arg("a"), arg("1x"), arg("b"), arg("2x"), arg("a"), arg("3x")};
	struct resp_arg keys[] = {arg("a"), arg("a"), arg("none"), arg("b"), arg("a")};
	size_t removed;

	ok(db_set_many(&f->db, pairs, 3));
	expect(f, "a", "3x");
	expect(f, "b", "2x");
	check(f);
	ok(db_delete_many(&f->db, keys, 5, &removed));
	assert_int_equal(removed, 2);
	assert_int_equal(pv_map_count(f->db.map), 0);
	check(f);
	drop_all(f);
}

static void test_undone_without_memory(void **state)
{
	struct fixture *f = make(1 << 20, 6 << 20);
	static struct resp_arg pairs[2 * 3000];
	static char keys[3000][16], value[8000];
	uint64_t before;

	memset(value, 'v', sizeof(value));
	for (size_t i = 0; i < 3000; i++) {
		snprintf(keys[i], sizeof(keys[i]), "key%zu", i);
		pairs[2 * i] = arg(keys[i]);
		pairs[2 * i + 1] = (struct resp_arg){.data = value, .len = sizeof(value)};
	}
	for (size_t i = 0; i < 3000; i += 3)
		ok(set(f, keys[i], "before", i % 2 ? 100000 : 0));
	before = pv_map_count(f->db.map);
	assert_int_equal(db_set_many(&f->db, pairs, 3000), -ENOSPC);
	assert_int_equal(pv_map_count(f->db.map), before);
	for (size_t i = 0; i < 3000; i++)
		expect(f, keys[i], i % 3 ? NULL : "before");
	assert_int_equal(f->db.root->expiring, 500);
	check(f);
	/* What it took is free again. */
	ok(db_set_many(&f->db, pairs, 200));
	check(f);
	drop_all(f);
}

/* Nothing is left for the record of a large removal: it is done all the same. */
static void test_removed_without_memory(void **state)
{
	struct fixture *f = make(256 << 10, 1 << 20);
	static struct resp_arg keys[20000];
	static char names[20000][16];
	size_t n = 0, removed;

	for (; n < 20000; n++) {
		snprintf(names[n], sizeof(names[n]), "key%zu", n);
		keys[n] = arg(names[n]);
		if (set(f, names[n], "a value of some length", 0))
			break;
	}
	assert_in_range(n, 1000, 19999);
	ok(db_delete_many(&f->db, keys, n, &removed));
	assert_int_equal(removed, n);
	assert_int_equal(pv_map_count(f->db.map), 0);
	check(f);
	drop_all(f);
}

/* ---- killed ---- */

/** What key i holds: the number of the operation that set it, or 0. Shared with the child. */
struct storm {
	uint64_t done; /* operations that returned */
	uint64_t value[KEYS];
};

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 31) * 0x7fb5d329728ea185;
	x = (x ^ x >> 27) * 0x81dadef4bc2dd44d;
	return x ^ x >> 33;
}

/** Operation number `op`: the same for whoever asks. */
struct operation {
	enum { SET_MANY, DELETE_MANY, CLEAR } kind;
	unsigned int n;
	unsigned int keys[MANY_MAX];
};

static void make_operation(uint64_t op, struct operation *o)
{
	uint64_t r = mix(op);

	o->kind = r % 100 < 65 ? SET_MANY : r % 100 < 99 ? DELETE_MANY : CLEAR;
	o->n = 1 + (unsigned int)(r >> 8) % (r & 0x80 ? 10 : MANY_MAX);
	for (unsigned int i = 0; i < o->n; i++)
		o->keys[i] = (unsigned int)(mix(r + i) % KEYS);
}

static void model(struct storm *s, uint64_t op)
{
	struct operation o;

	make_operation(op, &o);
	if (o.kind == CLEAR)
		memset(s->value, 0, sizeof(s->value));
	for (unsigned int i = 0; o.kind != CLEAR && i < o.n; i++)
		s->value[o.keys[i]] = o.kind == SET_MANY ? op : 0;
}

static int run(struct fixture *f, uint64_t op)
{
	static char names[MANY_MAX][16], value[200];
	struct resp_arg args[2 * MANY_MAX];
	struct operation o;
	size_t removed;

	make_operation(op, &o);
	snprintf(value, sizeof(value), "%-*" PRIu64, (int)(op % 150), op);
	for (unsigned int i = 0; i < o.n; i++) {
		unsigned int at = o.kind == SET_MANY ? 2 * i : i;

		snprintf(names[i], sizeof(names[i]), "key%u", o.keys[i]);
		args[at] = arg(names[i]);
		if (o.kind == SET_MANY)
			args[at + 1] = arg(value);
	}
	switch (o.kind) {
	case SET_MANY:
		return db_set_many(&f->db, args, o.n);
	case DELETE_MANY:
		return db_delete_many(&f->db, args, o.n, &removed);
	default:
		return db_clear(&f->db);
	}
}

static void storm_child(struct fixture *f, volatile struct storm *s, uint64_t seed)
{
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
	struct itimerspec when = {.it_value = {.tv_nsec = 100000 + (long)(seed % 3000000)}};
	timer_t timer;

	open_all(f);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &when, NULL))
		_exit(1);
	for (;;) {
		db_tidy(&f->db);
		if (run(f, s->done + 1))
			_exit(2);
		s->done++;
	}
}

static bool same(struct fixture *f, const struct storm *s)
{
	for (unsigned int i = 0; i < KEYS; i++) {
		char key[16];
		struct entry *e;
		uint64_t got = 0;

		snprintf(key, sizeof(key), "key%u", i);
		e = find(f, key);
		if (e && entry_is_integer(e))
			got = (uint64_t)*entry_integer(e);
		else if (e)
			got = strtoull(entry_value(e), NULL, 10);
		if (got != s->value[i])
			return false;
	}
	return true;
}

static void test_kill_storm(void **state)
{
	struct storm *s =
		mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct fixture *f = make(16 << 20, 0); /* no growth: its segments would be the child's */
	uint64_t modelled = 0, unacknowledged = 0, batches = 0;

	for (uint64_t cycle = 0; cycle < 400; cycle++) {
		int status;
		pid_t pid;

		close_all(f);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			storm_child(f, s, mix(cycle));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		open_all(f);
		batches += f->db.recovered_batch;
		while (db_tidy(&f->db))
			;
		check(f);
		for (; modelled < s->done; modelled++)
			model(s, modelled + 1);
		if (!same(f, s)) {
			/* The one that was running must be there as a whole. */
			model(s, ++modelled);
			if (!same(f, s))
				fail_msg("after kill %" PRIu64 ": neither %" PRIu64
					 " operations nor one more",
					 cycle, modelled - 1);
			s->done = modelled;
			unacknowledged++;
		}
	}
	print_message("%" PRIu64 " operations, %" PRIu64 " batches recovered, %" PRIu64
		      " not acknowledged but in effect\n",
		      modelled, batches, unacknowledged);
	assert_true(batches > 0);
	drop_all(f);
	munmap(s, sizeof(*s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_expiry),
		cmocka_unit_test(test_compacted),
		cmocka_unit_test(test_twice_in_one_call),
		cmocka_unit_test(test_undone_without_memory),
		cmocka_unit_test(test_removed_without_memory),
		cmocka_unit_test(test_kill_storm),
	};

	return cmocka_run_group_tests_name("kvdb", tests, NULL, NULL);
}
