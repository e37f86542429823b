/* SPDX-License-Identifier: BSD-3-Clause */
/* What pv_check() says of pointers, of what the roots reach, and what pv_repair() does about the
 * rest. */
#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

struct leaf {
	uint64_t number;
	uint64_t rest;
};

struct node {
	struct node *next;
	struct leaf *leaf;
	void *any;
	uint64_t tagged;
	int64_t relative;
	uint64_t offset;
};

struct table {
	uint64_t n;
	struct node *nodes[];
};

static const struct pv_typedef leaf_type = PV_TYPE_PLAIN(struct leaf, "leaf", 1);
static const struct pv_typedef node_type =
	PV_TYPE(struct node, "node", 1, PV_POINTER_TO(struct node, next, "node"),
		PV_POINTER_TO(struct node, leaf, "leaf"), PV_POINTER(struct node, any),
		PV_TAGGED(struct node, tagged, ~0ull >> 16 & ~15ull),
		PV_RELATIVE(struct node, relative), PV_OFFSET(struct node, offset));
static const struct pv_typedef table_type =
	PV_TYPE(struct table, "table", 1, PV_POINTER_COUNTED(struct table, nodes, n));

static const struct pv_typedef odd_type =
	PV_TYPE(struct node, "odd", 1, PV_POINTER_TO(struct node, next, "nobody"));

struct world {
	struct pv_store *s;
	pv_type_t leaf, node, table, bytes;
	struct node *root;
	char lines[2048];
	struct pv_check_leak leaks[8];
	unsigned int nleaks;
	unsigned int progress;
};

static void note_line(void *ctx, const char *line)
{
	struct world *w = ctx;
	size_t at = strlen(w->lines);

	snprintf(w->lines + at, sizeof(w->lines) - at, "%s\n", line);
}

static void note_leak(void *ctx, const struct pv_check_leak *leak)
{
	struct world *w = ctx;

	assert_true(w->nleaks < 8);
	w->leaks[w->nleaks++] = *leak;
}

static void note_progress(void *ctx, const char *what, uint64_t done, uint64_t total)
{
	struct world *w = ctx;

	assert_non_null(what);
	assert_true(done <= total);
	w->progress++;
}

static struct pv_check_report check(struct world *w, uint32_t flags, uint32_t threads)
{
	struct pv_check_options o = {
		.size = sizeof(o),
		.flags = flags,
		.threads = threads,
		.tell = note_line,
		.leak = note_leak,
		.progress = note_progress,
		.ctx = w,
	};
	struct pv_check_report r;

	w->lines[0] = '\0';
	w->nleaks = w->progress = 0;
	assert_ok(pv_check(w->s, &o, &r));
	return r;
}

static void enter(struct world *w)
{
	void *root;

	assert_ok(pv_type_register(w->s, &leaf_type, &w->leaf));
	assert_ok(pv_type_register(w->s, &node_type, &w->node));
	assert_ok(pv_type_register(w->s, &table_type, &w->table));
	w->bytes = store_bytes_type(w->s, "bytes");
	assert_ok(pv_root(w->s, "root", w->node, sizeof(struct node), &root, NULL));
	w->root = root;
}

static struct world world(struct keeper *k)
{
	struct world w = {.s = store_create(k, NULL)};

	enter(&w);
	return w;
}

/* A live, zeroed object that nothing leads to. */
static void *live(struct world *w, pv_type_t type, size_t bytes)
{
	void *p = reserve_ok(w->s, type, bytes);

	memset(p, 0, bytes);
	assert_ok(pv_publish(w->s, &PV_LIVE(p), 1));
	return p;
}

static void one_problem(struct world *w, const char *says)
{
	struct pv_check_report r = check(w, 0, 1);

	if (r.problems != 1 || !strstr(w->lines, says))
		fail_msg("%u problems, \"%s\" does not say \"%s\"", (unsigned int)r.problems,
			 w->lines, says);
}

static void no_problem(struct world *w, uint64_t pointers, uint64_t leaked)
{
	struct pv_check_report r = check(w, 0, 1);

	if (r.problems || r.pointers != pointers || r.leaked_objects != leaked)
		fail_msg("%u problems, %u pointers, %u leaked: %s", (unsigned int)r.problems,
			 (unsigned int)r.pointers, (unsigned int)r.leaked_objects, w->lines);
}

static void all_kinds_of_pointers(void **state)
{
	struct world w = world(*state);
	struct node *a = live(&w, w.node, sizeof(*a)), *b = live(&w, w.node, sizeof(*b));
	struct leaf *leaves[4];

	for (int i = 0; i < 4; i++)
		leaves[i] = live(&w, w.leaf, sizeof(struct leaf));
	no_problem(&w, 0, 6);
	w.root->next = a;
	a->next = b;
	b->next = a; /* a ring */
	a->leaf = leaves[0];
	a->any = &leaves[1]->rest; /* the inside */
	a->tagged = (uintptr_t)leaves[2] | 0xabcd000000000005;
	a->relative = (int64_t)((uintptr_t)leaves[3] - (uintptr_t)&a->relative);
	b->offset = (uintptr_t)a - store_info(w.s).base;
	b->tagged = 7; /* null with a tag */
	no_problem(&w, 8, 0);
	a->relative = 0;
	no_problem(&w, 7, 1);
	assert_int_equal(w.nleaks, 1);
	assert_int_equal(w.leaks[0].type, w.leaf);
	assert_string_equal(w.leaks[0].name, "leaf");
	assert_int_equal(w.leaks[0].objects, 1);
	assert_int_equal(w.leaks[0].bytes, 16);
	assert_ok(pv_close(w.s));
}

static void pointers_that_lead_nowhere(void **state)
{
	struct world w = world(*state);
	struct node *a = live(&w, w.node, sizeof(*a));
	struct pv_info info = store_info(w.s);
	void *reserved = reserve_ok(w.s, w.node, sizeof(*a));
	void *extent = reserve_ok(w.s, w.bytes, 40000);
	const struct {
		uint64_t word;
		const char *says;
	} bad[] = {
		{(uintptr_t)reserved, "in no live object"},
		{(uintptr_t)extent, "in no live object"},
		{info.base, "in no live object"},
		{info.base + (64 << 10), "in no live object"},
		{info.base + info.window_bytes - 8, "in no live object"},
		{info.base - 8, "in no live object"},
		{~0ull, "in no live object"},
		{8, "in no live object"},
	};

	w.root->next = a;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		a->any = (void *)(uintptr_t)bad[i].word;
		one_problem(&w, bad[i].says);
		assert_non_null(strstr(w.lines, "of type node: field any at byte 16 names"));
		assert_int_equal(check(&w, PV_CHECK_FAST, 1).problems, 0);
	}
	/* Also of what nothing leads to. */
	w.root->next = NULL;
	one_problem(&w, "in no live object");
	a->any = NULL;
	a->leaf = (struct leaf *)(void *)a;
	one_problem(&w, "an object of type node, not leaf");
	a->leaf = NULL;
	a->offset = info.window_bytes;
	one_problem(&w, "field offset");
	a->offset = 0;
	a->relative = 1ll << 40;
	w.root->next = a;
	one_problem(&w, "field relative");
	/* It frees what is still named. */
	a->relative = 0;
	no_problem(&w, 1, 0);
	assert_ok(pv_publish(w.s, &PV_FREE(a), 1));
	one_problem(&w, "field next");
	assert_ok(pv_close(w.s));
}

static void a_target_that_is_no_type(void **state)
{
	struct world w = world(*state);
	pv_type_t type;
	struct node *a;

	assert_ok(pv_type_register(w.s, &odd_type, &type));
	a = live(&w, type, sizeof(*a));
	no_problem(&w, 0, 1);
	a->next = w.root;
	one_problem(&w, "not nobody");
	assert_ok(pv_close(w.s));
}

static void objects_of_an_open_transaction(void **state)
{
	struct world w = world(*state);
	void *small, *large, *other = reserve_ok(w.s, w.leaf, 16);

	assert_ok(pv_tx_begin(w.s));
	assert_ok(pv_tx_alloc(w.s, w.node, sizeof(struct node), &small));
	assert_ok(pv_tx_alloc(w.s, w.bytes, 40000, &large));
	assert_ok(pv_tx_add(w.s, w.root, sizeof(*w.root)));
	w.root->next = small;
	w.root->any = (uint8_t *)large + 20000;
	assert_int_equal(check(&w, 0, 1).problems, 0);
	w.root->leaf = (struct leaf *)(void *)((uint8_t *)other + 16); /* a free one */
	assert_int_equal(check(&w, 0, 1).problems, 1);
	assert_ok(pv_tx_abort(w.s));
	no_problem(&w, 0, 0);
	assert_ok(pv_close(w.s));
}

/* ---- large and parallel ---- */

static struct table *make_large(struct world *w)
{
	uint64_t seed = random_seed_from_env("make_large"), n = 3000;
	struct table *t = live(w, w->table, sizeof(*t) + n * sizeof(t->nodes[0]));

	for (t->n = 0; t->n < n; t->n++) {
		struct node *a = live(w, w->node, sizeof(*a));

		if (t->n)
			a->next = t->nodes[random_below(&seed, t->n)];
		if (t->n % 3 == 0)
			a->any = live(w, w->leaf, sizeof(struct leaf));
		t->nodes[t->n] = a;
	}
	w->root->any = t;
	/* A chain, which cannot be shared out. */
	for (int i = 0; i < 1000; i++) {
		struct node *a = live(w, w->node, sizeof(*a));

		a->next = w->root->next;
		w->root->next = a;
	}
	return t;
}

static void all_threads_see_the_same(void **state)
{
	struct pv_options o = small_options(*state);
	struct world w = {.s = NULL};
	struct table *t;

	o.window_bytes = 1 << 28;
	w.s = store_create(*state, &o);
	enter(&w);
	t = make_large(&w);
	for (uint32_t threads = 0; threads <= 5; threads++) {
		struct pv_check_report r = check(&w, 0, threads);

		assert_int_equal(r.problems, 0);
		assert_int_equal(r.live_objects, 1 + 1 + 3000 + 1000 + 1000);
		assert_int_equal(r.pointers, 2 + 3000 + 2999 + 1000 + 999);
		assert_int_equal(r.leaked_objects, 0);
		assert_int_equal(r.mirrored, 1);
		assert_true(w.progress > 0);
	}
	/* Half of the table is not in use any more. What its nodes lead to may be. */
	t->n = 1500;
	for (uint32_t threads = 1; threads <= 4; threads++) {
		struct pv_check_report r = check(&w, 0, threads);

		assert_int_equal(r.problems, 0);
		assert_int_equal(r.leaked_objects, 1500 + 500);
		assert_int_equal(w.nleaks, 2);
		assert_int_equal(w.leaks[0].objects, 500); /* type leaf comes first */
		assert_int_equal(w.leaks[1].objects, 1500);
	}
	assert_ok(pv_close(w.s));
}

/* ---- readers ---- */

static int reads(void *ctx)
{
	struct pv_check_report r;
	struct pv_store *s;
	int bad = 0;

	if (store_try(ctx, NULL, PV_RDONLY, &s))
		return 100;
	if (pv_check(s, NULL, &r))
		return 101;
	bad |= r.problems != 0;
	bad |= (r.unsettled != PV_UNSETTLED_IN_USE) << 1;
	bad |= (r.pointers != 0 || r.leaked_objects != 0) << 2;
	pv_close(s);
	return bad;
}

static void reader_of_a_store_in_use(void **state)
{
	struct world w = world(*state);

	w.root->any = &w; /* of a moment in which it would be wrong */
	assert_int_equal(run_child(reads, *state), 0);
	assert_ok(pv_close(w.s));
	assert_ok(store_try(*state, NULL, PV_RDONLY, &w.s));
	assert_int_equal(check(&w, 0, 1).problems, 1);
	assert_int_equal(check(&w, 0, 1).unsettled, 0);
	assert_ok(pv_close(w.s));
}

static void reader_of_what_a_crash_left(void **state)
{
	struct keeper *k = *state;
	struct world w = world(k);
	void *p;

	assert_ok(pv_tx_begin(w.s));
	assert_ok(pv_tx_add(w.s, w.root, sizeof(*w.root)));
	assert_ok(pv_tx_alloc(w.s, w.node, sizeof(struct node), &p));
	w.root->next = p;
	keeper_crash(k, &w.s);
	assert_ok(store_try(k, NULL, PV_RDONLY, &w.s));
	assert_int_equal(check(&w, 0, 1).problems, 0);
	assert_int_equal(check(&w, 0, 1).unsettled, PV_UNSETTLED_PENDING);
	assert_ok(pv_close(w.s));
	w.s = store_attach(k, NULL);
	enter(&w);
	no_problem(&w, 0, 0);
	assert_ok(pv_close(w.s));
}

static void options(void **state)
{
	struct world w = world(*state);
	struct {
		struct pv_check_options o;
		uint64_t more;
	} larger = {.o = {.size = sizeof(larger)}};
	struct pv_check_report r = {.problems = 77};

	assert_ok(pv_check(w.s, &larger.o, &r));
	assert_int_equal(r.problems, 0);
	larger.more = 1;
	r.problems = 77;
	assert_fails(pv_check(w.s, &larger.o, &r), -EINVAL, "pv_check_options");
	assert_fails(pv_check(w.s, &(struct pv_check_options){.size = 4}, &r), -EINVAL,
		     "size is 4");
	assert_fails(pv_check(w.s,
			      &(struct pv_check_options){.size = sizeof(larger.o), .flags = 64},
			      &r),
		     -EINVAL, "flags 0x40");
	assert_fails(pv_check(w.s,
			      &(struct pv_check_options){.size = sizeof(larger.o), .threads = 65},
			      &r),
		     -EINVAL, "65 threads");
	assert_int_equal(r.problems, 77);
	assert_ok(pv_close(w.s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(all_kinds_of_pointers),
		with_keeper(pointers_that_lead_nowhere),
		with_keeper(a_target_that_is_no_type),
		with_keeper(objects_of_an_open_transaction),
		with_keeper(all_threads_see_the_same),
		with_keeper(reader_of_a_store_in_use),
		with_keeper(reader_of_what_a_crash_left),
		with_keeper(options),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
