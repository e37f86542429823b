/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Retiring objects, with a flavour of RCU whose grace periods end when a test says so: its callbacks run
 * in whoever waits. What readers see of it is in test_retire_readers.c.
 */
#include <urcu/call-rcu.h>
#include <urcu/flavor.h>

#include <preserve/retire.h>
#include <preserve/tx.h>

#include "support.h"

static unsigned int n_manual;
static struct {
	struct rcu_head *head;
	void (*func)(struct rcu_head *head);
} manual_calls[4];

static void manual_call(struct rcu_head *head, void (*func)(struct rcu_head *head))
{
	assert_in_range(n_manual, 0, 3);
	manual_calls[n_manual].head = head;
	manual_calls[n_manual++].func = func;
}

static void manual_barrier(void)
{
	unsigned int n = n_manual;

	n_manual = 0;
	for (unsigned int i = 0; i < n; i++) /* those that are handed over meanwhile: next time */
		manual_calls[i].func(manual_calls[i].head);
}

static int manual_ongoing(void)
{
	return 0;
}

static const struct rcu_flavor_struct manual = {
	.update_call_rcu = manual_call,
	.barrier = manual_barrier,
	.read_ongoing = manual_ongoing,
};

static const struct rcu_flavor_struct other;

/* ---- stores ---- */

static struct pv_options options(struct keeper *k)
{
	struct pv_options o = small_options(k);

	o.lanes = 12;
	return o;
}

static struct pv_store *create(struct keeper *k, const struct rcu_flavor_struct *flavor)
{
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);

	assert_ok(pv_retire_flavor(s, flavor));
	return s;
}

static int retire(struct pv_store *s, void **cell)
{
	return pv_publish(s, (struct pv_action[]){PV_STORE(cell, 0), PV_RETIRE(*cell)}, 2);
}

/* ---- tests ---- */

static void refusals(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct cells *c = store_cells(s);
	size_t sizes[] = {64, 300000};

	publish_ok(s, type, 64, &c->cells[0]);
	assert_fails(retire(s, &c->cells[0]), -EINVAL, "no flavour");
	assert_fails(pv_retire_flavor(s, NULL), -EINVAL, "NULL");
	assert_ok(pv_retire_wait(s));
	assert_ok(pv_retire_flavor(s, &manual));
	assert_ok(pv_retire_flavor(s, &manual));
	assert_fails(pv_retire_flavor(s, &other), -EBUSY, "another flavour");
	for (int i = 0; i < 2; i++) {
		void *p = publish_ok(s, type, sizes[i], &c->cells[1]);
		void *fresh = reserve_ok(s, type, sizes[i]);

		assert_fails(pv_publish(s, (struct pv_action[]){PV_RETIRE(p), PV_FREE(p)}, 2),
			     -EINVAL, "twice");
		assert_fails(pv_publish(s, (struct pv_action[]){PV_RETIRE(p), PV_RETIRE(p)}, 2),
			     -EINVAL, "twice");
		assert_fails(pv_publish(s, &PV_RETIRE(fresh), 1), -EINVAL, "is reserved, not live");
		assert_fails(pv_publish(s, &PV_RETIRE((char *) p + 16), 1), -EINVAL,
			     "not the start");
		assert_int_not_equal(pv_usable_bytes(s, p), 0);
		assert_ok(pv_publish(s, &PV_RETIRE(p), 1));
		assert_int_equal(pv_usable_bytes(s, p), 0);
		assert_fails(pv_publish(s, &PV_RETIRE(p), 1), -EINVAL, "is retired, not live");
		assert_fails(pv_publish(s, &PV_FREE(p), 1), -EINVAL, "is retired, not live");
		assert_fails(pv_publish(s, &PV_LIVE(p), 1), -EINVAL, "is retired, not reserved");
		assert_fails(pv_cancel(s, p), -EINVAL, "not reserved");
		assert_ok(pv_cancel(s, fresh));
		assert_ok(pv_retire_wait(s));
		assert_int_equal(store_records_sound(s).retired_objects, 0);
	}
	assert_int_equal(store_records_sound(s).live_objects, 2);
	assert_ok(pv_close(s));
}

static void lanes_and_readonly(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s;

	o.lanes = 1;
	s = store_create(k, &o);
	store_root(s); /* this thread has the only lane */
	assert_fails(pv_retire_flavor(s, &manual), -EUSERS, "lanes");
	assert_fails(pv_publish(s, &PV_RETIRE(s), 1), -EINVAL, "no flavour");
	assert_ok(pv_close(s));
	assert_ok(store_try(k, NULL, PV_RDONLY, &s));
	assert_fails(pv_retire_flavor(s, &manual), -EPERM, "read-only");
	assert_ok(pv_close(s));
}

struct visits {
	struct pv_store *s;
	unsigned int n, inner;
};

static int visit_inner(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	++((struct visits *) ctx)->inner;
	return 0;
}

/* A visit may look at the store, by another walk, too. */
static int visit(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	struct visits *v = ctx;

	v->n++;
	return pv_iterate(v->s, 0, visit_inner, v);
}

/* Retired objects are counted, not visited, and neither their slots nor their pages are used again
 * before the grace period ends. */
static void kept_until_the_end(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s;
	struct pv_check_report report;
	struct visits v = {0};
	unsigned int n = 0;
	pv_type_t type;
	struct cells *c;
	void *small, *large, *p;

	o.limit_bytes = 400000;
	s = store_create(k, &o);
	assert_ok(pv_retire_flavor(s, &manual));
	type = store_bytes_type(s, "bytes");
	c = store_cells(s);
	small = publish_ok(s, type, 64, &c->cells[0]);
	large = publish_ok(s, type, 40000, &c->cells[1]);
	pattern_fill(small, 64, 1);
	pattern_fill(large, 40000, 2);
	assert_ok(pv_publish(s,
			     (struct pv_action[]){PV_STORE(&c->cells[0], 0), PV_RETIRE(small),
						  PV_STORE(&c->cells[1], 0), PV_RETIRE(large)},
			     4));
	report = store_records_sound(s);
	assert_int_equal(report.retired_objects, 2);
	assert_int_equal(report.live_objects, 1);
	v.s = s;
	assert_ok(pv_iterate(s, 0, visit, &v));
	assert_int_equal(v.n, 1);
	assert_int_equal(v.inner, 1);
	for (size_t bytes = 40000; bytes; bytes = bytes == 40000 ? 64 : 0) {
		while (pv_reserve(s, type, bytes, &p) == 0) {
			assert_ptr_not_equal(p, small);
			assert_ptr_not_equal(p, large);
			pattern_fill(p, bytes, 3);
			n++;
		}
		assert_non_null(strstr(pv_last_error(), "limit"));
	}
	assert_true(n > 2);
	assert_true(pattern_holds(small, 64, 1));
	assert_true(pattern_holds(large, 40000, 2));
	assert_int_equal(store_records_sound(s).retired_objects, 2);
	assert_ok(pv_retire_wait(s));
	assert_int_equal(store_records_sound(s).retired_objects, 0);
	assert_ok(pv_reserve(s, type, 64, &p));
	assert_ptr_equal(p, small);
	assert_ok(pv_reserve(s, type, 40000, &p));
	assert_ptr_equal(p, large);
	assert_ok(pv_close(s));
}

static void free_after_a_crash(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = create(k, &manual);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct cells *c = store_cells(s);

	for (int i = 0; i < 300; i++)
		publish_ok(s, type, i % 3 ? 64 : 20000, &c->cells[i]);
	for (int i = 0; i < 200; i++)
		assert_ok(retire(s, &c->cells[i]));
	assert_int_equal(store_records_sound(s).retired_objects, 200);
	keeper_crash(k, &s);
	s = store_attach(k, &o);
	assert_int_equal(store_records_sound(s).retired_objects, 0);
	assert_int_equal(store_records_sound(s).live_objects, 101);
	assert_ok(pv_close(s));
}

/* A second batch waits for the first; what ends or closes in between takes both along. */
static void batches(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = create(k, &manual);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct cells *c = store_cells(s);

	for (int i = 0; i < CELLS; i++)
		publish_ok(s, type, 64, &c->cells[i]);
	for (int i = 0; i < CELLS; i++) {
		assert_ok(retire(s, &c->cells[i]));
		assert_int_equal(n_manual, 1);
	}
	manual_barrier();
	assert_int_equal(n_manual, 1); /* what was pending */
	assert_int_equal(store_records_sound(s).retired_objects, CELLS - 1);
	manual_barrier();
	assert_int_equal(n_manual, 0);
	assert_int_equal(store_records_sound(s).retired_objects, 0);
	for (int i = 0; i < CELLS; i++)
		publish_ok(s, type, 64, &c->cells[i]);
	for (int i = 0; i < 3; i++)
		assert_ok(retire(s, &c->cells[i]));
	assert_ok(pv_close(s));
	assert_int_equal(n_manual, 0);
	s = store_attach(k, NULL);
	assert_int_equal(store_records_sound(s).live_objects, 1 + CELLS - 3);
	assert_ok(pv_close(s));
}

/* A child inherits callbacks if it goes on with call_rcu threads, but not the window. */
static int run_inherited(void *unused)
{
	manual_barrier();
	return n_manual == 0 ? 7 : 1;
}

static void forked_child(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = create(k, &manual);
	struct cells *c = store_cells(s);

	publish_ok(s, store_bytes_type(s, "bytes"), 64, &c->cells[0]);
	assert_ok(retire(s, &c->cells[0]));
	assert_int_equal(run_child(run_inherited, NULL), 7);
	assert_int_equal(store_records_sound(s).retired_objects, 1);
	assert_ok(pv_close(s));
}

static void in_transactions(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = options(k);
	struct pv_store *s = store_create(k, &o);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct cells *c = store_cells(s);
	void *fresh;

	for (int i = 0; i < 300; i++)
		publish_ok(s, type, i ? 64 : 40000, &c->cells[i]);
	assert_fails(pv_tx_retire(s, c->cells[0]), -EINVAL, "no transaction");
	assert_ok(pv_tx_begin(s));
	assert_fails(pv_tx_retire(s, c->cells[0]), -EINVAL, "no flavour");
	assert_ok(pv_retire_flavor(s, &manual));
	/* Aborted: nothing happened. */
	assert_ok(pv_tx_retire(s, c->cells[0]));
	assert_fails(pv_tx_retire(s, c->cells[0]), -EINVAL, "before");
	assert_fails(pv_tx_free(s, c->cells[0]), -EINVAL, "before");
	assert_ok(pv_tx_abort(s));
	assert_int_equal(store_records_sound(s).live_objects, 301);
	assert_int_equal(store_records_sound(s).retired_objects, 0);
	/* More than a block notes; with one that was never live. */
	assert_ok(pv_tx_begin(s));
	for (int i = 0; i < 300; i++) {
		assert_ok(pv_tx_add(s, &c->cells[i], sizeof(void *)));
		assert_ok(pv_tx_retire(s, c->cells[i]));
		c->cells[i] = NULL;
	}
	assert_ok(pv_tx_alloc(s, type, 64, &fresh));
	assert_ok(pv_tx_retire(s, fresh));
	assert_int_equal(store_records_sound(s).retired_objects, 0);
	assert_ok(pv_tx_commit(s));
	assert_int_equal(store_records_sound(s).live_objects, 1);
	assert_int_equal(store_records_sound(s).retired_objects, 300);
	assert_ok(pv_retire_wait(s));
	assert_int_equal(store_records_sound(s).retired_objects, 0);
	assert_ok(pv_close(s));
}

/* tests/meson.build: malloc() is wrapped. */
static _Thread_local int mallocs_left = -1;
void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);

void *__wrap_malloc(size_t bytes)
{
	if (mallocs_left == 0) {
		errno = ENOMEM;
		return NULL;
	}
	if (mallocs_left > 0)
		mallocs_left--;
	return __real_malloc(bytes);
}

static void no_memory(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = create(k, &manual);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct cells *c = store_cells(s);
	void *kept;
	int i = 0, rc;

	for (int n = 0; n < CELLS; n++)
		publish_ok(s, type, 64, &c->cells[n]);
	mallocs_left = 0;
	assert_fails(retire(s, &c->cells[0]), -ENOMEM, "retired");
	mallocs_left = -1;
	assert_int_equal(store_records_sound(s).live_objects, CELLS + 1);
	assert_ok(retire(s, &c->cells[i++])); /* in flight */
	mallocs_left = 1;
	while ((rc = retire(s, &c->cells[i])) == 0)
		i++;
	mallocs_left = -1;
	assert_int_equal(rc, -ENOMEM);
	assert_true(i > 30);
	kept = c->cells[i];
	assert_non_null(kept); /* nothing was changed ... */
	assert_int_not_equal(pv_usable_bytes(s, kept), 0);
	assert_int_equal(store_records_sound(s).retired_objects, i);
	assert_ok(pv_retire_wait(s)); /* ... and what was noted before was not lost */
	assert_int_equal(store_records_sound(s).retired_objects, 0);
	assert_ok(retire(s, &c->cells[i++]));
	/* A commit fails before anything is done, and can be tried again. */
	assert_ok(pv_tx_begin(s));
	for (; i < CELLS; i++)
		assert_ok(pv_tx_retire(s, c->cells[i]));
	mallocs_left = 0;
	assert_fails(pv_tx_commit(s), -ENOMEM, "retired");
	mallocs_left = -1;
	assert_int_not_equal(pv_usable_bytes(s, c->cells[CELLS - 1]), 0);
	assert_ok(pv_tx_commit(s));
	assert_int_equal(store_records_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(refusals),
		with_keeper(lanes_and_readonly),
		with_keeper(kept_until_the_end),
		with_keeper(free_after_a_crash),
		with_keeper(batches),
		with_keeper(forked_child),
		with_keeper(in_transactions),
		with_keeper(no_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
