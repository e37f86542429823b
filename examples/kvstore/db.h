/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The data: keys and values in a persistent map, with times of expiry. Everything here is
 * crash-safe: a function that returned 0 has its effect for good; one that was interrupted has it
 * wholly or not at all. No function knows of clients or of the protocol.
 */
#ifndef KVSTORE_DB_H
#define KVSTORE_DB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <preserve/map.h>
#include <preserve/preserve.h>

#include "resp.h"

/*
 * An entry: header, optional words, key, value. Persistent.
 *	header	bits 0-29 length of the key, 30-59 length of the value, 60 EXPIRES, 61 INTEGER
 *	EXPIRES: a word follows, the time of expiry in Unix milliseconds; 0: none after all
 *	INTEGER: a word follows that is the value; the length of the value is 0
 * The header is one word so that a value can grow within its object by a single store.
 */
#define ENTRY_LEN_BITS 30
#define ENTRY_LEN_MASK ((1ull << ENTRY_LEN_BITS) - 1)
#define ENTRY_EXPIRES  (1ull << 60)
#define ENTRY_INTEGER  (1ull << 61)

struct entry {
	uint64_t header;
	uint64_t words[];
};

static inline size_t entry_key_len(const struct entry *e)
{
	return e->header & ENTRY_LEN_MASK;
}

static inline size_t entry_value_len(const struct entry *e)
{
	return e->header >> ENTRY_LEN_BITS & ENTRY_LEN_MASK;
}

static inline bool entry_is_integer(const struct entry *e)
{
	return e->header & ENTRY_INTEGER;
}

static inline unsigned int entry_nwords(const struct entry *e)
{
	return (e->header >> 60 & 1) + (e->header >> 61 & 1);
}

static inline char *entry_key(const struct entry *e)
{
	return (char *)(uintptr_t)&e->words[entry_nwords(e)];
}

static inline char *entry_value(const struct entry *e)
{
	return entry_key(e) + entry_key_len(e);
}

static inline int64_t *entry_integer(const struct entry *e)
{
	return (int64_t *)(uintptr_t)&e->words[e->header >> 60 & 1];
}

/** When the entry expires; 0: never. */
static inline int64_t entry_expiry(const struct entry *e)
{
	return e->header & ENTRY_EXPIRES ? (int64_t)e->words[0] : 0;
}

/** The application's root object. Persistent. */
struct db_root_rec {
	uint64_t expiring; /* entries with a time of expiry */
	/* A change of many keys that is under way, see batch.c. */
	struct batch_item_rec *batch;
	uint64_t batch_state;
	uint64_t batch_count; /* items there are */
	uint64_t batch_done;  /* of those, dealt with */
	uint64_t reserved[3];
};

_Static_assert(sizeof(struct db_root_rec) == 64, "db_root_rec");

struct batch_item_rec {
	struct entry *fresh; /* put in */
	struct entry *old;   /* replaced, or to be removed; NULL: the key is new */
};

_Static_assert(sizeof(struct batch_item_rec) == 16, "batch_item_rec");

struct db {
	struct pv_store *store;
	struct pv_map *map;
	struct db_root_rec *root;
	pv_type_t entry_type;
	pv_type_t batch_type;
	int64_t now_ms;		  /* the caller sets it before it lets commands run */
	uint64_t expire_position; /* db_expire_some() */
	uint64_t hits;
	uint64_t misses;
	uint64_t expired;
	bool recovered_batch; /* opening found a batch that a crash had interrupted */
};

/** Open the data in a store; finishes what a crash interrupted. Errors as pv_map_open(). */
int db_open(struct db *db, struct pv_store *store);
void db_close(struct db *db);

static inline uint64_t db_hash(const struct db *db, const char *key, size_t len)
{
	return pv_map_hash(db->map, key, len);
}

/** The entry of a key, or NULL; one that has expired is removed. Valid until the next change. */
struct entry *db_find(struct db *db, uint64_t hash, const char *key, size_t len);

/** Keep the time of expiry that the key has. */
#define DB_KEEP_TTL INT64_MIN

/**
 * Set a key; expiry_ms 0: it never expires. A value that is written as a number is kept as one.
 * Errors: -ENOSPC, -ENOMEM: no memory.
 */
int db_set(struct db *db, uint64_t hash, const char *key, size_t klen, const char *value,
	   size_t vlen, int64_t expiry_ms);

/** Add to the number that a key holds (0 if it is missing). Errors also: -EINVAL it is not a
 *  number, -ERANGE overflow. */
int db_add(struct db *db, uint64_t hash, const char *key, size_t klen, int64_t by, int64_t *result);

/** Append to a value; *len is its new length. Errors also: -EFBIG it would be too long. */
int db_append(struct db *db, uint64_t hash, const char *key, size_t klen, const char *value,
	      size_t vlen, size_t *len);

/** Set the time of expiry of an entry; 0: none. */
int db_expire(struct db *db, uint64_t hash, struct entry *e, int64_t expiry_ms);

/** Remove a key; *removed tells whether it was there. */
int db_delete(struct db *db, uint64_t hash, const char *key, size_t klen, bool *removed);

/** Remove all keys, in constant time; db_tidy() frees them. */
int db_clear(struct db *db);

/** Free a part of what was cleared; true: there is more to do. */
bool db_tidy(struct db *db);

/**
 * Look for keys that have expired, for about `budget_us` microseconds, and remove them. Returns
 * whether many were found, so that going on soon is worth it.
 */
bool db_expire_some(struct db *db, unsigned int budget_us);

/* ---- batch.c: several keys, all or none ---- */

/** Set n keys at once; pairs[2 * i] is a key, the next one its value. The last of equal keys wins.
 */
int db_set_many(struct db *db, const struct resp_arg *pairs, size_t n);

/**
 * Remove n keys at once; *removed counts those that were there. When there is no memory for the
 * record of a large batch it is done in parts of a few keys each.
 */
int db_delete_many(struct db *db, const struct resp_arg *keys, size_t n, size_t *removed);

/** Finish or undo the batch that a crash interrupted. */
int db_batch_recover(struct db *db);

/* ---- for batch.c ---- */

/** Reserve and fill an entry. Errors: -ENOSPC, -ENOMEM. */
int db_make_entry(struct db *db, const char *key, size_t klen, const char *value, size_t vlen,
		  int64_t expiry_ms, struct entry **out);
/** Reserve; when memory is short, what was cleared is freed first. */
int db_reserve(struct db *db, pv_type_t type, size_t bytes, void **out);
/** Put an entry into a change, with the count of expiring entries. Flags as pv_map_change_put(). */
int db_change_put(struct pv_map_change *c, uint64_t hash, struct entry *e, unsigned int flags,
		  uint64_t *expiring, struct entry **old);
/** Remove a key in a change. -ENOENT. */
int db_change_remove(struct pv_map_change *c, uint64_t hash, const char *key, size_t klen,
		     unsigned int flags, uint64_t *expiring, struct entry **old);
/** Commit the change with the new count of expiring entries. Aborts it on an error. */
int db_change_commit(struct db *db, struct pv_map_change *c, uint64_t expiring);

#endif
