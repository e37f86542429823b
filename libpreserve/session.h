/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A store's LUO session, on top of a keeper. The session descriptor and its manifest are kept by
 * the holder beside the store's memfds, so all of this goes on after the death of the application,
 * in whatever process opens the store next, and with either backend; only making and finding a
 * session needs the device.
 */
#ifndef PVI_SESSION_H
#define PVI_SESSION_H

#include <stdbool.h>

#include "holder.h"

/**
 * Preserve descriptors of the store in a session that only this process knows yet. It uses neither the
 * keeper's table nor its holder, so others may do that meanwhile. On failure nothing is preserved.
 */
int pvi_session_preserve(struct pvi_keeper *k, const struct pvi_fd *fds, unsigned int n);
/** End what pvi_session_preserve() has begun; nothing: nothing to do. */
void pvi_session_abandon(struct pvi_keeper *k);
/** Make a session of all descriptors given, and of no other that pvi_session_preserve() had. When this
 *  returns 0 the store is prepared, otherwise nothing is preserved. */
int pvi_session_prepare(struct pvi_keeper *k, const struct pvi_fd *fds, unsigned int n);
/** While prepared: preserve one more. A descriptor that stood under the token leaves. */
int pvi_session_join(struct pvi_keeper *k, uint64_t token, int fd);
/** While prepared: the descriptor of this token is not to be handed over. The kernel cannot let go
 *  of it singly, so its memory stays taken until the session ends. */
int pvi_session_leave(struct pvi_keeper *k, uint64_t token);
/**
 * Is this descriptor preserved? 0: no. 1: in this store's session, under *token (of the store). -EBUSY:
 * yes, but in a session of somebody else, or in one of ours whose holder and process are gone.
 */
int pvi_session_query(const struct pvi_keeper *k, int fd, uint64_t *token);
/** End the session that was prepared; none: nothing to do. */
int pvi_session_cancel(struct pvi_keeper *k);

/** Have the holder retrieve the session that the last kernel left for this store. -ENOENT: none. */
int pvi_session_find(struct pvi_keeper *k);
/** Retrieve what the incoming session still has and let the holder keep it. May be repeated until
 *  it succeeds, also by another process. */
int pvi_session_take_over(struct pvi_keeper *k);
/** Let the kernel forget the incoming session; none: nothing to do. */
int pvi_session_finish(struct pvi_keeper *k);
/** Drop what the last kernel left for this store and nobody has retrieved. */
int pvi_session_discard(const struct pvi_keeper *k);

#endif
