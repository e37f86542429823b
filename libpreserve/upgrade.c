/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Layout upgrade: registering types of which the store has another version. The functions are run over
 * every object of such a type, into new objects of a new type number, and the move engine (move.c) puts
 * all of them in force as one and brings pointers and roots up to date.
 *
 *	draft		the new layout is in the index under a number of its own; nobody finds it by name
 *	copies		reserved objects of that number, and their addresses in the engine's table
 *	commit		the engine's: from here on the draft is the type, its old number is `former`
 *
 * A crash before the commit leaves the draft, and slabs of reserved objects, which are free: the type is
 * as it was. Drafts and former numbers of which no page of the store is are used again by the next
 * upgrade.
 *
 * One thread has the store to itself, so nothing here is locked but what others' functions expect.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "upgrade.h"

/* ---- which types ---- */

/* Does the layout end in an array of references that is as long as the object? */
static bool ends_open(const struct pvi_type *t)
{
	for (uint32_t i = 0; i < t->nfields; i++)
		if (t->fields[i].count == PV_FLEXIBLE)
			return true;
	return false;
}

static int choose_type(struct pvi_upgrade_job *j, const struct pv_typedef *def)
{
	struct pvi_upgrade_type *c = &j->types[j->ntypes];
	const struct pvi_type *have;
	int err = pvi_upgrade_check(def);

	if (!err)
		err = pvi_typemap_flatten(def, &c->layout);
	if (err)
		return err;
	c->def = def;
	c->old_number = pvi_type_find(j->s, def->name);
	have = &j->s->index.types[c->old_number];
	if (!c->old_number || have->fingerprint == c->layout.fingerprint) {
		pvi_typemap_free(&c->layout);
		memset(c, 0, sizeof(*c));
		return 0;
	}
	j->ntypes++;
	if (!pvi_upgrade_find(def, have->version, have->bytes, &c->chain))
		return pvi_type_differs(have, &c->layout, def->nupgrades);
	if (have->flags & PV_TYPE_PINNED)
		return pvi_fail(-EPERM, "type %s: its objects are pinned, so they cannot be made anew",
				def->name);
	c->chain.most_bytes = have->bytes ? pvi_upgrade_usable(j->s, have->bytes) : 0;
	j->by_number[c->old_number] = j->ntypes;
	j->report.types = j->ntypes;
	if (ends_open(have) && !c->chain.steps[0]->size && !(c->chain.steps[0]->flags & PV_UPGRADE_TAIL))
		return pvi_fail(-EINVAL,
				"type %s: version %u ends in a flexible array, so its upgrade needs "
				"PV_UPGRADE_WITH_TAIL or PV_UPGRADE_SIZED",
				def->name, have->version);
	return 0;
}

static int choose_types(struct pvi_upgrade_job *j, const struct pv_typedef *const *defs, uint32_t n)
{
	j->types = calloc(n + 1ull, sizeof(*j->types));
	j->by_number = calloc(PV_TYPES_MAX + 1, sizeof(*j->by_number));
	if (!j->types || !j->by_number)
		return pvi_fail(-ENOMEM, "no memory to upgrade %u types", n);
	for (uint32_t i = 0; i < n; i++) {
		int err;

		for (uint32_t k = 0; k < i; k++)
			if (defs[i]->name && strcmp(defs[i]->name, defs[k]->name) == 0)
				return pvi_fail(-EEXIST, "type %s stands twice", defs[i]->name);
		err = choose_type(j, defs[i]);
		if (err)
			return err;
	}
	return 0;
}

/* ---- the new types ---- */

/* Mark the types of which there are pages. */
static void note_pages(const struct pv_store *s, bool *has_pages)
{
	for (uint32_t k = 0; k < s->nsegments; k++) {
		const struct pvi_segment *seg = &s->segments[k];

		for (uint32_t i = seg->first_page; i < seg->npages; i++) {
			uint64_t rec = pvi_rec_load(seg->map, i);

			if (pvi_page_kind(rec) == PV_PAGE_SLAB)
				has_pages[pvi_rec_type(rec) & PV_TYPES_MAX] = true;
			else if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
				has_pages[pvi_rec_extent_type(rec) & PV_TYPES_MAX] = true;
		}
	}
}

/* Are there magazines of the type? They know its size. */
static bool has_magazines(const struct pvi_type *t)
{
	for (uint32_t i = 0; t->bins && i < PVI_CLASSES; i++)
		if (t->bins[i].depot) /* made for the first one */
			return true;
	return false;
}

/* A number for a new layout: one that is not used any more, and of which this process has no magazines
 * that think of another size; else the next. 0: there is none. */
static uint32_t choose_number(struct pv_store *s, const struct pvi_type *layout, const bool *has_pages)
{
	for (uint32_t i = 1; i <= s->index.ntypes; i++) {
		const struct pvi_type *t = &s->index.types[i];

		if (t->state != PVI_TYPE_USED && !has_pages[i] && (t->bytes == layout->bytes || !has_magazines(t)))
			return i;
	}
	return s->index.ntypes < PV_TYPES_MAX ? ++s->index.ntypes : 0;
}

/* The layout and what the list has under its number change places; bins stay with the number. */
static void swap_layout(struct pv_store *s, struct pvi_upgrade_type *c)
{
	struct pvi_type *t = &s->index.types[c->number], was = *t;

	*t = c->layout;
	t->bins = was.bins;
	c->layout = was;
	c->layout.bins = NULL;
}

/* Name the new layouts in the index, before there is a slab of them. */
static int draft(struct pvi_upgrade_job *j)
{
	struct pv_store *s = j->s;
	bool *has_pages = calloc(PV_TYPES_MAX + 1, sizeof(*has_pages));
	uint32_t had = s->index.ntypes, placed = 0;
	uint64_t generation;
	int err = 0;

	if (!has_pages)
		return pvi_fail(-ENOMEM, "no memory to upgrade %u types", j->ntypes);
	pvi_types_lock(s);
	note_pages(s, has_pages);
	for (; placed < j->ntypes && !err; placed++) {
		struct pvi_upgrade_type *c = &j->types[placed];

		c->number = choose_number(s, &c->layout, has_pages);
		if (!c->number) {
			err = pvi_fail(-ENOSPC, "type %s: the store has %u types already", c->def->name,
				       PV_TYPES_MAX);
			break;
		}
		has_pages[c->number] = true;
		c->layout.state = PVI_TYPE_DRAFT;
		swap_layout(s, c);
	}
	if (!err)
		err = pvi_index_stage(&s->index, PVI_INDEX_SLACK, &generation);
	if (!err)
		pvi_index_commit(&s->index, generation);
	for (; err && placed > 0; placed--)
		swap_layout(s, &j->types[placed - 1]);
	if (err)
		s->index.ntypes = had;
	pvi_types_unlock(s);
	free(has_pages);
	return err;
}

/* The drafts are the types, or, if the engine did not commit, the old ones are again. */
static void change_types(struct pvi_upgrade_job *j, bool changed)
{
	pvi_types_lock(j->s);
	for (uint32_t i = 0; i < j->ntypes; i++) {
		struct pvi_type *types = j->s->index.types;

		types[j->types[i].old_number].state = changed ? PVI_TYPE_FORMER : PVI_TYPE_USED;
		types[j->types[i].number].state = changed ? PVI_TYPE_USED : PVI_TYPE_DRAFT;
	}
	pvi_types_unlock(j->s);
}

/* Without objects there is nothing to move, and the engine writes no index. */
static int commit(struct pvi_upgrade_job *j)
{
	uint64_t generation;
	int err;

	if (j->report.objects)
		return pvi_move_commit(j->move);
	pvi_move_cancel(j->move);
	pvi_types_lock(j->s);
	err = pvi_index_stage(&j->s->index, PVI_INDEX_SLACK, &generation);
	if (!err)
		pvi_index_commit(&j->s->index, generation);
	pvi_types_unlock(j->s);
	return err;
}

/* ---- all of it ---- */

static void moved(void *ctx, uint64_t done, uint64_t total)
{
	struct pvi_upgrade_job *j = ctx;

	j->report.moved = done;
	j->report.moved_all = total;
	pvi_upgrade_tell(j);
}

static int upgrade(struct pvi_upgrade_job *j)
{
	int err = pvi_move_begin(j->s, PV_MOVE_UPGRADE, &j->move);

	if (err)
		return err;
	err = pvi_upgrade_look(j);
	if (!err)
		err = draft(j);
	if (!err)
		err = pvi_upgrade_copy(j);
	if (err) {
		/* What is given back may say that it cannot be, but not instead of why. */
		pvi_move_cancel(j->move);
		return err;
	}
	j->move->progress = moved;
	j->move->ctx = j;
	pvi_upgrade_phase(j, PV_UPGRADE_MOVE);
	change_types(j, true);
	err = commit(j);
	if (err)
		change_types(j, false);
	else
		pvi_upgrade_phase(j, PV_UPGRADE_DONE);
	return err;
}

static int open_job(struct pvi_upgrade_job *j, struct pv_store *s, const struct pv_upgrade_options *opts,
		    const struct pv_typedef *const *defs, uint32_t n)
{
	*j = (struct pvi_upgrade_job){.s = s, .began_ns = pvi_upgrade_now_ns()};
	if (opts && (opts->size < sizeof(*opts) || opts->flags))
		return pvi_fail(-EINVAL, "pv_upgrade_options: size %zu, flags 0x%" PRIx64, opts->size,
				opts->flags);
	for (size_t i = sizeof(*opts); opts && i < opts->size; i++)
		if (((const uint8_t *) opts)[i])
			return pvi_fail(-EINVAL,
					"pv_upgrade_options has fields that this library does not know");
	if (opts)
		j->opts = *opts;
	return choose_types(j, defs, n);
}

static void close_job(struct pvi_upgrade_job *j, struct pv_upgrade_report *report)
{
	j->report.ns = pvi_upgrade_now_ns() - j->began_ns;
	if (report)
		*report = j->report;
	for (uint32_t i = 0; j->types && i < j->ntypes; i++)
		pvi_typemap_free(&j->types[i].layout);
	pvi_upgrade_room_free(&j->room);
	free(j->scratch);
	free(j->by_number);
	free(j->types);
}

/* Those that are not upgraded: new ones are recorded. */
static int register_others(struct pvi_upgrade_job *j, const struct pv_typedef *const *defs, uint32_t n,
			   pv_type_t *handles)
{
	for (uint32_t i = 0; i < n; i++) {
		bool changes = false;
		int err;

		for (uint32_t k = 0; k < j->ntypes; k++)
			changes |= j->types[k].def == defs[i];
		err = changes ? 0 : pv_type_register(j->s, defs[i], &handles[i]);
		if (err)
			return err;
	}
	return 0;
}

int pv_types_register(struct pv_store *s, const struct pv_typedef *const *defs, uint32_t n,
		      const struct pv_upgrade_options *opts, struct pv_upgrade_report *report,
		      pv_type_t *out)
{
	pv_type_t *handles = calloc(n + 1ull, sizeof(*handles));
	struct pvi_upgrade_job j;
	int err = open_job(&j, s, opts, defs, n);

	if (!err && !handles)
		err = pvi_fail(-ENOMEM, "no memory to register %u types", n);
	if (!err && j.ntypes && s->readonly)
		err = pvi_fail(-EPERM,
			       "type %s: its version %u in the store would have to be upgraded to %u, but the "
			       "store was opened read-only",
			       j.types[0].def->name, s->index.types[j.types[0].old_number].version,
			       j.types[0].def->version);
	if (!err)
		err = register_others(&j, defs, n, handles);
	if (!err && j.ntypes)
		err = upgrade(&j);
	for (uint32_t i = 0; i < n && !err; i++) {
		for (uint32_t k = 0; k < j.ntypes; k++)
			if (j.types[k].def == defs[i])
				handles[i] = j.types[k].number;
		out[i] = handles[i];
	}
	close_job(&j, report);
	free(handles);
	return err;
}

int pv_types_plan(struct pv_store *s, const struct pv_typedef *const *defs, uint32_t n,
		  const struct pv_upgrade_options *opts, struct pv_upgrade_report *report)
{
	struct pvi_upgrade_job j;
	int err = open_job(&j, s, opts, defs, n);

	if (!err && j.ntypes && s->base != s->index.base)
		err = pvi_fail(-EADDRINUSE,
			       "the store is mapped at 0x%" PRIxPTR ", its pointers belong to 0x%" PRIx64
			       ": functions cannot follow them",
			       s->base, s->index.base);
	if (!err && j.ntypes)
		err = pvi_upgrade_look(&j);
	if (!err && j.ntypes)
		err = pvi_upgrade_copy(&j);
	if (!err && j.ntypes)
		pvi_upgrade_phase(&j, PV_UPGRADE_DONE);
	close_job(&j, report);
	return err;
}
