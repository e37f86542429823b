/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The parser of the Redis protocol. What it is given lies in a buffer of its own of exactly the
 * right size, so that a sanitizer sees any byte read beyond it, and moves between calls, so that
 * nothing of an unfinished command can depend on where it was.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "resp.h"

/* ---- helpers ---- */

/** What came of a stream: the arguments of all commands, and how it ended, as text. */
struct outcome {
	char *text;
	size_t len;
	FILE *f;
};

static void outcome_begin(struct outcome *o)
{
	o->f = open_memstream(&o->text, &o->len);
	assert_non_null(o->f);
}

static void outcome_command(struct outcome *o, const struct resp_args *args)
{
	fprintf(o->f, "(");
	for (size_t i = 0; i < args->n; i++) {
		fprintf(o->f, "%s%zu:", i ? " " : "", args->v[i].len);
		fwrite(args->v[i].data, 1, args->v[i].len, o->f);
	}
	fprintf(o->f, ")");
}

/*
 * Parse a stream of which `step` more bytes arrive before each call; 0: all at once. An inline
 * command is unquoted where it lies, so it is parsed in a copy.
 */
static char *parse(const char *stream, size_t len, size_t step)
{
	struct resp_parser parser = {0};
	struct resp_args args = {0};
	struct outcome o;
	size_t done = 0, seen = step ? 0 : len;
	enum resp_result r = RESP_MORE;

	outcome_begin(&o);
	while (r != RESP_ERROR && (done < seen || seen < len)) {
		char *copy = malloc(seen - done + 1);

		memcpy(copy, stream + done, seen - done);
		copy = realloc(copy, seen - done ? seen - done : 1);
		r = resp_parse(&parser, &args, 0, copy, seen - done);
		if (r == RESP_COMMAND) {
			outcome_command(&o, &args);
			done += parser.scan;
			assert_true(done <= seen);
			resp_reset(&parser);
			args.n = 0;
		}
		free(copy);
		if (r == RESP_MORE && seen == len)
			break;
		if (r == RESP_MORE)
			seen = len - seen < step ? len : seen + step;
	}
	fprintf(o.f, "%s", r == RESP_ERROR ? parser.error : r == RESP_MORE ? "..." : "");
	fclose(o.f);
	free(args.v);
	return o.text;
}

/* The outcome is this one, however the stream is cut into pieces. */
static void expect(const char *stream, size_t len, const char *want)
{
	for (size_t step = 0; step <= len && step < 70; step++) {
		char *got = parse(stream, len, step);

		if (strcmp(got, want))
			fail_msg("in steps of %zu: %s\nwanted: %s", step, got, want);
		free(got);
	}
}

#define EXPECT(literal, want) expect(literal, sizeof(literal) - 1, want)

/* ---- tests ---- */

static void test_commands(void **state)
{
	EXPECT("*1\r\n$4\r\nPING\r\n", "(4:PING)");
	EXPECT("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nv\r\nal\r\n", "(3:SET 1:k 5:v\r\nal)");
	EXPECT("*2\r\n$4\r\nECHO\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n", "(4:ECHO 0:)(4:PING)");
	EXPECT("*0\r\n*-1\r\n*-5\r\nPING\r\n", "()()()(4:PING)");
	EXPECT("*1\r\n$4\r\nPINGxx", "(4:PING)");
	EXPECT("*12\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\ne\r\n$1\r\nf\r\n$"
	       "1\r\ng\r\n"
	       "$1\r\nh\r\n$1\r\ni\r\n$1\r\nj\r\n$1\r\nk\r\n$10\r\n0123456789\r\n",
	       "(1:a 1:b 1:c 1:d 1:e 1:f 1:g 1:h 1:i 1:j 1:k 10:0123456789)");
}

static void test_unfinished(void **state)
{
	EXPECT("*", "...");
	EXPECT("*1", "...");
	EXPECT("*1\r", "...");
	EXPECT("*1\r\n", "...");
	EXPECT("*1\r\n$", "...");
	EXPECT("*1\r\n$4\r\nPIN", "...");
	EXPECT("*1\r\n$4\r\nPING", "...");
	EXPECT("*1\r\n$4\r\nPING\r", "...");
	EXPECT("*1\r\n$4\r\nPING\r\n*1\r\n$4", "(4:PING)...");
	EXPECT("PING", "...");
	EXPECT("PING\r", "...");
}

static void test_errors(void **state)
{
	EXPECT("*x\r\n", "Protocol error: invalid multibulk length");
	EXPECT("*\r\n", "Protocol error: invalid multibulk length");
	EXPECT("*01\r\n", "Protocol error: invalid multibulk length");
	EXPECT("*+1\r\n", "Protocol error: invalid multibulk length");
	EXPECT("*1048577\r\n", "Protocol error: invalid multibulk length");
	EXPECT("*9999999999\r\n", "Protocol error: invalid multibulk length");
	EXPECT("*99999999999999999999\r\n", "Protocol error: invalid multibulk length");
	EXPECT("*1\r\nPING\r\n", "Protocol error: expected '$', got 'P'");
	EXPECT("*1\r\n*4\r\n", "Protocol error: expected '$', got '*'");
	EXPECT("*1\r\n$-1\r\n", "Protocol error: invalid bulk length");
	EXPECT("*1\r\n$x\r\n", "Protocol error: invalid bulk length");
	EXPECT("*1\r\n$\r\n", "Protocol error: invalid bulk length");
	EXPECT("*1\r\n$536870913\r\n", "Protocol error: invalid bulk length");
	EXPECT("*1\r\n$18446744073709551615\r\n", "Protocol error: invalid bulk length");
	EXPECT("*1\r\n$-9223372036854775808\r\n", "Protocol error: invalid bulk length");
	EXPECT("*2\r\n$1\r\na\r\nb", "Protocol error: expected '$', got 'b'");
	EXPECT("PING\r\n*1\r\n$-1\r\nPING\r\n", "(4:PING)Protocol error: invalid bulk length");
}

static void test_inline(void **state)
{
	EXPECT("PING\r\n", "(4:PING)");
	EXPECT("PING\n", "(4:PING)");
	EXPECT("  SET  a\tb  \r\n", "(3:SET 1:a 1:b)");
	EXPECT("\r\n\n  \r\nPING\r\n", "()()()(4:PING)");
	EXPECT("SET k \"a b\"\r\n", "(3:SET 1:k 3:a b)");
	EXPECT("SET k 'a b'\r\n", "(3:SET 1:k 3:a b)");
	EXPECT("SET k \"\\x41\\n\\\\\\\"\\q\"\r\n", "(3:SET 1:k 5:A\n\\\"q)");
	EXPECT("SET k 'it\\'s \\n'\r\n", "(3:SET 1:k 7:it's \\n)");
	EXPECT("SET k \"\"\r\n", "(3:SET 1:k 0:)");
	EXPECT("a\"b c\" d\r\n", "(4:ab c 1:d)");
	EXPECT("SET \"\\x4\"\r\n", "(3:SET 2:x4)");
	EXPECT("SET \"\\x\"\r\n", "(3:SET 1:x)");
	EXPECT("SET \"a\r\n", "Protocol error: unbalanced quotes in request");
	EXPECT("SET \"a\\\"\r\n", "Protocol error: unbalanced quotes in request");
	EXPECT("SET 'a\r\n", "Protocol error: unbalanced quotes in request");
	EXPECT("SET \"a\"b\r\n", "Protocol error: unbalanced quotes in request");
	EXPECT("SET 'a'b\r\n", "Protocol error: unbalanced quotes in request");
	EXPECT("\"\\\r\n", "Protocol error: unbalanced quotes in request");
}

/* A line that has no end: an error once it is too long, and not before. */
static void test_long_lines(void **state)
{
	static const struct {
		char first;
		const char *before, *error;
	} cases[] = {
		{'x', "", "Protocol error: too big inline request"},
		{'*', "", "Protocol error: too big mbulk count string"},
		{'$', "*1\r\n", "Protocol error: too big bulk count string"},
	};
	static char stream[RESP_INLINE_MAX + 100];

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		size_t head = strlen(cases[i].before);
		char *got;

		memset(stream, '1', sizeof(stream));
		memcpy(stream, cases[i].before, head);
		stream[head] = cases[i].first;
		got = parse(stream, head + RESP_INLINE_MAX, 0);
		assert_string_equal(got, "...");
		free(got);
		for (size_t step = 0; step < 40000; step = step * 7 + 1) {
			got = parse(stream, sizeof(stream), step);
			assert_string_equal(got, cases[i].error);
			free(got);
		}
	}
}

/* Promised lengths reserve nothing. */
static void test_promises(void **state)
{
	char stream[] = "*1048576\r\n$3\r\nSET\r\n$536870912\r\nabc";
	struct resp_parser parser = {0};
	struct resp_args args = {0};

	assert_int_equal(resp_parse(&parser, &args, 0, stream, sizeof(stream) - 1), RESP_MORE);
	assert_true(args.cap < 64);
	assert_int_equal(parser.want, 31 + (512 << 20) + 2);
	free(args.v);
}

/* Random streams of pieces that mean something: cut in any way, the outcome is the same. */
static void test_random_streams(void **state)
{
	static const char *const pieces[] = {
		"*1\r\n",
		"*2\r\n",
		"*3\r\n",
		"*0\r\n",
		"*-1\r\n",
		"$1\r\n",
		"$3\r\nabc\r\n",
		"$0\r\n\r\n",
		"$10\r\n",
		"\r\n",
		"\n",
		"\r",
		"*",
		"$",
		"PING\r\n",
		" ",
		"\"",
		"'",
		"\\x4",
		"\\",
		"9",
		"$1\r\nx\r\n",
		"-",
		"\xff",
		"SET a",
		"$99999999999999999999\r\n",
		"*1\r\n$4\r\nPING\r\n",
	};
	uint64_t seed = 12345;

	for (int round = 0; round < 20000; round++) {
		char stream[400];
		size_t len = 0;
		unsigned int n = 1 + (unsigned int)(round % 17);
		char *whole;

		for (unsigned int i = 0; i < n; i++) {
			const char *piece;

			seed = seed * 6364136223846793005u + 1442695040888963407u;
			piece = pieces[(seed >> 33) % (sizeof(pieces) / sizeof(pieces[0]))];
			memcpy(stream + len, piece, strlen(piece));
			len += strlen(piece);
		}
		/* A byte of another value now and then, 0 among them. */
		if (round % 3 == 0)
			stream[(seed >> 20) % len] = (char)(seed >> 40);
		whole = parse(stream, len, 0);
		for (size_t step = 1; step < 6; step++) {
			char *cut = parse(stream, len, step);

			assert_string_equal(cut, whole);
			free(cut);
		}
		free(whole);
	}
}

static void test_integers(void **state)
{
	static const char *const bad[] = {"",
					  "-",
					  "+1",
					  " 1",
					  "1 ",
					  "01",
					  "-01",
					  "-0",
					  "1.0",
					  "0x1",
					  "1e3",
					  "--1",
					  "1-",
					  "a",
					  "9223372036854775808",
					  "-9223372036854775809",
					  "18446744073709551616",
					  "99999999999999999999",
					  "00"};
	static const int64_t good[] = {0,
				       1,
				       -1,
				       9,
				       10,
				       99,
				       1234567890,
				       INT32_MIN,
				       INT64_MAX,
				       INT64_MIN,
				       INT64_MAX - 1,
				       INT64_MIN + 1,
				       1000000000000000000};
	int64_t got;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_false(resp_integer(bad[i], strlen(bad[i]), &got));
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		char text[32];
		int len = snprintf(text, sizeof(text), "%" PRId64, good[i]);

		assert_true(resp_integer(text, (size_t)len, &got));
		assert_int_equal(got, good[i]);
	}
	for (int64_t i = -100000; i < 100000; i += 7) {
		char text[32];
		int len = snprintf(text, sizeof(text), "%" PRId64, i);

		assert_true(resp_integer(text, (size_t)len, &got));
		assert_int_equal(got, i);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_commands),       cmocka_unit_test(test_unfinished),
		cmocka_unit_test(test_errors),	       cmocka_unit_test(test_inline),
		cmocka_unit_test(test_long_lines),     cmocka_unit_test(test_promises),
		cmocka_unit_test(test_random_streams), cmocka_unit_test(test_integers),
	};

	return cmocka_run_group_tests_name("resp", tests, NULL, NULL);
}
