/* SPDX-License-Identifier: BSD-3-Clause */
/* See resp.h. */
#include "resp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool resp_integer(const char *s, size_t len, int64_t *out)
{
	bool negative = len && s[0] == '-';
	uint64_t v = 0;

	if (negative) {
		s++;
		len--;
	}
	if (!len || len > 19 || s[0] < '0' || s[0] > '9')
		return false;
	if (s[0] == '0') {
		*out = 0;
		return len == 1 && !negative;
	}
	for (size_t i = 0; i < len; i++) {
		unsigned int digit = (unsigned int)s[i] - '0';

		if (digit > 9)
			return false;
		v = v * 10 + digit; /* 19 digits stay below 2^64 */
	}
	if (v > (uint64_t)INT64_MAX + negative)
		return false;
	*out = negative ? (int64_t)(0 - v) : (int64_t)v;
	return true;
}

static enum resp_result fail(struct resp_parser *p, const char *what)
{
	snprintf(p->error, sizeof(p->error), "Protocol error: %s", what);
	return RESP_ERROR;
}

static bool append(struct resp_args *args, size_t off, size_t len)
{
	if (args->n == args->cap) {
		size_t cap = args->cap ? 2 * args->cap : 16;
		struct resp_arg *v = realloc(args->v, cap * sizeof(*v));

		if (!v)
			return false;
		args->v = v;
		args->cap = cap;
	}
	args->v[args->n].off = off;
	args->v[args->n++].len = len;
	return true;
}

/*
 * Read the line "xNUMBER\r\n" at p->scan, x being a character that was looked at. RESP_COMMAND: it
 * was read. *valid: it is a number.
 */
static enum resp_result number_line(struct resp_parser *p, const char *start, size_t len,
				    const char *too_big, int64_t *value, bool *valid)
{
	const char *s = start + p->scan + 1, *end = start + len, *cr, *d = s;
	int64_t v = 0;

	/* What every sane client sends: 1 to 9 digits. */
	while (d < end && (unsigned int)*d - '0' < 10 && d - s < 9)
		v = v * 10 + (*d++ - '0');
	if (d > s && end - d >= 2 && *d == '\r' && (*s != '0' || d - s == 1)) {
		*value = v;
		*valid = true;
		p->scan = (size_t)(d + 2 - start);
		return RESP_COMMAND;
	}
	cr = s < end ? memchr(s, '\r', (size_t)(end - s)) : NULL;
	if (!cr)
		return len - p->scan > RESP_INLINE_MAX ? fail(p, too_big) : RESP_MORE;
	if (end - cr < 2)
		return RESP_MORE;
	*valid = resp_integer(s, (size_t)(cr - s), value);
	p->scan = (size_t)(cr + 2 - start);
	return RESP_COMMAND;
}

static enum resp_result multibulk(struct resp_parser *p, struct resp_args *args, char *start,
				  size_t len)
{
	enum resp_result r;
	int64_t n;
	bool valid;

	if (!p->multibulk) {
		r = number_line(p, start, len, "too big mbulk count string", &n, &valid);
		if (r != RESP_COMMAND)
			return r;
		if (!valid || n > RESP_ARGS_MAX)
			return fail(p, "invalid multibulk length");
		p->multibulk = true;
		p->missing = n > 0 ? (uint64_t)n : 0;
	}
	for (; p->missing; p->missing--) {
		if (!p->bulk) {
			if (p->scan == len)
				return RESP_MORE;
			if (start[p->scan] != '$') {
				char what[] = "expected '$', got '?'";

				what[sizeof(what) - 3] = start[p->scan];
				return fail(p, what);
			}
			r = number_line(p, start, len, "too big bulk count string", &n, &valid);
			if (r != RESP_COMMAND)
				return r;
			if (!valid || n < 0 || (uint64_t)n > RESP_BULK_MAX)
				return fail(p, "invalid bulk length");
			p->bulk = (uint64_t)n + 1;
		}
		/* The two bytes behind the string are not looked at, as in Redis. */
		if (len - p->scan < p->bulk + 1) {
			p->want = p->scan + p->bulk + 1;
			return RESP_MORE;
		}
		if (!append(args, p->scan, p->bulk - 1))
			return RESP_NOMEM;
		p->scan += p->bulk + 1;
		p->bulk = 0;
	}
	return RESP_COMMAND;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool is_blank(char c)
{
	return c == ' ' || (c >= '\t' && c <= '\r') || c == '\0';
}

/* One escape of a double-quoted string at s (behind the backslash). Returns bytes read. */
static size_t unescape(const char *s, const char *end, char *out)
{
	static const char from[] = "nrtba", to[] = "\n\r\t\b\a";
	const char *known;

	if (*s == 'x' && end - s > 2 && hex_digit(s[1]) >= 0 && hex_digit(s[2]) >= 0) {
		*out = (char)(hex_digit(s[1]) << 4 | hex_digit(s[2]));
		return 3;
	}
	known = *s ? strchr(from, *s) : NULL;
	*out = known ? to[known - from] : *s;
	return 1;
}

/* Take one word from *s on, unquoting it to *out; false: the quotes do not balance. */
static bool inline_word(char **s, const char *end, char **out)
{
	char quote = 0;

	for (; *s < end; (*s)++) {
		char c = **s;

		if (!quote && is_blank(c))
			return true;
		if (!quote && (c == '"' || c == '\'')) {
			quote = c;
		} else if (quote && c == quote) {
			/* A closing quote ends the word: a blank or nothing must follow. */
			(*s)++;
			return *s == end || is_blank(**s);
		} else if (quote == '"' && c == '\\' && end - *s > 1) {
			*s += unescape(*s + 1, end, (*out)++);
		} else if (quote == '\'' && c == '\\' && end - *s > 1 && (*s)[1] == '\'') {
			*(*out)++ = *++*s;
		} else {
			*(*out)++ = c;
		}
	}
	return !quote;
}

static enum resp_result inline_command(struct resp_parser *p, struct resp_args *args, char *start,
				       size_t len)
{
	char *nl = memchr(start + p->scan, '\n', len - p->scan), *end, *s = start;

	if (!nl) {
		if (len > RESP_INLINE_MAX)
			return fail(p, "too big inline request");
		p->scan = len;
		return RESP_MORE;
	}
	end = nl > start && nl[-1] == '\r' ? nl - 1 : nl;
	for (;;) {
		char *word, *out;

		while (s < end && is_blank(*s))
			s++;
		if (s == end)
			break;
		word = out = s;
		if (!inline_word(&s, end, &out))
			return fail(p, "unbalanced quotes in request");
		if (!append(args, (size_t)(word - start), (size_t)(out - word)))
			return RESP_NOMEM;
	}
	p->scan = (size_t)(nl + 1 - start);
	return RESP_COMMAND;
}

enum resp_result resp_parse(struct resp_parser *p, struct resp_args *args, size_t first,
			    char *start, size_t len)
{
	enum resp_result r;

	if (!len)
		return RESP_MORE;
	p->is_inline = start[0] != '*';
	r = p->is_inline ? inline_command(p, args, start, len) : multibulk(p, args, start, len);
	if (r == RESP_COMMAND) {
		for (size_t i = first; i < args->n; i++)
			args->v[i].data = start + args->v[i].off;
	}
	return r;
}
