/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Pages that stay where they are while the kernel preserves them.
 *
 * To preserve a memfd the kernel (7.2) looks its pages up and takes a reference to each. Making a huge page
 * of small ones, which khugepaged does at any time and MADV_COLLAPSE when asked, first sees that nobody has a
 * reference, then copies, then puts the copy in their place. A reference taken between the first and the
 * last is one to a page that is no part of the file any more: that one is carried over the kexec, as it was,
 * and whatever is written from then on is lost without a word. (Seen: half of a store's buckets were old.)
 *
 * A reference taken by way of a page table cannot come in between, because making the huge page removes
 * the mapping before it looks. So pages are held by such a reference meanwhile. What takes one for any
 * length of memory, and moves pages that must not stay where they are (in memory that is set aside for
 * the next kernel) before, is the registration of a buffer with an io_uring; nothing else of that is used.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "internal.h"
#include "pin.h"

#define SHMEM_HUGE   "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
#define BUFFER_BYTES (1ull << 30) /* the kernel takes no larger ones */

/** Does the kernel make huge pages of memfds? */
static bool huge_pages_happen(void)
{
	char policy[128] = "";
	FILE *f = fopen(SHMEM_HUGE, "re");
	bool some = f && fgets(policy, sizeof(policy), f) && !strstr(policy, "[never]") &&
		    !strstr(policy, "[deny]");

	if (f)
		fclose(f);
	return some;
}

static int hold(int ring, uint8_t *addr, uint64_t bytes)
{
	uint32_t n = (uint32_t) ((bytes + BUFFER_BYTES - 1) / BUFFER_BYTES);
	struct iovec *buffers = calloc(n, sizeof(*buffers));
	int err = 0;

	if (!buffers)
		return pvi_fail(-ENOMEM, "no memory");
	for (uint32_t i = 0; i < n; i++) {
		uint64_t at = i * BUFFER_BYTES;

		buffers[i].iov_base = addr + at;
		buffers[i].iov_len = bytes - at < BUFFER_BYTES ? bytes - at : BUFFER_BYTES;
	}
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, buffers, n) < 0)
		err = pvi_fail(-errno,
			       "%llu MiB of a segment cannot be held in place while they are preserved: %s "
			       "(RLIMIT_MEMLOCK?)",
			       (unsigned long long) bytes >> 20, strerror(errno));
	free(buffers);
	return err;
}

int pvi_pin_room(int fd, const char *what)
{
	uint64_t bytes, backed, room;
	struct stat st;

	if (fstat(fd, &st))
		return pvi_fail(-errno, "%s: %s", what, strerror(errno));
	bytes = (uint64_t) st.st_size;
	backed = (uint64_t) st.st_blocks * 512;
	if (backed >= bytes)
		return 0;
	room = pvi_memory_room();
	if (bytes - backed <= room)
		return 0;
	return pvi_fail(-ENOMEM,
			"%s cannot be preserved: %" PRIu64 " MiB of it have no memory yet, and the machine "
			"or the cgroup has %" PRIu64 " MiB to give",
			what, (bytes - backed) >> 20, room >> 20);
}

int pvi_pin_begin(int fd, uint8_t *addr, uint64_t bytes, int *pin)
{
	struct io_uring_params params = {0};
	int ring, err;

	*pin = -1;
	if (bytes < PVI_HUGE_BYTES)
		return 0;
	err = pvi_pin_room(fd, "a segment");
	if (err)
		return err;
	ring = (int) syscall(SYS_io_uring_setup, 1, &params);
	if (ring < 0 && (errno == ENOSYS || errno == EPERM || errno == EACCES)) {
		if (!huge_pages_happen())
			return 0;
		return pvi_fail(-EOPNOTSUPP,
				"the kernel makes huge pages of memfds, and io_uring is off or forbidden, "
				"which would stop it while a store is preserved: allow it (sysctl "
				"kernel.io_uring_disabled), or write never to " SHMEM_HUGE);
	}
	if (ring < 0)
		return pvi_fail(-errno, "io_uring_setup: %s", strerror(errno));
	err = hold(ring, addr, bytes);
	if (err) {
		close(ring);
		return err;
	}
	*pin = ring;
	return 0;
}

int pvi_pin_file(int fd, int *pin)
{
	int seals = fcntl(fd, F_GET_SEALS), err;
	struct stat st;
	void *map;

	*pin = -1;
	if (fstat(fd, &st))
		return pvi_fail(-errno, "a memfd that is to be preserved: %s", strerror(errno));
	/* What is sealed does not change, so that an old page of it is as good. */
	if ((uint64_t) st.st_size < PVI_HUGE_BYTES || (seals >= 0 && seals & F_SEAL_WRITE))
		return 0;
	map = mmap(NULL, (size_t) st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return pvi_fail(-errno, "no addresses for %lld bytes that are to be preserved: %s",
				(long long) st.st_size, strerror(errno));
	err = pvi_pin_begin(fd, map, (uint64_t) st.st_size, pin);
	munmap(map, (size_t) st.st_size); /* what is held stays held */
	return err;
}

void pvi_pin_end(int pin)
{
	if (pin < 0)
		return;
	/* Closing would do it, too, but later. */
	syscall(SYS_io_uring_register, pin, IORING_UNREGISTER_BUFFERS, NULL, 0);
	close(pin);
}
