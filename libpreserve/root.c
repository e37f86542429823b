/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Types and roots: the two lists in the index that the application adds to. Both are few and change
 * seldom; a change writes a whole new index.
 *
 * The list of types changes under heap_lock and index_lock, so that either is enough to read it; the
 * list of roots under index_lock alone.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "internal.h"

bool pvi_name_valid(const char *name)
{
	size_t n;

	if (!name)
		return false;
	n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
	return n > 0 && n <= PVI_NAME_MAX && name[n] == '\0' && name[0] != '.';
}

static void lock(struct pv_store *s)
{
	pthread_mutex_lock(&s->heap_lock);
	pthread_mutex_lock(&s->index_lock);
}

static void unlock(struct pv_store *s)
{
	pthread_mutex_unlock(&s->index_lock);
	pthread_mutex_unlock(&s->heap_lock);
}

/* ---- types ---- */

static uint64_t fingerprint(const struct pv_typedef *def)
{
	XXH3_state_t state;

	XXH3_INITSTATE(&state);
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, &def->version, sizeof(def->version));
	XXH3_64bits_update(&state, &def->bytes, sizeof(def->bytes));
	XXH3_64bits_update(&state, def->pointers, def->npointers * sizeof(*def->pointers));
	return XXH3_64bits_digest(&state);
}

static int check_typedef(const struct pv_typedef *def)
{
	if (!pvi_name_valid(def->name))
		return pvi_fail(-EINVAL, "type name \"%s\": 1 to %u of [A-Za-z0-9._-], no leading dot",
				def->name ? def->name : "(null)", PVI_NAME_MAX);
	if (def->npointers && !def->pointers)
		return pvi_fail(-EINVAL, "type %s: no list of pointers", def->name);
	for (uint32_t i = 0; i < def->npointers; i++) {
		if (def->pointers[i] % 8 || def->pointers[i] + 8ull > def->bytes)
			return pvi_fail(-EINVAL,
					"type %s: pointer field at offset %u: not an aligned word inside "
					"%u bytes",
					def->name, def->pointers[i], def->bytes);
		if (i && def->pointers[i] <= def->pointers[i - 1])
			return pvi_fail(-EINVAL, "type %s: pointer offsets must ascend", def->name);
	}
	return 0;
}

static int append(char *buf, size_t room, int at, const uint32_t *pointers, uint32_t n)
{
	for (uint32_t i = 0; i < n && at < (int) room; i++)
		at += snprintf(buf + at, room - (size_t) at, i ? ",%u" : "%u", pointers[i]);
	return at;
}

static int type_differs(const struct pvi_type *have, const struct pv_typedef *want)
{
	char a[100] = "", b[100] = "";

	append(a, sizeof(a), 0, have->pointers, have->npointers);
	append(b, sizeof(b), 0, want->pointers, want->npointers);
	return pvi_fail(-EMEDIUMTYPE,
			"type %s: the store has version %u, %u bytes, pointers at [%s]; the program has "
			"version %u, %u bytes, pointers at [%s]",
			have->name, have->version, have->bytes, a, want->version, want->bytes, b);
}

static int type_add(struct pv_store *s, const struct pv_typedef *def)
{
	struct pvi_type *t = &s->index.types[s->index.ntypes + 1];
	uint64_t generation;
	int err;

	if (s->readonly)
		return pvi_fail(-ENOENT, "type %s is not in the store", def->name);
	if (s->index.ntypes == PV_TYPES_MAX)
		return pvi_fail(-ENOSPC, "the store has %u types already", PV_TYPES_MAX);
	memset(t, 0, sizeof(*t));
	strcpy(t->name, def->name);
	t->version = def->version;
	t->bytes = def->bytes;
	t->fingerprint = fingerprint(def);
	if (def->npointers) {
		t->pointers = malloc(def->npointers * sizeof(*t->pointers));
		if (!t->pointers)
			return pvi_fail(-ENOMEM, "no memory for type %s", def->name);
		memcpy(t->pointers, def->pointers, def->npointers * sizeof(*t->pointers));
		t->npointers = def->npointers;
	}
	s->index.ntypes++;
	err = pvi_index_stage(&s->index, PVI_INDEX_SLACK, &generation);
	if (err) {
		s->index.ntypes--;
		free(t->pointers);
		t->pointers = NULL;
		return err;
	}
	pvi_index_commit(&s->index, generation);
	return 0;
}

int pv_type_register(struct pv_store *s, const struct pv_typedef *def, pv_type_t *out)
{
	int err = check_typedef(def);
	uint32_t i;

	if (err)
		return err;
	lock(s);
	for (i = 1; i <= s->index.ntypes; i++)
		if (strcmp(s->index.types[i].name, def->name) == 0)
			break;
	if (i > s->index.ntypes)
		err = type_add(s, def);
	else if (s->index.types[i].fingerprint != fingerprint(def))
		err = type_differs(&s->index.types[i], def);
	unlock(s);
	if (!err)
		*out = i;
	return err;
}

/* ---- roots ---- */

static struct pvi_root *root_find(struct pv_store *s, const char *name)
{
	for (uint32_t i = 0; i < s->index.nroots; i++)
		if (strcmp(s->index.roots[i].name, name) == 0)
			return &s->index.roots[i];
	return NULL;
}

static int root_check(const struct pv_store *s, const struct pvi_root *r, pv_type_t type,
		      size_t bytes)
{
	if (r->type != type)
		return pvi_fail(-EEXIST, "root %s exists with type %s", r->name,
				s->index.types[r->type].name);
	if (r->bytes < bytes)
		return pvi_fail(-EEXIST, "root %s exists with %" PRIu64 " bytes, %zu wanted", r->name,
				r->bytes, bytes);
	if (!pvi_check_live(s, r->off, r->type, r->bytes))
		return pvi_fail(-EBADMSG, "root %s: its object at offset 0x%" PRIx64
				" is not live (see pv_check)", r->name, r->off);
	return 0;
}

/*
 * The object is reserved and zeroed, an index that names it is staged, and one intent then does
 * both: object live, index in force. index_lock is held from staging to the end of the intent, so
 * that no other index takes the same slot.
 */
static int root_add(struct pv_store *s, struct pvi_thread *t, const struct pvi_root *r,
		    const struct action_rec *live)
{
	uint64_t generation;
	int err;

	if (s->index.nroots == PVI_ROOTS_MAX)
		return pvi_fail(-ENOSPC, "the store has %u roots already", PVI_ROOTS_MAX);
	s->index.roots[s->index.nroots++] = *r;
	err = pvi_index_stage(&s->index, PVI_INDEX_SLACK, &generation);
	if (err) {
		s->index.nroots--;
		return err;
	}
	t->lane->actions[0] = *live;
	t->lane->actions[1].where = pvi_lane_where(PV_DO_FLIP, 0);
	t->lane->actions[1].value = generation;
	pvi_lane_run(s, t->lane, 2);
	return 0;
}

static int root_create(struct pv_store *s, struct pvi_root *r, void **out, bool *created)
{
	struct action_rec live;
	struct pvi_thread *t;
	struct pvi_root *other;
	void *object;
	int err;

	err = pvi_thread_get(s, &t);
	if (!err)
		err = pv_reserve(s, r->type, r->bytes, &object);
	if (err)
		return err;
	memset(object, 0, r->bytes);
	err = pvi_heap_live_begin(s, object, &live);
	if (!err) {
		r->off = (uint64_t) ((uintptr_t) object - s->base);
		pthread_mutex_lock(&s->index_lock);
		other = root_find(s, r->name);
		err = other ? -EEXIST : root_add(s, t, r, &live);
		pthread_mutex_unlock(&s->index_lock);
	}
	if (err) {
		pv_cancel(s, object);
		return err;
	}
	pvi_heap_live_end(s, object);
	*out = object;
	*created = true;
	return 0;
}

int pv_root(struct pv_store *s, const char *name, pv_type_t type, size_t bytes, void **out,
	    bool *created)
{
	struct pvi_root r = {.type = type, .bytes = bytes}, *have;
	bool made = false;
	int err;

	if (!pvi_name_valid(name))
		return pvi_fail(-EINVAL, "root name \"%s\": 1 to %u of [A-Za-z0-9._-], no leading dot",
				name ? name : "(null)", PVI_NAME_MAX);
	strcpy(r.name, name);
	do { /* again if another thread made it between the look and the creation */
		pthread_mutex_lock(&s->index_lock);
		have = root_find(s, name);
		err = have ? root_check(s, have, type, bytes) : -ENOENT;
		if (!err)
			*out = (uint8_t *) s->base + have->off;
		pthread_mutex_unlock(&s->index_lock);
		if (err == -ENOENT && s->readonly)
			return pvi_fail(-ENOENT, "there is no root %s", name);
		if (err != -ENOENT)
			break;
		err = root_create(s, &r, out, &made);
	} while (err == -EEXIST);
	if (!err && created)
		*created = made;
	return err;
}

#ifdef PVI_DEBUG_CHECKS
int pvi_root_keep(struct pv_store *s, const void *object)
{
	uint64_t off = (uint64_t) ((uintptr_t) object - s->base);
	int err = 0;

	if (s->readonly) /* which says no to everything */
		return 0;
	pthread_mutex_lock(&s->index_lock);
	for (uint32_t i = 0; i < s->index.nroots && !err; i++)
		if (s->index.roots[i].off == off)
			err = pvi_fail(-EINVAL, "%p is root %s, which is never freed", object,
				       s->index.roots[i].name);
	pthread_mutex_unlock(&s->index_lock);
	return err;
}
#endif
