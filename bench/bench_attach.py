# SPDX-License-Identifier: BSD-3-Clause
"""From kill -9 to the first allocation in a new process, against libpmemobj (bench_attach.c)."""

import random
import shutil
import tempfile
import time

import benchlib

NAME = "attach"
SUMMARY = "open a store of a killed process and allocate: against libpmemobj"
# Case: objects, threads that are at work when the kill comes.
PARAMETERS = {
    "attach-1m": (1_000_000, 1),
    "attach-8m": (8_000_000, 1),
    "attach-8m-64lanes": (8_000_000, 64),
}
CASES = tuple(PARAMETERS)


class Side:
    """A store of one side. Between two calls no process has it open."""

    def __init__(self, context, impl, program, env, directory, objects, threads):
        self.env = env
        self.arguments = ["--impl", impl, "--name", "bench-attach", "--dir", directory]
        self.arguments += ["--objects", str(objects), "--threads", str(threads)]
        self.program = context.program("bench", program)
        self.attaches = 0
        # Where in its work a process is killed is random, and the same from run to run.
        self.random = random.Random(objects + threads)
        self.built = False

    def run_and_kill(self, command, figure, *more):
        """Run a process that goes on working after it told its figure, and kill it at that."""
        argv = [self.program, command] + self.arguments + list(more)
        with benchlib.Child(argv, self.env) as child:
            value = child.figure(figure)
            time.sleep(self.random.uniform(0.005, 0.03))
            if not child.running():
                raise benchlib.BenchError(f"{' '.join(argv)} ended before it was killed")
        return value

    def build(self):
        """Make the store."""
        self.run_and_kill("build", "ready")
        self.built = True

    def sample(self):
        """Attach to what the last killed process left; microseconds."""
        value = self.run_and_kill("attach", "us", "--spare", str(self.attaches))
        self.attaches += 1
        return value

    def close(self):
        """Drop the store."""
        if self.built:
            benchlib.measure([self.program, "drop"] + self.arguments, self.env)


def sides(context, directory, objects, threads):
    """Our side first."""
    return {
        "libpreserve": Side(
            context, "libpreserve", "bench-attach-preserve", {}, directory, objects, threads
        ),
        "libpmemobj": Side(
            context, "libpmemobj", "bench-attach-pmemobj", benchlib.PMEMOBJ_ENV, directory,
            objects, threads,
        ),
    }


def run_case(context, case):
    """Rows of one case."""
    objects, threads = PARAMETERS[case]
    objects = context.size(objects, objects // 100)
    directory = tempfile.mkdtemp(prefix="bench-attach-", dir="/dev/shm")
    both = sides(context, directory, objects, threads)
    try:
        context.say(f"{case}: making {objects} objects")
        for side in both.values():
            side.build()
        # An attach that costs microseconds can be repeated more often.
        often = benchlib.Context(context.build_dir, context.quick, context.repeat * 3)
        samples = benchlib.take_turns(
            often, case, {impl: side.sample for impl, side in both.items()}
        )
    finally:
        for side in both.values():
            side.close()
        shutil.rmtree(directory, ignore_errors=True)
    return [
        benchlib.row(NAME, case, impl, threads, taken, "us", "less")
        for impl, taken in samples.items()
    ]


def run(context):
    """All cases."""
    return [entry for case in CASES for entry in run_case(context, case)]
