/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A kill storm: a process with several threads works on a store and is killed at a random instant;
 * another process attaches the store and compares it with a log of what had been acknowledged.
 *
 *	main.c		the driver: starts workers, kills them, checks, counts
 *	work.c		the worker process: threads that come and go
 *	ops.c, tx.c	what the threads do
 *	read.c		a reader without locks
 *	log.c		the log, and what an object of the storm looks like
 *	check.c		the store after a kill, against the log
 *	keep.c		descriptors: a worker hands them to the driver as it would to a holder
 *
 * The log lies in shared memory outside of the store. A *place* is something that has one value at
 * a time: a cell of the table, a key of the map, a root. Whoever changes places has them to itself
 *(busy flags, the map's lock), writes down which and to what, calls the library, writes down that
 * the call has returned, then the new values. So after a kill every place that no thread had written
 * down has the logged value, and what a thread had written down is in effect as a whole, or, unless
 * the call had returned, not at all.
 */
#ifndef STORM_H
#define STORM_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <preserve/lock.h>
#include <preserve/map.h>
#include <preserve/preserve.h>

enum {
	STORM_CELLS = 160,
	STORM_SHARED = 128, /* cells from here on are read without a lock: see storm_read() */
	STORM_KEYS = 300,
	STORM_ROOTS = 8,
	STORM_KEY0 = STORM_CELLS, /* places: cells, then keys, then roots */
	STORM_ROOT0 = STORM_KEY0 + STORM_KEYS,
	STORM_PLACES = STORM_ROOT0 + STORM_ROOTS,
	STORM_THREADS = 4, /* at a time */
	STORM_GROUPS = 2,  /* for each: a transaction, and an intent in the middle of it */
	STORM_CHANGES = STORM_KEYS + 8,
	STORM_FDS = 64,
};

/*
 * A value: which object is at a place. 0: none. Otherwise the length of the object in the low bits,
 * whether it is all zero, and a number that no other object has.
 */
#define STORM_BYTES_BITS   20
#define STORM_BYTES(value) ((size_t)((value) & ((1u << STORM_BYTES_BITS) - 1)))
#define STORM_ZERO	   (1ull << STORM_BYTES_BITS)

/* Key of the objects in cells, which move from one to another. */
#define STORM_CELL_KEY 0x7ab1eull

/** An object of the storm. All bytes follow from key and value. */
struct storm_object {
	uint64_t key;
	uint64_t value;
	uint64_t filler[];
};

/** A cell of the table. In an even cell the word repeats the object's value, by the same change. */
struct storm_cell {
	struct storm_object *object;
	uint64_t word;
};

struct storm_table {
	struct pv_lock map_lock; /* whoever changes the map has all of its keys to itself */
	uint64_t reserved;
	struct storm_cell cells[STORM_CELLS];
};

/* ---- log.c ---- */

enum storm_state {
	STORM_IDLE = 0,
	STORM_PENDING,	/* before or after */
	STORM_RETURNED, /* after */
};

struct storm_change {
	uint64_t place;
	uint64_t before;
	uint64_t after;
};

struct storm_group {
	_Atomic uint32_t state;
	uint32_t n;
	struct storm_change changes[STORM_CHANGES];
};

enum storm_stage { STORM_NOTHING = 0, STORM_CREATED, STORM_TABLE, STORM_MAP };

/** Shared by driver and workers. */
struct storm_log {
	uint64_t values[STORM_PLACES];
	struct storm_group groups[STORM_THREADS][STORM_GROUPS];
	_Atomic uint32_t stage;	       /* how far the creation of the store has come */
	_Atomic uint64_t acknowledged; /* changes */
	_Atomic uint64_t foreign; /* objects freed or published by another thread than their own */
	_Atomic uint64_t threads; /* that began */
	_Atomic uint64_t retired;
	_Atomic uint64_t read; /* objects, under the eyes of those who retire them */
	char failure[600];     /* of a worker */
};

/** How a worker lives. */
struct storm_plan {
	uint64_t seed;
	uint64_t segment_bytes, limit_bytes;
	uint32_t page_bytes, lanes;
	uint32_t relocate; /* of the next attach: half of the time at another base */
	uint32_t threads;
	uint32_t ops;	   /* the process is killed after this many; 0: never */
	uint32_t timer_ns; /* and after this time, ... */
	bool from_start;   /* which begins before the store is opened, or with the threads */
	bool attach_only;
};

static inline uint64_t storm_mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}
static inline uint64_t storm_random(uint64_t *state)
{
	return storm_mix(*state += 0x9e3779b97f4a7c15ull);
}
static inline uint64_t storm_below(uint64_t *state, uint64_t n)
{
	return storm_random(state) % n;
}

/** Write a change down; `before` is what the log says. Those of a group go together. */
void storm_change(struct storm_log *log, struct storm_group *g, unsigned int place, uint64_t after);
/** The changes are about to be made. */
void storm_pend(struct storm_group *g);
/** The call has returned 0: they are made. */
void storm_done(struct storm_log *log, struct storm_group *g);
/** It has failed, or was undone. */
void storm_undone(struct storm_group *g);

void storm_fill(struct storm_object *o, uint64_t key, uint64_t value);
/** Are these the bytes of that object? */
bool storm_whole(const struct storm_object *o, uint64_t key, uint64_t value);

/* ---- keep.c ---- */

struct storm_keeper {
	int fds[STORM_FDS];
	uint64_t tokens[STORM_FDS];
	uint32_t n;
	int sockets[2]; /* from worker to driver */
	bool in_worker;
	uint64_t drops;
};

int storm_keeper_init(struct storm_keeper *k);
/** For pv_options.keep. */
int storm_keep(void *ctx, enum pv_keep what, uint64_t token, int fd);
/** In the driver: take what a dead worker has sent. Returns 0, or a negative errno. */
int storm_keeper_receive(struct storm_keeper *k);
void storm_keeper_clear(struct storm_keeper *k);

/* ---- an open store ---- */

struct storm_store {
	struct pv_store *s;
	struct storm_table *table;
	struct pv_map *map;
	pv_type_t types[2];
	pv_type_t entry;
};

/** pv_open(), types, table, map; the log's stage follows. A negative errno: see pv_last_error(). */
int storm_open(struct storm_store *st, struct storm_keeper *k, const struct storm_plan *plan,
	       struct storm_log *log);
void storm_close(struct storm_store *st);
int storm_root(struct storm_store *st, unsigned int number, size_t bytes, void **out,
	       bool *created);

/* ---- work.c ---- */

struct storm_thread {
	struct storm_store *st;
	struct storm_log *log;
	struct storm_group *groups;
	uint64_t random;
	unsigned int number;
	bool left_open; /* it has ended in the middle of a transaction about ... */
	unsigned int place;
};

/** The worker process. Does not return. */
void storm_work(struct storm_keeper *k, const struct storm_plan *plan, struct storm_log *log);
/** Ends the worker process with a message. */
void storm_fail(struct storm_log *log, const char *format, ...)
	__attribute__((format(printf, 2, 3), noreturn));
/** Fails unless rc is 0 or what a full store says. */
bool storm_ok(struct storm_thread *t, const char *call, int rc);

/* ---- ops.c, tx.c ---- */

/** One thing, at random. */
void storm_op(struct storm_thread *t);
void storm_op_tx(struct storm_thread *t);
/** Replace, fill or empty a cell that is not busy, by an intent in group g. */
void storm_op_cell(struct storm_thread *t, struct storm_group *g);
/** Have a place to oneself, if it is free. */
bool storm_take(unsigned int place);
void storm_leave(unsigned int place);
/** For a thread that ends: begin a transaction about a cell and leave it open. Whoever has joined
 * the thread leaves the place. */
bool storm_leave_open(struct storm_thread *t, unsigned int *place);
/** An object of a random size, reserved and filled. NULL: the store is full. */
struct storm_object *storm_reserve(struct storm_thread *t, uint64_t *value);
uint64_t storm_new_value(struct storm_thread *t, size_t bytes);
size_t storm_size(struct storm_thread *t);

/* ---- read.c ---- */

/** Have what is retired wait for the reader. 0 or a negative errno. */
int storm_read_init(struct storm_store *st);
/**
 * A thread: looks at the objects of the shared cells under the protection of RCU alone. These must
 * be whole as long as it looks. So the objects of these cells are retired, not freed; they are not
 * rewritten in place, and do not move to other cells.
 */
void *storm_read(void *thread);

/* ---- check.c ---- */

struct storm_found {
	uint64_t pending; /* groups that were under way */
	uint64_t made;	  /* of these: in effect */
	uint64_t live;
	uint64_t leaks;
	uint64_t doubles;
	uint64_t wrong; /* anything else */
};

/** Compare, bring the log up to date. What is wrong is printed. */
void storm_check(struct storm_store *st, struct storm_log *log, struct storm_found *found);

#endif
