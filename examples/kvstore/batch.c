/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changes of several keys that take effect together, whatever their number.
 *
 * Few keys fit into one intent. More are done one by one under the protection of a batch, which the
 * root object names while it is under way:
 *
 *	SETTING		each step puts one new entry in and notes it and the one it replaces, which
 *			stays live. Crash: recovery undoes the steps, the last one first.
 *	FREEING		all are in: the batch counts. What was replaced is freed. Crash: go on.
 *	REMOVING	the entries to remove were noted beforehand; each step removes and frees
 * one. Crash: go on.
 *
 * One store takes a batch from SETTING to FREEING; one publish makes a REMOVING batch known.
 * Undoing and removing need no memory, so they cannot fail for want of it.
 */
#include "db.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH_NONE = 0, BATCH_SETTING = 1, BATCH_FREEING = 2, BATCH_REMOVING = 3 };

/* In one intent: 2 or 3 actions a key to set, up to 4 a key to remove, and one each for the number
 * of keys and of expiring keys. */
#define FEW_SETS    14u
#define FEW_REMOVES 7u

static int announce(struct db *db, struct batch_item_rec *items, uint64_t state, uint64_t n)
{
	struct db_root_rec *root = db->root;
	int err = pv_publish(db->store,
			     (struct pv_action[]){
				     PV_LIVE(items),
				     PV_STORE(&root->batch, (uintptr_t)items),
				     PV_STORE(&root->batch_count, n),
				     PV_STORE(&root->batch_done, 0),
				     PV_STORE(&root->batch_state, state),
			     },
			     5);

	if (err)
		pv_cancel(db->store, items);
	return err;
}

static int end(struct db *db)
{
	struct db_root_rec *root = db->root;

	return pv_publish(db->store,
			  (struct pv_action[]){
				  PV_STORE(&root->batch_state, BATCH_NONE),
				  PV_STORE(&root->batch, 0),
				  PV_FREE(root->batch),
			  },
			  3);
}

/* A list of n items, after whatever an earlier failure left has been cleared away. */
static int reserve_items(struct db *db, size_t n, struct batch_item_rec **out)
{
	void *object;
	int err = db_batch_recover(db);

	if (!err)
		err = db_reserve(db, db->batch_type, n * sizeof(struct batch_item_rec), &object);
	if (err)
		return err;
	/* All of it is pointers, used or not. */
	memset(object, 0, n * sizeof(struct batch_item_rec));
	*out = object;
	return 0;
}

/* Commit a step of the batch. */
static int commit_step(struct db *db, struct pv_map_change *c, uint64_t done, uint64_t expiring)
{
	int err = pv_map_change_add(c, PV_STORE(&db->root->batch_done, done));

	if (!err)
		return db_change_commit(db, c, expiring);
	pv_map_change_abort(c);
	return err;
}

/* ---- setting ---- */

static int undo(struct db *db)
{
	struct db_root_rec *root = db->root;

	while (root->batch_done) {
		struct batch_item_rec *item = &root->batch[root->batch_done - 1];
		const char *key = entry_key(item->fresh);
		size_t klen = entry_key_len(item->fresh);
		uint64_t hash = db_hash(db, key, klen), expiring = root->expiring;
		struct pv_map_change c;
		int err;

		pv_map_change_begin(db->map, &c);
		if (item->old)
			err = db_change_put(&c, hash, item->old, PV_MAP_LIVE, &expiring, NULL);
		else
			err = db_change_remove(&c, hash, key, klen, 0, &expiring, NULL);
		if (!err)
			err = commit_step(db, &c, root->batch_done - 1, expiring);
		if (err)
			return err;
	}
	return end(db);
}

static int free_replaced(struct db *db)
{
	struct db_root_rec *root = db->root;

	while (root->batch_done) {
		struct pv_action a[PV_ACTIONS_MAX];
		uint64_t done = root->batch_done;
		unsigned int n = 0;
		int err;

		for (; done && n < PV_ACTIONS_MAX - 1; done--)
			if (root->batch[done - 1].old)
				a[n++] = PV_FREE(root->batch[done - 1].old);
		a[n++] = PV_STORE(&root->batch_done, done);
		err = pv_publish(db->store, a, n);
		if (err)
			return err;
	}
	return end(db);
}

static int set_step(struct db *db, const struct resp_arg *key, const struct resp_arg *value)
{
	struct db_root_rec *root = db->root;
	struct batch_item_rec *item = &root->batch[root->batch_done];
	uint64_t hash = db_hash(db, key->data, key->len), expiring = root->expiring;
	struct pv_map_change c;
	struct entry *e, *old;
	int err = db_make_entry(db, key->data, key->len, value->data, value->len, 0, &e);

	if (err)
		return err;
	pv_map_change_begin(db->map, &c);
	err = db_change_put(&c, hash, e, PV_MAP_KEEP, &expiring, &old);
	if (err) {
		pv_cancel(db->store, e);
		return err;
	}
	/* Nobody looks at an item before batch_done says so. */
	*item = (struct batch_item_rec){.fresh = e, .old = old};
	return commit_step(db, &c, root->batch_done + 1, expiring);
}

static int set_in_steps(struct db *db, const struct resp_arg *pairs, size_t n)
{
	struct batch_item_rec *items;
	int err = reserve_items(db, n, &items);

	if (!err)
		err = announce(db, items, BATCH_SETTING, n);
	if (err)
		return err;
	for (size_t i = 0; i < n && !err; i++)
		err = set_step(db, &pairs[2 * i], &pairs[2 * i + 1]);
	if (err) {
		int undone = undo(db);

		return undone ? undone : err;
	}
	/* Crash before this store: nothing was set; after it: everything. */
	__atomic_store_n(&db->root->batch_state, BATCH_FREEING, __ATOMIC_RELEASE);
	return free_replaced(db);
}

static int set_at_once(struct db *db, const struct resp_arg *pairs, size_t n)
{
	uint64_t expiring = db->root->expiring;
	struct pv_map_change c;
	int err = 0;

	pv_map_change_begin(db->map, &c);
	for (size_t i = 0; i < n && !err; i++) {
		const struct resp_arg *key = &pairs[2 * i], *value = &pairs[2 * i + 1];
		struct entry *e;

		err = db_make_entry(db, key->data, key->len, value->data, value->len, 0, &e);
		if (err)
			break;
		err = db_change_put(&c, db_hash(db, key->data, key->len), e, 0, &expiring, NULL);
		if (err)
			pv_cancel(db->store, e);
	}
	if (!err)
		return db_change_commit(db, &c, expiring);
	pv_map_change_abort(&c);
	return err;
}

int db_set_many(struct db *db, const struct resp_arg *pairs, size_t n)
{
	int err = n <= FEW_SETS ? set_at_once(db, pairs, n) : -E2BIG;

	/* Too many actions, or a key that stands twice. */
	return err == -E2BIG || err == -EINVAL ? set_in_steps(db, pairs, n) : err;
}

/* ---- removing ---- */

static int remove_noted(struct db *db)
{
	struct db_root_rec *root = db->root;

	while (root->batch_done < root->batch_count) {
		struct entry *e = root->batch[root->batch_done].old;
		uint64_t hash = db_hash(db, entry_key(e), entry_key_len(e));
		uint64_t expiring = root->expiring;
		struct pv_map_change c;
		int err;

		pv_map_change_begin(db->map, &c);
		err = db_change_remove(&c, hash, entry_key(e), entry_key_len(e), 0, &expiring,
				       NULL);
		if (!err)
			err = commit_step(db, &c, root->batch_done + 1, expiring);
		if (err)
			return err;
	}
	return end(db);
}

static int by_address(const void *a, const void *b)
{
	uintptr_t x = (uintptr_t)((const struct batch_item_rec *)a)->old;
	uintptr_t y = (uintptr_t)((const struct batch_item_rec *)b)->old;

	return x < y ? -1 : x > y;
}

/* Note the entries of these keys, each once. */
static size_t note_entries(struct db *db, const struct resp_arg *keys, size_t n,
			   struct batch_item_rec *items)
{
	size_t found = 0, unique = 0;

	for (size_t i = 0; i < n; i++) {
		uint64_t hash = db_hash(db, keys[i].data, keys[i].len);
		struct entry *e = db_find(db, hash, keys[i].data, keys[i].len);

		if (e)
			items[found++] = (struct batch_item_rec){.old = e};
	}
	qsort(items, found, sizeof(*items), by_address);
	for (size_t i = 0; i < found; i++)
		if (i == 0 || items[i].old != items[i - 1].old)
			items[unique++] = items[i];
	memset(items + unique, 0, (found - unique) * sizeof(*items));
	return unique;
}

static int remove_at_once(struct db *db, const struct resp_arg *keys, size_t n, size_t *removed)
{
	uint64_t expiring = db->root->expiring;
	struct pv_map_change c;
	size_t count = 0;

	pv_map_change_begin(db->map, &c);
	for (size_t i = 0; i < n; i++) {
		uint64_t hash = db_hash(db, keys[i].data, keys[i].len);
		struct entry *old;
		int err = db_change_remove(&c, hash, keys[i].data, keys[i].len, 0, &expiring, &old);

		if (err == -ENOENT)
			continue;
		if (err) {
			pv_map_change_abort(&c);
			return err;
		}
		if (entry_expiry(old) && entry_expiry(old) <= db->now_ms)
			db->expired++;
		else
			count++;
	}
	*removed = count;
	return c.removed ? db_change_commit(db, &c, expiring) : 0;
}

static int remove_in_parts(struct db *db, const struct resp_arg *keys, size_t n, size_t *removed)
{
	size_t total = 0;

	for (size_t i = 0; i < n; i += FEW_REMOVES) {
		size_t part = n - i < FEW_REMOVES ? n - i : FEW_REMOVES, count;
		int err = remove_at_once(db, keys + i, part, &count);

		if (err)
			return err;
		total += count;
	}
	*removed = total;
	return 0;
}

int db_delete_many(struct db *db, const struct resp_arg *keys, size_t n, size_t *removed)
{
	struct batch_item_rec *items;
	int err;

	if (n <= FEW_REMOVES)
		return remove_at_once(db, keys, n, removed);
	err = reserve_items(db, n, &items);
	if (err == -ENOSPC || err == -ENOMEM)
		return remove_in_parts(db, keys, n, removed);
	if (err)
		return err;
	n = note_entries(db, keys, n, items);
	*removed = n;
	if (!n)
		return pv_cancel(db->store, items);
	err = announce(db, items, BATCH_REMOVING, n);
	return err ? err : remove_noted(db);
}

/* ---- recovery ---- */

int db_batch_recover(struct db *db)
{
	switch (db->root->batch_state) {
	case BATCH_SETTING:
		return undo(db);
	case BATCH_FREEING:
		return free_replaced(db);
	case BATCH_REMOVING:
		return remove_noted(db);
	}
	return 0;
}
