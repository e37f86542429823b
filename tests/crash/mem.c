/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * mem.c - which memfds exist and where the code under test has mapped them.
 *
 * A memfd is known by device and inode, so duplicates, reopened and received descriptors are one
 * and the same mem. The engine holds an open file description of its own for each (reopened through
 * /proc, because a duplicate would share file position and OFD locks with the code under test) and
 * an alias: a mapping of the whole file which the handlers read and write while the maps of the
 * code under test are read-only.
 *
 * Callers: the overrides and the image pool. ct_map_find() is also called by signal handlers.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "engine.h"

int ct_mem_find(int fd)
{
	struct stat st;

	if (ct.n_mems == 0 || fstat(fd, &st) != 0)
		return -1;
	for (unsigned i = 0; i < ct.n_mems; i++) {
		if (ct.mems[i].used && ct.mems[i].ino == st.st_ino && ct.mems[i].dev == st.st_dev)
			return (int)i;
	}
	return -1;
}

void ct_mem_remap_alias(unsigned mem, bool writable)
{
	struct ct_mem *m = &ct.mems[mem];
	struct stat st;
	size_t len;
	void *p;

	if (fstat(m->fd, &st) != 0)
		ct_panic("fstat of memfd %u: %s", m->slot, strerror(errno));
	len = ((size_t)st.st_size + CT_PAGE_BYTES - 1) & ~(size_t)(CT_PAGE_BYTES - 1);
	if (m->alias)
		ct_raw_munmap(m->alias, m->alias_bytes);
	m->alias = NULL;
	m->alias_bytes = 0;
	if (len == 0)
		return;
	p = ct_raw_mmap(NULL, len, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, m->fd,
			0);
	if (p == MAP_FAILED)
		ct_panic("mapping memfd %u (%zu bytes): %s", m->slot, len, strerror(errno));
	m->alias = p;
	m->alias_bytes = len;
}

unsigned ct_mem_add(int fd, unsigned slot, bool pool)
{
	struct ct_mem *m;
	struct stat st;
	unsigned i;
	int seals = ct_raw_fcntl(fd, F_GET_SEALS, 0);

	for (i = 0; i < ct.n_mems && ct.mems[i].used; i++)
		;
	if (i == sizeof(ct.mems) / sizeof(ct.mems[0]))
		ct_panic("more than %u memfds at once", i);
	if (i == ct.n_mems)
		ct.n_mems++;
	m = &ct.mems[i];
	if (fstat(fd, &st) != 0 || seals < 0)
		ct_panic("descriptor %d is no memfd: %s", fd, strerror(errno));
	*m = (struct ct_mem){
		.used = true,
		.pool = pool,
		.slot = slot,
		.dev = st.st_dev,
		.ino = st.st_ino,
		.fd = fd,
	};
	ct_mem_remap_alias(i, !(seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)));
	return i;
}

int ct_mem_adopt(int fd, const char *name)
{
	int seals = ct_raw_fcntl(fd, F_GET_SEALS, 0);
	struct ct_slot *s;
	unsigned slot = ct.shadow.n_slots;
	char path[64];
	struct stat st;
	int own;

	if (seals < 0 || fstat(fd, &st) != 0)
		return -1;
	if (slot == CRASH_MAX_MEMS)
		ct_panic("more than %d memfds in one scenario", CRASH_MAX_MEMS);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	own = open(path, O_RDWR | O_CLOEXEC);
	if (own < 0)
		ct_panic("%s: %s", path, strerror(errno));
	ct.shadow.n_slots++;
	s = &ct.shadow.slots[slot];
	s->memfd_name = s->keep_name = ct_intern(name);
	s->seals = (unsigned)seals;
	s->keep_seq = 0;
	s->size_bytes = 0;
	ct_slot_reserve(s, (uint64_t)st.st_size);
	memset(s->bytes, 0, s->cap_bytes);
	s->size_bytes = (uint64_t)st.st_size;
	return (int)ct_mem_add(own, slot, false);
}

void ct_mem_forget(unsigned mem)
{
	struct ct_mem *m = &ct.mems[mem];
	unsigned n = 0;

	if (m->alias)
		ct_raw_munmap(m->alias, m->alias_bytes);
	ct_raw_close(m->fd);
	m->used = false;
	for (unsigned i = 0; i < ct.n_maps; i++) {
		if (ct.maps[i].mem != mem)
			ct.maps[n++] = ct.maps[i];
	}
	ct.n_maps = n;
	while (ct.n_mems > 0 && !ct.mems[ct.n_mems - 1].used)
		ct.n_mems--;
}

void ct_map_add(uintptr_t start, size_t len, unsigned mem, uint64_t off, int prot)
{
	uintptr_t end = start + ((len + CT_PAGE_BYTES - 1) & ~(size_t)(CT_PAGE_BYTES - 1));

	if (ct.n_maps == CT_MAX_MAPS)
		ct_panic("more than %d mappings of memfds", CT_MAX_MAPS);
	ct.maps[ct.n_maps++] = (struct ct_map){start, end, mem, off, prot};
}

/* Cuts maps so that none straddles addr. */
static void map_split(uintptr_t addr)
{
	unsigned n = ct.n_maps;

	for (unsigned i = 0; i < n; i++) {
		struct ct_map *m = &ct.maps[i];

		if (m->start < addr && addr < m->end) {
			ct_map_add(addr, m->end - addr, m->mem, m->off + (addr - m->start),
				   m->prot);
			m->end = addr;
		}
	}
}

void ct_map_remove(uintptr_t start, size_t len)
{
	uintptr_t end = start + ((len + CT_PAGE_BYTES - 1) & ~(size_t)(CT_PAGE_BYTES - 1));
	unsigned n = 0;

	map_split(start);
	map_split(end);
	for (unsigned i = 0; i < ct.n_maps; i++) {
		if (ct.maps[i].end <= start || ct.maps[i].start >= end)
			ct.maps[n++] = ct.maps[i];
	}
	ct.n_maps = n;
}

void ct_map_set_prot(uintptr_t start, size_t len, int prot)
{
	uintptr_t end = start + ((len + CT_PAGE_BYTES - 1) & ~(size_t)(CT_PAGE_BYTES - 1));

	map_split(start);
	map_split(end);
	for (unsigned i = 0; i < ct.n_maps; i++) {
		if (ct.maps[i].start >= start && ct.maps[i].end <= end)
			ct.maps[i].prot = prot;
	}
}

const struct ct_map *ct_map_find(uintptr_t addr)
{
	for (unsigned i = 0; i < ct.n_maps; i++) {
		if (addr - ct.maps[i].start < ct.maps[i].end - ct.maps[i].start)
			return &ct.maps[i];
	}
	return NULL;
}

bool ct_map_overlaps(uintptr_t start, size_t len)
{
	for (unsigned i = 0; i < ct.n_maps; i++) {
		if (ct.maps[i].start < start + len && start < ct.maps[i].end)
			return true;
	}
	return false;
}
