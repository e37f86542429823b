# SPDX-License-Identifier: BSD-3-Clause
"""Handover across a kexec, in the virtual machine of scripts/vm: prepare and retrieve of 512 MiB, against
the kernel's calls alone on as much memory; the longest wait for a reply meanwhile; from the new kernel's
first program to the first reply, against redis-server that loads the same from a file. And save and
restore of a store, against zstd on the same bytes, where everything lies in memory (/dev/shm), so that no
disk is measured."""

import json
import os
import shutil
import subprocess
import tempfile
import time

import benchlib
from kvserver import Client, free_port

NAME = "handover"
SUMMARY = "across a kexec, in a VM: against the kernel alone, and redis; save and restore: against zstd"
KINDS = {"4k": "deny", "huge": "advise"}  # huge pages for shared memory; the library makes some under never
CASES = (
    "prepare-stall",
    "prepare-512m-4k", "retrieve-512m-4k", "both-512m-4k",
    "prepare-512m-huge", "retrieve-512m-huge", "both-512m-huge",
    "boot-to-first-get-512m",
    "save-2g", "restore-2g",
)
THREADS = 2
MB = 1e6
VALUE_BYTES = 256
ENTRY_BYTES = 320  # what a key of 16 and such a value take, with the map's share
SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Machine:
    """Runs of the virtual machine. It is one side as well as the peer's: both are measured in each boot."""

    def __init__(self, context, folder):
        self.context = context
        self.folder = folder
        self.program = context.program("bench", "bench-handover")

    def run(self, scenario, setting, programs, arguments):
        """Run a scenario; its figures, a list of samples by name. `setting`: shell variables for it."""
        share = tempfile.mkdtemp(dir=self.folder)
        with open(os.path.join(share, "bench"), "w", encoding="ascii") as file:
            file.writelines(f"{name}={value}\n" for name, value in setting.items())
        for source in arguments.pop("files", ()):
            shutil.move(source, share)
        argv = [os.path.join(SOURCE, "scripts", "vm"), "run", "--scenario",
                os.path.join(SOURCE, "bench", scenario), "--share", share, "--timeout", "3000",
                "--log", os.path.join(self.folder, scenario + ".log")]
        for program in programs:
            argv += ["--bin", program]
        for name, value in arguments.items():
            argv += ["--" + name, value]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise benchlib.BenchError(f"{' '.join(argv)}: {done.stderr.decode().strip()}")
        found = {}
        with open(os.path.join(share, "figures"), encoding="ascii") as file:
            for line in file:
                _, name, value = line.split()
                found.setdefault(name, []).append(float(value))
        shutil.rmtree(share)
        return found

    def memory(self, kind):
        """Prepare and retrieve: figures by name."""
        self.context.say(f"VM: prepare and retrieve, pages {kind}")
        setting = {"LAST": self.context.repeat, "BYTES": self.context.size(512 << 20, 64 << 20),
                   "PAGES": KINDS[kind]}
        # A store, as much again for the peer, and what the kernel sets aside.
        return self.run("handover.scenario", setting, [self.program], {"mem": "3072M"})

    def dump(self, keys):
        """A redis file with the same data as kvstore has in the VM."""
        folder = tempfile.mkdtemp(dir=self.folder)
        port = str(free_port())
        argv = [self.context.tool("redis-server"), "--port", port, "--dir", folder,
                "--save", "", "--appendonly", "no"]
        with benchlib.Child(argv) as server:
            benchlib.wait_until(lambda: server.running() and answers(int(port)), 30, "redis answers")
            subprocess.run([self.program, "load", port, str(keys), str(VALUE_BYTES)], check=True)
            with Client(int(port)) as client:
                if client.ask(b"SAVE") != b"OK":
                    raise benchlib.BenchError("redis does not save")
        return os.path.join(folder, "dump.rdb")

    def server(self):
        """kvstore and redis: figures by name."""
        keys = self.context.size(512 << 20, 32 << 20) // ENTRY_BYTES
        self.context.say(f"VM: kvstore and redis-server with {keys} values of {VALUE_BYTES} bytes")
        programs = [self.program, self.context.program("bench", "boot-stamp"),
                    self.context.program("examples", "kvstore", "kvstore"),
                    self.context.tool("redis-server")]
        setting = {"LAST": self.context.repeat, "KEYS": keys, "BYTES": VALUE_BYTES}
        return self.run("handover_kv.scenario", setting, programs,
                        {"mem": "4096M", "files": [self.dump(keys)]})


def answers(port):
    """Does something listen there?"""
    try:
        with Client(port) as client:
            return client.ask(b"PING") == b"PONG"
    except OSError:
        return False


def vm_row(case, impl, values, unit):
    """A figure out of the VM. What else ran on the host meanwhile is not known."""
    samples = benchlib.Samples(values, [None] * len(values))
    return benchlib.row(NAME, case, impl, THREADS, samples, unit, "less", 4)


def kexec(context):
    """All cases with a kexec."""
    folder = tempfile.mkdtemp(prefix="pv-bench-")
    machine = Machine(context, folder)
    rows = []
    try:
        found = machine.server()
        rows += [vm_row("prepare-stall", "kvstore", found["stall-kvstore"], "medians"),
                 vm_row("prepare-stall", "not-preparing", found["stall-calm"], "medians")]
        for impl in ("kvstore", "redis"):
            rows.append(vm_row("boot-to-first-get-512m", impl, found["first-get-" + impl], "ms"))
        for kind in KINDS:
            found = machine.memory(kind)
            for impl in ("libpreserve", "kernel"):
                steps = [found[f"{step}-{impl}"] for step in ("prepare", "retrieve")]
                for step, values in zip(("prepare", "retrieve"), steps):
                    rows.append(vm_row(f"{step}-512m-{kind}", impl, values, "ms"))
                rows.append(vm_row(f"both-512m-{kind}", impl, list(map(sum, zip(*steps))), "ms"))
    finally:
        shutil.rmtree(folder)
    return rows


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
    """All cases."""
    return kexec(context) + images(context)


def images(context):
    """Save and restore, on one store."""
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
