/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * PRESERVE PREPARE, CANCEL and STATUS. Preparing takes time in proportion to the memory, so it is
 * done by a thread of libuv's pool, while this thread goes on serving. The client that asked waits
 * for its reply and for nothing else of its own meanwhile.
 */
#include <errno.h>
#include <string.h>

#include "kvstore.h"

struct work {
	uv_work_t uv;
	struct client *client; /* NULL: none under way */
	bool prepare;
	int err;
	char message[512];
	int64_t usec;
};

static struct work work;
static int64_t prepare_usec = -1;

int64_t preserve_prepare_usec(void)
{
	return prepare_usec;
}

bool preserve_busy(void)
{
	return work.client != NULL;
}

void preserve_tell(void)
{
	struct pv_info i;

	pv_info_get(server.store, &i);
	log_info("store %s %s%s: epoch %llu, %llu keys, %u segments of %llu bytes together, "
		 "attached in "
		 "%.1f us",
		 server.opt.store, origin_name(i.origin), i.from_kexec ? " after a kexec" : "",
		 (unsigned long long)i.epoch, (unsigned long long)pv_map_count(server.db.map),
		 i.segments, (unsigned long long)i.bytes, (double)i.attach_ns / 1000);
	if (i.handover == PV_HANDOVER_NONE)
		log_info("handover none: the data end with this process");
	else if (i.handover == PV_HANDOVER_SYSTEMD)
		log_info("handover systemd: a kexec keeps the data if the unit has "
			 "FileDescriptorStorePreserve=yes, and systemd is 261 or later");
	else if (i.handover == PV_HANDOVER_HOLDER && server.opt.handover == PV_HANDOVER_AUTO)
		log_info("handover holder, for this process may not use /dev/liveupdate: a kexec "
			 "would "
			 "lose the data");
	if (i.warnings & PV_WARN_HOLDER_IN_SERVICE)
		log_error("the holder ends with this service, and the data with it: give the unit "
			  "FileDescriptorStoreMax= (or KillMode=process)");
}

static void run(uv_work_t *uv)
{
	int64_t start = clock_monotonic_us();

	work.err =
		work.prepare ? pv_handover_prepare(server.store) : pv_handover_cancel(server.store);
	work.usec = clock_monotonic_us() - start;
	if (work.err) /* the message belongs to this thread */
		strncpy(work.message, pv_last_error(), sizeof(work.message) - 1);
}

static void reply_state(struct client *c, int64_t usec)
{
	struct pv_info info;

	pv_info_get(server.store, &info);
	reply_map(c, usec < 0 ? 4 : 5);
	reply_text(c, "state");
	reply_text(c, info.state == PV_STATE_PREPARED ? "prepared" : "serving");
	reply_text(c, "handover");
	reply_text(c, handover_name(info.handover));
	reply_text(c, "segments");
	reply_integer(c, info.segments);
	reply_text(c, "bytes");
	reply_integer(c, (int64_t)info.bytes);
	if (usec >= 0) {
		reply_text(c, "usec");
		reply_integer(c, usec);
	}
}

static void done(uv_work_t *uv, int status)
{
	struct client *c = work.client;
	const char *what = work.prepare ? "prepare" : "cancel";

	work.client = NULL;
	if (work.err)
		log_error("%s failed after %lld us: %s", what, (long long)work.usec, work.message);
	else
		log_info("%s took %lld us", what, (long long)work.usec);
	if (!work.err && work.prepare)
		prepare_usec = work.usec;
	if (!c->closed) {
		client_reply_begin(c);
		if (work.err)
			reply_error(c, "ERR %s: %s", strerror(-work.err), work.message);
		else
			reply_state(c, work.usec);
		client_reply_end(c);
	}
	client_unblock(c);
}

static void start(struct client *c, bool prepare)
{
	int err;

	if (work.client) {
		reply_error(c, "ERR another PRESERVE command is under way");
		return;
	}
	work = (struct work){.client = c, .prepare = prepare};
	err = uv_queue_work(&server.loop, &work.uv, run, done);
	if (err) {
		work.client = NULL;
		reply_error(c, "ERR %s", uv_strerror(err));
		return;
	}
	c->blocked = true;
}

void cmd_preserve(struct client *c, const struct request *rq)
{
	const struct resp_arg *sub = &rq->argv[1];

	if (arg_is(sub, "prepare") && rq->argc == 2)
		start(c, true);
	else if (arg_is(sub, "cancel") && rq->argc == 2)
		start(c, false);
	else if (arg_is(sub, "status") && rq->argc == 2)
		reply_state(c, -1);
	else
		reply_error(c, "ERR PRESERVE takes one of PREPARE, CANCEL, STATUS");
}
