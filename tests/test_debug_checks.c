/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Builds with -Ddebug-checks=true: what the fast paths take for granted is checked, so a slot byte that
 * a stray write has changed ends the process with a message and not with an object handed out twice.
 */
#include <signal.h>

#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

struct heap {
	struct pv_store *s;
	pv_type_t type;
	void *object; /* reserved */
	uint8_t *byte;
};

static struct heap heap_make(struct keeper *k)
{
	struct heap h = {.s = store_create(k, NULL)};
	uint64_t off, rec;
	struct pvi_segment *seg;

	h.type = store_bytes_type(h.s, "bytes");
	assert_ok(pv_reserve(h.s, h.type, 64, &h.object));
	off = (uint64_t)((uintptr_t)h.object - h.s->base);
	seg = pvi_store_segment(h.s, off);
	h.byte = pvi_slab_slot(h.s, seg, off - seg->off, &rec);
	assert_non_null(h.byte);
	assert_int_equal(*h.byte, PV_SLOT_RESERVED);
	return h;
}

/* Each of these runs in a child, with a store of its own. */

static int stray_live(void *ctx)
{
	struct keeper k;
	struct heap h;
	void *again;

	keeper_init(&k);
	h = heap_make(&k);
	assert_ok(pv_cancel(h.s, h.object));
	*h.byte = PV_SLOT_LIVE; /* while the magazine has it */
	return pv_reserve(h.s, h.type, 64, &again);
}

static int twice_kept(void *ctx)
{
	struct keeper k;
	struct heap h;

	keeper_init(&k);
	h = heap_make(&k);
	assert_ok(pv_cancel(h.s, h.object));
	*h.byte = PV_SLOT_RESERVED;
	return pv_cancel(h.s, h.object);
}

static int busy_lane(void *ctx)
{
	struct keeper k;
	struct heap h;

	keeper_init(&k);
	h = heap_make(&k);
	h.s->lanes[0].count = 1;
	return pv_publish(h.s, &PV_LIVE(h.object), 1);
}

static int nothing_wrong(void *ctx)
{
	struct keeper k;
	struct heap h;

	keeper_init(&k);
	h = heap_make(&k);
	assert_ok(pv_publish(h.s, &PV_LIVE(h.object), 1));
	assert_ok(pv_publish(h.s, &PV_FREE(h.object), 1));
	return 0;
}

static void aborts(void **state)
{
	static int (*const faults[])(void *) = {stray_live, twice_kept, busy_lane};

	assert_int_equal(run_child(nothing_wrong, NULL), 0);
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
		assert_int_equal(run_child(faults[i], NULL), 256 + SIGABRT);
}

/* ---- misuse: what is an error elsewhere, with the same message ---- */

static int free_twice(struct heap *h)
{
	assert_ok(pv_publish(h->s, &PV_LIVE(h->object), 1));
	assert_ok(pv_publish(h->s, &PV_FREE(h->object), 1));
	return pv_publish(h->s, &PV_FREE(h->object), 1);
}

static int unlink_twice(struct heap *h)
{
	struct cells *t = store_cells(h->s);

	t->cells[1] = publish_ok(h->s, h->type, 64, &t->cells[0]);
	assert_ok(pv_free(h->s, &t->cells[0]));
	return pv_free(h->s, &t->cells[1]);
}

static int free_the_middle(struct heap *h)
{
	return pv_publish(h->s, &PV_FREE((uint8_t *)h->object + 16), 1);
}

static int free_null(struct heap *h)
{
	return pv_free(h->s, &store_cells(h->s)->cells[0]);
}

static int free_elsewhere(struct heap *h)
{
	return pv_publish(h->s, &PV_FREE(h), 1);
}

static int free_through_the_stack(struct heap *h)
{
	return pv_free(h->s, &h->object);
}

static int free_another_stores(struct heap *h)
{
	struct keeper k;
	struct pv_store *other;

	keeper_init(&k);
	other = store_create(&k, NULL);
	return pv_publish(h->s, &PV_FREE(store_root(other)), 1);
}

static int free_a_root(struct heap *h)
{
	return pv_publish(h->s, &PV_FREE(store_root(h->s)), 1);
}

static int free_a_root_in_a_transaction(struct heap *h)
{
	assert_ok(pv_tx_begin(h->s));
	return pv_tx_free(h->s, store_root(h->s));
}

static int replace_a_root(struct heap *h)
{
	struct cells *t = store_cells(h->s);

	return pv_publish(h->s,
			  (struct pv_action[]){PV_LIVE(h->object), PV_STORE(&t->cells[0], 1),
					       PV_FREE(store_root(h->s))},
			  3);
}

static int realloc_nothing(struct heap *h)
{
	return pv_realloc(h->s, &store_cells(h->s)->cells[7], 100);
}

static int realloc_a_root(struct heap *h)
{
	struct cells *t = store_cells(h->s);

	t->cells[0] = t;
	return pv_realloc(h->s, &t->cells[0], sizeof(*t));
}

static int free_reserved(struct heap *h)
{
	return pv_publish(h->s, &PV_FREE(h->object), 1);
}

static int publish_twice(struct heap *h)
{
	assert_ok(pv_publish(h->s, &PV_LIVE(h->object), 1));
	return pv_publish(h->s, &PV_LIVE(h->object), 1);
}

static int cancel_live(struct heap *h)
{
	assert_ok(pv_publish(h->s, &PV_LIVE(h->object), 1));
	return pv_cancel(h->s, h->object);
}

static int realloc_the_middle(struct heap *h)
{
	struct cells *t = store_cells(h->s);

	t->cells[0] = (uint8_t *)h->object + 16;
	return pv_realloc(h->s, &t->cells[0], 200);
}

static int link_live(struct heap *h)
{
	struct cells *t = store_cells(h->s);

	assert_ok(pv_link(h->s, h->object, &t->cells[0]));
	return pv_link(h->s, h->object, &t->cells[0]);
}

static int tx_free_twice(struct heap *h)
{
	assert_ok(pv_publish(h->s, &PV_LIVE(h->object), 1));
	assert_ok(pv_tx_begin(h->s));
	assert_ok(pv_tx_free(h->s, h->object));
	return pv_tx_free(h->s, h->object);
}

static int tx_add_nowhere(struct heap *h)
{
	assert_ok(pv_tx_begin(h->s));
	return pv_tx_add(h->s, h, sizeof(*h));
}

static const struct misuse {
	int (*f)(struct heap *h);
	const char *says;
} misuses[] = {
	{free_twice, "is free, not live"},
	{unlink_twice, "is free, not live"},
	{free_the_middle, "is not the start of an object"},
	{free_null, "is not the start of an object"},
	{free_elsewhere, "is not the start of an object"},
	{free_through_the_stack, "is not an aligned word"},
	{free_another_stores, "is not the start of an object"},
	{free_a_root, "is root root, which is never freed"},
	{free_a_root_in_a_transaction, "is root root, which is never freed"},
	{replace_a_root, "is root root, which is never freed"},
	{realloc_nothing, "is not the start of an object"},
	{realloc_a_root, "is root table, which is never freed"},
	{free_reserved, "is reserved, not live"},
	{publish_twice, "is live, not reserved"},
	{cancel_live, "is not reserved"},
	{realloc_the_middle, "is not the start of an object"},
	{link_live, "is live, not reserved"},
	{tx_free_twice, "was freed in this transaction before"},
	{tx_add_nowhere, "are not within objects of this store"},
};

/* In a child, whose errors go to a pipe. 0: the call returned -EINVAL, with its message. */
struct attempt {
	const struct misuse *what;
	int out;
};

static int misuse(void *ctx)
{
	const struct attempt *a = ctx;
	struct keeper k;
	struct heap h;

	keeper_init(&k);
	h = heap_make(&k);
	dup2(a->out, STDERR_FILENO);
	return a->what->f(&h) != -EINVAL || !strstr(pv_last_error(), a->what->says);
}

static void misuse_aborts(void **state)
{
	for (size_t i = 0; i < sizeof(misuses) / sizeof(misuses[0]); i++) {
		struct attempt a = {.what = &misuses[i]};
		char said[4096] = "";
		int fds[2];

		assert_int_equal(pipe(fds), 0);
		a.out = fds[1];
		setenv("PV_MISUSE", "error", 1);
		assert_int_equal(run_child(misuse, &a), 0);
		unsetenv("PV_MISUSE");
		assert_int_equal(run_child(misuse, &a), 256 + SIGABRT);
		close(fds[1]);
		assert_true(read(fds[0], said, sizeof(said) - 1) > 0);
		close(fds[0]);
		if (strncmp(said, "libpreserve: ", 13) != 0 || !strstr(said, misuses[i].says))
			fail_msg("%zu: \"%s\" does not say \"%s\"", i, said, misuses[i].says);
	}
}

/* A question is none, whatever it is about. */
static int only_asked(void *ctx)
{
	struct keeper k;
	struct heap h;

	keeper_init(&k);
	h = heap_make(&k);
	unsetenv("PV_MISUSE");
	return pv_usable_bytes(h.s, &h) || pv_usable_bytes(h.s, NULL) ||
	       pv_usable_bytes(h.s, (uint8_t *)h.object + 1);
}

static void questions_are_no_misuse(void **state)
{
	assert_int_equal(run_child(only_asked, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(aborts),
		cmocka_unit_test(misuse_aborts),
		cmocka_unit_test(questions_are_no_misuse),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
