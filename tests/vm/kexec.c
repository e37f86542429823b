/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * vm-kexec: the two halves of a kernel replacement, for use inside the test VM only.
 *
 *   vm-kexec load KERNEL INITRD COMMAND-LINE    kexec_file_load(2)
 *   vm-kexec jump                               reboot(2) with LINUX_REBOOT_CMD_KEXEC, at once
 *
 * The jump is as abrupt as the system offers: no process is told, no file system is unmounted, so
 * every program is cut off between two instructions. kexec handover works with kexec_file_load only,
 * not with the older kexec_load. Linked statically, so that it needs nothing but a kernel.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fail(const char *what)
{
	fprintf(stderr, "vm-kexec: %s: %s\n", what, strerror(errno));
	return 1;
}

static int load(const char *kernel_path, const char *initrd_path, const char *cmdline)
{
	int kernel = open(kernel_path, O_RDONLY | O_CLOEXEC);
	int initrd;
	long rc;

	if (kernel < 0)
		return fail(kernel_path);
	initrd = open(initrd_path, O_RDONLY | O_CLOEXEC);
	if (initrd < 0) {
		close(kernel);
		return fail(initrd_path);
	}
	/* The length includes the terminating null byte. */
	rc = syscall(SYS_kexec_file_load, kernel, initrd, strlen(cmdline) + 1, cmdline, 0UL);
	close(initrd);
	close(kernel);
	return rc ? fail("kexec_file_load") : 0;
}

static int jump(void)
{
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
	return fail("reboot(KEXEC)");
}

int main(int argc, char **argv)
{
	if (argc == 5 && strcmp(argv[1], "load") == 0)
		return load(argv[2], argv[3], argv[4]);
	if (argc == 2 && strcmp(argv[1], "jump") == 0)
		return jump();
	fprintf(stderr, "usage: vm-kexec load KERNEL INITRD COMMAND-LINE | vm-kexec jump\n");
	return 2;
}
