/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From an image file to a store that a backend keeps (preserve/image.h).
 *
 *	look	is the name free? As soon as it is known, and again at the end
 *	load	all of the file into memfds that nobody else knows (image_load.c)
 *	rename	if it gets another name or UUID, the index and the heads of the segments are written anew
 *	try	attach it, as any process would, with the descriptors that are here
 *	hand	segments, then the index: a crash on the way leaves no index, and so no store
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <preserve/stores.h>

#include "handover.h"
#include "image_file.h"
#include "internal.h"

#define DROP_SEGMENT_BYTES 65536u

struct restore {
	const char *name; /* what it is to be called */
	struct pv_options opts;
	struct pv_restore_options how;
	struct pvi_image_set set;
	struct pv_image_report report;
};

/* ---- another name, another UUID ---- */

static int renew_segment(int fd, const uint8_t uuid[16], uint32_t number)
{
	struct segment_rec rec;

	if (pread(fd, &rec, sizeof(rec), 0) != (ssize_t) sizeof(rec))
		return pvi_fail(-EBADMSG, "segment %u: cannot read its header", number);
	memcpy(rec.uuid, uuid, sizeof(rec.uuid));
	rec.checksum = pvi_segment_checksum(&rec);
	if (pwrite(fd, &rec, sizeof(rec), 0) != (ssize_t) sizeof(rec))
		return pvi_fail(-EIO, "segment %u: cannot write its header: %s", number, strerror(errno));
	return 0;
}

static int renew_index(struct restore *r, struct index_rec *rec, const uint8_t uuid[16])
{
	uint64_t bytes = r->set.recs[0].bytes, generation = 0;
	struct pvi_index idx;
	int err = pvi_index_check_header(rec, bytes);

	if (!err)
		err = pvi_index_read(&idx, r->set.fds[0], rec, PVI_INDEX_STRICT);
	if (err)
		return err;
	for (uint32_t i = 0; i < idx.nsegments && i + 1 < r->set.n && !err; i++)
		if (idx.segments[i].sealed)
			err = pvi_seal_digest(r->set.fds[i + 1], i, r->set.recs[i + 1].bytes,
					      idx.segments[i].digest);
	idx.fd = r->set.fds[0];
	idx.rec = rec;
	memcpy(idx.uuid, uuid, sizeof(idx.uuid));
	snprintf(idx.name, sizeof(idx.name), "%s", r->name);
	pvi_index_format(rec, uuid, bytes);
	if (!err)
		err = pvi_index_stage(&idx, 0, &generation);
	if (!err)
		pvi_index_commit(&idx, generation);
	pvi_index_free(&idx);
	return err;
}

/* Nobody else has seen these memfds: no step of it needs to be safe against a crash. */
static int renew(struct restore *r, const uint8_t uuid[16])
{
	uint64_t bytes = r->set.recs[0].bytes;
	struct index_rec *rec;
	int err = 0;

	if (bytes < sizeof(*rec))
		return pvi_fail(-EBADMSG, "index: %" PRIu64 " bytes are too few", bytes);
	rec = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->set.fds[0], 0);
	if (rec == MAP_FAILED)
		return pvi_fail(-errno, "cannot map the index: %s", strerror(errno));
	for (uint32_t i = 1; i < r->set.n && !err && memcmp(uuid, r->set.head.uuid, 16) != 0; i++)
		err = renew_segment(r->set.fds[i], uuid, i - 1);
	/* Last: it has the digests of sealed segments, their headers included. */
	if (!err)
		err = renew_index(r, rec, uuid);
	munmap(rec, bytes);
	return err;
}

/* Is this store kept under another name? Then the restored one is a second, which will differ from it. */
static int is_elsewhere(const struct restore *r, bool *elsewhere)
{
	struct pv_stores *list;
	int err;

	*elsewhere = false;
	if (r->opts.handover == PV_HANDOVER_NONE || (r->how.flags & PV_RESTORE_VERIFY))
		return 0;
	err = pv_stores_list(r->opts.runtime_dir, &list);
	if (err)
		return err;
	for (uint32_t i = 0; i < list->n; i++)
		*elsewhere |= list->stores[i].state == PV_STORES_KEPT &&
			      strcmp(list->stores[i].name, r->name) != 0 &&
			      memcmp(list->stores[i].uuid, r->set.head.uuid, 16) == 0;
	pv_stores_free(list);
	return 0;
}

static int identify(struct restore *r)
{
	uint8_t uuid[16];
	bool fresh;
	int err = is_elsewhere(r, &fresh);

	if (err)
		return err;
	fresh |= (r->how.flags & PV_RESTORE_NEW_UUID) != 0;
	memcpy(uuid, r->set.head.uuid, sizeof(uuid));
	if (fresh && getrandom(uuid, sizeof(uuid), 0) != (ssize_t) sizeof(uuid))
		return pvi_fail(-errno, "getrandom: %s", strerror(errno));
	if (fresh || strcmp(r->name, r->set.head.store) != 0)
		err = renew(r, uuid);
	r->report.new_uuid = fresh;
	memcpy(r->report.uuid, uuid, sizeof(uuid));
	snprintf(r->report.name, sizeof(r->report.name), "%s", r->name);
	return err;
}

/* ---- trying it ---- */

static int keep_nothing(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	return 0;
}

static int try_it(const struct restore *r)
{
	struct pv_options o = {
		.size = sizeof(o),
		.handover = PV_HANDOVER_NONE,
		.fds = r->set.fds,
		.nfds = r->set.n,
		.keep = keep_nothing,
	};
	struct pv_store *s;
	int err = pv_open(r->name, &o, &s);

	return err ? err : pv_close(s);
}

/* ---- the backend ---- */

static void close_all(struct pvi_fd *fds, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		close(fds[i].fd);
	free(fds);
}

/* -EEXIST: there is something under the name. What an interrupted creation or restore left does not
 * count, and is dropped with the name. */
static int look(const struct restore *r, struct pvi_handover *h)
{
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec, store;
	int err = h->ops->fetch(h, &fds, &n, &from_kexec);

	if (err == -ENOENT)
		return 0;
	if (err)
		return err;
	store = pvi_attach_fd(fds, n, 0) != NULL;
	for (unsigned int i = 0; i < n && !store && !err; i++)
		err = h->ops->drop(h, fds[i].token);
	close_all(fds, n);
	return store ? pvi_fail(-EEXIST, "store %s exists", r->name) : err;
}

/* By way of an empty store in its place: that sees to the lock, and to damage. */
static int drop_old(const struct restore *r)
{
	struct pv_options o = {
		.size = sizeof(o),
		.flags = PV_CREATE | PV_RESET,
		.handover = r->opts.handover,
		.segment_bytes = DROP_SEGMENT_BYTES,
		.lanes = 1,
		.runtime_dir = r->opts.runtime_dir,
	};
	struct pv_store *s;
	int err = pv_open(r->name, &o, &s);

	return err ? err : pv_destroy(s);
}

/* The name is known: is it free, or may it be made so? Nobody wants to wait for this answer. */
static int accept_name(void *ctx, const struct image_rec *head)
{
	struct restore *r = ctx;
	struct pvi_handover *h;
	int err;

	if (!r->name)
		r->name = head->store;
	if (r->how.flags & PV_RESTORE_VERIFY)
		return 0;
	err = pvi_handover_open(r->name, &r->opts, &h);
	if (err)
		return err;
	err = look(r, h);
	h->ops->close(h);
	return err == -EEXIST && (r->how.flags & PV_RESTORE_FORCE) ? 0 : err;
}

static int keep_all(const struct restore *r, struct pvi_handover *h)
{
	uint32_t kept = 0;
	int err = 0;

	while (kept < r->set.n && !err) {
		uint32_t token = kept + 1 < r->set.n ? kept + 1 : 0; /* the index last */

		err = h->ops->keep(h, token, r->set.fds[token]);
		kept += !err;
	}
	if (err) {
		char *message = strdup(pv_last_error());

		for (uint32_t token = 1; token <= kept; token++)
			h->ops->drop(h, token);
		if (message)
			pvi_fail(err, "%s", message);
		free(message);
	}
	return err;
}

static int hand_over(const struct restore *r)
{
	struct pvi_handover *h;
	int err = pvi_handover_open(r->name, &r->opts, &h);

	if (err)
		return err;
	err = look(r, h);
	if (err == -EEXIST && (r->how.flags & PV_RESTORE_FORCE)) {
		err = drop_old(r);
		if (!err)
			err = look(r, h);
	}
	if (!err)
		err = keep_all(r, h);
	h->ops->close(h);
	return err;
}

/* ---- all of it ---- */

static int take_options(struct restore *r, const char *name, const struct pv_options *opts,
			const struct pv_restore_options *options)
{
	const uint32_t known = PV_RESTORE_FORCE | PV_RESTORE_NEW_UUID | PV_RESTORE_VERIFY;
	const uint8_t *tail = (const uint8_t *) options;

	if (name && !pvi_name_valid(name))
		return pvi_fail(-EINVAL, "store name \"%s\": 1 to %u of [A-Za-z0-9._-], no leading dot", name,
				PVI_NAME_MAX);
	if (options) {
		if (options->size < offsetof(struct pv_restore_options, progress))
			return pvi_fail(-EINVAL, "pv_restore_options.size is %zu", options->size);
		for (size_t i = sizeof(r->how); i < options->size; i++)
			if (tail[i])
				return pvi_fail(-EINVAL, "pv_restore_options has fields that this "
							 "library does not know");
		memcpy(&r->how, options,
		       options->size < sizeof(r->how) ? options->size : sizeof(r->how));
	}
	if (r->how.flags & ~known)
		return pvi_fail(-EINVAL, "pv_restore_options.flags 0x%x are not known", r->how.flags);
	if (opts) {
		r->opts.handover = opts->handover;
		r->opts.runtime_dir = opts->runtime_dir;
		r->opts.keep = opts->keep;
		r->opts.keep_ctx = opts->keep_ctx;
	}
	return 0;
}

int pv_restore(const char *name, const struct pv_options *opts, int fd,
	       const struct pv_restore_options *options, struct pv_image_report *report)
{
	struct restore r = {.opts = {.size = sizeof(r.opts)}};
	int err = take_options(&r, name, opts, options);

	if (err)
		return err;
	r.name = name;
	err = pvi_image_load(fd, &r.how, accept_name, &r, &r.set, &r.report);
	if (!err)
		err = identify(&r);
	if (!err)
		err = pvi_image_seal(&r.set);
	if (!err)
		err = try_it(&r);
	if (!err && !(r.how.flags & PV_RESTORE_VERIFY))
		err = hand_over(&r);
	pvi_image_set_free(&r.set);
	if (!err && report)
		*report = r.report;
	return err;
}

int pv_restore_file(const char *name, const struct pv_options *opts, const char *path,
		    const struct pv_restore_options *options, struct pv_image_report *report)
{
	int err, fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return pvi_fail(-errno, "cannot read %s: %s", path, strerror(errno));
	err = pv_restore(name, opts, fd, options, report);
	close(fd);
	return err;
}
