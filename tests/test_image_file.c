/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image files (preserve/image.h): what is saved is restored; what is not an image, or a damaged one, is
 * refused, and nothing is kept of it. Files are memfds here.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <preserve/image.h>
#include <preserve/seal.h>
#include <preserve/stores.h>
#include <preserve/tx.h>

#include "handover.h"
#include "image_layout.h"
#include "layout.h"
#include "support.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

/* ---- making images ---- */

/* A store with so many words in a list, and large objects that do not compress. */
static void fill(struct pv_store *s, unsigned int words, unsigned int large)
{
	pv_type_t word = store_word_type(s), bytes = store_bytes_type(s, "bytes");
	struct word *root = store_root(s);
	struct cells *cells = store_cells(s);

	for (unsigned int i = 0; i < words; i++) {
		struct word *w = reserve_ok(s, word, sizeof(*w));

		w->value = i;
		w->next = root->next;
		assert_ok(pv_link(s, w, &root->next));
	}
	for (unsigned int i = 0; i < large; i++) {
		void *p = publish_ok(s, bytes, 100000, &cells->cells[i]);

		pattern_fill(p, 100000, i);
	}
}

static void assert_filled(struct pv_store *s, unsigned int words, unsigned int large)
{
	const struct word *w = store_root(s)->next;
	const struct cells *cells = store_cells(s);
	struct objects live = {0};

	store_sound(s);
	for (unsigned int i = words; i--; w = w->next) {
		assert_non_null(w);
		assert_int_equal(w->value, i);
	}
	assert_null(w);
	for (unsigned int i = 0; i < large; i++)
		assert_true(pattern_holds(cells->cells[i], 100000, i));
	objects_live(&live, s, 0);
	assert_int_equal(live.n, words + large + 2);
	objects_free(&live);
}

static int file_new(void)
{
	int fd = memfd_create("image", MFD_CLOEXEC);

	assert_true(fd >= 0);
	return fd;
}

/* The bytes of an image, malloc'ed. */
static uint8_t *file_read(int fd, size_t *bytes)
{
	uint8_t *p;

	*bytes = memfd_bytes(fd);
	p = malloc(*bytes + 1);
	assert_non_null(p);
	assert_int_equal(pread(fd, p, *bytes, 0), *bytes);
	return p;
}

static int file_of(const uint8_t *data, size_t bytes)
{
	int fd = file_new();

	assert_int_equal(write(fd, data, bytes), bytes);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	return fd;
}

/* Save and close a store that k keeps; the file, at its beginning. */
static int saved(struct pv_store *s, struct pv_image_report *report)
{
	int fd = file_new();

	assert_ok(pv_save(s, fd, NULL, report));
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	return fd;
}

static int restored(struct keeper *to, int fd, uint32_t flags, struct pv_image_report *report)
{
	struct pv_options o = small_options(to);
	struct pv_restore_options how = {.size = sizeof(how), .flags = flags};

	return pv_restore(NULL, &o, fd, &how, report);
}

static unsigned int given; /* descriptors that the keeper was given by image_new() */

/* An image of a small store, and the store is gone. */
static uint8_t *image_new(struct keeper *k, unsigned int words, unsigned int large, size_t *bytes)
{
	struct pv_store *s = store_create(k, NULL);
	uint8_t *image;
	int fd;

	fill(s, words, large);
	fd = saved(s, NULL);
	assert_ok(pv_close(s));
	keeper_free(k);
	given = k->adds;
	image = file_read(fd, bytes);
	close(fd);
	return image;
}

/* It is refused, for this reason or any, and nobody was given anything. */
static int refused(struct keeper *k, const uint8_t *image, size_t bytes)
{
	int fd = file_of(image, bytes), err = restored(k, fd, 0, NULL);

	close(fd);
	assert_int_equal(k->n, 0);
	assert_int_equal(k->adds, given);
	return err;
}

/* ---- what is saved is restored ---- */

static void test_round_trip(void **state)
{
	struct keeper *k = *state, copy;
	struct pv_store *s = store_create(k, NULL);
	struct pv_image_report out, in;
	struct pv_info before, after;
	int fd;

	fill(s, 3000, 20);
	assert_filled(s, 3000, 20);
	before = store_info(s);
	assert_true(before.segments > 3);
	fd = saved(s, &out);
	assert_filled(s, 3000, 20);
	assert_int_equal(store_info(s).generation, before.generation);
	assert_int_equal(out.generation, before.generation);
	assert_int_equal(out.segments, before.segments);
	assert_int_equal(out.store_bytes, before.bytes);
	assert_int_equal(out.file_bytes, memfd_bytes(fd));
	assert_string_equal(out.name, "test");
	assert_ok(pv_close(s));

	keeper_init(&copy);
	assert_ok(restored(&copy, fd, 0, &in));
	assert_int_equal(in.contents_bytes, out.contents_bytes);
	assert_int_equal(in.chunks, out.chunks);
	assert_false(in.new_uuid);
	keeper_free(k);
	s = store_attach(&copy, NULL);
	assert_filled(s, 3000, 20);
	after = store_info(s);
	assert_memory_equal(after.uuid, before.uuid, 16);
	if (!after.relocated_from)
		assert_int_equal(after.base, before.base);
	fill(s, 0, 0);
	assert_ok(pv_close(s));
	keeper_free(&copy);
	close(fd);
}

static void test_free_pages_are_left_out(void **state)
{
	struct keeper *k = *state, copy;
	struct pv_options o = small_options(k);
	struct pv_store *s;
	struct cells *cells;
	struct pv_image_report full, thin;
	struct stat st;
	int fd;

	o.segment_bytes = 4u << 20;
	o.window_bytes = 64u << 20;
	o.page_bytes = 4096;
	s = store_create(k, &o);
	fill(s, 1000, 20);
	cells = store_cells(s);
	fd = saved(s, &full);
	close(fd);
	for (unsigned int i = 0; i < 20; i++)
		assert_ok(pv_free(s, &cells->cells[i]));
	fd = saved(s, &thin);
	assert_true(full.contents_bytes - thin.contents_bytes >= 1900000);
	assert_ok(pv_close(s));
	keeper_free(k);

	keeper_init(&copy);
	assert_ok(restored(&copy, fd, 0, NULL));
	/* What was not written has no memory. */
	assert_int_equal(fstat(keeper_fd(&copy, 1), &st), 0);
	assert_true((uint64_t) st.st_blocks * 512 < 1u << 20);
	s = store_attach(&copy, &o);
	assert_filled(s, 1000, 0);
	fill(s, 0, 30);
	assert_filled(s, 1000, 30);
	assert_ok(pv_close(s));
	keeper_free(&copy);
	close(fd);
}

static void test_another_uuid_and_name(void **state)
{
	struct keeper *k = *state, copy;
	struct pv_restore_options how = {.size = sizeof(how), .flags = PV_RESTORE_NEW_UUID};
	struct pv_store *s = store_create(k, NULL);
	struct pv_info before = store_info(s);
	struct pv_image_report report;
	struct pv_options o;
	int fd;

	fill(s, 100, 5);
	fd = saved(s, NULL);
	assert_ok(pv_close(s));
	keeper_free(k);
	keeper_init(&copy);
	o = small_options(&copy);
	assert_ok(pv_restore("other", &o, fd, &how, &report));
	assert_true(report.new_uuid);
	assert_string_equal(report.name, "other");
	s = store_attach(&copy, NULL);
	assert_memory_not_equal(store_info(s).uuid, before.uuid, 16);
	assert_memory_equal(store_info(s).uuid, report.uuid, 16);
	assert_filled(s, 100, 5);
	close(fd);
	fd = saved(s, &report);
	assert_string_equal(report.name, "other");
	assert_ok(pv_close(s));
	keeper_free(&copy);
	close(fd);
}

/* What is sealed stays so, with another UUID too, and is saved as it was sealed. */
static void test_sealed_segments(void **state)
{
	struct keeper *k = *state, copy;
	struct pv_image_report report;
	struct pv_store *s = store_create(k, NULL);
	pv_type_t bytes;
	int fd;

	fill(s, 100, 5);
	bytes = store_bytes_type(s, "bytes");
	assert_ok(pv_seal(s, &bytes, 1, NULL));
	assert_filled(s, 100, 5);
	fd = saved(s, NULL);
	assert_ok(pv_close(s));
	keeper_free(k);
	for (uint32_t flags = 0; flags <= PV_RESTORE_NEW_UUID; flags += PV_RESTORE_NEW_UUID) {
		keeper_init(&copy);
		lseek(fd, 0, SEEK_SET);
		assert_ok(restored(&copy, fd, flags, &report));
		assert_int_equal(report.new_uuid, flags == PV_RESTORE_NEW_UUID);
		s = store_attach(&copy, NULL);
		assert_filled(s, 100, 5);
		assert_fails(pv_free(s, &store_cells(s)->cells[0]), -EPERM, "sealed");
		assert_ok(pv_close(s));
		keeper_free(&copy);
	}
	close(fd);
}

static void test_many_chunks_and_threads(void **state)
{
	struct keeper *k = *state, copy;
	struct pv_options o = small_options(k);
	struct pv_save_options how = {.size = sizeof(how), .threads = 4, .level = 3};
	struct pv_image_report report;
	struct pv_store *s;
	struct cells *cells;
	int fd = file_new();

	o.segment_bytes = 16u << 20;
	o.window_bytes = 256u << 20;
	s = store_create(k, &o);
	fill(s, 1000, 300);
	/* Holes everywhere: chunks of many runs. */
	cells = store_cells(s);
	for (unsigned int i = 1; i < 300; i += 2)
		assert_ok(pv_free(s, &cells->cells[i]));
	assert_ok(pv_save(s, fd, &how, &report));
	assert_true(report.chunks > 3);
	assert_int_equal(report.threads, 4);
	assert_ok(pv_close(s));
	keeper_free(k);
	keeper_init(&copy);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_ok(restored(&copy, fd, 0, NULL));
	s = store_attach(&copy, &o);
	cells = store_cells(s);
	for (unsigned int i = 0; i < 300; i++)
		assert_true(i % 2 ? !cells->cells[i] : pattern_holds(cells->cells[i], 100000, i));
	store_sound(s);
	assert_ok(pv_close(s));
	keeper_free(&copy);
	close(fd);
}

static int end_at_half(void *ctx, uint64_t done, uint64_t total)
{
	*(uint64_t *) ctx = done;
	return done * 2 >= total;
}

static void test_progress_may_end_it(void **state)
{
	struct keeper *k = *state, copy;
	uint64_t done = 0;
	struct pv_save_options out = {.size = sizeof(out), .progress = end_at_half, .ctx = &done};
	struct pv_restore_options in = {.size = sizeof(in), .progress = end_at_half, .ctx = &done};
	struct pv_store *s = store_create(k, NULL);
	struct pv_options o;
	int fd = file_new();

	fill(s, 100, 2);
	assert_fails(pv_save(s, fd, &out, NULL), -ECANCELED, "progress");
	assert_true(done > 0);
	close(fd);
	fd = saved(s, NULL);
	assert_ok(pv_close(s));
	keeper_free(k);
	keeper_init(&copy);
	o = small_options(&copy);
	assert_fails(pv_restore(NULL, &o, fd, &in, NULL), -ECANCELED, "progress");
	assert_int_equal(copy.n, 0);
	close(fd);
}

/* ---- when saving is refused, or fails ---- */

static void test_not_at_rest(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL), *reader;
	struct word *root = store_root(s);
	int fd = file_new();

	assert_ok(pv_tx_begin(s));
	assert_ok(pv_tx_add(s, root, sizeof(*root)));
	assert_fails(pv_save(s, fd, NULL, NULL), -EBUSY, "transaction");
	assert_ok(pv_tx_commit(s));
	assert_ok(pv_close(s));
	assert_ok(store_try(k, NULL, PV_RDONLY, &reader));
	assert_fails(pv_save(reader, fd, NULL, NULL), -EPERM, "read-only");
	assert_ok(pv_close(reader));
	assert_int_equal(memfd_bytes(fd), 0);
	close(fd);
}

static void test_wrong_options(void **state)
{
	struct keeper *k = *state;
	struct pv_save_options o = {.size = sizeof(o), .level = 20};
	struct pv_restore_options in = {.size = sizeof(in), .flags = 64};
	struct {
		struct pv_save_options o;
		uint64_t more;
	} later = {.o.size = sizeof(later), .more = 1};
	struct pv_store *s = store_create(k, NULL);
	int fd = file_new();

	assert_fails(pv_save(s, fd, &o, NULL), -EINVAL, "level");
	assert_fails(pv_save(s, fd, &later.o, NULL), -EINVAL, "does not know");
	o = (struct pv_save_options){.size = 3};
	assert_fails(pv_save(s, fd, &o, NULL), -EINVAL, "size");
	assert_fails(pv_restore(NULL, NULL, fd, &in, NULL), -EINVAL, "flags");
	assert_fails(pv_restore("a/b", NULL, fd, NULL, NULL), -EINVAL, "a/b");
	assert_ok(pv_close(s));
	close(fd);
}

static void test_full_device(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);

	fill(s, 100, 5);
	assert_fails(pv_save(s, fd, NULL, NULL), -ENOSPC, "full");
	assert_filled(s, 100, 5);
	assert_ok(pv_close(s));
	close(fd);
}

static void test_closed_pipe(void **state)
{
	struct keeper *k = *state;
	struct pv_store *s = store_create(k, NULL);
	int ends[2];

	signal(SIGPIPE, SIG_IGN);
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	close(ends[0]);
	assert_fails(pv_save(s, ends[1], NULL, NULL), -EPIPE, "pipe");
	close(ends[1]);
	assert_ok(pv_close(s));
	signal(SIGPIPE, SIG_DFL);
}

/* A file under the name is replaced as a whole or not at all. */
static void test_file(void **state)
{
	struct keeper *k = *state, copy;
	/* In memory: it is synchronised, which takes long on a disk that is busy. */
	char dir[] = "/dev/shm/pv-image-XXXXXX", path[64], temporary[80], into[96];
	struct pv_store *s = store_create(k, NULL);
	struct pv_options o;
	struct stat st;

	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/x.pv", dir);
	snprintf(temporary, sizeof(temporary), "%s.tmp", path);
	snprintf(into, sizeof(into), "%s/none/x.pv", dir);
	fill(s, 100, 5);
	assert_fails(pv_save_file(s, into, NULL, NULL), -ENOENT, into);
	assert_fails(pv_save_file(s, dir, NULL, NULL), -EINVAL, "no regular file");
	assert_ok(pv_save_file(s, path, NULL, NULL));
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(stat(temporary, &st), -1);
	assert_ok(pv_save_file(s, path, NULL, NULL));
	assert_ok(pv_close(s));
	keeper_free(k);
	keeper_init(&copy);
	o = small_options(&copy);
	assert_fails(pv_restore_file(NULL, &o, into, NULL, NULL), -ENOENT, into);
	assert_ok(pv_restore_file(NULL, &o, path, NULL, NULL));
	s = store_attach(&copy, NULL);
	assert_filled(s, 100, 5);
	assert_ok(pv_close(s));
	keeper_free(&copy);
	unlink(path);
	assert_int_equal(rmdir(dir), 0); /* nothing else was left */
}

/* ---- what is no image ---- */

static void test_every_truncation(void **state)
{
	struct keeper *k = *state;
	size_t bytes;
	uint8_t *image = image_new(k, 50, 0, &bytes);

	/* All ends in and around the records, some in the contents. */
	for (size_t n = 0; n < bytes; n += n > 500 && n + 300 < bytes ? 97 : 1) {
		int err = refused(k, image, n);

		if (err != -EBADMSG || !strstr(pv_last_error(), "cut short"))
			fail_msg("%zu of %zu bytes: %d: %s", n, bytes, err, pv_last_error());
	}
	image[bytes] = 0;
	assert_int_equal(refused(k, image, bytes + 1), -EBADMSG);
	assert_non_null(strstr(pv_last_error(), "follows its end"));
	free(image);
}

static void test_every_flipped_byte(void **state)
{
	struct keeper *k = *state;
	size_t bytes;
	uint8_t *image = image_new(k, 50, 0, &bytes);

	for (size_t i = 0; i < bytes; i += i > 600 && i + 300 < bytes ? 41 : 1) {
		int err;

		image[i] ^= (uint8_t) (1u << i % 8);
		err = refused(k, image, bytes);
		if (err != -EBADMSG && err != -EPROTONOSUPPORT)
			fail_msg("byte %zu of %zu flipped: %d: %s", i, bytes, err, pv_last_error());
		image[i] ^= (uint8_t) (1u << i % 8);
	}
	free(image);
}

/* Change a field of the head, with the checksum right again. */
static int with_head(struct keeper *k, const uint8_t *image, size_t bytes, void (*change)(struct image_rec *h))
{
	uint8_t *copy = malloc(bytes);
	struct image_rec head;
	int err;

	assert_non_null(copy);
	memcpy(copy, image, bytes);
	memcpy(&head, copy, sizeof(head));
	change(&head);
	head.checksum = XXH3_64bits(&head, offsetof(struct image_rec, checksum));
	memcpy(copy, &head, sizeof(head));
	err = refused(k, copy, bytes);
	free(copy);
	return err;
}

static void later_version(struct image_rec *h)
{
	h->version++;
}
static void later_format(struct image_rec *h)
{
	h->format_version++;
}
static void bad_name(struct image_rec *h)
{
	h->store[0] = '/';
}
static void many_memfds(struct image_rec *h)
{
	h->nmemfds = UINT32_MAX;
}
static void large_chunks(struct image_rec *h)
{
	h->chunk_bytes = 1u << 31;
}
static void much(struct image_rec *h)
{
	h->contents_bytes = 1ull << 46;
	h->window_bytes = 1ull << 46;
}
static void fewer(struct image_rec *h)
{
	h->contents_bytes -= 4096;
}
static void more_chunks(struct image_rec *h)
{
	h->nchunks++;
}
static void fewer_chunks(struct image_rec *h)
{
	h->nchunks--;
}
static void another_store(struct image_rec *h)
{
	h->uuid[0] ^= 1;
}

static void test_heads_that_make_no_sense(void **state)
{
	struct keeper *k = *state;
	size_t bytes;
	uint8_t *image = image_new(k, 50, 0, &bytes);

	assert_fails(with_head(k, image, bytes, later_version), -EPROTONOSUPPORT, "version 2");
	assert_fails(with_head(k, image, bytes, later_format), -EPROTONOSUPPORT, "format version");
	assert_fails(with_head(k, image, bytes, bad_name), -EBADMSG, "name");
	assert_fails(with_head(k, image, bytes, many_memfds), -EBADMSG, "memfds");
	assert_fails(with_head(k, image, bytes, large_chunks), -EBADMSG, "chunks");
	assert_fails(with_head(k, image, bytes, much), -EBADMSG, "more contents");
	assert_fails(with_head(k, image, bytes, fewer), -EBADMSG, "more contents");
	assert_fails(with_head(k, image, bytes, more_chunks), -EBADMSG, "cut short");
	assert_fails(with_head(k, image, bytes, fewer_chunks), -EBADMSG, "last record");
	assert_fails(with_head(k, image, bytes, another_store), -EBADMSG, "last record");
	free(image);
}

static void test_verify_keeps_nothing(void **state)
{
	struct keeper *k = *state;
	size_t bytes;
	uint8_t *image = image_new(k, 50, 3, &bytes);
	unsigned int adds = k->adds;
	int fd = file_of(image, bytes);
	struct pv_image_report report;

	assert_ok(restored(k, fd, PV_RESTORE_VERIFY, &report));
	assert_int_equal(k->adds, adds);
	assert_string_equal(report.name, "test");
	close(fd);
	free(image);
}

/* ---- the holder ---- */

struct place {
	char dir[32];
	struct pv_options o;
};

static int place_setup(void **state)
{
	struct place *p = calloc(1, sizeof(*p));

	if (!p)
		return -1;
	snprintf(p->dir, sizeof(p->dir), "/tmp/pv-image-XXXXXX");
	if (!mkdtemp(p->dir))
		return -1;
	p->o = (struct pv_options){
		.size = sizeof(p->o),
		.handover = PV_HANDOVER_HOLDER,
		.segment_bytes = 65536,
		.window_bytes = 16u << 20,
		.lanes = 2,
		.runtime_dir = p->dir,
	};
	*state = p;
	return 0;
}

static int place_teardown(void **state)
{
	struct place *p = *state;
	int err;

	/* A holder that keeps nothing ends by itself within some seconds, and its socket with it. */
	for (unsigned int i = 0; i < 200 && (err = rmdir(p->dir)) != 0; i++)
		usleep(50000);
	free(p);
	return err;
}

static enum pv_stores_state state_of(const struct place *p, const char *name)
{
	enum pv_stores_state found = PV_STORES_LOST;
	struct pv_stores *list;

	assert_ok(pv_stores_list(p->dir, &list));
	for (uint32_t i = 0; i < list->n; i++)
		if (strcmp(list->stores[i].name, name) == 0)
			found = list->stores[i].state;
	pv_stores_free(list);
	return found;
}

static struct pv_store *open_at(struct place *p, const char *name, uint32_t flags)
{
	struct pv_store *s;

	p->o.flags = flags;
	assert_ok(pv_open(name, &p->o, &s));
	return s;
}

static void test_names_and_identity(void **state)
{
	struct place *p = *state;
	struct pv_restore_options force = {.size = sizeof(force), .flags = PV_RESTORE_FORCE};
	struct pv_store *s = open_at(p, "one", PV_CREATE);
	struct pv_image_report report;
	struct pv_info info;
	int fd;

	fill(s, 100, 5);
	info = store_info(s);
	fd = saved(s, NULL);
	/* While it is open nobody takes its place. */
	assert_fails(pv_restore(NULL, &p->o, fd, NULL, NULL), -EEXIST, "one");
	lseek(fd, 0, SEEK_SET);
	assert_ok(pv_close(s));
	assert_fails(pv_restore(NULL, &p->o, fd, NULL, NULL), -EEXIST, "one");
	lseek(fd, 0, SEEK_SET);
	/* Beside the original: a store of its own. */
	assert_ok(pv_restore("two", &p->o, fd, NULL, &report));
	assert_true(report.new_uuid);
	assert_memory_not_equal(report.uuid, info.uuid, 16);
	lseek(fd, 0, SEEK_SET);
	/* In place of the original: that one. */
	s = open_at(p, "one", 0);
	store_root(s)->value = 77;
	assert_ok(pv_close(s));
	assert_ok(pv_restore(NULL, &p->o, fd, &force, &report));
	assert_false(report.new_uuid);
	assert_memory_equal(report.uuid, info.uuid, 16);
	s = open_at(p, "one", 0);
	assert_int_equal(store_root(s)->value, 0);
	assert_filled(s, 100, 5);
	assert_ok(pv_destroy(s));
	s = open_at(p, "two", 0);
	assert_filled(s, 100, 5);
	assert_ok(pv_destroy(s));
	close(fd);
}

static int hold_open(void *ctx)
{
	struct place *p = ctx;
	struct pv_store *s;

	p->o.flags = 0;
	if (pv_open("one", &p->o, &s))
		return 1;
	raise(SIGSTOP);
	pause();
	return 1;
}

static void test_force_and_an_owner(void **state)
{
	struct place *p = *state;
	struct pv_restore_options force = {.size = sizeof(force), .flags = PV_RESTORE_FORCE};
	struct pv_store *s = open_at(p, "one", PV_CREATE);
	pid_t owner;
	int fd;

	fill(s, 10, 0);
	fd = saved(s, NULL);
	assert_ok(pv_close(s));
	owner = start_child(hold_open, p);
	for (;;) {
		struct pv_stores *list;
		bool open;

		assert_ok(pv_stores_list(p->dir, &list));
		open = list->n == 1 && list->stores[0].open && list->stores[0].writer_pid == owner;
		pv_stores_free(list);
		if (open)
			break;
		usleep(1000);
	}
	assert_fails(pv_restore(NULL, &p->o, fd, &force, NULL), -EBUSY, "in use by process");
	kill(owner, SIGKILL);
	assert_int_equal(child_wait(owner), 256 + SIGKILL);
	s = open_at(p, "one", 0);
	assert_filled(s, 10, 0);
	assert_ok(pv_destroy(s));
	close(fd);
}

/* Killed while the holder was being given the descriptors: all of them but the index. */
static void test_interrupted_hand_over(void **state)
{
	struct place *p = *state;
	struct pv_store *s = open_at(p, "one", PV_CREATE);
	struct pvi_handover *h;
	int fd;

	fill(s, 100, 8);
	fd = saved(s, NULL);
	assert_ok(pv_destroy(s));
	for (unsigned int round = 0; round < 2; round++) {
		assert_ok(pvi_handover_open("one", &p->o, &h));
		for (uint64_t token = 1; token < 4; token++) {
			int part = memfd_clone(-1, 65536);

			assert_ok(h->ops->keep(h, token, part));
			close(part);
		}
		h->ops->close(h);
		assert_int_equal(state_of(p, "one"), PV_STORES_UNBORN);
		p->o.flags = 0;
		assert_fails(pv_open("one", &p->o, &s), -ENOENT, "interrupted");
		if (round == 0) {
			assert_ok(pv_restore(NULL, &p->o, fd, NULL, NULL));
			s = open_at(p, "one", 0);
			assert_filled(s, 100, 8);
		} else {
			struct pv_stores *list;

			s = open_at(p, "one", PV_CREATE);
			assert_int_equal(store_info(s).origin, PV_ORIGIN_CREATED);
			assert_ok(pv_stores_list(p->dir, &list));
			assert_int_equal(list->stores[0].descriptors, 2);
			pv_stores_free(list);
		}
		assert_ok(pv_destroy(s));
	}
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_keeper(test_round_trip),
		with_keeper(test_free_pages_are_left_out),
		with_keeper(test_another_uuid_and_name),
		with_keeper(test_sealed_segments),
		with_keeper(test_many_chunks_and_threads),
		with_keeper(test_progress_may_end_it),
		with_keeper(test_not_at_rest),
		with_keeper(test_wrong_options),
		with_keeper(test_full_device),
		with_keeper(test_closed_pipe),
		with_keeper(test_file),
		with_keeper(test_every_truncation),
		with_keeper(test_every_flipped_byte),
		with_keeper(test_heads_that_make_no_sense),
		with_keeper(test_verify_keeps_nothing),
		cmocka_unit_test_setup_teardown(test_names_and_identity, place_setup, place_teardown),
		cmocka_unit_test_setup_teardown(test_force_and_an_owner, place_setup, place_teardown),
		cmocka_unit_test_setup_teardown(test_interrupted_hand_over, place_setup, place_teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
