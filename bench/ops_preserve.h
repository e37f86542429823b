/* SPDX-License-Identifier: BSD-3-Clause */
/* The operations of the benchmarks on libpreserve. What each function is for stands in ops.h. */
#ifndef BENCH_OPS_PRESERVE_H
#define BENCH_OPS_PRESERVE_H

#include <preserve/preserve.h>
#include <preserve/tx.h>

#include "common.h"
#include "ops.h"

/** What a bench_slot is to the library. */
struct ops_slot {
	void *object;
};

static const struct pv_typedef ops_object_def = PV_TYPE_BYTES("bench-object", 1);
static const struct pv_typedef ops_slot_def =
	PV_TYPE(struct ops_slot, "bench-slot", 1, PV_POINTER(struct ops_slot, object));

_Static_assert(sizeof(struct ops_slot) == sizeof(bench_slot), "ops_slot");

static struct pv_store *ops_store;
static pv_type_t ops_object_type;
static pv_type_t ops_slot_type;

static inline void ops_check(int err, const char *call)
{
	if (__builtin_expect(err, 0))
		bench_die("%s: %s", call, pv_last_error());
}

static void ops_open(const struct ops_options *opts)
{
	struct pv_options options = {
		.size = sizeof(options),
		.flags = opts->attach ? 0 : PV_CREATE | PV_RESET,
		.handover = opts->keep ? PV_HANDOVER_HOLDER : PV_HANDOVER_NONE,
		.runtime_dir = opts->dir,
	};

	ops_check(pv_open(opts->name, &options, &ops_store), "pv_open");
	ops_check(pv_type_register(ops_store, &ops_object_def, &ops_object_type),
		  "pv_type_register");
	ops_check(pv_type_register(ops_store, &ops_slot_def, &ops_slot_type), "pv_type_register");
}

static void ops_close(void)
{
	ops_check(pv_destroy(ops_store), "pv_destroy");
}

static bench_slot *ops_table(size_t n)
{
	void *table;

	ops_check(pv_root(ops_store, "bench-table", ops_slot_type, n * sizeof(bench_slot), &table,
			  NULL),
		  "pv_root");
	return table;
}

static inline void *ops_new(size_t bytes, uint64_t value)
{
	void *object;

	ops_check(pv_reserve(ops_store, ops_object_type, bytes, &object), "pv_reserve");
	*(uint64_t *)object = value;
	return object;
}

static inline void ops_put(bench_slot *slot, size_t bytes, uint64_t value)
{
	ops_check(pv_link(ops_store, ops_new(bytes, value), slot), "pv_link");
}

static inline void ops_replace(bench_slot *slot, size_t bytes, uint64_t value)
{
	void *old = (void *)(uintptr_t)*slot;

	ops_check(pv_replace(ops_store, ops_new(bytes, value), slot, old), "pv_replace");
}

static inline void ops_drop(bench_slot *slot)
{
	void *old = (void *)(uintptr_t)*slot;

	ops_check(pv_unlink(ops_store, slot, 0, old), "pv_unlink");
}

static inline uint64_t *ops_object(const bench_slot *slot)
{
	return (uint64_t *)(uintptr_t)*slot;
}

static inline void ops_change(bench_slot *slot, uint64_t value)
{
	uint64_t *object = ops_object(slot);

	ops_check(pv_tx_begin(ops_store), "pv_tx_begin");
	ops_check(pv_tx_add(ops_store, object, 64), "pv_tx_add");
	ops_fill_64(object, value);
	ops_check(pv_tx_commit(ops_store), "pv_tx_commit");
}

static inline int ops_add_up(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	uint64_t *found = ctx;

	found[0]++;
	found[1] += *(uint64_t *)object;
	return 0;
}

static inline uint64_t ops_visit(uint64_t *n)
{
	uint64_t found[2] = {0, 0};

	ops_check(pv_iterate(ops_store, ops_object_type, ops_add_up, found), "pv_iterate");
	*n = found[0];
	return found[1];
}

static inline uint64_t ops_value(const bench_slot *slot)
{
	return *ops_object(slot);
}

#endif
