/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Properties of the index's tree: writing them, and reading them without trust. For the files that know
 * a part of the tree (index.c, index_type.c).
 */
#ifndef PVI_INDEX_FDT_H
#define PVI_INDEX_FDT_H

#include "types.h"

/* ---- writing: each does nothing once *err is a libfdt error ---- */

void pvi_fdt_put_u64(void *fdt, int *err, const char *name, uint64_t v);
void pvi_fdt_put_u32(void *fdt, int *err, const char *name, uint32_t v);
void pvi_fdt_put_string(void *fdt, int *err, const char *name, const char *v);
void pvi_fdt_put_bytes(void *fdt, int *err, const char *name, const void *v, size_t n);
/** Room for a property, NULL after an error. */
void *pvi_fdt_put_room(void *fdt, int *err, const char *name, size_t n);
/** A node NAME@UNIT. */
void pvi_fdt_begin_node(void *fdt, int *err, const char *name, uint64_t unit);
/** A node NAME. */
void pvi_fdt_begin_group(void *fdt, int *err, const char *name);
void pvi_fdt_end_node(void *fdt, int *err);

/* ---- reading ---- */

/** A reader of one node: remembers the first fault. */
struct pvi_fdt_node {
	const void *fdt;
	int off;
	char fault[400];
};

void pvi_fdt_fault(struct pvi_fdt_node *n, const char *prop, const char *what);
uint64_t pvi_fdt_get_u64(struct pvi_fdt_node *n, const char *prop);
uint32_t pvi_fdt_get_u32(struct pvi_fdt_node *n, const char *prop);
void pvi_fdt_get_name(struct pvi_fdt_node *n, const char *prop, char out[PVI_NAME_MAX + 1]);
/** A property of any length, *bytes; NULL: there is none. */
const void *pvi_fdt_get(const struct pvi_fdt_node *n, const char *prop, uint32_t *bytes);
/** 0, or -EBADMSG with the fault as message. */
int pvi_fdt_check(const struct pvi_fdt_node *n);

#endif
