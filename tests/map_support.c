/* SPDX-License-Identifier: BSD-3-Clause */
/* See map_support.h. The store is kept by the test itself: descriptors are noted by
 * pv_options.keep. */
#include "map_support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- fixture ---- */

static int keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	struct fixture *f = ctx;

	if (what == PV_KEEP_DROP) {
		close(f->fds[token]);
		f->fds[token] = -1;
		return 0;
	}
	assert_true(token < MAX_FDS);
	f->fds[token] = dup(fd);
	if (token >= f->nfds)
		f->nfds = (uint32_t)token + 1;
	return 0;
}

void ok(int err)
{
	if (err)
		fail_msg("%s: %s", strerror(-err), pv_last_error());
}

static const void *item_key(const void *entry, size_t *bytes)
{
	const struct item *item = entry;

	*bytes = strnlen(item->key, sizeof(item->key));
	return item->key;
}

void open_all(struct fixture *f)
{
	struct pv_options o = {.size = sizeof(o),
			       .flags = PV_CREATE,
			       .handover = PV_HANDOVER_NONE,
			       .segment_bytes = f->segment_bytes ? f->segment_bytes : 1 << 20,
			       .limit_bytes = f->limit_bytes,
			       .window_bytes = 1ull << 30,
			       .lanes = 4,
			       .fds = f->fds,
			       .nfds = f->nfds,
			       .keep = keep,
			       .keep_ctx = f};

	const struct pv_typedef type = PV_TYPE_PLAIN(struct item, "item", 1);

	ok(pv_open("test", &o, &f->store));
	ok(pv_type_register(f->store, &type, &f->type));
	f->map_options = (struct pv_map_options){
		.size = sizeof(f->map_options), .key = item_key, .hash = f->hash,
		.entry_bytes = sizeof(struct item)};
	ok(pv_map_open(f->store, "map", &f->map_options, &f->map));
}

void close_all(struct fixture *f)
{
	pv_map_close(f->map);
	ok(pv_close(f->store));
}

void reopen(struct fixture *f)
{
	close_all(f);
	open_all(f);
}

void drop_all(struct fixture *f)
{
	close_all(f);
	for (uint32_t i = 0; i < f->nfds; i++)
		close(f->fds[i]);
	free(f);
}

struct fixture *make(uint64_t (*hash)(const void *, size_t, uint64_t))
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->hash = hash;
	open_all(f);
	return f;
}

static void tell(void *ctx, const char *line)
{
	fprintf(stderr, "  problem: %s\n", line);
}

static int count_items(void *ctx, void *object, size_t bytes, pv_type_t type)
{
	(*(uint64_t *)ctx)++;
	return 0;
}

void check(struct fixture *f)
{
	struct pv_check_report report;
	uint64_t problems, items = 0;

	ok(pv_map_check(f->map, tell, NULL, &problems));
	assert_int_equal(problems, 0);
	ok(pv_check(f->store, PV_CHECK_TELL(tell, NULL), &report));
	assert_int_equal(report.problems, 0);
	ok(pv_iterate(f->store, f->type, count_items, &items));
	assert_int_equal(items, pv_map_count(f->map));
}

/* ---- items ---- */

void name(char key[16], uint64_t number)
{
	snprintf(key, 16, "key:%08x", (unsigned int)number);
}

uint64_t hash_of(struct fixture *f, uint64_t number)
{
	char key[16];

	name(key, number);
	return pv_map_hash(f->map, key, strlen(key));
}

int make_item(struct fixture *f, uint64_t number, uint64_t value, struct item **out)
{
	void *object;
	int err = pv_reserve(f->store, f->type, sizeof(struct item), &object);

	if (err)
		return err;
	*out = object;
	memset(*out, 0, sizeof(**out));
	(*out)->number = number;
	(*out)->value = value;
	name((*out)->key, number);
	return 0;
}

int try_put(struct fixture *f, uint64_t number, uint64_t value)
{
	struct item *item;
	int err = make_item(f, number, value, &item);

	if (err)
		return err;
	err = pv_map_put(f->map, hash_of(f, number), item, 0);
	if (err)
		ok(pv_cancel(f->store, item));
	return err;
}

void put(struct fixture *f, uint64_t number, uint64_t value)
{
	ok(try_put(f, number, value));
}

int take(struct fixture *f, uint64_t number)
{
	char key[16];

	name(key, number);
	return pv_map_remove(f->map, hash_of(f, number), key, strlen(key));
}

struct item *find(struct fixture *f, uint64_t number)
{
	uint64_t hash = hash_of(f, number);
	char key[16];

	name(key, number);
	pv_map_prefetch(f->map, hash);
	pv_map_prefetch_entry(f->map, hash, number % 2);
	return pv_map_find(f->map, hash, key, strlen(key));
}

uint64_t random_state = 88172645463325252ull;

uint64_t random_u64(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

uint64_t live_objects(struct fixture *f)
{
	struct pv_check_report report;

	ok(pv_check(f->store, NULL, &report));
	return report.live_objects;
}
