/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl show: one store in full. Figures come from pv_stats_get() through a read-only handle, so
 * that slots which a process holds ready count as free; pointer maps come from the index.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libfdt.h>

#include <preserve/stats.h>

#include "ctl.h"

/* All that there is to say, and what owns it. */
struct view {
	struct ctl_store found;
	struct ctl_processes users;
	struct pv_store *store;
	struct pv_info info;
	struct pv_stats *stats;
	void *tree;
};

static void view_free(struct view *v)
{
	free(v->tree);
	pv_stats_free(v->stats);
	if (v->store)
		pv_close(v->store);
	free(v->users.v);
	ctl_store_free(&v->found);
}

static int view_get(const char *name, struct view *v)
{
	size_t bytes;
	int err;

	err = ctl_store_find(name, &v->found);
	if (err)
		return err;
	if (v->found.list)
		ctl_processes_find(&v->found.entry, &v->users);
	err = ctl_open_readonly(name, &v->store);
	if (!err)
		err = pv_info_get(v->store, &v->info);
	if (!err)
		err = pv_stats_get(v->store, &v->stats);
	if (!err)
		err = pv_index_dump(v->store, &v->tree, &bytes);
	return err ? ctl_library_fail(err, name) : CTL_OK;
}

/* ---- types ---- */

/* The node of a type in the index: the n-th, from 1. */
static int type_node(const void *tree, uint32_t type)
{
	int group = fdt_subnode_offset(tree, 0, "types"), node;

	if (group < 0)
		return -1;
	node = fdt_first_subnode(tree, group);
	while (node >= 0 && --type)
		node = fdt_next_subnode(tree, node);
	return node;
}

/* "next, u.leaf", or the first of them and how many more. */
static void references_text(const void *tree, int node, char *text, size_t room)
{
	int n = node < 0 ? 0 : fdt_stringlist_count(tree, node, "field-names"), at = 0;

	snprintf(text, room, "-");
	for (int i = 0; i < n; i++) {
		const char *name = fdt_stringlist_get(tree, node, "field-names", i, NULL);

		if (!name)
			return;
		if ((size_t) at + strlen(name) + 24 > room) {
			snprintf(text + at, room - (size_t) at, i ? " and %d more" : "%d", n - i);
			return;
		}
		at += snprintf(text + at, room - (size_t) at, i ? ", %s" : "%s", name);
	}
}

static void types_table(const struct view *v)
{
	static const char *const headings[] = {"TYPE",	   ">VERSION", ">BYTES", ">OBJECTS",
					       ">IN THEM", ">SLABS",   ">FRAGMENTED", "REFERENCES",
					       NULL};
	struct ctl_table *t = ctl_table_new(headings);

	for (uint32_t i = 0; i < v->stats->ntypes; i++) {
		const struct pv_stats_type *type = &v->stats->types[i];
		int node = type_node(v->tree, type->type);
		char references[96];

		references_text(v->tree, node, references, sizeof(references));
		ctl_cell(t, "%s", type->name);
		ctl_cell(t, "%llu",
			 (unsigned long long) ctl_tree_number(v->tree, node, "version"));
		ctl_cell(t, type->bytes ? "%u" : "any", type->bytes);
		ctl_cell(t, "%llu", (unsigned long long) type->live_objects);
		ctl_cell_bytes(t, type->live_bytes);
		ctl_cell(t, "%llu", (unsigned long long) type->slabs.slabs);
		ctl_cell(t, "%.1f%%", 100 * type->slabs.fragmentation);
		ctl_cell(t, "%s", references);
	}
	ctl_table_print(t);
}

static json_t *types_json(const struct view *v)
{
	json_t *array = json_array();

	for (uint32_t i = 0; i < v->stats->ntypes; i++) {
		const struct pv_stats_type *type = &v->stats->types[i];
		int node = type_node(v->tree, type->type);
		int n = node < 0 ? 0 : fdt_stringlist_count(v->tree, node, "field-names");
		json_t *references = json_array();

		for (int k = 0; k < n; k++)
			json_array_append_new(references,
					      json_string(fdt_stringlist_get(v->tree, node, "field-names",
									     k, NULL)));
		json_array_append_new(
			array,
			json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:o}", "name",
				  type->name, "version",
				  (json_int_t) ctl_tree_number(v->tree, node, "version"), "bytes",
				  (json_int_t) type->bytes, "live_objects",
				  (json_int_t) type->live_objects, "live_bytes",
				  (json_int_t) type->live_bytes, "slabs",
				  (json_int_t) type->slabs.slabs, "slab_bytes",
				  (json_int_t) type->slabs.slab_bytes, "extents",
				  (json_int_t) type->extents, "extent_bytes",
				  (json_int_t) type->extent_bytes, "fragmentation",
				  type->slabs.fragmentation, "references",
				  references));
	}
	return array;
}

/* ---- segments ---- */

static json_t *segments_json(const struct view *v)
{
	int group = fdt_subnode_offset(v->tree, 0, "segments"), node;
	json_t *array = json_array();

	if (group < 0)
		return array;
	fdt_for_each_subnode (node, v->tree, group)
		json_array_append_new(
			array,
			json_pack("{s:I, s:I, s:I}", "offset",
				  (json_int_t) ctl_tree_number(v->tree, node, "offset"), "bytes",
				  (json_int_t) ctl_tree_number(v->tree, node, "bytes"),
				  "birth_generation",
				  (json_int_t) ctl_tree_number(v->tree, node, "birth-generation")));
	return array;
}

/* ---- all of it ---- */

static void line(const char *what, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void line(const char *what, const char *format, ...)
{
	va_list args;

	printf("%-14s", what);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

static void print_where(const struct view *v)
{
	const struct pv_stores_entry *e = &v->found.entry;
	const struct pv_info *info = &v->info;
	char uuid[37], size[16];

	line("store", "%s", e->name);
	line("uuid", "%s", ctl_uuid(uuid, info->uuid));
	line("state", "%s%s", ctl_state_word(e), e->prepared && e->open ? " and serving" : "");
	if (v->found.list)
		line("kept by", "holder, process %d, in %s (%u descriptors)", e->holder_pid,
		     v->found.list->dir, e->descriptors);
	else
		line("kept by", "agent (%u descriptors)", e->descriptors);
	for (unsigned int i = 0; i < v->users.n; i++)
		line(i ? "" : "open in", "process %d, %s%s", v->users.v[i].pid, v->users.v[i].command,
		     v->users.v[i].writer ? "" : " (looking)");
	if (!v->users.n)
		line("open in", e->open ? "a process" : "no process");
	line("written by", "library %s on Linux %s",
	     ctl_tree_string(v->tree, 0, "writer-library"),
	     ctl_tree_string(v->tree, 0, "writer-kernel"));
	line("epoch", "%llu (how often it was opened)", (unsigned long long) info->epoch);
	line("generation", "%llu (how often its index was written)",
	     (unsigned long long) info->generation);
	line("window", "%s at 0x%llx", ctl_bytes(size, info->window_bytes),
	     (unsigned long long) info->base);
	line("lanes", "%u", info->lanes);
}

static void print_memory(const struct view *v)
{
	const struct pv_stats *s = v->stats;
	char a[16], b[16];

	line("segments", "%u, pages of %s", s->segments, ctl_bytes(a, s->page_bytes));
	line("size", "%s, of which %s have memory", ctl_bytes(a, s->bytes),
	     ctl_bytes(b, s->backed_bytes));
	line("in use", "%s, free %s", ctl_bytes(a, s->used_bytes), ctl_bytes(b, s->free_bytes));
	line("objects", "%llu with %s, of them %llu of whole pages",
	     (unsigned long long) s->live_objects, ctl_bytes(a, s->live_bytes),
	     (unsigned long long) s->extents);
	line("slabs", "%llu, %.1f%% of them free", (unsigned long long) s->slabs.slabs,
	     100 * s->slabs.fragmentation);
	line("metadata", "%s", ctl_bytes(a, s->metadata_bytes));
}

static json_t *view_json(const struct view *v)
{
	const struct pv_stats *s = v->stats;
	json_t *users = json_array();
	char uuid[37];

	for (unsigned int i = 0; i < v->users.n; i++)
		json_array_append_new(users, json_pack("{s:i, s:s, s:b}", "pid", v->users.v[i].pid,
						       "command", v->users.v[i].command, "writer",
						       v->users.v[i].writer));
	return json_pack(
		"{s:s, s:s, s:s, s:s, s:b, s:b, s:i, s:i, s:o, s:s, s:s, s:I, s:I, s:I, s:I, s:I,"
		" s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:o, s:o}",
		"name", v->found.entry.name, "backend", v->found.list ? "holder" : "agent", "uuid", ctl_uuid(uuid, v->info.uuid), "state",
		ctl_state_word(&v->found.entry), "open", v->found.entry.open, "prepared", v->found.entry.prepared,
		"holder_pid", v->found.entry.holder_pid, "descriptors", (int) v->found.entry.descriptors,
		"users", users, "writer_library", ctl_tree_string(v->tree, 0, "writer-library"),
		"writer_kernel", ctl_tree_string(v->tree, 0, "writer-kernel"), "epoch",
		(json_int_t) v->info.epoch, "generation", (json_int_t) v->info.generation, "base",
		(json_int_t) v->info.base, "window_bytes", (json_int_t) v->info.window_bytes,
		"lanes", (json_int_t) v->info.lanes, "page_bytes", (json_int_t) s->page_bytes,
		"bytes", (json_int_t) s->bytes, "backed_bytes", (json_int_t) s->backed_bytes,
		"used_bytes", (json_int_t) s->used_bytes, "free_bytes", (json_int_t) s->free_bytes,
		"metadata_bytes", (json_int_t) s->metadata_bytes, "live_objects",
		(json_int_t) s->live_objects, "live_bytes", (json_int_t) s->live_bytes,
		"fragmentation", s->slabs.fragmentation, "extents", (json_int_t) s->extents,
		"segments", segments_json(v), "types", types_json(v));
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	return ctl_one_store(key, arg, state, state->input);
}

int ctl_show(int argc, char **argv)
{
	static const struct argp argp = {
		.parser = parse,
		.args_doc = "STORE",
		.doc = "Show a store: what is in it, where its memory is, who keeps it.",
		.children = ctl_children,
	};
	struct view v = {0};
	const char *name = NULL;
	int status;

	ctl_parse(&argp, argc, argv, &name);
	status = view_get(name, &v);
	if (!status && ctl.json) {
		status = ctl_json_print(view_json(&v));
	} else if (!status) {
		print_where(&v);
		print_memory(&v);
		putchar('\n');
		types_table(&v);
	}
	view_free(&v);
	return status;
}
