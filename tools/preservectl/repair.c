/* SPDX-License-Identifier: BSD-3-Clause */
/* preservectl repair: mend what can be mended without a guess, and on request free what is leaked. */
#include <stdio.h>
#include <stdlib.h>

#include "ctl.h"

struct repair {
	const char *name;
	bool dry_run;
	bool leaks;
	uint32_t threads;
	json_t *lines; /* NULL: print them */
};

enum { KEY_LEAKS = 256 };

static const struct argp_option options[] = {
	{"dry-run", 'n', NULL, 0, "Change nothing, say what would be done", 0},
	{"leaks", KEY_LEAKS, NULL, 0, "Free objects that no root leads to", 0},
	{"threads", 't', "N", 0, "Threads (default: as many as processors)", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct repair *r = state->input;

	switch (key) {
	case 'n':
		r->dry_run = true;
		return 0;
	case KEY_LEAKS:
		r->leaks = true;
		return 0;
	case 't':
		r->threads = ctl_threads(state, arg);
		return 0;
	default:
		return ctl_one_store(key, arg, state, &r->name);
	}
}

static void tell(void *ctx, const char *line)
{
	struct repair *r = ctx;

	if (r->lines)
		json_array_append_new(r->lines, json_string(line));
	else
		printf("%s\n", line);
}

static int print(const struct repair *r, const struct pv_repair_report *report)
{
	char bytes[16];

	if (ctl.json)
		return ctl_json_print(json_pack(
			"{s:s, s:b, s:O, s:I, s:I, s:I, s:I, s:I}", "name", r->name, "dry_run", r->dry_run, "lines",
			r->lines, "problems", (json_int_t) report->check.problems, "mended",
			(json_int_t) report->mended, "freed_objects", (json_int_t) report->freed_objects,
			"freed_bytes", (json_int_t) report->freed_bytes, "left", (json_int_t) report->left));
	printf("%s: %llu problems; %s %llu of the index, %s %llu objects with %s; %llu problems %s\n", r->name,
	       (unsigned long long) report->check.problems, r->dry_run ? "would mend" : "mended",
	       (unsigned long long) report->mended, r->dry_run ? "would free" : "freed",
	       (unsigned long long) report->freed_objects, ctl_bytes(bytes, report->freed_bytes),
	       (unsigned long long) report->left, r->dry_run ? "would be left" : "are left");
	return CTL_OK;
}

int ctl_repair(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "STORE",
		.doc = "Mend what can be mended of a store without a guess: the index, if one of its copies is "
		       "sound. Everything else is listed and left.\v--leaks is only for stores whose types "
		       "declare all their references, and whose program keeps no addresses elsewhere: look "
		       "at check --leaks before.",
		.children = ctl_children,
	};
	struct pv_repair_report report = {0};
	struct repair r = {0};
	struct pv_repair_options how = {.size = sizeof(how), .tell = tell, .ctx = &r};
	struct pv_options open_options;
	struct pv_store *store;
	int err;

	ctl_parse(&argp, argc, argv, &r);
	how.flags = (r.dry_run ? PV_REPAIR_DRY_RUN : 0) | (r.leaks ? PV_REPAIR_LEAKS : 0);
	how.threads = r.threads;
	open_options = ctl_open_options(PV_MEND | (r.dry_run ? PV_RDONLY : 0),
					r.dry_run ? PV_HANDOVER_HOLDER : PV_HANDOVER_AUTO);
	err = pv_open(r.name, &open_options, &store);
	if (err)
		return ctl_library_fail(err, r.name);
	if (ctl.json)
		r.lines = json_array();
	err = pv_repair(store, &how, &report);
	if (err)
		err = ctl_library_fail(err, NULL);
	pv_close(store);
	if (!err)
		err = print(&r, &report);
	json_decref(r.lines);
	return err ? err : report.left ? CTL_UNSOUND : CTL_OK;
}
