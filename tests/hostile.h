/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hostile images: bits flipped one by one in everything that is metadata, garbage, truncated,
 * swapped and stale memfds. pv_open() either refuses such an image, with a message that names its
 * part, and leaves every byte of it as it was; or it opens it, and then nothing that an application
 * does with it may crash, hang or write outside of the store. What pv_open() accepts, pv_check()
 * reports where the format allows to know; each test says which bits these are.
 *
 * The images are small, so that a case takes some 100 us and every bit can be tried. With
 * ThreadSanitizer, which makes it tenfold and has nothing to find here, every 11th bit is.
 */
#ifndef TESTS_HOSTILE_H
#define TESTS_HOSTILE_H

#include "internal.h"
#include "support.h"

#define IMAGE_MEMFDS	   3  /* index, two segments */
#define IMAGE_CASE_SECONDS 20 /* for alarm(), before a case */

/** An image, mapped, and what it was at first. */
struct image {
	struct keeper *k;
	uint8_t *now[IMAGE_MEMFDS]; /* by token */
	uint8_t *pristine[IMAGE_MEMFDS];
	uint8_t *before[IMAGE_MEMFDS]; /* as it was when it was handed to pv_open() */
	size_t bytes[IMAGE_MEMFDS];
	uint8_t *guard[2]; /* of this process, on both sides of the window */
	struct objects live;
	bool to_the_brim; /* image_try() fills the store */
	bool free_first;  /* it frees before it allocates; changes from case to case */
};

enum outcome {
	REFUSED,  /* by pv_open() */
	REPORTED, /* by pv_check() */
	SILENT,
	OUTCOMES
};

/** What is being tried, for the message if it does not come back. */
extern char image_case[160];

/** A store with all kinds of objects, left by a crash in its second epoch. */
struct image image_begin(struct keeper *k);
void image_end(struct image *im);
/** All memfds as they were at the beginning. */
void image_restore(struct image *im);
/** Attach and close: another epoch, another generation; that is the beginning now. */
void image_next_epoch(struct image *im);
/** What the memfds hold now is the beginning. */
void image_keep(struct image *im);
/** Put objects of all sizes into a store, `per_size` of each that is not large. */
void image_fill(struct pv_store *s, size_t per_size);

/**
 * Open the image as it is now. Refused: its message names a part and no byte has changed. Opened:
 * it is checked, walked, allocated from and freed to. Fails the test on anything else; the image
 * may have changed, see image_restore().
 */
enum outcome image_try(struct image *im);
/** The same with one bit flipped, and the image restored. */
enum outcome image_flip(struct image *im, int token, size_t bit);
/** Flip each bit of a range; counts by outcome go to n. Returns how many there were. */
size_t image_flip_range(struct image *im, int token, size_t from, size_t bytes, size_t n[OUTCOMES]);
/** And all have this outcome. */
void image_flip_all(struct image *im, int token, size_t from, size_t bytes, enum outcome want);
/** Each how many-th bit is tried. */
size_t image_stride(void);

/** Header and page map of a segment, as at the beginning. */
const struct segment_rec *image_segment(const struct image *im, int token);
const uint64_t *image_map(const struct image *im, int token);

#endif
