/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One writer at a time: an OFD lock on the index memfd, which ends with the process that holds it.
 *
 * The descriptor that a backend gives shares its open file description with the keeper, and OFD locks
 * belong to the description: the lock needs one of its own. It would also go on in every child that
 * the writer forks, beyond the writer's death, so a child closes it at once. The list of those
 * descriptors is fixed and without a lock of its own, because a child begins with whatever locks other
 * threads held.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

/* Where the lock_fd of each open store stands; NULL: free. */
static _Atomic(int *) held[2 * PVI_STORES_MAX];
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void forget(int *lock_fd)
{
	for (size_t i = 0; i < sizeof(held) / sizeof(*held); i++) {
		int *expected = lock_fd;

		if (atomic_compare_exchange_strong(&held[i], &expected, NULL))
			return;
	}
}

static void remember(int *lock_fd)
{
	for (size_t i = 0; i < sizeof(held) / sizeof(*held); i++) {
		int *expected = NULL;

		if (atomic_compare_exchange_strong(&held[i], &expected, lock_fd))
			return;
	}
}

static void in_child(void)
{
	pvi_lockword_forget_thread();
	for (size_t i = 0; i < sizeof(held) / sizeof(*held); i++) {
		int *lock_fd = atomic_exchange(&held[i], NULL);

		if (!lock_fd)
			continue;
		close(*lock_fd);
		*lock_fd = -1;
	}
}

static void watch_forks(void)
{
	/* Without it a child may prolong the lock, which is no reason to refuse. */
	pthread_atfork(NULL, NULL, in_child);
}

int pvi_lock_take(struct pv_store *s, const char *name, const struct index_rec *rec)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char path[40];

	pthread_once(&fork_once, watch_forks);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->index.fd);
	s->index.lock_fd = open(path, O_RDWR | O_CLOEXEC);
	if (s->index.lock_fd < 0)
		return pvi_fail(errno, "store %s: cannot open %s for its lock: %s", name, path,
				strerror(errno));
	remember(&s->index.lock_fd);
	if (fcntl(s->index.lock_fd, F_OFD_SETLK, &fl) == 0)
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return pvi_fail(-EBUSY, "store %s is in use by process %" PRIu64, name,
				rec->writer_pid);
	return pvi_fail(errno, "store %s: cannot lock its index: %s", name, strerror(errno));
}

void pvi_lock_release(struct pv_store *s)
{
	if (s->index.lock_fd < 0)
		return;
	forget(&s->index.lock_fd);
	close(s->index.lock_fd);
	s->index.lock_fd = -1;
}

bool pvi_lock_others(const struct pv_store *s)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	/* The lock is of another open file description than the one that is shared with the keeper. */
	return fcntl(s->index.fd, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK;
}

void pvi_lock_note_writer(struct pv_store *s)
{
	__atomic_store_n(&s->index.rec->writer_pid, (uint64_t) getpid(), __ATOMIC_RELAXED);
}
