/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The list of what the service manager keeps for this process (fdstore.h).
 *
 * The manager answers nothing: a descriptor that it does not want is closed without a word. So it is
 * found out. A descriptor that is handed over has an open file description of its own, with a shared
 * flock(2) on it, and is closed here at once. Then the manager's copy is the only one left, and as
 * long as it is there, nobody gets an exclusive flock. (The writer's lock is one of fcntl(2), which is
 * another thing.) What it does not want the manager closes in a process of its own, some 100 us later: so
 * it is looked again for some milliseconds, and a store that is full as far as can be counted is not
 * tried. pv_handover_check() sees what takes longer. For the same reason what was passed in is opened
 * anew and put in its own place: the description that came is the manager's, and must not be held open
 * by us.
 *
 * Nothing else that was passed in is touched: sockets and memfds of the application stay as they are.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "fdstore.h"

#define FIRST_FD   3
#define PASSED_MAX (1u << 20)
#define PREFIX	   "pv/"
/* Looks for a descriptor that is on its way out: 8 ms in all. */
#define PAUSE_NS     250000l
#define PAUSE_MAX_NS 4000000l

static struct {
	pthread_mutex_t lock;
	bool imported;
	unsigned int passed;
	char note[128];
	uint64_t serial;
	struct pvi_fdstore_item *items;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

/* A child has nothing to do with the manager, and must not keep descriptors from being closed. */
static void in_child(void)
{
	for (struct pvi_fdstore_item *i = pool.items; i; i = i->next)
		close(i->fd);
	pool.items = NULL;
	pool.passed = 0;
	pthread_mutex_init(&pool.lock, NULL);
}

static void watch_forks(void)
{
	pthread_atfork(NULL, NULL, in_child);
}

/* ---- what a descriptor is ---- */

/* pv/STORE/TOKEN/xxxxxxxx; two memfds of a store's life never have the same. No colon is allowed. */
static void make_name(struct pvi_fdstore_item *item, const char *store)
{
	uint64_t hash = XXH3_64bits_withSeed(item->uuid, sizeof(item->uuid), item->birth_generation);

	snprintf(item->name, sizeof(item->name), PREFIX "%s/%" PRIu64 "/%08x", store,
		 pvi_fdstore_token(item), (uint32_t) hash);
}

/* What the name says of the store's. */
static void store_of_name(struct pvi_fdstore_item *item)
{
	const char *store = item->name + strlen(PREFIX), *end;

	if (strncmp(item->name, PREFIX, strlen(PREFIX)) != 0)
		return;
	end = strchr(store, '/');
	if (!end || end - store > PVI_NAME_MAX)
		return;
	memcpy(item->store, store, (size_t) (end - store));
	item->store[end - store] = 0;
	if (!pvi_name_valid(item->store))
		item->store[0] = 0;
}

static void store_of_tree(struct pvi_fdstore_item *item, const struct index_rec *rec)
{
	struct pvi_index idx;

	if (pvi_index_check_header(rec, item->bytes) ||
	    pvi_index_read(&idx, item->fd, rec, PVI_INDEX_MEND))
		return;
	memcpy(item->store, idx.name, sizeof(item->store));
	pvi_index_free(&idx);
}

/* Fill in all that the memfd says of itself. false: it is none of the library's. */
static bool classify(struct pvi_fdstore_item *item, int fd)
{
	union {
		uint64_t magic;
		struct index_rec index;
		struct segment_rec segment;
	} head;
	struct stat st;

	if (fcntl(fd, F_GET_SEALS) < 0 || fstat(fd, &st) || !S_ISREG(st.st_mode) ||
	    pread(fd, &head, sizeof(head), 0) != (ssize_t) sizeof(head))
		return false;
	item->fd = fd;
	item->bytes = (uint64_t) st.st_size;
	item->device = st.st_dev;
	item->inode = st.st_ino;
	store_of_name(item);
	switch (head.magic) {
	case PV_INDEX_MAGIC:
		item->kind = PVI_FDSTORE_INDEX;
		memcpy(item->uuid, head.index.uuid, sizeof(item->uuid));
		store_of_tree(item, &head.index);
		return true;
	case PV_INDEX_GONE_MAGIC:
		item->kind = PVI_FDSTORE_GONE;
		memcpy(item->uuid, head.index.uuid, sizeof(item->uuid));
		return true;
	case PV_SEGMENT_MAGIC:
		item->kind = PVI_FDSTORE_SEGMENT;
		item->number = head.segment.number;
		item->birth_generation = head.segment.birth_generation;
		memcpy(item->uuid, head.segment.uuid, sizeof(item->uuid));
		return true;
	default:
		return false;
	}
}

uint64_t pvi_fdstore_token(const struct pvi_fdstore_item *item)
{
	return item->kind == PVI_FDSTORE_SEGMENT ? item->number + 1ull : 0;
}

bool pvi_fdstore_same_memfd(const struct pvi_fdstore_item *a, const struct pvi_fdstore_item *b)
{
	return a->device == b->device && a->inode == b->inode;
}

/* ---- the list ---- */

static void list_add(struct pvi_fdstore_item *item)
{
	item->serial = ++pool.serial;
	item->next = pool.items;
	pool.items = item;
}

static void list_take(struct pvi_fdstore_item *item)
{
	struct pvi_fdstore_item **at = &pool.items;

	while (*at != item)
		at = &(*at)->next;
	*at = item->next;
}

/* The number in a variable of the environment; false: there is none, or it is none. */
static bool env_number(const char *variable, unsigned long *out)
{
	const char *text = secure_getenv(variable);
	char *end;

	if (!text || *text < '0' || *text > '9')
		return false;
	errno = 0;
	*out = strtoul(text, &end, 10);
	return !errno && !*end;
}

static unsigned int passed_number(void)
{
	unsigned long pid, n;

	if (!env_number("LISTEN_FDS", &n) || n == 0)
		return 0;
	if (!env_number("LISTEN_PID", &pid) || pid != (unsigned long) getpid()) {
		snprintf(pool.note, sizeof(pool.note),
			 "; $LISTEN_FDS is not for this process, see $LISTEN_PID");
		return 0;
	}
	if (n > PASSED_MAX) {
		snprintf(pool.note, sizeof(pool.note), "; $LISTEN_FDS is %lu, which cannot be", n);
		return 0;
	}
	return (unsigned int) n;
}

/* The environment is read and left alone: others may look for theirs. */
static void import(void)
{
	char message[256];
	const char *names = secure_getenv("LISTEN_FDNAMES");

	snprintf(message, sizeof(message), "%s", pv_last_error());
	pool.passed = passed_number();
	for (unsigned int i = 0; i < pool.passed; i++) {
		struct pvi_fdstore_item *item = calloc(1, sizeof(*item));
		size_t bytes = names ? strcspn(names, ":") : 0;

		if (!item) {
			snprintf(pool.note, sizeof(pool.note), "; no memory to look at all of them");
			break;
		}
		if (bytes < sizeof(item->name))
			memcpy(item->name, names ? names : "", bytes);
		if (names)
			names = names[bytes] ? names + bytes + 1 : NULL;
		if (classify(item, FIRST_FD + (int) i))
			list_add(item);
		else
			free(item);
	}
	pvi_fail(0, "%s", message); /* what was wrong with one of them was not asked for */
}

void pvi_fdstore_lock(void)
{
	pthread_once(&fork_once, watch_forks);
	pthread_mutex_lock(&pool.lock);
	if (!pool.imported)
		import();
	pool.imported = true;
}

void pvi_fdstore_unlock(void)
{
	pthread_mutex_unlock(&pool.lock);
}

struct pvi_fdstore_item *pvi_fdstore_items(void)
{
	return pool.items;
}

unsigned int pvi_fdstore_passed(void)
{
	return pool.passed;
}

const char *pvi_fdstore_passed_note(void)
{
	return pool.note;
}

int pvi_fdstore_add(const char *store, int fd, struct pvi_fdstore_item **out)
{
	struct pvi_fdstore_item *item = calloc(1, sizeof(*item));
	int copy;

	if (!item)
		return pvi_fail(-ENOMEM, "no memory for the list of descriptors");
	if (!classify(item, fd)) {
		free(item);
		return pvi_fail(-EINVAL, "descriptor %d is neither index nor segment of a store", fd);
	}
	copy = fcntl(fd, F_DUPFD_CLOEXEC, FIRST_FD);
	if (copy < 0) {
		free(item);
		return pvi_fail(-errno, "cannot duplicate descriptor %d: %s", fd, strerror(errno));
	}
	item->fd = copy;
	item->claimed = true;
	item->role = PVI_FDSTORE_CHOSEN;
	snprintf(item->store, sizeof(item->store), "%s", store);
	make_name(item, store);
	list_add(item);
	*out = item;
	return 0;
}

void pvi_fdstore_forget(struct pvi_fdstore_item *item)
{
	list_take(item);
	close(item->fd);
	free(item);
}

/* ---- the manager's copy ---- */

/* The same memfd, in an open file description of its own. */
static int open_again(int fd)
{
	char path[40];
	int again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	return again >= 0 ? again : pvi_fail(-errno, "cannot open %s again: %s%s", path, strerror(errno),
					    errno == EACCES ? " (is it another user's?)" : "");
}

/* Nobody asks for an exclusive one for longer than the test takes, and all are under our lock. */
static int mark(int fd)
{
	return flock(fd, LOCK_SH | LOCK_NB) ? pvi_fail(-errno, "flock: %s", strerror(errno)) : 0;
}

int pvi_fdstore_claim(struct pvi_fdstore_item *item, const char *store)
{
	int again, err;

	if (item->claimed)
		return 0;
	again = open_again(item->fd);
	if (again < 0)
		return again;
	err = mark(item->fd);
	if (!err && dup3(again, item->fd, O_CLOEXEC) < 0)
		err = pvi_fail(-errno, "dup3: %s", strerror(errno));
	close(again);
	if (err)
		return err;
	/* A kexec makes it 0777 and root's: then it may not be ours to change, and nobody else can get
	 * at a memfd that has no path. */
	if (fchmod(item->fd, 0600))
		errno = 0;
	if (!item->name[0])
		make_name(item, store);
	item->claimed = true;
	return 0;
}

bool pvi_fdstore_kept(const struct pvi_fdstore_item *item)
{
	if (flock(item->fd, LOCK_EX | LOCK_NB))
		return errno == EWOULDBLOCK;
	flock(item->fd, LOCK_UN);
	return false;
}

/* The descriptors that the manager is known to have for us, and may have: $FDSTORE, since systemd 254.
 * Those of the application come on top; they are not known. */
static bool full(const struct pvi_fdstore_item *but)
{
	unsigned long limit, n = 0;

	for (const struct pvi_fdstore_item *i = pool.items; i; i = i->next)
		n += i != but;
	return env_number("FDSTORE", &limit) && n >= limit;
}

static int not_taken(const struct pvi_fdstore_item *item)
{
	const char *limit = secure_getenv("FDSTORE");

	return pvi_fail(-ENOSPC,
			"the service manager did not take %s: the unit's FileDescriptorStoreMax= is %s%s, "
			"and each segment of a store needs one, its index one more (or NotifyAccess= does "
			"not allow process %d to send)",
			item->name, limit ? limit : "0 or too small",
			limit && !full(item) ? " and used up by others, or less by now" : "",
			(int) getpid());
}

static bool still_kept(const struct pvi_fdstore_item *item)
{
	bool kept = pvi_fdstore_kept(item);

	for (long pause_ns = PAUSE_NS; kept && pause_ns <= PAUSE_MAX_NS; pause_ns *= 2) {
		nanosleep(&(struct timespec){0, pause_ns}, NULL);
		kept = pvi_fdstore_kept(item);
	}
	return kept;
}

int pvi_fdstore_push(const struct pvi_notify *n, struct pvi_fdstore_item *item)
{
	int copy, err;

	if (full(item))
		return not_taken(item);
	copy = open_again(item->fd);
	if (copy < 0)
		return copy;
	err = mark(copy);
	if (!err)
		err = pvi_notify_send(n, copy, "FDSTORE=1\nFDNAME=%s", item->name);
	close(copy);
	if (!err)
		err = pvi_notify_barrier(n);
	return err || still_kept(item) ? err : not_taken(item);
}

void pvi_fdstore_remove(const struct pvi_notify *n, struct pvi_fdstore_item *item, bool *sent)
{
	bool shared = false;

	if (!item->name[0] && item->store[0])
		make_name(item, item->store);
	for (struct pvi_fdstore_item *i = pool.items; i; i = i->next)
		shared |= i != item && i->role != PVI_FDSTORE_STALE && strcmp(i->name, item->name) == 0;
	/* A name that we have not given may be that of a descriptor of the application's as well. */
	if (!shared && strncmp(item->name, PREFIX, strlen(PREFIX)) == 0 &&
	    pvi_notify_send(n, -1, "FDSTOREREMOVE=1\nFDNAME=%s", item->name) == 0)
		*sent = true;
	pvi_fdstore_forget(item);
}
