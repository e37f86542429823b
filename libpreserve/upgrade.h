/* SPDX-License-Identifier: BSD-3-Clause */
/* Between upgrade.c, which upgrades types, and upgrade_chain.c, which upgrades one object. */
#ifndef PVI_UPGRADE_H
#define PVI_UPGRADE_H

#include <preserve/upgrade.h>

#include "internal.h"

#define PVI_UPGRADES_MAX 64u /* functions of one type */

/** The steps from one version of a type to another, in order; what each begins with has `bytes[i]`. */
struct pvi_upgrade_chain {
	const char *name; /* of the type */
	const struct pv_upgrade *steps[PVI_UPGRADES_MAX];
	uint32_t bytes[PVI_UPGRADES_MAX];
	uint32_t nsteps;
	size_t most_bytes; /* that an object of the first struct has, if there is nothing behind it */
};

/** Where the steps before the last put their results, one after the other. Zero at first. */
struct pvi_upgrade_room {
	uint8_t *at[2];
	size_t bytes[2];
	/* What the last step begins with. */
	const void *old;
	size_t old_bytes;
};

/** -EINVAL: the list of functions of a type is none. */
int pvi_upgrade_check(const struct pv_typedef *def);
/** The shortest chain from a version of the store to that of def; false: there is none. */
bool pvi_upgrade_find(const struct pv_typedef *def, uint32_t from, uint32_t from_bytes,
		      struct pvi_upgrade_chain *out);
/** All steps but the last, of an object that has old_bytes; *fresh_bytes: what that needs. *failed: the
 *  step that an error is about. */
int pvi_upgrade_start(const struct pvi_upgrade_chain *c, struct pvi_upgrade_room *room, const void *old,
		      size_t old_bytes, size_t *fresh_bytes, const struct pv_upgrade **failed);
/** The last step, into `fresh`, which is zero. */
int pvi_upgrade_end(const struct pvi_upgrade_chain *c, const struct pvi_upgrade_room *room, void *fresh,
		    size_t fresh_bytes, const struct pv_upgrade **failed);
void pvi_upgrade_room_free(struct pvi_upgrade_room *room);

#endif
