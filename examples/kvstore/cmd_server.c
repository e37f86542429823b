/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands on the server: COMMAND, CONFIG, INFO, SHUTDOWN. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore.h"

/* ---- COMMAND ---- */

static void reply_flags(struct client *c, const struct command *command)
{
	static const struct {
		uint32_t flag;
		const char *name;
	} names[] = {
		{CMD_WRITE, "write"}, {CMD_READ, "readonly"}, {CMD_DENYOOM, "denyoom"},
		{CMD_FAST, "fast"},   {CMD_ADMIN, "admin"},
	};

	reply_set(c, (size_t)__builtin_popcount(command->flags));
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (command->flags & names[i].flag)
			reply_simple(c, names[i].name);
}

/* Ten elements as in Redis 7; the last four (ACL categories aside) are empty. */
static void reply_command(struct client *c, const struct command *command)
{
	char category[32];

	if (!command) {
		reply_null(c);
		return;
	}
	reply_array(c, 10);
	reply_text(c, command->name);
	reply_integer(c, command->arity);
	reply_flags(c, command);
	reply_integer(c, command->first_key);
	reply_integer(c, command->last_key);
	reply_integer(c, command->step);
	snprintf(category, sizeof(category), "@%s",
		 strcmp(command->group, "generic") ? command->group : "keyspace");
	reply_set(c, 1);
	reply_simple(c, category);
	reply_array(c, 0);
	reply_array(c, 0);
	reply_array(c, 0);
}

static void reply_doc(struct client *c, const struct command *command)
{
	reply_text(c, command->name);
	reply_map(c, 2);
	reply_text(c, "summary");
	reply_text(c, command->summary);
	reply_text(c, "group");
	reply_text(c, command->group);
}

static void command_docs(struct client *c, const struct request *rq)
{
	size_t n, known = 0;
	const struct command *all = command_list(&n);

	if (rq->argc == 2) {
		reply_map(c, n);
		for (size_t i = 0; i < n; i++)
			reply_doc(c, &all[i]);
		return;
	}
	for (size_t i = 2; i < rq->argc; i++)
		known += command_find(rq->argv[i].data, rq->argv[i].len) != NULL;
	reply_map(c, known);
	for (size_t i = 2; i < rq->argc; i++) {
		const struct command *command = command_find(rq->argv[i].data, rq->argv[i].len);

		if (command)
			reply_doc(c, command);
	}
}

static void command_getkeys(struct client *c, const struct request *rq)
{
	const struct command *command = command_find(rq->argv[2].data, rq->argv[2].len);
	size_t words = rq->argc - 2, last, n = 0;

	if (!command) {
		reply_error(c, "ERR Invalid command specified");
		return;
	}
	if (!command->first_key) {
		reply_error(c, "ERR The command has no key arguments");
		return;
	}
	if (command->arity > 0 ? words != (size_t)command->arity
			       : words < (size_t)-command->arity) {
		reply_error(c, "ERR Invalid number of arguments specified for command");
		return;
	}
	last = command->last_key < 0 ? words - 1 : (size_t)command->last_key;
	for (size_t i = (size_t)command->first_key; i <= last; i += (size_t)command->step)
		n++;
	reply_array(c, n);
	for (size_t i = (size_t)command->first_key; i <= last; i += (size_t)command->step)
		reply_bulk(c, rq->argv[i + 2].data, rq->argv[i + 2].len);
}

static void command_info(struct client *c, const struct request *rq)
{
	size_t n;
	const struct command *all = command_list(&n);

	if (rq->argc > 2) {
		reply_array(c, rq->argc - 2);
		for (size_t i = 2; i < rq->argc; i++)
			reply_command(c, command_find(rq->argv[i].data, rq->argv[i].len));
		return;
	}
	reply_array(c, n);
	for (size_t i = 0; i < n; i++)
		reply_command(c, &all[i]);
}

static void command_count(struct client *c, const struct request *rq)
{
	size_t n;

	command_list(&n);
	reply_integer(c, (int64_t)n);
}

static void command_names(struct client *c, const struct request *rq)
{
	size_t n;
	const struct command *all = command_list(&n);

	reply_array(c, n);
	for (size_t i = 0; i < n; i++)
		reply_text(c, all[i].name);
}

static const struct subcommand command_subcommands[] = {
	{"count", 2, command_count}, {"docs", -2, command_docs},  {"getkeys", -4, command_getkeys},
	{"info", -2, command_info},  {"list", -2, command_names},
};

void cmd_command(struct client *c, const struct request *rq)
{
	if (rq->argc == 1)
		command_info(c, rq);
	else
		subcommand_run(c, rq, "command", command_subcommands,
			       sizeof(command_subcommands) / sizeof(command_subcommands[0]));
}

/* ---- CONFIG ---- */

#define CONFIG_MAX 24u

struct config_item {
	const char *name;
	char value[128];
};

static void config_add(struct config_item *items, size_t *n, const char *name, const char *value)
{
	items[*n].name = name;
	snprintf(items[*n].value, sizeof(items[*n].value), "%s", value);
	(*n)++;
}

static void config_number(struct config_item *items, size_t *n, const char *name, uint64_t value)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	config_add(items, n, name, text);
}

static size_t config_list(struct config_item *items)
{
	size_t n = 0;

	config_number(items, &n, "port", server.opt.port);
	config_add(items, &n, "bind", server.opt.bind);
	config_add(items, &n, "unixsocket", server.opt.unix_path ? server.opt.unix_path : "");
	config_number(items, &n, "maxmemory", server.opt.max_memory);
	config_add(items, &n, "maxmemory-policy", "noeviction");
	config_number(items, &n, "maxmemory-clients", server.opt.client_memory);
	config_number(items, &n, "maxclients", server.opt.max_clients);
	config_number(items, &n, "databases", 1);
	config_number(items, &n, "timeout", 0);
	config_number(items, &n, "tcp-keepalive", 0);
	config_number(items, &n, "proto-max-bulk-len", RESP_BULK_MAX);
	config_number(items, &n, "client-query-buffer-limit", 1ull << 30);
	/* What asks for these wants to know how safe the data are: not by files. */
	config_add(items, &n, "save", "");
	config_add(items, &n, "appendonly", "no");
	config_add(items, &n, "dir", "");
	config_add(items, &n, "store", server.opt.store);
	config_add(items, &n, "handover", handover_name(server.opt.handover));
	config_add(items, &n, "runtime-dir", server.opt.runtime_dir ? server.opt.runtime_dir : "");
	return n;
}

static bool names_item(const struct resp_arg *pattern, const char *name)
{
	char lower[128];
	size_t len = pattern->len < sizeof(lower) ? pattern->len : sizeof(lower);

	for (size_t i = 0; i < len; i++) {
		char ch = pattern->data[i];

		lower[i] = (char)(ch >= 'A' && ch <= 'Z' ? ch | 0x20 : ch);
	}
	return glob_match(lower, len, name, strlen(name));
}

/* The argument that asks for an item, or NULL. */
static const struct resp_arg *asks_for(const struct request *rq, const char *name)
{
	for (size_t i = 2; i < rq->argc; i++)
		if (names_item(&rq->argv[i], name))
			return &rq->argv[i];
	return NULL;
}

static void config_get(struct client *c, const struct request *rq)
{
	struct config_item items[CONFIG_MAX];
	size_t n = config_list(items), found = 0;

	for (size_t i = 0; i < n; i++)
		found += asks_for(rq, items[i].name) != NULL;
	reply_map(c, found);
	for (size_t i = 0; i < n; i++) {
		const struct resp_arg *arg = asks_for(rq, items[i].name);

		if (!arg)
			continue;
		/* A name is given back as it was written. */
		if (arg_is(arg, items[i].name))
			reply_bulk(c, arg->data, arg->len);
		else
			reply_text(c, items[i].name);
		reply_text(c, items[i].value);
	}
}

/* Everything is set on the command line. */
static void config_set(struct client *c, const struct request *rq)
{
	reply_error(c, "ERR Unknown option or number of arguments for CONFIG SET - '%.*s'",
		    rq->argv[2].len > 128 ? 128 : (int)rq->argv[2].len, rq->argv[2].data);
}

static void config_rewrite(struct client *c, const struct request *rq)
{
	reply_error(c, "ERR The server is running without a config file");
}

static void config_resetstat(struct client *c, const struct request *rq)
{
	server.ncommands = 0;
	server.nconnections = 0;
	server.nrejected = 0;
	server.nerrors = 0;
	server.noom = 0;
	server.in_bytes = 0;
	server.out_bytes = 0;
	server.db.hits = 0;
	server.db.misses = 0;
	server.db.expired = 0;
	reply_raw(c, "+OK\r\n", 5);
}

static const struct subcommand config_subcommands[] = {
	{"get", -3, config_get},
	{"resetstat", 2, config_resetstat},
	{"rewrite", 2, config_rewrite},
	{"set", -4, config_set},
};

void cmd_config(struct client *c, const struct request *rq)
{
	subcommand_run(c, rq, "config", config_subcommands,
		       sizeof(config_subcommands) / sizeof(config_subcommands[0]));
}

/* ---- INFO, SHUTDOWN ---- */

void cmd_info(struct client *c, const struct request *rq)
{
	size_t len;
	char *text = info_make(rq, &len);

	if (!text) {
		reply_error(c, "ERR out of memory");
		return;
	}
	reply_verbatim(c, text, len);
	free(text);
}

void cmd_shutdown(struct client *c, const struct request *rq)
{
	/* The data stay in any case: what Redis has options for makes no difference here. */
	for (size_t i = 1; i < rq->argc; i++) {
		if (arg_is(&rq->argv[i], "abort")) {
			reply_error(c, "ERR No shutdown in progress.");
			return;
		}
		if (!arg_is(&rq->argv[i], "save") && !arg_is(&rq->argv[i], "nosave") &&
		    !arg_is(&rq->argv[i], "now") && !arg_is(&rq->argv[i], "force")) {
			reply_error(c, "ERR syntax error");
			return;
		}
	}
	log_info("shutdown asked for by client %s", c->address);
	c->closing = true;
	server_stop(0);
}
