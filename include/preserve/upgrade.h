/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing the layout of types in a store that exists: version 2 of a program attaches what version 1
 * wrote, and every object of a changed type is made anew by a function of the program.
 *
 *	struct person_v1 { struct person *next; char name[40]; };		what the store has
 *	struct person	 { char name[64]; struct person *next, *boss; };	what the program has now
 *
 *	static int to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
 *	{
 *		const struct person_v1 *from = old;
 *		struct person *to = fresh;			(all zero)
 *
 *		memcpy(to->name, from->name, sizeof(from->name));
 *		to->next = from->next;				(as it is: see below)
 *		return 0;
 *	}
 *	static const struct pv_upgrade person_upgrades[] = {PV_UPGRADE(1, 2, struct person, to_2)};
 *
 *	struct pv_typedef person = PV_TYPE(struct person, "person", 2, PV_POINTER(struct person, next),
 *					   PV_POINTER(struct person, boss));
 *	person.upgrades = person_upgrades;
 *	person.nupgrades = 1;
 *	pv_type_register(store, &person, &people);
 *
 * docs/TYPES.md has a worked example, rules for changing a struct, and common mistakes.
 *
 * WHAT HAPPENS
 *  Registering a type of which the store has another version looks for a chain of functions from the
 *  store's version to the program's (the shortest; 1 -> 2 -> 3 is two calls an object, and only the
 *  result of the last is stored). Each live object of the type then gets a new object, filled in by the
 *  functions. Nothing else is changed meanwhile. When all have been made, one store puts them in force;
 *  then every pointer in the store that names an old object, in objects of whatever type and in roots,
 *  is made to name the new one, and the old objects are freed.
 *
 *  Crash, or failure, before that one store: the store is as it was, the old program can attach it.
 *  Crash after it: the next pv_open(), of whatever program, finishes the work without the functions. The
 *  store is of the new version then, and a program that has the old one is refused (-EMEDIUMTYPE).
 *
 *  Until the end the store needs room for old and new objects, and 32 bytes for each.
 *
 * WHAT A FUNCTION MAY DO
 *  It reads the old object, and through its pointers any other object: none has changed yet, and those
 *  of types that are upgraded by the same call have their old layout. It writes the new object, which is
 *  zero when it begins. Pointers to other objects are copied as they are, also those to objects that get
 *  new addresses: they are brought up to date afterwards. Offsets from the base likewise. A distance
 *  from a field to its target (PV_RELATIVE) is computed anew, from the field in the new object. A
 *  pointer of the new object to itself is the new address.
 *
 *  It must not call the library, nor keep the addresses that it got: in a dry run, and before the last
 *  step of a chain, `fresh` is no object of the store. Called in one thread, in no particular order,
 *  once an object; again for all if the process dies before the commit.
 *
 * WHAT IS REFUSED, with nothing changed and a message that names object and type
 *  A pointer into the middle of an object that is upgraded (-EINVAL): where that place is in the new
 *  layout nobody knows. A function that fails (its error). A pointer that a function left outside of the
 *  store (-EINVAL). A type whose objects are pinned, or of which one is sealed (-EPERM). No room for the new
 *  objects (-ENOSPC, -ENOMEM). An open transaction, a reserved object (-EBUSY).
 */
#ifndef PRESERVE_UPGRADE_H
#define PRESERVE_UPGRADE_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

/** pv_upgrade.flags */
/** Objects may be longer than the struct (a flexible array, a text at the end): a new object has what
 *  lies behind the old struct, as far as its memory went, and as much behind the new one. */
#define PV_UPGRADE_TAIL 1u

/** A step from one version of a type's layout to another. Use the PV_UPGRADE macros. */
struct pv_upgrade {
	uint32_t from;
	uint32_t to;
	uint32_t bytes; /* sizeof the struct in version `to`; 0: opaque bytes of any length */
	uint32_t flags;
	/**
	 * Make `fresh`, zero bytes, from `old`. The sizes are what may be read and written: old_bytes is
	 * at least what was asked for when the object was made, fresh_bytes what the step comes to.
	 * A negative errno ends the upgrade with that.
	 */
	int (*run)(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes);
	/** What `fresh` needs; NULL: `bytes`, see PV_UPGRADE_TAIL. At least `bytes`. */
	size_t (*size)(void *ctx, const void *old, size_t old_bytes);
	void *ctx;
};

/** Objects of a struct of fixed size. One that is longer ends the upgrade with -EINVAL. */
#define PV_UPGRADE(from_version, to_version, type, function)                                        \
	{.from = (from_version), .to = (to_version), .bytes = sizeof(type), .run = (function)}
/** Objects with something behind the struct that is as long afterwards. */
#define PV_UPGRADE_WITH_TAIL(from_version, to_version, type, function)                              \
	{.from = (from_version), .to = (to_version), .bytes = sizeof(type),                         \
	 .flags = PV_UPGRADE_TAIL, .run = (function)}
/** Objects whose new size another function says. */
#define PV_UPGRADE_SIZED(from_version, to_version, type, function, size_function)                   \
	{.from = (from_version), .to = (to_version), .bytes = sizeof(type), .run = (function),      \
	 .size = (size_function)}

/** What an upgrade is at. */
enum pv_upgrade_phase {
	PV_UPGRADE_LOOK = 0, /* counting objects, looking for pointers into their middle */
	PV_UPGRADE_COPY = 1, /* functions are run; until here nothing has changed */
	PV_UPGRADE_MOVE = 2, /* in force; pointers are being updated, old objects freed */
	PV_UPGRADE_DONE = 3,
};

struct pv_upgrade_report {
	uint32_t phase; /* enum pv_upgrade_phase; after a failure that in which it happened */
	uint32_t types; /* that have another version in the store */
	uint64_t objects;      /* that the functions have been run over */
	uint64_t objects_all;  /* that there are of these types */
	uint64_t bytes_before; /* memory of the old objects so far */
	uint64_t bytes_after;  /* memory of their new ones */
	uint64_t moved;	       /* PV_UPGRADE_MOVE: bytes of the store in which pointers are updated */
	uint64_t moved_all;    /* of so many */
	uint64_t ns;	       /* since the call began */
	uint64_t copy_ns;      /* PV_UPGRADE_COPY alone */
	/* The first object that could not be upgraded; NULL: none. */
	const void *failed;
	uint32_t failed_from; /* the step that failed; both 0: not a function's failure */
	uint32_t failed_to;
};

struct pv_upgrade_options {
	size_t size;	/* sizeof(struct pv_upgrade_options) */
	uint64_t flags; /* 0 */
	/** Told how far it is: when a phase begins, every 65536 objects, and while pointers are updated
	 *  once for each segment. May not call the library. NULL: nobody is told. */
	void (*progress)(void *ctx, const struct pv_upgrade_report *so_far);
	void *ctx;
};

/**
 * Register `n` types, upgrading those of which the store has another version, as one: either all of them
 * are upgraded or none. So the functions see all objects of these types in the old layout, and a
 * failure of one type's function leaves a store that the old program can use; types registered one
 * after the other with pv_type_register() are upgraded one after the other. It is also faster: pointers
 * are updated once for all.
 *
 * opts, report (what was done, or how far it came): may be NULL. out[i] is the handle of defs[i];
 * handles of old layouts are not valid any more. Nothing to upgrade: n registrations.
 *
 * Errors: those of pv_type_register(), and under "what is refused" above. -EMEDIUMTYPE: there is no chain
 * of functions to the program's version; the message shows both layouts. -EPERM: PV_RDONLY. -EEXIST:
 * the same name twice. One thread, before any other use of the types. Crash: see above; types that are
 * new may be recorded without the upgrade having been made.
 */
int pv_types_register(struct pv_store *store, const struct pv_typedef *const *defs, uint32_t n,
		      const struct pv_upgrade_options *opts, struct pv_upgrade_report *report,
		      pv_type_t *out);

/**
 * A dry run of pv_types_register(): runs the functions over every object into ordinary memory, looks for
 * all that would be refused but a lack of room, and stores nothing. report->bytes_after - bytes_before says
 * by how much the store grows in the end; until then it needs bytes_after and 32 bytes for each object.
 * Works with PV_RDONLY, beside a program that has the store open, if that changes nothing meanwhile.
 *
 * 0: it would be done, or there is nothing to do (report->types is 0). Errors as above; the message and
 * report->failed name the first object that fails. One thread.
 */
int pv_types_plan(struct pv_store *store, const struct pv_typedef *const *defs, uint32_t n,
		  const struct pv_upgrade_options *opts, struct pv_upgrade_report *report);

#ifdef __cplusplus
}
#endif

#endif
