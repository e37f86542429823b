/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Version 2 of the address book: names may be longer, the phone number is a number, and a person can
 * have a boss, who is a person. Fields have moved, there is a new pointer, and an object is larger.
 *
 * The struct of version 1 stays in the program for as long as there are stores that have it.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "book.h"

const unsigned int person_version = 2;

struct person {
	char name[64];
	uint64_t phone;
	struct person *next;
	struct person *boss;
};

struct book {
	struct person *first;
	struct person *favourite;
};

/* ---- upgrade ---- */

struct person_v1 {
	struct person_v1 *next;
	char name[40];
	char phone[16];
};

/* Digits, and what people write between them; false if there is anything else. */
static bool read_phone(const char *text, uint64_t *out)
{
	uint64_t number = 0;

	for (; *text; text++) {
		if (*text >= '0' && *text <= '9')
			number = number * 10 + (uint64_t)(*text - '0');
		else if (!strchr("+-/ ", *text))
			return false;
	}
	*out = number;
	return true;
}

static int person_1_to_2(void *ctx, const void *old, size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	const struct person_v1 *from = old;
	struct person *to = fresh;

	(void)ctx, (void)old_bytes, (void)fresh_bytes;
	memcpy(to->name, from->name, sizeof(from->name));
	if (!read_phone(from->phone, &to->phone)) {
		fprintf(stderr, "book-2: the phone number of %s is no number: \"%s\"\n", from->name,
			from->phone);
		return -EILSEQ;
	}
	/* The address of the old object: the library puts that of the new one here when all are made. */
	to->next = (struct person *)from->next;
	/* What `fresh` has no word about is zero: nobody has a boss. */
	return 0;
}

static const struct pv_upgrade person_upgrades[] = {
	PV_UPGRADE(1, 2, struct person, person_1_to_2),
};

static const struct pv_typedef person_type = {
	PV_TYPE_OF(struct person, "person", 2, PV_POINTER(struct person, next),
		   PV_POINTER_TO(struct person, boss, "person")),
	.nupgrades = 1,
	.upgrades = person_upgrades,
};
static const struct pv_typedef book_type = PV_TYPE(struct book, "book", 1,
						   PV_POINTER(struct book, first),
						   PV_POINTER(struct book, favourite));
static const struct pv_typedef *const types[] = {&person_type, &book_type};

static void show_progress(void *ctx, const struct pv_upgrade_report *r)
{
	static const char *const phases[] = {"looking", "copying", "moving", "done"};

	(void)ctx;
	if (r->objects_all < 10000) /* it is done before anybody has read this */
		return;
	fprintf(stderr, "book-2: upgrade: %s, %" PRIu64 " of %" PRIu64 " persons\n", phases[r->phase],
		r->objects, r->objects_all);
}

static const struct pv_upgrade_options upgrade_options = {
	.size = sizeof(upgrade_options),
	.progress = show_progress,
};

/* ---- the rest is as in version 1, but for the new fields ---- */

static pv_type_t persons;
static struct book *book;

void book_attach(struct pv_store *store)
{
	struct pv_upgrade_report report;
	pv_type_t out[2];

	must(pv_types_register(store, types, 2, &upgrade_options, &report, out));
	if (report.types)
		fprintf(stderr, "book-2: upgraded %" PRIu64 " persons, %" PRIu64 " bytes to %" PRIu64
			"\n", report.objects, report.bytes_before, report.bytes_after);
	persons = out[0];
	must(pv_root(store, "book", out[1], sizeof(*book), (void **)&book, NULL));
}

void book_plan(struct pv_store *store)
{
	struct pv_upgrade_report report;

	must(pv_types_plan(store, types, 2, NULL, &report));
	if (report.types)
		printf("%" PRIu64 " persons would be upgraded, %" PRIu64 " bytes to %" PRIu64 "\n",
		       report.objects, report.bytes_before, report.bytes_after);
	else
		puts("nothing to upgrade");
}

static struct person *find(const char *name)
{
	struct person *p = book->first;

	while (p && strcmp(p->name, name) != 0)
		p = p->next;
	if (!p)
		die("there is nobody called %s", name);
	return p;
}

void book_add(struct pv_store *store, const char *name, const char *phone, const char *boss)
{
	struct person *p;

	if (strlen(name) >= sizeof(p->name))
		die("\"%s\": at most %zu bytes", name, sizeof(p->name) - 1);
	must(pv_reserve(store, persons, sizeof(*p), (void **)&p));
	memset(p, 0, sizeof(*p));
	strcpy(p->name, name);
	if (!read_phone(phone, &p->phone))
		die("\"%s\" is no phone number", phone);
	p->boss = boss ? find(boss) : NULL;
	p->next = book->first;
	must(pv_publish(store,
			(struct pv_action[]){PV_LIVE(p), PV_STORE(&book->first, p),
					     PV_STORE(&book->favourite, p)},
			book->first ? 2 : 3));
}

void book_list(void)
{
	for (const struct person *p = book->first; p; p = p->next)
		printf("%-24s %" PRIu64 "%s%s%s\n", p->name, p->phone,
		       p == book->favourite ? " *" : "", p->boss ? ", boss " : "",
		       p->boss ? p->boss->name : "");
}

uint64_t book_sum(uint64_t *n)
{
	uint64_t sum = 0;
	char phone[24];

	*n = 0;
	for (const struct person *p = book->first; p; p = p->next, ++*n) {
		snprintf(phone, sizeof(phone), "%" PRIu64, p->phone);
		sum = book_mix(book_mix(sum, p->name), phone);
	}
	return book->favourite ? book_mix(sum, book->favourite->name) : sum;
}
