/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The library's end of the conversation with the agent (agent_proto.h): reaching it, for the keeper,
 * and asking what concerns many stores, for preserve/agent.h.
 */
#ifndef PVI_AGENT_H
#define PVI_AGENT_H

#include "agent_proto.h"
#include "holder_client.h"

/** Where the agent listens: opts->agent_socket, $PRESERVE_AGENT or AGENT_SOCKET. Not to be freed. */
const char *pvi_agent_socket(const char *wanted);
/** The place of a store that the agent keeps. Touches nothing. */
int pvi_agent_place_init(struct pvi_holder_place *place, const char *store_name,
			 const struct pv_options *opts);
/** Connect to the agent and bind the connection to the place's store: pvi_holder_dial() of such a
 *  place. -ECONNREFUSED: no agent is there. */
int pvi_agent_dial(const struct pvi_holder_place *place, int *sock);
/** Connect, nothing more. */
int pvi_agent_connect(const char *path, int *sock);
/** Send a request and wait for the reply, for at most timeout_ms (-1: as long as the agent lives).
 *  0: there is a reply, look at m->status. */
int pvi_agent_ask(int sock, struct agent_msg *m, int timeout_ms);
/** Wait for a further reply to the last request. */
int pvi_agent_hear(int sock, uint16_t op, struct agent_msg *m, int timeout_ms);

#endif
