/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * report.c - failures are recorded by the child in shared memory, as raw numbers, because it may be
 * about to die; the parent, which has the same code at the same addresses, turns them into text.
 */
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "engine.h"

enum { PRINTED_FAILURES = 2 };

const char *crash_failure_name(enum crash_failure_kind kind)
{
	static const char *const names[] = {
		[CRASH_FAIL_NONE] = "none",
		[CRASH_FAIL_SETUP] = "setup",
		[CRASH_FAIL_REFUSED] = "refused",
		[CRASH_FAIL_BROKEN] = "broken",
		[CRASH_FAIL_ILLEGAL] = "illegal state",
		[CRASH_FAIL_NOT_DURABLE] = "not durable",
		[CRASH_FAIL_NESTED] = "recovery not repeatable",
		[CRASH_FAIL_DIED] = "died",
		[CRASH_FAIL_HUNG] = "hung",
		[CRASH_FAIL_ESCAPED] = "escaped the tracer",
		[CRASH_FAIL_BLOCKED] = "blocked",
	};

	return names[kind];
}

bool ct_enough(void)
{
	return ct.report->n_failures >= (ct.options->must_fail ? 1u : CRASH_MAX_FAILURES);
}

struct crash_failure *ct_fail(enum crash_failure_kind kind, const char *format, ...)
{
	static struct crash_failure surplus;
	struct crash_report *report = ct.report;
	struct crash_failure *f = &surplus;
	va_list ap;

	if (report->n_failures < CRASH_MAX_FAILURES)
		f = &report->failures[report->n_failures++];
	*f = report->at;
	f->kind = kind;
	va_start(ap, format);
	vsnprintf(f->what, sizeof(f->what), format, ap);
	va_end(ap);
	memcpy(f->note, report->note, sizeof(f->note));
	return f;
}

static void store_from(struct crash_store *to, const struct ct_record *r)
{
	*to = (struct crash_store){
		.valid = true,
		.syscall = r->flags & CT_SYSCALL,
		.kind = ct_kind_name(r),
		.segment = r->slot,
		.off = r->off,
		.old_word = r->old_value,
		.new_word = r->new_value,
		.ip = r->ip,
	};
}

void ct_fail_stores(struct crash_failure *failure, size_t log_index, size_t end)
{
	size_t next = log_index == CT_NO_RECORD ? 0 : log_index + 1;

	if (log_index < end)
		store_from(&failure->last, &ct.log.records[log_index]);
	if (next < end)
		store_from(&failure->next, &ct.log.records[next]);
}

/* Asks addr2line; false if it has nothing to say. */
static bool source_line(const Dl_info *info, uintptr_t ip, char *out, size_t len)
{
	const Elf64_Ehdr *header = info->dli_fbase;
	uintptr_t addr = header->e_type == ET_EXEC ? ip : ip - (uintptr_t)info->dli_fbase;
	char command[640], line[512];
	FILE *f;
	bool ok;

	snprintf(command, sizeof(command),
		 "exec addr2line -f -i -p -s -e \"%s\" %#" PRIxPTR " 2>/dev/null",
		 strchr(info->dli_fname, '/') ? info->dli_fname : "/proc/self/exe", addr);
	f = popen(command, "re");
	if (!f)
		return false;
	ok = fgets(line, sizeof(line), f) && line[0] != '?';
	if (ok)
		snprintf(out, len, "%.*s", (int)strcspn(line, "\n"), line);
	while (fgets(line, sizeof(line), f))
		;
	pclose(f);
	return ok;
}

void ct_symbol(uintptr_t ip, char *out, size_t len)
{
	static struct {
		uintptr_t ip;
		char text[160];
	} cache[256];
	size_t at = (ip ^ (ip >> 8)) % 256;
	Dl_info info;

	if (cache[at].ip != ip || ip == 0) {
		char *text = cache[at].text;
		size_t room = sizeof(cache[at].text);

		cache[at].ip = ip;
		if (!dladdr((void *)ip, &info))
			snprintf(text, room, "%#" PRIxPTR, ip);
		else if (!source_line(&info, ip, text, room))
			snprintf(
				text, room, "%s+%#" PRIxPTR,
				info.dli_sname ? info.dli_sname : info.dli_fname,
				ip - (uintptr_t)(info.dli_sname ? info.dli_saddr : info.dli_fbase));
	}
	snprintf(out, len, "%s", cache[at].text);
}

static void print_store(const char *which, const struct crash_store *s)
{
	char symbol[160];

	if (!s->valid)
		return;
	ct_symbol(s->syscall ? s->ip - 1 : s->ip, symbol, sizeof(symbol));
	printf("    %s change: %s%s, segment %u + %#" PRIx64 ", %#" PRIx64 " -> %#" PRIx64 "\n"
	       "        at %s (%#" PRIxPTR ")\n",
	       which, s->kind, s->syscall ? " by a system call" : "", s->segment, s->off,
	       s->old_word, s->new_word, symbol, s->ip);
}

static void print_position(const struct crash_report *report, const struct crash_failure *f)
{
	printf("    position:");
	if (f->op >= 0)
		printf(" operation %d \"%s\",", f->op,
		       ct.scenario ? ct.scenario->ops[f->op].name : "");
	if (f->switch_at >= 0)
		printf(" A stopped after record %ld,", f->switch_at);
	printf(" prefix %ld of %zu records", f->prefix, report->records);
	for (unsigned i = 0; i < CRASH_MAX_DEPTH && f->nested[i] >= 0; i++)
		printf(", then prefix %ld of the recovery", f->nested[i]);
	printf("%s\n", f->at_flags & CRASH_OTHER_BASE ? " (at another base)" : "");
}

static void print_failure(const struct crash_report *report, const struct crash_failure *f)
{
	char symbol[160];

	printf("  FAIL (%s): %s\n", crash_failure_name(f->kind), f->what);
	print_position(report, f);
	if (f->kind == CRASH_FAIL_DIED) {
		ct_symbol(f->signal_ip, symbol, sizeof(symbol));
		printf("    signal %d (%s), address %#" PRIxPTR "\n        at %s\n", f->signo,
		       strsignal(f->signo), f->signal_addr, symbol);
	}
	if (f->before || f->after || f->got)
		printf("    fingerprint %016" PRIx64 ", before %016" PRIx64 ", after %016" PRIx64
		       "\n",
		       f->got, f->before, f->after);
	print_store("last", &f->last);
	print_store("next", &f->next);
	if (f->note[0])
		printf("    note: %s\n", f->note);
	if (f->prefix >= 0 && f->switch_at < 0) {
		printf("    again: --only %s --prefix %ld", report->scenario, f->prefix);
		if (f->nested[0] >= 0)
			printf(" --nested %ld", f->nested[0]);
		printf(" --in-process   (--dump lists the records)\n");
	}
}

void crash_report_print(const struct crash_report *r)
{
	double trace_s = (double)r->trace_ns / 1e9, replay_s = (double)r->replay_ns / 1e9;

	printf("%s %s: %zu records, %zu crash states, %zu recoveries (%zu nested)",
	       r->n_failures ? "not ok" : "ok", r->scenario, r->records, r->crash_points,
	       r->replays, r->nested_replays);
	if (r->switches)
		printf(", %zu switches (%zu blocked, %zu reordered)", r->switches, r->blocked,
		       r->reordered);
	printf(", %zu traps (%zu silent) %.3f s, replay %.3f s", r->traps, r->silent, trace_s,
	       replay_s);
	if (replay_s > 0)
		printf(", %.0f recoveries/s", (double)r->replays / replay_s);
	printf("\n");
	for (unsigned i = 0; i < r->n_failures && i < PRINTED_FAILURES; i++)
		print_failure(r, &r->failures[i]);
	if (r->n_failures > PRINTED_FAILURES)
		printf("  ... and %u more%s\n", r->n_failures - PRINTED_FAILURES,
		       r->n_failures == CRASH_MAX_FAILURES ? ", then given up" : "");
	fflush(stdout);
}
