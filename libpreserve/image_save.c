/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Writing an image file (preserve/image.h, image_layout.h).
 *
 * First a plan: what of each memfd is to be in the file, cut into chunks. That is what has memory (holes
 * are zero anyway) and, of a segment, is not a free page; of one that is sealed all of it, which its digest
 * is about. Then threads take chunk after chunk, compress
 * it into a buffer of their own, and write it when its turn has come.
 *
 * Nobody else uses the store, and nothing is pending: no intent, no transaction. So the page map says all
 * that is in use. (The log of a transaction lies in pages that are free in the map.)
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <zstd.h>

#include "image_file.h"
#include "internal.h"

#define CHUNK_BYTES   (4u << 20)
#define LEVEL_DEFAULT 1
#define LEVEL_MIN     (-7)
#define LEVEL_MAX     19

struct chunk {
	uint32_t token;
	uint32_t nruns;
	uint64_t first_run;
	uint64_t bytes;
};

struct plan {
	struct image_run_rec *runs;
	struct chunk *chunks;
	uint64_t nruns, runs_room;
	uint64_t nchunks, chunks_room;
	uint64_t bytes;
};

struct save {
	struct pvi_image_work work; /* its lock is for `next` and `turn` too */
	struct pv_store *store;
	struct plan plan;
	int level;
	uint64_t next; /* chunk to be compressed */
	uint64_t turn; /* chunk to be written */
};

/* What one thread has. */
struct writer {
	ZSTD_CCtx *zstd;
	uint8_t *contents; /* gathered, if they are in several runs */
	uint8_t *packed;
};

/* ---- the plan ---- */

static void *grow(void *p, uint64_t n, uint64_t *room, size_t each)
{
	uint64_t wanted = *room ? 2 * *room : 1024;
	void *grown;

	if (n < *room)
		return p;
	grown = realloc(p, wanted * each);
	if (grown)
		*room = wanted;
	return grown;
}

static struct chunk *plan_chunk(struct plan *p, uint32_t token)
{
	struct chunk *last = p->nchunks ? &p->chunks[p->nchunks - 1] : NULL;
	void *grown;

	if (last && last->token == token && last->bytes < CHUNK_BYTES)
		return last;
	grown = grow(p->chunks, p->nchunks, &p->chunks_room, sizeof(*p->chunks));
	if (!grown)
		return NULL;
	p->chunks = grown;
	p->chunks[p->nchunks] = (struct chunk){.token = token, .first_run = p->nruns};
	return &p->chunks[p->nchunks++];
}

/* The next range of a memfd, behind the one before. */
static int plan_add(struct plan *p, uint32_t token, uint64_t off, uint64_t bytes)
{
	while (bytes) {
		struct chunk *c = plan_chunk(p, token);
		uint64_t n = !c ? 0 : bytes < CHUNK_BYTES - c->bytes ? bytes : CHUNK_BYTES - c->bytes;
		void *grown = grow(p->runs, p->nruns, &p->runs_room, sizeof(*p->runs));
		struct image_run_rec *last;

		if (grown)
			p->runs = grown;
		if (!c || !grown)
			return pvi_fail(-ENOMEM, "no memory to plan the image");
		last = c->nruns ? &p->runs[p->nruns - 1] : NULL;
		if (last && last->off + last->bytes == off) {
			last->bytes += n;
		} else {
			p->runs[p->nruns++] = (struct image_run_rec){off, n};
			c->nruns++;
		}
		c->bytes += n;
		p->bytes += n;
		off += n;
		bytes -= n;
	}
	return 0;
}

/* The pages in use of a range that has memory. */
static int plan_pages(struct plan *p, const struct pv_store *s, const struct pvi_segment *seg,
		      uint64_t from, uint64_t to)
{
	int err = 0;

	while (from < to && !err) {
		uint32_t page = (uint32_t) (from >> s->page_shift);
		uint64_t end = (page + 1ull) << s->page_shift;

		if (end > to)
			end = to;
		if (page < seg->first_page || pvi_rec_load(seg->map, page) != 0)
			err = plan_add(p, seg->number + 1, from, end - from);
		from = end;
	}
	return err;
}

/* A memfd: the index (seg NULL), or a segment. */
static int plan_memfd(struct plan *p, const struct pv_store *s, const struct pvi_segment *seg)
{
	off_t size = (off_t) (seg ? seg->bytes : s->index.rec->bytes), at = 0;
	int fd = seg ? seg->fd : s->index.fd, err = 0;

	while (at < size && !err) {
		off_t data = lseek(fd, at, SEEK_DATA), hole;

		if (data < 0 && errno == ENXIO)
			break;
		hole = data < 0 ? data : lseek(fd, data, SEEK_HOLE);
		if (hole < 0)
			return pvi_fail(-errno, "memfd %u: lseek: %s", seg ? seg->number + 1 : 0,
					strerror(errno));
		if (seg && !seg->sealed)
			err = plan_pages(p, s, seg, (uint64_t) data, (uint64_t) hole);
		else
			err = plan_add(p, seg ? seg->number + 1 : 0, (uint64_t) data,
				       (uint64_t) (hole - data));
		at = hole;
	}
	return err;
}

static int plan_make(struct plan *p, const struct pv_store *s)
{
	int err = plan_memfd(p, s, NULL);

	for (uint32_t i = 0; i < s->nsegments && !err; i++)
		err = plan_memfd(p, s, &s->segments[i]);
	return err;
}

static void plan_free(struct plan *p)
{
	free(p->runs);
	free(p->chunks);
}

/* ---- chunks ---- */

static const uint8_t *address_of(const struct pv_store *s, uint32_t token, uint64_t off)
{
	return (token ? s->segments[token - 1].addr : (const uint8_t *) s->index.rec) + off;
}

/* A sealed segment may be mapped privately, with references that are right in this process only. */
static bool read_run(const struct save *j, const struct chunk *c, const struct image_run_rec *run, uint8_t *to)
{
	int fd = j->store->segments[c->token - 1].fd;

	for (uint64_t done = 0; done < run->bytes;) {
		ssize_t n = pread(fd, to + done, run->bytes - done, (off_t) (run->off + done));

		if (n <= 0 && !(n < 0 && errno == EINTR))
			return false;
		done += n > 0 ? (uint64_t) n : 0;
	}
	return true;
}

/* The contents of a chunk: where they are, or gathered. NULL: they cannot be read. */
static const uint8_t *gather(const struct save *j, const struct chunk *c, const struct writer *t)
{
	bool sealed = c->token && j->store->segments[c->token - 1].sealed;
	const struct image_run_rec *runs = &j->plan.runs[c->first_run];
	uint8_t *to = t->contents;

	if (c->nruns == 1 && !sealed)
		return address_of(j->store, c->token, runs[0].off);
	for (uint32_t i = 0; i < c->nruns; i++) {
		if (!sealed)
			memcpy(to, address_of(j->store, c->token, runs[i].off), runs[i].bytes);
		else if (!read_run(j, c, &runs[i], to))
			return NULL;
		to += runs[i].bytes;
	}
	return t->contents;
}

/* Compress chunk i: its head in *rec, what is stored in v[2]. */
static int build(const struct save *j, uint64_t i, struct writer *t, struct image_chunk_rec *rec,
		  struct iovec v[3])
{
	const struct chunk *c = &j->plan.chunks[i];
	struct image_run_rec *runs = &j->plan.runs[c->first_run];
	const uint8_t *contents = gather(j, c, t);
	size_t packed;
	bool raw;

	if (!contents)
		return pvi_fail(-EIO, "segment %u: cannot read it: %s", c->token - 1, strerror(errno));
	packed = ZSTD_compressCCtx(t->zstd, t->packed, ZSTD_compressBound(CHUNK_BYTES), contents, c->bytes,
				   j->level);
	/* What does not become smaller, or cannot be compressed, is stored as it is. */
	raw = ZSTD_isError(packed) || packed >= c->bytes;
	v[0] = (struct iovec){rec, sizeof(*rec)};
	v[1] = (struct iovec){runs, c->nruns * sizeof(*runs)};
	v[2] = raw ? (struct iovec){(void *) (uintptr_t) contents, c->bytes}
		   : (struct iovec){t->packed, packed};
	*rec = (struct image_chunk_rec){
		.magic = PV_IMAGE_CHUNK_MAGIC,
		.method = raw ? PV_IMAGE_RAW : PV_IMAGE_ZSTD,
		.number = i,
		.token = c->token,
		.nruns = c->nruns,
		.contents_bytes = (uint32_t) c->bytes,
		.stored_bytes = (uint32_t) v[2].iov_len,
		.contents_checksum = pvi_image_checksum(contents, c->bytes, 0),
		.stored_checksum = pvi_image_checksum(v[2].iov_base, v[2].iov_len,
						      pvi_image_checksum(runs, v[1].iov_len, 0)),
	};
	rec->checksum = pvi_image_checksum(rec, offsetof(struct image_chunk_rec, checksum), 0);
	return 0;
}

/* Write it when those before it have been. */
static int put(struct save *j, uint64_t i, const struct image_chunk_rec *rec, struct iovec v[3])
{
	int err;

	pthread_mutex_lock(&j->work.lock);
	while (j->turn != i && !j->work.err)
		pthread_cond_wait(&j->work.changed, &j->work.lock);
	err = j->work.err;
	pthread_mutex_unlock(&j->work.lock);
	if (err)
		return err;
	pvi_image_digest(&j->work, rec, sizeof(*rec));
	err = pvi_image_write(&j->work, v, 3);
	if (err)
		return err;
	pthread_mutex_lock(&j->work.lock);
	err = pvi_image_done(&j->work, rec->contents_bytes);
	j->turn = i + 1;
	pthread_cond_broadcast(&j->work.changed);
	pthread_mutex_unlock(&j->work.lock);
	return err;
}

static bool next(struct save *j, uint64_t *i)
{
	bool some;

	pthread_mutex_lock(&j->work.lock);
	some = !j->work.err && j->next < j->plan.nchunks;
	if (some)
		*i = j->next++;
	pthread_mutex_unlock(&j->work.lock);
	return some;
}

static void save_chunks(void *ctx)
{
	struct save *j = ctx;
	struct writer t = {
		.zstd = ZSTD_createCCtx(),
		.contents = malloc(CHUNK_BYTES),
		.packed = malloc(ZSTD_compressBound(CHUNK_BYTES)),
	};
	int err = 0;
	uint64_t i;

	if (!t.zstd || !t.contents || !t.packed)
		err = pvi_fail(-ENOMEM, "no memory to compress with");
	while (!err && next(j, &i)) {
		struct image_chunk_rec rec;
		struct iovec v[3];

		err = build(j, i, &t, &rec, v);
		if (!err)
			err = put(j, i, &rec, v);
	}
	if (err) {
		pthread_mutex_lock(&j->work.lock);
		pvi_image_failed(&j->work, err);
		pthread_mutex_unlock(&j->work.lock);
	}
	ZSTD_freeCCtx(t.zstd);
	free(t.contents);
	free(t.packed);
}

/* ---- head and end ---- */

static int put_head(struct save *j)
{
	const struct pv_store *s = j->store;
	struct image_rec head = {
		.magic = PV_IMAGE_MAGIC,
		.version = PV_IMAGE_VERSION,
		.nmemfds = s->nsegments + 1,
		.generation = pvi_index_current(s),
		.epoch = s->index.epoch,
		.base = s->index.base,
		.window_bytes = s->window_bytes,
		.contents_bytes = j->plan.bytes,
		.nchunks = j->plan.nchunks,
		.chunk_bytes = CHUNK_BYTES,
		.format_version = PV_FORMAT_VERSION,
		.saved_s = time(NULL),
	};
	struct image_memfd_rec *recs = calloc(head.nmemfds, sizeof(*recs));
	struct utsname kernel;
	struct iovec v[2];
	int err;

	if (!recs)
		return pvi_fail(-ENOMEM, "no memory");
	for (uint32_t i = 0; i < head.nmemfds; i++) {
		int fd = i ? s->segments[i - 1].fd : s->index.fd;

		recs[i].token = i;
		recs[i].bytes = i ? s->segments[i - 1].bytes : s->index.rec->bytes;
		recs[i].seals = (uint32_t) fcntl(fd, F_GET_SEALS);
	}
	memcpy(head.uuid, s->index.uuid, sizeof(head.uuid));
	snprintf(head.store, sizeof(head.store), "%s", s->index.name);
	snprintf(head.writer_library, sizeof(head.writer_library), "%s", pv_version());
	if (uname(&kernel) == 0)
		snprintf(head.writer_kernel, sizeof(head.writer_kernel), "%.63s", kernel.release);
	head.memfds_checksum = pvi_image_checksum(recs, head.nmemfds * sizeof(*recs), 0);
	head.checksum = pvi_image_checksum(&head, offsetof(struct image_rec, checksum), 0);
	pvi_image_digest(&j->work, &head, sizeof(head));
	v[0] = (struct iovec){&head, sizeof(head)};
	v[1] = (struct iovec){recs, head.nmemfds * sizeof(*recs)};
	err = pvi_image_write(&j->work, v, 2);
	free(recs);
	return err;
}

static int put_end(struct save *j)
{
	struct image_end_rec end = {
		.magic = PV_IMAGE_END_MAGIC,
		.nchunks = j->plan.nchunks,
		.contents_bytes = j->plan.bytes,
		.file_bytes = j->work.file_bytes + sizeof(end),
		.digest = pvi_image_digest_value(&j->work),
	};
	struct iovec v = {&end, sizeof(end)};

	end.checksum = pvi_image_checksum(&end, offsetof(struct image_end_rec, checksum), 0);
	return pvi_image_write(&j->work, &v, 1);
}

static void report_on(const struct save *j, uint32_t threads, struct pv_image_report *r)
{
	const struct pv_store *s = j->store;

	*r = (struct pv_image_report){
		.contents_bytes = j->plan.bytes,
		.file_bytes = j->work.file_bytes,
		.store_bytes = s->index.rec->bytes,
		.chunks = j->plan.nchunks,
		.generation = pvi_index_current(s),
		.saved_s = time(NULL),
		.segments = s->nsegments,
		.threads = threads,
	};
	for (uint32_t i = 0; i < s->nsegments; i++)
		r->store_bytes += s->segments[i].bytes;
	snprintf(r->name, sizeof(r->name), "%s", s->index.name);
	memcpy(r->uuid, s->index.uuid, sizeof(r->uuid));
}

/* ---- all of it ---- */

static int take_options(struct pv_save_options *o, const struct pv_save_options *options)
{
	const uint8_t *tail = (const uint8_t *) options;

	*o = (struct pv_save_options){.size = sizeof(*o)};
	if (options) {
		if (options->size < offsetof(struct pv_save_options, progress))
			return pvi_fail(-EINVAL, "pv_save_options.size is %zu", options->size);
		for (size_t i = sizeof(*o); i < options->size; i++)
			if (tail[i])
				return pvi_fail(-EINVAL,
						"pv_save_options has fields that this library does not know");
		memcpy(o, options, options->size < sizeof(*o) ? options->size : sizeof(*o));
	}
	if (!o->level)
		o->level = LEVEL_DEFAULT;
	if (o->level < LEVEL_MIN || o->level > LEVEL_MAX)
		return pvi_fail(-EINVAL, "pv_save_options.level %d is not from %d to %d", o->level,
				LEVEL_MIN, LEVEL_MAX);
	return 0;
}

/* Is anything under way that the page map does not say? */
static int at_rest(const struct pv_store *s)
{
	if (s->readonly)
		return pvi_fail(-EPERM,
				"the store was opened read-only: another process may be changing it");
	for (uint32_t i = 0; i < s->lanes_used; i++)
		if (s->lanes[i].count || s->lanes[i].tx != PV_TX_NONE)
			return pvi_fail(-EBUSY, "lane %u has %s that is not done", i,
					s->lanes[i].count ? "an intent" : "a transaction");
	return 0;
}

static int save(struct save *j, const struct pv_save_options *o, struct pv_image_report *report)
{
	uint32_t threads = 1;
	int err = plan_make(&j->plan, j->store);

	j->work.total_bytes = j->plan.bytes;
	if (!err)
		err = put_head(j);
	if (!err)
		err = pvi_image_run(&j->work, pvi_image_threads(o->threads), save_chunks, j, &threads);
	if (!err)
		err = put_end(j);
	if (!err && report)
		report_on(j, threads, report);
	return err;
}

int pv_save(struct pv_store *s, int fd, const struct pv_save_options *options,
	    struct pv_image_report *report)
{
	struct save j = {.store = s};
	struct pv_save_options o;
	int err = take_options(&o, options);

	if (!err)
		err = at_rest(s);
	if (!err)
		err = pvi_image_work_init(&j.work, fd, o.progress, o.ctx);
	if (err)
		return err;
	j.level = o.level;
	/* A callback of liburcu may be giving memory back. */
	pvi_retire_pause(s);
	err = save(&j, &o, report);
	pvi_retire_resume(s);
	plan_free(&j.plan);
	pvi_image_work_free(&j.work);
	return err;
}

/* ---- into a file ---- */

/* Locked, and still what the path names: whoever had the lock before may have renamed it. */
static bool ours(const char *temporary, int fd)
{
	struct stat at_path, st;

	return flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 &&
	       lstat(temporary, &at_path) == 0 && st.st_dev == at_path.st_dev &&
	       st.st_ino == at_path.st_ino;
}

static int open_temporary(const char *path, const char *temporary)
{
	struct stat st;
	int fd;

	if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
		return pvi_fail(-EINVAL, "%s is no regular file: it cannot be replaced by an image", path);
	fd = open(temporary, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return pvi_fail(-errno, "cannot make %s: %s", temporary, strerror(errno));
	if (!ours(temporary, fd)) {
		close(fd);
		return pvi_fail(-EBUSY, "%s is being written by another process", temporary);
	}
	if (ftruncate(fd, 0)) {
		int err = pvi_fail(-errno, "cannot empty %s: %s", temporary, strerror(errno));

		close(fd);
		return err;
	}
	return fd;
}

/* The name is as durable as the contents. */
static int sync_folder(const char *path)
{
	const char *slash = strrchr(path, '/');
	char *folder = slash ? strndup(path, slash == path ? 1 : (size_t) (slash - path)) : strdup(".");
	int fd = folder ? open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1, err = 0;

	if (fd < 0 || fsync(fd))
		err = pvi_fail(-errno, "%s: its folder cannot be synchronised: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	free(folder);
	return err;
}

int pv_save_file(struct pv_store *s, const char *path, const struct pv_save_options *options,
		 struct pv_image_report *report)
{
	char *temporary;
	int fd, err;

	if (asprintf(&temporary, "%s.tmp", path) < 0)
		return pvi_fail(-ENOMEM, "no memory for a path");
	fd = open_temporary(path, temporary);
	if (fd < 0) {
		free(temporary);
		return fd;
	}
	err = pv_save(s, fd, options, report);
	if (!err && fsync(fd))
		err = pvi_fail(-errno, "%s cannot be synchronised: %s", temporary, strerror(errno));
	if (!err && rename(temporary, path))
		err = pvi_fail(-errno, "%s cannot be renamed to %s: %s", temporary, path, strerror(errno));
	if (err)
		unlink(temporary);
	else
		err = sync_folder(path);
	close(fd);
	free(temporary);
	return err;
}
