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
#include "internal.h"


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
		free(idx->types[i].pointers);
		pvi_slab_bins_free(idx->types[i].bins);
	}
	free(idx->types);
	free(idx->roots);
	free(idx->segments);
	idx->types = NULL;
	idx->roots = NULL;
	idx->segments = NULL;
	idx->ntypes = 0;
}

/* ---- writing ---- */

static void put_u64(void *fdt, int *err, const char *name, uint64_t v)
{
	if (!*err)
		*err = fdt_property_u64(fdt, name, v);
}

static void put_u32(void *fdt, int *err, const char *name, uint32_t v)
{
	if (!*err)
		*err = fdt_property_u32(fdt, name, v);
}

static void put_string(void *fdt, int *err, const char *name, const char *v)
{
	if (!*err)
		*err = fdt_property(fdt, name, v, (int) strlen(v) + 1);
}

static void put_bytes(void *fdt, int *err, const char *name, const void *v, int n)
{
	if (!*err)
		*err = fdt_property(fdt, name, v, n);
}

static void begin_node(void *fdt, int *err, const char *name, uint64_t unit)
{
	char buf[40];

	snprintf(buf, sizeof(buf), "%s@%" PRIx64, name, unit);
	if (!*err)
		*err = fdt_begin_node(fdt, buf);
}

static void begin_group(void *fdt, int *err, const char *name)
{
	if (!*err)
		*err = fdt_begin_node(fdt, name);
}

static void end_node(void *fdt, int *err)
{
	if (!*err)
		*err = fdt_end_node(fdt);
}

static void write_segments(const struct pvi_index *idx, void *fdt, int *err)
{
	begin_group(fdt, err, "segments");
	for (uint32_t i = 0; i < idx->nsegments; i++) {
		begin_node(fdt, err, "segment", i);
		put_u64(fdt, err, "token", i + 1ull);
		put_u64(fdt, err, "offset", idx->segments[i].off);
		put_u64(fdt, err, "bytes", idx->segments[i].bytes);
		put_u64(fdt, err, "birth-generation", idx->segments[i].birth_generation);
		end_node(fdt, err);
	}
	end_node(fdt, err);
}

static void write_types(const struct pvi_index *idx, void *fdt, int *err)
{
	begin_group(fdt, err, "types");
	for (uint32_t i = 1; i <= idx->ntypes; i++) {
		const struct pvi_type *t = &idx->types[i];

		begin_node(fdt, err, "type", i);
		put_string(fdt, err, "label", t->name);
		put_u32(fdt, err, "version", t->version);
		put_u32(fdt, err, "bytes", t->bytes);
		if (t->npointers) {
			fdt32_t *cells = NULL;

			if (!*err)
				*err = fdt_property_placeholder(fdt, "pointers",
								(int) (t->npointers * 4),
								(void **) &cells);
			for (uint32_t k = 0; !*err && k < t->npointers; k++)
				cells[k] = cpu_to_fdt32(t->pointers[k]);
		}
		put_u64(fdt, err, "fingerprint", t->fingerprint);
		end_node(fdt, err);
	}
	end_node(fdt, err);
}

static void write_roots(const struct pvi_index *idx, void *fdt, int *err)
{
	begin_group(fdt, err, "roots");
	for (uint32_t i = 0; i < idx->nroots; i++) {
		const struct pvi_root *r = &idx->roots[i];

		begin_node(fdt, err, "root", i);
		put_string(fdt, err, "label", r->name);
		put_u32(fdt, err, "type", r->type);
		put_u64(fdt, err, "bytes", r->bytes);
		put_u64(fdt, err, "offset", r->off);
		end_node(fdt, err);
	}
	end_node(fdt, err);
}

/* Build the tree in buf; a negative libfdt error or 0. */
static int build(const struct pvi_index *idx, uint64_t generation, void *buf, uint32_t room)
{
	struct utsname uts;
	int err = fdt_create(buf, (int) room);

	if (!err)
		err = fdt_finish_reservemap(buf);
	begin_group(buf, &err, "");
	put_string(buf, &err, "compatible", PV_COMPATIBLE);
	put_string(buf, &err, "store", idx->name);
	put_bytes(buf, &err, "uuid", idx->uuid, 16);
	put_u64(buf, &err, "base", idx->base);
	put_u64(buf, &err, "window-bytes", idx->window_bytes);
	put_u64(buf, &err, "granule-bytes", idx->granule_bytes);
	put_u64(buf, &err, "page-bytes", idx->page_bytes);
	put_u32(buf, &err, "lanes", idx->nlanes);
	put_u64(buf, &err, "epoch", idx->epoch);
	put_u64(buf, &err, "generation", generation);
	put_string(buf, &err, "writer-library", pv_version());
	put_string(buf, &err, "writer-kernel", uname(&uts) == 0 ? uts.release : "unknown");
	write_segments(idx, buf, &err);
	write_types(idx, buf, &err);
	write_roots(idx, buf, &err);
	end_node(buf, &err);
	if (!err)
		err = fdt_finish(buf);
	return err;
}

/* Build the tree in a buffer that is large enough, but not much larger: libfdt clears all of it. */
static int build_grown(const struct pvi_index *idx, uint64_t generation, uint32_t room, void **out)
{
	uint32_t bytes = 4096 + 256 * (idx->nsegments + idx->ntypes + idx->nroots);
	int err;

	for (;; bytes *= 2) {
		if (bytes > room)
			bytes = room;
		*out = malloc(bytes);
		if (!*out)
			return pvi_fail(-ENOMEM, "index: no memory");
		err = build(idx, generation, *out, bytes);
		if (!err)
			return 0;
		free(*out);
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
	free(buf);
	if (!err)
		*generation = next;
	return err;
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
		free(buf);
	return !err;
}

/* ---- reading ---- */

/* A reader of one node: remembers the first fault. */
struct node {
	const void *fdt;
	int off;
	char fault[160];
};

static void node_fault(struct node *n, const char *prop, const char *what)
{
	char path[80];

	if (n->fault[0])
		return;
	if (fdt_get_path(n->fdt, n->off, path, sizeof(path)) < 0)
		strcpy(path, "?");
	snprintf(n->fault, sizeof(n->fault), "node %s: property %s %s", path, prop, what);
}

static uint64_t get_u64(struct node *n, const char *prop)
{
	int len;
	const fdt64_t *p = fdt_getprop(n->fdt, n->off, prop, &len);

	if (p && len == 8)
		return fdt64_ld(p);
	node_fault(n, prop, p ? "is not 8 bytes" : "is missing");
	return 0;
}

static uint32_t get_u32(struct node *n, const char *prop)
{
	int len;
	const fdt32_t *p = fdt_getprop(n->fdt, n->off, prop, &len);

	if (p && len == 4)
		return fdt32_ld(p);
	node_fault(n, prop, p ? "is not 4 bytes" : "is missing");
	return 0;
}

static void get_name(struct node *n, const char *prop, char out[PVI_NAME_MAX + 1])
{
	int len;
	const char *p = fdt_getprop(n->fdt, n->off, prop, &len);

	out[0] = '\0';
	if (!p || len < 2 || len > (int) PVI_NAME_MAX + 1 || p[len - 1] != '\0' ||
	    strlen(p) != (size_t) len - 1 || !pvi_name_valid(p)) {
		node_fault(n, prop, p ? "is not a valid name" : "is missing");
		return;
	}
	memcpy(out, p, (size_t) len);
}

static int fault(const struct node *n)
{
	return n->fault[0] ? pvi_fail(-EBADMSG, "index: %s", n->fault) : 0;
}

static bool power_of_two(uint64_t v)
{
	return v && (v & (v - 1)) == 0;
}

static int read_store(struct pvi_index *idx, const void *fdt, uint64_t generation,
		      const struct index_rec *rec)
{
	struct node n = {.fdt = fdt, .off = 0};
	const void *uuid;
	int len;

	if (fdt_node_check_compatible(fdt, 0, PV_COMPATIBLE) != 0)
		return pvi_fail(-EPROTONOSUPPORT, "index: node /: not compatible with %s",
				PV_COMPATIBLE);
	get_name(&n, "store", idx->name);
	idx->base = get_u64(&n, "base");
	idx->window_bytes = get_u64(&n, "window-bytes");
	idx->granule_bytes = get_u64(&n, "granule-bytes");
	idx->page_bytes = get_u64(&n, "page-bytes");
	idx->nlanes = get_u32(&n, "lanes");
	idx->epoch = get_u64(&n, "epoch");
	if (get_u64(&n, "generation") != generation)
		node_fault(&n, "generation", "differs from the header");
	uuid = fdt_getprop(fdt, 0, "uuid", &len);
	if (!uuid || len != 16 || memcmp(uuid, rec->uuid, 16) != 0)
		node_fault(&n, "uuid", "differs from the header");
	else
		memcpy(idx->uuid, uuid, 16);
	if (!power_of_two(idx->granule_bytes) || idx->granule_bytes < 32768 ||
	    idx->granule_bytes > 1ull << 40)
		node_fault(&n, "granule-bytes", "is out of range");
	else if (!power_of_two(idx->window_bytes) || idx->window_bytes < 2 * idx->granule_bytes ||
	    idx->window_bytes / idx->granule_bytes > 1u << 20 || rec->bytes > idx->granule_bytes)
		node_fault(&n, "window-bytes", "is out of range");
	if (idx->page_bytes != 4096 && idx->page_bytes != 16384)
		node_fault(&n, "page-bytes", "is neither 4096 nor 16384");
	if (!pvi_arena_base_valid(idx->base, idx->window_bytes))
		node_fault(&n, "base", "is not an address where a window may lie");
	if (idx->nlanes == 0 || idx->nlanes > 65536)
		node_fault(&n, "lanes", "is out of range");
	return fault(&n);
}

static int read_segments(struct pvi_index *idx, const void *fdt)
{
	int group = fdt_subnode_offset(fdt, 0, "segments"), off;
	uint64_t end = idx->granule_bytes; /* the index has the first granule */

	if (group < 0)
		return pvi_fail(-EBADMSG, "index: node /segments is missing");
	fdt_for_each_subnode (off, fdt, group) {
		struct node n = {.fdt = fdt, .off = off};
		uint32_t i = idx->nsegments;

		if (i == PVI_SEGMENTS_MAX)
			return pvi_fail(-EBADMSG, "index: node /segments: more than %u segments", i);
		idx->segments[i].off = get_u64(&n, "offset");
		idx->segments[i].bytes = get_u64(&n, "bytes");
		idx->segments[i].birth_generation = get_u64(&n, "birth-generation");
		if (get_u64(&n, "token") != i + 1ull)
			node_fault(&n, "token", "is out of order");
		if (idx->segments[i].bytes < 32768 || idx->segments[i].bytes % idx->page_bytes ||
		    idx->segments[i].bytes > idx->window_bytes ||
		    idx->segments[i].bytes / idx->page_bytes > PVI_PAGES_MAX)
			node_fault(&n, "bytes", "is out of range");
		if (idx->segments[i].off % idx->granule_bytes || idx->segments[i].off < end ||
		    idx->segments[i].off > idx->window_bytes - idx->segments[i].bytes)
			node_fault(&n, "offset", "overlaps another segment or leaves the window");
		if (n.fault[0])
			return fault(&n);
		end = idx->segments[i].off + idx->segments[i].bytes;
		idx->nsegments++;
	}
	if (!idx->nsegments)
		return pvi_fail(-EBADMSG, "index: node /segments is empty");
	return 0;
}

static int read_types(struct pvi_index *idx, const void *fdt)
{
	int group = fdt_subnode_offset(fdt, 0, "types"), off;

	if (group < 0)
		return pvi_fail(-EBADMSG, "index: node /types is missing");
	fdt_for_each_subnode (off, fdt, group) {
		struct node n = {.fdt = fdt, .off = off};
		struct pvi_type *t;
		const fdt32_t *cells;
		int len = 0;

		if (idx->ntypes == PV_TYPES_MAX)
			return pvi_fail(-EBADMSG, "index: node /types: more than %u types",
					PV_TYPES_MAX);
		t = &idx->types[++idx->ntypes];
		get_name(&n, "label", t->name);
		t->version = get_u32(&n, "version");
		t->bytes = get_u32(&n, "bytes");
		t->fingerprint = get_u64(&n, "fingerprint");
		cells = fdt_getprop(fdt, off, "pointers", &len);
		if (cells && (len % 4 || len == 0))
			node_fault(&n, "pointers", "is not a list of cells");
		if (n.fault[0])
			return fault(&n);
		if (!cells)
			continue;
		t->npointers = (uint32_t) len / 4;
		t->pointers = calloc(t->npointers, sizeof(*t->pointers));
		if (!t->pointers)
			return pvi_fail(-ENOMEM, "index: no memory");
		for (uint32_t k = 0; k < t->npointers; k++) {
			t->pointers[k] = fdt32_ld(&cells[k]);
			if (t->pointers[k] % 8 || t->pointers[k] + 8ull > t->bytes ||
			    (k && t->pointers[k] <= t->pointers[k - 1]))
				node_fault(&n, "pointers", "has an offset outside of the type");
		}
		if (n.fault[0])
			return fault(&n);
	}
	return 0;
}

static int read_roots(struct pvi_index *idx, const void *fdt)
{
	int group = fdt_subnode_offset(fdt, 0, "roots"), off;

	if (group < 0)
		return pvi_fail(-EBADMSG, "index: node /roots is missing");
	fdt_for_each_subnode (off, fdt, group) {
		struct node n = {.fdt = fdt, .off = off};
		struct pvi_root *r = &idx->roots[idx->nroots];
		bool inside = false;

		if (idx->nroots == PVI_ROOTS_MAX)
			return pvi_fail(-EBADMSG, "index: node /roots: more than %u roots",
					PVI_ROOTS_MAX);
		get_name(&n, "label", r->name);
		r->type = get_u32(&n, "type");
		r->bytes = get_u64(&n, "bytes");
		r->off = get_u64(&n, "offset");
		if (r->type == 0 || r->type > idx->ntypes)
			node_fault(&n, "type", "names no type");
		for (uint32_t i = 0; i < idx->nsegments; i++)
			inside |= r->off >= idx->segments[i].off &&
				  r->off - idx->segments[i].off < idx->segments[i].bytes &&
				  r->bytes <= idx->segments[i].bytes -
						      (r->off - idx->segments[i].off);
		if (!inside || r->off % 16 || !r->bytes)
			node_fault(&n, "offset", "is not inside a segment");
		if (n.fault[0])
			return fault(&n);
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
		err = read_types(idx, fdt);
	if (!err)
		err = read_roots(idx, fdt);
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
	same = next.bytes == idx->bytes && next.base == idx->base &&
	       next.window_bytes == idx->window_bytes && next.granule_bytes == idx->granule_bytes &&
	       next.page_bytes == idx->page_bytes && next.nlanes == idx->nlanes &&
	       next.ntypes == idx->ntypes && next.nsegments == idx->nsegments &&
	       memcmp(next.segments, idx->segments, idx->nsegments * sizeof(*idx->segments)) == 0;
	pvi_index_free(&next);
	return same;
}
