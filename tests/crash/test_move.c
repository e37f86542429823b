/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_move.c - crash sweeps of objects that are moved together. The contents are a graph of nodes of several
 * sizes, which point to starts and middles of other nodes, with slabs and segments that are sparse because
 * most of what was in them is gone. Its fingerprint does not depend on addresses: nodes have numbers. Every
 * live object must be reached from a root, so a new object without its old one's references shows, and so does
 * an old one that was left behind.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <preserve/compact.h>
#include <preserve/seal.h>
#include "fixture.h"

#define NODES	64
#define FILLERS 3 /* words of each node that are filled: each is a crash state of the copy */

#define ADDRESS 0xffffffffffffull

struct node {
	struct node *next;
	uint64_t middle; /* an address somewhere in a node; above it the number's lowest bits */
	int64_t far;	 /* the same place, counted from here */
	uint64_t number;
	uint64_t bytes;
	uint64_t filler[];
};

struct move_fixture {
	struct fixture f; /* first: the callbacks of fixture.h get the same pointer */
	unsigned plan;	  /* which objects there are at the start */
	bool late_moves;  /* so does the second root */
	pv_type_t type;
	pv_type_t top; /* of roots: the same fields */
};

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ull;
	return x ^ (x >> 32);
}

static int note_error(const char *call, int rc)
{
	if (rc)
		crash_note("%s: %s", call, pv_last_error());
	return rc;
}

/* ---- contents ---- */

static int types(struct move_fixture *m)
{
	const struct pv_typedef node =
		PV_TYPE(struct node, "node", 1, PV_POINTER(struct node, next),
			PV_TAGGED(struct node, middle, ADDRESS), PV_RELATIVE(struct node, far));

	struct pv_typedef top = node;
	int rc = pv_type_register(m->f.store, &node, &m->type);

	top.name = "top";
	if (!rc)
		rc = pv_type_register(m->f.store, &top, &m->top);
	return note_error("pv_type_register", rc);
}

static int root(struct move_fixture *m, const char *name, struct node **out)
{
	void *p = NULL;
	int rc = note_error("pv_root", pv_root(m->f.store, name, m->top, sizeof(struct node), &p, NULL));

	*out = p;
	return rc;
}

static int make_node(struct move_fixture *m, size_t bytes, uint64_t number, struct node **out)
{
	void *p;
	struct node *n;
	int rc = note_error("pv_reserve", pv_reserve(m->f.store, m->type, bytes, &p));

	if (rc)
		return rc;
	n = *out = p;
	*n = (struct node){.number = number, .bytes = bytes};
	for (size_t i = 0; i < FILLERS && sizeof(*n) + 8 * i < bytes; i++)
		n->filler[i] = mix(number + i);
	return 0;
}

/* A node in front of the list that begins at `at`, whose middle is in what was the first one. */
static int push(struct move_fixture *m, struct node *at, size_t bytes, uint64_t number)
{
	struct node *n = NULL;
	int rc = make_node(m, bytes, number, &n);

	if (rc)
		return rc;
	n->next = at->next;
	if (at->next) {
		n->middle = ((uintptr_t)at->next + number % at->next->bytes) | number << 48;
		n->far = (int64_t)((n->middle & ADDRESS) - (uintptr_t)&n->far);
	}
	return note_error("pv_link", pv_link(m->f.store, n, &at->next));
}

/* Reserve `fill` objects of a size, so that what comes next gets another slab, and give them back later. */
static int fill_up(struct move_fixture *m, pv_type_t type, size_t bytes, unsigned fill, void **held,
		   unsigned *n)
{
	int rc = 0;

	for (; rc == 0 && fill; fill--)
		rc = pv_reserve(m->f.store, type, bytes, &held[(*n)++]);
	return note_error("pv_reserve", rc);
}

/* Objects of these sizes, each followed by so many, of this or another size, that go away again. */
struct step {
	size_t bytes;
	unsigned fill;
	size_t fill_bytes;
};
static const struct step plans[][8] = {
	/* Three slabs of a few objects each. */
	{{64, 61, 0}, {64, 61, 0}, {64, 70, 0}, {64, 0, 0}},
	/* Some objects of two classes and one that is large. */
	{{64, 61, 0}, {256, 0, 0}, {34000, 0, 0}, {64, 0, 0}},
	/* Slabs of two classes and a large object, in segments that can leave. */
	{{64, 80, 0}, {256, 40, 0}, {64, 100, 0}, {256, 1, 36000}, {34000, 50, 256}, {256, 0, 0}},
};

static int setup(void *ctx)
{
	struct move_fixture *m = ctx;
	struct node *at, *other;
	void *held[512];
	unsigned n = 0;
	int rc = fixture_setup_empty(&m->f);

	if (!rc)
		rc = types(m);
	if (!rc)
		rc = root(m, "graph", &at);
	for (uint64_t i = 0; rc == 0 && i < 8 && plans[m->plan][i].bytes; i++) {
		const struct step *step = &plans[m->plan][i];

		rc = push(m, at, step->bytes, i + 100);
		if (!rc)
			rc = fill_up(m, m->type, step->fill_bytes ? step->fill_bytes : step->bytes, step->fill,
				     held, &n);
	}
	/* The last root lies in a slab of its own, and is moved to the first one's. */
	if (!rc && m->late_moves)
		rc = fill_up(m, m->top, sizeof(struct node), 130, held, &n);
	if (!rc)
		rc = root(m, "late", &other);
	if (!rc)
		rc = note_error("pv_publish",
				pv_publish(m->f.store, &PV_STORE(&other->next, (uintptr_t)at->next), 1));
	while (rc == 0 && n)
		rc = note_error("pv_cancel", pv_cancel(m->f.store, held[--n]));
	return rc;
}

/* ---- check ---- */

struct live {
	struct node *at;
	size_t bytes;
	bool reached;
};

struct graph {
	struct live nodes[NODES];
	unsigned n;
	uint64_t hash;
};

static int collect(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	struct graph *g = ctx;

	if (g->n == NODES)
		return -ENOSPC;
	g->nodes[g->n++] = (struct live){object, bytes, false};
	return 0;
}

static void tell(void *ctx, const char *line)
{
	crash_note("%s", line);
}

/* The live object that an address lies in. */
static struct live *find(struct graph *g, const void *p)
{
	for (unsigned i = 0; i < g->n; i++)
		if ((uintptr_t)p - (uintptr_t)g->nodes[i].at < g->nodes[i].bytes)
			return &g->nodes[i];
	crash_note("%p is in no live object", p);
	return NULL;
}

static bool walk(struct graph *g, const struct node *from)
{
	for (const struct node *n = from; n; n = n->next) {
		uintptr_t in = n->middle & ADDRESS;
		struct live *o = find(g, n), *middle = in ? find(g, (const void *)in) : NULL;

		if (!o || o->at != n || n->bytes > o->bytes || (in && !middle) ||
		    (in && (n->middle >> 48 != n->number || (uintptr_t)&n->far + (uintptr_t)n->far != in))) {
			crash_note("node %p is none", (const void *)n);
			return false;
		}
		g->hash = mix(g->hash + n->number + (n->bytes << 32));
		if (middle)
			g->hash = mix(g->hash + middle->at->number * 4096 +
				      in - (uintptr_t)middle->at);
		for (size_t i = 0; i < FILLERS && sizeof(*n) + 8 * i < n->bytes; i++)
			if (n->filler[i] != mix(n->number + i)) {
				crash_note("node %" PRIu64 " is not whole", n->number);
				return false;
			}
		o->reached = true;
	}
	return true;
}

static bool walk_roots(struct move_fixture *m, struct graph *g)
{
	static const char *const names[] = {"graph", "late"};
	struct node *at;

	if (types(m))
		return false;
	for (unsigned i = 0; i < 2; i++) {
		struct live *o = root(m, names[i], &at) ? NULL : find(g, at);

		if (!o)
			return false;
		o->reached = true;
		g->hash = mix(g->hash + i);
		if (!walk(g, at->next))
			return false;
	}
	return true;
}

static uint64_t check(void *ctx)
{
	struct move_fixture *m = ctx;
	struct pv_check_report report;
	struct graph g = {.n = 0};

	if (!m->f.store)
		return 0;
	if (pv_check(m->f.store, PV_CHECK_TELL(tell, NULL), &report) != 0 || report.problems)
		return 0;
	if (pv_iterate(m->f.store, 0, collect, &g) != 0 || !walk_roots(m, &g))
		return 0;
	for (unsigned i = 0; i < g.n; i++) {
		if (!g.nodes[i].reached) {
			crash_note("live object %p is reached by nobody", (void *)g.nodes[i].at);
			return 0;
		}
	}
	return g.hash | 2;
}

/* ---- operations ---- */

static int op_compact(void *ctx, uintptr_t segments)
{
	struct move_fixture *m = ctx;
	struct pv_compact_report report;
	struct pv_info before, info;
	int rc;

	pv_info_get(m->f.store, &before);
	rc = note_error("pv_compact", pv_compact(m->f.store, NULL, &report));

	pv_info_get(m->f.store, &info);
	if (rc == 0 && info.segments != segments) {
		crash_note("%u of %u segments are left, %" PRIu64 " objects moved",
			   info.segments, before.segments,
			   report.objects_moved);
		rc = -EDOM;
	}
	if (rc == 0 && report.objects_moved == 0) {
		crash_note("nothing was moved");
		rc = -EDOM;
	}
	return rc;
}

static int op_seal(void *ctx, uintptr_t objects)
{
	struct move_fixture *m = ctx;
	struct pv_seal_report report;
	int rc = note_error("pv_seal", pv_seal(m->f.store, &m->type, 1, &report));

	if (rc == 0 && report.objects != objects) {
		crash_note("%" PRIu64 " objects were sealed", report.objects);
		rc = -EDOM;
	}
	return rc;
}

static int op_push(void *ctx, uintptr_t bytes)
{
	struct move_fixture *m = ctx;
	struct node *at;
	int rc = root(m, "graph", &at);

	return rc ? rc : push(m, at, bytes, bytes + 7);
}

static int op_attach(void *ctx, uintptr_t unused)
{
	struct move_fixture *m = ctx;
	int rc;

	pv_close(m->f.store);
	rc = fixture_open(&m->f, 0);
	return rc ? rc : types(m);
}

static int recover(void *ctx, const struct crash_image *image)
{
	struct move_fixture *m = ctx;
	int rc = fixture_recover(&m->f, image);

	return rc || !m->f.store ? rc : types(m);
}

/* What was recovered can be used, and compacted again. */
static int probe(void *ctx)
{
	struct move_fixture *m = ctx;
	uint64_t before = check(m);
	struct node *at, *n;
	int rc = root(m, "graph", &at);

	if (!rc)
		rc = push(m, at, 64, 1);
	if (!rc)
		rc = note_error("pv_compact", pv_compact(m->f.store, NULL, NULL));
	if (!rc)
		rc = root(m, "graph", &at);
	if (rc)
		return rc;
	n = at->next;
	rc = note_error("pv_unlink", pv_unlink(m->f.store, &at->next, (uintptr_t)n->next, n));
	return rc || check(m) != before;
}

static struct move_fixture slabs = {.f = {.lanes = 2}, .plan = 0};
static struct move_fixture sealed = {.f = {.lanes = 2}, .plan = 1};
static struct move_fixture segments = {.f = {.lanes = 2}, .plan = 2, .late_moves = true};

static const struct crash_op slab_ops[] = {
	{"merge slabs", op_compact, 1, CRASH_UNCHANGED, NULL},
	{"in that memory", op_push, 64, CRASH_ATOMIC, NULL},
};
static const struct crash_op segment_ops[] = {
	{"attach: all is cold", op_attach, 0, CRASH_UNCHANGED, NULL},
	{"move all into the first segments", op_compact, 2, CRASH_UNCHANGED, NULL},
	{"grow again", op_push, 40000, CRASH_ATOMIC, NULL},
};

static const struct crash_op seal_ops[] = {
	{"seal", op_seal, 4, CRASH_UNCHANGED, NULL},
	{"a node before what is sealed", op_push, 64, CRASH_ATOMIC, NULL},
	{"attach: all is cold", op_attach, 0, CRASH_UNCHANGED, NULL},
	{"seal that too", op_seal, 1, CRASH_UNCHANGED, NULL},
};

#define MOVE_SCENARIO(title, operations, fixture)                                                  \
	{                                                                                          \
		.name = (title), .ctx = (fixture), .ops = (operations),                            \
		.n_ops = sizeof(operations) / sizeof((operations)[0]), .setup = setup,             \
		.recover = recover, .check = check, .close = fixture_close, .probe = probe,        \
		.any_order = true                                                                  \
	}

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		MOVE_SCENARIO("slabs", slab_ops, &slabs),
		MOVE_SCENARIO("segments", segment_ops, &segments),
		MOVE_SCENARIO("seal", seal_ops, &sealed),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
