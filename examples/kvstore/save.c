/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * SAVE: all keys into the image file of --save-file, for what memory does not outlive; and the start that
 * finds no store and takes what is in that file. No other thread may use the store while it is saved, so a
 * SAVE waits for the one that looks after who keeps it, and all clients wait for a SAVE, as with Redis.
 */
#include <errno.h>
#include <string.h>

#include <preserve/image.h>

#include "kvstore.h"

static struct client *waiting; /* for the keeper to be looked after */

static void save(struct client *c)
{
	struct pv_image_report report;
	int64_t start = clock_monotonic_us();
	int err = pv_save_file(server.store, server.opt.save_file, NULL, &report);

	if (err) {
		log_error("cannot save to %s: %s", server.opt.save_file, pv_last_error());
		reply_error(c, "ERR %s: %s", strerror(-err), pv_last_error());
		return;
	}
	log_info("saved %llu bytes to %s (%llu bytes) in %lld us",
		 (unsigned long long)report.contents_bytes, server.opt.save_file,
		 (unsigned long long)report.file_bytes,
		 (long long)(clock_monotonic_us() - start));
	reply_simple(c, "OK");
}

void cmd_save(struct client *c, const struct request *rq)
{
	if (!server.opt.save_file) {
		reply_error(c, "ERR the server was started without --save-file");
	} else if (waiting || preserve_busy()) {
		reply_error(c, "ERR another SAVE or PRESERVE command is under way");
	} else if (cron_keeper_busy()) {
		waiting = c;
		c->blocked = true;
	} else {
		save(c);
	}
}

void save_waiting(void)
{
	struct client *c = waiting;

	if (!c)
		return;
	waiting = NULL;
	if (!c->closed) {
		client_reply_begin(c);
		if (preserve_busy())
			reply_error(c, "ERR another PRESERVE command is under way");
		else
			save(c);
		client_reply_end(c);
	}
	client_unblock(c);
}

int save_load(const struct pv_options *o)
{
	struct pv_image_report report;
	int err;

	if (!server.opt.save_file)
		return -ENOENT;
	err = pv_restore_file(server.opt.store, o, server.opt.save_file, NULL, &report);
	if (!err)
		log_info("store %s of generation %llu is taken from %s, as it was saved at %lld",
			 server.opt.store, (unsigned long long)report.generation,
			 server.opt.save_file, (long long)report.saved_s);
	return err;
}
