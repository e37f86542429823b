/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Putting a store together from what the service manager passed in (fdstore.h). It may be in any order,
 * of several stores, with copies and leftovers in between, and not complete: a manager that carries its
 * store through a kexec does so as well as it can.
 *
 * The index says which store it is (its name and UUID), and which segments there are; a segment says
 * whose it is, its number, and the generation that it was born with. So no guess is needed, and none is
 * made: of several indexes of a store the one of the highest generation counts. It is not passed over
 * for an older one whose segments are all there, for those have gone on since.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fdstore.h"

#define NAMED_MAX 8u /* missing segments that a message names */

static bool same_uuid(const uint8_t a[16], const uint8_t b[16])
{
	return memcmp(a, b, 16) == 0;
}

static void uuid_text(const uint8_t uuid[16], char text[9])
{
	snprintf(text, 9, "%02x%02x%02x%02x", uuid[0], uuid[1], uuid[2], uuid[3]);
}

/* Two names of one memfd: keep the first, and of the other only what is needed to remove it. */
static bool is_double(struct pvi_fdstore_item *kept, struct pvi_fdstore_item *other)
{
	if (!pvi_fdstore_same_memfd(kept, other))
		return false;
	other->role = PVI_FDSTORE_STALE;
	return true;
}

/* ---- the index ---- */

static int read_rec(const struct pvi_fdstore_item *item, struct index_rec *rec)
{
	if (pread(item->fd, rec, sizeof(*rec), 0) != (ssize_t) sizeof(*rec))
		return pvi_fail(-EBADMSG, "index: cannot read its header");
	return 0;
}

static bool same_bytes(const struct pvi_fdstore_item *a, const struct pvi_fdstore_item *b)
{
	uint8_t x[PV_INDEX_HEADER_BYTES], y[PV_INDEX_HEADER_BYTES];
	off_t off = PV_INDEX_HEADER_BYTES; /* the header says who wrote last */
	ssize_t n;

	do {
		n = pread(a->fd, x, sizeof(x), off);
		if (n < 0 || pread(b->fd, y, sizeof(y), off) != n || memcmp(x, y, (size_t) n) != 0)
			return false;
		off += n;
	} while (n);
	return true;
}

/* Both say that they are the store's index: *best is what counts afterwards. */
static int compare(const char *store, struct pvi_fdstore_item **best, struct pvi_fdstore_item *other)
{
	struct index_rec a, b;
	char x[9], y[9];
	int err;

	if (!same_uuid((*best)->uuid, other->uuid)) {
		uuid_text((*best)->uuid, x);
		uuid_text(other->uuid, y);
		return pvi_fail(-EBADMSG,
				"two stores named %s were passed in, of UUID %s... and %s...: which one "
				"is meant cannot be told (PV_RESET drops both)",
				store, x, y);
	}
	if (is_double(*best, other))
		return 0;
	err = read_rec(*best, &a);
	if (!err)
		err = read_rec(other, &b);
	if (err)
		return err;
	if (pvi_index_generation(&a) == pvi_index_generation(&b) && !same_bytes(*best, other))
		return pvi_fail(-EBADMSG,
				"two different copies of the index of store %s were passed in, both of "
				"generation %" PRIu64,
				store, pvi_index_generation(&a));
	if (pvi_index_generation(&a) < pvi_index_generation(&b)) {
		(*best)->role = PVI_FDSTORE_STALE;
		*best = other;
	} else {
		other->role = PVI_FDSTORE_STALE;
	}
	(*best)->role = PVI_FDSTORE_CHOSEN;
	return 0;
}

static int choose_index(const char *store, struct pvi_fdstore_item **out)
{
	struct pvi_fdstore_item *best = NULL;
	int err = 0;

	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i && !err; i = i->next) {
		if (i->kind != PVI_FDSTORE_INDEX || strcmp(i->store, store) != 0)
			continue;
		if (best)
			err = compare(store, &best, i);
		else
			best = i;
	}
	if (!err && best) {
		best->role = PVI_FDSTORE_CHOSEN;
		*out = best;
	}
	return err;
}

/* ---- segments ---- */

/* The segment that the index means by its number n. */
static int choose_segment(const char *store, const struct pvi_index *idx, uint32_t n,
			  struct pvi_fdstore_item **out)
{
	*out = NULL;
	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = i->next) {
		if (i->kind != PVI_FDSTORE_SEGMENT || i->number != n ||
		    !same_uuid(i->uuid, idx->uuid) || i->bytes != idx->segments[n].bytes ||
		    i->birth_generation != idx->segments[n].birth_generation)
			continue;
		if (*out && !is_double(*out, i))
			return pvi_fail(-EBADMSG,
					"two different memfds were passed in that say they are segment %u "
					"of store %s",
					n, store);
		if (!*out)
			*out = i;
	}
	if (*out)
		(*out)->role = PVI_FDSTORE_CHOSEN;
	return 0;
}

static int missing(const char *store, const struct pvi_index *idx, const bool *there, uint32_t n)
{
	char list[NAMED_MAX * 40] = "", uuid[9];
	uint32_t named = 0;

	for (uint32_t i = 0; i < idx->nsegments && named < NAMED_MAX; i++) {
		size_t at = strlen(list);

		if (there[i])
			continue;
		snprintf(list + at, sizeof(list) - at, "%s%u (%" PRIu64 " bytes)", named ? ", " : "", i,
			 idx->segments[i].bytes);
		named++;
	}
	uuid_text(idx->uuid, uuid);
	return pvi_fail(-ENXIO,
			"store %s (UUID %s..., generation %" PRIu64
			") is not complete: of its %u segments the service manager passed %u, and not "
			"segment %s%s",
			store, uuid, idx->generation, idx->nsegments, idx->nsegments - n, list,
			n > named ? " and others" : "");
}

static int choose_segments(const char *store, const struct pvi_index *idx, struct pvi_fdstore_item **out)
{
	bool *there = calloc(idx->nsegments + 1, sizeof(*there));
	uint32_t lacking = 0;
	int err = there ? 0 : pvi_fail(-ENOMEM, "no memory for %u segments", idx->nsegments);

	for (uint32_t n = 0; n < idx->nsegments && !err; n++) {
		err = choose_segment(store, idx, n, &out[n]);
		if (err)
			break;
		there[n] = out[n] != NULL;
		lacking += !there[n];
	}
	if (!err && lacking)
		err = missing(store, idx, there, lacking);
	free(there);
	return err;
}

/* ---- leftovers ---- */

/* Is there an index, of whatever state, for this segment? */
static bool has_index(const struct pvi_fdstore_item *segment)
{
	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = i->next)
		if (i->kind == PVI_FDSTORE_INDEX && same_uuid(i->uuid, segment->uuid))
			return true;
	return false;
}

static bool was_destroyed(const struct pvi_fdstore_item *item)
{
	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = i->next)
		if (i->kind == PVI_FDSTORE_GONE && same_uuid(i->uuid, item->uuid))
			return true;
	return false;
}

/* A segment of a store of this name, as far as can be told, that has no index. */
static bool is_orphan(const struct pvi_fdstore_item *i, const char *store)
{
	return i->kind == PVI_FDSTORE_SEGMENT && strcmp(i->store, store) == 0 && !has_index(i) &&
	       !was_destroyed(i);
}

static bool is_gone(const struct pvi_fdstore_item *i, const char *store)
{
	return strcmp(i->store, store) == 0 && (i->kind == PVI_FDSTORE_GONE || was_destroyed(i));
}

/* Whatever is the store's and has not been chosen. */
static void mark_stale(const char *store, const struct pvi_fdstore_item *index)
{
	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = i->next) {
		if (i->role == PVI_FDSTORE_CHOSEN)
			continue;
		if (is_gone(i, store) ||
		    (index && (same_uuid(i->uuid, index->uuid) || is_orphan(i, store))))
			i->role = PVI_FDSTORE_STALE;
	}
}

/* Segments alone. What that means is the caller's to say. */
static int orphans(const char *store, struct pvi_fdstore_item ***out, unsigned int *n)
{
	unsigned int count = 0;

	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = i->next)
		count += is_orphan(i, store);
	if (!count)
		return pvi_fail(-ENOENT,
				"none of the %u descriptors that the service manager passed in is its "
				"index%s",
				pvi_fdstore_passed(), pvi_fdstore_passed_note());
	*out = calloc(count, sizeof(**out));
	if (!*out)
		return pvi_fail(-ENOMEM, "no memory for %u segments", count);
	*n = 0;
	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = i->next) {
		if (!is_orphan(i, store))
			continue;
		i->role = PVI_FDSTORE_CHOSEN;
		(*out)[(*n)++] = i;
	}
	return 0;
}

int pvi_fdstore_select(const char *store, struct pvi_fdstore_item ***out, unsigned int *n)
{
	struct pvi_fdstore_item *index = NULL, **chosen;
	struct pvi_index idx = {0};
	struct index_rec rec;
	int err;

	for (struct pvi_fdstore_item *i = pvi_fdstore_items(); i; i = i->next)
		i->role = PVI_FDSTORE_FOREIGN;
	err = choose_index(store, &index);
	if (err)
		return err;
	if (!index) {
		mark_stale(store, NULL);
		return orphans(store, out, n);
	}
	err = read_rec(index, &rec);
	if (err)
		return err;
	/* One that cannot be read is handed out alone: the attach says what is wrong with it. */
	if (pvi_index_check_header(&rec, index->bytes) ||
	    pvi_index_read(&idx, index->fd, &rec, PVI_INDEX_MEND))
		idx = (struct pvi_index){0};
	chosen = calloc(idx.nsegments + 1, sizeof(struct pvi_fdstore_item *));
	err = chosen ? choose_segments(store, &idx, chosen + 1)
		     : pvi_fail(-ENOMEM, "no memory for %u segments", idx.nsegments);
	if (err) {
		free(chosen);
	} else {
		chosen[0] = index;
		if (idx.nsegments)
			mark_stale(store, index);
		*out = chosen;
		*n = idx.nsegments + 1;
	}
	if (idx.segments)
		pvi_index_free(&idx);
	return err;
}
