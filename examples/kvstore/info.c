/* SPDX-License-Identifier: BSD-3-Clause */
/* INFO: the figures, by section, as lines of name:value. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvstore.h"

static void section_server(FILE *f)
{
	int64_t up = clock_monotonic_us() - server.start_us;

	fprintf(f, "redis_version:%s\r\n", REDIS_VERSION);
	fprintf(f, "redis_mode:standalone\r\n");
	fprintf(f, "kvstore_version:%s\r\n", pv_version());
	fprintf(f, "arch_bits:%zu\r\n", 8 * sizeof(void *));
	fprintf(f, "multiplexing_api:libuv-%s\r\n", uv_version_string());
	fprintf(f, "process_id:%d\r\n", (int)getpid());
	fprintf(f, "run_id:%s\r\n", server.run_id);
	fprintf(f, "tcp_port:%u\r\n", server.opt.port);
	fprintf(f, "uptime_in_seconds:%lld\r\n", (long long)up / 1000000);
	fprintf(f, "uptime_in_days:%lld\r\n", (long long)up / 1000000 / 86400);
	fprintf(f, "exec_to_serving_usec:%lld\r\n", (long long)server.ready_us);
}

static void section_clients(FILE *f)
{
	unsigned int blocked = 0;

	for (const struct client *c = server.clients; c; c = c->next)
		blocked += c->blocked;
	fprintf(f, "connected_clients:%u\r\n", server.nclients);
	fprintf(f, "maxclients:%u\r\n", server.opt.max_clients);
	fprintf(f, "blocked_clients:%u\r\n", blocked);
	fprintf(f, "client_buffers_bytes:%llu\r\n", (unsigned long long)server.client_bytes);
}

static uint64_t resident_bytes(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	unsigned long long pages = 0;

	if (!f)
		return 0;
	if (fscanf(f, "%*u %llu", &pages) != 1)
		pages = 0;
	fclose(f);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void section_memory(FILE *f)
{
	struct pv_map_info map;
	struct pv_info info;

	pv_info_get(server.store, &info);
	pv_map_info_get(server.db.map, &map);
	fprintf(f, "used_memory:%llu\r\n", (unsigned long long)info.used_bytes);
	fprintf(f, "used_memory_rss:%llu\r\n", (unsigned long long)resident_bytes());
	fprintf(f, "used_memory_store:%llu\r\n", (unsigned long long)info.bytes);
	fprintf(f, "used_memory_table:%llu\r\n", (unsigned long long)map.chunk_bytes);
	fprintf(f, "maxmemory:%llu\r\n", (unsigned long long)server.opt.max_memory);
	fprintf(f, "maxmemory_policy:noeviction\r\n");
}

static void section_stats(FILE *f)
{
	fprintf(f, "total_connections_received:%llu\r\n", (unsigned long long)server.nconnections);
	fprintf(f, "total_commands_processed:%llu\r\n", (unsigned long long)server.ncommands);
	fprintf(f, "total_net_input_bytes:%llu\r\n", (unsigned long long)server.in_bytes);
	fprintf(f, "total_net_output_bytes:%llu\r\n", (unsigned long long)server.out_bytes);
	fprintf(f, "rejected_connections:%llu\r\n", (unsigned long long)server.nrejected);
	fprintf(f, "expired_keys:%llu\r\n", (unsigned long long)server.db.expired);
	fprintf(f, "keyspace_hits:%llu\r\n", (unsigned long long)server.db.hits);
	fprintf(f, "keyspace_misses:%llu\r\n", (unsigned long long)server.db.misses);
	fprintf(f, "total_error_replies:%llu\r\n", (unsigned long long)server.nerrors);
	fprintf(f, "oom_error_replies:%llu\r\n", (unsigned long long)server.noom);
}

static void section_preserve(FILE *f)
{
	struct pv_info i;

	pv_info_get(server.store, &i);
	fprintf(f, "preserve_store:%s\r\n", server.opt.store);
	fprintf(f, "preserve_uuid:");
	for (size_t k = 0; k < sizeof(i.uuid); k++)
		fprintf(f, "%02x", i.uuid[k]);
	fprintf(f, "\r\npreserve_origin:%s\r\n", origin_name(i.origin));
	fprintf(f, "preserve_attach_usec:%.1f\r\n", (double)i.attach_ns / 1000);
	fprintf(f, "preserve_fetch_usec:%.1f\r\n", (double)i.fetch_ns / 1000);
	fprintf(f, "preserve_epoch:%llu\r\n", (unsigned long long)i.epoch);
	fprintf(f, "preserve_generation:%llu\r\n", (unsigned long long)i.generation);
	fprintf(f, "preserve_segments:%u\r\n", i.segments);
	fprintf(f, "preserve_bytes:%llu\r\n", (unsigned long long)i.bytes);
	fprintf(f, "preserve_used_bytes:%llu\r\n", (unsigned long long)i.used_bytes);
	fprintf(f, "preserve_handover:%s\r\n", handover_name(i.handover));
	fprintf(f, "preserve_keeper:%s\r\n",
		i.handover == PV_HANDOVER_NONE ? "none"
		: cron_keeper_lost()	       ? "lost"
					       : "ok");
	fprintf(f, "preserve_state:%s\r\n", i.state == PV_STATE_PREPARED ? "prepared" : "serving");
	if (preserve_prepare_usec() >= 0)
		fprintf(f, "preserve_prepare_usec:%lld\r\n", (long long)preserve_prepare_usec());
	fprintf(f, "preserve_from_kexec:%d\r\n", i.from_kexec);
	fprintf(f, "preserve_recovered_intents:%llu\r\n", (unsigned long long)i.recovered);
	fprintf(f, "preserve_exec_to_serving_usec:%lld\r\n", (long long)server.ready_us);
}

static void section_keyspace(FILE *f)
{
	uint64_t keys = pv_map_count(server.db.map);

	if (keys)
		fprintf(f, "db0:keys=%llu,expires=%llu,avg_ttl=0\r\n", (unsigned long long)keys,
			(unsigned long long)server.db.root->expiring);
}

static const struct {
	const char *name;
	const char *title;
	void (*print)(FILE *f);
} sections[] = {
	{"server", "Server", section_server},	    {"clients", "Clients", section_clients},
	{"memory", "Memory", section_memory},	    {"stats", "Stats", section_stats},
	{"preserve", "Preserve", section_preserve}, {"keyspace", "Keyspace", section_keyspace},
};

static bool wanted(const struct request *rq, const char *name)
{
	if (rq->argc == 1)
		return true;
	for (size_t i = 1; i < rq->argc; i++)
		if (arg_is(&rq->argv[i], name) || arg_is(&rq->argv[i], "all") ||
		    arg_is(&rq->argv[i], "default") || arg_is(&rq->argv[i], "everything"))
			return true;
	return false;
}

char *info_make(const struct request *rq, size_t *len)
{
	char *text = NULL;
	FILE *f = open_memstream(&text, len);
	bool first = true;

	if (!f)
		return NULL;
	for (size_t i = 0; i < sizeof(sections) / sizeof(sections[0]); i++) {
		if (!wanted(rq, sections[i].name))
			continue;
		fprintf(f, "%s# %s\r\n", first ? "" : "\r\n", sections[i].title);
		sections[i].print(f);
		first = false;
	}
	if (fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}
