/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A persistent hash map of pointers to objects of the application ("entries"), by a key of any
 * bytes that stands in the entry. Written on the public functions of preserve.h alone.
 *
 * GUARANTEES
 *  - A change (a replacement, an insertion, a removal, or several of them in one struct
 *    pv_map_change) is in effect as a whole or not at all after a crash, the freeing of the entries
 *    that it removes and the number of entries included. It is in effect once the call returned.
 *  - Opening costs O(1), whatever was interrupted.
 *  - The table grows and shrinks by one bucket at a time: no call rehashes the map, and nothing
 *    needs twice the table's memory. The table takes 11 to 13 bytes an entry once there are some
 *    thousands of them.
 *  - pv_map_clear() takes the same time for any number of entries.
 *  - pv_map_scan() returns every entry that was in the map during the whole scan, at least once,
 *    across growth, shrinking and restarts.
 *
 * CAVEATS
 *  - The key of an entry must not change while it is in the map.
 *  - An entry is freed with PV_FREE; what it points to is not followed. Free that in the same
 *    change (pv_map_change_add()).
 *  - The hash is seeded with a random number drawn when the map is created. It resists keys chosen
 *    by somebody who cannot read the store; it is not a cryptographic hash.
 *
 * DAMAGED MAPS
 *  The words in the table are addresses, and an image can have been made to deceive by whoever kept it.
 *  pv_map_open() looks at the table's outline; what it opens, damaged or not, can be searched, walked
 *  and checked with pv_map_check() without a crash, a hang, or a look at memory outside of the store:
 *  every address is compared with what is mapped before it is followed, and chains that bite their
 *  tails end. A search then finds something or not, and no more can be said of a walk; a change of a
 *  damaged part is refused (-EBADMSG, -EINVAL), or changes objects of this store and nothing else.
 *  What it takes:
 *  - entry_bytes is set, and key() reads no more than that before it returns. A key that lies in the
 *    store is not read behind the store's end; one that the entry only points to is for key() to check,
 *    with pv_mapped_has().
 *  - Entries are at addresses where memory of the store is. Whether there is an object, of which type and
 *    how long, is not looked at: before the program uses an entry that it does not trust, it asks
 *    pv_usable_bytes(), or has pv_check() and pv_map_check() look at all of them once.
 *  - No other thread gives segments back meanwhile (pv_trim()), and the program does not itself free
 *    objects of which the map consists.
 *
 * ERRORS: as in preserve.h, and
 *    -ENOENT  there is no entry of this key
 *    -E2BIG   the change has no room for one more step; nothing was added to it
 *
 * THREADS
 *  The map takes no lock. Functions that take a const map may run at the same time in any number of
 *  threads; one that changes the map must run alone ("locked" below). Two maps are independent.
 */
#ifndef PRESERVE_MAP_H
#define PRESERVE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pv_map;

/** How the map reads entries. Set `size` to sizeof(struct pv_map_options); `key` is required. */
struct pv_map_options {
	size_t size;
	/** Where the key of an entry is, and its length. Called often: keep it small. */
	const void *(*key)(const void *entry, size_t *key_bytes);
	/** Another hash function, the same at every open; NULL: XXH3-64. Its low bits choose the
	 *  bucket, its top 15 bits tell entries of a bucket apart. */
	uint64_t (*hash)(const void *key, size_t key_bytes, uint64_t seed);
	/** Every entry has at least so many bytes: what key() reads to know where the key is and how long
	 *  (the struct that entries begin with). No function of this header calls key() or a visitor for
	 *  an address behind which so much is not mapped; see "damaged maps". At most
	 *  4096. 0: 16, the smallest object. */
	size_t entry_bytes;
};

/**
 * Open the map under the root object `name`, or create it empty. *out is owned by the caller and
 * must be closed before the store is. A map must not be open twice at the same time.
 * Errors: -EINVAL options; -EEXIST the root is something else; -EBADMSG the map is damaged;
 * -EMEDIUMTYPE written by another version; -ENOMEM, -ENOSPC, -EUSERS, -EPERM.
 * Crash: the map exists, empty, or does not exist; at an existing map: nothing is lost.
 */
int pv_map_open(struct pv_store *store, const char *name, const struct pv_map_options *opts,
		struct pv_map **out);

/** Release the handle. The data stay in the store. NULL is allowed. */
void pv_map_close(struct pv_map *map);

/** Number of entries. O(1), exact after a crash as well. */
uint64_t pv_map_count(const struct pv_map *map);

struct pv_map_info {
	uint64_t count;
	uint64_t buckets;
	uint64_t table_bytes; /* of the buckets in use, overflow buckets not included */
	uint64_t chunk_bytes; /* of the objects that the buckets lie in */
	uint64_t clearing;    /* buckets of cleared maps that wait for pv_map_tidy() */
};

void pv_map_info_get(const struct pv_map *map, struct pv_map_info *out);

/* ---- finding -------------------------------------------------------------------------------- */

/** Hash of a key in this map: the same as long as the map exists, cleared or not. */
uint64_t pv_map_hash(const struct pv_map *map, const void *key, size_t key_bytes);

/**
 * The two halves of hiding memory latency, for callers that have several keys to look up: first
 * fetch the bucket of every key, then, one round later, the entry that looks like it (and, if it
 * may be replaced or removed, what freeing it takes), then look up or change.
 */
void pv_map_prefetch(const struct pv_map *map, uint64_t hash);
void pv_map_prefetch_entry(const struct pv_map *map, uint64_t hash, bool change);

/** The entry of this key, or NULL. Valid until a change removes it. */
void *pv_map_find(const struct pv_map *map, uint64_t hash, const void *key, size_t key_bytes);

/* ---- changing ------------------------------------------------------------------------------- */

/**
 * Steps that take effect together. Begin, add steps, then commit or abort. Later steps see the
 * earlier ones. The fields are the map's own.
 */
struct pv_map_change {
	struct pv_map *map;
	uint64_t count;
	unsigned int n;
	unsigned int inserted;
	unsigned int removed;
	struct pv_action actions[PV_ACTIONS_MAX];
};

/** Start a change of `map`. No other change of the map may take place before it has ended. */
void pv_map_change_begin(struct pv_map *map, struct pv_map_change *change);

/** Flags of puts and removals. */
#define PV_MAP_MARK 1u /* a bit that the table keeps for the application beside the entry */
#define PV_MAP_LIVE 2u /* the entry is live already: it is not made live by the change */
#define PV_MAP_KEEP 4u /* the entry that is replaced or removed is not freed by the change */

/**
 * Put a reserved entry in under its key. An entry of the same key is replaced and freed: *old (may
 * be NULL) tells it, for reading until the commit, or NULL. `hash` is pv_map_hash() of the key.
 * Errors: -E2BIG; -EINVAL this change has put the key in already; -EBADMSG the table is damaged; -ENOSPC,
 * -ENOMEM, -EUSERS.
 * On an error the entry is still the caller's. Takes 3 actions for a replacement, 2 for an
 * insertion (4 if the bucket overflows), and 1 for the number of entries if that changes.
 */
int pv_map_change_put(struct pv_map_change *change, uint64_t hash, void *entry, unsigned int flags,
		      void **old);

/**
 * Remove the entry of this key and free it (unless PV_MAP_KEEP); *old as above.
 * Errors: -ENOENT, -E2BIG; -EINVAL this change has put the key in; -EBADMSG the table is damaged. Takes up
 * to 5 actions.
 */
int pv_map_change_remove(struct pv_map_change *change, uint64_t hash, const void *key,
			 size_t key_bytes, unsigned int flags, void **old);

/** Set the mark of a key's entry. Errors: -ENOENT, -E2BIG, -EBADMSG. Takes 1 action or none. */
int pv_map_change_mark(struct pv_map_change *change, uint64_t hash, const void *key,
		       size_t key_bytes, bool mark);

/** Add an action of the caller's own (PV_LIVE, PV_STORE, PV_FREE). Errors: -E2BIG. */
int pv_map_change_add(struct pv_map_change *change, struct pv_action action);

/**
 * Do all steps, atomically with respect to a crash; then let the table grow or shrink a little.
 * Errors as pv_publish(), with nothing changed: the change must be aborted. Locked.
 */
int pv_map_change_commit(struct pv_map_change *change);

/** Forget the change and give back every object that it would have made live: the entries too. */
void pv_map_change_abort(struct pv_map_change *change);

/** A change of one step: pv_map_change_put() and commit. On an error the entry is still the
 *  caller's. Locked. */
int pv_map_put(struct pv_map *map, uint64_t hash, void *entry, unsigned int flags);

/** A change of one step: pv_map_change_remove() and commit. Locked. */
int pv_map_remove(struct pv_map *map, uint64_t hash, const void *key, size_t key_bytes);

/* ---- walking -------------------------------------------------------------------------------- */

/** A non-zero return ends the walk and is returned. It must not change the map. */
typedef int (*pv_map_visit)(void *ctx, void *entry, bool mark);

/** Visit every entry, in the order of the table. */
int pv_map_each(const struct pv_map *map, pv_map_visit visit, void *ctx);

/**
 * Visit the marked entries of up to `buckets` buckets from number *position on, and set *position
 * to where to go on; 0: the end of the table was reached. Unmarked entries are not touched. For
 * rounds that may miss what moves meanwhile: no guarantee as pv_map_scan() gives it.
 */
int pv_map_each_marked(const struct pv_map *map, uint64_t *position, uint64_t buckets,
		       pv_map_visit visit, void *ctx);

/**
 * Visit the entries of one bucket and return the cursor of the next, below 2^48; begin with 0; the
 * scan is over when 0 is returned. A bucket holds 6 entries on average and can hold none.
 *
 * A cursor is a position in the space of bit-reversed hashes. Whatever the size of the table, each
 * bucket owns one interval of that space, the intervals do not overlap and leave no gap, and a
 * split or merge only divides or joins intervals. A call visits all entries of the interval that
 * the cursor lies in and moves the cursor to the interval's end; so all entries whose bit-reversed
 * hash lies below the cursor have been visited if they were there all the time.
 */
uint64_t pv_map_scan(const struct pv_map *map, uint64_t cursor, pv_map_visit visit, void *ctx);

/* ---- emptying, checking --------------------------------------------------------------------- */

/**
 * Make the map empty, in O(1): the old table is put aside with all its entries, to be freed by
 * pv_map_tidy(), after a restart too. `extra` actions (may be NULL) take effect with it.
 * Errors as pv_reserve() and pv_publish(), with nothing changed; -E2BIG more than 24 extras.
 * Crash: the map is empty or as before. Locked.
 */
int pv_map_clear(struct pv_map *map, const struct pv_action *extra, unsigned int nextra);

/**
 * Free what cleared maps left, up to `buckets` buckets. Returns whether there is more to do.
 * Crash: goes on where it was. Locked.
 */
bool pv_map_tidy(struct pv_map *map, uint64_t buckets);

/**
 * Walk the whole map and say what is wrong; `tell` (may be NULL) gets a line for each problem, of
 * which *problems is the number. Writes nothing. Returns 0 if the walk was done.
 */
int pv_map_check(const struct pv_map *map, void (*tell)(void *ctx, const char *line), void *ctx,
		 uint64_t *problems);

#ifdef __cplusplus
}
#endif

#endif
