/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Images made to deceive: what test_image.c flips at random is here changed on purpose, and checksums
 * are computed anew, so that the checks behind them are reached. An input is a list of changes to
 * the memfds of a small store: words of headers, properties of the index, entries of page maps, intents,
 * transaction logs, an index staged for a lane to put in force. Then the store is opened and used.
 *
 * Right is: a refusal that leaves every byte of the image as it was, or a store that can be checked,
 * walked, used, closed and opened again without a crash. Sanitizers and the caller see the rest.
 *
 * The same function serves libFuzzer and replay.c. Nothing in it depends on anything but the input.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fuzz.h"
#include "fuzz_image.h"
#include "internal.h"
#include "map_layout.h"

enum { GROWN_MAX = 16, CHANGES_MAX = 12 };

struct image image;

/* Descriptors of segments that a run has added. */
static int grown[GROWN_MAX];
static unsigned int ngrown;

const struct pv_typedef node_type = {
	.name = "node",
	.version = 1,
	.bytes = 32,
	.fields = (const struct pv_field[]){
		{.name = "both", .kind = PV_FIELD_POINTER, .count = 2, .stride = 8, .target = "node"}},
	.nfields = 1};
const struct pv_typedef bytes_type = PV_TYPE_BYTES("bytes", 1);

const struct pv_typedef graph_type =
	PV_TYPE(struct graph, "graph", 1, PV_POINTER_TO(struct graph, next, "graph"),
		PV_TAGGED(struct graph, tagged, ~0ull >> 16 & ~15ull), PV_RELATIVE(struct graph, relative),
		PV_OFFSET(struct graph, offset), PV_POINTER_COUNTED(struct graph, kids, nkids));

void must(int condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "fuzz_image: %s; last error: %s\n", what, pv_last_error());
	abort();
}

/* ---- the image ---- */

static int keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	int copy;

	if (what == PV_KEEP_DROP)
		return 0;
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	must(copy >= 0, "no descriptors");
	if (ctx) { /* while the pristine store is made */
		must(token < MEMFDS_MAX, "too many segments");
		image.fds[token] = copy;
		image.n = image.n > token ? image.n : (unsigned int)token + 1;
		return 0;
	}
	if (ngrown == GROWN_MAX) {
		close(copy);
		return -ENOSPC;
	}
	grown[ngrown++] = copy;
	return 0;
}

static uint32_t relocate = PV_RELOCATE_NEVER;
static uint32_t dangling;

static struct pv_options options(uint32_t flags)
{
	return (struct pv_options){
		.size = sizeof(struct pv_options),
		.flags = flags,
		.handover = PV_HANDOVER_NONE,
		.window_bytes = 16 << 20,
		.segment_bytes = 64 << 10,
		.lanes = LANES,
		.relocate = relocate,
		.dangling = dangling,
		.fds = image.fds,
		.nfds = image.n,
		.keep = keep,
	};
}

static void fill(struct pv_store *s)
{
	static const size_t sizes[] = {32, 64, 200, 700, 9000, 40000};
	pv_type_t node, bytes;
	void **root;

	must(pv_type_register(s, &node_type, &node) == 0, "pv_type_register");
	must(pv_type_register(s, &bytes_type, &bytes) == 0, "pv_type_register");
	must(pv_root(s, "root", bytes, SLOTS * sizeof(void *), (void **)&root, NULL) == 0, "pv_root");
	for (unsigned int i = 0; i < 30; i++)
		must(pv_alloc(s, i % 6 ? bytes : node, sizes[i % 5], &root[i]) == 0, "pv_alloc");
	must(pv_alloc(s, bytes, sizes[5], &root[30]) == 0, "pv_alloc");
}

static void fill_graph(struct pv_store *s)
{
	pv_type_t type;
	struct graph *root, *g;
	void *p;

	must(pv_type_register(s, &graph_type, &type) == 0, "pv_type_register");
	must(pv_root(s, "graph", type, GRAPH_BYTES, &p, NULL) == 0, "pv_root");
	root = g = p;
	for (unsigned int i = 0; i < GRAPH_OBJECTS; i++) {
		image.graph[i] = (uintptr_t)g - s->base;
		g->tagged = (uintptr_t)root | (uint64_t)i << 50;
		g->relative = (int64_t)((uintptr_t)root - (uintptr_t)&g->relative);
		g->offset = image.graph[i / 2];
		g->nkids = i % (GRAPH_KIDS + 1);
		for (unsigned int k = 0; k < g->nkids; k++)
			g->kids[k] = root;
		must(pv_alloc(s, type, GRAPH_BYTES, (void **)&g->next) == 0, "pv_alloc");
		g = g->next;
	}
}

static const void *map_key(const void *entry, size_t *bytes)
{
	const struct item *item = entry;

	*bytes = item->key_bytes;
	return &item->key;
}

/* Of the map's own choice it would be another one in each process. Few buckets, so that chains overflow. */
static uint64_t map_hash(const void *key, size_t bytes, uint64_t seed)
{
	const uint8_t *p = key;
	uint64_t v = bytes ? p[0] + (uint64_t)p[bytes - 1] * 256 : 0;

	return v % 4 | v / 4 % 8 << 4 | v * 0x9e3779b97f4a7c15ull >> 49 << 49;
}

const struct pv_map_options map_options = {
	.size = sizeof(map_options), .key = map_key, .hash = map_hash, .entry_bytes = sizeof(struct item)};

static void note_words(const struct pv_store *s, const void *from, size_t bytes)
{
	for (size_t i = 0; i < bytes / 8; i++) {
		must(image.ntable < TABLE_WORDS, "too many words in the map");
		image.table[image.ntable++] = (uintptr_t)from + 8 * i - s->base;
	}
}

/* Words of root, table, buckets, overflow buckets, and of some entries. */
static void note_table(struct pv_store *s, struct pv_map *map)
{
	note_words(s, map->root, 16);
	note_words(s, map->rec, sizeof(*map->rec));
	note_words(s, map->root->doomed, sizeof(*map->rec));
	for (uint64_t i = 0; i < 16; i++) {
		struct bucket_rec *b = map_bucket(map, map->rec, i);

		note_words(s, b, i < 4 ? sizeof(*b) : 16);
		for (struct overflow_rec *o = b->next; o; o = o->next)
			note_words(s, o, sizeof(*o));
		if (b->words[0])
			note_words(s, map_word_entry(b->words[0]), 16);
	}
}

static void fill_map(struct pv_store *s)
{
	struct pv_map *map;
	pv_type_t bytes;
	struct item *item;
	void *p;

	must(pv_type_register(s, &bytes_type, &bytes) == 0, "pv_type_register");
	must(pv_map_open(s, "map", &map_options, &map) == 0, "pv_map_open");
	for (uint64_t i = 0; i < MAP_ENTRIES + 3; i++) {
		if (i == 3) /* some are left to be tidied away */
			must(pv_map_clear(map, NULL, 0) == 0, "pv_map_clear");
		must(pv_reserve(s, bytes, sizeof(*item), &p) == 0, "pv_reserve");
		item = p;
		*item = (struct item){8, i};
		must(pv_map_put(map, pv_map_hash(map, &item->key, 8), item, 0) == 0, "pv_map_put");
	}
	note_table(s, map);
	pv_map_close(map);
}

static void make_image(void)
{
	struct pv_options o = options(PV_CREATE);
	struct pv_store *s;

	setenv("PV_MISUSE", "error", 1); /* what is damaged leads to wrong pointers */
	o.keep_ctx = &image;
	must(pv_open("fuzz", &o, &s) == 0, "pv_open");
	fill(s);
	fill_graph(s);
	fill_map(s);
	image.base = s->base;
	pv_close(s);
	for (unsigned int i = 0; i < image.n; i++) {
		size_t n = image.bytes[i] = (size_t)lseek(image.fds[i], 0, SEEK_END);

		image.now[i] = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED, image.fds[i], 0);
		image.pristine[i] = malloc(n);
		image.before[i] = malloc(n);
		must(image.now[i] != MAP_FAILED && image.pristine[i] && image.before[i], "no memory");
		memcpy(image.pristine[i], image.now[i], n);
	}
}

static bool untouched(void)
{
	for (unsigned int i = 0; i < image.n; i++)
		if (memcmp(image.now[i], image.before[i], image.bytes[i]) != 0)
			return false;
	return true;
}

static void run(uint32_t flags, unsigned int input)
{
	struct pv_options o = options(flags);
	struct pv_store *s;

	for (unsigned int i = 0; i < image.n; i++)
		memcpy(image.before[i], image.now[i], image.bytes[i]);
	if (pv_open("fuzz", &o, &s)) {
		/* A relocation is refused when it meets the damage, and moved back. */
		must(relocate == PV_RELOCATE_ALWAYS || untouched(),
		     "pv_open() refused the image and changed it");
		return;
	}
	if (flags & PV_RDONLY) {
		image_look(s, input);
		image_search(s);
		must(untouched(), "a read-only handle changed the image");
	} else {
		image_use(s, input);
	}
	pv_close(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	unsigned int flags;

	if (!image.n)
		make_image();
	for (unsigned int i = 0; i < image.n; i++)
		memcpy(image.now[i], image.pristine[i], image.bytes[i]);
	flags = (unsigned int)input_take(&in, 1);
	for (unsigned int i = 0; i < CHANGES_MAX && in.left; i++)
		image_change(&in);
	if (!(flags & INPUT_KEEP_CHECKSUMS))
		image_compute_checksums();
	relocate = flags & INPUT_RELOCATE ? PV_RELOCATE_ALWAYS : PV_RELOCATE_NEVER;
	dangling = flags & INPUT_NULL ? PV_DANGLING_NULL : PV_DANGLING_REFUSE;
	run((flags & INPUT_RDONLY ? PV_RDONLY : 0) | (flags & INPUT_MEND ? PV_MEND : 0), flags);
	if (!(flags & INPUT_RDONLY) && !ngrown)
		run(0, flags); /* what the use left behind; without segments that joined meanwhile it is refused */
	while (ngrown)
		close(grown[--ngrown]);
	return 0;
}
