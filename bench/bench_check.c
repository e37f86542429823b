/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How long does a full check take?
 *
 * --objects nodes of 64 bytes with two pointers each form a binary tree below a root. Where a node
 * lies has nothing to do with its place in the tree, so that each pointer is a cache miss. The
 * store is closed and opened again, and pv_check() follows all pointers with --threads threads.
 * Told are the milliseconds of one check, after one that is not measured; and for comparison what
 * it takes to visit all nodes by a plain walk over the tree, in one thread, which checks nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "common.h"

enum { MEMFDS_MAX = 64 };

struct node {
	struct node *left;
	struct node *right;
	uint64_t number;
	uint64_t rest[5];
};

static const struct pv_typedef node_type =
	PV_TYPE(struct node, "bench-node", 1, PV_POINTER_TO(struct node, left, "bench-node"),
		PV_POINTER_TO(struct node, right, "bench-node"));

_Static_assert(sizeof(struct node) == 64, "node");

static int fds[MEMFDS_MAX];
static unsigned int nfds;

static int keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	if (what != PV_KEEP_ADD || nfds == MEMFDS_MAX)
		return what == PV_KEEP_ADD ? -ENOSPC : 0;
	fds[nfds] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return fds[nfds++] < 0 ? -errno : 0;
}

static void must(int err, const char *call)
{
	if (err)
		bench_die("%s: %s", call, pv_last_error());
}

static struct pv_store *open_store(uint32_t flags)
{
	struct pv_options o = {
		.size = sizeof(o),
		.flags = flags,
		.handover = PV_HANDOVER_NONE,
		.fds = fds,
		.nfds = nfds,
		.keep = keep,
	};
	struct pv_store *s;

	must(pv_open("bench-check", &o, &s), "pv_open");
	return s;
}

/* Node i has the nodes 2 i + 1 and 2 i + 2 below it. */
static void build(struct pv_store *s, uint64_t objects)
{
	struct node **nodes = malloc(objects * sizeof(struct node *));
	struct bench_rng rng;
	struct node *root;
	pv_type_t type;
	void *p;

	if (!nodes)
		bench_die("no memory for %llu nodes", (unsigned long long)objects);
	must(pv_type_register(s, &node_type, &type), "pv_type_register");
	must(pv_root(s, "tree", type, sizeof(*root), &p, NULL), "pv_root");
	root = p;
	for (uint64_t i = 0; i < objects; i++) {
		must(pv_reserve(s, type, sizeof(struct node), &p), "pv_reserve");
		memset(p, 0, sizeof(struct node));
		must(pv_publish(s, &PV_LIVE(p), 1), "pv_publish");
		nodes[i] = p;
	}
	bench_rng_seed(&rng, objects);
	for (uint64_t i = objects; i > 1; i--) {
		uint64_t k = bench_random_below(&rng, i);
		struct node *swap = nodes[i - 1];

		nodes[i - 1] = nodes[k];
		nodes[k] = swap;
	}
	for (uint64_t i = 0; i < objects; i++) {
		*nodes[i] = (struct node){
			.left = 2 * i + 1 < objects ? nodes[2 * i + 1] : NULL,
			.right = 2 * i + 2 < objects ? nodes[2 * i + 2] : NULL,
			.number = i,
		};
	}
	root->left = nodes[0];
	free(nodes);
}

static double check(struct pv_store *s, uint64_t objects, uint32_t threads)
{
	struct pv_check_options o = {.size = sizeof(o), .threads = threads};
	struct pv_check_report r;
	uint64_t before = bench_now_ns(), after;

	must(pv_check(s, &o, &r), "pv_check");
	after = bench_now_ns();
	if (r.problems || r.leaked_objects || r.live_objects != objects + 1 ||
	    r.pointers != objects)
		bench_die("%llu problems, %llu objects, %llu leaked, %llu pointers",
			  (unsigned long long)r.problems, (unsigned long long)r.live_objects,
			  (unsigned long long)r.leaked_objects, (unsigned long long)r.pointers);
	return (double)(after - before) / 1e6;
}

static uint64_t walk(const struct node *node)
{
	uint64_t sum = 0;

	for (; node; node = node->right)
		sum += node->number + walk(node->left);
	return sum;
}

static double walk_all(const struct node *root, uint64_t objects)
{
	uint64_t before = bench_now_ns(), sum = walk(root), after = bench_now_ns();

	if (sum != objects * (objects - 1) / 2)
		bench_die("the walk did not come by all nodes");
	return (double)(after - before) / 1e6;
}

int main(int argc, char **argv)
{
	uint64_t objects = 1000000;
	uint32_t threads = 1;
	struct pv_store *s;
	pv_type_t type;
	void *root;

	for (int i = 1; i < argc; i += 2) {
		const char *arg = argv[i], *value = argv[i + 1];

		if (!strcmp(arg, "--help")) {
			printf("usage: %s [--objects N] [--threads N]\n\n"
			       "Measures once and prints \"ms VALUE\" and \"walk_ms VALUE\". "
			       "scripts/bench compares.\n",
			       program_invocation_short_name);
			return 0;
		}
		if (!value)
			bench_die("%s lacks its value (see --help)", arg);
		if (!strcmp(arg, "--objects"))
			objects = bench_number(arg, value, 1);
		else if (!strcmp(arg, "--threads"))
			threads = (uint32_t)bench_number(arg, value, 1);
		else
			bench_die("%s is unknown (see --help)", arg);
	}
	s = open_store(PV_CREATE);
	build(s, objects);
	pv_close(s);
	s = open_store(0);
	check(s, objects, threads);
	bench_tell("ms", check(s, objects, threads));
	must(pv_type_register(s, &node_type, &type), "pv_type_register");
	must(pv_root(s, "tree", type, sizeof(struct node), &root, NULL), "pv_root");
	bench_tell("walk_ms", walk_all(((struct node *)root)->left, objects));
	pv_close(s);
	return 0;
}
