/* SPDX-License-Identifier: BSD-3-Clause */
/* Descriptors in messages of unix sockets (SCM_RIGHTS), of which the library's protocols have one at most. */
#ifndef PVI_RIGHTS_H
#define PVI_RIGHTS_H

#include <string.h>
#include <sys/socket.h>

/** Room for one. Has to live as long as the message. */
union pvi_rights {
	struct cmsghdr head;
	char bytes[CMSG_SPACE(sizeof(int))];
};

/** Let a message that is to be sent carry a descriptor; -1: none. */
static inline void pvi_rights_put(struct msghdr *msg, union pvi_rights *room, int fd)
{
	if (fd < 0)
		return;
	memset(room, 0, sizeof(*room));
	room->head.cmsg_level = SOL_SOCKET;
	room->head.cmsg_type = SCM_RIGHTS;
	room->head.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&room->head), &fd, sizeof(fd));
	msg->msg_control = room;
	msg->msg_controllen = sizeof(*room);
}

/** How many came with a received message: the first goes to *fd (-1: none), others to `surplus`. */
static inline unsigned int pvi_rights_take(struct msghdr *msg, int *fd, void (*surplus)(int fd))
{
	unsigned int n = 0;

	*fd = -1;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
			int got;

			memcpy(&got, CMSG_DATA(c) + at, sizeof(got));
			if (n++ == 0)
				*fd = got;
			else
				surplus(got);
		}
	}
	return n;
}

#endif
