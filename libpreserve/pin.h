/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef PVI_PIN_H
#define PVI_PIN_H

#include <stdint.h>

/** Is there memory for the holes of this memfd? Whoever fills them has somebody killed if there is not.
 *  `what` it is, for the message of -ENOMEM. */
int pvi_pin_room(int fd, const char *what);

/**
 * Hold the pages of a mapped segment where they are, and give holes memory, until pvi_pin_end(): see
 * pin.c for what that is good for. *pin: for pvi_pin_end(), -1 if there is nothing to fear and so nothing
 * was done. Takes time in proportion to the bytes; the memory can be used meanwhile.
 * `fd` is what is mapped there.
 * Errors: -EOPNOTSUPP the kernel may make huge pages of it and offers no way to stop it; -ENOMEM; -EMFILE.
 */
int pvi_pin_begin(int fd, uint8_t *addr, uint64_t bytes, int *pin);
/** The same for a memfd that the caller has not mapped. */
int pvi_pin_file(int fd, int *pin);
void pvi_pin_end(int pin);

#endif
