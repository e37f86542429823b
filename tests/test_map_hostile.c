/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Maps whose tables say what is not true: every word that leads somewhere is made to lead nowhere, to the
 * edge of what is mapped, back to where it stands, or to something else. Whatever pv_map_open() takes can be
 * searched, walked, checked and changed without a fault. (fuzz_image.c does the same at random.)
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "map_layout.h"
#include "map_support.h"

enum { KEYS = 40, BUCKETS = 4 };

struct entry {
	uint64_t key_bytes;
	uint64_t key;
};

static const void *key_of(const void *object, size_t *bytes)
{
	const struct entry *e = object;

	*bytes = e->key_bytes;
	return &e->key;
}

/* Looks at both ends of the key. Four buckets have everything, so that each has an overflow bucket. */
static uint64_t crowd(const void *key, size_t bytes, uint64_t seed)
{
	const uint8_t *p = key;
	uint64_t number = bytes ? p[0] + 256ull * p[bytes - 1] : 0;

	return number % BUCKETS | number * 0x9e3779b97f4a7c15ull >> 49 << 49;
}

static const struct pv_map_options options = {
	.size = sizeof(options), .key = key_of, .hash = crowd, .entry_bytes = sizeof(struct entry)};

static int put_entry(struct fixture *f, struct pv_map *map, uint64_t key)
{
	struct entry *e;
	int err = pv_reserve(f->store, f->type, sizeof(struct item), (void **)&e);

	if (err)
		return err;
	*e = (struct entry){8, key};
	err = pv_map_put(map, pv_map_hash(map, &key, 8), e, key % 2 ? 0 : PV_MAP_MARK);
	if (err)
		pv_cancel(f->store, e);
	return err;
}

static struct pv_map *make_map(struct fixture *f)
{
	struct pv_map *map;

	ok(pv_map_open(f->store, "hostile", &options, &map));
	for (uint64_t key = 0; key < KEYS; key++)
		ok(put_entry(f, map, key));
	return map;
}

static int read_entry(void *ctx, void *object, bool mark)
{
	*(uint64_t *)ctx += ((const volatile struct entry *)object)->key;
	return 0;
}

static void *find_key(struct pv_map *map, uint64_t key)
{
	struct entry *e = pv_map_find(map, pv_map_hash(map, &key, 8), &key, 8);

	assert_true(!e || e->key == key);
	return e;
}

/* All that reads. Returns the number of problems. */
static uint64_t look_all_over(struct pv_map *map)
{
	uint64_t sum = 0, cursor = 0, position = 0, problems;
	struct pv_map_info info;
	unsigned int steps = 0;

	for (uint64_t key = 0; key < KEYS; key++) {
		uint64_t hash = pv_map_hash(map, &key, 8);

		pv_map_prefetch(map, hash);
		pv_map_prefetch_entry(map, hash, true);
		find_key(map, key);
	}
	pv_map_info_get(map, &info);
	if (info.buckets < 1000) /* else the walk takes its time */
		pv_map_each(map, read_entry, &sum);
	do
		cursor = pv_map_scan(map, cursor, read_entry, &sum);
	while (cursor && ++steps < 100);
	do
		pv_map_each_marked(map, &position, 16, read_entry, &sum);
	while (position && ++steps < 200);
	if (info.buckets >= 1000)
		return 1;
	ok(pv_map_check(map, NULL, NULL, &problems));
	return problems;
}

/* Changes, which may be refused. */
static void change_all_over(struct fixture *f, struct pv_map *map)
{
	for (uint64_t key = 0; key < KEYS; key += 2)
		pv_map_remove(map, pv_map_hash(map, &key, 8), &key, 8);
	for (uint64_t key = KEYS; key < KEYS + 100; key++)
		put_entry(f, map, key);
	for (uint64_t key = 0; key < KEYS + 100; key++)
		pv_map_remove(map, pv_map_hash(map, &key, 8), &key, 8);
}

static struct entry *map_entry(const struct pv_map *map)
{
	return map_word_entry(map_bucket(map, map->rec, 1)->words[0]);
}

/* The words of bucket 1 and what hangs on it, and of the table. */
static unsigned int words_of(struct pv_map *map, uint64_t *out[])
{
	struct bucket_rec *b = map_bucket(map, map->rec, 1);
	unsigned int n = 0;

	assert_non_null(b->next);
	out[n++] = &b->words[0];
	out[n++] = &b->words[6];
	out[n++] = (uint64_t *)(void *)&b->next;
	out[n++] = &b->next->words[0];
	out[n++] = (uint64_t *)(void *)&b->next->next;
	out[n++] = &map_entry(map)->key_bytes;
	out[n++] = &map->rec->nbuckets;
	out[n++] = (uint64_t *)(void *)&map->rec->small[0];
	return n;
}

static uint64_t value_of(const struct pv_map *map, unsigned int i, const uint64_t *word)
{
	const struct pv_mapped *m = map->mapped;
	uint64_t tag = *word & ~(MAP_MARK - 1), end = m->base + m->bytes;
	const uint64_t values[] = {
		~0ull,	     16,		1ull << 40,	       tag | 16,
		tag | end,   tag | (end - 16),	tag | (end - 8),       tag | (m->base - 16),
		tag | (end + (1 << 20)), tag | ((uintptr_t)word & ~15ull), (uintptr_t)word & ~15ull,
		end - 64,    end - 32,		(uintptr_t)map->rec,   tag | (MAP_MARK - 16),
		(uintptr_t)map->rec->small[0] + 64, (uintptr_t)map->rec->small[0] + 1, 0,
	};

	return i < sizeof(values) / sizeof(values[0]) ? values[i] : UINT64_MAX / 3;
}

enum { VALUES = 19, WORDS_MAX = 16 };

static void test_reads(void **state)
{
	struct fixture *f = make(NULL);
	struct pv_map *map = make_map(f);
	uint64_t *words[WORDS_MAX], noticed = 0;
	unsigned int n = words_of(map, words);
	const uint64_t *length = &map_entry(map)->key_bytes;

	assert_int_equal(look_all_over(map), 0);
	for (unsigned int i = 0; i < n; i++) {
		for (unsigned int v = 0; v < VALUES; v++) {
			uint64_t was = *words[i], value = value_of(map, v, words[i]);

			*words[i] = value;
			/* With some lengths the hash is the same, and all fits. */
			noticed += look_all_over(map) != 0 || value == was ||
				   words[i] == length;
			/* Keys of other buckets are where they were. */
			if (words[i] != &map->rec->nbuckets && words[i] != (void *)&map->rec->small[0])
				for (uint64_t key = 0; key < KEYS; key++)
					assert_true(key % BUCKETS == 1 || find_key(map, key));
			*words[i] = was;
		}
	}
	assert_int_equal(noticed, n * VALUES);
	assert_int_equal(look_all_over(map), 0);
	pv_map_close(map);
	drop_all(f);
}

static void test_changes(void **state)
{
	for (unsigned int i = 0, n = 1; i < n; i++) {
		for (unsigned int v = 0; v < VALUES; v++) {
			struct fixture *f = make(NULL);
			struct pv_map *map = make_map(f);
			uint64_t *words[WORDS_MAX];

			n = words_of(map, words);
			*words[i] = value_of(map, v, words[i]);
			change_all_over(f, map);
			look_all_over(map);
			/* The store is as sound as any. */
			for (unsigned int k = 0; k < 50; k++)
				put(f, k, k);
			pv_map_close(map);
			drop_all(f);
		}
	}
}

/* A table of more than 2^14 buckets has directories. */
static void test_directories(void **state)
{
	struct fixture *f = make(NULL);
	uint64_t *words[3], n = 0;

	while (f->map->rec->nbuckets <= 1u << MAP_CHUNK_BITS)
		put(f, n++, 0);
	words[0] = (uint64_t *)(void *)&f->map->rec->top;
	words[1] = (uint64_t *)(void *)&f->map->rec->top[0];
	words[2] = (uint64_t *)(void *)&f->map->rec->top[0][1];
	for (unsigned int i = 0; i < 3; i++) {
		for (unsigned int v = 0; v < VALUES; v++) {
			uint64_t was = *words[i], found = 0;

			*words[i] = value_of(f->map, v, words[i]);
			for (uint64_t k = 0; k < n; k += 100)
				found += find(f, k) != NULL;
			assert_true(found > 0); /* those of the other chunks */
			*words[i] = was;
		}
	}
	check(f);
	drop_all(f);
}

static void refused(struct fixture *f, const char *why)
{
	struct pv_map *map;

	assert_int_equal(pv_map_open(f->store, "hostile", &options, &map), -EBADMSG);
	assert_non_null(strstr(pv_last_error(), why));
}

static void test_open_refuses(void **state)
{
	struct fixture *f = make(NULL);
	struct pv_map *map = make_map(f);
	struct map_root_rec *root = map->root;
	struct map_rec *rec = map->rec, *doomed, kept = *rec;

	pv_map_close(map);
	rec->nbuckets = 15;
	refused(f, "impossible number of buckets");
	rec->nbuckets = 1 << 20; /* more than the store has room for */
	refused(f, "impossible number of buckets");
	*rec = kept;
	rec->cleaning = 17;
	refused(f, "impossible split");
	*rec = kept;
	rec->small[0] = (void *)rec;
	refused(f, "the chunk of this bucket is missing");
	*rec = kept;
	root->current = (void *)(f->map->mapped->base + f->map->mapped->bytes);
	refused(f, "no table at this address");
	root->current = rec;
	root->doomed = rec;
	refused(f, "the table is said to be cleared");
	root->doomed = NULL;
	ok(pv_map_open(f->store, "hostile", &options, &map));
	ok(pv_map_clear(map, NULL, 0));
	doomed = root->doomed;
	pv_map_close(map);
	doomed->nbuckets = 0;
	doomed->next = doomed;
	refused(f, "too many cleared tables");
	drop_all(f);
}

/* What is mapped can be read to the last byte, also where a segment ends within a granule. */
static void test_mapped(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	const struct pv_mapped *m;
	uint64_t bytes, first, k = 0;

	f->limit_bytes = (3 << 20) + (200 << 10);
	open_all(f);
	m = pv_mapped_get(f->store);
	first = m->bytes;
	assert_true(pv_mapped_has(m, f->map->rec, sizeof(*f->map->rec)));
	while (try_put(f, k, k) == 0)
		k++;
	bytes = m->bytes;
	assert_true(bytes > first && bytes % (1 << 20) != 0);
	for (uint64_t at = 0; at < bytes; at += 4096)
		(void)*(const volatile uint8_t *)(m->base + at);
	assert_true(pv_mapped_has(m, (void *)m->base, bytes));
	assert_false(pv_mapped_has(m, (void *)m->base, bytes + 1));
	assert_false(pv_mapped_has(m, (void *)(m->base + bytes), 1));
	assert_false(pv_mapped_has(m, (void *)(m->base - 1), 1));
	assert_false(pv_mapped_has(m, (void *)(m->base + 1), SIZE_MAX));
	for (uint64_t i = 0; i < k; i++)
		ok(take(f, i));
	ok(pv_trim(f->store, NULL));
	assert_true(m->bytes < bytes);
	drop_all(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads),	   cmocka_unit_test(test_changes),
		cmocka_unit_test(test_directories), cmocka_unit_test(test_open_refuses),
		cmocka_unit_test(test_mapped),
	};

	setenv("PV_MISUSE", "error", 1); /* what is damaged leads to wrong pointers */
	return cmocka_run_group_tests_name("map-hostile", tests, NULL, NULL);
}
