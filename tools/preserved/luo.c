/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which stores are prepared, written down for the next kernel: it tells nobody which sessions it has
 * brought, they must be asked for by name. The list is a memfd in a session of the agent's own, which
 * exists while any store is prepared. It has two halves, of which `current` says which one counts, and
 * may be written until the last moment, preserved or not.
 *
 * After a kexec the agent retrieves the sessions of all stores in the list, and does nothing else with
 * them: the descriptors are taken out by the owner who comes back (and to whom the memory is then
 * charged), or by finish.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "internal.h"
#include "list_layout.h"
#include "luo.h"
#include "preserved.h"

#define LIST_BYTES ((sizeof(struct list_rec) + 4095) / 4096 * 4096)

static void list_close(struct agent *a)
{
	if (a->list_session >= 0)
		close(a->list_session);
	if (a->list_memfd >= 0)
		close(a->list_memfd);
	a->list_session = a->list_memfd = -1;
}

int list_ready(struct agent *a)
{
	const struct list_rec head = {
		.magic = LIST_MAGIC, .version = LIST_VERSION, .capacity = LIST_STORES};
	int device, rc;

	if (a->list_session >= 0)
		return 0;
	device = pvi_luo_device();
	if (device < 0)
		return device;
	rc = pvi_luo_create(device, LIST_SESSION, &a->list_session);
	close(device);
	if (rc) {
		a->list_session = -1;
		log_error("cannot make the session " LIST_SESSION ": %s%s", strerror(-rc),
			  rc == -EEXIST ? " (is there another agent?)" : "");
		return rc;
	}
	a->list_memfd = pvi_arena_memfd("pv:agent:list", LIST_BYTES);
	rc = a->list_memfd < 0 ? a->list_memfd : 0;
	if (!rc && pwrite(a->list_memfd, &head, offsetof(struct list_rec, halves), 0) < 0)
		rc = -errno;
	if (!rc)
		rc = pvi_luo_preserve(a->list_session, 0, a->list_memfd);
	if (rc) {
		log_error("cannot preserve the list of prepared stores: %s", strerror(-rc));
		list_close(a);
	}
	return rc;
}

static int list_write(struct agent *a, const struct list_half_rec *half)
{
	const size_t at = offsetof(struct list_rec, current);
	uint64_t current;

	if (pread(a->list_memfd, &current, sizeof(current), (off_t) at) != sizeof(current))
		return -EIO;
	current = !current;
	if (pwrite(a->list_memfd, half, sizeof(*half),
		   (off_t) (offsetof(struct list_rec, halves) + current * sizeof(*half))) !=
		    (ssize_t) sizeof(*half) ||
	    pwrite(a->list_memfd, &current, sizeof(current), (off_t) at) != sizeof(current))
		return -EIO;
	return 0;
}

void list_update(struct agent *a)
{
	struct list_half_rec *half = calloc(1, sizeof(*half));
	int rc = half ? 0 : -ENOMEM;

	for (unsigned int i = 0; !rc && i < a->nstores; i++) {
		const struct store *s = a->stores[i];
		struct list_store_rec *r = &half->stores[half->count];

		if (!store_kept(s, HOLDER_TOKEN_OUTGOING))
			continue;
		if (half->count++ == LIST_STORES) {
			rc = -ENOSPC;
			break;
		}
		*r = (struct list_store_rec){.uid = s->uid, .gid = s->gid, .mode = s->mode};
		memcpy(r->name, s->name, sizeof(r->name));
	}
	if (!rc && half->count == 0) {
		list_close(a);
	} else if (!rc) {
		rc = list_ready(a);
		if (!rc)
			rc = list_write(a, half);
	}
	if (rc)
		log_error("the list of prepared stores cannot be written (%s): the agent of the next "
			  "kernel will not find all of them",
			  strerror(-rc));
	free(half);
}

/* ---- the next kernel ---- */

static void adopt_store(struct agent *a, int device, const struct list_store_rec *r)
{
	char name[LUO_NAME_MAX];
	struct store *s;
	int session, rc;

	if (!store_name_valid(r->name) || !store_mode_valid(r->mode)) {
		log_error("the list of prepared stores has a damaged entry");
		return;
	}
	pvi_luo_session_name(r->uid, r->name, name);
	rc = pvi_luo_retrieve_session(device, name, &session);
	if (rc) {
		log_error("store %s of user %u: session %s cannot be retrieved: %s", r->name, r->uid,
			  name, strerror(-rc));
		return;
	}
	s = store_find(a, r->uid, r->name);
	if (!s)
		s = store_new(a, r->uid, r->gid, r->name);
	if (!s || store_keep(a, s, HOLDER_TOKEN_INCOMING, session, 0)) {
		log_error("store %s of user %u: no memory, it is lost", r->name, r->uid);
		close(session);
		return;
	}
	s->mode = r->mode;
	s->changes++;
	log_notice("store %s of user %u came through the kexec", s->name, s->uid);
}

static struct list_rec *list_read(int session)
{
	struct list_rec *list = NULL;
	int fd, rc = pvi_luo_retrieve(session, 0, &fd);

	if (rc == 0) {
		list = malloc(sizeof(*list));
		if (!list || pread(fd, list, sizeof(*list), 0) != (ssize_t) sizeof(*list) ||
		    list->magic != LIST_MAGIC || list->version != LIST_VERSION ||
		    list->capacity != LIST_STORES || list->current > 1 ||
		    list->halves[list->current].count > LIST_STORES)
			rc = -EBADMSG;
		close(fd);
	}
	if (rc) {
		log_error("the list of stores that the last kernel left cannot be read: %s",
			  strerror(-rc));
		free(list);
		return NULL;
	}
	return list;
}

void list_adopt(struct agent *a)
{
	struct list_rec *list;
	int session, device, rc;

	if (access(LUO_DEVICE, R_OK | W_OK))
		return;
	device = pvi_luo_device();
	if (device < 0) {
		log_error("stores that came through a kexec cannot be looked for: %s",
			  pv_last_error());
		return;
	}
	rc = pvi_luo_retrieve_session(device, LIST_SESSION, &session);
	list = rc ? NULL : list_read(session);
	for (uint64_t i = 0; list && i < list->halves[list->current].count; i++)
		adopt_store(a, device, &list->halves[list->current].stores[i]);
	close(device);
	free(list);
	if (rc == 0) {
		pvi_luo_finish(session);
		close(session);
	}
}
