/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * libpreserve: a crash-safe object store in memory that outlives the process and the kernel.
 *
 * A store is a set of memfds (an index and one or more segments) mapped into one window of virtual
 * addresses. The application allocates typed objects in it and uses native pointers between them.
 * When the process is killed, the memfds are kept by a handover backend (see enum pv_handover) and
 * the next process maps them at the same addresses: nothing is loaded, nothing is copied. With the
 * `luo` backend the same holds across a kexec into a new kernel.
 *
 * GUARANTEES
 *  - After a process dies at an arbitrary instruction (SIGKILL, fatal signal, abrupt kexec), every
 *    pv_publish() that returned is in effect; the one that was running is in effect as a whole or
 *    not at all. The same holds for every other call that changes a store.
 *  - Memory that was reserved but never published is free again after a crash, without a walk of
 *    the heap: attaching costs O(segments + lanes), not O(objects).
 *  - A pointer into the store stays valid for as long as the store lives at its recorded base. Where
 *    that is taken, the store is mapped elsewhere, and the pointer fields that types declare are moved
 *    with it, see pv_options.relocate.
 *
 * CAVEATS
 *  - Power loss, a panic and a reboot that is not a prepared kexec lose memory, and so the store.
 *  - Bytes of a *live* object that the application writes directly are changed immediately and are
 *    not undone by a crash. Fill an object while it is reserved, then publish it; change live data
 *    by publishing a replacement or by PV_STORE of a single word.
 *  - One process at a time attaches a store for writing (-EBUSY, the message names the other pid).
 *  - A child made by fork() does not have the window; it must not use the store handle.
 *
 * ERRORS
 *  Functions return 0 or a negative errno; results go through out-parameters, which are unchanged
 *  on failure; errno is not touched. pv_last_error() gives the message of the calling thread's
 *  last failed call. Here the codes mean:
 *
 *    -ENOENT         there is no store, root or type of this name
 *    -EEXIST         it exists already (PV_EXCL), or exists with another shape
 *    -EBADMSG        the image is damaged: bad checksum, bad bounds, contradictory records
 *    -EPROTONOSUPPORT  the image was written by an incompatible version of the format
 *    -ENXIO          the set is incomplete: a descriptor that the index names is missing
 *    -EMEDIUMTYPE    a type's layout differs from the one recorded in the store
 *    -EADDRINUSE     the window's addresses are taken by something else in this process, which the
 *                    message names, and relocation is forbidden or finds no other place
 *    -EFAULT         relocation found a pointer that leads nowhere in the store
 *    -EBUSY          another process has the store open, or has made another one of its name; or
 *                    the liveupdate device is in use
 *    -ENOSPC         the store's limit is reached, or the index or a lane is full
 *    -ENOMEM         the kernel gave no memory
 *    -EINVAL         an argument is wrong: null, foreign, freed or never reserved pointer, size 0
 *    -EUSERS         all lanes are in use (pv_options.lanes threads use the store already)
 *    -EPERM          the store was opened with PV_RDONLY; or the object is sealed (preserve/seal.h)
 *    -ENODEV         no /dev/liveupdate: this kernel has no Live Update Orchestrator, or it is off; or
 *                    no service manager ($NOTIFY_SOCKET)
 *    -EACCES         permission is missing; the message names what was refused
 *
 *  Pointers to the wrong thing (freed, freed twice, reserved instead of live, inside of an object, of
 *  another store, null) are -EINVAL wherever they are given to a call that changes something, and nothing
 *  is changed. A library built with -Ddebug-checks=true prints the message instead and aborts, so that
 *  the caller is found on the stack; PV_MISUSE=error in the environment makes it return the error.
 *
 * THREADS
 *  "any thread" in a function's text means: any number of threads, without a lock of the caller.
 *  "one thread" means that no other call on the same store may run at the same time. No function
 *  may be called from a signal handler.
 */
#ifndef PRESERVE_PRESERVE_H
#define PRESERVE_PRESERVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <preserve/check.h>
#include <preserve/type.h>

#ifdef __cplusplus
extern "C" {
#endif

struct pv_store;

/* ---- store --------------------------------------------------------------------------------- */

/** Who keeps the descriptors while no process has the store open. */
enum pv_handover {
	/** `systemd` if the service manager has passed this store in or would keep it ($NOTIFY_SOCKET
	 *  and $FDSTORE are set, for this process); else `agent` where the socket of one is, unless a
	 *  holder keeps a store of this name already, or runtime_dir is given and agent_socket is not;
	 *  else `luo` if this process may use /dev/liveupdate; otherwise `holder`. An agent's socket at
	 *  which nobody answers is an error (-ECONNREFUSED), for what is kept cannot be told then. */
	PV_HANDOVER_AUTO = 0,
	/** A small process forked on first use, one per store; survives kill -9 and upgrades of the
	 *  application. Needs no privilege and nothing installed. */
	PV_HANDOVER_HOLDER = 1,
	/** The holder, and a Live Update Orchestrator session that carries the store across a kexec
	 *  once it is prepared. Needs root (the device is mode 0600). */
	PV_HANDOVER_LUO = 2,
	/** Nobody: the store dies with the process, unless the caller keeps the descriptors itself
	 *  (pv_options.fds and pv_options.keep). */
	PV_HANDOVER_NONE = 3,
	/** The service manager, in the file descriptor store of the unit that this process runs in
	 *  (systemd: FileDescriptorStoreMax=, one for the index and one for each segment). With
	 *  FileDescriptorStorePreserve=yes it carries the store through a kexec (systemd 261). What it
	 *  passes in by $LISTEN_FDS is told by its contents; memfds of libpreserve's are the
	 *  library's, everything else there is left alone, and so is the environment. */
	PV_HANDOVER_SYSTEMD = 4,
	/** The agent of this machine, preserved(8): keeps stores of all users behind one socket, and
	 *  prepares them for a kexec. Needs no privilege, but an administrator who has set it up. */
	PV_HANDOVER_AGENT = 5,
};

/** pv_options.flags */
#define PV_CREATE 1u /* create the store if there is none */
#define PV_EXCL   2u /* with PV_CREATE: fail with -EEXIST if there is one */
#define PV_RDONLY 4u /* map read-only, take no lock, recover nothing: for tools that look */
#define PV_RESET  8u /* with PV_CREATE: drop what is kept under this name first, damaged or not; -EBUSY
			if a process has it open */
#define PV_COMPACT 32u /* pv_compact() the store before pv_open() returns; an error of it is one of pv_open(),
			  whose store is then as if it had been opened without this flag and closed */
#define PV_EAGER  512u /* prepared from birth: pv_handover_prepare() before pv_open() returns, so that a kexec
			  that nobody has announced keeps the store; an error of it is one of pv_open(),
			  whose store is then kept and not prepared. What preparing costs is paid at once:
			  all memory of each segment, and after a kexec the time of preparing in pv_open().
			  -EOPNOTSUPP if the backend does not carry a store across a kexec. A following
			  pv_handover_cancel() is in force until pv_handover_prepare() or the next pv_open() */
#define PV_MEND	  256u /* accept an index that is damaged, if it is known without a guess what it was; see
			  pv_repair() */

/** What pv_options.keep is called for. */
enum pv_keep {
	PV_KEEP_ADD = 1,  /* from now on `fd` belongs to the store; dup() it, the library owns it */
	PV_KEEP_DROP = 2, /* the descriptor of this token is no longer part of the store; fd is -1 */
};

/** pv_options.relocate: may an existing store be mapped elsewhere than at its recorded base? */
enum pv_relocate {
	PV_RELOCATE_AUTO = 0,	/* if the recorded base is taken */
	PV_RELOCATE_NEVER = 1,	/* -EADDRINUSE then */
	PV_RELOCATE_ALWAYS = 2, /* even if the recorded base is free: for tests */
};

/** pv_options.dangling: what becomes of a pointer that relocation finds to lead nowhere in the store? */
enum pv_dangling {
	PV_DANGLING_REFUSE = 0, /* pv_open() fails with -EFAULT, the store stays at its recorded base */
	PV_DANGLING_NULL = 1,	/* it is made null (tag bits stay), told and counted */
};

/**
 * Options of pv_open(). Zero means default for every field; set `size` to sizeof(struct
 * pv_options). A larger struct with an unknown non-zero tail is refused with -EINVAL.
 */
struct pv_options {
	size_t size;
	uint32_t flags;    /* PV_CREATE ... */
	uint32_t handover; /* enum pv_handover */
	/* The next four are recorded at creation and ignored when the store exists. */
	uint64_t window_bytes;  /* addresses to set aside, a power of two, at most 2^20 times
				   segment_bytes; default that, but not more than 1 TiB (2^40) */
	uint64_t segment_bytes; /* size of the first segment, a power of two of at least 32 KiB; later
				   ones double up to 1 GiB; default 64 MiB */
	uint32_t lanes;         /* threads that can use the store at the same time; default 256 */
	uint32_t page_bytes;    /* unit of space: 4096 or 16384; default by segment_bytes */
	/* Sum of all memfds' sizes that may not be exceeded (-ENOSPC); default none. Not recorded. */
	uint64_t limit_bytes;
	/* Directory of the holder's socket; default $XDG_RUNTIME_DIR/libpreserve, else
	   /run/libpreserve (root) or /tmp/libpreserve-UID. Made with mode 0700. */
	const char *runtime_dir;
	/* PV_HANDOVER_NONE only: descriptors of an existing store, in any order. The library
	   duplicates them. nfds 0: nothing is kept, PV_CREATE makes a new store. */
	const int *fds;
	uint32_t nfds;
	/* PV_HANDOVER_AGENT only: PV_OWNER(uid) of the user whose store is meant; default the calling
	   one. Another's store can be opened with PV_RDONLY, if its mode allows that; root may do
	   everything. */
	uint32_t agent_owner;
	/* PV_HANDOVER_NONE only: told of every descriptor that joins or leaves the store, before the
	   index says so (join) and after (leave). A negative return fails the growth. May be NULL. */
	int (*keep)(void *ctx, enum pv_keep what, uint64_t token, int fd);
	void *keep_ctx;
	/*
	 * Relocation. An existing store is mapped where it was, at its recorded base. If those addresses
	 * are taken in this process, it is mapped elsewhere, and every pointer field of every live object
	 * (as its type declares them) is changed by the distance; from then on that is the recorded base.
	 * Takes time in proportion to the memory of types that have pointers. A crash on the way costs
	 * nothing: the next pv_open() goes on, at this base or at yet another one.
	 *
	 * A pointer must be null or lead into a segment of the store. Whether it leads to a live object
	 * is not looked at (pv_check() does). If it does not, that is told as `dangling` says; with
	 * PV_DANGLING_REFUSE everything is moved back before pv_open() fails.
	 *
	 * With PV_RDONLY nothing is moved: pv_address() then leads from a pointer in the store to where
	 * it is.
	 */
	uint32_t relocate; /* enum pv_relocate. With AUTO, PV_RELOCATE=always or =never in the
			      environment (not of a set-user-ID program) decides */
	uint32_t dangling; /* enum pv_dangling */
	/* Where the window is to lie, for a new store and for one that exists (which is relocated if it
	   was elsewhere): a multiple of 1 GiB. 0: where it was, or where it is free. The window may be
	   the recorded one, but not overlap it. */
	uint64_t base;
	uint32_t threads; /* that relocate; at most 64; default the number of processors */
	uint32_t reserved2; /* 0 */
	/* Told from the calling thread, now and then, what is being done ("relocate"), how many bytes of
	   how many. May be NULL. */
	void (*progress)(void *ctx, const char *what, uint64_t done_bytes, uint64_t total_bytes);
	/* Told of each dangling pointer, one line with type, object and field; from any thread, one at a
	   time. With PV_DANGLING_REFUSE only of the first. May be NULL. */
	void (*tell)(void *ctx, const char *line);
	void *tell_ctx; /* of both */
	/* Socket of the agent, an absolute path; default $PRESERVE_AGENT, else
	   /run/preserved/socket. */
	const char *agent_socket;
};

/** A user's number in pv_options.agent_owner, where 0 means none. */
#define PV_OWNER(uid) ((uint32_t)(uid) + 1u)

/**
 * Open the store `name` (1..48 bytes of [A-Za-z0-9._-]), or create it with PV_CREATE.
 *
 * Fetches the descriptors from the handover backend, checks them, maps the window at its recorded
 * base, redoes or drops what a crash interrupted, and starts a new epoch. O(segments + lanes), unless
 * the store has to be relocated, see struct pv_options.
 * After a kexec (`luo`) it also retrieves and finishes the session.
 *
 * `opts` may be NULL (all defaults, no PV_CREATE). *out is owned by the caller: pv_close().
 *
 * Errors: -EINVAL name or options; -ENOENT no store and no PV_CREATE; -EEXIST; -EBUSY another
 * writer (named by pid), or PV_RDONLY while objects are moved (preserve/compact.h), or after that was
 * interrupted; with PV_COMPACT those of pv_compact(); -EBADMSG, -EPROTONOSUPPORT, -ENXIO image refused and left untouched;
 * -EADDRINUSE; -EFAULT a dangling pointer while relocating, everything moved back; -ENOMEM (address
 * space: see window_bytes and RLIMIT_AS); -ENODEV, -EACCES backend.
 * A crash in here leaves a store that can be opened, or, while creating, none.
 * Any thread.
 */
int pv_open(const char *name, const struct pv_options *opts, struct pv_store **out);

/**
 * Close the handle: returns this process's reservations, unmaps the window, releases the lock. The
 * data stay with the handover backend. No other thread may use `store` any more; threads that did
 * need not have ended. With a pv_retire_flavor() it waits for readers first, and fails with -EDEADLK,
 * the handle still open, if the caller is one. Otherwise returns 0. NULL is allowed.
 */
int pv_close(struct pv_store *store);

/** Close the handle and drop the data for good: the backend forgets the descriptors. One thread. Waits
 *  as pv_close() does; any error but -EDEADLK comes with the handle closed. */
int pv_destroy(struct pv_store *store);

/** How pv_open() came by the store. */
enum pv_origin {
	PV_ORIGIN_CREATED = 0,
	PV_ORIGIN_REATTACHED = 1, /* found, mapped at its recorded base */
	PV_ORIGIN_RELOCATED = 2,  /* found, moved to another base */
};

/** What the handover backend could do now. */
enum pv_handover_state {
	PV_STATE_SERVING = 0,  /* not prepared: a kexec would lose the store */
	PV_STATE_PREPARED = 1, /* preserved: a kexec keeps the store */
};

struct pv_info {
	enum pv_origin origin;
	enum pv_handover handover; /* the backend in use, never AUTO */
	enum pv_handover_state state;
	bool from_kexec;          /* the descriptors came through a kexec, and this is the first process since
				     that opened the store for writing */
	uint32_t segments;
	uint32_t lanes;
	uint64_t base;            /* address of the window */
	uint64_t recorded_base;   /* what pointers in the store count from: the same, unless PV_RDONLY */
	uint64_t window_bytes;
	uint64_t bytes;           /* sum of the memfds' sizes */
	uint64_t page_bytes;
	uint64_t used_bytes;      /* pages taken by slabs and extents (segments looked at so far) */
	uint64_t epoch;           /* how often the store has been opened for writing */
	uint64_t generation;      /* how often the index has been written */
	uint64_t attach_ns;       /* what pv_open() took */
	uint64_t fetch_ns;        /* the share of attach_ns that went to the handover backend: start
				     or find the holder, retrieve and finish a session */
	uint64_t recovered;       /* intents that were redone by pv_open() */
	uint64_t relocated_from;  /* origin RELOCATED: the base before; and what it took: */
	uint64_t relocated_pointers; /* pointers that were moved */
	uint64_t relocated_bytes; /* slabs and extents of types with pointers that have live objects */
	uint64_t relocated_ns;
	uint64_t dangling;        /* pointers that were made null (PV_DANGLING_NULL) */
	uint8_t uuid[16];
	uint32_t mended;	  /* PV_MENDED_*: what pv_open() found damaged of the index */
	uint32_t warnings;	  /* PV_WARN_* */
	uint64_t preserved_bytes; /* of `bytes`: done by the pv_handover_prepare() of this process that is
				     under way, or was the last */
};

/** pv_info.warnings: what the operator should know, although everything works. */
#define PV_WARN_HOLDER_IN_SERVICE 1u /* the holder ends with the systemd service that started it, and the
					data with both, unless the unit has KillMode=process; see
					PV_HANDOVER_SYSTEMD */

/** pv_info.mended. With PV_RDONLY it is damaged still. */
#define PV_MENDED_SLOT	 1u /* the slot in force; its mirror was used */
#define PV_MENDED_COMMIT 2u /* the word that says which is in force; PV_MEND only */

/** Fill *out. Any thread. Returns 0. */
int pv_info_get(struct pv_store *store, struct pv_info *out);

/**
 * Where is what a pointer in the store leads to? The pointer itself, unless the store was opened with
 * PV_RDONLY and is mapped elsewhere than at its recorded base, or its relocation was interrupted.
 * NULL: nowhere, or it is null. `pointer` is without tag bits. Any thread.
 */
const void *pv_address(struct pv_store *store, const void *pointer);

/**
 * Message of the calling thread's last failed call: names and numbers, one line, no newline. Never
 * NULL. Owned by the library, valid until the thread's next call.
 */
const char *pv_last_error(void);

/** The library's version, "major.minor.patch". */
const char *pv_version(void);

/* ---- roots (for types see preserve/type.h) --------------------------------------------------- */

/**
 * Find the root object `name`, or create it: `bytes` zero bytes of `type`. A root object is where
 * the application starts from after an attach; it is never freed. *created (may be NULL) says which.
 * Errors: -EEXIST the root exists with another type or is smaller; -EINVAL; -ENOSPC.
 * Crash: the root exists, zeroed, or does not exist. Any thread.
 */
int pv_root(struct pv_store *store, const char *name, pv_type_t type, size_t bytes, void **out,
	    bool *created);

/* ---- objects -------------------------------------------------------------------------------- */

/**
 * Reserve an object of `bytes` bytes (its contents are undefined) to be filled in and published.
 * Aligned to the largest power of two that divides `bytes`, but to at least 16 and at most 4096.
 * Errors: -EINVAL size 0 or unknown type; -ENOSPC limit or window; -ENOMEM; -EUSERS; -EPERM.
 * Crash: the object is free again. Any thread; the object belongs to the caller until published.
 */
int pv_reserve(struct pv_store *store, pv_type_t type, size_t bytes, void **out);

/**
 * The same, at an address that is a multiple of `align`, a power of two up to the size of the first segment.
 * Takes an object of the next larger size that is a multiple of `align`. Errors also: -EINVAL `align`.
 */
int pv_reserve_aligned(struct pv_store *store, pv_type_t type, size_t bytes, size_t align, void **out);

/**
 * The intents that make up most of what programs do, as calls of their own: the same as pv_publish()
 * with these actions, errors included, and the cheapest way to do it.
 *
 *	pv_link		{PV_LIVE(object), PV_STORE(word, object)}
 *	pv_replace	{PV_LIVE(object), PV_STORE(word, object), PV_FREE(old)}
 *	pv_unlink	{PV_STORE(word, value), PV_FREE(old)}
 *
 * `word` is an aligned 8-byte word in a live or reserved object; `value` is mostly 0, or the address
 * of what follows `old`. Any thread; the caller's lock protects the word.
 */
int pv_link(struct pv_store *store, void *object, void *word);
int pv_replace(struct pv_store *store, void *object, void *word, void *old);
int pv_unlink(struct pv_store *store, void *word, uint64_t value, void *old);

/** Give a reserved object back. -EINVAL: not a reserved object. Any thread. */
int pv_cancel(struct pv_store *store, void *object);

enum pv_action_op {
	PV_ACTION_LIVE = 1,
	PV_ACTION_STORE = 2,
	PV_ACTION_FREE = 3,
	PV_ACTION_RETIRE = 4,
};

/** One step of an intent. Use the PV_LIVE, PV_STORE, PV_FREE and PV_RETIRE macros. */
struct pv_action {
	uint32_t op;
	uint32_t reserved;
	void *target;
	uint64_t value;
};

/** Make a reserved object live. */
#define PV_LIVE(object) ((struct pv_action){PV_ACTION_LIVE, 0, (object), 0})
/** Store an 8-byte value (often a pointer) to an aligned word inside a live or reserved object. */
#define PV_STORE(word, val) ((struct pv_action){PV_ACTION_STORE, 0, (word), (uint64_t)(val)})
/** Free a live object. No other thread may be reading it, and the pv_publish() that made it live has
 *  returned. A root object must not be freed: that is found out by builds with -Ddebug-checks=true only,
 *  others would have to search for it; afterwards pv_root() says -EBADMSG. */
#define PV_FREE(object) ((struct pv_action){PV_ACTION_FREE, 0, (object), 0})

/** Free a live object that other threads may be reading: its memory is kept as it is until no reader
 *  can hold it any more. See preserve/retire.h; -EINVAL without a pv_retire_flavor(). */
#define PV_RETIRE(object) ((struct pv_action){PV_ACTION_RETIRE, 0, (object), 0})

/** The most actions in one intent. */
#define PV_ACTIONS_MAX 30u

/**
 * Do all actions, atomically with respect to a crash: afterwards all are in effect or none. The
 * order in which they become visible to other threads is the order given, so make an object live
 * before you store the pointer to it.
 * Words that two threads might store to are protected by the caller's own lock, held for the call.
 * Errors, with nothing changed: -EINVAL an object is not reserved (LIVE) or not live (FREE, RETIRE), a
 * target is outside of the store or not aligned, an object stands twice; -ENOSPC more than
 * PV_ACTIONS_MAX; -ENOMEM (RETIRE); -EUSERS; -EPERM.
 * Any thread.
 */
int pv_publish(struct pv_store *store, const struct pv_action *actions, unsigned int n);

/**
 * Allocate `bytes` zero bytes into the persistent pointer *dest, which lies in a live or reserved
 * object of this store: reserve, zero, publish. What *dest held before is overwritten, not freed.
 * Errors as pv_reserve() and pv_publish(). Crash: *dest is unchanged, or is the new live object.
 */
int pv_alloc(struct pv_store *store, pv_type_t type, size_t bytes, void **dest);

/**
 * Give the live object that the persistent pointer *dest names another size. In place where that is
 * possible: the size class stays, or an object of whole pages shrinks, or grows into free pages behind
 * it; otherwise a new object gets the contents, as far as they fit, and takes the old one's place in
 * *dest, as one. Bytes beyond the old size are undefined, but of types with flexible arrays of references
 * (preserve/type.h) zero. Distances to other objects (PV_RELATIVE) stay right.
 *
 * Errors, with nothing changed: -EINVAL `bytes` is 0 or less than the type has, *dest names no live
 * object (of a root object what is said of PV_FREE holds); and those of pv_reserve(). Crash: the old
 * object or the new one. Any thread; the caller's lock protects *dest and the object, whose contents are
 * copied.
 */
int pv_realloc(struct pv_store *store, void **dest, size_t bytes);

/** Free the object that the persistent pointer *dest names and set *dest to NULL, as one. */
int pv_free(struct pv_store *store, void **dest);

/**
 * Bytes that may be used in a reserved or live object: at least what was asked for.
 * 0 if `object` is not the start of one. Any thread.
 */
size_t pv_usable_bytes(struct pv_store *store, const void *object);

/**
 * What of a store's window has memory behind it and may be read: [base, base + bytes), from the first
 * segment to the end of the last. Where a segment is not followed by the next at once, there are zeros
 * between them. The library changes `bytes` when segments come and go.
 */
struct pv_mapped {
	uintptr_t base;
	uint64_t bytes;
};

/** Valid until pv_close(). Any thread. */
const struct pv_mapped *pv_mapped_get(const struct pv_store *store);

/**
 * May `bytes` from `p` on be read without a fault? For pointers in a store that cannot be trusted: a
 * handful of instructions. It says nothing about what is there; pv_usable_bytes() does. Any thread; a
 * pv_trim() at the same time can make the answer untrue.
 */
static inline bool pv_mapped_has(const struct pv_mapped *mapped, const void *p, size_t bytes)
{
	uint64_t off = (uintptr_t)p - mapped->base;
	uint64_t have = __atomic_load_n(&mapped->bytes, __ATOMIC_RELAXED);

	return off < have && bytes <= have - off;
}

/**
 * Fetch into the cache what a coming PV_LIVE or PV_FREE of `object` looks at, for callers that know
 * several objects ahead. Changes nothing; any address is allowed. Any thread.
 */
void pv_prefetch(const struct pv_store *store, const void *object);

/* ---- handover ------------------------------------------------------------------------------- */

/**
 * Make the store survive a kexec from now on: a LUO session is created and every memfd preserved
 * into it. The application goes on meanwhile and afterwards; segments that are added join at birth.
 * All memory of the segments is committed. Prepared already: returns 0. Takes time in proportion to
 * the store (pv_info.preserved_bytes says how far it is); no other call on the store waits for it, but
 * pv_handover_cancel().
 * `systemd`: sees to it that the service manager has every memfd, and changes nothing else: it is the
 * manager that carries them over, if the unit has FileDescriptorStorePreserve=yes, which cannot be seen
 * from here. -ENODEV: no $NOTIFY_SOCKET; -ENOSPC: FileDescriptorStoreMax= is too small; -ETIMEDOUT.
 * Errors: -EOPNOTSUPP the backend has no LUO; -EBUSY device in use (tried for a second) or a descriptor
 * preserved elsewhere; -EEXIST the session's name is taken; -ENOMEM there is not the memory to fill the
 * segments' holes, or none at all; -ENOSPC. On failure nothing is preserved.
 * Crash: the holder keeps the session, the store stays prepared; before the end of the call, it is as if
 * there had been none. Any thread.
 */
int pv_handover_prepare(struct pv_store *store);

/** Undo pv_handover_prepare(), after the end of one that is under way: a kexec would lose the store again
 *  (`systemd`: what its unit says goes on to hold). Not prepared: returns 0. Errors: -EPERM (PV_RDONLY), and
 *  those of reaching the holder. Any thread. */
int pv_handover_cancel(struct pv_store *store);

/**
 * Look whether the store is kept, and see to it that it is: if the holder has died, another one is
 * started and given everything. Without this call that happens only when the store next grows, or
 * is prepared or cancelled; until then the death of this process would lose it. Call it from a
 * timer, about once a second, as long as the store is in use (not while shutting down: a holder
 * that was ended on purpose would come back).
 *
 * Returns 0: all is kept, nothing had happened. 1: it is kept now, but the holder had died, or was
 * not up to date, at some time since the last call. Negative: nobody keeps the store now, or it
 * cannot be told; the store goes on working, and the next call tries again.
 * `systemd`: asks nobody, but sees whether the manager still has every memfd, and hands over what it has
 * not. -ENODEV, -ENOSPC, -ETIMEDOUT as above.
 * Errors: -EACCES, -ENOENT the holder cannot be started, or its directory is not usable; -EBUSY
 * another process has made a new store of this name meanwhile; -ETIMEDOUT the holder hangs;
 * -EMFILE, -EPERM (PV_RDONLY), and what system calls say.
 *
 * PV_HANDOVER_AGENT: -ECONNREFUSED no agent is there. It is also the moment at which the application
 * prepares or cancels the store because an operator has asked the agent for it (pv_agent_prepare()): as
 * pv_handover_prepare() and pv_handover_cancel() do. What becomes of that is told to the operator, and is
 * in pv_info.state; it is no error of this call.
 *
 * Costs one exchange of messages (some 50 us), with the agent a few. It waits for a growth that
 * is under way, and 5 s for a holder that hangs: a program with an event loop has a thread for it.
 * PV_HANDOVER_NONE: 0, there is nobody to ask. Crash: at most a holder that lacks something, which
 * the death of this process then loses. Any thread.
 */
int pv_handover_check(struct pv_store *store);

/**
 * Give back what is not needed: slots that the calling thread or nobody holds ready become free, slabs
 * without objects free pages, empty segments at the end leave the store, and all other free pages lose
 * their memory. *bytes (may be NULL): the memory that came free. The library does most of this by
 * itself, before it grows the store, and when a quarter of the memory in use lies idle; a program calls
 * this when it knows that it will need less for a time.
 *
 * Looks at every slab that this process has not touched yet, and holds up allocations meanwhile (about
 * 0.2 us a slab of 16 KiB). While the store is prepared no memory is given back.
 * Errors: -EPERM, -EUSERS, and those of writing the index. Crash: some of it is done. Any thread.
 */
int pv_trim(struct pv_store *store, uint64_t *bytes);

/* ---- looking ---- (see also preserve/check.h) ------------------------------------------------ */

/**
 * Call `visit` for every live object, of `type` or, if `type` is 0, of any. A non-zero return of
 * `visit` ends the walk and is returned. One thread; `visit` must not change the store.
 */
int pv_iterate(struct pv_store *store, pv_type_t type,
	       int (*visit)(void *ctx, void *object, size_t bytes, pv_type_t type), void *ctx);

/**
 * Copy the store's index, a flattened device tree, to *buf (malloc'ed, owned by the caller) and its
 * size to *bytes: `dtc -I dtb -O dts` and `fdtdump` read it. Any thread.
 */
int pv_index_dump(struct pv_store *store, void **buf, size_t *bytes);

#ifdef __cplusplus
}
#endif

#endif
