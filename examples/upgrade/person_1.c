/* SPDX-License-Identifier: BSD-3-Clause */
/* Version 1 of the address book: a person has a name and a phone number, which is a text. */
#include <string.h>

#include "book.h"

const unsigned int person_version = 1;

struct person {
	struct person *next;
	char name[40];
	char phone[16];
};

struct book {
	struct person *first;
	struct person *favourite;
};

static const struct pv_typedef person_type =
	PV_TYPE(struct person, "person", 1, PV_POINTER(struct person, next));
static const struct pv_typedef book_type = PV_TYPE(struct book, "book", 1,
						   PV_POINTER(struct book, first),
						   PV_POINTER(struct book, favourite));

static pv_type_t persons;
static struct book *book;

void book_attach(struct pv_store *store)
{
	pv_type_t books;

	must(pv_type_register(store, &person_type, &persons));
	must(pv_type_register(store, &book_type, &books));
	must(pv_root(store, "book", books, sizeof(*book), (void **)&book, NULL));
}

void book_plan(struct pv_store *store)
{
	must(pv_types_plan(store, (const struct pv_typedef *const[]){&person_type, &book_type}, 2, NULL,
			   NULL));
	puts("nothing to upgrade");
}

void book_add(struct pv_store *store, const char *name, const char *phone, const char *boss)
{
	struct person *p;

	if (boss)
		die("version 1 knows no bosses");
	if (strlen(name) >= sizeof(p->name) || strlen(phone) >= sizeof(p->phone))
		die("\"%s\", \"%s\": at most %zu and %zu bytes", name, phone, sizeof(p->name) - 1,
		    sizeof(p->phone) - 1);
	must(pv_reserve(store, persons, sizeof(*p), (void **)&p));
	memset(p, 0, sizeof(*p));
	strcpy(p->name, name);
	strcpy(p->phone, phone);
	p->next = book->first;
	/* The first person who was ever added is the favourite: live and linked twice, as one. */
	must(pv_publish(store,
			(struct pv_action[]){PV_LIVE(p), PV_STORE(&book->first, p),
					     PV_STORE(&book->favourite, p)},
			book->first ? 2 : 3));
}

void book_list(void)
{
	for (const struct person *p = book->first; p; p = p->next)
		printf("%-24s %s%s\n", p->name, p->phone, p == book->favourite ? " *" : "");
}

uint64_t book_sum(uint64_t *n)
{
	uint64_t sum = 0;

	*n = 0;
	for (const struct person *p = book->first; p; p = p->next, ++*n)
		sum = book_mix(book_mix(sum, p->name), p->phone);
	return book->favourite ? book_mix(sum, book->favourite->name) : sum;
}
