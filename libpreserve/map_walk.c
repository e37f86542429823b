/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hash map: walking, clearing, checking.
 *
 * A cleared map is put on the list root.doomed as it is. pv_map_tidy() takes its last bucket off
 * again and again: an intent frees the entries and overflow buckets of one bucket and lowers
 * `nbuckets`, so that a crash anywhere leaves a table that is whole, but smaller.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "error.h"
#include "map_layout.h"

#define CURSOR_BITS 48u
#define FAR_AHEAD   4u /* buckets to prefetch ahead of a walk */

static int visit_bucket(const struct pv_map *map, uint64_t number, bool marked_only, pv_map_visit visit,
			void *ctx)
{
	const struct bucket_rec *b = map_bucket(map, map->rec, number);
	const struct overflow_rec *o;
	unsigned int nwords = MAP_WORDS;
	struct map_ring ring = {0};
	const uint64_t *words;

	if (!b)
		return 0;
	o = b->next;
	words = b->words;
	for (;;) {
		for (unsigned int i = 0; i < nwords; i++) {
			void *entry = map_word_entry(words[i]);
			int ret;

			if (!words[i])
				return 0;
			if (marked_only && !(words[i] & MAP_MARK))
				continue;
			if (!map_has(map, (uintptr_t)entry, map->entry_bytes))
				continue;
			ret = visit(ctx, entry, words[i] & MAP_MARK);
			if (ret)
				return ret;
		}
		if (!map_goes_on(map, &ring, o))
			return 0;
		words = o->words;
		nwords = MAP_OVERFLOW_WORDS;
		o = o->next;
	}
}

static void prefetch_entries(const struct bucket_rec *b)
{
	for (unsigned int i = 0; b && i < MAP_WORDS && b->words[i]; i++)
		__builtin_prefetch(map_word_entry(b->words[i]));
}

int pv_map_each(const struct pv_map *map, pv_map_visit visit, void *ctx)
{
	const struct map_rec *rec = map->rec;

	for (uint64_t b = 0; b < rec->nbuckets; b++) {
		int ret;

		if (b + FAR_AHEAD < rec->nbuckets)
			prefetch_entries(map_bucket(map, rec, b + FAR_AHEAD));
		ret = visit_bucket(map, b, false, visit, ctx);
		if (ret)
			return ret;
	}
	return 0;
}

int pv_map_each_marked(const struct pv_map *map, uint64_t *position, uint64_t buckets,
		       pv_map_visit visit, void *ctx)
{
	const struct map_rec *rec = map->rec;
	uint64_t b = *position;
	int ret = 0;

	for (; b < rec->nbuckets && buckets && !ret; b++, buckets--)
		ret = visit_bucket(map, b, true, visit, ctx);
	*position = b < rec->nbuckets ? b : 0;
	return ret;
}

static uint64_t reverse_bits(uint64_t x)
{
	x = (x >> 1 & 0x5555555555555555) | (x & 0x5555555555555555) << 1;
	x = (x >> 2 & 0x3333333333333333) | (x & 0x3333333333333333) << 2;
	x = (x >> 4 & 0x0f0f0f0f0f0f0f0f) | (x & 0x0f0f0f0f0f0f0f0f) << 4;
	return __builtin_bswap64(x);
}

uint64_t pv_map_scan(const struct pv_map *map, uint64_t cursor, pv_map_visit visit, void *ctx)
{
	const struct map_rec *rec = map->rec;
	uint64_t position = cursor << (64 - CURSOR_BITS), b, low;
	unsigned int level;

	if (!map_nbuckets_ok(rec->nbuckets))
		return 0;
	b = map_bucket_number(rec->nbuckets, reverse_bits(position));
	level = map_level(rec->nbuckets);
	low = 1ull << level;
	/* Buckets that were split in this round, and those they were split into, own half as much.
	 */
	if (b < rec->nbuckets - low || b >= low)
		level++;
	visit_bucket(map, b, false, visit, ctx);
	return (reverse_bits(b) + (1ull << (64 - level))) >> (64 - CURSOR_BITS);
}

/* ---- clearing ---- */

int pv_map_clear(struct pv_map *map, const struct pv_action *extra, unsigned int nextra)
{
	struct map_root_rec *root = map->root;
	struct pv_action a[PV_ACTIONS_MAX];
	struct map_rec *fresh;
	unsigned int n = 0;
	int err;

	if (nextra > PV_ACTIONS_MAX - 6)
		return pvi_fail(-E2BIG, "map: %u extra actions to clear, at most %u", nextra,
				PV_ACTIONS_MAX - 6);
	fresh = map->spare;
	err = fresh ? 0 : map_make_rec(map, &fresh);
	if (err)
		return err;
	map->spare = NULL;
	a[n++] = PV_LIVE(fresh);
	a[n++] = PV_LIVE(fresh->small[0]);
	a[n++] = PV_STORE(&map->rec->next, (uintptr_t)root->doomed);
	a[n++] = PV_STORE(&root->doomed, (uintptr_t)map->rec);
	a[n++] = PV_STORE(&root->current, (uintptr_t)fresh);
	for (unsigned int i = 0; i < nextra; i++)
		a[n++] = extra[i];
	err = pv_publish(map->store, a, n);
	if (err) {
		map->spare = fresh;
		return err;
	}
	map->rec = fresh;
	map->grow_at = 0;
	map_have_spare(map);
	return 0;
}

/* Free the first overflow bucket of `b` and its entries: a step towards freeing the bucket. */
static int tidy_overflow(struct pv_map *map, struct bucket_rec *b)
{
	struct overflow_rec *o = b->next;
	struct pv_action a[2 + MAP_OVERFLOW_WORDS];
	unsigned int n = 0;

	a[n++] = PV_STORE(&b->next, (uintptr_t)o->next);
	for (unsigned int i = 0; i < MAP_OVERFLOW_WORDS; i++)
		if (o->words[i])
			a[n++] = PV_FREE(map_word_entry(o->words[i]));
	a[n++] = PV_FREE(o);
	return pv_publish(map->store, a, n);
}

/* The chunk that began with bucket `number` goes, and with the first of its directory that too. */
static unsigned int tidy_chunk(struct pv_map *map, struct map_rec *rec, uint64_t number,
			       struct pv_action *a)
{
	struct bucket_rec **link = map_chunk_link(map, rec, number);
	uint64_t directory = number >> (MAP_CHUNK_BITS + MAP_DIRECTORY_BITS);
	uint64_t chunk = number >> MAP_CHUNK_BITS & ((1u << MAP_DIRECTORY_BITS) - 1);
	unsigned int n = 0;

	if (!map_chunk_buckets(number) || !link)
		return 0;
	a[n++] = PV_FREE(*link);
	a[n++] = PV_STORE(link, 0);
	if (number >> MAP_CHUNK_BITS && chunk == (directory ? 0 : 1)) {
		a[n++] = PV_FREE(rec->top[directory]);
		a[n++] = PV_STORE(&rec->top[directory], 0);
	}
	return n;
}

static int tidy_bucket(struct pv_map *map, struct map_rec *rec)
{
	struct bucket_rec *b = map_bucket(map, rec, rec->nbuckets - 1);
	struct pv_action a[PV_ACTIONS_MAX];
	struct map_ring ring = {0};
	unsigned int n = 0;
	uint64_t overflows = 0;
	int err;

	if (!b)
		return map_damaged();
	for (const struct overflow_rec *o = b->next; o; o = o->next, overflows++)
		if (!map_goes_on(map, &ring, o))
			return map_damaged();
	/* 7 entries and words, 4 for each overflow bucket and 1, 1 for nbuckets; or 4 for the chunk instead
	   of the words. */
	for (; overflows > 3; overflows--) {
		err = tidy_overflow(map, b);
		if (err)
			return err;
	}
	for (unsigned int i = 0; i < MAP_WORDS && b->words[i]; i++) {
		a[n++] = PV_FREE(map_word_entry(b->words[i]));
		if (!map_chunk_buckets(rec->nbuckets - 1))
			a[n++] = PV_STORE(&b->words[i], 0);
	}
	if (b->next && !map_chunk_buckets(rec->nbuckets - 1))
		a[n++] = PV_STORE(&b->next, 0);
	for (struct overflow_rec *o = b->next; o; o = o->next) {
		for (unsigned int i = 0; i < MAP_OVERFLOW_WORDS && o->words[i]; i++)
			a[n++] = PV_FREE(map_word_entry(o->words[i]));
		a[n++] = PV_FREE(o);
	}
	a[n++] = PV_STORE(&rec->nbuckets, rec->nbuckets - 1);
	n += tidy_chunk(map, rec, rec->nbuckets - 1, a + n);
	return pv_publish(map->store, a, n);
}

static int tidy_rec(struct pv_map *map, struct map_rec *rec)
{
	struct pv_action a[4];
	unsigned int n = 0;

	a[n++] = PV_STORE(&map->root->doomed, (uintptr_t)rec->next);
	if (rec->top)
		a[n++] = PV_FREE(rec->top);
	a[n++] = PV_FREE(rec);
	return pv_publish(map->store, a, n);
}

bool pv_map_tidy(struct pv_map *map, uint64_t buckets)
{
	struct map_rec *rec = map->root->doomed;

	for (; rec && buckets; buckets--) {
		if (!map_readable(map, (uintptr_t)rec, sizeof(*rec)) || rec->nbuckets > MAP_BUCKETS_MAX)
			return false;
		if (rec->nbuckets ? tidy_bucket(map, rec) : tidy_rec(map, rec))
			return false; /* read-only or no lane: trying again would not help */
		rec = map->root->doomed;
	}
	map_have_spare(map);
	return rec;
}

/* ---- checking ---- */

struct checker {
	const struct pv_map *map;
	void (*tell)(void *ctx, const char *line);
	void *ctx;
	uint64_t problems;
	uint64_t entries;
	uint64_t bucket;
};

__attribute__((format(printf, 2, 3))) static void problem(struct checker *c, const char *format,
							  ...)
{
	char line[200];
	va_list ap;

	c->problems++;
	if (!c->tell)
		return;
	va_start(ap, format);
	vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	c->tell(c->ctx, line);
}

static void check_word(struct checker *c, uint64_t word)
{
	const struct pv_map *map = c->map;
	void *entry = map_word_entry(word);
	size_t bytes;
	const void *key;
	uint64_t hash;

	c->entries++;
	if (!pv_usable_bytes(map->store, entry)) {
		problem(c, "bucket %" PRIu64 ": %p is not an object", c->bucket, entry);
		return;
	}
	key = map_word_key(map, word, &bytes);
	if (!key) {
		problem(c, "bucket %" PRIu64 ": entry %p has no key", c->bucket, entry);
		return;
	}
	hash = pv_map_hash(map, key, bytes);
	if ((word ^ hash) >> MAP_TAG_SHIFT)
		problem(c, "bucket %" PRIu64 ": entry %p has a wrong tag", c->bucket, entry);
	if (map_bucket_number(map->rec->nbuckets, hash) != c->bucket)
		problem(c, "bucket %" PRIu64 ": entry %p belongs into bucket %" PRIu64, c->bucket,
			entry, map_bucket_number(map->rec->nbuckets, hash));
	else if (pv_map_find(map, hash, key, bytes) != entry)
		problem(c, "bucket %" PRIu64 ": entry %p is not found by its key", c->bucket,
			entry);
}

/* Are all overflow buckets of a chain objects, and has it an end? Only then it may be searched. What the map
 * counts says nothing of how long a chain may be: it is in the same memory. */
static bool check_chain(struct checker *c, const struct bucket_rec *b)
{
	struct map_ring ring = {0};

	for (const struct overflow_rec *o = b->next; o; o = o->next) {
		if (!map_goes_on(c->map, &ring, o) || pv_usable_bytes(c->map->store, o) < sizeof(*o)) {
			problem(c, "bucket %" PRIu64 ": overflow bucket %p is not an object, or comes twice",
				c->bucket, (const void *)o);
			return false;
		}
	}
	return true;
}

static void check_bucket(struct checker *c)
{
	const struct bucket_rec *b = map_bucket(c->map, c->map->rec, c->bucket);
	unsigned int nwords = MAP_WORDS;
	const struct overflow_rec *o;
	const uint64_t *words;
	bool end = false;

	if (!b) {
		problem(c, "bucket %" PRIu64 ": there is none", c->bucket);
		return;
	}
	if (!check_chain(c, b))
		return;
	o = b->next;
	words = b->words;
	for (;;) {
		for (unsigned int i = 0; i < nwords; i++) {
			if (words[i] && end)
				problem(c, "bucket %" PRIu64 ": an entry behind an unused word",
					c->bucket);
			if (words[i])
				check_word(c, words[i]);
			else
				end = true;
		}
		if (!o)
			return;
		words = o->words;
		nwords = MAP_OVERFLOW_WORDS;
		o = o->next;
	}
}

int pv_map_check(const struct pv_map *map, void (*tell)(void *ctx, const char *line), void *ctx,
		 uint64_t *problems)
{
	struct checker c = {.map = map, .tell = tell, .ctx = ctx};
	const struct map_rec *rec = map->rec;

	if (rec->cleaning)
		problem(&c, "a split of bucket %" PRIu64 " is unfinished", rec->cleaning - 1);
	for (c.bucket = 0; c.bucket < rec->nbuckets; c.bucket++)
		check_bucket(&c);
	if (c.entries != rec->count)
		problem(&c, "%" PRIu64 " entries, but the map counts %" PRIu64, c.entries,
			rec->count);
	*problems = c.problems;
	return 0;
}
