/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef PVI_ERROR_H
#define PVI_ERROR_H

/**
 * Set the calling thread's message and return `err` as a negative errno (either sign is taken), so
 * that `return pvi_fail(-EINVAL, "...")` is all that an error path needs. Keeps errno.
 */
__attribute__((format(printf, 2, 3), cold)) int pvi_fail(int err, const char *format, ...);

#endif
