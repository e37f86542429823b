/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Plays a store for the tests of the `luo` backend: descriptors with a pattern that tells store,
 * token and generation, given to the backend by the contract of handover.h, and looked at again by
 * whoever opens the store next. What is not as expected ends the program with a message.
 */
#ifndef TEST_LUO_PLAY_H
#define TEST_LUO_PLAY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>

#include "handover.h"

enum { BYTES = 64 << 10, TOKENS = 3, ALL = (1 << TOKENS) - 1, STEPS_MAX = 200 };

#define CHECK(condition)                                                                      \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			fprintf(stderr, "luo-handover: line %d: %s failed; last error: %s\n", \
				__LINE__, #condition, pv_last_error());                       \
			exit(1);                                                              \
		}                                                                             \
	} while (0)

extern const struct pv_options play_writer, play_reader;

/** Overwrite the descriptor of a token with the pattern of a generation. */
void play_fill(int fd, const char *store, uint64_t token, unsigned int generation);

/** A handle of the `luo` backend; nothing is fetched. */
struct pvi_handover *play_open(const char *store);
/** A new store of TOKENS descriptors, generation 0. */
struct pvi_handover *play_make(const char *store);
/** Fetch by h, which must be right in everything: tokens is a bit mask. */
void play_fetch(struct pvi_handover *h, const char *store, uint64_t tokens, unsigned int generation,
		bool from_kexec);
/** Fetch what a death has left: these tokens, and perhaps those of `more`. */
void play_fetch_any(struct pvi_handover *h, const char *store, uint64_t tokens, uint64_t more);
/** As play_fetch(), on a new handle, which must be in this state. */
struct pvi_handover *play_expect(const char *store, uint64_t tokens, unsigned int generation,
				 bool from_kexec, enum pv_handover_state state);
/** A fetch that must fail so. Prints the message. */
void play_expect_error(const char *store, int error);
/** Keep a new descriptor, generation 0. */
void play_keep(struct pvi_handover *h, const char *store, uint64_t token);
/** Prepare all that is kept. */
int play_prepare(struct pvi_handover *h);
/** Is the descriptor of the token free of any session? Then a hole can be punched. */
bool play_thawed(struct pvi_handover *h, uint64_t token);
/** The holder's process. */
pid_t play_holder(const char *store);

/** Arm STEP_KILL at this step, for the store's holder. */
void play_kill_holder_at(const char *store, unsigned int step);

/** Runs work(store) in a child that dies at this step (steps.h; 0: never). True: it lived to the
 *  end, and had success. */
bool play_lives(int (*work)(const char *store), const char *store, unsigned int step);
/* For that; stores of TOKENS descriptors in generation 0. */
int play_do_prepare(const char *store);
int play_do_cancel(const char *store);
int play_do_fetch(const char *store);
int play_do_finish(const char *store);

#endif
