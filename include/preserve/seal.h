/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sealing: objects that are built once and served for months become read-only for good.
 *
 *	pv_type_t types[] = {page_type, word_type};
 *	struct pv_seal_report report;
 *
 *	pv_seal(store, types, 2, &report);
 *
 * All objects of these types are moved into a segment of their own, which is then mapped read-only in every
 * process, sealed by the kernel against writing (F_SEAL_WRITE, which goes along with a kexec), and has
 * a digest in the index: whoever attaches it without the kernel's seal compares it first, and
 * pv_check() always does. A stray store into a sealed object is a SIGSEGV, not a silent damage.
 *
 * Sealed objects may refer to each other and to those sealed earlier, not to others, which could be freed or
 * moved; other objects may refer to them. They cannot be freed or changed: pv_free(), pv_publish()
 * and the like say -EPERM. They do not move any more, are not upgraded, and no memory comes back from
 * their segment; and segments before it cannot leave the store: seal early, or pv_compact() before. New
 * objects of the same types can be made, and sealed by another call. At another base than that at which it
 * was sealed a segment is mapped privately and its references are put right in memory at each attach.
 *
 * A lock (pv_lock) in a sealed object cannot be taken, and a root object that is sealed is constant.
 *
 * As with pv_compact(), objects get other addresses and the world stands still meanwhile: see
 * preserve/compact.h for what is void afterwards. What is sealed before stays where it is.
 */
#ifndef PRESERVE_SEAL_H
#define PRESERVE_SEAL_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pv_seal_report {
	uint64_t objects;
	uint64_t bytes;		/* of their slots and pages */
	uint32_t segment;	/* number of the one they are in now */
	uint32_t kernel_sealed; /* 1; 0: the kernel refused F_SEAL_WRITE, because another process has the segment
				   mapped; the next attach tries again */
	uint64_t segment_bytes;
};

/**
 * Seal all live objects of these types that are not sealed yet. `report` may be NULL.
 *
 * Takes room for a copy of the objects, in a new segment, until they are free at their old places.
 * Errors, with nothing changed: -EINVAL no or an unknown type, one that is pinned (PV_TYPE_PINNED), or an object
 * refers to one that is neither of these types nor sealed (both are named); -ENOENT there is no object to
 * seal; -EBUSY, -EBADMSG, -EPERM, -EDEADLK, -EUSERS as pv_compact(), but the store may be prepared;
 * -ENOSPC, -ENOMEM, and what the handover backend says about another segment.
 * Crash: nothing is sealed (perhaps the segment is there, empty), or everything. One thread.
 */
int pv_seal(struct pv_store *store, const pv_type_t *types, unsigned int ntypes,
	    struct pv_seal_report *report);

#ifdef __cplusplus
}
#endif

#endif
