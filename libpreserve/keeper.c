/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The keeper (holder.h): keeps a holder process and this process's idea of it in step.
 *
 * Every request that changes something names the holder that is meant and the number of changes it
 * has seen. If another one answers (the old one has died), or it has changed meanwhile, it refuses,
 * and the keeper looks at what it has: a holder that keeps our index is ours, for the process that
 * has the index locked decides what belongs to the store; one that keeps nothing is free. It is
 * then brought up to date and the request is made again. One that keeps something else has been
 * started for another store of the same name: -EBUSY. Who has not locked the store yet decides
 * nothing (pvi_keeper.shared).
 *
 * So the death of a holder costs nothing but the time until the next request: whatever is kept or
 * dropped, or prepared, next finds a new holder and hands everything over. A check is a request for
 * nothing, made for that alone.
 *
 * A connection serves one call here and is then closed: a child that the application forks inherits
 * none, and a holder need not keep track of who is there.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"
#include "error.h"
#include "holder.h"

/* ---- the table ---- */

static unsigned int lower_bound(const struct pvi_keeper *k, uint64_t token)
{
	unsigned int low = 0, high = k->n;

	while (low < high) {
		unsigned int mid = low + (high - low) / 2;

		if (k->table[mid].token < token)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

int pvi_keeper_find(const struct pvi_keeper *k, uint64_t token)
{
	unsigned int i = lower_bound(k, token);

	return i < k->n && k->table[i].token == token ? k->table[i].fd : -1;
}

/** Makes sure that the next table_put() does not fail. */
static int table_room(struct pvi_keeper *k)
{
	unsigned int capacity = k->capacity ? 2 * k->capacity : 16;
	struct pvi_fd *grown;

	if (k->n < k->capacity)
		return 0;
	grown = realloc(k->table, capacity * sizeof(*grown));
	if (!grown)
		return pvi_fail(-ENOMEM, "no memory for %u descriptors", capacity);
	k->table = grown;
	k->capacity = capacity;
	return 0;
}

/** Takes fd over. */
static void table_put(struct pvi_keeper *k, uint64_t token, int fd)
{
	unsigned int i = lower_bound(k, token);

	if (i < k->n && k->table[i].token == token) {
		close(k->table[i].fd);
	} else {
		memmove(&k->table[i + 1], &k->table[i], (k->n - i) * sizeof(*k->table));
		k->n++;
	}
	k->table[i] = (struct pvi_fd){token, fd};
}

static void table_erase(struct pvi_keeper *k, uint64_t token)
{
	unsigned int i = lower_bound(k, token);

	if (i == k->n || k->table[i].token != token)
		return;
	close(k->table[i].fd);
	k->n--;
	memmove(&k->table[i], &k->table[i + 1], (k->n - i) * sizeof(*k->table));
}

static void table_clear(struct pvi_keeper *k)
{
	while (k->n)
		close(k->table[--k->n].fd);
}

static void state_update(struct pvi_keeper *k)
{
	bool prepared = pvi_keeper_find(k, HOLDER_TOKEN_OUTGOING) >= 0;

	__atomic_store_n(&k->base.state, prepared ? PV_STATE_PREPARED : PV_STATE_SERVING,
			 __ATOMIC_RELAXED);
}

/* ---- talking ---- */

/**
 * Sends a request and remembers what the reply says of the holder. The status is in *m. -ESTALE: it
 * is not in step; a holder does not say so of a STATUS, which changes nothing, so it is done here.
 */
static int ask(struct pvi_keeper *k, int sock, struct holder_msg *m, int fd, int *fd_out)
{
	int rc = pvi_holder_ask(&k->place, sock, m, fd, fd_out);

	if (rc == 0 && m->op == HOLDER_STATUS && m->status == 0 &&
	    (m->holder != k->holder || m->changes != k->changes))
		m->status = -ESTALE;
	if (rc == 0 && m->status != -ESTALE) {
		k->holder = m->holder;
		k->changes = m->changes;
	}
	return rc;
}

/** Calls `each` for all descriptors that the holder has; it takes the descriptor over. */
static int fetch_all(struct pvi_keeper *k, int sock,
		     int (*each)(struct pvi_keeper *k, uint64_t token, int fd))
{
	struct holder_msg m = {.op = HOLDER_FETCH, .token = 0};
	uint64_t next = 0;
	int fd, rc = pvi_holder_ask(&k->place, sock, &m, -1, &fd);

	while (rc == 0) {
		k->holder = m.holder;
		k->changes = m.changes;
		if (m.status || fd < 0 || m.token < next) {
			if (fd >= 0)
				close(fd);
			if (m.status == -ENOENT)
				return 0;
			return pvi_fail(m.status < 0 ? m.status : -EPROTO,
					"the holder of store %s does not hand out what follows "
					"token %" PRIu64,
					k->place.name, next);
		}
		next = m.token + 1;
		rc = each(k, m.token, fd);
		if (rc)
			return rc;
		if (m.more) {
			rc = pvi_holder_hear(&k->place, sock, HOLDER_FETCH, &m, &fd);
		} else {
			m = (struct holder_msg){.op = HOLDER_FETCH, .token = next};
			rc = pvi_holder_ask(&k->place, sock, &m, -1, &fd);
		}
	}
	return rc;
}

static int each_load(struct pvi_keeper *k, uint64_t token, int fd)
{
	int rc = table_room(k);

	if (rc)
		close(fd);
	else
		table_put(k, token, fd);
	return rc;
}

int pvi_keeper_load(struct pvi_keeper *k)
{
	bool started;
	int sock, rc, attempts = 3;

	do {
		table_clear(k);
		k->holder = k->changes = 0;
		rc = pvi_holder_dial(&k->place, false, &sock, &started);
		if (rc)
			break;
		rc = fetch_all(k, sock, each_load);
		close(sock);
		/* One that had nothing to keep may end at this moment. */
	} while (rc == -ECONNRESET && --attempts);
	if (rc)
		table_clear(k);
	if (rc == -ECONNREFUSED && !k->place.agent)
		rc = -ENOENT;
	state_update(k);
	if (rc == 0 && k->n == 0)
		return pvi_fail(-ENOENT,
				k->place.agent ? "the agent keeps no store %s of user %u"
					       : "the holder of store %s (user %u) keeps nothing",
				k->place.name, k->place.uid);
	return rc;
}

int pvi_keeper_changed(struct pvi_keeper *k)
{
	struct holder_msg m;
	bool started;
	int sock, rc, attempts = 3;

	do {
		m = (struct holder_msg){.op = HOLDER_STATUS};
		rc = pvi_holder_dial(&k->place, false, &sock, &started);
		if (rc)
			break;
		rc = pvi_holder_ask(&k->place, sock, &m, -1, NULL);
		close(sock);
	} while (rc == -ECONNRESET && --attempts);
	/* One that was told to forget leaves no socket. One that has died is no reason to let go of
	 * what we have: nobody else has it. */
	if (rc == -ENOENT)
		return 1;
	if (rc == -ECONNREFUSED)
		return 0;
	if (rc == 0 && m.status)
		rc = pvi_fail(m.status, "the holder of store %s does not say what it keeps: %s",
			      k->place.name, strerror(-m.status));
	return rc ? rc : m.holder != k->holder || m.changes != k->changes;
}

/* ---- staying in step ---- */

static bool same_file(int a, int b)
{
	struct stat x, y;

	return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino;
}

static int compare(struct pvi_keeper *k, const struct pvi_keeper *theirs)
{
	int mine = pvi_keeper_find(k, 0), other = pvi_keeper_find(theirs, 0);

	if (theirs->n && k->shared)
		return pvi_fail(-ESTALE, "another process is taking store %s over", k->place.name);
	if (theirs->n == 0 || (mine >= 0 && other >= 0 && same_file(mine, other)))
		return 0;
	return pvi_fail(-EBUSY,
			"another process has made a new store %s while the holder of this one was "
			"gone, or is just making it",
			k->place.name);
}

/** Of a memfd that is to be kept: its size, as HOLDER_KEEP says it. */
static uint32_t announced(int fd)
{
	struct stat st;

	if (fd < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size % HOLDER_SIZE_UNIT ||
	    st.st_size / HOLDER_SIZE_UNIT > UINT32_MAX)
		return 0;
	return (uint32_t)(st.st_size / HOLDER_SIZE_UNIT);
}

static int ask_checked(struct pvi_keeper *k, int sock, uint16_t op, uint64_t token, int fd)
{
	struct holder_msg m = {.op = op,
			       .more = announced(fd),
			       .token = token,
			       .holder = k->holder,
			       .changes = k->changes};
	int rc = ask(k, sock, &m, fd, NULL);

	if (rc)
		return rc;
	return m.status ? pvi_fail(m.status, "the holder of store %s refuses token %" PRIu64 ": %s",
				   k->place.name, token, strerror(-m.status))
			: 0;
}

static int adopt(struct pvi_keeper *k, const struct pvi_keeper *theirs, unsigned int i)
{
	int fd, rc = table_room(k);

	if (rc)
		return rc;
	fd = fcntl(theirs->table[i].fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return pvi_fail(-errno, "no room for the session of store %s: %s", k->place.name,
				strerror(errno));
	table_put(k, theirs->table[i].token, fd);
	state_update(k);
	return 0;
}

/** Makes what the holder keeps equal to our table. */
static int resync(struct pvi_keeper *k, int sock)
{
	struct pvi_keeper theirs = {.place = k->place};
	int rc = fetch_all(&theirs, sock, each_load);

	if (!rc)
		rc = compare(k, &theirs);
	if (!rc) {
		k->holder = theirs.holder;
		k->changes = theirs.changes;
	}
	for (unsigned int i = 0; i < theirs.n && !rc; i++) {
		uint64_t token = theirs.table[i].token;

		if (pvi_keeper_find(k, token) >= 0)
			continue;
		/* A session that we do not know of was made for us by the agent. */
		if (k->place.agent && token >= HOLDER_TOKEN_RESERVED)
			rc = adopt(k, &theirs, i);
		else
			rc = ask_checked(k, sock, HOLDER_DROP, token, -1);
	}
	for (unsigned int i = 0; i < k->n && !rc; i++) {
		int other = pvi_keeper_find(&theirs, k->table[i].token);

		/* All sessions look like the same file. */
		if (other < 0 || k->table[i].token >= HOLDER_TOKEN_RESERVED ||
		    !same_file(other, k->table[i].fd))
			rc = ask_checked(k, sock, HOLDER_KEEP, k->table[i].token, k->table[i].fd);
	}
	table_clear(&theirs);
	free(theirs.table);
	return rc;
}

/**
 * Has a request done by a holder that is in step, starting one if need be. *fd_out: what the reply
 * brings, or -1.
 */
static int request(struct pvi_keeper *k, struct holder_msg *m, int fd, int *fd_out)
{
	const struct holder_msg wanted = *m;
	int rc = 0;

	for (int attempts = 0; attempts < 4; attempts++) {
		bool started;
		int sock;

		rc = pvi_holder_dial(&k->place, true, &sock, &started);
		if (rc)
			return rc;
		*m = wanted;
		m->holder = k->holder;
		m->changes = k->changes;
		rc = ask(k, sock, m, fd, fd_out);
		if (rc == 0 && m->status == -ESTALE) {
			rc = resync(k, sock);
			close(sock);
			if (rc == 0)
				k->refilled = true;
			if (rc && rc != -ECONNRESET)
				return rc;
			rc = -ESTALE;
			continue;
		}
		close(sock);
		if (rc != -ECONNRESET)
			return rc;
	}
	return rc == -ESTALE
		       ? pvi_fail(-EBUSY, "other processes keep changing what is kept of store %s",
				  k->place.name)
		       : rc;
}

int pvi_keeper_keep(struct pvi_keeper *k, uint64_t token, int fd)
{
	struct holder_msg m = {.op = HOLDER_KEEP, .token = token, .more = announced(fd)};
	int copy, rc = table_room(k);

	if (rc)
		return rc;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (copy < 0)
		return pvi_fail(-errno, "cannot duplicate the descriptor of token %" PRIu64 ": %s",
				token, strerror(errno));
	rc = request(k, &m, copy, NULL);
	if (rc == 0 && m.status)
		rc = pvi_fail(m.status,
			      m.status == -EMFILE
				      ? "the holder of store %s cannot keep token %" PRIu64
					" and more: its limit of open files is reached (%s)"
				      : "the holder of store %s refuses token %" PRIu64 ": %s",
			      k->place.name, token, strerror(-m.status));
	if (rc) {
		close(copy);
		return rc;
	}
	table_put(k, token, copy);
	state_update(k);
	return 0;
}

int pvi_keeper_drop(struct pvi_keeper *k, uint64_t token)
{
	struct holder_msg m = {.op = HOLDER_DROP, .token = token};
	int rc;

	if (pvi_keeper_find(k, token) < 0)
		return 0;
	rc = request(k, &m, -1, NULL);
	if (rc == 0 && m.status)
		rc = pvi_fail(m.status,
			      "the holder of store %s does not drop token %" PRIu64 ": %s",
			      k->place.name, token, strerror(-m.status));
	if (rc)
		return rc;
	table_erase(k, token);
	state_update(k);
	return 0;
}

int pvi_keeper_check(struct pvi_keeper *k)
{
	struct holder_msg m = {.op = HOLDER_STATUS};
	int rc;

	if (k->n == 0)
		return 0;
	rc = request(k, &m, -1, NULL);
	if (rc == 0 && m.status)
		rc = pvi_fail(m.status, "the holder of store %s does not say what it keeps: %s",
			      k->place.name, strerror(-m.status));
	if (rc)
		return rc;
	rc = k->refilled;
	k->refilled = false;
	return rc;
}

void pvi_keeper_drop_quietly(struct pvi_keeper *k, uint64_t token, int rc)
{
	char *message = strdup(pv_last_error());

	pvi_keeper_drop(k, token);
	if (message)
		pvi_fail(rc, "%s", message);
	free(message);
}

int pvi_keeper_retrieve(struct pvi_keeper *k, const char *session, int device, int *status)
{
	struct holder_msg m = {.op = HOLDER_RETRIEVE};
	int fd = -1, rc = table_room(k);

	if (rc)
		return rc;
	strncpy(m.name, session, sizeof(m.name) - 1);
	rc = request(k, &m, device, &fd);
	*status = rc ? rc : m.status;
	if (rc == 0 && m.status == 0 && fd < 0)
		return pvi_fail(-EPROTO, "the holder of store %s does not hand its session out",
				k->place.name);
	if (fd >= 0)
		table_put(k, HOLDER_TOKEN_INCOMING, fd);
	return rc;
}

int pvi_keeper_forget(struct pvi_keeper *k)
{
	struct holder_msg m = {.op = HOLDER_FORGET};
	bool started;
	int sock = -1, rc;

	rc = pvi_holder_dial(&k->place, false, &sock, &started);
	for (int attempts = 0; rc == 0 && attempts < 2; attempts++) {
		m.holder = k->holder;
		m.changes = k->changes;
		rc = pvi_holder_ask(&k->place, sock, &m, -1, NULL);
		if (rc || m.status == 0)
			break;
		rc = m.status == -ESTALE
			     ? resync(k, sock)
			     : pvi_fail(m.status, "the holder of store %s does not forget: %s",
					k->place.name, strerror(-m.status));
	}
	if (sock >= 0)
		close(sock);
	/* No holder, or one that ended just now, is as good. */
	if (rc && (k->place.agent ||
		   (rc != -ENOENT && rc != -ECONNREFUSED && rc != -ECONNRESET)))
		return rc;
	table_clear(k);
	k->holder = k->changes = 0;
	state_update(k);
	return 0;
}

/* ---- handle ---- */

int pvi_keeper_hand_out(const struct pvi_keeper *k, struct pvi_fd **fds, unsigned int *n)
{
	unsigned int count = lower_bound(k, HOLDER_TOKEN_RESERVED);
	struct pvi_fd *out = calloc(count ? count : 1, sizeof(*out));

	if (!out)
		return pvi_fail(-ENOMEM, "no memory for %u descriptors", count);
	for (unsigned int i = 0; i < count; i++) {
		out[i].token = k->table[i].token;
		out[i].fd = fcntl(k->table[i].fd, F_DUPFD_CLOEXEC, 0);
		if (out[i].fd < 0) {
			int rc = pvi_fail(-errno,
					  "no room for the %u descriptors of store %s: raise "
					  "RLIMIT_NOFILE (%s)",
					  count, k->place.name, strerror(errno));

			while (i)
				close(out[--i].fd);
			free(out);
			return rc;
		}
	}
	*fds = out;
	*n = count;
	return 0;
}

int pvi_keeper_open(const char *store_name, const struct pv_options *opts,
		    const struct pvi_handover_ops *ops, struct pvi_handover **out)
{
	struct pvi_keeper *k = calloc(1, sizeof(*k));
	int rc;

	if (!k)
		return pvi_fail(-ENOMEM, "no memory for the handover handle");
	k->base.ops = ops;
	k->base.state = PV_STATE_SERVING;
	k->opts = opts;
	rc = ops->kind == PV_HANDOVER_AGENT
		     ? pvi_agent_place_init(&k->place, store_name, opts)
		     : pvi_holder_place_init(&k->place, store_name, opts);
	if (rc) {
		pvi_holder_place_free(&k->place);
		free(k);
		return rc;
	}
	*out = &k->base;
	return 0;
}

void pvi_keeper_close(struct pvi_keeper *k)
{
	table_clear(k);
	free(k->table);
	pvi_holder_place_free(&k->place);
	free(k);
}
