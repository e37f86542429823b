/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl check: is a store sound? The fast form is what every attach looks at, headers, index and
 * lanes, and the roots; the full one walks everything and follows every pointer. Both read only.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ctl.h"

struct check {
	const char *name;
	bool fast;
	bool full;
	bool leaks;
	uint32_t threads;
	json_t *problems; /* NULL: print them */
	json_t *leaked;
};

enum { KEY_FAST = 256, KEY_FULL, KEY_LEAKS };

static const struct argp_option options[] = {
	{"fast", KEY_FAST, NULL, 0, "Headers, index and lanes only", 0},
	{"full", KEY_FULL, NULL, 0, "Everything (the default)", 0},
	{"leaks", KEY_LEAKS, NULL, 0, "Say of each type what no root leads to", 0},
	{"threads", 't', "N", 0, "Threads (default: as many as processors)", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct check *c = state->input;

	switch (key) {
	case KEY_FAST:
		c->fast = true;
		return 0;
	case KEY_FULL:
		c->full = true;
		return 0;
	case KEY_LEAKS:
		c->leaks = true;
		return 0;
	case 't':
		c->threads = ctl_threads(state, arg);
		return 0;
	case ARGP_KEY_END:
		if (c->fast && (c->full || c->leaks))
			argp_error(state, "--fast, or --full and --leaks");
		return 0;
	default:
		return ctl_one_store(key, arg, state, &c->name);
	}
}

static void tell(void *ctx, const char *line)
{
	struct check *c = ctx;

	if (c->problems)
		json_array_append_new(c->problems, json_string(line));
	else
		printf("%s\n", line);
}

static void leak(void *ctx, const struct pv_check_leak *l)
{
	struct check *c = ctx;
	char bytes[16];

	if (!c->leaks)
		return;
	if (c->leaked)
		json_array_append_new(c->leaked, json_pack("{s:s, s:I, s:I}", "type", l->name, "objects",
							   (json_int_t) l->objects, "bytes",
							   (json_int_t) l->bytes));
	else
		printf("leaked: %llu objects of type %s with %s\n", (unsigned long long) l->objects, l->name,
		       ctl_bytes(bytes, l->bytes));
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}

static void print_report(const struct check *c, const struct pv_check_report *r, double took)
{
	char bytes[16];

	printf("%s: %llu problems\n", c->name, (unsigned long long) r->problems);
	if (c->fast)
		return;
	printf("%llu live objects with %s in %llu slabs and %llu extents; %llu slots free, %llu pages free\n",
	       (unsigned long long) r->live_objects, ctl_bytes(bytes, r->live_bytes),
	       (unsigned long long) r->slabs, (unsigned long long) r->extents,
	       (unsigned long long) r->free_slots, (unsigned long long) r->free_pages);
	if (r->unsettled)
		printf("pointers were not followed: %s\n",
		       r->unsettled & PV_UNSETTLED_IN_USE ? "a process has the store open"
							 : "a crash left something to be recovered: open it first");
	else
		printf("%llu pointers; %llu objects with %s are not reached from a root\n",
		       (unsigned long long) r->pointers, (unsigned long long) r->leaked_objects,
		       ctl_bytes(bytes, r->leaked_bytes));
	if (r->intents || r->transactions)
		printf("%llu intents and %llu transactions are not done\n",
		       (unsigned long long) r->intents, (unsigned long long) r->transactions);
	printf("%.3f s\n", took);
}

static json_t *report_json(const struct check *c, const struct pv_check_report *r, double took)
{
	json_t *o = json_pack("{s:s, s:s, s:I, s:O, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "name",
			 c->name, "form", c->fast ? "fast" : "full", "problems",
			 (json_int_t) r->problems, "lines", c->problems, "live_objects",
			 (json_int_t) r->live_objects, "live_bytes", (json_int_t) r->live_bytes,
			 "free_slots", (json_int_t) r->free_slots, "slabs", (json_int_t) r->slabs,
			 "extents", (json_int_t) r->extents, "free_pages",
			 (json_int_t) r->free_pages, "intents", (json_int_t) r->intents,
			 "transactions", (json_int_t) r->transactions, "seconds", took);

	if (!o || c->fast)
		return o;
	json_object_set_new(o, "pointers", json_integer((json_int_t) r->pointers));
	json_object_set_new(o, "pointers_followed", json_boolean(r->unsettled == 0));
	json_object_set_new(o, "leaked_objects", json_integer((json_int_t) r->leaked_objects));
	json_object_set_new(o, "leaked_bytes", json_integer((json_int_t) r->leaked_bytes));
	if (c->leaks)
		json_object_set(o, "leaks", c->leaked);
	return o;
}

static void note_if_open(const char *name)
{
	const struct pv_stores_entry *e;
	struct pv_stores *list;

	if (pv_stores_list(ctl.runtime_dir, &list))
		return;
	for (uint32_t i = 0; i < list->n; i++) {
		e = &list->stores[i];
		if (e->open && strcmp(e->name, name) == 0)
			ctl_say("store %s is open in process %d: what it is changing at the moment may "
				"look like a problem",
				name, e->writer_pid);
	}
	pv_stores_free(list);
}

int ctl_check(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "STORE",
		.doc = "Check a store and print what is wrong. Changes nothing.",
		.children = ctl_children,
	};
	struct pv_check_report report = {0};
	struct check c = {0};
	struct pv_check_options how = {.size = sizeof(how), .tell = tell, .leak = leak, .ctx = &c};
	struct pv_store *store;
	double begun;
	int err;

	ctl_parse(&argp, argc, argv, &c);
	how.flags = c.fast ? PV_CHECK_FAST : 0;
	how.threads = c.threads;
	if (!c.fast)
		note_if_open(c.name);
	begun = seconds();
	err = ctl_open_readonly(c.name, &store);
	if (err)
		return ctl_library_fail(err, c.name);
	if (ctl.json) {
		c.problems = json_array();
		c.leaked = json_array();
	}
	err = pv_check(store, &how, &report);
	pv_close(store);
	if (err)
		err = ctl_library_fail(err, c.name);
	else if (ctl.json)
		err = ctl_json_print(report_json(&c, &report, seconds() - begun));
	else
		print_report(&c, &report, seconds() - begun);
	json_decref(c.problems);
	json_decref(c.leaked);
	return err ? err : report.problems ? CTL_UNSOUND : CTL_OK;
}
