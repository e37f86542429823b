/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transactions: what a commit, an abort and a crash leave behind. The crash sweep stops after every
 * store; here the crash comes between calls, and random histories are compared with a plain model.
 */
#include <pthread.h>

#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

#define CELLS 512

struct table {
	uint64_t cells[CELLS];
	void *objects[CELLS];
};

static const struct pv_typedef table_def =
	PV_TYPE(struct table, "table", 1, PV_POINTER(struct table, objects));

static struct table *table_of(struct pv_store *s)
{
	void *t;

	assert_ok(pv_root(s, "table", store_type(s, &table_def), sizeof(struct table), &t, NULL));
	return t;
}

static void set(struct pv_store *s, uint64_t *cell, uint64_t value)
{
	assert_ok(pv_tx_add(s, cell, sizeof(*cell)));
	*cell = value;
}

static void commit_and_abort(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct table *t = table_of(s);

	assert_ok(pv_tx_begin(s));
	assert_int_equal(pv_tx_depth(s), 1);
	set(s, &t->cells[0], 1);
	set(s, &t->cells[1], 2);
	set(s, &t->cells[0], 3);
	assert_ok(pv_tx_commit(s));
	assert_int_equal(pv_tx_depth(s), 0);
	assert_int_equal(t->cells[0], 3);

	assert_ok(pv_tx_begin(s));
	set(s, &t->cells[0], 4);
	set(s, &t->cells[0], 5);
	set(s, &t->cells[2], 6);
	assert_ok(pv_tx_abort(s));
	assert_int_equal(t->cells[0], 3);
	assert_int_equal(t->cells[1], 2);
	assert_int_equal(t->cells[2], 0);
	assert_ok(pv_close(s));
}

static void crash_puts_back(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct table *t = table_of(s);
	void *fresh, *kept;

	assert_ok(pv_alloc(s, type, 100, &t->objects[0]));
	kept = t->objects[0];
	t->cells[7] = 7;
	assert_ok(pv_tx_begin(s));
	set(s, &t->cells[7], 8);
	assert_ok(pv_tx_free(s, t->objects[0]));
	assert_ok(pv_tx_alloc(s, type, 200, &fresh));
	set(s, (uint64_t *) &t->objects[0], (uintptr_t) fresh);
	keeper_crash(k, &s);
	s = store_attach(k, NULL);
	assert_int_equal(store_info(s).recovered, 1);
	t = table_of(s);
	assert_int_equal(t->cells[7], 7);
	assert_ptr_equal(t->objects[0], store_moved(s, kept));
	assert_int_equal(store_sound(s).live_objects, 2);
	assert_ok(pv_close(s));
}

static void objects_follow_the_commit(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct table *t = table_of(s);
	void *p, *large;

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_alloc(s, type, 40, &p));
	assert_ok(pv_tx_alloc(s, type, 40000, &large)); /* an extent */
	set(s, (uint64_t *) &t->objects[0], (uintptr_t) p);
	set(s, (uint64_t *) &t->objects[1], (uintptr_t) large);
	assert_ok(pv_tx_commit(s));
	assert_int_equal(store_sound(s).live_objects, 3);

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_free(s, p));
	assert_fails(pv_tx_free(s, p), -EINVAL, "before");
	assert_ok(pv_tx_free(s, large));
	assert_int_equal(store_sound(s).live_objects, 3);
	assert_ok(pv_tx_abort(s));
	assert_int_equal(store_sound(s).live_objects, 3);

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_free(s, p));
	assert_ok(pv_tx_free(s, large));
	assert_ok(pv_tx_alloc(s, type, 40, &p));
	assert_ok(pv_tx_free(s, p)); /* never became live */
	for (int i = 0; i < 2; i++)
		set(s, (uint64_t *) &t->objects[i], 0);
	assert_ok(pv_tx_commit(s));
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

static void nested_levels_are_flattened(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct table *t = table_of(s);

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_begin(s));
	set(s, &t->cells[0], 1);
	assert_ok(pv_tx_commit(s));
	assert_int_equal(pv_tx_depth(s), 1);
	assert_ok(pv_tx_abort(s));
	assert_int_equal(t->cells[0], 0);

	assert_ok(pv_tx_begin(s));
	set(s, &t->cells[0], 1);
	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_abort(s));
	assert_int_equal(t->cells[0], 0);
	assert_fails(pv_tx_add(s, &t->cells[0], 8), -ECANCELED, "inner level");
	assert_fails(pv_tx_commit(s), -ECANCELED, "inner level");
	assert_int_equal(pv_tx_depth(s), 0);
	assert_ok(pv_tx_begin(s));
	set(s, &t->cells[0], 9);
	assert_ok(pv_tx_commit(s));
	assert_int_equal(t->cells[0], 9);
	assert_ok(pv_close(s));
}

static void give_up(struct keeper *k, struct pv_store **s, bool crash)
{
	if (crash) {
		keeper_crash(k, s);
		*s = store_attach(k, NULL);
	} else {
		assert_ok(pv_tx_abort(*s));
	}
}

static void log_grows(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct table *t = table_of(s);
	size_t bytes = 150000, free_pages;
	uint8_t *p;

	assert_ok(pv_alloc(s, type, bytes, &t->objects[0]));
	p = t->objects[0];
	pattern_fill(p, bytes, 1);
	for (int crash = 0; crash < 2; crash++) {
		free_pages = store_sound(s).free_pages;
		assert_ok(pv_tx_begin(s));
		assert_ok(pv_tx_add(s, p, bytes / 2));
		memset(p, 0, bytes / 2);
		for (size_t i = bytes / 2; i < bytes; i += 100) {
			assert_ok(pv_tx_add(s, p + i, 100));
			memset(p + i, 0, 100);
		}
		give_up(k, &s, crash);
		p = table_of(s)->objects[0];
		assert_true(pattern_holds(p, bytes, 1));
		assert_true(store_sound(s).free_pages >= free_pages);
	}
	assert_ok(pv_close(s));
}

#define LENGTHS 130u

/* Are the bytes those of `was` in the range, and ones outside of it? */
static bool only_range_back(const uint8_t *p, const uint8_t *was, size_t from, size_t bytes)
{
	for (size_t i = 0; i < 2 * LENGTHS; i++)
		if (p[i] != (i - from < bytes ? was[i] : 0xff))
			return false;
	return true;
}

/* Short ranges are copied otherwise than long ones, and go on otherwise when the log is full. */
static void ranges_of_every_length(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct table *t = table_of(s);
	uint8_t was[2 * LENGTHS], *p;

	assert_ok(pv_alloc(s, type, sizeof(was), &t->objects[0]));
	p = t->objects[0];
	pattern_fill(was, sizeof(was), 1);
	for (size_t bytes = 1; bytes <= LENGTHS; bytes++) {
		for (size_t from = 0; from <= 8; from++) {
			memcpy(p, was, sizeof(was));
			assert_ok(pv_tx_begin(s));
			assert_ok(pv_tx_add(s, p + from, bytes));
			memset(p, 0xff, sizeof(was));
			assert_ok(pv_tx_abort(s));
			assert_true(only_range_back(p, was, from, bytes));
		}
	}
	/* All in one, of a log that grows; after it, one that begins at the beginning. */
	for (int crash = 0; crash < 2; crash++) {
		memcpy(p, was, sizeof(was));
		assert_ok(pv_tx_begin(s));
		for (size_t bytes = 1; bytes <= LENGTHS; bytes++) {
			assert_ok(pv_tx_add(s, p + bytes, bytes));
			memset(p + bytes, 0xff, bytes);
		}
		give_up(k, &s, crash);
		p = table_of(s)->objects[0];
		assert_memory_equal(p, was, sizeof(was));
		assert_ok(pv_tx_begin(s));
		assert_ok(pv_tx_add(s, p, LENGTHS));
		for (size_t from = LENGTHS; from + 24 <= sizeof(was); from += 24)
			assert_ok(pv_tx_add(s, p + from, 24));
		assert_ok(pv_tx_commit(s));
		assert_ok(pv_tx_begin(s));
		assert_ok(pv_tx_add(s, p, 48));
		memset(p, 0, 48);
		assert_ok(pv_tx_abort(s));
		assert_memory_equal(p, was, sizeof(was));
	}
	store_sound(s);
	assert_ok(pv_close(s));
}

/* A short range must lie in objects as a long one must. */
static void ends_of_a_segment(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	const struct pvi_segment *seg = &s->segments[0];
	uint8_t *first = seg->addr + ((uint64_t) seg->first_page << s->page_shift);
	uint8_t *end = seg->addr + ((uint64_t) seg->npages << s->page_shift);

	assert_ok(pv_tx_begin(s));
	for (size_t bytes = 8; bytes <= 72; bytes += 8) {
		assert_fails(pv_tx_add(s, first - 8, bytes), -EINVAL, "not within");
		assert_fails(pv_tx_add(s, end - bytes + 8, bytes), -EINVAL, "not within");
		assert_fails(pv_tx_add(s, end, bytes), -EINVAL, "not within");
		assert_fails(pv_tx_add(s, (void *) (s->base - bytes), bytes), -EINVAL, "not within");
		assert_fails(pv_tx_add(s, (void *) (s->base + s->window_bytes), bytes), -EINVAL, "not within");
		assert_ok(pv_tx_add(s, first, bytes));
	}
	assert_ok(pv_tx_abort(s));
	assert_ok(pv_close(s));
}

/* Its slot may not be handed out before the log is void: an abort would write into the next owner. */
static void dropped_object_stays_out_of_reach(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct table *t = table_of(s);
	void *p, *q;

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_alloc(s, type, 48, &p));
	assert_ok(pv_tx_add(s, p, 48));
	assert_ok(pv_tx_free(s, p));
	assert_fails(pv_tx_free(s, p), -EINVAL, "before");
	assert_ok(pv_alloc(s, type, 48, &t->objects[0]));
	q = t->objects[0];
	assert_ptr_not_equal(p, q);
	pattern_fill(q, 48, 1);
	assert_ok(pv_tx_abort(s));
	assert_true(pattern_holds(q, 48, 1));
	assert_int_equal(store_sound(s).live_objects, 2);
	assert_ok(pv_close(s));
}

/* A commit that is refused changes nothing, and leaves no entries for a later one. */
static void refused_commit_can_be_aborted(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct table *t = table_of(s);
	void *p;

	assert_ok(pv_alloc(s, type, 48, &t->objects[0]));
	assert_ok(pv_tx_begin(s));
	set(s, &t->cells[0], 1);
	assert_ok(pv_tx_alloc(s, type, 48, &p));
	assert_ok(pv_tx_free(s, t->objects[0]));
	assert_ok(pv_free(s, &t->objects[0])); /* behind the transaction's back */
	assert_fails(pv_tx_commit(s), -EINVAL, "not live");
	assert_int_equal(pv_tx_depth(s), 1);
	assert_ok(pv_tx_free(s, p));
	keeper_crash(k, &s);
	s = store_attach(k, NULL);
	assert_int_equal(table_of(s)->cells[0], 0);
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

static void refused(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct table *t = table_of(s);
	uint64_t outside = 0;
	void *p;

	assert_fails(pv_tx_add(s, t, 8), -EINVAL, "no transaction");
	assert_fails(pv_tx_commit(s), -EINVAL, "no transaction");
	assert_fails(pv_tx_abort(s), -EINVAL, "no transaction");
	assert_fails(pv_tx_alloc(s, type, 8, &p), -EINVAL, "no transaction");
	assert_ok(pv_tx_begin(s));
	assert_fails(pv_tx_add(s, &outside, 8), -EINVAL, "not within");
	assert_fails(pv_tx_add(s, t, 0), -EINVAL, "not within");
	assert_fails(pv_tx_add(s, t, 1 << 20), -EINVAL, "not within");
	assert_fails(pv_tx_add(s, (void *) (uintptr_t) store_info(s).base, 8), -EINVAL, "not within");
	assert_fails(pv_tx_free(s, &outside), -EINVAL, "not the start");
	assert_fails(pv_tx_alloc(s, type, 0, &p), -EINVAL, "0 bytes");
	assert_ok(pv_tx_commit(s));
	assert_ok(pv_close(s));
}

static void *leave_open(void *arg)
{
	struct pv_store *s = arg;
	struct table *t = table_of(s);
	void *p;

	assert_ok(pv_tx_begin(s));
	set(s, &t->cells[0], 99);
	assert_ok(pv_tx_alloc(s, store_bytes_type(s, "bytes"), 50, &p));
	return NULL;
}

static void thread_that_ends_aborts(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, leave_open, s), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(table_of(s)->cells[0], 0);
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

/* ---- random histories ---- */

static void random_step(struct pv_store *s, pv_type_t type, struct table *t, struct table *model,
			uint64_t *r)
{
	uint64_t i = random_below(r, CELLS);

	if (random_below(r, 3)) {
		set(s, &t->cells[i], model->cells[i] = random_next(r));
	} else if (!model->objects[i]) {
		void *p;

		assert_ok(pv_tx_alloc(s, type, 1 + random_below(r, 3000), &p));
		set(s, (uint64_t *) &t->objects[i], (uintptr_t) (model->objects[i] = p));
	} else {
		assert_ok(pv_tx_free(s, model->objects[i]));
		model->objects[i] = NULL;
		set(s, (uint64_t *) &t->objects[i], 0);
	}
}

static void random_histories(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct table *t = table_of(s), model = {0}, next;
	uint64_t r = random_seed_from_env("tx");

	for (int round = 0; round < 400; round++) {
		uint64_t steps = random_below(&r, 60), end = random_below(&r, 4), live = 1;

		next = model;
		assert_ok(pv_tx_begin(s));
		for (uint64_t i = 0; i < steps; i++)
			random_step(s, type, t, &next, &r);
		if (end < 2) {
			assert_ok(pv_tx_commit(s));
			model = next;
		} else if (end == 2) {
			assert_ok(pv_tx_abort(s));
		} else {
			keeper_crash(k, &s);
			s = store_attach(k, NULL);
			type = store_bytes_type(s, "bytes");
			t = table_of(s);
			for (int i = 0; i < CELLS; i++)
				model.objects[i] = store_moved(s, model.objects[i]);
		}
		assert_memory_equal(t, &model, sizeof(model));
		for (int i = 0; i < CELLS; i++)
			live += model.objects[i] != NULL;
		assert_int_equal(store_sound(s).live_objects, live);
	}
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(commit_and_abort),
		with_keeper(crash_puts_back),
		with_keeper(objects_follow_the_commit),
		with_keeper(nested_levels_are_flattened),
		with_keeper(log_grows),
		with_keeper(ranges_of_every_length),
		with_keeper(ends_of_a_segment),
		with_keeper(dropped_object_stays_out_of_reach),
		with_keeper(refused_commit_can_be_aborted),
		with_keeper(refused),
		with_keeper(thread_that_ends_aborts),
		with_keeper(random_histories),
	};

	return cmocka_run_group_tests_name("tx", tests, NULL, NULL);
}
