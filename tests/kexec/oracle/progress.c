/* SPDX-License-Identifier: BSD-3-Clause */
/* The progress line of long work: on a terminal a bar, drawn at most 20 times a second. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "oracle.h"

enum { BAR = 24 };

/* 1234567 -> 1,234,567 */
static const char *grouped(char *out, size_t bytes, uint64_t n)
{
	char *at = out + bytes;
	unsigned int digits = 0;

	*--at = '\0';
	do {
		if (digits && digits % 3 == 0)
			*--at = ',';
		*--at = (char)('0' + n % 10);
		digits++;
		n /= 10;
	} while (n);
	return at;
}

static void draw(struct progress *p, uint64_t done, bool last)
{
	double seconds = (double)(now_ns() - p->start_ns) / 1e9;
	double rate = seconds > 0.001 ? (double)done / seconds : 0;
	char number[32], bar[sizeof("━") * BAR + 1] = "";
	uint64_t filled = 0;

	if (p->total)
		filled = done >= p->total ? BAR : done * BAR / p->total;
	/* Without a goal there is no bar; the figures still stand below each other. */
	for (unsigned int i = 0; i < BAR && p->terminal; i++)
		strcat(bar, !p->total ? " " : i < filled ? "━" : "─");
	fprintf(stderr, "%s  %-10s %s%13s %s %9.0f k/s %6.1f s%s", p->terminal ? "\r" : "",
		p->label, bar, grouped(number, sizeof(number), done), p->noun, rate / 1000, seconds,
		last ? "\n" : "");
	fflush(stderr);
}

void progress_begin(struct progress *p, const char *label, const char *noun, uint64_t total,
		    bool quiet)
{
	*p = (struct progress){
		.label = label,
		.noun = noun,
		.total = total,
		.start_ns = now_ns(),
		.terminal = isatty(STDERR_FILENO),
		.quiet = quiet,
	};
}

void progress_update(struct progress *p, uint64_t done)
{
	uint64_t now;

	if (p->quiet || !p->terminal)
		return;
	now = now_ns();
	if (now - p->drawn_ns < 50000000)
		return;
	p->drawn_ns = now;
	draw(p, done, false);
}

void progress_end(struct progress *p, uint64_t done)
{
	if (!p->quiet)
		draw(p, done, true);
}
