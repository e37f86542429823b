/* SPDX-License-Identifier: BSD-3-Clause */
/* An agent that keeps nothing yet, and the end of one; and what is to be done for its process. Used
 * by main.c, the guard and tests. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "preserved.h"

int agent_init(struct agent *a)
{
	struct rlimit files;

	a->listener = a->signals = a->lock = a->list_session = a->list_memfd = -1;
	a->id = random_id();
	if (getrlimit(RLIMIT_NOFILE, &files))
		return -errno;
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	a->files_max = files.rlim_cur;
	a->clients_max =
		a->files_max / 8 < CLIENTS_MAX ? (unsigned int)(a->files_max / 8) : CLIENTS_MAX;
	return 0;
}

void agent_free(struct agent *a)
{
	while (a->nclients)
		client_remove(a, a->nclients - 1);
	while (a->nstores)
		store_remove(a, a->stores[a->nstores - 1]);
	free(a->stores);
	a->stores = NULL;
}

/** Killing it would free no memory while applications live, and lose data afterwards. */
void process_protect(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		(void)!write(fd, "-1000", 5);
		close(fd);
	}
	/* No core, no debugger but root's: its descriptors are those of all users. */
	prctl(PR_SET_DUMPABLE, 0);
}
