/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl drop: stores are dropped for good, sound or not, unless a process has them open. It is
 * done by making an empty store in their place, which is the library's way past a damaged one, and
 * destroying that.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ctl.h"

#define EMPTY_SEGMENT_BYTES 65536

struct drop {
	char **names;
	unsigned int n;
	bool yes;
	json_t *done;
};

static const struct argp_option options[] = {
	{"yes", 'y', NULL, 0, "Do not ask", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct drop *d = state->input;

	switch (key) {
	case 'y':
		d->yes = true;
		return 0;
	case ARGP_KEY_ARGS:
		d->names = state->argv + state->next;
		d->n = (unsigned int) (state->argc - state->next);
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "which store?");
		return 0;
	case ARGP_KEY_END:
		if (!d->yes && (ctl.json || !isatty(STDIN_FILENO)))
			argp_error(state, "there is nobody to ask: --yes is needed");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static bool confirm(const struct pv_stores_entry *e)
{
	char size[16], answer[16];

	printf("Drop store %s (%s, %s) for good? [y/N] ", e->name, ctl_state_word(e),
	       ctl_bytes(size, e->bytes));
	fflush(stdout);
	return fgets(answer, sizeof(answer), stdin) && (answer[0] == 'y' || answer[0] == 'Y');
}

static int drop_kept(const char *name)
{
	struct pv_options o = ctl_open_options(PV_CREATE | PV_RESET, PV_HANDOVER_AUTO);
	struct pv_store *store;
	int err;

	o.segment_bytes = EMPTY_SEGMENT_BYTES;
	o.lanes = 1;
	err = pv_open(name, &o, &store);
	if (!err)
		err = pv_destroy(store);
	return err ? ctl_library_fail(err, name) : CTL_OK;
}

static int drop_one(struct drop *d, const char *name)
{
	struct ctl_store found;
	uint64_t bytes;
	int status = ctl_store_find(name, &found);

	if (status)
		return status;
	bytes = found.entry.bytes;
	if (!found.entry.open && !d->yes && !confirm(&found.entry)) {
		ctl_store_free(&found);
		ctl_say("%s is kept", name);
		return CTL_FAILED;
	}
	ctl_store_free(&found);
	status = drop_kept(name);
	if (status)
		return status;
	if (d->done)
		json_array_append_new(d->done, json_pack("{s:s, s:I}", "name", name, "bytes",
							 (json_int_t) bytes));
	else
		printf("%s is dropped\n", name);
	return CTL_OK;
}

int ctl_drop(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "STORE...",
		.doc = "Drop stores with all that is in them, damaged or not. Asks first.",
		.children = ctl_children,
	};
	struct drop d = {0};
	int worst = CTL_OK;

	ctl_parse(&argp, argc, argv, &d);
	if (ctl.json)
		d.done = json_array();
	for (unsigned int i = 0; i < d.n; i++) {
		int status = drop_one(&d, d.names[i]);

		if (status)
			worst = status;
	}
	if (d.done && ctl_json_print(d.done))
		return CTL_FAILED;
	return worst;
}
