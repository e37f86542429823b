/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The first program of a kernel under measurement (rdinit=): notes CLOCK_BOOTTIME, in ns, in the
 * environment as FIRST_NS, and becomes /init. Linked statically, so that what is before main() is little.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(void)
{
	static char stamp[32];
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	snprintf(stamp, sizeof(stamp), "%lld", (long long)t.tv_sec * 1000000000 + t.tv_nsec);
	setenv("FIRST_NS", stamp, 1);
	execl("/init", "/init", (char *)NULL);
	perror("/init");
	return 1;
}
