/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connections. A client that hangs, floods or sends rubbish costs his own connection and nothing
 * else: no call blocks but poll, a reply that is not taken ends the connection, and who has as many
 * as his quota allows loses the one that was silent for longest.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "preserved.h"
#include "rights.h"

#define FDS_READ 4u /* descriptors of one message that are received, to be refused */

struct client *client_add(struct agent *a, int fd, uint32_t uid, uint32_t gid)
{
	struct client *c = a->nclients < CLIENTS_MAX ? calloc(1, sizeof(*c)) : NULL;

	if (!c) {
		close(fd);
		return NULL;
	}
	c->fd = fd;
	c->uid = uid;
	c->gid = gid;
	c->heard_ms = now_ms();
	a->clients[a->nclients++] = c;
	return c;
}

void client_remove(struct agent *a, unsigned int i)
{
	struct client *c = a->clients[i];

	job_forget(a, c);
	close(c->fd);
	free(c);
	a->clients[i] = a->clients[--a->nclients];
}

bool client_send(const struct client *c, const void *message, size_t bytes, int fd)
{
	union pvi_rights control;
	struct iovec iov = {(void *)(uintptr_t)message, bytes};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	pvi_rights_put(&msg, &control, fd);
	return sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)bytes;
}

/* ---- receiving ---- */

union message {
	uint32_t magic;
	struct agent_msg agent;
	struct holder_msg holder;
};

/** Carry out what was received. False: end the connection. */
static bool dispatch(struct agent *a, struct client *c, union message *m, size_t bytes, int *fd,
		     bool cut)
{
	if (bytes == sizeof(m->agent) && m->magic == AGENT_MAGIC && *fd < 0 && !cut) {
		if (m->agent.version == AGENT_VERSION)
			return operate(a, c, &m->agent);
		answer(c, &m->agent, -EPROTONOSUPPORT);
		return false;
	}
	if (bytes == sizeof(m->holder) && m->magic == HOLDER_MAGIC &&
	    m->holder.version == HOLDER_VERSION && c->access != ACCESS_NONE)
		return serve(a, c, &m->holder, fd, cut);
	return false;
}

/** False: end the connection. */
static bool receive(struct agent *a, struct client *c)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(FDS_READ * sizeof(int))];
	} control;
	union message m;
	struct iovec iov = {&m, sizeof(m)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(c->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	unsigned int nfds;
	bool ok;
	int fd;

	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	nfds = pvi_rights_take(&msg, &fd, close_later);
	ok = n > 0 && nfds <= 1 && !(msg.msg_flags & MSG_TRUNC) &&
	     !(nfds && (msg.msg_flags & MSG_CTRUNC));
	c->heard_ms = now_ms();
	if (ok)
		ok = dispatch(a, c, &m, (size_t)n, &fd, msg.msg_flags & MSG_CTRUNC);
	if (fd >= 0)
		close_later(fd);
	return ok;
}

/* ---- accepting ---- */

/** Makes room by ending the connection that was silent for longest, if that is long enough. With a
 * uid, of this user's. */
static bool evict(struct agent *a, const uint32_t *uid)
{
	unsigned int oldest = CLIENTS_MAX;

	for (unsigned int i = 0; i < a->nclients; i++) {
		const struct client *c = a->clients[i];

		if (c->waits || (uid && c->uid != *uid))
			continue;
		if (oldest == CLIENTS_MAX || c->heard_ms < a->clients[oldest]->heard_ms)
			oldest = i;
	}
	if (oldest == CLIENTS_MAX || now_ms() - a->clients[oldest]->heard_ms < HOLDER_IDLE_MS)
		return false;
	client_remove(a, oldest);
	return true;
}

static unsigned int connections_of(const struct agent *a, uint32_t uid)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < a->nclients; i++)
		n += a->clients[i]->uid == uid;
	return n;
}

static void welcome(struct agent *a)
{
	struct ucred peer = {0, 0, 0};
	socklen_t bytes = sizeof(peer);
	int fd = accept4(a->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno != EAGAIN && errno != ECONNABORTED && errno != EINTR)
			log_warning("cannot take a connection: %s", strerror(errno));
		return;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 &&
	    (connections_of(a, peer.uid) < config_quota(&a->config, peer.uid)->connections ||
	     evict(a, &peer.uid)))
		client_add(a, fd, peer.uid, peer.gid);
	else
		close(fd);
}

/* ---- a round ---- */

void client_round(struct agent *a, int timeout_ms)
{
	struct pollfd polls[CLIENTS_MAX + 2];
	struct client *polled[CLIENTS_MAX];
	unsigned int n = 0;
	bool full = a->nclients >= a->clients_max && !evict(a, NULL);

	/* One that waits is only watched for its end. */
	for (unsigned int i = 0; i < a->nclients; i++) {
		polled[n] = a->clients[i];
		polls[n++] = (struct pollfd){a->clients[i]->fd,
					     (short)(a->clients[i]->waits ? 0 : POLLIN), 0};
	}
	polls[n] = (struct pollfd){full ? -1 : a->listener, POLLIN, 0};
	polls[n + 1] = (struct pollfd){a->signals, POLLIN, 0};
	if (full && (timeout_ms < 0 || timeout_ms > HOLDER_IDLE_MS))
		timeout_ms = HOLDER_IDLE_MS;
	if (poll(polls, n + 2, timeout_ms) <= 0)
		return;
	for (unsigned int i = 0; i < n; i++) {
		unsigned int at = 0;
		bool ended;

		if (!polls[i].revents)
			continue;
		ended = polled[i]->waits ? (polls[i].revents & (POLLHUP | POLLERR)) != 0
					 : !receive(a, polled[i]);
		while (ended && at < a->nclients && a->clients[at] != polled[i])
			at++;
		if (ended)
			client_remove(a, at);
	}
	if (polls[n].revents)
		welcome(a);
}
