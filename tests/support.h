/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the unit tests share: a keeper of descriptors, crashes inside one process, walks that
 * collect what is live, and assertions that show the library's message.
 *
 * A crash. What a killed process leaves behind is the contents of its memfds. keeper_crash() copies
 * them, as they are at that instant, into fresh memfds, and these become the image that the next
 * open attaches. Only then is the old handle closed: its window still stands at the store's base,
 * and the next open wants the same addresses. Whatever the close does to the old memfds goes
 * nowhere. (Where a process really has to die, a test forks; the memfds survive in the parent's
 * keeper.)
 */
#ifndef TESTS_SUPPORT_H
#define TESTS_SUPPORT_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <preserve/preserve.h>

/* ---- assertions ---- */

/** The call returns 0, or the test fails with the library's message. */
#define assert_ok(call)                                                                         \
	do {                                                                                    \
		int rc_ = (call);                                                               \
		if (rc_)                                                                        \
			fail_msg("%s: %d (%s): %s", #call, rc_, strerror(rc_ < 0 ? -rc_ : rc_), \
				 pv_last_error());                                              \
	} while (0)

/** The call returns the (negative) errno, and the message contains the text. */
#define assert_fails(call, errno_wanted, text)                                                    \
	do {                                                                                      \
		int rc_ = (call);                                                                 \
		if (rc_ != (errno_wanted))                                                        \
			fail_msg("%s: %d (%s) instead of %s: %s", #call, rc_,                     \
				 strerror(rc_ < 0 ? -rc_ : rc_), #errno_wanted, pv_last_error()); \
		if (!strstr(pv_last_error(), (text)))                                             \
			fail_msg("%s: the message does not say \"%s\": %s", #call, (text),        \
				 pv_last_error());                                                \
	} while (0)

/* ---- keeper ---- */

#define KEEPER_MAX 64

/** Holds duplicates of a store's descriptors, as a handover backend would. */
struct keeper {
	unsigned int n;
	int fds[KEEPER_MAX];
	uint64_t tokens[KEEPER_MAX];
	unsigned int adds;
	unsigned int drops;
	uint64_t last_drop;
	/* Before the descriptor of this token is kept: refuse with refuse_err, ... */
	uint64_t refuse_token;
	int refuse_err;
	/* ... or take a copy of everything kept so far, the new one included: a crash between the
	 * keeping of a segment and its naming in the index. 0: never. */
	uint64_t copy_at_token;
	struct keeper *copy;
	unsigned int descriptors; /* open in the process when the test began ... */
	unsigned int mapped;	  /* ... and memfds of stores mapped */
};

void keeper_init(struct keeper *k);
/** Forget everything. */
void keeper_free(struct keeper *k);
/** For pv_options.keep; ctx is the keeper. */
int keeper_keep(void *ctx, enum pv_keep what, uint64_t token, int fd);
/** The descriptor of a token, owned by the keeper; -1. */
int keeper_fd(const struct keeper *k, uint64_t token);
/** Memory that the memfds have. */
uint64_t keeper_bytes(const struct keeper *k);
/** Forget one, or put another in its place (duplicated). */
void keeper_drop(struct keeper *k, uint64_t token);
void keeper_put(struct keeper *k, uint64_t token, int fd);
/** Replace what `to` has by copies of the memfds of `from`. */
void keeper_copy(struct keeper *to, const struct keeper *from);
/** Leave the store as SIGKILL would at this instant. *s becomes NULL. */
void keeper_crash(struct keeper *k, struct pv_store **s);
/** Write all contents of one memfd to another of the same size. */
void memfd_copy(int to, int from);
/** A sealed memfd with the contents of another, or (from < 0) of this many zero bytes. */
int memfd_clone(int from, size_t bytes);
size_t memfd_bytes(int fd);
/** All of a memfd, mapped shared and writable; memfd_unmap() undoes it. */
uint8_t *memfd_map(int fd, size_t *bytes);
void memfd_unmap(uint8_t *p, size_t bytes);

/**
 * Setup and teardown of a test: *state is an empty keeper. A test that leaves a descriptor open or
 * a store's memfd mapped fails.
 */
int keeper_setup(void **state);
int keeper_teardown(void **state);
#define with_keeper(f) cmocka_unit_test_setup_teardown(f, keeper_setup, keeper_teardown)

/* ---- stores ---- */

/** Options of a small store (64 KiB segments, 16 MiB window, 2 lanes) kept by k. */
struct pv_options small_options(struct keeper *k);
/** pv_open() with PV_CREATE, or of what k keeps, with these options; fails the test on an error. */
struct pv_store *store_create(struct keeper *k, const struct pv_options *o);
struct pv_store *store_attach(struct keeper *k, const struct pv_options *o);
/** pv_open() with the descriptors that k has and o (NULL: small_options()) but these flags. */
int store_try(struct keeper *k, const struct pv_options *o, uint32_t flags, struct pv_store **s);
struct pv_info store_info(struct pv_store *s);
/** pv_check() finds nothing; its figures. */
struct pv_check_report store_sound(struct pv_store *s);
/** The same but for pointers: in stores to which the test has written words that are none, or pointers to
 *  what it has retired. */
struct pv_check_report store_records_sound(struct pv_store *s);
/** Register a type. */
pv_type_t store_type(struct pv_store *s, const struct pv_typedef *def);
/**
 * Where an object is after an attach that it was at `p` before. The tests pass also if every attach relocates
 * (PV_RELOCATE=always in the environment), so pointers that they keep go through this.
 */
void *store_moved(struct pv_store *s, const void *p);
/** For a program whose tests are about the bytes of an image, or about where it is: no attach relocates
 *  unless it is told to. */
void relocate_never(void);
/** Opaque bytes under this name. */
pv_type_t store_bytes_type(struct pv_store *s, const char *name);

/** The type "word", and a root of it that is made or found. */
struct word {
	void *next;
	uint64_t value;
};
extern const struct pv_typedef store_word;
pv_type_t store_word_type(struct pv_store *s);
struct word *store_root(struct pv_store *s);

/** Another root: pointers that a test publishes to. */
#define CELLS 512
struct cells {
	void *cells[CELLS];
};
struct cells *store_cells(struct pv_store *s);

/** pv_reserve() that fails the test; and with the object live and its address in a cell. */
void *reserve_ok(struct pv_store *s, pv_type_t type, size_t bytes);
void *publish_ok(struct pv_store *s, pv_type_t type, size_t bytes, void **cell);

/* ---- live objects ---- */

struct object {
	void *p;
	size_t bytes; /* usable */
	pv_type_t type;
};

struct objects {
	struct object *v;
	size_t n;
	size_t room;
};

void objects_add(struct objects *o, void *p, size_t bytes, pv_type_t type);
void objects_free(struct objects *o);
/** store_moved() of each. */
void objects_moved(struct objects *o, struct pv_store *s);
/** By address. */
void objects_sort(struct objects *o);
/** Both sorted: the same objects? */
bool objects_same(const struct objects *a, const struct objects *b);
/** What pv_iterate() visits, sorted. */
void objects_live(struct objects *o, struct pv_store *s, pv_type_t type);

/* ---- randomness and patterns ---- */

/** A generator; *state is its seed at first. */
uint64_t random_next(uint64_t *state);
/** Below n. */
uint64_t random_below(uint64_t *state, uint64_t n);
/** The seed of random tests: $PV_TEST_SEED or a fixed one; printed. */
uint64_t random_seed_from_env(const char *test);

void pattern_fill(void *p, size_t bytes, uint64_t seed);
bool pattern_holds(const void *p, size_t bytes, uint64_t seed);

/* ---- other processes ---- */

/** Fork; the child runs f(ctx) and exits with what it returns (0..255). */
int run_child(int (*f)(void *ctx), void *ctx);
/** The same without waiting. child_wait(): its exit status, or 256 + the signal. */
pid_t start_child(int (*f)(void *ctx), void *ctx);
int child_wait(pid_t pid);
/** Run a command; its stdout, NUL-terminated, to *out (malloc'ed). Returns its exit status. */
int run_command(const char *const argv[], char **out);
/** A file below $TMPDIR with these contents; unlink() is the caller's. */
void temp_file(char path[64], const void *data, size_t n);

/** Was this built with ThreadSanitizer? It claims most addresses for itself. */
bool under_tsan(void);

#endif
