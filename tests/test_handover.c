/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The contract of handover.h on the backend `holder`, and what becomes of it when processes die,
 * race, or meet a machine with other ideas. What a hostile or broken peer does is in
 * test_holder.c; `luo` needs a kernel of its own, see handover/.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "handover_support.h"

/* ---- holder ---- */

static void holder_outlives_kill(void **state)
{
	static const uint64_t numbers[3] = {10, 11, 12};
	struct pvi_handover *h;

	test_keep_and_die();
	h = test_open();
	test_expect(h, 3, numbers);
	assert_int_equal(h->state, PV_STATE_SERVING);
	assert_null(h->ops->prepare);
	h->ops->close(h);
}

static volatile sig_atomic_t children_ended;

static void on_sigchld(int signal)
{
	children_ended++;
}

/** The file as one string, zero bytes as blanks. */
static void read_proc(pid_t pid, const char *name, char *text, size_t bytes)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	n = read(fd, text, bytes - 1);
	close(fd);
	assert_true(n >= 0);
	for (ssize_t i = 0; i < n; i++)
		text[i] = text[i] ? text[i] : ' ';
	text[n] = 0;
}

/** Nothing of the application sticks to the holder, and nothing of the holder to it. */
static void holder_is_on_its_own(void **state)
{
	static const int ignored[] = {SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGUSR1, SIGALRM, SIGCHLD};
	struct sigaction act = {.sa_handler = on_sigchld}, before;
	char text[4096], link[256] = "";
	struct pvi_handover *h = test_open();
	int pipe_ends[2];
	pid_t pid;

	children_ended = 0;
	assert_int_equal(sigaction(SIGCHLD, &act, &before), 0);
	assert_int_equal(pipe(pipe_ends), 0); /* not O_CLOEXEC */
	assert_int_equal(test_keep(h, 0, 1), 0);
	pid = test_holder_pid();
	assert_true(pid > 0);

	assert_int_equal(waitpid(-1, NULL, WNOHANG | __WALL), -1);
	assert_int_equal(errno, ECHILD);
	assert_int_equal(children_ended, 0);
	assert_int_equal(sigaction(SIGCHLD, &before, NULL), 0);
	assert_int_not_equal(getpgid(pid), getpgid(0));
	assert_int_not_equal(getsid(pid), getsid(0));
	/* The listening socket and one memfd: not our pipe, which would never see its end. */
	assert_true(test_open_files_become(pid, 2));
	close(pipe_ends[1]);
	assert_int_equal(read(pipe_ends[0], text, 1), 0);
	close(pipe_ends[0]);

	read_proc(pid, "comm", text, sizeof(text));
	assert_string_equal(text, "pv-holder\n");
	read_proc(pid, "cmdline", text, sizeof(text));
	assert_non_null(strstr(text, "libpreserve-holder " STORE " /tmp/pv-handover-"));
	read_proc(pid, "environ", text, sizeof(text));
	assert_string_equal(text, "");
	snprintf(text, sizeof(text), "/proc/%d/cwd", pid);
	assert_true(readlink(text, link, sizeof(link) - 1) > 0);
	assert_string_equal(link, "/");
	for (unsigned int i = 0; i < sizeof(ignored) / sizeof(*ignored); i++)
		assert_int_equal(kill(pid, ignored[i]), 0);
	usleep(20000);
	assert_int_equal(test_holder_pid(), pid);
	/* It costs a few pages. */
	read_proc(pid, "statm", text, sizeof(text));
	assert_true(strtoul(strchr(text, ' '), NULL, 10) < 25);
	h->ops->close(h);
}

static void holder_obeys_sigterm(void **state)
{
	struct pvi_handover *h = test_open();
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;
	pid_t pid;

	assert_int_equal(test_keep(h, 0, 1), 0);
	pid = test_holder_pid();
	assert_int_equal(kill(pid, SIGTERM), 0);
	assert_true(test_gone(pid, 2000));
	h->ops->close(h);
	h = test_open();
	assert_int_equal(h->ops->fetch(h, &fds, &n, &from_kexec), -ENOENT);
	assert_non_null(strstr(pv_last_error(), "has died"));
	h->ops->close(h);
}

/** While the application has the store open, the death of its holder costs nothing. */
static void holder_death_is_made_good(void **state)
{
	static const uint64_t numbers[4] = {5, 6, 7, 8};
	struct pvi_handover *h = test_open(), *other;
	pid_t pid, next;

	for (uint64_t i = 0; i < 3; i++)
		assert_int_equal(test_keep(h, i, numbers[i]), 0);
	pid = test_holder_pid();
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_true(test_gone(pid, 2000));
	assert_int_equal(test_keep(h, 3, 8), 0);
	other = test_open();
	test_expect(other, 4, numbers);
	other->ops->close(other);
	/* Also if it is a drop that finds out. */
	next = test_holder_pid();
	assert_int_not_equal(next, pid);
	assert_int_equal(kill(next, SIGKILL), 0);
	assert_true(test_gone(next, 2000));
	assert_int_equal(h->ops->drop(h, 3), 0);
	other = test_open();
	test_expect(other, 3, numbers);
	other->ops->close(other);
	h->ops->close(h);
}

/** ... unless somebody has made another store of the name: then neither harms the other. */
static void successor_is_not_mixed_up(void **state)
{
	static const uint64_t numbers[2] = {20, 21};
	struct pvi_handover *h = test_open(), *other = test_open();
	pid_t pid;

	assert_int_equal(test_keep(h, 0, 1), 0);
	pid = test_holder_pid();
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_true(test_gone(pid, 2000));
	assert_int_equal(test_keep(other, 0, 20), 0);
	assert_int_equal(test_keep(other, 1, 21), 0);
	assert_int_equal(test_keep(h, 1, 2), -EBUSY);
	assert_int_equal(h->ops->drop(h, 0), -EBUSY);
	assert_int_equal(h->ops->forget(h), -EBUSY);
	h->ops->close(h);
	test_expect(other, 2, numbers);
	other->ops->close(other);
}

/** Two processes create one store: segment first, index last, as the store does. */
static void creators_do_not_mix(void **state)
{
	static const uint64_t numbers[2] = {31, 30};
	struct pvi_handover *a = test_open(), *b = test_open();
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	assert_int_equal(a->ops->fetch(a, &fds, &n, &from_kexec), -ENOENT);
	assert_int_equal(b->ops->fetch(b, &fds, &n, &from_kexec), -ENOENT);
	assert_int_equal(test_keep(a, 1, 30), 0);
	assert_int_equal(test_keep(b, 1, 40), -EBUSY);
	assert_int_equal(test_keep(a, 0, 31), 0);
	test_expect(a, 2, numbers);
	/* The other way: b takes a's segment for a leftover and replaces it, so a loses. */
	assert_int_equal(a->ops->forget(a), 0);
	assert_int_equal(test_keep(a, 1, 50), 0);
	assert_int_equal(b->ops->fetch(b, &fds, &n, &from_kexec), 0);
	test_release(fds, n);
	assert_int_equal(test_keep(b, 1, 30), 0);
	assert_int_equal(test_keep(a, 0, 51), -EBUSY);
	assert_int_equal(test_keep(b, 0, 31), 0);
	test_expect(b, 2, numbers);
	a->ops->close(a);
	b->ops->close(b);
}

enum { STARTERS = 8 };

static void starters_end_up_with_one(void **state)
{
	for (unsigned int round = 0; round < 20; round++) {
		uint64_t holders[STARTERS];
		int gate[2], result[2];
		pid_t children[STARTERS];
		struct pvi_handover *h;
		char byte;

		assert_int_equal(pipe(gate), 0);
		assert_int_equal(pipe(result), 0);
		for (unsigned int i = 0; i < STARTERS; i++) {
			children[i] = test_fork();
			if (children[i] == 0) {
				struct pvi_holder_place place;
				struct holder_msg m = {.op = HOLDER_STATUS};
				bool started;
				int sock;

				close(gate[1]);
				TEST_CHILD_CHECK(read(gate[0], &byte, 1) == 0);
				TEST_CHILD_CHECK(
					pvi_holder_place_init(&place, STORE, &test_options) == 0);
				TEST_CHILD_CHECK(pvi_holder_dial(&place, true, &sock, &started) ==
						 0);
				TEST_CHILD_CHECK(pvi_holder_ask(&place, sock, &m, -1, NULL) == 0);
				TEST_CHILD_CHECK(write(result[1], &m.holder, 8) == 8);
				_exit(0);
			}
		}
		close(gate[0]);
		close(gate[1]);
		for (unsigned int i = 0; i < STARTERS; i++)
			test_join(children[i]);
		close(result[1]);
		assert_int_equal(read(result[0], holders, sizeof(holders)), sizeof(holders));
		close(result[0]);
		for (unsigned int i = 1; i < STARTERS; i++)
			assert_int_equal(holders[i], holders[0]);
		/* Every second time they find the socket of a dead one. */
		if (round & 1) {
			pid_t pid = test_holder_pid();

			kill(pid, SIGKILL);
			assert_true(test_gone(pid, 2000));
		} else {
			h = test_open();
			assert_int_equal(h->ops->forget(h), 0);
			h->ops->close(h);
		}
	}
}

/** A process that uses the store is killed at any moment: the holder goes on, nothing is half. */
static void client_death_harms_nothing(void **state)
{
	static const uint64_t numbers[2] = {1, 2};
	unsigned int seed = 1, with_third = 0;
	struct pvi_handover *h = test_open();
	pid_t pid;

	assert_int_equal(test_keep(h, 0, 1), 0);
	assert_int_equal(test_keep(h, 1, 2), 0);
	h->ops->close(h);
	pid = test_holder_pid();
	for (unsigned int round = 0; round < 200; round++) {
		struct pvi_fd *fds;
		unsigned int n;
		bool from_kexec;
		pid_t child = test_fork();

		if (child == 0) {
			h = test_open();
			TEST_CHILD_CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == 0);
			for (;;) {
				TEST_CHILD_CHECK(test_keep(h, 2, 3) == 0);
				TEST_CHILD_CHECK(h->ops->drop(h, 2) == 0);
			}
		}
		usleep((useconds_t)(rand_r(&seed) % 2000));
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		h = test_open();
		assert_int_equal(h->ops->fetch(h, &fds, &n, &from_kexec), 0);
		with_third += n == 3;
		test_release(fds, n);
		if (n == 3)
			assert_int_equal(h->ops->drop(h, 2), 0);
		test_expect(h, 2, numbers);
		h->ops->close(h);
	}
	assert_int_equal(test_holder_pid(), pid);
	assert_true(with_third > 0);
	assert_true(test_open_files_become(pid, 3));
}

static void forget_ends_the_holder(void **state)
{
	static const uint64_t numbers[1] = {2};
	struct pvi_handover *h = test_open();
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;
	char path[128];
	pid_t pid;

	assert_int_equal(h->ops->forget(h), 0);
	assert_int_equal(test_keep(h, 0, 1), 0);
	pid = test_holder_pid();
	assert_int_equal(h->ops->forget(h), 0);
	snprintf(path, sizeof(path), "%s/" STORE ".sock", test_options.runtime_dir);
	assert_int_equal(access(path, F_OK), -1);
	assert_true(test_gone(pid, 2000));
	assert_int_equal(h->ops->fetch(h, &fds, &n, &from_kexec), -ENOENT);
	/* The same handle can go on with a new store. */
	assert_int_equal(test_keep(h, 0, 2), 0);
	test_expect(h, 1, numbers);
	/* Without a look at what is there: PV_RESET. */
	h->ops->close(h);
	h = test_open();
	assert_int_equal(h->ops->forget(h), 0);
	assert_int_equal(h->ops->fetch(h, &fds, &n, &from_kexec), -ENOENT);
	h->ops->close(h);
}

static void empty_holder_ends(void **state)
{
	struct pvi_handover *h = test_open();
	pid_t pid;

	assert_int_equal(test_keep(h, 0, 1), 0);
	assert_int_equal(h->ops->drop(h, 0), 0);
	pid = test_holder_pid();
	assert_false(test_gone(pid, 1000));
	assert_true(test_gone(pid, 8000));
	assert_int_equal(test_keep(h, 0, 1), 0);
	h->ops->close(h);
}

/* ---- limits ---- */

static void many_descriptors(void **state)
{
	enum { MANY = 300 };
	static uint64_t numbers[MANY];
	struct pvi_handover *h = test_open(), *other = test_open();

	for (uint64_t i = 0; i < MANY; i++) {
		numbers[i] = 1000 + i;
		assert_int_equal(test_keep(h, i, numbers[i]), 0);
	}
	test_expect(other, MANY, numbers);
	h->ops->close(h);
	other->ops->close(other);
}

static void client_runs_out_of_descriptors(void **state)
{
	pid_t child = test_fork();

	if (child == 0) {
		const struct rlimit few = {24, 24};
		struct pvi_handover *h = test_open();
		uint64_t token = 0;
		int rc;

		TEST_CHILD_CHECK(test_keep(h, token++, 0) == 0);
		TEST_CHILD_CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
		/* Ours ends first, for it has as many and more; so let go of what we have. */
		h->ops->close(h);
		do {
			struct pvi_fd *fds;
			unsigned int n;
			bool from_kexec;

			h = test_open();
			rc = h->ops->fetch(h, &fds, &n, &from_kexec);
			if (rc)
				break;
			test_release(fds, n);
			rc = test_keep(h, token++, 1);
			h->ops->close(h);
		} while (rc == 0);
		TEST_CHILD_CHECK(rc == -EMFILE && token > 8);
		TEST_CHILD_CHECK(strstr(pv_last_error(), "RLIMIT_NOFILE"));
		_exit(0);
	}
	test_join(child);
}

/** The holder's own limit: a client without one meets it. */
static void holder_says_when_it_is_full(void **state)
{
	static const uint64_t numbers[1] = {0};
	pid_t child = test_fork();
	struct pvi_handover *h;
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;
	uint64_t token = 1;
	int rc;

	if (child == 0) {
		const struct rlimit few = {32, 32};

		TEST_CHILD_CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
		TEST_CHILD_CHECK(test_keep(test_open(), 0, 0) == 0);
		_exit(0);
	}
	test_join(child);
	h = test_open();
	test_expect(h, 1, numbers);
	do {
		rc = test_keep(h, token, token);
		token++;
	} while (rc == 0 && token < 100);
	assert_int_equal(rc, -EMFILE);
	assert_non_null(strstr(pv_last_error(), "limit of open files"));
	assert_true(token > 8 && token < 32);
	/* All that was confirmed is there. */
	assert_int_equal(h->ops->fetch(h, &fds, &n, &from_kexec), 0);
	assert_int_equal(n, token - 1);
	test_release(fds, n);
	h->ops->close(h);
}

/* ---- the machine ---- */

static void directory_must_be_private(void **state)
{
	char sub[128], link_path[160];
	struct pvi_handover *h;

	snprintf(sub, sizeof(sub), "%s/sub", test_options.runtime_dir);
	snprintf(link_path, sizeof(link_path), "%s/link", test_options.runtime_dir);
	assert_int_equal(mkdir(sub, 0700), 0);
	assert_int_equal(symlink(sub, link_path), 0);
	assert_int_equal(chmod(test_options.runtime_dir, 0755), 0);
	h = test_open();
	assert_int_equal(test_keep(h, 0, 1), -EACCES);
	assert_non_null(strstr(pv_last_error(), "0755"));
	h->ops->close(h);
	assert_int_equal(chmod(test_options.runtime_dir, 0700), 0);

	test_options.runtime_dir = link_path;
	h = test_open();
	assert_int_equal(test_keep(h, 0, 1), -EACCES);
	h->ops->close(h);
	unlink(link_path);
	close(open(link_path, O_CREAT | O_CLOEXEC | O_RDWR, 0700));
	h = test_open();
	assert_int_equal(test_keep(h, 0, 1), -EACCES);
	h->ops->close(h);

	test_options.runtime_dir = sub;
	if (geteuid() == 0) {
		assert_int_equal(chown(sub, 65534, 65534), 0);
		h = test_open();
		assert_int_equal(test_keep(h, 0, 1), -EACCES);
		assert_non_null(strstr(pv_last_error(), "user 65534"));
		h->ops->close(h);
	} else {
		print_message("not root: a directory of another user is not tried\n");
	}
	snprintf(link_path, sizeof(link_path), "%s/none/deep", sub);
	test_options.runtime_dir = link_path;
	h = test_open();
	assert_int_equal(test_keep(h, 0, 1), -ENOENT);
	assert_non_null(strstr(pv_last_error(), "cannot make"));
	h->ops->close(h);
	rmdir(sub);
}

/** A path that fits no socket address. */
static void directory_may_be_deep(void **state)
{
	static const uint64_t numbers[1] = {4};
	char deep[400];
	struct pvi_handover *h;
	int n = snprintf(deep, sizeof(deep), "%s/", test_options.runtime_dir);

	memset(deep + n, 'x', 150);
	deep[n + 150] = 0;
	test_options.runtime_dir = deep;
	h = test_open();
	assert_int_equal(test_keep(h, 0, 4), 0);
	test_expect(h, 1, numbers);
	assert_int_equal(h->ops->forget(h), 0);
	h->ops->close(h);
	assert_int_equal(rmdir(deep), 0);
}

/** Where memory may not be executed, the installed program is taken, or it is said. */
static void without_executable_memory(void **state)
{
	const char *program = getenv("TEST_HOLDER");
	int status;
	pid_t child;

	if (!program)
		fail_msg("TEST_HOLDER must name the holder program");
	child = test_fork();
	if (child == 0) {
		int fd;

		/* The setting holds for the process namespace, and cannot be taken back. */
		if (unshare(CLONE_NEWPID))
			_exit(77);
		child = fork();
		if (child == 0) {
			struct pvi_handover *h = test_open();
			static const uint64_t numbers[1] = {3};

			fd = open("/proc/sys/vm/memfd_noexec", O_WRONLY | O_CLOEXEC);
			if (fd < 0 || write(fd, "2", 1) != 1)
				_exit(77);
			setenv("PRESERVE_HOLDER", "/nonexistent/holder", 1);
			TEST_CHILD_CHECK(test_keep(h, 0, 3) == -EACCES);
			TEST_CHILD_CHECK(strstr(pv_last_error(), "/nonexistent/holder"));
			TEST_CHILD_CHECK(strstr(pv_last_error(), "memfd_noexec"));
			setenv("PRESERVE_HOLDER", program, 1);
			TEST_CHILD_CHECK(test_keep(h, 0, 3) == 0);
			test_expect(h, 1, numbers);
			TEST_CHILD_CHECK(h->ops->forget(h) == 0);
			_exit(0);
		}
		waitpid(child, &status, 0);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77) {
		print_message("vm.memfd_noexec cannot be set here, it takes root and Linux 6.3\n");
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, test_setup, test_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(holder_outlives_kill),
		CASE(holder_is_on_its_own),
		CASE(holder_obeys_sigterm),
		CASE(holder_death_is_made_good),
		CASE(successor_is_not_mixed_up),
		CASE(creators_do_not_mix),
		CASE(starters_end_up_with_one),
		CASE(client_death_harms_nothing),
		CASE(forget_ends_the_holder),
		CASE(empty_holder_ends),
		CASE(many_descriptors),
		CASE(client_runs_out_of_descriptors),
		CASE(holder_says_when_it_is_full),
		CASE(directory_must_be_private),
		CASE(directory_may_be_deep),
		CASE(without_executable_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
