/* SPDX-License-Identifier: BSD-3-Clause */
/* The index and its mirror: what an open makes of a slot or a commit word that is damaged. */
#include "internal.h"
#include "support.h"

/* A store with a root, closed; its index, mapped. */
struct index_image {
	struct keeper *k;
	uint8_t *at;
	uint8_t *before;
	size_t bytes;
	struct index_rec *rec;
	uint64_t generation;
};

static struct index_slot_rec *slot_number(const struct index_image *im, uint64_t number)
{
	return (void *)(im->at + PV_INDEX_HEADER_BYTES + (number & 1) * im->rec->slot_bytes);
}

/* The slot in force, and the other one. */
static struct index_slot_rec *native(const struct index_image *im)
{
	return slot_number(im, im->generation);
}

static struct index_slot_rec *other(const struct index_image *im)
{
	return slot_number(im, im->generation + 1);
}

static struct index_image begin(struct keeper *k)
{
	struct index_image im = {.k = k};
	struct pv_store *s = store_create(k, NULL);

	store_root(s)->value = 4711;
	assert_ok(pv_close(s));
	im.at = memfd_map(keeper_fd(k, 0), &im.bytes);
	im.rec = (void *)im.at;
	im.before = malloc(im.bytes);
	assert_non_null(im.before);
	im.generation = pvi_index_generation(im.rec);
	return im;
}

static void end(struct index_image *im)
{
	memfd_unmap(im->at, im->bytes);
	free(im->before);
}

static void damage(struct index_slot_rec *slot)
{
	((uint8_t *)(slot + 1))[100] ^= 4;
}

static void refused(struct index_image *im, uint32_t flags, const char *says)
{
	struct pv_store *s;

	memcpy(im->before, im->at, im->bytes);
	assert_fails(store_try(im->k, NULL, flags, &s), -EBADMSG, says);
	assert_fails(store_try(im->k, NULL, flags | PV_RDONLY, &s), -EBADMSG, says);
	assert_memory_equal(im->at, im->before, im->bytes);
}

/* It opens with these flags; the index that was in force had this generation. */
static void mended(struct index_image *im, uint32_t flags, uint32_t how, uint64_t generation)
{
	struct pv_check_report r;
	struct pv_store *s;
	size_t bytes;
	void *fdt;

	/* A reader sees the same, and changes nothing. */
	memcpy(im->before, im->at, im->bytes);
	assert_ok(store_try(im->k, NULL, flags | PV_RDONLY, &s));
	assert_int_equal(store_info(s).mended, how);
	assert_int_equal(store_info(s).generation, generation);
	assert_ok(pv_check(s, NULL, &r));
	assert_true(r.problems > 0);
	assert_ok(pv_index_dump(s, &fdt, &bytes));
	free(fdt);
	assert_ok(pv_close(s));
	assert_memory_equal(im->at, im->before, im->bytes);

	assert_ok(store_try(im->k, NULL, flags, &s));
	assert_int_equal(store_info(s).mended, how);
	assert_int_equal(store_info(s).generation, generation + 1); /* its own epoch */
	assert_int_equal(store_root(s)->value, 4711);
	store_sound(s);
	assert_ok(pv_close(s));
	im->generation = pvi_index_generation(im->rec);
	/* And it is mended for good. */
	assert_true(pvi_index_slot_sound(im->rec, im->generation, false));
	assert_true(pvi_index_slot_sound(im->rec, im->generation, true));
	assert_ok(store_try(im->k, NULL, 0, &s));
	assert_int_equal(store_info(s).mended, 0);
	assert_ok(pv_close(s));
	im->generation = pvi_index_generation(im->rec);
}

static void both_slots_are_alike(void **state)
{
	struct index_image im = begin(*state);

	assert_int_equal(native(&im)->generation, im.generation);
	assert_int_equal(other(&im)->generation, im.generation);
	assert_int_equal(native(&im)->bytes, other(&im)->bytes);
	assert_memory_equal(native(&im), other(&im),
			    sizeof(struct index_slot_rec) + native(&im)->bytes);
	end(&im);
}

static void slot_in_force_is_damaged(void **state)
{
	struct index_image im = begin(*state);

	damage(native(&im));
	mended(&im, 0, PV_MENDED_SLOT, im.generation);
	end(&im);
}

static void mirror_is_damaged(void **state)
{
	struct index_image im = begin(*state);
	struct pv_store *s;

	damage(other(&im));
	assert_ok(store_try(im.k, NULL, 0, &s));
	assert_int_equal(store_info(s).mended, 0);
	assert_ok(pv_close(s));
	end(&im);
}

static void both_slots_are_damaged(void **state)
{
	struct index_image im = begin(*state);

	damage(native(&im));
	damage(other(&im));
	refused(&im, 0, "no mirror");
	refused(&im, PV_MEND, "no mirror");
	end(&im);
}

static void commit_word_is_damaged(void **state)
{
	struct index_image im = begin(*state);

	im.rec->commit ^= 1ull << 50;
	refused(&im, 0, "the commit word");
	mended(&im, PV_MEND, PV_MENDED_COMMIT, im.generation);
	/* In the half that is the generation. */
	im.rec->commit ^= 1;
	refused(&im, 0, "the commit word");
	mended(&im, PV_MEND, PV_MENDED_COMMIT, im.generation);
	end(&im);
}

static void commit_word_and_a_slot(void **state)
{
	struct index_image im = begin(*state);

	damage(native(&im));
	im.rec->commit = 0;
	refused(&im, 0, "the commit word");
	mended(&im, PV_MEND, PV_MENDED_COMMIT | PV_MENDED_SLOT, im.generation);
	damage(other(&im));
	im.rec->commit = ~0ull;
	mended(&im, PV_MEND, PV_MENDED_COMMIT, im.generation);
	damage(native(&im));
	damage(other(&im));
	im.rec->commit = 0;
	refused(&im, PV_MEND, "the commit word");
	end(&im);
}

/* Write another index; leave it staged, or committed without a mirror. */
static void write_another(struct index_image *im, bool commit)
{
	struct index_slot_rec *old = native(im), *copy = malloc(im->rec->slot_bytes);
	struct pv_store *s = store_attach(im->k, NULL);
	uint64_t generation;

	assert_non_null(copy);
	im->generation = pvi_index_generation(im->rec);
	old = native(im);
	memcpy(copy, old, im->rec->slot_bytes);
	assert_ok(pvi_index_stage(&s->index, 0, &generation));
	if (commit) {
		pvi_index_commit(&s->index, generation);
		memcpy(old, copy, im->rec->slot_bytes); /* as if the mirror had not been begun */
	}
	free(copy);
	assert_int_equal(generation, im->generation + 1);
	assert_ok(pv_close(s));
}

static void commit_word_while_an_index_is_staged(void **state)
{
	struct index_image im = begin(*state);
	uint64_t generation;

	write_another(&im, false);
	generation = im.generation;
	im.rec->commit ^= 1ull << 60;
	refused(&im, 0, "the commit word");
	mended(&im, PV_MEND, PV_MENDED_COMMIT, generation);
	end(&im);
}

static void slot_in_force_while_an_index_is_staged(void **state)
{
	struct index_image im = begin(*state);

	write_another(&im, false);
	damage(native(&im));
	refused(&im, 0, "no mirror");
	refused(&im, PV_MEND, "no mirror");
	end(&im);
}

static void slot_in_force_before_it_has_a_mirror(void **state)
{
	struct index_image im = begin(*state);
	uint64_t generation;

	write_another(&im, true);
	generation = im.generation;
	damage(other(&im)); /* which is in force now */
	refused(&im, 0, "no mirror");
	mended(&im, PV_MEND, PV_MENDED_COMMIT, generation);
	end(&im);
}

static void slots_of_different_times(void **state)
{
	struct index_image im = begin(*state);
	uint8_t *old = malloc(im.rec->slot_bytes);

	assert_non_null(old);
	memcpy(old, other(&im), im.rec->slot_bytes);
	for (int i = 0; i < 3; i++)
		assert_ok(pv_close(store_attach(im.k, NULL)));
	im.generation = pvi_index_generation(im.rec);
	memcpy(other(&im), old, im.rec->slot_bytes);
	im.rec->commit ^= 1ull << 60;
	refused(&im, PV_MEND, "the commit word");
	free(old);
	end(&im);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(both_slots_are_alike),
		with_keeper(slot_in_force_is_damaged),
		with_keeper(mirror_is_damaged),
		with_keeper(both_slots_are_damaged),
		with_keeper(commit_word_is_damaged),
		with_keeper(commit_word_and_a_slot),
		with_keeper(commit_word_while_an_index_is_staged),
		with_keeper(slot_in_force_while_an_index_is_staged),
		with_keeper(slot_in_force_before_it_has_a_mirror),
		with_keeper(slots_of_different_times),
	};

	/* It is about bytes of the image. */
	relocate_never();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
