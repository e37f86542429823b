/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl doctor: systemd, and the settings of a unit that has a store. They are asked of systemctl,
 * which knows what drop-ins and defaults make of a unit file.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "doctor.h"

#define SYSTEMD_LUO 261u

/* What systemctl says to these words; false: it cannot be run, or fails. With a root: what a file says. */
static bool systemctl(const struct doctor *d, const char *file, const char *words, char text[DOCTOR_TEXT])
{
	char command[512];
	size_t n;
	FILE *out;

	if (d->root)
		return doctor_read(d, file, text);
	snprintf(command, sizeof(command), "systemctl %s 2>/dev/null", words);
	out = popen(command, "re");
	if (!out)
		return false;
	n = fread(text, 1, DOCTOR_TEXT - 1, out);
	text[n] = 0;
	return pclose(out) == 0 && n > 0;
}

/* NAME=value of `systemctl show`; "": it does not say. */
static const char *property(const char *text, const char *name, char value[256])
{
	size_t n = strlen(name);

	value[0] = 0;
	for (const char *line = text; line && *line; line = strchr(line, '\n'), line += line != NULL)
		if (strncmp(line, name, n) == 0 && line[n] == '=')
			snprintf(value, 256, "%.*s", (int) strcspn(line + n + 1, "\n"), line + n + 1);
	return value;
}

static uint64_t size_property(const char *text, const char *name)
{
	char value[256], *end;
	uint64_t size;

	property(text, name, value);
	size = strtoull(value, &end, 10);
	return end == value ? UINT64_MAX : size; /* infinity, [not set] */
}

static void look_at_memory(struct doctor *d, const char *text)
{
	uint64_t limit = size_property(text, "MemoryMax"), bytes;
	const char *name = "";
	char a[16], b[16];

	bytes = doctor_largest(d, &name);
	if (limit >= bytes)
		return;
	doctor_add(d, DOCTOR_FAIL, "unit-memory",
		   "raise MemoryMax= above the size of the store: who retrieves it is charged for all of it, and "
		   "killed with the data if that is too much",
		   "%s: MemoryMax=%s, and store %s has %s", d->unit, ctl_bytes(a, limit), name,
		   ctl_bytes(b, bytes));
}

static void look_at_limits(struct doctor *d, const char *text)
{
	uint64_t as = size_property(text, "LimitAS"), files = size_property(text, "LimitNOFILE");

	if (as < 1ull << 40)
		doctor_add(d, DOCTOR_FAIL, "unit-limits",
			   "LimitAS=infinity: a window is addresses, not memory",
			   "%s: LimitAS=%llu is less than the window of a store", d->unit,
			   (unsigned long long) as);
	if (files < 1024)
		doctor_add(d, DOCTOR_WARN, "unit-limits", "LimitNOFILE=8192",
			   "%s: LimitNOFILE=%llu; a store takes two descriptors for each segment, and its holder one",
			   d->unit, (unsigned long long) files);
}

/* The store of descriptors that the unit has: is there room in it, and does it outlive a stop? */
static void look_at_fdstore(struct doctor *d, const char *text, uint64_t max)
{
	uint64_t n = size_property(text, "NFileDescriptorStore");
	char preserve[256];

	if (strcmp(property(text, "FileDescriptorStorePreserve", preserve), "yes") != 0)
		doctor_add(d, DOCTOR_WARN, "unit-keeping", "FileDescriptorStorePreserve=yes",
			   "%s: FileDescriptorStoreMax=%llu, but FileDescriptorStorePreserve=%s: a stop, and a "
			   "kexec, unlike a restart, drops what systemd keeps",
			   d->unit, (unsigned long long) max, preserve[0] ? preserve : "no");
	else if (n != UINT64_MAX && n >= max)
		doctor_add(d, DOCTOR_WARN, "unit-keeping",
			   "raise FileDescriptorStoreMax=: a store needs one for its index and one for each segment",
			   "%s: systemd keeps %llu descriptors, and FileDescriptorStoreMax=%llu: the store cannot "
			   "grow", d->unit, (unsigned long long) n, (unsigned long long) max);
	else if (n != UINT64_MAX)
		doctor_add(d, DOCTOR_OK, "unit-keeping", NULL, "%s: systemd keeps %llu descriptors, of %llu at most",
			   d->unit, (unsigned long long) n, (unsigned long long) max);
	else
		doctor_add(d, DOCTOR_OK, "unit-keeping", NULL, "%s: systemd keeps descriptors", d->unit);
}

/* A holder that is left alone keeps the descriptors when the service stops, if it is. */
static void look_at_holder(struct doctor *d, const char *text)
{
	char mode[256], private_tmp[256];

	property(text, "KillMode", mode);
	property(text, "PrivateTmp", private_tmp);
	if (strcmp(mode, "process") != 0 && strcmp(mode, "none") != 0)
		doctor_add(d, DOCTOR_FAIL, "unit-keeping",
			   "FileDescriptorStoreMax= and FileDescriptorStorePreserve=yes, so that systemd keeps the "
			   "store; or KillMode=process, so that the holder stays when the service stops",
			   "%s: KillMode=%s ends the holder with the service", d->unit, mode);
	else
		doctor_add(d, DOCTOR_OK, "unit-keeping", NULL, "%s: a holder stays when the service stops",
			   d->unit);
	if (strcmp(private_tmp, "yes") == 0 && d->stores && strncmp(d->stores->dir, "/tmp/", 5) == 0)
		doctor_add(d, DOCTOR_FAIL, "unit-keeping",
			   "a runtime directory below /run (RuntimeDirectory= with RuntimeDirectoryPreserve=yes)",
			   "%s: PrivateTmp=yes hides and removes the holder's socket in /tmp", d->unit);
}

static void look_at_unit(struct doctor *d)
{
	char text[DOCTOR_TEXT], words[400], loaded[256];
	uint64_t store_max;

	if (strspn(d->unit, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.@-") !=
		    strlen(d->unit) ||
	    strlen(d->unit) > 200 || d->unit[0] == '-') {
		doctor_add(d, DOCTOR_FAIL, "unit", "systemctl list-units", "%s is no name of a unit", d->unit);
		return;
	}
	snprintf(words, sizeof(words),
		 "show -p LoadState,KillMode,FileDescriptorStoreMax,NFileDescriptorStore,FileDescriptorStorePreserve,"
		 "MemoryMax,LimitAS,LimitNOFILE,PrivateTmp -- %s",
		 d->unit);
	if (!systemctl(d, "/probe/unit", words, text)) {
		doctor_add(d, DOCTOR_FAIL, "unit", "look at `systemctl show UNIT`",
			   "systemctl does not say anything of %s", d->unit);
		return;
	}
	if (strcmp(property(text, "LoadState", loaded), "loaded") != 0) {
		doctor_add(d, DOCTOR_FAIL, "unit", "systemctl list-unit-files", "there is no unit %s (%s)",
			   d->unit, loaded);
		return;
	}
	/* With systemd no limit is in the way: it is process 1 that retrieves. */
	store_max = size_property(text, "FileDescriptorStoreMax");
	if (store_max && store_max != UINT64_MAX) {
		look_at_fdstore(d, text, store_max);
	} else {
		look_at_holder(d, text);
		look_at_memory(d, text);
	}
	look_at_limits(d, text);
}

void doctor_systemd(struct doctor *d)
{
	char text[DOCTOR_TEXT], path[4096];
	unsigned int version = 0;
	struct stat st;

	if (stat(doctor_path(d, path, "/run/systemd/system"), &st)) {
		doctor_add(d, d->unit ? DOCTOR_FAIL : DOCTOR_OK, "systemd",
			   "run it on a machine where systemd is process 1", "systemd does not run here");
		return;
	}
	if (!systemctl(d, "/probe/systemctl-version", "--version", text) ||
	    sscanf(text, "systemd %u", &version) != 1)
		doctor_add(d, DOCTOR_WARN, "systemd", "look whether systemctl can be run",
			   "the version of systemd cannot be told");
	else if (version < SYSTEMD_LUO)
		doctor_add(d, DOCTOR_OK, "systemd", NULL,
			   "systemd %u carries no descriptors across a kexec by itself (%u does); prepare does",
			   version, SYSTEMD_LUO);
	else
		doctor_add(d, DOCTOR_OK, "systemd", NULL,
			   "systemd %u can carry the descriptors of units across a kexec", version);
	if (d->unit)
		look_at_unit(d);
}
