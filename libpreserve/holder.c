/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Handover backends `holder` and `luo`. Both keep the descriptors in a holder process, and `luo`
 * can also make a LUO session of them (prepare) and find the one that the last kernel left (fetch).
 *
 * A session that exists is respected by both: a store that `luo` has prepared can be opened with
 * `holder`, stays prepared, takes its new segments into the session, and can be cancelled.
 *
 * A store opened read-only changes nothing: it looks at what the holder keeps, and does not take
 * over a session.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "holder.h"
#include "session.h"

static bool is_luo(const struct pvi_keeper *k)
{
	return k->base.ops->kind == PV_HANDOVER_LUO;
}

static int take_over(struct pvi_keeper *k)
{
	if (k->opts->flags & PV_RDONLY)
		return pvi_fail(-EBUSY,
				"store %s came through a kexec and has not been taken over yet: "
				"open it for writing first",
				k->place.name);
	return pvi_session_take_over(k);
}

static bool incoming(const struct pvi_keeper *k)
{
	return pvi_keeper_find(k, HOLDER_TOKEN_INCOMING) >= 0;
}

/** Once through. -ESTALE: another process came in between. */
static int collect(struct pvi_keeper *k)
{
	char *message;
	int rc = pvi_keeper_load(k);

	if (rc == -ENOENT && is_luo(k) && !(k->opts->flags & PV_RDONLY))
		rc = pvi_session_find(k);
	if (rc || !incoming(k))
		return rc;
	rc = take_over(k);
	if (rc == 0 || rc == -ESTALE)
		return rc;
	/* Whoever was faster may have finished the session under our hands. */
	message = strdup(pv_last_error());
	if (pvi_keeper_changed(k) > 0)
		rc = -ESTALE;
	else if (message)
		pvi_fail(rc, "%s", message);
	free(message);
	return rc;
}

int pvi_holder_fetch(struct pvi_handover *h, struct pvi_fd **fds, unsigned int *n,
		     bool *from_kexec)
{
	struct pvi_keeper *k = pvi_keeper_of(h);
	unsigned int attempts = 0;
	int rc;

	/* Each time it is another's progress that stops us, and there is an end to that. */
	k->shared = true;
	do
		rc = collect(k);
	while (rc == -ESTALE && ++attempts < 2 * HOLDER_FDS_MAX);
	k->shared = false;
	if (rc == -ESTALE)
		return pvi_fail(-EBUSY, "other processes keep changing what is kept of store %s",
				k->place.name);
	if (!rc)
		rc = pvi_keeper_hand_out(k, fds, n);
	if (!rc)
		*from_kexec = incoming(k);
	return rc;
}

int pvi_holder_changed(struct pvi_handover *h)
{
	return pvi_keeper_changed(pvi_keeper_of(h));
}

int pvi_holder_keep(struct pvi_handover *h, uint64_t token, int fd)
{
	struct pvi_keeper *k = pvi_keeper_of(h);
	int rc;

	if (token >= HOLDER_TOKEN_RESERVED)
		return pvi_fail(-EINVAL, "token %" PRIu64 " is reserved", token);
	rc = pvi_keeper_keep(k, token, fd);
	if (rc || h->state != PV_STATE_PREPARED)
		return rc;
	rc = pvi_session_join(k, token, fd);
	if (rc)
		pvi_keeper_drop_quietly(k, token, rc);
	return rc;
}

int pvi_holder_drop(struct pvi_handover *h, uint64_t token)
{
	struct pvi_keeper *k = pvi_keeper_of(h);
	int rc = 0;

	if (h->state == PV_STATE_PREPARED)
		rc = pvi_session_leave(k, token);
	return rc ? rc : pvi_keeper_drop(k, token);
}

int pvi_holder_finish(struct pvi_handover *h)
{
	return pvi_session_finish(pvi_keeper_of(h));
}

static int holder_preserve(struct pvi_handover *h, const struct pvi_fd *fds, unsigned int n)
{
	return pvi_session_preserve(pvi_keeper_of(h), fds, n);
}

static int holder_prepare(struct pvi_handover *h, const struct pvi_fd *fds, unsigned int n)
{
	return pvi_session_prepare(pvi_keeper_of(h), fds, n);
}

static int holder_cancel(struct pvi_handover *h)
{
	return pvi_session_cancel(pvi_keeper_of(h));
}

static int holder_check(struct pvi_handover *h)
{
	return pvi_keeper_check(pvi_keeper_of(h));
}

int pvi_holder_forget(struct pvi_handover *h)
{
	struct pvi_keeper *k = pvi_keeper_of(h);
	int rc = pvi_keeper_forget(k);

	/* A session that was never looked for would bring the data back. */
	return rc || !is_luo(k) ? rc : pvi_session_discard(k);
}

void pvi_holder_close(struct pvi_handover *h)
{
	pvi_session_abandon(pvi_keeper_of(h));
	pvi_keeper_close(pvi_keeper_of(h));
}

static const struct pvi_handover_ops holder_ops = {
	.name = "holder",
	.kind = PV_HANDOVER_HOLDER,
	.fetch = pvi_holder_fetch,
	.changed = pvi_holder_changed,
	.keep = pvi_holder_keep,
	.drop = pvi_holder_drop,
	.finish = pvi_holder_finish,
	.cancel = holder_cancel,
	.check = holder_check,
	.forget = pvi_holder_forget,
	.close = pvi_holder_close,
};

static const struct pvi_handover_ops luo_ops = {
	.name = "luo",
	.kind = PV_HANDOVER_LUO,
	.fetch = pvi_holder_fetch,
	.changed = pvi_holder_changed,
	.keep = pvi_holder_keep,
	.drop = pvi_holder_drop,
	.finish = pvi_holder_finish,
	.prepare = holder_prepare,
	.preserve = holder_preserve,
	.cancel = holder_cancel,
	.check = holder_check,
	.forget = pvi_holder_forget,
	.close = pvi_holder_close,
};

int pvi_holder_open(const char *store_name, const struct pv_options *opts,
		    struct pvi_handover **out)
{
	return pvi_keeper_open(store_name, opts, &holder_ops, out);
}

int pvi_luo_open(const char *store_name, const struct pv_options *opts, struct pvi_handover **out)
{
	int rc = pvi_luo_available();

	if (!rc)
		rc = pvi_keeper_open(store_name, opts, &luo_ops, out);
	if (!rc)
		pvi_keeper_of(*out)->held = true;
	return rc;
}
