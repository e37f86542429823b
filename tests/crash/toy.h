/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * toy.h - a tiny crash-consistent store for the self-test of the crash-sweep engine: an index memfd
 * and data memfds, slot bytes, intents that recovery redoes, an undo log that it rolls back, growth
 * by a segment. Built once as it should be and once for each bug below; the engine must pass the
 * first and find every one of the others.
 */
#ifndef TOY_H
#define TOY_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define TOY_BUG_NONE	       0
#define TOY_BUG_EARLY_COMMIT   1 /* the lane is idle before the intent was applied in full */
#define TOY_BUG_LOST_GUARD     2 /* nothing keeps the compiler from dropping "log valid" */
#define TOY_BUG_RAW_PAIR       3 /* two stores without a log, inconsistent in between */
#define TOY_BUG_RECOVER_TWICE  4 /* recovery adds a difference before it clears the log */
#define TOY_BUG_KEEP_LATE      5 /* the index names a segment that nobody keeps yet */
#define TOY_BUG_ESCAPE	       6 /* a store through a mapping that the engine never saw */
#define TOY_BUG_TORN_WRITE     7 /* pwrite() over the index copy in use */
#define TOY_BUG_WIDE_STORE     8 /* relies on a 16-byte store being indivisible */
#define TOY_BUG_RECOVERY_DIES  9
#define TOY_BUG_RECOVERY_HANGS 10
#define TOY_BUG_LAZY_COMMIT    11 /* the undo log is cleared by the next operation only */
#define TOY_BUG_LANE_LEFT      12 /* recovery redoes the intent but leaves the lane in use */
#define TOY_BUG_SHARED_LANE    13 /* two threads, one lane */
#define TOY_BUG_SEAL_LATE      14 /* handed over before it was sealed; recovery insists on seals */
#define TOY_BUG_SYSCALL_WRITE  15 /* read(2) straight into a live object */
#define TOY_N_BUGS	       15

#ifndef TOY_BUG
#define TOY_BUG TOY_BUG_NONE
#endif

enum {
	TOY_LANES = 2,
	TOY_SLOTS = 64, /* in a segment */
	TOY_MAX_SEGMENTS = 4,
	TOY_ACTIONS = 6,
	TOY_INDEX_BYTES = 4096,
	TOY_SEGMENT_BYTES = 4096,
};

enum { TOY_FREE, TOY_RESERVED, TOY_LIVE };

struct toy_object {
	uint64_t key, value;
};

struct toy_segment {
	uint64_t magic, number;
	uint8_t state[TOY_SLOTS];
	struct toy_object objects[TOY_SLOTS];
};

/* state 0 idle, 1 redo these bytes and words, 2 undo these words */
struct toy_lane {
	uint64_t state, n;
	int64_t count; /* live objects accounted to this lane */
	uint64_t reserved;
	struct toy_action {
		uint64_t segment; /* TOY_MAX_SEGMENTS: the index */
		uint64_t off, is_byte, value;
	} actions[TOY_ACTIONS];
};

struct toy_table {
	uint64_t n_segments, generation, check;
};

struct toy_index {
	uint64_t magic;
	uint64_t active;
	struct toy_table tables[2];
	struct toy_lane lanes[TOY_LANES];
};

struct toy {
	bool open;
	char *window;
	int index_fd;
	int segment_fds[TOY_MAX_SEGMENTS];
	unsigned n_segments;
	struct toy_index *index;
	struct toy_segment *segments[TOY_MAX_SEGMENTS];
	pthread_mutex_t reserve_lock;
};

struct toy_fds {
	unsigned n;
	int fds[TOY_MAX_SEGMENTS + 4];
};

/* Told about every memfd that must outlive the process. */
extern void (*toy_keep)(int fd);
extern void (*toy_drop)(int fd);

int toy_create(struct toy *toy);
int toy_recover(struct toy *toy, const struct toy_fds *fds, bool other_base);
void toy_close(struct toy *toy);
/* Inserts or replaces: reserve, fill, publish new and free old in one intent. */
int toy_put(struct toy *toy, unsigned lane, uint64_t key, uint64_t value);
int toy_remove(struct toy *toy, unsigned lane, uint64_t key);
/* Exchanges the values of two keys in place, undo-logged. */
int toy_swap(struct toy *toy, unsigned lane, uint64_t key1, uint64_t key2);
/* Sets key and value of an object at once. */
int toy_rename(struct toy *toy, unsigned lane, uint64_t key, uint64_t new_key, uint64_t value);
int toy_grow(struct toy *toy);
/* 0 if anything is wrong, else a fingerprint of keys, values and segments. */
uint64_t toy_check(const struct toy *toy);

#endif
