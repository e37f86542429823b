# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 while clients write, again and again: nothing acknowledged is lost, nothing is torn.

Each writer has a connection and keys of its own, sends pipelines of random commands and keeps a log
of what it sent and how many replies came. Commands of a connection are run in order, so that after a
crash the writer's keys must be in the state that some prefix of its log leaves, one at least as long
as what was acknowledged. A command of many keys that is only half there fits no prefix.
"""

import os
import random
import signal
import socket
import struct
import threading
import time
import unittest

import support

KEYS = 60


class Writer(threading.Thread):
    def __init__(self, server, number, unix, seed):
        super().__init__()
        self.server, self.number, self.unix = server, number, unix
        self.rnd = random.Random(seed)
        self.model = {}
        self.log = []
        self.acknowledged = 0
        self.wrong = None

    def key(self):
        return b"w%d:%d" % (self.number, self.rnd.randrange(KEYS))

    def value(self):
        kind = self.rnd.randrange(4)
        if kind == 0:
            return b"%d" % self.rnd.randrange(10 ** 12)
        return b"%d." % self.rnd.randrange(10 ** 9) * self.rnd.choice([1, 3, 10, 200])

    def command(self):
        rnd = self.rnd
        kind = rnd.randrange(100)
        if kind < 40:
            return (b"SET", self.key(), self.value())
        if kind < 50:
            return (b"INCR", b"n" + self.key())
        if kind < 60:
            return (b"APPEND", self.key(), b"+%d" % rnd.randrange(1000))
        if kind < 75:
            n = rnd.choice([2, 5, 9, 10, 12, 20, 40])
            return (b"MSET", *[x for _ in range(n) for x in (self.key(), self.value())])
        if kind < 85:
            return (b"DEL", *[self.key() for _ in range(rnd.choice([1, 2, 6, 9, 25]))])
        if kind < 90:
            return (b"SET", self.key(), self.value(), b"EX", b"10000")
        if kind < 95:
            return (b"EXPIRE", self.key(), b"20000")
        return (b"PERSIST", self.key())

    def run(self):
        try:
            self.write(self.server.client(self.unix))
        except TimeoutError as e:
            self.wrong = e
        except OSError:
            pass  # killed

    def write(self, client):
        while True:
            commands = [self.command() for _ in range(self.rnd.choice([1, 1, 4, 16, 64]))]
            self.log.extend(commands)
            client.send(b"".join(support.Client.encode(*c) for c in commands))
            for _ in commands:
                reply = client.reply_or_error()
                if isinstance(reply, support.Error):
                    self.wrong = reply
                    return
                self.acknowledged += 1

    # ---- the oracle ----

    def apply(self, command):
        name, key = command[0], command[1]
        if name == b"SET":
            self.model[key] = command[2]
        elif name == b"MSET":
            self.model.update(zip(command[1::2], command[2::2]))
        elif name == b"DEL":
            for k in command[1:]:
                self.model.pop(k, None)
        elif name == b"INCR":
            self.model[key] = b"%d" % (int(self.model.get(key, b"0")) + 1)
        elif name == b"APPEND":
            self.model[key] = self.model.get(key, b"") + command[2]

    def verify(self, client):
        """Compare; returns the number of commands that were in effect though not acknowledged."""
        keys = [p + b"w%d:%d" % (self.number, i) for p in (b"", b"n") for i in range(KEYS)]
        got = {k: v for k, v in zip(keys, client(b"MGET", *keys)) if v is not None}
        for command in self.log[:self.acknowledged]:
            self.apply(command)
        for extra, command in enumerate(self.log[self.acknowledged:] + [None]):
            if got == self.model:
                self.log, self.acknowledged = [], 0
                return extra
            if command:
                self.apply(command)
        differ = [k for k in keys if got.get(k) != self.model.get(k)]
        raise AssertionError(
            f"writer {self.number}: after {self.acknowledged} acknowledged commands of "
            f"{len(self.log)} no prefix gives what is there; at the end {differ[:5]} differ: "
            f"{[(got.get(k), self.model.get(k)) for k in differ[:3]]}")


class Kills(support.TestCase):
    def storm(self, rounds, unix, writers=4):
        server = self.server().start()
        rnd = random.Random(rounds + 100 * unix)
        team = [Writer(server, i, unix, rnd.random()) for i in range(writers)]
        total = extra = 0
        for _ in range(rounds):
            for writer in team:
                writer.start()
            time.sleep(rnd.uniform(0.02, 0.35))
            server.kill()
            for writer in team:
                writer.join(30)
                self.assertFalse(writer.is_alive())
                self.assertIsNone(writer.wrong)
                total += writer.acknowledged
            server.start()
            self.assertEqual(server.ready["origin"], support.REATTACHED)
            client = server.client(unix)
            for writer in team:
                extra += writer.verify(client)
            self.assertEqual(client("DBSIZE"), sum(len(w.model) for w in team))
            client.close()
            team = [self.successor(w) for w in team]
        self.assertGreater(total, rounds * 20)
        print(f"{rounds} kills, {total} acknowledged commands, {extra} others in effect")

    @staticmethod
    def successor(old):
        new = Writer(old.server, old.number, old.unix, old.rnd.random())
        new.model = old.model
        return new

    def test_tcp(self):
        self.storm(12, unix=False)

    def test_unix(self):
        self.storm(12, unix=True)

    def test_expiry_is_kept(self):
        server = self.server().start()
        client = server.client()
        client("SET", "short", "1", "PX", "600")
        client("SET", "long", "2", "EX", "1000")
        client("SET", "never", "3")
        client("EXPIRE", "never", "500")
        client("PERSIST", "never")
        server.restart()
        client = server.client()
        self.assertEqual(client("GET", "long"), b"2")
        self.assertTrue(980 < client("TTL", "long") <= 1000)
        self.assertEqual(client("TTL", "never"), -1)
        server.kill()
        time.sleep(0.7)
        server.start()
        client = server.client()
        self.assertIsNone(client("GET", "short"))
        self.assertEqual(client("TTL", "short"), -2)
        self.assertEqual(client("DBSIZE"), 2)
        self.assertEqual(client.info()["db0"], "keys=2,expires=1,avg_ttl=0")

    def test_expired_keys_are_removed(self):
        """Nobody asks for them, and they go all the same, those of a dead process too."""
        server = self.server().start()
        client = server.client()
        for i in range(20000):
            if i % 500 == 0:
                client.pipeline([("SET", f"k{i + n}", "v", "PX", "800") for n in range(500)])
        client("SET", "stays", "1")
        server.restart()
        client = server.client()
        self.wait_until("expired keys are removed", lambda: client("DBSIZE") == 1)
        self.assertEqual(client.info()["db0"], "keys=1,expires=0,avg_ttl=0")

    def holder(self, server):
        """The process id of the store's holder; None: there is none."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
            try:
                s.connect(os.path.join(server.runtime, f"{server.store}.sock"))
            except (FileNotFoundError, ConnectionRefusedError):
                return None
            credentials = s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            return struct.unpack("iII", credentials)[0]

    def test_dead_holder_is_replaced(self):
        """Without a request that would need it: the store does not grow meanwhile."""
        server = self.server().start()
        client = server.client()
        client("SET", "a", "1")
        self.assertEqual(client.info("preserve")["preserve_keeper"], "ok")
        dead = self.holder(server)
        os.kill(dead, signal.SIGKILL)
        self.wait_until("there is another holder",
                        lambda: self.holder(server) not in (None, dead))
        self.wait_until("it is said", lambda: "it has everything again" in server.log_text())
        server.restart()
        self.assertEqual(server.client()("GET", "a"), b"1")

    def test_nobody_keeps_the_store(self):
        server = self.server().start()
        client = server.client()
        client("SET", "a", "1")
        os.chmod(server.runtime, 0o755)  # which is refused
        keeper = lambda: client.info("preserve")["preserve_keeper"]
        self.wait_until("it is noticed", lambda: keeper() == "lost")
        client("SET", "b", "2")
        time.sleep(2.5)
        os.chmod(server.runtime, 0o700)
        self.wait_until("it is noticed that it is over", lambda: keeper() == "ok")
        self.assertEqual(server.log_text().count("nobody keeps the store"), 1)
        self.assertIn("mode 0755", server.log_text())
        self.assertIn("the store is kept again", server.log_text())
        server.restart()
        self.assertEqual(server.client()("GET", "b"), b"2")

    def test_flushall_and_a_kill(self):
        """Clearing is instant, and what is left to free is freed by whoever comes next."""
        server = self.server().start()
        client = server.client()
        for at in range(0, 300000, 2000):
            client.pipeline([("SET", f"key:{at + n}", "x" * 64) for n in range(2000)])
        full = int(client.info("memory")["used_memory"])
        start = time.monotonic()
        client("FLUSHALL")
        self.assertLess(time.monotonic() - start, 0.5)
        server.restart()
        client = server.client()
        self.assertEqual(client("DBSIZE"), 0)
        self.assertEqual(client("SCAN", "0", "COUNT", "1000"), [b"0", []])
        # The memory can be used again: as much once more, and the store has not doubled.
        for at in range(0, 300000, 2000):
            client.pipeline([("SET", f"new:{at + n}", "x" * 64) for n in range(2000)])
        self.assertEqual(client("DBSIZE"), 300000)
        self.assertLess(int(client.info("memory")["used_memory"]), 1.3 * full)

    def test_scan_across_kills(self):
        """Every key that was there all the time is seen, though the table grows and the server dies."""
        server = self.server().start()
        client = server.client()
        fixed = {b"fixed:%d" % i for i in range(3000)}
        client.pipeline([("SET", k, "1") for k in fixed])
        seen, cursor, n = set(), b"0", 0
        while True:
            cursor, keys = client("SCAN", cursor, "COUNT", "100")
            seen.update(keys)
            if cursor == b"0":
                break
            if n < 60000:
                client.pipeline([("SET", f"more:{n + i}", "1") for i in range(1000)])
                n += 1000
                if n % 20000 == 0:
                    server.restart()
                    client = server.client()
        self.assertGreaterEqual(n, 60000)
        self.assertTrue(fixed <= seen)


if __name__ == "__main__":
    unittest.main()
