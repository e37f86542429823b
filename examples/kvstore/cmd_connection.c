/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands on the connection itself. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore.h"

void cmd_ping(struct client *c, const struct request *rq)
{
	if (rq->argc > 2)
		reply_arity(c, "ping");
	else if (rq->argc == 2)
		reply_bulk(c, rq->argv[1].data, rq->argv[1].len);
	else
		reply_raw(c, "+PONG\r\n", 7);
}

void cmd_echo(struct client *c, const struct request *rq)
{
	reply_bulk(c, rq->argv[1].data, rq->argv[1].len);
}

void cmd_quit(struct client *c, const struct request *rq)
{
	reply_raw(c, "+OK\r\n", 5);
	c->closing = true;
}

void cmd_select(struct client *c, const struct request *rq)
{
	int64_t n;

	if (!arg_integer(c, &rq->argv[1], &n))
		return;
	if (n)
		reply_error(c, "ERR DB index is out of range");
	else
		reply_raw(c, "+OK\r\n", 5);
}

/* ---- names ---- */

/* Set the client's name, or reply with an error and return false. */
static bool set_name(struct client *c, const struct resp_arg *name)
{
	char *copy;

	for (size_t i = 0; i < name->len; i++) {
		if (name->data[i] < '!' || name->data[i] > '~') {
			reply_error(c,
				    "ERR Client names cannot contain spaces, newlines or special "
				    "characters.");
			return false;
		}
	}
	if (name->len > 4096) {
		reply_error(c, "ERR Client names cannot be longer than 4096 bytes");
		return false;
	}
	copy = name->len ? strndup(name->data, name->len) : NULL;
	if (name->len && !copy) {
		reply_error(c, "ERR out of memory");
		return false;
	}
	free(c->name);
	c->name = copy;
	return true;
}

void cmd_hello(struct client *c, const struct request *rq)
{
	const struct resp_arg *name = NULL;
	int64_t version = c->protocol;

	if (rq->argc > 1 && !resp_integer(rq->argv[1].data, rq->argv[1].len, &version)) {
		reply_error(c, "ERR Protocol version is not an integer or out of range");
		return;
	}
	if (version != 2 && version != 3) {
		reply_error(c, "NOPROTO unsupported protocol version");
		return;
	}
	for (size_t i = 2; i < rq->argc; i++) {
		if (arg_is(&rq->argv[i], "setname") && i + 1 < rq->argc) {
			name = &rq->argv[++i];
		} else if (arg_is(&rq->argv[i], "auth") && i + 2 < rq->argc) {
			/* There are no passwords: every one is right for the only user. */
			if (!arg_is(&rq->argv[i + 1], "default")) {
				reply_error(c,
					    "WRONGPASS invalid username-password pair or user is "
					    "disabled.");
				return;
			}
			i += 2;
		} else {
			reply_error(c, "ERR Syntax error in HELLO option '%.*s'",
				    rq->argv[i].len > 128 ? 128 : (int)rq->argv[i].len,
				    rq->argv[i].data);
			return;
		}
	}
	if (name && !set_name(c, name))
		return;
	c->protocol = (uint8_t)version;
	reply_map(c, 7);
	reply_text(c, "server");
	reply_text(c, "kvstore");
	reply_text(c, "version");
	reply_text(c, REDIS_VERSION);
	reply_text(c, "proto");
	reply_integer(c, version);
	reply_text(c, "id");
	reply_integer(c, (int64_t)c->id);
	reply_text(c, "mode");
	reply_text(c, "standalone");
	reply_text(c, "role");
	reply_text(c, "master");
	reply_text(c, "modules");
	reply_array(c, 0);
}

/* ---- CLIENT ---- */

static size_t describe(const struct client *c, char *text, size_t room)
{
	int64_t now = clock_unix_ms();

	return (size_t)snprintf(
		text, room,
		"id=%llu addr=%s laddr=%s:%u fd=%d name=%s age=%lld idle=%lld flags=%s db=0 sub=0 "
		"psub=0 qbuf=%zu qbuf-free=%zu obl=%zu cmd=%s user=default resp=%u\n",
		(unsigned long long)c->id, c->address,
		c->is_unix ? server.opt.unix_path : server.opt.bind,
		c->is_unix ? 0 : server.opt.port, c->fd, c->name ? c->name : "",
		(long long)(now - c->since_ms) / 1000, (long long)(now - c->active_ms) / 1000,
		c->is_unix ? "U" : "N", c->in_len, c->in_cap - c->in_len, c->out_len,
		c->last_command ? c->last_command : "NULL", c->protocol);
}

static void client_list(struct client *c, const struct request *rq)
{
	size_t room = 1024 + (size_t)server.nclients * 5000, n = 0;
	char *text = malloc(room);

	if (!text) {
		reply_error(c, "ERR out of memory");
		return;
	}
	for (const struct client *i = server.clients; i && n < room; i = i->next)
		n += describe(i, text + n, room - n);
	reply_verbatim(c, text, n < room ? n : room - 1);
	free(text);
}

static void client_info(struct client *c, const struct request *rq)
{
	char text[5000];

	reply_verbatim(c, text, describe(c, text, sizeof(text)));
}

static void client_reply_mode(struct client *c, const struct request *rq)
{
	const struct resp_arg *mode = &rq->argv[2];

	if (arg_is(mode, "on")) {
		c->reply_mode = REPLY_ON;
		reply_raw(c, "+OK\r\n", 5);
	} else if (arg_is(mode, "off")) {
		c->reply_mode = REPLY_OFF;
	} else if (arg_is(mode, "skip")) {
		if (c->reply_mode != REPLY_OFF)
			c->reply_mode = REPLY_SKIP_NEXT;
	} else {
		reply_error(c, "ERR syntax error");
	}
}

/* CLIENT KILL address | CLIENT KILL [ID id] [ADDR address] [SKIPME yes|no] */
static void client_kill(struct client *c, const struct request *rq)
{
	const struct resp_arg *address = rq->argc == 3 ? &rq->argv[2] : NULL;
	bool skip_me = rq->argc != 3;
	int64_t id = 0, killed = 0;
	struct client *next;

	for (size_t i = 2; rq->argc != 3 && i < rq->argc; i += 2) {
		const struct resp_arg *word = &rq->argv[i];

		if (i + 1 == rq->argc) {
			reply_error(c, "ERR syntax error");
			return;
		}
		if (arg_is(word, "id")) {
			if (!resp_integer(word[1].data, word[1].len, &id) || id < 1) {
				reply_error(c, "ERR client-id should be greater than 0");
				return;
			}
		} else if (arg_is(word, "addr")) {
			address = &word[1];
		} else if (arg_is(word, "skipme")) {
			skip_me = arg_is(&word[1], "yes");
		} else {
			reply_error(c, "ERR syntax error");
			return;
		}
	}
	for (struct client *i = server.clients; i; i = next) {
		next = i->next;
		if ((address && (strlen(i->address) != address->len ||
				 memcmp(i->address, address->data, address->len))) ||
		    (id && i->id != (uint64_t)id) || (i == c && skip_me))
			continue;
		killed++;
		if (i == c)
			c->closing = true;
		else
			client_close(i);
	}
	if (rq->argc != 3)
		reply_integer(c, killed);
	else if (killed)
		reply_raw(c, "+OK\r\n", 5);
	else
		reply_error(c, "ERR No such client");
}

static void client_id(struct client *c, const struct request *rq)
{
	reply_integer(c, (int64_t)c->id);
}

static void client_getname(struct client *c, const struct request *rq)
{
	if (c->name)
		reply_text(c, c->name);
	else
		reply_null(c);
}

static void client_setname(struct client *c, const struct request *rq)
{
	if (set_name(c, &rq->argv[2]))
		reply_raw(c, "+OK\r\n", 5);
}

/* No client is ever evicted for the sake of data. */
static void client_no_evict(struct client *c, const struct request *rq)
{
	if (arg_is(&rq->argv[2], "on") || arg_is(&rq->argv[2], "off"))
		reply_raw(c, "+OK\r\n", 5);
	else
		reply_error(c, "ERR syntax error");
}

/* Libraries tell their name and version; nobody asks for them here. */
static void client_setinfo(struct client *c, const struct request *rq)
{
	reply_raw(c, "+OK\r\n", 5);
}

static const struct subcommand client_subcommands[] = {
	{"getname", 2, client_getname},	 {"id", 2, client_id},
	{"info", 2, client_info},	 {"kill", -3, client_kill},
	{"list", -2, client_list},	 {"no-evict", 3, client_no_evict},
	{"reply", 3, client_reply_mode}, {"setinfo", 4, client_setinfo},
	{"setname", 3, client_setname},
};

void cmd_client(struct client *c, const struct request *rq)
{
	subcommand_run(c, rq, "client", client_subcommands,
		       sizeof(client_subcommands) / sizeof(client_subcommands[0]));
}
