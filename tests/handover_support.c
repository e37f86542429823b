/* SPDX-License-Identifier: BSD-3-Clause */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "handover_support.h"

static char dir[64];
struct pv_options test_options;

int test_setup(void **state)
{
	snprintf(dir, sizeof(dir), "/tmp/pv-handover-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	test_options = (struct pv_options){
		.size = sizeof(test_options),
		.handover = PV_HANDOVER_HOLDER,
		.runtime_dir = dir,
	};
	return 0;
}

/** Ends whoever listens at a socket of the directory, if it is a holder. */
static void end_holder(const char *path)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	struct ucred peer;
	socklen_t bytes = sizeof(peer);
	char comm[64] = "", text[32];
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), fd;

	assert_true(strlen(path) < sizeof(sun.sun_path));
	memcpy(sun.sun_path, path, strlen(path));
	if (connect(sock, (struct sockaddr *)&sun, sizeof(sun)) == 0 &&
	    getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0) {
		snprintf(text, sizeof(text), "/proc/%d/comm", peer.pid);
		fd = open(text, O_RDONLY | O_CLOEXEC);
		if (fd >= 0 && read(fd, comm, sizeof(comm) - 1) > 0 &&
		    strcmp(comm, "pv-holder\n") == 0)
			kill(peer.pid, SIGKILL);
		close(fd);
	}
	close(sock);
}

int test_teardown(void **state)
{
	DIR *d;
	struct dirent *e;
	char path[512];

	chmod(dir, 0700);
	d = opendir(dir);
	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		end_holder(path);
		if (unlink(path) && errno == EISDIR)
			rmdir(path);
	}
	if (d)
		closedir(d);
	return rmdir(dir);
}

int test_memfd(uint64_t number)
{
	int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, 4096), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
	assert_int_equal(pwrite(fd, &number, sizeof(number), 0), sizeof(number));
	return fd;
}

uint64_t test_number(int fd)
{
	uint64_t number;

	assert_int_equal(pread(fd, &number, sizeof(number), 0), sizeof(number));
	return number;
}

struct pvi_handover *test_open(void)
{
	struct pvi_handover *h;

	if (pvi_handover_open(STORE, &test_options, &h))
		fail_msg("open: %s", pv_last_error());
	return h;
}

void test_release(struct pvi_fd *fds, unsigned int n)
{
	while (n)
		close(fds[--n].fd);
	free(fds);
}

void test_expect(struct pvi_handover *h, unsigned int n, const uint64_t *numbers)
{
	struct pvi_fd *fds;
	unsigned int got;
	bool from_kexec = true;

	if (h->ops->fetch(h, &fds, &got, &from_kexec))
		fail_msg("fetch: %s", pv_last_error());
	assert_int_equal(got, n);
	assert_false(from_kexec);
	for (unsigned int i = 0; i < n; i++) {
		assert_int_equal(fds[i].token, i);
		assert_int_equal(test_number(fds[i].fd), numbers[i]);
		assert_int_equal(fcntl(fds[i].fd, F_GETFD), FD_CLOEXEC);
	}
	test_release(fds, got);
}

int test_keep(struct pvi_handover *h, uint64_t token, uint64_t number)
{
	int fd = test_memfd(number);
	int rc = h->ops->keep(h, token, fd);

	close(fd);
	return rc;
}

static struct pvi_holder_place place_of_test(void)
{
	struct pvi_holder_place place;

	assert_int_equal(pvi_holder_place_init(&place, STORE, &test_options), 0);
	return place;
}

int test_dial(void)
{
	struct pvi_holder_place place = place_of_test();
	bool started;
	int sock;

	if (pvi_holder_dial(&place, false, &sock, &started))
		fail_msg("dial: %s", pv_last_error());
	pvi_holder_place_free(&place);
	return sock;
}

pid_t test_holder_pid(void)
{
	struct pvi_holder_place place = place_of_test();
	struct holder_msg m = {.op = HOLDER_STATUS};
	bool started;
	int sock;
	pid_t pid = 0;

	if (pvi_holder_dial(&place, false, &sock, &started) == 0) {
		if (pvi_holder_ask(&place, sock, &m, -1, NULL) == 0)
			pid = (pid_t)m.token;
		close(sock);
	}
	pvi_holder_place_free(&place);
	return pid;
}

void test_keep_and_die(void)
{
	pid_t child = test_fork();
	int status;

	if (child == 0) {
		struct pvi_handover *h = test_open();
		struct pvi_fd *fds;
		unsigned int n;
		bool from_kexec;

		TEST_CHILD_CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == -ENOENT);
		/* In another order than that of the tokens. */
		TEST_CHILD_CHECK(test_keep(h, 2, 12) == 0);
		TEST_CHILD_CHECK(test_keep(h, 0, 99) == 0);
		TEST_CHILD_CHECK(test_keep(h, 1, 11) == 0);
		TEST_CHILD_CHECK(test_keep(h, 0, 10) == 0);
		TEST_CHILD_CHECK(test_keep(h, 3, 13) == 0);
		TEST_CHILD_CHECK(h->ops->drop(h, 3) == 0);
		TEST_CHILD_CHECK(h->ops->drop(h, 77) == 0);
		raise(SIGKILL);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
}

unsigned int test_open_files(pid_t pid)
{
	char path[32];
	unsigned int n = 0;
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	d = opendir(path);
	assert_non_null(d);
	while ((e = readdir(d)))
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

unsigned int test_open_files_at_rest(pid_t pid)
{
	unsigned int least = UINT32_MAX;

	for (int i = 0; i < 60; i++, usleep(10000)) {
		unsigned int n = test_open_files(pid);

		least = n < least ? n : least;
	}
	return least;
}

bool test_open_files_become(pid_t pid, unsigned int n)
{
	for (int tries = 0; tries < 200 && test_open_files(pid) != n; tries++)
		usleep(10000);
	return test_open_files(pid) == n;
}

bool test_gone(pid_t pid, int ms)
{
	char path[32], stat[256];

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	for (; ms >= 0; ms -= 10) {
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t n = fd >= 0 ? read(fd, stat, sizeof(stat) - 1) : 0;
		const char *state;

		if (fd >= 0)
			close(fd);
		stat[n > 0 ? n : 0] = 0;
		state = strrchr(stat, ')');
		if (!state || state[2] == 'Z' || state[2] == 'X')
			return true;
		usleep(10000);
	}
	return false;
}

pid_t test_fork(void)
{
	pid_t child = fork();

	assert_true(child >= 0);
	/* A test that fails does not leave it behind. */
	if (child == 0)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return child;
}

void test_join(pid_t child)
{
	int status;

	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}
