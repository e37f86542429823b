/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening, creating, attaching and closing stores; limits; who may have one open. */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "support.h"

struct word {
	void *next;
	uint64_t value;
};

static const struct pv_typedef word_type =
	PV_TYPE(struct word, "word", 1, offsetof(struct word, next));

/** The root "root" of a store, made or found. */
static struct word *root_of(struct pv_store *s)
{
	pv_type_t type = 0;
	void *root = NULL;

	assert_ok(pv_type_register(s, &word_type, &type));
	assert_ok(pv_root(s, "root", type, sizeof(struct word), &root, NULL));
	return root;
}

/* ---- create, attach, close ---- */

static void create_then_attach(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_info info = store_info(s), again;
	struct word *root = root_of(s);

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

	s = store_attach(k, NULL);
	again = store_info(s);
	assert_int_equal(again.origin, PV_ORIGIN_REATTACHED);
	assert_int_equal(again.base, info.base);
	assert_int_equal(again.epoch, 2);
	assert_int_equal(again.bytes, info.bytes);
	assert_true(again.fetch_ns > 0 && again.attach_ns > again.fetch_ns);
	assert_memory_equal(again.uuid, info.uuid, 16);
	assert_ptr_equal(root_of(s), root);
	assert_int_equal(root->value, 4711);
	store_sound(s);
	assert_ok(pv_close(s));
}

static void epoch_and_generation_count(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_info before = store_info(s), info;

	root_of(s); /* a type and a root: two changes of the index */
	info = store_info(s);
	assert_int_equal(info.generation, before.generation + 2);
	assert_int_equal(info.epoch, 1);
	assert_ok(pv_close(s));
	for (uint64_t i = 1; i <= 20; i++) {
		s = store_attach(k, NULL);
		assert_int_equal(store_info(s).epoch, 1 + i);
		assert_int_equal(store_info(s).generation, info.generation + i);
		root_of(s); /* nothing new */
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
	struct word *root = root_of(s);

	root->value = 1;
	for (uint64_t i = 1; i < 50; i++) {
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
		assert_ptr_equal(root_of(s), root);
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
	root_of(s)->value = 5;
	assert_ok(pv_close(s));
	assert_fails(store_try(k, NULL, PV_CREATE | PV_EXCL, &s), -EEXIST, "store test exists");
	assert_ok(store_try(k, NULL, PV_CREATE, &s));
	assert_int_equal(store_info(s).origin, PV_ORIGIN_REATTACHED);
	assert_int_equal(root_of(s)->value, 5);
	assert_ok(pv_close(s));
}

static void reset_drops_what_is_kept(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_info old = store_info(s);
	uint8_t *index;
	size_t bytes;

	root_of(s)->value = 5;
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
	assert_int_equal(root_of(s)->value, 0);
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
		{"reserved", {.reserved = 1}},
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
		o.reserved = b->reserved;
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
	root_of(s);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* ---- geometries ---- */

/* Fill a store with objects of a size until *limit, read them all back after an attach. */
static void fill_and_reattach(struct keeper *k, const struct pv_options *o, size_t bytes, size_t n)
{
	struct pv_store *s = store_create(k, o);
	struct word *root = root_of(s);
	pv_type_t type = store_bytes_type(s, "payload");
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
	p = root_of(s)->next;
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

/* ---- who has it open ---- */

struct other {
	struct keeper *k;
	int up[2], down[2]; /* child tells, parent tells */
};

static void tell(int fd)
{
	assert_int_equal(write(fd, "x", 1), 1);
}

static bool wait_for(int fd)
{
	char c;

	return read(fd, &c, 1) == 1;
}

static struct other other_begin(struct keeper *k)
{
	struct other o = {.k = k};

	assert_int_equal(pipe2(o.up, O_CLOEXEC), 0);
	assert_int_equal(pipe2(o.down, O_CLOEXEC), 0);
	return o;
}

static void other_end(struct other *o)
{
	for (int i = 0; i < 2; i++) {
		close(o->up[i]);
		close(o->down[i]);
	}
}

/* In a child: hold the store until told, or until killed. */
static int hold_it(void *ctx)
{
	struct other *o = ctx;
	struct pv_store *s = NULL;

	close(o->down[1]);
	if (store_try(o->k, NULL, 0, &s))
		return 1;
	root_of(s)->value = 77;
	tell(o->up[1]);
	wait_for(o->down[0]);
	root_of(s)->value = 78;
	return pv_close(s) ? 2 : 0;
}

static void second_writer_is_told_the_pid(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct other o = other_begin(k);
	char says[40];
	pid_t pid;

	root_of(s);
	assert_ok(pv_close(s));
	pid = start_child(hold_it, &o);
	assert_true(wait_for(o.up[0]));
	snprintf(says, sizeof(says), "in use by process %d", pid);
	assert_fails(store_try(k, NULL, 0, &s), -EBUSY, says);
	assert_fails(store_try(k, NULL, PV_CREATE, &s), -EBUSY, says);
	tell(o.down[1]);
	assert_int_equal(child_wait(pid), 0);
	s = store_attach(k, NULL);
	assert_int_equal(root_of(s)->value, 78);
	store_sound(s);
	assert_ok(pv_close(s));
	other_end(&o);
}

static void second_handle_in_the_same_process(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL), *t;
	char says[40];

	snprintf(says, sizeof(says), "in use by process %d", getpid());
	assert_fails(store_try(k, NULL, 0, &t), -EBUSY, says);
	root_of(s);
	store_sound(s);
	assert_ok(pv_close(s));
}

static void killed_writer_releases_the_lock(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct other o = other_begin(k);
	pid_t pid;

	root_of(s);
	assert_ok(pv_close(s));
	pid = start_child(hold_it, &o);
	assert_true(wait_for(o.up[0]));
	assert_fails(store_try(k, NULL, 0, &s), -EBUSY, "in use");
	kill(pid, SIGKILL);
	assert_int_equal(child_wait(pid), 256 + SIGKILL);
	s = store_attach(k, NULL);
	assert_int_equal(root_of(s)->value, 77);
	assert_int_equal(store_info(s).epoch, 3);
	store_sound(s);
	assert_ok(pv_close(s));
	other_end(&o);
}

/* In a child: open it, fork a grandchild that stays, and wait to be killed. */
static int hold_it_and_fork(void *ctx)
{
	struct other *o = ctx;
	struct pv_store *s = NULL;
	pid_t pid;

	if (store_try(o->k, NULL, 0, &s))
		return 1;
	pid = fork();
	if (pid < 0)
		return 2;
	if (pid == 0) {
		close(o->down[1]);
		tell(o->up[1]);
		wait_for(o->down[0]);
		tell(o->up[1]);
		return 0;
	}
	pause();
	return 3;
}

static void child_of_a_killed_writer_holds_no_lock(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct other o = other_begin(k);
	pid_t pid;

	assert_ok(pv_close(s));
	pid = start_child(hold_it_and_fork, &o);
	assert_true(wait_for(o.up[0]));
	assert_fails(store_try(k, NULL, 0, &s), -EBUSY, "in use");
	kill(pid, SIGKILL);
	assert_int_equal(child_wait(pid), 256 + SIGKILL);
	s = store_attach(k, NULL); /* while the grandchild lives */
	root_of(s);
	store_sound(s);
	assert_ok(pv_close(s));
	tell(o.down[1]);
	assert_true(wait_for(o.up[0]));
	other_end(&o);
}

/* In a child: everything that a reader may do and may not, beside a writer. */
static int read_it(void *ctx)
{
	struct other *o = ctx;
	struct pv_store *s = NULL;
	struct pv_typedef unknown = PV_TYPE_BYTES("unknown", 1);
	struct pv_check_report r;
	pv_type_t type = 0;
	void *p = NULL, *root = NULL;
	int step = 0;

#define step_is(want, call)                                                           \
	do {                                                                          \
		step++;                                                               \
		int rc_ = (call);                                                     \
		if (rc_ != (want)) {                                                  \
			fprintf(stderr, "%s: %d: %s\n", #call, rc_, pv_last_error()); \
			return step;                                                  \
		}                                                                     \
	} while (0)

	step_is(0, store_try(o->k, NULL, PV_RDONLY, &s));
	step_is(0, pv_type_register(s, &word_type, &type));
	step_is(0, pv_root(s, "root", type, sizeof(struct word), &root, NULL));
	step_is(4711, (int)((struct word *)root)->value);
	step_is(16, (int)pv_usable_bytes(s, root));
	step_is(0, (int)pv_usable_bytes(s, (uint8_t *)root + 1));
	step_is(0, pv_check(s, NULL, NULL, &r));
	step_is(0, (int)r.problems);
	step_is(1, (int)r.live_objects);
	step_is(-ENOENT, pv_type_register(s, &unknown, &type));
	step_is(-ENOENT, pv_root(s, "other", type, 8, &p, NULL));
	step_is(-EPERM, pv_reserve(s, type, 16, &p));
	step_is(-EPERM, pv_cancel(s, root));
	step_is(-EPERM, pv_publish(s, &PV_FREE(root), 1));
	step_is(-EPERM, pv_alloc(s, type, 16, root));
	step_is(-EPERM, pv_free(s, root));
	step_is(-EPERM, pv_handover_prepare(s));
	step_is(-EPERM, pv_handover_cancel(s));
	tell(o->up[1]);
	wait_for(o->down[0]);
	step_is(4712, (int)((struct word *)root)->value); /* it sees what the writer does */
	step_is(-EPERM, pv_destroy(s));
	return 0;
#undef step_is
}

static void reader_beside_a_writer(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct word *root = root_of(s);
	struct other o = other_begin(k);
	uint64_t generation;
	pid_t pid;

	root->value = 4711;
	generation = store_info(s).generation;
	pid = start_child(read_it, &o);
	close(o.up[1]);
	assert_true(wait_for(o.up[0]));
	root->value = 4712;
	tell(o.down[1]);
	assert_int_equal(child_wait(pid), 0);
	assert_int_equal(store_info(s).generation, generation);
	assert_int_equal(store_info(s).epoch, 1);
	assert_int_equal(k->n, 2);
	store_sound(s);
	assert_ok(pv_close(s));
	o.up[1] = dup(o.up[0]); /* for other_end() */
	other_end(&o);
}

static void reader_leaves_the_image_alone(void **state)
{
	struct keeper *k = *state, before;
	struct pv_store *s = store_create(k, NULL);
	struct word *root = root_of(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct objects live = {0};
	void *p;

	assert_ok(pv_alloc(s, type, 100, &root->next));
	assert_ok(pv_reserve(s, type, 100, &p)); /* and left behind */
	keeper_crash(k, &s);
	keeper_init(&before);
	keeper_copy(&before, k);
	assert_ok(store_try(k, NULL, PV_RDONLY, &s));
	root_of(s);
	assert_true(pv_usable_bytes(s, root->next) >= 100);
	objects_live(&live, s, 0);
	assert_int_equal(live.n, 2);
	store_sound(s);
	assert_ok(pv_close(s));
	for (unsigned int i = 0; i < k->n; i++) {
		size_t bytes;
		uint8_t *a = memfd_map(k->fds[i], &bytes);
		uint8_t *b = memfd_map(keeper_fd(&before, k->tokens[i]), &bytes);

		assert_memory_equal(a, b, bytes);
		memfd_unmap(a, bytes);
		memfd_unmap(b, bytes);
	}
	objects_free(&live);
	keeper_free(&before);
}

/* In a child of a process that has the store open: is anything mapped there? */
static int looks_at_window(void *base)
{
	int fds[2];

	if (pipe(fds))
		return 1;
	if (write(fds[1], base, 1) >= 0 || errno != EFAULT)
		return 2;
	return 0;
}

static void forked_child_has_no_window(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	uint8_t *base = (uint8_t *)(uintptr_t)store_info(s).base;

	assert_int_equal(run_child(looks_at_window, base), 0);
	assert_int_equal(run_child(looks_at_window, root_of(s)), 0);
	assert_int_equal(run_child(looks_at_window, base + store_info(s).window_bytes - 4096), 0);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* ---- incomplete and mixed sets ---- */

/** A store with three segments, closed. */
static void make_three_segments(struct keeper *k)
{
	struct pv_store *s = store_create(k, NULL);
	struct word *root = root_of(s);
	pv_type_t type = store_bytes_type(s, "bytes");

	root->value = 3;
	while (store_info(s).segments < 3) {
		void *p;

		assert_ok(pv_reserve(s, type, 5000, &p));
		pattern_fill(p, 5000, 1);
		assert_ok(pv_publish(s, &PV_LIVE(p), 1));
	}
	store_sound(s);
	assert_ok(pv_close(s));
	assert_int_equal(k->n, 4);
}

static void missing_segment(void **state)
{
	struct keeper *k = *state, all;
	struct pv_store *s;

	make_three_segments(k);
	keeper_init(&all);
	keeper_copy(&all, k);
	for (uint64_t token = 1; token <= 3; token++) {
		char says[40];

		keeper_drop(k, token);
		snprintf(says, sizeof(says), "segment %d (token %d", (int)token - 1, (int)token);
		assert_fails(store_try(k, NULL, 0, &s), -ENXIO, says);
		assert_fails(store_try(k, NULL, PV_CREATE, &s), -ENXIO, says);
		assert_fails(store_try(k, NULL, PV_RDONLY, &s), -ENXIO, says);
		keeper_put(k, token, keeper_fd(&all, token));
	}
	s = store_attach(k, NULL);
	assert_int_equal(store_info(s).epoch, 2);
	store_sound(s);
	assert_ok(pv_close(s));
	keeper_free(&all);
}

static void missing_index(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s;

	make_three_segments(k);
	keeper_drop(k, 0);
	assert_fails(store_try(k, NULL, 0, &s), -ENXIO, "the index is missing");
	assert_fails(store_try(k, NULL, PV_CREATE, &s), -ENXIO, "3 segments are kept");
	/* Only the last segment is left: still not a creation that was interrupted. */
	keeper_drop(k, 1);
	keeper_drop(k, 2);
	assert_fails(store_try(k, NULL, PV_CREATE, &s), -ENXIO, "the index is missing");
}

static void interrupted_creation(void **state)
{
	struct keeper *k = *state, other;
	struct pv_store *s = store_create(k, NULL);
	int old;

	keeper_init(&other);
	assert_ok(pv_close(s));
	keeper_drop(k, 0); /* segment 0 is kept before the index */
	assert_fails(store_try(k, NULL, 0, &s), -ENOENT, "there is no store test");
	assert_fails(store_try(k, NULL, PV_RDONLY, &s), -ENOENT, "there is no store test");
	old = dup(keeper_fd(k, 1));
	assert_ok(store_try(k, NULL, PV_CREATE | PV_EXCL, &s));
	assert_int_equal(store_info(s).origin, PV_ORIGIN_CREATED);
	assert_int_equal(k->n, 2);
	root_of(s)->value = 1;
	store_sound(s);
	assert_ok(pv_close(s));
	s = store_attach(k, NULL);
	assert_int_equal(root_of(s)->value, 1);
	assert_ok(pv_close(s));
	close(old);
}

static void refused_creation_leaves_nothing_open(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s;

	for (uint64_t token = 0; token < 2; token++) {
		k->refuse_token = token;
		k->refuse_err = -EDQUOT;
		assert_fails(store_try(k, NULL, PV_CREATE, &s), -EDQUOT, "refused to add");
		k->refuse_err = 0;
	}
	/* Segment 0 was taken the second time; that is no store. */
	assert_ok(store_try(k, NULL, PV_CREATE | PV_EXCL, &s));
	assert_ok(pv_close(s));
}

/* A crash after a new segment was kept and before the index named it. */
static void orphan_segment_is_dropped(void **state)
{
	struct keeper *k = *state, image;
	struct pv_store *s = store_create(k, NULL);
	struct word *root = root_of(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	unsigned int before = 0;
	void *p;

	keeper_init(&image);
	k->copy = &image;
	k->copy_at_token = 2;
	while (store_info(s).segments < 2) {
		before++;
		assert_ok(pv_reserve(s, type, 5000, &p));
		assert_ok(pv_publish(s, &PV_LIVE(p), 1));
	}
	root->value = before;
	assert_ok(pv_close(s));
	assert_int_equal(image.n, 3);

	/* A reader takes no notice, the next writer drops it. */
	assert_ok(store_try(&image, NULL, PV_RDONLY, &s));
	assert_int_equal(store_info(s).segments, 1);
	assert_ok(pv_close(s));
	assert_int_equal(image.drops, 0);
	s = store_attach(&image, NULL);
	assert_int_equal(image.drops, 1);
	assert_int_equal(image.last_drop, 2);
	assert_int_equal(image.n, 2);
	assert_int_equal(store_info(s).segments, 1);
	/* All that were published before the one that made it grow, and the root. */
	assert_int_equal(store_sound(s).live_objects, before - 1 + 1);
	/* And it grows again. */
	assert_ok(pv_reserve(s, type, 60000, &p));
	assert_ok(pv_publish(s, &PV_LIVE(p), 1));
	assert_int_equal(store_info(s).segments, 2);
	store_sound(s);
	assert_ok(pv_close(s));
	keeper_free(&image);
}

static void same_segment_twice(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s;

	make_three_segments(k);
	keeper_put(k, 99, keeper_fd(k, 3));
	assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "two descriptors of token 3");
	keeper_put(k, 99, keeper_fd(k, 0));
	assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "two descriptors of token 0");
	keeper_drop(k, 99);
	s = store_attach(k, NULL);
	assert_ok(pv_close(s));
}

static void segment_of_another_store(void **state)
{
	struct keeper *k = *state, other;
	struct pv_store *s;

	keeper_init(&other);
	make_three_segments(k);
	make_three_segments(&other);
	keeper_put(k, 2, keeper_fd(&other, 2));
	assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "segment 1: belongs to another store");
	keeper_free(&other);
}

static void descriptors_that_are_no_store(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s;
	int fd, zeros = memfd_clone(-1, 65536);

	make_three_segments(k);
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	keeper_put(k, 3, fd);
	assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "neither the index nor a segment");
	keeper_put(k, 3, zeros);
	assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "neither the index nor a segment");
	close(fd);
	close(zeros);
}

/* ---- limits ---- */

/* Allocate into a list at root->next until it fails; how many. */
static size_t fill(struct pv_store *s, struct word *root, pv_type_t type, size_t bytes, int want)
{
	size_t n = 0;
	void *p;
	int err;

	for (;; n++) {
		err = pv_reserve(s, type, bytes, &p);
		if (err)
			break;
		*(void **)p = root->next;
		assert_ok(pv_publish(
			s, (struct pv_action[]){PV_LIVE(p), PV_STORE(&root->next, (uintptr_t)p)},
			2));
	}
	assert_int_equal(err, want);
	return n;
}

static void drain(struct pv_store *s, struct word *root, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		void *p = root->next;

		assert_ok(pv_publish(
			s, (struct pv_action[]){PV_STORE(&root->next, *(uintptr_t *)p), PV_FREE(p)},
			2));
	}
}

static void limit_reached(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct word *root;
	pv_type_t type;
	size_t n, m;

	o.limit_bytes = 300000;
	s = store_create(k, &o);
	root = root_of(s);
	type = store_bytes_type(s, "bytes");
	n = fill(s, root, type, 200, -ENOSPC);
	assert_non_null(strstr(pv_last_error(), "limit of 300000 bytes"));
	/* Most of it was to be had; nothing beyond it. */
	assert_true(n * 200 > 300000 / 2);
	assert_in_range(store_info(s).bytes, 200000, 300000);
	assert_int_equal(store_sound(s).live_objects, n + 1);
	/* Still of use: what is freed can be had again, in this size and in another. */
	drain(s, root, n / 2);
	store_sound(s);
	m = fill(s, root, type, 200, -ENOSPC);
	assert_true(m >= n / 2);
	drain(s, root, n / 2 + m);
	m = fill(s, root, type, 1000, -ENOSPC);
	assert_true(m * 1000 > 300000 / 2);
	assert_true(store_info(s).bytes <= 300000);
	store_sound(s);
	/* And it opens again, with the limit and with more. */
	keeper_crash(k, &s);
	s = store_attach(k, &o);
	assert_int_equal(fill(s, root, type, 1000, -ENOSPC), 0);
	assert_ok(pv_close(s));
	o.limit_bytes = 1 << 20;
	s = store_attach(k, &o);
	assert_true(fill(s, root, type, 1000, -ENOSPC) * 1000 > 300000);
	store_sound(s);
	assert_ok(pv_close(s));
}

static void limit_below_the_least(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;

	o.limit_bytes = 65536;
	assert_fails(store_try(k, &o, PV_CREATE, &s), -ENOSPC, "limit of 65536 bytes");
	assert_int_equal(k->n, 0);
	s = store_create(k, NULL);
	assert_ok(pv_close(s));
	/* A store that exists is larger than the limit: it opens, and cannot grow. */
	s = store_attach(k, &o);
	assert_true(fill(s, root_of(s), store_bytes_type(s, "bytes"), 1000, -ENOSPC) > 10);
	store_sound(s);
	assert_ok(pv_close(s));
}

static void window_full(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);

	/* The index has the first granule, the first segment the second. */
	for (o.window_bytes = 131072; o.window_bytes <= 1 << 20; o.window_bytes *= 2) {
		struct pv_store *s = store_create(k, &o);
		struct word *root = root_of(s);
		pv_type_t type = store_bytes_type(s, "bytes");
		size_t n = fill(s, root, type, 500, -ENOSPC);
		void *p;

		assert_non_null(strstr(pv_last_error(), "window"));
		assert_true(n * 500 > (o.window_bytes - 65536) / 2);
		store_sound(s);
		assert_fails(pv_reserve(s, type, o.window_bytes + 1, &p), -ENOSPC, "window");
		drain(s, root, n);
		assert_true(fill(s, root, type, 500, -ENOSPC) >= n);
		keeper_crash(k, &s);
		s = store_attach(k, &o);
		assert_int_equal(store_sound(s).live_objects, n + 1);
		assert_ok(pv_destroy(s));
	}
}

/* The backend refuses a new segment: the growth fails, the store is as before. */
static void growth_refused_by_keeper(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct word *root = root_of(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	size_t n;
	void *p;

	k->refuse_token = 2;
	k->refuse_err = -EDQUOT;
	n = fill(s, root, type, 500, -EDQUOT);
	assert_non_null(strstr(pv_last_error(), "token 2"));
	assert_int_equal(store_info(s).segments, 1);
	assert_int_equal(store_sound(s).live_objects, n + 1);
	drain(s, root, 10);
	assert_int_equal(fill(s, root, type, 500, -EDQUOT), 10);
	k->refuse_err = 0;
	assert_ok(pv_reserve(s, type, 500, &p));
	assert_int_equal(store_info(s).segments, 2);
	assert_ok(pv_cancel(s, p));
	store_sound(s);
	assert_ok(pv_close(s));
}

/* In a child: so few addresses that the window does not fit. */
static int open_with_few_addresses(void *ctx)
{
	struct pv_options o = small_options(ctx);
	struct rlimit lim;
	struct pv_store *s;
	unsigned long pages;
	FILE *f = fopen("/proc/self/statm", "r");

	if (!f || fscanf(f, "%lu", &pages) != 1)
		return 1;
	fclose(f);
	lim.rlim_cur = lim.rlim_max = pages * 4096 + (512u << 20);
	if (setrlimit(RLIMIT_AS, &lim))
		return 2;
	o.window_bytes = 1ull << 33;
	if (store_try(ctx, &o, PV_CREATE, &s) != -ENOMEM ||
	    !strstr(pv_last_error(), "window of 8192 MiB") || !strstr(pv_last_error(), "RLIMIT_AS"))
		return 3;
	o.window_bytes = 1 << 20;
	if (store_try(ctx, &o, PV_CREATE, &s))
		return 4;
	return pv_close(s) ? 5 : 0;
}

static void address_space_limited(void **state)
{
	assert_int_equal(run_child(open_with_few_addresses, *state), 0);
}

static void base_taken(void **state)
{
	struct keeper *k = *state, copy;
	struct pv_store *s = store_create(k, NULL), *t;
	struct pv_info info = store_info(s);
	char says[40];
	void *p;

	root_of(s)->value = 9;
	/* A copy of a store that is open here wants the same addresses. */
	keeper_init(&copy);
	keeper_copy(&copy, k);
	snprintf(says, sizeof(says), "0x%llx", (unsigned long long)info.base);
	assert_fails(store_try(&copy, NULL, 0, &t), -EADDRINUSE, says);
	store_sound(s);
	assert_ok(pv_close(s));
	/* A single page in the middle is enough. */
	p = mmap((void *)(uintptr_t)(info.base + info.window_bytes / 2), 4096, PROT_READ,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	assert_fails(store_try(k, NULL, 0, &s), -EADDRINUSE, says);
	assert_int_equal(munmap(p, 4096), 0);
	s = store_attach(k, NULL);
	assert_int_equal(store_info(s).epoch, 2);
	assert_int_equal(root_of(s)->value, 9);
	assert_ok(pv_close(s));
	keeper_free(&copy);
}

#define MANY 33 /* one more than may be open */

static void many_stores(void **state)
{
	struct keeper *k = calloc(MANY, sizeof(*k));
	struct pv_store *s[MANY] = {NULL};

	for (int i = 0; i < MANY - 1; i++) {
		s[i] = store_create(&k[i], NULL);
		root_of(s[i])->value = (uint64_t)i;
	}
	assert_fails(store_try(&k[MANY - 1], NULL, PV_CREATE, &s[MANY - 1]), -ENOSPC,
		     "32 stores are open");
	assert_null(s[MANY - 1]);
	for (int i = 0; i < MANY - 1; i++) {
		assert_int_equal(root_of(s[i])->value, i);
		store_sound(s[i]);
	}
	/* One out, one in, many times: places and thread state are used again. */
	for (int i = 0; i < 200; i++) {
		int at = i * 7 % (MANY - 1);

		assert_ok(pv_close(s[at]));
		s[at] = store_attach(&k[at], NULL);
		assert_int_equal(root_of(s[at])->value, at);
	}
	for (int i = 0; i < MANY - 1; i++)
		assert_ok(pv_destroy(s[i]));
	keeper_free(&k[MANY - 1]);
	free(k);
}

static void pointers_of_another_store_are_refused(void **state)
{
	struct keeper *k = *state, other;
	struct pv_store *s = store_create(k, NULL), *t;
	struct word *mine = root_of(s), *theirs;
	void *p;

	keeper_init(&other);
	t = store_create(&other, NULL);
	theirs = root_of(t);
	assert_fails(pv_publish(s, &PV_FREE(theirs), 1), -EINVAL, "not the start of an object");
	assert_fails(pv_publish(s, &PV_STORE(&theirs->value, 1), 1), -EINVAL, "word");
	assert_ok(pv_reserve(t, store_bytes_type(t, "x"), 16, &p));
	assert_fails(pv_publish(s, &PV_LIVE(p), 1), -EINVAL, "not the start of an object");
	assert_fails(pv_cancel(s, p), -EINVAL, "not the start of an object");
	assert_int_equal(pv_usable_bytes(s, theirs), 0);
	assert_int_equal(theirs->value, 0);
	assert_int_equal(mine->value, 0);
	store_sound(s);
	store_sound(t);
	assert_ok(pv_close(s));
	assert_ok(pv_close(t));
	keeper_free(&other);
}

static void version_and_messages(void **state)
{
	struct pv_store *s;
	int major, minor, patch;

	assert_int_equal(sscanf(pv_version(), "%d.%d.%d", &major, &minor, &patch), 3);
	errno = 12345;
	assert_fails(pv_open("", NULL, &s), -EINVAL, "store name");
	assert_int_equal(errno, 12345);
	assert_null(strchr(pv_last_error(), '\n'));
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
		with_keeper(second_writer_is_told_the_pid),
		with_keeper(second_handle_in_the_same_process),
		with_keeper(killed_writer_releases_the_lock),
		with_keeper(child_of_a_killed_writer_holds_no_lock),
		with_keeper(reader_beside_a_writer),
		with_keeper(reader_leaves_the_image_alone),
		with_keeper(forked_child_has_no_window),
		with_keeper(missing_segment),
		with_keeper(missing_index),
		with_keeper(interrupted_creation),
		with_keeper(refused_creation_leaves_nothing_open),
		with_keeper(orphan_segment_is_dropped),
		with_keeper(same_segment_twice),
		with_keeper(segment_of_another_store),
		with_keeper(descriptors_that_are_no_store),
		with_keeper(limit_reached),
		with_keeper(limit_below_the_least),
		with_keeper(window_full),
		with_keeper(growth_refused_by_keeper),
		with_keeper(address_space_limited),
		with_keeper(base_taken),
		with_keeper(many_stores),
		with_keeper(pointers_of_another_store_are_refused),
		with_keeper(version_and_messages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
