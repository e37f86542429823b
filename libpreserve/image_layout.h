/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The bytes of an image file (preserve/image.h), and nothing else. docs/FORMAT.md describes them.
 *
 *	image_rec | image_memfd_rec x nmemfds | chunk ... | image_end_rec
 *	chunk:	image_chunk_rec | image_run_rec x nruns | contents, perhaps compressed
 *
 * It is written and read from its beginning to its end, so that it can go through a pipe. Nothing in it
 * is looked at before a checksum has been found right, and nothing of a file is kept before its end has.
 */
#ifndef PVI_IMAGE_LAYOUT_H
#define PVI_IMAGE_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define PV_IMAGE_MAGIC	     0x47414d4956504c89ull /* 0x89 "LPVIMAG" */
#define PV_IMAGE_CHUNK_MAGIC 0x4b434c50u	   /* "PLCK" */
#define PV_IMAGE_END_MAGIC   0x444e454756504c89ull /* 0x89 "LPVGEND" */
#define PV_IMAGE_VERSION     1u

/* Bounds of what a reader takes. */
#define PV_IMAGE_CHUNK_MAX  16777216u /* contents of a chunk */
#define PV_IMAGE_UNIT	    4096u     /* every run begins and ends at a multiple of it */
#define PV_IMAGE_MEMFDS_MAX 2049u

/** Head of the file. */
struct image_rec {
	uint64_t magic;
	uint32_t version;
	uint32_t nmemfds;
	uint8_t uuid[16]; /* of the store */
	char store[64];	  /* its name, padded with zeros */
	uint64_t generation;
	uint64_t epoch;
	uint64_t base;
	uint64_t window_bytes;
	uint64_t contents_bytes; /* of all chunks, before compression */
	uint64_t nchunks;
	uint32_t chunk_bytes; /* contents of the largest chunk */
	uint32_t format_version; /* of the store */
	int64_t saved_s;	 /* when, in seconds since 1970 */
	char writer_library[16];
	char writer_kernel[64];
	uint64_t memfds_checksum; /* XXH3-64 of the image_memfd_rec's that follow */
	uint64_t checksum;	  /* XXH3-64 of everything before it */
};

_Static_assert(sizeof(struct image_rec) == 256, "image_rec");
_Static_assert(offsetof(struct image_rec, checksum) == 248, "image_rec.checksum");

/** A memfd: number 0 is the index, n + 1 is segment n, in this order. */
struct image_memfd_rec {
	uint64_t token;
	uint64_t bytes;
	uint32_t seals; /* F_SEAL_* */
	uint32_t reserved;
};

_Static_assert(sizeof(struct image_memfd_rec) == 24, "image_memfd_rec");

#define PV_IMAGE_RAW  0u /* contents as they are */
#define PV_IMAGE_ZSTD 1u /* one frame of Zstandard */

/** Head of a chunk: contents of some runs of one memfd. */
struct image_chunk_rec {
	uint32_t magic;
	uint32_t method; /* PV_IMAGE_RAW, PV_IMAGE_ZSTD */
	uint64_t number; /* from 0 */
	uint32_t token;	 /* of the memfd */
	uint32_t nruns;
	uint32_t contents_bytes;
	uint32_t stored_bytes;
	uint64_t contents_checksum; /* XXH3-64 */
	uint64_t stored_checksum;   /* XXH3-64 of the image_run_rec's, as seed for that of what is stored */
	uint64_t checksum;	    /* XXH3-64 of everything before it */
};

_Static_assert(sizeof(struct image_chunk_rec) == 56, "image_chunk_rec");

/** A part of a memfd. Runs ascend, in a chunk and from chunk to chunk. */
struct image_run_rec {
	uint64_t off;
	uint64_t bytes;
};

_Static_assert(sizeof(struct image_run_rec) == 16, "image_run_rec");

/** The end of the file: without it, it is not one. */
struct image_end_rec {
	uint64_t magic;
	uint64_t nchunks;
	uint64_t contents_bytes;
	uint64_t file_bytes; /* this record included */
	uint64_t digest;     /* XXH3-64 of image_rec and all image_chunk_rec's, in order */
	uint64_t checksum;   /* XXH3-64 of everything before it */
};

_Static_assert(sizeof(struct image_end_rec) == 48, "image_end_rec");

#endif
