/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * trap_x86.c - traps every store into a mapped memfd and logs it.
 *
 * While stores are trapped, all maps are read-only. A store faults (SIGSEGV); the handler makes the
 * page writable and sets the trap flag, so that this one instruction runs and SIGTRAP follows; that
 * handler compares the page with the shadow, logs the words that changed, and makes the page
 * read-only again. Nothing is decoded, so every form of store is caught: vector, string, exchange,
 * read-modify-write, scatter, those inside libc. An instruction that touches more pages faults
 * again for each; a `rep` instruction traps after each of its iterations.
 *
 * A store wider than a word is one instruction here, but the same source may be several on another
 * compiler or processor: its words are logged as separate crash points in ascending order, unless
 * it has a lock prefix.
 *
 * Threads: the pages are opened for the whole process, so only one thread may store at a time. A
 * second one that faults meanwhile waits; one that slips through the open page makes trace.c report
 * a change that is not in the log. In a switch sweep one thread waits inside the handler.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include "engine.h"

#ifndef __x86_64__
#error "the store tracer needs the x86-64 trap flag"
#endif

enum {
	MAX_STEP_PAGES = 40, /* a scatter of 16 elements that all straddle pages needs 32 */
	FAULT_WRITE = 2,     /* in the page fault's error code */
	TRAP_FLAG = 0x100,
};

static struct {
	bool on;
	bool had_trap_flag;
	uint64_t old_mask;
	uintptr_t ip;
	unsigned n_pages;
	uintptr_t pages[MAX_STEP_PAGES];
} step;

static _Atomic pid_t step_owner;

static struct {
	pid_t tid;
	size_t records;
	bool before_next;
	_Atomic int stopped; /* futex */
	_Atomic int go;	     /* futex */
	pid_t other;
} stop;

static pid_t my_tid(void)
{
	return (pid_t)syscall(SYS_gettid);
}

static void futex_wait(_Atomic int *word, int value)
{
	syscall(SYS_futex, (int *)word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic int *word)
{
	syscall(SYS_futex, (int *)word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* A signal that is not ours: the code under test died. The parent prints the report. */
static void die(int sig, const siginfo_t *si, const ucontext_t *uc)
{
	struct crash_report *report = ct.report;
	struct crash_failure *f = &report->failures[0];

	if (report->n_failures < CRASH_MAX_FAILURES)
		f = &report->failures[report->n_failures++];
	*f = report->at;
	f->kind = CRASH_FAIL_DIED;
	f->signo = sig;
	f->signal_addr = (uintptr_t)si->si_addr;
	f->signal_ip = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
	memcpy(f->note, report->note, sizeof(f->note));
	if (ct.options->in_process) {
		crash_report_print(report);
		signal(sig, SIG_DFL);
		raise(sig);
	}
	_exit(CT_EXIT_DIED);
}

/* Only the first word of the mask belongs to the kernel's frame. */
static void mask_signals(ucontext_t *uc)
{
	uint64_t all = ~((1ull << (SIGSEGV - 1)) | (1ull << (SIGTRAP - 1)) |
			 (1ull << (SIGBUS - 1)) | (1ull << (SIGABRT - 1)));

	memcpy(&step.old_mask, &uc->uc_sigmask, sizeof(step.old_mask));
	memcpy(&uc->uc_sigmask, &all, sizeof(all));
}

static void open_page(const struct ct_map *map, uintptr_t page)
{
	/* A difference that is there before the store was not made by it. */
	ct_trace_expect(map->mem, map->off + (page - map->start), CT_PAGE_BYTES);
	if (step.n_pages == MAX_STEP_PAGES) {
		/* A long string instruction: its earlier pages are done with. */
		ct_raw_mprotect((void *)step.pages[0], CT_PAGE_BYTES, PROT_READ);
		memmove(step.pages, step.pages + 1, sizeof(step.pages) - sizeof(step.pages[0]));
		step.n_pages--;
	}
	if (ct_raw_mprotect((void *)page, CT_PAGE_BYTES, PROT_READ | PROT_WRITE) != 0)
		ct_panic("mprotect of a page under test: %s", strerror(errno));
	/* ascending, because the words of one instruction are logged in that order */
	for (unsigned i = step.n_pages++;; i--) {
		if (i == 0 || step.pages[i - 1] < page) {
			step.pages[i] = page;
			break;
		}
		step.pages[i] = step.pages[i - 1];
	}
}

static void stop_point(bool before)
{
	if (!ct.tracing || stop.tid == 0 || ct.log.n < stop.records || my_tid() != stop.tid ||
	    before != stop.before_next)
		return;
	stop.tid = 0;
	atomic_store(&stop.stopped, 1);
	futex_wake(&stop.stopped);
	while (!atomic_load(&stop.go))
		futex_wait(&stop.go, 0);
}

static void on_fault(int sig, siginfo_t *si, void *context)
{
	ucontext_t *uc = context;
	greg_t *regs = uc->uc_mcontext.gregs;
	uintptr_t addr = (uintptr_t)si->si_addr;
	const struct ct_map *map = ct_map_find(addr);
	int saved_errno = errno;
	pid_t me = my_tid();

	if (!map || !(map->prot & PROT_WRITE) || si->si_code != SEGV_ACCERR ||
	    !(regs[REG_ERR] & FAULT_WRITE))
		die(sig, si, uc);
	if (atomic_load(&step_owner) != me) {
		pid_t nobody = 0;

		stop_point(true);

		while (!atomic_compare_exchange_weak(&step_owner, &nobody, me)) {
			nobody = 0;
			sched_yield();
		}
		if (!ct.tracing) { /* abandoned while we waited: the page is writable now */
			atomic_store(&step_owner, 0);
			errno = saved_errno;
			return;
		}
	}
	if (!step.on) {
		step.on = true;
		step.n_pages = 0;
		step.ip = (uintptr_t)regs[REG_RIP];
		step.had_trap_flag = regs[REG_EFL] & TRAP_FLAG;
		regs[REG_EFL] |= TRAP_FLAG;
		mask_signals(uc);
		ct.report->traps++;
	}
	open_page(map, addr & ~(uintptr_t)(CT_PAGE_BYTES - 1));
	errno = saved_errno;
}

static bool has_lock_prefix(uintptr_t ip)
{
	const uint8_t *code = (const uint8_t *)ip;

	for (unsigned i = 0; i < 14; i++) {
		switch (code[i]) {
		case 0xf0:
			return true;
		case 0x66: /* operand size */
		case 0x67: /* address size */
		case 0xf2: /* repne, xacquire */
		case 0xf3: /* rep, xrelease */
		case 0x2e: /* segments */
		case 0x36:
		case 0x3e:
		case 0x26:
		case 0x64:
		case 0x65:
			break;
		default:
			return false;
		}
	}
	return false;
}

static void log_step(void)
{
	bool joined = !ct.split_wide || has_lock_prefix(step.ip);
	size_t first = ct.log.n;
	size_t words = 0;

	for (unsigned i = 0; i < step.n_pages; i++) {
		const struct ct_map *map = ct_map_find(step.pages[i]);

		words += ct_log_diff(map->mem, map->off + (step.pages[i] - map->start),
				     CT_PAGE_BYTES, joined ? 0 : 8, 0, step.ip);
	}
	if (joined) {
		for (size_t i = first; i + 1 < ct.log.n; i++)
			ct.log.records[i].flags |= CT_JOINED;
	}
	if (words == 0)
		ct.report->silent++;
}

static void on_step(int sig, siginfo_t *si, void *context)
{
	ucontext_t *uc = context;
	greg_t *regs = uc->uc_mcontext.gregs;
	int saved_errno = errno;

	if (atomic_load(&step_owner) != my_tid() || !step.on)
		die(sig, si, uc);
	if (ct.tracing)
		log_step();
	if (ct.tracing && (uintptr_t)regs[REG_RIP] == step.ip) {
		ct.report->traps++; /* the next iteration of a string instruction */
		errno = saved_errno;
		return;
	}
	if (ct.tracing) {
		for (unsigned i = 0; i < step.n_pages; i++)
			ct_raw_mprotect((void *)step.pages[i], CT_PAGE_BYTES, PROT_READ);
	}
	if (!step.had_trap_flag)
		regs[REG_EFL] &= ~TRAP_FLAG;
	memcpy(&uc->uc_sigmask, &step.old_mask, sizeof(step.old_mask));
	step.on = false;
	atomic_store(&step_owner, 0);
	ct_trap_point();
	errno = saved_errno;
}

static void on_fatal(int sig, siginfo_t *si, void *context)
{
	die(sig, si, context);
}

void ct_trap_init(void)
{
	static const int fatal[] = {SIGBUS, SIGABRT, SIGFPE, SIGILL};
	struct sigaction sa = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
	stack_t stack = {.ss_size = 256 * 1024};

	stack.ss_sp =
		malloc(stack.ss_size); /* for overflows; threads of a switch sweep do without */
	if (!stack.ss_sp || sigaltstack(&stack, NULL) != 0)
		ct_panic("sigaltstack: %s", strerror(errno));
	sigfillset(&sa.sa_mask);
	sa.sa_sigaction = on_fault;
	sigaction(SIGSEGV, &sa, NULL);
	sa.sa_sigaction = on_step;
	sigaction(SIGTRAP, &sa, NULL);
	sa.sa_sigaction = on_fatal;
	for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		sigaction(fatal[i], &sa, NULL);
}

static void protect_maps(bool writable)
{
	for (unsigned i = 0; i < ct.n_maps; i++) {
		const struct ct_map *m = &ct.maps[i];
		int prot = writable ? m->prot : m->prot & ~PROT_WRITE;

		if (!(m->prot & PROT_WRITE))
			continue;
		if (ct_raw_mprotect((void *)m->start, m->end - m->start, prot) != 0)
			ct_panic("mprotect of memory under test: %s", strerror(errno));
	}
}

void ct_trap_protect(void)
{
	protect_maps(false);
}

void ct_trap_unprotect(void)
{
	protect_maps(true);
}

void ct_trap_stop_at(pid_t tid, size_t records, bool before_next)
{
	stop.tid = tid;
	stop.records = records;
	stop.before_next = before_next;
	atomic_store(&stop.stopped, 0);
	atomic_store(&stop.go, 0);
}

void ct_trap_point(void)
{
	stop_point(false);
}

bool ct_trap_stopped(void)
{
	return atomic_load(&stop.stopped);
}

void ct_trap_resume(void)
{
	atomic_store(&stop.go, 1);
	futex_wake(&stop.go);
}

void ct_trap_other(pid_t tid)
{
	stop.other = tid;
}

unsigned ct_trap_thread_flag(void)
{
	return stop.other && my_tid() == stop.other ? CT_OTHER_THREAD : 0;
}
