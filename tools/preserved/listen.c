/* SPDX-License-Identifier: BSD-3-Clause */
/* The socket, where systemd does not make it, and signals: of the agent, or of its guard. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "preserved.h"

#define BACKLOG 128

static int lock_socket(const struct config *c)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s", c->socket);
	if (mkdir(dirname(path), 0755) && errno != EEXIST) {
		log_error("cannot make the directory of %s: %s", c->socket, strerror(errno));
		return -errno;
	}
	snprintf(path, sizeof(path), "%s.lock", c->socket);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0) {
		log_error("cannot open %s: %s", path, strerror(errno));
		return -errno;
	}
	if (flock(fd, LOCK_EX | LOCK_NB)) {
		log_error("another agent serves %s", c->socket);
		close(fd);
		return -EBUSY;
	}
	return fd;
}

/* Every user may connect; what he gets is decided by who he is. */
int listen_at(const struct config *c, int *lock)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	int fd;

	*lock = lock_socket(c);
	if (*lock < 0)
		return *lock;
	memcpy(sun.sun_path, c->socket, strlen(c->socket));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	unlink(c->socket);
	if (fd < 0 || fchmod(fd, 0666) || bind(fd, (struct sockaddr *)&sun, sizeof(sun)) ||
	    chmod(c->socket, 0666) || listen(fd, BACKLOG)) {
		log_error("cannot listen at %s: %s", c->socket, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -errno;
	}
	return fd;
}

int signals_take(void)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_SETMASK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_DFL);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}
