/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * crashtest.h - enumerate every state in which a process can die, and recover from each.
 *
 * A memfd outlives the process that writes it, so what a dead process leaves behind is the state
 * after some instruction: the crash states of an operation are the prefixes of its stores. This
 * engine runs an operation of the release object with every store into the memfds trapped (trap.c),
 * logs them together with the system calls that change what survives (interpose.c), and then, for
 * every prefix of that log, builds the image a dead process would have left, recovers it, checks it
 * and compares its logical fingerprint with those before and after the operation (sweep.c). Every
 * prefix of the stores of the recovery itself is treated the same way, to a chosen depth.
 *
 * What survives is a set of memfds, each with contents, size and seals, and the fact whether
 * somebody outside the process (a "holder") keeps a descriptor of it: a memfd nobody keeps dies
 * with the process. All of this is in the log, so a death between memfd_create, ftruncate, sealing,
 * handing over and mapping is a crash state like any other.
 *
 * Rules for the callbacks
 * - The engine runs a scenario in a child process of its own; globals of the code under test are
 *   those of the test program at the moment of the fork. getrandom() gives the same in every run.
 * - One store is open at a time. setup() opens it and leaves it open; the operations run one after
 *   the other; close() ends it; after that recover() and close() are called in turns, thousands of
 *   times.
 * - Only one thread may run while stores are trapped, except in a switch sweep, where the engine
 *   starts the two threads by itself.
 * - The test program must be linked with interpose.c (the engine library holds it): it overrides
 *   the libc calls that create, size, seal, map, hand over, read into or write to memfds.
 */
#ifndef CRASHTEST_H
#define CRASHTEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
	CRASH_MAX_MEMS = 256,	/* memfds a scenario may ever create */
	CRASH_MAX_DEPTH = 3,	/* crashes inside recovery inside recovery ... */
	CRASH_MAX_FAILURES = 8, /* a scenario stops after this many */
	CRASH_NAME_BYTES = 64,
};

/* Which fingerprints a crash state of an operation may recover to. */
enum crash_rule {
	/* before or after; never before again once after was seen; after when the call returns. The
	 * operation must change the fingerprint. */
	CRASH_ATOMIC,
	/* the fingerprint stays what it was before the operation */
	CRASH_UNCHANGED,
	/* several atomic steps: every state passes the checker, none comes back once it was left,
	 * and the last one is after */
	CRASH_STEPS,
	/* ask struct crash_op.legal */
	CRASH_CUSTOM,
};

struct crash_verdict {
	uint64_t before;
	uint64_t after;
	uint64_t got;
	bool seen_after; /* an earlier crash state of this operation recovered to after */
	bool returned;	 /* the call had returned: the state must be durable */
};

struct crash_op {
	const char *name;
	int (*run)(void *ctx, uintptr_t arg); /* 0, anything else fails the scenario */
	uintptr_t arg;
	enum crash_rule rule;
	bool (*legal)(void *ctx, const struct crash_verdict *verdict); /* for CRASH_CUSTOM */
};

enum {
	CRASH_A_ENDS = 1u << 0,
	CRASH_B_ENDS = 1u << 1,
};

enum {
	CRASH_OTHER_BASE = 1u << 0, /* attach at another base address than the recorded one */
};

/*
 * What a dead process left behind. The descriptors belong to the engine and stay open until the
 * next recovery: duplicate what is to be closed. They are in the order in which they were kept
 * (or in reverse, see any_order).
 */
struct crash_image {
	unsigned flags;
	unsigned n_fds;
	struct {
		int fd;
		const char *name; /* given to crash_keep(), else the name of the memfd */
	} fds[CRASH_MAX_MEMS];
};

/* When does a memfd start to survive its process? */
enum crash_keep_policy {
	CRASH_KEEP_EXPLICIT, /* crash_keep(), or a successful sendmsg() with its descriptor */
	CRASH_KEEP_AT_BIRTH, /* memfd_create(): somebody has it from the first moment */
};

struct crash_scenario {
	const char *name;
	void *ctx;
	const struct crash_op *ops;
	size_t n_ops;

	int (*setup)(void *ctx);
	/* 0: recovered (ctx may also find that there is no store yet). Anything else is a failure.
	 */
	int (*recover)(void *ctx, const struct crash_image *image);
	/* Full check of the open store: 0 = broken, else a fingerprint of its logical contents,
	 * which must not depend on addresses. Called after each operation too, and after setup().
	 */
	uint64_t (*check)(void *ctx);
	void (*close)(void *ctx);
	/* Optional: use the recovered store (allocate, publish, free) and check it again; 0 = fine.
	 */
	int (*probe)(void *ctx);

	/* A switch sweep: the first two operations at the same time, on two threads. */
	bool is_switch;
	/* Optional, switch sweep: called on each of the two threads before stores are trapped. */
	int (*warm_thread)(void *ctx);

	enum crash_keep_policy keep;
	bool any_order;	 /* hand every other recovery its descriptors in reverse order */
	bool other_base; /* every other recovery gets CRASH_OTHER_BASE */
	bool exact;	 /* a nested recovery must end in the same bytes, not only fingerprint */
	bool keep_wide_stores; /* do not split stores wider than 8 bytes into words */
	bool unchanged_ok;     /* switch sweep: operations may leave the fingerprint as it was */
	bool no_block;	       /* switch sweep: it is a failure if B ever has to wait for A */
	unsigned ends; /* switch sweep: CRASH_A_ENDS, CRASH_B_ENDS: the end of the thread is part of the
			  operation */
	unsigned syscall_chunk_bytes; /* crash granularity inside read/pwrite, default 8 */
	unsigned hang_ms;	      /* no progress for this long is a failure, default 30,000 */
};

enum crash_failure_kind {
	CRASH_FAIL_NONE,
	CRASH_FAIL_SETUP,	/* setup or the operation itself failed, or did nothing */
	CRASH_FAIL_REFUSED,	/* recover() returned an error */
	CRASH_FAIL_BROKEN,	/* check() found the recovered store broken, or probe() failed */
	CRASH_FAIL_ILLEGAL,	/* a state that is neither before nor after */
	CRASH_FAIL_NOT_DURABLE, /* the call returned but its effect was lost */
	CRASH_FAIL_NESTED,	/* a crash inside recovery led to another state */
	CRASH_FAIL_DIED,	/* a signal killed the code under test */
	CRASH_FAIL_HUNG,
	CRASH_FAIL_ESCAPED,  /* a change of the memfds that the tracer did not see */
	CRASH_FAIL_UNSTABLE, /* two runs from the same state differ (switch sweep) */
	CRASH_FAIL_BLOCKED,  /* switch sweep with no_block */
};

struct crash_failure {
	enum crash_failure_kind kind;
	int op;			      /* index, -1 outside of operations */
	long prefix;		      /* records of the log applied, -1 outside */
	long nested[CRASH_MAX_DEPTH]; /* the same inside recovery, -1 = not nested */
	long switch_at;		      /* switch sweep: A stopped after this record, else -1 */
	unsigned at_flags;	      /* CRASH_OTHER_BASE if the recovery was told so */
	uint64_t before, after, got;
	int signo;
	uintptr_t signal_ip, signal_addr;
	struct crash_store {
		bool valid;
		bool syscall;
		const char *kind; /* "store", "size", "keep" ... */
		unsigned segment; /* memfds in order of creation */
		uint64_t off, old_word, new_word;
		uintptr_t ip;
	} last, next; /* the last store that was made and the first that was not */
	char what[96];
	char note[256];
};

struct crash_report {
	const char *scenario;
	size_t records;	       /* log entries of all operations */
	size_t traps;	       /* trapped instructions, silent ones included */
	size_t silent;	       /* of these: changed nothing */
	size_t crash_points;   /* distinct states of the operations */
	size_t replays;	       /* recoveries, nested ones included */
	size_t nested_replays; /* of these: after a crash inside recovery */
	size_t switches;       /* switch sweep: points at which A was stopped */
	size_t reordered;      /* of these: A had not made the same stores as in the runs before */
	size_t blocked;	       /* of these: B waited for A, so there is no such interleaving */
	uint64_t trace_ns, replay_ns;
	unsigned n_failures;
	struct crash_failure failures[CRASH_MAX_FAILURES];
	/* where the child is, for the report of a death */
	struct crash_failure at;
	char note[256];
};

struct crash_options {
	unsigned depth;	  /* nested crashes: 0 none, 1 recovery, 2 recovery of that */
	long only_prefix; /* -1 = all */
	long only_nested; /* -1 = all */
	/* 1: every crash inside every recovery. N: where a recovery makes the stores that another
	 * one has made (a long one: stores to the same pages), every N-th of them, in turns. */
	unsigned stride;
	bool split_nested; /* in recoveries too, the words of a wide store are crash points */
	bool must_fail;	   /* crash_main(): to find nothing is the failure */
	bool in_process;   /* no child process: for a debugger */
	bool dump_log;	   /* print every record with its symbol */
};

#define CRASH_OPTIONS_DEFAULT                                                 \
	(struct crash_options)                                                \
	{                                                                     \
		.depth = 1, .stride = 1, .only_prefix = -1, .only_nested = -1 \
	}

/* Runs all operations one after the other, then every crash state. Returns the failures found. */
unsigned crash_sweep(const struct crash_scenario *scenario, const struct crash_options *options,
		     struct crash_report *report);

/*
 * ops[0] is A, ops[1] is B, each on a thread of its own. For every k: stop A after its store k, run
 * the whole of B, let A finish; every state from there on is recovered. Legal are the states
 * before, A, B, A then B, B then A, with B present once it has returned, and both once A has too.
 */
unsigned crash_switch_sweep(const struct crash_scenario *scenario,
			    const struct crash_options *options, struct crash_report *report);

/* One line of figures; then, for each failure, what happened where and how to see it again. */
void crash_report_print(const struct crash_report *report);
const char *crash_failure_name(enum crash_failure_kind kind);

/*
 * From a test's main(): runs again with the libc settings that keep memcpy out of `rep movs` (one
 * trap for each byte) unless --rep-movs is given. Must come before anything else.
 */
void crash_init(int argc, char **argv);

/* Command line (--help) around a list of scenarios, crash_init() included; returns the exit status. */
int crash_main(int argc, char **argv, const struct crash_scenario *scenarios, size_t n_scenarios);

/* For the code under test or its test backend; harmless when nothing is traced. */
void crash_keep(int fd, const char *name); /* somebody outside has this memfd now */
void crash_drop(int fd);		   /* and now nobody has it any more */
void crash_event(const char *what);	   /* a mark in the dumped log; must stay valid */
/* Why check() or recover() failed; kept with the failure. */
void crash_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
