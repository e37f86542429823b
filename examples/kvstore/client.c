/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Clients: connections, and the buffers that are theirs alone.
 *
 * One turn of a client: read once; run the complete commands (run.c); write once. It is read into a
 * shared buffer behind what it left over the last time, and its replies gather in another one, as a
 * span that begins at client->span. What cannot be done with at the end of the turn is copied to
 * memory of its own: a part of a command, replies that the socket does not take.
 *
 * A client that does not read its replies makes them pile up. There is a limit for all clients
 * together; beyond it, the one that takes most is closed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "kvstore.h"

#define IN_BYTES   (64u << 10)	/* read at once */
#define IN_SHARED  (16u << 10)	/* leftovers up to this size are read on in the shared buffer */
#define OUT_BYTES  (256u << 10) /* shared, at first */
#define OUT_SHRINK (4u << 20)	/* beyond it the buffer does not stay for long */
#define SMALL_KEPT 1024u	/* a buffer of this size is kept for the next leftover */

static int allocate_shared(void)
{
	if (!server.in)
		server.in = malloc(IN_SHARED + IN_BYTES);
	if (!server.out) {
		server.out = malloc(OUT_BYTES);
		server.out_cap = OUT_BYTES;
	}
	return server.in && server.out ? 0 : -1;
}

/* ---- ending ---- */

static void freed(uv_handle_t *handle)
{
	struct client *c = handle->data;

	free(c->in);
	free(c->out);
	free(c->name);
	free(c->args.v);
	free(c);
}

static void account(size_t *cap, size_t new_cap)
{
	server.client_bytes += new_cap - *cap;
	*cap = new_cap;
}

/* What a client takes of the limit. */
static size_t own_bytes(const struct client *c)
{
	return c->in_cap + c->out_cap + c->args_bytes;
}

void client_close(struct client *c)
{
	if (c->closed)
		return;
	c->closed = true;
	c->closing = true;
	uv_poll_stop(&c->poll);
	close(c->fd);
	if (c->previous)
		c->previous->next = c->next;
	else
		server.clients = c->next;
	if (c->next)
		c->next->previous = c->previous;
	server.nclients--;
	server.client_bytes -= own_bytes(c);
	/* A thread that works for it still points to it: client_unblock() goes on here. */
	if (!c->blocked)
		uv_close((uv_handle_t *)&c->poll, freed);
}

void client_close_all(void)
{
	while (server.clients)
		client_close(server.clients);
	free(server.in);
	free(server.out);
	server.in = NULL;
	server.out = NULL;
}

/* Clients take more memory than they may: the largest one ends. */
static void enforce_limit(void)
{
	while (server.client_bytes > server.opt.client_memory) {
		struct client *largest = server.clients;

		for (struct client *c = server.clients; c; c = c->next)
			if (own_bytes(c) > own_bytes(largest))
				largest = c;
		if (!largest)
			return;
		log_error("client %s is closed: clients' buffers take %llu bytes, %zu of them are "
			  "its "
			  "own; the limit is %llu",
			  largest->address, (unsigned long long)server.client_bytes,
			  own_bytes(largest), (unsigned long long)server.opt.client_memory);
		client_close(largest);
	}
}

/* ---- writing ---- */

static void on_poll(uv_poll_t *poll, int status, int events);

static void poll_for(struct client *c, int events)
{
	if (c->closed || c->events == events)
		return;
	c->events = events;
	if (events)
		uv_poll_start(&c->poll, events, on_poll);
	else
		uv_poll_stop(&c->poll);
}

static void poll_as_needed(struct client *c)
{
	poll_for(c, (c->closing || c->blocked ? 0 : UV_READABLE) | (c->out_len ? UV_WRITABLE : 0));
}

/* Write as much as the socket takes. Returns what it took, or -1: the connection is broken. */
static ssize_t send_some(struct client *c, const char *data, size_t len)
{
	size_t sent = 0;

	while (sent < len) {
		ssize_t n = send(c->fd, data + sent, len - sent, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN || errno == EWOULDBLOCK ? (ssize_t)sent : -1;
		sent += (size_t)n;
		server.out_bytes += (uint64_t)n;
	}
	return (ssize_t)sent;
}

/* Give the shared buffer, which holds only this client's replies, to it, and make a new one. */
static bool give_output(struct client *c, const char *data, size_t len)
{
	char *out = malloc(OUT_BYTES);

	if (!out)
		return false;
	c->out = server.out;
	c->out_off = (size_t)(data - server.out);
	c->out_len = len;
	account(&c->out_cap, server.out_cap);
	server.out = out;
	server.out_cap = OUT_BYTES;
	return true;
}

/* Keep replies that could not be written. */
static bool keep_output(struct client *c, const char *data, size_t len)
{
	if (!len)
		return true;
	if (!c->out && c->span == 0 && server.out_cap > OUT_BYTES)
		return give_output(c, data, len);
	if (c->out_off && c->out_off + c->out_len + len > c->out_cap) {
		memmove(c->out, c->out + c->out_off, c->out_len);
		c->out_off = 0;
	}
	if (c->out_off + c->out_len + len > c->out_cap) {
		size_t cap = c->out_cap ? c->out_cap : 4096;
		char *out;

		while (cap < c->out_len + len)
			cap *= 2;
		out = realloc(c->out, cap);
		if (!out)
			return false;
		c->out = out;
		account(&c->out_cap, cap);
	}
	memcpy(c->out + c->out_off + c->out_len, data, len);
	c->out_len += len;
	return true;
}

/* Write the replies that have gathered in the shared buffer since client_reply_begin(). */
void client_write(struct client *c)
{
	const char *data = server.out + c->span;
	size_t len = server.out_len - c->span;
	ssize_t sent = 0;

	server.out_len = c->span;
	if (c->closed || !len)
		return;
	if (!c->out_len)
		sent = send_some(c, data, len);
	if (sent < 0 || !keep_output(c, data + sent, len - (size_t)sent))
		client_close(c);
}

static void write_leftover(struct client *c)
{
	ssize_t sent = send_some(c, c->out + c->out_off, c->out_len);

	if (sent < 0) {
		client_close(c);
		return;
	}
	c->out_off += (size_t)sent;
	c->out_len -= (size_t)sent;
	if (!c->out_len) {
		free(c->out);
		c->out = NULL;
		c->out_off = 0;
		account(&c->out_cap, 0);
	}
}

void client_reply_begin(struct client *c)
{
	c->span = server.out_len;
}

void client_reply_end(struct client *c)
{
	client_write(c);
	if (server.out_cap > OUT_SHRINK && !server.out_len) {
		char *out = realloc(server.out, OUT_BYTES);

		if (out) {
			server.out = out;
			server.out_cap = OUT_BYTES;
		}
	}
	if (c->closed)
		return;
	if (c->closing && !c->out_len)
		client_close(c);
	else
		poll_as_needed(c);
}

/* ---- reading ---- */

/*
 * Make room behind the leftover in the client's own buffer: for the rest of the command, but for no
 * more than has arrived already. So memory grows with what was sent, not with what was announced,
 * and doubles, which makes the cost of copying linear.
 */
static bool grow_input(struct client *c)
{
	size_t rest = c->parser.want > c->in_len ? c->parser.want - c->in_len : IN_BYTES;
	size_t room = c->in_cap - c->in_len, cap;
	char *in;

	if (room >= IN_BYTES || room >= rest)
		return true;
	cap = c->in_len + (rest < c->in_len ? rest : c->in_len);
	if (cap < c->in_len + IN_BYTES)
		cap = c->in_len + IN_BYTES;
	in = realloc(c->in, cap);
	if (!in)
		return false;
	c->in = in;
	account(&c->in_cap, cap);
	return true;
}

/* Keep what is left over in the client's own buffer. */
static bool keep_input(struct client *c, const char *data, size_t len)
{
	if (data >= c->in && data < c->in + c->in_cap) {
		if (data != c->in)
			memmove(c->in, data, len);
	} else if (len > c->in_cap) {
		char *in = realloc(c->in, len);

		if (!in)
			return false;
		c->in = in;
		account(&c->in_cap, len);
		memcpy(c->in, data, len);
	} else if (len) {
		memcpy(c->in, data, len);
	}
	c->in_len = len;
	if (len <= SMALL_KEPT && c->in_cap > 2 * IN_SHARED) {
		char *in = realloc(c->in, SMALL_KEPT);

		if (in) {
			c->in = in;
			account(&c->in_cap, SMALL_KEPT);
		}
	}
	return true;
}

static void run_and_keep(struct client *c, char *data, size_t len)
{
	size_t used;

	client_reply_begin(c);
	used = run_input(c, data, len);
	if (c->overflow)
		server.out_len = c->span;
	if (!c->closed && !keep_input(c, data + used, len - used))
		client_close(c);
	if (!c->closed)
		account(&c->args_bytes, c->args.cap * sizeof(*c->args.v));
	client_reply_end(c);
	enforce_limit();
}

static void read_some(struct client *c)
{
	char *data;
	size_t room;
	ssize_t n;

	if (c->in_len <= IN_SHARED) {
		data = server.in;
		if (c->in_len)
			memcpy(data, c->in, c->in_len);
		room = IN_BYTES;
	} else {
		if (!grow_input(c)) {
			log_error("client %s is closed: no memory for its command of %zu bytes so "
				  "far",
				  c->address, c->in_len);
			client_close(c);
			return;
		}
		data = c->in;
		room = c->in_cap - c->in_len;
	}
	n = read(c->fd, data + c->in_len, room);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		client_close(c);
		return;
	}
	server.in_bytes += (uint64_t)n;
	server.db.now_ms = clock_unix_ms();
	c->active_ms = server.db.now_ms;
	run_and_keep(c, data, c->in_len + (size_t)n);
}

static void on_poll(uv_poll_t *poll, int status, int events)
{
	struct client *c = poll->data;

	if (status < 0) {
		client_close(c);
		return;
	}
	if (events & UV_WRITABLE && c->out_len) {
		write_leftover(c);
		if (!c->closed && c->closing && !c->out_len)
			client_close(c);
		if (!c->closed)
			poll_as_needed(c);
	}
	if (events & UV_READABLE && !c->closing && !c->blocked)
		read_some(c);
}

void client_unblock(struct client *c)
{
	c->blocked = false;
	if (c->closed) {
		uv_close((uv_handle_t *)&c->poll, freed);
		return;
	}
	server.db.now_ms = clock_unix_ms();
	run_and_keep(c, c->in, c->in_len);
}

/* ---- beginning ---- */

void client_accept(int fd, bool is_unix, const char *address)
{
	struct client *c = calloc(1, sizeof(*c));

	if (!c || allocate_shared() || uv_poll_init(&server.loop, &c->poll, fd)) {
		log_error("connection from %s refused: no memory", address);
		free(c);
		close(fd);
		return;
	}
	c->fd = fd;
	c->id = ++server.next_client_id;
	c->poll.data = c;
	c->protocol = 2;
	c->is_unix = is_unix;
	c->since_ms = c->active_ms = clock_unix_ms();
	strncpy(c->address, address, sizeof(c->address) - 1);
	c->next = server.clients;
	if (c->next)
		c->next->previous = c;
	server.clients = c;
	server.nclients++;
	server.nconnections++;
	poll_as_needed(c);
}
