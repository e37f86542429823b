#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""preservectl: list, show, dump, check, drop. Arguments: play, preservectl."""

import os
import pty
import signal
import subprocess

import support
from support import CTL, IN_USE, NO_STORE, OK, UNABLE, UNSOUND, USAGE, ToolTest


class List(ToolTest):
    def test_nothing(self):
        self.assertEqual(self.ctl("list", "--json", status=OK).json, [])
        self.assertEqual(len(self.ctl("list", status=OK).text.splitlines()), 1)

    def test_no_directory(self):
        os.rmdir(self.dir)
        self.assertEqual(self.ctl("list", "--json", status=OK).json, [])
        os.mkdir(self.dir, 0o700)

    def test_directory_of_the_wrong_mode(self):
        os.chmod(self.dir, 0o755)
        result = self.ctl("list", status=UNABLE)
        self.assertIn("mode 0755", result.err)
        os.chmod(self.dir, 0o700)

    def test_states_and_figures(self):
        made = self.play("make", "one", 1000, 3)
        self.play("make", "two", 10)
        holder = self.hold("two")
        one, two = self.ctl("list", "--json", status=OK).json
        self.assertEqual((one["name"], one["state"], one["open"]), ("one", "idle", False))
        self.assertEqual((two["name"], two["state"], two["open"]), ("two", "serving", True))
        self.assertEqual(one["uuid"].replace("-", ""), made["uuid"])
        self.assertEqual(one["segments"], int(made["segments"]))
        self.assertEqual(one["descriptors"], one["segments"] + 1)
        self.assertGreater(one["bytes"], 3 << 20)
        self.assertGreater(one["backed_bytes"], 3 << 20)
        self.assertEqual((one["epoch"], two["epoch"]), (1, 2))
        self.assertEqual(one["users"], [])
        self.assertEqual(
            two["users"], [{"pid": holder.pid, "command": "play", "writer": True}]
        )
        text = self.ctl("list", status=OK).text
        self.assertIn(f"{holder.pid} play", text)
        self.release(holder)
        self.assertEqual(self.listed("two")["state"], "idle")

    def test_dead_holder(self):
        self.play("make", "gone", 10)
        self.play("make", "here", 10)
        os.kill(self.listed("gone")["holder_pid"], signal.SIGKILL)
        gone, here = self.ctl("list", "--json", status=OK).json
        self.assertEqual((gone["state"], here["state"]), ("lost", "idle"))
        self.assertRegex(gone["problem"], "has died|went away")
        self.ctl("drop", "--yes", "gone", status=OK)
        self.assertIsNone(self.listed("gone"))

    def test_hung_holder(self):
        self.play("make", "slow", 10)
        pid = self.listed("slow")["holder_pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            entry = self.listed("slow")
        finally:
            os.kill(pid, signal.SIGCONT)
        self.assertEqual(entry["state"], "silent")
        self.assertIn("has not answered", entry["problem"])
        self.play("verify", "slow", 10)

    def test_damaged(self):
        self.play("make", "bad", 10)
        self.flip("bad", 0, 17)
        entry = self.listed("bad")
        self.assertEqual(entry["state"], "damaged")
        self.assertIn("checksum", entry["problem"])
        self.ctl("show", "bad", status=UNSOUND)
        self.ctl("check", "--fast", "bad", status=UNSOUND)
        self.ctl("drop", "--yes", "bad", status=OK)


class Show(ToolTest):
    def test_contents(self):
        self.play("make", "one", 1000, 3)
        shown = self.ctl("show", "--json", "one", status=OK).json
        types = {t["name"]: t for t in shown["types"]}
        self.assertEqual(types["node"]["live_objects"], 1000)
        self.assertEqual(types["node"]["version"], 3)
        self.assertEqual(types["node"]["bytes"], 64)
        self.assertEqual(types["node"]["references"], ["next"])
        self.assertEqual(types["list"]["references"], ["first", "large"])
        self.assertEqual(types["blob"]["extents"], 1)
        self.assertEqual(types["blob"]["references"], [])
        self.assertEqual(shown["live_objects"], 1002)
        self.assertEqual(sum(s["bytes"] for s in shown["segments"]) + 4096 + 2 * 262144,
                         shown["bytes"])
        text = self.ctl("show", "one", status=OK).text
        self.assertRegex(text, r"(?m)^node +3 +64 +1000 ")

    def test_of_a_store_that_is_open(self):
        self.play("make", "one", 10)
        holder = self.hold("one")
        shown = self.ctl("show", "--json", "one", status=OK).json
        self.assertEqual(shown["users"][0]["pid"], holder.pid)
        self.release(holder)

    def test_changes_nothing(self):
        self.play("make", "one", 10)
        before, after = self.listed("one"), None
        for command in ("show", "check", "dump"):
            self.ctl(command, "one", status=OK)
        after = self.listed("one")
        # To read a page of a memfd that was never written takes memory.
        self.assertGreaterEqual(after.pop("backed_bytes"), before.pop("backed_bytes"))
        self.assertEqual(after, before)

    def test_no_store(self):
        for command in ("show", "check", "dump"):
            result = self.ctl(command, "nix", status=NO_STORE)
            self.assertIn("nix", result.err)


class Dump(ToolTest):
    def test_index(self):
        self.play("make", "one", 10)
        source = self.ctl("dump", "one", status=OK).text
        blob = self.ctl("dump", "--raw", "one", status=OK).out
        told = subprocess.run(
            ["dtc", "-q", "-I", "dts", "-O", "dtb"],
            input=source.encode(), stdout=subprocess.PIPE, check=True,
        ).stdout
        self.assertEqual(self.flat(told), self.flat(blob))

    @staticmethod
    def flat(blob):
        """A blob as dtc prints it, so that only what it means is compared."""
        return subprocess.run(
            ["dtc", "-q", "-I", "dtb", "-O", "dts"],
            input=blob, stdout=subprocess.PIPE, check=True,
        ).stdout

    def test_roots(self):
        made = self.play("make", "one", 10)
        (root,) = self.ctl("dump", "--roots", "--json", "one", status=OK).json
        self.assertEqual((root["name"], root["type"], root["bytes"]), ("list", "list", 32))
        self.assertEqual(root["address"], int(made["base"]) + root["offset"])
        self.assertIn("list", self.ctl("dump", "--roots", "one", status=OK).text)


class Check(ToolTest):
    def test_sound(self):
        self.play("make", "one", 1000)
        report = self.ctl("check", "--json", "one", status=OK).json
        self.assertEqual((report["problems"], report["live_objects"]), (0, 1001))
        self.assertEqual(self.ctl("check", "--fast", "--json", "one", status=OK).json["form"], "fast")
        self.assertIn("0 problems", self.ctl("check", "one", status=OK).text)

    def test_problems(self):
        self.play("make", "one", 1000)
        self.flip("one", 1, 128 + 8 * 100)  # the page map's word of page 100
        self.ctl("check", "--fast", "one", status=OK)
        report = self.ctl("check", "--json", "one", status=UNSOUND).json
        self.assertGreater(report["problems"], 0)
        self.assertEqual(len(report["lines"]), report["problems"])
        self.assertIn("page", self.ctl("check", "one", status=UNSOUND).text)


class Repair(ToolTest):
    def test_leaks(self):
        self.play("make", "one", 100)
        self.play("leak", "one", 30)
        report = self.ctl("check", "--leaks", "--json", "one", status=OK).json
        self.assertEqual((report["leaked_objects"], report["leaked_bytes"]), (30, 30 * 64))
        self.assertEqual(report["leaks"], [{"type": "node", "objects": 30, "bytes": 30 * 64}])
        self.assertTrue(report["pointers_followed"])
        text = self.ctl("check", "--leaks", "-t", "1", "one", status=OK).text
        self.assertIn("leaked: 30 objects of type node", text)
        self.ctl("repair", "one", status=OK)
        dry = self.ctl("repair", "--leaks", "--dry-run", "--json", "one", status=OK).json
        self.assertEqual((dry["freed_objects"], dry["left"]), (30, 0))
        self.assertEqual(self.ctl("check", "--json", "one").json["leaked_objects"], 30)
        done = self.ctl("repair", "--leaks", "--json", "one", status=OK).json
        self.assertEqual((done["freed_objects"], done["freed_bytes"]), (30, 30 * 64))
        self.assertEqual(self.ctl("check", "--json", "one").json["leaked_objects"], 0)
        self.play("verify", "one", 100)

    def test_damaged_commit_word(self):
        self.play("make", "one", 100)
        self.flip("one", 0, 71)
        self.ctl("check", "one", status=UNSOUND)
        self.assertGreater(self.ctl("repair", "-n", "--json", "one", status=OK).json["mended"], 0)
        self.ctl("check", "one", status=UNSOUND)
        self.assertIn("mended", self.ctl("repair", "one", status=OK).text)
        self.ctl("check", "one", status=OK)
        self.play("verify", "one", 100)

    def test_what_is_left(self):
        self.play("make", "one", 1000)
        self.flip("one", 1, 128 + 8 * 100)
        done = self.ctl("repair", "--json", "one", status=UNSOUND).json
        self.assertGreater(done["left"], 0)
        self.assertTrue(done["lines"])

    def test_in_use(self):
        self.play("make", "one", 100)
        holder = self.hold("one")
        self.ctl("repair", "one", status=IN_USE)
        self.release(holder)


class Compact(ToolTest):
    def test_segments_come_free(self):
        self.play("make", "one", 100000, 3)
        self.play("thin", "one", 100, 3)
        before = self.listed("one")["bytes"]
        holder = self.hold("one")
        self.ctl("compact", "one", status=IN_USE)
        self.release(holder)
        dry = self.ctl("compact", "--dry-run", "--json", "one", status=OK).json
        self.assertEqual(self.listed("one")["bytes"], before)
        done = self.ctl("compact", "--json", "one", status=OK).json
        self.assertEqual((dry["dry_run"], done["dry_run"]), (True, False))
        self.assertGreater(done["segments_returned"], 0)
        self.assertEqual(self.listed("one")["bytes"], before - done["segments_bytes"])
        self.play("verify", "one", 100, 3)
        self.assertIn("came free", self.ctl("compact", "one", status=OK).text)


class Drop(ToolTest):
    def test_asks(self):
        self.play("make", "one", 10)
        self.ctl("drop", "one", status=USAGE)
        self.ctl("drop", "--yes", "one", status=OK)
        self.assertEqual(os.listdir(self.dir), [])
        self.ctl("drop", "--yes", "one", status=NO_STORE)

    def test_in_use(self):
        self.play("make", "one", 10)
        holder = self.hold("one")
        result = self.ctl("drop", "--yes", "one", status=IN_USE)
        self.assertIn(f"process {holder.pid} is play", result.err)
        self.release(holder)
        self.play("verify", "one", 10)

    def test_several(self):
        self.play("make", "one", 10)
        self.play("make", "two", 10)
        done = self.ctl("drop", "--yes", "--json", "one", "nix", "two", status=NO_STORE).json
        self.assertEqual([d["name"] for d in done], ["one", "two"])


class Handover(ToolTest):
    """What can be told without a Live Update Orchestrator; the rest is tests/handover/ctl.scenario."""

    def test_in_use(self):
        self.play("make", "one", 10)
        holder = self.hold("one")
        result = self.ctl("prepare", "one", status=IN_USE)
        self.assertIn(f"process {holder.pid} (play)", result.err)
        self.release(holder)

    def test_nothing_to_do(self):
        self.play("make", "one", 10)
        self.assertIn("not prepared", self.ctl("cancel", "one", status=OK).text)
        self.assertIn("nothing to finish", self.ctl("finish", "--all", status=OK).text)
        (done,) = self.ctl("cancel", "--json", "--all", status=OK).json
        self.assertEqual((done["name"], done["state"]), ("one", "idle"))
        self.play("verify", "one", 10)

    def test_no_luo(self):
        if os.path.exists("/dev/liveupdate"):
            return  # the scenario has more to say
        self.play("make", "one", 10)
        self.assertIn("no /dev/liveupdate", self.ctl("prepare", "one", status=UNABLE).err)
        self.assertIn("no /dev/liveupdate", self.ctl("finish", "nix", status=UNABLE).err)
        self.play("verify", "one", 10)


class Top(ToolTest):
    def test_tables(self):
        self.play("make", "one", 1000)
        text = self.ctl("top", "-n", "2", "-d", "0.1", status=OK).text
        self.assertEqual(len([line for line in text.splitlines() if line.startswith("one ")]), 2)
        self.assertRegex(text, r"(?m)^one .* 1001 +\+0 +-$")
        self.ctl("top", "--json", status=USAGE)
        self.ctl("top", "-d", "0", status=USAGE)

    def on_a_terminal(self, end):
        """Start it on a terminal, wait for the second table, end it, return the output."""
        master, slave = pty.openpty()
        with subprocess.Popen([CTL, "top", "-r", self.dir, "-d", "0.1"], stdin=slave,
                              stdout=slave, stderr=slave, close_fds=True) as process:
            os.close(slave)
            out = b""
            while out.count(b"STORE") < 2:
                out += os.read(master, 4096)
            end(process, master)
            while True:
                try:
                    more = os.read(master, 4096)
                except OSError:
                    break  # the other end is closed
                if not more:
                    break
                out += more
            self.assertEqual(process.wait(timeout=30), OK)
        os.close(master)
        self.assertIn(b"\x1b[?1049h", out)
        self.assertIn(b"\x1b[?1049l", out)

    def test_q(self):
        self.on_a_terminal(lambda process, master: os.write(master, b"q"))

    def test_sigint(self):
        self.on_a_terminal(lambda process, master: process.send_signal(signal.SIGINT))


class CommandLine(ToolTest):
    def test_help(self):
        for args in (["--help"], ["--version"], ["list", "--help"], ["show", "--help"],
                     ["dump", "--help"], ["check", "--help"], ["drop", "--help"], ["save", "--help"],
                     ["restore", "--help"], ["prepare", "--help"], ["cancel", "--help"],
                     ["finish", "--help"], ["compact", "--help"], ["repair", "--help"], ["doctor", "--help"], ["top", "--help"]):
            done = subprocess.run([CTL, *args], stdout=subprocess.PIPE, check=False)
            self.assertEqual(done.returncode, OK, args)
            self.assertTrue(done.stdout, args)

    def test_wrong(self):
        for args in ([], ["nix"], ["show"], ["list", "one"], ["show", "a", "b"], ["show", "-x"],
                     ["check", "--fast", "--full", "a"], ["check", "--fast", "--leaks", "a"],
                     ["check", "-t", "65", "a"], ["repair"], ["dump", "--roots", "--index", "a"],
                     ["dump", "--json", "a"], ["drop", "a"], ["prepare"], ["prepare", "--all", "a"],
                     ["doctor", "a"], ["top", "a"]):
            done = subprocess.run([CTL, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, check=False)
            self.assertEqual(done.returncode, USAGE, args)

    def test_full_output(self):
        with open("/dev/full", "wb") as full:
            self.ctl("list", status=1, stdout=full)


if __name__ == "__main__":
    support.main()
