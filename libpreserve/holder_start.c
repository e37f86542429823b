/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Start of a holder process.
 *
 * The program is part of the library, as bytes: nothing has to be installed, and library and holder
 * cannot be of different versions at the start. It is written to a memfd and executed from there.
 * Where the system forbids that (sysctl vm.memfd_noexec=2, some security modules), the same program
 * is tried where the library's installation puts it, or at $PRESERVE_HOLDER.
 *
 * The way it is started keeps the application out of it:
 *  - no copy of the application's memory is made (CLONE_VM), however large it is; nor does the
 *    holder go on using it, for it executes another program;
 *  - the holder is no child of the application: an intermediate process starts it and ends. That
 *    one has no exit signal, so the application gets no SIGCHLD and its wait() does not see it;
 *  - no signal handler of the application runs in the children: signals are blocked until the
 *    program is executed, and the holder itself unblocks them;
 *  - only the socket, as descriptor 0, is open in the holder.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "error.h"
#include "holder_client.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U
#endif

#define STACK_BYTES (64u * 1024)

/* Runs while the thread that it shares memory with stands still; what the sanitizers would add to
   it does not know that. */
#define IN_CHILD __attribute__((no_sanitize("address", "thread", "undefined")))

/*
 * ThreadSanitizer takes every clone() for a fork and resets its own state in the child, which here
 * is still that of the parent; glibc's other name for it is left alone.
 */
#if defined(__SANITIZE_THREAD__)
#define THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#endif
#ifdef THREAD_SANITIZER
extern int __clone(int (*run)(void *arg), void *stack, int flags, void *arg, ...);
#define clone __clone
#endif

/* In the generated file holder_image.S. */
extern const unsigned char pvi_holder_image[], pvi_holder_image_end[];
extern const char pvi_holder_installed[];

struct launch {
	int image; /* memfd with the program, or -1 */
	int listener;
	const char *installed;
	char **argv;
	char **envp;
	char *stack; /* for the holder until it executes the program */
	/* Written by the children. */
	int image_errno;
	int installed_errno;
	int clone_errno;
};

/** In the process that becomes the holder. Shares memory with the application. */
IN_CHILD static int become_holder(void *arg)
{
	struct launch *l = arg;

	if (syscall(SYS_dup3, l->listener, 0, 0) < 0) {
		l->clone_errno = errno;
		syscall(SYS_exit_group, 127);
	}
	if (l->image >= 0) {
		syscall(SYS_execveat, l->image, "", l->argv, l->envp, AT_EMPTY_PATH);
		l->image_errno = errno;
	}
	syscall(SYS_execve, l->installed, l->argv, l->envp);
	l->installed_errno = errno;
	syscall(SYS_exit_group, 127);
	return 127;
}

/** In the intermediate process. Shares memory with the application. */
IN_CHILD static int start_and_leave(void *arg)
{
	struct launch *l = arg;

	if (clone(become_holder, l->stack + STACK_BYTES, CLONE_VM | CLONE_VFORK | SIGCHLD, l) < 0)
		l->clone_errno = errno;
	syscall(SYS_exit_group, 0);
	return 0;
}

/** The program as an executable memfd, or -1 with errno. */
static int image_open(void)
{
	size_t bytes = (size_t)(pvi_holder_image_end - pvi_holder_image), done = 0;
	int fd = memfd_create("libpreserve-holder", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);

	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 all memfds are executable */
		fd = memfd_create("libpreserve-holder", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -1;
	while (done < bytes) {
		ssize_t n = write(fd, pvi_holder_image + done, bytes - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			int saved = n < 0 ? errno : EIO;

			close(fd);
			errno = saved;
			return -1;
		}
		done += (size_t)n;
	}
	/* Others of this user could otherwise write to a program that is being executed. */
	fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	return fd;
}

/** Runs the two children; what became of it stands in *l. */
static void launch(struct launch *l, char *stacks)
{
	uint64_t all = ~0ull, before;
	pid_t pid;
	int status;

	l->stack = stacks + STACK_BYTES;
	/* The libc's own functions leave out the signals that it uses itself. */
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof(all));
	pid = clone(start_and_leave, stacks + STACK_BYTES, CLONE_VM | CLONE_VFORK, l);
	if (pid < 0)
		l->clone_errno = errno;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, NULL, sizeof(before));
	while (pid > 0 && waitpid(pid, &status, __WALL) < 0 && errno == EINTR)
		;
}

int pvi_holder_spawn(const char *store_name, const char *path, int listener)
{
	const char *elsewhere = secure_getenv("PRESERVE_HOLDER");
	char *argv[] = {(char *)"libpreserve-holder", (char *)store_name, (char *)path, NULL};
	char *envp[] = {NULL};
	struct launch l = {
		.image = image_open(),
		.listener = listener,
		.installed = elsewhere ? elsewhere : pvi_holder_installed,
		.argv = argv,
		.envp = envp,
	};
	char *stacks;

	if (l.image < 0)
		l.image_errno = errno;
	stacks = mmap(NULL, 2 * STACK_BYTES, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	if (stacks == MAP_FAILED) {
		if (l.image >= 0)
			close(l.image);
		return pvi_fail(-ENOMEM, "no memory to start the holder of store %s", store_name);
	}
	launch(&l, stacks);
	munmap(stacks, 2 * STACK_BYTES);
	if (l.image >= 0)
		close(l.image);
	if (l.clone_errno)
		return pvi_fail(-l.clone_errno, "cannot start the holder of store %s: %s",
				store_name, strerror(l.clone_errno));
	if (l.installed_errno)
		return pvi_fail(-EACCES,
				"cannot start the holder of store %s: from memory: %s (is sysctl "
				"vm.memfd_noexec 2?), from %s: %s",
				store_name, strerror(l.image_errno), l.installed,
				strerror(l.installed_errno));
	return 0;
}
