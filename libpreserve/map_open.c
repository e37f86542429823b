/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hash map: opening, and the figures that the handle can tell. What is read from the store is
 * checked here, once: the sizes, and that every chunk of the table is an object that is large
 * enough. The entries are not looked at; pv_map_check() does that.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "error.h"
#include "map_layout.h"

static const struct pv_typedef overflow_type =
	PV_TYPE(struct overflow_rec, "pv-map-overflow", 1,
		PV_TAGGED(struct overflow_rec, words, MAP_MARK - 1),
		PV_POINTER_TO(struct overflow_rec, next, "pv-map-overflow"));
/* A chunk of buckets. */
static const struct pv_typedef bucket_type =
	PV_TYPE_ARRAY(struct bucket_rec, "pv-map-bucket", 1,
		      PV_TAGGED(struct bucket_rec, words, MAP_MARK - 1),
		      PV_POINTER_TO(struct bucket_rec, next, "pv-map-overflow"));
/* Of chunks, or of directories. */
static const struct pv_typedef directory_type =
	PV_TYPE_ARRAY(void *, "pv-map-directory", 1, PV_POINTER_ITSELF);
static const struct pv_typedef rec_type =
	PV_TYPE(struct map_rec, "pv-map", 1, PV_POINTER_TO(struct map_rec, next, "pv-map"),
		PV_POINTER_TO(struct map_rec, top, "pv-map-directory"),
		PV_POINTER_TO(struct map_rec, small, "pv-map-bucket"));
static const struct pv_typedef root_type =
	PV_TYPE(struct map_root_rec, "pv-map-root", 1,
		PV_POINTER_TO(struct map_root_rec, current, "pv-map"),
		PV_POINTER_TO(struct map_root_rec, doomed, "pv-map"));

static int register_types(struct pv_map *map)
{
	int err = pv_type_register(map->store, &overflow_type, &map->overflow_type);

	if (!err)
		err = pv_type_register(map->store, &bucket_type, &map->bucket_type);
	if (!err)
		err = pv_type_register(map->store, &directory_type, &map->directory_type);
	if (!err)
		err = pv_type_register(map->store, &rec_type, &map->rec_type);
	return err;
}

int map_make_rec(struct pv_map *map, struct map_rec **out)
{
	size_t chunk_bytes = sizeof(struct bucket_rec) << MAP_FIRST_BITS;
	void *rec, *chunk;
	int err = pv_reserve(map->store, map->rec_type, sizeof(struct map_rec), &rec);

	if (err)
		return err;
	err = pv_reserve(map->store, map->bucket_type, chunk_bytes, &chunk);
	if (err) {
		pv_cancel(map->store, rec);
		return err;
	}
	memset(chunk, 0, chunk_bytes);
	*out = rec;
	**out = (struct map_rec){
		.seed = map->seed,
		.nbuckets = 1u << MAP_FIRST_BITS,
		.small = {chunk},
	};
	return 0;
}

void map_drop_rec(struct pv_map *map, struct map_rec *rec)
{
	pv_cancel(map->store, rec->small[0]);
	pv_cancel(map->store, rec);
}

void map_have_spare(struct pv_map *map)
{
	if (!map->spare && map_make_rec(map, &map->spare))
		map->spare = NULL;
}

static int create(struct pv_map *map)
{
	struct map_rec *rec;
	int err;

	if (getrandom(&map->seed, sizeof(map->seed), 0) != sizeof(map->seed))
		return pvi_fail(errno, "map: getrandom: %s", strerror(errno));
	err = map_make_rec(map, &rec);
	if (err)
		return err;
	err = pv_publish(map->store,
			 (struct pv_action[]){PV_LIVE(rec), PV_LIVE(rec->small[0]),
					      PV_STORE(&map->root->current, (uintptr_t)rec)},
			 3);
	if (err)
		map_drop_rec(map, rec);
	return err;
}

static int damaged(const char *name, const char *what, uint64_t number)
{
	return pvi_fail(-EBADMSG, "map %s: %s (%" PRIu64 ")", name, what, number);
}

/* A table in use has at least `least` buckets; a cleared one can be down to none. *room is the memory that
 * its buckets can lie in. */
static int check_rec(const struct pv_map *map, struct map_rec *rec, uint64_t least, uint64_t *room,
		     const char *name)
{
	struct pv_store *store = map->store;

	if (pv_usable_bytes(store, rec) < sizeof(*rec))
		return damaged(name, "no table at this address", (uintptr_t)rec);
	if (rec->nbuckets < least || rec->nbuckets > *room / sizeof(struct bucket_rec) ||
	    rec->nbuckets > MAP_BUCKETS_MAX)
		return damaged(name, "impossible number of buckets", rec->nbuckets);
	*room -= rec->nbuckets * sizeof(struct bucket_rec);
	if (rec->cleaning > rec->nbuckets)
		return damaged(name, "impossible split", rec->cleaning);
	if (rec->nbuckets > 1ull << MAP_CHUNK_BITS &&
	    pv_usable_bytes(store, rec->top) < MAP_TOP_BYTES)
		return damaged(name, "no directories at this address", (uintptr_t)rec->top);
	for (uint64_t b = 0, n; b < rec->nbuckets; b += n) {
		uint64_t directory = b >> (MAP_CHUNK_BITS + MAP_DIRECTORY_BITS);
		struct bucket_rec **link;

		n = map_chunk_buckets(b);
		if (b >> MAP_CHUNK_BITS &&
		    (b == n || b % (1ull << (MAP_CHUNK_BITS + MAP_DIRECTORY_BITS)) == 0) &&
		    pv_usable_bytes(store, rec->top[directory]) < MAP_DIRECTORY_BYTES)
			return damaged(name, "a directory is missing", directory);
		link = map_chunk_link(map, rec, b);
		if (!link || pv_usable_bytes(store, *link) < n * sizeof(struct bucket_rec))
			return damaged(name, "the chunk of this bucket is missing", b);
	}
	return 0;
}

static int check_recs(const struct pv_map *map, const char *name)
{
	uint64_t room = map->mapped->bytes, lists = 0;
	int err = check_rec(map, map->root->current, 1u << MAP_FIRST_BITS, &room, name);

	if (err)
		return err;
	for (struct map_rec *d = map->root->doomed; d; d = d->next) {
		err = check_rec(map, d, 0, &room, name);
		if (err)
			return err;
		if (d == map->root->current)
			return damaged(name, "the table is said to be cleared", (uintptr_t)d);
		/* In a damaged store the list can be a ring. */
		if (++lists > map->mapped->bytes / sizeof(*d))
			return damaged(name, "too many cleared tables", lists);
	}
	return 0;
}

static int open_map(struct pv_map *map, const char *name)
{
	pv_type_t type;
	void *root;
	int err = register_types(map);

	if (!err)
		err = pv_type_register(map->store, &root_type, &type);
	if (!err)
		err = pv_root(map->store, name, type, sizeof(struct map_root_rec), &root, NULL);
	if (err)
		return err;
	map->root = root;
	/* A crash between the root and the first table leaves an empty root. */
	if (!map->root->current)
		err = create(map);
	if (!err)
		err = check_recs(map, name);
	if (err)
		return err;
	map->rec = map->root->current;
	map->seed = map->rec->seed;
	err = map->rec->cleaning ? map_clean(map) : 0;
	if (!err)
		err = map_tidy_next(map);
	if (!err)
		map_have_spare(map);
	return err;
}

int pv_map_open(struct pv_store *store, const char *name, const struct pv_map_options *opts,
		struct pv_map **out)
{
	struct pv_map *map;
	int err;

	if (!store || !name || !opts || !out)
		return pvi_fail(-EINVAL, "map: a null argument");
	if (opts->size != sizeof(*opts) || !opts->key || opts->entry_bytes > MAP_ENTRY_MAX)
		return pvi_fail(-EINVAL, "map %s: options of %zu bytes%s", name, opts->size,
				!opts->key ? " without a key function"
				: opts->entry_bytes > MAP_ENTRY_MAX ? " with entry_bytes above 4096"
								    : "");
	map = calloc(1, sizeof(*map));
	if (!map)
		return pvi_fail(-ENOMEM, "map %s: no memory for a handle", name);
	map->store = store;
	map->key = opts->key;
	map->hash = opts->hash;
	map->mapped = pv_mapped_get(store);
	map->entry_bytes = opts->entry_bytes ? opts->entry_bytes : 1;
	err = open_map(map, name);
	if (err) {
		free(map);
		return err;
	}
	*out = map;
	return 0;
}

void pv_map_close(struct pv_map *map)
{
	if (map && map->spare)
		map_drop_rec(map, map->spare);
	free(map);
}

uint64_t pv_map_count(const struct pv_map *map)
{
	return map->rec->count;
}

void pv_map_info_get(const struct pv_map *map, struct pv_map_info *out)
{
	const struct map_rec *rec = map->rec;
	uint64_t whole = 1ull << MAP_CHUNK_BITS;
	uint64_t capacity = rec->nbuckets > whole ? (rec->nbuckets + whole - 1) & ~(whole - 1)
						  : 2ull << map_level(rec->nbuckets - 1);

	*out = (struct pv_map_info){
		.count = rec->count,
		.buckets = rec->nbuckets,
		.table_bytes = rec->nbuckets * sizeof(struct bucket_rec),
		.chunk_bytes = capacity * sizeof(struct bucket_rec),
	};
	for (const struct map_rec *d = map->root->doomed; d; d = d->next)
		out->clearing += d->nbuckets;
}
