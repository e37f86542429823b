/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The map's own objects after random operations: what follows references, a full check or a move of the
 * store, finds in them live objects or nothing, also in the parts that the map does not use.
 */
#include <preserve/map.h>

#include "references.h"
#include "support.h"

#define KEYS 3000u

struct entry {
	uint64_t number;
};

static const struct pv_typedef entry_type = PV_TYPE_PLAIN(struct entry, "entry", 1);

static const void *key_of(const void *entry, size_t *bytes)
{
	*bytes = sizeof(uint64_t);
	return &((const struct entry *)entry)->number;
}

/* Many keys in few buckets: chains with overflow buckets, and splits that one intent cannot hold. */
static uint64_t crowded(const void *key, size_t bytes, uint64_t seed)
{
	uint64_t number = *(const uint64_t *)key;

	(void)bytes;
	(void)seed;
	return number % 3 ? number * 0x9e3779b97f4a7c15ull >> 8 : number << 40 | (number % 5) << 4;
}

struct world {
	struct keeper *k;
	struct pv_options o;
	struct pv_store *s;
	struct pv_map *map;
	pv_type_t type;
	uint64_t (*hash)(const void *, size_t, uint64_t);
	uint64_t followed;
};

static void open_map(struct world *w)
{
	const struct pv_map_options o = {.size = sizeof(o), .key = key_of, .hash = w->hash};

	assert_ok(pv_type_register(w->s, &entry_type, &w->type));
	assert_ok(pv_map_open(w->s, "map", &o, &w->map));
}

static void follow(struct world *w)
{
	struct references r;

	if (!references_sound(w->s, &r))
		fail_msg("%s", r.wrong);
	w->followed += r.followed;
}

static void put_or_remove(struct world *w, uint64_t key, bool put)
{
	uint64_t hash = pv_map_hash(w->map, &key, sizeof(key));
	struct entry *e;
	int err;

	if (put) {
		e = reserve_ok(w->s, w->type, sizeof(*e));
		e->number = key;
		assert_ok(pv_map_put(w->map, hash, e, 0));
	} else {
		err = pv_map_remove(w->map, hash, &key, sizeof(key));
		assert_true(err == 0 || err == -ENOENT);
	}
}

/* The process dies between two operations; what follows references comes before the map is opened. */
static void die(struct world *w)
{
	pv_map_close(w->map);
	keeper_crash(w->k, &w->s);
	w->s = store_attach(w->k, &w->o);
	follow(w);
	open_map(w);
	follow(w);
}

static void random_operations(struct world *w, const char *name)
{
	uint64_t r = random_seed_from_env(name), problems;
	struct pv_map_info info;

	w->o = small_options(w->k);
	w->o.segment_bytes = 1 << 20;
	w->o.window_bytes = 1 << 28;
	w->s = store_create(w->k, &w->o);
	open_map(w);
	for (int phase = 0; phase < 60; phase++) {
		unsigned int puts = phase % 6 < 3 ? 85 : 10; /* of a hundred: it grows, it shrinks */

		for (int i = 0; i < 1500; i++)
			put_or_remove(w, random_below(&r, KEYS), random_below(&r, 100) < puts);
		follow(w);
		if (phase % 7 == 3)
			die(w);
		if (phase % 11 == 5)
			assert_ok(pv_map_clear(w->map, NULL, 0));
		if (phase % 2)
			pv_map_tidy(w->map, random_below(&r, 100));
		follow(w);
	}
	pv_map_info_get(w->map, &info);
	assert_ok(pv_map_check(w->map, NULL, NULL, &problems));
	assert_int_equal(problems, 0);
	store_sound(w->s);
	pv_map_close(w->map);
	assert_ok(pv_close(w->s));
	assert_true(w->followed > 10000);
}

static void references_of_a_map(void **state)
{
	struct world w = {.k = *state};

	random_operations(&w, "references_of_a_map");
}

static void references_of_a_crowded_map(void **state)
{
	struct world w = {.k = *state, .hash = crowded};

	random_operations(&w, "references_of_a_crowded_map");
}

/* Chunks of 2^14 buckets and the directories above them. */
static void references_of_a_large_map(void **state)
{
	struct world w = {.k = *state};
	struct pv_map_info info;

	w.o = small_options(w.k);
	w.o.segment_bytes = 16 << 20;
	w.o.window_bytes = 1ull << 30;
	w.s = store_create(w.k, &w.o);
	open_map(&w);
	for (uint64_t i = 0; i < 110000; i++)
		put_or_remove(&w, i, true);
	pv_map_info_get(w.map, &info);
	assert_true(info.buckets > 1u << 14);
	die(&w);
	for (uint64_t i = 0; i < 109000; i++)
		put_or_remove(&w, i, false);
	die(&w);
	assert_true(w.followed > 110000);
	pv_map_close(w.map);
	assert_ok(pv_close(w.s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(references_of_a_map),
		with_keeper(references_of_a_crowded_map),
		with_keeper(references_of_a_large_map),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
