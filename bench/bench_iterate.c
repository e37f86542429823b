/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How long does it take to visit every object of a type?
 *
 * --objects objects of 64 bytes are made, in a table, and then visited by what the side has for it
 * (ops_visit() in ops.h): each object's first 8 bytes are read and added up, and the sum is
 * compared with what it must be. Told is the time of one such pass, after one that is not measured.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include OPS_HEADER

#define OBJECT_BYTES 64u

static double visit_all(uint64_t objects)
{
	uint64_t before = bench_now_ns(), n = 0, sum = ops_visit(&n), after = bench_now_ns();

	if (n != objects || sum != objects * (objects - 1) / 2)
		bench_die("%llu objects with the sum %llu were visited", (unsigned long long)n,
			  (unsigned long long)sum);
	return (double)(after - before) / 1e6;
}

int main(int argc, char **argv)
{
	struct ops_options opts = {.object_bytes = OBJECT_BYTES, .name = "bench-iterate"};
	uint64_t objects = 1000000;
	bench_slot *table;

	bench_start();
	for (int i = 1; i < argc; i += 2) {
		const char *arg = argv[i], *value = argv[i + 1];

		if (!strcmp(arg, "--help")) {
			printf("usage: %s --impl NAME [--objects N] [--dir DIR]\n\n"
			       "Measures once and prints \"ms VALUE\". scripts/bench compares.\n",
			       program_invocation_short_name);
			return 0;
		}
		if (!value)
			bench_die("%s lacks its value (see --help)", arg);
		if (!strcmp(arg, "--impl"))
			opts.impl = value;
		else if (!strcmp(arg, "--objects"))
			objects = bench_number(arg, value, 1);
		else if (!strcmp(arg, "--dir"))
			opts.dir = value;
		else
			bench_die("%s is unknown (see --help)", arg);
	}
	if (!opts.impl)
		bench_die("--impl is needed (see --help)");
	opts.objects = objects;
	ops_open(&opts);
	table = ops_table(objects);
	for (uint64_t i = 0; i < objects; i++)
		ops_put(&table[i], OBJECT_BYTES, i);
	visit_all(objects);
	bench_tell("ms", visit_all(objects));
	ops_close();
	return 0;
}
