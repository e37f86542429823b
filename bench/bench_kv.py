# SPDX-License-Identifier: BSD-3-Clause
"""kvstore against redis-server: throughput, memory a key, time from exec to the first good GET.

Server on the first processor, client on the second. All servers of a comparison run at the same time,
but those that are not being measured are stopped (SIGSTOP), and one that is saving is waited for. A
sample begins with requests that are not counted, and reads are measured when nothing is left to save:
otherwise redis-default would fork for what the writes before them changed.
"""

import contextlib
import csv
import io
import shutil
import tempfile

import benchlib
from kvserver import CLIENT_CPU, VALUE_BYTES, KvStore, Redis, key, value

NAME = "kv"
SUMMARY = "kvstore: against redis-server, its persistence off (redis) and as it comes (redis-default)"
# Case: redis-benchmark's test, pipelined requests, requests of a sample.
THROUGHPUT = {
    "set-p1": ("set", 1, 300_000),
    "get-p1": ("get", 1, 300_000),
    "set-p16": ("set", 16, 2_000_000),
    "get-p16": ("get", 16, 2_000_000),
}
CASES = tuple(THROUGHPUT) + ("bytes-per-key-64", "restart-5m")

WARM_UP_PART = 10  # one in so many requests is made before those that count

NO_PERSISTENCE = ["--save", "", "--appendonly", "no"]


@contextlib.contextmanager
def temporary_folder():
    """On disk, where redis would have its file."""
    folder = tempfile.mkdtemp(prefix="bench-kv-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(context, server, keys):
    """Fill a server, and see that it has every key."""
    context.say(f"{server.impl}: loading {keys} keys")
    with server.client() as client:
        client.load(keys, lambda text: context.say(f"{server.impl}: {text}"))
        check(server, client, keys)


def check(server, client, keys):
    """Has the server all keys, and the right values?"""
    size = client.ask(b"DBSIZE")
    if size != keys:
        raise benchlib.BenchError(f"{server.impl} has {size} keys, not {keys}")
    for number in range(0, keys, max(1, keys // 1000)):
        if client.ask(b"GET", key(number)) != value(number):
            raise benchlib.BenchError(f"{server.impl}: GET {key(number).decode()} is wrong")


def requests_a_second(context, server, test, pipeline, requests, keys):
    """What redis-benchmark measures at one server."""
    argv = [context.tool("redis-benchmark"), "-p", str(server.port), "-t", test, "--csv"]
    argv += ["-d", str(VALUE_BYTES), "-r", str(keys), "-c", "50", "-P", str(pipeline)]
    with server.awake():
        if test == "get":
            server.save()
        redis_benchmark(argv + ["-n", str(max(1, requests // WARM_UP_PART))])
        return redis_benchmark(argv + ["-n", str(requests)])


def redis_benchmark(argv):
    """Run redis-benchmark; requests a second."""
    with benchlib.Child(argv, cpu=CLIENT_CPU) as child:
        text, _ = child.process.communicate()
        status = child.process.returncode
    table = list(csv.DictReader(io.StringIO(text)))
    if status != 0 or len(table) != 1 or "rps" not in table[0]:
        raise benchlib.BenchError(f"{' '.join(argv)}: exit status {status}: {text.strip()}")
    return float(table[0]["rps"])


def throughput(context):
    """Rows of the cases with redis-benchmark."""
    keys = context.size(1_000_000, 20_000)
    rows = []
    with temporary_folder() as folder, contextlib.ExitStack() as stack:
        servers = [
            KvStore(context, "kvstore", folder),
            Redis(context, "redis", folder, NO_PERSISTENCE),
            Redis(context, "redis-default", folder, []),
        ]
        for server in servers:
            stack.enter_context(server)
            with server.awake():
                load(context, server, keys)
        for case, (test, pipeline, requests) in THROUGHPUT.items():
            requests = context.size(requests, requests // 50)
            samples = benchlib.take_turns(
                context,
                case,
                {
                    server.impl: lambda server=server: requests_a_second(
                        context, server, test, pipeline, requests, keys
                    )
                    for server in servers
                },
                lambda: [server.child.pid for server in servers],
            )
            rows += [
                benchlib.row(NAME, case, impl, 1, taken, "ops/s", "more", 0)
                for impl, taken in samples.items()
            ]
    return rows


def first_good_get(server, keys):
    """Restart a server; milliseconds from exec to the first good GET."""
    number = keys // 2
    with server.awake():
        server.restart()
        waited = server.wait_for(b"GET", key(number), value(number))
        with server.client() as client:
            check(server, client, keys)
    return waited


def memory_and_restart(context):
    """Rows of the cases with many keys."""
    keys = context.size(5_000_000, 50_000)
    with temporary_folder() as folder, contextlib.ExitStack() as stack:
        servers = [
            KvStore(context, "kvstore", folder),
            Redis(context, "redis", folder, NO_PERSISTENCE),
        ]
        rows = []
        for server in servers:
            stack.enter_context(server)
            with server.awake():
                load(context, server, keys)
                each = server.memory_bytes() / keys
            rows.append(
                benchlib.row(
                    NAME, "bytes-per-key-64", server.impl, 1, benchlib.Samples([each]), "bytes", "less"
                )
            )
        samples = benchlib.take_turns(
            context,
            f"restart-5m, {keys} keys",
            {
                server.impl: lambda server=server: first_good_get(server, keys)
                for server in servers
            },
            lambda: [server.child.pid for server in servers],
        )
        rows += [
            benchlib.row(NAME, "restart-5m", impl, 1, taken, "ms", "less")
            for impl, taken in samples.items()
        ]
    return rows


def run(context):
    """All cases."""
    return throughput(context) + memory_and_restart(context)
