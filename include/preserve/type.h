/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Types: what a program tells the library about the structs that it stores. A type's *pointer map* says
 * where its objects hold references to others. Whatever follows references depends on it: moving a store
 * to other addresses, compaction, layout upgrade, the full check. A reference that is not declared is not
 * followed, and not changed when what it refers to moves; pv-typecheck(1) finds those that were forgotten.
 *
 * One line a struct, outside of functions:
 *
 *	struct node {
 *		struct node *next;
 *		uint32_t kind;
 *		uint32_t nkids;
 *		union { struct blob *blob; uint64_t number; } u;
 *		struct { void *at; uint64_t length; } kids[];
 *	};
 *	static const struct pv_typedef node_type = PV_TYPE(struct node, "node", 1,
 *		PV_POINTER_TO(struct node, next, "node"),
 *		PV_WHEN(struct node, kind, KIND_BLOB, PV_POINTER(struct node, u.blob)),
 *		PV_STRUCT_COUNTED(struct node, kids, PV_ELEMENT(struct node, kids), nkids,
 *				  PV_POINTER(PV_ELEMENT(struct node, kids), at)));
 *
 * References are words of 8 bytes at addresses that are multiples of 8. In a function the line works for
 * a variable that is not static; but then pv-typecheck cannot see it, and says so.
 */
#ifndef PRESERVE_TYPE_H
#define PRESERVE_TYPE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pv_store;
struct pv_upgrade;

/** Handle of a registered type, valid for this store handle only. 0 is no type. */
typedef uint32_t pv_type_t;

enum pv_field_kind {
	PV_FIELD_POINTER = 1, /* address in the store, or null: start of an object or a place inside */
	PV_FIELD_TAGGED,      /* the same in the bits of `mask`; the others are the program's */
	PV_FIELD_RELATIVE,    /* int64_t: distance from the field itself to what it names; 0: null */
	PV_FIELD_OFFSET,      /* uint64_t: address - base of the store; 0: null */
	PV_FIELD_STRUCT,      /* what is in it is in `fields`, with offsets that count from its start */
	PV_FIELD_OPAQUE,      /* no reference, whatever it looks like; never looked at */
};

/** pv_field.count: as many as there is room for, up to the end of the object. */
#define PV_FLEXIBLE 0xffffffffu

/**
 * A field, or an array of them. Offsets count from the start of the struct in which the field stands.
 *
 * `count_bytes` not 0: an integer at `count_offset` says how many elements are in use; more than `count`,
 * or than the object has room for, means as many as that.
 * `when_bytes` not 0: the field counts only in objects in which (integer at `when_offset` & when_mask) is
 * `when_value`. Fields that lie on top of each other need conditions that exclude each other.
 * These integers have 1, 2, 4 or 8 bytes and count as unsigned. None may change while something that
 * the map makes a reference is not one: set a pointer before its discriminator says so, or in one intent.
 *
 * A PV_FLEXIBLE array without a count goes to the end of the object as pv_usable_bytes() says it, which
 * can be more than was asked for. pv_reserve() fills what is beyond that with zeros; what the program
 * does not use of the array itself, it has to set to zero.
 */
struct pv_field {
	const char *name;	       /* 1 to 64 characters, as in C: "next", "u.leaf", "slot[3]" */
	const char *target;	       /* name of the type of what is named; NULL: any */
	const struct pv_field *fields; /* of a struct */
	uint32_t nfields;
	uint32_t kind; /* enum pv_field_kind */
	uint32_t offset;
	uint32_t count;	 /* 1, of an array its length, or PV_FLEXIBLE */
	uint32_t stride; /* bytes from one element to the next: sizeof the element */
	uint32_t count_offset;
	uint32_t count_bytes;
	uint32_t when_offset;
	uint32_t when_bytes;
	uint64_t when_mask;
	uint64_t when_value;
	uint64_t mask; /* of PV_FIELD_TAGGED; has all bits that addresses of objects can have: 4 to 46 */
};

/** pv_typedef.flags: objects of the type never move, because something outside of the store has their
 *  addresses. */
#define PV_TYPE_PINNED 1u

struct pv_typedef {
	const char *name; /* 1 to 48 characters of [A-Za-z0-9._-], no leading dot */
	uint32_t version; /* of the layout */
	uint32_t bytes;	  /* sizeof the struct; 0: opaque bytes of any length, no fields */
	const struct pv_field *fields;
	uint32_t nfields;
	const char *c_type; /* the struct in the program's words, for pv-typecheck; NULL: it does not look */
	uint32_t flags;	    /* PV_TYPE_PINNED, or 0 */
	/* Functions that make objects of this version from those of older ones; see preserve/upgrade.h. */
	uint32_t nupgrades;
	const struct pv_upgrade *upgrades;
};

/*
 * The lines. `...` is what the type has of the fields below, separated by commas.
 *
 * PV_TYPE		an object is one struct; what follows it in a larger object has no references,
 *			flexible arrays apart
 * PV_TYPE_ARRAY	an object is an array of this element, all through
 * PV_TYPE_PLAIN	no references
 * PV_TYPE_BYTES	the same, of any length
 *
 * PV_TYPE_OF is what is between the braces, to add to:
 *	static const struct pv_typedef t = {PV_TYPE_OF(struct a, "a", 1, ...), .flags = PV_TYPE_PINNED};
 */
#define PV_TYPE_OF(type, type_name, type_version, ...)                                             \
	.name = (type_name), .version = (type_version), .bytes = (uint32_t) sizeof(type),          \
	.fields = PVX_FIELDS(__VA_ARGS__), .nfields = PVX_NFIELDS(__VA_ARGS__), .c_type = #type
#define PV_TYPE(type, type_name, type_version, ...)                                                \
	{PV_TYPE_OF(type, type_name, type_version, __VA_ARGS__), .flags = 0, .nupgrades = 0,       \
	 .upgrades = NULL}
#define PV_TYPE_ARRAY(element, type_name, type_version, ...)                                       \
	PV_TYPE(element, type_name, type_version,                                                  \
		PVX_NESTED("", 0, PV_FLEXIBLE, sizeof(element), 0, 0, 0, 0, 0, 0, __VA_ARGS__))
#define PV_TYPE_PLAIN(type, type_name, type_version)                                               \
	{.name = (type_name), .version = (type_version), .bytes = (uint32_t) sizeof(type),         \
	 .fields = NULL, .nfields = 0, .c_type = #type, .flags = 0, .nupgrades = 0,                \
	 .upgrades = NULL}
#define PV_TYPE_BYTES(type_name, type_version)                                                     \
	{.name = (type_name), .version = (type_version), .bytes = 0, .fields = NULL, .nfields = 0, \
	 .c_type = NULL, .flags = 0, .nupgrades = 0, .upgrades = NULL}

/* ---- fields: a member of `type`, or one of its members' ("u.leaf.data", "pair[1]") ----
 * Members that are arrays are taken as a whole. */

/** Ordinary pointers into the store. */
#define PV_POINTER(type, field)                                                                    \
	PVX_WORDS(#field, NULL, PV_FIELD_POINTER, type, field, PVX_WORDS_OF(type, field), 0, 0, 0)
/** The same; all objects that they name are of the type with this name (which may be registered later). */
#define PV_POINTER_TO(type, field, target_name)                                                    \
	PVX_WORDS(#field, target_name, PV_FIELD_POINTER, type, field, PVX_WORDS_OF(type, field), 0, \
		  0, 0)
/** Words that have an address in the bits of `mask` and something else in the others. */
#define PV_TAGGED(type, field, mask)                                                               \
	PVX_WORDS(#field, NULL, PV_FIELD_TAGGED, type, field, PVX_WORDS_OF(type, field), 0, 0, mask)
/** int64_t: how far from the field itself. */
#define PV_RELATIVE(type, field)                                                                   \
	PVX_WORDS(#field, NULL, PV_FIELD_RELATIVE, type, field, PVX_WORDS_OF(type, field), 0, 0, 0)
/** uint64_t: how far from the start of the store's window, pv_info.base. */
#define PV_OFFSET(type, field)                                                                     \
	PVX_WORDS(#field, NULL, PV_FIELD_OFFSET, type, field, PVX_WORDS_OF(type, field), 0, 0, 0)
/** No references: a pointer to something that is not in the store, bytes that look like pointers. */
#define PV_OPAQUE(type, field)                                                                     \
	PVX_FIELD(#field, NULL, NULL, 0, PV_FIELD_OPAQUE, offsetof(type, field), 1,                \
		  sizeof(((type *) 0)->field), 0, 0, 0, 0, 0, 0, 0)
/** The type is itself a pointer: PV_TYPE_ARRAY(void *, "pointers", 1, PV_POINTER_ITSELF). */
#define PV_POINTER_ITSELF                                                                          \
	PVX_FIELD("itself", NULL, NULL, 0, PV_FIELD_POINTER, 0, 1, 8, 0, 0, 0, 0, 0, 0, 0)

/** A flexible array member of pointers, all of it. */
#define PV_POINTER_FLEX(type, field)                                                               \
	PVX_WORDS(#field, NULL, PV_FIELD_POINTER, type, field, PV_FLEXIBLE, 0, 0, 0)
/** The same, of which the integer member `count_field` says how many are in use. */
#define PV_POINTER_COUNTED(type, field, count_field)                                               \
	PVX_WORDS(#field, NULL, PV_FIELD_POINTER, type, field, PV_FLEXIBLE,                        \
		  PVX_PLACE(type, count_field), 0)
/** The same for an array member with a length. */
#define PV_POINTER_USED(type, field, count_field)                                                  \
	PVX_WORDS(#field, NULL, PV_FIELD_POINTER, type, field, PVX_WORDS_OF(type, field),          \
		  PVX_PLACE(type, count_field), 0)

/** The type of an array member's elements, where it has no name. */
#define PV_ELEMENT(type, field) __typeof__(((type *) 0)->field[0])
/** A member that is a struct or union, or an array of them: `...` are fields of `inner`. */
#define PV_STRUCT(type, field, inner, ...)                                                         \
	PVX_NESTED(#field, offsetof(type, field), PVX_COUNT_OF(type, field, inner), sizeof(inner), \
		   0, 0, 0, 0, 0, 0, __VA_ARGS__)
/** A flexible array member of structs, all of it. */
#define PV_STRUCT_FLEX(type, field, inner, ...)                                                    \
	PVX_NESTED(#field, offsetof(type, field), PV_FLEXIBLE, sizeof(inner), 0, 0, 0, 0, 0, 0,    \
		   __VA_ARGS__)
/** The same, of which `count_field` says how many are in use. */
#define PV_STRUCT_COUNTED(type, field, inner, count_field, ...)                                    \
	PVX_NESTED(#field, offsetof(type, field), PV_FLEXIBLE, sizeof(inner),                      \
		   PVX_PLACE(type, count_field), 0, 0, 0, 0, __VA_ARGS__)
/** The same for an array member with a length. */
#define PV_STRUCT_USED(type, field, inner, count_field, ...)                                       \
	PVX_NESTED(#field, offsetof(type, field), PVX_COUNT_OF(type, field, inner), sizeof(inner), \
		   PVX_PLACE(type, count_field), 0, 0, 0, 0, __VA_ARGS__)

/** `...` are fields of `type` that count only where the integer member `tag` is `value`. */
#define PV_WHEN(type, tag, value, ...) PV_WHEN_BITS(type, tag, PVX_ONES(type, tag), value, __VA_ARGS__)
/** The same where (tag & bits) is `value`. */
#define PV_WHEN_BITS(type, tag, bits, value, ...)                                                  \
	PVX_NESTED("", 0, 1, sizeof(type), 0, 0, PVX_PLACE(type, tag), (uint64_t) (bits),          \
		   (uint64_t) (value) &PVX_ONES(type, tag), __VA_ARGS__)

/* ---- what these are made of ---- */

#define PVX_FIELD(name_, target_, fields_, nfields_, kind_, offset_, count_, stride_, count_offset_, \
		  count_bytes_, when_offset_, when_bytes_, when_mask_, when_value_, mask_)         \
	{                                                                                          \
		(name_), (target_), (fields_), (uint32_t) (nfields_), (kind_),                     \
			(uint32_t) (offset_), (uint32_t) (count_), (uint32_t) (stride_),           \
			(uint32_t) (count_offset_), (uint32_t) (count_bytes_),                     \
			(uint32_t) (when_offset_), (uint32_t) (when_bytes_), (when_mask_),         \
			(when_value_), (mask_)                                                     \
	}
/* Through one more macro: PVX_PLACE is two arguments. */
#define PVX_WORDS(name_, target_, kind_, type, field, count_, ...)                                 \
	PVX_WORDS_(name_, target_, kind_, offsetof(type, field), count_, __VA_ARGS__)
#define PVX_WORDS_(name_, target_, kind_, offset_, count_, count_offset_, count_bytes_, mask_)     \
	PVX_FIELD(name_, target_, NULL, 0, kind_, offset_, count_, 8, count_offset_, count_bytes_, 0, \
		  0, 0, 0, (uint64_t) (mask_))
#define PVX_NESTED(name_, offset_, count_, stride_, ...)                                           \
	PVX_NESTED_(name_, offset_, count_, stride_, __VA_ARGS__)
#define PVX_NESTED_(name_, offset_, count_, stride_, count_offset_, count_bytes_, when_offset_,    \
		    when_bytes_, when_mask_, when_value_, ...)                                     \
	PVX_FIELD(name_, NULL, PVX_FIELDS(__VA_ARGS__), PVX_NFIELDS(__VA_ARGS__), PV_FIELD_STRUCT, \
		  offset_, count_, stride_, count_offset_, count_bytes_, when_offset_, when_bytes_, \
		  when_mask_, when_value_, 0)
#define PVX_PLACE(type, field)	offsetof(type, field), sizeof(((type *) 0)->field)
#define PVX_ONES(type, field)	(~0ull >> (64 - 8 * sizeof(((type *) 0)->field)))
/* Arrays of words, or of structs, have lengths without a remainder: else an error of the compiler. */
#define PVX_COUNT_OF(type, field, inner)                                                           \
	(sizeof(((type *) 0)->field) / sizeof(inner) +                                             \
	 0 * sizeof(char[sizeof(((type *) 0)->field) % sizeof(inner) ? -1 : 1]))
/* Not by PVX_COUNT_OF: a compiler takes the size of a uint64_t * divided by that of what it points to for
 * a mistake. */
#define PVX_WORDS_OF(type, field)                                                                  \
	(sizeof(((type *) 0)->field) / 8 +                                                         \
	 0 * sizeof(char[sizeof(((type *) 0)->field) % 8 ? -1 : 1]))
#ifndef __cplusplus
#define PVX_FIELDS(...)	 (const struct pv_field[]){__VA_ARGS__}
#define PVX_NFIELDS(...) (sizeof((const struct pv_field[]){__VA_ARGS__}) / sizeof(struct pv_field))
#else /* which has no compound literals that last; each has a name of its own, for -Wshadow */
#define PVX_FIELDS(...)	     PVX_ARRAY(__COUNTER__, const struct pv_field *, , __VA_ARGS__)
#define PVX_NFIELDS(...)     PVX_ARRAY(__COUNTER__, uint32_t, sizeof, __VA_ARGS__) / (uint32_t) sizeof(struct pv_field)
#define PVX_ARRAY(id, ...)   PVX_ARRAY_(id, __VA_ARGS__)
#define PVX_ARRAY_(id, type, take, ...)                                                            \
	[]() -> type {                                                                             \
		static const struct pv_field fields_##id[] = {__VA_ARGS__};                        \
		return (type) (take(fields_##id));                                                 \
	}()
#endif

/**
 * Register a type, once per open. A type that the store does not know is recorded in the index; one
 * that it knows must have the same version, size, flags and pointer map. Names of fields and of targets
 * may differ: what is recorded stays. If the layout differs and def->upgrades has functions that lead from
 * the store's version to this one, all objects of the type are upgraded by them: see preserve/upgrade.h,
 * also for its errors; then this is a call of one thread, and before any other use of the type. Otherwise
 * -EMEDIUMTYPE, the message shows both layouts field by field.
 * `def` is not kept. Errors also: -EINVAL a definition that makes no sense, the message says which field
 * and why; -ENOENT a store opened for reading does not have the type; -ENOSPC at most 4095 types, or the
 * index is full; -ENOMEM. Crash: recorded or not. Any thread.
 */
int pv_type_register(struct pv_store *store, const struct pv_typedef *def, pv_type_t *out);

#ifdef __cplusplus
}
#endif

#endif
