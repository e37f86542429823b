/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What does allocating and freeing cost, and how much memory does it take?
 *
 * One run is one workload on one side (ops.h). It tells the rate, counting an allocation together
 * with a free as one operation, and the memory that the process has when the work is done, all
 * threads still being there. The workloads:
 *
 *   replace-64        replace a random one of --live objects by a new one of 64 bytes
 *   replace-16-1024   the same with sizes evenly spread from 16 to 1024 bytes
 *   overhead-64       allocate --live objects of 64 bytes, once; tells the memory only
 *
 * four with the parameters that the Ralloc paper (Cai, Wen, Beadle, Kjellqvist, Hedayati, Scott:
 * Understanding and Optimizing Persistent Memory Allocation, ISMM 2020) gives them:
 *
 *   threadtest        each thread allocates 100,000 objects of 64 bytes, then frees them, and again
 *   larson            each thread replaces random ones of 1,000 objects of 64 to 400 bytes, and
 *                     after a while hands what it has to a new thread, and ends
 *   prodcon           of each two threads one allocates objects of 64 bytes and puts them into a
 *                     queue, the other takes them out and frees them; one thread alone takes turns
 *   shbench           many objects of 64 to 400 bytes, small ones more often, freed in several
 *                     orders
 *
 * and two that tell what of a figure is the benchmark's own work, the same on every side:
 *
 *   loop-64           replace-64 without allocator: a random slot, a store into it
 *   loop-16-1024      and of replace-16-1024, with the random size
 *
 * Every new object gets its first 8 bytes written.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include OPS_HEADER

#define CHECK_EVERY 1024u /* operations between two looks at the clock */

#define THREADTEST_OBJECTS 100000u

#define LARSON_OBJECTS	  1000u
#define LARSON_GENERATION 1000000u /* operations until a thread is replaced */

#define PRODCON_QUEUE 4096u /* slots of a queue, a power of two */
#define PRODCON_LAG   32u   /* items after which a side tells the other how far it is */
#define PRODCON_BATCH 1024u /* items of a turn, with a single thread */

#define SHBENCH_OBJECTS 5003u /* prime, so that every stride visits all */
#define SHBENCH_STRIDE	1709u
#define SHBENCH_KEEP	8u /* one in so many objects outlives a round */

struct run;

/** One thread's part of a run. */
struct worker {
	struct run *run;
	pthread_t thread;
	unsigned int index;
	struct bench_rng rng;
	bench_slot *slots;
	size_t nslots;
	uint64_t deadline_ns;
	uint64_t start_ns;
	uint64_t end_ns;
	uint64_t ops;
} __attribute__((aligned(2 * BENCH_CACHE_LINE)));

struct workload {
	const char *name;
	size_t (*slots)(const struct run *run); /* for each thread */
	size_t object_bytes;			/* of the largest */
	void (*prepare)(struct worker *w);	/* may be NULL */
	void (*work)(struct worker *w);		/* until the deadline; counts w->ops */
};

/** The queue between two threads of prodcon: the slots, and how far each side is. */
struct queue {
	_Alignas(2 * BENCH_CACHE_LINE) uint64_t head; /* items put in */
	_Alignas(2 * BENCH_CACHE_LINE) uint64_t tail; /* items taken out */
	_Alignas(2 * BENCH_CACHE_LINE) int ended;     /* no more will be put in */
};

struct run {
	const struct workload *workload;
	unsigned int threads;
	uint64_t live;
	double seconds;
	struct worker *workers;
	struct queue *queues;
	pthread_barrier_t barrier;
	struct bench_memory memory; /* at the end of the work */
};

static bool time_left(struct worker *w)
{
	return bench_now_ns() < w->deadline_ns;
}

/* ---- replace -------------------------------------------------------------------------------- */

static size_t replace_slots(const struct run *run)
{
	return run->live / run->threads;
}

static inline size_t size_16_1024(struct bench_rng *rng)
{
	return 16 + bench_random_below(rng, 1024 - 16 + 1);
}

static void replace_64_prepare(struct worker *w)
{
	for (size_t i = 0; i < w->nslots; i++)
		ops_put(&w->slots[i], 64, i);
}

static void replace_64(struct worker *w)
{
	do {
		for (unsigned int k = 0; k < CHECK_EVERY; k++)
			ops_replace(&w->slots[bench_random_below(&w->rng, w->nslots)], 64, k);
		w->ops += CHECK_EVERY;
	} while (time_left(w));
}

static void replace_mixed_prepare(struct worker *w)
{
	for (size_t i = 0; i < w->nslots; i++)
		ops_put(&w->slots[i], size_16_1024(&w->rng), i);
}

static void replace_mixed(struct worker *w)
{
	do {
		for (unsigned int k = 0; k < CHECK_EVERY; k++)
			ops_replace(&w->slots[bench_random_below(&w->rng, w->nslots)],
				    size_16_1024(&w->rng), k);
		w->ops += CHECK_EVERY;
	} while (time_left(w));
}

/* ---- the loops alone ---- */

static void loop_64(struct worker *w)
{
	do {
		for (unsigned int k = 0; k < CHECK_EVERY; k++)
			__atomic_store_n(&w->slots[bench_random_below(&w->rng, w->nslots)], k,
					 __ATOMIC_RELEASE);
		w->ops += CHECK_EVERY;
	} while (time_left(w));
}

static void loop_mixed(struct worker *w)
{
	do {
		for (unsigned int k = 0; k < CHECK_EVERY; k++)
			__atomic_store_n(&w->slots[bench_random_below(&w->rng, w->nslots)],
					 size_16_1024(&w->rng), __ATOMIC_RELEASE);
		w->ops += CHECK_EVERY;
	} while (time_left(w));
}

/* ---- overhead ------------------------------------------------------------------------------- */

static void nothing(struct worker *w)
{
}

/* ---- threadtest ----------------------------------------------------------------------------- */

static size_t threadtest_slots(const struct run *run)
{
	return THREADTEST_OBJECTS;
}

static void threadtest(struct worker *w)
{
	do {
		for (size_t i = 0; i < w->nslots; i++)
			ops_put(&w->slots[i], 64, i);
		for (size_t i = 0; i < w->nslots; i++)
			ops_drop(&w->slots[i]);
		w->ops += w->nslots;
	} while (time_left(w));
}

/* ---- larson --------------------------------------------------------------------------------- */

static size_t larson_slots(const struct run *run)
{
	return LARSON_OBJECTS;
}

static inline size_t size_64_400(struct bench_rng *rng)
{
	return 64 + bench_random_below(rng, 400 - 64 + 1);
}

static void larson_prepare(struct worker *w)
{
	for (size_t i = 0; i < w->nslots; i++)
		ops_put(&w->slots[i], size_64_400(&w->rng), i);
}

static void *larson_generation(void *arg)
{
	struct worker *w = arg;

	bench_pin(w->index);
	for (unsigned int done = 0; done < LARSON_GENERATION && time_left(w); done += CHECK_EVERY) {
		for (unsigned int k = 0; k < CHECK_EVERY; k++)
			ops_replace(&w->slots[bench_random_below(&w->rng, w->nslots)],
				    size_64_400(&w->rng), k);
		w->ops += CHECK_EVERY;
	}
	return NULL;
}

/* The thread itself is the first generation; it then only waits for the later ones, each of which
 * begins when its predecessor has ended. */
static void larson(struct worker *w)
{
	larson_generation(w);
	while (time_left(w)) {
		pthread_t next;
		int err = pthread_create(&next, NULL, larson_generation, w);

		if (!err)
			err = pthread_join(next, NULL);
		if (err)
			bench_die("a new thread: %s", strerror(err));
	}
}

/* ---- prodcon -------------------------------------------------------------------------------- */

static size_t prodcon_slots(const struct run *run)
{
	return PRODCON_QUEUE;
}

static void pause_for_other(unsigned int *spins)
{
	if (++*spins % 1024 == 0) /* it may not be running at all */
		sched_yield();
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

static void produce(struct worker *w, struct queue *q)
{
	uint64_t head = q->head, tail = __atomic_load_n(&q->tail, __ATOMIC_ACQUIRE);
	unsigned int spins = 0;

	for (;;) {
		while (head - tail == w->nslots) {
			pause_for_other(&spins);
			tail = __atomic_load_n(&q->tail, __ATOMIC_ACQUIRE);
		}
		ops_put(&w->slots[head % PRODCON_QUEUE], 64, head);
		if (++head % PRODCON_LAG == 0) {
			__atomic_store_n(&q->head, head, __ATOMIC_RELEASE);
			if (head % CHECK_EVERY == 0 && !time_left(w))
				break;
		}
	}
	__atomic_store_n(&q->ended, 1, __ATOMIC_RELEASE);
}

static void consume(struct worker *w, struct queue *q)
{
	uint64_t tail = q->tail, head = tail, first = tail;
	bench_slot *slots = w[-1].slots;
	unsigned int spins = 0;

	for (;;) {
		while (head == tail) {
			int ended = __atomic_load_n(&q->ended, __ATOMIC_ACQUIRE);

			head = __atomic_load_n(&q->head, __ATOMIC_ACQUIRE);
			if (head == tail && ended)
				goto out;
			pause_for_other(&spins);
		}
		ops_drop(&slots[tail % PRODCON_QUEUE]);
		if (++tail % PRODCON_LAG == 0)
			__atomic_store_n(&q->tail, tail, __ATOMIC_RELEASE);
	}
out:
	__atomic_store_n(&q->tail, tail, __ATOMIC_RELEASE);
	w->ops += tail - first;
}

static void prodcon(struct worker *w)
{
	struct queue *q = &w->run->queues[w->index / 2];

	if (w->run->threads > 1) {
		if (w->index % 2 == 0)
			produce(w, q);
		else
			consume(w, q);
		return;
	}
	do {
		for (unsigned int i = 0; i < PRODCON_BATCH; i++)
			ops_put(&w->slots[i], 64, i);
		for (unsigned int i = 0; i < PRODCON_BATCH; i++)
			ops_drop(&w->slots[i]);
		w->ops += PRODCON_BATCH;
	} while (time_left(w));
}

/* ---- shbench -------------------------------------------------------------------------------- */

static size_t shbench_slots(const struct run *run)
{
	return SHBENCH_OBJECTS;
}

/* The density falls with the size: the square of an even distribution. */
static inline size_t size_small_often(struct bench_rng *rng)
{
	uint64_t u = bench_random(rng) >> 48;

	return 64 + ((400 - 64 + 1) * (u * u >> 16) >> 16);
}

static void shbench_round(struct worker *w, uint64_t round)
{
	size_t at, n = w->nslots;

	for (size_t i = 0; i < n; i++) {
		if (!w->slots[i])
			ops_put(&w->slots[i], size_small_often(&w->rng), i);
	}
	for (size_t i = 0; i < n; i++) {
		switch (round % 3) {
		case 0:
			at = i;
			break;
		case 1:
			at = n - 1 - i;
			break;
		default:
			at = i * SHBENCH_STRIDE % n;
			break;
		}
		if ((at + round) % SHBENCH_KEEP == 0)
			continue;
		ops_drop(&w->slots[at]);
		w->ops++;
	}
}

static void shbench(struct worker *w)
{
	uint64_t round = 0;

	do {
		shbench_round(w, round++);
	} while (time_left(w));
}

/* ---- a run ---------------------------------------------------------------------------------- */

static const struct workload workloads[] = {
	{"replace-64", replace_slots, 64, replace_64_prepare, replace_64},
	{"replace-16-1024", replace_slots, 1024, replace_mixed_prepare, replace_mixed},
	{"overhead-64", replace_slots, 64, replace_64_prepare, nothing},
	{"threadtest", threadtest_slots, 64, NULL, threadtest},
	{"larson", larson_slots, 400, larson_prepare, larson},
	{"prodcon", prodcon_slots, 64, NULL, prodcon},
	{"shbench", shbench_slots, 400, NULL, shbench},
	{"loop-64", replace_slots, 64, NULL, loop_64},
	{"loop-16-1024", replace_slots, 1024, NULL, loop_mixed},
};

static void wait_for_all(struct worker *w)
{
	int err = pthread_barrier_wait(&w->run->barrier);

	if (err && err != PTHREAD_BARRIER_SERIAL_THREAD)
		bench_die("pthread_barrier_wait: %s", strerror(err));
}

static void work_for(struct worker *w, double seconds)
{
	wait_for_all(w);
	w->ops = 0;
	w->start_ns = bench_now_ns();
	w->deadline_ns = w->start_ns + (uint64_t)(seconds * 1e9);
	w->run->workload->work(w);
	w->end_ns = bench_now_ns();
	wait_for_all(w);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	const struct workload *workload = w->run->workload;

	bench_pin(w->index);
	if (workload->prepare)
		workload->prepare(w);
	/* Caches, branch predictors and the allocator's own caches settle in the first part. */
	work_for(w, w->run->seconds / 8);
	if (w->index % 2 == 0 && w->run->queues)
		w->run->queues[w->index / 2].ended = 0;
	work_for(w, w->run->seconds);
	/* While all threads are there, with whatever they hold ready, as in a program that goes on.
	 */
	if (w->index == 0)
		w->run->memory = bench_memory();
	wait_for_all(w);
	return NULL;
}

/* Memory is what the process has, not what it took since its beginning: some allocators take much
 * of theirs before main(). The table of slots is the benchmark's own, and the same on every side.
 */
static void tell(const struct run *run, size_t total_slots)
{
	uint64_t tables = total_slots * sizeof(bench_slot);
	double mops = 0;

	for (unsigned int i = 0; i < run->threads; i++) {
		const struct worker *w = &run->workers[i];

		mops += (double)w->ops * 1e3 / (double)(w->end_ns - w->start_ns);
	}
	if (run->workload->work == nothing)
		bench_tell_number("asked", run->live * 64);
	else
		bench_tell("mops", mops);
	bench_tell_number("bytes", run->memory.private_bytes + run->memory.shared_bytes - tables);
	bench_tell_number("shared", run->memory.shared_bytes);
	bench_tell_number("huge", run->memory.huge_bytes);
}

static void run_workload(struct run *run, const struct ops_options *opts)
{
	size_t each = run->workload->slots(run), total = each * run->threads;
	bench_slot *table;

	ops_open(opts);
	table = ops_table(total);
	memset(table, 0, total * sizeof(bench_slot)); /* all of it has memory, on every side */
	run->workers = aligned_alloc(_Alignof(struct worker), run->threads * sizeof(struct worker));
	if (run->workload->work == prodcon && run->threads > 1)
		run->queues = aligned_alloc(_Alignof(struct queue),
					    run->threads / 2 * sizeof(struct queue));
	if (!run->workers || (run->workload->work == prodcon && run->threads > 1 && !run->queues))
		bench_die("no memory for %u threads", run->threads);
	memset(run->workers, 0, run->threads * sizeof(struct worker));
	if (run->queues)
		memset(run->queues, 0, run->threads / 2 * sizeof(struct queue));
	for (unsigned int i = 0; i < run->threads; i++) {
		struct worker *w = &run->workers[i];
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
	for (unsigned int i = 0; i < run->threads; i++)
		pthread_join(run->workers[i].thread, NULL);
	tell(run, total);
	ops_close();
}

static void usage(void)
{
	printf("usage: %s WORKLOAD --impl NAME [--threads N] [--live N] [--seconds S] [--dir "
	       "DIR]\n\n"
	       "Measures once and prints figures, one a line: NAME VALUE. scripts/bench "
	       "compares.\n\n"
	       "workloads:",
	       program_invocation_short_name);
	for (size_t i = 0; i < sizeof(workloads) / sizeof(workloads[0]); i++)
		printf(" %s", workloads[i].name);
	putchar('\n');
}

static void parse(int argc, char **argv, struct run *run, struct ops_options *opts)
{
	for (int i = 1; i < argc; i++) {
		const char *arg = argv[i], *value = i + 1 < argc ? argv[i + 1] : NULL;

		if (!strcmp(arg, "--help")) {
			usage();
			exit(0);
		}
		if (arg[0] != '-') {
			for (size_t k = 0; k < sizeof(workloads) / sizeof(workloads[0]); k++) {
				if (!strcmp(arg, workloads[k].name))
					run->workload = &workloads[k];
			}
			if (!run->workload)
				bench_die("there is no workload %s (see --help)", arg);
			continue;
		}
		if (!value)
			bench_die("%s is unknown or lacks its value (see --help)", arg);
		if (!strcmp(arg, "--impl"))
			opts->impl = value;
		else if (!strcmp(arg, "--threads"))
			run->threads = (unsigned int)bench_number(arg, value, 1);
		else if (!strcmp(arg, "--live"))
			run->live = bench_number(arg, value, 1);
		else if (!strcmp(arg, "--seconds"))
			run->seconds = bench_seconds(arg, value);
		else if (!strcmp(arg, "--dir"))
			opts->dir = value;
		else
			bench_die("%s is unknown (see --help)", arg);
		i++;
	}
	if (!run->workload || !opts->impl)
		bench_die("a workload and --impl are needed (see --help)");
	if (run->threads > 1 && run->threads % 2 && !strcmp(run->workload->name, "prodcon"))
		bench_die("prodcon needs one thread or pairs of threads, not %u", run->threads);
}

int main(int argc, char **argv)
{
	struct run run = {.threads = 1, .live = 100000, .seconds = 1};
	struct ops_options opts = {.name = "bench-alloc"};

	bench_start();
	parse(argc, argv, &run, &opts);
	opts.object_bytes = run.workload->object_bytes;
	opts.objects = run.workload->slots(&run) * run.threads;
	if (pthread_barrier_init(&run.barrier, NULL, run.threads))
		bench_die("pthread_barrier_init failed");
	run_workload(&run, &opts);
	free(run.queues);
	free(run.workers);
	return 0;
}
