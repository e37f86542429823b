/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engine.h - what the files of the crash-sweep engine share. Only they include it.
 *
 *   mem       a memfd the engine knows, by inode, with a writable mapping of its own (the alias)
 *   map       where the code under test has mapped a mem; read-only while stores are trapped
 *   slot      number of a memfd in order of creation: its name in logs, images and reports
 *   image     contents, size, seals and keeping of all slots, in ordinary memory
 *   shadow    the image that the log says must be in the memfds now
 *   record    one change of an image; a crash point lies after each one that is not JOINED
 *   pool      memfds of the engine which hold the image that is being recovered
 *
 * The state is global because the signal handlers and the overridden libc calls need it, and
 * because a process runs one scenario. Nothing here takes a lock: see trap.c on threads.
 */
#ifndef CRASH_ENGINE_H
#define CRASH_ENGINE_H

#include <signal.h>
#include <sys/types.h>
#include "crashtest.h"

#define CT_RANDOM_SEED 0x9e3779b97f4a7c15ull

enum {
	CT_PAGE_BYTES = 4096,
	CT_MAX_MAPS = 1024,
	CT_SEEN_RECOVERIES = 4096,
	CT_BULK_RECORDS = 48, /* a recovery with more is long, see walk.c */
	CT_EXIT_DIED = 3,     /* the child's status after a fatal signal, already in the report */
};

struct ct_slot {
	uint8_t *bytes; /* cap_bytes of them, zero from size_bytes on */
	size_t cap_bytes;
	uint64_t size_bytes;
	unsigned seals;
	unsigned keep_seq;		    /* 0: dies with the process */
	const char *memfd_name, *keep_name; /* interned */
};

struct ct_image {
	unsigned n_slots;
	unsigned keep_last; /* highest keep_seq given */
	struct ct_slot slots[CRASH_MAX_MEMS];
};

enum ct_kind {
	CT_WORD, /* the aligned 8 bytes at off: old_value -> new_value */
	CT_BORN, /* the slot exists now, empty, with seals new_value */
	CT_SIZE,
	CT_SEALS,
	CT_KEEP, /* under the name new_value */
	CT_DROP,
	CT_EVENT, /* new_value points to a text */
};

enum {
	CT_JOINED = 1u << 0,	   /* the next record belongs to the same indivisible change */
	CT_SYSCALL = 1u << 1,	   /* made by the kernel, not by a store */
	CT_OTHER_THREAD = 1u << 2, /* switch sweep: made by B */
};

struct ct_record {
	uint8_t kind;
	uint8_t flags;
	uint16_t slot;
	uint32_t reserved;
	uint64_t off;
	uint64_t old_value, new_value;
	uintptr_t ip;
};

struct ct_mem {
	bool used;
	bool pool; /* made by the engine to hold an image */
	unsigned slot;
	dev_t dev;
	ino_t ino;
	int fd; /* the engine's own open file description, so that no lock is shared */
	uint8_t *alias;
	size_t alias_bytes;
};

struct ct_map {
	uintptr_t start, end;
	unsigned mem;
	uint64_t off; /* of start within the memfd */
	int prot;     /* what the code under test asked for */
};

struct ct_log {
	struct ct_record *records;
	size_t n, cap;
};

extern struct ct_state {
	bool on; /* memfds are followed */
	const struct crash_scenario *scenario;
	struct crash_report *report;
	const struct crash_options *options;
	volatile sig_atomic_t tracing; /* stores are trapped and logged */
	bool split_wide;	       /* log the words of a wide store as separate crash points */
	uint64_t random;	       /* state of the overridden getrandom() */
	struct ct_log log;
	struct ct_image shadow;
	unsigned n_mems, n_maps;
	struct ct_mem mems[2 * CRASH_MAX_MEMS];
	struct ct_map maps[CT_MAX_MAPS];
} ct;

/* raw.c: system calls that do not pass the overrides */
void *ct_raw_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off);
int ct_raw_munmap(void *addr, size_t len);
int ct_raw_mprotect(void *addr, size_t len, int prot);
int ct_raw_memfd_create(const char *name, unsigned flags);
int ct_raw_ftruncate(int fd, off_t size);
int ct_raw_fcntl(int fd, int cmd, unsigned long arg);
int ct_raw_close(int fd);
uint64_t ct_now_ns(void);
/* The engine itself cannot go on: message, abort. */
_Noreturn void ct_panic(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* mem.c */
int ct_mem_find(int fd);			       /* index or -1 */
int ct_mem_adopt(int fd, const char *name);	       /* a memfd not seen before: index or -1 */
unsigned ct_mem_add(int fd, unsigned slot, bool pool); /* takes fd */
void ct_mem_forget(unsigned mem);
void ct_mem_remap_alias(unsigned mem, bool writable);
void ct_map_add(uintptr_t start, size_t len, unsigned mem, uint64_t off, int prot);
void ct_map_remove(uintptr_t start, size_t len);
void ct_map_set_prot(uintptr_t start, size_t len, int prot);
const struct ct_map *ct_map_find(uintptr_t addr);
bool ct_map_overlaps(uintptr_t start, size_t len);

/* image.c */
const char *ct_intern(const char *text); /* the same pointer for the same text, for ever */
void ct_slot_reserve(struct ct_slot *slot, uint64_t size_bytes);
void ct_image_copy(struct ct_image *to, const struct ct_image *from);
void ct_image_free(struct ct_image *image);
void ct_image_apply(struct ct_image *image, const struct ct_record *record);
/* Would a dead process leave something else behind because of this record? */
bool ct_image_survives(const struct ct_image *image, const struct ct_record *record);

/* pool.c: an image made real, for a recovery */
void ct_pool_restore(const struct ct_image *image);
void ct_pool_export(const struct ct_image *image, struct crash_image *to, bool reverse);
uint64_t ct_pool_hash(void);
void ct_pool_clear(void);

/* log.c: appending applies to the shadow as well */
void ct_log_init(void);
void ct_log_append(enum ct_kind kind, unsigned flags, unsigned slot, uint64_t value, uintptr_t ip);
/* Logs what the memfd says and the shadow does not; chunk_bytes of it are one indivisible change
 * (0: all). Returns the number of words. */
size_t ct_log_diff(unsigned mem, uint64_t off, size_t len, size_t chunk_bytes, unsigned flags,
		   uintptr_t ip);
/* Size, seals and contents after a system call on the memfd. */
void ct_log_mem(unsigned mem, uintptr_t ip);
const char *ct_kind_name(const struct ct_record *record);
void ct_log_print(const struct ct_record *record, size_t index);

/* trap_x86.c */
void ct_trap_init(void);
void ct_trap_protect(void); /* all maps read-only */
void ct_trap_unprotect(void);
/* Thread tid stops once the log has this many records, at once or before its next store; 0 = nobody
 * stops. */
void ct_trap_stop_at(pid_t tid, size_t records, bool before_next);
bool ct_trap_stopped(void);
void ct_trap_resume(void);
/* A point between two system calls where the thread may have to stop. */
void ct_trap_point(void);
void ct_trap_other(pid_t tid); /* records of this thread get CT_OTHER_THREAD */
unsigned ct_trap_thread_flag(void);

/* trace.c: one traced run */
void ct_trace_begin(void); /* the shadow becomes what is in the memfds */
/* Stops trapping; false if something changed that is not in the log. Looking for mappings nobody
 * knows reads /proc and takes longer than a small recovery. */
bool ct_trace_end(bool with_mappings);
/* The same for the contents, in the middle of a run. */
bool ct_trace_verify(void);
/* These bytes must be what the shadow says; remembered for the next verify if not. */
void ct_trace_expect(unsigned mem, uint64_t off, size_t len);
void ct_trace_abandon(void); /* stops trapping, forgets the run */

/* report.c */
bool ct_enough(void); /* failures to stop here */
struct crash_failure *ct_fail(enum crash_failure_kind kind, const char *format, ...)
	__attribute__((format(printf, 2, 3)));
#define CT_NO_RECORD SIZE_MAX
/* The record at log_index was the last that was made, the one behind it (below end) the first that
 * was not. */
void ct_fail_stores(struct crash_failure *failure, size_t log_index, size_t end);
void ct_symbol(uintptr_t ip, char *out, size_t len);

/* walk.c: recover and check one image; what sweep.c and switch.c share */
struct ct_walk {
	const struct crash_scenario *scenario;
	const struct crash_options *options;
	unsigned max_depth;
	struct ct_image levels[CRASH_MAX_DEPTH + 1];
	struct ct_seen {
		uint64_t signature; /* of the stores of a recovery */
		size_t times;
	} seen[CT_SEEN_RECOVERIES];
};
void ct_walk_init(struct ct_walk *walk);
void ct_walk_free(struct ct_walk *walk);
/* The fingerprint this image recovers to; 0 after a failure, which is then reported. log_index:
 * the record after which the process died, for the report (CT_NO_RECORD: before the first). hash:
 * of the bytes after recovery, if the scenario wants them compared. */
uint64_t ct_walk_visit(struct ct_walk *walk, const struct ct_image *image, unsigned depth,
		       size_t log_index, uint64_t *hash);

/* sweep.c, switch.c: inside the child process */
void ct_sweep_run(void);
void ct_switch_run(void);

#endif
