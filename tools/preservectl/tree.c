/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The index as what it is, a flattened device tree: printed as source text, and read by property.
 * What a property holds is guessed from its bytes, as dtc does: text, cells, or bytes.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <libfdt.h>

#include "ctl.h"

static void indent(int depth)
{
	for (int i = 0; i < depth; i++)
		putchar('\t');
}

/* Strings, each with an end, none of them empty. */
static bool is_text(const char *value, int len)
{
	if (len < 2 || value[len - 1] != 0)
		return false;
	for (int i = 0; i < len; i++)
		if (value[i] ? !isprint((unsigned char) value[i]) : i == 0 || value[i - 1] == 0)
			return false;
	return true;
}

static void print_text(const char *value, int len)
{
	for (int at = 0; at < len; at += (int) strlen(value + at) + 1) {
		printf(at ? ", \"" : "\"");
		for (const char *c = value + at; *c; c++)
			printf(*c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
		putchar('"');
	}
}

static void print_property(const char *name, const char *value, int len, int depth)
{
	indent(depth);
	printf(len ? "%s = " : "%s", name);
	if (len && is_text(value, len)) {
		print_text(value, len);
	} else if (len && len % 4 == 0) {
		for (int at = 0; at < len; at += 4)
			printf("%s0x%08x", at ? " " : "<",
			       fdt32_ld((const fdt32_t *) (const void *) (value + at)));
		putchar('>');
	} else if (len) {
		for (int at = 0; at < len; at++)
			printf("%s%02x", at ? " " : "[", (unsigned char) value[at]);
		putchar(']');
	}
	puts(";");
}

int ctl_tree_print(const void *fdt)
{
	int off = 0, depth = 0, next, len;
	const char *text;
	const void *value;

	puts("/dts-v1/;\n");
	for (;;) {
		switch (fdt_next_tag(fdt, off, &next)) {
		case FDT_BEGIN_NODE:
			text = fdt_get_name(fdt, off, NULL);
			if (off)
				putchar('\n');
			indent(depth++);
			printf("%s {\n", text && *text ? text : "/");
			break;
		case FDT_END_NODE:
			indent(--depth);
			puts("};");
			break;
		case FDT_PROP:
			value = fdt_getprop_by_offset(fdt, off, &text, &len);
			if (value || len == 0)
				print_property(text, value, len, depth);
			break;
		case FDT_NOP:
			break;
		default:
			return next < 0 ? -EBADMSG : 0;
		}
		off = next;
	}
}

uint64_t ctl_tree_number(const void *fdt, int node, const char *property)
{
	int len;
	const void *value = fdt_getprop(fdt, node, property, &len);

	if (value && len == 4)
		return fdt32_ld(value);
	return value && len == 8 ? fdt64_ld(value) : 0;
}

const char *ctl_tree_string(const void *fdt, int node, const char *property)
{
	int len;
	const char *value = fdt_getprop(fdt, node, property, &len);

	return value && len > 0 && value[len - 1] == 0 ? value : "";
}
