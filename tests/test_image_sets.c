/* SPDX-License-Identifier: BSD-3-Clause */
/* Hostile images: memfds of another size, store or time, and readers of damaged ones. */
#include <sys/mman.h>

#include <preserve/stats.h>

#include "hostile.h"

/* Each descriptor replaced by a memfd of other size or seals with the same contents. */
static void truncated_and_unsealed(void **state)
{
	static const long sizes_by[] = {-1000000, -65536, -4096, -1, 1, 4096, 65536};
	struct keeper *k = *state;
	struct image im = image_begin(k);
	struct pv_store *s;

	for (uint64_t token = 0; token < IMAGE_MEMFDS; token++) {
		int original = dup(keeper_fd(k, token));
		int unsealed = memfd_create("pv:test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

		for (size_t i = 0; i < sizeof(sizes_by) / sizeof(*sizes_by); i++) {
			long bytes = (long)im.bytes[token] + sizes_by[i];
			size_t n = bytes < 8 ? 100 : (size_t)bytes;
			int fd = memfd_clone(-1, n);

			n = n < im.bytes[token] ? n : im.bytes[token];
			assert_int_equal(pwrite(fd, im.pristine[token], n, 0), n);
			keeper_put(k, token, fd);
			close(fd);
			snprintf(image_case, sizeof(image_case), "token %d: %ld bytes", (int)token,
				 bytes);
			assert_fails(store_try(k, NULL, 0, &s), -EBADMSG,
				     n < sizeof(struct segment_rec) ? "fds["
				     : token			    ? "segment"
								    : "index");
		}
		assert_int_equal(write(unsealed, im.pristine[token], im.bytes[token]),
				 im.bytes[token]);
		keeper_put(k, token, unsealed);
		assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "not sealed");
		close(unsealed);
		keeper_put(k, token, original);
		close(original);
	}
	assert_int_equal(image_try(&im), SILENT);
	image_end(&im);
}

static void swapped_between_stores(void **state)
{
	struct keeper *k = *state, other;
	struct image im = image_begin(k);
	struct pv_options o = small_options(&other);
	struct pv_store *s;

	keeper_init(&other);
	o.window_bytes = 1 << 20;
	s = store_create(&other, &o);
	image_fill(s, 9);
	assert_ok(pv_close(s));
	for (uint64_t token = 0; token < IMAGE_MEMFDS; token++) {
		int original = dup(keeper_fd(k, token));

		keeper_put(k, token, keeper_fd(&other, token));
		/* Another index: then all the segments are strangers. */
		assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "belongs to another store");
		keeper_put(k, token, original);
		close(original);
	}
	/* The contents of segment 1 in the memfd of segment 0, cut to its size. */
	snprintf(image_case, sizeof(image_case), "segment 1 as segment 0");
	memcpy(im.now[1], im.pristine[2], im.bytes[1]);
	assert_int_equal(image_try(&im), REFUSED);
	image_restore(&im);
	keeper_free(&other);
	image_end(&im);
}

/* One memfd is older than the others: the header cannot tell, the rest must not crash. */
static void stale_copies(void **state)
{
	struct keeper *k = *state;
	struct image im = image_begin(k);
	uint8_t *newer[IMAGE_MEMFDS];
	struct pv_store *s;

	/* Let the store go on for a while from the image, then put parts of the image back. */
	s = store_attach(k, NULL);
	image_fill(s, 20);
	assert_ok(pv_close(s));
	for (uint64_t t = IMAGE_MEMFDS; k->n > IMAGE_MEMFDS; t++)
		keeper_drop(k, t);
	for (int t = 0; t < IMAGE_MEMFDS; t++) {
		newer[t] = malloc(im.bytes[t]);
		assert_non_null(newer[t]);
		memcpy(newer[t], im.now[t], im.bytes[t]);
	}
	for (int mix = 1; mix < 1 << IMAGE_MEMFDS; mix++) {
		snprintf(image_case, sizeof(image_case), "older copies: mask %d", mix);
		for (int t = 0; t < IMAGE_MEMFDS; t++)
			memcpy(im.now[t], mix >> t & 1 ? im.pristine[t] : newer[t], im.bytes[t]);
		image_try(&im);
	}
	for (int t = 0; t < IMAGE_MEMFDS; t++)
		free(newer[t]);
	image_end(&im);
}

/* A read-only handle recovers nothing and writes nothing, whatever it is given. */
static void reader_of_damaged_images(void **state)
{
	struct keeper *k = *state;
	struct image im = image_begin(k);
	uint64_t seed = random_seed_from_env("reader_of_damaged_images");
	struct objects found = {0};
	size_t opened = 0;

	for (int i = 0; i < 1000; i++) {
		int token = 1 + (int)random_below(&seed, IMAGE_MEMFDS - 1);
		struct pv_check_report r;
		struct pv_stats *st;
		struct pv_store *s;

		snprintf(image_case, sizeof(image_case), "case %d: token %d", i, token);
		for (int b = 0; b < 8; b++)
			im.now[token][sizeof(struct segment_rec) + random_below(&seed, 1500)] =
				(uint8_t)random_next(&seed);
		memcpy(im.before[token], im.now[token], im.bytes[token]);
		alarm(IMAGE_CASE_SECONDS);
		if (store_try(k, NULL, PV_RDONLY, &s) == 0) {
			opened++;
			assert_ok(pv_check(s, NULL, &r));
			assert_ok(pv_stats_get(s, &st));
			pv_stats_free(st);
			objects_live(&found, s, 0);
			for (size_t n = 0; n < im.live.n; n++)
				pv_usable_bytes(s, im.live.v[n].p);
			assert_ok(pv_close(s));
		}
		assert_memory_equal(im.now[token], im.before[token], im.bytes[token]);
		image_restore(&im);
	}
	assert_int_equal(opened, 1000);
	objects_free(&found);
	image_end(&im);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(truncated_and_unsealed),
		with_keeper(swapped_between_stores),
		with_keeper(stale_copies),
		with_keeper(reader_of_damaged_images),
	};

	/* It is about bytes of the image. */
	relocate_never();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
