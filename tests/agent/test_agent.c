/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The contract of handover.h on the backend `agent`, whole stores on top of it, which backend
 * `auto` takes, and what the agent makes of clients that send rubbish, hang or want too much.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "luo_uapi.h"
#include "support.h"

/* ---- the contract ---- */

static void agent_outlives_kill(void **state)
{
	static const uint64_t numbers[3] = {10, 11, 12};
	struct pvi_handover *h;
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	agent_start(NULL);
	test_keep_and_die();
	h = test_open();
	assert_int_equal(h->ops->kind, PV_HANDOVER_AGENT);
	test_expect(h, 3, numbers);
	assert_int_equal(h->ops->changed(h), 0);
	assert_int_equal(h->ops->forget(h), 0);
	assert_int_equal(h->ops->changed(h), 1);
	assert_int_equal(h->ops->fetch(h, &fds, &n, &from_kexec), -ENOENT);
	h->ops->close(h);
}

/** Two processes create one store: segment first, index last, as the store does. */
static void creators_do_not_mix(void **state)
{
	static const uint64_t numbers[2] = {31, 30};
	struct pvi_handover *a, *b;

	agent_start(NULL);
	a = test_open();
	b = test_open();
	assert_int_equal(test_keep(a, 1, 30), 0);
	assert_int_equal(test_keep(b, 1, 40), -EBUSY);
	assert_int_equal(test_keep(a, 0, 31), 0);
	assert_int_equal(test_keep(b, 0, 41), -EBUSY);
	assert_int_equal(b->ops->drop(b, 0), 0); /* it has none */
	assert_int_equal(b->ops->check(b), 0);
	test_expect(a, 2, numbers);
	a->ops->close(a);
	b->ops->close(b);
}

/** None is there: an error at every call, for what it keeps is not known. */
static void no_agent_is_no_empty_store(void **state)
{
	struct pvi_handover *h = test_open();
	struct pv_store *s;
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	assert_int_equal(h->ops->fetch(h, &fds, &n, &from_kexec), -ECONNREFUSED);
	assert_non_null(strstr(pv_last_error(), "no agent is there"));
	assert_int_equal(test_keep(h, 0, 1), -ECONNREFUSED);
	assert_int_equal(h->ops->forget(h), -ECONNREFUSED);
	h->ops->close(h);
	test_options.flags = PV_CREATE;
	assert_int_equal(pv_open(STORE, &test_options, &s), -ECONNREFUSED);
}

/* ---- whole stores ---- */

/** Its only root, a number. */
static uint64_t *number_of(struct pv_store *s)
{
	static const struct pv_typedef def = PV_TYPE_PLAIN(uint64_t, "number", 1);
	uint64_t *number;
	pv_type_t type;

	if (pv_type_register(s, &def, &type) ||
	    pv_root(s, "number", type, sizeof(*number), (void **)&number, NULL)) {
		print_error("%s\n", pv_last_error());
		return NULL;
	}
	return number;
}

static void store_outlives_kill(void **state)
{
	struct pv_store *s;
	struct pv_info info;
	int status;
	pid_t child;

	agent_start(NULL);
	test_options.flags = PV_CREATE;
	test_options.segment_bytes = 1u << 20;
	child = test_fork();
	if (child == 0) {
		void *large;
		pv_type_t type;
		static const struct pv_typedef bytes = PV_TYPE_BYTES("bytes", 1);

		TEST_CHILD_CHECK(pv_open(STORE, &test_options, &s) == 0);
		TEST_CHILD_CHECK(number_of(s) != NULL);
		*number_of(s) = 4711;
		/* It grows by a segment. */
		TEST_CHILD_CHECK(pv_type_register(s, &bytes, &type) == 0);
		TEST_CHILD_CHECK(pv_reserve(s, type, 3u << 20, &large) == 0);
		TEST_CHILD_CHECK(pv_handover_check(s) == 0);
		raise(SIGKILL);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFSIGNALED(status));
	test_options.flags = 0;
	assert_int_equal(pv_open(STORE, &test_options, &s), 0);
	pv_info_get(s, &info);
	assert_int_equal(info.handover, PV_HANDOVER_AGENT);
	assert_true(info.segments >= 2);
	assert_int_equal(*number_of(s), 4711);
	/* Someone has it open: it is not dropped without force. */
	assert_int_equal(pv_agent_drop(agent_path, PV_AGENT_SELF, STORE, false), -EBUSY);
	assert_int_equal(pv_close(s), 0);
	assert_int_equal(pv_agent_drop(agent_path, PV_AGENT_SELF, STORE, false), 0);
	assert_int_equal(pv_open(STORE, &test_options, &s), -ENOENT);
}

/** A holder that has the store keeps it; otherwise the agent is taken, and if it is down, that is
 * said. */
static void auto_takes_the_agent(void **state)
{
	struct pvi_handover *h;
	char dir[64];

	snprintf(dir, sizeof(dir), "%.*s", (int)(strlen(agent_path) - strlen("/agent.socket")),
		 agent_path);
	setenv("PRESERVE_AGENT", agent_path, 1);
	test_options.handover = PV_HANDOVER_AUTO;
	test_options.agent_socket = NULL;
	/* The directory is chosen, the agent is not. */
	test_options.runtime_dir = dir;
	h = test_open();
	assert_int_not_equal(h->ops->kind, PV_HANDOVER_AGENT);
	h->ops->close(h);
	/* There is none. */
	test_options.runtime_dir = NULL;
	h = test_open();
	assert_int_not_equal(h->ops->kind, PV_HANDOVER_AGENT);
	h->ops->close(h);
	agent_start(NULL);
	h = test_open();
	assert_int_equal(h->ops->kind, PV_HANDOVER_AGENT);
	h->ops->close(h);
	agent_end(SIGKILL);
	h = test_open();
	assert_int_equal(h->ops->kind, PV_HANDOVER_AGENT);
	assert_int_equal(test_keep(h, 0, 1), -ECONNREFUSED);
	h->ops->close(h);
	unsetenv("PRESERVE_AGENT");
	/* Both are chosen: a store that a holder has stays there. */
	test_options.agent_socket = agent_path;
	test_options.runtime_dir = dir;
	assert_int_equal(chmod(dir, 0700), 0);
	test_options.handover = PV_HANDOVER_HOLDER;
	h = test_open();
	assert_int_equal(test_keep(h, 0, 1), 0);
	h->ops->close(h);
	test_options.handover = PV_HANDOVER_AUTO;
	h = test_open();
	assert_int_not_equal(h->ops->kind, PV_HANDOVER_AGENT);
	h->ops->close(h);
	h = open_named("another");
	assert_int_equal(h->ops->kind, PV_HANDOVER_AGENT);
	h->ops->close(h);
}

enum { STORES = 150 };

static void many_stores(void **state)
{
	struct pv_agent_entry *list;
	char name[32], before[64] = "";
	uint32_t n;
	struct pvi_handover *h;

	agent_start("--max-stores", "150", NULL);
	for (unsigned int i = 0; i < STORES; i++) {
		snprintf(name, sizeof(name), "store-%u", i * 7919 % 1000);
		h = open_named(name);
		assert_int_equal(test_keep(h, 0, i), 0);
		assert_int_equal(test_keep(h, 1, i), 0);
		h->ops->close(h);
	}
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, STORES);
	for (uint32_t i = 0; i < n; i++) {
		assert_true(strcmp(before, list[i].name) < 0);
		strcpy(before, list[i].name);
		assert_int_equal(list[i].uid, geteuid());
		assert_int_equal(list[i].descriptors, 2);
		assert_int_equal(list[i].bytes, 8192);
		assert_int_equal(list[i].mode, 0600);
		assert_true(list[i].claimed && !list[i].open && !list[i].prepared);
	}
	free(list);
	h = open_named("store-x");
	assert_int_equal(test_keep(h, 0, 1), -EDQUOT);
	h->ops->close(h);
}

/* ---- quotas ---- */

static void quotas_hold(void **state)
{
	struct pvi_handover *h, *other;

	agent_start("--max-stores", "2", "--max-descriptors", "4", "--max-bytes", "12k", NULL);
	h = test_open();
	other = open_named("other");
	assert_int_equal(test_keep(h, 0, 1), 0);
	assert_int_equal(test_keep(h, 1, 1), 0);
	assert_int_equal(test_keep(other, 0, 1), 0);
	assert_int_equal(test_keep(other, 1, 1), -EDQUOT); /* bytes */
	assert_int_equal(test_keep(other, 0, 2), 0);	   /* in place of another */
	assert_int_equal(h->ops->drop(h, 1), 0);
	assert_int_equal(test_keep(other, 1, 1), 0);
	other->ops->close(other);
	other = open_named("third");
	assert_int_equal(test_keep(other, 0, 1), -EDQUOT);
	other->ops->close(other);
	h->ops->close(h);
}

static void quota_of_descriptors_holds(void **state)
{
	struct pvi_handover *h;

	agent_start("--max-descriptors", "3", NULL);
	h = test_open();
	for (uint64_t i = 0; i < 3; i++)
		assert_int_equal(test_keep(h, i, i), 0);
	assert_int_equal(test_keep(h, 3, 3), -EDQUOT);
	assert_int_equal(test_keep(h, 2, 9), 0);
	assert_int_equal(h->ops->forget(h), 0);
	assert_int_equal(test_keep(h, 0, 0), 0);
	h->ops->close(h);
}

/* ---- what clients send ---- */

static void unfit_descriptors_are_refused(void **state)
{
	int fds[4], pipe_ends[2], unsealed, sock;
	struct pv_agent_entry *list;
	uint32_t n;

	agent_start(NULL);
	fds[0] = test_memfd(1);
	fds[1] = test_memfd(2);
	assert_int_equal(pipe2(pipe_ends, O_CLOEXEC), 0);
	unsealed = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	sock = bound(AGENT_UID_SELF);
	assert_true(sock >= 0);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, 0, 0, NULL, 0), -EINVAL);
	assert_int_equal(holder_request(sock, HOLDER_DROP, 0, 0, fds, 1), -EINVAL);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, 0, 0, pipe_ends, 1), -EMEDIUMTYPE);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, 0, 0, &sock, 1), -EMEDIUMTYPE);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, 0, 0, &unsealed, 1), -EPERM);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, 0, 2, fds, 1), -EMSGSIZE);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, HOLDER_FDS_MAX, 1, fds, 1), -EINVAL);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, HOLDER_TOKEN_RESERVED, 1, fds, 1),
			 -EINVAL);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, HOLDER_TOKEN_OUTGOING, 1, fds, 1),
			 -EMEDIUMTYPE);
	assert_int_equal(holder_request(sock, HOLDER_RETRIEVE, 0, 0, NULL, 0), -EOPNOTSUPP);
	assert_int_equal(holder_request(sock, 99, 0, 0, NULL, 0), -EOPNOTSUPP);
	/* None of it has left a store. */
	assert_int_equal(pv_agent_list(agent_path, &list, &n), 0);
	assert_int_equal(n, 0);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, 0, 1, fds, 1), 0);
	assert_int_equal(holder_request(sock, HOLDER_KEEP, 1, 1, fds, 2), -ECONNRESET);
	close(sock);
	/* All that came and was not kept is closed: the agent's own, its lock, and one memfd. */
	assert_int_equal(close(pipe_ends[1]), 0);
	assert_int_equal(read(pipe_ends[0], fds, 1), 0);
	close(pipe_ends[0]);
	close(unsealed);
	close(fds[0]);
	close(fds[1]);
}

/** Before it is said which store is meant, and with things that are no messages. */
/** A kernel without LUO: said, and nothing has changed. */
static void no_luo_is_said(void **state)
{
	int expected = access(LUO_DEVICE, F_OK) == 0 ? 0 : -ENODEV;
	static const uint64_t numbers[1] = {5};
	struct pvi_handover *h;

	agent_start(NULL);
	h = test_open();
	assert_int_equal(test_keep(h, 0, 5), 0);
	assert_int_equal(pv_agent_prepare(agent_path, PV_AGENT_SELF, STORE, 100), expected);
	assert_int_equal(pv_agent_cancel(agent_path, PV_AGENT_SELF, STORE, 100), 0);
	test_expect(h, 1, numbers);
	h->ops->close(h);
}

static void rubbish_ends_the_connection(void **state)
{
	struct holder_msg h = {
		.magic = HOLDER_MAGIC, .version = HOLDER_VERSION, .op = HOLDER_STATUS};
	struct agent_msg m = {.magic = AGENT_MAGIC, .version = AGENT_VERSION, .op = AGENT_LIST};
	static char large[70000];
	struct {
		const void *bytes;
		size_t n;
	} bad[] = {{&h, sizeof(h)},
		   {&m, sizeof(m) - 1},
		   {large, 1},
		   {large, sizeof(m)},
		   {large, sizeof(large)}};
	char byte;
	int sock;

	agent_start(NULL);
	for (unsigned int i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct timeval timeout = {5, 0};

		assert_int_equal(pvi_agent_connect(agent_path, &sock), 0);
		fcntl(sock, F_SETFL, 0);
		setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
		assert_int_equal(send(sock, bad[i].bytes, bad[i].n, 0), (ssize_t)bad[i].n);
		assert_int_equal(recv(sock, &byte, 1, 0), 0);
		close(sock);
	}
	/* Well-formed, but not to be done. */
	assert_int_equal(pvi_agent_connect(agent_path, &sock), 0);
	m.op = 99;
	assert_int_equal(pvi_agent_ask(sock, &m, 5000), 0);
	assert_int_equal(m.status, -EOPNOTSUPP);
	m = (struct agent_msg){.op = AGENT_OPEN, .store = "../x"};
	assert_int_equal(pvi_agent_ask(sock, &m, 5000), 0);
	assert_int_equal(m.status, -EINVAL);
	m = (struct agent_msg){.op = AGENT_OPEN, .store = "x\0y"};
	assert_int_equal(pvi_agent_ask(sock, &m, 5000), 0);
	assert_int_equal(m.status, -EINVAL);
	m = (struct agent_msg){.op = AGENT_DROP, .store = "none"};
	assert_int_equal(pvi_agent_ask(sock, &m, 5000), 0);
	assert_int_equal(m.status, -ENOENT);
	close(sock);
}

/** Connections that say nothing, and one that asks and does not listen. */
static void hanging_clients_harm_nobody(void **state)
{
	struct agent_msg list = {.magic = AGENT_MAGIC, .version = AGENT_VERSION, .op = AGENT_LIST};
	struct pvi_handover *h;
	int silent[40], deaf;

	agent_start("--max-connections", "30", NULL);
	h = test_open();
	for (uint64_t i = 0; i < 40; i++)
		assert_int_equal(test_keep(h, i, i), 0);
	for (unsigned int i = 0; i < 25; i++)
		assert_int_equal(pvi_agent_connect(agent_path, &silent[i]), 0);
	deaf = bound(AGENT_UID_SELF);
	assert_true(deaf >= 0);
	for (unsigned int i = 0; i < 5000 && send(deaf, &list, sizeof(list), MSG_DONTWAIT) > 0;
	     i++) {
	}
	assert_int_equal(test_keep(h, 0, 7), 0);
	assert_int_equal(h->ops->check(h), 0);
	/* More than allowed: the silent ones make room, after a while. */
	usleep((HOLDER_IDLE_MS + 50) * 1000);
	for (unsigned int i = 25; i < 40; i++)
		assert_int_equal(pvi_agent_connect(agent_path, &silent[i]), 0);
	usleep((HOLDER_IDLE_MS + 50) * 1000);
	assert_int_equal(test_keep(h, 1, 7), 0);
	for (unsigned int i = 0; i < 40; i++)
		close(silent[i]);
	close(deaf);
	h->ops->close(h);
}

/* ---- settings ---- */

static void wrong_settings_are_refused(void **state)
{
	char path[128];
	FILE *f;

	assert_int_equal(agent_status("--check", NULL), 0);
	assert_int_equal(agent_status("--check", "--max-bytes", "12x", NULL), 2);
	assert_int_equal(agent_status("--max-stores", "-1", NULL), 2);
	assert_int_equal(agent_status("--config", "/nonexistent/file", NULL), 2);
	assert_int_equal(agent_status("--check=2", NULL), 2);
	snprintf(path, sizeof(path), "%s.conf", agent_path);
	f = fopen(path, "we");
	assert_non_null(f);
	fprintf(f, "# quotas\nmax-bytes = 1G\n max-bytes.%u = 8k \n\n", geteuid());
	assert_int_equal(fclose(f), 0);
	assert_int_equal(agent_status("--check", "--config", path, NULL), 0);
	agent_start("--config", path, NULL);
	assert_int_equal(agent_status(NULL), 1); /* the socket is taken */
	{
		struct pvi_handover *h = test_open();

		assert_int_equal(test_keep(h, 0, 1), 0);
		assert_int_equal(test_keep(h, 1, 1), 0);
		assert_int_equal(test_keep(h, 2, 1), -EDQUOT);
		h->ops->close(h);
	}
	f = fopen(path, "we");
	assert_non_null(f);
	fprintf(f, "max-bites = 1G\n");
	assert_int_equal(fclose(f), 0);
	assert_int_equal(agent_status("--check", "--config", path, NULL), 2);
}

#define CASE(function) cmocka_unit_test_setup_teardown(function, agent_setup, agent_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(agent_outlives_kill),
		CASE(creators_do_not_mix),
		CASE(no_agent_is_no_empty_store),
		CASE(store_outlives_kill),
		CASE(auto_takes_the_agent),
		CASE(many_stores),
		CASE(quotas_hold),
		CASE(quota_of_descriptors_holds),
		CASE(no_luo_is_said),
		CASE(unfit_descriptors_are_refused),
		CASE(rubbish_ends_the_connection),
		CASE(hanging_clients_harm_nobody),
		CASE(wrong_settings_are_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
