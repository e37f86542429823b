/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The first store: a list of notes that is still there in the next run.
 *
 *	$ ./hello 'buy milk'
 *	buy milk
 *	$ ./hello 'feed the cat'
 *	feed the cat
 *	buy milk
 *
 * README.md shows a part of this file; test-hello checks that it is one.
 */
#include <stdio.h>
#include <stdlib.h>

#include <preserve/preserve.h>

static void must(int err)
{
	if (err) {
		fprintf(stderr, "hello: %s\n", pv_last_error());
		exit(1);
	}
}

struct note {
	struct note *next;
	char text[56];
};
static const struct pv_typedef note_type =
	PV_TYPE(struct note, "note", 1, PV_POINTER_TO(struct note, next, "note"));

static const struct pv_typedef list_type = PV_TYPE(struct note *, "list", 1, PV_POINTER_ITSELF);

int main(int argc, char **argv)
{
	struct pv_options options = {.size = sizeof(options), .flags = PV_CREATE};
	struct note **list, *note;
	struct pv_store *store;
	pv_type_t lists, notes;

	/* Find the store, or make it; find the list in it, or make it. */
	must(pv_open("hello", &options, &store));
	must(pv_type_register(store, &note_type, &notes));
	must(pv_type_register(store, &list_type, &lists));
	must(pv_root(store, "list", lists, sizeof(*list), (void **)&list, NULL));

	/* Take an object, fill it in. A crash up to here leaves nothing of it. */
	must(pv_reserve(store, notes, sizeof(*note), (void **)&note));
	snprintf(note->text, sizeof(note->text), "%s", argc > 1 ? argv[1] : "a note");
	note->next = *list;
	/* It is live and linked, both or neither. A crash from here on leaves all of it. */
	must(pv_link(store, note, list));

	/* Pointers in the store are pointers: no handles, no loading, no copies. */
	for (note = *list; note; note = note->next)
		puts(note->text);
	return pv_close(store);
}
