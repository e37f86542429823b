/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl top: what the stores do, again and again, until q or SIGINT. Plain terminal sequences: the
 * alternative screen, home, erase to the end of a line. On something that is no terminal it prints one
 * table after the other.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include <preserve/stats.h>

#include "ctl.h"

struct top {
	double interval_s;
	unsigned long count; /* 0: without end */
	bool terminal;
};

/* A store as it was the last time. */
struct seen {
	char name[64];
	char owner[64];
	uint64_t used_bytes;
	uint64_t objects;
	uint64_t generation;
};

struct history {
	struct seen *v;
	unsigned int n;
	double when;
};

static volatile sig_atomic_t ended;
static struct termios before;

static void on_signal(int sig)
{
	ended = sig;
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}

/* ---- one look ---- */

static const struct seen *find(const struct history *h, const char *name, const char *owner)
{
	for (unsigned int i = 0; i < h->n; i++)
		if (strcmp(h->v[i].name, name) == 0 && strcmp(h->v[i].owner, owner) == 0)
			return &h->v[i];
	return NULL;
}

/* Objects and bytes in use, as far as a reader can see; false: it cannot be opened. Other users' stores
 * are not opened. */
static bool look_inside(const struct ctl_place *place, const char *name, struct seen *s)
{
	struct pv_options o = ctl_open_options(PV_RDONLY, PV_HANDOVER_HOLDER);
	struct pv_stats *stats;
	struct pv_store *store;
	int err;

	o.runtime_dir = place->list->dir;
	if (place->uid != geteuid() || pv_open(name, &o, &store))
		return false;
	err = pv_stats_get(store, &stats);
	if (!err) {
		s->used_bytes = stats->used_bytes;
		s->objects = stats->live_objects;
		pv_stats_free(stats);
	}
	pv_close(store);
	return err == 0;
}

static void rate(struct ctl_table *t, double change, double per_s, bool bytes)
{
	char text[16];

	if (per_s <= 0)
		ctl_cell(t, "-");
	else if (bytes)
		ctl_cell(t, "%s%s", change < 0 ? "-" : "+",
			 ctl_bytes(text, (uint64_t) ((change < 0 ? -change : change) / per_s)));
	else
		ctl_cell(t, "%+.0f", change / per_s);
}

static void row(struct ctl_table *t, const struct ctl_place *place, const struct pv_stores_entry *e,
		const struct history *last, struct seen *now)
{
	const struct seen *was = find(last, e->name, place->owner);
	double per_s = was ? seconds() - last->when : 0;
	struct ctl_processes users = {0};
	bool inside;

	snprintf(now->name, sizeof(now->name), "%s", e->name);
	snprintf(now->owner, sizeof(now->owner), "%s", place->owner);
	now->generation = e->generation;
	inside = e->state == PV_STORES_KEPT && look_inside(place, e->name, now);
	ctl_cell(t, "%s", e->name);
	ctl_cell(t, "%s", place->owner);
	ctl_cell(t, "%s", ctl_state_word(e));
	ctl_cell_bytes(t, e->bytes);
	ctl_cell_bytes(t, e->backed_bytes);
	if (inside) {
		ctl_cell_bytes(t, now->used_bytes);
		rate(t, was ? (double) now->used_bytes - (double) was->used_bytes : 0, per_s, true);
		ctl_cell(t, "%llu", (unsigned long long) now->objects);
		rate(t, was ? (double) now->objects - (double) was->objects : 0, per_s, false);
	} else {
		for (unsigned int i = 0; i < 4; i++)
			ctl_cell(t, "-");
	}
	ctl_processes_find(e, &users);
	if (users.n)
		ctl_cell(t, "%d %s", users.v[0].pid, users.v[0].command);
	else
		ctl_cell(t, "-");
	free(users.v);
}

static int refresh(struct history *last)
{
	static const char *const headings[] = {"STORE",	   "OWNER",	 "STATE", ">SIZE", ">MEMORY",
					       ">IN USE",  ">CHANGE/s", ">OBJECTS", ">CHANGE/s", "OPEN IN", NULL};
	struct ctl_table *t;
	struct ctl_places places;
	struct history now = {0};
	unsigned int n = 0;
	int status = ctl_places_get(&places);

	if (status && !places.n)
		return status;
	for (unsigned int i = 0; i < places.n; i++)
		n += places.v[i].list->n;
	now.v = calloc(n ? n : 1, sizeof(*now.v));
	if (!now.v)
		return ctl_fail("no memory");
	t = ctl_table_new(headings);
	for (unsigned int i = 0; i < places.n; i++)
		for (uint32_t k = 0; k < places.v[i].list->n; k++)
			row(t, &places.v[i], &places.v[i].list->stores[k], last, &now.v[now.n++]);
	ctl_places_free(&places);
	now.when = seconds();
	free(last->v);
	*last = now;
	ctl_table_print(t);
	return CTL_OK;
}

/* ---- the terminal ---- */

static void terminal_begin(void)
{
	struct termios raw;

	tcgetattr(STDIN_FILENO, &before);
	raw = before;
	raw.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	fputs("\033[?1049h\033[?25l", stdout);
}

static void terminal_end(void)
{
	fputs("\033[?25h\033[?1049l", stdout);
	fflush(stdout);
	tcsetattr(STDIN_FILENO, TCSANOW, &before);
}

/* Until it is time, or q. */
static void wait_for_key(const struct top *top)
{
	double until = seconds() + top->interval_s;

	while (!ended && seconds() < until) {
		struct pollfd p = {STDIN_FILENO, POLLIN, 0};
		int left = (int) ((until - seconds()) * 1000) + 1;
		char key;

		if (poll(top->terminal ? &p : NULL, top->terminal, left) > 0 &&
		    (read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q'))
			ended = 1;
	}
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct top *top = state->input;
	char *end;

	switch (key) {
	case 'd':
		top->interval_s = strtod(arg, &end);
		if (*end || !(top->interval_s >= 0.1) || top->interval_s > 3600)
			argp_error(state, "%s is not a number of seconds from 0.1 to 3600", arg);
		return 0;
	case 'n':
		top->count = strtoul(arg, &end, 10);
		if (*end || !top->count)
			argp_error(state, "%s is not a number of times", arg);
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "top takes no argument: %s", arg);
		return 0;
	case ARGP_KEY_END:
		if (ctl.json)
			argp_error(state, "top is for people; list --json and show --json are for programs");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int ctl_top(int argc, char **argv)
{
	static const struct argp_option options[] = {
		{"delay", 'd', "SECONDS", 0, "Time between looks (default 1)", 0},
		{"count", 'n', "N", 0, "End after so many", 0},
		{0},
	};
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.doc = "Show all stores again and again. q ends it.",
		.children = ctl_children,
	};
	struct top top = {.interval_s = 1};
	struct sigaction sa = {.sa_handler = on_signal};
	struct history last = {0};
	int status = CTL_OK;

	ctl_parse(&argp, argc, argv, &top);
	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	top.terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
	if (top.terminal)
		terminal_begin();
	for (unsigned long i = 0; !ended && !status && (!top.count || i < top.count); i++) {
		if (i)
			wait_for_key(&top);
		if (ended)
			break;
		if (top.terminal)
			fputs("\033[H\033[J", stdout);
		status = refresh(&last);
		fflush(stdout);
	}
	if (top.terminal)
		terminal_end();
	free(last.v);
	return status;
}
