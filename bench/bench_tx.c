/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What does a transaction cost?
 *
 * Each thread has its share of --live objects of 64 bytes and changes all of a random one of them,
 * again and again (ops_change()). One run is one workload on one side (ops.h); it tells the rate of
 * all threads together, and the time that one thread takes for one change. The workloads:
 *
 *   tx-64      each change is a transaction: begin, note the 64 bytes, write them, commit
 *   write-64   the same change without a transaction: what of tx-64 is the benchmark's own work
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include OPS_HEADER

#define CHECK_EVERY 1024u /* operations between two looks at the clock */

struct run;

/** One thread's part of a run. */
struct worker {
	struct run *run;
	pthread_t thread;
	unsigned int index;
	struct bench_rng rng;
	bench_slot *slots;
	size_t nslots;
	uint64_t ops;
	uint64_t ns;
} __attribute__((aligned(2 * BENCH_CACHE_LINE)));

struct workload {
	const char *name;
	void (*changes)(struct worker *w); /* CHECK_EVERY of them */
};

struct run {
	const struct workload *workload;
	unsigned int threads;
	uint64_t live;
	double seconds;
	pthread_barrier_t barrier;
};

static inline bench_slot *random_slot(struct worker *w)
{
	return &w->slots[bench_random_below(&w->rng, w->nslots)];
}

static void transactions(struct worker *w)
{
	for (unsigned int k = 0; k < CHECK_EVERY; k++)
		ops_change(random_slot(w), k);
}

static void writes(struct worker *w)
{
	for (unsigned int k = 0; k < CHECK_EVERY; k++)
		ops_fill_64(ops_object(random_slot(w)), k);
}

static const struct workload workloads[] = {{"tx-64", transactions}, {"write-64", writes}};

static void wait_for_all(struct worker *w)
{
	int err = pthread_barrier_wait(&w->run->barrier);

	if (err && err != PTHREAD_BARRIER_SERIAL_THREAD)
		bench_die("pthread_barrier_wait: %s", strerror(err));
}

static void work_for(struct worker *w, double seconds)
{
	uint64_t start, now;

	wait_for_all(w);
	w->ops = 0;
	start = bench_now_ns();
	do {
		w->run->workload->changes(w);
		w->ops += CHECK_EVERY;
		now = bench_now_ns();
	} while (now - start < (uint64_t)(seconds * 1e9));
	w->ns = now - start;
	wait_for_all(w);
}

/* Every object was changed as a whole, if the sides do the work that they are measured for. */
static void look_at_objects(const struct worker *w)
{
	for (size_t i = 0; i < w->nslots; i++) {
		const uint64_t *words = ops_object(&w->slots[i]);

		for (uint64_t k = 1; k < 8; k++) {
			if (words[k] != words[0] + k)
				bench_die("object %zu of thread %u was changed in part", i,
					  w->index);
		}
	}
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	bench_pin(w->index);
	for (size_t i = 0; i < w->nslots; i++) {
		ops_put(&w->slots[i], 64, i);
		ops_fill_64(ops_object(&w->slots[i]), i);
	}
	/* Caches and branch predictors settle in the first part. */
	work_for(w, w->run->seconds / 8);
	work_for(w, w->run->seconds);
	look_at_objects(w);
	return NULL;
}

static void run_workload(struct run *run, const struct ops_options *opts)
{
	size_t each = run->live / run->threads;
	struct worker *workers;
	double mops = 0, ns = 0;
	bench_slot *table;

	ops_open(opts);
	table = ops_table(each * run->threads);
	workers = aligned_alloc(_Alignof(struct worker), run->threads * sizeof(*workers));
	if (!workers || pthread_barrier_init(&run->barrier, NULL, run->threads))
		bench_die("no memory for %u threads", run->threads);
	memset(workers, 0, run->threads * sizeof(*workers));
	for (unsigned int i = 0; i < run->threads; i++) {
		struct worker *w = &workers[i];
		int err;

		w->run = run;
		w->index = i;
		w->slots = table + i * each;
		w->nslots = each;
		bench_rng_seed(&w->rng, i);
		err = pthread_create(&w->thread, NULL, worker_main, w);
		if (err)
			bench_die("pthread_create: %s", strerror(err));
	}
	for (unsigned int i = 0; i < run->threads; i++) {
		const struct worker *w = &workers[i];

		pthread_join(w->thread, NULL);
		mops += (double)w->ops * 1e3 / (double)w->ns;
		ns += (double)w->ns / (double)w->ops / run->threads;
	}
	bench_tell("mops", mops);
	bench_tell("ns", ns);
	ops_close();
	free(workers);
}

static void usage(void)
{
	printf("usage: %s tx-64|write-64 --impl NAME [--threads N] [--live N] [--seconds S]\n"
	       "       [--dir DIR]\n\n"
	       "Measures once and prints figures, one a line: NAME VALUE. scripts/bench "
	       "compares.\n\n"
	       "tx-64      transactions that change 64 bytes of a random object\n"
	       "write-64   the same changes without transactions\n"
	       "--live     objects of all threads together (default 100000)\n",
	       program_invocation_short_name);
}

static const struct workload *find_workload(const char *name)
{
	for (size_t i = 0; i < sizeof(workloads) / sizeof(workloads[0]); i++) {
		if (!strcmp(name, workloads[i].name))
			return &workloads[i];
	}
	bench_die("there is no workload %s (see --help)", name);
}

int main(int argc, char **argv)
{
	struct run run = {.threads = 1, .live = 100000, .seconds = 1};
	struct ops_options opts = {.name = "bench-tx", .object_bytes = 64};

	bench_start();
	if (argc < 2 || !strcmp(argv[1], "--help")) {
		usage();
		return 0;
	}
	run.workload = find_workload(argv[1]);
	for (int i = 2; i < argc; i += 2) {
		const char *arg = argv[i], *value = argv[i + 1];

		if (!value)
			bench_die("%s lacks its value (see --help)", arg);
		if (!strcmp(arg, "--impl"))
			opts.impl = value;
		else if (!strcmp(arg, "--threads"))
			run.threads = (unsigned int)bench_number(arg, value, 1);
		else if (!strcmp(arg, "--live"))
			run.live = bench_number(arg, value, 1);
		else if (!strcmp(arg, "--seconds"))
			run.seconds = bench_seconds(arg, value);
		else if (!strcmp(arg, "--dir"))
			opts.dir = value;
		else
			bench_die("%s is unknown (see --help)", arg);
	}
	if (!opts.impl || run.live < run.threads)
		bench_die("--impl is needed, and at least one object for a thread (see --help)");
	opts.objects = run.live;
	run_workload(&run, &opts);
	return 0;
}
