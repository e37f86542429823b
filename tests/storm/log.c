/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log of a storm, and the bytes of its objects. The worker that writes here is killed at any
 * instruction, and then read by another process: so the order of stores counts, as in the library.
 */
#include "storm.h"

void storm_change(struct storm_log *log, struct storm_group *g, unsigned int place, uint64_t after)
{
	g->changes[g->n++] = (struct storm_change){place, log->values[place], after};
}

static void set_state(struct storm_group *g, uint32_t state)
{
	atomic_store_explicit(&g->state, state, memory_order_seq_cst);
}

void storm_pend(struct storm_group *g)
{
	set_state(g, STORM_PENDING);
}

void storm_done(struct storm_log *log, struct storm_group *g)
{
	set_state(g, STORM_RETURNED);
	for (uint32_t i = 0; i < g->n; i++)
		log->values[g->changes[i].place] = g->changes[i].after;
	atomic_fetch_add_explicit(&log->acknowledged, g->n, memory_order_relaxed);
	storm_undone(g);
}

void storm_undone(struct storm_group *g)
{
	set_state(g, STORM_IDLE);
	g->n = 0;
}

/* A large object is filled at its ends and here and there only: a storm is about the library's
 * stores. */
static size_t next_word(size_t i, size_t n)
{
	return i < 8 || i + 2 >= n ? i + 1 : i + 61 < n ? i + 61 : n - 2;
}

void storm_fill(struct storm_object *o, uint64_t key, uint64_t value)
{
	size_t n = (STORM_BYTES(value) - sizeof(*o)) / 8;

	o->key = key;
	o->value = value;
	for (size_t i = 0; i < n; i = next_word(i, n))
		o->filler[i] = storm_mix(value + i);
}

bool storm_whole(const struct storm_object *o, uint64_t key, uint64_t value)
{
	size_t n = (STORM_BYTES(value) - sizeof(*o)) / 8;
	bool zero = value & STORM_ZERO;

	if (o->key != (zero ? 0 : key) || o->value != (zero ? 0 : value))
		return false;
	for (size_t i = 0; i < n; i = next_word(i, n))
		if (o->filler[i] != (zero ? 0 : storm_mix(value + i)))
			return false;
	return true;
}
