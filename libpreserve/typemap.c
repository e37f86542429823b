/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Flat pointer maps: walking over an object's references, checking that a map makes sense, and its form
 * in the index. The maps of an index are as little trusted as those of a program: the same check.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "error.h"
#include "typemap.h"

/* Addresses of objects are multiples of 16 below 2^47. */
#define ADDRESS_BITS 0x7ffffffffff0ull

bool pvi_typemap_name_valid(const char *name)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.[]";
	size_t n = strspn(name, letters);

	return n > 0 && n <= PVI_FIELD_NAME_MAX && name[n] == '\0';
}

void pvi_typemap_free(struct pvi_type *t)
{
	free(t->fields);
	free(t->strings);
	free(t->pointers);
	t->fields = NULL;
	t->strings = NULL;
	t->pointers = NULL;
	t->nfields = t->npointers = 0;
}

/* ---- walking ---- */

/* The integer of 1, 2, 4 or 8 bytes at an offset; false: it is not within the object. */
static bool load(const uint8_t *object, size_t usable, uint64_t off, unsigned int bytes, uint64_t *value)
{
	uint64_t v = 0;

	if (off > usable || usable - off < bytes)
		return false;
	memcpy(&v, object + off, bytes); /* little-endian */
	*value = v;
	return true;
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "load() reads short integers as they lie");

/* How many elements of a field lie within the object and are in use. */
static uint64_t elements(const struct pvi_field *f, const uint8_t *object, size_t usable)
{
	uint64_t n = f->count, room, used;

	if (f->off > usable || usable - f->off < 8)
		return 0;
	if (n != 1) {
		room = (usable - f->off - 8) / f->stride + 1;
		if (f->count == PV_FLEXIBLE || n > room)
			n = room;
	}
	if (f->count_bytes) {
		if (!load(object, usable, f->count_off, f->count_bytes, &used))
			return 0;
		if (used < n)
			n = used;
	}
	return n;
}

static bool holds(const struct pvi_field *f, const uint8_t *object, size_t usable, uint64_t i)
{
	for (unsigned int k = 0; k < f->nwhen; k++) {
		const struct pvi_when *w = &f->when[k];
		uint64_t v;

		if (!load(object, usable, w->off + i * w->stride, w->bytes, &v))
			return false;
		v &= w->mask;
		if (w->op == PVI_WHEN_EQUAL ? v != w->value : v <= w->value)
			return false;
	}
	return true;
}

int pvi_typemap_visit(const struct pvi_type *t, uint8_t *object, size_t usable_bytes,
		      pvi_field_fn fn, void *ctx)
{
	for (uint32_t k = 0; k < t->nfields; k++) {
		const struct pvi_field *f = &t->fields[k];
		uint64_t n = elements(f, object, usable_bytes);
		uint8_t *at = object + f->off;

		for (uint64_t i = 0; i < n; i++, at += f->stride) {
			int ret = holds(f, object, usable_bytes, i) ? fn(ctx, at, f) : 0;

			if (ret)
				return ret;
		}
	}
	return 0;
}

struct copying {
	uintptr_t from;
	size_t bytes;
	uint64_t further; /* to - from */
};

static int keep_distance(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	const struct copying *c = ctx;
	uint64_t word = *(uint64_t *) (void *) at, names;

	if (f->kind != PV_FIELD_RELATIVE || !word)
		return 0;
	names = (uintptr_t) at - c->further + word;
	if (names - c->from >= c->bytes)
		pvi_field_retarget(f, at, names, 0);
	return 0;
}

void pvi_typemap_copy(const struct pvi_type *t, uint8_t *to, const uint8_t *from, size_t bytes)
{
	struct copying c = {(uintptr_t) from, bytes, (uintptr_t) to - (uintptr_t) from};

	memcpy(to, from, bytes);
	for (uint32_t i = 0; i < t->nfields; i++) {
		if (t->fields[i].kind == PV_FIELD_RELATIVE) {
			pvi_typemap_visit(t, to, bytes, keep_distance, &c);
			return;
		}
	}
}

/* ---- checking ---- */

__attribute__((format(printf, 4, 5))) static int wrong(char *why, size_t room, const struct pvi_field *f,
							const char *format, ...)
{
	int at = snprintf(why, room, "field %s: ", f->name ? f->name : "?");
	va_list ap;

	if (at < 0 || (size_t) at >= room)
		return -EINVAL;
	va_start(ap, format);
	vsnprintf(why + at, room - (size_t) at, format, ap);
	va_end(ap);
	return -EINVAL;
}

static bool integer_bytes(unsigned int bytes)
{
	return bytes == 1 || bytes == 2 || bytes == 4 || bytes == 8;
}

/* Does the last of `count` equally distant things of `bytes` end within the object's fixed part? Of a
 * flexible array the first element begins at its end at the latest. */
static bool within(uint32_t total, uint64_t off, uint32_t count, uint32_t stride, uint32_t bytes)
{
	if (count == PV_FLEXIBLE)
		return off + bytes <= (uint64_t) total + stride;
	return off + (count - 1ull) * stride + bytes <= total;
}

static int check_when(const struct pvi_type *t, const struct pvi_field *f, const struct pvi_when *w,
		      char *why, size_t room)
{
	bool many = w->stride != 0;

	if (!integer_bytes(w->bytes))
		return wrong(why, room, f, "an integer of %u bytes decides about it", w->bytes);
	if (many && w->stride != f->stride)
		return wrong(why, room, f, "what decides about it has another distance");
	/* Behind a flexible array's start nothing is certain but what the object's size says. */
	if (!(many && f->count == PV_FLEXIBLE) &&
	    !within(t->bytes, w->off, many ? f->count : 1, w->stride, w->bytes))
		return wrong(why, room, f, "offset %u of what decides about it is not within %u bytes",
			     w->off, t->bytes);
	if (w->mask == 0 || w->mask > ~0ull >> (64 - 8 * w->bytes))
		return wrong(why, room, f, "mask 0x%" PRIx64 " for an integer of %u bytes", w->mask,
			     w->bytes);
	if (w->op > PVI_WHEN_ABOVE || (w->value & ~w->mask))
		return wrong(why, room, f, "it counts for the value 0x%" PRIx64 ", which 0x%" PRIx64
					   " does not cover",
			     w->value, w->mask);
	return 0;
}

static int check_field(const struct pvi_type *t, const struct pvi_field *f, char *why, size_t room)
{
	int err = 0;

	if (f->kind < PV_FIELD_POINTER || f->kind > PV_FIELD_OFFSET)
		return wrong(why, room, f, "there is no kind %u", f->kind);
	if (f->off % 8 || f->stride % 8)
		return wrong(why, room, f, "references at offset %u, distance %u: they are words at "
					   "multiples of 8",
			     f->off, f->stride);
	if (f->count == 0 || (f->count == 1) != (f->stride == 0))
		return wrong(why, room, f, "%u elements at a distance of %u", f->count, f->stride);
	if (!within(t->bytes, f->off, f->count, f->stride, 8))
		return wrong(why, room, f, "offset %u, %u elements: not within %u bytes", f->off, f->count,
			     t->bytes);
	if (f->kind == PV_FIELD_TAGGED ? (f->mask & ADDRESS_BITS) != ADDRESS_BITS : ~f->mask != 0)
		return wrong(why, room, f, "mask 0x%" PRIx64 " leaves out bits of addresses (0x%llx)",
			     f->mask, ADDRESS_BITS);
	if (f->count_bytes && !integer_bytes(f->count_bytes))
		return wrong(why, room, f, "an integer of %u bytes counts it", f->count_bytes);
	if (f->count_bytes && !within(t->bytes, f->count_off, 1, 0, f->count_bytes))
		return wrong(why, room, f, "offset %u of what counts it is not within %u bytes",
			     f->count_off, t->bytes);
	if (f->nwhen > PVI_WHENS_MAX)
		return wrong(why, room, f, "%u conditions, at most %u", f->nwhen, PVI_WHENS_MAX);
	for (unsigned int k = 0; k < f->nwhen && !err; k++)
		err = check_when(t, f, &f->when[k], why, room);
	return err;
}

/* Things at equal distances, each within one word. */
struct series {
	uint64_t off; /* rounded down to a word */
	uint64_t stride;
	uint64_t n;
};

static struct series series(uint64_t off, uint32_t stride, uint32_t count)
{
	return (struct series){off & ~7ull, stride ? stride : 8,
			       !stride ? 1 : count == PV_FLEXIBLE ? 1ull << 32 : count};
}

/* x with a * x == gcd(a, m) modulo m; the gcd. */
static uint64_t inverse(uint64_t a, uint64_t m, uint64_t *x)
{
	int64_t r0 = (int64_t) m, r1 = (int64_t) (a % m), x0 = 0, x1 = 1;

	while (r1) {
		int64_t q = r0 / r1, t = r0 - q * r1;

		r0 = r1;
		r1 = t;
		t = x0 - q * x1;
		x0 = x1;
		x1 = t;
	}
	*x = (uint64_t) (x0 < 0 ? x0 + (int64_t) m : x0);
	return (uint64_t) r0;
}

/** Where two series have words in common: elements i and j, and each step_i-th and step_j-th after these. */
struct meeting {
	uint64_t i, j;
	uint64_t step_i, step_j;
	bool several;
};

/* a.off + i * a.stride == b.off + j * b.stride? a begins first. */
static bool meet_ordered(struct series a, struct series b, struct meeting *m)
{
	uint64_t distance = b.off - a.off, g, x;

	if (distance > (a.n - 1) * a.stride)
		return false;
	g = inverse(a.stride, b.stride, &x);
	if (distance % g)
		return false;
	/* i is this modulo step_i, and so large that j is not negative; the smallest has the smallest j. */
	m->step_i = b.stride / g;
	m->step_j = a.stride / g;
	m->i = (uint64_t) ((unsigned __int128) (distance / g) * x % m->step_i);
	if (m->i * a.stride < distance)
		m->i += ((distance - m->i * a.stride + a.stride - 1) / a.stride + m->step_i - 1) /
			m->step_i * m->step_i;
	m->j = (m->i * a.stride - distance) / b.stride;
	m->several = m->i + m->step_i < a.n && m->j + m->step_j < b.n;
	return m->i < a.n && m->j < b.n;
}

static bool meet(struct series a, struct series b, struct meeting *m)
{
	struct meeting n;

	if (a.off <= b.off)
		return meet_ordered(a, b, m);
	if (!meet_ordered(b, a, &n))
		return false;
	*m = (struct meeting){n.j, n.i, n.step_j, n.step_i, n.several};
	return true;
}

/*
 * Do the conditions of two fields exclude each other where they meet? They do if both ask the same integer
 * for different values. `each`: what meets of b is one for each element, not one for all of them.
 */
static bool exclusive(const struct pvi_field *a, const struct pvi_field *b, const struct meeting *m, bool each)
{
	for (unsigned int i = 0; i < a->nwhen; i++) {
		const struct pvi_when *v = &a->when[i];

		for (unsigned int k = 0; k < b->nwhen; k++) {
			const struct pvi_when *w = &b->when[k];

			if (v->op == PVI_WHEN_EQUAL && w->op == PVI_WHEN_EQUAL && v->bytes == w->bytes &&
			    ((v->value ^ w->value) & v->mask & w->mask) && (each || !w->stride) &&
			    v->off + m->i * v->stride == w->off + m->j * w->stride &&
			    (!m->several || v->stride * m->step_i == w->stride * m->step_j))
				return true;
		}
	}
	return false;
}

static struct series words_of(const struct pvi_field *f)
{
	return series(f->off, f->stride, f->count);
}

/* Is one of the words that a field names something that decides about another one, or about itself? Then
 * moving an object would change what is a reference. */
static bool decides(const struct pvi_field *f, const struct pvi_field *about)
{
	struct meeting m;

	if (about->count_bytes && meet(words_of(f), series(about->count_off, 0, 1), &m) &&
	    !exclusive(f, about, &m, false))
		return true;
	for (unsigned int k = 0; k < about->nwhen; k++) {
		const struct pvi_when *w = &about->when[k];

		if ((w->mask << w->off % 8 * 8 & f->mask) &&
		    meet(words_of(f), series(w->off, w->stride, about->count), &m) &&
		    !exclusive(f, about, &m, w->stride != 0))
			return true;
	}
	return false;
}

static int check_pairs(const struct pvi_type *t, char *why, size_t room)
{
	for (uint32_t i = 0; i < t->nfields; i++) {
		const struct pvi_field *f = &t->fields[i];

		for (uint32_t k = 0; k < t->nfields; k++) {
			const struct pvi_field *g = &t->fields[k];
			struct meeting m;

			if ((g->nwhen || g->count_bytes) && decides(f, g))
				return wrong(why, room, f, "it is a reference, and decides whether %s is",
					     g->name ? g->name : "another");
			if (k > i && meet(words_of(f), words_of(g), &m) && !exclusive(f, g, &m, true))
				return wrong(why, room, f,
					     "%s is at the same place, without a condition that "
					     "excludes one of them",
					     g->name ? g->name : "another");
		}
	}
	return 0;
}

/* List the words of a type that has nothing but plain pointers. */
static int list_pointers(struct pvi_type *t)
{
	uint64_t n = 0;

	t->simple = true;
	for (uint32_t k = 0; k < t->nfields; k++) {
		const struct pvi_field *f = &t->fields[k];

		if (f->kind != PV_FIELD_POINTER || f->nwhen || f->count_bytes || f->count == PV_FLEXIBLE ||
		    (n += f->count) > PVI_POINTERS_MAX)
			t->simple = false;
		if (f->count == PV_FLEXIBLE && !f->count_bytes)
			t->flexible = true;
	}
	if (!t->simple || !n)
		return 0;
	t->pointers = malloc(n * sizeof(*t->pointers));
	if (!t->pointers)
		return -ENOMEM;
	for (uint32_t k = 0; k < t->nfields; k++)
		for (uint32_t i = 0; i < t->fields[k].count; i++)
			t->pointers[t->npointers++] = t->fields[k].off + i * t->fields[k].stride;
	return 0;
}

int pvi_typemap_settle(struct pvi_type *t, char *why, size_t room)
{
	int err = 0;

	for (uint32_t i = 0; i < t->nfields && !err; i++)
		err = check_field(t, &t->fields[i], why, room);
	if (!err)
		err = check_pairs(t, why, room);
	if (err)
		return err;
	t->has_pointers = t->nfields > 0;
	snprintf(why, room, "no memory");
	return list_pointers(t);
}

/* ---- cells ---- */

/* What does not fit into kind and counts: see FORMAT.md. */
#define CELL_NWHEN_SHIFT 8
#define CELL_COUNT_SHIFT 16

struct cells {
	uint32_t *out; /* NULL: only counted */
	uint32_t n;
};

static void put(struct cells *c, uint64_t v)
{
	if (c->out)
		c->out[c->n] = (uint32_t) v;
	c->n++;
}

static void put2(struct cells *c, uint64_t v)
{
	put(c, v >> 32);
	put(c, v);
}

uint32_t pvi_typemap_encode(const struct pvi_type *t, uint32_t *out)
{
	struct cells c = {.out = out};

	for (uint32_t i = 0; i < t->nfields; i++) {
		const struct pvi_field *f = &t->fields[i];

		put(&c, f->kind | (uint32_t) f->nwhen << CELL_NWHEN_SHIFT |
				(uint32_t) f->count_bytes << CELL_COUNT_SHIFT);
		put(&c, f->off);
		put(&c, f->count);
		put(&c, f->stride);
		if (f->count_bytes)
			put(&c, f->count_off);
		if (f->kind == PV_FIELD_TAGGED)
			put2(&c, f->mask);
		for (unsigned int k = 0; k < f->nwhen; k++) {
			const struct pvi_when *w = &f->when[k];

			put(&c, w->bytes | (uint32_t) w->op << 8);
			put(&c, w->off);
			put(&c, w->stride);
			put2(&c, w->mask);
			put2(&c, w->value);
		}
	}
	return c.n;
}

struct reader {
	const uint32_t *at;
	uint32_t left;
	bool short_of; /* there were too few */
};

static uint32_t take(struct reader *r)
{
	if (!r->left) {
		r->short_of = true;
		return 0;
	}
	r->left--;
	return *r->at++;
}

static uint64_t take2(struct reader *r)
{
	uint64_t high = take(r);

	return high << 32 | take(r);
}

/* An entry, all of it as the cells say. False: they cannot be an entry. */
static bool decode_field(struct reader *r, struct pvi_field *f)
{
	uint32_t head = take(r);

	f->kind = (uint8_t) head;
	f->nwhen = (uint8_t) (head >> CELL_NWHEN_SHIFT);
	f->count_bytes = (uint8_t) (head >> CELL_COUNT_SHIFT);
	f->off = take(r);
	f->count = take(r);
	f->stride = take(r);
	f->target = "";
	if (f->count_bytes)
		f->count_off = take(r);
	f->mask = f->kind == PV_FIELD_TAGGED ? take2(r) : ~0ull;
	if (head >> 24 || f->nwhen > PVI_WHENS_MAX)
		return false;
	for (unsigned int k = 0; k < f->nwhen; k++) {
		struct pvi_when *w = &f->when[k];

		head = take(r);
		w->bytes = (uint8_t) head;
		w->op = (uint8_t) (head >> 8);
		w->off = take(r);
		w->stride = take(r);
		w->mask = take2(r);
		w->value = take2(r);
		if (head >> 16)
			return false;
	}
	return !r->short_of;
}

int pvi_typemap_decode(struct pvi_type *t, const uint32_t *cells, uint32_t n, char *why, size_t room)
{
	struct reader r = {.at = cells, .left = n};
	uint32_t most = n / 4 < PVI_FIELDS_MAX ? n / 4 : PVI_FIELDS_MAX;

	t->fields = calloc(most ? most : 1, sizeof(*t->fields));
	if (!t->fields) {
		snprintf(why, room, "no memory");
		return -ENOMEM;
	}
	while (r.left) {
		if (t->nfields == most || !decode_field(&r, &t->fields[t->nfields])) {
			snprintf(why, room, "entry %u is malformed", t->nfields);
			return -EINVAL;
		}
		t->nfields++;
	}
	return 0;
}

int pvi_typemap_fingerprint(const struct pvi_type *t, uint64_t *out)
{
	uint32_t n = 3 + pvi_typemap_encode(t, NULL), *cells = malloc(n * sizeof(*cells));

	if (!cells)
		return -ENOMEM;
	cells[0] = t->version;
	cells[1] = t->bytes;
	cells[2] = t->flags;
	pvi_typemap_encode(t, cells + 3);
	for (uint32_t i = 0; i < n; i++)
		cells[i] = __builtin_bswap32(cells[i]); /* as they are in the tree */
	*out = XXH3_64bits(cells, n * sizeof(*cells));
	free(cells);
	return 0;
}
