/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Relocation, the innermost loops. They have no branches that depend on the words: null and pointer come in
 * any mixture, and a wrong guess of the processor costs more than a store of what was there already.
 *
 * Words of different elements are done one by one: memory is what limits that. Words that stand one behind
 * the other are done four at a time, where the processor has AVX2: measured in docs/PERFORMANCE.md.
 */
#include "relocate.h"

#if defined(__x86_64__)
#define HAVE_AVX2 1
#endif

typedef uint64_t vector __attribute__((vector_size(32), aligned(8), may_alias));
typedef int64_t signs __attribute__((vector_size(32), aligned(8), may_alias));

static inline bool shift_word(const struct pvi_shift *shift, uint64_t *at, uint64_t mask, uint64_t *moved)
{
	uint64_t word = *at, address = word & mask;
	bool inside = address - shift->from < shift->span;

	__atomic_store_n(at, word + (inside ? shift->delta : 0), __ATOMIC_RELAXED);
	*moved += inside;
	return !inside && address;
}

bool pvi_words_shift(const struct pvi_shift *shift, uint8_t *first, const struct pvi_words *words,
		     uint32_t nwords, uint64_t n, uint32_t stride, uint64_t *moved)
{
	const struct pvi_shift by = *shift;
	uint64_t count = 0;
	bool odd = false;

	for (uint64_t i = 0; i < n; i++, first += stride)
		for (uint32_t k = 0; k < nwords; k++)
			odd |= shift_word(&by, (uint64_t *) (void *) (first + words[k].off),
					  words[k].mask, &count);
	*moved += count;
	return odd;
}

static bool dense_scalar(const struct pvi_shift *shift, uint64_t *words, uint64_t n, uint64_t mask,
			 uint64_t *moved)
{
	const struct pvi_shift by = *shift;
	uint64_t count = 0;
	bool odd = false;

	for (uint64_t i = 0; i < n; i++)
		odd |= shift_word(&by, &words[i], mask, &count);
	*moved += count;
	return odd;
}

#ifdef HAVE_AVX2
/* Comparisons of vectors are signed: shifting both sides by 2^63 makes an unsigned one of it. */
__attribute__((target("avx2"))) static bool dense_avx2(const struct pvi_shift *shift, uint64_t *words,
						       uint64_t n, uint64_t mask, uint64_t *moved)
{
	const uint64_t top = 1ull << 63;
	const vector from = (vector){} + (shift->from + top), delta = (vector){} + shift->delta;
	const vector address_bits = (vector){} + mask;
	const signs span = (signs) ((vector){} + (shift->span + top));
	vector inside_all = {}, odd = {};
	uint64_t i = 0;

	for (; i + 4 <= n; i += 4) {
		vector word = *(const vector *) &words[i], address = word & address_bits;
		vector inside = (vector) ((signs) (address - from) < span);

		*(vector *) &words[i] = word + (delta & inside);
		inside_all -= inside;
		odd |= address & ~inside;
	}
	*moved += inside_all[0] + inside_all[1] + inside_all[2] + inside_all[3];
	return dense_scalar(shift, words + i, n - i, mask, moved) |
	       ((odd[0] | odd[1] | odd[2] | odd[3]) != 0);
}
#endif

bool pvi_words_shift_dense(const struct pvi_shift *shift, uint64_t *words, uint64_t n, uint64_t mask,
			   uint64_t *moved)
{
#ifdef HAVE_AVX2
	if (__builtin_cpu_supports("avx2"))
		return dense_avx2(shift, words, n, mask, moved);
#endif
	return dense_scalar(shift, words, n, mask, moved);
}
