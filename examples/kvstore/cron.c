/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Housekeeping, in small pieces: keys that have expired are looked for ten times a second and for a
 * millisecond at most, unless many are found; what a cleared map left is freed whenever no client
 * waits.
 */
#include "kvstore.h"

#define PERIOD_MS	 100
#define EXPIRE_BUDGET_US 1000
#define EXPIRE_HURRY_US	 25000
#define TIDY_BUDGET_US	 300

static uv_timer_t timer;
static uv_idle_t idle;

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
