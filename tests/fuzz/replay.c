/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Runs a fuzz target without libFuzzer: first the inputs of a corpus, then random ones, the same in every
 * run. So what a fuzzer has once found stays a test of every build.
 *
 * A corpus is a directory with an input in each file, as fuzzers write it, or a text file: an input in
 * hexadecimal digits on each line; # begins a comment. When an input kills the program, it is printed in
 * that form, ready to be appended.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"

enum { INPUT_MAX = 16384, RANDOM_MAX = 96, CASE_SECONDS = 20 };

static uint8_t input[INPUT_MAX];
static size_t input_bytes;
static struct sigaction old_actions[NSIG];

static void on_signal(int sig)
{
	static const char digits[] = "0123456789abcdef", said[] = "\nreplay: this input does it: ";
	char text[2 * INPUT_MAX + 1];

	for (size_t i = 0; i < input_bytes; i++) {
		text[2 * i] = digits[input[i] >> 4];
		text[2 * i + 1] = digits[input[i] & 15];
	}
	text[2 * input_bytes] = '\n';
	(void)!write(STDERR_FILENO, said, sizeof(said) - 1);
	(void)!write(STDERR_FILENO, text, 2 * input_bytes + 1);
	/* Again, for a sanitizer or the default. */
	sigaction(sig, &old_actions[sig], NULL);
	if (sig == SIGALRM)
		abort();
}

static void watch(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM};
	struct sigaction sa = {.sa_handler = on_signal};

	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		sigaction(signals[i], &sa, &old_actions[signals[i]]);
}

static void run(void)
{
	alarm(CASE_SECONDS);
	LLVMFuzzerTestOneInput(input, input_bytes);
	alarm(0);
}

static int value(char c)
{
	const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c) : NULL;

	return at ? (int)(at - digits) : -1;
}

/* False: the line is not hexadecimal. */
static int parse(const char *line)
{
	input_bytes = 0;
	while (*line && *line != '#' && *line != '\n') {
		int high, low;

		if (*line == ' ') {
			line++;
			continue;
		}
		high = value(line[0]);
		low = high < 0 ? -1 : value(line[1]);
		if (low < 0 || input_bytes == INPUT_MAX)
			return 0;
		input[input_bytes++] = (uint8_t)(high << 4 | low);
		line += 2;
	}
	return 1;
}

static unsigned long run_lines(const char *path)
{
	unsigned long n = 0, number = 0;
	char line[3 * INPUT_MAX];
	FILE *f = fopen(path, "re");

	if (!f) {
		fprintf(stderr, "replay: cannot open %s: %s\n", path, strerror(errno));
		exit(2);
	}
	while (fgets(line, sizeof(line), f)) {
		number++;
		if (!parse(line)) {
			fprintf(stderr, "replay: %s:%lu: not an input in hexadecimal digits\n", path,
				number);
			exit(2);
		}
		if (!input_bytes)
			continue;
		run();
		n++;
	}
	fclose(f);
	return n;
}

static unsigned long run_files(const char *path, DIR *dir)
{
	const struct dirent *entry;
	unsigned long n = 0;

	while ((entry = readdir(dir))) {
		ssize_t got = -1;
		int fd;

		if (entry->d_name[0] == '.')
			continue;
		fd = openat(dirfd(dir), entry->d_name, O_RDONLY | O_CLOEXEC);
		if (fd >= 0)
			got = read(fd, input, INPUT_MAX);
		if (got < 0) {
			fprintf(stderr, "replay: cannot read %s/%s: %s\n", path, entry->d_name,
				strerror(errno));
			exit(2);
		}
		close(fd);
		input_bytes = (size_t)got;
		run();
		n++;
	}
	return n;
}

static unsigned long run_corpus(const char *path)
{
	DIR *dir = opendir(path);
	unsigned long n = dir ? run_files(path, dir) : run_lines(path);

	if (dir)
		closedir(dir);
	if (!n) { /* an empty corpus is a mistake */
		fprintf(stderr, "replay: %s is empty\n", path);
		exit(2);
	}
	printf("%lu inputs of %s\n", n, path);
	return n;
}

static void run_random(unsigned long count, uint64_t seed)
{
	uint64_t state = seed * 0x9e3779b97f4a7c15ull | 1;

	while (count--) {
		uint64_t word = 0;

		input_bytes = 0;
		do {
			if (input_bytes % 8 == 0) {
				state ^= state << 13;
				state ^= state >> 7;
				state ^= state << 17;
				word = state;
			}
			input[input_bytes++] = (uint8_t)(word >> 32);
			word = word << 8 | word >> 56;
		} while (input_bytes < 4 || (input_bytes < RANDOM_MAX && word % 16));
		run();
	}
}

int main(int argc, char **argv)
{
	unsigned long count;
	uint64_t seed = 1;
	int i = 1;

	if (argc < 2 || strcmp(argv[1], "--help") == 0) {
		printf("usage: %s CORPUS... COUNT [SEED]\n"
		       "Runs all inputs of each CORPUS, then COUNT random ones.\n",
		       argv[0]);
		return argc == 2 ? 0 : 2;
	}
	watch();
	for (; i < argc && !isdigit((unsigned char)argv[i][0]); i++)
		run_corpus(argv[i]);
	if (i == argc || argc - i > 2) {
		fprintf(stderr, "replay: how many random ones? (see --help)\n");
		return 2;
	}
	count = strtoul(argv[i], NULL, 0);
	if (i + 1 < argc)
		seed = strtoull(argv[i + 1], NULL, 0);
	run_random(count, seed);
	printf("%lu random ones (seed %" PRIu64 ")\n", count, seed);
	return 0;
}
