/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver of a kill storm: forks a worker, which is killed, takes its descriptors, attaches the
 * store and compares. A fifth of the kills are followed by another while the store is attached
 * again. After some dozens of kills all begins anew with a store of another shape, so that creation
 * and growth are killed as well.
 */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "storm.h"

static struct {
	uint64_t kills, want;
	uint64_t seed, random;
	uint64_t stores;
	uint64_t before_store, before_work; /* kills before there was a store, or threads in it */
	uint64_t in_recovery;
	uint64_t acknowledged, foreign, threads, retired, read;
	uint64_t pending, made;
	uint64_t recovered;
	uint64_t joined; /* segments that had not come into the index */
	uint64_t live, leaks, doubles;
	uint64_t largest_bytes;
	bool must_fail;
} storm = {.want = 10000, .seed = 1};

static struct storm_keeper keeper;
static struct storm_log *storm_log;

static void finish(bool failed)
{
	printf("storm: %" PRIu64 " kills (seed %#" PRIx64 "): %" PRIu64
	       " before there was a store, %" PRIu64 " before its threads, %" PRIu64
	       " in recovery\n",
	       storm.kills, storm.seed, storm.before_store, storm.before_work, storm.in_recovery);
	printf("storm: %" PRIu64 " stores of up to %" PRIu64 " KiB, %" PRIu64 " threads, %" PRIu64
	       " changes acknowledged, %" PRIu64 " of another thread's objects; %" PRIu64
	       " retired, %" PRIu64 " read meanwhile\n",
	       storm.stores, storm.largest_bytes >> 10, storm.threads, storm.acknowledged,
	       storm.foreign, storm.retired, storm.read);
	printf("storm: %" PRIu64 " changes under way, %" PRIu64 " of them in effect; %" PRIu64
	       " intents and transactions recovered, %" PRIu64 " segments dropped\n",
	       storm.pending, storm.made, storm.recovered, storm.joined);
	printf("storm: %" PRIu64 " live objects counted: %" PRIu64 " leaks, %" PRIu64 " doubles\n",
	       storm.live, storm.leaks, storm.doubles);
	fflush(stdout);
	_exit(failed != storm.must_fail);
}

static void fail(const char *what)
{
	fprintf(stderr, "storm: kill %" PRIu64 " of seed %#" PRIx64 ": %s\n", storm.kills,
		storm.seed, what);
	finish(true);
}

static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGALRM};

/* The check itself may meet what nobody foresaw. */
static void on_signal(int signo)
{
	fail(signo == SIGALRM ? "the check hangs" : "the check dies of a signal");
}

static struct storm_plan new_store(void)
{
	static const uint64_t segments[] = {32 << 10, 64 << 10, 64 << 10, 128 << 10, 1 << 20};
	struct storm_plan plan = {
		.segment_bytes = segments[storm_below(&storm.random, 5)],
		.page_bytes = 4096,
		.lanes = STORM_THREADS + 2 + (uint32_t)storm_below(&storm.random, 3),
	};

	if (plan.segment_bytes == 1 << 20 && storm_below(&storm.random, 2))
		plan.page_bytes = 16384;
	if (storm_below(&storm.random, 3) == 0)
		plan.limit_bytes = (1 << 20) + storm_below(&storm.random, 2 << 20);
	if (plan.limit_bytes && plan.segment_bytes == 1 << 20)
		plan.limit_bytes += 2 << 20;
	memset(storm_log, 0, sizeof(*storm_log));
	storm_keeper_clear(&keeper);
	storm.stores++;
	return plan;
}

/* When the worker is killed: often while it opens the store, mostly in its work. */
static void choose_death(struct storm_plan *plan)
{
	uint64_t *r = &storm.random, how = storm_below(r, 20);

	plan->seed = storm_random(r);
	plan->threads = 2 + (uint32_t)storm_below(r, STORM_THREADS - 1);
	plan->ops = 0;
	plan->relocate = storm_below(r, 2) ? PV_RELOCATE_ALWAYS : PV_RELOCATE_AUTO;
	plan->attach_only = false;
	plan->from_start = how < 3;
	if (how < 3) {
		plan->timer_ns = 1 + (uint32_t)storm_below(r, 500000);
	} else if (how < 16) {
		plan->timer_ns = 1 + (uint32_t)storm_below(r, 2000000);
	} else if (how < 17) { /* grace periods take their time */
		plan->timer_ns = 1 + (uint32_t)storm_below(r, 40000000);
	} else {
		plan->timer_ns = 500000000;
		plan->ops = 1 + (uint32_t)storm_below(r, 1000);
	}
}

static void kill_one(const struct storm_plan *plan)
{
	int status, err;
	pid_t pid = fork();

	if (pid < 0)
		fail("fork");
	if (!pid) {
		for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
			signal(fatal[i], SIG_DFL);
		storm_work(&keeper, plan, storm_log);
		_exit(1);
	}
	while (waitpid(pid, &status, 0) < 0)
		;
	storm.kills++;
	if (storm_log->failure[0])
		fail(storm_log->failure);
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
		fprintf(stderr, "storm: a worker has ended with status %#x\n",
			(unsigned int)status);
		fail("a worker was not killed");
	}
	err = storm_keeper_receive(&keeper);
	if (err) {
		fprintf(stderr, "storm: %s\n", strerror(-err));
		fail("receiving descriptors");
	}
}

static void check(const struct storm_plan *plan)
{
	uint32_t stage = atomic_load(&storm_log->stage);
	struct storm_found found;
	struct storm_store st;
	struct pv_info info;
	uint64_t drops = keeper.drops;
	int err;

	if (!keeper.n && stage == STORM_NOTHING) {
		storm.before_store++;
		return;
	}
	err = storm_open(&st, &keeper, plan, storm_log);
	if (err == -ENOENT && stage == STORM_NOTHING) { /* what was kept of it is no store */
		storm.before_store++;
		storm_keeper_clear(&keeper);
		return;
	}
	if (err) {
		fprintf(stderr, "storm: attach: %d: %s\n", err, pv_last_error());
		fail("the store cannot be opened");
	}
	pv_info_get(st.s, &info);
	storm.recovered += info.recovered;
	storm.joined += keeper.drops - drops;
	storm.before_work += !atomic_exchange(&storm_log->threads, 0);
	if (info.bytes > storm.largest_bytes)
		storm.largest_bytes = info.bytes;
	storm_check(&st, storm_log, &found);
	storm.pending += found.pending;
	storm.made += found.made;
	storm.live += found.live;
	storm.leaks += found.leaks;
	storm.doubles += found.doubles;
	if (found.wrong)
		fail("the store is not what it should be");
	storm_close(&st);
}

static void run(void)
{
	struct storm_plan plan = {0};
	uint64_t left = 0;

	while (storm.kills < storm.want) {
		if (!left--) {
			plan = new_store();
			left = 20 + storm_below(&storm.random, 60);
		}
		choose_death(&plan);
		alarm(60);
		kill_one(&plan);
		while (storm.kills < storm.want && keeper.n &&
		       atomic_load(&storm_log->stage) == STORM_MAP &&
		       storm_below(&storm.random, 5) == 0) {
			plan.attach_only = plan.from_start = true;
			plan.timer_ns = 1 + (uint32_t)storm_below(&storm.random, 300000);
			kill_one(&plan);
			storm.in_recovery++;
		}
		storm.threads += atomic_load(&storm_log->threads);
		check(&plan);
		storm.acknowledged += atomic_exchange(&storm_log->acknowledged, 0);
		storm.foreign += atomic_exchange(&storm_log->foreign, 0);
		storm.retired += atomic_exchange(&storm_log->retired, 0);
		storm.read += atomic_exchange(&storm_log->read, 0);
		if (storm.kills / 1000 != (storm.kills - 1) / 1000)
			fprintf(stderr, "storm: %" PRIu64 " of %" PRIu64 " kills\n", storm.kills,
				storm.want);
	}
}

static void usage(FILE *to)
{
	fputs("usage: storm [--kills N] [--seed N] [--must-fail]\n"
	      "\n"
	      "Kills processes with several threads in the middle of their work on a store and "
	      "looks\n"
	      "whether the store is what they had been told.\n"
	      "\n"
	      "  --kills N    how many (10000)\n"
	      "  --seed N     of all that is chosen at random, but for what the scheduler chooses "
	      "(1)\n"
	      "  --must-fail  succeed if something is found to be wrong, as when the library has a "
	      "bug\n",
	      to);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"kills", required_argument, NULL, 'k'},
		{"seed", required_argument, NULL, 's'},
		{"must-fail", no_argument, NULL, 'f'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (c == 'k')
			storm.want = strtoull(optarg, NULL, 0);
		else if (c == 's')
			storm.seed = strtoull(optarg, NULL, 0);
		else if (c == 'f')
			storm.must_fail = true;
		else {
			usage(c == 'h' ? stdout : stderr);
			return c == 'h' ? 0 : 2;
		}
	}
	storm.random = storm.seed;
	storm_log = mmap(NULL, sizeof(*storm_log), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (storm_log == MAP_FAILED || storm_keeper_init(&keeper))
		fail("no memory for the log");
	for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		signal(fatal[i], on_signal);
	run();
	finish(false);
}
