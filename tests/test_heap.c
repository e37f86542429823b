/* SPDX-License-Identifier: BSD-3-Clause */
/* Objects, one thread: sizes, states, extents, and memory that comes back. */
#include "internal.h"
#include "support.h"

/* ---- sizes ---- */

static void check_size(struct pv_store *s, pv_type_t type, size_t bytes, uint64_t page)
{
	void *p = reserve_ok(s, type, bytes);
	size_t usable = pv_usable_bytes(s, p);
	size_t align = bytes & (0 - bytes);

	align = align < 16 ? 16 : align > 4096 ? 4096 : align;
	if (usable < bytes)
		fail_msg("%zu bytes: %zu usable", bytes, usable);
	if ((uintptr_t)p % align)
		fail_msg("%zu bytes: %p is not aligned to %zu", bytes, p, align);
	/* A multiple of 16 up to 128, an eighth at most to spare above, whole pages of an extent.
	 */
	if (bytes <= 128)
		assert_int_equal(usable, (bytes + 15) / 16 * 16);
	else if (bytes <= 8 * page)
		assert_in_range(usable - bytes, 0, usable / 8);
	else
		assert_int_equal(usable, (bytes + page - 1) / page * page);
	assert_ok(pv_cancel(s, p));
}

static void sizes_and_alignments(void **state)
{
	struct keeper *k = *state;

	for (uint64_t page = 4096; page <= 16384; page *= 4) {
		struct pv_options o = small_options(k);
		struct pv_store *s;
		pv_type_t type;

		o.window_bytes = 1ull << 30;
		o.segment_bytes = 1 << 20;
		o.page_bytes = (uint32_t)page;
		s = store_create(k, &o);
		type = store_bytes_type(s, "bytes");
		for (size_t bytes = 1; bytes < 10000; bytes++)
			check_size(s, type, bytes, page);
		for (size_t bytes = 10000; bytes < 20 * page; bytes += 61)
			check_size(s, type, bytes, page);
		for (size_t bytes = page; bytes < 64 * page; bytes += page)
			for (size_t around = bytes - 1; around <= bytes + 1; around++)
				check_size(s, type, around, page);
		store_sound(s);
		assert_ok(pv_destroy(s));
	}
}

/* Both sides of every class's boundary, several objects of each, none overlapping another. */
static void class_boundaries(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct objects all = {0};
	struct pv_store *s;
	pv_type_t type;
	size_t last = 0;

	o.window_bytes = 1ull << 30;
	s = store_create(k, &o);
	type = store_bytes_type(s, "bytes");
	for (uint32_t c = 0; c < s->nclasses; c++) {
		size_t slot = s->classes[c].slot_bytes, want[] = {last + 1, slot - 1, slot};

		assert_int_equal(pvi_class_of(slot), c);
		for (size_t i = 0; i < 3; i++) {
			for (int n = 0; n < 3; n++) {
				void *p = reserve_ok(s, type, want[i]);

				assert_int_equal(pv_usable_bytes(s, p), slot);
				pattern_fill(p, slot, all.n);
				objects_add(&all, p, slot, type);
				if (n)
					assert_ok(pv_publish(s, &PV_LIVE(p), 1));
			}
		}
		last = slot;
	}
	assert_int_equal(last, 8 * 4096);
	for (size_t i = 0; i < all.n; i++)
		assert_true(pattern_holds(all.v[i].p, all.v[i].bytes, i));
	objects_sort(&all);
	for (size_t i = 1; i < all.n; i++)
		assert_true((uint8_t *)all.v[i - 1].p + all.v[i - 1].bytes <=
			    (uint8_t *)all.v[i].p);
	assert_int_equal(store_sound(s).live_objects, s->nclasses * 6);
	objects_free(&all);
	assert_ok(pv_close(s));
}

static void sizes_that_are_too_large(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	void *p = state;

	assert_fails(pv_reserve(s, type, (16 << 20) + 1, &p), -ENOSPC, "window");
	assert_fails(pv_reserve(s, type, 16 << 20, &p), -ENOSPC, "window");
	assert_fails(pv_reserve(s, type, SIZE_MAX, &p), -ENOSPC, "window");
	assert_fails(pv_reserve(s, type, SIZE_MAX / 2, &p), -ENOSPC, "window");
	assert_fails(pv_reserve(s, type, 1ull << 44, &p), -ENOSPC, "window");
	assert_ptr_equal(p, state);
	assert_int_equal(store_info(s).segments, 1);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* More pages than an entry of the page map can count must not be cut to few. */
static void sizes_beyond_32_bits_of_pages(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	pv_type_t type;
	void *p = state;

	if (under_tsan())
		o.window_bytes = 1ull << 34; /* what it leaves of the address space */
	else
		o.window_bytes = 1ull << 45;
	o.segment_bytes = 1 << 30;
	o.page_bytes = 4096;
	s = store_create(k, &o);
	type = store_bytes_type(s, "bytes");
	for (uint64_t bytes = 1ull << 40; bytes && bytes <= 1ull << 45; bytes *= 2) {
		assert_fails(pv_reserve(s, type, bytes, &p), -ENOSPC, "window");
		assert_fails(pv_reserve(s, type, bytes + 4096, &p), -ENOSPC, "window");
	}
	assert_ptr_equal(p, state);
	assert_ok(pv_destroy(s));
}

/* ---- states ---- */

static void reserve_publish_free(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	static const size_t sizes[] = {16, 100, 3000, 40000, 100000};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		void *p = reserve_ok(s, type, sizes[i]);

		assert_true(pv_usable_bytes(s, p) >= sizes[i]);
		assert_int_equal(store_sound(s).live_objects, 1);
		assert_ok(pv_publish(s, &PV_LIVE(p), 1));
		assert_int_equal(store_sound(s).live_objects, 2);
		assert_true(pv_usable_bytes(s, p) >= sizes[i]);
		/* Link, replace, unlink. */
		assert_ok(pv_publish(s, &PV_STORE(&t->cells[0], (uintptr_t)p), 1));
		for (int n = 0; n < 5; n++) {
			void *fresh = reserve_ok(s, type, sizes[i]);

			assert_ptr_not_equal(fresh, p);
			assert_ok(pv_publish(
				s,
				(struct pv_action[]){PV_LIVE(fresh),
						     PV_STORE(&t->cells[0], (uintptr_t)fresh),
						     PV_FREE(p)},
				3));
			assert_ptr_equal(t->cells[0], fresh);
			assert_int_equal(pv_usable_bytes(s, p), 0);
			p = fresh;
		}
		assert_int_equal(store_sound(s).live_objects, 2);
		assert_ok(pv_publish(s, (struct pv_action[]){PV_STORE(&t->cells[0], 0), PV_FREE(p)},
				     2));
		assert_null(t->cells[0]);
		assert_int_equal(pv_usable_bytes(s, p), 0);
		assert_int_equal(store_sound(s).live_objects, 1);
	}
	assert_ok(pv_close(s));
}

static void as_many_actions_as_there_may_be(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct pv_action a[PV_ACTIONS_MAX + 1];
	unsigned int n = 0;

	assert_ok(pv_publish(s, a, 0));
	for (unsigned int i = 0; i < PV_ACTIONS_MAX / 2; i++) {
		void *p = reserve_ok(s, type, 16 + 40 * i);

		a[n++] = PV_LIVE(p);
		a[n++] = PV_STORE(&t->cells[i], (uintptr_t)p);
	}
	assert_ok(pv_publish(s, a, n));
	assert_int_equal(store_sound(s).live_objects, 1 + n / 2);
	n = 0;
	for (unsigned int i = 0; i < PV_ACTIONS_MAX / 2; i++) {
		a[n++] = PV_FREE(t->cells[i]);
		a[n++] = PV_STORE(&t->cells[i], 0);
	}
	a[n] = PV_STORE(&t->cells[100], 1);
	assert_fails(pv_publish(s, a, n + 1), -ENOSPC, "31 actions in an intent, the most is 30");
	assert_fails(pv_publish(s, a, UINT32_MAX), -ENOSPC, "the most is 30");
	assert_null(t->cells[100]);
	assert_int_equal(store_sound(s).live_objects, 1 + n / 2);
	assert_ok(pv_publish(s, a, n));
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

static void simple_forms(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	static const size_t sizes[] = {8, 200, 5000, 50000};
	void *outside = state;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		/* Dirt first. */
		assert_ok(pv_alloc(s, type, sizes[i], &t->cells[i]));
		memset(t->cells[i], 0xff, sizes[i]);
		assert_ok(pv_free(s, &t->cells[i]));
		assert_null(t->cells[i]);
		assert_ok(pv_alloc(s, type, sizes[i], &t->cells[i]));
		for (size_t at = 0; at < sizes[i]; at++)
			assert_int_equal(((uint8_t *)t->cells[i])[at], 0);
	}
	assert_int_equal(store_sound(s).live_objects, 5);
	/* Into an object that is only reserved. */
	{
		void **p = reserve_ok(s, type, 64);

		assert_ok(pv_alloc(s, type, 64, &p[1]));
		assert_ok(pv_free(s, &p[1]));
		assert_ok(pv_cancel(s, p));
	}
	assert_fails(pv_alloc(s, type, 100, &outside), -EINVAL, "not an aligned word");
	assert_ptr_equal(outside, state);
	assert_fails(pv_free(s, &outside), -EINVAL, "not an aligned word");
	assert_fails(pv_free(s, &t->cells[100]), -EINVAL, "not the start of an object");
	assert_fails(pv_alloc(s, type, 0, &t->cells[0]), -EINVAL, "0 bytes");
	assert_non_null(t->cells[0]);
	assert_fails(pv_alloc(s, type, 100, (void **)((uint8_t *)&t->cells[9] + 4)), -EINVAL,
		     "word");
	/* What was reserved for those that failed is free again. */
	assert_int_equal(store_sound(s).live_objects, 5);
	assert_ok(pv_close(s));
	s = store_attach(k, NULL);
	t = store_moved(s, t);
	assert_int_equal(store_sound(s).live_objects, 5);
	assert_ok(pv_close(s));
}

static void iteration(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t a = store_bytes_type(s, "a"), b = store_bytes_type(s, "b");
	struct objects live = {0}, want = {0};

	for (int i = 0; i < 30; i++) {
		pv_type_t type = i % 3 ? a : b;
		size_t bytes = i % 10 == 9 ? 40000 : 16 + (size_t)i * 30;
		void *p = publish_ok(s, type, bytes, &t->cells[i]);

		if (i % 4 == 1) {
			assert_ok(pv_free(s, &t->cells[i]));
			continue;
		}
		if (type == a)
			objects_add(&want, p, pv_usable_bytes(s, p), a);
	}
	reserve_ok(s, a, 100); /* not live */
	objects_sort(&want);
	for (int i = 0; i < 2; i++) {
		objects_live(&live, s, a);
		assert_int_equal(live.n, want.n);
		assert_true(objects_same(&live, &want));
		objects_live(&live, s, 0);
		assert_true(live.n > want.n);
		objects_live(&live, s, b + 1);
		assert_int_equal(live.n, 0);
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
		t = store_moved(s, t);
		objects_moved(&want, s);
	}
	objects_free(&live);
	objects_free(&want);
	assert_ok(pv_close(s));
}

static int stop_at_third(void *ctx, void *p, size_t bytes, pv_type_t type)
{
	int *n = ctx;

	return ++*n == 3 ? -4711 : 0;
}

static void iteration_ends_when_told(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	int n = 0;

	for (int i = 0; i < 10; i++)
		publish_ok(s, store_bytes_type(s, "a"), i % 2 ? 100 : 40000, &t->cells[i]);
	assert_int_equal(pv_iterate(s, 0, stop_at_third, &n), -4711);
	assert_int_equal(n, 3);
	assert_ok(pv_close(s));
}

/* ---- extents ---- */

static void extents_come_and_go(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	uint64_t bytes;

	for (int round = 0; round < 20; round++) {
		for (size_t i = 0; i < 10; i++) {
			size_t want = 33000 + 7000 * i;
			uint8_t *p = publish_ok(s, type, want, &t->cells[i]);

			pattern_fill(p, want, i);
			reserve_ok(s, type, want); /* left behind */
		}
		for (size_t i = 0; i < 10; i++)
			assert_true(pattern_holds(t->cells[i], 33000 + 7000 * i, i));
		assert_int_equal(store_sound(s).extents, 10);
		if (round == 0)
			bytes = store_info(s).bytes;
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
		t = store_moved(s, t);
		/* In segments that nobody has looked at yet, in both directions. */
		for (size_t i = 0; i < 10; i++)
			assert_ok(pv_free(s, &t->cells[round % 2 ? i : 9 - i]));
		assert_int_equal(store_sound(s).live_objects, 1);
	}
	/* What was left behind was free again each time. */
	assert_int_equal(store_info(s).bytes, bytes);
	assert_ok(pv_close(s));
}

static void extent_larger_than_a_segment(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct cells *t;
	uint32_t segments;
	uint8_t *p;

	o.window_bytes = 1 << 28;
	s = store_create(k, &o);
	t = store_cells(s);
	p = publish_ok(s, store_bytes_type(s, "bytes"), 10 << 20, &t->cells[0]);
	assert_int_equal(pv_usable_bytes(s, p), 10 << 20);
	memset(p, 0x5a, 10 << 20);
	segments = store_info(s).segments;
	keeper_crash(k, &s);
	s = store_attach(k, &o);
	t = store_moved(s, t);
	p = store_moved(s, p);
	assert_int_equal(p[0], 0x5a);
	assert_int_equal(p[(10 << 20) - 1], 0x5a);
	assert_int_equal(store_sound(s).live_bytes, (10 << 20) + 4096);
	assert_ok(pv_free(s, &t->cells[0]));
	/* Its place serves others. */
	for (int i = 0; i < 100; i++)
		publish_ok(s, store_bytes_type(s, "bytes"), 90000, &t->cells[i]);
	assert_int_equal(store_info(s).segments, segments);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* ---- memory that comes back ---- */

static void *fill_list(struct pv_store *s, pv_type_t type, size_t bytes, size_t n, void *list)
{
	for (size_t i = 0; i < n; i++) {
		void **p = reserve_ok(s, type, bytes);

		*p = list;
		assert_ok(pv_publish(s, &PV_LIVE(p), 1));
		list = p;
	}
	return list;
}

static void free_list(struct pv_store *s, void *list)
{
	while (list) {
		void *next = *(void **)list;

		assert_ok(pv_publish(s, &PV_FREE(list), 1));
		list = next;
	}
}

/* The same amount in one size after the other: each must find what the one before has freed. */
static void other_sizes_use_what_was_freed(void **state)
{
	static const size_t sizes[] = {16, 5000, 48, 40000, 1000, 16, 100000, 300, 64};
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	const size_t amount = 3 << 20;
	struct pv_store *s;
	pv_type_t type;

	o.window_bytes = 1 << 26;
	o.limit_bytes = 6 << 20;
	s = store_create(k, &o);
	type = store_bytes_type(s, "bytes");
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
			void *list = fill_list(s, type, sizes[i], amount / sizes[i], NULL);

			assert_int_equal(store_sound(s).live_objects, amount / sizes[i]);
			free_list(s, list);
			assert_int_equal(store_sound(s).live_objects, 0);
		}
		keeper_crash(k, &s);
		s = store_attach(k, &o);
	}
	assert_ok(pv_close(s));
}

/* Reserved, and never published, in many processes that are killed. */
static void crashes_leak_nothing(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	uint64_t bytes = 0;

	for (int i = 0; i < 300; i++) {
		for (size_t n = 0; n < 10; n++) {
			reserve_ok(s, type, 16 + 100 * n);
			assert_ok(pv_publish(s, &PV_LIVE(reserve_ok(s, type, 2000)), 1));
		}
		reserve_ok(s, type, 36000);
		if (i == 20)
			bytes = store_info(s).bytes;
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
		if (i % 2) {
			struct objects live = {0};

			objects_live(&live, s, 0);
			assert_int_equal(live.n, 20);
			for (size_t n = 0; n < live.n; n++)
				assert_ok(pv_publish(s, &PV_FREE(live.v[n].p), 1));
			objects_free(&live);
		}
	}
	assert_int_equal(store_info(s).bytes, bytes);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* Slots are handed out once, whatever became of them before. */
static void no_slot_twice(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t type = store_bytes_type(s, "bytes");
	uint64_t seed = 1;
	struct objects out = {0};

	for (int i = 0; i < 20000; i++) {
		size_t at = out.n ? random_below(&seed, out.n) : 0;

		switch (out.n > 200 ? 1 + random_below(&seed, 2) : random_below(&seed, 4)) {
		case 1: /* cancel one */
		case 2: /* or publish it, then free it */
			if (!out.n)
				break;
			if (i % 2) {
				assert_ok(pv_cancel(s, out.v[at].p));
			} else {
				assert_ok(pv_publish(s, &PV_LIVE(out.v[at].p), 1));
				assert_ok(pv_publish(s, &PV_FREE(out.v[at].p), 1));
			}
			out.v[at] = out.v[--out.n];
			break;
		default:
			objects_add(&out, reserve_ok(s, type, 24), 24, type);
			pattern_fill(out.v[out.n - 1].p, 24, (uintptr_t)out.v[out.n - 1].p);
			break;
		}
	}
	for (size_t i = 0; i < out.n; i++)
		assert_true(pattern_holds(out.v[i].p, 24, (uintptr_t)out.v[i].p));
	objects_sort(&out);
	for (size_t i = 1; i < out.n; i++)
		assert_ptr_not_equal(out.v[i - 1].p, out.v[i].p);
	objects_free(&out);
	store_sound(s);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(sizes_and_alignments),
		with_keeper(class_boundaries),
		with_keeper(sizes_that_are_too_large),
		with_keeper(sizes_beyond_32_bits_of_pages),
		with_keeper(reserve_publish_free),
		with_keeper(as_many_actions_as_there_may_be),
		with_keeper(simple_forms),
		with_keeper(iteration),
		with_keeper(iteration_ends_when_told),
		with_keeper(extents_come_and_go),
		with_keeper(extent_larger_than_a_segment),
		with_keeper(other_sizes_use_what_was_freed),
		with_keeper(crashes_leak_nothing),
		with_keeper(no_slot_twice),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
