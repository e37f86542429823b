/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who has a store open: all processes that have a descriptor of its index memfd, found in /proc. The
 * holder has one too and is left out. A memfd is known by its inode, or, when the index could not be
 * had from a holder, by the name it was made with.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl.h"

static void read_command(int32_t pid, char *command, size_t bytes)
{
	char path[40];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, command, bytes - 1);
	if (fd >= 0)
		close(fd);
	command[n > 0 ? n : 0] = 0;
	command[strcspn(command, "\n")] = 0;
}

static bool is_index(int dir, const char *fd_name, const struct pv_stores_entry *e)
{
	char link[128], wanted[96];
	ssize_t n = readlinkat(dir, fd_name, link, sizeof(link) - 1);
	struct stat st;

	if (n <= 0)
		return false;
	link[n] = 0;
	if (e->index_inode)
		return (strncmp(link, "/memfd:", 7) == 0 || strcmp(link, "/ (deleted)") == 0) &&
		       fstatat(dir, fd_name, &st, 0) == 0 && st.st_ino == e->index_inode &&
		       st.st_dev == e->index_device;
	snprintf(wanted, sizeof(wanted), "/memfd:pv:%s:index (deleted)", e->name);
	return strcmp(link, wanted) == 0;
}

static bool has_index(int32_t pid, const struct pv_stores_entry *e)
{
	struct dirent *file;
	bool found = false;
	char path[40];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir)
		return false;
	while (!found && (file = readdir(dir)) != NULL)
		found = file->d_name[0] != '.' && is_index(dirfd(dir), file->d_name, e);
	closedir(dir);
	return found;
}

int ctl_processes_find(const struct pv_stores_entry *e, struct ctl_processes *out)
{
	DIR *proc = opendir("/proc");
	struct dirent *file;
	int err = 0;

	*out = (struct ctl_processes){0};
	if (!proc)
		return -errno;
	while (!err && (file = readdir(proc)) != NULL) {
		struct ctl_process *grown;
		char *end;
		long pid = strtol(file->d_name, &end, 10);

		if (*end || pid <= 0 || pid == e->holder_pid || pid == getpid() ||
		    !has_index((int32_t) pid, e))
			continue;
		grown = realloc(out->v, (out->n + 1) * sizeof(*grown));
		if (!grown) {
			err = -ENOMEM;
			break;
		}
		out->v = grown;
		grown += out->n++;
		*grown = (struct ctl_process){.pid = (int32_t) pid,
					      .writer = e->open && pid == e->writer_pid};
		read_command((int32_t) pid, grown->command, sizeof(grown->command));
	}
	closedir(proc);
	if (err) {
		free(out->v);
		*out = (struct ctl_processes){0};
	}
	return err;
}
