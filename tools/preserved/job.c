/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Prepare, cancel and finish of a store: what takes time, and whom it takes.
 *
 * The barrier. While a process has a store open, it alone says what belongs to it, so a session
 * made behind its back could miss the segment that it is just adding. It is therefore the owner
 * that prepares or cancels, when he is asked to (AGENT_WANTED, at his next check), and the one who
 * asked for it waits for the result, for as long as he said. An owner that goes away meanwhile is
 * no obstacle any more.
 *
 * A session is made and finished by a worker, the same program in a process of its own: to fill the
 * holes of the memfds takes as long as they are large. It is a client of the agent like any other,
 * uses the library's own code, and keeps what it makes with the agent. When it is killed halfway,
 * its session is closed with it and nothing has happened.
 */
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "holder.h"
#include "preserved.h"
#include "session.h"

extern char **environ;

bool job_runs(const struct store *s)
{
	return s->job.worker || s->job.queued;
}

/* ---- ending ---- */

static void tell(struct client *c, const struct store *s, uint16_t op, int status)
{
	struct agent_msg m = {.op = op, .uid = s->uid};

	if (!c)
		return;
	memcpy(m.store, s->name, sizeof(m.store));
	c->waits = NULL;
	c->heard_ms = now_ms();
	/* One that does not take it is found out when it is next polled. */
	if (!answer(c, &m, status))
		shutdown(c->fd, SHUT_RDWR);
}

void job_end(struct agent *a, struct store *s, int status)
{
	struct job job = s->job;

	(void)a;
	if (!job.op)
		return;
	s->job = (struct job){0};
	if (status)
		log_warning("store %s of user %u is not %s: %s", s->name, s->uid,
			    job.op == AGENT_PREPARE  ? "prepared"
			    : job.op == AGENT_CANCEL ? "cancelled"
						     : "finished",
			    strerror(-status));
	else
		log_info("store %s of user %u is %s", s->name, s->uid,
			 job.op == AGENT_PREPARE  ? "prepared"
			 : job.op == AGENT_CANCEL ? "no longer prepared"
						  : "taken over and finished");
	tell(job.asker, s, job.op, status);
	tell(job.owner, s, job.op, status);
}

void job_forget(struct agent *a, const struct client *c)
{
	if (!c->waits)
		return;
	(void)a;
	if (c->waits->job.asker == c)
		c->waits->job.asker = NULL;
	if (c->waits->job.owner == c)
		c->waits->job.owner = NULL;
}

/* ---- beginning ---- */

/** Where workers reach this agent: systemd may have made the socket. */
static int socket_path(const struct agent *a, char path[108])
{
	struct sockaddr_un sun = {0};
	socklen_t bytes = sizeof(sun);

	if (getsockname(a->listener, (struct sockaddr *)&sun, &bytes))
		return -errno;
	snprintf(path, 108, "%.107s", sun.sun_path);
	return path[0] == '/' ? 0 : -EADDRNOTAVAIL;
}

static unsigned int workers(const struct agent *a)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < a->nstores; i++)
		n += a->stores[i]->job.worker != 0;
	return n;
}

/** Now, or as soon as there are not too many. */
static int worker_start(struct agent *a, struct store *s)
{
	char path[108], uid[16], option[] = "--worker";
	char prepare[] = "prepare", finish[] = "finish";
	char *argv[] = {a->program, option, s->job.op == AGENT_PREPARE ? prepare : finish,
			path,	    uid,    s->name,
			NULL};
	posix_spawnattr_t attr;
	sigset_t none;
	int rc = socket_path(a, path);

	if (rc)
		return rc;
	s->job.queued = workers(a) >= WORKERS_MAX;
	if (s->job.queued)
		return 0;
	snprintf(uid, sizeof(uid), "%u", s->uid);
	sigemptyset(&none);
	if (posix_spawnattr_init(&attr))
		return -ENOMEM;
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK);
	rc = posix_spawn(&s->job.worker, a->program, NULL, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	if (rc) {
		s->job.worker = 0;
		log_error("cannot start %s: %s", a->program, strerror(rc));
	}
	return -rc;
}

static void cancel(struct agent *a, struct store *s)
{
	store_drop(a, s, HOLDER_TOKEN_OUTGOING);
	store_drop(a, s, HOLDER_TOKEN_MANIFEST);
	s->changes++;
}

/** Do it without the owner. 0: it is done; 1: a worker is at it. */
static int proceed(struct agent *a, struct store *s)
{
	int rc;

	if (s->job.op == AGENT_CANCEL) {
		cancel(a, s);
		return 0;
	}
	rc = worker_start(a, s);
	return rc ? rc : 1;
}

/** Is it as somebody wants it to be? */
static bool reached(const struct store *s, uint16_t op)
{
	if (op == AGENT_FINISH)
		return !store_kept(s, HOLDER_TOKEN_INCOMING);
	return (store_kept(s, HOLDER_TOKEN_OUTGOING) != NULL) == (op == AGENT_PREPARE);
}

/** The owner does his part of a prepare. */
static int begin_self(struct agent *a, struct client *c, struct store *s)
{
	int rc;

	if (s->job.op && (s->job.op != AGENT_PREPARE || job_runs(s)))
		return -EBUSY;
	s->job.op = AGENT_PREPARE;
	s->job.owner = c;
	rc = worker_start(a, s);
	if (rc == 0) {
		c->waits = s;
		return 1;
	}
	s->job.owner = NULL;
	job_end(a, s, rc);
	return rc;
}

int job_begin(struct agent *a, struct client *c, struct store *s, const struct agent_msg *m)
{
	uint32_t timeout = m->timeout_ms ? m->timeout_ms : BARRIER_MS;
	int rc, open;

	if (reached(s, m->op))
		return 0;
	if (m->op == AGENT_PREPARE) {
		/* Not one that is just being made or taken over. */
		if (store_kept(s, HOLDER_TOKEN_INCOMING) || !store_kept(s, 0))
			return -EBUSY;
		rc = pvi_luo_available();
		if (rc)
			return rc;
		if (m->flags & AGENT_SELF)
			return begin_self(a, c, s);
	}
	if (s->job.op)
		return -EBUSY;
	open = store_open(s);
	if (open && m->op == AGENT_FINISH)
		return -EBUSY;
	s->job = (struct job){.op = m->op, .asker = c};
	s->job.deadline_ms = now_ms() + (timeout > AGENT_WAIT_MAX_MS ? AGENT_WAIT_MAX_MS : timeout);
	rc = open ? 1 : proceed(a, s);
	if (rc == 1)
		c->waits = s;
	else
		s->job.asker = NULL; /* the caller replies */
	if (rc <= 0)
		job_end(a, s, rc);
	return rc;
}

/* ---- waiting ---- */

/** Returns whether the store's job goes on. */
static bool tick(struct agent *a, struct store *s)
{
	int rc, status;

	if (s->job.worker) {
		pid_t pid = waitpid(s->job.worker, &status, WNOHANG);

		if (pid == 0)
			return true;
		rc = pid < 0 ? -errno : WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
		job_end(a, s, rc);
		return false;
	}
	if (s->job.queued) {
		rc = worker_start(a, s);
		if (rc)
			job_end(a, s, rc);
	} else if (reached(s, s->job.op)) {
		job_end(a, s, 0);
	} else if (store_open(s) == 0) {
		rc = proceed(a, s);
		if (rc <= 0)
			job_end(a, s, rc);
	} else if (now_ms() >= s->job.deadline_ms) {
		job_end(a, s, -ETIMEDOUT);
	}
	return s->job.op != 0;
}

bool job_tick(struct agent *a)
{
	bool any = false, working = false;

	for (unsigned int i = 0; i < a->nstores; i++) {
		if (a->stores[i]->job.op)
			any |= tick(a, a->stores[i]);
		working |= job_runs(a->stores[i]);
	}
	/* One whose store was emptied under its hands. */
	while (!working && waitpid(-1, NULL, WNOHANG) > 0) {
	}
	return any;
}

/* ---- the worker ---- */

static int work(const char *what, struct pvi_keeper *k)
{
	struct pvi_fd *fds;
	unsigned int n;
	int rc = pvi_keeper_load(k);

	/* The store is not ours to decide about: whatever changes under our hands ends this. */
	k->shared = true;
	if (rc == 0 && strcmp(what, "finish") == 0) {
		rc = pvi_session_take_over(k);
		return rc ? rc : pvi_session_finish(k);
	}
	if (rc)
		return rc;
	rc = pvi_keeper_hand_out(k, &fds, &n);
	if (rc)
		return rc;
	rc = pvi_session_prepare(k, fds, n);
	while (n)
		close(fds[--n].fd);
	free(fds);
	return rc;
}

int job_worker(const char *what, const char *socket, uint32_t uid, const char *name)
{
	struct pv_options opts = {
		.size = sizeof(opts), .agent_socket = socket, .agent_owner = PV_OWNER(uid)};
	struct pvi_handover *h;
	int rc = pvi_agent_open(name, &opts, &h);

	if (rc == 0) {
		pvi_keeper_of(h)->place.internal = true;
		rc = work(what, pvi_keeper_of(h));
		h->ops->close(h);
	}
	if (rc)
		log_error("%s of store %s of user %u: %s", what, name, uid, pv_last_error());
	return rc < -255 ? EIO : -rc;
}
