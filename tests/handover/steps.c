/* SPDX-License-Identifier: BSD-3-Clause */
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/un.h>
#include <unistd.h>

#include "holder_client.h"
#include "luo.h"
#include "steps.h"

static unsigned int count, wanted;
static enum step_action act;
const char *steps_socket;

void steps_arm(unsigned int number, enum step_action action)
{
	count = 0;
	wanted = number;
	act = action;
}

unsigned int steps_count(void)
{
	return count;
}

/** Who listens at the socket is killed, and the end of that awaited. No holder: nothing to do. */
static void kill_holder(void)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};

	strncpy(sun.sun_path, steps_socket, sizeof(sun.sun_path) - 1);
	for (;;) {
		struct ucred peer = {0, 0, 0};
		socklen_t bytes = sizeof(peer);
		int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		int rc = connect(sock, (struct sockaddr *)&sun, sizeof(sun));

		if (rc == 0)
			getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &bytes);
		close(sock);
		if (rc)
			return;
		/* Until the holder has called listen() itself, the peer is who started it. */
		if (peer.pid > 0 && peer.pid != getpid())
			kill(peer.pid, SIGKILL);
		usleep(1000);
	}
}

static void step(void)
{
	if (++count != wanted)
		return;
	if (act == STEP_KILL) {
		kill_holder();
		return;
	}
	if (act == STEP_DIE)
		raise(SIGKILL);
	for (;;)
		pause();
}

/* clang-format off */
#define WRAP(type, name, parameters, arguments)                                                    \
	type __real_##name parameters;                                                             \
	type __wrap_##name parameters;                                                             \
	type __wrap_##name parameters                                                              \
	{                                                                                          \
		type rc;                                                                           \
                                                                                                   \
		step();                                                                            \
		rc = __real_##name arguments;                                                      \
		step();                                                                            \
		return rc;                                                                         \
	}

WRAP(int, pvi_luo_create, (int device, const char *name, int *session), (device, name, session))
WRAP(int, pvi_luo_preserve, (int session, uint64_t token, int fd), (session, token, fd))
WRAP(int, pvi_luo_retrieve, (int session, uint64_t token, int *fd), (session, token, fd))
WRAP(int, pvi_luo_finish, (int session), (session))
WRAP(int, pvi_holder_ask,
     (const struct pvi_holder_place *place, int sock, struct holder_msg *m, int fd, int *fd_out),
     (place, sock, m, fd, fd_out))
WRAP(ssize_t, pwrite64, (int fd, const void *buf, size_t n, off_t at), (fd, buf, n, at))
