/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A service manager for tests, with one service: the test program itself, executed again with what the
 * store has, in another order each time, as $LISTEN_FDS.
 *
 * Where the real one may do this or that it does what is worse for the service: it suppresses a
 * descriptor that it has already; it says nothing when its store is full, and closes what it refuses
 * later; and it throws away what it has not read when the service ends.
 */
#ifndef TESTS_FAKE_MANAGER_H
#define TESTS_FAKE_MANAGER_H

#include <stdbool.h>
#include <sys/types.h>

#define MANAGER_KEPT_MAX 128

struct manager_entry {
	int fd;
	char name[256];
};

struct manager {
	int sock;
	char dir[64], path[96];
	struct manager_entry kept[MANAGER_KEPT_MAX];
	unsigned int n;
	unsigned int limit; /* FileDescriptorStoreMax= */
	unsigned int seed;  /* of the order */
	int closing[MANAGER_KEPT_MAX]; /* refused, and closed a little later */
	unsigned int nclosing;
	/* How it behaves. */
	bool no_names;	     /* no $LISTEN_FDNAMES */
	bool no_fdstore;     /* no $FDSTORE, as before systemd 254 */
	bool no_socket;	     /* no $NOTIFY_SOCKET */
	bool abstract;	     /* a socket without a file */
	bool deaf_to_remove; /* forgets to remove */
	bool deaf;	     /* reads nothing */
	const char *listen_fds; /* instead of the number */
	/* What came. */
	unsigned int barriers, refused, removed, lost;
};

void manager_start(struct manager *m, unsigned int limit);
void manager_stop(struct manager *m);
/** Execute the service with this script and serve it until it ends. Its status, or 256 + the signal. */
int manager_run(struct manager *m, const char *script);
/** An entry by name, or by the beginning of it; NULL. */
struct manager_entry *manager_find(struct manager *m, const char *name);
/** Take an entry away, or put one in (fd is duplicated). */
void manager_lose(struct manager *m, struct manager_entry *e);
void manager_put(struct manager *m, const char *name, int fd);
/** How many entries' names begin like this? */
unsigned int manager_count(const struct manager *m, const char *prefix);

#endif
