/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_relocate.c - crash sweeps of relocation: a store with every kind of pointer field is attached at
 * another base, dies on the way, and is attached at yet another one. What an application can see must not
 * change, wherever the store is: all that a pointer says here is how far it leads into the window. Once an
 * attach has returned, no relocation is under way any more.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <libfdt.h>
#include "fixture.h"

#define HIGH_BITS 0xffff000000000007ull /* of a tagged pointer, the program's */

/* plain pointers */
struct pair {
	struct pair *next;
	void *other;
};
/* in an array of structs */
struct nest {
	uint64_t key;
	struct {
		uint64_t key;
		void *to;
	} ends[3];
};
struct tagged {
	uint64_t high; /* tag in the upper and lowest bits */
	uint64_t low;  /* in the lowest */
};
/* as many as are in use; behind them stands what looks like a pointer, and is none */
struct flex {
	uint64_t used;
	void *items[];
};
/* a pointer, or a number that looks like one */
struct either {
	uint64_t kind;
	union {
		void *to;
		uint64_t number;
	} u;
};
/* what does not change */
struct steady {
	int64_t relative;
	uint64_t offset;
	void *process; /* nobody's business */
};
/* an extent: each word of a flexible array would be a trap */
struct wide {
	void *row[20];
	uint8_t rest[34000];
};
struct hub {
	struct pair *pair;
	struct nest *nest;
	struct tagged *tagged;
	struct flex *flex;
	struct either *eithers[2];
	struct steady *steady;
	struct wide *wide;
	void *inside; /* of an object */
};

static const struct pv_typedef defs[] = {
	PV_TYPE(struct pair, "pair", 1, PV_POINTER(struct pair, next), PV_POINTER(struct pair, other)),
	PV_TYPE(struct nest, "nest", 1,
		PV_STRUCT(struct nest, ends, PV_ELEMENT(struct nest, ends),
			  PV_POINTER(PV_ELEMENT(struct nest, ends), to))),
	PV_TYPE(struct tagged, "tagged", 1, PV_TAGGED(struct tagged, high, ~HIGH_BITS),
		PV_TAGGED(struct tagged, low, ~7ull)),
	PV_TYPE(struct flex, "flex", 1, PV_POINTER_COUNTED(struct flex, items, used)),
	PV_TYPE(struct either, "either", 1,
		PV_WHEN(struct either, kind, 1, PV_POINTER(struct either, u.to))),
	PV_TYPE(struct steady, "steady", 1, PV_RELATIVE(struct steady, relative),
		PV_OFFSET(struct steady, offset), PV_OPAQUE(struct steady, process)),
	PV_TYPE(struct wide, "wide", 1, PV_POINTER(struct wide, row)),
	PV_TYPE(struct hub, "hub", 1, PV_POINTER(struct hub, pair), PV_POINTER(struct hub, nest),
		PV_POINTER(struct hub, tagged), PV_POINTER(struct hub, flex),
		PV_POINTER(struct hub, eithers), PV_POINTER(struct hub, steady),
		PV_POINTER(struct hub, wide), PV_POINTER(struct hub, inside)),
};

enum { PAIR, NEST, TAGGED, FLEX, EITHER, STEADY, WIDE, HUB, N_TYPES };

static pv_type_t types[N_TYPES];

static struct fixture elsewhere = {.lanes = 2, .segment_bytes = 64 << 10};
/* A pair leads nowhere: the attach is refused, and works where the store was... */
static struct fixture refuses = {.lanes = 2, .segment_bytes = 64 << 10, .refused = -EFAULT};
/* ... or the pointer becomes null. */
static struct fixture nulls = {
	.lanes = 2, .segment_bytes = 64 << 10, .dangling = PV_DANGLING_NULL};

static int find_types(struct fixture *f)
{
	int rc = 0;

	for (int i = 0; i < N_TYPES && !rc; i++)
		rc = pv_type_register(f->store, &defs[i], &types[i]);
	return rc;
}

/* A live object of zeros, named by a word of the hub. */
static int add(struct fixture *f, int type, size_t bytes, void *word)
{
	int rc = pv_alloc(f->store, types[type], bytes, word);

	if (rc)
		crash_note("pv_alloc: %s", pv_last_error());
	return rc;
}

static void fill(struct hub *hub, uint64_t base)
{
	hub->pair->other = hub->nest;
	hub->pair->next = NULL;
	hub->nest->key = 7;
	for (int i = 0; i < 3; i++)
		hub->nest->ends[i].to = i == 1 ? NULL : hub->tagged;
	hub->tagged->high = (uint64_t)(uintptr_t)hub->flex | (HIGH_BITS & 0xabcd000000000005ull);
	hub->tagged->low = (uint64_t)(uintptr_t)hub->pair | 3;
	hub->flex->used = 2;
	hub->flex->items[0] = hub->pair;
	hub->flex->items[1] = hub;
	hub->flex->items[2] = hub->pair;
	*hub->eithers[0] = (struct either){.kind = 1, .u.to = hub->eithers[1]};
	*hub->eithers[1] = (struct either){.kind = 2, .u.number = (uint64_t)(uintptr_t)hub->pair};
	hub->steady->relative = (int64_t)((uint8_t *)hub->pair - (uint8_t *)&hub->steady->relative);
	hub->steady->offset = (uint64_t)(uintptr_t)hub->nest - base;
	hub->steady->process = hub->pair;
	for (size_t i = 0; i < 20; i++)
		hub->wide->row[i] = i % 3 ? hub : NULL;
	hub->inside = &hub->nest->ends[2];
}

static int make(struct fixture *f)
{
	struct pv_info info;
	struct hub *hub;
	void *root = NULL, *reserved;
	int rc = find_types(f);

	if (!rc)
		rc = pv_root(f->store, "hub", types[HUB], sizeof(*hub), &root, NULL);
	hub = root;
	if (rc || (rc = add(f, PAIR, sizeof(struct pair), &hub->pair)) ||
	    (rc = add(f, NEST, sizeof(struct nest), &hub->nest)) ||
	    (rc = add(f, TAGGED, sizeof(struct tagged), &hub->tagged)) ||
	    (rc = add(f, FLEX, sizeof(struct flex) + 5 * 8, &hub->flex)) ||
	    (rc = add(f, EITHER, sizeof(struct either), &hub->eithers[0])) ||
	    (rc = add(f, EITHER, sizeof(struct either), &hub->eithers[1])) ||
	    (rc = add(f, STEADY, sizeof(struct steady), &hub->steady)) ||
	    (rc = add(f, WIDE, sizeof(struct wide), &hub->wide)))
		return rc;
	pv_info_get(f->store, &info);
	fill(hub, info.base);
	/* One that nobody has published, with what a crash must not take for a pointer. */
	rc = pv_reserve(f->store, types[PAIR], sizeof(struct pair), &reserved);
	if (!rc)
		memset(reserved, 0x77, sizeof(struct pair));
	return rc;
}

static int setup(void *ctx)
{
	int rc = fixture_setup_empty(ctx);

	if (!rc)
		rc = make(ctx);
	if (!rc)
		rc = op_reattach(ctx, PV_RELOCATE_NEVER);
	return rc ? rc : op_reattach(ctx, PV_RELOCATE_NEVER);
}

/* The same, with a pointer that leads behind the last segment. */
static int setup_dangling(void *ctx)
{
	struct fixture *f = ctx;
	struct pv_info info;
	void *root;
	int rc = setup(ctx);

	if (!rc)
		rc = find_types(f);
	if (!rc)
		rc = pv_root(f->store, "hub", types[HUB], sizeof(struct hub), &root, NULL);
	if (rc)
		return rc;
	pv_info_get(f->store, &info);
	((struct hub *)root)->nest->ends[1].to =
		(uint8_t *)(uintptr_t)info.base + info.window_bytes - 4096;
	return 0;
}

/* ---- what an application sees ---- */

struct look {
	uint64_t base, window_bytes, hash;
	bool dangling; /* one is there, or was */
	bool ok;
};

static void see(struct look *l, uint64_t value)
{
	l->hash = (l->hash ^ value) * 0x9e3779b97f4a7c15ull;
	l->hash ^= l->hash >> 29;
}

static void see_pointer(struct look *l, uint64_t address)
{
	uint64_t off = address - l->base;

	if (address && off >= l->window_bytes) {
		crash_note("0x%llx is no address of the store at 0x%llx", (unsigned long long)address,
			   (unsigned long long)l->base);
		l->ok = false;
	}
	/* It may have become null, and counts as that. */
	see(l, !address || (l->dangling && off == l->window_bytes - 4096) ? 1 : off);
}

#define POINTER(p) see_pointer(l, (uint64_t)(uintptr_t)(p))

static void see_objects(struct look *l, const struct hub *hub)
{
	POINTER(hub->pair);
	POINTER(hub->inside);
	POINTER(hub->pair->other);
	POINTER(hub->pair->next);
	see(l, hub->nest->key);
	for (int i = 0; i < 3; i++)
		POINTER(hub->nest->ends[i].to);
	see_pointer(l, hub->tagged->high & ~HIGH_BITS);
	see(l, hub->tagged->high & HIGH_BITS);
	see_pointer(l, hub->tagged->low & ~7ull);
	see(l, hub->tagged->low & 7);
	for (uint64_t i = 0; i < hub->flex->used; i++)
		POINTER(hub->flex->items[i]);
	see(l, (uint64_t)(uintptr_t)hub->flex->items[2]);
	POINTER(hub->eithers[0]->u.to);
	see(l, hub->eithers[1]->u.number);
	see(l, (uint64_t)hub->steady->relative);
	see(l, hub->steady->offset);
	see(l, (uint64_t)(uintptr_t)hub->steady->process);
	for (size_t i = 0; i < 20; i++)
		POINTER(hub->wide->row[i]);
}

static bool under_way(struct fixture *f)
{
	void *fdt = NULL;
	size_t bytes;
	bool found = pv_index_dump(f->store, &fdt, &bytes) != 0 ||
		     fdt_getprop(fdt, 0, "moving-from", NULL) || fdt_getprop(fdt, 0, "moving-back", NULL);

	free(fdt);
	return found;
}

static int count(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	++*(unsigned *)ctx;
	return 0;
}

static uint64_t look(void *ctx)
{
	struct fixture *f = ctx;
	struct pv_check_report report;
	struct pv_info info;
	struct look l = {.dangling = f->refused || f->dangling, .ok = true};
	unsigned objects = 0;
	void *root;

	/* The pointer that dangles on purpose is a problem, and the only one. */
	if (!f->store || pv_check(f->store, NULL, &report) || report.problems > l.dangling || find_types(f) ||
	    pv_root(f->store, "hub", types[HUB], sizeof(struct hub), &root, NULL)) {
		crash_note("the store is not sound, or not there: %s", pv_last_error());
		return 0;
	}
	if (under_way(f)) {
		crash_note("the index says that a relocation is under way");
		return 0;
	}
	pv_info_get(f->store, &info);
	l.base = info.base;
	l.window_bytes = info.window_bytes;
	see_objects(&l, root);
	pv_iterate(f->store, 0, count, &objects);
	see(&l, objects);
	return l.ok ? l.hash | 2 : 0;
}

static int probe(void *ctx)
{
	struct fixture *f = ctx;
	void *p;
	int rc = find_types(f);

	if (!rc)
		rc = pv_reserve(f->store, types[PAIR], sizeof(struct pair), &p);
	return rc ? rc : pv_cancel(f->store, p);
}

/* ---- operations ---- */

static int op_move(void *ctx, uintptr_t unused)
{
	struct fixture *f = ctx;
	struct pv_info info = {0};
	int rc = op_reattach(ctx, PV_RELOCATE_ALWAYS);

	if (!rc)
		pv_info_get(f->store, &info);
	return rc ? rc : info.origin != PV_ORIGIN_RELOCATED;
}

/* Refused; where it was, it is well. */
static int op_move_refused(void *ctx, uintptr_t unused)
{
	int rc = op_reattach(ctx, PV_RELOCATE_ALWAYS);

	return rc == -EFAULT ? op_reattach(ctx, PV_RELOCATE_NEVER) : -EEXIST;
}

static const struct crash_op move_ops[] = {
	{"attach elsewhere", op_move, 0, CRASH_UNCHANGED, NULL},
	{"and again", op_move, 0, CRASH_UNCHANGED, NULL},
};
static const struct crash_op refused_ops[] = {
	{"attach elsewhere, refused", op_move_refused, 0, CRASH_UNCHANGED, NULL},
};
static const struct crash_op null_ops[] = {
	{"attach elsewhere, one made null", op_move, 0, CRASH_UNCHANGED, NULL},
};

#define SCENARIO(title, set_up_as, operations, fixture)                                      \
	{                                                                                    \
		.name = (title), .ctx = (fixture), .ops = (operations),                      \
		.n_ops = sizeof(operations) / sizeof((operations)[0]), .setup = (set_up_as), \
		.recover = fixture_recover, .check = look, .close = fixture_close,           \
		.probe = probe, .any_order = true, .other_base = true                        \
	}

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		SCENARIO("relocate", setup, move_ops, &elsewhere),
		SCENARIO("refused", setup_dangling, refused_ops, &refuses),
		SCENARIO("null", setup_dangling, null_ops, &nulls),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
