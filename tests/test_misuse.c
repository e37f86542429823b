/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pointers, states and actions that have to be refused: with the documented error, and every byte
 * of the store as it was.
 */
#include <pthread.h>

#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

/** The bytes of a store that may not change: everything but lanes and the index. */
struct snapshot {
	uint8_t *bytes[8];
};

static void snapshot_take(struct snapshot *snap, const struct pv_store *s)
{
	for (uint32_t i = 0; i < s->nsegments; i++) {
		const struct pvi_segment *seg = &s->segments[i];

		snap->bytes[i] = malloc(seg->bytes);
		assert_non_null(snap->bytes[i]);
		memcpy(snap->bytes[i], seg->addr, seg->bytes);
	}
}

static void snapshot_check(struct snapshot *snap, const struct pv_store *s)
{
	for (uint32_t i = 0; i < s->nsegments; i++) {
		const struct pvi_segment *seg = &s->segments[i];
		size_t map = PV_MAP_OFF + 8ul * seg->npages;
		size_t pages = (size_t)seg->first_page << s->page_shift;

		assert_memory_equal(snap->bytes[i], seg->addr, map);
		assert_memory_equal(snap->bytes[i] + pages, seg->addr + pages, seg->bytes - pages);
		free(snap->bytes[i]);
	}
}

/* A FREE slot in the same slab as an object, which no magazine holds. */
static void *free_slot(const struct pv_store *s, void *object)
{
	uint64_t off = (uintptr_t)object - s->base, rec = 0;
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	uint8_t *byte = pvi_slab_slot(s, seg, off - seg->off, &rec);

	assert_non_null(byte);
	for (uint32_t n = 1;; n++)
		if (byte[n] == PV_SLOT_FREE)
			return (uint8_t *)object + n * s->classes[pvi_rec_class(rec)].slot_bytes;
}

/* A slot that a magazine holds, in the same slab. */
static void *held_slot(const struct pv_store *s, void *object)
{
	uint64_t off = (uintptr_t)object - s->base, rec = 0;
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	uint8_t *byte = pvi_slab_slot(s, seg, off - seg->off, &rec);

	assert_non_null(byte);
	for (uint32_t n = 1;; n++)
		if (byte[n] == PV_SLOT_HELD)
			return (uint8_t *)object + n * s->classes[pvi_rec_class(rec)].slot_bytes;
}

/* The place in a slab where its header lies. */
static void *slab_header(const struct pv_store *s, void *object)
{
	uint64_t off = (uintptr_t)object - s->base, rec = 0;
	const struct pvi_segment *seg = pvi_store_segment(s, off);
	uint64_t seg_off = off - seg->off;

	assert_non_null(pvi_slab_slot(s, seg, seg_off, &rec));
	return seg->addr + (seg_off >> s->page_shift << s->page_shift) + pvi_rec_meta(rec);
}

enum kind { DEAD, RESERVED, LIVE };

/* No operation that wants another state takes it, alone, or with others that could be done. */
static void refuse(struct pv_store *s, struct cells *t, const char *what, void *p, enum kind kind)
{
	struct snapshot snap;
	struct pv_action store = PV_STORE(&t->cells[CELLS - 1], 1);

	print_message("  %s\n", what);
	t->cells[CELLS - 2] = p;
	snapshot_take(&snap, s);
	if (kind != RESERVED) {
		assert_fails(pv_link(s, p, &t->cells[CELLS - 1]), -EINVAL, "");
		assert_fails(pv_cancel(s, p), -EINVAL, "");
		assert_fails(pv_publish(s, &PV_LIVE(p), 1), -EINVAL, "");
		assert_fails(pv_publish(s, (struct pv_action[]){PV_LIVE(p), store}, 2), -EINVAL,
			     "");
		assert_fails(pv_publish(s, (struct pv_action[]){store, PV_LIVE(p)}, 2), -EINVAL,
			     "");
	}
	if (kind != LIVE) {
		assert_fails(pv_unlink(s, &t->cells[CELLS - 1], 1, p), -EINVAL, "");
		assert_fails(pv_free(s, &t->cells[CELLS - 2]), -EINVAL, "");
		assert_fails(pv_realloc(s, &t->cells[CELLS - 2], 100), -EINVAL, "");
		assert_fails(pv_realloc(s, &t->cells[CELLS - 2], 100000), -EINVAL, "");
		assert_fails(pv_publish(s, &PV_FREE(p), 1), -EINVAL, "");
		assert_fails(pv_publish(s, (struct pv_action[]){store, PV_FREE(p)}, 2), -EINVAL,
			     "");
	}
	if (kind == DEAD)
		assert_int_equal(pv_usable_bytes(s, p), 0);
	else
		assert_int_not_equal(pv_usable_bytes(s, p), 0);
	/* In any state: twice, and beside itself in the other role. */
	assert_fails(pv_replace(s, p, &t->cells[CELLS - 1], p), -EINVAL, "");
	assert_fails(pv_publish(s, (struct pv_action[]){PV_LIVE(p), store, PV_LIVE(p)}, 3), -EINVAL,
		     "");
	assert_fails(pv_publish(s, (struct pv_action[]){PV_FREE(p), PV_FREE(p)}, 2), -EINVAL, "");
	assert_fails(pv_publish(s, (struct pv_action[]){PV_LIVE(p), store, PV_FREE(p)}, 3), -EINVAL,
		     "");
	assert_fails(pv_publish(s, (struct pv_action[]){PV_FREE(p), PV_LIVE(p)}, 2), -EINVAL, "");
	snapshot_check(&snap, s);
	store_records_sound(s);
}

static void wrong_pointers(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	uint8_t *live = publish_ok(s, type, 100, (void **)&t->cells[0]);
	uint8_t *large = publish_ok(s, type, 3000, (void **)&t->cells[1]);
	uint8_t *extent = publish_ok(s, type, 40000, (void **)&t->cells[2]);
	uint8_t *base = (uint8_t *)s->base;
	void *heap = malloc(64);

	refuse(s, t, "null", NULL, DEAD);
	refuse(s, t, "on the stack", &live, DEAD);
	refuse(s, t, "from malloc", heap, DEAD);
	refuse(s, t, "before the window", base - 16, DEAD);
	refuse(s, t, "the index", base, DEAD);
	refuse(s, t, "the header", base + 65536, DEAD);
	refuse(s, t, "the page map", base + 65536 + PV_MAP_OFF, DEAD);
	refuse(s, t, "a lane", s->lanes, DEAD);
	refuse(s, t, "no segment", base + s->window_bytes - 65536, DEAD);
	refuse(s, t, "the window's end", base + s->window_bytes, DEAD);
	refuse(s, t, "the end of the addresses", (void *)~15ull, DEAD);
	refuse(s, t, "the address 1", (void *)1, DEAD);
	refuse(s, t, "one byte in", live + 1, DEAD);
	refuse(s, t, "a word in", live + 8, DEAD);
	refuse(s, t, "sixteen bytes in", live + 16, DEAD);
	refuse(s, t, "far in", large + 2048, DEAD);
	refuse(s, t, "in an extent", extent + 16, DEAD);
	refuse(s, t, "second page of an extent", extent + 4096, DEAD);
	refuse(s, t, "last page of an extent", extent + 9 * 4096, DEAD);
	refuse(s, t, "a slab's header", slab_header(s, live), DEAD);
	refuse(s, t, "behind the slots of a slab", slab_header(s, large), DEAD);
	refuse(s, t, "never reserved", free_slot(s, live), DEAD);
	refuse(s, t, "held ready", held_slot(s, live), DEAD);
	refuse(s, t, "a free page", extent + 10 * 4096, DEAD);
	refuse(s, t, "live", live, LIVE);
	refuse(s, t, "live and large", large, LIVE);
	refuse(s, t, "live extent", extent, LIVE);
	assert_int_equal(store_records_sound(s).live_objects, 4);
	free(heap);
	assert_ok(pv_close(s));
}

static void wrong_states(void **state)
{
	static const size_t sizes[] = {100, 3000, 40000};
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	void *p, *q;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		print_message("%zu bytes\n", sizes[i]);
		p = reserve_ok(s, type, sizes[i]);
		refuse(s, t, "reserved", p, RESERVED);
		assert_ok(pv_cancel(s, p));
		refuse(s, t, "cancelled", p, DEAD);
		p = publish_ok(s, type, sizes[i], &t->cells[0]);
		refuse(s, t, "live", p, LIVE);
		assert_ok(pv_free(s, &t->cells[0]));
		refuse(s, t, "freed", p, DEAD);
		/* Whatever was tried: no slot was taken twice. */
		p = reserve_ok(s, type, sizes[i]);
		q = reserve_ok(s, type, sizes[i]);
		assert_ptr_not_equal(p, q);
		assert_ok(pv_cancel(s, p));
		assert_ok(pv_cancel(s, q));
		/* Reserved by a process that is gone. */
		p = reserve_ok(s, type, sizes[i]);
		keeper_crash(k, &s);
		s = store_attach(k, NULL);
		t = store_moved(s, t);
		/* The first look at a slab tidies it, which is a change. */
		assert_int_equal(pv_usable_bytes(s, p), 0);
		refuse(s, t, "reserved before the crash", p, DEAD);
	}
	assert_ok(pv_close(s));
}

static void wrong_actions(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	uint8_t *live = publish_ok(s, type, 100, (void **)&t->cells[0]);
	uint8_t *base = (uint8_t *)s->base;
	struct snapshot snap;
	void *p = reserve_ok(s, type, 100), *q = reserve_ok(s, type, 100);
	struct {
		struct pv_action a;
		const char *says;
	} bad[] = {
		{{.op = 0, .target = live}, "action 0 is unknown"},
		{{.op = 99, .target = live}, "action 99 is unknown"},
		{{.op = PV_ACTION_RETIRE, .target = live}, "no flavour"},
		{{.op = 0xffffffff, .target = live}, "action 4294967295 is unknown"},
		{PV_STORE(live + 1, 1), "not an aligned word"},
		{PV_STORE(live + 4, 1), "not an aligned word"},
		{PV_STORE(NULL, 1), "not an aligned word"},
		{PV_STORE(&p, 1), "not an aligned word"},
		{PV_STORE(base, 1), "not an aligned word"},
		{PV_STORE(base + 65536, 1), "not an aligned word"},
		{PV_STORE(base + 65536 + PV_MAP_OFF, 1), "not an aligned word"},
		{PV_STORE(s->lanes, 1), "not an aligned word"},
		{PV_STORE(base - 8, 1), "not an aligned word"},
		{PV_STORE(base + s->segments[0].off + s->segments[0].bytes, 1), "aligned word"},
		{PV_STORE(base + s->window_bytes - 8, 1), "not an aligned word"},
		{PV_STORE(base + s->window_bytes, 1), "not an aligned word"},
		{PV_STORE((void *)~7ull, 1), "not an aligned word"},
	};

	snapshot_take(&snap, s);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct pv_action b = bad[i].a, good = PV_STORE(&t->cells[5], 5);

		/* First, last, and where the short ways for the usual intents would take it. */
		assert_fails(pv_publish(s, &b, 1), -EINVAL, bad[i].says);
		assert_fails(pv_publish(s, (struct pv_action[]){good, b}, 2), -EINVAL, bad[i].says);
		assert_fails(pv_publish(s, (struct pv_action[]){PV_LIVE(p), b}, 2), -EINVAL,
			     bad[i].says);
		assert_fails(pv_publish(s, (struct pv_action[]){PV_LIVE(p), b, PV_FREE(live)}, 3),
			     -EINVAL, bad[i].says);
		assert_fails(
			pv_publish(s, (struct pv_action[]){PV_FREE(live), PV_LIVE(p), good, b}, 4),
			-EINVAL, bad[i].says);
	}
	assert_fails(pv_publish(s, (struct pv_action[]){PV_LIVE(p), PV_LIVE(q), PV_LIVE(p)}, 3),
		     -EINVAL, "stands twice");
	snapshot_check(&snap, s);
	/* Everything that took part is still what it was. */
	assert_ok(pv_publish(s, (struct pv_action[]){PV_LIVE(p), PV_LIVE(q), PV_FREE(live)}, 3));
	assert_int_equal(store_records_sound(s).live_objects, 3);
	assert_ok(pv_close(s));
}

/* ---- calls without a pointer to blame ---- */

/* Sizes and types for which there can be no object, and an object too many for the store. */
static void wrong_sizes_and_types(void **state)
{
	static const size_t aligns[] = {0, 3, 24, 65, 1 << 17, 1ull << 40, SIZE_MAX};
	static const struct pv_typedef pair_type = PV_TYPE_PLAIN(struct word, "pair", 1);
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct cells *t;
	struct snapshot snap;
	pv_type_t bytes, pair = 0;
	void *const mark = &snap;
	uint32_t segments;

	o.limit_bytes = 300000;
	s = store_create(k, &o);
	t = store_cells(s);
	bytes = store_bytes_type(s, "bytes");
	assert_ok(pv_type_register(s, &pair_type, &pair));
	t->cells[0] = mark;
	segments = store_info(s).segments;
	/* Before it fails, an allocation collects what threads hold ready. */
	assert_ok(pv_trim(s, NULL));
	snapshot_take(&snap, s);
	const struct {
		pv_type_t type;
		size_t bytes;
		int err;
		const char *says;
	} bad[] = {
		{bytes, 0, -EINVAL, "0 bytes"},
		{pair, 0, -EINVAL, "0 bytes"},
		{pair, 15, -EINVAL, "too few for type pair of 16"},
		{0, 16, -EINVAL, "type 0 is not registered"},
		{0, 100000, -EINVAL, "type 0 is not registered"},
		{pair + 1, 16, -EINVAL, "is not registered"},
		{PV_TYPES_MAX + 1, 16, -EINVAL, "is not registered"},
		{UINT32_MAX, 16, -EINVAL, "is not registered"},
		{bytes, 250000, -ENOSPC, "limit of 300000 bytes"},
		{bytes, (16 << 20) - 4096, -ENOSPC, "limit of 300000 bytes"},
		{bytes, 17 << 20, -ENOSPC, "do not fit into the store's window"},
		{bytes, SIZE_MAX - 4095, -ENOSPC, "do not fit into the store's window"},
		{bytes, SIZE_MAX, -ENOSPC, "do not fit into the store's window"},
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		void *p = mark;

		assert_fails(pv_reserve(s, bad[i].type, bad[i].bytes, &p), bad[i].err, bad[i].says);
		assert_ptr_equal(p, mark);
		assert_fails(pv_reserve_aligned(s, bad[i].type, bad[i].bytes, 1, &p), bad[i].err, "");
		assert_ptr_equal(p, mark);
		assert_fails(pv_alloc(s, bad[i].type, bad[i].bytes, &t->cells[0]), bad[i].err,
			     bad[i].says);
		assert_ok(pv_tx_begin(s));
		assert_fails(pv_tx_alloc(s, bad[i].type, bad[i].bytes, &p), bad[i].err, bad[i].says);
		assert_ptr_equal(p, mark);
		assert_ok(pv_tx_commit(s));
		assert_fails(pv_root(s, "new", bad[i].type, bad[i].bytes, &p, NULL), bad[i].err,
			     bad[i].says);
		assert_ptr_equal(p, mark);
	}
	for (size_t i = 0; i < sizeof(aligns) / sizeof(*aligns); i++) {
		void *p = mark;

		assert_fails(pv_reserve_aligned(s, bytes, 100, aligns[i], &p), -EINVAL, "align");
		assert_ptr_equal(p, mark);
	}
	snapshot_check(&snap, s);
	assert_int_equal(store_info(s).segments, segments);
	assert_int_equal(store_records_sound(s).live_objects, 1);
	assert_ok(pv_close(s));
}

/* One action more than a lane has room for. */
static void full_lane(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct cells *t = store_cells(s);
	pv_type_t type = store_bytes_type(s, "bytes");
	struct pv_action a[2 * PV_ACTIONS_MAX];
	struct snapshot snap;

	for (unsigned int i = 0; i < 2 * PV_ACTIONS_MAX; i += 2) {
		a[i] = PV_LIVE(reserve_ok(s, type, 100));
		a[i + 1] = PV_STORE(&t->cells[i], (uintptr_t)a[i].target);
	}
	snapshot_take(&snap, s);
	assert_fails(pv_publish(s, a, PV_ACTIONS_MAX + 1), -ENOSPC, "31 actions");
	assert_fails(pv_publish(s, a, 2 * PV_ACTIONS_MAX), -ENOSPC, "60 actions");
	assert_fails(pv_publish(s, a, UINT32_MAX), -ENOSPC, "the most is 30");
	snapshot_check(&snap, s);
	/* Every one of them can still be done. */
	assert_ok(pv_publish(s, a, PV_ACTIONS_MAX));
	assert_ok(pv_publish(s, a + PV_ACTIONS_MAX, PV_ACTIONS_MAX));
	assert_int_equal(store_records_sound(s).live_objects, 1 + PV_ACTIONS_MAX);
	assert_ok(pv_close(s));
}

/* pv_free() of what the pointer that it is given should not hold, or of a pointer that is nowhere. */
static void wrong_frees(void **state)
{
	struct keeper *k = *state, other;
	struct pv_store *s = store_create(k, NULL), *their;
	struct cells *t = store_cells(s), *theirs;
	pv_type_t type = store_bytes_type(s, "bytes");
	struct snapshot snap;
	void *local, *live;

	keeper_init(&other);
	their = store_create(&other, NULL);
	theirs = store_cells(their);
	live = local = publish_ok(s, type, 100, &t->cells[0]);
	publish_ok(their, store_bytes_type(their, "bytes"), 100, &theirs->cells[0]);
	t->cells[1] = (uint8_t *)live + 16;
	t->cells[2] = publish_ok(s, type, 100, &t->cells[3]);
	assert_ok(pv_free(s, &t->cells[3])); /* cell 2 still holds it */
	t->cells[4] = theirs->cells[0];
	t->cells[5] = &local;
	snapshot_take(&snap, s);
	assert_fails(pv_free(s, NULL), -EINVAL, "not an aligned word");
	assert_fails(pv_free(s, &local), -EINVAL, "not an aligned word");
	assert_fails(pv_free(s, (void **)((uintptr_t)&t->cells[0] + 4)), -EINVAL, "aligned word");
	assert_fails(pv_free(s, &theirs->cells[0]), -EINVAL, "not an aligned word");
	assert_fails(pv_free(s, &t->cells[1]), -EINVAL, "not the start of an object");
	assert_fails(pv_free(s, &t->cells[2]), -EINVAL, "is free, not live");
	assert_fails(pv_free(s, &t->cells[3]), -EINVAL, "not the start of an object"); /* null */
	assert_fails(pv_free(s, &t->cells[4]), -EINVAL, "not the start of an object");
	assert_fails(pv_free(s, &t->cells[5]), -EINVAL, "not the start of an object");
	assert_fails(pv_realloc(s, NULL, 100), -EINVAL, "not an aligned word");
	assert_fails(pv_realloc(s, &local, 100), -EINVAL, "not an aligned word");
	assert_fails(pv_realloc(s, &t->cells[0], 0), -EINVAL, "0 bytes are too few");
	assert_fails(pv_realloc(s, &t->cells[0], SIZE_MAX), -ENOSPC, "window");
	snapshot_check(&snap, s);
	assert_ok(pv_free(s, &t->cells[0]));
	assert_int_equal(store_records_sound(s).live_objects, 1);
	assert_int_equal(store_records_sound(their).live_objects, 2);
	assert_ok(pv_close(s));
	assert_ok(pv_close(their));
	keeper_free(&other);
}

/* ---- a transaction used by another thread ---- */

struct stranger {
	struct pv_store *s;
	struct cells *t;
	pv_type_t type;
	size_t refused;
};

static void *use_it(void *ctx)
{
	struct stranger *o = ctx;
	void *p;

	o->refused += pv_tx_depth(o->s) == 0;
	o->refused += pv_tx_add(o->s, o->t, 8) == -EINVAL;
	o->refused += pv_tx_alloc(o->s, o->type, 100, &p) == -EINVAL;
	o->refused += pv_tx_free(o->s, o->t->cells[0]) == -EINVAL;
	o->refused += pv_tx_commit(o->s) == -EINVAL;
	o->refused += pv_tx_abort(o->s) == -EINVAL;
	o->refused += strstr(pv_last_error(), "in no transaction") != NULL;
	return NULL;
}

static void transaction_of_another_thread(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct stranger o = {.s = s, .t = store_cells(s), .type = store_bytes_type(s, "bytes")};
	struct snapshot snap;
	pthread_t thread;
	void *p;

	publish_ok(s, o.type, 100, &o.t->cells[0]);
	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_add(s, &o.t->cells[1], 8));
	assert_ok(pv_tx_alloc(s, o.type, 100, &p));
	o.t->cells[1] = p;
	snapshot_take(&snap, s);
	assert_int_equal(pthread_create(&thread, NULL, use_it, &o), 0);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(o.refused, 7);
	snapshot_check(&snap, s);
	/* It has no part in it: it goes on. */
	assert_int_equal(pv_tx_depth(s), 1);
	assert_ok(pv_tx_free(s, o.t->cells[0]));
	assert_ok(pv_tx_commit(s));
	assert_int_equal(store_records_sound(s).live_objects, 2);
	assert_int_not_equal(pv_usable_bytes(s, p), 0);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(wrong_pointers),
		with_keeper(wrong_states),
		with_keeper(wrong_actions),
		with_keeper(wrong_sizes_and_types),
		with_keeper(full_lane),
		with_keeper(wrong_frees),
		with_keeper(transaction_of_another_thread),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
