/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Glob-style matching as KEYS and SCAN MATCH have it: * ? [a-c] [^a] \x. Bytes, not characters. The
 * time is bounded by the product of both lengths: a '*' that fails is not tried again once a later
 * one has matched.
 */
#include "kvstore.h"

/* Does the class at p (behind the bracket) hold c? *next: behind the closing bracket. */
static bool in_class(const char *p, const char *end, unsigned char c, const char **next)
{
	bool negated = p < end && *p == '^', found = false;

	if (negated)
		p++;
	while (p < end && *p != ']') {
		unsigned char low = (unsigned char)*p, high;

		if (*p == '\\' && end - p >= 2)
			low = (unsigned char)*++p;
		high = low;
		if (end - p >= 3 && p[1] == '-' && p[-1] != '\\') {
			high = (unsigned char)p[2];
			p += 2;
		}
		if (low > high) {
			unsigned char swap = low;

			low = high;
			high = swap;
		}
		found |= c >= low && c <= high;
		p++;
	}
	*next = p < end ? p + 1 : p;
	return found != negated;
}

bool glob_match(const char *pattern, size_t plen, const char *text, size_t tlen)
{
	const char *p = pattern, *pend = pattern + plen, *t = text, *tend = text + tlen;
	const char *star = NULL, *star_text = NULL, *next;

	for (;;) {
		bool ok = false;

		if (p < pend && *p == '*') {
			star = ++p;
			star_text = t;
			continue;
		}
		if (t == tend && p == pend)
			return true;
		if (t < tend && p < pend) {
			if (*p == '[') {
				ok = in_class(p + 1, pend, (unsigned char)*t, &next);
			} else {
				if (*p == '\\' && pend - p >= 2)
					p++;
				else if (*p == '?')
					ok = true;
				ok |= *p == *t;
				next = p + 1;
			}
		}
		if (ok) {
			p = next;
			t++;
			continue;
		}
		/* Let the last '*' take one byte more. */
		if (!star || star_text == tend)
			return false;
		p = star;
		t = ++star_text;
	}
}
