/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The index: a flattened device tree that says what is where. It is built here in ordinary memory and
 * read here from a copy; index_slot.c puts it into the memfd.
 *
 * Reading trusts nothing: header, checksum, tree, and every property are checked before use, and the
 * message names the node.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <libfdt.h>

#include "index_fdt.h"
#include "internal.h"
#include "move.h"
#include "typemap.h"

/* ---- in process ---- */

int pvi_index_init(struct pvi_index *idx)
{
	memset(idx, 0, sizeof(*idx));
	idx->fd = idx->lock_fd = -1;
	idx->types = calloc(PV_TYPES_MAX + 1, sizeof(*idx->types));
	idx->roots = calloc(PVI_ROOTS_MAX, sizeof(*idx->roots));
	idx->segments = calloc(PVI_SEGMENTS_MAX, sizeof(*idx->segments));
	if (idx->types && idx->roots && idx->segments)
		return 0;
	pvi_index_free(idx);
	return pvi_fail(-ENOMEM, "index: no memory");
}

void pvi_index_free(struct pvi_index *idx)
{
	for (uint32_t i = 1; idx->types && i <= idx->ntypes; i++) {
		pvi_typemap_free(&idx->types[i]);
		pvi_slab_bins_free(idx->types[i].bins);
	}
	free(idx->types);
	free(idx->roots);
	free(idx->segments);
	free(idx->spare);
	idx->spare = NULL;
	idx->types = NULL;
	idx->roots = NULL;
	idx->segments = NULL;
	idx->ntypes = 0;
}

/* ---- writing ---- */

static void write_segments(const struct pvi_index *idx, void *fdt, int *err)
{
	pvi_fdt_begin_group(fdt, err, "segments");
	for (uint32_t i = 0; i < idx->nsegments; i++) {
		pvi_fdt_begin_node(fdt, err, "segment", i);
		pvi_fdt_put_u64(fdt, err, "token", i + 1ull);
		pvi_fdt_put_u64(fdt, err, "offset", idx->segments[i].off);
		pvi_fdt_put_u64(fdt, err, "bytes", idx->segments[i].bytes);
		pvi_fdt_put_u64(fdt, err, "birth-generation", idx->segments[i].birth_generation);
		if (idx->segments[i].sealed) {
			pvi_fdt_put_bytes(fdt, err, "sealed", idx->segments[i].digest, 16);
			pvi_fdt_put_u64(fdt, err, "sealed-base", idx->segments[i].sealed_base);
		}
		pvi_fdt_end_node(fdt, err);
	}
	pvi_fdt_end_node(fdt, err);
}

static void write_roots(const struct pvi_index *idx, void *fdt, int *err)
{
	pvi_fdt_begin_group(fdt, err, "roots");
	for (uint32_t i = 0; i < idx->nroots; i++) {
		const struct pvi_root *r = &idx->roots[i];

		pvi_fdt_begin_node(fdt, err, "root", i);
		pvi_fdt_put_string(fdt, err, "label", r->name);
		pvi_fdt_put_u32(fdt, err, "type", r->type);
		pvi_fdt_put_u64(fdt, err, "bytes", r->bytes);
		pvi_fdt_put_u64(fdt, err, "offset", r->off);
		pvi_fdt_end_node(fdt, err);
	}
	pvi_fdt_end_node(fdt, err);
}

/* Absent if no relocation is under way, as nearly always. */
static void write_moving(const struct pvi_index *idx, void *fdt, int *err)
{
	fdt64_t cells[PVI_MOVING_MAX];

	for (uint32_t i = 0; i < idx->nmoving; i++)
		cells[i] = cpu_to_fdt64(idx->moving[i]);
	if (idx->nmoving)
		pvi_fdt_put_bytes(fdt, err, "moving-from", cells, idx->nmoving * sizeof(*cells));
	if (idx->moving_back)
		pvi_fdt_put_bytes(fdt, err, "moving-back", "", 0);
}

/* Which boot of which kernel this is: another one even where the same kernel starts again. Zeros where it
 * cannot be told. */
static uint8_t boot[16];
static pthread_once_t boot_once = PTHREAD_ONCE_INIT;

static void read_boot(void)
{
	char text[40] = "", *at = text;
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

	if (f && !fgets(text, sizeof(text), f))
		text[0] = 0;
	if (f)
		fclose(f);
	for (unsigned int i = 0; i < sizeof(boot); i++, at += 2) {
		at += *at == '-';
		if (sscanf(at, "%2hhx", &boot[i]) == 1)
			continue;
		memset(boot, 0, sizeof(boot));
		return;
	}
}

static const uint8_t *this_boot(void)
{
	pthread_once(&boot_once, read_boot);
	return boot;
}

bool pvi_index_of_this_boot(const struct pvi_index *idx)
{
	static const uint8_t unknown[16];

	return memcmp(idx->writer_boot, this_boot(), sizeof(boot)) == 0 &&
	       memcmp(boot, unknown, sizeof(boot)) != 0;
}

/* Build the tree in buf; a negative libfdt error or 0. */
static int build(const struct pvi_index *idx, uint64_t generation, void *buf, uint32_t room)
{
	struct utsname uts;
	int err = fdt_create(buf, (int) room);

	if (!err)
		err = fdt_finish_reservemap(buf);
	pvi_fdt_begin_group(buf, &err, "");
	pvi_fdt_put_string(buf, &err, "compatible", PV_COMPATIBLE);
	pvi_fdt_put_string(buf, &err, "store", idx->name);
	pvi_fdt_put_bytes(buf, &err, "uuid", idx->uuid, 16);
	pvi_fdt_put_u64(buf, &err, "base", idx->base);
	write_moving(idx, buf, &err);
	pvi_fdt_put_u64(buf, &err, "window-bytes", idx->window_bytes);
	pvi_fdt_put_u64(buf, &err, "granule-bytes", idx->granule_bytes);
	pvi_fdt_put_u64(buf, &err, "page-bytes", idx->page_bytes);
	pvi_fdt_put_u32(buf, &err, "lanes", idx->nlanes);
	pvi_fdt_put_u64(buf, &err, "epoch", idx->epoch);
	pvi_fdt_put_u64(buf, &err, "generation", generation);
	pvi_fdt_put_string(buf, &err, "writer-library", pv_version());
	pvi_fdt_put_string(buf, &err, "writer-kernel", uname(&uts) == 0 ? uts.release : "unknown");
	pvi_fdt_put_bytes(buf, &err, "writer-boot", this_boot(), sizeof(boot));
	write_segments(idx, buf, &err);
	pvi_index_write_types(idx, buf, &err);
	write_roots(idx, buf, &err);
	pvi_index_write_move(idx, buf, &err);
	pvi_fdt_end_node(buf, &err);
	if (!err)
		err = fdt_finish(buf);
	return err;
}

static void build_free(const struct pvi_index *idx, void *buf)
{
	if (buf != idx->spare)
		free(buf);
}

/* Build the tree in a buffer that is large enough, but not much larger: libfdt clears all of it. */
static int build_grown(const struct pvi_index *idx, uint64_t generation, uint32_t room, void **out)
{
	uint32_t bytes = 4096 + 256 * (idx->nsegments + idx->ntypes + idx->nroots);
	int err;

	for (;; bytes *= 2) {
		if (bytes > room || idx->spare)
			bytes = room;
		*out = idx->spare ? idx->spare : malloc(bytes);
		if (!*out)
			return pvi_fail(-ENOMEM, "index: no memory");
		err = build(idx, generation, *out, bytes);
		if (!err)
			return 0;
		build_free(idx, *out);
		if (err != -FDT_ERR_NOSPACE)
			return pvi_fail(-EINVAL, "index: libfdt: %s", fdt_strerror(err));
		if (bytes == room)
			return pvi_fail(-ENOSPC,
					"index: full (%u bytes; %u segments, %u types, %u roots)", room,
					idx->nsegments, idx->ntypes, idx->nroots);
	}
}

int pvi_index_stage(struct pvi_index *idx, uint32_t slack, uint64_t *generation)
{
	uint64_t next = idx->generation + 1;
	void *buf;
	int err = build_grown(idx, next, pvi_index_slot_room(idx->rec) - slack, &buf);

	if (err)
		return err;
	err = pvi_index_slot_write(idx, next, buf);
	build_free(idx, buf);
	if (!err)
		*generation = next;
	return err;
}

int pvi_index_make_sure(struct pvi_index *idx)
{
	if (!idx->spare)
		idx->spare = malloc(idx->rec->slot_bytes);
	return idx->spare ? 0 : pvi_fail(-ENOMEM, "index: no memory");
}

bool pvi_index_has_room(struct pvi_index *idx)
{
	uint32_t room = pvi_index_slot_room(idx->rec) - PVI_INDEX_SLACK;
	void *buf;
	int err;

	if (idx->nsegments == PVI_SEGMENTS_MAX)
		return false;
	/* All entries of a kind are of one size: the last one twice. */
	idx->segments[idx->nsegments] = idx->segments[idx->nsegments - 1];
	idx->nsegments++;
	err = build_grown(idx, idx->generation + 1, room, &buf);
	idx->nsegments--;
	if (!err)
		build_free(idx, buf);
	return !err;
}

/* ---- reading ---- */

static bool power_of_two(uint64_t v)
{
	return v && (v & (v - 1)) == 0;
}

/* Windows that pointers may lead into: none may overlap another, or a pointer would not say by itself
 * whether it was moved. */
static void read_moving(struct pvi_index *idx, struct pvi_fdt_node *n)
{
	uint32_t len = 0, count, unused;
	const fdt64_t *cells = pvi_fdt_get(n, "moving-from", &len);

	count = len / 8;
	idx->moving_back = pvi_fdt_get(n, "moving-back", &unused) != NULL;
	if (!cells)
		return;
	if (len % 8 || count == 0 || count > PVI_MOVING_MAX) {
		pvi_fdt_fault(n, "moving-from", "is not one to four addresses");
		return;
	}
	for (uint32_t i = 0; i < count; i++) {
		uint64_t base = fdt64_ld(&cells[i]);

		if (base == idx->base || !pvi_arena_base_valid(base, idx->window_bytes) ||
		    !pvi_window_apart(idx, base))
			pvi_fdt_fault(n, "moving-from", "has an address where no window may lie");
		idx->moving[idx->nmoving++] = base;
	}
}

static int read_store(struct pvi_index *idx, const void *fdt, uint64_t generation,
		      const struct index_rec *rec)
{
	struct pvi_fdt_node n = {.fdt = fdt, .off = 0};
	const void *uuid, *writer;
	int len;

	if (fdt_node_check_compatible(fdt, 0, PV_COMPATIBLE) != 0)
		return pvi_fail(-EPROTONOSUPPORT, "index: node /: not compatible with %s",
				PV_COMPATIBLE);
	pvi_fdt_get_name(&n, "store", idx->name);
	idx->base = pvi_fdt_get_u64(&n, "base");
	idx->window_bytes = pvi_fdt_get_u64(&n, "window-bytes");
	idx->granule_bytes = pvi_fdt_get_u64(&n, "granule-bytes");
	idx->page_bytes = pvi_fdt_get_u64(&n, "page-bytes");
	idx->nlanes = pvi_fdt_get_u32(&n, "lanes");
	idx->epoch = pvi_fdt_get_u64(&n, "epoch");
	if (pvi_fdt_get_u64(&n, "generation") != generation)
		pvi_fdt_fault(&n, "generation", "differs from the header");
	uuid = fdt_getprop(fdt, 0, "uuid", &len);
	if (!uuid || len != 16 || memcmp(uuid, rec->uuid, 16) != 0)
		pvi_fdt_fault(&n, "uuid", "differs from the header");
	else
		memcpy(idx->uuid, uuid, 16);
	writer = fdt_getprop(fdt, 0, "writer-boot", &len);
	if (writer && len == sizeof(idx->writer_boot))
		memcpy(idx->writer_boot, writer, sizeof(idx->writer_boot));
	else
		memset(idx->writer_boot, 0, sizeof(idx->writer_boot));
	if (!power_of_two(idx->granule_bytes) || idx->granule_bytes < 32768 ||
	    idx->granule_bytes > 1ull << 40)
		pvi_fdt_fault(&n, "granule-bytes", "is out of range");
	else if (!power_of_two(idx->window_bytes) || idx->window_bytes < 2 * idx->granule_bytes ||
	    idx->window_bytes / idx->granule_bytes > 1u << 20 || rec->bytes > idx->granule_bytes)
		pvi_fdt_fault(&n, "window-bytes", "is out of range");
	if (idx->page_bytes != 4096 && idx->page_bytes != 16384)
		pvi_fdt_fault(&n, "page-bytes", "is neither 4096 nor 16384");
	if (!pvi_arena_base_valid(idx->base, idx->window_bytes))
		pvi_fdt_fault(&n, "base", "is not an address where a window may lie");
	if (!n.fault[0])
		read_moving(idx, &n);
	if (idx->nlanes == 0 || idx->nlanes > 65536)
		pvi_fdt_fault(&n, "lanes", "is out of range");
	return pvi_fdt_check(&n);
}

/* Segment 0 has the lanes, which are written to. */
static void read_seal(struct pvi_index *idx, struct pvi_fdt_node *n, uint32_t i)
{
	uint32_t bytes = 0;
	const void *digest = pvi_fdt_get(n, "sealed", &bytes);

	if (!digest)
		return;
	if (bytes != 16 || i == 0) {
		pvi_fdt_fault(n, "sealed", "is no digest of a segment that can be sealed");
		return;
	}
	memcpy(idx->segments[i].digest, digest, 16);
	idx->segments[i].sealed_base = pvi_fdt_get_u64(n, "sealed-base");
	if (!pvi_arena_base_valid(idx->segments[i].sealed_base, idx->window_bytes))
		pvi_fdt_fault(n, "sealed-base", "is not an address where a window may lie");
	idx->segments[i].sealed = true;
}

static int read_segments(struct pvi_index *idx, const void *fdt)
{
	int group = fdt_subnode_offset(fdt, 0, "segments"), off;
	uint64_t end = idx->granule_bytes; /* the index has the first granule */

	if (group < 0)
		return pvi_fail(-EBADMSG, "index: node /segments is missing");
	fdt_for_each_subnode (off, fdt, group) {
		struct pvi_fdt_node n = {.fdt = fdt, .off = off};
		uint32_t i = idx->nsegments;

		if (i == PVI_SEGMENTS_MAX)
			return pvi_fail(-EBADMSG, "index: node /segments: more than %u segments", i);
		idx->segments[i].off = pvi_fdt_get_u64(&n, "offset");
		idx->segments[i].bytes = pvi_fdt_get_u64(&n, "bytes");
		idx->segments[i].birth_generation = pvi_fdt_get_u64(&n, "birth-generation");
		read_seal(idx, &n, i);
		if (pvi_fdt_get_u64(&n, "token") != i + 1ull)
			pvi_fdt_fault(&n, "token", "is out of order");
		if (idx->segments[i].bytes < 32768 || idx->segments[i].bytes % idx->page_bytes ||
		    idx->segments[i].bytes > idx->window_bytes ||
		    idx->segments[i].bytes / idx->page_bytes > PVI_PAGES_MAX)
			pvi_fdt_fault(&n, "bytes", "is out of range");
		if (idx->segments[i].off != end ||
		    idx->segments[i].off > idx->window_bytes - idx->segments[i].bytes)
			pvi_fdt_fault(&n, "offset", "does not follow the one before, or leaves the window");
		if (n.fault[0])
			return pvi_fdt_check(&n);
		end = idx->segments[i].off + idx->segments[i].bytes + idx->granule_bytes - 1;
		end -= end % idx->granule_bytes;
		idx->nsegments++;
	}
	if (!idx->nsegments)
		return pvi_fail(-EBADMSG, "index: node /segments is empty");
	return 0;
}

static int read_roots(struct pvi_index *idx, const void *fdt)
{
	int group = fdt_subnode_offset(fdt, 0, "roots"), off;

	if (group < 0)
		return pvi_fail(-EBADMSG, "index: node /roots is missing");
	fdt_for_each_subnode (off, fdt, group) {
		struct pvi_fdt_node n = {.fdt = fdt, .off = off};
		struct pvi_root *r = &idx->roots[idx->nroots];
		bool inside = false;

		if (idx->nroots == PVI_ROOTS_MAX)
			return pvi_fail(-EBADMSG, "index: node /roots: more than %u roots",
					PVI_ROOTS_MAX);
		pvi_fdt_get_name(&n, "label", r->name);
		r->type = pvi_fdt_get_u32(&n, "type");
		r->bytes = pvi_fdt_get_u64(&n, "bytes");
		r->off = pvi_fdt_get_u64(&n, "offset");
		if (r->type == 0 || r->type > idx->ntypes)
			pvi_fdt_fault(&n, "type", "names no type");
		for (uint32_t i = 0; i < idx->nsegments; i++)
			inside |= r->off >= idx->segments[i].off &&
				  r->off - idx->segments[i].off < idx->segments[i].bytes &&
				  r->bytes <= idx->segments[i].bytes -
						      (r->off - idx->segments[i].off);
		if (!inside || r->off % 16 || !r->bytes)
			pvi_fdt_fault(&n, "offset", "is not inside a segment");
		if (n.fault[0])
			return pvi_fdt_check(&n);
		idx->nroots++;
	}
	return 0;
}

static int read_tree(struct pvi_index *idx, const struct index_slot_rec *slot, const struct index_rec *rec)
{
	const void *fdt = slot + 1;
	int err = read_store(idx, fdt, slot->generation, rec);

	if (!err)
		err = read_segments(idx, fdt);
	if (!err)
		err = pvi_index_read_types(idx, fdt);
	if (!err)
		err = read_roots(idx, fdt);
	if (!err)
		err = pvi_index_read_move(idx, fdt);
	return err;
}

int pvi_index_read(struct pvi_index *idx, int fd, const struct index_rec *rec, enum pvi_index_how how)
{
	struct index_slot_rec *slot = NULL;
	int err = pvi_index_init(idx);

	if (err)
		return err;
	idx->bytes = rec->bytes;
	err = pvi_index_slot_read(fd, rec, how, &slot, &idx->mended);
	if (!err) {
		idx->generation = slot->generation;
		err = read_tree(idx, slot, rec);
	}
	free(slot);
	if (err)
		pvi_index_free(idx);
	return err;
}

int pvi_index_reread(struct pvi_index *idx, const struct index_rec *rec, enum pvi_index_how how)
{
	struct index_rec copy = *rec;
	struct pvi_index fresh;
	int err = pvi_index_read(&fresh, idx->fd, &copy, how);

	if (err)
		return err;
	fresh.fd = idx->fd;
	fresh.lock_fd = idx->lock_fd;
	fresh.rec = idx->rec;
	fresh.mended |= idx->mended;
	pvi_index_free(idx);
	*idx = fresh;
	return 0;
}

bool pvi_index_staged_sound(const struct pvi_index *idx, uint64_t generation)
{
	struct index_rec rec = *idx->rec;
	struct pvi_index next;
	bool same;

	rec.commit = pvi_index_commit_word(rec.uuid, generation);
	if (pvi_index_read(&next, idx->fd, &rec, PVI_INDEX_STRICT))
		return false;
	same = next.bytes == idx->rec->bytes && next.base == idx->base &&
	       next.window_bytes == idx->window_bytes && next.granule_bytes == idx->granule_bytes &&
	       next.page_bytes == idx->page_bytes && next.nlanes == idx->nlanes &&
	       next.ntypes == idx->ntypes && next.nsegments == idx->nsegments &&
	       memcmp(next.segments, idx->segments, idx->nsegments * sizeof(*idx->segments)) == 0;
	pvi_index_free(&next);
	return same;
}
