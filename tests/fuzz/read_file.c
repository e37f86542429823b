/* SPDX-License-Identifier: BSD-3-Clause */
/* Runs a fuzz target on the inputs that AFL++ hands over in memory, or, without AFL++, on each of the files
 * that are named on the command line. */
#include <stdio.h>
#include <unistd.h>

#include "fuzz.h"

#ifdef __AFL_FUZZ_TESTCASE_LEN

__AFL_FUZZ_INIT();

int main(void)
{
	const unsigned char *input;

	__AFL_INIT();
	input = __AFL_FUZZ_TESTCASE_BUF;
	while (__AFL_LOOP(10000))
		LLVMFuzzerTestOneInput(input, (size_t)__AFL_FUZZ_TESTCASE_LEN);
	return 0;
}

#else

int main(int argc, char **argv)
{
	static uint8_t input[1 << 20];

	for (int i = 1; i < argc; i++) {
		FILE *f = fopen(argv[i], "rbe");

		if (!f) {
			perror(argv[i]);
			return 2;
		}
		LLVMFuzzerTestOneInput(input, fread(input, 1, sizeof(input), f));
		fclose(f);
	}
	return 0;
}

#endif
