/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image files made to deceive. An input is a list of changes to the image of a small store, after which
 * checksums are computed anew, so that what lies behind them is reached; or it is the file itself.
 * Right is: a refusal, or a store that could be attached. Sanitizers see the rest.
 *
 * The first byte says which; then each change has four bytes: the record (head, list of memfds, chunks and
 * their runs in turn, end), what is done, where, and a value.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>
#include <zstd.h>

#include <preserve/image.h>

#include "fuzz.h"
#include "image_layout.h"

enum { CHUNKS_MAX = 8, CHANGES_MAX = 12, ROOM = 1 << 20 };

/* The first byte of an input. */
enum { INPUT_FILE = 1, INPUT_KEEP_CHECKSUMS = 2 };

/* What a change does to a record. */
enum { SET_BYTE, FLIP_BIT, SET_WORD, ADD_WORD, CUT, DOUBLE, KINDS };

static struct {
	uint8_t *bytes;
	size_t n;
	unsigned int nchunks;
	size_t chunks[CHUNKS_MAX]; /* where they begin */
} pristine;

static uint8_t work[ROOM];
static uint8_t contents[PV_IMAGE_CHUNK_MAX];

static void must(int condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "fuzz_restore: %s; last error: %s\n", what, pv_last_error());
	abort();
}

static int keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	return 0;
}

/* ---- the image ---- */

static void find_chunks(void)
{
	struct image_chunk_rec c;
	struct image_rec head;
	size_t at;

	memcpy(&head, pristine.bytes, sizeof(head));
	at = sizeof(head) + head.nmemfds * sizeof(struct image_memfd_rec);
	must(head.nchunks <= CHUNKS_MAX, "too many chunks");
	for (pristine.nchunks = 0; pristine.nchunks < head.nchunks; pristine.nchunks++) {
		memcpy(&c, pristine.bytes + at, sizeof(c));
		must(c.magic == PV_IMAGE_CHUNK_MAGIC, "a chunk is not where it should be");
		pristine.chunks[pristine.nchunks] = at;
		at += sizeof(c) + c.nruns * sizeof(struct image_run_rec) + c.stored_bytes;
	}
	must(at + sizeof(struct image_end_rec) == pristine.n, "the end is not where it should be");
}

static void make_image(void)
{
	static const struct pv_typedef type = PV_TYPE_BYTES("bytes", 1);
	struct pv_options o = {
		.size = sizeof(o),
		.flags = PV_CREATE,
		.handover = PV_HANDOVER_NONE,
		.window_bytes = 16 << 20,
		.segment_bytes = 64 << 10,
		.lanes = 2,
		.keep = keep,
	};
	int fd = memfd_create("image", MFD_CLOEXEC);
	struct pv_store *s;
	void **root;
	pv_type_t t;

	must(fd >= 0, "memfd_create");
	must(pv_open("fuzz", &o, &s) == 0, "pv_open");
	must(pv_type_register(s, &type, &t) == 0, "pv_type_register");
	must(pv_root(s, "root", t, 64, (void **)&root, NULL) == 0, "pv_root");
	for (unsigned int i = 0; i < 8; i++)
		must(pv_alloc(s, t, 3000 * (i + 1), &root[i]) == 0, "pv_alloc");
	must(pv_free(s, &root[3]) == 0 && pv_free(s, &root[5]) == 0, "pv_free");
	must(pv_save(s, fd, NULL, NULL) == 0, "pv_save");
	pv_close(s);
	pristine.n = (size_t)lseek(fd, 0, SEEK_END);
	pristine.bytes = malloc(pristine.n);
	must(pristine.bytes && pristine.n < ROOM / 2, "no memory");
	must(pread(fd, pristine.bytes, pristine.n, 0) == (ssize_t)pristine.n, "pread");
	close(fd);
	find_chunks();
}

/* ---- the input ---- */

/* Where a record begins, and its bytes. */
static size_t record(uint8_t which, size_t *bytes)
{
	struct image_chunk_rec c;
	unsigned int i = which % (3 + 2 * pristine.nchunks);

	if (i == 0) {
		*bytes = sizeof(struct image_rec);
		return 0;
	}
	if (i == 1) {
		*bytes = pristine.chunks[0] - sizeof(struct image_rec);
		return sizeof(struct image_rec);
	}
	if (i == 2) {
		*bytes = sizeof(struct image_end_rec);
		return pristine.n - sizeof(struct image_end_rec);
	}
	memcpy(&c, pristine.bytes + pristine.chunks[(i - 3) / 2], sizeof(c));
	if (i % 2) {
		*bytes = sizeof(c);
		return pristine.chunks[(i - 3) / 2];
	}
	*bytes = c.nruns * sizeof(struct image_run_rec) + c.stored_bytes;
	return pristine.chunks[(i - 3) / 2] + sizeof(c);
}

/* Returns the size of the file. */
static size_t change(const uint8_t how[4], size_t n)
{
	size_t bytes, at = record(how[0], &bytes), word;
	uint64_t value, wide;

	if (how[1] % KINDS == CUT)
		return at + bytes * how[2] / 256 < n ? at + bytes * how[2] / 256 : n;
	if (how[1] % KINDS == DOUBLE) {
		if (n + bytes > ROOM || at + bytes > n)
			return n;
		memmove(work + at + bytes, work + at, n - at);
		return n + bytes;
	}
	at += bytes > 256 ? (bytes - 1) * how[2] / 255 : how[2] % bytes;
	word = at & ~(size_t)7;
	if (word + 8 > n)
		return n;
	memcpy(&value, work + word, 8);
	wide = (uint64_t)(how[3] & 15) << (how[3] >> 4) * 4;
	switch (how[1] % KINDS) {
	case SET_BYTE:
		work[at] = how[3];
		return n;
	case FLIP_BIT:
		work[at] ^= (uint8_t)(1u << how[3] % 8);
		return n;
	case SET_WORD:
		value = how[3] == 255 ? UINT64_MAX : wide;
		break;
	default:
		value += how[3] & 128 ? 0 - wide : wide;
		break;
	}
	memcpy(work + word, &value, 8);
	return n;
}

/* What a writer would have made of these contents. */
static void mend_chunk(size_t at, size_t n)
{
	struct image_chunk_rec c;
	size_t runs, left = n - at - sizeof(c), got;
	const uint8_t *stored;

	memcpy(&c, work + at, sizeof(c));
	runs = c.nruns <= left / sizeof(struct image_run_rec) ? c.nruns * sizeof(struct image_run_rec) : 0;
	stored = work + at + sizeof(c) + runs;
	if (c.stored_bytes <= left - runs) {
		c.stored_checksum = XXH3_64bits_withSeed(stored, c.stored_bytes,
							 XXH3_64bits(work + at + sizeof(c), runs));
		got = ZSTD_decompress(contents, sizeof(contents), stored, c.stored_bytes);
		if (c.method == PV_IMAGE_RAW)
			c.contents_checksum = XXH3_64bits(stored, c.stored_bytes);
		else if (!ZSTD_isError(got))
			c.contents_checksum = XXH3_64bits(contents, got);
	}
	c.checksum = XXH3_64bits(&c, offsetof(struct image_chunk_rec, checksum));
	memcpy(work + at, &c, sizeof(c));
}

static void mend(size_t n)
{
	size_t memfds = pristine.chunks[0] - sizeof(struct image_rec);
	XXH3_state_t *digest = XXH3_createState();
	struct image_end_rec end;
	struct image_rec head;

	must(digest != NULL, "no memory");
	XXH3_64bits_reset(digest);
	if (n >= sizeof(head) + memfds) {
		memcpy(&head, work, sizeof(head));
		if (head.nmemfds * sizeof(struct image_memfd_rec) <= n - sizeof(head))
			head.memfds_checksum = XXH3_64bits(
				work + sizeof(head), head.nmemfds * sizeof(struct image_memfd_rec));
		head.checksum = XXH3_64bits(&head, offsetof(struct image_rec, checksum));
		memcpy(work, &head, sizeof(head));
		XXH3_64bits_update(digest, &head, sizeof(head));
	}
	for (unsigned int i = 0; i < pristine.nchunks; i++) {
		if (pristine.chunks[i] + sizeof(struct image_chunk_rec) > n)
			continue;
		mend_chunk(pristine.chunks[i], n);
		XXH3_64bits_update(digest, work + pristine.chunks[i], sizeof(struct image_chunk_rec));
	}
	if (n >= pristine.n) {
		memcpy(&end, work + pristine.n - sizeof(end), sizeof(end));
		end.digest = XXH3_64bits_digest(digest);
		end.checksum = XXH3_64bits(&end, offsetof(struct image_end_rec, checksum));
		memcpy(work + pristine.n - sizeof(end), &end, sizeof(end));
	}
	XXH3_freeState(digest);
}

static void restore(const uint8_t *file, size_t n)
{
	struct pv_options o = {.size = sizeof(o), .handover = PV_HANDOVER_NONE, .keep = keep};
	struct pv_restore_options how = {.size = sizeof(how), .threads = 1};
	struct pv_image_report report;
	int fd = memfd_create("image", MFD_CLOEXEC), err;

	must(fd >= 0 && write(fd, file, n) == (ssize_t)n && lseek(fd, 0, SEEK_SET) == 0, "no file");
	err = pv_restore(NULL, &o, fd, &how, &report);
	must(err <= 0, "a positive error");
	must(err || (report.segments > 0 && report.file_bytes == n), "a report that cannot be");
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t n;

	if (!pristine.bytes)
		make_image();
	if (!size)
		return 0;
	if (data[0] & INPUT_FILE) {
		restore(data + 1, size - 1);
		return 0;
	}
	n = pristine.n;
	memcpy(work, pristine.bytes, n);
	for (size_t i = 0; i < CHANGES_MAX && 5 + 4 * i <= size; i++)
		n = change(data + 1 + 4 * i, n);
	if (!(data[0] & INPUT_KEEP_CHECKSUMS))
		mend(n);
	restore(work, n);
	return 0;
}
