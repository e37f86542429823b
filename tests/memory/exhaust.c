/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fills a store without a limit until the machine, or the cgroup that this is in, has no more memory to
 * give. That has to be an error of a call: no signal, nobody killed, every object whole, and what is
 * freed can be had again. Run by exhaust.scenario in a virtual machine with little memory; anywhere else
 * it takes what there is.
 *
 * usage: exhaust ROUNDS THREADS
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <preserve/preserve.h>
#include <preserve/stats.h>

#define THREADS_MAX 16
#define REFUSED_MAX 50
#define MIB	    (1024.0 * 1024.0)

/** An object: a list, by thread, of blocks that say how long they are and what they hold. */
struct block {
	struct block *next;
	uint64_t bytes;
	uint64_t seed;
	uint64_t words[];
};

struct root {
	struct block *lists[THREADS_MAX];
};

struct filler {
	struct pv_store *s;
	pv_type_t type;
	struct block **list;
	uint64_t random;
	uint64_t objects;
	uint64_t bytes;
	uint64_t *freed; /* sizes, the last ones first to be asked for again */
	size_t nfreed;
	char message[512]; /* of the last failure */
};

static _Noreturn void fail(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	fputs("exhaust: FAILED: ", stderr);
	vfprintf(stderr, format, ap);
	fprintf(stderr, " (%s)\n", pv_last_error());
	va_end(ap);
	exit(1);
}

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint64_t size(uint64_t *state, uint64_t most)
{
	uint64_t r = next(state);
	uint64_t bytes = r % 64 == 0 ? (r >> 8) % 3000000 : r % 4 == 0 ? (r >> 8) % 60000 : (r >> 8) % 2000;

	return sizeof(struct block) + (bytes < most ? bytes : bytes % most);
}

/* One more object. False: no memory. */
static bool add(struct filler *f, uint64_t bytes)
{
	uint64_t seed;
	struct block *b;
	int err;
	void *p;

	err = pv_reserve(f->s, f->type, bytes, &p);
	if (err) {
		if (err != -ENOMEM && err != -ENOSPC)
			fail("pv_reserve: %d", err);
		snprintf(f->message, sizeof(f->message), "%s", pv_last_error());
		return false;
	}
	b = p;
	*b = (struct block){.next = *f->list, .bytes = bytes, .seed = seed = next(&f->random)};
	for (uint64_t i = 0; i < (bytes - sizeof(*b)) / 8; i++)
		b->words[i] = next(&seed);
	if (pv_publish(f->s, (struct pv_action[]){PV_LIVE(b), PV_STORE(f->list, (uintptr_t)b)}, 2))
		fail("pv_publish");
	f->objects++;
	f->bytes += bytes;
	return true;
}

/* Allocate until it fails; smaller and smaller objects, for there is always one that is too large. */
static void *fill(void *ctx)
{
	uint64_t most = 4u << 20;
	struct filler *f = ctx;

	while (most > 50) {
		uint64_t bytes = size(&f->random, most);

		if (!add(f, bytes))
			most = bytes / 2;
	}
	return NULL;
}

/* Objects as those that were freed. One that is refused takes time, so that there is an end to it. */
static void *refill(void *ctx)
{
	struct filler *f = ctx;

	for (unsigned int refused = 0; f->nfreed && refused < REFUSED_MAX; f->nfreed--)
		refused += !add(f, f->freed[f->nfreed - 1]);
	f->nfreed = 0;
	return NULL;
}

/* Every object of the list is there, whole. */
static void verify(const struct filler *f)
{
	uint64_t n = 0;

	for (const struct block *b = *f->list; b; b = b->next, n++) {
		uint64_t seed = b->seed;

		for (uint64_t i = 0; i < (b->bytes - sizeof(*b)) / 8; i++)
			if (b->words[i] != next(&seed))
				fail("object %" PRIu64 " is damaged at word %" PRIu64, n, i);
	}
	if (n != f->objects)
		fail("%" PRIu64 " objects of %" PRIu64, n, f->objects);
}

/* Free one object in `every`, and note and count what that was. */
static uint64_t thin(struct filler *f, uint64_t every)
{
	uint64_t n = 0, bytes = 0;

	f->freed = realloc(f->freed, (f->objects / every + 1) * sizeof(*f->freed));
	if (!f->freed)
		fail("no memory to note what is freed");
	for (struct block **at = f->list; *at;) {
		struct block *b = *at;

		if (n++ % every) {
			at = &b->next;
			continue;
		}
		bytes += b->bytes;
		f->freed[f->nfreed++] = b->bytes;
		f->objects--;
		if (pv_publish(f->s, (struct pv_action[]){PV_STORE(at, (uintptr_t)b->next), PV_FREE(b)},
			       2))
			fail("pv_publish");
	}
	f->bytes -= bytes;
	return bytes;
}

static void tell(void *ctx, const char *line)
{
	fprintf(stderr, "exhaust: pv_check: %s\n", line);
}

static void check(struct pv_store *s, const struct filler *f, unsigned int n)
{
	struct pv_check_report r;
	uint64_t objects = 1; /* the root */

	if (pv_check(s, PV_CHECK_TELL(tell, NULL), &r) || r.problems)
		fail("%" PRIu64 " problems", r.problems);
	for (unsigned int i = 0; i < n; i++) {
		verify(&f[i]);
		objects += f[i].objects;
	}
	if (r.live_objects != objects)
		fail("%" PRIu64 " objects live, %" PRIu64 " known", r.live_objects, objects);
}

/* How many bytes more there are when each filler has done this. */
static uint64_t run_all(struct filler *f, unsigned int n, void *(*what)(void *))
{
	pthread_t threads[THREADS_MAX];
	uint64_t bytes = 0;

	for (unsigned int i = 0; i < n; i++)
		bytes -= f[i].bytes;
	for (unsigned int i = 0; i < n; i++)
		if (pthread_create(&threads[i], NULL, what, &f[i]))
			fail("pthread_create");
	for (unsigned int i = 0; i < n; i++) {
		pthread_join(threads[i], NULL);
		bytes += f[i].bytes;
	}
	return bytes;
}

static void print_stats(struct pv_store *s)
{
	struct pv_stats *st;

	if (pv_stats_get(s, &st))
		fail("pv_stats_get");
	printf("  %u segments of %.1f MiB, %.1f MiB backed; %" PRIu64 " live objects, %.1f MiB; "
	       "slabs %.1f%% free\n",
	       st->segments, (double)st->bytes / MIB, (double)st->backed_bytes / MIB, st->live_objects,
	       (double)st->live_bytes / MIB, 100 * st->slabs.fragmentation);
	pv_stats_free(st);
}

int main(int argc, char **argv)
{
	const struct pv_options o = {.size = sizeof(o), .flags = PV_CREATE, .handover = PV_HANDOVER_NONE};
	const struct pv_typedef def = PV_TYPE_BYTES("block", 1);
	unsigned int rounds = argc == 3 ? (unsigned int)atoi(argv[1]) : 0;
	unsigned int n = argc == 3 ? (unsigned int)atoi(argv[2]) : 0;
	struct filler f[THREADS_MAX];
	uint64_t again, got, freed = 0;
	struct pv_store *s;
	struct root *root;
	pv_type_t type;

	if (!rounds || !n || n > THREADS_MAX) {
		fprintf(stderr, "usage: exhaust ROUNDS THREADS (at most %d)\n", THREADS_MAX);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (pv_open("exhaust", &o, &s) || pv_type_register(s, &def, &type) ||
	    pv_root(s, "lists", type, sizeof(*root), (void **)&root, NULL))
		fail("no store");
	for (unsigned int i = 0; i < n; i++)
		f[i] = (struct filler){
			.s = s, .type = type, .list = &root->lists[i], .random = 88172645463325252u + i};
	for (unsigned int round = 0; round < rounds; round++) {
		again = run_all(f, n, refill);
		got = run_all(f, n, fill);
		printf("round %u: %.1f MiB had been freed, %.1f got again, %.1f more; then: %s\n", round,
		       (double)freed / MIB, (double)again / MIB, (double)got / MIB, f[0].message);
		print_stats(s);
		check(s, f, n);
		/* Some of what was freed went back to the kernel, where others may have taken it. */
		if (again + got < (freed ? freed / 2 : 1 << 20))
			fail("that is too little");
		freed = 0;
		for (unsigned int i = 0; i < n; i++)
			freed += thin(&f[i], 2 + round % 3);
		check(s, f, n);
	}
	for (unsigned int i = 0; i < n; i++)
		free(f[i].freed);
	if (pv_destroy(s))
		fail("pv_destroy");
	return 0;
}
