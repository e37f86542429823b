/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reading an image file (preserve/image.h, image_layout.h) into fresh memfds.
 *
 * Threads take turns to read a chunk into a buffer of their own; then each checks, decompresses and
 * writes its chunk without the others. Every record is checked as a whole before any of its fields is
 * used, and bounded afterwards: a file that somebody made up with right checksums can waste memory in
 * proportion to its size, times what one chunk may hold, and no more.
 *
 * Runs must ascend, so no byte is written twice and the order of threads does not matter.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <zstd.h>

#include "image_file.h"
#include "internal.h"

#define LOOK_BYTES (64ull << 20) /* how often it is asked whether there is memory left */
#define INDEX_MAX  (PV_INDEX_HEADER_BYTES + 2u * (16u << 20))
#define RUNS_MAX   (PV_IMAGE_CHUNK_MAX / PV_IMAGE_UNIT)

struct load {
	struct pvi_image_work work; /* its lock is for the rest, too; held while a chunk is read */
	struct pvi_image_set *set;
	uint64_t nchunks;
	/* Behind the last run. */
	uint32_t token;
	uint64_t off;
	uint64_t looked; /* contents before which there was memory */
};

/* What one thread has. */
struct reader {
	struct image_chunk_rec rec;
	struct image_run_rec *runs;
	uint8_t *stored;
	uint8_t *contents;
	ZSTD_DCtx *zstd;
};

/* ---- head ---- */

static int head_bounds(const struct image_rec *h)
{
	const char *what = NULL;

	if (!memchr(h->store, 0, sizeof(h->store)) || !pvi_name_valid(h->store))
		what = "store's name";
	else if (h->nmemfds < 2 || h->nmemfds > PV_IMAGE_MEMFDS_MAX)
		what = "number of memfds";
	else if (!h->chunk_bytes || h->chunk_bytes > PV_IMAGE_CHUNK_MAX ||
		 h->chunk_bytes % PV_IMAGE_UNIT)
		what = "size of chunks";
	else if (h->window_bytes > 1ull << 47 || h->contents_bytes > h->window_bytes ||
		 h->contents_bytes % PV_IMAGE_UNIT)
		what = "size";
	else if (h->nchunks > h->contents_bytes / PV_IMAGE_UNIT)
		what = "number of chunks";
	else if (!memchr(h->writer_kernel, 0, sizeof(h->writer_kernel)) ||
		 !memchr(h->writer_library, 0, sizeof(h->writer_library)))
		what = "writer";
	return what ? pvi_fail(-EBADMSG, "the image's head makes no sense: %s", what) : 0;
}

static int read_head(struct load *l)
{
	struct image_rec *h = &l->set->head;
	int err = pvi_image_read(&l->work, h, sizeof(h->magic), "its head");

	if (!err && h->magic != PV_IMAGE_MAGIC)
		return pvi_fail(-EBADMSG, "this is no image of a store (magic 0x%016" PRIx64 ")", h->magic);
	if (!err)
		err = pvi_image_read(&l->work, (uint8_t *) h + sizeof(h->magic),
				     sizeof(*h) - sizeof(h->magic), "its head");
	if (err)
		return err;
	if (h->version != PV_IMAGE_VERSION)
		return pvi_fail(-EPROTONOSUPPORT, "the image is of version %u, this library reads %u",
				h->version, PV_IMAGE_VERSION);
	if (h->checksum != pvi_image_checksum(h, offsetof(struct image_rec, checksum), 0))
		return pvi_fail(-EBADMSG, "the image is damaged: its head's checksum is wrong");
	if (h->format_version != PV_FORMAT_VERSION)
		return pvi_fail(-EPROTONOSUPPORT,
				"the store in the image is of format version %u, this library reads %u",
				h->format_version, PV_FORMAT_VERSION);
	pvi_image_digest(&l->work, h, sizeof(*h));
	return head_bounds(h);
}

static int memfd_bounds(const struct image_rec *h, const struct image_memfd_rec *recs)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < h->nmemfds; i++) {
		sum += recs[i].bytes;
		if (recs[i].token != i || recs[i].bytes % PV_IMAGE_UNIT || !recs[i].bytes ||
		    recs[i].bytes > (i ? h->window_bytes : INDEX_MAX) || sum > h->window_bytes)
			return pvi_fail(-EBADMSG, "the image's memfd %u makes no sense", i);
	}
	if (h->contents_bytes > sum)
		return pvi_fail(-EBADMSG, "the image claims more contents than the store has room for");
	return 0;
}

static int memfd_make(struct pvi_image_set *set, uint32_t i)
{
	char name[96];

	if (i)
		snprintf(name, sizeof(name), "pv:%s:%u", set->head.store, i - 1);
	else
		snprintf(name, sizeof(name), "pv:%s:index", set->head.store);
	set->fds[i] = pvi_arena_memfd(name, set->recs[i].bytes);
	return set->fds[i] < 0 ? set->fds[i] : 0;
}

static int read_memfds(struct load *l)
{
	struct pvi_image_set *set = l->set;
	uint32_t n = set->head.nmemfds;
	int err;

	set->recs = calloc(n, sizeof(*set->recs));
	set->fds = calloc(n, sizeof(*set->fds));
	if (!set->recs || !set->fds)
		return pvi_fail(-ENOMEM, "no memory");
	set->n = n;
	for (uint32_t i = 0; i < n; i++)
		set->fds[i] = -1;
	err = pvi_image_read(&l->work, set->recs, n * sizeof(*set->recs), "its list of memfds");
	if (err)
		return err;
	if (set->head.memfds_checksum != pvi_image_checksum(set->recs, n * sizeof(*set->recs), 0))
		return pvi_fail(-EBADMSG, "the image is damaged: its list of memfds has a wrong checksum");
	err = memfd_bounds(&set->head, set->recs);
	for (uint32_t i = 0; i < n && !err; i++)
		err = memfd_make(set, i);
	return err;
}

/* ---- chunks: reading, one thread at a time ---- */

static int damaged(const struct load *l, const char *what)
{
	return pvi_fail(-EBADMSG, "the image is damaged: chunk %" PRIu64 " of %" PRIu64 ": %s", l->nchunks,
			l->set->head.nchunks, what);
}

static int read_runs(struct load *l, struct reader *t)
{
	const struct image_memfd_rec *memfd = &l->set->recs[t->rec.token];
	uint64_t sum = 0, off = t->rec.token == l->token ? l->off : 0;
	int err = pvi_image_read(&l->work, t->runs, t->rec.nruns * sizeof(*t->runs), "a chunk");

	if (err)
		return err;
	for (uint32_t i = 0; i < t->rec.nruns; i++) {
		const struct image_run_rec *r = &t->runs[i];

		if (r->off % PV_IMAGE_UNIT || r->bytes % PV_IMAGE_UNIT || !r->bytes || r->off < off ||
		    r->off > memfd->bytes || r->bytes > memfd->bytes - r->off)
			return damaged(l, "it leaves its place");
		off = r->off + r->bytes;
		sum += r->bytes;
	}
	if (sum != t->rec.contents_bytes)
		return damaged(l, "it does not fit into its place");
	l->token = t->rec.token;
	l->off = off;
	return 0;
}

static int memory_left(struct load *l)
{
	uint64_t done = l->work.done_bytes, want = l->set->head.contents_bytes - done;

	if (done < l->looked)
		return 0;
	if (done)
		want = want < LOOK_BYTES ? want : LOOK_BYTES;
	if (pvi_memory_room() < want)
		return pvi_fail(-ENOMEM, "no memory for the %" PRIu64 " bytes of the store: %" PRIu64
					 " are left beside the reserve, %" PRIu64 " were read",
				l->set->head.contents_bytes, pvi_memory_room(), done);
	l->looked = done + LOOK_BYTES;
	return 0;
}

static int read_chunk(struct load *l, struct reader *t)
{
	const struct image_rec *h = &l->set->head;
	struct image_chunk_rec *c = &t->rec;
	int err = pvi_image_read(&l->work, c, sizeof(*c), "a chunk");

	if (err)
		return err;
	if (c->magic != PV_IMAGE_CHUNK_MAGIC ||
	    c->checksum != pvi_image_checksum(c, offsetof(struct image_chunk_rec, checksum), 0))
		return damaged(l, "the checksum of its head is wrong");
	pvi_image_digest(&l->work, c, sizeof(*c));
	if (c->number != l->nchunks || c->token >= h->nmemfds || c->token < l->token)
		return damaged(l, "it is out of order");
	if (c->method > PV_IMAGE_ZSTD || !c->contents_bytes || c->contents_bytes > h->chunk_bytes ||
	    !c->nruns || c->nruns > c->contents_bytes / PV_IMAGE_UNIT || !c->stored_bytes ||
	    (c->method == PV_IMAGE_RAW ? c->stored_bytes != c->contents_bytes
				       : c->stored_bytes >= c->contents_bytes))
		return damaged(l, "its head makes no sense");
	if (c->contents_bytes > h->contents_bytes - l->work.done_bytes)
		return damaged(l, "there are more contents than the head says");
	err = memory_left(l);
	if (!err)
		err = read_runs(l, t);
	if (!err)
		err = pvi_image_read(&l->work, t->stored, c->stored_bytes, "a chunk");
	if (!err)
		err = pvi_image_done(&l->work, c->contents_bytes);
	l->nchunks += !err;
	return err;
}

/* ---- chunks: all threads ---- */

static int unpack(struct reader *t)
{
	const struct image_chunk_rec *c = &t->rec;
	uint64_t seed = pvi_image_checksum(t->runs, c->nruns * sizeof(*t->runs), 0);
	const uint8_t *contents = t->stored;
	size_t n = c->stored_bytes;
	const char *what = NULL;

	if (c->stored_checksum != pvi_image_checksum(t->stored, c->stored_bytes, seed)) {
		what = "its checksum is wrong";
	} else if (c->method == PV_IMAGE_ZSTD) {
		n = ZSTD_decompressDCtx(t->zstd, t->contents, c->contents_bytes, t->stored,
					c->stored_bytes);
		contents = t->contents;
		if (ZSTD_isError(n))
			what = ZSTD_getErrorName(n);
	}
	if (!what && (n != c->contents_bytes ||
		      c->contents_checksum != pvi_image_checksum(contents, n, 0)))
		what = "the checksum of its contents is wrong";
	if (what)
		return pvi_fail(-EBADMSG, "the image is damaged: chunk %" PRIu64 ": %s", c->number, what);
	return 0;
}

static int write_runs(const struct load *l, const struct reader *t)
{
	const uint8_t *from = t->rec.method == PV_IMAGE_ZSTD ? t->contents : t->stored;
	int fd = l->set->fds[t->rec.token];

	for (uint32_t i = 0; i < t->rec.nruns; i++) {
		uint64_t done = 0;

		while (done < t->runs[i].bytes) {
			ssize_t n = pwrite(fd, from + done, t->runs[i].bytes - done,
					   (off_t) (t->runs[i].off + done));

			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				return pvi_fail(errno == ENOSPC ? -ENOMEM : -errno,
						"no memory for the store: memfd %u: %s", t->rec.token,
						strerror(errno));
			done += (uint64_t) n;
		}
		from += t->runs[i].bytes;
	}
	return 0;
}

/* The next chunk of the file. 1: there is none. */
static int take(struct load *l, struct reader *t)
{
	int err = 1;

	pthread_mutex_lock(&l->work.lock);
	if (!l->work.err && l->nchunks < l->set->head.nchunks)
		err = read_chunk(l, t);
	if (err < 0)
		pvi_image_failed(&l->work, err);
	pthread_mutex_unlock(&l->work.lock);
	return err;
}

static void load_chunks(void *ctx)
{
	struct load *l = ctx;
	struct reader t = {
		.runs = malloc(RUNS_MAX * sizeof(*t.runs)),
		.stored = malloc(l->set->head.chunk_bytes),
		.contents = malloc(l->set->head.chunk_bytes),
		.zstd = ZSTD_createDCtx(),
	};
	int err = 0;

	if (!t.runs || !t.stored || !t.contents || !t.zstd)
		err = pvi_fail(-ENOMEM, "no memory to decompress with");
	while (!err && take(l, &t) == 0) {
		err = unpack(&t);
		if (!err)
			err = write_runs(l, &t);
	}
	if (err) {
		pthread_mutex_lock(&l->work.lock);
		pvi_image_failed(&l->work, err);
		pthread_mutex_unlock(&l->work.lock);
	}
	free(t.runs);
	free(t.stored);
	free(t.contents);
	ZSTD_freeDCtx(t.zstd);
}

/* ---- end ---- */

static int read_end(struct load *l)
{
	struct image_end_rec end;
	uint8_t more;
	ssize_t n;
	int err = pvi_image_read(&l->work, &end, sizeof(end), "its last record");

	if (err)
		return err;
	if (end.magic != PV_IMAGE_END_MAGIC ||
	    end.checksum != pvi_image_checksum(&end, offsetof(struct image_end_rec, checksum), 0))
		return pvi_fail(-EBADMSG, "the image is damaged: the checksum of its last record is wrong");
	if (end.nchunks != l->nchunks || end.contents_bytes != l->work.done_bytes ||
	    end.contents_bytes != l->set->head.contents_bytes ||
	    end.file_bytes != l->work.file_bytes || end.digest != pvi_image_digest_value(&l->work))
		return pvi_fail(-EBADMSG,
				"the image is damaged: its last record says %" PRIu64 " chunks, %" PRIu64
				" bytes, digest %016" PRIx64 "; there are %" PRIu64 ", %" PRIu64
				" and %016" PRIx64,
				end.nchunks, end.file_bytes, end.digest, l->nchunks, l->work.file_bytes,
				pvi_image_digest_value(&l->work));
	do
		n = read(l->work.fd, &more, 1);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return pvi_fail(-errno, "the image cannot be read: %s", strerror(errno));
	return n ? pvi_fail(-EBADMSG, "the image is damaged: something follows its end") : 0;
}

int pvi_image_seal(const struct pvi_image_set *set)
{
	const uint32_t known = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;

	for (uint32_t i = 0; i < set->n; i++) {
		int seals = (int) (set->recs[i].seals & known);

		if (seals && fcntl(set->fds[i], F_ADD_SEALS, seals))
			return pvi_fail(-errno, "memfd %u cannot be sealed as it was (0x%x): %s", i,
					(unsigned int) seals, strerror(errno));
	}
	return 0;
}

static void report_on(const struct load *l, uint32_t threads, struct pv_image_report *r)
{
	const struct image_rec *h = &l->set->head;

	*r = (struct pv_image_report){
		.contents_bytes = h->contents_bytes,
		.file_bytes = l->work.file_bytes,
		.chunks = h->nchunks,
		.generation = h->generation,
		.saved_s = h->saved_s,
		.segments = h->nmemfds - 1,
		.threads = threads,
	};
	for (uint32_t i = 0; i < l->set->n; i++)
		r->store_bytes += l->set->recs[i].bytes;
	memcpy(r->name, h->store, sizeof(r->name));
	memcpy(r->kernel, h->writer_kernel, sizeof(r->kernel));
	memcpy(r->uuid, h->uuid, sizeof(r->uuid));
}

int pvi_image_load(int fd, const struct pv_restore_options *o,
		   int (*accept)(void *ctx, const struct image_rec *head), void *ctx,
		   struct pvi_image_set *set, struct pv_image_report *report)
{
	struct load l = {.set = set};
	uint32_t threads = 1;
	int err;

	*set = (struct pvi_image_set){0};
	err = pvi_image_work_init(&l.work, fd, o->progress, o->ctx);
	if (err)
		return err;
	err = read_head(&l);
	if (!err && accept)
		err = accept(ctx, &set->head);
	if (!err)
		err = read_memfds(&l);
	l.work.total_bytes = set->head.contents_bytes;
	if (!err)
		err = pvi_image_run(&l.work, pvi_image_threads(o->threads), load_chunks, &l, &threads);
	if (!err)
		err = read_end(&l);
	if (!err)
		report_on(&l, threads, report);
	pvi_image_work_free(&l.work);
	return err;
}

void pvi_image_set_free(struct pvi_image_set *set)
{
	for (uint32_t i = 0; i < set->n; i++)
		if (set->fds[i] >= 0)
			close(set->fds[i]);
	free(set->recs);
	free(set->fds);
	*set = (struct pvi_image_set){0};
}
