#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""usage: test_oracle.py ORACLE [unittest options]

Does the oracle find what it is there to find? A server of a few lines plays every fault: it loses,
tears, brings back, invents; it ends connections at every byte. Each fault must be counted as what
it is, and a server that is merely killed must not be accused of anything.
"""
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ORACLE = None


class Server:
    """Speaks enough RESP for the oracle, on a unix socket. `on_write(n, words)` is asked before the
    n-th write (from 1) and says what to do with it: "apply", "drop" (acknowledge, but do not do
    it), "refuse", "refuse-but-apply", "close" (apply, no reply), "close-before", "die" (apply, end
    all connections, listen no more), "hang"."""

    def __init__(self, path, data=None, on_write=None, cut=None):
        self.path, self.data = path, {} if data is None else data
        self.on_write = on_write or (lambda n, words: "apply")
        self.cut = cut  # close the connection when this many bytes of replies to writes were sent
        self.writes = 0
        self.dead = False
        self.lock = threading.Lock()
        self.run_id = os.urandom(8).hex()
        self.listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(path):
            os.unlink(path)
        self.listener.bind(path)
        self.listener.listen(16)
        self.connections = []
        threading.Thread(target=self.accept, daemon=True).start()

    def stop(self):
        self.dead = True
        for s in [self.listener] + self.connections:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            stream = connection.makefile("rb")
            while self.one(connection, stream):
                pass
        except (OSError, ValueError):
            pass
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def one(self, connection, stream):
        head = stream.readline()
        if not head.endswith(b"\r\n"):
            return False
        if not head.startswith(b"*"):
            words = head.split()
        else:
            words = []
            for _ in range(int(head[1:])):
                size = int(stream.readline()[1:])
                words.append(stream.read(size + 2)[:-2])
        with self.lock:
            if self.dead:
                return False
            what, reply = self.run(words)
            if what == "die":
                self.stop()
                return False
        if what == "hang":
            time.sleep(1000)
        if reply is not None and words[0] in (b"SET", b"DEL") and self.cut is not None:
            reply, self.cut = reply[: self.cut], self.cut - len(reply)
            connection.sendall(reply)
            return self.cut > 0
        if reply is not None:
            connection.sendall(reply)
        return not what.startswith("close")

    def run(self, words):
        name = words[0].upper()
        if name == b"PING":
            return "apply", b"+PONG\r\n"
        if name == b"INFO":
            text = b"# Server\r\nrun_id:%s\r\nother:1\r\n" % self.run_id.encode()
            return "apply", b"$%d\r\n%s\r\n" % (len(text), text)
        if name == b"DBSIZE":
            return "apply", b":%d\r\n" % len(self.data)
        if name == b"GET":
            value = self.data.get(words[1])
            return "apply", b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)
        if name not in (b"SET", b"DEL"):
            return "apply", b"-ERR unknown command\r\n"
        self.writes += 1
        what = self.on_write(self.writes, words)
        reply = b"+OK\r\n" if name == b"SET" else b":%d\r\n" % (words[1] in self.data)
        if what in ("apply", "refuse-but-apply", "close", "die"):
            if name == b"SET":
                self.data[words[1]] = words[2]
            else:
                self.data.pop(words[1], None)
        if what.startswith("refuse"):
            reply = b"-OOM command not allowed\r\n"
        return what, reply if what in ("apply", "drop", "refuse", "refuse-but-apply") else None


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.socket = os.path.join(self.dir.name, "s")
        self.log = pathlib.Path(self.dir.name, "log")
        self.server = None

    def tearDown(self):
        if self.server:
            self.server.stop()

    def serve(self, **how):
        """Start a server; a new one goes on with the data of the one before, as a good one does."""
        if self.server:
            how.setdefault("data", self.server.data)
            self.server.stop()
        self.server = Server(self.socket, **how)
        return self.server

    def start(self, command, *args):
        words = [ORACLE, command, "--unix", self.socket, "--quiet"]
        if command in ("load", "write", "verify"):
            words += ["--log", str(self.log)]
        return subprocess.Popen(
            words + list(args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def oracle(self, command, *args, status=0):
        process = self.start(command, *args)
        out, self.errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, status, out + self.errors)
        return dict(line.split(" ", 1) for line in out.splitlines() if " " in line)

    def judged(self, **expected):
        """Verify, and expect these counts and no others."""
        result = self.oracle("verify", status=1 if expected else 0)
        found = {k: int(result[k]) for k in ("lost", "torn", "stale", "phantom", "extra")}
        self.assertEqual({k: v for k, v in found.items() if v}, expected, self.errors)
        return result

    def a_key(self, n):
        return b"key:%012d" % n


class Good(Case):
    def test_everything_is_there(self):
        self.serve()
        self.assertEqual(self.oracle("load", "--keys", "500")["acknowledged"], "500")
        wrote = self.oracle(
            "write", "--keys", "500", "--ops", "3000", "--deletes", "30",
            "--connections", "7", "--pipeline", "11", "--value-bytes", "51:9000",
        )
        self.assertEqual((wrote["sent"], wrote["acknowledged"]), ("3000", "3000"))
        result = self.judged()
        self.assertEqual((result["keys"], result["acknowledged"]), ("500", "3500"))
        self.assertEqual(int(result["present"]), len(self.server.data))
        self.assertLess(len(self.server.data), 500)

    def test_values_have_the_length_that_was_asked_for(self):
        self.serve()
        self.oracle("load", "--keys", "300", "--value-bytes", "60:70")
        self.assertEqual({len(v) for v in self.server.data.values()}, set(range(60, 71)))

    def test_a_second_program_goes_on_with_the_log(self):
        self.serve()
        self.oracle("load", "--keys", "10")
        self.oracle("load", "--keys", "10", "--first-key", "5")
        self.assertEqual(self.judged()["keys"], "15")
        numbers = re.findall(r"^S (\d+)", self.log.read_text(), re.M)
        self.assertEqual([int(n) for n in numbers], list(range(1, 21)))


class Faults(Case):
    def setUp(self):
        super().setUp()
        self.serve()
        self.oracle("load", "--keys", "100")
        self.old = dict(self.server.data)
        self.oracle("load", "--keys", "100", "--value-bytes", "80")
        self.data = self.server.data

    def test_one_lost(self):
        del self.data[self.a_key(42)]
        self.judged(lost=1)
        self.assertIn("key:000000000042 is lost: write 143 (SET) was acknowledged", self.errors)

    def test_all_lost(self):
        self.data.clear()
        self.judged(lost=100)

    def test_stale(self):
        self.data[self.a_key(3)] = self.old[self.a_key(3)]
        self.judged(stale=1)

    def test_torn_at_every_byte(self):
        old, new = self.old[self.a_key(7)], self.data[self.a_key(7)]
        for i in range(1, len(new)):
            self.data[self.a_key(7)] = new[:i]
            self.judged(torn=1)
            mixed = new[:i] + old[i:] + new[len(old) + i :]
            if mixed not in (old, new):
                self.data[self.a_key(7)] = mixed
                self.judged(torn=1)

    def test_every_bit_flip(self):
        whole = dict(self.data)
        for first in range(0, 8 * 80, 100):
            for i in range(100):
                value, bit = bytearray(whole[self.a_key(i)]), (first + i) % (8 * 80)
                value[bit // 8] ^= 1 << bit % 8
                self.data[self.a_key(i)] = bytes(value)
            self.judged(torn=100)

    def test_empty_and_longer_values(self):
        self.data[self.a_key(7)] = b""
        self.data[self.a_key(8)] += b"x"
        self.judged(torn=2)

    def test_value_of_another_key(self):
        self.data[self.a_key(7)] = self.data[self.a_key(8)]
        self.judged(torn=1)

    def test_value_of_another_run(self):
        mine = dict(self.data)
        self.data.clear()
        self.log.unlink()
        self.oracle("load", "--keys", "100")
        self.data[self.a_key(7)] = mine[self.a_key(7)]
        self.judged(torn=1)

    def test_key_that_nobody_wrote(self):
        self.data[b"intruder"] = b"x"
        self.judged(extra=1)

    def test_write_that_was_never_sent(self):
        text = self.log.read_text().splitlines(True)
        cut = next(i for i, line in enumerate(text) if line.startswith("S 000000000200"))
        self.log.write_text("".join(l for l in text[:cut] if not l.startswith("#")))
        self.judged(phantom=1)

    def test_all_kinds_together(self):
        del self.data[self.a_key(1)]
        self.data[self.a_key(2)] = self.old[self.a_key(2)]
        self.data[self.a_key(3)] = self.data[self.a_key(3)][:-1]
        self.data[b"intruder"] = b"x"
        self.judged(lost=1, stale=1, torn=1, extra=1)


class Doctored(Case):
    """Faults of the server at the moment of writing."""

    def test_acknowledged_but_not_done(self):
        self.serve(on_write=lambda n, words: "drop" if n == 17 else "apply")
        self.oracle("load", "--keys", "100")
        self.judged(lost=1)

    def test_overwrite_not_done(self):
        self.serve(on_write=lambda n, words: "drop" if n == 117 else "apply")
        self.oracle("load", "--keys", "100")
        self.oracle("load", "--keys", "100")
        self.judged(stale=1)

    def test_delete_not_done(self):
        self.serve()
        self.oracle("load", "--keys", "20")
        self.server.on_write = lambda n, words: "drop" if words[1] == self.a_key(4) else "apply"
        self.oracle("write", "--keys", "20", "--ops", "400", "--deletes", "100")
        self.judged(stale=1)
        self.assertIn("(DEL) was acknowledged", self.errors)

    def test_refused_is_not_acknowledged(self):
        self.serve(on_write=lambda n, words: "refuse" if n % 10 == 0 else "apply")
        result = self.oracle("load", "--keys", "100")
        self.assertEqual((result["acknowledged"], result["refused"]), ("90", "10"))
        self.assertIn("OOM", result["refusal"])
        self.assertEqual(self.judged()["present"], "90")

    def test_refused_but_done(self):
        self.serve(on_write=lambda n, words: "refuse-but-apply" if n == 5 else "apply")
        self.oracle("load", "--keys", "100")
        self.judged(phantom=1)

    def test_refused_delete_but_done(self):
        self.serve()
        self.oracle("load", "--keys", "5")
        self.server.on_write = lambda n, words: "refuse-but-apply"
        self.oracle("write", "--keys", "5", "--ops", "100", "--deletes", "100")
        self.judged(lost=5)


class Ends(Case):
    """The connection ends: nothing that had no reply may be held against the server."""

    def run_cut(self, **how):
        self.serve(**how)
        result = self.oracle("write", "--until-end", "--keys", "10", "--deletes", "20",
                             "--pipeline", "8", "--ops", "1000")
        self.assertEqual(result["ended"], "connection")
        self.serve()  # another process with the same data
        self.judged()
        return result

    def test_at_every_byte_of_replies(self):
        for cut in range(0, 60):
            result = self.run_cut(cut=cut)
            self.assertLessEqual(int(result["acknowledged"]), cut // 4)
            self.log.unlink()
            self.server.data.clear()

    def test_before_and_after_the_write_took_effect(self):
        for what in ("close", "close-before"):
            for n in range(1, 30):
                self.run_cut(on_write=lambda i, words: what if i == n else "apply")
            self.log.unlink()
            self.server.data.clear()

    def test_lost_is_still_found(self):
        self.serve()
        self.oracle("load", "--keys", "10")
        self.run_cut(on_write=lambda n, words: "close" if n == 50 else "apply")
        self.server.data.clear()
        result = self.oracle("verify", status=1)
        self.assertGreater(int(result["lost"]), 0)

    def test_unanswered_but_seen_must_stay(self):
        self.serve(on_write=lambda n, words: "close" if n == 5 else "apply")
        self.oracle("load", "--until-end", "--keys", "100", "--pipeline", "1")
        self.serve()
        self.assertEqual(self.judged()["unanswered-found"], "1")
        del self.server.data[self.a_key(4)]
        self.judged(lost=1)
        self.assertIn("was seen", self.errors)

    def test_unanswered_may_be_absent(self):
        self.serve(on_write=lambda n, words: "close-before" if n == 5 else "apply")
        self.oracle("load", "--until-end", "--keys", "100", "--pipeline", "1")
        self.serve()
        self.assertEqual(self.judged()["unanswered-found"], "0")

    def test_end_without_permission_is_trouble(self):
        self.serve(on_write=lambda n, words: "close" if n == 50 else "apply")
        self.oracle("write", "--keys", "10", "--ops", "100", status=3)
        self.assertIn("connection ended", self.errors)
        self.serve()
        self.judged()

    def test_end_while_verifying_is_trouble_not_loss(self):
        self.serve()
        self.oracle("load", "--keys", "10")
        run = self.server.run
        self.server.run = lambda words: ("close", None) if words[0] == b"GET" else run(words)
        self.oracle("verify", status=3)

    def test_reconnect(self):
        """Six servers one after the other, five of them killed by their 500th write."""
        self.serve(on_write=lambda n, words: "die" if n == 500 else "apply")
        process = self.start("write", "--reconnect", "--keys", "50", "--ops", "4000",
                             "--connections", "3", "--timeout", "10")
        for i in range(5):
            while not self.server.dead and process.poll() is None:
                time.sleep(0.01)
            self.assertTrue(self.server.dead, "the oracle ended early")
            self.serve(on_write=lambda n, words, i=i: "die" if n == 500 and i < 4 else "apply")
        out, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0, out + errors)
        self.judged()
        runs = set(re.findall(r"run_id (\w+)", self.log.read_text()))
        self.assertEqual(len(runs), 6)

    def test_silent_server_is_not_replaced_by_itself(self):
        self.serve(on_write=lambda n, words: "hang" if n == 20 else "apply")
        self.oracle("write", "--reconnect", "--keys", "50", "--ops", "100", "--timeout", "0.5",
                    status=3)
        self.assertIn("has not been restarted", self.errors)

    def test_signal(self):
        self.serve(on_write=lambda n, words: "hang" if n == 200 else "apply")
        process = self.start("write", "--keys", "50")
        while self.server.writes < 200:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=10)
        self.assertEqual(process.returncode, 0, out + errors)
        self.assertIn("unanswered", out)
        self.serve()
        self.judged()


class Log(Case):
    def setUp(self):
        super().setUp()
        self.serve()
        self.oracle("load", "--keys", "100")

    def test_killed_oracle_leaves_a_usable_log(self):
        process = self.start("write", "--keys", "100")
        while self.server.writes < 5000:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        time.sleep(0.2)  # what is in the socket is still executed
        result = self.judged()
        self.assertGreater(int(result["acknowledged"]), 1000)

    def test_cut_off_at_every_byte_of_the_last_lines(self):
        whole = self.log.read_bytes()
        for end in range(len(whole) - 80, len(whole)):
            self.log.write_bytes(whole[:end])
            self.server.data.pop(self.a_key(99), None)
            result = self.oracle("verify", status=1 if b"A 000000000100\n" in whole[:end] else 0)
            self.assertEqual(int(result["keys"]), 100)

    def test_nonsense_in_the_log(self):
        whole = self.log.read_bytes()
        for old, new in (
            (b"oracle-log 1", b"oracle-log 2"),
            (b"A 000000000050\n", b"A 000000000999\n"),
            (b"A 000000000050\n", b"A 00000000005\n"),
            (b"A 000000000050\n", b"A 000000000049\n"),
            (b"S 000000000050", b"S 000000000051"),
            (b"S 000000000050", b"Q 000000000050"),
        ):
            self.log.write_bytes(whole.replace(old, new, 1))
            self.oracle("verify", status=3)

    def test_two_at_a_time(self):
        process = self.start("write", "--keys", "100", "--seconds", "5")
        while self.server.writes < 200:
            time.sleep(0.01)
        self.oracle("verify", status=3)
        self.assertIn("another oracle", self.errors)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)

    def test_no_log(self):
        self.log.unlink()
        self.oracle("verify", status=3)


class Small(Case):
    def test_wait_for_a_key(self):
        self.serve()
        self.oracle("load", "--keys", "3")
        for key in ("good", "wrong"):
            server = self.serve()
            run = server.run
            loading = b"-LOADING the dataset is being loaded\r\n"
            server.run = lambda words: ("apply", loading) if words[0] == b"GET" else run(words)
            process = self.start("wait", "--log", str(self.log), "--timeout", "10")
            time.sleep(0.3)
            self.assertIsNone(process.poll())
            server.run = run
            out, errors = process.communicate(timeout=10)
            self.assertEqual(process.returncode, 0, errors)
            self.assertRegex(out, r"^usec \d{6,7}\nunix-time \d+\.\d{6}\nkey %s\n$" % key)
            server.data.clear()

    def test_wait_in_vain(self):
        self.oracle("wait", "--timeout", "0.3", status=3)

    def start_server(self, script, *args):
        """`start` with a server of a few lines of Python: it answers PING, after a while."""
        process = self.start("start", "--timeout", "5", *args, "--", "/usr/bin/python3", "-c",
                             script, self.socket)
        out, errors = process.communicate(timeout=20)
        return process.returncode, dict(line.split() for line in out.splitlines()), errors

    def test_start(self):
        output = pathlib.Path(self.dir.name, "output")
        script = (
            "import os, socket, sys, time\n"
            "print('hello', os.getpid() == os.getsid(0), flush=True)\n"
            "time.sleep(0.3)\n"
            "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()\n"
            "while True:\n"
            "    c, _ = s.accept(); c.recv(100); c.sendall(b'+PONG\\r\\n')\n"
        )
        status, result, errors = self.start_server(script, "--output", str(output))
        self.assertEqual(status, 0, errors)
        self.assertTrue(300000 < int(result["usec"]) < 5000000, result)
        os.kill(int(result["pid"]), signal.SIGKILL)
        self.assertEqual(output.read_text(), "hello True\n")

    def test_start_of_a_server_that_ends(self):
        status, _, errors = self.start_server("raise SystemExit(7)")
        self.assertEqual(status, 3)
        self.assertIn("ended with status 7", errors)

    def test_start_of_a_server_that_never_answers(self):
        status, _, errors = self.start_server("import time; time.sleep(1000)", "--timeout", "0.5")
        self.assertEqual(status, 3)
        self.assertIn("was killed", errors)

    def test_progress_on_a_terminal(self):
        self.serve(on_write=lambda n, words: time.sleep(0.0002) or "apply")
        ours, theirs = os.openpty()
        for command in (["load"], ["write", "--seconds", "0.3"]):
            subprocess.run(
                [ORACLE, *command, "--unix", self.socket, "--log", str(self.log)],
                stderr=theirs, stdout=subprocess.DEVNULL, check=True,
            )
            text = b""
            while not text.endswith(b"\n"):  # a terminal may be late with what was written
                text += os.read(ours, 65536)
            lines = text.decode().split("\r")
            self.assertGreater(len(lines), 3)
            self.assertEqual(len({len(line.rstrip()) for line in lines if line.strip()}), 1, lines)
        os.close(ours)
        os.close(theirs)

    def test_info_and_call(self):
        self.serve()
        process = self.start("info", "run_id", "other")
        self.assertEqual(process.communicate()[0].split(), [self.server.run_id, "1"])
        self.oracle("info", "nothing", status=3)
        self.assertEqual(self.start("call", "PING").communicate()[0], "PONG\n")
        run = self.server.run
        reply = b"*3\r\n$1\r\na\r\n*2\r\n:-1\r\n$-1\r\n+b\r\n"
        self.server.run = lambda words: ("apply", reply) if words == [b"LIST"] else run(words)
        self.assertEqual(self.start("call", "LIST").communicate()[0], "a\n-1\n(null)\nb\n")
        self.oracle("call", "NONSENSE", status=1)

    def test_nonsense_from_the_server(self):
        for reply in (b"*1\r\n:1\r\n", b"$5\r\nhelloXX", b"+OK\rx", b":1x\r\n", b"garbage\r\n",
                      b"+MAYBE\r\n", b"$-2\r\n", b"+OK\r\n+OK\r\n+OK\r\n"):
            server = self.serve()
            run = server.run
            server.run = lambda words: ("apply", reply) if words[0] == b"SET" else run(words)
            self.oracle("load", "--keys", "1" if reply.count(b"+") > 1 else "10", status=3)

    def test_usage(self):
        for words in ([], ["nonsense"], ["load"], ["load", "--unix", "x"], ["write", "--port", "0"],
                      ["load", "--value-bytes", "50"], ["load", "--value-bytes", "70:60"],
                      ["load", "--keys", "-1"], ["load", "--keys", "1x"], ["call"], ["start"],
                      ["start", "--unix", "x"],
                      ["write", "--keys", "2", "--connections", "3"], ["load", "--nonsense"]):
            result = subprocess.run([ORACLE] + words, stderr=subprocess.PIPE)
            self.assertEqual(result.returncode, 2, words)
        self.assertEqual(subprocess.run([ORACLE, "--help"], stdout=subprocess.PIPE).returncode, 0)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    ORACLE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
