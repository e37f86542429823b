/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pool.c - makes an image real: memfds of the engine with the contents, sizes and seals that the
 * image says, for a recovery to attach to. They are used again for the next image as long as size
 * and seals fit, because creating one costs more than the recovery of a small store.
 *
 * Only called between recoveries, when the code under test has closed its store.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "engine.h"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

#define READ_ONLY_SEALS ((unsigned)(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))

static bool pool_fits(const struct ct_mem *m, const struct ct_image *image)
{
	const struct ct_slot *s = &image->slots[m->slot];
	struct stat st;

	return m->pool && m->slot < image->n_slots && s->keep_seq &&
	       !(s->seals & READ_ONLY_SEALS) && fstat(m->fd, &st) == 0 &&
	       (uint64_t)st.st_size == s->size_bytes &&
	       ct_raw_fcntl(m->fd, F_GET_SEALS, 0) == (int)s->seals;
}

static void pool_create(const struct ct_image *image, unsigned slot)
{
	const struct ct_slot *s = &image->slots[slot];
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd;

	if (s->seals & F_SEAL_EXEC)
		flags |= MFD_NOEXEC_SEAL;
	fd = ct_raw_memfd_create(s->memfd_name, flags);
	if (fd < 0 || ct_raw_ftruncate(fd, (off_t)s->size_bytes) != 0)
		ct_panic("memfd for an image: %s", strerror(errno));
	if ((s->seals & READ_ONLY_SEALS) && s->size_bytes) {
		void *p = ct_raw_mmap(NULL, (size_t)s->size_bytes, PROT_READ | PROT_WRITE,
				      MAP_SHARED, fd, 0);

		if (p == MAP_FAILED)
			ct_panic("mapping a memfd for an image: %s", strerror(errno));
		memcpy(p, s->bytes, (size_t)s->size_bytes);
		ct_raw_munmap(p, (size_t)s->size_bytes);
	}
	if (s->seals && ct_raw_fcntl(fd, F_ADD_SEALS, s->seals) != 0)
		ct_panic("sealing a memfd for an image: %s", strerror(errno));
	ct_mem_add(fd, slot, true);
}

void ct_pool_restore(const struct ct_image *image)
{
	bool have[CRASH_MAX_MEMS] = {false};

	for (unsigned i = ct.n_mems; i-- > 0;) {
		if (!ct.mems[i].used)
			continue;
		if (pool_fits(&ct.mems[i], image))
			have[ct.mems[i].slot] = true;
		else
			ct_mem_forget(i);
	}
	for (unsigned s = 0; s < image->n_slots; s++) {
		if (image->slots[s].keep_seq && !have[s])
			pool_create(image, s);
	}
	for (unsigned i = 0; i < ct.n_mems; i++) {
		const struct ct_slot *s = &image->slots[ct.mems[i].slot];

		if (ct.mems[i].used && s->size_bytes && !(s->seals & READ_ONLY_SEALS))
			memcpy(ct.mems[i].alias, s->bytes, (size_t)s->size_bytes);
	}
	/* The bytes of the shadow follow when a trace begins; without one nobody looks at them. */
	ct.shadow.n_slots = image->n_slots;
	ct.shadow.keep_last = image->keep_last;
	for (unsigned s = 0; s < image->n_slots; s++) {
		ct.shadow.slots[s].seals = image->slots[s].seals;
		ct.shadow.slots[s].keep_seq = image->slots[s].keep_seq;
		ct.shadow.slots[s].memfd_name = image->slots[s].memfd_name;
		ct.shadow.slots[s].keep_name = image->slots[s].keep_name;
	}
}

void ct_pool_export(const struct ct_image *image, struct crash_image *to, bool reverse)
{
	unsigned seqs[CRASH_MAX_MEMS];

	to->n_fds = 0;
	for (unsigned i = 0; i < ct.n_mems; i++) {
		const struct ct_mem *m = &ct.mems[i];
		unsigned seq, at;

		if (!m->used || !m->pool)
			continue;
		seq = image->slots[m->slot].keep_seq;
		for (at = to->n_fds; at > 0 && (seqs[at - 1] > seq) != reverse; at--) {
			seqs[at] = seqs[at - 1];
			to->fds[at] = to->fds[at - 1];
		}
		seqs[at] = seq;
		to->fds[at].fd = m->fd;
		to->fds[at].name = image->slots[m->slot].keep_name;
		to->n_fds++;
	}
}

uint64_t ct_pool_hash(void)
{
	uint64_t hash = 1469598103934665603u;

	for (unsigned s = 0; s < ct.shadow.n_slots; s++) {
		for (unsigned i = 0; i < ct.n_mems; i++) {
			const struct ct_mem *m = &ct.mems[i];

			if (!m->used || m->slot != s || !ct.shadow.slots[s].keep_seq)
				continue;
			for (size_t off = 0; off < m->alias_bytes; off += 8) {
				uint64_t word;

				memcpy(&word, m->alias + off, 8);
				hash = (hash ^ word) * 1099511628211u;
				hash ^= hash >> 29;
			}
		}
	}
	return hash;
}

void ct_pool_clear(void)
{
	for (unsigned i = ct.n_mems; i-- > 0;) {
		if (ct.mems[i].used)
			ct_mem_forget(i);
	}
}
