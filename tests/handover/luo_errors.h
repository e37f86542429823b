/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What this kernel answers to each wrong call, and what the library makes of it. The first half runs
 * before a kexec, the second after it, on what the first has left.
 */
#ifndef TEST_LUO_ERRORS_H
#define TEST_LUO_ERRORS_H

void luo_errors_before_kexec(void);
void luo_errors_after_kexec(void);

#endif
