/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl doctor: what its parts share. Each part looks at some files and adds what it found. Files
 * are looked for below a root directory, so that tests can show it a machine that is not there; what is
 * no file (a system call, a program) is then a file below ROOT/probe with the answer in it.
 */
#ifndef DOCTOR_H
#define DOCTOR_H

#include "ctl.h"

enum doctor_level { DOCTOR_OK, DOCTOR_WARN, DOCTOR_FAIL };

#define DOCTOR_TEXT 65536

struct doctor_finding {
	const char *name; /* for programs: luo, scratch, ... */
	enum doctor_level level;
	char *text;	/* what is so */
	char *advice;	/* what to do; "" */
};

struct doctor {
	const char *root;
	const char *unit;
	bool kexec; /* a kexec is wanted: what stops it is a failure, not a warning */
	struct pv_stores *stores; /* NULL: could not be had */
	struct doctor_finding *v;
	unsigned int n;
};

/** Add a finding. `advice` may be NULL. */
__attribute__((format(printf, 5, 6))) void doctor_add(struct doctor *d, enum doctor_level level,
						      const char *name, const char *advice,
						      const char *format, ...);
/** The level of what only a kexec needs. */
enum doctor_level doctor_kexec_level(const struct doctor *d);
/** Path below the root; in the buffer, which is returned. */
const char *doctor_path(const struct doctor *d, char path[4096], const char *file);
/** Contents of a file, at most DOCTOR_TEXT - 1 bytes of it; false: it cannot be read. */
bool doctor_read(const struct doctor *d, const char *file, char text[DOCTOR_TEXT]);
/** The number that a file holds; `missing` if it cannot be read. "max": UINT64_MAX. */
uint64_t doctor_number(const struct doctor *d, const char *file, uint64_t missing);
/** Is this word in the text, between blanks? */
bool doctor_word(const char *text, const char *word);

void doctor_kernel(struct doctor *d);
void doctor_memory(struct doctor *d);
void doctor_process(struct doctor *d);
void doctor_systemd(struct doctor *d);

/** Bytes of the largest store, 0: there is none. */
uint64_t doctor_largest(const struct doctor *d, const char **name);

#endif
