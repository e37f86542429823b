/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Several users at one agent: nobody gets what is not his. Needs root, to be these users.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "support.h"

static int users_setup(void **state)
{
	if (geteuid() != 0) {
		print_error("not root: other users cannot be tried\n");
		return -1;
	}
	return agent_setup(state);
}

/** The store of this user has one descriptor, of this number. */
static void keep_as(uint32_t uid, uint64_t number)
{
	pid_t child = test_fork();

	if (child == 0) {
		struct pvi_handover *h;

		become(uid);
		h = test_open();
		TEST_CHILD_CHECK(test_keep(h, 0, number) == 0);
		_exit(0);
	}
	test_join(child);
}

/** Two stores of one name, one of each user. */
static void names_are_each_users_own(void **state)
{
	static const uint64_t numbers[2] = {65, 66};
	struct pv_agent_entry *list;
	uint32_t n;

	agent_start(NULL);
	keep_as(OTHER_USER, 65);
	keep_as(THIRD_USER, 66);
	for (unsigned int i = 0; i < 2; i++) {
		pid_t child = test_fork();

		if (child == 0) {
			struct pvi_handover *h;

			become(i ? THIRD_USER : OTHER_USER);
			h = test_open();
			test_expect(h, 1, &numbers[i]);
			TEST_CHILD_CHECK(pv_agent_list(agent_path, &list, &n) == 0);
			TEST_CHILD_CHECK(n == 1 && list[0].uid == geteuid());
			_exit(0);
		}
		test_join(child);
	}
	/* Root sees both, and may look into them. */
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, 2);
	assert_int_equal(list[0].uid, THIRD_USER);
	assert_int_equal(list[1].uid, OTHER_USER);
	free(list);
	test_options.agent_owner = PV_OWNER(OTHER_USER);
	{
		struct pvi_handover *h = test_open();

		test_expect(h, 1, numbers);
		h->ops->close(h);
	}
	assert_int_equal(pv_agent_drop(agent_path, OTHER_USER, STORE, false), 0);
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, 1);
	free(list);
}

/** What another user gets by every request there is: nothing, and nothing changes. */
static void strangers_get_nothing(void **state)
{
	static const uint64_t numbers[1] = {65};
	struct pvi_handover *h;
	pid_t child;

	agent_start(NULL);
	keep_as(OTHER_USER, 65);
	child = test_fork();
	if (child == 0) {
		become(THIRD_USER);
		TEST_CHILD_CHECK(bound(OTHER_USER) == -EACCES);
		TEST_CHILD_CHECK(bound(0) == -EACCES);
		TEST_CHILD_CHECK(pv_agent_drop(agent_path, OTHER_USER, STORE, true) == -ENOENT);
		TEST_CHILD_CHECK(pv_agent_mode(agent_path, OTHER_USER, STORE, 0644) == -ENOENT);
		TEST_CHILD_CHECK(pv_agent_prepare(agent_path, OTHER_USER, STORE, 10) == -ENOENT);
		TEST_CHILD_CHECK(pv_agent_cancel(agent_path, OTHER_USER, STORE, 10) == -ENOENT);
		TEST_CHILD_CHECK(pv_agent_finish(agent_path, OTHER_USER, STORE) == -ENOENT);
		test_options.agent_owner = PV_OWNER(OTHER_USER);
		h = test_open();
		TEST_CHILD_CHECK(test_keep(h, 0, 9) == -EACCES);
		TEST_CHILD_CHECK(h->ops->forget(h) == -EACCES);
		_exit(0);
	}
	test_join(child);
	test_options.agent_owner = PV_OWNER(OTHER_USER);
	h = test_open();
	test_expect(h, 1, numbers);
	h->ops->close(h);
}

/** With the owner's leave others may look, by descriptors that are open for reading. */
static void readers_read(void **state)
{
	struct pv_options options;
	struct pv_store *s;
	int ready[2], done[2];
	char byte = 0;
	pid_t child;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	assert_int_equal(pipe2(done, O_CLOEXEC), 0);
	agent_start(NULL);
	child = test_fork();
	if (child == 0) {
		become(OTHER_USER);
		options = test_options;
		options.flags = PV_CREATE;
		TEST_CHILD_CHECK(pv_open(STORE, &options, &s) == 0);
		TEST_CHILD_CHECK(pv_close(s) == 0);
		TEST_CHILD_CHECK(pv_agent_mode(agent_path, PV_AGENT_SELF, STORE, 0666) == -EINVAL);
		TEST_CHILD_CHECK(pv_agent_mode(agent_path, PV_AGENT_SELF, STORE, 0604) == 0);
		_exit(0);
	}
	test_join(child);
	child = test_fork();
	if (child == 0) {
		int sock, fd = test_memfd(1);
		struct pvi_fd *fds;
		struct pvi_handover *h;
		unsigned int n;
		bool from_kexec;

		become(THIRD_USER);
		test_options.agent_owner = PV_OWNER(OTHER_USER);
		options = test_options;
		TEST_CHILD_CHECK(pv_open(STORE, &options, &s) < 0); /* for writing */
		options.flags = PV_RDONLY;
		TEST_CHILD_CHECK(pv_open(STORE, &options, &s) == 0);
		TEST_CHILD_CHECK(pv_close(s) == 0);
		h = test_open();
		TEST_CHILD_CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == 0);
		for (unsigned int i = 0; i < n; i++)
			TEST_CHILD_CHECK((fcntl(fds[i].fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
		sock = bound(OTHER_USER);
		TEST_CHILD_CHECK(sock >= 0);
		TEST_CHILD_CHECK(holder_request(sock, HOLDER_KEEP, 0, 0, &fd, 1) == -EACCES);
		TEST_CHILD_CHECK(holder_request(sock, HOLDER_DROP, 0, 0, NULL, 0) == -EACCES);
		TEST_CHILD_CHECK(holder_request(sock, HOLDER_FORGET, 0, 0, NULL, 0) == -EACCES);
		TEST_CHILD_CHECK(pv_agent_drop(agent_path, OTHER_USER, STORE, true) == -EACCES);
		TEST_CHILD_CHECK(pv_agent_mode(agent_path, OTHER_USER, STORE, 0644) == -EACCES);
		/* The leave is taken back, also from whoever is connected. */
		TEST_CHILD_CHECK(holder_request(sock, HOLDER_STATUS, 0, 0, NULL, 0) == 0);
		TEST_CHILD_CHECK(write(ready[1], &byte, 1) == 1);
		TEST_CHILD_CHECK(read(done[0], &byte, 1) == 1);
		TEST_CHILD_CHECK(holder_request(sock, HOLDER_STATUS, 0, 0, NULL, 0) == -EACCES);
		_exit(0);
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(pv_agent_mode(agent_path, OTHER_USER, STORE, 0600), 0);
	assert_int_equal(write(done[1], &byte, 1), 1);
	test_join(child);
	for (unsigned int i = 0; i < 2; i++) {
		close(ready[i]);
		close(done[i]);
	}
}

/** One user at his limits is no other user's. */
static void quotas_are_each_users_own(void **state)
{
	pid_t child;
	int ready[2], done[2];
	char byte = 0;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	assert_int_equal(pipe2(done, O_CLOEXEC), 0);
	agent_start("--max-stores", "1", "--max-connections", "4", NULL);
	child = test_fork();
	if (child == 0) {
		int ended = 0;

		close(done[1]);
		become(OTHER_USER);
		TEST_CHILD_CHECK(test_keep(test_open(), 0, 1) == 0);
		TEST_CHILD_CHECK(test_keep(open_named("more"), 0, 1) == -EDQUOT);
		/* The agent has seen the end of those two for sure when it refuses one too many. */
		for (unsigned int i = 0; i < 12; i++)
			ended += bound(AGENT_UID_SELF) < 0;
		TEST_CHILD_CHECK(ended > 0);
		TEST_CHILD_CHECK(write(ready[1], &byte, 1) == 1);
		TEST_CHILD_CHECK(read(done[0], &byte, 1) == 0);
		_exit(0);
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	keep_as(THIRD_USER, 3);
	close(done[1]);
	test_join(child);
	close(done[0]);
	close(ready[0]);
	close(ready[1]);
}

/** What only claims to be an agent is told nothing. */
static void false_agents_are_recognised(void **state)
{
	pid_t child, fake;
	char byte = 0;
	int ready[2];

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	fake = test_fork();
	if (fake == 0) {
		struct sockaddr_storage storage;
		int fd, listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);

		memset(&storage, 0, sizeof(storage));
		storage.ss_family = AF_UNIX;
		memcpy((char *)&storage + 2, agent_path, strlen(agent_path));
		TEST_CHILD_CHECK(bind(listener, (struct sockaddr *)&storage, 110) == 0);
		TEST_CHILD_CHECK(chmod(agent_path, 0666) == 0);
		become(OTHER_USER);
		TEST_CHILD_CHECK(listen(listener, 5) == 0);
		TEST_CHILD_CHECK(write(ready[1], &byte, 1) == 1);
		while ((fd = accept(listener, NULL, NULL)) >= 0) {
		}
		_exit(0);
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	child = test_fork();
	if (child == 0) {
		become(THIRD_USER);
		TEST_CHILD_CHECK(test_keep(test_open(), 0, 1) == -EACCES);
		TEST_CHILD_CHECK(strstr(pv_last_error(), "no agent to be trusted"));
		_exit(0);
	}
	test_join(child);
	kill(fake, 9);
	waitpid(fake, NULL, 0);
	close(ready[0]);
	close(ready[1]);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, users_setup, agent_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(names_are_each_users_own),
		CASE(strangers_get_nothing),
		CASE(readers_read),
		CASE(quotas_are_each_users_own),
		CASE(false_agents_are_recognised),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
