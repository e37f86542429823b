/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * kvstore: a server that speaks the Redis protocol and keeps its data in a libpreserve store. This
 * file starts it and ends it. Order at the start: bind (a port in use is told at once), attach the
 * store, listen. At the end: stop listening, let go of the clients, close the store; the data stay
 * with the handover backend.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "kvstore.h"

#define SEGMENT_BYTES_MAX (64ull << 20)
#define SEGMENT_BYTES_MIN (1ull << 20)

struct server server;

static uv_signal_t on_term, on_int;

/*
 * When the program was executed: the processor time used up to here is what the loader took.
 */
static int64_t executed_at(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return clock_monotonic_us() - t.tv_sec * 1000000ll - t.tv_nsec / 1000;
}

static int draw_run_id(void)
{
	unsigned char bits[20];

	if (getrandom(bits, sizeof(bits), 0) != (ssize_t)sizeof(bits)) {
		log_error("no random numbers: %s", strerror(errno));
		return 1;
	}
	for (size_t i = 0; i < sizeof(bits); i++)
		snprintf(server.run_id + 2 * i, 3, "%02x", bits[i]);
	return 0;
}

/* ---- the store ---- */

/* The first segment: a small store grows in small steps. */
static uint64_t segment_bytes(void)
{
	uint64_t bytes = SEGMENT_BYTES_MAX;

	while (server.opt.max_memory && bytes > SEGMENT_BYTES_MIN &&
	       bytes > server.opt.max_memory / 8)
		bytes /= 2;
	return bytes;
}

static struct pv_options store_options(void)
{
	return (struct pv_options){
		.size = sizeof(struct pv_options),
		.flags = server.opt.eager && !server.opt.destroy ? PV_EAGER : 0,
		.handover = server.opt.handover,
		.segment_bytes = segment_bytes(),
		.limit_bytes = server.opt.max_memory,
		.runtime_dir = server.opt.runtime_dir,
	};
}

static int failed(const char *what, int err)
{
	log_error("cannot %s store %s: %s (%s)", what, server.opt.store, pv_last_error(),
		  strerror(-err));
	return 1;
}

/* Creating is a step of its own, because an operator who expected data wants to know why. */
static int open_store(void)
{
	struct pv_options o = store_options();
	int err = pv_open(server.opt.store, &o, &server.store);
	char why[512] = "";

	if (err == -ENOENT) {
		strncpy(why, pv_last_error(), sizeof(why) - 1);
		err = save_load(&o);
		if (err && err != -ENOENT)
			return failed("load", err);
		log_info("%s; %s it", why, err ? "creating" : "loaded");
		if (err)
			o.flags |= PV_CREATE;
		err = pv_open(server.opt.store, &o, &server.store);
	}
	if (err)
		return failed("open", err);
	err = db_open(&server.db, server.store);
	if (err) {
		failed("use", err);
		pv_close(server.store);
		return 1;
	}
	return 0;
}

/* --destroy: drop the store, damaged or not. */
static int destroy_store(void)
{
	struct pv_options o = store_options();
	int err = pv_open(server.opt.store, &o, &server.store);

	if (err == -ENOENT) {
		printf("there is no store %s\n", server.opt.store);
		return 0;
	}
	if (err && err != -EBUSY && err != -EACCES && err != -EINVAL) {
		log_info("store %s cannot be opened (%s); it is dropped as it is", server.opt.store,
			 pv_last_error());
		o.flags = PV_CREATE | PV_RESET;
		err = pv_open(server.opt.store, &o, &server.store);
	}
	if (!err)
		err = pv_destroy(server.store);
	if (err)
		return failed("destroy", err);
	printf("store %s is destroyed\n", server.opt.store);
	return 0;
}

/* ---- ending ---- */

void server_stop(int exit_status)
{
	if (server.stopping)
		return;
	server.stopping = true;
	server.exit_status = exit_status;
	service_tell("STOPPING=1");
	net_close();
	cron_stop();
	uv_close((uv_handle_t *)&on_term, NULL);
	uv_close((uv_handle_t *)&on_int, NULL);
	/* Not only asked to stop: the loop would wait for all clients to leave. */
	uv_stop(&server.loop);
}

static void on_signal(uv_signal_t *handle, int signum)
{
	log_info("%s: ending", signum == SIGTERM ? "SIGTERM" : "SIGINT");
	server_stop(0);
}

static int start_loop(void)
{
	int err = uv_signal_init(&server.loop, &on_term);

	if (!err)
		err = uv_signal_init(&server.loop, &on_int);
	if (!err)
		err = uv_signal_start(&on_term, on_signal, SIGTERM);
	if (!err)
		err = uv_signal_start(&on_int, on_signal, SIGINT);
	if (!err)
		err = cron_start();
	if (err)
		log_error("event loop: %s", uv_strerror(err));
	return err;
}

/* One line for whoever started us, with what there is to know. */
static void tell_ready(void)
{
	struct pv_info i;

	server.ready_us = clock_monotonic_us() - server.start_us;
	pv_info_get(server.store, &i);
	printf("ready port=%u bind=%s unixsocket=%s store=%s handover=%s origin=%s keys=%llu "
	       "recovered=%llu attach_usec=%.1f exec_to_ready_usec=%lld\n",
	       server.opt.port, server.opt.bind, server.opt.unix_path ? server.opt.unix_path : "-",
	       server.opt.store, handover_name(i.handover), origin_name(i.origin),
	       (unsigned long long)pv_map_count(server.db.map), (unsigned long long)i.recovered,
	       (double)i.attach_ns / 1000, (long long)server.ready_us);
	fflush(stdout);
}

static int serve(void)
{
	int err = uv_loop_init(&server.loop);

	if (err) {
		log_error("event loop: %s", uv_strerror(err));
		return 1;
	}
	if (start_loop() || net_listen())
		return 1;
	preserve_tell();
	tell_ready();
	service_tell("READY=1");
	uv_run(&server.loop, UV_RUN_DEFAULT);
	client_close_all();
	/* What is closed, and a PRESERVE command that another thread is busy with, comes to its
	 * end. */
	uv_run(&server.loop, UV_RUN_DEFAULT);
	uv_loop_close(&server.loop);
	return server.exit_status;
}

int main(int argc, char **argv)
{
	int status;

	server.start_us = executed_at();
	status = options_parse(argc, argv, &server.opt);
	if (status >= 0)
		return status;
	signal(SIGPIPE, SIG_IGN);
	if (server.opt.destroy)
		return destroy_store();
	commands_init();
	if (draw_run_id() || net_bind())
		return 1;
	if (open_store()) {
		net_close();
		return 1;
	}
	status = serve();
	db_close(&server.db);
	pv_close(server.store);
	log_info("ended; store %s stays", server.opt.store);
	return status;
}
