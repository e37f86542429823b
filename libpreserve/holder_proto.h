/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the library and a holder process say to each other.
 *
 * A holder outlives the library that started it by many upgrades, so version 1 of this is fixed: a
 * later library goes on speaking it to the holders that run. New operations may be added; a holder
 * that does not know one says -EOPNOTSUPP.
 *
 * Transport: a unix SOCK_SEQPACKET socket. Each message, either way, is exactly one struct
 * holder_msg, with at most one descriptor (SCM_RIGHTS) where its operation says so. A request gets
 * one reply, FETCH a burst of them. A message that is malformed ends the connection; a request that
 * is well-formed and cannot be done gets a reply with a negative errno and changes nothing.
 *
 * Both sides serve only the same user (SO_PEERCRED). A connection is for one task of the library
 * and short; one on which nothing is said for HOLDER_IDLE_MS may be closed by the holder.
 *
 * The holder program is built without a C library: this file includes nothing that needs one.
 */
#ifndef PVI_HOLDER_PROTO_H
#define PVI_HOLDER_PROTO_H

#include <stddef.h>
#include <stdint.h>

#define HOLDER_MAGIC	0x484f5650u /* "PVOH" */
#define HOLDER_VERSION	1u
#define HOLDER_IDLE_MS	250
#define HOLDER_FDS_MAX	4096u /* memfds of one store, and what stands beside them */
#define HOLDER_BURST	32u   /* descriptors that one FETCH brings at most */
#define HOLDER_NAME_MAX 64u
#define HOLDER_SIZE_UNIT 4096u

/**
 * Tokens that are not those of a store (0 is the index, n + 1 is segment n): what belongs to a LUO
 * session is kept beside the memfds, so that the session survives the application too.
 */
#define HOLDER_TOKEN_RESERVED (UINT64_MAX - 15)
#define HOLDER_TOKEN_MANIFEST (UINT64_MAX - 2) /* memfd that lists what the session holds */
#define HOLDER_TOKEN_INCOMING (UINT64_MAX - 1) /* session retrieved after a kexec, not finished */
#define HOLDER_TOKEN_OUTGOING (UINT64_MAX - 0) /* session prepared for the next kexec */

enum holder_op {
	/** Say who you are: reply.token = pid, reply.more = number of descriptors. */
	HOLDER_STATUS = 1,
	/**
	 * Keep the attached descriptor under the token, in place of one that is there. Memfds must
	 * carry the seals SHRINK and GROW, the two session tokens take LUO sessions. `more` is the
	 * memfd's size in units of HOLDER_SIZE_UNIT, 0: not said; a holder does not look at it.
	 * Errors: -EMFILE, -EPERM (not sealed), -EMEDIUMTYPE (not a memfd or session where one is
	 * due), -ENOSPC, -EINVAL (the token); from the agent also -EMSGSIZE (another size than was
	 * said) and -EDQUOT.
	 */
	HOLDER_KEEP = 2,
	/** Close the descriptor of this token; not there: fine. */
	HOLDER_DROP = 3,
	/**
	 * Duplicates of the descriptors from this token on, ascending, at most HOLDER_BURST: each
	 * reply has its descriptor and token, and `more` is how many are still to come in this
	 * burst. A last reply of status -ENOENT without a descriptor says that there are no more.
	 */
	HOLDER_FETCH = 4,
	/** Close everything and end. The socket is gone before the reply is sent. */
	HOLDER_FORGET = 5,
	/**
	 * Attached is an open /dev/liveupdate. Retrieve the session `name` and keep it as
	 * HOLDER_TOKEN_INCOMING. The holder does it because the session of a process that is
	 * killed at this point would be finished, and what it carries freed. The reply brings a
	 * duplicate, so that from then on two have it and the death of either loses nothing.
	 */
	HOLDER_RETRIEVE = 6,
};

struct holder_msg {
	uint32_t magic;
	uint16_t version;
	uint16_t op;
	int32_t status; /* reply: 0 or a negative errno; request: 0 */
	uint32_t more;
	uint64_t token;
	/*
	 * Reply: a number that tells this holder from every other, and how often what it keeps has
	 * been changed (KEEP, DROP, RETRIEVE). Request: the same as the sender knows it; one that
	 * would change something is refused with -ESTALE if it is out of date, so that two
	 * processes cannot mix two stores of one name. `holder` 0 means any that is at `changes`;
	 * FORGET with `holder` 0 is not refused.
	 */
	uint64_t holder;
	uint64_t changes;
	char name[HOLDER_NAME_MAX]; /* RETRIEVE; else zero */
};

_Static_assert(sizeof(struct holder_msg) == 104, "holder_msg");
_Static_assert(offsetof(struct holder_msg, token) == 16, "holder_msg.token");

#endif
