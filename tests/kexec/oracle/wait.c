/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * wait: until a server answers. start: start one, and the same. The answer that counts is that to
 * the GET of a key that the log says must be there, or, without a log, to PING. An error is no
 * answer: it may say that the data are being loaded. A wrong value is one: the server would not
 * correct it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "oracle.h"

extern char **environ;

struct waiter {
	const struct options *o;
	struct history history;
	uint32_t key;
	char key_text[KEY_BYTES + 1];
	bool good; /* the key was as it must be */
};

static bool is_expected(void *ctx, const struct reply *r)
{
	struct waiter *w = ctx;

	if (!w->o->log)
		return r->type == REPLY_STATUS;
	if (r->type != REPLY_BULK)
		return false;
	w->good = history_judge(&w->history, w->key, r->text, r->bytes, NULL) == VERDICT_GOOD;
	return true;
}

/* A key that must be there. */
static void choose_key(struct waiter *w)
{
	const struct history *h = &w->history;

	for (uint64_t i = 0; i < h->nkeys; i++) {
		const struct key_state *k = &h->keys[i];

		if (k->known && k->last_del < k->known && h->ops[k->known].kind == OP_SET) {
			w->key = (uint32_t)i;
			key_make(w->key_text, w->key);
			return;
		}
	}
	fail("%s has no key that must be there", h->path);
}

/* Reads the log: it must be done before the clock runs. */
static void prepare(struct waiter *w, const struct options *o)
{
	need_server(o);
	*w = (struct waiter){.o = o};
	if (o->log) {
		history_open(&w->history, o->log, false);
		choose_key(w);
	}
}

static bool wait_for_answer(struct waiter *w, char *why, size_t bytes)
{
	const char *ping[] = {"PING"}, *get[] = {"GET", w->key_text};
	const struct options *o = w->o;
	struct link l = {.fd = -1};
	uint64_t deadline = now_ns() + (uint64_t)(o->timeout_s * 1e9);
	bool good = link_await(&l, o, deadline, o->log ? 2 : 1, o->log ? get : ping, is_expected, w,
			       why, bytes);

	link_free(&l);
	return good;
}

static void finish(struct waiter *w, uint64_t start_ns)
{
	uint64_t now = now_ns();
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	printf("usec %" PRIu64 "\nunix-time %lld.%06ld\n", (now - start_ns) / 1000,
	       (long long)t.tv_sec, t.tv_nsec / 1000);
	if (w->o->log) {
		printf("key %s\n", w->good ? "good" : "wrong");
		history_close(&w->history);
	}
}

int run_wait(const struct options *o)
{
	struct waiter w;
	char why[160] = "";
	uint64_t start;

	prepare(&w, o);
	start = now_ns();
	if (!wait_for_answer(&w, why, sizeof(why)))
		fail("no server: %s", why);
	finish(&w, start);
	return EXIT_GOOD;
}

/* ---- start ---- */

static void prepare_files(const struct options *o, posix_spawn_file_actions_t *files)
{
	posix_spawn_file_actions_init(files);
	posix_spawn_file_actions_addopen(files, 0, "/dev/null", O_RDONLY, 0);
	if (o->output)
		posix_spawn_file_actions_addopen(files, 1, o->output, O_WRONLY | O_CREAT | O_APPEND,
						 0666);
	else
		posix_spawn_file_actions_adddup2(files, 2, 1);
	if (o->output)
		posix_spawn_file_actions_adddup2(files, 1, 2);
}

/* A terminal's Ctrl-C is not for the server, and signals have their usual meaning in it. */
static void prepare_attributes(posix_spawnattr_t *attributes)
{
	sigset_t all, none;

	posix_spawnattr_init(attributes);
	sigfillset(&all);
	sigemptyset(&none);
	posix_spawnattr_setsigdefault(attributes, &all);
	posix_spawnattr_setsigmask(attributes, &none);
	posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF |
						     POSIX_SPAWN_SETSIGMASK);
}

static _Noreturn void no_answer(const struct options *o, pid_t pid, const char *why)
{
	int status;

	if (waitpid(pid, &status, WNOHANG) == pid)
		fail("the server ended with %s %d before it answered%s%s",
		     WIFEXITED(status) ? "status" : "signal",
		     WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status),
		     o->output ? ", see " : "", o->output ? o->output : "");
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	fail("the server does not answer and was killed: %s", why);
}

int run_start(const struct options *o, char **command)
{
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attributes;
	struct waiter w;
	char why[160] = "";
	uint64_t start;
	pid_t pid;
	int rc;

	if (!command[0])
		usage_error("start: which command?");
	prepare(&w, o);
	prepare_files(o, &files);
	prepare_attributes(&attributes);
	start = now_ns();
	rc = posix_spawnp(&pid, command[0], &files, &attributes, command, environ);
	if (rc)
		fail("cannot start %s: %s", command[0], strerror(rc));
	if (!wait_for_answer(&w, why, sizeof(why)))
		no_answer(o, pid, why);
	printf("pid %d\n", (int)pid);
	finish(&w, start);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&attributes);
	return EXIT_GOOD;
}
