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
#include "pin.h"

/* A memfd of the store that is worked on without a lock, so that its segment may leave meanwhile. */
struct work {
	struct pvi_fd f; /* a duplicate; -1: there is none */
	uint8_t *addr;
	uint64_t bytes;
	uint64_t birth_generation;
};

/* Number `at`, 0 is the index. */
static int work_begin(struct pv_store *s, uint32_t at, struct work *w)
{
	int fd, err = 0;

	*w = (struct work){.f = {.token = at, .fd = -1}};
	pthread_mutex_lock(&s->handover_lock);
	fd = at == 0 ? s->index.fd : at <= s->nsegments ? s->segments[at - 1].fd : -1;
	if (fd >= 0) {
		w->f.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		if (w->f.fd < 0)
			err = pvi_fail(-errno, "no descriptor to prepare the store with: %s",
				       strerror(errno));
	}
	/* What is sealed does not change, so that an old page of it is as good. */
	if (fd >= 0 && at && !s->segments[at - 1].sealed) {
		w->addr = s->segments[at - 1].addr;
		w->bytes = s->segments[at - 1].bytes;
		w->birth_generation = s->segments[at - 1].birth_generation;
	}
	pthread_mutex_unlock(&s->handover_lock);
	return err;
}

static bool has_left(struct pv_store *s, const struct work *w)
{
	bool left;

	pthread_mutex_lock(&s->handover_lock);
	left = w->f.token > s->nsegments ||
	       s->segments[w->f.token - 1].birth_generation != w->birth_generation;
	pthread_mutex_unlock(&s->handover_lock);
	return left;
}

/* 1: it has left. */
static int work_do(struct pv_store *s, const struct work *w)
{
	int pin, err = pvi_pin_begin(w->f.fd, w->addr, w->bytes, &pin);

	if (err)
		return w->bytes && has_left(s, w) ? 1 : err;
	err = s->handover->ops->preserve(s->handover, &w->f, 1);
	pvi_pin_end(pin);
	return err;
}

/** How far preserve_all() came: what is not below `end`, or was born after `generation`, is to be done. */
struct progress {
	uint32_t end;
	uint64_t generation;
};

/* What takes time, while the store may grow and shrink. */
static int preserve_all(struct pv_store *s, struct progress *done)
{
	pthread_mutex_lock(&s->index_lock);
	done->generation = pvi_index_generation(s->index.rec);
	pthread_mutex_unlock(&s->index_lock);
	for (;;) {
		struct work w;
		int err = work_begin(s, done->end, &w);

		if (err || w.f.fd < 0)
			return err;
		err = work_do(s, &w);
		close(w.f.fd);
		if (err < 0)
			return err;
		done->end += err == 0;
	}
}

/* Hold the pages of what preserve_all() has not had, for a backend that leaves that to us. */
static int pin_rest(struct pv_store *s, int *pins, uint32_t n, const struct progress *done)
{
	int err = 0;

	for (uint32_t i = 0; i < n; i++)
		pins[i] = -1;
	for (uint32_t i = 0; i < n && !err; i++) {
		const struct pvi_segment *seg = &s->segments[i];

		if (s->handover->ops->preserve && !seg->sealed &&
		    (i + 1 >= done->end || seg->birth_generation > done->generation))
			err = pvi_pin_begin(seg->fd, seg->addr, seg->bytes, &pins[i]);
	}
	return err;
}

/* What is left, if anything, and from then on segments join at birth. */
static int prepare_rest(struct pv_store *s, const struct progress *done)
{
	struct pvi_fd *fds;
	uint32_t n;
	int *pins, err = 0;

	pthread_mutex_lock(&s->handover_lock);
	n = s->nsegments;
	fds = calloc(n + 1, sizeof(*fds));
	pins = calloc(n, sizeof(*pins));
	if (!fds || !pins) {
		err = pvi_fail(-ENOMEM, "no memory");
	} else {
		fds[0] = (struct pvi_fd){.token = 0, .fd = s->index.fd};
		for (uint32_t i = 0; i < n; i++)
			fds[i + 1] = (struct pvi_fd){.token = i + 1ull, .fd = s->segments[i].fd};
		err = pin_rest(s, pins, n, done);
		if (!err)
			err = s->handover->ops->prepare(s->handover, fds, n + 1);
		for (uint32_t i = 0; i < n; i++)
			pvi_pin_end(pins[i]);
	}
	pthread_mutex_unlock(&s->handover_lock);
	free(fds);
	free(pins);
	return err;
}

int pv_handover_prepare(struct pv_store *s)
{
	struct progress done = {0, 0};
	int err = 0;

	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	if (!s->handover->ops->prepare)
		return pvi_fail(-EOPNOTSUPP, "the %s backend does not carry a store across a kexec",
				s->handover->ops->name);
	pthread_mutex_lock(&s->prepare_lock);
	pvi_backing_collapse(s, false); /* what is preserved cannot be made a huge page of */
	if (s->handover->ops->preserve)
		err = preserve_all(s, &done);
	if (!err)
		err = prepare_rest(s, &done);
	if (err)
		pvi_backing_collapse(s, true);
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
	if (!err)
		pvi_backing_collapse(s, true);
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
