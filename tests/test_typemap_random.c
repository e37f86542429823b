/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pointer maps at random: nested definitions of all shapes, flattened, against a model that walks the
 * definition itself; pairs of loops against counting their words; and cells that nobody has written, with
 * objects that end where memory ends.
 */
#include <sys/mman.h>

#include "internal.h"
#include "support.h"
#include "typemap.h"

#define OBJECT_MAX   8192u
#define FIELDS_MAX   6u
#define STRUCTS_MAX  40u
#define HEAD_BYTES   16u /* of each struct: 8 tags of a byte, 4 counts of two */
#define REFERENCES   8192u

/* ---- objects that end at a page that is not there ---- */

static uint8_t *arena;

static int make_arena(void **state)
{
	(void)state;
	arena = mmap(NULL, OBJECT_MAX + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return arena == MAP_FAILED || mprotect(arena + OBJECT_MAX, 4096, PROT_NONE);
}

static int drop_arena(void **state)
{
	(void)state;
	return munmap(arena, OBJECT_MAX + 4096);
}

static uint8_t *object_of(size_t bytes)
{
	return arena + OBJECT_MAX - bytes;
}

/* Small numbers for tags and counts to agree with, and others. */
static void fill_object(uint64_t *r, uint8_t *object, size_t bytes)
{
	bool small = random_below(r, 4) != 0;

	for (size_t i = 0; i < bytes; i++)
		object[i] = (uint8_t)(small ? i % 2 && i % 16 >= 8 ? 0 : random_below(r, 4) : random_next(r));
}

/* ---- definitions ---- */

struct made {
	struct pv_field fields[STRUCTS_MAX][FIELDS_MAX + 1];
	uint32_t nstructs;
	uint64_t *r;
};

static uint32_t below(struct made *m, uint32_t n)
{
	return (uint32_t)random_below(m->r, n);
}

static void maybe_when(struct made *m, struct pv_field *f)
{
	static const uint32_t sizes[] = {1, 2, 4, 8};

	if (below(m, 3))
		return;
	f->when_bytes = sizes[below(m, 4)];
	f->when_offset = below(m, HEAD_BYTES / 2 - f->when_bytes + 1);
	f->when_mask = below(m, 2) ? 3 : 1;
	f->when_value = below(m, 4) & f->when_mask;
}

static void maybe_counted(struct made *m, struct pv_field *f)
{
	if (below(m, 2)) {
		f->count_bytes = 2;
		f->count_offset = HEAD_BYTES / 2 + 2 * below(m, 4);
	}
}

static uint32_t make_struct(struct made *m, uint32_t depth, uint32_t *number, uint32_t *bytes);

static void make_nested(struct made *m, uint32_t depth, struct pv_field *f)
{
	uint32_t number, bytes;

	f->kind = PV_FIELD_STRUCT;
	f->nfields = make_struct(m, depth + 1, &number, &bytes);
	f->fields = m->fields[number];
	f->stride = bytes + 8 * below(m, 2);
	if (!f->nfields) { /* nothing was room for */
		f->kind = PV_FIELD_OPAQUE;
		f->fields = NULL;
	}
}

/* A field at `offset`; returns how many bytes it takes. */
static uint32_t make_field(struct made *m, uint32_t depth, struct pv_field *f, uint32_t offset)
{
	*f = (struct pv_field){.name = "f", .offset = offset, .count = 1, .stride = 8};
	switch (below(m, 7)) {
	case 0:
		f->kind = PV_FIELD_TAGGED;
		f->mask = ~7ull;
		break;
	case 1:
		f->kind = below(m, 2) ? PV_FIELD_RELATIVE : PV_FIELD_OFFSET;
		break;
	case 2:
		f->kind = PV_FIELD_OPAQUE;
		f->stride = 1 + below(m, 20);
		break;
	case 3:
	case 4:
		if (depth < 3 && m->nstructs < STRUCTS_MAX) {
			make_nested(m, depth, f);
			break;
		}
		/* fall through */
	default:
		f->kind = PV_FIELD_POINTER;
		break;
	}
	if (below(m, 2)) {
		f->count = 1 + below(m, 4);
		maybe_counted(m, f);
	}
	maybe_when(m, f);
	return (f->count * f->stride + 7) & ~7u;
}

/* Fields one behind the other, some with two on top of each other, of which a tag chooses one. */
static uint32_t make_struct(struct made *m, uint32_t depth, uint32_t *number, uint32_t *bytes)
{
	uint32_t n = 0, offset = HEAD_BYTES, want = 1 + below(m, FIELDS_MAX - 1);
	struct pv_field *fields = m->fields[*number = m->nstructs++];

	while (n < want) {
		struct pv_field *f = &fields[n++];
		uint32_t takes = make_field(m, depth, f, offset), other;

		if (f->when_bytes == 1 && n < want) {
			struct pv_field *g = &fields[n++];

			other = make_field(m, depth, g, offset);
			g->when_bytes = 1;
			g->when_offset = f->when_offset;
			g->when_mask = f->when_mask;
			g->when_value = f->when_value ^ 1;
			takes = other > takes ? other : takes;
		}
		offset += takes;
	}
	if (depth == 0 && below(m, 2)) {
		struct pv_field *f = &fields[n++];

		make_field(m, depth, f, offset);
		if (f->kind == PV_FIELD_OPAQUE)
			f->stride = 8;
		f->count = PV_FLEXIBLE;
		maybe_counted(m, f);
	}
	*bytes = offset;
	return n;
}

/* ---- the model ---- */

struct set {
	uint32_t n;
	uint32_t v[REFERENCES];
};

static uint64_t integer(const uint8_t *object, size_t usable, uint64_t off, uint32_t bytes, bool *there)
{
	uint64_t v = 0;

	*there = off + bytes <= usable;
	for (uint32_t i = 0; *there && i < bytes; i++)
		v |= (uint64_t)object[off + i] << 8 * i;
	return v;
}

static void model(struct set *set, const struct pv_field *fields, uint32_t n, const uint8_t *object,
		  size_t usable, uint64_t base)
{
	for (const struct pv_field *f = fields; f < fields + n; f++) {
		uint64_t elements = f->count;
		bool there;

		if (f->kind == PV_FIELD_OPAQUE)
			continue;
		if (f->when_bytes &&
		    ((integer(object, usable, base + f->when_offset, f->when_bytes, &there) & f->when_mask) !=
			     f->when_value ||
		     !there))
			continue;
		if (f->count_bytes) {
			uint64_t used = integer(object, usable, base + f->count_offset, f->count_bytes, &there);

			elements = !there ? 0 : used < elements ? used : elements;
		}
		for (uint64_t i = 0; i < elements; i++) {
			uint64_t at = base + f->offset + i * f->stride;

			if (at >= usable)
				break;
			if (f->kind == PV_FIELD_STRUCT) {
				model(set, f->fields, f->nfields, object, usable, at);
			} else if (at + 8 <= usable) {
				assert_true(set->n < REFERENCES);
				set->v[set->n++] = (uint32_t)at;
			}
		}
	}
}

static const uint8_t *visited;

static int note(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	struct set *set = ctx;

	(void)f;
	assert_true(set->n < REFERENCES);
	set->v[set->n++] = (uint32_t)(at - visited);
	return 0;
}

static int by_number(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void compare_walks(uint64_t *r, const struct pv_typedef *def, const struct pvi_type *t)
{
	static struct set want, have;

	for (int o = 0; o < 8; o++) {
		size_t bytes = random_below(r, 3) ? def->bytes + random_below(r, 600)
						  : random_below(r, def->bytes + 1ull);
		uint8_t *object;

		bytes &= ~(size_t)7; /* references are aligned */
		if (bytes > OBJECT_MAX)
			bytes = OBJECT_MAX;
		object = object_of(bytes);
		fill_object(r, object, bytes);
		want.n = have.n = 0;
		model(&want, def->fields, def->nfields, object, bytes, 0);
		visited = object;
		pvi_typemap_visit(t, object, bytes, note, &have);
		assert_int_equal(want.n, have.n);
		if (!want.n)
			continue;
		qsort(want.v, want.n, sizeof(*want.v), by_number);
		qsort(have.v, have.n, sizeof(*have.v), by_number);
		assert_memory_equal(want.v, have.v, want.n * sizeof(*want.v));
		for (uint32_t i = 1; i < have.n; i++)
			assert_int_not_equal(have.v[i], have.v[i - 1]); /* none twice */
	}
}

/* Cells and back are the same map; the order of the fields makes no difference. */
static void compare_forms(uint64_t *r, const struct pv_typedef *def, const struct pvi_type *t)
{
	struct pv_field shuffled[FIELDS_MAX + 1];
	struct pv_typedef other = *def;
	struct pvi_type back = {.bytes = t->bytes, .version = t->version}, again;
	uint32_t n = pvi_typemap_encode(t, NULL), *cells = malloc((n + 1) * sizeof(*cells));
	uint64_t fingerprint;
	char why[300];

	assert_non_null(cells);
	assert_int_equal(pvi_typemap_encode(t, cells), n);
	assert_int_equal(pvi_typemap_decode(&back, cells, n, why, sizeof(why)), 0);
	assert_int_equal(pvi_typemap_settle(&back, why, sizeof(why)), 0);
	assert_int_equal(back.nfields, t->nfields);
	assert_int_equal(back.simple, t->simple);
	assert_int_equal(back.flexible, t->flexible);
	assert_int_equal(back.npointers, t->npointers);
	assert_int_equal(pvi_typemap_fingerprint(&back, &fingerprint), 0);
	assert_int_equal(fingerprint, t->fingerprint);
	compare_walks(r, def, &back);
	pvi_typemap_free(&back);
	free(cells);

	memcpy(shuffled, def->fields, def->nfields * sizeof(*shuffled));
	for (uint32_t i = def->nfields; i > 1; i--) {
		uint32_t k = (uint32_t)random_below(r, i);
		struct pv_field swap = shuffled[k];

		shuffled[k] = shuffled[i - 1];
		shuffled[i - 1] = swap;
	}
	other.fields = shuffled;
	assert_ok(pvi_typemap_flatten(&other, &again));
	assert_int_equal(again.fingerprint, t->fingerprint);
	pvi_typemap_free(&again);
}

static void definitions_against_a_model(void **state)
{
	static const char *const refused[] = {"conditions on top of each other", "more than 1024 references",
					      "flexible array in the elements"};
	uint64_t r = random_seed_from_env("definitions_against_a_model");
	static struct made m;
	unsigned int good = 0, rounds = 6000;

	(void)state;
	for (unsigned int i = 0; i < rounds; i++) {
		struct pv_typedef def = {.name = "t", .version = i};
		struct pvi_type t;
		uint32_t number;

		m.nstructs = 0;
		m.r = &r;
		def.nfields = make_struct(&m, 0, &number, &def.bytes);
		def.fields = m.fields[number];
		if (pvi_typemap_flatten(&def, &t)) {
			bool known = false;

			for (size_t k = 0; k < sizeof(refused) / sizeof(*refused); k++)
				known |= strstr(pv_last_error(), refused[k]) != NULL;
			if (!known)
				fail_msg("round %u: %s", i, pv_last_error());
			continue;
		}
		good++;
		compare_walks(&r, &def, &t);
		compare_forms(&r, &def, &t);
		pvi_typemap_free(&t);
	}
	assert_true(good > rounds / 2);
}

/* ---- two loops ---- */

static bool have_a_word_in_common(const struct pvi_field *a, const struct pvi_field *b, uint32_t reach)
{
	for (uint64_t i = 0; i < a->count && a->off + i * a->stride < reach; i++) {
		for (uint64_t k = 0; k < b->count && b->off + k * b->stride < reach; k++) {
			if (a->off + i * a->stride == b->off + k * b->stride)
				return true;
			if (!b->stride)
				break;
		}
		if (!a->stride)
			break;
	}
	return false;
}

static struct pvi_field random_loop(uint64_t *r, uint32_t bytes)
{
	struct pvi_field f = {.kind = PV_FIELD_POINTER, .name = "f", .target = "", .mask = ~0ull, .count = 1};

	f.off = 8 * (uint32_t)random_below(r, bytes / 8);
	switch (random_below(r, 4)) {
	case 0:
		break;
	case 1:
		f.count = PV_FLEXIBLE;
		f.stride = 8 * (1 + (uint32_t)random_below(r, 12));
		break;
	default:
		f.stride = 8 * (1 + (uint32_t)random_below(r, 12));
		f.count = 1 + (bytes - 8 - f.off) / f.stride;
		f.count = 1 + (uint32_t)random_below(r, f.count);
		f.stride = f.count == 1 ? 0 : f.stride;
	}
	return f;
}

static void loops_that_meet(void **state)
{
	uint64_t r = random_seed_from_env("loops_that_meet");
	unsigned int met = 0, rounds = 200000;

	(void)state;
	for (unsigned int i = 0; i < rounds; i++) {
		struct pvi_field f[2] = {random_loop(&r, 400), random_loop(&r, 400)};
		struct pvi_type t = {.bytes = 400, .fields = f, .nfields = 2};
		/* 12 words are the largest stride: two endless loops that ever meet do so before this. */
		bool meet = have_a_word_in_common(&f[0], &f[1], 400 + 8 * 12 * 12 + 8 * 12);
		char why[300];
		int err = pvi_typemap_settle(&t, why, sizeof(why));

		if (err != (meet ? -EINVAL : 0))
			fail_msg("%u: off %u/%u count %u/%u stride %u/%u: %s", i, f[0].off, f[1].off, f[0].count,
				 f[1].count, f[0].stride, f[1].stride, err ? why : "no fault");
		met += meet;
		free(t.pointers);
	}
	assert_in_range(met, rounds / 20, rounds - rounds / 20);
}

/* ---- hostile cells ---- */

static uint32_t odd_number(uint64_t *r)
{
	static const uint32_t odd[] = {0, 1, 2, 7, 8, 16, 255, 256, 4096, 0x7fffffff, 0x80000000, 0xfffffff8,
				       0xfffffffe, 0xffffffff};

	return random_below(r, 3) ? odd[random_below(r, sizeof(odd) / sizeof(*odd))]
				  : (uint32_t)random_next(r);
}

static void cells_that_nobody_wrote(void **state)
{
	uint64_t r = random_seed_from_env("cells_that_nobody_wrote");
	static struct made m;
	static struct set have;
	unsigned int accepted = 0;

	(void)state;
	for (unsigned int i = 0; i < 60000; i++) {
		struct pv_typedef def = {.name = "t"};
		struct pvi_type t, hostile = {0};
		uint32_t number, n, *cells;
		char why[300];

		m.nstructs = STRUCTS_MAX - 2; /* small ones, of which a change is not lost in a crowd */
		m.r = &r;
		def.nfields = make_struct(&m, 2, &number, &def.bytes);
		def.fields = m.fields[number];
		if (pvi_typemap_flatten(&def, &t))
			continue;
		n = pvi_typemap_encode(&t, NULL);
		cells = malloc((n + 1) * sizeof(*cells));
		assert_non_null(cells);
		pvi_typemap_encode(&t, cells);
		for (uint64_t k = random_below(&r, 3); n && k; k--)
			cells[random_below(&r, n)] = odd_number(&r);
		hostile.bytes = random_below(&r, 4) ? t.bytes : odd_number(&r);
		if (!random_below(&r, 10) && n)
			n--;
		if (pvi_typemap_decode(&hostile, cells, n, why, sizeof(why)) == 0 &&
		    pvi_typemap_settle(&hostile, why, sizeof(why)) == 0) {
			size_t bytes = random_below(&r, 2) ? (size_t)random_below(&r, OBJECT_MAX / 8) * 8
							   : (t.bytes & ~7u);

			accepted++;
			fill_object(&r, object_of(bytes), bytes);
			visited = object_of(bytes);
			have.n = 0;
			pvi_typemap_visit(&hostile, object_of(bytes), bytes, note, &have);
			for (uint32_t k = 0; k < have.n; k++)
				assert_true(have.v[k] % 8 == 0 && have.v[k] + 8 <= bytes);
			for (uint32_t k = 0; k < hostile.npointers; k++)
				assert_true(hostile.pointers[k] + 8ull <= hostile.bytes);
		}
		pvi_typemap_free(&hostile);
		pvi_typemap_free(&t);
		free(cells);
	}
	assert_in_range(accepted, 1000, 59000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(definitions_against_a_model, make_arena, drop_arena),
		cmocka_unit_test(loops_that_meet),
		cmocka_unit_test_setup_teardown(cells_that_nobody_wrote, make_arena, drop_arena),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
