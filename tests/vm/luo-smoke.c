/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * luo-smoke: does a memfd survive a kexec on this kernel, in this VM? Talks to /dev/liveupdate itself,
 * without the library, so that it tells trouble of the machine from trouble of the library.
 *
 *   luo-smoke BOOT LAST   In boot BOOT: take over what boot BOOT-1 preserved and verify every word of
 *                         it; unless BOOT is LAST, fill it anew, preserve it, and stay in the background
 *                         as the holder of the session (closing the session would cancel it).
 *   luo-smoke gone NAME   Verify that there is no session of that name to retrieve.
 *
 * The content is a function of the boot number and the position, so an old, a shifted or a lost page
 * shows. One word is written after the preserve ioctl: the memory stays writable until the jump.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Own definitions: the kernel headers of Debian 12 are older than this interface. */
struct luo_session_arg {
	uint32_t size;
	int32_t fd; /* out: the session */
	char name[64];
};

struct luo_file_arg {
	uint32_t size;
	int32_t fd; /* in for preserve, out for retrieve */
	uint64_t token;
};

struct luo_finish_arg {
	uint32_t size;
	uint32_t reserved;
};

#define LUO_CREATE_SESSION _IO(0xba, 0x00)
#define LUO_RETRIEVE_SESSION _IO(0xba, 0x01)
#define LUO_PRESERVE_FD _IO(0xba, 0x40)
#define LUO_RETRIEVE_FD _IO(0xba, 0x41)
#define LUO_FINISH _IO(0xba, 0x42)

enum { SMOKE_BYTES = 64 << 20, SMOKE_WORDS = SMOKE_BYTES / 8, SMOKE_TOKEN = 7 };

static void die(const char *what)
{
	fprintf(stderr, "luo-smoke: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* splitmix64: no two (boot, position) pairs of a run share a value by accident. */
static uint64_t word_at(unsigned long boot, size_t i)
{
	uint64_t z = (boot << 32) + i + UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* Creates or retrieves a session. The device admits one opener at a time, so it is closed at once. */
static int session_open(unsigned long request, const char *name)
{
	struct luo_session_arg arg = { .size = sizeof(arg), .fd = -1 };
	int device = open("/dev/liveupdate", O_RDWR | O_CLOEXEC);
	int rc;

	if (device < 0)
		die("/dev/liveupdate");
	snprintf(arg.name, sizeof(arg.name), "%s", name);
	rc = ioctl(device, request, &arg) ? -errno : arg.fd;
	close(device);
	return rc;
}

static uint64_t *map(int fd)
{
	struct stat st;
	void *p;

	if (fstat(fd, &st))
		die("fstat");
	if (st.st_size != SMOKE_BYTES) {
		fprintf(stderr, "luo-smoke: size is %lld, not %d\n", (long long)st.st_size, SMOKE_BYTES);
		exit(1);
	}
	p = mmap(NULL, SMOKE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static int create(void)
{
	int fd = memfd_create("luo-smoke", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, SMOKE_BYTES))
		die("memfd");
	return fd;
}

/* Verifies what boot `from` left, and finishes its session. Returns the memfd. */
static int take_over(const char *name, unsigned long from)
{
	struct luo_file_arg file = { .size = sizeof(file), .fd = -1, .token = SMOKE_TOKEN };
	struct luo_finish_arg finish = { .size = sizeof(finish) };
	double t0 = now_ms(), t1, t2;
	int session = session_open(LUO_RETRIEVE_SESSION, name);
	uint64_t *words;

	if (session < 0) {
		errno = -session;
		die("retrieve session");
	}
	if (ioctl(session, LUO_RETRIEVE_FD, &file))
		die("retrieve fd");
	t1 = now_ms();
	words = map(file.fd);
	for (size_t i = 0; i < SMOKE_WORDS; i++) {
		/* The last word was written after the preserve ioctl. */
		uint64_t want = i == SMOKE_WORDS - 1 ? ~word_at(from, i) : word_at(from, i);

		if (words[i] != want) {
			fprintf(stderr, "luo-smoke: word %zu is %016llx, not %016llx\n", i,
				(unsigned long long)words[i], (unsigned long long)want);
			exit(1);
		}
	}
	munmap(words, SMOKE_BYTES);
	t2 = now_ms();
	if (ioctl(session, LUO_FINISH, &finish))
		die("finish");
	close(session);
	printf("luo-smoke: 64 MiB of boot %lu intact; retrieve %.1f ms, verify %.1f ms, finish %.1f ms\n",
	       from, t1 - t0, t2 - t1, now_ms() - t2);
	return file.fd;
}

static void preserve(int fd, const char *name, unsigned long boot)
{
	struct luo_file_arg file = { .size = sizeof(file), .fd = fd, .token = SMOKE_TOKEN };
	uint64_t *words = map(fd);
	double t0;
	int session;

	for (size_t i = 0; i < SMOKE_WORDS; i++)
		words[i] = word_at(boot, i);
	session = session_open(LUO_CREATE_SESSION, name);
	if (session < 0) {
		errno = -session;
		die("create session");
	}
	t0 = now_ms();
	if (ioctl(session, LUO_PRESERVE_FD, &file))
		die("preserve");
	printf("luo-smoke: preserve %.1f ms\n", now_ms() - t0);
	words[SMOKE_WORDS - 1] = ~word_at(boot, SMOKE_WORDS - 1);
	/* The session stays open on purpose. */
}

static void one_boot(unsigned long boot, unsigned long last)
{
	char name[64];
	int fd;

	if (boot == 0) {
		fd = create();
	} else {
		snprintf(name, sizeof(name), "luo-smoke-%lu", boot - 1);
		fd = take_over(name, boot - 1);
	}
	if (boot < last) {
		snprintf(name, sizeof(name), "luo-smoke-%lu", boot);
		preserve(fd, name, boot);
	}
	fflush(stdout);
}

/* The work is done in a child that stays; the parent reports when the child is ready, or failed. */
static int in_background(unsigned long boot, unsigned long last)
{
	int ready[2], status;
	char byte = 0;
	pid_t child;

	if (pipe(ready))
		die("pipe");
	child = fork();
	if (child < 0)
		die("fork");
	if (child == 0) {
		close(ready[0]);
		one_boot(boot, last);
		if (write(ready[1], "r", 1) != 1)
			die("pipe");
		close(ready[1]);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) == 1 && byte == 'r')
		return 0;
	if (waitpid(child, &status, 0) < 0)
		die("waitpid");
	return WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : 1;
}

static int gone(const char *name)
{
	int rc = session_open(LUO_RETRIEVE_SESSION, name);

	if (rc == -ENOENT)
		return 0;
	fprintf(stderr, "luo-smoke: retrieving %s gave %d, not -ENOENT\n", name, rc);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "gone") == 0)
		return gone(argv[2]);
	if (argc == 3)
		return in_background(strtoul(argv[1], NULL, 10), strtoul(argv[2], NULL, 10));
	fprintf(stderr, "usage: luo-smoke BOOT LAST | luo-smoke gone NAME\n");
	return 2;
}
