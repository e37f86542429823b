/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the agent's end leaves: by SIGHUP everything, by SIGTERM nothing is lost or it does not end,
 * by SIGKILL what systemd's descriptor store has (played by the test), or what the applications
 * hand over again.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "support.h"

/* ---- by itself ---- */

static void restart_keeps_everything(void **state)
{
	static const uint64_t numbers[3] = {5, 6, 7};
	struct pv_agent_entry *list;
	struct pvi_handover *h, *other;
	uint32_t n;
	unsigned int files;
	char name[16];
	pid_t pid;

	agent_start(NULL);
	pid = agent_pid;
	h = test_open();
	assert_int_equal(test_keep(h, 0, 5), 0);
	assert_int_equal(test_keep(h, 1, 6), 0);
	for (unsigned int i = 0; i < 20; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		other = open_named(name);
		assert_int_equal(test_keep(other, 0, i), 0);
		other->ops->close(other);
	}
	assert_int_equal(pv_agent_mode(agent_path, PV_AGENT_SELF, "s3", 0640), 0);
	files = test_open_files_at_rest(pid);
	for (unsigned int i = 0; i < 3; i++)
		agent_restart();
	assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
	assert_true(test_open_files_become(pid, files));
	/* Whoever was in step is so still. */
	assert_int_equal(h->ops->changed(h), 0);
	assert_int_equal(h->ops->check(h), 0);
	assert_int_equal(test_keep(h, 2, 7), 0);
	test_expect(h, 3, numbers);
	h->ops->close(h);
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, 21);
	assert_string_equal(list[13].name, "s3");
	assert_int_equal(list[13].mode, 0640);
	assert_true(list[13].claimed);
	free(list);
}

/** A new program that would not start is not executed. */
static void restart_is_tried_first(void **state)
{
	static const uint64_t numbers[1] = {5};
	struct pvi_handover *h;
	char path[128];
	FILE *f;

	snprintf(path, sizeof(path), "%s.conf", agent_path);
	f = fopen(path, "we");
	assert_non_null(f);
	assert_int_equal(fclose(f), 0);
	agent_start("--config", path, NULL);
	h = test_open();
	assert_int_equal(test_keep(h, 0, 5), 0);
	f = fopen(path, "we");
	assert_non_null(f);
	fprintf(f, "nonsense\n");
	assert_int_equal(fclose(f), 0);
	assert_int_equal(kill(agent_pid, SIGHUP), 0);
	usleep(300000);
	test_expect(h, 1, numbers);
	h->ops->close(h);
}

static void sigterm_loses_nothing(void **state)
{
	static const uint64_t numbers[1] = {5};
	struct pvi_handover *h;

	agent_start(NULL);
	agent_end(SIGTERM); /* it keeps nothing */
	assert_int_not_equal(access(agent_path, F_OK), 0);
	agent_start(NULL);
	h = test_open();
	assert_int_equal(test_keep(h, 0, 5), 0);
	assert_int_equal(kill(agent_pid, SIGTERM), 0);
	usleep(200000);
	assert_int_equal(waitpid(agent_pid, NULL, WNOHANG), 0);
	test_expect(h, 1, numbers);
	agent_end(SIGKILL);
	agent_start("--force", NULL);
	assert_int_equal(h->ops->check(h), 1);
	agent_end(SIGTERM);
	/* `auto` is not to take this for a machine without an agent. */
	assert_int_equal(access(agent_path, F_OK), 0);
	h->ops->close(h);
}

/** A store that a process has open outlives any agent; the next check hands it over. */
static void death_is_made_good(void **state)
{
	struct pv_store *s;
	struct pv_agent_entry *list;
	uint32_t n;

	agent_start(NULL);
	test_options.flags = PV_CREATE;
	assert_int_equal(pv_open(STORE, &test_options, &s), 0);
	assert_int_equal(pv_handover_check(s), 0);
	agent_end(SIGTERM); /* allowed, for it is open */
	assert_int_equal(pv_handover_check(s), -ECONNREFUSED);
	agent_start(NULL);
	assert_int_equal(pv_handover_check(s), 1);
	assert_int_equal(pv_handover_check(s), 0);
	agent_end(SIGKILL);
	agent_start(NULL);
	assert_int_equal(pv_handover_check(s), 1);
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, 1);
	assert_true(list[0].open);
	assert_int_equal(list[0].descriptors, 2);
	free(list);
	assert_int_equal(pv_close(s), 0);
	test_options.flags = 0;
	assert_int_equal(pv_open(STORE, &test_options, &s), 0);
	assert_int_equal(pv_close(s), 0);
}

/* ---- with a guard ---- */

/** The process that answers; agent_pid is the guard. */
static pid_t answering(void)
{
	struct holder_msg m = {
		.magic = HOLDER_MAGIC, .version = HOLDER_VERSION, .op = HOLDER_STATUS};
	int sock = bound(AGENT_UID_SELF);

	assert_true(sock >= 0);
	assert_int_equal(send(sock, &m, sizeof(m), MSG_NOSIGNAL), sizeof(m));
	assert_int_equal(recv(sock, &m, sizeof(m), 0), sizeof(m));
	close(sock);
	return (pid_t)m.token;
}

/** Kills the agent and waits for the next one. */
static void kill_guarded(void)
{
	struct pv_agent_entry *list;
	pid_t pid = answering();
	uint32_t n;
	int rc = -1;

	assert_int_not_equal(pid, agent_pid);
	assert_int_equal(kill(pid, SIGKILL), 0);
	/* The socket is there meanwhile. A connection that the dead one had not taken yet, ends. */
	for (int tries = 0; tries < 50 && rc; tries++) {
		rc = pv_agent_list(agent_path, &list, &n);
		assert_true(rc == 0 || rc == -ECONNRESET);
	}
	assert_int_equal(rc, 0);
	free(list);
	assert_int_not_equal(answering(), pid);
}

/** Nobody but the agent has the store, and the agent is killed, and nothing is lost. */
static void guard_starts_another(void **state)
{
	uint64_t numbers[3] = {5, 6, 7};
	struct pv_agent_entry *list;
	struct pvi_handover *h;
	uint32_t n;
	int status;
	pid_t pid;

	agent_start("--guard", NULL);
	assert_int_equal(agent_status("--guard", NULL), 1); /* another one */
	h = test_open();
	for (uint64_t i = 0; i < 3; i++)
		assert_int_equal(test_keep(h, i, numbers[i]), 0);
	h->ops->close(h);
	assert_int_equal(pv_agent_mode(agent_path, PV_AGENT_SELF, STORE, 0640), 0);
	kill_guarded();
	h = test_open();
	test_expect(h, 3, numbers);
	/* What changes is guarded, too. */
	assert_int_equal(h->ops->drop(h, 2), 0);
	numbers[1] = 9;
	assert_int_equal(test_keep(h, 1, numbers[1]), 0);
	h->ops->close(h);
	kill_guarded();
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, 1);
	assert_int_equal(list[0].mode, 0640);
	assert_int_equal(list[0].descriptors, 2);
	free(list);
	h = test_open();
	test_expect(h, 2, numbers);
	/* Signals reach the agent: this one it refuses, ... */
	pid = answering();
	assert_int_equal(kill(agent_pid, SIGTERM), 0);
	usleep(200000);
	assert_int_equal(waitpid(agent_pid, NULL, WNOHANG), 0);
	/* ... by this one it executes itself anew. */
	agent_restart();
	assert_int_equal(answering(), pid);
	kill_guarded();
	test_expect(h, 2, numbers);
	assert_int_equal(h->ops->forget(h), 0);
	h->ops->close(h);
	assert_int_equal(kill(agent_pid, SIGTERM), 0);
	assert_int_equal(waitpid(agent_pid, &status, 0), agent_pid);
	agent_pid = 0;
	assert_int_equal(status, 0);
}

/** What systemd does with a service's messages. */
/* ---- with systemd ---- */

enum { STORED_MAX = 64 };

struct manager {
	char path[110];
	int sock;
	struct {
		char name[160];
		int fd;
	} stored[STORED_MAX];
	unsigned int n;
	unsigned int barriers;
	bool ready, stopping;
};

static void manager_open(struct manager *m)
{
	struct sockaddr_un sun = {.sun_family = AF_UNIX};

	memset(m, 0, sizeof(*m));
	snprintf(m->path, sizeof(m->path), "%.90s.notify", agent_path);
	strcpy(sun.sun_path, m->path);
	m->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(m->sock, (struct sockaddr *)&sun, sizeof(sun)), 0);
}

static void manager_forget(struct manager *m, const char *name)
{
	for (unsigned int i = 0; i < m->n;) {
		if (strcmp(m->stored[i].name, name) != 0) {
			i++;
			continue;
		}
		close(m->stored[i].fd);
		m->stored[i] = m->stored[--m->n];
	}
}

/** Reads what has been sent, until nothing comes for so long. */
static void manager_run(struct manager *m, int ms)
{
	struct pollfd p = {m->sock, POLLIN, 0};

	while (poll(&p, 1, ms) > 0) {
		union {
			struct cmsghdr head;
			char bytes[CMSG_SPACE(sizeof(int))];
		} control;
		char text[512];
		struct iovec iov = {text, sizeof(text) - 1};
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = &control,
				     .msg_controllen = sizeof(control)};
		ssize_t n = recvmsg(m->sock, &msg, MSG_CMSG_CLOEXEC);
		const char *name;
		int fd = -1;

		assert_true(n > 0);
		text[n] = 0;
		if (msg.msg_controllen)
			memcpy(&fd, CMSG_DATA(&control.head), sizeof(fd));
		name = strstr(text, "FDNAME=");
		if (strncmp(text, "FDSTORE=1\n", 10) == 0) {
			assert_true(fd >= 0 && name && m->n < STORED_MAX);
			snprintf(m->stored[m->n].name, sizeof(m->stored[0].name), "%s", name + 7);
			m->stored[m->n++].fd = fd;
		} else if (strncmp(text, "FDSTOREREMOVE=1\n", 16) == 0) {
			manager_forget(m, name + 7);
		} else if (strcmp(text, "BARRIER=1") == 0) {
			m->barriers++;
			close(fd);
		}
		m->ready |= strstr(text, "READY=1") != NULL;
		m->stopping |= strstr(text, "STOPPING=1") != NULL;
	}
}

static void manager_start(struct manager *m, bool shuffled)
{
	char names[4096] = "";
	int fds[STORED_MAX];

	for (unsigned int i = 0; i < m->n; i++) {
		unsigned int at = shuffled ? m->n - 1 - i : i;

		fds[i] = m->stored[at].fd;
		strcat(names, i ? ":" : "");
		strcat(names, m->stored[at].name);
	}
	agent_start_systemd(m->path, fds, m->n, names, NULL);
	manager_run(m, 20);
	assert_true(m->ready);
}

static void manager_close(struct manager *m)
{
	while (m->n)
		close(m->stored[--m->n].fd);
	close(m->sock);
}

static void systemd_keeps_it_all(void **state)
{
	static const uint64_t numbers[3] = {5, 6, 8};
	struct pv_agent_entry *list;
	struct pvi_handover *h;
	struct manager m;
	uint32_t n;

	manager_open(&m);
	manager_start(&m, false);
	h = test_open();
	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(test_keep(h, i, 5 + i), 0);
	manager_run(&m, 20);
	assert_int_equal(m.n, 4);
	assert_int_equal(h->ops->drop(h, 3), 0);
	assert_int_equal(test_keep(h, 2, 8), 0);
	assert_int_equal(pv_agent_mode(agent_path, PV_AGENT_SELF, STORE, 0640), 0);
	h->ops->close(h);
	manager_run(&m, 20);
	assert_int_equal(m.n, 3);
	/* Killed at any time, nothing is lost; in whatever order it comes back. */
	agent_end(SIGKILL);
	manager_start(&m, true);
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, 1);
	assert_int_equal(list[0].mode, 0640);
	assert_false(list[0].claimed);
	free(list);
	h = test_open();
	test_expect(h, 3, numbers);
	manager_run(&m, 20);
	/* A regular end waits for the barrier. */
	assert_int_equal(kill(agent_pid, SIGTERM), 0);
	usleep(100000);
	assert_int_equal(waitpid(agent_pid, NULL, WNOHANG), 0);
	manager_run(&m, 200);
	assert_true(m.stopping);
	assert_int_equal(m.barriers, 1);
	assert_int_equal(waitpid(agent_pid, NULL, 0), agent_pid);
	agent_pid = 0;
	manager_start(&m, false);
	test_expect(h, 3, numbers);
	/* Dropped here, dropped there. */
	assert_int_equal(h->ops->forget(h), 0);
	manager_run(&m, 20);
	h->ops->close(h);
	manager_close(&m);
}

/** Names that nobody here has given, and things that are no memfds. */
static void what_is_not_ours_is_removed(void **state)
{
	struct pv_agent_entry *list;
	struct manager m;
	uint32_t n;
	int fds[3];

	manager_open(&m);
	fds[0] = test_memfd(1);
	fds[1] = test_memfd(2);
	fds[2] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	agent_start_systemd(m.path, fds, 3, "pv.0.0.600.00.store:other:pv.0.0.600.0.store", NULL);
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, 0);
	for (unsigned int i = 0; i < 3; i++)
		close(fds[i]);
	manager_run(&m, 20);
	manager_close(&m);
}

/** What nobody claims is dropped after the time that was set; what is claimed, is not. */
static void unclaimed_stores_are_dropped(void **state)
{
	static const uint64_t numbers[1] = {1};
	struct pv_agent_entry *list;
	struct pvi_handover *h;
	struct manager m;
	uint32_t n;
	int fds[2];
	char names[160];

	snprintf(names, sizeof(names), "pv.%u.%u.600.0.orphan:pv.%u.%u.600.0.claimed", geteuid(),
		 getegid(), geteuid(), getegid());
	manager_open(&m);
	fds[0] = test_memfd(0);
	fds[1] = test_memfd(1);
	agent_start_systemd(m.path, fds, 2, names, "--claim-timeout", "1", NULL);
	close(fds[0]);
	close(fds[1]);
	h = open_named("claimed");
	test_expect(h, 1, numbers);
	usleep(2500000);
	test_expect(h, 1, numbers);
	h->ops->close(h);
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, 1);
	assert_string_equal(list[0].name, "claimed");
	free(list);
	manager_close(&m);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, agent_setup, agent_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(restart_keeps_everything),	    CASE(restart_is_tried_first),
		CASE(sigterm_loses_nothing),	    CASE(death_is_made_good),
		CASE(systemd_keeps_it_all),	    CASE(what_is_not_ours_is_removed),
		CASE(unclaimed_stores_are_dropped), CASE(guard_starts_another),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
