/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The store after a kill. pv_check() finds nothing; what was acknowledged is there, what was under
 * way is whole or absent; every live object is reached from the table, the map or a root exactly
 * once: one that is not is a leak, one that is reached twice a double.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "map_layout.h"
#include "storm.h"

struct live {
	const void *at;
	size_t bytes;
	pv_type_t type;
	uint32_t reached;
};

struct check {
	struct storm_store *st;
	struct storm_log *log;
	struct storm_found *found;
	const void *roots[STORM_ROOTS];
	struct live *live;
	size_t n, room;
};

#define wrong(c, ...)                                                                       \
	do {                                                                                \
		if ((c)->found->wrong++ < 10)                                               \
			fprintf(stderr, "storm: wrong: " __VA_ARGS__), fputc('\n', stderr); \
	} while (0)

static void tell(void *ctx, const char *line)
{
	wrong((struct check *)ctx, "pv_check: %s", line);
}

/* ---- live objects ---- */

static int collect(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	struct check *c = ctx;

	if (c->n == c->room) {
		c->room = c->room ? 2 * c->room : 1024;
		c->live = reallocarray(c->live, c->room, sizeof(*c->live));
		if (!c->live)
			abort();
	}
	c->live[c->n++] = (struct live){object, bytes, type, 0};
	return 0;
}

static int by_address(const void *a, const void *b)
{
	const struct live *x = a, *y = b;

	return x->at < y->at ? -1 : x->at > y->at;
}

static struct live *find(const struct check *c, const void *at)
{
	struct live key = {.at = at};

	return c->n ? bsearch(&key, c->live, c->n, sizeof(*c->live), by_address) : NULL;
}

static void reach(struct check *c, const void *at, size_t bytes, const char *what)
{
	struct live *o = find(c, at);

	if (!o)
		wrong(c, "%s: %p is not a live object", what, at);
	else if (o->bytes < bytes)
		wrong(c, "%s: %p has %zu bytes, not %zu", what, at, o->bytes, bytes);
	else if (o->reached++) {
		c->found->doubles++;
		wrong(c, "%s: %p is reached twice", what, at);
	}
}

/* ---- what is at a place ---- */

static const struct storm_object *object_at(const struct check *c, uint64_t place)
{
	uint64_t key = place - STORM_KEY0;

	if (place < STORM_KEY0)
		return c->st->table->cells[place].object;
	if (place >= STORM_ROOT0)
		return c->roots[place - STORM_ROOT0];
	return pv_map_find(c->st->map, pv_map_hash(c->st->map, &key, sizeof(key)), &key,
			   sizeof(key));
}

static bool holds(const struct check *c, uint64_t place, uint64_t value)
{
	const struct storm_object *o = object_at(c, place);
	uint64_t key = place < STORM_KEY0 ? STORM_CELL_KEY : place - STORM_KEY0;
	const struct live *live;

	if (place < STORM_KEY0 && c->st->table->cells[place].word != (place % 2 ? 0 : value))
		return false;
	if (!o || !value)
		return !o && !value;
	live = find(c, o);
	return live && live->bytes >= STORM_BYTES(value) && storm_whole(o, key, value);
}

/* Find or, if its creation was under way, finish a root. */
static void look_at_root(struct check *c, unsigned int number)
{
	uint64_t *value = &c->log->values[STORM_ROOT0 + number];
	bool created = false, pending = false, returned = false;
	void *p = NULL;
	int err;

	for (int i = 0; i < STORM_THREADS; i++) {
		struct storm_group *g = &c->log->groups[i][0];

		if (g->state == STORM_IDLE || g->changes[0].place != STORM_ROOT0 + number)
			continue;
		pending = true;
		returned = g->state == STORM_RETURNED;
		*value = g->changes[0].after;
		c->found->pending++;
		storm_undone(g);
	}
	if (!*value)
		return; /* if it is there nevertheless, it will be a leak */
	err = storm_root(c->st, number, STORM_BYTES(*value), &p, &created);
	c->found->made += pending && !created && !err;
	if (created && (!pending || returned))
		wrong(c, "root %u is lost", number);
	if (err && (!pending || err != -ENOSPC))
		wrong(c, "root %u: %d: %s", number, err, pv_last_error());
	if (err)
		*value = 0;
	c->roots[number] = p;
}

static void print_group(const struct check *c, const struct storm_group *g)
{
	for (uint32_t i = 0; i < g->n && i < 8; i++) {
		const struct storm_change *ch = &g->changes[i];
		const struct storm_object *o = object_at(c, ch->place);

		fprintf(stderr,
			"storm:   place %" PRIu64 ": %#" PRIx64 " -> %#" PRIx64
			", found %p of %#" PRIx64 "\n",
			ch->place, ch->before, ch->after, (const void *)o,
			o && find(c, o) ? o->value : 0);
	}
}

static void resolve(struct check *c, struct storm_group *g)
{
	bool before = g->state == STORM_PENDING, after = true;

	if (g->state == STORM_IDLE) {
		g->n = 0;
		return;
	}
	for (uint32_t i = 0; i < g->n; i++) {
		before = before && holds(c, g->changes[i].place, g->changes[i].before);
		after = after && holds(c, g->changes[i].place, g->changes[i].after);
	}
	c->found->pending++;
	c->found->made += after;
	if (!before && !after) {
		wrong(c, "%u changes %s", g->n,
		      g->state == STORM_PENDING ? "are neither absent nor whole"
						: "that had returned are lost");
		print_group(c, g);
	}
	for (uint32_t i = 0; i < g->n; i++)
		c->log->values[g->changes[i].place] =
			after ? g->changes[i].after : g->changes[i].before;
	storm_undone(g);
}

/* ---- what the map is made of ---- */

static void reach_table(struct check *c, const struct map_rec *rec)
{
	reach(c, rec, sizeof(*rec), "map");
	for (unsigned int i = 0; i < MAP_SMALL; i++)
		if (rec->small[i])
			reach(c, rec->small[i], sizeof(struct bucket_rec), "chunk");
	for (uint64_t b = 0; b < rec->nbuckets; b++) {
		const struct bucket_rec *bucket = map_bucket(c->st->map, rec, b);

		for (unsigned int i = 0; i < MAP_WORDS; i++)
			if (bucket->words[i])
				reach(c, map_word_entry(bucket->words[i]), 16, "entry");
		for (const struct overflow_rec *o = bucket->next; o; o = o->next) {
			reach(c, o, sizeof(*o), "overflow");
			for (unsigned int i = 0; i < MAP_OVERFLOW_WORDS; i++)
				if (o->words[i])
					reach(c, map_word_entry(o->words[i]), 16, "entry");
		}
	}
}

static void reach_map(struct check *c)
{
	uint64_t problems = 0, entries = 0;

	for (unsigned int i = STORM_KEY0; i < STORM_ROOT0; i++)
		entries += c->log->values[i] != 0;
	if (pv_map_check(c->st->map, tell, c, &problems) || problems)
		return; /* said */
	if (pv_map_count(c->st->map) != entries)
		wrong(c, "the map has %" PRIu64 " entries, not %" PRIu64, pv_map_count(c->st->map),
		      entries);
	reach(c, c->st->map->root, sizeof(*c->st->map->root), "root of the map");
	reach_table(c, c->st->map->root->current);
	for (const struct map_rec *d = c->st->map->root->doomed; d; d = d->next)
		reach_table(c, d);
}

static void reach_all(struct check *c)
{
	reach(c, c->st->table, sizeof(*c->st->table), "table");
	for (unsigned int i = 0; i < STORM_PLACES; i++) {
		if (!holds(c, i, c->log->values[i])) {
			wrong(c, "place %u: %p is not %#" PRIx64 ", which was acknowledged", i,
			      (const void *)object_at(c, i), c->log->values[i]);
			continue;
		}
		/* Entries are reached by the map's buckets. */
		if (c->log->values[i] && (i < STORM_KEY0 || i >= STORM_ROOT0))
			reach(c, object_at(c, i), STORM_BYTES(c->log->values[i]), "place");
	}
	reach_map(c);
	for (size_t i = 0; i < c->n; i++) {
		if (c->live[i].reached)
			continue;
		c->found->leaks++;
		wrong(c, "live object %p of %zu bytes, type %u, is reached by nobody",
		      c->live[i].at, c->live[i].bytes, c->live[i].type);
	}
}

void storm_check(struct storm_store *st, struct storm_log *log, struct storm_found *found)
{
	struct check c = {.st = st, .log = log, .found = found};
	struct pv_check_report report;

	*found = (struct storm_found){0};
	if (pv_lock_try(st->s, &st->table->map_lock) ||
	    pv_lock_release(st->s, &st->table->map_lock))
		wrong(&c, "the map's lock: %s", pv_last_error());
	for (unsigned int i = 0; i < STORM_ROOTS; i++)
		look_at_root(&c, i);
	if (pv_check(st->s, PV_CHECK_TELL(tell, &c), &report) || report.problems) {
		wrong(&c, "%" PRIu64 " problems", report.problems);
		return;
	}
	pv_iterate(st->s, 0, collect, &c);
	qsort(c.live, c.n, sizeof(*c.live), by_address);
	if (c.n != report.live_objects)
		wrong(&c, "pv_iterate() sees %zu objects, pv_check() %" PRIu64, c.n,
		      report.live_objects);
	for (int i = 0; i < STORM_THREADS; i++)
		for (int k = 0; k < STORM_GROUPS; k++)
			resolve(&c, &log->groups[i][k]);
	reach_all(&c);
	found->live = c.n;
	free(c.live);
}
