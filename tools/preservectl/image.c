/* SPDX-License-Identifier: BSD-3-Clause */
/* preservectl save and restore: a store into an image file, and out of one. "-" is a pipe. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <preserve/image.h>

#include "ctl.h"

struct image {
	char *words[2];
	unsigned int n;
	const char *name; /* restore: another name */
	int32_t level;
	uint32_t threads;
	uint32_t flags; /* PV_RESTORE_* */
};

enum { KEY_NEW_UUID = 256, KEY_VERIFY };

static atomic_int interrupted; /* asked for by other threads, too */

static void on_signal(int sig)
{
	interrupted = sig;
}

/* A signal ends the work in order: no half file stays. */
static void watch_signals(void)
{
	struct sigaction sa = {.sa_handler = on_signal};

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
}

static double seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double) ts.tv_sec + (double) ts.tv_nsec / 1e9;
}

/* ctx: when it was last shown, or NULL for never. */
static int progress(void *ctx, uint64_t done, uint64_t total)
{
	double *shown = ctx, now;

	if (interrupted)
		return -1;
	now = shown ? seconds() : 0;
	if (shown && (now - *shown > 0.2 || done == total)) {
		fprintf(stderr, "\r%5.1f %% of %.0f MiB%s", total ? 100.0 * (double) done / (double) total : 100.0,
			(double) total / 1048576, done == total ? "\n" : "");
		*shown = now;
	}
	return 0;
}

static void *progress_context(void)
{
	static double shown;

	return !ctl.json && isatty(STDERR_FILENO) ? &shown : NULL;
}

/* ---- what was done ---- */

static json_t *report_json(const struct pv_image_report *r, const char *file, double took)
{
	char uuid[37];

	return json_pack("{s:s, s:s, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I}", "name",
			 r->name, "file", file, "uuid", ctl_uuid(uuid, r->uuid), "new_uuid", r->new_uuid,
			 "contents_bytes", (json_int_t) r->contents_bytes, "file_bytes",
			 (json_int_t) r->file_bytes, "store_bytes", (json_int_t) r->store_bytes, "chunks",
			 (json_int_t) r->chunks, "segments", (json_int_t) r->segments, "generation",
			 (json_int_t) r->generation, "saved", (json_int_t) r->saved_s, "seconds", took,
			 "threads", (json_int_t) r->threads);
}

static void report_print(FILE *to, const struct pv_image_report *r, const char *done, double took)
{
	char contents[16], file[16];

	fprintf(to, "%s: %s %s, %s in the file (%.0f %%), %.2f s, %.0f MB/s, %u threads\n", r->name, done,
		ctl_bytes(contents, r->contents_bytes), ctl_bytes(file, r->file_bytes),
		r->contents_bytes ? 100.0 * (double) r->file_bytes / (double) r->contents_bytes : 0.0, took,
		took > 0 ? (double) r->contents_bytes / 1e6 / took : 0.0, r->threads);
}

static error_t parse_number(struct argp_state *state, const char *arg, long least, long most, long *out)
{
	char *end;

	errno = 0;
	*out = strtol(arg, &end, 10);
	if (errno || *end || !*arg || *out < least || *out > most)
		argp_error(state, "%s is not a number from %ld to %ld", arg, least, most);
	return 0;
}

static error_t parse_words(int key, char *arg, struct argp_state *state, unsigned int wanted)
{
	struct image *i = state->input;
	long number = 0;

	switch (key) {
	case 'l':
		parse_number(state, arg, -7, 19, &number);
		i->level = (int32_t) number;
		return 0;
	case 't':
		parse_number(state, arg, 1, 64, &number);
		i->threads = (uint32_t) number;
		return 0;
	case 'n':
		i->name = arg;
		return 0;
	case 'f':
		i->flags |= PV_RESTORE_FORCE;
		return 0;
	case KEY_NEW_UUID:
		i->flags |= PV_RESTORE_NEW_UUID;
		return 0;
	case KEY_VERIFY:
		i->flags |= PV_RESTORE_VERIFY;
		return 0;
	case ARGP_KEY_ARG:
		if (i->n == wanted)
			argp_error(state, "too many words: %s", arg);
		i->words[i->n++] = arg;
		return 0;
	case ARGP_KEY_END:
		if (i->n != wanted)
			argp_error(state, wanted == 2 ? "which store, and which file?" : "which file?");
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

/* ---- save ---- */

static const struct argp_option save_options[] = {
	{"level", 'l', "N", 0, "Level of compression by Zstandard, -7 to 19 (default 1)", 0},
	{"threads", 't', "N", 0, "Threads (default: as many as processors, at most 8)", 0},
	{0},
};

static error_t parse_save(int key, char *arg, struct argp_state *state)
{
	struct image *i = state->input;

	if (key == ARGP_KEY_END && i->n == 2 && strcmp(i->words[1], "-") == 0 && isatty(STDOUT_FILENO))
		argp_error(state, "an image is no text: redirect it");
	return parse_words(key, arg, state, 2);
}

static int save(const struct image *i, struct pv_store *store, struct pv_image_report *report)
{
	struct pv_save_options o = {
		.size = sizeof(o),
		.level = i->level,
		.threads = i->threads,
		.progress = progress,
		.ctx = progress_context(),
	};

	return strcmp(i->words[1], "-") == 0 ? pv_save(store, STDOUT_FILENO, &o, report)
					     : pv_save_file(store, i->words[1], &o, report);
}

/* A file that cannot be written is no store that is not there. */
static int file_fail(int err)
{
	return err == -ENOENT || err == -EACCES || err == -EPERM ? ctl_fail("%s", pv_last_error())
								  : ctl_library_fail(err, NULL);
}

int ctl_save(int argc, char **argv)
{
	static const struct argp argp = {
		.options = save_options,
		.parser = parse_save,
		.args_doc = "STORE FILE",
		.doc = "Save a store that no process has open into an image file; - is standard output.",
		.children = ctl_children,
	};
	struct pv_options open_options;
	struct pv_image_report report;
	struct pv_store *store;
	struct image i = {0};
	double begun, took;
	int err;

	ctl_parse(&argp, argc, argv, &i);
	watch_signals();
	open_options = ctl_open_options(0, PV_HANDOVER_AUTO);
	err = pv_open(i.words[0], &open_options, &store);
	if (err)
		return ctl_library_fail(err, i.words[0]);
	begun = seconds();
	err = save(&i, store, &report);
	took = seconds() - begun;
	if (err)
		err = file_fail(err);
	pv_close(store);
	if (err)
		return err;
	if (strcmp(i.words[1], "-") == 0)
		report_print(stderr, &report, "saved", took);
	else if (ctl.json)
		return ctl_json_print(report_json(&report, i.words[1], took));
	else
		report_print(stdout, &report, "saved", took);
	return CTL_OK;
}

/* ---- restore ---- */

static const struct argp_option restore_options[] = {
	{"name", 'n', "STORE", 0, "Name it so (default: the name it had)", 0},
	{"force", 'f', NULL, 0, "Drop the store that has this name", 0},
	{"new-uuid", KEY_NEW_UUID, NULL, 0, "Make it a store of its own", 0},
	{"verify", KEY_VERIFY, NULL, 0, "Read and check everything, keep nothing", 0},
	{"threads", 't', "N", 0, "Threads (default: as many as processors, at most 8)", 0},
	{0},
};

static error_t parse_restore(int key, char *arg, struct argp_state *state)
{
	return parse_words(key, arg, state, 1);
}

static int restore_fail(int err, const char *name)
{
	int status = ctl_library_fail(err, name);

	if (err == -EEXIST)
		ctl_say("--force drops it, --name gives the restored one another name");
	return status;
}

int ctl_restore(int argc, char **argv)
{
	static const struct argp argp = {
		.options = restore_options,
		.parser = parse_restore,
		.args_doc = "FILE",
		.doc = "Restore a store from an image file; - is standard input.",
		.children = ctl_children,
	};
	struct pv_restore_options how = {.size = sizeof(how), .progress = progress};
	struct pv_options open_options;
	struct pv_image_report report;
	struct image i = {0};
	bool verify;
	double begun;
	int err, fd;

	ctl_parse(&argp, argc, argv, &i);
	watch_signals();
	how.flags = i.flags;
	how.threads = i.threads;
	how.ctx = progress_context();
	verify = i.flags & PV_RESTORE_VERIFY;
	fd = strcmp(i.words[0], "-") == 0 ? STDIN_FILENO : open(i.words[0], O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return ctl_fail("cannot read %s: %s", i.words[0], strerror(errno));
	open_options = ctl_open_options(0, PV_HANDOVER_AUTO);
	begun = seconds();
	err = pv_restore(i.name, &open_options, fd, &how, &report);
	if (err)
		return restore_fail(err, i.name);
	if (ctl.json)
		return ctl_json_print(report_json(&report, i.words[0], seconds() - begun));
	report_print(stdout, &report, verify ? "verified" : "restored", seconds() - begun);
	if (report.new_uuid && !verify)
		printf("%s: a store of its own, with a new UUID\n", report.name);
	return CTL_OK;
}
