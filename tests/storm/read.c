/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A reader without locks; see storm_read().
 */
#include <time.h>

#include <urcu.h>
#include <urcu/flavor.h>

#include <preserve/retire.h>

#include "storm.h"

int storm_read_init(struct storm_store *st)
{
	return pv_retire_flavor(st->s, &rcu_flavor);
}

enum { AT_ONCE = 16 };

/* Some objects, then a while, in which they may be retired, then the same objects. */
static void look(struct storm_thread *t)
{
	const struct timespec some_time = {.tv_nsec = 1000 + (long)storm_below(&t->random, 200000)};
	const struct storm_object *objects[AT_ONCE];
	uint64_t values[AT_ONCE];

	rcu_read_lock();
	for (unsigned int i = 0; i < AT_ONCE; i++) {
		uint64_t place = STORM_SHARED + storm_below(&t->random, STORM_CELLS - STORM_SHARED);

		objects[i] = __atomic_load_n(&t->st->table->cells[place].object, __ATOMIC_ACQUIRE);
		values[i] = objects[i] ? objects[i]->value : 0;
	}
	nanosleep(&some_time, NULL);
	for (unsigned int i = 0; i < AT_ONCE; i++) {
		if (!objects[i])
			continue;
		if (!storm_whole(objects[i], STORM_CELL_KEY, values[i]))
			storm_fail(t->log, "%p has changed under a reader",
				   (const void *)objects[i]);
		atomic_fetch_add_explicit(&t->log->read, 1, memory_order_relaxed);
	}
	rcu_read_unlock();
}

void *storm_read(void *thread)
{
	struct storm_thread *t = thread;

	rcu_register_thread();
	for (;;)
		look(t);
	return NULL;
}
