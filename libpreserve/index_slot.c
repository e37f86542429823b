/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The index memfd: its header, and the two slots with trees.
 *
 *	write the new tree to the other slot	crash: the old index is in force
 *	commit := its generation		crash from here on: the new one is
 *	write it to the first slot, too		the mirror; a crash leaves the new index without one
 *
 * So between two changes both slots hold the same tree, and damage to one of them is mended from
 *the other without guessing. Which slot is in force is said by the generation alone: number
 *generation & 1. The mirror carries the same generation in the other place.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libfdt.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "internal.h"

#define SLOT_BYTES_SMALL (8u << 10)
#define SLOT_BYTES_LARGE (256u << 10)
#define SMALL_GRANULE	 (1u << 20)

/* ---- header ---- */

static uint32_t slot_bytes_for(uint64_t granule_bytes)
{
	return granule_bytes < SMALL_GRANULE ? SLOT_BYTES_SMALL : SLOT_BYTES_LARGE;
}

uint64_t pvi_index_memfd_bytes(uint64_t granule_bytes)
{
	return PV_INDEX_HEADER_BYTES + 2ull * slot_bytes_for(granule_bytes);
}

static uint64_t header_checksum(const struct index_rec *rec)
{
	return XXH3_64bits(rec, offsetof(struct index_rec, checksum));
}

void pvi_index_format(struct index_rec *rec, const uint8_t uuid[16], uint64_t bytes)
{
	rec->format_version = PV_FORMAT_VERSION;
	rec->slot_bytes = (uint32_t)(bytes - PV_INDEX_HEADER_BYTES) / 2;
	memcpy(rec->uuid, uuid, 16);
	rec->bytes = bytes;
	rec->magic = PV_INDEX_MAGIC;
	rec->checksum = header_checksum(rec);
}

int pvi_index_check_header(const struct index_rec *rec, uint64_t bytes)
{
	if (rec->magic != PV_INDEX_MAGIC)
		return pvi_fail(-EBADMSG,
				"index: not an index of libpreserve (magic 0x%016" PRIx64 ")",
				rec->magic);
	if (rec->format_version != PV_FORMAT_VERSION)
		return pvi_fail(-EPROTONOSUPPORT,
				"index: format version %u, this library reads version %u",
				rec->format_version, PV_FORMAT_VERSION);
	if (rec->checksum != header_checksum(rec))
		return pvi_fail(-EBADMSG, "index: the header's checksum is wrong");
	if (rec->bytes != bytes)
		return pvi_fail(-EBADMSG,
				"index: the header says %" PRIu64 " bytes, the memfd has %" PRIu64,
				rec->bytes, bytes);
	if (rec->slot_bytes % 4096 || rec->slot_bytes < 4096 ||
	    PV_INDEX_HEADER_BYTES + 2ull * rec->slot_bytes != bytes)
		return pvi_fail(-EBADMSG, "index: slots of %u bytes do not fit a memfd of %" PRIu64,
				rec->slot_bytes, bytes);
	return 0;
}

uint64_t pvi_index_commit_word(const uint8_t uuid[16], uint64_t generation)
{
	uint64_t check = XXH3_64bits_withSeed(uuid, 16, generation) >> PV_COMMIT_CHECK_SHIFT;

	return check << PV_COMMIT_CHECK_SHIFT | generation;
}

static bool commit_sound(const struct index_rec *rec)
{
	return rec->commit ==
	       pvi_index_commit_word(rec->uuid, rec->commit & PV_COMMIT_GENERATION_MASK);
}

/* ---- writing ---- */

static uint32_t slot_off(const struct index_rec *rec, unsigned int number)
{
	return PV_INDEX_HEADER_BYTES + number * rec->slot_bytes;
}

static struct index_slot_rec *slot_at(const struct index_rec *rec, unsigned int number)
{
	return (struct index_slot_rec *)((uint8_t *)(uintptr_t)rec + slot_off(rec, number));
}

uint32_t pvi_index_slot_room(const struct index_rec *rec)
{
	return rec->slot_bytes - (uint32_t)sizeof(struct index_slot_rec);
}

static uint64_t slot_checksum(const void *fdt, uint64_t bytes, uint64_t generation)
{
	return XXH3_64bits_withSeed(fdt, bytes, generation);
}

/* The memory of as much of a slot as is going to be written. */
static int commit_slot(const struct pvi_index *idx, const struct index_slot_rec *slot,
		       uint64_t bytes)
{
	uint8_t *start = (uint8_t *)idx->rec;
	uint64_t off = (uint64_t)((const uint8_t *)slot - start), from = off & ~4095ull;

	return pvi_arena_commit(idx->fd, start, from, ((off + bytes + 4095) & ~4095ull) - from);
}

int pvi_index_slot_write(struct pvi_index *idx, uint64_t generation, const void *tree)
{
	struct index_slot_rec *slot = slot_at(idx->rec, generation & 1);
	uint64_t bytes = fdt_totalsize(tree);
	int err = commit_slot(idx, slot, sizeof(*slot) + bytes);

	/* The mirror must not fail. */
	if (!err)
		err = commit_slot(idx, slot_at(idx->rec, ~generation & 1), sizeof(*slot) + bytes);
	if (err)
		return err;
	/* This slot is not in force: nobody reads what is written here before the commit. */
	memcpy(slot + 1, tree, bytes);
	slot->bytes = bytes;
	slot->checksum = slot_checksum(tree, bytes, generation);
	slot->generation = generation;
	return 0;
}

/* Make a slot the same as the other one, which is sound. */
static void copy_slot(const struct index_rec *rec, unsigned int to)
{
	const struct index_slot_rec *from = slot_at(rec, 1 - to);
	struct index_slot_rec *slot = slot_at(rec, to);

	memcpy(slot + 1, from + 1, from->bytes);
	slot->bytes = from->bytes;
	slot->checksum = from->checksum;
	slot->generation = from->generation;
}

void pvi_index_commit(struct pvi_index *idx, uint64_t generation)
{
	pvi_barrier();
	__atomic_store_n(&idx->rec->commit, pvi_index_commit_word(idx->rec->uuid, generation),
			 __ATOMIC_RELEASE);
	pvi_barrier();
	idx->generation = generation;
	copy_slot(idx->rec, ~generation & 1);
	pvi_barrier();
}

/* ---- reading ---- */

/* Of the trees that libfdt writes, since 2005. */
enum { TREE_VERSION = 17 };

/* Is it a tree that fdt_check_full() of libfdt up to 1.6.1 can bear? That adds up properties' lengths in an int,
 * and goes round in circles when that overflows; and in a tree older than version 16, where names are paths,
 * it follows a null pointer if the root's has no slash. */
static bool tree_bounded(const void *fdt, uint64_t bytes)
{
	const uint8_t *tree = fdt;
	uint64_t at, end;

	if (fdt_check_header(fdt) != 0 || fdt_totalsize(fdt) > bytes ||
	    fdt_version(fdt) < TREE_VERSION)
		return false;
	at = fdt_off_dt_struct(fdt);
	end = at + fdt_size_dt_struct(fdt);
	if (end > bytes || at % 4)
		return false;
	while (at + 4 <= end) {
		uint32_t tag = fdt32_ld((const fdt32_t *) (const void *) (tree + at));
		const uint8_t *name = tree + at + 4;

		at += 4;
		if (tag == FDT_BEGIN_NODE) {
			const uint8_t *zero = memchr(name, 0, end - at);

			if (!zero)
				return false;
			at += (uint64_t) (zero - name) + 1;
		} else if (tag == FDT_PROP) {
			if (end - at < 8)
				return false;
			at += 8ull + fdt32_ld((const fdt32_t *) (const void *) name);
		} else if (tag == FDT_END) {
			return true;
		}
		at = (at + 3) & ~3ull;
	}
	return false;
}

bool pvi_index_tree_sound(const void *fdt, uint64_t bytes)
{
	return bytes >= sizeof(struct fdt_header) && tree_bounded(fdt, bytes) &&
	       fdt_check_full(fdt, bytes) == 0;
}

/* NULL if the slot is sound, else what is wrong with it. */
static const char *slot_fault(const struct index_slot_rec *slot, uint32_t slot_bytes)
{
	if (slot->bytes > slot_bytes - sizeof(*slot) || slot->bytes < sizeof(struct fdt_header))
		return "the length of its tree is out of bounds";
	if (slot->generation > PV_COMMIT_GENERATION_MASK ||
	    slot->checksum != slot_checksum(slot + 1, slot->bytes, slot->generation))
		return "its checksum is wrong";
	if (!pvi_index_tree_sound(slot + 1, slot->bytes))
		return "its flattened device tree is malformed";
	return NULL;
}

static const char *slot_fault_for(const struct index_slot_rec *slot, uint32_t slot_bytes,
				  uint64_t generation)
{
	if (slot->generation != generation)
		return "its slot carries another generation";
	return slot_fault(slot, slot_bytes);
}

/* A copy of a slot, as long as it says it is (or whole, if that makes no sense): what is checked is
 * what is used, whoever else has the memfd mapped. NULL with a message. */
static struct index_slot_rec *copy_of(int fd, const struct index_rec *rec, unsigned int number)
{
	struct index_slot_rec head, *slot;
	off_t at = (off_t)slot_off(rec, number);
	size_t n = rec->slot_bytes;

	if (pread(fd, &head, sizeof(head), at) == (ssize_t)sizeof(head) &&
	    head.bytes <= n - sizeof(head))
		n = sizeof(head) + head.bytes;
	slot = malloc(n);
	if (slot && pread(fd, slot, n, at) == (ssize_t)n) {
		if (slot->bytes > n - sizeof(head)) /* changed meanwhile: out of bounds */
			slot->bytes = UINT64_MAX;
		return slot;
	}
	pvi_fail(-EBADMSG, "index: cannot read its slot: %s", strerror(errno));
	free(slot);
	return NULL;
}

/*
 * Which of the slots was in force, if that is known without a guess: -1 if it is not.
 *
 * The commit word is sound, its slot is not: the other one, if it is the mirror. With
 * PVI_INDEX_MEND also if it is one generation behind: then the mirror had not been begun, so the
 * call that changed the index had not returned, and nothing that follows from the change had been
 * done.
 *
 * The commit word is damaged (PVI_INDEX_MEND): the sound slot, and of two the one with the lower
 * generation. While a slot is written the other one is in force. If both are sound and differ, the
 * higher one was either not in force yet, or its mirror had not been begun: as above.
 */
static int in_force(const struct index_rec *rec, struct index_slot_rec *const slots[2],
		    enum pvi_index_how how)
{
	uint64_t generation = rec->commit & PV_COMMIT_GENERATION_MASK;
	int native = (int)(generation & 1), sound[2];

	for (int i = 0; i < 2; i++)
		sound[i] = slots[i] && !slot_fault(slots[i], rec->slot_bytes);
	if (commit_sound(rec)) {
		if (!sound[!native] || how == PVI_INDEX_STRICT)
			return -1;
		if (slots[!native]->generation == generation ||
		    (how == PVI_INDEX_MEND && slots[!native]->generation == generation - 1))
			return !native;
		return -1;
	}
	if (how != PVI_INDEX_MEND || !(sound[0] || sound[1]))
		return -1;
	if (!sound[0] || !sound[1])
		return sound[1];
	if (slots[0]->generation == slots[1]->generation)
		return (int)(slots[0]->generation & 1);
	if (slots[0]->generation + 1 < slots[1]->generation ||
	    slots[1]->generation + 1 < slots[0]->generation)
		return -1;
	return slots[1]->generation < slots[0]->generation;
}

static int refused(const struct index_rec *rec, const struct index_slot_rec *slot)
{
	uint64_t generation = rec->commit & PV_COMMIT_GENERATION_MASK;
	unsigned int native = generation & 1;

	if (!commit_sound(rec))
		return pvi_fail(-EBADMSG,
				"index: the commit word 0x%016" PRIx64
				" is damaged: its check does not "
				"fit generation %" PRIu64,
				rec->commit, generation);
	return pvi_fail(-EBADMSG,
			"index: generation %" PRIu64
			" (slot %u at byte %zu): %s, and there is no mirror "
			"of it; look at it with `dtc -I dtb -O dts`",
			generation, native, slot_off(rec, native) + sizeof(*slot),
			slot_fault_for(slot, rec->slot_bytes, generation));
}

int pvi_index_slot_read(int fd, const struct index_rec *rec, enum pvi_index_how how,
			struct index_slot_rec **out, uint32_t *mended)
{
	uint64_t generation = rec->commit & PV_COMMIT_GENERATION_MASK;
	struct index_slot_rec *slots[2] = {NULL, NULL};
	int native = (int)(generation & 1), found = native, err = 0;

	*mended = 0;
	slots[native] = copy_of(fd, rec, (unsigned int)native);
	if (!slots[native])
		return -EBADMSG;
	if (!commit_sound(rec) || slot_fault_for(slots[native], rec->slot_bytes, generation)) {
		slots[!native] = copy_of(fd, rec, (unsigned int)!native);
		found = in_force(rec, slots, how);
		if (found < 0)
			err = refused(rec, slots[native]);
		else
			*mended =
				(slots[found]->generation == generation && commit_sound(rec)
					 ? 0
					 : PV_MENDED_COMMIT) |
				((int)(slots[found]->generation & 1) == found ? 0 : PV_MENDED_SLOT);
	}
	if (!err) {
		*out = slots[found];
		slots[found] = NULL;
	}
	free(slots[0]);
	free(slots[1]);
	return err;
}

void pvi_index_mend(struct pvi_index *idx)
{
	unsigned int native = idx->generation & 1;

	if (!idx->mended)
		return;
	if (idx->mended & PV_MENDED_SLOT)
		copy_slot(idx->rec, native);
	pvi_index_commit(idx, idx->generation);
}

int pvi_index_restore(struct pvi_index *idx)
{
	uint64_t generation = idx->generation;
	int err;

	/* Without writing to the last sound slot, if there is one. */
	if (!pvi_index_slot_sound(idx->rec, generation, false) &&
	    pvi_index_slot_sound(idx->rec, generation, true))
		copy_slot(idx->rec, generation & 1);
	if (pvi_index_staged_sound(idx, generation)) {
		pvi_index_commit(idx, generation);
		return 0;
	}
	err = pvi_index_stage(idx, 0, &generation);
	if (!err)
		pvi_index_commit(idx, generation);
	return err;
}

bool pvi_index_slot_sound(const struct index_rec *rec, uint64_t generation, bool mirror)
{
	return !slot_fault_for(slot_at(rec, (generation ^ mirror) & 1), rec->slot_bytes,
			       generation);
}

bool pvi_index_commit_sound(const struct pvi_index *idx)
{
	return commit_sound(idx->rec);
}

int pv_index_dump(struct pv_store *s, void **buf, size_t *bytes)
{
	enum pvi_index_how how = pvi_index_how(s);
	struct index_slot_rec *slot = NULL;
	struct index_rec rec;
	uint32_t mended;
	int err;

	pthread_mutex_lock(&s->index_lock);
	/* A reader's handle does not keep a writer from changing the slot meanwhile. */
	do {
		rec = *s->index.rec;
		err = pvi_index_slot_read(s->index.fd, &rec, how, &slot, &mended);
	} while (err && rec.commit != __atomic_load_n(&s->index.rec->commit, __ATOMIC_ACQUIRE));
	pthread_mutex_unlock(&s->index_lock);
	if (err)
		return err;
	*bytes = slot->bytes;
	memmove(slot, slot + 1, *bytes);
	*buf = slot;
	return 0;
}
