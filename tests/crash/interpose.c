/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * interpose.c - libc functions that change what a dead process leaves behind, overridden by
 * definitions in the test program (which take precedence over libc's, for a shared library too).
 *
 * Each does the raw system call and then, while a run is traced, logs what changed. Writes into a
 * memfd through a descriptor, truncation and hole punching are found by comparing the memfd with
 * the shadow. Reads into mapped memory would fail with EFAULT, because it is read-only while stores
 * are trapped: they go to a bounce buffer and from there into the alias, and count as stores of
 * syscall_chunk_bytes each. What escapes this list is found at the end of the run (trace.c).
 */
#undef _FILE_OFFSET_BITS
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "engine.h"

#define CALLER	       ((uintptr_t)__builtin_return_address(0))
#define ALIAS_OF(name) __attribute__((alias(name)))

/* After a call that may have changed the memfd behind fd. */
static void changed(int fd, uintptr_t ip)
{
	int saved = errno;
	int mem;

	if (ct.tracing && (mem = ct_mem_find(fd)) >= 0) {
		ct_log_mem((unsigned)mem, ip);
		ct_trap_point();
	}
	errno = saved;
}

int memfd_create(const char *name, unsigned flags)
{
	int fd = ct_raw_memfd_create(name, flags);
	unsigned slot;
	int mem;

	if (fd < 0 || !ct.on)
		return fd;
	mem = ct_mem_adopt(fd, name);
	if (mem < 0)
		return fd; /* hugetlb without seals: cannot be handed over either */
	slot = ct.mems[mem].slot;
	if (ct.tracing) {
		uintptr_t interned = (uintptr_t)ct.shadow.slots[slot].memfd_name;

		ct_log_append(CT_BORN, CT_SYSCALL, slot, interned, CALLER);
		if (ct.scenario->keep == CRASH_KEEP_AT_BIRTH)
			ct_log_append(CT_KEEP, CT_SYSCALL, slot, interned, CALLER);
		ct_trap_point();
	} else if (ct.scenario->keep == CRASH_KEEP_AT_BIRTH) {
		ct.shadow.slots[slot].keep_seq = ++ct.shadow.keep_last;
	}
	return fd;
}

int ftruncate(int fd, off_t size)
{
	int rc = ct_raw_ftruncate(fd, size);

	if (rc == 0)
		changed(fd, CALLER);
	return rc;
}
int ftruncate64(int fd, off64_t size) ALIAS_OF("ftruncate");

int fallocate(int fd, int mode, off_t off, off_t len)
{
	int rc = (int)syscall(SYS_fallocate, fd, mode, off, len);

	changed(fd, CALLER);
	return rc;
}
int fallocate64(int fd, int mode, off64_t off, off64_t len) ALIAS_OF("fallocate");

int posix_fallocate(int fd, off_t off, off_t len)
{
	return fallocate(fd, 0, off, len) == 0 ? 0 : errno;
}
int posix_fallocate64(int fd, off64_t off, off64_t len) ALIAS_OF("posix_fallocate");

int fcntl(int fd, int cmd, ...)
{
	unsigned long arg;
	va_list ap;
	int mem = -1, rc;

	va_start(ap, cmd);
	arg = va_arg(ap, unsigned long);
	va_end(ap);
	if (ct.on && cmd == F_ADD_SEALS && (arg & F_SEAL_WRITE)) {
		/* Refused as long as a writable mapping exists, and the alias is one. Reading
		 * only, through a descriptor that could write, counts as writable as well. */
		mem = ct_mem_find(fd);
		if (mem >= 0 && ct.mems[mem].alias) {
			if (ct.tracing)
				ct_log_mem((unsigned)mem, CALLER);
			ct_raw_munmap(ct.mems[mem].alias, ct.mems[mem].alias_bytes);
			ct.mems[mem].alias = NULL;
			ct.mems[mem].alias_bytes = 0;
		}
	}
	rc = ct_raw_fcntl(fd, cmd, arg);
	if (mem >= 0)
		ct_mem_remap_alias((unsigned)mem, rc != 0);
	if (cmd == F_ADD_SEALS)
		changed(fd, CALLER);
	return rc;
}
int fcntl64(int fd, int cmd, ...) ALIAS_OF("fcntl");

void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
	bool shared =
		ct.on && fd >= 0 && !(flags & MAP_ANONYMOUS) &&
		((flags & MAP_TYPE) == MAP_SHARED || (flags & MAP_TYPE) == MAP_SHARED_VALIDATE);
	int mem = shared ? ct_mem_find(fd) : -1;
	void *p;

	if (shared && mem < 0 && !ct.tracing) {
		mem = ct_mem_adopt(fd, "received");
		if (mem >= 0) /* whoever it came from has it */
			ct.shadow.slots[ct.mems[mem].slot].keep_seq = ++ct.shadow.keep_last;
	}
	p = ct_raw_mmap(addr, len, mem >= 0 && ct.tracing ? prot & ~PROT_WRITE : prot, flags, fd,
			off);
	if (p == MAP_FAILED || !ct.on)
		return p;
	if (flags & MAP_FIXED)
		ct_map_remove((uintptr_t)p, len);
	if (mem >= 0)
		ct_map_add((uintptr_t)p, len, (unsigned)mem, (uint64_t)off, prot);
	return p;
}
void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off) ALIAS_OF("mmap");

int munmap(void *addr, size_t len)
{
	int rc = ct_raw_munmap(addr, len);

	if (rc == 0 && ct.on)
		ct_map_remove((uintptr_t)addr, len);
	return rc;
}

int mprotect(void *addr, size_t len, int prot)
{
	bool ours = ct.on && ct_map_overlaps((uintptr_t)addr, len);
	int rc = ct_raw_mprotect(addr, len, ours && ct.tracing ? prot & ~PROT_WRITE : prot);

	if (rc == 0 && ours)
		ct_map_set_prot((uintptr_t)addr, len, prot);
	return rc;
}

void *mremap(void *addr, size_t old_len, size_t new_len, int flags, ...)
{
	void *to;
	va_list ap;

	va_start(ap, flags);
	to = va_arg(ap, void *);
	va_end(ap);
	if (ct.on && ct_map_overlaps((uintptr_t)addr, old_len))
		ct_panic("mremap of a mapped memfd is not followed");
	return (void *)syscall(SYS_mremap, addr, old_len, new_len, flags, to);
}

/* Refused for what is read-only while stores are trapped; the alias has the same pages. */
static int populate(uintptr_t addr, size_t len, int advice)
{
	while (len) {
		const struct ct_map *map = ct_map_find(addr);
		size_t n = len;
		long rc;

		if (!map)
			return (int)syscall(SYS_madvise, addr, len, advice);
		if (n > map->end - addr)
			n = map->end - addr;
		rc = syscall(SYS_madvise, ct.mems[map->mem].alias + map->off + (addr - map->start),
			     n, advice);
		if (rc != 0)
			return (int)rc;
		addr += n;
		len -= n;
	}
	return 0;
}

int madvise(void *addr, size_t len, int advice)
{
	int rc;

	if (ct.tracing && advice == MADV_POPULATE_WRITE)
		return populate((uintptr_t)addr, len, advice);
	rc = (int)syscall(SYS_madvise, addr, len, advice);

	if (advice != MADV_REMOVE || !ct.tracing)
		return rc;
	for (unsigned i = 0; i < ct.n_mems; i++) {
		if (ct.mems[i].used)
			ct_log_mem(i, CALLER);
	}
	ct_trap_point();
	return rc;
}

ssize_t write(int fd, const void *buf, size_t len)
{
	ssize_t n = syscall(SYS_write, fd, buf, len);

	changed(fd, CALLER);
	return n;
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
	ssize_t n = syscall(SYS_pwrite64, fd, buf, len, off);

	changed(fd, CALLER);
	return n;
}
ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t off) ALIAS_OF("pwrite");

ssize_t writev(int fd, const struct iovec *iov, int count)
{
	ssize_t n = syscall(SYS_writev, fd, iov, count);

	changed(fd, CALLER);
	return n;
}

ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t off)
{
	ssize_t n = syscall(SYS_pwritev, fd, iov, count, off, 0);

	changed(fd, CALLER);
	return n;
}
ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t off) ALIAS_OF("pwritev");

ssize_t sendfile(int out, int in, off_t *off, size_t len)
{
	ssize_t n = syscall(SYS_sendfile, out, in, off, len);

	changed(out, CALLER);
	return n;
}
ssize_t sendfile64(int out, int in, off64_t *off, size_t len) ALIAS_OF("sendfile");

ssize_t copy_file_range(int in, off64_t *in_off, int out, off64_t *out_off, size_t len,
			unsigned flags)
{
	ssize_t n = syscall(SYS_copy_file_range, in, in_off, out, out_off, len, flags);

	changed(out, CALLER);
	return n;
}

/*
 * A descriptor in a message that was sent is out of our hands: the socket's buffer holds it from
 * then on, whether or not the sender lives to see the answer.
 */
ssize_t sendmsg(int fd, const struct msghdr *msg, int flags)
{
	ssize_t n = syscall(SYS_sendmsg, fd, msg, flags);

	if (n < 0 || !ct.on || !msg->msg_control)
		return n;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR((struct msghdr *)msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t off = CMSG_LEN(0); off + sizeof(int) <= c->cmsg_len;
		     off += sizeof(int)) {
			int sent;

			memcpy(&sent, (const char *)c + off, sizeof(sent));
			if (ct_mem_find(sent) >= 0)
				crash_keep(sent, NULL);
		}
	}
	return n;
}

/* Scatters what a system call left in the bounce buffer. */
static void scatter(const struct iovec *iov, int count, const char *from, size_t len, uintptr_t ip)
{
	unsigned chunk = ct.scenario->syscall_chunk_bytes;

	for (int i = 0; i < count && len; i++) {
		char *to = iov[i].iov_base;
		size_t left = iov[i].iov_len < len ? iov[i].iov_len : len;

		len -= left;
		while (left) {
			const struct ct_map *map = ct_map_find((uintptr_t)to);
			size_t n = left;

			if (map && n > map->end - (uintptr_t)to)
				n = map->end - (uintptr_t)to;
			if (map) {
				uint64_t off = map->off + ((uintptr_t)to - map->start);

				memcpy(ct.mems[map->mem].alias + off, from, n);
				ct_log_diff(map->mem, off, n, chunk ? chunk : 8, CT_SYSCALL, ip);
			} else {
				memcpy(to, from, n);
			}
			to += n;
			from += n;
			left -= n;
		}
	}
	ct_trap_point();
}

/* The bounce buffer for these vectors, or NULL if none of them lies in trapped memory. */
static char *bounce(const struct iovec *iov, int count, size_t *len)
{
	bool needed = false;
	char *buf;

	*len = 0;
	if (!ct.tracing)
		return NULL;
	for (int i = 0; i < count; i++) {
		*len += iov[i].iov_len;
		needed |= ct_map_overlaps((uintptr_t)iov[i].iov_base, iov[i].iov_len);
	}
	if (!needed)
		return NULL;
	buf = malloc(*len + 1);
	if (!buf)
		ct_panic("no memory for a bounce buffer of %zu bytes", *len);
	return buf;
}

static ssize_t unbounce(const struct iovec *iov, int count, char *buf, ssize_t n, uintptr_t ip)
{
	int saved = errno;

	if (n > 0)
		scatter(iov, count, buf, (size_t)n, ip);
	free(buf);
	errno = saved;
	return n;
}

ssize_t read(int fd, void *to, size_t len)
{
	struct iovec iov = {to, len};
	char *buf = bounce(&iov, 1, &len);

	if (!buf)
		return syscall(SYS_read, fd, to, iov.iov_len);
	return unbounce(&iov, 1, buf, syscall(SYS_read, fd, buf, len), CALLER);
}

ssize_t pread(int fd, void *to, size_t len, off_t off)
{
	struct iovec iov = {to, len};
	char *buf = bounce(&iov, 1, &len);

	if (!buf)
		return syscall(SYS_pread64, fd, to, iov.iov_len, off);
	return unbounce(&iov, 1, buf, syscall(SYS_pread64, fd, buf, len, off), CALLER);
}
ssize_t pread64(int fd, void *to, size_t len, off64_t off) ALIAS_OF("pread");

ssize_t readv(int fd, const struct iovec *iov, int count)
{
	size_t len;
	char *buf = bounce(iov, count, &len);

	if (!buf)
		return syscall(SYS_readv, fd, iov, count);
	return unbounce(iov, count, buf, syscall(SYS_read, fd, buf, len), CALLER);
}

ssize_t preadv(int fd, const struct iovec *iov, int count, off_t off)
{
	size_t len;
	char *buf = bounce(iov, count, &len);

	if (!buf)
		return syscall(SYS_preadv, fd, iov, count, off, 0);
	return unbounce(iov, count, buf, syscall(SYS_pread64, fd, buf, len, off), CALLER);
}
ssize_t preadv64(int fd, const struct iovec *iov, int count, off64_t off) ALIAS_OF("preadv");

ssize_t recvfrom(int fd, void *to, size_t len, int flags, struct sockaddr *from,
		 socklen_t *from_len)
{
	struct iovec iov = {to, len};
	char *buf = bounce(&iov, 1, &len);

	if (!buf)
		return syscall(SYS_recvfrom, fd, to, iov.iov_len, flags, from, from_len);
	return unbounce(&iov, 1, buf, syscall(SYS_recvfrom, fd, buf, len, flags, from, from_len),
			CALLER);
}

ssize_t recv(int fd, void *to, size_t len, int flags)
{
	return recvfrom(fd, to, len, flags, NULL, NULL);
}

ssize_t recvmsg(int fd, struct msghdr *msg, int flags)
{
	size_t len;
	char *buf = bounce(msg->msg_iov, (int)msg->msg_iovlen, &len);
	struct iovec *iov = msg->msg_iov, one = {buf, len};
	size_t count = msg->msg_iovlen;
	ssize_t n;

	if (!buf)
		return syscall(SYS_recvmsg, fd, msg, flags);
	msg->msg_iov = &one;
	msg->msg_iovlen = 1;
	n = syscall(SYS_recvmsg, fd, msg, flags);
	msg->msg_iov = iov;
	msg->msg_iovlen = count;
	return unbounce(iov, (int)count, buf, n, CALLER);
}

/* The same in every run, so that a crash state keeps its number: what is drawn decides addresses
 * and identifiers, and so which stores change nothing. */
static void draw(uint8_t *to, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		ct.random ^= ct.random << 13;
		ct.random ^= ct.random >> 7;
		ct.random ^= ct.random << 17;
		to[i] = (uint8_t)(ct.random >> 32);
	}
}

ssize_t getrandom(void *to, size_t len, unsigned flags)
{
	struct iovec iov = {to, len};
	char *buf;

	if (!ct.on)
		return syscall(SYS_getrandom, to, len, flags);
	buf = bounce(&iov, 1, &len);
	draw((uint8_t *)(buf ? buf : to), iov.iov_len);
	return buf ? unbounce(&iov, 1, buf, (ssize_t)len, CALLER) : (ssize_t)iov.iov_len;
}

int getentropy(void *to, size_t len)
{
	return getrandom(to, len, 0) == (ssize_t)len ? 0 : -1;
}
