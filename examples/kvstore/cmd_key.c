/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands on keys, whatever their values. */
#include <stdio.h>
#include <string.h>

#include "kvstore.h"

void cmd_del(struct client *c, const struct request *rq)
{
	const struct resp_arg *key = &rq->argv[1];
	size_t removed = 0;
	bool one;
	int err;

	if (rq->argc == 2) {
		err = db_delete(&server.db, rq->hash, key->data, key->len, &one);
		removed = one;
	} else {
		err = db_delete_many(&server.db, rq->argv + 1, rq->argc - 1, &removed);
	}
	if (err)
		reply_db_error(c, err);
	else
		reply_integer(c, (int64_t)removed);
}

void cmd_exists(struct client *c, const struct request *rq)
{
	int64_t n = 0;

	for (size_t i = 1; i < rq->argc; i++) {
		const struct resp_arg *key = &rq->argv[i];

		n += db_find(&server.db, db_hash(&server.db, key->data, key->len), key->data,
			     key->len) != NULL;
	}
	reply_integer(c, n);
}

/* ---- expiry ---- */

struct expire_options {
	bool nx, xx, gt, lt;
};

static bool parse_expire(struct client *c, const struct request *rq, struct expire_options *o)
{
	for (size_t i = 3; i < rq->argc; i++) {
		const struct resp_arg *word = &rq->argv[i];

		if (arg_is(word, "nx")) {
			o->nx = true;
		} else if (arg_is(word, "xx")) {
			o->xx = true;
		} else if (arg_is(word, "gt")) {
			o->gt = true;
		} else if (arg_is(word, "lt")) {
			o->lt = true;
		} else {
			reply_error(c, "ERR Unsupported option %.*s",
				    word->len > 400 ? 400 : (int)word->len, word->data);
			return false;
		}
	}
	if (o->nx && (o->xx || o->gt || o->lt)) {
		reply_error(c,
			    "ERR NX and XX, GT or LT options at the same time are not compatible");
		return false;
	}
	if (o->gt && o->lt) {
		reply_error(c, "ERR GT and LT options at the same time are not compatible");
		return false;
	}
	return true;
}

/* Does the option let an expiry of `have` (0: none, which counts as never) become `want`? */
static bool expire_allowed(const struct expire_options *o, int64_t have, int64_t want)
{
	if (o->nx && have)
		return false;
	if (o->xx && !have)
		return false;
	if (o->gt && (!have || want <= have))
		return false;
	return !(o->lt && have && want >= have);
}

static void expire(struct client *c, const struct request *rq, int64_t unit, const char *name)
{
	const struct resp_arg *key = &rq->argv[1];
	struct expire_options o = {0};
	struct entry *e;
	int64_t n, when;
	bool removed;
	int err;

	if (!parse_expire(c, rq, &o) || !arg_integer(c, &rq->argv[2], &n))
		return;
	if (__builtin_mul_overflow(n, unit, &when) ||
	    __builtin_add_overflow(when, server.db.now_ms, &when)) {
		reply_error(c, "ERR invalid expire time in '%s' command", name);
		return;
	}
	e = db_find(&server.db, rq->hash, key->data, key->len);
	if (!e || !expire_allowed(&o, entry_expiry(e), when)) {
		reply_integer(c, 0);
		return;
	}
	if (when <= server.db.now_ms)
		err = db_delete(&server.db, rq->hash, key->data, key->len, &removed);
	else
		err = db_expire(&server.db, rq->hash, e, when);
	if (err)
		reply_db_error(c, err);
	else
		reply_integer(c, 1);
}

void cmd_expire(struct client *c, const struct request *rq)
{
	expire(c, rq, 1000, "expire");
}

void cmd_pexpire(struct client *c, const struct request *rq)
{
	expire(c, rq, 1, "pexpire");
}

static void ttl(struct client *c, const struct request *rq, bool seconds)
{
	const struct resp_arg *key = &rq->argv[1];
	struct entry *e = db_find(&server.db, rq->hash, key->data, key->len);
	int64_t left;

	if (!e || !entry_expiry(e)) {
		reply_integer(c, e ? -1 : -2);
		return;
	}
	left = entry_expiry(e) - server.db.now_ms;
	reply_integer(c, seconds ? (left + 500) / 1000 : left);
}

void cmd_ttl(struct client *c, const struct request *rq)
{
	ttl(c, rq, true);
}

void cmd_pttl(struct client *c, const struct request *rq)
{
	ttl(c, rq, false);
}

void cmd_persist(struct client *c, const struct request *rq)
{
	const struct resp_arg *key = &rq->argv[1];
	struct entry *e = db_find(&server.db, rq->hash, key->data, key->len);
	bool had = e && entry_expiry(e);
	int err = had ? db_expire(&server.db, rq->hash, e, 0) : 0;

	if (err)
		reply_db_error(c, err);
	else
		reply_integer(c, had);
}

/* ---- all keys ---- */

void cmd_dbsize(struct client *c, const struct request *rq)
{
	reply_integer(c, (int64_t)pv_map_count(server.db.map));
}

static void flush(struct client *c, const struct request *rq)
{
	int err;

	if (rq->argc > 2 ||
	    (rq->argc == 2 && !arg_is(&rq->argv[1], "async") && !arg_is(&rq->argv[1], "sync"))) {
		reply_error(c, "ERR syntax error");
		return;
	}
	err = db_clear(&server.db);
	if (err) {
		reply_db_error(c, err);
		return;
	}
	cron_tidy_soon();
	reply_raw(c, "+OK\r\n", 5);
}

void cmd_flushall(struct client *c, const struct request *rq)
{
	flush(c, rq);
}

void cmd_flushdb(struct client *c, const struct request *rq)
{
	flush(c, rq);
}

/** Keys that match, as replies. */
struct listing {
	struct client *c;
	const struct resp_arg *pattern; /* NULL: all */
	size_t n;
	size_t looked;
};

static int list_key(void *ctx, void *entry, bool mark)
{
	struct listing *l = ctx;
	const struct entry *e = entry;

	l->looked++;
	if (entry_expiry(e) && entry_expiry(e) <= server.db.now_ms)
		return 0;
	if (l->pattern &&
	    !glob_match(l->pattern->data, l->pattern->len, entry_key(e), entry_key_len(e)))
		return 0;
	reply_bulk(l->c, entry_key(e), entry_key_len(e));
	l->n++;
	return l->c->overflow;
}

/* What was written from `end` on belongs in front of what was written from `position` on: a head
 * that was known only in the end. */
static void move_to_front(struct client *c, size_t position, size_t end)
{
	char head[128];
	size_t len = reply_position() - end;

	if (c->overflow)
		return;
	memcpy(head, server.out + end, len);
	memmove(server.out + position + len, server.out + position, end - position);
	memcpy(server.out + position, head, len);
}

static bool matches_all(const struct resp_arg *pattern)
{
	return pattern->len == 1 && pattern->data[0] == '*';
}

void cmd_keys(struct client *c, const struct request *rq)
{
	struct listing l = {.c = c, .pattern = matches_all(&rq->argv[1]) ? NULL : &rq->argv[1]};
	size_t position = reply_position(), end;

	pv_map_each(server.db.map, list_key, &l);
	end = reply_position();
	reply_array(c, l.n);
	move_to_front(c, position, end);
}

struct scan_options {
	struct resp_arg pattern;
	bool has_pattern;
	bool none; /* a type that no key has */
	int64_t count;
};

static bool parse_scan(struct client *c, const struct request *rq, struct scan_options *o)
{
	for (size_t i = 2; i < rq->argc; i += 2) {
		const struct resp_arg *word = &rq->argv[i];

		if (i + 1 == rq->argc) {
			reply_error(c, "ERR syntax error");
			return false;
		}
		if (arg_is(word, "count")) {
			if (!arg_integer(c, &rq->argv[i + 1], &o->count))
				return false;
			if (o->count < 1) {
				reply_error(c, "ERR syntax error");
				return false;
			}
		} else if (arg_is(word, "match")) {
			o->pattern = rq->argv[i + 1];
			o->has_pattern = !matches_all(&o->pattern);
		} else if (arg_is(word, "type")) {
			o->none = !arg_is(&rq->argv[i + 1], "string");
		} else {
			reply_error(c, "ERR syntax error");
			return false;
		}
	}
	return true;
}

/* Redis takes any 64-bit number as cursor, a negative one too. */
static bool parse_cursor(const struct resp_arg *arg, uint64_t *out)
{
	bool negative = arg->len && arg->data[0] == '-';
	uint64_t v = 0;

	if (arg->len == negative || arg->len > 20)
		return false;
	for (size_t i = negative; i < arg->len; i++) {
		unsigned int digit = (unsigned int)arg->data[i] - '0';

		if (digit > 9 || __builtin_mul_overflow(v, 10u, &v) ||
		    __builtin_add_overflow(v, digit, &v))
			return false;
	}
	*out = negative ? 0 - v : v;
	return true;
}

void cmd_scan(struct client *c, const struct request *rq)
{
	struct scan_options o = {.count = 10};
	struct listing l = {.c = c};
	size_t position = reply_position(), end;
	uint64_t cursor, buckets = 0;
	char text[24];

	if (!parse_cursor(&rq->argv[1], &cursor)) {
		reply_error(c, "ERR invalid cursor");
		return;
	}
	if (!parse_scan(c, rq, &o))
		return;
	l.pattern = o.has_pattern ? &o.pattern : NULL;
	/* As many as asked for, but an end to it where most buckets are empty. */
	do {
		size_t before = reply_position(), n = l.n;

		cursor = pv_map_scan(server.db.map, cursor, list_key, &l);
		if (o.none) {
			reply_rewind(before);
			l.n = n;
		}
	} while (cursor && l.looked < (uint64_t)o.count && ++buckets < 10 * (uint64_t)o.count &&
		 !c->overflow);
	end = reply_position();
	reply_array(c, 2);
	reply_bulk(c, text,
		   (size_t)snprintf(text, sizeof(text), "%llu", (unsigned long long)cursor));
	reply_array(c, l.n);
	move_to_front(c, position, end);
}
