/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Relocation: where a store goes and when, that all that points goes along, and what is refused. Crashes on
 * the way are swept in tests/crash/test_relocate.c.
 */
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <preserve/lock.h>
#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

#define NODES	   3000
#define TAG_MASK   0x0000fffffffffff8ull
#define NOWHERE	   0x7000 /* short of the end of the window: no segment there */
#define FAR_AWAY   (uint8_t *)0x123456789000

struct node {
	struct node *next;
	struct node *any;
	uint64_t tagged;
	uint64_t number;
};

struct tail {
	uint64_t used;
	struct node *nodes[];
};

struct choice {
	uint32_t kind;
	uint32_t pad;
	union {
		struct node *node;
		uint64_t number;
	} u;
};

struct anchor {
	struct node *first;
	struct tail *tail;
	struct node **array; /* an extent */
	struct choice *choices[2];
	struct pv_lock lock;
};

static const struct pv_typedef node_def =
	PV_TYPE(struct node, "node", 1, PV_POINTER(struct node, next), PV_POINTER(struct node, any),
		PV_TAGGED(struct node, tagged, TAG_MASK));
static const struct pv_typedef tail_def =
	PV_TYPE(struct tail, "tail", 1, PV_POINTER_COUNTED(struct tail, nodes, used));
static const struct pv_typedef array_def = PV_TYPE_ARRAY(void *, "array", 1, PV_POINTER_ITSELF);
static const struct pv_typedef choice_def =
	PV_TYPE(struct choice, "choice", 1,
		PV_WHEN(struct choice, kind, 1, PV_POINTER(struct choice, u.node)));
static const struct pv_typedef anchor_def =
	PV_TYPE(struct anchor, "anchor", 1, PV_POINTER(struct anchor, first),
		PV_POINTER(struct anchor, tail), PV_POINTER(struct anchor, array),
		PV_POINTER(struct anchor, choices));

static pv_type_t node_type, tail_type, array_type, choice_type, anchor_type;

static struct anchor *get_anchor(struct pv_store *s)
{
	void *root = NULL;

	assert_ok(pv_type_register(s, &node_def, &node_type));
	assert_ok(pv_type_register(s, &tail_def, &tail_type));
	assert_ok(pv_type_register(s, &array_def, &array_type));
	assert_ok(pv_type_register(s, &choice_def, &choice_type));
	assert_ok(pv_type_register(s, &anchor_def, &anchor_type));
	assert_ok(pv_root(s, "anchor", anchor_type, sizeof(struct anchor), &root, NULL));
	return root;
}

static struct node *add_node(struct pv_store *s, struct anchor *a, uint64_t number)
{
	struct node *n = reserve_ok(s, node_type, sizeof(*n));

	*n = (struct node){a->first, number % 3 ? n : NULL, 0, number};
	n->tagged = ((uint64_t)(uintptr_t)n & TAG_MASK) | 0xabc0000000000005ull;
	assert_ok(pv_link(s, n, &a->first));
	return n;
}

#define ARRAY 10000
/* What the tests move around. */
static struct anchor *fill(struct pv_store *s)
{
	struct anchor *a = get_anchor(s);
	struct node *old;

	for (uint64_t i = 0; i < NODES; i++)
		add_node(s, a, i);
	/* Some slots in between are dead. */
	for (struct node **n = &a->first; *n; n = &(*n)->next)
		if ((*n)->number % 7 == 3) {
			old = *n;
			assert_ok(pv_unlink(s, n, (uintptr_t)old->next, old));
		}
	assert_ok(pv_alloc(s, tail_type, sizeof(struct tail) + 20 * 8, (void **)&a->tail));
	a->tail->nodes[0] = a->first;
	a->tail->nodes[1] = NULL;
	a->tail->nodes[2] = a->first->next;
	a->tail->nodes[3] = (void *)FAR_AWAY; /* not in use */
	a->tail->used = 3;
	assert_ok(pv_alloc(s, array_type, ARRAY * 8, (void **)&a->array));
	for (size_t i = 0; i < ARRAY; i += 3)
		a->array[i] = a->first;
	for (int i = 0; i < 2; i++)
		assert_ok(pv_alloc(s, choice_type, sizeof(struct choice), (void **)&a->choices[i]));
	*a->choices[0] = (struct choice){.kind = 1, .u.node = a->first};
	*a->choices[1] = (struct choice){.kind = 2, .u.number = (uintptr_t)a->first};
	return a;
}

/* number: what a choice holds that is no pointer. */
static void expect(struct pv_store *s, uint64_t number)
{
	struct anchor *a = get_anchor(s);
	struct node *n = a->first;

	store_sound(s);
	for (uint64_t i = NODES; i-- > 0;) {
		if (i % 7 == 3)
			continue;
		assert_non_null(n);
		assert_int_equal(n->number, i);
		assert_ptr_equal(n->any, i % 3 ? n : NULL);
		assert_int_equal(n->tagged & TAG_MASK, (uintptr_t)n & TAG_MASK);
		assert_int_equal(n->tagged & ~TAG_MASK, 0xabc0000000000005ull);
		n = n->next;
	}
	assert_null(n);
	assert_ptr_equal(a->tail->nodes[0], a->first);
	assert_null(a->tail->nodes[1]);
	assert_ptr_equal(a->tail->nodes[2], a->first->next);
	assert_ptr_equal(a->tail->nodes[3], (void *)FAR_AWAY);
	for (size_t i = 0; i < ARRAY; i++)
		assert_ptr_equal(a->array[i], i % 3 ? NULL : a->first);
	assert_ptr_equal(a->choices[0]->u.node, a->first);
	assert_int_equal(a->choices[1]->u.number, number);
}

static struct pv_options options(struct keeper *k)
{
	struct pv_options o = small_options(k);

	o.relocate = PV_RELOCATE_NEVER; /* whatever the environment says */
	return o;
}

static struct pv_store *move(struct keeper *k, const struct pv_options *o)
{
	struct pv_options other = *o;

	other.relocate = PV_RELOCATE_ALWAYS;
	return store_attach(k, &other);
}

/* ---- where it goes ---- */

static void moves_all_pointers(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);
	struct pv_info before = store_info(s), now;
	uint64_t number = (uintptr_t)fill(s)->first;

	assert_int_equal(before.recorded_base, before.base);
	for (int i = 0; i < 5; i++) {
		assert_ok(pv_close(s));
		s = move(k, &o);
		now = store_info(s);
		assert_int_equal(now.origin, PV_ORIGIN_RELOCATED);
		assert_int_equal(now.relocated_from, before.base);
		assert_int_equal(now.recorded_base, now.base);
		assert_true(now.base >= before.base + before.window_bytes ||
			    before.base >= now.base + now.window_bytes);
		/* next, any, tagged of each node, and the others */
		assert_in_range(now.relocated_pointers, NODES * 2, NODES * 3 + ARRAY);
		assert_in_range(now.relocated_bytes, NODES / 2 * sizeof(struct node), now.bytes);
		assert_true(now.relocated_ns && now.relocated_ns <= now.attach_ns);
		assert_int_equal(now.dangling, 0);
		expect(s, number);
		before = now;
	}
	assert_ok(pv_close(s));
	s = store_attach(k, &o);
	now = store_info(s);
	assert_int_equal(now.origin, PV_ORIGIN_REATTACHED);
	assert_int_equal(now.base, before.base);
	assert_int_equal(now.relocated_from + now.relocated_pointers + now.relocated_bytes, 0);
	expect(s, number);
	assert_ok(pv_close(s));
}

/* And the copy is a store of its own. */
static void copies_side_by_side(void **state)
{
	struct keeper *k = *state, copy = {0}, third = {0};
	struct pv_options o = options(k), ask = o, other = o, last;
	struct pv_store *s = store_create(k, &o), *t, *u;
	uint64_t number = (uintptr_t)fill(s)->first;
	struct anchor *a;

	keeper_copy(&copy, k);
	keeper_copy(&third, k);
	/* At its own base there is the original. */
	other.keep_ctx = &copy;
	assert_fails(store_try(&copy, &other, 0, &t), -EADDRINUSE, "memfd:pv:test:index");
	ask.relocate = PV_RELOCATE_AUTO;
	ask.keep_ctx = &copy;
	t = store_attach(&copy, &ask);
	last = ask;
	last.keep_ctx = &third;
	u = store_attach(&third, &last);
	assert_int_equal(store_info(t).origin, PV_ORIGIN_RELOCATED);
	assert_int_equal(store_info(u).origin, PV_ORIGIN_RELOCATED);
	assert_int_not_equal(store_info(t).base, store_info(u).base);
	expect(s, number);
	expect(t, number);
	expect(u, number);
	/* What one does the others do not see. */
	a = get_anchor(t);
	assert_ok(pv_unlink(t, &a->tail->nodes[0], 0, a->choices[1]));
	assert_ok(pv_publish(t, &PV_STORE(&a->choices[1], 0), 1));
	expect(s, number);
	expect(u, number);
	assert_ok(pv_close(t));
	assert_ok(pv_close(u));
	assert_ok(pv_close(s));
	keeper_free(&copy);
	keeper_free(&third);
}

static void a_base_can_be_demanded(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k), at = o;
	struct pv_store *s;
	uint64_t first = under_tsan() ? 0x7000000000 : 0x200000000000, number;
	uint64_t second = first - (1ull << 31);
	void *blocker;

	o.base = first;
	s = store_create(k, &o);
	assert_int_equal(store_info(s).base, first);
	number = (uintptr_t)fill(s)->first;
	assert_ok(pv_close(s));
	/* Where it is. */
	s = store_attach(k, &o);
	assert_int_equal(store_info(s).origin, PV_ORIGIN_REATTACHED);
	assert_ok(pv_close(s));
	/* Elsewhere, if that is not forbidden. */
	at.base = second;
	assert_fails(store_try(k, &at, 0, &s), -EINVAL, "relocation is forbidden");
	at.relocate = PV_RELOCATE_AUTO;
	s = store_attach(k, &at);
	assert_int_equal(store_info(s).base, second);
	assert_int_equal(store_info(s).relocated_from, first);
	expect(s, number);
	assert_ok(pv_close(s));
	at.relocate = PV_RELOCATE_ALWAYS;
	assert_fails(store_try(k, &at, 0, &s), -EINVAL, "relocation is demanded");
	/* Not everywhere. */
	at.relocate = PV_RELOCATE_AUTO;
	for (unsigned int i = 0; i < 3; i++) {
		at.base = (const uint64_t[]){4096, second + 4096, 1ull << 47}[i];
		assert_fails(store_try(k, &at, 0, &s), -EINVAL, "is not an address where a window");
	}
	/* Not where something is. */
	at.base = first;
	blocker = mmap((void *)(uintptr_t)(first + 8192), 4096, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_equal(blocker, (void *)(uintptr_t)(first + 8192));
	assert_fails(store_try(k, &at, 0, &s), -EADDRINUSE, "(anonymous)");
	munmap(blocker, 4096);
	s = store_attach(k, &at);
	expect(s, number);
	assert_ok(pv_close(s));
}

/* A window of 2 GiB, and bases 1 GiB apart. */
static void windows_must_be_apart(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s;

	o.segment_bytes = 1 << 20;
	o.window_bytes = 1ull << 31;
	s = store_create(k, &o);
	o.base = store_info(s).base + (1ull << 30);
	assert_ok(pv_close(s));
	o.relocate = PV_RELOCATE_AUTO;
	assert_fails(store_try(k, &o, 0, &s), -EINVAL, "overlaps the one that the store's pointers");
	o.base += 1ull << 30;
	s = store_attach(k, &o);
	assert_ok(pv_close(s));
}

/* A window so large that no other one is apart from it. */
static void no_window_is_left(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s;
	uint64_t low, high, base;

	pvi_arena_bounds(&low, &high);
	o.segment_bytes = 1 << 25;
	o.window_bytes = 1ull << (under_tsan() ? 38 : 45);
	s = store_create(k, &o);
	base = store_info(s).base;
	assert_ok(pv_close(s));
	o.relocate = PV_RELOCATE_ALWAYS;
	assert_fails(store_try(k, &o, 0, &s), -EADDRINUSE, "is apart from the one at");
	o.relocate = PV_RELOCATE_NEVER;
	s = store_attach(k, &o);
	assert_int_equal(store_info(s).base, base);
	assert_in_range(store_info(s).epoch, 2, 2);
	assert_ok(pv_close(s));
}

static void the_environment_decides(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);
	uint64_t base = store_info(s).base, number = (uintptr_t)fill(s)->first;
	const char *was = getenv("PV_RELOCATE");
	char *kept = was ? strdup(was) : NULL;

	assert_ok(pv_close(s));
	o.relocate = PV_RELOCATE_AUTO;
	setenv("PV_RELOCATE", "always", 1);
	s = store_attach(k, &o);
	assert_int_not_equal(store_info(s).base, base);
	expect(s, number);
	base = store_info(s).base;
	assert_ok(pv_close(s));
	setenv("PV_RELOCATE", "never", 1);
	s = store_attach(k, &o);
	assert_int_equal(store_info(s).base, base);
	assert_ok(pv_close(s));
	setenv("PV_RELOCATE", "sometimes", 1);
	assert_fails(store_try(k, &o, 0, &s), -EINVAL, "PV_RELOCATE=sometimes");
	/* What the program says is stronger. */
	o.relocate = PV_RELOCATE_NEVER;
	s = store_attach(k, &o);
	assert_ok(pv_close(s));
	if (kept)
		setenv("PV_RELOCATE", kept, 1);
	else
		unsetenv("PV_RELOCATE");
	free(kept);
}

static void unknown_options(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s;

	o.relocate = 3;
	assert_fails(store_try(k, &o, PV_CREATE, &s), -EINVAL, "pv_options.relocate 3");
	o = options(k);
	o.dangling = 2;
	assert_fails(store_try(k, &o, PV_CREATE, &s), -EINVAL, "pv_options.dangling 2");
	o = options(k);
	o.threads = 65;
	assert_fails(store_try(k, &o, PV_CREATE, &s), -EINVAL, "pv_options.threads 65");
	o = options(k);
	o.base = 4096;
	assert_fails(store_try(k, &o, PV_CREATE, &s), -EINVAL, "pv_options.base 0x1000");
}

/* ---- only looking ---- */

static void a_reader_moves_nothing(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k), look = o;
	struct pv_store *s = store_create(k, &o), *r;
	struct anchor *a = fill(s), *there;
	struct pv_info info, mine = store_info(s);

	/* The writer has the window in this very process. */
	assert_fails(store_try(k, &look, PV_RDONLY, &r), -EADDRINUSE, "overlaps");
	look.relocate = PV_RELOCATE_AUTO;
	assert_ok(store_try(k, &look, PV_RDONLY, &r));
	info = store_info(r);
	assert_int_equal(info.recorded_base, mine.base);
	assert_int_not_equal(info.base, mine.base);
	assert_int_equal(info.relocated_from, 0);
	there = get_anchor(r);
	assert_int_equal((uintptr_t)there - info.base, (uintptr_t)a - mine.base);
	assert_ptr_equal(there->first, a->first);
	assert_int_equal((uintptr_t)pv_address(r, there->first) - info.base,
			 (uintptr_t)a->first - mine.base);
	assert_memory_equal(pv_address(r, there->first), a->first, sizeof(struct node));
	assert_null(pv_address(r, NULL));
	assert_null(pv_address(r, FAR_AWAY));
	assert_null(pv_address(r, (uint8_t *)(uintptr_t)mine.base + mine.window_bytes - NOWHERE));
	assert_ptr_equal(pv_address(s, a->first), a->first);
	store_sound(r);
	assert_ok(pv_close(r));
	assert_ok(pv_close(s));
}

/* ---- pointers that lead nowhere ---- */

struct told {
	unsigned int n;
	char line[300];
};

static void tell(void *ctx, const char *line)
{
	struct told *t = ctx;

	t->n++;
	snprintf(t->line, sizeof(t->line), "%s", line);
}

/* Each kind of loop has to find it. */
static void lead_astray(struct pv_store *s, struct anchor *a, int which, void *to)
{
	uint64_t bits = (uintptr_t)to;

	switch (which) {
	case 0:
		a->first->next->any = to;
		break;
	case 1:
		a->first->next->tagged = (bits & TAG_MASK) | 2;
		break;
	case 2:
		a->tail->nodes[2] = to;
		break;
	case 3:
		a->array[ARRAY - 1] = to;
		break;
	default:
		a->choices[0]->u.node = to;
	}
}

static const char *const astray[] = {
	"type node: object at offset 0x",
	"field tagged: pointer 0x",
	"type tail: object at offset 0x",
	"(element 9999): pointer 0x",
	"field u.node: pointer 0x",
};

static uint64_t read_astray(struct anchor *a, int which)
{
	return which == 0   ? (uintptr_t)a->first->next->any
	       : which == 1 ? a->first->next->tagged & TAG_MASK
	       : which == 2 ? (uintptr_t)a->tail->nodes[2]
	       : which == 3 ? (uintptr_t)a->array[ARRAY - 1]
			    : (uintptr_t)a->choices[0]->u.node;
}

static void dangling(struct keeper *k, int which, bool inside)
{
	struct pv_options o = options(k), other = o;
	struct pv_store *s = store_create(k, &o);
	struct anchor *a = fill(s);
	struct pv_info info = store_info(s);
	uint8_t *to = inside ? (uint8_t *)(uintptr_t)info.base + info.window_bytes - NOWHERE : FAR_AWAY;
	struct told told = {0};
	size_t total = 0;

	lead_astray(s, a, which, to);
	assert_ok(pv_close(s));
	/* Where it was it is no matter. */
	s = store_attach(k, &o);
	assert_ok(pv_close(s));
	/* Refused, twice, and where it was all is as it was. */
	other.relocate = PV_RELOCATE_ALWAYS;
	other.tell = tell;
	other.tell_ctx = &told;
	for (unsigned int i = 1; i <= 2; i++) {
		assert_fails(store_try(k, &other, 0, &s), -EFAULT, astray[which]);
		assert_non_null(strstr(pv_last_error(), "leads nowhere"));
		assert_int_equal(told.n, i);
		assert_non_null(strstr(told.line, astray[which]));
	}
	s = store_attach(k, &o);
	assert_int_equal(store_info(s).base, info.base);
	a = get_anchor(s);
	assert_int_equal(read_astray(a, which), (uintptr_t)to);
	for (const struct node *n = a->first; n; n = n->next)
		total++;
	assert_in_range(total, NODES / 2, NODES);
	assert_ok(pv_close(s));
	/* Made null. */
	told = (struct told){0};
	other.dangling = PV_DANGLING_NULL;
	s = store_attach(k, &other);
	assert_int_equal(store_info(s).dangling, 1);
	assert_int_equal(told.n, 1);
	assert_non_null(strstr(told.line, astray[which]));
	a = get_anchor(s);
	assert_int_equal(read_astray(a, which), 0);
	if (which == 1)
		assert_int_equal(a->first->next->tagged, 2);
	/* All others are right. */
	lead_astray(s, a, which, which == 2 ? a->first->next : a->first);
	if (which == 0)
		a->first->next->any = a->first->next->number % 3 ? a->first->next : NULL;
	if (which == 1)
		a->first->next->tagged =
			((uintptr_t)a->first->next & TAG_MASK) | 0xabc0000000000005ull;
	expect(s, a->choices[1]->u.number);
	assert_ok(pv_close(s));
	keeper_free(k);
}

static void pointers_into_no_segment(void **state)
{
	for (int which = 0; which < 5; which++)
		dangling(*state, which, true);
}

static void pointers_to_other_memory(void **state)
{
	for (int which = 0; which < 5; which++)
		dangling(*state, which, false);
}

/* A segment that is not a multiple of the first leaves addresses behind it to which nothing leads. */
static void pointers_between_segments(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k), other = o;
	struct pv_store *s;
	struct anchor *a;
	struct told told = {0};
	const struct pvi_segment *seg;
	bool gap = false;

	o.limit_bytes = 700 << 10;
	s = store_create(k, &o);
	a = fill(s);
	while (pv_alloc(s, array_type, 3000, (void **)&a->array) == 0)
		;
	seg = s->segments;
	for (uint32_t i = 1; i < s->nsegments && !gap; i++) {
		uint64_t end = seg[i - 1].off + seg[i - 1].bytes;

		gap = seg[i].off != end;
		if (gap)
			a->first->any = (struct node *)(s->base + end + 64);
	}
	if (!gap) { /* this library's growth leaves none: as an image that another wrote might */
		a->first->any = (struct node *)(s->base + 8192); /* behind the index */
	}
	assert_ok(pv_close(s));
	other.relocate = PV_RELOCATE_ALWAYS;
	other.tell = tell;
	other.tell_ctx = &told;
	assert_fails(store_try(k, &other, 0, &s), -EFAULT, "field any");
	s = store_attach(k, &o);
	assert_ok(pv_close(s));
}

/* ---- what stays as it is ---- */

/* Slots of whole pages, dead ones between live ones: what has no memory gets none. */
static void dead_memory_is_not_touched(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s;
	struct anchor *a;
	void **cells[40];
	struct stat before, after;
	pv_type_t type;
	pv_type_t pages;

	o.segment_bytes = 4 << 20;
	o.window_bytes = 1 << 30;
	o.page_bytes = 4096;
	s = store_create(k, &o);
	a = get_anchor(s);
	assert_ok(pv_type_register(s, &array_def, &pages));
	type = pages;
	assert_ok(pv_alloc(s, array_type, ARRAY * 8, (void **)&a->array));
	for (int i = 0; i < 40; i++) {
		assert_ok(pv_alloc(s, type, 8192, (void **)&a->array[i]));
		cells[i] = (void **)a->array[i];
		cells[i][0] = a;
		cells[i][1000] = a->array;
	}
	for (int i = 0; i < 40; i++)
		if (i % 3)
			assert_ok(pv_free(s, (void **)&a->array[i]));
	assert_ok(pv_trim(s, NULL));
	assert_ok(pv_close(s));
	/* What was in the dead slots: as a fresh copy has it, without memory. */
	assert_int_equal(fstat(keeper_fd(k, 1), &before), 0);
	s = move(k, &o);
	assert_int_equal(fstat(keeper_fd(k, 1), &after), 0);
	assert_int_equal(after.st_blocks, before.st_blocks);
	a = get_anchor(s);
	for (int i = 0; i < 40; i += 3) {
		assert_ptr_equal(((void **)a->array[i])[0], a);
		assert_ptr_equal(((void **)a->array[i])[1000], a->array);
	}
	store_sound(s);
	assert_ok(pv_close(s));
}

/* A crash in the middle of everything: locks, reservations, an open transaction, something retired. */
static void crash_then_move(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);
	struct anchor *a = fill(s);
	uint64_t number = (uintptr_t)a->first;
	struct node *held;

	assert_ok(pv_lock_take(s, &a->lock));
	held = reserve_ok(s, node_type, sizeof(*held));
	*held = (struct node){(void *)FAR_AWAY, (void *)FAR_AWAY, 8, 0};
	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_add(s, &a->first, sizeof(a->first)));
	assert_ok(pv_tx_add(s, a->first, sizeof(*a->first)));
	a->first->next = (void *)FAR_AWAY;
	a->first = (void *)FAR_AWAY;
	keeper_crash(k, &s);
	o.relocate = PV_RELOCATE_ALWAYS;
	s = store_attach(k, &o);
	assert_int_equal(store_info(s).recovered, 1);
	expect(s, number);
	a = get_anchor(s);
	/* Nobody holds it: its owner is gone. */
	assert_ok(pv_lock_try(s, &a->lock));
	assert_ok(pv_lock_release(s, &a->lock));
	add_node(s, a, NODES);
	assert_ok(pv_close(s));
}

/* ---- threads and progress ---- */

struct progress {
	uint64_t done, total;
	unsigned int calls;
	pthread_t caller;
};

static void progress(void *ctx, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
	struct progress *p = ctx;

	assert_string_equal(what, "relocate");
	assert_true(pthread_equal(p->caller, pthread_self()));
	assert_true(done_bytes >= p->done && done_bytes <= total_bytes);
	p->done = done_bytes;
	p->total = total_bytes;
	p->calls++;
}

static void in_threads(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct progress p = {.caller = pthread_self()};
	struct pv_store *s;
	struct anchor *a;
	struct node *n;
	uint64_t nodes = under_tsan() ? 1300000 : 5000000;

	o.segment_bytes = 64 << 20;
	o.window_bytes = 1ull << 35;
	s = store_create(k, &o);
	a = get_anchor(s);
	for (uint64_t i = 0; i < nodes; i++)
		add_node(s, a, i);
	assert_ok(pv_close(s));
	o.relocate = PV_RELOCATE_ALWAYS;
	o.threads = 4;
	o.progress = progress;
	o.tell_ctx = &p;
	s = store_attach(k, &o);
	assert_in_range(p.calls, under_tsan() ? 1 : 2, 100);
	assert_int_equal(p.done, p.total);
	assert_in_range(p.total, nodes * sizeof(*n), UINT64_MAX);
	assert_in_range(store_info(s).relocated_pointers, nodes * 2, nodes * 3);
	for (n = get_anchor(s)->first; n; n = n->next, nodes--)
		assert_ptr_equal(n->any, n->number % 3 ? n : NULL);
	assert_int_equal(nodes, 0);
	assert_ok(pv_close(s));
}

/* ---- damage ---- */

static void damaged_slabs_are_refused(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k), other = o;
	struct pv_store *s = store_create(k, &o);
	struct anchor *a = fill(s);
	uint64_t base = store_info(s).base, off = (uintptr_t)a->first - base;
	struct pvi_segment *seg = pvi_store_segment(s, off);
	uint64_t *entry = &seg->map[(off - seg->off) >> s->page_shift], was = *entry;

	*entry |= 1ull << 50;
	assert_ok(pv_close(s));
	other.relocate = PV_RELOCATE_ALWAYS;
	assert_fails(store_try(k, &other, 0, &s), -EBADMSG, "makes no sense");
	s = store_attach(k, &o);
	assert_int_equal(store_info(s).base, base);
	seg = pvi_store_segment(s, off);
	entry = &seg->map[(off - seg->off) >> s->page_shift];
	*entry = was;
	expect(s, (uintptr_t)get_anchor(s)->first);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(moves_all_pointers),
		with_keeper(copies_side_by_side),
		with_keeper(a_base_can_be_demanded),
		with_keeper(windows_must_be_apart),
		with_keeper(no_window_is_left),
		with_keeper(the_environment_decides),
		with_keeper(unknown_options),
		with_keeper(a_reader_moves_nothing),
		with_keeper(pointers_into_no_segment),
		with_keeper(pointers_to_other_memory),
		with_keeper(pointers_between_segments),
		with_keeper(dead_memory_is_not_touched),
		with_keeper(crash_then_move),
		with_keeper(in_threads),
		with_keeper(damaged_slabs_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
