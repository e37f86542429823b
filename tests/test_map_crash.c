/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The hash map when things end early: cleared and closed before it was tidied, out of memory,
 * killed at random instants, damaged.
 */
#include "map_support.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---- clearing ---- */

static void test_clear(void **state)
{
	enum { KEYS = 110000 };
	struct fixture *f = make(NULL);
	uint64_t before = live_objects(f), hash = hash_of(f, 1);
	struct pv_map_info info;

	for (uint64_t round = 0; round < 2; round++) {
		for (uint64_t i = 0; i < KEYS; i++)
			put(f, i, i);
		ok(pv_map_clear(f->map, NULL, 0));
		assert_int_equal(pv_map_count(f->map), 0);
		assert_null(find(f, 1));
		assert_int_equal(hash_of(f, 1), hash);
		put(f, 1, 1);
		assert_true(pv_map_tidy(f->map, 100));
		reopen(f);
		assert_int_equal(pv_map_count(f->map), 1);
		ok(take(f, 1));
	}
	pv_map_info_get(f->map, &info);
	assert_true(info.clearing > 2 << 14);
	while (pv_map_tidy(f->map, 1000))
		;
	check(f);
	assert_int_equal(live_objects(f), before);
	drop_all(f);
}

/* ---- out of memory ---- */

static void test_out_of_memory(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	uint64_t n = 0, removed = 0;
	int err;

	f->segment_bytes = 256 << 10;
	f->limit_bytes = 2 << 20;
	open_all(f);
	do {
		err = try_put(f, n, n);
		n += !err;
	} while (!err);
	assert_int_equal(err, -ENOSPC);
	assert_true(n > 10000);
	check(f);
	reopen(f);
	for (uint64_t i = 0; i < n; i++)
		assert_int_equal(find(f, i)->value, i);
	for (; removed < n / 2; removed++)
		ok(take(f, removed));
	check(f);
	for (uint64_t i = 0; i < removed / 2; i++)
		put(f, i, i);
	check(f);
	/* Full again: emptying it needs no memory, not even right after an opening. */
	for (n = 0; !try_put(f, 1000000 + n, n);)
		n++;
	reopen(f);
	ok(pv_map_clear(f->map, NULL, 0));
	while (pv_map_tidy(f->map, 1000))
		;
	check(f);
	for (uint64_t i = 0; i < 10000; i++)
		put(f, i, i);
	check(f);
	drop_all(f);
}

/* ---- killed ---- */

enum { STORM_KEYS = 3000, STORM_CYCLES = 150 };

/** Shared with the child: what it has been told is done, and what it is about to do. */
struct storm {
	uint64_t value[STORM_KEYS]; /* acknowledged; 0: absent */
	uint64_t pending_key;	    /* STORM_KEYS: none; STORM_KEYS + 1: clear */
	uint64_t pending_value;
};

static void storm_child(struct fixture *f, volatile struct storm *s, uint64_t seed)
{
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
	struct itimerspec when = {.it_value = {.tv_nsec = 1 + (long)(seed % 4000000)}};
	timer_t timer;

	random_state = seed | 1;
	open_all(f);
	if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &when, NULL))
		_exit(1);
	for (;;) {
		uint64_t key = random_u64() % STORM_KEYS, value = random_u64() | 1;

		if (random_u64() % 4000 == 0) {
			s->pending_key = STORM_KEYS + 1;
			if (pv_map_clear(f->map, NULL, 0))
				_exit(2);
			for (key = 0; key < STORM_KEYS; key++)
				s->value[key] = 0;
			s->pending_key = STORM_KEYS;
			continue;
		}
		pv_map_tidy(f->map, 1);
		if (random_u64() % 100 < (seed % 2 ? 30u : 70u))
			value = 0;
		s->pending_value = value;
		s->pending_key = key;
		if (value ? try_put(f, key, value) : take(f, key) == -EINVAL)
			_exit(3);
		s->value[key] = value;
		s->pending_key = STORM_KEYS;
	}
}

static void storm_verify(struct fixture *f, struct storm *s)
{
	bool cleared = s->pending_key == STORM_KEYS + 1 && pv_map_count(f->map) == 0;

	check(f);
	for (uint64_t key = 0; key < STORM_KEYS; key++) {
		struct item *item = find(f, key);
		uint64_t got = item ? item->value : 0;

		if (got != s->value[key] && !cleared &&
		    !(s->pending_key == key && got == s->pending_value))
			fail_msg("key %u: %lx, acknowledged was %lx", (unsigned int)key, got,
				 s->value[key]);
		s->value[key] = got;
	}
	s->pending_key = STORM_KEYS;
}

static void test_kill_storm(void **state)
{
	struct storm *s =
		mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct fixture *f = calloc(1, sizeof(*f));

	s->pending_key = STORM_KEYS;
	f->segment_bytes = 16 << 20; /* no growth: the parent would miss the child's segments */
	open_all(f);
	for (uint64_t cycle = 0; cycle < STORM_CYCLES; cycle++) {
		uint64_t seed = random_u64();
		int status;
		pid_t pid;

		close_all(f);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0)
			storm_child(f, s, seed);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		open_all(f);
		while (pv_map_tidy(f->map, 1000))
			;
		storm_verify(f, s);
	}
	drop_all(f);
	munmap(s, sizeof(*s));
}

/* ---- damaged ---- */

/* Words of the root object and of the table's record, as docs/FORMAT.md names them. */
enum { ROOT_CURRENT = 0, ROOT_DOOMED = 1 };
enum { REC_NBUCKETS = 2, REC_CLEANING = 3, REC_TOP = 5, REC_SMALL = 6 };

static void refuse(struct fixture *f, uint64_t *word, uint64_t value)
{
	const struct pv_map_options o = {.size = sizeof(o), .key = f->map_options.key};
	uint64_t was = *word;
	struct pv_map *map;

	*word = value;
	assert_int_equal(pv_map_open(f->store, "map", &o, &map), -EBADMSG);
	assert_non_null(strstr(pv_last_error(), "map map"));
	*word = was;
}

static void test_damaged(void **state)
{
	struct fixture *f = make(NULL);
	uint64_t *root, *rec, *top;
	void *object;
	pv_type_t type;
	const struct pv_field pointers[] = {
		{.name = "current", .kind = PV_FIELD_POINTER, .count = 1, .stride = 8},
		{.name = "doomed", .kind = PV_FIELD_POINTER, .offset = 8, .count = 1, .stride = 8}};
	const struct pv_typedef root_type = {.name = "pv-map-root",
					     .version = 1,
					     .bytes = 32,
					     .fields = pointers,
					     .nfields = 2};

	for (uint64_t i = 0; i < 110000; i++)
		put(f, i, i);
	ok(pv_type_register(f->store, &root_type, &type));
	ok(pv_root(f->store, "map", type, 32, &object, NULL));
	root = object;
	rec = (uint64_t *)root[ROOT_CURRENT];
	top = (uint64_t *)rec[REC_TOP];
	pv_map_close(f->map);
	refuse(f, &root[ROOT_CURRENT], 8);
	refuse(f, &root[ROOT_CURRENT], root[ROOT_CURRENT] + 16);
	refuse(f, &root[ROOT_DOOMED], 0x7fffffffffff);
	refuse(f, &rec[REC_NBUCKETS], 0);
	refuse(f, &rec[REC_NBUCKETS], 15);
	refuse(f, &rec[REC_NBUCKETS], 1ull << 60);
	refuse(f, &rec[REC_NBUCKETS], rec[REC_NBUCKETS] + (1u << 14));
	refuse(f, &rec[REC_CLEANING], rec[REC_NBUCKETS] + 1);
	refuse(f, &rec[REC_TOP], 0);
	refuse(f, &rec[REC_SMALL + 2], rec[REC_SMALL]);
	refuse(f, &rec[REC_SMALL + 3], 0);
	refuse(f, &top[0], 0);
	refuse(f, (uint64_t *)top[0] + 1, rec[REC_SMALL]);
	ok(pv_map_open(f->store, "map", &f->map_options, &f->map));
	check(f);
	drop_all(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_clear),
		cmocka_unit_test(test_out_of_memory),
		cmocka_unit_test(test_kill_storm),
		cmocka_unit_test(test_damaged),
	};

	return cmocka_run_group_tests_name("map-crash", tests, NULL, NULL);
}
