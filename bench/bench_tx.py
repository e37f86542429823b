# SPDX-License-Identifier: BSD-3-Clause
"""Transactions that change 64 bytes, against libpmemobj (bench_tx.c)."""

import operator

import benchlib

NAME = "tx"
SUMMARY = "change 64 bytes in a transaction: against libpmemobj"
CASES = ("tx-64", "tx-64-ns")
THREADS = (1, 2)


def sides(context):
    """Name of each side to the program and environment that measure it."""
    return {
        "libpreserve": (context.program("bench", "bench-tx-preserve"), {}),
        "libpmemobj": (context.program("bench", "bench-tx-pmemobj"), benchlib.PMEMOBJ_ENV),
    }


def run(context):
    """tx-64: the rate of all threads together; tx-64-ns: what one thread takes, in the same samples."""
    rows = []
    seconds = context.size(1.0, 0.1)
    for threads in THREADS:
        arguments = ["--threads", str(threads), "--seconds", str(seconds), "--live", "100000"]

        def sampler(impl, program, env, arguments=tuple(arguments)):
            argv = [program, "tx-64", "--impl", impl, *arguments]
            return lambda: benchlib.measure(argv, env)

        samples = benchlib.take_turns(
            context,
            f"tx-64, threads {threads}",
            {
                impl: sampler(impl, program, env)
                for impl, (program, env) in sides(context).items()
            },
        )
        for case, figure, unit, better in (
            ("tx-64", "mops", "Mops/s", "more"),
            ("tx-64-ns", "ns", "ns", "less"),
        ):
            for impl, taken in samples.items():
                part = taken.each(operator.itemgetter(figure))
                rows.append(benchlib.row(NAME, case, impl, threads, part, unit, better, 4))
    return rows
