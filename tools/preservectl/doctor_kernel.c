/* SPDX-License-Identifier: BSD-3-Clause */
/* preservectl doctor: the kernel. Live update, kexec handover and its scratch memory, memfds, huge pages. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "doctor.h"

#define LUO_SINCE "6.19"
#define HUGE_FILE "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/* "6.19.3-foo" as 6019; 0: not known. */
static unsigned int release(const struct doctor *d)
{
	char text[DOCTOR_TEXT];
	unsigned int major, minor;

	if (!doctor_read(d, "/proc/sys/kernel/osrelease", text) ||
	    sscanf(text, "%u.%u", &major, &minor) != 2)
		return 0;
	return major * 1000 + minor;
}

static void look_at_luo(struct doctor *d)
{
	char path[4096], cmdline[DOCTOR_TEXT] = "";
	struct stat st;
	unsigned int is = release(d);

	doctor_read(d, "/proc/cmdline", cmdline);
	if (stat(doctor_path(d, path, "/dev/liveupdate"), &st) == 0) {
		if (access(path, R_OK | W_OK))
			doctor_add(d, doctor_kexec_level(d), "luo",
				   "run as root what prepares stores: the device is for root alone",
				   "/dev/liveupdate is there, but not for user %u", geteuid());
		else
			doctor_add(d, DOCTOR_OK, "luo", NULL,
				   "the Live Update Orchestrator is there, and this user may use it");
	} else if (is && is < 6019) {
		doctor_add(d, doctor_kexec_level(d), "luo",
			   "to keep stores across a kexec, use Linux " LUO_SINCE
			   " or later, or preservectl save and restore",
			   "Linux %u.%u has no Live Update Orchestrator", is / 1000, is % 1000);
	} else if (!doctor_word(cmdline, "kho=on") || !doctor_word(cmdline, "liveupdate=on")) {
		doctor_add(d, doctor_kexec_level(d), "luo",
			   "add kho=on liveupdate=on to the kernel's command line (in /etc/default/grub: "
			   "GRUB_CMDLINE_LINUX, then update-grub) and boot again",
			   "there is no /dev/liveupdate, and the kernel was booted without %s",
			   doctor_word(cmdline, "kho=on") ? "liveupdate=on" : "kho=on");
	} else {
		doctor_add(d, doctor_kexec_level(d), "luo",
			   "use a kernel built with CONFIG_KEXEC_HANDOVER, CONFIG_LIVEUPDATE and "
			   "CONFIG_LIVEUPDATE_MEMFD; with less than 512 MiB of memory handover is given up, too",
			   "there is no /dev/liveupdate, although kho=on liveupdate=on was asked for");
	}
}

/* Has this process the device open? `fds` is its fd folder. */
static bool has_device(DIR *fds)
{
	struct dirent *file;
	char link[32];

	while ((file = readdir(fds)) != NULL) {
		ssize_t n = readlinkat(dirfd(fds), file->d_name, link, sizeof(link) - 1);

		link[n > 0 ? n : 0] = 0;
		if (strcmp(link, "/dev/liveupdate") == 0)
			return true;
	}
	return false;
}

/* Whoever keeps the device open keeps everybody else out, and under systemd loses all that it carries. */
static void look_at_device_users(struct doctor *d)
{
	char path[4096], file[300];
	DIR *proc = opendir(doctor_path(d, path, "/proc"));
	struct dirent *process;

	while (proc && (process = readdir(proc)) != NULL) {
		DIR *fds;

		if (strspn(process->d_name, "0123456789") != strlen(process->d_name))
			continue;
		snprintf(file, sizeof(file), "/proc/%s/fd", process->d_name);
		fds = opendir(doctor_path(d, path, file));
		if (fds && has_device(fds))
			doctor_add(d, doctor_kexec_level(d), "luo-busy",
				   "end it before the kexec: systemd loses every store that it carries if it finds "
				   "the device busy",
				   "/dev/liveupdate is held open by process %s", process->d_name);
		if (fds)
			closedir(fds);
	}
	if (proc)
		closedir(proc);
}

static uint64_t memory_total(const struct doctor *d)
{
	char text[DOCTOR_TEXT];
	const char *at;

	if (!doctor_read(d, "/proc/meminfo", text) || (at = strstr(text, "MemTotal:")) == NULL)
		return 0;
	return strtoull(at + 9, NULL, 10) << 10;
}

static void look_at_scratch(struct doctor *d)
{
	char text[DOCTOR_TEXT], path[4096], size[16], all[16];
	uint64_t sum = 0, total = memory_total(d);
	struct stat st;
	char *end;

	if (stat(doctor_path(d, path, "/dev/liveupdate"), &st))
		return;
	if (!doctor_read(d, "/sys/kernel/debug/kho/out/scratch_len", text)) {
		doctor_add(d, DOCTOR_WARN, "scratch", "as root: mount -t debugfs none /sys/kernel/debug",
			   "what handover sets aside cannot be told: /sys/kernel/debug/kho cannot be read");
		return;
	}
	for (const char *at = text; *at; at = *end ? end + 1 : end) {
		sum += strtoull(at, &end, 0);
		if (end == at)
			break;
	}
	ctl_bytes(size, sum);
	ctl_bytes(all, total);
	if (total && sum > total / 4)
		doctor_add(d, DOCTOR_WARN, "scratch",
			   "set it on the kernel's command line, kho_scratch=LOW,GLOBAL,PERNODE, to twice what the "
			   "kernel and its initramfs need at boot",
			   "handover sets %s of %s aside, which only movable memory can use meanwhile", size,
			   all);
	else
		doctor_add(d, DOCTOR_OK, "scratch", NULL, "handover sets %s of %s aside", size, all);
}

/* Is there the system call? Flags that do not exist make it do nothing. */
static int kexec_file_load_errno(const struct doctor *d)
{
	if (d->root)
		return (int) doctor_number(d, "/probe/kexec_file_load", ENOSYS);
	return syscall(SYS_kexec_file_load, -1, -1, 0ul, "", ~0ul) < 0 ? errno : 0;
}

static void look_at_kexec(struct doctor *d)
{
	if (kexec_file_load_errno(d) == ENOSYS)
		doctor_add(d, doctor_kexec_level(d), "kexec", "use a kernel built with CONFIG_KEXEC_FILE",
			   "this kernel has no kexec_file_load(), which handover needs");
	else if (doctor_number(d, "/proc/sys/kernel/kexec_load_disabled", 0))
		doctor_add(d, doctor_kexec_level(d), "kexec",
			   "it cannot be switched on again before the next boot: see who sets it in "
			   "/etc/sysctl.d",
			   "kernel.kexec_load_disabled is 1: no kernel can be loaded");
	else
		doctor_add(d, DOCTOR_OK, "kexec", NULL, "kexec_file_load() is there%s",
			   doctor_number(d, "/sys/kernel/kexec_loaded", 0) ||
					   doctor_number(d, "/sys/kernel/kexec/loaded", 0)
				   ? ", and a kernel is loaded"
				   : "");
}

static void look_at_huge_pages(struct doctor *d)
{
	static const char advice[] = "echo advise >" HUGE_FILE
				     ", and for good transparent_hugepage_shmem=advise on the kernel's command "
				     "line: prepare and retrieve are some ten times faster with huge pages";
	char text[DOCTOR_TEXT];

	if (!doctor_read(d, HUGE_FILE, text))
		doctor_add(d, DOCTOR_WARN, "huge-pages",
			   "use a kernel built with CONFIG_TRANSPARENT_HUGEPAGE: prepare and retrieve are "
			   "some ten times faster with huge pages",
			   "this kernel has no huge pages for shared memory");
	else if (strstr(text, "[deny]"))
		doctor_add(d, DOCTOR_WARN, "huge-pages", advice,
			   "huge pages for shared memory are denied (shmem_enabled is deny)");
	else if (strstr(text, "[never]"))
		doctor_add(d, DOCTOR_WARN, "huge-pages", advice,
			   "shared memory gets huge pages only where the library asks for them by name, in blocks "
			   "that are full (shmem_enabled is never)");
	else
		doctor_add(d, DOCTOR_OK, "huge-pages", NULL, "shared memory can have huge pages");
}

/* The library holds pages in place by an io_uring while they are preserved, where huge pages may be made. */
static void look_at_io_uring(struct doctor *d)
{
	char text[DOCTOR_TEXT];
	bool huge = doctor_read(d, HUGE_FILE, text) && !strstr(text, "[deny]") && !strstr(text, "[never]");
	uint64_t off = doctor_number(d, "/proc/sys/kernel/io_uring_disabled", 0);

	if (off == 2 && huge)
		doctor_add(d, doctor_kexec_level(d), "io-uring",
			   "sysctl kernel.io_uring_disabled=1, or write never to " HUGE_FILE,
			   "kernel.io_uring_disabled is 2: with huge pages for shared memory no store can be "
			   "prepared");
	else
		doctor_add(d, DOCTOR_OK, "io-uring", NULL, "pages can be held in place while they are preserved");
}

static void look_at_memfds(struct doctor *d)
{
	static const char advice[] = "sysctl vm.memfd_noexec=1 (or 0): holder programs can be installed instead, "
				     "but memfds that are sealed against execution come out of a kexec "
				     "read-only";
	uint64_t mode = doctor_number(d, "/proc/sys/vm/memfd_noexec", 0);
	char path[4096];

	if (mode < 2)
		doctor_add(d, DOCTOR_OK, "memfd", NULL, "memfds are made as the library wants them");
	else if (access(doctor_path(d, path, CTL_HOLDER), X_OK) == 0)
		doctor_add(d, doctor_kexec_level(d), "memfd", advice,
			   "vm.memfd_noexec is 2: stores that are made now cannot be carried across a kexec");
	else
		doctor_add(d, DOCTOR_FAIL, "memfd", advice,
			   "vm.memfd_noexec is 2 and " CTL_HOLDER " is not installed: no holder can be started");
}

void doctor_kernel(struct doctor *d)
{
	look_at_luo(d);
	look_at_device_users(d);
	look_at_scratch(d);
	look_at_kexec(d);
	look_at_huge_pages(d);
	look_at_io_uring(d);
	look_at_memfds(d);
}
