/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Replies. All go to the end of server.out; client.c knows from where on they belong to which
 * client. A reply that would make the buffer larger than clients may use ends its client.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore.h"

/* Room for n more bytes, or NULL: the client is closing and gets nothing more. */
static inline char *room(struct client *c, size_t n)
{
	size_t cap = server.out_cap;
	char *out;

	if (__builtin_expect(n <= cap - server.out_len && !c->overflow, 1))
		return server.out + server.out_len;
	if (c->overflow)
		return NULL;
	while (n > cap - server.out_len)
		cap *= 2;
	out = server.out_len - c->span + n > server.opt.client_memory ? NULL
								      : realloc(server.out, cap);
	if (!out) {
		log_error("client %s is closed: its replies exceed %llu bytes", c->address,
			  (unsigned long long)server.opt.client_memory);
		server.out_len = c->span;
		c->overflow = true;
		c->closing = true;
		return NULL;
	}
	server.out = out;
	server.out_cap = cap;
	return server.out + server.out_len;
}

void reply_raw(struct client *c, const char *data, size_t len)
{
	char *p = room(c, len);

	if (p) {
		memcpy(p, data, len);
		server.out_len += len;
	}
}

/* Decimal digits of n to the end of a buffer of 20; returns the first. */
static inline char *digits(uint64_t n, char *end)
{
	do
		*--end = (char)('0' + n % 10);
	while (n /= 10);
	return end;
}

/* A type character, a number, CR LF. */
static inline void head(struct client *c, char type, uint64_t n)
{
	char buf[20], *first, *p = room(c, 32);
	size_t len;

	if (!p)
		return;
	*p++ = type;
	if (n < 10) {
		*p++ = (char)('0' + n);
		len = 1;
	} else {
		first = digits(n, buf + sizeof(buf));
		len = (size_t)(buf + sizeof(buf) - first);
		memcpy(p, first, len);
		p += len;
	}
	memcpy(p, "\r\n", 2);
	server.out_len += len + 3;
}

void reply_simple(struct client *c, const char *text)
{
	size_t len = strlen(text);
	char *p = room(c, len + 3);

	if (!p)
		return;
	*p++ = '+';
	memcpy(p, text, len);
	memcpy(p + len, "\r\n", 2);
	server.out_len += len + 3;
}

void reply_error(struct client *c, const char *format, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	for (char *p = text; *p; p++)
		if (*p == '\r' || *p == '\n')
			*p = ' ';
	server.nerrors++;
	reply_raw(c, "-", 1);
	reply_raw(c, text, strlen(text));
	reply_raw(c, "\r\n", 2);
}

/* A signed number to the end of a buffer of 24; returns the first character. */
static char *format_integer(int64_t n, char *end)
{
	char *first = digits(n < 0 ? 0 - (uint64_t)n : (uint64_t)n, end);

	if (n < 0)
		*--first = '-';
	return first;
}

void reply_integer(struct client *c, int64_t n)
{
	char buf[24], *first;

	if (n >= 0) {
		head(c, ':', (uint64_t)n);
		return;
	}
	first = format_integer(n, buf + sizeof(buf));
	reply_raw(c, ":", 1);
	reply_raw(c, first, (size_t)(buf + sizeof(buf) - first));
	reply_raw(c, "\r\n", 2);
}

void reply_bulk(struct client *c, const char *data, size_t len)
{
	char *p = room(c, len + 40);

	if (!p)
		return;
	head(c, '$', len);
	p = server.out + server.out_len;
	memcpy(p, data, len);
	memcpy(p + len, "\r\n", 2);
	server.out_len += len + 2;
}

void reply_text(struct client *c, const char *text)
{
	reply_bulk(c, text, strlen(text));
}

void reply_null(struct client *c)
{
	if (c->protocol == 3)
		reply_raw(c, "_\r\n", 3);
	else
		reply_raw(c, "$-1\r\n", 5);
}

void reply_array(struct client *c, size_t n)
{
	head(c, '*', n);
}

void reply_map(struct client *c, size_t n)
{
	if (c->protocol == 3)
		head(c, '%', n);
	else
		head(c, '*', 2 * n);
}

void reply_set(struct client *c, size_t n)
{
	head(c, c->protocol == 3 ? '~' : '*', n);
}

void reply_verbatim(struct client *c, const char *data, size_t len)
{
	if (c->protocol != 3) {
		reply_bulk(c, data, len);
		return;
	}
	head(c, '=', len + 4);
	reply_raw(c, "txt:", 4);
	reply_raw(c, data, len);
	reply_raw(c, "\r\n", 2);
}

void reply_entry(struct client *c, const struct entry *e)
{
	char buf[24], *first;

	if (!entry_is_integer(e)) {
		reply_bulk(c, entry_value(e), entry_value_len(e));
		return;
	}
	first = format_integer(*entry_integer(e), buf + sizeof(buf));
	reply_bulk(c, first, (size_t)(buf + sizeof(buf) - first));
}

size_t reply_position(void)
{
	return server.out_len;
}

void reply_rewind(size_t position)
{
	server.out_len = position;
}
