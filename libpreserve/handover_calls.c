/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The public calls that are about handing an open store over: each is one call of the backend under
 * handover_lock, so that they and a growth see each other as a whole.
 */
#include <errno.h>
#include <stdlib.h>

#include "handover.h"
#include "internal.h"

int pv_handover_prepare(struct pv_store *s)
{
	struct pvi_fd *fds;
	uint32_t n;
	int err;

	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	if (!s->handover->ops->prepare)
		return pvi_fail(-EOPNOTSUPP, "the %s backend does not carry a store across a kexec",
				s->handover->ops->name);
	pthread_mutex_lock(&s->handover_lock);
	n = s->nsegments;
	fds = calloc(n + 1, sizeof(*fds));
	if (!fds) {
		err = pvi_fail(-ENOMEM, "no memory");
	} else {
		fds[0] = (struct pvi_fd){.token = 0, .fd = s->index.fd};
		for (uint32_t i = 0; i < n; i++)
			fds[i + 1] = (struct pvi_fd){.token = i + 1ull, .fd = s->segments[i].fd};
		err = s->handover->ops->prepare(s->handover, fds, n + 1);
	}
	pthread_mutex_unlock(&s->handover_lock);
	free(fds);
	return err;
}

int pv_handover_cancel(struct pv_store *s)
{
	int err = 0;

	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	pthread_mutex_lock(&s->handover_lock);
	if (s->handover->ops->cancel)
		err = s->handover->ops->cancel(s->handover);
	pthread_mutex_unlock(&s->handover_lock);
	return err;
}

int pv_handover_check(struct pv_store *s)
{
	int rc = 0;

	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	pthread_mutex_lock(&s->handover_lock);
	if (s->handover->ops->check)
		rc = s->handover->ops->check(s->handover);
	pthread_mutex_unlock(&s->handover_lock);
	return rc;
}
