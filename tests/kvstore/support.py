# SPDX-License-Identifier: BSD-3-Clause
"""What the functional tests of kvstore share: servers on ports of their own, and a raw client.

Every test has a directory of its own below the system's temporary directory, which is also the
place of its servers' runtime directory, so that stores and holders of different tests never meet. Servers
and holders are ended by their process ids.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import unittest

KVSTORE = os.environ.get("KVSTORE", "kvstore")

# Where a server finds the store that another one has left.
REATTACHED = "relocated" if os.environ.get("PV_RELOCATE") == "always" else "reattached"


def free_port():
    """A TCP port that nobody uses at the moment."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# Where scripts/setup puts programs whose packages would start a service.
TOOLS = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
                     "libpreserve", "bin")


def program(name):
    """Path of a program that a test needs. It is an error if it is missing: nothing is skipped."""
    path = shutil.which(name) or shutil.which(name, path=TOOLS)
    if not path:
        raise RuntimeError(f"{name} is needed for this test, see scripts/setup")
    return path


class Error(Exception):
    """An error reply."""


class Client:
    """A client that speaks RESP and hides nothing: replies can be had as bytes."""

    def __init__(self, address, timeout=20):
        if isinstance(address, str):
            self.sock = socket.socket(socket.AF_UNIX)
        else:
            self.sock = socket.socket()
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(timeout)
        self.buf = b""
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise

    def close(self):
        self.sock.close()

    @staticmethod
    def encode(*args):
        out = [b"*%d\r\n" % len(args)]
        for a in args:
            if isinstance(a, str):
                a = a.encode("utf-8", "surrogateescape")
            elif not isinstance(a, bytes):
                a = str(a).encode()
            out.append(b"$%d\r\n%s\r\n" % (len(a), a))
        return b"".join(out)

    def send(self, data):
        self.sock.sendall(data)

    def fill(self):
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionError("connection closed by the server")
        self.buf += data

    def line(self):
        while b"\r\n" not in self.buf:
            self.fill()
        line, self.buf = self.buf.split(b"\r\n", 1)
        return line

    def exactly(self, n):
        parts, have = [self.buf], len(self.buf)
        while have < n:
            data = self.sock.recv(min(1 << 20, max(n - have, 1)))
            if not data:
                raise ConnectionError("connection closed by the server")
            parts.append(data)
            have += len(data)
        data = b"".join(parts)
        self.buf = data[n:]
        return data[:n]

    def raw_reply(self):
        """One reply as the bytes that the server sent."""
        line = self.line()
        kind, rest = line[:1], line[1:]
        if kind in b"+-:_,#(":
            return line + b"\r\n"
        if kind in b"$=!":
            n = int(rest)
            return line + b"\r\n" + (self.exactly(n + 2) if n >= 0 else b"")
        if kind in b"*~>":
            return line + b"\r\n" + b"".join(self.raw_reply() for _ in range(int(rest)))
        if kind == b"%":
            return line + b"\r\n" + b"".join(self.raw_reply() for _ in range(2 * int(rest)))
        raise ValueError(f"not a reply: {line!r}")

    def reply(self):
        """One reply as a Python value; an error is raised."""
        line = self.line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise Error(rest.decode("utf-8", "surrogateescape"))
        if kind == b":":
            return int(rest)
        if kind == b"_":
            return None
        if kind in b"$=":
            n = int(rest)
            return self.exactly(n + 2)[:-2] if n >= 0 else None
        if kind in b"*~":
            return [self.reply() for _ in range(int(rest))] if int(rest) >= 0 else None
        if kind == b"%":
            return {self.reply(): self.reply() for _ in range(int(rest))}
        raise ValueError(f"not a reply: {line!r}")

    def __call__(self, *args):
        self.send(self.encode(*args))
        return self.reply()

    def raw(self, *args):
        self.send(self.encode(*args))
        return self.raw_reply()

    def pipeline(self, commands):
        """Send all commands at once; errors are returned, not raised."""
        self.send(b"".join(self.encode(*c) for c in commands))
        return [self.reply_or_error() for _ in commands]

    def reply_or_error(self):
        try:
            return self.reply()
        except Error as e:
            return e

    def info(self, section="everything"):
        text = self("INFO", section).decode()
        return dict(l.split(":", 1) for l in text.split("\r\n") if ":" in l)

    def closed_by_server(self):
        """Wait for the end of the connection; what came before it is returned."""
        data, self.buf = self.buf, b""
        try:
            while True:
                more = self.sock.recv(1 << 16)
                if not more:
                    return data
                data += more
        except ConnectionResetError:
            return data


class Server:
    """A kvstore process, and its store, which outlives it."""

    def __init__(self, directory, *options, store="test", port=None, handover="holder"):
        self.directory = directory
        self.store = store
        self.port = port or free_port()
        self.runtime = os.path.join(directory, "run")
        self.unix = os.path.join(directory, f"{store}.sock")
        self.options = list(options)
        self.handover = handover
        self.process = None
        self.clients = []
        self.ready = {}
        self.log = os.path.join(directory, f"{store}.log")

    def command(self, *more):
        return [KVSTORE, "--port", str(self.port), "--unixsocket", self.unix, "--store", self.store,
                "--runtime-dir", self.runtime, "--handover", self.handover, *self.options, *more]

    def start(self):
        """Start it and wait until it is ready; its "ready" line is in self.ready."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log,
                                            start_new_session=True)
        line = self.process.stdout.readline().decode()
        if not line.startswith("ready "):
            self.process.wait()
            raise RuntimeError(f"kvstore did not start: {line!r} {self.log_text()}")
        self.ready = dict(w.split("=", 1) for w in line.split()[1:])
        return self

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()

    def client(self, unix=False, timeout=20):
        """A client; it is closed when the server has ended."""
        client = Client(self.unix if unix else ("127.0.0.1", self.port), timeout)
        self.clients.append(client)
        return client

    def kill(self):
        """SIGKILL, at once."""
        self.process.kill()
        self.wait()

    def stop(self, signum=signal.SIGTERM):
        """End it in order; its exit status."""
        self.process.send_signal(signum)
        return self.wait()

    def wait(self, timeout=30):
        status = self.process.wait(timeout)
        self.process.stdout.close()
        for client in self.clients:
            client.close()
        self.clients = []
        return status

    def restart(self):
        self.kill()
        return self.start()

    def running(self):
        return self.process is not None and self.process.poll() is None

    def destroy(self):
        """End the process if need be, and drop the store: its holder ends."""
        if self.running():
            self.kill()
        return subprocess.run(self.command("--destroy"), capture_output=True, text=True,
                              timeout=30)


class TestCase(unittest.TestCase):
    """A directory and the servers in it, which are gone when the test is over."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="kvstore-test-")
        self.servers = []
        self.addCleanup(self.clean)

    def clean(self):
        for server in self.servers:
            server.destroy()
        shutil.rmtree(self.directory, ignore_errors=True)

    def server(self, *options, **keywords):
        """A server that is not started yet."""
        server = Server(self.directory, *options, **keywords)
        self.servers.append(server)
        return server

    def wait_until(self, what, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                self.fail(f"{what}: not within {seconds} s")
            time.sleep(0.01)
