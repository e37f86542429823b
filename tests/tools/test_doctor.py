#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""preservectl doctor: each finding, on machines that are folders. Arguments: play, preservectl."""

import os
import resource
import signal
import subprocess

import support
from support import CTL, FAILED, OK, WARN, ToolTest

HUGE = "sys/kernel/mm/transparent_hugepage/shmem_enabled"
SCRATCH = "sys/kernel/debug/kho/out/scratch_len"
UNIT = "probe/unit"
LIMITS = "proc/self/limits"

GOOD = {
    "proc/sys/kernel/osrelease": "7.2.0\n",
    "proc/cmdline": "quiet kho=on liveupdate=on\n",
    "dev/liveupdate": "",
    SCRATCH: "0x4400000\n0x0\n0xcc00000\n",
    "proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\nSwapFree: 0 kB\n"
    "CommitLimit: 4000000 kB\nCommitted_AS: 1000000 kB\n",
    "probe/kexec_file_load": "22\n",
    "proc/sys/kernel/kexec_load_disabled": "0\n",
    "sys/kernel/kexec_loaded": "1\n",
    HUGE: "always within_size [advise] never deny force\n",
    "proc/sys/vm/memfd_noexec": "0\n",
    "proc/sys/vm/overcommit_memory": "0\n",
    LIMITS: "Limit  Soft Limit  Hard Limit  Units\nMax address space  unlimited  unlimited  bytes\n"
    "Max open files  1024  524288  files\n",
    "proc/self/cgroup": "0::/system.slice/x.service\n",
    "sys/fs/cgroup/system.slice/x.service/memory.max": "max\n",
    "run/systemd/system/there": "",
    "probe/systemctl-version": "systemd 262 (262.1)\n",
    UNIT: "LoadState=loaded\nKillMode=process\nFileDescriptorStoreMax=0\n"
    "NFileDescriptorStore=0\nFileDescriptorStorePreserve=restart\nMemoryMax=infinity\nLimitAS=infinity\n"
    "LimitNOFILE=524288\nPrivateTmp=no\n",
}


class Doctor(ToolTest):
    def setUp(self):
        super().setUp()
        self.root = os.path.join(self.work, "root")
        for name, text in GOOD.items():
            self.put(name, text)
        # Stores lie in /tmp here, which is a finding of its own.
        self.usual = {"runtime-dir"}

    def put(self, name, text):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)

    def remove(self, name):
        os.unlink(os.path.join(self.root, name))

    def findings(self, *args, status=None, **more):
        """What is not right, by name, besides what is usual here."""
        said = self.ctl("doctor", "--json", "--root", self.root, *args, status=status, **more).json
        levels = [f["level"] for f in said["findings"]]
        worst = "fail" if "fail" in levels else "warn" if "warn" in levels else "ok"
        self.assertEqual(said["worst"], worst)
        found = {}
        for f in said["findings"]:
            if f["level"] == "ok":
                self.assertEqual(f["advice"], "")
            elif f["name"] not in self.usual:
                self.assertTrue(f["advice"], f)
                found[f["name"]] = f
        return found

    def only(self, name, level, text, *args):
        """One thing is wrong, and this is it."""
        found = self.findings(*args, status={"warn": WARN, "fail": FAILED}[level])
        self.assertEqual(list(found), [name], found)
        self.assertEqual(found[name]["level"], level)
        self.assertIn(text, found[name]["text"])


class Kernel(Doctor):
    def test_good(self):
        self.assertEqual(self.findings("--kexec", "--unit", "x.service", status=WARN), {})
        text = self.ctl("doctor", "--root", self.root, status=WARN).text
        self.assertIn("272 MiB of 7.6 GiB", text)
        self.assertIn("a kernel is loaded", text)

    def test_no_luo(self):
        self.remove("dev/liveupdate")
        self.put("proc/sys/kernel/osrelease", "6.12.0-amd64\n")
        self.only("luo", "warn", "Linux 6.12")
        self.only("luo", "fail", "Linux 6.12", "--kexec")
        self.put("proc/sys/kernel/osrelease", "6.19.0\n")
        self.only("luo", "warn", "although")
        self.put("proc/cmdline", "quiet kho=on xliveupdate=on\n")
        self.only("luo", "warn", "without liveupdate=on")
        self.put("proc/cmdline", "quiet liveupdate=on\n")
        self.only("luo", "warn", "without kho=on")

    def test_device_held_open(self):
        folder = os.path.join(self.root, "proc/4711/fd")
        os.makedirs(folder)
        os.symlink("/dev/liveupdate", os.path.join(folder, "5"))
        self.only("luo-busy", "fail", "process 4711", "--kexec")

    def test_scratch(self):
        self.put(SCRATCH, "0x80000000\n")
        self.only("scratch", "warn", "2.0 GiB of 7.6 GiB")
        self.remove(SCRATCH)
        self.only("scratch", "warn", "cannot be told")

    def test_kexec(self):
        self.put("probe/kexec_file_load", "38\n")
        self.only("kexec", "warn", "kexec_file_load()")
        self.put("probe/kexec_file_load", "1\n")
        self.put("proc/sys/kernel/kexec_load_disabled", "1\n")
        self.only("kexec", "fail", "kexec_load_disabled", "--kexec")

    def test_huge_pages(self):
        self.put(HUGE, "always within_size advise [never] deny force\n")
        self.only("huge-pages", "warn", "never")
        self.put(HUGE, "always within_size advise never [deny] force\n")
        self.only("huge-pages", "warn", "denied")
        self.remove(HUGE)
        self.only("huge-pages", "warn", "no huge pages")

    def test_io_uring(self):
        self.put("proc/sys/kernel/io_uring_disabled", "2\n")
        self.only("io-uring", "fail", "no store can be prepared", "--kexec")
        self.put(HUGE, "always within_size advise never [deny] force\n")
        self.only("huge-pages", "warn", "denied")

    def test_memfds(self):
        self.put("proc/sys/vm/memfd_noexec", "2\n")
        self.only("memfd", "fail", "no holder can be started")


class Memory(Doctor):
    def test_overcommit(self):
        self.put("proc/sys/vm/overcommit_memory", "2\n")
        self.only("overcommit", "warn", "2.9 GiB may still be promised")

    def test_holes(self):
        self.play("make", "one", 10)
        self.put("proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 100 kB\nSwapFree: 0 kB\n")
        self.only("prepare", "fail", "100 KiB are available", "--kexec")

    def test_cgroups(self):
        self.play("make", "one", 10)
        limit = "sys/fs/cgroup/system.slice/memory.max"
        self.put(limit, "1048576\n")
        self.only("cgroup", "fail", "store one has 1.5 MiB, and /" + limit + " allows 1.0 MiB")
        self.put("proc/self/cgroup", "5:cpu:/\n4:memory:/a\n0::/\n")
        self.assertEqual(self.findings(), {})
        self.put("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000000\n")
        self.only("cgroup", "fail", "allows 977 KiB")


class Limits(Doctor):
    def limited(self, space, files):
        self.put(LIMITS, f"Max address space         {space}      bytes\n"
                         f"Max open files            {files}      files\n")

    def test_address_space(self):
        self.limited("4294967296  unlimited", "1024  4096")
        self.only("address-space", "fail", "may map 4.0 GiB")

    def test_descriptors(self):
        self.limited("unlimited   unlimited", "256   4096")
        self.only("descriptors", "warn", "process started from here can have 256")
        self.limited("unlimited   unlimited", "256   512")
        self.only("descriptors", "warn", "holder started from here can keep 512")

    def test_real_limits(self):
        """The kernel's own file is read in the same way."""
        done = subprocess.run(
            [CTL, "doctor", "-r", self.dir, "--json"], stdout=subprocess.PIPE, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300)),
        )
        self.assertIn(b"holder started from here can keep 300", done.stdout)


class Stores(Doctor):
    def test_states(self):
        self.play("make", "gone", 10)
        self.play("make", "bad", 10)
        os.kill(self.listed("gone")["holder_pid"], signal.SIGKILL)
        self.flip("bad", 0, 17)
        said = self.ctl("doctor", "--json", "--root", self.root, status=WARN).json["findings"]
        texts = " ".join(f["text"] for f in said if f["name"] == "store")
        self.assertIn("gone is lost", texts)
        self.assertIn("bad is damaged", texts)

    def test_directory(self):
        os.chmod(self.dir, 0o755)
        self.usual = set()
        self.only("runtime-dir", "fail", "mode 0755")
        os.chmod(self.dir, 0o700)

    def test_no_directory_is_no_fault(self):
        done = subprocess.run([CTL, "doctor", "--json", "--root", self.root, "-r", "/run/none"],
                              stdout=subprocess.PIPE, check=False)
        self.assertEqual(done.returncode, OK)


class Systemd(Doctor):
    def unit(self, name, value):
        lines = [line for line in GOOD[UNIT].splitlines() if not line.startswith(name + "=")]
        self.put(UNIT, "\n".join(lines + [f"{name}={value}\n"]))

    def test_none(self):
        self.remove("run/systemd/system/there")
        os.rmdir(os.path.join(self.root, "run/systemd/system"))
        self.assertEqual(self.findings(), {})
        self.only("systemd", "fail", "does not run", "--unit", "x.service")

    def test_version(self):
        self.put("probe/systemctl-version", "systemd 252 (252.38-1~deb12u1)\n")
        self.assertIn("systemd 252 carries no", self.ctl("doctor", "--root", self.root).text)
        self.put("probe/systemctl-version", "what?\n")
        self.only("systemd", "warn", "cannot be told")

    def test_unit_that_is_not_there(self):
        self.unit("LoadState", "not-found")
        self.only("unit", "fail", "no unit x.service", "--unit", "x.service")
        self.only("unit", "fail", "no name", "--unit", "x;reboot")
        self.remove(UNIT)
        self.only("unit", "fail", "does not say", "--unit", "x.service")

    def test_keeping(self):
        self.unit("KillMode", "control-group")
        self.only("unit-keeping", "fail", "KillMode=control-group", "--unit", "x.service")
        self.put(UNIT, GOOD[UNIT].replace("StoreMax=0", "StoreMax=64").replace("process", "mixed"))
        self.only("unit-keeping", "warn", "FileDescriptorStoreMax=64", "--unit", "x.service")
        kept = GOOD[UNIT].replace("StoreMax=0", "StoreMax=64").replace("=restart", "=yes")
        # Where there is no holder, it does not matter who sees its directory.
        self.put(UNIT, kept.replace("PrivateTmp=no", "PrivateTmp=yes"))
        self.assertEqual(self.findings("--unit", "x.service"), {})
        self.put(UNIT, kept.replace("NFileDescriptorStore=0", "NFileDescriptorStore=64"))
        self.only("unit-keeping", "warn", "systemd keeps 64 descriptors", "--unit", "x.service")
        self.unit("PrivateTmp", "yes")
        self.only("unit-keeping", "fail", "PrivateTmp", "--unit", "x.service")

    def test_limits(self):
        self.play("make", "one", 10)
        self.unit("MemoryMax", "1000000")
        self.only("unit-memory", "fail", "store one has 1.5 MiB", "--unit", "x.service")
        self.unit("LimitAS", "4294967296")
        self.only("unit-limits", "fail", "LimitAS=4294967296", "--unit", "x.service")
        self.unit("LimitNOFILE", "512")
        self.only("unit-limits", "warn", "LimitNOFILE=512", "--unit", "x.service")


if __name__ == "__main__":
    support.main()
