# SPDX-License-Identifier: BSD-3-Clause
"""kvstore as a service: a service manager of the test's own keeps its store, and runs it again."""

import os
import random
import socket
import subprocess
import threading
import unittest

import support


class Manager:
    """Keeps descriptors by name, as systemd's file descriptor store does."""

    def __init__(self, directory, limit=64):
        self.path = os.path.join(directory, "notify")
        self.limit = limit
        self.kept = []
        self.said = []
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            data, fds, _, _ = socket.recv_fds(self.sock, 4096, 4)
            lines = data.decode().split("\n")
            said = dict(l.split("=", 1) for l in lines if "=" in l)
            if "END" in said:
                return
            self.said += [l for l in lines if l.startswith(("READY", "STOPPING"))]
            name = said.get("FDNAME", "stored")
            if "FDSTOREREMOVE" in said:
                for entry in [e for e in self.kept if e[0] == name]:
                    self.kept.remove(entry)
                    os.close(entry[1])
            elif "FDSTORE" in said and fds and len(self.kept) < self.limit:
                self.kept.append((name, fds.pop()))
            for fd in fds:
                os.close(fd)

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"END=1", self.path)
        self.thread.join()
        self.sock.close()
        for _, fd in self.kept:
            os.close(fd)
        self.kept = []


class Service(support.Server):
    """A server whose process the manager starts."""

    def __init__(self, manager, *args, **keywords):
        super().__init__(*args, handover="auto", **keywords)
        self.manager = manager

    def start(self):
        kept = self.manager.kept[:]
        random.shuffle(kept)
        env = dict(os.environ, NOTIFY_SOCKET=self.manager.path, FDSTORE=str(self.manager.limit))
        if kept:
            env.update(LISTEN_FDS=str(len(kept)), LISTEN_FDNAMES=":".join(n for n, _ in kept))

        def place():
            high = [os.dup2(fd, 300 + i, False) for i, (_, fd) in enumerate(kept)]
            for i, fd in enumerate(high):
                os.dup2(fd, 3 + i)

        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", 'LISTEN_PID=$$ SYSTEMD_EXEC_PID=$$ exec "$@"', "sh", *self.command()],
                env=env, close_fds=False, preexec_fn=place, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True)
        self.take_ready()
        return self

    def take_ready(self):
        line = self.process.stdout.readline().decode()
        if not line.startswith("ready "):
            self.process.wait()
            raise RuntimeError(f"kvstore did not start: {line!r} {self.log_text()}")
        self.ready = dict(w.split("=", 1) for w in line.split()[1:])

    def destroy(self):
        if self.running():
            self.kill()
        self.manager.close()


class Life(support.TestCase):
    def service(self, *options, limit=64):
        server = Service(Manager(self.directory, limit), self.directory, *options)
        self.servers.append(server)
        return server

    def test_kill_and_stop(self):
        server = self.service().start()
        self.assertEqual(server.ready["handover"], "systemd")
        client = server.client()
        for i in range(2000):
            client("SET", f"key{i}", "x" * i)
        for how in ("kill", "stop", "kill"):
            if how == "kill":
                server.kill()
            else:
                self.assertEqual(server.stop(), 0)
            server.start()
            self.assertEqual(server.ready["origin"], support.REATTACHED)
            self.assertEqual(server.ready["handover"], "systemd")
            client = server.client()
            self.assertEqual(client("DBSIZE"), 2000)
            for i in range(0, 2000, 7):
                self.assertEqual(client("GET", f"key{i}"), b"x" * i)
        self.wait_until("READY=1", lambda: server.manager.said.count("READY=1") == 4)
        self.assertEqual(server.manager.said.count("STOPPING=1"), 1)
        self.assertEqual(len(server.manager.kept), 2)

    def test_growth_and_prepare(self):
        server = self.service("--max-memory", "64mb").start()  # segments from 8 MiB
        client = server.client()
        for i in range(30):
            client("SET", f"key{i}", bytes([i]) * 1000000)
        self.assertIn(b"prepared", client("PRESERVE", "PREPARE"))
        segments = int(client.info()["preserve_segments"])
        self.assertGreaterEqual(segments, 3)
        self.assertEqual(client.info()["preserve_keeper"], "ok")
        self.assertEqual(len(server.manager.kept), segments + 1)
        server.restart()
        client = server.client()
        for i in range(30):
            self.assertEqual(client("GET", f"key{i}"), bytes([i]) * 1000000)

    def test_descriptor_store_is_full(self):
        server = self.service("--max-memory", "64mb", limit=3).start()
        client = server.client()
        said = None
        for i in range(60):
            said = client.pipeline([("SET", f"key{i}", b"x" * 1000000)])[0]
            if said != "OK":
                break
        self.assertIsInstance(said, support.Error)
        self.assertTrue(str(said).startswith("OOM"), said)
        self.assertEqual(client.info()["preserve_keeper"], "ok")
        server.restart()
        self.assertEqual(server.client()("DBSIZE"), i)

    def test_save_and_load(self):
        path = os.path.join(self.directory, "dump.pv")
        server = self.service("--save-file", path).start()
        client = server.client()
        for i in range(500):
            client("SET", f"key{i}", "x" * i)
        self.assertEqual(client("SAVE"), "OK")
        # A reboot that is no kexec: the manager has nothing any more.
        server.kill()
        for _, fd in server.manager.kept:
            os.close(fd)
        server.manager.kept = []
        for _ in range(2):  # then from the manager
            server.start()
            client = server.client()
            self.assertEqual((client("DBSIZE"), client("GET", "key99")), (500, b"x" * 99))
            self.assertEqual(client.info()["preserve_keeper"], "ok")
            self.assertEqual(len(server.manager.kept), 2)
            if os.path.exists(path):
                os.unlink(path)
            server.kill()

    def test_something_is_missing(self):
        server = self.service().start()
        server.client()("SET", "key", "value")
        server.kill()
        for entry in [e for e in server.manager.kept if "/1/" in e[0]]:
            server.manager.kept.remove(entry)
            os.close(entry[1])
        with self.assertRaisesRegex(RuntimeError, "is not complete: of its 1 segments"):
            server.start()
        server.process.stdout.close()


if __name__ == "__main__":
    unittest.main()
