/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What pv_reserve() hands out, and when. A slot stays in its magazine while its object is in the application's
 * hands, until something else is asked of that thread (pvi_thread_settle()): whatever comes in between, and
 * whoever it is that publishes the object, no slot is handed out twice and none is lost. And slot bytes are where
 * the addresses of objects say.
 */
#include <pthread.h>

#include <preserve/stats.h>

#include "internal.h"
#include "support.h"

#define NOBJECTS 40
#define ROUNDS	 30000

static const size_t sizes[] = {16, 40, 64, 64, 64, 80, 128, 256, 300, 1000, 5000};
#define NSIZES (sizeof(sizes) / sizeof(*sizes))

/* Objects that the test has: reserved ones, then published ones, whose addresses are also in cells. */
struct hands {
	void *reserved[NOBJECTS];
	unsigned int nreserved;
	struct cells *t; /* [0, NOBJECTS) */
};

static bool known(const struct hands *h, const void *p)
{
	for (unsigned int i = 0; i < h->nreserved; i++)
		if (h->reserved[i] == p)
			return true;
	for (unsigned int i = 0; i < NOBJECTS; i++)
		if (h->t->cells[i] == p)
			return true;
	return false;
}

static void reserve_one(struct hands *h, struct pv_store *s, const pv_type_t types[2], uint64_t *random)
{
	pv_type_t type = types[random_below(random, 2)];
	size_t bytes = sizes[random_below(random, NSIZES)];
	void *p = reserve_ok(s, type, bytes);
	uint64_t off = (uintptr_t)p - s->base, rec;
	const struct pvi_segment *seg = pvi_store_segment(s, off);

	assert_false(known(h, p));
	assert_non_null(pvi_slab_slot(s, seg, off - seg->off, &rec));
	assert_int_equal(pvi_rec_type(rec), type);
	assert_int_equal(pvi_rec_class(rec), pvi_class_of(bytes));
	memset(p, 0xa5, pv_usable_bytes(s, p));
	h->reserved[h->nreserved++] = p;
}

/* One of those that are reserved, the last one mostly. */
static void *pick(struct hands *h, uint64_t *random)
{
	unsigned int i = h->nreserved - 1;
	void *p;

	if (random_below(random, 3) == 0)
		i = (unsigned int)random_below(random, h->nreserved);
	p = h->reserved[i];
	h->reserved[i] = h->reserved[--h->nreserved];
	return p;
}

static void do_something(struct hands *h, struct pv_store *s, uint64_t *random)
{
	void **cell = &h->t->cells[random_below(random, NOBJECTS)], *old = *cell;
	uint64_t what = random_below(random, 8);

	if (what == 0 && h->nreserved) {
		assert_ok(pv_cancel(s, pick(h, random)));
	} else if (what == 1 && old) {
		assert_ok(pv_unlink(s, cell, 0, old));
	} else if (what == 2 && h->nreserved && !old) {
		void *p = pick(h, random);

		assert_ok(pv_publish(s, (struct pv_action[]){PV_LIVE(p), PV_STORE(cell, (uintptr_t)p)}, 2));
	} else if (what == 3 && h->nreserved && old) {
		void *p = pick(h, random);

		assert_ok(pv_publish(s,
				     (struct pv_action[]){PV_STORE(cell, (uintptr_t)p), PV_FREE(old),
							  PV_LIVE(p)},
				     3));
	} else if (h->nreserved) {
		void *p = pick(h, random);

		assert_ok(old ? pv_replace(s, p, cell, old) : pv_link(s, p, cell));
	}
}

/* The store is sound, and has this many objects that are reserved. */
static void sound_with(struct pv_store *s, uint64_t reserved)
{
	struct pv_stats *st;

	store_records_sound(s);
	assert_ok(pv_stats_get(s, &st));
	assert_int_equal(st->slabs.reserved, reserved);
	pv_stats_free(st);
}

static void in_any_order(void **state)
{
	uint64_t random = random_seed_from_env("in_any_order");
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct hands h = {0};
	pv_type_t types[2];

	o.window_bytes = 1 << 28;
	s = store_create(k, &o);
	types[0] = store_bytes_type(s, "bytes");
	types[1] = store_bytes_type(s, "others");
	h.t = store_cells(s);
	for (int i = 0; i < ROUNDS; i++) {
		if (h.nreserved < NOBJECTS / 2 && random_below(&random, 2))
			reserve_one(&h, s, types, &random);
		else
			do_something(&h, s, &random);
		if (i % 1000 == 0)
			sound_with(s, h.nreserved);
	}
	while (h.nreserved)
		assert_ok(pv_cancel(s, pick(&h, &random)));
	for (unsigned int i = 0; i < NOBJECTS; i++)
		if (h.t->cells[i])
			assert_ok(pv_free(s, &h.t->cells[i]));
	assert_ok(pv_trim(s, NULL));
	assert_int_equal(store_records_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

/* ---- another thread publishes it ---- */

struct other {
	struct pv_store *s;
	struct cells *t;
	pv_type_t type, next_type;
	void *object;
	void *again; /* what this thread reserved where the object was */
	int err;
};

static int run_other(void *(*f)(void *), struct other *o)
{
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, f, o), 0);
	pthread_join(thread, NULL);
	return o->err;
}

static void *link_it(void *arg)
{
	struct other *o = arg;

	o->err = pv_link(o->s, o->object, &o->t->cells[0]);
	return NULL;
}

static void *link_and_free_it(void *arg)
{
	struct other *o = arg;

	o->err = pv_link(o->s, o->object, &o->t->cells[0]);
	if (!o->err)
		o->err = pv_free(o->s, &o->t->cells[0]);
	return NULL;
}

/* The thread that reserved it can neither publish it once more nor give it back, and does not get it again while
 * somebody else has it. */
static void handed_to_another(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	struct other o = {.s = s, .t = t, .type = store_bytes_type(s, "bytes")};
	void *old = publish_ok(s, o.type, 64, &t->cells[1]);

	for (int live = 0; live < 2; live++) {
		o.object = reserve_ok(s, o.type, 64);
		assert_int_equal(run_other(live ? link_it : link_and_free_it, &o), 0);
		assert_fails(pv_replace(s, o.object, &t->cells[1], old), -EINVAL, "not reserved");
		assert_fails(pv_link(s, o.object, &t->cells[2]), -EINVAL, "not reserved");
		assert_fails(pv_cancel(s, o.object), -EINVAL, "not reserved");
		assert_ptr_equal(t->cells[1], old);
		assert_null(t->cells[2]);
	}
	for (int i = 2; i < 100; i++) {
		publish_ok(s, o.type, 64, &t->cells[i]);
		for (int j = 0; j < i; j++)
			assert_ptr_not_equal(t->cells[i], t->cells[j]);
	}
	assert_int_equal(store_sound(s).live_objects, 101);
	sound_with(s, 0);
	assert_ok(pv_close(s));
}

#define LARGE 4000
#define OTHER 3000
#define OTHERS 500

/* Wherever the slot byte was, it seems to say RESERVED afterwards. */
static void *reuse_its_memory(void *arg)
{
	struct other *o = arg;
	void *held[OTHERS];
	int n = 0;

	link_and_free_it(o);
	if (!o->err)
		o->err = pv_trim(o->s, NULL);
	while (!o->err && n < OTHERS) {
		o->err = pv_reserve(o->s, o->next_type, OTHER, &held[n]);
		if (!o->err)
			memset(held[n], PV_SLOT_RESERVED, pv_usable_bytes(o->s, held[n]));
		n += !o->err;
	}
	while (n-- > 0) {
		if (held[n] == o->object)
			o->again = held[n];
		else
			pv_cancel(o->s, held[n]);
	}
	return NULL;
}

/* The slab goes while the first thread's magazine still names the slot, and the same address is an object of
 * another slab, with slot bytes elsewhere, when that thread gets it. */
static void slab_gone(void **state)
{
	struct keeper *k = *state;
	struct pv_options opts = small_options(k);
	struct pv_store *s;
	struct cells *t;
	struct other o;
	void *old;

	opts.lanes = 4;
	s = store_create(k, &opts);
	t = store_cells(s);
	o = (struct other){.s = s, .t = t, .type = store_bytes_type(s, "one"),
			   .next_type = store_bytes_type(s, "next")};
	old = publish_ok(s, o.next_type, LARGE, &t->cells[1]);
	publish_ok(s, o.next_type, 16, &t->cells[2]);
	o.object = reserve_ok(s, o.type, LARGE);
	assert_int_equal(run_other(reuse_its_memory, &o), 0);
	assert_ptr_equal(o.again, o.object); /* or the test shows nothing */
	assert_ok(pv_free(s, &t->cells[2]));
	assert_ok(pv_replace(s, o.again, &t->cells[1], old));
	assert_ptr_equal(t->cells[1], o.again);
	for (int i = 2; i < 10; i++)
		publish_ok(s, i % 2 ? o.type : o.next_type, LARGE, &t->cells[i]);
	assert_int_equal(store_records_sound(s).live_objects, 10);
	sound_with(s, 0);
	assert_ok(pv_close(s));
}

/* An extent is where a slab of the reserved object's size was, and all its bytes say LIVE. */
static void extent_where_a_slab_was(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	uint8_t *extent;
	void *p, *cell;

	for (int i = 0; i < 400; i++)
		publish_ok(s, type, 64, &t->cells[i]);
	for (int i = 0; i < 400; i++)
		assert_ok(pv_free(s, &t->cells[i]));
	assert_ok(pv_trim(s, NULL));
	extent = publish_ok(s, type, 40000, &t->cells[0]);
	memset(extent, PV_SLOT_LIVE, 40000);
	p = reserve_ok(s, type, 64);
	for (int i = 64; i < 40000; i += 64) { /* but not its start, which may be freed */
		cell = t->cells[1];
		assert_fails(pv_replace(s, p, &t->cells[1], extent + i), -EINVAL, "");
		assert_ptr_equal(t->cells[1], cell);
	}
	assert_ok(pv_link(s, p, &t->cells[1]));
	assert_int_equal(store_sound(s).live_objects, 3);
	assert_ok(pv_close(s));
}

/* ---- the object that is replaced ---- */

/* The thread knows the word's pages and has just reserved an object of the class, so that nothing
 * but a look at the old one says that it is none. */
static void refuse_old(struct pv_store *s, struct cells *t, pv_type_t type, size_t bytes,
		       const char *what, void *old)
{
	void *p = reserve_ok(s, type, bytes), *was = t->cells[0];

	assert_ok(pv_replace(s, p, &t->cells[0], was));
	was = p;
	p = reserve_ok(s, type, bytes);
	print_message("  %zu bytes, %s\n", bytes, what);
	assert_fails(pv_replace(s, p, &t->cells[0], old), -EINVAL, "");
	assert_ptr_equal(t->cells[0], was);
	assert_ok(pv_cancel(s, p));
}

/* Freed, by this thread some objects ago. */
static void *freed(struct pv_store *s, struct cells *t, pv_type_t type, size_t bytes)
{
	void *p = publish_ok(s, type, bytes, &t->cells[1]);

	for (int i = 2; i < 4; i++)
		assert_ptr_not_equal(publish_ok(s, type, bytes, &t->cells[i]), p);
	for (int i = 1; i < 4; i++)
		assert_ok(pv_free(s, &t->cells[i]));
	return p;
}

static void wrong_old_object(void **state)
{
	static const size_t several[] = {16, 32, 48, 64, 128, 256, 512};
	struct keeper *k = *state, k2;
	struct pv_store *s = store_create(k, NULL), *s2;
	struct cells *t = store_cells(s), *t2;
	pv_type_t type = store_bytes_type(s, "bytes"), type2;

	/* The same objects at the same offsets. */
	keeper_init(&k2);
	s2 = store_create(&k2, NULL);
	t2 = store_cells(s2);
	type2 = store_bytes_type(s2, "bytes");
	assert_int_equal(type, type2);
	for (size_t i = 0; i < sizeof(several) / sizeof(*several); i++) {
		size_t bytes = several[i];
		uint8_t *live = publish_ok(s, type, bytes, &t->cells[0]);
		uint8_t *theirs = publish_ok(s2, type2, bytes, &t2->cells[0]);

		assert_int_equal((uintptr_t)live - s->base, (uintptr_t)theirs - s2->base);
		live = publish_ok(s, type, bytes, &t->cells[9]); /* the one before is replaced */
		refuse_old(s, t, type, bytes, "a byte in", live + 1);
		refuse_old(s, t, type, bytes, "a word in", live + 8);
		if (bytes > 16)
			refuse_old(s, t, type, bytes, "sixteen bytes in", live + 16);
		refuse_old(s, t, type, bytes, "half in", live + bytes / 2);
		refuse_old(s, t, type, bytes, "of another store", theirs);
		refuse_old(s, t, type, bytes, "a window farther", live + s->window_bytes);
		refuse_old(s, t, type, bytes, "a window before", live - s->window_bytes);
		refuse_old(s, t, type, bytes, "null", NULL);
		refuse_old(s, t, type, bytes, "freed", freed(s, t, type, bytes));
		assert_int_equal(pv_usable_bytes(s2, theirs), pv_usable_bytes(s, live));
		assert_ok(pv_free(s, &t->cells[0]));
		assert_ok(pv_free(s, &t->cells[9]));
		assert_ok(pv_free(s2, &t2->cells[0]));
	}
	assert_int_equal(store_sound(s).live_objects, 1);
	assert_int_equal(store_sound(s2).live_objects, 1);
	assert_ok(pv_close(s));
	assert_ok(pv_close(s2));
	keeper_free(&k2);
}

static void *reserve_nothing(void *arg)
{
	struct other *o = arg;

	for (int i = 0; i < 3; i++) { /* the first makes the thread's state, the second finds it */
		o->err = pv_reserve(o->s, 0, 0, &o->object);
		if (o->err != -EINVAL)
			break;
	}
	return NULL;
}

/* A thread's first calls, when nothing was reserved last. */
static void first_of_no_type(void **state)
{
	struct keeper *k = *state;
	struct other o = {.s = store_create(k, NULL)};

	assert_int_equal(run_other(reserve_nothing, &o), -EINVAL);
	assert_fails(pv_reserve(o.s, 0, 0, &o.object), -EINVAL, "0 bytes");
	reserve_ok(o.s, store_bytes_type(o.s, "bytes"), 64);
	assert_fails(pv_reserve(o.s, 0, 64, &o.object), -EINVAL, "type 0");
	assert_ok(pv_close(o.s));
}

/* ---- slot bytes ---- */

static void look_at_slab(const struct pv_store *s, void *object, size_t bytes)
{
	uint64_t off = (uintptr_t)object - s->base, rec;
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	const uint8_t *byte = pvi_slab_slot(s, seg, off - seg->off, &rec), *all;
	const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];
	uint32_t page = (uint32_t)((off - seg->off) >> s->page_shift), slots = 0;

	assert_non_null(byte);
	assert_int_equal(*byte, PV_SLOT_RESERVED);
	assert_int_equal(c->byte_shift, bytes >= 16 && bytes * 64 <= 1u << s->page_shift &&
							!(bytes & (bytes - 1))
						? __builtin_ctzll(bytes)
						: 0);
	if (c->byte_shift)
		assert_int_equal(pvi_slab_byte_of((uintptr_t)object, c->byte_shift, s->page_mask),
				 (uintptr_t)byte);
	page -= pvi_rec_back(pvi_rec_load(seg->map, page));
	all = pvi_slab_bytes(s, seg, page, rec);
	for (uint32_t i = 0; i < c->nslots; i++) {
		const uint8_t *slot = seg->addr + ((size_t)page << s->page_shift) + (size_t)i * c->slot_bytes;
		const uint8_t *header = seg->addr + ((size_t)page << s->page_shift) + pvi_rec_meta(rec);
		bool covered = (slot < all + c->nslots && all < slot + c->slot_bytes) ||
			       (slot < header + sizeof(struct slab_rec) && header < slot + c->slot_bytes);

		assert_int_equal(all[i] == PV_SLOT_META, covered);
		slots += !covered;
	}
	assert_int_equal(slots, c->usable);
}

/* In each class, and in enough slabs that every place that there is comes up. */
static void slot_bytes_where_addresses_say(void **state)
{
	struct keeper *k = *state;

	for (uint32_t page = 4096; page <= 16384; page *= 4) {
		struct pv_options o = small_options(k);
		struct pv_store *s;
		pv_type_t type;

		o.page_bytes = page;
		o.segment_bytes = 1 << 20;
		o.window_bytes = 1ull << 30;
		s = store_create(k, &o);
		type = store_bytes_type(s, "bytes");
		for (uint32_t c = 0; c < s->nclasses; c++) {
			uint32_t slabs = s->classes[c].byte_shift ? 1u << s->classes[c].byte_shift : 2;

			for (uint32_t i = 0; i < slabs * s->classes[c].usable; i++) {
				void *p = reserve_ok(s, type, s->classes[c].slot_bytes);

				if (i % s->classes[c].usable == 0)
					look_at_slab(s, p, s->classes[c].slot_bytes);
			}
		}
		store_sound(s);
		assert_ok(pv_destroy(s));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(in_any_order),
		with_keeper(handed_to_another),
		with_keeper(slab_gone),
		with_keeper(extent_where_a_slab_was),
		with_keeper(wrong_old_object),
		with_keeper(first_of_no_type),
		with_keeper(slot_bytes_where_addresses_say),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
