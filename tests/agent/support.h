/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * For tests of the agent: one of its own for each test, in the test's directory, on top of
 * handover_support.h, whose handles are then on a store that this agent keeps.
 */
#ifndef TEST_AGENT_SUPPORT_H
#define TEST_AGENT_SUPPORT_H

#include "../handover_support.h"

#include <preserve/agent.h>

#include "agent.h"

#define OTHER_USER 65534u
#define THIRD_USER 65533u

/** Socket of the test's agent. */
extern char agent_path[100];
/** Its process; 0: none runs. */
extern pid_t agent_pid;

int agent_setup(void **state);
int agent_teardown(void **state);

/** Start it, with further arguments, NULL at the end, and wait until it serves. */
void agent_start(const char *argument, ...);
/** With systemd's variables: what passes in nfds descriptors of these names (`a:b`) at 3. */
void agent_start_systemd(const char *notify, const int *fds, unsigned int nfds, const char *names,
			 const char *argument, ...);
/** Send a signal; wait for its end. */
void agent_end(int signal);
/** Run it until it ends by itself; its exit status. */
int agent_status(const char *argument, ...);
/** Wait until pings are answered after a SIGHUP. */
void agent_restart(void);

/** In a child that is another user from now on. */
void become(uint32_t uid);
/** A handle on a store of any name. */
struct pvi_handover *open_named(const char *name);
/** A connection to the agent, bound to STORE of uid; returns what AGENT_OPEN says, or the socket. */
int bound(uint32_t uid);
/** A request of the holder's protocol with descriptors; the status of the reply, or -ECONNRESET if
 *  the connection was ended instead. */
int holder_request(int sock, uint16_t op, uint64_t token, uint32_t more, const int *fds,
		   unsigned int nfds);

#endif
