/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "holder.h"
#include "internal.h"
#include "luo.h"
#include "luo_errors.h"
#include "luo_play.h"
#include "session.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* 63 characters, as many as there may be: a link of /proc may show fewer. */
#define LONG_NAME "luo-errors-012345678901234567890123456789012345678901234567890a"

enum { FILE_BYTES = 16384 };

static int new_session(const char *name)
{
	int session, device = pvi_luo_device();

	CHECK(device >= 0);
	CHECK(pvi_luo_create(device, name, &session) == 0);
	close(device);
	return session;
}

static int new_file(int seals)
{
	char page[4096];
	int fd = memfd_create("luo-errors", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	memset(page, 'x', sizeof(page));
	CHECK(fd >= 0 && ftruncate(fd, FILE_BYTES) == 0);
	CHECK(pwrite(fd, page, sizeof(page), 0) == sizeof(page));
	CHECK(seals == 0 || fcntl(fd, F_ADD_SEALS, seals) == 0);
	return fd;
}

/* ---- before ---- */

static void device_errors(void)
{
	struct {
		struct luo_session_arg known;
		uint64_t more;
	} arg = {.known = {.size = sizeof(arg), .name = "luo-errors-tail"}, .more = 1};
	int session, device = pvi_luo_device();

	CHECK(device >= 0);
	CHECK(open(LUO_DEVICE, O_RDWR | O_CLOEXEC) < 0 && errno == EBUSY);
	CHECK(ioctl(device, LUO_CREATE_SESSION, &arg) < 0 && errno == E2BIG);
	/* Which of the two depends on how far from the known numbers it is. */
	CHECK(ioctl(device, _IO(0xba, 0x3f), &arg) < 0 && (errno == ENOTTY || errno == EINVAL));
	CHECK(ioctl(device, _IOR(0xba, 0x00, int), &arg) < 0 && errno == ENOTTY);
	CHECK(pvi_luo_create(device, "", &session) == -EINVAL);
	CHECK(pvi_luo_create(device, LONG_NAME, &session) == 0);
	CHECK(pvi_luo_create(device, LONG_NAME, &session) == -EEXIST);
	CHECK(pvi_luo_retrieve_session(device, "luo-errors-unknown", &session) == -ENOENT);
	close(device);
	close(session);
}

static void session_is_told(void)
{
	int pair[2], session = new_session("luo-errors-told"), file = new_file(0);
	char name[LUO_NAME_MAX];

	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
	CHECK(pvi_luo_is_session(session));
	CHECK(!pvi_luo_is_session(file) && !pvi_luo_is_session(pair[0]));
	CHECK(pvi_luo_name(session, name) == 0 && strcmp(name, "luo-errors-told") == 0);
	CHECK(pvi_luo_name(file, name) == -ENOTTY);
	close(pair[0]);
	close(pair[1]);
	close(file);
	close(session);
	session = new_session(LONG_NAME); /* the last one of this name was closed: it is free again */
	CHECK(pvi_luo_is_session(session) && pvi_luo_name(session, name) == 0);
	CHECK(strcmp(name, LONG_NAME) == 0);
	close(session);
}

static void files_that_are_refused(int session)
{
	int pair[2], linked = open("/tmp/luo-errors", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int huge = memfd_create("luo-errors-huge", MFD_CLOEXEC | MFD_HUGETLB);

	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0 && linked >= 0);
	CHECK(huge >= 0);
	CHECK(pvi_luo_preserve(session, 90, pair[0]) == -ENOENT);
	CHECK(pvi_luo_preserve(session, 91, linked) == -ENOENT);
	CHECK(pvi_luo_preserve(session, 92, huge) == -ENOENT);
	CHECK(pvi_luo_preserve(session, 93, -1) == -EBADF);
	close(pair[0]);
	close(pair[1]);
	close(linked);
	close(huge);
	CHECK(unlink("/tmp/luo-errors") == 0);
}

static void preserve_errors(void)
{
	int session = new_session("luo-errors-a"), other = new_session("luo-errors-b");
	int file = new_file(0), second = new_file(0), fd;

	CHECK(!pvi_luo_is_frozen(file));
	CHECK(pvi_luo_preserve(session, 1, file) == 0 && pvi_luo_is_frozen(file));
	CHECK(pvi_luo_preserve(session, 1, second) == -EEXIST);
	CHECK(pvi_luo_preserve(session, 2, file) == -EBUSY);
	CHECK(pvi_luo_preserve(other, 1, file) == -EBUSY);
	files_that_are_refused(session);
	/* What is for sessions that came from the last kernel. */
	CHECK(pvi_luo_retrieve(session, 1, &fd) == -EINVAL);
	CHECK(pvi_luo_finish(session) == -EINVAL);
	CHECK(ioctl(session, _IO(0xba, 0x7f), NULL) < 0);
	close(session);
	CHECK(!pvi_luo_is_frozen(file) && pvi_luo_preserve(other, 1, file) == 0);
	close(other);
	close(file);
	close(second);
}

static void frozen_means(void)
{
	const int all = F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_WRITE;
	int session = new_session("luo-errors-frozen"), file = new_file(0), sealed = new_file(all);
	char byte = 'y';

	/* A seal against writing is not taken for it. */
	CHECK(!pvi_luo_is_frozen(sealed));
	CHECK(pvi_luo_preserve(session, 1, file) == 0 && pvi_luo_preserve(session, 2, sealed) == 0);
	CHECK(pvi_luo_is_frozen(file) && pvi_luo_is_frozen(sealed));
	CHECK(ftruncate(file, 2 * FILE_BYTES) < 0 && errno == EPERM);
	CHECK(ftruncate(file, FILE_BYTES / 2) < 0 && errno == EPERM);
	CHECK(ftruncate(file, FILE_BYTES) == 0);
	CHECK(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) < 0 &&
	      errno == EPERM);
	CHECK(pwrite(file, &byte, 1, FILE_BYTES) < 0 && errno == EPERM);
	CHECK(pwrite(file, &byte, 1, 100) == 1 && pread(file, &byte, 1, 100) == 1 && byte == 'y');
	close(session);
	CHECK(ftruncate(file, 2 * FILE_BYTES) == 0);
	CHECK(!pvi_luo_is_frozen(file) && !pvi_luo_is_frozen(sealed));
	close(file);
	close(sealed);
}

/** What the library says of each descriptor, and what it sees before the kernel is asked. */
static void queries(void)
{
	struct pvi_handover *h = play_make("queried");
	struct pvi_keeper *k = pvi_keeper_of(h);
	int other = new_session("luo-errors-other"), stranger = new_file(0);
	uint64_t token = 99;

	CHECK(pvi_session_query(k, pvi_keeper_find(k, 1), &token) == 0);
	CHECK(pvi_luo_preserve(other, 1, stranger) == 0);
	CHECK(pvi_session_query(k, stranger, &token) == -EBUSY);
	CHECK(play_prepare(h) == 0);
	for (uint64_t i = 0; i < TOKENS; i++)
		CHECK(pvi_session_query(k, pvi_keeper_find(k, i), &token) == 1 && token == i);
	CHECK(pvi_session_query(k, stranger, &token) == -EBUSY);
	CHECK(h->ops->drop(h, 2) == 0); /* from the store; the kernel keeps it till the end */
	CHECK(h->ops->cancel(h) == 0);
	CHECK(pvi_session_query(k, pvi_keeper_find(k, 1), &token) == 0);
	/* Seen before the kernel is asked. */
	CHECK(pvi_luo_preserve(other, 2, pvi_keeper_find(k, 1)) == 0);
	CHECK(pvi_session_query(k, pvi_keeper_find(k, 1), &token) == -EBUSY);
	CHECK(play_prepare(h) == -EBUSY);
	CHECK(strstr(pv_last_error(), "preserved already, in a session that is not this one"));
	CHECK(play_thawed(h, 0) && !play_thawed(h, 1));
	close(other);
	close(stranger);
	CHECK(play_prepare(h) == 0 && h->ops->forget(h) == 0);
	h->ops->close(h);
}

/** In parts, as pv_handover_prepare() does: what left the store meanwhile does not come. */
static void prepared_in_parts(void)
{
	struct pvi_handover *h = play_make("parts");
	struct pvi_keeper *k = pvi_keeper_of(h);
	struct pvi_fd fd;

	play_keep(h, "parts", 3);
	for (uint64_t i = 0; i < 4; i++) {
		fd = (struct pvi_fd){i, pvi_keeper_find(k, i)};
		CHECK(h->ops->preserve(h, &fd, 1) == 0);
		CHECK(!play_thawed(h, i) && h->state == PV_STATE_SERVING);
		CHECK(h->preserved_bytes == (i + 1) * BYTES);
	}
	CHECK(h->ops->preserve(h, &fd, 1) == 0 && h->preserved_bytes == 4 * BYTES);
	/* 3 leaves, 2 is another file by now, 4 is new. */
	CHECK(h->ops->drop(h, 3) == 0);
	play_keep(h, "parts", 2);
	play_keep(h, "parts", 4);
	CHECK(play_prepare(h) == 0 && h->state == PV_STATE_PREPARED);
	h->ops->close(h);
	/* The death of who has begun undoes it. */
	h = play_make("begun");
	fd = (struct pvi_fd){0, pvi_keeper_find(pvi_keeper_of(h), 0)};
	CHECK(h->ops->preserve(h, &fd, 1) == 0 && !play_thawed(h, 0));
	h->ops->close(h);
	h = play_expect("begun", ALL, 0, false, PV_STATE_SERVING);
	CHECK(play_thawed(h, 0) && h->ops->forget(h) == 0);
	h->ops->close(h);
}

/** Holes that the machine has no memory for: said, instead of somebody being killed. */
static void holes_are_too_large(void)
{
	struct pvi_handover *h = play_make("holes");
	int fd = pvi_arena_memfd("luo-errors", 16ull << 30);

	CHECK(fd >= 0 && pwrite(fd, "x", 1, 0) == 1);
	CHECK(h->ops->keep(h, 3, fd) == 0);
	CHECK(play_prepare(h) == -ENOMEM && strstr(pv_last_error(), "of it have no memory yet"));
	printf("luo-handover: %s\n", pv_last_error());
	CHECK(play_thawed(h, 0) && h->state == PV_STATE_SERVING);
	CHECK(h->ops->drop(h, 3) == 0 && play_prepare(h) == 0);
	/* The same when it joins. */
	CHECK(h->ops->keep(h, 3, fd) == -ENOMEM && h->state == PV_STATE_PREPARED);
	close(fd);
	CHECK(h->ops->forget(h) == 0);
	h->ops->close(h);
}

static void leave_behind(void)
{
	static int session; /* stays open: the process does, until the kexec */
	int file = new_file(F_SEAL_GROW | F_SEAL_SHRINK), late = new_file(0);

	session = new_session("luo-errors-kexec");
	CHECK(pvi_luo_preserve(session, 1, file) == 0);
	CHECK(pvi_luo_preserve(session, 2, late) == 0);
	/* Not carried over: sealed too late. */
	CHECK(fcntl(late, F_ADD_SEALS, F_SEAL_GROW) == 0);
	fflush(stdout);
	if (fork() == 0)
		for (;;)
			pause();
}

void luo_errors_before_kexec(void)
{
	device_errors();
	session_is_told();
	preserve_errors();
	frozen_means();
	queries();
	prepared_in_parts();
	holes_are_too_large();
	leave_behind();
}

/* ---- after ---- */

static void retrieved_files(int session, int out[2])
{
	struct stat a, b;
	int again;

	CHECK(pvi_luo_retrieve(session, 77, &again) == -ENOENT);
	CHECK(pvi_luo_retrieve(session, 1, &out[0]) == 0);
	CHECK(pvi_luo_retrieve(session, 1, &again) == 0);
	CHECK(fstat(out[0], &a) == 0 && fstat(again, &b) == 0 && a.st_ino == b.st_ino);
	CHECK((a.st_mode & 0777) == 0777 && a.st_size == FILE_BYTES);
	close(again);
	CHECK(fcntl(out[0], F_GET_SEALS) == (F_SEAL_GROW | F_SEAL_SHRINK));
	CHECK(fcntl(out[0], F_GETFD) == FD_CLOEXEC);
	CHECK(pvi_luo_retrieve(session, 2, &out[1]) == 0);
	CHECK(fcntl(out[1], F_GET_SEALS) == 0);
}

static void incoming_errors(void)
{
	int session, other, files[2], fresh = new_file(0), device = pvi_luo_device();
	char name[LUO_NAME_MAX];

	CHECK(device >= 0);
	CHECK(pvi_luo_retrieve_session(device, "luo-errors-kexec", &session) == 0);
	CHECK(pvi_luo_retrieve_session(device, "luo-errors-kexec", &other) == -EINVAL);
	close(device);
	CHECK(pvi_luo_is_session(session) && pvi_luo_name(session, name) == 0);
	CHECK(strcmp(name, "luo-errors-kexec") == 0);
	CHECK(pvi_luo_preserve(session, 3, fresh) == -EINVAL);
	retrieved_files(session, files);
	other = new_session("luo-errors-next");
	/* Retrieved, and not finished: the kernel says so, not the look before. */
	CHECK(!pvi_luo_is_frozen(files[0]));
	CHECK(pvi_luo_preserve(other, 1, files[0]) == -EBUSY);
	CHECK(pvi_luo_finish(session) == 0);
	CHECK(pvi_luo_preserve(other, 1, files[0]) == 0 && pvi_luo_is_frozen(files[0]));
	close(other);
	close(session);
	close(files[0]);
	close(files[1]);
	close(fresh);
}

static void parts_came(void)
{
	struct pvi_handover *h = play_expect("parts", 0x17, 0, true, PV_STATE_SERVING);

	CHECK(h->ops->finish(h) == 0 && h->ops->forget(h) == 0);
	h->ops->close(h);
}

void luo_errors_after_kexec(void)
{
	incoming_errors();
	parts_came();
}
