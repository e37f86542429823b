/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An address book that changes its struct between two versions of itself. book-1 and book-2 are this
 * file with person_1.c and person_2.c; docs/TYPES.md goes through what happens.
 *
 *	$ ./book-1 add Ada 555-1815
 *	$ ./book-1 add Grace 555-1906
 *	$ ./book-2 list
 *	book-2: upgraded 2 persons, 128 bytes to 192
 *	Grace                    5551906
 *	Ada                      5551815 *
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "book.h"

void must(int err)
{
	if (err)
		die("%s", pv_last_error());
}

void die(const char *format, ...)
{
	va_list ap;

	fprintf(stderr, "book-%u: ", person_version);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

static void usage(FILE *to)
{
	fprintf(to,
		"usage: book-%u [--store NAME] COMMAND\n\n"
		"  add NAME PHONE%s  a person in front of the others; * in the list: the first ever\n"
		"  fill N                 N persons with numbers for names\n"
		"  list                   all persons\n"
		"  sum                    how many, and a number that follows from names and phones\n"
		"  plan                   changes nothing: what would the upgrade of the store do?\n"
		"  drop                   the store and all persons in it\n\n"
		"--store  name of the store (default book). It is in $XDG_RUNTIME_DIR/libpreserve.\n",
		person_version, person_version == 1 ? "       " : " [BOSS]");
}

static void fill(struct pv_store *store, const char *number)
{
	unsigned long n = strtoul(number, NULL, 10);
	char name[24], phone[24];

	for (unsigned long i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "person %lu", i);
		snprintf(phone, sizeof(phone), "%lu", 1000000 + i);
		book_add(store, name, phone, NULL);
	}
}

static void run(struct pv_store *store, const char *command, char **args, int n)
{
	uint64_t persons, sum;

	if (!strcmp(command, "plan") && n == 0) {
		book_plan(store);
		return;
	}
	book_attach(store);
	if (!strcmp(command, "add") && (n == 2 || n == 3)) {
		book_add(store, args[0], args[1], n == 3 ? args[2] : NULL);
	} else if (!strcmp(command, "fill") && n == 1) {
		fill(store, args[0]);
	} else if (!strcmp(command, "list") && n == 0) {
		book_list();
	} else if (!strcmp(command, "sum") && n == 0) {
		sum = book_sum(&persons);
		printf("%" PRIu64 " persons, %016" PRIx64 "\n", persons, sum);
	} else {
		die("%s: no such command, or not with %d arguments (see --help)", command, n);
	}
}

int main(int argc, char **argv)
{
	struct pv_options options = {.size = sizeof(options), .flags = PV_CREATE};
	const char *name = "book";
	struct pv_store *store;

	argv++, argc--;
	if (argc > 1 && !strcmp(*argv, "--store"))
		name = argv[1], argv += 2, argc -= 2;
	if (argc == 0 || !strcmp(*argv, "--help")) {
		usage(argc ? stdout : stderr);
		return argc ? 0 : 2;
	}
	must(pv_open(name, &options, &store));
	if (!strcmp(*argv, "drop") && argc == 1) {
		must(pv_destroy(store));
		return 0;
	}
	run(store, *argv, argv + 1, argc - 1);
	must(pv_close(store));
	return 0;
}
