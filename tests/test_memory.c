/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the library makes of /proc/meminfo and of memory cgroups, shown to it in a directory of the
 * test's own; and what a store does when they say that memory is at its end. (A machine and cgroups that
 * really are at their end: tests/memory.)
 */
#include <sys/stat.h>

#include <preserve/stats.h>

#include "internal.h"
#include "support.h"

#define MIB (1024ull * 1024)

static char dir[64];

/* mkdir -p of what is before the last slash, and the file. */
static void put(const char *path, const char *text)
{
	char full[512];
	FILE *f;

	snprintf(full, sizeof(full), "%s%s", dir, path);
	for (char *slash = strchr(full + strlen(dir) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		assert_true(mkdir(full, 0700) == 0 || errno == EEXIST);
		*slash = '/';
	}
	f = fopen(full, "we");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void put_number(const char *path, uint64_t v)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu\n", (unsigned long long)v);
	put(path, text);
}

static void put_meminfo(uint64_t total, uint64_t available, uint64_t swap)
{
	char text[256];

	snprintf(text, sizeof(text),
		 "MemTotal:       %8llu kB\nMemFree:          1234 kB\nMemAvailable:   %8llu kB\n"
		 "SwapTotal:      9999999 kB\nSwapFree:       %8llu kB\n",
		 (unsigned long long)total / 1024, (unsigned long long)available / 1024,
		 (unsigned long long)swap / 1024);
	put("/proc/meminfo", text);
}

static int directory_setup(void **state)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/pv-memory-XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(dir))
		return -1;
	pvi_memory_root(dir);
	return keeper_setup(state);
}

static int directory_teardown(void **state)
{
	const char *const argv[] = {"rm", "-rf", dir, NULL};
	char *out;
	int err;

	pvi_memory_root("");
	err = run_command(argv, &out);
	free(out);
	return keeper_teardown(state) || err ? -1 : 0;
}

static void machine(void **state)
{
	assert_int_equal(pvi_memory_room(), UINT64_MAX); /* nothing is known */
	put_meminfo(1024 * MIB, 500 * MIB, 0);
	assert_int_equal(pvi_memory_room(), (500 - 64) * MIB);
	put_meminfo(1024 * MIB, 500 * MIB, 100 * MIB);
	assert_int_equal(pvi_memory_room(), (600 - 64) * MIB);
	put_meminfo(64 * MIB, 50 * MIB, 0); /* the least reserve */
	assert_int_equal(pvi_memory_room(), 34 * MIB);
	put_meminfo(65536 * MIB, 1000 * MIB, 0); /* the largest */
	assert_int_equal(pvi_memory_room(), (1000 - 256) * MIB);
	put_meminfo(1024 * MIB, 20 * MIB, 0);
	assert_int_equal(pvi_memory_room(), 0);
}

/* A kernel that promises no more than it has counts what it has promised. */
static void machine_that_counts(void **state)
{
	put("/proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 1000000 kB\nCommitLimit: 512000 kB\n"
			     "Committed_AS: 102400 kB\n");
	put("/proc/sys/vm/overcommit_memory", "1\n");
	assert_int_equal(pvi_memory_room(), (1000000 - 65536) * 1024ull);
	put("/proc/sys/vm/overcommit_memory", "2\n");
	assert_int_equal(pvi_memory_room(), 336 * MIB);
	put_number("/proc/sys/vm/user_reserve_kbytes", 10240);
	put_number("/proc/sys/vm/admin_reserve_kbytes", 8192);
	assert_int_equal(pvi_memory_room(), 318 * MIB);
}

static void cgroup_version_2(void **state)
{
	put_meminfo(65536 * MIB, 32768 * MIB, 0);
	put("/proc/self/cgroup", "0::/a/b\n");
	put("/proc/self/mountinfo",
	    "22 1 0:20 / /proc rw - proc proc rw\n"
	    "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
	put("/sys/fs/cgroup/a/b/memory.max", "max\n");
	put_number("/sys/fs/cgroup/a/b/memory.current", 5 * MIB);
	assert_int_equal(pvi_memory_room(), (32768 - 256) * MIB);
	/* The limit of a parent. */
	put_number("/sys/fs/cgroup/a/memory.max", 512 * MIB);
	put_number("/sys/fs/cgroup/a/memory.current", 400 * MIB);
	assert_int_equal(pvi_memory_room(), (112 - 32) * MIB);
	put("/sys/fs/cgroup/a/memory.stat",
	    "anon 1\nfile 99999999\ninactive_anon 77\ninactive_file 8388608\nactive_file 2097152\n");
	assert_int_equal(pvi_memory_room(), (122 - 32) * MIB);
	/* Its own, which is less. */
	put_number("/sys/fs/cgroup/a/b/memory.max", 64 * MIB);
	assert_int_equal(pvi_memory_room(), (59 - 8) * MIB);
	put_number("/sys/fs/cgroup/a/b/memory.current", 63 * MIB);
	assert_int_equal(pvi_memory_room(), 0);
	/* Swap, as far as the cgroup may use it. */
	put_meminfo(65536 * MIB, 32768 * MIB, 1000 * MIB);
	put_number("/sys/fs/cgroup/a/b/memory.swap.max", 20 * MIB);
	put_number("/sys/fs/cgroup/a/b/memory.swap.current", 2 * MIB);
	assert_int_equal(pvi_memory_room(), (1 + 18 - 8) * MIB);
}

static void cgroup_version_1(void **state)
{
	put_meminfo(65536 * MIB, 32768 * MIB, 0);
	put("/proc/self/cgroup", "9:name=systemd:/x\n8:memory_not:/no\n4:cpu,memory:/a\n0::/\n");
	put("/proc/self/mountinfo",
	    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
	    "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,memory\n"
	    "34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
	put("/sys/fs/cgroup/cpu/a/memory.limit_in_bytes", "9223372036854771712\n");
	put("/sys/fs/cgroup/cpu/memory.limit_in_bytes", "9223372036854771712\n");
	assert_int_equal(pvi_memory_room(), (32768 - 256) * MIB);
	put_number("/sys/fs/cgroup/cpu/a/memory.limit_in_bytes", 256 * MIB);
	put_number("/sys/fs/cgroup/cpu/a/memory.usage_in_bytes", 200 * MIB);
	put("/sys/fs/cgroup/cpu/a/memory.stat",
	    "inactive_file 1\ntotal_inactive_file 1048576\ntotal_active_file 1048576\n");
	assert_int_equal(pvi_memory_room(), (58 - 16) * MIB);
	put_meminfo(65536 * MIB, 32768 * MIB, 1000 * MIB);
	assert_int_equal(pvi_memory_room(), (1058 - 16) * MIB);
	put_number("/sys/fs/cgroup/cpu/a/memory.memsw.limit_in_bytes", 256 * MIB);
	put_number("/sys/fs/cgroup/cpu/a/memory.memsw.usage_in_bytes", 210 * MIB);
	assert_int_equal(pvi_memory_room(), (48 - 16) * MIB);
}

/* What is mounted is not the hierarchy's top, as in containers. */
static void cgroup_of_a_container(void **state)
{
	put_meminfo(65536 * MIB, 32768 * MIB, 0);
	put("/proc/self/cgroup", "0::/docker/123/inner\n");
	put("/proc/self/mountinfo",
	    "31 23 0:28 /docker/123 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n");
	put_number("/sys/fs/cgroup/inner/memory.max", 128 * MIB);
	put_number("/sys/fs/cgroup/inner/memory.current", 28 * MIB);
	assert_int_equal(pvi_memory_room(), 92 * MIB);
	/* A process that was put elsewhere: at least what is to be seen limits it. */
	put("/proc/self/cgroup", "0::/docker/1234\n");
	assert_int_equal(pvi_memory_room(), (32768 - 256) * MIB);
	put_number("/sys/fs/cgroup/memory.max", 64 * MIB);
	put_number("/sys/fs/cgroup/memory.current", 4 * MIB);
	assert_int_equal(pvi_memory_room(), 52 * MIB);
}

static void nonsense(void **state)
{
	put("/proc/meminfo", "MemTotal\nMemAvailable:\nSwapFree: x kB\n\n");
	put("/proc/self/cgroup", "\n:::\n0:\n0::\nmemory\n1:memory\n");
	put("/proc/self/mountinfo", "\n - cgroup2\n1 2 3 - cgroup2 a b\nx\n31 23 0:28 / /a - cgroup2\n");
	assert_int_equal(pvi_memory_room(), 0); /* MemAvailable is 0, for all that can be read */
	put("/proc/meminfo", "\n");
	assert_true(pvi_memory_room() > 1ull << 50);
}

/* ---- a store ---- */

static void memory_ends_and_comes_back(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct cells *cells;
	struct pv_info before;
	struct pv_stats *st;
	pv_type_t type;
	size_t n = 0;
	void *p, *large;

	o.window_bytes = 1 << 28;
	o.segment_bytes = 4 << 20;
	put_meminfo(1024 * MIB, 900 * MIB, 0);
	pvi_memory_root(dir);
	s = store_create(k, &o);
	type = store_bytes_type(s, "bytes");
	cells = store_cells(s);
	large = publish_ok(s, type, 1 << 20, &cells->cells[CELLS - 1]);
	memset(large, 7, 1 << 20);
	put_meminfo(1024 * MIB, 20 * MIB, 0); /* less than the reserve */
	pvi_memory_root(dir);
	before = store_info(s);
	assert_ok(pv_stats_get(s, &st));
	assert_int_equal(st->available_bytes, 0);
	assert_true(st->largest_bytes > 100 * MIB); /* which says nothing of memory */
	pv_stats_free(st);
	/* What has its memory is handed out: slabs, and pages. Nothing more. */
	while (pv_reserve(s, type, 3000, &p) == 0 && n < CELLS - 1) {
		assert_ok(pv_publish(
			s, (struct pv_action[]){PV_LIVE(p), PV_STORE(&cells->cells[n++], (uintptr_t)p)},
			2));
	}
	assert_fails(pv_reserve(s, type, 3000, &p), -ENOMEM, "this machine has 0 left");
	assert_fails(pv_reserve(s, type, 1 << 20, &p), -ENOMEM, "reserve of 67108864");
	assert_fails(pv_reserve(s, type, 64 << 20, &p), -ENOMEM, "this machine");
	assert_int_equal(store_info(s).segments, before.segments);
	/* What the store had obtained ahead, at most an eighth of what it used. */
	assert_in_range(store_info(s).used_bytes, before.used_bytes, before.used_bytes * 9 / 8);
	assert_int_equal(store_sound(s).live_objects, n + 2);
	/* What is freed can be had again: its pages have their memory. */
	assert_ok(pv_free(s, &cells->cells[CELLS - 1]));
	for (size_t i = 0; i < 100; i++)
		publish_ok(s, type, 3000, &cells->cells[n + i]);
	assert_int_equal(store_sound(s).live_objects, n + 101);
	/* And more when there is more. */
	put_meminfo(1024 * MIB, 900 * MIB, 0);
	pvi_memory_root(dir);
	assert_ok(pv_reserve(s, type, 64 << 20, &p));
	memset(p, 1, 64 << 20);
	store_sound(s);
	assert_ok(pv_close(s));
}

/* A store is not made if there is nothing to make it of; what exists opens, whatever there is. */
static void no_memory_from_the_start(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s;

	put_meminfo(1024 * MIB, 1 * MIB, 0);
	pvi_memory_root(dir);
	assert_fails(store_try(k, NULL, PV_CREATE, &s), -ENOMEM, "this machine");
	assert_int_equal(k->n, 0);
	pvi_memory_root("");
	s = store_create(k, NULL);
	store_root(s)->value = 5;
	assert_ok(pv_close(s));
	pvi_memory_root(dir);
	s = store_attach(k, NULL);
	assert_int_equal(store_root(s)->value, 5);
	store_sound(s);
	assert_ok(pv_close(s));
}

#define with_directory(f) cmocka_unit_test_setup_teardown(f, directory_setup, directory_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_directory(machine),
		with_directory(machine_that_counts),
		with_directory(cgroup_version_2),
		with_directory(cgroup_version_1),
		with_directory(cgroup_of_a_container),
		with_directory(nonsense),
		with_directory(memory_ends_and_comes_back),
		with_directory(no_memory_from_the_start),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
