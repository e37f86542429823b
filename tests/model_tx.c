/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transactions of test_model.c: cells are swapped, filled, emptied, their objects rewritten in
 * place, with an intent about another cell in the middle, which is in effect whatever comes of the
 * transaction; then it is committed, aborted, or the process dies.
 */
#include "model.h"

struct history {
	struct model *m;
	struct thing before[NCELLS]; /* what an abort goes back to */
	bool touched[NCELLS];	     /* by the transaction */
	bool own[NCELLS];	     /* the object was allocated in it */
};

static bool note(struct history *h, void *p, size_t bytes)
{
	return !model_room(h->m, pv_tx_add(h->m->s, p, bytes));
}

static int some_cell(struct history *h)
{
	return (int)random_below(&h->m->random, NCELLS);
}

static void swap_cells(struct history *h)
{
	struct model *m = h->m;
	int a = some_cell(h), b = some_cell(h);
	struct thing t = m->cells[a];
	bool own = h->own[a];

	if (!note(h, &m->table->cells[a], 8) || !note(h, &m->table->cells[b], 8))
		return;
	m->table->cells[a] = m->cells[b].p;
	m->table->cells[b] = t.p;
	m->cells[a] = m->cells[b];
	m->cells[b] = t;
	h->own[a] = h->own[b];
	h->own[b] = own;
	h->touched[a] = h->touched[b] = true;
}

static void fill_cell(struct history *h)
{
	struct model *m = h->m;
	int i = some_cell(h);
	struct thing t = model_thing(m);

	if (m->cells[i].p || model_room(m, pv_tx_alloc(m->s, t.type, t.bytes, &t.p)))
		return;
	pattern_fill(t.p, t.bytes, t.seed);
	if (!note(h, &m->table->cells[i], 8)) {
		assert_ok(pv_tx_free(m->s, t.p)); /* it was never live */
		return;
	}
	m->table->cells[i] = t.p;
	m->cells[i] = t;
	h->touched[i] = h->own[i] = true;
}

static void empty_cell(struct history *h)
{
	struct model *m = h->m;
	int i = some_cell(h);
	bool retire = !h->own[i] && random_below(&m->random, 3) == 0;
	void *p = m->cells[i].p;

	if (!p || !note(h, &m->table->cells[i], 8))
		return;
	assert_ok(retire ? pv_tx_retire(m->s, p) : pv_tx_free(m->s, p));
	m->nretired += retire;
	assert_fails(pv_tx_free(m->s, p), -EINVAL, "");
	m->table->cells[i] = NULL;
	m->cells[i] = (struct thing){0};
	h->touched[i] = true;
	h->own[i] = false;
}

static void rewrite(struct history *h)
{
	struct model *m = h->m;
	int i = some_cell(h);
	struct thing *t = &m->cells[i];

	if (!t->p || (!h->own[i] && !note(h, t->p, t->bytes)))
		return;
	h->touched[i] = true;
	t->seed = random_next(&m->random) | 1;
	pattern_fill(t->p, t->bytes, t->seed);
}

/* In effect at once: the model before the transaction has it, too. */
static void intent(struct history *h)
{
	struct model *m = h->m;
	int i = some_cell(h);
	struct thing t = model_thing(m);

	if (h->touched[i])
		return;
	if (m->cells[i].p) {
		assert_ok(pv_free(m->s, &m->table->cells[i]));
		m->cells[i] = h->before[i] = (struct thing){0};
		return;
	}
	if (model_room(m, pv_reserve(m->s, t.type, t.bytes, &t.p)))
		return;
	pattern_fill(t.p, t.bytes, t.seed);
	assert_ok(pv_publish(
		m->s,
		(struct pv_action[]){PV_LIVE(t.p), PV_STORE(&m->table->cells[i], (uintptr_t)t.p)},
		2));
	m->cells[i] = h->before[i] = t;
}

static void go_back(struct history *h)
{
	memcpy(h->m->cells, h->before, sizeof(h->before));
	h->m->undone++;
}

static void finish(struct history *h, unsigned int depth)
{
	struct model *m = h->m;
	uint64_t how = random_below(&m->random, 100);
	int err = 0;

	if (how < 8) {
		go_back(h);
		model_reattach(m, true);
		return;
	}
	for (; how < 70 && !err && depth; depth--)
		err = model_room(m, pv_tx_commit(m->s));
	if (how < 70 && !err) {
		m->committed++;
		return;
	}
	assert_ok(pv_tx_abort(m->s));
	while (pv_tx_depth(m->s))
		assert_fails(pv_tx_commit(m->s), -ECANCELED, "");
	go_back(h);
}

void model_tx(struct model *m)
{
	static void (*const steps[])(struct history *) = {
		swap_cells, fill_cell, fill_cell, empty_cell, empty_cell, rewrite, rewrite, intent,
	};
	struct history *h = calloc(1, sizeof(*h));
	unsigned int depth = 1;
	uint64_t n = 1 + random_below(&m->random, random_below(&m->random, 8) ? 8 : 60);

	assert_non_null(h);
	h->m = m;
	memcpy(h->before, m->cells, sizeof(h->before));
	assert_ok(pv_tx_begin(m->s));
	while (n--) {
		steps[random_below(&m->random, 8)](h);
		if (random_below(&m->random, 20) == 0) {
			assert_ok(pv_tx_begin(m->s));
			depth++;
		}
	}
	assert_int_equal(pv_tx_depth(m->s), depth);
	finish(h, depth);
	assert_int_equal(pv_tx_depth(m->s), 0);
	free(h);
}
