/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What bench_handover.py runs in the virtual machine, see handover.scenario and handover_kv.scenario.
 *
 *	bench-handover memory BOOT LAST BYTES	after a kexec: retrieve a store, and beside it a plain memfd
 *						by the kernel's calls alone; before the next: prepare both
 *	bench-handover load PORT KEYS BYTES	fill a server: KEYS values of BYTES
 *	bench-handover stall PORT KEYS CONNECTIONS	the longest wait for a reply during PRESERVE PREPARE, and
 *						in as long a time before
 *	bench-handover first-get PORT KEY BYTES FROM	milliseconds from FROM (ns of CLOCK_BOOTTIME) to a good GET
 *	bench-handover now			CLOCK_BOOTTIME in ns
 *
 * Prints lines "FIGURE NAME VALUE".
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <preserve/preserve.h>

#include "luo_uapi.h"

enum { KEY_BYTES = 16, BATCH = 256, CONNECTIONS_MAX = 256, REPLY_MAX = 65536 };

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "bench-handover: %s: %s\n", what, errno ? strerror(errno) : "wrong reply");
	exit(1);
}

static void must(int err)
{
	if (err) {
		fprintf(stderr, "bench-handover: %s\n", pv_last_error());
		exit(1);
	}
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void figure(const char *name, double value)
{
	printf("FIGURE %s %.4f\n", name, value);
}

static double ms_since(uint64_t start)
{
	return (double)(now_ns() - start) / 1e6;
}

/* ---- memory ---- */

static int session_call(unsigned long request, const char *name)
{
	struct luo_session_arg arg = {.size = sizeof(arg), .fd = -1};
	int device = open(LUO_DEVICE, O_RDWR | O_CLOEXEC);

	strncpy(arg.name, name, sizeof(arg.name) - 1);
	if (device < 0 || ioctl(device, request, &arg))
		fail(name);
	close(device);
	return arg.fd;
}

/** A memfd of this size, in which all memory is there. */
static int plain_new(uint64_t bytes)
{
	int fd = memfd_create("bench-handover", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *map;

	if (fd < 0 || ftruncate(fd, (off_t)bytes))
		fail("memfd");
	map = mmap((void *)0x200000000000, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd,
		   0);
	if (map == MAP_FAILED)
		fail("mmap");
	madvise(map, bytes, MADV_HUGEPAGE);
	memset(map, 'x', bytes);
	munmap(map, bytes);
	return fd;
}

static int plain_retrieve(void)
{
	struct luo_file_arg file = {.size = sizeof(file), .token = 1};
	struct luo_finish_arg finish = {.size = sizeof(finish)};
	uint64_t start = now_ns();
	int session = session_call(LUO_RETRIEVE_SESSION, "bench-handover");

	if (ioctl(session, LUO_RETRIEVE_FD, &file) || ioctl(session, LUO_FINISH, &finish))
		fail("retrieve");
	close(session);
	figure("retrieve-kernel", ms_since(start));
	return file.fd;
}

static void plain_preserve(int fd)
{
	struct luo_file_arg file = {.size = sizeof(file), .token = 1, .fd = fd};
	uint64_t start = now_ns();
	int session = session_call(LUO_CREATE_SESSION, "bench-handover");

	if (ioctl(session, LUO_PRESERVE_FD, &file))
		fail("preserve");
	figure("prepare-kernel", ms_since(start));
}

static struct pv_store *store_open(uint64_t bytes, bool create)
{
	/* One segment of this size: what the plain memfd is. */
	struct pv_options o = {
		.size = sizeof(o),
		.flags = create ? PV_CREATE | PV_EXCL : 0,
		.handover = PV_HANDOVER_LUO,
		.segment_bytes = bytes,
	};
	struct pv_store *s;

	must(pv_open("bench", &o, &s));
	return s;
}

/** Fill the first segment with extents. */
static void store_fill(struct pv_store *s, uint64_t bytes)
{
	static const struct pv_typedef def = PV_TYPE_BYTES("block", 1);
	struct pv_info info;
	pv_type_t type;
	void *block;

	must(pv_type_register(s, &def, &type));
	for (;;) {
		must(pv_info_get(s, &info));
		if (info.used_bytes + (4u << 20) > bytes)
			return;
		must(pv_reserve(s, type, 1 << 20, &block));
		memset(block, 'y', 1 << 20);
		must(pv_publish(s, (const struct pv_action[]){PV_LIVE(block)}, 1));
	}
}

static void memory(unsigned int boot, unsigned int last, uint64_t bytes)
{
	struct pv_store *s;
	struct pv_info info;
	uint64_t start;
	int plain;

	if (boot == 0) {
		plain = plain_new(bytes);
		s = store_open(bytes, true);
		store_fill(s, bytes);
	} else {
		plain = plain_retrieve();
		s = store_open(bytes, false);
		must(pv_info_get(s, &info));
		if (!info.from_kexec)
			fail("the store did not come through the kexec");
		figure("retrieve-libpreserve", (double)info.fetch_ns / 1e6);
	}
	if (boot < last) {
		start = now_ns();
		must(pv_handover_prepare(s));
		figure("prepare-libpreserve", ms_since(start));
		plain_preserve(plain);
		fflush(stdout);
		if (fork() == 0)
			for (;;)
				pause();
	}
}

/* ---- a server's client ---- */

static int dial(uint16_t port)
{
	struct sockaddr_in to = {.sin_family = AF_INET,
				 .sin_port = htons(port),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to))) {
		close(fd);
		return -1;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static int dial_or_fail(uint16_t port)
{
	int fd = dial(port);

	if (fd < 0)
		fail("connect");
	return fd;
}

static void send_all(int fd, const char *data, size_t n)
{
	while (n) {
		ssize_t sent = write(fd, data, n);

		if (sent <= 0)
			fail("write");
		data += sent;
		n -= (size_t)sent;
	}
}

/** A value of a key that does not compress, as most of what is kept in caches does not. */
static void value_make(char *value, size_t bytes, uint64_t key)
{
	uint64_t z = key * UINT64_C(0x9e3779b97f4a7c15) + 1;

	for (size_t i = 0; i < bytes; i++) {
		if (i % 8 == 0) {
			z ^= z << 13;
			z ^= z >> 7;
			z ^= z << 17;
		}
		value[i] = (char)(z >> i % 8 * 8);
	}
}

static size_t set_make(char *at, uint64_t key, size_t bytes)
{
	int n = sprintf(at, "*3\r\n$3\r\nSET\r\n$%d\r\nkey:%012" PRIu64 "\r\n$%zu\r\n", KEY_BYTES, key, bytes);

	value_make(at + n, bytes, key);
	memcpy(at + n + bytes, "\r\n", 2);
	return (size_t)n + bytes + 2;
}

static size_t get_make(char *at, uint64_t key)
{
	return (size_t)sprintf(at, "*2\r\n$3\r\nGET\r\n$%d\r\nkey:%012" PRIu64 "\r\n", KEY_BYTES, key);
}

static void load(uint16_t port, uint64_t keys, size_t bytes)
{
	char *batch = malloc(BATCH * (bytes + 128)), replies[5 * BATCH];
	int fd = dial_or_fail(port);

	if (!batch)
		fail("memory");
	for (uint64_t first = 0; first < keys; first += BATCH) {
		unsigned int n = keys - first < BATCH ? (unsigned int)(keys - first) : BATCH;
		size_t out = 0, in = 0;

		for (unsigned int i = 0; i < n; i++)
			out += set_make(batch + out, first + i, bytes);
		send_all(fd, batch, out);
		while (in < 5 * (size_t)n) {
			ssize_t got = read(fd, replies + in, 5 * (size_t)n - in);

			if (got <= 0)
				fail("read");
			in += (size_t)got;
		}
		errno = 0;
		for (unsigned int i = 0; i < n; i++)
			if (memcmp(replies + 5 * (size_t)i, "+OK\r\n", 5) != 0)
				fail("SET");
	}
	close(fd);
	free(batch);
}

static void first_get(uint16_t port, uint64_t key, size_t bytes, uint64_t from)
{
	char want[REPLY_MAX], got[REPLY_MAX], request[128];
	size_t head = (size_t)sprintf(want, "$%zu\r\n", bytes), n = get_make(request, key);

	value_make(want + head, bytes, key);
	memcpy(want + head + bytes, "\r\n", 2);
	/* One that is loading says so, or does not listen yet. */
	for (;;) {
		int fd = dial(port);
		size_t in = 0;

		while (fd >= 0 && in < head + bytes + 2) {
			ssize_t more;

			if (in == 0)
				send_all(fd, request, n);
			more = read(fd, got + in, sizeof(got) - in);
			if (more <= 0 || got[0] == '-')
				break;
			in += (size_t)more;
		}
		close(fd);
		if (in == head + bytes + 2 && memcmp(got, want, in) == 0)
			break;
		usleep(1000);
	}
	figure("first-get", ms_since(from));
}

/* ---- stall ---- */

struct waiting {
	int fd;
	uint64_t since;
	uint64_t key;
};

struct waits {
	uint64_t ns[1 << 20];
	uint32_t n;
};

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void ask(struct waiting *w, uint64_t keys)
{
	char request[128];

	w->key = (w->key * UINT64_C(6364136223846793005) + 1442695040888963407) % keys;
	w->since = now_ns();
	send_all(w->fd, request, get_make(request, w->key));
}

/** Closed loops until `control` can be read, or the time is over. */
static void measure(struct waiting *w, unsigned int n, uint64_t keys, int control, uint64_t until,
		    struct waits *out)
{
	struct pollfd polls[CONNECTIONS_MAX + 1];
	static char reply[REPLY_MAX];

	for (unsigned int i = 0; i < n; i++)
		polls[i] = (struct pollfd){w[i].fd, POLLIN, 0};
	polls[n] = (struct pollfd){control, POLLIN, 0};
	while (!until || now_ns() < until) {
		if (poll(polls, n + 1, 1000) < 0)
			fail("poll");
		for (unsigned int i = 0; i < n; i++) {
			if (!polls[i].revents)
				continue;
			if (read(w[i].fd, reply, sizeof(reply)) <= 0 || reply[0] != '$')
				fail("GET");
			if (out->n < sizeof(out->ns) / sizeof(*out->ns))
				out->ns[out->n++] = now_ns() - w[i].since;
			ask(&w[i], keys);
		}
		if (polls[n].revents)
			break;
	}
	/* Who still waits has waited, too. */
	for (unsigned int i = 0; i < n && out->n < sizeof(out->ns) / sizeof(*out->ns); i++)
		out->ns[out->n++] = now_ns() - w[i].since;
}

static void stall(uint16_t port, uint64_t keys, unsigned int n)
{
	static const char prepare[] = "*2\r\n$8\r\nPRESERVE\r\n$7\r\nPREPARE\r\n";
	static struct waits calm, during;
	static struct waiting w[CONNECTIONS_MAX];
	int control = dial_or_fail(port);
	uint64_t start, took;
	double median;

	for (unsigned int i = 0; i < n; i++) {
		w[i] = (struct waiting){.fd = dial_or_fail(port), .key = i};
		ask(&w[i], keys);
	}
	measure(w, n, keys, -1, now_ns() + 500000000u, &calm);
	calm.n = 0;
	start = now_ns();
	send_all(control, prepare, sizeof(prepare) - 1);
	measure(w, n, keys, control, 0, &during);
	took = now_ns() - start;
	measure(w, n, keys, -1, now_ns() + took, &calm);
	qsort(calm.ns, calm.n, sizeof(*calm.ns), by_value);
	qsort(during.ns, during.n, sizeof(*during.ns), by_value);
	median = (double)calm.ns[calm.n / 2];
	figure("stall-kvstore", (double)during.ns[during.n - 1] / median);
	figure("stall-calm", (double)calm.ns[calm.n - 1] / median);
	figure("stall-median-ms", median / 1e6);
	figure("stall-prepare-ms", (double)took / 1e6);
	figure("stall-waits", during.n);
}

int main(int argc, char **argv)
{
	uint64_t v[5] = {0};

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 2; i < argc && i < 7; i++)
		v[i - 2] = strtoull(argv[i], NULL, 10);
	if (argc == 5 && strcmp(argv[1], "memory") == 0)
		memory((unsigned int)v[0], (unsigned int)v[1], v[2]);
	else if (argc == 5 && strcmp(argv[1], "load") == 0)
		load((uint16_t)v[0], v[1], v[2]);
	else if (argc == 5 && strcmp(argv[1], "stall") == 0 && v[2] <= CONNECTIONS_MAX)
		stall((uint16_t)v[0], v[1], (unsigned int)v[2]);
	else if (argc == 6 && strcmp(argv[1], "first-get") == 0 && v[2] < REPLY_MAX - 64)
		first_get((uint16_t)v[0], v[1], v[2], v[3]);
	else if (argc == 2 && strcmp(argv[1], "now") == 0)
		printf("%" PRIu64 "\n", now_ns());
	else
		return 2;
	return 0;
}
