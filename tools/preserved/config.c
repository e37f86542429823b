/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Settings: from options, and from a file of lines KEY = VALUE. A quota's key may name a user:
 * `max-bytes.1000 = 8G`.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "preserved.h"

void config_init(struct config *c)
{
	*c = (struct config){
		.socket = AGENT_SOCKET,
		.quota = {.stores = 64, .descriptors = 16384, .bytes = 0, .connections = 64},
	};
}

const struct quota *config_quota(const struct config *c, uint32_t uid)
{
	for (unsigned int i = 0; i < c->nusers; i++)
		if (c->users[i].uid == uid)
			return &c->users[i].quota;
	return &c->quota;
}

/** A user of his own starts with what everybody has at that point of the file. */
static struct quota *quota_of(struct config *c, uint32_t uid)
{
	for (unsigned int i = 0; i < c->nusers; i++)
		if (c->users[i].uid == uid)
			return &c->users[i].quota;
	if (c->nusers == QUOTAS_MAX)
		return NULL;
	c->users[c->nusers].uid = uid;
	c->users[c->nusers].quota = c->quota;
	return &c->users[c->nusers++].quota;
}

/** A number with an optional unit k, M, G or T (powers of two). */
static bool number(const char *text, uint64_t *out)
{
	static const char units[] = "kMGT";
	unsigned long long n;
	unsigned int shift = 0;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno)
		return false;
	if (*end) {
		const char *unit = strchr(units, *end);

		if (!unit || end[1])
			return false;
		shift = 10 * (unsigned int)(unit - units + 1);
	}
	if (n > UINT64_MAX >> shift)
		return false;
	*out = (uint64_t)n << shift;
	return true;
}

static int set_quota(struct config *c, const char *key, const char *value)
{
	static const char *const keys[] = {"max-stores", "max-descriptors", "max-bytes",
					   "max-connections"};
	const char *dot = strchr(key, '.');
	size_t bytes = dot ? (size_t)(dot - key) : strlen(key);
	struct quota *q = &c->quota;
	uint64_t n, uid;

	for (unsigned int i = 0; i < 4; i++) {
		if (strlen(keys[i]) != bytes || strncmp(key, keys[i], bytes) != 0)
			continue;
		if (dot && (!number(dot + 1, &uid) || uid >= UINT32_MAX)) {
			log_error("%s: %s is not the number of a user", key, dot + 1);
			return -EINVAL;
		}
		if (!number(value, &n)) {
			log_error("%s: %s is not a number", key, value);
			return -EINVAL;
		}
		q = dot ? quota_of(c, (uint32_t)uid) : q;
		if (!q) {
			log_error("%s: only %u users can have quotas of their own", key,
				  QUOTAS_MAX);
			return -ENOSPC;
		}
		*(i == 0   ? &q->stores
		  : i == 1 ? &q->descriptors
		  : i == 2 ? &q->bytes
			   : &q->connections) = n;
		return 0;
	}
	log_error("there is no setting %s", key);
	return -EINVAL;
}

int config_set(struct config *c, const char *key, const char *value)
{
	uint64_t n;

	if (strcmp(key, "socket") == 0) {
		if (value[0] != '/' || strlen(value) >= 100) {
			log_error("socket: %s is no absolute path of less than 100 bytes", value);
			return -EINVAL;
		}
		c->socket = strdup(value);
		return c->socket ? 0 : -ENOMEM;
	}
	if (strcmp(key, "claim-timeout") == 0) {
		if (!number(value, &n) || n > INT32_MAX) {
			log_error("claim-timeout: %s is not a number of seconds", value);
			return -EINVAL;
		}
		c->claim_ms = (int64_t)n * 1000;
		return 0;
	}
	return set_quota(c, key, value);
}

static char *trim(char *text)
{
	size_t n;

	text += strspn(text, " \t");
	n = strlen(text);
	while (n && strchr(" \t\n\r", text[n - 1]))
		text[--n] = 0;
	return text;
}

int config_read(struct config *c, const char *path)
{
	unsigned int number_of_line = 0;
	char line[512];
	int rc = 0;
	FILE *f = fopen(path, "re");

	if (!f) {
		rc = -errno;
		log_error("cannot read %s: %s", path, strerror(errno));
		return rc;
	}
	while (rc == 0 && fgets(line, sizeof(line), f)) {
		char *key = trim(line), *equals = strchr(key, '=');

		number_of_line++;
		if (*key == 0 || *key == '#')
			continue;
		if (equals) {
			*equals = 0;
			rc = config_set(c, trim(key), trim(equals + 1));
		} else {
			log_error("KEY = VALUE is wanted");
			rc = -EINVAL;
		}
	}
	if (rc)
		log_error("%s, line %u: not taken", path, number_of_line);
	fclose(f);
	return rc;
}
