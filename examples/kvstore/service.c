/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Telling the service manager how far we are: READY=1 when clients are served, STOPPING=1 when not any
 * more (sd_notify(3); the unit has Type=notify). Without a manager nothing is told. That it keeps the
 * store is the library's business (PV_HANDOVER_SYSTEMD).
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "kvstore.h"

void service_tell(const char *what)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t bytes = path ? strlen(path) : 0;
	int sock;

	if (bytes < 2 || (*path != '/' && *path != '@') || bytes > sizeof(address.sun_path))
		return;
	memcpy(address.sun_path, path, bytes);
	if (*path == '@')
		address.sun_path[0] = 0;
	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0 ||
	    sendto(sock, what, strlen(what), MSG_NOSIGNAL, (struct sockaddr *)&address,
		   (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes)) < 0)
		log_error("cannot tell the service manager %s: %s", what, strerror(errno));
	if (sock >= 0)
		close(sock);
}
