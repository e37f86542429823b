# SPDX-License-Identifier: BSD-3-Clause
"""A full check (bench_check.c), and visiting all objects, against libpmemobj (bench_iterate.c)."""

import operator

import benchlib

NAME = "check"
SUMMARY = "full check of 8 million objects; visiting as many, against libpmemobj"
CASES = ("full-8m", "iterate-8m")
OBJECTS = 8_000_000
THREADS = (1, 2)


def sampler(argv, env):
    """What measures once."""
    return lambda: benchlib.measure(argv, env)


def row(case, impl, threads, taken, figure="ms"):
    """One figure of the samples that a program took."""
    samples = taken.each(operator.itemgetter(figure))
    return benchlib.row(NAME, case, impl, threads, samples, "ms", "less")


def full(context, objects):
    """The check, and a plain walk over the same nodes by the same process."""
    rows = []
    for threads in THREADS:
        argv = [context.program("bench", "bench-check"), "--objects", objects]
        argv += ["--threads", str(threads)]
        sides = {"libpreserve": sampler(argv, {})}
        taken = benchlib.take_turns(context, f"full-8m, threads {threads}", sides)["libpreserve"]
        rows.append(row("full-8m", "libpreserve", threads, taken))
        rows.append(row("full-8m", "walk", threads, taken, "walk_ms"))
    return rows


def iterate(context, objects):
    """All objects of a type, and the peer's."""
    sides = {}
    for impl, program, env in (
        ("libpreserve", "bench-iterate-preserve", {}),
        ("libpmemobj", "bench-iterate-pmemobj", benchlib.PMEMOBJ_ENV),
    ):
        argv = [context.program("bench", program), "--impl", impl, "--objects", objects]
        sides[impl] = sampler(argv, env)
    samples = benchlib.take_turns(context, "iterate-8m", sides)
    return [row("iterate-8m", impl, 1, taken) for impl, taken in samples.items()]


def run(context):
    """All cases."""
    objects = str(context.size(OBJECTS, OBJECTS // 40))
    return full(context, objects) + iterate(context, objects)
