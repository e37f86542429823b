/* SPDX-License-Identifier: BSD-3-Clause */
/* An agent that keeps nothing yet, and the end of one. Used by main.c and by tests. */
#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>

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
	a->clients_max = a->files_max / 8 < CLIENTS_MAX ? (unsigned int) (a->files_max / 8)
							: CLIENTS_MAX;
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
