/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pointer maps: that every form of definition says what it should, what is refused, what a reference
 * names and how it is made to name something else, that maps come back from the index, and that what an
 * object has beyond what was asked for is no reference.
 */
#include "internal.h"
#include "support.h"
#include "typemap.h"

/* ---- what a map finds ---- */

struct found {
	unsigned int n;
	size_t off[200];
	const char *name[200];
	const uint8_t *object;
};

static int note(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	struct found *found = ctx;

	assert_true(found->n < 200);
	found->off[found->n] = (size_t)(at - found->object);
	found->name[found->n++] = f->name;
	return 0;
}

static struct pvi_type flat(const struct pv_typedef *def)
{
	struct pvi_type t;

	assert_ok(pvi_typemap_flatten(def, &t));
	return t;
}

/* The offsets that a map finds in an object, in ascending order and behind the last one SIZE_MAX. */
static void assert_finds(const struct pv_typedef *def, const void *object, size_t bytes,
			 const size_t *offsets)
{
	struct pvi_type t = flat(def);
	struct found found = {.object = object};
	unsigned int n = 0;

	assert_int_equal(pvi_typemap_visit(&t, (void *)(uintptr_t)object, bytes, note, &found), 0);
	for (unsigned int i = 1; i < found.n; i++) /* sort */
		for (unsigned int k = i; k && found.off[k] < found.off[k - 1]; k--) {
			size_t swap = found.off[k];

			found.off[k] = found.off[k - 1];
			found.off[k - 1] = swap;
		}
	for (; offsets[n] != SIZE_MAX; n++) {
		if (n >= found.n || found.off[n] != offsets[n])
			fail_msg("reference %u is not at %zu", n, offsets[n]);
	}
	assert_int_equal(found.n, n);
	pvi_typemap_free(&t);
}
#define FINDS(def, object, bytes, ...) \
	assert_finds(def, object, bytes, (const size_t[]){__VA_ARGS__ __VA_OPT__(, ) SIZE_MAX})

struct inner {
	uint64_t number;
	void *one;
	void *two[3];
};

struct all {
	void *plain;
	void *array[3];
	uint64_t low;  /* tag in the low bits */
	uint64_t high; /* in the high ones */
	int64_t distance;
	uint64_t offset;
	void *opaque;
	struct inner nested;
	struct inner several[2];
	struct {
		struct {
			void *deep;
		} in;
	} chain;
};

static const struct pv_typedef all_type =
	PV_TYPE(struct all, "all", 1, PV_POINTER(struct all, plain), PV_POINTER_TO(struct all, array, "all"),
		PV_TAGGED(struct all, low, ~15ull), PV_TAGGED(struct all, high, (1ull << 48) - 1),
		PV_RELATIVE(struct all, distance), PV_OFFSET(struct all, offset),
		PV_OPAQUE(struct all, opaque),
		PV_STRUCT(struct all, nested, struct inner, PV_POINTER(struct inner, one),
			  PV_POINTER(struct inner, two)),
		PV_STRUCT(struct all, several, struct inner, PV_POINTER(struct inner, one),
			  PV_POINTER(struct inner, two)),
		PV_POINTER(struct all, chain.in.deep));

static void every_kind(void **state)
{
	struct pvi_type t = flat(&all_type);
	struct all a = {0};
	size_t n = offsetof(struct all, nested), s = offsetof(struct all, several);

	(void)state;
	FINDS(&all_type, &a, sizeof(a), 0, 8, 16, 24, 32, 40, 48, 56, n + 8, n + 16, n + 24, n + 32, s + 8,
	      s + 16, s + 24, s + 32, s + 48, s + 56, s + 64, s + 72, offsetof(struct all, chain));
	/* Cut short, wherever: only whole words. */
	FINDS(&all_type, &a, 40, 0, 8, 16, 24, 32);
	FINDS(&all_type, &a, 39, 0, 8, 16, 24);
	FINDS(&all_type, &a, 7);
	FINDS(&all_type, &a, 0);
	assert_true(t.has_pointers && !t.simple && !t.flexible);
	assert_int_equal(t.npointers, 0);
	assert_string_equal(t.fields[0].name, "plain");
	assert_string_equal(t.fields[1].name, "array[]");
	assert_string_equal(t.fields[1].target, "all");
	assert_string_equal(t.fields[0].target, "");
	assert_string_equal(t.fields[6].name, "nested.one");
	assert_string_equal(t.fields[t.nfields - 1].name, "chain.in.deep");
	pvi_typemap_free(&t);
}

struct plain {
	void *a;
	uint64_t b;
	void *c[2];
};

static void simple_types_have_a_list(void **state)
{
	const struct pv_typedef def = PV_TYPE(struct plain, "p", 1, PV_POINTER(struct plain, c),
						     PV_POINTER(struct plain, a));
	const struct pv_typedef none = PV_TYPE_PLAIN(struct plain, "n", 1);
	struct pv_field many = {.name = "m",
				.kind = PV_FIELD_POINTER,
				.count = PVI_POINTERS_MAX,
				.stride = 8};
	struct pv_typedef large = {
		.name = "l", .bytes = 8 * PVI_POINTERS_MAX + 8, .fields = &many, .nfields = 1};
	struct pvi_type t = flat(&def);

	(void)state;
	assert_true(t.simple && t.has_pointers);
	assert_int_equal(t.npointers, 3);
	assert_int_equal(t.pointers[0], 0);
	assert_int_equal(t.pointers[1], 16);
	assert_int_equal(t.pointers[2], 24);
	pvi_typemap_free(&t);
	t = flat(&none);
	assert_true(t.simple && !t.has_pointers);
	assert_int_equal(t.npointers, 0);
	pvi_typemap_free(&t);
	/* Not longer than is good for a pass. */
	t = flat(&large);
	assert_true(t.simple);
	assert_int_equal(t.npointers, PVI_POINTERS_MAX);
	pvi_typemap_free(&t);
	many.count++;
	t = flat(&large);
	assert_true(!t.simple && t.has_pointers);
	assert_int_equal(t.npointers, 0);
	pvi_typemap_free(&t);
}

struct flexible {
	uint64_t x;
	void *first;
	void *rest[];
};

struct counted {
	uint16_t n;
	uint8_t used;
	void *four[4];
	struct {
		uint64_t weight;
		void *at;
	} edges[];
};

static void flexible_and_counted(void **state)
{
	const struct pv_typedef all =
		PV_TYPE(struct flexible, "f", 1, PV_POINTER(struct flexible, first),
			PV_POINTER_FLEX(struct flexible, rest));
	const struct pv_typedef some = PV_TYPE(
		struct counted, "c", 1, PV_POINTER_USED(struct counted, four, used),
		PV_STRUCT_COUNTED(struct counted, edges, PV_ELEMENT(struct counted, edges), n,
				  PV_POINTER(PV_ELEMENT(struct counted, edges), at)));
	const struct pv_typedef array =
		PV_TYPE_ARRAY(struct plain, "a", 1, PV_POINTER(struct plain, a));
	const struct pv_typedef words = PV_TYPE_ARRAY(void *, "w", 1, PV_POINTER_ITSELF);
	uint64_t room[64] = {0};
	struct counted *c = (void *)room;
	struct pvi_type t = flat(&all);

	(void)state;
	assert_true(t.flexible && !t.simple);
	pvi_typemap_free(&t);
	t = flat(&some);
	assert_true(!t.flexible && !t.simple);
	pvi_typemap_free(&t);
	FINDS(&all, room, 16, 8);
	FINDS(&all, room, 24, 8, 16);
	FINDS(&all, room, 47, 8, 16, 24, 32);
	FINDS(&words, room, 32, 0, 8, 16, 24);
	FINDS(&array, room, 32 * 3, 0, 32, 64);
	FINDS(&some, room, sizeof(room));
	c->n = 2;
	c->used = 3;
	FINDS(&some, room, sizeof(room), 8, 16, 24, 48, 64);
	/* What the object says it cannot have is not looked for. */
	c->used = 255;
	c->n = 65535;
	FINDS(&some, room, 100, 8, 16, 24, 32, 48, 64, 80);
	FINDS(&some, room, 3); /* the counts themselves, and no more */
	FINDS(&some, room, 2);
}

enum { LEAF = 1, BRANCH = 2 };

struct tree {
	uint32_t kind;
	uint32_t nkids;
	union {
		struct {
			uint64_t number;
			void *data;
		} leaf;
		void *kids[4];
		struct {
			uint8_t sub;
			union {
				void *x;
				uint64_t y;
			} v;
		} other;
	} u;
	uint64_t mixed; /* low bit: it is a pointer */
};

#define OTHER PV_ELEMENT(struct tree_others, others)
struct tree_others {
	typeof(((struct tree *)0)->u.other) others[1];
};

static void unions_by_discriminator(void **state)
{
	const struct pv_typedef def = PV_TYPE(
		struct tree, "tree", 1,
		PV_WHEN(struct tree, kind, LEAF, PV_POINTER(struct tree, u.leaf.data)),
		PV_WHEN(struct tree, kind, BRANCH, PV_POINTER_USED(struct tree, u.kids, nkids)),
		PV_WHEN(struct tree, kind, 3,
			PV_STRUCT(struct tree, u.other, OTHER, PV_WHEN(OTHER, sub, 7, PV_POINTER(OTHER, v.x)))),
		PV_WHEN_BITS(struct tree, mixed, 1, 1, PV_TAGGED(struct tree, mixed, ~15ull)));
	struct tree t = {0};
	size_t u = offsetof(struct tree, u), m = offsetof(struct tree, mixed);

	(void)state;
	FINDS(&def, &t, sizeof(t));
	t.mixed = 1;
	FINDS(&def, &t, sizeof(t), m);
	t.mixed = 2;
	t.kind = LEAF;
	FINDS(&def, &t, sizeof(t), u + 8);
	t.kind = BRANCH;
	FINDS(&def, &t, sizeof(t));
	t.nkids = 3;
	FINDS(&def, &t, sizeof(t), u, u + 8, u + 16);
	t.nkids = 70000;
	FINDS(&def, &t, sizeof(t), u, u + 8, u + 16, u + 24);
	t.kind = 3;
	FINDS(&def, &t, sizeof(t));
	t.u.other.sub = 7;
	FINDS(&def, &t, sizeof(t), u + 8);
	t.kind = LEAF | 256;
	FINDS(&def, &t, sizeof(t));
}

/* Arrays in arrays are written out one way or the other, and it makes no difference. */
static void arrays_in_arrays(void **state)
{
	struct slot {
		uint8_t n, tag;
		void *p[2];
		void *q;
	};
	struct wide {
		struct slot two[2];
		struct slot more[];
	};
	struct narrow {
		struct {
			void *a[5];
		} two[2];
	};
#define NARROW PV_ELEMENT(struct narrow, two)
	const struct pv_typedef def =
		PV_TYPE(struct wide, "wide", 1,
			PV_STRUCT(struct wide, two, struct slot, PV_POINTER_USED(struct slot, p, n),
				  PV_WHEN(struct slot, tag, 1, PV_POINTER(struct slot, q))),
			PV_STRUCT_FLEX(struct wide, more, struct slot, PV_POINTER_USED(struct slot, p, n),
				       PV_WHEN(struct slot, tag, 1, PV_POINTER(struct slot, q))));
	const struct pv_typedef narrow = PV_TYPE(
		struct narrow, "n", 1, PV_STRUCT(struct narrow, two, NARROW, PV_POINTER(NARROW, a)));
	struct {
		struct slot s[5];
	} o = {0};
	struct pvi_type t = flat(&narrow);

	(void)state;
	assert_int_equal(t.nfields, 2);
	assert_true(t.simple);
	assert_int_equal(t.npointers, 10);
	pvi_typemap_free(&t);
	FINDS(&narrow, &o, 80, 0, 8, 16, 24, 32, 40, 48, 56, 64, 72);
	FINDS(&def, &o, sizeof(o));
	o.s[0].n = 1;
	o.s[1].n = 2;
	o.s[1].tag = 1;
	o.s[3].n = 1;
	o.s[3].tag = 1;
	o.s[4].n = 200;
	FINDS(&def, &o, sizeof(o), 8, 40, 48, 56, 104, 120, 136, 144);
}

/* ---- what a reference names ---- */

static void targets(void **state)
{
	struct all a = {0};
	uint64_t base = 0x100000000000, to = base + 0x123450, elsewhere = base + 0x7650;
	struct pvi_type t = flat(&all_type);
	uint8_t *object = (void *)&a;
	uint64_t here = (uintptr_t)object;

	(void)state;
	a.low = 5;
	a.high = 0xabcdull << 48;
	for (uint32_t i = 0; i < t.nfields; i++) {
		const struct pvi_field *f = &t.fields[i];
		uint8_t *at = object + f->off;

		assert_int_equal(pvi_field_target(f, at, base), 0);
		pvi_field_retarget(f, at, to, base);
		assert_int_equal(pvi_field_target(f, at, base), to);
		pvi_field_retarget(f, at, elsewhere, base);
		assert_int_equal(pvi_field_target(f, at, base), elsewhere);
	}
	assert_ptr_equal(a.plain, elsewhere);
	assert_ptr_equal(a.array[0], elsewhere);
	assert_ptr_equal(a.array[1], NULL); /* one word at a time */
	assert_int_equal(a.low, elsewhere | 5);
	assert_int_equal(a.high, elsewhere | 0xabcdull << 48);
	assert_int_equal(a.distance, elsewhere - here - offsetof(struct all, distance));
	assert_int_equal(a.offset, 0x7650);
	assert_ptr_equal(a.opaque, NULL);
	/* The same store mapped somewhere else: distances count from where the word belongs. */
	assert_int_equal(pvi_field_names(&t.fields[4], (uint64_t)-8, base + 64, base), base + 56);
	assert_int_equal(pvi_field_word(&t.fields[4], 0, base + 64, base + 56, base), (uint64_t)-8);
	for (uint32_t i = 0; i < t.nfields; i++)
		pvi_field_retarget(&t.fields[i], object + t.fields[i].off, 0, base);
	assert_int_equal(a.low, 5);
	assert_int_equal(a.high, 0xabcdull << 48);
	assert_int_equal(a.distance, 0);
	assert_int_equal(a.offset, 0);
	pvi_typemap_free(&t);
}

static int stop_at_second(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	(void)at;
	(void)f;
	return ++*(int *)ctx == 2 ? -42 : 0;
}

static void a_walk_ends_when_told(void **state)
{
	struct pvi_type t = flat(&all_type);
	struct all a = {0};
	int n = 0;

	(void)state;
	assert_int_equal(pvi_typemap_visit(&t, (void *)&a, sizeof(a), stop_at_second, &n), -42);
	assert_int_equal(n, 2);
	pvi_typemap_free(&t);
}

struct links {
	int64_t self, other, none;
};

static void copies_keep_distances(void **state)
{
	const struct pv_typedef def =
		PV_TYPE(struct links, "links", 1, PV_RELATIVE(struct links, self),
			PV_RELATIVE(struct links, other), PV_RELATIVE(struct links, none));
	struct pvi_type t = flat(&def);
	struct links two[2], *a = &two[0], *b = &two[1];
	uint64_t far = (uintptr_t)a + 0x10000;

	(void)state;
	a->self = 16; /* to a->none */
	a->other = (int64_t)(far - (uintptr_t)&a->other);
	a->none = 0;
	pvi_typemap_copy(&t, (void *)b, (void *)a, sizeof(*a));
	assert_int_equal(b->self, 16);
	assert_int_equal((uintptr_t)&b->other + (uint64_t)b->other, far);
	assert_int_equal(b->none, 0);
	pvi_typemap_free(&t);
}

/* ---- what is refused ---- */

/* A plain pointer, of which a test changes something. */
#pragma GCC diagnostic ignored "-Woverride-init"
#define WORD(off_) .name = "w", .kind = PV_FIELD_POINTER, .offset = off_, .count = 1, .stride = 8


struct bad {
	struct pv_field v[2];
	uint32_t n;
	const char *says;
};

static const struct pv_field word_field = {WORD(0)};

static const struct bad bads[] = {
	{{{WORD(57)}}, 1, "field w: offset 57, 1 elements of 8 bytes: not within the 64 bytes"},
	{{{WORD(64)}}, 1, "field w: offset 64"},
	{{{WORD(0xfffffff8)}}, 1, "field w: offset 4294967288"},
	{{{WORD(4)}}, 1, "field w: references at offset 4"},
	{{{WORD(0), .count = 9}}, 1, "field w[]: offset 0, 9 elements"},
	{{{WORD(0), .count = 0}}, 1, "field w[]: 0 elements"},
	{{{WORD(0), .count = 0xfffffffe}}, 1, "not within the 64 bytes"},
	{{{WORD(0), .count = 2, .stride = 12}}, 1, "distance 12"},
	{{{WORD(0), .count = 2, .stride = 4}}, 1, "2 elements of 4 bytes"},
	{{{WORD(0), .stride = 0}}, 1, "1 elements of 0 bytes"},
	{{{WORD(72), .count = PV_FLEXIBLE}}, 1, "not within the 64 bytes"},
	{{{WORD(0), .kind = 0}}, 1, "there is no kind 0"},
	{{{WORD(0), .kind = 7}}, 1, "there is no kind 7"},
	{{{WORD(0), .name = NULL}}, 1, "the name \"(null)\""},
	{{{WORD(0), .name = ""}}, 1, "the name \"\""},
	{{{WORD(0), .name = "a b"}}, 1, "the name \"a b\""},
	{{{WORD(0), .name = "a2345678901234567890123456789012345678901234567890123456789012345"}}, 1,
	 "1 to 64"},
	{{{WORD(0), .target = "a b"}}, 1, "target \"a b\""},
	{{{WORD(0), .mask = 1}}, 1, "it is not tagged and has mask 0x1"},
	{{{WORD(0), .kind = PV_FIELD_TAGGED}}, 1, "mask 0x0 leaves out bits of addresses"},
	{{{WORD(0), .kind = PV_FIELD_TAGGED, .mask = 0xffffffff}}, 1, "leaves out bits of addresses"},
	{{{WORD(0), .kind = PV_FIELD_TAGGED, .mask = ~31ull}}, 1, "leaves out bits of addresses"},
	{{{WORD(0), .fields = &word_field, .nfields = 1}}, 1, "kind 1 with 1 fields in it"},
	{{{WORD(0), .kind = PV_FIELD_STRUCT}}, 1, "kind 5 with 0 fields in it"},
	{{{WORD(0), .kind = PV_FIELD_STRUCT, .nfields = 1}}, 1, "kind 5 with 1 fields in it"},
	{{{WORD(56), .kind = PV_FIELD_STRUCT, .stride = 16, .fields = &word_field, .nfields = 1}}, 1,
	 "offset 56, 1 elements of 16 bytes"},
	{{{WORD(0), .kind = PV_FIELD_STRUCT, .stride = 0, .fields = &word_field, .nfields = 1}}, 1,
	 "1 elements of 0 bytes"},
	{{{WORD(0), .kind = PV_FIELD_STRUCT, .stride = 4, .fields = &word_field, .nfields = 1}}, 1,
	 "field w.w: offset 0, 1 elements of 8 bytes: not within the 4 bytes"},
	{{{WORD(0), .kind = PV_FIELD_OPAQUE, .stride = 65}}, 1, "1 elements of 65 bytes: not within"},
	{{{WORD(0), .count = 4, .count_offset = 61, .count_bytes = 4}}, 1, "offset 61 of what counts it"},
	{{{WORD(0), .count = 4, .count_offset = 0xffffffff, .count_bytes = 8}}, 1, "what counts it"},
	{{{WORD(0), .count = 4, .count_offset = 32, .count_bytes = 3}}, 1, "not 3"},
	{{{WORD(0), .when_offset = 57, .when_bytes = 8, .when_mask = 1}}, 1, "offset 57 of what decides"},
	{{{WORD(0), .when_offset = 8, .when_bytes = 16, .when_mask = 1}}, 1, "not 16"},
	{{{WORD(0), .when_offset = 8, .when_bytes = 4, .when_mask = 0}}, 1, "mask 0x0"},
	{{{WORD(0), .when_offset = 8, .when_bytes = 1, .when_mask = 256}}, 1, "mask 0x100"},
	{{{WORD(0), .when_offset = 8, .when_bytes = 4, .when_mask = 3, .when_value = 4}}, 1,
	 "it counts for the value 0x4, which 0x3 does not cover"},
	/* Twice the same, or partly. */
	{{{WORD(8)}, {WORD(8), .name = "x"}}, 2, "is at the same place"},
	{{{WORD(8), .count = 4, .stride = 16}, {WORD(40), .name = "x"}}, 2, "is at the same place"},
	{{{WORD(8), .when_offset = 0, .when_bytes = 1, .when_mask = 255, .when_value = 1},
	  {WORD(8), .name = "x", .when_offset = 1, .when_bytes = 1, .when_mask = 255, .when_value = 2}},
	 2, "is at the same place"},
	{{{WORD(8), .when_offset = 0, .when_bytes = 1, .when_mask = 1, .when_value = 1},
	  {WORD(8), .name = "x", .when_offset = 0, .when_bytes = 1, .when_mask = 2, .when_value = 2}},
	 2, "is at the same place"},
	/* References that decide. */
	{{{WORD(8), .when_offset = 0, .when_bytes = 1, .when_mask = 1, .when_value = 1}, {WORD(0)}}, 2,
	 "it is a reference, and decides whether w is"},
	{{{WORD(8), .count = 2, .count_offset = 4, .count_bytes = 4}, {WORD(0)}}, 2,
	 "it is a reference, and decides"},
	{{{WORD(8), .kind = PV_FIELD_TAGGED, .mask = ~7ull, .when_offset = 8, .when_bytes = 1, .when_mask = 8,
	   .when_value = 8}},
	 1, "it is a reference, and decides whether w is"},
};

static void bad_definitions(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	uint64_t generation = store_info(s).generation;
	pv_type_t type = 4711;

	for (size_t i = 0; i < sizeof(bads) / sizeof(*bads); i++) {
		struct pv_typedef def = {
			.name = "t", .version = 1, .bytes = 64, .fields = bads[i].v, .nfields = bads[i].n};

		assert_fails(pv_type_register(s, &def, &type), -EINVAL, bads[i].says);
		assert_non_null(strstr(pv_last_error(), "type t: "));
	}
	assert_int_equal(type, 4711);
	assert_int_equal(store_info(s).generation, generation);
	assert_ok(pv_close(s));
}

/* Conditions that exclude each other make room for two. */
static void the_same_place_under_conditions(void **state)
{
	static const struct pv_field good[] = {
		{WORD(8), .when_offset = 0, .when_bytes = 1, .when_mask = 3, .when_value = 1},
		{WORD(8), .when_offset = 0, .when_bytes = 1, .when_mask = 3, .when_value = 2,
		 .target = "other"},
		{WORD(8), .when_offset = 0, .when_bytes = 1, .when_mask = 1, .when_value = 0},
	};
	/* A tag in a word's own bits decides. */
	static const struct pv_field own[] = {
		{WORD(8), .kind = PV_FIELD_TAGGED, .mask = ~7ull, .when_offset = 8, .when_bytes = 8,
		 .when_mask = 7, .when_value = 3}};
	struct pv_typedef def = {.name = "t", .bytes = 16, .fields = good, .nfields = 2};
	struct pvi_type t = flat(&def);

	(void)state;
	pvi_typemap_free(&t);
	def.nfields = 3; /* 2 & 1 is 0 as well */
	assert_int_equal(pvi_typemap_flatten(&def, &t), -EINVAL);
	def.fields = own;
	def.nfields = 1;
	t = flat(&def);
	pvi_typemap_free(&t);
}

static void limits(void **state)
{
	/* A chain of structs in each other, the innermost with a word. */
	struct pv_field chain[12];
	struct pv_field many[PVI_FIELDS_MAX + 1];
	struct pv_field outer = {.name = "o", .kind = PV_FIELD_STRUCT, .count = PV_FLEXIBLE, .stride = 8 * 2000};
	struct pv_field inner = {WORD(0), .count = PVI_FIELDS_MAX};
	const struct pv_field nothing = {.name = "x", .kind = PV_FIELD_OPAQUE, .count = 1, .stride = 1};
	struct pv_field huge[3];
	struct pv_typedef def = {.name = "t", .bytes = 8, .nfields = 1};
	struct pvi_type t;

	(void)state;
	for (int depth = 8; depth <= 9; depth++) {
		for (int i = 0; i < depth; i++)
			chain[i] = (struct pv_field){.name = "s",
						     .kind = PV_FIELD_STRUCT,
						     .count = 1,
						     .stride = 8,
						     .fields = i ? &chain[i - 1] : &word_field,
						     .nfields = 1};
		def.fields = &chain[depth - 1];
		assert_int_equal(pvi_typemap_flatten(&def, &t), depth == 8 ? 0 : -EINVAL);
		if (depth == 8)
			pvi_typemap_free(&t);
	}
	assert_non_null(strstr(pv_last_error(), "more than 8 structs in each other"));
	/* Paths of names. */
	for (int i = 0; i < 2; i++)
		chain[i] = (struct pv_field){
			.name = "a234567890123456789012345678901234567890123456789012345678901234",
			.kind = PV_FIELD_STRUCT, .count = 1, .stride = 8,
			.fields = i ? &chain[0] : &word_field, .nfields = 1};
	def.fields = &chain[1];
	assert_fails(pvi_typemap_flatten(&def, &t), -EINVAL, "more than 127 characters");
	/* Entries. */
	for (uint32_t i = 0; i <= PVI_FIELDS_MAX; i++)
		many[i] = (struct pv_field){WORD(8 * i)};
	def = (struct pv_typedef){
		.name = "t", .bytes = sizeof(uint64_t) * 2000, .fields = many, .nfields = PVI_FIELDS_MAX};
	t = flat(&def);
	assert_int_equal(t.nfields, PVI_FIELDS_MAX);
	pvi_typemap_free(&t);
	def.nfields++;
	assert_fails(pvi_typemap_flatten(&def, &t), -EINVAL, "more than 1024 references");
	outer.fields = &inner;
	outer.nfields = 1;
	def.fields = &outer;
	def.nfields = 1;
	t = flat(&def);
	assert_int_equal(t.nfields, PVI_FIELDS_MAX);
	pvi_typemap_free(&t);
	inner.count++;
	assert_fails(pvi_typemap_flatten(&def, &t), -EINVAL, "more than 1024 references");
	inner.count = PV_FLEXIBLE;
	assert_fails(pvi_typemap_flatten(&def, &t), -EINVAL, "a flexible array in the elements of an array");
	/* Nothing to write out, a great many times. */
	for (int i = 0; i < 3; i++)
		huge[i] = (struct pv_field){.name = "h",
					    .kind = PV_FIELD_STRUCT,
					    .count = i ? 1u << 13 : 32,
					    .stride = i == 2 ? 1 : i == 1 ? 1u << 13 : 1u << 26,
					    .fields = i == 2 ? &nothing : &huge[i + 1],
					    .nfields = 1};
	def.bytes = 1u << 31;
	def.fields = huge;
	assert_fails(pvi_typemap_flatten(&def, &t), -EINVAL, "too long");
}

/* ---- through the index ---- */

struct rich {
	uint32_t kind;
	uint16_t n;
	uint64_t tagged;
	union {
		void *a;
		uint64_t b;
	} u;
	struct {
		uint8_t used;
		void *p[2];
	} more[];
};
#define MORE PV_ELEMENT(struct rich, more)
#define RICH_FIELDS(tag_mask, kind_value, target)                                                  \
	PV_TAGGED(struct rich, tagged, tag_mask),                                                  \
		PV_WHEN(struct rich, kind, kind_value, PV_POINTER_TO(struct rich, u.a, target)),   \
		PV_STRUCT_COUNTED(struct rich, more, MORE, n, PV_POINTER_USED(MORE, p, used))

static void maps_come_back(void **state)
{
	const struct pv_typedef rich =
		PV_TYPE(struct rich, "rich", 3, RICH_FIELDS(~7ull, 5, "rich"));
	const struct pv_typedef mask = PV_TYPE(struct rich, "rich", 3, RICH_FIELDS(~3ull, 5, "rich"));
	const struct pv_typedef value = PV_TYPE(struct rich, "rich", 3, RICH_FIELDS(~7ull, 6, "rich"));
	const struct pv_typedef target = PV_TYPE(struct rich, "rich", 3, RICH_FIELDS(~7ull, 5, "plain"));
	const struct pv_typedef pinned = {PV_TYPE_OF(struct rich, "pinned", 3, RICH_FIELDS(~7ull, 5, "x")),
						 .flags = PV_TYPE_PINNED};
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pvi_type want = flat(&rich), *have;
	pv_type_t type, other;

	assert_ok(pv_type_register(s, &rich, &type));
	assert_ok(pv_type_register(s, &pinned, &other));
	for (int again = 0; again < 2; again++) {
		have = &s->index.types[type];
		assert_int_equal(have->nfields, want.nfields);
		assert_int_equal(have->fingerprint, want.fingerprint);
		for (uint32_t i = 0; i < want.nfields; i++) {
			struct pvi_field a = have->fields[i], b = want.fields[i];

			assert_string_equal(a.name, b.name);
			assert_string_equal(a.target, b.target);
			a.name = b.name;
			a.target = b.target;
			assert_memory_equal(&a, &b, sizeof(a));
		}
		assert_int_equal(s->index.types[other].flags, PV_TYPE_PINNED);
		assert_ok(pv_type_register(s, &rich, &other));
		assert_int_equal(other, type);
		assert_ok(pv_type_register(s, &target, &other)); /* for people, and what is recorded stays */
		assert_string_equal(s->index.types[type].fields[1].target, "rich");
		assert_fails(pv_type_register(s, &mask, &other), -EMEDIUMTYPE,
			     "tagged: tagged pointer at 8, mask 0xfffffffffffffffc");
		assert_fails(pv_type_register(s, &value, &other), -EMEDIUMTYPE,
			     "the store has version 3, 24 bytes, references {tagged: tagged pointer at 8, "
			     "mask 0xfffffffffffffff8; u.a: pointer to rich at 16 if the 4 bytes at 0 are 5; "
			     "more[].p[]: pointer at 32 and every 24 bytes, counted at 4 if the 1 bytes at 24 "
			     "are above 0; more[].p[]: pointer at 40");
		assert_non_null(strstr(pv_last_error(), "u.a: pointer to rich at 16 if the 4 bytes at 0 are 6"));
		assert_ok(pv_type_register(s, &pinned, &other));
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
	}
	assert_ok(pv_close(s));
	pvi_typemap_free(&want);
}

/* The order of a program's lines, and how it spells an array of one, mean nothing. */
static void the_same_map_spelt_otherwise(void **state)
{
	const struct pv_typedef one = PV_TYPE(struct plain, "p", 1, PV_POINTER(struct plain, a),
						     PV_POINTER(struct plain, c));
	const struct pv_typedef two = PV_TYPE(struct plain, "p", 1, PV_POINTER(struct plain, c),
						     PV_OPAQUE(struct plain, b), PV_POINTER(struct plain, a));
	struct pv_field nested[] = {{.name = "whole",
				     .kind = PV_FIELD_STRUCT,
				     .count = 1,
				     .stride = sizeof(struct plain),
				     .fields = one.fields,
				     .nfields = one.nfields}};
	struct pv_typedef three = {
		.name = "p", .version = 1, .bytes = sizeof(struct plain), .fields = nested, .nfields = 1};
	struct pvi_type a = flat(&one), b = flat(&two), c = flat(&three);

	(void)state;
	assert_int_equal(a.fingerprint, b.fingerprint);
	assert_int_equal(a.fingerprint, c.fingerprint);
	pvi_typemap_free(&a);
	pvi_typemap_free(&b);
	pvi_typemap_free(&c);
}

/* ---- objects ---- */

static void assert_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		assert_int_equal(p[i], 0);
}

/* All bytes of many objects are made dirty and given back; then others are taken. */
static void what_was_not_asked_for_is_zero(void **state)
{
	const struct pv_typedef def = PV_TYPE_ARRAY(void *, "pointers", 1, PV_POINTER_ITSELF);
	static const size_t sizes[] = {8, 24, 40, 200, 1000, 3000, 4100, 20000, 100000};
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	void *v[40], **dest = &cells->cells[0];
	uint8_t *p;
	pv_type_t type;

	assert_ok(pv_type_register(s, &def, &type));
	for (int round = 0; round < 3; round++) {
		for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
			size_t bytes = sizes[i], n = bytes < 1000 ? 40 : 3, usable;

			for (size_t o = 0; o < n; o++) {
				v[o] = reserve_ok(s, type, bytes);
				usable = pv_usable_bytes(s, v[o]);
				assert_zero((uint8_t *)v[o] + bytes, usable - bytes);
				memset(v[o], 0xa5, usable);
			}
			for (size_t o = 0; o < n; o++)
				assert_ok(pv_cancel(s, v[o]));
			for (size_t align = 32; align <= 8192; align *= 4) {
				assert_ok(pv_reserve_aligned(s, type, bytes, align, (void **)&p));
				usable = pv_usable_bytes(s, p);
				assert_zero(p + bytes, usable - bytes);
				memset(p, 0xa5, usable);
				assert_ok(pv_cancel(s, p));
			}
		}
		/* Another size: what is new is zero, what was there stays. */
		assert_ok(pv_alloc(s, type, 8, dest));
		for (size_t i = 0, had = 8; i < sizeof(sizes) / sizeof(*sizes); had = sizes[i++]) {
			p = *dest;
			for (size_t b = 0; b < had / 8; b++)
				((uint64_t *)(void *)p)[b] = b + 1;
			assert_ok(pv_realloc(s, dest, sizes[i]));
			p = *dest;
			for (size_t b = 0; b < had / 8; b++)
				assert_int_equal(((uint64_t *)(void *)p)[b], b + 1);
			assert_zero(p + had, pv_usable_bytes(s, p) - had);
		}
		assert_ok(pv_free(s, dest));
		/* Dirt where extents are going to grow. */
		for (int o = 0; o < 4; o++) {
			v[o] = reserve_ok(s, type, 100000);
			memset(v[o], 0xa5, pv_usable_bytes(s, v[o]));
		}
		for (int o = 0; o < 4; o++)
			assert_ok(pv_cancel(s, v[o]));
	}
	store_sound(s);
	assert_ok(pv_close(s));
}

static void distances_through_realloc(void **state)
{
	const struct pv_typedef def =
		PV_TYPE(struct links, "links", 1, PV_RELATIVE(struct links, self),
			PV_RELATIVE(struct links, other), PV_RELATIVE(struct links, none));
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *cells = store_cells(s);
	struct links *a, *b;
	pv_type_t type;

	assert_ok(pv_type_register(s, &def, &type));
	assert_ok(pv_alloc(s, type, sizeof(*a), &cells->cells[0]));
	b = publish_ok(s, type, sizeof(*b), &cells->cells[1]);
	a = cells->cells[0];
	a->self = 8;
	a->other = (int64_t)((uintptr_t)b - (uintptr_t)&a->other);
	assert_ok(pv_realloc(s, &cells->cells[0], 500));
	assert_ptr_not_equal(cells->cells[0], a);
	a = cells->cells[0];
	assert_int_equal(a->self, 8);
	assert_int_equal((uintptr_t)&a->other + (uint64_t)a->other, b);
	assert_int_equal(a->none, 0);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind),
		cmocka_unit_test(simple_types_have_a_list),
		cmocka_unit_test(flexible_and_counted),
		cmocka_unit_test(unions_by_discriminator),
		cmocka_unit_test(arrays_in_arrays),
		cmocka_unit_test(targets),
		cmocka_unit_test(a_walk_ends_when_told),
		cmocka_unit_test(copies_keep_distances),
		with_keeper(bad_definitions),
		cmocka_unit_test(the_same_place_under_conditions),
		cmocka_unit_test(limits),
		with_keeper(maps_come_back),
		cmocka_unit_test(the_same_map_spelt_otherwise),
		with_keeper(what_was_not_asked_for_is_zero),
		with_keeper(distances_through_realloc),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
