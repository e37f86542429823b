/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How long does it take until a new process can allocate again, after its predecessor was killed?
 *
 *	build	make a store with --objects objects of 64 bytes, all in a persistent table; tell
 *		"ready 1"; then replace random objects until killed
 *	attach	tell "us N", the time from just before the store is opened to just after the first
 *		object was allocated and linked; look at some of the data; then replace until killed
 *	drop	open the store and drop its data
 *
 * bench/bench_attach.py runs these one after the other and kills each with SIGKILL.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include OPS_HEADER

#define OBJECT_BYTES 64u
#define SPARE_SLOTS  4096u /* at the end of the table, for the allocations that are timed */
#define LOOK_AT	     1000u /* objects whose contents are compared after an attach */

struct churn {
	bench_slot *slots;
	size_t nslots;
	size_t first; /* number of the first slot: the value that its object holds */
	unsigned int index;
	pthread_barrier_t *started;
};

static void *churn_main(void *arg)
{
	struct churn *c = arg;
	struct bench_rng rng;

	bench_pin(c->index);
	bench_rng_seed(&rng, bench_now_ns());
	for (uint64_t i = 0;; i++) {
		size_t at = bench_random_below(&rng, c->nslots);

		ops_replace(&c->slots[at], OBJECT_BYTES, c->first + at);
		if (i == 0) /* every thread is known to the store when the kill can come */
			pthread_barrier_wait(c->started);
	}
	return NULL;
}

/* Replace objects in all threads; returns when each has done so once. */
static void churn(bench_slot *table, size_t objects, unsigned int threads)
{
	static pthread_barrier_t started;
	struct churn *all = calloc(threads, sizeof(*all));
	size_t each = objects / threads;

	if (!all || pthread_barrier_init(&started, NULL, threads + 1))
		bench_die("no memory for %u threads", threads);
	for (unsigned int i = 0; i < threads; i++) {
		pthread_t thread;
		int err;

		all[i] = (struct churn){table + i * each, each, i * each, i, &started};
		err = pthread_create(&thread, NULL, churn_main, &all[i]);
		if (err)
			bench_die("pthread_create: %s", strerror(err));
	}
	pthread_barrier_wait(&started);
}

static void look_at_data(const bench_slot *table, size_t objects, size_t spare)
{
	struct bench_rng rng;

	bench_rng_seed(&rng, spare);
	for (unsigned int i = 0; i < LOOK_AT; i++) {
		size_t at = bench_random_below(&rng, objects);

		if (!table[at] || ops_value(&table[at]) != at)
			bench_die("slot %zu of %zu does not hold what was put there", at, objects);
	}
	for (size_t i = objects; i <= objects + spare; i++) {
		if (!table[i] || ops_value(&table[i]) != i)
			bench_die("the object allocated after attach %zu is not there",
				  i - objects);
	}
}

static void build(const struct ops_options *opts, size_t objects, unsigned int threads)
{
	bench_slot *table;

	ops_open(opts);
	table = ops_table(objects + SPARE_SLOTS);
	for (size_t i = 0; i < objects; i++)
		ops_put(&table[i], OBJECT_BYTES, i);
	churn(table, objects, threads);
	bench_tell_number("ready", 1);
}

static void attach(const struct ops_options *opts, size_t objects, size_t spare,
		   unsigned int threads)
{
	uint64_t before = bench_now_ns(), after;
	bench_slot *table;

	ops_open(opts);
	table = ops_table(objects + SPARE_SLOTS);
	ops_put(&table[objects + spare], OBJECT_BYTES, objects + spare);
	after = bench_now_ns();
	look_at_data(table, objects, spare);
	churn(table, objects, threads);
	bench_tell("us", (double)(after - before) / 1e3);
}

static void usage(void)
{
	printf("usage: %s build|attach|drop --impl NAME --name STORE --dir DIR [--objects N]\n"
	       "       [--threads N] [--spare K]\n\n"
	       "--threads  that replace objects until the process is killed (default 1)\n"
	       "--spare    number of this attach, from 0: where the timed allocation is linked\n",
	       program_invocation_short_name);
}

int main(int argc, char **argv)
{
	struct ops_options opts = {.keep = true, .object_bytes = OBJECT_BYTES};
	const char *command = argc > 1 ? argv[1] : "--help";
	size_t objects = 1000000, spare = 0;
	unsigned int threads = 1;

	bench_start();
	if (!strcmp(command, "--help")) {
		usage();
		return 0;
	}
	for (int i = 2; i < argc; i += 2) {
		const char *arg = argv[i], *value = argv[i + 1];

		if (!value)
			bench_die("%s lacks its value (see --help)", arg);
		if (!strcmp(arg, "--impl"))
			opts.impl = value;
		else if (!strcmp(arg, "--name"))
			opts.name = value;
		else if (!strcmp(arg, "--dir"))
			opts.dir = value;
		else if (!strcmp(arg, "--objects"))
			objects = bench_number(arg, value, 1);
		else if (!strcmp(arg, "--threads"))
			threads = (unsigned int)bench_number(arg, value, 1);
		else if (!strcmp(arg, "--spare"))
			spare = bench_number(arg, value, 0);
		else
			bench_die("%s is unknown (see --help)", arg);
	}
	if (!opts.impl || !opts.name || !opts.dir || objects < threads || spare >= SPARE_SLOTS)
		bench_die("--impl, --name and --dir are needed, and at least one object for a "
			  "thread, "
			  "and --spare below %u",
			  SPARE_SLOTS);
	opts.objects = objects;
	opts.attach = strcmp(command, "build") != 0;
	if (!strcmp(command, "build")) {
		build(&opts, objects, threads);
	} else if (!strcmp(command, "attach")) {
		attach(&opts, objects, spare, threads);
	} else if (!strcmp(command, "drop")) {
		ops_open(&opts);
		ops_close();
		return 0;
	} else {
		bench_die("%s is no command (see --help)", command);
	}
	/* The end comes from outside. */
	pthread_exit(NULL);
}
