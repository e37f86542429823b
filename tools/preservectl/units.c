/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl list: stores that systemd keeps for its services. No directory has them, and nobody but the
 * service gets at their descriptors; but systemd says which units have how many, and their names, which
 * the library makes of the store's name and the token (pv/STORE/TOKEN/HASH).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "ctl.h"

#define PREFIX "pv/"
/* What systemctl and a shell take as a name of a unit, without quoting. */
#define UNIT_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.@-"

static struct ctl_unit_store *of_store(struct ctl_unit_stores *all, const char *unit, int32_t main_pid,
				       const char *store, size_t bytes)
{
	struct ctl_unit_store *s;

	if (bytes == 0 || bytes >= sizeof(s->name))
		return NULL;
	for (unsigned int i = 0; i < all->n; i++) {
		s = &all->v[i];
		if (strcmp(s->unit, unit) == 0 && strncmp(s->name, store, bytes) == 0 && !s->name[bytes])
			return s;
	}
	s = realloc(all->v, (all->n + 1) * sizeof(*s));
	if (!s)
		return NULL;
	all->v = s;
	s += all->n++;
	/* The process of the service is the one that writes, and process 1 the one that keeps. */
	*s = (struct ctl_unit_store){.index = {.holder_pid = 1, .open = main_pid > 0, .writer_pid = main_pid}};
	snprintf(s->unit, sizeof(s->unit), "%s", unit);
	memcpy(s->name, store, bytes);
	return s;
}

/* One descriptor; what has another name is not the library's. */
static void add(struct ctl_unit_stores *all, const char *unit, int32_t main_pid, json_t *descriptor)
{
	const char *name = json_string_value(json_object_get(descriptor, "fdname"));
	json_t *device = json_object_get(descriptor, "devno");
	const char *store, *end;
	struct ctl_unit_store *s;

	if (!name || strncmp(name, PREFIX, strlen(PREFIX)) != 0)
		return;
	store = name + strlen(PREFIX);
	end = strchr(store, '/');
	s = end ? of_store(all, unit, main_pid, store, (size_t) (end - store)) : NULL;
	if (!s)
		return;
	s->descriptors++;
	if (strncmp(end, "/0/", 3) != 0)
		return;
	s->index.index_inode = (uint64_t) json_integer_value(json_object_get(descriptor, "inode"));
	s->index.index_device =
		makedev((unsigned int) json_integer_value(json_array_get(device, 0)),
			(unsigned int) json_integer_value(json_array_get(device, 1)));
}

static void look_at_unit(struct ctl_unit_stores *all, const char *unit, int32_t main_pid)
{
	char command[400];
	json_t *array, *descriptor;
	size_t i;
	FILE *out;

	snprintf(command, sizeof(command), "systemd-analyze --json=short fdstore -- %s 2>/dev/null", unit);
	out = popen(command, "re");
	if (!out)
		return;
	array = json_loadf(out, JSON_DISABLE_EOF_CHECK, NULL);
	pclose(out);
	json_array_foreach (array, i, descriptor)
		add(all, unit, main_pid, descriptor);
	json_decref(array);
}

/* Properties of each unit, in any order, and an empty line between units. */
static void look_at_units(struct ctl_unit_stores *all, FILE *out)
{
	char line[512], unit[256] = "";
	int32_t main_pid = 0;
	unsigned int n = 0;
	bool more;

	do {
		more = fgets(line, sizeof(line), out) != NULL;
		if (more && line[0] != '\n') {
			sscanf(line, "Id=%255s", unit);
			sscanf(line, "MainPID=%d", &main_pid);
			sscanf(line, "NFileDescriptorStore=%u", &n);
			continue;
		}
		if (n && unit[0] && unit[0] != '-' && strspn(unit, UNIT_CHARS) == strlen(unit))
			look_at_unit(all, unit, main_pid);
		unit[0] = 0;
		n = 0;
		main_pid = 0;
	} while (more);
}

void ctl_units_find(struct ctl_unit_stores *all)
{
	struct stat st;
	FILE *out;

	*all = (struct ctl_unit_stores){0};
	/* The stores of one user, or of one directory, are not what systemd has. */
	if (ctl.runtime_dir || ctl.user || geteuid() != 0 || stat("/run/systemd/system", &st))
		return;
	out = popen("systemctl show --property=Id,MainPID,NFileDescriptorStore '*.service' 2>/dev/null", "re");
	if (!out)
		return;
	look_at_units(all, out);
	pclose(out);
}
