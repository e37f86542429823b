/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Locks in the arena: a word that says who has it, and in which epoch of the store.
 *
 *	| epoch, its low 40 bits | 0 | waiters | thread id, 22 bits |
 *
 * The lock is held if there is a thread id and the epoch is that of this attach. Any other word is a free
 * lock: zero, or what a process left behind that has ended. So nothing has to be done about locks when
 * a store is attached.
 *
 *	take		free word -> mine, by compare-and-swap; or set `waiters` and sleep
 *	release		word -> 0, by exchange; if it had `waiters`, wake one
 *
 * Whoever has slept takes the lock with `waiters` set, for there may be others. A thread that finds the
 * lock free at once takes it before those who have been woken.
 *
 * The epoch wraps after 2^40 attaches: a lock that was left held, and was not touched in that many, would
 * be taken for held by the thread that has the id now. At a thousand attaches a second that takes 34
 * years. A thread id has at most 22 bits in Linux (PID_MAX_LIMIT).
 *
 * A futex is 32 bits wide: the low half of the word, with the lowest bits of the epoch in it, which are
 * the same for all of the process.
 */
#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <preserve/lock.h>

#include "internal.h"

#define SPINS 64u /* looks at a held lock before going to sleep: short sections end meanwhile */

_Static_assert(sizeof(struct pv_lock) == 8, "pv_lock");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex is the low half of the word");

static _Thread_local uint64_t own_id; /* 0: not asked for yet */

void pvi_lockword_forget_thread(void)
{
	own_id = 0;
}

static __attribute__((noinline, cold)) void ask_for_id(void)
{
	own_id = (uint64_t) gettid();
	assert(own_id && own_id <= PV_LOCK_OWNER_MASK);
}

/* The word of a lock that this thread holds, without waiters. */
static inline uint64_t mine(const struct pv_store *s)
{
	if (pvi_unlikely(!own_id))
		ask_for_id();
	return s->index.epoch << PV_LOCK_EPOCH_SHIFT | own_id;
}

static inline bool is_held(const struct pv_store *s, uint64_t word)
{
	return (word & PV_LOCK_OWNER_MASK) &&
	       word >> PV_LOCK_EPOCH_SHIFT ==
		       s->index.epoch << PV_LOCK_EPOCH_SHIFT >> PV_LOCK_EPOCH_SHIFT;
}

static inline bool usable(const struct pv_store *s, const struct pv_lock *lock)
{
	uint64_t off = (uint64_t) ((uintptr_t) lock - s->base);

	return pvi_likely(off < s->window_bytes && off % 8 == 0 && !s->readonly);
}

static __attribute__((noinline, cold)) int not_usable(const struct pv_store *s,
						       const struct pv_lock *lock)
{
	if (s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	return pvi_fail(-EINVAL, "%p is not an aligned word of this store, as a lock is",
			(const void *) lock);
}

static inline bool exchange_if(struct pv_lock *lock, uint64_t *old, uint64_t word)
{
	return __atomic_compare_exchange_n(&lock->word, old, word, false, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

static inline void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

static void sleep_while(struct pv_lock *lock, uint64_t word)
{
	/* Returns when woken, when the word is another, and for no reason: the caller looks again. */
	syscall(SYS_futex, &lock->word, FUTEX_WAIT_PRIVATE, (uint32_t) word, NULL, NULL, 0);
}

static __attribute__((noinline)) int take_slowly(struct pv_store *s, struct pv_lock *lock)
{
	uint64_t word = __atomic_load_n(&lock->word, __ATOMIC_RELAXED), me = mine(s);

	if (is_held(s, word) && (word & ~PV_LOCK_WAITERS) == me)
		return pvi_fail(-EDEADLK, "this thread holds the lock at %p already", (void *) lock);
	for (uint32_t i = 0; i < SPINS; i++) {
		if (!is_held(s, word) && exchange_if(lock, &word, me))
			return 0;
		relax();
		word = __atomic_load_n(&lock->word, __ATOMIC_RELAXED);
	}
	for (;;) {
		if (!is_held(s, word)) {
			if (exchange_if(lock, &word, me | PV_LOCK_WAITERS))
				return 0;
		} else if (word & PV_LOCK_WAITERS ||
			   exchange_if(lock, &word, word | PV_LOCK_WAITERS)) {
			sleep_while(lock, word | PV_LOCK_WAITERS);
			word = __atomic_load_n(&lock->word, __ATOMIC_RELAXED);
		}
	}
}

int pv_lock_take(struct pv_store *s, struct pv_lock *lock)
{
	uint64_t word;

	if (!usable(s, lock))
		return not_usable(s, lock);
	word = __atomic_load_n(&lock->word, __ATOMIC_RELAXED);
	if (pvi_likely(!is_held(s, word) && exchange_if(lock, &word, mine(s))))
		return 0;
	return take_slowly(s, lock);
}

int pv_lock_try(struct pv_store *s, struct pv_lock *lock)
{
	uint64_t word;

	if (!usable(s, lock))
		return not_usable(s, lock);
	word = __atomic_load_n(&lock->word, __ATOMIC_RELAXED);
	while (!is_held(s, word))
		if (exchange_if(lock, &word, mine(s)))
			return 0;
	return pvi_fail(-EBUSY, "the lock at %p is held by thread %u", (void *) lock,
			(unsigned int) (word & PV_LOCK_OWNER_MASK));
}

int pv_lock_release(struct pv_store *s, struct pv_lock *lock)
{
	uint64_t word;

	if (!usable(s, lock))
		return not_usable(s, lock);
	/* No other thread changes this answer. */
	word = __atomic_load_n(&lock->word, __ATOMIC_RELAXED);
	if (pvi_unlikely((word & ~PV_LOCK_WAITERS) != mine(s)))
		return pvi_fail(-EINVAL, "this thread does not hold the lock at %p", (void *) lock);
	/* From here on another thread may have the lock and free it with its object. To wake nobody, or
	 * whoever sleeps at this address for another reason, does no harm. */
	if (pvi_unlikely(__atomic_exchange_n(&lock->word, 0, __ATOMIC_RELEASE) & PV_LOCK_WAITERS))
		syscall(SYS_futex, &lock->word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	return 0;
}
