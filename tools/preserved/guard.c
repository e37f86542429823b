/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guard (preserved --guard): what systemd's descriptor store does for the agent, where there is
 * no systemd. A process that starts the agent, has a copy of all that it keeps, and starts another
 * one with it when it has died. The socket is the guard's, so clients only wait meanwhile. It
 * speaks systemd's side of sd_notify(3) and sd_listen_fds(3), so to the agent there is no
 * difference but that the guard ends with it (SIGTERM), and so is no reason to end.
 *
 * It does next to nothing, so that nothing can happen to it: one loop, no threads, and it looks at
 * nothing that applications send.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "preserved.h"
#include "rights.h"

#define GUARD_SOCKET_NAME "socket"
#define NAME_BYTES	  160
#define MESSAGE_BYTES	  512
#define RESTART_MS	  100
#define RESTART_MAX_MS	  1000	/* if it dies again and again */
#define LIVED_MS	  10000 /* if it has lived that long, it does not */
#define DESCENDANTS_MS	  10000 /* for what it has left running to come to its end */

struct held {
	char name[NAME_BYTES];
	int fd;
};

struct guard {
	const char *program;
	char **argv;
	char path[120];
	int lock;
	int sock;
	int signals;
	pid_t agent;
	struct held *held;
	unsigned int n;
	unsigned int room;
};

/* ---- what the agent says ---- */

static void let_go(struct guard *g, const char *name)
{
	for (unsigned int i = 0; i < g->n;) {
		if (strcmp(g->held[i].name, name) != 0) {
			i++;
			continue;
		}
		close_later(g->held[i].fd);
		g->held[i] = g->held[--g->n];
	}
}

/** Takes fd over. Later ones of a name are instead of earlier ones. */
static void hold(struct guard *g, const char *name, int fd)
{
	let_go(g, name);
	if (g->n == g->room) {
		unsigned int room = g->room ? 2 * g->room : 64;
		struct held *grown = realloc(g->held, room * sizeof(*grown));

		if (!grown) {
			log_error("no memory to guard %s", name);
			close(fd);
			return;
		}
		g->held = grown;
		g->room = room;
	}
	snprintf(g->held[g->n].name, NAME_BYTES, "%s", name);
	g->held[g->n++].fd = fd;
}

/** One message. False: there is none. */
static bool hear(struct guard *g)
{
	union pvi_rights control;
	char text[MESSAGE_BYTES], *name;
	struct iovec iov = {text, sizeof(text) - 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(g->sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fd;

	if (n < 0)
		return errno == EINTR;
	text[n] = 0;
	pvi_rights_take(&msg, &fd, close_later);
	name = strstr(text, "FDNAME=");
	if (name) {
		name += strlen("FDNAME=");
		name[strcspn(name, "\n")] = 0;
	}
	if (name && fd >= 0 && strncmp(text, "FDSTORE=1\n", 10) == 0) {
		hold(g, name, fd);
		fd = -1;
	} else if (name && strncmp(text, "FDSTOREREMOVE=1\n", 16) == 0) {
		let_go(g, name);
	}
	/* Also that of a barrier: to close it is the answer. */
	if (fd >= 0)
		close(fd);
	return true;
}

/* ---- the agent ---- */

/** Descriptors where sd_listen_fds(3) says; g is the child's own. */
static bool pass(struct guard *g)
{
	size_t bytes = 1;
	char number[16], *names, *at;

	for (unsigned int i = 0; i < g->n; i++) {
		g->held[i].fd = fcntl(g->held[i].fd, F_DUPFD_CLOEXEC, 3 + (int)g->n);
		if (g->held[i].fd < 0)
			return false;
		bytes += strlen(g->held[i].name) + 1;
	}
	names = at = malloc(bytes);
	if (!names)
		return false;
	*at = 0;
	for (unsigned int i = 0; i < g->n; i++) {
		if (dup2(g->held[i].fd, 3 + (int)i) < 0)
			return false;
		at += sprintf(at, "%s%s", i ? ":" : "", g->held[i].name);
	}
	snprintf(number, sizeof(number), "%u", g->n);
	setenv("LISTEN_FDS", number, 1);
	snprintf(number, sizeof(number), "%d", getpid());
	setenv("LISTEN_PID", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	return true;
}

static int agent_start(struct guard *g)
{
	sigset_t none;

	g->agent = fork();
	if (g->agent < 0) {
		log_error("cannot start the agent: %s", strerror(errno));
		return -errno;
	}
	if (g->agent > 0)
		return 0;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setenv("NOTIFY_SOCKET", g->path, 1);
	setenv(GUARD_ENV, "1", 1);
	if (pass(g))
		execv(g->program, g->argv);
	log_error("cannot execute %s: %s", g->program, strerror(errno));
	_exit(127);
}

/** Its workers, or who was retrieving sessions for it, may still send something. */
static void descendants_end(struct guard *g)
{
	int64_t deadline = now_ms() + DESCENDANTS_MS;

	while (waitpid(-1, NULL, WNOHANG) >= 0 && now_ms() < deadline) {
		struct pollfd p = {g->sock, POLLIN, 0};

		poll(&p, 1, 5);
		while (hear(g)) {
		}
	}
	while (hear(g)) {
	}
}

static void pass_on(const struct guard *g)
{
	struct signalfd_siginfo info;

	while (read(g->signals, &info, sizeof(info)) == sizeof(info))
		if (info.ssi_signo != SIGCHLD)
			kill(g->agent, (int)info.ssi_signo);
}

/** Until the agent ends; its status. */
static int agent_attend(struct guard *g)
{
	int status;
	pid_t pid;

	for (;;) {
		struct pollfd polls[] = {{g->sock, POLLIN, 0}, {g->signals, POLLIN, 0}};

		poll(polls, 2, -1);
		while (hear(g)) {
		}
		pass_on(g);
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
			if (pid == g->agent)
				return status;
	}
}

/* ---- the guard ---- */

static int guard_init(struct guard *g, const struct config *c)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int listener = listen_at(c, &g->lock);

	if (listener < 0)
		return listener;
	hold(g, GUARD_SOCKET_NAME, listener);
	snprintf(g->path, sizeof(g->path), "%s.guard", c->socket);
	memcpy(sun.sun_path, g->path, strlen(g->path));
	g->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	unlink(g->path);
	umask(0077);
	if (g->sock < 0 || bind(g->sock, (struct sockaddr *)&sun, sizeof(sun))) {
		log_error("cannot listen at %s: %s", g->path, strerror(errno));
		return -errno;
	}
	umask(0022);
	g->signals = signals_take();
	if (g->signals < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1))
		return -errno;
	return 0;
}

/** Nothing is there that anybody would look for, but the socket. */
static void guard_end(const struct guard *g, const struct config *c)
{
	unlink(g->path);
	if (g->n == 1)
		unlink(c->socket);
	free(g->held);
}

int guard_run(const struct config *c, const char *program, char **argv)
{
	struct guard g = {.program = program, .argv = argv};
	int status, pause_ms = RESTART_MS, rc = guard_init(&g, c);

	while (rc == 0) {
		int64_t began = now_ms();

		rc = agent_start(&g);
		if (rc)
			break;
		status = agent_attend(&g);
		descendants_end(&g);
		if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || g.n == 1)) {
			guard_end(&g, c);
			return WEXITSTATUS(status);
		}
		log_error("the agent (process %d) %s %d: another is started, with %u descriptors",
			  g.agent,
			  WIFSIGNALED(status) ? "was ended by signal" : "ended with status",
			  WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), g.n);
		pause_ms = now_ms() - began >= LIVED_MS	   ? RESTART_MS
			   : pause_ms < RESTART_MAX_MS / 2 ? 2 * pause_ms
							   : RESTART_MAX_MS;
		poll(NULL, 0, pause_ms);
	}
	return 1;
}
