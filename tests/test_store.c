/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening, creating, attaching and closing stores; their options. */
#include "support.h"

/* ---- create, attach, close ---- */

static void create_then_attach(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s = store_create(k, NULL);
	struct pv_info info = store_info(s), again;
	struct word *root = store_root(s);

	o.relocate = PV_RELOCATE_NEVER;

	assert_int_equal(info.origin, PV_ORIGIN_CREATED);
	assert_int_equal(info.handover, PV_HANDOVER_NONE);
	assert_int_equal(info.state, PV_STATE_SERVING);
	assert_int_equal(info.segments, 1);
	assert_int_equal(info.lanes, 2);
	assert_int_equal(info.window_bytes, 16 << 20);
	assert_int_equal(info.page_bytes, 4096);
	assert_int_equal(info.epoch, 1);
	assert_int_equal(info.recovered, 0);
	assert_false(info.from_kexec);
	assert_int_equal(k->n, 2);
	assert_int_equal(info.bytes, memfd_bytes(keeper_fd(k, 0)) + memfd_bytes(keeper_fd(k, 1)));
	root->value = 4711;
	store_sound(s);
	assert_ok(pv_close(s));

	s = store_attach(k, &o);
	again = store_info(s);
	assert_int_equal(again.origin, PV_ORIGIN_REATTACHED);
	assert_int_equal(again.base, info.base);
	assert_int_equal(again.epoch, 2);
	assert_int_equal(again.bytes, info.bytes);
	assert_true(again.fetch_ns > 0 && again.attach_ns > again.fetch_ns);
	assert_memory_equal(again.uuid, info.uuid, 16);
	assert_ptr_equal(store_root(s), root);
	assert_int_equal(root->value, 4711);
	store_sound(s);
	assert_ok(pv_close(s));
}

static void epoch_and_generation_count(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s = store_create(k, NULL);
	struct pv_info before = store_info(s), info;

	o.relocate = PV_RELOCATE_NEVER; /* which is two changes more */
	store_root(s); /* a type and a root: two changes of the index */
	info = store_info(s);
	assert_int_equal(info.generation, before.generation + 2);
	assert_int_equal(info.epoch, 1);
	assert_ok(pv_close(s));
	for (uint64_t i = 1; i <= 20; i++) {
		s = store_attach(k, &o);
		assert_int_equal(store_info(s).epoch, 1 + i);
		assert_int_equal(store_info(s).generation, info.generation + i);
		store_root(s); /* nothing new */
		assert_int_equal(store_info(s).generation, info.generation + i);
		assert_ok(pv_close(s));
	}
	/* Looking does not count. */
	for (int i = 0; i < 3; i++) {
		assert_ok(store_try(k, NULL, PV_RDONLY, &s));
		assert_int_equal(store_info(s).epoch, 21);
		assert_int_equal(store_info(s).generation, info.generation + 20);
		assert_ok(pv_close(s));
	}
}

static void close_of_nothing(void **state)
{
	assert_ok(pv_close(NULL));
	assert_ok(pv_destroy(NULL));
}

static void attach_after_crash_at_once(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct word *root = store_root(s);

	root->value = 1;
	for (uint64_t i = 1; i < 50; i++) {
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
		root = store_moved(s, root);
		assert_ptr_equal(store_root(s), root);
		assert_int_equal(root->value, i);
		root->value++;
		store_sound(s);
	}
	assert_ok(pv_close(s));
}

static void destroy_drops_all_descriptors(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);

	assert_ok(pv_destroy(s));
	assert_int_equal(k->n, 0);
	assert_int_equal(k->drops, 2);

	/* Attached: the array of descriptors given to pv_open() is long gone. */
	s = store_create(k, NULL);
	assert_ok(pv_close(s));
	s = store_attach(k, NULL);
	assert_ok(pv_destroy(s));
	assert_int_equal(k->n, 0);
	assert_int_equal(k->drops, 4);
}

static void no_store_and_no_create(void **state)
{
	struct pv_store *s = (void *)state;

	assert_fails(store_try(*state, NULL, 0, &s), -ENOENT,
		     "there is no store test (none backend): nothing is kept");
	assert_ptr_equal(s, state); /* untouched */
	assert_fails(store_try(*state, NULL, PV_RDONLY, &s), -ENOENT, "there is no store test");
	assert_fails(pv_open("test", NULL, &s), -ENOENT, "");
}

static void exclusive_creation(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = NULL;

	assert_ok(store_try(k, NULL, PV_CREATE | PV_EXCL, &s));
	store_root(s)->value = 5;
	assert_ok(pv_close(s));
	assert_fails(store_try(k, NULL, PV_CREATE | PV_EXCL, &s), -EEXIST, "store test exists");
	assert_ok(store_try(k, NULL, PV_CREATE, &s));
	assert_int_not_equal(store_info(s).origin, PV_ORIGIN_CREATED);
	assert_int_equal(store_root(s)->value, 5);
	assert_ok(pv_close(s));
}

static void reset_drops_what_is_kept(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_info old = store_info(s);
	uint8_t *index;
	size_t bytes;

	store_root(s)->value = 5;
	assert_ok(pv_close(s));
	/* Damaged or not. */
	index = memfd_map(keeper_fd(k, 0), &bytes);
	index[20] ^= 1;
	memfd_unmap(index, bytes);
	assert_fails(store_try(k, NULL, PV_CREATE, &s), -EBADMSG, "index");
	assert_ok(store_try(k, NULL, PV_CREATE | PV_RESET, &s));
	assert_int_equal(k->drops, 2);
	assert_int_equal(k->n, 2);
	assert_int_equal(store_info(s).origin, PV_ORIGIN_CREATED);
	assert_int_equal(store_info(s).epoch, 1);
	assert_memory_not_equal(store_info(s).uuid, old.uuid, 16);
	assert_int_equal(store_root(s)->value, 0);
	assert_ok(pv_close(s));
}

/* ---- names and options ---- */

static void names(void **state)
{
	static const char *const bad[] = {
		"",    ".",	   ".x",  "a/b",
		"a b", "\xc3\xa4", "a\n", "1234567890123456789012345678901234567890123456789"};
	static const char *const good[] = {"a", "A.b_c-9",
					   "123456789012345678901234567890123456789012345678"};
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;

	o.flags = PV_CREATE;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		assert_fails(pv_open(bad[i], &o, &s), -EINVAL, "store name");
	assert_fails(pv_open(NULL, &o, &s), -EINVAL, "(null)");
	assert_int_equal(k->adds, 0);
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		assert_ok(pv_open(good[i], &o, &s));
		assert_ok(pv_destroy(s));
	}
}

struct bad_option {
	const char *says;
	struct pv_options o; /* what is not 0 replaces the field of small_options() */
};

static void options_refused(void **state)
{
	static const struct bad_option bad[] = {
		{"flags 0x10", {.flags = 16}},
		{"flags 0x2", {.flags = PV_EXCL}},
		{"flags 0x8", {.flags = PV_RESET}},
		{"flags 0x5", {.flags = PV_RDONLY | PV_CREATE}},
		{"segment_bytes 65537", {.segment_bytes = 65537}},
		{"segment_bytes 16384", {.segment_bytes = 16384}},
		{"segment_bytes 1", {.segment_bytes = 1}},
		{"segment_bytes 2147483648",
		 {.segment_bytes = 2ull << 30, .window_bytes = 1ull << 40}},
		{"window_bytes 16777217", {.window_bytes = (16 << 20) + 1}},
		{"window_bytes 65536", {.window_bytes = 65536}},
		{"window_bytes 137438953472", {.window_bytes = 1ull << 37}},
		{"window_bytes 70368744177664",
		 {.window_bytes = 1ull << 46, .segment_bytes = 1ull << 30}},
		{"page_bytes 8192", {.page_bytes = 8192}},
		{"page_bytes 1", {.page_bytes = 1}},
		{"lanes 65537", {.lanes = 65537}},
		{"agent_owner", {.agent_owner = 1}},
		{"handover is 7", {.handover = 7}},
		{"nfds is 1", {.nfds = 1}},
		/* 65,536 / 2,048 lanes fill the segment. */
		{"no room for objects beside 31 lanes", {.lanes = 31}},
	};
	struct keeper *k = *state;
	struct pv_store *s = NULL;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct pv_options o = small_options(k);
		const struct pv_options *b = &bad[i].o;

		o.flags = b->flags ? b->flags : PV_CREATE;
		o.segment_bytes = b->segment_bytes ? b->segment_bytes : o.segment_bytes;
		o.window_bytes = b->window_bytes ? b->window_bytes : o.window_bytes;
		o.page_bytes = b->page_bytes;
		o.lanes = b->lanes ? b->lanes : o.lanes;
		o.agent_owner = b->agent_owner;
		o.handover = b->handover ? b->handover : o.handover;
		o.keep = b->handover ? NULL : o.keep;
		o.nfds = b->nfds;
		assert_fails(pv_open("test", &o, &s), -EINVAL, bad[i].says);
		assert_null(s);
	}
	assert_int_equal(k->adds, 0);
}

static void options_of_another_size(void **state)
{
	struct {
		struct pv_options o;
		uint64_t tail[4];
	} later = {.o = small_options(*state)};
	struct pv_store *s = NULL;

	/* Of a later library: fine as long as what we do not know is zero. */
	later.o.flags = PV_CREATE;
	later.o.size = sizeof(later);
	assert_ok(pv_open("test", &later.o, &s));
	assert_ok(pv_destroy(s));
	later.tail[3] = 1;
	assert_fails(pv_open("test", &later.o, &s), -EINVAL, "does not know");
	/* Of an earlier one, and of none. */
	later.o.size = 8;
	assert_fails(pv_open("test", &later.o, &s), -EINVAL, "pv_options.size is 8");
	later.o.size = 0;
	assert_fails(pv_open("test", &later.o, &s), -EINVAL, "pv_options.size is 0");
}

static void handover_fields_are_for_none(void **state)
{
	struct pv_options o = small_options(*state);
	struct pv_store *s;

	o.handover = PV_HANDOVER_HOLDER;
	o.flags = PV_CREATE;
	assert_fails(pv_open("test", &o, &s), -EINVAL, "PV_HANDOVER_NONE");
}

static void recorded_options_win(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_info info = store_info(s), again;
	struct pv_options o = small_options(k);

	assert_ok(pv_close(s));
	o.window_bytes = 1 << 30;
	o.segment_bytes = 1 << 20;
	o.page_bytes = 16384;
	o.lanes = 7;
	s = store_attach(k, &o);
	again = store_info(s);
	assert_int_equal(again.window_bytes, info.window_bytes);
	assert_int_equal(again.page_bytes, info.page_bytes);
	assert_int_equal(again.lanes, info.lanes);
	assert_ok(pv_close(s));
}

/* The default window is too many granules for small segments, and is then smaller. */
static void default_window_fits_small_segments(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;

	o.window_bytes = 0;
	s = store_create(k, &o);
	assert_true(store_info(s).window_bytes >= 1ull << 30);
	store_root(s);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* ---- geometries ---- */

/* Fill a store with objects of a size until *limit, read them all back after an attach. */
/* A pointer, and behind it bytes. */
struct payload {
	void *next;
};

static const struct pv_typedef payload_def =
	PV_TYPE(struct payload, "payload", 1, PV_POINTER(struct payload, next));

static void fill_and_reattach(struct keeper *k, const struct pv_options *o, size_t bytes, size_t n)
{
	struct pv_store *s = store_create(k, o);
	struct word *root = store_root(s);
	pv_type_t type = store_type(s, &payload_def);
	void *p;

	for (size_t i = 0; i < n; i++) {
		assert_ok(pv_reserve(s, type, sizeof(void *) + bytes, &p));
		*(void **)p = root->next;
		pattern_fill((uint8_t *)p + sizeof(void *), bytes, i);
		assert_ok(pv_publish(
			s, (struct pv_action[]){PV_LIVE(p), PV_STORE(&root->next, (uintptr_t)p)},
			2));
	}
	assert_true(store_info(s).segments > 1);
	store_sound(s);
	keeper_crash(k, &s);
	s = store_attach(k, o);
	root = store_moved(s, root);
	p = store_root(s)->next;
	for (size_t i = n; i-- > 0; p = *(void **)p)
		assert_true(pattern_holds((uint8_t *)p + sizeof(void *), bytes, i));
	assert_null(p);
	assert_int_equal(store_sound(s).live_objects, n + 1);
	assert_ok(pv_destroy(s));
}

static void geometries(void **state)
{
	static const struct {
		uint64_t window, segment;
		uint32_t page, lanes;
		size_t bytes, n;
	} g[] = {
		{4 << 20, 32768, 4096, 1, 100, 1000},
		{4 << 20, 32768, 4096, 2, 3000, 100},
		{8 << 20, 65536, 4096, 2, 100, 2000},
		{16 << 20, 65536, 16384, 2, 100, 2000},
		{64 << 20, 1 << 20, 16384, 300, 100000, 40},
		{64 << 20, 1 << 20, 4096, 2, 3000, 1000},
		{256 << 20, 4 << 20, 0, 0, 500, 20000},
		{2ull << 30, 1 << 20, 4096, 0, 5000000, 7}, /* each a segment of its own */
	};

	for (size_t i = 0; i < sizeof(g) / sizeof(*g); i++) {
		struct pv_options o = small_options(*state);

		o.window_bytes = g[i].window;
		o.segment_bytes = g[i].segment;
		o.page_bytes = g[i].page;
		o.lanes = g[i].lanes;
		fill_and_reattach(*state, &o, g[i].bytes, g[i].n);
	}
}

static void default_page_size(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;

	o.window_bytes = 1 << 28;
	o.segment_bytes = 4 << 20;
	s = store_create(k, &o);
	assert_int_equal(store_info(s).page_bytes, 16384);
	assert_ok(pv_destroy(s));
	o.segment_bytes = 2 << 20;
	s = store_create(k, &o);
	assert_int_equal(store_info(s).page_bytes, 4096);
	assert_ok(pv_destroy(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(create_then_attach),
		with_keeper(epoch_and_generation_count),
		with_keeper(close_of_nothing),
		with_keeper(attach_after_crash_at_once),
		with_keeper(destroy_drops_all_descriptors),
		with_keeper(no_store_and_no_create),
		with_keeper(exclusive_creation),
		with_keeper(reset_drops_what_is_kept),
		with_keeper(names),
		with_keeper(options_refused),
		with_keeper(options_of_another_size),
		with_keeper(handover_fields_are_for_none),
		with_keeper(recorded_options_win),
		with_keeper(default_window_fits_small_segments),
		with_keeper(geometries),
		with_keeper(default_page_size),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
