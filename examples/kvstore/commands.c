/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The table of commands, and what they have in common: looking them up, checking the number of
 * words, reading arguments, and the texts of errors, which are those of Redis to the letter.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "kvstore.h"

#define W CMD_WRITE
#define R CMD_READ
#define M CMD_DENYOOM
#define F CMD_FAST
#define A CMD_ADMIN

static const struct command table[] = {
	{"append", cmd_append, 3, W | M | F, 1, 1, 1, "string", "Append to a value"},
	{"client", cmd_client, -2, 0, 0, 0, 0, "connection", "Look at and name connections"},
	{"command", cmd_command, -1, 0, 0, 0, 0, "server", "Describe the commands"},
	{"config", cmd_config, -2, A, 0, 0, 0, "server", "Read the configuration"},
	{"dbsize", cmd_dbsize, 1, R | F, 0, 0, 0, "server", "Count the keys"},
	{"decr", cmd_decr, 2, W | M | F, 1, 1, 1, "string", "Subtract one from a number"},
	{"decrby", cmd_decrby, 3, W | M | F, 1, 1, 1, "string", "Subtract from a number"},
	{"del", cmd_del, -2, W, 1, -1, 1, "generic", "Remove keys"},
	{"echo", cmd_echo, 2, F, 0, 0, 0, "connection", "Return the argument"},
	{"exists", cmd_exists, -2, R | F, 1, -1, 1, "generic", "Count those keys that exist"},
	{"expire", cmd_expire, -3, W | F, 1, 1, 1, "generic", "Let a key expire in seconds"},
	{"flushall", cmd_flushall, -1, W, 0, 0, 0, "server", "Remove all keys"},
	{"flushdb", cmd_flushdb, -1, W, 0, 0, 0, "server", "Remove all keys"},
	{"get", cmd_get, 2, R | F, 1, 1, 1, "string", "Get a value"},
	{"hello", cmd_hello, -1, F, 0, 0, 0, "connection", "Choose the protocol's version"},
	{"incr", cmd_incr, 2, W | M | F, 1, 1, 1, "string", "Add one to a number"},
	{"incrby", cmd_incrby, 3, W | M | F, 1, 1, 1, "string", "Add to a number"},
	{"info", cmd_info, -1, 0, 0, 0, 0, "server", "Figures about the server"},
	{"keys", cmd_keys, 2, R, 0, 0, 0, "generic", "List keys that match a pattern"},
	{"mget", cmd_mget, -2, R | F, 1, -1, 1, "string", "Get several values"},
	{"mset", cmd_mset, -3, W | M, 1, -1, 2, "string", "Set several keys, all or none"},
	{"persist", cmd_persist, 2, W | F, 1, 1, 1, "generic", "Let a key not expire"},
	{"pexpire", cmd_pexpire, -3, W | F, 1, 1, 1, "generic", "Let a key expire in milliseconds"},
	{"ping", cmd_ping, -1, F, 0, 0, 0, "connection", "Answer"},
	{"preserve", cmd_preserve, -2, A, 0, 0, 0, "server", "Keep the data across a kexec"},
	{"pttl", cmd_pttl, 2, R | F, 1, 1, 1, "generic", "Milliseconds until a key expires"},
	{"quit", cmd_quit, -1, F, 0, 0, 0, "connection", "Close the connection"},
	{"save", cmd_save, 1, A, 0, 0, 0, "server", "Write all keys to the image file"},
	{"scan", cmd_scan, -2, R, 0, 0, 0, "generic", "Walk over the keys"},
	{"select", cmd_select, 2, F, 0, 0, 0, "connection", "Choose database 0"},
	{"set", cmd_set, -3, W | M, 1, 1, 1, "string", "Set a key"},
	{"shutdown", cmd_shutdown, -1, A, 0, 0, 0, "server", "End the server, the data stay"},
	{"strlen", cmd_strlen, 2, R | F, 1, 1, 1, "string", "Length of a value"},
	{"ttl", cmd_ttl, 2, R | F, 1, 1, 1, "generic", "Seconds until a key expires"},
};

#undef W
#undef R
#undef M
#undef F
#undef A

#define NCOMMANDS    (sizeof(table) / sizeof(table[0]))
#define HASH_SLOTS   256u
#define NAME_MAX_LEN 8u

/* By hash of the name, which is at most 8 bytes: one word. */
static struct {
	uint64_t name;
	const struct command *command;
} by_hash[HASH_SLOTS];

/* A name as a word in lower case; 0: no command has such a name. */
static inline uint64_t name_word(const char *name, size_t len)
{
	uint64_t word = 0;

	if (len == 0 || len > NAME_MAX_LEN)
		return 0;
	memcpy(&word, name, len);
	/* Only letters become what they were not: a name with another byte matches nothing. */
	return word | (0x2020202020202020ull >> (8 * (NAME_MAX_LEN - len)));
}

static inline unsigned int slot_of(uint64_t word)
{
	return (unsigned int)((word * 0x9e3779b97f4a7c15ull) >> 56);
}

void commands_init(void)
{
	_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "name_word()");

	for (size_t i = 0; i < NCOMMANDS; i++) {
		uint64_t word = name_word(table[i].name, strlen(table[i].name));
		unsigned int slot = slot_of(word);

		assert(word);
		while (by_hash[slot].command)
			slot = (slot + 1) % HASH_SLOTS;
		by_hash[slot].name = word;
		by_hash[slot].command = &table[i];
	}
}

const struct command *command_find(const char *name, size_t len)
{
	uint64_t word = name_word(name, len);

	if (!word)
		return NULL;
	for (unsigned int slot = slot_of(word); by_hash[slot].command;
	     slot = (slot + 1) % HASH_SLOTS)
		if (by_hash[slot].name == word)
			return by_hash[slot].command;
	return NULL;
}

const struct command *command_list(size_t *n)
{
	*n = NCOMMANDS;
	return table;
}

/* ---- errors ---- */

static int printable(size_t len)
{
	return len > 128 ? 128 : (int)len;
}

/* Browsers can be made to send commands to a port of this machine: what begins like HTTP ends. */
static bool is_http(const struct resp_arg *name)
{
	return arg_is(name, "post") || arg_is(name, "host:");
}

static void reply_unknown(struct client *c, const struct request *rq)
{
	char args[160] = "";
	size_t n = 0;

	if (is_http(&rq->argv[0])) {
		log_error("client %s speaks HTTP and is closed", c->address);
		c->closing = true;
		return;
	}
	for (size_t i = 1; i < rq->argc && n < 128; i++)
		n += (size_t)snprintf(args + n, sizeof(args) - n, "'%.*s' ",
				      128 - (int)n < printable(rq->argv[i].len)
					      ? 128 - (int)n
					      : printable(rq->argv[i].len),
				      rq->argv[i].data);
	reply_error(c, "ERR unknown command '%.*s', with args beginning with: %s",
		    printable(rq->argv[0].len), rq->argv[0].data, args);
}

void reply_arity(struct client *c, const char *command)
{
	reply_error(c, "ERR wrong number of arguments for '%s' command", command);
}

void reply_db_error(struct client *c, int err)
{
	if (err == -ENOSPC || err == -ENOMEM) {
		server.noom++;
		reply_error(c, "OOM command not allowed when used memory > 'maxmemory'.");
		return;
	}
	log_error("a command failed: %s", pv_last_error());
	reply_error(c, "ERR %s", pv_last_error());
}

/* ---- running ---- */

static bool arity_ok(int arity, size_t words)
{
	return arity > 0 ? words == (size_t)arity : words >= (size_t)-arity;
}

void command_run(struct client *c, const struct request *rq)
{
	const struct command *command = rq->command;

	server.ncommands++;
	if (!command) {
		reply_unknown(c, rq);
		return;
	}
	c->last_command = command->name;
	if (!arity_ok(command->arity, rq->argc)) {
		reply_arity(c, command->name);
		return;
	}
	command->run(c, rq);
}

static void reply_help(struct client *c, const char *parent, const struct subcommand *list,
		       size_t n)
{
	char line[256];
	size_t at = 0;

	for (size_t i = 0; i < n; i++)
		at += (size_t)snprintf(line + at, sizeof(line) - at, "%s%s", i ? ", " : "",
				       list[i].name);
	reply_array(c, 2);
	reply_text(c, line);
	snprintf(line, sizeof(line), "are the subcommands of %s, see kvstore(1)", parent);
	reply_text(c, line);
}

void subcommand_run(struct client *c, const struct request *rq, const char *parent,
		    const struct subcommand *list, size_t n)
{
	char upper[16] = "";

	for (size_t i = 0; i < n; i++) {
		if (!arg_is(&rq->argv[1], list[i].name))
			continue;
		if (arity_ok(list[i].arity, rq->argc))
			list[i].run(c, rq);
		else
			reply_error(c, "ERR wrong number of arguments for '%s|%s' command", parent,
				    list[i].name);
		return;
	}
	if (arg_is(&rq->argv[1], "help") && rq->argc == 2) {
		reply_help(c, parent, list, n);
		return;
	}
	for (size_t i = 0; parent[i] && i < sizeof(upper) - 1; i++)
		upper[i] = (char)(parent[i] & ~0x20);
	reply_error(c, "ERR unknown subcommand '%.*s'. Try %s HELP.", printable(rq->argv[1].len),
		    rq->argv[1].data, upper);
}

/* ---- arguments ---- */

bool arg_is(const struct resp_arg *arg, const char *word)
{
	size_t len = strlen(word);

	if (arg->len != len)
		return false;
	for (size_t i = 0; i < len; i++) {
		char ch = arg->data[i];

		if (ch >= 'A' && ch <= 'Z')
			ch = (char)(ch | 0x20);
		if (ch != word[i])
			return false;
	}
	return true;
}

bool arg_integer(struct client *c, const struct resp_arg *arg, int64_t *out)
{
	if (resp_integer(arg->data, arg->len, out))
		return true;
	reply_error(c, "ERR value is not an integer or out of range");
	return false;
}
