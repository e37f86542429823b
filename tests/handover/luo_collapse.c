/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * luo-collapse BOOT [bare]: memory that the kernel makes huge pages of at the moment when it is preserved
 * (luo_handover.scenario). One thread does that to a store's segments over and over; another prepares,
 * then writes to every page; after the kexec each page must have what was written last. With `bare` the
 * pages are not held in place meanwhile, to see what that is good for: then data get lost.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"
#include "luo.h"
#include "pin.h"

enum { FILES = 24, FILE_BYTES = 8 << 20, PAGE = 4096, PAGES = FILE_BYTES / PAGE };

#define CHECK(condition)                                                                      \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			fprintf(stderr, "luo-collapse: line %d: %s failed; last error: %s\n", \
				__LINE__, #condition, pv_last_error());                       \
			exit(1);                                                              \
		}                                                                             \
	} while (0)

static _Atomic(uint8_t *) target; /* what the other thread works on; NULL: nothing */
static _Atomic unsigned int collapsed;

static void *collapse(void *unused)
{
	for (;;) {
		uint8_t *at = atomic_load(&target);

		for (size_t i = 0; at && i < FILE_BYTES; i += PVI_HUGE_BYTES)
			collapsed += at == atomic_load(&target) && pvi_arena_collapse(at + i);
	}
	return unused;
}

static uint8_t *map_file(int fd)
{
	static uintptr_t at = 0x200000000000;
	uint8_t *map = mmap((void *)at, FILE_BYTES, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);

	CHECK(map == (void *)at);
	at += 2 * FILE_BYTES;
	return map;
}

static void write_all(uint8_t *map, unsigned int file, uint64_t generation)
{
	for (uint64_t page = 0; page < PAGES; page++)
		*(uint64_t *)(void *)(map + page * PAGE) = generation << 40 | file << 20 | page;
}

static void before(bool bare)
{
	int session, device = pvi_luo_device();
	pthread_t thread;

	CHECK(device >= 0 && pvi_luo_create(device, "luo-collapse", &session) == 0);
	close(device);
	CHECK(pthread_create(&thread, NULL, collapse, NULL) == 0);
	for (unsigned int file = 0; file < FILES; file++) {
		int pin = -1, fd = pvi_arena_memfd("luo-collapse", FILE_BYTES);
		uint8_t *map = map_file(fd);

		write_all(map, file, 1);
		atomic_store(&target, map);
		usleep(1000 * (file % 8));
		CHECK(bare || pvi_pin_begin(fd, map, FILE_BYTES, &pin) == 0);
		CHECK(bare || pin >= 0);
		CHECK(pvi_luo_preserve(session, file, fd) == 0);
		pvi_pin_end(pin);
		atomic_store(&target, NULL);
		write_all(map, file, 2);
	}
	printf("luo-collapse: %u huge pages were made\n", atomic_load(&collapsed));
	CHECK(atomic_load(&collapsed) > 0);
	fflush(stdout);
	if (fork() == 0)
		for (;;)
			pause();
}

static void after(void)
{
	int session, device = pvi_luo_device();
	unsigned int old = 0, other = 0;

	CHECK(device >= 0 && pvi_luo_retrieve_session(device, "luo-collapse", &session) == 0);
	close(device);
	for (unsigned int file = 0; file < FILES; file++) {
		uint8_t *map;
		int fd;

		CHECK(pvi_luo_retrieve(session, file, &fd) == 0);
		map = map_file(fd);
		for (uint64_t page = 0; page < PAGES; page++) {
			uint64_t word = *(uint64_t *)(void *)(map + page * PAGE);

			old += word == (1ull << 40 | file << 20 | page);
			other += word >> 40 != 1 && word != (2ull << 40 | file << 20 | page);
		}
		munmap(map, FILE_BYTES);
		close(fd);
	}
	printf("luo-collapse: of %u pages %u are old, %u have something else\n", FILES * PAGES, old,
	       other);
	CHECK(old == 0 && other == 0);
	CHECK(pvi_luo_finish(session) == 0);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc < 2) {
		fprintf(stderr, "usage: luo-collapse BOOT [bare]\n");
		return 2;
	}
	if (atoi(argv[1]) == 0)
		before(argc > 2);
	else
		after();
	return 0;
}
