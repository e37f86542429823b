#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""preservectl agent, and kvstore on an agent. Arguments: preserved, preservectl, kvstore."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

AGENT, CTL, KVSTORE = sys.argv[1:4]
del sys.argv[1:4]


class Operator(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="pv-agent-")
        self.socket = os.path.join(self.dir, "socket")
        self.running = []
        self.env = {**os.environ, "PRESERVE_AGENT": self.socket}
        self.env.pop("NOTIFY_SOCKET", None)

    def tearDown(self):
        for process in self.running:
            process.kill()
            process.wait()
        shutil.rmtree(self.dir)

    def start(self, *command):
        process = subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL)
        self.running.append(process)
        return process

    def agent(self):
        process = self.start(AGENT, "--socket", self.socket)
        for _ in range(500):
            if self.ctl("list").returncode == 0:
                return process
            time.sleep(0.01)
        return self.fail("the agent does not serve")

    def ctl(self, *words):
        return subprocess.run([CTL, "agent", *words], env=self.env, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False)

    def kvstore(self):
        """A server on the agent, and a connection to it."""
        path = os.path.join(self.dir, "kv")
        process = self.start(KVSTORE, "--port", "0", "--unixsocket", path, "--handover", "agent")
        for _ in range(1000):
            try:
                client = socket.socket(socket.AF_UNIX)
                client.connect(path)
                client.settimeout(10)
                return process, client
            except OSError:
                client.close()
                time.sleep(0.01)
        return self.fail("kvstore does not serve")

    def say(self, client, *words):
        parts = b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words)
        client.sendall(b"*%d\r\n%s" % (len(words), parts))
        return client.recv(1000)

    def test_no_agent(self):
        done = self.ctl()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(b"no agent is there", done.stderr)
        self.assertEqual(self.ctl("dance").returncode, 2)
        self.assertEqual(self.ctl("drop").returncode, 2)
        self.assertEqual(self.ctl("drop", "--all").returncode, 2)

    def test_server(self):
        self.agent()
        process, client = self.kvstore()
        self.assertEqual(self.say(client, "SET", "key", "value"), b"+OK\r\n")
        self.assertIn(b"preserve_handover:agent", self.say(client, "INFO", "preserve"))
        client.close()
        entries = json.loads(self.ctl("list", "--json").stdout)
        self.assertEqual([(e["name"], e["state"], e["open"]) for e in entries],
                         [("kvstore", "kept", True)])
        # In use.
        self.assertEqual(self.ctl("drop", "kvstore").returncode, 4)
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.unlink(os.path.join(self.dir, "kv"))
        process, client = self.kvstore()
        self.assertEqual(self.say(client, "GET", "key"), b"$5\r\nvalue\r\n")
        client.close()
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        self.assertIn(b"kvstore", self.ctl().stdout)
        self.assertEqual(self.ctl("drop", f"{os.geteuid()}:kvstore").returncode, 0)
        self.assertEqual(json.loads(self.ctl("list", "--json").stdout), [])
        self.assertEqual(self.ctl("drop", "kvstore").returncode, 3)

    def plain(self, *words):
        return subprocess.run([CTL, *words], env=self.env, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False)

    def test_like_other_stores(self):
        """The agent's stores are in the common list, and can be looked at, saved and brought back."""
        self.agent()
        process, client = self.kvstore()
        self.assertEqual(self.say(client, "SET", "key", "value"), b"+OK\r\n")
        client.close()

        def listed():
            return [(e["state"], e["descriptors"]) for e in json.loads(self.plain("list", "--json").stdout)
                    if e["backend"] == "agent"]

        self.assertEqual(listed(), [("serving", 2)])
        self.assertRegex(self.plain("list").stdout, rb"kvstore +\w+ +serving .* agent ")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(), 0)
        self.assertEqual(listed(), [("idle", 2)])
        self.assertEqual(self.plain("check", "kvstore").returncode, 0)
        self.assertIn(b"kv-entry", self.plain("show", "kvstore").stdout)
        image = os.path.join(self.dir, "image")
        self.assertEqual(self.plain("save", "kvstore", image).returncode, 0)
        self.assertEqual(self.plain("drop", "--yes", "kvstore").returncode, 0)
        self.assertEqual(listed(), [])
        self.assertEqual(self.plain("show", "kvstore").returncode, 3)
        self.assertEqual(self.plain("restore", image).returncode, 0)
        self.assertEqual(listed(), [("idle", 2)])
        process, client = self.kvstore()
        self.assertEqual(self.say(client, "GET", "key"), b"$5\r\nvalue\r\n")
        client.close()

    def doctor(self):
        """What it says of the agent."""
        said = subprocess.run([CTL, "doctor", "--json"], env=self.env, stdout=subprocess.PIPE, check=False)
        return [f["level"] for f in json.loads(said.stdout)["findings"] if f["name"] == "agent"]

    def test_doctor(self):
        agent = self.agent()
        self.assertEqual(self.doctor(), ["ok"])
        agent.kill()
        agent.wait()
        self.assertEqual(self.doctor(), ["fail"])

    def test_prepare_all(self):
        """Without LUO each store's failure is said, and the others are tried."""
        self.agent()
        process, client = self.kvstore()
        client.close()
        done = self.ctl("cancel", "--all")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stdout, rb"kvstore of \w+: cancelled, [0-9.]+ s \(1 of 1\)")
        done = self.ctl("cancel", "kvstore", "missing", "--json")
        self.assertEqual(done.returncode, 3)
        self.assertEqual([(s["name"], s["error"]) for s in json.loads(done.stdout)],
                         [("kvstore", 0), ("missing", errno.ENOENT)])
        process.kill()
        process.wait()

    def test_agent_dies_under_the_server(self):
        agent = self.agent()
        process, client = self.kvstore()
        self.assertEqual(self.say(client, "SET", "key", "value"), b"+OK\r\n")
        agent.kill()
        agent.wait()
        self.agent()
        for _ in range(1000):
            if json.loads(self.ctl("list", "--json").stdout):
                break
            time.sleep(0.01)
        client.close()
        process.kill()
        process.wait()
        os.unlink(os.path.join(self.dir, "kv"))
        process, client = self.kvstore()
        self.assertEqual(self.say(client, "GET", "key"), b"$5\r\nvalue\r\n")
        client.close()


if __name__ == "__main__":
    unittest.main()
