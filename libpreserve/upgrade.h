/* SPDX-License-Identifier: BSD-3-Clause */
/* Between upgrade.c, which upgrades types, upgrade_copy.c, which goes through their objects, and
 * upgrade_chain.c, which makes a new object of one. */
#ifndef PVI_UPGRADE_H
#define PVI_UPGRADE_H

#include <preserve/upgrade.h>

#include "internal.h"
#include "move.h"
#include "typemap.h"

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

/** A type that is upgraded. */
struct pvi_upgrade_type {
	const struct pv_typedef *def;
	struct pvi_type layout; /* the new one; moved into the index's list by the draft */
	uint32_t old_number;
	uint32_t number; /* of the draft */
	struct pvi_upgrade_chain chain;
};

struct pvi_upgrade_job {
	struct pv_store *s;
	struct pv_upgrade_options opts;
	struct pv_upgrade_report report;
	struct pvi_upgrade_type *types;
	uint32_t ntypes;
	uint32_t *by_number; /* old type number -> its place in `types` plus one; 0: does not change */
	struct pvi_move *move; /* NULL: a dry run */
	struct pvi_upgrade_room room;
	uint8_t *scratch; /* in a dry run, the new object */
	size_t scratch_bytes;
	uint64_t began_ns;
	/* While fields of an object are looked at: the object, its type, and where it lies in memory. */
	const struct pvi_type *type;
	const void *object;
	uintptr_t at;
	size_t at_bytes;
};

/** What an object of so many bytes has; 0: there can be none. */
size_t pvi_upgrade_usable(const struct pv_store *s, size_t bytes);
uint64_t pvi_upgrade_now_ns(void);
/** Tell the program how far it is; and that a phase begins. */
void pvi_upgrade_tell(struct pvi_upgrade_job *j);
void pvi_upgrade_phase(struct pvi_upgrade_job *j, enum pv_upgrade_phase phase);
/** Count the objects. -EPERM: one is sealed. -EINVAL: one of another type has a reference to the middle of one of them. */
int pvi_upgrade_look(struct pvi_upgrade_job *j);
/** Make all new objects. */
int pvi_upgrade_copy(struct pvi_upgrade_job *j);

#endif
