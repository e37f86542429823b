/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What does it cost to attach a store at another base than it was, and how does that compare to copying
 * the same bytes? A store is made, closed, and opened again with relocation demanded; its pages are in
 * memory, but nothing is mapped, as in a new process. Then all pointers are followed, and the segments are
 * copied to ordinary memory, which is mapped already.
 *
 * Tells: bytes (of slabs with pointers), pass_ns, attach_ns (all of pv_open()), copy_ns (of as many bytes).
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "common.h"

#define FDS	     64
#define VALUE_BYTES  1024u
#define THREADS_MAX  64u
#define LEAVES	     4096u /* chains of nodes, so that building needs no table of them all */

/** 64 bytes, two pointers. */
struct node {
	struct node *next;  /* in its chain */
	struct node *other; /* any node */
	uint64_t number;
	uint64_t pad[5];
};

struct table {
	struct node *chains[LEAVES];
};

static const struct pv_typedef node_type =
	PV_TYPE(struct node, "node", 1, PV_POINTER(struct node, next), PV_POINTER(struct node, other));
static const struct pv_typedef table_type =
	PV_TYPE(struct table, "table", 1, PV_POINTER(struct table, chains));
static const struct pv_typedef value_type = PV_TYPE_BYTES("value", 1);

static int kept[FDS];
static uint64_t tokens[FDS];
static unsigned int nkept;

static int keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	if (what == PV_KEEP_DROP)
		return 0;
	if (nkept == FDS)
		return -EMFILE;
	kept[nkept] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	tokens[nkept++] = token;
	return kept[nkept - 1] < 0 ? -EMFILE : 0;
}

static void check(int err, const char *call)
{
	if (err)
		bench_die("%s: %s", call, pv_last_error());
}

static struct table *get_root(struct pv_store *s, pv_type_t types[3])
{
	void *root;

	check(pv_type_register(s, &node_type, &types[0]), "pv_type_register");
	check(pv_type_register(s, &table_type, &types[1]), "pv_type_register");
	check(pv_type_register(s, &value_type, &types[2]), "pv_type_register");
	check(pv_root(s, "table", types[1], sizeof(struct table), &root, NULL), "pv_root");
	return root;
}

static void add_node(struct pv_store *s, pv_type_t type, struct table *t, uint64_t number,
		     struct bench_rng *rng)
{
	struct node **chain = &t->chains[number % LEAVES];
	void *p;
	struct node *n;

	check(pv_reserve(s, type, sizeof(*n), &p), "pv_reserve");
	n = p;
	*n = (struct node){.next = *chain, .number = number};
	n->other = t->chains[bench_random_below(rng, LEAVES)];
	if (!n->other)
		n->other = n;
	check(pv_link(s, n, chain), "pv_link");
}

static void build(struct pv_options *o, uint64_t nodes, uint64_t values)
{
	struct pv_store *s;
	struct bench_rng rng;
	struct table *t;
	pv_type_t types[3];
	void *value;

	bench_rng_seed(&rng, nodes);
	o->flags = PV_CREATE;
	check(pv_open("bench-relocate", o, &s), "pv_open");
	t = get_root(s, types);
	for (uint64_t i = 0, done = 0; i < nodes; i++) {
		add_node(s, types[0], t, i, &rng);
		for (; done * nodes < values * (i + 1); done++) {
			check(pv_reserve(s, types[2], VALUE_BYTES, &value), "pv_reserve");
			memset(value, 0x5a, VALUE_BYTES);
			check(pv_publish(s, &PV_LIVE(value), 1), "pv_publish");
		}
	}
	check(pv_close(s), "pv_close");
}

static void look(struct pv_store *s, uint64_t nodes, const struct pv_info *info)
{
	pv_type_t types[3];
	struct table *t = get_root(s, types);
	uint64_t seen = 0;

	for (unsigned int i = 0; i < LEAVES; i++) {
		for (const struct node *n = t->chains[i]; n; n = n->next, seen++) {
			if (n->number % LEAVES != i || (uint64_t)(uintptr_t)n->other < info->base ||
			    (uint64_t)(uintptr_t)n->other >= info->base + info->window_bytes ||
			    n->other->number >= nodes)
				bench_die("node %llu has lost its way", (unsigned long long)n->number);
		}
	}
	if (seen != nodes)
		bench_die("%llu nodes of %llu are there", (unsigned long long)seen,
			  (unsigned long long)nodes);
}

struct copy {
	uint8_t *to;
	const uint8_t *from;
	size_t bytes;
	unsigned int cpu;
	pthread_barrier_t *start;
	uint64_t began_ns, ended_ns;
};

static void *copy_main(void *arg)
{
	struct copy *c = arg;

	bench_pin(c->cpu);
	pthread_barrier_wait(c->start);
	c->began_ns = bench_now_ns();
	memcpy(c->to, c->from, c->bytes);
	c->ended_ns = bench_now_ns();
	return NULL;
}

/* Copy so many bytes in so many threads; nanoseconds from the first one's start to the last one's end. */
static uint64_t copy(uint8_t *to, const uint8_t *from, size_t bytes, unsigned int threads)
{
	struct copy all[THREADS_MAX];
	pthread_t ids[THREADS_MAX];
	pthread_barrier_t barrier;
	uint64_t began = UINT64_MAX, ended = 0;

	if (pthread_barrier_init(&barrier, NULL, threads))
		bench_die("pthread_barrier_init");
	for (unsigned int i = 0; i < threads; i++) {
		size_t from_at = bytes / threads * i / 64 * 64;
		size_t to_at = i + 1 == threads ? bytes : bytes / threads * (i + 1) / 64 * 64;

		all[i] = (struct copy){.to = to + from_at,
				       .from = from + from_at,
				       .bytes = to_at - from_at,
				       .cpu = i,
				       .start = &barrier};
		if (pthread_create(&ids[i], NULL, copy_main, &all[i]))
			bench_die("pthread_create");
	}
	for (unsigned int i = 0; i < threads; i++) {
		pthread_join(ids[i], NULL);
		began = all[i].began_ns < began ? all[i].began_ns : began;
		ended = all[i].ended_ns > ended ? all[i].ended_ns : ended;
	}
	return ended - began;
}

/* The store's segments are one behind the other: as many bytes as were relocated, all of them mapped. */
static uint64_t measure_copy(const struct pv_info *info, uint64_t first_off, unsigned int threads)
{
	size_t bytes = info->relocated_bytes;
	const uint8_t *from = (const uint8_t *)(uintptr_t)(info->base + first_off);
	uint8_t *to = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	volatile uint8_t sum = 0;

	if (to == MAP_FAILED)
		bench_die("mmap of %zu bytes: %s", bytes, strerror(errno));
	for (size_t at = 0; at < bytes; at += 4096)
		sum = (uint8_t)(sum + from[at]);
	return copy(to, from, bytes, threads);
}

static void usage(void)
{
	printf("usage: %s [--nodes N] [--values N] [--threads N]\n\n"
	       "--nodes    of 64 bytes with two pointers (default 16000000)\n"
	       "--values   of %u bytes without pointers, among them (default 0)\n"
	       "--threads  that relocate and copy (default 1)\n",
	       program_invocation_short_name, VALUE_BYTES);
}

int main(int argc, char **argv)
{
	uint64_t nodes = 16000000, values = 0, threads = 1;
	struct pv_options o = {.size = sizeof(o), .handover = PV_HANDOVER_NONE, .keep = keep};
	struct pv_info info;
	struct pv_store *s;

	bench_start();
	for (int i = 1; i < argc; i += 2) {
		const char *arg = argv[i], *value = argv[i + 1];

		if (!strcmp(arg, "--help")) {
			usage();
			return 0;
		}
		if (!value)
			bench_die("%s lacks its value (see --help)", arg);
		if (!strcmp(arg, "--nodes"))
			nodes = bench_number(arg, value, 1);
		else if (!strcmp(arg, "--values"))
			values = bench_number(arg, value, 0);
		else if (!strcmp(arg, "--threads"))
			threads = bench_number(arg, value, 1);
		else
			bench_die("%s is unknown (see --help)", arg);
	}
	if (threads > THREADS_MAX)
		bench_die("--threads is at most %u", THREADS_MAX);
	build(&o, nodes, values);
	o.flags = 0;
	o.fds = kept;
	o.nfds = nkept;
	o.relocate = PV_RELOCATE_ALWAYS;
	o.threads = (uint32_t)threads;
	bench_unpin();
	check(pv_open("bench-relocate", &o, &s), "pv_open");
	check(pv_info_get(s, &info), "pv_info_get");
	if (info.origin != PV_ORIGIN_RELOCATED || info.relocated_pointers < nodes)
		bench_die("%llu pointers were relocated, %llu nodes have two each",
			  (unsigned long long)info.relocated_pointers, (unsigned long long)nodes);
	look(s, nodes, &info);
	bench_tell_number("bytes", info.relocated_bytes);
	bench_tell_number("pass_ns", info.relocated_ns);
	bench_tell_number("attach_ns", info.attach_ns);
	/* The first segment begins where the index's granule ends. */
	bench_tell_number("copy_ns", measure_copy(&info, 64ull << 20, (unsigned int)threads));
	check(pv_close(s), "pv_close");
	return 0;
}
