/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What does it cost to give every object of a store another layout, and how does that compare to copying the
 * objects' bytes? A store of --objects nodes of 64 bytes with two pointers each is made, closed, and attached
 * by the next version of the program, whose nodes have 80 bytes: fields have moved, and there is a new one.
 * Then all pointers are followed, and as many bytes of the store are copied to ordinary memory that is
 * mapped already.
 *
 * Tells: bytes (of the old objects), upgrade_ns (all of pv_types_register()), functions_ns (the share in
 * which new objects are made), plan_ns (a dry run), copy_ns.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <preserve/preserve.h>
#include <preserve/upgrade.h>

#include "common.h"

#define FDS	   64
#define CHAINS	   4096u /* of nodes, so that building needs no table of them all */
#define NAME	   "bench-upgrade"
#define FIRST_SEGMENT (64ull << 20)

struct node1 {
	struct node1 *next;  /* in its chain */
	struct node1 *other; /* any node */
	uint64_t number;
	uint64_t more[5];
};

struct node2 {
	uint64_t number;
	uint64_t more[5];
	uint64_t doubled; /* new */
	struct node2 *other;
	struct node2 *next;
	uint64_t spare; /* new */
};

struct table {
	void *chains[CHAINS];
};

static int to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct node1 *from = old;
	struct node2 *to = fresh;

	(void)ctx, (void)old_bytes, (void)fresh_bytes;
	to->number = from->number;
	memcpy(to->more, from->more, sizeof(to->more));
	to->doubled = 2 * from->number;
	to->other = (struct node2 *)from->other;
	to->next = (struct node2 *)from->next;
	return 0;
}

static const struct pv_upgrade upgrades[] = {PV_UPGRADE(1, 2, struct node2, to_2)};
static const struct pv_typedef node1_type =
	PV_TYPE(struct node1, "node", 1, PV_POINTER(struct node1, next), PV_POINTER(struct node1, other));
static const struct pv_typedef node2_type = {
	PV_TYPE_OF(struct node2, "node", 2, PV_POINTER(struct node2, next),
		   PV_POINTER(struct node2, other)),
	.nupgrades = 1,
	.upgrades = upgrades,
};
static const struct pv_typedef table_type =
	PV_TYPE(struct table, "table", 1, PV_POINTER(struct table, chains));

static int kept[FDS];
static unsigned int nkept;

static int keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	(void)ctx, (void)token;
	if (what == PV_KEEP_DROP)
		return 0;
	if (nkept == FDS)
		return -EMFILE;
	kept[nkept] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return kept[nkept++] < 0 ? -EMFILE : 0;
}

static void check(int err, const char *call)
{
	if (err)
		bench_die("%s: %s", call, pv_last_error());
}

static struct table *get_table(struct pv_store *s)
{
	pv_type_t type;
	void *root;

	check(pv_type_register(s, &table_type, &type), "pv_type_register");
	check(pv_root(s, "table", type, sizeof(struct table), &root, NULL), "pv_root");
	return root;
}

static void build(struct pv_options *o, uint64_t objects)
{
	struct bench_rng rng;
	struct pv_store *s;
	struct table *t;
	pv_type_t type;
	void *p;

	bench_rng_seed(&rng, objects);
	o->flags = PV_CREATE;
	check(pv_open(NAME, o, &s), "pv_open");
	t = get_table(s);
	check(pv_type_register(s, &node1_type, &type), "pv_type_register");
	for (uint64_t i = 0; i < objects; i++) {
		void **chain = &t->chains[i % CHAINS];
		struct node1 *other = t->chains[bench_random_below(&rng, CHAINS)];

		check(pv_reserve(s, type, sizeof(struct node1), &p), "pv_reserve");
		*(struct node1 *)p = (struct node1){*chain, other ? other : p, i, {i, i, i, i, i}};
		check(pv_link(s, p, chain), "pv_link");
	}
	check(pv_close(s), "pv_close");
}

static void look(struct pv_store *s, uint64_t objects)
{
	const struct table *t = get_table(s);
	uint64_t seen = 0;

	for (unsigned int i = 0; i < CHAINS; i++)
		for (const struct node2 *n = t->chains[i]; n; n = n->next, seen++)
			if (n->number % CHAINS != i || n->doubled != 2 * n->number ||
			    n->more[4] != n->number || n->other->doubled != 2 * n->other->number)
				bench_die("node %llu is not what it was", (unsigned long long)n->number);
	if (seen != objects)
		bench_die("%llu nodes of %llu are there", (unsigned long long)seen,
			  (unsigned long long)objects);
}

/* Segments lie one behind the other, the first behind the index's granule. */
static uint64_t copy(struct pv_store *s, size_t bytes)
{
	uint8_t *to = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	volatile uint8_t sum = 0;
	const uint8_t *from;
	struct pv_info info;
	uint64_t start;

	if (to == MAP_FAILED)
		bench_die("mmap of %zu bytes: %s", bytes, strerror(errno));
	check(pv_info_get(s, &info), "pv_info_get");
	from = (const uint8_t *)(uintptr_t)(info.base + FIRST_SEGMENT);
	for (size_t at = 0; at < bytes; at += 4096)
		sum = (uint8_t)(sum + from[at]);
	start = bench_now_ns();
	memcpy(to, from, bytes);
	return bench_now_ns() - start;
}

static void upgrade(struct pv_options *o, uint64_t objects)
{
	const struct pv_typedef *def = &node2_type;
	struct pv_upgrade_report planned, done;
	struct pv_store *s;
	pv_type_t type;

	o->flags = 0;
	o->fds = kept;
	o->nfds = nkept;
	check(pv_open(NAME, o, &s), "pv_open");
	check(pv_types_plan(s, &def, 1, NULL, &planned), "pv_types_plan");
	check(pv_types_register(s, &def, 1, NULL, &done, &type), "pv_types_register");
	if (planned.objects != objects || done.objects != objects)
		bench_die("%llu objects were upgraded, there are %llu",
			  (unsigned long long)done.objects, (unsigned long long)objects);
	look(s, objects);
	bench_tell_number("bytes", done.bytes_before);
	bench_tell_number("upgrade_ns", done.ns);
	bench_tell_number("functions_ns", done.copy_ns);
	bench_tell_number("plan_ns", planned.ns);
	bench_tell_number("copy_ns", copy(s, done.bytes_before));
	check(pv_close(s), "pv_close");
}

int main(int argc, char **argv)
{
	struct pv_options o = {.size = sizeof(o), .handover = PV_HANDOVER_NONE, .keep = keep,
			       .segment_bytes = FIRST_SEGMENT};
	uint64_t objects = 8000000;

	bench_start();
	if (argc == 2 && !strcmp(argv[1], "--help")) {
		printf("usage: %s [--objects N]\n\n--objects  of 64 bytes (default 8000000)\n",
		       program_invocation_short_name);
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "--objects"))
		objects = bench_number(argv[1], argv[2], 1);
	else if (argc != 1)
		bench_die("%s is unknown, or lacks its value (see --help)", argv[1]);
	build(&o, objects);
	upgrade(&o, objects);
	return 0;
}
