/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl: what its commands share. It uses the public headers of the library and nothing else.
 *
 * A command is a function of its own words (argv[0] is "preservectl NAME"), which returns an exit
 * status of enum ctl_exit. Results go to standard output, as a table or, with --json, as one JSON
 * value; everything else goes to standard error.
 */
#ifndef CTL_H
#define CTL_H

#include <argp.h>
#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include <preserve/agent.h>
#include <preserve/preserve.h>
#include <preserve/stores.h>

/** Exit statuses; man/preservectl.1 lists them. */
enum ctl_exit {
	CTL_OK = 0,
	CTL_FAILED = 1,	  /* something else went wrong */
	CTL_USAGE = 2,	  /* wrong command line */
	CTL_NO_STORE = 3, /* there is no store of this name */
	CTL_IN_USE = 4,	  /* a process has it open, or it exists already */
	CTL_UNSOUND = 5,  /* the store or the file is damaged, or check found problems */
	CTL_UNABLE = 6,	  /* this machine or this user cannot do it */
	CTL_WARN = 7,	  /* doctor: warnings only */
};

/** Options that every command takes. */
struct ctl_options {
	char *runtime_dir; /* NULL: the default */
	char *user;	   /* NULL: who we are */
	bool json;
};

extern struct ctl_options ctl;
/** A child for the struct argp of every command. */
extern const struct argp_child ctl_children[];
extern const char ctl_name[]; /* "preservectl" */

int ctl_agent(int argc, char **argv);
int ctl_list(int argc, char **argv);
int ctl_show(int argc, char **argv);
int ctl_dump(int argc, char **argv);
int ctl_check(int argc, char **argv);
int ctl_repair(int argc, char **argv);
int ctl_compact(int argc, char **argv);
int ctl_drop(int argc, char **argv);
int ctl_save(int argc, char **argv);
int ctl_restore(int argc, char **argv);
int ctl_prepare(int argc, char **argv);
int ctl_cancel(int argc, char **argv);
int ctl_finish(int argc, char **argv);
int ctl_doctor(int argc, char **argv);
int ctl_top(int argc, char **argv);

/* ---- main.c ---- */

/** Parse a command's words; --user is done when this returns. Ends the process on errors. */
void ctl_parse(const struct argp *argp, int argc, char **argv, void *input);
/** For parsers of commands about one store: takes its name, and asks for it; anything else is not known. */
error_t ctl_one_store(int key, char *arg, struct argp_state *state, const char **name);
/** The argument of --threads. */
uint32_t ctl_threads(struct argp_state *state, const char *arg);
/** Print "preservectl: ..." to standard error. */
__attribute__((format(printf, 1, 2))) void ctl_say(const char *format, ...);
/** The same, and return CTL_FAILED. */
__attribute__((format(printf, 1, 2))) int ctl_fail(const char *format, ...);
/** Say why a call of the library failed, and to whom to turn; the exit status for this error. */
int ctl_library_fail(int err, const char *store);
/** Options of pv_open() that follow from the command line. */
struct pv_options ctl_open_options(uint32_t flags, enum pv_handover handover);
/** Open for looking. */
int ctl_open_readonly(const char *name, struct pv_store **store);

/* ---- stores.c: the stores of a command ---- */

/** Stores of one runtime directory. */
struct ctl_place {
	struct pv_stores *list;
	char owner[64]; /* name of the user whose directory it is, or his number */
	uint32_t uid;
};

struct ctl_places {
	struct ctl_place *v;
	unsigned int n;
};

/** All runtime directories: those of every user for root, else our own; or the one of -r. */
int ctl_places_get(struct ctl_places *out);
void ctl_places_free(struct ctl_places *places);

/** A store of ours, and who keeps it. */
struct ctl_store {
	struct pv_stores_entry entry;
	struct pv_stores *list;	     /* what the entry is from; NULL: the agent keeps it, and then of */
	struct pv_agent_entry agent; /* the entry's figures only descriptors and bytes are known */
};

/** The store of this name in our own runtime directory, or at the agent. CTL_OK: ctl_store_free() it;
 *  CTL_NO_STORE and others with a message. */
int ctl_store_find(const char *name, struct ctl_store *out);
void ctl_store_free(struct ctl_store *s);
/** What the agent says of a store, in the words of the others. Points into *e. */
struct pv_stores_entry ctl_agent_entry(const struct pv_agent_entry *e);
/** One word: serving, idle, prepared, incoming, ... */
const char *ctl_state_word(const struct pv_stores_entry *e);

/* ---- procs.c: who has a store open ---- */

struct ctl_process {
	int32_t pid;
	bool writer;
	char command[64];
};

struct ctl_processes {
	struct ctl_process *v;
	unsigned int n;
};

/** Processes, the holder excepted, with a descriptor of the store's index. What may not be looked at
 *  (other users') is not found. Owned by the caller: free(out->v). */
int ctl_processes_find(const struct pv_stores_entry *e, struct ctl_processes *out);

/* ---- units.c: what systemd keeps ---- */

struct ctl_unit_store {
	char name[64];
	char unit[256];
	unsigned int descriptors;
	struct pv_stores_entry index; /* device and inode only, for ctl_processes_find() */
};

struct ctl_unit_stores {
	struct ctl_unit_store *v;
	unsigned int n;
};

/** Stores in the file descriptor stores of systemd's services, if we are root and look at all stores.
 *  None where systemd does not say. free(all->v). */
void ctl_units_find(struct ctl_unit_stores *all);

/* ---- out.c: tables and JSON ---- */

/** A table that is as wide as its cells. Columns whose heading begins with '>' are set right. */
struct ctl_table;
struct ctl_table *ctl_table_new(const char *const headings[]);
/** Next cell; rows fill from left to right. */
__attribute__((format(printf, 2, 3))) void ctl_cell(struct ctl_table *t, const char *format, ...);
void ctl_cell_bytes(struct ctl_table *t, uint64_t bytes);
/** Print and free. */
void ctl_table_print(struct ctl_table *t);
/** 1.5 MiB; into the buffer, which is returned. */
const char *ctl_bytes(char buf[16], uint64_t bytes);
/** Print one JSON value and give it up. An exit status. */
int ctl_json_print(json_t *value);
/** A user's name, or his number; in the buffer, or until the next call. */
const char *ctl_user_name(char buf[16], uint32_t uid);
/** 16 bytes as text. */
const char *ctl_uuid(char buf[37], const uint8_t uuid[16]);

/* ---- tree.c: the index as a device tree ---- */

/** Print it as source text, as dtc does. 0 or a negative errno. */
int ctl_tree_print(const void *fdt);
/** Properties by name: 0 or "" if they are not there. */
uint64_t ctl_tree_number(const void *fdt, int node, const char *property);
const char *ctl_tree_string(const void *fdt, int node, const char *property);

#endif
