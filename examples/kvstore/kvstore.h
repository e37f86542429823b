/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The server: options, clients, commands. One thread runs all of it, from a libuv loop. Other
 * threads only prepare a handover meanwhile (cmd_preserve.c) or look after who keeps the store
 * (cron.c), and touch no struct of this header.
 *
 * A client is read into a buffer that all clients share, its complete commands are run, their
 * replies gather in another shared buffer and are written by one system call. A client owns memory
 * only for what is left over: part of a command, or replies that the socket would not take.
 */
#ifndef KVSTORE_KVSTORE_H
#define KVSTORE_KVSTORE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "db.h"
#include "resp.h"

/* The version of Redis whose protocol and texts are followed. */
#define REDIS_VERSION "7.0.15"

struct options {
	uint16_t port; /* 0: no TCP */
	const char *bind;
	const char *unix_path; /* NULL: none */
	const char *store;
	const char *runtime_dir;
	const char *save_file; /* NULL: none */
	uint32_t handover;
	uint64_t max_memory;	/* 0: none */
	uint64_t client_memory; /* of all clients' buffers */
	unsigned int max_clients;
	bool eager; /* prepared for a kexec at all times */
	bool destroy;
};

struct client;
struct command;

/** A complete command. */
struct request {
	const struct command *command; /* NULL: unknown */
	const struct resp_arg *argv;
	size_t argc;
	uint64_t hash; /* of argv[1], if command->first_key is 1 */
};

#define CMD_WRITE   1u /* may change the data */
#define CMD_DENYOOM 2u /* needs memory in the store */
#define CMD_FAST    4u /* constant time */
#define CMD_ADMIN   8u
#define CMD_READ    16u

typedef void command_fn(struct client *c, const struct request *rq);

struct command {
	const char *name; /* lower case */
	command_fn *run;
	int arity; /* words, the name included; negative: at least */
	uint32_t flags;
	int first_key; /* index of the first key; 0: none */
	int last_key;  /* -1: the last word */
	int step;
	const char *group;
	const char *summary;
};

enum reply_mode { REPLY_ON, REPLY_OFF, REPLY_SKIP_NEXT, REPLY_SKIP };

struct client {
	struct client *next;
	struct client *previous;
	uint64_t id;
	uv_poll_t poll;
	int fd;
	int events;	    /* polled for */
	uint8_t protocol;   /* 2 or 3 */
	uint8_t reply_mode; /* enum reply_mode */
	bool blocked;	    /* a reply is still to come from another thread */
	bool closing;	    /* nothing more is run; it ends when its replies are written */
	bool overflow;	    /* its replies grew too large: all of them are dropped */
	bool closed;	    /* the descriptor is gone, the struct goes with the loop's callback */
	bool is_unix;
	struct resp_parser parser;
	struct resp_args args; /* of the command that is only partly here */
	size_t args_bytes;
	char *in; /* what is left over from reading */
	size_t in_len;
	size_t in_cap;
	char *out; /* what is left over from writing */
	size_t out_off;
	size_t out_len;
	size_t out_cap;
	size_t span; /* where its replies in the shared buffer begin */
	char *name;
	char address[64];
	int64_t since_ms;
	int64_t active_ms;
	const char *last_command;
};

struct server {
	struct options opt;
	uv_loop_t loop;
	struct db db;
	struct pv_store *store;
	bool stopping;
	int exit_status;
	/* Shared buffers. */
	char *in;
	char *out;
	size_t out_len;
	size_t out_cap;
	struct client *clients;
	uint64_t next_client_id;
	unsigned int nclients;
	uint64_t client_bytes; /* in clients' own buffers */
	/* Statistics. */
	int64_t start_us; /* CLOCK_MONOTONIC, when the program was executed */
	int64_t ready_us; /* from then until it served */
	char run_id[41];  /* random: tells this process from all others */
	uint64_t ncommands;
	uint64_t nconnections;
	uint64_t nrejected;
	uint64_t nerrors;
	uint64_t in_bytes;
	uint64_t out_bytes;
	uint64_t noom;
};

extern struct server server;

/* ---- log.c ---- */

__attribute__((format(printf, 1, 2))) void log_info(const char *format, ...);
__attribute__((format(printf, 1, 2))) void log_error(const char *format, ...);
int64_t clock_monotonic_us(void);
int64_t clock_unix_ms(void);

/* ---- options.c ---- */

/** Fill *opt from the command line; prints help and messages itself. Returns -1 to go on, otherwise
 *  the program's exit status. */
int options_parse(int argc, char **argv, struct options *opt);
const char *handover_name(uint32_t handover);
const char *origin_name(enum pv_origin origin);

/* ---- net.c, client.c ---- */

/** Bind the sockets that the options ask for. 0, or -1 after a message. */
int net_bind(void);
/** Begin to accept. 0, or -1 after a message. */
int net_listen(void);
/** Stop accepting, remove the unix socket. */
void net_close(void);

/** Take a connection over. */
void client_accept(int fd, bool is_unix, const char *address);
/** Close at once; what was not written is dropped. The struct stays until the loop's next round. */
void client_close(struct client *c);
void client_close_all(void);
/** Its reply came: write it, and go on with the commands that were read behind it. */
void client_unblock(struct client *c);
/** Bracket replies that are made outside of the client's own turn. */
void client_reply_begin(struct client *c);
void client_reply_end(struct client *c);

/** Write the replies that have gathered since client_reply_begin(); keep what cannot be written. */
void client_write(struct client *c);

/* ---- run.c ---- */

/**
 * Run the complete commands in `data`, which begins with a command (or with the part of one that
 * was there the last time). Returns the number of bytes that are done with.
 */
size_t run_input(struct client *c, char *data, size_t len);

/* ---- reply.c: to the shared output buffer ---- */

void reply_raw(struct client *c, const char *data, size_t len);
void reply_simple(struct client *c, const char *text);
/** "-" and the text; line breaks in it become blanks. */
__attribute__((format(printf, 2, 3))) void reply_error(struct client *c, const char *format, ...);
void reply_integer(struct client *c, int64_t n);
void reply_bulk(struct client *c, const char *data, size_t len);
void reply_text(struct client *c, const char *text);
void reply_null(struct client *c);
void reply_array(struct client *c, size_t n);
/** RESP3: a map of n pairs; RESP2: an array of 2 * n. */
void reply_map(struct client *c, size_t n);
/** RESP3: a set; RESP2: an array. */
void reply_set(struct client *c, size_t n);
/** RESP3: text that is meant to be read; RESP2: a bulk string. */
void reply_verbatim(struct client *c, const char *data, size_t len);
/** The value of an entry. */
void reply_entry(struct client *c, const struct entry *e);
/** Take back what was written behind this position; for replies whose head comes last. */
size_t reply_position(void);
void reply_rewind(size_t position);

/* ---- commands.c ---- */

/** Make the table ready. */
void commands_init(void);
/** The command of this name, in any case, or NULL. */
const struct command *command_find(const char *name, size_t len);
/** All of them. */
const struct command *command_list(size_t *n);
/** Check the number of words and run it. */
void command_run(struct client *c, const struct request *rq);
/** Is an argument this word? `word` is in lower case. */
bool arg_is(const struct resp_arg *arg, const char *word);
/** Reply with the error of a function of db.h: OOM, or what it was. */
void reply_db_error(struct client *c, int err);
/** An argument as integer, or an error reply and false. */
bool arg_integer(struct client *c, const struct resp_arg *arg, int64_t *out);
void reply_arity(struct client *c, const char *command);

/** The second word of some commands. */
struct subcommand {
	const char *name;
	int arity; /* words, both names included; negative: at least */
	command_fn *run;
};

/** Run the subcommand that rq->argv[1] names; HELP lists them. */
void subcommand_run(struct client *c, const struct request *rq, const char *parent,
		    const struct subcommand *list, size_t n);

/* ---- cmd_*.c ---- */

command_fn cmd_append, cmd_client, cmd_command, cmd_config, cmd_dbsize, cmd_decr, cmd_decrby,
	cmd_del, cmd_echo, cmd_exists, cmd_expire, cmd_flushall, cmd_flushdb, cmd_get, cmd_hello,
	cmd_incr, cmd_incrby, cmd_info, cmd_keys, cmd_mget, cmd_mset, cmd_persist, cmd_pexpire,
	cmd_ping, cmd_preserve, cmd_pttl, cmd_quit, cmd_save, cmd_scan, cmd_select, cmd_set, cmd_shutdown,
	cmd_strlen, cmd_ttl;

/** Does `text` match a glob-style pattern? */
bool glob_match(const char *pattern, size_t plen, const char *text, size_t tlen);

/** INFO: the sections asked for. The text is malloc'ed. NULL: no memory. */
char *info_make(const struct request *rq, size_t *len);

/** Log how the handover backend came to be the one it is, and what it does not do. */
void preserve_tell(void);
/** What the last PRESERVE PREPARE that succeeded took; -1: there was none. */
int64_t preserve_prepare_usec(void);
/** A PRESERVE command is under way, in another thread. */
bool preserve_busy(void);

/** The keeper has been looked after: a SAVE that waits for that is done now. */
void save_waiting(void);
/** Make the store from the file of --save-file. -ENOENT: there is no file, or none is wanted. */
int save_load(const struct pv_options *o);

/* ---- cron.c ---- */

/** Start the housekeeping: keys that expire, cleared tables, whether the store is kept. */
int cron_start(void);
/** There is something to free: go on with it whenever the loop is idle. */
void cron_tidy_soon(void);
/** When last looked at, nobody kept the store. */
bool cron_keeper_lost(void);
/** It is being looked after just now, by another thread. */
bool cron_keeper_busy(void);
void cron_stop(void);

/* ---- service.c ---- */

/** Tell the service manager, if there is one. */
void service_tell(const char *what);

/* ---- main.c ---- */

/** End the program after the current round of the loop. */
void server_stop(int exit_status);

#endif
