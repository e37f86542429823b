/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * For tests of the handover backends: a runtime directory that is made for each test and cleared
 * away after it, memfds with a recognisable content, and the holder's process.
 */
#ifndef TEST_HANDOVER_SUPPORT_H
#define TEST_HANDOVER_SUPPORT_H

/* cmocka.h wants these four first */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdbool.h>
#include <sys/types.h>

#include "handover.h"
#include "holder_client.h"

#define STORE "test"

/** The directory of this test; PV_HANDOVER_HOLDER. */
extern struct pv_options test_options;

int test_setup(void **state);
/** Ends the test's holders and removes the directory. */
int test_teardown(void **state);

/** A sealed memfd whose first word says its number. */
int test_memfd(uint64_t number);
uint64_t test_number(int fd);

/** A handle on STORE, nothing fetched. */
struct pvi_handover *test_open(void);
/** Fetch, which must give exactly n descriptors of tokens 0..n-1 and these numbers. */
void test_expect(struct pvi_handover *h, unsigned int n, const uint64_t *numbers);
/** Keep a fresh memfd of this number; returns what keep() returns. */
int test_keep(struct pvi_handover *h, uint64_t token, uint64_t number);
void test_release(struct pvi_fd *fds, unsigned int n);

/** Connect to STORE's holder, which must be there. */
int test_dial(void);
/** Its process; 0: there is none. */
pid_t test_holder_pid(void);
/** Number of descriptors that a process has open. */
unsigned int test_open_files(pid_t pid);
/** The same once it has seen the end of connections that are over, which takes a moment. */
unsigned int test_open_files_at_rest(pid_t pid);
/** Wait until it has that many: it may not have seen the end of a connection yet. */
bool test_open_files_become(pid_t pid, unsigned int n);
/** Wait until a process is gone (or is a zombie); false: it is still there after that time. */
bool test_gone(pid_t pid, int ms);

/** Fork; the child gets 0. The parent waits with test_join() for an exit of status 0. */
pid_t test_fork(void);
void test_join(pid_t child);
/** A process for which nothing is kept yet keeps 10, 11 and 12 under the tokens 0, 1 and 2, replaces and drops some
 *  on the way, and is killed. */
void test_keep_and_die(void);
/** In such a child: end, with a message if the condition does not hold. */
#define TEST_CHILD_CHECK(condition)                                                           \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			print_error("%s:%d: %s failed: %s\n", __FILE__, __LINE__, #condition, \
				    pv_last_error());                                         \
			_exit(1);                                                             \
		}                                                                             \
	} while (0)

#endif
