/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fixture_tx.c - transactions as operations of a sweep; see fixture.h.
 */
#include <errno.h>
#include <preserve/tx.h>
#include "fixture.h"

#define SLOT_OF(arg)  ((unsigned)((arg)&0xff))
#define BYTES_OF(arg) ((size_t)((arg) >> 8))

static int note(int rc)
{
	if (rc)
		crash_note("transaction: %s", pv_last_error());
	return rc;
}

/* Note all of an object, then change all of it. */
static int rewrite(struct fixture *f, unsigned slot)
{
	struct fixture_object *o = f->table[slot];
	int rc = pv_tx_add(f->store, o, o->bytes);

	if (!rc)
		fixture_fill(o, o->bytes, o->key + 1);
	return rc;
}

static int set_slot(struct fixture *f, unsigned slot, void *object)
{
	int rc = pv_tx_add(f->store, &f->table[slot], sizeof(void *));

	if (!rc)
		f->table[slot] = object;
	return rc;
}

static int tx_object(struct fixture *f, size_t bytes, uint64_t key, void **out)
{
	int rc = pv_tx_alloc(f->store, bytes % 32 ? f->blob_type : f->node_type, bytes, out);

	if (!rc)
		fixture_fill(*out, bytes, key);
	return rc;
}

static int finish(struct fixture *f, int rc)
{
	if (!rc)
		return note(pv_tx_commit(f->store));
	note(rc);
	pv_tx_abort(f->store);
	return rc;
}

int op_tx_rewrite(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	int rc = pv_tx_begin(f->store);

	return rc ? note(rc) : finish(f, rewrite(f, (unsigned)slot));
}

int op_tx_rewrite_two(void *ctx, uintptr_t slots)
{
	struct fixture *f = ctx;
	int rc = pv_tx_begin(f->store);

	if (rc)
		return note(rc);
	rc = rewrite(f, SLOT_OF(slots));
	if (!rc)
		rc = rewrite(f, (unsigned)BYTES_OF(slots));
	return finish(f, rc);
}

int op_tx_link(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	void *object;
	int rc = pv_tx_begin(f->store);

	if (rc)
		return note(rc);
	rc = tx_object(f, BYTES_OF(arg), arg, &object);
	if (!rc)
		rc = set_slot(f, SLOT_OF(arg), object);
	return finish(f, rc);
}

int op_tx_replace(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	void *object, *old = f->table[SLOT_OF(arg)];
	int rc = pv_tx_begin(f->store);

	if (rc)
		return note(rc);
	rc = tx_object(f, BYTES_OF(arg), arg * 31 + 1, &object);
	if (!rc)
		rc = set_slot(f, SLOT_OF(arg), object);
	if (!rc)
		rc = pv_tx_free(f->store, old);
	return finish(f, rc);
}

int op_tx_unlink(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	int rc = pv_tx_begin(f->store);

	if (rc)
		return note(rc);
	rc = pv_tx_free(f->store, f->table[slot]);
	if (!rc)
		rc = set_slot(f, (unsigned)slot, NULL);
	return finish(f, rc);
}

int op_tx_nested(void *ctx, uintptr_t slots)
{
	struct fixture *f = ctx;
	int rc = pv_tx_begin(f->store);

	if (rc)
		return note(rc);
	rc = rewrite(f, SLOT_OF(slots));
	if (!rc)
		rc = op_tx_rewrite(ctx, BYTES_OF(slots));
	return finish(f, rc);
}

/* Rewrites one object, frees the other, allocates, and thinks better of it. */
int op_tx_abort(void *ctx, uintptr_t slots)
{
	struct fixture *f = ctx;
	unsigned other = (unsigned)BYTES_OF(slots);
	void *object;
	int rc = pv_tx_begin(f->store);

	if (rc)
		return note(rc);
	rc = rewrite(f, SLOT_OF(slots));
	if (!rc)
		rc = pv_tx_free(f->store, f->table[other]);
	if (!rc)
		rc = tx_object(f, 64, 5, &object);
	if (!rc)
		rc = set_slot(f, other, object);
	return note(rc ? rc : pv_tx_abort(f->store));
}

int op_tx_inner_abort(void *ctx, uintptr_t slots)
{
	struct fixture *f = ctx;
	int rc = pv_tx_begin(f->store);

	if (rc)
		return note(rc);
	rc = rewrite(f, SLOT_OF(slots));
	if (!rc)
		rc = op_tx_abort(ctx, slots);
	if (!rc)
		rc = pv_tx_commit(f->store);
	return rc == -ECANCELED ? 0 : -EDOM;
}

int op_tx_drop(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	void *object;
	int rc = pv_tx_begin(f->store);

	if (rc)
		return note(rc);
	rc = tx_object(f, 200, 6, &object);
	if (!rc)
		rc = pv_tx_add(f->store, object, 200);
	if (!rc)
		rc = rewrite(f, (unsigned)slot);
	if (!rc)
		rc = pv_tx_free(f->store, object);
	return finish(f, rc);
}

/*
 * The same ranges again and again cost log, but leave little to put back. 28 KiB: the part in the
 * lane and two chunks.
 */
static int make_long(struct fixture *f, unsigned slot)
{
	const struct fixture_object *o = f->table[slot];
	int rc = rewrite(f, slot);

	for (size_t bytes = 0; rc == 0 && bytes < 28 << 10; bytes += o->bytes)
		rc = pv_tx_add(f->store, f->table[slot], o->bytes);
	return rc ? rc : rewrite(f, slot + 1);
}

int op_tx_long(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	int rc = pv_tx_begin(f->store);

	return rc ? note(rc) : finish(f, make_long(f, (unsigned)slot));
}

int op_tx_long_abort(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	int rc = pv_tx_begin(f->store);

	if (!rc)
		rc = make_long(f, (unsigned)slot);
	return note(rc ? rc : pv_tx_abort(f->store));
}

int op_tx_publish(void *ctx, uintptr_t slots)
{
	struct fixture *f = ctx;
	int rc = pv_tx_begin(f->store);

	if (rc)
		return note(rc);
	rc = rewrite(f, SLOT_OF(slots));
	if (!rc)
		rc = op_link(ctx, SLOT(BYTES_OF(slots), 64));
	if (!rc)
		rc = rewrite(f, SLOT_OF(slots));
	return finish(f, rc);
}

int op_tx_random(void *ctx, uintptr_t seed)
{
	static int (*const ops[])(void *, uintptr_t) = {
		op_tx_rewrite, op_tx_unlink, op_tx_drop,	op_tx_rewrite_two,
		op_tx_nested,  op_tx_abort,  op_tx_inner_abort,
	};
	static const uint16_t sizes[] = {16, 64, 200, 600};
	struct fixture *f = ctx;
	uint64_t random = seed * 0x9e3779b97f4a7c15ull >> 20;
	unsigned a = (unsigned)(random % FIXTURE_SLOTS),
		 b = (unsigned)(random / 128 % FIXTURE_SLOTS);
	unsigned which = (unsigned)(random / 65536 % (sizeof(ops) / sizeof(ops[0]) + 3));
	size_t bytes = sizes[random / 4096 % 4];

	if (which >= sizeof(ops) / sizeof(ops[0]))
		return f->table[a] ? op_tx_replace(ctx, SLOT(a, bytes))
				   : op_tx_link(ctx, SLOT(a, bytes));
	for (unsigned i = 0; i < FIXTURE_SLOTS && !f->table[a]; i++)
		a = (a + 1) % FIXTURE_SLOTS;
	for (unsigned i = 0; i < FIXTURE_SLOTS && (!f->table[b] || a == b); i++)
		b = (b + 1) % FIXTURE_SLOTS;
	if (!f->table[a] || !f->table[b] || a == b)
		return 0;
	return ops[which](ctx, which < 3 ? a : SLOT(a, b));
}
