/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the threads of a worker do, transactions aside (tx.c): intents about one cell or several,
 * the simple forms, reservations that are passed on to other threads, extents, roots, the map. Any
 * thread works on any cell, so most frees are of objects that another one has made.
 */
#include <pthread.h>
#include <string.h>

#include <preserve/retire.h>

#include "storm.h"

static _Atomic bool busy[STORM_PLACES];

/* Reserved objects on their way to another thread. */
static struct {
	pthread_mutex_t lock;
	struct {
		struct storm_object *object;
		uint64_t value;
	} objects[24];
	unsigned int n;
} passed = {.lock = PTHREAD_MUTEX_INITIALIZER};

bool storm_take(unsigned int place)
{
	return !atomic_exchange_explicit(&busy[place], true, memory_order_acquire);
}

void storm_leave(unsigned int place)
{
	atomic_store_explicit(&busy[place], false, memory_order_release);
}

/* The number of the thread that made it stands in the value. */
uint64_t storm_new_value(struct storm_thread *t, size_t bytes)
{
	uint64_t number = (storm_random(&t->random) | 1) << 2 | t->number;

	return number << (STORM_BYTES_BITS + 1) | bytes;
}

static void count_foreign(struct storm_thread *t, uint64_t value)
{
	if (value && (value >> (STORM_BYTES_BITS + 1) & 3) != t->number)
		atomic_fetch_add_explicit(&t->log->foreign, 1, memory_order_relaxed);
}

size_t storm_size(struct storm_thread *t)
{
	uint64_t *r = &t->random;

	switch (storm_below(r, 20)) {
	case 0:
		return 10000 + storm_below(r, 40000);
	case 1:
	case 2:
		return 1500 + storm_below(r, 5000);
	case 3:
	case 4:
	case 5:
	case 6:
	case 7:
		return 256 + storm_below(r, 1250);
	default:
		return 16 + storm_below(r, 240);
	}
}

static struct storm_object *reserve(struct storm_thread *t, pv_type_t type, size_t bytes,
				    uint64_t key, uint64_t *value)
{
	size_t align = storm_below(&t->random, 8) ? 1 : 1ull << storm_below(&t->random, 13);
	void *p;
	int rc = align > 1 ? pv_reserve_aligned(t->st->s, type, bytes, align, &p)
			   : pv_reserve(t->st->s, type, bytes, &p);

	if (!storm_ok(t, "pv_reserve", rc))
		return NULL;
	if ((uintptr_t)p % align)
		storm_fail(t->log, "thread %u: %p is not aligned to %zu", t->number, p, align);
	*value = storm_new_value(t, bytes);
	storm_fill(p, key, *value);
	return p;
}

struct storm_object *storm_reserve(struct storm_thread *t, uint64_t *value)
{
	return reserve(t, t->st->types[storm_below(&t->random, 2)], storm_size(t), STORM_CELL_KEY,
		       value);
}

/* ---- cells ---- */

/* `object` (NULL: none) to a cell, in the place of what is there. */
static unsigned int put_actions(struct storm_thread *t, unsigned int place,
				struct storm_object *object, uint64_t value, struct pv_action *a)
{
	struct storm_cell *cell = &t->st->table->cells[place];
	bool retire = place >= STORM_SHARED || storm_below(&t->random, 8) == 0;
	unsigned int n = 0;

	if (object)
		a[n++] = PV_LIVE(object);
	a[n++] = PV_STORE(&cell->object, (uintptr_t)object);
	if (place % 2 == 0)
		a[n++] = PV_STORE(&cell->word, value);
	if (cell->object && retire)
		atomic_fetch_add_explicit(&t->log->retired, 1, memory_order_relaxed);
	if (cell->object)
		a[n++] = retire ? PV_RETIRE(cell->object) : PV_FREE(cell->object);
	return n;
}

static void publish(struct storm_thread *t, struct storm_group *g, const struct pv_action *a,
		    unsigned int n)
{
	int rc;

	storm_pend(g);
	rc = pv_publish(t->st->s, a, n);
	if (rc)
		storm_fail(t->log, "thread %u: pv_publish of %u actions: %d: %s", t->number, n, rc,
			   pv_last_error());
	storm_done(t->log, g);
}

static void put_cell(struct storm_thread *t, struct storm_group *g, unsigned int place,
		     struct storm_object *object, uint64_t value)
{
	struct pv_action a[4];
	unsigned int n = put_actions(t, place, object, value, a);

	count_foreign(t, t->log->values[place]);
	count_foreign(t, value);
	storm_change(t->log, g, place, value);
	publish(t, g, a, n);
}

/* Another size: the same value to the log, which the object says it has, with room behind it or
 * not. */
static void resize(struct storm_thread *t, unsigned int place)
{
	struct storm_cell *cell = &t->st->table->cells[place];
	size_t bytes = STORM_BYTES(t->log->values[place]);

	bytes += storm_below(&t->random, 2) ? storm_below(&t->random, 64) : storm_size(t);
	storm_ok(t, "pv_realloc", pv_realloc(t->st->s, (void **)&cell->object, bytes));
}

/* The same as put_cell(), by the calls that are made for it. */
static void put_directly(struct storm_thread *t, struct storm_group *g, unsigned int place,
			 struct storm_object *object, uint64_t value)
{
	struct storm_object **word = &t->st->table->cells[place].object, *old = *word;
	int rc;

	count_foreign(t, t->log->values[place]);
	storm_change(t->log, g, place, value);
	storm_pend(g);
	rc = !object ? pv_unlink(t->st->s, word, 0, old)
	     : old   ? pv_replace(t->st->s, object, word, old)
		     : pv_link(t->st->s, object, word);
	if (rc)
		storm_fail(t->log, "thread %u: pv_link or the like: %d: %s", t->number, rc,
			   pv_last_error());
	storm_done(t->log, g);
}

/* pv_alloc() or pv_free(): of cells without a word. */
static void simple_form(struct storm_thread *t, struct storm_group *g, unsigned int place)
{
	struct storm_cell *cell = &t->st->table->cells[place];
	size_t bytes = storm_size(t);
	int rc;

	storm_change(t->log, g, place, cell->object ? 0 : storm_new_value(t, bytes) | STORM_ZERO);
	storm_pend(g);
	if (cell->object)
		rc = pv_free(t->st->s, (void **)&cell->object);
	else
		rc = pv_alloc(t->st->s, t->st->types[0], bytes, (void **)&cell->object);
	if (storm_ok(t, "pv_alloc or pv_free", rc))
		storm_done(t->log, g);
	else
		storm_undone(g);
}

void storm_op_cell(struct storm_thread *t, struct storm_group *g)
{
	unsigned int place = (unsigned int)storm_below(&t->random, STORM_CELLS);
	struct storm_cell *cell = &t->st->table->cells[place];
	struct storm_object *object = NULL;
	uint64_t value = 0;
	void (*put)(struct storm_thread *, struct storm_group *, unsigned int,
		    struct storm_object *, uint64_t) = put_cell;

	if (!storm_take(place))
		return;
	/* Without a word, and without a reader. */
	if (place % 2 && place < STORM_SHARED && storm_below(&t->random, 2))
		put = put_directly;
	if (cell->object && place < STORM_SHARED && storm_below(&t->random, 16) == 0) {
		resize(t, place);
	} else if (place % 2 && place < STORM_SHARED && storm_below(&t->random, 4) == 0) {
		simple_form(t, g, place);
	} else if (cell->object && storm_below(&t->random, 5) < 2) {
		put(t, g, place, NULL, 0);
	} else {
		object = storm_reserve(t, &value);
		if (object)
			put(t, g, place, object, value);
	}
	storm_leave(place);
}

/* ---- several cells in one intent ---- */

struct batch {
	struct pv_action actions[PV_ACTIONS_MAX];
	unsigned int n;
	unsigned int places[8];
	unsigned int nplaces;
};

static void batch_swap(struct storm_thread *t, struct batch *b, unsigned int x, unsigned int y)
{
	struct storm_cell *cells = t->st->table->cells;
	unsigned int place[2] = {x, y};

	for (int i = 0; i < 2; i++) {
		unsigned int from = place[1 - i];

		b->actions[b->n++] =
			PV_STORE(&cells[place[i]].object, (uintptr_t)cells[from].object);
		if (place[i] % 2 == 0)
			b->actions[b->n++] = PV_STORE(&cells[place[i]].word, t->log->values[from]);
		storm_change(t->log, &t->groups[0], place[i], t->log->values[from]);
	}
}

static void batch_put(struct storm_thread *t, struct batch *b, unsigned int place)
{
	struct storm_cell *cell = &t->st->table->cells[place];
	struct storm_object *object = NULL;
	uint64_t value = 0;

	if (!cell->object || storm_below(&t->random, 2))
		object = storm_reserve(t, &value);
	if (!object && !cell->object)
		return;
	if (!object)
		value = 0;
	count_foreign(t, t->log->values[place]);
	b->n += put_actions(t, place, object, value, &b->actions[b->n]);
	storm_change(t->log, &t->groups[0], place, value);
}

static void several_cells(struct storm_thread *t)
{
	struct batch b = {.n = 0};
	unsigned int want = 2 + (unsigned int)storm_below(&t->random, 5);

	for (unsigned int i = 0; i < want; i++) {
		unsigned int place = (unsigned int)storm_below(&t->random, STORM_CELLS);

		if (storm_take(place))
			b.places[b.nplaces++] = place;
	}
	for (unsigned int i = 0; i < b.nplaces; i++) {
		if (i + 1 < b.nplaces && b.places[i] < STORM_SHARED &&
		    b.places[i + 1] < STORM_SHARED && storm_below(&t->random, 4) == 0) {
			batch_swap(t, &b, b.places[i], b.places[i + 1]);
			i++;
		} else {
			batch_put(t, &b, b.places[i]);
		}
	}
	if (b.n)
		publish(t, &t->groups[0], b.actions, b.n);
	for (unsigned int i = 0; i < b.nplaces; i++)
		storm_leave(b.places[i]);
}

/* ---- reservations ---- */

static void pass_on(struct storm_thread *t)
{
	uint64_t value;
	struct storm_object *object = storm_reserve(t, &value);

	if (!object)
		return;
	pthread_mutex_lock(&passed.lock);
	if (passed.n < sizeof(passed.objects) / sizeof(passed.objects[0])) {
		passed.objects[passed.n].object = object;
		passed.objects[passed.n++].value = value;
		object = NULL;
	}
	pthread_mutex_unlock(&passed.lock);
	if (object)
		storm_ok(t, "pv_cancel", pv_cancel(t->st->s, object));
}

static void take_over(struct storm_thread *t)
{
	struct storm_object *object = NULL;
	unsigned int place = (unsigned int)storm_below(&t->random, STORM_CELLS);
	uint64_t value = 0;

	pthread_mutex_lock(&passed.lock);
	if (passed.n) {
		unsigned int i = (unsigned int)storm_below(&t->random, passed.n);

		object = passed.objects[i].object;
		value = passed.objects[i].value;
		passed.objects[i] = passed.objects[--passed.n];
	}
	pthread_mutex_unlock(&passed.lock);
	if (!object)
		return;
	if (!storm_whole(object, STORM_CELL_KEY, value))
		storm_fail(t->log, "thread %u: reserved object %p was overwritten", t->number,
			   (void *)object);
	if (storm_below(&t->random, 3) && storm_take(place)) {
		put_cell(t, &t->groups[0], place, object, value);
		storm_leave(place);
	} else {
		storm_ok(t, "pv_cancel", pv_cancel(t->st->s, object));
	}
}

/* Much, for a moment: the store grows, and slabs and extents are given back. */
static void burst(struct storm_thread *t)
{
	void *objects[40];
	size_t bytes = storm_below(&t->random, 2) ? 60000 : storm_size(t);
	unsigned int n = 0, want = bytes > 9000 ? 6 : 40;

	while (n < want &&
	       storm_ok(t, "pv_reserve", pv_reserve(t->st->s, t->st->types[1], bytes, &objects[n])))
		n++;
	while (n)
		storm_ok(t, "pv_cancel", pv_cancel(t->st->s, objects[--n]));
}

/* ---- roots ---- */

static void root(struct storm_thread *t)
{
	unsigned int number = (unsigned int)storm_below(&t->random, STORM_ROOTS);
	unsigned int place = STORM_ROOT0 + number;
	size_t bytes = 16 + 8 * number;
	bool created = false, there;
	void *p;
	int rc;

	if (!storm_take(place))
		return;
	there = t->log->values[place] != 0;
	if (!there) {
		storm_change(t->log, &t->groups[0], place, storm_new_value(t, bytes) | STORM_ZERO);
		storm_pend(&t->groups[0]);
	}
	rc = storm_root(t->st, number, bytes, &p, &created);
	if (storm_ok(t, "pv_root", rc) && created == there)
		storm_fail(t->log, "root %u: created is %d, there %d", number, created, there);
	if (!there && !rc)
		storm_done(t->log, &t->groups[0]);
	else
		storm_undone(&t->groups[0]);
	storm_leave(place);
}

/* ---- map ---- */

static uint64_t hash(const struct storm_thread *t, uint64_t key)
{
	return pv_map_hash(t->st->map, &key, sizeof(key));
}

static struct storm_object *reserve_entry(struct storm_thread *t, uint64_t key, uint64_t *value)
{
	return reserve(t, t->st->entry, 16 + storm_below(&t->random, 160), key, value);
}

static void map_put(struct storm_thread *t, uint64_t key)
{
	uint64_t value;
	struct storm_object *entry = reserve_entry(t, key, &value);

	if (!entry)
		return;
	count_foreign(t, t->log->values[STORM_KEY0 + key]);
	storm_change(t->log, &t->groups[0], (unsigned int)(STORM_KEY0 + key), value);
	storm_pend(&t->groups[0]);
	if (storm_ok(t, "pv_map_put", pv_map_put(t->st->map, hash(t, key), entry, 0))) {
		storm_done(t->log, &t->groups[0]);
	} else {
		storm_undone(&t->groups[0]);
		storm_ok(t, "pv_cancel", pv_cancel(t->st->s, entry));
	}
}

static void map_remove(struct storm_thread *t, uint64_t key)
{
	bool there = t->log->values[STORM_KEY0 + key] != 0;
	int rc;

	storm_change(t->log, &t->groups[0], (unsigned int)(STORM_KEY0 + key), 0);
	storm_pend(&t->groups[0]);
	rc = pv_map_remove(t->st->map, hash(t, key), &key, sizeof(key));
	if (rc != (there ? 0 : -ENOENT))
		storm_fail(t->log, "pv_map_remove of key %d: %d: %s", (int)key, rc,
			   pv_last_error());
	storm_done(t->log, &t->groups[0]);
}

/* Two keys and a cell together. */
static int several_steps(struct storm_thread *t, struct pv_map_change *c, uint64_t key,
			 unsigned int place)
{
	struct storm_cell *cell = &t->st->table->cells[place];
	uint64_t value, other = (key + 1) % STORM_KEYS;
	struct storm_object *entry = reserve_entry(t, key, &value), *object = NULL;
	struct pv_action a[4];
	unsigned int n;
	int rc;

	if (!entry)
		return -ENOSPC;
	rc = pv_map_change_put(c, hash(t, key), entry, 0, NULL);
	if (rc) {
		pv_cancel(t->st->s, entry);
		return rc;
	}
	storm_change(t->log, &t->groups[0], (unsigned int)(STORM_KEY0 + key), value);
	if (t->log->values[STORM_KEY0 + other]) {
		rc = pv_map_change_remove(c, hash(t, other), &other, sizeof(other), 0, NULL);
		storm_change(t->log, &t->groups[0], (unsigned int)(STORM_KEY0 + other), 0);
	}
	value = 0;
	if (!rc && !cell->object) {
		object = storm_reserve(t, &value);
		if (!object)
			return -ENOSPC;
	}
	n = put_actions(t, place, object, value, a);
	for (unsigned int i = 0; !rc && i < n; i++)
		rc = pv_map_change_add(c, a[i]);
	storm_change(t->log, &t->groups[0], place, value);
	return rc;
}

static void map_change(struct storm_thread *t, uint64_t key)
{
	struct pv_map_change c;
	unsigned int place = (unsigned int)storm_below(&t->random, STORM_CELLS);
	int rc;

	if (!storm_take(place))
		return;
	pv_map_change_begin(t->st->map, &c);
	rc = several_steps(t, &c, key, place);
	if (!rc) {
		storm_pend(&t->groups[0]);
		rc = pv_map_change_commit(&c);
	}
	if (storm_ok(t, "pv_map_change", rc)) {
		storm_done(t->log, &t->groups[0]);
	} else {
		storm_undone(&t->groups[0]);
		pv_map_change_abort(&c);
	}
	storm_leave(place);
}

static void map_clear(struct storm_thread *t)
{
	for (unsigned int place = STORM_KEY0; place < STORM_ROOT0; place++)
		if (t->log->values[place])
			storm_change(t->log, &t->groups[0], place, 0);
	storm_pend(&t->groups[0]);
	if (storm_ok(t, "pv_map_clear", pv_map_clear(t->st->map, NULL, 0)))
		storm_done(t->log, &t->groups[0]);
	else
		storm_undone(&t->groups[0]);
}

static void map_op(struct storm_thread *t)
{
	uint64_t key = storm_below(&t->random, STORM_KEYS), what = storm_below(&t->random, 100);

	storm_ok(t, "pv_lock_take", pv_lock_take(t->st->s, &t->st->table->map_lock));
	if (what < 50)
		map_put(t, key);
	else if (what < 80)
		map_remove(t, key);
	else if (what < 95)
		map_change(t, key);
	else if (what < 99 || storm_below(&t->random, 3))
		pv_map_tidy(t->st->map, 2);
	else
		map_clear(t);
	storm_ok(t, "pv_lock_release", pv_lock_release(t->st->s, &t->st->table->map_lock));
}

void storm_op(struct storm_thread *t)
{
	uint64_t what = storm_below(&t->random, 100);

	if (what < 45)
		storm_op_cell(t, &t->groups[0]);
	else if (what < 55)
		several_cells(t);
	else if (what < 62)
		pass_on(t);
	else if (what < 69)
		take_over(t);
	else if (what < 71)
		burst(t);
	else if (what < 72 && storm_below(&t->random, 8) == 0)
		storm_ok(t, "pv_trim", pv_trim(t->st->s, NULL));
	else if (what < 72 && storm_below(&t->random, 8) == 0)
		storm_ok(t, "pv_retire_wait", pv_retire_wait(t->st->s));
	else if (what < 72)
		root(t);
	else if (what < 86)
		storm_op_tx(t);
	else
		map_op(t);
}
