/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Attaching a store that somebody kept.
 *
 * Check the index; take the lock; read the index; if what is kept has changed since the fetch, begin
 * again; set the window aside, at the recorded base if it is free; check and map every segment; only then
 * change anything: redo the lanes, start a new epoch, move the pointers if the base is another one, drop
 * what the index does not name. Whatever is refused before that leaves the image as it was.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "handover.h"
#include "internal.h"
#include "move.h"

uint64_t pvi_attach_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

struct pvi_fd *pvi_attach_fd(struct pvi_fd *fds, unsigned int n, uint64_t token)
{
	for (unsigned int i = 0; i < n; i++)
		if (fds[i].token == token && fds[i].fd >= 0)
			return &fds[i];
	return NULL;
}

static int read_header(int fd, uint64_t bytes, struct index_rec *rec)
{
	if (pread(fd, rec, sizeof(*rec), 0) != (ssize_t) sizeof(*rec))
		return pvi_fail(-EBADMSG, "index: cannot read its header");
	return pvi_index_check_header(rec, bytes);
}

static int attach_index(struct pv_store *s, const char *name, struct pvi_fd *fd)
{
	struct index_rec rec, again;
	uint64_t bytes;
	int err = pvi_arena_verify(fd->fd, "index", sizeof(rec), &bytes);

	if (!err)
		err = read_header(fd->fd, bytes, &rec);
	if (err)
		return err;
	s->index.fd = fd->fd;
	fd->fd = -1;
	if (!s->readonly) {
		err = pvi_lock_take(s, name, &rec);
		/* What was read before the lock may have been changed by its last owner. */
		if (!err)
			err = read_header(s->index.fd, bytes, &rec);
		return err ? err : pvi_index_reread(&s->index, &rec, pvi_index_how(s));
	}
	/* A reader takes no lock, so a writer may change the slot while it is being read. */
	for (;;) {
		err = pvi_index_reread(&s->index, &rec, pvi_index_how(s));
		if (err != -EBADMSG || read_header(s->index.fd, bytes, &again) ||
		    again.commit == rec.commit)
			return err;
		rec = again;
	}
}

static int map_all(struct pv_store *s, struct pvi_fd *fds, unsigned int n)
{
	int err = pvi_window_attach(s);

	if (!err)
		err = pvi_store_geometry(s);
	if (err)
		return err;
	s->index.rec = (struct index_rec *) s->base;
	err = pvi_arena_map(s->index.rec, s->index.bytes, s->index.fd, s->readonly);
	for (uint32_t i = 0; i < s->index.nsegments && !err; i++) {
		struct pvi_fd *fd = pvi_attach_fd(fds, n, i + 1ull);

		if (!fd)
			return pvi_fail(-ENXIO,
					"segment %u (token %u, %" PRIu64
					" bytes) is named by the index, but nobody keeps it",
					i, i + 1, s->index.segments[i].bytes);
		err = pvi_segment_attach(s, i, fd->fd);
		if (!err)
			fd->fd = -1;
	}
	return err;
}

/* From here on the image is changed. */
static int recover(struct pv_store *s)
{
	uint64_t generation = s->index.generation;
	/* All that is to be done is checked before any of it is done. */
	int err = pvi_lane_check(s);
	uint32_t sealed = 0;
	struct pvi_move move;

	if (!err)
		err = pvi_tx_check(s);
	if (!err)
		err = pvi_move_attach(s, &move);
	if (err)
		return err;
	pvi_index_mend(&s->index);
	s->recovered = pvi_lane_recover(s) + pvi_tx_recover(s);
	if (move.n) {
		pvi_move_redo(&move);
		sealed = move.segment;
		pvi_move_free(&move);
		s->recovered++;
	}
	if (s->index.generation != generation) {
		/* A root's creation was finished: the index now in force names it. */
		err = pvi_index_reread(&s->index, s->index.rec, PVI_INDEX_STRICT);
		if (err)
			return err;
	}
	s->index.epoch++;
	pvi_relocate_begin(s);
	pvi_lock_note_writer(s);
	err = pvi_index_stage(&s->index, 0, &generation);
	if (err)
		return err;
	pvi_index_commit(&s->index, generation);
	if (sealed)
		pvi_seal_freeze(s, sealed);
	for (uint32_t i = 0; i < s->nsegments; i++)
		if (s->segments[i].sealed)
			pvi_seal_by_kernel(s->segments[i].fd);
	return s->index.nmoving ? pvi_relocate_run(s) : 0;
}

/* Every descriptor is attached: the session or the copies that came with them are not needed any more. */
static int finish(struct pv_store *s)
{
	uint64_t start = pvi_attach_now_ns();
	int err = s->handover->ops->finish(s->handover);

	s->fetch_ns += pvi_attach_now_ns() - start;
	return err;
}

/* The lock comes after the fetch, for it is on the index. Until then a writer may have been there:
 * then the descriptors, and what the backend's handle knows, are not those of the store that we have
 * locked. From here on they are; for a reader at least those that the index it has read names. */
static int fetched_in_time(struct pv_store *s, bool *again)
{
	uint64_t start = pvi_attach_now_ns();
	int rc = s->handover->ops->changed ? s->handover->ops->changed(s->handover) : 0;

	s->fetch_ns += pvi_attach_now_ns() - start;
	*again = rc > 0;
	return rc < 0 ? rc : 0;
}

/* Let go of an index that was locked in vain. */
static void detach_index(struct pv_store *s)
{
	pvi_lock_release(s);
	close(s->index.fd);
	pvi_index_free(&s->index);
	s->index = (struct pvi_index){.fd = -1, .lock_fd = -1};
}

/* A memfd that came through a kexec has lost its name, for ever. */
static bool came_by_kexec(int fd)
{
	char path[40], link[16] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, link, sizeof(link) - 1) > 0 && strncmp(link, "/memfd:", 7) != 0;
}

int pvi_attach(struct pv_store *s, const char *name, struct pvi_fd *fds, unsigned int n, bool *again)
{
	int err = attach_index(s, name, pvi_attach_fd(fds, n, 0));

	if (!err)
		err = fetched_in_time(s, again);
	if (!err && *again) {
		detach_index(s);
		return 0;
	}
	/* Whoever has had the store open since the kexec has written the index. */
	if (!err)
		s->from_kexec = (s->from_kexec || came_by_kexec(s->index.fd)) &&
				!pvi_index_of_this_boot(&s->index);
	if (!err)
		err = map_all(s, fds, n);
	if (!err && s->readonly && s->index.move.purpose)
		err = pvi_fail(-EBUSY, "store %s: objects are being moved, or that was interrupted: open it "
			       "for writing, which finishes it", name);
	if (!err && !s->readonly)
		err = recover(s);
	if (!err)
		err = pvi_seal_relocate(s);
	if (err || s->readonly)
		return err;
	for (unsigned int i = 0; i < n; i++) /* descriptors still here are not in the index */
		if (fds[i].fd >= 0)
			s->handover->ops->drop(s->handover, fds[i].token);
	s->origin = s->relocated_from ? PV_ORIGIN_RELOCATED : PV_ORIGIN_REATTACHED;
	return finish(s);
}

