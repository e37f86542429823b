/* SPDX-License-Identifier: BSD-3-Clause */
/* A move that was committed and not finished, as pv_open() finds it: it finishes it, unless anything about it makes
 * no sense; then it says what, and changes nothing. And what upgrades need of moves: other types, other
 * sizes, no references into the middle. */
#include "internal.h"
#include "move.h"
#include "support.h"

#define OBJECTS 12

struct setting {
	struct keeper *k;
	struct pv_options o;
	struct pv_store *s;
	struct word *root;
	pv_type_t words;
	pv_type_t bytes;
	struct word *list[OBJECTS]; /* as it was */
};

static const size_t sizes[OBJECTS] = {64, 64, 64, 40000, 64, 200, 64, 50000, 64, 64, 200, 64};

/* A list of words of several sizes, the last of which point into the middle of the one before. */
static struct setting begin(struct keeper *k)
{
	struct setting t = {.k = k, .o = small_options(k)};

	t.o.window_bytes = 1 << 28;
	t.o.segment_bytes = 1 << 18;
	t.s = store_create(k, &t.o);
	t.words = store_word_type(t.s);
	t.bytes = store_bytes_type(t.s, "bytes");
	t.root = store_root(t.s);
	for (int i = 0; i < OBJECTS; i++) {
		t.list[i] = reserve_ok(t.s, t.words, sizes[i]);
		*t.list[i] = (struct word){t.root->next, (uint64_t)i};
		pattern_fill(t.list[i] + 1, sizes[i] - sizeof(struct word), (uint64_t)i);
		assert_ok(pv_link(t.s, t.list[i], &t.root->next));
	}
	return t;
}

static void check_list(struct setting *t)
{
	struct word *w = store_root(t->s)->next;

	for (int i = OBJECTS; i-- > 0; w = w->next) {
		assert_non_null(w);
		assert_int_equal(w->value, i);
		assert_true(pattern_holds(w + 1, sizes[i] - sizeof(*w), (uint64_t)i));
	}
	assert_null(w);
	assert_int_equal(store_sound(t->s).live_objects, OBJECTS + 1);
}

static void forget(struct keeper *k)
{
	while (k->n)
		keeper_drop(k, k->tokens[0]);
}

/* Nothing is left of what a move had reserved. */
static void check_nothing_reserved(struct pv_store *s)
{
	assert_ok(pv_trim(s, NULL)); /* slots that are held ready count too */
	assert_int_equal(store_sound(s).reserved_objects, 0);
}

/* Every object is to move, and the root. */
static struct pvi_move *move_all(struct setting *t, uint32_t purpose, pv_type_t type, size_t more)
{
	struct pvi_move *m;

	assert_ok(pvi_move_begin(t->s, purpose, &m));
	for (int i = 0; i <= OBJECTS; i++) {
		struct word *old = i == OBJECTS ? t->root : t->list[i];
		void *fresh = reserve_ok(t->s, type, (i == OBJECTS ? sizeof(*old) : sizes[i]) + more);

		pvi_move_copy(m, fresh, old);
		assert_ok(pvi_move_add(m, old, fresh));
	}
	return m;
}

/* What pvi_move_commit() does up to the instant at which the move is in force. */
static void put_in_force(struct setting *t, struct pvi_move *m)
{
	uint64_t generation;

	assert_ok(pvi_move_write_tables(m));
	assert_ok(pvi_index_stage(&t->s->index, 0, &generation));
	pvi_index_commit(&t->s->index, generation);
}

static void the_next_process_finishes_it(void **state)
{
	for (uint32_t round = 0; round < 4; round++) {
		struct setting t = begin(*state);
		uint32_t purpose = round % 2 ? PV_MOVE_UPGRADE : PV_MOVE_COMPACT;
		struct pvi_move *m = move_all(&t, purpose, t.words, 0);
		uint64_t root = (uintptr_t)t.root;

		assert_ok(pvi_move_settle(m));
		put_in_force(&t, m);
		pvi_move_free(m);
		free(m);
		keeper_crash(t.k, &t.s);
		assert_fails(store_try(t.k, &t.o, PV_RDONLY, &t.s), -EBUSY, "open it for writing");
		/* Elsewhere: first the move, among the old addresses, then the relocation. */
		t.o.relocate = round < 2 ? PV_RELOCATE_AUTO : PV_RELOCATE_ALWAYS;
		t.s = store_attach(t.k, &t.o);
		t.o.relocate = PV_RELOCATE_NEVER;
		assert_int_equal(store_info(t.s).recovered, 1);
		assert_true((uintptr_t)store_root(t.s) != root);
		check_list(&t);
		assert_ok(pv_close(t.s));
		assert_ok(store_try(t.k, &t.o, PV_RDONLY, &t.s));
		check_list(&t);
		assert_ok(pv_close(t.s));
		forget(t.k);
	}
}

/* Of each: what is done to the move, and what the message says. */
static void swap(struct pvi_move *m)
{
	struct move_rec r = m->recs[2];

	m->recs[2] = m->recs[5];
	m->recs[5] = r;
}
static void twice(struct pvi_move *m)
{
	m->recs[3] = m->recs[2];
}
static void old_outside(struct pvi_move *m)
{
	m->recs[m->n - 1].old_off = 1ull << 40;
}
static void new_outside(struct pvi_move *m)
{
	m->recs[0].new_off = m->s->window_bytes + 64;
}
static void new_in_header(struct pvi_move *m)
{
	m->recs[0].new_off = m->s->segments[0].off;
}
static void new_in_slot(struct pvi_move *m)
{
	m->recs[1].new_off += 16;
}
static void new_is_old(struct pvi_move *m)
{
	m->recs[0].new_off = m->recs[1].old_off;
	m->recs[0].new_rec = m->recs[1].old_rec;
}
static void other_class(struct pvi_move *m)
{
	m->recs[0].new_rec ^= 1ull << PV_PAGE_CLASS_SHIFT;
}
static void kind_free(struct pvi_move *m)
{
	m->recs[0].old_rec = pvi_rec_free(1);
}
static void kind_other(struct pvi_move *m)
{
	m->recs[0].new_rec = PV_PAGE_OTHER | 5ull << PV_OTHER_BACK_SHIFT;
}
static struct move_rec *extent(struct pvi_move *m)
{
	for (uint64_t i = 0; i < m->n; i++)
		if (pvi_page_kind(m->recs[i].old_rec) == PV_PAGE_EXTENT)
			return &m->recs[i];
	fail();
	return NULL;
}
static void longer_extent(struct pvi_move *m)
{
	extent(m)->new_rec += 1ull << PV_EXTENT_PAGES_SHIFT;
}
static void extent_over_others(struct pvi_move *m)
{
	extent(m)->new_off = extent(m)->old_off + (1ull << m->s->page_shift);
}
static void extent_of_no_type(struct pvi_move *m)
{
	extent(m)->new_rec = extent(m)->old_rec =
		pvi_rec_extent(77, pvi_rec_extent_pages(extent(m)->old_rec), 0);
}
/* These change what the index says. */
static void checksum(struct pvi_move *m)
{
	m->s->index.move.checksum++;
}
static void table_in_slab(struct pvi_move *m)
{
	m->s->index.move.tables[0].off = m->recs[0].old_off;
}
static void table_outside(struct pvi_move *m)
{
	m->s->index.move.tables[0].off = m->s->window_bytes - 64;
}
static void table_odd(struct pvi_move *m)
{
	m->s->index.move.tables[0].off++;
}
static void table_huge(struct pvi_move *m)
{
	m->s->index.move.tables[0].objects = UINT64_MAX / 32 + 2;
}
static void table_empty(struct pvi_move *m)
{
	m->s->index.move.tables[0].objects = 0;
}
static void count(struct pvi_move *m)
{
	m->s->index.move.objects++;
}
static void purpose(struct pvi_move *m)
{
	m->s->index.move.purpose = 9;
}
static void no_table(struct pvi_move *m)
{
	m->s->index.move.ntables = 0;
}
static void lane(struct pvi_move *m)
{
	m->s->lanes[0].count = 1;
	m->s->lanes[0].actions[0].where = pvi_lane_where(PV_DO_WORD, m->recs[0].old_off);
}

static const struct {
	void (*change)(struct pvi_move *m);
	bool index; /* after the tables were written */
	const char *message;
} hostile[] = {
	{swap, false, "out of order"},
	{twice, false, "out of order"},
	{old_outside, false, "no object can be"},
	{new_outside, false, "no object can move"},
	{new_in_header, false, "no object can move"},
	{new_in_slot, false, "no object can move"},
	{new_is_old, false, "no object can move"},
	{other_class, false, "no object can move"},
	{kind_free, false, "no object can be"},
	{kind_other, false, "no object can move"},
	{longer_extent, false, "size change"},
	{extent_over_others, false, "no object can move"},
	{extent_of_no_type, false, "no object can be"},
	{checksum, true, "checksum"},
	{table_in_slab, true, "free pages"},
	{table_outside, true, "free pages"},
	{table_odd, true, "free pages"},
	{table_huge, true, "out of range"},
	{table_empty, true, "out of range"},
	{count, true, "the tables have 13 objects"},
	{purpose, true, "purpose"},
	{no_table, true, "tables"},
	{lane, true, "lane 0 is not idle"},
};

static uint64_t image_sum(struct keeper *k)
{
	uint64_t sum = 0;

	for (unsigned int i = 0; i < k->n; i++) {
		size_t bytes;
		uint8_t *p = memfd_map(k->fds[i], &bytes);

		/* What the lock's owner notes for the message of -EBUSY is no content. */
		for (size_t b = 0; b < bytes; b += 8)
			if (k->tokens[i] || b != offsetof(struct index_rec, writer_pid))
				sum = (sum ^ *(uint64_t *)(void *)(p + b)) * 0x9e3779b97f4a7c15ull;
		memfd_unmap(p, bytes);
	}
	return sum;
}

static void what_makes_no_sense_is_refused(void **state)
{
	for (size_t i = 0; i < sizeof(hostile) / sizeof(hostile[0]); i++) {
		struct setting t = begin(*state);
		struct pvi_move *m = move_all(&t, PV_MOVE_COMPACT, t.words, 0);
		uint64_t generation, sum;

		assert_ok(pvi_move_settle(m));
		if (!hostile[i].index)
			hostile[i].change(m);
		assert_ok(pvi_move_write_tables(m));
		if (hostile[i].index)
			hostile[i].change(m);
		assert_ok(pvi_index_stage(&t.s->index, 0, &generation));
		pvi_index_commit(&t.s->index, generation);
		pvi_move_free(m);
		free(m);
		keeper_crash(t.k, &t.s);
		sum = image_sum(t.k);
		assert_fails(store_try(t.k, &t.o, 0, &t.s), -EBADMSG, hostile[i].message);
		assert_true(image_sum(t.k) == sum);
		forget(t.k);
	}
}

/* Words changed at random in what the move goes by: it is refused, or finished; nobody crashes. */
static void damage_anywhere(void **state)
{
	uint64_t rnd = random_seed_from_env("damage_anywhere");
	unsigned int refused = 0, finished = 0;
	struct keeper damaged = {0};

	for (uint32_t purpose = PV_MOVE_COMPACT; purpose <= PV_MOVE_UPGRADE; purpose++) {
		struct setting t = begin(*state);
		struct pvi_move *m = move_all(&t, purpose, t.words, 0);

		assert_ok(pvi_move_settle(m));
		put_in_force(&t, m);
		pvi_move_free(m);
		free(m);
		keeper_crash(t.k, &t.s);
		for (int i = 0; i < 600; i++) {
			struct pv_check_report report;
			unsigned int token = 1 + (unsigned int)random_below(&rnd, t.k->n - 1);
			size_t bytes, in;
			uint8_t *p;

			keeper_init(&damaged);
			keeper_copy(&damaged, t.k);
			p = memfd_map(keeper_fd(&damaged, token), &bytes);
			/* Page maps, lanes and the first slabs, mostly. */
			in = random_below(&rnd, random_below(&rnd, 4) ? 32768 : bytes / 8 * 8) / 8 * 8;
			*(uint64_t *)(void *)(p + in) ^= random_below(&rnd, 2) ? 1ull << random_below(&rnd, 64)
										: random_next(&rnd);
			memfd_unmap(p, bytes);
			t.o.flags = 0;
			if (store_try(&damaged, &t.o, 0, &t.s)) {
				refused++;
			} else {
				finished++;
				assert_ok(pv_check(t.s, NULL, &report));
				assert_ok(pv_close(t.s));
			}
			keeper_free(&damaged);
		}
		forget(t.k);
	}
	print_message("%u refused, %u finished\n", refused, finished);
	assert_true(refused > 10 && finished > 50);
}

/* Objects that become larger, of another type, slots that become extents: as an upgrade does it. */
static void to_another_type(void **state)
{
	static const size_t more[] = {16, 100, 40000};

	for (size_t n = 0; n < 3; n++) {
		struct setting t = begin(*state);
		struct pv_typedef def = store_word;
		struct pvi_move *m;
		pv_type_t type;
		struct word *w;

		def.name = "word-2";
		assert_ok(pv_type_register(t.s, &def, &type));
		m = move_all(&t, PV_MOVE_UPGRADE, type, more[n]);
		assert_ok(pvi_move_commit(m));
		t.words = type;
		for (int round = 0; round < 2; round++) {
			void *root = NULL;

			assert_ok(pv_root(t.s, "root", type, sizeof(struct word), &root, NULL));
			w = root;
			for (int i = OBJECTS; i-- > 0;) {
				w = w->next;
				assert_int_equal(w->value, i);
				assert_true(pv_usable_bytes(t.s, w) >= sizes[i] + more[n]);
				assert_true(pattern_holds(w + 1, sizes[i] - sizeof(*w), (uint64_t)i));
			}
			assert_null(w->next);
			assert_int_equal(store_sound(t.s).live_objects, OBJECTS + 1);
			keeper_crash(t.k, &t.s);
			t.s = store_attach(t.k, &t.o);
		}
		assert_ok(pv_close(t.s));
		forget(t.k);
	}
}

static void a_reference_into_the_middle(void **state)
{
	struct setting t = begin(*state);
	struct pvi_move *m;
	void *middle = (uint8_t *)t.list[3] + 20000, *start = t.list[3];
	struct word *from = t.list[4];

	assert_ok(pv_publish(t.s, &PV_STORE(&from->next, (uintptr_t)middle), 1));
	/* It keeps its distance. */
	m = move_all(&t, PV_MOVE_COMPACT, t.words, 0);
	assert_ok(pvi_move_commit(m));
	for (from = store_root(t.s)->next; from->value != 4; from = from->next)
		;
	assert_true((uint8_t *)from->next != middle);
	assert_true(pattern_holds((uint8_t *)from->next - 20000 + sizeof(struct word),
				  sizes[3] - sizeof(struct word), 3));
	assert_ok(pv_publish(t.s, &PV_STORE(&from->next, (uintptr_t)from->next - 20000), 1));
	check_list(&t);
	(void)start;
	assert_ok(pv_close(t.s));
}

static void a_move_that_is_given_up(void **state)
{
	struct setting t = begin(*state);
	struct pvi_move *m = move_all(&t, PV_MOVE_COMPACT, t.words, 0);

	pvi_move_cancel(m);
	check_list(&t);
	assert_ok(pvi_move_begin(t.s, PV_MOVE_COMPACT, &m));
	assert_ok(pvi_move_commit(m)); /* nothing to do */
	m = move_all(&t, PV_MOVE_COMPACT, t.words, 0);
	assert_ok(pvi_move_add(m, t.list[0], reserve_ok(t.s, t.words, 64)));
	assert_fails(pvi_move_commit(m), -EINVAL, "twice");
	check_list(&t);
	check_nothing_reserved(t.s);
	assert_ok(pv_close(t.s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(the_next_process_finishes_it),
		with_keeper(what_makes_no_sense_is_refused),
		with_keeper(damage_anywhere),
		with_keeper(to_another_type),
		with_keeper(a_reference_into_the_middle),
		with_keeper(a_move_that_is_given_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
