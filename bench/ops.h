/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The operations that a benchmark is written in. OPS_HEADER, set by the build, is one of
 *
 *	ops_preserve.h	pv_reserve, pv_publish
 *	ops_pmemobj.h	pmemobj_reserve, pmemobj_publish
 *	ops_malloc.h	malloc, free
 *
 * and defines, all of them static so that a benchmark is compiled as if it were written for one
 * side:
 *
 *	ops_open(opts)			make a store, or open the one that is there; dies on errors
 *	ops_close()			and drop its data
 *	ops_table(n)			n empty slots, in the store; the same at every open
 *	ops_put(slot, bytes, value)	a new object into an empty slot, beginning with `value`
 *	ops_replace(slot, bytes, value)	the same instead of the object that the slot names
 *	ops_drop(slot)			free the object that the slot names, and empty it
 *	ops_change(slot, value)		ops_fill_64() on that object, in a transaction (not malloc)
 *	ops_object(slot)		address of the object that the slot names
 *	ops_value(slot)			its first 8 bytes
 *	ops_visit(&n)			visit all objects: how many, and the sum of their first 8
 *					bytes (not malloc)
 *
 * Where data survive, each of the four changes is atomic with respect to a crash. Two threads must
 * not change a slot at the same time.
 */
#ifndef BENCH_OPS_H
#define BENCH_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ops_options {
	const char *impl; /* the name under which the figures are reported */
	bool attach;	  /* the store must be there; otherwise make a new one */
	bool keep;	  /* the store must survive the process */
	const char *dir; /* where the store, or the socket of its holder, lies; NULL: the default */
	const char *name;    /* of the store */
	size_t object_bytes; /* room that will be needed, for those who must know it beforehand */
	size_t objects;
};

/** 64 bytes that depend on `value`, into an object. */
static inline void ops_fill_64(uint64_t *object, uint64_t value)
{
	for (uint64_t i = 0; i < 8; i++)
		object[i] = value + i;
}

#endif
