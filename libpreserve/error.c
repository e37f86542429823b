/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The message that goes with a negative errno. One buffer a thread, overwritten by the next failure.
 * A function that fails because another one of ours failed keeps that one's message.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <preserve/preserve.h>

#include "error.h"

static _Thread_local char last_error[2048] = "no error";

const char *pv_last_error(void)
{
	return last_error;
}

_Noreturn void pvi_debug_failed(const char *condition, const char *file, int line)
{
	fprintf(stderr, "libpreserve: %s:%d: %s does not hold\n", file, line, condition);
	abort();
}

#ifdef PVI_DEBUG_CHECKS
int pvi_misuse(int err)
{
	const char *says = getenv("PV_MISUSE");

	if (err != -EINVAL || (says && strcmp(says, "error") == 0))
		return err;
	fprintf(stderr, "libpreserve: %s\n", last_error);
	abort();
}
#endif

int pvi_fail(int err, const char *format, ...)
{
	int saved = errno;
	va_list ap;

	va_start(ap, format);
	vsnprintf(last_error, sizeof(last_error), format, ap);
	va_end(ap);
	errno = saved;
	return err < 0 ? err : -err;
}
