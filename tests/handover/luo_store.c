/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * luo-store BOOT: a whole store, used by the public functions only, through four kexecs
 * (luo_handover.scenario). A list grows over several segments in every boot, before and after
 * prepare; the process that made it ends without a word each time.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <preserve/preserve.h>

enum { NODES = 40000, NODE_BYTES = 128 };

struct node {
	struct node *next;
	uint64_t number;
	uint8_t filler[NODE_BYTES - 16];
};

struct list {
	struct node *first;
	uint64_t length;
};

static const struct pv_typedef node_def =
	PV_TYPE(struct node, "node", 1, PV_POINTER_TO(struct node, next, "node"));
static const struct pv_typedef list_def =
	PV_TYPE(struct list, "list", 1, PV_POINTER_TO(struct list, first, "node"));
static pv_type_t node_type;

#define CHECK(condition)                                                                   \
	do {                                                                               \
		if (!(condition)) {                                                        \
			fprintf(stderr, "luo-store: line %d: %s failed; last error: %s\n", \
				__LINE__, #condition, pv_last_error());                    \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

static struct list *enter(struct pv_store *s)
{
	pv_type_t list_type;
	void *root;

	CHECK(pv_type_register(s, &node_def, &node_type) == 0);
	CHECK(pv_type_register(s, &list_def, &list_type) == 0);
	CHECK(pv_root(s, "list", list_type, sizeof(struct list), &root, NULL) == 0);
	return root;
}

static void add(struct pv_store *s, struct list *list, unsigned int count)
{
	while (count--) {
		uint64_t number = list->length;
		void *object;
		struct node *n;

		CHECK(pv_reserve(s, node_type, sizeof(struct node), &object) == 0);
		n = object;
		n->next = list->first;
		n->number = number;
		memset(n->filler, (int)(number % 251), sizeof(n->filler));
		CHECK(pv_publish(s,
				 (const struct pv_action[]){PV_LIVE(n),
							    PV_STORE(&list->first, (uintptr_t)n),
							    PV_STORE(&list->length, number + 1)},
				 3) == 0);
	}
}

static void verify(struct pv_store *s, const struct list *list, uint64_t length)
{
	struct pv_check_report report;
	uint64_t number = length;

	CHECK(list->length == length);
	for (const struct node *n = list->first; n; n = n->next) {
		CHECK(n->number == --number);
		for (size_t i = 0; i < sizeof(n->filler); i++)
			CHECK(n->filler[i] == number % 251);
	}
	CHECK(number == 0);
	CHECK(pv_check(s, NULL, &report) == 0);
	CHECK(report.problems == 0);
	CHECK(report.live_objects == length + 1);
}

/* The environment of the whole VM may have every attach move the store. */
static enum pv_origin expected_origin(uint64_t length)
{
	const char *relocate = getenv("PV_RELOCATE");

	if (!length)
		return PV_ORIGIN_CREATED;
	return relocate && !strcmp(relocate, "always") ? PV_ORIGIN_RELOCATED : PV_ORIGIN_REATTACHED;
}

static struct pv_store *attach(uint64_t length, bool from_kexec, enum pv_handover_state state,
			       struct list **list)
{
	const struct pv_options o = {
		.size = sizeof(o),
		.flags = length ? 0 : PV_CREATE,
		.handover = PV_HANDOVER_LUO,
		.segment_bytes = 1 << 20,
	};
	struct pv_store *s;
	struct pv_info info;

	CHECK(pv_open("list", &o, &s) == 0);
	CHECK(pv_info_get(s, &info) == 0);
	CHECK(info.from_kexec == from_kexec && info.state == state);
	CHECK(info.handover == PV_HANDOVER_LUO);
	CHECK(info.origin == expected_origin(length));
	*list = enter(s);
	verify(s, *list, length);
	printf("luo-store: %llu objects in %u segments, attached in %.2f ms%s\n",
	       (unsigned long long)length, info.segments, (double)info.attach_ns / 1e6,
	       from_kexec ? " after a kexec" : "");
	return s;
}

/** One life of the application: take over, add, prepare, add while prepared, die. */
static void first_life(uint64_t length, bool from_kexec)
{
	struct list *list;
	struct pv_store *s = attach(length, from_kexec, PV_STATE_SERVING, &list);

	add(s, list, NODES / 2);
	CHECK(pv_handover_prepare(s) == 0);
	add(s, list, NODES / 2);
	_exit(0);
}

/** The next one finds it prepared, goes on, cancels, prepares again. */
static void second_life(uint64_t length, bool from_kexec)
{
	struct list *list;
	struct pv_store *s = attach(length, from_kexec, PV_STATE_PREPARED, &list);

	add(s, list, NODES);
	CHECK(pv_handover_cancel(s) == 0);
	add(s, list, NODES / 2);
	CHECK(pv_handover_prepare(s) == 0);
	add(s, list, NODES / 2);
	_exit(0);
}

static void live(void (*life)(uint64_t length, bool from_kexec), uint64_t length, bool from_kexec)
{
	int status;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0)
		life(length, from_kexec);
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
	CHECK(WEXITSTATUS(status) == 0);
}

int main(int argc, char **argv)
{
	unsigned int boot = argc == 2 ? (unsigned int)atoi(argv[1]) : 99;
	uint64_t length = (uint64_t)boot * 3 * NODES;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (boot > 3) {
		fprintf(stderr, "usage: luo-store BOOT (0 to 3)\n");
		return 2;
	}
	live(first_life, length, boot > 0);
	live(second_life, length + NODES, false);
	printf("luo-store: boot %u passed\n", boot);
	return 0;
}
