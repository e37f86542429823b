/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * trace.c - begins and ends a traced run, and proves at its end that nothing escaped: the shadow,
 * which is the image at the begin plus the log, must be what the memfds hold, and every writable
 * shared mapping of a memfd in this process must be one the engine knows.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "engine.h"

void ct_trace_begin(void)
{
	for (unsigned i = 0; i < ct.n_mems; i++) {
		struct ct_mem *m = &ct.mems[i];
		struct ct_slot *s = &ct.shadow.slots[m->slot];
		struct stat st;

		if (!m->used)
			continue;
		if (fstat(m->fd, &st) != 0)
			ct_panic("memfd %u: %s", m->slot, strerror(errno));
		s->seals = (unsigned)ct_raw_fcntl(m->fd, F_GET_SEALS, 0);
		if ((uint64_t)st.st_size != s->size_bytes || m->alias_bytes < s->size_bytes) {
			ct_slot_reserve(s, (uint64_t)st.st_size);
			s->size_bytes = (uint64_t)st.st_size;
			ct_mem_remap_alias(i, !(s->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)));
		}
		if (m->alias_bytes)
			memcpy(s->bytes, m->alias, m->alias_bytes);
	}
	ct_trap_protect();
	ct.tracing = 1;
}

/* The first change that was found in no log; reported when the trace ends, because it may be found
 * by a signal handler. */
static struct {
	bool found;
	unsigned slot;
	uint64_t off, logged, real;
} escaped;

void ct_trace_expect(unsigned mem, uint64_t off, size_t len)
{
	const struct ct_mem *m = &ct.mems[mem];
	const uint8_t *bytes = ct.shadow.slots[m->slot].bytes;

	if (off >= m->alias_bytes)
		return;
	if (len > m->alias_bytes - off)
		len = m->alias_bytes - off;
	if (escaped.found || memcmp(bytes + off, m->alias + off, len) == 0)
		return;
	while (memcmp(bytes + off, m->alias + off, 8) == 0)
		off += 8;
	escaped.found = true;
	escaped.slot = m->slot;
	escaped.off = off;
	memcpy(&escaped.logged, bytes + off, 8);
	memcpy(&escaped.real, m->alias + off, 8);
}

static bool mem_matches(unsigned mem)
{
	const struct ct_mem *m = &ct.mems[mem];
	const struct ct_slot *s = &ct.shadow.slots[m->slot];
	unsigned seals = (unsigned)ct_raw_fcntl(m->fd, F_GET_SEALS, 0);
	struct stat st;

	if (fstat(m->fd, &st) != 0)
		ct_panic("memfd %u: %s", m->slot, strerror(errno));
	if ((uint64_t)st.st_size == s->size_bytes && seals == s->seals) {
		ct_trace_expect(mem, 0, m->alias_bytes);
		return true;
	}
	ct_fail(CRASH_FAIL_ESCAPED, "segment %u has %lld bytes, seals %#x; the log says %llu, %#x",
		m->slot, (long long)st.st_size, seals, (unsigned long long)s->size_bytes, s->seals);
	return false;
}

bool ct_trace_verify(void)
{
	for (unsigned i = 0; i < ct.n_mems; i++) {
		if (ct.mems[i].used && !mem_matches(i))
			return false;
	}
	if (!escaped.found)
		return true;
	escaped.found = false;
	ct_fail(CRASH_FAIL_ESCAPED,
		"segment %u + %#" PRIx64 " holds %#" PRIx64 ", the log says %#" PRIx64,
		escaped.slot, escaped.off, escaped.real, escaped.logged);
	return false;
}

static bool known_mapping(uintptr_t start, uintptr_t end, ino_t ino)
{
	for (unsigned i = 0; i < ct.n_mems; i++) {
		const struct ct_mem *m = &ct.mems[i];

		if (m->used && m->ino == ino && (uintptr_t)m->alias == start &&
		    start + m->alias_bytes == end)
			return true;
	}
	/* maps that touch are merged by the kernel */
	while (start < end) {
		const struct ct_map *map = ct_map_find(start);

		if (!map)
			return false;
		start = map->end;
	}
	return true;
}

/* A store through a mapping that was never seen could not even be noticed by the shadow if its
 * memfd is unknown too, so look at what the kernel says is mapped. */
static bool mappings_known(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512], perms[8];
	bool ok = true;

	if (!f)
		ct_panic("/proc/self/maps: %s", strerror(errno));
	while (ok && fgets(line, sizeof(line), f)) {
		uintptr_t start, end;
		unsigned long ino;

		if (!strstr(line, "/memfd:"))
			continue;
		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %7s %*x %*x:%*x %lu", &start, &end,
			   perms, &ino) != 4)
			ct_panic("cannot read this line of /proc/self/maps: %s", line);
		if (perms[1] != 'w' || perms[3] != 's')
			continue;
		ok = known_mapping(start, end, ino);
		if (!ok)
			ct_fail(CRASH_FAIL_ESCAPED, "a writable mapping nobody knows: %.*s",
				(int)strcspn(line, "\n"), line);
	}
	fclose(f);
	return ok;
}

bool ct_trace_end(bool with_mappings)
{
	bool ok = !with_mappings || mappings_known();

	ct.tracing = 0;
	ct_trap_unprotect();
	return ct_trace_verify() && ok;
}

void ct_trace_abandon(void)
{
	ct.tracing = 0;
	ct_trap_unprotect();
}
