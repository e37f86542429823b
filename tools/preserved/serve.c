/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests about the store that a connection is bound to: the holder's protocol, with the holder's
 * rules. What changes something is refused with -ESTALE unless the sender knows what is kept. A
 * store that does not exist answers like a fresh holder; the first KEEP makes it.
 */
#include <errno.h>
#include <unistd.h>

#include "preserved.h"

static bool reply(const struct agent *a, const struct client *c, struct holder_msg *m, int fd)
{
	const struct store *s = store_find(a, c->store_uid, c->store);

	m->magic = HOLDER_MAGIC;
	m->version = HOLDER_VERSION;
	m->holder = s ? s->id : a->id;
	m->changes = s ? s->changes : 0;
	return client_send(c, m, sizeof(*m), fd);
}

static bool reply_status(const struct agent *a, const struct client *c, uint16_t op, int status)
{
	struct holder_msg m = {.op = op, .status = status};

	return reply(a, c, &m, -1);
}

static bool fetch(struct agent *a, struct client *c, uint64_t from)
{
	struct store *s = store_find(a, c->store_uid, c->store);
	unsigned int first = 0, n;
	bool last;

	if (!s)
		return reply_status(a, c, HOLDER_FETCH, -ENOENT);
	while (first < s->n && s->kept[first].token < from)
		first++;
	n = s->n - first < HOLDER_BURST ? s->n - first : HOLDER_BURST;
	last = first + n == s->n;
	for (unsigned int i = 0; i < n; i++) {
		const struct kept *k = &s->kept[first + i];
		struct holder_msg m = {
			.op = HOLDER_FETCH, .more = n - 1 - i + last, .token = k->token};
		bool sent;
		int fd = k->fd;

		/* A reader gets no session: with it he could change what the kernel preserves. */
		if (c->access == ACCESS_READ)
			fd = k->token >= HOLDER_TOKEN_RESERVED ? -EACCES : reopen(k->fd);
		if (fd < 0)
			return reply_status(a, c, HOLDER_FETCH, fd);
		sent = reply(a, c, &m, fd);
		if (fd != k->fd)
			close(fd);
		if (!sent)
			return false;
	}
	if (c->uid == s->uid && !c->internal)
		s->claimed = true;
	return !last || reply_status(a, c, HOLDER_FETCH, -ENOENT);
}

static int keep(struct agent *a, struct client *c, const struct holder_msg *m, int *fd)
{
	struct store *s = store_find(a, c->store_uid, c->store);
	const struct kept *old = s ? store_kept(s, m->token) : NULL;
	uint64_t bytes;
	int rc = verify(m->token, *fd, m->more, &bytes);

	if (!rc)
		rc = store_quota(a, c->store_uid, !s, !old,
				 old && old->bytes >= bytes ? 0 : bytes - (old ? old->bytes : 0));
	if (!rc && m->token == HOLDER_TOKEN_OUTGOING)
		rc = list_ready(a);
	if (rc)
		return rc;
	if (!s) {
		s = store_new(a, c->store_uid, c->gid, c->store);
		if (!s)
			return -ENOMEM;
		s->claimed = true;
	}
	rc = store_keep(a, s, m->token, *fd, bytes);
	if (rc == 0) {
		s->changes++;
		*fd = -1;
	} else if (s->n == 0) {
		store_remove(a, s);
	}
	return rc;
}

static void drop(struct agent *a, struct store *s, uint64_t token)
{
	if (!store_kept(s, token)) {
		s->changes++;
		return;
	}
	store_drop(a, s, token);
	s->changes++;
	if (s->n == 0)
		store_remove(a, s);
}

/** Does the sender know what is kept? Nothing of an operation is done if not. */
static bool up_to_date(const struct agent *a, const struct store *s, const struct holder_msg *m)
{
	if (m->op == HOLDER_FORGET && m->holder == 0)
		return true;
	return (m->holder == 0 || m->holder == (s ? s->id : a->id)) &&
	       m->changes == (s ? s->changes : 0);
}

static int change(struct agent *a, struct client *c, const struct holder_msg *m, int *fd)
{
	struct store *s = store_find(a, c->store_uid, c->store);

	if (c->access != ACCESS_FULL)
		return -EACCES;
	if (!up_to_date(a, s, m))
		return -ESTALE;
	/* The worker would bring it back. */
	if (s && m->op == HOLDER_FORGET && job_runs(s))
		return -EBUSY;
	if (m->op == HOLDER_KEEP)
		return keep(a, c, m, fd);
	if (s && m->op == HOLDER_DROP)
		drop(a, s, m->token);
	else if (s)
		store_remove(a, s);
	return 0;
}

bool serve(struct agent *a, struct client *c, const struct holder_msg *m, int *fd, bool cut)
{
	const struct store *s = store_find(a, c->store_uid, c->store);
	struct holder_msg status = {.op = m->op};

	/* A reader's leave may have been taken back. */
	if (store_access(a, c->uid, c->gid, c->store_uid, s) < c->access)
		return reply_status(a, c, m->op, -EACCES);
	if ((m->op == HOLDER_KEEP) != (*fd >= 0))
		return reply_status(a, c, m->op, m->op == HOLDER_KEEP && cut ? -EMFILE : -EINVAL);
	switch (m->op) {
	case HOLDER_STATUS:
		status.more = s ? s->n : 0;
		status.token = (uint64_t)getpid();
		return reply(a, c, &status, -1);
	case HOLDER_FETCH:
		return fetch(a, c, m->token);
	case HOLDER_KEEP:
	case HOLDER_DROP:
	case HOLDER_FORGET:
		status.status = change(a, c, m, fd);
		return reply(a, c, &status, -1);
	default:
		return reply_status(a, c, m->op, -EOPNOTSUPP);
	}
}
