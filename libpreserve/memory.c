/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Is there memory to be had? The kernel does not say so in time. A memfd's page that it cannot provide
 * is no error to whoever asks for it: the OOM killer ends a process first, in a memory cgroup as on the
 * whole machine, and that process is most likely the one with the store. Its death frees nothing then,
 * as somebody keeps the memfds; the next one to start dies as well. So the library looks itself before
 * it takes memory, and refuses while there is some left: enough for the process, and for the others, to
 * go on and to free something.
 *
 * A look reads /proc/meminfo and the memory cgroups from the process's own up to the one that is mounted,
 * version 2 or 1. It entitles to a part of what was seen, for a short time. Others may take all there is
 * in that time; what can be promised is therefore nothing but that this library leaves the reserve alone.
 *
 * What cannot be read limits nothing. Any thread; no locks.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define GOOD_FOR_NS   100000000ull /* how long a look is believed */
#define GRANT_SHIFT   2		   /* a look entitles to a quarter of what it saw... */
#define GRANT_MAX     (64ull << 20) /* ... and to no more */
#define RESERVE_SHIFT 4		   /* left alone: 1/16 of the whole, within these bounds */
#define SYSTEM_MIN    (16ull << 20)
#define SYSTEM_MAX    (256ull << 20)
#define CGROUP_MIN    (8ull << 20) /* the process itself, and buffers of its connections */
#define CGROUP_MAX    (128ull << 20)
#define NO_LIMIT      (1ull << 60) /* version 1 has a number for it: nearly 2^63 */
#define TEXT_BYTES    8192u

static const char *root = ""; /* where /proc and /sys are, for tests */
static _Atomic int64_t granted;
static _Atomic uint64_t believed_until_ns;

/** The least of all rooms, and whose it is. */
struct room {
	uint64_t bytes;
	uint64_t reserve;
	char where[128];
};

/* ---- reading ---- */

static bool read_text(const char *path, char text[TEXT_BYTES])
{
	char full[4096];
	size_t n;
	FILE *f;

	if ((size_t) snprintf(full, sizeof(full), "%s%s", root, path) >= sizeof(full))
		return false;
	f = fopen(full, "re");
	if (!f)
		return false;
	n = fread(text, 1, TEXT_BYTES - 1, f);
	text[n] = '\0';
	fclose(f);
	return n > 0;
}

/* The number behind `key` at the beginning of a line; in bytes if the line says kB. */
static uint64_t field(const char *text, const char *key, uint64_t missing)
{
	size_t n = strlen(key);

	for (const char *line = text; line; line = strchr(line, '\n')) {
		char *end;
		uint64_t v;

		line += *line == '\n';
		if (strncmp(line, key, n) != 0)
			continue;
		v = strtoull(line + n, &end, 10);
		return strncmp(end, " kB", 3) == 0 ? v << 10 : v;
	}
	return missing;
}

/* A file that holds one number, or `max`. */
static uint64_t number(const char *dir, const char *file, uint64_t missing)
{
	char path[4096], text[TEXT_BYTES], *end;
	uint64_t v;

	if ((size_t) snprintf(path, sizeof(path), "%s/%s", dir, file) >= sizeof(path) ||
	    !read_text(path, text))
		return missing;
	v = strtoull(text, &end, 10);
	return end == text ? NO_LIMIT : v;
}

static uint64_t within(uint64_t v, uint64_t least, uint64_t most)
{
	return v < least ? least : v > most ? most : v;
}

static uint64_t minus(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static void consider(struct room *room, uint64_t bytes, uint64_t reserve, const char *where)
{
	if (bytes >= room->bytes)
		return;
	room->bytes = bytes;
	room->reserve = reserve;
	snprintf(room->where, sizeof(room->where), "%s", where);
}

/* ---- the machine ---- */

/* Also: the swap that is left, which puts off the end of memory. */
static uint64_t look_at_system(struct room *room)
{
	char text[TEXT_BYTES];
	uint64_t available, reserve, swap;

	if (!read_text("/proc/meminfo", text))
		return 0;
	/* What is free of contiguous memory (CMA, as the scratch area of a kexec handover is) counts as
	 * available, but page tables and much else cannot lie there. */
	available = minus(field(text, "MemAvailable:", NO_LIMIT), field(text, "CmaFree:", 0));
	swap = field(text, "SwapFree:", 0);
	reserve = within(field(text, "MemTotal:", 0) >> RESERVE_SHIFT, SYSTEM_MIN, SYSTEM_MAX);
	consider(room, minus(available + swap, reserve), reserve, "this machine");
	if (number("/proc/sys/vm", "overcommit_memory", 0) == 2) {
		/* Then the kernel does say no, but to the process's next malloc() as well. It keeps two
		 * reserves of its own, in kB. */
		uint64_t kept = number("/proc/sys/vm", "user_reserve_kbytes", 0) +
				number("/proc/sys/vm", "admin_reserve_kbytes", 0);
		uint64_t left = minus(field(text, "CommitLimit:", NO_LIMIT),
				      field(text, "Committed_AS:", 0) + (kept << 10));

		consider(room, minus(left, reserve), reserve, "this machine's commit limit");
	}
	return swap;
}

/* ---- cgroups ---- */

/* Page cache, which the kernel drops before it gives up. */
static uint64_t droppable(const char *dir, bool v2)
{
	char path[4096], text[TEXT_BYTES];

	if ((size_t) snprintf(path, sizeof(path), "%s/memory.stat", dir) >= sizeof(path) ||
	    !read_text(path, text))
		return 0;
	return field(text, v2 ? "active_file " : "total_active_file ", 0) +
	       field(text, v2 ? "inactive_file " : "total_inactive_file ", 0);
}

static void look_at_cgroup(struct room *room, const char *dir, bool v2, uint64_t swap)
{
	uint64_t limit = number(dir, v2 ? "memory.max" : "memory.limit_in_bytes", NO_LIMIT);
	uint64_t used = number(dir, v2 ? "memory.current" : "memory.usage_in_bytes", 0);
	uint64_t reserve = within(limit >> RESERVE_SHIFT, CGROUP_MIN, CGROUP_MAX);
	char where[128];
	uint64_t left;

	if (limit >= NO_LIMIT)
		return;
	left = minus(limit, used) + droppable(dir, v2);
	if (v2)
		left += smaller(swap, minus(number(dir, "memory.swap.max", NO_LIMIT),
					    number(dir, "memory.swap.current", 0)));
	else /* which counts both */
		left = smaller(left + swap, minus(number(dir, "memory.memsw.limit_in_bytes", NO_LIMIT),
						  number(dir, "memory.memsw.usage_in_bytes", 0)) +
						    droppable(dir, v2));
	snprintf(where, sizeof(where), "cgroup %.100s", dir);
	consider(room, minus(left, reserve), reserve, where);
}

/* From the process's own cgroup up to what is mounted at `mount`, which is `top` of the hierarchy. */
static void look_at_path(struct room *room, const char *mount, const char *top, const char *path,
			 bool v2, uint64_t swap)
{
	size_t n = strcmp(top, "/") == 0 ? 0 : strlen(top), base = strlen(mount);
	char dir[4096], *slash;

	/* A process that is outside of what it sees is limited by what is mounted at least. */
	if (strncmp(path, top, n) == 0 && (!path[n] || path[n] == '/'))
		path += n;
	else
		path = "";
	if ((size_t) snprintf(dir, sizeof(dir), "%s%s", mount, strcmp(path, "/") ? path : "") >=
	    sizeof(dir))
		return;
	do {
		look_at_cgroup(room, dir, v2, swap);
		slash = strrchr(dir, '/');
		if (slash)
			*slash = '\0';
	} while (slash && (size_t) (slash - dir) >= base && base);
}

static bool has_word(const char *list, const char *word)
{
	size_t n = strlen(word);

	for (const char *at = strstr(list, word); at; at = strstr(at + 1, word))
		if ((at == list || at[-1] == ',') && (!at[n] || at[n] == ','))
			return true;
	return false;
}

/* The path in a line `N:CONTROLLERS:PATH` of /proc/self/cgroup: of version 2, or of memory in version 1. */
static bool path_of(const char *text, bool v2, char path[2048])
{
	for (const char *line = text; line; line = strchr(line, '\n')) {
		char controllers[512] = "";

		line += *line == '\n';
		if (v2 ? sscanf(line, "%*u::%2047[^\n]", path) == 1
		       : sscanf(line, "%*u:%511[^:]:%2047[^\n]", controllers, path) == 2 &&
				 has_word(controllers, "memory"))
			return true;
	}
	return false;
}

static void look_at_cgroups(struct room *room, uint64_t swap)
{
	char text[TEXT_BYTES], full[4096], path[2048], top[2048], mount[2048], *line = NULL;
	size_t bytes = 0;
	FILE *f;

	if (!read_text("/proc/self/cgroup", text) ||
	    (size_t) snprintf(full, sizeof(full), "%s/proc/self/mountinfo", root) >= sizeof(full))
		return;
	f = fopen(full, "re");
	while (f && getline(&line, &bytes, f) > 0) {
		const char *dash = strstr(line, " - ");
		char kind[32] = "", options[512] = "";
		bool v2;

		if (!dash || sscanf(dash, " - %31s %*s %511s", kind, options) != 2 ||
		    sscanf(line, "%*u %*u %*s %2047s %2047s", top, mount) != 2)
			continue;
		v2 = strcmp(kind, "cgroup2") == 0;
		if ((v2 || (strcmp(kind, "cgroup") == 0 && has_word(options, "memory"))) &&
		    path_of(text, v2, path))
			look_at_path(room, mount, top, path, v2, swap);
	}
	free(line);
	if (f)
		fclose(f);
}

/* ---- asking ---- */

static struct room look(void)
{
	struct room room = {.bytes = UINT64_MAX};

	look_at_cgroups(&room, look_at_system(&room));
	return room;
}

uint64_t pvi_memory_room(void)
{
	return look().bytes;
}

void pvi_memory_root(const char *path)
{
	root = path;
	atomic_store(&believed_until_ns, 0);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (uint64_t) ts.tv_sec * 1000000000u + (uint64_t) ts.tv_nsec;
}

/* How much of a mapped range has no memory yet. */
static uint64_t unbacked_bytes(uint8_t *addr, uint64_t bytes)
{
	uint64_t page = (uint64_t) sysconf(_SC_PAGESIZE), missing = 0;
	unsigned char in[1024];

	for (uint64_t at = 0; at < bytes; at += sizeof(in) * page) {
		uint64_t n = smaller(sizeof(in), (bytes - at + page - 1) / page);

		if (mincore(addr + at, smaller(bytes - at, n * page), in) < 0)
			return bytes;
		for (uint64_t i = 0; i < n; i++)
			missing += in[i] & 1 ? 0 : page;
	}
	return missing;
}

bool pvi_memory_backed(uint8_t *addr, uint64_t bytes)
{
	return unbacked_bytes(addr, bytes) == 0;
}

/* What giving memory to a range may take: where nothing is yet, the kernel may put a huge page, though only a
 * small one is asked for. */
static uint64_t cost(uint8_t *addr, uint64_t bytes)
{
	uint8_t *end = addr + bytes;
	uint64_t sum = 0;

	while (addr < end) {
		uint8_t *block = (uint8_t *) ((uintptr_t) addr & ~(uintptr_t) (PVI_HUGE_BYTES - 1));
		uint8_t *next = smaller((uint64_t) (end - block), PVI_HUGE_BYTES) + block;

		sum += unbacked_bytes(block, PVI_HUGE_BYTES) == PVI_HUGE_BYTES ? PVI_HUGE_BYTES
									       : (uint64_t) (next - addr);
		addr = next;
	}
	return sum;
}

int pvi_memory_ask(uint8_t *addr, uint64_t bytes)
{
	uint64_t missing = unbacked_bytes(addr, bytes), now, grant, most;
	struct room room;

	/* What has its memory needs no other: so it mostly is at attach, where looking would be a third of the
	 * time. */
	if (!missing)
		return 0;
	now = now_ns();
	most = cost(addr, bytes);
	/* Two threads that ask at once may get the same; that is within the part that is granted. */
	if (now < atomic_load(&believed_until_ns) && atomic_load(&granted) >= (int64_t) most) {
		atomic_fetch_sub(&granted, (int64_t) most);
		return 0;
	}
	room = look();
	if (room.bytes < most)
		return pvi_fail(-ENOMEM,
				"no memory for %" PRIu64 " bytes: %s has %" PRIu64
				" left beside a reserve of %" PRIu64,
				missing, room.where, room.bytes, room.reserve);
	grant = smaller((room.bytes - most) >> GRANT_SHIFT, GRANT_MAX);
	atomic_store(&granted, (int64_t) grant);
	atomic_store(&believed_until_ns, now + GOOD_FOR_NS);
	return 0;
}
