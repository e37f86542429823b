/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Handover backend `systemd`: the service manager keeps the memfds, in the file descriptor store of the
 * unit that this process runs in, and passes them to the next process of the unit. With
 * FileDescriptorStorePreserve=yes it carries them through a kexec by itself (systemd 261).
 *
 * What the manager has is in a list of the process (fdstore.c), for it outlives this handle; a store is
 * found in it by contents (fdstore_set.c). A descriptor counts as kept when the manager has it, and not
 * when the message has been sent: the manager does not deal with messages of a process that has ended.
 *
 * Destroying a store takes a message for each descriptor. The index is marked first and removed last, so
 * that whoever comes in between finds no store, and knows that what is left is to be removed.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fdstore.h"
#include "handover.h"

struct systemd {
	struct pvi_handover base;
	struct pvi_notify notify;
	bool readonly;
	bool unsettled; /* messages were sent that no barrier has followed */
	bool refilled;	/* something had to be handed over again, and check() has not said so yet */
	bool known;	/* the UUID is */
	uint8_t uuid[16];
	/* What fetch() saw of it. */
	unsigned int count;
	uint64_t serials;
	char store[PVI_NAME_MAX + 1];
};

static struct systemd *systemd_of(struct pvi_handover *h)
{
	return (struct systemd *) h;
}

/* Next item of this store from i on. */
static struct pvi_fdstore_item *own(const struct systemd *s, struct pvi_fdstore_item *i)
{
	while (i && (!s->known || memcmp(i->uuid, s->uuid, sizeof(s->uuid)) != 0))
		i = i->next;
	return i;
}

/* How many there are, and the sum of their serials: with these, any change shows. Something that leaves
 * lowers the count, and something that comes instead raises the sum. */
static void look(const struct systemd *s, unsigned int *count, uint64_t *serials)
{
	*count = 0;
	*serials = 0;
	for (struct pvi_fdstore_item *i = own(s, pvi_fdstore_items()); i; i = own(s, i->next)) {
		++*count;
		*serials += i->serial;
	}
}

/* Remove what is marked; see pvi_fdstore_select(). */
static void purge(struct systemd *s)
{
	struct pvi_fdstore_item *next;

	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = next) {
		next = i->next;
		if (i->role == PVI_FDSTORE_STALE)
			pvi_fdstore_remove(&s->notify, i, &s->unsettled);
	}
}

/* ---- fetch ---- */

static int duplicate(const struct pvi_fdstore_item *item, struct pvi_fd *out)
{
	out->token = pvi_fdstore_token(item);
	out->fd = fcntl(item->fd, F_DUPFD_CLOEXEC, 0);
	if (out->fd < 0)
		return pvi_fail(-errno, "no room for the descriptors of store %s: raise RLIMIT_NOFILE (%s)",
				item->store, strerror(errno));
	return 0;
}

static void release(struct pvi_fd *fds, unsigned int n)
{
	while (n)
		close(fds[--n].fd);
	free(fds);
}

static int hand_out(struct systemd *s, struct pvi_fdstore_item **items, unsigned int n,
		    struct pvi_fd **out)
{
	struct pvi_fd *fds = calloc(n, sizeof(*fds));

	if (!fds)
		return pvi_fail(-ENOMEM, "no memory for %u descriptors", n);
	for (unsigned int i = 0; i < n; i++) {
		int err = pvi_fdstore_claim(items[i], s->store);

		if (!err)
			err = duplicate(items[i], &fds[i]);
		if (err) {
			release(fds, i);
			return err;
		}
	}
	*out = fds;
	return 0;
}

static int systemd_fetch(struct pvi_handover *h, struct pvi_fd **fds, unsigned int *n,
			 bool *from_kexec)
{
	struct systemd *s = systemd_of(h);
	struct pvi_fdstore_item **items = NULL;
	int err;

	pvi_fdstore_lock();
	err = pvi_fdstore_select(s->store, &items, n);
	if (!err)
		err = hand_out(s, items, *n, fds);
	else if (err == -ENOENT && !s->readonly)
		purge(s); /* of one that was destroyed, nearly */
	if (!err) {
		s->known = true;
		memcpy(s->uuid, items[0]->uuid, sizeof(s->uuid));
		look(s, &s->count, &s->serials);
		*from_kexec = false; /* not known here; the attach looks */
	}
	free(items);
	pvi_fdstore_unlock();
	return err;
}

/* Only this process can, by another handle. */
static int systemd_changed(struct pvi_handover *h)
{
	struct systemd *s = systemd_of(h);
	unsigned int count;
	uint64_t serials;

	pvi_fdstore_lock();
	look(s, &count, &serials);
	pvi_fdstore_unlock();
	return count != s->count || serials != s->serials;
}

/* ---- keep and drop ---- */

/* Hand over whatever the manager does not have. Returns how many that were, or an error. */
static int refill(struct systemd *s)
{
	int pushed = 0, err;

	for (struct pvi_fdstore_item *i = own(s, pvi_fdstore_items()); i; i = own(s, i->next)) {
		if (!i->claimed || pvi_fdstore_kept(i))
			continue;
		err = pvi_fdstore_push(&s->notify, i);
		if (err)
			return err;
		pushed++;
	}
	return pushed;
}

/* All that a store of this name has left behind, when it is known which one is in force. */
static void purge_others(struct systemd *s)
{
	struct pvi_fdstore_item **items;
	unsigned int n;

	if (pvi_fdstore_select(s->store, &items, &n))
		return;
	free(items);
	purge(s);
}

/* Remove those of this token but one. */
static void remove_token(struct systemd *s, uint64_t token, const struct pvi_fdstore_item *but)
{
	struct pvi_fdstore_item *next;

	for (struct pvi_fdstore_item *i = own(s, pvi_fdstore_items()); i; i = next) {
		next = own(s, i->next);
		if (i != but && pvi_fdstore_token(i) == token)
			pvi_fdstore_remove(&s->notify, i, &s->unsettled);
	}
}

static int keep(struct systemd *s, uint64_t token, int fd)
{
	struct pvi_fdstore_item *item;
	int err = pvi_fdstore_add(s->store, fd, &item);

	if (err)
		return err;
	if (pvi_fdstore_token(item) != token) {
		pvi_fdstore_forget(item);
		return pvi_fail(-EINVAL, "descriptor %d is not what token %" PRIu64 " says", fd, token);
	}
	err = pvi_fdstore_push(&s->notify, item);
	if (err) {
		pvi_fdstore_forget(item);
		return err;
	}
	memcpy(s->uuid, item->uuid, sizeof(s->uuid));
	s->known = true;
	remove_token(s, token, item);
	/* With its index a store begins: what others of its name have left is void. */
	if (token == 0)
		purge_others(s);
	return 0;
}

static int systemd_keep(struct pvi_handover *h, uint64_t token, int fd)
{
	int err;

	pvi_fdstore_lock();
	err = keep(systemd_of(h), token, fd);
	pvi_fdstore_unlock();
	return err;
}

static int systemd_drop(struct pvi_handover *h, uint64_t token)
{
	pvi_fdstore_lock();
	remove_token(systemd_of(h), token, NULL);
	pvi_fdstore_unlock();
	return 0;
}

/* ---- attached, prepared, checked ---- */

/*
 * What is not kept here may have been passed in by somebody who keeps nothing. That is no reason to
 * refuse the store, for this process may be the last one to have it; check() says it.
 */
static int systemd_finish(struct pvi_handover *h)
{
	struct systemd *s = systemd_of(h);

	pvi_fdstore_lock();
	purge_others(s);
	s->refilled = refill(s) > 0;
	if (s->unsettled)
		s->unsettled = pvi_notify_barrier(&s->notify) != 0;
	pvi_fdstore_unlock();
	return 0;
}

static int systemd_check(struct pvi_handover *h)
{
	struct systemd *s = systemd_of(h);
	int rc;

	pvi_fdstore_lock();
	rc = refill(s);
	pvi_fdstore_unlock();
	if (rc < 0)
		return rc;
	rc = rc > 0 || s->refilled;
	s->refilled = false;
	return rc;
}

static int systemd_prepare(struct pvi_handover *h, const struct pvi_fd *fds, unsigned int n)
{
	struct systemd *s = systemd_of(h);
	int rc;

	pvi_fdstore_lock();
	rc = refill(s);
	s->refilled |= rc > 0;
	if (rc >= 0)
		rc = pvi_notify_barrier(&s->notify);
	s->unsettled &= rc != 0;
	pvi_fdstore_unlock();
	if (!rc)
		__atomic_store_n(&h->state, PV_STATE_PREPARED, __ATOMIC_RELAXED);
	return rc;
}

/* What the manager carries over is its unit's affair. */
static int systemd_cancel(struct pvi_handover *h)
{
	__atomic_store_n(&h->state, PV_STATE_SERVING, __ATOMIC_RELAXED);
	return 0;
}

/* ---- destroying ---- */

static bool is_of(const struct systemd *s, const struct pvi_fdstore_item *item)
{
	return strcmp(item->store, s->store) == 0 ||
	       (s->known && memcmp(item->uuid, s->uuid, sizeof(s->uuid)) == 0);
}

/* A segment whose name has been lost is the store's by its UUID. */
static void adopt(const struct systemd *s)
{
	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = i->next) {
		if (i->kind == PVI_FDSTORE_SEGMENT || !is_of(s, i))
			continue;
		for (struct pvi_fdstore_item *j = pvi_fdstore_items(); j; j = j->next)
			if (memcmp(i->uuid, j->uuid, sizeof(i->uuid)) == 0)
				memcpy(j->store, s->store, sizeof(j->store));
	}
}

/* One store of one word: before it the store is there, afterwards it is not. */
static int mark_gone(const struct pvi_fdstore_item *item)
{
	const uint64_t magic = PV_INDEX_GONE_MAGIC;

	if (item->kind != PVI_FDSTORE_INDEX ||
	    pwrite(item->fd, &magic, sizeof(magic), 0) == (ssize_t) sizeof(magic))
		return 0;
	return pvi_fail(-errno, "the index of store %s cannot be marked as destroyed: %s", item->store,
			strerror(errno));
}

static void remove_all(struct systemd *s, bool indexes)
{
	struct pvi_fdstore_item *next;

	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = next) {
		next = i->next;
		if (!is_of(s, i) || indexes != (i->kind != PVI_FDSTORE_SEGMENT))
			continue;
		i->role = PVI_FDSTORE_STALE;
		pvi_fdstore_remove(&s->notify, i, &s->unsettled);
	}
}

static int systemd_forget(struct pvi_handover *h)
{
	struct systemd *s = systemd_of(h);
	int err = 0;

	pvi_fdstore_lock();
	adopt(s);
	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i && !err; i = i->next)
		if (is_of(s, i))
			err = mark_gone(i);
	if (!err) {
		remove_all(s, false);
		remove_all(s, true);
		s->known = false;
	}
	if (!err && s->unsettled)
		err = pvi_notify_barrier(&s->notify);
	s->unsettled &= err != 0;
	pvi_fdstore_unlock();
	return err;
}

/* ---- handle ---- */

static void systemd_close(struct pvi_handover *h)
{
	struct systemd *s = systemd_of(h);

	/* The last messages reach their aim before the process may end. */
	if (s->unsettled)
		pvi_notify_barrier(&s->notify);
	free(s);
}

static const struct pvi_handover_ops systemd_ops = {
	.name = "systemd",
	.kind = PV_HANDOVER_SYSTEMD,
	.fetch = systemd_fetch,
	.changed = systemd_changed,
	.keep = systemd_keep,
	.drop = systemd_drop,
	.finish = systemd_finish,
	.prepare = systemd_prepare,
	.cancel = systemd_cancel,
	.check = systemd_check,
	.forget = systemd_forget,
	.close = systemd_close,
};

int pvi_systemd_open(const char *store_name, const struct pv_options *opts, struct pvi_handover **out)
{
	struct systemd *s = calloc(1, sizeof(*s));

	if (!s)
		return pvi_fail(-ENOMEM, "no memory for the handover handle");
	s->base.ops = &systemd_ops;
	s->base.state = PV_STATE_SERVING;
	s->readonly = opts->flags & PV_RDONLY;
	snprintf(s->store, sizeof(s->store), "%s", store_name);
	pvi_notify_init(&s->notify);
	*out = &s->base;
	return 0;
}

/* ---- for the choice of a backend ---- */

static bool passed_in(const char *store_name)
{
	bool found = false;

	pvi_fdstore_lock();
	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = i->next)
		found |= strcmp(i->store, store_name) == 0;
	pvi_fdstore_unlock();
	return found;
}

bool pvi_systemd_usable(const char *store_name)
{
	const char *pid = secure_getenv("SYSTEMD_EXEC_PID");
	struct pvi_notify notify;

	if (passed_in(store_name))
		return true;
	pvi_notify_init(&notify);
	/* A child of the service's process has inherited the variables, but is not listened to. */
	return notify.bytes && secure_getenv("FDSTORE") &&
	       (!pid || strtol(pid, NULL, 10) == (long) getpid());
}

bool pvi_systemd_in_service(void)
{
	const char suffix[] = ".service";
	char line[PATH_MAX + 64];
	bool found = false;
	FILE *f = fopen("/proc/self/cgroup", "re");

	while (f && !found && fgets(line, sizeof(line), f)) {
		size_t n = strcspn(line, "\n");

		/* Only version 2 and the hierarchy of systemd's own: "0::" and "1:name=systemd:". */
		line[n] = 0;
		found = (strstr(line, "::") || strstr(line, ":name=systemd:")) &&
			n >= strlen(suffix) && strcmp(line + n - strlen(suffix), suffix) == 0;
	}
	if (f)
		fclose(f);
	return found;
}
