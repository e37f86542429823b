/* SPDX-License-Identifier: BSD-3-Clause */
/* What the two versions of the address book have in common (book.c), and what each has of its own
 * (person_1.c, person_2.c). */
#ifndef BOOK_H
#define BOOK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <preserve/preserve.h>
#include <preserve/upgrade.h>

/** Ends the program with the library's message unless err is 0. */
void must(int err);
/** Ends the program with this message. */
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

extern const unsigned int person_version;

/** Register the types; in version 2 that upgrades what version 1 has written. Find the book. */
void book_attach(struct pv_store *store);
/** Look what book_attach() would do. */
void book_plan(struct pv_store *store);
/** Add a person in front of the others; who the boss is can be said from version 2 on. */
void book_add(struct pv_store *store, const char *name, const char *phone, const char *boss);
void book_list(void);
/** A number that follows from names and phones, the same for both versions, and how many there are. */
uint64_t book_sum(uint64_t *persons);

static inline uint64_t book_mix(uint64_t sum, const char *text)
{
	for (; *text; text++)
		sum = (sum ^ (uint8_t)*text) * 0x100000001b3u;
	return sum;
}

#endif
