#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""usage: test_demo.py SOURCE-DIR BUILD-DIR [unittest options]

scripts/demo does what it says: it succeeds on a good server, fails on one that loses its data, and
leaves nothing behind, however it ends.
"""
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest

SOURCE = BUILD = None


class Demo(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory(prefix="td")
        self.addCleanup(self.dir.cleanup)

    def start(self, *args, build=None):
        # Its temporary files are ours, so what it leaves is found.
        return subprocess.Popen(
            [SOURCE / "scripts/demo", "--no-setup", "--build", build or BUILD, *args],
            env={**os.environ, "TMPDIR": self.dir.name}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )

    def run_demo(self, *args, **kw):
        process = self.start(*args, **kw)
        output = process.communicate(timeout=120)[0]
        return process.returncode, output

    def processes(self):
        """Living processes that have our folder in their command line."""
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if self.dir.name in line and state not in "ZX":
                found.append(line.replace("\0", " "))
        return found

    def nothing_left(self):
        for _ in range(100):
            if not self.processes():
                break
            time.sleep(0.02)
        self.assertEqual(self.processes(), [])

    def test_good(self):
        status, output = self.run_demo("--keys", "5000")
        self.assertEqual(status, 0, output)
        figures = dict(re.findall(r"^  (\w[\w ,]*?) {2,}([\d,.]+)", output, re.M))
        self.assertEqual((figures["keys"], figures["lost"]), ("5,000", "0"), output)
        self.assertGreater(int(figures["acknowledged writes"].replace(",", "")), 5000)
        self.assertGreater(int(figures["without a reply"]), 0)
        self.assertIn("Every acknowledged write is there.", output)
        self.nothing_left()
        self.assertEqual(os.listdir(self.dir.name), [])

    def sabotaged_build(self):
        """The second server that is started has another store than the first."""
        build = pathlib.Path(self.dir.name, "build")
        for name in ("examples/kvstore/kvstore", "tests/kexec/oracle", "build.ninja"):
            (build / name).parent.mkdir(parents=True, exist_ok=True)
        (build / "build.ninja").write_text(
            "rule none\n  command = true\n"
            "build examples/kvstore/kvstore examples/hello/hello tests/kexec/oracle: none\n"
        )
        (build / "tests/kexec/oracle").symlink_to(BUILD / "tests/kexec/oracle")
        script = build / "examples/kvstore/kvstore"
        script.write_text(
            "#!/bin/bash\n"
            '[[ " $* " == *" --destroy "* ]] || echo x >>"%s/starts"\n'
            'starts=$(wc -l <"%s/starts")\n'
            'if ((starts > 1)) && [[ " $* " != *" --destroy "* ]]; then\n'
            '	set -- "${@/#demo/other}"\nfi\n'
            'exec "%s" "$@"\n' % (build, build, BUILD / "examples/kvstore/kvstore")
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        return build

    def test_loss_is_found(self):
        status, output = self.run_demo("--keys", "5000", build=self.sabotaged_build())
        self.assertEqual(status, 1, output)
        self.assertIn("WRITES ARE MISSING", output)
        lost = re.search(r"^  lost +([\d,]+)", output, re.M)[1]
        self.assertGreater(int(lost.replace(",", "")), 3000)
        self.nothing_left()
        self.assertIn("logs are in", output)

    def test_interrupted(self):
        for signum, seconds in ((signal.SIGINT, 0), (signal.SIGINT, 0.3), (signal.SIGTERM, 1)):
            process = self.start("--keys", "2000000")
            output = ""
            while "start" not in output:
                line = process.stdout.readline()
                self.assertTrue(line, output)
                output += line
            time.sleep(seconds)
            os.killpg(process.pid, signum)
            output += process.communicate(timeout=60)[0]
            self.assertEqual(process.returncode, 128 + signum, output)
            self.nothing_left()
            self.assertEqual(os.listdir(self.dir.name), [])

    def test_keep(self):
        status, output = self.run_demo("--keys", "5000", "--keep")
        self.assertEqual(status, 0, output)
        self.assertEqual(len(self.processes()), 2)  # server and holder
        command = re.search(r"^    (kill .*)$", output, re.M)[1]
        subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
        self.nothing_left()
        self.assertEqual(os.listdir(self.dir.name), [])

    def test_usage(self):
        for args in (["--nonsense"], ["--keys"], ["--keys", "x"], ["--keys", "0"]):
            self.assertEqual(self.run_demo(*args)[0], 2)
        self.assertEqual(self.run_demo("--help")[0], 0)
        self.assertEqual(self.run_demo(build="/nonexistent")[0], 1)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    SOURCE, BUILD = (pathlib.Path(sys.argv.pop(1)).resolve() for _ in range(2))
    unittest.main()
