/* SPDX-License-Identifier: BSD-3-Clause */
/* Root objects: made, found, refused. */
#include <pthread.h>

#include "internal.h"
#include "support.h"

static void root_made_and_found(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t node = store_word_type(s);
	struct word *a, *b;
	uint64_t generation;
	bool created = false;
	void *p = NULL;

	assert_ok(pv_root(s, "a", node, sizeof(*a), &p, &created));
	assert_true(created);
	a = p;
	assert_null(a->next);
	assert_int_equal(a->value, 0);
	a->value = 1;
	assert_ok(pv_root(s, "b", node, 10 * sizeof(*b), &p, &created));
	assert_true(created);
	b = p;
	for (int i = 0; i < 10; i++)
		b[i].value = 100;
	generation = store_info(s).generation;
	assert_ok(pv_root(s, "a", node, sizeof(*a), &p, &created));
	assert_false(created);
	assert_ptr_equal(p, a);
	/* Fewer bytes than it has are fine. */
	assert_ok(pv_root(s, "b", node, sizeof(*b), &p, NULL));
	assert_ptr_equal(p, b);
	assert_int_equal(store_info(s).generation, generation);
	assert_int_equal(store_sound(s).live_objects, 2);
	for (int i = 0; i < 2; i++) {
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
		node = store_word_type(s);
		a = store_moved(s, a);
		b = store_moved(s, b);
		assert_ok(pv_root(s, "a", node, sizeof(*a), &p, &created));
		assert_ptr_equal(p, a);
		assert_false(created);
		assert_ok(pv_root(s, "b", node, sizeof(*b), &p, NULL));
		assert_ptr_equal(p, b);
		assert_int_equal(a->value, 1);
		assert_int_equal(b[9].value, 100);
	}
	assert_ok(pv_close(s));
}

static void root_of_another_shape(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t node = store_word_type(s), bytes = store_bytes_type(s, "bytes");
	void *p = NULL, *q = state;
	bool created = true;

	assert_ok(pv_root(s, "a", node, 16, &p, NULL));
	assert_fails(pv_root(s, "a", bytes, 16, &q, &created), -EEXIST, "exists with type word");
	assert_fails(pv_root(s, "a", node, 17, &q, &created), -EEXIST, "16 bytes, 17 wanted");
	assert_fails(pv_root(s, "b", node, 8, &q, &created), -EINVAL, "too few for type word");
	assert_fails(pv_root(s, "b", bytes, 0, &q, &created), -EINVAL, "0 bytes");
	assert_fails(pv_root(s, "", bytes, 8, &q, &created), -EINVAL, "root name");
	assert_fails(pv_root(s, NULL, bytes, 8, &q, &created), -EINVAL, "root name");
	assert_fails(pv_root(s, "a/b", bytes, 8, &q, &created), -EINVAL, "root name");
	assert_fails(pv_root(s, "b", bytes, 1ull << 60, &q, &created), -ENOSPC, "window");
	assert_ptr_equal(q, state);
	assert_true(created);
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

static void root_is_zeroed(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t bytes = store_bytes_type(s, "bytes");
	static const size_t sizes[] = {16, 100, 3000, 40000, 200000};
	uint8_t *p;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		char name[20];

		/* Dirt where the root is likely to come. */
		for (int n = 0; n < 3; n++) {
			assert_ok(pv_reserve(s, bytes, sizes[i], (void **)&p));
			memset(p, 0xee, sizes[i]);
			assert_ok(pv_cancel(s, p));
		}
		snprintf(name, sizeof(name), "root-%zu", i);
		assert_ok(pv_root(s, name, bytes, sizes[i], (void **)&p, NULL));
		for (size_t at = 0; at < sizes[i]; at++)
			assert_int_equal(p[at], 0);
		assert_true(pv_usable_bytes(s, p) >= sizes[i]);
		memset(p, 0xdd, sizes[i]);
	}
	assert_int_equal(store_sound(s).live_objects, 5);
	keeper_crash(k, &s);
	s = store_attach(k, NULL);
	bytes = store_bytes_type(s, "bytes");
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		char name[20];

		snprintf(name, sizeof(name), "root-%zu", i);
		assert_ok(pv_root(s, name, bytes, sizes[i], (void **)&p, NULL));
		assert_int_equal(p[sizes[i] - 1], 0xdd);
	}
	assert_ok(pv_close(s));
}

static void index_full_of_roots(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t node = store_word_type(s);
	struct pv_check_report r;
	char name[20];
	size_t n = 0;
	void *p, *first = NULL;
	int err;

	for (;; n++) {
		snprintf(name, sizeof(name), "root-%zu", n);
		err = pv_root(s, name, node, 16, &p, NULL);
		if (err)
			break;
		first = first ? first : p;
	}
	assert_int_equal(err, -ENOSPC);
	assert_non_null(strstr(pv_last_error(), "index: full"));
	assert_true(n > 20);
	for (int i = 0; i < 10; i++)
		assert_fails(pv_root(s, name, node, 16, &p, NULL), -ENOSPC, "index: full");
	/* The objects that were reserved for them are free again. */
	assert_int_equal(store_sound(s).live_objects, n);
	keeper_crash(k, &s);
	s = store_attach(k, NULL);
	r = store_sound(s);
	assert_int_equal(r.live_objects, n);
	assert_int_equal(r.reserved_objects, 0);
	assert_ok(pv_root(s, "root-0", store_word_type(s), 16, &p, NULL));
	assert_ptr_equal(p, store_moved(s, first));
	assert_ok(pv_reserve(s, store_word_type(s), 16, &p));
	assert_ok(pv_publish(s, &PV_LIVE(p), 1));
	assert_ok(pv_close(s));
}

/* A root whose object is not there is damage, not a pointer to whatever came there. */
static void root_of_a_dead_object(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t node = store_word_type(s);
	const struct pvi_segment *seg;
	struct pv_check_report r;
	uint64_t off, rec;
	uint8_t *byte;
	void *p;

	assert_ok(pv_root(s, "a", node, 16, &p, NULL));
	off = (uintptr_t)p - s->base;
	seg = pvi_store_segment(s, off);
	byte = pvi_slab_slot(s, seg, off - seg->off, &rec);
	*byte = PV_SLOT_FREE; /* a stray store */
	assert_fails(pv_root(s, "a", node, 16, &p, NULL), -EBADMSG, "root a: its object");
	assert_ok(pv_check(s, NULL, &r));
	assert_int_equal(r.problems, 1);
	assert_ok(pv_close(s));
}

#define THREADS 4
#define ROOTS	12

struct rooter {
	struct pv_store *s;
	pv_type_t type;
	pthread_barrier_t *start;
	void *roots[ROOTS];
	unsigned int made;
	int err;
};

static void *make_roots(void *arg)
{
	struct rooter *r = arg;
	char name[20];

	pthread_barrier_wait(r->start);
	for (int i = 0; i < ROOTS && !r->err; i++) {
		bool created = false;

		snprintf(name, sizeof(name), "root-%d", i);
		/* Among them some that are extents. */
		r->err = pv_root(r->s, name, r->type, i % 4 ? 16 : 50000, &r->roots[i], &created);
		r->made += created;
	}
	return NULL;
}

static void threads_make_the_same_roots(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct rooter r[THREADS];
	pthread_t threads[THREADS];
	pthread_barrier_t start;
	unsigned int made = 0;

	o.lanes = THREADS + 1;
	s = store_create(k, &o);
	pthread_barrier_init(&start, NULL, THREADS);
	for (int i = 0; i < THREADS; i++) {
		r[i] = (struct rooter){.s = s, .type = store_word_type(s), .start = &start};
		assert_int_equal(pthread_create(&threads[i], NULL, make_roots, &r[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(r[i].err, 0);
		assert_memory_equal(r[i].roots, r[0].roots, sizeof(r[0].roots));
		made += r[i].made;
	}
	pthread_barrier_destroy(&start);
	assert_int_equal(made, ROOTS);
	assert_int_equal(store_sound(s).live_objects, ROOTS);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(root_made_and_found),   with_keeper(root_of_another_shape),
		with_keeper(root_is_zeroed),	    with_keeper(index_full_of_roots),
		with_keeper(root_of_a_dead_object), with_keeper(threads_make_the_same_roots),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
