# SPDX-License-Identifier: BSD-3-Clause
"""Memory taken by objects, and left by the workloads of bench_alloc.c when they end."""

import benchlib
from bench_alloc import sampler, sides

NAME = "memory"
SUMMARY = "bytes used per byte asked for, and bytes in use when the alloc workloads end"
WORKLOADS = ("threadtest", "larson", "prodcon", "shbench")
CASES = ("overhead-64",) + tuple(f"end-{workload}" for workload in WORKLOADS)
THREADS = (1, 2)


def overhead(context):
    """Everything that the process took more than before it made the objects, table of slots excluded,
    for each byte asked for."""
    live = context.size(8_000_000, 100_000)
    medians = benchlib.take_turns(
        context,
        f"overhead-64, {live} objects",
        {
            impl: sampler(impl, program, env, "overhead-64", ["--live", live], ["bytes", "asked"])
            for impl, (program, env) in sides(context).items()
        },
    )
    return [
        benchlib.row(NAME, "overhead-64", impl, 1, round(used / asked, 4), "bytes/byte", "less")
        for impl, (used, asked) in medians.items()
    ]


def run(context):
    """Overhead, then the memory in use when each workload is done, before its threads end."""
    rows = overhead(context)
    for workload in WORKLOADS:
        for threads in THREADS:
            arguments = ["--threads", threads, "--seconds", context.size(1.0, 0.1)]
            medians = benchlib.take_turns(
                context,
                f"end-{workload}, threads {threads}",
                {
                    impl: sampler(impl, program, env, workload, arguments, ["bytes"])
                    for impl, (program, env) in sides(context).items()
                },
            )
            rows += [
                benchlib.row(NAME, f"end-{workload}", impl, threads, int(used), "bytes", "less")
                for impl, (used,) in medians.items()
            ]
    return rows
