/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The calls of the kernel's Live Update Orchestrator, defined here because the kernel headers of
 * the distributions we build on are older than it. Numbers and layouts are those of
 * include/uapi/linux/liveupdate.h in Linux 7.2.12; that file promises that structs only grow at the
 * end (each begins with its size) and numbers stay.
 *
 * Nothing here needs a C library: the holder program includes it.
 */
#ifndef PVI_LUO_UAPI_H
#define PVI_LUO_UAPI_H

#include <linux/ioctl.h>
#include <stdint.h>

#define LUO_DEVICE   "/dev/liveupdate"
#define LUO_NAME_MAX 64 /* LIVEUPDATE_SESSION_NAME_LENGTH, the terminating zero included */

/** LIVEUPDATE_IOCTL_CREATE_SESSION and _RETRIEVE_SESSION, on the device. */
struct luo_session_arg {
	uint32_t size;
	int32_t fd; /* out: the session, O_CLOEXEC */
	char name[LUO_NAME_MAX];
};

/** LIVEUPDATE_SESSION_PRESERVE_FD and _RETRIEVE_FD, on a session. */
struct luo_file_arg {
	uint32_t size;
	int32_t fd; /* in to preserve, out to retrieve */
	uint64_t token;
};

/** LIVEUPDATE_SESSION_FINISH, on a session. */
struct luo_finish_arg {
	uint32_t size;
	uint32_t reserved;
};

/** LIVEUPDATE_SESSION_GET_NAME, on a session; kernels before 7.1 do not know it (-ENOTTY). */
struct luo_name_arg {
	uint32_t size;
	uint32_t reserved;
	char name[LUO_NAME_MAX]; /* out */
};

/* LIVEUPDATE_IOCTL_TYPE is 0xBA; the requests are plain _IO(), without a size. */
#define LUO_CREATE_SESSION   _IO(0xba, 0x00)
#define LUO_RETRIEVE_SESSION _IO(0xba, 0x01)
#define LUO_PRESERVE_FD	     _IO(0xba, 0x40)
#define LUO_RETRIEVE_FD	     _IO(0xba, 0x41)
#define LUO_FINISH	     _IO(0xba, 0x42)
#define LUO_GET_NAME	     _IO(0xba, 0x43)

_Static_assert(sizeof(struct luo_session_arg) == 72, "luo_session_arg");
_Static_assert(sizeof(struct luo_file_arg) == 16, "luo_file_arg");
_Static_assert(sizeof(struct luo_finish_arg) == 8, "luo_finish_arg");
_Static_assert(sizeof(struct luo_name_arg) == 72, "luo_name_arg");

/**
 * How a session descriptor is told from others: the start of the link /proc/self/fd/N. The first is
 * what Linux 6.19 to 7.3 show (kernel/liveupdate/luo_session.c), the second and the file system
 * magic are proposed for later ones. The link may have the name cut; LUO_GET_NAME has it whole, and
 * is the third way.
 */
#define LUO_LINK_ANON "anon_inode:[luo_session]"
#define LUO_LINK_FS   "luo_session:["
#define LUO_FS_MAGIC  0x4c554f53l

#endif
