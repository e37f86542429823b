/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Atomic loads for the fast paths. No compiler makes an operand of an instruction from an atomic load, so each
 * of them costs an instruction and a register (replace-64: six of 101). On x86-64 an aligned plain load is
 * one that is atomic, and in order with other loads; so it is one here, and what uses its value once gets it as
 * an operand. Where its value is used twice it may be loaded twice: those loads are not for these.
 */
#ifndef PVI_LOAD_H
#define PVI_LOAD_H

#if defined(__SANITIZE_THREAD__)
#define PVI_LOAD_ATOMIC 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PVI_LOAD_ATOMIC 1
#endif
#endif
#ifndef __x86_64__
#define PVI_LOAD_ATOMIC 1
#endif

/** The value at a place that another thread may be storing to. */
#ifdef PVI_LOAD_ATOMIC
#define pvi_load(place) __atomic_load_n(place, __ATOMIC_RELAXED)
#else
#define pvi_load(place) (*(place))
#endif

/** The same, loaded before all loads that come after. */
#ifdef PVI_LOAD_ATOMIC
#define pvi_acquire(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
#else
#define pvi_acquire(place)                                                                         \
	({                                                                                         \
		__typeof__(*(place)) loaded_ = *(place);                                           \
		__asm__ volatile("" ::: "memory");                                                 \
		loaded_;                                                                           \
	})
#endif

/** How far an address is behind the one at `place`, which is loaded before all loads that come after. */
#ifdef PVI_LOAD_ATOMIC
#define pvi_distance_acquire(address, place) ((address) - __atomic_load_n(place, __ATOMIC_ACQUIRE))
#else
#define pvi_distance_acquire(address, place)                                                       \
	({                                                                                         \
		ptrdiff_t distance_ = (address) - *(place);                                        \
		__asm__ volatile("" ::: "memory");                                                 \
		distance_;                                                                         \
	})
#endif

#endif
