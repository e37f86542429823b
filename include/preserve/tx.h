/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Transactions: for changes wider than the few words of a pv_publish().
 *
 *	pv_tx_begin(store);
 *	pv_tx_add(store, &account->balance, sizeof(account->balance));
 *	account->balance -= 10;
 *	...
 *	pv_tx_commit(store);
 *
 * pv_tx_add() notes the old contents of a range in the thread's undo log; afterwards the application
 * changes the range in place. A crash before pv_tx_commit() returns puts every noted range back, or
 * none if the commit had been reached; objects allocated in the transaction are free again, objects
 * freed in it are still live.
 *
 * Until the transaction has ended, free an object with noted ranges by pv_tx_free() or pv_tx_retire()
 * only, and do not pv_alloc() into a noted pointer: pv_publish() and its like are not undone, so the
 * first would put old contents into whatever has the memory by then, and the second would leak.
 *
 * A transaction belongs to the thread that began it. It isolates nothing: the application's own locks
 * protect what is changed from other threads until the commit has returned. pv_reserve() and
 * pv_publish() may be used meanwhile; they take effect at once and are not undone.
 *
 * Nested transactions are flattened: only the outermost commit commits. An abort undoes all of it;
 * what the enclosing levels still call returns -ECANCELED up to and including the outermost commit.
 *
 * Any thread may call these. Errors in common: -EINVAL no transaction in this thread, or an argument
 * is wrong; -ECANCELED aborted by an inner level; -ENOSPC, -ENOMEM no room for the log: the
 * transaction goes on without the failed call, and may be committed or aborted; -EUSERS; -EPERM.
 */
#ifndef PRESERVE_TX_H
#define PRESERVE_TX_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Begin a transaction, or go one level deeper. */
int pv_tx_begin(struct pv_store *store);

/**
 * Note the present contents of [p, p + bytes), which lies within pages of objects of this store. Call
 * it before the range is changed. Noting a range twice is allowed and costs log. A range of an object
 * allocated in this transaction need not be noted.
 */
int pv_tx_add(struct pv_store *store, void *p, size_t bytes);

/** pv_reserve() an object that the commit makes live and an abort or crash frees. */
int pv_tx_alloc(struct pv_store *store, pv_type_t type, size_t bytes, void **out);

/** Have the commit free a live object, or drop one that pv_tx_alloc() gave in this transaction. Its
 *  contents stay as they are until the commit. -EINVAL: not a live object, or freed in here before. */
int pv_tx_free(struct pv_store *store, void *object);

/** The same as PV_RETIRE does (preserve/retire.h): readers may go on with the object until the grace
 *  period after the commit is over. -EINVAL also: no pv_retire_flavor(). */
int pv_tx_retire(struct pv_store *store, void *object);

/** End one level; the outermost makes everything final. Crash: all or nothing. */
int pv_tx_commit(struct pv_store *store);

/** Put every noted range back and free what was allocated, now. */
int pv_tx_abort(struct pv_store *store);

/** Depth of the calling thread's transaction; 0: there is none. */
unsigned int pv_tx_depth(struct pv_store *store);

#ifdef __cplusplus
}
#endif

#endif
