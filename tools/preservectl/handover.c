/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl prepare, cancel, finish: the steps of a handover across a kexec, for stores that no
 * process has open. It opens them, which is what an owner does too; one that is in use is its owner's
 * to prepare, because segments that it adds must join the session.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ctl.h"

enum step { PREPARE, CANCEL, FINISH };

static const char *const step_words[] = {"prepare", "cancel", "finish"};

struct handover {
	enum step step;
	char **names;
	unsigned int n;
	bool all;
	json_t *done;
};

static const struct argp_option options[] = {
	{"all", 'a', NULL, 0, "All stores of this user", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct handover *h = state->input;

	switch (key) {
	case 'a':
		h->all = true;
		return 0;
	case ARGP_KEY_ARGS:
		h->names = state->argv + state->next;
		h->n = (unsigned int) (state->argc - state->next);
		return 0;
	case ARGP_KEY_END:
		if (h->all == (h->n > 0))
			argp_error(state, "which stores? Their names, or --all");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}

static int tell(struct handover *h, const char *name, const char *state, const char *what,
		const struct pv_info *info, double took)
{
	char bytes[16];

	if (h->done)
		json_array_append_new(h->done,
				      json_pack("{s:s, s:s, s:s, s:b, s:I, s:I, s:f}", "name", name, "state",
						state, "what", what, "from_kexec",
						info && info->from_kexec, "bytes",
						(json_int_t) (info ? info->bytes : 0), "segments",
						(json_int_t) (info ? info->segments : 0), "seconds", took));
	else if (info)
		printf("%s: %s: %s in %u segments, %.3f s\n", name, what, ctl_bytes(bytes, info->bytes),
		       info->segments, took);
	else
		printf("%s: %s\n", name, what);
	return CTL_OK;
}

static int in_use(const struct handover *h, const struct pv_stores_entry *e)
{
	struct ctl_processes users = {0};
	const char *command = "?";

	ctl_processes_find(e, &users);
	for (unsigned int i = 0; i < users.n; i++)
		if (users.v[i].writer)
			command = users.v[i].command;
	ctl_say("%s is open in process %d (%s), which has to %s it itself: kvstore does on PRESERVE "
		"PREPARE and CANCEL, other programs by pv_handover_prepare() and pv_handover_cancel(). "
		"Or stop it: then this command can",
		e->name, e->writer_pid, command, step_words[h->step]);
	free(users.v);
	return CTL_IN_USE;
}

/* How far a prepare is, on a terminal, until it is done. */
struct watch {
	const char *name;
	struct pv_store *store;
	pthread_mutex_t lock;
	pthread_cond_t ended;
	bool done;
};

static void *watch(void *arg)
{
	struct watch *w = arg;
	bool told = false;

	pthread_mutex_lock(&w->lock);
	while (!w->done) {
		struct timespec until;
		struct pv_info info;
		char part[16], all[16];

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += 200000000;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		if (pthread_cond_timedwait(&w->ended, &w->lock, &until) != ETIMEDOUT)
			continue;
		pv_info_get(w->store, &info);
		fprintf(stderr, "\r%s: %s of %s preserved ", w->name, ctl_bytes(part, info.preserved_bytes),
			ctl_bytes(all, info.bytes));
		told = true;
	}
	pthread_mutex_unlock(&w->lock);
	if (told)
		fputs("\r\033[K", stderr);
	return NULL;
}

static int prepare(const struct handover *h, const char *name, struct pv_store *store)
{
	struct watch w = {.name = name,
			  .store = store,
			  .lock = PTHREAD_MUTEX_INITIALIZER,
			  .ended = PTHREAD_COND_INITIALIZER};
	pthread_t thread;
	bool watched = !h->done && isatty(STDERR_FILENO) && pthread_create(&thread, NULL, watch, &w) == 0;
	int err = pv_handover_prepare(store);

	if (watched) {
		pthread_mutex_lock(&w.lock);
		w.done = true;
		pthread_cond_signal(&w.ended);
		pthread_mutex_unlock(&w.lock);
		pthread_join(thread, NULL);
	}
	return err;
}

static int do_open(struct handover *h, const char *name)
{
	struct pv_options o = ctl_open_options(0, PV_HANDOVER_LUO);
	double begun = seconds(), took;
	struct pv_store *store;
	struct pv_info info;
	int err;

	/* To cancel it is enough to tell the holder. */
	if (h->step == CANCEL)
		o.handover = PV_HANDOVER_AUTO;
	err = pv_open(name, &o, &store);
	if (err)
		return ctl_library_fail(err, name);
	if (h->step == PREPARE)
		err = prepare(h, name, store);
	else if (h->step == CANCEL)
		err = pv_handover_cancel(store);
	took = seconds() - begun;
	if (err)
		err = ctl_library_fail(err, name);
	else
		pv_info_get(store, &info);
	pv_close(store);
	if (err)
		return err;
	return tell(h, name, info.state == PV_STATE_PREPARED ? "prepared" : "idle",
		    h->step == PREPARE	? "prepared"
		    : h->step == CANCEL ? "cancelled"
		    : info.from_kexec	? "came through a kexec, taken over"
					: "there was nothing to finish",
		    &info, took);
}

static int do_entry(struct handover *h, const struct pv_stores_entry *e)
{
	if (e->state == PV_STORES_KEPT) {
		if (h->step == PREPARE && e->prepared)
			return tell(h, e->name, "prepared", "is prepared already", NULL, 0);
		if (h->step == CANCEL && !e->prepared)
			return tell(h, e->name, ctl_state_word(e), "is not prepared", NULL, 0);
		if (h->step == FINISH)
			return tell(h, e->name, ctl_state_word(e), "has nothing to finish", NULL, 0);
		if (e->open)
			return in_use(h, e);
	}
	return do_open(h, e->name);
}

static const struct pv_stores_entry *find(const struct pv_stores *list, const char *name)
{
	for (uint32_t i = 0; i < list->n; i++)
		if (strcmp(list->stores[i].name, name) == 0)
			return &list->stores[i];
	return NULL;
}

static void worse(int *worst, int status)
{
	if (status)
		*worst = status;
}

static int run(struct handover *h, const struct argp *argp, int argc, char **argv)
{
	struct pv_stores *list;
	int worst = CTL_OK, err;

	ctl_parse(argp, argc, argv, h);
	err = pv_stores_list(ctl.runtime_dir, &list);
	if (err)
		return ctl_library_fail(err, NULL);
	if (ctl.json)
		h->done = json_array();
	for (uint32_t i = 0; h->all && i < list->n; i++)
		worse(&worst, do_entry(h, &list->stores[i]));
	for (unsigned int i = 0; i < h->n; i++) {
		const struct pv_stores_entry *e = find(list, h->names[i]);

		/* One that came through a kexec is known to nobody before it is asked for. */
		worse(&worst, e ? do_entry(h, e) : do_open(h, h->names[i]));
	}
	pv_stores_free(list);
	if (h->done && ctl_json_print(h->done))
		return CTL_FAILED;
	return worst;
}

int ctl_prepare(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "STORE...",
		.doc = "Prepare stores that no process has open: from then on a kexec keeps them.",
		.children = ctl_children,
	};
	struct handover h = {.step = PREPARE};

	return run(&h, &argp, argc, argv);
}

int ctl_cancel(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "STORE...",
		.doc = "Undo prepare: a kexec would lose the stores again.",
		.children = ctl_children,
	};
	struct handover h = {.step = CANCEL};

	return run(&h, &argp, argc, argv);
}

int ctl_finish(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.args_doc = "STORE...",
		.doc = "After a kexec, take over stores that came through it and tell the kernel so. Their "
		       "owners do that by opening them; this is for those that do not start yet. Stores that "
		       "nobody has asked for since the kexec have to be named: --all does not find them.",
		.children = ctl_children,
	};
	struct handover h = {.step = FINISH};

	return run(&h, &argp, argc, argv);
}
