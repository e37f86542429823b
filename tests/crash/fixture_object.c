/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fixture_object.c - operations on objects that get another size or an alignment, the short forms of the
 * usual intents, and memory that is given back. Each demands that what it is there for has happened.
 */
#include <errno.h>
#include "fixture.h"

#define SLOT_OF(arg)  ((unsigned)((arg)&0xff))
#define BYTES_OF(arg) ((size_t)((arg) >> 8))

static int said(const char *call, int rc)
{
	if (rc)
		crash_note("%s: %s", call, pv_last_error());
	return rc;
}

static uint32_t segments(struct fixture *f)
{
	struct pv_info info;

	pv_info_get(f->store, &info);
	return info.segments;
}

int op_link_loose(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	void *object;
	int rc = said("pv_reserve", pv_reserve(f->store, f->node_type, BYTES_OF(arg), &object));

	if (rc)
		return rc;
	fixture_fill(object, FIXTURE_LOOSE_BYTES, arg);
	return said("pv_link", pv_link(f->store, object, &f->table[SLOT_OF(arg)]));
}

int op_link_stays(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	uint32_t before = segments(f);
	int rc = op_link(ctx, arg);

	if (rc == 0 && segments(f) != before) {
		crash_note("the store grew, although there was enough to be collected");
		rc = -EDOM;
	}
	return rc;
}

int op_short_link(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	void *object;
	int rc = fixture_object(f, BYTES_OF(arg), arg, &object);

	return rc ? rc : said("pv_link", pv_link(f->store, object, &f->table[SLOT_OF(arg)]));
}

int op_short_replace(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	void **slot = &f->table[SLOT_OF(arg)], *object;
	int rc = fixture_object(f, BYTES_OF(arg), arg * 31 + 1, &object);

	return rc ? rc : said("pv_replace", pv_replace(f->store, object, slot, *slot));
}

int op_short_unlink(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;

	return said("pv_unlink", pv_unlink(f->store, &f->table[slot], 0, f->table[slot]));
}

int op_realloc(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;

	return said("pv_realloc", pv_realloc(f->store, &f->table[SLOT_OF(arg)], BYTES_OF(arg)));
}

static int resize(struct fixture *f, uintptr_t arg, bool stays)
{
	void **slot = &f->table[SLOT_OF(arg)], *old = *slot;
	int rc = op_realloc(f, arg);

	if (rc == 0 && (*slot == old) != stays) {
		crash_note("the object %s", stays ? "has moved" : "has stayed");
		rc = -EDOM;
	}
	return rc;
}

int op_realloc_stays(void *ctx, uintptr_t arg)
{
	return resize(ctx, arg, true);
}

int op_realloc_moves(void *ctx, uintptr_t arg)
{
	return resize(ctx, arg, false);
}

int op_link_aligned(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	size_t align = 1ul << BYTES_OF(arg);
	void *object;
	int rc = said("pv_reserve_aligned",
		      pv_reserve_aligned(f->store, f->node_type, FIXTURE_LOOSE_BYTES, align, &object));

	if (rc)
		return rc;
	if ((uintptr_t)object % align) {
		crash_note("%p is no multiple of %zu", object, align);
		return -EDOM;
	}
	fixture_fill(object, FIXTURE_LOOSE_BYTES, arg);
	return said("pv_link", pv_link(f->store, object, &f->table[SLOT_OF(arg)]));
}

int op_trim(void *ctx, uintptr_t unused)
{
	struct fixture *f = ctx;

	return said("pv_trim", pv_trim(f->store, NULL));
}

int op_trim_to(void *ctx, uintptr_t want)
{
	struct fixture *f = ctx;
	uint32_t before = segments(f);
	int rc = op_trim(f, 0);

	/* What came free cannot be asked for: the engine looks into the holes, which fills them. */
	if (rc == 0 && segments(f) != want) {
		crash_note("%u segments became %u, not %u", before, segments(f), (unsigned)want);
		rc = -EDOM;
	}
	return rc;
}
