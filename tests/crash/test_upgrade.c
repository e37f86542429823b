/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * test_upgrade.c - crash sweeps of layout upgrades. The contents are a ring of nodes that a root names,
 * each of which also names itself and, by a tagged word, the node behind the next one, and a fan: an object
 * of another type that names them all. The check finds out which version the nodes have by registering
 * them, as a program would, and reads them by that: so a state in which the index says one version and
 * an object is of another is found. The probe upgrades whatever it finds to the last version, as the next
 * program does after a crash.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <preserve/upgrade.h>

#include "fixture.h"

enum { NODES = 6, VERSIONS = 3 };

struct upgrade_fixture {
	struct fixture f; /* first: the callbacks of fixture.h get the same pointer */
	size_t extra;	  /* bytes behind each node, filled */
	bool root_is_node; /* a root of the type that changes */
};

/* ---- the versions ---- */

struct node1 {
	struct node1 *next;
	struct node1 *self;
	uint64_t tagged;
	uint32_t key;
	uint32_t extra;
	uint8_t tail[];
};
struct node2 {
	uint64_t key;
	uint64_t extra;
	uint64_t twice;
	struct node2 *self;
	uint64_t tagged;
	struct node2 *next;
	struct node2 *fresh; /* itself */
	uint8_t tail[];
};
struct node3 { /* smaller again */
	struct node3 *next;
	uint64_t tagged;
	uint32_t key;
	uint32_t extra;
	uint8_t tail[];
};
struct fan {
	uint64_t *head; /* the root */
	void *to[NODES];
};
struct head {
	void *first;
	struct fan *fan;
};

static uint32_t fails_at; /* no node of this key can be upgraded */

static int to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct node1 *from = old;
	struct node2 *to = fresh;

	if (from->key == fails_at)
		return -EDOM;
	*to = (struct node2){.key = from->key,
			     .extra = from->extra,
			     .twice = 2 * from->key,
			     .self = (struct node2 *)from->self,
			     .tagged = from->tagged,
			     .next = (struct node2 *)from->next,
			     .fresh = fresh};
	memcpy(to->tail, from->tail, from->extra);
	return 0;
}

static int to_3(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct node2 *from = old;
	struct node3 *to = fresh;

	to->next = (struct node3 *)from->next;
	to->tagged = from->tagged;
	to->key = (uint32_t)from->key;
	to->extra = (uint32_t)from->extra;
	memcpy(to->tail, from->tail, from->extra);
	return 0;
}

static const struct pv_upgrade steps[] = {
	PV_UPGRADE_WITH_TAIL(1, 2, struct node2, to_2),
	PV_UPGRADE_WITH_TAIL(2, 3, struct node3, to_3),
};

static const struct pv_typedef versions[VERSIONS + 1] = {
	[1] = PV_TYPE(struct node1, "person", 1, PV_POINTER(struct node1, next),
		      PV_POINTER(struct node1, self), PV_TAGGED(struct node1, tagged, ~7ull)),
	[2] = {PV_TYPE_OF(struct node2, "person", 2, PV_POINTER(struct node2, next),
			  PV_POINTER(struct node2, self), PV_TAGGED(struct node2, tagged, ~7ull),
			  PV_POINTER(struct node2, fresh)),
	       .nupgrades = 1, .upgrades = steps},
	[3] = {PV_TYPE_OF(struct node3, "person", 3, PV_POINTER(struct node3, next),
			  PV_TAGGED(struct node3, tagged, ~7ull)),
	       .nupgrades = 2, .upgrades = steps},
};
static const struct pv_typedef fan_type =
	PV_TYPE(struct fan, "fan", 1, PV_POINTER(struct fan, head), PV_POINTER(struct fan, to));
static const struct pv_typedef head_type =
	PV_TYPE(struct head, "head", 1, PV_POINTER(struct head, first), PV_POINTER(struct head, fan));

/* The same in any version. */
struct view {
	const void *next;
	uint64_t key, tagged, extra;
	const uint8_t *tail;
	bool whole;
};

static struct view view_of(const void *node, unsigned version)
{
	const struct node1 *one = node;
	const struct node2 *two = node;
	const struct node3 *three = node;

	if (version == 1)
		return (struct view){one->next, one->key, one->tagged, one->extra, one->tail,
				     one->self == one};
	if (version == 2)
		return (struct view){two->next, two->key, two->tagged, two->extra, two->tail,
				     two->self == two && two->fresh == two &&
					     two->twice == 2 * two->key};
	return (struct view){three->next, three->key, three->tagged, three->extra, three->tail, true};
}

/* ---- operations ---- */

static int note_error(const char *call, int rc)
{
	if (rc)
		crash_note("%s: %s", call, pv_last_error());
	return rc;
}

static int op_upgrade(void *ctx, uintptr_t version)
{
	struct fixture *f = ctx;
	pv_type_t type;

	fails_at = 0;
	return note_error("upgrade", pv_type_register(f->store, &versions[version], &type));
}

/* The last node but one cannot be upgraded. */
static int op_upgrade_fails(void *ctx, uintptr_t version)
{
	struct fixture *f = ctx;
	pv_type_t type;
	int rc;

	fails_at = NODES - 1;
	rc = pv_type_register(f->store, &versions[version], &type);
	fails_at = 0;
	return rc == -EDOM ? 0 : note_error("upgrade that fails", rc ? rc : -1);
}

static int op_plan(void *ctx, uintptr_t version)
{
	const struct pv_typedef *def = &versions[version];
	struct fixture *f = ctx;

	return note_error("plan", pv_types_plan(f->store, &def, 1, NULL, NULL));
}

/* ---- callbacks ---- */

static int head_of(struct fixture *f, struct head **out)
{
	pv_type_t type;
	int rc = pv_type_register(f->store, &head_type, &type);

	if (!rc)
		rc = pv_root(f->store, "head", type, sizeof(struct head), (void **)out, NULL);
	return note_error("root", rc);
}

static int make_node(struct upgrade_fixture *u, pv_type_t type, uint32_t key, struct node1 **out)
{
	size_t bytes = sizeof(struct node1) + u->extra;
	bool is_root = u->root_is_node && key == NODES;
	struct node1 *n;
	int rc = is_root ? pv_root(u->f.store, "a-node", type, bytes, (void **)&n, NULL)
			 : pv_reserve(u->f.store, type, bytes, (void **)&n);

	if (rc)
		return note_error("node", rc);
	*n = (struct node1){.key = key, .extra = (uint32_t)u->extra, .self = n};
	for (size_t i = 0; i < u->extra; i++)
		n->tail[i] = i < 64 || i % 4096 < 8 ? (uint8_t)(key + i) : 0;
	*out = n;
	return is_root ? 0 : note_error("node", pv_publish(u->f.store, &PV_LIVE(n), 1));
}

static int set_up(void *ctx)
{
	struct upgrade_fixture *u = ctx;
	struct node1 *nodes[NODES];
	pv_type_t type, fans;
	struct head *head;
	struct fan *fan;
	int rc = fixture_setup_empty(ctx);

	if (!rc)
		rc = head_of(&u->f, &head);
	if (!rc)
		rc = note_error("types", pv_type_register(u->f.store, &versions[1], &type));
	if (!rc)
		rc = note_error("types", pv_type_register(u->f.store, &fan_type, &fans));
	for (uint32_t i = 0; !rc && i < NODES; i++)
		rc = make_node(u, type, i + 1, &nodes[i]);
	if (!rc)
		rc = note_error("fan", pv_alloc(u->f.store, fans, sizeof(*fan), (void **)&head->fan));
	if (rc)
		return rc;
	head->first = nodes[0];
	head->fan->head = (uint64_t *)(void *)head;
	for (uint32_t i = 0; i < NODES; i++) {
		nodes[i]->next = nodes[(i + 1) % NODES];
		nodes[i]->tagged = (uintptr_t)nodes[(i + 2) % NODES] | (i & 7);
		head->fan->to[i] = nodes[i];
	}
	/* Twice: all slabs are cold, and both slots of the index hold much the same. */
	rc = op_reattach(ctx, 0);
	return rc ? rc : op_reattach(ctx, 0);
}

static int count_live(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	++*(unsigned *)ctx;
	return 0;
}

static void tell(void *ctx, const char *line)
{
	crash_note("%s", line);
}

static unsigned version_of(struct fixture *f)
{
	struct pv_typedef def;
	pv_type_t type;

	for (unsigned v = 1; v <= VERSIONS; v++) {
		def = versions[v];
		def.upgrades = NULL;
		def.nupgrades = 0;
		if (pv_type_register(f->store, &def, &type) == 0)
			return v;
	}
	crash_note("the nodes have no version: %s", pv_last_error());
	return 0;
}

static bool ring_whole(struct upgrade_fixture *u, const struct head *head, unsigned version)
{
	const void *nodes[NODES + 2], *node = head->first;

	for (uint32_t i = 0; i < NODES; i++, node = view_of(node, version).next) {
		if (pv_usable_bytes(u->f.store, node) < sizeof(struct node3)) {
			crash_note("node %u of version %u is nowhere", i + 1, version);
			return false;
		}
		nodes[i] = node;
	}
	nodes[NODES] = nodes[0];
	nodes[NODES + 1] = nodes[1];
	for (uint32_t i = 0; i < NODES; i++) {
		struct view v = view_of(nodes[i], version);
		bool ok = v.whole && v.key == i + 1 && v.next == nodes[i + 1] &&
			  v.tagged == ((uintptr_t)nodes[i + 2] | (i & 7)) && v.extra == u->extra &&
			  head->fan->to[i] == nodes[i];

		for (size_t k = 0; ok && k < u->extra; k++)
			ok = v.tail[k] == (k < 64 || k % 4096 < 8 ? (uint8_t)(v.key + k) : 0);
		if (!ok) {
			crash_note("node %u of version %u is not whole", i + 1, version);
			return false;
		}
	}
	return head->fan->head == (void *)head;
}

static uint64_t check(void *ctx)
{
	struct upgrade_fixture *u = ctx;
	struct pv_check_report report;
	unsigned live = 0, version;
	struct head *head;

	if (pv_check(u->f.store, PV_CHECK_TELL(tell, NULL), &report) != 0 || report.problems)
		return 0;
	version = version_of(&u->f);
	if (!version || head_of(&u->f, &head) || !ring_whole(u, head, version))
		return 0;
	pv_iterate(u->f.store, 0, count_live, &live);
	if (live != NODES + 2 || live != report.live_objects) {
		crash_note("%u live objects instead of %u", live, NODES + 2);
		return 0;
	}
	if (u->root_is_node) {
		pv_type_t type;
		void *node;

		if (pv_type_register(u->f.store, &versions[version], &type) ||
		    pv_root(u->f.store, "a-node", type, 32, &node, NULL) ||
		    node != head->fan->to[NODES - 1]) {
			crash_note("the root that is a node: %s", pv_last_error());
			return 0;
		}
	}
	return 100 + version;
}

static int probe(void *ctx)
{
	struct upgrade_fixture *u = ctx;
	int rc = op_upgrade(ctx, VERSIONS);

	return rc ? rc : check(ctx) != 100 + VERSIONS || op_reattach(ctx, 0) ||
				 check(ctx) != 100 + VERSIONS || !u->f.store;
}

static const struct crash_op ops[] = {
	{"fails half-way", op_upgrade_fails, 2, CRASH_UNCHANGED, NULL},
	{"attach", op_reattach, 0, CRASH_UNCHANGED, NULL},
	{"1 -> 2", op_upgrade, 2, CRASH_ATOMIC, NULL},
};
static const struct crash_op again_ops[] = {
	{"1 -> 2", op_upgrade, 2, CRASH_ATOMIC, NULL},
	{"attach with version 2", op_reattach, PV_RELOCATE_AUTO, CRASH_UNCHANGED, NULL},
	{"2 -> 3, the number of version 1 again", op_upgrade, 3, CRASH_ATOMIC, NULL},
};
static const struct crash_op chain_ops[] = {
	{"a dry run", op_plan, 3, CRASH_UNCHANGED, NULL},
	{"1 -> 2 -> 3", op_upgrade, 3, CRASH_ATOMIC, NULL},
	{"attach", op_reattach, 0, CRASH_UNCHANGED, NULL},
};
static const struct crash_op once_ops[] = {
	{"1 -> 2", op_upgrade, 2, CRASH_ATOMIC, NULL},
};

static struct upgrade_fixture plain = {.f = {.lanes = 2}};
static struct upgrade_fixture again = {.f = {.lanes = 2}};
static struct upgrade_fixture chain = {.f = {.lanes = 2}};
static struct upgrade_fixture rooted = {.f = {.lanes = 2}, .root_is_node = true};
/* From slots to slots of another size, and an extent each; growing the store on the way. */
static struct upgrade_fixture texts = {.f = {.lanes = 2}, .extra = 300};
static struct upgrade_fixture extents = {
	.f = {.lanes = 2, .segment_bytes = 512 << 10}, .extra = 32768 - 32, .root_is_node = true};

#define SCENARIO(title, operations, fixture)                                                     \
	{                                                                                        \
		.name = (title), .ctx = (fixture), .ops = (operations),                          \
		.n_ops = sizeof(operations) / sizeof((operations)[0]), .setup = set_up,          \
		.recover = fixture_recover, .check = check, .close = fixture_close,              \
		.probe = probe, .any_order = true, .other_base = true                                                \
	}

int main(int argc, char **argv)
{
	static const struct crash_scenario scenarios[] = {
		SCENARIO("upgrade", ops, &plain),
		SCENARIO("upgrade-again", again_ops, &again),
		SCENARIO("upgrade-chain", chain_ops, &chain),
		SCENARIO("upgrade-root", once_ops, &rooted),
		SCENARIO("upgrade-texts", once_ops, &texts),
		SCENARIO("upgrade-extents", once_ops, &extents),
	};

	return crash_main(argc, argv, scenarios, sizeof(scenarios) / sizeof(scenarios[0]));
}
