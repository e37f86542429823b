/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Locks inside of persistent objects.
 *
 * A pthread mutex in a store would stay locked for ever when its process is killed. A struct pv_lock does
 * not: its word carries the epoch of the store, the number of the attach in which it was locked, so
 * whoever attaches next finds every lock free, whatever state it was left in and without looking at any
 * of them. All zero bytes are a free lock, so objects of pv_alloc() and pv_root() need no more; in
 * an object of pv_reserve() it is to be set to zero.
 *
 *	struct account {
 *		struct pv_lock lock;
 *		...
 *	};
 *
 *	pv_lock_take(store, &account->lock);
 *	...
 *	pv_lock_release(store, &account->lock);
 *
 * A lock says nothing about what it protects: when its owner was killed, that is as the owner left it.
 * So change it by pv_publish() or in a transaction; these are whole after a crash, the lock is free.
 *
 * The locks are for the threads of one process, which is all that a store has for writing. They are
 * mutexes: not recursive, not fair. A free lock is taken by one compare-and-swap and given back by one
 * exchange; who has to wait sleeps in the kernel (futex). The object that a lock is in may be freed by
 * whoever takes the lock last, as soon as pv_lock_take() has returned.
 *
 * Errors in common: -EINVAL the lock is not an aligned word in the store's window; -EPERM PV_RDONLY.
 * Any thread, with or without a lane. Not in a child made by fork().
 */
#ifndef PRESERVE_LOCK_H
#define PRESERVE_LOCK_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

/** 8 bytes, aligned to 8. Declared in a type as 8 bytes that are no pointer. */
struct pv_lock {
	uint64_t word;
};

/**
 * Take the lock; wait as long as another thread has it. What its last owner did before is visible.
 * Errors also: -EDEADLK the calling thread has it already.
 * Crash, here and in the other two: free.
 */
int pv_lock_take(struct pv_store *store, struct pv_lock *lock);

/** Take the lock if it is free. Errors also: -EBUSY a thread has it, maybe this one. */
int pv_lock_try(struct pv_store *store, struct pv_lock *lock);

/** Give it back, and wake one who waits. Errors also: -EINVAL the calling thread does not have it. */
int pv_lock_release(struct pv_store *store, struct pv_lock *lock);

#ifdef __cplusplus
}
#endif

#endif
