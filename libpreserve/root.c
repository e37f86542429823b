/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Roots: the objects that an application starts from, a list in the index. They are few and change
 * seldom; a change writes a whole new index. The list changes under index_lock.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "internal.h"

bool pvi_name_valid(const char *name)
{
	size_t n;

	if (!name)
		return false;
	n = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");
	return n > 0 && n <= PVI_NAME_MAX && name[n] == '\0' && name[0] != '.';
}

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
