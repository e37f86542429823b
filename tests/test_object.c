/* SPDX-License-Identifier: BSD-3-Clause */
/* Objects that get another size, or an alignment, and the short forms of the usual intents: what they do,
 * and that they change nothing when they refuse. */
#include "internal.h"
#include "support.h"

#define PAGE 4096u

/* 4 KiB pages, segments large enough for extents side by side. */
static struct pv_options roomy_options(struct keeper *k)
{
	struct pv_options o = small_options(k);

	o.window_bytes = 1 << 26;
	o.segment_bytes = 1 << 20;
	o.page_bytes = PAGE;
	return o;
}

/* What an object of this many bytes takes. */
static size_t takes(const struct pv_store *s, size_t bytes)
{
	uint64_t page = 1ull << s->page_shift;

	if (bytes <= s->classes[s->nclasses - 1].slot_bytes)
		return s->classes[pvi_class_of(bytes)].slot_bytes;
	return (bytes + page - 1) / page * page;
}

static pv_type_t type_of(struct pv_store *s, const void *p)
{
	struct objects live = {0};
	pv_type_t type = 0;

	objects_live(&live, s, 0);
	for (size_t i = 0; i < live.n; i++)
		if (live.v[i].p == p)
			type = live.v[i].type;
	objects_free(&live);
	return type;
}

/* ---- pv_realloc ---- */

enum where { STAYS, MOVES };

/* From one size to another, with all that has to hold afterwards. */
static void resize(struct pv_store *s, void **cell, size_t bytes, enum where where)
{
	size_t had = pv_usable_bytes(s, *cell), kept;
	uint64_t live = store_records_sound(s).live_objects;
	pv_type_t type = type_of(s, *cell);
	void *old = *cell;

	assert_int_not_equal(type, 0);
	pattern_fill(old, had, had + bytes);
	assert_ok(pv_realloc(s, cell, bytes));
	if ((*cell == old) != (where == STAYS))
		fail_msg("%zu -> %zu bytes: %p became %p", had, bytes, old, *cell);
	kept = (had < bytes ? had : bytes) & ~(size_t)7;
	if (!pattern_holds(*cell, kept, had + bytes))
		fail_msg("%zu -> %zu bytes: the contents are lost", had, bytes);
	assert_int_equal(pv_usable_bytes(s, *cell), takes(s, bytes));
	assert_int_equal(type_of(s, *cell), type);
	if (where == MOVES)
		assert_int_equal(pv_usable_bytes(s, old), 0);
	assert_int_equal(store_records_sound(s).live_objects, live);
	/* All of it can be written to without touching others. */
	pattern_fill(*cell, pv_usable_bytes(s, *cell), bytes);
	assert_true(pattern_holds(*cell, pv_usable_bytes(s, *cell), bytes));
	store_records_sound(s);
}

static void realloc_of_slots(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	void **cell = &t->cells[0];

	publish_ok(s, store_bytes_type(s, "other"), 64, &t->cells[1]);
	publish_ok(s, store_bytes_type(s, "bytes"), 50, cell);
	resize(s, cell, 64, STAYS); /* of the class of 49..64 */
	resize(s, cell, 49, STAYS);
	resize(s, cell, 65, MOVES);
	resize(s, cell, 48, MOVES);
	resize(s, cell, 1, MOVES);
	resize(s, cell, 16, STAYS);
	resize(s, cell, 5000, MOVES);
	resize(s, cell, 8 * PAGE, MOVES);
	resize(s, cell, 100, MOVES);
	/* Both sides of each class's boundary. */
	for (uint32_t c = 1; c < s->nclasses; c++) {
		resize(s, cell, s->classes[c].slot_bytes, MOVES);
		resize(s, cell, s->classes[c - 1].slot_bytes + 1, STAYS);
		if (c > 1)
			resize(s, cell, s->classes[c - 1].slot_bytes, MOVES);
		else
			resize(s, cell, 16, MOVES);
	}
	keeper_crash(k, &s);
	s = store_attach(k, &o);
	cell = store_moved(s, cell);
	resize(s, cell, 200, MOVES); /* in a slab that this process has not touched */
	assert_ok(pv_free(s, cell));
	assert_int_equal(store_records_sound(s).live_objects, 2);
	assert_ok(pv_close(s));
}

static void realloc_between_slots_and_extents(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	void **cell = &t->cells[0];

	publish_ok(s, store_bytes_type(s, "bytes"), 500, cell);
	resize(s, cell, 8 * PAGE + 1, MOVES);
	assert_int_equal(store_records_sound(s).extents, 1);
	resize(s, cell, 8 * PAGE, MOVES);
	assert_int_equal(store_records_sound(s).extents, 0);
	resize(s, cell, 20 * PAGE, MOVES);
	resize(s, cell, 24, MOVES);
	/* Larger than all that there is. */
	resize(s, cell, 3 << 20, MOVES);
	assert_true(store_info(s).segments > 1);
	resize(s, cell, 16, MOVES);
	assert_int_equal(store_records_sound(s).extents, 0);
	assert_ok(pv_close(s));
}

static void realloc_of_extents_in_place(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	void **cell = &t->cells[0];
	uint64_t free_pages;
	uint8_t *p;

	p = publish_ok(s, type, 12 * PAGE, cell);
	free_pages = store_records_sound(s).free_pages;
	resize(s, cell, 12 * PAGE - 100, STAYS); /* no page less */
	assert_int_equal(store_records_sound(s).free_pages, free_pages);
	resize(s, cell, 9 * PAGE, STAYS);
	assert_int_equal(store_records_sound(s).free_pages, free_pages + 3);
	/* What it gave away serves another one, and so is not there for growth any more. */
	assert_ptr_equal(publish_ok(s, type, 9 * PAGE, &t->cells[1]), p + 9 * PAGE);
	pattern_fill(t->cells[1], 9 * PAGE, 77);
	resize(s, cell, 9 * PAGE - 1, STAYS);
	resize(s, cell, 10 * PAGE, MOVES);
	assert_true(pattern_holds(t->cells[1], 9 * PAGE, 77));
	/* The first place is free again: what lies behind it cannot go there. */
	resize(s, &t->cells[1], 9 * PAGE, STAYS);
	assert_ok(pv_free(s, cell));
	resize(s, &t->cells[1], 30 * PAGE, STAYS);
	resize(s, &t->cells[1], 31 * PAGE - 5, STAYS);
	assert_int_equal(store_records_sound(s).extents, 1);
	keeper_crash(k, &s);
	s = store_attach(k, &o);
	t = store_moved(s, t);
	assert_int_equal(pv_usable_bytes(s, t->cells[1]), 31 * PAGE);
	/* An extent that this process has not looked at; as far as the segment goes, and no page more. */
	resize(s, &t->cells[1], 40 * PAGE, STAYS);
	free_pages = (uint64_t)((uint8_t *)s->base + s->segments[0].off + (1 << 20) -
				(uint8_t *)t->cells[1]) / PAGE;
	resize(s, &t->cells[1], free_pages * PAGE, STAYS);
	resize(s, &t->cells[1], free_pages * PAGE + 1, MOVES);
	assert_int_equal(store_info(s).segments, 2);
	resize(s, &t->cells[1], 9 * PAGE, STAYS);
	assert_ok(pv_free(s, &t->cells[1]));
	assert_int_equal(store_records_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

/* What another thread's reservation holds behind an extent is free in the page map, but not to be had. */
static void realloc_does_not_grow_into_reservations(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	uint8_t *p = publish_ok(s, type, 10 * PAGE, &t->cells[0]);
	uint8_t *held = reserve_ok(s, type, 10 * PAGE);

	assert_ptr_equal(held, p + 10 * PAGE);
	pattern_fill(held, 10 * PAGE, 5);
	resize(s, &t->cells[0], 11 * PAGE, MOVES);
	assert_true(pattern_holds(held, 10 * PAGE, 5));
	assert_ok(pv_link(s, held, &t->cells[1]));
	resize(s, &t->cells[1], 9 * PAGE, STAYS);
	assert_int_equal(store_records_sound(s).extents, 2);
	assert_ok(pv_close(s));
}

/* The same object, many times, against a copy. */
static void realloc_at_random(void **state)
{
	uint64_t seed = random_seed_from_env("realloc_at_random"), keys[8];
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	size_t sizes[8];

	for (unsigned int i = 0; i < 8; i++) {
		sizes[i] = 16;
		keys[i] = i;
		pattern_fill(publish_ok(s, type, 16, &t->cells[i]), 16, i);
	}
	for (int n = 0; n < (under_tsan() ? 2000 : 20000); n++) {
		unsigned int i = (unsigned int)random_below(&seed, 8);
		size_t bytes = 8 + random_below(&seed, 1ull << (4 + random_below(&seed, 14)));
		size_t kept = (bytes < sizes[i] ? bytes : sizes[i]) & ~(size_t)7;

		if (!pattern_holds(t->cells[i], sizes[i] & ~(size_t)7, keys[i]))
			fail_msg("step %d: object %u of %zu bytes was overwritten", n, i, sizes[i]);
		assert_ok(pv_realloc(s, &t->cells[i], bytes));
		if (!pattern_holds(t->cells[i], kept, keys[i]))
			fail_msg("step %d: object %u, %zu -> %zu bytes", n, i, sizes[i], bytes);
		sizes[i] = bytes;
		keys[i] = random_next(&seed);
		pattern_fill(t->cells[i], bytes, keys[i]);
		if (n % 256 == 0)
			assert_int_equal(store_records_sound(s).live_objects, 9);
		if (n % 1024 == 1023) {
			keeper_crash(k, &s);
			s = store_attach(k, &o);
			t = store_moved(s, t);
		}
	}
	assert_ok(pv_close(s));
}

struct fixed {
	uint64_t words[25];
};

static const struct pv_typedef fixed_type = PV_TYPE_PLAIN(struct fixed, "fixed", 1);

static void realloc_refuses(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes"), fixed;
	uint8_t *p = publish_ok(s, type, 100, &t->cells[0]), *gone;
	void *outside = p;

	assert_ok(pv_type_register(s, &fixed_type, &fixed));
	pattern_fill(p, 112, 3);
	assert_fails(pv_realloc(s, NULL, 100), -EINVAL, "word");
	assert_fails(pv_realloc(s, &outside, 200), -EINVAL, "word");
	assert_ptr_equal(outside, p);
	assert_fails(pv_realloc(s, (void **)(void *)((uint8_t *)t + 4), 200), -EINVAL, "word");
	assert_fails(pv_realloc(s, (void **)(void *)s->segments[0].addr, 200), -EINVAL, "word");
	assert_fails(pv_realloc(s, (void **)(void *)((uint8_t *)s->base + o.window_bytes), 200),
		     -EINVAL, "word");
	assert_null(t->cells[1]);
	assert_fails(pv_realloc(s, &t->cells[1], 200), -EINVAL, "object");
	/* Inside of an object, freed, only reserved, not of this store. */
	t->cells[1] = p + 8;
	assert_fails(pv_realloc(s, &t->cells[1], 200), -EINVAL, "object");
	for (size_t bytes = 100; bytes < 100000; bytes *= 900) {
		gone = reserve_ok(s, type, bytes);
		t->cells[1] = gone;
		assert_fails(pv_realloc(s, &t->cells[1], 200), -EINVAL, "reserved");
		assert_ok(pv_link(s, gone, &t->cells[1]));
		assert_ok(pv_unlink(s, &t->cells[1], (uintptr_t)gone, gone));
		assert_fails(pv_realloc(s, &t->cells[1], 200), -EINVAL, "");
		assert_ptr_equal(t->cells[1], gone);
	}
	t->cells[1] = &outside;
	assert_fails(pv_realloc(s, &t->cells[1], 200), -EINVAL, "object");
	t->cells[1] = NULL;
	assert_fails(pv_realloc(s, &t->cells[0], 0), -EINVAL, "0 bytes");
	publish_ok(s, fixed, sizeof(struct fixed), &t->cells[2]);
	gone = t->cells[2];
	assert_fails(pv_realloc(s, &t->cells[2], sizeof(struct fixed) - 1), -EINVAL, "fixed");
	assert_fails(pv_realloc(s, &t->cells[2], 1), -EINVAL, "fixed");
	assert_ptr_equal(t->cells[2], gone);
	resize(s, &t->cells[2], 2 * sizeof(struct fixed), MOVES);
	resize(s, &t->cells[2], 20 * PAGE, MOVES);
	assert_fails(pv_realloc(s, &t->cells[2], 199), -EINVAL, "fixed");
	resize(s, &t->cells[2], sizeof(struct fixed), MOVES);
	assert_ptr_equal(t->cells[0], p);
	assert_true(pattern_holds(p, 112, 3));
	assert_int_equal(store_records_sound(s).live_objects, 3);
	assert_ok(pv_close(s));
}

static void realloc_without_room(void **state)
{
	static const size_t too_many[] = {(1 << 20), (1 << 26) - 1, 1 << 26, 1ull << 44, SIZE_MAX / 2,
					  SIZE_MAX - 4096, SIZE_MAX};
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s;
	struct cells *t;
	pv_type_t type;

	o.limit_bytes = 1800 << 10; /* the index, the first segment, and a smaller one */
	s = store_create(k, &o);
	t = store_cells(s);
	type = store_bytes_type(s, "bytes");
	publish_ok(s, type, 1000, &t->cells[0]);
	publish_ok(s, type, 20 * PAGE, &t->cells[1]);
	for (unsigned int i = 0; i < 2; i++) {
		void *old = t->cells[i];
		size_t usable = pv_usable_bytes(s, old);

		pattern_fill(old, usable, i);
		for (size_t n = 0; n < sizeof(too_many) / sizeof(*too_many); n++) {
			assert_fails(pv_realloc(s, &t->cells[i], too_many[n]), -ENOSPC, "");
			assert_ptr_equal(t->cells[i], old);
			assert_int_equal(pv_usable_bytes(s, old), usable);
			assert_true(pattern_holds(old, usable, i));
			assert_int_equal(store_records_sound(s).live_objects, 3);
		}
	}
	/* In place there is still room. */
	resize(s, &t->cells[1], 100 * PAGE, STAYS);
	assert_ok(pv_close(s));
}

/* ---- alignment ---- */

static void check_aligned(struct pv_store *s, pv_type_t type, size_t bytes, size_t align, void **cell)
{
	void *p = NULL;

	assert_ok(pv_reserve_aligned(s, type, bytes, align, &p));
	if ((uintptr_t)p % align)
		fail_msg("%zu bytes at a multiple of %zu: %p", bytes, align, p);
	if (pv_usable_bytes(s, p) < bytes)
		fail_msg("%zu bytes at a multiple of %zu: %zu usable", bytes, align,
			 pv_usable_bytes(s, p));
	if (!cell) {
		assert_ok(pv_cancel(s, p));
		return;
	}
	pattern_fill(p, pv_usable_bytes(s, p), align);
	assert_ok(pv_link(s, p, cell));
}

static void all_alignments(void **state)
{
	static const size_t sizes[] = {1,	16,	   17,	     100,	 128,	     129,
				       1000,	3000,	   4096,     4097,	 8 * PAGE - 1,
				       8 * PAGE, 8 * PAGE + 1, 70000, 16384, 8 * 16384, 200000};
	struct keeper *k = *state;

	for (uint32_t page = PAGE; page <= 16384; page *= 4) {
		struct pv_options o = roomy_options(k);
		struct pv_store *s;
		struct cells *t;
		unsigned int n = 0;
		pv_type_t type;

		o.page_bytes = page;
		o.window_bytes = 1ull << 30;
		s = store_create(k, &o);
		t = store_cells(s);
		type = store_bytes_type(s, "bytes");
		for (size_t align = 1; align <= o.segment_bytes; align *= 2)
			for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
				check_aligned(s, type, sizes[i], align, NULL);
				if (i % 3 == 0)
					check_aligned(s, type, sizes[i], align, &t->cells[n++]);
			}
		for (size_t bytes = 1; bytes < 3 * PAGE; bytes += 7)
			for (size_t align = 32; align <= 8 * PAGE; align *= 4)
				check_aligned(s, type, bytes, align, NULL);
		assert_true(n <= CELLS);
		assert_int_equal(store_records_sound(s).live_objects, n + 1);
		/* None overlaps another. */
		n = 0;
		for (size_t align = 1; align <= o.segment_bytes; align *= 2)
			for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i += 3, n++)
				assert_true(pattern_holds(t->cells[n],
							  pv_usable_bytes(s, t->cells[n]), align));
		keeper_crash(k, &s);
		s = store_attach(k, &o);
		t = store_moved(s, t);
		for (unsigned int i = 0; i < n; i++)
			assert_ok(pv_free(s, &t->cells[i]));
		assert_int_equal(store_records_sound(s).live_objects, 1);
		assert_ok(pv_destroy(s));
	}
}

static void alignments_that_are_none(void **state)
{
	static const size_t bad[] = {0,	      3,	     24,      4095,	  4097,
				     3 << 19, (1 << 20) + 1, 2 << 20, 1ull << 40, SIZE_MAX};
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s = store_create(k, &o);
	pv_type_t type = store_bytes_type(s, "bytes"), fixed;
	void *p = state;

	assert_ok(pv_type_register(s, &fixed_type, &fixed));
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		assert_fails(pv_reserve_aligned(s, type, 100, bad[i], &p), -EINVAL, "alignment");
		assert_fails(pv_reserve_aligned(s, type, 1 << 19, bad[i], &p), -EINVAL, "alignment");
	}
	for (size_t align = 1; align <= 1 << 20; align *= 2) {
		assert_fails(pv_reserve_aligned(s, type, 0, align, &p), -EINVAL, "0 bytes");
		assert_fails(pv_reserve_aligned(s, type + 9, 100, align, &p), -EINVAL, "type");
		/* What the type asks for does not depend on the alignment. */
		assert_fails(pv_reserve_aligned(s, fixed, sizeof(struct fixed) - 1, align, &p), -EINVAL,
			     "fixed");
		assert_fails(pv_reserve_aligned(s, type, SIZE_MAX, align, &p), -ENOSPC, "window");
		assert_fails(pv_reserve_aligned(s, type, 1 << 26, align, &p), -ENOSPC, "");
	}
	assert_ptr_equal(p, state);
	assert_int_equal(store_records_sound(s).reserved_objects, 0);
	assert_int_equal(store_info(s).segments, 1);
	assert_ok(pv_close(s));
}

/* ---- link, replace, unlink ---- */

static void short_forms(void **state)
{
	static const size_t sizes[] = {16, 200, 5000, 50000};
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		for (size_t n = 0; n < sizeof(sizes) / sizeof(*sizes); n++) {
			void *p = reserve_ok(s, type, sizes[i]), *fresh;

			assert_ok(pv_link(s, p, &t->cells[0]));
			assert_ptr_equal(t->cells[0], p);
			assert_int_equal(store_records_sound(s).live_objects, 2);
			/* Not the last that was reserved, nor by the last word: the long way. */
			fresh = reserve_ok(s, type, sizes[n]);
			assert_ok(pv_cancel(s, reserve_ok(s, type, 64)));
			assert_ok(pv_replace(s, fresh, &t->cells[0], p));
			assert_ptr_equal(t->cells[0], fresh);
			assert_int_equal(pv_usable_bytes(s, p), 0);
			p = reserve_ok(s, type, sizes[n]);
			assert_ok(pv_replace(s, p, &t->cells[0], fresh));
			assert_int_equal(store_records_sound(s).live_objects, 2);
			assert_ok(pv_unlink(s, &t->cells[0], 4711, p));
			assert_int_equal((uintptr_t)t->cells[0], 4711);
			assert_int_equal(pv_usable_bytes(s, p), 0);
			assert_int_equal(store_records_sound(s).live_objects, 1);
		}
	}
	assert_ok(pv_close(s));
}

/* All that can be wrong, with an object that is a slot, or an extent. */
static void short_forms_refuse(struct pv_store *s, struct cells *t, pv_type_t type, size_t bytes)
{
	void *live = publish_ok(s, type, bytes, &t->cells[0]), *gone, *outside = NULL, *fresh;
	struct pv_check_report before;
	void *bad[8], *words[6];

	gone = publish_ok(s, type, bytes, &t->cells[1]);
	publish_ok(s, type, bytes, &t->cells[2]); /* so that the slab stays */
	assert_ok(pv_unlink(s, &t->cells[1], 0, gone));
	fresh = reserve_ok(s, type, bytes);
	if (fresh == gone) { /* the slot that was freed: another one, then */
		gone = fresh;
		fresh = reserve_ok(s, type, bytes);
		assert_ok(pv_cancel(s, gone));
	}
	memcpy(bad, (void *[]){NULL, gone, (uint8_t *)fresh + 8, (uint8_t *)live + 1, &outside,
			       s->segments[0].addr, (uint8_t *)s->base + s->window_bytes,
			       (void *)UINTPTR_MAX}, sizeof(bad));
	memcpy(words, (void *[]){NULL, &outside, (uint8_t *)t + 4, s->segments[0].addr,
				 (uint8_t *)s->base + s->window_bytes, (void *)(UINTPTR_MAX - 7)},
	       sizeof(words));
	t->cells[3] = s;
	before = store_records_sound(s);
	for (int warm = 0; warm < 2; warm++) { /* twice: with and without what the last call found out */
		for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
			assert_fails(pv_link(s, bad[i], &t->cells[3]), -EINVAL, "");
			assert_fails(pv_replace(s, bad[i], &t->cells[3], live), -EINVAL, "");
			assert_fails(pv_replace(s, fresh, &t->cells[3], bad[i]), -EINVAL, "");
			assert_fails(pv_unlink(s, &t->cells[3], 1, bad[i]), -EINVAL, "");
		}
		for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
			assert_fails(pv_link(s, fresh, words[i]), -EINVAL, "word");
			assert_fails(pv_replace(s, fresh, words[i], live), -EINVAL, "word");
			assert_fails(pv_unlink(s, words[i], 1, live), -EINVAL, "word");
		}
		assert_fails(pv_link(s, live, &t->cells[3]), -EINVAL, "is live, not reserved");
		assert_fails(pv_replace(s, live, &t->cells[3], live), -EINVAL, "is live, not reserved");
		assert_fails(pv_replace(s, fresh, &t->cells[3], fresh), -EINVAL,
			     "is reserved, not live");
		assert_fails(pv_unlink(s, &t->cells[3], 1, fresh), -EINVAL, "is reserved, not live");
		assert_ptr_equal(t->cells[3], s);
		assert_null(outside);
		assert_int_equal(store_records_sound(s).live_objects, before.live_objects);
		assert_int_equal(store_records_sound(s).reserved_objects, before.reserved_objects);
		/* Now the thread knows the word's pages and the object. */
		assert_ok(pv_replace(s, fresh, &t->cells[0], live));
		live = fresh;
		fresh = reserve_ok(s, type, bytes);
		if (fresh == gone)
			break;
	}
	assert_ok(pv_cancel(s, fresh));
	assert_ok(pv_free(s, &t->cells[0]));
	assert_ok(pv_free(s, &t->cells[2]));
}

static void short_forms_that_refuse(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = roomy_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");

	short_forms_refuse(s, t, type, 48);
	short_forms_refuse(s, t, type, 3000);
	short_forms_refuse(s, t, type, 40000);
	assert_int_equal(store_records_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

static void not_through_a_read_only_handle(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s = store_create(k, NULL), *r = NULL;
	struct cells *t = store_cells(s);
	void *p = publish_ok(s, store_bytes_type(s, "bytes"), 100, &t->cells[0]);

	assert_ok(pv_close(s));
	o.relocate = PV_RELOCATE_NEVER; /* where its pointers belong */
	assert_ok(store_try(k, &o, PV_RDONLY, &r));
	assert_fails(pv_realloc(r, &t->cells[0], 200), -EPERM, "read-only");
	assert_fails(pv_realloc(r, &t->cells[0], 100), -EPERM, "read-only");
	assert_fails(pv_reserve_aligned(r, 1, 100, 64, &p), -EPERM, "read-only");
	assert_fails(pv_reserve_aligned(r, 1, 100, 1 << 16, &p), -EPERM, "read-only");
	assert_fails(pv_link(r, p, &t->cells[1]), -EPERM, "read-only");
	assert_fails(pv_replace(r, p, &t->cells[1], p), -EPERM, "read-only");
	assert_fails(pv_unlink(r, &t->cells[0], 0, p), -EPERM, "read-only");
	assert_ptr_equal(t->cells[0], p);
	assert_ok(pv_close(r));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(realloc_of_slots),
		with_keeper(realloc_between_slots_and_extents),
		with_keeper(realloc_of_extents_in_place),
		with_keeper(realloc_does_not_grow_into_reservations),
		with_keeper(realloc_at_random),
		with_keeper(realloc_refuses),
		with_keeper(realloc_without_room),
		with_keeper(all_alignments),
		with_keeper(alignments_that_are_none),
		with_keeper(short_forms),
		with_keeper(short_forms_that_refuse),
		with_keeper(not_through_a_read_only_handle),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
