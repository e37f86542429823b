/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * luo-handover BOOT: the `luo` backend on a real kernel, over four kexecs (luo_handover.scenario).
 *
 * Every operation that may be interrupted runs in a child, which is killed at each of its steps in
 * turn (steps.h); the parent plays the next process that opens the store (luo_play.h).
 *
 *	boot 0	errors of the kernel's calls and of prepare; prepare and cancel killed at every step; death while prepared;
 *		death of the holder while prepared; stores for the next boot
 *	boot 1	what must not have come; damaged manifests; take-over and finish killed at every
 *		step, and raced; prepare again
 *	boot 2	the same store once more
 *	boot 3	and once more; then live update is switched off
 *	boot 4	no device: what is said, and what `auto` does
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "holder.h"
#include "luo.h"
#include "luo_errors.h"
#include "luo_play.h"
#include "steps.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U /* linux/memfd.h since 6.3 */
#endif

/* More than there are steps in a take-over: a store for each, and some left over. */
enum { TAKE_OVERS = 30 };

static int create_session(const char *name)
{
	int session, device = pvi_luo_device();

	CHECK(device >= 0);
	CHECK(pvi_luo_create(device, name, &session) == 0);
	close(device);
	return session;
}

/* ---- boot 0 ---- */

static void device_is_busy(struct pvi_handover *h)
{
	int device = pvi_luo_device();

	CHECK(device >= 0);
	CHECK(pvi_luo_available() == 0);
	CHECK(play_prepare(h) == -EBUSY);
	CHECK(strstr(pv_last_error(), "/dev/liveupdate is in use"));
	close(device);
}

static void name_is_taken(struct pvi_handover *h)
{
	char name[LUO_NAME_MAX];
	int session;

	pvi_luo_session_name(geteuid(), "errors", name);
	CHECK(strcmp(name, "preserve-0-errors") == 0);
	session = create_session(name);
	CHECK(play_prepare(h) == -EEXIST && strstr(pv_last_error(), name));
	close(session);
}

/** What had been preserved before it is let go again. */
static void segment_is_preserved_elsewhere(struct pvi_handover *h)
{
	int session = create_session("other");

	CHECK(pvi_luo_preserve(session, 1, pvi_keeper_find(pvi_keeper_of(h), 2)) == 0);
	CHECK(play_prepare(h) == -EBUSY && strstr(pv_last_error(), "token 2"));
	CHECK(h->state == PV_STATE_SERVING);
	CHECK(play_thawed(h, 0) && play_thawed(h, 1) && !play_thawed(h, 2));
	close(session);
	CHECK(play_thawed(h, 2));
}

static void segment_would_come_back_readonly(struct pvi_handover *h)
{
	int fd = memfd_create("luo-handover", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	CHECK(fd >= 0 && ftruncate(fd, BYTES) == 0);
	CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	CHECK(h->ops->keep(h, 4, fd) == 0);
	CHECK(play_prepare(h) == -EOPNOTSUPP && strstr(pv_last_error(), "token 4"));
	CHECK(play_thawed(h, 0) && h->ops->drop(h, 4) == 0);
	close(fd);
}

static void errors_of_prepare(void)
{
	struct pvi_handover *h = play_make("errors");

	device_is_busy(h);
	name_is_taken(h);
	segment_is_preserved_elsewhere(h);
	segment_would_come_back_readonly(h);
	/* Prepared; again; cancelled; prepared. */
	CHECK(play_prepare(h) == 0 && play_prepare(h) == 0 && h->state == PV_STATE_PREPARED);
	CHECK(!play_thawed(h, 0) && !play_thawed(h, 2));
	CHECK(h->ops->cancel(h) == 0 && h->state == PV_STATE_SERVING && play_thawed(h, 0));
	CHECK(h->ops->cancel(h) == 0);
	play_keep(h, "errors", 3);
	CHECK(play_thawed(h, 3) && play_prepare(h) == 0 && !play_thawed(h, 3));
	CHECK(h->ops->forget(h) == 0);
	h->ops->close(h);
	play_expect_error("errors", -ENOENT);
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
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/** After a death: everything is there, and all of it is preserved or nothing. */
static struct pvi_handover *whole_or_not(const char *store)
{
	struct pvi_handover *h = play_open(store);

	play_fetch(h, store, ALL, 0, false);
	for (uint64_t token = 0; token < TOKENS; token++)
		CHECK(play_thawed(h, token) == (h->state == PV_STATE_SERVING));
	return h;
}

static void deaths_before_kexec(void)
{
	struct pvi_handover *h = play_make("deaths");
	unsigned int step;

	h->ops->close(h);
	for (step = 1; !play_lives(play_do_prepare, "deaths", step); step++) {
		CHECK(step < STEPS_MAX);
		h = whole_or_not("deaths");
		CHECK(h->ops->cancel(h) == 0 && play_thawed(h, 0) && play_thawed(h, 2));
		h->ops->close(h);
	}
	printf("luo-handover: prepare killed at %u steps\n", step - 1);
	CHECK(step > 20);
	for (step = 1; !play_lives(play_do_cancel, "deaths", step); step++) {
		CHECK(step < STEPS_MAX);
		h = whole_or_not("deaths");
		CHECK(play_prepare(h) == 0 && !play_thawed(h, 0));
		h->ops->close(h);
	}
	printf("luo-handover: cancel killed at %u steps\n", step - 1);
	CHECK(step > 6);
	h = play_expect("deaths", ALL, 0, false, PV_STATE_SERVING);
	CHECK(play_thawed(h, 0) && h->ops->forget(h) == 0);
	h->ops->close(h);
}

/** The holder dies at each step, this process goes on: nothing fails, nothing is lost. */
static void holder_deaths_before_kexec(void)
{
	struct pvi_handover *h = play_make("holders"), *next;
	unsigned int step, reached;

	for (step = 1, reached = 1; reached >= step; step++) {
		CHECK(step < STEPS_MAX);
		play_kill_holder_at("holders", step);
		CHECK(play_prepare(h) == 0 && h->state == PV_STATE_PREPARED);
		reached = steps_count();
		steps_arm(0, STEP_DIE);
		play_keep(h, "holders", 3); /* at the latest now it is seen */
		next = play_expect("holders", 0xf, 0, false, PV_STATE_PREPARED);
		CHECK(!play_thawed(next, 0) && !play_thawed(next, 3));
		next->ops->close(next);
		play_kill_holder_at("holders", step);
		CHECK(h->ops->cancel(h) == 0 && play_thawed(h, 0));
		steps_arm(0, STEP_DIE);
		CHECK(h->ops->drop(h, 3) == 0);
		next = play_expect("holders", ALL, 0, false, PV_STATE_SERVING);
		CHECK(play_thawed(next, 0) && play_thawed(next, 2));
		next->ops->close(next);
	}
	printf("luo-handover: holder killed at %u steps of prepare, and of cancel\n", reached);
	CHECK(reached > 20);
	CHECK(h->ops->forget(h) == 0);
	h->ops->close(h);
}

static int do_join(const char *store)
{
	struct pvi_handover *h = play_expect(store, ALL, 0, false, PV_STATE_PREPARED);

	play_keep(h, store, 3);
	return 0;
}

static int do_leave(const char *store)
{
	struct pvi_handover *h = play_expect(store, ALL | 8, 0, false, PV_STATE_PREPARED);

	return h->ops->drop(h, 3);
}

/** Growth while prepared, killed at every step; then the same with the holder killed. */
static void deaths_in_join_and_leave(void)
{
	struct pvi_handover *h = play_make("join");
	unsigned int step, left, reached;

	CHECK(play_prepare(h) == 0);
	h->ops->close(h);
	for (step = 1; !play_lives(do_join, "join", step); step++) {
		CHECK(step < STEPS_MAX);
		/* What may be there of it is dropped by the next process, as the store does. */
		h = play_open("join");
		play_fetch_any(h, "join", ALL, 8);
		CHECK(h->state == PV_STATE_PREPARED && h->ops->drop(h, 3) == 0);
		h->ops->close(h);
	}
	for (left = 1; !play_lives(do_leave, "join", left); left++) {
		CHECK(left < STEPS_MAX);
		h = play_open("join");
		play_fetch_any(h, "join", ALL, 8);
		play_keep(h, "join", 3);
		h->ops->close(h);
	}
	printf("luo-handover: join killed at %u steps, leave at %u\n", step - 1, left - 1);
	CHECK(step > 8 && left > 4);
	h = play_expect("join", ALL, 0, false, PV_STATE_PREPARED);
	for (step = 1, reached = 1; reached >= step; step++) {
		play_kill_holder_at("join", step);
		play_keep(h, "join", 3);
		reached = steps_count();
		play_kill_holder_at("join", step);
		CHECK(h->ops->drop(h, 3) == 0);
	}
	printf("luo-handover: holder killed at %u steps of join, and of leave\n", reached);
	steps_arm(0, STEP_DIE);
	play_keep(h, "join", 3);
	h->ops->close(h);
	/* To be looked at in the next boot. */
	h = play_expect("join", ALL | 8, 0, false, PV_STATE_PREPARED);
	h->ops->close(h);
}

/** Death while prepared: the next process sees it, segments join and leave; so with `holder`. */
static void death_while_prepared(void)
{
	struct pvi_handover *h = play_make("plain");

	h->ops->close(h);
	CHECK(play_lives(play_do_prepare, "plain", 0));
	h = play_expect("plain", ALL, 0, false, PV_STATE_PREPARED);
	play_keep(h, "plain", 3);
	CHECK(!play_thawed(h, 3));
	/* Replaced: the old one is not handed over. */
	play_keep(h, "plain", 4);
	play_keep(h, "plain", 4);
	CHECK(h->ops->drop(h, 1) == 0);
	h->ops->close(h);

	CHECK(pvi_holder_open("plain", &play_writer, &h) == 0);
	play_fetch(h, "plain", 0x1d, 0, false);
	CHECK(h->state == PV_STATE_PREPARED && h->ops->prepare == NULL);
	play_keep(h, "plain", 5);
	CHECK(!play_thawed(h, 5));
	/* The holder dies: the session lives on here, and is handed to a new one. */
	kill(play_holder("plain"), SIGKILL);
	usleep(100000);
	play_keep(h, "plain", 6);
	CHECK(h->state == PV_STATE_PREPARED && !play_thawed(h, 0) && !play_thawed(h, 6));
	h->ops->close(h);
	/* SIGTERM is ignored while there is a session. */
	kill(play_holder("plain"), SIGTERM);
	usleep(100000);

	h = play_expect("plain", 0x7d, 0, false, PV_STATE_PREPARED);
	/* Written after prepare. */
	for (uint64_t token = 0; token <= 6; token++) {
		if (token != 1)
			play_fill(pvi_keeper_find(pvi_keeper_of(h), token), "plain", token, 1);
	}
	h->ops->close(h);
}

static struct pvi_handover *make_prepared(const char *store)
{
	struct pvi_handover *h = play_make(store);

	CHECK(play_prepare(h) == 0);
	return h;
}

/** What a damaged manifest is damaged by: a word at a place of its file. */
static const struct damage {
	const char *store;
	off_t at;
	uint64_t word;
	int error;
} damages[] = {
	{"magic", 0, 1, -EBADMSG},
	{"version", 8, (uint64_t)4096 << 32 | 2, -EPROTONOSUPPORT},
	{"capacity", 8, (uint64_t)4095 << 32 | 1, -EBADMSG},
	{"owner", 16, 'x', -EBADMSG},
	{"state", 80, 3, -EBADMSG},
	{"count", 88, 4097, -EBADMSG},
	{"token", 128 + 8, UINT64_MAX - 1, -EBADMSG},
};

/** Stores that stand for something in the next boot. */
static void leave_behind(void)
{
	struct pvi_handover *h;
	char store[16];
	pid_t child;

	for (unsigned int i = 0; i < TAKE_OVERS; i++) {
		snprintf(store, sizeof(store), "r%u", i);
		h = make_prepared(store);
		h->ops->close(h);
		snprintf(store, sizeof(store), "h%u", i);
		h = make_prepared(store);
		h->ops->close(h);
	}
	for (unsigned int i = 0; i < sizeof(damages) / sizeof(*damages); i++) {
		h = make_prepared(damages[i].store);
		CHECK(pwrite(pvi_keeper_find(pvi_keeper_of(h), HOLDER_TOKEN_MANIFEST),
			     &damages[i].word, 8, damages[i].at) == 8);
		h->ops->close(h);
	}
	h = play_make("unprepared");
	h->ops->close(h);
	h = make_prepared("held");
	h->ops->close(h);
	h = make_prepared("discarded");
	h->ops->close(h);
	h = make_prepared("raced");
	h->ops->close(h);
	/* In the middle of prepare when the kexec comes. */
	h = play_make("halfway");
	h->ops->close(h);
	child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		steps_arm(16, STEP_STAND);
		_exit(play_do_prepare("halfway") ? 1 : 0);
	}
	sleep(1);
	CHECK(waitpid(child, NULL, WNOHANG) == 0);
}

/* ---- boot 1 ---- */

static void forget(const char *store)
{
	struct pvi_handover *h = play_open(store);

	CHECK(h->ops->forget(h) == 0);
	h->ops->close(h);
	play_expect_error(store, -ENOENT);
}

static void what_must_not_come(void)
{
	struct pvi_handover *h;
	struct pvi_fd *fds;
	unsigned int n;
	bool from_kexec;
	char name[LUO_NAME_MAX];
	int device, session;

	play_expect_error("unprepared", -ENOENT);
	/* Who only looks does not take over. */
	CHECK(pvi_luo_open("plain", &play_reader, &h) == 0);
	CHECK(h->ops->fetch(h, &fds, &n, &from_kexec) == -ENOENT);
	h->ops->close(h);
	/* Somebody else has the session, and then drops it. */
	device = pvi_luo_device();
	pvi_luo_session_name(geteuid(), "held", name);
	CHECK(pvi_luo_retrieve_session(device, name, &session) == 0);
	close(device);
	play_expect_error("held", -EBUSY);
	close(session);
	play_expect_error("held", -ENOENT);
	/* The kexec came in the middle of prepare: it is left alone until it is dropped. */
	play_expect_error("halfway", -ENXIO);
	play_expect_error("halfway", -ENXIO);
	forget("halfway");
	/* Dropped without a look. */
	forget("discarded");
	for (unsigned int i = 0; i < sizeof(damages) / sizeof(*damages); i++) {
		play_expect_error(damages[i].store, damages[i].error);
		play_expect_error(damages[i].store, damages[i].error);
		forget(damages[i].store);
	}
}

/** Several open the store at once: some succeed, some are told that another does, none harms it. */
static void race_take_over(void)
{
	pid_t children[4];
	unsigned int succeeded = 0;
	struct pvi_handover *h;

	for (unsigned int i = 0; i < 4; i++) {
		children[i] = fork();
		CHECK(children[i] >= 0);
		if (children[i] == 0)
			_exit(-play_do_fetch("raced"));
	}
	for (unsigned int i = 0; i < 4; i++) {
		int status;

		CHECK(waitpid(children[i], &status, 0) == children[i] && WIFEXITED(status));
		if (WEXITSTATUS(status))
			printf("luo-handover: one was told: %s\n", strerror(WEXITSTATUS(status)));
		CHECK(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == EBUSY);
		succeeded += WEXITSTATUS(status) == 0;
	}
	CHECK(succeeded > 0);
	printf("luo-handover: %u of 4 took the store over\n", succeeded);
	h = play_expect("raced", ALL, 0, true, PV_STATE_SERVING);
	/* The holder dies in between: what it had, this process has too. */
	kill(play_holder("raced"), SIGKILL);
	usleep(100000);
	CHECK(h->ops->finish(h) == 0);
	CHECK(play_prepare(h) == 0 && h->ops->cancel(h) == 0);
	h->ops->close(h);
	h = play_expect("raced", ALL, 0, false, PV_STATE_SERVING);
	h->ops->close(h);
}

static void deaths_after_kexec(void)
{
	unsigned int fetched = 0, finished = 0;
	struct pvi_handover *h;
	char store[16];

	for (unsigned int i = 0; i < TAKE_OVERS; i++) {
		snprintf(store, sizeof(store), "r%u", i);
		if (!play_lives(play_do_fetch, store, i + 1))
			fetched = i + 1;
		/* Whoever comes next goes on. */
		h = play_expect(store, ALL, 0, true, PV_STATE_SERVING);
		CHECK(play_prepare(h) == -EBUSY);
		h->ops->close(h);
		if (!play_lives(play_do_finish, store, i + 1))
			finished = i + 1;
		h = play_open(store);
		CHECK(play_do_fetch(store) == 0);
		h->ops->close(h);
	}
	printf("luo-handover: take-over killed at %u steps, finish at %u\n", fetched, finished);
	/* All of the steps were there: the last ones found nothing to kill. */
	CHECK(fetched > 15 && fetched < TAKE_OVERS && finished > 8 && finished < fetched);
}

/** The files of killed joins are in the session as well, and not in its manifest. */
static void joined_came(void)
{
	struct pvi_handover *h = play_expect("join", ALL | 8, 0, true, PV_STATE_SERVING);

	CHECK(h->ops->finish(h) == 0);
	h->ops->close(h);
}

/** The holder dies at each step, this process goes on. Nothing is ever lost. */
static void holder_deaths_after_kexec(void)
{
	unsigned int fetched = 0, finished = 0;

	for (unsigned int step = 1; step <= TAKE_OVERS; step++) {
		struct pvi_handover *h;
		char store[16];

		snprintf(store, sizeof(store), "h%u", step - 1);
		h = play_open(store);
		play_kill_holder_at(store, step);
		play_fetch(h, store, ALL, 0, true);
		if (steps_count() >= step)
			fetched = step;
		play_kill_holder_at(store, step);
		CHECK(h->ops->finish(h) == 0);
		if (steps_count() >= step)
			finished = step;
		steps_arm(0, STEP_DIE);
		CHECK(play_prepare(h) == 0);
		h->ops->close(h);
		h = play_expect(store, ALL, 0, false, PV_STATE_PREPARED);
		CHECK(h->ops->cancel(h) == 0);
		h->ops->close(h);
	}
	printf("luo-handover: holder killed at %u steps of take-over, at %u of finish\n", fetched,
	       finished);
	CHECK(fetched > 15 && fetched < TAKE_OVERS && finished > 4 && finished < TAKE_OVERS);
}

/* ---- boots 1 to 4 ---- */

/** Takes the store over, checks it, writes the next generation and prepares again. */
static void once_more(const char *store, unsigned int generation, bool again)
{
	struct pvi_handover *h = play_expect(store, 0x7d, generation, true, PV_STATE_SERVING);

	CHECK(h->ops->finish(h) == 0);
	CHECK(h->ops->finish(h) == 0);
	h->ops->close(h);
	h = play_expect(store, 0x7d, generation, false, PV_STATE_SERVING);
	CHECK(play_thawed(h, 0));
	for (uint64_t token = 0; token <= 6; token++) {
		if (token != 1)
			play_fill(pvi_keeper_find(pvi_keeper_of(h), token), store, token,
				  generation + 1);
	}
	if (again)
		CHECK(play_prepare(h) == 0);
	h->ops->close(h);
}

static void without_device(void)
{
	struct pvi_handover *h;
	struct pv_options o = play_writer;

	CHECK(pvi_luo_available() == -ENODEV);
	printf("luo-handover: %s\n", pv_last_error());
	o.handover = PV_HANDOVER_LUO;
	CHECK(pvi_handover_open("plain", &o, &h) == -ENODEV);
	o.handover = PV_HANDOVER_AUTO;
	CHECK(pvi_handover_open("plain", &o, &h) == 0);
	CHECK(h->ops->kind == PV_HANDOVER_HOLDER);
	h->ops->close(h);
}

/** Nobody has kept the device open, neither a holder nor a child: it admits one opener. */
static void device_is_free(unsigned int boot)
{
	int device = boot == 4 ? -1 : open(LUO_DEVICE, O_RDWR | O_CLOEXEC);

	CHECK(boot == 4 || device >= 0);
	if (device >= 0)
		close(device);
}

int main(int argc, char **argv)
{
	unsigned int boot = argc == 2 ? (unsigned int)atoi(argv[1]) : 99;

	setvbuf(stdout, NULL, _IONBF, 0);
	switch (boot) {
	case 0:
		CHECK(pvi_luo_available() == 0);
		other_user();
		luo_errors_before_kexec();
		errors_of_prepare();
		deaths_before_kexec();
		holder_deaths_before_kexec();
		deaths_in_join_and_leave();
		death_while_prepared();
		leave_behind();
		break;
	case 1:
		luo_errors_after_kexec();
		what_must_not_come();
		race_take_over();
		deaths_after_kexec();
		holder_deaths_after_kexec();
		joined_came();
		once_more("plain", 1, true);
		break;
	case 2:
		once_more("plain", 2, true);
		break;
	case 3:
		once_more("plain", 3, false);
		play_expect_error("r0", -ENOENT);
		break;
	case 4:
		without_device();
		break;
	default:
		fprintf(stderr, "usage: luo-handover BOOT (0 to 4)\n");
		return 2;
	}
	device_is_free(boot);
	printf("luo-handover: boot %u passed\n", boot);
	return 0;
}
