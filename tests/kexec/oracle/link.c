/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A connection to the server: commands are appended to a buffer and sent as the socket takes them,
 * replies (RESP2) are taken out of another one. The socket does not block; whoever uses a link
 * polls. A connection may end at any byte: the functions say so by a negative errno and keep what
 * was read, so that complete replies before the end can still be taken out.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "oracle.h"

#define READ_BYTES (128u << 10)

/* ---- connecting ---- */

static int address_of(const struct options *o, struct sockaddr_storage *sa, socklen_t *bytes)
{
	struct sockaddr_in *in = (struct sockaddr_in *)sa;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)sa;
	struct sockaddr_un *un = (struct sockaddr_un *)sa;

	memset(sa, 0, sizeof(*sa));
	if (o->unix_path) {
		un->sun_family = AF_UNIX;
		*bytes = sizeof(*un);
		if (strlen(o->unix_path) >= sizeof(un->sun_path))
			fail("the socket's path is longer than %zu: %s", sizeof(un->sun_path) - 1,
			     o->unix_path);
		strcpy(un->sun_path, o->unix_path);
		return AF_UNIX;
	}
	in->sin_port = in6->sin6_port = htons(o->port);
	if (inet_pton(AF_INET, o->host, &in->sin_addr) == 1) {
		in->sin_family = AF_INET;
		*bytes = sizeof(*in);
	} else if (inet_pton(AF_INET6, o->host, &in6->sin6_addr) == 1) {
		in6->sin6_family = AF_INET6;
		*bytes = sizeof(*in6);
	} else {
		fail("%s is not an address", o->host);
	}
	return sa->ss_family;
}

static int poll_one(int fd, short events, uint64_t deadline_ns)
{
	struct pollfd p = {.fd = fd, .events = events};

	for (;;) {
		uint64_t now = now_ns();
		struct timespec left = {0};
		int n;

		if (now < deadline_ns) {
			left.tv_sec = (time_t)((deadline_ns - now) / 1000000000);
			left.tv_nsec = (long)((deadline_ns - now) % 1000000000);
		}
		n = ppoll(&p, 1, &left, NULL);
		if (n > 0)
			return 0;
		if (n == 0)
			return -ETIMEDOUT;
		if (errno != EINTR)
			return -errno;
		if (interrupted())
			return -EINTR;
	}
}

static int finish_connect(int fd, uint64_t timeout_ns)
{
	int error = 0, rc = poll_one(fd, POLLOUT, now_ns() + timeout_ns);
	socklen_t bytes = sizeof(error);

	if (rc)
		return rc;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes))
		return -errno;
	return -error;
}

int link_open(struct link *l, const struct options *o, uint64_t timeout_ns)
{
	struct sockaddr_storage sa;
	socklen_t bytes;
	int rc = 0, family = address_of(o, &sa, &bytes);
	int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	l->fd = -1;
	l->out_len = l->in_off = l->in_len = 0;
	if (fd < 0)
		fail("no socket: %s", strerror(errno));
	if (family != AF_UNIX)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
	if (connect(fd, (struct sockaddr *)&sa, bytes))
		rc = errno == EINPROGRESS ? finish_connect(fd, timeout_ns) : -errno;
	if (rc)
		close(fd);
	else
		l->fd = fd;
	return rc;
}

void link_close(struct link *l)
{
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
}

void link_free(struct link *l)
{
	link_close(l);
	free(l->in);
	free(l->out);
	*l = (struct link){.fd = -1};
}

/* ---- sending ---- */

static char *out_room(struct link *l, size_t bytes)
{
	if (l->out_len + bytes > l->out_cap) {
		l->out_cap = 2 * (l->out_len + bytes);
		l->out = need(l->out, l->out_cap);
	}
	return l->out + l->out_len;
}

static void put_count(struct link *l, char mark, size_t n)
{
	char digits[24];
	unsigned int i = sizeof(digits);
	char *at;

	do {
		digits[--i] = (char)('0' + n % 10);
		n /= 10;
	} while (n);
	at = out_room(l, sizeof(digits) + 3);
	*at++ = mark;
	memcpy(at, digits + i, sizeof(digits) - i);
	memcpy(at + sizeof(digits) - i, "\r\n", 2);
	l->out_len += 1 + sizeof(digits) - i + 2;
}

void link_command(struct link *l, unsigned int words, const char *const *text, const size_t *bytes)
{
	put_count(l, '*', words);
	for (unsigned int i = 0; i < words; i++) {
		char *at;

		put_count(l, '$', bytes[i]);
		at = out_room(l, bytes[i] + 2);
		memcpy(at, text[i], bytes[i]);
		memcpy(at + bytes[i], "\r\n", 2);
		l->out_len += bytes[i] + 2;
	}
}

int link_send(struct link *l)
{
	size_t done = 0;
	int rc = 0;

	while (done < l->out_len) {
		ssize_t n = send(l->fd, l->out + done, l->out_len - done, MSG_NOSIGNAL);

		if (n >= 0) {
			done += (size_t)n;
		} else if (errno != EINTR) {
			rc = errno == EAGAIN ? 0 : -errno;
			break;
		}
	}
	memmove(l->out, l->out + done, l->out_len - done);
	l->out_len -= done;
	return rc;
}

/* ---- receiving ---- */

int link_receive(struct link *l)
{
	if (l->in_off > 0) {
		memmove(l->in, l->in + l->in_off, l->in_len - l->in_off);
		l->in_len -= l->in_off;
		l->in_off = 0;
	}
	for (;;) {
		ssize_t n;

		if (l->in_cap - l->in_len < READ_BYTES) {
			l->in_cap = 2 * l->in_cap + READ_BYTES;
			l->in = need(l->in, l->in_cap);
		}
		n = recv(l->fd, l->in + l->in_len, l->in_cap - l->in_len, 0);
		if (n > 0)
			l->in_len += (size_t)n;
		else if (n == 0)
			return -ECONNRESET;
		else if (errno == EAGAIN)
			return 0;
		else if (errno != EINTR)
			return -errno;
		/* One read is enough to go on with, unless a reply is larger. */
		if (n > 0 && (size_t)n < READ_BYTES)
			return 0;
	}
}

static bool parse_integer(const char *at, const char *end, int64_t *out)
{
	char digits[24];
	char *stop;

	if (at == end || (size_t)(end - at) >= sizeof(digits))
		return false;
	memcpy(digits, at, (size_t)(end - at));
	digits[end - at] = '\0';
	*out = strtoll(digits, &stop, 10);
	return *stop == '\0';
}

static bool parse_bulk(struct link *l, struct reply *r, size_t head)
{
	const char *body = l->in + l->in_off + head;
	size_t left = l->in_len - l->in_off - head, bytes = (size_t)r->integer;

	if (r->integer < -1 || r->integer > INT32_MAX)
		return false;
	if (r->integer == -1) {
		r->text = NULL;
		l->in_off += head;
		return true;
	}
	if (left < bytes + 2) {
		r->type = REPLY_NONE;
		return true;
	}
	r->text = body;
	r->bytes = bytes;
	l->in_off += head + bytes + 2;
	return memcmp(body + bytes, "\r\n", 2) == 0;
}

bool link_reply(struct link *l, struct reply *r)
{
	size_t left = l->in_len - l->in_off;
	const char *at, *end;

	*r = (struct reply){.type = REPLY_NONE};
	if (left == 0)
		return true;
	at = l->in + l->in_off;
	end = memchr(at, '\r', left);
	if (!end || end + 1 == at + left)
		return memchr("+-:$*", *at, 5) != NULL;
	if (end[1] != '\n')
		return false;
	r->text = at + 1;
	r->bytes = (size_t)(end - at) - 1;
	switch (*at) {
	case REPLY_STATUS:
	case REPLY_ERROR:
		break;
	case REPLY_INTEGER:
	case REPLY_BULK:
	case REPLY_ARRAY:
		if (!parse_integer(at + 1, end, &r->integer))
			return false;
		break;
	default:
		return false;
	}
	r->type = (enum reply_type) * at;
	if (*at == REPLY_BULK)
		return parse_bulk(l, r, (size_t)(end - at) + 2);
	l->in_off += (size_t)(end - at) + 2;
	return true;
}

/* ---- one question ---- */

int link_ask(struct link *l, struct reply *r, uint64_t timeout_ns)
{
	uint64_t deadline = now_ns() + timeout_ns;
	int rc = 0;

	for (;;) {
		if (!link_reply(l, r))
			return -EPROTO;
		if (r->type != REPLY_NONE || rc)
			return r->type != REPLY_NONE ? 0 : rc;
		rc = link_send(l);
		if (!rc)
			rc = poll_one(l->fd, (short)(POLLIN | (l->out_len ? POLLOUT : 0)),
				      deadline);
		if (rc)
			return rc;
		rc = link_receive(l);
	}
}

static void append_text(struct link *l, unsigned int words, const char *const *text)
{
	size_t bytes[8];

	for (unsigned int i = 0; i < words && i < 8; i++)
		bytes[i] = strlen(text[i]);
	link_command(l, words, text, bytes);
}

bool link_await(struct link *l, const struct options *o, uint64_t deadline_ns, unsigned int words,
		const char *const *text, bool (*accept)(void *ctx, const struct reply *r),
		void *ctx, char *why, size_t why_bytes)
{
	const uint64_t start = now_ns();

	for (;;) {
		/* An attempt that met a machine in the middle of its start may never be answered,
		   so attempts are short at first: the delay that they add is a tenth at most. */
		uint64_t now = now_ns(), patience = (now - start) / 10 + 50000000;
		struct reply r = {.type = REPLY_NONE};
		int rc = link_open(l, o, patience);

		if (!rc) {
			append_text(l, words, text);
			rc = link_ask(l, &r, patience);
		}
		if (!rc && accept(ctx, &r))
			return true;
		if (!rc)
			snprintf(why, why_bytes, "the server replies: %.*s",
				 r.text ? (int)r.bytes : 6, r.text ? r.text : "(null)");
		else if (now + patience >= deadline_ns || rc != -ETIMEDOUT || !*why)
			snprintf(why, why_bytes, "%s", strerror(-rc));
		link_close(l);
		if (now_ns() >= deadline_ns || interrupted())
			return false;
		if (rc != -ETIMEDOUT) /* refused: there again soon */
			sleep_ns(now - start < 1000000000 ? 100000 : 5000000);
	}
}

static bool any_bulk(void *ctx, const struct reply *r)
{
	(void)ctx;
	return r->type == REPLY_BULK && r->text;
}

bool link_info(struct link *l, const struct options *o, const char *field, char *out, size_t bytes)
{
	size_t field_bytes = strlen(field);
	const char *at, *end;
	struct reply r;

	append_text(l, 1, (const char *const[]){"INFO"});
	if (link_ask(l, &r, (uint64_t)(o->timeout_s * 1e9)) || !any_bulk(NULL, &r))
		return false;
	for (at = r.text; at < r.text + r.bytes; at = end + 1) {
		size_t left = (size_t)(r.text + r.bytes - at);

		end = memchr(at, '\n', left);
		if (!end)
			break;
		if ((size_t)(end - at) > field_bytes && at[field_bytes] == ':' &&
		    memcmp(at, field, field_bytes) == 0) {
			snprintf(out, bytes, "%.*s", (int)(end - at - (ptrdiff_t)field_bytes - 2),
				 at + field_bytes + 1);
			return true;
		}
	}
	return false;
}
