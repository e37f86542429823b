/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * image.c - what a dead process leaves behind, in ordinary memory: a set of slots (memfds) with
 * contents, size, seals, and whether somebody keeps them. Images move forward only, record by
 * record. Bytes of a slot from its size to its capacity are zero, so growing needs no clearing.
 */
#include <stdlib.h>
#include <string.h>
#include "engine.h"

const char *ct_intern(const char *text)
{
	static const char **texts;
	static size_t n, cap;

	for (size_t i = 0; i < n; i++) {
		if (strcmp(texts[i], text) == 0)
			return texts[i];
	}
	if (n == cap) {
		cap = cap ? 2 * cap : 64;
		texts = realloc(texts, cap * sizeof(*texts));
		if (!texts)
			ct_panic("no memory for %zu names", cap);
	}
	texts[n] = strdup(text);
	if (!texts[n])
		ct_panic("no memory for a name");
	return texts[n++];
}

void ct_slot_reserve(struct ct_slot *slot, uint64_t size_bytes)
{
	size_t cap = ((size_t)size_bytes + CT_PAGE_BYTES - 1) & ~(size_t)(CT_PAGE_BYTES - 1);
	uint8_t *bytes;

	if (cap <= slot->cap_bytes)
		return;
	bytes = calloc(1, cap);
	if (!bytes)
		ct_panic("no memory for an image of %zu bytes", cap);
	if (slot->size_bytes)
		memcpy(bytes, slot->bytes, (size_t)slot->size_bytes);
	free(slot->bytes);
	slot->bytes = bytes;
	slot->cap_bytes = cap;
}

static void slot_copy(struct ct_slot *to, const struct ct_slot *from)
{
	uint64_t old = to->size_bytes;

	to->size_bytes = 0; /* nothing of it need survive the reserve */
	ct_slot_reserve(to, from->size_bytes);
	if (from->size_bytes)
		memcpy(to->bytes, from->bytes, (size_t)from->size_bytes);
	if (old > from->size_bytes && to->cap_bytes > from->size_bytes)
		memset(to->bytes + from->size_bytes, 0, to->cap_bytes - (size_t)from->size_bytes);
	to->size_bytes = from->size_bytes;
	to->seals = from->seals;
	to->keep_seq = from->keep_seq;
	to->memfd_name = from->memfd_name;
	to->keep_name = from->keep_name;
}

void ct_image_copy(struct ct_image *to, const struct ct_image *from)
{
	to->n_slots = from->n_slots;
	to->keep_last = from->keep_last;
	for (unsigned i = 0; i < from->n_slots; i++)
		slot_copy(&to->slots[i], &from->slots[i]);
}

void ct_image_free(struct ct_image *image)
{
	for (unsigned i = 0; i < CRASH_MAX_MEMS; i++)
		free(image->slots[i].bytes);
	memset(image, 0, sizeof(*image));
}

static void slot_resize(struct ct_slot *slot, uint64_t size_bytes)
{
	ct_slot_reserve(slot, size_bytes);
	if (size_bytes < slot->size_bytes)
		memset(slot->bytes + size_bytes, 0, (size_t)(slot->size_bytes - size_bytes));
	slot->size_bytes = size_bytes;
}

void ct_image_apply(struct ct_image *image, const struct ct_record *record)
{
	struct ct_slot *s = &image->slots[record->slot];

	switch ((enum ct_kind)record->kind) {
	case CT_WORD:
		if (record->off + 8 > s->cap_bytes)
			ct_panic("record beyond memfd %u: offset %llu", record->slot,
				 (unsigned long long)record->off);
		memcpy(s->bytes + record->off, &record->new_value, 8);
		break;
	case CT_BORN:
		if (image->n_slots <= record->slot)
			image->n_slots = record->slot + 1u;
		slot_resize(s, 0);
		s->seals = (unsigned)record->old_value;
		s->memfd_name = s->keep_name = (const char *)(uintptr_t)record->new_value;
		s->keep_seq = 0;
		break;
	case CT_SIZE:
		slot_resize(s, record->new_value);
		break;
	case CT_SEALS:
		s->seals = (unsigned)record->new_value;
		break;
	case CT_KEEP:
		if (!s->keep_seq)
			s->keep_seq = ++image->keep_last;
		s->keep_name = (const char *)(uintptr_t)record->new_value;
		break;
	case CT_DROP:
		s->keep_seq = 0;
		break;
	case CT_EVENT:
		break;
	}
}

bool ct_image_survives(const struct ct_image *image, const struct ct_record *record)
{
	bool kept = image->slots[record->slot].keep_seq != 0;

	switch ((enum ct_kind)record->kind) {
	case CT_WORD:
	case CT_SIZE:
	case CT_SEALS:
		return kept && record->old_value != record->new_value;
	case CT_KEEP:
		return !kept;
	case CT_DROP:
		return kept;
	case CT_BORN:
	case CT_EVENT:
		return false;
	}
	return true;
}
