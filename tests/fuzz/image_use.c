/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What fuzz_image does with a store that pv_open() took: everything that a program may do before it has
 * found out whether the store is sound.
 */
#include <errno.h>
#include <string.h>

#include <preserve/compact.h>
#include <preserve/seal.h>
#include <preserve/stats.h>
#include <preserve/tx.h>
#include <preserve/upgrade.h>

#include "fuzz_image.h"
#include "internal.h"

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

struct pv_check_report image_look(struct pv_store *s, unsigned int input)
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

/* ---- the map ---- */

static int visit(void *ctx, void *entry, bool mark)
{
	*(uint64_t *)ctx += ((const volatile struct item *)entry)->key;
	return 0;
}

/* Of any map that could be opened. */
static void search_map(struct pv_store *s, struct pv_map *map)
{
	uint64_t sum = 0, cursor = 0, position = 0, problems;
	unsigned int steps = 0;
	struct pv_map_info info;

	for (uint64_t i = 0; i <= MAP_ENTRIES; i++) {
		uint64_t hash = pv_map_hash(map, &i, 8);
		struct item *item;

		pv_map_prefetch(map, hash);
		pv_map_prefetch_entry(map, hash, i & 1);
		item = pv_map_find(map, hash, &i, 8);
		must(!item || item->key == i, "pv_map_find() finds another key");
		pv_usable_bytes(s, item);
	}
	pv_map_each(map, visit, &sum);
	do
		cursor = pv_map_scan(map, cursor, visit, &sum);
	while (cursor && ++steps < 1000);
	do
		pv_map_each_marked(map, &position, 10, visit, &sum);
	while (position && ++steps < 2000);
	pv_map_info_get(map, &info);
	must(pv_map_check(map, listen, NULL, &problems) == 0, "pv_map_check");
}

static void put_items(struct pv_store *s, struct pv_map *map, uint64_t from, uint64_t to)
{
	pv_type_t bytes;
	struct item *item;
	void *p;

	if (pv_type_register(s, &bytes_type, &bytes))
		return;
	for (uint64_t i = from; i < to && pv_reserve(s, bytes, sizeof(*item), &p) == 0; i++) {
		item = p;
		*item = (struct item){8, i};
		if (pv_map_put(map, pv_map_hash(map, &i, 8), item, i % 3 ? 0 : PV_MAP_MARK))
			pv_cancel(s, item);
	}
}

static void use_map(struct pv_store *s)
{
	struct pv_map *map;

	if (pv_map_open(s, "map", &map_options, &map))
		return;
	search_map(s, map);
	for (uint64_t i = 0; i <= MAP_ENTRIES; i += 2)
		pv_map_remove(map, pv_map_hash(map, &i, 8), &i, 8);
	put_items(s, map, MAP_ENTRIES - 5, MAP_ENTRIES + 80);
	search_map(s, map);
	for (uint64_t i = 20; i < MAP_ENTRIES + 80; i++)
		pv_map_remove(map, pv_map_hash(map, &i, 8), &i, 8);
	pv_map_clear(map, NULL, 0);
	put_items(s, map, 0, 10);
	for (unsigned int steps = 0; steps < 100 && pv_map_tidy(map, 3);)
		steps++;
	search_map(s, map);
	pv_map_close(map);
}

void image_search(struct pv_store *s)
{
	struct pv_map *map;

	if (pv_map_open(s, "map", &map_options, &map))
		return;
	search_map(s, map);
	pv_map_close(map);
}

/* ---- objects ---- */

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

static void use_all_objects(struct pv_store *s)
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

/* ---- what moves objects ---- */

static int graph_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct graph *from = old;
	struct graph *to = fresh;
	uint64_t named = (uintptr_t)&from->relative + (uint64_t)from->relative;

	*to = (struct graph){from->next, from->tagged, 0, from->offset, from->nkids};
	to->relative = from->relative ? (int64_t)(named - (uintptr_t)&to->relative) : 0;
	memcpy(to->kids, from->kids, old_bytes - sizeof(*from));
	return 0;
}

static void upgrade(struct pv_store *s)
{
	static const struct pv_upgrade steps[] = {PV_UPGRADE_WITH_TAIL(1, 2, struct graph, graph_2)};
	struct pv_typedef def = graph_type;
	const struct pv_typedef *defs[] = {&def};
	pv_type_t type;

	def.version = 2;
	def.nupgrades = 1;
	def.upgrades = steps;
	pv_types_plan(s, defs, 1, NULL, NULL);
	pv_type_register(s, &def, &type);
}

static void compact(struct pv_store *s, uint32_t flags)
{
	struct pv_compact_options o = {.size = sizeof(o), .flags = flags};
	struct pv_compact_report report;

	pv_compact(s, &o, &report);
}

static void seal(struct pv_store *s)
{
	pv_type_t type;

	if (pv_type_register(s, &graph_type, &type) == 0)
		pv_seal(s, &type, 1, NULL);
}

static void move(struct pv_store *s, unsigned int input)
{
	compact(s, PV_COMPACT_DRY_RUN);
	if ((input & INPUT_SEAL) == INPUT_SEAL)
		seal(s);
	else if (input & INPUT_UPGRADE)
		upgrade(s);
	else if (input & INPUT_COMPACT)
		compact(s, 0);
	else
		return;
	image_look(s, input);
}

void image_use(struct pv_store *s, unsigned int input)
{
	image_look(s, input);
	move(s, input);
	use_map(s);
	use_all_objects(s);
	image_look(s, input);
	mend(s);
	image_look(s, input);
	pv_trim(s, NULL);
}
