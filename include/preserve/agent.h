/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The agent, preserved(8), from an operator's side: which stores it keeps, and what is to be done with
 * them. Applications do not need this: they open stores with PV_HANDOVER_AGENT.
 *
 * `socket` is the path of the agent's socket; NULL: $PRESERVE_AGENT, else /run/preserved/socket. `uid`
 * is the store's owner, or PV_AGENT_SELF for the calling user. A user sees and changes his own stores,
 * root those of all.
 *
 * All calls return 0 or a negative errno with a message (pv_last_error()), and may be made by any
 * thread. Errors of all: -ECONNREFUSED no agent is there; -ECONNRESET it went away; -ETIMEDOUT it does
 * not answer; -EACCES it is not an agent to be trusted, or the store is another user's; -ENOENT it has
 * no such store; -ENOMEM. A crash of the caller changes nothing of what the agent goes on to do.
 */
#ifndef PRESERVE_AGENT_H
#define PRESERVE_AGENT_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PV_AGENT_SELF UINT32_MAX

struct pv_agent_entry {
	char name[64];
	uint32_t uid;
	uint32_t gid;
	uint32_t mode;	      /* 0600, and 0040 or 0004 if the group or everybody may read it */
	uint32_t descriptors; /* those of a session included */
	uint64_t bytes;	      /* sum of the memfds' sizes */
	bool open;	      /* a process has it open for writing */
	bool prepared;	      /* a kexec would keep it */
	bool incoming;	      /* came through a kexec and has not been taken over yet */
	bool claimed;	      /* its owner has fetched it since the agent got it */
};

/** The stores that the agent keeps and the caller may see, by uid and name. *list is malloc'ed,
 *  free() it; NULL if *n is 0. */
int pv_agent_list(const char *socket, struct pv_agent_entry **list, uint32_t *n);

/** Drop a store for good. -EBUSY: a process has it open, and `force` is false. With `force` that
 *  process goes on, and its next pv_handover_check() hands the store over again. */
int pv_agent_drop(const char *socket, uint32_t uid, const char *name, bool force);

/** Say who may open the store read-only besides its owner: mode 0600 nobody, 0640 the owner's group,
 *  0644 everybody. -EINVAL another mode. */
int pv_agent_mode(const char *socket, uint32_t uid, const char *name, uint32_t mode);

/**
 * Make a store survive a kexec (see pv_handover_prepare()). If a process has it open, that process is
 * asked, at its next pv_handover_check(), and waited for: for timeout_ms at most (up to 600000), then
 * -ETIMEDOUT and nothing is prepared. -ENODEV, -EACCES: the agent has no LUO; -EBUSY: the store is
 * being prepared or cancelled already, or its last session is not finished.
 */
int pv_agent_prepare(const char *socket, uint32_t uid, const char *name, uint32_t timeout_ms);

/** Undo pv_agent_prepare(), asking and waiting for the process that has the store open likewise. */
int pv_agent_cancel(const char *socket, uint32_t uid, const char *name, uint32_t timeout_ms);

/** Take over a store that came through a kexec, whose owner has not come back yet, and let the kernel
 *  forget the session that brought it. The memory is then the agent's (as to its cgroup). */
int pv_agent_finish(const char *socket, uint32_t uid, const char *name);

#ifdef __cplusplus
}
#endif

#endif
