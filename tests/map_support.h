/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the tests of the hash map share: a store with a map in it that can be closed and opened
 * again, items with a number, and a check that finds any damage or leak.
 */
#ifndef TESTS_MAP_SUPPORT_H
#define TESTS_MAP_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <preserve/map.h>

#define MAX_FDS 64

struct item {
	uint64_t number;
	uint64_t value;
	char key[16];
};

struct fixture {
	struct pv_store *store;
	struct pv_map *map;
	pv_type_t type;
	int fds[MAX_FDS];
	uint32_t nfds;
	uint64_t limit_bytes;
	uint64_t segment_bytes;
	uint64_t (*hash)(const void *, size_t, uint64_t);
	struct pv_map_options map_options;
};

/** Fail the test with the message if err is not 0. */
void ok(int err);
/** Open or create the store and the map. */
void open_all(struct fixture *f);
void close_all(struct fixture *f);
void reopen(struct fixture *f);
/** Close and forget everything. */
void drop_all(struct fixture *f);
/** A new store; NULL: the map's own hash. */
struct fixture *make(uint64_t (*hash)(const void *, size_t, uint64_t));
/** Store and map are sound, and no item is live that the map does not hold. */
void check(struct fixture *f);
uint64_t hash_of(struct fixture *f, uint64_t number);
int make_item(struct fixture *f, uint64_t number, uint64_t value, struct item **out);
/** Put an item in; an error is returned. */
int try_put(struct fixture *f, uint64_t number, uint64_t value);
void put(struct fixture *f, uint64_t number, uint64_t value);
int take(struct fixture *f, uint64_t number);
struct item *find(struct fixture *f, uint64_t number);
uint64_t random_u64(void);
void name(char key[16], uint64_t number);
/** Objects of any type that are live. */
uint64_t live_objects(struct fixture *f);

extern uint64_t random_state;

#endif
