/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preserved: start, signals, end.
 *
 * SIGHUP restarts it with everything kept. SIGTERM and SIGINT end it if nothing is lost by that:
 * when systemd has all descriptors in its store (after a barrier, so that this is so), or when each
 * store is open in a process, which hands it to the next agent. Otherwise they are refused, unless
 * --force says that the operator means it.
 */
#include <argp.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "preserved.h"

#define NAMED_MAX 10 /* stores that a message names */

const char *argp_program_version = "preserved (libpreserve) " PV_VERSION;

/* ---- the end ---- */

/** Nobody else has it, or its preparation would end with us. */
static bool at_risk(const struct store *s)
{
	return store_open(s) != 1 || store_kept(s, HOLDER_TOKEN_OUTGOING) ||
	       store_kept(s, HOLDER_TOKEN_INCOMING);
}

static unsigned int name_losses(const struct agent *a)
{
	unsigned int n = 0;

	for (unsigned int i = 0; i < a->nstores; i++) {
		if (!at_risk(a->stores[i]))
			continue;
		if (n++ < NAMED_MAX)
			log_warning("store %s of user %u %s lost when the agent ends",
				    a->stores[i]->name, a->stores[i]->uid,
				    a->config.force ? "is" : "would be");
	}
	return n;
}

/** May it end now? */
static bool end(struct agent *a)
{
	unsigned int n;
	int rc;

	if (notify_there() && !getenv(GUARD_ENV)) {
		notify_say("STOPPING=1");
		rc = notify_barrier();
		if (rc == 0) {
			log_notice("ending, systemd keeps %u stores", a->nstores);
			return true;
		}
	}
	n = name_losses(a);
	if (n && !a->config.force) {
		log_error("not ending: %u stores would be lost; SIGHUP restarts with everything "
			  "kept, "
			  "--force allows an end like this",
			  n);
		return false;
	}
	/* The socket of one that kept something stays: it says that an agent is responsible. */
	if (a->lock >= 0 && a->nstores == 0)
		unlink(a->config.socket);
	log_notice("ending");
	return true;
}

static void on_signals(struct agent *a)
{
	struct signalfd_siginfo info;

	while (read(a->signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGHUP)
			a->restart = true;
		else if (info.ssi_signo != SIGCHLD)
			a->stop = true;
	}
}

static bool workers_run(const struct agent *a)
{
	for (unsigned int i = 0; i < a->nstores; i++)
		if (job_runs(a->stores[i]))
			return true;
	return false;
}

static void run(struct agent *a)
{
	for (;;) {
		bool waited_for = job_tick(a);

		client_round(a, waited_for ? TICK_MS : a->config.claim_ms ? 1000 : -1);
		on_signals(a);
		store_expire(a);
		if (workers_run(a))
			continue;
		if (a->restart)
			state_restart(a);
		a->restart = false;
		if (a->stop && end(a))
			return;
		a->stop = false;
	}
}

/* ---- options ---- */

enum { KEY_FORCE = 256, KEY_CHECK, KEY_GUARD, KEY_SETTING };

static const char *const settings[] = {"claim-timeout", "max-stores", "max-descriptors",
				       "max-bytes", "max-connections"};

static const struct argp_option options[] = {
	{"config", 'c', "FILE", 0, "Read settings from FILE: lines KEY = VALUE", 0},
	{"socket", 's', "PATH", 0, "Listen at PATH (default " AGENT_SOCKET ")", 0},
	{"force", KEY_FORCE, NULL, 0, "End on SIGTERM even if stores are lost by that", 0},
	{"guard", KEY_GUARD, NULL, 0,
	 "Have a second process with a copy of everything, which starts another agent when this "
	 "one dies; "
	 "for where there is no systemd",
	 0},
	{"claim-timeout", KEY_SETTING + 0, "SECONDS", 0,
	 "Drop what nobody claims for so long after it came (default 0: never)", 1},
	{"max-stores", KEY_SETTING + 1, "N", 0, "Stores of one user (default 64)", 2},
	{"max-descriptors", KEY_SETTING + 2, "N", 0, "Descriptors of one user (default 16384)", 2},
	{"max-bytes", KEY_SETTING + 3, "SIZE", 0,
	 "Bytes of one user's memfds, with k, M, G or T (default 0: no limit)", 2},
	{"max-connections", KEY_SETTING + 4, "N", 0, "Connections of one user (default 64)", 2},
	{"check", KEY_CHECK, "VERSION", OPTION_ARG_OPTIONAL,
	 "Read the settings, say whether they are right, and end", 3},
	{0},
};

struct parsed {
	struct config *config;
	bool check, guard;
	int rc;
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct parsed *p = state->input;
	int rc = 0;

	switch (key) {
	case 'c':
		rc = config_read(p->config, arg);
		break;
	case 's':
		rc = config_set(p->config, "socket", arg);
		break;
	case KEY_FORCE:
		p->config->force = true;
		break;
	case KEY_GUARD:
		p->guard = true;
		break;
	case KEY_CHECK:
		p->check = true;
		if (arg && strtoul(arg, NULL, 10) != STATE_VERSION)
			rc = -EPROTONOSUPPORT;
		break;
	case ARGP_KEY_ARG:
		argp_error(state, "no argument is wanted: %s", arg);
		break;
	default:
		if (key < KEY_SETTING || key >= KEY_SETTING + 5)
			return ARGP_ERR_UNKNOWN;
		rc = config_set(p->config, settings[key - KEY_SETTING], arg);
	}
	if (rc && !p->rc)
		p->rc = rc;
	return 0;
}

/** Everything that is to be kept is in our hands, and we listen. */
static int start(struct agent *a, const char *state)
{
	int rc = state_resume(a, state);

	if (rc == 0) {
		rc = notify_receive(a);
		if (rc == 0)
			list_adopt(a);
	}
	if (rc >= 0 && a->listener < 0)
		rc = a->listener = listen_at(&a->config, &a->lock);
	if (rc < 0)
		return rc;
	notify_say("READY=1");
	log_notice("serving %s: %u stores",
		   a->lock >= 0 ? a->config.socket : "the socket that was passed in", a->nstores);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.doc = "Keeps the memory of stores of all users while their processes are down. "
		       "See "
		       "preserved(8).",
	};
	const char *state = getenv("PRESERVED_STATE");
	static struct agent agent;
	struct parsed p = {.config = &agent.config};
	ssize_t n;

	if (argc == 6 && strcmp(argv[1], "--worker") == 0)
		return job_worker(argv[2], argv[3], (uint32_t)strtoul(argv[4], NULL, 10), argv[5]);
	config_init(&agent.config);
	argp_parse(&argp, argc, argv, 0, NULL, &p);
	/* One that comes from a restart goes on with what it could read: to end would lose
	 * everything. */
	if (p.rc && (p.check || !state))
		return 2;
	if (p.check)
		return 0;
	agent.argv = argv;
	n = readlink("/proc/self/exe", agent.program, sizeof(agent.program) - 1);
	if (n <= 0 || agent_init(&agent)) {
		log_error("cannot start: %s", strerror(errno));
		return 1;
	}
	process_protect();
	notify_init();
	if (p.guard && !state && !notify_there())
		return guard_run(&agent.config, agent.program, argv);
	agent.signals = signals_take();
	if (start(&agent, state))
		return 1;
	run(&agent);
	return 0;
}
