/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The Live Update Orchestrator's calls (luo.h), and whether this process may use them.
 *
 * Nobody may keep the device open: it admits one opener on the whole machine, and a service manager
 * that finds it busy at shut-down loses what it wanted to carry over.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "handover.h"
#include "luo.h"

#define BUSY_TRIES    50
#define BUSY_PAUSE_NS 20000000l

static int device_fail(int error)
{
	switch (error) {
	case ENOENT:
	case ENODEV:
	case ENXIO:
		return pvi_fail(-ENODEV, "there is no " LUO_DEVICE
					 ": this kernel has no Live Update Orchestrator, or it was "
					 "not booted with kho=on liveupdate=on");
	case EACCES:
	case EPERM:
		return pvi_fail(-EACCES, LUO_DEVICE " may not be opened by user %u: %s", geteuid(),
				strerror(error));
	case EBUSY:
		return pvi_fail(-EBUSY,
				LUO_DEVICE " is in use by another process (tried for %d ms)",
				(int)(BUSY_TRIES * (BUSY_PAUSE_NS / 1000000)));
	case EIO:
		return pvi_fail(-EIO,
				LUO_DEVICE ": the kernel could not read what its predecessor left");
	default:
		return pvi_fail(-error, LUO_DEVICE ": %s", strerror(error));
	}
}

int pvi_luo_available(void)
{
	int fd;

	/* Without touching the device where the answer is no, which is nearly everywhere. */
	if (faccessat(AT_FDCWD, LUO_DEVICE, R_OK | W_OK, AT_EACCESS))
		return device_fail(errno);
	fd = open(LUO_DEVICE, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return errno == EBUSY ? 0 : device_fail(errno);
	close(fd);
	return 0;
}

int pvi_luo_device(void)
{
	for (int tries = 1;; tries++) {
		int fd = open(LUO_DEVICE, O_RDWR | O_CLOEXEC);

		if (fd >= 0)
			return fd;
		if (errno != EINTR && (errno != EBUSY || tries >= BUSY_TRIES))
			return device_fail(errno);
		if (errno == EBUSY)
			nanosleep(&(struct timespec){0, BUSY_PAUSE_NS}, NULL);
	}
}

void pvi_luo_session_name(uint32_t uid, const char *store_name, char name[LUO_NAME_MAX])
{
	int n = snprintf(name, LUO_NAME_MAX, "preserve-%u-%s", uid, store_name);

	/* What does not fit is told apart by a hash instead of its last characters. */
	if (n >= LUO_NAME_MAX)
		snprintf(name + LUO_NAME_MAX - 18, 18, "-%016" PRIx64,
			 (uint64_t)XXH3_64bits(store_name, strlen(store_name)));
}

static int session_call(int device, unsigned long request, const char *name, int *session)
{
	struct luo_session_arg arg = {.size = sizeof(arg), .fd = -1};

	strncpy(arg.name, name, sizeof(arg.name) - 1);
	if (ioctl(device, request, &arg))
		return -errno;
	*session = arg.fd;
	return 0;
}

int pvi_luo_create(int device, const char *name, int *session)
{
	return session_call(device, LUO_CREATE_SESSION, name, session);
}

int pvi_luo_retrieve_session(int device, const char *name, int *session)
{
	return session_call(device, LUO_RETRIEVE_SESSION, name, session);
}

int pvi_luo_preserve(int session, uint64_t token, int fd)
{
	struct luo_file_arg arg = {.size = sizeof(arg), .fd = fd, .token = token};

	return ioctl(session, LUO_PRESERVE_FD, &arg) ? -errno : 0;
}

int pvi_luo_retrieve(int session, uint64_t token, int *fd)
{
	struct luo_file_arg arg = {.size = sizeof(arg), .fd = -1, .token = token};

	if (ioctl(session, LUO_RETRIEVE_FD, &arg))
		return -errno;
	*fd = arg.fd;
	return 0;
}

int pvi_luo_finish(int session)
{
	struct luo_finish_arg arg = {.size = sizeof(arg)};

	return ioctl(session, LUO_FINISH, &arg) ? -errno : 0;
}

int pvi_luo_name(int session, char name[LUO_NAME_MAX])
{
	struct luo_name_arg arg = {.size = sizeof(arg)};

	if (ioctl(session, LUO_GET_NAME, &arg))
		return -errno;
	memcpy(name, arg.name, LUO_NAME_MAX);
	name[LUO_NAME_MAX - 1] = 0;
	return 0;
}

bool pvi_luo_is_session(int fd)
{
	char path[32], link[64], name[LUO_NAME_MAX];
	struct statfs fs;
	ssize_t n;

	if (fstatfs(fd, &fs) == 0 && fs.f_type == LUO_FS_MAGIC)
		return true;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n <= 0)
		return pvi_luo_name(fd, name) == 0;
	link[n] = 0;
	return strncmp(link, LUO_LINK_ANON, strlen(LUO_LINK_ANON)) == 0 ||
	       strncmp(link, LUO_LINK_FS, strlen(LUO_LINK_FS)) == 0;
}

bool pvi_luo_is_frozen(int fd)
{
	/* Gives memory to a page that has it: changes nothing, and is refused while frozen. Unlike
	 * punching a hole it is not refused for a seal against writing. */
	return fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 4096) && errno == EPERM;
}
