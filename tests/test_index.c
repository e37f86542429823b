/* SPDX-License-Identifier: BSD-3-Clause */
/* The index: what is written, how others read it, and trees that lie with a good checksum. */
#include <pthread.h>

#include <libfdt.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <preserve/upgrade.h>

#include "internal.h"
#include "support.h"

/* ---- what is written ---- */

static uint64_t u64_of(const void *fdt, const char *path, const char *prop)
{
	int len = 0, off = fdt_path_offset(fdt, path);
	const fdt64_t *p = fdt_getprop(fdt, off, prop, &len);

	assert_true(off >= 0);
	assert_non_null(p);
	assert_int_equal(len, 8);
	return fdt64_ld(p);
}

static void dump_says_what_is_where(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t node = store_word_type(s);
	struct pv_info info;
	void *root, *fdt, *p;
	const void *uuid;
	size_t bytes;
	int len;

	assert_ok(pv_root(s, "the-root", node, sizeof(struct word), &root, NULL));
	assert_ok(pv_reserve(s, node, 100000, &p)); /* a second segment */
	info = store_info(s);
	assert_ok(pv_index_dump(s, &fdt, &bytes));
	assert_int_equal(fdt_check_full(fdt, bytes), 0);
	assert_int_equal(fdt_node_check_compatible(fdt, 0, "libpreserve,store-v1"), 0);
	assert_string_equal(fdt_getprop(fdt, 0, "store", NULL), "test");
	assert_string_equal(fdt_getprop(fdt, 0, "writer-library", NULL), pv_version());
	uuid = fdt_getprop(fdt, 0, "uuid", &len);
	assert_int_equal(len, 16);
	assert_memory_equal(uuid, info.uuid, 16);
	assert_int_equal(u64_of(fdt, "/", "base"), info.base);
	assert_int_equal(u64_of(fdt, "/", "window-bytes"), info.window_bytes);
	assert_int_equal(u64_of(fdt, "/", "page-bytes"), info.page_bytes);
	assert_int_equal(u64_of(fdt, "/", "epoch"), 1);
	assert_int_equal(u64_of(fdt, "/", "generation"), info.generation);
	assert_int_equal(u64_of(fdt, "/segments/segment@1", "token"), 2);
	assert_true(u64_of(fdt, "/segments/segment@1", "bytes") >= 100000);
	assert_int_equal(u64_of(fdt, "/roots/root@0", "offset"), (uintptr_t)root - info.base);
	assert_true(fdt_path_offset(fdt, "/segments/segment@2") < 0);
	free(fdt);
	assert_ok(pv_close(s));
}

static void dump_is_read_by_dtc_and_fdtdump(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	char path[64], *out, *source;
	void *root, *fdt;
	size_t bytes;

	assert_ok(pv_root(s, "the-root", store_word_type(s), sizeof(struct word), &root, NULL));
	store_bytes_type(s, "another-type");
	assert_ok(pv_index_dump(s, &fdt, &bytes));
	temp_file(path, fdt, bytes);
	assert_int_equal(
		run_command((const char *[]){"dtc", "-q", "-I", "dtb", "-O", "dts", path, NULL},
			    &source),
		0);
	assert_non_null(strstr(source, "libpreserve,store-v1"));
	assert_non_null(strstr(source, "the-root"));
	assert_non_null(strstr(source, "another-type"));
	assert_non_null(strstr(source, "segment@0"));
	assert_int_equal(run_command((const char *[]){"fdtdump", path, NULL}, &out), 0);
	assert_non_null(strstr(out, "libpreserve,store-v1"));
	assert_non_null(strstr(out, "the-root"));
	free(out);
	/* The source is one again that dtc takes. */
	unlink(path);
	temp_file(path, source, strlen(source));
	assert_int_equal(
		run_command((const char *[]){"dtc", "-q", "-I", "dts", "-O", "dts", path, NULL},
			    &out),
		0);
	assert_non_null(strstr(out, "the-root"));
	unlink(path);
	free(out);
	free(source);
	free(fdt);
	assert_ok(pv_close(s));
}

/* A new index was written and not yet put in force. */
static void staged_index_is_not_there(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_typedef def = PV_TYPE_BYTES("staged", 1);
	uint64_t generation = store_info(s).generation, staged = 0;
	pv_type_t type;
	void *fdt;
	size_t bytes;

	assert_ok(pv_type_register(s, &def, &type));
	/* What pv_type_register() did, but for the commit. */
	pthread_mutex_lock(&s->index_lock);
	strcpy(s->index.types[1].name, "changed");
	assert_ok(pvi_index_stage(&s->index, PVI_INDEX_SLACK, &staged));
	pthread_mutex_unlock(&s->index_lock);
	assert_int_equal(staged, generation + 2);
	assert_int_equal(store_info(s).generation, generation + 1);
	keeper_crash(k, &s);

	s = store_attach(k, NULL);
	assert_int_equal(store_info(s).generation, generation + 2);
	assert_ok(pv_type_register(s, &def, &type));
	assert_int_equal(store_info(s).generation, generation + 2);
	assert_ok(pv_index_dump(s, &fdt, &bytes));
	assert_string_equal(fdt_getprop(fdt, fdt_path_offset(fdt, "/types/type@1"), "label", NULL),
			    "staged");
	free(fdt);
	assert_ok(pv_close(s));
}

static void many_segments(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	pv_type_t type;
	void *objects[30];

	/* Each needs a segment of its own, and more than the last one's double. */
	o.window_bytes = 1ull << 31;
	s = store_create(k, &o);
	type = store_bytes_type(s, "bytes");
	for (size_t i = 0; i < 30; i++) {
		assert_ok(pv_reserve(s, type, (i + 1) << 20, &objects[i]));
		pattern_fill(objects[i], 100, i);
		assert_ok(pv_publish(s, &PV_LIVE(objects[i]), 1));
	}
	assert_true(store_info(s).segments > 5);
	store_sound(s);
	keeper_crash(k, &s);
	s = store_attach(k, &o);
	for (size_t i = 0; i < 30; i++) {
		assert_true(pattern_holds(objects[i], 100, i));
		assert_true(pv_usable_bytes(s, objects[i]) >= (i + 1) << 20);
		assert_ok(pv_publish(s, &PV_FREE(objects[i]), 1));
	}
	assert_int_equal(store_sound(s).live_objects, 0);
	assert_ok(pv_close(s));
}

/* ---- a reader while the index changes ---- */

static int read_again_and_again(void *ctx)
{
	for (int i = 0; i < (under_tsan() ? 50 : 300); i++) {
		struct pv_store *s;
		void *fdt;
		size_t bytes;

		if (store_try(ctx, NULL, PV_RDONLY, &s) || pv_index_dump(s, &fdt, &bytes)) {
			fprintf(stderr, "reader: %s\n", pv_last_error());
			return 1;
		}
		free(fdt);
		pv_close(s);
	}
	return 0;
}

static void reader_while_the_index_is_written(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_typedef def = PV_TYPE_BYTES("type", 1);
	uint64_t generation;
	pv_type_t type;
	pid_t pid;

	assert_ok(pv_type_register(s, &def, &type));
	pid = start_child(read_again_and_again, k);
	for (int i = 0; i < 5000; i++) {
		pthread_mutex_lock(&s->index_lock);
		assert_ok(pvi_index_stage(&s->index, PVI_INDEX_SLACK, &generation));
		pvi_index_commit(&s->index, generation);
		pthread_mutex_unlock(&s->index_lock);
	}
	assert_int_equal(child_wait(pid), 0);
	assert_ok(pv_close(s));
}

/* ---- trees that lie ---- */

struct lie {
	const char *path;
	const char *prop; /* NULL: the node is taken out */
	int bytes;	  /* 0: the property is taken out; 4, 8: a number; else `text` */
	uint64_t value;
	const char *text;
	int err;
	const char *says;
};

#define N8(path, prop, value, says)                        \
	{                                                  \
		path, prop, 8, value, NULL, -EBADMSG, says \
	}
#define N4(path, prop, value, says)                        \
	{                                                  \
		path, prop, 4, value, NULL, -EBADMSG, says \
	}
#define TX(path, prop, text, err, says)                      \
	{                                                    \
		path, prop, sizeof(text), 0, text, err, says \
	}
#define FIELDS(cells, says) \
	TX("/types/type@1", "fields", cells, -EBADMSG, "node /types/type@1: property fields is wrong: " says)
#define NO(path, prop)                                 \
	{                                              \
		path, prop, 0, 0, NULL, -EBADMSG, prop \
	}

static const struct lie lies[] = {
	TX("/", "compatible", "libpreserve,store-v2", -EPROTONOSUPPORT, "node /"),
	TX("/", "store", "t st", -EBADMSG, "node /: property store"),
	TX("/", "store", "\0est", -EBADMSG, "node /: property store"),
	TX("/", "store", "te\0t", -EBADMSG, "node /: property store"),
	N8("/", "base", 0, "node /: property base"),
	N8("/", "base", 4096, "node /: property base"),
	N8("/", "base", 0x100000001000, "node /: property base"),
	N8("/", "base", 0x7fffffc00000, "node /: property base"),
	N8("/", "base", 0x8000000000000000, "node /: property base"),
	N8("/", "base", 0xffffffffc0000000, "node /: property base"),
	N8("/", "window-bytes", 0, "node /: property window-bytes"),
	N8("/", "window-bytes", 65536, "node /: property window-bytes"),
	N8("/", "window-bytes", (16 << 20) + 4096, "node /: property window-bytes"),
	N8("/", "window-bytes", 1ull << 62, "node /: property"),
	N8("/", "window-bytes", 1ull << 17, "node /segments/segment@1"),
	N8("/", "granule-bytes", 0, "node /: property granule-bytes"),
	N8("/", "granule-bytes", 1, "node /: property granule-bytes"),
	N8("/", "granule-bytes", 16384, "node /: property granule-bytes"),
	N8("/", "granule-bytes", 65537, "node /: property granule-bytes"),
	N8("/", "granule-bytes", 1ull << 41, "node /: property granule-bytes"),
	N8("/", "page-bytes", 0, "node /: property page-bytes"),
	N8("/", "page-bytes", 8192, "node /: property page-bytes"),
	N8("/", "page-bytes", 16384, "segment 0"),
	N4("/", "lanes", 0, "node /: property lanes"),
	N4("/", "lanes", 65537, "node /: property lanes"),
	N4("/", "lanes", 3, "segment 0"),
	N4("/", "lanes", 65536, "segment 0"),
	N8("/", "generation", 1, "node /: property generation"),
	TX("/", "uuid", "0123456789abcde", -EBADMSG, "node /: property uuid"),
	NO("/", "base"),
	NO("/", "lanes"),
	NO("/", "epoch"),
	NO("/", "uuid"),
	NO("/", "store"),
	{"/segments", NULL, 0, 0, NULL, -EBADMSG, "node /segments is missing"},
	{"/types", NULL, 0, 0, NULL, -EBADMSG, "node /types is missing"},
	{"/roots", NULL, 0, 0, NULL, -EBADMSG, "node /roots is missing"},
	{"/segments/segment@0", NULL, 0, 0, NULL, -EBADMSG, "node /segments/segment@1"},
	N8("/segments/segment@0", "token", 2, "node /segments/segment@0: property token"),
	N8("/segments/segment@0", "offset", 0, "node /segments/segment@0: property offset"),
	N8("/segments/segment@0", "offset", 65537, "node /segments/segment@0: property offset"),
	N8("/segments/segment@0", "offset", 1ull << 63,
	   "node /segments/segment@0: property offset"),
	N8("/segments/segment@1", "offset", 65536, "node /segments/segment@1: property offset"),
	N8("/segments/segment@1", "offset", 16 << 20, "node /segments/segment@1: property offset"),
	/* There is room for it, but there would be a hole before it. */
	N8("/segments/segment@1", "offset", 8 << 20, "does not follow the one before"),
	N8("/segments/segment@0", "bytes", 0, "node /segments/segment@0: property bytes"),
	N8("/segments/segment@0", "bytes", 4096, "node /segments/segment@0: property bytes"),
	N8("/segments/segment@0", "bytes", 65537, "node /segments/segment@0: property bytes"),
	N8("/segments/segment@0", "bytes", 1ull << 60, "node /segments/segment@0: property bytes"),
	N8("/segments/segment@0", "bytes", 32768, "segment 0"),
	N8("/segments/segment@0", "birth-generation", 77, "segment 0: born with generation"),
	NO("/segments/segment@1", "birth-generation"),
	TX("/types/type@1", "label", "n/de", -EBADMSG, "node /types/type@1: property label"),
	TX("/types/type@2", "state", "formal", -EBADMSG, "node /types/type@2: property state"),
	TX("/types/type@2", "state", "draft\0", -EBADMSG, "node /types/type@2: property state"),
	NO("/types/type@3", "label"),
	N4("/types/type@1", "bytes", 0, "node /types/type@1: property fields is wrong: field next: offset 0"),
	N4("/types/type@1", "bytes", 24, "node /types/type@1: property fingerprint"),
	N4("/types/type@1", "version", 2, "node /types/type@1: property fingerprint"),
	N8("/types/type@1", "fingerprint", 4711, "node /types/type@1: property fingerprint"),
	/* One entry: kind, offset, number, distance. */
	FIELDS("\0\0\0\1" "\0\0\0\4" "\0\0\0\1" "\0\0\0", "field next: references at offset 4"),
	FIELDS("\0\0\0\1" "\0\0\0\20" "\0\0\0\1" "\0\0\0", "field next: offset 16, 1 elements: not within"),
	FIELDS("\0\0\0\1" "\377\377\377\370" "\0\0\0\1" "\0\0\0", "field next: offset 4294967288"),
	FIELDS("\0\0\0\6" "\0\0\0\0" "\0\0\0\1" "\0\0\0", "field next: there is no kind 6"),
	FIELDS("\0\0\0\0" "\0\0\0\0" "\0\0\0\1" "\0\0\0", "field next: there is no kind 0"),
	FIELDS("\0\0\0\1" "\0\0\0\0" "\0\0\0\0" "\0\0\0", "field next: 0 elements"),
	FIELDS("\0\0\0\1" "\0\0\0\0" "\0\0\0\2" "\0\0\0", "field next: 2 elements at a distance of 0"),
	FIELDS("\0\0\0\2" "\0\0\0\0" "\0\0\0\1" "\0\0\0", "entry 0 is malformed"),
	FIELDS("\0\0\1\1" "\0\0\0\0" "\0\0\0\1" "\0\0\0", "entry 0 is malformed"),
	FIELDS("\0\4\0\1" "\0\0\0\0" "\0\0\0\1" "\0\0\0", "entry 0 is malformed"),
	FIELDS("\1\0\0\1" "\0\0\0\0" "\0\0\0\1" "\0\0\0", "entry 0 is malformed"),
	TX("/types/type@1", "field-names", "n/xt", -EBADMSG, "node /types/type@1: property field-names"),
	TX("/types/type@1", "field-names", "n\0xt", -EBADMSG, "node /types/type@1: property field-names"),
	TX("/types/type@1", "field-names", "\0ext", -EBADMSG, "node /types/type@1: property field-names"),
	NO("/types/type@1", "field-names"),
	NO("/types/type@1", "fingerprint"),
	N4("/roots/root@0", "type", 0, "node /roots/root@0: property type"),
	N4("/roots/root@0", "type", 4, "node /roots/root@0: property type"),
	N8("/roots/root@0", "offset", 0, "node /roots/root@0: property offset"),
	N8("/roots/root@0", "offset", 1ull << 63, "node /roots/root@0: property offset"),
	N8("/roots/root@0", "offset", 65536 + 8, "node /roots/root@0: property offset"),
	N8("/roots/root@0", "bytes", 0, "node /roots/root@0: property offset"),
	N8("/roots/root@0", "bytes", 1ull << 63, "node /roots/root@0: property offset"),
	TX("/roots/root@0", "label", ".oot", -EBADMSG, "node /roots/root@0: property label"),
};

static struct index_slot_rec *slot_in_force(uint8_t *index)
{
	const struct index_rec *rec = (const void *)index;

	return (void *)(index + PV_INDEX_HEADER_BYTES +
			(pvi_index_generation(rec) & 1) * rec->slot_bytes);
}

static void seal_slot(struct index_slot_rec *slot)
{
	slot->checksum = XXH3_64bits_withSeed(slot + 1, slot->bytes, slot->generation);
}

static void tell_lie(struct index_slot_rec *slot, const struct lie *l)
{
	int off = fdt_path_offset(slot + 1, l->path);
	fdt64_t wide = cpu_to_fdt64(l->value);
	fdt32_t narrow = cpu_to_fdt32((uint32_t)l->value);

	assert_true(off >= 0);
	if (!l->prop)
		assert_int_equal(fdt_nop_node(slot + 1, off), 0);
	else if (!l->bytes)
		assert_int_equal(fdt_nop_property(slot + 1, off, l->prop), 0);
	else
		assert_int_equal(fdt_setprop_inplace(slot + 1, off, l->prop,
						     l->text	     ? (const void *)l->text
						     : l->bytes == 8 ? (const void *)&wide
								     : (const void *)&narrow,
						     l->bytes),
				 0);
	seal_slot(slot);
}

static int no_objects(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	return -1;
}

static void make_two_segments(struct keeper *k)
{
	static const struct pv_upgrade step = {.from = 1, .to = 2, .run = no_objects};
	struct pv_store *s = store_create(k, NULL);
	struct pv_typedef grows = PV_TYPE_BYTES("grows", 1);
	pv_type_t type;
	void *p;

	assert_ok(pv_root(s, "root", store_word_type(s), sizeof(struct word), &p, NULL));
	/* Number 2 is of a former layout, and 3 of the one that the type has. */
	assert_ok(pv_type_register(s, &grows, &type));
	grows.version = 2;
	grows.upgrades = &step;
	grows.nupgrades = 1;
	assert_ok(pv_type_register(s, &grows, &type));
	assert_ok(pv_reserve(s, store_word_type(s), 100000, &p));
	assert_int_equal(store_info(s).segments, 2);
	assert_ok(pv_close(s));
}

static void lies_are_found_out(void **state)
{
	struct keeper *k = *state, pristine;
	size_t bytes;
	uint8_t *index, *before;
	struct pv_store *s;
	int err;

	make_two_segments(k);
	keeper_init(&pristine);
	keeper_copy(&pristine, k);
	index = memfd_map(keeper_fd(k, 0), &bytes);
	before = malloc(bytes);
	assert_non_null(before);
	for (size_t i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
		tell_lie(slot_in_force(index), &lies[i]);
		memcpy(before, index, bytes);
		err = store_try(k, NULL, 0, &s);
		if (lies[i].err != err)
			fail_msg("lie %zu: %s: %d: %s", i, lies[i].path, err,
				 err ? pv_last_error() : "opened");
		if (!strstr(pv_last_error(), lies[i].says))
			fail_msg("lie %zu: \"%s\" does not say \"%s\"", i, pv_last_error(),
				 lies[i].says);
		assert_memory_equal(index, before, bytes);
		memfd_copy(keeper_fd(k, 0), keeper_fd(&pristine, 0));
	}
	/* And nothing of the image was touched. */
	s = store_attach(k, NULL);
	assert_int_equal(store_info(s).epoch, 2);
	store_sound(s);
	assert_ok(pv_close(s));
	free(before);
	memfd_unmap(index, bytes);
	keeper_free(&pristine);
}

static void tree_without_segments(void **state)
{
	static const struct lie gone[] = {
		{"/segments/segment@0", NULL, 0, 0, NULL, 0, NULL},
		{"/segments/segment@1", NULL, 0, 0, NULL, 0, NULL},
	};
	struct keeper *k = *state;
	size_t bytes;
	uint8_t *index;
	struct pv_store *s;

	make_two_segments(k);
	index = memfd_map(keeper_fd(k, 0), &bytes);
	tell_lie(slot_in_force(index), &gone[0]);
	tell_lie(slot_in_force(index), &gone[1]);
	assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "node /segments is empty");
	memfd_unmap(index, bytes);
}

/* Headers with a good checksum that say something else than the index. */
static void headers_that_disagree(void **state)
{
	static const struct {
		size_t off;
		uint64_t value;
		size_t bytes;
		int err;
		const char *says;
	} lies_here[] = {
		{offsetof(struct segment_rec, format_version), 2, 4, -EPROTONOSUPPORT,
		 "segment 0: format version 2"},
		{offsetof(struct segment_rec, number), 7, 4, -ENXIO, "segment 0"},
		{offsetof(struct segment_rec, uuid), 7, 8, -EBADMSG, "belongs to another store"},
		{offsetof(struct segment_rec, bytes), 4096, 8, -EBADMSG, "segment 0: the header"},
		{offsetof(struct segment_rec, window_off), 131072, 8, -EBADMSG, "segment 0"},
		{offsetof(struct segment_rec, birth_generation), 9, 8, -EBADMSG,
		 "segment 0: born with generation 9"},
		{offsetof(struct segment_rec, page_shift), 60, 4, -EBADMSG, "segment 0"},
		{offsetof(struct segment_rec, npages), 0xffffffff, 4, -EBADMSG, "segment 0"},
		{offsetof(struct segment_rec, map_off), 0xfffffff0, 4, -EBADMSG, "segment 0"},
		{offsetof(struct segment_rec, lanes_off), 1, 4, -EBADMSG, "segment 0"},
		{offsetof(struct segment_rec, nlanes), 0xffffffff, 4, -EBADMSG, "segment 0"},
		{offsetof(struct segment_rec, first_page), 0, 4, -EBADMSG, "segment 0"},
		{offsetof(struct segment_rec, reserved), 1, 8, -EBADMSG, "segment 0"},
	};
	struct keeper *k = *state;
	struct segment_rec *rec, good;
	struct pv_store *s;
	uint8_t *segment;
	size_t bytes;

	make_two_segments(k);
	segment = memfd_map(keeper_fd(k, 1), &bytes);
	rec = (void *)segment;
	good = *rec;
	for (size_t i = 0; i < sizeof(lies_here) / sizeof(*lies_here); i++) {
		memcpy(segment + lies_here[i].off, &lies_here[i].value, lies_here[i].bytes);
		rec->checksum = XXH3_64bits(rec, offsetof(struct segment_rec, checksum));
		assert_fails(store_try(k, NULL, 0, &s), lies_here[i].err, lies_here[i].says);
		*rec = good;
	}
	memfd_unmap(segment, bytes);
	s = store_attach(k, NULL);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* An index header that fits its memfd, but not what this library would make for the segments:
 * either it is refused or it works with the slots it has. */
static void index_of_another_size(void **state)
{
	struct keeper *k = *state;
	uint8_t *index, *small;
	size_t bytes, small_bytes = PV_INDEX_HEADER_BYTES + 2 * 4096;
	int fd = memfd_clone(-1, small_bytes);
	struct pv_typedef def = PV_TYPE_BYTES("one-more", 1);
	const struct index_slot_rec *slot;
	struct index_rec *rec;
	struct pv_store *s;
	pv_type_t type;
	int err = 0;

	make_two_segments(k);
	index = memfd_map(keeper_fd(k, 0), &bytes);
	small = memfd_map(fd, &small_bytes);
	memcpy(small, index, PV_INDEX_HEADER_BYTES);
	rec = (void *)small;
	rec->bytes = small_bytes;
	rec->slot_bytes = 4096;
	rec->checksum = XXH3_64bits(rec, offsetof(struct index_rec, checksum));
	slot = slot_in_force(index);
	assert_true(slot->bytes < 4000);
	memcpy(slot_in_force(small), slot, sizeof(*slot) + slot->bytes);
	keeper_put(k, 0, fd);
	s = store_attach(k, NULL);
	for (int i = 0; i < 100 && !err; i++) {
		char name[20];

		snprintf(name, sizeof(name), "type-%d", i);
		def.name = name;
		err = pv_type_register(s, &def, &type);
	}
	assert_int_equal(err, -ENOSPC);
	store_sound(s);
	assert_ok(pv_close(s));
	s = store_attach(k, NULL);
	store_sound(s);
	assert_ok(pv_close(s));
	memfd_unmap(index, bytes);
	memfd_unmap(small, small_bytes);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(dump_says_what_is_where),
		with_keeper(dump_is_read_by_dtc_and_fdtdump),
		with_keeper(staged_index_is_not_there),
		with_keeper(many_segments),
		with_keeper(reader_while_the_index_is_written),
		with_keeper(lies_are_found_out),
		with_keeper(tree_without_segments),
		with_keeper(headers_that_disagree),
		with_keeper(index_of_another_size),
	};

	/* It is about bytes of the image. */
	relocate_never();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
