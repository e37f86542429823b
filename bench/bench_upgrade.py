# SPDX-License-Identifier: BSD-3-Clause
"""Giving all objects of a store another layout, against copying their bytes (bench_upgrade.c)."""

import benchlib

NAME = "upgrade"
SUMMARY = "upgrade 8 million objects of 64 bytes to 80: against memcpy of the same bytes"
# Case: the time that it is about.
TIMES = {"upgrade-8m": "upgrade_ns", "plan-8m": "plan_ns"}
CASES = tuple(TIMES)


def run(context):
    """Each run of the program measures all: bytes of old objects a second."""
    objects = context.size(8_000_000, 250_000)
    argv = [context.program("bench", "bench-upgrade"), "--objects", str(objects)]
    sides = {"both": lambda: benchlib.measure(argv)}
    samples = benchlib.take_turns(context, f"upgrade, {objects} objects", sides)["both"]
    return [
        benchlib.row(
            NAME, case, impl, 1, samples.each(lambda f, t=t: f["bytes"] / f[t]), "GB/s", "more", 3
        )
        for case, ours in TIMES.items()
        for impl, t in (("libpreserve", ours), ("memcpy", "copy_ns"))
    ]
