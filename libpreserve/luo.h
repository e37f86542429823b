/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The Live Update Orchestrator's calls. They set no message but where it is said, and return 0 or a
 * negative errno as the kernel gave it: only the caller knows what the call was for.
 */
#ifndef PVI_LUO_H
#define PVI_LUO_H

#include <stdbool.h>
#include <stdint.h>

#include "luo_uapi.h"

/**
 * Open /dev/liveupdate, with a message on failure. It admits one opener at a time on the whole
 * machine, so a busy one is waited for (for a second, then -EBUSY), and the caller closes it at
 * once after its ioctl. -ENODEV: no such device; -EACCES.
 */
int pvi_luo_device(void);

/** The name of the session of a user's store: the same in the next kernel. */
void pvi_luo_session_name(uint32_t uid, const char *store_name, char name[LUO_NAME_MAX]);

/* On the device. -EEXIST: the name is taken. */
int pvi_luo_create(int device, const char *name, int *session);
/* On the device. -ENOENT: no such session; -EINVAL: retrieved already. */
int pvi_luo_retrieve_session(int device, const char *name, int *session);

/* On a session. */
int pvi_luo_preserve(int session, uint64_t token, int fd);
int pvi_luo_retrieve(int session, uint64_t token, int *fd);
int pvi_luo_finish(int session);
/** The session's whole name. -ENOTTY: this kernel does not say, or it is no session. */
int pvi_luo_name(int session, char name[LUO_NAME_MAX]);
/** Is the descriptor a session? Told by its file system, its link in /proc, or its name. */
bool pvi_luo_is_session(int fd);
/** Is the memfd frozen, that is, preserved in a session, ours or another's? Its first page must have
 *  memory. Waits for a preserve of it that is under way. */
bool pvi_luo_is_frozen(int fd);

#endif
