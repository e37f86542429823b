/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl doctor: memory, limits, permissions, and the stores there are. Limits of resources are those
 * of this process, which are those of the shell it was started from; a service has its own (--unit).
 */
#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "doctor.h"

#define WINDOW_BYTES (1ull << 40) /* of a store, by default */
#define FILES_LEAST  1024u

/* ---- memory ---- */

static uint64_t meminfo(const char *text, const char *key)
{
	const char *at = strstr(text, key);

	return at ? strtoull(at + strlen(key), NULL, 10) << 10 : 0;
}

/* What prepare would have to fill: it gives every hole memory. */
static void look_at_holes(struct doctor *d, uint64_t available)
{
	uint64_t holes = 0;
	char a[16], b[16];

	for (uint32_t i = 0; d->stores && i < d->stores->n; i++)
		if (d->stores->stores[i].state == PV_STORES_KEPT && !d->stores->stores[i].prepared &&
		    d->stores->stores[i].bytes > d->stores->stores[i].backed_bytes)
			holes += d->stores->stores[i].bytes - d->stores->stores[i].backed_bytes;
	if (!holes)
		return;
	ctl_bytes(a, holes);
	ctl_bytes(b, available);
	if (holes > available)
		doctor_add(d, doctor_kexec_level(d), "prepare",
			   "free memory, or make the stores smaller (pv_trim(), compact): prepare fills every hole",
			   "to prepare all stores takes %s more memory, and %s are available", a, b);
	else
		doctor_add(d, DOCTOR_OK, "prepare", NULL, "to prepare all stores takes %s more memory, of %s",
			   a, b);
}

static void look_at_overcommit(struct doctor *d, const char *text)
{
	uint64_t limit = meminfo(text, "CommitLimit:"), used = meminfo(text, "Committed_AS:");
	char left[16];

	if (doctor_number(d, "/proc/sys/vm/overcommit_memory", 0) != 2) {
		doctor_add(d, DOCTOR_OK, "overcommit", NULL, "memory is not limited by what was promised");
		return;
	}
	doctor_add(d, DOCTOR_WARN, "overcommit",
		   "raise vm.overcommit_ratio, or set vm.overcommit_memory to 0: a store's memfds count in full, "
		   "and malloc() fails when the limit is reached",
		   "vm.overcommit_memory is 2: %s may still be promised",
		   ctl_bytes(left, limit > used ? limit - used : 0));
}

/* The smallest limit on the way up from this process's cgroup, of version 2 or 1. */
static uint64_t cgroup_limit(const struct doctor *d, char where[4096])
{
	static const char *const kinds[][3] = {{"0::", "/sys/fs/cgroup", "memory.max"},
					       {":memory:", "/sys/fs/cgroup/memory",
						"memory.limit_in_bytes"}};
	char text[DOCTOR_TEXT], group[2048], file[4096];
	uint64_t least = UINT64_MAX, limit;

	if (!doctor_read(d, "/proc/self/cgroup", text))
		return least;
	for (unsigned int i = 0; i < 2; i++) {
		const char *at = strstr(text, kinds[i][0]);
		char *slash;

		if (!at)
			continue;
		at += strlen(kinds[i][0]);
		snprintf(group, sizeof(group), "%.*s", (int) strcspn(at, "\n"), at);
		while ((slash = strrchr(group, '/')) != NULL) {
			snprintf(file, sizeof(file), "%s%s/%s", kinds[i][1], group, kinds[i][2]);
			limit = doctor_number(d, file, UINT64_MAX);
			if (limit < least) {
				least = limit;
				snprintf(where, 4096, "%s", file);
			}
			*slash = 0;
		}
	}
	return least;
}

static void look_at_cgroup(struct doctor *d)
{
	char where[4096] = "", a[16], b[16];
	uint64_t limit = cgroup_limit(d, where), bytes;
	const char *name = "";

	bytes = doctor_largest(d, &name);
	if (limit > 1ull << 60) {
		doctor_add(d, DOCTOR_OK, "cgroup", NULL, "no memory limit on this process's cgroup");
		return;
	}
	ctl_bytes(a, limit);
	ctl_bytes(b, bytes);
	if (bytes > limit)
		doctor_add(d, DOCTOR_FAIL, "cgroup",
			   "raise the limit above the store's size: who retrieves a store after a kexec, or restores "
			   "it, is charged for all of it, and is killed with the data if that is too much",
			   "store %s has %s, and %s allows %s", name, b, where, a);
	else
		doctor_add(d, DOCTOR_OK, "cgroup", NULL, "this process's cgroup allows %s (%s)", a, where);
}

void doctor_memory(struct doctor *d)
{
	char text[DOCTOR_TEXT] = "";

	doctor_read(d, "/proc/meminfo", text);
	look_at_holes(d, meminfo(text, "MemAvailable:") + meminfo(text, "SwapFree:"));
	look_at_overcommit(d, text);
	look_at_cgroup(d);
}

/* ---- limits of resources ---- */

/* Soft and hard limit of a line of /proc/self/limits; UINT64_MAX: unlimited, or not told. */
static void limits(const char *text, const char *name, uint64_t *soft, uint64_t *hard)
{
	const char *at = strstr(text, name);
	char words[2][32] = {"", ""}, *end;

	*soft = *hard = UINT64_MAX;
	if (!at || sscanf(at + strlen(name), "%31s %31s", words[0], words[1]) != 2)
		return;
	*soft = strtoull(words[0], &end, 10);
	if (*end)
		*soft = UINT64_MAX;
	*hard = strtoull(words[1], &end, 10);
	if (*end)
		*hard = UINT64_MAX;
}

static void look_at_limits(struct doctor *d)
{
	uint64_t as, as_hard, files, files_hard;
	char text[DOCTOR_TEXT] = "", a[16];

	doctor_read(d, "/proc/self/limits", text);
	limits(text, "Max address space", &as, &as_hard);
	limits(text, "Max open files", &files, &files_hard);
	if (as < WINDOW_BYTES)
		doctor_add(d, DOCTOR_FAIL, "address-space",
			   "ulimit -v unlimited (LimitAS=infinity in a unit), or make stores with a small "
			   "window_bytes: a window is addresses, not memory",
			   "this process may map %s, the window of a store takes 1 TiB by default",
			   ctl_bytes(a, as));
	else
		doctor_add(d, DOCTOR_OK, "address-space", NULL, "there are enough addresses for windows");
	if (files_hard < FILES_LEAST)
		doctor_add(d, DOCTOR_WARN, "descriptors",
			   "raise the hard limit (LimitNOFILE= in a unit, /etc/security/limits.conf)",
			   "a holder started from here can keep %llu descriptors, one for each segment",
			   (unsigned long long) files_hard);
	else if (files < FILES_LEAST)
		doctor_add(d, DOCTOR_WARN, "descriptors", "ulimit -n (LimitNOFILE= in a unit)",
			   "a process started from here can have %llu descriptors; a store takes two for each segment",
			   (unsigned long long) files);
	else
		doctor_add(d, DOCTOR_OK, "descriptors", NULL, "%llu descriptors at a time",
			   (unsigned long long) files);
}

/* ---- the runtime directory ---- */

static bool lingers(const struct doctor *d)
{
	const struct passwd *pw = getpwuid(geteuid());
	char path[4096], file[300];

	snprintf(file, sizeof(file), "/var/lib/systemd/linger/%s", pw ? pw->pw_name : "");
	return pw && access(doctor_path(d, path, file), F_OK) == 0;
}

static void look_at_directory(struct doctor *d)
{
	const char *dir = d->stores ? d->stores->dir : NULL;

	if (!dir)
		return; /* said already */
	if (strncmp(dir, "/run/user/", 10) == 0 && !lingers(d))
		doctor_add(d, DOCTOR_WARN, "runtime-dir",
			   "loginctl enable-linger; or another directory, by pv_options.runtime_dir",
			   "%s goes when this user's last session ends, and a holder with it if the system ends "
			   "processes at logout (KillUserProcesses)",
			   dir);
	else if (strncmp(dir, "/tmp/", 5) == 0)
		doctor_add(d, DOCTOR_WARN, "runtime-dir",
			   "a directory below /run, by pv_options.runtime_dir or XDG_RUNTIME_DIR",
			   "%s lies in /tmp, where a cleaner may remove sockets: a holder without its socket is not "
			   "found",
			   dir);
	else
		doctor_add(d, DOCTOR_OK, "runtime-dir", NULL, "%s", dir);
}

/* ---- stores ---- */

static void look_at_stores(struct doctor *d)
{
	static const char *const advice[] = {
		[PV_STORES_INCOMING] = "start its owner, or preservectl finish",
		[PV_STORES_UNBORN] = "preservectl drop, or start its owner, which begins anew",
		[PV_STORES_LOST] = "if the owner runs, its next handover check starts another holder; else the data "
				   "are gone: preservectl drop",
		[PV_STORES_DAMAGED] = "preservectl check, then repair or restore or drop it",
		[PV_STORES_SILENT] = "look what its holder does (it may be stopped: kill -CONT)",
	};
	unsigned int n = 0;

	for (uint32_t i = 0; d->stores && i < d->stores->n; i++) {
		const struct pv_stores_entry *e = &d->stores->stores[i];

		if (e->state == PV_STORES_KEPT) {
			n++;
			continue;
		}
		doctor_add(d, DOCTOR_WARN, "store", advice[e->state], "%s is %s%s%s", e->name,
			   ctl_state_word(e), e->problem[0] ? ": " : "", e->problem);
	}
	if (d->stores)
		doctor_add(d, DOCTOR_OK, "stores", NULL, "%u stores are kept", n);
}

void doctor_process(struct doctor *d)
{
	look_at_limits(d);
	look_at_directory(d);
	look_at_stores(d);
}
