/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What writing and reading of image files share (image_file.c): threads that work on chunks, the first
 * error of any of them, whole reads and writes.
 */
#ifndef PVI_IMAGE_FILE_H
#define PVI_IMAGE_FILE_H

#include <pthread.h>

#include <preserve/image.h>

#include "image_layout.h"

/** Work that several threads do, chunk by chunk. */
struct pvi_image_work {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int err; /* of the first thread that failed; the others then end */
	char message[512];
	int fd; /* the file */
	uint64_t file_bytes; /* written or read so far */
	uint64_t done_bytes; /* contents */
	uint64_t total_bytes;
	void *digest; /* XXH3_state_t */
	pv_image_progress progress;
	void *progress_ctx;
};

int pvi_image_work_init(struct pvi_image_work *w, int fd, pv_image_progress progress, void *ctx);
void pvi_image_work_free(struct pvi_image_work *w);
/** Run `thread` in this many threads, this one included, or fewer if there are no more; *used says how
 *  many. Returns the first error, with its message. */
int pvi_image_run(struct pvi_image_work *w, uint32_t threads, void (*thread)(void *ctx), void *ctx,
		  uint32_t *used);
/** Remember the error that this thread's last call had, if it is the first. Called with the lock. */
void pvi_image_failed(struct pvi_image_work *w, int err);
/** Count these contents as done and tell. Called with the lock. */
int pvi_image_done(struct pvi_image_work *w, uint64_t contents_bytes);

/** How many threads to use. */
uint32_t pvi_image_threads(uint32_t wanted);
void pvi_image_digest(struct pvi_image_work *w, const void *data, size_t bytes);
uint64_t pvi_image_digest_value(const struct pvi_image_work *w);
uint64_t pvi_image_checksum(const void *data, size_t bytes, uint64_t seed);

struct iovec;
/** Write all of it; changes the vector. */
int pvi_image_write(struct pvi_image_work *w, struct iovec *v, int n);
/** Read exactly so much of `what`; -EBADMSG if the file ends before. */
int pvi_image_read(struct pvi_image_work *w, void *buf, size_t bytes, const char *what);

/** The memfds that an image became. */
struct pvi_image_set {
	struct image_rec head;
	struct image_memfd_rec *recs;
	int *fds; /* -1: none */
	uint32_t n;
};

/** image_load.c: make memfds of what `fd` has. Everything that can be told without attaching has been
 *  checked when it returns 0. `accept` (may be NULL) is asked once the head has been read, before
 *  anything is done for what follows. pvi_image_set_free() in any case. */
int pvi_image_load(int fd, const struct pv_restore_options *options,
		   int (*accept)(void *ctx, const struct image_rec *head), void *ctx,
		   struct pvi_image_set *set, struct pv_image_report *report);
/** Add the seals that the memfds had beside those they are made with: nothing is written any more. */
int pvi_image_seal(const struct pvi_image_set *set);
void pvi_image_set_free(struct pvi_image_set *set);

#endif
