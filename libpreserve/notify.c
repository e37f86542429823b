/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The notification protocol of the service manager (notify.h). Written here, because it is a datagram
 * and a pipe, and libsystemd would be a library that every user of this one has to have.
 *
 * Each message has a socket of its own: nothing is open in between that a child could inherit, or an
 * application that closes what it does not know. The order of messages is that of the sends all the
 * same, for they wait in one queue, the receiver's.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "notify.h"
#include "rights.h"

#define MESSAGE_BYTES 512

static int patience_ms = 5000;

void pvi_notify_patience(int ms)
{
	patience_ms = ms;
}

void pvi_notify_init(struct pvi_notify *n)
{
	const char *path = secure_getenv("NOTIFY_SOCKET");
	size_t bytes = path ? strlen(path) : 0;

	*n = (struct pvi_notify){.address.sun_family = AF_UNIX};
	/* A path, or a name without a file. What else there may be (vsock) carries no descriptors. */
	if (bytes < 2 || (*path != '/' && *path != '@') || bytes >= sizeof(n->address.sun_path))
		return;
	memcpy(n->address.sun_path, path, bytes);
	n->bytes = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + bytes);
	if (*path == '@')
		n->address.sun_path[0] = 0;
	else
		n->bytes++; /* the 0 behind a path belongs to it */
}

static int send_to(const struct pvi_notify *n, int fd, const char *text, size_t bytes)
{
	union pvi_rights control;
	struct iovec iov = {(void *) (uintptr_t) text, bytes};
	struct msghdr msg = {.msg_name = (void *) (uintptr_t) &n->address,
			     .msg_namelen = n->bytes,
			     .msg_iov = &iov,
			     .msg_iovlen = 1};
	struct timeval timeout = {.tv_sec = patience_ms / 1000, .tv_usec = patience_ms % 1000 * 1000};
	int sock, err = 0;

	if (!n->bytes)
		return pvi_fail(-ENODEV, "there is no service manager to keep descriptors: "
					 "$NOTIFY_SOCKET is not set, or is no unix socket (the unit "
					 "needs Type=notify or NotifyAccess=main)");
	pvi_rights_put(&msg, &control, fd);
	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return pvi_fail(errno, "no socket for a message to the service manager: %s",
				strerror(errno));
	setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	while (sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 && !err)
		err = errno == EINTR ? 0 : errno;
	close(sock);
	if (err == EAGAIN)
		return pvi_fail(-ETIMEDOUT, "the service manager has read no message for %d ms",
				patience_ms);
	return err ? pvi_fail(err, "cannot send to the service manager ($NOTIFY_SOCKET): %s",
			      strerror(err))
		   : 0;
}

int pvi_notify_send(const struct pvi_notify *n, int fd, const char *format, ...)
{
	char text[MESSAGE_BYTES];
	va_list args;
	int bytes;

	va_start(args, format);
	bytes = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (bytes < 0 || (size_t) bytes >= sizeof(text))
		return pvi_fail(-EMSGSIZE, "a message to the service manager is too long");
	return send_to(n, fd, text, (size_t) bytes);
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

int pvi_notify_barrier(const struct pvi_notify *n)
{
	int64_t deadline = now_ms() + patience_ms, left;
	struct pollfd p = {.events = 0};
	int ends[2], rc, err;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return pvi_fail(errno, "no pipe to wait for the service manager: %s", strerror(errno));
	/* The manager closes its copy when it comes to this message, and so the last one. */
	rc = pvi_notify_send(n, ends[1], "BARRIER=1");
	close(ends[1]);
	p.fd = ends[0];
	while (!rc) {
		left = deadline - now_ms();
		err = poll(&p, 1, left > 0 ? (int) left : 0) < 0 ? errno : 0;
		if (p.revents)
			break;
		if (err && err != EINTR)
			rc = pvi_fail(err, "poll: %s", strerror(err));
		else if (left <= 0)
			rc = pvi_fail(-ETIMEDOUT,
				      "the service manager has not dealt with a message for %d ms",
				      patience_ms);
	}
	close(ends[0]);
	return rc;
}
