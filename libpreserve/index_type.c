/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The index's nodes /types/type@N. A map that is read goes through the same checks as one that a program
 * registers, and has to have the fingerprint that stands beside it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libfdt.h>

#include "index_fdt.h"
#include "internal.h"
#include "typemap.h"

/* By enum pvi_type_state; the first is not written. */
static const char *const states[] = {"used", "draft", "former"};

/* ---- writing ---- */

static void write_map(const struct pvi_type *t, void *fdt, int *err)
{
	uint32_t n = pvi_typemap_encode(t, NULL);
	uint32_t *cells = pvi_fdt_put_room(fdt, err, "fields", n * sizeof(*cells));

	if (!cells)
		return;
	/* Properties begin at multiples of 4. */
	pvi_typemap_encode(t, cells);
	for (uint32_t i = 0; i < n; i++)
		cells[i] = cpu_to_fdt32(cells[i]);
}

/* The fields' names, or those of their targets, are written one behind the other. */
static size_t strings_bytes(const struct pvi_type *t, bool targets)
{
	size_t bytes = 0;

	for (uint32_t i = 0; i < t->nfields; i++)
		bytes += strlen(targets ? t->fields[i].target : t->fields[i].name) + 1;
	return bytes;
}

static void copy_strings(const struct pvi_type *t, bool targets, char *room)
{
	size_t at = 0;

	for (uint32_t i = 0; room && i < t->nfields; i++) {
		const char *s = targets ? t->fields[i].target : t->fields[i].name;
		size_t n = strlen(s) + 1;

		memcpy(room + at, s, n);
		at += n;
	}
}

void pvi_index_write_types(const struct pvi_index *idx, void *fdt, int *err)
{
	pvi_fdt_begin_group(fdt, err, "types");
	for (uint32_t i = 1; i <= idx->ntypes; i++) {
		const struct pvi_type *t = &idx->types[i];
		size_t bytes;

		pvi_fdt_begin_node(fdt, err, "type", i);
		pvi_fdt_put_string(fdt, err, "label", t->name);
		if (t->state != PVI_TYPE_USED)
			pvi_fdt_put_string(fdt, err, "state", states[t->state]);
		pvi_fdt_put_u32(fdt, err, "version", t->version);
		pvi_fdt_put_u32(fdt, err, "bytes", t->bytes);
		if (t->flags)
			pvi_fdt_put_u32(fdt, err, "flags", t->flags);
		if (t->nfields) {
			write_map(t, fdt, err);
			bytes = strings_bytes(t, false);
			copy_strings(t, false, pvi_fdt_put_room(fdt, err, "field-names", bytes));
			bytes = strings_bytes(t, true);
			if (bytes > t->nfields) /* not all of them empty */
				copy_strings(t, true, pvi_fdt_put_room(fdt, err, "field-targets", bytes));
		}
		pvi_fdt_put_u64(fdt, err, "fingerprint", t->fingerprint);
		pvi_fdt_end_node(fdt, err);
	}
	pvi_fdt_end_node(fdt, err);
}

/* ---- reading ---- */

/* Point each field at its string of a list; false: it is not a list of just as many valid ones. */
static bool assign_strings(struct pvi_type *t, char *list, size_t bytes, bool targets)
{
	size_t at = 0;

	if (!bytes || list[bytes - 1] != '\0')
		return false;
	for (uint32_t i = 0; i < t->nfields; i++) {
		char *s = list + at;

		if (at == bytes)
			return false;
		if (targets ? *s && !pvi_name_valid(s) : !pvi_typemap_name_valid(s))
			return false;
		if (targets)
			t->fields[i].target = s;
		else
			t->fields[i].name = s;
		at += strlen(s) + 1;
	}
	return at == bytes;
}

static int read_strings(struct pvi_fdt_node *n, struct pvi_type *t)
{
	uint32_t names_bytes, targets_bytes;
	const char *names = pvi_fdt_get(n, "field-names", &names_bytes);
	const char *targets = pvi_fdt_get(n, "field-targets", &targets_bytes);

	t->strings = malloc((size_t) names_bytes + targets_bytes + 1);
	if (!t->strings)
		return pvi_fail(-ENOMEM, "index: no memory");
	if (names)
		memcpy(t->strings, names, names_bytes);
	if (targets)
		memcpy(t->strings + names_bytes, targets, targets_bytes);
	if (!assign_strings(t, t->strings, names_bytes, false))
		pvi_fdt_fault(n, "field-names", "is not a list of one name for each entry of `fields`");
	else if (targets && !assign_strings(t, t->strings + names_bytes, targets_bytes, true))
		pvi_fdt_fault(n, "field-targets",
			      "is not a list of a type's name or nothing for each entry of `fields`");
	return pvi_fdt_check(n);
}

static int no_memory_or(int err, struct pvi_fdt_node *n, const char *why)
{
	char what[320];

	if (err == -ENOMEM)
		return pvi_fail(-ENOMEM, "index: no memory");
	if (err) {
		snprintf(what, sizeof(what), "is wrong: %s", why);
		pvi_fdt_fault(n, "fields", what);
	}
	return pvi_fdt_check(n);
}

static int read_map(struct pvi_fdt_node *n, struct pvi_type *t)
{
	uint32_t bytes, *cells;
	const fdt32_t *raw = pvi_fdt_get(n, "fields", &bytes);
	char why[300];
	int err;

	if (!raw)
		return 0;
	if (bytes % 4 || !bytes) {
		pvi_fdt_fault(n, "fields", "is not a list of cells");
		return pvi_fdt_check(n);
	}
	cells = malloc(bytes);
	if (!cells)
		return pvi_fail(-ENOMEM, "index: no memory");
	for (uint32_t i = 0; i < bytes / 4; i++)
		cells[i] = fdt32_ld(&raw[i]);
	err = pvi_typemap_decode(t, cells, bytes / 4, why, sizeof(why));
	free(cells);
	err = no_memory_or(err, n, why);
	if (!err)
		err = read_strings(n, t);
	return err;
}

static void read_state(struct pvi_fdt_node *n, struct pvi_type *t)
{
	uint32_t bytes;
	const char *state = pvi_fdt_get(n, "state", &bytes);

	if (!state)
		return;
	for (t->state = PVI_TYPE_DRAFT; t->state <= PVI_TYPE_FORMER; t->state++)
		if (bytes == strlen(states[t->state]) + 1 && !memcmp(state, states[t->state], bytes))
			return;
	pvi_fdt_fault(n, "state", "is neither \"draft\" nor \"former\"");
}

static int read_type(struct pvi_fdt_node *n, struct pvi_type *t)
{
	uint64_t fingerprint;
	uint32_t bytes;
	char why[300];
	int err;

	pvi_fdt_get_name(n, "label", t->name);
	read_state(n, t);
	t->version = pvi_fdt_get_u32(n, "version");
	t->bytes = pvi_fdt_get_u32(n, "bytes");
	t->flags = pvi_fdt_get(n, "flags", &bytes) ? pvi_fdt_get_u32(n, "flags") : 0;
	t->fingerprint = pvi_fdt_get_u64(n, "fingerprint");
	if (t->flags & ~PV_TYPE_PINNED)
		pvi_fdt_fault(n, "flags", "has flags that this library does not know");
	err = pvi_fdt_check(n);
	if (!err)
		err = read_map(n, t);
	if (!err)
		err = no_memory_or(pvi_typemap_settle(t, why, sizeof(why)), n, why);
	if (!err)
		err = no_memory_or(pvi_typemap_fingerprint(t, &fingerprint), n, "");
	if (!err && fingerprint != t->fingerprint)
		pvi_fdt_fault(n, "fingerprint", "is not that of version, bytes, flags and fields");
	return err ? err : pvi_fdt_check(n);
}

int pvi_index_read_types(struct pvi_index *idx, const void *fdt)
{
	int group = fdt_subnode_offset(fdt, 0, "types"), off, err;

	if (group < 0)
		return pvi_fail(-EBADMSG, "index: node /types is missing");
	fdt_for_each_subnode (off, fdt, group) {
		struct pvi_fdt_node n = {.fdt = fdt, .off = off};

		if (idx->ntypes == PV_TYPES_MAX)
			return pvi_fail(-EBADMSG, "index: node /types: more than %u types",
					PV_TYPES_MAX);
		idx->ntypes++; /* what it has by now is freed with it */
		err = read_type(&n, &idx->types[idx->ntypes]);
		if (err)
			return err;
	}
	return 0;
}
