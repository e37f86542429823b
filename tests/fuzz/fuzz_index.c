/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Index trees made to deceive. An input is a flattened device tree as it stands in a slot: it is put into
 * an index memfd with a good header, commit word and checksum, and read. What is read is written again and
 * read once more: the two must be the same.
 *
 * Right is an error, or an index of which every number is within its bounds. Sanitizers see the rest.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <libfdt.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "fuzz.h"
#include "internal.h"

static struct index_rec *rec; /* mapped */
static size_t bytes;
static int fd;

static void must(int condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "fuzz_index: %s; last error: %s\n", what, pv_last_error());
	abort();
}

static void make_memfd(void)
{
	bytes = pvi_index_memfd_bytes(64 << 10);
	fd = pvi_arena_memfd("fuzz", bytes);
	must(fd >= 0, "no memfd");
	rec = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	must(rec != MAP_FAILED, "cannot map it");
}

/* Into the slot of generation 1, which is in force. */
static void put(const uint8_t *tree, size_t n)
{
	struct index_slot_rec *slot =
		(void *)((uint8_t *)rec + PV_INDEX_HEADER_BYTES + rec->slot_bytes);

	const void *uuid = NULL;
	int len = 0;

	memcpy(slot + 1, tree, n);
	/* What the header says, too, is made to fit: otherwise hardly an input gets further. */
	if (pvi_index_tree_sound(slot + 1, n)) {
		fdt_setprop_inplace_u64(slot + 1, 0, "generation", 1);
		uuid = fdt_getprop(slot + 1, 0, "uuid", &len);
	}
	pvi_index_format(rec, uuid && len == 16 ? uuid : (const uint8_t[16]){1}, bytes);
	slot->bytes = n;
	slot->generation = 1;
	slot->checksum = XXH3_64bits_withSeed(slot + 1, n, 1);
	rec->commit = pvi_index_commit_word(rec->uuid, 1);
}

static void within_bounds(const struct pvi_index *idx)
{
	uint64_t end = idx->granule_bytes;

	must(idx->nsegments && idx->nsegments <= PVI_SEGMENTS_MAX, "segments");
	must(pvi_arena_base_valid(idx->base, idx->window_bytes), "base");
	for (uint32_t i = 0; i < idx->nsegments; i++) {
		must(idx->segments[i].off >= end, "a segment overlaps");
		end = idx->segments[i].off + idx->segments[i].bytes;
		must(end <= idx->window_bytes, "a segment leaves the window");
	}
	for (uint32_t i = 1; i <= idx->ntypes; i++)
		must(idx->types[i].name[PVI_NAME_MAX] == '\0', "a type's name");
	for (uint32_t i = 0; i < idx->nroots; i++)
		must(idx->roots[i].type && idx->roots[i].type <= idx->ntypes &&
			     idx->roots[i].off < end,
		     "a root");
}

static void same(const struct pvi_index *a, const struct pvi_index *b)
{
	must(a->base == b->base && a->window_bytes == b->window_bytes && a->epoch == b->epoch &&
		     a->nlanes == b->nlanes && a->nsegments == b->nsegments && a->ntypes == b->ntypes &&
		     a->nroots == b->nroots && strcmp(a->name, b->name) == 0,
	     "what was written is not what was read");
	for (uint32_t i = 1; i <= a->ntypes; i++)
		must(strcmp(a->types[i].name, b->types[i].name) == 0 &&
			     a->types[i].nfields == b->types[i].nfields &&
			     a->types[i].fingerprint == b->types[i].fingerprint,
		     "a type that was written is not what was read");
}

/* Write what was read, in the next generation, and read that. */
static void again(struct pvi_index *idx)
{
	uint64_t generation;
	struct pvi_index next;

	idx->rec = rec;
	idx->fd = fd;
	if (pvi_index_stage(idx, 0, &generation))
		return; /* full: versions and kernels have names of other lengths */
	pvi_index_commit(idx, generation);
	must(pvi_index_read(&next, fd, rec, PVI_INDEX_STRICT) == 0, "what was written cannot be read");
	must(next.generation == 2, "another generation");
	same(idx, &next);
	pvi_index_free(&next);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct pvi_index idx;

	if (!rec)
		make_memfd();
	if (size > pvi_index_slot_room(rec))
		return 0;
	put(data, size);
	if (pvi_index_read(&idx, fd, rec, PVI_INDEX_STRICT) == 0) {
		within_bounds(&idx);
		again(&idx);
		pvi_index_free(&idx);
	}
	return 0;
}
