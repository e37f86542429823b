/* SPDX-License-Identifier: BSD-3-Clause */
/* preservectl dump: a store's index, as text or as it is, or the roots in it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <libfdt.h>

#include "ctl.h"

struct dump {
	const char *name;
	bool index;
	bool roots;
	bool raw;
};

enum { KEY_INDEX = 256, KEY_ROOTS, KEY_RAW };

static const struct argp_option options[] = {
	{"index", KEY_INDEX, NULL, 0, "The index, as device tree source (the default)", 0},
	{"raw", KEY_RAW, NULL, 0, "The index as it is, a device tree blob for dtc", 0},
	{"roots", KEY_ROOTS, NULL, 0, "The roots: name, type, size, place", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct dump *d = state->input;

	switch (key) {
	case KEY_INDEX:
		d->index = true;
		return 0;
	case KEY_ROOTS:
		d->roots = true;
		return 0;
	case KEY_RAW:
		d->raw = true;
		return 0;
	case ARGP_KEY_END:
		if (d->index + d->roots + d->raw > 1)
			argp_error(state, "one of --index, --raw and --roots");
		if (d->raw && isatty(STDOUT_FILENO))
			argp_error(state, "--raw is no text: redirect it");
		return 0;
	default:
		return ctl_one_store(key, arg, state, &d->name);
	}
}

static const char *type_name(const void *tree, uint64_t type)
{
	int group = fdt_subnode_offset(tree, 0, "types"), node = -1;

	if (group >= 0)
		node = fdt_first_subnode(tree, group);
	while (node >= 0 && type-- > 1)
		node = fdt_next_subnode(tree, node);
	return node < 0 ? "?" : ctl_tree_string(tree, node, "label");
}

static int dump_roots(const void *tree)
{
	static const char *const headings[] = {"ROOT", "TYPE", ">BYTES", "OFFSET", "ADDRESS", NULL};
	int group = fdt_subnode_offset(tree, 0, "roots"), node;
	uint64_t base = ctl_tree_number(tree, 0, "base");
	struct ctl_table *t = NULL;
	json_t *array = NULL;

	if (ctl.json)
		array = json_array();
	else
		t = ctl_table_new(headings);
	fdt_for_each_subnode (node, tree, group) {
		const char *label = ctl_tree_string(tree, node, "label");
		const char *type = type_name(tree, ctl_tree_number(tree, node, "type"));
		uint64_t bytes = ctl_tree_number(tree, node, "bytes");
		uint64_t off = ctl_tree_number(tree, node, "offset");

		if (ctl.json) {
			json_array_append_new(array, json_pack("{s:s, s:s, s:I, s:I, s:I}", "name",
							       label, "type", type, "bytes",
							       (json_int_t) bytes, "offset",
							       (json_int_t) off, "address",
							       (json_int_t) (base + off)));
			continue;
		}
		ctl_cell(t, "%s", label);
		ctl_cell(t, "%s", type);
		ctl_cell(t, "%llu", (unsigned long long) bytes);
		ctl_cell(t, "0x%llx", (unsigned long long) off);
		ctl_cell(t, "0x%llx", (unsigned long long) (base + off));
	}
	if (ctl.json)
		return ctl_json_print(array);
	ctl_table_print(t);
	return CTL_OK;
}

static int dump_tree(const struct dump *d, const void *tree, size_t bytes)
{
	if (d->roots)
		return dump_roots(tree);
	if (d->raw)
		return fwrite(tree, 1, bytes, stdout) == bytes ? CTL_OK
							       : ctl_fail("cannot write the index");
	return ctl_tree_print(tree) ? ctl_fail("the index of %s cannot be walked", d->name) : CTL_OK;
}

int ctl_dump(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "STORE",
		.doc = "Print the index of a store, a flattened device tree, or the roots that it names.",
		.children = ctl_children,
	};
	struct dump d = {0};
	struct pv_store *store;
	size_t bytes;
	void *tree;
	int status;

	ctl_parse(&argp, argc, argv, &d);
	if (ctl.json && !d.roots) {
		ctl_say("the index has no form in JSON: --raw is for programs, or show --json");
		return CTL_USAGE;
	}
	status = ctl_open_readonly(d.name, &store);
	if (status)
		return ctl_library_fail(status, d.name);
	status = pv_index_dump(store, &tree, &bytes);
	if (status) {
		status = ctl_library_fail(status, d.name);
	} else {
		status = dump_tree(&d, tree, bytes);
		free(tree);
	}
	pv_close(store);
	return status;
}
