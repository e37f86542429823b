/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Relocation, the protocol: a store that is mapped elsewhere than where its pointers belong gets them
 * moved by one pass (relocate_pass.c).
 *
 *	lanes are recovered			they put old pointers back, which the pass then moves
 *	index: base = new, moving-from += old	from here on pointers lead into either window
 *	the pass				a pointer says by itself whether it was moved
 *	index: no moving-from			done
 *
 * A crash in between leaves pointers of both kinds, and an index that names both windows. The next attach
 * goes on: to the same base, or to another one, with all the windows as sources. A pass that is refused,
 * because a pointer leads nowhere, is undone by one with source and target swapped (moving-back), which
 * lets pointers that lead nowhere alone; so a crash during that is as harmless.
 *
 * One thread, at attach, before anybody else has the store; the pass has helpers.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "internal.h"
#include "relocate.h"

uint64_t pvi_relocate_off(const struct pv_store *s, uint64_t address)
{
	uint64_t base = s->index.base;

	for (uint32_t i = 0;; base = s->index.moving[i++]) {
		if (address - base < s->window_bytes)
			return address - base;
		if (i == s->index.nmoving)
			return UINT64_MAX;
	}
}

const void *pv_address(struct pv_store *s, const void *pointer)
{
	uint64_t off = pvi_relocate_off(s, (uintptr_t) pointer);
	const struct pvi_segment *seg = off == UINT64_MAX ? NULL : pvi_store_segment(s, off);

	return seg && off - seg->off < seg->bytes ? (const uint8_t *) s->base + off : NULL;
}

/* The index is to say: pointers are on their way from wherever they are to this base. */
static void head_for(struct pvi_index *idx, uint64_t base, bool back)
{
	uint32_t n = 0;

	if (base == idx->base)
		return;
	for (uint32_t i = 0; i < idx->nmoving; i++)
		if (idx->moving[i] != base)
			idx->moving[n++] = idx->moving[i];
	idx->moving[n++] = idx->base;
	idx->nmoving = n;
	idx->moving_back = back;
	idx->base = base;
}

void pvi_relocate_begin(struct pv_store *s)
{
	if (s->base != s->index.base)
		s->relocated_from = s->index.base;
	else if (s->index.nmoving)
		s->relocated_from = s->index.moving[0];
	head_for(&s->index, s->base, false);
}

static int write_index(struct pv_store *s)
{
	uint64_t generation;
	int err = pvi_index_stage(&s->index, 0, &generation);

	if (!err)
		pvi_index_commit(&s->index, generation);
	return err;
}

static int arrived(struct pv_store *s)
{
	s->index.nmoving = 0;
	s->index.moving_back = false;
	return write_index(s);
}

/* Undo a pass that was refused; to the base where the store was found, which is also where it is headed
 * if an earlier attach was interrupted: then to where it was before that. */
static int go_back(struct pv_store *s)
{
	struct pvi_pass_result result;
	int err;

	head_for(&s->index, s->found_base == s->index.base ? s->index.moving[0] : s->found_base, true);
	err = write_index(s);
	if (!err)
		err = pvi_relocate_pass(s, PVI_DANGLING_KEEP, &result);
	return err ? err : arrived(s);
}

int pvi_relocate_run(struct pv_store *s)
{
	uint32_t dangling = s->index.moving_back ? PVI_DANGLING_KEEP : s->options.dangling;
	uint64_t start = pvi_attach_now_ns();
	struct pvi_pass_result result;
	char why[512];
	int err = pvi_relocate_pass(s, dangling, &result), back;

	if (err == -EFAULT || err == -EBADMSG) {
		snprintf(why, sizeof(why), "%s", pv_last_error());
		back = go_back(s);
		if (back)
			return pvi_fail(back, "%s; moving back what was moved: %s", why, pv_last_error());
		return pvi_fail(err, "%s", why);
	}
	if (err)
		return err;
	s->relocated_pointers = result.pointers;
	s->relocated_bytes = result.bytes;
	s->dangling = result.dangling;
	err = arrived(s);
	s->relocated_ns = pvi_attach_now_ns() - start;
	return err;
}
