/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The runtime directories that there are, and the stores in them. A holder talks to its own user only,
 * so root looks into another's directory with his user id, for as long as that takes; this process has
 * one thread.
 */
#include <errno.h>
#include <glob.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl.h"

static void name_owner(struct ctl_place *place)
{
	const struct passwd *pw = getpwuid(place->uid);

	if (pw)
		snprintf(place->owner, sizeof(place->owner), "%s", pw->pw_name);
	else
		snprintf(place->owner, sizeof(place->owner), "%u", place->uid);
}

/* The next place: this directory as its owner sees it. */
static int add(struct ctl_places *places, const char *dir, uid_t uid)
{
	struct ctl_place *grown = realloc(places->v, (places->n + 1) * sizeof(*grown));
	uid_t self = geteuid();
	int err;

	if (!grown)
		return ctl_fail("no memory");
	places->v = grown;
	grown += places->n;
	*grown = (struct ctl_place){.uid = uid};
	name_owner(grown);
	if (uid != self && seteuid(uid))
		return ctl_fail("cannot look at %s as user %s: %s", dir, grown->owner,
				strerror(errno));
	err = pv_stores_list(dir, &grown->list);
	if (uid != self && seteuid(self))
		exit(ctl_fail("cannot be user %u again: %s", self, strerror(errno)));
	if (err)
		return ctl_library_fail(err, NULL);
	places->n++;
	return CTL_OK;
}

static bool have(const struct ctl_places *places, const char *dir)
{
	for (unsigned int i = 0; i < places->n; i++)
		if (strcmp(places->v[i].list->dir, dir) == 0)
			return true;
	return false;
}

/* Everybody's, where the library puts them by default. A directory that its owner's own library would
 * refuse is left out, and said. */
static int add_all(struct ctl_places *places)
{
	static const char *const patterns[] = {"/run/libpreserve", "/run/user/*/libpreserve",
					       "/tmp/libpreserve-*"};
	int status = CTL_OK;
	glob_t found = {0};

	for (size_t i = 0; i < sizeof(patterns) / sizeof(*patterns); i++)
		glob(patterns[i], i ? GLOB_APPEND : 0, NULL, &found);
	for (size_t i = 0; i < found.gl_pathc; i++) {
		struct stat st;

		if (lstat(found.gl_pathv[i], &st) || !S_ISDIR(st.st_mode) ||
		    have(places, found.gl_pathv[i]))
			continue;
		if (add(places, found.gl_pathv[i], st.st_uid))
			status = CTL_FAILED;
	}
	globfree(&found);
	return status;
}

int ctl_places_get(struct ctl_places *out)
{
	int status;

	*out = (struct ctl_places){0};
	status = add(out, ctl.runtime_dir, geteuid());
	if (!status && !ctl.runtime_dir && geteuid() == 0)
		status = add_all(out);
	if (status && !out->n)
		ctl_places_free(out);
	return status;
}

void ctl_places_free(struct ctl_places *places)
{
	for (unsigned int i = 0; i < places->n; i++)
		pv_stores_free(places->v[i].list);
	free(places->v);
	*places = (struct ctl_places){0};
}

struct pv_stores_entry ctl_agent_entry(const struct pv_agent_entry *e)
{
	return (struct pv_stores_entry){
		.name = e->name,
		.state = e->incoming ? PV_STORES_INCOMING : PV_STORES_KEPT,
		.problem = "",
		.open = e->open,
		.prepared = e->prepared,
		.descriptors = e->descriptors,
		.bytes = e->bytes,
	};
}

/* False: there is no agent, or it has none of this name, or it is not to be asked. */
static bool find_at_agent(const char *name, struct ctl_store *out)
{
	struct pv_agent_entry *entries;
	bool found = false;
	uint32_t n;

	if (ctl.runtime_dir || pv_agent_list(NULL, &entries, &n))
		return false;
	for (uint32_t i = 0; i < n && !found; i++) {
		found = entries[i].uid == geteuid() && strcmp(entries[i].name, name) == 0;
		if (found)
			out->agent = entries[i];
	}
	free(entries);
	if (found)
		out->entry = ctl_agent_entry(&out->agent);
	return found;
}

int ctl_store_find(const char *name, struct ctl_store *out)
{
	int err;

	*out = (struct ctl_store){0};
	err = pv_stores_list(ctl.runtime_dir, &out->list);
	if (err)
		return ctl_library_fail(err, NULL);
	for (uint32_t i = 0; i < out->list->n; i++) {
		out->entry = out->list->stores[i];
		if (strcmp(out->entry.name, name) == 0)
			return CTL_OK;
	}
	if (!find_at_agent(name, out))
		ctl_say("there is no store %s in %s", name, out->list->dir);
	pv_stores_free(out->list);
	out->list = NULL;
	return out->agent.name[0] ? CTL_OK : CTL_NO_STORE;
}

void ctl_store_free(struct ctl_store *s)
{
	pv_stores_free(s->list);
	*s = (struct ctl_store){0};
}

const char *ctl_state_word(const struct pv_stores_entry *e)
{
	switch (e->state) {
	case PV_STORES_KEPT:
		return e->prepared ? "prepared" : e->open ? "serving" : "idle";
	case PV_STORES_INCOMING:
		return "incoming";
	case PV_STORES_UNBORN:
		return "unborn";
	case PV_STORES_LOST:
		return "lost";
	case PV_STORES_DAMAGED:
		return "damaged";
	case PV_STORES_SILENT:
		return "silent";
	}
	return "?";
}
