#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""preservectl's man page and completion know all that the program knows. Arguments: play, preservectl,
the source folder."""

import os
import re
import subprocess
import sys

import support
from support import CTL, ToolTest

SOURCE = sys.argv.pop(3)
COMPLETION = os.path.join(SOURCE, "tools", "preservectl", "preservectl.bash")
PAGE = os.path.join(SOURCE, "man", "preservectl.1")


def commands():
    """What the program says it has."""
    text = subprocess.run([CTL, "--help"], stdout=subprocess.PIPE, check=True).stdout.decode()
    return re.findall(r"(?m)^  ([a-z]+) ", text)


def options(command):
    """Long options of a command that are its own."""
    text = subprocess.run(
        [CTL, command, "--help"], stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    common = {"json", "runtime-dir", "user", "help", "usage", "root"}
    return set(re.findall(r"(?m)^ +(?:-., )?--([a-z-]+)", text)) - common


class Page(ToolTest):
    def test_lint(self):
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", PAGE],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )
        self.assertEqual((done.returncode, done.stdout), (0, b""))

    def test_commands_and_options(self):
        with open(PAGE, encoding="utf-8") as file:
            page = file.read()
        self.assertGreater(len(commands()), 10)
        for command in commands():
            self.assertRegex(page, rf"(?m)^\.(It )?Cm .*\b{command}\b")
            for option in options(command):
                short = {"yes": "y", "all": "a", "level": "l", "threads": "t", "name": "n",
                         "force": "f", "kexec": "k", "unit": "U", "delay": "d", "count": "n", "dry-run": "n"}
                want = rf"Fl [a-z]*{short[option]}" if option in short else rf"-{option}\b"
                self.assertRegex(page, want, (command, option))


class Completion(ToolTest):
    def complete(self, *words):
        """What comes after these words."""
        script = (
            'source "$1"; shift; preservectl() { "$CTL" "$@"; }; COMP_WORDS=("$@"); '
            'COMP_CWORD=$(($# - 1)); _preservectl; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", script, "bash", COMPLETION, "preservectl", *words],
            stdout=subprocess.PIPE, check=True, env={**os.environ, "CTL": CTL},
        )
        return done.stdout.decode().split()

    def test_commands(self):
        self.assertEqual(set(self.complete("")), {*commands(), "--help", "--version"})
        self.assertEqual(self.complete("fin"), ["finish"])

    def test_options(self):
        for command in commands():
            said = set(self.complete(command, "--"))
            self.assertEqual(said, {f"--{o}" for o in options(command)} |
                             {"--json", "--runtime-dir", "--user", "--help"}, command)

    def test_stores(self):
        self.play("make", "one", 10)
        self.play("make", "other", 10)
        self.assertEqual(self.complete("show", "-r", self.dir, "o"), ["one", "other"])
        self.assertEqual(self.complete("save", "-r", self.dir, "one", self.work + "/r"),
                         [self.work + "/run"])


if __name__ == "__main__":
    support.main()
