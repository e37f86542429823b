/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Layout upgrade, one object after the other: each gets a new one that the functions of its type have filled in,
 * reserved in the store, or in a dry run in memory of this process. What a function has left where the map
 * says that there is a reference is looked at, so that a mistake is found while there is somebody to tell.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "upgrade.h"

#define TELL_EVERY 65536u /* objects */

uint64_t pvi_upgrade_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

void pvi_upgrade_tell(struct pvi_upgrade_job *j)
{
	j->report.ns = pvi_upgrade_now_ns() - j->began_ns;
	if (j->opts.progress)
		j->opts.progress(j->opts.ctx, &j->report);
}

void pvi_upgrade_phase(struct pvi_upgrade_job *j, enum pv_upgrade_phase phase)
{
	j->report.phase = phase;
	pvi_upgrade_tell(j);
}

size_t pvi_upgrade_usable(const struct pv_store *s, size_t bytes)
{
	size_t page = (size_t) 1 << s->page_shift;

	if (bytes <= s->classes[s->nclasses - 1].slot_bytes)
		return s->classes[pvi_class_of(bytes)].slot_bytes;
	return bytes > s->window_bytes ? 0 : (bytes + page - 1) & ~(page - 1);
}

/* ---- pointers ---- */

/* By the page map: what is said of names_middle(), for pages that are not in a warm slab. */
static bool names_middle_slow(const struct pvi_upgrade_job *j, uint64_t off)
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
static bool names_middle(const struct pvi_upgrade_job *j, uint64_t address)
{
	const struct pv_store *s = j->s;
	uint64_t off = address - s->index.base, in;
	const struct pvi_page *page;
	uint64_t slot;
	bool start;

	if (off >= s->window_bytes)
		return false;
	page = pvi_store_page(s, off);
	if (!page->slab)
		return names_middle_slow(j, off);
	if (!j->by_number[pvi_bin_type(page->bin)])
		return false;
	in = s->base + off - (uintptr_t) page->slab;
	slot = pvi_page_slot(in / 8, page->reciprocal, &start);
	return (in % 8 || !start) && in / 8 < page->grid_units && page->bytes[slot] == PV_SLOT_LIVE;
}

/* A field of an object of a type that does not change, or of a new object. */
static int look_at_field(void *ctx, uint8_t *at, const struct pvi_field *field)
{
	struct pvi_upgrade_job *j = ctx;
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
	struct pvi_upgrade_job *j = ctx;
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
	struct pvi_upgrade_job *j = ctx;

	j->type = &j->s->index.types[type];
	j->object = object;
	j->at_bytes = 0;
	return pvi_typemap_visit(j->type, object, bytes, look_at_field, j);
}

static int count_object(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	struct pvi_upgrade_job *j = ctx;

	(void) bytes;
	j->report.objects_all++;
	if (!pvi_store_segment(j->s, (uintptr_t) object - j->s->base)->sealed)
		return 0;
	j->report.failed = object;
	return pvi_fail(-EPERM, "type %s: the object at %p is sealed, so it cannot be upgraded",
			j->s->index.types[type].name, object);
}

int pvi_upgrade_look(struct pvi_upgrade_job *j)
{
	int err = 0;

	pvi_upgrade_phase(j, PV_UPGRADE_LOOK);
	for (uint32_t i = 1; i <= j->s->index.ntypes && !err; i++) {
		if (j->by_number[i])
			err = pv_iterate(j->s, i, count_object, j);
		else if (j->s->index.types[i].has_pointers)
			err = pv_iterate(j->s, i, look_at_object, j);
	}
	return err;
}

/* Where the new object is made: `usable` zero bytes. */
static int make_fresh(struct pvi_upgrade_job *j, const struct pvi_upgrade_type *c, size_t bytes,
		      uint8_t **out, size_t *usable)
{
	void *fresh;
	int err;

	*usable = pvi_upgrade_usable(j->s, bytes);
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

static int fill_fresh(struct pvi_upgrade_job *j, const struct pvi_upgrade_type *c, void *object,
		      uint8_t *fresh, size_t bytes, size_t usable, const struct pv_upgrade **step)
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
	struct pvi_upgrade_job *j = ctx;
	const struct pvi_upgrade_type *c = &j->types[j->by_number[type] - 1];
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
		pvi_upgrade_tell(j);
	return 0;
}

int pvi_upgrade_copy(struct pvi_upgrade_job *j)
{
	uint64_t start = pvi_upgrade_now_ns();
	int err = 0;

	pvi_upgrade_phase(j, PV_UPGRADE_COPY);
	for (uint32_t i = 0; i < j->ntypes && !err; i++)
		err = pv_iterate(j->s, j->types[i].old_number, copy_object, j);
	j->report.copy_ns = pvi_upgrade_now_ns() - start;
	return err;
}
