/* SPDX-License-Identifier: BSD-3-Clause */
/* Hostile images: damage to the bytes of the metadata. See hostile.h for what is asked of them. */
#include <preserve/tx.h>

#include "hostile.h"

static void sound_image_opens(void **state)
{
	struct image im = image_begin(*state);

	snprintf(image_case, sizeof(image_case), "nothing changed");
	assert_int_equal(image_try(&im), SILENT);
	image_restore(&im);
	image_end(&im);
}

static void index_header_bits(void **state)
{
	struct image im = image_begin(*state);

	/* Twice, since the slot that is not in force is sound as well, and one generation behind.
	 */
	for (int i = 0; i < 2; i++) {
		image_flip_all(&im, 0, 0, offsetof(struct index_rec, writer_pid), REFUSED);
		image_flip_all(&im, 0, offsetof(struct index_rec, writer_pid), 8,
			       SILENT); /* advisory */
		image_next_epoch(&im);
	}
	image_end(&im);
}

static void index_slot_bits(void **state)
{
	struct image im = image_begin(*state);
	const struct index_rec *rec = (const void *)im.pristine[0];
	size_t at = PV_INDEX_HEADER_BYTES + (pvi_index_generation(rec) & 1) * rec->slot_bytes;
	const struct index_slot_rec *slot = (const void *)(im.pristine[0] + at);
	size_t other = PV_INDEX_HEADER_BYTES + (~pvi_index_generation(rec) & 1) * rec->slot_bytes;

	/* Each is there twice... */
	image_flip_all(&im, 0, at, offsetof(struct index_slot_rec, reserved), SILENT);
	image_flip_all(&im, 0, at + sizeof(*slot), slot->bytes, SILENT);
	image_flip_all(&im, 0, other, 64, SILENT);
	/* ... and without the mirror the slot in force is all there is. */
	im.now[0][other + 20] ^= 1;
	image_keep(&im);
	image_flip_all(&im, 0, at, offsetof(struct index_slot_rec, reserved), REFUSED);
	image_flip_all(&im, 0, at + sizeof(*slot), slot->bytes, REFUSED);
	image_end(&im);
}

static void segment_header_bits(void **state)
{
	struct image im = image_begin(*state);

	for (int token = 1; token < IMAGE_MEMFDS; token++)
		image_flip_all(&im, token, 0, sizeof(struct segment_rec), REFUSED);
	image_end(&im);
}

static void page_map_bits(void **state)
{
	struct image im = image_begin(*state);
	size_t silent = 0, n = 0;

	for (int token = 1; token < IMAGE_MEMFDS; token++) {
		const uint64_t *map = image_map(&im, token);

		for (uint32_t page = 0; page < image_segment(&im, token)->npages; page++) {
			for (size_t bit = page % image_stride(); bit < 64;
			     bit += image_stride(), n++) {
				size_t at = image_segment(&im, token)->map_off + 8 * page;
				/* One type for another: nothing else says which it was. */
				bool type = pvi_page_kind(map[page]) == PV_PAGE_EXTENT &&
					    bit >= PV_EXTENT_TYPE_SHIFT &&
					    bit < PV_EXTENT_TYPE_SHIFT + PV_PAGE_TYPE_BITS;
				enum outcome got = image_flip(&im, token, 8 * at + bit);

				if (got == SILENT && !type)
					fail_msg("%s: not noticed", image_case);
				silent += got == SILENT;
			}
		}
	}
	print_message("%zu bits, %zu silent (types of extents)\n", n, silent);
	image_end(&im);
}

/* Where the slot bytes of the slab with this header are in its memfd. */
static size_t slot_bytes_at(const struct slab_rec *slab, size_t slab_at)
{
	uint32_t shift = (uint32_t)__builtin_ctz(slab->slot_bytes);

	if (slab->slot_bytes != 1u << shift || slab->nslots < 64)
		return slab_at + slab->meta_off + sizeof(*slab);
	return slab_at + (pvi_slab_byte_of(slab->slab_off, shift, 4095) - slab->slab_off);
}

/* Whatever page is lost to damage, a store that is filled up says that it is full, and goes on. */
static void damaged_and_filled_up(void **state)
{
	struct image im = image_begin(*state);

	im.to_the_brim = true;
	for (int token = 1; token < IMAGE_MEMFDS; token++) {
		const struct segment_rec *seg = image_segment(&im, token);

		for (uint32_t page = seg->first_page; page < seg->npages; page++) {
			uint64_t rec = image_map(&im, token)[page];
			size_t slab = 4096 * page + pvi_rec_meta(rec);

			image_flip(&im, token, 8 * (seg->map_off + 8 * page));
			image_flip(&im, token, 8 * (seg->map_off + 8 * page) + PV_PAGE_BACK_SHIFT);
			if (pvi_page_kind(rec) != PV_PAGE_SLAB || pvi_rec_back(rec))
				continue;
			/* The header of the slab, and a slot byte that becomes none. */
			image_flip(&im, token, 8 * slab);
			image_flip(&im, token,
				   8 * slot_bytes_at((const void *)(im.pristine[token] + slab), 4096 * page) + 6);
		}
	}
	image_end(&im);
}

static void slab_bits(void **state)
{
	struct image im = image_begin(*state);
	size_t n[OUTCOMES], all, slabs = 0;

	for (int token = 1; token < IMAGE_MEMFDS; token++) {
		const uint64_t *map = image_map(&im, token);

		for (uint32_t page = 0; page < image_segment(&im, token)->npages; page++) {
			const struct slab_rec *slab;
			size_t at = 4096 * page + pvi_rec_meta(map[page]);

			if (pvi_page_kind(map[page]) != PV_PAGE_SLAB || pvi_rec_back(map[page]))
				continue;
			slabs++;
			slab = (const void *)(im.pristine[token] + at);
			image_flip_all(&im, token, at, sizeof(*slab), REPORTED);
			/* Of the states some bits make another valid one; the rest is noticed. */
			for (uint32_t i = 0; i < slab->nslots; i++) {
				size_t byte = slot_bytes_at(slab, 4096 * page) + i;

				if (i > 40 && im.pristine[token][byte] == PV_SLOT_FREE)
					continue; /* more of the same */
				all = image_flip_range(&im, token, byte, 1, n);
				assert_int_equal(n[REFUSED], 0);
				if (im.pristine[token][byte] == PV_SLOT_META)
					assert_int_equal(n[REPORTED], all);
				else
					assert_in_range(n[SILENT], 0, 3);
			}
		}
	}
	assert_true(slabs > 4);
	image_end(&im);
}

/* Each bit of the pointers of live objects. The full check finds those that lead out of live objects. */
static void pointer_bits(void **state)
{
	struct image im = image_begin(*state);
	size_t n[OUTCOMES], all = 0, reported = 0, objects = 0;
	struct pv_store *s = store_attach(im.k, NULL);
	pv_type_t word = store_word_type(s);
	uint64_t base = store_info(s).base;

	assert_ok(pv_close(s));
	image_keep(&im);
	for (size_t i = 0; i < im.live.n && objects < 20; i++) {
		uint64_t off = (uintptr_t)im.live.v[i].p - base;

		if (im.live.v[i].type != word)
			continue;
		objects++;
		for (int token = 1; token < IMAGE_MEMFDS; token++) {
			const struct segment_rec *seg = image_segment(&im, token);

			if (off < seg->window_off || off - seg->window_off >= seg->bytes)
				continue;
			all += image_flip_range(&im, token, off - seg->window_off, 8, n);
			assert_int_equal(n[REFUSED], 0);
			reported += n[REPORTED];
		}
	}
	print_message("%zu bits, %zu reported\n", all, reported);
	assert_true(objects == 20);
	/* Some lead to a neighbour of the same type, and to another byte of the same object. */
	assert_true(reported > all * 3 / 4);
	image_end(&im);
}

/* Idle lanes: only the count is looked at. */
static void lane_bits(void **state)
{
	struct image im = image_begin(*state);
	const struct segment_rec *seg = image_segment(&im, 1);
	size_t n[OUTCOMES], all;

	for (uint32_t i = 0; i < seg->nlanes; i++) {
		size_t at = seg->lanes_off + i * sizeof(struct lane_rec);

		all = image_flip_range(&im, 1, at, 8, n);
		/* A small count calls what the lane held last a valid intent, which it may be. */
		assert_true(n[REFUSED] >= all - 5);
		/* The commit word of a transaction: an end without a state, or a state without a
		 * log, or the log that was there before. */
		image_flip_range(&im, 1, at + offsetof(struct lane_rec, tx), 8, n);
		assert_true(n[REFUSED] >= all / 2);
		image_flip_all(&im, 1, at + offsetof(struct lane_rec, actions), 200, SILENT);
		image_flip_all(&im, 1, at + offsetof(struct lane_rec, chunks), 50, SILENT);
		image_flip_all(&im, 1, at + offsetof(struct lane_rec, log), 50, SILENT);
	}
	image_end(&im);
}

/* A lane with a valid intent: what a crash in the middle of a pv_publish() leaves. */
static void pending_intent_bits(void **state)
{
	struct image im = image_begin(*state);
	const struct segment_rec *seg = image_segment(&im, 1);
	struct lane_rec *lane = (void *)(im.now[1] + seg->lanes_off);
	const struct action_rec *a = lane->actions;
	size_t n[OUTCOMES], all, count = 0;

	/* What is left of the last intents is still one that can be done again. */
	while (count < PV_LANE_ACTIONS && a[count].where)
		count++;
	assert_true(count >= 2);
	for (lane->count = count; lane->count; lane->count--) {
		snprintf(image_case, sizeof(image_case), "%zu actions", (size_t)lane->count);
		if (image_try(&im) != REFUSED) {
			image_restore(&im);
			lane->count = 1;
			break;
		}
	}
	assert_true(lane->count);
	lane->count = 2;
	image_keep(&im);
	all = image_flip_range(&im, 1, seg->lanes_off + offsetof(struct lane_rec, actions),
			       2 * sizeof(*a), n);
	print_message("%zu refused, %zu reported, %zu silent\n", n[REFUSED], n[REPORTED],
		      n[SILENT]);
	/* Of an action on a slot, half of which is a value that means nothing. */
	assert_true(n[REFUSED] > all / 4);
	image_end(&im);
}

/* A lane with a transaction that was open at the crash, or was being committed, beside a valid
 * intent in the other: the one must not be touched before the other is known to be sound. */
static void pending_transaction_bits(void **state)
{
	struct image im = image_begin(*state);
	struct pv_store *s = store_attach(im.k, NULL);
	const struct segment_rec *seg = image_segment(&im, 1);
	struct lane_rec *lanes = (void *)(im.now[1] + seg->lanes_off);
	size_t n[OUTCOMES], all, end;
	struct word *root = store_root(s);
	uint64_t *word = &root->value;
	void *p;

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_add(s, word, sizeof(*word)));
	assert_ok(pv_tx_alloc(s, store_bytes_type(s, "bytes"), 100, &p));
	assert_ok(pv_tx_add(s, p, 50));
	assert_int_equal(lanes[0].tx & 3, PV_TX_ACTIVE);
	end = lanes[0].tx >> PV_TX_END_SHIFT;
	assert_in_range(end, 64, 1000);
	lanes[1].count = 1;
	lanes[1].actions[0].where =
		(uint64_t)PV_DO_WORD << PV_DO_OP_SHIFT | ((uintptr_t)word - store_info(s).base);
	lanes[1].actions[0].value = 1;
	image_keep(&im);
	assert_ok(pv_close(s));
	image_restore(&im);
	for (int round = 0; round < 2; round++) {
		all = image_flip_range(&im, 1, seg->lanes_off + offsetof(struct lane_rec, tx), 8,
				       n);
		assert_true(n[REFUSED] > all / 2);
		all = image_flip_range(&im, 1, seg->lanes_off + offsetof(struct lane_rec, log), end,
				       n);
		print_message("log: %zu refused, %zu silent\n", n[REFUSED], n[SILENT]);
		assert_true(n[REFUSED] > all / 4);
		/* The same log with nothing but its state changed. */
		lanes[0].tx ^= PV_TX_ACTIVE ^ PV_TX_COMMITTED;
		image_keep(&im);
	}
	image_end(&im);
}

/* A transaction whose log went on in pages, which nobody else has had since. */
static void long_transaction_bits(void **state)
{
	struct image im = image_begin(*state);
	struct pv_store *s = store_attach(im.k, NULL);
	const struct segment_rec *seg = image_segment(&im, 1);
	struct lane_rec *lane = (void *)(im.now[1] + seg->lanes_off);
	struct tx_chunk_rec chunk;
	size_t n[OUTCOMES], all, at, end, chunks;
	int token = 1;
	void *p;

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_alloc(s, store_bytes_type(s, "bytes"), 3000, &p));
	assert_ok(pv_tx_add(s, p, 600));
	assert_ok(pv_tx_add(s, p, 2000));
	assert_ok(pv_tx_add(s, p, 40));
	assert_int_equal(lane->tx >> PV_TX_CHUNK_SHIFT & 63, 1);
	end = lane->tx >> PV_TX_END_SHIFT;
	chunk = lane->chunks[1];
	while (token + 1 < IMAGE_MEMFDS && chunk.off >= image_segment(&im, token + 1)->window_off)
		token++;
	at = chunk.off - image_segment(&im, token)->window_off;
	image_keep(&im);
	assert_ok(pv_close(s));
	image_restore(&im);
	chunks = seg->lanes_off + offsetof(struct lane_rec, chunks);
	for (int round = 0; round < 2; round++) {
		/* Where the first piece ends, and where the second is. */
		all = image_flip_range(&im, 1, chunks + offsetof(struct tx_chunk_rec, used), 8, n);
		assert_true(n[REFUSED] > all / 2);
		all = image_flip_range(&im, 1, chunks + sizeof(chunk), 16, n);
		assert_true(n[REFUSED] > all / 2);
		/* Heads and ends of what it holds: one range that is long, one that is short. */
		image_flip_range(&im, token, at, 32, n);
		all = image_flip_range(&im, token, at + end - 80, 80, n);
		print_message("chunk: %zu refused, %zu silent\n", n[REFUSED], n[SILENT]);
		assert_true(n[REFUSED] > all / 8);
		lane->tx ^= PV_TX_ACTIVE ^ PV_TX_COMMITTED;
		image_keep(&im);
	}
	image_end(&im);
}

static void random_garbage(void **state)
{
	struct image im = image_begin(*state);
	uint64_t seed = random_seed_from_env("random_garbage");
	size_t n[OUTCOMES] = {0}, slot_bytes = ((struct index_rec *)(void *)im.now[0])->slot_bytes;

	for (int i = 0; i < (under_tsan() ? 500 : 3000); i++) {
		int token = (int)random_below(&seed, IMAGE_MEMFDS);
		size_t places = 1 + random_below(&seed, 4);

		snprintf(image_case, sizeof(image_case), "case %d: token %d", i, token);
		for (size_t p = 0; p < places; p++) {
			/* Half of it where the headers, maps and lanes are, and the trees. */
			bool part = random_below(&seed, 2);
			size_t room = part ? 2048 : im.bytes[token];
			size_t bytes = 1 + random_below(&seed, 64);
			size_t at = random_below(&seed, room - bytes);

			if (part && !token)
				at = PV_INDEX_HEADER_BYTES + (at & 1) * slot_bytes + at / 2;

			for (size_t b = 0; b < bytes; b++)
				im.now[token][at + b] = (uint8_t)random_next(&seed);
		}
		n[image_try(&im)]++;
		image_restore(&im);
	}
	print_message("%zu refused, %zu reported, %zu silent\n", n[REFUSED], n[REPORTED],
		      n[SILENT]);
	assert_true(n[REFUSED] > 50);
	assert_true(n[REPORTED] > 20);
	image_end(&im);
}

static void zeroed_pages(void **state)
{
	struct image im = image_begin(*state);

	for (int token = 0; token < IMAGE_MEMFDS; token++) {
		for (size_t at = 0; at < im.bytes[token]; at += 4096) {
			snprintf(image_case, sizeof(image_case), "token %d: zeroed from %zu", token,
				 at);
			memset(im.now[token] + at, 0, 4096);
			image_try(&im);
			image_restore(&im);
			snprintf(image_case, sizeof(image_case), "token %d: ones from %zu", token,
				 at);
			memset(im.now[token] + at, 0xff, 4096);
			image_try(&im);
			image_restore(&im);
		}
	}
	image_end(&im);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(sound_image_opens),	  with_keeper(index_header_bits),
		with_keeper(index_slot_bits),	  with_keeper(segment_header_bits),
		with_keeper(page_map_bits),	  with_keeper(damaged_and_filled_up),
		with_keeper(slab_bits),		  with_keeper(lane_bits),
		with_keeper(pointer_bits),
		with_keeper(pending_intent_bits), with_keeper(pending_transaction_bits),
		with_keeper(long_transaction_bits),
		with_keeper(random_garbage),	  with_keeper(zeroed_pages),
	};

	/* It is about bytes of the image. */
	relocate_never();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
