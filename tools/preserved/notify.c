/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * systemd: what the agent keeps is in its descriptor store as well, so that the agent may die, and be
 * restarted, and (systemd 261) the machine be rebooted by kexec. Each has a name that says all there is
 * to know of it:
 *
 *	pv.UID.GID.MODE.TOKEN.STORE	numbers decimal, but for MODE (octal) and TOKEN (hexadecimal)
 *
 * The protocol is that of sd_notify(3) and sd_listen_fds(3): datagrams to $NOTIFY_SOCKET, and
 * descriptors from 3 on. A datagram that systemd has not read yet outlives its sender.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "luo.h"
#include "preserved.h"

#define NAME_BYTES   160
#define SEND_TIMEOUT 5 /* seconds that systemd may take to read */

bool notify_there(void)
{
	const char *path = getenv("NOTIFY_SOCKET");

	return path && path[0];
}

/* What comes from systemd's store, or has been there all along, need not go there. */
static bool quiet;

void notify_quiet(bool yes)
{
	quiet = yes;
}

static int notify_socket(struct sockaddr_un *sun, socklen_t *bytes)
{
	const struct timeval timeout = {SEND_TIMEOUT, 0};
	const char *path = getenv("NOTIFY_SOCKET");
	size_t n = strlen(path);
	int fd;

	if (n >= sizeof(sun->sun_path) || (path[0] != '/' && path[0] != '@'))
		return -EINVAL;
	*sun = (struct sockaddr_un){.sun_family = AF_UNIX};
	memcpy(sun->sun_path, path, n);
	if (path[0] == '@')
		sun->sun_path[0] = 0;
	*bytes = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + n + (path[0] == '/'));
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	return fd;
}

static int send_fd(const char *text, int fd)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {(void *) (uintptr_t) text, strlen(text)};
	struct sockaddr_un sun;
	struct msghdr msg = {.msg_name = &sun, .msg_iov = &iov, .msg_iovlen = 1};
	int rc = 0, sock = notify_socket(&sun, &msg.msg_namelen);

	if (sock < 0)
		return sock;
	if (fd >= 0) {
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
	}
	if (sendmsg(sock, &msg, MSG_NOSIGNAL) < 0)
		rc = -errno;
	close(sock);
	return rc;
}

static void say(const char *text, int fd)
{
	int rc = notify_there() ? send_fd(text, fd) : 0;

	if (rc)
		log_error("systemd cannot be told (%s): %.60s", strerror(-rc), text);
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

/* It closes the pipe's end once it has done all that was sent before. */
int notify_barrier(int timeout_ms)
{
	struct pollfd p;
	int ends[2], rc;

	if (pipe2(ends, O_CLOEXEC))
		return -errno;
	rc = send_fd("BARRIER=1", ends[1]);
	close(ends[1]);
	p = (struct pollfd){ends[0], 0, 0};
	if (rc == 0)
		rc = poll(&p, 1, timeout_ms) > 0 ? 0 : -ETIMEDOUT;
	close(ends[0]);
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
		a->listener_is_ours = false;
		return;
	} else {
		log_warning("systemd passed a descriptor %s, which is not known", name);
	}
	close_later(fd);
}

int notify_receive(struct agent *a)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	const char *all = getenv("LISTEN_FDNAMES");
	char *names = NULL, *rest;
	int n = 0;

	if (pid && count && atoi(pid) == getpid()) {
		n = atoi(count);
		names = strdup(all ? all : "");
		if (!names)
			return -ENOMEM;
		rest = names;
		notify_quiet(true);
		for (int i = 0; i < n; i++) {
			const char *name = rest ? strsep(&rest, ":") : "";

			receive_one(a, name, 3 + i);
		}
		notify_quiet(false);
		free(names);
		if (a->nstores)
			log_notice("systemd kept %u descriptors of %u stores", a->nkept, a->nstores);
	}
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
	return 0;
}
