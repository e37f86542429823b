/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

enum { ARGUMENTS = 16 };

char agent_path[100];
pid_t agent_pid;

int agent_setup(void **state)
{
	if (test_setup(state))
		return -1;
	/* Other users of the test come by here. */
	chmod(test_options.runtime_dir, 0755);
	snprintf(agent_path, sizeof(agent_path), "%s/agent.socket", test_options.runtime_dir);
	test_options.handover = PV_HANDOVER_AGENT;
	test_options.agent_socket = agent_path;
	test_options.runtime_dir = NULL;
	agent_pid = 0;
	return 0;
}

int agent_teardown(void **state)
{
	if (agent_pid) {
		kill(agent_pid, SIGKILL);
		waitpid(agent_pid, NULL, 0);
	}
	return test_teardown(state);
}

static const char *program(void)
{
	const char *path = getenv("TEST_AGENT");

	if (!path)
		fail_msg("TEST_AGENT must name the agent");
	return path;
}

static void wait_until_it_serves(void)
{
	struct pv_agent_entry *list;
	uint32_t n;
	int rc = -1;

	for (int tries = 0; tries < 500 && rc; tries++) {
		rc = pv_agent_list(agent_path, &list, &n);
		if (rc == 0)
			free(list);
		else if (waitpid(agent_pid, NULL, WNOHANG) != 0)
			fail_msg("the agent has ended");
		else
			usleep(10000);
	}
	if (rc)
		fail_msg("the agent does not serve: %s", pv_last_error());
}

static char **arguments(const char *argument, va_list more)
{
	static char *argv[ARGUMENTS];
	static char option[] = "--socket";
	unsigned int n = 0;

	argv[n++] = (char *)(uintptr_t)program();
	argv[n++] = option;
	argv[n++] = agent_path;
	for (; argument && n < ARGUMENTS - 1; argument = va_arg(more, const char *))
		argv[n++] = (char *)(uintptr_t)argument;
	argv[n] = NULL;
	return argv;
}

void agent_start(const char *argument, ...)
{
	va_list more;
	char **argv;

	va_start(more, argument);
	argv = arguments(argument, more);
	va_end(more);
	agent_pid = fork();
	assert_true(agent_pid >= 0);
	if (agent_pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execv(argv[0], argv);
		_exit(127);
	}
	wait_until_it_serves();
}

void agent_start_systemd(const char *notify, const int *fds, unsigned int nfds, const char *names,
			 const char *argument, ...)
{
	char number[16], **argv;
	va_list more;

	va_start(more, argument);
	argv = arguments(argument, more);
	va_end(more);
	agent_pid = fork();
	assert_true(agent_pid >= 0);
	if (agent_pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* First out of the way of each other, then where they belong; without O_CLOEXEC. */
		for (unsigned int i = 0; i < nfds; i++)
			if (dup2(fds[i], (int)(200 + i)) < 0)
				_exit(126);
		for (unsigned int i = 0; i < nfds; i++)
			if (dup2((int)(200 + i), (int)(3 + i)) < 0 || close((int)(200 + i)))
				_exit(126);
		setenv("NOTIFY_SOCKET", notify, 1);
		snprintf(number, sizeof(number), "%u", nfds);
		setenv("LISTEN_FDS", number, 1);
		snprintf(number, sizeof(number), "%d", getpid());
		setenv("LISTEN_PID", number, 1);
		setenv("LISTEN_FDNAMES", names, 1);
		execv(argv[0], argv);
		_exit(127);
	}
	wait_until_it_serves();
}

void agent_end(int signal)
{
	assert_int_equal(kill(agent_pid, signal), 0);
	assert_int_equal(waitpid(agent_pid, NULL, 0), agent_pid);
	agent_pid = 0;
}

int agent_status(const char *argument, ...)
{
	int status;
	va_list more;
	char **argv;
	pid_t pid;

	va_start(more, argument);
	argv = arguments(argument, more);
	va_end(more);
	pid = test_fork();
	if (pid == 0) {
		alarm(20);
		execv(argv[0], argv);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

void agent_restart(void)
{
	struct pollfd p;
	int sock;

	/* A connection that the old program has taken ends with it. */
	sock = bound(AGENT_UID_SELF);
	assert_true(sock >= 0);
	assert_int_equal(kill(agent_pid, SIGHUP), 0);
	p = (struct pollfd){sock, POLLIN, 0};
	assert_int_equal(poll(&p, 1, 10000), 1);
	close(sock);
	wait_until_it_serves();
}

void become(uint32_t uid)
{
	TEST_CHILD_CHECK(setgroups(0, NULL) == 0);
	TEST_CHILD_CHECK(setgid(uid) == 0);
	TEST_CHILD_CHECK(setuid(uid) == 0);
}

struct pvi_handover *open_named(const char *name)
{
	struct pvi_handover *h;

	if (pvi_handover_open(name, &test_options, &h))
		fail_msg("open: %s", pv_last_error());
	return h;
}

int bound(uint32_t uid)
{
	struct agent_msg m = {.op = AGENT_OPEN, .uid = uid, .store = STORE};
	int sock, rc = pvi_agent_connect(agent_path, &sock);

	if (rc)
		return rc;
	rc = pvi_agent_ask(sock, &m, 5000);
	if (rc == 0 && m.status == 0) {
		fcntl(sock, F_SETFL, 0);
		return sock;
	}
	close(sock);
	return rc ? rc : m.status;
}

int holder_request(int sock, uint16_t op, uint64_t token, uint32_t more, const int *fds,
		   unsigned int nfds)
{
	struct holder_msg m = {
		.magic = HOLDER_MAGIC, .version = HOLDER_VERSION, .op = HOLDER_STATUS};
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(16 * sizeof(int))];
	} control = {0};
	struct iovec iov = {&m, sizeof(m)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	struct timeval timeout = {5, 0};

	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	/* In step with what is kept, as a keeper is. */
	if (send(sock, &m, sizeof(m), MSG_NOSIGNAL) < 0 ||
	    recv(sock, &m, sizeof(m), 0) != sizeof(m))
		return -ECONNRESET;
	m.op = op;
	m.status = 0;
	m.token = token;
	m.more = more;
	if (nfds) {
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(&control.head), fds, nfds * sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
	}
	if (sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 || recv(sock, &m, sizeof(m), 0) != sizeof(m))
		return -ECONNRESET;
	return m.status;
}
