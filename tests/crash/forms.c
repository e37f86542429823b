/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * forms.c - is every form of store caught, and as the right number of crash states? One operation
 * for each form writes into two memfds that are mapped side by side; recovery does nothing and the
 * fingerprint is a hash of all bytes, so the replayed log must rebuild them exactly. A store that
 * escapes, or one that is seen twice or in one piece where it has several words, fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#include "crashtest.h"

enum {
	PART_BYTES = 16 * 1024, /* of each memfd */
	BOTH_BYTES = 2 * PART_BYTES,
	HOLE_OFF = 8192,
	ANY = -1,
};

static uint8_t *arena;	/* both, side by side */
static int part_fds[2]; /* while the first one lives */
static uint8_t source[BOTH_BYTES];

static int map_parts(const int *fds)
{
	arena = mmap(NULL, BOTH_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		     0);
	if (arena == MAP_FAILED)
		return -errno;
	for (int i = 0; i < 2; i++) {
		if (mmap(arena + i * PART_BYTES, PART_BYTES, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fds[i], 0) == MAP_FAILED)
			return -errno;
	}
	return 0;
}

static int set_up(void *ctx)
{
	int rc;

	for (int i = 0; i < 2; i++) {
		part_fds[i] = memfd_create("part", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (part_fds[i] < 0 || ftruncate(part_fds[i], PART_BYTES) != 0)
			return -errno;
	}
	for (size_t i = 0; i < sizeof(source); i++)
		source[i] = (uint8_t)(i * 7 + (i >> 8) + 1);
	rc = map_parts(part_fds);
	if (rc == 0)
		memcpy(arena + HOLE_OFF, source, 64); /* for the forms that remove it */
	return rc;
}

static int recover(void *ctx, const struct crash_image *image)
{
	const int fds[2] = {image->fds[0].fd, image->fds[1].fd};

	return image->n_fds == 2 ? map_parts(fds) : -1;
}

static uint64_t check(void *ctx)
{
	uint64_t hash = 1469598103934665603u, word;

	for (size_t off = 0; off < BOTH_BYTES; off += 8) {
		memcpy(&word, arena + off, 8);
		hash = (hash ^ word) * 1099511628211u;
		hash ^= hash >> 31;
	}
	return hash | 1;
}

static void close_parts(void *ctx)
{
	munmap(arena, BOTH_BYTES);
}

#define FORM(name) static int name(void *ctx, uintptr_t arg)
#define AT(offset) (arena + (offset))
#define VALUE	   0x1122334455667788ull

FORM(scalar)
{
	uint8_t *to = AT(4096 + 64);

	switch (arg) {
	case 1:
		__asm__ volatile("movb $5, %0" : "=m"(*to));
		break;
	case 2:
		__asm__ volatile("movw $5, %0" : "=m"(*(uint16_t *)to));
		break;
	case 4:
		__asm__ volatile("movl $5, %0" : "=m"(*(uint32_t *)to));
		break;
	default:
		__asm__ volatile("movq %1, %0" : "=m"(*(uint64_t *)to) : "r"(VALUE));
	}
	return 0;
}

/* arg: where, so that the 8 bytes straddle a word, a page, or the two memfds */
FORM(straddling)
{
	__asm__ volatile("movq %1, (%0)" ::"r"(AT(arg)), "r"(VALUE) : "memory");
	return 0;
}

FORM(vector16)
{
	__asm__ volatile("movdqu (%1), %%xmm7; movdqu %%xmm7, (%0)" ::"r"(AT(arg)), "r"(source)
			 : "xmm7", "memory");
	return 0;
}

FORM(vector32)
{
	__asm__ volatile("vmovdqu (%1), %%ymm7; vmovdqu %%ymm7, (%0); vzeroupper" ::"r"(AT(arg)),
			 "r"(source)
			 : "xmm7", "memory");
	return 0;
}

FORM(vector64)
{
	__asm__ volatile(
		"vmovdqu64 (%1), %%zmm7; vmovdqu64 %%zmm7, (%0); vzeroupper" ::"r"(AT(arg)),
		"r"(source)
		: "xmm7", "memory");
	return 0;
}

/* Eight words, each in a page of its own, in one instruction. */
FORM(scatter)
{
	static const uint64_t offsets[8] = {0, 4096, 8192, 12288, 16384, 20480, 24576, 28672};

	__asm__ volatile("vmovdqu64 (%1), %%zmm6; vmovdqu64 (%2), %%zmm7; kxnorw %%k1, %%k1, %%k1;"
			 "vpscatterqq %%zmm7, (%0,%%zmm6)%{%%k1%}; vzeroupper" ::"r"(AT(8)),
			 "r"(offsets), "r"(source)
			 : "xmm6", "xmm7", "memory");
	return 0;
}

FORM(non_temporal)
{
	__asm__ volatile(
		"movnti %1, (%0); movdqu (%2), %%xmm7; movntdq %%xmm7, 64(%0); sfence" ::"r"(
			AT(256)),
		"r"(VALUE), "r"(source)
		: "xmm7", "memory");
	return 0;
}

FORM(masked)
{
	static const uint8_t mask[16] = {0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0x80};

	__asm__ volatile(
		"movdqu (%1), %%xmm6; movdqu (%2), %%xmm7; maskmovdqu %%xmm7, %%xmm6" ::"D"(
			AT(512)),
		"r"(source), "r"(mask)
		: "xmm6", "xmm7", "memory");
	return 0;
}

FORM(exchange)
{
	uint64_t value = VALUE;

	__asm__ volatile("xchgq %0, (%1)" : "+r"(value) : "r"(AT(8)) : "memory");
	return value != 0;
}

/* The first fails (and writes back what was there), the second succeeds. */
FORM(compare_exchange)
{
	uint64_t wrong = 99, right = 0;

	__asm__ volatile("lock cmpxchgq %2, (%1)"
			 : "+a"(wrong)
			 : "r"(AT(8)), "r"(VALUE)
			 : "memory");
	__asm__ volatile("lock cmpxchgq %2, (%1)"
			 : "+a"(right)
			 : "r"(AT(8)), "r"(VALUE)
			 : "memory");
	return wrong != 0 || right != 0;
}

FORM(compare_exchange16)
{
	uint64_t low = 0, high = 0;

	__asm__ volatile("lock cmpxchg16b (%2)"
			 : "+a"(low), "+d"(high)
			 : "r"(AT(4096)), "b"(VALUE), "c"(VALUE + 1)
			 : "memory");
	return 0;
}

FORM(read_modify_write)
{
	uint64_t one = 1;

	__asm__ volatile("lock xaddq %0, (%1); incl 8(%1); addq $3, 16(%1); btsq $5, 24(%1);"
			 "orb $4, 32(%1); negq 16(%1); lock orq $8, 40(%1)"
			 : "+r"(one)
			 : "r"(AT(4096 - 24))
			 : "memory", "cc");
	return 0;
}

FORM(rep_movsb)
{
	void *to = AT(arg);
	const void *from = source;
	size_t n = 41;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
	return 0;
}

FORM(rep_movsq_backwards)
{
	uint8_t *to = AT(PART_BYTES + 16);
	const uint8_t *from = source + 64;
	size_t n = 6;

	__asm__ volatile("std; rep movsq; cld" : "+D"(to), "+S"(from), "+c"(n)::"memory", "cc");
	return 0;
}

FORM(rep_stosq)
{
	void *to = AT(4096 - 32);
	size_t n = 9;

	__asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(VALUE) : "memory");
	return 0;
}

/* The stack in the arena: the handlers must not rely on it. */
FORM(push)
{
	__asm__ volatile("xchgq %%rsp, %0; pushq %1; pushq $7; xchgq %%rsp, %0; addq $16, %0"
			 : "+r"((uint8_t *){AT(8192)})
			 : "r"(VALUE)
			 : "memory", "cc");
	return 0;
}

FORM(save_area)
{
	__asm__ volatile("fxsave64 (%0)" ::"r"(AT(PART_BYTES - 256)) : "memory");
	return 0;
}

FORM(libc_memcpy)
{
	memcpy(AT(PART_BYTES - 1024), source, arg);
	return 0;
}

FORM(libc_memset)
{
	memset(AT(PART_BYTES - 1024), 0xa5, arg);
	return 0;
}

/* The other mapping of the same memfd. */
FORM(second_mapping)
{
	uint8_t *p = mmap(NULL, PART_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, part_fds[1], 0);

	if (p == MAP_FAILED)
		return -errno;
	*(volatile uint64_t *)(p + 8) = VALUE;
	*(volatile uint64_t *)AT(PART_BYTES + 16) = VALUE;
	*(volatile uint64_t *)(p + 16) = VALUE; /* is there already */
	munmap(p, PART_BYTES);
	return 0;
}

FORM(protected_meanwhile)
{
	*(volatile uint64_t *)AT(4096) = 1;
	if (mprotect(AT(4096), 8192, PROT_READ) != 0 ||
	    mprotect(AT(4096), 8192, PROT_READ | PROT_WRITE) != 0)
		return -errno;
	*(volatile uint64_t *)AT(4096) = 2;
	return 0;
}

/* Reads into the arena through every call there is; arg bytes in all, over the seam. */
FORM(system_read)
{
	uint8_t *to = AT(PART_BYTES - 16);
	struct iovec iov[2] = {{to, 16}, {to + 16, 24}};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
	int pair[2];
	ssize_t n = -1;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0 || send(pair[1], source, 40, 0) != 40)
		return -errno;
	switch (arg) {
	case 0:
		n = read(pair[0], to, 40);
		break;
	case 1:
		n = readv(pair[0], iov, 2);
		break;
	case 2:
		n = recv(pair[0], to, 40, 0);
		break;
	case 3:
		n = recvmsg(pair[0], &msg, 0);
		break;
	case 4:
		n = getrandom(to, 40, 0);
		break;
	}
	close(pair[0]);
	close(pair[1]);
	return n != 40;
}

FORM(system_write)
{
	struct iovec iov[2] = {{source, 16}, {source + 16, 24}};
	ssize_t n = -1;

	switch (arg) {
	case 0:
		n = pwrite(part_fds[0], source, 40, 64);
		break;
	case 1:
		n = lseek(part_fds[1], 64, SEEK_SET) == 64 ? write(part_fds[1], source, 40) : -1;
		break;
	case 2:
		n = pwritev(part_fds[1], iov, 2, 4096 - 8);
		break;
	}
	return n != 40;
}

FORM(hole)
{
	if (arg == 0)
		return fallocate(part_fds[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 HOLE_OFF + 16, 4096);
	return madvise(AT(HOLE_OFF), 4096, MADV_REMOVE);
}

static int any_cpu(void)
{
	return 1;
}

static int avx(void)
{
	return __builtin_cpu_supports("avx2");
}

static int avx512(void)
{
	return __builtin_cpu_supports("avx512f");
}

static const struct form {
	const char *name;
	int (*run)(void *ctx, uintptr_t arg);
	uintptr_t arg;
	int states; /* crash states it must have */
	int (*cpu)(void);
} forms[] = {
	{"movb", scalar, 1, 1, any_cpu},
	{"movw", scalar, 2, 1, any_cpu},
	{"movl", scalar, 4, 1, any_cpu},
	{"movq", scalar, 8, 1, any_cpu},
	{"movq over two words", straddling, 61, 2, any_cpu},
	{"movq over two pages", straddling, 4096 - 3, 2, any_cpu},
	{"movq over two memfds", straddling, PART_BYTES - 5, 2, any_cpu},
	{"movdqu", vector16, 64, 2, any_cpu},
	{"movdqu over two memfds", vector16, PART_BYTES - 7, 3, any_cpu},
	{"vmovdqu 32", vector32, 64, 4, avx},
	{"vmovdqu 32 over two pages", vector32, 4096 - 16, 4, avx},
	{"vmovdqu 64", vector64, 64, 8, avx512},
	{"vmovdqu 64 over two memfds", vector64, PART_BYTES - 32, 8, avx512},
	{"vpscatterqq", scatter, 0, 8, avx512},
	{"movnti and movntdq", non_temporal, 0, 3, any_cpu},
	{"maskmovdqu", masked, 0, 2, any_cpu},
	{"xchg", exchange, 0, 1, any_cpu},
	{"lock cmpxchg", compare_exchange, 0, 1, any_cpu},
	{"lock cmpxchg16b", compare_exchange16, 0, 1, any_cpu},
	{"read-modify-write", read_modify_write, 0, 7, any_cpu},
	{"rep movsb", rep_movsb, 0, 41, any_cpu},
	{"rep movsb over two memfds", rep_movsb, PART_BYTES - 20, 41, any_cpu},
	{"rep movsq backwards", rep_movsq_backwards, 0, 6, any_cpu},
	{"rep stosq over two pages", rep_stosq, 0, 9, any_cpu},
	{"push", push, 0, 2, any_cpu},
	{"fxsave over two memfds", save_area, 0, ANY, any_cpu},
	{"memcpy 7", libc_memcpy, 7, ANY, any_cpu},
	{"memcpy 24", libc_memcpy, 24, ANY, any_cpu},
	{"memcpy 256", libc_memcpy, 256, ANY, any_cpu},
	{"memcpy 4000", libc_memcpy, 4000, ANY, any_cpu},
	{"memset 100", libc_memset, 100, ANY, any_cpu},
	{"memset 5000", libc_memset, 5000, ANY, any_cpu},
	{"second mapping", second_mapping, 0, 2, any_cpu},
	{"mprotect", protected_meanwhile, 0, 2, any_cpu},
	{"read", system_read, 0, 5, any_cpu},
	{"readv", system_read, 1, 5, any_cpu},
	{"recv", system_read, 2, 5, any_cpu},
	{"recvmsg", system_read, 3, 5, any_cpu},
	{"getrandom", system_read, 4, 5, any_cpu},
	{"pwrite", system_write, 0, 5, any_cpu},
	{"write", system_write, 1, 5, any_cpu},
	{"pwritev", system_write, 2, 5, any_cpu},
	{"fallocate punches a hole", hole, 0, 6, any_cpu},
	{"MADV_REMOVE", hole, 1, 8, any_cpu},
};

static int run_form(const struct form *form)
{
	static struct crash_report report;
	struct crash_options options = CRASH_OPTIONS_DEFAULT;
	struct crash_op op = {form->name, form->run, form->arg, CRASH_STEPS, NULL};
	struct crash_scenario sc = {
		.name = form->name,
		.ops = &op,
		.n_ops = 1,
		.setup = set_up,
		.recover = recover,
		.check = check,
		.close = close_parts,
		.keep = CRASH_KEEP_AT_BIRTH,
		.hang_ms = 20000,
	};

	if (!form->cpu()) {
		printf("# this processor has no such instruction: %s\n", form->name);
		return 0;
	}
	options.depth = 0;
	crash_sweep(&sc, &options, &report);
	crash_report_print(&report);
	if (report.n_failures)
		return 1;
	/* the state before the operation is one of the states */
	if (form->states == ANY ? report.crash_points > 1
				: report.crash_points == (size_t)form->states + 1)
		return 0;
	printf("# %d states were expected\n", form->states + 1);
	return 1;
}

int main(int argc, char **argv)
{
	int wrong = 0;

	crash_init(argc, argv);
	for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++)
		wrong += run_form(&forms[i]);
	printf("%d of %zu forms of store are not traced as they should be\n", wrong,
	       sizeof(forms) / sizeof(forms[0]));
	return wrong != 0;
}
