/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "holder.h"
#include "internal.h"
#include "luo_play.h"
#include "steps.h"

enum { WORDS = BYTES / 8 };

const struct pv_options play_writer = {.size = sizeof(play_writer)};
const struct pv_options play_reader = {.size = sizeof(play_reader), .flags = PV_RDONLY};

/* ---- content ---- */

static uint64_t word_of(const char *store, uint64_t token, unsigned int generation, uint64_t i)
{
	uint64_t z = token << 40 ^ (uint64_t)generation << 32 ^ i;

	while (*store)
		z = (z ^ (unsigned char)*store++) * UINT64_C(0x100000001b3);
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	return z ^ (z >> 31);
}

void play_fill(int fd, const char *store, uint64_t token, unsigned int generation)
{
	uint64_t *words = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	CHECK(words != MAP_FAILED);
	for (uint64_t i = 0; i < WORDS; i++)
		words[i] = word_of(store, token, generation, i);
	munmap(words, BYTES);
}

static void check_content(int fd, const char *store, uint64_t token, unsigned int generation)
{
	static uint64_t words[WORDS];
	struct stat st;

	CHECK(fstat(fd, &st) == 0 && st.st_size == BYTES && (st.st_mode & 0777) == 0600);
	CHECK(fcntl(fd, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW));
	CHECK(pread(fd, words, BYTES, 0) == BYTES);
	for (uint64_t i = 0; i < WORDS; i++)
		CHECK(words[i] == word_of(store, token, generation, i));
}

/* ---- a store, in the process that calls ---- */

static void release(struct pvi_fd *fds, unsigned int n)
{
	while (n)
		close(fds[--n].fd);
	free(fds);
}

struct pvi_handover *play_open(const char *store)
{
	struct pvi_handover *h;

	CHECK(pvi_luo_open(store, &play_writer, &h) == 0);
	return h;
}

void play_keep(struct pvi_handover *h, const char *store, uint64_t token)
{
	int fd = pvi_arena_memfd("luo-handover", BYTES);

	CHECK(fd >= 0);
	play_fill(fd, store, token, 0);
	CHECK(h->ops->keep(h, token, fd) == 0);
	close(fd);
}

struct pvi_handover *play_make(const char *store)
{
	struct pvi_handover *h = play_open(store);
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == -ENOENT);
	for (uint64_t token = 0; token < TOKENS; token++)
		play_keep(h, store, token);
	return h;
}

void play_fetch(struct pvi_handover *h, const char *store, uint64_t tokens, unsigned int generation,
		bool from_kexec)
{
	struct pvi_fd *fds;
	unsigned int n;
	bool kexec = !from_kexec;

	CHECK(h->ops->fetch(h, &fds, &n, &kexec) == 0);
	CHECK(kexec == from_kexec);
	CHECK(n == (unsigned int)__builtin_popcountll(tokens));
	for (unsigned int i = 0; i < n; i++) {
		CHECK(fds[i].token < 64 && (tokens >> fds[i].token & 1));
		check_content(fds[i].fd, store, fds[i].token, generation);
	}
	release(fds, n);
}

void play_fetch_any(struct pvi_handover *h, const char *store, uint64_t tokens, uint64_t more)
{
	struct pvi_fd *fds;
	uint64_t got = 0;
	unsigned int n;
	bool from_kexec;

	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == 0 && !from_kexec);
	for (unsigned int i = 0; i < n; i++) {
		CHECK(fds[i].token < 64);
		got |= 1ull << fds[i].token;
		check_content(fds[i].fd, store, fds[i].token, 0);
	}
	CHECK((got & ~more) == tokens);
	release(fds, n);
}

struct pvi_handover *play_expect(const char *store, uint64_t tokens, unsigned int generation,
				 bool from_kexec, enum pv_handover_state state)
{
	struct pvi_handover *h = play_open(store);

	play_fetch(h, store, tokens, generation, from_kexec);
	CHECK(h->state == state);
	return h;
}

void play_expect_error(const char *store, int error)
{
	struct pvi_handover *h = play_open(store);
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == error);
	printf("luo-handover: %s: %s\n", store, pv_last_error());
	h->ops->close(h);
}

int play_prepare(struct pvi_handover *h)
{
	struct pvi_fd *fds;
	unsigned int n;
	int rc;

	CHECK(pvi_keeper_hand_out(pvi_keeper_of(h), &fds, &n) == 0);
	rc = h->ops->prepare(h, fds, n);
	release(fds, n);
	return rc;
}

bool play_thawed(struct pvi_handover *h, uint64_t token)
{
	int fd = pvi_keeper_find(pvi_keeper_of(h), token);

	CHECK(fd >= 0);
	/* The last page; the pattern is not looked at where this is asked and succeeds. */
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, BYTES, 4096) == 0;
}

pid_t play_holder(const char *store)
{
	struct pvi_holder_place place;
	struct holder_msg m = {.op = HOLDER_STATUS};
	bool started;
	int sock;

	CHECK(pvi_holder_place_init(&place, store, &play_writer) == 0);
	CHECK(pvi_holder_dial(&place, false, &sock, &started) == 0);
	CHECK(pvi_holder_ask(&place, sock, &m, -1, NULL) == 0);
	close(sock);
	pvi_holder_place_free(&place);
	return (pid_t)m.token;
}

void play_kill_holder_at(const char *store, unsigned int step)
{
	static char path[128];

	/* Where the default of a superuser without a session is. */
	snprintf(path, sizeof(path), "/run/libpreserve/%s.sock", store);
	steps_socket = path;
	steps_arm(step, STEP_KILL);
}

/* ---- in a child ---- */

bool play_lives(int (*work)(const char *store), const char *store, unsigned int step)
{
	int status;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		steps_arm(step, STEP_DIE);
		CHECK(work(store) == 0);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
		return false;
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	return true;
}

int play_do_prepare(const char *store)
{
	return play_prepare(play_expect(store, ALL, 0, false, PV_STATE_SERVING));
}

int play_do_cancel(const char *store)
{
	struct pvi_handover *h = play_expect(store, ALL, 0, false, PV_STATE_PREPARED);

	return h->ops->cancel(h);
}

int play_do_fetch(const char *store)
{
	struct pvi_handover *h = play_open(store);
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	return h->ops->fetch(h, &fds, &n, &from_kexec);
}

int play_do_finish(const char *store)
{
	struct pvi_handover *h = play_expect(store, ALL, 0, true, PV_STATE_SERVING);

	return h->ops->finish(h);
}
