/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Opening and closing a store: options, the handle and its tables, creation; attaching is in attach.c.
 *
 * Creating: the index is handed to the backend last, so a crash on the way leaves at most a segment
 * without an index, which counts as no store.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <preserve/compact.h>
#include <preserve/retire.h>

#include "handover.h"
#include "internal.h"

#define WINDOW_BYTES_DEFAULT  (1ull << 40)
#define SEGMENT_BYTES_DEFAULT (64ull << 20)
#define LANES_DEFAULT	      256u
#define LARGE_PAGE	      16384u
#define FETCH_ATTEMPTS	      16u
#define GRANULES_SHIFT	      20 /* a window has at most 2^20 granules, see pv_store.segment_of */
/* TSan leaves little room for windows, see arena.c. */
#if defined(__SANITIZE_THREAD__)
#undef WINDOW_BYTES_DEFAULT
#define WINDOW_BYTES_DEFAULT (1ull << 35)
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#undef WINDOW_BYTES_DEFAULT
#define WINDOW_BYTES_DEFAULT (1ull << 35)
#endif
#endif

const char *pv_version(void)
{
	return PV_VERSION;
}

/* ---- options ---- */

static bool power_of_two(uint64_t v)
{
	return v && (v & (v - 1)) == 0;
}

static int take_relocation(struct pv_options *o)
{
	const char *env = secure_getenv("PV_RELOCATE");

	if (o->relocate > PV_RELOCATE_ALWAYS)
		return pvi_fail(-EINVAL, "pv_options.relocate %u is unknown", o->relocate);
	if (o->dangling > PV_DANGLING_NULL)
		return pvi_fail(-EINVAL, "pv_options.dangling %u is unknown", o->dangling);
	if (o->threads > PVI_RELOCATE_THREADS)
		return pvi_fail(-EINVAL, "pv_options.threads %u is more than %u", o->threads,
				PVI_RELOCATE_THREADS);
	if (o->relocate != PV_RELOCATE_AUTO || o->base || !env || !*env)
		return 0;
	if (strcmp(env, "always") == 0)
		o->relocate = PV_RELOCATE_ALWAYS;
	else if (strcmp(env, "never") == 0)
		o->relocate = PV_RELOCATE_NEVER;
	else if (strcmp(env, "auto") != 0)
		return pvi_fail(-EINVAL, "PV_RELOCATE=%s in the environment is none of auto, always, never",
				env);
	return 0;
}

static int take_options(struct pv_options *o, const struct pv_options *opts)
{
	*o = (struct pv_options){.size = sizeof(*o)};
	if (opts) {
		const uint8_t *tail = (const uint8_t *) opts;

		if (opts->size < offsetof(struct pv_options, window_bytes))
			return pvi_fail(-EINVAL, "pv_options.size is %zu", opts->size);
		for (size_t i = sizeof(*o); i < opts->size; i++)
			if (tail[i])
				return pvi_fail(-EINVAL,
						"pv_options has fields that this library does not know");
		memcpy(o, opts, opts->size < sizeof(*o) ? opts->size : sizeof(*o));
	}
	if (!o->segment_bytes)
		o->segment_bytes = SEGMENT_BYTES_DEFAULT;
	if (!o->window_bytes)
		o->window_bytes = WINDOW_BYTES_DEFAULT < o->segment_bytes << GRANULES_SHIFT
					  ? WINDOW_BYTES_DEFAULT
					  : o->segment_bytes << GRANULES_SHIFT;
	if (!o->lanes)
		o->lanes = LANES_DEFAULT;
	if (!o->page_bytes)
		o->page_bytes = o->segment_bytes >= 4ull << 20 ? LARGE_PAGE : 4096;
	if (o->flags & ~(PV_CREATE | PV_EXCL | PV_RDONLY | PV_RESET | PV_COMPACT | PV_MEND | PV_EAGER) ||
	    ((o->flags & (PV_EXCL | PV_RESET)) && !(o->flags & PV_CREATE)) ||
	    ((o->flags & PV_RDONLY) && (o->flags & (PV_CREATE | PV_COMPACT | PV_EAGER))))
		return pvi_fail(-EINVAL, "pv_options.flags 0x%x make no sense", o->flags);
	if (!power_of_two(o->segment_bytes) || o->segment_bytes < 32768 ||
	    o->segment_bytes > 1ull << 30)
		return pvi_fail(-EINVAL,
				"pv_options.segment_bytes %" PRIu64
				" is not a power of two from 32 KiB to 1 GiB",
				o->segment_bytes);
	if (!power_of_two(o->window_bytes) || o->window_bytes < 2 * o->segment_bytes ||
	    o->window_bytes / o->segment_bytes > 1u << GRANULES_SHIFT || o->window_bytes > 1ull << 45)
		return pvi_fail(-EINVAL,
				"pv_options.window_bytes %" PRIu64
				" is not a power of two from 2 to 2^20 times segment_bytes",
				o->window_bytes);
	if (o->page_bytes != 4096 && o->page_bytes != LARGE_PAGE)
		return pvi_fail(-EINVAL, "pv_options.page_bytes %u is neither 4096 nor 16384",
				o->page_bytes);
	if (o->lanes > 65536)
		return pvi_fail(-EINVAL, "pv_options.lanes %u is more than 65536", o->lanes);
	if (o->agent_owner && o->handover != PV_HANDOVER_AGENT)
		return pvi_fail(-EINVAL, "pv_options.agent_owner is for PV_HANDOVER_AGENT");
	if (o->reserved2)
		return pvi_fail(-EINVAL, "pv_options.reserved2 is not 0");
	return take_relocation(o);
}

/* ---- a handle ---- */

static size_t pages_bytes(const struct pv_store *s)
{
	return (s->window_bytes >> s->page_shift) * sizeof(*s->pages); /* windows are powers of two */
}

int pvi_store_geometry(struct pv_store *s)
{
	s->granule_shift = (uint32_t) __builtin_ctzll(s->index.granule_bytes);
	s->page_shift = (uint32_t) __builtin_ctzll(s->index.page_bytes);
	s->page_mask = (1u << s->page_shift) - 1;
	s->page_desc_shift = s->page_shift - (uint32_t) __builtin_ctz(sizeof(*s->pages));
	s->page_desc_mask = pages_bytes(s) - sizeof(*s->pages);
	s->nlanes = s->index.nlanes;
	pvi_class_init(s);
	s->segment_of = calloc(s->window_bytes >> s->granule_shift, sizeof(*s->segment_of));
	s->segments = calloc(PVI_SEGMENTS_MAX, sizeof(*s->segments));
	s->lane_uses = calloc(s->nlanes, sizeof(*s->lane_uses));
	if (!s->segment_of || !s->segments || !s->lane_uses)
		return pvi_fail(-ENOMEM, "no memory for the store's tables");
	/* Writable with each segment: the kernel may count what is (vm.overcommit_memory=2). */
	s->pages = mmap(NULL, pages_bytes(s), PROT_READ,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (s->pages == MAP_FAILED) {
		s->pages = NULL;
		return pvi_fail(-ENOMEM, "no addresses for the page descriptors: %s", strerror(errno));
	}
	return 0;
}

/* Release what a handle has; the backend's handle is the caller's. */
static void teardown(struct pv_store *s)
{
	pvi_retire_close(s);
	pvi_thread_store_close(s);
	for (uint32_t i = 0; i < s->nsegments; i++) {
		close(s->segments[i].fd);
		pvi_page_unload(&s->segments[i]);
	}
	if (s->window_reserved)
		pvi_arena_release(s->base, s->window_bytes);
	if (s->index.fd >= 0)
		close(s->index.fd);
	pvi_lock_release(s);
	pvi_index_free(&s->index);
	if (s->pages)
		munmap(s->pages, pages_bytes(s));
	free(s->segment_of);
	free(s->segments);
	free(s->lane_uses);
	s->segment_of = NULL;
	s->segments = NULL;
	s->lane_uses = NULL;
}

/* ---- create ---- */

static int create_index(struct pv_store *s, const char *name, const struct pv_options *o)
{
	uint64_t bytes = pvi_index_memfd_bytes(o->segment_bytes);
	char memfd_name[80];
	uint8_t uuid[16];
	int err;

	if (getrandom(uuid, sizeof(uuid), 0) != (ssize_t) sizeof(uuid))
		return pvi_fail(errno, "getrandom: %s", strerror(errno));
	err = pvi_index_init(&s->index);
	if (err)
		return err;
	snprintf(s->index.name, sizeof(s->index.name), "%s", name);
	memcpy(s->index.uuid, uuid, 16);
	s->index.window_bytes = o->window_bytes;
	s->index.granule_bytes = o->segment_bytes;
	s->index.page_bytes = o->page_bytes;
	s->index.nlanes = o->lanes;
	s->index.epoch = 1;
	err = pvi_window_create(s);
	if (!err)
		err = pvi_store_geometry(s);
	if (err)
		return err;
	snprintf(memfd_name, sizeof(memfd_name), "pv:%s:index", name);
	s->index.fd = pvi_arena_memfd(memfd_name, bytes);
	if (s->index.fd < 0)
		return s->index.fd;
	s->index.rec = (struct index_rec *) s->base;
	err = pvi_arena_map(s->index.rec, bytes, s->index.fd, false);
	if (!err)
		err = pvi_arena_commit(s->index.fd, (uint8_t *) s->base, 0, PV_INDEX_HEADER_BYTES);
	if (!err)
		pvi_index_format(s->index.rec, uuid, bytes);
	return err;
}

static int create(struct pv_store *s, const char *name, const struct pv_options *o)
{
	uint64_t generation;
	int err = create_index(s, name, o);

	if (err)
		return err;
	if (o->limit_bytes && o->limit_bytes < s->index.rec->bytes + o->segment_bytes)
		return pvi_fail(-ENOSPC,
				"a limit of %" PRIu64 " bytes is less than index and first segment (%" PRIu64
				")",
				o->limit_bytes, s->index.rec->bytes + o->segment_bytes);
	err = pvi_lock_take(s, name, s->index.rec);
	if (err)
		return err;
	pvi_lock_note_writer(s);
	err = pvi_segment_create(s, 0, o->segment_bytes, o->segment_bytes);
	if (err)
		return err;
	pvi_segment_publish(s, 0);
	s->index.segments[0].off = s->segments[0].off;
	s->index.segments[0].bytes = s->segments[0].bytes;
	s->index.segments[0].birth_generation = s->segments[0].birth_generation;
	s->index.nsegments = 1;
	err = pvi_index_stage(&s->index, PVI_INDEX_SLACK, &generation);
	if (err)
		return err;
	pvi_index_commit(&s->index, generation);
	err = s->handover->ops->keep(s->handover, 1, s->segments[0].fd);
	if (!err)
		err = s->handover->ops->keep(s->handover, 0, s->index.fd);
	s->origin = PV_ORIGIN_CREATED;
	return err;
}

/* ---- open ---- */

/* Is this the leftover of a creation or a restore that a crash interrupted? The index is handed over last,
 * and a holder keeps all or nothing. A caller who keeps descriptors himself may have lost one, and so may a
 * service manager through a kexec: then it is said, unless it is segment 0 and nothing else. */
static bool unborn(const struct pv_store *s, struct pvi_fd *fds, unsigned int n)
{
	enum pv_handover kind = s->handover->ops->kind;
	bool all_or_nothing = kind != PV_HANDOVER_NONE && kind != PV_HANDOVER_SYSTEMD;

	return !pvi_attach_fd(fds, n, 0) && (all_or_nothing || (n == 1 && fds[0].token == 1));
}

/* Why nothing was found is worth knowing: the backend has just said it. */
static int no_store(const struct pv_store *s, const char *name)
{
	char why[256], luo[256] = "";

	snprintf(why, sizeof(why), "%s", pv_last_error());
	if (s->options.handover == PV_HANDOVER_AUTO &&
	    s->handover->ops->kind == PV_HANDOVER_HOLDER && pvi_luo_available() != 0)
		snprintf(luo, sizeof(luo), "; LUO was not asked: %s", pv_last_error());
	return pvi_fail(-ENOENT, "there is no store %s (%s backend): %s%s", name,
			s->handover->ops->name, why, luo);
}

static void close_fds(struct pvi_fd *fds, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		if (fds[i].fd >= 0)
			close(fds[i].fd);
	free(fds);
}

/* PV_RESET: forget what is kept, unless a process has it open. Its index need not be sound for that. */
static int reset(struct pv_store *s, const char *name)
{
	struct pvi_fd *fds = NULL, *index;
	struct index_rec rec = {0};
	unsigned int n = 0;
	bool from_kexec;
	int err = s->handover->ops->fetch(s->handover, &fds, &n, &from_kexec);

	if (err == -ENOENT)
		return 0;
	index = pvi_attach_fd(fds, n, 0);
	if (index) {
		if (pread(index->fd, &rec, sizeof(rec), 0) != (ssize_t) sizeof(rec))
			rec.writer_pid = 0;
		s->index.fd = index->fd;
		err = pvi_lock_take(s, name, &rec);
		if (err != -EBUSY)
			err = s->handover->ops->forget(s->handover);
		pvi_lock_release(s);
		s->index.fd = -1;
	} else {
		err = s->handover->ops->forget(s->handover);
	}
	close_fds(fds, n);
	return err;
}

static int fetch_and_attach(struct pv_store *s, const char *name, bool *again)
{
	const struct pv_options *o = &s->options;
	struct pvi_fd *fds = NULL;
	unsigned int n = 0;
	uint64_t start = pvi_attach_now_ns();
	int err;

	*again = false;
	err = s->handover->ops->fetch(s->handover, &fds, &n, &s->from_kexec);
	s->fetch_ns += pvi_attach_now_ns() - start;
	if (!err && unborn(s, fds, n)) {
		for (unsigned int i = 0; i < n && !err && (o->flags & PV_CREATE); i++)
			err = s->handover->ops->drop(s->handover, fds[i].token);
		if (!err)
			err = pvi_fail(-ENOENT, "its creation was interrupted");
	}
	if (!err && !pvi_attach_fd(fds, n, 0))
		err = pvi_fail(-ENXIO, "store %s: the index is missing, %u segments are kept", name, n);
	if (err == -ENOENT)
		err = o->flags & PV_CREATE
			      ? create(s, name, o)
			      : no_store(s, name);
	else if (!err && (o->flags & PV_EXCL))
		err = pvi_fail(-EEXIST, "store %s exists", name);
	else if (!err)
		err = pvi_attach(s, name, fds, n, again);
	close_fds(fds, n);
	return err;
}

static int open_store(struct pv_store *s, const char *name)
{
	bool again = true;
	int err = 0;

	if (s->options.flags & PV_RESET)
		err = reset(s, name);
	/* It takes one more process that has the store, changes it and ends, for each time. */
	for (unsigned int i = 0; i < FETCH_ATTEMPTS && !err && again; i++)
		err = fetch_and_attach(s, name, &again);
	if (!err && again)
		err = pvi_fail(-EBUSY,
			       "store %s: other processes keep changing what is kept (tried %u times)",
			       name, FETCH_ATTEMPTS);
	return err;
}

/* PV_EAGER is refused before anything is made, where it cannot be had. */
static int eager_verify(const struct pv_store *s, const char *name)
{
	char luo[256] = "";

	if (!(s->options.flags & PV_EAGER) || s->handover->ops->prepare)
		return 0;
	if (s->options.handover == PV_HANDOVER_AUTO && pvi_luo_available() != 0)
		snprintf(luo, sizeof(luo), ": %s", pv_last_error());
	return pvi_fail(-EOPNOTSUPP,
			"store %s: PV_EAGER, but the %s backend does not carry a store across a kexec%s",
			name, s->handover->ops->name, luo);
}

int pv_open(const char *name, const struct pv_options *opts, struct pv_store **out)
{
	uint64_t start = pvi_attach_now_ns();
	struct pv_options o;
	struct pv_store *s;
	int err;

	if (!pvi_name_valid(name))
		return pvi_fail(-EINVAL, "store name \"%s\": 1 to %u of [A-Za-z0-9._-], no leading dot",
				name ? name : "(null)", PVI_NAME_MAX);
	err = take_options(&o, opts);
	if (err)
		return err;
	s = calloc(1, sizeof(*s));
	if (!s)
		return pvi_fail(-ENOMEM, "no memory");
	s->options = o;
	s->readonly = o.flags & PV_RDONLY;
	s->limit_bytes = o.limit_bytes;
	s->index.fd = s->index.lock_fd = -1;
	pthread_mutex_init(&s->heap_lock, NULL);
	pthread_mutex_init(&s->index_lock, NULL);
	pthread_mutex_init(&s->prepare_lock, NULL);
	pthread_mutex_init(&s->handover_lock, NULL);
	err = pvi_handover_open(name, &s->options, &s->handover);
	s->fetch_ns = pvi_attach_now_ns() - start;
	if (!err)
		err = eager_verify(s, name);
	if (!err)
		err = open_store(s, name);
	if (!err)
		err = pvi_thread_store_open(s);
	if (!err && o.flags & PV_COMPACT)
		err = pv_compact(s, NULL, NULL);
	if (!err && o.flags & PV_EAGER)
		err = pv_handover_prepare(s);
	if (err) {
		teardown(s);
		if (s->handover)
			s->handover->ops->close(s->handover);
		free(s);
		return err;
	}
	s->attach_ns = pvi_attach_now_ns() - start;
	*out = s;
	return 0;
}

/* ---- close ---- */

int pv_close(struct pv_store *s)
{
	int err = s ? pv_retire_wait(s) : 0;

	if (!s || err)
		return err;
	teardown(s);
	s->handover->ops->close(s->handover);
	pthread_mutex_destroy(&s->heap_lock);
	pthread_mutex_destroy(&s->index_lock);
	pthread_mutex_destroy(&s->prepare_lock);
	pthread_mutex_destroy(&s->handover_lock);
	free(s);
	return 0;
}

int pv_destroy(struct pv_store *s)
{
	int err = s ? pv_retire_wait(s) : 0;

	if (!s || err)
		return err;
	if (s->readonly)
		err = pvi_fail(-EPERM, "the store was opened read-only");
	else
		err = s->handover->ops->forget(s->handover);
	pv_close(s);
	return err;
}

int pv_info_get(struct pv_store *s, struct pv_info *out)
{
	*out = (struct pv_info){
		.origin = s->origin,
		.handover = s->handover->ops->kind,
		.from_kexec = s->from_kexec,
		.lanes = s->nlanes,
		.base = s->base,
		.relocated_from = s->relocated_from,
		.relocated_pointers = s->relocated_pointers,
		.relocated_bytes = s->relocated_bytes,
		.relocated_ns = s->relocated_ns,
		.dangling = s->dangling,
		.window_bytes = s->window_bytes,
		.page_bytes = 1ull << s->page_shift,
		.attach_ns = s->attach_ns,
		.fetch_ns = s->fetch_ns,
		.recovered = s->recovered,
		.warnings = s->handover->warnings,
	};
	pthread_mutex_lock(&s->heap_lock);
	out->segments = s->nsegments;
	out->bytes = s->index.rec->bytes;
	for (uint32_t i = 0; i < s->nsegments; i++)
		out->bytes += s->segments[i].bytes;
	out->used_bytes = s->used_pages << s->page_shift;
	pthread_mutex_unlock(&s->heap_lock);
	pthread_mutex_lock(&s->index_lock);
	out->epoch = s->index.epoch;
	out->generation = pvi_index_current(s);
	out->mended = s->index.mended;
	out->recorded_base = s->index.base;
	memcpy(out->uuid, s->index.uuid, 16);
	pthread_mutex_unlock(&s->index_lock);
	/* Whoever looks must not wait for a prepare, or for a holder that hangs. */
	out->state = __atomic_load_n(&s->handover->state, __ATOMIC_RELAXED);
	out->preserved_bytes = __atomic_load_n(&s->handover->preserved_bytes, __ATOMIC_RELAXED);
	return 0;
}
