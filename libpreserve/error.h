/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef PVI_ERROR_H
#define PVI_ERROR_H

/**
 * Set the calling thread's message and return `err` as a negative errno (either sign is taken), so
 * that `return pvi_fail(-EINVAL, "...")` is all that an error path needs. Keeps errno.
 */
__attribute__((format(printf, 2, 3), cold)) int pvi_fail(int err, const char *format, ...);

/**
 * What the fast paths take for granted, checked in builds with -Ddebug-checks=true, whether or not
 * assert() is on. A slot that does not hold is a slot handed out twice or a stray write: abort with
 * the place.
 */
#ifdef PVI_DEBUG_CHECKS
#define pvi_debug_check(condition)                                                                 \
	((condition) ? (void) 0 : pvi_debug_failed(#condition, __FILE__, __LINE__))
#else
#define pvi_debug_check(condition) ((void) 0)
#endif
/**
 * What a call that was given a pointer returns: in builds with -Ddebug-checks=true a pointer to the wrong
 * thing (-EINVAL) ends the process, with the call's message, as a double free does in other allocators.
 * With PV_MISUSE=error in the environment it is returned, as in ordinary builds.
 */
#ifdef PVI_DEBUG_CHECKS
int pvi_misuse(int err);
#else
#define pvi_misuse(err) (err)
#endif
_Noreturn void pvi_debug_failed(const char *condition, const char *file, int line);

#endif
