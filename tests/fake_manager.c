/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_manager.h"
#include "support.h"

#define FIRST_FD 3
#define HIGH_FD	 500
#define CLOSING_MS 1

void manager_start(struct manager *m, unsigned int limit)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	socklen_t bytes;

	m->limit = limit;
	snprintf(m->dir, sizeof(m->dir), "/tmp/pv-manager-XXXXXX");
	assert_non_null(mkdtemp(m->dir));
	snprintf(m->path, sizeof(m->path), "%s%s/notify", m->abstract ? "@" : "", m->dir);
	memcpy(sun.sun_path, m->path, strlen(m->path));
	bytes = (socklen_t) (offsetof(struct sockaddr_un, sun_path) + strlen(m->path));
	if (m->abstract)
		sun.sun_path[0] = 0;
	m->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_true(m->sock >= 0);
	assert_int_equal(bind(m->sock, (struct sockaddr *) &sun, bytes), 0);
}

void manager_lose(struct manager *m, struct manager_entry *e)
{
	assert_non_null(e);
	close(e->fd);
	*e = m->kept[--m->n];
}

void manager_stop(struct manager *m)
{
	while (m->n)
		manager_lose(m, m->kept);
	close(m->sock);
	unlink(m->path);
	assert_int_equal(rmdir(m->dir), 0);
}

struct manager_entry *manager_find(struct manager *m, const char *name)
{
	for (unsigned int i = 0; i < m->n; i++)
		if (strncmp(m->kept[i].name, name, strlen(name)) == 0)
			return &m->kept[i];
	return NULL;
}

unsigned int manager_count(const struct manager *m, const char *prefix)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < m->n; i++)
		n += strncmp(m->kept[i].name, prefix, strlen(prefix)) == 0;
	return n;
}

void manager_put(struct manager *m, const char *name, int fd)
{
	struct manager_entry *e = &m->kept[m->n++];

	assert_true(m->n <= MANAGER_KEPT_MAX);
	e->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	assert_true(e->fd >= 0);
	snprintf(e->name, sizeof(e->name), "%s", name);
}

/* ---- what it does with messages ---- */

/* Does it have this open file description? */
static bool has(const struct manager *m, int fd)
{
	long same;

	for (unsigned int i = 0; i < m->n; i++) {
		same = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, fd, m->kept[i].fd);
		if (same == 0)
			return true;
	}
	return false;
}

static void remove_name(struct manager *m, const char *name)
{
	for (unsigned int i = m->n; i > 0 && !m->deaf_to_remove; i--) {
		if (strcmp(m->kept[i - 1].name, name) != 0)
			continue;
		manager_lose(m, &m->kept[i - 1]);
		m->removed++;
	}
}

/* The value of a line NAME=VALUE; NULL. */
static const char *value(const char *text, const char *name, char out[256])
{
	const char *at = text;

	while (at && strncmp(at, name, strlen(name)) != 0) {
		at = strchr(at, '\n');
		at = at ? at + 1 : NULL;
	}
	if (!at)
		return NULL;
	snprintf(out, 256, "%.*s", (int) strcspn(at + strlen(name), "\n"), at + strlen(name));
	return out;
}

/* What is to be closed at once, or -1. */
static int store(struct manager *m, const char *name, int fd)
{
	if (m->n >= m->limit) {
		m->refused++;
		assert_true(m->nclosing < MANAGER_KEPT_MAX);
		m->closing[m->nclosing++] = fd;
		return -1;
	}
	if (!strpbrk(name, ":") && !has(m, fd))
		manager_put(m, name, fd);
	return fd;
}

static void deal_with(struct manager *m, const char *text, int fd)
{
	char name[256], word[256];

	if (!value(text, "FDNAME=", name))
		snprintf(name, sizeof(name), "stored");
	if (value(text, "BARRIER=", word))
		m->barriers++;
	else if (value(text, "FDSTOREREMOVE=", word))
		remove_name(m, name);
	else if (value(text, "X_LOSE=", word)) /* as `systemctl clean --what=fdstore` does */
		for (; m->n; m->lost++)
			manager_lose(m, m->kept);
	else if (value(text, "FDSTORE=", word) && fd >= 0)
		fd = store(m, name, fd);
	if (fd >= 0)
		close(fd);
}

static bool receive(struct manager *m, bool deal)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	char text[4096];
	struct iovec iov = {text, sizeof(text) - 1};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(m->sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	struct cmsghdr *c = n >= 0 ? CMSG_FIRSTHDR(&msg) : NULL;
	int fd = -1;

	if (n < 0)
		return false;
	if (c)
		memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	text[n] = 0;
	deal_with(m, deal ? text : "", fd);
	return true;
}

/* ---- the service ---- */

static void shuffle(struct manager *m)
{
	for (unsigned int i = m->n; i > 1; i--) {
		unsigned int j = (unsigned int) rand_r(&m->seed) % i;
		struct manager_entry e = m->kept[i - 1];

		m->kept[i - 1] = m->kept[j];
		m->kept[j] = e;
	}
}

static void set(const char *variable, const char *text)
{
	if (text)
		setenv(variable, text, 1);
	else
		unsetenv(variable);
}

static void environment(const struct manager *m)
{
	static char names[MANAGER_KEPT_MAX * 260];
	char pid[16], n[16], limit[16];

	for (unsigned int i = 0; i < m->n; i++) {
		strcat(names, i ? ":" : "");
		strcat(names, m->kept[i].name);
	}
	snprintf(pid, sizeof(pid), "%d", (int) getpid());
	snprintf(n, sizeof(n), "%u", m->n);
	snprintf(limit, sizeof(limit), "%u", m->limit);
	set("LISTEN_PID", m->n || m->listen_fds ? pid : NULL);
	set("LISTEN_FDS", m->listen_fds ? m->listen_fds : m->n ? n : NULL);
	set("LISTEN_FDNAMES", m->n && !m->no_names ? names : NULL);
	set("NOTIFY_SOCKET", m->no_socket ? NULL : m->path);
	set("FDSTORE", m->no_fdstore ? NULL : limit);
	set("SYSTEMD_EXEC_PID", pid);
}

static _Noreturn void become_service(const struct manager *m, const char *script)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	environment(m);
	for (unsigned int i = 0; i < m->n; i++)
		if (fcntl(m->kept[i].fd, F_DUPFD, HIGH_FD + (int) i) < 0)
			_exit(99);
	for (int i = 0; i < (int) m->n; i++)
		dup2(HIGH_FD + i, FIRST_FD + i);
	close_range(FIRST_FD + m->n, ~0u, 0);
	execl("/proc/self/exe", "service", "--service", script, NULL);
	_exit(99);
}

int manager_run(struct manager *m, const char *script)
{
	struct pollfd p[2] = {{.fd = m->deaf ? -1 : m->sock, .events = POLLIN}, {.events = POLLIN}};
	int status, got;
	pid_t pid;

	shuffle(m);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		become_service(m, script);
	p[1].fd = (int) syscall(SYS_pidfd_open, pid, 0);
	assert_true(p[1].fd >= 0);
	while ((got = poll(p, 2, m->nclosing ? CLOSING_MS : -1)) >= 0 && !p[1].revents) {
		if (got)
			receive(m, true);
		else
			while (m->nclosing)
				close(m->closing[--m->nclosing]);
	}
	close(p[1].fd);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	while (receive(m, false))
		;
	while (m->nclosing)
		close(m->closing[--m->nclosing]);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}
