/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * toy.c - see toy.h. The order of stores in each function is the point; TOY_BUG breaks it in one
 * place each.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "toy.h"

#define BUG(name) (TOY_BUG == TOY_BUG_##name)
/* All the order that recovery needs: the compiler must not move or drop stores across it. */
#define barrier() atomic_signal_fence(memory_order_seq_cst)

#define INDEX_MAGIC   0x78646e69796f74ull
#define SEGMENT_MAGIC 0x676573796f74ull
#define SEALS	      (F_SEAL_GROW | F_SEAL_SHRINK)

void (*toy_keep)(int fd);
void (*toy_drop)(int fd);

static char *const windows[2] = {(char *)0x200000000000, (char *)0x210000000000};

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ull;
	return x ^ (x >> 32);
}

static uint64_t table_check(const struct toy_table *t)
{
	return mix(t->n_segments * 31 + t->generation) | 1;
}

static int new_memfd(const char *name, size_t bytes)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
		return -errno;
	if (!BUG(SEAL_LATE) && fcntl(fd, F_ADD_SEALS, SEALS) != 0)
		return -errno;
	return fd;
}

/* Part 0 is the index, the segments follow. */
static void *map_at(const struct toy *toy, unsigned part, int fd)
{
	void *p = mmap(toy->window + (size_t)part * TOY_SEGMENT_BYTES, TOY_SEGMENT_BYTES,
		       PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int reserve_window(struct toy *toy, bool other_base)
{
	memset(toy, 0, sizeof(*toy));
	toy->window =
		mmap(windows[other_base], (TOY_MAX_SEGMENTS + 1) * TOY_SEGMENT_BYTES, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (toy->window == MAP_FAILED)
		return -errno;
	pthread_mutex_init(&toy->reserve_lock, NULL);
	toy->open = true;
	return 0;
}

/* The other table, then one word decides. */
static void publish_table(struct toy *toy, uint64_t n_segments)
{
	uint64_t active = toy->index->active;
	struct toy_table t = {n_segments, toy->index->tables[active].generation + 1, 0};

	t.check = table_check(&t);
	if (BUG(TORN_WRITE)) {
		if (pwrite(toy->index_fd, &t, sizeof(t),
			   (off_t)(offsetof(struct toy_index, tables) + active * sizeof(t))) < 0)
			toy->open = false;
		return;
	}
	toy->index->tables[!active] = t;
	barrier();
	toy->index->active = !active;
	barrier();
}

static int add_segment(struct toy *toy)
{
	unsigned number = toy->n_segments;
	struct toy_segment *s;
	int fd;

	if (number == TOY_MAX_SEGMENTS)
		return -ENOSPC;
	fd = new_memfd("toy-segment", TOY_SEGMENT_BYTES);
	if (fd < 0)
		return fd;
	s = map_at(toy, number + 1, fd);
	if (!s)
		return -errno;
	s->number = number;
	s->magic = SEGMENT_MAGIC;
	barrier();
	if (BUG(KEEP_LATE))
		publish_table(toy, number + 1);
	toy_keep(fd);
	if (BUG(SEAL_LATE) && fcntl(fd, F_ADD_SEALS, SEALS) != 0)
		return -errno;
	if (!BUG(KEEP_LATE))
		publish_table(toy, number + 1);
	toy->segments[number] = s;
	toy->segment_fds[number] = fd;
	toy->n_segments++;
	return 0;
}

int toy_create(struct toy *toy)
{
	int rc = reserve_window(toy, false);

	if (rc)
		return rc;
	rc = new_memfd("toy-index", TOY_INDEX_BYTES);
	if (rc < 0)
		return rc;
	toy->index_fd = rc;
	toy->index = map_at(toy, 0, rc);
	if (!toy->index)
		return -errno;
	toy->index->tables[0].check = table_check(&toy->index->tables[0]);
	barrier();
	toy->index->magic = INDEX_MAGIC;
	barrier();
	toy_keep(toy->index_fd);
	if (BUG(SEAL_LATE) && fcntl(rc, F_ADD_SEALS, SEALS) != 0)
		return -errno;
	return add_segment(toy);
}

int toy_grow(struct toy *toy)
{
	return add_segment(toy);
}

void toy_close(struct toy *toy)
{
	if (!toy->open)
		return;
	munmap(toy->window, (TOY_MAX_SEGMENTS + 1) * TOY_SEGMENT_BYTES);
	for (unsigned i = 0; i < toy->n_segments; i++)
		close(toy->segment_fds[i]);
	if (toy->index)
		close(toy->index_fd);
	toy->open = false;
}

static void apply(struct toy *toy, const struct toy_action *a)
{
	char *base = a->segment == TOY_MAX_SEGMENTS ? (char *)toy->index
						    : (char *)toy->segments[a->segment];

	if (a->is_byte)
		*(uint8_t *)(base + a->off) = (uint8_t)a->value;
	else
		*(uint64_t *)(base + a->off) = a->value;
}

/* Right once, wrong when it is done again. */
static void exchange(struct toy *toy, struct toy_action *a)
{
	uint64_t *word = (uint64_t *)((char *)toy->segments[a->segment] + a->off);
	uint64_t old = *word;

	*word = a->value;
	barrier();
	a->value = old;
}

static int recover_lane(struct toy *toy, unsigned nr)
{
	struct toy_lane *lane = &toy->index->lanes[nr];

	if (lane->state > 2 || lane->n > TOY_ACTIONS)
		return -EBADMSG;
	if (lane->state == 0)
		return 0;
	if (BUG(RECOVERY_DIES))
		*(volatile int *)NULL = 1;
	while (BUG(RECOVERY_HANGS))
		barrier();
	for (uint64_t i = 0; i < lane->n; i++) {
		/* an undo log is rolled back from its end */
		struct toy_action *a = &lane->actions[lane->state == 2 ? lane->n - 1 - i : i];

		if (a->segment > TOY_MAX_SEGMENTS || a->off >= TOY_SEGMENT_BYTES)
			return -EBADMSG;
		if (BUG(RECOVER_TWICE) && lane->state == 2)
			exchange(toy, a);
		else
			apply(toy, a);
		barrier();
	}
	if (!BUG(LANE_LEFT))
		lane->state = 0;
	barrier();
	return 0;
}

static bool sealed(int fd)
{
	return (fcntl(fd, F_GET_SEALS) & SEALS) == SEALS;
}

/* Which descriptor is what is told by content, not by order. */
static int sort_out(struct toy *toy, const struct toy_fds *fds)
{
	toy->index_fd = -1;
	for (unsigned i = 0; i < TOY_MAX_SEGMENTS; i++)
		toy->segment_fds[i] = -1;
	for (unsigned i = 0; i < fds->n; i++) {
		uint64_t head[2];
		int fd = fds->fds[i];

		if (!sealed(fd) || pread(fd, head, sizeof(head), 0) != sizeof(head))
			return -EBADMSG;
		if (head[0] == INDEX_MAGIC)
			toy->index_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		else if (head[0] == SEGMENT_MAGIC && head[1] < TOY_MAX_SEGMENTS)
			toy->segment_fds[head[1]] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		else
			return -EBADMSG;
	}
	return 0;
}

static int map_segments(struct toy *toy)
{
	const struct toy_table *t;

	toy->index = map_at(toy, 0, toy->index_fd);
	if (!toy->index || toy->index->active > 1)
		return -EBADMSG;
	t = &toy->index->tables[toy->index->active];
	if (t->check != table_check(t) || t->n_segments > TOY_MAX_SEGMENTS)
		return -EBADMSG;
	for (unsigned i = 0; i < TOY_MAX_SEGMENTS; i++) {
		int fd = toy->segment_fds[i];

		if (i >= t->n_segments) { /* the index never got to know it */
			if (fd >= 0) {
				toy_drop(fd);
				close(fd);
			}
			continue;
		}
		if (fd < 0)
			return -EBADMSG;
		toy->segments[i] = map_at(toy, i + 1, fd);
		if (!toy->segments[i])
			return -ENOMEM;
		toy->n_segments = i + 1;
	}
	return 0;
}

int toy_recover(struct toy *toy, const struct toy_fds *fds, bool other_base)
{
	int rc = reserve_window(toy, other_base);

	if (rc == 0)
		rc = sort_out(toy, fds);
	if (rc == 0 && toy->index_fd < 0) { /* died before there was a store */
		toy_close(toy);
		return 0;
	}
	if (rc == 0)
		rc = map_segments(toy);
	for (unsigned i = 0; rc == 0 && i < TOY_LANES; i++)
		rc = recover_lane(toy, i);
	for (unsigned i = 0; rc == 0 && i < toy->n_segments; i++) {
		for (unsigned j = 0; j < TOY_SLOTS; j++) {
			if (toy->segments[i]->state[j] == TOY_RESERVED)
				toy->segments[i]->state[j] = TOY_FREE;
		}
	}
	if (rc)
		toy_close(toy);
	return rc;
}

static struct toy_object *find(const struct toy *toy, uint64_t key, unsigned *segment,
			       unsigned *slot)
{
	for (unsigned i = 0; i < toy->n_segments; i++) {
		for (unsigned j = 0; j < TOY_SLOTS; j++) {
			struct toy_object *o = &toy->segments[i]->objects[j];

			if (toy->segments[i]->state[j] != TOY_LIVE || o->key != key)
				continue;
			if (segment)
				*segment = i;
			if (slot)
				*slot = j;
			return o;
		}
	}
	return NULL;
}

static struct toy_lane *lane_of(struct toy *toy, unsigned lane)
{
	return &toy->index->lanes[BUG(SHARED_LANE) ? 0 : lane];
}

static void log_action(struct toy_lane *lane, uint64_t *n, uint64_t segment, uint64_t off,
		       bool is_byte, uint64_t value)
{
	lane->actions[(*n)++] = (struct toy_action){segment, off, is_byte, value};
}

static void log_count(struct toy *toy, struct toy_lane *lane, uint64_t *n, int64_t count)
{
	log_action(lane, n, TOY_MAX_SEGMENTS, (uint64_t)((char *)&lane->count - (char *)toy->index),
		   false, (uint64_t)count);
}

/* The intent is complete in the lane: make it valid, do it, forget it. */
static void run_intent(struct toy *toy, struct toy_lane *lane, uint64_t n)
{
	lane->n = n;
	barrier();
	lane->state = 1;
	barrier();
	for (uint64_t i = 0; i < n; i++) {
		if (BUG(EARLY_COMMIT) && i == n - 1) {
			lane->state = 0;
			barrier();
		}
		apply(toy, &lane->actions[i]);
	}
	barrier();
	lane->state = 0;
	barrier();
}

static int reserve(struct toy *toy, unsigned *segment, unsigned *slot)
{
	int rc = -ENOSPC;

	pthread_mutex_lock(&toy->reserve_lock);
	for (unsigned i = 0; rc && i < toy->n_segments; i++) {
		uint8_t *free_slot = memchr(toy->segments[i]->state, TOY_FREE, TOY_SLOTS);

		if (!free_slot)
			continue;
		*free_slot = TOY_RESERVED;
		*segment = i;
		*slot = (unsigned)(free_slot - toy->segments[i]->state);
		rc = 0;
	}
	pthread_mutex_unlock(&toy->reserve_lock);
	return rc;
}

static void fill(struct toy *toy, unsigned segment, struct toy_object *o, uint64_t key,
		 uint64_t value)
{
	o->key = key;
	if (BUG(ESCAPE)) {
		char *p = (char *)syscall(SYS_mmap, NULL, TOY_SEGMENT_BYTES, PROT_READ | PROT_WRITE,
					  MAP_SHARED, toy->segment_fds[segment], (off_t)0);

		o = (struct toy_object *)(p + ((char *)o - (char *)toy->segments[segment]));
		o->value = value;
		syscall(SYS_munmap, p, TOY_SEGMENT_BYTES);
		return;
	}
	o->value = value;
	barrier();
}

int toy_put(struct toy *toy, unsigned nr, uint64_t key, uint64_t value)
{
	struct toy_lane *lane = lane_of(toy, nr);
	unsigned segment, slot, old_segment, old_slot;
	uint64_t n = 0;
	bool replaces;
	int rc;

	if (lane->state && !BUG(SHARED_LANE))
		return -EBUSY;
	rc = reserve(toy, &segment, &slot);
	if (rc)
		return rc;
	fill(toy, segment, &toy->segments[segment]->objects[slot], key, value);
	replaces = find(toy, key, &old_segment, &old_slot);
	log_action(lane, &n, segment, offsetof(struct toy_segment, state) + slot, true, TOY_LIVE);
	if (replaces)
		log_action(lane, &n, old_segment, offsetof(struct toy_segment, state) + old_slot,
			   true, TOY_FREE);
	else
		log_count(toy, lane, &n, lane->count + 1);
	run_intent(toy, lane, n);
	return 0;
}

int toy_remove(struct toy *toy, unsigned nr, uint64_t key)
{
	struct toy_lane *lane = lane_of(toy, nr);
	unsigned segment, slot;
	uint64_t n = 0;

	if (lane->state)
		return -EBUSY;
	if (!find(toy, key, &segment, &slot))
		return -ENOENT;
	log_action(lane, &n, segment, offsetof(struct toy_segment, state) + slot, true, TOY_FREE);
	log_count(toy, lane, &n, lane->count - 1);
	run_intent(toy, lane, n);
	return 0;
}

int toy_swap(struct toy *toy, unsigned nr, uint64_t key1, uint64_t key2)
{
	struct toy_lane *lane = lane_of(toy, nr);
	unsigned s1, s2;
	struct toy_object *a = find(toy, key1, &s1, NULL), *b = find(toy, key2, &s2, NULL);
	uint64_t n = 0, was;

	if (!a || !b)
		return -ENOENT;
	if (BUG(LAZY_COMMIT))
		lane->state = 0;
	if (lane->state)
		return -EBUSY;
	was = a->value;
	if (!BUG(RAW_PAIR)) {
		log_action(lane, &n, s1, (uint64_t)((char *)&a->value - (char *)toy->segments[s1]),
			   false, was);
		log_action(lane, &n, s2, (uint64_t)((char *)&b->value - (char *)toy->segments[s2]),
			   false, b->value);
		lane->n = n;
		barrier();
		lane->state = 2;
		if (!BUG(LOST_GUARD))
			barrier();
	}
	a->value = b->value;
	b->value = was;
	if (!BUG(LOST_GUARD))
		barrier();
	if (!BUG(LAZY_COMMIT))
		lane->state = 0;
	barrier();
	return 0;
}

/* As one 16-byte store, whatever the compiler thinks of struct copies. */
static void store_wide(struct toy_object *o, uint64_t key, uint64_t value)
{
	typedef uint64_t pair __attribute__((vector_size(16), aligned(8), may_alias));

	*(pair *)o = (pair){key, value};
}

static int load_object(struct toy_object *o, uint64_t key, uint64_t value)
{
	struct toy_object from = {key, value};
	int fds[2];
	ssize_t n;

	if (pipe(fds) != 0 || write(fds[1], &from, sizeof(from)) != sizeof(from))
		return -errno;
	n = read(fds[0], o, sizeof(*o));
	close(fds[0]);
	close(fds[1]);
	return n == sizeof(*o) ? 0 : -EIO;
}

int toy_rename(struct toy *toy, unsigned nr, uint64_t key, uint64_t new_key, uint64_t value)
{
	struct toy_lane *lane = lane_of(toy, nr);
	unsigned s;
	struct toy_object *o = find(toy, key, &s, NULL);
	uint64_t n = 0, off;

	if (!o)
		return -ENOENT;
	if (lane->state)
		return -EBUSY;
	if (BUG(SYSCALL_WRITE))
		return load_object(o, new_key, value);
	if (BUG(WIDE_STORE)) {
		store_wide(o, new_key, value);
		return 0;
	}
	off = (uint64_t)((char *)o - (char *)toy->segments[s]);
	log_action(lane, &n, s, off, false, new_key);
	log_action(lane, &n, s, off + sizeof(uint64_t), false, value);
	run_intent(toy, lane, n);
	return 0;
}

uint64_t toy_check(const struct toy *toy)
{
	uint64_t sum = 0;
	int64_t live = 0;

	if (!toy->open)
		return 1; /* there is no store, and that is all right */
	for (unsigned i = 0; i < toy->n_segments; i++) {
		const struct toy_segment *s = toy->segments[i];

		if (s->magic != SEGMENT_MAGIC || s->number != i)
			return 0;
		for (unsigned j = 0; j < TOY_SLOTS; j++) {
			if (s->state[j] > TOY_LIVE)
				return 0;
			if (s->state[j] != TOY_LIVE)
				continue;
			live++;
			sum += mix(mix(s->objects[j].key) + s->objects[j].value);
		}
	}
	for (unsigned i = 0; i < TOY_LANES; i++)
		live -= toy->index->lanes[i].count;
	return live ? 0 : mix(sum + toy->n_segments) | 2;
}
