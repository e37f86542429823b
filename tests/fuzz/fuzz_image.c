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

#include <libfdt.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <preserve/map.h>
#include <preserve/stats.h>
#include <preserve/tx.h>

#include "fuzz.h"
#include "internal.h"

enum { MEMFDS_MAX = 8, GROWN_MAX = 16, LANES = 4, CHANGES_MAX = 12, SLOTS = 64 };

/* The first byte of an input. */
enum {
	INPUT_RDONLY = 1,
	INPUT_KEEP_CHECKSUMS = 2,
	INPUT_THREADS = 4,
	INPUT_MEND = 8,
	INPUT_RELOCATE = 16,
	INPUT_NULL = 32,
};

static struct {
	unsigned int n;
	uint64_t base;
	int fds[MEMFDS_MAX]; /* by token */
	size_t bytes[MEMFDS_MAX];
	uint8_t *now[MEMFDS_MAX]; /* mapped */
	uint8_t *pristine[MEMFDS_MAX];
	uint8_t *before[MEMFDS_MAX]; /* as it was handed to pv_open() */
} image;

/* Descriptors of segments that a run has added. */
static int grown[GROWN_MAX];
static unsigned int ngrown;

static const struct pv_typedef node_type = {
	.name = "node",
	.version = 1,
	.bytes = 32,
	.fields = (const struct pv_field[]){
		{.name = "both", .kind = PV_FIELD_POINTER, .count = 2, .stride = 8, .target = "node"}},
	.nfields = 1};
static const struct pv_typedef bytes_type = PV_TYPE_BYTES("bytes", 1);

enum { GRAPH_OBJECTS = 16, GRAPH_KIDS = 3, MAP_ENTRIES = 20 };

/** An object with a pointer of each kind. */
struct graph {
	struct graph *next;
	uint64_t tagged;
	int64_t relative;
	uint64_t offset;
	uint64_t nkids;
	struct graph *kids[];
};

#define GRAPH_BYTES (sizeof(struct graph) + GRAPH_KIDS * sizeof(struct graph *))

static const struct pv_typedef graph_type =
	PV_TYPE(struct graph, "graph", 1, PV_POINTER_TO(struct graph, next, "graph"),
		PV_TAGGED(struct graph, tagged, ~0ull >> 16 & ~15ull), PV_RELATIVE(struct graph, relative),
		PV_OFFSET(struct graph, offset), PV_POINTER_COUNTED(struct graph, kids, nkids));

/* Offsets of those objects, in the window. */
static uint64_t graph[GRAPH_OBJECTS];
static uint64_t base;

static void must(int condition, const char *what)
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
	struct pv_info info;
	void *p;

	must(pv_type_register(s, &graph_type, &type) == 0, "pv_type_register");
	must(pv_root(s, "graph", type, GRAPH_BYTES, &p, NULL) == 0, "pv_root");
	pv_info_get(s, &info);
	base = info.base;
	root = g = p;
	for (unsigned int i = 0; i < GRAPH_OBJECTS; i++) {
		graph[i] = (uintptr_t)g - base;
		g->tagged = (uintptr_t)root | (uint64_t)i << 50;
		g->relative = (int64_t)((uintptr_t)root - (uintptr_t)&g->relative);
		g->offset = graph[i / 2];
		g->nkids = i % (GRAPH_KIDS + 1);
		for (unsigned int k = 0; k < g->nkids; k++)
			g->kids[k] = root;
		must(pv_alloc(s, type, GRAPH_BYTES, (void **)&g->next) == 0, "pv_alloc");
		g = g->next;
	}
}

/* Keys of entries are their first 8 bytes. A word that names another place is none that this program has
 * written. */
static const void *map_key(const void *entry, size_t *bytes)
{
	static const uint64_t none = 0;

	*bytes = 8;
	return (uintptr_t)entry % 16 ? &none : entry;
}

static const struct pv_map_options map_options = {.size = sizeof(map_options), .key = map_key};

static void fill_map(struct pv_store *s)
{
	struct pv_map *map;
	pv_type_t bytes;
	uint64_t *entry;
	void *p;

	must(pv_type_register(s, &bytes_type, &bytes) == 0, "pv_type_register");
	must(pv_map_open(s, "map", &map_options, &map) == 0, "pv_map_open");
	for (uint64_t i = 0; i < MAP_ENTRIES; i++) {
		must(pv_reserve(s, bytes, 32, &p) == 0, "pv_reserve");
		entry = p;
		*entry = i + 1;
		must(pv_map_put(map, pv_map_hash(map, entry, 8), entry, 0) == 0, "pv_map_put");
	}
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

/* ---- the input ---- */

struct input {
	const uint8_t *at;
	size_t left;
};

static uint64_t take(struct input *in, unsigned int bytes)
{
	uint64_t v = 0;

	for (unsigned int i = 0; i < bytes && in->left; i++, in->left--)
		v |= (uint64_t)*in->at++ << (8 * i);
	return v;
}

/* A word that is likely to be at some limit. */
static uint64_t take_word(struct input *in)
{
	unsigned int kind = (unsigned int)take(in, 1);

	switch (kind % 8) {
	case 0:
		return kind / 8;
	case 1:
		return ~(uint64_t)(kind / 8);
	case 2:
		return 1ull << (take(in, 1) % 64);
	case 3:
		return (1ull << (take(in, 1) % 64)) - 1;
	case 4:
		return take(in, 2) << (4 * (kind / 8 % 13));
	case 5:
		return take(in, 3);
	default:
		return take(in, 8);
	}
}

/* ---- changes ---- */

static struct index_rec *header(void)
{
	return (struct index_rec *)(void *)image.now[0];
}

/* The slot in force of the pristine image (0), or the other one. */
static struct index_slot_rec *slot(unsigned int other)
{
	const struct index_rec *pristine = (const void *)image.pristine[0];
	uint64_t generation = pristine->commit & PV_COMMIT_GENERATION_MASK;

	return (struct index_slot_rec *)(void *)(image.now[0] + PV_INDEX_HEADER_BYTES +
						 ((generation + other) & 1) * pristine->slot_bytes);
}

static void change_property(struct input *in)
{
	void *fdt = slot((unsigned int)take(in, 1) % 4 == 3) + 1;
	unsigned int nodes = (unsigned int)take(in, 1) % 16, props = (unsigned int)take(in, 1) % 12;
	uint64_t value = take_word(in);
	struct fdt_property *p;
	int node = 0, depth = 0, at, next, len;

	if (fdt_check_header(fdt) != 0)
		return;
	while (nodes-- && node >= 0)
		node = fdt_next_node(fdt, node, &depth);
	at = fdt_first_property_offset(fdt, node < 0 ? 0 : node);
	while (at >= 0 && props-- && (next = fdt_next_property_offset(fdt, at)) >= 0)
		at = next;
	p = at >= 0 ? (struct fdt_property *)(uintptr_t)fdt_get_property_by_offset(fdt, at, &len) : NULL;
	if (!p)
		return;
	if (len >= 8)
		fdt64_st(p->data, value);
	else if (len >= 4)
		fdt32_st(p->data, (uint32_t)value);
}

static unsigned int take_segment(struct input *in)
{
	return 1 + (unsigned int)take(in, 1) % (image.n - 1);
}

static void change_map(struct input *in)
{
	unsigned int i = take_segment(in);
	uint64_t *map = (uint64_t *)(void *)(image.now[i] + PV_MAP_OFF);
	uint64_t npages = image.bytes[i] / 4096;
	uint64_t *entry = &map[take(in, 1) % npages];
	unsigned int how = (unsigned int)take(in, 1);

	if (how & 1)
		*entry = map[take(in, 1) % npages]; /* a right one at a wrong place */
	if (how & 2)
		*entry ^= 1ull << (take(in, 1) % 64);
	if (how & 4)
		*entry = take_word(in);
}

static struct lane_rec *take_lane(struct input *in)
{
	const struct segment_rec *pristine = (const void *)image.pristine[1];

	return (struct lane_rec *)(void *)(image.now[1] + pristine->lanes_off) + take(in, 1) % LANES;
}

/* An offset that is likely to lie in the store. */
static uint64_t take_off(struct input *in)
{
	uint64_t v = take(in, 3);

	return v & 1 ? v >> 1 : (v >> 1) & ~7ull;
}

static void change_intent(struct input *in)
{
	struct lane_rec *lane = take_lane(in);
	unsigned int n = (unsigned int)take(in, 1) % 4;

	for (unsigned int i = 0; i < n; i++) {
		uint64_t op = take(in, 1) % 10, off = op == PV_DO_FLIP ? 0 : take_off(in);

		lane->actions[i].where = op << PV_DO_OP_SHIFT | off;
		lane->actions[i].value = take_word(in);
	}
	lane->count = n;
}

/* An address that is likely to lie in the store. */
static uint64_t take_address(struct input *in)
{
	return image.base + take_off(in);
}

static void change_link(struct input *in)
{
	struct lane_rec *lane = take_lane(in);
	uint64_t how = take(in, 1);

	lane->link.object = how & 1 ? take_address(in) : 0;
	lane->link.old = how & 2 ? take_address(in) : 0;
	lane->link.value = how & 4 ? take_word(in) : lane->link.object;
	lane->link.word_object = how & 8 ? take_address(in) : 0;
	lane->link.word_value = how & 16 ? take_address(in) : 0;
}

static void change_log(struct input *in)
{
	struct lane_rec *lane = take_lane(in);
	uint64_t state = take(in, 1), end = 0, n = take(in, 1) % 4;

	while (n--) {
		uint64_t op = take(in, 1), data = 8 * (take(in, 1) % 4);
		struct tx_entry_rec e = {(op & 8 ? PV_DO_UNDO : op % 6) << PV_DO_OP_SHIFT | take_off(in),
					 op & 8 ? data : take_word(in)};
		uint64_t length = sizeof(e) + (op & 8 ? data : 0) + 8;

		memcpy(lane->log + end, &e, sizeof(e));
		memset(lane->log + end + sizeof(e), (int)op, length - 8 - sizeof(e));
		if (op & 64)
			length ^= take_word(in);
		memcpy(lane->log + end + sizeof(e) + (op & 8 ? data : 0), &length, 8);
		end += sizeof(e) + (op & 8 ? data : 0) + 8;
	}
	for (unsigned int i = 0; i < 3 && state & 64; i++)
		lane->chunks[i] = (struct tx_chunk_rec){take_off(in), take_word(in), take_word(in)};
	lane->tx = (state & 3) | (state >> 2 & 3) << PV_TX_CHUNK_SHIFT |
		   (state & 128 ? take_word(in) : end) << PV_TX_END_SHIFT;
}

/* What a root's creation leaves: the next index in the other slot, and an intent to put it in force. */
static void change_staged(struct input *in)
{
	const struct index_rec *pristine = (const void *)image.pristine[0];
	uint64_t generation = (pristine->commit & PV_COMMIT_GENERATION_MASK) + 1;
	struct index_slot_rec *next = slot(1);
	struct lane_rec *lane = take_lane(in);

	memcpy(next, slot(0), pristine->slot_bytes);
	next->generation = generation;
	if (fdt_check_header(next + 1) == 0)
		fdt_setprop_inplace_u64(next + 1, 0, "generation", generation);
	lane->actions[0] = (struct action_rec){(uint64_t)PV_DO_FLIP << PV_DO_OP_SHIFT, generation};
	lane->count = 1;
}

static void change_word(struct input *in)
{
	unsigned int i = (unsigned int)take(in, 1) % image.n;
	size_t at = take(in, 3) % (image.bytes[i] / 8);

	((uint64_t *)(void *)image.now[i])[at] = take_word(in);
}

static void change_header(struct input *in)
{
	unsigned int i = (unsigned int)take(in, 1) % image.n;

	((uint32_t *)(void *)image.now[i])[take(in, 1) % 30] = (uint32_t)take_word(in);
}

/* A word of an object of the graph: an address near an object, or anything. */
static void change_pointer(struct input *in)
{
	uint64_t at = graph[take(in, 1) % GRAPH_OBJECTS] + 8 * (take(in, 1) % (GRAPH_BYTES / 8));
	unsigned int how = (unsigned int)take(in, 1);
	uint64_t value = graph[take(in, 1) % GRAPH_OBJECTS] + take(in, 1);

	if (how % 4 == 0)
		value += base;
	else if (how % 4 == 1)
		value -= at;
	else if (how % 4 == 2)
		value = take_word(in);
	for (unsigned int i = 1; i < image.n; i++) {
		const struct segment_rec *seg = (const void *)image.pristine[i];

		if (at >= seg->window_off && at - seg->window_off < image.bytes[i])
			memcpy(image.now[i] + (at - seg->window_off), &value, 8);
	}
}

static void change(struct input *in)
{
	unsigned int which;

	static void (*const changes[])(struct input *) = {
		change_property, change_property, change_map,	 change_map,  change_intent,
		change_link,	 change_log,	  change_staged, change_header, change_word};

	which = (unsigned int)take(in, 1);
	if (which >= 216)
		change_pointer(in);
	else
		changes[which % (sizeof(changes) / sizeof(changes[0]))](in);
}

static void compute_checksums(void)
{
	struct index_rec *rec = header();
	uint64_t generation = rec->commit & PV_COMMIT_GENERATION_MASK;

	rec->checksum = XXH3_64bits(rec, offsetof(struct index_rec, checksum));
	rec->commit = generation | XXH3_64bits_withSeed(rec->uuid, sizeof(rec->uuid), generation) >>
					   PV_COMMIT_CHECK_SHIFT << PV_COMMIT_CHECK_SHIFT;
	for (unsigned int i = 0; i < 2; i++) {
		struct index_slot_rec *s = slot(i);
		uint32_t room = ((const struct index_rec *)(const void *)image.pristine[0])->slot_bytes;

		if (s->bytes <= room - sizeof(*s))
			s->checksum = XXH3_64bits_withSeed(s + 1, s->bytes, s->generation);
	}
	for (unsigned int i = 1; i < image.n; i++) {
		struct segment_rec *seg = (struct segment_rec *)(void *)image.now[i];

		seg->checksum = XXH3_64bits(seg, offsetof(struct segment_rec, checksum));
	}
}

/* ---- use ---- */

static void listen(void *ctx, const char *line)
{
}

static int touch(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	const volatile uint8_t *p = object;

	*(unsigned int *)ctx += p[0] + p[bytes - 1];
	return 0;
}

static void leaks(void *ctx, const struct pv_check_leak *leak)
{
	*(uint64_t *)ctx += leak->objects;
}

/* A full check and a dry run of a repair: with another number of threads they find the same. */
static struct pv_check_report check(struct pv_store *s, unsigned int input)
{
	uint64_t leaked = 0;
	struct pv_check_options o = {
		.size = sizeof(o), .threads = 1, .leak = leaks, .ctx = &leaked};
	struct pv_repair_options dry = {.size = sizeof(dry),
					.flags = PV_REPAIR_DRY_RUN | PV_REPAIR_LEAKS,
					.threads = input & INPUT_THREADS ? 3 : 1,
					.tell = listen};
	struct pv_check_report report, fast;
	struct pv_repair_report repair;
	int err;

	must(pv_check(s, &o, &report) == 0, "pv_check");
	must(report.leaked_objects == leaked, "leaks are not told");
	o.flags = PV_CHECK_FAST;
	must(pv_check(s, &o, &fast) == 0 && fast.problems <= report.problems, "the fast check finds more");
	err = pv_repair(s, &dry, &repair);
	must(err == 0 || err == -EBUSY, "pv_repair");
	must(err || (repair.check.leaked_objects == report.leaked_objects &&
		     repair.check.pointers == report.pointers &&
		     repair.check.live_objects == report.live_objects),
	     "the second check finds something else");
	return report;
}

static struct pv_check_report look(struct pv_store *s, unsigned int input)
{
	struct pv_check_report report = check(s, input);
	struct pv_stats *stats;
	unsigned int sum = 0;
	struct pv_info info;

	must(pv_stats_get(s, &stats) == 0, "pv_stats_get");
	must(report.problems || stats->live_objects == report.live_objects,
	     "pv_stats_get() and pv_check() count differently");
	pv_stats_free(stats);
	pv_iterate(s, 0, touch, &sum);
	pv_info_get(s, &info);
	return report;
}

/* In a store that the full check finds sound, a map that pv_map_check() finds sound can be used. */
static void use_map(struct pv_store *s)
{
	struct pv_map *map;
	uint64_t problems;

	if (pv_map_open(s, "map", &map_options, &map))
		return;
	must(pv_map_check(map, listen, NULL, &problems) == 0, "pv_map_check");
	for (uint64_t i = 0; !problems && i <= MAP_ENTRIES; i++) {
		uint64_t hash = pv_map_hash(map, &i, 8);

		pv_map_find(map, hash, &i, 8);
		if (i % 2)
			pv_map_remove(map, hash, &i, 8);
	}
	pv_map_close(map);
}

static void use_objects(struct pv_store *s, pv_type_t type, void **root)
{
	static const size_t sizes[] = {16, 64, 200, 700, 9000, 40000, 90000};
	void *object;

	for (unsigned int i = 0; i < SLOTS / 2; i++) {
		pv_usable_bytes(s, root[i]);
		if (i & 1)
			pv_free(s, &root[i]);
	}
	for (unsigned int i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		if (pv_reserve(s, type, sizes[i], &object))
			continue;
		memset(object, 1, sizes[i]);
		if (pv_publish(s,
			       (struct pv_action[]){PV_LIVE(object),
						    PV_STORE(&root[40 + i], (uintptr_t)object)},
			       2))
			pv_cancel(s, object);
	}
	pv_tx_begin(s);
	if (pv_tx_add(s, root, 64) == 0)
		root[0] = NULL;
	if (pv_tx_alloc(s, type, 48, &object) == 0)
		root[1] = object;
	pv_tx_free(s, root[41]);
	pv_tx_commit(s);
}

static void use(struct pv_store *s)
{
	static const struct pv_typedef other_type = PV_TYPE_BYTES("other", 1);
	pv_type_t bytes = 0, other = 0;
	void **root, *another;

	if (pv_type_register(s, &bytes_type, &bytes) == 0 &&
	    pv_root(s, "root", bytes, SLOTS * sizeof(void *), (void **)&root, NULL) == 0)
		use_objects(s, bytes, root);
	if (pv_type_register(s, &other_type, &other) == 0)
		pv_root(s, "another", other, 100, &another, NULL);
}

static void mend(struct pv_store *s)
{
	struct pv_repair_options o = {
		.size = sizeof(o), .flags = PV_REPAIR_LEAKS, .threads = 1, .tell = listen};
	struct pv_repair_report r;
	int err = pv_repair(s, &o, &r);

	must(err == 0 || err == -ENOSPC || err == -EUSERS, "pv_repair");
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
		look(s, input);
		must(untouched(), "a read-only handle changed the image");
	} else {
		if (look(s, input).problems == 0)
			use_map(s);
		use(s);
		look(s, input);
		mend(s);
		look(s, input);
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
	flags = (unsigned int)take(&in, 1);
	for (unsigned int i = 0; i < CHANGES_MAX && in.left; i++)
		change(&in);
	if (!(flags & INPUT_KEEP_CHECKSUMS))
		compute_checksums();
	relocate = flags & INPUT_RELOCATE ? PV_RELOCATE_ALWAYS : PV_RELOCATE_NEVER;
	dangling = flags & INPUT_NULL ? PV_DANGLING_NULL : PV_DANGLING_REFUSE;
	run((flags & INPUT_RDONLY ? PV_RDONLY : 0) | (flags & INPUT_MEND ? PV_MEND : 0), flags);
	if (!(flags & INPUT_RDONLY) && !ngrown)
		run(0, flags); /* what the use left behind; without segments that joined meanwhile it is refused */
	while (ngrown)
		close(grown[--ngrown]);
	return 0;
}
