/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * main.c - runs a scenario in a child process, watches over it, and the command line.
 *
 * The report lies in memory shared with the child, so that whatever the child dies of, the parent
 * knows how far it was. The parent measures progress by the number of recoveries and traps.
 */
#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "engine.h"

static void child_run(const struct crash_scenario *scenario, const struct crash_options *options,
		      struct crash_report *report, void (*run)(void))
{
	/* Recoveries that allocate and free large tables thousands of times a second should not
	 * give the memory back to the kernel in between, nor clear it twice. */
	mallopt(M_MMAP_THRESHOLD, 64 << 10);
	mallopt(M_TRIM_THRESHOLD, 64 << 20);
	mallopt(M_ARENA_MAX, 1); /* the same addresses in every run of a switch sweep */
	ct.scenario = scenario;
	ct.options = options;
	ct.report = report;
	ct.random = CT_RANDOM_SEED;
	ct_log_init();
	ct_trap_init();
	ct.on = true;
	run();
	ct.on = false;
}

static void child_ended(struct crash_report *report, int status)
{
	struct crash_failure *f = &report->failures[0];

	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return;
	if (WIFEXITED(status) && WEXITSTATUS(status) == CT_EXIT_DIED && report->n_failures)
		return; /* the child's own handler has reported it */
	if (report->n_failures < CRASH_MAX_FAILURES)
		f = &report->failures[report->n_failures++];
	*f = report->at;
	f->kind = CRASH_FAIL_DIED;
	f->signo = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
	snprintf(f->what, sizeof(f->what), "the process under test ended with status %#x", status);
	memcpy(f->note, report->note, sizeof(f->note));
}

/* Waits for the child; kills it when it makes no progress. */
static void watch(pid_t pid, const struct crash_scenario *scenario, struct crash_report *report)
{
	const unsigned limit_ms = scenario->hang_ms ? scenario->hang_ms : 30000;
	const struct timespec nap = {0, 2000000};
	const volatile size_t *replays = &report->replays, *traps = &report->traps;
	uint64_t moved = ct_now_ns();
	size_t seen = 0;
	struct crash_failure *f;
	int status;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (*replays + *traps != seen) {
			seen = *replays + *traps;
			moved = ct_now_ns();
		} else if (ct_now_ns() - moved > limit_ms * 1000000ull) {
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
			f = &report->failures[report->n_failures < CRASH_MAX_FAILURES
						      ? report->n_failures++
						      : 0];
			*f = report->at;
			f->kind = CRASH_FAIL_HUNG;
			snprintf(f->what, sizeof(f->what), "no progress for %u ms", limit_ms);
			memcpy(f->note, report->note, sizeof(f->note));
			return;
		}
		nanosleep(&nap, NULL);
	}
	child_ended(report, status);
}

static unsigned run_scenario(const struct crash_scenario *scenario,
			     const struct crash_options *options, struct crash_report *report,
			     void (*run)(void))
{
	struct crash_report *shared;
	pid_t pid;

	shared = ct_raw_mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		ct_panic("no memory for a report: %s", strerror(errno));
	shared->scenario = scenario->name;
	shared->at.op = -1;
	shared->at.prefix = -1;
	shared->at.switch_at = -1;
	for (unsigned i = 0; i < CRASH_MAX_DEPTH; i++)
		shared->at.nested[i] = -1;
	fflush(NULL);
	if (options->in_process) {
		child_run(scenario, options, shared, run);
	} else {
		pid = fork();
		if (pid < 0)
			ct_panic("fork: %s", strerror(errno));
		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			child_run(scenario, options, shared, run);
			fflush(NULL);
			_exit(0);
		}
		watch(pid, scenario, shared);
	}
	*report = *shared;
	ct_raw_munmap(shared, sizeof(*shared));
	ct.scenario = scenario; /* names for the printed report */
	return report->n_failures;
}

unsigned crash_sweep(const struct crash_scenario *scenario, const struct crash_options *options,
		     struct crash_report *report)
{
	return run_scenario(scenario, options, report, ct_sweep_run);
}

unsigned crash_switch_sweep(const struct crash_scenario *scenario,
			    const struct crash_options *options, struct crash_report *report)
{
	return run_scenario(scenario, options, report, ct_switch_run);
}

void crash_init(int argc, char **argv)
{
	static const char tunables[] = "glibc.cpu.x86_rep_movsb_threshold=1000000:"
				       "glibc.cpu.x86_rep_stosb_threshold=1000000";
	const char *now = getenv("GLIBC_TUNABLES");
	char both[512];

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--rep-movs") == 0)
			return;
	}
	if (now && strstr(now, "x86_rep_movsb_threshold"))
		return;
	snprintf(both, sizeof(both), "%s%s%s", now ? now : "", now && *now ? ":" : "", tunables);
	setenv("GLIBC_TUNABLES", both, 1);
	execv("/proc/self/exe", argv);
	fprintf(stderr, "cannot run again with GLIBC_TUNABLES: %s\n", strerror(errno));
	exit(1);
}

static void help(const char *program)
{
	printf("usage: %s [OPTION]...\n"
	       "Stops every operation after each of its stores, recovers, checks.\n\n"
	       "  --list           name the scenarios\n"
	       "  --only NAME      run this one (may be given again)\n"
	       "  --depth N        crashes inside recovery: 0 none, 1 (default), 2, 3\n"
	       "  --stride N       where a recovery repeats the stores of another one, only every\n"
	       "                   N-th crash inside it (default 1: all)\n"
	       "  --split-nested   inside recovery too, stop between the words of a wide store\n"
	       "  --must-fail      succeed if a crash state is found that is not recovered\n"
	       "  --prefix N       only the state after record N\n"
	       "  --nested N       and in it only the crash after record N of the recovery\n"
	       "  --dump           print all records of the operations\n"
	       "  --in-process     no child process, for a debugger (handle SIGSEGV SIGTRAP\n"
	       "                   nostop noprint pass)\n"
	       "  --rep-movs       let libc copy with rep movs\n"
	       "  --help\n",
	       program);
}

struct cli {
	struct crash_options options;
	const char *only[64];
	unsigned n_only;
	bool list;
};

static long number(const char *option, const char *text)
{
	char *end;
	long value;

	errno = 0;
	value = text ? strtol(text, &end, 10) : 0;
	if (!text || end == text || *end || errno || value < 0) {
		fprintf(stderr, "%s needs a number\n", option);
		exit(2);
	}
	return value;
}

static void parse(int argc, char **argv, struct cli *cli)
{
	cli->options = CRASH_OPTIONS_DEFAULT;
	for (int i = 1; i < argc; i++) {
		const char *arg = argv[i];

		if (strcmp(arg, "--help") == 0) {
			help(argv[0]);
			exit(0);
		} else if (strcmp(arg, "--list") == 0) {
			cli->list = true;
		} else if (strcmp(arg, "--dump") == 0) {
			cli->options.dump_log = true;
		} else if (strcmp(arg, "--in-process") == 0) {
			cli->options.in_process = true;
		} else if (strcmp(arg, "--rep-movs") == 0) {
			; /* see crash_init() */
		} else if (strcmp(arg, "--depth") == 0) {
			cli->options.depth = (unsigned)number(arg, argv[++i]);
		} else if (strcmp(arg, "--stride") == 0) {
			cli->options.stride = (unsigned)number(arg, argv[++i]);
		} else if (strcmp(arg, "--split-nested") == 0) {
			cli->options.split_nested = true;
		} else if (strcmp(arg, "--must-fail") == 0) {
			cli->options.must_fail = true;
		} else if (strcmp(arg, "--prefix") == 0) {
			cli->options.only_prefix = number(arg, argv[++i]);
		} else if (strcmp(arg, "--nested") == 0) {
			cli->options.only_nested = number(arg, argv[++i]);
		} else if (strcmp(arg, "--only") == 0 && argv[i + 1] && cli->n_only < 64) {
			cli->only[cli->n_only++] = argv[++i];
		} else {
			fprintf(stderr, "%s: unknown or incomplete option; try --help\n", arg);
			exit(2);
		}
	}
}

static bool chosen(const struct cli *cli, const char *name)
{
	for (unsigned i = 0; i < cli->n_only; i++) {
		if (strcmp(cli->only[i], name) == 0)
			return true;
	}
	return cli->n_only == 0;
}

/* Failures that say something about the crash states, and not about the test. */
static unsigned count_found(const struct crash_report *report)
{
	unsigned n = 0;

	for (unsigned i = 0; i < report->n_failures; i++) {
		switch (report->failures[i].kind) {
		case CRASH_FAIL_REFUSED:
		case CRASH_FAIL_BROKEN:
		case CRASH_FAIL_ILLEGAL:
		case CRASH_FAIL_NOT_DURABLE:
		case CRASH_FAIL_NESTED:
			n += report->failures[i].prefix >= 0;
			break;
		case CRASH_FAIL_DIED:
			n += report->replays > 0;
			break;
		default:
			break;
		}
	}
	return n;
}

/* A build with a bug in it whose bug could not be put in. */
extern const char crash_mutant_is_stale[] __attribute__((weak));

int crash_main(int argc, char **argv, const struct crash_scenario *scenarios, size_t n_scenarios)
{
	static struct crash_report report;
	struct cli cli = {.n_only = 0};
	unsigned failures = 0, found = 0, ran = 0;

	crash_init(argc, argv);
	parse(argc, argv, &cli);
	if (crash_mutant_is_stale) {
		fprintf(stderr, "the mutant %s does not fit the source any more, see mutate.py\n",
			crash_mutant_is_stale);
		return 1;
	}
	for (size_t i = 0; i < n_scenarios; i++) {
		const struct crash_scenario *sc = &scenarios[i];

		if (cli.list)
			printf("%s%s\n", sc->name, sc->is_switch ? " (switch)" : "");
		if (cli.list || !chosen(&cli, sc->name))
			continue;
		ran++;
		if (sc->is_switch)
			failures += crash_switch_sweep(sc, &cli.options, &report);
		else
			failures += crash_sweep(sc, &cli.options, &report);
		crash_report_print(&report);
		found += count_found(&report);
		if (found && cli.options.must_fail)
			break;
	}
	if (cli.options.must_fail && ran) {
		printf("%u crash states were found not to be recovered, as they should\n", found);
		return found == 0;
	}
	if (!cli.list && ran == 0) {
		fprintf(stderr, "no such scenario; try --list\n");
		return 2;
	}
	return failures ? 1 : 0;
}
