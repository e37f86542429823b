/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * For tests of the barrier on kernels without a Live Update Orchestrator: an agent whose calls of
 * it succeed and do nothing (linked with --wrap). A session is a memfd of that name. $FAKE_LUO_FILE
 * names a file that says how long preserving a file takes, in ms, with which errno it fails, and
 * with which one making the session of a store; missing: at once, not at all. The real calls are
 * tested in the virtual machine.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "luo.h"
#include "preserved.h"

int __wrap_pvi_luo_available(void);
int __wrap_pvi_luo_device(void);
int __wrap_pvi_luo_create(int device, const char *name, int *session);
int __wrap_pvi_luo_preserve(int session, uint64_t token, int fd);
bool __wrap_pvi_luo_is_session(int fd);

int __wrap_pvi_luo_available(void)
{
	return 0;
}

int __wrap_pvi_luo_device(void)
{
	return memfd_create("fake-device", MFD_CLOEXEC);
}

/** What the file says: 0 ms, 1 error of preserving, 2 of creating. */
static int setting(unsigned int which)
{
	const char *path = getenv("FAKE_LUO_FILE");
	FILE *f = path ? fopen(path, "re") : NULL;
	int numbers[3] = {0};

	if (f) {
		if (fscanf(f, "%d %d %d", &numbers[0], &numbers[1], &numbers[2]) < 1)
			numbers[0] = 0;
		fclose(f);
	}
	return numbers[which];
}

int __wrap_pvi_luo_create(int device, const char *name, int *session)
{
	if (strcmp(name, "preserve-agent") != 0 && setting(2))
		return -setting(2);
	*session = memfd_create("fake-session", MFD_CLOEXEC);
	return *session < 0 ? -errno : 0;
}

int __wrap_pvi_luo_preserve(int session, uint64_t token, int fd)
{
	usleep((useconds_t)setting(0) * 1000);
	return -setting(1);
}

bool __wrap_pvi_luo_is_session(int fd)
{
	char link[40], target[64] = "";

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return readlink(link, target, sizeof(target) - 1) > 0 && strstr(target, "fake-session");
}
