/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * walk.c - recovers one image, checks it, and does the same for every state in which a process can
 * die during that very recovery. Those must all recover to what the uninterrupted recovery reached.
 *
 * The log is used as a stack: the stores of a traced recovery lie above those of the operation, and
 * are dropped when the nested states have been seen.
 */
#include <stdio.h>
#include <string.h>
#include "engine.h"

void ct_walk_init(struct ct_walk *walk)
{
	memset(walk, 0, sizeof(*walk));
	walk->scenario = ct.scenario;
	walk->options = ct.options;
	walk->max_depth =
		ct.options->depth < CRASH_MAX_DEPTH ? ct.options->depth : (unsigned)CRASH_MAX_DEPTH;
}

void ct_walk_free(struct ct_walk *walk)
{
	for (unsigned i = 0; i <= CRASH_MAX_DEPTH; i++)
		ct_image_free(&walk->levels[i]);
}

/* Recovers, traced or not; the store is open afterwards. False after a failure. */
static bool recover(const struct ct_walk *walk, const struct ct_image *image, bool traced)
{
	const struct crash_scenario *sc = walk->scenario;
	struct crash_image to = {0};
	size_t nr = ct.report->replays++;
	bool ok = true;
	int rc;

	ct.report->note[0] = '\0';
	ct_pool_restore(image);
	ct_pool_export(image, &to, sc->any_order && (nr & 2));
	if (sc->other_base && (nr & 1))
		to.flags |= CRASH_OTHER_BASE;
	ct.split_wide = walk->options->split_nested && !sc->keep_wide_stores;
	if (traced)
		ct_trace_begin();
	rc = sc->recover(sc->ctx, &to);
	if (traced)
		ok = ct_trace_end(nr % 64 == 0);
	if (rc != 0) {
		struct crash_failure *f = ct_fail(CRASH_FAIL_REFUSED, "recover() returned %d", rc);

		f->at_flags = to.flags;
		return false;
	}
	return ok;
}

/* Of a recovery: its stores; of a long one only the pages it stores to, one after the other,
 * because it copies something in bulk, and which words of that change differs from state to state.
 */
static uint64_t signature(size_t from, size_t to)
{
	bool bulk = to - from > CT_BULK_RECORDS;
	uint64_t hash = bulk, page = 0;

	for (size_t i = from; i < to; i++) {
		const struct ct_record *r = &ct.log.records[i];
		uint64_t place = ((uint64_t)r->slot << 48) | r->off;

		if (bulk && r->kind == CT_WORD && place / CT_PAGE_BYTES == page)
			continue;
		page = place / CT_PAGE_BYTES;
		hash = (hash ^ (bulk ? page : place)) * 0x9e3779b97f4a7c15ull;
		hash = (hash ^ (bulk ? 0 : r->new_value) ^ (hash >> 29)) * 0xbf58476d1ce4e5b9ull;
	}
	return hash | 1;
}

/* Has there been a recovery with this signature? *times: how often. */
static bool seen_recovery(struct ct_walk *walk, size_t from, size_t to, size_t *times)
{
	uint64_t hash = signature(from, to);
	struct ct_seen *s;

	for (size_t at = hash;; at++) {
		s = &walk->seen[at % CT_SEEN_RECOVERIES];
		if (s->signature == hash || s->signature == 0)
			break;
		if (at - hash == 16) { /* crowded: forget one */
			s->times = 0;
			break;
		}
	}
	*times = s->signature == hash ? s->times : 0;
	s->signature = hash;
	s->times = *times + 1;
	return *times > 0;
}

/* Every crash inside the recovery whose records are log[from..to). */
static bool visit_nested(struct ct_walk *walk, const struct ct_image *image, unsigned depth,
			 size_t from, size_t to, uint64_t expected, uint64_t expected_hash)
{
	struct ct_image *level = &walk->levels[depth];
	long only = depth == 0 ? walk->options->only_nested : -1;
	size_t stride = 1, turn = 0;
	long *at = &ct.report->at.nested[depth];
	bool pending = false, ok = true;

	if (walk->options->stride > 1 && only < 0 && seen_recovery(walk, from, to, &turn))
		stride = walk->options->stride;
	ct_image_copy(level, image);
	for (size_t i = from; ok && i < to; i++) {
		const struct ct_record *r = &ct.log.records[i];
		uint64_t got, hash;

		pending |= ct_image_survives(level, r);
		ct_image_apply(level, r);
		if (!pending || (r->flags & CT_JOINED))
			continue;
		pending = false;
		*at = (long)(i + 1 - from);
		if ((only >= 0 && *at != only) || (i + turn) % stride != 0)
			continue;
		ct.report->nested_replays++;
		got = ct_walk_visit(walk, level, depth + 1, i, &hash);
		if (got == 0) {
			ok = false;
		} else if (got != expected || (walk->scenario->exact && hash != expected_hash)) {
			struct crash_failure *f = ct_fail(
				CRASH_FAIL_NESTED, "recovery that was itself interrupted %s",
				got != expected ? "reached another state" : "left other bytes");

			f->before = f->after = expected;
			f->got = got;
			ct_fail_stores(f, i, to);
			ok = false;
		}
	}
	*at = -1;
	return ok;
}

static void dump_recovery(size_t from, size_t to)
{
	printf("# the recovery:\n");
	for (size_t i = from; i < to; i++)
		ct_log_print(&ct.log.records[i], i - from);
}

uint64_t ct_walk_visit(struct ct_walk *walk, const struct ct_image *image, unsigned depth,
		       size_t log_index, uint64_t *hash)
{
	const struct crash_scenario *sc = walk->scenario;
	bool traced = depth < walk->max_depth;
	size_t mark = ct.log.n, end;
	uint64_t fingerprint = 0;
	unsigned failures = ct.report->n_failures;

	*hash = 0;
	if (recover(walk, image, traced)) {
		end = ct.log.n;
		fingerprint = sc->check(sc->ctx);
		if (walk->options->dump_log && walk->options->only_prefix >= 0 && depth == 0)
			dump_recovery(mark, end);
		if (fingerprint == 0)
			ct_fail(CRASH_FAIL_BROKEN, "the checker found the recovered store broken");
		else if (sc->exact)
			*hash = ct_pool_hash();
		/* Nested states end up where the others do; some of them will do. */
		if (fingerprint && sc->probe && (depth == 0 || ct.report->replays % 8 == 0) &&
		    sc->probe(sc->ctx) != 0) {
			ct_fail(CRASH_FAIL_BROKEN, "the recovered store cannot be used");
			fingerprint = 0;
		}
		sc->close(sc->ctx);
		if (fingerprint && traced &&
		    !visit_nested(walk, image, depth, mark, end, fingerprint, *hash))
			fingerprint = 0;
	} else {
		sc->close(sc->ctx);
	}
	for (unsigned i = failures; i < ct.report->n_failures; i++) {
		if (!ct.report->failures[i].last.valid)
			ct_fail_stores(&ct.report->failures[i], log_index, mark);
	}
	ct.log.n = mark;
	return fingerprint;
}
