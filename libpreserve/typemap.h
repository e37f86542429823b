/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pointer maps in the form in which the process uses them, the index records them, and everything that
 * follows references goes through objects: a flat list, in which each entry is a word, or a loop over
 * words that are equally far apart. The nested definitions of preserve/type.h become this when they are
 * registered (typemap_flatten.c).
 *
 * Whatever a map or an object says, pvi_typemap_visit() stays within the bytes that it was given.
 */
#ifndef PVI_TYPEMAP_H
#define PVI_TYPEMAP_H

#include "types.h"

#define PVI_FIELDS_MAX	   1024u /* entries of a flat map */
#define PVI_WHENS_MAX	   4u
#define PVI_FIELD_NAME_MAX 127u	 /* of a path like "u.leaf[].data" */
#define PVI_POINTERS_MAX   4096u /* words that pvi_type.pointers lists */

/** pvi_when.op */
enum pvi_when_op {
	PVI_WHEN_EQUAL = 0, /* (integer & mask) == value */
	PVI_WHEN_ABOVE,	    /* (integer & mask) > value: element `value` of a counted array is in use */
};

/** A condition on an integer in the object. */
struct pvi_when {
	uint32_t off;	 /* of the first element's */
	uint32_t stride; /* the entry's, or 0: one for all elements */
	uint8_t bytes;	 /* 1, 2, 4 or 8 */
	uint8_t op;
	uint64_t mask;
	uint64_t value;
};

/** An entry of a map. */
struct pvi_field {
	const char *name;   /* its path, for people: "ends[].p" */
	const char *target; /* name of a type; "": any */
	uint32_t off;	    /* of the first word, a multiple of 8 */
	uint32_t count;	    /* PV_FLEXIBLE: up to the end of the object */
	uint32_t stride;    /* a multiple of 8; 0 if count is 1 */
	uint32_t count_off; /* of an integer that says how many are in use */
	uint8_t count_bytes; /* 0: there is none */
	uint8_t kind;	     /* enum pv_field_kind, without STRUCT and OPAQUE */
	uint8_t nwhen;	     /* all of them must hold */
	struct pvi_when when[PVI_WHENS_MAX];
	uint64_t mask; /* the bits that are the address; all but for PV_FIELD_TAGGED */
};

/** Called for one word of an object: `at` is a multiple of 8. Not 0 ends the walk. */
typedef int (*pvi_field_fn)(void *ctx, uint8_t *at, const struct pvi_field *field);

/**
 * Call fn for each word of an object that the map says is a reference (it may be null), in the order of
 * the map. Returns what the last call returned. Words at and behind usable_bytes are not looked at.
 * fn may change the word, as pvi_field_retarget() does, and nothing else of the object.
 */
int pvi_typemap_visit(const struct pvi_type *t, uint8_t *object, size_t usable_bytes,
		      pvi_field_fn fn, void *ctx);

/**
 * The address that a word names, 0: null. `self` is the word's own address. For a store that is mapped
 * elsewhere than where its pointers belong (for reading only), `self` and `base` are what they are there
 * where they belong: self = index.base + (at - s->base).
 */
static inline uint64_t pvi_field_names(const struct pvi_field *f, uint64_t word, uint64_t self,
				       uint64_t base)
{
	word &= f->mask;
	if (word && f->kind == PV_FIELD_RELATIVE)
		return self + word;
	if (word && f->kind == PV_FIELD_OFFSET)
		return base + word;
	return word;
}

/** What a word has to be to name another address (0: null); tag bits stay. */
static inline uint64_t pvi_field_word(const struct pvi_field *f, uint64_t word, uint64_t self,
				      uint64_t address, uint64_t base)
{
	uint64_t to = address;

	if (address && f->kind == PV_FIELD_RELATIVE)
		to -= self;
	else if (address && f->kind == PV_FIELD_OFFSET)
		to -= base;
	return (word & ~f->mask) | (to & f->mask);
}

/** The address that the word at `at` names, 0: null; in a store that is mapped at `base`, where its
 *  pointers belong. */
static inline uint64_t pvi_field_target(const struct pvi_field *f, const uint8_t *at, uint64_t base)
{
	return pvi_field_names(f, __atomic_load_n((const uint64_t *) (const void *) at, __ATOMIC_RELAXED),
			       (uintptr_t) at, base);
}

/** Make the word at `at` name another address (0: null), by one store. */
static inline void pvi_field_retarget(const struct pvi_field *f, uint8_t *at, uint64_t address,
				      uint64_t base)
{
	uint64_t *word = (uint64_t *) (void *) at;

	__atomic_store_n(word, pvi_field_word(f, *word, (uintptr_t) at, address, base), __ATOMIC_RELAXED);
}

/**
 * Copy an object's first bytes to another place, so that its distances name what they named: those to
 * a place in the object itself, as far as it is copied, name the same place of the copy.
 */
void pvi_typemap_copy(const struct pvi_type *t, uint8_t *to, const uint8_t *from, size_t bytes);

/** Free what a type has but for its bins. */
void pvi_typemap_free(struct pvi_type *t);
/**
 * Does the flat map make sense for an object of t->bytes? If so, find out what follows from it: pointers,
 * simple, has_pointers, flexible. -EINVAL, and in `why` which entry and what is wrong with it; or -ENOMEM.
 */
int pvi_typemap_settle(struct pvi_type *t, char *why, size_t room);
/** Fill a type from a definition: -EINVAL or -ENOMEM with a message, and nothing to be freed. */
int pvi_typemap_flatten(const struct pv_typedef *def, struct pvi_type *t);
/** Version, size and fields for people, in one line; what does not fit is cut. */
void pvi_typemap_describe(const struct pvi_type *t, char *buf, size_t room);

/** The map as the cells of the index's property `fields`: how many, and (out not NULL) their values in
 *  machine order. */
uint32_t pvi_typemap_encode(const struct pvi_type *t, uint32_t *out);
/** The other way round: t->fields (allocated) and nfields. -EINVAL with why, -ENOMEM. Names are NULL. */
int pvi_typemap_decode(struct pvi_type *t, const uint32_t *cells, uint32_t n, char *why, size_t room);
/** Hash of version, bytes, flags and map; *out. -ENOMEM. */
int pvi_typemap_fingerprint(const struct pvi_type *t, uint64_t *out);
/** May it stand in an index as the name of a field? */
bool pvi_typemap_name_valid(const char *name);

#endif
