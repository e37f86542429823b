/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who keeps the descriptors. The worker sends each to the driver through a socket, where it
 * survives the worker: a message that was sent is kept, as with a real holder. The driver looks
 * after the death.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storm.h"

struct message {
	uint64_t what;
	uint64_t token;
};

int storm_keeper_init(struct storm_keeper *k)
{
	int bytes = 4 << 20;

	memset(k, 0, sizeof(*k));
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, k->sockets))
		return -errno;
	/* A worker must not have to wait here for a driver that waits for its death. */
	setsockopt(k->sockets[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
	return 0;
}

static void forget(struct storm_keeper *k, uint64_t token)
{
	for (uint32_t i = 0; i < k->n; i++) {
		if (k->tokens[i] != token)
			continue;
		close(k->fds[i]);
		k->n--;
		k->fds[i] = k->fds[k->n];
		k->tokens[i--] = k->tokens[k->n];
	}
}

/* fd is ours from here on. */
static int remember(struct storm_keeper *k, uint64_t token, int fd)
{
	forget(k, token);
	if (k->n == STORM_FDS) {
		close(fd);
		return -EMFILE;
	}
	k->fds[k->n] = fd;
	k->tokens[k->n++] = token;
	return 0;
}

static int send_message(int socket, const struct message *m, int fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)m, .iov_len = sizeof(*m)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (fd >= 0) {
		msg.msg_control = control.room;
		msg.msg_controllen = sizeof(control.room);
		control.header = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)),
						  .cmsg_level = SOL_SOCKET,
						  .cmsg_type = SCM_RIGHTS};
		memcpy(CMSG_DATA(&control.header), &fd, sizeof(fd));
	}
	return sendmsg(socket, &msg, MSG_NOSIGNAL) == sizeof(*m) ? 0 : -errno;
}

int storm_keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	struct storm_keeper *k = ctx;
	int dup;

	k->drops += what == PV_KEEP_DROP;
	if (k->in_worker)
		return send_message(k->sockets[0], &(struct message){what, token},
				    what == PV_KEEP_ADD ? fd : -1);
	if (what == PV_KEEP_DROP) {
		forget(k, token);
		return 0;
	}
	dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return dup < 0 ? -errno : remember(k, token, dup);
}

static int receive_message(int socket, struct message *m, int *fd)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {0};
	struct iovec iov = {.iov_base = m, .iov_len = sizeof(*m)};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control.room,
			     .msg_controllen = sizeof(control.room)};
	ssize_t n = recvmsg(socket, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0)
		return -errno;
	*fd = -1;
	if (CMSG_FIRSTHDR(&msg))
		memcpy(fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(*fd));
	return n == sizeof(*m) ? 0 : -EPROTO;
}

int storm_keeper_receive(struct storm_keeper *k)
{
	struct message m;
	int fd = -1, err;

	while (!(err = receive_message(k->sockets[1], &m, &fd))) {
		if (m.what == PV_KEEP_ADD) {
			err = fd < 0 ? -EBADF : remember(k, m.token, fd);
			if (err)
				return err;
		} else {
			forget(k, m.token);
		}
	}
	return err == -EAGAIN ? 0 : err;
}

void storm_keeper_clear(struct storm_keeper *k)
{
	while (k->n)
		forget(k, k->tokens[0]);
}
