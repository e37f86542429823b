/* SPDX-License-Identifier: BSD-3-Clause */
/* The list of prepared stores that the agent leaves for the next kernel's (luo.c). Persistent bytes only. */
#ifndef PRESERVED_LIST_LAYOUT_H
#define PRESERVED_LIST_LAYOUT_H

#include <stdint.h>

#include "holder_proto.h"

#define LIST_SESSION "preserve-agent"
#define LIST_MAGIC   0x5453494c47415650ull /* "PVAGLIST" */
#define LIST_VERSION 1u
#define LIST_STORES  2048u

struct list_store_rec {
	uint32_t uid;
	uint32_t gid;
	uint32_t mode;
	uint32_t reserved;
	char name[HOLDER_NAME_MAX];
};

struct list_half_rec {
	uint64_t count;
	struct list_store_rec stores[LIST_STORES];
};

struct list_rec {
	uint64_t magic;
	uint32_t version;
	uint32_t capacity;
	uint64_t current; /* 0 or 1 */
	struct list_half_rec halves[2];
};

_Static_assert(sizeof(struct list_store_rec) == 80, "list_store_rec");
_Static_assert(sizeof(struct list_half_rec) == 163848, "list_half_rec");
_Static_assert(sizeof(struct list_rec) == 327720, "list_rec");

#endif
