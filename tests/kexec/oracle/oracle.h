/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * oracle: a client that knows what a key-value server must hold.
 *
 * It writes values that say by themselves which write they are, notes in a log outside of the
 * server what it sent and what was acknowledged, and after the server died and came back says which
 * acknowledged writes are missing. The log is the only thing that is trusted, so it is kept in this
 * order: a write is noted before its bytes leave, an acknowledgement after the reply was read. When
 * the oracle itself is killed, it therefore knows too little at worst, and accuses nobody wrongly.
 *
 *	value.c		what a value looks like
 *	history.c	the log, and the judgement on a key
 *	link.c		a connection: commands out, replies in
 *	write.c		load and write
 *	verify.c	verify
 *	progress.c	the progress line
 *	wait.c		start and wait: how long until the first reply?
 *	main.c		options, and the small commands
 *
 * One thread, so nothing here takes a lock. Whatever makes going on useless ends the program with a
 * message (fail()); what was appended to the log by then is written.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Exit status. */
enum {
	EXIT_GOOD = 0,
	EXIT_FAULTS = 1, /* the server does not hold what it must */
	EXIT_USAGE = 2,
	EXIT_TROUBLE = 3, /* no connection, no memory, unreadable log: nothing was found out */
};

/* ---- main.c ---- */

struct options {
	const char *host; /* address, not a name */
	uint16_t port;
	const char *unix_path; /* instead of host and port */
	const char *log;
	uint64_t keys;
	uint32_t first_key;
	uint64_t ops;
	double seconds;
	double timeout_s; /* for a connection, and for a reply */
	unsigned int connections;
	unsigned int pipeline;
	unsigned int deletes_percent;
	size_t value_min_bytes;
	size_t value_max_bytes;
	uint64_t seed;
	bool until_end;
	bool reconnect;
	const char *output; /* of a server that is started */
	const char *label;  /* of the progress line */
	bool quiet;
};

/** Message to standard error, then exit(EXIT_TROUBLE). */
_Noreturn __attribute__((format(printf, 1, 2))) void fail(const char *format, ...);
/** CLOCK_MONOTONIC, the same for all processes of this machine. */
uint64_t now_ns(void);
void sleep_ns(uint64_t ns);
/** malloc() and realloc() that do not fail. */
void *need(void *old, size_t bytes);
/** Usage error, unless the options name one. */
void need_server(const struct options *o);
_Noreturn __attribute__((format(printf, 1, 2))) void usage_error(const char *format, ...);
/** SIGTERM or SIGINT arrived: end in an orderly way. Or a server that was started ended. */
bool interrupted(void);

/* ---- value.c ---- */

#define KEY_BYTES	16u /* "key:" and 12 digits */
#define VALUE_MIN_BYTES 51u
#define VALUE_MAX_BYTES (8u << 20)

/** Writes KEY_BYTES bytes, no NUL. */
void key_make(char *out, uint32_t key);
/** Writes `digits` decimal digits, with leading zeros. */
void decimal_make(char *out, unsigned int digits, uint64_t n);
/** Reads them back; false if there is anything else than digits. */
bool decimal_read(const char *in, unsigned int digits, uint64_t *n);

/** The value of write `seq` to `key`: `bytes` bytes, at least VALUE_MIN_BYTES. */
void value_make(char *out, size_t bytes, uint64_t run, uint32_t key, uint64_t seq);
/** Is this, to the last byte, a value that value_make() made for this key in this run? */
bool value_read(const char *value, size_t bytes, uint64_t run, uint32_t key, uint64_t *seq);

/* ---- history.c ---- */

enum op_kind { OP_SET, OP_DEL };

enum op_state {
	OP_SENT,    /* no reply was read: it may have happened or not */
	OP_ACKED,   /* its reply was read */
	OP_REFUSED, /* its reply was an error: it must not have happened */
};

struct op {
	uint32_t key;
	uint8_t kind;
	uint8_t state;
};

struct key_state {
	uint64_t known;	   /* last write that is known to be in effect; 0: none */
	uint64_t last_del; /* last DEL that was sent and not refused */
	bool touched;
};

/** Writes are numbered from 1 in the order of sending; ops[0] is unused. */
struct history {
	const char *path;
	int fd;
	uint64_t run; /* random; values of another run do not pass for ours */
	struct op *ops;
	uint64_t nops;
	uint64_t ops_cap;
	struct key_state *keys;
	uint64_t nkeys; /* highest key that was sent, plus 1 */
	uint64_t keys_cap;
	uint64_t acked;
	uint64_t refused;
	char *buffer;
	size_t buffered;
};

/** What a key of the server proves. */
enum verdict {
	VERDICT_GOOD,
	VERDICT_LOST,	 /* absent, although an acknowledged write put it there */
	VERDICT_TORN,	 /* not a value that was ever sent for this key */
	VERDICT_STALE,	 /* an earlier state than the last acknowledged one */
	VERDICT_PHANTOM, /* a write that was never sent, or that was refused */
	VERDICTS,
};

/** Open the log for going on with it; `create` one if there is none. */
void history_open(struct history *h, const char *path, bool create);
/** Note a write that is going to be sent: returns its number. Not on disk before the flush. */
uint64_t history_sent(struct history *h, enum op_kind kind, uint32_t key);
void history_acked(struct history *h, uint64_t seq);
void history_refused(struct history *h, uint64_t seq);
/** It had no reply, but its effect was read: from now on it must not vanish. */
void history_seen(struct history *h, uint64_t seq);
/** A remark for the reader of the log. */
__attribute__((format(printf, 2, 3))) void history_note(struct history *h, const char *format, ...);
void history_flush(struct history *h);
void history_close(struct history *h);
/**
 * Judge what the server holds for `key`: `value` of `bytes`, or NULL if it is absent. *seq (may be
 * NULL) is the write that is in effect, as far as that can be told, else 0.
 */
enum verdict history_judge(const struct history *h, uint32_t key, const char *value, size_t bytes,
			   uint64_t *seq);

/* ---- link.c ---- */

struct link {
	int fd; /* -1: not connected */
	char *out;
	size_t out_len, out_cap;
	char *in;
	size_t in_off, in_len, in_cap;
};

enum reply_type {
	REPLY_NONE = 0, /* the rest is still to come */
	REPLY_STATUS = '+',
	REPLY_ERROR = '-',
	REPLY_INTEGER = ':',
	REPLY_BULK = '$',  /* text NULL: null */
	REPLY_ARRAY = '*', /* only its head: `integer` replies follow */
};

/** The text is valid until the next call on the link. */
struct reply {
	enum reply_type type;
	const char *text;
	size_t bytes;
	int64_t integer;
};

/** One attempt. 0, or a negative errno (-ETIMEDOUT). */
int link_open(struct link *l, const struct options *o, uint64_t timeout_ns);
void link_close(struct link *l);
/** Release the buffers as well. */
void link_free(struct link *l);
/** Append a command to what is going to be sent. */
void link_command(struct link *l, unsigned int words, const char *const *text, const size_t *bytes);
/** Send as much as the socket takes. 0, or a negative errno: the connection has ended. */
int link_send(struct link *l);
/** Read what is there. 0 also if there is nothing, or a negative errno (-ECONNRESET: also its end).
 */
int link_receive(struct link *l);
/** Take the next complete reply out; type REPLY_NONE: none. false: this is not the protocol. */
bool link_reply(struct link *l, struct reply *r);
/** Send what was appended and wait for the next reply. 0 or a negative errno. */
int link_ask(struct link *l, struct reply *r, uint64_t timeout_ns);
/**
 * Connect, again and again, until the server answers `words` (one command) with a reply that
 * `accept` likes, or until the deadline: then false, and *why says what came last.
 */
bool link_await(struct link *l, const struct options *o, uint64_t deadline_ns, unsigned int words,
		const char *const *text, bool (*accept)(void *ctx, const struct reply *r),
		void *ctx, char *why, size_t why_bytes);
/** The value of a field of INFO, or false. */
bool link_info(struct link *l, const struct options *o, const char *field, char *out, size_t bytes);

/* ---- write.c, verify.c, wait.c: the program's exit status ---- */

int run_write(const struct options *o, bool load);
int run_verify(const struct options *o);
int run_wait(const struct options *o);
int run_start(const struct options *o, char **command);

/* ---- progress.c ---- */

struct progress {
	const char *label;
	const char *noun;
	uint64_t total; /* 0: unknown */
	uint64_t start_ns, drawn_ns;
	bool terminal, quiet;
};

/** On a terminal a bar that moves; elsewhere one line at the end. To standard error. */
void progress_begin(struct progress *p, const char *label, const char *noun, uint64_t total,
		    bool quiet);
void progress_update(struct progress *p, uint64_t done);
void progress_end(struct progress *p, uint64_t done);

#endif
