/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random histories with layout upgrades in them against a plain model: objects of some types, which name
 * each other at random, are made, freed, linked anew; types change their version, one or several at a
 * time, directly or through another version, forth and back; now and then a function fails, or the store
 * is left as a crash leaves it. What a type's layout of a version is follows from both numbers: how
 * large the struct is, and where in it each field lies. After each step all objects are compared with the
 * model's.
 *
 * PV_TEST_SEED=n repeats or varies a run.
 */
#include <inttypes.h>

#include <preserve/upgrade.h>

#include "support.h"

enum { TYPES = 4, LINKS = 4, THINGS = 120, VERSIONS = 9, STEPS = 1000 };

/* Places of the fields in a layout, in words. */
struct layout {
	uint32_t words;
	uint32_t id;
	uint32_t links[LINKS];
};

struct thing {
	bool lives;
	unsigned int type;
	uint64_t id;
	unsigned int links[LINKS]; /* number of another thing plus one; 0: none */
};

struct model {
	struct keeper *k;
	struct pv_store *s;
	struct cells *cells; /* cell i names thing i */
	struct thing things[THINGS];
	uint32_t versions[TYPES];
	pv_type_t types[TYPES];
	uint64_t rng, ids;
	unsigned int upgrades, failures;
};

static struct layout layout_of(unsigned int type, uint32_t version)
{
	uint64_t state = 1000 * type + version;
	struct layout l = {.words = LINKS + 1 + (uint32_t)random_below(&state, 40)};
	uint32_t places[LINKS + 1];

	for (unsigned int i = 0; i <= LINKS; i++) {
		bool again = true;

		while (again) {
			places[i] = (uint32_t)random_below(&state, l.words);
			again = false;
			for (unsigned int k = 0; k < i; k++)
				again |= places[k] == places[i];
		}
	}
	l.id = places[LINKS];
	memcpy(l.links, places, sizeof(l.links));
	return l;
}

/* ---- definitions ---- */

/* What a function is given: from where to where. */
struct change {
	struct layout from, to;
	uint64_t fails_at; /* id */
};

struct definition {
	char name[8];
	struct pv_field fields[LINKS];
	struct change changes[2];
	struct pv_upgrade upgrades[2];
	struct pv_typedef def;
};

static int run_change(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct change *c = ctx;
	const uint64_t *from = old;
	uint64_t *to = fresh;

	assert_true(old_bytes >= c->from.words * 8);
	assert_true(fresh_bytes >= c->to.words * 8);
	if (from[c->from.id] == c->fails_at)
		return -EDOM;
	to[c->to.id] = from[c->from.id];
	for (unsigned int i = 0; i < LINKS; i++)
		to[c->to.links[i]] = from[c->from.links[i]];
	return 0;
}

static void define(struct definition *d, unsigned int type, uint32_t version)
{
	struct layout l = layout_of(type, version);

	memset(d, 0, sizeof(*d));
	snprintf(d->name, sizeof(d->name), "type%u", type);
	for (unsigned int i = 0; i < LINKS; i++)
		d->fields[i] = (struct pv_field){.name = "link",
						 .kind = PV_FIELD_POINTER,
						 .offset = l.links[i] * 8,
						 .count = 1,
						 .stride = 8};
	d->def = (struct pv_typedef){.name = d->name,
				     .version = version,
				     .bytes = l.words * 8,
				     .fields = d->fields,
				     .nfields = LINKS,
				     .upgrades = d->upgrades};
}

static void add_change(struct definition *d, unsigned int type, uint32_t from, uint32_t to,
		       uint64_t fails_at)
{
	uint32_t n = d->def.nupgrades++;

	d->changes[n] = (struct change){layout_of(type, from), layout_of(type, to), fails_at};
	d->upgrades[n] = (struct pv_upgrade){.from = from,
					     .to = to,
					     .bytes = d->changes[n].to.words * 8,
					     .run = run_change,
					     .ctx = &d->changes[n]};
}

/* ---- the store ---- */

static void attach(struct model *m)
{
	struct definition d;

	m->s = m->k->n ? store_attach(m->k, NULL) : store_create(m->k, NULL);
	m->cells = store_cells(m->s);
	for (unsigned int t = 0; t < TYPES; t++) {
		define(&d, t, m->versions[t]);
		assert_ok(pv_type_register(m->s, &d.def, &m->types[t]));
	}
}

static void *of(const struct model *m, unsigned int link)
{
	return link ? m->cells->cells[link - 1] : NULL;
}

static void compare(struct model *m)
{
	uint64_t living = 1;

	for (unsigned int i = 0; i < THINGS; i++) {
		const struct thing *t = &m->things[i];
		struct layout l = layout_of(t->type, m->versions[t->type]);
		const uint64_t *words = m->cells->cells[i];

		if (!t->lives) {
			assert_null(words);
			continue;
		}
		living++;
		assert_int_equal(words[l.id], t->id);
		for (unsigned int k = 0; k < LINKS; k++)
			assert_ptr_equal((void *)words[l.links[k]], of(m, t->links[k]));
	}
	assert_int_equal(store_sound(m->s).live_objects, living);
}

static void add_thing(struct model *m, unsigned int i)
{
	struct thing *t = &m->things[i];
	struct layout l;
	uint64_t *words;

	*t = (struct thing){true, (unsigned int)random_below(&m->rng, TYPES), ++m->ids, {0}};
	l = layout_of(t->type, m->versions[t->type]);
	words = reserve_ok(m->s, m->types[t->type], l.words * 8);
	memset(words, 0xee, l.words * 8); /* what is no field may look like anything */
	words[l.id] = t->id;
	for (unsigned int k = 0; k < LINKS; k++)
		words[l.links[k]] = 0;
	assert_ok(pv_link(m->s, words, &m->cells->cells[i]));
}

static void link_things(struct model *m, unsigned int i)
{
	struct thing *t = &m->things[i];
	struct layout l = layout_of(t->type, m->versions[t->type]);

	for (unsigned int k = 0; k < LINKS; k++) {
		unsigned int to = (unsigned int)random_below(&m->rng, THINGS + 1);

		t->links[k] = to && m->things[to - 1].lives ? to : 0;
		((uint64_t *)m->cells->cells[i])[l.links[k]] = (uintptr_t)of(m, t->links[k]);
	}
}

static void free_thing(struct model *m, unsigned int i)
{
	for (unsigned int k = 0; k < THINGS; k++) {
		struct thing *t = &m->things[k];
		struct layout l = layout_of(t->type, m->versions[t->type]);

		for (unsigned int n = 0; t->lives && n < LINKS; n++)
			if (t->links[n] == i + 1) {
				t->links[n] = 0;
				((uint64_t *)m->cells->cells[k])[l.links[n]] = 0;
			}
	}
	m->things[i].lives = false;
	assert_ok(pv_free(m->s, &m->cells->cells[i]));
}

/* Some types get another version, perhaps with another one between; perhaps a function fails. */
static void upgrade(struct model *m)
{
	static struct definition d[TYPES];
	const struct pv_typedef *defs[TYPES];
	unsigned int victim = (unsigned int)random_below(&m->rng, THINGS), changed = 0;
	bool fails = random_below(&m->rng, 3) == 0, failed = false;
	struct pv_upgrade_report r, planned;
	uint32_t was[TYPES];
	pv_type_t types[TYPES];
	int err;

	memcpy(was, m->versions, sizeof(was));
	for (unsigned int t = 0; t < TYPES; t++) {
		uint32_t to = 1 + (uint32_t)random_below(&m->rng, VERSIONS), between;
		uint64_t fails_at = m->things[victim].type == t ? m->things[victim].id : 0;

		fails_at = fails && m->things[victim].lives ? fails_at : 0;

		if (random_below(&m->rng, 2))
			to = was[t];
		define(&d[t], t, to);

		between = 1 + (uint32_t)random_below(&m->rng, VERSIONS);
		if (to != was[t] && between != to && between != was[t] && random_below(&m->rng, 2)) {
			add_change(&d[t], t, was[t], between, fails_at);
			add_change(&d[t], t, between, to, 0);
		} else if (to != was[t]) {
			add_change(&d[t], t, was[t], to, fails_at);
		}
		changed += to != was[t];
		failed |= to != was[t] && fails_at;
		defs[t] = &d[t].def;
		m->versions[t] = to;
	}
	err = pv_types_plan(m->s, defs, TYPES, NULL, &planned);
	assert_int_equal(err, failed ? -EDOM : 0);
	err = pv_types_register(m->s, defs, TYPES, NULL, &r, types);
	assert_int_equal(r.types, changed);
	if (failed) {
		assert_int_equal(err, -EDOM);
		assert_ptr_equal(r.failed, planned.failed);
		assert_ptr_equal(r.failed, m->cells->cells[victim]);
		memcpy(m->versions, was, sizeof(was));
		m->failures++;
		return;
	}
	assert_ok(err);
	assert_int_equal(r.objects, planned.objects);
	assert_int_equal(r.bytes_after, planned.bytes_after);
	memcpy(m->types, types, sizeof(types));
	m->upgrades += changed;
}

static void step(struct model *m)
{
	unsigned int i = (unsigned int)random_below(&m->rng, THINGS);

	switch (random_below(&m->rng, 12)) {
	case 0:
		keeper_crash(m->k, &m->s);
		attach(m);
		break;
	case 1:
	case 2:
		upgrade(m);
		break;
	case 3:
		if (m->things[i].lives)
			free_thing(m, i);
		break;
	default:
		if (!m->things[i].lives)
			add_thing(m, i);
		link_things(m, i);
	}
	compare(m);
}

static void random_histories(void **state)
{
	struct model m = {.k = *state, .rng = random_seed_from_env("upgrade-model")};

	for (unsigned int t = 0; t < TYPES; t++)
		m.versions[t] = 1;
	attach(&m);
	for (unsigned int i = 0; i < STEPS; i++)
		step(&m);
	printf("upgrade-model: %u upgrades of types, %u that failed\n", m.upgrades, m.failures);
	assert_true(m.upgrades > 100 && m.failures > 10); /* or it tests little */
	assert_ok(pv_close(m.s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {with_keeper(random_histories)};

	return cmocka_run_group_tests_name("upgrade-model", tests, NULL, NULL);
}
