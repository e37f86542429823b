/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The keeper: a store's handle on its holder process, or on the agent in its place, which the backends
 * that use one (`holder`, `luo`, `agent`) embed. It knows all that the holder should have, as duplicates of its own, and so can
 * hand everything to a new holder when the old one has died.
 *
 * Descriptors are in one table, by token: those of the store, and above HOLDER_TOKEN_RESERVED those
 * of a LUO session (session.c), which are kept in the same way and never shown to the store.
 */
#ifndef PVI_HOLDER_H
#define PVI_HOLDER_H

#include "handover.h"
#include "holder_client.h"

/** A session that is being filled (session.c). File i + 1 of it is files[i]. Belongs to whoever
 *  prepares, not to whoever has the table. */
struct pvi_draft {
	bool begun;
	int session;
	int manifest;
	struct pvi_draft_file {
		uint64_t token;
		uint64_t inode; /* is not used again while the session has the file */
	} *files;
	unsigned int n;
	unsigned int capacity;
};

struct pvi_keeper {
	struct pvi_handover base; /* state is PREPARED while the table has an outgoing session */
	struct pvi_holder_place place;
	const struct pv_options *opts;
	struct pvi_fd *table; /* ascending by token; the descriptors are ours */
	unsigned int n;
	unsigned int capacity;
	/* The holder as of the last reply: who it is and how often what it keeps has changed. 0, 0
	   before: one that is fresh will do. */
	uint64_t holder;
	uint64_t changes;
	/*
	 * The store's lock is not ours yet: others may be taking the same store over at this
	 * moment. What a holder that serves has is then the truth, and a request that it finds out
	 * of date fails with -ESTALE: load again and go on from there. Only a holder that is empty
	 * is brought up to date.
	 */
	bool shared;
	struct pvi_draft draft;
	bool held; /* whoever calls holds the pages of what is to be preserved in place (pin.h) */
	bool refilled; /* a holder was brought up to date since the last pvi_keeper_check() */
};

static inline struct pvi_keeper *pvi_keeper_of(struct pvi_handover *h)
{
	return (struct pvi_keeper *)h;
}

int pvi_keeper_open(const char *store_name, const struct pv_options *opts,
		    const struct pvi_handover_ops *ops, struct pvi_handover **out);
/** Make the table what the holder has. -ENOENT: there is no holder, or it has nothing. */
int pvi_keeper_load(struct pvi_keeper *k);
/** See pvi_handover_ops.changed. */
int pvi_keeper_changed(struct pvi_keeper *k);
/** Duplicates of the store's descriptors, as pvi_handover_ops.fetch wants them. */
int pvi_keeper_hand_out(const struct pvi_keeper *k, struct pvi_fd **fds, unsigned int *n);
/** The descriptor of this token in the table, or -1. It stays the keeper's. */
int pvi_keeper_find(const struct pvi_keeper *k, uint64_t token);
/** Let the holder keep a duplicate; starts a holder if there is none. */
int pvi_keeper_keep(struct pvi_keeper *k, uint64_t token, int fd);
/** Let the holder close what it has under this token, then do so too. Unknown: nothing to do. */
int pvi_keeper_drop(struct pvi_keeper *k, uint64_t token);
/** The same on the way out of a failure `rc`, whose message is to stay. */
void pvi_keeper_drop_quietly(struct pvi_keeper *k, uint64_t token, int rc);
/**
 * Have the holder retrieve a LUO session (HOLDER_RETRIEVE), while it keeps nothing; the table then
 * has it too. *status is what the kernel said. -ESTALE: the holder keeps something by now, load.
 */
int pvi_keeper_retrieve(struct pvi_keeper *k, const char *session, int device, int *status);
/** See pvi_handover_ops.check. */
int pvi_keeper_check(struct pvi_keeper *k);
/** Let the holder drop everything and end. */
int pvi_keeper_forget(struct pvi_keeper *k);
void pvi_keeper_close(struct pvi_keeper *k);

/* holder.c: operations of pvi_handover_ops that are the same for every backend with a keeper. */
int pvi_holder_fetch(struct pvi_handover *h, struct pvi_fd **fds, unsigned int *n,
		     bool *from_kexec);
int pvi_holder_changed(struct pvi_handover *h);
int pvi_holder_keep(struct pvi_handover *h, uint64_t token, int fd);
int pvi_holder_drop(struct pvi_handover *h, uint64_t token);
int pvi_holder_finish(struct pvi_handover *h);
int pvi_holder_forget(struct pvi_handover *h);
void pvi_holder_close(struct pvi_handover *h);

#endif
