/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Registered types: the list in the index to which the application adds. It is short and seldom changes;
 * a change writes a whole new index.
 *
 * The list changes under heap_lock and index_lock, so that either is enough to read it.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "internal.h"
#include "typemap.h"
#include "upgrade.h"

void pvi_types_lock(struct pv_store *s)
{
	pthread_mutex_lock(&s->heap_lock);
	pthread_mutex_lock(&s->index_lock);
}

void pvi_types_unlock(struct pv_store *s)
{
	pthread_mutex_unlock(&s->index_lock);
	pthread_mutex_unlock(&s->heap_lock);
}

int pvi_type_differs(const struct pvi_type *have, const struct pvi_type *want, uint32_t nupgrades)
{
	char a[800], b[800];

	pvi_typemap_describe(have, a, sizeof(a));
	pvi_typemap_describe(want, b, sizeof(b));
	if (have->version == want->version)
		return pvi_fail(-EMEDIUMTYPE,
				"type %s: the store has %s; the program has %s: another layout needs another "
				"version",
				have->name, a, b);
	return pvi_fail(-EMEDIUMTYPE, "type %s: the store has %s; the program has %s%s", have->name, a, b,
			nupgrades ? ", and no upgrades that lead there" : "");
}

uint32_t pvi_type_find(const struct pv_store *s, const char *name)
{
	for (uint32_t i = 1; i <= s->index.ntypes; i++)
		if (s->index.types[i].state == PVI_TYPE_USED &&
		    strcmp(s->index.types[i].name, name) == 0)
			return i;
	return 0;
}

/* *made becomes the index's on success. A crash leaves the index with it or the one without. */
static int type_add(struct pv_store *s, const struct pvi_type *made)
{
	uint64_t generation;
	int err;

	if (s->readonly)
		return pvi_fail(-ENOENT, "type %s is not in the store", made->name);
	if (s->index.ntypes == PV_TYPES_MAX)
		return pvi_fail(-ENOSPC, "the store has %u types already", PV_TYPES_MAX);
	s->index.types[s->index.ntypes + 1] = *made;
	s->index.ntypes++;
	err = pvi_index_stage(&s->index, PVI_INDEX_SLACK, &generation);
	if (err) {
		memset(&s->index.types[s->index.ntypes--], 0, sizeof(*made));
		return err;
	}
	pvi_index_commit(&s->index, generation);
	return 0;
}

int pv_type_register(struct pv_store *s, const struct pv_typedef *def, pv_type_t *out)
{
	struct pvi_type made;
	bool added = false, differs = false;
	int err = pvi_typemap_flatten(def, &made);
	uint32_t i;

	if (err)
		return err;
	err = pvi_upgrade_check(def);
	pvi_types_lock(s);
	i = pvi_type_find(s, def->name);
	if (!err && !i) {
		err = type_add(s, &made);
		i = s->index.ntypes;
		added = !err;
	} else if (!err && s->index.types[i].fingerprint != made.fingerprint) {
		differs = true;
		if (!def->nupgrades)
			err = pvi_type_differs(&s->index.types[i], &made, 0);
	}
	pvi_types_unlock(s);
	if (!added)
		pvi_typemap_free(&made);
	if (differs && !err)
		return pv_types_register(s, &def, 1, NULL, NULL, out);
	if (!err)
		*out = i;
	return err;
}
