/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fuzz_image.h - what the parts of fuzz_image share: the image (fuzz_image.c), what an input changes in it
 * (image_changes.c), and what is done with the store that comes of it (image_use.c).
 */
#ifndef TESTS_FUZZ_IMAGE_H
#define TESTS_FUZZ_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <preserve/map.h>

enum { MEMFDS_MAX = 8, LANES = 4, SLOTS = 64 };

/* The first byte of an input. */
enum {
	INPUT_RDONLY = 1,
	INPUT_KEEP_CHECKSUMS = 2,
	INPUT_THREADS = 4,
	INPUT_MEND = 8,
	INPUT_RELOCATE = 16,
	INPUT_NULL = 32,
	INPUT_COMPACT = 64,
	INPUT_UPGRADE = 128,
	INPUT_SEAL = INPUT_COMPACT | INPUT_UPGRADE, /* instead of either */
};

enum { GRAPH_OBJECTS = 16, GRAPH_KIDS = 3, MAP_ENTRIES = 40, TABLE_WORDS = 400 };

/** An object with a pointer of each kind. */
struct graph {
	struct graph *next;
	uint64_t tagged;
	int64_t relative;
	uint64_t offset;
	uint64_t nkids;
	struct graph *kids[];
};

#define GRAPH_BYTES (sizeof(struct graph) + GRAPH_KIDS * sizeof(struct graph *))

/** An entry of the map. */
struct item {
	uint64_t key_bytes;
	uint64_t key;
};

struct image {
	unsigned int n; /* memfds: the index and segments */
	uint64_t base;
	int fds[MEMFDS_MAX]; /* by token */
	size_t bytes[MEMFDS_MAX];
	uint8_t *now[MEMFDS_MAX]; /* mapped */
	uint8_t *pristine[MEMFDS_MAX];
	uint8_t *before[MEMFDS_MAX]; /* as it was handed to pv_open() */
	/* Offsets in the window: of the objects of the graph, and of words of the map that are addresses or
	 * tell how many there are. */
	uint64_t graph[GRAPH_OBJECTS];
	uint64_t table[TABLE_WORDS];
	unsigned int ntable;
};

extern struct image image;
extern const struct pv_typedef node_type, bytes_type, graph_type;
extern const struct pv_map_options map_options;

/** End the process if something is not as it must be. */
void must(int condition, const char *what);

/** What is left of an input. */
struct input {
	const uint8_t *at;
	size_t left;
};

uint64_t input_take(struct input *in, unsigned int bytes);
/** Change the image by one step of the input. */
void image_change(struct input *in);
/** Make all checksums and fingerprints right again. */
void image_compute_checksums(void);

/** Look at all of it: checks, statistics, objects. */
struct pv_check_report image_look(struct pv_store *s, unsigned int input);
/** Search and walk its map, whatever the checks have said. */
void image_search(struct pv_store *s);
/** Do with a store that is open for writing what can be done. */
void image_use(struct pv_store *s, unsigned int input);

#endif
