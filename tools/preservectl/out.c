/* SPDX-License-Identifier: BSD-3-Clause */
/* Tables for people, JSON for programs. Running out of memory for a line of text ends the process. */
#include <stdarg.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ctl.h"

enum { COLUMNS_MAX = 16 };

struct ctl_table {
	const char *headings[COLUMNS_MAX];
	unsigned int columns;
	char **cells;
	size_t n;
	size_t room;
};

static void *must(void *p)
{
	if (!p)
		exit(ctl_fail("no memory"));
	return p;
}

struct ctl_table *ctl_table_new(const char *const headings[])
{
	struct ctl_table *t = must(calloc(1, sizeof(*t)));

	while (headings[t->columns] && t->columns < COLUMNS_MAX) {
		t->headings[t->columns] = headings[t->columns];
		t->columns++;
	}
	return t;
}

static void add(struct ctl_table *t, char *text)
{
	if (t->n == t->room) {
		t->room = t->room ? 2 * t->room : 64;
		t->cells = must(realloc(t->cells, t->room * sizeof(*t->cells)));
	}
	t->cells[t->n++] = text;
}

void ctl_cell(struct ctl_table *t, const char *format, ...)
{
	va_list args;
	char *text;

	va_start(args, format);
	if (vasprintf(&text, format, args) < 0)
		text = must(NULL);
	va_end(args);
	add(t, text);
}

const char *ctl_bytes(char buf[16], uint64_t bytes)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
	double value = (double) bytes;
	unsigned int unit = 0;

	while (value >= 1024 && unit + 1 < sizeof(units) / sizeof(*units)) {
		value /= 1024;
		unit++;
	}
	snprintf(buf, 16, unit && value < 100 ? "%.1f %s" : "%.0f %s", value, units[unit]);
	return buf;
}

void ctl_cell_bytes(struct ctl_table *t, uint64_t bytes)
{
	char buf[16];

	ctl_cell(t, "%s", ctl_bytes(buf, bytes));
}

static void print_row(const struct ctl_table *t, const unsigned int *widths, char *const *row)
{
	for (unsigned int i = 0; i < t->columns; i++) {
		bool right = t->headings[i][0] == '>', last = i + 1 == t->columns;
		const char *text = row ? row[i] : t->headings[i] + right;

		printf("%*s%s", last && !right ? 0 : (int) widths[i] * (right ? 1 : -1), text,
		       last ? "\n" : "  ");
	}
}

void ctl_table_print(struct ctl_table *t)
{
	unsigned int widths[COLUMNS_MAX];

	for (unsigned int i = 0; i < t->columns; i++)
		widths[i] = (unsigned int) strlen(t->headings[i] + (t->headings[i][0] == '>'));
	for (size_t i = 0; i < t->n; i++)
		if (strlen(t->cells[i]) > widths[i % t->columns])
			widths[i % t->columns] = (unsigned int) strlen(t->cells[i]);
	print_row(t, widths, NULL);
	for (size_t i = 0; i + t->columns <= t->n; i += t->columns)
		print_row(t, widths, &t->cells[i]);
	for (size_t i = 0; i < t->n; i++)
		free(t->cells[i]);
	free(t->cells);
	free(t);
}

int ctl_json_print(json_t *value)
{
	int err = value ? json_dumpf(value, stdout, JSON_INDENT(1) | JSON_ENSURE_ASCII) : -1;

	json_decref(value);
	if (err)
		return ctl_fail("cannot write JSON");
	putchar('\n');
	return CTL_OK;
}

const char *ctl_user_name(char buf[16], uint32_t uid)
{
	const struct passwd *pw = getpwuid(uid);

	snprintf(buf, 16, "%u", uid);
	return pw ? pw->pw_name : buf;
}

const char *ctl_uuid(char buf[37], const uint8_t uuid[16])
{
	char *at = buf;

	for (unsigned int i = 0; i < 16; i++)
		at += snprintf(at, 4, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x", uuid[i]);
	return buf;
}
