/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The operations of the benchmarks on PMDK's libpmemobj. What each function is for stands in ops.h.
 *
 * The pool lies in /dev/shm. Where it is compared with a store that has nothing to flush, it must
 * not flush either: PMEM_NO_FLUSH=1 turns flush instructions off, and PMEM_IS_PMEM_FORCE=1 keeps
 * the library from calling msync() instead, which it does on a file that is not on a DAX file
 * system. Offsets are kept instead of PMEMoids, and new contents are not flushed by hand: both to
 * the advantage of the peer.
 */
#ifndef BENCH_OPS_PMEMOBJ_H
#define BENCH_OPS_PMEMOBJ_H

#include <errno.h>
#include <libpmemobj.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "ops.h"

#define OPS_LAYOUT "libpreserve-bench"
#define OPS_TYPE   1
/* Of the pool, besides the objects. */
#define OPS_SPARE_BYTES (256ull << 20)

static PMEMobjpool *ops_pool;
static uint64_t ops_pool_uuid;
static char ops_path[4096];

static void ops_open(const struct ops_options *opts)
{
	static const char *const settings[] = {"PMEM_NO_FLUSH", "PMEM_IS_PMEM_FORCE"};
	/* An object has a header of 16 bytes, sizes are rounded up, and the slots take 8 each. */
	size_t bytes = OPS_SPARE_BYTES + opts->objects * (2 * opts->object_bytes + 64);
	int n = snprintf(ops_path, sizeof(ops_path), "%s/%s.pool",
			 opts->dir ? opts->dir : "/dev/shm", opts->name);

	if (n < 0 || (size_t)n >= sizeof(ops_path))
		bench_die("the pool's path is too long");
	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
		const char *value = getenv(settings[i]);

		if (!value || strcmp(value, "1") != 0)
			bench_die("%s=1 must be set in the environment", settings[i]);
	}
	if (opts->attach) {
		ops_pool = pmemobj_open(ops_path, OPS_LAYOUT);
	} else {
		if (unlink(ops_path) && errno != ENOENT)
			bench_die("%s: %s", ops_path, strerror(errno));
		ops_pool = pmemobj_create(ops_path, OPS_LAYOUT, bytes, 0600);
	}
	if (!ops_pool)
		bench_die("%s: %s", ops_path, pmemobj_errormsg());
}

static void ops_close(void)
{
	pmemobj_close(ops_pool);
	if (unlink(ops_path))
		bench_die("%s: %s", ops_path, strerror(errno));
}

static bench_slot *ops_table(size_t n)
{
	PMEMoid root = pmemobj_root(ops_pool, n * sizeof(bench_slot));

	if (OID_IS_NULL(root))
		bench_die("pmemobj_root: %s", pmemobj_errormsg());
	ops_pool_uuid = root.pool_uuid_lo;
	return pmemobj_direct(root);
}

static inline void ops_new(struct pobj_action actions[2], bench_slot *slot, size_t bytes,
			   uint64_t value)
{
	PMEMoid object = pmemobj_reserve(ops_pool, &actions[0], bytes, OPS_TYPE);

	if (__builtin_expect(OID_IS_NULL(object), 0))
		bench_die("pmemobj_reserve: %s", pmemobj_errormsg());
	*(uint64_t *)(void *)((char *)ops_pool + object.off) = value;
	pmemobj_set_value(ops_pool, &actions[1], slot, object.off);
}

static inline void ops_publish(struct pobj_action *actions, size_t n)
{
	if (__builtin_expect(pmemobj_publish(ops_pool, actions, n), 0))
		bench_die("pmemobj_publish: %s", pmemobj_errormsg());
}

static inline void ops_put(bench_slot *slot, size_t bytes, uint64_t value)
{
	struct pobj_action actions[2];

	ops_new(actions, slot, bytes, value);
	ops_publish(actions, 2);
}

static inline void ops_replace(bench_slot *slot, size_t bytes, uint64_t value)
{
	struct pobj_action actions[3];
	PMEMoid old = {ops_pool_uuid, *slot};

	ops_new(actions, slot, bytes, value);
	pmemobj_defer_free(ops_pool, old, &actions[2]);
	ops_publish(actions, 3);
}

static inline void ops_drop(bench_slot *slot)
{
	struct pobj_action actions[2];
	PMEMoid old = {ops_pool_uuid, *slot};

	pmemobj_set_value(ops_pool, &actions[0], slot, 0);
	pmemobj_defer_free(ops_pool, old, &actions[1]);
	ops_publish(actions, 2);
}

static inline uint64_t *ops_object(const bench_slot *slot)
{
	return (uint64_t *)(void *)((char *)ops_pool + *slot);
}

/* Without setjmp(), which only the macros of the library need: to the advantage of the peer. */
static inline void ops_change(bench_slot *slot, uint64_t value)
{
	uint64_t *object = ops_object(slot);

	if (__builtin_expect(pmemobj_tx_begin(ops_pool, NULL, TX_PARAM_NONE) != 0, 0) ||
	    __builtin_expect(pmemobj_tx_add_range_direct(object, 64) != 0, 0))
		bench_die("a transaction: %s", pmemobj_errormsg());
	ops_fill_64(object, value);
	pmemobj_tx_commit();
	if (__builtin_expect(pmemobj_tx_end() != 0, 0))
		bench_die("pmemobj_tx_end: %s", pmemobj_errormsg());
}

/* What POBJ_FOREACH_TYPE is made of: all objects, those of other types passed over. */
static inline uint64_t ops_visit(uint64_t *n)
{
	uint64_t sum = 0;

	*n = 0;
	for (PMEMoid o = pmemobj_first(ops_pool); !OID_IS_NULL(o); o = pmemobj_next(o)) {
		if (pmemobj_type_num(o) != OPS_TYPE)
			continue;
		(*n)++;
		sum += *(uint64_t *)pmemobj_direct(o);
	}
	return sum;
}

static inline uint64_t ops_value(const bench_slot *slot)
{
	return *ops_object(slot);
}

#endif
