/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A store's LUO session (session.h).
 *
 * What a session holds is said by its manifest, a small memfd that is preserved first, as the file
 * 0 of the session. It lists the token of each further file: entry i is of file i + 1. It is needed
 * because the kernel tells nobody which files a session holds, and because files can join, but not
 * leave: one that leaves is struck from the list. Memory that is preserved can still be written, so
 * the list is kept up to date until the last moment.
 *
 * Order, and what a crash between two steps leaves:
 *
 *	prepare   preserve everything (without the store's locks: see pvi_session_preserve()), mark
 *		  the manifest complete, let the holder keep manifest and session. Before the last
 *		  step the death of this process closes the session, which
 *		  is a cancel; an abrupt kexec hands over an incomplete one, which is refused.
 *	join	  the holder keeps the descriptor, the session gets it, then it is listed. A file
 *		  that was not listed belongs to a segment that the index does not name.
 *	cancel	  the holder closes the session, then we do. Either way around nothing is preserved.
 *	find	  the holder retrieves the session, so that no death of an application can end it,
 *		  and gives us a copy, so that its own cannot either.
 *	take over file by file: retrieve, let the holder keep it. Whoever comes next goes on: the
 *		  kernel gives the same open file for a token as often as it is asked. Several may
 *		  do it at once: who finds that another was faster loads what there is by now.
 *	finish	  see that the holder has everything, mark the manifest taken over, finish, close.
 *		  After the mark nothing is retrieved any more, so it does not matter whether the
 *		  kernel had finished.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"
#include "luo.h"
#include "pin.h"
#include "session.h"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020 /* linux/fcntl.h since 6.3 */
#endif

#define MANIFEST_MAGIC	 0x5453464e4d56504cull /* "LPVMNFST" */
#define MANIFEST_VERSION 1u
#define MANIFEST_TOKENS	 HOLDER_FDS_MAX
#define NO_TOKEN	 UINT64_MAX /* an entry that is struck */

enum manifest_state {
	MANIFEST_FILLING = 0,
	MANIFEST_COMPLETE = 1,	 /* at least everything that the store needs is preserved */
	MANIFEST_TAKEN_OVER = 2, /* the next kernel's process has all of it */
};

/** Persistent: what the manifest memfd holds. */
struct manifest_rec {
	uint64_t magic;
	uint32_t version;
	uint32_t capacity; /* of tokens */
	char store[64];
	uint64_t state; /* enum manifest_state */
	uint64_t count; /* entries in use */
	uint64_t reserved[4];
	uint64_t tokens[MANIFEST_TOKENS];
};

_Static_assert(offsetof(struct manifest_rec, state) == 80, "manifest_rec.state");
_Static_assert(offsetof(struct manifest_rec, tokens) == 128, "manifest_rec.tokens");

#define MANIFEST_BYTES ((sizeof(struct manifest_rec) + 4095) / 4096 * 4096)

/* ---- manifest ---- */

static int word_write(const struct pvi_keeper *k, int fd, size_t at, uint64_t value)
{
	if (pwrite(fd, &value, sizeof(value), (off_t)at) != sizeof(value))
		return pvi_fail(-EIO, "store %s: the session's manifest cannot be written: %s",
				k->place.name, strerror(errno));
	return 0;
}

static size_t token_at(uint64_t i)
{
	return offsetof(struct manifest_rec, tokens) + i * sizeof(uint64_t);
}

static int state_write(const struct pvi_keeper *k, int fd, enum manifest_state state)
{
	return word_write(k, fd, offsetof(struct manifest_rec, state), state);
}

static int entry_append(const struct pvi_keeper *k, int fd, uint64_t i, uint64_t token)
{
	int rc = word_write(k, fd, token_at(i), token);

	return rc ? rc : word_write(k, fd, offsetof(struct manifest_rec, count), i + 1);
}

static int manifest_create(const struct pvi_keeper *k)
{
	struct manifest_rec head = {
		.magic = MANIFEST_MAGIC,
		.version = MANIFEST_VERSION,
		.capacity = MANIFEST_TOKENS,
		.state = MANIFEST_FILLING,
	};
	char name[HOLDER_NAME_MAX + 16];
	int fd;

	snprintf(name, sizeof(name), "pv:%s:manifest", k->place.name);
	fd = pvi_arena_memfd(name, MANIFEST_BYTES);
	if (fd < 0)
		return fd;
	memcpy(head.store, k->place.name, sizeof(head.store));
	if (pwrite(fd, &head, token_at(0), 0) != (ssize_t)token_at(0)) {
		int rc = pvi_fail(-errno, "store %s: no memory for the session's manifest: %s",
				  k->place.name, strerror(errno));

		close(fd);
		return rc;
	}
	return fd;
}

/** Reads and checks the manifest that came with a session. free() it. */
static int manifest_read(const struct pvi_keeper *k, int fd, struct manifest_rec **out)
{
	struct manifest_rec *m;
	uint64_t bytes;
	int rc = pvi_arena_verify(fd, "session manifest", MANIFEST_BYTES, &bytes);

	if (rc)
		return rc;
	m = malloc(sizeof(*m));
	if (!m)
		return pvi_fail(-ENOMEM, "no memory for the session's manifest");
	if (pread(fd, m, sizeof(*m), 0) != sizeof(*m) || m->magic != MANIFEST_MAGIC)
		rc = pvi_fail(-EBADMSG, "store %s: file 0 of the session is no manifest",
			      k->place.name);
	else if (m->version != MANIFEST_VERSION)
		rc = pvi_fail(-EPROTONOSUPPORT,
			      "store %s: the session's manifest is of version %u, not %u",
			      k->place.name, m->version, MANIFEST_VERSION);
	else if (memcmp(m->store, k->place.name, sizeof(m->store)) != 0)
		rc = pvi_fail(-EBADMSG, "the session's manifest is of store %.48s, not %s",
			      m->store, k->place.name);
	else if (m->capacity != MANIFEST_TOKENS || m->count > m->capacity ||
		 m->state > MANIFEST_TAKEN_OVER)
		rc = pvi_fail(-EBADMSG,
			      "store %s: the session's manifest is damaged (state %" PRIu64
			      ", %" PRIu64 " files of at most %u)",
			      k->place.name, m->state, m->count, m->capacity);
	for (uint64_t i = 0; !rc && i < m->count; i++) {
		if (m->tokens[i] != NO_TOKEN && m->tokens[i] >= HOLDER_TOKEN_RESERVED)
			rc = pvi_fail(-EBADMSG,
				      "store %s: the session's manifest is damaged (file %" PRIu64
				      " has token %" PRIu64 ")",
				      k->place.name, i + 1, m->tokens[i]);
	}
	if (rc) {
		free(m);
		return rc;
	}
	*out = m;
	return 0;
}

/* ---- this kernel: what may be preserved ---- */

/** What a file of the session is, for messages. */
static const char *file_kind(uint64_t token)
{
	if (token == HOLDER_TOKEN_MANIFEST)
		return "the session's manifest";
	return token ? "a segment" : "the index";
}

static int preserve_fail(const struct pvi_keeper *k, uint64_t token, int rc)
{
	const char *why = strerror(-rc);

	switch (rc) {
	case -ENOENT:
		why = "this kernel preserves no memfds (CONFIG_LIVEUPDATE_MEMFD), or it is one of "
		      "huge pages";
		rc = -EOPNOTSUPP;
		break;
	case -EBUSY:
		why = "it was retrieved from a session that has not been finished";
		break;
	case -EFBIG:
	case -ENOSPC:
		why = "the kernel's records of the session are full";
		rc = -ENOSPC;
		break;
	default:
		break;
	}
	return pvi_fail(rc, "store %s: token %" PRIu64 " (%s) cannot be preserved: %s",
			k->place.name, token, file_kind(token), why);
}

static int session_create(const struct pvi_keeper *k, int *session)
{
	char name[LUO_NAME_MAX];
	int rc, device = pvi_luo_device();

	if (device < 0)
		return device;
	pvi_luo_session_name(k->place.uid, k->place.name, name);
	rc = pvi_luo_create(device, name, session);
	close(device);
	if (rc == -EEXIST)
		return pvi_fail(rc,
				"there is a LUO session %s already: another store %s of user %u is "
				"prepared, or a child process still has the last one open",
				name, k->place.name, k->place.uid);
	return rc ? pvi_fail(rc, "cannot create LUO session %s: %s", name, strerror(-rc)) : 0;
}

/**
 * The kernel (7.2) gives a retrieved file the mode 0777 and then its seals, and F_SEAL_EXEC on an
 * executable file brings F_SEAL_WRITE along: it could not be written any more.
 */
static int fit_verify(const struct pvi_keeper *k, uint64_t token, int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);
	char what[128];

	if (seals >= 0 && (seals & (F_SEAL_EXEC | F_SEAL_WRITE)) == F_SEAL_EXEC)
		return pvi_fail(-EOPNOTSUPP,
				"store %s: token %" PRIu64
				" cannot be preserved: its memfd is sealed "
				"against execution, which would make it read-only in the next "
				"kernel (was the store made with sysctl vm.memfd_noexec 2?)",
				k->place.name, token);
	if (pvi_luo_is_frozen(fd))
		return pvi_fail(-EBUSY,
				"store %s: token %" PRIu64
				" (%s) cannot be preserved: it is preserved already, in a session "
				"that is not this one",
				k->place.name, token, file_kind(token));
	snprintf(what, sizeof(what), "store %s: token %" PRIu64 " (%s)", k->place.name, token,
		 file_kind(token));
	return pvi_pin_room(fd, what);
}

static int preserve(const struct pvi_keeper *k, int session, uint64_t file, uint64_t token, int fd)
{
	int pin = -1, rc = fit_verify(k, token, fd);

	if (!rc && !k->held)
		rc = pvi_pin_file(fd, &pin);
	if (rc)
		return rc;
	rc = pvi_luo_preserve(session, file, fd);
	pvi_pin_end(pin);
	return rc ? preserve_fail(k, token, rc) : 0;
}

/* ---- this kernel: prepare ---- */

void pvi_session_abandon(struct pvi_keeper *k)
{
	struct pvi_draft *d = &k->draft;

	if (!d->begun)
		return;
	/* If nobody else has the session by now, this undoes it. */
	close(d->session);
	close(d->manifest);
	free(d->files);
	*d = (struct pvi_draft){0};
}

static int draft_begin(struct pvi_keeper *k)
{
	struct pvi_draft *d = &k->draft;
	int rc;

	if (d->begun)
		return 0;
	d->manifest = manifest_create(k);
	if (d->manifest < 0)
		return d->manifest;
	rc = session_create(k, &d->session);
	if (rc) {
		close(d->manifest);
		return rc;
	}
	d->begun = true;
	__atomic_store_n(&k->base.preserved_bytes, 0, __ATOMIC_RELAXED);
	return preserve(k, d->session, 0, HOLDER_TOKEN_MANIFEST, d->manifest);
}

/** The number in the draft of the file that this descriptor is, under this token; d->n: none. */
static unsigned int draft_find(const struct pvi_draft *d, uint64_t token, uint64_t inode)
{
	unsigned int i = 0;

	while (i < d->n && (d->files[i].token != token || d->files[i].inode != inode))
		i++;
	return i;
}

static int draft_room(struct pvi_keeper *k)
{
	struct pvi_draft *d = &k->draft;
	unsigned int capacity = d->capacity ? 2 * d->capacity : 16;
	struct pvi_draft_file *grown;

	if (d->n == MANIFEST_TOKENS)
		return pvi_fail(-ENOSPC, "store %s has more descriptors than the %u that a session takes",
				k->place.name, MANIFEST_TOKENS);
	if (d->n < d->capacity)
		return 0;
	grown = realloc(d->files, capacity * sizeof(*grown));
	if (!grown)
		return pvi_fail(-ENOMEM, "no memory for a list of %u files", capacity);
	d->files = grown;
	d->capacity = capacity;
	return 0;
}

static int draft_add(struct pvi_keeper *k, const struct pvi_fd *f)
{
	struct pvi_draft *d = &k->draft;
	struct stat st;
	int rc;

	if (fstat(f->fd, &st))
		return pvi_fail(-errno, "store %s: token %" PRIu64 ": %s", k->place.name, f->token,
				strerror(errno));
	if (draft_find(d, f->token, st.st_ino) < d->n)
		return 0;
	rc = draft_room(k);
	if (!rc)
		rc = preserve(k, d->session, d->n + 1, f->token, f->fd);
	if (!rc)
		rc = entry_append(k, d->manifest, d->n, f->token);
	if (rc)
		return rc;
	d->files[d->n++] = (struct pvi_draft_file){f->token, st.st_ino};
	__atomic_fetch_add(&k->base.preserved_bytes, (uint64_t)st.st_size, __ATOMIC_RELAXED);
	return 0;
}

int pvi_session_preserve(struct pvi_keeper *k, const struct pvi_fd *fds, unsigned int n)
{
	int rc;

	if (__atomic_load_n(&k->base.state, __ATOMIC_RELAXED) == PV_STATE_PREPARED)
		return 0;
	rc = draft_begin(k);
	for (unsigned int i = 0; i < n && !rc; i++)
		rc = draft_add(k, &fds[i]);
	if (rc)
		pvi_session_abandon(k);
	return rc;
}

/** What the draft has and the store has not any more is struck from the manifest. */
static int draft_strike(struct pvi_keeper *k, const struct pvi_fd *fds, unsigned int n)
{
	struct pvi_draft *d = &k->draft;
	int rc = 0;

	if (d->n == n) /* every one of the n is in it */
		return 0;
	for (unsigned int i = 0; i < d->n && !rc; i++) {
		struct stat st = {0};
		unsigned int j = 0;

		while (j < n && fds[j].token != d->files[i].token)
			j++;
		if (j < n && fstat(fds[j].fd, &st))
			rc = pvi_fail(-errno, "store %s: token %" PRIu64 ": %s", k->place.name,
				      fds[j].token, strerror(errno));
		else if (j == n || st.st_ino != d->files[i].inode)
			rc = word_write(k, d->manifest, token_at(i), NO_TOKEN);
	}
	return rc;
}

int pvi_session_prepare(struct pvi_keeper *k, const struct pvi_fd *fds, unsigned int n)
{
	struct pvi_draft *d = &k->draft;
	int rc;

	if (k->base.state == PV_STATE_PREPARED)
		return 0;
	if (pvi_keeper_find(k, HOLDER_TOKEN_INCOMING) >= 0) {
		pvi_session_abandon(k);
		return pvi_fail(-EBUSY, "store %s: the last session has not been finished",
				k->place.name);
	}
	rc = pvi_session_preserve(k, fds, n);
	if (rc)
		return rc;
	rc = draft_strike(k, fds, n);
	if (!rc)
		rc = state_write(k, d->manifest, MANIFEST_COMPLETE);
	if (!rc)
		rc = pvi_keeper_keep(k, HOLDER_TOKEN_MANIFEST, d->manifest);
	if (!rc) {
		rc = pvi_keeper_keep(k, HOLDER_TOKEN_OUTGOING, d->session);
		if (rc)
			pvi_keeper_drop_quietly(k, HOLDER_TOKEN_MANIFEST, rc);
	}
	pvi_session_abandon(k);
	return rc;
}

/* ---- this kernel: look, join, leave, cancel ---- */

int pvi_session_query(const struct pvi_keeper *k, int fd, uint64_t *token)
{
	int manifest = pvi_keeper_find(k, HOLDER_TOKEN_MANIFEST);
	struct manifest_rec *m;
	struct stat st, other;
	int rc = 0;

	if (!pvi_luo_is_frozen(fd))
		return 0;
	if (fstat(fd, &st))
		return pvi_fail(-errno, "store %s: %s", k->place.name, strerror(errno));
	if (k->base.state == PV_STATE_PREPARED) {
		rc = manifest_read(k, manifest, &m);
		if (rc)
			return rc;
		for (uint64_t i = 0; i < m->count && !rc; i++) {
			int kept = m->tokens[i] == NO_TOKEN ? -1
							    : pvi_keeper_find(k, m->tokens[i]);

			rc = kept >= 0 && fstat(kept, &other) == 0 && st.st_dev == other.st_dev &&
			     st.st_ino == other.st_ino;
			*token = m->tokens[i];
		}
		free(m);
	}
	return rc ? 1
		  : pvi_fail(-EBUSY, "store %s: the descriptor is preserved in another session",
			     k->place.name);
}

int pvi_session_leave(struct pvi_keeper *k, uint64_t token)
{
	int fd = pvi_keeper_find(k, HOLDER_TOKEN_MANIFEST);
	struct manifest_rec *m;
	int rc = manifest_read(k, fd, &m);

	if (rc)
		return rc;
	for (uint64_t i = 0; i < m->count && !rc; i++) {
		if (m->tokens[i] == token)
			rc = word_write(k, fd, token_at(i), NO_TOKEN);
	}
	free(m);
	return rc;
}

int pvi_session_join(struct pvi_keeper *k, uint64_t token, int fd)
{
	int session = pvi_keeper_find(k, HOLDER_TOKEN_OUTGOING);
	int manifest = pvi_keeper_find(k, HOLDER_TOKEN_MANIFEST);
	struct manifest_rec *m;
	uint64_t i;
	int rc = pvi_session_leave(k, token);

	if (!rc)
		rc = manifest_read(k, manifest, &m);
	if (rc)
		return rc;
	i = m->count;
	free(m);
	for (;;) {
		if (i == MANIFEST_TOKENS)
			return pvi_fail(-ENOSPC,
					"store %s: the session has taken %u files; cancel, and "
					"prepare again",
					k->place.name, MANIFEST_TOKENS);
		rc = preserve(k, session, i + 1, token, fd);
		if (rc != -EEXIST)
			break;
		/* A process died between preserving and listing; it was told nothing. */
		rc = entry_append(k, manifest, i++, NO_TOKEN);
		if (rc)
			return rc;
	}
	return rc ? rc : entry_append(k, manifest, i, token);
}

int pvi_session_cancel(struct pvi_keeper *k)
{
	int rc = pvi_keeper_drop(k, HOLDER_TOKEN_OUTGOING);

	return rc ? rc : pvi_keeper_drop(k, HOLDER_TOKEN_MANIFEST);
}

/* ---- the next kernel: find, take over, finish ---- */

static int not_retrieved(const char *name, int rc)
{
	if (rc == -EINVAL)
		return pvi_fail(-EBUSY, "LUO session %s was retrieved already, by another process",
				name);
	return pvi_fail(rc, "LUO session %s cannot be retrieved: %s", name, strerror(-rc));
}

int pvi_session_find(struct pvi_keeper *k)
{
	char name[LUO_NAME_MAX];
	int rc, status, device = pvi_luo_device();

	if (device < 0)
		return device;
	pvi_luo_session_name(k->place.uid, k->place.name, name);
	rc = pvi_keeper_retrieve(k, name, device, &status);
	close(device);
	if (rc)
		return rc;
	if (status == -ENOENT)
		return pvi_fail(status,
				"nothing is kept of store %s: no holder had it, and no LUO "
				"session %s came from the last kernel",
				k->place.name, name);
	return status ? not_retrieved(name, status) : 0;
}

static int take_over_file(struct pvi_keeper *k, int session, uint64_t file, uint64_t token)
{
	int fd, rc = pvi_luo_retrieve(session, file, &fd);

	if (rc)
		return pvi_fail(rc == -ENOENT ? -ENXIO : rc,
				"store %s: file %" PRIu64 " of the session (%s %" PRIu64
				") cannot be retrieved: %s",
				k->place.name, file, file ? "token" : "manifest", file ? token : 0,
				strerror(-rc));
	/* The kernel does not keep the mode. */
	if (fchmod(fd, 0600))
		rc = pvi_fail(-errno, "store %s: token %" PRIu64 " cannot be made private: %s",
			      k->place.name, token, strerror(errno));
	else
		rc = pvi_keeper_keep(k, token, fd);
	close(fd);
	return rc;
}

/** Is it a session, and this store's? */
static int incoming_verify(const struct pvi_keeper *k, int session)
{
	char want[LUO_NAME_MAX], name[LUO_NAME_MAX];

	if (!pvi_luo_is_session(session))
		return pvi_fail(-EBADMSG, "store %s: what the holder keeps as its session is none",
				k->place.name);
	pvi_luo_session_name(k->place.uid, k->place.name, want);
	/* Not all kernels tell the name. */
	if (pvi_luo_name(session, name) == 0 && strcmp(name, want) != 0)
		return pvi_fail(-EBADMSG, "store %s: the holder keeps LUO session %s, not %s",
				k->place.name, name, want);
	return 0;
}

int pvi_session_take_over(struct pvi_keeper *k)
{
	int session = pvi_keeper_find(k, HOLDER_TOKEN_INCOMING);
	struct manifest_rec *m;
	int rc = incoming_verify(k, session);

	if (!rc && pvi_keeper_find(k, HOLDER_TOKEN_MANIFEST) < 0)
		rc = take_over_file(k, session, 0, HOLDER_TOKEN_MANIFEST);
	if (!rc)
		rc = manifest_read(k, pvi_keeper_find(k, HOLDER_TOKEN_MANIFEST), &m);
	if (rc)
		return rc;
	if (m->state == MANIFEST_FILLING)
		rc = pvi_fail(-ENXIO,
			      "store %s: the kexec came while it was being prepared, after %" PRIu64
			      " descriptors",
			      k->place.name, m->count);
	for (uint64_t i = 0; m->state == MANIFEST_COMPLETE && i < m->count && !rc; i++) {
		if (m->tokens[i] != NO_TOKEN && pvi_keeper_find(k, m->tokens[i]) < 0)
			rc = take_over_file(k, session, i + 1, m->tokens[i]);
	}
	free(m);
	return rc;
}

int pvi_session_finish(struct pvi_keeper *k)
{
	int session = pvi_keeper_find(k, HOLDER_TOKEN_INCOMING);
	int manifest = pvi_keeper_find(k, HOLDER_TOKEN_MANIFEST);
	int rc;

	if (session < 0)
		return 0;
	/* From here on the kernel has nothing: a second process must have everything. */
	rc = pvi_keeper_check(k);
	if (rc < 0)
		return rc;
	k->refilled = rc;
	rc = state_write(k, manifest, MANIFEST_TAKEN_OVER);
	if (rc)
		return rc;
	rc = pvi_luo_finish(session);
	if (rc)
		return pvi_fail(rc, "store %s: the LUO session cannot be finished: %s",
				k->place.name, strerror(-rc));
	rc = pvi_keeper_drop(k, HOLDER_TOKEN_INCOMING);
	return rc ? rc : pvi_keeper_drop(k, HOLDER_TOKEN_MANIFEST);
}

int pvi_session_discard(const struct pvi_keeper *k)
{
	char name[LUO_NAME_MAX];
	int session, rc, device = pvi_luo_device();

	if (device < 0)
		return device;
	pvi_luo_session_name(k->place.uid, k->place.name, name);
	rc = pvi_luo_retrieve_session(device, name, &session);
	close(device);
	if (rc == -ENOENT)
		return 0;
	if (rc)
		return not_retrieved(name, rc);
	close(session);
	return 0;
}
