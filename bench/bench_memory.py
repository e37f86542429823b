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
    """Everything that the process has, table of slots excluded, for each byte asked for. 64 is a slot
    size of ours and of most peers, so no rounding is in it; a header counts."""
    live = context.size(8_000_000, 100_000)
    samples = benchlib.take_turns(
        context,
        f"overhead-64, {live} objects",
        {
            impl: sampler(
                impl, program, env, "overhead-64", ["--live", live],
                lambda got: got["bytes"] / got["asked"],
            )
            for impl, (program, env) in sides(context).items()
        },
    )
    return [
        benchlib.row(NAME, "overhead-64", impl, 1, taken, "bytes/byte", "less", 4)
        for impl, taken in samples.items()
    ]


def run(context):
    """Overhead, then the memory in use when each workload is done, before its threads end."""
    rows = overhead(context)
    for workload in WORKLOADS:
        for threads in THREADS:
            arguments = ["--threads", threads, "--seconds", context.size(1.0, 0.1)]
            samples = benchlib.take_turns(
                context,
                f"end-{workload}, threads {threads}",
                {
                    impl: sampler(
                        impl, program, env, workload, arguments, lambda got: got["bytes"] / 2**20
                    )
                    for impl, (program, env) in sides(context).items()
                },
            )
            rows += [
                benchlib.row(NAME, f"end-{workload}", impl, threads, taken, "MiB", "less", 3)
                for impl, taken in samples.items()
            ]
    return rows
