/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Addresses and memfds. A store's window is set aside as one PROT_NONE reservation; memfds are
 * mapped over parts of it. Memfds are sealed against growing and shrinking at birth: whoever else
 * holds the descriptor cannot make us run into a SIGBUS, and the kernel's freeze while a memfd is
 * preserved forbids nothing that we do.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "internal.h"

/* linux/memfd.h since 6.3, asm-generic/mman-common.h since 5.14 */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#define MFD_EXEC	0x0010U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
/* since 6.1 */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/*
 * Where windows may lie. A default process has nothing between these two: the heap and the
 * executable are below or far above, shared libraries and stacks close to 2^47. The sanitizers
 * claim parts: ASan's shadow ends above 0x1000'7fff'8000; TSan's runtime (tsan_platform.h of LLVM 14)
 * accepts application mappings only below 0x80'0000'0000, in a mid range around 0x5500'..., and high
 * up. A store made by one kind of build can so be out of reach for another, which is said.
 */
#if defined(__SANITIZE_THREAD__)
#define THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREAD_SANITIZER 1
#endif
#endif
#ifdef THREAD_SANITIZER
#define BASE_LOW  0x001000000000ull
#define BASE_HIGH 0x007800000000ull
#else
#define BASE_LOW  0x110000000000ull
#define BASE_HIGH 0x500000000000ull
#endif

/*
 * A memfd that is not executable by its mode, and not by MFD_NOEXEC_SEAL: after a kexec the kernel
 * (7.2, mm/memfd_luo.c) makes a file of mode 0777 and adds the old seals to it, and on an executable
 * file F_SEAL_EXEC brings F_SEAL_WRITE along (mm/memfd.c): the store would come back read-only. Where
 * nothing but MFD_NOEXEC_SEAL is allowed (sysctl vm.memfd_noexec=2) it is taken, and such a store
 * cannot be prepared for a kexec.
 */
static int memfd_new(const char *name)
{
	const unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd = memfd_create(name, flags | MFD_EXEC);

	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create(name, flags);
	else if (fd < 0 && errno == EACCES)
		fd = memfd_create(name, flags | MFD_NOEXEC_SEAL);
	return fd;
}

int pvi_arena_memfd(const char *name, uint64_t bytes)
{
	int err, fd = memfd_new(name);

	if (fd < 0)
		return pvi_fail(errno, "memfd_create(%s): %s", name, strerror(errno));
	if (fchmod(fd, 0600) < 0 || ftruncate(fd, (off_t) bytes) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0) {
		err = errno;
		close(fd);
		return pvi_fail(err, "memfd %s of %" PRIu64 " bytes: %s", name, bytes, strerror(err));
	}
	return fd;
}

int pvi_arena_verify(int fd, const char *what, uint64_t min_bytes, uint64_t *bytes)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0)
		return pvi_fail(-EBADMSG, "%s: not a memfd (F_GET_SEALS: %s)", what, strerror(errno));
	if ((seals & (F_SEAL_GROW | F_SEAL_SHRINK)) != (F_SEAL_GROW | F_SEAL_SHRINK))
		return pvi_fail(-EBADMSG, "%s: not sealed against growing and shrinking (seals 0x%x)",
				what, (unsigned int) seals);
	if (fstat(fd, &st) < 0)
		return pvi_fail(errno, "%s: fstat: %s", what, strerror(errno));
	if (st.st_size < 0 || (uint64_t) st.st_size < min_bytes)
		return pvi_fail(-EBADMSG, "%s: %lld bytes are too few (truncated?)", what,
				(long long) st.st_size);
	*bytes = (uint64_t) st.st_size;
	return 0;
}

bool pvi_arena_base_valid(uint64_t base, uint64_t window_bytes)
{
	return base % PVI_BASE_ALIGN == 0 && base >= PVI_BASE_ALIGN && window_bytes <= 1ull << 46 &&
	       base + window_bytes <= 1ull << 47;
}

void pvi_arena_bounds(uint64_t *low, uint64_t *high)
{
	*low = BASE_LOW;
	*high = BASE_HIGH;
}

uint64_t pvi_arena_base(const uint8_t uuid[16], uint64_t window_bytes, unsigned int attempt)
{
	uint64_t hash = XXH3_64bits_withSeed(uuid, 16, attempt);
	uint64_t room = BASE_HIGH - BASE_LOW;
	uint64_t places = room > window_bytes ? (room - window_bytes) / PVI_BASE_ALIGN : 1;

	return BASE_LOW + hash % places * PVI_BASE_ALIGN;
}

int pvi_arena_reserve(uint64_t base, uint64_t window_bytes)
{
	void *want = (void *) (uintptr_t) base, *got;

#ifdef THREAD_SANITIZER
	/* Its mmap() takes an address that it does not like for 0 and ends the process. */
	if (base < BASE_LOW || base + window_bytes > BASE_HIGH)
		return -EADDRINUSE;
#endif
	got = mmap(want, window_bytes, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	if (got == MAP_FAILED && errno == EEXIST)
		return -EADDRINUSE;
	if (got == MAP_FAILED)
		return pvi_fail(errno,
				"cannot set aside a window of %" PRIu64 " MiB of addresses: %s (see "
				"RLIMIT_AS and pv_options.window_bytes)",
				window_bytes >> 20, strerror(errno));
	if (got != want) { /* a kernel before 4.17 takes the address as a hint */
		munmap(got, window_bytes);
		return -EADDRINUSE;
	}
	madvise(got, window_bytes, MADV_DONTFORK);
	return 0;
}

int pvi_arena_taken(uint64_t base, uint64_t window_bytes)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512], owner[sizeof(line)] = "another mapping";
	bool named = false;

	/* The first range that has a name, else the first. */
	while (maps && !named && fgets(line, sizeof(line), maps)) {
		uint64_t from, to;
		int at = 0;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %*s %*s %*s %*s %n", &from, &to, &at) < 2 || !at ||
		    to <= base || from >= base + window_bytes)
			continue;
		line[strcspn(line, "\n")] = '\0';
		named = line[at] != '\0';
		if (named || strcmp(owner, "another mapping") == 0)
			snprintf(owner, sizeof(owner), "0x%" PRIx64 "-0x%" PRIx64 " %.400s", from, to,
				 named ? line + at : "(anonymous)");
	}
	if (maps)
		fclose(maps);
#ifdef THREAD_SANITIZER
	if (base < BASE_LOW || base + window_bytes > BASE_HIGH)
		strcpy(owner, "what ThreadSanitizer keeps for itself");
#endif
	return pvi_fail(-EADDRINUSE, "the window at 0x%" PRIx64 " (%" PRIu64 " MiB) overlaps %s of this process",
			base, window_bytes >> 20, owner);
}

void pvi_arena_release(uint64_t base, uint64_t window_bytes)
{
	munmap((void *) (uintptr_t) base, window_bytes);
}

int pvi_arena_map(void *addr, uint64_t bytes, int fd, bool readonly)
{
	int prot = readonly ? PROT_READ : PROT_READ | PROT_WRITE;

	if (mmap(addr, bytes, prot, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
		return pvi_fail(errno, "cannot map %" PRIu64 " bytes at %p: %s", bytes, addr,
				strerror(errno));
	/* Neither is needed for correct work in this process, so a kernel that refuses is no error. */
	madvise(addr, bytes, MADV_HUGEPAGE);
	/* A forked child must not become a second writer. */
	madvise(addr, bytes, MADV_DONTFORK);
	return 0;
}

int pvi_arena_map_private(void *addr, uint64_t bytes, int fd)
{
	if (mmap(addr, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0) == MAP_FAILED)
		return pvi_fail(errno, "cannot map %" PRIu64 " bytes at %p: %s", bytes, addr,
				strerror(errno));
	madvise(addr, bytes, MADV_DONTFORK);
	return 0;
}

void pvi_arena_unmap(void *addr, uint64_t bytes)
{
	mmap(addr, bytes, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	madvise(addr, bytes, MADV_DONTFORK);
}

bool pvi_arena_collapse(uint8_t *at)
{
	return madvise(at, PVI_HUGE_BYTES, MADV_COLLAPSE) == 0;
}

int pvi_arena_commit(int fd, uint8_t *segment, uint64_t off, uint64_t bytes)
{
	int err = pvi_memory_ask(segment + off, bytes);

	if (err)
		return err;
	/* Allocates and maps in one call. Kernels before 5.14 say EINVAL. */
	if (madvise(segment + off, bytes, MADV_POPULATE_WRITE) == 0)
		return 0;
	if (errno == EINVAL) {
		if (fallocate(fd, 0, (off_t) off, (off_t) bytes) == 0)
			return 0;
		if (errno == EPERM) /* preserved, and so filled already */
			return 0;
	}
	return pvi_fail(-ENOMEM, "no memory for %" PRIu64 " bytes of a segment: %s", bytes,
			strerror(errno));
}
