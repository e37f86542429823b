/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * verify: read every key that was ever written and judge it by the log. Keys that the log does not
 * know are found by their number: the server must not hold more keys than were found.
 *
 * A write that had no reply and is found in effect is noted as seen: it must not vanish later.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "oracle.h"

enum { FAULTS_TOLD = 10, WINDOW = 512 };

struct verifier {
	const struct options *o;
	struct history history;
	struct progress progress;
	struct link link;
	uint32_t flying[WINDOW];
	unsigned int head, n;
	uint32_t next_key;
	uint64_t asked, present, unanswered_seen, told;
	uint64_t count[VERDICTS];
	uint64_t reply_ns;
};

static const char *const verdict_names[VERDICTS] = {"good", "lost", "torn", "stale", "phantom"};

/* ---- one key ---- */

static void tell(const struct verifier *v, enum verdict verdict, uint32_t key, const char *value,
		 size_t bytes, uint64_t seq)
{
	const struct history *h = &v->history;
	uint64_t known = h->keys[key].known;
	char name[KEY_BYTES + 1] = "";

	key_make(name, key);
	fprintf(stderr, "oracle: %s is %s: ", name, verdict_names[verdict]);
	if (known)
		fprintf(stderr, "write %" PRIu64 " (%s) was %s, ", known,
			h->ops[known].kind == OP_SET ? "SET" : "DEL",
			h->ops[known].state == OP_ACKED ? "acknowledged" : "seen");
	else
		fprintf(stderr, "no write was acknowledged, ");
	switch (verdict) {
	case VERDICT_LOST:
		fprintf(stderr, "the key is absent\n");
		break;
	case VERDICT_TORN:
		fprintf(stderr, "%zu bytes are there that nobody sent for it: ", bytes);
		for (size_t i = 0; i < bytes && i < 64; i++)
			fputc(value[i] >= ' ' && value[i] <= '~' ? value[i] : '?', stderr);
		fputs(bytes <= 64 ? "\n" : "...\n", stderr);
		break;
	case VERDICT_STALE:
		fprintf(stderr, "but the earlier write %" PRIu64 " is there\n", seq);
		break;
	default:
		fprintf(stderr, "but write %" PRIu64 " is there, which %s\n", seq,
			seq <= h->nops ? "was refused or was another one" : "was never sent");
		break;
	}
}

static void judge(struct verifier *v, uint32_t key, const struct reply *r)
{
	struct history *h = &v->history;
	enum verdict verdict;
	uint64_t seq;

	if (r->type != REPLY_BULK)
		fail("the server replies \"%.*s\" to a GET", (int)r->bytes, r->text ? r->text : "");
	verdict = history_judge(h, key, r->text, r->bytes, &seq);
	v->present += r->text != NULL;
	v->count[verdict]++;
	if (verdict == VERDICT_GOOD && seq > h->keys[key].known) {
		history_seen(h, seq);
		v->unanswered_seen++;
	} else if (verdict != VERDICT_GOOD && v->told++ < FAULTS_TOLD) {
		tell(v, verdict, key, r->text, r->bytes, seq);
	}
}

/* ---- all of them ---- */

static void ask_more(struct verifier *v)
{
	const struct history *h = &v->history;
	char name[KEY_BYTES];

	for (; v->n < WINDOW && v->next_key < h->nkeys; v->next_key++) {
		if (!h->keys[v->next_key].touched)
			continue;
		key_make(name, v->next_key);
		link_command(&v->link, 2, (const char *const[]){"GET", name},
			     (const size_t[]){3, KEY_BYTES});
		v->flying[(v->head + v->n++) % WINDOW] = v->next_key;
		v->asked++;
	}
}

static void take_replies(struct verifier *v)
{
	int rc = link_receive(&v->link);
	struct reply r;

	for (;;) {
		if (!link_reply(&v->link, &r))
			fail("what the server sends is not its protocol");
		if (r.type == REPLY_NONE)
			break;
		if (v->n == 0)
			fail("the server sends a reply to nothing");
		judge(v, v->flying[v->head], &r);
		v->head = (v->head + 1) % WINDOW;
		v->n--;
		v->reply_ns = now_ns();
	}
	if (v->n > 0 && (double)(now_ns() - v->reply_ns) > v->o->timeout_s * 1e9)
		rc = -ETIMEDOUT;
	if (rc)
		fail("the connection ended in the middle of verifying: %s", strerror(-rc));
}

static void read_keys(struct verifier *v)
{
	v->reply_ns = now_ns();
	for (;;) {
		struct pollfd p = {.fd = v->link.fd, .events = POLLIN};
		int rc;

		if (v->n <= WINDOW / 2)
			ask_more(v);
		if (v->n == 0)
			return;
		rc = link_send(&v->link);
		if (rc)
			fail("the connection ended in the middle of verifying: %s", strerror(-rc));
		if (v->link.out_len)
			p.events |= POLLOUT;
		if (poll(&p, 1, 100) < 0 && errno != EINTR)
			fail("poll: %s", strerror(errno));
		if (interrupted())
			fail("interrupted");
		take_replies(v);
		progress_update(&v->progress, v->asked - v->n);
	}
}

static uint64_t ask_size(struct verifier *v)
{
	struct reply r;
	int rc;

	link_command(&v->link, 1, (const char *const[]){"DBSIZE"}, (const size_t[]){6});
	rc = link_ask(&v->link, &r, (uint64_t)(v->o->timeout_s * 1e9));
	if (rc || r.type != REPLY_INTEGER || r.integer < 0)
		fail("no answer to DBSIZE: %s", rc ? strerror(-rc) : "not a number");
	return (uint64_t)r.integer;
}

static bool is_pong(void *ctx, const struct reply *r)
{
	(void)ctx;
	return r->type == REPLY_STATUS && r->bytes == 4 && memcmp(r->text, "PONG", 4) == 0;
}

static uint64_t touched(const struct history *h)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < h->nkeys; i++)
		n += h->keys[i].touched;
	return n;
}

int run_verify(const struct options *o)
{
	struct verifier v = {.o = o, .link.fd = -1};
	uint64_t start, size, extra, faults;
	const char *ping[] = {"PING"};
	char why[160] = "";

	history_open(&v.history, o->log, false);
	if (!link_await(&v.link, o, now_ns() + (uint64_t)(o->timeout_s * 1e9), 1, ping, is_pong,
			NULL, why, sizeof(why)))
		fail("no connection: %s", why);
	progress_begin(&v.progress, o->label ? o->label : "verifying", "keys", touched(&v.history),
		       o->quiet);
	start = now_ns();
	read_keys(&v);
	size = ask_size(&v);
	extra = size > v.present ? size - v.present : 0;
	if (size < v.present)
		fail("the server found %" PRIu64 " keys, but says that it has %" PRIu64, v.present,
		     size);
	progress_end(&v.progress, v.asked);
	faults = v.asked - v.count[VERDICT_GOOD] + extra;
	history_note(&v.history, "verify: %" PRIu64 " keys, %" PRIu64 " faults", v.asked, faults);
	printf("keys %" PRIu64 "\npresent %" PRIu64 "\nwrites %" PRIu64 "\nacknowledged %" PRIu64
	       "\nunanswered-found %" PRIu64 "\n",
	       v.asked, v.present, v.history.nops, v.history.acked, v.unanswered_seen);
	for (unsigned int i = VERDICT_GOOD + 1; i < VERDICTS; i++)
		printf("%s %" PRIu64 "\n", verdict_names[i], v.count[i]);
	printf("extra %" PRIu64 "\nseconds %.3f\n", extra, (double)(now_ns() - start) / 1e9);
	link_free(&v.link);
	history_close(&v.history);
	return faults ? EXIT_FAULTS : EXIT_GOOD;
}
