/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The calls of preserve/agent.h: each is one request to the agent on a connection of its own.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <preserve/agent.h>

#include "agent.h"
#include "error.h"

static void entry_set(struct pv_agent_entry *e, const struct agent_msg *m)
{
	*e = (struct pv_agent_entry){
		.uid = m->uid,
		.gid = m->gid,
		.mode = m->mode,
		.descriptors = m->descriptors,
		.bytes = m->bytes,
		.open = m->flags & AGENT_IS_OPEN,
		.prepared = m->flags & AGENT_IS_PREPARED,
		.incoming = m->flags & AGENT_IS_INCOMING,
		.claimed = m->flags & AGENT_IS_CLAIMED,
	};
	memcpy(e->name, m->store, sizeof(e->name));
}

/** Appends all entries. On failure what there is stays the caller's. */
static int collect(int sock, struct pv_agent_entry **list, uint32_t *n)
{
	struct agent_msg m = {.op = AGENT_LIST};
	uint32_t room = 0;
	int rc = pvi_agent_ask(sock, &m, PVI_HOLDER_WAIT_MS);

	while (rc == 0 && m.status == 0) {
		if (*n == room) {
			struct pv_agent_entry *grown;

			room = room ? 2 * room : 64;
			grown = realloc(*list, room * sizeof(*grown));
			if (!grown)
				return pvi_fail(-ENOMEM, "no memory for a list of %u stores", room);
			*list = grown;
		}
		entry_set(&(*list)[(*n)++], &m);
		if (m.more) {
			rc = pvi_agent_hear(sock, AGENT_LIST, &m, PVI_HOLDER_WAIT_MS);
		} else {
			m.flags = AGENT_AFTER;
			rc = pvi_agent_ask(sock, &m, PVI_HOLDER_WAIT_MS);
		}
	}
	if (rc || m.status == -ENOENT)
		return rc;
	return pvi_fail(m.status, "the agent does not list its stores: %s", strerror(-m.status));
}

int pv_agent_list(const char *path, struct pv_agent_entry **list, uint32_t *n)
{
	int sock, rc = pvi_agent_connect(pvi_agent_socket(path), &sock);

	*list = NULL;
	*n = 0;
	if (rc)
		return rc;
	rc = collect(sock, list, n);
	close(sock);
	if (rc) {
		free(*list);
		*list = NULL;
		*n = 0;
	}
	return rc;
}

static int request(const char *path, struct agent_msg *m, const char *name, const char *what,
		   int timeout_ms)
{
	int sock, rc;

	if (strlen(name) >= sizeof(m->store))
		return pvi_fail(-EINVAL, "store name %s is too long", name);
	memcpy(m->store, name, strlen(name));
	rc = pvi_agent_connect(pvi_agent_socket(path), &sock);
	if (rc)
		return rc;
	rc = pvi_agent_ask(sock, m, timeout_ms);
	close(sock);
	if (rc || m->status == 0)
		return rc;
	if (m->status == -ENOENT)
		return pvi_fail(m->status, "the agent has no store %s that user %u may %s", name,
				geteuid(), what);
	if (m->status == -ETIMEDOUT)
		return pvi_fail(m->status,
				"cannot %s store %s: the process that has it open has not done it in "
				"time",
				what, name);
	return pvi_fail(m->status, "the agent cannot %s store %s: %s", what, name,
			strerror(-m->status));
}

int pv_agent_drop(const char *path, uint32_t uid, const char *name, bool force)
{
	struct agent_msg m = {.op = AGENT_DROP, .uid = uid, .flags = force ? AGENT_FORCE : 0};

	return request(path, &m, name, "drop", PVI_HOLDER_WAIT_MS);
}

int pv_agent_mode(const char *path, uint32_t uid, const char *name, uint32_t mode)
{
	struct agent_msg m = {.op = AGENT_MODE, .uid = uid, .mode = mode};

	return request(path, &m, name, "set the mode of", PVI_HOLDER_WAIT_MS);
}

/* Preserving goes on for as long as it takes, once everybody is ready: the agent keeps the time. */
int pv_agent_prepare(const char *path, uint32_t uid, const char *name, uint32_t timeout_ms)
{
	struct agent_msg m = {.op = AGENT_PREPARE, .uid = uid, .timeout_ms = timeout_ms};

	return request(path, &m, name, "prepare", -1);
}

int pv_agent_cancel(const char *path, uint32_t uid, const char *name, uint32_t timeout_ms)
{
	struct agent_msg m = {.op = AGENT_CANCEL, .uid = uid, .timeout_ms = timeout_ms};

	return request(path, &m, name, "cancel", -1);
}

int pv_agent_finish(const char *path, uint32_t uid, const char *name)
{
	struct agent_msg m = {.op = AGENT_FINISH, .uid = uid};

	return request(path, &m, name, "finish", -1);
}
