/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The persistent bytes of a map, and the few inline functions that its files share.
 *
 *	root object --current--> map_rec --small[], top--> chunks of buckets --> entries
 *	            --doomed---> map_rec --next--> ...     cleared maps, freed by pv_map_tidy()
 *
 * The table is a linear hash table. It has `nbuckets` buckets, 2^l <= nbuckets < 2^(l+1); with
 * s = nbuckets - 2^l, buckets below s and from 2^l on hold the keys whose l + 1 low hash bits are
 * the bucket's number, the others go by l bits. Growing splits bucket s into s and nbuckets.
 *
 * A bucket is one cache line: 7 words and a link to overflow buckets of 3 words. A word names an
 * entry, or is 0; the words of a bucket and its overflow buckets are used from the first one on,
 * without holes (a chain is "dense"), so that a search ends at the first 0.
 *
 * Buckets never move. They lie in chunks: number 0 has 16 buckets, numbers 1 to 10 double the table
 * up to 2^14 buckets, all later ones have 2^14 (1 MiB) and hang below a directory of directories.
 * Buckets from `nbuckets` on are zero, but for words of the next one after a crash; the split that makes
 * one visible fills it first.
 */
#ifndef PVI_MAP_LAYOUT_H
#define PVI_MAP_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <preserve/map.h>

#define MAP_WORDS	    7u /* in a bucket */
#define MAP_OVERFLOW_WORDS  3u
#define MAP_LOAD	    6u	/* entries a bucket from which on the table grows */
#define MAP_FIRST_BITS	    4u	/* buckets of chunk 0 */
#define MAP_CHUNK_BITS	    14u /* buckets of the largest chunks */
#define MAP_SMALL	    (MAP_CHUNK_BITS - MAP_FIRST_BITS + 1)
#define MAP_DIRECTORY_BITS  9u /* chunks in a directory */
#define MAP_TOP_BITS	    8u /* directories */
#define MAP_BUCKETS_MAX	    (1ull << (MAP_TOP_BITS + MAP_DIRECTORY_BITS + MAP_CHUNK_BITS))
#define MAP_DIRECTORY_BYTES (sizeof(void *) << MAP_DIRECTORY_BITS)
#define MAP_TOP_BYTES	    (sizeof(void *) << MAP_TOP_BITS)
#define MAP_ENTRY_MAX	    4096u /* of pv_map_options.entry_bytes */

struct overflow_rec {
	uint64_t words[MAP_OVERFLOW_WORDS];
	struct overflow_rec *next;
};

struct bucket_rec {
	uint64_t words[MAP_WORDS];
	struct overflow_rec *next;
};

struct map_rec {
	uint64_t seed;
	uint64_t count;	   /* entries */
	uint64_t nbuckets; /* the commit word of a split or merge */
	/* 0, or 1 + the number of a bucket that a split has not yet rid of entries which also stand
	   in the new bucket. The split goes on when the map is opened. */
	uint64_t cleaning;
	struct map_rec *next; /* in the list of cleared maps */
	struct bucket_rec ***top;
	struct bucket_rec *small[MAP_SMALL];
	uint64_t reserved[3];
};

struct map_root_rec {
	struct map_rec *current;
	struct map_rec *doomed;
	uint64_t reserved[2];
};

_Static_assert(sizeof(struct overflow_rec) == 32, "overflow_rec");
_Static_assert(sizeof(struct bucket_rec) == 64, "bucket_rec");
_Static_assert(sizeof(struct map_rec) == 160, "map_rec");
_Static_assert(offsetof(struct map_rec, small) == 48, "map_rec.small");
_Static_assert(sizeof(struct map_root_rec) == 32, "map_root_rec");

/** The handle of an open map. Process memory. */
struct pv_map {
	struct pv_store *store;
	struct map_root_rec *root;
	struct map_rec *rec; /* root->current */
	/* A reserved, empty table for the next pv_map_clear(), which must not fail for want of
	   memory: emptying is what one does about it. */
	struct map_rec *spare;
	uint64_t seed;
	const struct pv_mapped *mapped;
	size_t entry_bytes; /* that are to be there before key() is called */
	const void *(*key)(const void *entry, size_t *key_bytes);
	uint64_t (*hash)(const void *key, size_t key_bytes, uint64_t seed);
	uintptr_t own_page; /* number of a page that the map may write to; see map_grow.c */
	uint64_t grow_at; /* no growth below this many entries: the last attempt found no memory */
	pv_type_t rec_type;
	pv_type_t bucket_type;
	pv_type_t overflow_type;
	pv_type_t directory_type;
};

/*
 * A word: tag in the top 15 bits, mark in bit 48, address below. The tag is the top of the hash;
 * the number of a bucket comes from its low bits. Addresses of a window are below 2^47.
 */
#define MAP_MARK      (1ull << 48)
#define MAP_TAG_SHIFT 49

static inline void *map_word_entry(uint64_t word)
{
	return (void *)(uintptr_t)(word & (MAP_MARK - 16)); /* objects lie at multiples of 16 */
}

static inline uint64_t map_word(uint64_t hash, const void *entry, bool mark)
{
	return (hash >> MAP_TAG_SHIFT << MAP_TAG_SHIFT) | (mark ? MAP_MARK : 0) |
	       (uint64_t)(uintptr_t)entry;
}

/** Number of bits of `nbuckets` below the highest: the table's level. */
static inline unsigned int map_level(uint64_t nbuckets)
{
	return 63u - (unsigned int)__builtin_clzll(nbuckets);
}

/** The bucket of a table of `nbuckets`, not 0, that a hash belongs to. */
static inline uint64_t map_bucket_number(uint64_t nbuckets, uint64_t hash)
{
	uint64_t low = 1ull << map_level(nbuckets);
	uint64_t b = hash & (2 * low - 1);

	return b < nbuckets ? b : b - low;
}

/*
 * What the table says may be untrue, in an image that somebody else has kept. So every address out of it
 * is compared with what is mapped before it is followed: a bucket, an overflow bucket, an entry.
 */

/** Is memory of the store at these `bytes`? They are not more than the least store has (MAP_ENTRY_MAX). */
static inline bool map_has(const struct pv_map *map, uintptr_t at, size_t bytes)
{
	uint64_t have = __atomic_load_n(&map->mapped->bytes, __ATOMIC_RELAXED);

	return __builtin_expect(at - map->mapped->base <= have - bytes, 1);
}

/** May this part of the table be read? */
static inline bool map_readable(const struct pv_map *map, uintptr_t at, size_t bytes)
{
	return __builtin_expect(at % 8 == 0, 1) && map_has(map, at, bytes);
}

/** The persistent pointer to the chunk of a bucket; NULL: there is no directory for it. */
static inline struct bucket_rec **map_chunk_link(const struct pv_map *map, struct map_rec *rec,
						 uint64_t number)
{
	uintptr_t at;

	if (number >> MAP_CHUNK_BITS == 0)
		return &rec->small[number >> MAP_FIRST_BITS ? map_level(number) - MAP_FIRST_BITS + 1
							    : 0];
	at = (uintptr_t)rec->top +
	     (number >> (MAP_CHUNK_BITS + MAP_DIRECTORY_BITS)) * sizeof(void *);
	if (!map_readable(map, at, sizeof(void *)))
		return NULL;
	at = *(const uintptr_t *)at +
	     (number >> MAP_CHUNK_BITS & ((1u << MAP_DIRECTORY_BITS) - 1)) * sizeof(void *);
	return map_readable(map, at, sizeof(void *)) ? (struct bucket_rec **)at : NULL;
}

/** Address of a bucket; NULL: the table is damaged. */
static inline struct bucket_rec *map_bucket(const struct pv_map *map, const struct map_rec *rec,
					    uint64_t number)
{
	uintptr_t at;

	if (number >> MAP_CHUNK_BITS) {
		struct bucket_rec *const *link = map_chunk_link(map, (struct map_rec *)rec, number);

		if (!link)
			return NULL;
		at = (uintptr_t)*link +
		     (number & ((1u << MAP_CHUNK_BITS) - 1)) * sizeof(struct bucket_rec);
	} else if (number >> MAP_FIRST_BITS) {
		unsigned int level = map_level(number);

		at = (uintptr_t)rec->small[level - MAP_FIRST_BITS + 1] +
		     (number - (1ull << level)) * sizeof(struct bucket_rec);
	} else {
		at = (uintptr_t)rec->small[0] + number * sizeof(struct bucket_rec);
	}
	return map_readable(map, at, sizeof(struct bucket_rec)) ? (struct bucket_rec *)at : NULL;
}

/** May the table have so many buckets? */
static inline bool map_nbuckets_ok(uint64_t nbuckets)
{
	return nbuckets - 1 < MAP_BUCKETS_MAX;
}

/** The bucket that a hash belongs to; NULL: the table is damaged. */
static inline struct bucket_rec *map_bucket_of(const struct pv_map *map, uint64_t hash)
{
	uint64_t nbuckets = map->rec->nbuckets;

	if (!map_nbuckets_ok(nbuckets))
		return NULL;
	return map_bucket(map, map->rec, map_bucket_number(nbuckets, hash));
}

/** Where a walk along a chain is, so that it finds an end when the chain has none: now and then it notes
 *  where it is, and looks whether it comes there again. Begin with all zero. */
struct map_ring {
	const struct overflow_rec *mark;
	uint64_t steps;
	uint64_t until;
};

/** Is there an overflow bucket, and was the walk not there already? NULL is none. */
static inline bool map_goes_on(const struct pv_map *map, struct map_ring *ring,
			       const struct overflow_rec *next)
{
	if (!next || next == ring->mark || !map_readable(map, (uintptr_t)next, sizeof(*next)))
		return false;
	if (ring->steps++ == ring->until) {
		ring->mark = next;
		ring->steps = 0;
		ring->until = 2 * ring->until + 1;
	}
	return true;
}

/** How many buckets the chunk has that begins with this bucket; 0: no chunk begins there. */
static inline uint64_t map_chunk_buckets(uint64_t number)
{
	if (number >> MAP_CHUNK_BITS)
		return number & ((1u << MAP_CHUNK_BITS) - 1) ? 0 : 1ull << MAP_CHUNK_BITS;
	if (number == 0)
		return 1u << MAP_FIRST_BITS;
	if (number < 1u << MAP_FIRST_BITS || (number & (number - 1)))
		return 0;
	return number;
}

/** Does a key that begins in the store end there? One that lies elsewhere is the application's business: for
 *  that the difference is larger than any key. */
static inline bool map_key_ends(const struct pv_map *map, const void *key, size_t bytes)
{
	uint64_t have = __atomic_load_n(&map->mapped->bytes, __ATOMIC_RELAXED);

	return __builtin_expect(bytes <= have - ((uintptr_t)key - map->mapped->base), 1);
}

/** The key of the entry that a word names; NULL: there can be none. Reads the entry. */
static inline const void *map_word_key(const struct pv_map *map, uint64_t word, size_t *bytes)
{
	const void *entry = map_word_entry(word), *key;

	if (!map_has(map, (uintptr_t)entry, map->entry_bytes))
		return NULL;
	key = map->key(entry, bytes);
	return map_key_ends(map, key, *bytes) ? key : NULL;
}

/** Hash of the entry that a word names; if there is none, that of an empty key. Reads the entry. */
static inline uint64_t map_word_hash(const struct pv_map *map, uint64_t word)
{
	size_t bytes;
	const void *key = map_word_key(map, word, &bytes);

	return key ? pv_map_hash(map, key, bytes) : pv_map_hash(map, "", 0);
}

/* ---- map.c ---- */

/** -EBADMSG, for an address in the table that leads nowhere. */
int map_damaged(void);

/** Add an action unless the change is full: then -E2BIG. */
int map_change_push(struct pv_map_change *c, struct pv_action action);
/** The value that a word will have after the change. */
uint64_t map_change_peek(const struct pv_map_change *c, const uint64_t *word);
/** Plan the removal of the entry that `word` of bucket `b` names, keeping the chain dense. */
int map_change_unlink(struct pv_map_change *c, struct bucket_rec *b, uint64_t *word);

/* ---- map_open.c ---- */

/** Fill a fresh map_rec with its first chunk, both reserved and not yet live. */
int map_make_rec(struct pv_map *map, struct map_rec **out);
/** Give such a map_rec back. */
void map_drop_rec(struct pv_map *map, struct map_rec *rec);
/** Have a spare, if there is memory for it. */
void map_have_spare(struct pv_map *map);

/* ---- map_grow.c ---- */

/** After a change: split or merge as many buckets as it put in or took out, and one more. */
void map_resize(struct pv_map *map, unsigned int inserted, unsigned int removed);
/** Empty the bucket behind the last one, in which a crash may have left words. */
int map_tidy_next(struct pv_map *map);
/** Finish the split that map_rec.cleaning tells of. */
int map_clean(struct pv_map *map);

#endif
