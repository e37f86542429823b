/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * raw.c - system calls of the engine itself. The engine overrides the libc functions of the same
 * names (interpose.c), so it must not call those. All are async-signal-safe; like libc they return
 * -1 and set errno.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"

struct ct_state ct;

void *ct_raw_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, off);
}

int ct_raw_munmap(void *addr, size_t len)
{
	return (int)syscall(SYS_munmap, addr, len);
}

int ct_raw_mprotect(void *addr, size_t len, int prot)
{
	return (int)syscall(SYS_mprotect, addr, len, prot);
}

int ct_raw_memfd_create(const char *name, unsigned flags)
{
	return (int)syscall(SYS_memfd_create, name, flags);
}

int ct_raw_ftruncate(int fd, off_t size)
{
	return (int)syscall(SYS_ftruncate, fd, size);
}

int ct_raw_fcntl(int fd, int cmd, unsigned long arg)
{
	return (int)syscall(SYS_fcntl, fd, cmd, arg);
}

int ct_raw_close(int fd)
{
	return (int)syscall(SYS_close, fd);
}

uint64_t ct_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void ct_panic(const char *format, ...)
{
	va_list ap;

	fputs("crash engine: ", stderr);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	abort();
}
