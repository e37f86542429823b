/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * luo-handover BOOT: the `luo` backend on a real kernel, over four kexecs (luo_handover.scenario).
 *
 * It plays the store: descriptors with a known pattern, given to the backend by the contract of
 * handover.h. Every operation that may be interrupted runs in a child, which is killed at each of
 * its steps in turn (steps.h); the parent plays the next process that opens the store.
 *
 *	boot 0	errors of prepare; prepare and cancel killed at every step; death while prepared;
 *		death of the holder while prepared; stores for the next boot
 *	boot 1	what must not have come; take-over and finish killed at every step; prepare again
 *	boot 2	the same store once more
 *	boot 3	and once more; then live update is switched off
 *	boot 4	no device: what is said, and what `auto` does
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "handover.h"
#include "holder.h"
#include "internal.h"
#include "luo.h"
#include "steps.h"

enum { BYTES = 64 << 10, WORDS = BYTES / 8, TOKENS = 3, STEPS_MAX = 200 };

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* linux/memfd.h since 6.3 */
#endif

#define CHECK(condition)                                                                      \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			fprintf(stderr, "luo-handover: line %d: %s failed; last error: %s\n", \
				__LINE__, #condition, pv_last_error());                       \
			exit(1);                                                              \
		}                                                                             \
	} while (0)

static uint64_t word_of(const char *store, uint64_t token, unsigned int generation, uint64_t i)
{
	uint64_t z = token << 40 ^ (uint64_t)generation << 32 ^ i;

	while (*store)
		z = (z ^ (unsigned char)*store++) * UINT64_C(0x100000001b3);
	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	return z ^ (z >> 31);
}

static void fill(int fd, const char *store, uint64_t token, unsigned int generation)
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

static int memfd(const char *store, uint64_t token, unsigned int generation)
{
	int fd = pvi_arena_memfd("luo-handover", BYTES);

	CHECK(fd >= 0);
	fill(fd, store, token, generation);
	return fd;
}

/* ---- a store, in the process that calls ---- */

static const struct pv_options writer = {.size = sizeof(writer)};
static const struct pv_options reader = {.size = sizeof(reader), .flags = PV_RDONLY};

static struct pvi_handover *open_luo(const char *store)
{
	struct pvi_handover *h;

	CHECK(pvi_luo_open(store, &writer, &h) == 0);
	return h;
}

static void release(struct pvi_fd *fds, unsigned int n)
{
	while (n)
		close(fds[--n].fd);
	free(fds);
}

static int prepare(struct pvi_handover *h)
{
	struct pvi_fd *fds;
	unsigned int n;
	int rc;

	CHECK(pvi_keeper_hand_out(pvi_keeper_of(h), &fds, &n) == 0);
	rc = h->ops->prepare(h, fds, n);
	release(fds, n);
	return rc;
}

static void keep_new(struct pvi_handover *h, const char *store, uint64_t token)
{
	int fd = memfd(store, token, 0);

	CHECK(h->ops->keep(h, token, fd) == 0);
	close(fd);
}

static struct pvi_handover *make(const char *store)
{
	struct pvi_handover *h = open_luo(store);
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == -ENOENT);
	for (uint64_t token = 0; token < TOKENS; token++)
		keep_new(h, store, token);
	return h;
}

/** Opens a store of TOKENS descriptors, in whatever state. */
static struct pvi_handover *open_any(const char *store, enum pv_handover_state *state)
{
	struct pvi_handover *h = open_luo(store);
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == 0 && n == TOKENS && !from_kexec);
	release(fds, n);
	*state = h->state;
	return h;
}

/** Opens the store and checks that exactly these tokens (a bit mask) are there, with the pattern.
 */
static struct pvi_handover *expect(const char *store, uint64_t tokens, unsigned int generation,
				   bool kexec, enum pv_handover_state state)
{
	struct pvi_handover *h = open_luo(store);
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec = !kexec;

	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == 0);
	CHECK(from_kexec == kexec);
	CHECK(h->state == state);
	CHECK(n == (unsigned int)__builtin_popcountll(tokens));
	for (unsigned int i = 0; i < n; i++) {
		CHECK(fds[i].token < 64 && (tokens >> fds[i].token & 1));
		check_content(fds[i].fd, store, fds[i].token, generation);
	}
	release(fds, n);
	return h;
}

static void expect_none(const char *store, int why)
{
	struct pvi_handover *h = open_luo(store);
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == why);
	printf("luo-handover: %s: %s\n", store, pv_last_error());
	h->ops->close(h);
}

/** Is fd free of any session? Then a hole can be punched. */
static bool thawed(struct pvi_handover *h, uint64_t token)
{
	int fd = pvi_keeper_find(pvi_keeper_of(h), token);

	CHECK(fd >= 0);
	return fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4096) == 0;
}

static pid_t holder_pid(const char *store)
{
	struct pvi_holder_place place;
	struct holder_msg m = {.op = HOLDER_STATUS};
	bool started;
	int sock;

	CHECK(pvi_holder_place_init(&place, store, &writer) == 0);
	CHECK(pvi_holder_dial(&place, false, &sock, &started) == 0);
	CHECK(pvi_holder_ask(&place, sock, &m, -1, NULL) == 0);
	close(sock);
	pvi_holder_place_free(&place);
	return (pid_t)m.token;
}

/* ---- in a child ---- */

static int do_prepare(const char *store)
{
	return prepare(expect(store, 7, 0, false, PV_STATE_SERVING));
}

static int do_cancel(const char *store)
{
	struct pvi_handover *h = expect(store, 7, 0, false, PV_STATE_PREPARED);

	return h->ops->cancel(h);
}

static int do_fetch(const char *store)
{
	struct pvi_handover *h = open_luo(store);
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;

	return h->ops->fetch(h, &fds, &n, &from_kexec);
}

static int do_finish(const char *store)
{
	struct pvi_handover *h = expect(store, 7, 0, true, PV_STATE_SERVING);

	return h->ops->finish(h);
}

/** Runs work(store) in a child that dies at a step. True: it lived to the end, and had success. */
static bool lives(int (*work)(const char *store), const char *store, unsigned int step)
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

/* ---- boot 0 ---- */

static void errors_of_prepare(void)
{
	struct pvi_handover *h = make("errors");
	char name[LUO_NAME_MAX];
	int device, session, sealed;

	/* The device is taken: it counts as available, and is not waited for without end. */
	device = pvi_luo_device();
	CHECK(device >= 0);
	CHECK(pvi_luo_available() == 0);
	CHECK(prepare(h) == -EBUSY && strstr(pv_last_error(), "/dev/liveupdate is in use"));
	/* The name is taken. */
	pvi_luo_session_name("errors", name);
	CHECK(strcmp(name, "preserve-0-errors") == 0);
	CHECK(pvi_luo_create(device, name, &session) == 0);
	close(device);
	CHECK(prepare(h) == -EEXIST && strstr(pv_last_error(), name));
	close(session);
	/* A segment is preserved elsewhere: what had been preserved before it is let go again. */
	device = pvi_luo_device();
	CHECK(pvi_luo_create(device, "other", &session) == 0);
	close(device);
	CHECK(pvi_luo_preserve(session, 1, pvi_keeper_find(pvi_keeper_of(h), 2)) == 0);
	CHECK(prepare(h) == -EBUSY && strstr(pv_last_error(), "token 2"));
	CHECK(h->state == PV_STATE_SERVING && thawed(h, 0) && thawed(h, 1) && !thawed(h, 2));
	close(session);
	CHECK(thawed(h, 2));
	/* Would come back read-only. */
	sealed = memfd_create("luo-handover", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	CHECK(sealed >= 0 && ftruncate(sealed, BYTES) == 0);
	CHECK(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	CHECK(h->ops->keep(h, 4, sealed) == 0);
	CHECK(prepare(h) == -EOPNOTSUPP && strstr(pv_last_error(), "token 4"));
	CHECK(thawed(h, 0) && h->ops->drop(h, 4) == 0);
	close(sealed);
	/* Prepared; again; cancelled; prepared. */
	CHECK(prepare(h) == 0 && prepare(h) == 0 && h->state == PV_STATE_PREPARED);
	CHECK(!thawed(h, 0) && !thawed(h, 2));
	CHECK(h->ops->cancel(h) == 0 && h->state == PV_STATE_SERVING && thawed(h, 0));
	CHECK(h->ops->cancel(h) == 0);
	keep_new(h, "errors", 3);
	CHECK(thawed(h, 3) && prepare(h) == 0 && !thawed(h, 3));
	CHECK(h->ops->forget(h) == 0);
	h->ops->close(h);
	expect_none("errors", -ENOENT);
}

static void other_user(void)
{
	int status;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		CHECK(setgid(65534) == 0 && setuid(65534) == 0);
		CHECK(pvi_luo_available() == -EACCES);
		printf("luo-handover: %s\n", pv_last_error());
		fflush(stdout);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/** Kills prepare, then cancel, at every step; whatever is left is whole, and can be undone. */
static void deaths_before_kexec(void)
{
	struct pvi_handover *h = make("deaths");
	enum pv_handover_state state;
	unsigned int step;

	h->ops->close(h);
	for (step = 1; !lives(do_prepare, "deaths", step); step++) {
		CHECK(step < STEPS_MAX);
		h = open_any("deaths", &state);
		CHECK(thawed(h, 0) == (state == PV_STATE_SERVING));
		CHECK(thawed(h, 2) == (state == PV_STATE_SERVING));
		CHECK(h->ops->cancel(h) == 0 && thawed(h, 0) && thawed(h, 2));
		h->ops->close(h);
	}
	printf("luo-handover: prepare killed at %u steps\n", step - 1);
	CHECK(step > 20);
	CHECK(lives(do_cancel, "deaths", 0) && lives(do_prepare, "deaths", 0));
	for (step = 1; !lives(do_cancel, "deaths", step); step++) {
		CHECK(step < STEPS_MAX);
		h = open_any("deaths", &state);
		CHECK(thawed(h, 0) == (state == PV_STATE_SERVING));
		CHECK(prepare(h) == 0 && !thawed(h, 0));
		h->ops->close(h);
	}
	printf("luo-handover: cancel killed at %u steps\n", step - 1);
	CHECK(step > 6);
	h = expect("deaths", 7, 0, false, PV_STATE_SERVING);
	CHECK(thawed(h, 0) && h->ops->forget(h) == 0);
	h->ops->close(h);
}

/** Death while prepared: the next process sees it, segments join and leave; so with `holder`. */
static void death_while_prepared(void)
{
	struct pvi_handover *h = make("plain");
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;
	int fd;

	h->ops->close(h);
	CHECK(lives(do_prepare, "plain", 0));
	h = expect("plain", 7, 0, false, PV_STATE_PREPARED);
	keep_new(h, "plain", 3);
	CHECK(!thawed(h, 3));
	/* Replaced: the old one is not handed over. */
	keep_new(h, "plain", 4);
	keep_new(h, "plain", 4);
	CHECK(h->ops->drop(h, 1) == 0);
	h->ops->close(h);

	CHECK(pvi_holder_open("plain", &writer, &h) == 0);
	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == 0 && n == 4 && !from_kexec);
	CHECK(h->state == PV_STATE_PREPARED && h->ops->prepare == NULL);
	keep_new(h, "plain", 5);
	CHECK(!thawed(h, 5));
	/* The holder dies: the session lives on here, and is handed to a new one. */
	kill(holder_pid("plain"), SIGKILL);
	usleep(100000);
	keep_new(h, "plain", 6);
	CHECK(h->state == PV_STATE_PREPARED && !thawed(h, 0) && !thawed(h, 6));
	release(fds, n);
	h->ops->close(h);
	/* SIGTERM is ignored while there is a session. */
	kill(holder_pid("plain"), SIGTERM);
	usleep(100000);

	h = expect("plain", 0x7d, 0, false, PV_STATE_PREPARED);
	/* Written after prepare. */
	fd = pvi_keeper_find(pvi_keeper_of(h), 0);
	fill(fd, "plain", 0, 1);
	for (uint64_t token = 2; token <= 6; token++)
		fill(pvi_keeper_find(pvi_keeper_of(h), token), "plain", token, 1);
	h->ops->close(h);
}

/** Stores that stand for something in the next boot. */
static void leave_behind(unsigned int retrieve_steps)
{
	struct pvi_handover *h;
	char store[16];
	pid_t child;

	for (unsigned int i = 0; i <= retrieve_steps; i++) {
		snprintf(store, sizeof(store), "r%u", i);
		h = make(store);
		CHECK(prepare(h) == 0);
		h->ops->close(h);
	}
	/* Kept, not prepared. */
	h = make("unprepared");
	h->ops->close(h);
	h = make("held");
	CHECK(prepare(h) == 0);
	h->ops->close(h);
	h = make("discarded");
	CHECK(prepare(h) == 0);
	h->ops->close(h);
	/* In the middle of prepare when the kexec comes. */
	h = make("halfway");
	h->ops->close(h);
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		steps_arm(16, STEP_STAND);
		_exit(do_prepare("halfway") ? 1 : 0);
	}
	/* Preserved, and its process died before it was listed. */
	sleep(1);
	CHECK(waitpid(child, NULL, WNOHANG) == 0);
}

enum { RETRIEVE_STEPS = 40, FINISH_STEPS = 14 };

/* ---- boot 1 ---- */

static void sweep_take_over(void)
{
	unsigned int i, fetched = 0, finished = 0;
	struct pvi_handover *h;
	char store[16];

	for (i = 0; i <= RETRIEVE_STEPS; i++) {
		snprintf(store, sizeof(store), "r%u", i);
		if (!lives(do_fetch, store, i + 1))
			fetched = i + 1;
		/* Whoever comes next goes on. */
		h = expect(store, 7, 0, true, PV_STATE_SERVING);
		CHECK(prepare(h) == -EBUSY);
		h->ops->close(h);
		if (!lives(do_finish, store, i + 1))
			finished = i + 1;
		h = open_luo(store);
		CHECK(do_fetch(store) == 0);
		h->ops->close(h);
	}
	printf("luo-handover: take-over killed at %u steps, finish at %u\n", fetched, finished);
	/* All of the steps were there: the last ones found nothing to kill. */
	CHECK(fetched > 15 && fetched < RETRIEVE_STEPS && finished > 8 && finished < fetched);
}

static void boot1(void)
{
	struct pvi_handover *h;
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;
	char name[LUO_NAME_MAX];
	int device, session;

	expect_none("unprepared", -ENOENT);
	/* Who only looks does not take over. */
	CHECK(pvi_luo_open("plain", &reader, &h) == 0);
	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == -ENOENT);
	h->ops->close(h);
	/* Somebody else has the session. */
	device = pvi_luo_device();
	pvi_luo_session_name("held", name);
	CHECK(pvi_luo_retrieve_session(device, name, &session) == 0);
	close(device);
	expect_none("held", -EBUSY);
	close(session);
	expect_none("held", -ENOENT);
	/* The kexec came in the middle of prepare. */
	expect_none("halfway", -ENXIO);
	expect_none("halfway", -ENXIO);
	h = open_luo("halfway");
	CHECK(h->ops->forget(h) == 0);
	h->ops->close(h);
	expect_none("halfway", -ENOENT);
	/* Dropped without a look. */
	h = open_luo("discarded");
	CHECK(h->ops->forget(h) == 0);
	h->ops->close(h);
	expect_none("discarded", -ENOENT);
	sweep_take_over();
}

/** Takes the store over, checks it, writes the next generation and prepares again. */
static void once_more(const char *store, unsigned int generation, bool again)
{
	struct pvi_handover *h = expect(store, 0x7d, generation, true, PV_STATE_SERVING);

	CHECK(h->ops->finish(h) == 0);
	CHECK(h->ops->finish(h) == 0);
	h->ops->close(h);
	h = expect(store, 0x7d, generation, false, PV_STATE_SERVING);
	CHECK(thawed(h, 0));
	for (uint64_t token = 0; token <= 6; token++) {
		if (token != 1)
			fill(pvi_keeper_find(pvi_keeper_of(h), token), store, token,
			     generation + 1);
	}
	if (again)
		CHECK(prepare(h) == 0);
	h->ops->close(h);
}

/* ---- boot 4 ---- */

static void without_device(void)
{
	struct pvi_handover *h;
	struct pv_options o = writer;

	CHECK(pvi_luo_available() == -ENODEV);
	printf("luo-handover: %s\n", pv_last_error());
	o.handover = PV_HANDOVER_LUO;
	CHECK(pvi_handover_open("plain", &o, &h) == -ENODEV);
	o.handover = PV_HANDOVER_AUTO;
	CHECK(pvi_handover_open("plain", &o, &h) == 0);
	CHECK(h->ops->kind == PV_HANDOVER_HOLDER);
	h->ops->close(h);
}

int main(int argc, char **argv)
{
	unsigned int boot = argc == 2 ? (unsigned int)atoi(argv[1]) : 99;

	setvbuf(stdout, NULL, _IONBF, 0);
	switch (boot) {
	case 0:
		CHECK(pvi_luo_available() == 0);
		other_user();
		errors_of_prepare();
		deaths_before_kexec();
		death_while_prepared();
		leave_behind(RETRIEVE_STEPS);
		break;
	case 1:
		boot1();
		once_more("plain", 1, true);
		break;
	case 2:
		once_more("plain", 2, true);
		break;
	case 3:
		once_more("plain", 3, false);
		expect_none("r0", -ENOENT);
		break;
	case 4:
		without_device();
		break;
	default:
		fprintf(stderr, "usage: luo-handover BOOT (0 to 4)\n");
		return 2;
	}
	printf("luo-handover: boot %u passed\n", boot);
	return 0;
}
