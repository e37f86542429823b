/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which stores there are: for tools, and for programs that choose among stores.
 *
 *	struct pv_stores *list;
 *
 *	if (pv_stores_list(NULL, &list) == 0) {
 *		for (uint32_t i = 0; i < list->n; i++)
 *			puts(list->stores[i].name);
 *		pv_stores_free(list);
 *	}
 *
 * It asks each holder what it keeps and reads the index, without taking a lock, mapping anything or
 * changing anything, and works beside a process that has the store open. What it says was so when it
 * looked; a store that is being made, grown or dropped meanwhile may be seen before or after.
 *
 * Not found are stores that an agent keeps (pv_agent_list() in preserve/agent.h has those), that nobody
 * keeps but the application (PV_HANDOVER_NONE), and those in a LUO
 * session that came through a kexec and that nobody has asked for yet: the kernel names them to no one.
 * pv_open() by name finds the latter.
 */
#ifndef PRESERVE_STORES_H
#define PRESERVE_STORES_H

#include <preserve/preserve.h>

#ifdef __cplusplus
extern "C" {
#endif

/** What is behind a name. */
enum pv_stores_state {
	PV_STORES_KEPT = 0,	/* a store; whether it is in use says `open` */
	PV_STORES_INCOMING = 1, /* came through a kexec; the next pv_open() for writing takes it over */
	PV_STORES_UNBORN = 2,	/* its creation was interrupted: counts as no store */
	PV_STORES_LOST = 3,	/* its holder has died. A process that has it open still has it; otherwise
				   it is gone, and only the name is left */
	PV_STORES_DAMAGED = 4,	/* kept, but its index cannot be read: see `problem` */
	PV_STORES_SILENT = 5,	/* its holder does not answer: see `problem` */
};

struct pv_stores_entry {
	const char *name;
	enum pv_stores_state state;
	const char *problem; /* one line; "" if there is none */
	int32_t holder_pid;  /* 0: none, or it does not say */
	bool open;	     /* a process has it open for writing ... */
	int32_t writer_pid;  /* ... this one; or, if not open, the last one. 0: not known */
	bool prepared;	     /* a kexec would keep it */
	uint32_t descriptors; /* that the holder keeps, those of a session included */
	/* The rest is 0 unless the state is KEPT. */
	uint32_t segments;
	uint64_t bytes;	       /* sum of the memfds' sizes */
	uint64_t backed_bytes; /* of which so much has memory (or swap) behind it */
	uint64_t generation;
	uint64_t epoch;
	uint64_t base;
	uint64_t window_bytes;
	/* Of the index memfd: whoever has a descriptor of this file has the store open, or keeps it. */
	uint64_t index_device;
	uint64_t index_inode;
	uint8_t uuid[16];
};

struct pv_stores {
	const char *dir; /* the runtime directory that was looked at */
	uint32_t n;
	const struct pv_stores_entry *stores; /* by name */
};

/**
 * Look at all names in a runtime directory, which must be the calling user's. NULL: the default (see
 * pv_options.runtime_dir). A directory that does not exist has no stores. *out is the caller's:
 * pv_stores_free(). A holder that hangs takes 5 s; it is an entry, not an error.
 *
 * Errors: -EACCES the directory is another user's or has another mode than 0700; -ENOMEM; what system
 * calls say. Any thread.
 */
int pv_stores_list(const char *runtime_dir, struct pv_stores **out);

/** Free what pv_stores_list() gave, with all that it points to. NULL is allowed. */
void pv_stores_free(struct pv_stores *list);

#ifdef __cplusplus
}
#endif

#endif
