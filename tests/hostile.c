/* SPDX-License-Identifier: BSD-3-Clause */
/* See hostile.h. */
#include <signal.h>
#include <sys/mman.h>

#include <preserve/stats.h>

#include "hostile.h"

#define GUARD_BYTES 65536u

static const struct pv_typedef bytes_type = PV_TYPE_BYTES("bytes", 1);
/* A slab in the grid, a slab with its header behind the slots, an extent, ... */
static const size_t sizes[] = {100, 3000, 40000, 16, 400};

/* ---- what to say when a case does not come back ---- */

char image_case[160];
static struct sigaction old_actions[NSIG];

static void on_signal(int sig)
{
	static const char timeout[] = " took too long:", crash[] = " crashed:";

	(void)!write(STDERR_FILENO, image_case, strlen(image_case));
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

void image_fill(struct pv_store *s, size_t per_size)
{
	pv_type_t node = 0, bytes = 0;
	struct word *root = NULL;
	void *p;

	assert_ok(pv_type_register(s, &store_word, &node));
	assert_ok(pv_type_register(s, &bytes_type, &bytes));
	assert_ok(pv_root(s, "root", node, sizeof(*root), (void **)&root, NULL));
	for (size_t i = 0; i < 5 * per_size; i++) {
		assert_ok(pv_reserve(s, node, sizeof(*root), &p));
		*(struct word *)p = (struct word){root->next, i};
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

struct image image_begin(struct keeper *k)
{
	struct image im = {.k = k};
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct pv_info info;

	o.window_bytes = 1 << 20;
	s = store_create(k, &o);
	info = store_info(s);
	image_fill(s, 9);
	store_sound(s);
	objects_live(&im.live, s, 0);
	keeper_crash(k, &s);
	/* The application goes on in the next epoch, and is killed again. */
	s = store_attach(k, NULL);
	image_fill(s, 1);
	store_sound(s);
	objects_live(&im.live, s, 0);
	keeper_crash(k, &s);
	assert_int_equal(k->n, IMAGE_MEMFDS);
	for (uint64_t t = 0; t < IMAGE_MEMFDS; t++) {
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

void image_restore(struct image *im)
{
	for (int t = 0; t < IMAGE_MEMFDS; t++)
		memcpy(im->now[t], im->pristine[t], im->bytes[t]);
}

/** Attach and close: another epoch, another generation. */
void image_next_epoch(struct image *im)
{
	assert_ok(pv_close(store_attach(im->k, NULL)));
	image_keep(im);
}

void image_keep(struct image *im)
{
	for (int t = 0; t < IMAGE_MEMFDS; t++)
		memcpy(im->pristine[t], im->now[t], im->bytes[t]);
}

void image_end(struct image *im)
{
	watch(false);
	for (int i = 0; i < 2; i++) {
		for (size_t k = 0; k < GUARD_BYTES; k++)
			assert_int_equal(im->guard[i][k], 0xa5);
		munmap(im->guard[i], GUARD_BYTES);
	}
	for (int t = 0; t < IMAGE_MEMFDS; t++) {
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
		fail_msg("%s: %d: %s", image_case, err, pv_last_error());
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

	assert_ok(pv_type_register(s, &store_word, &node));
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
			allow(pv_reserve(s, node, sizeof(struct word), &p));
	}
	/* Some of these are gone, some never were. */
	for (size_t i = 0; i < im->live.n; i++)
		allow(pv_publish(s, &PV_FREE(im->live.v[i].p), 1));
	allow(pv_root(s, "other", node, sizeof(struct word), &root, NULL));
	allocate(im, s, bytes);
	objects_free(&found);
}

/* Statistics of a damaged store are of some kind, and of a sound one right. */
static void count(struct pv_store *s)
{
	struct pv_check_report r;
	struct pv_stats *st;

	assert_ok(pv_check(s, NULL, &r));
	assert_ok(pv_stats_get(s, &st));
	if (!r.problems) {
		assert_int_equal(st->live_objects, r.live_objects);
		assert_int_equal(st->live_bytes, r.live_bytes);
		assert_int_equal(st->slabs.free, r.free_slots);
		assert_int_equal(st->used_bytes, st->slabs.slab_bytes + st->extent_bytes +
							 st->reserved_extent_bytes);
	}
	pv_stats_free(st);
}

static void mend(struct pv_store *s, uint32_t flags)
{
	struct pv_repair_options o = {.size = sizeof(o), .flags = flags | PV_REPAIR_LEAKS};
	struct pv_repair_report r;

	allow(pv_repair(s, &o, &r));
}

enum outcome image_try(struct image *im)
{
	struct pv_check_report r;
	struct pv_store *s = NULL;
	unsigned int drops = im->k->drops;
	int err;

	for (int t = 0; t < IMAGE_MEMFDS; t++)
		memcpy(im->before[t], im->now[t], im->bytes[t]);
	alarm(IMAGE_CASE_SECONDS);
	err = store_try(im->k, NULL, 0, &s);
	if (err) {
		const char *says = pv_last_error();

		if (err != -EBADMSG && err != -EPROTONOSUPPORT && err != -ENXIO)
			fail_msg("%s: %d: %s", image_case, err, says);
		if (!strstr(says, "index") && !strstr(says, "segment"))
			fail_msg("%s: message names no part: %s", image_case, says);
		for (int t = 0; t < IMAGE_MEMFDS; t++)
			if (memcmp(im->before[t], im->now[t], im->bytes[t]) != 0)
				fail_msg("%s: refused, but token %d was changed", image_case, t);
		assert_int_equal(im->k->drops, drops);
		return REFUSED;
	}
	assert_ok(pv_check(s, NULL, &r));
	count(s);
	mend(s, PV_REPAIR_DRY_RUN);
	exercise(im, s);
	count(s);
	mend(s, 0);
	count(s);
	assert_ok(pv_close(s));
	/* Growth: back to what the image was made of. */
	for (uint64_t t = IMAGE_MEMFDS; im->k->n > IMAGE_MEMFDS; t++)
		keeper_drop(im->k, t);
	return r.problems ? REPORTED : SILENT;
}

enum outcome image_flip(struct image *im, int token, size_t bit)
{
	enum outcome got;

	snprintf(image_case, sizeof(image_case), "token %d: byte %zu: bit %zu", token, bit / 8,
		 bit % 8);
	im->now[token][bit / 8] ^= (uint8_t)(1u << bit % 8);
	got = image_try(im);
	if (got == REFUSED)
		im->now[token][bit / 8] ^= (uint8_t)(1u << bit % 8);
	else
		image_restore(im);
	return got;
}

size_t image_stride(void)
{
	return under_tsan() ? 11 : 1;
}

/** Flip each bit of a range; counts by outcome go to n. Returns how many there were. */
size_t image_flip_range(struct image *im, int token, size_t from, size_t bytes, size_t n[OUTCOMES])
{
	memset(n, 0, OUTCOMES * sizeof(*n));
	for (size_t bit = 8 * from; bit < 8 * (from + bytes); bit += image_stride())
		n[image_flip(im, token, bit)]++;
	return n[REFUSED] + n[REPORTED] + n[SILENT];
}

/** And all have this outcome. */
void image_flip_all(struct image *im, int token, size_t from, size_t bytes, enum outcome want)
{
	size_t n[OUTCOMES], all = image_flip_range(im, token, from, bytes, n);

	if (n[want] != all)
		print_error("token %d from %zu: %zu refused, %zu reported, %zu silent\n", token,
			    from, n[REFUSED], n[REPORTED], n[SILENT]);
	assert_int_equal(n[want], all);
}

const struct segment_rec *image_segment(const struct image *im, int token)
{
	return (const struct segment_rec *)(const void *)im->pristine[token];
}

const uint64_t *image_map(const struct image *im, int token)
{
	return (const uint64_t *)(const void *)(im->pristine[token] +
						image_segment(im, token)->map_off);
}
