/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Running what a client has sent, in batches. A batch is parsed as a whole before its first command
 * runs, so that the memory of all its keys can be fetched while the others are looked at: buckets
 * first, then entries. What a batch knows of the buffer stays true until it has run, for nothing
 * moves meanwhile.
 */
#include <stdlib.h>
#include <string.h>

#include "kvstore.h"

#define BATCH	  64u	       /* commands that are looked at together */
#define OUT_WRITE (128u << 10) /* replies that are written before a turn ends */
#define QUERY_MAX (1ull << 30) /* bytes of one command */

/** Commands of one batch. Their arguments are in one list, known by index while it grows. */
struct batch {
	unsigned int n;
	struct request requests[BATCH];
	size_t first[BATCH + 1];
};

static struct resp_args batch_args;

static void run_one(struct client *c, const struct request *rq)
{
	size_t position = server.out_len;

	if (rq->argc == 0)
		return;
	command_run(c, rq);
	if (c->reply_mode == REPLY_ON)
		return;
	if (c->reply_mode == REPLY_SKIP_NEXT) {
		c->reply_mode = REPLY_SKIP;
		return;
	}
	if (server.out_len > position)
		server.out_len = position;
	if (c->reply_mode == REPLY_SKIP)
		c->reply_mode = REPLY_ON;
}

static void look_up(struct request *rq)
{
	rq->command = rq->argc ? command_find(rq->argv[0].data, rq->argv[0].len) : NULL;
	if (rq->command && rq->command->first_key == 1 && rq->argc > 1) {
		rq->hash = db_hash(&server.db, rq->argv[1].data, rq->argv[1].len);
		pv_map_prefetch(server.db.map, rq->hash);
	}
}

static void run_batch(struct client *c, struct batch *b)
{
	for (unsigned int i = 0; i < b->n; i++) {
		struct request *rq = &b->requests[i];

		rq->argv = batch_args.v + b->first[i];
		rq->argc = b->first[i + 1] - b->first[i];
		look_up(rq);
	}
	if (b->n > 1) {
		for (unsigned int i = 0; i < b->n; i++) {
			const struct request *rq = &b->requests[i];

			if (rq->command && rq->command->first_key == 1 && rq->argc > 1)
				pv_map_prefetch_entry(server.db.map, rq->hash,
						      rq->command->flags & CMD_WRITE);
		}
	}
	for (unsigned int i = 0; i < b->n && !c->closing; i++) {
		run_one(c, &b->requests[i]);
		if (server.out_len - c->span > OUT_WRITE)
			client_write(c);
	}
}

static void protocol_error(struct client *c, enum resp_result r)
{
	log_info("client %s: %s", c->address, r == RESP_NOMEM ? "no memory" : c->parser.error);
	reply_error(c, "ERR %s", r == RESP_NOMEM ? "out of memory" : c->parser.error);
	c->closing = true;
}

/* Must this command end its batch? What comes behind it may have to wait, or must not be read. */
static bool ends_batch(const struct client *c, const struct resp_arg *name)
{
	return c->parser.is_inline || arg_is(name, "preserve") || arg_is(name, "quit") ||
	       arg_is(name, "shutdown");
}

/* The continuation of a command that came in parts: its arguments are in the client's own list. */
static enum resp_result run_continued(struct client *c, char *data, size_t len, size_t *used)
{
	enum resp_result r = resp_parse(&c->parser, &c->args, 0, data, len);
	struct request rq = {.argv = c->args.v, .argc = c->args.n};

	if (r != RESP_COMMAND)
		return r;
	*used = c->parser.scan;
	look_up(&rq);
	run_one(c, &rq);
	resp_reset(&c->parser);
	c->args.n = 0;
	if (c->args.cap > 1024) {
		free(c->args.v);
		c->args = (struct resp_args){0};
	}
	return r;
}

/* Parse and run one batch from `data`. */
static enum resp_result run_fresh(struct client *c, char *data, size_t len, size_t *used)
{
	enum resp_result r = RESP_COMMAND;
	struct batch b = {.n = 0};
	size_t at = 0;

	batch_args.n = 0;
	while (b.n < BATCH && at < len) {
		b.first[b.n] = batch_args.n;
		r = resp_parse(&c->parser, &batch_args, batch_args.n, data + at, len - at);
		if (r != RESP_COMMAND)
			break;
		at += c->parser.scan;
		b.n++;
		if (batch_args.n > b.first[b.n - 1] &&
		    ends_batch(c, &batch_args.v[b.first[b.n - 1]])) {
			resp_reset(&c->parser);
			break;
		}
		resp_reset(&c->parser);
	}
	/* The arguments of a command that is not complete move to the client's own list. */
	if (r == RESP_MORE && batch_args.n > b.first[b.n]) {
		size_t n = batch_args.n - b.first[b.n];
		struct resp_arg *v = realloc(c->args.v, n * sizeof(*v));

		if (v) {
			memcpy(v, batch_args.v + b.first[b.n], n * sizeof(*v));
			c->args = (struct resp_args){v, n, n};
		} else {
			r = RESP_NOMEM;
		}
	}
	if (r == RESP_COMMAND)
		b.first[b.n] = batch_args.n;
	*used = at;
	run_batch(c, &b);
	if (batch_args.cap > 4096) {
		free(batch_args.v);
		batch_args = (struct resp_args){0};
	}
	return r;
}

/* Run the complete commands in `data`. Returns the number of bytes that are done with. */
size_t run_input(struct client *c, char *data, size_t len)
{
	size_t at = 0;

	while (at < len && !c->closing && !c->blocked) {
		enum resp_result r;
		size_t used = 0;

		if (resp_started(&c->parser))
			r = run_continued(c, data + at, len - at, &used);
		else
			r = run_fresh(c, data + at, len - at, &used);
		at += used;
		if (c->closing)
			break;
		if (r == RESP_MORE && len - at <= QUERY_MAX)
			break;
		if (r == RESP_MORE)
			strcpy(c->parser.error, "Protocol error: the command is too long");
		if (r != RESP_COMMAND)
			protocol_error(c, r);
	}
	return at;
}
