/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The operations of the benchmarks on malloc(): glibc's, or one that is loaded before it. What each
 * function is for stands in ops_preserve.h. Nothing of it survives the process.
 */
#ifndef BENCH_OPS_MALLOC_H
#define BENCH_OPS_MALLOC_H

#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "common.h"
#include "ops.h"

/* A name that only this allocator has; the preloading of a library that is not there is a warning
 * of the dynamic linker, and would measure glibc under another name. */
static const struct {
	const char *name, *symbol;
} ops_allocators[] = {{"glibc", NULL}, {"jemalloc", "mallctl"}, {"mimalloc", "mi_version"}};

static void ops_open(const struct ops_options *opts)
{
	const char *found = "glibc";

	for (size_t i = 0; i < sizeof(ops_allocators) / sizeof(ops_allocators[0]); i++) {
		const char *symbol = ops_allocators[i].symbol;

		if (symbol && dlsym(RTLD_DEFAULT, symbol))
			found = ops_allocators[i].name;
	}
	if (strcmp(found, opts->impl) != 0)
		bench_die(
			"this process uses %s, not %s: is its library installed and in LD_PRELOAD?",
			found, opts->impl);
}

static void ops_close(void)
{
}

static bench_slot *ops_table(size_t n)
{
	void *table = mmap(NULL, n * sizeof(bench_slot), PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (table == MAP_FAILED)
		bench_die("no memory for a table of %zu slots: %s", n, strerror(errno));
	return table;
}

static inline bench_slot ops_new(size_t bytes, uint64_t value)
{
	uint64_t *object = malloc(bytes);

	if (!object)
		bench_die("malloc of %zu bytes failed", bytes);
	*object = value;
	return (bench_slot)(uintptr_t)object;
}

static inline void ops_put(bench_slot *slot, size_t bytes, uint64_t value)
{
	__atomic_store_n(slot, ops_new(bytes, value), __ATOMIC_RELEASE);
}

static inline void ops_replace(bench_slot *slot, size_t bytes, uint64_t value)
{
	bench_slot old = *slot;

	__atomic_store_n(slot, ops_new(bytes, value), __ATOMIC_RELEASE);
	free((void *)(uintptr_t)old);
}

static inline void ops_drop(bench_slot *slot)
{
	bench_slot old = *slot;

	__atomic_store_n(slot, 0, __ATOMIC_RELEASE);
	free((void *)(uintptr_t)old);
}

static inline uint64_t *ops_object(const bench_slot *slot)
{
	return (uint64_t *)(uintptr_t)*slot;
}

static inline uint64_t ops_value(const bench_slot *slot)
{
	return *ops_object(slot);
}

#endif
