/* SPDX-License-Identifier: BSD-3-Clause */
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include "holder_client.h"
#include "luo.h"
#include "steps.h"

static unsigned int count, wanted;
static enum step_action act;

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

static void step(void)
{
	if (++count != wanted)
		return;
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
