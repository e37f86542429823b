/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Descriptors that others send: which of them are fit to be kept, and how to be rid of the rest. To
 * close one may block for as long as its sender likes (a file system of his own), and to free a
 * memfd takes time as well, so it is done by threads that do nothing else.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "luo.h"
#include "preserved.h"

#define CLOSERS_MAX 64

int verify(uint64_t token, int fd, uint32_t pages, uint64_t *bytes)
{
	struct stat st;
	int seals;

	*bytes = 0;
	if (token == HOLDER_TOKEN_INCOMING || token == HOLDER_TOKEN_OUTGOING)
		return pvi_luo_is_session(fd) ? 0 : -EMEDIUMTYPE;
	if (token >= HOLDER_FDS_MAX && token != HOLDER_TOKEN_MANIFEST)
		return -EINVAL;
	seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		return -EMEDIUMTYPE;
	if (~seals & (F_SEAL_SHRINK | F_SEAL_GROW))
		return -EPERM;
	if (fstat(fd, &st))
		return -errno;
	*bytes = (uint64_t)st.st_size;
	return pages && (uint64_t)pages * HOLDER_SIZE_UNIT != *bytes ? -EMSGSIZE : 0;
}

int reopen(int fd)
{
	char link[40];
	int opened;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	opened = open(link, O_RDONLY | O_CLOEXEC);
	return opened < 0 ? -errno : opened;
}

static atomic_int closers;

static void *closer(void *arg)
{
	close((int)(intptr_t)arg);
	atomic_fetch_sub(&closers, 1);
	return NULL;
}

void close_later(int fd)
{
	pthread_attr_t attr;
	pthread_t thread;
	bool memfd = fcntl(fd, F_GET_SEALS) >= 0;
	int rc = EAGAIN;

	if (atomic_fetch_add(&closers, 1) < CLOSERS_MAX && pthread_attr_init(&attr) == 0) {
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		rc = pthread_create(&thread, &attr, closer, (void *)(intptr_t)fd);
		pthread_attr_destroy(&attr);
	}
	if (rc == 0)
		return;
	atomic_fetch_sub(&closers, 1);
	/* That many cannot be closed at the moment: of anything else it is not known what closing
	 * does. */
	if (memfd)
		close(fd);
	else
		log_error("descriptor %d cannot be closed without waiting, it stays open", fd);
}
