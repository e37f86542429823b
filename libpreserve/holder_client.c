/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The library's end of the conversation with a holder (holder_proto.h).
 *
 * The socket is DIR/NAME.sock. DIR belongs to this user alone, which is checked at every use (on
 * the opened directory, so that it cannot be swapped in between), and the peer must be the same
 * user as well.
 *
 * Who starts a holder holds a lock on DIR (flock) while it looks once more, removes a socket nobody
 * listens at, binds its own and starts the program. A holder that ends removes its socket while it
 * is still listening. So a path at which connecting is refused is always a dead holder's, and two
 * starters end up with one holder. The socket listens before the program runs: no one has to wait
 * for it to be ready.
 *
 * Nothing here waits longer than PVI_HOLDER_WAIT_MS.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "error.h"
#include "rights.h"

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void pause_ms(long ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&t, NULL);
}

/* ---- the directory ---- */

/** Is there a directory of this user at the path? */
static bool own_dir(const char *path)
{
	struct stat st;

	return path && path[0] == '/' && stat(path, &st) == 0 && S_ISDIR(st.st_mode) &&
	       st.st_uid == geteuid();
}

int pvi_holder_place_init(struct pvi_holder_place *place, const char *store_name,
			  const struct pv_options *opts)
{
	const char *xdg = secure_getenv("XDG_RUNTIME_DIR");
	unsigned int uid = geteuid();
	int rc;

	*place = (struct pvi_holder_place){.uid = uid};
	rc = snprintf(place->name, sizeof(place->name), "%s", store_name);
	if (rc >= (int)sizeof(place->name))
		return pvi_fail(-EINVAL, "store name %s is too long", store_name);
	if (opts->runtime_dir) {
		/* Absolute: the application may change its directory. */
		char *here = opts->runtime_dir[0] == '/' ? NULL : getcwd(NULL, 0);

		if (opts->runtime_dir[0] != '/' && !here)
			return pvi_fail(-errno,
					"runtime_dir %s is relative to a directory that "
					"cannot be found: %s",
					opts->runtime_dir, strerror(errno));
		rc = asprintf(&place->dir, "%s%s%s", here ? here : "", here ? "/" : "",
			      opts->runtime_dir);
		free(here);
	} else if (own_dir(xdg)) {
		rc = asprintf(&place->dir, "%s/libpreserve", xdg);
	} else if (uid == 0) {
		rc = asprintf(&place->dir, "/run/libpreserve");
	} else {
		rc = asprintf(&place->dir, "/tmp/libpreserve-%u", uid);
	}
	if (rc < 0) {
		place->dir = NULL;
		return pvi_fail(-ENOMEM, "no memory for a path");
	}
	return 0;
}

void pvi_holder_place_free(struct pvi_holder_place *place)
{
	free(place->dir);
	free(place->agent);
	place->dir = place->agent = NULL;
}

/** Not one of the three that programs expect to be something else. Takes fd over. */
static int above_stdio(int fd)
{
	int moved;

	if (fd < 0 || fd > 2)
		return fd;
	moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	close(fd);
	return moved;
}

static int dir_verify(const char *dir, int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return pvi_fail(-errno, "runtime directory %s: %s", dir, strerror(errno));
	if (st.st_uid != geteuid())
		return pvi_fail(-EACCES, "runtime directory %s belongs to user %u, not to user %u",
				dir, st.st_uid, geteuid());
	if ((st.st_mode & 0777) != 0700)
		return pvi_fail(-EACCES, "runtime directory %s has mode %04o, it must be 0700", dir,
				st.st_mode & 0777);
	return 0;
}

/** Opens the directory and checks whose it is. Returns the descriptor. */
static int dir_open(const struct pvi_holder_place *place, bool create)
{
	const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
	int fd = open(place->dir, flags);
	int rc;

	if (fd < 0 && errno == ENOENT && create) {
		if (mkdir(place->dir, 0700) && errno != EEXIST)
			return pvi_fail(-errno, "cannot make runtime directory %s: %s", place->dir,
					strerror(errno));
		fd = open(place->dir, flags);
	}
	if (fd < 0 && (errno == ELOOP || errno == ENOTDIR))
		return pvi_fail(-EACCES, "runtime directory %s is not a directory", place->dir);
	fd = above_stdio(fd);
	if (fd < 0)
		return pvi_fail(-errno, "cannot open runtime directory %s: %s", place->dir,
				strerror(errno));
	rc = dir_verify(place->dir, fd);
	if (rc) {
		close(fd);
		return rc;
	}
	return fd;
}

int pvi_holder_dir(const struct pvi_holder_place *place)
{
	return dir_open(place, false);
}

/** The holder removes its socket by this path, and an operator sees it. */
static int socket_path(const struct pvi_holder_place *place, int dir, char *path, size_t bytes)
{
	char link[32];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", dir);
	n = readlink(link, path, bytes - 1);
	if (n < 0)
		return pvi_fail(-errno, "cannot read %s (is /proc mounted?): %s", link,
				strerror(errno));
	path[n] = 0;
	if ((size_t)n + strlen(place->name) + sizeof("/.sock") > bytes)
		return pvi_fail(-ENAMETOOLONG, "the path of the runtime directory is too long: %s",
				path);
	snprintf(path + n, bytes - (size_t)n, "/%s.sock", place->name);
	return 0;
}

/** Paths too long for a socket address are reached by way of the directory's descriptor. */
static void address(const struct pvi_holder_place *place, int dir, const char *path,
		    struct sockaddr_un *sun)
{
	memset(sun, 0, sizeof(*sun));
	sun->sun_family = AF_UNIX;
	if (strlen(path) < sizeof(sun->sun_path))
		memcpy(sun->sun_path, path, strlen(path));
	else
		snprintf(sun->sun_path, sizeof(sun->sun_path), "/proc/self/fd/%d/%.*s.sock", dir,
			 HOLDER_NAME_MAX - 1, place->name);
}

/* ---- connecting ---- */

static int peer_verify(const struct pvi_holder_place *place, int sock)
{
	struct ucred peer;
	socklen_t bytes = sizeof(peer);

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &bytes))
		return pvi_fail(-errno, "cannot tell whose the holder of store %s is: %s",
				place->name, strerror(errno));
	if (peer.uid != geteuid())
		return pvi_fail(-EACCES,
				"the holder of store %s (process %d) is of user %u, not of user %u",
				place->name, peer.pid, peer.uid, geteuid());
	return 0;
}

static int socket_new(void)
{
	int fd = above_stdio(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));

	return fd < 0 ? pvi_fail(-errno, "cannot make a socket: %s", strerror(errno)) : fd;
}

/** -ENOENT: there is no socket. -ECONNREFUSED: nobody listens at it. */
static int try_connect(const struct pvi_holder_place *place, const struct sockaddr_un *sun,
		       int *out)
{
	int64_t deadline = now_ms() + PVI_HOLDER_WAIT_MS;
	int rc, fd = socket_new();

	if (fd < 0)
		return fd;
	/* -EAGAIN: its queue is full, so it is slow or hangs. */
	while ((rc = connect(fd, (const struct sockaddr *)sun, sizeof(*sun)) ? -errno : 0) != 0) {
		if (rc != -EAGAIN && rc != -EINTR)
			break;
		if (now_ms() >= deadline) {
			rc = pvi_fail(-ETIMEDOUT,
				      "the holder of store %s at %s takes no connection",
				      place->name, sun->sun_path);
			break;
		}
		pause_ms(5);
	}
	if (rc == -ENOENT)
		pvi_fail(rc, "no holder keeps store %s: there is no socket %s", place->name,
			 sun->sun_path);
	else if (rc == -ECONNREFUSED)
		pvi_fail(rc, "the holder of store %s at %s has ended", place->name, sun->sun_path);
	else if (rc && rc != -ETIMEDOUT)
		pvi_fail(rc, "cannot connect to the holder of store %s at %s: %s", place->name,
			 sun->sun_path, strerror(-rc));
	if (!rc)
		rc = peer_verify(place, fd);
	if (rc) {
		close(fd);
		return rc;
	}
	*out = fd;
	return 0;
}

/** Binds the socket in place of a dead one and starts the holder. The directory is locked. */
static int start_locked(const struct pvi_holder_place *place, const char *path,
			const struct sockaddr_un *sun)
{
	int rc, fd;

	if (unlink(sun->sun_path) && errno != ENOENT)
		return pvi_fail(-errno, "cannot remove the socket of a dead holder, %s: %s", path,
				strerror(errno));
	fd = socket_new();
	if (fd < 0)
		return fd;
	/* The socket's own mode becomes that of the path. */
	if (fchmod(fd, 0600) || bind(fd, (const struct sockaddr *)sun, sizeof(*sun)) ||
	    listen(fd, 64)) {
		rc = pvi_fail(-errno, "cannot listen at %s: %s", path, strerror(errno));
	} else {
		rc = pvi_holder_spawn(place->name, path, fd);
		if (rc)
			unlink(sun->sun_path);
	}
	close(fd);
	return rc;
}

static int lock(const struct pvi_holder_place *place, int dir)
{
	int64_t deadline = now_ms() + PVI_HOLDER_WAIT_MS;

	while (flock(dir, LOCK_EX | LOCK_NB)) {
		if (errno != EWOULDBLOCK && errno != EINTR)
			return pvi_fail(-errno, "cannot lock %s: %s", place->dir, strerror(errno));
		if (now_ms() >= deadline)
			return pvi_fail(-ETIMEDOUT,
					"another process holds the lock on %s and does not let go",
					place->dir);
		pause_ms(2);
	}
	return 0;
}

int pvi_holder_dial(const struct pvi_holder_place *place, bool start, int *sock, bool *started)
{
	struct sockaddr_un sun;
	char path[PATH_MAX];
	int dir, rc;

	*started = false;
	if (place->agent)
		return pvi_agent_dial(place, sock);
	dir = dir_open(place, start);
	if (dir == -ENOENT && !start)
		return pvi_fail(-ENOENT, "no holder keeps store %s: there is no directory %s",
				place->name, place->dir);
	if (dir < 0)
		return dir;
	rc = socket_path(place, dir, path, sizeof(path));
	if (rc)
		goto out;
	address(place, dir, path, &sun);
	rc = try_connect(place, &sun, sock);
	if (start && (rc == -ENOENT || rc == -ECONNREFUSED)) {
		rc = lock(place, dir);
		if (!rc) {
			rc = try_connect(place, &sun, sock);
			if (rc == -ENOENT || rc == -ECONNREFUSED) {
				rc = start_locked(place, path, &sun);
				*started = rc == 0;
				if (!rc)
					rc = try_connect(place, &sun, sock);
			}
			/* Closing is not enough while a forked child has a copy. */
			flock(dir, LOCK_UN);
		}
	} else if (rc == -ECONNREFUSED) {
		rc = pvi_fail(rc,
			      "the holder of store %s at %s has died, what it kept is lost",
			      place->name, path);
	}
out:
	close(dir);
	return rc;
}

/* ---- talking ---- */

static int wait_for(const struct pvi_holder_place *place, int sock, short events, int64_t deadline)
{
	struct pollfd p = {sock, events, 0};

	for (;;) {
		int64_t left = deadline - now_ms();
		int rc = poll(&p, 1, left > 0 ? (int)left : 0);

		if (rc > 0)
			return 0;
		if (rc < 0 && errno != EINTR)
			return pvi_fail(-errno, "poll: %s", strerror(errno));
		if (left <= 0)
			return pvi_fail(-ETIMEDOUT,
					"the holder of store %s has not answered for %d s",
					place->name, PVI_HOLDER_WAIT_MS / 1000);
	}
}

static int gone(const struct pvi_holder_place *place)
{
	return pvi_fail(-ECONNRESET, "the holder of store %s went away", place->name);
}

static int say(const struct pvi_holder_place *place, int sock, struct holder_msg *m, int fd,
	       int64_t deadline)
{
	union pvi_rights control;
	struct iovec iov = {m, sizeof(*m)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	m->magic = HOLDER_MAGIC;
	m->version = HOLDER_VERSION;
	m->status = 0;
	pvi_rights_put(&msg, &control, fd);
	while (sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
		int rc;

		if (errno == EPIPE || errno == ECONNRESET)
			return gone(place);
		if (errno != EAGAIN && errno != EINTR)
			return pvi_fail(-errno, "cannot send to the holder of store %s: %s",
					place->name, strerror(errno));
		rc = errno == EINTR ? 0 : wait_for(place, sock, POLLOUT, deadline);
		if (rc)
			return rc;
	}
	return 0;
}

static void surplus(int fd)
{
	close(fd);
}

int pvi_holder_hear(const struct pvi_holder_place *place, int sock, uint16_t op,
		    struct holder_msg *m, int *fd_out)
{
	int64_t deadline = now_ms() + PVI_HOLDER_WAIT_MS;
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct holder_msg got;
	struct iovec iov = {&got, sizeof(got)};
	struct msghdr msg;
	unsigned int nfds;
	ssize_t n;
	int fd;

	for (;;) {
		int rc;

		msg = (struct msghdr){.msg_iov = &iov,
				      .msg_iovlen = 1,
				      .msg_control = &control,
				      .msg_controllen = sizeof(control)};
		n = recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (n >= 0)
			break;
		if (errno == ECONNRESET)
			return gone(place);
		if (errno != EAGAIN && errno != EINTR)
			return pvi_fail(-errno, "cannot receive from the holder of store %s: %s",
					place->name, strerror(errno));
		rc = wait_for(place, sock, POLLIN, deadline);
		if (rc)
			return rc;
	}
	nfds = pvi_rights_take(&msg, &fd, surplus);
	if (n == 0 && nfds == 0)
		return gone(place);
	if (n != sizeof(got) || (msg.msg_flags & MSG_TRUNC) || got.magic != HOLDER_MAGIC ||
	    got.version != HOLDER_VERSION || got.op != op || nfds > (fd_out ? 1 : 0)) {
		if (fd >= 0)
			close(fd);
		if (n == sizeof(got) && got.magic == HOLDER_MAGIC && got.version != HOLDER_VERSION)
			return pvi_fail(-EPROTONOSUPPORT,
					"the holder of store %s speaks version %u, this library %u",
					place->name, got.version, HOLDER_VERSION);
		return pvi_fail(-EPROTO, "the holder of store %s sent something malformed",
				place->name);
	}
	if ((msg.msg_flags & MSG_CTRUNC) && got.status == 0)
		return pvi_fail(-EMFILE,
				"no room for the descriptors of store %s: raise RLIMIT_NOFILE",
				place->name);
	if (fd_out)
		*fd_out = fd;
	*m = got;
	return 0;
}

int pvi_holder_ask(const struct pvi_holder_place *place, int sock, struct holder_msg *m, int fd,
		   int *fd_out)
{
	int64_t deadline = now_ms() + PVI_HOLDER_WAIT_MS;
	int rc = say(place, sock, m, fd, deadline);

	return rc ? rc : pvi_holder_hear(place, sock, m->op, m, fd_out);
}
