/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random histories of one thread against a plain model: which object each cell of a table names,
 * what is in it, and what is only reserved. Every few steps the store is checked and its live
 * objects are compared with the model's; every few hundred it is closed, or left as a crash leaves
 * it, and opened again, when what was reserved has to be free and nothing may have leaked.
 *
 * PV_TEST_SEED=n repeats or varies a run.
 */
#include "support.h"

#define NCELLS	     300
#define RESERVED_MAX 40
#define TYPES	     3

struct table {
	void *cells[NCELLS];
};

struct thing {
	void *p;
	size_t bytes;
	pv_type_t type;
	uint64_t seed; /* of its contents; 0: zero bytes */
};

struct model {
	struct keeper *k;
	struct pv_options o;
	struct pv_store *s;
	struct table *table;
	pv_type_t types[TYPES];
	pv_type_t table_type;
	uint64_t random;
	struct thing cells[NCELLS]; /* p NULL: the cell is empty */
	struct thing reserved[RESERVED_MAX];
	size_t nreserved;
	size_t full; /* -ENOSPC seen */
};

static void model_open(struct model *m)
{
	void *root = NULL;
	char name[8];

	m->s = m->k->n ? store_attach(m->k, &m->o) : store_create(m->k, &m->o);
	for (int i = 0; i < TYPES; i++) {
		snprintf(name, sizeof(name), "type%d", i);
		m->types[i] = store_bytes_type(m->s, name);
	}
	m->table_type = store_bytes_type(m->s, "table");
	assert_ok(pv_root(m->s, "table", m->table_type, sizeof(struct table), &root, NULL));
	m->table = root;
}

static bool thing_holds(const struct thing *t)
{
	if (t->seed)
		return pattern_holds(t->p, t->bytes, t->seed);
	for (size_t i = 0; i < t->bytes; i++)
		if (((uint8_t *)t->p)[i])
			return false;
	return true;
}

/* The store is sound, and what is live is what the model says, to the byte. */
static void compare(struct model *m)
{
	struct objects want = {0}, live = {0};
	struct pv_check_report r = store_sound(m->s);

	objects_add(&want, m->table, pv_usable_bytes(m->s, m->table), m->table_type);
	for (int i = 0; i < NCELLS; i++) {
		const struct thing *t = &m->cells[i];

		assert_ptr_equal(m->table->cells[i], t->p);
		if (!t->p)
			continue;
		assert_true(pv_usable_bytes(m->s, t->p) >= t->bytes);
		objects_add(&want, t->p, pv_usable_bytes(m->s, t->p), t->type);
		assert_true(thing_holds(t));
	}
	for (size_t i = 0; i < m->nreserved; i++)
		assert_true(thing_holds(&m->reserved[i]));
	objects_sort(&want);
	objects_live(&live, m->s, 0);
	assert_true(objects_same(&live, &want));
	assert_int_equal(r.live_objects, want.n);
	objects_free(&want);
	objects_free(&live);
}

static size_t random_size(struct model *m)
{
	uint64_t *r = &m->random;

	switch (random_below(r, 10)) {
	case 0:
		return 1 + random_below(r, 100000); /* extents */
	case 1:
	case 2:
		return 1 + random_below(r, 5000);
	default:
		return 1 + random_below(r, 400);
	}
}

static void reserve_one(struct model *m)
{
	struct thing *t = &m->reserved[m->nreserved];
	int err;

	if (m->nreserved == RESERVED_MAX)
		return;
	*t = (struct thing){
		.bytes = random_size(m),
		.type = m->types[random_below(&m->random, TYPES)],
		.seed = random_next(&m->random) | 1,
	};
	err = pv_reserve(m->s, t->type, t->bytes, &t->p);
	if (err == -ENOSPC && m->o.limit_bytes) {
		m->full++;
		return;
	}
	assert_ok(err);
	pattern_fill(t->p, t->bytes, t->seed);
	m->nreserved++;
}

static struct thing take_reserved(struct model *m)
{
	size_t i = random_below(&m->random, m->nreserved);
	struct thing t = m->reserved[i];

	m->reserved[i] = m->reserved[--m->nreserved];
	return t;
}

static void cancel_one(struct model *m)
{
	if (m->nreserved)
		assert_ok(pv_cancel(m->s, take_reserved(m).p));
}

/* One intent about several cells, each of them once. */
static void publish_some(struct model *m)
{
	struct pv_action a[PV_ACTIONS_MAX];
	unsigned int n = 0, steps = 1 + (unsigned int)random_below(&m->random, 8);
	int first = (int)random_below(&m->random, NCELLS - 8);

	for (int i = first; i < first + (int)steps; i++) {
		void **cell = &m->table->cells[i];
		struct thing *t = &m->cells[i], old = *t;

		switch (random_below(&m->random, 3)) {
		case 0: /* link, replacing what is there */
			if (!m->nreserved)
				continue;
			*t = take_reserved(m);
			a[n++] = PV_LIVE(t->p);
			a[n++] = PV_STORE(cell, (uintptr_t)t->p);
			if (old.p)
				a[n++] = PV_FREE(old.p);
			break;
		case 1: /* unlink */
			if (!old.p)
				continue;
			a[n++] = PV_FREE(old.p);
			a[n++] = PV_STORE(cell, 0);
			*t = (struct thing){0};
			break;
		default: /* swap with the next */
			if (i + 1 == first + (int)steps)
				continue;
			a[n++] = PV_STORE(cell, (uintptr_t)m->cells[i + 1].p);
			a[n++] = PV_STORE(cell + 1, (uintptr_t)old.p);
			*t = m->cells[i + 1];
			m->cells[i + 1] = old;
			i++;
			break;
		}
	}
	assert_ok(pv_publish(m->s, a, n));
}

static void simple_form(struct model *m)
{
	int i = (int)random_below(&m->random, NCELLS);
	struct thing *t = &m->cells[i];
	size_t bytes = random_size(m);
	pv_type_t type = m->types[random_below(&m->random, TYPES)];
	int err;

	if (t->p) {
		assert_ok(pv_free(m->s, &m->table->cells[i]));
		*t = (struct thing){0};
		return;
	}
	err = pv_alloc(m->s, type, bytes, &m->table->cells[i]);
	if (err == -ENOSPC && m->o.limit_bytes) {
		m->full++;
		return;
	}
	assert_ok(err);
	*t = (struct thing){.p = m->table->cells[i], .bytes = bytes, .type = type};
}

/* What has to be refused, with nothing changed. */
static void mistake(struct model *m)
{
	struct thing *t = &m->cells[random_below(&m->random, NCELLS)];
	void *p = t->p ? t->p : m->table;

	switch (random_below(&m->random, 4)) {
	case 0:
		assert_fails(pv_publish(m->s, &PV_LIVE(p), 1), -EINVAL, "");
		break;
	case 1:
		assert_fails(pv_cancel(m->s, p), -EINVAL, "");
		break;
	case 2:
		assert_fails(pv_publish(m->s,
					(struct pv_action[]){PV_STORE(&m->table->cells[0], 1),
							     PV_FREE((uint8_t *)p + 8)},
					2),
			     -EINVAL, "");
		break;
	default:
		if (m->nreserved)
			assert_fails(pv_publish(m->s, &PV_FREE(m->reserved[0].p), 1), -EINVAL, "");
	}
}

static void step(struct model *m)
{
	uint64_t what = random_below(&m->random, 100);

	if (what < 35)
		reserve_one(m);
	else if (what < 40)
		cancel_one(m);
	else if (what < 80)
		publish_some(m);
	else if (what < 97)
		simple_form(m);
	else
		mistake(m);
}

static void reattach(struct model *m, bool crash)
{
	if (crash)
		keeper_crash(m->k, &m->s);
	else
		assert_ok(pv_close(m->s));
	m->nreserved = 0;
	model_open(m);
	assert_int_equal(store_sound(m->s).reserved_objects, 0);
}

static void history(struct keeper *k, struct pv_options o, uint64_t seed, int steps)
{
	struct model *m = calloc(1, sizeof(*m));

	assert_non_null(m);
	m->k = k;
	m->o = o;
	m->random = seed;
	model_open(m);
	if (under_tsan()) /* one thread: nothing for it to find here */
		steps /= 4;
	for (int i = 1; i <= steps; i++) {
		step(m);
		if (i % 40 == 0)
			compare(m);
		if (i % 350 == 0) {
			reattach(m, random_below(&m->random, 2));
			compare(m);
		}
	}
	if (o.limit_bytes)
		assert_true(m->full > 0); /* or the limit is not what this run is about */
	/* Everything goes, and nothing is left. */
	for (int i = 0; i < NCELLS; i++)
		if (m->cells[i].p)
			assert_ok(pv_free(m->s, &m->table->cells[i]));
	memset(m->cells, 0, sizeof(m->cells));
	compare(m);
	reattach(m, true);
	compare(m);
	assert_ok(pv_destroy(m->s));
	free(m);
}

static void small_pages(void **state)
{
	struct pv_options o = small_options(*state);

	o.window_bytes = 1 << 26;
	history(*state, o, random_seed_from_env("small_pages"), 14000);
}

static void large_pages(void **state)
{
	struct pv_options o = small_options(*state);

	o.window_bytes = 1 << 28;
	o.segment_bytes = 1 << 20;
	o.page_bytes = 16384;
	history(*state, o, random_seed_from_env("large_pages") + 1, 10000);
}

/* So little room that a good part of the reservations fail. */
static void nearly_full(void **state)
{
	struct pv_options o = small_options(*state);

	o.limit_bytes = 1 << 20;
	history(*state, o, random_seed_from_env("nearly_full") + 2, 14000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(small_pages),
		with_keeper(large_pages),
		with_keeper(nearly_full),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
