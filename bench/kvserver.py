# SPDX-License-Identifier: BSD-3-Clause
"""Key-value servers under measurement: kvstore and redis, started privately, each on a free port, with
its files in a folder of its own, on the first processor; and a client that loads them."""

import contextlib
import os
import re
import signal
import socket
import time

import benchlib

SERVER_CPU = 0
CLIENT_CPU = 1
VALUE_BYTES = 64
LOAD_BATCH = 5000
START_SECONDS = 300  # redis reads millions of keys in this time


def free_port():
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def key(number):
    """The key that redis-benchmark -r makes of a number: 16 bytes."""
    return b"key:%012d" % number


def value(number):
    """64 bytes that can be told from another key's."""
    return b"%064d" % number


class Client:
    """A blocking connection that speaks enough of the protocol to load, to ask and to check."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.file.close()
        self.socket.close()

    @staticmethod
    def encode(*words):
        """A command as it is sent."""
        parts = [b"*%d\r\n" % len(words)]
        parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
        return b"".join(parts)

    def send(self, *words):
        """Send a command and wait for nothing."""
        self.socket.sendall(self.encode(*words))

    def ask(self, *words):
        """Send a command, return the reply: bytes, None or int; an error reply as str."""
        self.send(*words)
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection was closed")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self.file.read(size + 2)[:-2]
        if kind == b":":
            return int(rest)
        return rest.decode() if kind == b"-" else rest

    def load(self, count, say):
        """SET `count` keys; every reply is checked."""
        step = max(1, count // 5 // LOAD_BATCH) * LOAD_BATCH
        for first in range(0, count, LOAD_BATCH):
            numbers = range(first, min(first + LOAD_BATCH, count))
            self.socket.sendall(b"".join(self.encode(b"SET", key(n), value(n)) for n in numbers))
            replies = self.file.read(len(b"+OK\r\n") * len(numbers))
            if replies != b"+OK\r\n" * len(numbers):
                raise benchlib.BenchError(f"SET was answered with {replies[:80]!r}")
            if first and first % step == 0:
                say(f"loaded {first} of {count} keys")


class Server:
    """One server. `impl` is the name in the rows. Use it in a `with`: the end of that is its end, and
    that of whatever keeps its data."""

    def __init__(self, context, impl, folder):
        self.context = context
        self.impl = impl
        self.folder = os.path.join(folder, impl)
        self.port = free_port()
        self.child = None
        self.log = None
        os.makedirs(self.folder, mode=0o700)

    def argv(self):
        """The command line."""
        raise NotImplementedError

    def memory_bytes(self):
        """Everything that the server's data cost now."""
        raise NotImplementedError

    def quiet(self):
        """Wait until it does nothing by itself in the background."""

    def save(self):
        """Have it do now what it would do by itself, later, for what was written so far."""

    def clear(self):
        """End what keeps the data."""

    def __enter__(self):
        self.log = open(os.path.join(self.folder, "log"), "ab")
        try:
            self.start()
            self.wait_for(b"PING", b"PONG")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *unused):
        if self.child:
            self.child.signal(signal.SIGCONT)
            self.child.kill()
        self.clear()
        self.log.close()

    def start(self):
        """Start the process."""
        self.child = benchlib.Child(
            self.argv(), cpu=SERVER_CPU, cwd=self.folder, log=self.log
        )

    def client(self):
        """A new connection."""
        return Client(self.port)

    def wait_for(self, *words_and_reply):
        """Ask until the reply is the wanted one; milliseconds since the process was started."""
        *words, wanted = words_and_reply
        end = time.monotonic() + START_SECONDS
        reply = "no answer"
        while time.monotonic() < end:
            with contextlib.suppress(ConnectionError), self.client() as client:
                while True:
                    reply = client.ask(*words)
                    if reply == wanted:
                        return (time.monotonic() - self.child.start_time) * 1e3
                    if not (isinstance(reply, str) and reply.startswith("LOADING")):
                        break
                    time.sleep(0.0005)
                raise benchlib.BenchError(f"{self.impl} answered {words} with {reply!r}")
            if not self.child.running():
                break
            time.sleep(0.0001)
        with open(self.log.name, "r", errors="replace", encoding="utf-8") as log:
            tail = log.read()[-800:]
        raise benchlib.BenchError(f"{self.impl} did not come up: {reply!r}; its log ends:\n{tail}")

    @contextlib.contextmanager
    def awake(self):
        """Let the server run inside of the `with`; outside it is stopped and disturbs nobody."""
        self.child.signal(signal.SIGCONT)
        yield self
        self.quiet()
        self.child.signal(signal.SIGSTOP)


class Redis(Server):
    """redis-server with nothing but the options given."""

    def __init__(self, context, impl, folder, options):
        super().__init__(context, impl, folder)
        self.program = context.tool("redis-server")
        self.options = options

    def argv(self):
        fixed = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.folder]
        return [self.program] + fixed + self.options

    def memory_bytes(self):
        return process_kib(self.child.pid, "status", "VmRSS") * 1024

    def persistence(self):
        """What it says of its saving."""
        with self.client() as client:
            lines = client.ask(b"INFO", b"persistence").decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def quiet(self):
        benchlib.wait_until(
            lambda: self.persistence()["rdb_bgsave_in_progress"] == "0", 120, f"{self.impl} had saved"
        )

    def save(self):
        if "--save" in self.options or self.persistence()["rdb_changes_since_last_save"] == "0":
            return
        self.quiet()
        with self.client() as client:
            client.ask(b"BGSAVE")
        self.quiet()
        if self.persistence()["rdb_changes_since_last_save"] != "0":
            raise benchlib.BenchError(f"{self.impl} has not saved: see its log in {self.folder}")

    def restart(self):
        """Save, end, and start again from the file."""
        with self.client() as client, contextlib.suppress(ConnectionError):
            client.ask(b"SHUTDOWN", b"SAVE")
        self.child.wait(120)
        self.start()


class KvStore(Server):
    """kvstore of this build, its data kept by a holder."""

    def __init__(self, context, impl, folder):
        super().__init__(context, impl, folder)
        self.program = context.program("examples", "kvstore", "kvstore")
        self.holders = []

    def argv(self):
        return [self.program, "--port", str(self.port), "--handover", "holder"] + self.store()

    def store(self):
        """Which store; its holder's socket is in the folder."""
        return ["--store", "bench-kv", "--runtime-dir", self.folder]

    def __enter__(self):
        super().__enter__()
        self.holders = users_of(memfds(self.child.pid), but=self.child.pid)
        if not self.holders:
            self.__exit__()
            raise benchlib.BenchError("no process but kvstore itself has its store's memfds open")
        return self

    def memory_bytes(self):
        # All memfds in full, mapped or not; of the server what is not a mapping of them.
        server = self.child.pid
        kib = process_kib(server, "smaps_rollup", "Pss")
        kib -= process_kib(server, "smaps_rollup", "Pss_Shmem")
        kib += sum(process_kib(pid, "smaps_rollup", "Pss") for pid in self.holders)
        return kib * 1024 + sum(memfds(server).values())

    def restart(self):
        """Kill it while it works, and start it again."""
        with self.client() as client:
            numbers = range(2000)
            client.socket.sendall(b"".join(client.encode(b"SET", key(n), value(n)) for n in numbers))
            self.child.kill()
        self.start()

    def clear(self):
        # Its holder ends with the store.
        with benchlib.Child([self.program, "--destroy"] + self.store(), log=self.log) as child:
            child.wait(60)
        benchlib.wait_until(
            lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in self.holders),
            5,
            f"the store's holder, process {self.holders}, had ended",
        )


def process_kib(pid, file, field):
    """A figure in kB from a file in /proc/PID."""
    with open(f"/proc/{pid}/{file}", encoding="ascii") as lines:
        match = re.search(rf"^{field}:\s+(\d+) kB$", lines.read(), re.MULTILINE)
    if not match:
        raise benchlib.BenchError(f"/proc/{pid}/{file} has no line {field}")
    return int(match[1])


def memfds(pid):
    """The memfds that a process has open: (device, inode) to bytes of memory."""
    found = {}
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(path).startswith("/memfd:"):
                status = os.stat(path)
                found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return found


def users_of(files, but):
    """Processes other than `but` that have one of these memfds open."""
    pids = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != but:
            with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
                if files.keys() & memfds(name).keys():
                    pids.append(int(name))
    return pids
