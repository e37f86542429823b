/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * See db.h. A value is replaced by publishing a new entry in the place of the old one: one intent.
 * Two kinds of change need no new entry, for they are one aligned word of a live one: a number, and
 * a time of expiry. A third, appending, writes bytes behind the end of the value, which nobody
 * reads, and then the word that says where the end is.
 */
#include "db.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TIDY_BUCKETS 64u

static const void *key_of(const void *entry, size_t *bytes)
{
	*bytes = entry_key_len(entry);
	return entry_key(entry);
}

static const struct pv_typedef entry_type = PV_TYPE_BYTES("kv-entry", 1);
static const struct pv_typedef batch_type =
	PV_TYPE_ARRAY(struct batch_item_rec, "kv-batch-item", 1,
		      PV_POINTER_TO(struct batch_item_rec, fresh, "kv-entry"),
		      PV_POINTER_TO(struct batch_item_rec, old, "kv-entry"));
static const struct pv_typedef root_type =
	PV_TYPE(struct db_root_rec, "kv-root", 1, PV_POINTER_TO(struct db_root_rec, batch, "kv-batch-item"));

int db_open(struct db *db, struct pv_store *store)
{
	const struct pv_map_options options = {
		.size = sizeof(options), .key = key_of, .entry_bytes = sizeof(struct entry)};
	pv_type_t type;
	void *root;
	int err;

	*db = (struct db){.store = store};
	err = pv_type_register(store, &entry_type, &db->entry_type);
	if (!err)
		err = pv_type_register(store, &batch_type, &db->batch_type);
	if (!err)
		err = pv_type_register(store, &root_type, &type);
	if (!err)
		err = pv_root(store, "kvstore", type, sizeof(struct db_root_rec), &root, NULL);
	if (!err)
		err = pv_map_open(store, "keys", &options, &db->map);
	if (err)
		return err;
	db->root = root;
	db->recovered_batch = db->root->batch_state != 0;
	err = db_batch_recover(db);
	if (err)
		db_close(db);
	return err;
}

void db_close(struct db *db)
{
	pv_map_close(db->map);
	db->map = NULL;
}

int db_reserve(struct db *db, pv_type_t type, size_t bytes, void **out)
{
	for (;;) {
		int err = pv_reserve(db->store, type, bytes, out);
		struct pv_map_info info;

		if (err != -ENOSPC && err != -ENOMEM)
			return err;
		pv_map_info_get(db->map, &info);
		if (!info.clearing)
			return err;
		db_tidy(db);
	}
}

/* ---- entries ---- */

static size_t entry_bytes(size_t nwords, size_t klen, size_t vlen)
{
	return sizeof(struct entry) + nwords * sizeof(uint64_t) + klen + vlen;
}

static int make_raw(struct db *db, const char *key, size_t klen, size_t vlen, int64_t expiry_ms,
		    uint64_t flags, size_t slack, struct entry **out)
{
	void *object;
	struct entry *e;
	int err;

	if (expiry_ms)
		flags |= ENTRY_EXPIRES;
	err = db_reserve(db, db->entry_type,
			 entry_bytes((flags >> 60 & 1) + (flags >> 61 & 1), klen, vlen + slack),
			 &object);
	if (err)
		return err;
	e = object;
	e->header = flags | klen | (uint64_t)vlen << ENTRY_LEN_BITS;
	if (expiry_ms)
		e->words[0] = (uint64_t)expiry_ms;
	memcpy(entry_key(e), key, klen);
	*out = e;
	return 0;
}

int db_make_entry(struct db *db, const char *key, size_t klen, const char *value, size_t vlen,
		  int64_t expiry_ms, struct entry **out)
{
	int64_t number;
	int err;

	if (vlen <= 20 && resp_integer(value, vlen, &number)) {
		err = make_raw(db, key, klen, 0, expiry_ms, ENTRY_INTEGER, 0, out);
		if (!err)
			*entry_integer(*out) = number;
		return err;
	}
	err = make_raw(db, key, klen, vlen, expiry_ms, 0, 0, out);
	if (!err)
		memcpy(entry_value(*out), value, vlen);
	return err;
}

/* ---- changes ---- */

int db_change_put(struct pv_map_change *c, uint64_t hash, struct entry *e, unsigned int flags,
		  uint64_t *expiring, struct entry **old)
{
	bool marked = entry_expiry(e) != 0;
	void *previous = NULL;
	int err = pv_map_change_put(c, hash, e, marked ? flags | PV_MAP_MARK : flags, &previous);

	if (err)
		return err;
	*expiring += marked;
	if (previous && entry_expiry(previous))
		*expiring -= 1;
	if (old)
		*old = previous;
	return 0;
}

int db_change_remove(struct pv_map_change *c, uint64_t hash, const char *key, size_t klen,
		     unsigned int flags, uint64_t *expiring, struct entry **old)
{
	void *previous;
	int err = pv_map_change_remove(c, hash, key, klen, flags, &previous);

	if (err)
		return err;
	if (entry_expiry(previous))
		*expiring -= 1;
	if (old)
		*old = previous;
	return 0;
}

int db_change_commit(struct db *db, struct pv_map_change *c, uint64_t expiring)
{
	int err = 0;

	if (expiring != db->root->expiring)
		err = pv_map_change_add(c, PV_STORE(&db->root->expiring, expiring));
	if (!err)
		err = pv_map_change_commit(c);
	if (err)
		pv_map_change_abort(c);
	return err;
}

/* Put one entry in; on an error it is given back. */
static int put(struct db *db, uint64_t hash, struct entry *e)
{
	struct pv_map_change c;
	uint64_t expiring = db->root->expiring;
	int err;

	pv_map_change_begin(db->map, &c);
	do /* an overflow bucket may need memory that a cleared map holds */
		err = db_change_put(&c, hash, e, 0, &expiring, NULL);
	while ((err == -ENOSPC || err == -ENOMEM) && db_tidy(db));
	if (err) {
		pv_cancel(db->store, e);
		return err;
	}
	return db_change_commit(db, &c, expiring);
}

int db_delete(struct db *db, uint64_t hash, const char *key, size_t klen, bool *removed)
{
	struct pv_map_change c;
	uint64_t expiring = db->root->expiring;
	struct entry *old;
	int err;

	*removed = false;
	pv_map_change_begin(db->map, &c);
	err = db_change_remove(&c, hash, key, klen, 0, &expiring, &old);
	if (err)
		return err == -ENOENT ? 0 : err;
	*removed = !(entry_expiry(old) && entry_expiry(old) <= db->now_ms);
	db->expired += !*removed;
	return db_change_commit(db, &c, expiring);
}

static __attribute__((noinline)) bool remove_expired(struct db *db, uint64_t hash, struct entry *e)
{
	bool removed;

	if (entry_expiry(e) > db->now_ms)
		return false;
	/* If it cannot be removed now it is gone for the clients all the same. */
	db_delete(db, hash, entry_key(e), entry_key_len(e), &removed);
	return true;
}

struct entry *db_find(struct db *db, uint64_t hash, const char *key, size_t len)
{
	struct entry *e = pv_map_find(db->map, hash, key, len);

	if (e && entry_expiry(e) && remove_expired(db, hash, e))
		return NULL;
	return e;
}

int db_set(struct db *db, uint64_t hash, const char *key, size_t klen, const char *value,
	   size_t vlen, int64_t expiry_ms)
{
	struct entry *e;
	int err;

	if (expiry_ms == DB_KEEP_TTL) {
		e = db_find(db, hash, key, klen);
		expiry_ms = e ? entry_expiry(e) : 0;
	}
	err = db_make_entry(db, key, klen, value, vlen, expiry_ms, &e);
	return err ? err : put(db, hash, e);
}

/* ---- numbers ---- */

static int replace_by_number(struct db *db, uint64_t hash, const char *key, size_t klen,
			     int64_t expiry_ms, int64_t number)
{
	struct entry *e;
	int err = make_raw(db, key, klen, 0, expiry_ms, ENTRY_INTEGER, 0, &e);

	if (err)
		return err;
	*entry_integer(e) = number;
	return put(db, hash, e);
}

int db_add(struct db *db, uint64_t hash, const char *key, size_t klen, int64_t by, int64_t *result)
{
	struct entry *e = db_find(db, hash, key, klen);
	int64_t number = 0;

	if (e && entry_is_integer(e))
		number = *entry_integer(e);
	else if (e && !resp_integer(entry_value(e), entry_value_len(e), &number))
		return -EINVAL;
	if (__builtin_add_overflow(number, by, &number))
		return -ERANGE;
	*result = number;
	if (e && entry_is_integer(e)) {
		/* A single store to a live object: before it the old number, after it the new. */
		__atomic_store_n(entry_integer(e), number, __ATOMIC_RELEASE);
		return 0;
	}
	return replace_by_number(db, hash, key, klen, e ? entry_expiry(e) : 0, number);
}

/* ---- appending ---- */

static size_t entry_room(struct db *db, const struct entry *e)
{
	return pv_usable_bytes(db->store, e) -
	       entry_bytes(entry_nwords(e), entry_key_len(e), entry_value_len(e));
}

int db_append(struct db *db, uint64_t hash, const char *key, size_t klen, const char *value,
	      size_t vlen, size_t *len)
{
	struct entry *e = db_find(db, hash, key, klen), *grown;
	char digits[24];
	const char *old;
	size_t old_len, slack;
	int err;

	if (!e) {
		*len = vlen;
		return db_set(db, hash, key, klen, value, vlen, 0);
	}
	if (entry_value_len(e) + vlen > RESP_BULK_MAX)
		return -EFBIG;
	if (!entry_is_integer(e)) {
		old = entry_value(e);
		old_len = entry_value_len(e);
		*len = old_len + vlen;
		if (vlen <= entry_room(db, e)) {
			memcpy(entry_value(e) + old_len, value, vlen);
			/* Crash before this store: the bytes are not part of the value. */
			atomic_signal_fence(memory_order_seq_cst);
			__atomic_store_n(&e->header, e->header + ((uint64_t)vlen << ENTRY_LEN_BITS),
					 __ATOMIC_RELEASE);
			return 0;
		}
	} else {
		old_len = (size_t)snprintf(digits, sizeof(digits), "%lld",
					   (long long)*entry_integer(e));
		old = digits;
		*len = old_len + vlen;
	}
	/* Room for as much again, at most 1 MiB, makes a row of appends linear. */
	slack = *len < (1u << 20) ? *len : 1u << 20;
	err = make_raw(db, key, klen, *len, entry_expiry(e), 0, slack, &grown);
	if (err == -ENOSPC || err == -ENOMEM)
		err = make_raw(db, key, klen, *len, entry_expiry(e), 0, 0, &grown);
	if (err)
		return err;
	memcpy(entry_value(grown), old, old_len);
	memcpy(entry_value(grown) + old_len, value, vlen);
	return put(db, hash, grown);
}

/* ---- expiry ---- */

int db_expire(struct db *db, uint64_t hash, struct entry *e, int64_t expiry_ms)
{
	struct pv_map_change c;
	uint64_t expiring = db->root->expiring;
	struct entry *fresh;
	int err;

	if (e->header & ENTRY_EXPIRES) {
		pv_map_change_begin(db->map, &c);
		err = pv_map_change_mark(&c, hash, entry_key(e), entry_key_len(e), expiry_ms != 0);
		if (!err)
			err = pv_map_change_add(&c, PV_STORE(&e->words[0], expiry_ms));
		expiring += (expiry_ms != 0) - (uint64_t)(entry_expiry(e) != 0);
		return err ? err : db_change_commit(db, &c, expiring);
	}
	if (!expiry_ms)
		return 0;
	err = make_raw(db, entry_key(e), entry_key_len(e), entry_value_len(e), expiry_ms,
		       e->header & ENTRY_INTEGER, 0, &fresh);
	if (err)
		return err;
	if (entry_is_integer(e))
		*entry_integer(fresh) = *entry_integer(e);
	memcpy(entry_value(fresh), entry_value(e), entry_value_len(e));
	return put(db, hash, fresh);
}

struct expired_list {
	int64_t now_ms;
	unsigned int looked;
	unsigned int n;
	struct entry *entries[64];
};

static int note_expired(void *ctx, void *entry, bool mark)
{
	struct expired_list *list = ctx;

	list->looked++;
	if (entry_expiry(entry) <= list->now_ms)
		list->entries[list->n++] = entry;
	return list->n == sizeof(list->entries) / sizeof(list->entries[0]);
}

static int64_t clock_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

bool db_expire_some(struct db *db, unsigned int budget_us)
{
	int64_t end = clock_us() + budget_us;
	unsigned int looked = 0, found = 0;

	if (!db->root->expiring)
		return false;
	do {
		struct expired_list list = {.now_ms = db->now_ms};

		pv_map_each_marked(db->map, &db->expire_position, 256, note_expired, &list);
		for (unsigned int i = 0; i < list.n; i++) {
			struct entry *e = list.entries[i];
			bool removed;

			db_delete(db, db_hash(db, entry_key(e), entry_key_len(e)), entry_key(e),
				  entry_key_len(e), &removed);
		}
		looked += list.looked;
		found += list.n;
		/* The end of the table: a round is over, the next call begins another. */
	} while (db->expire_position && clock_us() < end);
	return found > looked / 4;
}

/* ---- clearing ---- */

int db_clear(struct db *db)
{
	struct pv_action none = PV_STORE(&db->root->expiring, 0);
	int err;

	do
		err = pv_map_clear(db->map, &none, 1);
	while ((err == -ENOSPC || err == -ENOMEM) && db_tidy(db));
	return err;
}

bool db_tidy(struct db *db)
{
	return pv_map_tidy(db->map, TIDY_BUCKETS);
}
