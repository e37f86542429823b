/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_map.c - crash sweeps of the hash map: creation, changes, splits and merges of buckets,
 * chains that overflow, clearing. The check walks the map's own objects (map_layout.h) as well, so
 * that an object of the map that is live but reached by nobody is found; and it follows all references
 * by the types' maps, also those in buckets that the map does not use.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <preserve/map.h>
#include "fixture.h"
#include "map_layout.h"
#include "../references.h"

struct item {
	uint64_t number, value;
};

struct map_fixture {
	struct fixture f; /* first: the callbacks of fixture.h get the same pointer */
	uint64_t (*hash)(const void *key, size_t key_bytes, uint64_t seed);
	unsigned items; /* at the start */
	struct pv_map *map;
	pv_type_t item_type;
};

static const void *key_of(const void *entry, size_t *bytes)
{
	*bytes = sizeof(uint64_t);
	return &((const struct item *)entry)->number;
}

/* Items from 1000 on all fall into bucket 0 of 16, and half of them into bucket 16. */
static uint64_t crowded_hash(const void *key, size_t bytes, uint64_t seed)
{
	uint64_t number = *(const uint64_t *)key;

	return number >= 1000 ? number << 4 | number << 52 : number * 0x9e3779b97f4a7c15ull >> 8;
}

static int open_map(struct map_fixture *m)
{
	const struct pv_map_options o = {.size = sizeof(o), .key = key_of, .hash = m->hash};
	const struct pv_typedef item = PV_TYPE_PLAIN(struct item, "item", 1);
	int rc = pv_map_open(m->f.store, "map", &o, &m->map);

	if (!rc)
		rc = pv_type_register(m->f.store, &item, &m->item_type);
	if (rc)
		crash_note("pv_map_open: %s", pv_last_error());
	return rc;
}

static int reopen(struct map_fixture *m)
{
	int rc;

	pv_map_close(m->map);
	m->map = NULL;
	pv_close(m->f.store);
	rc = fixture_open(&m->f, 0);
	return rc ? rc : open_map(m);
}

/* ---- operations ---- */

static uint64_t hash_of(const struct map_fixture *m, uint64_t number)
{
	return pv_map_hash(m->map, &number, sizeof(number));
}

static int make_item(struct map_fixture *m, uint64_t number, uint64_t value, struct item **out)
{
	void *object;
	int rc = pv_reserve(m->f.store, m->item_type, sizeof(struct item), &object);

	if (rc)
		return rc;
	*out = object;
	**out = (struct item){number, value};
	return 0;
}

static int put(struct map_fixture *m, uint64_t number, uint64_t value)
{
	struct item *item;
	int rc = make_item(m, number, value, &item);

	return rc ? rc : pv_map_put(m->map, hash_of(m, number), item, 0);
}

static int op_put(void *ctx, uintptr_t number)
{
	return put(ctx, number, number * 3 + 1);
}

static int op_put_again(void *ctx, uintptr_t number)
{
	return put(ctx, number, number * 5 + 2);
}

static int op_remove(void *ctx, uintptr_t number)
{
	struct map_fixture *m = ctx;
	uint64_t key = number;

	return pv_map_remove(m->map, hash_of(m, key), &key, sizeof(key));
}

static int op_mark(void *ctx, uintptr_t number)
{
	struct map_fixture *m = ctx;
	struct pv_map_change change;
	uint64_t key = number;
	int rc;

	pv_map_change_begin(m->map, &change);
	rc = pv_map_change_mark(&change, hash_of(m, key), &key, sizeof(key), true);
	return rc ? rc : pv_map_change_commit(&change);
}

/* Puts one in, replaces one, removes one. */
static int op_change(void *ctx, uintptr_t number)
{
	struct map_fixture *m = ctx;
	struct pv_map_change change;
	struct item *fresh, *other;
	uint64_t gone = number + 2;
	int rc = make_item(m, number, 7, &fresh);

	if (!rc)
		rc = make_item(m, number + 1, 8, &other);
	if (rc)
		return rc;
	pv_map_change_begin(m->map, &change);
	rc = pv_map_change_put(&change, hash_of(m, number), fresh, 0, NULL);
	if (!rc)
		rc = pv_map_change_put(&change, hash_of(m, number + 1), other, 0, NULL);
	if (!rc)
		rc = pv_map_change_remove(&change, hash_of(m, gone), &gone, sizeof(gone), 0, NULL);
	return rc ? rc : pv_map_change_commit(&change);
}

static int op_put_many(void *ctx, uintptr_t first)
{
	int rc = 0;

	for (uintptr_t i = 0; rc == 0 && i < 10; i++)
		rc = op_put(ctx, first + i);
	return rc;
}

static int op_remove_many(void *ctx, uintptr_t first)
{
	int rc = 0;

	for (uintptr_t i = 0; rc == 0 && i < 10; i++)
		rc = op_remove(ctx, first + i);
	return rc;
}

static int op_clear(void *ctx, uintptr_t unused)
{
	struct map_fixture *m = ctx;

	return pv_map_clear(m->map, NULL, 0);
}

static int op_tidy(void *ctx, uintptr_t buckets)
{
	struct map_fixture *m = ctx;

	pv_map_tidy(m->map, buckets);
	return 0;
}

static int op_open(void *ctx, uintptr_t unused)
{
	return open_map(ctx);
}

static int op_reopen_map(void *ctx, uintptr_t unused)
{
	return reopen(ctx);
}

/* The buckets must have become more, or fewer: else the scenario tests nothing. */
static int op_resized(void *ctx, uintptr_t expected)
{
	struct map_fixture *m = ctx;
	struct pv_map_info info;

	pv_map_info_get(m->map, &info);
	if (info.buckets == expected)
		return 0;
	crash_note("%" PRIu64 " buckets, %u were expected", info.buckets, (unsigned)expected);
	return -1;
}

/* ---- callbacks ---- */

static int set_up_store(void *ctx)
{
	struct map_fixture *m = ctx;

	m->map = NULL;
	return fixture_setup_empty(ctx);
}

static int set_up(void *ctx)
{
	struct map_fixture *m = ctx;
	int rc = set_up_store(ctx);

	if (!rc)
		rc = open_map(m);
	for (unsigned i = 0; rc == 0 && i < m->items; i++)
		rc = op_put(m, i);
	if (!rc)
		rc = reopen(m);
	return rc ? rc : reopen(m);
}

/* 60 of the items crowd in bucket 0. The split that follows is more than an intent can hold, and
 * goes by way of map_rec.cleaning. */
static int set_up_crowd(void *ctx)
{
	int rc = set_up(ctx);

	for (unsigned i = 0; rc == 0 && i < 60; i++)
		rc = op_put(ctx, 1000 + i);
	return rc;
}

/* Grown, then emptied again, so that merges are close. */
static int set_up_shrunk(void *ctx)
{
	struct map_fixture *m = ctx;
	int rc = set_up(ctx);

	for (unsigned i = m->items; rc == 0 && i > 36; i--)
		rc = op_remove(ctx, i - 1);
	return rc;
}

static int recover(void *ctx, const struct crash_image *image)
{
	struct map_fixture *m = ctx;
	struct references r;
	int rc;

	m->map = NULL;
	rc = fixture_recover(ctx, image);
	if (rc || !m->f.store || !fixture_has_root(&m->f, "map"))
		return rc;
	/* Before the map has had a chance to tidy up: what moves a store does not wait for it. */
	if (!references_sound(m->f.store, &r)) {
		crash_note("%s", r.wrong);
		return -1;
	}
	return open_map(m);
}

static void close_map(void *ctx)
{
	struct map_fixture *m = ctx;

	pv_map_close(m->map);
	m->map = NULL;
	fixture_close(ctx);
}

static void tell(void *ctx, const char *line)
{
	crash_note("%s", line);
}

struct sum {
	uint64_t hash, items;
};

static int add_item(void *ctx, void *entry, bool mark)
{
	const struct item *item = entry;
	struct sum *sum = ctx;
	uint64_t x = (item->number * 0x9e3779b97f4a7c15ull) ^ item->value;

	x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ull + mark;
	sum->hash += (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ull;
	sum->items++;
	return 0;
}

/* Objects that a table consists of, entries included. */
static uint64_t table_objects(const struct pv_map *map, const struct map_rec *rec)
{
	uint64_t n = 1;

	for (unsigned i = 0; i < MAP_SMALL; i++)
		n += rec->small[i] != NULL;
	for (uint64_t b = 0; b < rec->nbuckets; b++) {
		const struct bucket_rec *bucket = map_bucket(map, rec, b);
		const struct overflow_rec *o = bucket->next;

		for (unsigned i = 0; i < MAP_WORDS; i++)
			n += bucket->words[i] != 0;
		for (; o; o = o->next) {
			n++;
			for (unsigned i = 0; i < MAP_OVERFLOW_WORDS; i++)
				n += o->words[i] != 0;
		}
	}
	return n;
}

static uint64_t check(void *ctx)
{
	struct map_fixture *m = ctx;
	struct pv_check_report report;
	struct sum sum = {5, 0};
	uint64_t problems, expected;
	struct references r;

	if (!m->f.store)
		return 1;
	if (pv_check(m->f.store, PV_CHECK_TELL(tell, NULL), &report) != 0 || report.problems)
		return 0;
	if (!m->map)
		return 3; /* a store without a map */
	if (pv_map_check(m->map, tell, NULL, &problems) != 0 || problems)
		return 0;
	if (!references_sound(m->f.store, &r)) {
		crash_note("%s", r.wrong);
		return 0;
	}
	pv_map_each(m->map, add_item, &sum);
	expected = 1 + table_objects(m->map, m->map->root->current); /* and the root */
	for (const struct map_rec *d = m->map->root->doomed; d; d = d->next)
		expected += table_objects(m->map, d);
	if (expected != report.live_objects || sum.items != pv_map_count(m->map)) {
		crash_note("%" PRIu64 " live objects, %" PRIu64 " of them reached; %" PRIu64
			   " items of %" PRIu64,
			   report.live_objects, expected, sum.items, pv_map_count(m->map));
		return 0;
	}
	return sum.hash * 2 + 4 + (sum.items != 0);
}

static int probe(void *ctx)
{
	struct map_fixture *m = ctx;
	uint64_t before = check(ctx);
	int rc;

	if (!m->f.store || !m->map)
		return 0;
	rc = op_put(ctx, 500);
	if (!rc)
		rc = op_put_again(ctx, 500);
	if (!rc)
		rc = op_remove(ctx, 500);
	return rc || check(ctx) != before;
}

/* ---- scenarios ---- */

static struct map_fixture plain = {.f = {.lanes = 2, .segment_bytes = 128 << 10}, .items = 30};
static struct map_fixture full = {.f = {.lanes = 2, .segment_bytes = 128 << 10}, .items = 95};
static struct map_fixture crowd = {
	.f = {.lanes = 2, .segment_bytes = 128 << 10},
	.hash = crowded_hash,
	.items = 32,
};
static struct map_fixture large = {.f = {.lanes = 2, .segment_bytes = 128 << 10}, .items = 140};

static const struct crash_op create_ops[] = {
	{"create", op_open, 0, CRASH_ATOMIC, NULL},
	{"first item", op_put, 1, CRASH_ATOMIC, NULL},
};
static const struct crash_op change_ops[] = {
	{"put", op_put, 100, CRASH_ATOMIC, NULL},
	{"replace", op_put_again, 3, CRASH_ATOMIC, NULL},
	{"remove", op_remove, 4, CRASH_ATOMIC, NULL},
	{"mark", op_mark, 5, CRASH_ATOMIC, NULL},
	{"three at once", op_change, 6, CRASH_ATOMIC, NULL},
	{"open again", op_reopen_map, 0, CRASH_UNCHANGED, NULL},
	{"replace in a cold slab", op_put_again, 9, CRASH_ATOMIC, NULL},
};
static const struct crash_op grow_ops[] = {
	{"puts with splits", op_put_many, 200, CRASH_STEPS, NULL},
	{"two buckets more", op_resized, 18, CRASH_UNCHANGED, NULL},
	{"and more", op_put_many, 210, CRASH_STEPS, NULL},
	{"two buckets more", op_resized, 20, CRASH_UNCHANGED, NULL},
};
static const struct crash_op shrink_ops[] = {
	{"removes with merges", op_remove_many, 0, CRASH_STEPS, NULL},
	{"fewer buckets", op_resized, 17, CRASH_UNCHANGED, NULL},
	{"and more", op_remove_many, 10, CRASH_STEPS, NULL},
	{"as few as there can be", op_resized, 16, CRASH_UNCHANGED, NULL},
};
static const struct crash_op crowd_ops[] = {
	{"a chain gets longer", op_put, 1060, CRASH_ATOMIC, NULL},
	{"one leaves it", op_remove, 1003, CRASH_ATOMIC, NULL},
	{"it is split", op_put_many, 300, CRASH_STEPS, NULL},
	{"a bucket more", op_resized, 17, CRASH_UNCHANGED, NULL},
};
static const struct crash_op clear_ops[] = {
	{"clear", op_clear, 0, CRASH_ATOMIC, NULL},
	{"put", op_put, 1, CRASH_ATOMIC, NULL},
	{"tidy a little", op_tidy, 5, CRASH_UNCHANGED, NULL},
	{"open again", op_reopen_map, 0, CRASH_UNCHANGED, NULL},
	{"clear once more", op_clear, 0, CRASH_ATOMIC, NULL},
	{"tidy all", op_tidy, 1000, CRASH_UNCHANGED, NULL},
};

#define MAP_SCENARIO(title, set_up_as, operations, fixture)                                  \
	{                                                                                    \
		.name = (title), .ctx = (fixture), .ops = (operations),                      \
		.n_ops = sizeof(operations) / sizeof((operations)[0]), .setup = (set_up_as), \
		.recover = recover, .check = check, .close = close_map, .probe = probe,      \
		.any_order = true                                                            \
	}

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		MAP_SCENARIO("map-create", set_up_store, create_ops, &plain),
		MAP_SCENARIO("map-change", set_up, change_ops, &plain),
		MAP_SCENARIO("map-grow", set_up, grow_ops, &full),
		MAP_SCENARIO("map-shrink", set_up_shrunk, shrink_ops, &large),
		MAP_SCENARIO("map-crowd", set_up_crowd, crowd_ops, &crowd),
		MAP_SCENARIO("map-clear", set_up, clear_ops, &full),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
