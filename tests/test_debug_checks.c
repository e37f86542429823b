/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Builds with -Ddebug-checks=true: what the fast paths take for granted is checked, so a slot byte that
 * a stray write has changed ends the process with a message and not with an object handed out twice.
 */
#include <signal.h>

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

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(aborts)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
