/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sweep.c - one thread: traces all operations of a scenario one after the other, then walks the log
 * record by record and recovers every state on the way.
 */
#include <stdlib.h>
#include "engine.h"

struct op_trace {
	size_t start; /* log index */
	size_t end;   /* the call had returned */
	uint64_t before, after;
};

static bool rule_makes_sense(const struct crash_op *op, const struct op_trace *t)
{
	if (t->after == 0) {
		ct_fail(CRASH_FAIL_BROKEN, "the store is broken after the operation");
		return false;
	}
	if ((op->rule == CRASH_ATOMIC || op->rule == CRASH_STEPS) && t->before == t->after) {
		ct_fail(CRASH_FAIL_SETUP, "the operation had no visible effect");
		return false;
	}
	if (op->rule == CRASH_UNCHANGED && t->before != t->after) {
		ct_fail(CRASH_FAIL_ILLEGAL, "the operation changed the fingerprint");
		return false;
	}
	if (op->rule == CRASH_CUSTOM && !op->legal) {
		ct_fail(CRASH_FAIL_SETUP, "CRASH_CUSTOM needs a legal()");
		return false;
	}
	return true;
}

/* Runs setup and operations; afterwards the log is complete and the store closed. */
static bool trace_ops(struct op_trace *traces, struct ct_image *base)
{
	const struct crash_scenario *sc = ct.scenario;
	uint64_t fingerprint, began;
	bool ok = true;
	int rc = sc->setup(sc->ctx);

	if (rc != 0) {
		ct_fail(CRASH_FAIL_SETUP, "setup() returned %d", rc);
		return false;
	}
	fingerprint = sc->check(sc->ctx);
	if (fingerprint == 0) {
		ct_fail(CRASH_FAIL_SETUP, "the store is broken after setup()");
		return false;
	}
	began = ct_now_ns();
	ct.split_wide = !sc->keep_wide_stores;
	ct_trace_begin();
	ct_image_copy(base, &ct.shadow);
	for (size_t i = 0; ok && i < sc->n_ops; i++) {
		ct.report->at.op = (int)i;
		traces[i].start = ct.log.n;
		traces[i].before = fingerprint;
		rc = sc->ops[i].run(sc->ctx, sc->ops[i].arg);
		traces[i].end = ct.log.n;
		ok = ct_trace_verify();
		if (rc != 0) {
			ct_fail(CRASH_FAIL_SETUP, "the operation returned %d", rc);
			ok = false;
			break;
		}
		fingerprint = traces[i].after = sc->check(sc->ctx);
		ok &= rule_makes_sense(&sc->ops[i], &traces[i]);
	}
	ct.report->records = ct.log.n;
	ok &= ct_trace_end(true);
	ct.report->trace_ns = ct_now_ns() - began;
	sc->close(sc->ctx);
	ct_pool_clear();
	return ok;
}

/* What was seen of one operation so far. */
struct progress {
	bool seen_after;
	uint64_t last;
	uint64_t *left; /* CRASH_STEPS: states that were left */
	size_t n_left, cap_left;
};

static bool step_back(struct progress *p, uint64_t got)
{
	if (got == p->last)
		return false;
	for (size_t i = 0; i < p->n_left; i++) {
		if (p->left[i] == got)
			return true;
	}
	if (p->n_left == p->cap_left) {
		p->cap_left = p->cap_left ? 2 * p->cap_left : 64;
		p->left = realloc(p->left, p->cap_left * sizeof(*p->left));
		if (!p->left)
			ct_panic("no memory for the states of an operation");
	}
	p->left[p->n_left++] = p->last;
	return false;
}

static bool is_legal(const struct crash_op *op, const struct op_trace *t, struct progress *p,
		     uint64_t got, bool returned)
{
	struct crash_verdict v = {
		.before = t->before,
		.after = t->after,
		.got = got,
		.seen_after = p->seen_after,
		.returned = returned,
	};
	bool ok = false;

	switch (op->rule) {
	case CRASH_ATOMIC:
		ok = got == t->after || (got == t->before && !p->seen_after);
		break;
	case CRASH_UNCHANGED:
		ok = got == t->before;
		break;
	case CRASH_STEPS:
		ok = !step_back(p, got) && (!p->seen_after || got == t->after);
		break;
	case CRASH_CUSTOM:
		ok = op->legal(ct.scenario->ctx, &v);
		break;
	}
	p->seen_after |= got == t->after;
	p->last = got;
	return ok;
}

static void judge(size_t op, const struct op_trace *t, struct progress *p, uint64_t got,
		  bool returned, size_t log_index)
{
	const struct crash_op *o = &ct.scenario->ops[op];
	bool back = p->seen_after && got == t->before;
	struct crash_failure *f;

	if (got == 0)
		return; /* already reported */
	if (returned && got != t->after && o->rule != CRASH_CUSTOM)
		f = ct_fail(CRASH_FAIL_NOT_DURABLE,
			    "the operation had returned, its effect is lost");
	else if (!is_legal(o, t, p, got, returned))
		f = ct_fail(CRASH_FAIL_ILLEGAL, "%s",
			    back ? "back to the state before, after the new one was seen"
				 : "recovered to a state that is not allowed");
	else
		return;
	f->before = t->before;
	f->after = t->after;
	f->got = got;
	ct_fail_stores(f, log_index, ct.report->records);
}

/* All states of one operation. got: what the state at its start recovered to. */
static uint64_t replay_op(struct ct_walk *walk, struct ct_image *image, size_t op,
			  const struct op_trace *t, size_t next_start, uint64_t got)
{
	struct progress p = {.last = t->before};
	long only = walk->options->only_prefix;
	bool pending = false;
	uint64_t hash;

	ct.report->at.op = (int)op;
	for (size_t i = t->start; i < next_start; i++) {
		const struct ct_record *r = &ct.log.records[i];

		if (i == t->end && got && only < 0)
			judge(op, t, &p, got, true, i - 1);
		pending |= ct_image_survives(image, r);
		ct_image_apply(image, r);
		if (!pending || (r->flags & CT_JOINED))
			continue;
		pending = false;
		ct.report->crash_points++;
		ct.report->at.prefix = (long)i + 1;
		if (only >= 0 && (long)i + 1 != only)
			continue;
		got = ct_walk_visit(walk, image, 0, i, &hash);
		judge(op, t, &p, got, i >= t->end, i);
		if (ct_enough())
			break;
	}
	if (got && only < 0 && !ct_enough())
		judge(op, t, &p, got, true, next_start - 1);
	free(p.left);
	return got;
}

static void replay_ops(const struct op_trace *traces, struct ct_image *image)
{
	const struct crash_scenario *sc = ct.scenario;
	static struct ct_walk walk;
	uint64_t got = 0, hash;

	ct_walk_init(&walk);
	ct.report->at.op = -1;
	ct.report->at.prefix = 0;
	if (walk.options->only_prefix <= 0) {
		got = ct_walk_visit(&walk, image, 0, CT_NO_RECORD, &hash);
		ct.report->crash_points++;
		if (got && got != traces[0].before) {
			struct crash_failure *f =
				ct_fail(CRASH_FAIL_ILLEGAL,
					"not even the state before the first operation recovers");

			f->before = f->after = traces[0].before;
			f->got = got;
		}
	}
	for (size_t i = 0; i < sc->n_ops && !ct_enough(); i++) {
		size_t next = i + 1 < sc->n_ops ? traces[i + 1].start : ct.report->records;

		got = replay_op(&walk, image, i, &traces[i], next, got);
	}
	ct_walk_free(&walk);
}

void ct_sweep_run(void)
{
	static struct ct_image image;
	struct op_trace *traces = calloc(ct.scenario->n_ops + 1, sizeof(*traces));
	uint64_t began;

	if (!traces)
		ct_panic("no memory for %zu operations", ct.scenario->n_ops);
	if (trace_ops(traces, &image)) {
		if (ct.options->dump_log) {
			for (size_t i = 0; i < ct.log.n; i++)
				ct_log_print(&ct.log.records[i], i);
		}
		began = ct_now_ns();
		replay_ops(traces, &image);
		ct.report->replay_ns = ct_now_ns() - began;
	}
	ct_pool_clear();
	ct_image_free(&image);
	free(traces);
}
