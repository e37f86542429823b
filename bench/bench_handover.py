# SPDX-License-Identifier: BSD-3-Clause
"""Save and restore of a store, against zstd on the same bytes. Everything lies in memory (/dev/shm), so
that no disk is measured."""

import json
import os
import shutil
import subprocess
import tempfile
import time

import benchlib

NAME = "handover"
SUMMARY = "save a store into an image file and restore it: against zstd -T2 -1"
CASES = ("save-2g", "restore-2g")
THREADS = 2
MB = 1e6


class Store:
    """A store of which no process is open, its contents as a file for the peer, its image."""

    def __init__(self, context, folder):
        self.context = context
        self.run = os.path.join(folder, "run")
        self.contents = os.path.join(folder, "contents")
        self.packed = os.path.join(folder, "contents.zst")
        self.image = os.path.join(folder, "image.pv")
        os.mkdir(self.run, 0o700)
        self.bytes = context.size(2 << 30, 64 << 20)
        self.zstd = context.tool("zstd")

    def ctl(self, command, *args):
        """Run preservectl; what it prints as JSON."""
        argv = [self.context.program("tools", "preservectl", "preservectl"), command, "--json",
                "-r", self.run, *args]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise benchlib.BenchError(f"{' '.join(argv)}: {done.stderr.decode().strip()}")
        return json.loads(done.stdout)

    def build(self):
        """Make the store, and a file of all bytes of it that have memory."""
        benchlib.measure([self.context.program("bench", "bench-image"), "build", self.run, "bench",
                          str(self.bytes)])
        (entry,) = self.ctl("list")
        with open(self.contents, "wb") as out:
            for number in sorted(map(int, os.listdir(f"/proc/{entry['holder_pid']}/fd"))):
                path = f"/proc/{entry['holder_pid']}/fd/{number}"
                if os.readlink(path).startswith("/memfd:pv:bench:"):
                    self.copy(path, out)

    @staticmethod
    def copy(path, out):
        """Append what is not a hole."""
        with open(path, "rb", buffering=0) as memfd:
            size, at = os.fstat(memfd.fileno()).st_size, 0
            while at < size:
                try:
                    at = os.lseek(memfd.fileno(), at, os.SEEK_DATA)
                except OSError:
                    return
                end = os.lseek(memfd.fileno(), at, os.SEEK_HOLE)
                os.lseek(memfd.fileno(), at, os.SEEK_SET)
                while at < end:
                    at += out.write(memfd.read(min(end - at, 16 << 20)))

    def save(self):
        """MB/s of preservectl save."""
        report = self.ctl("save", "-t", str(THREADS), "bench", self.image)
        return report["contents_bytes"] / report["seconds"] / MB

    def restore(self):
        """MB/s of preservectl restore; the store that was there is dropped before."""
        self.ctl("drop", "--yes", "bench")
        report = self.ctl("restore", "-t", str(THREADS), self.image)
        return report["contents_bytes"] / report["seconds"] / MB

    def peer(self, *args):
        """MB/s of zstd."""
        start = time.monotonic()
        subprocess.run([self.zstd, "-q", "-f", f"-T{THREADS}", *args], check=True)
        return os.stat(self.contents).st_size / (time.monotonic() - start) / MB

    def peer_save(self):
        """MB/s of compressing."""
        return self.peer("-1", self.contents, "-o", self.packed)

    def peer_restore(self):
        """MB/s of decompressing, into a file in memory."""
        return self.peer("-d", self.packed, "-o", self.contents)

    def close(self):
        """Drop the store."""
        if self.ctl("list"):
            self.ctl("drop", "--yes", "bench")


def run(context):
    """Both cases, on one store."""
    folder = tempfile.mkdtemp(prefix="pv-bench-", dir="/dev/shm")
    store = Store(context, folder)
    try:
        store.build()
        saved = benchlib.take_turns(context, "save-2g",
                                    {"libpreserve": store.save, "zstd": store.peer_save})
        restored = benchlib.take_turns(context, "restore-2g",
                                       {"libpreserve": store.restore, "zstd": store.peer_restore})
    finally:
        store.close()
        shutil.rmtree(folder)
    return [
        benchlib.row(NAME, case, impl, THREADS, taken, "MB/s", "more", 0)
        for case, sides in (("save-2g", saved), ("restore-2g", restored))
        for impl, taken in sides.items()
    ]
