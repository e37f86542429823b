/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages to the service manager: datagrams of lines NAME=VALUE to the socket that $NOTIFY_SOCKET
 * names, with at most one descriptor (sd_notify(3) describes the protocol and promises that it
 * stays). Nobody answers; only a barrier tells that everything before it has been dealt with.
 */
#ifndef PVI_NOTIFY_H
#define PVI_NOTIFY_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

struct pvi_notify {
	struct sockaddr_un address;
	socklen_t bytes; /* 0: there is no service manager */
};

/** Take the address from the environment, which may change afterwards. No error if there is none. */
void pvi_notify_init(struct pvi_notify *n);

/**
 * Send a message, with a descriptor unless fd is -1. Returns when the kernel has it, which is before
 * the manager has looked at it. -ENODEV: there is no manager; -ETIMEDOUT: it does not read.
 */
__attribute__((format(printf, 3, 4))) int pvi_notify_send(const struct pvi_notify *n, int fd,
							  const char *format, ...);

/** Wait until the manager has dealt with all that was sent before, 5 s at most: -ETIMEDOUT. */
int pvi_notify_barrier(const struct pvi_notify *n);

/** Tests: wait that long instead. */
void pvi_notify_patience(int ms);

#endif
