/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_lock.c - crash sweeps of locks in objects: wherever the process dies, the next one finds the lock
 * free. The lock is in a root object of its own; what it protects is the table.
 */
#include <preserve/lock.h>
#include "fixture.h"

static struct fixture roomy = {.lanes = 4, .segment_bytes = 128 << 10};

static int find_lock(struct fixture *f, struct pv_lock **lock)
{
	void *root;
	int rc = pv_root(f->store, "lock", f->blob_type, sizeof(**lock), &root, NULL);

	*lock = root;
	return rc;
}

static int setup(void *ctx)
{
	struct pv_lock *lock;
	int rc = fixture_setup_settled(ctx);

	if (!rc)
		rc = find_lock(ctx, &lock);
	return rc ? rc : op_settle(ctx, 0);
}

static int call(struct fixture *f, int (*f_lock)(struct pv_store *s, struct pv_lock *lock))
{
	struct pv_lock *lock;
	int rc = find_lock(f, &lock);

	if (!rc)
		rc = f_lock(f->store, lock);
	if (rc)
		crash_note("lock: %s", pv_last_error());
	return rc;
}

static int op_take(void *ctx, uintptr_t unused)
{
	return call(ctx, pv_lock_take);
}

static int op_release(void *ctx, uintptr_t unused)
{
	return call(ctx, pv_lock_release);
}

static int op_locked_swap(void *ctx, uintptr_t slots)
{
	int rc = call(ctx, pv_lock_take);

	if (!rc)
		rc = op_swap(ctx, slots);
	return rc ? rc : call(ctx, pv_lock_release);
}

static const struct crash_op ops[] = {
	{"take", op_take, 0, CRASH_UNCHANGED, NULL},
	{"release", op_release, 0, CRASH_UNCHANGED, NULL},
	{"change something", op_locked_swap, SLOT(1, 2), CRASH_ATOMIC, NULL},
	{"take again", op_take, 0, CRASH_UNCHANGED, NULL},
	{"attach with it held", op_reopen, 0, CRASH_UNCHANGED, NULL},
	{"change something again", op_locked_swap, SLOT(1, 3), CRASH_ATOMIC, NULL},
};

/* The two swaps share a slot, so that the order in which they are done makes a difference. */
static const struct crash_op pair[] = {
	{"A: swap", op_locked_swap, SLOT(1, 2), CRASH_ATOMIC, NULL},
	{"B: swap", op_locked_swap, SLOT(2, 3), CRASH_ATOMIC, NULL},
};

/* In a recovered store: nobody has the lock, and it works. */
static int probe(void *ctx)
{
	struct fixture *f = ctx;
	int rc = fixture_probe(ctx);

	if (!rc)
		rc = call(f, pv_lock_try);
	return rc ? rc : call(f, pv_lock_release);
}

#define LOCK_SCENARIO(title, operations, two)                                                  \
	{                                                                                      \
		.name = (title), .ctx = &roomy, .ops = (operations),                           \
		.n_ops = sizeof(operations) / sizeof((operations)[0]), .setup = setup,         \
		.recover = fixture_recover, .check = fixture_check, .close = fixture_close,    \
		.probe = probe, .is_switch = (two)                                             \
	}

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		LOCK_SCENARIO("lock", ops, false),
		LOCK_SCENARIO("locked-swaps", pair, true),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
