/* SPDX-License-Identifier: BSD-3-Clause */
/* Layout upgrade: what becomes of objects, pointers, roots and types, and what is refused. Two "programs"
 * are two lists of definitions; each test plays the old one first. */
#include <inttypes.h>
#include <sys/stat.h>

#include <preserve/seal.h>
#include <preserve/tx.h>
#include <preserve/upgrade.h>

#include "internal.h"
#include "support.h"

#define NODES 200u

/* ---- three versions of a node ---- */

struct node1 {
	struct node1 *next;
	uint64_t value;
};
struct node2 {
	char name[24]; /* "n" and the value */
	uint64_t value;
	struct node2 *next;
	struct node2 *other; /* new: the node itself */
};
struct node3 {
	struct node3 *next;
	uint64_t square;
	char name[24];
	uint8_t filler[100]; /* 0x33 */
};

static unsigned int calls_1_to_2, calls_2_to_3, calls_1_to_3;
static uint64_t fails_at; /* the node of this value cannot be upgraded */

static int node_1_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct node1 *from = old;
	struct node2 *to = fresh;

	assert_null(ctx);
	assert_int_equal(old_bytes, sizeof(*from));
	assert_int_equal(fresh_bytes, sizeof(*to));
	for (size_t i = 0; i < fresh_bytes; i++)
		assert_int_equal(((uint8_t *)fresh)[i], 0);
	calls_1_to_2++;
	if (from->value && from->value == fails_at)
		return -EDOM;
	snprintf(to->name, sizeof(to->name), "n%" PRIu64, from->value);
	to->value = from->value;
	to->next = (struct node2 *)from->next;
	to->other = (struct node2 *)old;
	return 0;
}

static int node_2_to_3(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct node2 *from = old;
	struct node3 *to = fresh;

	assert_int_equal(old_bytes, sizeof(*from));
	assert_int_equal(fresh_bytes, sizeof(*to));
	calls_2_to_3++;
	memcpy(to->name, from->name, sizeof(to->name));
	to->square = from->value * from->value;
	to->next = (struct node3 *)from->next;
	memset(to->filler, 0x33, sizeof(to->filler));
	return 0;
}

static int node_1_to_3(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	struct node2 between = {0};
	int err;

	calls_1_to_3++;
	err = node_1_to_2(ctx, old, old_bytes, &between, sizeof(between));
	return err ? err : node_2_to_3(ctx, &between, sizeof(between), fresh, fresh_bytes);
}

static int node_2_to_1(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct node2 *from = old;
	struct node1 *to = fresh;

	to->value = from->value;
	to->next = (struct node1 *)from->next;
	return 0;
}

static const struct pv_upgrade steps[] = {
	PV_UPGRADE(2, 3, struct node3, node_2_to_3),
	PV_UPGRADE(1, 2, struct node2, node_1_to_2),
};
static const struct pv_upgrade back[] = {PV_UPGRADE(2, 1, struct node1, node_2_to_1)};

static const struct pv_typedef v1 =
	PV_TYPE(struct node1, "node", 1, PV_POINTER(struct node1, next));
static const struct pv_typedef v1_back = {
	PV_TYPE_OF(struct node1, "node", 1, PV_POINTER(struct node1, next)),
	.nupgrades = 1,
	.upgrades = back,
};
static const struct pv_typedef v2_alone =
	PV_TYPE(struct node2, "node", 2, PV_POINTER(struct node2, next),
		PV_POINTER(struct node2, other));
static const struct pv_typedef v2 = {
	PV_TYPE_OF(struct node2, "node", 2, PV_POINTER(struct node2, next),
		   PV_POINTER(struct node2, other)),
	.nupgrades = 1,
	.upgrades = &steps[1],
};
static const struct pv_typedef v3 = {
	PV_TYPE_OF(struct node3, "node", 3, PV_POINTER(struct node3, next)),
	.nupgrades = 2,
	.upgrades = steps,
};

/* The nodes of a list: NODES of them, in a ring, the first named by cell 0 and the last by cell 1. */
static struct pv_store *old_store(struct keeper *k)
{
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	struct node1 *first = NULL;
	pv_type_t type;

	calls_1_to_2 = calls_2_to_3 = calls_1_to_3 = 0;
	fails_at = 0;
	assert_ok(pv_type_register(s, &v1, &type));
	for (uint64_t i = NODES; i > 0; i--) {
		struct node1 *n = reserve_ok(s, type, sizeof(*n));

		*n = (struct node1){cells->cells[0], i};
		assert_ok(pv_link(s, n, &cells->cells[0]));
		if (!first)
			first = n;
	}
	cells->cells[1] = first;
	first->next = cells->cells[0];
	return s;
}

static void holds_v1(struct pv_store *s)
{
	struct cells *cells = store_cells(s);
	const struct node1 *n = cells->cells[0];
	pv_type_t type;

	assert_ok(pv_type_register(s, &v1, &type));
	for (uint64_t i = 1; i <= NODES; i++, n = n->next) {
		assert_int_equal(n->value, i);
		assert_true((n == cells->cells[1]) == (i == NODES));
	}
	assert_ptr_equal(n, cells->cells[0]);
	assert_int_equal(store_sound(s).live_objects, NODES + 1);
}

static void holds_v2(struct pv_store *s)
{
	struct cells *cells = store_cells(s);
	const struct node2 *n = cells->cells[0];
	struct objects live = {0};
	char name[24];
	pv_type_t type;

	assert_ok(pv_type_register(s, &v2_alone, &type));
	for (uint64_t i = 1; i <= NODES; i++, n = n->next) {
		snprintf(name, sizeof(name), "n%" PRIu64, i);
		assert_string_equal(n->name, name);
		assert_int_equal(n->value, i);
		assert_ptr_equal(n->other, n);
		assert_true((n == cells->cells[1]) == (i == NODES));
	}
	assert_ptr_equal(n, cells->cells[0]);
	assert_int_equal(store_sound(s).live_objects, NODES + 1);
	objects_live(&live, s, type);
	assert_int_equal(live.n, NODES);
	objects_free(&live);
}

static void holds_v3(struct pv_store *s)
{
	struct cells *cells = store_cells(s);
	const struct node3 *n = cells->cells[0];
	char name[24];

	for (uint64_t i = 1; i <= NODES; i++, n = n->next) {
		snprintf(name, sizeof(name), "n%" PRIu64, i);
		assert_string_equal(n->name, name);
		assert_int_equal(n->square, i * i);
		assert_int_equal(n->filler[99], 0x33);
		assert_true((n == cells->cells[1]) == (i == NODES));
	}
	assert_ptr_equal(n, cells->cells[0]);
	assert_int_equal(store_sound(s).live_objects, NODES + 1);
}

/* ---- what becomes of them ---- */

static void objects_grow_and_pointers_follow(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	pv_type_t before, type;
	void *object;

	assert_ok(pv_type_register(s, &v1, &before));
	assert_ok(pv_type_register(s, &v2, &type));
	assert_int_not_equal(before, type);
	assert_int_equal(calls_1_to_2, NODES);
	holds_v2(s);
	/* The old handle is none any more. */
	assert_fails(pv_reserve(s, before, sizeof(struct node1), &object), -EINVAL, "type");
	object = reserve_ok(s, type, sizeof(struct node2));
	assert_ok(pv_cancel(s, object));
	keeper_crash(k, &s);
	s = store_attach(k, NULL);
	assert_ok(pv_type_register(s, &v2, &type));
	assert_int_equal(calls_1_to_2, NODES);
	holds_v2(s);
	/* The old program is refused, and says what it met. */
	assert_fails(pv_type_register(s, &v1, &type), -EMEDIUMTYPE, "version 2");
	assert_ok(pv_close(s));
}

static void chains_store_only_the_last(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	pv_type_t type;

	assert_ok(pv_type_register(s, &v3, &type));
	assert_int_equal(calls_1_to_2, NODES);
	assert_int_equal(calls_2_to_3, NODES);
	holds_v3(s);
	assert_ok(pv_close(s));
	s = store_attach(k, NULL);
	assert_ok(pv_type_register(s, &v3, &type));
	holds_v3(s);
	assert_ok(pv_close(s));
}

static void shortest_chain(void **state)
{
	struct pv_upgrade more[] = {steps[0], steps[1], PV_UPGRADE(1, 3, struct node3, node_1_to_3)};
	struct pv_typedef direct = v3;
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	pv_type_t type;

	direct.upgrades = more;
	direct.nupgrades = 3;
	assert_ok(pv_type_register(s, &direct, &type));
	assert_int_equal(calls_1_to_3, NODES);
	assert_int_equal(calls_1_to_2, NODES); /* called by node_1_to_3() */
	holds_v3(s);
	assert_ok(pv_close(s));
}

static void step_by_step_and_back(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	pv_type_t type;

	for (int i = 0; i < 3; i++) {
		assert_ok(pv_type_register(s, &v2, &type));
		holds_v2(s);
		assert_ok(pv_type_register(s, &v1_back, &type)); /* downgrade, by a function */
		holds_v1(s);
	}
	assert_ok(pv_type_register(s, &v2, &type));
	assert_ok(pv_type_register(s, &v3, &type));
	assert_int_equal(calls_2_to_3, NODES);
	holds_v3(s);
	assert_ok(pv_close(s));
}

/* Numbers of types that are gone are used again: the index does not grow with each version. */
static void numbers_are_used_again(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	uint32_t most;
	pv_type_t type;

	assert_ok(pv_type_register(s, &v2, &type));
	most = s->index.ntypes;
	for (int i = 0; i < 12; i++) {
		assert_ok(pv_close(s));
		s = store_attach(k, NULL);
		assert_ok(pv_type_register(s, i % 2 ? &v2 : &v1_back, &type));
		i % 2 ? holds_v2(s) : holds_v1(s);
		assert_in_range(s->index.ntypes, 1, most);
	}
	assert_ok(pv_close(s));
}

static void empty_type(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type;
	void *object;

	assert_ok(pv_type_register(s, &v1, &type));
	assert_ok(pv_type_register(s, &v2, &type));
	object = reserve_ok(s, type, sizeof(struct node2));
	assert_ok(pv_cancel(s, object));
	assert_ok(pv_close(s));
}

/* ---- roots ---- */

static void roots_of_the_type(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	struct node1 *one;
	struct node2 *two;
	pv_type_t type;
	bool created;

	assert_ok(pv_type_register(s, &v1, &type));
	assert_ok(pv_root(s, "node", type, sizeof(*one), (void **)&one, NULL));
	one->value = 77;
	one->next = one;
	assert_ok(pv_type_register(s, &v2, &type));
	for (int again = 0; again < 2; again++) {
		assert_ok(pv_root(s, "node", type, sizeof(*two), (void **)&two, &created));
		assert_false(created);
		assert_string_equal(two->name, "n77");
		assert_ptr_equal(two->next, two);
		assert_ptr_equal(two->other, two);
		assert_int_equal(store_sound(s).live_objects, NODES + 2);
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
		assert_ok(pv_type_register(s, &v2, &type));
	}
	assert_ok(pv_close(s));
}

/* ---- two types that name each other ---- */

struct left1 {
	struct right1 *right;
	uint64_t n;
};
struct right1 {
	struct left1 *left;
	struct right1 *self;
	uint64_t n;
};
struct left2 {
	uint64_t n, twice;
	struct right2 *right;
};
struct right2 {
	uint64_t n;
	uint64_t of_left; /* what the left one said when this was made */
	struct right2 *self;
	struct left2 *left;
};

static int left_1_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct left1 *from = old;
	struct left2 *to = fresh;

	*to = (struct left2){from->n, 2 * from->n, (struct right2 *)from->right};
	return 0;
}

static bool left_is_new; /* when right_1_to_2() runs */

static int right_1_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct right1 *from = old;
	struct right2 *to = fresh;

	*to = (struct right2){
		.n = from->n,
		.of_left = left_is_new ? ((const struct left2 *)(const void *)from->left)->n
				       : from->left->n,
		.self = (struct right2 *)from->self,
		.left = (struct left2 *)from->left,
	};
	return 0;
}

static const struct pv_upgrade left_steps[] = {PV_UPGRADE(1, 2, struct left2, left_1_to_2)};
static const struct pv_upgrade right_steps[] = {PV_UPGRADE(1, 2, struct right2, right_1_to_2)};
static const struct pv_typedef left_v1 =
	PV_TYPE(struct left1, "left", 1, PV_POINTER_TO(struct left1, right, "right"));
static const struct pv_typedef right_v1 =
	PV_TYPE(struct right1, "right", 1, PV_POINTER_TO(struct right1, left, "left"),
		PV_POINTER(struct right1, self));
static const struct pv_typedef left_v2 = {
	PV_TYPE_OF(struct left2, "left", 2, PV_POINTER_TO(struct left2, right, "right")),
	.nupgrades = 1,
	.upgrades = left_steps,
};
static const struct pv_typedef right_v2 = {
	PV_TYPE_OF(struct right2, "right", 2, PV_POINTER_TO(struct right2, left, "left"),
		   PV_POINTER(struct right2, self)),
	.nupgrades = 1,
	.upgrades = right_steps,
};

static struct pv_store *pair_store(struct keeper *k)
{
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	pv_type_t left, right;

	assert_ok(pv_type_register(s, &left_v1, &left));
	assert_ok(pv_type_register(s, &right_v1, &right));
	for (uint64_t i = 0; i < NODES; i++) {
		struct left1 *l = reserve_ok(s, left, sizeof(*l));
		struct right1 *r = reserve_ok(s, right, sizeof(*r));

		*l = (struct left1){r, i};
		*r = (struct right1){l, r, 1000 + i};
		assert_ok(pv_publish(s,
				     (struct pv_action[]){PV_LIVE(l), PV_LIVE(r),
							  PV_STORE(&cells->cells[i], l)},
				     3));
	}
	return s;
}

static void pairs_hold(struct pv_store *s)
{
	struct cells *cells = store_cells(s);

	for (uint64_t i = 0; i < NODES; i++) {
		const struct left2 *l = cells->cells[i];
		const struct right2 *r = l->right;

		assert_int_equal(l->n, i);
		assert_int_equal(l->twice, 2 * i);
		assert_ptr_equal(r->left, l);
		assert_ptr_equal(r->self, r);
		assert_int_equal(r->n, 1000 + i);
		assert_int_equal(r->of_left, i);
	}
	assert_int_equal(store_sound(s).live_objects, 2 * NODES + 1);
}

static void two_types_one_after_the_other(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = pair_store(k);
	pv_type_t type;

	assert_ok(pv_type_register(s, &left_v2, &type));
	left_is_new = true;
	assert_ok(pv_type_register(s, &right_v2, &type));
	pairs_hold(s);
	assert_ok(pv_close(s));
}

static void count_progress(void *ctx, const struct pv_upgrade_report *so_far)
{
	unsigned int *phases = ctx;

	phases[so_far->phase]++;
}

static void two_types_as_one(void **state)
{
	const struct pv_typedef *both[] = {&right_v2, &v1, &left_v2};
	unsigned int phases[4] = {0};
	struct pv_upgrade_options o = {
		.size = sizeof(o), .progress = count_progress, .ctx = phases};
	struct keeper *k = *state;
	struct pv_store *s = pair_store(k);
	struct pv_upgrade_report r, planned;
	pv_type_t types[3], again[3];

	left_is_new = false; /* the functions see the old objects of both */
	assert_ok(pv_types_plan(s, both, 3, NULL, &planned));
	assert_ok(pv_types_register(s, both, 3, &o, &r, types));
	pairs_hold(s);
	assert_int_equal(r.types, 2);
	assert_int_equal(r.phase, PV_UPGRADE_DONE);
	assert_int_equal(r.objects, 2 * NODES);
	assert_int_equal(r.objects_all, 2 * NODES);
	assert_int_equal(r.bytes_before, NODES * (16 + 32));
	assert_int_equal(r.bytes_after, NODES * (32 + 32));
	assert_null(r.failed);
	assert_int_equal(planned.objects, r.objects);
	assert_int_equal(planned.bytes_before, r.bytes_before);
	assert_int_equal(planned.bytes_after, r.bytes_after);
	for (int i = 0; i < 4; i++)
		assert_in_range(phases[i], 1, i == PV_UPGRADE_MOVE ? 100 : 1);
	assert_true(r.moved && r.moved == r.moved_all);
	assert_ok(pv_types_register(s, both, 3, &o, &r, again)); /* nothing more to do */
	assert_memory_equal(types, again, sizeof(types));
	assert_int_equal(r.types, 0);
	assert_int_equal(phases[PV_UPGRADE_COPY], 1);
	assert_ok(pv_close(s));
}

/* ---- failures ---- */

/* Everything in the memfds but what says who is attached: to see that nothing was stored. */
static uint64_t contents(struct keeper *k)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < k->n; i++) {
		size_t bytes;
		uint8_t *p = memfd_map(k->fds[i], &bytes);

		for (size_t at = 0; at < bytes; at++)
			sum = (sum ^ p[at]) * 0x100000001b3u;
		memfd_unmap(p, bytes);
	}
	return sum;
}

static void function_fails_half_way(void **state)
{
	const struct pv_typedef *def = &v2;
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	struct pv_upgrade_report r;
	pv_type_t type = 99;
	uint64_t sum;

	fails_at = NODES / 2;
	sum = contents(k);
	assert_fails(pv_types_plan(s, &def, 1, NULL, &r), -EDOM,
		     "type node: the upgrade from version 1 to 2 failed");
	assert_int_equal(contents(k), sum);
	assert_int_equal(((const struct node1 *)r.failed)->value, fails_at);
	for (int i = 0; i < 5; i++) {
		assert_fails(pv_types_register(s, &def, 1, NULL, &r, &type), -EDOM,
			     "type node: the upgrade from version 1 to 2 failed");
		assert_int_equal(((const struct node1 *)r.failed)->value, fails_at);
		assert_int_equal(r.failed_from, 1);
		assert_int_equal(r.failed_to, 2);
		assert_int_equal(r.phase, PV_UPGRADE_COPY);
		assert_int_equal(type, 99);
		holds_v1(s); /* the old program in the same process ... */
	}
	assert_in_range(s->index.ntypes, 1, 3); /* one draft, used again and again */
	keeper_crash(k, &s);
	s = store_attach(k, NULL);
	holds_v1(s); /* ... and in the next */
	assert_ok(pv_close(s));
	s = store_attach(k, NULL);
	fails_at = 0; /* a mended program */
	assert_ok(pv_type_register(s, &v2, &type));
	holds_v2(s);
	assert_ok(pv_close(s));
}

static void one_of_two_types_fails(void **state)
{
	const struct pv_upgrade fails[] = {PV_UPGRADE(1, 2, struct node2, node_1_to_2)};
	struct pv_typedef def = v2;
	const struct pv_typedef *both[] = {&left_v2, &def};
	struct keeper *k = *state;
	struct pv_store *s = pair_store(k);
	struct cells *cells = store_cells(s);
	pv_type_t type, types[2];
	struct node1 *n;

	def.upgrades = fails;
	assert_ok(pv_type_register(s, &v1, &type));
	n = reserve_ok(s, type, sizeof(*n));
	*n = (struct node1){NULL, 4711};
	assert_ok(pv_link(s, n, &cells->cells[NODES]));
	fails_at = 4711;
	assert_fails(pv_types_register(s, both, 2, NULL, NULL, types), -EDOM, "type node");
	/* The other one was not upgraded either. */
	assert_ok(pv_type_register(s, &left_v1, &type));
	assert_int_equal(((struct left1 *)cells->cells[3])->n, 3);
	assert_int_equal(store_sound(s).live_objects, 2 * NODES + 2);
	fails_at = 0;
	assert_ok(pv_close(s));
}

static void no_chain(void **state)
{
	struct pv_typedef alone = v3, half = v3;
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	pv_type_t type;

	alone.upgrades = NULL;
	alone.nupgrades = 0;
	half.nupgrades = 1; /* 2 -> 3 only */
	assert_fails(pv_type_register(s, &alone, &type), -EMEDIUMTYPE, "version 1");
	assert_non_null(strstr(pv_last_error(), "version 3"));
	assert_non_null(strstr(pv_last_error(), "filler") ? "" : pv_last_error());
	assert_fails(pv_type_register(s, &half, &type), -EMEDIUMTYPE, "version 1");
	holds_v1(s);
	assert_ok(pv_type_register(s, &v2, &type));
	assert_fails(pv_type_register(s, &v1, &type), -EMEDIUMTYPE, "version 2"); /* downgrade */
	holds_v2(s);
	assert_ok(pv_close(s));
}

static void same_version_other_layout(void **state)
{
	struct pv_typedef forgot = v2;
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	pv_type_t type;

	forgot.version = 1;
	forgot.nupgrades = 0;
	assert_fails(pv_type_register(s, &forgot, &type), -EMEDIUMTYPE, "version 1");
	holds_v1(s);
	assert_ok(pv_close(s));
}

static void lists_that_make_no_sense(void **state)
{
	static struct pv_upgrade many[65];
	struct pv_upgrade list[2];
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	struct pv_typedef def = v2;
	pv_type_t type;

	def.upgrades = NULL;
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "no list of upgrades");
	def.upgrades = list;
	list[0] = (struct pv_upgrade)PV_UPGRADE(1, 2, struct node2, NULL);
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "from version 1 to 2: no function");
	list[0] = (struct pv_upgrade)PV_UPGRADE(2, 2, struct node2, node_1_to_2);
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "leads nowhere");
	list[0] = (struct pv_upgrade)PV_UPGRADE(1, 2, struct node2, node_1_to_2);
	list[0].flags = 8;
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "flags");
	list[0].flags = 0;
	list[0].bytes = 47;
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "to 47 bytes, but the type has 48");
	list[0].bytes = sizeof(struct node2);
	list[1] = list[0];
	def.nupgrades = 2;
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "twice");
	list[1].from = 7;
	list[1].bytes = 8;
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "another size");
	def.upgrades = many;
	def.nupgrades = 65;
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "65 upgrades");
	/* Also where nothing is to be upgraded, or the type is new. */
	def = v1;
	def.upgrades = NULL;
	def.nupgrades = 1;
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "no list of upgrades");
	def.name = "unheard-of";
	assert_fails(pv_type_register(s, &def, &type), -EINVAL, "no list of upgrades");
	holds_v1(s);
	assert_ok(pv_close(s));
}

static void options_that_make_no_sense(void **state)
{
	const struct pv_typedef *defs[] = {&v2, &v1};
	struct pv_upgrade_options o = {.size = 3};
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	pv_type_t types[2];

	assert_fails(pv_types_register(s, defs, 1, &o, NULL, types), -EINVAL, "size 3");
	o = (struct pv_upgrade_options){.size = sizeof(o), .flags = 1};
	assert_fails(pv_types_plan(s, defs, 1, &o, NULL), -EINVAL, "flags 0x1");
	assert_fails(pv_types_register(s, defs, 2, NULL, NULL, types), -EEXIST, "node stands twice");
	assert_ok(pv_types_register(s, NULL, 0, NULL, NULL, NULL));
	holds_v1(s);
	assert_ok(pv_close(s));
}

static void pointers_into_the_middle(void **state)
{
	const struct pv_typedef *def = &v2;
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	struct cells *cells = store_cells(s);
	struct pv_upgrade_report r;
	pv_type_t type;

	cells->cells[7] = &((struct node1 *)cells->cells[0])->value;
	assert_fails(pv_type_register(s, &v2, &type), -EINVAL, "inside of an object");
	holds_v1(s);
	assert_fails(pv_types_plan(s, &def, 1, NULL, &r), -EINVAL, "inside of an object");
	assert_ptr_equal(r.failed, cells);
	cells->cells[7] = NULL;
	assert_ok(pv_type_register(s, &v2, &type));
	holds_v2(s);
	assert_ok(pv_close(s));
}

static bool stray; /* where stray_1_to_2() lets its last pointer lead */

static int stray_1_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	static uint64_t outside;
	struct node2 *to = fresh;
	int err = node_1_to_2(ctx, old, old_bytes, fresh, fresh_bytes);

	if (!err && to->value == 5)
		to->other = stray ? (void *)&outside : (void *)&((struct node1 *)to->next)->value;
	if (!err && to->value == 6)
		to->other = (void *)&to->value; /* into itself: that is known where it is */
	return err;
}

static void pointers_that_a_function_leaves(void **state)
{
	const struct pv_upgrade list[] = {PV_UPGRADE(1, 2, struct node2, stray_1_to_2)};
	struct pv_typedef def = v2;
	const struct pv_typedef *defs[] = {&def};
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	struct pv_upgrade_report r;
	pv_type_t type;

	def.upgrades = list;
	for (int i = 0; i < 2; i++) {
		stray = i;
		assert_fails(pv_types_plan(s, defs, 1, NULL, &r), -EINVAL,
			     i ? "outside of the store" : "inside of an object");
		assert_int_equal(((const struct node1 *)r.failed)->value, 5);
		assert_fails(pv_type_register(s, &def, &type), -EINVAL,
			     i ? "outside of the store" : "inside of an object");
		holds_v1(s);
	}
	assert_ok(pv_close(s));
}

static void no_room(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s = old_store(k);
	struct cells *cells = store_cells(s);
	pv_type_t type, fill;
	size_t filled = 10;
	void *object;

	o.limit_bytes = store_info(s).bytes;
	assert_ok(pv_close(s));
	s = store_attach(k, &o);
	cells = store_cells(s);
	fill = store_bytes_type(s, "fill");
	while (pv_reserve(s, fill, 448, &object) == 0) /* slabs of one page */
		assert_ok(pv_link(s, object, &cells->cells[filled++]));
	for (int i = 0; i < 3; i++) {
		assert_fails(pv_type_register(s, &v3, &type), -ENOSPC, "limit");
		assert_int_equal(store_sound(s).live_objects, NODES + 1 + filled - 10);
	}
	assert_ok(pv_close(s));
	s = store_attach(k, NULL); /* without the limit */
	cells = store_cells(s);
	assert_ok(pv_type_register(s, &v1, &type));
	assert_int_equal(((struct node1 *)cells->cells[0])->value, 1);
	assert_ok(pv_type_register(s, &v3, &type));
	assert_int_equal(((struct node3 *)cells->cells[0])->square, 1);
	assert_int_equal(store_sound(s).live_objects, NODES + 1 + filled - 10);
	assert_ok(pv_close(s));
}

/* The machine has less left than the library's reserve: it says so, and everything is as it was. */
static void no_memory(void **state)
{
	static const char meminfo[] = "MemTotal: 1048576 kB\nMemAvailable: 1024 kB\nSwapFree: 0 kB\n";
	char path[] = "/tmp/pv-upgrade-XXXXXX", file[64];
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	struct pv_upgrade_report r;
	const struct pv_typedef *def = &v3;
	pv_type_t type;
	FILE *f;

	assert_non_null(mkdtemp(path));
	snprintf(file, sizeof(file), "%s/proc", path);
	assert_int_equal(mkdir(file, 0700), 0);
	snprintf(file, sizeof(file), "%s/proc/meminfo", path);
	f = fopen(file, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(meminfo, sizeof(meminfo) - 1, 1, f), 1);
	assert_int_equal(fclose(f), 0);
	pvi_memory_root(path);
	assert_ok(pv_types_plan(s, &def, 1, NULL, &r)); /* takes none of the store */
	assert_fails(pv_types_register(s, &def, 1, NULL, &r, &type), -ENOMEM, "this machine");
	assert_int_equal(r.phase, PV_UPGRADE_COPY);
	assert_true(r.failed && r.objects < NODES);
	assert_int_equal(r.failed_from, 0); /* no function failed */
	holds_v1(s);
	pvi_memory_root("");
	assert_int_equal(unlink(file), 0);
	snprintf(file, sizeof(file), "%s/proc", path);
	assert_int_equal(rmdir(file), 0);
	assert_int_equal(rmdir(path), 0);
	assert_ok(pv_type_register(s, &v3, &type));
	holds_v3(s);
	assert_ok(pv_close(s));
}

static void read_only(void **state)
{
	const struct pv_typedef *def = &v2;
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s = old_store(k);
	struct pv_upgrade_report r;
	pv_type_t type;
	uint64_t sum;

	assert_ok(pv_close(s));
	sum = contents(k);
	/* Mapped elsewhere: functions would follow pointers to nowhere. */
	o.relocate = PV_RELOCATE_ALWAYS;
	assert_ok(store_try(k, &o, PV_RDONLY, &s));
	calls_1_to_2 = 0;
	assert_fails(pv_types_plan(s, &def, 1, NULL, &r), -EADDRINUSE, "cannot follow");
	assert_int_equal(calls_1_to_2, 0);
	assert_ok(pv_close(s));
	o.relocate = PV_RELOCATE_NEVER;
	assert_ok(store_try(k, &o, PV_RDONLY, &s));
	assert_fails(pv_type_register(s, &v2, &type), -EPERM, "read-only");
	assert_ok(pv_types_plan(s, &def, 1, NULL, &r));
	assert_int_equal(r.types, 1);
	assert_int_equal(r.objects, NODES);
	assert_int_equal(r.bytes_before, NODES * 16);
	assert_int_equal(r.bytes_after, NODES * 48);
	assert_ok(pv_type_register(s, &v1, &type));
	assert_ok(pv_close(s));
	assert_int_equal(contents(k), sum);
}

static void plan_changes_nothing(void **state)
{
	const struct pv_typedef *def = &v3;
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	struct pv_upgrade_report r;
	uint64_t sum = contents(k);

	assert_ok(pv_types_plan(s, &def, 1, NULL, &r));
	assert_int_equal(contents(k), sum);
	assert_int_equal(calls_2_to_3, NODES);
	assert_int_equal(r.bytes_after, NODES * 144);
	def = &v1;
	assert_ok(pv_types_plan(s, &def, 1, NULL, &r));
	assert_int_equal(r.types, 0);
	assert_int_equal(contents(k), sum);
	holds_v1(s);
	assert_ok(pv_close(s));
}

static void somebody_is_at_work(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	struct cells *cells = store_cells(s);
	pv_type_t type, old;
	void *object;

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_add(s, &cells->cells[9], 8));
	assert_fails(pv_type_register(s, &v2, &type), -EBUSY, "transaction");
	assert_ok(pv_tx_abort(s));
	assert_ok(pv_type_register(s, &v1, &old));
	object = reserve_ok(s, old, sizeof(struct node1));
	assert_fails(pv_type_register(s, &v2, &type), -EBUSY, "reserved");
	assert_ok(pv_cancel(s, object));
	assert_ok(pv_type_register(s, &v2, &type));
	holds_v2(s);
	assert_ok(pv_close(s));
}

static void pinned(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_typedef one = v1, two = v2;
	pv_type_t type;

	one.flags = two.flags = PV_TYPE_PINNED;
	assert_ok(pv_type_register(s, &one, &type));
	assert_fails(pv_type_register(s, &two, &type), -EPERM, "pinned");
	assert_ok(pv_close(s));
}

static void sealed(void **state)
{
	const struct pv_typedef *def = &v2;
	struct keeper *k = *state;
	struct pv_store *s = old_store(k);
	struct pv_upgrade_report r;
	pv_type_t type;

	assert_ok(pv_type_register(s, &v1, &type));
	assert_ok(pv_seal(s, &type, 1, NULL));
	calls_1_to_2 = 0;
	assert_fails(pv_types_plan(s, &def, 1, NULL, &r), -EPERM, "type node: the object at");
	assert_non_null(r.failed);
	assert_fails(pv_type_register(s, &v2, &type), -EPERM, "sealed");
	assert_int_equal(calls_1_to_2, 0);
	holds_v1(s);
	assert_ok(pv_close(s));
	s = store_attach(k, NULL);
	assert_fails(pv_type_register(s, &v2, &type), -EPERM, "sealed");
	holds_v1(s);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(objects_grow_and_pointers_follow),
		with_keeper(chains_store_only_the_last),
		with_keeper(shortest_chain),
		with_keeper(step_by_step_and_back),
		with_keeper(numbers_are_used_again),
		with_keeper(empty_type),
		with_keeper(roots_of_the_type),
		with_keeper(two_types_one_after_the_other),
		with_keeper(two_types_as_one),
		with_keeper(function_fails_half_way),
		with_keeper(one_of_two_types_fails),
		with_keeper(no_chain),
		with_keeper(same_version_other_layout),
		with_keeper(lists_that_make_no_sense),
		with_keeper(options_that_make_no_sense),
		with_keeper(pointers_into_the_middle),
		with_keeper(pointers_that_a_function_leaves),
		with_keeper(no_room),
		with_keeper(no_memory),
		with_keeper(read_only),
		with_keeper(plan_changes_nothing),
		with_keeper(somebody_is_at_work),
		with_keeper(pinned),
		with_keeper(sealed),
	};

	return cmocka_run_group_tests_name("upgrade", tests, NULL, NULL);
}
