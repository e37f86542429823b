/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Listening sockets: TCP on one address, a unix socket, or both. They are bound before the store is
 * opened, so that a port in use is found out first, and listen only once it is.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "kvstore.h"

#define LISTENERS_MAX	  2u
#define BACKLOG		  511
#define ACCEPTS_AT_ONCE	  64
#define ACCEPT_PAUSE_MS	  100
#define OTHER_DESCRIPTORS 64u /* that are not clients: memfds of the store, the loop's own */

struct listener {
	uv_poll_t poll;
	int fd;
	bool is_unix;
};

static struct listener listeners[LISTENERS_MAX];
static unsigned int nlisteners;
static uv_timer_t pause_timer;

static void add_listener(int fd, bool is_unix)
{
	listeners[nlisteners].fd = fd;
	listeners[nlisteners++].is_unix = is_unix;
}

static bool is_loopback(const struct sockaddr *a)
{
	if (a->sa_family == AF_INET6)
		return IN6_IS_ADDR_LOOPBACK(
			&((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
	return ntohl(((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr) >> 24 == 127;
}

static int bind_tcp(void)
{
	struct addrinfo hints = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *found;
	const char *address = server.opt.bind;
	char port[8];
	int fd, err, one = 1;

	snprintf(port, sizeof(port), "%u", server.opt.port);
	err = getaddrinfo(strcmp(address, "*") ? address : NULL, port, &hints, &found);
	if (err) {
		log_error("address %s: %s", address, gai_strerror(err));
		return -1;
	}
	fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(fd, found->ai_addr, found->ai_addrlen)) {
		log_error("cannot bind to %s port %s: %s", address, port,
			  errno == EADDRINUSE ? "the port is in use by another process"
					      : strerror(errno));
		if (fd >= 0)
			close(fd);
		freeaddrinfo(found);
		return -1;
	}
	if (!is_loopback(found->ai_addr))
		log_info("bound to %s: anyone who reaches this address can read and write the "
			 "store, "
			 "for there are no passwords",
			 address);
	freeaddrinfo(found);
	add_listener(fd, false);
	return 0;
}

/* A socket file that nobody listens on is what a killed server left. 0: the path is free. */
static int clear_path(const struct sockaddr_un *a)
{
	struct stat st;
	int fd, err;

	if (lstat(a->sun_path, &st))
		return 0;
	if (!S_ISSOCK(st.st_mode)) {
		log_error("%s exists and is not a socket", a->sun_path);
		return -1;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	err = fd < 0 || connect(fd, (const struct sockaddr *)a, sizeof(*a)) ? errno : 0;
	if (fd >= 0)
		close(fd);
	if (err == ECONNREFUSED)
		return unlink(a->sun_path);
	log_error("socket %s is in use by another process", a->sun_path);
	return -1;
}

static int bind_unix(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd;

	if (strlen(server.opt.unix_path) >= sizeof(a.sun_path)) {
		log_error("socket path %s is longer than %zu bytes", server.opt.unix_path,
			  sizeof(a.sun_path) - 1);
		return -1;
	}
	strcpy(a.sun_path, server.opt.unix_path);
	if (clear_path(&a))
		return -1;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (const struct sockaddr *)&a, sizeof(a))) {
		log_error("cannot bind to socket %s: %s", a.sun_path, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	add_listener(fd, true);
	return 0;
}

/* As many descriptors as clients may need; fewer clients if that is refused. */
static void raise_descriptor_limit(void)
{
	struct rlimit r;
	rlim_t want = server.opt.max_clients + OTHER_DESCRIPTORS;

	if (getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur >= want)
		return;
	r.rlim_cur = r.rlim_max < want ? r.rlim_max : want;
	if (setrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur >= want)
		return;
	server.opt.max_clients = r.rlim_cur > 2 * OTHER_DESCRIPTORS
					 ? (unsigned int)r.rlim_cur - OTHER_DESCRIPTORS
					 : OTHER_DESCRIPTORS;
	log_info("the limit of %llu descriptors allows %u clients", (unsigned long long)r.rlim_cur,
		 server.opt.max_clients);
}

int net_bind(void)
{
	raise_descriptor_limit();
	if (server.opt.port && bind_tcp())
		return -1;
	if (server.opt.unix_path && bind_unix())
		return -1;
	return 0;
}

/* ---- accepting ---- */

static void on_connection(uv_poll_t *poll, int status, int events);

static void resume_accepting(uv_timer_t *timer)
{
	for (unsigned int i = 0; i < nlisteners; i++)
		uv_poll_start(&listeners[i].poll, UV_READABLE, on_connection);
}

static void accept_failed(int err)
{
	if (err == EAGAIN || err == EWOULDBLOCK || err == EINTR || err == ECONNABORTED)
		return;
	log_error("cannot accept a connection: %s", strerror(err));
	/* Out of descriptors or memory: the connection waits, and so do we. */
	for (unsigned int i = 0; i < nlisteners; i++)
		uv_poll_stop(&listeners[i].poll);
	uv_timer_start(&pause_timer, resume_accepting, ACCEPT_PAUSE_MS, 0);
}

static void describe(const struct sockaddr_storage *a, char *out, size_t len)
{
	char host[INET6_ADDRSTRLEN] = "?";

	if (a->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)a;

		inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
		snprintf(out, len, "%s:%u", host, ntohs(in->sin_port));
	} else if (a->ss_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)a;

		inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
		snprintf(out, len, "[%s]:%u", host, ntohs(in6->sin6_port));
	} else {
		snprintf(out, len, "%s:0", server.opt.unix_path);
	}
}

static void greet(int fd, const struct listener *l, const struct sockaddr_storage *a)
{
	static const char full[] = "-ERR max number of clients reached\r\n";
	char address[64];
	int one = 1;

	if (server.nclients >= server.opt.max_clients) {
		server.nrejected++;
		/* Best effort: the connection ends in any case. */
		if (send(fd, full, sizeof(full) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
			log_info("a connection was refused without a word: %s", strerror(errno));
		close(fd);
		return;
	}
	if (!l->is_unix) {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	}
	describe(a, address, sizeof(address));
	client_accept(fd, l->is_unix, address);
}

static void on_connection(uv_poll_t *poll, int status, int events)
{
	struct listener *l = poll->data;

	for (int i = 0; i < ACCEPTS_AT_ONCE; i++) {
		struct sockaddr_storage a = {.ss_family = AF_UNSPEC};
		socklen_t len = sizeof(a);
		int fd = accept4(l->fd, (struct sockaddr *)&a, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0) {
			accept_failed(errno);
			return;
		}
		greet(fd, l, &a);
	}
}

int net_listen(void)
{
	int err = uv_timer_init(&server.loop, &pause_timer);

	for (unsigned int i = 0; i < nlisteners && !err; i++) {
		struct listener *l = &listeners[i];

		if (listen(l->fd, BACKLOG)) {
			log_error("cannot listen on %s: %s",
				  l->is_unix ? server.opt.unix_path : server.opt.bind,
				  errno == EADDRINUSE ? "the port is in use by another process"
						      : strerror(errno));
			return -1;
		}
		l->poll.data = l;
		err = uv_poll_init(&server.loop, &l->poll, l->fd);
		if (!err)
			err = uv_poll_start(&l->poll, UV_READABLE, on_connection);
	}
	if (err)
		log_error("event loop: %s", uv_strerror(err));
	return err ? -1 : 0;
}

void net_close(void)
{
	for (unsigned int i = 0; i < nlisteners; i++) {
		if (listeners[i].poll.data) {
			uv_poll_stop(&listeners[i].poll);
			uv_close((uv_handle_t *)&listeners[i].poll, NULL);
		}
		close(listeners[i].fd);
		if (listeners[i].is_unix)
			unlink(server.opt.unix_path);
	}
	if (nlisteners && listeners[0].poll.data)
		uv_close((uv_handle_t *)&pause_timer, NULL);
	nlisteners = 0;
}
