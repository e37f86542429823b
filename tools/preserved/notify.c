/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * systemd: what the agent keeps is in its descriptor store as well, so that the agent may die and be
 * restarted, and (systemd 261) the machine be rebooted by kexec. Each has a name that says all there
 * is to know of it:
 *
 *	pv.UID.GID.MODE.TOKEN.STORE	numbers decimal, but for MODE (octal) and TOKEN (hexadecimal)
 *	pv.list.session, pv.list.memfd	the list of prepared stores (luo.c)
 *
 * The protocol is that of sd_notify(3), which the library's notify.c speaks, and sd_listen_fds(3):
 * descriptors from 3 on. A message that systemd has not read yet outlives its sender.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "luo.h"
#include "notify.h"
#include "preserved.h"

#define NAME_BYTES	  160
#define NAMES_BYTES_MAX	  120000u
#define LIST_DESCRIPTORS  2u
#define LIST_SESSION_NAME "pv.list.session"
#define LIST_MEMFD_NAME	  "pv.list.memfd"

static struct pvi_notify manager;

/* What comes from systemd's store, or has been there all along, need not go there. */
static bool quiet;

void notify_init(void)
{
	pvi_notify_init(&manager);
}

bool notify_there(void)
{
	return manager.bytes != 0;
}

void notify_quiet(bool yes)
{
	quiet = yes;
}

static void say(const char *text, int fd)
{
	if (notify_there() && pvi_notify_send(&manager, fd, "%s", text))
		log_error("%s: %.60s", pv_last_error(), text);
}

void notify_say(const char *text)
{
	say(text, -1);
}

static void name_of(const struct store *s, uint64_t token, char name[NAME_BYTES])
{
	snprintf(name, NAME_BYTES, "pv.%u.%u.%o.%" PRIx64 ".%s", s->uid, s->gid, s->mode, token,
		 s->name);
}

void notify_store(const struct store *s, const struct kept *k)
{
	char name[NAME_BYTES], text[NAME_BYTES + 32];

	if (quiet || !notify_there())
		return;
	name_of(s, k->token, name);
	snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	say(text, k->fd);
}

void notify_remove(const struct store *s, uint64_t token)
{
	char name[NAME_BYTES], text[NAME_BYTES + 32];

	if (!notify_there())
		return;
	name_of(s, token, name);
	snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	say(text, -1);
}

unsigned int notify_name_bytes(const struct store *s, uint64_t token)
{
	char name[NAME_BYTES];

	name_of(s, token, name);
	return (unsigned int)strlen(name) + 1;
}

/* They come back as one string of the environment, of 128 KiB at most, or the agent could not be
 * executed any more. And systemd drops what is more than FileDescriptorStoreMax= ($FDSTORE) without
 * a word. */
bool notify_room(const struct agent *a, unsigned int descriptors)
{
	const char *limit = getenv("FDSTORE");

	if (!notify_there())
		return true;
	if (limit && a->nkept + descriptors + LIST_DESCRIPTORS > strtoul(limit, NULL, 10))
		return false;
	return a->name_bytes + (uint64_t)descriptors * NAME_BYTES <= NAMES_BYTES_MAX;
}

void notify_list(const struct agent *a, bool there)
{
	if (!there) {
		say("FDSTOREREMOVE=1\nFDNAME=" LIST_SESSION_NAME, -1);
		say("FDSTOREREMOVE=1\nFDNAME=" LIST_MEMFD_NAME, -1);
		return;
	}
	say("FDSTORE=1\nFDPOLL=0\nFDNAME=" LIST_SESSION_NAME, a->list_session);
	say("FDSTORE=1\nFDPOLL=0\nFDNAME=" LIST_MEMFD_NAME, a->list_memfd);
}

int notify_barrier(void)
{
	int rc = pvi_notify_barrier(&manager);

	if (rc)
		log_error("%s", pv_last_error());
	return rc;
}

/* ---- what systemd passes in ---- */

/** After a kexec a session that was made for it is there as one to be taken over. */
static bool session_came_through(int fd)
{
	int manifest;

	if (pvi_luo_retrieve(fd, 0, &manifest))
		return false;
	close(manifest);
	return true;
}

static int receive_kept(struct agent *a, const char *name, int fd)
{
	char store[HOLDER_NAME_MAX] = "", again[NAME_BYTES];
	uint32_t uid, gid, mode;
	uint64_t token, bytes;
	struct store *s;
	int rc;

	if (sscanf(name, "pv.%u.%u.%o.%" SCNx64 ".%63s", &uid, &gid, &mode, &token, store) != 5 ||
	    !store_name_valid(store) || !store_mode_valid(mode))
		return -EINVAL;
	snprintf(again, sizeof(again), "pv.%u.%u.%o.%" PRIx64 ".%s", uid, gid, mode, token, store);
	if (strcmp(name, again) != 0)
		return -EINVAL;
	rc = verify(token, fd, 0, &bytes);
	if (rc)
		return rc;
	s = store_find(a, uid, store);
	if (!s)
		s = store_new(a, uid, gid, store);
	if (!s)
		return -ENOMEM;
	s->mode = mode;
	if (store_kept(s, token))
		return -EEXIST;
	if (token == HOLDER_TOKEN_OUTGOING && session_came_through(fd)) {
		notify_remove(s, token);
		token = HOLDER_TOKEN_INCOMING;
		notify_quiet(false);
	}
	rc = store_keep(a, s, token, fd, bytes);
	notify_quiet(true);
	s->changes++;
	return rc;
}

/* Before the stores, which would begin a new one. After a kexec nothing is left of it to be wanted:
 * what has passed it in has the stores as well. */
static bool receive_list(struct agent *a, const char *name, int fd)
{
	bool session = strcmp(name, LIST_SESSION_NAME) == 0;

	if (!session && strcmp(name, LIST_MEMFD_NAME) != 0)
		return false;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	*(session ? &a->list_session : &a->list_memfd) = fd;
	return true;
}

static void check_list(struct agent *a)
{
	if (a->list_session >= 0 && a->list_memfd >= 0 && !session_came_through(a->list_session))
		return;
	if (a->list_session >= 0 || a->list_memfd >= 0)
		list_close(a);
}

static bool listens(int fd)
{
	int type = 0, listening = 0;
	socklen_t bytes = sizeof(int);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &bytes) == 0 && type == SOCK_SEQPACKET &&
	       getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) == 0 && listening;
}

static void receive_one(struct agent *a, const char *name, int fd)
{
	char text[300];
	int rc;

	fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (strncmp(name, "pv.", 3) == 0) {
		rc = receive_kept(a, name, fd);
		if (rc == 0)
			return;
		log_error("systemd's descriptor %s is not taken: %s", name, strerror(-rc));
		/* Another of the same name is kept, then. */
		if (rc != -EEXIST) {
			snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%.250s", name);
			say(text, -1);
		}
	} else if (a->listener < 0 && listens(fd)) {
		fcntl(fd, F_SETFL, O_NONBLOCK);
		a->listener = fd;
		return;
	} else {
		log_warning("systemd passed a descriptor %s, which is not known", name);
	}
	close_later(fd);
}

/** In turn, those of the list or the others. */
static void receive_all(struct agent *a, const char *names, int n, bool list)
{
	char name[300];

	for (int i = 0; i < n; i++) {
		size_t bytes = strcspn(names, ":");

		snprintf(name, sizeof(name), "%.*s", bytes < sizeof(name) ? (int)bytes : 0, names);
		names += bytes + (names[bytes] == ':');
		if (list)
			receive_list(a, name, 3 + i);
		else if (3 + i != a->list_session && 3 + i != a->list_memfd)
			receive_one(a, name, 3 + i);
	}
}

int notify_receive(struct agent *a)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	const char *names = getenv("LISTEN_FDNAMES");
	int n = pid && count && atoi(pid) == getpid() ? atoi(count) : 0;

	receive_all(a, names ? names : "", n, true);
	check_list(a);
	notify_quiet(true);
	receive_all(a, names ? names : "", n, false);
	notify_quiet(false);
	if (a->nstores)
		log_notice("%u descriptors of %u stores were passed in", a->nkept, a->nstores);
	list_update(a);
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return 0;
}
