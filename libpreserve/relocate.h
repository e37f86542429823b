/* SPDX-License-Identifier: BSD-3-Clause */
/* Between the protocol of a relocation (relocate.c) and its pass (relocate_pass.c, relocate_words.c). */
#ifndef PVI_RELOCATE_H
#define PVI_RELOCATE_H

#include "types.h"

/** Beside enum pv_dangling: pointers that lead nowhere are left alone, and so is what is damaged. */
#define PVI_DANGLING_KEEP 2u

struct pvi_pass_result {
	uint64_t pointers; /* moved */
	uint64_t bytes;	   /* of slabs and extents that have live objects with pointers */
	uint64_t dangling; /* pointers made null */
};

/**
 * Make every pointer that leads into one of the windows of index.moving[] lead to the same place of the
 * window at index.base. -EFAULT: one leads nowhere (PV_DANGLING_REFUSE), -EBADMSG: page map or slab
 * damaged; then some pointers are moved and others not. -ENOMEM: none is.
 */
int pvi_relocate_pass(struct pv_store *s, uint32_t dangling, struct pvi_pass_result *result);

/** What the loops over words know: an address from `from` on, within `span`, gets `delta` added. */
struct pvi_shift {
	uint64_t from;
	uint64_t span;
	uint64_t delta;
};

/** Words at the same place of each of some elements, and of each object. */
struct pvi_words {
	uint32_t off;
	uint64_t mask; /* of the address */
};

/**
 * Words that are equally far apart: move what is to be moved, add to *moved how many. True: some are
 * neither null nor from that window.
 */
bool pvi_words_shift(const struct pvi_shift *shift, uint8_t *first, const struct pvi_words *words,
		     uint32_t nwords, uint64_t n, uint32_t stride, uint64_t *moved);
/** The same for n words that stand one behind the other. */
bool pvi_words_shift_dense(const struct pvi_shift *shift, uint64_t *words, uint64_t n, uint64_t mask,
			   uint64_t *moved);

#endif
