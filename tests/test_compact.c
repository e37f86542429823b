/* SPDX-License-Identifier: BSD-3-Clause */
/* Compaction: objects of all kinds and sizes, with pointers to their starts and middles, are where their pointers
 * lead afterwards, whatever was freed between them; and the store has become as small as was said. */
#include <pthread.h>

#include <preserve/compact.h>
#include <preserve/map.h>
#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

static struct pv_options growing_options(struct keeper *k)
{
	struct pv_options o = small_options(k);

	o.window_bytes = 1 << 28;
	o.segment_bytes = 1 << 18;
	o.page_bytes = 4096;
	o.lanes = 8;
	return o;
}

struct told {
	unsigned int copy;
	unsigned int references;
};

static void note_progress(void *ctx, const char *what, uint64_t done_bytes, uint64_t total_bytes)
{
	struct told *told = ctx;

	assert_in_range(done_bytes, 0, total_bytes);
	if (strcmp(what, "copy") == 0)
		told->copy++;
	else if (strcmp(what, "references") == 0)
		told->references++;
	else
		fail_msg("progress of \"%s\"", what);
}

/* A dry run tells nothing; who moves something says how far he is, with both halves of it. */
static struct pv_compact_report compact(struct pv_store *s, uint32_t flags)
{
	struct told told = {0};
	struct pv_compact_options o = {
		.size = sizeof(o), .flags = flags, .progress = note_progress, .ctx = &told};
	struct pv_compact_report r;

	assert_ok(pv_compact(s, &o, &r));
	assert_int_equal(told.copy != 0, r.objects_moved && !(flags & PV_COMPACT_DRY_RUN));
	assert_int_equal(told.references != 0, r.objects_moved && !(flags & PV_COMPACT_DRY_RUN));
	store_sound(s);
	return r;
}

/* A table whose pointers are declared: store_cells() is of opaque bytes. */
static struct cells *pointers(struct pv_store *s)
{
	const struct pv_typedef def =
		PV_TYPE(struct cells, "pointers", 1, PV_POINTER(struct cells, cells));
	void *root = NULL;
	pv_type_t type;

	assert_ok(pv_type_register(s, &def, &type));
	assert_ok(pv_root(s, "pointers", type, sizeof(struct cells), &root, NULL));
	return root;
}

/* ---- a model: one object for each cell, which may point to another one ---- */

struct model {
	struct pv_store *s;
	struct cells *t;
	pv_type_t words; /* have a pointer in front */
	pv_type_t bytes;
	struct {
		size_t bytes; /* 0: there is none */
		size_t align;
		bool word;
		int next; /* object pointed to, -1: none, or has no pointer */
		size_t into;
	} o[CELLS];
};

static void model_attach(struct model *m, struct pv_store *s)
{
	m->s = s;
	m->words = store_word_type(s);
	m->bytes = store_bytes_type(s, "bytes");
	m->t = pointers(s);
}

static uint64_t *payload(const struct model *m, int i)
{
	return (uint64_t *)m->t->cells[i] + (m->o[i].word ? 2 : 0);
}

static size_t payload_bytes(const struct model *m, int i)
{
	return m->o[i].bytes - (m->o[i].word ? sizeof(struct word) : 0);
}

static void model_point(struct model *m, int i, int to, size_t into)
{
	struct word *w = m->t->cells[i];

	assert_true(m->o[i].word);
	m->o[i].next = to;
	m->o[i].into = into;
	assert_ok(pv_publish(m->s, &PV_STORE(&w->next, to < 0 ? 0 : (uintptr_t)m->t->cells[to] + into), 1));
}

static void model_add(struct model *m, int i, size_t bytes, bool word, size_t align)
{
	void *p;

	assert_int_equal(m->o[i].bytes, 0);
	assert_ok(pv_reserve_aligned(m->s, word ? m->words : m->bytes, bytes, align, &p));
	m->o[i].bytes = bytes;
	m->o[i].align = align;
	m->o[i].word = word;
	m->o[i].next = -1;
	if (word)
		*(struct word *)p = (struct word){.value = (uint64_t)i};
	assert_ok(pv_link(m->s, p, &m->t->cells[i]));
	pattern_fill(payload(m, i), payload_bytes(m, i), (uint64_t)i);
}

static void model_free(struct model *m, int i)
{
	for (int k = 0; k < CELLS; k++)
		if (m->o[k].bytes && m->o[k].next == i)
			model_point(m, k, -1, 0);
	assert_ok(pv_free(m->s, &m->t->cells[i]));
	m->o[i].bytes = 0;
}

static void model_check(const struct model *m)
{
	uint64_t objects = 0;

	for (int i = 0; i < CELLS; i++) {
		const struct word *w = m->t->cells[i];

		if (!m->o[i].bytes) {
			assert_null(w);
			continue;
		}
		objects++;
		assert_int_equal((uintptr_t)w % m->o[i].align, 0);
		assert_true(pv_usable_bytes(m->s, w) >= m->o[i].bytes);
		if (!pattern_holds(payload(m, i), payload_bytes(m, i), (uint64_t)i))
			fail_msg("object %d of %zu bytes at %p is not as it was", i, m->o[i].bytes, w);
		if (!m->o[i].word)
			continue;
		assert_int_equal(w->value, i);
		if (m->o[i].next < 0)
			assert_null(w->next);
		else
			assert_ptr_equal(w->next, (uint8_t *)m->t->cells[m->o[i].next] + m->o[i].into);
	}
	assert_int_equal(store_sound(m->s).live_objects, objects + 1);
}

static void model_random(struct model *m, uint64_t *rnd, int steps, int often)
{
	static const size_t sizes[] = {16, 24, 64, 64, 64, 200, 520, 900, 3000, 9000, 40000, 100000};

	for (int n = 0; n < steps; n++) {
		int i = (int)random_below(rnd, CELLS), to = (int)random_below(rnd, CELLS);

		if (!m->o[i].bytes && random_below(rnd, 100) < (uint64_t)often)
			model_add(m, i, sizes[random_below(rnd, 12)], random_below(rnd, 2),
				  random_below(rnd, 8) ? 16 : 16ul << random_below(rnd, 13));
		else if (m->o[i].bytes && random_below(rnd, 100) >= (uint64_t)often)
			model_free(m, i);
		else if (m->o[i].bytes && m->o[i].word && m->o[to].bytes)
			model_point(m, i, to, random_below(rnd, 2) * random_below(rnd, m->o[to].bytes));
	}
}

/* ---- tests ---- */

/* One slab's worth of objects, spread over many slabs in several segments, becomes one slab in one segment. */
static void sparse_slabs_are_merged(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = pointers(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct pv_compact_report dry, r;
	struct cells *big;
	pv_type_t all = store_bytes_type(s, "all");
	uint64_t before;

	/* 30,000 objects of 64 bytes; every 200th stays. */
	assert_ok(pv_reserve(s, all, 30000 * sizeof(void *), (void **)&big));
	for (size_t i = 0; i < 30000; i++) {
		void *p = reserve_ok(s, type, 64);

		pattern_fill(p, 64, i);
		((void **)big)[i] = p;
		if (i % 200 == 0)
			assert_ok(pv_link(s, p, &t->cells[i / 200]));
	}
	for (size_t i = 0; i < 30000; i++)
		if (i % 200)
			assert_ok(pv_cancel(s, ((void **)big)[i]));
	assert_ok(pv_cancel(s, big));
	assert_ok(pv_trim(s, NULL));
	assert_in_range(store_info(s).segments, 3, 5);
	before = keeper_bytes(k);
	dry = compact(s, PV_COMPACT_DRY_RUN);
	assert_int_equal(store_info(s).segments, dry.segments_returned + 1);
	r = compact(s, 0);
	assert_int_equal(store_info(s).segments, 1);
	assert_int_equal(r.segments_returned, dry.segments_returned);
	assert_int_equal(r.segments_bytes, dry.segments_bytes);
	assert_int_equal(r.slabs_returned, dry.slabs_returned);
	assert_int_equal(r.pages_bytes, dry.pages_bytes);
	assert_in_range(r.objects_moved, 1, 150 - 1);
	assert_int_equal(r.memory_bytes, before - keeper_bytes(k));
	for (size_t i = 0; i < 150; i++)
		assert_true(pattern_holds(t->cells[i], 64, i * 200));
	assert_int_equal(store_sound(s).slabs, 1 + 3); /* cells; 62 slots a slab */
	/* Nothing is left to do. */
	r = compact(s, 0);
	assert_int_equal(r.objects_moved, 0);
	assert_int_equal(r.segments_returned, 0);
	assert_int_equal(r.rounds, 0);
	assert_ok(pv_close(s));
}

static void random_stores_keep_their_graph(void **state)
{
	struct keeper *k = *state;
	uint64_t rnd = random_seed_from_env("random_stores_keep_their_graph");
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct model m = {0};
	uint64_t moved = 0, segments = 0;

	model_attach(&m, s);
	for (int round = 0; round < 40; round++) {
		struct pv_compact_report dry, r;

		model_random(&m, &rnd, 2000, 75);
		model_random(&m, &rnd, 2000, (int)random_below(&rnd, 40));
		model_check(&m);
		dry = compact(s, PV_COMPACT_DRY_RUN);
		model_check(&m);
		r = compact(s, 0);
		m.t = pointers(s);
		model_check(&m);
		assert_true(r.segments_returned <= dry.segments_returned);
		assert_true(r.segments_returned + 1 >= dry.segments_returned);
		moved += r.objects_moved;
		segments += r.segments_returned;
		if (round % 3 == 1)
			keeper_crash(k, &s);
		else if (round % 3 == 2)
			assert_ok(pv_close(s));
		if (round % 3)
			model_attach(&m, s = store_attach(k, &o));
		model_check(&m);
	}

	assert_true(moved > 200);
	assert_true(segments > 10);
	assert_ok(pv_close(s));
}

/* Objects of a type that is pinned stay, and so does what lies before the last of them. */
static void pinned_objects_stay(void **state)
{
	static const struct pv_typedef def = {.name = "pinned", .version = 1, .flags = PV_TYPE_PINNED};
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = pointers(s);
	pv_type_t pinned, bytes = store_bytes_type(s, "bytes");
	struct pv_compact_report r;
	void *at;

	assert_ok(pv_type_register(s, &def, &pinned));
	for (size_t i = 0; i < 20; i++) /* 250 KiB, then another segment, and one more */
		publish_ok(s, bytes, 60000, &t->cells[i]);
	at = publish_ok(s, pinned, 100, &t->cells[100]);
	for (size_t i = 20; i < 40; i++)
		publish_ok(s, bytes, 60000, &t->cells[i]);
	pattern_fill(t->cells[39], 60000, 39);
	for (size_t i = 0; i < 39; i++)
		assert_ok(pv_free(s, &t->cells[i]));
	assert_true(store_info(s).segments >= 4);
	r = compact(s, 0);
	t = pointers(s);
	assert_ptr_equal(t->cells[100], at);
	assert_int_equal(store_info(s).segments,
			 pvi_store_segment(s, (uintptr_t)at - s->base)->number + 1);
	assert_int_equal(r.objects_moved, 1);
	assert_true(pattern_holds(t->cells[39], 60000, 39));
	assert_ok(pv_close(s));
}

static void what_stands_in_the_way_is_said(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_compact_options co = {.size = sizeof(co)};
	struct pv_store *s = store_create(k, &o);
	pv_type_t bytes = store_bytes_type(s, "bytes");
	struct pv_compact_report r;
	struct cells *t = pointers(s);
	void *p = reserve_ok(s, bytes, 64), *big;

	assert_fails(pv_compact(s, NULL, &r), -EBUSY, "is reserved");
	assert_ok(pv_cancel(s, p));
	big = reserve_ok(s, bytes, 100000);
	assert_fails(pv_compact(s, NULL, NULL), -EBUSY, "a large object is reserved");
	assert_ok(pv_link(s, big, &t->cells[0]));
	assert_ok(pv_tx_begin(s));
	assert_fails(pv_compact(s, NULL, NULL), -EBUSY, "transaction");
	assert_ok(pv_tx_commit(s));
	co.flags = 2;
	assert_fails(pv_compact(s, &co, NULL), -EINVAL, "flags 0x2");
	co = (struct pv_compact_options){.size = sizeof(co) - 8};
	assert_fails(pv_compact(s, &co, NULL), -EINVAL, "size");
	assert_ok(pv_compact(s, NULL, NULL));
	/* A damaged slab: nothing is moved. */
	p = publish_ok(s, bytes, 64, &t->cells[1]);
	memset((void *)((uintptr_t)p & ~4095ul), 0xa5, 4096);
	assert_ok(pv_close(s));
	s = store_attach(k, &o);
	assert_fails(pv_compact(s, NULL, NULL), -EBADMSG, "damaged");
	assert_ok(pv_close(s));
	assert_ok(store_try(k, &o, PV_RDONLY, &s));
	assert_fails(pv_compact(s, NULL, NULL), -EPERM, "read-only");
	assert_ok(pv_close(s));
	assert_fails(store_try(k, &o, PV_COMPACT, &s), -EBADMSG, "damaged");
	assert_fails(store_try(k, &o, PV_COMPACT | PV_RDONLY, &s), -EINVAL, "flags");
}

/* At its limit a store has no room for copies or tables: nothing changes. With some it is compacted, by and by. */
static void a_full_store(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s;
	struct cells *t;
	pv_type_t bytes;
	int n = 0;

	o.limit_bytes = 1 << 20;
	s = store_create(k, &o);
	t = pointers(s);
	bytes = store_bytes_type(s, "bytes");
	/* Slots of 2 KiB until there is no page left; then every other object goes. */
	while (n < CELLS && pv_alloc(s, bytes, 2048, &t->cells[n]) == 0)
		pattern_fill(t->cells[n], 2048, (uint64_t)n), n++;
	assert_in_range(n, 100, CELLS - 1);
	for (int i = 1; i < n; i += 2)
		assert_ok(pv_free(s, &t->cells[i]));
	/* What pages are left goes too: */
	for (size_t size = 65536; size >= 4096; size /= 2)
		while (n < CELLS && pv_alloc(s, bytes, size + 1, &t->cells[n]) == 0)
			pattern_fill(t->cells[n], 8, (uint64_t)n), n++;
	if (pv_compact(s, NULL, NULL)) {
		assert_true(strstr(pv_last_error(), "limit") || strstr(pv_last_error(), "free pages"));
		store_sound(s);
	}
	for (int i = 0; i < n; i++)
		if (t->cells[i])
			assert_true(pattern_holds(t->cells[i], 8, (uint64_t)i));
	/* A few pages for the tables are enough. */
	for (int i = n - 1; i > 0 && pv_usable_bytes(s, t->cells[i]) != 2048; i--)
		if (t->cells[i])
			assert_ok(pv_free(s, &t->cells[i]));
	assert_ok(pv_compact(s, NULL, NULL));
	t = pointers(s);
	for (int i = 0; i < n; i++)
		if (t->cells[i])
			assert_true(pattern_holds(t->cells[i], 8, (uint64_t)i));
	store_sound(s);
	assert_true(store_info(s).bytes < 900000);
	assert_ok(pv_close(s));
}

/* Without a limit the tables may take another segment, which goes again. */
static void tables_in_another_segment(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct cells *t = pointers(s);
	pv_type_t bytes = store_bytes_type(s, "bytes");
	unsigned int adds = k->adds, drops = k->drops;
	struct pv_compact_report r;
	void *page[CELLS];
	int n = 0, pages = 0;

	while (n < 80)
		publish_ok(s, bytes, 1024, &t->cells[n]), n++;
	for (int i = 1; i < n; i++)
		if (i % 10)
			assert_ok(pv_free(s, &t->cells[i]));
	/* Every page that is left. */
	assert_ok(pv_trim(s, NULL));
	while (store_info(s).segments == 1 && pages < CELLS) {
		assert_ok(pvi_heap_hold(s, 4096, &page[pages]));
		pages++;
	}
	assert_in_range(pages, 2, CELLS - 1);
	assert_ok(pv_cancel(s, page[--pages]));
	assert_ok(pv_trim(s, NULL));
	assert_int_equal(store_info(s).segments, 1);
	/* They are somebody's, as far as anybody can see. */
	for (int i = 0; i < pages; i++)
		s->segments[0].slabs[((uint8_t *)page[i] - s->segments[0].addr) >> s->page_shift].state =
			PVI_SLAB_NONE;
	adds = k->adds, drops = k->drops;
	r = compact(s, 0);
	assert_true(r.objects_moved > 0);
	assert_true(k->adds > adds);
	assert_int_equal(k->adds - adds, k->drops - drops);
	assert_int_equal(store_info(s).segments, 1);
	t = pointers(s);
	assert_non_null(t->cells[10]);
	assert_ok(pv_close(s));
}

/* ---- threads ---- */

struct churner {
	pthread_t thread;
	pthread_barrier_t *barrier;
	struct pv_store *s;
	pv_type_t type;
	int number;
	bool failed;
};

/* Fills and frees its cells, stands still, goes on. Its magazines are full of slots that are moved to. */
static void *churn(void *arg)
{
	struct churner *c = arg;

	for (int round = 0; round < 6; round++) {
		struct cells *t = pointers(c->s);

		for (int i = c->number; i < CELLS; i += 4) {
			if (round && !pattern_holds(t->cells[i], 200, (uint64_t)i))
				c->failed = true;
			if (t->cells[i])
				c->failed |= pv_free(c->s, &t->cells[i]) != 0;
			c->failed |= pv_alloc(c->s, c->type, 200, &t->cells[i]) != 0;
			pattern_fill(t->cells[i], 200, (uint64_t)i);
		}
		pthread_barrier_wait(c->barrier);
		pthread_barrier_wait(c->barrier); /* compacted */
	}
	return NULL;
}

static void threads_stand_still_and_go_on(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	pv_type_t big = store_bytes_type(s, "big"), type = store_bytes_type(s, "bytes");
	pthread_barrier_t barrier;
	struct churner c[4];
	struct cells *t = pointers(s);
	void *way[64];

	assert_non_null(t);
	pthread_barrier_init(&barrier, NULL, 5);
	for (int i = 0; i < 4; i++) {
		c[i] = (struct churner){.barrier = &barrier, .s = s, .type = type, .number = i};
		assert_int_equal(pthread_create(&c[i].thread, NULL, churn, &c[i]), 0);
	}
	for (int round = 0; round < 6; round++) {
		pthread_barrier_wait(&barrier);
		/* What is allocated next comes to lie behind this, and so is moved. */
		for (int i = 0; i < 64; i++)
			way[i] = reserve_ok(s, big, 30000);
		assert_fails(pv_compact(s, NULL, NULL), -EBUSY, "is reserved");
		for (int i = 0; i < 64; i++)
			assert_ok(pv_cancel(s, way[i]));
		compact(s, 0);
		t = pointers(s);
		for (int i = 0; i < CELLS; i++)
			assert_true(pattern_holds(t->cells[i], 200, (uint64_t)i));
		pthread_barrier_wait(&barrier);
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(c[i].thread, NULL);
		assert_false(c[i].failed);
	}
	assert_int_equal(store_info(s).segments, 1);
	pthread_barrier_destroy(&barrier);
	assert_ok(pv_close(s));
}

/* ---- a hash map ---- */

struct item {
	uint64_t key;
	uint64_t value;
};

static const void *item_key(const void *entry, size_t *bytes)
{
	*bytes = 8;
	return &((const struct item *)entry)->key;
}

static struct pv_map *map_open(struct pv_store *s, pv_type_t *type)
{
	static const struct pv_typedef item = PV_TYPE_PLAIN(struct item, "item", 1);
	const struct pv_map_options o = {.size = sizeof(o), .key = item_key};
	struct pv_map *map;

	assert_ok(pv_type_register(s, &item, type));
	assert_ok(pv_map_open(s, "map", &o, &map));
	return map;
}

static void a_map_is_opened_again(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct pv_compact_report r;
	pv_type_t type;
	struct pv_map *map = map_open(s, &type);
	uint64_t problems, n = 40000;
	uint32_t segments;

	for (uint64_t i = 0; i < n; i++) {
		struct item *item = reserve_ok(s, type, sizeof(*item));

		*item = (struct item){i, i * 3};
		assert_ok(pv_map_put(map, pv_map_hash(map, &i, 8), item, 0));
	}
	for (uint64_t i = 0; i < n; i++)
		if (i % 50)
			assert_ok(pv_map_remove(map, pv_map_hash(map, &i, 8), &i, 8));
	segments = store_info(s).segments;
	pv_map_close(map);
	r = compact(s, 0);
	assert_true(r.objects_moved > 100);
	assert_true(store_info(s).segments < segments);
	for (int round = 0; round < 2; round++) {
		map = map_open(s, &type);
		assert_int_equal(pv_map_count(map), n / 50);
		assert_ok(pv_map_check(map, NULL, NULL, &problems));
		assert_int_equal(problems, 0);
		for (uint64_t i = 0; i < n; i++) {
			const struct item *item = pv_map_find(map, pv_map_hash(map, &i, 8), &i, 8);

			if (i % 50)
				assert_null(item);
			else
				assert_int_equal(item->value, i * 3);
		}
		pv_map_close(map);
		keeper_crash(k, &s);
		assert_ok(store_try(k, &o, PV_COMPACT, &s));
	}
	assert_ok(pv_close(s));
}

/* By pv_open(), right after the crash of a store that has grown and been emptied. */
static void on_attach(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = growing_options(k);
	struct pv_store *s = store_create(k, &o);
	struct model m = {0};

	model_attach(&m, s);
	for (int i = 0; i < CELLS; i++)
		model_add(&m, i, 5000, i % 2, 16);
	for (int i = 0; i < CELLS - 8; i++)
		model_free(&m, i);
	assert_true(store_info(s).segments >= 3);
	keeper_crash(k, &s);
	assert_ok(store_try(k, &o, PV_COMPACT, &s));
	assert_int_equal(store_info(s).segments, 1);
	model_attach(&m, s);
	model_check(&m);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(sparse_slabs_are_merged),
		with_keeper(random_stores_keep_their_graph),
		with_keeper(pinned_objects_stay),
		with_keeper(what_stands_in_the_way_is_said),
		with_keeper(a_full_store),
		with_keeper(tables_in_another_segment),
		with_keeper(threads_stand_still_and_go_on),
		with_keeper(a_map_is_opened_again),
		with_keeper(on_attach),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
