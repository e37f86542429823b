/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fixture_retire.c - retiring in the sweeps; see fixture.h.
 *
 * While stores are trapped only the threads that the engine knows may run, so the flavour is not one
 * of liburcu's: here a callback runs when somebody waits, in that thread. There are no readers, and
 * so a grace period may be over as soon as it has begun; that is the sharpest case.
 */
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <urcu/call-rcu.h>
#include <urcu/flavor.h>
#include <preserve/retire.h>
#include <preserve/tx.h>
#include "fixture.h"

struct call {
	struct rcu_head *head;
	void (*func)(struct rcu_head *head);
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct call calls[16]; /* as many queues have something in flight at most */
static unsigned n_calls;

static void call_later(struct rcu_head *head, void (*func)(struct rcu_head *head))
{
	pthread_mutex_lock(&lock);
	if (n_calls == sizeof(calls) / sizeof(calls[0]))
		abort();
	calls[n_calls++] = (struct call){head, func};
	pthread_mutex_unlock(&lock);
}

/* Those that were there when it began, as rcu_barrier() promises. */
static void run_calls(void)
{
	struct call now[sizeof(calls) / sizeof(calls[0])];
	unsigned n;

	pthread_mutex_lock(&lock);
	n = n_calls;
	for (unsigned i = 0; i < n; i++)
		now[i] = calls[i];
	n_calls = 0;
	pthread_mutex_unlock(&lock);
	for (unsigned i = 0; i < n; i++)
		now[i].func(now[i].head);
}

static void nothing(void)
{
}

static int no_reader(void)
{
	return 0;
}

static const struct rcu_flavor_struct flavor = {
	.update_call_rcu = call_later,
	.barrier = run_calls,
	.read_ongoing = no_reader,
	.thread_offline = nothing,
	.thread_online = nothing,
};

int fixture_flavor(struct fixture *f)
{
	int rc = f->retires ? pv_retire_flavor(f->store, &flavor) : 0;

	if (rc)
		crash_note("pv_retire_flavor: %s", pv_last_error());
	return rc;
}

static int publish(struct fixture *f, const struct pv_action *actions, unsigned n)
{
	int rc = pv_publish(f->store, actions, n);

	if (rc)
		crash_note("pv_publish: %s", pv_last_error());
	return rc;
}

int op_retire(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;

	return publish(
		f, (struct pv_action[]){PV_STORE(&f->table[slot], 0), PV_RETIRE(f->table[slot])}, 2);
}

int op_retire_replace(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	void **slot = &f->table[arg & 0xff], *object;
	int rc = fixture_object(f, arg >> 8, arg * 31 + 1, &object);

	if (rc)
		return rc;
	f->retired = *slot;
	return publish(f,
		       (struct pv_action[]){PV_LIVE(object), PV_STORE(slot, (uintptr_t)object),
					    PV_RETIRE(*slot)},
		       3);
}

int op_retire_many(void *ctx, uintptr_t slot)
{
	int rc = 0;

	for (unsigned i = 0; rc == 0 && i < FIXTURE_MANY; i++)
		rc = op_retire(ctx, slot + i);
	return rc;
}

/* One is freed and four are retired, as one. */
int op_retire_some(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	struct pv_action actions[10];
	unsigned n = 0;

	for (unsigned i = 0; i < 5; i++, slot++) {
		actions[n++] = PV_STORE(&f->table[slot], 0);
		actions[n++] = i == 0 ? PV_FREE(f->table[slot]) : PV_RETIRE(f->table[slot]);
	}
	return publish(f, actions, n);
}

static int retire_in_tx(struct fixture *f, uintptr_t slot, void *fresh)
{
	void **at = &f->table[slot], *old = *at;
	int rc = pv_tx_add(f->store, at, sizeof(*at));

	*at = fresh;
	return rc ? rc : pv_tx_retire(f->store, old);
}

int op_retire_tx(void *ctx, uintptr_t slots)
{
	struct fixture *f = ctx;
	void *fresh, *dropped;
	int rc = pv_tx_begin(f->store);

	if (!rc)
		rc = pv_tx_alloc(f->store, f->node_type, 64, &fresh);
	if (!rc)
		rc = pv_tx_alloc(f->store, f->node_type, 64, &dropped);
	if (rc)
		return rc;
	fixture_fill(fresh, 64, slots + 7);
	rc = retire_in_tx(f, slots & 0xff, fresh);
	if (!rc)
		rc = pv_tx_retire(f->store, dropped);
	if (!rc)
		rc = retire_in_tx(f, slots >> 8, NULL);
	return rc ? rc : pv_tx_commit(f->store);
}

int op_retire_tx_abort(void *ctx, uintptr_t slot)
{
	struct fixture *f = ctx;
	int rc = pv_tx_begin(f->store);

	if (!rc)
		rc = retire_in_tx(f, slot, NULL);
	return rc ? rc : pv_tx_abort(f->store);
}

int op_reclaim(void *ctx, uintptr_t unused)
{
	struct fixture *f = ctx;
	struct pv_check_report report;
	int rc = pv_retire_wait(f->store);

	if (rc == 0)
		rc = pv_check(f->store, NULL, &report);
	if (rc == 0 && report.retired_objects) {
		crash_note("%u objects are still retired", (unsigned)report.retired_objects);
		rc = -EDOM;
	}
	return rc;
}

int op_reclaim_link(void *ctx, uintptr_t arg)
{
	struct fixture *f = ctx;
	void *tried[80], **slot = &f->table[arg & 0xff];
	unsigned n = 0, best = 0;
	int rc = pv_retire_wait(f->store);

	while (rc == 0 && n < sizeof(tried) / sizeof(tried[0])) {
		rc = pv_reserve(f->store, f->node_type, arg >> 8, &tried[n]);
		if (rc == 0 && tried[n] == f->retired)
			best = n;
		n += rc == 0;
	}
	for (unsigned i = 0; i < n; i++)
		if (i != best)
			rc |= pv_cancel(f->store, tried[i]);
	if (rc)
		return rc;
	fixture_fill(tried[best], arg >> 8, arg);
	return publish(
		f,
		(struct pv_action[]){PV_LIVE(tried[best]), PV_STORE(slot, (uintptr_t)tried[best])},
		2);
}
