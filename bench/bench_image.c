/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A store for bench_handover.py: values of about 1 KiB, as a cache of small documents has them (field
 * names that repeat, numbers that do not), until it has so many bytes.
 *
 *	bench-image build DIR NAME BYTES
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <preserve/preserve.h>

struct document {
	struct document *next;
	char text[1016];
};

struct list {
	struct document *first;
};

static const struct pv_typedef document_type =
	PV_TYPE(struct document, "document", 1, PV_POINTER(struct document, next));
static const struct pv_typedef list_type = PV_TYPE(struct list, "list", 1, PV_POINTER(struct list, first));

static void must(int err)
{
	if (err) {
		fprintf(stderr, "bench-image: %s\n", pv_last_error());
		exit(1);
	}
}

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void write_text(char *text, size_t room, uint64_t *state)
{
	static const char *const names[] = {"\"id\":", "\"name\":\"user-", "\"balance\":", "\"updated\":",
					    "\"flags\":[1,2,", "\"session\":\""};
	size_t at = 0;

	for (unsigned int i = 0; at + 48 < room; i++)
		at += (size_t) snprintf(text + at, room - at, "%s%" PRIx64 ",", names[i % 6],
					random_next(state) >> (i % 4 * 12));
	memset(text + at, 0, room - at);
}

int main(int argc, char **argv)
{
	struct pv_options o = {.size = sizeof(o), .flags = PV_CREATE | PV_RESET, .handover = PV_HANDOVER_HOLDER};
	uint64_t state = 88172645463325252ull, bytes;
	struct list *list;
	pv_type_t documents, lists;
	struct pv_store *s;

	if (argc != 5 || strcmp(argv[1], "build") != 0) {
		fprintf(stderr, "usage: bench-image build DIR NAME BYTES\n");
		return 2;
	}
	o.runtime_dir = argv[2];
	bytes = strtoull(argv[4], NULL, 10);
	must(pv_open(argv[3], &o, &s));
	must(pv_type_register(s, &document_type, &documents));
	must(pv_type_register(s, &list_type, &lists));
	must(pv_root(s, "list", lists, sizeof(*list), (void **) &list, NULL));
	for (uint64_t i = 0; i < bytes / sizeof(struct document); i++) {
		struct document *d;

		must(pv_reserve(s, documents, sizeof(*d), (void **) &d));
		d->next = list->first;
		write_text(d->text, sizeof(d->text), &state);
		must(pv_link(s, d, &list->first));
	}
	must(pv_close(s));
	printf("objects %" PRIu64 "\n", bytes / sizeof(struct document));
	return 0;
}
