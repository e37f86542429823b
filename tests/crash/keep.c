/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * keep.c - what the code under test, or the handover backend of a test, tells the engine: which
 * memfds somebody outside the process has, marks for the log, and why a check failed.
 */
#include <stdarg.h>
#include <stdio.h>
#include "engine.h"

#define CALLER ((uintptr_t)__builtin_return_address(0))

void crash_keep(int fd, const char *name)
{
	struct ct_slot *s;
	unsigned slot;
	int mem;

	if (!ct.on)
		return;
	mem = ct_mem_find(fd);
	if (mem < 0 && !ct.tracing)
		mem = ct_mem_adopt(fd, name ? name : "");
	if (mem < 0)
		ct_panic("crash_keep: descriptor %d is no memfd that was seen being created", fd);
	slot = ct.mems[mem].slot;
	s = &ct.shadow.slots[slot];
	name = name ? ct_intern(name) : s->keep_name;
	if (ct.tracing) {
		ct_log_append(CT_KEEP, CT_SYSCALL, slot, (uintptr_t)name, CALLER);
		ct_trap_point();
		return;
	}
	s->keep_name = name;
	if (!s->keep_seq)
		s->keep_seq = ++ct.shadow.keep_last;
}

void crash_drop(int fd)
{
	int mem = ct.on ? ct_mem_find(fd) : -1;

	if (mem < 0)
		return;
	if (ct.tracing) {
		ct_log_append(CT_DROP, CT_SYSCALL, ct.mems[mem].slot, 0, CALLER);
		ct_trap_point();
	} else {
		ct.shadow.slots[ct.mems[mem].slot].keep_seq = 0;
	}
}

void crash_event(const char *what)
{
	if (ct.tracing)
		ct_log_append(CT_EVENT, CT_SYSCALL, 0, (uintptr_t)what, CALLER);
}

void crash_note(const char *format, ...)
{
	va_list ap;

	if (!ct.on)
		return;
	va_start(ap, format);
	vsnprintf(ct.report->note, sizeof(ct.report->note), format, ap);
	va_end(ap);
}
