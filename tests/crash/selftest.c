/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * selftest.c - does the engine find bugs? Built once for each TOY_BUG. The sound toy must pass
 * every scenario; a build with a bug must fail the scenarios that the table names, in the way it
 * names, and pass all others. Arguments other than those of crash_main() are not needed: with any,
 * this is an ordinary sweep of this build, for looking at a failure.
 */
#include <stdio.h>
#include <string.h>
#include "crashtest.h"
#include "toy.h"

static struct toy toy;

static void keep(int fd)
{
	crash_keep(fd, NULL);
}

static int set_up_empty(void *ctx)
{
	toy.open = false;
	return 0;
}

static int set_up(void *ctx)
{
	int rc = toy_create(&toy);

	for (uint64_t key = 1; rc == 0 && key <= 5; key++)
		rc = toy_put(&toy, 0, key, key * 100);
	return rc;
}

static int recover(void *ctx, const struct crash_image *image)
{
	struct toy_fds fds = {.n = image->n_fds};

	for (unsigned i = 0; i < image->n_fds; i++)
		fds.fds[i] = image->fds[i].fd;
	return toy_recover(&toy, &fds, image->flags & CRASH_OTHER_BASE);
}

static uint64_t check(void *ctx)
{
	uint64_t fingerprint = toy_check(&toy);

	if (!fingerprint)
		crash_note("the number of live objects or a segment's head is wrong");
	return fingerprint;
}

static void close_toy(void *ctx)
{
	toy_close(&toy);
}

static int probe(void *ctx)
{
	uint64_t before = toy_check(&toy);

	if (!toy.open || toy.n_segments == 0)
		return 0;
	if (toy_put(&toy, 0, 999, 1) || toy_put(&toy, 1, 998, 2) || toy_remove(&toy, 0, 999) ||
	    toy_remove(&toy, 1, 998))
		return -1;
	return toy_check(&toy) == before ? 0 : -1;
}

static int op_create(void *ctx, uintptr_t arg)
{
	return toy_create(&toy);
}

static int op_put(void *ctx, uintptr_t key)
{
	return toy_put(&toy, key & 1, key, key * 1000 + 7);
}

static int op_remove(void *ctx, uintptr_t key)
{
	return toy_remove(&toy, 0, key);
}

static int op_swap(void *ctx, uintptr_t key)
{
	return toy_swap(&toy, 0, key, key + 1);
}

static int op_rename(void *ctx, uintptr_t key)
{
	return toy_rename(&toy, 1, key, key + 100, 5);
}

static int op_grow(void *ctx, uintptr_t arg)
{
	return toy_grow(&toy);
}

static int op_look(void *ctx, uintptr_t arg)
{
	return toy_check(&toy) ? 0 : -1;
}

static int op_two_puts(void *ctx, uintptr_t key)
{
	int rc = op_put(ctx, key);

	return rc ? rc : op_put(ctx, key + 1);
}

static const struct crash_op create_ops[] = {
	{"create", op_create, 0, CRASH_STEPS, NULL},
};
static const struct crash_op put_ops[] = {
	{"put new", op_put, 11, CRASH_ATOMIC, NULL},
	{"look", op_look, 0, CRASH_UNCHANGED, NULL},
	{"put replaces", op_put, 3, CRASH_ATOMIC, NULL},
	{"remove", op_remove, 2, CRASH_ATOMIC, NULL},
	{"two puts", op_two_puts, 20, CRASH_STEPS, NULL},
};
static const struct crash_op swap_ops[] = {
	{"swap", op_swap, 1, CRASH_ATOMIC, NULL},
	{"swap again", op_swap, 3, CRASH_ATOMIC, NULL},
};
static const struct crash_op rename_ops[] = {
	{"rename", op_rename, 4, CRASH_ATOMIC, NULL},
};
static const struct crash_op grow_ops[] = {
	{"grow", op_grow, 0, CRASH_ATOMIC, NULL},
	{"put", op_put, 12, CRASH_ATOMIC, NULL},
	{"grow again", op_grow, 0, CRASH_ATOMIC, NULL},
};
static const struct crash_op pair_ops[] = {
	{"A puts", op_put, 30, CRASH_ATOMIC, NULL},
	{"B puts", op_put, 31, CRASH_ATOMIC, NULL},
};

/* Only one bug is there to be waited for. */
#define HANG_MS (TOY_BUG == TOY_BUG_RECOVERY_HANGS ? 500 : 20000)

#define SCENARIO(title, operations, set_up_as, ...)                                            \
	{                                                                                  \
		.name = title, .ops = operations,                                          \
		.n_ops = sizeof(operations) / sizeof((operations)[0]), .setup = set_up_as, \
		.recover = recover, .check = check, .close = close_toy, .probe = probe,    \
		.any_order = true, .other_base = true, .hang_ms = HANG_MS, __VA_ARGS__     \
	}

enum { CREATE, PUT, SWAP, RENAME, GROW, PAIR, N_SCENARIOS };

static const struct crash_scenario scenarios[N_SCENARIOS] = {
	[CREATE] = SCENARIO("create", create_ops, set_up_empty),
	[PUT] = SCENARIO("put", put_ops, set_up),
	[SWAP] = SCENARIO("swap", swap_ops, set_up),
	[RENAME] = SCENARIO("rename", rename_ops, set_up),
	[GROW] = SCENARIO("grow", grow_ops, set_up),
	[PAIR] = SCENARIO("pair", pair_ops, set_up, .is_switch = true),
};

#define ON(name) (1u << (name))

/* Where each bug must be seen, and as what. */
static const struct {
	unsigned fails; /* scenarios */
	enum crash_failure_kind kind;
	enum crash_failure_kind or_kind;
} expected[TOY_N_BUGS + 1] = {
	[TOY_BUG_EARLY_COMMIT] = {ON(PUT) | ON(RENAME) | ON(GROW) | ON(PAIR), CRASH_FAIL_BROKEN,
				  CRASH_FAIL_ILLEGAL},
	[TOY_BUG_LOST_GUARD] = {ON(SWAP), CRASH_FAIL_ILLEGAL, 0},
	[TOY_BUG_RAW_PAIR] = {ON(SWAP), CRASH_FAIL_ILLEGAL, 0},
	[TOY_BUG_RECOVER_TWICE] = {ON(SWAP), CRASH_FAIL_NESTED, 0},
	[TOY_BUG_KEEP_LATE] = {ON(CREATE) | ON(GROW), CRASH_FAIL_REFUSED, 0},
	[TOY_BUG_ESCAPE] = {ON(PUT) | ON(GROW) | ON(PAIR), CRASH_FAIL_ESCAPED, 0},
	[TOY_BUG_TORN_WRITE] = {ON(CREATE) | ON(GROW), CRASH_FAIL_REFUSED, 0},
	[TOY_BUG_WIDE_STORE] = {ON(RENAME), CRASH_FAIL_ILLEGAL, 0},
	[TOY_BUG_RECOVERY_DIES] = {ON(PUT) | ON(SWAP) | ON(RENAME) | ON(GROW) | ON(PAIR),
				   CRASH_FAIL_DIED, 0},
	[TOY_BUG_RECOVERY_HANGS] = {ON(PUT) | ON(SWAP) | ON(RENAME) | ON(GROW) | ON(PAIR),
				    CRASH_FAIL_HUNG, 0},
	[TOY_BUG_LAZY_COMMIT] = {ON(SWAP), CRASH_FAIL_NOT_DURABLE, 0},
	[TOY_BUG_LANE_LEFT] = {ON(PUT) | ON(SWAP) | ON(RENAME) | ON(GROW) | ON(PAIR),
			       CRASH_FAIL_BROKEN, 0},
	[TOY_BUG_SHARED_LANE] = {ON(PAIR), CRASH_FAIL_ILLEGAL, CRASH_FAIL_BROKEN},
	[TOY_BUG_SEAL_LATE] = {ON(CREATE) | ON(GROW), CRASH_FAIL_REFUSED, 0},
	[TOY_BUG_SYSCALL_WRITE] = {ON(RENAME), CRASH_FAIL_ILLEGAL, 0},
};

static bool as_expected(unsigned scenario, const struct crash_report *report)
{
	bool must_fail = expected[TOY_BUG].fails & ON(scenario);

	if (!must_fail)
		return report->n_failures == 0 && report->replays > 0;
	for (unsigned i = 0; i < report->n_failures; i++) {
		enum crash_failure_kind kind = report->failures[i].kind;

		if (kind == expected[TOY_BUG].kind || (kind && kind == expected[TOY_BUG].or_kind))
			return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	static struct crash_report report;
	struct crash_options options = CRASH_OPTIONS_DEFAULT;
	int wrong = 0;

	crash_init(argc, argv);
	toy_keep = keep;
	toy_drop = crash_drop;
	if (argc > 1)
		return crash_main(argc, argv, scenarios, N_SCENARIOS);
	for (unsigned i = 0; i < N_SCENARIOS; i++) {
		options.depth = scenarios[i].is_switch ? 0 : 1;
		if (scenarios[i].is_switch)
			crash_switch_sweep(&scenarios[i], &options, &report);
		else
			crash_sweep(&scenarios[i], &options, &report);
		crash_report_print(&report);
		if (!as_expected(i, &report)) {
			wrong++;
			printf("# the line above is not what bug %d must give\n", TOY_BUG);
		}
	}
	return wrong != 0;
}
