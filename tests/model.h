/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The plain model of test_model.c: which object each cell of a table names, which roots there are,
 * what is in all of these, what is only reserved.
 */
#ifndef TESTS_MODEL_H
#define TESTS_MODEL_H

#include <preserve/retire.h>
#include <preserve/stats.h>
#include <preserve/tx.h>

#include "support.h"

#define NCELLS	     300
#define RESERVED_MAX 40
#define TYPES	     3
#define ROOTS	     6

struct table {
	void *cells[NCELLS];
};

struct thing {
	void *p;
	size_t bytes;
	pv_type_t type;
	uint64_t seed; /* of its contents; 0: zero bytes */
};

struct model {
	struct keeper *k;
	struct pv_options o;
	struct pv_store *s;
	struct table *table;
	pv_type_t types[TYPES];
	pv_type_t table_type;
	uint64_t random;
	struct thing cells[NCELLS]; /* p NULL: the cell is empty */
	struct thing roots[ROOTS];  /* p NULL: it does not exist */
	struct thing reserved[RESERVED_MAX];
	size_t nreserved;
	size_t nretired;	  /* since all grace periods were over */
	size_t full;		  /* -ENOSPC seen */
	size_t committed, undone; /* transactions */
};

size_t model_size(struct model *m);
/** A description of an object that does not exist yet. */
struct thing model_thing(struct model *m);
/** 0, or -ENOSPC if the store has a limit; anything else fails the test. */
int model_room(struct model *m, int err);
/** Close the store or leave it as a crash does, and open it again. */
void model_reattach(struct model *m, bool crash);
/** One transaction. */
void model_tx(struct model *m);

#endif
