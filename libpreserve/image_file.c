/* SPDX-License-Identifier: BSD-3-Clause */
/* See image_file.h. */
#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "image_file.h"

#define THREADS_MAX	64u
#define THREADS_DEFAULT 8u

/* ---- checksums ---- */

uint64_t pvi_image_checksum(const void *data, size_t bytes, uint64_t seed)
{
	return XXH3_64bits_withSeed(data, bytes, seed);
}

void pvi_image_digest(struct pvi_image_work *w, const void *data, size_t bytes)
{
	XXH3_64bits_update(w->digest, data, bytes);
}

uint64_t pvi_image_digest_value(const struct pvi_image_work *w)
{
	return XXH3_64bits_digest(w->digest);
}

/* ---- reading and writing ---- */

static int write_error(int error)
{
	if (error == ENOSPC || error == EDQUOT)
		return pvi_fail(-ENOSPC, "the image cannot be written: the file system is full (%s)",
				strerror(error));
	if (error == EPIPE)
		return pvi_fail(-EPIPE, "the image cannot be written: nobody reads the pipe any more");
	return pvi_fail(-error, "the image cannot be written: %s", strerror(error));
}

int pvi_image_write(struct pvi_image_work *w, struct iovec *v, int n)
{
	while (n) {
		ssize_t done = writev(w->fd, v, n);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return write_error(errno);
		if (done == 0)
			return write_error(EIO);
		w->file_bytes += (uint64_t) done;
		while (n && (size_t) done >= v->iov_len) {
			done -= (ssize_t) v->iov_len;
			v++;
			n--;
		}
		if (n) {
			v->iov_base = (uint8_t *) v->iov_base + done;
			v->iov_len -= (size_t) done;
		}
	}
	return 0;
}

int pvi_image_read(struct pvi_image_work *w, void *buf, size_t bytes, const char *what)
{
	size_t got = 0;

	while (got < bytes) {
		ssize_t n = read(w->fd, (uint8_t *) buf + got, bytes - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return pvi_fail(-errno, "the image cannot be read: %s", strerror(errno));
		if (n == 0)
			return pvi_fail(-EBADMSG,
					"the image is cut short: it ends after %" PRIu64 " bytes, in %s",
					w->file_bytes + got, what);
		got += (size_t) n;
	}
	w->file_bytes += got;
	return 0;
}

/* ---- threads ---- */

int pvi_image_work_init(struct pvi_image_work *w, int fd, pv_image_progress progress, void *ctx)
{
	*w = (struct pvi_image_work){.fd = fd, .progress = progress, .progress_ctx = ctx};
	w->digest = XXH3_createState();
	if (!w->digest)
		return pvi_fail(-ENOMEM, "no memory");
	XXH3_64bits_reset(w->digest);
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->changed, NULL);
	return 0;
}

void pvi_image_work_free(struct pvi_image_work *w)
{
	if (!w->digest)
		return;
	XXH3_freeState(w->digest);
	w->digest = NULL;
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->changed);
}

uint32_t pvi_image_threads(uint32_t wanted)
{
	cpu_set_t set;
	uint32_t n = THREADS_DEFAULT;

	if (wanted)
		return wanted < THREADS_MAX ? wanted : THREADS_MAX;
	if (sched_getaffinity(0, sizeof(set), &set) == 0 && (uint32_t) CPU_COUNT(&set) < n)
		n = (uint32_t) CPU_COUNT(&set);
	return n ? n : 1;
}

void pvi_image_failed(struct pvi_image_work *w, int err)
{
	if (!w->err) {
		w->err = err;
		snprintf(w->message, sizeof(w->message), "%s", pv_last_error());
	}
	pthread_cond_broadcast(&w->changed);
}

int pvi_image_done(struct pvi_image_work *w, uint64_t contents_bytes)
{
	w->done_bytes += contents_bytes;
	if (w->progress && w->progress(w->progress_ctx, w->done_bytes, w->total_bytes))
		return pvi_fail(-ECANCELED, "ended by the progress function after %" PRIu64 " of %" PRIu64
					    " bytes",
				w->done_bytes, w->total_bytes);
	return 0;
}

struct start {
	void (*thread)(void *ctx);
	void *ctx;
};

static void *run_thread(void *arg)
{
	const struct start *start = arg;

	start->thread(start->ctx);
	return NULL;
}

int pvi_image_run(struct pvi_image_work *w, uint32_t threads, void (*thread)(void *ctx), void *ctx,
		  uint32_t *used)
{
	struct start start = {thread, ctx};
	pthread_t others[THREADS_MAX];
	sigset_t all, before;
	uint32_t n = 0;

	/* The application's signals are for its own threads. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (n + 1 < threads && pthread_create(&others[n], NULL, run_thread, &start) == 0)
		n++;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	thread(ctx);
	for (uint32_t i = 0; i < n; i++)
		pthread_join(others[i], NULL);
	*used = n + 1;
	return w->err ? pvi_fail(w->err, "%s", w->message) : 0;
}
