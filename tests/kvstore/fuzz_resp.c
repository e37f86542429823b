/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Fuzz target: the parser of the Redis protocol. The first byte says how the rest arrives: in
 * pieces of that many bytes. Whatever it is, it must come to the same as if it arrived at once, and
 * no byte outside of it may be read.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../fuzz/fuzz.h"
#include "resp.h"

/** What came of a stream, in a form that can be compared. */
struct outcome {
	uint64_t hash;
	size_t commands;
	size_t done;
	enum resp_result last;
};

static void mix(struct outcome *o, const void *bytes, size_t len)
{
	const unsigned char *p = bytes;

	for (size_t i = 0; i < len; i++)
		o->hash = (o->hash ^ p[i]) * 0x100000001b3ull;
	o->hash = (o->hash ^ len) * 0x100000001b3ull;
}

static void note(struct outcome *o, const struct resp_args *args)
{
	o->commands++;
	for (size_t i = 0; i < args->n; i++)
		mix(o, args->v[i].data, args->v[i].len);
	mix(o, &args->n, sizeof(args->n));
}

static struct outcome parse(const uint8_t *data, size_t size, size_t step)
{
	struct outcome o = {.last = RESP_MORE};
	struct resp_parser parser = {0};
	struct resp_args args = {0};
	size_t seen = step && step < size ? step : size;

	while (o.last != RESP_ERROR && o.done < seen) {
		size_t len = seen - o.done;
		char *copy = malloc(len);

		if (!copy)
			abort();
		memcpy(copy, data + o.done, len);
		o.last = resp_parse(&parser, &args, 0, copy, len);
		if (o.last == RESP_COMMAND) {
			note(&o, &args);
			if (parser.scan == 0 || parser.scan > len)
				abort();
			o.done += parser.scan;
			resp_reset(&parser);
			args.n = 0;
		}
		free(copy);
		if (o.last == RESP_MORE && seen == size)
			break;
		if (o.last == RESP_MORE || o.done == seen)
			seen = size - seen < step ? size : seen + step;
	}
	if (o.last == RESP_ERROR)
		mix(&o, parser.error, strlen(parser.error));
	if (args.cap > 2 * size + 16)
		abort(); /* more memory than what was sent is worth */
	free(args.v);
	return o;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct outcome whole, cut;

	if (size < 2)
		return 0;
	whole = parse(data + 1, size - 1, 0);
	cut = parse(data + 1, size - 1, 1 + data[0] % 64u);
	if (whole.hash != cut.hash || whole.commands != cut.commands || whole.done != cut.done ||
	    whole.last != cut.last)
		abort();
	return 0;
}
