/* SPDX-License-Identifier: BSD-3-Clause */
/* The headers from C++ (header-cxx compiles this): they compile, and the macros make the same definitions
 * there. */
#include <stdio.h>
#include <string.h>

#include <preserve/compact.h>
#include <preserve/image.h>
#include <preserve/lock.h>
#include <preserve/map.h>
#include <preserve/preserve.h>
#include <preserve/retire.h>
#include <preserve/seal.h>
#include <preserve/stats.h>
#include <preserve/stores.h>
#include <preserve/tx.h>
#include <preserve/type.h>
#include <preserve/upgrade.h>

struct edge {
	void *to;
	uint64_t weight;
};

struct node {
	struct node *next;
	uint64_t tagged;
	uint32_t kind, n;
	union {
		void *data;
		uint64_t number;
	} u;
	struct edge edges[];
};

static const struct pv_typedef node_type =
	PV_TYPE(struct node, "node", 2, PV_POINTER_TO(struct node, next, "node"),
		PV_TAGGED(struct node, tagged, ~7ull),
		PV_WHEN(struct node, kind, 1, PV_POINTER(struct node, u.data)),
		PV_STRUCT_COUNTED(struct node, edges, struct edge, n, PV_POINTER(struct edge, to)));
static const struct pv_typedef edges_type = PV_TYPE_ARRAY(struct edge, "edges", 1, PV_POINTER(struct edge, to));
static const struct pv_typedef plain_type = PV_TYPE_PLAIN(struct edge, "plain", 1);
static const struct pv_typedef bytes_type = PV_TYPE_BYTES("bytes", 1);

#define CHECK(condition)                                                               \
	do {                                                                           \
		if (!(condition)) {                                                    \
			fprintf(stderr, "line %d: %s\n", __LINE__, #condition);        \
			return 1;                                                      \
		}                                                                      \
	} while (0)

static int keep(void *, enum pv_keep, uint64_t, int)
{
	return 0;
}

int main()
{
	struct pv_options options = {};
	struct pv_store *store;
	pv_type_t type[4];

	CHECK(node_type.nfields == 4 && node_type.bytes == sizeof(struct node) && node_type.version == 2);
	CHECK(node_type.fields[1].kind == PV_FIELD_TAGGED && node_type.fields[1].mask == ~7ull);
	CHECK(node_type.fields[2].when_offset == offsetof(struct node, kind));
	CHECK(strcmp(node_type.fields[2].fields[0].name, "u.data") == 0);
	CHECK(node_type.fields[3].count == PV_FLEXIBLE && node_type.fields[3].count_bytes == 4);
	CHECK(edges_type.fields[0].stride == sizeof(struct edge));
	options.size = sizeof(options);
	options.flags = PV_CREATE;
	options.handover = PV_HANDOVER_NONE;
	options.keep = keep;
	CHECK(pv_open("cxx", &options, &store) == 0);
	CHECK(pv_type_register(store, &node_type, &type[0]) == 0);
	CHECK(pv_type_register(store, &edges_type, &type[1]) == 0);
	CHECK(pv_type_register(store, &plain_type, &type[2]) == 0);
	CHECK(pv_type_register(store, &bytes_type, &type[3]) == 0);
	return pv_close(store);
}
