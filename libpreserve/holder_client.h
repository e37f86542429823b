/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Where a store's holder is found, how it is reached, how it is started. Used by the backends that
 * keep descriptors in a holder (holder.c), and by nothing else.
 */
#ifndef PVI_HOLDER_CLIENT_H
#define PVI_HOLDER_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include <preserve/preserve.h>

#include "holder_proto.h"

/** For how long a holder, or the start of one by somebody else, is waited for. */
#define PVI_HOLDER_WAIT_MS 5000

/** Where the holder of a store listens: DIR/NAME.sock; or the socket of the agent that keeps it. */
struct pvi_holder_place {
	char *dir;
	char *agent;		    /* path of its socket; NULL: a holder */
	char name[HOLDER_NAME_MAX]; /* of the store */
	uint32_t uid;		    /* whose store it is */
	bool internal;		    /* the agent itself asks (AGENT_INTERNAL) */
};

/** Choose the directory: opts->runtime_dir or the default. Touches nothing. */
int pvi_holder_place_init(struct pvi_holder_place *place, const char *store_name,
			  const struct pv_options *opts);
void pvi_holder_place_free(struct pvi_holder_place *place);
/** Open the directory, after the checks that each use makes. -ENOENT: there is none. */
int pvi_holder_dir(const struct pvi_holder_place *place);

/**
 * Connect to the store's holder; if there is none, -ENOENT, or if it has died, -ECONNREFUSED; with
 * `start` start one in both cases. Any other error means that there may be one. *started: this call has started it, it keeps nothing.
 */
int pvi_holder_dial(const struct pvi_holder_place *place, bool start, int *sock, bool *started);

/**
 * Send a request (op, token, more, holder, name of *m count; fd may be -1) and wait for the reply,
 * which takes the place of *m. 0 means that the reply is there, look at m->status.
 * -ECONNRESET: the holder went away before it answered. -ETIMEDOUT: it does not answer.
 * fd_out: NULL, or where a descriptor that comes with the reply goes (-1 if none came).
 */
int pvi_holder_ask(const struct pvi_holder_place *place, int sock, struct holder_msg *m, int fd,
		   int *fd_out);

/** Wait for a further reply to the last request. */
int pvi_holder_hear(const struct pvi_holder_place *place, int sock, uint16_t op,
		    struct holder_msg *m, int *fd_out);

/** holder_start.c: run the holder program on a listening socket that is bound to `path`. Neither
 *  descriptor may be below 3. The holder is no child of this process. */
int pvi_holder_spawn(const char *store_name, const char *path, int listener);

#endif
