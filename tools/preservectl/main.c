/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * preservectl: looks at stores and sees to them. This file has the choice of a command, the options
 * that all of them take, and what becomes of errors.
 */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ctl.h"

const char ctl_name[] = "preservectl";
struct ctl_options ctl;

static const struct command {
	const char *name;
	const char *summary;
	int (*run)(int argc, char **argv);
} commands[] = {
	{"agent", "list and see to the stores that the agent keeps", ctl_agent},
	{"list", "list stores: owner, state, size, who has them open", ctl_list},
	{"show", "show a store: types, objects, bytes, segments, fragmentation", ctl_show},
	{"dump", "print a store's index or its roots", ctl_dump},
	{"check", "check a store; changes nothing", ctl_check},
	{"repair", "mend what can be mended without a guess", ctl_repair},
	{"compact", "move the objects of a store together", ctl_compact},
	{"prepare", "have stores kept across the next kexec", ctl_prepare},
	{"cancel", "undo prepare", ctl_cancel},
	{"finish", "take over stores that came through a kexec", ctl_finish},
	{"drop", "drop a store for good", ctl_drop},
	{"save", "save a store into an image file", ctl_save},
	{"restore", "restore a store from an image file", ctl_restore},
	{"doctor", "look whether this machine is fit for it", ctl_doctor},
	{"top", "live view of all stores", ctl_top},
};

/* ---- messages ---- */

static void say(const char *format, va_list args)
{
	fflush(stdout);
	fprintf(stderr, "%s: ", ctl_name);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
}

void ctl_say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(format, args);
	va_end(args);
}

int ctl_fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say(format, args);
	va_end(args);
	return CTL_FAILED;
}

static int status_of(int err)
{
	switch (err) {
	case -ENOENT:
		return CTL_NO_STORE;
	case -EBUSY:
	case -EEXIST:
		return CTL_IN_USE;
	case -EBADMSG:
	case -ENXIO:
	case -EPROTONOSUPPORT:
		return CTL_UNSOUND;
	case -ENODEV:
	case -EACCES:
	case -EPERM:
	case -EOPNOTSUPP:
		return CTL_UNABLE;
	default:
		return CTL_FAILED;
	}
}

/* Whoever has it open: what is his name? The library knows the number. */
static void name_users(const char *store)
{
	const struct pv_stores_entry *e;
	struct ctl_processes users = {0};
	struct pv_stores *list;

	if (pv_stores_list(ctl.runtime_dir, &list))
		return;
	for (uint32_t i = 0; i < list->n; i++) {
		e = &list->stores[i];
		if (strcmp(e->name, store) != 0 || !e->open || ctl_processes_find(e, &users))
			continue;
		for (unsigned int k = 0; k < users.n; k++)
			if (users.v[k].writer)
				ctl_say("process %d is %s: stop it, or ask it itself, and try again",
					users.v[k].pid, users.v[k].command);
		free(users.v);
	}
	pv_stores_free(list);
}

int ctl_library_fail(int err, const char *store)
{
	ctl_say("%s", pv_last_error());
	if ((err == -EBUSY || err == -EEXIST) && store)
		name_users(store);
	if (err == -EINVAL && store && strchr(store, '/'))
		ctl_say("stores have names; of a file with a saved one, restore --verify says whether it is "
			"sound, and restore makes it a store again");
	return status_of(err);
}

/* ---- opening ---- */

struct pv_options ctl_open_options(uint32_t flags, enum pv_handover handover)
{
	return (struct pv_options){
		.size = sizeof(struct pv_options),
		.flags = flags,
		.handover = handover,
		.runtime_dir = ctl.runtime_dir,
		/* A tool that happens to have the addresses must not move a store for good. */
		.relocate = flags & PV_RDONLY ? PV_RELOCATE_AUTO : PV_RELOCATE_NEVER,
	};
}

/* A holder's, or the agent's. */
int ctl_open_readonly(const char *name, struct pv_store **store)
{
	struct pv_options holder = ctl_open_options(PV_RDONLY, PV_HANDOVER_HOLDER);
	struct pv_options agent = ctl_open_options(PV_RDONLY, PV_HANDOVER_AGENT);
	int err = pv_open(name, &holder, store);

	if (err != -ENOENT || ctl.runtime_dir)
		return err;
	err = pv_open(name, &agent, store);
	/* Neither: what the holder's directory says. */
	return err == -ECONNREFUSED || err == -ENOENT ? pv_open(name, &holder, store) : err;
}

/* ---- command line ---- */

static const struct argp_option common_options[] = {
	{"runtime-dir", 'r', "DIR", 0, "Directory of the holders' sockets", 10},
	{"user", 'u', "USER", 0, "Act as USER, on his stores (root only)", 10},
	{"json", 'j', NULL, 0, "Print JSON", 10},
	{0},
};

static error_t parse_common(int key, char *arg, struct argp_state *state)
{
	switch (key) {
	case 'r':
		ctl.runtime_dir = arg;
		return 0;
	case 'u':
		ctl.user = arg;
		return 0;
	case 'j':
		ctl.json = true;
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp common_argp = {.options = common_options, .parser = parse_common};
const struct argp_child ctl_children[] = {{&common_argp, 0, "Common options:", 10}, {0}};

/* For good: what follows is done with his rights only. */
static void become(const char *user)
{
	const struct passwd *pw = getpwnam(user);
	char dir[64];
	struct stat st;

	if (!pw) {
		ctl_say("there is no user %s", user);
		exit(CTL_USAGE);
	}
	if (initgroups(pw->pw_name, pw->pw_gid) || setresgid(pw->pw_gid, pw->pw_gid, pw->pw_gid) ||
	    setresuid(pw->pw_uid, pw->pw_uid, pw->pw_uid)) {
		ctl_say("cannot act as user %s: %s", user, strerror(errno));
		exit(CTL_UNABLE);
	}
	snprintf(dir, sizeof(dir), "/run/user/%u", pw->pw_uid);
	if (stat(dir, &st) == 0 && S_ISDIR(st.st_mode))
		setenv("XDG_RUNTIME_DIR", dir, 1);
	else
		unsetenv("XDG_RUNTIME_DIR");
}

void ctl_parse(const struct argp *argp, int argc, char **argv, void *input)
{
	if (argp_parse(argp, argc, argv, 0, NULL, input))
		exit(CTL_USAGE);
	if (ctl.user)
		become(ctl.user);
}

error_t ctl_one_store(int key, char *arg, struct argp_state *state, const char **name)
{
	switch (key) {
	case ARGP_KEY_ARG:
		if (*name)
			argp_error(state, "one store at a time");
		*name = arg;
		return 0;
	case ARGP_KEY_NO_ARGS:
		argp_error(state, "which store?");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

uint32_t ctl_threads(struct argp_state *state, const char *arg)
{
	char *end;
	unsigned long n = strtoul(arg, &end, 10);

	if (*end || n < 1 || n > 64)
		argp_error(state, "%s is not a number of threads from 1 to 64", arg);
	return (uint32_t) n;
}

static void help(FILE *to)
{
	fprintf(to, "Usage: %s COMMAND [OPTION...] [ARGUMENT...]\n\n", ctl_name);
	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].summary);
	fprintf(to,
		"\nOptions of a command: %s COMMAND --help. Everything: man %s.\n"
		"Exit status: 0 done, 1 failed, 2 wrong command line, 3 no such store, 4 in use or there\n"
		"already, 5 damaged, 6 not possible here, 7 warnings (doctor).\n",
		ctl_name, ctl_name);
}

static int run(const struct command *c, int argc, char **argv)
{
	static char name[64];
	int status;

	snprintf(name, sizeof(name), "%s %s", ctl_name, c->name);
	argv[0] = name;
	program_invocation_name = name;
	status = c->run(argc, argv);
	if (fflush(stdout) || ferror(stdout))
		return ctl_fail("cannot write the result: %s", strerror(errno));
	return status;
}

int main(int argc, char **argv)
{
	argp_err_exit_status = CTL_USAGE;
	if (argc < 2) {
		help(stderr);
		return CTL_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
	    strcmp(argv[1], "help") == 0) {
		help(stdout);
		return CTL_OK;
	}
	if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
		printf("%s %s\n", ctl_name, pv_version());
		return CTL_OK;
	}
	for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++)
		if (strcmp(argv[1], commands[i].name) == 0)
			return run(&commands[i], argc - 1, argv + 1);
	ctl_say("there is no command %s; %s --help lists them", argv[1], ctl_name);
	return CTL_USAGE;
}
