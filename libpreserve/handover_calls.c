/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The public calls that are about handing an open store over. Each is a call of the backend under
 * handover_lock, so that they and a growth see each other as a whole. Only what takes time, to have the
 * kernel preserve one memfd after the other, is done without it: an allocation that makes the store grow
 * waits for that lock, and others wait for the allocation.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "handover.h"
#include "internal.h"

/* The descriptor that follows number `at` (0: the index), ours to close; -1: there is none. */
static int next_descriptor(struct pv_store *s, uint32_t at, struct pvi_fd *out)
{
	int err = 0;

	pthread_mutex_lock(&s->handover_lock);
	*out = (struct pvi_fd){.token = at, .fd = -1};
	if (at <= s->nsegments) {
		/* A duplicate, because the segment may leave while it is worked on. */
		out->fd = fcntl(at ? s->segments[at - 1].fd : s->index.fd, F_DUPFD_CLOEXEC, 0);
		if (out->fd < 0)
			err = pvi_fail(-errno, "no descriptor to prepare the store with: %s",
				       strerror(errno));
	}
	pthread_mutex_unlock(&s->handover_lock);
	return err;
}

/* What takes time, while the store may grow and shrink. */
static int preserve_all(struct pv_store *s)
{
	for (uint32_t at = 0;; at++) {
		struct pvi_fd f;
		int err = next_descriptor(s, at, &f);

		if (err || f.fd < 0)
			return err;
		err = s->handover->ops->preserve(s->handover, &f, 1);
		close(f.fd);
		if (err)
			return err;
	}
}

/* What is left, if anything, and from then on segments join at birth. */
static int prepare_all(struct pv_store *s)
{
	struct pvi_fd *fds;
	uint32_t n;
	int err;

	pthread_mutex_lock(&s->handover_lock);
	n = s->nsegments;
	fds = calloc(n + 1, sizeof(*fds));
	if (!fds) {
		err = pvi_fail(-ENOMEM, "no memory");
	} else {
		fds[0] = (struct pvi_fd){.token = 0, .fd = s->index.fd};
		for (uint32_t i = 0; i < n; i++)
			fds[i + 1] = (struct pvi_fd){.token = i + 1ull, .fd = s->segments[i].fd};
		err = s->handover->ops->prepare(s->handover, fds, n + 1);
	}
	pthread_mutex_unlock(&s->handover_lock);
	free(fds);
	return err;
}

int pv_handover_prepare(struct pv_store *s)
{
	int err = 0;

	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	if (!s->handover->ops->prepare)
		return pvi_fail(-EOPNOTSUPP, "the %s backend does not carry a store across a kexec",
				s->handover->ops->name);
	pthread_mutex_lock(&s->prepare_lock);
	if (s->handover->ops->preserve)
		err = preserve_all(s);
	if (!err)
		err = prepare_all(s);
	pthread_mutex_unlock(&s->prepare_lock);
	return err;
}

int pv_handover_cancel(struct pv_store *s)
{
	int err = 0;

	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	pthread_mutex_lock(&s->prepare_lock);
	pthread_mutex_lock(&s->handover_lock);
	if (s->handover->ops->cancel)
		err = s->handover->ops->cancel(s->handover);
	pthread_mutex_unlock(&s->handover_lock);
	pthread_mutex_unlock(&s->prepare_lock);
	return err;
}

int pv_handover_check(struct pv_store *s)
{
	int rc = 0;

	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	pthread_mutex_lock(&s->handover_lock);
	if (s->handover->ops->check)
		rc = s->handover->ops->check(s->handover);
	pthread_mutex_unlock(&s->handover_lock);
	return rc;
}
