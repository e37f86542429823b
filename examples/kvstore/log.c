/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages to standard error, one line each, and the clocks. */
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "kvstore.h"

__attribute__((format(printf, 2, 0))) static void write_line(const char *level, const char *format,
							     va_list ap)
{
	char line[1024];
	struct timespec now;
	struct tm tm;
	size_t n;

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &tm);
	n = (size_t)snprintf(line, sizeof(line), "kvstore[%d] ", (int)getpid());
	n += strftime(line + n, sizeof(line) - n, "%Y-%m-%dT%H:%M:%S", &tm);
	n += (size_t)snprintf(line + n, sizeof(line) - n, ".%03ldZ %s: ", now.tv_nsec / 1000000,
			      level);
	vsnprintf(line + n, sizeof(line) - n, format, ap);
	fprintf(stderr, "%s\n", line);
}

void log_info(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	write_line("info", format, ap);
	va_end(ap);
}

void log_error(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	write_line("error", format, ap);
	va_end(ap);
}

int64_t clock_monotonic_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

int64_t clock_unix_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}
