# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of preservectl share: a runtime directory, stores in it, and the tool."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

PLAY, CTL = sys.argv[1:3]

OK, FAILED, USAGE, NO_STORE, IN_USE, UNSOUND, UNABLE, WARN = range(8)


class Result:
    """What a run of preservectl left."""

    def __init__(self, done):
        self.status = done.returncode
        self.out = done.stdout
        self.err = done.stderr.decode()

    @property
    def text(self):
        """Standard output as text."""
        return self.out.decode()

    @property
    def json(self):
        """Standard output as the JSON value that it is."""
        return json.loads(self.out)


class ToolTest(unittest.TestCase):
    """A test with a runtime directory of its own; its stores are dropped at the end."""

    def setUp(self):
        self.work = tempfile.mkdtemp(prefix="pvctl-")
        self.dir = os.path.join(self.work, "run")
        os.mkdir(self.dir, 0o700)
        self.held = []

    def tearDown(self):
        for process in self.held:
            process.communicate(timeout=60)
        names = [f[:-5] for f in os.listdir(self.dir) if f.endswith(".sock")]
        if names:
            self.ctl("drop", "--yes", *names)
        shutil.rmtree(self.work)

    def ctl(self, command, *args, status=None, **more):
        """Run preservectl; `status` is what its exit status must be."""
        done = subprocess.run(
            [CTL, command, "-r", self.dir, *args],
            stdin=more.pop("stdin", subprocess.DEVNULL),
            stdout=more.pop("stdout", subprocess.PIPE),
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
            **more,
        )
        result = Result(done)
        if status is not None and result.status != status:
            self.fail(f"{command} {args}: status {result.status}, not {status}: {result.err}")
        return result

    def play(self, command, name, *args):
        """Make or verify a store; what it says of it."""
        done = subprocess.run(
            [PLAY, command, self.dir, name, *map(str, args)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stderr.decode())
        return dict(word.split("=") for word in done.stdout.decode().split())

    def hold(self, name):
        """A process that has the store open until release()."""
        process = subprocess.Popen(
            [PLAY, "hold", self.dir, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.assertEqual(process.stdout.readline(), b"open\n")
        self.held.append(process)
        return process

    def release(self, process):
        """Let it close the store."""
        process.communicate(timeout=60)
        self.held.remove(process)

    def listed(self, name):
        """The entry of a store in the list, None if it is not there."""
        found = [s for s in self.ctl("list", "--json", status=OK).json if s["name"] == name]
        return found[0] if found else None

    def memfd(self, name, token):
        """The path of a kept memfd: in the holder's table index and segments come in this order."""
        pid = self.listed(name)["holder_pid"]
        suffix = "index" if token == 0 else str(token - 1)
        for number in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{number}"
            if os.readlink(path) == f"/memfd:pv:{name}:{suffix} (deleted)":
                return path
        self.fail(f"the holder of {name} has no memfd {suffix}")
        return None

    def flip(self, name, token, at):
        """Flip a bit of a kept memfd."""
        with open(self.memfd(name, token), "r+b", buffering=0) as file:
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), at)


def main():
    """Run the tests of the calling module."""
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
