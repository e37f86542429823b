/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pv_check() of what a crash leaves in the lanes: through a read-only handle it is pending, and said to
 * be; nothing of it is a problem that the next attach for writing solves.
 */
#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

#define EXTENT_BYTES 40000u

static struct pv_check_report read_only_check(struct keeper *k)
{
	struct pv_check_report r;
	struct pv_store *s = NULL;

	assert_ok(store_try(k, NULL, PV_RDONLY, &s));
	assert_ok(pv_check(s, NULL, &r));
	assert_ok(pv_close(s));
	return r;
}

/* What a crash left is pending, and the next attach does it. */
static struct pv_store *recovered(struct keeper *k, uint64_t intents, uint64_t transactions)
{
	struct pv_check_report r = read_only_check(k);
	struct pv_store *s;

	assert_int_equal(r.problems, 0);
	assert_int_equal(r.intents, intents);
	assert_int_equal(r.transactions, transactions);
	s = store_attach(k, NULL);
	assert_int_equal(store_info(s).recovered, intents + transactions);
	r = store_sound(s);
	assert_int_equal(r.intents, 0);
	assert_int_equal(r.transactions, 0);
	return s;
}

static void pending_intent(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct word *root = store_root(s);
	struct lane_rec *lane = &s->lanes[1];
	struct pv_check_report r;

	lane->actions[0].where = pvi_lane_where(PV_DO_WORD, (uintptr_t)&root->value - s->base);
	lane->actions[0].value = 77;
	lane->count = 1;
	/* Nothing is under way in this process. */
	assert_ok(pv_check(s, NULL, &r));
	assert_int_equal(r.problems, 1);
	assert_int_equal(r.intents, 1);
	keeper_crash(k, &s);
	s = recovered(k, 1, 0);
	assert_int_equal(store_root(s)->value, 77);
	assert_ok(pv_close(s));
}

/* An intent that cannot be done: the next attach would refuse, and that is a problem. */
static void pending_nonsense(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);

	s->lanes[0].count = PV_LANE_ACTIONS + 9;
	keeper_crash(k, &s);
	assert_int_equal(read_only_check(k).problems, 1);
	assert_fails(store_try(k, NULL, 0, &s), -EBADMSG, "40 actions");
}

/* An extent that was being published: the entries behind its head are written, the head is not. */
static uint64_t half_an_extent(struct pv_store *s, struct action_rec *a)
{
	uint8_t *p = reserve_ok(s, store_bytes_type(s, "bytes"), EXTENT_BYTES);
	uint64_t off = (uintptr_t)p - s->base, rec = pvi_rec_extent(1, 10, 0);
	struct pvi_segment *seg = pvi_store_segment(s, off);
	uint32_t page = (uint32_t)((off - seg->off) >> s->page_shift);

	a->where = pvi_lane_where(PV_DO_PAGES, off);
	a->value = rec;
	pvi_lane_apply_pages(s, seg, page, rec);
	for (uint32_t i = 0; i < 5; i++)
		seg->map[page + i] = 0;
	return off;
}

static void half_written_pages(void **state)
{
	struct keeper *k = *state;
	struct pv_options o = small_options(k);
	struct pv_store *s = store_create(k, NULL);
	struct lane_rec *lane = &s->lanes[1];
	uint64_t off;

	store_word_type(s);
	off = half_an_extent(s, &lane->actions[0]);
	lane->count = 1;
	keeper_crash(k, &s);
	s = recovered(k, 1, 0);
	assert_int_equal(pv_usable_bytes(s, (uint8_t *)s->base + off), 10 * 4096);
	assert_ok(pv_close(s));
	/* The same as a transaction that was being committed. */
	s = store_attach(k, NULL);
	lane = &s->lanes[1];
	off = half_an_extent(s, (struct action_rec *)(void *)lane->log);
	((uint64_t *)(void *)lane->log)[2] = sizeof(struct action_rec) + 8;
	lane->tx = PV_TX_COMMITTED | (sizeof(struct action_rec) + 8) << PV_TX_END_SHIFT;
	keeper_crash(k, &s);
	s = recovered(k, 0, 1);
	assert_int_equal(pv_usable_bytes(s, (uint8_t *)s->base + off), 10 * 4096);
	/* And with nothing that would finish it. */
	half_an_extent(s, &s->lanes[1].actions[0]);
	keeper_crash(k, &s);
	assert_int_equal(read_only_check(k).problems, 5);
	o.relocate = PV_RELOCATE_NEVER; /* which would be refused */
	s = store_attach(k, &o);
	assert_ok(pv_close(s));
}

static void open_transaction(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	struct word *root = store_root(s);

	root->value = 1;
	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_add(s, &root->value, 8));
	root->value = 2;
	assert_int_equal(store_sound(s).transactions, 1);
	keeper_crash(k, &s);
	s = recovered(k, 0, 1);
	assert_int_equal(store_root(s)->value, 1);
	assert_ok(pv_close(s));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(pending_intent),
		with_keeper(pending_nonsense),
		with_keeper(half_written_pages),
		with_keeper(open_transaction),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
