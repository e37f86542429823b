/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preserved: the agent. It keeps the descriptors of many stores of many users while no process of
 *the applications exists, and speaks agent_proto.h. It never maps or reads them.
 *
 *	client.c	connections: accepting, receiving, who may have how many
 *	serve.c		requests about one store: the holder's protocol
 *	operate.c	requests about stores: list, drop, mode
 *	job.c		prepare, cancel, finish: the barrier, and worker processes
 *	luo.c		the list of prepared stores that the next kernel's agent finds
 *	store.c		stores and what they keep; quotas
 *	verify.c	which descriptors are fit to be kept; closing those that are not
 *	state.c		everything kept, carried across an exec
 *	notify.c	systemd: its descriptor store, its sockets, the barrier before the end
 *	guard.c		the same without systemd: a process that starts the agent again
 *	listen.c	the socket, without systemd, and signals
 *	config.c	options and the configuration file
 *	agent.c		all of it, empty
 *	main.c		start, signals, end
 *
 * One thread runs all of it and blocks in poll only; other threads do nothing but close
 *descriptors. Functions return 0 or a negative errno.
 */
#ifndef PRESERVED_H
#define PRESERVED_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent_proto.h"

#define CLIENTS_MAX   1024u
#define QUOTAS_MAX    256u
#define WORKERS_MAX   2u /* at a time; each has the device open for a moment */
#define MODE_DEFAULT  0600u
#define BARRIER_MS    30000u /* if who asks does not say */
#define TICK_MS	      50     /* while somebody is waited for */
#define STATE_VERSION 1u     /* of what a restart carries over, state.c */

struct kept {
	uint64_t token;
	uint64_t bytes; /* 0 for a session */
	int fd;
};

struct client;

/** What somebody waits for; op 0: nothing. */
struct job {
	uint16_t op;	      /* AGENT_PREPARE, AGENT_CANCEL, AGENT_FINISH */
	struct client *asker; /* gets the reply; NULL: went away */
	struct client *owner; /* has the store open and does its part; gets a reply too */
	int64_t deadline_ms;  /* for the owner to do it */
	pid_t worker;	      /* 0: it is the owner that is waited for, or */
	bool queued;	      /* one of WORKERS_MAX to be free */
};

struct store {
	char name[HOLDER_NAME_MAX];
	uint32_t uid;
	uint32_t gid;
	uint32_t mode;
	uint64_t id;	   /* tells this store from any other that ever had its name */
	uint64_t changes;  /* of what is kept */
	struct kept *kept; /* ascending by token */
	unsigned int n;
	unsigned int room;
	uint64_t bytes;
	bool claimed;	    /* its owner has fetched it, or it was made here */
	int64_t arrived_ms; /* when it came, if nobody has claimed it */
	struct job job;
};

enum access { ACCESS_NONE, ACCESS_READ, ACCESS_FULL };

struct client {
	int fd;
	uint32_t uid;
	uint32_t gid;
	int64_t heard_ms;
	/* AGENT_OPEN: */
	enum access access;
	bool internal;
	uint32_t store_uid;
	char store[HOLDER_NAME_MAX];
	struct store *waits; /* for the end of its job; no other request is read until then */
};

struct quota {
	uint64_t stores;
	uint64_t descriptors;
	uint64_t bytes; /* 0: no limit */
	uint64_t connections;
};

struct config {
	const char *socket;
	int64_t claim_ms; /* 0: never */
	bool force;
	struct quota quota;
	struct {
		uint32_t uid;
		struct quota quota;
	} users[QUOTAS_MAX];
	unsigned int nusers;
};

struct agent {
	struct config config;
	struct store **stores; /* by uid and name */
	unsigned int nstores;
	unsigned int room;
	unsigned int nkept;  /* descriptors of all stores */
	uint64_t name_bytes; /* of their names in systemd's store */
	struct client *clients[CLIENTS_MAX];
	unsigned int nclients;
	unsigned int clients_max;
	uint64_t files_max;
	uint64_t id; /* stands for stores that do not exist */
	int listener;
	int signals;	  /* signalfd; -1: none */
	int lock;	  /* on SOCKET.lock, or -1: the socket was passed in */
	int list_session;      /* luo.c, or -1 */
	int list_memfd;
	bool stop;
	bool restart;
	char program[4096]; /* what is executed for a restart and for workers */
	char **argv;
};

/* ---- log.c ---- */
/** level: 3 error, 4 warning, 5 notice, 6 info, as syslog(3) has them. */
__attribute__((format(printf, 2, 3))) void log_line(int level, const char *format, ...);
#define log_error(...)	 log_line(3, __VA_ARGS__)
#define log_warning(...) log_line(4, __VA_ARGS__)
#define log_notice(...)	 log_line(5, __VA_ARGS__)
#define log_info(...)	 log_line(6, __VA_ARGS__)
int64_t now_ms(void);
uint64_t random_id(void);

/* ---- config.c ---- */
void config_init(struct config *c);
/** One setting, of an option or a line of the file. Says what is wrong with it. */
int config_set(struct config *c, const char *key, const char *value);
int config_read(struct config *c, const char *path);
const struct quota *config_quota(const struct config *c, uint32_t uid);

/* ---- store.c ---- */
bool store_name_valid(const char name[HOLDER_NAME_MAX]);
bool store_mode_valid(uint32_t mode);
struct store *store_find(const struct agent *a, uint32_t uid, const char *name);
/** Place of the first store behind (uid, name) or, with `at`, at it. */
unsigned int store_place(const struct agent *a, uint32_t uid, const char *name, bool at);
/** A new one, which keeps nothing. NULL: no memory. */
struct store *store_new(struct agent *a, uint32_t uid, uint32_t gid, const char *name);
/** Close everything; the store is no more. */
void store_remove(struct agent *a, struct store *s);
const struct kept *store_kept(const struct store *s, uint64_t token);
/** Keep fd, which is taken over if this returns 0. Nothing is checked but that there is room. */
int store_keep(struct agent *a, struct store *s, uint64_t token, int fd, uint64_t bytes);
void store_drop(struct agent *a, struct store *s, uint64_t token);
/** May this user keep so much more? -EDQUOT, -EMFILE. */
int store_quota(const struct agent *a, uint32_t uid, unsigned int stores, unsigned int descriptors,
		uint64_t bytes);
/** 1: a process has it open for writing; 0: none; negative: it cannot be told. */
int store_open(const struct store *s);
enum access store_access(const struct agent *a, uint32_t uid, uint32_t gid, uint32_t owner,
			 const struct store *s);
/** Drop what nobody has claimed in time. */
void store_expire(struct agent *a);

/* ---- verify.c ---- */
/** Is this fit to be kept under the token? pages: announced size or 0. */
int verify(uint64_t token, int fd, uint32_t pages, uint64_t *bytes);
/** Close without waiting for it: of a file that is not ours that may take for ever. */
void close_later(int fd);
/** Open for reading what fd is open for writing. */
int reopen(int fd);

/* ---- client.c ---- */
/** Add a connection of this user; fd is taken over. */
struct client *client_add(struct agent *a, int fd, uint32_t uid, uint32_t gid);
void client_remove(struct agent *a, unsigned int i);
/** False: the client does not take it, or is gone. fd may be -1. */
bool client_send(const struct client *c, const void *message, size_t bytes, int fd);
/** One round: wait for something to happen, for at most timeout_ms, and do it. */
void client_round(struct agent *a, int timeout_ms);

/* ---- serve.c, operate.c ---- */
/** Carry out a request of the holder's protocol. *fd becomes -1 if it is kept. False: end the
 *  connection. */
bool serve(struct agent *a, struct client *c, const struct holder_msg *m, int *fd, bool cut);
/** The same for those of the agent's. */
bool operate(struct agent *a, struct client *c, struct agent_msg *m);
bool answer(const struct client *c, struct agent_msg *m, int status);

/* ---- job.c ---- */
/** Begin. 0: it is done; 1: the client waits for it; else why it cannot be done. */
int job_begin(struct agent *a, struct client *c, struct store *s, const struct agent_msg *m);
/** Is something under way that the store may not be dropped from under? */
bool job_runs(const struct store *s);
/** Reply to those who wait. */
void job_end(struct agent *a, struct store *s, int status);
/** A client is gone. */
void job_forget(struct agent *a, const struct client *c);
/** Whose time is up, who is ready, which workers have ended. True: somebody is waited for. */
bool job_tick(struct agent *a);
/** The main function of a worker process: `what` is prepare or finish. */
int job_worker(const char *what, const char *socket, uint32_t uid, const char *name);

/* ---- luo.c ---- */
/** See that there is a list to write to: to be asked before a store counts as prepared. */
int list_ready(struct agent *a);
void list_close(struct agent *a);
/** Write down which stores are prepared, for the next kernel's agent. */
void list_update(struct agent *a);
/** After a kexec: have the sessions of all stores that were prepared. */
void list_adopt(struct agent *a);

/* ---- state.c ---- */
/** Execute the program anew with everything kept. Returns only if that fails. */
int state_restart(struct agent *a);
/** Take over what a predecessor has left in this process. 0: none has. 1: done. */
int state_resume(struct agent *a, const char *text);

/* ---- notify.c ---- */
/** Take systemd's address from the environment. */
void notify_init(void);
bool notify_there(void);
/** From now on: do not tell systemd what is kept, it has it. */
void notify_quiet(bool yes);
void notify_say(const char *text);
void notify_store(const struct store *s, const struct kept *k);
void notify_remove(const struct store *s, uint64_t token);
/** How long the name is there. */
unsigned int notify_name_bytes(const struct store *s, uint64_t token);
/** May so many more be kept, so that they can all be passed in again? A name is not known yet. */
bool notify_room(const struct agent *a, unsigned int descriptors);
/** The list of prepared stores is there, or no longer. */
void notify_list(const struct agent *a, bool there);
/** Wait until systemd has seen all of the above. */
int notify_barrier(void);
/** Sockets and descriptors that systemd passes in. */
int notify_receive(struct agent *a);

/* ---- guard.c ---- */
#define GUARD_ENV "PRESERVED_GUARDED" /* set: the agent has a guard */
/** Start the agent, again and again, until it ends by itself; the exit status. */
int guard_run(const struct config *c, const char *program, char **argv);

/* ---- agent.c ---- */
/** Do not be killed for want of memory, nor looked into: what we have is that of all users. */
void process_protect(void);

/* ---- listen.c ---- */
/** The socket, in a directory that is made if need be, and a lock beside it, for there is one agent. */
int listen_at(const struct config *c, int *lock);
/** SIGHUP, SIGTERM, SIGINT and SIGCHLD by a descriptor. */
int signals_take(void);

/** For tests as well: everything but options, signals and the socket. */
int agent_init(struct agent *a);
void agent_free(struct agent *a);

#endif
