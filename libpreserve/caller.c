/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Handover backend `none`: nobody keeps the descriptors but the caller, who gives those of an
 * existing store in pv_options.fds and is told by pv_options.keep what joins and what leaves.
 *
 * The descriptors come in any order and without tokens, so each is known by its first bytes: an
 * index says that it is one, a segment says its number. Nothing else of them is believed here; the
 * store checks the rest. What belongs to no store is refused by its place in the array and its
 * number, because a caller who mixes up descriptors wants to hear of it.
 *
 * There is no state but the list of tokens known, which pv_destroy() needs.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "handover.h"
#include "layout.h"

struct caller {
	struct pvi_handover base;
	const struct pv_options *opts;
	uint64_t *tokens; /* those that the caller keeps, in no order */
	unsigned int ntokens;
	unsigned int capacity;
	bool taken; /* pv_options.fds was looked at: its tokens are known, it may be gone */
};

static struct caller *caller_of(struct pvi_handover *h)
{
	return (struct caller *)h;
}

static bool token_known(const struct caller *c, uint64_t token)
{
	for (unsigned int i = 0; i < c->ntokens; i++) {
		if (c->tokens[i] == token)
			return true;
	}
	return false;
}

static int token_note(struct caller *c, uint64_t token)
{
	if (token_known(c, token))
		return 0;
	if (c->ntokens == c->capacity) {
		unsigned int capacity = c->capacity ? 2 * c->capacity : 16;
		uint64_t *grown = realloc(c->tokens, capacity * sizeof(*grown));

		if (!grown)
			return pvi_fail(-ENOMEM, "no memory for %u tokens", capacity);
		c->tokens = grown;
		c->capacity = capacity;
	}
	c->tokens[c->ntokens++] = token;
	return 0;
}

static void token_erase(struct caller *c, uint64_t token)
{
	for (unsigned int i = 0; i < c->ntokens; i++) {
		if (c->tokens[i] == token) {
			c->tokens[i] = c->tokens[--c->ntokens];
			return;
		}
	}
}

/** Says by the first bytes which token the descriptor opts->fds[i] has. */
static int token_of(const struct pv_options *opts, unsigned int i, uint64_t *token)
{
	struct segment_rec head;
	ssize_t n = pread(opts->fds[i], &head, sizeof(head), 0);

	if (n < 0)
		return pvi_fail(-EINVAL, "pv_options.fds[%u] = %d cannot be read: %s", i,
				opts->fds[i], strerror(errno));
	if ((size_t)n == sizeof(head) && head.magic == PV_INDEX_MAGIC) {
		*token = 0;
		return 0;
	}
	if ((size_t)n == sizeof(head) && head.magic == PV_SEGMENT_MAGIC) {
		*token = (uint64_t)head.number + 1;
		return 0;
	}
	return pvi_fail(-EBADMSG,
			"pv_options.fds[%u] = %d is neither the index nor a segment of a store", i,
			opts->fds[i]);
}

static int by_token(const void *a, const void *b)
{
	const struct pvi_fd *x = a, *y = b;

	return x->token < y->token ? -1 : x->token > y->token;
}

static void fds_free(struct pvi_fd *fds, unsigned int n)
{
	for (unsigned int i = 0; i < n; i++)
		close(fds[i].fd);
	free(fds);
}

static int caller_fetch(struct pvi_handover *h, struct pvi_fd **out, unsigned int *n,
			bool *from_kexec)
{
	struct caller *c = caller_of(h);
	unsigned int nfds = c->taken ? 0 : c->opts->nfds;
	struct pvi_fd *fds;
	unsigned int done;
	int rc = 0;

	if (nfds == 0)
		return pvi_fail(-ENOENT, "nothing is kept: pv_options.fds is empty");
	fds = calloc(nfds, sizeof(*fds));
	if (!fds)
		return pvi_fail(-ENOMEM, "no memory for %u descriptors", nfds);
	/* All are looked at before a duplicate can take the number of one that is closed. */
	for (unsigned int i = 0; i < nfds && !rc; i++)
		rc = token_of(c->opts, i, &fds[i].token);
	for (unsigned int i = 0; i < nfds && !rc; i++)
		rc = token_note(c, fds[i].token);
	for (done = 0; done < nfds && !rc; done++) {
		fds[done].fd = fcntl(c->opts->fds[done], F_DUPFD_CLOEXEC, 0);
		if (fds[done].fd < 0) {
			rc = pvi_fail(-errno, "pv_options.fds[%u] = %d cannot be duplicated: %s",
				      done, c->opts->fds[done], strerror(errno));
			break;
		}
	}
	if (!rc) {
		qsort(fds, nfds, sizeof(*fds), by_token);
		for (unsigned int i = 1; i < nfds && !rc; i++) {
			if (fds[i].token == fds[i - 1].token)
				rc = pvi_fail(
					-EBADMSG,
					"pv_options.fds holds two descriptors of token %" PRIu64
					" (0 is the index, n + 1 is segment n)",
					fds[i].token);
		}
	}
	if (rc) {
		fds_free(fds, done);
		return rc;
	}
	c->taken = true;
	*out = fds;
	*n = nfds;
	*from_kexec = false;
	return 0;
}

static int tell(struct caller *c, enum pv_keep what, uint64_t token, int fd)
{
	int rc;

	if (!c->opts->keep)
		return 0;
	rc = c->opts->keep(c->opts->keep_ctx, what, token, fd);
	if (rc < 0)
		return pvi_fail(rc, "pv_options.keep refused to %s token %" PRIu64 ": %s",
				what == PV_KEEP_ADD ? "add" : "drop", token, strerror(-rc));
	return 0;
}

static int caller_keep(struct pvi_handover *h, uint64_t token, int fd)
{
	struct caller *c = caller_of(h);
	bool known = token_known(c, token);
	int rc = token_note(c, token);

	if (rc)
		return rc;
	rc = tell(c, PV_KEEP_ADD, token, fd);
	if (rc && !known)
		token_erase(c, token);
	return rc;
}

static int caller_drop(struct pvi_handover *h, uint64_t token)
{
	struct caller *c = caller_of(h);

	token_erase(c, token);
	return tell(c, PV_KEEP_DROP, token, -1);
}

static int caller_finish(struct pvi_handover *h)
{
	return 0;
}

static int caller_forget(struct pvi_handover *h)
{
	struct caller *c = caller_of(h);
	uint64_t token = 0;
	int rc = 0;

	/* What was given and never fetched belongs to the store as well; foreign ones do not. */
	for (unsigned int i = 0; !c->taken && i < c->opts->nfds; i++) {
		if (token_of(c->opts, i, &token) == 0 && token_note(c, token))
			return -ENOMEM;
	}
	c->taken = true;
	/* The index goes first, so that a crash between two calls leaves the whole store, or one that
	 * nobody takes for whole: segments without an index are refused. */
	for (unsigned int i = 0; i < c->ntokens; i++) {
		if (c->tokens[i] == 0) {
			c->tokens[i] = c->tokens[c->ntokens - 1];
			c->tokens[c->ntokens - 1] = 0;
			break;
		}
	}
	while (c->ntokens > 0) {
		int told = tell(c, PV_KEEP_DROP, c->tokens[--c->ntokens], -1);

		if (told)
			rc = told;
	}
	return rc;
}

static void caller_close(struct pvi_handover *h)
{
	free(caller_of(h)->tokens);
	free(h);
}

static const struct pvi_handover_ops caller_ops = {
	.name = "none",
	.kind = PV_HANDOVER_NONE,
	.fetch = caller_fetch,
	.keep = caller_keep,
	.drop = caller_drop,
	.finish = caller_finish,
	.forget = caller_forget,
	.close = caller_close,
};

int pvi_caller_open(const struct pv_options *opts, struct pvi_handover **out)
{
	struct caller *c;

	if (opts->nfds > 0 && !opts->fds)
		return pvi_fail(-EINVAL, "pv_options.nfds is %u, but fds is NULL", opts->nfds);
	c = calloc(1, sizeof(*c));
	if (!c)
		return pvi_fail(-ENOMEM, "no memory for the handover handle");
	c->base.ops = &caller_ops;
	c->base.state = PV_STATE_SERVING;
	c->opts = opts;
	*out = &c->base;
	return 0;
}
