/* SPDX-License-Identifier: BSD-3-Clause */
/* Who may have a store open, beside whom; sets of descriptors that are incomplete or mixed. */
#include <fcntl.h>
#include <signal.h>

#include "support.h"

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
	store_root(s)->value = 77;
	tell(o->up[1]);
	wait_for(o->down[0]);
	store_root(s)->value = 78;
	return pv_close(s) ? 2 : 0;
}

static void second_writer_is_told_the_pid(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct other o = other_begin(k);
	char says[40];
	pid_t pid;

	store_root(s);
	assert_ok(pv_close(s));
	pid = start_child(hold_it, &o);
	assert_true(wait_for(o.up[0]));
	snprintf(says, sizeof(says), "in use by process %d", pid);
	assert_fails(store_try(k, NULL, 0, &s), -EBUSY, says);
	assert_fails(store_try(k, NULL, PV_CREATE, &s), -EBUSY, says);
	tell(o.down[1]);
	assert_int_equal(child_wait(pid), 0);
	s = store_attach(k, NULL);
	assert_int_equal(store_root(s)->value, 78);
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
	store_root(s);
	store_sound(s);
	assert_ok(pv_close(s));
}

static void killed_writer_releases_the_lock(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct other o = other_begin(k);
	pid_t pid;

	store_root(s);
	assert_ok(pv_close(s));
	pid = start_child(hold_it, &o);
	assert_true(wait_for(o.up[0]));
	assert_fails(store_try(k, NULL, 0, &s), -EBUSY, "in use");
	kill(pid, SIGKILL);
	assert_int_equal(child_wait(pid), 256 + SIGKILL);
	s = store_attach(k, NULL);
	assert_int_equal(store_root(s)->value, 77);
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
	store_root(s);
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
	step_is(0, pv_type_register(s, &store_word, &type));
	step_is(0, pv_root(s, "root", type, sizeof(struct word), &root, NULL));
	step_is(4711, (int)((struct word *)root)->value);
	step_is(16, (int)pv_usable_bytes(s, root));
	step_is(0, (int)pv_usable_bytes(s, (uint8_t *)root + 1));
	step_is(0, pv_check(s, NULL, &r));
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
	struct word *root = store_root(s);
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
	struct word *root = store_root(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct objects live = {0};
	void *p;

	assert_ok(pv_alloc(s, type, 100, &root->next));
	assert_ok(pv_reserve(s, type, 100, &p)); /* and left behind */
	keeper_crash(k, &s);
	keeper_init(&before);
	keeper_copy(&before, k);
	assert_ok(store_try(k, NULL, PV_RDONLY, &s));
	root = store_root(s);
	assert_true(pv_usable_bytes(s, pv_address(s, root->next)) >= 100);
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
	assert_int_equal(run_child(looks_at_window, store_root(s)), 0);
	assert_int_equal(run_child(looks_at_window, base + store_info(s).window_bytes - 4096), 0);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* ---- incomplete and mixed sets ---- */

/** A store with three segments, closed. */
static void make_three_segments(struct keeper *k)
{
	struct pv_store *s = store_create(k, NULL);
	struct word *root = store_root(s);
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
	store_root(s)->value = 1;
	store_sound(s);
	assert_ok(pv_close(s));
	s = store_attach(k, NULL);
	assert_int_equal(store_root(s)->value, 1);
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
	struct word *root = store_root(s);
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
	root = store_moved(s, root);
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

int main(void)
{
	const struct CMUnitTest tests[] = {
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
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
