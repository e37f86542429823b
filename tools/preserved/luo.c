/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which stores are prepared, written down for the next kernel: it tells nobody which sessions it
 * has brought, they must be asked for by name. The list is a memfd in a session of the agent's own,
 * which exists while any store is prepared. It has two halves, of which `current` says which one
 * counts, and may be written until the last moment, preserved or not.
 *
 * After a kexec the agent retrieves the sessions of all stores in the list, and does nothing else
 * with them: the descriptors are taken out by the owner who comes back (and to whom the memory is
 * then charged), or by finish.
 *
 * A retrieved session whose last descriptor is closed is freed, with all that nobody has taken out.
 * So they are retrieved, and given to systemd or the guard, by a second process that shares the
 * agent's table of descriptors: whichever of the two is killed, the other one has all of them.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "internal.h"
#include "list_layout.h"
#include "luo.h"
#include "preserved.h"

#define LIST_BYTES ((sizeof(struct list_rec) + 4095) / 4096 * 4096)

void list_close(struct agent *a)
{
	if (a->list_session >= 0 || a->list_memfd >= 0)
		notify_list(a, false);
	if (a->list_session >= 0)
		close(a->list_session);
	if (a->list_memfd >= 0)
		close(a->list_memfd);
	a->list_session = a->list_memfd = -1;
}

int list_ready(struct agent *a)
{
	const struct list_rec head = {
		.magic = LIST_MAGIC, .version = LIST_VERSION, .capacity = LIST_STORES};
	int device, rc;

	if (a->list_session >= 0)
		return 0;
	device = pvi_luo_device();
	if (device < 0)
		return device;
	rc = pvi_luo_create(device, LIST_SESSION, &a->list_session);
	close(device);
	if (rc) {
		a->list_session = -1;
		log_error("cannot make the session " LIST_SESSION ": %s%s", strerror(-rc),
			  rc == -EEXIST ? " (is there another agent?)" : "");
		return rc;
	}
	a->list_memfd = pvi_arena_memfd("pv:agent:list", LIST_BYTES);
	rc = a->list_memfd < 0 ? a->list_memfd : 0;
	if (!rc && pwrite(a->list_memfd, &head, offsetof(struct list_rec, halves), 0) < 0)
		rc = -errno;
	if (!rc)
		rc = pvi_luo_preserve(a->list_session, 0, a->list_memfd);
	if (rc) {
		log_error("cannot preserve the list of prepared stores: %s", strerror(-rc));
		list_close(a);
		return rc;
	}
	notify_list(a, true);
	return 0;
}

static int list_write(struct agent *a, const struct list_half_rec *half)
{
	const size_t at = offsetof(struct list_rec, current);
	uint64_t current;

	if (pread(a->list_memfd, &current, sizeof(current), (off_t)at) != sizeof(current))
		return -EIO;
	current = !current;
	if (pwrite(a->list_memfd, half, sizeof(*half),
		   (off_t)(offsetof(struct list_rec, halves) + current * sizeof(*half))) !=
		    (ssize_t)sizeof(*half) ||
	    pwrite(a->list_memfd, &current, sizeof(current), (off_t)at) != sizeof(current))
		return -EIO;
	return 0;
}

void list_update(struct agent *a)
{
	struct list_half_rec *half = calloc(1, sizeof(*half));
	int rc = half ? 0 : -ENOMEM;

	for (unsigned int i = 0; !rc && i < a->nstores; i++) {
		const struct store *s = a->stores[i];
		struct list_store_rec *r = &half->stores[half->count];

		if (!store_kept(s, HOLDER_TOKEN_OUTGOING))
			continue;
		if (half->count++ == LIST_STORES) {
			rc = -ENOSPC;
			break;
		}
		*r = (struct list_store_rec){.uid = s->uid, .gid = s->gid, .mode = s->mode};
		memcpy(r->name, s->name, sizeof(r->name));
	}
	if (!rc && half->count == 0) {
		list_close(a);
	} else if (!rc) {
		rc = list_ready(a);
		if (!rc)
			rc = list_write(a, half);
	}
	if (rc)
		log_error(
			"the list of prepared stores cannot be written (%s): the agent of the next "
			"kernel will not find all of them",
			strerror(-rc));
	free(half);
}

/* ---- the next kernel ---- */

/** What is done by either of the two processes. */
struct adoption {
	int rc;	     /* 0: there was a list, and it could be read */
	int session; /* of the list; -1: not retrieved yet */
	bool read;
	int sessions[LIST_STORES]; /* of stores; -1: not retrieved */
	struct list_rec list;
};

/** A session of this name that this process has. */
static int session_find(const char *name)
{
	DIR *dir = opendir("/proc/self/fd");
	const struct dirent *entry;
	int found = -EINVAL;

	while (dir && found < 0 && (entry = readdir(dir))) {
		char own[LUO_NAME_MAX];
		uint64_t bytes;
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] != '.' && verify(HOLDER_TOKEN_INCOMING, fd, 0, &bytes) == 0 &&
		    pvi_luo_name(fd, own) == 0 && strcmp(own, name) == 0)
			found = fd;
	}
	if (dir)
		closedir(dir);
	return found;
}

/** Also one that this process has retrieved already, and then nobody has written down where. */
static int session_retrieve(int device, const char *name)
{
	int session, rc = pvi_luo_retrieve_session(device, name, &session);

	if (rc == -EINVAL)
		return session_find(name);
	return rc ? rc : session;
}

static int list_read(struct adoption *ad)
{
	const struct list_rec *list = &ad->list;
	int fd, rc = pvi_luo_retrieve(ad->session, 0, &fd);

	if (rc == 0) {
		if (pread(fd, &ad->list, sizeof(ad->list), 0) != (ssize_t)sizeof(ad->list) ||
		    list->magic != LIST_MAGIC || list->version != LIST_VERSION ||
		    list->capacity != LIST_STORES || list->current > 1 ||
		    list->halves[list->current].count > LIST_STORES)
			rc = -EBADMSG;
		close(fd);
	}
	ad->read = rc == 0;
	return rc;
}

static bool record_valid(const struct list_store_rec *r)
{
	return store_name_valid(r->name) && store_mode_valid(r->mode);
}

static void tell_manager(const struct list_store_rec *r, int session)
{
	const struct kept kept = {.token = HOLDER_TOKEN_INCOMING, .fd = session};
	struct store s = {.uid = r->uid, .gid = r->gid, .mode = r->mode};

	memcpy(s.name, r->name, sizeof(s.name));
	notify_store(&s, &kept);
}

/** What has been done already is not done again. Allocates nothing, for the process that shares. */
static int retrieve_all(struct adoption *ad)
{
	const struct list_half_rec *half;
	int rc = 0, device = pvi_luo_device();

	if (device < 0)
		return device;
	if (ad->session < 0)
		ad->session = session_retrieve(device, LIST_SESSION);
	if (ad->session < 0)
		rc = ad->session;
	else if (!ad->read)
		rc = list_read(ad);
	half = &ad->list.halves[ad->list.current];
	for (uint64_t i = 0; !rc && i < half->count; i++) {
		const struct list_store_rec *r = &half->stores[i];
		char name[LUO_NAME_MAX];

		if (ad->sessions[i] >= 0 || !record_valid(r))
			continue;
		pvi_luo_session_name(r->uid, r->name, name);
		ad->sessions[i] = session_retrieve(device, name);
		if (ad->sessions[i] >= 0)
			tell_manager(r, ad->sessions[i]);
	}
	close(device);
	return rc;
}

static void adopt_store(struct agent *a, const struct list_store_rec *r, int session)
{
	struct store *s;

	if (!record_valid(r)) {
		log_error("the list of prepared stores has a damaged entry");
		return;
	}
	if (session < 0) {
		log_error("store %s of user %u: its session cannot be retrieved: %s", r->name,
			  r->uid, strerror(-session));
		return;
	}
	s = store_find(a, r->uid, r->name);
	if (s && store_kept(s, HOLDER_TOKEN_INCOMING)) /* systemd had it */
		return;
	if (!s)
		s = store_new(a, r->uid, r->gid, r->name);
	if (!s || store_keep(a, s, HOLDER_TOKEN_INCOMING, session, 0)) {
		log_error("store %s of user %u: no memory, it is lost", r->name, r->uid);
		close(session);
		return;
	}
	s->mode = r->mode;
	s->changes++;
	log_notice("store %s of user %u came through the kexec", s->name, s->uid);
}

/** Runs retrieve_all() in a process with our table of descriptors, and again here if that is
 * killed. */
static void retrieve_beside(struct adoption *ad)
{
	pid_t pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL, NULL, NULL, NULL);
	int status = 0;

	if (pid == 0) {
		signal(SIGTERM, SIG_IGN);
		ad->rc = retrieve_all(ad);
		_exit(0);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) {
	}
	if (pid < 0 || !WIFEXITED(status))
		ad->rc = retrieve_all(ad);
}

void list_adopt(struct agent *a)
{
	struct adoption *ad;

	if (access(LUO_DEVICE, R_OK | W_OK))
		return;
	ad = mmap(NULL, sizeof(*ad), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (ad == MAP_FAILED) {
		log_error("no memory to look for stores that came through a kexec");
		return;
	}
	ad->session = -1;
	for (unsigned int i = 0; i < LIST_STORES; i++)
		ad->sessions[i] = -ENOENT;
	retrieve_beside(ad);
	if (ad->rc && ad->rc != -ENOENT)
		log_error("stores that came through a kexec cannot be looked for: %s",
			  strerror(-ad->rc));
	notify_quiet(true);
	for (uint64_t i = 0; ad->read && i < ad->list.halves[ad->list.current].count; i++)
		adopt_store(a, &ad->list.halves[ad->list.current].stores[i], ad->sessions[i]);
	notify_quiet(false);
	if (ad->session >= 0) {
		pvi_luo_finish(ad->session);
		close(ad->session);
	}
	munmap(ad, sizeof(*ad));
}
