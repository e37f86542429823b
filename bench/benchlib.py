# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks share: running a program once, taking turns, medians, rows, the table.

A benchmark is a module with NAME, SUMMARY, CASES and run(context), which returns rows. A figure is
the median over the context's repeats; in each repeat every side is measured once, one after the other,
so that a slow spell of the machine hits all of them alike. No sample is dropped: a row has all of them.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time

# The peer has nothing to flush in /dev/shm, as we have not; see ops_pmemobj.h.
PMEMOBJ_ENV = {"PMEM_NO_FLUSH": "1", "PMEM_IS_PMEM_FORCE": "1"}
# Share of the processors' time that others may take before a sample counts as disturbed.
DISTURBED = 0.05
# The kernel counts in ticks of 10 ms: of shorter samples it cannot say who had the processors.
LEAST_SECONDS = 0.5


class BenchError(Exception):
    """A measurement that could not be made. It ends the run: no figure is better than a wrong one."""


class Context:
    """What the command line said, and the running commentary."""

    def __init__(self, build_dir, quick, repeat, tools_dir=None):
        self.build_dir = build_dir
        self.quick = quick
        self.repeat = repeat
        self.tools_dir = tools_dir

    def size(self, full, quick):
        """A parameter: its real value, or the one of a smoke run."""
        return quick if self.quick else full

    def program(self, *path):
        """Path of a program of this build."""
        file = os.path.join(self.build_dir, *path)
        if not os.access(file, os.X_OK):
            raise BenchError(f"{file} is missing: was the build configured with -Dbench=true?")
        return file

    def tool(self, name):
        """Path of a peer's program: unpacked by scripts/setup --bench, or installed."""
        places = [self.tools_dir] if self.tools_dir else []
        path = os.pathsep.join(places + [os.environ.get("PATH", os.defpath)])
        file = shutil.which(name, path=path)
        if not file:
            raise BenchError(f"{name} is missing; scripts/setup --bench gets it")
        return file

    @staticmethod
    def say(text):
        """Progress, on standard error."""
        print(f"bench: {text}", file=sys.stderr, flush=True)


class Samples(list):
    """What was measured of one side, in the order of the repeats; and `others`, what share of all
    processors' time went to other programs meanwhile (None: the sample was too short to tell)."""

    def __init__(self, values=(), others=()):
        super().__init__(values)
        self.others = list(others)

    def each(self, function):
        """The same samples seen through a function."""
        return Samples([function(value) for value in self], self.others)


def row(bench, case, impl, threads, samples, unit, better, digits=2):
    """One figure, as it stands in the JSON file: the median of Samples, and all that they hold."""
    assert better in ("more", "less")
    values = [round(sample, digits) if digits else round(sample) for sample in samples]
    return {
        "bench": bench,
        "case": case,
        "impl": impl,
        "threads": threads,
        "value": statistics.median(values),
        "unit": unit,
        "better": better,
        "min": min(values),
        "max": max(values),
        "samples": values,
        "others": samples.others,
    }


def figures(text):
    """The "NAME VALUE" lines that a program printed."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        found[name] = float(value)
    return found


def measure(argv, env=None):
    """Run a program that measures once; its figures by name."""
    done = subprocess.run(
        argv,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(
            f"{' '.join(argv)}: exit status {done.returncode}: {done.stderr.strip() or 'no message'}"
        )
    return figures(done.stdout)


def processor_seconds(pids):
    """Time that all programs have spent on processors, and that we have: this process, its children
    that have ended, and the running ones among `pids`. Interrupts do not count: those of a server's
    network connections are ours, but in no process's account."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, _, _, steal = map(int, file.readline().split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    mine = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        mine += usage.ru_utime + usage.ru_stime
    for pid in pids:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        mine += sum(map(int, fields[11:15])) / tick  # with its ended children
    return (user + nice + system + steal) / tick, mine


def take_sample(function, workers):
    """Call the function; its value, and the others' share of the processors meanwhile."""
    start, (busy, mine) = time.monotonic(), processor_seconds(workers())
    value = function()
    seconds, (busy_then, mine_then) = time.monotonic() - start, processor_seconds(workers())
    if seconds < LEAST_SECONDS:
        return value, None
    others = (busy_then - busy) - (mine_then - mine)
    return value, round(max(0.0, others) / (seconds * os.cpu_count()), 3)


def take_turns(context, what, sides, workers=tuple):
    """Measure each side once a repeat, each time beginning with another one (A B C, B C A, ...), so that
    none is always measured after the same other. `sides` maps a name to a function that returns a
    sample; the result maps the name to its Samples. `workers` returns the ids of processes of ours that
    work meanwhile and do not end."""
    samples = {name: Samples() for name in sides}
    names = list(sides)
    for repeat in range(context.repeat):
        context.say(f"{what}: {repeat + 1} of {context.repeat}")
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            value, others = take_sample(sides[name], workers)
            samples[name].append(value)
            samples[name].others.append(others)
            if others is not None and others > DISTURBED:
                context.say(f"{what}: other programs took {others:.0%} during {name}'s sample")
    return samples


class Child:
    """A program in the background that is sure to end: use it in a `with`. `cpu`: the processor that
    it and what it starts run on."""

    def __init__(self, argv, env=None, cpu=None, cwd=None, log=None):
        self.argv = argv
        allowed = os.sched_getaffinity(0)
        if cpu is not None:
            os.sched_setaffinity(0, {sorted(allowed)[cpu]})  # inherited
        try:
            self.start_time = time.monotonic()
            self.process = subprocess.Popen(  # pylint: disable=consider-using-with
                argv,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log or subprocess.PIPE,
                stderr=subprocess.STDOUT if log else None,
                text=True,
            )
        finally:
            os.sched_setaffinity(0, allowed)
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.kill()

    def figure(self, name):
        """Wait for the line "NAME VALUE"."""
        line = self.process.stdout.readline()
        found = figures(line) if line else {}
        if name not in found:
            status = self.process.wait()
            raise BenchError(f"{' '.join(self.argv)}: exit status {status}, no figure '{name}'")
        return found[name]

    def running(self):
        """Has it not ended?"""
        return self.process.poll() is None

    def signal(self, number):
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self):
        """SIGKILL, if it still runs, and wait for its end."""
        if self.running():
            self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def wait(self, seconds):
        """Wait for its end by itself."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{self.argv[0]} did not end in {seconds} s") from error


def wait_until(condition, seconds, what, pause=0.01):
    """Poll until condition() is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise BenchError(f"waited {seconds} s in vain until {what}")
        time.sleep(pause)


def write_rows(path, rows):
    """Write the JSON file, whole or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    os.rename(path + ".new", path)
