/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * load: every key once, in order. write: random keys, SET and DEL, until there is an end to it.
 *
 * Each connection ("stream") writes the keys that leave its number when divided by the number of
 * streams, so the writes to one key have one order. Replies come in the order of the commands, so a
 * stream remembers the numbers of the writes that are in flight, oldest first.
 *
 * When a connection ends, what is in flight has no reply and never will have one. A server that is
 * gone cannot execute it later. One that is alive could, if it were only slow; therefore a stream
 * that waited in vain (no reply for --timeout) goes on only with a server that is another process.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "oracle.h"

/* After a signal, how long replies to what is in flight are waited for. */
#define LAST_REPLIES_NS 1000000000u

struct stream {
	struct link link;
	uint64_t *flying; /* ring of pipeline entries */
	unsigned int head, n;
	uint64_t next_key; /* load */
	uint64_t reply_ns; /* when the last reply was read, or the first of the flying was sent */
};

struct writer {
	const struct options *o;
	struct history history;
	struct progress progress;
	struct stream *streams;
	uint64_t started_ns;
	uint64_t begun; /* nops, acked and refused at the start of this program */
	uint64_t acked_before;
	uint64_t refused_before;
	uint64_t bits; /* random numbers */
	char *value;
	char instance[64]; /* which process of the server this is */
	char refusal[160]; /* the first error reply */
	bool load;
	const char *ended; /* by what, once it is over */
};

/* ---- which server is this ---- */

/* A random number that every start of the server draws. */
static bool read_instance(const struct options *o, struct link *l, char *out, size_t bytes)
{
	return link_info(l, o, "run_id", out, bytes);
}

static bool is_pong(void *ctx, const struct reply *r)
{
	(void)ctx;
	return r->type == REPLY_STATUS && r->bytes == 4 && memcmp(r->text, "PONG", 4) == 0;
}

static void connect_stream(struct writer *w, struct stream *s, double patience_s)
{
	const char *ping[] = {"PING"};
	char why[160] = "";

	if (!link_await(&s->link, w->o, now_ns() + (uint64_t)(patience_s * 1e9), 1, ping, is_pong,
			NULL, why, sizeof(why)))
		fail("no connection: %s", why);
}

/* ---- the end of a connection ---- */

static void reconnect(struct writer *w, struct stream *s, bool stalled)
{
	char instance[sizeof(w->instance)] = "";
	uint64_t deadline = now_ns() + (uint64_t)(w->o->timeout_s * 1e9);

	for (;;) {
		connect_stream(w, s, w->o->timeout_s);
		if (!read_instance(w->o, &s->link, instance, sizeof(instance)))
			instance[0] = '\0';
		else if (!stalled || strcmp(instance, w->instance) != 0)
			break;
		link_close(&s->link);
		if (now_ns() > deadline || interrupted())
			fail("the server does not reply, but has not been restarted (run_id %s)",
			     *instance ? instance : "unknown");
		sleep_ns(20000000);
	}
	history_note(&w->history, "connected to run_id %s", instance);
	strcpy(w->instance, instance);
}

static void stream_ended(struct writer *w, struct stream *s, int rc)
{
	const char *why = rc == -ETIMEDOUT ? "no reply in time" : strerror(-rc);

	history_note(&w->history, "connection %td ended: %s; %u writes in flight", s - w->streams,
		     why, s->n);
	link_close(&s->link);
	s->head = s->n = 0;
	if (w->o->reconnect && !interrupted()) {
		reconnect(w, s, rc == -ETIMEDOUT);
		return;
	}
	if (!w->o->until_end && !interrupted())
		fail("connection ended: %s", why);
	w->ended = rc == -ETIMEDOUT ? "silence" : "connection";
}

/* ---- commands ---- */

static uint64_t draw(struct writer *w)
{
	w->bits ^= w->bits << 13;
	w->bits ^= w->bits >> 7;
	w->bits ^= w->bits << 17;
	return w->bits * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

static void append(struct writer *w, struct stream *s, enum op_kind kind, uint32_t key)
{
	const struct options *o = w->o;
	uint64_t seq = history_sent(&w->history, kind, key);
	char name[KEY_BYTES];
	size_t bytes = o->value_min_bytes;

	key_make(name, key);
	if (kind == OP_DEL) {
		link_command(&s->link, 2, (const char *const[]){"DEL", name},
			     (const size_t[]){3, KEY_BYTES});
	} else {
		if (o->value_max_bytes > bytes)
			bytes += draw(w) % (o->value_max_bytes - bytes + 1);
		value_make(w->value, bytes, w->history.run, key, seq);
		link_command(&s->link, 3, (const char *const[]){"SET", name, w->value},
			     (const size_t[]){3, KEY_BYTES, bytes});
	}
	if (s->n == 0)
		s->reply_ns = now_ns();
	s->flying[(s->head + s->n++) % o->pipeline] = seq;
}

/* Append the next write of a stream. false: there is none. */
static bool next_write(struct writer *w, struct stream *s)
{
	const struct options *o = w->o;
	uint64_t index = (uint64_t)(s - w->streams), per_stream;

	if (w->load) {
		if (s->next_key >= o->keys)
			return false;
		append(w, s, OP_SET, o->first_key + (uint32_t)s->next_key);
		s->next_key += o->connections;
		return true;
	}
	if (w->history.nops - w->begun >= o->ops)
		return false;
	per_stream = (o->keys - index + o->connections - 1) / o->connections;
	append(w, s, draw(w) % 100 < o->deletes_percent ? OP_DEL : OP_SET,
	       o->first_key + (uint32_t)(draw(w) % per_stream * o->connections + index));
	return true;
}

/* ---- replies ---- */

static void take_reply(struct writer *w, struct stream *s, const struct reply *r)
{
	uint64_t seq = s->flying[s->head];
	enum op_kind kind = w->history.ops[seq].kind;

	s->head = (s->head + 1) % w->o->pipeline;
	s->n--;
	if (r->type == REPLY_ERROR) {
		if (!w->refusal[0])
			snprintf(w->refusal, sizeof(w->refusal), "%.*s", (int)r->bytes, r->text);
		history_refused(&w->history, seq);
		return;
	}
	if (kind == OP_SET
		    ? r->type != REPLY_STATUS || r->bytes != 2 || memcmp(r->text, "OK", 2) != 0
		    : r->type != REPLY_INTEGER)
		fail("the server replies \"%.*s\" to write %" PRIu64, (int)r->bytes,
		     r->text ? r->text : "", seq);
	history_acked(&w->history, seq);
}

static void serve_stream(struct writer *w, struct stream *s)
{
	int rc = link_receive(&s->link);
	uint64_t patience;
	struct reply r;

	for (;;) {
		if (!link_reply(&s->link, &r))
			fail("what the server sends is not its protocol");
		if (r.type == REPLY_NONE)
			break;
		if (s->n == 0)
			fail("the server sends a reply to nothing");
		take_reply(w, s, &r);
		s->reply_ns = now_ns();
	}
	patience = interrupted() ? LAST_REPLIES_NS : (uint64_t)(w->o->timeout_s * 1e9);
	if (!rc && s->n > 0 && now_ns() - s->reply_ns > patience)
		rc = -ETIMEDOUT;
	if (rc)
		stream_ended(w, s, rc);
}

/* ---- the loop ---- */

static bool no_more(const struct writer *w)
{
	return interrupted() ||
	       (w->o->seconds > 0 && (double)(now_ns() - w->started_ns) > w->o->seconds * 1e9);
}

/* Write and read once around. false: all is done. */
static bool turn(struct writer *w, struct pollfd *polls)
{
	const bool enough = no_more(w);
	unsigned int i, flying = 0;

	for (i = 0; i < w->o->connections; i++) {
		struct stream *s = &w->streams[i];

		/* Refill when half is answered: fewer, larger packets. */
		if (s->n <= w->o->pipeline / 2)
			while (!enough && s->n < w->o->pipeline && next_write(w, s))
				;
		flying += s->n;
	}
	history_flush(&w->history);
	if (flying == 0)
		return false;
	for (i = 0; i < w->o->connections; i++) {
		struct stream *s = &w->streams[i];
		int rc = link_send(&s->link);

		/* Replies that are there already are read before the end is believed. */
		polls[i] = (struct pollfd){
			.fd = s->link.fd,
			.events = (short)(POLLIN | (s->link.out_len ? POLLOUT : 0))};
		if (rc)
			s->link.out_len = 0;
	}
	if (poll(polls, w->o->connections, 50) < 0 && errno != EINTR)
		fail("poll: %s", strerror(errno));
	for (i = 0; i < w->o->connections && !w->ended; i++)
		serve_stream(w, &w->streams[i]);
	return true;
}

static void run(struct writer *w)
{
	const struct options *o = w->o;
	struct pollfd *polls = need(NULL, o->connections * sizeof(*polls));

	while (!w->ended && turn(w, polls))
		progress_update(&w->progress, w->history.acked - w->acked_before);
	free(polls);
}

static void prepare(struct writer *w)
{
	const struct options *o = w->o;
	uint64_t total = w->load ? o->keys : o->ops == UINT64_MAX ? 0 : o->ops;

	w->value = need(NULL, o->value_max_bytes);
	w->streams = need(NULL, o->connections * sizeof(*w->streams));
	w->bits = (o->seed ? o->seed : w->history.run ^ (w->history.nops << 1)) | 1;
	w->begun = w->history.nops;
	w->acked_before = w->history.acked;
	w->refused_before = w->history.refused;
	for (unsigned int i = 0; i < o->connections; i++) {
		struct stream *s = &w->streams[i];

		*s = (struct stream){.link.fd = -1, .next_key = i};
		s->flying = need(NULL, o->pipeline * sizeof(*s->flying));
		connect_stream(w, s, o->timeout_s);
	}
	if (!read_instance(o, &w->streams[0].link, w->instance, sizeof(w->instance)))
		fail("the server has no field run_id in INFO");
	history_note(&w->history, "%s: connected to run_id %s", w->load ? "load" : "write",
		     w->instance);
	progress_begin(&w->progress,
		       o->label	 ? o->label
		       : w->load ? "loading"
				 : "writing",
		       w->load ? "keys" : "writes", total, o->quiet);
}

static void print_summary(const struct writer *w)
{
	const struct history *h = &w->history;
	uint64_t sent = h->nops - w->begun, acked = h->acked - w->acked_before;
	uint64_t refused = h->refused - w->refused_before;

	printf("sent %" PRIu64 "\nacknowledged %" PRIu64 "\nrefused %" PRIu64
	       "\nunanswered %" PRIu64 "\nended %s\nseconds %.3f\n",
	       sent, acked, refused, sent - acked - refused,
	       w->ended	       ? w->ended
	       : interrupted() ? "signal"
			       : "done",
	       (double)(now_ns() - w->started_ns) / 1e9);
	if (w->refusal[0])
		printf("refusal %s\n", w->refusal);
}

int run_write(const struct options *o, bool load)
{
	struct writer w = {.o = o, .load = load};

	history_open(&w.history, o->log, true);
	prepare(&w);
	w.started_ns = now_ns();
	run(&w);
	history_flush(&w.history);
	progress_end(&w.progress, w.history.acked - w.acked_before);
	print_summary(&w);
	for (unsigned int i = 0; i < o->connections; i++) {
		link_free(&w.streams[i].link);
		free(w.streams[i].flying);
	}
	free(w.streams);
	free(w.value);
	history_close(&w.history);
	return EXIT_GOOD;
}
