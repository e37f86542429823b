/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Properties of the index's tree. Reading checks that a property is there and has the form that it
 * should have; what it says is for the caller to check. The message names node and property.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <libfdt.h>

#include "index_fdt.h"
#include "internal.h"

void pvi_fdt_put_u64(void *fdt, int *err, const char *name, uint64_t v)
{
	if (!*err)
		*err = fdt_property_u64(fdt, name, v);
}

void pvi_fdt_put_u32(void *fdt, int *err, const char *name, uint32_t v)
{
	if (!*err)
		*err = fdt_property_u32(fdt, name, v);
}

void pvi_fdt_put_string(void *fdt, int *err, const char *name, const char *v)
{
	if (!*err)
		*err = fdt_property(fdt, name, v, (int) strlen(v) + 1);
}

void pvi_fdt_put_bytes(void *fdt, int *err, const char *name, const void *v, size_t n)
{
	if (!*err)
		*err = fdt_property(fdt, name, v, (int) n);
}

void *pvi_fdt_put_room(void *fdt, int *err, const char *name, size_t n)
{
	void *room = NULL;

	if (!*err)
		*err = fdt_property_placeholder(fdt, name, (int) n, &room);
	return *err ? NULL : room;
}

void pvi_fdt_begin_node(void *fdt, int *err, const char *name, uint64_t unit)
{
	char buf[40];

	snprintf(buf, sizeof(buf), "%s@%" PRIx64, name, unit);
	if (!*err)
		*err = fdt_begin_node(fdt, buf);
}

void pvi_fdt_begin_group(void *fdt, int *err, const char *name)
{
	if (!*err)
		*err = fdt_begin_node(fdt, name);
}

void pvi_fdt_end_node(void *fdt, int *err)
{
	if (!*err)
		*err = fdt_end_node(fdt);
}

void pvi_fdt_fault(struct pvi_fdt_node *n, const char *prop, const char *what)
{
	char path[80];

	if (n->fault[0])
		return;
	if (fdt_get_path(n->fdt, n->off, path, sizeof(path)) < 0)
		strcpy(path, "?");
	snprintf(n->fault, sizeof(n->fault), "node %s: property %s %s", path, prop, what);
}

uint64_t pvi_fdt_get_u64(struct pvi_fdt_node *n, const char *prop)
{
	int len;
	const fdt64_t *p = fdt_getprop(n->fdt, n->off, prop, &len);

	if (p && len == 8)
		return fdt64_ld(p);
	pvi_fdt_fault(n, prop, p ? "is not 8 bytes" : "is missing");
	return 0;
}

uint32_t pvi_fdt_get_u32(struct pvi_fdt_node *n, const char *prop)
{
	int len;
	const fdt32_t *p = fdt_getprop(n->fdt, n->off, prop, &len);

	if (p && len == 4)
		return fdt32_ld(p);
	pvi_fdt_fault(n, prop, p ? "is not 4 bytes" : "is missing");
	return 0;
}

void pvi_fdt_get_name(struct pvi_fdt_node *n, const char *prop, char out[PVI_NAME_MAX + 1])
{
	int len;
	const char *p = fdt_getprop(n->fdt, n->off, prop, &len);

	out[0] = '\0';
	if (!p || len < 2 || len > (int) PVI_NAME_MAX + 1 || p[len - 1] != '\0' ||
	    strlen(p) != (size_t) len - 1 || !pvi_name_valid(p)) {
		pvi_fdt_fault(n, prop, p ? "is not a valid name" : "is missing");
		return;
	}
	memcpy(out, p, (size_t) len);
}

const void *pvi_fdt_get(const struct pvi_fdt_node *n, const char *prop, uint32_t *bytes)
{
	int len;
	const void *p = fdt_getprop(n->fdt, n->off, prop, &len);

	*bytes = p && len > 0 ? (uint32_t) len : 0;
	return p;
}

int pvi_fdt_check(const struct pvi_fdt_node *n)
{
	return n->fault[0] ? pvi_fail(-EBADMSG, "index: %s", n->fault) : 0;
}
