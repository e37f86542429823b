/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What keys and values look like. All of it is text, so that redis-cli shows something to look at:
 *
 *	key:000000000042
 *	000000001234 000000000042 0000064 89abcdef01234567 kwmdpqzrtbhxy
 *	write        key          length  checksum         fill
 *
 * The checksum is of everything else and of the run's number; so a value that is cut off, mixed of
 * two, altered in one bit, of another key or of another run is told from a whole one.
 */
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "oracle.h"

enum {
	SEQ_DIGITS = 12,
	KEY_DIGITS = 12,
	LENGTH_DIGITS = 7,
	SUM_DIGITS = 16,
	KEY_AT = SEQ_DIGITS + 1,
	LENGTH_AT = KEY_AT + KEY_DIGITS + 1,
	SUM_AT = LENGTH_AT + LENGTH_DIGITS + 1,
	FILL_AT = SUM_AT + SUM_DIGITS + 1,
};

_Static_assert(FILL_AT == VALUE_MIN_BYTES, "a value has at least its head");

void decimal_make(char *out, unsigned int digits, uint64_t n)
{
	while (digits-- > 0) {
		out[digits] = (char)('0' + n % 10);
		n /= 10;
	}
}

bool decimal_read(const char *in, unsigned int digits, uint64_t *n)
{
	uint64_t result = 0;

	for (unsigned int i = 0; i < digits; i++) {
		if (in[i] < '0' || in[i] > '9')
			return false;
		result = result * 10 + (uint64_t)(in[i] - '0');
	}
	*n = result;
	return true;
}

void key_make(char *out, uint32_t key)
{
	memcpy(out, "key:", 4);
	decimal_make(out + 4, KEY_DIGITS, key);
}

static void sum_make(char *out, const char *value, size_t bytes, uint64_t run)
{
	uint64_t head = XXH3_64bits_withSeed(value, SUM_AT, run);
	uint64_t sum = XXH3_64bits_withSeed(value + FILL_AT, bytes - FILL_AT, head);

	for (unsigned int i = 0; i < SUM_DIGITS; i++)
		out[i] = "0123456789abcdef"[sum >> (60 - 4 * i) & 15];
}

void value_make(char *out, size_t bytes, uint64_t run, uint32_t key, uint64_t seq)
{
	uint64_t bits = (run ^ seq) * UINT64_C(0x9e3779b97f4a7c15) | 1;

	decimal_make(out, SEQ_DIGITS, seq);
	decimal_make(out + KEY_AT, KEY_DIGITS, key);
	decimal_make(out + LENGTH_AT, LENGTH_DIGITS, bytes);
	out[KEY_AT - 1] = out[LENGTH_AT - 1] = out[SUM_AT - 1] = out[FILL_AT - 1] = ' ';
	for (size_t i = FILL_AT; i < bytes; i++) {
		bits ^= bits << 13;
		bits ^= bits >> 7;
		bits ^= bits << 17;
		out[i] = (char)('a' + (bits >> 32) % 26);
	}
	sum_make(out + SUM_AT, out, bytes, run);
}

bool value_read(const char *value, size_t bytes, uint64_t run, uint32_t key, uint64_t *seq)
{
	uint64_t of_key, length;
	char sum[SUM_DIGITS];

	if (bytes < FILL_AT || !decimal_read(value, SEQ_DIGITS, seq) ||
	    !decimal_read(value + KEY_AT, KEY_DIGITS, &of_key) ||
	    !decimal_read(value + LENGTH_AT, LENGTH_DIGITS, &length))
		return false;
	if (of_key != key || length != bytes || value[FILL_AT - 1] != ' ')
		return false;
	sum_make(sum, value, bytes, run);
	return memcmp(sum, value + SUM_AT, SUM_DIGITS) == 0;
}
