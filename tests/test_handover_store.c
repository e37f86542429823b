/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A store and its holder: what the death of either costs, and what pv_handover_check() makes of it.
 * What the holder itself does is in test_handover.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "handover_support.h"
#include "holder.h"
#include "internal.h"

#define OBJECT_BYTES 4096

struct root {
	void *first;
	uint64_t count;
};

struct item {
	void *next;
	uint64_t number;
	uint8_t rest[OBJECT_BYTES - 16];
};

static const struct pv_typedef root_type =
	PV_TYPE(struct root, "root", 1, PV_POINTER(struct root, first));
static const struct pv_typedef item_type =
	PV_TYPE(struct item, "item", 1, PV_POINTER(struct item, next));

/* A store of 64 KiB segments in the test's directory. */
static int open_store(uint32_t flags, struct pv_store **s)
{
	struct pv_options o = test_options;

	o.flags = flags;
	o.segment_bytes = 64 << 10;
	o.window_bytes = 16 << 20;
	o.lanes = 4;
	return pv_open(STORE, &o, s);
}

static uint32_t segments(struct pv_store *s)
{
	struct pv_info info;

	pv_info_get(s, &info);
	return info.segments;
}

static int root_of(struct pv_store *s, struct root **root)
{
	pv_type_t type;
	void *found;
	int rc = pv_type_register(s, &root_type, &type);

	if (!rc)
		rc = pv_root(s, "root", type, sizeof(struct root), &found, NULL);
	if (!rc)
		*root = found;
	return rc;
}

/* One more item at the head of the list. */
static int add(struct pv_store *s)
{
	struct pv_action actions[3];
	struct root *root;
	struct item *item;
	pv_type_t type;
	void *reserved;
	int rc = root_of(s, &root);

	if (!rc)
		rc = pv_type_register(s, &item_type, &type);
	if (!rc)
		rc = pv_reserve(s, type, sizeof(struct item), &reserved);
	if (rc)
		return rc;
	item = reserved;
	item->next = root->first;
	item->number = root->count;
	actions[0] = PV_LIVE(item);
	actions[1] = PV_STORE(&root->first, (uintptr_t)item);
	actions[2] = PV_STORE(&root->count, root->count + 1);
	return pv_publish(s, actions, 3);
}

/* Adds items until there is one segment more; returns 0 with their number in the store. */
static int grow(struct pv_store *s, uint64_t *count)
{
	uint32_t before = segments(s);
	struct root *root;
	int rc = 0;

	while (!rc && segments(s) == before)
		rc = add(s);
	if (!rc)
		rc = root_of(s, &root);
	if (!rc)
		*count = root->count;
	return rc;
}

/* All items are there, and the store is sound. */
static bool holds(struct pv_store *s, uint64_t count)
{
	struct pv_check_report report;
	struct root *root;
	const struct item *item;
	uint64_t left = count;

	if (root_of(s, &root) || root->count != count)
		return false;
	/* A reader may be elsewhere than where the pointers lead. */
	for (item = pv_address(s, root->first); item && left; item = pv_address(s, item->next))
		if (item->number != --left)
			return false;
	return !item && left == 0 && pv_check(s, NULL, &report) == 0 && report.problems == 0;
}

/* The store is what a process that was killed has left; it is opened, looked at and closed. */
static void expect_attach(uint64_t count, uint32_t nsegments)
{
	struct pv_store *s;

	if (open_store(0, &s))
		fail_msg("attach: %s", pv_last_error());
	assert_int_equal(segments(s), nsegments);
	assert_true(holds(s, count));
	assert_int_equal(pv_handover_check(s), 0);
	assert_int_equal(pv_close(s), 0);
}

static void kill_holder(void)
{
	pid_t pid = test_holder_pid();

	assert_true(pid > 0);
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_true(test_gone(pid, 2000));
}

static void expect_killed(pid_t child)
{
	int status;

	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGKILL);
}

static bool wait_byte(int fd)
{
	char c;

	return read(fd, &c, 1) == 1;
}

/* ---- pv_handover_check() ---- */

static void check_replaces_a_dead_holder(void **state)
{
	int up[2], down[2];
	uint64_t count = 0;
	struct pv_store *s;
	pid_t child, first;

	assert_int_equal(pipe2(up, O_CLOEXEC), 0);
	assert_int_equal(pipe2(down, O_CLOEXEC), 0);
	child = test_fork();
	if (child == 0) {
		TEST_CHILD_CHECK(open_store(PV_CREATE, &s) == 0);
		TEST_CHILD_CHECK(pv_handover_check(s) == 0);
		TEST_CHILD_CHECK(grow(s, &count) == 0);
		TEST_CHILD_CHECK(pv_handover_check(s) == 0);
		TEST_CHILD_CHECK(write(up[1], &count, sizeof(count)) == sizeof(count));
		TEST_CHILD_CHECK(wait_byte(down[0]));
		TEST_CHILD_CHECK(pv_handover_check(s) == 1);
		TEST_CHILD_CHECK(pv_handover_check(s) == 0);
		raise(SIGKILL);
	}
	assert_int_equal(read(up[0], &count, sizeof(count)), sizeof(count));
	first = test_holder_pid();
	kill_holder();
	assert_int_equal(write(down[1], "x", 1), 1);
	expect_killed(child);
	assert_int_not_equal(test_holder_pid(), first);
	expect_attach(count, 2);
	for (int i = 0; i < 2; i++) {
		close(up[i]);
		close(down[i]);
	}
}

/* A growth that found the holder dead has replaced it: the next check says so. */
static void check_tells_what_growth_found(void **state)
{
	struct pv_store *s;
	uint64_t count;

	assert_int_equal(open_store(PV_CREATE, &s), 0);
	kill_holder();
	assert_int_equal(grow(s, &count), 0);
	assert_int_equal(pv_handover_check(s), 1);
	assert_int_equal(pv_handover_check(s), 0);
	assert_int_equal(pv_close(s), 0);
	expect_attach(count, 2);
}

/* One that has lost, or gained, something without our knowledge is put right, not replaced. */
static void check_corrects_a_living_holder(void **state)
{
	struct pvi_handover *h = test_open();
	struct pv_store *s;
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;
	uint64_t count;
	pid_t pid;

	assert_int_equal(open_store(PV_CREATE, &s), 0);
	assert_int_equal(grow(s, &count), 0);
	pid = test_holder_pid();
	assert_int_equal(h->ops->fetch(h, &fds, &n, &from_kexec), 0);
	assert_int_equal(n, 3);
	test_release(fds, n);
	assert_int_equal(h->ops->drop(h, 2), 0);
	assert_int_equal(test_keep(h, 7, 7), 0);
	h->ops->close(h);
	assert_int_equal(pv_handover_check(s), 1);
	assert_int_equal(pv_handover_check(s), 0);
	assert_int_equal(test_holder_pid(), pid);
	assert_true(test_open_files_become(pid, 1 + 3));
	assert_int_equal(pv_close(s), 0);
	expect_attach(count, 2);
}

static void check_without_a_holder(void **state)
{
	struct pv_store *s;
	struct root *root = NULL; /* for compilers that do not see what assert_int_equal() means */
	uint32_t before;
	char path[128];

	assert_int_equal(open_store(PV_CREATE, &s), 0);
	assert_int_equal(add(s), 0);
	before = segments(s);
	kill_holder();
	/* What stands in the way of a new one: a directory at the socket's place. */
	snprintf(path, sizeof(path), "%s/" STORE ".sock", test_options.runtime_dir);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(mkdir(path, 0700), 0);
	for (int i = 0; i < 2; i++) {
		assert_true(pv_handover_check(s) < 0);
		assert_non_null(strstr(pv_last_error(), path));
	}
	/* The store goes on, as long as it has room. */
	assert_int_equal(add(s), 0);
	assert_int_equal(add(s), 0);
	assert_int_equal(root_of(s, &root), 0);
	assert_int_equal(root->count, 3);
	assert_true(holds(s, 3));
	assert_int_equal(segments(s), before);
	assert_int_equal(rmdir(path), 0);
	assert_int_equal(pv_handover_check(s), 1);
	assert_int_equal(pv_handover_check(s), 0);
	assert_int_equal(pv_close(s), 0);
	expect_attach(3, before);
}

/* A hanging holder is waited for, but not by those who only look. */
static void check_of_a_hanging_holder(void **state)
{
	struct pv_store *s;
	pid_t pid;

	assert_int_equal(open_store(PV_CREATE, &s), 0);
	pid = test_holder_pid();
	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(pv_handover_check(s), -ETIMEDOUT);
	assert_non_null(strstr(pv_last_error(), "has not answered"));
	assert_int_equal(kill(pid, SIGCONT), 0);
	assert_int_equal(pv_handover_check(s), 0);
	assert_int_equal(pv_close(s), 0);
}

/* Somebody has made another store of the name: neither is to be harmed. */
static void check_beside_a_namesake(void **state)
{
	struct pv_store *s, *other;

	assert_int_equal(open_store(PV_CREATE, &s), 0);
	assert_int_equal(add(s), 0);
	kill_holder();
	assert_int_equal(open_store(PV_CREATE, &other), 0);
	assert_int_equal(pv_handover_check(s), -EBUSY);
	assert_non_null(strstr(pv_last_error(), "another process has made a new store"));
	assert_int_equal(pv_handover_check(other), 0);
	assert_true(holds(s, 1));
	assert_int_equal(pv_close(s), 0);
	assert_int_equal(pv_close(other), 0);
	expect_attach(0, 1);
}

static void check_by_whom_there_is_nothing_to_ask(void **state)
{
	struct pv_store *s, *reader;
	struct pv_options none = {
		.size = sizeof(none), .flags = PV_CREATE, .handover = PV_HANDOVER_NONE};

	assert_int_equal(pv_open("other", &none, &s), 0);
	assert_int_equal(pv_handover_check(s), 0);
	assert_int_equal(pv_close(s), 0);

	assert_int_equal(open_store(PV_CREATE, &s), 0);
	assert_int_equal(pv_close(s), 0);
	assert_int_equal(open_store(PV_RDONLY, &reader), 0);
	kill_holder();
	assert_int_equal(pv_handover_check(reader), -EPERM);
	assert_int_equal(test_holder_pid(), 0);
	assert_int_equal(pv_close(reader), 0);
}

/* ---- somebody else, between the fetch and the lock ---- */

/* An open looks at the index's descriptor when it has fetched and has not locked: what is armed
 * happens there, once or, if it stays armed, each time. */
static void (*meanwhile)(void);
static unsigned int meanwhile_calls;
static bool meanwhile_stays;

int __real_pvi_arena_verify(int fd, const char *what, uint64_t min_bytes, uint64_t *bytes);
int __wrap_pvi_arena_verify(int fd, const char *what, uint64_t min_bytes, uint64_t *bytes);
int __wrap_pvi_arena_verify(int fd, const char *what, uint64_t min_bytes, uint64_t *bytes)
{
	void (*action)(void) = meanwhile;

	if (action && strcmp(what, "index") == 0) {
		if (!meanwhile_stays)
			meanwhile = NULL;
		meanwhile_calls++;
		action();
	}
	return __real_pvi_arena_verify(fd, what, min_bytes, bytes);
}

/* The other process: it has the store from writer_begin() on, and does this when it is told. */
static struct {
	int tell[2], told[2];
	pid_t pid;
	uint64_t count; /* items that it has left */
} writer;

static void writer_begin(uint64_t (*act)(struct pv_store *s))
{
	struct pv_store *s;
	uint64_t count;

	assert_int_equal(pipe2(writer.tell, O_CLOEXEC), 0);
	assert_int_equal(pipe2(writer.told, O_CLOEXEC), 0);
	writer.pid = test_fork();
	if (writer.pid == 0) {
		TEST_CHILD_CHECK(open_store(PV_CREATE, &s) == 0);
		TEST_CHILD_CHECK(add(s) == 0);
		TEST_CHILD_CHECK(write(writer.told[1], "x", 1) == 1);
		TEST_CHILD_CHECK(wait_byte(writer.tell[0]));
		count = act(s);
		TEST_CHILD_CHECK(write(writer.told[1], &count, sizeof(count)) == sizeof(count));
		/* Killed, or told to close. */
		TEST_CHILD_CHECK(wait_byte(writer.tell[0]));
		TEST_CHILD_CHECK(pv_close(s) == 0);
		_exit(0);
	}
	assert_true(wait_byte(writer.told[0]));
}

static void writer_acts(void)
{
	assert_int_equal(write(writer.tell[1], "x", 1), 1);
	assert_int_equal(read(writer.told[0], &writer.count, sizeof(writer.count)),
			 sizeof(writer.count));
}

static void writer_acts_and_dies(void)
{
	writer_acts();
	assert_int_equal(kill(writer.pid, SIGKILL), 0);
	expect_killed(writer.pid);
}

static void writer_end(void)
{
	for (int i = 0; i < 2; i++) {
		close(writer.tell[i]);
		close(writer.told[i]);
	}
}

static uint64_t grow_twice(struct pv_store *s)
{
	uint64_t count;

	TEST_CHILD_CHECK(grow(s, &count) == 0 && grow(s, &count) == 0);
	return count;
}

static void former_writer_grows(void **state)
{
	struct pv_store *s;
	uint32_t before;

	writer_begin(grow_twice);
	assert_int_equal(open_store(PV_RDONLY, &s), 0);
	before = segments(s);
	assert_int_equal(pv_close(s), 0);
	meanwhile = writer_acts_and_dies;
	if (open_store(0, &s))
		fail_msg("attach: %s", pv_last_error());
	assert_null(meanwhile);
	assert_int_equal(segments(s), before + 2);
	assert_true(holds(s, writer.count));
	assert_int_equal(pv_handover_check(s), 0);
	assert_int_equal(pv_close(s), 0);
	expect_attach(writer.count, before + 2);
	writer_end();
}

/* A reader has no lock; the index that it reads is later than its fetch. */
static void writer_grows_beside_a_reader(void **state)
{
	struct pv_store *s;

	writer_begin(grow_twice);
	meanwhile = writer_acts;
	if (open_store(PV_RDONLY, &s))
		fail_msg("attach: %s", pv_last_error());
	assert_null(meanwhile);
	assert_true(holds(s, writer.count));
	assert_int_equal(pv_close(s), 0);
	assert_int_equal(write(writer.tell[1], "x", 1), 1);
	test_join(writer.pid);
	writer_end();
}

/* Nothing in the index tells of this one; a prepare keeps a manifest, and a session, which it would
 * take LUO to have. */
static uint64_t keep_manifest(struct pv_store *s)
{
	int fd = test_memfd(1);

	TEST_CHILD_CHECK(pvi_keeper_keep(pvi_keeper_of(s->handover), HOLDER_TOKEN_MANIFEST, fd) ==
			 0);
	close(fd);
	return 1;
}

static void former_writer_prepares(void **state)
{
	struct pv_store *s;

	writer_begin(keep_manifest);
	meanwhile = writer_acts_and_dies;
	assert_int_equal(open_store(0, &s), 0);
	assert_null(meanwhile);
	assert_true(pvi_keeper_find(pvi_keeper_of(s->handover), HOLDER_TOKEN_MANIFEST) >= 0);
	assert_true(holds(s, 1));
	assert_int_equal(pv_handover_check(s), 0);
	assert_int_equal(pv_close(s), 0);
	writer_end();
}

static uint64_t destroy(struct pv_store *s)
{
	TEST_CHILD_CHECK(pv_destroy(s) == 0);
	return 0;
}

static void former_writer_destroys(void **state)
{
	static const uint32_t flags[2] = {0, PV_CREATE};

	for (int i = 0; i < 2; i++) {
		struct pv_store *s;
		int rc;

		writer_begin(destroy);
		meanwhile = writer_acts_and_dies;
		rc = open_store(flags[i], &s);
		assert_null(meanwhile);
		if (flags[i] & PV_CREATE) {
			assert_int_equal(rc, 0);
			assert_true(holds(s, 0));
			assert_int_equal(pv_close(s), 0);
		} else {
			assert_int_equal(rc, -ENOENT);
		}
		writer_end();
	}
}

static uint64_t replace(struct pv_store *s)
{
	TEST_CHILD_CHECK(pv_destroy(s) == 0 && open_store(PV_CREATE, &s) == 0);
	for (int i = 0; i < 3; i++)
		TEST_CHILD_CHECK(add(s) == 0);
	return 3;
}

/* The index that is locked is not that of the store any more. */
static void former_writer_makes_another_store(void **state)
{
	struct pv_store *s;

	writer_begin(replace);
	meanwhile = writer_acts_and_dies;
	assert_int_equal(open_store(0, &s), 0);
	assert_null(meanwhile);
	assert_true(holds(s, 3));
	assert_int_equal(pv_close(s), 0);
	writer_end();
}

/* The item at the head of the list goes. */
static int take_away(struct pv_store *s)
{
	struct root *root;
	struct item *item;
	int rc = root_of(s, &root);

	if (rc)
		return rc;
	item = root->first;
	return pv_publish(s,
			  (struct pv_action[]){PV_STORE(&root->first, (uintptr_t)item->next),
					       PV_STORE(&root->count, root->count - 1), PV_FREE(item)},
			  3);
}

/* Segments that leave the store leave the holder, too; and others take their tokens. */
static void trim_tells_the_holder(void **state)
{
	struct pv_store *s;
	uint64_t count = 0;
	unsigned int files;

	assert_int_equal(open_store(PV_CREATE, &s), 0);
	files = test_open_files_at_rest(test_holder_pid());
	for (int round = 0; round < 3; round++) {
		assert_int_equal(grow(s, &count), 0);
		assert_int_equal(grow(s, &count), 0);
		assert_int_equal(segments(s), 3);
		assert_true(test_open_files_become(test_holder_pid(), files + 2));
		for (; count; count--)
			assert_int_equal(take_away(s), 0);
		assert_int_equal(pv_trim(s, NULL), 0);
		assert_int_equal(segments(s), 1);
		assert_true(test_open_files_become(test_holder_pid(), files));
		assert_int_equal(pv_handover_check(s), 0);
	}
	assert_int_equal(grow(s, &count), 0);
	assert_int_equal(pv_close(s), 0);
	expect_attach(count, 2);
	assert_int_equal(open_store(0, &s), 0);
	assert_int_equal(pv_destroy(s), 0);
}

/* Nobody else has what was fetched: it is not let go. */
static void holder_dies_during_an_open(void **state)
{
	struct pv_store *s;

	assert_int_equal(open_store(PV_CREATE, &s), 0);
	assert_int_equal(add(s), 0);
	assert_int_equal(pv_close(s), 0);
	meanwhile = kill_holder;
	assert_int_equal(open_store(0, &s), 0);
	assert_null(meanwhile);
	assert_true(holds(s, 1));
	assert_int_equal(pv_handover_check(s), 1);
	assert_int_equal(pv_close(s), 0);
	meanwhile = NULL;
	assert_int_equal(open_store(0, &s), 0);
	assert_true(holds(s, 1));
	assert_int_equal(pv_close(s), 0);
}

static void change_something(void)
{
	struct pvi_handover *h = test_open();
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	assert_int_equal(h->ops->fetch(h, &fds, &n, &from_kexec), 0);
	test_release(fds, n);
	assert_int_equal(test_keep(h, 9, 9), 0);
	h->ops->close(h);
}

/* Not for ever; and what was locked and opened on the way is let go. */
static void changes_without_end(void **state)
{
	unsigned int files;
	struct pv_store *s;

	assert_int_equal(open_store(PV_CREATE, &s), 0);
	assert_int_equal(add(s), 0);
	assert_int_equal(pv_close(s), 0);
	files = test_open_files(getpid());
	meanwhile = change_something;
	meanwhile_calls = 0;
	meanwhile_stays = true;
	assert_int_equal(open_store(0, &s), -EBUSY);
	assert_non_null(strstr(pv_last_error(), "keep changing what is kept"));
	assert_in_range(meanwhile_calls, 2, 100);
	meanwhile = NULL;
	meanwhile_stays = false;
	assert_int_equal(test_open_files(getpid()), files);
	assert_int_equal(open_store(0, &s), 0);
	assert_true(holds(s, 1));
	assert_int_equal(pv_close(s), 0);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, test_setup, test_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(check_replaces_a_dead_holder),
		CASE(check_tells_what_growth_found),
		CASE(check_corrects_a_living_holder),
		CASE(check_without_a_holder),
		CASE(check_of_a_hanging_holder),
		CASE(check_beside_a_namesake),
		CASE(check_by_whom_there_is_nothing_to_ask),
		CASE(former_writer_grows),
		CASE(writer_grows_beside_a_reader),
		CASE(former_writer_prepares),
		CASE(former_writer_destroys),
		CASE(former_writer_makes_another_store),
		CASE(trim_tells_the_holder),
		CASE(holder_dies_during_an_open),
		CASE(changes_without_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
