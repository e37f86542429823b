# SPDX-License-Identifier: BSD-3-Clause
"""Programs that people use with Redis work with kvstore: redis-cli, redis-benchmark, python3-redis."""

import subprocess
import unittest

import redis

import support


class Cli(support.TestCase):
    def setUp(self):
        super().setUp()
        self.kv = self.server().start()

    def cli(self, *args, stdin="", unix=False):
        where = ["-s", self.kv.unix] if unix else ["-p", str(self.kv.port)]
        done = subprocess.run([support.program("redis-cli"), *where, *args], input=stdin,
                              capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_commands(self):
        for unix in (False, True):
            self.assertEqual(self.cli("ping", unix=unix), "PONG\n")
            self.assertEqual(self.cli("set", "k", "a b", unix=unix), "OK\n")
            self.assertEqual(self.cli("get", "k", unix=unix), "a b\n")
        self.assertEqual(self.cli("--no-raw", "incr", "n"), "(integer) 1\n")
        self.assertEqual(self.cli("--no-raw", "get", "none"), "(nil)\n")
        self.assertEqual(self.cli("-3", "--no-raw", "get", "none"), "(nil)\n")
        self.assertEqual(self.cli("-3", "hello", "3").splitlines()[0], "server kvstore")
        self.assertIn("preserve_origin:created", self.cli("info", "preserve"))

    def test_interactive(self):
        """It asks for the commands' documentation first."""
        said = self.cli(stdin="set a 1\nget a\ncommand count\nnosuch\n")
        self.assertEqual(said.split("\n")[:2], ["OK", "1"])
        self.assertIn("ERR unknown command 'nosuch'", said)

    def test_mass_insertion(self):
        """redis-cli --pipe sends without waiting, and ECHOes a mark to see the end."""
        commands = "".join(f"SET key:{i} value:{i}\r\n" for i in range(20000))
        said = self.cli("--pipe", stdin=commands)
        self.assertIn("errors: 0, replies: 20000", said)
        self.assertEqual(self.cli("dbsize"), "20000\n")

    def test_scan(self):
        keys = [f"key:{i}" for i in range(1000)]
        self.kv.client().pipeline([("SET", k, "1") for k in keys])
        self.assertEqual(sorted(self.cli("--scan").split()), sorted(keys))
        self.assertEqual(sorted(self.cli("--scan", "--pattern", "key:9?").split()),
                         [f"key:9{i}" for i in range(10)])


class Benchmark(support.TestCase):
    def test_redis_benchmark(self):
        server = self.server().start()
        for where in (["-p", str(server.port)], ["-s", server.unix]):
            for pipeline in ("1", "16"):
                done = subprocess.run(
                    [support.program("redis-benchmark"), *where, "-t", "ping,set,get,incr,mset",
                     "-n", "2000", "-c", "20", "-P", pipeline, "-r", "1000", "-d", "64", "--csv"],
                    capture_output=True, text=True, timeout=120)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertNotIn("Could not fetch server CONFIG", done.stderr)
                names = [line.split(",")[0].strip('"') for line in done.stdout.splitlines()[1:]]
                self.assertEqual(names, ["PING_INLINE", "PING_MBULK", "SET", "GET", "INCR",
                                         "MSET (10 keys)"])
        info = server.client().info()
        self.assertEqual(info["total_error_replies"], "0")
        self.assertLessEqual(server.client()("DBSIZE"), 2001)


class Python(support.TestCase):
    def setUp(self):
        super().setUp()
        self.kv = self.server().start()

    def each(self):
        """A connection of each kind."""
        yield redis.Redis(port=self.kv.port, client_name="by-tcp")
        yield redis.Redis(unix_socket_path=self.kv.unix, client_name="by-unix", db=0)

    def test_handshake_and_values(self):
        for r in self.each():
            with r:
                self.assertTrue(r.ping())
                self.assertIn(r.client_getname(), ("by-tcp", "by-unix"))
                self.assertTrue(r.set("a", "1", ex=100))
                self.assertEqual(r.get("a"), b"1")
                self.assertTrue(98 <= r.ttl("a") <= 100)
                self.assertIsNone(r.set("a", "2", nx=True))
                self.assertEqual(r.incrby("a", 41), 42)
                self.assertTrue(r.mset({f"m{i}": i for i in range(100)}))
                self.assertEqual(r.mget("m0", "m99", "none"), [b"0", b"99", None])
                self.assertEqual(len(list(r.scan_iter(match="m*", count=7))), 100)
                self.assertEqual(r.dbsize(), 101)
                self.assertEqual(r.exists("a", "m1", "none"), 2)
                self.assertEqual(r.delete("a", "m1"), 2)
                self.assertEqual(r.append("x", "ab") + r.strlen("x"), 4)
                self.assertTrue(r.expire("x", 10) and r.persist("x"))
                self.assertEqual(r.info()["preserve_handover"], "holder")
                self.assertEqual(r.config_get("appendonly"), {"appendonly": "no"})
                self.assertIn("get", r.command())
                self.assertEqual(len(r.client_list()), 1)
                self.assertTrue(r.flushall())
                with self.assertRaises(redis.ResponseError):
                    r.execute_command("NOSUCH")
                with self.assertRaises(redis.ResponseError):
                    r.select(1)

    def test_pipeline(self):
        for r in self.each():
            with r, r.pipeline(transaction=False) as p:
                for i in range(10000):
                    p.set(f"k{i}", i)
                for i in range(10000):
                    p.get(f"k{i}")
                replies = p.execute()
                self.assertEqual(replies[10000:], [b"%d" % i for i in range(10000)])

    def test_reconnects_after_a_kill(self):
        with redis.Redis(port=self.kv.port, retry_on_timeout=True) as r:
            r.set("a", "1")
            self.kv.restart()
            self.assertEqual(r.get("a"), b"1")


if __name__ == "__main__":
    unittest.main()
