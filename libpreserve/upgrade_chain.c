/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Chains of upgrade functions: which of a type's functions lead from the version that a store has to the
 * one that the program has, and running them over one object.
 *
 * All steps but the last work on two buffers in turns; the last writes to where the object is going to
 * be. How large that is may depend on what the step before it has made, so a run has two halves: up to
 * the last step, which then says how much it needs, and the last step.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "upgrade.h"

/* ---- which ---- */

static int step_fault(const struct pv_typedef *def, const struct pv_upgrade *u, const char *what)
{
	return pvi_fail(-EINVAL, "type %s: upgrade from version %u to %u: %s", def->name, u->from, u->to,
			what);
}

int pvi_upgrade_check(const struct pv_typedef *def)
{
	if (def->nupgrades && !def->upgrades)
		return pvi_fail(-EINVAL, "type %s: no list of upgrades", def->name);
	if (def->nupgrades > PVI_UPGRADES_MAX)
		return pvi_fail(-EINVAL, "type %s: %u upgrades, the most is %u", def->name,
				def->nupgrades, PVI_UPGRADES_MAX);
	for (uint32_t i = 0; i < def->nupgrades; i++) {
		const struct pv_upgrade *u = &def->upgrades[i];

		if (!u->run)
			return step_fault(def, u, "no function");
		if (u->from == u->to)
			return step_fault(def, u, "it leads nowhere");
		if (u->flags & ~PV_UPGRADE_TAIL)
			return step_fault(def, u, "unknown flags");
		if (u->size && u->flags & PV_UPGRADE_TAIL)
			return step_fault(def, u, "a function says the size, and PV_UPGRADE_TAIL does");
		for (uint32_t k = 0; k < def->nupgrades; k++) {
			const struct pv_upgrade *other = &def->upgrades[k];

			if (k < i && u->from == other->from && u->to == other->to)
				return step_fault(def, u, "it stands twice");
			if (u->to == other->to && u->bytes != other->bytes)
				return step_fault(def, u, "another one to this version has another size");
		}
		if (u->to == def->version && u->bytes != def->bytes)
			return pvi_fail(-EINVAL,
					"type %s: upgrade from version %u to %u: to %u bytes, but the "
					"type has %u",
					def->name, u->from, u->to, u->bytes, def->bytes);
	}
	return 0;
}

/* Breadth first: `before[i]` is the step from which step i was come to, itself for a first one. */
bool pvi_upgrade_find(const struct pv_typedef *def, uint32_t from, uint32_t from_bytes,
		      struct pvi_upgrade_chain *out)
{
	uint32_t queue[PVI_UPGRADES_MAX], before[PVI_UPGRADES_MAX], n = 0, last = 0, at = 0;
	bool seen[PVI_UPGRADES_MAX] = {false};
	bool found = false;

	for (uint32_t next = 0; !found; next++) {
		uint32_t version;

		if (next > n)
			return false;
		version = next ? def->upgrades[queue[next - 1]].to : from;
		for (uint32_t i = 0; i < def->nupgrades && !found; i++) {
			if (seen[i] || def->upgrades[i].from != version || def->upgrades[i].to == from)
				continue;
			seen[i] = true;
			before[i] = next ? queue[next - 1] : i;
			queue[n++] = last = i;
			found = def->upgrades[i].to == def->version;
		}
	}
	*out = (struct pvi_upgrade_chain){.name = def->name, .nsteps = 1};
	for (at = last; before[at] != at; at = before[at])
		out->nsteps++;
	for (uint32_t i = out->nsteps; i-- > 0; last = before[last])
		out->steps[i] = &def->upgrades[last];
	out->bytes[0] = from_bytes;
	for (uint32_t i = 1; i < out->nsteps; i++)
		out->bytes[i] = out->steps[i - 1]->bytes;
	return true;
}

/* ---- running ---- */

/* What a step needs for its result. */
static int step_bytes(const struct pvi_upgrade_chain *c, uint32_t i, const void *old, size_t old_bytes,
		      size_t *out)
{
	const struct pv_upgrade *u = c->steps[i];
	bool longer = old_bytes > (i == 0 ? c->most_bytes : c->bytes[i]);

	if (u->size) {
		*out = u->size(u->ctx, old, old_bytes);
		return *out >= u->bytes && *out ? 0
						: pvi_fail(-EINVAL,
							   "type %s: upgrade from version %u to %u: %zu "
							   "bytes for an object of a struct of %u",
							   c->name, u->from, u->to, *out, u->bytes);
	}
	/* Opaque bytes are all tail. */
	if (u->flags & PV_UPGRADE_TAIL || !u->bytes) {
		*out = u->bytes + (old_bytes - c->bytes[i]);
		return 0;
	}
	*out = u->bytes;
	/* From opaque bytes to a struct, nobody can say what is too long. */
	if (!longer || !c->bytes[i])
		return 0;
	return pvi_fail(-EINVAL,
			"type %s: upgrade from version %u to %u: %p has %zu bytes, more than the struct of "
			"%u: PV_UPGRADE_WITH_TAIL or PV_UPGRADE_SIZED would keep them",
			c->name, u->from, u->to, old, old_bytes, c->bytes[i]);
}

static int run_step(const struct pvi_upgrade_chain *c, const struct pv_upgrade *u, const void *old,
		    size_t old_bytes, void *fresh, size_t fresh_bytes)
{
	int err = u->run(u->ctx, old, old_bytes, fresh, fresh_bytes);

	if (err >= 0)
		return 0;
	return pvi_fail(err, "type %s: the upgrade from version %u to %u failed: %s", c->name, u->from,
			u->to, strerror(-err));
}

/* A buffer of the two, zero, of at least so many bytes. */
static uint8_t *make_room(struct pvi_upgrade_room *room, uint32_t which, size_t bytes)
{
	if (room->bytes[which] < bytes) {
		uint8_t *more = realloc(room->at[which], bytes);

		if (!more)
			return NULL;
		room->at[which] = more;
		room->bytes[which] = bytes;
	}
	return memset(room->at[which], 0, bytes);
}

int pvi_upgrade_start(const struct pvi_upgrade_chain *c, struct pvi_upgrade_room *room, const void *old,
		      size_t old_bytes, size_t *fresh_bytes, const struct pv_upgrade **failed)
{
	int err = 0;

	for (uint32_t i = 0;; i++) {
		size_t bytes = 0;
		uint8_t *fresh;

		*failed = c->steps[i];
		room->old = old;
		room->old_bytes = old_bytes;
		err = step_bytes(c, i, old, old_bytes, &bytes);
		if (err)
			return err;
		*fresh_bytes = bytes;
		if (i + 1 == c->nsteps)
			return 0;
		fresh = make_room(room, i % 2, bytes);
		if (!fresh)
			return pvi_fail(-ENOMEM, "type %s: no memory for %zu bytes of version %u",
					c->name, bytes, c->steps[i]->to);
		err = run_step(c, c->steps[i], old, old_bytes, fresh, bytes);
		if (err)
			return err;
		old = fresh;
		old_bytes = bytes;
	}
}

int pvi_upgrade_end(const struct pvi_upgrade_chain *c, const struct pvi_upgrade_room *room, void *fresh,
		    size_t fresh_bytes, const struct pv_upgrade **failed)
{
	*failed = c->steps[c->nsteps - 1];
	return run_step(c, *failed, room->old, room->old_bytes, fresh, fresh_bytes);
}

void pvi_upgrade_room_free(struct pvi_upgrade_room *room)
{
	free(room->at[0]);
	free(room->at[1]);
	*room = (struct pvi_upgrade_room){0};
}
