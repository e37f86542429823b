/* SPDX-License-Identifier: BSD-3-Clause */
/* preservectl list: the stores there are, whose they are and who has them open. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <preserve/agent.h>

#include "ctl.h"

static const char *backend(const struct pv_stores_entry *e)
{
	if (e->state == PV_STORES_LOST)
		return "none";
	return e->prepared || e->state == PV_STORES_INCOMING ? "luo" : "holder";
}

static json_t *users_json(const struct ctl_processes *users)
{
	json_t *array = json_array();

	for (unsigned int i = 0; i < users->n; i++)
		json_array_append_new(array, json_pack("{s:i, s:s, s:b}", "pid", users->v[i].pid,
						       "command", users->v[i].command, "writer",
						       users->v[i].writer));
	return array;
}

static json_t *store_json(const struct ctl_place *place, const struct pv_stores_entry *e,
			  const struct ctl_processes *users)
{
	json_t *o = json_pack(
		"{s:s, s:s, s:i, s:s, s:s, s:b, s:b, s:s, s:i, s:i, s:i, s:I, s:I, s:I, s:I, s:o}",
		"name", e->name, "owner", place->owner, "uid", (int) place->uid, "dir",
		place->list->dir, "state", ctl_state_word(e), "open", e->open, "prepared",
		e->prepared, "backend", backend(e), "holder_pid", e->holder_pid, "descriptors",
		(int) e->descriptors, "segments", (int) e->segments, "bytes", (json_int_t) e->bytes,
		"backed_bytes", (json_int_t) e->backed_bytes, "generation",
		(json_int_t) e->generation, "epoch", (json_int_t) e->epoch, "users",
		users_json(users));
	char uuid[37];

	if (o && e->state == PV_STORES_KEPT)
		json_object_set_new(o, "uuid", json_string(ctl_uuid(uuid, e->uuid)));
	if (o && e->problem[0])
		json_object_set_new(o, "problem", json_string(e->problem));
	return o;
}

static void users_cell(struct ctl_table *t, const struct ctl_processes *users)
{
	char text[256] = "-";
	int at = 0;

	for (unsigned int i = 0; i < users->n && at < (int) sizeof(text) - 80; i++)
		at += snprintf(text + at, sizeof(text) - (size_t) at, "%s%d %s%s", i ? ", " : "",
			       users->v[i].pid, users->v[i].command,
			       users->v[i].writer ? "" : " (looking)");
	ctl_cell(t, "%s", text);
}

static void store_row(struct ctl_table *t, const struct ctl_place *place,
		      const struct pv_stores_entry *e, const struct ctl_processes *users)
{
	ctl_cell(t, "%s", e->name);
	ctl_cell(t, "%s", place->owner);
	ctl_cell(t, "%s", ctl_state_word(e));
	ctl_cell_bytes(t, e->bytes);
	ctl_cell_bytes(t, e->backed_bytes);
	ctl_cell(t, "%llu", (unsigned long long) e->generation);
	ctl_cell(t, "%s", backend(e));
	ctl_cell(t, "%d", e->holder_pid);
	users_cell(t, users);
}

/* Of a store that systemd keeps, only who has it can be seen. */
static void list_unit_store(json_t *array, struct ctl_table *t, const struct ctl_unit_store *s)
{
	struct ctl_processes users;
	bool open = false;

	ctl_processes_find(&s->index, &users);
	for (unsigned int i = 0; i < users.n; i++)
		open |= users.v[i].writer;
	if (array) {
		json_array_append_new(array, json_pack("{s:s, s:s, s:b, s:s, s:s, s:i, s:i, s:o}", "name", s->name,
						       "state", open ? "serving" : "idle", "open", open,
						       "backend", "systemd", "unit", s->unit, "holder_pid", 1,
						       "descriptors", (int) s->descriptors, "users",
						       users_json(&users)));
	} else {
		ctl_cell(t, "%s", s->name);
		ctl_cell(t, "-");
		ctl_cell(t, "%s", open ? "serving" : "idle");
		ctl_cell(t, "-");
		ctl_cell(t, "-");
		ctl_cell(t, "-");
		ctl_cell(t, "%s", s->unit);
		ctl_cell(t, "1");
		users_cell(t, &users);
	}
	free(users.v);
}

static void agent_row(json_t *array, struct ctl_table *t, const struct pv_agent_entry *e)
{
	const struct pv_stores_entry entry = ctl_agent_entry(e);
	char owner[16];
	const char *name = ctl_user_name(owner, e->uid);

	if (array) {
		json_array_append_new(array, json_pack("{s:s, s:s, s:i, s:s, s:b, s:b, s:s, s:i, s:I}", "name",
						       e->name, "owner", name, "uid", (int) e->uid, "state",
						       ctl_state_word(&entry), "open", e->open, "prepared", e->prepared,
						       "backend", "agent", "descriptors", (int) e->descriptors,
						       "bytes", (json_int_t) e->bytes));
		return;
	}
	ctl_cell(t, "%s", e->name);
	ctl_cell(t, "%s", name);
	ctl_cell(t, "%s", ctl_state_word(&entry));
	ctl_cell_bytes(t, e->bytes);
	ctl_cell(t, "-");
	ctl_cell(t, "-");
	ctl_cell(t, "agent");
	ctl_cell(t, "-");
	ctl_cell(t, "%s", e->open ? "yes" : "-");
}

/* What the agent says of the stores that it keeps, if there is one: `agent list` has more of them. */
static int list_agent_stores(json_t *array, struct ctl_table *t)
{
	struct pv_agent_entry *entries;
	uint32_t n;
	int err;

	if (ctl.runtime_dir)
		return CTL_OK;
	err = pv_agent_list(NULL, &entries, &n);
	if (err)
		return err == -ECONNREFUSED ? CTL_OK : ctl_library_fail(err, NULL);
	for (uint32_t i = 0; i < n; i++)
		if (!ctl.user || entries[i].uid == geteuid())
			agent_row(array, t, &entries[i]);
	free(entries);
	return CTL_OK;
}

static int parse(int key, char *arg, struct argp_state *state)
{
	if (key == ARGP_KEY_ARG)
		argp_error(state, "list takes no argument: %s", arg);
	return key == ARGP_KEY_ARG ? 0 : ARGP_ERR_UNKNOWN;
}

int ctl_list(int argc, char **argv)
{
	static const struct argp argp = {
		.parser = parse,
		.doc = "List the stores of this user, or for root of all users.",
		.children = ctl_children,
	};
	static const char *const headings[] = {"STORE",	  "OWNER",   "STATE",	">SIZE", ">MEMORY",
					       ">GENERATION", "KEPT BY", ">HOLDER", "OPEN IN", NULL};
	struct ctl_table *t = NULL;
	struct ctl_unit_stores kept;
	struct ctl_places places;
	json_t *array = NULL;
	int status;

	ctl_parse(&argp, argc, argv, NULL);
	status = ctl_places_get(&places);
	if (status && !places.n)
		return status;
	if (ctl.json)
		array = json_array();
	else
		t = ctl_table_new(headings);
	for (unsigned int i = 0; i < places.n; i++) {
		for (uint32_t k = 0; k < places.v[i].list->n; k++) {
			const struct pv_stores_entry *e = &places.v[i].list->stores[k];
			struct ctl_processes users;

			ctl_processes_find(e, &users);
			if (ctl.json)
				json_array_append_new(array, store_json(&places.v[i], e, &users));
			else
				store_row(t, &places.v[i], e, &users);
			if (!ctl.json && e->problem[0])
				ctl_say("%s: %s", e->name, e->problem);
			free(users.v);
		}
	}
	ctl_places_free(&places);
	ctl_units_find(&kept);
	for (unsigned int i = 0; i < kept.n; i++)
		list_unit_store(array, t, &kept.v[i]);
	free(kept.v);
	if (list_agent_stores(array, t))
		status = CTL_FAILED;
	if (ctl.json)
		return ctl_json_print(array) ? CTL_FAILED : status;
	ctl_table_print(t);
	return status;
}
