/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Retiring: freeing objects that other threads may be reading without a lock.
 *
 *	#include <urcu.h>                       // the flavour that the application links
 *	#include <urcu/flavor.h>
 *
 *	pv_retire_flavor(store, &rcu_flavor);   // once, after pv_open()
 *
 *	rcu_read_lock();                        // a reader
 *	object = rcu_dereference(*slot);
 *	...
 *	rcu_read_unlock();
 *
 *	pv_publish(store, (struct pv_action[]){PV_LIVE(fresh), PV_STORE(slot, fresh),
 *					       PV_RETIRE(old)}, 3);       // a writer
 *
 * PV_RETIRE frees an object as PV_FREE does, but its memory is not used again, and its bytes stay as
 * they are, until every reader that might have found it has left its read-side section: a grace period
 * of Userspace RCU (liburcu). The pointer to the object must be gone for new readers when the intent
 * is done, at best by a PV_STORE in the same intent.
 *
 * A crash ends all readers. So to whoever opens the store next what was retired is free, whether the
 * grace period was over or not; nothing is lost and nothing has to be walked.
 *
 * The library is not linked with liburcu. It calls what the flavour's struct says: update_call_rcu
 * (whose thread gives the memory back), and for waiting barrier, read_ongoing, thread_offline and
 * thread_online. All of them are of liburcu 0.13 or a version with the same struct. A program that has
 * several flavours gives the one under which its readers of this store run.
 *
 * Memory comes back late: a call_rcu thread gathers what is retired within some milliseconds. A program
 * that retires quickly in a store with a limit calls pv_retire_wait() when pv_reserve() says -ENOSPC.
 */
#ifndef PRESERVE_RETIRE_H
#define PRESERVE_RETIRE_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

struct rcu_flavor_struct;

/**
 * Say which flavour of liburcu protects the readers of this store: &rcu_flavor of <urcu/flavor.h>,
 * which stands for the flavour that the calling file was compiled for. To be called after each
 * pv_open(), before the first PV_RETIRE; *flavor must stay valid until the store is closed. Takes one
 * of the store's lanes. Again with the same flavour: 0, nothing is done.
 *
 * From then on
 *  - a thread that calls pv_publish() or pv_tx_commit() with a PV_RETIRE is registered with the
 *    flavour, as for call_rcu();
 *  - pv_close() and pv_destroy() wait as pv_retire_wait() does, and fail with -EDEADLK as it does;
 *    neither may be called from a call_rcu callback;
 *  - pv_check() and pv_iterate() make the call_rcu thread wait until they are done.
 *
 * Errors: -EINVAL flavor is NULL; -EBUSY another flavour was given before; -EUSERS no lane is left;
 * -EPERM PV_RDONLY; -ENOMEM. Any thread. Nothing of it is stored in the arena.
 */
int pv_retire_flavor(struct pv_store *store, const struct rcu_flavor_struct *flavor);

/**
 * Wait until everything that was retired before this call is free again: until all readers of that
 * time have left. With no flavour given: 0 at once.
 *
 * Errors: -EDEADLK the calling thread is in a read-side section, and would wait for itself. (With the
 * QSBR flavour a thread that is online is taken offline for the time of the wait: it must not hold on
 * to what it has read.) Not from a call_rcu callback, and not while holding a lock that a reader takes
 * in its read-side section. Any thread, registered or not. Crash: all that was retired is free.
 */
int pv_retire_wait(struct pv_store *store);

#ifdef __cplusplus
}
#endif

#endif
