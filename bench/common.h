/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What every benchmark program uses: time, processor pinning, random numbers, memory in use, and
 * the form in which a program tells its figures ("NAME VALUE", one a line; see bench/benchlib.py,
 * which repeats, takes medians and writes the JSON rows).
 *
 * A program measures one side once. Both sides of a comparison are built from the same source; only
 * the header with the operations differs (ops_*.h).
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stdint.h>
#include <time.h>

#define BENCH_CACHE_LINE 64

/** A reference to an object, in a table that the operations provide. 0: none. */
typedef uint64_t bench_slot;

static inline uint64_t bench_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * Marsaglia's xorshift: three shifts, no memory beyond the state, which stays in a register. The
 * same sequence for each side.
 */
struct bench_rng {
	uint64_t state;
};

static inline uint64_t bench_random(struct bench_rng *rng)
{
	uint64_t x = rng->state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	rng->state = x;
	return x;
}

/** A number below n, which is at most 2^32. */
static inline uint64_t bench_random_below(struct bench_rng *rng, uint64_t n)
{
	return (bench_random(rng) >> 32) * n >> 32;
}

/** The sequence number `which`; any number gives a usable state. */
void bench_rng_seed(struct bench_rng *rng, uint64_t which);

/** First call of main(): notes which processors the process may use, and pins to the first. */
void bench_start(void);
/** Run the calling thread on the index-th of those processors, modulo their number. */
void bench_pin(unsigned int index);
/** Let the calling thread, and those that it will start, run on any of them. */
void bench_unpin(void);

/** Memory that this process has taken: pages of its own, and pages of memfds and files in /dev/shm
 *  that it has mapped (Pss of smaps_rollup). Pages of programs and libraries do not count. */
struct bench_memory {
	uint64_t private_bytes;
	uint64_t shared_bytes;
	uint64_t huge_bytes; /* of both, mapped by huge pages */
};
struct bench_memory bench_memory(void);

/** Tell a figure. */
void bench_tell(const char *name, double value);
void bench_tell_number(const char *name, uint64_t value);

/** Print the message and exit with status 1: a benchmark that cannot measure says so. */
void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn, cold));

/** Parse a whole number of at least `min`, or die naming `what`. */
uint64_t bench_number(const char *what, const char *text, uint64_t min);
/** Parse a positive number of seconds, or die. */
double bench_seconds(const char *what, const char *text);

#endif
