/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pv_repair(): a full check, and then what can be mended without a guess. The index is written anew
 * from its sound copy, or from what this process has of it. Leaked objects are freed by the
 * ordinary way, an intent for as many as one can hold; whatever a crash leaves of them is found
 * leaked by the next repair.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"

struct repair {
	struct pv_store *s;
	struct pv_repair_options o;
	struct pv_repair_report r;
	struct pvi_check *c;
	bool dry;
};

__attribute__((format(printf, 2, 3))) static void say(const struct repair *r, const char *format,
						      ...)
{
	char line[360];
	va_list ap;

	if (!r->o.tell)
		return;
	va_start(ap, format);
	vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	r->o.tell(r->o.ctx, line);
}

/* A problem of the check: nothing here mends those. */
static void say_left(void *ctx, const char *line)
{
	say(ctx, "left: %s", line);
}

/* ---- the index ---- */

static int rewrite_index(struct pv_store *s)
{
	int err;

	pthread_mutex_lock(&s->index_lock);
	err = pvi_index_restore(&s->index);
	pthread_mutex_unlock(&s->index_lock);
	return err;
}

static int mend_index(struct repair *r)
{
	const struct index_rec *rec = r->s->index.rec;
	uint64_t generation = pvi_index_current(r->s);
	const char *would = r->dry ? "would write" : "written";
	uint64_t before = r->r.mended;

	if (!pvi_index_commit_sound(&r->s->index) || pvi_index_generation(rec) != generation) {
		say(r,
		    "index: the commit word 0x%016" PRIx64 " is not that of generation %" PRIu64
		    ": %s anew",
		    rec->commit, generation, would);
		r->r.mended++;
	}
	if (!pvi_index_slot_sound(rec, generation, false)) {
		say(r, "index: generation %" PRIu64 ": its slot is damaged: %s anew", generation,
		    would);
		r->r.mended++;
	} else if (!r->s->readonly && !pvi_index_staged_sound(&r->s->index, generation)) {
		say(r,
		    "index: generation %" PRIu64 " is not what this process has written: %s anew",
		    generation, would);
		r->r.mended++;
	}
	if (!pvi_index_slot_sound(rec, generation, true)) {
		say(r, "index: generation %" PRIu64 " has no mirror: %s", generation, would);
		r->r.mended++;
	}
	return r->r.mended == before || r->dry ? 0 : rewrite_index(r->s);
}

/* ---- leaked objects ---- */

struct batch {
	struct pv_action actions[PV_ACTIONS_MAX];
	unsigned int n;
	uint64_t bytes;
};

static int free_batch(struct repair *r, struct batch *b)
{
	int err = b->n && !r->dry ? pv_publish(r->s, b->actions, b->n) : 0;

	if (!err) {
		r->r.freed_objects += b->n;
		r->r.freed_bytes += b->bytes;
	} else {
		say(r, "left: %u leaked objects: %s", b->n, pv_last_error());
		r->r.left++;
	}
	b->n = 0;
	b->bytes = 0;
	/* What one batch may not do another may; what has no memory has none. */
	return err == -EPERM || err == -EINVAL ? 0 : err;
}

static int free_object(struct repair *r, struct batch *b, uint64_t off)
{
	const struct pv_store *s = r->s;
	struct pvi_check_object o;

	if (!pvi_check_find(r->c, off, &o) || (r->o.type && o.type != r->o.type))
		return 0;
	say(r, "%s object 0x%" PRIx64 " of type %s, %" PRIu64 " bytes: nothing leads to it",
	    r->dry ? "would free" : "freed", s->index.base + off, s->index.types[o.type].name,
	    o.bytes);
	b->actions[b->n++] = PV_FREE((void *)(s->base + off));
	b->bytes += o.bytes;
	return b->n == PV_ACTIONS_MAX ? free_batch(r, b) : 0;
}

static int free_leaks(struct repair *r)
{
	struct batch b = {.n = 0};
	int err = 0;

	for (uint32_t k = 0; k < r->c->nsegments && !err; k++) {
		const struct pvi_segment *seg = &r->s->segments[k];

		for (uint32_t page = seg->first_page; page < seg->npages && !err; page++) {
			uint32_t slot = 0;
			uint64_t off;

			while (!err && pvi_check_next_leak(r->c, seg, page, &slot, &off))
				err = free_object(r, &b, off);
		}
	}
	return err ? err : free_batch(r, &b);
}

static int mend_leaks(struct repair *r)
{
	const struct pv_check_report *found = &r->r.check;

	if (!(r->o.flags & PV_REPAIR_LEAKS))
		return 0;
	if (found->transactions && !r->s->readonly)
		return pvi_fail(-EBUSY,
				"a transaction is open: what it has taken out is not leaked yet");
	if (found->unsettled) {
		say(r, "left: leaked objects are known only when %s",
		    found->unsettled & PV_UNSETTLED_IN_USE ? "no other process has the store open"
							   : "the store was opened for writing");
		return 0;
	}
	if (found->problems && found->leaked_objects) {
		say(r,
		    "left: %" PRIu64
		    " leaked objects: something that is damaged may have led to them",
		    found->leaked_objects);
		return 0;
	}
	return free_leaks(r);
}

/* ---- all of it ---- */

static int take_options(struct repair *r, const struct pv_repair_options *opts)
{
	int err = opts ? pvi_check_options(&r->o, sizeof(r->o), opts, opts->size,
					   offsetof(struct pv_repair_options, tell),
					   "pv_repair_options")
		       : 0;

	if (err)
		return err;
	if ((r->o.flags & ~(PV_REPAIR_DRY_RUN | PV_REPAIR_LEAKS)) || r->o.reserved ||
	    r->o.threads > PVI_CHECK_THREADS_MAX || r->o.type > r->s->index.ntypes)
		return pvi_fail(-EINVAL, "pv_repair_options: flags 0x%x, %u threads, type %u",
				r->o.flags, r->o.threads, r->o.type);
	r->dry = r->o.flags & PV_REPAIR_DRY_RUN;
	if (!r->dry && r->s->readonly)
		return pvi_fail(-EPERM, "the store was opened read-only");
	return 0;
}

static int repair(struct repair *r)
{
	int err;

	r->c->o = (struct pv_check_options){
		.threads = r->o.threads,
		.tell = say_left,
		.progress = r->o.progress,
		.ctx = r,
	};
	r->c->quiet_on_index = true;
	err = pvi_check_run(r->c, r->s);
	if (!err) {
		r->r.check = r->c->r;
		r->r.left = r->c->r.problems;
		err = mend_index(r);
	}
	if (!err)
		err = mend_leaks(r);
	pvi_check_end(r->c);
	return err;
}

int pv_repair(struct pv_store *s, const struct pv_repair_options *opts,
	      struct pv_repair_report *report)
{
	struct repair r = {.s = s};
	int err = take_options(&r, opts);

	if (err)
		return err;
	r.c = calloc(1, sizeof(*r.c));
	if (!r.c)
		return pvi_fail(-ENOMEM, "no memory");
	err = repair(&r);
	free(r.c);
	if (!err)
		*report = r.r;
	return err;
}
