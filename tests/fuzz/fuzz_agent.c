/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: the agent's protocol. The input is a list of steps of a few bytes each: connections of
 * three users come and go and send messages, well-formed ones with wild fields and raw bytes, with and
 * without descriptors. Whatever they do, the agent lives and its books are right: order, sums, quotas,
 * and nobody is given what is not his.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fcntl.h>

#include "../fuzz/fuzz.h"
#include "preserved.h"
#include "rights.h"

enum { USERS = 3, PEERS = 6, STORES_MAX = 3, DESCRIPTORS_MAX = 6 };

static const uint32_t uids[USERS] = {1000001, 1000002, 0};

/** Our ends of the connections, and who we are there. */
static struct {
	int fd;
	uint32_t uid;
} peers[PEERS];

struct input {
	const uint8_t *at;
	size_t left;
};

static uint8_t byte(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->at++;
}

#define MUST(condition)             \
	do {                        \
		if (!(condition))   \
			abort();    \
	} while (0)

static void check_books(const struct agent *a)
{
	unsigned int kept = 0;

	for (unsigned int i = 0; i < a->nstores; i++) {
		const struct store *s = a->stores[i];
		uint64_t bytes = 0;
		unsigned int of_user = 0, descriptors = 0;

		MUST(store_find(a, s->uid, s->name) == s);
		MUST(store_name_valid(s->name) && store_mode_valid(s->mode));
		MUST(s->n > 0 && s->n <= s->room);
		for (unsigned int k = 0; k < s->n; k++) {
			MUST(k == 0 || s->kept[k - 1].token < s->kept[k].token);
			MUST(fcntl(s->kept[k].fd, F_GET_SEALS) >= 0);
			bytes += s->kept[k].bytes;
		}
		MUST(bytes == s->bytes);
		kept += s->n;
		for (unsigned int k = 0; k < a->nstores; k++) {
			if (a->stores[k]->uid != s->uid)
				continue;
			of_user++;
			descriptors += a->stores[k]->n;
		}
		MUST(of_user <= STORES_MAX && descriptors <= DESCRIPTORS_MAX);
	}
	MUST(kept == a->nkept);
}

/** Reads all replies; a stranger's store must not be in them. */
static void drain(unsigned int p)
{
	union pvi_rights control;
	struct agent_msg m;
	int fd;

	for (;;) {
		struct iovec iov = {&m, sizeof(m)};
		struct msghdr msg = {.msg_iov = &iov,
				     .msg_iovlen = 1,
				     .msg_control = &control,
				     .msg_controllen = sizeof(control)};
		ssize_t n = recvmsg(peers[p].fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

		if (n <= 0)
			return;
		MUST(n == sizeof(m) || n == sizeof(struct holder_msg));
		if (msg.msg_controllen) {
			memcpy(&fd, CMSG_DATA(&control.head), sizeof(fd));
			MUST(fcntl(fd, F_GET_SEALS) >= 0);
			close(fd);
		}
		/* No store here has a mode for others but that which its owner has set. */
		if (n == sizeof(m) && m.magic == AGENT_MAGIC && m.op == AGENT_LIST && m.status == 0)
			MUST(peers[p].uid == 0 || m.uid == peers[p].uid || (m.mode & 0044));
	}
}

static int descriptor(uint8_t kind)
{
	int fd, ends[2];

	switch (kind % 4) {
	case 0:
		return -1;
	case 1:
		if (pipe2(ends, O_CLOEXEC))
			return -1;
		close(ends[1]);
		return ends[0];
	default:
		fd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (fd >= 0 && ftruncate(fd, 4096) == 0 && kind % 4 == 2)
			fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
		return fd;
	}
}

static void push(unsigned int p, const void *bytes, size_t n, int fd)
{
	union pvi_rights control;
	struct iovec iov = {(void *) (uintptr_t) bytes, n};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	pvi_rights_put(&msg, &control, fd);
	(void) !sendmsg(peers[p].fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (fd >= 0)
		close(fd);
}

static void send_agent(struct input *in, unsigned int p)
{
	struct agent_msg m = {.magic = AGENT_MAGIC, .version = AGENT_VERSION};
	uint8_t uid = byte(in) % (USERS + 1), name;

	m.op = byte(in) % 10;
	m.uid = uid < USERS ? uids[uid] : AGENT_UID_SELF;
	m.flags = byte(in) % 4;
	m.mode = (uint32_t) byte(in) << 2;
	m.timeout_ms = 1;
	name = byte(in);
	m.store[0] = (char) ('a' + name % 4);
	if (name >= 250)
		m.store[name % 64] = '/';
	push(p, &m, sizeof(m), name == 249 ? descriptor(2) : -1);
}

static void send_holder(struct agent *a, struct input *in, unsigned int p)
{
	struct holder_msg m = {.magic = HOLDER_MAGIC, .version = HOLDER_VERSION};
	uint8_t token;

	m.op = byte(in) % 8;
	token = byte(in);
	m.token = token < 248 ? token % 8 : UINT64_MAX - (255u - token);
	m.more = byte(in) % 3;
	m.changes = byte(in);
	/* Mostly one who knows what is kept: else nothing would ever change. */
	for (unsigned int i = 0; m.changes < 240 && i < a->nclients; i++) {
		const struct client *c = a->clients[i];
		const struct store *s = store_find(a, c->store_uid, c->store);

		if (c->uid == peers[p].uid && c->access != ACCESS_NONE)
			m.changes = s ? s->changes : 0;
	}
	push(p, &m, sizeof(m), descriptor(byte(in)));
}

static void send_raw(struct input *in, unsigned int p)
{
	uint8_t raw[256], n = byte(in);

	for (unsigned int i = 0; i < n; i++)
		raw[i] = byte(in);
	push(p, raw, n, descriptor(byte(in)));
}

static void connect_again(struct agent *a, struct input *in, unsigned int p)
{
	int ends[2];

	if (peers[p].fd >= 0)
		close(peers[p].fd);
	peers[p].fd = -1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends))
		return;
	peers[p].fd = ends[0];
	peers[p].uid = uids[byte(in) % USERS];
	client_add(a, ends[1], peers[p].uid, peers[p].uid);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct agent a;
	struct input in = {data, size};

	memset(&a, 0, sizeof(a));
	config_init(&a.config);
	a.config.quota.stores = STORES_MAX;
	a.config.quota.descriptors = DESCRIPTORS_MAX;
	a.config.quota.bytes = 16384;
	MUST(agent_init(&a) == 0);
	for (unsigned int p = 0; p < PEERS; p++)
		peers[p].fd = -1;
	while (in.left) {
		uint8_t step = byte(&in);
		unsigned int p = step % PEERS;

		if (peers[p].fd < 0 || step >= 250)
			connect_again(&a, &in, p);
		else if (step < 110)
			send_holder(&a, &in, p);
		else if (step < 220)
			send_agent(&in, p);
		else
			send_raw(&in, p);
		job_tick(&a);
		client_round(&a, 0);
		check_books(&a);
		for (p = 0; p < PEERS; p++)
			if (peers[p].fd >= 0)
				drain(p);
	}
	for (unsigned int p = 0; p < PEERS; p++)
		if (peers[p].fd >= 0)
			close(peers[p].fd);
	agent_free(&a);
	return 0;
}
