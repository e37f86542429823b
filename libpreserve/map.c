/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hash map: opening, finding, changing. See map_layout.h for the table's shape, map_grow.c for how
 * it changes size, map_walk.c for walking, clearing and checking.
 *
 * Every change of the map is a list of actions for one pv_publish(): 8-byte words of the table,
 * entries and overflow buckets made live or freed, and the number of entries. A change is planned
 * first; while it is, reads of the table look at the plan before they look at memory, so that a
 * later step of a change sees what an earlier one is going to do. Nothing of the table is written
 * before the commit, except what is not reachable yet.
 */
#include <errno.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "map_layout.h"

/* ---- finding ---- */

uint64_t pv_map_hash(const struct pv_map *map, const void *key, size_t key_bytes)
{
	if (map->hash)
		return map->hash(key, key_bytes, map->seed);
	return XXH3_64bits_withSeed(key, key_bytes, map->seed);
}

void pv_map_prefetch(const struct pv_map *map, uint64_t hash)
{
	__builtin_prefetch(map_bucket_of(map, hash));
}

/* One bit for each word of a bucket that has the hash's tag. Without branches: which words match
 * cannot be predicted. */
#ifdef __SSE2__
/* The upper halves of four words at a time, of which the tags are the upper 15 bits. */
static inline unsigned int matches_of_4(const void *words, __m128i hash)
{
	__m128 low = _mm_castsi128_ps(_mm_loadu_si128(words));
	__m128 high = _mm_castsi128_ps(_mm_loadu_si128((const __m128i *)words + 1));
	__m128i tags = _mm_castps_si128(_mm_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1)));

	tags = _mm_srli_epi32(_mm_xor_si128(tags, hash), MAP_TAG_SHIFT - 32);
	return (unsigned int)_mm_movemask_ps(
		_mm_castsi128_ps(_mm_cmpeq_epi32(tags, _mm_setzero_si128())));
}

static inline unsigned int matches(const struct bucket_rec *b, uint64_t hash)
{
	__m128i tag = _mm_set1_epi32((int)(hash >> 32));
	unsigned int mask = matches_of_4(b, tag) | matches_of_4(&b->words[4], tag) << 4;

	return mask & ((1u << MAP_WORDS) - 1); /* what stands behind them is the link */
}
#else
static inline unsigned int matches(const struct bucket_rec *b, uint64_t hash)
{
	unsigned int mask = 0;

	for (unsigned int i = 0; i < MAP_WORDS; i++)
		mask |= (unsigned int)((b->words[i] ^ hash) >> MAP_TAG_SHIFT == 0) << i;
	return mask;
}
#endif

void pv_map_prefetch_entry(const struct pv_map *map, uint64_t hash, bool change)
{
	const struct bucket_rec *b = map_bucket_of(map, hash);
	unsigned int mask;
	const void *entry;

	if (!b)
		return;
	mask = matches(b, hash);
	if (!mask) {
		if (b->next)
			__builtin_prefetch(b->next);
		return;
	}
	entry = map_word_entry(b->words[__builtin_ctz(mask)]);
	__builtin_prefetch(entry);
	if (change)
		pv_prefetch(map->store, entry);
}

static inline bool has_key(const struct pv_map *map, uint64_t word, const void *key, size_t key_bytes)
{
	const void *entry = map_word_entry(word), *k;
	size_t bytes;

	if (!map_has(map, (uintptr_t)entry, map->entry_bytes))
		return false;
	k = map->key(entry, &bytes);
	return bytes == key_bytes && map_key_ends(map, k, bytes) && memcmp(k, key, bytes) == 0;
}

void *pv_map_find(const struct pv_map *map, uint64_t hash, const void *key, size_t key_bytes)
{
	const struct bucket_rec *b = map_bucket_of(map, hash);
	const struct overflow_rec *o;
	struct map_ring ring = {0};

	if (!b)
		return NULL;
	for (unsigned int mask = matches(b, hash); mask; mask &= mask - 1) {
		uint64_t word = b->words[__builtin_ctz(mask)];

		/* A hash whose tag is 0 matches unused words as well. */
		if (word && has_key(map, word, key, key_bytes))
			return map_word_entry(word);
	}
	for (o = b->next; map_goes_on(map, &ring, o); o = o->next) {
		for (unsigned int i = 0; i < MAP_OVERFLOW_WORDS; i++) {
			uint64_t word = o->words[i];

			if (!word)
				return NULL;
			if ((word ^ hash) >> MAP_TAG_SHIFT == 0 &&
			    has_key(map, word, key, key_bytes))
				return map_word_entry(word);
		}
	}
	return NULL;
}

/* ---- planning a change ---- */

int map_damaged(void)
{
	return pvi_fail(-EBADMSG, "map: the table is damaged (see pv_map_check)");
}

void pv_map_change_begin(struct pv_map *map, struct pv_map_change *change)
{
	change->map = map;
	change->count = map->rec->count;
	change->n = 0;
	change->inserted = 0;
	change->removed = 0;
}

uint64_t map_change_peek(const struct pv_map_change *c, const uint64_t *word)
{
	for (unsigned int i = c->n; i-- > 0;)
		if (c->actions[i].target == word && c->actions[i].op == PV_ACTION_STORE)
			return c->actions[i].value;
	return *word;
}

int map_change_push(struct pv_map_change *c, struct pv_action action)
{
	if (c->n == PV_ACTIONS_MAX)
		return pvi_fail(-E2BIG, "map: a change has more than %u actions", PV_ACTIONS_MAX);
	c->actions[c->n++] = action;
	return 0;
}

/* Room for `need` more actions, and for the count if `delta` makes it differ from what is stored?
 */
static int room(const struct pv_map_change *c, unsigned int need, uint64_t delta)
{
	if (c->n + need + (c->count + delta != c->map->rec->count) > PV_ACTIONS_MAX)
		return pvi_fail(-E2BIG, "map: a change has more than %u actions", PV_ACTIONS_MAX);
	return 0;
}

/* Store to a word of the table; a store that is planned for it already is changed. Room was
 * checked by the caller. */
static void plan_word(struct pv_map_change *c, uint64_t *word, uint64_t value)
{
	for (unsigned int i = 0; i < c->n; i++) {
		if (c->actions[i].target == word && c->actions[i].op == PV_ACTION_STORE) {
			c->actions[i].value = value;
			return;
		}
	}
	c->actions[c->n++] = PV_STORE(word, value);
}

static void plan_link(struct pv_map_change *c, struct overflow_rec **link, struct overflow_rec *to)
{
	plan_word(c, (uint64_t *)(void *)link, (uint64_t)(uintptr_t)to);
}

static struct overflow_rec *peek_link(const struct pv_map_change *c, struct overflow_rec **link)
{
	return (struct overflow_rec *)(uintptr_t)map_change_peek(c, (uint64_t *)(void *)link);
}

/* Does the change make this object live? */
static bool is_new(const struct pv_map_change *c, const void *object)
{
	for (unsigned int i = 0; i < c->n; i++)
		if (c->actions[i].target == object && c->actions[i].op == PV_ACTION_LIVE)
			return true;
	return false;
}

/** Where a key is in a chain, or where it would go. */
struct place {
	struct bucket_rec *bucket;
	uint64_t *word;		    /* names the entry; NULL: there is none */
	uint64_t value;		    /* of *word */
	uint64_t *unused;	    /* if !word: the first unused word; NULL: the chain is full */
	struct overflow_rec **link; /* if !unused: the end of the chain */
};

static int locate(const struct pv_map_change *c, uint64_t hash, const void *key, size_t key_bytes,
		  struct place *p)
{
	struct pv_map *map = c->map;
	struct bucket_rec *b = map_bucket_of(map, hash);
	unsigned int nwords = MAP_WORDS;
	struct map_ring ring = {0};
	uint64_t *words;

	if (!b)
		return map_damaged();
	words = b->words;
	*p = (struct place){.bucket = b, .link = &b->next};
	for (;;) {
		struct overflow_rec *o;

		for (unsigned int i = 0; i < nwords; i++) {
			uint64_t word = map_change_peek(c, &words[i]);

			if (!word) {
				p->unused = &words[i];
				return 0;
			}
			if ((word ^ hash) >> MAP_TAG_SHIFT == 0 &&
			    has_key(map, word, key, key_bytes)) {
				p->word = &words[i];
				p->value = word;
				return 0;
			}
		}
		o = peek_link(c, p->link);
		if (!o)
			return 0;
		if (!map_goes_on(map, &ring, o))
			return map_damaged();
		words = o->words;
		nwords = MAP_OVERFLOW_WORDS;
		p->link = &o->next;
	}
}

static void plan_live(struct pv_map_change *c, void *entry, unsigned int flags)
{
	if (!(flags & PV_MAP_LIVE))
		c->actions[c->n++] = PV_LIVE(entry);
}

static void plan_free(struct pv_map_change *c, void *entry, unsigned int flags)
{
	if (!(flags & PV_MAP_KEEP))
		c->actions[c->n++] = PV_FREE(entry);
}

static int put_replace(struct pv_map_change *c, const struct place *p, uint64_t word,
		       unsigned int flags, void **old)
{
	void *previous = map_word_entry(p->value);
	int err = room(c, 3, 0);

	if (err)
		return err;
	if (is_new(c, previous))
		return pvi_fail(-EINVAL, "map: a key stands twice in one change");
	plan_live(c, map_word_entry(word), flags);
	plan_word(c, p->word, word);
	plan_free(c, previous, flags);
	if (old)
		*old = previous;
	return 0;
}

static int put_overflow(struct pv_map_change *c, const struct place *p, uint64_t word,
			unsigned int flags)
{
	struct overflow_rec *o;
	void *object;
	int err = room(c, 4, 1);

	if (!err)
		err = pv_reserve(c->map->store, c->map->overflow_type, sizeof(*o), &object);
	if (err)
		return err;
	o = object;
	*o = (struct overflow_rec){.words = {word}};
	plan_live(c, map_word_entry(word), flags);
	c->actions[c->n++] = PV_LIVE(o);
	plan_link(c, p->link, o);
	return 0;
}

int pv_map_change_put(struct pv_map_change *c, uint64_t hash, void *entry, unsigned int flags,
		      void **old)
{
	uint64_t word = map_word(hash, entry, flags & PV_MAP_MARK);
	struct place p;
	size_t key_bytes;
	const void *key = c->map->key(entry, &key_bytes);
	int err;

	err = locate(c, hash, key, key_bytes, &p);
	if (err)
		return err;
	if (p.word)
		return put_replace(c, &p, word, flags, old);
	if (p.unused) {
		err = room(c, 2, 1);
		if (!err) {
			plan_live(c, entry, flags);
			plan_word(c, p.unused, word);
		}
	} else {
		err = put_overflow(c, &p, word, flags);
	}
	if (err)
		return err;
	c->count++;
	c->inserted++;
	if (old)
		*old = NULL;
	return 0;
}

/** The last used word of a chain. */
struct tail {
	uint64_t *word;
	uint64_t value;
	struct overflow_rec *overflow; /* that it is in; NULL: in the bucket */
	struct overflow_rec **link;    /* that names `overflow` */
};

static int find_tail(const struct pv_map_change *c, struct bucket_rec *b, struct tail *t)
{
	struct overflow_rec **link = &b->next, *o = NULL, **from = NULL;
	uint64_t *words = b->words;
	unsigned int nwords = MAP_WORDS;
	struct map_ring ring = {0};

	*t = (struct tail){0};
	for (;;) {
		for (unsigned int i = 0; i < nwords; i++) {
			uint64_t word = map_change_peek(c, &words[i]);

			if (!word)
				return t->word ? 0 : map_damaged();
			*t = (struct tail){&words[i], word, o, from};
		}
		from = link;
		o = peek_link(c, from);
		if (!o)
			return 0;
		if (!map_goes_on(c->map, &ring, o))
			return map_damaged();
		words = o->words;
		nwords = MAP_OVERFLOW_WORDS;
		link = &o->next;
	}
}

int map_change_unlink(struct pv_map_change *c, struct bucket_rec *b, uint64_t *word)
{
	struct tail t;
	int err = room(c, 3, 0);

	if (!err)
		err = find_tail(c, b, &t);
	if (err)
		return err;
	if (t.word != word)
		plan_word(c, word, t.value);
	if (t.overflow && t.word == &t.overflow->words[0] && !is_new(c, t.overflow)) {
		plan_link(c, t.link, peek_link(c, &t.overflow->next));
		c->actions[c->n++] = PV_FREE(t.overflow);
	} else {
		plan_word(c, t.word, 0);
	}
	return 0;
}

int pv_map_change_remove(struct pv_map_change *c, uint64_t hash, const void *key, size_t key_bytes,
			 unsigned int flags, void **old)
{
	struct place p;
	void *entry;
	int err;

	err = locate(c, hash, key, key_bytes, &p);
	if (err)
		return err;
	if (!p.word)
		return pvi_fail(-ENOENT, "map: no entry of this key");
	entry = map_word_entry(p.value);
	if (is_new(c, entry))
		return pvi_fail(-EINVAL, "map: a key is put and removed in one change");
	err = room(c, 4, (uint64_t)-1);
	if (!err)
		err = map_change_unlink(c, p.bucket, p.word);
	if (err)
		return err;
	plan_free(c, entry, flags);
	c->count--;
	c->removed++;
	if (old)
		*old = entry;
	return 0;
}

int pv_map_change_mark(struct pv_map_change *c, uint64_t hash, const void *key, size_t key_bytes,
		       bool mark)
{
	struct place p;
	int err;

	err = locate(c, hash, key, key_bytes, &p);
	if (err)
		return err;
	if (!p.word)
		return pvi_fail(-ENOENT, "map: no entry of this key");
	if (!!(p.value & MAP_MARK) == mark)
		return 0;
	err = room(c, 1, 0);
	if (!err)
		plan_word(c, p.word, p.value ^ MAP_MARK);
	return err;
}

int pv_map_change_add(struct pv_map_change *c, struct pv_action action)
{
	int err = room(c, 1, 0);

	return err ? err : map_change_push(c, action);
}

int pv_map_change_commit(struct pv_map_change *c)
{
	struct pv_map *map = c->map;
	int err;

	/* room() has kept a place for it. */
	if (c->count != map->rec->count)
		c->actions[c->n++] = PV_STORE(&map->rec->count, c->count);
	err = pv_publish(map->store, c->actions, c->n);
	if (err)
		return err;
	if (c->inserted | c->removed)
		map_resize(map, c->inserted, c->removed);
	return 0;
}

void pv_map_change_abort(struct pv_map_change *c)
{
	for (unsigned int i = 0; i < c->n; i++)
		if (c->actions[i].op == PV_ACTION_LIVE)
			pv_cancel(c->map->store, c->actions[i].target);
	c->n = 0;
}

/* Abort, but leave the caller its entry. */
static int give_up(struct pv_map_change *c, void *entry, int err)
{
	for (unsigned int i = 0; i < c->n; i++)
		if (c->actions[i].op == PV_ACTION_LIVE && c->actions[i].target != entry)
			pv_cancel(c->map->store, c->actions[i].target);
	return err;
}

int pv_map_put(struct pv_map *map, uint64_t hash, void *entry, unsigned int flags)
{
	struct pv_map_change c;
	int err;

	pv_map_change_begin(map, &c);
	err = pv_map_change_put(&c, hash, entry, flags, NULL);
	if (!err)
		err = pv_map_change_commit(&c);
	return err ? give_up(&c, entry, err) : 0;
}

int pv_map_remove(struct pv_map *map, uint64_t hash, const void *key, size_t key_bytes)
{
	struct pv_map_change c;
	int err;

	pv_map_change_begin(map, &c);
	err = pv_map_change_remove(&c, hash, key, key_bytes, 0, NULL);
	if (!err)
		err = pv_map_change_commit(&c);
	return err;
}
