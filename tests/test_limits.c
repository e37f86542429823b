/* SPDX-License-Identifier: BSD-3-Clause */
/* What ends a store's growth, and what is in the way of its window. */
#include <sys/mman.h>
#include <sys/resource.h>

#include "support.h"

/* Allocate into a list at root->next until it fails; how many. */
static size_t fill(struct pv_store *s, struct word *root, pv_type_t type, size_t bytes, int want)
{
	size_t n = 0;
	void *p;
	int err;

	for (;; n++) {
		err = pv_reserve(s, type, bytes, &p);
		if (err)
			break;
		*(void **)p = root->next;
		assert_ok(pv_publish(
			s, (struct pv_action[]){PV_LIVE(p), PV_STORE(&root->next, (uintptr_t)p)},
			2));
	}
	assert_int_equal(err, want);
	return n;
}

static void drain(struct pv_store *s, struct word *root, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		void *p = root->next;

		assert_ok(pv_publish(
			s, (struct pv_action[]){PV_STORE(&root->next, *(uintptr_t *)p), PV_FREE(p)},
			2));
	}
}

static void limit_reached(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct word *root;
	pv_type_t type;
	size_t n, m;

	o.limit_bytes = 300000;
	s = store_create(k, &o);
	root = store_root(s);
	type = store_bytes_type(s, "bytes");
	n = fill(s, root, type, 200, -ENOSPC);
	assert_non_null(strstr(pv_last_error(), "limit of 300000 bytes"));
	/* Most of it was to be had; nothing beyond it. */
	assert_true(n * 200 > 300000 / 2);
	assert_in_range(store_info(s).bytes, 200000, 300000);
	assert_int_equal(store_sound(s).live_objects, n + 1);
	/* Still of use: what is freed can be had again, in this size and in another. */
	drain(s, root, n / 2);
	store_sound(s);
	m = fill(s, root, type, 200, -ENOSPC);
	assert_true(m >= n / 2);
	drain(s, root, n / 2 + m);
	m = fill(s, root, type, 1000, -ENOSPC);
	assert_true(m * 1000 > 300000 / 2);
	assert_true(store_info(s).bytes <= 300000);
	store_sound(s);
	/* And it opens again, with the limit and with more. */
	keeper_crash(k, &s);
	s = store_attach(k, &o);
	root = store_moved(s, root);
	assert_int_equal(fill(s, root, type, 1000, -ENOSPC), 0);
	assert_ok(pv_close(s));
	o.limit_bytes = 1 << 20;
	s = store_attach(k, &o);
	root = store_moved(s, root);
	assert_true(fill(s, root, type, 1000, -ENOSPC) * 1000 > 300000);
	store_sound(s);
	assert_ok(pv_close(s));
}

static void limit_below_the_least(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;

	o.limit_bytes = 65536;
	assert_fails(store_try(k, &o, PV_CREATE, &s), -ENOSPC, "limit of 65536 bytes");
	assert_int_equal(k->n, 0);
	s = store_create(k, NULL);
	assert_ok(pv_close(s));
	/* A store that exists is larger than the limit: it opens, and cannot grow. */
	s = store_attach(k, &o);
	assert_true(fill(s, store_root(s), store_bytes_type(s, "bytes"), 1000, -ENOSPC) > 10);
	store_sound(s);
	assert_ok(pv_close(s));
}

static void window_full(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);

	/* The index has the first granule, the first segment the second. */
	for (o.window_bytes = 131072; o.window_bytes <= 1 << 20; o.window_bytes *= 2) {
		struct pv_store *s = store_create(k, &o);
		struct word *root = store_root(s);
		pv_type_t type = store_bytes_type(s, "bytes");
		size_t n = fill(s, root, type, 500, -ENOSPC);
		void *p;

		assert_non_null(strstr(pv_last_error(), "window"));
		assert_true(n * 500 > (o.window_bytes - 65536) / 2);
		store_sound(s);
		assert_fails(pv_reserve(s, type, o.window_bytes + 1, &p), -ENOSPC, "window");
		drain(s, root, n);
		assert_true(fill(s, root, type, 500, -ENOSPC) >= n);
		keeper_crash(k, &s);
		s = store_attach(k, &o);
		root = store_moved(s, root);
		assert_int_equal(store_sound(s).live_objects, n + 1);
		assert_ok(pv_destroy(s));
	}
}

/* The backend refuses a new segment: the growth fails, the store is as before. */
static void growth_refused_by_keeper(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct word *root = store_root(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	size_t n;
	void *p;

	k->refuse_token = 2;
	k->refuse_err = -EDQUOT;
	n = fill(s, root, type, 500, -EDQUOT);
	assert_non_null(strstr(pv_last_error(), "token 2"));
	assert_int_equal(store_info(s).segments, 1);
	assert_int_equal(store_sound(s).live_objects, n + 1);
	drain(s, root, 10);
	assert_int_equal(fill(s, root, type, 500, -EDQUOT), 10);
	k->refuse_err = 0;
	assert_ok(pv_reserve(s, type, 500, &p));
	assert_int_equal(store_info(s).segments, 2);
	assert_ok(pv_cancel(s, p));
	store_sound(s);
	assert_ok(pv_close(s));
}

/* In a child: so few addresses that the window does not fit. */
static int open_with_few_addresses(void *ctx)
{
	struct pv_options o = small_options(ctx);
	struct rlimit lim;
	struct pv_store *s;
	unsigned long pages;
	FILE *f = fopen("/proc/self/statm", "r");

	if (!f || fscanf(f, "%lu", &pages) != 1)
		return 1;
	fclose(f);
	lim.rlim_cur = lim.rlim_max = pages * 4096 + (512u << 20);
	if (setrlimit(RLIMIT_AS, &lim))
		return 2;
	o.window_bytes = 1ull << 33;
	if (store_try(ctx, &o, PV_CREATE, &s) != -ENOMEM ||
	    !strstr(pv_last_error(), "window of 8192 MiB") || !strstr(pv_last_error(), "RLIMIT_AS"))
		return 3;
	o.window_bytes = 1 << 20;
	if (store_try(ctx, &o, PV_CREATE, &s))
		return 4;
	return pv_close(s) ? 5 : 0;
}

static void address_space_limited(void **state)
{
	assert_int_equal(run_child(open_with_few_addresses, *state), 0);
}

static void base_taken(void **state)
{
	struct keeper *k = *state, copy;
	struct pv_options o = small_options(k);
	struct pv_store *s = store_create(k, NULL), *t;
	struct pv_info info = store_info(s);
	char says[40];
	void *p;

	o.relocate = PV_RELOCATE_NEVER;
	store_root(s)->value = 9;
	/* A copy of a store that is open here wants the same addresses. */
	keeper_init(&copy);
	keeper_copy(&copy, k);
	snprintf(says, sizeof(says), "0x%llx", (unsigned long long)info.base);
	assert_fails(store_try(&copy, &o, 0, &t), -EADDRINUSE, says);
	store_sound(s);
	assert_ok(pv_close(s));
	/* A single page in the middle is enough. */
	p = mmap((void *)(uintptr_t)(info.base + info.window_bytes / 2), 4096, PROT_READ,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	assert_fails(store_try(k, &o, 0, &s), -EADDRINUSE, says);
	assert_int_equal(munmap(p, 4096), 0);
	s = store_attach(k, &o);
	assert_int_equal(store_info(s).epoch, 2);
	assert_int_equal(store_root(s)->value, 9);
	assert_ok(pv_close(s));
	keeper_free(&copy);
}

#define MANY 33 /* one more than may be open */

static void many_stores(void **state)
{
	struct keeper *k = calloc(MANY, sizeof(*k));
	struct pv_store *s[MANY] = {NULL};

	for (int i = 0; i < MANY - 1; i++) {
		s[i] = store_create(&k[i], NULL);
		store_root(s[i])->value = (uint64_t)i;
	}
	assert_fails(store_try(&k[MANY - 1], NULL, PV_CREATE, &s[MANY - 1]), -ENOSPC,
		     "32 stores are open");
	assert_null(s[MANY - 1]);
	for (int i = 0; i < MANY - 1; i++) {
		assert_int_equal(store_root(s[i])->value, i);
		store_sound(s[i]);
	}
	/* One out, one in, many times: places and thread state are used again. */
	for (int i = 0; i < 200; i++) {
		int at = i * 7 % (MANY - 1);

		assert_ok(pv_close(s[at]));
		s[at] = store_attach(&k[at], NULL);
		assert_int_equal(store_root(s[at])->value, at);
	}
	for (int i = 0; i < MANY - 1; i++)
		assert_ok(pv_destroy(s[i]));
	keeper_free(&k[MANY - 1]);
	free(k);
}

static void pointers_of_another_store_are_refused(void **state)
{
	struct keeper *k = *state, other;
	struct pv_store *s = store_create(k, NULL), *t;
	struct word *mine = store_root(s), *theirs;
	void *p;

	keeper_init(&other);
	t = store_create(&other, NULL);
	theirs = store_root(t);
	assert_fails(pv_publish(s, &PV_FREE(theirs), 1), -EINVAL, "not the start of an object");
	assert_fails(pv_publish(s, &PV_STORE(&theirs->value, 1), 1), -EINVAL, "word");
	assert_ok(pv_reserve(t, store_bytes_type(t, "x"), 16, &p));
	assert_fails(pv_publish(s, &PV_LIVE(p), 1), -EINVAL, "not the start of an object");
	assert_fails(pv_cancel(s, p), -EINVAL, "not the start of an object");
	assert_int_equal(pv_usable_bytes(s, theirs), 0);
	assert_int_equal(theirs->value, 0);
	assert_int_equal(mine->value, 0);
	store_sound(s);
	store_sound(t);
	assert_ok(pv_close(s));
	assert_ok(pv_close(t));
	keeper_free(&other);
}

static void version_and_messages(void **state)
{
	struct pv_store *s;
	int major, minor, patch;

	assert_int_equal(sscanf(pv_version(), "%d.%d.%d", &major, &minor, &patch), 3);
	errno = 12345;
	assert_fails(pv_open("", NULL, &s), -EINVAL, "store name");
	assert_int_equal(errno, 12345);
	assert_null(strchr(pv_last_error(), '\n'));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(limit_reached),
		with_keeper(limit_below_the_least),
		with_keeper(window_full),
		with_keeper(growth_refused_by_keeper),
		with_keeper(address_space_limited),
		with_keeper(base_taken),
		with_keeper(many_stores),
		with_keeper(pointers_of_another_store_are_refused),
		with_keeper(version_and_messages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
