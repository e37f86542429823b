/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is said to the agent, `preserved`, which keeps many stores of many users behind one socket.
 *
 * Transport: a unix SOCK_SEQPACKET socket, by default AGENT_SOCKET. There are two kinds of messages,
 * told apart by their first word:
 *
 *	struct agent_msg	this file. Never carries a descriptor.
 *	struct holder_msg	holder_proto.h, as to a holder. Allowed once AGENT_OPEN has bound the
 *				connection to a store, and then about that store: STATUS, KEEP, DROP,
 *				FETCH, FORGET. RETRIEVE is refused (-EOPNOTSUPP).
 *
 * So what keeps a store's descriptors is the same conversation, be it with a holder or with the
 * agent; this file only adds which store is meant, and what concerns many stores.
 *
 * Each message is of exactly its struct's size. A request gets one reply, of the same operation, LIST
 * a burst of them. A malformed message ends the connection; a request that is well-formed and cannot
 * be done gets a negative errno and changes nothing. Who is at the other end is what the kernel says
 * of the connection (SO_PEERCRED). A user sees and changes only his stores; root, and the user that
 * the agent runs as, those of all. To anybody else a store is as if it were not there, unless its
 * mode lets him read it.
 *
 * Version 1 grows only by new operations (an agent that does not know one says -EOPNOTSUPP) and by
 * fields in `reserved`, which senders set to 0.
 */
#ifndef PVI_AGENT_PROTO_H
#define PVI_AGENT_PROTO_H

#include <stddef.h>
#include <stdint.h>

#include "holder_proto.h"

#define AGENT_MAGIC	0x47415650u /* "PVAG" */
#define AGENT_VERSION	1u
#define AGENT_SOCKET	"/run/preserved/socket"
#define AGENT_BURST	32u	   /* entries that one LIST brings at most */
#define AGENT_UID_SELF	UINT32_MAX /* uid: that of the sender */
#define AGENT_WAIT_MAX_MS 600000u  /* longest barrier */

enum agent_op {
	/**
	 * Bind the connection to the store `store` of the user `uid`, which need not exist: the first
	 * KEEP makes it. Reply: uid, and mode = 0600 (may do everything) or 0400 (may only look:
	 * STATUS, and FETCH of descriptors open for reading). Errors: -EINVAL the name; -EACCES
	 * another user's, and he does not let you.
	 */
	AGENT_OPEN = 1,
	/**
	 * Stores that the sender may see, ordered by uid and name, from the first behind (uid, store)
	 * on, at most AGENT_BURST: each reply is one, `more` is how many are still to come in this
	 * burst. `flags` 0: from the beginning, AGENT_AFTER: behind (uid, store). A last reply of
	 * status -ENOENT says that there are no more.
	 */
	AGENT_LIST = 2,
	/** Close all descriptors of a store. -EBUSY: a process has it open (not with AGENT_FORCE). */
	AGENT_DROP = 3,
	/** Set the mode of a store: 0600, and 0040 the group or 0004 everybody may read it. */
	AGENT_MODE = 4,
	/**
	 * Make a LUO session of the store, so that a kexec keeps it. Prepared already: 0.
	 *
	 * The barrier: if a process has the store open, its part is to do this itself, at a moment
	 * when it does not grow the store. It is told by AGENT_WANTED, and the reply comes when it has
	 * done so, or after timeout_ms with -ETIMEDOUT, and then nothing is prepared. With AGENT_SELF
	 * the sender is that process: the agent makes the session now, while the sender changes
	 * nothing. -EBUSY: something of the kind is under way, or the last session is not finished.
	 */
	AGENT_PREPARE = 5,
	/** Undo AGENT_PREPARE; not prepared: 0. A process that has the store open is asked likewise. */
	AGENT_CANCEL = 6,
	/**
	 * Take over what came through a kexec and has not been claimed, and let the kernel forget its
	 * session. Nothing of the kind: 0. Whoever opens the store does the same by himself.
	 */
	AGENT_FINISH = 7,
	/** On a bound connection: what is the owner asked for? Reply: flags = 0, AGENT_PREPARE or
	 *  AGENT_CANCEL. Doing that is the answer. */
	AGENT_WANTED = 8,
};

/* Request: */
#define AGENT_AFTER    1u /* LIST */
#define AGENT_FORCE    1u /* DROP */
#define AGENT_SELF     1u /* PREPARE */
#define AGENT_INTERNAL 1u /* OPEN: the agent's own, claims nothing */
/* LIST, reply: */
#define AGENT_IS_OPEN	  1u /* a process has it open for writing */
#define AGENT_IS_PREPARED 2u /* a kexec would keep it */
#define AGENT_IS_INCOMING 4u /* came through a kexec and has not been taken over */
#define AGENT_IS_CLAIMED  8u /* fetched by its owner since the agent got it */

struct agent_msg {
	uint32_t magic;
	uint16_t version;
	uint16_t op;
	int32_t status; /* reply: 0 or a negative errno; request: 0 */
	uint32_t more;
	uint32_t uid;
	uint32_t gid; /* LIST: of the store */
	uint32_t mode;
	uint32_t flags;
	uint32_t timeout_ms; /* PREPARE, CANCEL; at most AGENT_WAIT_MAX_MS */
	uint32_t descriptors;
	uint64_t bytes;
	uint64_t reserved[4];
	char store[HOLDER_NAME_MAX]; /* filled up with zeros, at least one */
};

_Static_assert(sizeof(struct agent_msg) == 144, "agent_msg");
_Static_assert(offsetof(struct agent_msg, bytes) == 40, "agent_msg.bytes");

#endif
