/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The tables of a move: what is written before the commit, and the look that pv_open() takes at it before it
 * believes it.
 *
 * A table is a run of pages that are FREE in the page map, held by the process that writes it. After a crash
 * nobody takes pages before pv_open() has finished the move.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "internal.h"
#include "move.h"

/* ---- writing ---- */

/* Pages for a table, where they are in nobody's way if that can be had. */
static int hold(struct pvi_move *m, uint64_t bytes, void **out)
{
	struct pv_store *s = m->s;
	int err = -ENOSPC;

	if (m->tables_from && m->tables_from < s->nsegments) {
		s->steer.from = m->tables_from;
		s->steer.to = s->nsegments;
		err = pvi_heap_hold(s, bytes, out);
		s->steer.from = s->steer.to = 0;
	}
	return err == -ENOSPC ? pvi_heap_hold(s, bytes, out) : err;
}

int pvi_move_write_tables(struct pvi_move *m)
{
	struct pv_store *s = m->s;
	struct pvi_index_move move = {.purpose = m->purpose, .objects = m->n, .segment = m->segment};
	uint64_t at = 0, n = m->n;
	int err;

	while (at < m->n) {
		uint32_t i = move.ntables;

		if (n > m->n - at)
			n = m->n - at;
		err = i == PV_MOVE_TABLES ? pvi_fail(-ENOSPC, "no room to note %" PRIu64
							      " objects that move", m->n)
					  : hold(m, n * sizeof(*m->recs), &m->tables[i]);
		if (err == -ENOSPC && i < PV_MOVE_TABLES && n > 1) {
			n = (n + 1) / 2; /* smaller pieces */
			continue;
		}
		if (err)
			return err;
		memcpy(m->tables[i], m->recs + at, n * sizeof(*m->recs));
		move.tables[i].off = (uint64_t) ((uintptr_t) m->tables[i] - s->base);
		move.tables[i].objects = n;
		move.ntables++;
		at += n;
	}
	move.checksum = XXH3_64bits(m->recs, m->n * sizeof(*m->recs));
	s->index.move = move;
	return 0;
}

/* ---- checking ---- */

static int bad_table(uint32_t i, const char *what)
{
	return pvi_fail(-EBADMSG, "index: node /move: table %u %s", i, what);
}

static bool pages_free(const struct pv_store *s, uint64_t off, uint64_t bytes)
{
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	uint64_t from = (off - seg->off) >> s->page_shift;
	uint64_t to = (off + bytes - 1 - seg->off) >> s->page_shift;

	for (uint64_t page = from; page <= to; page++)
		if (pvi_rec_load(seg->map, (uint32_t) page) != 0)
			return false;
	return true;
}

/* A copy of all records: what is checked is what is used. */
static int read_tables(struct pvi_move *m)
{
	const struct pv_store *s = m->s;
	const struct pvi_index_move *move = &s->index.move;
	uint64_t total = 0, most = s->window_bytes / sizeof(*m->recs), at = 0;

	for (uint32_t i = 0; i < move->ntables; i++) {
		uint64_t n = move->tables[i].objects, off = move->tables[i].off;

		if (!n || n > most)
			return bad_table(i, "has a length out of range");
		if (off % 8 || !pvi_store_range_ok(s, off, n * sizeof(*m->recs)) ||
		    !pages_free(s, off, n * sizeof(*m->recs)))
			return bad_table(i, "does not lie in free pages");
		total += n;
	}
	if (total != move->objects || total >= UINT32_MAX)
		return pvi_fail(-EBADMSG, "index: node /move: the tables have %" PRIu64
				" objects, not %" PRIu64, total, move->objects);
	m->recs = malloc(total * sizeof(*m->recs));
	if (!m->recs)
		return pvi_fail(-ENOMEM, "no memory for the table of %" PRIu64 " objects that move",
				total);
	m->n = total;
	for (uint32_t i = 0; i < move->ntables; at += move->tables[i++].objects)
		memcpy(m->recs + at, (const uint8_t *) s->base + move->tables[i].off,
		       move->tables[i].objects * sizeof(*m->recs));
	if (XXH3_64bits(m->recs, total * sizeof(*m->recs)) != move->checksum)
		return pvi_fail(-EBADMSG, "index: node /move: the tables' checksum is wrong");
	return 0;
}

/* Is it an extent that is there, or could be, or is just being written or freed? */
static bool extent_sound(const struct pv_store *s, const struct pvi_segment *seg, uint64_t seg_off,
			 uint64_t rec)
{
	uint32_t page = (uint32_t) (seg_off >> s->page_shift), n = pvi_page_span(s, rec);

	if (seg_off & ((1u << s->page_shift) - 1) || !pvi_page_head_sound(s, seg, page, rec) ||
	    pvi_rec_extent_type(rec) > s->index.ntypes)
		return false;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t want = i == 0 ? rec
				       : PV_PAGE_OTHER | PV_OTHER_CONT << PV_OTHER_SUB_SHIFT |
						 (uint64_t) i << PV_OTHER_BACK_SHIFT;
		uint64_t have = pvi_rec_load(seg->map, page + i);

		if (have != want && have != 0)
			return false;
	}
	return true;
}

static bool place_sound(const struct pv_store *s, uint64_t off, uint64_t rec)
{
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	const uint8_t *byte;
	uint64_t entry;

	if (!seg || seg->sealed || off - seg->data_off >= seg->data_bytes)
		return false;
	if (pvi_page_kind(rec) == PV_PAGE_EXTENT)
		return extent_sound(s, seg, off - seg->off, rec);
	byte = pvi_slab_slot(s, seg, off - seg->off, &entry);
	return byte && entry == rec && *byte != PV_SLOT_META;
}

/* Does an object that is moved away lie where this one is to be? */
static bool meets_old(const struct pvi_move *m, const struct move_rec *r)
{
	uint64_t page = 1ull << m->s->page_shift;
	uint64_t n = pvi_page_kind(r->new_rec) == PV_PAGE_EXTENT ? pvi_rec_extent_pages(r->new_rec) : 1;

	for (uint64_t i = 0; i < n; i++)
		if (pvi_move_target(m, r->new_off + i * page))
			return true;
	return false;
}

static int check_record(const struct pvi_move *m, uint64_t i)
{
	const struct move_rec *r = &m->recs[i];
	bool alike = pvi_page_kind(r->old_rec) == PV_PAGE_SLAB
			     ? pvi_rec_class(r->old_rec) == pvi_rec_class(r->new_rec) &&
				       pvi_rec_type(r->old_rec) == pvi_rec_type(r->new_rec)
			     : r->old_rec == r->new_rec;

	if (!place_sound(m->s, r->old_off, r->old_rec))
		return pvi_fail(-EBADMSG, "index: node /move: record %" PRIu64 ": no object can be at "
				"offset 0x%" PRIx64, i, r->old_off);
	if (!place_sound(m->s, r->new_off, r->new_rec) || meets_old(m, r))
		return pvi_fail(-EBADMSG, "index: node /move: record %" PRIu64 ": no object can move to "
				"offset 0x%" PRIx64, i, r->new_off);
	if (m->purpose != PV_MOVE_UPGRADE &&
	    (!alike || pvi_page_kind(r->old_rec) != pvi_page_kind(r->new_rec)))
		return pvi_fail(-EBADMSG, "index: node /move: record %" PRIu64 ": type or size change", i);
	return 0;
}

/* The process that moves has no intent under way, and nobody has a transaction open. */
static int lanes_idle(const struct pv_store *s)
{
	for (uint32_t i = 0; i < s->lanes_used; i++)
		if (s->lanes[i].count || pvi_lane_linking(&s->lanes[i]) ||
		    s->lanes[i].tx != PV_TX_NONE)
			return pvi_fail(-EBADMSG, "segment 0: lane %u is not idle, and objects are being "
					"moved", i);
	return 0;
}

static int check_move(struct pvi_move *m)
{
	int err = m->s->index.nmoving ? pvi_fail(-EBADMSG, "index: node /move: the store is being relocated, too")
				      : lanes_idle(m->s);

	if (!err)
		err = read_tables(m);
	for (uint64_t i = 1; i < m->n && !err; i++)
		if (m->recs[i - 1].old_off >= m->recs[i].old_off)
			err = pvi_fail(-EBADMSG, "index: node /move: record %" PRIu64
				       " is out of order", i);
	if (!err)
		err = pvi_move_settle(m);
	for (uint64_t i = 0; i < m->n && !err; i++)
		err = check_record(m, i);
	return err;
}

int pvi_move_attach(struct pv_store *s, struct pvi_move *m)
{
	int err = 0;

	*m = (struct pvi_move){.s = s, .purpose = s->index.move.purpose, .segment = s->index.move.segment};
	if (m->purpose)
		err = check_move(m);
	if (err)
		pvi_move_free(m);
	return err;
}
