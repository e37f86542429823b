/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The part of a full check that follows pointers: each must name the start or the inside of a live
 * object, of the type that its field names if it names one. What the roots lead to is marked; then
 * the live objects that nothing led to are counted, and their pointers looked at, too.
 *
 * Marking is a search with a stack in each thread. A thread that has much gives half of it to one
 * that has nothing. Objects are fetched into the cache some steps before they are looked at.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "typemap.h"

#define AHEAD	  16u	 /* objects being fetched into the cache */
#define GIVE_FROM 64u	 /* objects on a stack that are worth sharing */
#define TOLD	  65536u /* objects between two calls of progress() */
#define NO_TYPE	  UINT32_MAX

/* What threads have for each other. */
struct pvi_check_pool {
	struct pvi_check *c;
	pthread_mutex_t lock;
	pthread_cond_t more;
	_Atomic unsigned int waiting;
	uint64_t *given; /* offsets of objects for whoever waits */
	size_t n;
	bool over;
	_Atomic uint64_t visited;
};

struct worker {
	struct pvi_check *c;
	struct pvi_check_pool *pool; /* NULL: nothing is marked */
	uint64_t base;		     /* of pointers */
	uint64_t *stack;	     /* offsets of objects that were marked and not yet looked at */
	size_t n;
	size_t room;
	uint64_t pointers;
	struct pvi_check_object at; /* the object that is being looked at */
};

/* ---- pointers ---- */

static const char *type_name(const struct pvi_check *c, uint32_t type)
{
	return c->s->index.types[type].name;
}

/* In a transaction of this process objects that it allocated are only reserved until its commit. */
static bool is_pending(const struct pvi_check *c, uint64_t off)
{
	const struct pvi_segment *seg = pvi_store_segment(c->s, off);
	const struct pvi_page *page;
	struct pvi_check_object o;
	uint64_t slot;

	if (c->s->readonly || !c->r.transactions || !seg || off - seg->data_off >= seg->data_bytes)
		return false;
	page = pvi_store_page(c->s, off);
	if (page->slab && pvi_check_find(c, off, &o)) {
		slot = pvi_page_slot((c->s->base + off - (uintptr_t)page->slab) / 8,
				     page->reciprocal, NULL);
		return page->bytes[slot] == PV_SLOT_RESERVED;
	}
	for (uint32_t i = (uint32_t)((off - seg->off) >> c->s->page_shift) + 1;
	     seg->loaded && i-- > 0;)
		if (seg->slabs[i].state != PVI_SLAB_NONE)
			return seg->slabs[i].state == PVI_EXTENT_HELD &&
			       (off - seg->off) >> c->s->page_shift <
				       i + (uint64_t)seg->slabs[i].nfree;
	return false;
}

static void bad_pointer(struct worker *w, const uint8_t *at, const struct pvi_field *f,
			uint64_t target, const struct pvi_check_object *found)
{
	uint64_t in = (uint64_t)((uintptr_t)at - w->c->s->base) - w->at.off;
	char what[120];

	if (!found && is_pending(w->c, target - w->base))
		return;
	if (!found)
		snprintf(what, sizeof(what), "which is in no live object");
	else
		snprintf(what, sizeof(what), "an object of type %s, not %s",
			 type_name(w->c, found->type), f->target);
	pvi_check_problem(w->c,
			  "object 0x%" PRIx64 " of type %s: field %s at byte %" PRIu64
			  " names 0x%" PRIx64 ", %s",
			  w->base + w->at.off, type_name(w->c, w->at.type), f->name ? f->name : "?",
			  in, target, what);
}

static bool mark(const struct pvi_check *c, uint64_t bit)
{
	uint64_t *word = &c->reached[bit / 64], mask = 1ull << (bit % 64);

	if (__atomic_load_n(word, __ATOMIC_RELAXED) & mask)
		return false;
	if (c->nthreads > 1)
		return !(__atomic_fetch_or(word, mask, __ATOMIC_RELAXED) & mask);
	*word |= mask;
	return true;
}

/* Half of what is on the stack is for others. */
static void give(struct worker *w)
{
	struct pvi_check_pool *p = w->pool;
	size_t half = w->n / 2;

	pthread_mutex_lock(&p->lock);
	if (!p->n && atomic_load(&p->waiting)) {
		uint64_t *given = malloc(half * sizeof(*given));

		if (given) { /* the older half */
			memcpy(given, w->stack, half * sizeof(*given));
			memmove(w->stack, w->stack + half, (w->n - half) * sizeof(*w->stack));
			w->n -= half;
			free(p->given);
			p->given = given;
			p->n = half;
			pthread_cond_broadcast(&p->more);
		}
	}
	pthread_mutex_unlock(&p->lock);
}

static void push(struct worker *w, uint64_t off)
{
	if (w->n == w->room) {
		size_t room = w->room ? 2 * w->room : 1024;
		uint64_t *bigger = reallocarray(w->stack, room, sizeof(*bigger));

		if (!bigger) {
			w->c->no_memory = true;
			return;
		}
		w->stack = bigger;
		w->room = room;
	}
	w->stack[w->n++] = off;
	if (w->n % 4096 == 0 && atomic_load_explicit(&w->pool->waiting, memory_order_relaxed))
		give(w);
}

/* Look at one word. */
static inline int follow(struct worker *w, const uint8_t *at, const struct pvi_field *f,
			 uint32_t want)
{
	uint64_t word = __atomic_load_n((const uint64_t *)(const void *)at, __ATOMIC_RELAXED);
	struct pvi_check *c = w->c;
	struct pvi_check_object o;
	uint64_t target;

	if (!word)
		return 0;
	target = pvi_field_names(f, word, w->base + ((uintptr_t)at - c->s->base), w->base);
	if (!target)
		return 0;
	w->pointers++;
	if (pvi_unlikely(!pvi_check_find(c, target - w->base, &o) ||
			 !pvi_check_bit(c->live, o.bit)))
		bad_pointer(w, at, f, target, NULL);
	else if (pvi_unlikely(want && o.type != want))
		bad_pointer(w, at, f, target, &o);
	else if (w->pool && mark(c, o.bit) && c->s->index.types[o.type].has_pointers)
		push(w, o.off);
	return 0;
}

static int follow_field(void *ctx, uint8_t *at, const struct pvi_field *f)
{
	struct worker *w = ctx;
	const struct pvi_type *t = &w->c->s->index.types[w->at.type];

	return follow(w, at, f, w->c->types[w->at.type].targets[f - t->fields]);
}

/* All words of the object w->at. */
static void look_at(struct worker *w)
{
	const struct pvi_type *t = &w->c->s->index.types[w->at.type];
	const uint32_t *targets = w->c->types[w->at.type].targets;
	uint8_t *object = (uint8_t *)w->c->s->base + w->at.off;

	if (!t->simple || t->bytes > w->at.bytes) {
		pvi_typemap_visit(t, object, w->at.bytes, follow_field, w);
		return;
	}
	for (uint32_t k = 0; k < t->nfields; k++) {
		const struct pvi_field *f = &t->fields[k];
		const uint8_t *at = object + f->off;

		for (uint32_t i = 0; i < f->count; i++, at += f->stride)
			follow(w, at, f, targets[k]);
	}
}

/* ---- from the roots ---- */

/* Something to do for a worker that has nothing; false: nobody has anything. */
static bool take(struct worker *w)
{
	struct pvi_check_pool *p = w->pool;
	bool got = false;

	if (w->c->nthreads == 1)
		return false;
	pthread_mutex_lock(&p->lock);
	p->waiting++;
	while (!p->n && !p->over) {
		if (p->waiting == w->c->nthreads) {
			p->over = true;
			pthread_cond_broadcast(&p->more);
		} else {
			pthread_cond_wait(&p->more, &p->lock);
		}
	}
	if (p->n) {
		free(w->stack);
		w->stack = p->given;
		w->n = w->room = p->n;
		p->given = NULL;
		p->n = 0;
		got = true;
	}
	p->waiting--;
	pthread_mutex_unlock(&p->lock);
	return got;
}

static void search(struct worker *w)
{
	uint64_t ahead[AHEAD], first = 0, next = 0, visited = 0;

	do {
		while (w->n || first != next) {
			for (; w->n && next - first < AHEAD; next++) {
				ahead[next % AHEAD] = w->stack[--w->n];
				__builtin_prefetch((const uint8_t *)w->c->s->base +
						   ahead[next % AHEAD]);
			}
			if (pvi_check_find(w->c, ahead[first++ % AHEAD], &w->at))
				look_at(w);
			if (w->n >= GIVE_FROM &&
			    atomic_load_explicit(&w->pool->waiting, memory_order_relaxed))
				give(w);
			if (++visited % TOLD == 0)
				pvi_check_progress(w->c, "pointers",
						   atomic_fetch_add(&w->pool->visited, TOLD) + TOLD,
						   w->c->r.live_objects);
		}
	} while (take(w));
}

static void end_worker(struct worker *w)
{
	free(w->stack);
	pthread_mutex_lock(&w->c->lock);
	w->c->r.pointers += w->pointers;
	pthread_mutex_unlock(&w->c->lock);
}

static struct worker new_worker(struct pvi_check *c, struct pvi_check_pool *pool)
{
	return (struct worker){.c = c, .pool = pool, .base = c->s->index.base};
}

static void search_part(struct pvi_check *c, unsigned int number)
{
	struct worker w = new_worker(c, c->pool);

	for (uint32_t i = number; i < c->s->index.nroots; i += c->nthreads) {
		struct pvi_check_object o;

		/* A root that is none has been reported. */
		if (pvi_check_find(c, c->s->index.roots[i].off, &o) &&
		    pvi_check_bit(c->live, o.bit) && mark(c, o.bit))
			push(&w, o.off);
	}
	search(&w);
	end_worker(&w);
}

/* ---- what nothing leads to ---- */

struct leaks {
	struct worker w;
	struct pvi_check_type *types;
};

static void leaked(struct leaks *l, uint64_t off)
{
	if (!pvi_check_find(l->w.c, off, &l->w.at))
		return;
	l->types[l->w.at.type].leaked_objects++;
	l->types[l->w.at.type].leaked_bytes += l->w.at.bytes;
	if (l->w.c->s->index.types[l->w.at.type].has_pointers)
		look_at(&l->w);
}

bool pvi_check_next_leak(const struct pvi_check *c, const struct pvi_segment *seg, uint32_t page,
			 uint32_t *slot, uint64_t *off)
{
	const struct pvi_check_page *p = &c->pages[seg->number][page];
	const struct pvi_class *class = &c->s->classes[pvi_rec_class(p->rec)];
	uint64_t start = seg->off + ((uint64_t)page << c->s->page_shift);

	if (!p->rec || p->back)
		return false;
	if (pvi_page_kind(p->rec) == PV_PAGE_EXTENT) {
		*off = start;
		return (*slot)++ == 0 && pvi_check_bit(c->live, p->bits) &&
		       !pvi_check_bit(c->reached, p->bits);
	}
	while (*slot < class->nslots) {
		uint64_t word = (p->bits + *slot) / 64;
		uint64_t left = (c->live[word] & ~c->reached[word]) >> (*slot % 64);

		if (left) {
			*slot += (uint32_t)__builtin_ctzll(left);
			*off = start + (uint64_t)(*slot)++ * class->slot_bytes;
			return true;
		}
		*slot = (*slot / 64 + 1) * 64;
	}
	return false;
}

static void leaks_part(struct pvi_check *c, unsigned int number)
{
	struct leaks l = {.w = new_worker(c, NULL)};
	const struct pvi_segment *seg;
	uint32_t from, to;

	l.types = calloc(c->ntypes + 1, sizeof(*l.types));
	if (!l.types)
		c->no_memory = true;
	while (l.types && pvi_check_chunk(c, "leaks", &seg, &from, &to)) {
		for (uint32_t i = from; i < to; i++) {
			uint32_t slot = 0;
			uint64_t off;

			while (pvi_check_next_leak(c, seg, i, &slot, &off))
				leaked(&l, off);
		}
	}
	pthread_mutex_lock(&c->lock);
	for (uint32_t i = 1; l.types && i <= c->ntypes; i++) {
		c->types[i].leaked_objects += l.types[i].leaked_objects;
		c->types[i].leaked_bytes += l.types[i].leaked_bytes;
	}
	pthread_mutex_unlock(&c->lock);
	free(l.types);
	end_worker(&l.w);
}

static void report_leaks(struct pvi_check *c)
{
	for (uint32_t i = 1; i <= c->ntypes; i++) {
		struct pv_check_leak leak = {
			.type = i,
			.name = type_name(c, i),
			.objects = c->types[i].leaked_objects,
			.bytes = c->types[i].leaked_bytes,
		};

		c->r.leaked_objects += leak.objects;
		c->r.leaked_bytes += leak.bytes;
		if (leak.objects && c->o.leak)
			c->o.leak(c->o.ctx, &leak);
	}
}

/* ---- all of it ---- */

static uint32_t find_type(const struct pvi_check *c, const char *name)
{
	uint32_t type;

	if (!name || !*name)
		return 0;
	type = pvi_type_find(c->s, name);
	return type ? type : NO_TYPE; /* there can be no object of it */
}

static int find_targets(struct pvi_check *c)
{
	c->types = calloc(c->ntypes + 1, sizeof(*c->types));
	if (!c->types)
		return pvi_fail(-ENOMEM, "no memory for %u types", c->ntypes);
	for (uint32_t i = 1; i <= c->ntypes; i++) {
		const struct pvi_type *t = &c->s->index.types[i];

		c->types[i].targets = calloc(t->nfields + 1, sizeof(uint32_t));
		if (!c->types[i].targets)
			return pvi_fail(-ENOMEM, "no memory for the fields of type %s", t->name);
		for (uint32_t k = 0; k < t->nfields; k++)
			c->types[i].targets[k] = find_type(c, t->fields[k].target);
	}
	return 0;
}

int pvi_check_reach(struct pvi_check *c)
{
	struct pvi_check_pool pool = {.c = c};
	int err = find_targets(c);

	if (err)
		return err;
	pthread_mutex_init(&pool.lock, NULL);
	pthread_cond_init(&pool.more, NULL);
	c->pool = &pool;
	pvi_check_parallel(c, search_part);
	c->pool = NULL;
	free(pool.given);
	pthread_cond_destroy(&pool.more);
	pthread_mutex_destroy(&pool.lock);
	if (!c->no_memory)
		pvi_check_parallel(c, leaks_part);
	if (c->no_memory)
		return pvi_fail(-ENOMEM, "no memory to follow the pointers of %" PRIu64 " objects",
				c->r.live_objects);
	report_leaks(c);
	return 0;
}
