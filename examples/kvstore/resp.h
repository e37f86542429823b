/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Parser of the Redis serialization protocol as clients speak it: arrays of bulk strings, and
 * inline commands. It copies nothing: an argument is a view into the buffer that was given. It can
 * be interrupted at any byte and goes on where it was, so that its cost is linear in the bytes
 * seen, however they trickle in. It trusts nothing: every byte sequence gives a command, an error,
 * or a wish for more, and memory grows with bytes received, not with lengths promised.
 */
#ifndef KVSTORE_RESP_H
#define KVSTORE_RESP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RESP_ARGS_MAX	(1024 * 1024)
#define RESP_BULK_MAX	(512ull << 20)
#define RESP_INLINE_MAX (64u << 10) /* an inline command, or the line of a length */

struct resp_arg {
	union {
		const char *data; /* of a complete command */
		size_t off;	  /* meanwhile: relative to the start of the command */
	};
	size_t len;
};

/** A growing list of arguments. Zero is an empty one; free(list.v) releases it. */
struct resp_args {
	struct resp_arg *v;
	size_t n;
	size_t cap;
};

/** State of the command that is being read. Zero is the start of one. */
struct resp_parser {
	size_t scan; /* bytes of the command looked at so far; when it is complete: its length */
	uint64_t missing; /* bulk strings still to come */
	uint64_t bulk;	  /* length of the one whose header was read, plus 1; 0: none */
	size_t want;	  /* the command has at least this many bytes */
	bool multibulk;	  /* the number of bulk strings is known */
	bool is_inline;
	char error[64]; /* after RESP_ERROR */
};

enum resp_result {
	RESP_MORE, /* the command is not complete: call again with the same start and more bytes */
	RESP_COMMAND, /* complete: parser->scan bytes; the arguments were appended, perhaps none */
	RESP_ERROR,   /* protocol error: parser->error; nothing more can be read from this client */
	RESP_NOMEM,
};

/**
 * Read a command that begins at `start`, of which `len` bytes have arrived. Arguments are appended
 * to `args`, from the second call for the same command on they must be there still; when the
 * command is complete those from index `first` on are views into the buffer. An inline command is
 * unquoted in place.
 */
enum resp_result resp_parse(struct resp_parser *parser, struct resp_args *args, size_t first,
			    char *start, size_t len);

/** Make ready for the next command. */
static inline void resp_reset(struct resp_parser *parser)
{
	parser->scan = 0;
	parser->missing = 0;
	parser->bulk = 0;
	parser->want = 0;
	parser->multibulk = false;
	parser->is_inline = false;
}

/** Has part of a command been read? */
static inline bool resp_started(const struct resp_parser *parser)
{
	return parser->scan != 0;
}

/** A decimal 64-bit integer as Redis takes it: no sign but '-', no leading zeros, no blanks. */
bool resp_integer(const char *s, size_t len, int64_t *out);

#endif
