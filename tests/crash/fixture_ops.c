/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fixture_ops.c - the operations that scenarios are made of; see fixture.h.
 */
#include <errno.h>
#include <stdio.h>
#include "fixture.h"

#define SLOT_OF(arg)  ((unsigned)((arg)&0xff))
#define BYTES_OF(arg) ((size_t)((arg) >> 8))

static int publish(struct fixture *f, const struct pv_action *actions, unsigned n)
{
	int rc = pv_publish(f->store, actions, n);

	if (rc)
		crash_note("pv_publish: %s", pv_last_error());
	return rc;
}

int op_link(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	void **slot = &f->table[SLOT_OF(arg)], *object;
	int rc = fixture_object(f, BYTES_OF(arg), arg, &object);

	if (rc)
		return rc;
	return publish(f, (struct pv_action[]){PV_LIVE(object), PV_STORE(slot, (uintptr_t)object)},
		       2);
}

int op_link_grows(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	struct pv_info before, after;
	int rc;

	pv_info_get(f->store, &before);
	rc = op_link(ctx, arg);
	pv_info_get(f->store, &after);
	if (rc == 0 && after.segments == before.segments) {
		crash_note("no segment was added to the %u that there are", before.segments);
		rc = -EDOM;
	}
	return rc;
}

int op_replace(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	void **slot = &f->table[SLOT_OF(arg)], *object;
	int rc = fixture_object(f, BYTES_OF(arg), arg * 31 + 1, &object);

	if (rc)
		return rc;
	return publish(f,
		       (struct pv_action[]){PV_LIVE(object), PV_STORE(slot, (uintptr_t)object),
					    PV_FREE(*slot)},
		       3);
}

int op_unlink(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;

	return publish(
		f, (struct pv_action[]){PV_STORE(&f->table[slot], 0), PV_FREE(f->table[slot])}, 2);
}

int op_alloc(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;

	return pv_alloc(f->store, f->node_type, BYTES_OF(arg), &f->table[SLOT_OF(arg)]);
}

int op_free(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;

	return pv_free(f->store, &f->table[slot]);
}

int op_swap(void *ctx, uintptr_t slots)
{
	struct fixture *f = ctx;
	void **a = &f->table[SLOT_OF(slots)], **b = &f->table[BYTES_OF(slots)];

	return publish(
		f, (struct pv_action[]){PV_STORE(a, (uintptr_t)*b), PV_STORE(b, (uintptr_t)*a)}, 2);
}

/* Ten objects are replaced at once. */
int op_many(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	struct pv_action actions[PV_ACTIONS_MAX];
	unsigned n = 0;

	while (n + 3 <= PV_ACTIONS_MAX) {
		void **at = &f->table[slot], *object;
		int rc = fixture_object(f, 40 + slot * 8, slot + 1000, &object);

		if (rc)
			return rc;
		actions[n++] = PV_LIVE(object);
		actions[n++] = PV_STORE(at, (uintptr_t)object);
		actions[n++] = PV_FREE(*at);
		slot++;
	}
	return publish(f, actions, n);
}

int op_reserve(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;

	for (unsigned i = SLOT_OF(arg); i > 0; i--) {
		int rc;

		if (f->n_held == FIXTURE_HELD)
			return -ENOSPC;
		rc = fixture_object(f, BYTES_OF(arg), i, &f->held[f->n_held]);
		if (rc)
			return rc;
		f->n_held++;
	}
	return 0;
}

int op_publish_held(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	void *object = f->held[--f->n_held];

	return publish(
		f,
		(struct pv_action[]){PV_LIVE(object), PV_STORE(&f->table[slot], (uintptr_t)object)},
		2);
}

int op_cancel_held(void *ctx, uintptr_t unused)
{
	struct fixture *f = ctx;
	int rc = 0;

	while (rc == 0 && f->n_held)
		rc = pv_cancel(f->store, f->held[--f->n_held]);
	return rc;
}

int op_word(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	uint64_t *word = (uint64_t *)f->table[slot] + 1;

	return publish(f, &PV_STORE(word, *word + 1), 1);
}

int op_link_many(void *ctx, uintptr_t arg)
{
	int rc = 0;

	for (unsigned i = 0; rc == 0 && i < FIXTURE_MANY; i++)
		rc = op_link(ctx, arg + i);
	return rc;
}

int op_unlink_many(void *ctx, uintptr_t slot)
{
	int rc = 0;

	for (unsigned i = 0; rc == 0 && i < FIXTURE_MANY; i++)
		rc = op_unlink(ctx, slot + i);
	return rc;
}

bool fixture_legal(void *ctx, const struct crash_verdict *v)
{
	return v->got == v->after || (v->got == v->before && !v->seen_after && !v->returned);
}

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* A slot that is empty, or is not; FIXTURE_SLOTS if there is none. */
static unsigned pick_slot(const struct fixture *f, uint64_t *random, bool empty)
{
	unsigned start = (unsigned)(next_random(random) % FIXTURE_SLOTS);

	for (unsigned i = 0; i < FIXTURE_SLOTS; i++) {
		unsigned slot = (start + i) % FIXTURE_SLOTS;

		if ((f->table[slot] == NULL) == empty)
			return slot;
	}
	return FIXTURE_SLOTS;
}

int op_random(void *ctx, uintptr_t seed)
{
	static const uint16_t sizes[] = {16,  24,  64,	 64,   64,   120,
					 200, 600, 1000, 3000, 9000, 40000};
	struct fixture *f = ctx;
	uint64_t random = (seed + 1) * 0x9e3779b97f4a7c15ull;
	size_t bytes = sizes[next_random(&random) % (sizeof(sizes) / sizeof(sizes[0]))];
	unsigned empty = pick_slot(f, &random, true), used = pick_slot(f, &random, false);

	switch (next_random(&random) % 12) {
	case 0:
	case 1:
	case 2:
		return empty < FIXTURE_SLOTS ? op_link(ctx, SLOT(empty, bytes)) : 0;
	case 3:
	case 4:
		return used < FIXTURE_SLOTS ? op_replace(ctx, SLOT(used, bytes)) : 0;
	case 5:
	case 6:
		return used < FIXTURE_SLOTS ? op_unlink(ctx, used) : 0;
	case 7:
		return empty < FIXTURE_SLOTS ? op_alloc(ctx, SLOT(empty, bytes)) : 0;
	case 8:
		return used < FIXTURE_SLOTS
			       ? op_swap(ctx, SLOT(used, next_random(&random) % FIXTURE_SLOTS))
			       : 0;
	case 9:
		return f->n_held < FIXTURE_HELD - 8 ? op_reserve(ctx, SLOT(3, bytes)) : 0;
	case 10:
		return next_random(&random) % 4 ? op_cancel_held(ctx, 0) : op_reopen(ctx, 0);
	default:
		return f->n_held && empty < FIXTURE_SLOTS ? op_publish_held(ctx, empty) : 0;
	}
}

int op_type(void *ctx, uintptr_t number)
{
	struct fixture *f = ctx;
	/* Something of everything that the index records. */
	const struct pv_field fields[] = {
		{.name = "first", .kind = PV_FIELD_POINTER, .count = 1, .stride = 8, .target = "node"},
		{.name = "second", .kind = PV_FIELD_TAGGED, .offset = 16, .count = 1, .stride = 8,
		 .mask = ~7ull, .when_offset = 8, .when_bytes = 4, .when_mask = 3, .when_value = 1},
		{.name = "more", .kind = PV_FIELD_POINTER, .offset = 24, .count = PV_FLEXIBLE,
		 .stride = 8, .count_offset = 12, .count_bytes = 2},
	};
	struct pv_typedef def = {
		.version = 1,
		.bytes = 24 + (uint32_t)number * 8,
		.fields = fields,
		.nfields = sizeof(fields) / sizeof(*fields),
	};
	char name[16];
	pv_type_t type;

	snprintf(name, sizeof(name), "type-%u", (unsigned)number);
	def.name = name;
	return pv_type_register(f->store, &def, &type);
}

int op_root(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	char name[16];
	bool created;
	void *object;
	int rc;

	snprintf(name, sizeof(name), "root-%u", SLOT_OF(arg));
	rc = pv_root(f->store, name, f->blob_type, BYTES_OF(arg), &object, &created);
	if (rc)
		crash_note("pv_root: %s", pv_last_error());
	return rc ? rc : !created;
}

int op_create(void *ctx, uintptr_t flags)
{
	return fixture_open(ctx, (uint32_t)flags);
}

int op_reopen(void *ctx, uintptr_t unused)
{
	struct fixture *f = ctx;
	int rc;

	pv_close(f->store);
	f->n_held = 0;
	f->table = NULL;
	rc = fixture_open(f, 0);
	if (!rc)
		rc = fixture_types(f);
	return rc ? rc : fixture_table(f);
}

int op_reattach(void *ctx, uintptr_t relocate)
{
	struct fixture *f = ctx;
	int rc;

	pv_close(f->store);
	f->relocate = (uint32_t)relocate;
	rc = fixture_open(f, 0);
	f->relocate = PV_RELOCATE_AUTO;
	return rc;
}

int op_settle(void *ctx, uintptr_t unused)
{
	int rc = op_reopen(ctx, 0);

	return rc ? rc : op_reopen(ctx, 0);
}

int op_destroy(void *ctx, uintptr_t unused)
{
	struct fixture *f = ctx;
	int rc = pv_destroy(f->store);

	f->store = NULL;
	f->table = NULL;
	return rc;
}
