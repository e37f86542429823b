# SPDX-License-Identifier: BSD-3-Clause
"""Hostile and clumsy clients: the server answers or closes, lives, and does not fill the memory."""

import os
import random
import socket
import time
import unittest

import support


def resident(pid):
    """Bytes of memory that a process has now."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")


class Protocol(support.TestCase):
    def alive(self, server):
        client = server.client()
        self.assertEqual(client("PING"), "PONG")
        client.close()

    def test_split_anywhere(self):
        """A conversation gives the same replies wherever the stream is cut."""
        server = self.server().start()
        encode = support.Client.encode
        text = (encode("SET", "a", "hello") + b"PING\r\n" + encode("GET", "a") + b"*0\r\n\r\n" +
                encode("MSET", "b", "1", "c", "x" * 40) + b'SET d "q \\x41"\r\n' +
                encode("MGET", "a", "b", "c", "d") + encode("NOSUCH", "w") + encode("DEL", "b"))
        whole = server.client()
        whole.send(text)
        replies = [whole.raw_reply() for _ in range(8)]
        expected = b"".join(replies)
        for cut in range(1, len(text)):
            client = server.client()
            client.send(text[:cut])
            time.sleep(0.0005)  # so that the second half is read alone
            client.send(text[cut:])
            self.assertEqual(client.exactly(len(expected)), expected, f"cut at {cut}")
            client.close()
        client = server.client()
        for i in range(len(text)):
            client.send(text[i:i + 1])
        self.assertEqual(client.exactly(len(expected)), expected)

    def test_garbage(self):
        server = self.server().start()
        rnd = random.Random(11)
        pieces = [b"*", b"$", b"\r\n", b"3", b"-1", b"SET", b"GET", b" ", b"\0", b'"', b"\\x", b"'",
                  b"99999999999", b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n", b"\xff", b"PING\r\n"]
        for _ in range(600):
            client = server.client()
            if rnd.random() < 0.5:
                data = rnd.randbytes(rnd.randrange(1, 400))
            else:
                data = b"".join(rnd.choice(pieces) for _ in range(rnd.randrange(1, 40)))
            client.send(data)
            if rnd.random() < 0.5:
                client.sock.shutdown(socket.SHUT_WR)
                client.closed_by_server()
            client.close()
        self.alive(server)
        self.assertTrue(server.running())

    def test_promises_take_no_memory(self):
        """Lengths that are announced, and nothing behind them."""
        server = self.server().start()
        before = resident(server.process.pid)
        clients = [server.client() for _ in range(200)]
        for i, client in enumerate(clients):
            client.send([b"*1048576\r\n", b"*2\r\n$3\r\nGET\r\n$536870912\r\nx",
                         b"*1048576\r\n" + b"$0\r\n\r\n" * 100][i % 3])
        self.alive(server)
        self.assertLess(resident(server.process.pid) - before, 32 << 20)

    def test_too_many_words(self):
        server = self.server().start()
        client = server.client()
        client.send(b"*1048577\r\n")
        self.assertEqual(client.closed_by_server(),
                         b"-ERR Protocol error: invalid multibulk length\r\n")
        n = 200000
        client = server.client()
        client("MSET", *[b"%d" % (i // 2) for i in range(2 * n)])
        self.assertEqual(client("DBSIZE"), n)
        self.assertEqual(client("EXISTS", *range(n)), n)
        self.assertEqual(client("MGET", *range(n)), [b"%d" % i for i in range(n)])
        self.assertEqual(client("DEL", *range(n)), n)

    def test_long_command_in_small_pieces(self):
        """The time is linear in the length, however it arrives."""
        server = self.server().start()
        client = server.client(unix=True)
        text = client.encode("MSET", *[b"%d" % i for i in range(40000)])
        start = time.monotonic()
        for at in range(0, len(text), 97):
            client.send(text[at:at + 97])
        self.assertEqual(client.reply(), "OK")
        self.assertLess(time.monotonic() - start, 20)

    def test_http(self):
        server = self.server().start()
        client = server.client()
        client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET a 1\r\n")
        self.assertEqual(client.closed_by_server(), b"")
        self.assertIsNone(server.client()("GET", "a"))

    def test_client_reply(self):
        client = self.server().start().client()
        client.send(b"CLIENT REPLY SKIP\r\nPING\r\nECHO one\r\nCLIENT REPLY OFF\r\nPING\r\n"
                    b"CLIENT REPLY SKIP\r\nPING\r\nCLIENT REPLY ON\r\nECHO two\r\n")
        self.assertEqual([client.reply() for _ in range(3)], [b"one", "OK", b"two"])

    def test_max_clients(self):
        server = self.server("--max-clients", "5").start()
        clients = [server.client() for _ in range(5)]
        for client in clients:
            self.assertEqual(client("PING"), "PONG")
        self.assertEqual(server.client().closed_by_server(),
                         b"-ERR max number of clients reached\r\n")
        clients[0].close()
        self.wait_until("a client may come again", lambda: self.welcome(server))

    @staticmethod
    def welcome(server):
        try:
            return server.client()("PING") == "PONG"
        except (OSError, support.Error):
            return False

    def test_kill_clients(self):
        server = self.server().start()
        a, b, c = server.client(), server.client(), server.client(unix=True)
        ids = [client("CLIENT", "ID") for client in (a, b, c)]
        self.assertEqual(a("CLIENT", "KILL", "ID", ids[1]), 1)
        self.assertEqual(b.closed_by_server(), b"")
        self.assertEqual(a("CLIENT", "KILL", "ID", ids[0]), 0)
        self.assertEqual(a("CLIENT", "KILL", "ID", ids[0], "SKIPME", "no"), 1)
        self.assertEqual(a.closed_by_server(), b"")
        listing = c("CLIENT", "LIST").decode().splitlines()
        self.assertEqual(len(listing), 1)
        self.assertIn(f"id={ids[2]} ", listing[0])


class Sizes(support.TestCase):
    def test_sizes(self):
        """Around each border of buffers, size classes and pages."""
        server = self.server().start()
        client = server.client()
        sizes = sorted({s + d for s in [0, 16, 64, 128, 1024, 4096, 16384, 65536, 81920, 262144,
                                        1 << 20, 5 << 20] for d in (-1, 0, 1) if s + d >= 0})
        for size in sizes:
            client("SET", f"v{size}", b"%d" % (size % 10) * size)
        server.restart()
        client = server.client()
        for size in sizes:
            self.assertEqual(client("GET", f"v{size}"), b"%d" % (size % 10) * size)
            self.assertEqual(client("STRLEN", f"v{size}"), size)
        key = b"k" * 100000
        client("SET", key, "v")
        self.assertEqual(client("GET", key), b"v")
        self.assertEqual(client("KEYS", "kkk*"), [key])

    def test_largest_value(self):
        server = self.server("--client-memory", "2gb").start()
        client = server.client(unix=True, timeout=120)
        block = random.Random(5).randbytes(1 << 20)
        client.send(b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$%d\r\n" % (512 << 20))
        for _ in range(512):
            client.send(block)
        client.send(b"\r\n")
        self.assertEqual(client.reply(), "OK")
        self.assertEqual(client("STRLEN", "big"), 512 << 20)
        with self.assertRaisesRegex(support.Error, "exceeds maximum allowed size"):
            client("APPEND", "big", "x")
        server.restart()
        client = server.client(unix=True, timeout=120)
        client.send(client.encode("GET", "big"))
        self.assertEqual(client.line(), b"$%d" % (512 << 20))
        for _ in range(512):
            self.assertEqual(client.exactly(1 << 20), block)
        client.exactly(2)
        client.send(b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$%d\r\n" % ((512 << 20) + 1))
        self.assertEqual(client.closed_by_server(), b"-ERR Protocol error: invalid bulk length\r\n")
        # The buffers go when they are not needed any more.
        server.client()("DEL", "big")
        self.assertLess(int(server.client().info()["client_buffers_bytes"]), 1 << 20)

    def test_append_in_place(self):
        """A value that grows byte by byte, across kills."""
        server = self.server().start()
        client = server.client()
        want = b""
        for n in range(3000):
            piece = b"%d," % n
            want += piece
            self.assertEqual(client("APPEND", "log", piece), len(want))
            if n % 1000 == 500:
                server.restart()
                client = server.client()
        self.assertEqual(client("GET", "log"), want)


class SlowReaders(support.TestCase):
    def test_sends_all_before_it_reads(self):
        """As libraries do with a pipeline: the replies wait in the server."""
        server = self.server().start()
        client = server.client()
        client("SET", "k", "x" * 500)
        n = 60000
        client.send(client.encode("GET", "k") * n)
        reply = b"$500\r\n" + b"x" * 500 + b"\r\n"
        for _ in range(n):
            self.assertEqual(client.exactly(len(reply)), reply)
        self.wait_until("buffers are given back",
                        lambda: int(server.client().info()["client_buffers_bytes"]) < 1 << 20)

    def test_never_reads(self):
        """It is closed before it takes the memory of the others."""
        server = self.server("--client-memory", "32mb").start()
        good = server.client()
        good("SET", "big", "x" * (1 << 20))
        before = resident(server.process.pid)
        bad = server.client()
        with self.assertRaises(ConnectionError):
            while True:
                bad.send(bad.encode("GET", "big") * 10)
                self.assertEqual(good("PING"), "PONG")
        self.assertEqual(good("STRLEN", "big"), 1 << 20)
        self.assertLess(resident(server.process.pid) - before, 128 << 20)
        self.assertIn("is closed: clients' buffers take", server.log_text())

    def test_one_reply_over_the_limit(self):
        server = self.server("--client-memory", "8mb").start()
        good = server.client()
        good("SET", "big", "x" * (1 << 20))
        bad = server.client()
        bad.send(bad.encode("MGET", *["big"] * 20))
        self.assertEqual(bad.closed_by_server(), b"")
        self.assertEqual(good("STRLEN", "big"), 1 << 20)
        self.assertEqual(good("MGET", "big", "big"), [b"x" * (1 << 20)] * 2)

    def test_command_over_the_limit(self):
        server = self.server("--client-memory", "8mb").start()
        bad = server.client()
        with self.assertRaises(ConnectionError):
            bad.send(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$100000000\r\n")
            for _ in range(100):
                bad.send(b"x" * 1000000)
            bad.reply()
        self.assertIsNone(server.client()("GET", "a"))
        self.assertIn("is closed: clients' buffers take", server.log_text())


if __name__ == "__main__":
    unittest.main()
