/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The service manager's file descriptor store, as this process knows it: one list for the process of
 * all memfds of libpreserve that were passed in at its start or that it has handed over since. A
 * handle on a store (systemd.c) comes and goes, while what the manager keeps can be had only once in
 * a process's life, by $LISTEN_FDS.
 *
 * A memfd in the list is known by its contents. Its name in the manager's store says which of them is
 * to be removed, and nothing else. All calls but pvi_fdstore_lock() need the lock.
 */
#ifndef PVI_FDSTORE_H
#define PVI_FDSTORE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "internal.h"
#include "notify.h"

#define PVI_FDSTORE_NAME_BYTES 256

enum pvi_fdstore_kind {
	PVI_FDSTORE_INDEX,
	PVI_FDSTORE_SEGMENT,
	PVI_FDSTORE_GONE, /* the index of a store that was being destroyed */
};

/** What an item is to the store that was last looked for. */
enum pvi_fdstore_role {
	PVI_FDSTORE_FOREIGN, /* of another store */
	PVI_FDSTORE_CHOSEN,  /* belongs to it */
	PVI_FDSTORE_STALE,   /* was its, or that of an earlier one of its name */
};

struct pvi_fdstore_item {
	struct pvi_fdstore_item *next;
	uint64_t serial; /* never used twice, ascending */
	enum pvi_fdstore_kind kind;
	enum pvi_fdstore_role role;
	/* Passed in: its number in $LISTEN_FDS. As long as it is not claimed, the open file description
	   is the one that the manager has, too. */
	int fd;
	bool claimed;
	uint32_t number; /* segment */
	uint64_t birth_generation;
	uint64_t bytes;
	uint64_t device, inode;
	uint8_t uuid[16];
	char store[PVI_NAME_MAX + 1]; /* by the index's tree, or else by its name; "": not known */
	char name[PVI_FDSTORE_NAME_BYTES]; /* in the manager's store; "": not known */
};

/** Take the lock; the first time, look at what was passed in. */
void pvi_fdstore_lock(void);
void pvi_fdstore_unlock(void);
struct pvi_fdstore_item *pvi_fdstore_items(void);
/** How many descriptors were passed in, whosever they are. */
unsigned int pvi_fdstore_passed(void);
/** Why there are none although $LISTEN_FDS is set; "" if that is not so. */
const char *pvi_fdstore_passed_note(void);

/** 0 for an index, n + 1 for segment n. */
uint64_t pvi_fdstore_token(const struct pvi_fdstore_item *item);
bool pvi_fdstore_same_memfd(const struct pvi_fdstore_item *a, const struct pvi_fdstore_item *b);

/**
 * Get an open file description of our own for an item that was passed in, under the same number, and
 * mark that of the manager, so that pvi_fdstore_kept() can tell.
 */
int pvi_fdstore_claim(struct pvi_fdstore_item *item, const char *store);

/** Put an index or segment into the list; fd is duplicated. */
int pvi_fdstore_add(const char *store, int fd, struct pvi_fdstore_item **out);
/** Close it and take it off the list. The manager is told nothing. */
void pvi_fdstore_forget(struct pvi_fdstore_item *item);

/** Does the manager have it? For claimed and added ones. */
bool pvi_fdstore_kept(const struct pvi_fdstore_item *item);
/** Hand it over; 0 when the manager has it. -ENOSPC: it did not take it. */
int pvi_fdstore_push(const struct pvi_notify *n, struct pvi_fdstore_item *item);
/** Have the manager drop it, if that is possible without dropping another, and forget it. The message
 *  is sent when this returns; *sent is set then. */
void pvi_fdstore_remove(const struct pvi_notify *n, struct pvi_fdstore_item *item, bool *sent);

/* ---- fdstore_set.c ---- */

/**
 * Find what makes up a store: *out (free()) is its index and its segments in order, and every item has
 * its role. -ENOENT: nothing; -ENXIO: something is missing; -EBADMSG: it does not go together.
 * Segments alone, whose index is missing, are returned without one.
 */
int pvi_fdstore_select(const char *store, struct pvi_fdstore_item ***out, unsigned int *n);

#endif
