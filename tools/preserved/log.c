/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages go to standard error, a line each; with the prefix by which the journal tells how grave
 * one is, if it is the journal that reads them. Also here: the clock, and numbers that do not come
 * twice.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "preserved.h"

void log_line(int level, const char *format, ...)
{
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (getenv("JOURNAL_STREAM"))
		dprintf(STDERR_FILENO, "<%d>%s\n", level, text);
	else
		dprintf(STDERR_FILENO, "preserved: %s%s\n",
			level <= 3   ? "error: "
			: level == 4 ? "warning: "
				     : "",
			text);
}

int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

uint64_t random_id(void)
{
	static uint64_t last;
	uint64_t id;

	if (getrandom(&id, sizeof(id), GRND_NONBLOCK) != sizeof(id) || id == 0)
		id = (uint64_t)now_ms() << 32 | ((uint64_t)getpid() << 16 & 0xffffffffu) | ++last;
	return id;
}
