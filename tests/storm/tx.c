/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transactions of the storm: several cells at once, whose objects are rewritten in place, replaced,
 * put in or freed; with an intent in the middle, a second level, a log that goes on in chunks;
 * aborted at times, or left open by a thread that ends.
 */
#include <string.h>

#include <preserve/retire.h>
#include <preserve/tx.h>

#include "storm.h"

#define TX_CELLS 4u

struct plan {
	unsigned int places[TX_CELLS];
	unsigned int n;
};

static void plan_cells(struct storm_thread *t, struct plan *p)
{
	unsigned int want = 1 + (unsigned int)storm_below(&t->random, TX_CELLS);

	p->n = 0;
	for (unsigned int i = 0; i < want; i++) {
		unsigned int place = (unsigned int)storm_below(&t->random, STORM_SHARED);

		if (storm_take(place))
			p->places[p->n++] = place;
	}
}

/* In place: the same object with other contents. */
static bool can_rewrite(const struct storm_thread *t, unsigned int place)
{
	uint64_t value = t->log->values[place];

	return value && STORM_BYTES(value) < 2000;
}

/* What the transaction will have done to a cell. */
static uint64_t planned_value(struct storm_thread *t, unsigned int place)
{
	uint64_t value = t->log->values[place], what = storm_below(&t->random, 10);

	if (can_rewrite(t, place) && what < 5)
		return storm_new_value(t, STORM_BYTES(value));
	if (value && what < 7)
		return 0;
	return storm_new_value(t, storm_size(t));
}

static bool add(struct storm_thread *t, void *p, size_t bytes)
{
	return storm_ok(t, "pv_tx_add", pv_tx_add(t->st->s, p, bytes));
}

static bool set_cell(struct storm_thread *t, unsigned int place, struct storm_object *object,
		     uint64_t value)
{
	struct storm_cell *cell = &t->st->table->cells[place];

	if (!add(t, cell, sizeof(*cell)))
		return false;
	cell->object = object;
	cell->word = place % 2 ? 0 : value;
	return true;
}

static bool drop(struct storm_thread *t, struct storm_object *old)
{
	if (storm_below(&t->random, 4))
		return storm_ok(t, "pv_tx_free", pv_tx_free(t->st->s, old));
	return storm_ok(t, "pv_tx_retire", pv_tx_retire(t->st->s, old));
}

static bool change_cell(struct storm_thread *t, unsigned int place, uint64_t before, uint64_t after)
{
	struct storm_object *old = t->st->table->cells[place].object, *fresh;
	void *p;

	if (before && after && STORM_BYTES(before) == STORM_BYTES(after)) {
		if (!add(t, old, STORM_BYTES(after)))
			return false;
		storm_fill(old, STORM_CELL_KEY, after);
		return set_cell(t, place, old, after);
	}
	if (old && !drop(t, old))
		return false;
	if (!after)
		return set_cell(t, place, NULL, 0);
	if (!storm_ok(t, "pv_tx_alloc",
		      pv_tx_alloc(t->st->s, t->st->types[storm_below(&t->random, 2)],
				  STORM_BYTES(after), &p)))
		return false;
	fresh = p;
	storm_fill(fresh, STORM_CELL_KEY, after);
	return set_cell(t, place, fresh, after);
}

/* The table's cells again and again: what is in the log's first entry is put back last. */
static bool make_long(struct storm_thread *t, unsigned int place)
{
	struct storm_cell *cell = &t->st->table->cells[place];

	for (size_t bytes = 0; bytes < 12 << 10; bytes += 32)
		if (!add(t, cell, sizeof(*cell)))
			return false;
	return true;
}

static bool begin(struct storm_thread *t)
{
	return storm_ok(t, "pv_tx_begin", pv_tx_begin(t->st->s));
}

static bool change_cells(struct storm_thread *t, const struct storm_group *g)
{
	bool deep = storm_below(&t->random, 8) == 0, ok = !deep || begin(t);

	if (ok && storm_below(&t->random, 40) == 0)
		ok = make_long(t, (unsigned int)g->changes[0].place);
	for (uint32_t i = 0; ok && i < g->n; i++) {
		const struct storm_change *c = &g->changes[i];

		ok = change_cell(t, (unsigned int)c->place, c->before, c->after);
		if (storm_below(&t->random, 8) == 0)
			storm_op_cell(t, &t->groups[1]); /* in effect at once */
	}
	if (ok && deep)
		ok = storm_ok(t, "pv_tx_commit", pv_tx_commit(t->st->s));
	return ok;
}

static void abort_all(struct storm_thread *t)
{
	int rc = pv_tx_abort(t->st->s);

	/* One call undoes all levels, and the outer ones still have to be left. */
	while (!rc && pv_tx_depth(t->st->s))
		rc = pv_tx_commit(t->st->s) == -ECANCELED ? 0 : -EDOM;
	storm_ok(t, "pv_tx_abort", rc);
}

void storm_op_tx(struct storm_thread *t)
{
	struct storm_group *g = &t->groups[0];
	struct plan p;
	bool commit;

	plan_cells(t, &p);
	if (!p.n)
		return;
	for (unsigned int i = 0; i < p.n; i++)
		storm_change(t->log, g, p.places[i], planned_value(t, p.places[i]));
	/* One that is going to be aborted must not be found done. */
	commit = storm_below(&t->random, 5) != 0;
	if (commit)
		storm_pend(g);
	if (begin(t)) {
		if (change_cells(t, g) && commit &&
		    storm_ok(t, "pv_tx_commit", pv_tx_commit(t->st->s)))
			storm_done(t->log, g);
		else
			abort_all(t);
	}
	storm_undone(g);
	for (unsigned int i = 0; i < p.n; i++)
		storm_leave(p.places[i]);
}

bool storm_leave_open(struct storm_thread *t, unsigned int *place)
{
	*place = (unsigned int)storm_below(&t->random, STORM_SHARED);
	if (!storm_take(*place))
		return false;
	if (begin(t))
		change_cell(t, *place, t->log->values[*place], storm_new_value(t, storm_size(t)));
	return true;
}
