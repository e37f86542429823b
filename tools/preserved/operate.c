/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests of the agent's own protocol: binding a connection to a store, and what concerns stores
 * as a whole. What takes time (prepare, cancel, finish) is begun here and goes on in job.c.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "preserved.h"

bool answer(const struct client *c, struct agent_msg *m, int status)
{
	m->magic = AGENT_MAGIC;
	m->version = AGENT_VERSION;
	m->status = status;
	return client_send(c, m, sizeof(*m), -1);
}

static bool open_store(struct agent *a, struct client *c, struct agent_msg *m)
{
	const struct store *s = store_find(a, m->uid, m->store);
	enum access access = store_access(a, c->uid, c->gid, m->uid, s);

	if (access == ACCESS_NONE)
		return answer(c, m, -EACCES);
	c->access = access;
	c->store_uid = m->uid;
	memcpy(c->store, m->store, sizeof(c->store));
	c->internal = (m->flags & AGENT_INTERNAL) && (c->uid == geteuid() || c->uid == 0);
	m->mode = access == ACCESS_FULL ? 0600 : 0400;
	return answer(c, m, 0);
}

static uint32_t flags_of(const struct store *s)
{
	return (store_open(s) == 1 ? AGENT_IS_OPEN : 0) |
	       (store_kept(s, HOLDER_TOKEN_OUTGOING) ? AGENT_IS_PREPARED : 0) |
	       (store_kept(s, HOLDER_TOKEN_INCOMING) ? AGENT_IS_INCOMING : 0) |
	       (s->claimed ? AGENT_IS_CLAIMED : 0);
}

static bool visible(const struct agent *a, const struct client *c, const struct store *s)
{
	return store_access(a, c->uid, c->gid, s->uid, s) != ACCESS_NONE;
}

static bool list(struct agent *a, struct client *c, const struct agent_msg *m)
{
	unsigned int first = 0, found[AGENT_BURST], n = 0, i;
	struct agent_msg end = {.op = AGENT_LIST};
	bool last;

	if (m->flags & AGENT_AFTER)
		first = store_place(a, m->uid, m->store, false);
	for (i = first; i < a->nstores && n < AGENT_BURST; i++)
		if (visible(a, c, a->stores[i]))
			found[n++] = i;
	last = i == a->nstores;
	for (unsigned int k = 0; k < n; k++) {
		const struct store *s = a->stores[found[k]];
		struct agent_msg entry = {
			.op = AGENT_LIST,
			.more = n - 1 - k + last,
			.uid = s->uid,
			.gid = s->gid,
			.mode = s->mode,
			.flags = flags_of(s),
			.descriptors = s->n,
			.bytes = s->bytes,
		};

		memcpy(entry.store, s->name, sizeof(entry.store));
		if (!answer(c, &entry, 0))
			return false;
	}
	return !last || answer(c, &end, -ENOENT);
}

static int drop(struct agent *a, struct store *s, uint32_t flags)
{
	if (job_runs(s))
		return -EBUSY;
	if (!(flags & AGENT_FORCE) && store_open(s) != 0)
		return -EBUSY;
	log_notice("store %s of user %u is dropped on request", s->name, s->uid);
	store_remove(a, s);
	return 0;
}

/* The name in systemd's descriptor store says the mode. */
static int set_mode(struct store *s, uint32_t mode)
{
	if (!store_mode_valid(mode))
		return -EINVAL;
	for (unsigned int i = 0; i < s->n; i++)
		notify_remove(s, s->kept[i].token);
	s->mode = mode;
	for (unsigned int i = 0; i < s->n; i++)
		notify_store(s, &s->kept[i]);
	return 0;
}

static bool wanted(struct agent *a, struct client *c, struct agent_msg *m)
{
	const struct store *s = store_find(a, c->store_uid, c->store);

	m->flags = 0;
	if (c->access != ACCESS_FULL)
		return answer(c, m, -EACCES);
	if (s && s->job.op && !job_runs(s))
		m->flags = s->job.op;
	return answer(c, m, 0);
}

/** One that is about an existing store that the sender may change. */
static bool about_store(struct agent *a, struct client *c, struct agent_msg *m)
{
	struct store *s = store_find(a, m->uid, m->store);
	int rc;

	if (!s || !visible(a, c, s))
		return answer(c, m, -ENOENT);
	if (store_access(a, c->uid, c->gid, s->uid, s) != ACCESS_FULL)
		return answer(c, m, -EACCES);
	if (m->op == AGENT_DROP)
		return answer(c, m, drop(a, s, m->flags));
	if (m->op == AGENT_MODE)
		return answer(c, m, set_mode(s, m->mode));
	rc = job_begin(a, c, s, m);
	return rc > 0 || answer(c, m, rc);
}

bool operate(struct agent *a, struct client *c, struct agent_msg *m)
{
	if (m->uid == AGENT_UID_SELF)
		m->uid = c->uid;
	switch (m->op) {
	case AGENT_LIST:
		m->store[sizeof(m->store) - 1] = 0;
		return list(a, c, m);
	case AGENT_WANTED:
		return wanted(a, c, m);
	case AGENT_OPEN:
	case AGENT_DROP:
	case AGENT_MODE:
	case AGENT_PREPARE:
	case AGENT_CANCEL:
	case AGENT_FINISH:
		if (!store_name_valid(m->store))
			return answer(c, m, -EINVAL);
		return m->op == AGENT_OPEN ? open_store(a, c, m) : about_store(a, c, m);
	default:
		return answer(c, m, -EOPNOTSUPP);
	}
}
