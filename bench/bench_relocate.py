# SPDX-License-Identifier: BSD-3-Clause
"""Attaching a store at another base, against copying the same bytes (bench_relocate.c)."""

import benchlib

NAME = "relocate"
SUMMARY = "attach a store at another base, moving its pointers: against memcpy of the same bytes"
GIB = 2**30
NODE_BYTES = 64
VALUE_BYTES = 1024
CASES = ("nodes-1g", "values-1g-nodes-64m", "attach-relocate-1g")


def speed(figures, time):
    """GB of slabs with pointers a second."""
    return figures["bytes"] / figures[time]


def milliseconds(figures, time):
    """As it says."""
    return figures[time] / 1e6


def measure(context, what, node_bytes, value_bytes, threads):
    """Samples of all that the program tells; each run measures both sides, one after the other."""
    arguments = ["--nodes", context.size(node_bytes, node_bytes // 32) // NODE_BYTES]
    arguments += ["--values", context.size(value_bytes, value_bytes // 32) // VALUE_BYTES]
    arguments += ["--threads", threads]
    argv = [context.program("bench", "bench-relocate")] + [str(a) for a in arguments]
    sides = {"both": lambda: benchlib.measure(argv)}
    return benchlib.take_turns(context, f"{what}, threads {threads}", sides)["both"]


def rows(case, threads, samples, figure, ours, unit, better):
    """Ours and memcpy's row of one case."""
    return [
        benchlib.row(NAME, case, impl, threads, samples.each(lambda f, t=t: figure(f, t)), unit,
                     better, 3)
        for impl, t in (("libpreserve", ours), ("memcpy", "copy_ns"))
    ]


def run(context):
    """All cases. The whole attach is of the same runs as the pass with as many threads as processors."""
    found = []
    for threads in (1, 2):
        nodes = measure(context, "nodes-1g", GIB, 0, threads)
        found += rows("nodes-1g", threads, nodes, speed, "pass_ns", "GB/s", "more")
        if threads == 2:
            found += rows("attach-relocate-1g", threads, nodes, milliseconds, "attach_ns", "ms",
                          "less")
    for threads in (1, 2):
        mixed = measure(context, "values-1g-nodes-64m", GIB // 16, GIB, threads)
        found += rows("values-1g-nodes-64m", threads, mixed, speed, "pass_ns", "GB/s", "more")
    return found
