/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transactions: an undo log in the thread's lane.
 *
 *	add	append {where, old contents} to the log; then lane->tx := ACTIVE | end of the log
 *	commit	append the actions that make objects live and free; then lane->tx := COMMITTED | end;
 *		do the actions; then lane->tx := NONE
 *	abort	put the ranges back, the last one first; then lane->tx := NONE
 *
 * Each `then` is one store, before which the crash finds the earlier state and after which the later
 * one. Recovery does what the state says: ACTIVE means abort, COMMITTED means do the actions. Both
 * only store absolute values, so they can be done again after a crash in the middle.
 *
 * A log that outgrows the lane goes on in chunks: pages that are held but stay FREE in the page map.
 * After a crash recovery reads them before anything is allocated, and forgets them.
 *
 * All functions run in the thread that owns the lane.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <preserve/tx.h>

#include "internal.h"

#define TRAILER_BYTES 8u
#define COPY_MIN      8u /* what copy_small() copies */
#define COPY_MAX      64u
#define ACTION_DROP   0u /* beside LIVE and FREE: an object allocated and freed in the transaction */

static uint64_t padded(uint64_t bytes)
{
	return (bytes + 7) & ~7ull;
}

static uint64_t entry_bytes(uint64_t data_bytes)
{
	return sizeof(struct tx_entry_rec) + padded(data_bytes) + TRAILER_BYTES;
}

/* The commit of whatever was written before it. */
static void set_word(struct lane_rec *lane, uint64_t state, uint64_t chunk, uint64_t end)
{
	pvi_barrier();
	__atomic_store_n(&lane->tx, state | chunk << PV_TX_CHUNK_SHIFT | end << PV_TX_END_SHIFT,
			 __ATOMIC_RELAXED);
	pvi_barrier();
}

/* ---- writing the log ---- */

static int next_chunk(struct pv_store *s, struct pvi_thread *t, uint64_t need)
{
	uint64_t bytes = (4ull << s->page_shift) << t->tx.chunk, page = 1ull << s->page_shift;
	struct tx_chunk_rec *c = &t->lane->chunks[t->tx.chunk + 1];
	void *p;
	int err;

	if (t->tx.chunk + 1 == PV_TX_CHUNKS)
		return pvi_fail(-ENOSPC, "a transaction's log has no more than %u chunks",
				PV_TX_CHUNKS);
	if (bytes < need)
		bytes = (need + page - 1) & ~(page - 1);
	err = pvi_heap_hold(s, bytes, &p);
	if (err)
		return err;
	c->off = (uint64_t) ((uintptr_t) p - s->base);
	c->bytes = bytes;
	t->lane->chunks[t->tx.chunk].used = t->tx.end;
	t->tx.chunk++;
	t->tx.end = 0;
	t->tx.chunk_max = bytes;
	t->tx.log = p;
	return 0;
}

typedef uint64_t two_words __attribute__((vector_size(16)));

/* COPY_MIN to COPY_MAX bytes, which do not overlap, without a call: from both ends to the middle. */
static inline void copy_small(uint8_t *to, const uint8_t *from, uint64_t bytes)
{
	two_words a, b, c, d;
	uint64_t e, f;

	if (bytes < sizeof(a)) {
		memcpy(&e, from, sizeof(e));
		memcpy(&f, from + bytes - sizeof(f), sizeof(f));
		memcpy(to, &e, sizeof(e));
		memcpy(to + bytes - sizeof(f), &f, sizeof(f));
		return;
	}
	memcpy(&a, from, sizeof(a));
	memcpy(&b, from + bytes - sizeof(b), sizeof(b));
	if (bytes > 2 * sizeof(a)) {
		memcpy(&c, from + sizeof(c), sizeof(c));
		memcpy(&d, from + bytes - 2 * sizeof(d), sizeof(d));
		memcpy(to + sizeof(c), &c, sizeof(c));
		memcpy(to + bytes - 2 * sizeof(d), &d, sizeof(d));
	}
	memcpy(to, &a, sizeof(a));
	memcpy(to + bytes - sizeof(b), &b, sizeof(b));
}

/* There is room for it in the chunk. `data` may be NULL if there is none. */
static inline void write_entry(struct pvi_thread *t, uint64_t where, uint64_t value, const void *data,
			       uint64_t bytes, bool small)
{
	uint64_t need = entry_bytes(bytes);
	uint8_t *at;

	at = t->tx.log + t->tx.end;
	*(struct tx_entry_rec *) (void *) at = (struct tx_entry_rec){where, value};
	if (small)
		copy_small(at + sizeof(struct tx_entry_rec), data, bytes);
	else if (bytes)
		memcpy(at + sizeof(struct tx_entry_rec), data, bytes);
	*(uint64_t *) (void *) (at + need - TRAILER_BYTES) = need;
	t->tx.end += need;
	set_word(t->lane, PV_TX_ACTIVE, t->tx.chunk, t->tx.end);
}

static int append(struct pv_store *s, struct pvi_thread *t, uint64_t where, uint64_t value,
		  const void *data, uint64_t bytes)
{
	uint64_t need = entry_bytes(bytes);
	int err;

	if (t->tx.chunk_max - t->tx.end < need) {
		err = next_chunk(s, t, need);
		if (err)
			return err;
	}
	write_entry(t, where, value, data, bytes, false);
	return 0;
}

/* ---- reading it, backwards ---- */

struct cursor {
	const struct pv_store *s;
	const struct lane_rec *lane;
	uint64_t chunk;
	uint64_t end;
	const uint8_t *log;
};

/* Address of a chunk, or NULL if it is none. */
static const uint8_t *chunk_at(const struct pv_store *s, const struct lane_rec *lane, uint64_t chunk,
			       uint64_t used)
{
	const struct tx_chunk_rec *c;

	if (chunk == 0)
		return used <= PV_TX_LOG_BYTES ? lane->log : NULL;
	if (chunk >= PV_TX_CHUNKS)
		return NULL;
	c = &lane->chunks[chunk];
	if (used > c->bytes || c->off % 8 || !pvi_store_range_ok(s, c->off, c->bytes))
		return NULL;
	return (const uint8_t *) s->base + c->off;
}

static bool cursor_at(struct cursor *c, const struct pv_store *s, const struct lane_rec *lane)
{
	*c = (struct cursor){
		.s = s,
		.lane = lane,
		.chunk = lane->tx >> PV_TX_CHUNK_SHIFT & 63,
		.end = lane->tx >> PV_TX_END_SHIFT,
	};
	c->log = chunk_at(s, lane, c->chunk, c->end);
	return c->log != NULL && c->end % 8 == 0;
}

/* The entry before the cursor: 1, 0 at the beginning, -1 damaged. */
static int previous(struct cursor *c, const struct tx_entry_rec **out)
{
	const struct tx_entry_rec *e;
	uint64_t total, data;

	while (c->end == 0) {
		if (c->chunk == 0)
			return 0;
		c->chunk--;
		c->end = c->lane->chunks[c->chunk].used;
		c->log = chunk_at(c->s, c->lane, c->chunk, c->end);
		if (!c->log || c->end % 8)
			return -1;
	}
	if (c->end < entry_bytes(0))
		return -1;
	total = *(const uint64_t *) (const void *) (c->log + c->end - TRAILER_BYTES);
	if (total % 8 || total < entry_bytes(0) || total > c->end)
		return -1;
	e = (const struct tx_entry_rec *) (const void *) (c->log + c->end - total);
	data = e->where >> PV_DO_OP_SHIFT == PV_DO_UNDO ? e->value : 0;
	if (data > total || entry_bytes(data) != total)
		return -1;
	c->end -= total;
	*out = e;
	return 1;
}

static bool is_undo(const struct tx_entry_rec *e)
{
	return e->where >> PV_DO_OP_SHIFT == PV_DO_UNDO;
}

static void put_back(struct pv_store *s, struct lane_rec *lane)
{
	const struct tx_entry_rec *e;
	struct cursor c;

	cursor_at(&c, s, lane);
	while (previous(&c, &e) > 0)
		if (is_undo(e))
			memcpy((uint8_t *) s->base + (e->where & PV_DO_OFF_MASK), e + 1, e->value);
}

/* ---- ending ---- */

/* What is logged next goes into this chunk; those behind it may be used by others. */
static void go_back_to_chunk(struct pv_store *s, struct pvi_thread *t, uint32_t chunk)
{
	for (; t->tx.chunk > chunk; t->tx.chunk--)
		pv_cancel(s, (uint8_t *) s->base + t->lane->chunks[t->tx.chunk].off);
	t->tx.log = chunk ? (uint8_t *) s->base + t->lane->chunks[chunk].off : t->lane->log;
	t->tx.chunk_max = chunk ? t->lane->chunks[chunk].bytes : PV_TX_LOG_BYTES;
}

void pvi_tx_init(struct pv_store *s, struct pvi_thread *t)
{
	go_back_to_chunk(s, t, 0);
}

/* The log is void from here on, and the next transaction's begins where this one's did. */
static void end_tx(struct pv_store *s, struct pvi_thread *t)
{
	set_word(t->lane, PV_TX_NONE, 0, 0);
	t->tx.end = 0;
	if (t->tx.chunk > 0)
		go_back_to_chunk(s, t, 0);
	t->tx.nactions = 0;
}

static void abort_now(struct pv_store *s, struct pvi_thread *t)
{
	uint32_t n = t->tx.nactions;

	if (t->lane->tx)
		put_back(s, t->lane);
	end_tx(s, t);
	for (uint32_t i = 0; i < n; i++)
		if (t->tx.actions[i].action.op == PV_ACTION_LIVE ||
		    t->tx.actions[i].action.op == ACTION_DROP)
			pv_cancel(s, t->tx.actions[i].action.target);
}

/* ---- public ---- */

static int no_tx(void)
{
	return pvi_fail(-EINVAL, "this thread is in no transaction of this store");
}

/* The thread's open transaction. */
static inline int current(struct pv_store *s, struct pvi_thread **t)
{
	int err = pvi_thread_get(s, t);

	if (pvi_unlikely(err))
		return err;
	if (pvi_unlikely(!(*t)->tx.depth))
		return no_tx();
	if (pvi_unlikely((*t)->tx.aborted))
		return pvi_fail(-ECANCELED, "the transaction was aborted by an inner level");
	return 0;
}

static __attribute__((noinline)) int begin_other(struct pv_store *s)
{
	struct pvi_thread *t;
	int err = pvi_thread_get(s, &t);

	if (!err)
		t->tx.depth++;
	return err;
}

/* Here, in pv_tx_add() and in pv_tx_commit() the common case calls nothing that returns, so that no register has
 * to be saved. That was half of a transaction's stores, and while it waits for the object the processor begins the
 * next only as long as it has room for stores and instructions. (tx-64: 22 -> 15 ns with 50,000 objects.) */
int pv_tx_begin(struct pv_store *s)
{
	struct pvi_thread *t = pvi_tls_last;

	if (pvi_unlikely(pvi_load(&t->store) != s))
		return begin_other(s);
	t->tx.depth++;
	return 0;
}

static __attribute__((noinline)) int add_other(struct pv_store *s, void *p, size_t bytes)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base);
	struct pvi_thread *t;
	int err = current(s, &t);

	if (pvi_unlikely(err))
		return err;
	if (pvi_unlikely(!bytes || !pvi_store_range_ok(s, off, bytes))) {
		err = pvi_seal_refuse(s, p);
		return pvi_misuse(err ? err
				      : pvi_fail(-EINVAL, "%zu bytes at %p are not within objects of "
							  "this store", bytes, p));
	}
	return append(s, t, pvi_lane_where(PV_DO_UNDO, off), bytes, p, bytes);
}

int pv_tx_add(struct pv_store *s, void *p, size_t bytes)
{
	uint64_t off = (uint64_t) ((uintptr_t) p - s->base);
	struct pvi_thread *t = pvi_tls_last;

	if (pvi_unlikely(pvi_load(&t->store) != s || !t->tx.depth || t->tx.aborted ||
			 bytes - COPY_MIN > COPY_MAX - COPY_MIN || !pvi_store_range_ok(s, off, bytes) ||
			 t->tx.chunk_max - t->tx.end < entry_bytes(bytes)))
		return add_other(s, p, bytes);
	write_entry(t, pvi_lane_where(PV_DO_UNDO, off), bytes, p, bytes, true);
	return 0;
}

static int remember(struct pvi_thread *t, struct pv_action a)
{
	if (t->tx.nactions == t->tx.room) {
		uint32_t room = t->tx.room ? t->tx.room * 2 : 16;
		struct pvi_tx_action *bigger =
			reallocarray(t->tx.actions, room, sizeof(*bigger));

		if (!bigger)
			return pvi_fail(-ENOMEM, "no memory for a transaction's objects");
		t->tx.actions = bigger;
		t->tx.room = room;
	}
	t->tx.actions[t->tx.nactions++].action = a;
	return 0;
}

int pv_tx_alloc(struct pv_store *s, pv_type_t type, size_t bytes, void **out)
{
	struct pvi_thread *t;
	void *object;
	int err = current(s, &t);

	if (!err)
		err = pv_reserve(s, type, bytes, &object);
	if (err)
		return err;
	err = remember(t, PV_LIVE(object));
	if (err)
		pv_cancel(s, object);
	else
		*out = object;
	return err;
}

/* FREE or RETIRE. What was allocated in the transaction has no readers, so either just drops it. */
static int end_object(struct pv_store *s, struct pv_action a)
{
	struct pvi_object o;
	struct action_rec rec;
	struct pvi_thread *t;
	int err = current(s, &t);

	if (err)
		return err;
	for (uint32_t i = 0; i < t->tx.nactions; i++) {
		if (t->tx.actions[i].action.target != a.target)
			continue;
		if (t->tx.actions[i].action.op != PV_ACTION_LIVE)
			return pvi_misuse(pvi_fail(-EINVAL, "%p was freed in this transaction before",
						   a.target));
		t->tx.actions[i].action.op = ACTION_DROP;
		return 0;
	}
	err = pvi_heap_resolve(s, &a, &rec, &o);
#ifdef PVI_DEBUG_CHECKS
	if (!err)
		err = pvi_root_keep(s, a.target);
#endif
	return err ? pvi_misuse(err) : remember(t, a);
}

int pv_tx_free(struct pv_store *s, void *object)
{
	return end_object(s, PV_FREE(object));
}

int pv_tx_retire(struct pv_store *s, void *object)
{
	return end_object(s, PV_RETIRE(object));
}

/* Cut the log back to where it ended in this chunk. */
static void cut_log(struct pv_store *s, struct pvi_thread *t, uint32_t chunk, uint64_t end,
		    uint64_t word)
{
	pvi_barrier();
	__atomic_store_n(&t->lane->tx, word, __ATOMIC_RELAXED);
	pvi_barrier();
	t->tx.end = end;
	go_back_to_chunk(s, t, chunk);
}

/* Log what the commit does to objects; nothing is done yet. */
static int log_actions(struct pv_store *s, struct pvi_thread *t)
{
	uint64_t word = t->lane->tx, end = t->tx.end;
	uint32_t chunk = t->tx.chunk, retired = 0;
	int err = 0;

	for (uint32_t i = 0; i < t->tx.nactions && !err; i++) {
		struct pvi_tx_action *a = &t->tx.actions[i];

		if (a->action.op == ACTION_DROP)
			continue;
		retired += a->action.op == PV_ACTION_RETIRE;
		err = pvi_heap_resolve(s, &a->action, &a->rec, &a->object);
		if (!err)
			err = append(s, t, a->rec.where, a->rec.value, NULL, 0);
	}
	if (!err && retired)
		err = pvi_retire_room(s, t, retired);
	if (err) /* a later commit must not find these entries */
		cut_log(s, t, chunk, end, word);
	return err;
}

/* What is freed or dropped goes into circulation only when the log is void: recovery would free it again,
 * or put old contents back into it, whoever had it by then. */
static void commit_actions(struct pv_store *s, struct pvi_thread *t)
{
	uint32_t n = t->tx.nactions;
	bool retired = false;

	set_word(t->lane, PV_TX_COMMITTED, t->tx.chunk, t->tx.end);
	for (uint32_t i = 0; i < n; i++) {
		const struct pvi_tx_action *a = &t->tx.actions[i];

		if (a->action.op != ACTION_DROP)
			pvi_heap_apply(s, &a->action, &a->rec, &a->object);
	}
	end_tx(s, t);
	for (uint32_t i = 0; i < n; i++) {
		const struct pvi_tx_action *a = &t->tx.actions[i];

		if (a->action.op == ACTION_DROP)
			pv_cancel(s, a->action.target);
		else
			pvi_heap_settle(s, t, &a->action, &a->object);
		retired |= a->action.op == PV_ACTION_RETIRE;
	}
	if (retired)
		pvi_retire_hand_over(s, t);
}

/* Leave a level of a transaction that is over. */
static void unwind(struct pvi_thread *t)
{
	if (--t->tx.depth == 0)
		t->tx.aborted = false;
}

static __attribute__((noinline)) int commit_other(struct pv_store *s)
{
	struct pvi_thread *t;
	int err = current(s, &t);

	if (err == -ECANCELED)
		unwind(t);
	if (err)
		return err;
	if (t->tx.depth > 1) {
		t->tx.depth--;
		return 0;
	}
	if (t->tx.nactions) {
		err = log_actions(s, t);
		if (err)
			return err;
		commit_actions(s, t);
	} else {
		end_tx(s, t);
	}
	t->tx.depth = 0;
	return 0;
}

int pv_tx_commit(struct pv_store *s)
{
	struct pvi_thread *t = pvi_tls_last;

	if (pvi_unlikely(pvi_load(&t->store) != s || t->tx.depth != 1 || t->tx.aborted ||
			 t->tx.nactions || t->tx.chunk))
		return commit_other(s);
	set_word(t->lane, PV_TX_NONE, 0, 0);
	t->tx.end = 0;
	t->tx.depth = 0;
	return 0;
}

int pv_tx_abort(struct pv_store *s)
{
	struct pvi_thread *t;
	int err = current(s, &t);

	if (err && err != -ECANCELED)
		return err;
	if (!err)
		abort_now(s, t);
	t->tx.aborted = true;
	unwind(t);
	return 0;
}

unsigned int pv_tx_depth(struct pv_store *s)
{
	struct pvi_thread *t;

	return pvi_thread_get(s, &t) ? 0 : t->tx.depth;
}

void pvi_tx_leave(struct pv_store *s, struct pvi_thread *t)
{
	if (t->tx.depth && !t->tx.aborted)
		abort_now(s, t);
	t->tx.depth = 0;
}

/* ---- recovery ---- */

static bool tx_sound(const struct pv_store *s, const struct lane_rec *lane)
{
	const struct tx_entry_rec *e;
	struct action_rec a;
	struct cursor c;
	int got;

	if ((lane->tx & 3) > PV_TX_COMMITTED || !cursor_at(&c, s, lane))
		return false;
	while ((got = previous(&c, &e)) > 0) {
		a = (struct action_rec){e->where, e->value};
		if (is_undo(e) ? !pvi_store_range_ok(s, e->where & PV_DO_OFF_MASK, e->value)
			       : !pvi_lane_action_sound(s, &a))
			return false;
	}
	return got == 0;
}

static void finish(struct pv_store *s, struct lane_rec *lane)
{
	const struct tx_entry_rec *e;
	struct action_rec a;
	struct cursor c;

	cursor_at(&c, s, lane);
	while (previous(&c, &e) > 0) {
		a = (struct action_rec){e->where, e->value};
		if (!is_undo(e))
			pvi_lane_apply(s, &a);
	}
}

int pvi_tx_check(const struct pv_store *s)
{
	for (uint32_t i = 0; i < s->lanes_used; i++)
		if (s->lanes[i].tx && !tx_sound(s, &s->lanes[i]))
			return pvi_fail(-EBADMSG, "segment 0: lane %u: the transaction's log is damaged",
					i);
	return 0;
}

bool pvi_tx_covers(const struct pv_store *s, uint64_t off)
{
	for (uint32_t i = 0; i < s->lanes_used; i++) {
		const struct lane_rec *lane = &s->lanes[i];
		const struct tx_entry_rec *e;
		struct action_rec a;
		struct cursor c;

		if ((lane->tx & 3) != PV_TX_COMMITTED || !cursor_at(&c, s, lane))
			continue;
		while (previous(&c, &e) > 0) {
			a = (struct action_rec){e->where, e->value};
			if (!is_undo(e) && pvi_lane_action_covers(s, &a, off))
				return true;
		}
	}
	return false;
}

uint64_t pvi_tx_recover(struct pv_store *s)
{
	uint64_t recovered = 0;

	for (uint32_t i = 0; i < s->lanes_used; i++) {
		struct lane_rec *lane = &s->lanes[i];

		if (!lane->tx)
			continue;
		if ((lane->tx & 3) == PV_TX_ACTIVE)
			put_back(s, lane);
		else
			finish(s, lane);
		set_word(lane, PV_TX_NONE, 0, 0);
		recovered++;
	}
	return recovered;
}
