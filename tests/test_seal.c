/* SPDX-License-Identifier: BSD-3-Clause */
/* Sealing: what is sealed is there afterwards, in every process, and nobody changes it: neither the library, nor a
 * stray store, nor whoever keeps the descriptors without being found out. */
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

#include <preserve/compact.h>
#include <preserve/seal.h>
#include <preserve/stats.h>
#include <preserve/tx.h>

#include "internal.h"
#include "support.h"

#define N 300

static const struct pv_typedef leaf_def = PV_TYPE_BYTES("leaf", 1);

struct page {
	struct page *next;
	void *leaf;
	int64_t far; /* to the leaf's middle */
	uint64_t number;
};
static const struct pv_typedef page_def =
	PV_TYPE(struct page, "page", 1, PV_POINTER(struct page, next), PV_POINTER(struct page, leaf),
		PV_RELATIVE(struct page, far));

struct setting {
	struct keeper *k;
	struct pv_options o;
	struct pv_store *s;
	pv_type_t leaf;
	pv_type_t page;
	pv_type_t other;
	struct word *root; /* names the first page */
};

static void types(struct setting *t)
{
	assert_ok(pv_type_register(t->s, &leaf_def, &t->leaf));
	assert_ok(pv_type_register(t->s, &page_def, &t->page));
	t->other = store_bytes_type(t->s, "other");
	t->root = store_root(t->s);
}

static size_t leaf_bytes(uint64_t i)
{
	return i % 50 == 7 ? 40000 : 16 + i % 13 * 30;
}

static struct setting begin(struct keeper *k)
{
	struct setting t = {.k = k, .o = small_options(k)};
	struct word *churn[N];

	t.o.window_bytes = 1 << 28;
	t.o.segment_bytes = 1 << 18;
	t.s = store_create(k, &t.o);
	types(&t);
	for (uint64_t i = 0; i < N; i++) {
		struct page *p = reserve_ok(t.s, t.page, sizeof(*p));
		void *leaf = reserve_ok(t.s, t.leaf, leaf_bytes(i));

		churn[i] = reserve_ok(t.s, t.leaf, leaf_bytes(i));
		pattern_fill(leaf, leaf_bytes(i), i);
		*p = (struct page){t.root->next, leaf, 0, i};
		p->far = (int64_t)((uintptr_t)leaf + 8 - (uintptr_t)&p->far);
		assert_ok(pv_publish(t.s, (struct pv_action[]){PV_LIVE(leaf), PV_LIVE(p),
							       PV_STORE(&t.root->next, p)},
				     3));
	}
	for (uint64_t i = 0; i < N; i++)
		assert_ok(pv_cancel(t.s, churn[i]));
	return t;
}

static void check(struct setting *t, uint64_t n)
{
	const struct page *p = store_root(t->s)->next;

	for (; n-- > 0; p = p->next) {
		assert_non_null(p);
		assert_int_equal(p->number, n);
		assert_true(pattern_holds(p->leaf, leaf_bytes(n), n));
		assert_ptr_equal((const uint8_t *)&p->far + p->far, (uint8_t *)p->leaf + 8);
		assert_true(pv_usable_bytes(t->s, p->leaf) >= leaf_bytes(n));
	}
	assert_null(p);
	store_sound(t->s);
}

static struct pv_seal_report seal(struct setting *t)
{
	pv_type_t which[] = {t->page, t->leaf};
	struct pv_seal_report r;

	assert_ok(pv_seal(t->s, which, 2, &r));
	t->root = store_root(t->s);
	return r;
}

static int segment_fd(const struct setting *t, uint32_t number)
{
	return keeper_fd(t->k, number + 1);
}

/* Nothing changes a sealed object, or one in its segment. */
static void check_constant(struct setting *t)
{
	struct page *p = t->root->next;
	void *q = p, *fresh = reserve_ok(t->s, t->other, 64);

	while (p->next && p->number != 7)
		p = p->next;
	assert_fails(pv_publish(t->s, &PV_STORE(&p->number, 1), 1), -EPERM, "sealed");
	assert_fails(pv_publish(t->s, (struct pv_action[]){PV_FREE(p->leaf)}, 1), -EPERM, "sealed");
	assert_fails(pv_free(t->s, (void **)&t->root->next), -EPERM, "sealed");
	assert_fails(pv_unlink(t->s, &t->root->next, 0, q), -EPERM, "sealed");
	assert_fails(pv_link(t->s, fresh, &p->next), -EPERM, "sealed");
	assert_fails(pv_cancel(t->s, p), -EINVAL, "not reserved");
	assert_fails(pv_realloc(t->s, (void **)&t->root->next, 5000), -EPERM, "sealed");
	assert_ok(pv_tx_begin(t->s));
	assert_fails(pv_tx_add(t->s, p, sizeof(*p)), -EPERM, "sealed");
	assert_fails(pv_tx_free(t->s, p), -EPERM, "sealed");
	pv_tx_abort(t->s);
	assert_ok(pv_cancel(t->s, fresh));
	/* An extent, which could shrink or grow where it is. */
	assert_ok(pv_publish(t->s, &PV_STORE(&t->root->value, (uintptr_t)p->leaf), 1));
	assert_fails(pv_realloc(t->s, (void **)&t->root->value, 36900), -EPERM, "sealed");
	assert_fails(pv_realloc(t->s, (void **)&t->root->value, 90000), -EPERM, "sealed");
	assert_ok(pv_publish(t->s, &PV_STORE(&t->root->value, 0), 1));
}

static int stray_store(void *ctx)
{
	struct setting *t = ctx;

	signal(SIGSEGV, SIG_DFL);
	((volatile struct page *)t->root->next)->number = 0;
	return 0;
}

static int attach_and_store(void *ctx)
{
	struct setting *t = ctx;

	t->s = store_attach(t->k, &t->o);
	types(t);
	return stray_store(t);
}

static void what_is_sealed_stays(void **state)
{
	struct setting t = begin(*state);
	struct pv_seal_report r = seal(&t);
	uint32_t segments = store_info(t.s).segments;

	assert_int_equal(r.objects, 2 * N);
	assert_int_equal(r.segment, segments - 1);
	assert_true(r.bytes > 6 * 40000 + N * 48);
	assert_in_range(r.segment_bytes, r.bytes, r.bytes + r.bytes / 4 + 65536);
	assert_int_equal(r.kernel_sealed, 1);
	assert_true(fcntl(segment_fd(&t, r.segment), F_GET_SEALS) & F_SEAL_WRITE);
	check(&t, N);
	check_constant(&t);
	assert_ok(pv_trim(t.s, NULL));
	check(&t, N);
	/* The next process; a copy, which has lost the kernel's seal. */
	for (int round = 0; round < 3; round++) {
		if (round == 1)
			keeper_crash(t.k, &t.s);
		else
			assert_ok(pv_close(t.s));
		t.s = store_attach(t.k, &t.o);
		types(&t);
		assert_true(fcntl(segment_fd(&t, r.segment), F_GET_SEALS) & F_SEAL_WRITE);
		check(&t, N);
		check_constant(&t);
	}
	assert_ok(pv_close(t.s));
	if (!under_tsan())
		assert_int_equal(run_child(attach_and_store, &t), 256 + SIGSEGV);
	t.o.relocate = PV_RELOCATE_NEVER; /* a reader elsewhere cannot follow pointers as they are */
	assert_ok(store_try(t.k, &t.o, PV_RDONLY, &t.s));
	check(&t, N);
	assert_ok(pv_close(t.s));
}

static void more_is_sealed_later(void **state)
{
	struct setting t = begin(*state);
	struct pv_seal_report first = seal(&t), second;
	pv_type_t which[] = {t.page, t.leaf};
	struct page *p;
	void *leaf;

	assert_fails(pv_seal(t.s, which, 2, NULL), -ENOENT, "no objects");
	/* New objects go elsewhere, refer to what is sealed, and are sealed too. */
	p = reserve_ok(t.s, t.page, sizeof(*p));
	leaf = reserve_ok(t.s, t.leaf, leaf_bytes(N));
	pattern_fill(leaf, leaf_bytes(N), N);
	*p = (struct page){t.root->next, leaf, 0, N};
	p->far = (int64_t)((uintptr_t)leaf + 8 - (uintptr_t)&p->far);
	assert_ok(pv_publish(t.s,
			     (struct pv_action[]){PV_LIVE(leaf), PV_LIVE(p), PV_STORE(&t.root->next, p)}, 3));
	assert_true(pvi_store_segment(t.s, (uintptr_t)p - t.s->base)->number < first.segment);
	check(&t, N + 1);
	second = seal(&t);
	assert_int_equal(second.objects, 2);
	assert_int_equal(second.segment, first.segment + 1);
	check(&t, N + 1);
	/* Compaction leaves it alone, and what lies before it. */
	assert_ok(pv_compact(t.s, NULL, NULL));
	assert_int_equal(store_info(t.s).segments, second.segment + 1);
	t.root = store_root(t.s);
	check(&t, N + 1);
	check_constant(&t);
	keeper_crash(t.k, &t.s);
	t.s = store_attach(t.k, &t.o);
	types(&t);
	check(&t, N + 1);
	assert_ok(pv_close(t.s));
}

static void what_cannot_be_sealed(void **state)
{
	struct setting t = begin(*state);
	static const struct pv_typedef pinned_def = {.name = "pinned", .version = 1, .flags = PV_TYPE_PINNED};
	pv_type_t which[] = {t.page, t.leaf}, unknown = 77, pinned;
	uint32_t segments = store_info(t.s).segments;
	struct pv_store *reader;
	void *held;

	assert_fails(pv_seal(t.s, &t.page, 1, NULL), -EINVAL, "neither sealed with it nor before");
	assert_fails(pv_seal(t.s, &t.page, 1, NULL), -EINVAL, "type page");
	assert_fails(pv_seal(t.s, which, 0, NULL), -EINVAL, "no types");
	assert_fails(pv_seal(t.s, &unknown, 1, NULL), -EINVAL, "type 77");
	assert_ok(pv_type_register(t.s, &pinned_def, &pinned));
	assert_fails(pv_seal(t.s, &pinned, 1, NULL), -EINVAL, "pinned");
	assert_fails(pv_seal(t.s, &t.other, 1, NULL), -ENOENT, "no objects");
	held = reserve_ok(t.s, t.other, 64);
	assert_fails(pv_seal(t.s, which, 2, NULL), -EBUSY, "reserved");
	assert_ok(pv_cancel(t.s, held));
	check(&t, N);
	assert_int_equal(store_info(t.s).segments, segments);
	/* The leaves alone can be. */
	assert_ok(pv_seal(t.s, &t.leaf, 1, NULL));
	check(&t, N);
	assert_ok(pv_close(t.s));
	assert_ok(store_try(t.k, &t.o, PV_RDONLY, &reader));
	assert_fails(pv_seal(reader, which, 2, NULL), -EPERM, "read-only");
	assert_ok(pv_close(reader));
}

/* No room for another segment: everything as before, and it can be used. */
static void without_room(void **state)
{
	struct setting t = begin(*state);
	pv_type_t which[] = {t.page, t.leaf};
	uint64_t bytes = store_info(t.s).bytes;
	void *p;

	assert_ok(pv_close(t.s));
	t.o.limit_bytes = bytes + 100000;
	t.s = store_attach(t.k, &t.o);
	types(&t);
	assert_fails(pv_seal(t.s, which, 2, NULL), -ENOSPC, "limit");
	check(&t, N);
	assert_int_equal(store_info(t.s).bytes, bytes);
	p = reserve_ok(t.s, t.page, sizeof(struct page));
	assert_ok(pv_cancel(t.s, p));
	assert_ok(pv_close(t.s));
}

/* After a look at how much room there is, which tries out whether the index could name another segment. */
static void the_next_segment_is_open(void **state)
{
	struct setting t = begin(*state);
	struct pv_seal_report r = seal(&t);
	struct pv_stats *stats;
	uint32_t had = t.s->nsegments;

	assert_ok(pv_stats_get(t.s, &stats));
	pv_stats_free(stats);
	while (t.s->nsegments == had) {
		void *p = reserve_ok(t.s, t.other, 40000);

		memset(p, 1, 40000);
		assert_int_equal(pv_usable_bytes(t.s, p) >= 40000, 1);
	}
	assert_true(t.s->segments[r.segment].sealed);
	assert_false(t.s->segments[had].sealed);
	check(&t, N);
	assert_ok(pv_close(t.s));
}

static void damage_is_found(void **state)
{
	struct setting t = begin(*state);
	struct pv_seal_report r = seal(&t);
	struct pv_check_report report;
	uint64_t at = (uintptr_t)t.root->next + 24 - t.s->base - t.s->segments[r.segment].off;
	char name[32];
	uint8_t byte;

	snprintf(name, sizeof(name), "segment %u", r.segment);
	keeper_crash(t.k, &t.s); /* the copy has no seal of the kernel's */
	assert_ok(store_try(t.k, &t.o, PV_RDONLY, &t.s));
	assert_int_equal(pread(segment_fd(&t, r.segment), &byte, 1, (off_t)at), 1);
	byte ^= 16;
	assert_int_equal(pwrite(segment_fd(&t, r.segment), &byte, 1, (off_t)at), 1);
	assert_ok(pv_check(t.s, NULL, &report));
	assert_int_equal(report.problems, 1);
	assert_ok(pv_close(t.s));
	assert_fails(store_try(t.k, &t.o, PV_RDONLY, &t.s), -EBADMSG, name);
	assert_fails(store_try(t.k, &t.o, 0, &t.s), -EBADMSG, name);
	assert_fails(store_try(t.k, &t.o, 0, &t.s), -EBADMSG, "digest");
	assert_false(fcntl(segment_fd(&t, r.segment), F_GET_SEALS) & F_SEAL_WRITE);
	byte ^= 16;
	assert_int_equal(pwrite(segment_fd(&t, r.segment), &byte, 1, (off_t)at), 1);
	t.s = store_attach(t.k, &t.o);
	types(&t);
	check(&t, N);
	assert_ok(pv_close(t.s));
}

/* Another process that looks has it mapped, for which the kernel refuses; the next attach does it. */
static void while_somebody_looks(void **state)
{
	struct setting t = begin(*state);
	struct pv_seal_report r;
	uint8_t *map;
	size_t bytes;

	r = seal(&t);
	assert_int_equal(r.kernel_sealed, 1);
	keeper_crash(t.k, &t.s);
	map = memfd_map(segment_fd(&t, r.segment), &bytes);
	t.s = store_attach(t.k, &t.o);
	types(&t);
	assert_false(fcntl(segment_fd(&t, r.segment), F_GET_SEALS) & F_SEAL_WRITE);
	check(&t, N);
	check_constant(&t);
	memfd_unmap(map, bytes);
	assert_ok(pv_close(t.s));
	t.s = store_attach(t.k, &t.o);
	assert_true(fcntl(segment_fd(&t, r.segment), F_GET_SEALS) & F_SEAL_WRITE);
	assert_ok(pv_close(t.s));
}

/* At another base the references in what is sealed are right in this process, and as they were in the memfd. */
static void at_another_base(void **state)
{
	struct setting t = begin(*state);
	struct pv_seal_report r = seal(&t);
	uint64_t was = t.s->base;
	const struct page *p;
	void *way;

	for (int round = 0; round < 4; round++) {
		if (round == 2)
			keeper_crash(t.k, &t.s);
		else
			assert_ok(pv_close(t.s));
		t.o.relocate = round < 3 ? PV_RELOCATE_ALWAYS : PV_RELOCATE_AUTO;
		t.o.base = round < 3 ? 0 : was;
		t.s = store_attach(t.k, &t.o);
		types(&t);
		assert_true((t.s->base == was) == (round == 3));
		check(&t, N);
		check_constant(&t);
		if (round == 1) { /* sealed at this base, refers to what was sealed at another one */
			struct page *top = reserve_ok(t.s, t.page, sizeof(*top));
			void *leaf = reserve_ok(t.s, t.leaf, leaf_bytes(N));

			pattern_fill(leaf, leaf_bytes(N), N);
			*top = (struct page){t.root->next, leaf, 0, N};
			top->far = (int64_t)((uintptr_t)leaf + 8 - (uintptr_t)&top->far);
			assert_ok(pv_publish(t.s, (struct pv_action[]){PV_LIVE(leaf), PV_LIVE(top),
								       PV_STORE(&t.root->next, top)},
					     3));
			assert_int_equal(seal(&t).segment, r.segment + 1);
			check(&t, N + 1);
			/* Without it again, for the others. */
			assert_ok(pv_publish(t.s, &PV_STORE(&t.root->next, top->next), 1));
			check(&t, N);
		}
	}
	/* A reader to which the base is not free. */
	assert_ok(pv_close(t.s));
	t.o.base = 0;
	way = mmap((void *)was, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_int_equal((uintptr_t)way, was);
	assert_ok(store_try(t.k, &t.o, PV_RDONLY, &t.s));
	assert_true(t.s->base != was);
	p = pv_address(t.s, store_root(t.s)->next);
	for (uint64_t n = N; n-- > 0; p = pv_address(t.s, p->next)) {
		assert_int_equal(p->number, n);
		assert_true(pattern_holds(pv_address(t.s, p->leaf), leaf_bytes(n), n));
	}
	assert_ok(pv_close(t.s));
	munmap(way, 4096);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(what_is_sealed_stays),
		with_keeper(more_is_sealed_later),
		with_keeper(what_cannot_be_sealed),
		with_keeper(without_room),
		with_keeper(the_next_segment_is_open),
		with_keeper(damage_is_found),
		with_keeper(while_somebody_looks),
		with_keeper(at_another_base),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
