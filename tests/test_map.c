/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The hash map against a plain model, with bad hashes, with changes of many steps, and walked while
 * it changes size. The store's own checker and the map's run after each, and what is live in the
 * store must be what the map holds: a leak is an error.
 */
#include "map_support.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- tests ---- */

static void test_against_model(void **state)
{
	enum { KEYS = 4000, STEPS = 200000 };
	struct fixture *f = make(NULL);
	static uint64_t model[KEYS];
	uint64_t count = 0;

	memset(model, 0, sizeof(model));
	for (uint64_t step = 0; step < STEPS; step++) {
		/* The share of removals goes up and down, so that the table grows and shrinks. */
		uint64_t number = random_u64() % KEYS, removals = step / 20000 % 2 ? 80 : 20;
		struct item *item = find(f, number);

		assert_int_equal(!!item, !!model[number]);
		if (item)
			assert_int_equal(item->value, model[number]);
		if (random_u64() % 100 < removals) {
			assert_int_equal(take(f, number), item ? 0 : -ENOENT);
			count -= !!item;
			model[number] = 0;
		} else {
			put(f, number, step + 1);
			count += !item;
			model[number] = step + 1;
		}
		assert_int_equal(pv_map_count(f->map), count);
		if (step % 20000 == 9999)
			check(f);
		if (step % 20000 == 19999)
			reopen(f);
	}
	drop_all(f);
}

static uint64_t buckets(struct fixture *f)
{
	struct pv_map_info info;

	pv_map_info_get(f->map, &info);
	return info.buckets;
}

/* Past 2^14 buckets, where directories begin, and back to nothing without a leak. */
static void test_grows_and_shrinks(void **state)
{
	enum { KEYS = 150000 };
	struct fixture *f = make(NULL);
	uint64_t before = live_objects(f), at_start = buckets(f);

	for (uint64_t i = 0; i < KEYS; i++)
		put(f, i, i);
	assert_true(buckets(f) > 1 << 14);
	reopen(f);
	for (uint64_t i = 0; i < KEYS; i++)
		assert_non_null(find(f, i));
	assert_null(find(f, KEYS));
	check(f);
	for (uint64_t i = 0; i < KEYS; i++)
		ok(take(f, i));
	check(f);
	assert_int_equal(buckets(f), at_start);
	/* The directory and the list of directories stay; their chunks are gone. */
	assert_int_equal(live_objects(f), before + 2);
	drop_all(f);
}

static int count_overflows(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	if (bytes == 32)
		(*(uint64_t *)ctx)++;
	return 0;
}

/* 11 to 13 bytes an entry, overflow buckets included, wherever the table is between two powers. */
static void test_table_size(void **state)
{
	struct fixture *f = make(NULL);

	for (uint64_t i = 0; i < 100000; i++) {
		struct pv_map_info info;
		uint64_t overflows = 0;
		double each;

		put(f, i, i);
		if (i < 20000 || i % 5000)
			continue;
		pv_map_info_get(f->map, &info);
		/* Items take 32 bytes as well. */
		ok(pv_iterate(f->store, 0, count_overflows, &overflows));
		overflows -= info.count;
		each = (double)(info.table_bytes + overflows * 32) / (double)info.count;
		assert_true(each > 11 && each < 13.1);
	}
	drop_all(f);
}

static uint64_t same_hash(const void *key, size_t bytes, uint64_t seed)
{
	return 0x1234567890abcdef;
}

/* Few hashes, which split by bit 4, 5 ... of the number: many entries move in one split. */
static uint64_t lumpy_hash(const void *key, size_t bytes, uint64_t seed)
{
	uint64_t number = strtoull((const char *)key + 4, NULL, 16);

	return (number & 3) << 4 | number << 50;
}

static void fill_and_empty(struct fixture *f, uint64_t keys)
{
	for (uint64_t i = 0; i < keys; i++) {
		put(f, i, i);
		if (i % 16 == 0)
			check(f);
	}
	reopen(f);
	check(f);
	for (uint64_t i = 0; i < keys; i++)
		assert_int_equal(find(f, i)->value, i);
	for (uint64_t i = 0; i < keys; i++) {
		ok(take(f, i * 7 % keys));
		if (i % 16 == 0)
			check(f);
	}
	check(f);
}

static void test_one_hash_for_all(void **state)
{
	struct fixture *f = make(same_hash);

	fill_and_empty(f, 500);
	drop_all(f);
}

static void test_large_moves(void **state)
{
	struct fixture *f = make(lumpy_hash);

	fill_and_empty(f, 300);
	drop_all(f);
}

/* ---- changes of several steps ---- */

static void add_put(struct fixture *f, struct pv_map_change *c, uint64_t number, uint64_t value)
{
	struct item *item;

	ok(make_item(f, number, value, &item));
	ok(pv_map_change_put(c, hash_of(f, number), item, 0, NULL));
}

static int add_take(struct fixture *f, struct pv_map_change *c, uint64_t number)
{
	char key[16];

	name(key, number);
	return pv_map_change_remove(c, hash_of(f, number), key, strlen(key), 0, NULL);
}

/* All in one bucket, so that the steps have to see each other. */
static void test_steps_of_a_change(void **state)
{
	struct fixture *f = make(same_hash);
	struct pv_map_change c;
	struct item *item;

	for (uint64_t i = 0; i < 12; i++)
		put(f, i, i);
	pv_map_change_begin(f->map, &c);
	add_put(f, &c, 20, 20); /* needs a third overflow bucket soon */
	add_put(f, &c, 21, 21);
	add_put(f, &c, 3, 33);
	ok(add_take(f, &c, 11));
	ok(add_take(f, &c, 10));
	ok(add_take(f, &c, 0));
	add_put(f, &c, 10, 1010);
	ok(make_item(f, 3, 34, &item));
	assert_int_equal(pv_map_change_put(&c, hash_of(f, 3), item, 0, NULL), -EINVAL);
	assert_int_equal(add_take(f, &c, 20), -EINVAL);
	assert_int_equal(add_take(f, &c, 11), -ENOENT);
	ok(pv_cancel(f->store, item));
	assert_non_null(find(f, 11));
	ok(pv_map_change_commit(&c));
	check(f);
	assert_int_equal(pv_map_count(f->map), 12);
	assert_null(find(f, 0));
	assert_null(find(f, 11));
	assert_int_equal(find(f, 3)->value, 33);
	assert_int_equal(find(f, 10)->value, 1010);
	assert_int_equal(find(f, 21)->value, 21);
	reopen(f);
	check(f);
	drop_all(f);
}

static void test_abort(void **state)
{
	struct fixture *f = make(same_hash);
	struct pv_map_change c;
	struct pv_check_report before, after;

	for (uint64_t i = 0; i < 7; i++)
		put(f, i, i);
	ok(pv_check(f->store, NULL, &before));
	pv_map_change_begin(f->map, &c);
	for (uint64_t i = 4; i < 11; i++)
		add_put(f, &c, i, 100);
	ok(add_take(f, &c, 0));
	pv_map_change_abort(&c);
	ok(pv_check(f->store, NULL, &after));
	assert_int_equal(before.live_objects, after.live_objects);
	for (uint64_t i = 0; i < 7; i++)
		assert_int_equal(find(f, i)->value, i);
	check(f);
	drop_all(f);
}

static void test_full_change(void **state)
{
	struct fixture *f = make(NULL);
	struct pv_map_change c;
	struct item *item;
	uint64_t n = 0;
	int err;

	/* Ten replacements fit: what a client that sets ten keys at once needs. */
	for (uint64_t i = 0; i < 10; i++)
		put(f, i, 0);
	pv_map_change_begin(f->map, &c);
	for (uint64_t i = 0; i < 10; i++)
		add_put(f, &c, i, 1);
	ok(make_item(f, 99, 1, &item));
	assert_int_equal(pv_map_change_put(&c, hash_of(f, 99), item, 0, NULL), -E2BIG);
	assert_int_equal(add_take(f, &c, 99), -ENOENT);
	ok(pv_cancel(f->store, item));
	ok(pv_map_change_commit(&c));
	for (uint64_t i = 0; i < 10; i++)
		assert_int_equal(find(f, i)->value, 1);
	check(f);

	pv_map_change_begin(f->map, &c);
	do {
		ok(make_item(f, 1000 + n, 1, &item));
		err = pv_map_change_put(&c, hash_of(f, 1000 + n), item, 0, NULL);
		n += !err;
	} while (!err);
	assert_int_equal(err, -E2BIG);
	assert_true(n >= 12);
	ok(pv_cancel(f->store, item));
	ok(pv_map_change_commit(&c));
	assert_int_equal(pv_map_count(f->map), 10 + n);
	check(f);
	drop_all(f);
}

/* Replace and remember what was there, then put it back: what an undo needs. */
static void test_keep_and_live(void **state)
{
	struct fixture *f = make(NULL);
	struct pv_map_change c;
	struct item *item;
	void *old, *newer;

	put(f, 1, 1);
	ok(make_item(f, 1, 2, &item));
	pv_map_change_begin(f->map, &c);
	ok(pv_map_change_put(&c, hash_of(f, 1), item, PV_MAP_KEEP, &old));
	ok(pv_map_change_commit(&c));
	assert_int_equal(find(f, 1)->value, 2);
	pv_map_change_begin(f->map, &c);
	ok(pv_map_change_put(&c, hash_of(f, 1), old, PV_MAP_LIVE, &newer));
	assert_ptr_equal(newer, item);
	ok(pv_map_change_commit(&c));
	assert_int_equal(find(f, 1)->value, 1);
	check(f);
	drop_all(f);
}

/* ---- walking ---- */

static int see(void *ctx, void *entry, bool mark)
{
	((uint8_t *)ctx)[((struct item *)entry)->number]++;
	return 0;
}

/* Numbers below 500 are there all the time; others come and go during the scan. */
static void test_scan_sees_all(void **state)
{
	enum { FIXED = 500, OTHERS = 20000 };
	static uint8_t seen[FIXED + OTHERS];

	for (int direction = 0; direction < 3; direction++) {
		struct fixture *f = make(NULL);
		uint64_t cursor = 0, others = direction == 1 ? OTHERS : 0;

		memset(seen, 0, sizeof(seen));
		for (uint64_t i = 0; i < FIXED + others; i++)
			put(f, i, i);
		do {
			cursor = pv_map_scan(f->map, cursor, see, seen);
			assert_true(cursor < 1ull << 48);
			for (int i = 0; i < 60; i++) {
				bool grow = direction == 0 ||
					    (direction == 2 && others < 3000 && random_u64() % 2);

				if (grow && others < OTHERS)
					put(f, FIXED + others++, 0);
				else if (!grow && others)
					ok(take(f, FIXED + --others));
			}
			if (random_u64() % 32 == 0)
				reopen(f);
		} while (cursor);
		for (uint64_t i = 0; i < FIXED; i++)
			assert_true(seen[i]);
		drop_all(f);
	}
}

static void test_scan_once_when_still(void **state)
{
	static uint8_t seen[10000];
	struct fixture *f = make(NULL);
	uint64_t cursor = 0;

	memset(seen, 0, sizeof(seen));
	for (uint64_t i = 0; i < sizeof(seen); i++)
		put(f, i, i);
	do {
		cursor = pv_map_scan(f->map, cursor, see, seen);
	} while (cursor);
	ok(pv_map_each(f->map, see, seen));
	for (uint64_t i = 0; i < sizeof(seen); i++)
		assert_int_equal(seen[i], 2);
	drop_all(f);
}

static void test_marks(void **state)
{
	static uint8_t seen[1000];
	struct fixture *f = make(NULL);
	uint64_t position = 0;
	struct item *item;

	memset(seen, 0, sizeof(seen));
	for (uint64_t i = 0; i < 1000; i++) {
		ok(make_item(f, i, i, &item));
		ok(pv_map_put(f->map, hash_of(f, i), item, i % 3 ? 0 : PV_MAP_MARK));
	}
	for (uint64_t i = 0; i < 1000; i += 5) { /* toggled, so that marks change both ways */
		struct pv_map_change c;
		char key[16];

		name(key, i);
		pv_map_change_begin(f->map, &c);
		ok(pv_map_change_mark(&c, hash_of(f, i), key, strlen(key), i % 3));
		ok(pv_map_change_commit(&c));
	}
	reopen(f);
	do {
		ok(pv_map_each_marked(f->map, &position, 10, see, seen));
	} while (position);
	for (uint64_t i = 0; i < 1000; i++)
		assert_int_equal(seen[i], i % 5 ? !(i % 3) : !!(i % 3));
	check(f);
	drop_all(f);
}

/* ---- arguments ---- */

static void test_bad_options(void **state)
{
	struct fixture *f = make(NULL);
	struct pv_map_options o = {.size = sizeof(o)};
	const struct pv_typedef type = PV_TYPE_PLAIN(struct item, "item", 1);
	struct pv_map *map;
	pv_type_t id;
	void *root;

	assert_int_equal(pv_map_open(f->store, "other", &o, &map), -EINVAL);
	assert_non_null(strstr(pv_last_error(), "other"));
	o.key = f->map_options.key;
	o.size--;
	assert_int_equal(pv_map_open(f->store, "other", &o, &map), -EINVAL);
	o.size++;
	ok(pv_type_register(f->store, &type, &id));
	ok(pv_root(f->store, "no-map", id, sizeof(struct item), &root, NULL));
	assert_int_equal(pv_map_open(f->store, "no-map", &o, &map), -EEXIST);
	drop_all(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_model),
		cmocka_unit_test(test_grows_and_shrinks),
		cmocka_unit_test(test_table_size),
		cmocka_unit_test(test_one_hash_for_all),
		cmocka_unit_test(test_large_moves),
		cmocka_unit_test(test_steps_of_a_change),
		cmocka_unit_test(test_abort),
		cmocka_unit_test(test_full_change),
		cmocka_unit_test(test_keep_and_live),
		cmocka_unit_test(test_scan_sees_all),
		cmocka_unit_test(test_scan_once_when_still),
		cmocka_unit_test(test_marks),
		cmocka_unit_test(test_bad_options),
	};

	return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
