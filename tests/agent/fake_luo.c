/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * For tests of the barrier on kernels without a Live Update Orchestrator: an agent whose calls of it
 * succeed and do nothing (linked with --wrap). A session is a memfd of that name. $FAKE_LUO_FILE names a
 * file that says how long preserving a file takes, in ms, and with which errno it fails; missing: at
 * once, not at all. The real calls are tested in the virtual machine.
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
int __real_verify(uint64_t token, int fd, uint32_t pages, uint64_t *bytes);
int __wrap_verify(uint64_t token, int fd, uint32_t pages, uint64_t *bytes);

int __wrap_pvi_luo_available(void)
{
	return 0;
}

int __wrap_pvi_luo_device(void)
{
	return memfd_create("fake-device", MFD_CLOEXEC);
}

int __wrap_pvi_luo_create(int device, const char *name, int *session)
{
	*session = memfd_create("fake-session", MFD_CLOEXEC);
	return *session < 0 ? -errno : 0;
}

int __wrap_pvi_luo_preserve(int session, uint64_t token, int fd)
{
	const char *path = getenv("FAKE_LUO_FILE");
	unsigned int ms = 0;
	int error = 0;
	FILE *f = path ? fopen(path, "re") : NULL;

	if (f) {
		if (fscanf(f, "%u %d", &ms, &error) < 1)
			ms = 0;
		fclose(f);
	}
	usleep(ms * 1000);
	return -error;
}

int __wrap_verify(uint64_t token, int fd, uint32_t pages, uint64_t *bytes)
{
	char link[40], target[64] = "";

	if (token != HOLDER_TOKEN_OUTGOING)
		return __real_verify(token, fd, pages, bytes);
	*bytes = 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (readlink(link, target, sizeof(target) - 1) < 0)
		return -errno;
	return strstr(target, "fake-session") ? 0 : -EMEDIUMTYPE;
}
