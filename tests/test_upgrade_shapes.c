/* SPDX-License-Identifier: BSD-3-Clause */
/* Layout upgrade of objects that are more than a struct of fixed size with pointers: texts and arrays
 * behind the struct, opaque bytes, extents, tagged words, distances, offsets. */
#include <inttypes.h>

#include <preserve/upgrade.h>

#include "internal.h"
#include "support.h"

#define OBJECTS 60u

/* ---- something behind the struct ---- */

struct text1 {
	uint32_t length;
	char text[];
};
struct text2 {
	uint64_t hash;
	uint64_t length;
	char text[];
};

static size_t text_length(uint32_t i)
{
	return i * i % 700 + i % 3; /* up to some hundred bytes: many classes */
}

static int text_1_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct text1 *from = old;
	struct text2 *to = fresh;

	assert_true(old_bytes >= sizeof(*from) + from->length);
	assert_true(fresh_bytes >= sizeof(*to) + from->length);
	to->length = from->length;
	memcpy(to->text, from->text, from->length);
	for (size_t i = 0; i < to->length; i++)
		to->hash += (uint8_t)to->text[i];
	return 0;
}

static size_t text_2_bytes(void *ctx, const void *old, size_t old_bytes)
{
	const struct text1 *from = old;

	return ctx ? *(size_t *)ctx : sizeof(struct text2) + from->length;
}

static const struct pv_typedef text_v1 = PV_TYPE_PLAIN(struct text1, "text", 1);

static struct pv_typedef text_v2(const struct pv_upgrade *up)
{
	struct pv_typedef def = PV_TYPE_PLAIN(struct text2, "text", 2);

	def.upgrades = up;
	def.nupgrades = 1;
	return def;
}

static struct pv_store *text_store(struct keeper *k)
{
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	pv_type_t type;

	assert_ok(pv_type_register(s, &text_v1, &type));
	for (uint32_t i = 0; i < OBJECTS; i++) {
		size_t n = text_length(i);
		struct text1 *t = reserve_ok(s, type, sizeof(*t) + n);

		t->length = (uint32_t)n;
		pattern_fill(t->text, n, i);
		assert_ok(pv_link(s, t, &cells->cells[i]));
	}
	return s;
}

/* usable: what the objects may take, as a function of what they need. */
static void texts_hold(struct pv_store *s, bool exact)
{
	struct cells *cells = store_cells(s);

	for (uint32_t i = 0; i < OBJECTS; i++) {
		const struct text2 *t = cells->cells[i];
		size_t n = text_length(i), need = sizeof(*t) + n, usable = pv_usable_bytes(s, t);
		uint64_t hash = 0;

		assert_int_equal(t->length, n);
		assert_true(pattern_holds(t->text, n, i));
		for (size_t at = 0; at < n; at++)
			hash += (uint8_t)t->text[at];
		assert_int_equal(t->hash, hash);
		assert_true(usable >= need);
		if (exact)
			assert_int_equal(usable, s->classes[pvi_class_of(need)].slot_bytes);
	}
	assert_int_equal(store_sound(s).live_objects, OBJECTS + 1);
}

static void texts_keep_their_length(void **state)
{
	struct pv_upgrade up = PV_UPGRADE_WITH_TAIL(1, 2, struct text2, text_1_to_2);
	struct pv_typedef v2 = text_v2(&up);
	struct keeper *k = *state;
	struct pv_store *s = text_store(k);
	pv_type_t type;

	assert_ok(pv_type_register(s, &v2, &type));
	texts_hold(s, false);
	keeper_crash(k, &s);
	s = store_attach(k, NULL);
	texts_hold(s, false);
	assert_ok(pv_close(s));
}

static void texts_of_a_size_that_a_function_says(void **state)
{
	struct pv_upgrade up = PV_UPGRADE_SIZED(1, 2, struct text2, text_1_to_2, text_2_bytes);
	struct pv_typedef v2 = text_v2(&up);
	struct keeper *k = *state;
	struct pv_store *s = text_store(k);
	const struct pv_typedef *def = &v2;
	size_t wrong = sizeof(struct text2) - 1;
	pv_type_t type;

	up.ctx = &wrong;
	assert_fails(pv_type_register(s, &v2, &type), -EINVAL, "15 bytes for an object of a struct of 16");
	assert_fails(pv_types_plan(s, &def, 1, NULL, NULL), -EINVAL, "15 bytes");
	wrong = (size_t)1 << 60;
	assert_fails(pv_type_register(s, &v2, &type), -ENOSPC, "window");
	assert_fails(pv_types_plan(s, &def, 1, NULL, NULL), -ENOSPC, "window");
	up.ctx = NULL;
	assert_ok(pv_type_register(s, &v2, &type));
	texts_hold(s, true);
	up.flags = PV_UPGRADE_TAIL;
	assert_fails(pv_type_register(s, &v2, &type), -EINVAL, "PV_UPGRADE_TAIL");
	assert_ok(pv_close(s));
}

static int nothing(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	return 0;
}

static void a_text_is_not_cut_off(void **state)
{
	struct pv_upgrade up = PV_UPGRADE(1, 2, struct text2, text_1_to_2);
	struct pv_typedef v2 = text_v2(&up);
	struct keeper *k = *state;
	struct pv_store *s = text_store(k);
	pv_type_t type;

	up.run = nothing;
	assert_fails(pv_type_register(s, &v2, &type), -EINVAL, "PV_UPGRADE_WITH_TAIL");
	assert_ok(pv_type_register(s, &text_v1, &type));
	assert_int_equal(store_sound(s).live_objects, OBJECTS + 1);
	assert_ok(pv_close(s));
}

/* ---- flexible arrays of pointers ---- */

struct fan1 {
	uint32_t n;
	uint32_t id;
	void *to[];
};
struct fan2 {
	uint64_t id;
	uint64_t n;
	void *back; /* the table of cells */
	void *to[];
};

static void *table; /* of cells, for fan_1_to_2() */

static int fan_1_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct fan1 *from = old;
	struct fan2 *to = fresh;

	to->id = from->id;
	to->n = from->n;
	to->back = table;
	memcpy(to->to, from->to, from->n * sizeof(void *));
	return 0;
}

static const struct pv_upgrade fan_up[] = {PV_UPGRADE_WITH_TAIL(1, 2, struct fan2, fan_1_to_2)};
static const struct pv_typedef fan_v1 =
	PV_TYPE(struct fan1, "fan", 1, PV_POINTER_COUNTED(struct fan1, to, n));
static const struct pv_typedef fan_v2 = {
	PV_TYPE_OF(struct fan2, "fan", 2, PV_POINTER(struct fan2, back),
		   PV_POINTER_COUNTED(struct fan2, to, n)),
	.nupgrades = 1,
	.upgrades = fan_up,
};

static uint32_t fan_names(uint32_t id, uint32_t k)
{
	return (id * 7 + k * k) % OBJECTS;
}

/* Fans of many sizes, up to extents, whose pointers name one another. */
static void flexible_arrays_and_extents(void **state)
{
	struct pv_upgrade cut = PV_UPGRADE(1, 2, struct fan2, fan_1_to_2);
	struct pv_typedef without_tail = fan_v2;
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	uint32_t lengths[OBJECTS];
	pv_type_t type;

	table = cells;
	assert_ok(pv_type_register(s, &fan_v1, &type));
	for (uint32_t i = 0; i < OBJECTS; i++) {
		struct fan1 *f;

		/* 4096-byte pages: slots of up to 32 KiB, extents beyond */
		lengths[i] = i < 57 ? i * 3 : i == 57 ? 4096 : i == 58 ? 4093 : 5000;
		f = reserve_ok(s, type, sizeof(*f) + lengths[i] * sizeof(void *));
		memset(f, 0, sizeof(*f) + lengths[i] * sizeof(void *));
		*f = (struct fan1){lengths[i], i};
		assert_ok(pv_link(s, f, &cells->cells[i]));
	}
	for (uint32_t i = 0; i < OBJECTS; i++)
		for (uint32_t n = 0; n < lengths[i]; n++)
			((struct fan1 *)cells->cells[i])->to[n] = cells->cells[fan_names(i, n)];
	without_tail.upgrades = &cut;
	assert_fails(pv_type_register(s, &without_tail, &type), -EINVAL, "flexible array");
	assert_ok(pv_type_register(s, &fan_v2, &type));
	for (int again = 0; again < 2; again++) {
		for (uint32_t i = 0; i < OBJECTS; i++) {
			const struct fan2 *f = cells->cells[i];

			assert_int_equal(f->id, i);
			assert_int_equal(f->n, lengths[i]);
			assert_ptr_equal(f->back, cells);
			for (uint32_t n = 0; n < lengths[i]; n++)
				assert_ptr_equal(f->to[n], cells->cells[fan_names(i, n)]);
		}
		assert_int_equal(store_sound(s).live_objects, OBJECTS + 1);
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
		cells = store_cells(s);
	}
	assert_ok(pv_close(s));
}

/* ---- opaque bytes ---- */

static int bytes_1_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	assert_int_equal(old_bytes, fresh_bytes);
	for (size_t i = 0; i < old_bytes; i++)
		((uint8_t *)fresh)[i] = (uint8_t)~((const uint8_t *)old)[i];
	return 0;
}

static void opaque_bytes(void **state)
{
	struct pv_upgrade up = {.from = 1, .to = 2, .run = bytes_1_to_2};
	struct pv_typedef v1 = PV_TYPE_BYTES("bytes", 1), v2 = PV_TYPE_BYTES("bytes", 2);
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	pv_type_t type;

	v2.upgrades = &up;
	v2.nupgrades = 1;
	assert_ok(pv_type_register(s, &v1, &type));
	for (uint32_t i = 0; i < OBJECTS; i++)
		memset(publish_ok(s, type, 1 + i * i * 11, &cells->cells[i]), (int)i, 1 + i * i * 11);
	assert_ok(pv_type_register(s, &v2, &type));
	for (uint32_t i = 0; i < OBJECTS; i++)
		for (size_t at = 0; at < 1 + i * i * 11; at++)
			assert_int_equal(((uint8_t *)cells->cells[i])[at], (uint8_t)~i);
	assert_int_equal(store_sound(s).live_objects, OBJECTS + 1);
	assert_ok(pv_close(s));
}

/* ---- other references than pointers ---- */

#define LOW 7ull

struct refs1 {
	uint64_t tagged;
	int64_t relative;
	uint64_t offset;
	uint64_t id;
};
struct refs2 {
	uint64_t id;
	char filler[72];
	uint64_t offset;
	uint64_t tagged;
	int64_t relative;
};

static int refs_1_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct refs1 *from = old;
	struct refs2 *to = fresh;

	to->id = from->id;
	to->tagged = from->tagged;
	to->offset = from->offset;
	to->relative = (int64_t)((uintptr_t)&from->relative + (uint64_t)from->relative -
				 (uintptr_t)&to->relative);
	return 0;
}

static int refs_2_to_3(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct refs2 *from = old;
	struct refs1 *to = fresh; /* version 3 is as version 1 was */

	to->id = from->id;
	to->tagged = from->tagged;
	to->offset = from->offset;
	to->relative = (int64_t)((uintptr_t)&from->relative + (uint64_t)from->relative -
				 (uintptr_t)&to->relative);
	return 0;
}

static const struct pv_upgrade refs_up[] = {PV_UPGRADE(1, 2, struct refs2, refs_1_to_2),
					    PV_UPGRADE(2, 3, struct refs1, refs_2_to_3)};
#define REFS_FIELDS(type)                                                                        \
	PV_TAGGED(type, tagged, ~LOW), PV_RELATIVE(type, relative), PV_OFFSET(type, offset)
static const struct pv_typedef refs_v1 =
	PV_TYPE(struct refs1, "refs", 1, REFS_FIELDS(struct refs1));
static const struct pv_typedef refs_v2 = {
	PV_TYPE_OF(struct refs2, "refs", 2, REFS_FIELDS(struct refs2)),
	.nupgrades = 1,
	.upgrades = refs_up,
};
static const struct pv_typedef refs_v3 = {
	PV_TYPE_OF(struct refs1, "refs", 3, REFS_FIELDS(struct refs1)),
	.nupgrades = 2,
	.upgrades = refs_up,
};

/* Object i names i + 1, i + 2 and i + 3. */
static void tagged_relative_offset(void **state, bool chain)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	uint64_t base = store_info(s).base;
	pv_type_t type;

	assert_ok(pv_type_register(s, &refs_v1, &type));
	for (uint32_t i = 0; i < OBJECTS; i++)
		publish_ok(s, type, sizeof(struct refs1), &cells->cells[i]);
	for (uint64_t i = 0; i < OBJECTS; i++) {
		struct refs1 *r = cells->cells[i];

		r->id = i;
		r->tagged = (uintptr_t)cells->cells[(i + 1) % OBJECTS] | (i & LOW);
		r->relative = (char *)cells->cells[(i + 2) % OBJECTS] - (char *)&r->relative;
		r->offset = (uintptr_t)cells->cells[(i + 3) % OBJECTS] - base;
	}
	assert_ok(pv_type_register(s, chain ? &refs_v3 : &refs_v2, &type));
	for (uint64_t i = 0; i < OBJECTS; i++) {
		struct refs1 *r = cells->cells[i], as1;

		if (!chain) {
			struct refs2 *two = cells->cells[i];

			as1 = (struct refs1){two->tagged, two->relative, two->offset, two->id};
			as1.relative += (char *)&two->relative - (char *)&r->relative;
		} else {
			as1 = *r;
		}
		assert_int_equal(as1.id, i);
		assert_int_equal(as1.tagged, (uintptr_t)cells->cells[(i + 1) % OBJECTS] | (i & LOW));
		assert_ptr_equal((char *)&r->relative + as1.relative, cells->cells[(i + 2) % OBJECTS]);
		assert_int_equal(as1.offset, (uintptr_t)cells->cells[(i + 3) % OBJECTS] - base);
	}
	assert_int_equal(store_sound(s).live_objects, OBJECTS + 1);
	assert_ok(pv_close(s));
}

static void other_references(void **state)
{
	tagged_relative_offset(state, false);
}

static void other_references_through_a_chain(void **state)
{
	tagged_relative_offset(state, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(texts_keep_their_length),
		with_keeper(texts_of_a_size_that_a_function_says),
		with_keeper(a_text_is_not_cut_off),
		with_keeper(flexible_arrays_and_extents),
		with_keeper(opaque_bytes),
		with_keeper(other_references),
		with_keeper(other_references_through_a_chain),
	};

	return cmocka_run_group_tests_name("upgrade-shapes", tests, NULL, NULL);
}
