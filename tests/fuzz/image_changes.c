/* SPDX-License-Identifier: BSD-3-Clause */
/* What an input of fuzz_image changes in the image, and the checksums afterwards. */
#include <stdlib.h>
#include <string.h>

#include <libfdt.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "fuzz_image.h"
#include "internal.h"

/* ---- the input ---- */

uint64_t input_take(struct input *in, unsigned int bytes)
{
	uint64_t v = 0;

	for (unsigned int i = 0; i < bytes && in->left; i++, in->left--)
		v |= (uint64_t)*in->at++ << (8 * i);
	return v;
}

/* A word that is likely to be at some limit. */
static uint64_t take_word(struct input *in)
{
	unsigned int kind = (unsigned int)input_take(in, 1);

	switch (kind % 8) {
	case 0:
		return kind / 8;
	case 1:
		return ~(uint64_t)(kind / 8);
	case 2:
		return 1ull << (input_take(in, 1) % 64);
	case 3:
		return (1ull << (input_take(in, 1) % 64)) - 1;
	case 4:
		return input_take(in, 2) << (4 * (kind / 8 % 13));
	case 5:
		return input_take(in, 3);
	default:
		return input_take(in, 8);
	}
}

/* ---- changes ---- */

static struct index_rec *header(void)
{
	return (struct index_rec *)(void *)image.now[0];
}

/* The slot in force of the pristine image (0), or the other one. */
static struct index_slot_rec *slot(unsigned int other)
{
	const struct index_rec *pristine = (const void *)image.pristine[0];
	uint64_t generation = pristine->commit & PV_COMMIT_GENERATION_MASK;

	return (struct index_slot_rec *)(void *)(image.now[0] + PV_INDEX_HEADER_BYTES +
						 ((generation + other) & 1) * pristine->slot_bytes);
}

static void change_property(struct input *in)
{
	void *fdt = slot((unsigned int)input_take(in, 1) % 4 == 3) + 1;
	unsigned int nodes = (unsigned int)input_take(in, 1) % 16, props = (unsigned int)input_take(in, 1) % 12;
	uint64_t value = take_word(in);
	struct fdt_property *p;
	int node = 0, depth = 0, at, next, len;

	if (fdt_check_header(fdt) != 0)
		return;
	while (nodes-- && node >= 0)
		node = fdt_next_node(fdt, node, &depth);
	at = fdt_first_property_offset(fdt, node < 0 ? 0 : node);
	while (at >= 0 && props-- && (next = fdt_next_property_offset(fdt, at)) >= 0)
		at = next;
	p = at >= 0 ? (struct fdt_property *)(uintptr_t)fdt_get_property_by_offset(fdt, at, &len) : NULL;
	if (!p)
		return;
	if (len > 8) /* a list of cells, or a text */
		fdt32_st(p->data + 4 * (input_take(in, 1) % (unsigned int)(len / 4)), (uint32_t)value);
	else if (len == 8)
		fdt64_st(p->data, value);
	else if (len >= 4)
		fdt32_st(p->data, (uint32_t)value);
}

static unsigned int take_segment(struct input *in)
{
	return 1 + (unsigned int)input_take(in, 1) % (image.n - 1);
}

static void change_map(struct input *in)
{
	unsigned int i = take_segment(in);
	uint64_t *map = (uint64_t *)(void *)(image.now[i] + PV_MAP_OFF);
	uint64_t npages = image.bytes[i] / 4096;
	uint64_t *entry = &map[input_take(in, 1) % npages];
	unsigned int how = (unsigned int)input_take(in, 1);

	if (how & 1)
		*entry = map[input_take(in, 1) % npages]; /* a right one at a wrong place */
	if (how & 2)
		*entry ^= 1ull << (input_take(in, 1) % 64);
	if (how & 4)
		*entry = take_word(in);
}

static struct lane_rec *take_lane(struct input *in)
{
	const struct segment_rec *pristine = (const void *)image.pristine[1];

	return (struct lane_rec *)(void *)(image.now[1] + pristine->lanes_off) + input_take(in, 1) % LANES;
}

/* An offset that is likely to lie in the store. */
static uint64_t take_off(struct input *in)
{
	uint64_t v = input_take(in, 3);

	return v & 1 ? v >> 1 : (v >> 1) & ~7ull;
}

static void change_intent(struct input *in)
{
	struct lane_rec *lane = take_lane(in);
	unsigned int n = (unsigned int)input_take(in, 1) % 4;

	for (unsigned int i = 0; i < n; i++) {
		uint64_t op = input_take(in, 1) % 10, off = op == PV_DO_FLIP ? 0 : take_off(in);

		lane->actions[i].where = op << PV_DO_OP_SHIFT | off;
		lane->actions[i].value = take_word(in);
	}
	lane->count = n;
}

/* An address that is likely to lie in the store. */
static uint64_t take_address(struct input *in)
{
	return image.base + take_off(in);
}

static void change_link(struct input *in)
{
	struct lane_rec *lane = take_lane(in);
	uint64_t how = input_take(in, 1);

	lane->link.object = how & 1 ? take_address(in) : 0;
	lane->link.old = how & 2 ? take_address(in) : 0;
	lane->link.value = how & 4 ? take_word(in) : lane->link.object;
	lane->link.word_object = how & 8 ? take_address(in) : 0;
	lane->link.word_value = how & 16 ? take_address(in) : 0;
}

static void change_log(struct input *in)
{
	struct lane_rec *lane = take_lane(in);
	uint64_t state = input_take(in, 1), end = 0, n = input_take(in, 1) % 4;

	while (n--) {
		uint64_t op = input_take(in, 1), data = 8 * (input_take(in, 1) % 4);
		struct tx_entry_rec e = {(op & 8 ? PV_DO_UNDO : op % 6) << PV_DO_OP_SHIFT | take_off(in),
					 op & 8 ? data : take_word(in)};
		uint64_t length = sizeof(e) + (op & 8 ? data : 0) + 8;

		memcpy(lane->log + end, &e, sizeof(e));
		memset(lane->log + end + sizeof(e), (int)op, length - 8 - sizeof(e));
		if (op & 64)
			length ^= take_word(in);
		memcpy(lane->log + end + sizeof(e) + (op & 8 ? data : 0), &length, 8);
		end += sizeof(e) + (op & 8 ? data : 0) + 8;
	}
	for (unsigned int i = 0; i < 3 && state & 64; i++)
		lane->chunks[i] = (struct tx_chunk_rec){take_off(in), take_word(in), take_word(in)};
	lane->tx = (state & 3) | (state >> 2 & 3) << PV_TX_CHUNK_SHIFT |
		   (state & 128 ? take_word(in) : end) << PV_TX_END_SHIFT;
}

/* What a root's creation leaves: the next index in the other slot, and an intent to put it in force. */
static void change_staged(struct input *in)
{
	const struct index_rec *pristine = (const void *)image.pristine[0];
	uint64_t generation = (pristine->commit & PV_COMMIT_GENERATION_MASK) + 1;
	struct index_slot_rec *next = slot(1);
	struct lane_rec *lane = take_lane(in);

	memcpy(next, slot(0), pristine->slot_bytes);
	next->generation = generation;
	if (fdt_check_header(next + 1) == 0)
		fdt_setprop_inplace_u64(next + 1, 0, "generation", generation);
	lane->actions[0] = (struct action_rec){(uint64_t)PV_DO_FLIP << PV_DO_OP_SHIFT, generation};
	lane->count = 1;
}

static void change_word(struct input *in)
{
	unsigned int i = (unsigned int)input_take(in, 1) % image.n;
	size_t at = input_take(in, 3) % (image.bytes[i] / 8);

	((uint64_t *)(void *)image.now[i])[at] = take_word(in);
}

static void change_header(struct input *in)
{
	unsigned int i = (unsigned int)input_take(in, 1) % image.n;

	((uint32_t *)(void *)image.now[i])[input_take(in, 1) % 30] = (uint32_t)take_word(in);
}

/* Where a word of the window lies in the image. */
static uint8_t *place(uint64_t at)
{
	for (unsigned int i = 1; i < image.n; i++) {
		const struct segment_rec *seg = (const void *)image.pristine[i];

		if (at >= seg->window_off && at - seg->window_off <= image.bytes[i] - 8)
			return image.now[i] + (at - seg->window_off);
	}
	return NULL;
}

static void set_word(uint64_t at, uint64_t value)
{
	uint8_t *p = place(at);

	if (p)
		memcpy(p, &value, 8);
}

static uint64_t get_word(uint64_t at)
{
	const uint8_t *p = place(at);
	uint64_t value = 0;

	if (p)
		memcpy(&value, p, 8);
	return value;
}

/* A word of an object of the graph: an address near an object, or anything. */
static void change_pointer(struct input *in)
{
	uint64_t at = image.graph[input_take(in, 1) % GRAPH_OBJECTS] + 8 * (input_take(in, 1) % (GRAPH_BYTES / 8));
	unsigned int how = (unsigned int)input_take(in, 1);
	uint64_t value = image.graph[input_take(in, 1) % GRAPH_OBJECTS] + input_take(in, 1);

	if (how % 4 == 0)
		value += image.base;
	else if (how % 4 == 1)
		value -= at;
	else if (how % 4 == 2)
		value = take_word(in);
	set_word(at, value);
}

/* A word of the map: an address near an object of the map's or another, a bit of it, or anything. */
static void change_table(struct input *in)
{
	uint64_t at = image.table[(input_take(in, 2)) % image.ntable], value = get_word(at);
	unsigned int how = (unsigned int)input_take(in, 1);

	switch (how % 4) {
	case 0:
		value = take_word(in);
		break;
	case 1:
		value ^= 1ull << (input_take(in, 1) % 64);
		break;
	case 2: /* with the tag of the word that is there */
		value = (value & ~(~0ull >> 16)) | take_address(in);
		break;
	default:
		value = get_word(image.table[input_take(in, 2) % image.ntable]) + (how & 4 ? input_take(in, 1) : 0);
	}
	set_word(at, value);
}

void image_change(struct input *in)
{
	unsigned int which;

	static void (*const changes[])(struct input *) = {
		change_property, change_property, change_map,	 change_map,  change_intent,
		change_link,	 change_log,	  change_staged, change_header, change_word};

	which = (unsigned int)input_take(in, 1);
	if (which >= 216)
		change_pointer(in);
	else if (which >= 170)
		change_table(in);
	else
		changes[which % (sizeof(changes) / sizeof(changes[0]))](in);
}

static void feed_u32(XXH3_state_t *hash, const void *fdt, int node, const char *name)
{
	int len;
	const void *p = fdt_getprop(fdt, node, name, &len);
	uint32_t none = 0;

	XXH3_64bits_update(hash, p && len == 4 ? p : &none, 4);
}

/* Of types: what stands beside the fingerprint is what it is of. */
static void compute_fingerprints(void *fdt)
{
	int group = fdt_check_header(fdt) ? -1 : fdt_subnode_offset(fdt, 0, "types"), node;
	XXH3_state_t *hash = XXH3_createState();

	must(hash != NULL, "no memory");
	if (group >= 0) {
		fdt_for_each_subnode (node, fdt, group) {
			int len;
			const void *fields = fdt_getprop(fdt, node, "fields", &len);

			XXH3_64bits_reset(hash);
			feed_u32(hash, fdt, node, "version");
			feed_u32(hash, fdt, node, "bytes");
			feed_u32(hash, fdt, node, "flags");
			if (fields)
				XXH3_64bits_update(hash, fields, (size_t)len);
			fdt_setprop_inplace_u64(fdt, node, "fingerprint", XXH3_64bits_digest(hash));
		}
	}
	XXH3_freeState(hash);
}

/* The tree of a slot, if all of it is where it says. */
static void *sound_tree(struct index_slot_rec *s, uint32_t room)
{
	if (s->bytes > room - sizeof(*s) || !pvi_index_tree_sound(s + 1, s->bytes))
		return NULL;
	return s + 1;
}

void image_compute_checksums(void)
{
	struct index_rec *rec = header();
	uint64_t generation = rec->commit & PV_COMMIT_GENERATION_MASK;

	rec->checksum = XXH3_64bits(rec, offsetof(struct index_rec, checksum));
	rec->commit = generation | XXH3_64bits_withSeed(rec->uuid, sizeof(rec->uuid), generation) >>
					   PV_COMMIT_CHECK_SHIFT << PV_COMMIT_CHECK_SHIFT;
	for (unsigned int i = 0; i < 2; i++) {
		struct index_slot_rec *s = slot(i);
		uint32_t room = ((const struct index_rec *)(const void *)image.pristine[0])->slot_bytes;

		void *tree = sound_tree(s, room);

		if (tree)
			compute_fingerprints(tree);
		if (s->bytes <= room - sizeof(*s))
			s->checksum = XXH3_64bits_withSeed(s + 1, s->bytes, s->generation);
	}
	for (unsigned int i = 1; i < image.n; i++) {
		struct segment_rec *seg = (struct segment_rec *)(void *)image.now[i];

		seg->checksum = XXH3_64bits(seg, offsetof(struct segment_rec, checksum));
	}
}
