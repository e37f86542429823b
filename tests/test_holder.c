/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The conversation of library and holder (holder_proto.h) when one side is broken, hostile, slow,
 * or of another user. In the first half the holder is real and the client is not, in the second the
 * other way around.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "handover_support.h"

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static struct holder_msg request(uint16_t op)
{
	return (struct holder_msg){.magic = HOLDER_MAGIC, .version = HOLDER_VERSION, .op = op};
}

static void send_fds(int sock, const void *bytes, size_t n, const int *fds, unsigned int nfds)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(16 * sizeof(int))];
	} control = {0};
	struct iovec iov = {(void *)bytes, n};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (nfds) {
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(&control.head), fds, nfds * sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
	}
	/* The peer may have hung up already. */
	sendmsg(sock, &msg, MSG_NOSIGNAL);
}

/** Waits for a reply and returns its status; 1: the connection was closed instead. */
static int status_of_reply(int sock, struct holder_msg *m)
{
	struct pollfd p = {sock, POLLIN, 0};
	ssize_t n;

	assert_int_equal(poll(&p, 1, 3000), 1);
	n = recv(sock, m, sizeof(*m), 0);
	if (n <= 0)
		return 1;
	assert_int_equal(n, sizeof(*m));
	return m->status;
}

/** Sends one message over a connection of its own and returns the status, or 1 for a hang-up. */
static int say(const void *bytes, size_t n, const int *fds, unsigned int nfds)
{
	int sock = test_dial(), status;
	struct holder_msg m;

	send_fds(sock, bytes, n, fds, nfds);
	status = status_of_reply(sock, &m);
	close(sock);
	return status;
}

static const uint64_t kept_numbers[2] = {7, 8};

/** A holder with two descriptors and its socket open. */
static struct pvi_handover *with_two(pid_t *pid)
{
	struct pvi_handover *h = test_open();

	assert_int_equal(test_keep(h, 0, 7), 0);
	assert_int_equal(test_keep(h, 1, 8), 0);
	*pid = test_holder_pid();
	return h;
}

/** It goes on, has what it had, and nothing else. */
static void check_unharmed(struct pvi_handover *h, pid_t pid)
{
	assert_int_equal(test_holder_pid(), pid);
	assert_true(test_open_files_become(pid, 3));
	test_expect(h, 2, kept_numbers);
	h->ops->close(h);
}

/* ---- a broken client ---- */

static void malformed_messages(void **state)
{
	struct holder_msg m = request(HOLDER_STATUS);
	char big[4096] = {0};
	int fd = test_memfd(1), four[4] = {fd, fd, fd, fd};
	struct pvi_handover *h;
	pid_t pid;

	h = with_two(&pid);
	assert_int_equal(say(&m, sizeof(m), NULL, 0), 0);
	assert_int_equal(say(&m, sizeof(m) - 1, NULL, 0), 1);
	assert_int_equal(say(&m, 1, NULL, 0), 1);
	memcpy(big, &m, sizeof(m));
	assert_int_equal(say(big, sizeof(big), NULL, 0), 1);
	assert_int_equal(say(big, sizeof(big), &fd, 1), 1);
	assert_int_equal(say(&m, sizeof(m), &fd, 1), -EINVAL);
	m.magic++;
	assert_int_equal(say(&m, sizeof(m), NULL, 0), 1);
	m = request(HOLDER_STATUS);
	m.version = 2;
	assert_int_equal(say(&m, sizeof(m), NULL, 0), -EPROTONOSUPPORT);
	m = request(99);
	assert_int_equal(say(&m, sizeof(m), NULL, 0), -EOPNOTSUPP);
	m = request(0);
	assert_int_equal(say(&m, sizeof(m), NULL, 0), -EOPNOTSUPP);
	m = request(HOLDER_KEEP);
	assert_int_equal(say(&m, sizeof(m), NULL, 0), -EINVAL);
	assert_int_equal(say(&m, sizeof(m), four, 2), 1);
	assert_int_equal(say(&m, sizeof(m), four, 4), 1);
	m = request(HOLDER_DROP);
	assert_int_equal(say(&m, sizeof(m), &fd, 1), -EINVAL);
	m = request(HOLDER_RETRIEVE);
	assert_int_equal(say(&m, sizeof(m), NULL, 0), -EINVAL);
	close(fd);
	check_unharmed(h, pid);
}

static void out_of_date_requests(void **state)
{
	struct holder_msg m = request(HOLDER_STATUS);
	int fd = test_memfd(1), sock;
	struct pvi_handover *h;
	uint64_t holder, changes;
	pid_t pid;

	h = with_two(&pid);
	sock = test_dial();
	send_fds(sock, &m, sizeof(m), NULL, 0);
	assert_int_equal(status_of_reply(sock, &m), 0);
	close(sock);
	assert_int_equal(m.more, 2);
	holder = m.holder;
	changes = m.changes;

	m = request(HOLDER_KEEP);
	m.token = 5;
	m.changes = changes - 1;
	assert_int_equal(say(&m, sizeof(m), &fd, 1), -ESTALE);
	m.changes = changes;
	m.holder = holder + 1;
	assert_int_equal(say(&m, sizeof(m), &fd, 1), -ESTALE);
	m = request(HOLDER_DROP);
	m.holder = holder;
	m.changes = changes + 1;
	assert_int_equal(say(&m, sizeof(m), NULL, 0), -ESTALE);
	m = request(HOLDER_FORGET);
	m.holder = holder + 1;
	m.changes = changes;
	assert_int_equal(say(&m, sizeof(m), NULL, 0), -ESTALE);
	close(fd);
	check_unharmed(h, pid);
}

static void unfit_descriptors(void **state)
{
	struct pvi_handover *h;
	int ends[2], fd;
	pid_t pid;

	h = with_two(&pid);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	assert_int_equal(h->ops->keep(h, 2, ends[0]), -EMEDIUMTYPE);
	close(ends[0]);
	close(ends[1]);
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	assert_int_equal(h->ops->keep(h, 2, fd), -EMEDIUMTYPE);
	close(fd);
	fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	assert_true(h->ops->keep(h, 2, fd) < 0);
	close(fd);
	fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(h->ops->keep(h, 2, fd), -EPERM);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW), 0);
	assert_int_equal(h->ops->keep(h, 2, fd), -EPERM);
	assert_int_equal(h->ops->keep(h, HOLDER_TOKEN_RESERVED, fd), -EINVAL);
	assert_int_equal(h->ops->keep(h, HOLDER_TOKEN_OUTGOING, fd), -EINVAL);
	close(fd);
	check_unharmed(h, pid);
}

/** The same without the library's own checks. */
static void unfit_reserved_tokens(void **state)
{
	static const uint64_t tokens[] = {HOLDER_TOKEN_OUTGOING, HOLDER_TOKEN_INCOMING,
					  HOLDER_TOKEN_RESERVED, HOLDER_TOKEN_MANIFEST - 1};
	struct holder_msg m = request(HOLDER_STATUS);
	struct pvi_handover *h;
	int fd = test_memfd(1), sock;
	uint64_t changes;
	pid_t pid;

	h = with_two(&pid);
	sock = test_dial();
	send_fds(sock, &m, sizeof(m), NULL, 0);
	assert_int_equal(status_of_reply(sock, &m), 0);
	close(sock);
	changes = m.changes;
	for (unsigned int i = 0; i < 4; i++) {
		m = request(HOLDER_KEEP);
		m.token = tokens[i];
		m.changes = changes;
		assert_int_equal(say(&m, sizeof(m), &fd, 1), i < 2 ? -EMEDIUMTYPE : -EINVAL);
	}
	/* Not /dev/liveupdate. */
	m = request(HOLDER_RETRIEVE);
	m.changes = changes;
	strcpy(m.name, "x");
	assert_int_equal(say(&m, sizeof(m), &fd, 1), -ENOTTY);
	memset(m.name, 'x', sizeof(m.name));
	assert_int_equal(say(&m, sizeof(m), &fd, 1), -EINVAL);
	close(fd);
	check_unharmed(h, pid);
}

/** Anything at all, with and without descriptors, in one connection and in many. */
static void random_messages(void **state)
{
	struct pvi_handover *h;
	unsigned int seed = 4711;
	int fd = test_memfd(1), sock = -1;
	pid_t pid;

	h = with_two(&pid);
	for (unsigned int i = 0; i < 20000; i++) {
		struct holder_msg m = request((uint16_t)(rand_r(&seed) % 8));
		uint8_t *bytes = (uint8_t *)&m;
		int fds[3] = {fd, fd, fd};
		size_t n = sizeof(m);

		/* Never the number of changes, so that it must refuse what would change something.
		 */
		m.changes = UINT64_MAX - (uint64_t)(rand_r(&seed) % 1000);
		m.token = (uint64_t)(rand_r(&seed) % 4) - 2;
		m.holder = 1;
		if (rand_r(&seed) % 4 == 0)
			bytes[(unsigned int)rand_r(&seed) % 24] ^= (uint8_t)rand_r(&seed);
		if (rand_r(&seed) % 8 == 0)
			n = (size_t)(rand_r(&seed) % 105);
		if (sock < 0)
			sock = test_dial();
		send_fds(sock, &m, n, fds, (unsigned int)(rand_r(&seed) % 4));
		if (rand_r(&seed) % 3 == 0) {
			close(sock);
			sock = -1;
		}
	}
	if (sock >= 0)
		close(sock);
	close(fd);
	check_unharmed(h, pid);
}

/* ---- a slow client ---- */

static void silent_clients(void **state)
{
	enum { SILENT = 40 };
	struct pvi_handover *h;
	int socks[SILENT];
	int64_t start;
	pid_t pid;

	h = with_two(&pid);
	for (unsigned int i = 0; i < SILENT; i++)
		socks[i] = test_dial();
	/* One among so many: it waits until the silent ones have been silent for long enough. */
	start = now_ms();
	test_expect(h, 2, kept_numbers);
	assert_true(now_ms() - start < PVI_HOLDER_WAIT_MS);
	for (unsigned int i = 0; i < SILENT; i++)
		close(socks[i]);
	check_unharmed(h, pid);
}

/** One that asks and asks, and never listens to the answers. */
static void deaf_client(void **state)
{
	struct holder_msg m = request(HOLDER_FETCH);
	struct pvi_handover *h;
	unsigned int sent = 0;
	int sock;
	pid_t pid;

	h = with_two(&pid);
	sock = test_dial();
	for (unsigned int i = 0; i < 100000; i++) {
		ssize_t n = send(sock, &m, sizeof(m), MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n < 0 && errno == EAGAIN) {
			usleep(1000);
			continue;
		}
		if (n < 0)
			break;
		sent++;
	}
	assert_true(sent > 10 && sent < 100000);
	test_expect(h, 2, kept_numbers);
	close(sock);
	check_unharmed(h, pid);
}

/* ---- another user ---- */

static void not_for_other_users(void **state)
{
	struct holder_msg m = request(HOLDER_STATUS);
	struct pvi_handover *h;
	char path[128];
	pid_t pid, child;

	if (geteuid()) {
		print_message("it takes root to be another user\n");
		skip();
	}
	h = with_two(&pid);
	/* Even if the directory and the socket were open to everybody. */
	snprintf(path, sizeof(path), "%s/" STORE ".sock", test_options.runtime_dir);
	assert_int_equal(chmod(test_options.runtime_dir, 0755), 0);
	assert_int_equal(chmod(path, 0666), 0);
	child = test_fork();
	if (child == 0) {
		struct sockaddr_un sun = {.sun_family = AF_UNIX};
		int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

		memcpy(sun.sun_path, path, strlen(path));
		TEST_CHILD_CHECK(setgid(65534) == 0 && setuid(65534) == 0);
		TEST_CHILD_CHECK(connect(sock, (struct sockaddr *)&sun, sizeof(sun)) == 0);
		send_fds(sock, &m, sizeof(m), NULL, 0);
		TEST_CHILD_CHECK(status_of_reply(sock, &m) == 1);
		_exit(0);
	}
	test_join(child);
	assert_int_equal(chmod(test_options.runtime_dir, 0700), 0);
	check_unharmed(h, pid);
}

/* ---- a broken holder ---- */

enum fake {
	FAKE_HANGS_UP,
	FAKE_TALKS_RUBBISH,
	FAKE_IS_SHORT,
	FAKE_IS_OLD,
	FAKE_ANSWERS_ANOTHER,
	FAKE_BRINGS_TWO,
	FAKE_GOES_BACK,
	FAKE_SAYS_ZERO,
	FAKE_OF_ANOTHER_USER,
};

/** A process that listens at the store's socket and does one kind of wrong. */
static pid_t fake_holder(enum fake kind, int *listener)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};
	pid_t child;

	snprintf(sun.sun_path, sizeof(sun.sun_path), "%s/" STORE ".sock", test_options.runtime_dir);
	*listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(*listener, (struct sockaddr *)&sun, sizeof(sun)), 0);
	if (kind != FAKE_OF_ANOTHER_USER)
		assert_int_equal(listen(*listener, 8), 0);
	child = test_fork();
	if (child)
		return child;
	if (kind == FAKE_OF_ANOTHER_USER) {
		/* Whoever calls listen() is the peer that a client sees. */
		if (setgid(65534) || setuid(65534) || listen(*listener, 8))
			_exit(1);
	}
	for (;;) {
		int fd = test_memfd(1), two[2] = {fd, fd};
		int sock = accept(*listener, NULL, NULL);
		struct holder_msg m;

		if (recv(sock, &m, sizeof(m), 0) == sizeof(m) && kind != FAKE_HANGS_UP) {
			m.holder = 1;
			m.magic -= kind == FAKE_TALKS_RUBBISH;
			m.version = (uint16_t)(m.version + (kind == FAKE_IS_OLD));
			m.op = (uint16_t)(m.op + (kind == FAKE_ANSWERS_ANOTHER));
			if (kind == FAKE_GOES_BACK) {
				m.token = 3;
				m.more = 1;
				send_fds(sock, &m, sizeof(m), two, 1);
			}
			send_fds(sock, &m, sizeof(m) - (kind == FAKE_IS_SHORT), two,
				 kind == FAKE_BRINGS_TWO  ? 2
				 : kind == FAKE_GOES_BACK ? 1
							  : 0);
			usleep(1000);
		}
		close(sock);
		close(fd);
	}
}

static void broken_holders(void **state)
{
	static const int expected[] = {
		[FAKE_HANGS_UP] = -ECONNRESET,	  [FAKE_TALKS_RUBBISH] = -EPROTO,
		[FAKE_IS_SHORT] = -EPROTO,	  [FAKE_IS_OLD] = -EPROTONOSUPPORT,
		[FAKE_ANSWERS_ANOTHER] = -EPROTO, [FAKE_BRINGS_TWO] = -EPROTO,
		[FAKE_GOES_BACK] = -EPROTO,	  [FAKE_SAYS_ZERO] = -EPROTO,
		[FAKE_OF_ANOTHER_USER] = -EACCES,
	};
	char path[128];

	snprintf(path, sizeof(path), "%s/" STORE ".sock", test_options.runtime_dir);
	for (enum fake kind = FAKE_HANGS_UP; kind <= FAKE_OF_ANOTHER_USER; kind++) {
		struct pvi_handover *h = test_open();
		struct pvi_fd *fds;
		unsigned int n, files = test_open_files(getpid());
		bool from_kexec;
		int listener, rc;
		pid_t fake;

		if (kind == FAKE_OF_ANOTHER_USER && geteuid()) {
			print_message("it takes root to try a holder of another user\n");
			h->ops->close(h);
			continue;
		}
		fake = fake_holder(kind, &listener);
		if (kind == FAKE_OF_ANOTHER_USER)
			usleep(100000);
		rc = h->ops->fetch(h, &fds, &n, &from_kexec);
		if (rc != expected[kind])
			fail_msg("broken holder %d: fetch gave %d, not %d: %s", kind, rc,
				 expected[kind], pv_last_error());
		assert_non_null(strstr(pv_last_error(), STORE));
		/* No other is started in its place, and the store is not empty. */
		assert_true(test_keep(h, 0, 1) < 0 || kind == FAKE_SAYS_ZERO);
		h->ops->close(h);
		kill(fake, SIGKILL);
		waitpid(fake, NULL, 0);
		close(listener);
		assert_int_equal(test_open_files(getpid()), files);
		unlink(path);
	}
}

/** Stopped: it is waited for, not for ever, and in step again when it goes on. */
static void hanging_holder(void **state)
{
	static const uint64_t numbers[3] = {7, 8, 9};
	struct pvi_handover *h, *other;
	int64_t start = now_ms();
	pid_t pid;

	h = with_two(&pid);
	assert_int_equal(kill(pid, SIGSTOP), 0);
	assert_int_equal(test_keep(h, 2, 1), -ETIMEDOUT);
	assert_in_range(now_ms() - start, PVI_HOLDER_WAIT_MS, PVI_HOLDER_WAIT_MS + 2000);
	assert_non_null(strstr(pv_last_error(), "has not answered"));
	/* Now it reads what nobody waits for any more. */
	assert_int_equal(kill(pid, SIGCONT), 0);
	assert_int_equal(test_keep(h, 2, 9), 0);
	other = test_open();
	test_expect(other, 3, numbers);
	other->ops->close(other);
	assert_int_equal(h->ops->drop(h, 2), 0);
	check_unharmed(h, pid);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, test_setup, test_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(malformed_messages),    CASE(out_of_date_requests), CASE(unfit_descriptors),
		CASE(unfit_reserved_tokens), CASE(random_messages),	 CASE(silent_clients),
		CASE(deaf_client),	     CASE(not_for_other_users),	 CASE(broken_holders),
		CASE(hanging_holder),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
