/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Preparing and cancelling through the agent: who does it, who waits for whom, and what becomes of
 * it when somebody does not answer. The agent is the one of fake_luo.c, and the growth of a store
 * that is prepared preserves nothing but is counted here.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "support.h"

static unsigned int joined;

int __wrap_pvi_luo_preserve(int session, uint64_t token, int fd);
int __wrap_pvi_luo_preserve(int session, uint64_t token, int fd)
{
	joined++;
	return 0;
}

static int barrier_setup(void **state)
{
	static char path[128];
	int rc = agent_setup(state);

	snprintf(path, sizeof(path), "%s.luo", agent_path);
	setenv("FAKE_LUO_FILE", path, 1);
	test_options.flags = PV_CREATE;
	test_options.segment_bytes = 1u << 20;
	joined = 0;
	return rc;
}

static void faking(unsigned int ms, int error, int create_error)
{
	FILE *f = fopen(getenv("FAKE_LUO_FILE"), "we");

	assert_non_null(f);
	fprintf(f, "%u %d %d\n", ms, error, create_error);
	assert_int_equal(fclose(f), 0);
}

static void preserving(unsigned int ms, int error)
{
	faking(ms, error, 0);
}

static struct pv_agent_entry entry(const char *name)
{
	struct pv_agent_entry *list, found = {0};
	uint32_t n;
	int rc;

	/* The agent may execute itself anew just now. */
	do
		rc = pv_agent_list(agent_path, &list, &n);
	while (rc == -ECONNRESET);
	assert_int_equal(rc, 0);
	for (uint32_t i = 0; i < n; i++)
		if (strcmp(list[i].name, name) == 0)
			found = list[i];
	free(list);
	return found;
}

static struct pv_store *open_store(void)
{
	struct pv_store *s;

	if (pv_open(STORE, &test_options, &s))
		fail_msg("open: %s", pv_last_error());
	return s;
}

static int64_t ms_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int prepare(const char *name, uint32_t ms)
{
	return pv_agent_prepare(agent_path, PV_AGENT_SELF, name, ms);
}

static int cancel(const char *name, uint32_t ms)
{
	return pv_agent_cancel(agent_path, PV_AGENT_SELF, name, ms);
}

static enum pv_handover_state state_of(struct pv_store *s)
{
	struct pv_info info;

	pv_info_get(s, &info);
	return info.state;
}

/* ---- nobody has it open ---- */

static void closed_store_is_prepared_at_once(void **state)
{
	struct pv_store *s;

	agent_start(NULL);
	assert_int_equal(prepare(STORE, 100), -ENOENT);
	assert_int_equal(pv_close(open_store()), 0);
	assert_int_equal(prepare(STORE, 100), 0);
	assert_true(entry(STORE).prepared);
	assert_int_equal(entry(STORE).descriptors, 4); /* index, segment, manifest, session */
	assert_int_equal(prepare(STORE, 100), 0);
	assert_int_equal(cancel(STORE, 100), 0);
	assert_false(entry(STORE).prepared);
	assert_int_equal(entry(STORE).descriptors, 2);
	assert_int_equal(cancel(STORE, 100), 0);
	/* Whoever opens one that is prepared goes on with that. */
	assert_int_equal(prepare(STORE, 100), 0);
	s = open_store();
	assert_int_equal(state_of(s), PV_STATE_PREPARED);
	assert_int_equal(pv_handover_cancel(s), 0);
	assert_false(entry(STORE).prepared);
	assert_int_equal(pv_close(s), 0);
	assert_int_equal(pv_agent_finish(agent_path, PV_AGENT_SELF, STORE), 0);
}

static void failure_is_told(void **state)
{
	agent_start(NULL);
	assert_int_equal(pv_close(open_store()), 0);
	preserving(0, EFBIG);
	assert_int_equal(prepare(STORE, 100), -ENOSPC);
	assert_false(entry(STORE).prepared);
	assert_int_equal(entry(STORE).descriptors, 2);
	/* A session of this name that somebody else has. */
	faking(0, 0, EEXIST);
	assert_int_equal(prepare(STORE, 100), -EEXIST);
	assert_false(entry(STORE).prepared);
	assert_int_equal(entry(STORE).descriptors, 2);
	preserving(0, 0);
	assert_int_equal(prepare(STORE, 100), 0);
}

/* ---- the owner himself ---- */

static void owner_prepares_through_the_agent(void **state)
{
	static const struct pv_typedef def = PV_TYPE_BYTES("bytes", 1);
	struct pv_store *s;
	pv_type_t type;
	void *large;

	agent_start(NULL);
	s = open_store();
	preserving(0, EBUSY);
	assert_int_equal(pv_handover_prepare(s), -EBUSY);
	assert_int_equal(state_of(s), PV_STATE_SERVING);
	preserving(0, 0);
	assert_int_equal(pv_handover_prepare(s), 0);
	assert_int_equal(state_of(s), PV_STATE_PREPARED);
	assert_true(entry(STORE).prepared);
	/* A segment that is added joins the session, in this process. */
	assert_int_equal(joined, 0);
	assert_int_equal(pv_type_register(s, &def, &type), 0);
	assert_int_equal(pv_reserve(s, type, 3u << 20, &large), 0);
	assert_int_equal(joined, 1);
	/* All of it outlives a restart of the agent. */
	agent_restart();
	assert_int_equal(pv_handover_check(s), 0);
	assert_true(entry(STORE).prepared);
	assert_int_equal(pv_handover_cancel(s), 0);
	assert_int_equal(state_of(s), PV_STATE_SERVING);
	assert_false(entry(STORE).prepared);
	assert_int_equal(pv_close(s), 0);
}

/* ---- the barrier ---- */

struct owner {
	struct pv_store *store;
	atomic_bool stop;
	int worst;
};

static void *check_now_and_then(void *arg)
{
	struct owner *o = arg;

	while (!atomic_load(&o->stop)) {
		int rc = pv_handover_check(o->store);

		o->worst = rc < o->worst ? rc : o->worst;
		usleep(20000);
	}
	return NULL;
}

static void owner_is_asked(void **state)
{
	struct owner o = {0};
	pthread_t thread;

	agent_start(NULL);
	o.store = open_store();
	assert_int_equal(pthread_create(&thread, NULL, check_now_and_then, &o), 0);
	for (unsigned int i = 0; i < 3; i++) {
		assert_int_equal(prepare(STORE, 5000), 0);
		/* The reply may be here before the owner has looked at his. */
		for (unsigned int k = 0; k < 200 && state_of(o.store) != PV_STATE_PREPARED; k++)
			usleep(10000);
		assert_int_equal(state_of(o.store), PV_STATE_PREPARED);
		assert_true(entry(STORE).prepared);
		assert_int_equal(cancel(STORE, 5000), 0);
		assert_false(entry(STORE).prepared);
	}
	preserving(0, EIO);
	assert_int_equal(prepare(STORE, 5000), -EIO);
	atomic_store(&o.stop, true);
	pthread_join(thread, NULL);
	assert_int_equal(o.worst, 0);
	assert_int_equal(pv_close(o.store), 0);
}

static void silent_owner_blocks_nobody(void **state)
{
	struct pvi_handover *other, *third;
	struct pv_store *s;
	int64_t begin;
	pid_t child;

	agent_start(NULL);
	other = open_named("other");
	assert_int_equal(test_keep(other, 0, 1), 0);
	s = open_store();
	child = test_fork();
	if (child == 0) {
		begin = ms_now();
		TEST_CHILD_CHECK(prepare(STORE, 700) == -ETIMEDOUT);
		TEST_CHILD_CHECK(ms_now() - begin >= 700);
		_exit(0);
	}
	usleep(200000);
	/* Meanwhile. */
	assert_int_equal(prepare(STORE, 100), -EBUSY);
	begin = ms_now();
	assert_int_equal(prepare("other", 5000), 0);
	third = open_named("third");
	assert_int_equal(test_keep(third, 0, 1), 0);
	third->ops->close(third);
	test_join(child);
	assert_false(entry(STORE).prepared);
	assert_true(entry("other").prepared);
	/* He is not asked for what nobody waits for any more. */
	assert_int_equal(pv_handover_check(s), 0);
	assert_false(entry(STORE).prepared);
	assert_int_equal(pv_close(s), 0);
	other->ops->close(other);
}

/** While a worker is at it, the store cannot be dropped, and a restart waits. */
static void slow_preserving_blocks_nobody(void **state)
{
	struct pvi_handover *other;
	pid_t child;

	agent_start(NULL);
	assert_int_equal(pv_close(open_store()), 0);
	preserving(700, 0);
	child = test_fork();
	if (child == 0) {
		TEST_CHILD_CHECK(prepare(STORE, 100) == 0);
		_exit(0);
	}
	usleep(150000);
	other = open_named("other");
	assert_int_equal(test_keep(other, 0, 1), 0);
	assert_int_equal(waitpid(child, NULL, WNOHANG), 0); /* is still at it */
	other->ops->close(other);
	assert_int_equal(pv_agent_drop(agent_path, PV_AGENT_SELF, STORE, true), -EBUSY);
	assert_int_equal(kill(agent_pid, SIGHUP), 0);
	test_join(child);
	for (unsigned int i = 0; i < 100 && !entry(STORE).prepared; i++)
		usleep(10000);
	assert_true(entry(STORE).prepared);
}

static void owner_that_dies_is_no_obstacle(void **state)
{
	int ready[2];
	char byte = 0;
	pid_t child;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	agent_start(NULL);
	child = test_fork();
	if (child == 0) {
		open_store();
		TEST_CHILD_CHECK(write(ready[1], &byte, 1) == 1);
		usleep(300000);
		raise(SIGKILL);
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(prepare(STORE, 20000), 0);
	assert_true(entry(STORE).prepared);
	waitpid(child, NULL, 0);
	close(ready[0]);
	close(ready[1]);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, barrier_setup, agent_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(closed_store_is_prepared_at_once), CASE(failure_is_told),
		CASE(owner_prepares_through_the_agent), CASE(owner_is_asked),
		CASE(silent_owner_blocks_nobody),	CASE(slow_preserving_blocks_nobody),
		CASE(owner_that_dies_is_no_obstacle),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
