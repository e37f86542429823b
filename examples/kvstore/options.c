/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvstore.h"

static const char help[] =
	"Usage: kvstore [OPTION]...\n"
	"A key-value server that speaks the Redis protocol. Its data outlive the process, and a "
	"kexec.\n"
	"\n"
	"  -p, --port PORT          TCP port (default 6379; 0: no TCP)\n"
	"  -b, --bind ADDRESS       address to bind to (default 127.0.0.1)\n"
	"  -u, --unixsocket PATH    listen on a unix socket as well\n"
	"  -s, --store NAME         name of the store (default kvstore)\n"
	"  -H, --handover KIND      who keeps the data while the server is down: auto, systemd,\n"
	"                           agent, holder, luo or none (default auto)\n"
	"  -e, --eager              prepared for a kexec at all times, announced or not (takes all\n"
	"                           memory of each segment)\n"
	"  -m, --max-memory SIZE    limit of the store, as 512mb or 4gb (default: none)\n"
	"  -c, --client-memory SIZE limit of all clients' buffers (default: a quarter of the "
	"memory)\n"
	"  -n, --max-clients N      connections at a time (default 10000)\n"
	"  -r, --runtime-dir DIR    where the holder's socket is (default "
	"$XDG_RUNTIME_DIR/libpreserve,\n"
	"                           or /run/libpreserve for root)\n"
	"  -f, --save-file FILE     where SAVE writes all keys; a start that finds no store reads it\n"
	"      --destroy            drop the store and all data in it, and end\n"
	"  -h, --help               print this\n"
	"  -V, --version            print the version\n"
	"\n"
	"SIGTERM, SIGINT and SHUTDOWN end the server; the data stay. See kvstore(1).\n";

static const char *const handovers[] = {
	[PV_HANDOVER_AUTO] = "auto",
	[PV_HANDOVER_HOLDER] = "holder",
	[PV_HANDOVER_LUO] = "luo",
	[PV_HANDOVER_NONE] = "none",
	[PV_HANDOVER_SYSTEMD] = "systemd",
	[PV_HANDOVER_AGENT] = "agent",
};

#define NHANDOVERS (sizeof(handovers) / sizeof(handovers[0]))

const char *handover_name(uint32_t handover)
{
	return handover < NHANDOVERS && handovers[handover] ? handovers[handover] : "unknown";
}

const char *origin_name(enum pv_origin origin)
{
	static const char *const origins[] = {"created", "reattached", "relocated"};

	return origin < sizeof(origins) / sizeof(origins[0]) ? origins[origin] : "unknown";
}

static int bad(const char *option, const char *value, const char *want)
{
	fprintf(stderr, "kvstore: --%s %s: %s\nTry kvstore --help.\n", option, value, want);
	return 2;
}

/* A number with an optional unit, as Redis takes it: k, m and g are decimal, kb, mb and gb binary.
 */
static bool parse_size(const char *s, uint64_t *out)
{
	static const struct {
		const char *name;
		uint64_t factor;
	} units[] = {
		{"", 1},	{"b", 1},	    {"k", 1000},       {"kb", 1ull << 10},
		{"m", 1000000}, {"mb", 1ull << 20}, {"g", 1000000000}, {"gb", 1ull << 30},
	};
	char *end;
	unsigned long long v;

	if (*s < '0' || *s > '9')
		return false;
	errno = 0;
	v = strtoull(s, &end, 10);
	if (errno)
		return false;
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		if (strcasecmp(end, units[i].name) == 0)
			return !__builtin_mul_overflow(v, units[i].factor, out);
	return false;
}

static bool parse_number(const char *s, uint64_t least, uint64_t most, uint64_t *out)
{
	char *end;

	if (*s < '0' || *s > '9')
		return false;
	errno = 0;
	*out = strtoull(s, &end, 10);
	return !errno && !*end && *out >= least && *out <= most;
}

static uint64_t quarter_of_memory(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
	uint64_t quarter = pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes / 4 : 0;

	return quarter < 64ull << 20 ? 64ull << 20 : quarter;
}

static int parse_handover(const char *value, struct options *opt)
{
	for (uint32_t i = 0; i < NHANDOVERS; i++) {
		if (handovers[i] && strcmp(value, handovers[i]) == 0) {
			opt->handover = i;
			return -1;
		}
	}
	return bad("handover", value, "one of auto, systemd, agent, holder, luo, none is wanted");
}

enum { OPT_DESTROY = 256 };

static int parse_one(int letter, const char *value, struct options *opt)
{
	uint64_t n;

	switch (letter) {
	case 'p':
		if (!parse_number(value, 0, 65535, &n))
			return bad("port", value, "a number from 0 to 65535 is wanted");
		opt->port = (uint16_t)n;
		return -1;
	case 'b':
		opt->bind = value;
		return -1;
	case 'u':
		opt->unix_path = value;
		return -1;
	case 's':
		opt->store = value;
		return -1;
	case 'r':
		opt->runtime_dir = value;
		return -1;
	case 'H':
		return parse_handover(value, opt);
	case 'm':
		if (!parse_size(value, &opt->max_memory))
			return bad("max-memory", value,
				   "a size as 1000000, 512mb or 4gb is wanted");
		return -1;
	case 'c':
		if (!parse_size(value, &opt->client_memory) || opt->client_memory < 1u << 20)
			return bad("client-memory", value, "a size of 1mb or more is wanted");
		return -1;
	case 'n':
		if (!parse_number(value, 1, 1000000, &n))
			return bad("max-clients", value, "a number from 1 to 1000000 is wanted");
		opt->max_clients = (unsigned int)n;
		return -1;
	case 'f':
		opt->save_file = value;
		return -1;
	case 'e':
		opt->eager = true;
		return -1;
	case OPT_DESTROY:
		opt->destroy = true;
		return -1;
	case 'h':
		fputs(help, stdout);
		return 0;
	case 'V':
		printf("kvstore %s\n", pv_version());
		return 0;
	}
	fputs("Try kvstore --help.\n", stderr);
	return 2;
}

int options_parse(int argc, char **argv, struct options *opt)
{
	static const struct option longs[] = {
		{"port", required_argument, NULL, 'p'},
		{"bind", required_argument, NULL, 'b'},
		{"unixsocket", required_argument, NULL, 'u'},
		{"store", required_argument, NULL, 's'},
		{"handover", required_argument, NULL, 'H'},
		{"eager", no_argument, NULL, 'e'},
		{"max-memory", required_argument, NULL, 'm'},
		{"client-memory", required_argument, NULL, 'c'},
		{"max-clients", required_argument, NULL, 'n'},
		{"runtime-dir", required_argument, NULL, 'r'},
		{"save-file", required_argument, NULL, 'f'},
		{"destroy", no_argument, NULL, OPT_DESTROY},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{0},
	};
	int letter, status;

	*opt = (struct options){
		.port = 6379,
		.bind = "127.0.0.1",
		.store = "kvstore",
		.handover = PV_HANDOVER_AUTO,
		.client_memory = quarter_of_memory(),
		.max_clients = 10000,
	};
	while ((letter = getopt_long(argc, argv, "p:b:u:s:H:em:c:n:r:f:hV", longs, NULL)) != -1) {
		status = parse_one(letter, optarg, opt);
		if (status >= 0)
			return status;
	}
	if (optind < argc) {
		fprintf(stderr, "kvstore: %s: not an option\nTry kvstore --help.\n", argv[optind]);
		return 2;
	}
	if (!opt->port && !opt->unix_path && !opt->destroy) {
		fputs("kvstore: --port 0 without --unixsocket: nobody could connect\n", stderr);
		return 2;
	}
	return -1;
}
