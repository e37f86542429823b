/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Stores: who owns them, and the descriptors that they keep. A store is there as long as it keeps
 * something. What changes here is told to systemd's descriptor store at once, so that the death of
 * the agent between any two requests loses nothing there.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "preserved.h"

bool store_name_valid(const char name[HOLDER_NAME_MAX])
{
	size_t n = strnlen(name, HOLDER_NAME_MAX);

	if (n == 0 || n > 48)
		return false;
	for (size_t i = 0; i < HOLDER_NAME_MAX; i++) {
		char c = name[i];

		if (i >= n ? c != 0
			   : !((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
			       (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-'))
			return false;
	}
	return true;
}

bool store_mode_valid(uint32_t mode)
{
	return (mode & ~0644u) == 0 && (mode & 0600) == 0600;
}

/* ---- finding ---- */

static int compare(const struct store *s, uint32_t uid, const char *name)
{
	if (s->uid != uid)
		return s->uid < uid ? -1 : 1;
	return strcmp(s->name, name);
}

unsigned int store_place(const struct agent *a, uint32_t uid, const char *name, bool at)
{
	unsigned int low = 0, high = a->nstores;

	while (low < high) {
		unsigned int mid = low + (high - low) / 2;
		int order = compare(a->stores[mid], uid, name);

		if (order < 0 || (order == 0 && !at))
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

struct store *store_find(const struct agent *a, uint32_t uid, const char *name)
{
	unsigned int i = store_place(a, uid, name, true);

	return i < a->nstores && compare(a->stores[i], uid, name) == 0 ? a->stores[i] : NULL;
}

struct store *store_new(struct agent *a, uint32_t uid, uint32_t gid, const char *name)
{
	unsigned int i = store_place(a, uid, name, true);
	struct store *s;

	if (a->nstores == a->room) {
		unsigned int room = a->room ? 2 * a->room : 32;
		struct store **grown = realloc(a->stores, room * sizeof(struct store *));

		if (!grown)
			return NULL;
		a->stores = grown;
		a->room = room;
	}
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->uid = uid;
	s->gid = gid;
	s->mode = MODE_DEFAULT;
	s->id = random_id();
	s->arrived_ms = now_ms();
	memcpy(s->name, name, strnlen(name, sizeof(s->name) - 1));
	memmove(&a->stores[i + 1], &a->stores[i], (a->nstores - i) * sizeof(struct store *));
	a->stores[i] = s;
	a->nstores++;
	return s;
}

/* ---- keeping ---- */

static unsigned int lower_bound(const struct store *s, uint64_t token)
{
	unsigned int low = 0, high = s->n;

	while (low < high) {
		unsigned int mid = low + (high - low) / 2;

		if (s->kept[mid].token < token)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

const struct kept *store_kept(const struct store *s, uint64_t token)
{
	unsigned int i = lower_bound(s, token);

	return i < s->n && s->kept[i].token == token ? &s->kept[i] : NULL;
}

/* A session has ended when the reply is sent. Giving back a memfd's memory takes a while. */
static void let_go(const struct kept *k)
{
	if (k->token >= HOLDER_TOKEN_RESERVED)
		close(k->fd);
	else
		close_later(k->fd);
}

int store_keep(struct agent *a, struct store *s, uint64_t token, int fd, uint64_t bytes)
{
	unsigned int i = lower_bound(s, token);

	if (i < s->n && s->kept[i].token == token) {
		notify_remove(s, token);
		s->bytes -= s->kept[i].bytes;
		let_go(&s->kept[i]);
	} else {
		if (s->n == HOLDER_FDS_MAX)
			return -ENOSPC;
		if (s->n == s->room) {
			unsigned int room = s->room ? 2 * s->room : 8;
			struct kept *grown = realloc(s->kept, room * sizeof(*grown));

			if (!grown)
				return -ENOMEM;
			s->kept = grown;
			s->room = room;
		}
		memmove(&s->kept[i + 1], &s->kept[i], (s->n - i) * sizeof(*s->kept));
		s->n++;
		a->nkept++;
		a->name_bytes += notify_name_bytes(s, token);
	}
	s->kept[i] = (struct kept){token, bytes, fd};
	s->bytes += bytes;
	notify_store(s, &s->kept[i]);
	if (token == HOLDER_TOKEN_OUTGOING)
		list_update(a);
	return 0;
}

void store_drop(struct agent *a, struct store *s, uint64_t token)
{
	unsigned int i = lower_bound(s, token);

	if (i == s->n || s->kept[i].token != token)
		return;
	notify_remove(s, token);
	s->bytes -= s->kept[i].bytes;
	let_go(&s->kept[i]);
	s->n--;
	a->nkept--;
	a->name_bytes -= notify_name_bytes(s, token);
	memmove(&s->kept[i], &s->kept[i + 1], (s->n - i) * sizeof(*s->kept));
	if (token == HOLDER_TOKEN_OUTGOING)
		list_update(a);
}

void store_remove(struct agent *a, struct store *s)
{
	unsigned int i = store_place(a, s->uid, s->name, true);

	/* Sessions first: what they hold is frozen. */
	while (s->n)
		store_drop(a, s, s->kept[s->n - 1].token);
	job_end(a, s, -ENOENT);
	a->nstores--;
	memmove(&a->stores[i], &a->stores[i + 1], (a->nstores - i) * sizeof(struct store *));
	free(s->kept);
	free(s);
}

/* ---- who may do what ---- */

int store_quota(const struct agent *a, uint32_t uid, unsigned int stores, unsigned int descriptors,
		uint64_t bytes)
{
	const struct quota *q = config_quota(&a->config, uid);
	uint64_t has_stores = 0, has_descriptors = 0, has_bytes = 0;

	/* What is kept leaves room for the connections, and for what they bring. */
	if (a->nkept + descriptors + 2 * a->clients_max + 64 > a->files_max ||
	    !notify_room(a, descriptors))
		return -EMFILE;
	for (unsigned int i = 0; i < a->nstores; i++) {
		if (a->stores[i]->uid != uid)
			continue;
		has_stores++;
		has_descriptors += a->stores[i]->n;
		has_bytes += a->stores[i]->bytes;
	}
	if ((stores && has_stores + stores > q->stores) ||
	    (descriptors && has_descriptors + descriptors > q->descriptors) ||
	    (bytes && q->bytes && (bytes > q->bytes || has_bytes > q->bytes - bytes)))
		return -EDQUOT;
	return 0;
}

enum access store_access(const struct agent *a, uint32_t uid, uint32_t gid, uint32_t owner,
			 const struct store *s)
{
	(void)a;
	if (uid == owner || uid == 0 || uid == geteuid())
		return ACCESS_FULL;
	if (s && ((s->mode & 0004) || ((s->mode & 0040) && gid == s->gid)))
		return ACCESS_READ;
	return ACCESS_NONE;
}

/* The lock is asked for on an open file description of our own: ours has that of whoever gave it.
 */
int store_open(const struct store *s)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	const struct kept *index = store_kept(s, 0);
	int fd, rc;

	if (!index)
		return 0;
	fd = reopen(index->fd);
	if (fd < 0)
		return fd;
	rc = fcntl(fd, F_OFD_GETLK, &fl) ? -errno : fl.l_type != F_UNLCK;
	close(fd);
	return rc;
}

void store_expire(struct agent *a)
{
	int64_t now = now_ms();

	if (!a->config.claim_ms)
		return;
	for (unsigned int i = 0; i < a->nstores;) {
		struct store *s = a->stores[i];

		if (s->claimed || now - s->arrived_ms < a->config.claim_ms || job_runs(s)) {
			i++;
		} else if (store_open(s) != 0) {
			s->claimed = true;
		} else {
			log_warning("store %s of user %u: nobody has claimed it within %" PRId64
				    " s, it is dropped (%" PRIu64 " bytes)",
				    s->name, s->uid, a->config.claim_ms / 1000, s->bytes);
			store_remove(a, s);
		}
	}
}
