/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands on values. */
#include <errno.h>
#include <string.h>

#include "kvstore.h"

#define ROUND 16u /* keys of one command that are fetched together */

static void reply_ok(struct client *c, int err)
{
	if (err)
		reply_db_error(c, err);
	else
		reply_raw(c, "+OK\r\n", 5);
}

void cmd_get(struct client *c, const struct request *rq)
{
	const struct resp_arg *key = &rq->argv[1];
	struct entry *e = db_find(&server.db, rq->hash, key->data, key->len);

	if (e) {
		server.db.hits++;
		reply_entry(c, e);
	} else {
		server.db.misses++;
		reply_null(c);
	}
}

void cmd_strlen(struct client *c, const struct request *rq)
{
	const struct resp_arg *key = &rq->argv[1];
	struct entry *e = db_find(&server.db, rq->hash, key->data, key->len);
	size_t position = reply_position(), len;

	if (!e || !entry_is_integer(e)) {
		reply_integer(c, e ? (int64_t)entry_value_len(e) : 0);
		return;
	}
	/* The length of a number is that of its decimal form: ":n\r\n" less three bytes. */
	reply_integer(c, *entry_integer(e));
	len = reply_position() - position - 3;
	reply_rewind(position);
	reply_integer(c, (int64_t)len);
}

/* ---- SET ---- */

struct set_options {
	bool nx, xx, get, keep_ttl;
	const struct resp_arg *expiry; /* the argument of the word that follows */
	bool seconds, absolute;
	int64_t expiry_ms; /* 0: none */
};

static bool parse_expiry_word(const struct resp_arg *word, struct set_options *o)
{
	if (arg_is(word, "ex") || arg_is(word, "exat"))
		o->seconds = true;
	else if (!arg_is(word, "px") && !arg_is(word, "pxat"))
		return false;
	o->absolute = word->len == 4;
	return true;
}

static bool parse_set(const struct request *rq, struct set_options *o)
{
	for (size_t i = 3; i < rq->argc; i++) {
		const struct resp_arg *word = &rq->argv[i];

		if (arg_is(word, "nx") && !o->xx)
			o->nx = true;
		else if (arg_is(word, "xx") && !o->nx)
			o->xx = true;
		else if (arg_is(word, "get"))
			o->get = true;
		else if (arg_is(word, "keepttl") && !o->expiry)
			o->keep_ttl = true;
		else if (!o->expiry && !o->keep_ttl && i + 1 < rq->argc &&
			 parse_expiry_word(word, o))
			o->expiry = &rq->argv[++i];
		else
			return false;
	}
	return true;
}

/* A time as a command gives it to Unix milliseconds. False: out of range. */
static bool absolute_ms(int64_t n, bool seconds, bool absolute, int64_t *out)
{
	if (seconds && __builtin_mul_overflow(n, (int64_t)1000, &n))
		return false;
	if (!absolute && __builtin_add_overflow(n, server.db.now_ms, &n))
		return false;
	*out = n;
	return true;
}

static bool set_expiry(struct client *c, struct set_options *o)
{
	int64_t n;

	if (!o->expiry) {
		o->expiry_ms = o->keep_ttl ? DB_KEEP_TTL : 0;
		return true;
	}
	if (!arg_integer(c, o->expiry, &n))
		return false;
	if (n <= 0 || !absolute_ms(n, o->seconds, o->absolute, &o->expiry_ms)) {
		reply_error(c, "ERR invalid expire time in 'set' command");
		return false;
	}
	return true;
}

void cmd_set(struct client *c, const struct request *rq)
{
	const struct resp_arg *key = &rq->argv[1], *value = &rq->argv[2];
	struct set_options o = {0};
	struct entry *e = NULL;
	size_t position = reply_position();
	int err;

	if (rq->argc == 3) {
		reply_ok(c, db_set(&server.db, rq->hash, key->data, key->len, value->data,
				   value->len, 0));
		return;
	}
	if (!parse_set(rq, &o)) {
		reply_error(c, "ERR syntax error");
		return;
	}
	if (!set_expiry(c, &o))
		return;
	if (o.nx || o.xx || o.get)
		e = db_find(&server.db, rq->hash, key->data, key->len);
	/* Before the change, for it frees the old entry. */
	if (o.get && e)
		reply_entry(c, e);
	else if (o.get)
		reply_null(c);
	if ((o.nx && e) || (o.xx && !e)) {
		if (!o.get)
			reply_null(c);
		return;
	}
	err = db_set(&server.db, rq->hash, key->data, key->len, value->data, value->len,
		     o.expiry_ms);
	if (o.get && !err)
		return;
	reply_rewind(position);
	reply_ok(c, err);
}

/* ---- several keys ---- */

void cmd_mget(struct client *c, const struct request *rq)
{
	uint64_t hash[ROUND];

	reply_array(c, rq->argc - 1);
	for (size_t at = 1; at < rq->argc; at += ROUND) {
		const struct resp_arg *keys = &rq->argv[at];
		size_t n = rq->argc - at < ROUND ? rq->argc - at : ROUND;

		for (size_t i = 0; i < n; i++) {
			hash[i] = db_hash(&server.db, keys[i].data, keys[i].len);
			pv_map_prefetch(server.db.map, hash[i]);
		}
		for (size_t i = 0; i < n; i++)
			pv_map_prefetch_entry(server.db.map, hash[i], false);
		for (size_t i = 0; i < n && !c->overflow; i++) {
			struct entry *e = db_find(&server.db, hash[i], keys[i].data, keys[i].len);

			if (e)
				reply_entry(c, e);
			else
				reply_null(c);
			server.db.hits += e != NULL;
			server.db.misses += e == NULL;
		}
	}
}

void cmd_mset(struct client *c, const struct request *rq)
{
	if (rq->argc % 2 == 0) {
		reply_arity(c, "mset");
		return;
	}
	reply_ok(c, db_set_many(&server.db, rq->argv + 1, rq->argc / 2));
}

/* ---- numbers ---- */

static void add(struct client *c, const struct request *rq, int64_t by)
{
	const struct resp_arg *key = &rq->argv[1];
	int64_t result;
	int err = db_add(&server.db, rq->hash, key->data, key->len, by, &result);

	if (err == -EINVAL)
		reply_error(c, "ERR value is not an integer or out of range");
	else if (err == -ERANGE)
		reply_error(c, "ERR increment or decrement would overflow");
	else if (err)
		reply_db_error(c, err);
	else
		reply_integer(c, result);
}

void cmd_incr(struct client *c, const struct request *rq)
{
	add(c, rq, 1);
}

void cmd_decr(struct client *c, const struct request *rq)
{
	add(c, rq, -1);
}

void cmd_incrby(struct client *c, const struct request *rq)
{
	int64_t by;

	if (arg_integer(c, &rq->argv[2], &by))
		add(c, rq, by);
}

void cmd_decrby(struct client *c, const struct request *rq)
{
	int64_t by;

	if (!arg_integer(c, &rq->argv[2], &by))
		return;
	if (by == INT64_MIN)
		reply_error(c, "ERR decrement would overflow");
	else
		add(c, rq, -by);
}

void cmd_append(struct client *c, const struct request *rq)
{
	const struct resp_arg *key = &rq->argv[1], *value = &rq->argv[2];
	size_t len;
	int err =
		db_append(&server.db, rq->hash, key->data, key->len, value->data, value->len, &len);

	if (err == -EFBIG)
		reply_error(c, "ERR string exceeds maximum allowed size (proto-max-bulk-len)");
	else if (err)
		reply_db_error(c, err);
	else
		reply_integer(c, (int64_t)len);
}
