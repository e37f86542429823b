/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Restart: the program is executed anew, in the same process, with all that it keeps. What the
 * descriptors are is in a sealed memfd, whose number is in the environment. Connections end;
 * clients connect again, and the listening socket, which stays, has them wait meanwhile.
 *
 * Before that the new program is asked (--check, with the same arguments) whether it starts at all
 * and reads this version of the state: if not, nothing happens.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "preserved.h"

#define STATE_ENV   "PRESERVED_STATE"
#define STATE_MAGIC 0x5441545347415650ull /* "PVAGSTAT" */
#define CHECK_MS    5000

extern char **environ;

/* Version 1. A later one may add fields at the ends, and says so by the three sizes. */
struct state_rec {
	uint64_t magic;
	uint32_t version;
	uint32_t head_bytes;
	uint32_t store_bytes;
	uint32_t kept_bytes;
	uint32_t nstores;
	uint32_t reserved;
	int32_t listener;
	int32_t lock;
	int32_t list_session;
	int32_t list_memfd;
	uint64_t id;
};

struct state_store_rec {
	char name[HOLDER_NAME_MAX];
	uint32_t uid;
	uint32_t gid;
	uint32_t mode;
	uint32_t nkept; /* as many state_kept_rec follow */
	uint64_t id;
	uint64_t changes;
	int64_t arrived_ms;
	uint64_t claimed;
};

struct state_kept_rec {
	uint64_t token;
	uint64_t bytes;
	int32_t fd;
	uint32_t reserved;
};

_Static_assert(sizeof(struct state_rec) == 56, "state_rec");
_Static_assert(sizeof(struct state_store_rec) == 112, "state_store_rec");
_Static_assert(sizeof(struct state_kept_rec) == 24, "state_kept_rec");

/* ---- writing ---- */

static int put(int fd, const void *bytes, size_t n)
{
	return write(fd, bytes, n) == (ssize_t)n ? 0 : -EIO;
}

static int put_store(int fd, const struct store *s)
{
	struct state_store_rec r = {.uid = s->uid,
				    .gid = s->gid,
				    .mode = s->mode,
				    .nkept = s->n,
				    .id = s->id,
				    .changes = s->changes,
				    .arrived_ms = s->arrived_ms,
				    .claimed = s->claimed};
	int rc;

	memcpy(r.name, s->name, sizeof(r.name));
	rc = put(fd, &r, sizeof(r));
	for (unsigned int i = 0; i < s->n && !rc; i++) {
		struct state_kept_rec k = {
			.token = s->kept[i].token, .bytes = s->kept[i].bytes, .fd = s->kept[i].fd};

		rc = put(fd, &k, sizeof(k));
	}
	return rc;
}

static int state_write(const struct agent *a)
{
	struct state_rec r = {.magic = STATE_MAGIC,
			      .version = STATE_VERSION,
			      .head_bytes = sizeof(r),
			      .store_bytes = sizeof(struct state_store_rec),
			      .kept_bytes = sizeof(struct state_kept_rec),
			      .nstores = a->nstores,
			      .listener = a->listener,
			      .lock = a->lock,
			      .list_session = a->list_session,
			      .list_memfd = a->list_memfd,
			      .id = a->id};
	int rc, fd = memfd_create("pv:agent:state", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0)
		return -errno;
	rc = put(fd, &r, sizeof(r));
	for (unsigned int i = 0; i < a->nstores && !rc; i++)
		rc = put_store(fd, a->stores[i]);
	if (!rc && fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		rc = -errno;
	if (rc) {
		close(fd);
		return rc;
	}
	return fd;
}

/* ---- the exec ---- */

static void inherit(int fd, bool yes)
{
	if (fd >= 0)
		fcntl(fd, F_SETFD, yes ? 0 : FD_CLOEXEC);
}

static void inherit_all(const struct agent *a, int state, bool yes)
{
	inherit(a->listener, yes);
	inherit(a->lock, yes);
	inherit(a->list_session, yes);
	inherit(a->list_memfd, yes);
	inherit(state, yes);
	for (unsigned int i = 0; i < a->nstores; i++)
		for (unsigned int k = 0; k < a->stores[i]->n; k++)
			inherit(a->stores[i]->kept[k].fd, yes);
}

/** Does the program that is there now start, and read what we write? */
static int successor_check(const struct agent *a)
{
	unsigned int n = 0;
	char version[] = "--check=1", **argv;
	int64_t deadline = now_ms() + CHECK_MS;
	int status = -1, rc;
	pid_t pid;

	_Static_assert(STATE_VERSION == 1, "the argument above");
	while (a->argv[n])
		n++;
	argv = calloc(n + 2, sizeof(*argv));
	if (!argv)
		return -ENOMEM;
	memcpy(argv, a->argv, n * sizeof(*argv));
	argv[n] = version;
	rc = -posix_spawn(&pid, a->program, NULL, NULL, argv, environ);
	free(argv);
	if (rc)
		return rc;
	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (now_ms() >= deadline) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			return -ETIMEDOUT;
		}
		nanosleep(&(struct timespec){0, 2000000}, NULL);
	}
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -ENOEXEC;
}

int state_restart(struct agent *a)
{
	char text[16];
	int state, rc = successor_check(a);

	if (rc) {
		log_error(
			"no restart: %s does not start with these arguments, or does not read our "
			"state (%s)",
			a->program, strerror(-rc));
		return rc;
	}
	state = state_write(a);
	if (state < 0) {
		log_error("no restart: the state cannot be written: %s", strerror(-state));
		return state;
	}
	log_notice("restarting with %u stores, %u descriptors", a->nstores, a->nkept);
	snprintf(text, sizeof(text), "%d", state);
	inherit_all(a, state, true);
	setenv(STATE_ENV, text, 1);
	execv(a->program, a->argv);
	rc = -errno;
	unsetenv(STATE_ENV);
	inherit_all(a, state, false);
	close(state);
	log_error("no restart: cannot execute %s: %s", a->program, strerror(-rc));
	return rc;
}

/* ---- reading ---- */

/** What is still to be read. */
struct reader {
	const uint8_t *at;
	size_t left;
};

/** Copies the part of a record that we know. */
static bool take(struct reader *r, void *out, size_t bytes, size_t recorded)
{
	if (recorded < bytes || r->left < recorded)
		return false;
	memcpy(out, r->at, bytes);
	r->at += recorded;
	r->left -= recorded;
	return true;
}

static int take_store(struct agent *a, struct reader *r, const struct state_rec *head)
{
	struct state_store_rec rec;
	struct store *s;
	int rc = 0;

	if (!take(r, &rec, sizeof(rec), head->store_bytes) || !store_name_valid(rec.name))
		return -EBADMSG;
	s = store_new(a, rec.uid, rec.gid, rec.name);
	if (!s)
		return -ENOMEM;
	for (uint32_t i = 0; i < rec.nkept && !rc; i++) {
		struct state_kept_rec k;

		if (!take(r, &k, sizeof(k), head->kept_bytes))
			return -EBADMSG;
		inherit(k.fd, false);
		rc = store_keep(a, s, k.token, k.fd, k.bytes);
	}
	s->mode = rec.mode;
	s->id = rec.id;
	s->changes = rec.changes;
	s->arrived_ms = rec.arrived_ms;
	s->claimed = rec.claimed;
	return rc;
}

static int take_all(struct agent *a, struct reader *r)
{
	struct state_rec head;
	uint32_t sizes[4];
	int rc = 0;

	/* magic, version, and how long the head is */
	if (r->left < 16)
		return -EBADMSG;
	memcpy(sizes, r->at, sizeof(sizes));
	if (!take(r, &head, sizeof(head), sizes[3]) || head.magic != STATE_MAGIC ||
	    head.version != STATE_VERSION)
		return -EBADMSG;
	a->listener = head.listener;
	a->lock = head.lock;
	a->list_session = head.list_session;
	a->list_memfd = head.list_memfd;
	a->id = head.id;
	inherit(a->listener, false);
	inherit(a->lock, false);
	inherit(a->list_session, false);
	inherit(a->list_memfd, false);
	for (uint32_t i = 0; i < head.nstores && !rc; i++)
		rc = take_store(a, r, &head);
	return rc;
}

int state_resume(struct agent *a, const char *text)
{
	struct reader r;
	uint8_t *bytes;
	off_t size;
	int rc, fd;

	if (!text)
		return 0;
	fd = atoi(text);
	unsetenv(STATE_ENV);
	size = lseek(fd, 0, SEEK_END);
	bytes = size > 0 ? malloc((size_t)size) : NULL;
	if (!bytes || pread(fd, bytes, (size_t)size, 0) != size) {
		rc = -EBADMSG;
	} else {
		r = (struct reader){bytes, (size_t)size};
		notify_quiet(true);
		rc = take_all(a, &r);
		notify_quiet(false);
	}
	free(bytes);
	close(fd);
	if (rc) {
		log_error("what the agent kept before its restart cannot be read: %s",
			  strerror(-rc));
		return rc;
	}
	log_notice("restarted with %u stores, %u descriptors", a->nstores, a->nkept);
	return 1;
}
