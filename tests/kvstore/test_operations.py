# SPDX-License-Identifier: BSD-3-Clause
"""What an operator does and meets: options, signals, errors at the start, limits, handover."""

import os
import signal
import socket
import stat
import subprocess
import unittest

import support


class Start(support.TestCase):
    def failing(self, *options, **keywords):
        """Start a server that must not start: its exit status and what it said."""
        server = self.server(*options, **keywords)
        done = subprocess.run(server.command(), capture_output=True, text=True, timeout=30)
        self.assertEqual(done.stdout, "")
        return done.returncode, done.stderr

    def run_program(self, *options):
        return subprocess.run([support.KVSTORE, *options], capture_output=True, text=True, timeout=30)

    def test_help_and_version(self):
        done = self.run_program("--help")
        self.assertEqual(done.returncode, 0)
        for option in ("--port", "--bind", "--unixsocket", "--store", "--handover", "--max-memory",
                       "--runtime-dir", "--destroy", "--help", "--version"):
            self.assertIn(option, done.stdout)
        done = self.run_program("--version")
        self.assertRegex(done.stdout, r"^kvstore \d+\.\d+\.\d+\n$")
        self.assertEqual(done.returncode, 0)

    def test_bad_options(self):
        for options, said in (
                (["--port", "65536"], "--port 65536"), (["--port", "x"], "--port x"),
                (["--port", "-1"], "--port -1"), (["--handover", "what"], "--handover what"),
                (["--max-memory", "12q"], "--max-memory 12q"), (["--max-memory", "-5"], "-5"),
                (["--max-memory", "99999999999gb"], "99999999999gb"), (["--nosuch"], "nosuch"),
                (["--client-memory", "1"], "--client-memory 1"), (["extra"], "extra"),
                (["--max-clients", "0"], "--max-clients 0"), (["--port", "0"], "nobody")):
            with self.subTest(options):
                done = self.run_program(*options)
                self.assertEqual(done.returncode, 2)
                self.assertIn(said, done.stderr)

    def test_bad_store_name(self):
        status, said = self.failing(store="a/b", handover="none")
        self.assertEqual(status, 1)
        self.assertIn("a/b", said)

    def test_port_in_use(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            status, said = self.failing(port=s.getsockname()[1])
            self.assertEqual(status, 1)
            self.assertIn(f"port {s.getsockname()[1]}: the port is in use", said)
        # Nothing was created for it.
        self.assertFalse(os.path.exists(os.path.join(self.directory, "run")))

    def test_bad_address(self):
        status, said = self.failing("--bind", "no such host")
        self.assertEqual(status, 1)
        self.assertIn("no such host", said)
        status, said = self.failing("--bind", "192.0.2.1")
        self.assertEqual(status, 1)
        self.assertIn("192.0.2.1", said)

    def test_unix_socket_in_use(self):
        first = self.server().start()
        status, said = self.failing("--unixsocket", first.unix, store="other")
        self.assertEqual(status, 1)
        self.assertIn(f"{first.unix} is in use", said)
        self.assertEqual(first.client(unix=True)("PING"), "PONG")

    def test_unix_socket_path_is_a_file(self):
        path = os.path.join(self.directory, "precious")
        with open(path, "w", encoding="ascii") as f:
            f.write("data")
        status, said = self.failing("--unixsocket", path)
        self.assertEqual(status, 1)
        self.assertIn("is not a socket", said)
        self.assertEqual(os.path.getsize(path), 4)
        status, said = self.failing("--unixsocket", "/tmp/" + "x" * 200)
        self.assertEqual(status, 1)
        self.assertIn("longer than", said)

    def test_left_over_socket_is_replaced(self):
        server = self.server().start()
        server.kill()
        self.assertTrue(stat.S_ISSOCK(os.stat(server.unix).st_mode))
        server.start()
        self.assertEqual(server.client(unix=True)("PING"), "PONG")
        server.stop()
        self.assertFalse(os.path.exists(server.unix))

    def test_store_held_by_another_process(self):
        first = self.server().start()
        first.client()("SET", "a", "1")
        status, said = self.failing("--unixsocket", os.path.join(self.directory, "other"))
        self.assertEqual(status, 1)
        self.assertIn(f"in use by process {first.process.pid}", said)
        self.assertEqual(first.client()("GET", "a"), b"1")
        # Nor can it be destroyed.
        done = subprocess.run(first.command("--destroy"), capture_output=True, text=True,
                              timeout=30)
        self.assertEqual(done.returncode, 1)
        self.assertIn(str(first.process.pid), done.stderr)
        self.assertEqual(first.client()("GET", "a"), b"1")

    def test_runtime_dir_is_not_private(self):
        os.mkdir(os.path.join(self.directory, "run"))
        os.chmod(os.path.join(self.directory, "run"), 0o777)
        status, said = self.failing()
        self.assertEqual(status, 1)
        self.assertIn("0700", said)

    def test_no_liveupdate(self):
        if os.path.exists("/dev/liveupdate"):
            self.skipTest("this machine has /dev/liveupdate")
        status, said = self.failing(handover="luo")
        self.assertEqual(status, 1)
        self.assertIn("/dev/liveupdate", said)

    def test_auto_says_what_it_chose(self):
        server = self.server(handover="auto").start()
        self.assertIn(server.ready["handover"], ("holder", "luo"))
        if server.ready["handover"] == "holder":
            self.assertIn("a kexec would lose the data", server.log_text())


class Life(support.TestCase):
    def test_ends_in_order(self):
        """SIGTERM, SIGINT and SHUTDOWN: exit status 0, the data stay."""
        server = self.server().start()
        self.assertEqual(server.ready["origin"], "created")
        expected = {}
        for n, end in enumerate((signal.SIGTERM, signal.SIGINT, "SHUTDOWN", "SHUTDOWN NOSAVE",
                                 "SHUTDOWN SAVE")):
            client = server.client()
            client("SET", f"k{n}", f"v{n}")
            expected[f"k{n}".encode()] = f"v{n}".encode()
            if isinstance(end, str):
                client.send(client.encode(*end.split()))
                self.assertEqual(client.closed_by_server(), b"")
                self.assertEqual(server.wait(), 0)
            else:
                self.assertEqual(server.stop(end), 0)
            server.start()
            self.assertEqual(server.ready["origin"], support.REATTACHED)
            self.assertEqual(server.ready["recovered"], "0")
            client = server.client()
            self.assertEqual({k: client("GET", k) for k in expected}, expected)

    def test_replies_before_the_end(self):
        """What was read before a SHUTDOWN has its replies."""
        server = self.server().start()
        client = server.client()
        client.send(b"".join(client.encode("INCR", "n") for _ in range(100)) +
                    client.encode("SHUTDOWN") + client.encode("INCR", "n"))
        self.assertEqual(client.closed_by_server(), b"".join(b":%d\r\n" % i for i in range(1, 101)))
        self.assertEqual(server.wait(), 0)
        server.start()
        self.assertEqual(server.client()("GET", "n"), b"100")

    def test_ready_line(self):
        server = self.server().start()
        server.client()("SET", "a", "b")
        server.restart()
        ready = server.ready
        self.assertEqual(ready["port"], str(server.port))
        self.assertEqual(ready["unixsocket"], server.unix)
        self.assertEqual((ready["store"], ready["handover"]), ("test", "holder"))
        self.assertEqual((ready["origin"], ready["keys"]), (support.REATTACHED, "1"))
        self.assertGreater(float(ready["attach_usec"]), 0)
        self.assertGreater(int(ready["exec_to_ready_usec"]), 0)

    def test_info_preserve(self):
        server = self.server().start()
        info = server.client().info("preserve")
        self.assertEqual((info["preserve_origin"], info["preserve_epoch"]), ("created", "1"))
        server.restart()
        info = server.client().info("preserve")
        self.assertEqual((info["preserve_origin"], info["preserve_epoch"]), (support.REATTACHED, "2"))
        self.assertEqual(info["preserve_handover"], "holder")
        self.assertEqual((info["preserve_state"], info["preserve_from_kexec"]), ("serving", "0"))
        self.assertGreaterEqual(int(info["preserve_segments"]), 1)
        self.assertGreater(int(info["preserve_bytes"]), 1 << 20)
        self.assertGreater(float(info["preserve_attach_usec"]), 0)
        everything = server.client().info()
        for name in ("redis_version", "process_id", "connected_clients", "used_memory", "maxmemory",
                     "total_commands_processed", "keyspace_hits", "uptime_in_seconds"):
            self.assertIn(name, everything)
        self.assertNotIn("used_memory", info)

    def test_preserve_without_luo(self):
        server = self.server().start()
        client = server.client()
        with self.assertRaisesRegex(support.Error, "kexec"):
            client("PRESERVE", "PREPARE")
        client("PRESERVE", "CANCEL")
        for command in (["PRESERVE"], ["PRESERVE", "FOO"], ["PRESERVE", "PREPARE", "now"]):
            with self.assertRaises(support.Error):
                client(*command)
        state = client("PRESERVE", "STATUS")
        self.assertEqual(dict(zip(state[::2], state[1::2]))[b"state"], b"serving")
        # What follows in the pipeline is run when the reply is there, and in order.
        replies = client.pipeline([("SET", "a", "1"), ("PRESERVE", "PREPARE"), ("INCR", "a"),
                                   ("GET", "a")])
        self.assertIsInstance(replies[1], support.Error)
        self.assertEqual(replies[2:], [2, b"2"])

    def test_a_client_that_leaves_while_it_waits(self):
        server = self.server().start()
        for _ in range(50):
            client = server.client()
            client.send(client.encode("PRESERVE", "PREPARE"))
            client.close()
        self.assertEqual(server.client()("PING"), "PONG")

    def test_save(self):
        path = os.path.join(self.directory, "dump.pv")
        server = self.server("--save-file", path).start()
        client = server.client()
        for i in range(1000):
            client("SET", f"key:{i}", "x" * i)
        self.assertEqual(client("SAVE"), "OK")
        client("SET", "key:1", "later")
        # In a pipeline, while others wait: in order, whoever looks after the keeper just now.
        for _ in range(20):
            self.assertEqual(client.pipeline([("INCR", "n"), ("SAVE",), ("INCR", "n")])[1], "OK")
        # Another process of the store goes on with it, and not with the file.
        server.restart()
        self.assertEqual((server.ready["origin"], server.client()("GET", "n")), (support.REATTACHED, b"40"))
        # What ends with the memory is read.
        server.destroy()
        server.start()
        client = server.client()
        self.assertIn("; loaded it", server.log_text())
        self.assertEqual((client("DBSIZE"), client("GET", "n")), (1001, b"39"))
        self.assertEqual((client("GET", "key:1"), client("STRLEN", "key:999")), (b"later", 999))
        # A damaged file is refused, and left as it is: no silent start without data.
        server.destroy()
        with open(path, "r+b") as f:
            f.seek(os.path.getsize(path) // 2)
            f.write(b"damage")
        with self.assertRaisesRegex(RuntimeError, "cannot load"):
            server.start()
        os.unlink(path)
        self.assertEqual(server.start().ready["origin"], "created")

    def test_save_that_fails(self):
        server = self.server().start()
        with self.assertRaisesRegex(support.Error, "--save-file"):
            server.client()("SAVE")
        server = self.server("--save-file", os.path.join(self.directory, "none", "dump.pv"),
                             store="other").start()
        client = server.client()
        with self.assertRaisesRegex(support.Error, "none/dump.pv"):
            client("SAVE")
        self.assertEqual(client("SET", "a", "1"), "OK")

    def test_destroy(self):
        server = self.server().start()
        server.client()("SET", "a", "1")
        server.stop()
        done = server.destroy()
        self.assertEqual((done.returncode, done.stdout), (0, "store test is destroyed\n"))
        done = server.destroy()
        self.assertEqual((done.returncode, done.stdout), (0, "there is no store test\n"))
        server.start()
        self.assertEqual(server.ready["origin"], "created")
        self.assertEqual(server.client()("DBSIZE"), 0)

    def test_destroy_ends_the_holder(self):
        server = self.server().start()
        socket_path = os.path.join(server.runtime, "test.sock")
        server.stop()
        self.assertTrue(self.listens(socket_path))
        self.assertEqual(server.destroy().returncode, 0)
        self.wait_until("the holder has ended", lambda: not self.listens(socket_path))

    @staticmethod
    def listens(path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            try:
                s.connect(path)
                return True
            except OSError:
                return False

    def test_handover_none(self):
        server = self.server(handover="none").start()
        server.client()("SET", "a", "1")
        server.restart()
        self.assertEqual(server.ready["origin"], "created")
        self.assertIsNone(server.client()("GET", "a"))

    def test_two_stores(self):
        """Two servers with one runtime directory do not meet."""
        servers = [self.server(store=name).start() for name in ("one", "two")]
        for server in servers:
            server.client()("SET", "name", server.store)
            server.restart()
        for server in servers:
            self.assertEqual(server.client()("GET", "name"), server.store.encode())


class MaxMemory(support.TestCase):
    LIMIT = 48 << 20

    def fill(self, client, size):
        """Set keys until the server says OOM. Returns how many are there."""
        n = 0
        while True:
            replies = client.pipeline([("SET", f"key:{n + i}", "x" * size) for i in range(100)])
            for reply in replies:
                if isinstance(reply, support.Error):
                    self.assertEqual(str(reply), "OOM command not allowed when used memory > "
                                                 "'maxmemory'.")
                    return n
                n += 1
            self.assertLess(n, 10 ** 6)

    def test_limit(self):
        server = self.server("--max-memory", str(self.LIMIT)).start()
        client = server.client()
        self.assertEqual(client("CONFIG", "GET", "maxmemory"), [b"maxmemory", b"%d" % self.LIMIT])
        n = self.fill(client, 1000)
        self.assertGreater(n * 1000, self.LIMIT * 0.6)
        self.assertLessEqual(int(client.info()["preserve_bytes"]), self.LIMIT)
        self.assertGreater(int(client.info()["oom_error_replies"]), 0)
        # Reading and deleting go on, and a restart does not change that.
        for _ in range(2):
            self.assertEqual(client("GET", "key:0"), b"x" * 1000)
            self.assertEqual(client("DBSIZE"), n)
            for command in (("SET", "new", "y" * 5000), ("APPEND", "key:1", "y" * 5000),
                            ("MSET", *["z%d" % i for i in range(4000)])):
                with self.assertRaisesRegex(support.Error, "^OOM "):
                    client(*command)
            self.assertEqual(client("EXISTS", "new", "z0", "z2", "z3998"), 0)
            self.assertEqual(client("STRLEN", "key:1"), 1000)
            self.assertEqual(client("DBSIZE"), n)
            server.restart()
            client = server.client()
        self.assertEqual(client("DEL", *["key:%d" % i for i in range(n // 2)]), n // 2)
        client("SET", "new", "y" * 1000)
        self.assertEqual(client("GET", "new"), b"y" * 1000)
        self.assertEqual(client("DBSIZE"), n - n // 2 + 1)
        client("FLUSHALL")
        self.assertGreater(self.fill(client, 1000), 0.9 * n)

    def test_limit_below_the_least(self):
        server = self.server("--max-memory", "1000")
        done = subprocess.run(server.command(), capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 1)
        self.assertIn("limit", done.stderr)

    def test_values_of_other_sizes(self):
        """What small values took is there for large ones once they are gone, and back."""
        server = self.server("--max-memory", str(self.LIMIT)).start()
        client = server.client()
        for size in (100, 30000, 1000):
            self.assertGreater(self.fill(client, size) * size, 0.3 * self.LIMIT)
            if size == 30000:
                server.restart()
                client = server.client()
            client("FLUSHALL")


if __name__ == "__main__":
    unittest.main()
