/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * log.c - the one ordered list of everything that changed what survives: words stored, memfds born,
 * sized, sealed, handed out and taken back. Appending applies the record to the shadow at once, so
 * that "log applied to the image at the start" and "shadow" are the same by construction, and the
 * comparison of shadow and memfds (trace.c) proves the log complete.
 *
 * Appending is async-signal-safe: the log is one large reserved mapping, the shadow has its memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "engine.h"

#define LOG_BYTES ((size_t)1 << 31)

void ct_log_init(void)
{
	void *p = ct_raw_mmap(NULL, LOG_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		ct_panic("no address space for the log: %s", strerror(errno));
	ct.log.records = p;
	ct.log.n = 0;
	ct.log.cap = LOG_BYTES / sizeof(struct ct_record);
}

static void append(const struct ct_record *record)
{
	if (ct.log.n == ct.log.cap)
		ct_panic("the log is full: %zu records", ct.log.n);
	ct.log.records[ct.log.n++] = *record;
	ct_image_apply(&ct.shadow, record);
}

void ct_log_append(enum ct_kind kind, unsigned flags, unsigned slot, uint64_t value, uintptr_t ip)
{
	const struct ct_slot *s = &ct.shadow.slots[slot];
	struct ct_record r = {
		.kind = (uint8_t)kind,
		.flags = (uint8_t)(flags | ct_trap_thread_flag()),
		.slot = (uint16_t)slot,
		.new_value = value,
		.ip = ip,
	};

	if (kind == CT_SIZE)
		r.old_value = s->size_bytes;
	else if (kind == CT_SEALS || kind == CT_BORN)
		r.old_value = s->seals;
	append(&r);
}

size_t ct_log_diff(unsigned mem, uint64_t off, size_t len, size_t chunk_bytes, unsigned flags,
		   uintptr_t ip)
{
	const struct ct_mem *m = &ct.mems[mem];
	const struct ct_slot *s = &ct.shadow.slots[m->slot];
	uint64_t end = (off + len + 7) & ~7ull;
	size_t n = 0, last = 0;

	if (end > m->alias_bytes)
		end = m->alias_bytes;
	if (end > ((s->size_bytes + 7) & ~7ull))
		end = (s->size_bytes + 7) & ~7ull;
	for (off &= ~7ull; off < end; off += 8) {
		struct ct_record r = {
			.kind = CT_WORD,
			.flags = (uint8_t)(flags | CT_JOINED | ct_trap_thread_flag()),
			.slot = (uint16_t)m->slot,
			.off = off,
			.ip = ip,
		};

		memcpy(&r.old_value, s->bytes + off, 8);
		memcpy(&r.new_value, m->alias + off, 8);
		if (r.old_value == r.new_value)
			continue;
		if (n && chunk_bytes && off / chunk_bytes != ct.log.records[last].off / chunk_bytes)
			ct.log.records[last].flags &= (uint8_t)~CT_JOINED;
		last = ct.log.n;
		append(&r);
		n++;
	}
	if (n)
		ct.log.records[last].flags &= (uint8_t)~CT_JOINED;
	return n;
}

void ct_log_mem(unsigned mem, uintptr_t ip)
{
	struct ct_mem *m = &ct.mems[mem];
	struct ct_slot *s = &ct.shadow.slots[m->slot];
	int seals = ct_raw_fcntl(m->fd, F_GET_SEALS, 0);
	unsigned chunk = ct.scenario->syscall_chunk_bytes;
	struct stat st;

	if (seals < 0 || fstat(m->fd, &st) != 0)
		ct_panic("memfd %u: %s", m->slot, strerror(errno));
	if ((uint64_t)st.st_size != s->size_bytes) {
		ct_slot_reserve(s, (uint64_t)st.st_size);
		ct_mem_remap_alias(mem,
				   !((unsigned)s->seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)));
		ct_log_append(CT_SIZE, CT_SYSCALL, m->slot, (uint64_t)st.st_size, ip);
	}
	ct_log_diff(mem, 0, m->alias_bytes, chunk ? chunk : 8, CT_SYSCALL, ip);
	if ((unsigned)seals != s->seals)
		ct_log_append(CT_SEALS, CT_SYSCALL, m->slot, (unsigned)seals, ip);
}

const char *ct_kind_name(const struct ct_record *r)
{
	static const char *const names[] = {"store", "born", "size", "seals",
					    "keep",  "drop", "event"};

	return names[r->kind];
}

void ct_log_print(const struct ct_record *r, size_t index)
{
	char symbol[192];

	ct_symbol(r->flags & CT_SYSCALL ? r->ip - 1 : r->ip, symbol, sizeof(symbol));
	if (r->kind == CT_EVENT || r->kind == CT_BORN || r->kind == CT_KEEP) {
		printf("%6zu %s%-6s segment %u \"%s\"  %s\n", index + 1,
		       r->flags & CT_OTHER_THREAD ? "B " : "", ct_kind_name(r), r->slot,
		       (const char *)(uintptr_t)r->new_value, symbol);
		return;
	}
	printf("%6zu %s%-6s segment %u + 0x%06llx: %#llx -> %#llx  %s%s%s\n", index + 1,
	       r->flags & CT_OTHER_THREAD ? "B " : "", ct_kind_name(r), r->slot,
	       (unsigned long long)r->off, (unsigned long long)r->old_value,
	       (unsigned long long)r->new_value, symbol, r->flags & CT_SYSCALL ? " [syscall]" : "",
	       r->flags & CT_JOINED ? " [joined]" : "");
}
