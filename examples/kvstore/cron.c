/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Housekeeping, in small pieces: keys that have expired are looked for ten times a second and for a
 * millisecond at most, unless many are found; what a cleared map left is freed whenever no client
 * waits. Once a second it is looked after who keeps the store: by a thread of libuv's pool, for a
 * holder that hangs is waited for.
 */
#include <string.h>

#include "kvstore.h"

#define PERIOD_MS	 100
#define EXPIRE_BUDGET_US 1000
#define EXPIRE_HURRY_US	 25000
#define TIDY_BUDGET_US	 300
#define KEEPER_TICKS	 10

static uv_timer_t timer;
static uv_idle_t idle;

static struct {
	uv_work_t uv;
	bool busy;
	int rc; /* of the last pv_handover_check() */
	char message[512];
	int known; /* the last one that was dealt with */
	unsigned int ticks;
} keeper;

bool cron_keeper_lost(void)
{
	return keeper.known < 0;
}

bool cron_keeper_busy(void)
{
	return keeper.busy;
}

static void keeper_check(uv_work_t *uv)
{
	keeper.rc = pv_handover_check(server.store);
	if (keeper.rc < 0) /* the message belongs to this thread */
		strncpy(keeper.message, pv_last_error(), sizeof(keeper.message) - 1);
}

/* A line for each change, not for each second. */
static void keeper_checked(uv_work_t *uv, int status)
{
	keeper.busy = false;
	if (keeper.rc < 0 && keeper.rc != keeper.known)
		log_error("nobody keeps the store, the death of this process would lose it: %s",
			  keeper.message);
	else if (keeper.rc > 0)
		log_info(
			"whoever keeps the store had died or lacked something; it has everything again");
	else if (keeper.rc == 0 && keeper.known < 0)
		log_info("the store is kept again");
	keeper.known = keeper.rc;
	save_waiting();
}

static void keeper_tick(void)
{
	if (++keeper.ticks < KEEPER_TICKS || keeper.busy)
		return;
	keeper.ticks = 0;
	keeper.busy = uv_queue_work(&server.loop, &keeper.uv, keeper_check, keeper_checked) == 0;
}

static void tidy(uv_idle_t *handle)
{
	int64_t until = clock_monotonic_us() + TIDY_BUDGET_US;

	do {
		if (!db_tidy(&server.db)) {
			uv_idle_stop(&idle);
			return;
		}
	} while (clock_monotonic_us() < until);
}

void cron_tidy_soon(void)
{
	uv_idle_start(&idle, tidy);
}

static void tick(uv_timer_t *handle)
{
	server.db.now_ms = clock_unix_ms();
	if (db_expire_some(&server.db, EXPIRE_BUDGET_US))
		db_expire_some(&server.db, EXPIRE_HURRY_US);
	keeper_tick();
}

int cron_start(void)
{
	int err = uv_timer_init(&server.loop, &timer);

	if (!err)
		err = uv_idle_init(&server.loop, &idle);
	if (!err)
		err = uv_timer_start(&timer, tick, PERIOD_MS, PERIOD_MS);
	if (!err)
		cron_tidy_soon(); /* a crash may have left something */
	return err;
}

void cron_stop(void)
{
	uv_close((uv_handle_t *)&timer, NULL);
	uv_close((uv_handle_t *)&idle, NULL);
}
