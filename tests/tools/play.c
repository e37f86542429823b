/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A program with a store, for the tests of preservectl: a list of nodes with contents that can be told
 * to be right, and one large object.
 *
 *	play make DIR NAME NODES [MIB]	make a store with so many nodes and an object of so many MiB
 *	play verify DIR NAME NODES [MIB]	attach it and look at everything; exit status 1: it is not so
 *	play thin DIR NAME NODES [MIB]	free all nodes but so many, the large object unless it has MIB, and trim
 *	play leak DIR NAME NODES	make so many nodes that nothing leads to
 *	play hold DIR NAME		open it, say "open", and wait for the end of standard input
 *
 * DIR is the runtime directory. `make` and `verify` print a line of name=value.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <preserve/preserve.h>

struct node {
	struct node *next;
	uint64_t number;
	uint64_t words[6];
};

struct list {
	struct node *first;
	void *large;
	uint64_t large_bytes;
	uint64_t nodes;
};

static const struct pv_typedef node_type =
	PV_TYPE(struct node, "node", 3, PV_POINTER_TO(struct node, next, "node"));
static const struct pv_typedef list_type =
	PV_TYPE(struct list, "list", 1, PV_POINTER_TO(struct list, first, "node"),
		PV_POINTER_TO(struct list, large, "blob"));
static const struct pv_typedef blob_type = PV_TYPE_BYTES("blob", 1);

static pv_type_t nodes, lists, blobs;

__attribute__((format(printf, 1, 2))) static _Noreturn void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

static void must(int err)
{
	if (err)
		die("play: %d: %s", err, pv_last_error());
}

/* Half of it repeats, so that it can be compressed, but not to nothing. */
static uint64_t pattern(uint64_t number, uint64_t i)
{
	uint64_t x = number * 0x9e3779b97f4a7c15ull + i;

	x ^= x >> 31;
	x *= 0xbf58476d1ce4e5b9ull;
	return i % 2 ? x : number & 0xff;
}

static struct list *open_list(const char *dir, const char *name, uint32_t flags,
			      struct pv_store **store)
{
	struct pv_options o = {
		.size = sizeof(o),
		.flags = flags,
		.handover = PV_HANDOVER_HOLDER,
		.segment_bytes = 1u << 20,
		.lanes = 4,
		.runtime_dir = dir,
	};
	struct list *list;

	must(pv_open(name, &o, store));
	must(pv_type_register(*store, &node_type, &nodes));
	must(pv_type_register(*store, &list_type, &lists));
	must(pv_type_register(*store, &blob_type, &blobs));
	must(pv_root(*store, "list", lists, sizeof(*list), (void **) &list, NULL));
	return list;
}

static void fill(struct pv_store *s, struct list *list, uint64_t count, uint64_t large_bytes)
{
	for (uint64_t i = 0; i < count; i++) {
		struct node *n;

		must(pv_reserve(s, nodes, sizeof(*n), (void **) &n));
		n->number = i;
		for (unsigned int k = 0; k < 6; k++)
			n->words[k] = pattern(i, k);
		n->next = list->first;
		must(pv_link(s, n, &list->first));
	}
	if (large_bytes) {
		must(pv_alloc(s, blobs, large_bytes, &list->large));
		for (uint64_t i = 0; i < large_bytes / 8; i++)
			((uint64_t *) list->large)[i] = pattern(i / 512, i);
	}
	list->large_bytes = large_bytes;
	list->nodes = count;
}

/* What was allocated last goes first; every third of what is left goes, too, and is made again. */
static void thin(struct pv_store *s, struct list *list, uint64_t count, uint64_t large_bytes)
{
	while (list->nodes > count) {
		struct node *n = list->first;

		must(pv_unlink(s, &list->first, (uintptr_t) n->next, n));
		list->nodes--;
	}
	for (struct node **at = &list->first; *at; at = &(*at)->next) {
		struct node *old = *at, *n;

		if (old->number % 3)
			continue;
		must(pv_reserve(s, nodes, sizeof(*n), (void **) &n));
		*n = *old;
		must(pv_replace(s, n, at, old));
	}
	if (list->large && list->large_bytes != large_bytes) {
		must(pv_free(s, &list->large));
		list->large_bytes = 0;
	}
	must(pv_trim(s, NULL));
}

static void leak(struct pv_store *s, uint64_t count)
{
	while (count--) {
		struct node *n;

		must(pv_reserve(s, nodes, sizeof(*n), (void **) &n));
		n->next = NULL;
		must(pv_publish(s, (struct pv_action[]){PV_LIVE(n)}, 1));
	}
}

static void verify(struct pv_store *s, const struct list *list, uint64_t count, uint64_t large_bytes)
{
	struct pv_check_report report;
	uint64_t i = count;

	if (list->nodes != count || list->large_bytes != large_bytes)
		die("play: the list says %" PRIu64 " nodes, %" PRIu64 " bytes", list->nodes,
		    list->large_bytes);
	for (const struct node *n = list->first; n; n = n->next) {
		if (i-- == 0 || n->number != i)
			die("play: node %" PRIu64 " is number %" PRIu64, i, n->number);
		for (unsigned int k = 0; k < 6; k++)
			if (n->words[k] != pattern(i, k))
				die("play: node %" PRIu64 ": word %u is wrong", i, k);
	}
	if (i)
		die("play: %" PRIu64 " nodes are missing", i);
	for (i = 0; i < large_bytes / 8; i++)
		if (((const uint64_t *) list->large)[i] != pattern(i / 512, i))
			die("play: the large object is wrong at word %" PRIu64, i);
	must(pv_check(s, NULL, &report));
	if (report.problems)
		die("play: %" PRIu64 " problems", report.problems);
}

static void tell(struct pv_store *s)
{
	struct pv_info info;

	must(pv_info_get(s, &info));
	printf("base=%" PRIu64 " epoch=%" PRIu64 " segments=%u uuid=", info.base, info.epoch,
	       info.segments);
	for (unsigned int i = 0; i < 16; i++)
		printf("%02x", info.uuid[i]);
	putchar('\n');
}

int main(int argc, char **argv)
{
	uint64_t count = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
	uint64_t large_bytes = (argc > 5 ? strtoull(argv[5], NULL, 10) : 0) << 20;
	struct pv_store *s;
	struct list *list;
	char c;

	if (argc < 4)
		die("usage: play make|verify|thin|leak|hold DIR NAME [NODES [MIB]]");
	list = open_list(argv[2], argv[3], strcmp(argv[1], "make") == 0 ? PV_CREATE | PV_EXCL : 0, &s);
	if (strcmp(argv[1], "make") == 0) {
		fill(s, list, count, large_bytes);
		tell(s);
	} else if (strcmp(argv[1], "thin") == 0) {
		thin(s, list, count, large_bytes);
	} else if (strcmp(argv[1], "leak") == 0) {
		leak(s, count);
	} else if (strcmp(argv[1], "verify") == 0) {
		verify(s, list, count, large_bytes);
		tell(s);
	} else {
		puts("open");
		fflush(stdout);
		while (read(STDIN_FILENO, &c, 1) > 0)
			;
	}
	must(pv_close(s));
	return 0;
}
