#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""preservectl save and restore, and what may go wrong around them. Arguments: play, preservectl."""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time

import support
from support import CTL, FAILED, IN_USE, NO_STORE, OK, UNSOUND, USAGE, ToolTest


class Image(ToolTest):
    def setUp(self):
        super().setUp()
        # In memory: each save is synchronised, which takes long on a disk that is busy.
        self.files = tempfile.mkdtemp(prefix="pvctl-", dir="/dev/shm")
        self.file = os.path.join(self.files, "one.pv")

    def tearDown(self):
        super().tearDown()
        shutil.rmtree(self.files)

    def command(self, name, *args):
        return [CTL, name, "-r", self.dir, *args]


class RoundTrip(Image):
    def test_contents(self):
        made = self.play("make", "one", 20000, 24)
        saved = self.ctl("save", "--json", "one", self.file, status=OK).json
        self.assertEqual(saved["file_bytes"], os.stat(self.file).st_size)
        self.assertEqual(os.stat(self.file).st_mode & 0o777, 0o600)
        self.assertGreater(saved["chunks"], 4)
        self.play("verify", "one", 20000, 24)
        self.ctl("drop", "--yes", "one", status=OK)
        restored = self.ctl("restore", "--json", self.file, status=OK).json
        for same in ("name", "uuid", "contents_bytes", "chunks", "generation", "segments"):
            self.assertEqual(restored[same], saved[same], same)
        self.assertFalse(restored["new_uuid"])
        found = self.play("verify", "one", 20000, 24)
        if os.environ.get("PV_RELOCATE") != "always":
            self.assertEqual(found["base"], made["base"])

    def test_what_is_free_is_not_saved(self):
        self.play("make", "one", 20000, 24)
        self.play("thin", "one", 5000)
        saved = self.ctl("save", "--json", "one", self.file, status=OK).json
        self.assertLess(saved["contents_bytes"], 4 << 20)
        self.ctl("restore", "--force", self.file, status=OK)
        self.play("verify", "one", 5000)

    def test_levels_and_threads(self):
        self.play("make", "one", 20000, 8)
        sizes = {}
        for level, threads in (("-7", "1"), ("1", "3"), ("9", "2")):
            self.ctl("save", f"--level={level}", "-t", threads, "one", self.file, status=OK)
            sizes[level] = os.stat(self.file).st_size
            self.ctl("restore", "--force", "-t", threads, self.file, status=OK)
            self.play("verify", "one", 20000, 8)
        self.assertLess(sizes["9"], sizes["-7"])

    def test_pipe(self):
        self.play("make", "one", 20000, 8)
        with subprocess.Popen(self.command("save", "one", "-"), stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as saving:
            self.ctl("restore", "--name", "two", "-", stdin=saving.stdout, status=OK)
            saving.stdout.close()
            self.assertIn(b"saved", saving.stderr.read())
        self.assertEqual(saving.returncode, OK)
        self.play("verify", "two", 20000, 8)
        one, two = self.listed("one"), self.listed("two")
        self.assertNotEqual(one["uuid"], two["uuid"])

    def test_verify(self):
        self.play("make", "one", 1000)
        self.ctl("save", "one", self.file, status=OK)
        self.ctl("restore", "--verify", self.file, status=OK)
        self.ctl("drop", "--yes", "one", status=OK)
        self.assertIn("verified", self.ctl("restore", "--verify", self.file, status=OK).text)
        self.assertIsNone(self.listed("one"))

    def test_commands_for_stores(self):
        """A file where a store's name is wanted: it is said what files are for."""
        self.play("make", "one", 10)
        self.ctl("save", "one", self.file, status=OK)
        for command in (["check"], ["repair"], ["repair", "-n"], ["compact"]):
            result = self.ctl(*command, self.file, status=FAILED)
            self.assertIn("restore --verify", result.err)


class Refused(Image):
    def test_store_in_use(self):
        self.play("make", "one", 10)
        holder = self.hold("one")
        result = self.ctl("save", "one", self.file, status=IN_USE)
        self.assertIn(f"process {holder.pid} is play", result.err)
        self.assertFalse(os.path.exists(self.file))
        self.release(holder)

    def test_no_store_no_file(self):
        self.ctl("save", "nix", self.file, status=NO_STORE)
        self.ctl("restore", self.file, status=FAILED)
        self.play("make", "one", 10)
        self.ctl("save", "one", os.path.join(self.work, "no", "file"), status=FAILED)
        self.ctl("save", "one", self.work, status=FAILED)
        for words in (["save", "one"], ["restore"], ["restore", "a", "b"],
                      ["save", "-l", "20", "a", "b"], ["save", "-t", "0", "a", "b"]):
            self.ctl(*words, status=USAGE)

    def test_over_an_existing_store(self):
        self.play("make", "one", 10)
        self.ctl("save", "one", self.file, status=OK)
        self.play("thin", "one", 5)
        self.assertIn("--force", self.ctl("restore", self.file, status=IN_USE).err)
        holder = self.hold("one")
        self.ctl("restore", "--force", self.file, status=IN_USE)
        self.release(holder)
        self.play("verify", "one", 5)
        self.ctl("restore", "--force", self.file, status=OK)
        self.play("verify", "one", 10)

    def test_damaged_file(self):
        self.play("make", "one", 30000, 12)
        self.ctl("save", "one", self.file, status=OK)
        self.ctl("drop", "--yes", "one", status=OK)
        with open(self.file, "rb") as file:
            image = file.read()
        chooser = random.Random(1)
        for _ in range(20):
            at = chooser.randrange(len(image))
            for bad in (image[:at], image[:at] + bytes([image[at] ^ 4]) + image[at + 1 :]):
                with open(self.file, "wb") as file:
                    file.write(bad)
                result = self.ctl("restore", self.file, status=UNSOUND)
                self.assertRegex(result.err, "damaged|cut short|no image|version")
                self.assertIsNone(self.listed("one"))

    def test_not_an_image(self):
        with open(self.file, "wb") as file:
            file.write(b"#!/bin/sh\n" * 100)
        self.assertIn("no image", self.ctl("restore", self.file, status=UNSOUND).err)


class Interrupted(Image):
    def test_full_file_system(self):
        """Nothing but the old image is left, and the store is as it was."""
        self.play("make", "one", 20000, 8)
        folder = os.path.join(self.work, "small")
        os.mkdir(folder)
        script = (
            'mount -t tmpfs -o size=2m none "$1" && echo old >"$1/one.pv" || exit 99; shift\n'
            '"$@"; status=$?; cat "$OLDPLACE/one.pv"; ls -A "$OLDPLACE"; exit $status'
        )
        unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
        done = subprocess.run(
            [*unshare, "sh", "-c", script, "sh", folder,
             *self.command("save", "one", os.path.join(folder, "one.pv"))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, timeout=60,
            env={**os.environ, "OLDPLACE": folder},
        )
        self.assertEqual(done.returncode, FAILED, done.stderr)
        self.assertIn(b"the file system is full", done.stderr)
        self.assertEqual(done.stdout, b"old\none.pv\n")
        self.play("verify", "one", 20000, 8)

    def test_nobody_reads(self):
        self.play("make", "one", 20000, 8)
        with subprocess.Popen(self.command("save", "one", "-"), stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as saving:
            saving.stdout.read(1000)
            saving.stdout.close()
            self.assertIn(b"nobody reads", saving.stderr.read())
        self.assertEqual(saving.returncode, FAILED)

    def wait_for(self, what):
        for _ in range(5000):
            if what():
                return
            time.sleep(0.002)
        self.fail("it does not happen")

    def interrupt_save(self, sig):
        """Let a save begin, into a pipe that stands still, and stop it there."""
        self.play("make", "one", 20000, 24)
        temporary = self.file + ".tmp"
        with subprocess.Popen(self.command("save", "-l", "19", "one", self.file),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE) as saving:
            self.wait_for(lambda: os.path.exists(temporary))
            saving.send_signal(sig)
            err = saving.stderr.read()
        self.assertFalse(os.path.exists(self.file))
        return saving.returncode, err

    def test_save_killed(self):
        status, _ = self.interrupt_save(signal.SIGKILL)
        self.assertEqual(status, -signal.SIGKILL)
        self.play("verify", "one", 20000, 24)
        self.ctl("save", "one", self.file, status=OK)
        self.assertEqual(os.listdir(self.files), ["one.pv"])
        self.ctl("restore", "--force", self.file, status=OK)
        self.play("verify", "one", 20000, 24)

    def test_save_ended(self):
        status, err = self.interrupt_save(signal.SIGTERM)
        self.assertEqual(status, FAILED, err)
        self.assertEqual(os.listdir(self.files), [])
        self.play("verify", "one", 20000, 24)

    def test_restore_killed(self):
        """Killed at any time: the store is there as a whole, or not at all."""
        self.play("make", "one", 20000, 24)
        self.ctl("save", "one", self.file, status=OK)
        self.ctl("drop", "--yes", "one", status=OK)
        begun = time.monotonic()
        self.ctl("restore", self.file, status=OK)
        took = time.monotonic() - begun
        whole = 0
        for i in range(12):
            self.ctl("drop", "--yes", "one")
            with subprocess.Popen(self.command("restore", self.file), stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as restoring:
                time.sleep(took * i / 10)
                restoring.kill()
            entry = self.listed("one")
            if entry and entry["state"] == "idle":
                self.play("verify", "one", 20000, 24)
                whole += 1
            elif entry:
                self.assertEqual(entry["state"], "unborn")
        self.assertLess(whole, 12)
        self.ctl("restore", "--force", self.file, status=OK)
        self.play("verify", "one", 20000, 24)


if __name__ == "__main__":
    support.main()
