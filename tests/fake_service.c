/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fake_service.h"
#include "notify.h"
#include "support.h"

#define OBJECT_BYTES 20000u
#define STORES_MAX   4
#define ARGS_MAX     4

struct service_store {
	char name[64];
	struct pv_store *s;
};

static struct service_store stores[STORES_MAX];

static struct service_store *slot_of(const char *name)
{
	for (int i = 0; i < STORES_MAX; i++) {
		if (!stores[i].name[0])
			snprintf(stores[i].name, sizeof(stores[i].name), "%s", name);
		if (strcmp(stores[i].name, name) == 0)
			return &stores[i];
	}
	return NULL;
}

/* ---- opening ---- */

static int open_as(const char *name, uint32_t flags, struct pv_store **out)
{
	const struct pv_options o = {
		.size = sizeof(o),
		.flags = flags,
		.handover = strcmp(name, "auto") == 0 ? PV_HANDOVER_AUTO : PV_HANDOVER_SYSTEMD,
		.window_bytes = 256u << 20,
		.segment_bytes = 256u << 10,
		.lanes = 2,
	};

	return pv_open(name, &o, out);
}

static bool opened(const char *name, uint32_t flags)
{
	struct service_store *slot = slot_of(name);

	return slot && open_as(name, flags, &slot->s) == 0;
}

static bool refused(char *const args[], uint32_t flags)
{
	static const struct {
		const char *name;
		int number;
	} errnos[] = {{"ENOENT", ENOENT}, {"ENXIO", ENXIO},   {"EBADMSG", EBADMSG},
		      {"ENOSPC", ENOSPC}, {"ENODEV", ENODEV}, {"ETIMEDOUT", ETIMEDOUT},
		      {"EBUSY", EBUSY},   {"EPROTO", EPROTONOSUPPORT}};
	struct pv_store *s;
	int rc = open_as(args[1], flags, &s), want = 0;

	for (size_t i = 0; i < sizeof(errnos) / sizeof(*errnos); i++)
		if (strcmp(errnos[i].name, args[2]) == 0)
			want = errnos[i].number;
	for (char *c = args[3]; *c; c++)
		*c = *c == '_' ? ' ' : *c;
	return rc == -want && strstr(pv_last_error(), args[3]);
}

/* ---- contents: a list that begins at the root, whose value is its length ---- */

static int add_one(struct pv_store *s)
{
	struct word *root = store_root(s), *object;
	int err = pv_reserve(s, store_word_type(s), OBJECT_BYTES, (void **) &object);

	if (err)
		return err;
	object->next = root->next;
	object->value = root->value + 1;
	pattern_fill(object + 1, OBJECT_BYTES - sizeof(*object), object->value);
	return pv_publish(s,
			  (struct pv_action[]){PV_LIVE(object), PV_STORE(&root->next, object),
					       PV_STORE(&root->value, root->value + 1)},
			  3);
}

static bool add(struct pv_store *s, unsigned long n)
{
	while (n-- > 0)
		if (add_one(s))
			return false;
	return true;
}

static bool full(struct pv_store *s)
{
	int err = 0;

	while (!err)
		err = add_one(s);
	return err == -ENOSPC && strstr(pv_last_error(), "FileDescriptorStoreMax=");
}

static bool has(struct pv_store *s, unsigned long n)
{
	struct word *at = store_root(s);

	if (at->value != n)
		return false;
	for (at = at->next; at; at = at->next, n--)
		if (at->value != n ||
		    !pattern_holds(at + 1, OBJECT_BYTES - sizeof(*at), at->value))
			return false;
	return n == 0;
}

static bool empty(struct pv_store *s)
{
	struct word *root = store_root(s), *first;

	while ((first = root->next) != NULL) {
		if (pv_publish(s,
			       (struct pv_action[]){PV_STORE(&root->next, first->next),
						    PV_STORE(&root->value, root->value - 1),
						    PV_FREE(first)},
			       3))
			return false;
	}
	return true;
}

/* ---- steps ---- */

static bool kind(struct pv_store *s, char *const args[])
{
	struct pv_info i = store_info(s);

	return i.handover == (uint32_t) atoi(args[2]) && i.warnings == (uint32_t) atoi(args[3]) &&
	       !i.from_kexec;
}

static bool tell(const char *text)
{
	struct pvi_notify n;

	pvi_notify_init(&n);
	return pvi_notify_send(&n, -1, "%s", text) == 0 && pvi_notify_barrier(&n) == 0;
}

/* A descriptor that the library must not have touched is as the manager gave it. */
static bool foreign(unsigned int want)
{
	unsigned int n = 0, passed = (unsigned int) atoi(getenv("LISTEN_FDS"));

	for (int fd = 3; fd < 3 + (int) passed; fd++)
		n += fcntl(fd, F_GETFD) == 0;
	return n == want;
}

static bool stay_behind(void)
{
	char ready = 0;
	int ends[2];
	pid_t pid;

	if (pipe(ends))
		return false;
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (write(ends[1], &ready, 1) == 1)
			pause();
		_exit(0);
	}
	return pid > 0 && read(ends[0], &ready, 1) == 1;
}

static bool of_process(const char *what, char *const args[])
{
	if (strcmp(what, "send") == 0)
		return tell(args[1]);
	if (strcmp(what, "foreign") == 0)
		return foreign((unsigned int) atoi(args[1]));
	if (strcmp(what, "fork") == 0)
		return stay_behind();
	if (strcmp(what, "patience") == 0)
		pvi_notify_patience(atoi(args[1]));
	else
		return strcmp(what, "kill") == 0 && raise(SIGKILL) == 0;
	return true;
}

static bool of_store(const char *what, struct pv_store **at, char *const args[])
{
	struct pv_store *s = *at;
	unsigned long n = strtoul(args[2], NULL, 10);
	int rc;

	if (strcmp(what, "add") == 0)
		return add(s, n);
	if (strcmp(what, "full") == 0)
		return full(s);
	if (strcmp(what, "has") == 0)
		return has(s, n);
	if (strcmp(what, "empty") == 0)
		return empty(s);
	if (strcmp(what, "segments") == 0)
		return store_info(s).segments == n;
	if (strcmp(what, "grown") == 0)
		return store_info(s).segments >= n;
	if (strcmp(what, "kind") == 0)
		return kind(s, args);
	if (strcmp(what, "trim") == 0)
		rc = pv_trim(s, NULL);
	else if (strcmp(what, "check") == 0)
		return pv_handover_check(s) == atoi(args[2]);
	else if (strcmp(what, "prepare") == 0)
		return pv_handover_prepare(s) == atoi(args[2]) &&
		       (atoi(args[2]) || store_info(s).state == PV_STATE_PREPARED);
	else if (strcmp(what, "destroy") == 0)
		rc = pv_destroy(s);
	else if (strcmp(what, "close") == 0)
		rc = pv_close(s);
	else
		return false;
	return rc == 0;
}

static bool step(char *const args[])
{
	const char *what = args[0];
	struct service_store *slot;

	if (strcmp(what, "create") == 0)
		return opened(args[1], PV_CREATE | PV_EXCL);
	if (strcmp(what, "open") == 0)
		return opened(args[1], 0);
	if (strcmp(what, "reset") == 0)
		return opened(args[1], PV_CREATE | PV_RESET);
	if (strcmp(what, "readonly") == 0)
		return opened(args[1], PV_RDONLY);
	if (strcmp(what, "refuse") == 0)
		return refused(args, 0);
	if (strcmp(what, "uncreated") == 0)
		return refused(args, PV_CREATE);
	for (slot = stores; slot < stores + STORES_MAX; slot++)
		if (slot->s && strcmp(slot->name, args[1]) == 0)
			return of_store(what, &slot->s, args);
	return of_process(what, args);
}

int service_run(const char *script)
{
	char *text = strdup(script), *rest = text, *one;

	while ((one = strsep(&rest, ";")) != NULL) {
		static char none[] = "";
		char *args[ARGS_MAX] = {none, none, none, none}, copy[256];
		int n = 0;

		while (*one == ' ')
			one++;
		snprintf(copy, sizeof(copy), "%s", one);
		for (char *word; n < ARGS_MAX && (word = strsep(&one, " ")) != NULL; n++)
			args[n] = word;
		if (!step(args)) {
			fprintf(stderr, "service: \"%s\" of \"%s\": %s\n", copy, script,
				pv_last_error());
			free(text);
			return 1;
		}
	}
	free(text);
	return 0;
}
