/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Slabs and bins: where magazines get their slots from and give them back to.
 *
 * The truth about a slot is its byte in the arena. What is kept here in ordinary memory (how many
 * slots of a slab are FREE, which slabs have any, where the bytes are) is derived from the arena when
 * this process first touches a slab: it is warmed. Warming checks the slab, and turns what an earlier
 * process left RESERVED, RETIRED or HELD into FREE; until then nobody looks at those bytes, so a crash
 * needs no walk of the heap.
 *
 * Everything here runs under heap_lock, and with the calling thread's lane idle. Slot bytes are
 * also written without the lock, by whoever owns the slot (HELD -> RESERVED -> LIVE -> HELD), but never
 * to or from FREE.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "slotbytes.h"

/* What a refill does to find a cold slab with a free slot before it takes fresh pages: bounds its time
 * after an attach. */
#define COLD_WARMS 8u	 /* slabs that it warms */
#define COLD_LOOKS 4096u /* pages that it passes over */

/* ---- bins ---- */

/* A slab with free slots joins the list of its shard. */
static void list_push(struct pvi_bin *bin, struct pvi_slab *d)
{
	struct pvi_slab **list = &bin->partial[d->shard];

	d->prev = NULL;
	d->next = *list;
	if (*list)
		(*list)->prev = d;
	*list = d;
	bin->npartial[d->shard]++;
}

static void list_remove(struct pvi_bin *bin, struct pvi_slab *d)
{
	if (d->prev)
		d->prev->next = d->next;
	else
		bin->partial[d->shard] = d->next;
	if (d->next)
		d->next->prev = d->prev;
	d->next = d->prev = NULL;
	bin->npartial[d->shard]--;
}

/* The shard whose slabs the calling thread uses. */
static uint8_t own_shard(const struct pv_store *s)
{
	const struct pvi_thread *t = pvi_thread_find(s);

	return t ? (uint8_t) pvi_thread_shard(t) : 0;
}

struct pvi_bin *pvi_slab_bin(struct pv_store *s, uint32_t type, uint32_t class)
{
	struct pvi_type *t = &s->index.types[type];

	if (!t->bins)
		t->bins = calloc(PVI_CLASSES, sizeof(*t->bins));
	return t->bins ? &t->bins[class] : NULL;
}

struct pvi_depot *pvi_slab_depot(struct pv_store *s, uint32_t type, uint32_t class)
{
	struct pvi_bin *bin = pvi_slab_bin(s, type, class);

	if (bin && !bin->depot)
		bin->depot = pvi_depot_new(s->classes[class].slot_bytes, &s->depot_bytes);
	return bin ? bin->depot : NULL;
}

void pvi_slab_bins_free(struct pvi_bin *bins)
{
	for (uint32_t i = 0; bins && i < PVI_CLASSES; i++)
		pvi_depot_free(bins[i].depot);
	free(bins);
}

static uint32_t page_of(const struct pvi_segment *seg, const struct pvi_slab *d)
{
	return (uint32_t) (d - seg->slabs);
}

/* ---- one slab ---- */

/*
 * Where the slab_rec lies. Slabs are aligned to pages, so if it were always at the same place, the
 * slot bytes of all slabs would fall into the same few cache sets and evict each other. It wanders
 * over the grid instead, always onto the start of a slot.
 */
static uint32_t slab_color(const struct pvi_class *c, uint64_t slab_off, uint32_t page_shift)
{
	uint32_t covered = c->nslots - c->usable, step = 1, places;

	if (c->byte_shift) /* beside the slot bytes */
		return (uint32_t) (pvi_slab_byte_of(slab_off, c->byte_shift, (1u << page_shift) - 1) - slab_off) ^
		       c->nslots;
	if (!c->in_grid)
		return (c->nslots * c->slot_bytes + PV_SLAB_ALIGN - 1) / PV_SLAB_ALIGN *
		       PV_SLAB_ALIGN;
	while (step * c->slot_bytes % PV_SLAB_ALIGN)
		step *= 2;
	places = (c->nslots - covered) / step + 1;
	return (uint32_t) ((slab_off >> page_shift) * 2654435761u >> 7) % places * step *
	       c->slot_bytes;
}

bool pvi_slab_sound(const struct pv_store *s, const struct pvi_segment *seg, uint32_t page,
		    uint64_t rec)
{
	const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];
	uint64_t off = (uint64_t) page << s->page_shift;
	const struct slab_rec *slab =
		(const struct slab_rec *) (const void *) (seg->addr + off + pvi_rec_meta(rec));

	/* Neither it nor the slot bytes may lie in slots that are handed out. */
	if (c->byte_shift  ? pvi_rec_meta(rec) != slab_color(c, seg->off + off, s->page_shift)
	    : c->in_grid ? pvi_rec_meta(rec) % c->slot_bytes != 0
			   : pvi_rec_meta(rec) < c->nslots * c->slot_bytes)
		return false;
	return slab->magic == PV_SLAB_MAGIC && slab->type == pvi_rec_type(rec) &&
	       slab->type <= s->index.ntypes && slab->slot_bytes == c->slot_bytes &&
	       slab->nslots == c->nslots && slab->slab_off == seg->off + off &&
	       slab->meta_off == pvi_rec_meta(rec) && slab->npages == c->npages;
}

uint8_t *pvi_slab_slot(const struct pv_store *s, const struct pvi_segment *seg, uint64_t seg_off,
		       uint64_t *rec)
{
	uint32_t page = (uint32_t) (seg_off >> s->page_shift);
	uint64_t entry = pvi_rec_load(seg->map, page), in;
	const struct pvi_class *c;

	if (pvi_page_kind(entry) != PV_PAGE_SLAB || pvi_rec_back(entry) > page)
		return NULL;
	page -= pvi_rec_back(entry);
	entry = pvi_rec_load(seg->map, page);
	if (pvi_page_kind(entry) != PV_PAGE_SLAB || !pvi_page_run_sound(s, seg, page, entry) ||
	    !pvi_slab_sound(s, seg, page, entry))
		return NULL;
	c = &s->classes[pvi_rec_class(entry)];
	in = seg_off - ((uint64_t) page << s->page_shift);
	if (in % c->slot_bytes || in / c->slot_bytes >= c->nslots)
		return NULL;
	*rec = entry;
	return pvi_slab_bytes(s, seg, page, entry) + in / c->slot_bytes;
}

static void slab_format(const struct pv_store *s, struct pvi_segment *seg, uint32_t page,
			uint64_t rec)
{
	const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];
	uint64_t off = (uint64_t) page << s->page_shift;
	uint32_t meta_off = pvi_rec_meta(rec);
	uint8_t *at = seg->addr + off + meta_off, *bytes = pvi_slab_bytes(s, seg, page, rec);

	*(struct slab_rec *) (void *) at = (struct slab_rec){
		.magic = PV_SLAB_MAGIC,
		.type = pvi_rec_type(rec),
		.slot_bytes = c->slot_bytes,
		.nslots = c->nslots,
		.slab_off = seg->off + off,
		.meta_off = meta_off,
		.npages = c->npages,
	};
	memset(bytes, PV_SLOT_FREE, c->nslots);
	for (uint32_t i = 0; c->in_grid && i < c->nslots; i += 8)
		for (uint32_t rest = pvi_slotbytes_covered(c, meta_off, i); rest; rest &= rest - 1)
			bytes[i + (uint32_t) __builtin_ctz(rest)] = PV_SLOT_META;
}

/* Let the fast paths find the slots of a slab that is sound and tidy. */
static void describe_pages(struct pv_store *s, struct pvi_segment *seg, uint32_t page, uint64_t rec)
{
	const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];
	uint64_t off = seg->off + ((uint64_t) page << s->page_shift);
	struct pvi_page *p = pvi_store_page(s, off);

	for (uint32_t i = 0; i < c->npages; i++, p++) {
		p->bytes = pvi_slab_bytes(s, seg, page, rec);
		__atomic_store_n(&p->reciprocal, c->reciprocal, __ATOMIC_RELAXED);
		__atomic_store_n(&p->grid_units, c->nslots * pvi_page_units(c->slot_bytes), __ATOMIC_RELAXED);
		/* pv_replace() goes by the first of these, everybody else by the last. */
		__atomic_store_n(&p->bin, pvi_bin_number(pvi_rec_type(rec), pvi_rec_class(rec)),
				 __ATOMIC_RELEASE);
		__atomic_store_n(&p->slab, (uint8_t *) s->base + off, __ATOMIC_RELEASE);
	}
}

void pvi_slab_undescribe(struct pvi_page *p)
{
	__atomic_store_n(&p->bin, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&p->slab, NULL, __ATOMIC_RELAXED);
	__atomic_store_n(&p->grid_units, 0, __ATOMIC_RELAXED);
}

/* Slots of a page and more get their memory one by one, when they are taken: their slabs are large. */
static bool takes_memory(const struct pv_store *s, const struct pvi_class *c)
{
	return c->slot_bytes >= 1u << s->page_shift;
}

/* The first page of a slab that needs memory from the start: that of the slab_rec. */
static uint32_t first_memory(const struct pv_store *s, const struct pvi_class *c)
{
	return takes_memory(s, c) ? slab_color(c, 0, s->page_shift) >> s->page_shift : 0;
}

static int obtain_slot(struct pv_store *s, struct pvi_segment *seg, uint32_t page,
			const struct pvi_class *c, uint32_t i)
{
	uint32_t first = (uint32_t) ((uint64_t) i * c->slot_bytes >> s->page_shift);
	uint32_t last = (uint32_t) (((uint64_t) (i + 1) * c->slot_bytes - 1) >> s->page_shift);

	return takes_memory(s, c) ? pvi_backing_commit(s, seg, page + first, last - first + 1) : 0;
}

/* A fresh slab on its bin's partial list. The pages are FREE in the map until the lane says
 * otherwise, so a crash while the slab is formatted leaves nothing. */
static int slab_create(struct pv_store *s, struct pvi_thread *t, uint32_t type, uint32_t class)
{
	const struct pvi_class *c = &s->classes[class];
	struct pvi_bin *bin = pvi_slab_bin(s, type, class);
	struct pvi_segment *seg;
	struct pvi_slab *d;
	uint64_t rec, off;
	uint32_t page;
	int err;

	if (!bin)
		return pvi_fail(-ENOMEM, "no memory for the bins of type %u", type);
	err = pvi_page_alloc(s, c->npages, 1, c->in_grid ? 0 : first_memory(s, c), &seg, &page);
	if (err)
		return err;
	off = seg->off + ((uint64_t) page << s->page_shift);
	rec = PV_PAGE_SLAB | (uint64_t) class << PV_PAGE_CLASS_SHIFT |
	      (uint64_t) (slab_color(c, off, s->page_shift) / PV_SLAB_ALIGN) << PV_PAGE_META_SHIFT |
	      (uint64_t) type << PV_PAGE_TYPE_SHIFT;
	slab_format(s, seg, page, rec);
	t->lane->actions[0].where = pvi_lane_where(PV_DO_PAGES, off);
	t->lane->actions[0].value = rec;
	pvi_lane_run(s, t->lane, 1);
	describe_pages(s, seg, page, rec);

	d = &seg->slabs[page];
	*d = (struct pvi_slab){
		.nfree = c->usable,
		.segment = (uint16_t) seg->number,
		.state = PVI_SLAB_PARTIAL,
		.shard = (uint8_t) pvi_thread_shard(t),
	};
	list_push(bin, d);
	return 0;
}

static void slab_release(struct pv_store *s, struct pvi_thread *t, struct pvi_bin *bin,
			 struct pvi_segment *seg, struct pvi_slab *d, const struct pvi_class *c)
{
	uint32_t page = page_of(seg, d);

	list_remove(bin, d);
	t->lane->actions[0].where = pvi_lane_where(
		PV_DO_PAGES, seg->off + ((uint64_t) page << s->page_shift));
	t->lane->actions[0].value = pvi_rec_free(c->npages);
	pvi_lane_run(s, t->lane, 1);
	d->state = PVI_SLAB_NONE;
	for (uint32_t i = 0; i < c->npages; i++)
		pvi_slab_undescribe(&pvi_store_page(s, seg->off)[page + i]);
	pvi_thread_forget(s);
	pvi_page_free(s, seg, page, c->npages);
}

/* Turn what an earlier process held into FREE and count. A crash in between leaves the slab as cold
 * as it was. Negative if a byte is none that a slab can have. */
static int slab_tidy(const struct pvi_class *c, uint8_t *bytes, uint32_t meta_off)
{
	uint32_t covered = 0;
	int nfree = 0;

	for (uint32_t i = 0; i < c->nslots; i++) {
		uint8_t b = bytes[i];

		covered = i % 8 ? covered >> 1 : pvi_slotbytes_covered(c, meta_off, i);
		if (b > PV_SLOT_HELD || covered & 1) {
			if (b != PV_SLOT_META || !(covered & 1))
				return -1;
			continue;
		}
		if (b == PV_SLOT_LIVE)
			continue;
		if (b != PV_SLOT_FREE)
			__atomic_store_n(&bytes[i], PV_SLOT_FREE, __ATOMIC_RELAXED);
		nfree++;
	}
	return nfree;
}

static bool is_cold(const struct pvi_segment *seg, uint32_t page)
{
	return seg->cold[page / 64] >> (page % 64) & 1;
}

int pvi_slab_warm(struct pv_store *s, struct pvi_segment *seg, uint32_t page)
{
	const struct pvi_class *c;
	struct pvi_bin *bin;
	struct pvi_slab *d;
	uint64_t rec;
	int err, nfree;

	err = pvi_page_load(s, seg);
	if (err)
		return err;
	rec = pvi_rec_load(seg->map, page);
	d = &seg->slabs[page];
	if (d->state == PVI_SLAB_PARTIAL || d->state == PVI_SLAB_FULL || d->state == PVI_SLAB_CLOSED)
		return 0; /* another thread was faster */
	if (!is_cold(seg, page) || pvi_rec_type(rec) > s->index.ntypes)
		return pvi_fail(-EBADMSG, "segment %u: page %u: no sound slab (see pv_check)",
				seg->number, page);
	bin = pvi_slab_bin(s, pvi_rec_type(rec), pvi_rec_class(rec));
	if (!bin)
		return pvi_fail(-ENOMEM, "no memory for the bins of type %u", pvi_rec_type(rec));
	c = &s->classes[pvi_rec_class(rec)];
	nfree = pvi_slab_sound(s, seg, page, rec)
			? slab_tidy(c, pvi_slab_bytes(s, seg, page, rec), pvi_rec_meta(rec))
			: -1;
	seg->cold[page / 64] &= ~(1ull << (page % 64)); /* looked at once, damaged or not */
	if (nfree < 0)
		return pvi_fail(-EBADMSG,
				"segment %u: slab at page %u is damaged; its objects cannot be freed "
				"(see pv_check)",
				seg->number, page);
	*d = (struct pvi_slab){
		.nfree = (uint32_t) nfree,
		.segment = (uint16_t) seg->number,
		.state = nfree ? PVI_SLAB_PARTIAL : PVI_SLAB_FULL,
		.shard = own_shard(s),
	};
	if (nfree)
		list_push(bin, d);
	describe_pages(s, seg, page, rec);
	return 0;
}

/* ---- closed slabs ---- */

static struct pvi_bin *bin_of(struct pv_store *s, const struct pvi_segment *seg, uint32_t page)
{
	uint64_t rec = pvi_rec_load(seg->map, page);

	return pvi_slab_bin(s, pvi_rec_type(rec), pvi_rec_class(rec));
}

void pvi_slab_close(struct pv_store *s, struct pvi_segment *seg, uint32_t page)
{
	struct pvi_slab *d = &seg->slabs[page];

	if (d->state == PVI_SLAB_PARTIAL)
		list_remove(bin_of(s, seg, page), d);
	d->state = PVI_SLAB_CLOSED;
}

void pvi_slab_reopen(struct pv_store *s)
{
	for (uint32_t i = 0; i < s->nsegments; i++) {
		struct pvi_segment *seg = &s->segments[i];

		for (uint32_t page = seg->first_page; seg->loaded && page < seg->npages; page++) {
			struct pvi_slab *d = &seg->slabs[page];

			if (d->state != PVI_SLAB_CLOSED)
				continue;
			d->state = d->nfree ? PVI_SLAB_PARTIAL : PVI_SLAB_FULL;
			if (d->nfree)
				list_push(bin_of(s, seg, page), d);
		}
	}
}

/* ---- magazines ---- */

/* The first FREE byte from `from` on, or n. Eight at a time, as the loads are atomic: other threads
 * change bytes that are not FREE meanwhile. There is nothing but the slab_rec's own room behind the
 * bytes up to the next multiple of eight. */
static uint32_t first_free(const uint8_t *bytes, uint32_t from, uint32_t n)
{
	const uint64_t ones = 0x0101010101010101ull;
	uint64_t before = (1ull << from % 8 * 8) - 1;

	for (uint32_t i = from / 8 * 8; i < n; i += 8, before = 0) {
		uint64_t v = before | __atomic_load_n((const uint64_t *) (const void *) (bytes + i),
						      __ATOMIC_RELAXED);
		uint64_t zeros = (v - ones) & ~v & ones << 7;

		if (zeros) {
			i += (uint32_t) __builtin_ctzll(zeros) / 8;
			return i < n ? i : n;
		}
	}
	return n;
}

/* Slots of a slab for a magazine, as many as it has. -ENOMEM: there is no memory for one of them. */
static int take_slots(struct pv_store *s, struct pvi_bin *bin, struct pvi_slab *d,
		      const struct pvi_class *c, struct pvi_magazine *m, uint32_t want)
{
	struct pvi_segment *seg = &s->segments[d->segment];
	uint32_t page = page_of(seg, d), got = 0, i = d->cursor;
	int err = 0;
	uint8_t *slab = seg->addr + ((uint64_t) page << s->page_shift);
	uint8_t *bytes = pvi_slab_bytes(s, seg, page, pvi_rec_load(seg->map, page));

	if (want > d->nfree)
		want = d->nfree;
	while (got < want) {
		/* Free slots come in runs, mostly. */
		if (__atomic_load_n(&bytes[i], __ATOMIC_RELAXED) != PV_SLOT_FREE)
			i = first_free(bytes, i, c->nslots);
		if (pvi_unlikely(i >= c->nslots)) { /* a stray store hit the bytes: no more here */
			d->nfree = got;
			break;
		}
		err = obtain_slot(s, seg, page, c, i);
		if (err)
			break;
		__atomic_store_n(&bytes[i], PV_SLOT_HELD, __ATOMIC_RELAXED);
		m->top[++got] =
			(struct pvi_held){slab + (size_t) i * c->slot_bytes, &bytes[i]};
		i++;
	}
	__atomic_store_n(&m->top, m->top + got, __ATOMIC_RELAXED);
	d->cursor = i;
	d->nfree -= got;
	if (!d->nfree) {
		list_remove(bin, d);
		d->state = PVI_SLAB_FULL;
	}
	return err;
}

/* Head page of the first cold slab of this type and class at or after `page`, passing over at most
 * *looks pages; npages: there is none. */
static uint32_t find_cold(const struct pvi_segment *seg, uint32_t page, uint32_t type, uint32_t class,
			  uint32_t *looks)
{
	for (; page < seg->npages && *looks; page++, --*looks) {
		uint64_t rec;

		if (page % 64 == 0 && !seg->cold[page / 64]) {
			page += 63;
			continue;
		}
		if (!is_cold(seg, page))
			continue;
		rec = pvi_rec_load(seg->map, page);
		if (pvi_rec_type(rec) == type && pvi_rec_class(rec) == class)
			break;
	}
	return page < seg->npages ? page : seg->npages;
}

/*
 * A slab with free slots: one of the shard, else, if another shard has more than one, one of those; `any`:
 * also its only one. Threads of different shards so do not write to the same lines of slot bytes.
 */
static struct pvi_slab *choose(const struct pvi_bin *bin, uint32_t shard, bool any)
{
	for (uint32_t i = 0; i < PVI_SHARDS; i++) {
		uint32_t k = (shard + i) % PVI_SHARDS;

		if (bin->npartial[k] > (i == 0 || any ? 0u : 1u))
			return bin->partial[k];
	}
	return NULL;
}

/* The same, after warming cold slabs of the bin until one has a free slot. */
static struct pvi_slab *find_partial(struct pv_store *s, struct pvi_bin *bin, uint32_t type,
				     uint32_t class, uint32_t warms, uint32_t looks, bool any)
{
	uint32_t shard = own_shard(s);
	struct pvi_slab *d;

	while (!(d = choose(bin, shard, any)) && warms && looks &&
	       bin->cold_segment < s->nsegments) {
		struct pvi_segment *seg = &s->segments[bin->cold_segment];

		if (pvi_page_load(s, seg))
			return NULL;
		bin->cold_page = find_cold(seg, bin->cold_page, type, class, &looks);
		if (bin->cold_page == seg->npages) {
			bin->cold_segment++;
			bin->cold_page = 0;
		} else if (looks) {
			/* A damaged slab is cold no more, with its message; go on with the next. */
			pvi_slab_warm(s, seg, bin->cold_page);
			warms--;
		}
	}
	return d;
}

int pvi_slab_refill(struct pv_store *s, struct pvi_thread *t, uint32_t type, uint32_t class,
		    struct pvi_magazine *m)
{
	const struct pvi_class *c = &s->classes[class];
	struct pvi_bin *bin = pvi_slab_bin(s, type, class);
	uint32_t want = m->want, most = (pvi_magazine_limit(m) + 1) / 2;
	struct pvi_slab *d;
	int err;

	if (!bin)
		return pvi_fail(-ENOMEM, "no memory for the bins of type %u", type);
	if (want < most)
		m->want = 2 * want < most ? 2 * want : most;
	while (pvi_magazine_slots(m) < want) {
		/* Whoever moves objects wants the slabs full, whose they are does not matter. */
		d = find_partial(s, bin, type, class, COLD_WARMS, COLD_LOOKS, s->steer.to != 0);
		if (!d) {
			if (pvi_magazine_slots(m))
				break;
			err = slab_create(s, t, type, class);
			/* Full: before saying so, look at everything that is still cold. */
			d = find_partial(s, bin, type, class, err ? UINT32_MAX : 0, UINT32_MAX, err);
			if (!d)
				return err;
		}
		err = take_slots(s, bin, d, c, m, want - pvi_magazine_slots(m));
		if (err)
			return pvi_magazine_slots(m) ? 0 : err;
	}
	return 0;
}

void pvi_slab_return(struct pv_store *s, struct pvi_thread *t, void *const *slots, uint32_t count)
{
	const struct pvi_class *c = NULL;
	const struct pvi_page *p = NULL;
	struct pvi_segment *seg = NULL;
	struct pvi_slab *d = NULL;
	struct pvi_bin *bin = NULL;

	for (uint32_t k = 0; k < count; k++) {
		const uint8_t *slot = slots[k];
		uint32_t i;

		/* Neighbours come together, mostly. */
		if (!p || pvi_page_units((uint64_t) (slot - p->slab)) >= p->grid_units) {
			uint64_t off = (uint64_t) ((uintptr_t) slot - s->base);

			p = pvi_store_page(s, off);
			seg = pvi_store_segment(s, off);
			d = &seg->slabs[(size_t) (p->slab - seg->addr) >> s->page_shift];
			c = &s->classes[pvi_bin_class(p->bin)];
			bin = pvi_slab_bin(s, pvi_bin_type(p->bin), pvi_bin_class(p->bin));
		}
		i = (uint32_t) pvi_page_slot(pvi_page_units((uint64_t) (slot - p->slab)), p->reciprocal,
					     NULL);
		pvi_debug_check(p->bytes[i] == PV_SLOT_HELD && d->nfree < c->usable);
		__atomic_store_n(&p->bytes[i], PV_SLOT_FREE, __ATOMIC_RELAXED);
		d->nfree++;
		if (i < d->cursor)
			d->cursor = i;
		if (d->state == PVI_SLAB_FULL) {
			d->state = PVI_SLAB_PARTIAL;
			list_push(bin, d);
		}
		/* Empty, and not the bin's last reserve: the pages may serve another class. */
		if (d->nfree == c->usable && d->state == PVI_SLAB_PARTIAL &&
		    bin->npartial[d->shard] > 1) {
			slab_release(s, t, bin, seg, d, c);
			p = NULL;
		}
	}
}

bool pvi_slab_reclaim_cold(struct pv_store *s, struct pvi_thread *t, uint32_t warms)
{
	bool released = false;

	for (; s->reclaim_segment < s->nsegments; s->reclaim_segment++, s->reclaim_page = 0) {
		struct pvi_segment *seg = &s->segments[s->reclaim_segment];

		if (pvi_page_load(s, seg))
			return released;
		for (; s->reclaim_page < seg->npages; s->reclaim_page++) {
			uint32_t page = s->reclaim_page;
			const struct pvi_slab *d = &seg->slabs[page];
			uint64_t rec;

			if (!is_cold(seg, page))
				continue;
			if (!warms--)
				return released;
			rec = pvi_rec_load(seg->map, page);
			if (pvi_slab_warm(s, seg, page) ||
			    d->nfree != s->classes[pvi_rec_class(rec)].usable)
				continue;
			slab_release(s, t, pvi_slab_bin(s, pvi_rec_type(rec), pvi_rec_class(rec)),
				     seg, &seg->slabs[page], &s->classes[pvi_rec_class(rec)]);
			released = true;
		}
	}
	return released;
}

void pvi_slab_release_empty(struct pv_store *s, struct pvi_thread *t, struct pvi_bin *bin)
{
	for (uint32_t k = 0; k < PVI_SHARDS; k++) {
		for (struct pvi_slab *d = bin->partial[k], *next; d; d = next) {
			struct pvi_segment *seg = &s->segments[d->segment];
			uint64_t rec = pvi_rec_load(seg->map, page_of(seg, d));
			const struct pvi_class *c = &s->classes[pvi_rec_class(rec)];

			next = d->next;
			if (d->nfree == c->usable)
				slab_release(s, t, bin, seg, d, c);
		}
	}
}
