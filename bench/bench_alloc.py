# SPDX-License-Identifier: BSD-3-Clause
"""Allocating and freeing against malloc libraries and libpmemobj: rates, and memory (bench_alloc.c)."""

import benchlib

NAME = "alloc"
SUMMARY = "allocate, publish and free: against jemalloc, mimalloc, glibc and libpmemobj"
CASES = ("replace-64", "replace-16-1024", "threadtest", "larson", "prodcon", "shbench")
THREADS = (1, 2)

PRELOAD = {"jemalloc": "libjemalloc.so.2", "mimalloc": "libmimalloc.so.2", "glibc": ""}


def sides(context):
    """Name of each side to the program and environment that measure it. The malloc program checks
    that the allocator which it runs on is the one that it is called after."""
    found = {"libpreserve": (context.program("bench", "bench-alloc-preserve"), {})}
    for impl, library in PRELOAD.items():
        found[impl] = (context.program("bench", "bench-alloc-malloc"), {"LD_PRELOAD": library})
    found["libpmemobj"] = (context.program("bench", "bench-alloc-pmemobj"), benchlib.PMEMOBJ_ENV)
    return found


def sampler(impl, program, env, workload, arguments, figure):
    """A function that runs a workload once and returns figure(what the program told)."""
    argv = [program, workload, "--impl", impl] + [str(a) for a in arguments]
    return lambda: figure(benchlib.measure(argv, env))


def run(context):
    """Rates, in million operations a second."""
    rows = []
    seconds = context.size(1.0, 0.1)
    for case in CASES:
        for threads in THREADS:
            arguments = ["--threads", threads, "--seconds", seconds, "--live", 100000]
            samples = benchlib.take_turns(
                context,
                f"{case}, threads {threads}",
                {
                    impl: sampler(impl, program, env, case, arguments, lambda got: got["mops"])
                    for impl, (program, env) in sides(context).items()
                },
            )
            rows += [
                benchlib.row(NAME, case, impl, threads, taken, "Mops/s", "more", 4)
                for impl, taken in samples.items()
            ]
    return rows
