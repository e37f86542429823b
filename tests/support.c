/* SPDX-License-Identifier: BSD-3-Clause */
/* See support.h. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "support.h"

#define SMALL_WINDOW_BYTES  (16u << 20)
#define SMALL_SEGMENT_BYTES (64u << 10)
#define DEFAULT_SEED	    0x5eed5eed5eedull

/* Errors are what most tests want to see, in builds with debug checks as well. */
__attribute__((constructor)) static void misuse_is_an_error(void)
{
	setenv("PV_MISUSE", "error", 1);
}

/* ---- keeper ---- */

void keeper_init(struct keeper *k)
{
	*k = (struct keeper){0};
}

void keeper_free(struct keeper *k)
{
	for (unsigned int i = 0; i < k->n; i++)
		close(k->fds[i]);
	k->n = 0;
}

static int slot_of(const struct keeper *k, uint64_t token)
{
	for (unsigned int i = 0; i < k->n; i++)
		if (k->tokens[i] == token)
			return (int)i;
	return -1;
}

int keeper_fd(const struct keeper *k, uint64_t token)
{
	int i = slot_of(k, token);

	return i < 0 ? -1 : k->fds[i];
}

uint64_t keeper_bytes(const struct keeper *k)
{
	uint64_t blocks = 0;
	struct stat st;

	for (unsigned int i = 0; i < k->n; i++) {
		assert_int_equal(fstat(k->fds[i], &st), 0);
		blocks += (uint64_t)st.st_blocks;
	}
	return blocks * 512;
}

void keeper_drop(struct keeper *k, uint64_t token)
{
	int i = slot_of(k, token);

	if (i < 0)
		return;
	close(k->fds[i]);
	k->n--;
	k->fds[i] = k->fds[k->n];
	k->tokens[i] = k->tokens[k->n];
}

void keeper_put(struct keeper *k, uint64_t token, int fd)
{
	int dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);

	keeper_drop(k, token);
	assert_true(dup >= 0);
	assert_in_range(k->n, 0, KEEPER_MAX - 1);
	k->fds[k->n] = dup;
	k->tokens[k->n++] = token;
}

/* Called by the library, with its locks held, so no assertion may leave from here by longjmp. */
int keeper_keep(void *ctx, enum pv_keep what, uint64_t token, int fd)
{
	struct keeper *k = ctx;
	int dup, i;

	if (what == PV_KEEP_DROP) {
		__atomic_fetch_add(&k->drops, 1, __ATOMIC_RELAXED);
		k->last_drop = token;
		keeper_drop(k, token);
		return 0;
	}
	if (k->refuse_err && k->refuse_token == token)
		return k->refuse_err;
	dup = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (dup < 0 || k->n == KEEPER_MAX)
		return -EMFILE;
	i = slot_of(k, token);
	if (i >= 0) {
		close(k->fds[i]);
		k->fds[i] = dup;
	} else {
		k->fds[k->n] = dup;
		k->tokens[k->n++] = token;
	}
	k->adds++;
	if (k->copy && k->copy_at_token == token)
		keeper_copy(k->copy, k);
	return 0;
}

void keeper_copy(struct keeper *to, const struct keeper *from)
{
	keeper_free(to);
	for (unsigned int i = 0; i < from->n; i++) {
		to->fds[i] = memfd_clone(from->fds[i], 0);
		to->tokens[i] = from->tokens[i];
		to->n++;
	}
}

void keeper_crash(struct keeper *k, struct pv_store **s)
{
	struct keeper image = {0};

	keeper_copy(&image, k);
	assert_ok(pv_close(*s));
	*s = NULL;
	keeper_free(k);
	memcpy(k->fds, image.fds, sizeof(k->fds));
	memcpy(k->tokens, image.tokens, sizeof(k->tokens));
	k->n = image.n;
}

static unsigned int open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static unsigned int mapped_memfds(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned int n = 0;
	char line[512];

	assert_non_null(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, "memfd:pv:") != NULL;
	fclose(f);
	return n;
}

int keeper_setup(void **state)
{
	struct keeper *k = calloc(1, sizeof(*k));

	if (!k)
		return -1;
	keeper_init(k);
	k->descriptors = open_descriptors();
	k->mapped = mapped_memfds();
	*state = k;
	return 0;
}

int keeper_teardown(void **state)
{
	struct keeper *k = *state;
	unsigned int descriptors, mapped = mapped_memfds();
	bool same;

	keeper_free(k);
	descriptors = open_descriptors();
	same = descriptors == k->descriptors && mapped == k->mapped;
	if (!same)
		print_error(
			"descriptors: %u, %u at the start; memfds mapped: %u, %u at the start\n",
			descriptors, k->descriptors, mapped, k->mapped);
	free(k);
	return same ? 0 : -1;
}

/* ---- memfds ---- */

size_t memfd_bytes(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (size_t)st.st_size;
}

uint8_t *memfd_map(int fd, size_t *bytes)
{
	uint8_t *p;

	*bytes = memfd_bytes(fd);
	p = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

void memfd_unmap(uint8_t *p, size_t bytes)
{
	munmap(p, bytes);
}

void memfd_copy(int to, int from)
{
	size_t bytes = memfd_bytes(from), other;
	const uint8_t *src = mmap(NULL, bytes, PROT_READ, MAP_SHARED, from, 0);
	uint8_t *dst = memfd_map(to, &other);

	assert_ptr_not_equal(src, MAP_FAILED);
	assert_int_equal(bytes, other);
	/* Pages that were never written stay holes in the copy. */
	for (size_t at = 0; at < bytes; at += 4096)
		if (memcmp(dst + at, src + at, 4096) != 0)
			memcpy(dst + at, src + at, 4096);
	munmap((void *)(uintptr_t)src, bytes);
	memfd_unmap(dst, bytes);
}

int memfd_clone(int from, size_t bytes)
{
	int fd = memfd_create("pv:test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)(from < 0 ? bytes : memfd_bytes(from))), 0);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK), 0);
	if (from >= 0)
		memfd_copy(fd, from);
	return fd;
}

/* ---- stores ---- */

struct pv_options small_options(struct keeper *k)
{
	return (struct pv_options){
		.size = sizeof(struct pv_options),
		.handover = PV_HANDOVER_NONE,
		.window_bytes = SMALL_WINDOW_BYTES,
		.segment_bytes = SMALL_SEGMENT_BYTES,
		.lanes = 2,
		.keep = keeper_keep,
		.keep_ctx = k,
	};
}

int store_try(struct keeper *k, const struct pv_options *o, uint32_t flags, struct pv_store **s)
{
	struct pv_options now = o ? *o : small_options(k);
	/* The array is the library's for the call only: as large as said, and gone afterwards. */
	int *fds = malloc(k->n * sizeof(*fds));
	int err;

	assert_true(fds || !k->n);
	if (k->n)
		memcpy(fds, k->fds, k->n * sizeof(*fds));
	now.fds = fds;
	now.nfds = k->n;
	now.flags = flags;
	err = pv_open("test", &now, s);
	free(fds);
	return err;
}

struct pv_store *store_create(struct keeper *k, const struct pv_options *o)
{
	struct pv_store *s = NULL;

	assert_int_equal(k->n, 0);
	assert_ok(store_try(k, o, PV_CREATE, &s));
	return s;
}

struct pv_store *store_attach(struct keeper *k, const struct pv_options *o)
{
	struct pv_store *s = NULL;

	assert_ok(store_try(k, o, 0, &s));
	return s;
}

struct pv_info store_info(struct pv_store *s)
{
	struct pv_info info;

	assert_ok(pv_info_get(s, &info));
	return info;
}

static void print_problem(void *ctx, const char *line)
{
	print_error("pv_check: %s\n", line);
}

struct pv_check_report store_sound(struct pv_store *s)
{
	struct pv_check_report r;

	assert_ok(pv_check(s, PV_CHECK_TELL(print_problem, NULL), &r));
	assert_int_equal(r.problems, 0);
	return r;
}

static void count_pointers(void *ctx, const char *line)
{
	if (strncmp(line, "object 0x", 9) == 0)
		++*(uint64_t *)ctx;
	else
		print_error("pv_check: %s\n", line);
}

struct pv_check_report store_records_sound(struct pv_store *s)
{
	struct pv_check_report r;
	uint64_t pointers = 0;

	assert_ok(pv_check(s, PV_CHECK_TELL(count_pointers, &pointers), &r));
	assert_int_equal(r.problems, pointers);
	return r;
}

pv_type_t store_bytes_type(struct pv_store *s, const char *name)
{
	struct pv_typedef def = PV_TYPE_BYTES(name, 1);
	pv_type_t type = 0;

	assert_ok(pv_type_register(s, &def, &type));
	return type;
}

pv_type_t store_type(struct pv_store *s, const struct pv_typedef *def)
{
	pv_type_t type = 0;

	assert_ok(pv_type_register(s, def, &type));
	return type;
}

void *store_moved(struct pv_store *s, const void *p)
{
	struct pv_info info = store_info(s);
	uint64_t off = (uintptr_t)p - info.relocated_from;

	return !p || !info.relocated_from || off >= info.window_bytes ? (void *)(uintptr_t)p
								      : (void *)(uintptr_t)(info.base + off);
}

void objects_moved(struct objects *o, struct pv_store *s)
{
	for (size_t i = 0; i < o->n; i++)
		o->v[i].p = store_moved(s, o->v[i].p);
}

void relocate_never(void)
{
	setenv("PV_RELOCATE", "never", 1);
}

const struct pv_typedef store_word = PV_TYPE(struct word, "word", 1, PV_POINTER(struct word, next));

pv_type_t store_word_type(struct pv_store *s)
{
	pv_type_t type = 0;

	assert_ok(pv_type_register(s, &store_word, &type));
	return type;
}

struct word *store_root(struct pv_store *s)
{
	void *root = NULL;

	assert_ok(pv_root(s, "root", store_word_type(s), sizeof(struct word), &root, NULL));
	return root;
}

static const struct pv_typedef store_cells_def =
	PV_TYPE(struct cells, "table", 1, PV_POINTER(struct cells, cells));

struct cells *store_cells(struct pv_store *s)
{
	pv_type_t type = store_type(s, &store_cells_def);
	void *root = NULL;

	assert_ok(pv_root(s, "table", type, sizeof(struct cells), &root, NULL));
	return root;
}

void *reserve_ok(struct pv_store *s, pv_type_t type, size_t bytes)
{
	void *p = NULL;

	assert_ok(pv_reserve(s, type, bytes, &p));
	return p;
}

void *publish_ok(struct pv_store *s, pv_type_t type, size_t bytes, void **cell)
{
	void *p = reserve_ok(s, type, bytes);

	assert_ok(pv_publish(s, (struct pv_action[]){PV_LIVE(p), PV_STORE(cell, (uintptr_t)p)}, 2));
	assert_ptr_equal(*cell, p);
	return p;
}

/* ---- live objects ---- */

void objects_add(struct objects *o, void *p, size_t bytes, pv_type_t type)
{
	if (o->n == o->room) {
		o->room = o->room ? 2 * o->room : 64;
		o->v = realloc(o->v, o->room * sizeof(*o->v));
		assert_non_null(o->v);
	}
	o->v[o->n++] = (struct object){p, bytes, type};
}

void objects_free(struct objects *o)
{
	free(o->v);
	*o = (struct objects){0};
}

static int by_address(const void *a, const void *b)
{
	const struct object *x = a, *y = b;

	return x->p < y->p ? -1 : x->p > y->p;
}

void objects_sort(struct objects *o)
{
	if (o->n)
		qsort(o->v, o->n, sizeof(*o->v), by_address);
}

bool objects_same(const struct objects *a, const struct objects *b)
{
	for (size_t i = 0; i < a->n && i < b->n; i++) {
		const struct object *x = &a->v[i], *y = &b->v[i];

		if (x->p != y->p || x->bytes != y->bytes || x->type != y->type)
			return false;
	}
	return a->n == b->n;
}

static int collect(void *ctx, void *p, size_t bytes, pv_type_t type)
{
	objects_add(ctx, p, bytes, type);
	return 0;
}

void objects_live(struct objects *o, struct pv_store *s, pv_type_t type)
{
	o->n = 0;
	assert_ok(pv_iterate(s, type, collect, o));
	objects_sort(o);
}

/* ---- randomness and patterns ---- */

/* splitmix64 */
uint64_t random_next(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

uint64_t random_below(uint64_t *state, uint64_t n)
{
	return random_next(state) % n;
}

uint64_t random_seed_from_env(const char *test)
{
	const char *text = getenv("PV_TEST_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : DEFAULT_SEED;

	print_message("%s: PV_TEST_SEED=0x%llx\n", test, (unsigned long long)seed);
	return seed;
}

void pattern_fill(void *p, size_t bytes, uint64_t seed)
{
	uint8_t *at = p;

	for (size_t i = 0; i + 8 <= bytes; i += 8) {
		uint64_t word = random_next(&seed);

		memcpy(at + i, &word, 8);
	}
	for (size_t i = bytes & ~7ull; i < bytes; i++)
		at[i] = (uint8_t)random_next(&seed);
}

bool pattern_holds(const void *p, size_t bytes, uint64_t seed)
{
	const uint8_t *at = p;

	for (size_t i = 0; i + 8 <= bytes; i += 8) {
		uint64_t word = random_next(&seed);

		if (memcmp(at + i, &word, 8) != 0)
			return false;
	}
	for (size_t i = bytes & ~7ull; i < bytes; i++)
		if (at[i] != (uint8_t)random_next(&seed))
			return false;
	return true;
}

/* ---- other processes ---- */

pid_t start_child(int (*f)(void *ctx), void *ctx)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(f(ctx));
	return pid;
}

int child_wait(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		assert_int_equal(errno, EINTR);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

int run_child(int (*f)(void *ctx), void *ctx)
{
	return child_wait(start_child(f, ctx));
}

void temp_file(char path[64], const void *data, size_t n)
{
	const char *dir = getenv("TMPDIR");
	int fd;

	assert_true((size_t)snprintf(path, 64, "%s/pv-test-XXXXXX", dir ? dir : "/tmp") < 64);
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, data, n), n);
	close(fd);
}

static char *read_all(int fd)
{
	size_t n = 0, room = 4096;
	char *text = malloc(room);
	ssize_t got;

	assert_non_null(text);
	while ((got = read(fd, text + n, room - n - 1)) > 0) {
		n += (size_t)got;
		if (room - n < 2) {
			room *= 2;
			text = realloc(text, room);
			assert_non_null(text);
		}
	}
	text[n] = '\0';
	return text;
}

int run_command(const char *const argv[], char **out)
{
	int pipe_fds[2];
	pid_t pid;

	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(pipe_fds[1], STDOUT_FILENO);
		execvp(argv[0], (char **)(uintptr_t)argv);
		_exit(127);
	}
	close(pipe_fds[1]);
	*out = read_all(pipe_fds[0]);
	close(pipe_fds[0]);
	return child_wait(pid);
}

/* ---- sanitizers ---- */

bool under_tsan(void)
{
#if defined(__SANITIZE_THREAD__)
	return true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
	return true;
#endif
#endif
	return false;
}
