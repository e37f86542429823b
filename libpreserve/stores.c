/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The list of stores of a runtime directory (preserve/stores.h): one entry for each socket in it.
 *
 * It looks at descriptors that a holder hands out, and at nothing else: no window, no lock, nothing is
 * written. Whether somebody writes is asked of the kernel with an open file description of our own,
 * on which no lock is ever taken.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <preserve/stores.h>

#include "holder.h"
#include "internal.h"

#define SUFFIX	      ".sock"
#define REREADS	      16u /* while a writer changes the index */
#define PROBLEM_BYTES 256u

/* An entry with what it points to. */
struct found {
	struct pv_stores_entry entry;
	char name[PVI_NAME_MAX + 1];
	char problem[PROBLEM_BYTES];
};

struct list {
	struct pv_stores public;
	struct pv_stores_entry *entries;
	struct found *found;
	uint32_t room;
	char *dir;
};

static void trouble(struct found *f, enum pv_stores_state state)
{
	f->entry.state = state;
	snprintf(f->problem, sizeof(f->problem), "%s", pv_last_error());
}

/* ---- one store ---- */

/* Does anybody hold the writer's lock? */
static bool locked(int index_fd)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char path[40];
	bool held;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", index_fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return false;
	held = fcntl(fd, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK;
	close(fd);
	return held;
}

static int read_header(int fd, struct index_rec *rec)
{
	uint64_t bytes;
	int err = pvi_arena_verify(fd, "index", sizeof(*rec), &bytes);

	if (!err && pread(fd, rec, sizeof(*rec), 0) != (ssize_t) sizeof(*rec))
		err = pvi_fail(-EBADMSG, "index: cannot read its header");
	return err ? err : pvi_index_check_header(rec, bytes);
}

/* The index in force, although a writer may be changing it. */
static int read_index(int fd, struct pvi_index *idx, struct index_rec *rec)
{
	int err = -EBADMSG;

	for (unsigned int i = 0; i < REREADS && err == -EBADMSG; i++) {
		uint64_t seen = i ? rec->commit : 0;

		err = read_header(fd, rec);
		if (err || (i && rec->commit == seen))
			return err ? err : -EBADMSG;
		err = pvi_index_read(idx, fd, rec, PVI_INDEX_MEND);
	}
	return err;
}

static void describe_index(struct pv_stores_entry *e, const struct pvi_index *idx,
			   const struct index_rec *rec)
{
	e->segments = idx->nsegments;
	e->generation = pvi_index_generation(rec);
	e->epoch = idx->epoch;
	e->base = idx->base;
	e->window_bytes = idx->window_bytes;
	memcpy(e->uuid, idx->uuid, sizeof(e->uuid));
}

/* Sizes of those memfds that the index names. A segment that is just leaving or joining may be missing. */
static void add_sizes(struct pv_stores_entry *e, const struct pvi_keeper *k)
{
	for (unsigned int i = 0; i < k->n && k->table[i].token <= e->segments; i++) {
		struct stat st;

		if (fstat(k->table[i].fd, &st))
			continue;
		e->bytes += (uint64_t) st.st_size;
		e->backed_bytes += (uint64_t) st.st_blocks * 512;
	}
}

static void describe_store(struct found *f, const struct pvi_keeper *k, int index_fd)
{
	struct pv_stores_entry *e = &f->entry;
	struct index_rec rec = {0};
	struct pvi_index idx;
	struct stat st;
	int err;

	e->open = locked(index_fd);
	if (fstat(index_fd, &st) == 0) {
		e->index_device = st.st_dev;
		e->index_inode = st.st_ino;
	}
	err = read_index(index_fd, &idx, &rec);
	if (rec.writer_pid <= INT32_MAX)
		e->writer_pid = (int32_t) rec.writer_pid;
	if (err) {
		trouble(f, PV_STORES_DAMAGED);
		return;
	}
	describe_index(e, &idx, &rec);
	add_sizes(e, k);
	pvi_index_free(&idx);
}

/* What the holder keeps says what there is. */
static void describe_kept(struct found *f, const struct pvi_keeper *k)
{
	int index_fd = pvi_keeper_find(k, 0);

	f->entry.descriptors = k->n;
	f->entry.prepared = k->base.state == PV_STATE_PREPARED;
	if (pvi_keeper_find(k, HOLDER_TOKEN_INCOMING) >= 0)
		f->entry.state = PV_STORES_INCOMING;
	else if (index_fd < 0)
		f->entry.state = PV_STORES_UNBORN;
	else
		describe_store(f, k, index_fd);
}

/* Who is the holder? One that goes away while it is asked is asked again: then there is none. */
static int greet(const struct pvi_keeper *k, int32_t *pid)
{
	struct holder_msg m;
	bool started;
	int sock, err, attempts = 3;

	do {
		m = (struct holder_msg){.op = HOLDER_STATUS};
		err = pvi_holder_dial(&k->place, false, &sock, &started);
		if (err)
			return err;
		err = pvi_holder_ask(&k->place, sock, &m, -1, NULL);
		close(sock);
	} while (err == -ECONNRESET && --attempts);
	if (!err && m.status == 0 && m.token <= INT32_MAX)
		*pid = (int32_t) m.token;
	return err;
}

/* -ENOENT: it is gone. Other errors are part of the entry. */
static int describe(struct found *f, const struct pv_options *opts)
{
	struct pvi_handover *h;
	int err = pvi_holder_open(f->name, opts, &h);

	if (err)
		return err;
	err = greet(pvi_keeper_of(h), &f->entry.holder_pid);
	if (!err)
		err = pvi_keeper_load(pvi_keeper_of(h));
	if (!err)
		describe_kept(f, pvi_keeper_of(h));
	else if (err == -ECONNREFUSED || err == -ECONNRESET)
		trouble(f, PV_STORES_LOST);
	else if (err != -ENOENT)
		trouble(f, PV_STORES_SILENT);
	h->ops->close(h);
	return err == -ENOENT ? err : 0;
}

/* ---- all of them ---- */

static void list_free(struct list *l)
{
	if (!l)
		return;
	free(l->found);
	free(l->entries);
	free(l->dir);
	free(l);
}

void pv_stores_free(struct pv_stores *list)
{
	list_free((struct list *) list);
}

static struct found *list_add(struct list *l)
{
	uint32_t room = l->room ? 2 * l->room : 16;
	struct found *grown;

	if (l->public.n == l->room) {
		grown = realloc(l->found, room * sizeof(*grown));
		if (!grown)
			return NULL;
		l->found = grown;
		l->room = room;
	}
	l->found[l->public.n] = (struct found){0};
	return &l->found[l->public.n];
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct found *) a)->name, ((const struct found *) b)->name);
}

/* From here on nothing moves, and entries can point to what is theirs. */
static int list_seal(struct list *l)
{
	l->entries = calloc(l->public.n ? l->public.n : 1, sizeof(*l->entries));
	if (!l->entries)
		return pvi_fail(-ENOMEM, "no memory for a list of %u stores", l->public.n);
	if (l->public.n)
		qsort(l->found, l->public.n, sizeof(*l->found), by_name);
	for (uint32_t i = 0; i < l->public.n; i++) {
		l->entries[i] = l->found[i].entry;
		l->entries[i].name = l->found[i].name;
		l->entries[i].problem = l->found[i].problem;
	}
	l->public.stores = l->entries;
	l->public.dir = l->dir;
	return 0;
}

/* NAME of NAME.sock; false: something else. */
static bool socket_name(const char *file, char name[PVI_NAME_MAX + 1])
{
	size_t n = strlen(file), suffix = strlen(SUFFIX);

	if (n <= suffix || n - suffix > PVI_NAME_MAX || strcmp(file + n - suffix, SUFFIX) != 0)
		return false;
	memcpy(name, file, n - suffix);
	name[n - suffix] = 0;
	return pvi_name_valid(name);
}

static int collect(struct list *l, DIR *dir, const struct pv_options *opts)
{
	struct dirent *file;

	while ((file = readdir(dir)) != NULL) {
		struct found *f = list_add(l);
		int err;

		if (!f)
			return pvi_fail(-ENOMEM, "no memory for a list of stores");
		if (!socket_name(file->d_name, f->name))
			continue;
		err = describe(f, opts);
		if (err && err != -ENOENT)
			return err;
		l->public.n += err == 0;
	}
	return 0;
}

int pv_stores_list(const char *runtime_dir, struct pv_stores **out)
{
	struct pv_options opts = {
		.size = sizeof(opts), .flags = PV_RDONLY, .runtime_dir = runtime_dir};
	struct pvi_holder_place place;
	struct list *l = calloc(1, sizeof(*l));
	int fd, err;

	if (!l)
		return pvi_fail(-ENOMEM, "no memory for a list of stores");
	err = pvi_holder_place_init(&place, "x", &opts);
	if (err) {
		list_free(l);
		return err;
	}
	l->dir = place.dir;
	fd = pvi_holder_dir(&place);
	if (fd >= 0) {
		DIR *dir = fdopendir(fd);

		if (!dir) {
			err = pvi_fail(-errno, "cannot read %s: %s", l->dir, strerror(errno));
			close(fd);
		} else {
			err = collect(l, dir, &opts);
			closedir(dir);
		}
	} else if (fd != -ENOENT) {
		err = fd;
	}
	if (!err)
		err = list_seal(l);
	if (err) {
		list_free(l);
		return err;
	}
	*out = &l->public;
	return 0;
}
