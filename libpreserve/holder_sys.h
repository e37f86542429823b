/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * System calls for the holder program, which has no C library: that keeps a process that may live
 * for months at a few pages of memory, its image within the library small, and its behaviour
 * independent of how the library was built (sanitizers, profiling, allocators). Types and constants
 * come from the libc's headers, functions never. Only the holder program includes this.
 *
 * Each function returns what the kernel does: a negative errno on failure.
 */
#ifndef PVI_HOLDER_SYS_H
#define PVI_HOLDER_SYS_H

#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#if defined(__x86_64__)

/* The kernel enters with argc on top of the stack, aligned to 16. */
__asm__(".pushsection .text\n"
	".globl _start\n"
	"_start:\n"
	"	xorl	%ebp, %ebp\n"
	"	movq	%rsp, %rdi\n"
	"	andq	$-16, %rsp\n"
	"	call	holder_start\n"
	"	hlt\n"
	".popsection\n");

static inline long sys6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long rc;

	__asm__ volatile("syscall"
			 : "=a"(rc)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return rc;
}

#elif defined(__aarch64__)

__asm__(".pushsection .text\n"
	".globl _start\n"
	"_start:\n"
	"	mov	x29, #0\n"
	"	mov	x30, #0\n"
	"	mov	x0, sp\n"
	"	bl	holder_start\n"
	"	brk	#0\n"
	".popsection\n");

static inline long sys6(long number, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc	#0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
}

#else
#error "the holder program needs its system call instruction for this architecture"
#endif

static inline long sys3(long number, long a, long b, long c)
{
	return sys6(number, a, b, c, 0, 0, 0);
}

static inline _Noreturn void sys_exit(int status)
{
	for (;;)
		sys3(SYS_exit_group, status, 0, 0);
}

static inline int sys_open(const char *path, int flags)
{
	return (int)sys6(SYS_openat, -100 /* AT_FDCWD */, (long)path, flags, 0, 0, 0);
}

static inline int sys_close(int fd)
{
	return (int)sys3(SYS_close, fd, 0, 0);
}

static inline long sys_write(int fd, const void *buf, size_t n)
{
	return sys3(SYS_write, fd, (long)buf, (long)n);
}

static inline int sys_ioctl(int fd, unsigned long request, void *arg)
{
	return (int)sys3(SYS_ioctl, fd, (long)request, (long)arg);
}

static inline int sys_fcntl(int fd, int cmd, long arg)
{
	return (int)sys3(SYS_fcntl, fd, cmd, arg);
}

static inline int sys_poll(struct pollfd *fds, unsigned int n, long timeout_ms)
{
	struct timespec limit = {timeout_ms / 1000, timeout_ms % 1000 * 1000000};

	return (int)sys6(SYS_ppoll, (long)fds, n, timeout_ms < 0 ? 0 : (long)&limit, 0, 0, 0);
}

static inline int64_t sys_now_ms(void)
{
	struct timespec t = {0, 0};

	sys3(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&t, 0);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/** Fails unless the path names something; used for device and inode number only. */
static inline int sys_statx(int dirfd, const char *path, int flags, struct statx *stx)
{
	return (int)sys6(SYS_statx, dirfd, (long)path, flags, STATX_BASIC_STATS, (long)stx, 0);
}

/* The compiler may call these for what it finds in the source; the barrier keeps it from
   recognising the loop as the function that it is in. */
void *memcpy(void *restrict to, const void *restrict from, size_t n);
void *memset(void *to, int byte, size_t n);

void *memcpy(void *restrict to, const void *restrict from, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		((char *)to)[i] = ((const char *)from)[i];
		__asm__ volatile("" ::: "memory");
	}
	return to;
}

void *memset(void *to, int byte, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		((char *)to)[i] = (char)byte;
		__asm__ volatile("" ::: "memory");
	}
	return to;
}

#endif
