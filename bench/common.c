/* SPDX-License-Identifier: BSD-3-Clause */
/* See common.h. Nothing here runs inside a measured loop. */
#include "common.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static cpu_set_t processors;

void bench_die(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "%s: error: ", program_invocation_short_name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

void bench_start(void)
{
	if (sched_getaffinity(0, sizeof(processors), &processors))
		bench_die("sched_getaffinity: %s", strerror(errno));
	bench_pin(0);
}

void bench_pin(unsigned int index)
{
	cpu_set_t one;
	unsigned int cpu;

	index %= (unsigned int)CPU_COUNT(&processors);
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (CPU_ISSET(cpu, &processors) && index-- == 0)
			break;
	}
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		bench_die("sched_setaffinity to processor %u: %s", cpu, strerror(errno));
}

void bench_unpin(void)
{
	if (sched_setaffinity(0, sizeof(processors), &processors))
		bench_die("sched_setaffinity: %s", strerror(errno));
}

void bench_rng_seed(struct bench_rng *rng, uint64_t which)
{
	uint64_t x = which + 1;

	/* Neighbouring numbers must give unlike states, and the state must not be 0. */
	for (int i = 0; i < 3; i++) {
		x ^= x >> 31;
		x *= 0x9e3779b97f4a7c15u;
	}
	rng->state = x ? x : 1;
}

struct bench_memory bench_memory(void)
{
	enum { PRIVATE, SHARED, HUGE_PRIVATE, HUGE_SHARED, FIELDS };
	static const char *const names[FIELDS] = {"Pss_Anon", "Pss_Shmem", "AnonHugePages",
						  "ShmemPmdMapped"};
	uint64_t kib[FIELDS] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
	FILE *f = fopen("/proc/self/smaps_rollup", "re");
	char line[256], name[32];
	uint64_t value;

	if (!f)
		bench_die("/proc/self/smaps_rollup: %s", strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%31[^:]: %" SCNu64 " kB", name, &value) != 2)
			continue;
		for (int i = 0; i < FIELDS; i++) {
			if (!strcmp(name, names[i]))
				kib[i] = value;
		}
	}
	fclose(f);
	for (int i = 0; i < FIELDS; i++) {
		if (kib[i] == UINT64_MAX)
			bench_die("/proc/self/smaps_rollup has no line %s", names[i]);
	}
	return (struct bench_memory){
		.private_bytes = kib[PRIVATE] * 1024,
		.shared_bytes = kib[SHARED] * 1024,
		.huge_bytes = (kib[HUGE_PRIVATE] + kib[HUGE_SHARED]) * 1024,
	};
}

void bench_tell(const char *name, double value)
{
	if (printf("%s %.9g\n", name, value) < 0 || fflush(stdout))
		bench_die("standard output: %s", strerror(errno));
}

void bench_tell_number(const char *name, uint64_t value)
{
	if (printf("%s %" PRIu64 "\n", name, value) < 0 || fflush(stdout))
		bench_die("standard output: %s", strerror(errno));
}

uint64_t bench_number(const char *what, const char *text, uint64_t min)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || *end || end == text || *text == '-' || value < min)
		bench_die("%s must be a whole number of at least %" PRIu64 ", not '%s'", what, min,
			  text);
	return value;
}

double bench_seconds(const char *what, const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (*end || end == text || !isfinite(value) || value <= 0)
		bench_die("%s must be a positive number of seconds, not '%s'", what, text);
	return value;
}
