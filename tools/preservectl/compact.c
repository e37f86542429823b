/* SPDX-License-Identifier: BSD-3-Clause */
/* preservectl compact: move the objects of a store together, so that a kexec has less to carry. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <preserve/compact.h>

#include "ctl.h"

struct compact {
	const char *name;
	bool dry_run;
};

static const struct argp_option options[] = {
	{"dry-run", 'n', NULL, 0, "Move nothing, say what would come free", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct compact *c = state->input;

	switch (key) {
	case 'n':
		c->dry_run = true;
		return 0;
	default:
		return ctl_one_store(key, arg, state, &c->name);
	}
}

static void progress(void *ctx, const char *what, uint64_t done, uint64_t total)
{
	fprintf(stderr, "\r%-10s %5.1f %%%s", what, total ? 100.0 * (double) done / (double) total : 100.0,
		done >= total ? "\n" : "");
}

static int print(const struct compact *c, const struct pv_compact_report *r)
{
	char moved[16], pages[16], segments[16], memory[16];

	if (ctl.json)
		return ctl_json_print(json_pack(
			"{s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "name", c->name, "dry_run", c->dry_run,
			"objects_moved", (json_int_t) r->objects_moved, "bytes_moved",
			(json_int_t) r->bytes_moved, "slabs_returned", (json_int_t) r->slabs_returned,
			"pages_bytes", (json_int_t) r->pages_bytes, "segments_returned",
			(json_int_t) r->segments_returned, "segments_bytes",
			(json_int_t) r->segments_bytes, "memory_bytes", (json_int_t) r->memory_bytes));
	printf("%s: %s %llu objects with %s; %llu slabs, %s of pages, %llu segments with %s", c->name,
	       c->dry_run ? "would move" : "moved", (unsigned long long) r->objects_moved,
	       ctl_bytes(moved, r->bytes_moved), (unsigned long long) r->slabs_returned,
	       ctl_bytes(pages, r->pages_bytes), (unsigned long long) r->segments_returned,
	       ctl_bytes(segments, r->segments_bytes));
	if (c->dry_run)
		puts(" would come free");
	else
		printf(" came free, and %s of memory\n", ctl_bytes(memory, r->memory_bytes));
	return CTL_OK;
}

int ctl_compact(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "STORE",
		.doc = "Move the objects of a store that no process has open together, so that segments come "
		       "free and a kexec has less to carry.\vOnly for stores whose types declare all their "
		       "references, and whose program keeps no addresses elsewhere: an address that nobody "
		       "declared is void afterwards. Not while the store is prepared.",
		.children = ctl_children,
	};
	struct pv_compact_options how = {.size = sizeof(how)};
	struct pv_compact_report report;
	struct pv_options open_options;
	struct compact c = {0};
	struct pv_store *store;
	int err;

	ctl_parse(&argp, argc, argv, &c);
	how.flags = c.dry_run ? PV_COMPACT_DRY_RUN : 0;
	how.progress = !ctl.json && isatty(STDERR_FILENO) ? progress : NULL;
	open_options = ctl_open_options(0, PV_HANDOVER_AUTO);
	err = pv_open(c.name, &open_options, &store);
	if (err)
		return ctl_library_fail(err, c.name);
	err = pv_compact(store, &how, &report);
	if (err)
		err = ctl_library_fail(err, NULL);
	pv_close(store);
	return err ? err : print(&c, &report);
}
