/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Retiring: what happens between the intent that frees an object and the end of the grace period.
 *
 * For recovery a RETIRE is a FREE: in the lane stands FREE, and in this process the slot byte becomes
 * RETIRED, which to any later process means FREE. Of an extent the pages become FREE in the page map;
 * the bitmap and the descriptor keep them out of use here. Nothing else is stored in the arena.
 *
 * Each lane has a queue, so that it belongs to one thread at a time and outlives it:
 *
 *	thread		takes the pending blocks; makes sure of room; intent; notes the objects; puts the
 *			blocks back; if no batch of the queue is in flight, hands them to call_rcu
 *	callback	gives the batch's memory back; hands over what is pending by then, else says that
 *			nothing is in flight
 *
 * So what is pending has a batch in flight before it, whose callback takes care of it: a thread may go
 * idle or end at any time. After `in_flight := false` and after `pending := blocks` each side looks at
 * what the other one has stored (both sequentially consistent): one of them sees the other.
 *
 * The callback runs in a thread of liburcu's. It touches no magazine but its own blocks', and gives
 * slots back to their slabs. A slab that becomes empty by that is released through a lane, which is that of
 * the reclaimer: the store's one thread state for all callbacks, under the lock `reclaiming`, so
 * that it does not matter how many call_rcu threads the application has.
 *
 * `reclaiming` is taken before heap_lock, and held by nobody who waits for readers.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <urcu/call-rcu.h>
#include <urcu/flavor.h>

#include <preserve/retire.h>

#include "internal.h"

struct retire_queue;

struct retired {
	void *object;
	uint8_t *byte; /* NULL: an extent */
};

#define BLOCK_OBJECTS 128u

struct block {
	struct rcu_head head; /* of the first block of a batch */
	struct block *next;
	struct pv_store *store;
	struct retire_queue *queue;
	/* liburcu orders the hand-over by instructions that compilers and sanitizers know nothing of. */
	_Atomic bool handed_over;
	uint32_t n;
	struct retired objects[BLOCK_OBJECTS];
};

struct retire_queue {
	_Alignas(64) _Atomic(struct block *) pending;
	_Atomic bool in_flight;
	/* Of the thread that has the lane: */
	struct block *open;  /* the pending blocks, during a publish */
	struct block *spare; /* empty blocks */
};

struct pvi_retire {
	const struct rcu_flavor_struct *flavor;
	struct pvi_thread *reclaimer;
	pthread_mutex_t reclaiming;
	pid_t pid;
	_Atomic uint32_t unfinished; /* batches handed over whose callback has not returned */
	struct retire_queue queues[]; /* by lane */
};

static inline struct pvi_retire *retire_of(struct pv_store *s)
{
	return atomic_load_explicit(&s->retire, memory_order_acquire);
}

/* ---- callbacks ---- */

static void reclaim_extent(struct pv_store *s, const void *object)
{
	uint64_t off = (uint64_t) ((uintptr_t) object - s->base);
	struct pvi_segment *seg = pvi_store_segment(s, off);
	uint32_t page = (uint32_t) ((off - seg->off) >> s->page_shift);
	struct pvi_slab *d = &seg->slabs[page];

	pvi_debug_check(d->state == PVI_EXTENT_RETIRED);
	d->state = PVI_SLAB_NONE;
	pvi_page_free(s, seg, page, d->nfree);
}

static void reclaim(struct pv_store *s, struct pvi_retire *r, const struct block *b)
{
	void *slots[BLOCK_OBJECTS];
	uint32_t n = 0;

	pthread_mutex_lock(&r->reclaiming);
	pthread_mutex_lock(&s->heap_lock);
	for (uint32_t i = 0; i < b->n; i++) {
		const struct retired *o = &b->objects[i];

		if (o->byte) {
			pvi_debug_check(__atomic_load_n(o->byte, __ATOMIC_RELAXED) ==
					PV_SLOT_RETIRED);
			__atomic_store_n(o->byte, PV_SLOT_HELD, __ATOMIC_RELAXED);
			slots[n++] = o->object;
		} else {
			reclaim_extent(s, o->object);
		}
	}
	pvi_slab_return(s, r->reclaimer, slots, n);
	pthread_mutex_unlock(&s->heap_lock);
	pthread_mutex_unlock(&r->reclaiming);
}

static void grace_period_over(struct rcu_head *head);

/* The caller has set in_flight: hand over what is pending, or say that nothing is in flight. */
static void next_batch(struct pvi_retire *r, struct retire_queue *q)
{
	do {
		struct block *b = atomic_exchange(&q->pending, NULL);

		if (b) {
			atomic_fetch_add(&r->unfinished, 1);
			atomic_store_explicit(&b->handed_over, true, memory_order_release);
			r->flavor->update_call_rcu(&b->head, grace_period_over);
			return;
		}
		atomic_store(&q->in_flight, false);
	} while (atomic_load(&q->pending) && !atomic_exchange(&q->in_flight, true));
}

static void grace_period_over(struct rcu_head *head)
{
	struct block *b = (struct block *) head; /* its first member */
	bool handed_over = atomic_load_explicit(&b->handed_over, memory_order_acquire);
	struct pv_store *s = b->store;
	struct retire_queue *q = b->queue;
	struct pvi_retire *r = retire_of(s);

	assert(handed_over);
	(void) handed_over;
	/* A child that was forked may inherit callbacks, but not the window. */
	if (r->pid != getpid())
		return;
	while (b) {
		struct block *next = b->next;

		reclaim(s, r, b);
		free(b);
		b = next;
	}
	next_batch(r, q);
	atomic_fetch_sub(&r->unfinished, 1); /* the last that it does: see retire_free() */
}

_Static_assert(offsetof(struct block, head) == 0, "a block is found by its rcu_head");

/* ---- for whoever publishes ---- */

static bool add_spare(struct pv_store *s, struct retire_queue *q)
{
	struct block *b = malloc(sizeof(*b));

	if (!b)
		return false;
	b->store = s;
	b->queue = q;
	b->n = 0;
	b->next = q->spare;
	atomic_init(&b->handed_over, false);
	q->spare = b;
	return true;
}

static void put_back(struct pvi_retire *r, struct retire_queue *q)
{
	atomic_store(&q->pending, q->open);
	q->open = NULL;
	if (!atomic_load(&q->in_flight) && !atomic_exchange(&q->in_flight, true))
		next_batch(r, q);
}

int pvi_retire_room(struct pv_store *s, struct pvi_thread *t, uint32_t n)
{
	struct pvi_retire *r = retire_of(s);
	struct retire_queue *q = &r->queues[t->lane_number];
	uint64_t room;

	q->open = atomic_exchange(&q->pending, NULL);
	room = q->open ? BLOCK_OBJECTS - q->open->n : 0;
	for (struct block *b = q->spare; b && room < n; b = b->next)
		room += BLOCK_OBJECTS;
	for (; room < n; room += BLOCK_OBJECTS) {
		if (add_spare(s, q))
			continue;
		if (q->open)
			put_back(r, q);
		return pvi_fail(-ENOMEM, "no memory to note %u retired objects", n);
	}
	return 0;
}

void pvi_retire_note(struct pv_store *s, struct pvi_thread *t, void *object, uint8_t *byte)
{
	struct retire_queue *q = &retire_of(s)->queues[t->lane_number];
	struct block *b = q->open;

	if (pvi_unlikely(!b || b->n == BLOCK_OBJECTS)) {
		b = q->spare;
		q->spare = b->next;
		b->next = q->open;
		q->open = b;
	}
	b->objects[b->n++] = (struct retired){object, byte};
}

void pvi_retire_hand_over(struct pv_store *s, struct pvi_thread *t)
{
	struct pvi_retire *r = retire_of(s);

	put_back(r, &r->queues[t->lane_number]);
}

int pvi_retire_no_flavor(void)
{
	return pvi_fail(-EINVAL, "no flavour of RCU was chosen for this store (pv_retire_flavor)");
}

/* ---- for whoever walks the heap ---- */

void pvi_retire_pause(struct pv_store *s)
{
	struct pvi_retire *r = retire_of(s);

	if (r)
		pthread_mutex_lock(&r->reclaiming);
}

void pvi_retire_resume(struct pv_store *s)
{
	struct pvi_retire *r = retire_of(s);

	if (r)
		pthread_mutex_unlock(&r->reclaiming);
}

/* ---- public ---- */

static void free_blocks(struct block *b)
{
	while (b) {
		struct block *next = b->next;

		free(b);
		b = next;
	}
}

static void retire_free(struct pv_store *s, struct pvi_retire *r)
{
	uint32_t unfinished = atomic_load(&r->unfinished);

	/* After the barriers; also tells compilers and sanitizers that the callbacks are over. */
	assert(unfinished == 0);
	(void) unfinished;
	for (uint32_t i = 0; i < s->nlanes; i++)
		free_blocks(r->queues[i].spare);
	pthread_mutex_destroy(&r->reclaiming);
	free(r);
}

int pv_retire_flavor(struct pv_store *s, const struct rcu_flavor_struct *flavor)
{
	struct pvi_retire *r, *other = NULL;
	pthread_mutexattr_t recursive;
	size_t bytes = sizeof(*r) + s->nlanes * sizeof(r->queues[0]);
	int err;

	if (!flavor)
		return pvi_fail(-EINVAL, "the flavour of RCU is NULL");
	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	r = retire_of(s);
	if (r)
		return r->flavor == flavor
			       ? 0
			       : pvi_fail(-EBUSY, "the store has another flavour of RCU already");
	r = aligned_alloc(_Alignof(struct pvi_retire), bytes);
	if (!r)
		return pvi_fail(-ENOMEM, "no memory for %u lanes' retired objects", s->nlanes);
	*r = (struct pvi_retire){.flavor = flavor, .pid = getpid()};
	for (uint32_t i = 0; i < s->nlanes; i++)
		r->queues[i] = (struct retire_queue){.open = NULL};
	/* Whoever walks the heap may, for an object that is visited, begin another walk. */
	pthread_mutexattr_init(&recursive);
	pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&r->reclaiming, &recursive);
	pthread_mutexattr_destroy(&recursive);
	err = pvi_thread_make(s, &r->reclaimer);
	if (!err && atomic_compare_exchange_strong(&s->retire, &other, r))
		return 0;
	if (!err) { /* another thread was faster */
		pvi_thread_unmake(s, r->reclaimer);
		err = other->flavor == flavor
			      ? 0
			      : pvi_fail(-EBUSY, "the store has another flavour of RCU already");
	}
	retire_free(s, r);
	return err;
}

int pv_retire_wait(struct pv_store *s)
{
	struct pvi_retire *r = retire_of(s);
	bool online;

	if (!r)
		return 0;
	online = r->flavor->read_ongoing();
	if (online)
		r->flavor->thread_offline(); /* does something in QSBR only */
	if (r->flavor->read_ongoing()) {
		r->flavor->thread_online();
		return pvi_fail(-EDEADLK, "a wait for readers within a read-side section");
	}
	/* The first ends when the batches in flight have been given back and their callbacks have
	 * handed over what was pending; the second when that has been given back. */
	r->flavor->barrier();
	r->flavor->barrier();
	if (online)
		r->flavor->thread_online();
	return 0;
}

void pvi_retire_close(struct pv_store *s)
{
	struct pvi_retire *r = retire_of(s);

	if (r)
		retire_free(s, r);
}
