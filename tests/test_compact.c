/* SPDX-License-Identifier: BSD-3-Clause */
/* Compaction: objects of all kinds and sizes, with pointers to their starts and middles, are where their pointers
 * lead afterwards, whatever was freed between them; and the store has become as small as was said. */
#include <pthread.h>
#include <sys/stat.h>

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

static uint64_t kept_bytes(const struct keeper *k)
{
	uint64_t blocks = 0;
	struct stat st;

	for (unsigned int i = 0; i < k->n; i++) {
		assert_int_equal(fstat(k->fds[i], &st), 0);
		blocks += (uint64_t)st.st_blocks;
	}
	return blocks * 512;
}

static struct pv_compact_report compact(struct pv_store *s, uint32_t flags)
{
	struct pv_compact_options o = {.size = sizeof(o), .flags = flags};
	struct pv_compact_report r;

	assert_ok(pv_compact(s, &o, &r));
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
			model_add(m, i, sizes[random_below(rnd, 12)], random_below(rnd, 2), 16);
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
	before = kept_bytes(k);
	dry = compact(s, PV_COMPACT_DRY_RUN);
	assert_int_equal(store_info(s).segments, dry.segments_returned + 1);
	r = compact(s, 0);
	assert_int_equal(store_info(s).segments, 1);
	assert_int_equal(r.segments_returned, dry.segments_returned);
	assert_int_equal(r.segments_bytes, dry.segments_bytes);
	assert_int_equal(r.slabs_returned, dry.slabs_returned);
	assert_int_equal(r.pages_bytes, dry.pages_bytes);
	assert_in_range(r.objects_moved, 1, 150 - 1);
	assert_int_equal(r.memory_bytes, before - kept_bytes(k));
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(sparse_slabs_are_merged),
		with_keeper(random_stores_keep_their_graph),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
