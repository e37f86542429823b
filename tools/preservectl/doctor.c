/* SPDX-License-Identifier: BSD-3-Clause */
/* preservectl doctor: is this machine fit to keep stores, and what can be done about it? See doctor.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <preserve/agent.h>

#include "doctor.h"

#define AGENT_SOCKET "/run/preserved/socket"

static const char *const level_words[] = {"ok", "warn", "fail"};

/* ---- for the parts ---- */

void doctor_add(struct doctor *d, enum doctor_level level, const char *name, const char *advice,
		const char *format, ...)
{
	struct doctor_finding *grown = realloc(d->v, (d->n + 1) * sizeof(*grown));
	va_list args;

	if (!grown)
		exit(ctl_fail("no memory"));
	d->v = grown;
	grown += d->n++;
	*grown = (struct doctor_finding){.name = name, .level = level};
	va_start(args, format);
	if (vasprintf(&grown->text, format, args) < 0)
		grown->text = NULL;
	va_end(args);
	grown->advice = strdup(advice && level != DOCTOR_OK ? advice : "");
	if (!grown->text || !grown->advice)
		exit(ctl_fail("no memory"));
}

enum doctor_level doctor_kexec_level(const struct doctor *d)
{
	return d->kexec ? DOCTOR_FAIL : DOCTOR_WARN;
}

const char *doctor_path(const struct doctor *d, char path[4096], const char *file)
{
	snprintf(path, 4096, "%s%s", d->root ? d->root : "", file);
	return path;
}

bool doctor_read(const struct doctor *d, const char *file, char text[DOCTOR_TEXT])
{
	char path[4096];
	size_t n = 0;
	ssize_t got;
	int fd = open(doctor_path(d, path, file), O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	while (n < DOCTOR_TEXT - 1 && (got = read(fd, text + n, DOCTOR_TEXT - 1 - n)) > 0)
		n += (size_t) got;
	close(fd);
	text[n] = 0;
	return n > 0;
}

uint64_t doctor_number(const struct doctor *d, const char *file, uint64_t missing)
{
	char text[DOCTOR_TEXT], *end;
	uint64_t value;

	if (!doctor_read(d, file, text))
		return missing;
	value = strtoull(text, &end, 0);
	return end != text ? value : strncmp(text, "max", 3) == 0 ? UINT64_MAX : missing;
}

bool doctor_word(const char *text, const char *word)
{
	size_t n = strlen(word);

	for (const char *at = text; (at = strstr(at, word)) != NULL; at++)
		if ((at == text || strchr(" \t\n", at[-1])) && (!at[n] || strchr(" \t\n", at[n])))
			return true;
	return false;
}

uint64_t doctor_largest(const struct doctor *d, const char **name)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; d->stores && i < d->stores->n; i++) {
		if (d->stores->stores[i].bytes <= bytes)
			continue;
		bytes = d->stores->stores[i].bytes;
		*name = d->stores->stores[i].name;
	}
	return bytes;
}

/* ---- what was found ---- */

static enum doctor_level worst(const struct doctor *d)
{
	enum doctor_level level = DOCTOR_OK;

	for (unsigned int i = 0; i < d->n; i++)
		if (d->v[i].level > level)
			level = d->v[i].level;
	return level;
}

static json_t *as_json(const struct doctor *d)
{
	json_t *array = json_array();

	for (unsigned int i = 0; i < d->n; i++)
		json_array_append_new(array, json_pack("{s:s, s:s, s:s, s:s}", "name", d->v[i].name,
						       "level", level_words[d->v[i].level], "text",
						       d->v[i].text, "advice", d->v[i].advice));
	return json_pack("{s:s, s:o}", "worst", level_words[worst(d)], "findings", array);
}

static void print(const struct doctor *d)
{
	for (unsigned int i = 0; i < d->n; i++) {
		printf("%-4s  %-13s  %s\n", level_words[d->v[i].level], d->v[i].name, d->v[i].text);
		if (d->v[i].advice[0])
			printf("%21s-> %s\n", "", d->v[i].advice);
	}
}

/* ---- the agent ---- */

/** Where there is one, programs rely on it. */
static void doctor_agent(struct doctor *d)
{
	const char *path = getenv("PRESERVE_AGENT");
	struct pv_agent_entry *list;
	uint32_t n, unclaimed = 0;

	if (!path && (d->root || access(AGENT_SOCKET, F_OK) != 0))
		return;
	if (pv_agent_list(path, &list, &n)) {
		doctor_add(d, DOCTOR_FAIL, "agent",
			   "start it: systemctl start preserved.service, or preserved --guard; until then "
			   "stores cannot be opened, for it cannot be told what is kept",
			   "%s", pv_last_error());
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		unclaimed += !list[i].claimed;
	free(list);
	doctor_add(d, DOCTOR_OK, "agent", NULL, "it keeps %u stores, of which %u have not been claimed",
		   n, unclaimed);
}

/* ---- command line ---- */

enum { KEY_ROOT = 256 };

static const struct argp_option options[] = {
	{"kexec", 'k', NULL, 0, "A kexec is wanted: what stops it is a failure", 0},
	{"unit", 'U', "UNIT", 0, "Look at the settings of this systemd unit, too", 0},
	{"root", KEY_ROOT, "DIR", 0, "Read below DIR instead of / (for tests)", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct doctor *d = state->input;

	switch (key) {
	case 'k':
		d->kexec = true;
		return 0;
	case 'U':
		d->unit = arg;
		return 0;
	case KEY_ROOT:
		d->root = arg;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "doctor takes no argument: %s", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

int ctl_doctor(int argc, char **argv)
{
	static const struct argp argp = {
		.options = options,
		.parser = parse,
		.doc = "Look at what stores need of kernel, memory, limits, permissions and systemd, and say "
		       "what to do about what is missing. The exit status is 1 if something fails, 7 if "
		       "there are only warnings.",
		.children = ctl_children,
	};
	struct doctor d = {0};
	enum doctor_level level;

	ctl_parse(&argp, argc, argv, &d);
	if (pv_stores_list(ctl.runtime_dir, &d.stores))
		doctor_add(&d, DOCTOR_FAIL, "runtime-dir",
			   "the directory must belong to this user alone: chown it, chmod 0700", "%s",
			   pv_last_error());
	doctor_kernel(&d);
	doctor_memory(&d);
	doctor_process(&d);
	doctor_systemd(&d);
	doctor_agent(&d);
	level = worst(&d);
	if (ctl.json)
		ctl_json_print(as_json(&d));
	else
		print(&d);
	for (unsigned int i = 0; i < d.n; i++) {
		free(d.v[i].text);
		free(d.v[i].advice);
	}
	free(d.v);
	pv_stores_free(d.stores);
	return level == DOCTOR_FAIL ? CTL_FAILED : level == DOCTOR_WARN ? CTL_WARN : CTL_OK;
}
