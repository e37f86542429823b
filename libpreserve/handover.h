/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The contract between a store and whoever keeps its descriptors.
 *
 * A descriptor is known by its token: 0 is the index, n + 1 is segment n. Which descriptors make up
 * a store is said by the index alone; a backend may keep some that the index does not name (a crash
 * came between keeping a new segment and naming it) and the store drops those when it attaches.
 *
 * Calls on one handle are serialised by the caller (pv_store.handover_lock). All return 0 or a
 * negative errno with a message set by pvi_fail().
 */
#ifndef PVI_HANDOVER_H
#define PVI_HANDOVER_H

#include <preserve/preserve.h>

struct pvi_handover;

struct pvi_fd {
	uint64_t token;
	int fd; /* owned by the holder of the struct */
};

struct pvi_handover_ops {
	const char *name;
	enum pv_handover kind;
	/**
	 * Hand out duplicates of all descriptors kept for the store: *fds is malloc'ed, sorted by
	 * token, owned by the caller together with the descriptors. Nothing kept: -ENOENT.
	 * *from_kexec: they came out of a LUO session that no one had finished.
	 */
	int (*fetch)(struct pvi_handover *h, struct pvi_fd **fds, unsigned int *n,
		     bool *from_kexec);
	/**
	 * Has anybody else changed what is kept since the last fetch()? Then that is out of date:
	 * 1, else 0. Asked when the store's lock has been obtained, for its former owner may have
	 * grown or prepared the store in between. NULL: nobody else can.
	 */
	int (*changed)(struct pvi_handover *h);
	/** Keep a duplicate of fd under the token (an existing one of that token is replaced); if
	 *  prepared, preserve it too. When this returns 0, the death of this process does not lose
	 *  it any more. */
	int (*keep)(struct pvi_handover *h, uint64_t token, int fd);
	/** Forget the descriptor of this token; -ENOENT is not an error. */
	int (*drop)(struct pvi_handover *h, uint64_t token);
	/** A writer has attached every descriptor: let the kernel forget the session they came from, let
	 *  go of copies and leftovers. Nothing to do: 0. */
	int (*finish)(struct pvi_handover *h);
	/** See pv_handover_prepare(), pv_handover_cancel(). NULL: not supported. `fds` are all
	 *  descriptors of the store in ascending order of tokens. */
	int (*prepare)(struct pvi_handover *h, const struct pvi_fd *fds, unsigned int n);
	/**
	 * The part of prepare() that takes time, for descriptors of the store one after the other:
	 * called without handover_lock, so that the store can grow meanwhile, but never by two at a
	 * time, nor beside prepare() or cancel(). What a following prepare() is not given any more
	 * is not handed over. An error has undone all of it. A backend that has it leaves it to the
	 * caller to hold the pages in place (pin.h), also at keep() and prepare(), for the caller has
	 * them mapped. NULL: prepare() does all, and the backend sees to the pages.
	 */
	int (*preserve)(struct pvi_handover *h, const struct pvi_fd *fds, unsigned int n);
	int (*cancel)(struct pvi_handover *h);
	/**
	 * Is everything kept that should be? If not, hand it over again. 0: it was; 1: it was not,
	 * at this call or at another one since the last check, and is now; negative: it is not.
	 * Only for the process that has the store open for writing. NULL: nobody to ask.
	 */
	int (*check)(struct pvi_handover *h);
	/** Drop all descriptors; the holder ends. */
	int (*forget)(struct pvi_handover *h);
	/** Release the handle; what is kept stays kept. */
	void (*close)(struct pvi_handover *h);
};

/** Backends embed this as their first member. */
struct pvi_handover {
	const struct pvi_handover_ops *ops;
	/* Stored atomically: pv_info_get() reads them without the lock. */
	enum pv_handover_state state;
	uint64_t preserved_bytes; /* by the prepare that is under way, or the last one */
	uint32_t warnings; /* pv_info.warnings */
};

/**
 * Open the backend that opts->handover asks for. A backend whose keeper is absent starts it here or
 * at the first keep(). `opts` outlives the handle.
 */
int pvi_handover_open(const char *store_name, const struct pv_options *opts,
		      struct pvi_handover **out);

/* One a backend; pvi_handover_open() chooses. */
int pvi_caller_open(const struct pv_options *opts, struct pvi_handover **out);
int pvi_holder_open(const char *store_name, const struct pv_options *opts,
		    struct pvi_handover **out);
int pvi_agent_open(const char *store_name, const struct pv_options *opts,
		   struct pvi_handover **out);
/** Is the agent what PV_HANDOVER_AUTO means for this store? */
bool pvi_agent_preferred(const char *store_name, const struct pv_options *opts);
int pvi_luo_open(const char *store_name, const struct pv_options *opts, struct pvi_handover **out);
int pvi_systemd_open(const char *store_name, const struct pv_options *opts, struct pvi_handover **out);
/** Has the service manager passed this store in, or would it keep it? */
bool pvi_systemd_usable(const char *store_name);
/** Does this process, with all that it starts, end with a service of systemd's? */
bool pvi_systemd_in_service(void);
/** 0 if this process may use the Live Update Orchestrator, else why not (-ENODEV, -EACCES). */
int pvi_luo_available(void);

#endif
