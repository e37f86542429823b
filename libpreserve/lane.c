/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Intents: a list of absolute stores that happen as a whole or not at all.
 *
 *	write the actions to the lane		crash: count is 0, the lane is ignored
 *	count := n				crash from here on: recovery does all n actions
 *	do the actions				again, which changes nothing that was done
 *	count := 0				crash from here on: done, the lane is ignored
 *
 * An intent of one word and one or two slots has a shorter form (struct link_rec), decided by the word:
 *
 *	write object, old		crash: the commit word is 0, the lane is ignored
 *	commit word := address of word	crash from here on: not done, recovery makes `object` free
 *	slot byte of object := LIVE
 *	word := its new value		crash from here on: done, recovery does what follows
 *	slot byte of old := free
 *	commit word := 0
 *
 * A lane belongs to one thread. Stores of one thread are left behind by a crash in program order
 * (see docs/CRASH.md), so that the compiler is all that has to be held back: pvi_barrier().
 *
 * Whoever stores to a word through an intent holds, until the intent is done, whatever lock protects
 * that word from other threads. So no two valid lanes speak of the same word, and recovery may take
 * the lanes in any order.
 */
#include <errno.h>
#include <inttypes.h>

#include "internal.h"

static uint64_t op_of(const struct action_rec *a)
{
	return a->where >> PV_DO_OP_SHIFT;
}

static uint64_t off_of(const struct action_rec *a)
{
	return a->where & PV_DO_OFF_MASK;
}

void pvi_lane_apply_pages(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint64_t rec)
{
	uint32_t n = pvi_page_span(s, rec);

	/* The head last: another thread that reads the map sees a whole run or none. */
	for (uint32_t i = n; i-- > 0;) {
		uint64_t entry = 0;

		switch (pvi_page_kind(rec)) {
		case PV_PAGE_SLAB:
			entry = rec | (uint64_t) i << PV_PAGE_BACK_SHIFT;
			break;
		case PV_PAGE_EXTENT:
			entry = i == 0 ? rec
				       : PV_PAGE_OTHER | PV_OTHER_CONT << PV_OTHER_SUB_SHIFT |
						 (uint64_t) i << PV_OTHER_BACK_SHIFT;
			break;
		}
		__atomic_store_n(&seg->map[page + i], entry, __ATOMIC_RELEASE);
	}
}

void pvi_lane_apply(struct pv_store *s, const struct action_rec *a)
{
	uint8_t *p = (uint8_t *) s->base + off_of(a);
	struct pvi_segment *seg;

	switch (op_of(a)) {
	case PV_DO_LIVE:
		__atomic_store_n(p, PV_SLOT_LIVE, __ATOMIC_RELEASE);
		break;
	case PV_DO_FREE:
		__atomic_store_n(p, PV_SLOT_FREE, __ATOMIC_RELEASE);
		break;
	case PV_DO_WORD:
		__atomic_store_n((uint64_t *) (void *) p, a->value, __ATOMIC_RELEASE);
		break;
	case PV_DO_PAGES:
		seg = pvi_store_segment(s, off_of(a));
		pvi_lane_apply_pages(s, seg,
				     (uint32_t) ((off_of(a) - seg->off) >> s->page_shift), a->value);
		break;
	case PV_DO_FLIP:
		pvi_index_commit(&s->index, a->value);
		break;
	}
}

void pvi_lane_run(struct pv_store *s, struct lane_rec *lane, unsigned int n)
{
	pvi_lane_begin(lane, n);
	for (unsigned int i = 0; i < n; i++)
		pvi_lane_apply(s, &lane->actions[i]);
	pvi_lane_end(lane);
}

/* ---- recovery ---- */

static bool slot_action_sound(const struct pv_store *s, const struct pvi_segment *seg,
			      uint64_t seg_off)
{
	uint32_t page = (uint32_t) (seg_off >> s->page_shift);
	uint64_t rec = pvi_rec_load(seg->map, page), head_rec, bytes_off;
	uint32_t head;

	if (pvi_page_kind(rec) != PV_PAGE_SLAB || pvi_rec_back(rec) > page)
		return false;
	head = page - pvi_rec_back(rec);
	head_rec = pvi_rec_load(seg->map, head);
	if (!pvi_page_head_sound(s, seg, head, head_rec) ||
	    pvi_page_kind(head_rec) != PV_PAGE_SLAB || !pvi_slab_sound(s, seg, head, head_rec))
		return false;
	bytes_off = (uint64_t) (pvi_slab_bytes(s, seg, head, head_rec) - seg->addr);
	return seg_off >= bytes_off &&
	       seg_off - bytes_off < s->classes[pvi_rec_class(head_rec)].nslots &&
	       seg->addr[seg_off] != PV_SLOT_META;
}

static bool pages_action_sound(const struct pv_store *s, const struct pvi_segment *seg,
			       uint64_t seg_off, uint64_t rec)
{
	uint32_t page = (uint32_t) (seg_off >> s->page_shift), n;

	if (seg_off & ((1u << s->page_shift) - 1))
		return false;
	if (pvi_page_kind(rec) != PV_PAGE_FREE)
		return pvi_page_head_sound(s, seg, page, rec);
	n = pvi_page_span(s, rec);
	return n && n <= seg->npages - page && (rec & 0xffff) == 0 && rec >> 48 == 0;
}

/* Would doing this action stay within what an intent of ours can contain? */
bool pvi_lane_action_sound(const struct pv_store *s, const struct action_rec *a)
{
	const struct pvi_segment *seg;
	uint64_t off = off_of(a), gen = pvi_index_current(s);

	if (op_of(a) == PV_DO_FLIP)
		return off == 0 &&
		       (a->value == gen ||
			(a->value == gen + 1 && pvi_index_staged_sound(&s->index, gen + 1)));
	seg = pvi_store_segment(s, off);
	if (!seg || seg->sealed || off - seg->off < (uint64_t) seg->first_page << s->page_shift)
		return false;
	off -= seg->off;
	switch (op_of(a)) {
	case PV_DO_LIVE:
	case PV_DO_FREE:
		return slot_action_sound(s, seg, off);
	case PV_DO_WORD:
		return off % 8 == 0;
	case PV_DO_PAGES:
		return pages_action_sound(s, seg, off, a->value);
	}
	return false;
}

/* The slot byte of an object; NULL: the address is not the start of a slot. */
static uint8_t *link_slot(const struct pv_store *s, uint64_t address)
{
	uint64_t off = address - s->index.base, rec;
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	uint8_t *byte;

	if (!seg || seg->sealed || off - seg->data_off >= seg->data_bytes)
		return NULL;
	byte = pvi_slab_slot(s, seg, off - seg->off, &rec);
	return byte && *byte != PV_SLOT_META ? byte : NULL;
}

static bool link_sound(const struct pv_store *s, const struct link_rec *link)
{
	uint64_t off = (link->word_object | link->word_value) - s->index.base;
	const struct pvi_segment *seg = pvi_store_segment(s, off);

	return (!link->word_object || !link->word_value) && seg && !seg->sealed && off % 8 == 0 &&
	       off - seg->data_off < seg->data_bytes && (link->object || !link->word_object) &&
	       (!link->object || link_slot(s, link->object)) &&
	       (!link->old || link_slot(s, link->old));
}

int pvi_lane_check(const struct pv_store *s)
{
	for (uint32_t i = 0; i < s->lanes_used; i++) {
		const struct lane_rec *lane = &s->lanes[i];

		if (pvi_lane_linking(lane) && !link_sound(s, &lane->link))
			return pvi_fail(-EBADMSG,
					"segment 0: lane %u: word 0x%" PRIx64 ", object 0x%" PRIx64
					" and old object 0x%" PRIx64
					" are not what an intent can contain",
					i, lane->link.word_object | lane->link.word_value,
					lane->link.object, lane->link.old);
		if (lane->count > PV_LANE_ACTIONS)
			return pvi_fail(-EBADMSG, "segment 0: lane %u: %" PRIu64 " actions in an intent",
					i, lane->count);
		for (uint64_t k = 0; k < lane->count; k++)
			if (!pvi_lane_action_sound(s, &lane->actions[k]))
				return pvi_fail(-EBADMSG,
						"segment 0: lane %u: action %" PRIu64
						" (operation %" PRIu64 " at offset 0x%" PRIx64
						") is not one that an intent can contain",
						i, k, op_of(&lane->actions[k]),
						off_of(&lane->actions[k]));
	}
	return 0;
}

bool pvi_lane_action_covers(const struct pv_store *s, const struct action_rec *a, uint64_t off)
{
	return op_of(a) == PV_DO_PAGES && off >= off_of(a) &&
	       (off - off_of(a)) >> s->page_shift < pvi_page_span(s, a->value);
}

bool pvi_lane_covers(const struct pv_store *s, uint64_t off)
{
	for (uint32_t i = 0; i < s->lanes_used; i++) {
		uint64_t n = s->lanes[i].count;

		for (uint64_t k = 0; k < n && n <= PV_LANE_ACTIONS; k++)
			if (pvi_lane_action_covers(s, &s->lanes[i].actions[k], off))
				return true;
	}
	return false;
}

/* Returns whether the intent had been committed. */
static bool link_recover(struct pv_store *s, struct link_rec *link)
{
	uint64_t *commit = link->word_object ? &link->word_object : &link->word_value;
	const uint64_t *word = (uint64_t *) (s->base + (*commit - s->index.base));
	bool done = *word == (link->word_object ? link->object : link->value);

	if (link->object)
		*link_slot(s, link->object) = done ? PV_SLOT_LIVE : PV_SLOT_FREE;
	if (link->old && done)
		*link_slot(s, link->old) = PV_SLOT_FREE;
	pvi_lane_link_end(commit);
	return done;
}

uint64_t pvi_lane_recover(struct pv_store *s)
{
	uint64_t redone = 0;

	for (uint32_t i = 0; i < s->lanes_used; i++) {
		struct lane_rec *lane = &s->lanes[i];

		if (pvi_lane_linking(lane))
			redone += link_recover(s, &lane->link);
		if (!lane->count)
			continue;
		pvi_barrier();
		for (uint64_t k = 0; k < lane->count; k++)
			pvi_lane_apply(s, &lane->actions[k]);
		pvi_lane_end(lane);
		redone++;
	}
	return redone;
}
