/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random histories of one thread against a plain model: which object each cell of a table names,
 * which roots there are, what is in them, and what is only reserved. After each step the store is
 * checked and its live objects are compared with the model's, every few dozen to the byte, with the
 * statistics; every few hundred it is closed, or left as a crash leaves it, and opened again, when
 * what was reserved has to be free and nothing may have leaked. Grace periods of what is retired
 * end when a step says so.
 *
 * PV_TEST_SEED=n repeats or varies a run.
 */
#include <urcu/call-rcu.h>
#include <urcu/flavor.h>

#include <preserve/compact.h>

#include "model.h"

/* ---- a flavour of RCU without readers ---- */

static struct {
	struct rcu_head *head;
	void (*func)(struct rcu_head *head);
} calls[256];
static unsigned int ncalls;

static void call_later(struct rcu_head *head, void (*func)(struct rcu_head *head))
{
	assert_in_range(ncalls, 0, sizeof(calls) / sizeof(calls[0]) - 1);
	calls[ncalls].head = head;
	calls[ncalls++].func = func;
}

static void call_now(void)
{
	unsigned int n = ncalls;

	ncalls = 0;
	for (unsigned int i = 0; i < n; i++)
		calls[i].func(calls[i].head);
}

static int no_reader(void)
{
	return 0;
}

static const struct rcu_flavor_struct no_readers = {
	.update_call_rcu = call_later,
	.barrier = call_now,
	.read_ongoing = no_reader,
};

/* ---- the model ---- */

/* Objects have moved: where are they? */
static void find_again(struct model *m)
{
	void *root = NULL;
	char name[8];

	assert_ok(pv_root(m->s, "table", m->table_type, sizeof(struct table), &root, NULL));
	m->table = root;
	for (int i = 0; i < NCELLS; i++) {
		assert_int_equal(!m->cells[i].p, !m->table->cells[i]);
		m->cells[i].p = m->table->cells[i];
	}
	for (int i = 0; i < ROOTS; i++) {
		snprintf(name, sizeof(name), "root%d", i);
		if (m->roots[i].p)
			assert_ok(pv_root(m->s, name, m->roots[i].type, m->roots[i].bytes, &m->roots[i].p,
					  NULL));
	}
}

static void model_open(struct model *m)
{
	const struct pv_typedef table =
		PV_TYPE(struct table, "table", 1, PV_POINTER(struct table, cells));
	char name[8];

	m->s = m->k->n ? store_attach(m->k, &m->o) : store_create(m->k, &m->o);
	for (int i = 0; i < TYPES; i++) {
		snprintf(name, sizeof(name), "type%d", i);
		m->types[i] = store_bytes_type(m->s, name);
	}
	assert_ok(pv_type_register(m->s, &table, &m->table_type));
	find_again(m);
	assert_ok(pv_retire_flavor(m->s, &no_readers));
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

/* What has to be live, by address. */
static struct objects wanted(struct model *m)
{
	struct objects want = {0};

	objects_add(&want, m->table, pv_usable_bytes(m->s, m->table), m->table_type);
	for (int i = 0; i < NCELLS + ROOTS; i++) {
		const struct thing *t = i < NCELLS ? &m->cells[i] : &m->roots[i - NCELLS];
		size_t usable;

		if (i < NCELLS)
			assert_ptr_equal(m->table->cells[i], t->p);
		if (!t->p)
			continue;
		usable = pv_usable_bytes(m->s, t->p);
		assert_true(usable >= t->bytes);
		objects_add(&want, t->p, usable, t->type);
	}
	objects_sort(&want);
	return want;
}

/* The store is sound, and what is live is what the model says. */
static void compare(struct model *m)
{
	struct objects want = wanted(m), live = {0};
	struct pv_check_report r = store_sound(m->s);

	objects_live(&live, m->s, 0);
	assert_true(objects_same(&live, &want));
	assert_int_equal(r.live_objects, want.n);
	assert_in_range(r.retired_objects, 0, m->nretired);
	assert_int_equal(r.intents + r.transactions, 0);
	objects_free(&want);
	objects_free(&live);
}

static void compare_type(struct model *m, pv_type_t type, const struct objects *all,
			 const struct pv_stats *stats)
{
	const struct pv_stats_type *t = &stats->types[type - 1];
	struct objects want = {0}, live = {0};
	uint64_t bytes = 0;

	for (size_t i = 0; i < all->n; i++) {
		if (all->v[i].type != type)
			continue;
		objects_add(&want, all->v[i].p, all->v[i].bytes, type);
		bytes += all->v[i].bytes;
	}
	objects_live(&live, m->s, type);
	assert_true(objects_same(&live, &want));
	assert_int_equal(t->type, type);
	assert_int_equal(t->live_objects, want.n);
	assert_int_equal(t->live_bytes, bytes);
	objects_free(&want);
	objects_free(&live);
}

/* And to the byte, by type, and in the statistics. */
static void compare_all(struct model *m)
{
	struct objects want = wanted(m);
	struct pv_stats *stats = NULL;
	struct pv_info info = store_info(m->s);

	compare(m);
	for (int i = 0; i < NCELLS; i++)
		assert_true(!m->cells[i].p || thing_holds(&m->cells[i]));
	for (int i = 0; i < ROOTS; i++)
		assert_true(!m->roots[i].p || thing_holds(&m->roots[i]));
	for (size_t i = 0; i < m->nreserved; i++)
		assert_true(thing_holds(&m->reserved[i]));
	assert_ok(pv_stats_get(m->s, &stats));
	assert_int_equal(stats->live_objects, want.n);
	assert_int_equal(stats->bytes, info.bytes);
	assert_int_equal(stats->slabs.reserved + stats->reserved_extents, m->nreserved);
	assert_int_equal(stats->slabs.slab_bytes,
			 stats->slabs.live_bytes + stats->slabs.busy_bytes +
				 stats->slabs.free_bytes + stats->slabs.metadata_bytes);
	assert_int_equal(stats->used_bytes, stats->slabs.slab_bytes + stats->extent_bytes +
						    stats->reserved_extent_bytes +
						    stats->retired_extent_bytes);
	for (uint32_t i = 0; i < stats->ntypes; i++)
		compare_type(m, i + 1, &want, stats);
	pv_stats_free(stats);
	objects_free(&want);
}

size_t model_size(struct model *m)
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

struct thing model_thing(struct model *m)
{
	return (struct thing){
		.bytes = model_size(m),
		.type = m->types[random_below(&m->random, TYPES)],
		.seed = random_next(&m->random) | 1,
	};
}

int model_room(struct model *m, int err)
{
	if (err == -ENOSPC && m->o.limit_bytes) {
		m->full++;
		return err;
	}
	assert_ok(err);
	return 0;
}

static void reserve_one(struct model *m)
{
	struct thing *t = &m->reserved[m->nreserved];
	size_t align = 1ull << random_below(&m->random, 15);

	if (m->nreserved == RESERVED_MAX)
		return;
	*t = model_thing(m);
	if (random_below(&m->random, 8))
		align = 16;
	if (model_room(m, align == 16 ? pv_reserve(m->s, t->type, t->bytes, &t->p)
				      : pv_reserve_aligned(m->s, t->type, t->bytes, align, &t->p)))
		return;
	assert_int_equal((uintptr_t)t->p % align, 0);
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

/* By a free, or after a grace period. */
static struct pv_action free_action(struct model *m, void *p)
{
	if (random_below(&m->random, 4))
		return PV_FREE(p);
	m->nretired++;
	return PV_RETIRE(p);
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
				a[n++] = free_action(m, old.p);
			break;
		case 1: /* unlink */
			if (!old.p)
				continue;
			a[n++] = free_action(m, old.p);
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
	size_t bytes = model_size(m);
	pv_type_t type = m->types[random_below(&m->random, TYPES)];

	if (t->p) {
		assert_ok(pv_free(m->s, &m->table->cells[i]));
		*t = (struct thing){0};
		return;
	}
	if (model_room(m, pv_alloc(m->s, type, bytes, &m->table->cells[i])))
		return;
	*t = (struct thing){.p = m->table->cells[i], .bytes = bytes, .type = type};
}

/* Made, or found as it was. What is in it is changed by a transaction. */
static void find_root(struct model *m)
{
	int i = (int)random_below(&m->random, ROOTS);
	struct thing *t = &m->roots[i];
	size_t bytes = t->p ? t->bytes : 1 + random_below(&m->random, i ? 300 : 20000);
	pv_type_t type = t->p ? t->type : m->types[random_below(&m->random, TYPES)];
	bool created = false;
	char name[8];
	void *p = NULL;

	snprintf(name, sizeof(name), "root%d", i);
	if (model_room(m, pv_root(m->s, name, type, bytes, &p, &created)))
		return;
	assert_int_equal(created, !t->p);
	if (created)
		*t = (struct thing){.p = p, .bytes = bytes, .type = type};
	assert_ptr_equal(p, t->p);
	assert_ok(pv_tx_begin(m->s));
	if (!model_room(m, pv_tx_add(m->s, p, bytes))) {
		t->seed = random_next(&m->random) | 1;
		pattern_fill(p, bytes, t->seed);
	}
	assert_ok(pv_tx_commit(m->s));
}

static void grace_period(struct model *m)
{
	if (random_below(&m->random, 2)) {
		call_now(); /* of what has been handed over */
		return;
	}
	assert_ok(pv_retire_wait(m->s));
	m->nretired = 0;
}

/* The same by the calls for one cell. */
static void publish_one(struct model *m)
{
	int i = (int)random_below(&m->random, NCELLS);
	struct thing *t = &m->cells[i], old = *t;

	if (m->nreserved && random_below(&m->random, 3)) {
		*t = take_reserved(m);
		assert_ok(old.p ? pv_replace(m->s, t->p, &m->table->cells[i], old.p)
				: pv_link(m->s, t->p, &m->table->cells[i]));
	} else if (old.p) {
		*t = (struct thing){0};
		assert_ok(pv_unlink(m->s, &m->table->cells[i], 0, old.p));
	}
}

static void resize(struct model *m)
{
	int i = (int)random_below(&m->random, NCELLS);
	struct thing *t = &m->cells[i], kept = *t;
	size_t bytes = random_below(&m->random, 3) ? t->bytes + random_below(&m->random, 64)
						   : model_size(m);

	if (!t->p || model_room(m, pv_realloc(m->s, &m->table->cells[i], bytes)))
		return;
	kept.p = m->table->cells[i];
	if (kept.bytes > bytes)
		kept.bytes = bytes;
	kept.bytes &= ~7ull; /* patterns have words, then bytes */
	assert_true(thing_holds(&kept));
	*t = (struct thing){
		.p = kept.p, .bytes = bytes, .type = t->type, .seed = random_next(&m->random) | 1};
	pattern_fill(t->p, t->bytes, t->seed);
}

static void trim(struct model *m)
{
	uint64_t bytes = store_info(m->s).bytes, less = 0;

	assert_ok(pv_trim(m->s, &less));
	assert_in_range(store_info(m->s).bytes, 0, bytes);
}

/* Nothing may be reserved meanwhile. */
static void compact(struct model *m)
{
	uint64_t bytes = store_info(m->s).bytes;

	if (m->nreserved)
		assert_fails(pv_compact(m->s, NULL, NULL), -EBUSY, "reserved");
	while (m->nreserved)
		cancel_one(m);
	m->nretired = 0; /* it waits for them */
	model_room(m, pv_compact(m->s, NULL, NULL));
	assert_in_range(store_info(m->s).bytes, 0, bytes);
	find_again(m);
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

	if (what < 30)
		reserve_one(m);
	else if (what < 35)
		cancel_one(m);
	else if (what < 60)
		publish_some(m);
	else if (what < 67)
		publish_one(m);
	else if (what < 77)
		simple_form(m);
	else if (what < 82)
		resize(m);
	else if (what < 92)
		model_tx(m);
	else if (what < 94)
		find_root(m);
	else if (what < 96)
		grace_period(m);
	else if (what < 97)
		random_below(&m->random, 3) ? trim(m) : compact(m);
	else
		mistake(m);
}

void model_reattach(struct model *m, bool crash)
{
	if (crash)
		keeper_crash(m->k, &m->s);
	else
		assert_ok(pv_close(m->s));
	m->nreserved = m->nretired = 0;
	/* Somewhere else, half of the time. */
	m->o.relocate = random_below(&m->random, 2) ? PV_RELOCATE_ALWAYS : PV_RELOCATE_AUTO;
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
		compare(m);
		if (i % 40 == 0)
			compare_all(m);
		if (i % 350 == 0) {
			model_reattach(m, random_below(&m->random, 2));
			compare_all(m);
		}
	}
	assert_true(m->committed && m->undone);
	if (!o.limit_bytes)
		assert_in_range(store_info(m->s).segments, 3, 100);
	if (o.limit_bytes)
		assert_true(m->full > 0); /* or the limit is not what this run is about */
	/* Everything goes, and nothing is left. */
	for (int i = 0; i < NCELLS; i++)
		if (m->cells[i].p)
			assert_ok(pv_free(m->s, &m->table->cells[i]));
	memset(m->cells, 0, sizeof(m->cells));
	compare_all(m);
	model_reattach(m, true);
	compare_all(m);
	assert_ok(pv_destroy(m->s));
	free(m);
}

static void small_pages(void **state)
{
	struct pv_options o = small_options(*state);

	o.window_bytes = 1 << 26;
	history(*state, o, random_seed_from_env("small_pages"), 7000);
}

static void large_pages(void **state)
{
	struct pv_options o = small_options(*state);

	o.window_bytes = 1 << 28;
	o.segment_bytes = 1 << 20;
	o.page_bytes = 16384;
	history(*state, o, random_seed_from_env("large_pages") + 1, 6000);
}

/* So little room that a good part of the reservations fail. */
static void nearly_full(void **state)
{
	struct pv_options o = small_options(*state);

	o.limit_bytes = 1 << 20;
	history(*state, o, random_seed_from_env("nearly_full") + 2, 7000);
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
