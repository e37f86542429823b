/* SPDX-License-Identifier: BSD-3-Clause */
/* pv_repair(): the index, leaked objects, and what it leaves alone. */
#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

static char lines[65536];

static void note_line(void *ctx, const char *line)
{
	size_t at = strlen(lines);

	snprintf(lines + at, sizeof(lines) - at, "%s\n", line);
}

static unsigned int count(const char *what)
{
	unsigned int n = 0;

	for (const char *p = lines; (p = strstr(p, what)); p++)
		n++;
	return n;
}

static struct pv_repair_report repair(struct pv_store *s, uint32_t flags, pv_type_t type)
{
	struct pv_repair_options o = {
		.size = sizeof(o), .flags = flags, .type = type, .tell = note_line};
	struct pv_repair_report r;

	lines[0] = '\0';
	assert_ok(pv_repair(s, &o, &r));
	return r;
}

static void leak(struct pv_store *s, pv_type_t type, size_t bytes, unsigned int n)
{
	while (n--) {
		void *p = reserve_ok(s, type, bytes);

		memset(p, 0, bytes);
		assert_ok(pv_publish(s, &PV_LIVE(p), 1));
	}
}

static void nothing_to_do(void **state)
{
	struct pv_store *s = store_create(*state, NULL);
	struct pv_repair_report r;

	store_root(s);
	r = repair(s, PV_REPAIR_LEAKS, 0);
	assert_int_equal(r.mended + r.freed_objects + r.left, 0);
	assert_int_equal(r.check.live_objects, 1);
	assert_string_equal(lines, "");
	assert_ok(pv_repair(s, NULL, &r));
	assert_ok(pv_close(s));
}

static void leaked_objects_are_freed(void **state)
{
	struct pv_store *s = store_create(*state, NULL);
	struct word *root = store_root(s);
	pv_type_t bytes = store_bytes_type(s, "bytes"), word = store_word_type(s);
	struct pv_repair_report r;

	leak(s, bytes, 100, 75);
	leak(s, bytes, 30000, 1);
	leak(s, bytes, 50000, 2);
	leak(s, word, sizeof(struct word), 3);
	root->next = publish_ok(s, word, sizeof(struct word), (void **)&root->next);
	((struct word *)root->next)->next = NULL;
	/* By default it leaves them. */
	r = repair(s, 0, 0);
	assert_int_equal(r.check.leaked_objects, 81);
	assert_int_equal(r.freed_objects + r.left, 0);
	r = repair(s, PV_REPAIR_LEAKS | PV_REPAIR_DRY_RUN, 0);
	assert_int_equal(r.freed_objects, 81);
	assert_int_equal(count("would free object 0x"), 81);
	assert_int_equal(store_sound(s).live_objects, 83);
	r = repair(s, PV_REPAIR_LEAKS, word);
	assert_int_equal(r.freed_objects, 3);
	assert_int_equal(count("of type word"), 3);
	assert_int_equal(store_sound(s).live_objects, 80);
	r = repair(s, PV_REPAIR_LEAKS, 0);
	assert_int_equal(r.freed_objects, 78);
	assert_int_equal(r.freed_bytes, r.check.leaked_bytes);
	assert_int_equal(count("freed object 0x"), 78);
	assert_int_equal(store_sound(s).live_objects, 2);
	assert_int_equal(repair(s, PV_REPAIR_LEAKS, 0).freed_objects, 0);
	assert_ok(pv_close(s));
}

static void cold_slabs_and_a_reader(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_repair_report r;

	store_root(s);
	leak(s, store_bytes_type(s, "bytes"), 100, 50);
	keeper_crash(k, &s);
	assert_ok(store_try(k, NULL, PV_RDONLY, &s));
	assert_fails(pv_repair(s, NULL, &r), -EPERM, "read-only");
	assert_int_equal(repair(s, PV_REPAIR_LEAKS | PV_REPAIR_DRY_RUN, 0).freed_objects, 50);
	assert_ok(pv_close(s));
	s = store_attach(k, NULL);
	assert_int_equal(repair(s, PV_REPAIR_LEAKS, 0).freed_objects, 50);
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

static void leaks_beside_damage_are_left(void **state)
{
	struct pv_store *s = store_create(*state, NULL);
	struct word *root = store_root(s);
	struct pv_repair_report r;

	leak(s, store_bytes_type(s, "bytes"), 100, 5);
	root->next = (void *)(uintptr_t)(s->base + 12345);
	r = repair(s, PV_REPAIR_LEAKS, 0);
	assert_int_equal(r.freed_objects, 0);
	assert_int_equal(r.left, 1);
	assert_int_equal(count("left: object 0x"), 1);
	assert_int_equal(count("left: 5 leaked objects"), 1);
	assert_int_equal(r.check.live_objects, 6);
	assert_ok(pv_close(s));
}

static void transactions_are_waited_for(void **state)
{
	struct pv_store *s = store_create(*state, NULL);
	struct pv_repair_options o = {.size = sizeof(o), .flags = PV_REPAIR_LEAKS};
	struct word *root = store_root(s);
	struct pv_repair_report r;

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_add(s, root, sizeof(*root)));
	assert_fails(pv_repair(s, &o, &r), -EBUSY, "transaction");
	assert_ok(pv_tx_commit(s));
	assert_ok(pv_repair(s, &o, &r));
	o.flags = 1u << 30;
	assert_fails(pv_repair(s, &o, &r), -EINVAL, "flags");
	o.flags = 0;
	o.type = 4000;
	assert_fails(pv_repair(s, &o, &r), -EINVAL, "type 4000");
	assert_ok(pv_close(s));
}

/* Damage while the store is open: what this process knows is written anew. */
static void index_is_written_anew(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct index_rec *rec;
	struct pv_repair_report r;
	size_t bytes;
	uint8_t *index;

	store_root(s)->value = 5;
	index = memfd_map(keeper_fd(k, 0), &bytes);
	rec = (void *)index;
	for (int what = 0; what < 4; what++) {
		uint64_t g = pvi_index_generation(rec);
		uint8_t *slot = index + PV_INDEX_HEADER_BYTES + (g & 1) * rec->slot_bytes;
		uint8_t *mirror = index + PV_INDEX_HEADER_BYTES + (~g & 1) * rec->slot_bytes;
		unsigned int faults = 1;

		switch (what) {
		case 0:
			slot[200] ^= 1;
			break;
		case 1:
			mirror[200] ^= 1;
			break;
		case 2:
			rec->commit ^= 1ull << 55;
			break;
		case 3:
			slot[200] ^= 1;
			mirror[200] ^= 1;
			rec->commit = 0;
			faults = 3;
			break;
		}
		r = repair(s, PV_REPAIR_DRY_RUN, 0);
		assert_int_equal(r.mended, faults);
		assert_int_equal(count("would write"), faults);
		r = repair(s, 0, 0);
		assert_int_equal(r.mended, faults);
		assert_int_equal(count("written"), faults);
		assert_int_equal(r.left, 0);
		assert_int_equal(repair(s, 0, 0).mended, 0);
		store_sound(s);
		keeper_crash(k, &s);
		memfd_unmap(index, bytes);
		s = store_attach(k, NULL);
		assert_int_equal(store_root(s)->value, 5);
		index = memfd_map(keeper_fd(k, 0), &bytes);
		rec = (void *)index;
	}
	memfd_unmap(index, bytes);
	assert_ok(pv_close(s));
}

/* An index that is refused otherwise: what would be done, and what an attach with PV_MEND does. */
static void refused_index(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct pv_repair_report r;
	struct index_rec *rec;
	size_t bytes;
	uint8_t *index;

	store_root(s);
	assert_ok(pv_close(s));
	index = memfd_map(keeper_fd(k, 0), &bytes);
	rec = (void *)index;
	rec->commit ^= 1;
	assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "commit word");
	assert_ok(store_try(k, NULL, PV_RDONLY | PV_MEND, &s));
	r = repair(s, PV_REPAIR_DRY_RUN, 0);
	assert_int_equal(r.mended, 1);
	assert_int_equal(count("the commit word"), 1);
	assert_ok(pv_close(s));
	assert_ok(store_try(k, NULL, PV_MEND, &s));
	assert_int_equal(repair(s, 0, 0).mended, 0);
	assert_ok(pv_close(s));
	assert_ok(pv_close(store_attach(k, NULL)));
	memfd_unmap(index, bytes);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(nothing_to_do),
		with_keeper(leaked_objects_are_freed),
		with_keeper(cold_slabs_and_a_reader),
		with_keeper(leaks_beside_damage_are_left),
		with_keeper(transactions_are_waited_for),
		with_keeper(index_is_written_anew),
		with_keeper(refused_index),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
