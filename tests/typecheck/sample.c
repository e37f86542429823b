/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A program whose types have something of everything that pv-typecheck has to understand. test_typecheck.py
 * builds it as it is, and with lines of it changed: see there. It is never run.
 */
#include <stdatomic.h>
#include <stdint.h>

#include <preserve/preserve.h>

struct blob {
	uint64_t bytes;
	unsigned char data[];
};

typedef struct {
	struct blob *value;
	uint64_t weight;
} edge_t;

struct node {
	struct node *next;
	struct blob *pair[2];
	const char *const volatile name;
	_Atomic(struct node *) shared;
	uintptr_t tagged;
	int64_t distance;
	uint64_t offset;
	void (*callback)(struct node *);
	struct {
		uint32_t kind;
		uint32_t nkids;
	};
	union {
		struct {
			uint64_t number;
			struct blob *data;
		} leaf;
		struct node *kids[4];
	} u;
	edge_t edges[3][2];
	struct {
		struct {
			struct blob *deep;
		} in;
	} nest;
	uint8_t small : 3;
	uint16_t nmore;
	struct {
		uint8_t used;
		edge_t edge;
	} more[];
};

struct list {
	struct node *first;
	uint64_t count;
	struct node *all[];
};

enum { LEAF = 1, BRANCH = 2 };

#define MORE PV_ELEMENT(struct node, more)

static const struct pv_typedef blob_type = PV_TYPE_BYTES("blob", 1);
static const struct pv_typedef plain_type = PV_TYPE_PLAIN(struct blob, "plain", 1);
const struct pv_typedef node_types[] = {
	PV_TYPE(struct node, "node", 1,
		PV_POINTER_TO(struct node, next, "node"),
		PV_POINTER(struct node, pair),
		PV_POINTER(struct node, name),
		PV_POINTER(struct node, shared),
		PV_TAGGED(struct node, tagged, ~7ull),
		PV_RELATIVE(struct node, distance),
		PV_OFFSET(struct node, offset),
		PV_OPAQUE(struct node, callback),
		PV_WHEN(struct node, kind, LEAF, PV_POINTER(struct node, u.leaf.data)),
		PV_WHEN(struct node, kind, BRANCH, PV_POINTER_USED(struct node, u.kids, nkids)),
		PV_STRUCT(struct node, edges, edge_t, PV_POINTER(edge_t, value)),
		PV_POINTER(struct node, nest.in.deep),
		PV_STRUCT_COUNTED(struct node, more, MORE, nmore,
				  PV_STRUCT(MORE, edge, edge_t, PV_POINTER(edge_t, value)))),
	PV_TYPE(struct list, "list", 2, PV_POINTER_TO(struct list, first, "node"),
		PV_POINTER_FLEX(struct list, all)),
};
static const struct pv_typedef edges_type =
	PV_TYPE_ARRAY(edge_t, "edges", 1, PV_POINTER(edge_t, value));
static const struct pv_typedef pointers_type = PV_TYPE_ARRAY(void *, "pointers", 1, PV_POINTER_ITSELF);

int use(struct pv_store *store, struct node *n, struct list *l, edge_t *e, pv_type_t *out);
int use(struct pv_store *store, struct node *n, struct list *l, edge_t *e, pv_type_t *out)
{
	static const struct pv_typedef inside_type =
		PV_TYPE_PLAIN(struct blob, "inside", 1);
	int err = pv_type_register(store, &blob_type, out);

	err |= pv_type_register(store, &plain_type, out);
	err |= pv_type_register(store, &node_types[0], out);
	err |= pv_type_register(store, &node_types[1], out);
	err |= pv_type_register(store, &edges_type, out);
	err |= pv_type_register(store, &pointers_type, out);
	err |= pv_type_register(store, &inside_type, out);
	return err + (n->next == l->first) + (e->value == n->pair[0]);
}

#ifndef NO_MAIN
int main(void)
{
	struct node *n = NULL;
	struct list *l = NULL;
	edge_t *e = NULL;
	pv_type_t type;

	return use(NULL, n, l, e, &type);
}
#endif
