/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log of what was sent and what was acknowledged, and what follows from it for a key.
 *
 * The log is text, a line for each event:
 *
 *	oracle-log 1 run 0123456789abcdef
 *	S 000000000001 000000000042	write 1 is a SET of key 42, about to be sent
 *	D 000000000002 000000000007	write 2 is a DEL of key 7, about to be sent
 *	A 000000000001			the reply to write 1 was read
 *	E 000000000002			the reply to write 2 was an error: it must not be in effect
 *	V 000000000003			write 3 had no reply, but it was seen to be in effect
 *	# text				a remark
 *
 * A last line without its end is what a killed oracle leaves; it is cut off. Lines reach the file
 * with history_flush(); what is appended to a file is not lost with the process that wrote it.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "oracle.h"

#define HEAD	     "oracle-log 1 run "
#define HEAD_BYTES   (sizeof(HEAD) - 1 + 16 + 1)
#define NUMBER	     12u
#define SENT_BYTES   (2 * NUMBER + 4) /* "S ", number, blank, key, end of line */
#define REPLY_BYTES  (NUMBER + 3)
#define BUFFER_BYTES (256u << 10)
#define KEYS_MAX     (1u << 30)

/* ---- state ---- */

static struct op *new_op(struct history *h)
{
	if (h->nops + 1 >= h->ops_cap) {
		h->ops_cap = h->ops_cap ? 2 * h->ops_cap : 4096;
		h->ops = need(h->ops, h->ops_cap * sizeof(*h->ops));
	}
	return &h->ops[++h->nops];
}

static struct key_state *key_state(struct history *h, uint32_t key)
{
	if (key >= h->keys_cap) {
		uint64_t cap = h->keys_cap ? h->keys_cap : 4096;

		while (cap <= key)
			cap *= 2;
		h->keys = need(h->keys, cap * sizeof(*h->keys));
		memset(h->keys + h->keys_cap, 0, (cap - h->keys_cap) * sizeof(*h->keys));
		h->keys_cap = cap;
	}
	if (key >= h->nkeys)
		h->nkeys = (uint64_t)key + 1;
	return &h->keys[key];
}

static uint64_t apply_sent(struct history *h, enum op_kind kind, uint32_t key)
{
	struct op *op = new_op(h);
	struct key_state *k = key_state(h, key);

	*op = (struct op){.key = key, .kind = (uint8_t)kind, .state = OP_SENT};
	k->touched = true;
	if (kind == OP_DEL)
		k->last_del = h->nops;
	return h->nops;
}

static void apply_known(struct history *h, uint64_t seq, bool acked)
{
	struct op *op = &h->ops[seq];
	struct key_state *k = &h->keys[op->key];

	if (acked) {
		op->state = OP_ACKED;
		h->acked++;
	}
	if (seq > k->known)
		k->known = seq;
}

/* An earlier DEL of the key may have been sent without a reply: look for it. */
static void apply_refused(struct history *h, uint64_t seq)
{
	struct op *op = &h->ops[seq];
	struct key_state *k = &h->keys[op->key];

	op->state = OP_REFUSED;
	h->refused++;
	if (k->last_del != seq)
		return;
	k->last_del = 0;
	for (uint64_t i = seq - 1; i > k->known && k->last_del == 0; i--) {
		if (h->ops[i].key == op->key && h->ops[i].kind == OP_DEL &&
		    h->ops[i].state != OP_REFUSED)
			k->last_del = i;
	}
}

/* ---- reading ---- */

static bool read_sent(struct history *h, const char *line, size_t bytes)
{
	uint64_t seq, key;

	if (bytes != SENT_BYTES || !decimal_read(line + 2, NUMBER, &seq) ||
	    !decimal_read(line + 3 + NUMBER, NUMBER, &key) || seq != h->nops + 1 || key >= KEYS_MAX)
		return false;
	apply_sent(h, line[0] == 'S' ? OP_SET : OP_DEL, (uint32_t)key);
	return true;
}

static bool read_line(struct history *h, const char *line, size_t bytes)
{
	uint64_t seq;

	if (line[0] == '#')
		return true;
	if (bytes > 2 && line[1] != ' ')
		return false;
	if (line[0] == 'S' || line[0] == 'D')
		return read_sent(h, line, bytes);
	if (bytes != REPLY_BYTES || !decimal_read(line + 2, NUMBER, &seq) || seq == 0 ||
	    seq > h->nops || h->ops[seq].state != OP_SENT)
		return false;
	switch (line[0]) {
	case 'A':
		apply_known(h, seq, true);
		return true;
	case 'V':
		apply_known(h, seq, false);
		return true;
	case 'E':
		apply_refused(h, seq);
		return true;
	default:
		return false;
	}
}

static void read_head(struct history *h, const char *text, size_t bytes)
{
	char hex[17] = "", *end;

	if (bytes >= HEAD_BYTES && memcmp(text, HEAD, sizeof(HEAD) - 1) == 0)
		memcpy(hex, text + sizeof(HEAD) - 1, 16);
	h->run = strtoull(hex, &end, 16);
	if (end != hex + 16 || text[HEAD_BYTES - 1] != '\n')
		fail("%s is not a log of this program", h->path);
}

/* Returns the length of the complete lines. */
static size_t read_all(struct history *h, const char *text, size_t bytes)
{
	size_t at = HEAD_BYTES;

	read_head(h, text, bytes);
	for (uint64_t n = 2; at < bytes; n++) {
		const char *end = memchr(text + at, '\n', bytes - at);

		if (!end)
			break;
		if (!read_line(h, text + at, (size_t)(end - text) - at + 1))
			fail("%s: line %" PRIu64 " makes no sense", h->path, n);
		at = (size_t)(end - text) + 1;
	}
	return at;
}

/* A new log appears under its name with its head, or not at all. */
static void create_log(struct history *h)
{
	char head[HEAD_BYTES + 1];

	if (getrandom(&h->run, sizeof(h->run), 0) != sizeof(h->run))
		fail("no random numbers: %s", strerror(errno));
	snprintf(head, sizeof(head), HEAD "%016" PRIx64 "\n", h->run);
	if (write(h->fd, head, HEAD_BYTES) != (ssize_t)HEAD_BYTES)
		fail("cannot write %s: %s", h->path, strerror(errno));
}

/* Whatever ends the program in an orderly way, what was appended is written. */
static struct history *open_history;

static void flush_at_exit(void)
{
	if (open_history)
		history_flush(open_history);
}

void history_open(struct history *h, const char *path, bool create)
{
	struct stat st;
	size_t end;
	char *text;

	memset(h, 0, sizeof(*h));
	h->path = path;
	h->buffer = need(NULL, BUFFER_BYTES);
	h->fd = open(path, O_RDWR | O_APPEND | O_CLOEXEC | (create ? O_CREAT : 0), 0666);
	if (h->fd < 0 || fstat(h->fd, &st))
		fail("cannot open the log %s: %s", path, strerror(errno));
	if (flock(h->fd, LOCK_EX | LOCK_NB))
		fail("another oracle writes to %s", path);
	open_history = h;
	atexit(flush_at_exit);
	if (st.st_size == 0 && create) {
		create_log(h);
		return;
	}
	if (st.st_size < (off_t)HEAD_BYTES)
		fail("%s is not a log of this program", path);
	text = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, h->fd, 0);
	if (text == MAP_FAILED)
		fail("cannot read the log %s: %s", path, strerror(errno));
	end = read_all(h, text, (size_t)st.st_size);
	munmap(text, (size_t)st.st_size);
	if ((off_t)end != st.st_size && ftruncate(h->fd, (off_t)end))
		fail("cannot cut the unfinished last line off %s: %s", path, strerror(errno));
}

/* ---- writing ---- */

void history_flush(struct history *h)
{
	size_t done = 0;

	while (done < h->buffered) {
		ssize_t n = write(h->fd, h->buffer + done, h->buffered - done);

		if (n < 0 && errno != EINTR) {
			h->buffered = 0; /* fail() would write it again */
			fail("cannot write the log %s: %s", h->path, strerror(errno));
		}
		done += n > 0 ? (size_t)n : 0;
	}
	h->buffered = 0;
}

void history_close(struct history *h)
{
	history_flush(h);
	open_history = NULL;
	close(h->fd);
	free(h->ops);
	free(h->keys);
	free(h->buffer);
}

static char *line(struct history *h, size_t bytes)
{
	char *at;

	if (h->buffered + bytes > BUFFER_BYTES)
		history_flush(h);
	at = h->buffer + h->buffered;
	h->buffered += bytes;
	at[bytes - 1] = '\n';
	return at;
}

uint64_t history_sent(struct history *h, enum op_kind kind, uint32_t key)
{
	uint64_t seq = apply_sent(h, kind, key);
	char *at = line(h, SENT_BYTES);

	at[0] = kind == OP_SET ? 'S' : 'D';
	at[1] = at[2 + NUMBER] = ' ';
	decimal_make(at + 2, NUMBER, seq);
	decimal_make(at + 3 + NUMBER, NUMBER, key);
	return seq;
}

static void note_reply(struct history *h, char what, uint64_t seq)
{
	char *at = line(h, REPLY_BYTES);

	at[0] = what;
	at[1] = ' ';
	decimal_make(at + 2, NUMBER, seq);
}

void history_acked(struct history *h, uint64_t seq)
{
	apply_known(h, seq, true);
	note_reply(h, 'A', seq);
}

void history_refused(struct history *h, uint64_t seq)
{
	apply_refused(h, seq);
	note_reply(h, 'E', seq);
}

void history_seen(struct history *h, uint64_t seq)
{
	apply_known(h, seq, false);
	note_reply(h, 'V', seq);
}

void history_note(struct history *h, const char *format, ...)
{
	char text[256] = "# ";
	size_t bytes;
	va_list ap;

	va_start(ap, format);
	vsnprintf(text + 2, sizeof(text) - 2, format, ap);
	va_end(ap);
	bytes = strcspn(text, "\r\n");
	memcpy(line(h, bytes + 1), text, bytes);
}

/* ---- judging ---- */

static enum verdict judge_absent(const struct history *h, const struct key_state *k, uint64_t *seq)
{
	/* A later DEL without a reply explains it. */
	if (k->last_del > k->known) {
		*seq = k->last_del;
		return VERDICT_GOOD;
	}
	*seq = k->known;
	return k->known == 0 || h->ops[k->known].kind == OP_DEL ? VERDICT_GOOD : VERDICT_LOST;
}

enum verdict history_judge(const struct history *h, uint32_t key, const char *value, size_t bytes,
			   uint64_t *seq)
{
	const struct key_state *k = &h->keys[key];
	uint64_t none, *out = seq ? seq : &none;
	const struct op *op;

	*out = 0;
	if (!value)
		return judge_absent(h, k, out);
	if (!value_read(value, bytes, h->run, key, out))
		return VERDICT_TORN;
	op = *out >= 1 && *out <= h->nops ? &h->ops[*out] : NULL;
	if (!op || op->key != key || op->kind != OP_SET || op->state == OP_REFUSED)
		return VERDICT_PHANTOM;
	return *out < k->known ? VERDICT_STALE : VERDICT_GOOD;
}
