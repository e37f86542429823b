/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * From the nested definition of a type, as preserve/type.h has it, to the flat map of typemap.h.
 *
 * A flat entry has one loop. Where an array lies in the elements of another array, one of the two is
 * written out: the outer one if it has a fixed length and is the shorter one, else the inner one. Written
 * out, element k of an array that is counted by an integer becomes a condition: the integer is above k.
 *
 * The entries are sorted by offset, so that the order of a program's lines means nothing.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "typemap.h"

#define DEPTH_MAX   8u
#define STEPS_MAX   65536u /* of the walk over a definition; arrays that are written out multiply them */
#define GIVEN_NAME_MAX 64u

struct flat {
	const struct pv_typedef *def;
	struct pvi_field *v;
	char *strings;
	size_t nstrings, strings_room;
	uint32_t n, room;
	uint32_t steps;
};

/** Where the walk is: inside of a struct, which may be an element of an array. */
struct place {
	uint64_t off;	 /* of the struct, of the array's first element */
	uint32_t bytes;	 /* of the struct */
	uint32_t count;	 /* of the loop; 1: there is none */
	uint32_t stride; /* of the loop; 0: there is none */
	uint32_t count_off;
	uint8_t count_bytes;
	uint8_t depth;
	uint8_t nwhen;
	struct pvi_when when[PVI_WHENS_MAX];
	char path[PVI_FIELD_NAME_MAX + 1];
};

__attribute__((format(printf, 3, 4))) static int bad(const struct flat *m, const struct place *p,
						     const char *format, ...)
{
	char what[200];
	va_list ap;

	va_start(ap, format);
	vsnprintf(what, sizeof(what), format, ap);
	va_end(ap);
	return pvi_fail(-EINVAL, "type %s: field %s: %s", m->def->name, p->path, what);
}

static bool loops(const struct place *p)
{
	return p->stride != 0;
}

/* Is it an array? One that has one element at the most is one if it is counted. */
static bool is_array(const struct pv_field *f)
{
	return f->count != 1 || f->count_bytes;
}

/* ---- output ---- */

static int grow(struct flat *m)
{
	if (m->n == m->room) {
		uint32_t room = m->room ? 2 * m->room : 16;
		struct pvi_field *v = realloc(m->v, room * sizeof(*v));

		if (!v)
			return pvi_fail(-ENOMEM, "no memory for type %s", m->def->name);
		m->v = v;
		m->room = room;
	}
	return 0;
}

/* Strings move while they are collected: offsets for now, as if they were addresses. */
static int add_string(struct flat *m, const char *s, const char **out)
{
	size_t n = strlen(s) + 1;

	if (m->nstrings + n > m->strings_room) {
		size_t room = 2 * (m->nstrings + n);
		char *strings = realloc(m->strings, room);

		if (!strings)
			return pvi_fail(-ENOMEM, "no memory for type %s", m->def->name);
		m->strings = strings;
		m->strings_room = room;
	}
	memcpy(m->strings + m->nstrings, s, n);
	*out = (const char *) (uintptr_t) m->nstrings;
	m->nstrings += n;
	return 0;
}

static int add_entry(struct flat *m, const struct pv_field *f, const struct place *p)
{
	struct pvi_field e = {.kind = (uint8_t) f->kind, .nwhen = p->nwhen, .mask = ~0ull};
	int err = 0;

	if (m->n == PVI_FIELDS_MAX)
		return bad(m, p, "the type has more than %u references, arrays in arrays written out",
			   PVI_FIELDS_MAX);
	if (p->off > UINT32_MAX - 8)
		return bad(m, p, "its offset %" PRIu64 " is too large", p->off);
	e.off = (uint32_t) p->off;
	e.count = p->count;
	e.stride = p->stride;
	if (p->count == 1) /* of one element the distance means nothing */
		e.stride = 0;
	e.count_off = p->count_off;
	e.count_bytes = p->count_bytes;
	for (unsigned int k = 0; k < p->nwhen; k++) {
		e.when[k] = p->when[k];
		if (!e.stride)
			e.when[k].stride = 0;
	}
	if (f->kind == PV_FIELD_TAGGED)
		e.mask = f->mask;
	err = grow(m);
	if (!err)
		err = add_string(m, p->path, &e.name);
	if (!err)
		err = add_string(m, f->target ? f->target : "", &e.target);
	if (!err)
		m->v[m->n++] = e;
	return err;
}

/* ---- walking ---- */

static int add_when(const struct flat *m, struct place *p, uint64_t off, bool each, unsigned int bytes,
		    unsigned int op, uint64_t mask, uint64_t value)
{
	struct pvi_when *w = &p->when[p->nwhen];

	if (p->nwhen == PVI_WHENS_MAX)
		return bad(m, p, "more than %u conditions on top of each other", PVI_WHENS_MAX);
	*w = (struct pvi_when){.off = (uint32_t) off,
			       .stride = each ? p->stride : 0,
			       .bytes = (uint8_t) bytes,
			       .op = (uint8_t) op,
			       .mask = mask,
			       .value = value};
	p->nwhen++;
	return 0;
}

/* Append a field's name to the path. */
static int name(const struct flat *m, struct place *p, const struct pv_field *f)
{
	size_t at = strlen(p->path), n;
	bool group = f->kind == PV_FIELD_STRUCT && f->offset == 0 && f->name && !*f->name;

	if (group) { /* of fields of the same struct, or of an element: no name of its own */
		n = (size_t) snprintf(p->path + at, sizeof(p->path) - at, "%s", is_array(f) ? "[]" : "");
	} else {
		if (!f->name || !pvi_typemap_name_valid(f->name) || strlen(f->name) > GIVEN_NAME_MAX)
			return bad(m, p, "the name \"%s\" of one in it: 1 to %u of [A-Za-z0-9_.] and []",
				   f->name ? f->name : "(null)", GIVEN_NAME_MAX);
		n = (size_t) snprintf(p->path + at, sizeof(p->path) - at, "%s%s%s", at ? "." : "", f->name,
				      is_array(f) ? "[]" : "");
	}
	if (n >= sizeof(p->path) - at)
		return bad(m, p, "the path to it has more than %u characters", PVI_FIELD_NAME_MAX);
	return 0;
}

/* What can be said of a field without knowing where its struct lies. */
static int check_given(const struct flat *m, const struct place *p, const struct pv_field *f)
{
	uint64_t bytes = f->kind == PV_FIELD_STRUCT || f->kind == PV_FIELD_OPAQUE ? f->stride : 8;

	if (f->kind < PV_FIELD_POINTER || f->kind > PV_FIELD_OPAQUE)
		return bad(m, p, "there is no kind %u", f->kind);
	if (f->count == 0 || f->stride < bytes || !bytes)
		return bad(m, p, "%u elements of %u bytes", f->count, f->stride);
	if (f->count == PV_FLEXIBLE ? f->offset > p->bytes
				    : f->offset + (f->count - 1ull) * f->stride + bytes > p->bytes)
		return bad(m, p, "offset %u, %u elements of %u bytes: not within the %u bytes of the struct",
			   f->offset, f->count, f->stride, p->bytes);
	if (f->count_bytes && (uint64_t) f->count_offset + f->count_bytes > p->bytes)
		return bad(m, p, "offset %u of what counts it is not within the %u bytes of the struct",
			   f->count_offset, p->bytes);
	if (f->when_bytes && (uint64_t) f->when_offset + f->when_bytes > p->bytes)
		return bad(m, p, "offset %u of what decides about it is not within the %u bytes of the struct",
			   f->when_offset, p->bytes);
	if ((f->count_bytes && (f->count_bytes > 8 || (f->count_bytes & (f->count_bytes - 1)))) ||
	    (f->when_bytes && (f->when_bytes > 8 || (f->when_bytes & (f->when_bytes - 1)))))
		return bad(m, p, "integers have 1, 2, 4 or 8 bytes, not %u",
			   f->when_bytes ? f->when_bytes : f->count_bytes);
	if (f->kind != PV_FIELD_TAGGED && f->mask)
		return bad(m, p, "it is not tagged and has mask 0x%" PRIx64, f->mask);
	if ((f->kind == PV_FIELD_STRUCT) != (f->nfields != 0) || (f->nfields && !f->fields))
		return bad(m, p, "kind %u with %u fields in it", f->kind, f->nfields);
	if (f->target && *f->target && !pvi_name_valid(f->target))
		return bad(m, p, "target \"%s\" is not the name of a type", f->target);
	return 0;
}

static int walk(struct flat *m, const struct pv_field *fields, uint32_t nfields, const struct place *in);

/* At one place of a field, its loop and conditions known. */
static int arrive(struct flat *m, const struct pv_field *f, struct place *p)
{
	if (f->kind != PV_FIELD_STRUCT)
		return add_entry(m, f, p);
	p->bytes = f->stride;
	p->depth++;
	if (p->depth > DEPTH_MAX)
		return bad(m, p, "more than %u structs in each other", DEPTH_MAX);
	return walk(m, f->fields, f->nfields, p);
}

/* An array in the elements of another: element by element of the inner one. */
static int inner_out(struct flat *m, const struct pv_field *f, const struct place *in)
{
	int err = 0;

	for (uint32_t k = 0; k < f->count && !err; k++) {
		struct place p = *in;

		p.off += f->offset + (uint64_t) k * f->stride;
		if (f->count_bytes)
			err = add_when(m, &p, in->off + f->count_offset, true, f->count_bytes, PVI_WHEN_ABOVE,
				       ~0ull >> (64 - 8 * f->count_bytes), k);
		if (!err)
			err = arrive(m, f, &p);
	}
	return err;
}

/* The loop becomes the inner array's. */
static void enter(struct place *p, const struct pv_field *f)
{
	if (f->count_bytes) {
		p->count_bytes = (uint8_t) f->count_bytes;
		p->count_off = (uint32_t) p->off + f->count_offset;
	}
	p->off += f->offset;
	p->count = f->count;
	p->stride = f->stride;
}

/* ... element by element of the outer one. */
static int outer_out(struct flat *m, const struct pv_field *f, const struct place *in)
{
	int err = 0;

	for (uint32_t i = 0; i < in->count && !err; i++) {
		struct place p = *in;

		p.off += (uint64_t) i * in->stride;
		for (unsigned int k = 0; k < p.nwhen; k++) {
			p.when[k].off += i * p.when[k].stride;
			p.when[k].stride = 0;
		}
		p.stride = 0;
		p.count = 1;
		p.count_bytes = 0;
		p.count_off = 0;
		if (in->count_bytes)
			err = add_when(m, &p, in->count_off, false, in->count_bytes, PVI_WHEN_ABOVE,
				       ~0ull >> (64 - 8 * in->count_bytes), i);
		enter(&p, f);
		if (!err)
			err = arrive(m, f, &p);
	}
	return err;
}

static int walk_field(struct flat *m, const struct pv_field *f, const struct place *in)
{
	struct place p = *in;
	int err = name(m, &p, f);

	if (!err)
		err = check_given(m, &p, f);
	if (!err && ++m->steps > STEPS_MAX)
		err = bad(m, &p, "the definition is too long with arrays in arrays written out");
	if (err || f->kind == PV_FIELD_OPAQUE)
		return err;
	if (f->when_bytes)
		err = add_when(m, &p, p.off + f->when_offset, loops(&p), f->when_bytes, PVI_WHEN_EQUAL,
			       f->when_mask, f->when_value);
	if (err)
		return err;
	if (!is_array(f)) {
		p.off += f->offset;
		return arrive(m, f, &p);
	}
	if (!loops(&p)) {
		enter(&p, f);
		return arrive(m, f, &p);
	}
	if (f->count == PV_FLEXIBLE)
		return bad(m, &p, "a flexible array in the elements of an array");
	if (p.count != PV_FLEXIBLE && p.count <= f->count)
		return outer_out(m, f, &p);
	return inner_out(m, f, &p);
}

static int walk(struct flat *m, const struct pv_field *fields, uint32_t nfields, const struct place *in)
{
	int err = 0;

	for (uint32_t i = 0; i < nfields && !err; i++)
		err = walk_field(m, &fields[i], in);
	return err;
}

/* ---- all of it ---- */

static int compare(const void *left, const void *right)
{
	const struct pvi_field *a = left, *b = right;

	if (a->off != b->off)
		return a->off < b->off ? -1 : 1;
	for (unsigned int k = 0; k < a->nwhen && k < b->nwhen; k++) {
		if (a->when[k].off != b->when[k].off)
			return a->when[k].off < b->when[k].off ? -1 : 1;
		if (a->when[k].value != b->when[k].value)
			return a->when[k].value < b->when[k].value ? -1 : 1;
	}
	return (int) a->nwhen - (int) b->nwhen;
}

static int check_def(const struct pv_typedef *def)
{
	if (!pvi_name_valid(def->name))
		return pvi_fail(-EINVAL, "type name \"%s\": 1 to %u of [A-Za-z0-9._-], no leading dot",
				def->name ? def->name : "(null)", PVI_NAME_MAX);
	if (def->nfields && !def->fields)
		return pvi_fail(-EINVAL, "type %s: %u fields, but no list of them", def->name, def->nfields);
	if (def->nfields && !def->bytes)
		return pvi_fail(-EINVAL, "type %s: it is opaque bytes, and has %u fields", def->name,
				def->nfields);
	if (def->flags & ~PV_TYPE_PINNED)
		return pvi_fail(-EINVAL, "type %s: unknown flags 0x%x", def->name, def->flags);
	return 0;
}

int pvi_typemap_flatten(const struct pv_typedef *def, struct pvi_type *t)
{
	struct flat m = {.def = def};
	struct place top = {.bytes = def->bytes, .count = 1};
	char why[300];
	int err = check_def(def);

	if (!err)
		err = walk(&m, def->fields, def->nfields, &top);
	if (err) {
		free(m.v);
		free(m.strings);
		return err;
	}
	for (uint32_t i = 0; i < m.n; i++) {
		m.v[i].name = m.strings + (uintptr_t) m.v[i].name;
		m.v[i].target = m.strings + (uintptr_t) m.v[i].target;
	}
	if (m.n)
		qsort(m.v, m.n, sizeof(*m.v), compare);
	memset(t, 0, sizeof(*t));
	strcpy(t->name, def->name);
	t->version = def->version;
	t->bytes = def->bytes;
	t->flags = def->flags;
	t->fields = m.v;
	t->nfields = m.n;
	t->strings = m.strings;
	err = pvi_typemap_settle(t, why, sizeof(why));
	if (!err && pvi_typemap_fingerprint(t, &t->fingerprint)) {
		snprintf(why, sizeof(why), "no memory");
		err = -ENOMEM;
	}
	if (err) {
		pvi_typemap_free(t);
		return pvi_fail(err, "type %s: %s", def->name, why);
	}
	return 0;
}

/* ---- for people ---- */

struct text {
	char *buf;
	size_t room, n;
};

__attribute__((format(printf, 2, 3))) static void say(struct text *x, const char *format, ...)
{
	va_list ap;
	int n;

	if (x->n + 1 >= x->room)
		return;
	va_start(ap, format);
	n = vsnprintf(x->buf + x->n, x->room - x->n, format, ap);
	va_end(ap);
	x->n += n > 0 ? (size_t) n : 0;
	if (x->n >= x->room) { /* cut, and visibly so */
		x->n = x->room - 1;
		if (x->room > 4)
			memcpy(x->buf + x->n - 3, "...", 3);
	}
}

static void say_field(struct text *x, const struct pvi_field *f)
{
	static const char *const kinds[] = {"?", "pointer", "tagged pointer", "relative", "offset"};

	say(x, "%s: %s", f->name, kinds[f->kind]);
	if (*f->target)
		say(x, " to %s", f->target);
	say(x, " at %u", f->off);
	if (f->count == PV_FLEXIBLE)
		say(x, " and every %u bytes", f->stride);
	else if (f->count > 1)
		say(x, ", %u every %u bytes", f->count, f->stride);
	if (f->count_bytes)
		say(x, ", counted at %u", f->count_off);
	if (f->kind == PV_FIELD_TAGGED)
		say(x, ", mask 0x%" PRIx64, f->mask);
	for (unsigned int k = 0; k < f->nwhen; k++) {
		const struct pvi_when *w = &f->when[k];
		uint64_t all = ~0ull >> (64 - 8 * w->bytes);

		say(x, " if the %u bytes at %u", w->bytes, w->off);
		if (w->mask != all)
			say(x, " & 0x%" PRIx64, w->mask);
		say(x, " %s %" PRIu64, w->op == PVI_WHEN_EQUAL ? "are" : "are above", w->value);
	}
}

void pvi_typemap_describe(const struct pvi_type *t, char *buf, size_t room)
{
	struct text x = {.buf = buf, .room = room};

	say(&x, "version %u, %u bytes%s", t->version, t->bytes,
	    t->flags & PV_TYPE_PINNED ? ", pinned" : "");
	if (!t->nfields)
		say(&x, ", no references");
	for (uint32_t i = 0; i < t->nfields; i++) {
		say(&x, "%s", i ? "; " : ", references {");
		say_field(&x, &t->fields[i]);
	}
	if (t->nfields)
		say(&x, "}");
}
