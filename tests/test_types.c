/* SPDX-License-Identifier: BSD-3-Clause */
/* The registry of types: what is recorded, what is compared, what is refused. */
#include <pthread.h>

#include "internal.h"
#include "support.h"

struct pair {
	void *left;
	void *right;
	uint64_t value;
};

static const struct pv_typedef pair_type =
	PV_TYPE(struct pair, "pair", 3, PV_POINTER(struct pair, left), PV_POINTER(struct pair, right));

static pv_type_t register_ok(struct pv_store *s, const struct pv_typedef *def)
{
	pv_type_t type = 0;

	assert_ok(pv_type_register(s, def, &type));
	assert_int_not_equal(type, 0);
	return type;
}

static void registered_once_and_found_again(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_typedef plain = PV_TYPE_PLAIN(uint64_t, "word", 1);
	struct pv_typedef opaque = PV_TYPE_BYTES("blob", 0);
	pv_type_t pair = register_ok(s, &pair_type), word = register_ok(s, &plain), blob;
	uint64_t generation = store_info(s).generation;

	assert_int_not_equal(pair, word);
	assert_int_equal(register_ok(s, &pair_type), pair);
	assert_int_equal(register_ok(s, &plain), word);
	assert_int_equal(store_info(s).generation, generation); /* nothing was written */
	blob = register_ok(s, &opaque);
	assert_int_equal(store_info(s).generation, generation + 1);
	keeper_crash(k, &s);
	s = store_attach(k, NULL);
	generation = store_info(s).generation;
	/* In another order. */
	assert_int_equal(register_ok(s, &opaque), blob);
	assert_int_equal(register_ok(s, &plain), word);
	assert_int_equal(register_ok(s, &pair_type), pair);
	assert_int_equal(store_info(s).generation, generation);
	assert_ok(pv_close(s));
}

/* Plain pointers at these offsets. */
static struct pv_typedef layout(struct pv_field *fields, const char *name, uint32_t version, uint32_t bytes,
				const uint32_t *offsets, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		fields[i] = (struct pv_field){.name = "p",
					      .kind = PV_FIELD_POINTER,
					      .offset = offsets[i],
					      .count = 1,
					      .stride = 8};
	return (struct pv_typedef){
		.name = name, .version = version, .bytes = bytes, .fields = fields, .nfields = n};
}

static void another_layout_is_refused(void **state)
{
	static const uint32_t left[] = {0}, both[] = {0, 8}, later[] = {0, 16};
	static const struct {
		uint32_t version, bytes;
		const uint32_t *offsets;
		uint32_t n, flags;
		const char *says;
	} other[] = {
		{4, 24, both, 2, 0, "version 4, 24 bytes, references {p: pointer at 0; p: pointer at 8}"},
		{3, 32, both, 2, 0, "version 3, 32 bytes, references {p: pointer at 0; p: pointer at 8}"},
		{3, 24, left, 1, 0, "the program has version 3, 24 bytes, references {p: pointer at 0}"},
		{3, 24, later, 2, 0, "version 3, 24 bytes, references {p: pointer at 0; p: pointer at 16}"},
		{3, 24, NULL, 0, 0, "the program has version 3, 24 bytes, no references"},
		{3, 0, NULL, 0, 0, "the program has version 3, 0 bytes, no references"},
		{3, 24, both, 2, PV_TYPE_PINNED, "the program has version 3, 24 bytes, pinned, references {"},
	};
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t pair = register_ok(s, &pair_type), type;

	for (int again = 0; again < 2; again++) {
		for (size_t i = 0; i < sizeof(other) / sizeof(*other); i++) {
			struct pv_field fields[2];
			struct pv_typedef def = layout(fields, "pair", other[i].version, other[i].bytes,
						       other[i].offsets, other[i].n);

			def.flags = other[i].flags;
			type = 4711;
			assert_fails(pv_type_register(s, &def, &type), -EMEDIUMTYPE,
				     "type pair: the store has version 3, 24 bytes, references "
				     "{left: pointer at 0; right: pointer at 8}; the program has ");
			assert_non_null(strstr(pv_last_error(), other[i].says));
			assert_int_equal(type, 4711);
		}
		assert_int_equal(register_ok(s, &pair_type), pair);
		assert_ok(pv_close(s));
		s = store_attach(k, NULL);
	}
	assert_ok(pv_close(s));
}

/* Layouts too long for a message are cut, not overrun. */
static void long_layouts_in_the_message(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_field fields[400];
	struct pv_typedef def;
	uint32_t offsets[400];
	struct pv_store *s;
	pv_type_t type;

	o.window_bytes = 1 << 28;
	o.segment_bytes = 4 << 20; /* an index that is not small */
	s = store_create(k, &o);
	for (uint32_t i = 0; i < 400; i++)
		offsets[i] = 90000 + 8 * i;
	def = layout(fields, "long", 1, 100000, offsets, 400);
	register_ok(s, &def);
	def.nfields = 399;
	assert_fails(pv_type_register(s, &def, &type), -EMEDIUMTYPE, "{p: pointer at 90000; p: pointer at");
	assert_non_null(strstr(pv_last_error(), "...; the program has"));
	assert_true(strlen(pv_last_error()) < 2000);
	def.nfields = 400;
	register_ok(s, &def);
	keeper_crash(k, &s);
	s = store_attach(k, &o);
	register_ok(s, &def);
	assert_ok(pv_close(s));
}

static void bad_definitions(void **state)
{
	static const uint32_t odd[] = {4}, beyond[] = {8}, start[] = {0}, twice[] = {0, 0},
			      far[] = {0xfffffff8};
	static const struct {
		const char *name;
		uint32_t bytes;
		const uint32_t *offsets;
		uint32_t n;
		const char *says;
	} bad[] = {
		{NULL, 8, NULL, 0, "type name \"(null)\""},
		{"", 8, NULL, 0, "type name"},
		{".x", 8, NULL, 0, "no leading dot"},
		{"a b", 8, NULL, 0, "type name"},
		{"1234567890123456789012345678901234567890123456789", 8, NULL, 0, "1 to 48"},
		{"t", 16, odd, 1, "offset 4"},
		{"t", 8, beyond, 1, "offset 8"},
		{"t", 15, beyond, 1, "offset 8"},
		{"t", 0, start, 1, "opaque bytes"},
		{"t", 16, twice, 2, "at the same place"},
		{"t", 0xffffffff, far, 1, "offset 4294967288"},
	};
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	uint64_t generation = store_info(s).generation;
	struct pv_typedef none = {.name = "t", .version = 1, .bytes = 16, .nfields = 2};
	pv_type_t type = 4711;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct pv_field fields[2];
		struct pv_typedef def =
			layout(fields, bad[i].name, 1, bad[i].bytes, bad[i].offsets, bad[i].n);

		assert_fails(pv_type_register(s, &def, &type), -EINVAL, bad[i].says);
	}
	assert_fails(pv_type_register(s, &none, &type), -EINVAL, "no list of them");
	none.nfields = 0;
	none.flags = 2;
	assert_fails(pv_type_register(s, &none, &type), -EINVAL, "unknown flags 0x2");
	assert_int_equal(type, 4711);
	assert_int_equal(store_info(s).generation, generation);
	assert_ok(pv_close(s));
}

static void sizes_of_objects(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t pair = register_ok(s, &pair_type), blob = store_bytes_type(s, "blob");
	struct pv_typedef large = {.name = "large", .version = 1, .bytes = 50000};
	pv_type_t big = register_ok(s, &large);
	void *p;

	/* At least the struct, and as much more as is wanted: the same before the first object of a
	 * class, when slots are at hand, and from another thread's. */
	for (int i = 0; i < 3; i++) {
		assert_fails(pv_reserve(s, pair, 23, &p), -EINVAL, "too few for type pair of 24");
		assert_fails(pv_reserve(s, pair, 17, &p), -EINVAL, "too few for type pair of 24");
		assert_fails(pv_reserve(s, pair, 1, &p), -EINVAL, "too few for type pair of 24");
		assert_ok(pv_reserve(s, pair, 24, &p));
		assert_ok(pv_reserve(s, pair, 24 * 7, &p));
		assert_ok(pv_reserve(s, pair, 24 * 1000, &p));
		assert_fails(pv_reserve(s, big, 49999, &p), -EINVAL, "too few for type large");
		assert_ok(pv_reserve(s, big, 50000, &p));
		assert_ok(pv_cancel(s, p));
		assert_fails(pv_reserve(s, pair, 0, &p), -EINVAL, "0 bytes");
		assert_fails(pv_reserve(s, blob, 0, &p), -EINVAL, "0 bytes");
		assert_ok(pv_reserve(s, blob, 1, &p));
	}
	store_sound(s);
	assert_ok(pv_close(s));
}

static void handles_that_are_none(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t pair = register_ok(s, &pair_type);
	void *p = state, *root = state;

	assert_ok(pv_reserve(s, pair, 24, &p));
	assert_ok(pv_cancel(s, p));
	p = state;
	for (unsigned int bit = 0; bit < 32; bit++) {
		/* Among them such as would be `pair` if they were cut short. */
		pv_type_t none = (bit ? 1u << bit : 0) | (bit > 1 ? pair : 0);

		assert_fails(pv_reserve(s, none, 24, &p), -EINVAL, "is not registered");
		assert_fails(pv_root(s, "r", none, 24, &root, NULL), -EINVAL, "is not registered");
	}
	assert_fails(pv_reserve(s, pair + 1, 24, &p), -EINVAL, "is not registered");
	assert_ptr_equal(p, state);
	assert_ptr_equal(root, state);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* Types until nothing fits: an error, and the store goes on, also in the next process. */
static void index_full_of_types(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	size_t bytes, types = 0;
	char name[PVI_NAME_MAX + 1];
	void *dump, *p, *root;
	pv_type_t type, first = 0;
	int err = 0;

	/* Long names, then ever shorter ones, until not one fits. */
	for (size_t length = PVI_NAME_MAX; length >= 4; length -= 4) {
		for (;;) {
			struct pv_typedef def = PV_TYPE_BYTES(name, 1);

			memset(name, 'x', sizeof(name));
			snprintf(name + length - 4, 5, "%04zu", types);
			err = pv_type_register(s, &def, &type);
			if (err)
				break;
			first = first ? first : type;
			types++;
		}
		assert_int_equal(err, -ENOSPC);
		assert_non_null(strstr(pv_last_error(), "index: full"));
	}
	assert_true(types > 30);
	store_sound(s);
	assert_ok(pv_index_dump(s, &dump, &bytes));
	free(dump);
	/* The next attach writes the index too, perhaps from a kernel with a longer name. */
	assert_in_range(bytes, 7000, 8192 - sizeof(struct index_slot_rec) - PVI_INDEX_SLACK);
	for (int i = 0; i < 3; i++) {
		assert_ok(pv_reserve(s, first, 100, &p));
		assert_ok(pv_publish(s, &PV_LIVE(p), 1));
		assert_fails(pv_root(s, "root", first, 8, &root, NULL), -ENOSPC, "index: full");
		assert_int_equal(store_sound(s).live_objects, i + 1);
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
	}
	/* It cannot grow any more, says so, and what is there can be used. */
	do {
		err = pv_reserve(s, first, 1000, &p);
	} while (!err);
	assert_int_equal(err, -ENOSPC);
	assert_non_null(strstr(pv_last_error(), "index: full"));
	assert_int_equal(store_info(s).segments, 1);
	assert_int_equal(k->n, 2); /* the segment that could not be named is not kept */
	store_sound(s);
	assert_ok(pv_cancel(s, p));
	assert_ok(pv_reserve(s, first, 1000, &p));
	assert_ok(pv_close(s));
}

static void many_types(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	pv_type_t types[500];
	char name[20];

	o.window_bytes = 1 << 28;
	o.segment_bytes = 4 << 20; /* an index that is not small */
	s = store_create(k, &o);
	for (int round = 0; round < 2; round++) {
		for (uint32_t i = 0; i < 500; i++) {
			struct pv_typedef def = {.name = name, .version = i, .bytes = 8 + i};
			pv_type_t type;
			void *p;

			snprintf(name, sizeof(name), "type-%u", i);
			type = register_ok(s, &def);
			if (round)
				assert_int_equal(type, types[i]);
			types[i] = type;
			assert_fails(pv_reserve(s, type, 7 + i, &p), -EINVAL, name);
			assert_ok(pv_reserve(s, type, 8 + i, &p));
			assert_ok(pv_publish(s, &PV_LIVE(p), 1));
		}
		assert_int_equal(store_sound(s).live_objects, 500 * (round + 1));
		for (uint32_t i = 0; i < 500; i += 50) {
			struct objects live = {0};

			objects_live(&live, s, types[i]);
			assert_int_equal(live.n, round + 1);
			assert_int_equal(live.v[0].type, types[i]);
			objects_free(&live);
		}
		keeper_crash(k, &s);
		s = store_attach(k, &o);
	}
	assert_ok(pv_close(s));
}

/* ---- threads ---- */

#define THREADS 4
#define TYPES	20

struct registrar {
	struct pv_store *s;
	pthread_barrier_t *start;
	pv_type_t types[TYPES];
	int err;
};

static void *register_all(void *arg)
{
	struct registrar *r = arg;
	char name[20];

	pthread_barrier_wait(r->start);
	for (uint32_t i = 0; i < TYPES && !r->err; i++) {
		struct pv_typedef def = {.name = name, .version = 1, .bytes = 8 * (i + 1)};

		snprintf(name, sizeof(name), "type-%u", i);
		r->err = pv_type_register(r->s, &def, &r->types[i]);
	}
	return NULL;
}

static void threads_register_the_same_types(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	uint64_t generation = store_info(s).generation;
	struct registrar r[THREADS];
	pthread_t threads[THREADS];
	pthread_barrier_t start;

	pthread_barrier_init(&start, NULL, THREADS);
	for (int i = 0; i < THREADS; i++) {
		r[i] = (struct registrar){.s = s, .start = &start};
		assert_int_equal(pthread_create(&threads[i], NULL, register_all, &r[i]), 0);
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(r[i].err, 0);
		assert_memory_equal(r[i].types, r[0].types, sizeof(r[0].types));
	}
	pthread_barrier_destroy(&start);
	assert_int_equal(store_info(s).generation, generation + TYPES);
	store_sound(s);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(registered_once_and_found_again),
		with_keeper(another_layout_is_refused),
		with_keeper(long_layouts_in_the_message),
		with_keeper(bad_definitions),
		with_keeper(sizes_of_objects),
		with_keeper(handles_that_are_none),
		with_keeper(index_full_of_types),
		with_keeper(many_types),
		with_keeper(threads_register_the_same_types),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
