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
#include <time.h>

#include "move.h"
#include "typemap.h"
#include "upgrade.h"

#define TELL_EVERY 65536u /* objects */

/** A type that is upgraded. */
struct changed {
	const struct pv_typedef *def;
	struct pvi_type layout; /* the new one; moved into the index's list by the draft */
	uint32_t old_number;
	uint32_t number; /* of the draft */
	struct pvi_upgrade_chain chain;
};

struct job {
	struct pv_store *s;
	struct pv_upgrade_options opts;
	struct pv_upgrade_report report;
	struct changed *types;
	uint32_t ntypes;
	uint32_t *by_number; /* old type number -> its place in `types` plus one; 0: does not change */
	struct pvi_move *move; /* NULL: a dry run */
	struct pvi_upgrade_room room;
	uint8_t *scratch; /* in a dry run, the new object */
	size_t scratch_bytes;
	uint64_t began_ns;
	/* While fields of an object are looked at: the object, its type, and where it lies in memory. */
	const struct pvi_type *type;
	const void *object;
	uintptr_t at;
	size_t at_bytes;
};

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

static void tell(struct job *j)
{
	j->report.ns = now_ns() - j->began_ns;
	if (j->opts.progress)
		j->opts.progress(j->opts.ctx, &j->report);
}

static void begin_phase(struct job *j, enum pv_upgrade_phase phase)
{
	j->report.phase = phase;
	tell(j);
}

/* What an object of so many bytes has; 0: there can be none. */
static size_t usable_for(const struct pv_store *s, size_t bytes)
{
	size_t page = (size_t) 1 << s->page_shift;

	if (bytes <= s->classes[s->nclasses - 1].slot_bytes)
		return s->classes[pvi_class_of(bytes)].slot_bytes;
	return bytes > s->window_bytes ? 0 : (bytes + page - 1) & ~(page - 1);
}

/* ---- which types ---- */

/* Does the layout end in an array of references that is as long as the object? */
static bool ends_open(const struct pvi_type *t)
{
	for (uint32_t i = 0; i < t->nfields; i++)
		if (t->fields[i].count == PV_FLEXIBLE)
			return true;
	return false;
}

static int choose_type(struct job *j, const struct pv_typedef *def)
{
	struct changed *c = &j->types[j->ntypes];
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
	c->chain.most_bytes = have->bytes ? usable_for(j->s, have->bytes) : 0;
	j->by_number[c->old_number] = j->ntypes;
	j->report.types = j->ntypes;
	if (ends_open(have) && !c->chain.steps[0]->size && !(c->chain.steps[0]->flags & PV_UPGRADE_TAIL))
		return pvi_fail(-EINVAL,
				"type %s: version %u ends in a flexible array, so its upgrade needs "
				"PV_UPGRADE_WITH_TAIL or PV_UPGRADE_SIZED",
				def->name, have->version);
	return 0;
}

static int choose_types(struct job *j, const struct pv_typedef *const *defs, uint32_t n)
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

/* ---- pointers ---- */

/* By the page map: what is said of names_middle(), for pages that are not in a warm slab. */
static bool names_middle_slow(const struct job *j, uint64_t off)
{
	const struct pv_store *s = j->s;
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	const struct pvi_class *c;
	uint32_t page, back = 0, slot;
	uint64_t rec, in;

	if (!seg || off - seg->data_off >= seg->data_bytes)
		return false;
	off -= seg->off;
	page = (uint32_t) (off >> s->page_shift);
	rec = pvi_rec_load(seg->map, page);
	if (pvi_page_kind(rec) == PV_PAGE_SLAB)
		back = pvi_rec_back(rec);
	else if (pvi_page_kind(rec) == PV_PAGE_OTHER)
		back = pvi_rec_other_back(rec);
	if (back > page)
		return false;
	rec = pvi_rec_load(seg->map, page - back);
	in = off - ((uint64_t) (page - back) << s->page_shift);
	if (!pvi_page_head_sound(s, seg, page - back, rec))
		return false;
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
		return in && j->by_number[pvi_rec_extent_type(rec) & PV_TYPES_MAX];
	c = &s->classes[pvi_rec_class(rec)];
	slot = (uint32_t) (in / c->slot_bytes);
	return j->by_number[pvi_rec_type(rec) & PV_TYPES_MAX] && in % c->slot_bytes &&
	       slot < c->nslots && pvi_slab_bytes(s, seg, page - back, rec)[slot] == PV_SLOT_LIVE;
}

/* Is it a place inside of a live object of a type that changes, and not its start? */
static bool names_middle(const struct job *j, uint64_t address)
{
	const struct pv_store *s = j->s;
	uint64_t off = address - s->index.base, in;
	const struct pvi_page *page;
	uint32_t slot;
	bool start;

	if (off >= s->window_bytes)
		return false;
	page = pvi_store_page(s, off);
	if (!page->slab)
		return names_middle_slow(j, off);
	if (!j->by_number[pvi_bin_type(page->bin)])
		return false;
	in = s->base + off - (uintptr_t) page->slab;
	slot = pvi_page_slot(in / 16, page->reciprocal, &start);
	return (in % 16 || !start) && in / 16 < page->grid_units && page->bytes[slot] == PV_SLOT_LIVE;
}

/* A field of an object of a type that does not change, or of a new object. */
static int look_at_field(void *ctx, uint8_t *at, const struct pvi_field *field)
{
	struct job *j = ctx;
	uint64_t to = pvi_field_target(field, at, j->s->index.base);

	if (!to || to - j->at < j->at_bytes || !names_middle(j, to))
		return 0;
	j->report.failed = j->object;
	return pvi_fail(-EINVAL,
			"type %s: %s of the object at %p is 0x%" PRIx64 ", which is inside of an object that "
			"changes its layout",
			j->type->name, field->name, j->object, to);
}

/* The same, of what a function has made: it may have left anything there. */
static int look_at_fresh(void *ctx, uint8_t *at, const struct pvi_field *field)
{
	struct job *j = ctx;
	uint64_t to = pvi_field_target(field, at, j->s->index.base);

	if (to - j->s->index.base < j->s->window_bytes || !to || to - j->at < j->at_bytes)
		return look_at_field(ctx, at, field);
	j->report.failed = j->object;
	return pvi_fail(-EINVAL,
			"type %s: the upgrade of the object at %p has left 0x%" PRIx64
			" in %s, which is outside of the store",
			j->type->name, j->object, to, field->name);
}

/* ---- objects ---- */

static int look_at_object(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	struct job *j = ctx;

	j->type = &j->s->index.types[type];
	j->object = object;
	j->at_bytes = 0;
	return pvi_typemap_visit(j->type, object, bytes, look_at_field, j);
}

static int count_object(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	struct job *j = ctx;

	(void) object, (void) bytes, (void) type;
	j->report.objects_all++;
	return 0;
}

/* Count, and in a dry run find what the engine would refuse. */
static int look(struct job *j)
{
	int err = 0;

	begin_phase(j, PV_UPGRADE_LOOK);
	for (uint32_t i = 1; i <= j->s->index.ntypes && !err; i++) {
		if (j->by_number[i])
			err = pv_iterate(j->s, i, count_object, j);
		else if (!j->move && j->s->index.types[i].has_pointers)
			err = pv_iterate(j->s, i, look_at_object, j);
	}
	return err;
}

/* Where the new object is made: `usable` zero bytes. */
static int make_fresh(struct job *j, const struct changed *c, size_t bytes, uint8_t **out, size_t *usable)
{
	void *fresh;
	int err;

	*usable = usable_for(j->s, bytes);
	if (*usable < bytes)
		return pvi_fail(-ENOSPC, "%zu bytes do not fit into the store's window", bytes);
	if (j->move) {
		err = pv_reserve(j->s, c->number, bytes, &fresh);
		if (err)
			return err;
	} else if (*usable <= j->scratch_bytes) {
		fresh = j->scratch;
	} else {
		fresh = realloc(j->scratch, *usable);
		if (!fresh)
			return pvi_fail(-ENOMEM, "no memory for %zu bytes", *usable);
		j->scratch = fresh;
		j->scratch_bytes = *usable;
	}
	*out = memset(fresh, 0, *usable);
	return 0;
}

static int fill_fresh(struct job *j, const struct changed *c, void *object, uint8_t *fresh, size_t bytes,
		      size_t usable, const struct pv_upgrade **step)
{
	int err = pvi_upgrade_end(&c->chain, &j->room, fresh, bytes, step);

	if (err)
		return err;
	*step = NULL;
	/* In a dry run, the new layout is in no index. */
	j->type = j->move ? &j->s->index.types[c->number] : &c->layout;
	j->object = object;
	j->at = (uintptr_t) fresh;
	j->at_bytes = usable;
	err = j->type->has_pointers ? pvi_typemap_visit(j->type, fresh, usable, look_at_fresh, j) : 0;
	return err || !j->move ? err : pvi_move_add(j->move, object, fresh);
}

static int copy_object(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	struct job *j = ctx;
	const struct changed *c = &j->types[j->by_number[type] - 1];
	const struct pv_upgrade *step = NULL;
	size_t fresh_bytes, usable = 0;
	uint8_t *fresh = NULL;
	int err;

	if (bytes < c->chain.bytes[0])
		err = pvi_fail(-EBADMSG, "type %s: the object at %p has %zu bytes, less than the struct of %u",
			       c->def->name, object, bytes, c->chain.bytes[0]);
	else
		err = pvi_upgrade_start(&c->chain, &j->room, object, bytes, &fresh_bytes, &step);
	if (!err) {
		step = NULL;
		err = make_fresh(j, c, fresh_bytes, &fresh, &usable);
	}
	if (!err)
		err = fill_fresh(j, c, object, fresh, fresh_bytes, usable, &step);
	if (err) {
		j->report.failed = object;
		j->report.failed_from = step ? step->from : 0;
		j->report.failed_to = step ? step->to : 0;
		if (fresh && j->move)
			pv_cancel(j->s, fresh);
		return err;
	}
	j->report.objects++;
	j->report.bytes_before += bytes;
	j->report.bytes_after += usable;
	if (j->report.objects % TELL_EVERY == 0)
		tell(j);
	return 0;
}

static int copy(struct job *j)
{
	uint64_t start = now_ns();
	int err = 0;

	begin_phase(j, PV_UPGRADE_COPY);
	for (uint32_t i = 0; i < j->ntypes && !err; i++)
		err = pv_iterate(j->s, j->types[i].old_number, copy_object, j);
	j->report.copy_ns = now_ns() - start;
	return err;
}

/* ---- the new types ---- */

static void lock(struct pv_store *s)
{
	pthread_mutex_lock(&s->heap_lock);
	pthread_mutex_lock(&s->index_lock);
}

static void unlock(struct pv_store *s)
{
	pthread_mutex_unlock(&s->index_lock);
	pthread_mutex_unlock(&s->heap_lock);
}

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
static void swap_layout(struct pv_store *s, struct changed *c)
{
	struct pvi_type *t = &s->index.types[c->number], was = *t;

	*t = c->layout;
	t->bins = was.bins;
	c->layout = was;
	c->layout.bins = NULL;
}

/* Name the new layouts in the index, before there is a slab of them. */
static int draft(struct job *j)
{
	struct pv_store *s = j->s;
	bool *has_pages = calloc(PV_TYPES_MAX + 1, sizeof(*has_pages));
	uint32_t had = s->index.ntypes, placed = 0;
	uint64_t generation;
	int err = 0;

	if (!has_pages)
		return pvi_fail(-ENOMEM, "no memory to upgrade %u types", j->ntypes);
	lock(s);
	note_pages(s, has_pages);
	for (; placed < j->ntypes && !err; placed++) {
		struct changed *c = &j->types[placed];

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
	unlock(s);
	free(has_pages);
	return err;
}

/* The drafts are the types, or, if the engine did not commit, the old ones are again. */
static void change_types(struct job *j, bool changed)
{
	lock(j->s);
	for (uint32_t i = 0; i < j->ntypes; i++) {
		struct pvi_type *types = j->s->index.types;

		types[j->types[i].old_number].state = changed ? PVI_TYPE_FORMER : PVI_TYPE_USED;
		types[j->types[i].number].state = changed ? PVI_TYPE_USED : PVI_TYPE_DRAFT;
	}
	unlock(j->s);
}

/* Without objects there is nothing to move, and the engine writes no index. */
static int commit(struct job *j)
{
	uint64_t generation;
	int err;

	if (j->report.objects)
		return pvi_move_commit(j->move);
	pvi_move_cancel(j->move);
	lock(j->s);
	err = pvi_index_stage(&j->s->index, PVI_INDEX_SLACK, &generation);
	if (!err)
		pvi_index_commit(&j->s->index, generation);
	unlock(j->s);
	return err;
}

/* ---- all of it ---- */

static void moved(void *ctx, uint64_t done, uint64_t total)
{
	struct job *j = ctx;

	j->report.moved = done;
	j->report.moved_all = total;
	tell(j);
}

static int upgrade(struct job *j)
{
	int err = pvi_move_begin(j->s, PV_MOVE_UPGRADE, &j->move);

	if (err)
		return err;
	err = draft(j);
	if (!err)
		err = look(j);
	if (!err)
		err = copy(j);
	if (err) {
		/* What is given back may say that it cannot be, but not instead of why. */
		pvi_move_cancel(j->move);
		return err;
	}
	j->move->progress = moved;
	j->move->ctx = j;
	begin_phase(j, PV_UPGRADE_MOVE);
	change_types(j, true);
	err = commit(j);
	if (err)
		change_types(j, false);
	else
		begin_phase(j, PV_UPGRADE_DONE);
	return err;
}

static int open_job(struct job *j, struct pv_store *s, const struct pv_upgrade_options *opts,
		    const struct pv_typedef *const *defs, uint32_t n)
{
	*j = (struct job){.s = s, .began_ns = now_ns()};
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

static void close_job(struct job *j, struct pv_upgrade_report *report)
{
	j->report.ns = now_ns() - j->began_ns;
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
static int register_others(struct job *j, const struct pv_typedef *const *defs, uint32_t n,
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
	struct job j;
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
	struct job j;
	int err = open_job(&j, s, opts, defs, n);

	if (!err && j.ntypes && s->base != s->index.base)
		err = pvi_fail(-EADDRINUSE,
			       "the store is mapped at 0x%" PRIxPTR ", its pointers belong to 0x%" PRIx64
			       ": functions cannot follow them",
			       s->base, s->index.base);
	if (!err && j.ntypes)
		err = look(&j);
	if (!err && j.ntypes)
		err = copy(&j);
	if (!err && j.ntypes)
		begin_phase(&j, PV_UPGRADE_DONE);
	close_job(&j, report);
	return err;
}
