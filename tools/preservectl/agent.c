/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl agent: the stores that an agent keeps, preserved(8), and what is to be done with
 * them. A store is named STORE, for root also USER:STORE.
 */
#include <errno.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <preserve/agent.h>

#include "ctl.h"

#define TIMEOUT_S 30u
#define THREADS_MAX                                                                   \
	16u /* stores that are waited for at a time: each owner takes a while to look \
	     */

struct request {
	const char *what;
	char **stores;
	unsigned int n;
	char *socket;
	unsigned int timeout_s;
	bool all, force;
	/* What follows is the threads' and under the lock. */
	pthread_mutex_t lock;
	struct pv_agent_entry *entries; /* --all */
	unsigned int nentries;
	unsigned int begun;
	unsigned int ended;
	int status;
	json_t *done; /* --json */
};

enum { KEY_TIMEOUT = 't', KEY_SOCKET = 's', KEY_ALL = 'a', KEY_FORCE = 'f' };

static const struct argp_option options[] = {
	{"socket", KEY_SOCKET, "PATH", 0, "Socket of the agent", 0},
	{"all", KEY_ALL, NULL, 0, "All stores that this user may change (prepare, cancel, finish)",
	 0},
	{"timeout", KEY_TIMEOUT, "SECONDS", 0,
	 "How long to wait for processes that have a store open (30)", 0},
	{"force", KEY_FORCE, NULL, 0, "Drop a store that a process has open", 0},
	{0},
};

static const char *const steps[] = {"prepare", "cancel", "finish", "drop"};

static bool is_step(const char *word)
{
	for (unsigned int i = 0; i < sizeof(steps) / sizeof(*steps); i++)
		if (strcmp(word, steps[i]) == 0)
			return true;
	return false;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct request *r = state->input;
	char *end;

	switch (key) {
	case KEY_SOCKET:
		r->socket = arg;
		return 0;
	case KEY_ALL:
		r->all = true;
		return 0;
	case KEY_FORCE:
		r->force = true;
		return 0;
	case KEY_TIMEOUT:
		r->timeout_s = (unsigned int)strtoul(arg, &end, 10);
		if (*end || !r->timeout_s || r->timeout_s > 600)
			argp_error(state, "timeout: a number from 1 to 600 is wanted, not %s", arg);
		return 0;
	case ARGP_KEY_ARGS:
		r->what = state->argv[state->next];
		r->stores = state->argv + state->next + 1;
		r->n = (unsigned int)(state->argc - state->next - 1);
		return 0;
	case ARGP_KEY_END:
		if (!r->what || strcmp(r->what, "list") == 0) {
			if (r->n || r->all)
				argp_error(state, "list takes no store");
			return 0;
		}
		if (!is_step(r->what))
			argp_error(state, "agent %s is not known", r->what);
		if (r->all == (r->n > 0) || (r->all && strcmp(r->what, "drop") == 0))
			argp_error(state, "which stores?");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const char *state_word(const struct pv_agent_entry *e)
{
	return e->incoming   ? "incoming"
	       : e->prepared ? "prepared"
	       : e->claimed  ? "kept"
			     : "unclaimed";
}

static int list(const struct request *r)
{
	static const char *const headings[] = {"STORE",	       "OWNER", "MODE", "STATE",
					       ">DESCRIPTORS", ">SIZE", "OPEN", NULL};
	struct pv_agent_entry *entries;
	struct ctl_table *t = NULL;
	json_t *array = NULL;
	char user[16];
	uint32_t n;
	int err = pv_agent_list(r->socket, &entries, &n);

	if (err)
		return ctl_library_fail(err, NULL);
	if (ctl.json)
		array = json_array();
	else
		t = ctl_table_new(headings);
	for (uint32_t i = 0; i < n; i++) {
		const struct pv_agent_entry *e = &entries[i];

		if (ctl.json) {
			json_array_append_new(
				array,
				json_pack("{s:s, s:s, s:i, s:i, s:s, s:i, s:I, s:b, s:b, s:b}",
					  "name", e->name, "owner", ctl_user_name(user, e->uid), "uid",
					  (int)e->uid, "mode", (int)e->mode, "state", state_word(e),
					  "descriptors", (int)e->descriptors, "bytes",
					  (json_int_t)e->bytes, "open", e->open, "prepared",
					  e->prepared, "claimed", e->claimed));
			continue;
		}
		ctl_cell(t, "%s", e->name);
		ctl_cell(t, "%s", ctl_user_name(user, e->uid));
		ctl_cell(t, "%04o", e->mode);
		ctl_cell(t, "%s", state_word(e));
		ctl_cell(t, "%u", e->descriptors);
		ctl_cell_bytes(t, e->bytes);
		ctl_cell(t, "%s", e->open ? "yes" : "no");
	}
	free(entries);
	if (ctl.json)
		return ctl_json_print(array) ? CTL_FAILED : CTL_OK;
	ctl_table_print(t);
	return CTL_OK;
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int call(const struct request *r, uint32_t uid, const char *name)
{
	if (strcmp(r->what, "prepare") == 0)
		return pv_agent_prepare(r->socket, uid, name, r->timeout_s * 1000);
	if (strcmp(r->what, "cancel") == 0)
		return pv_agent_cancel(r->socket, uid, name, r->timeout_s * 1000);
	if (strcmp(r->what, "finish") == 0)
		return pv_agent_finish(r->socket, uid, name);
	return pv_agent_drop(r->socket, uid, name, r->force);
}

/** Why one failed, and which is done, as it happens. */
static void step(struct request *r, uint32_t uid, const char *name, unsigned int of)
{
	double begun = seconds();
	int err = call(r, uid, name);
	double took = seconds() - begun;
	char user[16];

	pthread_mutex_lock(&r->lock);
	r->ended++;
	if (err) {
		int status = ctl_library_fail(err, NULL);

		r->status = r->status ? r->status : status;
	} else if (!r->done) {
		printf("%s%s%s: %s, %.3f s (%u of %u)\n", name, uid == PV_AGENT_SELF ? "" : " of ",
		       uid == PV_AGENT_SELF ? "" : ctl_user_name(user, uid),
		       strcmp(r->what, "prepare") == 0	? "prepared"
		       : strcmp(r->what, "cancel") == 0 ? "cancelled"
		       : strcmp(r->what, "finish") == 0 ? "finished"
							: "dropped",
		       took, r->ended, of);
		fflush(stdout);
	}
	if (r->done)
		json_array_append_new(r->done, json_pack("{s:s, s:I, s:s, s:i, s:f}", "name", name,
							 "uid", (json_int_t)uid, "what", r->what,
							 "error", -err, "seconds", took));
	pthread_mutex_unlock(&r->lock);
}

/** [USER:]STORE. */
static void step_named(struct request *r, char *store)
{
	char *colon = strchr(store, ':'), *end;
	uint32_t uid = PV_AGENT_SELF;
	const struct passwd *pw;

	if (colon) {
		*colon = 0;
		pw = getpwnam(store);
		uid = pw ? pw->pw_uid : (uint32_t)strtoul(store, &end, 10);
		if (!pw && (*end || end == store)) {
			r->status = ctl_fail("there is no user %s", store);
			return;
		}
		store = colon + 1;
	}
	step(r, uid, store, r->n);
}

static void *step_many(void *arg)
{
	struct request *r = arg;

	for (;;) {
		unsigned int i;

		pthread_mutex_lock(&r->lock);
		i = r->begun++;
		pthread_mutex_unlock(&r->lock);
		if (i >= r->nentries)
			return NULL;
		step(r, r->entries[i].uid, r->entries[i].name, r->nentries);
	}
}

static void step_all(struct request *r)
{
	pthread_t threads[THREADS_MAX];
	unsigned int n = 0;
	int err = pv_agent_list(r->socket, &r->entries, &r->nentries);

	if (err) {
		r->status = ctl_library_fail(err, NULL);
		return;
	}
	while (n + 1 < r->nentries && n < THREADS_MAX &&
	       pthread_create(&threads[n], NULL, step_many, r) == 0)
		n++;
	step_many(r);
	while (n)
		pthread_join(threads[--n], NULL);
	free(r->entries);
}

int ctl_agent(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "[list]\nprepare|cancel|finish STORE...\nprepare|cancel|finish "
			    "--all\ndrop STORE...",
		.doc = "List the stores that the agent keeps, prepare or cancel them for a kexec, "
		       "take over "
		       "what came through one, drop them. STORE: its name; for root also "
		       "USER:NAME.",
		.children = ctl_children,
	};
	struct request r = {.timeout_s = TIMEOUT_S, .lock = PTHREAD_MUTEX_INITIALIZER};

	ctl_parse(&argp, argc, argv, &r);
	if (!r.what || strcmp(r.what, "list") == 0)
		return list(&r);
	if (ctl.json)
		r.done = json_array();
	if (r.all)
		step_all(&r);
	for (unsigned int i = 0; i < r.n; i++)
		step_named(&r, r.stores[i]);
	if (r.done && ctl_json_print(r.done) && !r.status)
		r.status = CTL_FAILED;
	return r.status;
}
