/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fixture.c - opening, recovering and checking the store of fixture.h. The keeper is a callback of
 * the `none` backend that tells the engine which memfds would survive the process.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <libfdt.h>
#include "fixture.h"

#define STORE_NAME "sweep"

/* ---- the keeper ---- */

static int keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	struct fixture *f = ctx;
	char name[32];

	if (token >= FIXTURE_TOKENS)
		return -ENOSPC;
	if (what == PV_KEEP_DROP) {
		if (f->kept[token] >= 0) {
			crash_drop(f->kept[token]);
			close(f->kept[token]);
		}
		f->kept[token] = -1;
		return 0;
	}
	/* Replacing would take two steps here, which no real keeper does. */
	if (f->kept[token] >= 0)
		return -EEXIST;
	snprintf(name, sizeof(name), "token %" PRIu64, token);
	crash_keep(fd, name);
	f->kept[token] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	return f->kept[token] < 0 ? -errno : 0;
}

static void keeper_clear(struct fixture *f)
{
	for (unsigned i = 0; i < FIXTURE_TOKENS; i++) {
		if (f->kept[i] >= 0)
			close(f->kept[i]);
		f->kept[i] = -1;
	}
}

/* ---- open and close ---- */

int fixture_open(struct fixture *f, uint32_t flags)
{
	int fds[FIXTURE_TOKENS];
	struct pv_options o = {
		.size = sizeof(o),
		.flags = flags | f->flags,
		.handover = PV_HANDOVER_NONE,
		.window_bytes = 16 << 20,
		.segment_bytes = f->segment_bytes ? f->segment_bytes : 32 << 10,
		.lanes = f->lanes ? f->lanes : 4,
		.page_bytes = 4096,
		.limit_bytes = f->limit_bytes,
		.relocate = f->relocate,
		.dangling = f->dangling,
		.fds = fds,
		.keep = keep,
		.keep_ctx = f,
	};
	int rc;

	for (unsigned i = 0; i < FIXTURE_TOKENS; i++) {
		if (f->kept[i] >= 0)
			fds[o.nfds++] = f->kept[i];
	}
	rc = pv_open(STORE_NAME, &o, &f->store);
	if (rc) {
		f->store = NULL;
		crash_note("pv_open: %s", pv_last_error());
	}
	return rc ? rc : fixture_flavor(f);
}

void fixture_close(void *ctx)
{
	struct fixture *f = ctx;

	pv_close(f->store);
	f->store = NULL;
	f->table = NULL;
	f->n_held = 0;
	f->retired = NULL;
	keeper_clear(f);
}

static void forget_all(struct fixture *f)
{
	f->store = NULL;
	f->table = NULL;
	f->n_held = 0;
	f->n_warmed = 0;
	for (unsigned i = 0; i < FIXTURE_TOKENS; i++)
		f->kept[i] = -1;
}

static int note_error(const char *call, int rc)
{
	if (rc)
		crash_note("%s: %s", call, pv_last_error());
	return rc;
}

int fixture_types(struct fixture *f)
{
	struct table {
		void *slots[FIXTURE_SLOTS];
	};
	struct pv_typedef table = PV_TYPE(struct table, "table", 1, PV_POINTER(struct table, slots));
	struct pv_typedef node = PV_TYPE_BYTES("node", 1);
	struct pv_typedef blob = PV_TYPE_BYTES("blob", 1);
	int rc;

	rc = pv_type_register(f->store, &table, &f->table_type);
	if (!rc)
		rc = pv_type_register(f->store, &node, &f->node_type);
	if (!rc)
		rc = pv_type_register(f->store, &blob, &f->blob_type);
	return note_error("pv_type_register", rc);
}

int fixture_table(struct fixture *f)
{
	void *table;
	int rc = pv_root(f->store, "table", f->table_type, sizeof(void *) * FIXTURE_SLOTS, &table,
			 NULL);

	if (rc == 0)
		f->table = table;
	return note_error("pv_root", rc);
}

int fixture_setup_nothing(void *ctx)
{
	forget_all(ctx);
	return 0;
}

int fixture_setup_empty(void *ctx)
{
	forget_all(ctx);
	return fixture_open(ctx, PV_CREATE | PV_EXCL);
}

int fixture_setup_table(void *ctx)
{
	int rc = fixture_setup_empty(ctx);

	if (!rc)
		rc = fixture_types(ctx);
	return rc ? rc : fixture_table(ctx);
}

int fixture_setup_full(void *ctx)
{
	static const uint16_t sizes[16] = {16, 64,  64,	 200, 512, 24,	64, 1000,
					   40, 128, 600, 64,  16,  320, 64, 96};
	int rc = fixture_setup_table(ctx);

	for (unsigned i = 0; rc == 0 && i < 16; i++)
		rc = op_link(ctx, SLOT(i, sizes[i]));
	return rc;
}

int fixture_setup_settled(void *ctx)
{
	int rc = fixture_setup_full(ctx);

	return rc ? rc : op_settle(ctx, 0);
}

int fixture_setup_few(void *ctx)
{
	int rc = fixture_setup_table(ctx);

	for (unsigned i = 0; rc == 0 && i < 4; i++)
		rc = op_link(ctx, SLOT(i, 64));
	return rc ? rc : op_settle(ctx, 0);
}

/* ---- recovery ---- */

static void tell(void *ctx, const char *line)
{
	crash_note("%s", line);
}

struct root {
	char name[64];
	uint64_t off, bytes;
};

/* What the index says, read as any tool would read it. */
struct index_view {
	uint64_t hash; /* of the names of types and roots */
	unsigned n_types, n_roots;
	char types[FIXTURE_ROOTS * 4][64];
	struct root roots[FIXTURE_ROOTS * 4];
};

static uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ull;
	return x ^ (x >> 32);
}

static uint64_t mix_bytes(uint64_t hash, const void *from, size_t n)
{
	const uint8_t *p = from;
	uint64_t word;

	for (; n >= 8; p += 8, n -= 8) {
		memcpy(&word, p, 8);
		hash = mix(hash + word);
	}
	for (; n; p++, n--)
		hash = mix(hash + *p);
	return hash;
}

static bool read_names(const void *fdt, struct index_view *v)
{
	int off, types = fdt_subnode_offset(fdt, 0, "types");
	int roots = fdt_subnode_offset(fdt, 0, "roots");

	if (types < 0 || roots < 0)
		return false;
	fdt_for_each_subnode(off, fdt, types)
	{
		const char *name = fdt_getprop(fdt, off, "label", NULL);

		if (!name || v->n_types == sizeof(v->types) / sizeof(v->types[0]))
			return false;
		snprintf(v->types[v->n_types++], 64, "%s", name);
		v->hash = mix_bytes(v->hash, name, strlen(name));
	}
	fdt_for_each_subnode(off, fdt, roots)
	{
		struct root *r = &v->roots[v->n_roots];
		const char *name = fdt_getprop(fdt, off, "label", NULL);
		const fdt64_t *at = fdt_getprop(fdt, off, "offset", NULL);
		const fdt64_t *bytes = fdt_getprop(fdt, off, "bytes", NULL);

		if (!name || !at || !bytes || v->n_roots == sizeof(v->roots) / sizeof(v->roots[0]))
			return false;
		snprintf(r->name, sizeof(r->name), "%s", name);
		r->off = fdt64_ld(at);
		r->bytes = fdt64_ld(bytes);
		v->hash = mix_bytes(v->hash + 1, name, strlen(name));
		v->n_roots++;
	}
	return true;
}

static bool view_index(struct fixture *f, struct index_view *v)
{
	void *fdt;
	size_t bytes;
	bool ok;

	memset(v, 0, sizeof(*v));
	if (pv_index_dump(f->store, &fdt, &bytes) != 0)
		return false;
	ok = fdt_check_full(fdt, bytes) == 0 && read_names(fdt, v);
	free(fdt);
	return ok;
}

static const struct root *find_root(const struct index_view *v, const char *name)
{
	for (unsigned i = 0; i < v->n_roots; i++) {
		if (strcmp(v->roots[i].name, name) == 0)
			return &v->roots[i];
	}
	return NULL;
}

bool fixture_has_root(struct fixture *f, const char *name)
{
	struct index_view view;

	return view_index(f, &view) && find_root(&view, name);
}

static unsigned kept(const struct fixture *f)
{
	unsigned n = 0;

	for (unsigned i = 0; i < FIXTURE_TOKENS; i++)
		n += f->kept[i] >= 0;
	return n;
}

static unsigned named(struct fixture *f)
{
	struct pv_info info;

	pv_info_get(f->store, &info);
	return info.segments + 1;
}

int fixture_recover(void *ctx, const struct crash_image *image)
{
	struct fixture *f = ctx;
	struct pv_check_report report;
	int rc;

	forget_all(f);
	for (unsigned i = 0; i < image->n_fds; i++) {
		unsigned token;

		if (sscanf(image->fds[i].name, "token %u", &token) != 1 ||
		    token >= FIXTURE_TOKENS || f->kept[token] >= 0)
			return -EBADF;
		f->kept[token] = fcntl(image->fds[i].fd, F_DUPFD_CLOEXEC, 0);
		if (f->kept[token] < 0)
			return -errno;
	}
	f->relocate = image->flags & CRASH_OTHER_BASE ? PV_RELOCATE_ALWAYS : PV_RELOCATE_AUTO;
	rc = fixture_open(f, 0);
	f->relocate = PV_RELOCATE_AUTO;
	if (rc && rc == f->refused)
		rc = fixture_open(f, 0);
	if (rc == 0 && kept(f) != named(f)) {
		crash_note("%u descriptors are kept, the index names %u", kept(f), named(f));
		return -EUCLEAN;
	}
	if (rc == 0 && pv_check(f->store, PV_CHECK_TELL(tell, NULL), &report) == 0 && report.reserved_objects) {
		crash_note("%" PRIu64 " objects are still reserved after the attach",
			   report.reserved_objects);
		return -EUCLEAN;
	}
	/* Segments without an index are what a creation or a destruction leaves on its way. */
	if (rc == -ENOENT || (rc == -ENXIO && f->kept[0] < 0))
		rc = 0;
	return rc;
}

/* ---- check ---- */

struct live {
	const uint8_t *at;
	size_t bytes;
	pv_type_t type;
	bool reached;
};

struct collection {
	struct live objects[FIXTURE_SLOTS + FIXTURE_ROOTS + 64];
	unsigned n;
};

static int collect(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	struct collection *c = ctx;

	if (c->n == sizeof(c->objects) / sizeof(c->objects[0]))
		return -ENOSPC;
	c->objects[c->n++] = (struct live){object, bytes, type, false};
	return 0;
}

/* The one live object that begins here, reached for the first time. */
static const struct live *reach(struct collection *c, const void *at, size_t bytes)
{
	for (unsigned i = 0; i < c->n; i++) {
		struct live *o = &c->objects[i];

		if (o->at != at)
			continue;
		if (o->reached || o->bytes < bytes) {
			crash_note("object %p is reached twice or too small", at);
			return NULL;
		}
		o->reached = true;
		return o;
	}
	crash_note("pointer %p does not lead to a live object", at);
	return NULL;
}

static bool is_filled(size_t i, size_t n)
{
	return n <= 64 || i < 4 || i % 512 == 0 || i == n - 1;
}

static bool object_whole(const struct live *o, uint64_t *hash)
{
	const struct fixture_object *r = (const void *)o->at;
	size_t n;

	*hash = mix(*hash + r->key + ((uint64_t)r->bytes << 32));
	*hash = mix(*hash + r->word);
	*hash = mix(*hash + o->bytes);
	if (r->bytes == 0) {
		for (size_t i = 0; i < 2; i++) {
			if (((const uint64_t *)(const void *)o->at)[i]) {
				crash_note("an object of pv_alloc() is not zero");
				return false;
			}
		}
		return true;
	}
	n = (r->bytes - sizeof(*r)) / 8;
	for (size_t i = 0; i < n; i++) {
		if (r->bytes > o->bytes || (is_filled(i, n) && r->filler[i] != mix(r->key + i))) {
			crash_note("live object %p is not whole at byte %zu of %u", (const void *)r,
				   sizeof(*r) + i * 8, r->bytes);
			return false;
		}
	}
	return true;
}

void fixture_fill(void *object, size_t bytes, uint64_t key)
{
	struct fixture_object *r = object;
	size_t n = (bytes - sizeof(*r)) / 8;

	r->bytes = (uint32_t)bytes;
	r->key = (uint32_t)key;
	r->word = 0;
	for (size_t i = 0; i < n; i++) {
		if (is_filled(i, n))
			r->filler[i] = mix(r->key + i);
	}
}

int fixture_object(struct fixture *f, size_t bytes, uint64_t key, void **out)
{
	int rc = pv_reserve(f->store, bytes % 32 ? f->blob_type : f->node_type, bytes, out);

	if (rc)
		return note_error("pv_reserve", rc);
	fixture_fill(*out, bytes, key);
	return 0;
}

static bool check_table(struct collection *c, void *const *table, uint64_t *hash)
{
	for (uint64_t i = 0; i < FIXTURE_SLOTS; i++) {
		const struct live *o;

		if (!table[i])
			continue;
		o = reach(c, table[i], 16);
		*hash = mix(*hash + i);
		if (!o || !object_whole(o, hash))
			return false;
	}
	return true;
}

uint64_t fixture_check(void *ctx)
{
	struct fixture *f = ctx;
	struct pv_check_report report;
	struct index_view view;
	struct pv_info info;
	struct collection *c;
	unsigned leaked = 0;
	uint64_t hash;
	bool ok = true;

	if (!f->store)
		return 1; /* no store: a state like any other */
	if (pv_check(f->store, PV_CHECK_TELL(tell, NULL), &report) != 0 || report.problems)
		return 0;
	if (!f->leaky && report.leaked_objects) {
		crash_note("pv_check() finds %" PRIu64 " leaked objects", report.leaked_objects);
		return 0;
	}
	if (!view_index(f, &view)) {
		crash_note("the dumped index cannot be read");
		return 0;
	}
	c = calloc(1, sizeof(*c));
	if (!c || pv_iterate(f->store, 0, collect, c) != 0 || c->n != report.live_objects) {
		crash_note("pv_iterate() does not see the %" PRIu64 " objects of pv_check()",
			   report.live_objects);
		free(c);
		return 0;
	}
	pv_info_get(f->store, &info);
	hash = view.hash;
	for (unsigned i = 0; ok && i < view.n_roots; i++) {
		uint8_t *at = (uint8_t *)(uintptr_t)info.base + view.roots[i].off;

		ok = reach(c, at, view.roots[i].bytes);
		if (ok && strcmp(view.roots[i].name, "table") == 0)
			ok = check_table(c, (void *const *)(void *)at, &hash);
	}
	for (unsigned i = 0; ok && i < c->n; i++) {
		ok = c->objects[i].reached || f->leaky;
		leaked += !c->objects[i].reached;
		if (!ok)
			crash_note("live object %p of %zu bytes, type %u, is reached by nobody",
				   (const void *)c->objects[i].at, c->objects[i].bytes,
				   c->objects[i].type);
	}
	if (ok && leaked != report.leaked_objects) {
		crash_note("%u objects are reached by nobody, pv_check() finds %" PRIu64, leaked,
			   report.leaked_objects);
		ok = false;
	}
	free(c);
	return ok ? mix(hash + leaked) | 2 : 0;
}

/* ---- probe ---- */

static int probe_sizes(struct fixture *f)
{
	static const size_t sizes[] = {16, 64, 600, 9000};
	void *objects[4] = {NULL};
	unsigned free_slot = 0;
	int rc = 0;

	while (free_slot < FIXTURE_SLOTS && f->table[free_slot])
		free_slot++;
	if (free_slot == FIXTURE_SLOTS)
		return 0;
	for (unsigned i = 0; rc == 0 && i < 4; i++)
		rc = fixture_object(f, sizes[i], i, &objects[i]);
	for (unsigned i = 0; rc == 0 && i < 4; i++) {
		rc = pv_publish(
			f->store,
			(struct pv_action[]){PV_LIVE(objects[i]),
					     PV_STORE(&f->table[free_slot], (uintptr_t)objects[i])},
			2);
		if (!rc)
			rc = pv_free(f->store, &f->table[free_slot]);
	}
	return note_error("using the recovered store", rc);
}

int fixture_probe(void *ctx)
{
	struct fixture *f = ctx;
	uint64_t before;
	int rc;

	if (!f->store)
		return 0;
	rc = fixture_types(f);
	if (!rc && fixture_has_root(f, "table"))
		rc = fixture_table(f);
	before = rc == 0 && f->table ? fixture_check(f) : 0;
	if (rc || !f->table)
		return rc;
	rc = probe_sizes(f);
	if (rc == -ENOSPC && f->limit_bytes)
		rc = 0; /* the scenario has filled the store */
	return rc || fixture_check(f) != before;
}
