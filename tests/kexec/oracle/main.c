/* SPDX-License-Identifier: BSD-3-Clause */
/* Options, and the commands that need no file of their own. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "oracle.h"

static const char usage_text[] =
	"usage: oracle COMMAND [OPTION...]\n"
	"\n"
	"A client that knows what a key-value server must hold: it keeps a log of what it sent and "
	"of\n"
	"what was acknowledged, outside of the server, and later says what of that is missing.\n"
	"\n"
	"  load                  SET each of --keys keys once\n"
	"  write                 SET and DEL random ones of --keys keys: --ops writes, or for "
	"--seconds,\n"
	"                        or until SIGTERM\n"
	"  verify                read every key of the log and judge it: what is lost, torn, "
	"stale?\n"
	"  wait                  until the server answers; prints how long that took, and when it "
	"was\n"
	"  start -- COMMAND...   start a server in a session of its own, with --output as its "
	"output;\n"
	"                        wait until it answers; prints its process id and how long that "
	"took\n"
	"  info FIELD...         print fields of INFO\n"
	"  call WORD...          send one command, print its reply\n"
	"\n"
	"  --log FILE            the log (load, write, verify; wait, start: the answer is a key of "
	"it)\n"
	"  --port N              TCP port of the server (--host ADDRESS, default 127.0.0.1)\n"
	"  --unix PATH           or its unix socket\n"
	"  --keys N              number of keys (default 1000)\n"
	"  --first-key N         the first key's number (default 0)\n"
	"  --ops N, --seconds S  length of `write`\n"
	"  --until-end           `write`: the connection's end is a good end\n"
	"  --reconnect           `write`: go on after the connection's end\n"
	"  --deletes PERCENT     share of DEL in `write` (default 10)\n"
	"  --value-bytes N[:M]   length of values, or the range of it (default 64, at least 51)\n"
	"  --connections N       (default 1) each with --pipeline N writes in flight (default 64)\n"
	"  --timeout S           for a connection, and for a reply (default 30)\n"
	"  --output FILE         `start`: where the server writes to (default: the oracle's error "
	"output)\n"
	"  --seed N              of the random choice of keys\n"
	"  --label TEXT          in front of the progress line; --quiet: none\n"
	"\n"
	"Exit status: 0 good; 1 the server does not hold what it must, or `call` got an error "
	"reply;\n"
	"2 wrong usage; 3 trouble: no connection, an unreadable log. Nothing was found out then.\n";

/* ---- helpers of everybody ---- */

_Noreturn void fail(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	fputs("oracle: error: ", stderr);
	vfprintf(stderr, format, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(EXIT_TROUBLE);
}

_Noreturn void usage_error(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	fputs("oracle: error: ", stderr);
	vfprintf(stderr, format, ap);
	fputs(" (see oracle --help)\n", stderr);
	va_end(ap);
	exit(EXIT_USAGE);
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void sleep_ns(uint64_t ns)
{
	nanosleep(&(struct timespec){(time_t)(ns / 1000000000), (long)(ns % 1000000000)}, NULL);
}

void *need(void *old, size_t bytes)
{
	void *p = realloc(old, bytes ? bytes : 1);

	if (!p)
		fail("no memory for %zu bytes", bytes);
	return p;
}

static volatile sig_atomic_t signalled;

static void on_signal(int signal)
{
	(void)signal;
	signalled = 1;
}

bool interrupted(void)
{
	return signalled;
}

/* ---- options ---- */

enum { OPT_UNSIGNED, OPT_TEXT, OPT_REAL, OPT_FLAG };

static uint64_t parse_number(const char *option, const char *text, uint64_t low, uint64_t high)
{
	char *end;
	unsigned long long n;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || errno || n < low || n > high)
		usage_error("%s wants a number from %" PRIu64 " to %" PRIu64 ", not %s", option,
			    low, high, text);
	return n;
}

static double parse_seconds(const char *option, const char *text)
{
	char *end;
	double n = strtod(text, &end);

	if (end == text || *end || !(n > 0) || n > 1e6)
		usage_error("%s wants seconds, not %s", option, text);
	return n;
}

static void parse_range(struct options *o, char *text)
{
	char *colon = strchr(text, ':');

	if (colon)
		*colon++ = '\0';
	o->value_min_bytes = parse_number("--value-bytes", text, VALUE_MIN_BYTES, VALUE_MAX_BYTES);
	o->value_max_bytes =
		colon ? parse_number("--value-bytes", colon, o->value_min_bytes, VALUE_MAX_BYTES)
		      : o->value_min_bytes;
}

enum {
	O_LOG = 256,
	O_HOST,
	O_PORT,
	O_UNIX,
	O_KEYS,
	O_FIRST_KEY,
	O_OPS,
	O_SECONDS,
	O_UNTIL_END,
	O_RECONNECT,
	O_DELETES,
	O_VALUE_BYTES,
	O_CONNECTIONS,
	O_PIPELINE,
	O_TIMEOUT,
	O_OUTPUT,
	O_SEED,
	O_LABEL,
	O_QUIET,
};

static const struct option long_options[] = {
	{"log", required_argument, NULL, O_LOG},
	{"host", required_argument, NULL, O_HOST},
	{"port", required_argument, NULL, O_PORT},
	{"unix", required_argument, NULL, O_UNIX},
	{"keys", required_argument, NULL, O_KEYS},
	{"first-key", required_argument, NULL, O_FIRST_KEY},
	{"ops", required_argument, NULL, O_OPS},
	{"seconds", required_argument, NULL, O_SECONDS},
	{"until-end", no_argument, NULL, O_UNTIL_END},
	{"reconnect", no_argument, NULL, O_RECONNECT},
	{"deletes", required_argument, NULL, O_DELETES},
	{"value-bytes", required_argument, NULL, O_VALUE_BYTES},
	{"connections", required_argument, NULL, O_CONNECTIONS},
	{"pipeline", required_argument, NULL, O_PIPELINE},
	{"timeout", required_argument, NULL, O_TIMEOUT},
	{"output", required_argument, NULL, O_OUTPUT},
	{"seed", required_argument, NULL, O_SEED},
	{"label", required_argument, NULL, O_LABEL},
	{"quiet", no_argument, NULL, O_QUIET},
	{"help", no_argument, NULL, 'h'},
	{0},
};

static void take_option(struct options *o, int option)
{
	switch (option) {
	case O_LOG:
		o->log = optarg;
		break;
	case O_HOST:
		o->host = optarg;
		break;
	case O_PORT:
		o->port = (uint16_t)parse_number("--port", optarg, 1, 65535);
		break;
	case O_UNIX:
		o->unix_path = optarg;
		break;
	case O_KEYS:
		o->keys = parse_number("--keys", optarg, 1, 1u << 29);
		break;
	case O_FIRST_KEY:
		o->first_key = (uint32_t)parse_number("--first-key", optarg, 0, 1u << 29);
		break;
	case O_OPS:
		o->ops = parse_number("--ops", optarg, 1, 1u << 30);
		break;
	case O_SECONDS:
		o->seconds = parse_seconds("--seconds", optarg);
		break;
	case O_UNTIL_END:
		o->until_end = true;
		break;
	case O_RECONNECT:
		o->reconnect = true;
		break;
	case O_DELETES:
		o->deletes_percent = (unsigned int)parse_number("--deletes", optarg, 0, 100);
		break;
	case O_VALUE_BYTES:
		parse_range(o, optarg);
		break;
	case O_CONNECTIONS:
		o->connections = (unsigned int)parse_number("--connections", optarg, 1, 256);
		break;
	case O_PIPELINE:
		o->pipeline = (unsigned int)parse_number("--pipeline", optarg, 1, 65536);
		break;
	case O_TIMEOUT:
		o->timeout_s = parse_seconds("--timeout", optarg);
		break;
	case O_OUTPUT:
		o->output = optarg;
		break;
	case O_SEED:
		o->seed = parse_number("--seed", optarg, 1, UINT64_MAX);
		break;
	case O_LABEL:
		o->label = optarg;
		break;
	case O_QUIET:
		o->quiet = true;
		break;
	case 'h':
		fputs(usage_text, stdout);
		exit(EXIT_GOOD);
	default:
		exit(EXIT_USAGE); /* getopt has said why */
	}
}

static void parse_options(struct options *o, int argc, char **argv)
{
	int option;

	*o = (struct options){
		.host = "127.0.0.1",
		.keys = 1000,
		.ops = UINT64_MAX,
		.timeout_s = 30,
		.connections = 1,
		.pipeline = 64,
		.deletes_percent = 10,
		.value_min_bytes = 64,
		.value_max_bytes = 64,
	};
	while ((option = getopt_long(argc, argv, "+h", long_options, NULL)) != -1)
		take_option(o, option);
	if (o->keys < o->connections)
		usage_error("%u connections cannot share %" PRIu64 " keys", o->connections,
			    o->keys);
}

void need_server(const struct options *o)
{
	if (!o->port && !o->unix_path)
		usage_error("which server? --port or --unix");
}

static void need_log(const struct options *o)
{
	need_server(o);
	if (!o->log)
		usage_error("which log? --log");
}

/* ---- info, call ---- */

static void connect_once(struct link *l, const struct options *o)
{
	int rc;

	need_server(o);
	rc = link_open(l, o, (uint64_t)(o->timeout_s * 1e9));
	if (rc)
		fail("no connection: %s", strerror(-rc));
}

static int run_info(const struct options *o, char **fields)
{
	struct link l = {.fd = -1};
	char value[1024];

	connect_once(&l, o);
	for (; *fields; fields++) {
		if (!link_info(&l, o, *fields, value, sizeof(value)))
			fail("no field %s in INFO", *fields);
		printf("%s\n", value);
	}
	link_free(&l);
	return EXIT_GOOD;
}

/* The elements of a list come as they stand in it, one a line. */
static bool print_reply(struct link *l, const struct options *o, const char *command)
{
	struct reply r;
	int rc = link_ask(l, &r, (uint64_t)(o->timeout_s * 1e9));
	bool good = true;

	if (rc)
		fail("no reply to %s: %s", command, strerror(-rc));
	if (r.type == REPLY_ARRAY) {
		for (int64_t n = r.integer; n > 0; n--)
			good &= print_reply(l, o, command);
		return good;
	}
	printf("%.*s\n", r.text ? (int)r.bytes : 6, r.text ? r.text : "(null)");
	return r.type != REPLY_ERROR;
}

static int run_call(const struct options *o, int words, char **text)
{
	struct link l = {.fd = -1};
	size_t bytes[16];
	bool good;

	if (words < 1 || words > 16)
		usage_error("call wants 1 to 16 words");
	for (int i = 0; i < words; i++)
		bytes[i] = strlen(text[i]);
	connect_once(&l, o);
	link_command(&l, (unsigned int)words, (const char *const *)text, bytes);
	good = print_reply(&l, o, text[0]);
	link_free(&l);
	return good ? EXIT_GOOD : EXIT_FAULTS;
}

int main(int argc, char **argv)
{
	const bool named = argc > 1 && argv[1][0] != '-';
	const char *command = named ? argv[1] : "";
	struct options o;

	parse_options(&o, argc - named, argv + named);
	argv += named + optind;
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_signal}, NULL);
	sigaction(SIGINT, &(struct sigaction){.sa_handler = on_signal}, NULL);
	sigaction(SIGCHLD, &(struct sigaction){.sa_handler = on_signal}, NULL);
	if (strcmp(command, "info") == 0)
		return run_info(&o, argv);
	if (strcmp(command, "call") == 0) {
		int words = 0;

		while (argv[words])
			words++;
		return run_call(&o, words, argv);
	}
	if (strcmp(command, "start") == 0)
		return run_start(&o, argv);
	if (*argv)
		usage_error("what is %s?", *argv);
	if (strcmp(command, "wait") == 0)
		return run_wait(&o);
	if (strcmp(command, "verify") == 0) {
		need_log(&o);
		return run_verify(&o);
	}
	if (strcmp(command, "load") != 0 && strcmp(command, "write") != 0)
		usage_error(*command ? "unknown command %s" : "which command?%s", command);
	need_log(&o);
	return run_write(&o, strcmp(command, "load") == 0);
}
