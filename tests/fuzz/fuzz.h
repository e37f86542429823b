/* SPDX-License-Identifier: BSD-3-Clause */
/* What a fuzz target is to libFuzzer and to replay.c: it returns 0, and crashes if something is wrong. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
