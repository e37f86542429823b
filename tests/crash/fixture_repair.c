/* SPDX-License-Identifier: BSD-3-Clause */
/* fixture_repair.c - operations that leak objects, damage the index, and have both mended. */
#include <errno.h>
#include <string.h>
#include "fixture.h"
#include "internal.h"

int op_leak(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	size_t bytes = arg >> 8;
	void *object;
	int rc = 0;

	for (unsigned i = 0; rc == 0 && i < (arg & 255); i++) {
		rc = fixture_object(f, bytes, i, &object);
		if (!rc)
			rc = pv_publish(f->store, &PV_LIVE(object), 1);
	}
	return rc;
}

static void tell(void *ctx, const char *line)
{
	if (strncmp(line, "left", 4) == 0)
		crash_note("%s", line);
}

int op_repair(void *ctx, uintptr_t unused)
{
	struct fixture *f = ctx;
	struct pv_repair_options o = {
		.size = sizeof(o), .flags = PV_REPAIR_LEAKS, .threads = 1, .tell = tell};
	struct pv_repair_report r;
	int rc = pv_repair(f->store, &o, &r);

	if (rc)
		crash_note("pv_repair: %s", pv_last_error());
	else if (r.left)
		rc = -EUCLEAN;
	return rc;
}

static void damage(struct fixture *f, uintptr_t word)
{
	const struct index_rec *rec = f->store->index.rec;
	uint8_t *at = (uint8_t *)(uintptr_t)rec;

	if (word & DAMAGED_SLOT)
		at += PV_INDEX_HEADER_BYTES + (pvi_index_generation(rec) & 1) * rec->slot_bytes;
	((volatile uint64_t *)(void *)at)[word % DAMAGED_SLOT] ^= 1ull << 52;
}

int op_repair_damaged(void *ctx, uintptr_t word)
{
	damage(ctx, word);
	return op_repair(ctx, 0);
}

int op_reopen_damaged(void *ctx, uintptr_t word)
{
	damage(ctx, word);
	return op_reopen(ctx, 0);
}
