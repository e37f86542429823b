/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Handover backend `agent`: the keeper (keeper.c) talks to the agent as it does to a holder, and this
 * file opens the conversation by saying which store is meant.
 *
 * What differs from a holder:
 *  - nobody starts an agent. That none is there is an error at every call, never "nothing is kept":
 *    a program that mistook one for the other would begin with an empty store.
 *  - a store may be prepared by an application that may not open /dev/liveupdate: the agent makes the
 *    session. So may an operator; the application is then asked to do it at its next check, when
 *    it holds the lock under which it would grow (the barrier of agent_proto.h).
 *
 * Who may be taken for an agent: a process of root, of this user, or of the owner of the directory
 * that the socket is in, which nobody else may write to.
 */
#include <errno.h>
#include <libgen.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "error.h"
#include "holder.h"
#include "session.h"

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t) t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- reaching it ---- */

const char *pvi_agent_socket(const char *wanted)
{
	const char *env = wanted ? NULL : secure_getenv("PRESERVE_AGENT");

	return wanted ? wanted : env && env[0] ? env : AGENT_SOCKET;
}

int pvi_agent_place_init(struct pvi_holder_place *place, const char *store_name,
			 const struct pv_options *opts)
{
	const char *path = pvi_agent_socket(opts->agent_socket);

	*place = (struct pvi_holder_place){
		.uid = opts->agent_owner ? opts->agent_owner - 1 : geteuid(),
	};
	if (snprintf(place->name, sizeof(place->name), "%s", store_name) >=
	    (int) sizeof(place->name))
		return pvi_fail(-EINVAL, "store name %s is too long", store_name);
	if (path[0] != '/' || strlen(path) >= sizeof(((struct sockaddr_un *) 0)->sun_path))
		return pvi_fail(-EINVAL, "the agent's socket must be an absolute path of at most "
					 "107 bytes, not %s",
				path);
	place->agent = strdup(path);
	return place->agent ? 0 : pvi_fail(-ENOMEM, "no memory for a path");
}

/** May what listens there be told our secrets? */
static int peer_verify(const char *path, int sock)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);
	struct stat st;
	char *copy;
	int rc;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &bytes))
		return pvi_fail(-errno, "cannot tell whose the agent at %s is: %s", path,
				strerror(errno));
	if (peer.uid == 0 || peer.uid == geteuid())
		return 0;
	copy = strdup(path);
	if (!copy)
		return pvi_fail(-ENOMEM, "no memory for a path");
	rc = stat(dirname(copy), &st);
	free(copy);
	if (rc || st.st_uid != peer.uid || (st.st_mode & 022))
		return pvi_fail(-EACCES,
				"what listens at %s (process %d of user %u) is no agent to be "
				"trusted: not of root, nor of the owner of a directory that only "
				"he may write to",
				path, peer.pid, peer.uid);
	return 0;
}

int pvi_agent_connect(const char *path, int *sock)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int64_t deadline = now_ms() + PVI_HOLDER_WAIT_MS;
	int rc, fd;

	if (strlen(path) >= sizeof(sun.sun_path))
		return pvi_fail(-EINVAL, "the path of the agent's socket is too long: %s", path);
	memcpy(sun.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return pvi_fail(-errno, "cannot make a socket: %s", strerror(errno));
	while ((rc = connect(fd, (const struct sockaddr *) &sun, sizeof(sun)) ? -errno : 0) != 0) {
		if ((rc != -EAGAIN && rc != -EINTR) || now_ms() >= deadline)
			break;
		nanosleep(&(struct timespec){0, 5000000}, NULL);
	}
	if (rc == -ENOENT || rc == -ECONNREFUSED)
		rc = pvi_fail(-ECONNREFUSED, "no agent is there: %s %s", path,
			      rc == -ENOENT ? "does not exist" : "takes no connection");
	else if (rc == -EAGAIN)
		rc = pvi_fail(-ETIMEDOUT, "the agent at %s takes no connection", path);
	else if (rc)
		rc = pvi_fail(rc, "cannot connect to the agent at %s: %s", path, strerror(-rc));
	else
		rc = peer_verify(path, fd);
	if (rc) {
		close(fd);
		return rc;
	}
	*sock = fd;
	return 0;
}

static int wait_for(int sock, short events, int64_t deadline)
{
	struct pollfd p = {sock, events, 0};

	for (;;) {
		int64_t left = deadline < 0 ? -1 : deadline - now_ms();
		int rc = poll(&p, 1, deadline < 0 ? -1 : left > 0 ? (int) left : 0);

		if (rc > 0)
			return 0;
		if (rc < 0 && errno != EINTR)
			return pvi_fail(-errno, "poll: %s", strerror(errno));
		if (deadline >= 0 && left <= 0)
			return pvi_fail(-ETIMEDOUT, "the agent does not answer");
	}
}

static int gone(void)
{
	return pvi_fail(-ECONNRESET, "the agent went away, or wants no more of this connection");
}

int pvi_agent_hear(int sock, uint16_t op, struct agent_msg *m, int timeout_ms)
{
	int64_t deadline = timeout_ms < 0 ? -1 : now_ms() + timeout_ms;
	struct agent_msg got = {0};
	ssize_t n;

	while ((n = recv(sock, &got, sizeof(got), MSG_DONTWAIT | MSG_TRUNC)) < 0) {
		int rc;

		if (errno == ECONNRESET)
			return gone();
		if (errno != EAGAIN && errno != EINTR)
			return pvi_fail(-errno, "cannot receive from the agent: %s",
					strerror(errno));
		rc = errno == EINTR ? 0 : wait_for(sock, POLLIN, deadline);
		if (rc)
			return rc;
	}
	if (n == 0)
		return gone();
	if (n == sizeof(got) && got.magic == AGENT_MAGIC && got.version != AGENT_VERSION)
		return pvi_fail(-EPROTONOSUPPORT, "the agent speaks version %u, this library %u",
				got.version, AGENT_VERSION);
	if (n != sizeof(got) || got.magic != AGENT_MAGIC || got.op != op)
		return pvi_fail(-EPROTO, "the agent sent something malformed");
	*m = got;
	m->store[sizeof(m->store) - 1] = 0;
	return 0;
}

int pvi_agent_ask(int sock, struct agent_msg *m, int timeout_ms)
{
	m->magic = AGENT_MAGIC;
	m->version = AGENT_VERSION;
	m->status = 0;
	while (send(sock, m, sizeof(*m), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
		int rc;

		if (errno == EPIPE || errno == ECONNRESET)
			return gone();
		if (errno != EAGAIN && errno != EINTR)
			return pvi_fail(-errno, "cannot send to the agent: %s", strerror(errno));
		rc = errno == EINTR ? 0 : wait_for(sock, POLLOUT, now_ms() + PVI_HOLDER_WAIT_MS);
		if (rc)
			return rc;
	}
	return pvi_agent_hear(sock, m->op, m, timeout_ms);
}

int pvi_agent_dial(const struct pvi_holder_place *place, int *sock)
{
	struct agent_msg m = {
		.op = AGENT_OPEN,
		.uid = place->uid,
		.flags = place->internal ? AGENT_INTERNAL : 0,
	};
	int rc = pvi_agent_connect(place->agent, sock);

	if (rc)
		return rc;
	memcpy(m.store, place->name, sizeof(m.store));
	rc = pvi_agent_ask(*sock, &m, PVI_HOLDER_WAIT_MS);
	if (rc == 0 && m.status)
		rc = pvi_fail(m.status, "the agent does not let user %u have store %s of user %u: %s",
			      geteuid(), place->name, place->uid, strerror(-m.status));
	if (rc)
		close(*sock);
	return rc;
}

/* ---- the backend ---- */

/**
 * Is the agent the one to ask, if the application does not say? It is where an agent's socket is,
 * unless a holder keeps a store of this name, or the application has chosen a holder's directory.
 * A socket at which nobody answers counts: an agent that is down is no reason for a second store.
 */
bool pvi_agent_preferred(const char *store_name, const struct pv_options *opts)
{
	struct pvi_holder_place holder = {0};
	bool started, kept = false;
	int sock;

	if (!opts->agent_socket &&
	    (opts->runtime_dir || access(pvi_agent_socket(NULL), F_OK) != 0))
		return false;
	if (pvi_holder_place_init(&holder, store_name, opts) == 0 &&
	    pvi_holder_dial(&holder, false, &sock, &started) == 0) {
		close(sock);
		kept = true;
	}
	pvi_holder_place_free(&holder);
	return !kept;
}

static int agent_request(const struct pvi_keeper *k, uint16_t op, uint32_t flags, int timeout_ms,
			 struct agent_msg *m)
{
	int sock, rc = pvi_agent_dial(&k->place, &sock);

	if (rc)
		return rc;
	*m = (struct agent_msg){.op = op, .uid = k->place.uid, .flags = flags};
	memcpy(m->store, k->place.name, sizeof(m->store));
	rc = pvi_agent_ask(sock, m, timeout_ms);
	close(sock);
	return rc;
}

/** Preserving takes as long as the memory that it has to fill, so this waits while the agent lives. */
static int agent_prepare(struct pvi_handover *h, const struct pvi_fd *fds, unsigned int n)
{
	struct pvi_keeper *k = pvi_keeper_of(h);
	bool refilled;
	struct agent_msg m;
	int rc;

	if (h->state == PV_STATE_PREPARED)
		return 0;
	/* The agent preserves what it has: first see that this is everything. */
	rc = pvi_keeper_check(k);
	if (rc < 0)
		return rc;
	refilled = rc > 0;
	rc = agent_request(k, AGENT_PREPARE, AGENT_SELF, -1, &m);
	if (rc == 0 && m.status)
		rc = pvi_fail(m.status, "the agent cannot prepare store %s: %s", k->place.name,
			      strerror(-m.status));
	if (rc)
		return rc;
	/* Have our own copy of the session that it keeps now. */
	rc = pvi_keeper_check(k);
	k->refilled = refilled;
	if (rc >= 0 && h->state != PV_STATE_PREPARED)
		rc = pvi_fail(-EIO, "the agent has prepared store %s and then lost the session",
			      k->place.name);
	return rc < 0 ? rc : 0;
}

/** Also: do what an operator asked the agent for, under the lock that keeps the store from growing. */
static int agent_check(struct pvi_handover *h)
{
	struct pvi_keeper *k = pvi_keeper_of(h);
	struct agent_msg m;
	int wanted, kept = pvi_keeper_check(k);

	if (kept < 0)
		return kept;
	wanted = agent_request(k, AGENT_WANTED, 0, PVI_HOLDER_WAIT_MS, &m);
	if (wanted)
		return wanted;
	/* What becomes of it is told to whoever asked; it is no failure to keep the store. */
	if (m.status == 0 && m.flags == AGENT_PREPARE)
		agent_prepare(h, NULL, 0);
	else if (m.status == 0 && m.flags == AGENT_CANCEL)
		pvi_session_cancel(k);
	return kept;
}

static int agent_cancel(struct pvi_handover *h)
{
	return pvi_session_cancel(pvi_keeper_of(h));
}

static const struct pvi_handover_ops agent_ops = {
	.name = "agent",
	.kind = PV_HANDOVER_AGENT,
	.fetch = pvi_holder_fetch,
	.changed = pvi_holder_changed,
	.keep = pvi_holder_keep,
	.drop = pvi_holder_drop,
	.finish = pvi_holder_finish,
	.prepare = agent_prepare,
	.cancel = agent_cancel,
	.check = agent_check,
	.forget = pvi_holder_forget,
	.close = pvi_holder_close,
};

int pvi_agent_open(const char *store_name, const struct pv_options *opts, struct pvi_handover **out)
{
	return pvi_keeper_open(store_name, opts, &agent_ops, out);
}
