/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The handover backend `systemd`, with a service manager of the test's own (fake_manager.h). Each test
 * is a life of a unit: the service runs, ends in some way, and runs again with what was kept.
 */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "fake_manager.h"
#include "fake_service.h"
#include "layout.h"
#include "support.h"

#define KILLED (256 + SIGKILL)
#define ROOM   100u

/** The service did all of its script. */
#define run(m, script) assert_int_equal(manager_run(m, script), 0)
#define run_killed(m, script) assert_int_equal(manager_run(m, script "; kill"), KILLED)

static struct manager *manager_new(void **state, unsigned int limit)
{
	struct manager *m = *state;

	manager_start(m, limit);
	return m;
}

static int setup(void **state)
{
	struct manager *m = calloc(1, sizeof(*m));

	m->seed = (unsigned int) random_seed_from_env("systemd");
	*state = m;
	return 0;
}

static int teardown(void **state)
{
	manager_stop(*state);
	free(*state);
	return 0;
}

/* ---- ordinary lives ---- */

static void killed_and_back(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run_killed(m, "refuse kv ENOENT none_of_the_0; create kv; add kv 2; kind kv 4 0");
	assert_int_equal(m->n, 2);
	assert_non_null(manager_find(m, "pv/kv/0/"));
	assert_non_null(manager_find(m, "pv/kv/1/"));
	for (unsigned int i = 0; i < 3; i++)
		run_killed(m, "open kv; has kv 2; check kv 0");
	run(m, "open kv; has kv 2; add kv 1; close kv; open kv; has kv 3; close kv");
	run(m, "open kv; has kv 3; close kv; readonly kv; segments kv 1; close kv");
	assert_int_equal(m->n, 2);
	assert_int_equal(m->removed, 0);
}

static void grows_by_segments(void **state)
{
	struct manager *m = manager_new(state, ROOM);
	unsigned int n;

	run_killed(m, "create kv; add kv 100; grown kv 4");
	n = m->n;
	assert_true(n >= 5);
	run_killed(m, "open kv; has kv 100; add kv 100; check kv 0");
	assert_true(m->n > n);
	run(m, "open kv; has kv 200; close kv");
	assert_int_equal(manager_count(m, "pv/kv/"), m->n);
}

static void dropped_segments_are_removed(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run(m, "create kv; add kv 100; grown kv 4; empty kv; trim kv; segments kv 1; close kv");
	assert_int_equal(m->n, 2);
	assert_true(m->removed >= 3);
	/* The same numbers again, born later. */
	run_killed(m, "open kv; add kv 100");
	run_killed(m, "open kv; has kv 100; empty kv; trim kv; prepare kv 0");
	assert_int_equal(m->n, 2);
}

static void stale_entries_are_removed(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	m->deaf_to_remove = true;
	run_killed(m, "create kv; add kv 100; empty kv; trim kv; segments kv 1");
	assert_true(m->n >= 5);
	run_killed(m, "open kv; add kv 30; grown kv 2");
	m->deaf_to_remove = false;
	run(m, "open kv; has kv 30; close kv");
	run(m, "open kv; has kv 30; grown kv 2; check kv 0; close kv");
	assert_true(m->n <= 4);
}

static void destroyed_is_gone(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run(m, "create kv; add kv 50; destroy kv; refuse kv ENOENT none; create kv; has kv 0; destroy kv");
	assert_int_equal(m->n, 0);
	/* Killed on the way, so to speak: nothing is removed any more. */
	m->deaf_to_remove = true;
	run(m, "create kv; add kv 50; destroy kv");
	assert_true(m->n >= 3);
	m->deaf_to_remove = false;
	run(m, "refuse kv ENOENT none_of_the");
	assert_int_equal(m->n, 0);
	run(m, "create kv; has kv 0; close kv");
	assert_int_equal(m->n, 2);
}

static void creation_is_cut_off(void **state)
{
	struct manager *m = manager_new(state, 1);

	run(m, "uncreated kv ENOSPC FileDescriptorStoreMax=_is_1");
	assert_int_equal(m->n, 1);
	m->limit = ROOM;
	run(m, "refuse kv ENOENT interrupted");
	run(m, "create kv; add kv 1; close kv");
	assert_int_equal(m->n, 2);
	run(m, "open kv; has kv 1");
}

static void two_stores(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	m->abstract = false;
	run_killed(m, "create a; create b; add a 30; add b 60; refuse a EBUSY in_use");
	run_killed(m, "open b; has b 60; open a; has a 30; add a 30; add b 1");
	manager_lose(m, manager_find(m, "pv/a/2/"));
	run(m, "refuse a ENXIO segment_1_(; open b; has b 61; destroy b");
	assert_int_equal(manager_count(m, "pv/b/"), 0);
	assert_true(manager_count(m, "pv/a/") >= 2);
	run(m, "reset a; has a 0; close a");
	assert_int_equal(m->n, 2);
}

static void socket_without_a_file(void **state)
{
	struct manager *m = *state;

	m->abstract = true;
	manager_start(m, ROOM);
	run_killed(m, "create kv; add kv 3");
	run(m, "open kv; has kv 3");
	/* So that manager_stop() finds nothing to unlink but its directory. */
	assert_int_equal(m->n, 2);
}

/* ---- limits, losses and other managers ---- */

static void limit_is_reached(void **state)
{
	struct manager *m = manager_new(state, 3);

	run_killed(m, "create kv; full kv; segments kv 2; check kv 0; prepare kv 0");
	assert_int_equal(m->n, 3);
	m->limit = 4;
	run_killed(m, "open kv; add kv 5; segments kv 3; empty kv; add kv 1; trim kv; check kv 0");
	m->limit = 1; /* what it has it keeps */
	run(m, "open kv; check kv 0; full kv");
}

/* It has descriptors of the application's, too, or does not say how many it takes. */
static void limit_is_found_out(void **state)
{
	struct manager *m = manager_new(state, 3);
	int plain = memfd_create("of the application", MFD_CLOEXEC);

	m->no_fdstore = true;
	run_killed(m, "create kv; full kv; segments kv 2; check kv 0");
	run_killed(m, "open kv; full kv; segments kv 2; prepare kv 0");
	m->no_fdstore = false;
	m->limit = 4;
	manager_put(m, "memory", plain);
	close(plain);
	run_killed(m, "open kv; full kv; segments kv 2; check kv 0");
	run(m, "open kv; segments kv 2; foreign 1");
}

static void manager_loses_everything(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run_killed(m, "create kv; add kv 50; send X_LOSE=1; check kv 1; check kv 0");
	assert_true(m->lost >= 3);
	run_killed(m, "open kv; has kv 50; send X_LOSE=1; prepare kv 0; check kv 1");
	run_killed(m, "open kv; has kv 50; check kv 0; fork; send X_LOSE=1; check kv 1");
	run(m, "open kv; has kv 50");
}

static void nobody_there(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	m->no_socket = true;
	run(m, "uncreated kv ENODEV no_service_manager");
	m->no_socket = false;
	run_killed(m, "create kv; add kv 2");
	/* What was passed in can be used; nothing can be added. */
	m->no_socket = true;
	run(m, "open kv; has kv 2; check kv 0; close kv");
	m->no_socket = false;
	m->deaf = true;
	run(m, "patience 100; open kv; has kv 2; check kv 0; prepare kv -110");
	run(m, "patience 100; uncreated other ETIMEDOUT has_not_dealt");
	m->deaf = false;
	run(m, "open kv; has kv 2");
}

static void names_are_lost(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run_killed(m, "create kv; add kv 100");
	m->no_names = true;
	run_killed(m, "open kv; has kv 100; check kv 0; empty kv; trim kv; prepare kv 0");
	assert_int_equal(m->n, 2);
	run_killed(m, "open kv; has kv 0; add kv 3");
	run(m, "open kv; destroy kv");
	assert_int_equal(m->n, 0);
}

static void somebody_else_named_them(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run_killed(m, "create kv; add kv 30");
	for (unsigned int i = 0; i < m->n; i++)
		snprintf(m->kept[i].name, sizeof(m->kept[i].name), "stored");
	run_killed(m, "open kv; has kv 30; check kv 0; add kv 30");
	run(m, "open kv; has kv 60; close kv");
}

static void auto_chooses(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run_killed(m, "create auto; add auto 2; kind auto 4 0");
	m->no_fdstore = true;
	run_killed(m, "open auto; has auto 2; kind auto 4 0");
}

/* ---- sets that do not go together ---- */

static void missing_ones_are_named(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run_killed(m, "create kv; add kv 150; grown kv 4");
	manager_lose(m, manager_find(m, "pv/kv/2/"));
	manager_lose(m, manager_find(m, "pv/kv/4/"));
	run(m, "refuse kv ENXIO segment_1_(524288_bytes),_3_(");
	run(m, "uncreated kv ENXIO and_not_segment");
	manager_lose(m, manager_find(m, "pv/kv/0/"));
	run(m, "refuse kv ENXIO index_is_missing");
	run(m, "reset kv; add kv 1; close kv");
	assert_int_equal(m->n, 2);
}

static void two_of_one_name(void **state)
{
	struct manager *m = manager_new(state, ROOM);
	struct manager other = {.seed = 1};

	manager_start(&other, ROOM);
	run_killed(m, "create kv; add kv 2");
	run_killed(&other, "create kv; add kv 3");
	for (unsigned int i = 0; i < other.n; i++)
		manager_put(m, other.kept[i].name, other.kept[i].fd);
	manager_stop(&other);
	run(m, "refuse kv EBADMSG two_stores_named_kv");
	assert_int_equal(m->n, 4);
	run(m, "reset kv; has kv 0; close kv");
	assert_int_equal(m->n, 2);
}

/* A copy of an entry's memfd as it is now. */
static void put_copy(struct manager *m, const char *prefix, const char *name)
{
	int fd = memfd_clone(manager_find(m, prefix)->fd, 0);

	manager_put(m, name, fd);
	close(fd);
}

static void older_index(void **state)
{
	struct manager *m = manager_new(state, ROOM);
	int older;

	run_killed(m, "create kv; add kv 2");
	older = memfd_clone(manager_find(m, "pv/kv/0/")->fd, 0);
	run_killed(m, "open kv; has kv 2; add kv 50; grown kv 2");
	manager_put(m, "pv/kv/0/older", older);
	run_killed(m, "open kv; has kv 52; check kv 0");
	assert_null(manager_find(m, "pv/kv/0/older"));
	/* Two that are the same: one of them is as good as the other. */
	put_copy(m, "pv/kv/0/", "pv/kv/0/same");
	run_killed(m, "open kv; has kv 52; check kv 0");
	assert_int_equal(manager_count(m, "pv/kv/0/"), 1);
	/* It is complete, and the newer one is not; but its segments have gone on since. */
	manager_put(m, "pv/kv/0/older", older);
	manager_lose(m, manager_find(m, "pv/kv/2/"));
	run(m, "refuse kv ENXIO segment_1_(");
	run(m, "refuse kv ENXIO segment_1_(");
	assert_non_null(manager_find(m, "pv/kv/0/older"));
	close(older);
}

static void copies_of_segments(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run_killed(m, "create kv; add kv 2");
	/* The same memfd twice is no riddle. */
	manager_put(m, "pv/kv/1/twice", manager_find(m, "pv/kv/1/")->fd);
	run_killed(m, "open kv; has kv 2; check kv 0");
	assert_int_equal(m->n, 2);
	put_copy(m, "pv/kv/1/", "pv/kv/1/copy");
	run(m, "refuse kv EBADMSG two_different_memfds");
	assert_int_equal(m->n, 3);
}

/* ---- what else may be passed in ---- */

static void others_are_left_alone(void **state)
{
	struct manager *m = manager_new(state, ROOM);
	int ends[2], pipes[2], plain = memfd_create("of the application", MFD_CLOEXEC);

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	manager_put(m, "connection", ends[0]);
	manager_put(m, "pipe", pipes[0]);
	manager_put(m, "memory", plain);
	manager_put(m, "pv/kv/9/memory", plain);
	run_killed(m, "create kv; add kv 50; foreign 4; fork");
	run_killed(m, "open kv; has kv 50; foreign 4; empty kv; trim kv");
	run(m, "open kv; foreign 4; destroy kv");
	assert_int_equal(m->n, 4);
	for (int i = 0; i < 2; i++) {
		close(ends[i]);
		close(pipes[i]);
	}
	close(plain);
}

static void wild_environment(void **state)
{
	struct manager *m = manager_new(state, ROOM);

	run_killed(m, "create kv; add kv 2");
	m->listen_fds = "4000000000";
	run(m, "refuse kv ENOENT which_cannot_be");
	m->listen_fds = "99999999999999999999999";
	run(m, "refuse kv ENOENT none");
	m->listen_fds = "-1";
	run(m, "refuse kv ENOENT none");
	m->listen_fds = "two";
	run(m, "refuse kv ENOENT none");
	m->listen_fds = "1000"; /* most of them are not open */
	run(m, "open kv; has kv 2");
	m->listen_fds = NULL;
	run(m, "open kv; has kv 2");
}

/* A memfd of `bytes` with these first words. */
static void put_words(struct manager *m, const char *name, const void *words, size_t n, size_t bytes,
		      bool sealed)
{
	int fd = memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t) bytes), 0);
	assert_int_equal(pwrite(fd, words, n, 0), (ssize_t) n);
	if (sealed)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), 0);
	manager_put(m, name, fd);
	close(fd);
}

static void hostile_descriptors(void **state)
{
	struct manager *m = manager_new(state, ROOM);
	struct index_rec index = {.magic = PV_INDEX_MAGIC, .format_version = 77};

	put_words(m, "pv/kv/0/x", &index, sizeof(index), 4096, true);
	run(m, "refuse kv EPROTO format");
	assert_int_equal(m->n, 1);
}

static void damaged_memfds(void **state)
{
	struct manager *m = manager_new(state, ROOM);
	struct index_rec index = {.magic = PV_INDEX_MAGIC, .format_version = PV_FORMAT_VERSION};
	struct segment_rec segment = {.magic = PV_SEGMENT_MAGIC, .number = UINT32_MAX};
	uint64_t word;
	int fd;

	/* Beside a sound store they are nobody's. */
	put_words(m, "stored", &segment, sizeof(segment), 4096, true);
	put_words(m, "pv/../0/x", &index, sizeof(index), 4096, false);
	put_words(m, "pv/kv", &index, sizeof(index), sizeof(index), false);
	put_words(m, "", &index, 16, 16, false);
	run_killed(m, "create kv; add kv 2");
	run_killed(m, "open kv; has kv 2");
	assert_int_equal(m->n, 6);
	/* One that says it is the index of this store makes a riddle of it. */
	put_words(m, "pv/kv/0/x", &index, sizeof(index), 4096, true);
	run(m, "refuse kv EBADMSG two_stores_named_kv");
	manager_lose(m, manager_find(m, "pv/kv/0/x"));
	/* The tree of the right one is damaged in both its slots: found by its name. */
	fd = manager_find(m, "pv/kv/0/")->fd;
	for (off_t at = PV_INDEX_HEADER_BYTES; at < (off_t) memfd_bytes(fd); at += 64) {
		assert_int_equal(pread(fd, &word, sizeof(word), at), sizeof(word));
		word = ~word;
		assert_int_equal(pwrite(fd, &word, sizeof(word), at), sizeof(word));
	}
	run(m, "refuse kv EBADMSG index:_generation");
	assert_int_equal(m->n, 6);
	run(m, "reset kv; close kv");
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		CASE(killed_and_back),
		CASE(grows_by_segments),
		CASE(dropped_segments_are_removed),
		CASE(stale_entries_are_removed),
		CASE(destroyed_is_gone),
		CASE(creation_is_cut_off),
		CASE(two_stores),
		CASE(socket_without_a_file),
		CASE(limit_is_reached),
		CASE(limit_is_found_out),
		CASE(manager_loses_everything),
		CASE(nobody_there),
		CASE(names_are_lost),
		CASE(somebody_else_named_them),
		CASE(auto_chooses),
		CASE(missing_ones_are_named),
		CASE(two_of_one_name),
		CASE(older_index),
		CASE(copies_of_segments),
		CASE(others_are_left_alone),
		CASE(wild_environment),
		CASE(hostile_descriptors),
		CASE(damaged_memfds),
	};

	if (argc == 3 && strcmp(argv[1], "--service") == 0)
		return service_run(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
