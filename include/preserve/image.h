/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image files: all of a store in a file, for what memory does not outlive: power loss, a reboot that is
 * no prepared kexec, another machine.
 *
 *	pv_save_file(store, "/var/backups/cache.pv", NULL, NULL);	// before the machine goes down
 *	...
 *	pv_restore_file(NULL, &options, "/var/backups/cache.pv", NULL, NULL);	// when it is up again
 *	pv_open("cache", &options, &store);
 *
 * A file is compressed, and checksummed in every part; it holds what is in use, not what is free. It can
 * be read on any machine of the same byte order by a library of the same format version. It is no
 * journal: what the store does after it was saved is not in it.
 *
 * Files are written and read from front to back, so a pipe will do. Several threads of the library's own
 * compress and decompress.
 */
#ifndef PRESERVE_IMAGE_H
#define PRESERVE_IMAGE_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Called now and then with how many bytes of contents are done, from one thread at a time, which may be
 * any of the library's. Non-zero ends the work with -ECANCELED.
 */
typedef int (*pv_image_progress)(void *ctx, uint64_t done_bytes, uint64_t total_bytes);

/** Options of saving; zero is the default; `size` is sizeof(struct pv_save_options). */
struct pv_save_options {
	size_t size;
	int32_t level;	  /* of Zstandard, -7 to 19; default 1 */
	uint32_t threads; /* default: as many as there are processors, at most 8 */
	pv_image_progress progress;
	void *ctx;
};

/** pv_restore_options.flags */
#define PV_RESTORE_FORCE    1u /* drop what is kept under the name, unless a process has it open */
#define PV_RESTORE_NEW_UUID 2u /* make it a store of its own, not the one that was saved */
#define PV_RESTORE_VERIFY   4u /* do all but hand it to the backend: is the file good? */

/** Options of restoring, in the same way. */
struct pv_restore_options {
	size_t size;
	uint32_t flags;
	uint32_t threads;
	pv_image_progress progress;
	void *ctx;
};

/** What was done. */
struct pv_image_report {
	uint64_t contents_bytes; /* saved or restored */
	uint64_t file_bytes;
	uint64_t store_bytes; /* sum of the memfds' sizes */
	uint64_t chunks;
	uint64_t generation; /* of the store, as it was saved */
	int64_t saved_s;     /* when it was saved, in seconds since 1970 */
	uint32_t segments;
	uint32_t threads;  /* that were used */
	bool new_uuid;	   /* restored as a store of its own */
	char name[64];	   /* of the store */
	char kernel[64];   /* on which it was saved */
	uint8_t uuid[16];  /* of the store; of the new one if new_uuid */
};

/**
 * Write the store to a file or pipe that is open for writing, from where it stands. No other thread may
 * use the store meanwhile; so a tool opens it, which nobody else can then, and an application does it
 * when its own threads rest. The store is not changed.
 *
 * `options` and `report` may be NULL. Errors: -EPERM the handle is read-only; -EBUSY a transaction is
 * open; -EINVAL options; -ENOSPC, -EFBIG, -EPIPE (SIGPIPE is the caller's), -EIO: what writing says;
 * -ECANCELED; -ENOMEM. On failure what was written so far is of no use.
 */
int pv_save(struct pv_store *store, int fd, const struct pv_save_options *options,
	    struct pv_image_report *report);

/**
 * The same into the file `path`: written as `path`.tmp, synchronised, and renamed, so that `path` is
 * either what it was or a complete image, at every instant. On failure `path`.tmp is removed; a crash may
 * leave it, and the next call begins it anew. Errors also: those of opening, synchronising and renaming.
 */
int pv_save_file(struct pv_store *store, const char *path, const struct pv_save_options *options,
		 struct pv_image_report *report);

/**
 * Read an image, to its end, and have the backend of `opts` keep the store that is in it, under `name`
 * (NULL: the name it had). Open it afterwards with pv_open().
 *
 * The backend is given something only when all of the file was read, every checksum was right, and the
 * store could be attached. It is the same store as the one that was saved, by UUID, unless
 * PV_RESTORE_NEW_UUID says otherwise or a store of this UUID is kept under another name in the same
 * runtime directory: two that go their own ways must not be taken for one.
 *
 * Of `opts` (NULL: all defaults) the backend's part counts: handover, runtime_dir, and for
 * PV_HANDOVER_NONE keep and keep_ctx. The memory of the store is taken while the file is read.
 *
 * Errors: -EEXIST a store of this name is kept (PV_RESTORE_FORCE drops it); -EBUSY and a process has it
 * open; -EBADMSG not an image, or it is damaged or cut short, at the place that the message names;
 * -EPROTONOSUPPORT of another version; -ENOMEM; -EINVAL; -ECANCELED; what reading says; those of the
 * backend. On failure nothing is kept that was not before, except that PV_RESTORE_FORCE may have dropped
 * the old store when the backend fails after that.
 * Crash: before the backend has all of it there is no store of this name. Any thread.
 */
int pv_restore(const char *name, const struct pv_options *opts, int fd,
	       const struct pv_restore_options *options, struct pv_image_report *report);

/** The same from the file `path`. */
int pv_restore_file(const char *name, const struct pv_options *opts, const char *path,
		    const struct pv_restore_options *options, struct pv_image_report *report);

#ifdef __cplusplus
}
#endif

#endif
