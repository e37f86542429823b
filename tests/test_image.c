/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hostile images: bits flipped one by one in everything that is metadata, garbage, truncated,
 * swapped and stale memfds. pv_open() either refuses such an image, with a message that names its
 * part, and leaves every byte of it as it was; or it opens it, and then nothing that an application
 * does with it may crash, hang or write outside of the store. What pv_open() accepts, pv_check()
 * reports where the format allows to know; each test says which bits these are.
 *
 * The images are small, so that a case takes some 100 us and every bit can be tried. With
 * ThreadSanitizer, which makes it tenfold and has nothing to find here, every 11th bit is.
 */
#include <signal.h>
#include <sys/mman.h>

#include "internal.h"
#include "support.h"

#define MEMFDS	     3 /* index, two segments */
#define GUARD_BYTES  65536u
#define CASE_SECONDS 20

struct node {
	struct node *next;
	uint64_t value;
};

static const struct pv_typedef node_type =
	PV_TYPE(struct node, "node", 1, offsetof(struct node, next));
static const struct pv_typedef bytes_type = PV_TYPE_BYTES("bytes", 1);
/* A slab in the grid, a slab with its header behind the slots, an extent, ... */
static const size_t sizes[] = {100, 3000, 40000, 16, 400};

/** An image, mapped, and what it was at first. */
struct image {
	struct keeper *k;
	uint8_t *now[MEMFDS]; /* by token */
	uint8_t *pristine[MEMFDS];
	uint8_t *before[MEMFDS]; /* as it was when it was handed to pv_open() */
	size_t bytes[MEMFDS];
	uint8_t *guard[2]; /* of this process, on both sides of the window */
	struct objects live;
	bool to_the_brim; /* exercise() fills the store */
	bool free_first;  /* it frees before it allocates; changes from case to case */
};

enum outcome {
	REFUSED,  /* by pv_open() */
	REPORTED, /* by pv_check() */
	SILENT,
	OUTCOMES
};

/* ---- what to say when a case does not come back ---- */

static char case_now[160];
static struct sigaction old_actions[NSIG];

static void on_signal(int sig)
{
	static const char timeout[] = " took too long:", crash[] = " crashed:";

	(void)!write(STDERR_FILENO, case_now, strlen(case_now));
	if (sig == SIGALRM) {
		(void)!write(STDERR_FILENO, timeout, sizeof(timeout) - 1);
		abort();
	}
	(void)!write(STDERR_FILENO, crash, sizeof(crash) - 1);
	/* Again, for whoever was there before (cmocka, a sanitizer). */
	sigaction(sig, &old_actions[sig], NULL);
}

static void watch(bool on)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM};
	struct sigaction sa = {.sa_handler = on_signal};

	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++) {
		if (on)
			sigaction(signals[i], &sa, &old_actions[signals[i]]);
		else
			sigaction(signals[i], &old_actions[signals[i]], NULL);
	}
	alarm(0);
}

/* ---- the image ---- */

static void fill(struct pv_store *s, size_t per_size)
{
	pv_type_t node = 0, bytes = 0;
	struct node *root = NULL;
	void *p;

	assert_ok(pv_type_register(s, &node_type, &node));
	assert_ok(pv_type_register(s, &bytes_type, &bytes));
	assert_ok(pv_root(s, "root", node, sizeof(*root), (void **)&root, NULL));
	for (size_t i = 0; i < 5 * per_size; i++) {
		assert_ok(pv_reserve(s, node, sizeof(*root), &p));
		*(struct node *)p = (struct node){root->next, i};
		assert_ok(pv_publish(
			s, (struct pv_action[]){PV_LIVE(p), PV_STORE(&root->next, (uintptr_t)p)},
			2));
	}
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		void *last = NULL;

		for (size_t k = 0; k < (sizes[i] > 4000 ? 1 : per_size); k++) {
			assert_ok(pv_reserve(s, bytes, sizes[i], &p));
			memset(p, (int)i, sizes[i]);
			assert_ok(pv_publish(s, &PV_LIVE(p), 1));
			if (k % 3 == 1)
				assert_ok(pv_publish(s, &PV_FREE(last), 1));
			last = p;
		}
	}
	assert_ok(pv_reserve(s, bytes, 100, &p)); /* left behind reserved */
}

static struct image image_begin(struct keeper *k)
{
	struct image im = {.k = k};
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct pv_info info;

	o.window_bytes = 1 << 20;
	s = store_create(k, &o);
	info = store_info(s);
	fill(s, 9);
	store_sound(s);
	objects_live(&im.live, s, 0);
	keeper_crash(k, &s);
	/* The application goes on in the next epoch, and is killed again. */
	s = store_attach(k, NULL);
	fill(s, 1);
	store_sound(s);
	objects_live(&im.live, s, 0);
	keeper_crash(k, &s);
	assert_int_equal(k->n, MEMFDS);
	for (uint64_t t = 0; t < MEMFDS; t++) {
		im.now[t] = memfd_map(keeper_fd(k, t), &im.bytes[t]);
		im.pristine[t] = malloc(im.bytes[t]);
		im.before[t] = malloc(im.bytes[t]);
		assert_true(im.pristine[t] && im.before[t]);
		memcpy(im.pristine[t], im.now[t], im.bytes[t]);
	}
	for (int i = 0; i < 2; i++) {
		uint64_t at = i ? info.base + info.window_bytes : info.base - GUARD_BYTES;

		im.guard[i] = mmap((void *)(uintptr_t)at, GUARD_BYTES, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
		assert_ptr_not_equal(im.guard[i], MAP_FAILED);
		memset(im.guard[i], 0xa5, GUARD_BYTES);
	}
	watch(true);
	return im;
}

static void image_restore(struct image *im)
{
	for (int t = 0; t < MEMFDS; t++)
		memcpy(im->now[t], im->pristine[t], im->bytes[t]);
}

/** Attach and close: another epoch, another generation. */
static void image_next_epoch(struct image *im)
{
	assert_ok(pv_close(store_attach(im->k, NULL)));
	for (int t = 0; t < MEMFDS; t++)
		memcpy(im->pristine[t], im->now[t], im->bytes[t]);
}

static void image_end(struct image *im)
{
	watch(false);
	for (int i = 0; i < 2; i++) {
		for (size_t k = 0; k < GUARD_BYTES; k++)
			assert_int_equal(im->guard[i][k], 0xa5);
		munmap(im->guard[i], GUARD_BYTES);
	}
	for (int t = 0; t < MEMFDS; t++) {
		memfd_unmap(im->now[t], im->bytes[t]);
		free(im->pristine[t]);
		free(im->before[t]);
	}
	objects_free(&im->live);
}

/* ---- one case ---- */

/* Errors that damage may cause; anything else is a fault of the library. */
static void allow(int err)
{
	if (err && err != -EBADMSG && err != -EINVAL && err != -ENOSPC && err != -EEXIST)
		fail_msg("%s: %d: %s", case_now, err, pv_last_error());
}

static void allocate(struct image *im, struct pv_store *s, pv_type_t type)
{
	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		size_t n = im->to_the_brim ? SIZE_MAX : sizes[i] > 4000 ? 1 : 12000 / sizes[i];

		for (size_t k = 0; k < n; k++) {
			void *p;
			int err = pv_reserve(s, type, sizes[i], &p);

			allow(err);
			if (err)
				break;
			memset(p, 0x77, sizes[i]);
			if (k % 4 == 0)
				allow(pv_publish(s, &PV_LIVE(p), 1));
		}
	}
}

/* What an application does: look at everything, allocate, free what is there. */
static void exercise(struct image *im, struct pv_store *s)
{
	struct objects found = {0};
	pv_type_t node = 0, bytes = 0;
	void *p, *root;

	assert_ok(pv_type_register(s, &node_type, &node));
	assert_ok(pv_type_register(s, &bytes_type, &bytes));
	objects_live(&found, s, 0);
	im->free_first = !im->free_first;
	if (!im->free_first)
		allocate(im, s, bytes);
	for (size_t i = 0; i < im->live.n; i++)
		pv_usable_bytes(s, im->live.v[i].p);
	for (size_t i = 0; i < found.n; i++) {
		allow(pv_publish(s, &PV_FREE(found.v[i].p), 1));
		if (i % 16 == 3)
			allow(pv_reserve(s, node, sizeof(struct node), &p));
	}
	/* Some of these are gone, some never were. */
	for (size_t i = 0; i < im->live.n; i++)
		allow(pv_publish(s, &PV_FREE(im->live.v[i].p), 1));
	allow(pv_root(s, "other", node, sizeof(struct node), &root, NULL));
	allocate(im, s, bytes);
	objects_free(&found);
}

static enum outcome try_image(struct image *im)
{
	struct pv_check_report r;
	struct pv_store *s = NULL;
	unsigned int drops = im->k->drops;
	int err;

	for (int t = 0; t < MEMFDS; t++)
		memcpy(im->before[t], im->now[t], im->bytes[t]);
	alarm(CASE_SECONDS);
	err = store_try(im->k, NULL, 0, &s);
	if (err) {
		const char *says = pv_last_error();

		if (err != -EBADMSG && err != -EPROTONOSUPPORT && err != -ENXIO)
			fail_msg("%s: %d: %s", case_now, err, says);
		if (!strstr(says, "index") && !strstr(says, "segment"))
			fail_msg("%s: message names no part: %s", case_now, says);
		for (int t = 0; t < MEMFDS; t++)
			if (memcmp(im->before[t], im->now[t], im->bytes[t]) != 0)
				fail_msg("%s: refused, but token %d was changed", case_now, t);
		assert_int_equal(im->k->drops, drops);
		return REFUSED;
	}
	assert_ok(pv_check(s, NULL, NULL, &r));
	exercise(im, s);
	assert_ok(pv_close(s));
	/* Growth: back to what the image was made of. */
	for (uint64_t t = MEMFDS; im->k->n > MEMFDS; t++)
		keeper_drop(im->k, t);
	return r.problems ? REPORTED : SILENT;
}

static enum outcome flip(struct image *im, int token, size_t bit)
{
	enum outcome got;

	snprintf(case_now, sizeof(case_now), "token %d: byte %zu: bit %zu", token, bit / 8,
		 bit % 8);
	im->now[token][bit / 8] ^= (uint8_t)(1u << bit % 8);
	got = try_image(im);
	if (got == REFUSED)
		im->now[token][bit / 8] ^= (uint8_t)(1u << bit % 8);
	else
		image_restore(im);
	return got;
}

static size_t stride(void)
{
	return under_tsan() ? 11 : 1;
}

/** Flip each bit of a range; counts by outcome go to n. Returns how many there were. */
static size_t flip_range(struct image *im, int token, size_t from, size_t bytes, size_t n[OUTCOMES])
{
	memset(n, 0, OUTCOMES * sizeof(*n));
	for (size_t bit = 8 * from; bit < 8 * (from + bytes); bit += stride())
		n[flip(im, token, bit)]++;
	return n[REFUSED] + n[REPORTED] + n[SILENT];
}

/** And all have this outcome. */
static void flip_all(struct image *im, int token, size_t from, size_t bytes, enum outcome want)
{
	size_t n[OUTCOMES], all = flip_range(im, token, from, bytes, n);

	if (n[want] != all)
		print_error("token %d from %zu: %zu refused, %zu reported, %zu silent\n", token,
			    from, n[REFUSED], n[REPORTED], n[SILENT]);
	assert_int_equal(n[want], all);
}

static const struct segment_rec *segment_of(const struct image *im, int token)
{
	return (const struct segment_rec *)(const void *)im->pristine[token];
}

static const uint64_t *map_of(const struct image *im, int token)
{
	return (const uint64_t *)(const void *)(im->pristine[token] +
						segment_of(im, token)->map_off);
}

/* ---- tests ---- */

static void sound_image_opens(void **state)
{
	struct image im = image_begin(*state);

	snprintf(case_now, sizeof(case_now), "nothing changed");
	assert_int_equal(try_image(&im), SILENT);
	image_restore(&im);
	image_end(&im);
}

static void index_header_bits(void **state)
{
	struct image im = image_begin(*state);

	/* Twice, since the slot that is not in force is sound as well, and one generation behind.
	 */
	for (int i = 0; i < 2; i++) {
		flip_all(&im, 0, 0, offsetof(struct index_rec, writer_pid), REFUSED);
		flip_all(&im, 0, offsetof(struct index_rec, writer_pid), 8, SILENT); /* advisory */
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

	flip_all(&im, 0, at, offsetof(struct index_slot_rec, reserved), REFUSED);
	flip_all(&im, 0, at + sizeof(*slot), slot->bytes, REFUSED);
	/* Not in force, and about to be overwritten. */
	flip_all(&im, 0, other, 64, SILENT);
	image_end(&im);
}

static void segment_header_bits(void **state)
{
	struct image im = image_begin(*state);

	for (int token = 1; token < MEMFDS; token++)
		flip_all(&im, token, 0, sizeof(struct segment_rec), REFUSED);
	image_end(&im);
}

static void page_map_bits(void **state)
{
	struct image im = image_begin(*state);
	size_t silent = 0, n = 0;

	for (int token = 1; token < MEMFDS; token++) {
		const uint64_t *map = map_of(&im, token);

		for (uint32_t page = 0; page < segment_of(&im, token)->npages; page++) {
			for (size_t bit = page % stride(); bit < 64; bit += stride(), n++) {
				size_t at = segment_of(&im, token)->map_off + 8 * page;
				/* One type for another: nothing else says which it was. */
				bool type = pvi_page_kind(map[page]) == PV_PAGE_EXTENT &&
					    bit >= PV_EXTENT_TYPE_SHIFT &&
					    bit < PV_EXTENT_TYPE_SHIFT + PV_PAGE_TYPE_BITS;
				enum outcome got = flip(&im, token, 8 * at + bit);

				if (got == SILENT && !type)
					fail_msg("%s: not noticed", case_now);
				silent += got == SILENT;
			}
		}
	}
	print_message("%zu bits, %zu silent (types of extents)\n", n, silent);
	image_end(&im);
}

/* Whatever page is lost to damage, a store that is filled up says that it is full, and goes on. */
static void damaged_and_filled_up(void **state)
{
	struct image im = image_begin(*state);

	im.to_the_brim = true;
	for (int token = 1; token < MEMFDS; token++) {
		const struct segment_rec *seg = segment_of(&im, token);

		for (uint32_t page = seg->first_page; page < seg->npages; page++) {
			uint64_t rec = map_of(&im, token)[page];
			size_t slab = 4096 * page + pvi_rec_meta(rec);

			flip(&im, token, 8 * (seg->map_off + 8 * page));
			flip(&im, token, 8 * (seg->map_off + 8 * page) + PV_PAGE_BACK_SHIFT);
			if (pvi_page_kind(rec) != PV_PAGE_SLAB || pvi_rec_back(rec))
				continue;
			/* The header of the slab, and a slot byte that becomes none. */
			flip(&im, token, 8 * slab);
			flip(&im, token, 8 * (slab + sizeof(struct slab_rec)) + 6);
		}
	}
	image_end(&im);
}

static void slab_bits(void **state)
{
	struct image im = image_begin(*state);
	size_t n[OUTCOMES], all, slabs = 0;

	for (int token = 1; token < MEMFDS; token++) {
		const uint64_t *map = map_of(&im, token);

		for (uint32_t page = 0; page < segment_of(&im, token)->npages; page++) {
			const struct slab_rec *slab;
			size_t at = 4096 * page + pvi_rec_meta(map[page]);

			if (pvi_page_kind(map[page]) != PV_PAGE_SLAB || pvi_rec_back(map[page]))
				continue;
			slabs++;
			slab = (const void *)(im.pristine[token] + at);
			flip_all(&im, token, at, sizeof(*slab), REPORTED);
			/* Of the states some bits make another valid one; the rest is noticed. */
			for (uint32_t i = 0; i < slab->nslots; i++) {
				size_t byte = at + sizeof(*slab) + i;

				if (i > 40 && im.pristine[token][byte] == PV_SLOT_FREE)
					continue; /* more of the same */
				all = flip_range(&im, token, byte, 1, n);
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

/* Idle lanes: only the count is looked at. */
static void lane_bits(void **state)
{
	struct image im = image_begin(*state);
	const struct segment_rec *seg = segment_of(&im, 1);
	size_t n[OUTCOMES], all;

	for (uint32_t i = 0; i < seg->nlanes; i++) {
		size_t at = seg->lanes_off + i * sizeof(struct lane_rec);

		all = flip_range(&im, 1, at, 8, n);
		/* A small count calls what the lane held last a valid intent, which it may be. */
		assert_true(n[REFUSED] >= all - 5);
		/* The commit word of a transaction: an end without a state, or a state without a
		 * log, or the log that was there before. */
		flip_range(&im, 1, at + offsetof(struct lane_rec, tx), 8, n);
		assert_true(n[REFUSED] >= all / 2);
		flip_all(&im, 1, at + offsetof(struct lane_rec, actions), 200, SILENT);
		flip_all(&im, 1, at + offsetof(struct lane_rec, chunks), 50, SILENT);
		flip_all(&im, 1, at + offsetof(struct lane_rec, log), 50, SILENT);
	}
	image_end(&im);
}

/* A lane with a valid intent: what a crash in the middle of a pv_publish() leaves. */
static void pending_intent_bits(void **state)
{
	struct image im = image_begin(*state);
	const struct segment_rec *seg = segment_of(&im, 1);
	struct lane_rec *lane = (void *)(im.now[1] + seg->lanes_off);
	const struct action_rec *a = lane->actions;
	size_t n[OUTCOMES], all, count = 0;

	/* What is left of the last intents is still one that can be done again. */
	while (count < PV_LANE_ACTIONS && a[count].where)
		count++;
	assert_true(count >= 2);
	for (lane->count = count; lane->count; lane->count--) {
		snprintf(case_now, sizeof(case_now), "%zu actions", (size_t)lane->count);
		if (try_image(&im) != REFUSED) {
			image_restore(&im);
			lane->count = 1;
			break;
		}
	}
	assert_true(lane->count);
	lane->count = 2;
	memcpy(im.pristine[1], im.now[1], im.bytes[1]);
	all = flip_range(&im, 1, seg->lanes_off + offsetof(struct lane_rec, actions),
			 2 * sizeof(*a), n);
	print_message("%zu refused, %zu reported, %zu silent\n", n[REFUSED], n[REPORTED],
		      n[SILENT]);
	assert_true(n[REFUSED] > all / 2);
	image_end(&im);
}

static void random_garbage(void **state)
{
	struct image im = image_begin(*state);
	uint64_t seed = random_seed_from_env("random_garbage");
	size_t n[OUTCOMES] = {0}, slot_bytes = ((struct index_rec *)(void *)im.now[0])->slot_bytes;

	for (int i = 0; i < (under_tsan() ? 500 : 3000); i++) {
		int token = (int)random_below(&seed, MEMFDS);
		size_t places = 1 + random_below(&seed, 4);

		snprintf(case_now, sizeof(case_now), "case %d: token %d", i, token);
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
		n[try_image(&im)]++;
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

	for (int token = 0; token < MEMFDS; token++) {
		for (size_t at = 0; at < im.bytes[token]; at += 4096) {
			snprintf(case_now, sizeof(case_now), "token %d: zeroed from %zu", token,
				 at);
			memset(im.now[token] + at, 0, 4096);
			try_image(&im);
			image_restore(&im);
			snprintf(case_now, sizeof(case_now), "token %d: ones from %zu", token, at);
			memset(im.now[token] + at, 0xff, 4096);
			try_image(&im);
			image_restore(&im);
		}
	}
	image_end(&im);
}

/* Each descriptor replaced by a memfd of other size or seals with the same contents. */
static void truncated_and_unsealed(void **state)
{
	static const long sizes_by[] = {-1000000, -65536, -4096, -1, 1, 4096, 65536};
	struct keeper *k = *state;
	struct image im = image_begin(k);
	struct pv_store *s;

	for (uint64_t token = 0; token < MEMFDS; token++) {
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
			snprintf(case_now, sizeof(case_now), "token %d: %ld bytes", (int)token,
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
	assert_int_equal(try_image(&im), SILENT);
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
	fill(s, 9);
	assert_ok(pv_close(s));
	for (uint64_t token = 0; token < MEMFDS; token++) {
		int original = dup(keeper_fd(k, token));

		keeper_put(k, token, keeper_fd(&other, token));
		/* Another index: then all the segments are strangers. */
		assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "belongs to another store");
		keeper_put(k, token, original);
		close(original);
	}
	/* The contents of segment 1 in the memfd of segment 0, cut to its size. */
	snprintf(case_now, sizeof(case_now), "segment 1 as segment 0");
	memcpy(im.now[1], im.pristine[2], im.bytes[1]);
	assert_int_equal(try_image(&im), REFUSED);
	image_restore(&im);
	keeper_free(&other);
	image_end(&im);
}

/* One memfd is older than the others: the header cannot tell, the rest must not crash. */
static void stale_copies(void **state)
{
	struct keeper *k = *state;
	struct image im = image_begin(k);
	uint8_t *newer[MEMFDS];
	struct pv_store *s;

	/* Let the store go on for a while from the image, then put parts of the image back. */
	s = store_attach(k, NULL);
	exercise(&im, s);
	fill(s, 20);
	assert_ok(pv_close(s));
	for (uint64_t t = MEMFDS; k->n > MEMFDS; t++)
		keeper_drop(k, t);
	for (int t = 0; t < MEMFDS; t++) {
		newer[t] = malloc(im.bytes[t]);
		assert_non_null(newer[t]);
		memcpy(newer[t], im.now[t], im.bytes[t]);
	}
	for (int mix = 1; mix < 1 << MEMFDS; mix++) {
		snprintf(case_now, sizeof(case_now), "older copies: mask %d", mix);
		for (int t = 0; t < MEMFDS; t++)
			memcpy(im.now[t], mix >> t & 1 ? im.pristine[t] : newer[t], im.bytes[t]);
		try_image(&im);
	}
	for (int t = 0; t < MEMFDS; t++)
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
		int token = 1 + (int)random_below(&seed, MEMFDS - 1);
		struct pv_check_report r;
		struct pv_store *s;

		snprintf(case_now, sizeof(case_now), "case %d: token %d", i, token);
		for (int b = 0; b < 8; b++)
			im.now[token][sizeof(struct segment_rec) + random_below(&seed, 1500)] =
				(uint8_t)random_next(&seed);
		memcpy(im.before[token], im.now[token], im.bytes[token]);
		alarm(CASE_SECONDS);
		if (store_try(k, NULL, PV_RDONLY, &s) == 0) {
			opened++;
			assert_ok(pv_check(s, NULL, NULL, &r));
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
		with_keeper(sound_image_opens),
		with_keeper(index_header_bits),
		with_keeper(index_slot_bits),
		with_keeper(segment_header_bits),
		with_keeper(page_map_bits),
		with_keeper(damaged_and_filled_up),
		with_keeper(slab_bits),
		with_keeper(lane_bits),
		with_keeper(pending_intent_bits),
		with_keeper(random_garbage),
		with_keeper(zeroed_pages),
		with_keeper(truncated_and_unsealed),
		with_keeper(swapped_between_stores),
		with_keeper(stale_copies),
		with_keeper(reader_of_damaged_images),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
