/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hash map: growing and shrinking by one bucket at a time.
 *
 * A split fills the new bucket's words while it cannot be seen, then publishes one intent: the new
 * bucket's overflow buckets become live and are linked, the words that moved leave the old bucket,
 * `nbuckets` grows by one.
 *	crash before it: the new bucket is still outside of the table, its words name entries that the
 *	old one names too, its overflow buckets were only reserved; after it: done.
 * If a freak of the hash makes that more than an intent can hold, the new bucket is made visible
 * first, together with the word `cleaning`, and the old bucket gets rid of what moved afterwards.
 *	crash in between: some entries stand in both buckets. A search never meets the stale ones,
 *	for it goes by the key's hash; pv_map_open() goes on with the cleaning.
 *
 * A merge is one intent, or is left out. It leaves the words in the bucket that is not used any more.
 *
 * What follows references, a full check say, sees all buckets of a chunk. So those outside of the table
 * are zero, but for the words of the next one after a crash: these name entries, and are made zero before
 * one of them can be freed, by map_tidy_next() at the latest.
 */
#include <errno.h>
#include <string.h>

#include "error.h"
#include "map_layout.h"

/* A chain as an array. Longer chains, which only a bad hash can make, are not split. */
#define CHAIN_OVERFLOWS 32u
#define CHAIN_WORDS	(MAP_WORDS + MAP_OVERFLOW_WORDS * CHAIN_OVERFLOWS)

struct chain {
	struct bucket_rec *bucket;
	unsigned int nwords; /* places: MAP_WORDS and 3 for each overflow bucket */
	unsigned int noverflows;
	uint64_t value[CHAIN_WORDS];
	uint64_t *word[CHAIN_WORDS];
	struct overflow_rec *overflow[CHAIN_OVERFLOWS];
};

static int chain_read(const struct pv_map *map, struct chain *c, struct bucket_rec *b)
{
	struct map_ring ring = {0};

	if (!b)
		return map_damaged();
	c->bucket = b;
	c->nwords = MAP_WORDS;
	c->noverflows = 0;
	for (unsigned int i = 0; i < MAP_WORDS; i++) {
		c->word[i] = &b->words[i];
		c->value[i] = b->words[i];
	}
	for (struct overflow_rec *o = b->next; o; o = o->next) {
		if (!map_goes_on(map, &ring, o))
			return map_damaged();
		if (c->noverflows == CHAIN_OVERFLOWS)
			return pvi_fail(-E2BIG, "map: a bucket has more than %u entries",
					CHAIN_WORDS);
		c->overflow[c->noverflows++] = o;
		for (unsigned int i = 0; i < MAP_OVERFLOW_WORDS; i++) {
			c->word[c->nwords] = &o->words[i];
			c->value[c->nwords++] = o->words[i];
		}
	}
	return 0;
}

/* Fill holes from the end. Returns the number of words in use. */
static unsigned int chain_compact(struct chain *c)
{
	unsigned int low = 0, high = c->nwords;

	for (;;) {
		while (low < high && c->value[low])
			low++;
		while (high > low && !c->value[high - 1])
			high--;
		if (low == high)
			return low;
		c->value[low] = c->value[high - 1];
		c->value[high - 1] = 0;
	}
}

static unsigned int overflows_for(unsigned int words)
{
	return words <= MAP_WORDS
		       ? 0
		       : (words - MAP_WORDS + MAP_OVERFLOW_WORDS - 1) / MAP_OVERFLOW_WORDS;
}

/* Plan to make the chain in memory what the array says, and free the overflow buckets that it does
 * not need any more. */
static int chain_plan(struct pv_map_change *change, struct chain *c)
{
	unsigned int used = chain_compact(c), keep = overflows_for(used);
	unsigned int places = keep ? MAP_WORDS + keep * MAP_OVERFLOW_WORDS : MAP_WORDS;
	int err = 0;

	for (unsigned int i = 0; i < places && !err; i++)
		if (*c->word[i] != c->value[i])
			err = map_change_push(change, PV_STORE(c->word[i], c->value[i]));
	if (!err && keep < c->noverflows) {
		struct overflow_rec **link = keep ? &c->overflow[keep - 1]->next : &c->bucket->next;

		err = map_change_push(change, PV_STORE(link, 0));
	}
	for (unsigned int i = keep; i < c->noverflows && !err; i++)
		err = map_change_push(change, PV_FREE(c->overflow[i]));
	return err;
}

/* Reserve overflow buckets for these words, linked to each other, and plan to make them live. */
static int make_overflows(struct pv_map_change *change, const uint64_t *words, unsigned int n,
			  struct overflow_rec **first)
{
	struct pv_map *map = change->map;
	struct overflow_rec *o = NULL;

	*first = NULL;
	for (unsigned int i = 0; i < n; i++) {
		void *object;
		int err;

		if (i % MAP_OVERFLOW_WORDS == 0) {
			err = pv_reserve(map->store, map->overflow_type, sizeof(*o), &object);
			if (err)
				return err;
			err = map_change_push(change, PV_LIVE(object));
			if (err) {
				pv_cancel(map->store, object);
				return err;
			}
			if (o)
				o->next = object;
			else
				*first = object;
			o = object;
			*o = (struct overflow_rec){.next = NULL};
		}
		o->words[i % MAP_OVERFLOW_WORDS] = words[i];
	}
	return 0;
}

/* Reserve an object, clear it, and publish it into a persistent pointer. */
static int publish_object(struct pv_map *map, pv_type_t type, size_t bytes, void *link)
{
	void *object;
	int err = pv_reserve(map->store, type, bytes, &object);

	if (err)
		return err;
	memset(object, 0, bytes);
	err = pv_publish(map->store,
			 (struct pv_action[]){PV_LIVE(object), PV_STORE(link, (uintptr_t)object)},
			 2);
	if (err)
		pv_cancel(map->store, object);
	return err;
}

/* Have a chunk for bucket `number`, the next one. A crash leaves it ready for the next attempt. */
static int have_chunk(struct pv_map *map, uint64_t number)
{
	struct map_rec *rec = map->rec;
	uint64_t buckets = map_chunk_buckets(number);
	size_t bytes = buckets * sizeof(struct bucket_rec);
	struct bucket_rec **link;
	int err = 0;

	if (!buckets)
		return 0;
	if (number >> MAP_CHUNK_BITS) {
		uint64_t directory = number >> (MAP_CHUNK_BITS + MAP_DIRECTORY_BITS);

		if (!rec->top)
			err = publish_object(map, map->directory_type, MAP_TOP_BYTES, &rec->top);
		if (!err && pv_usable_bytes(map->store, rec->top) < MAP_TOP_BYTES)
			err = map_damaged();
		if (!err && !rec->top[directory])
			err = publish_object(map, map->directory_type, MAP_DIRECTORY_BYTES,
					     &rec->top[directory]);
	}
	if (err)
		return err;
	link = map_chunk_link(map, rec, number);
	if (link && !*link)
		return publish_object(map, map->bucket_type, bytes, link);
	return link && pv_usable_bytes(map->store, *link) >= bytes ? 0 : map_damaged();
}

/*
 * The last bucket, or the next one, is written to directly; NULL: it is none that may be. What lies in the
 * heap and is not sealed the library takes stores for, so it is asked, once for a page.
 */
static struct bucket_rec *own_bucket(struct pv_map *map, uint64_t number)
{
	struct bucket_rec *b = map_bucket(map, map->rec, number);
	uintptr_t first = (uintptr_t)b >> 12, last = ((uintptr_t)b + sizeof(*b) - 1) >> 12;

	if (!b || (first == map->own_page && last == first))
		return b;
	if (pv_publish(map->store,
		       (struct pv_action[]){PV_STORE(&b->words[0], b->words[0]),
					    PV_STORE(&b->next, (uintptr_t)b->next)},
		       2))
		return NULL;
	map->own_page = first;
	return b;
}

static int fill_bucket(struct pv_map_change *change, struct bucket_rec *b, const uint64_t *words,
		       unsigned int n)
{
	struct overflow_rec *first = NULL;
	int err = b ? 0 : map_damaged();

	if (!err && n > MAP_WORDS)
		err = make_overflows(change, words + MAP_WORDS, n - MAP_WORDS, &first);
	if (err)
		return err;
	for (unsigned int i = 0; i < MAP_WORDS; i++)
		b->words[i] = i < n ? words[i] : 0;
	return first ? map_change_push(change, PV_STORE(&b->next, (uintptr_t)first)) : 0;
}

/* The bucket that a split filled is not going to be seen. */
static void empty_bucket(struct bucket_rec *b)
{
	if (b)
		memset(b->words, 0, sizeof(b->words));
}

static int finish_change(struct pv_map_change *change, int err)
{
	if (!err)
		err = pv_publish(change->map->store, change->actions, change->n);
	if (err)
		pv_map_change_abort(change);
	return err;
}

int map_tidy_next(struct pv_map *map)
{
	struct map_rec *rec = map->rec;
	struct pv_action a[MAP_WORDS];
	unsigned int n = 0;
	struct bucket_rec *b, **link;
	uint64_t number = rec->nbuckets, directory = number >> (MAP_CHUNK_BITS + MAP_DIRECTORY_BITS);
	uint64_t buckets = map_chunk_buckets(number);

	/* Where it begins a chunk, this may not be there yet. */
	if (number == MAP_BUCKETS_MAX || (buckets && number >> MAP_CHUNK_BITS &&
					  (pv_usable_bytes(map->store, rec->top) < MAP_TOP_BYTES ||
					   pv_usable_bytes(map->store, rec->top[directory]) <
						   MAP_DIRECTORY_BYTES)))
		return 0;
	link = map_chunk_link(map, rec, number);
	if (buckets && (!link || pv_usable_bytes(map->store, *link) < buckets * sizeof(struct bucket_rec)))
		return 0;
	b = map_bucket(map, rec, number);
	if (!b)
		return map_damaged();
	for (unsigned int i = 0; i < MAP_WORDS; i++)
		if (b->words[i])
			a[n++] = PV_STORE(&b->words[i], 0);
	return n ? pv_publish(map->store, a, n) : 0;
}

int map_clean(struct pv_map *map)
{
	struct map_rec *rec = map->rec;
	uint64_t number = rec->cleaning - 1;
	struct bucket_rec *b = map_bucket(map, rec, number);

	if (!b || !map_nbuckets_ok(rec->nbuckets))
		return map_damaged();
	for (;;) {
		struct overflow_rec *o = b->next;
		uint64_t *words = b->words, *stale = NULL;
		unsigned int nwords = MAP_WORDS;
		struct pv_map_change change;
		struct map_ring ring = {0};
		int err;

		while (!stale) {
			for (unsigned int i = 0; i < nwords && !stale; i++)
				if (words[i] &&
				    map_bucket_number(rec->nbuckets, map_word_hash(map, words[i])) !=
					    number)
					stale = &words[i];
			if (stale || !map_goes_on(map, &ring, o))
				break;
			words = o->words;
			nwords = MAP_OVERFLOW_WORDS;
			o = o->next;
		}
		pv_map_change_begin(map, &change);
		err = stale ? map_change_unlink(&change, b, stale)
			    : map_change_push(&change, PV_STORE(&rec->cleaning, 0));
		err = finish_change(&change, err);
		if (err || !stale)
			return err;
	}
}

static int split_with_cleaning(struct pv_map *map, uint64_t from, const uint64_t *moved,
			       unsigned int n)
{
	struct map_rec *rec = map->rec;
	struct bucket_rec *b = own_bucket(map, rec->nbuckets);
	struct pv_map_change change;
	int err;

	pv_map_change_begin(map, &change);
	err = fill_bucket(&change, b, moved, n);
	if (!err)
		err = map_change_push(&change, PV_STORE(&rec->nbuckets, rec->nbuckets + 1));
	if (!err)
		err = map_change_push(&change, PV_STORE(&rec->cleaning, from + 1));
	err = finish_change(&change, err);
	if (err)
		empty_bucket(b);
	return err ? err : map_clean(map);
}

static int split(struct pv_map *map)
{
	struct map_rec *rec = map->rec;
	uint64_t number = rec->nbuckets, bit = 1ull << map_level(number), from = number - bit;
	uint64_t moved[CHAIN_WORDS];
	unsigned int n = 0;
	struct pv_map_change change;
	struct bucket_rec *b;
	struct chain c;
	int err = number < MAP_BUCKETS_MAX ? have_chunk(map, number) : -ENOSPC;

	if (!err)
		err = chain_read(map, &c, map_bucket(map, rec, from));
	if (err)
		return err;
	for (unsigned int i = 0; i < c.nwords; i++) {
		if (c.value[i] && map_word_hash(map, c.value[i]) & bit) {
			moved[n++] = c.value[i];
			c.value[i] = 0;
		}
	}
	b = own_bucket(map, number);
	pv_map_change_begin(map, &change);
	err = fill_bucket(&change, b, moved, n);
	if (!err)
		err = chain_plan(&change, &c);
	if (!err)
		err = map_change_push(&change, PV_STORE(&rec->nbuckets, number + 1));
	err = finish_change(&change, err);
	if (err == -E2BIG)
		return split_with_cleaning(map, from, moved, n);
	if (err)
		empty_bucket(b);
	return err;
}

static int merge(struct pv_map *map)
{
	struct map_rec *rec = map->rec;
	uint64_t last = rec->nbuckets - 1, into = last - (1ull << map_level(last));
	struct bucket_rec **chunk = map_chunk_link(map, rec, last);
	struct overflow_rec *first = NULL;
	struct pv_map_change change;
	struct chain c, d;
	unsigned int used, n, fit;
	int err = chunk ? chain_read(map, &c, map_bucket(map, rec, into)) : map_damaged();

	if (!err)
		err = chain_read(map, &d, own_bucket(map, last));
	if (err)
		return err;
	used = chain_compact(&c);
	n = chain_compact(&d);
	fit = n < c.nwords - used ? n : c.nwords - used;
	memcpy(&c.value[used], d.value, fit * sizeof(d.value[0]));

	pv_map_change_begin(map, &change);
	err = make_overflows(&change, d.value + fit, n - fit, &first);
	if (!err)
		err = chain_plan(&change, &c);
	if (!err && first)
		err = map_change_push(&change,
				      PV_STORE(c.noverflows ? &c.overflow[c.noverflows - 1]->next
							    : &c.bucket->next,
					       (uintptr_t)first));
	for (unsigned int i = 0; i < d.noverflows && !err; i++)
		err = map_change_push(&change, PV_FREE(d.overflow[i]));
	if (!err)
		err = map_change_push(&change, PV_STORE(&rec->nbuckets, last));
	if (!err && map_chunk_buckets(last)) {
		err = map_change_push(&change, PV_FREE(*chunk));
		if (!err)
			err = map_change_push(&change, PV_STORE(chunk, 0));
	} else if (!err && d.noverflows) {
		err = map_change_push(&change, PV_STORE(&d.bucket->next, 0));
	}
	err = finish_change(&change, err);
	if (!err && !map_chunk_buckets(last))
		empty_bucket(d.bucket);
	return err;
}

/*
 * The next split reads the entries of one bucket. Its number is known long before: fetch the bucket
 * and then its entries while the inserts that lead to the split go on.
 */
static void prepare_split(const struct pv_map *map)
{
	const struct map_rec *rec = map->rec;
	uint64_t until = rec->nbuckets * MAP_LOAD - rec->count;
	const struct bucket_rec *b;

	if (until != 3 && until != 1)
		return;
	b = map_bucket(map, rec, rec->nbuckets - (1ull << map_level(rec->nbuckets)));
	if (until == 3 || !b) {
		__builtin_prefetch(b);
		return;
	}
	for (unsigned int i = 0; i < MAP_WORDS && b->words[i]; i++)
		__builtin_prefetch(map_word_entry(b->words[i]));
}

void map_resize(struct pv_map *map, unsigned int inserted, unsigned int removed)
{
	const struct map_rec *rec = map->rec;

	if (!map_nbuckets_ok(rec->nbuckets))
		return;
	/* No memory for a larger table is not an error: chains get longer. Trying again is put off.
	 */
	for (unsigned int i = 0;
	     i <= inserted && rec->count > rec->nbuckets * MAP_LOAD && rec->count >= map->grow_at;
	     i++) {
		map->grow_at = 0;
		if (split(map))
			map->grow_at = rec->count + rec->count / 16;
	}
	if (inserted && rec->count <= rec->nbuckets * MAP_LOAD)
		prepare_split(map);
	for (unsigned int i = 0; i <= removed && rec->nbuckets > 1u << MAP_FIRST_BITS &&
				 rec->count < rec->nbuckets * MAP_LOAD / 4;
	     i++)
		if (merge(map))
			break;
}
