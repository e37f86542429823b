/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Follow the references of all live objects of a store, by the maps that its index has: each must name
 * the start of a live object, of the type that the map says, or nothing. For tests that know that there is
 * no process with unpublished changes; linked with the library's inside.
 */
#ifndef TESTS_REFERENCES_H
#define TESTS_REFERENCES_H

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"
#include "typemap.h"

struct references {
	struct pv_store *store;
	const struct pvi_type *type;
	uint8_t *object;
	uint64_t followed;
	char wrong[300]; /* the first that is; empty: none */
};

static int references_follow(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	struct references *r = ctx;
	struct pv_store *s = r->store;
	uint64_t to = pvi_field_target(f, at, s->base);
	bool live = false;

	if (!to)
		return 0;
	r->followed++;
	for (uint32_t i = 1; i <= s->index.ntypes && !live; i++)
		live = (!*f->target || strcmp(f->target, s->index.types[i].name) == 0) &&
		       pvi_check_live(s, to - s->base, i, 1);
	if (live)
		return 0;
	snprintf(r->wrong, sizeof(r->wrong), "object %p of type %s: %s at %zu names 0x%" PRIx64 ", which is no live %s",
		 (void *)r->object, r->type->name, f->name, (size_t)(at - r->object), to,
		 *f->target ? f->target : "object");
	return 1;
}

static int references_of_object(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	struct references *r = ctx;

	r->type = &r->store->index.types[type];
	r->object = object;
	return pvi_typemap_visit(r->type, object, bytes, references_follow, r);
}

/** False: r->wrong says what. */
static inline bool references_sound(struct pv_store *s, struct references *r)
{
	*r = (struct references){.store = s};
	return pv_iterate(s, 0, references_of_object, r) == 0;
}

#endif
