#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs benchmarks of a build, writes NAME.json for each and prints tables. scripts/bench calls it."""

import argparse
import json
import os
import platform
import re
import sys

sys.dont_write_bytecode = True

# pylint: disable=wrong-import-position
import bench_alloc
import bench_attach
import bench_check
import bench_handover
import bench_kv
import bench_memory
import bench_relocate
import bench_tx
import bench_upgrade
import benchlib
import report

BENCHMARKS = {m.NAME: m for m in (bench_attach, bench_kv, bench_alloc, bench_tx, bench_memory,
                                  bench_relocate, bench_upgrade, bench_check, bench_handover)}


def describe():
    """The list of benchmarks and cases."""
    return "\n".join(
        f"{name:9}{module.SUMMARY}\n{'':9}cases: {' '.join(module.CASES)}"
        for name, module in BENCHMARKS.items()
    )


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=describe(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and end")
    parser.add_argument("--build-dir", help="an optimised build with -Dbench=true")
    parser.add_argument("--out", help="folder of the JSON files")
    parser.add_argument("--tools-dir", help="folder of unpacked programs of peers")
    parser.add_argument("--quick", action="store_true", help="small sizes: only shows that it works")
    parser.add_argument("--repeat", type=int, help="samples of each figure (default 5; quick: 1)")
    parser.add_argument("--json", action="store_true", help="print rows instead of tables")
    parser.add_argument("--targets", action="store_true", help="run nothing: judge the last run")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]}; there are: {' '.join(BENCHMARKS)}")
    if args.repeat is not None and args.repeat < 1:
        parser.error("--repeat must be at least 1")
    if not args.list and not (args.out and (args.build_dir or args.targets)):
        parser.error("--build-dir and --out are needed")
    return args


def chosen(name):
    """The setting of the kernel's huge pages that a file has in brackets."""
    try:
        with open(f"/sys/kernel/mm/transparent_hugepage/{name}", encoding="ascii") as file:
            return re.search(r"\[(\w+)\]", file.read())[1]
    except FileNotFoundError:
        return "never"


def look_at_machine(say):
    """Say what the figures will be worth."""
    processors = len(os.sched_getaffinity(0))
    if processors < 2:
        raise benchlib.BenchError("two processors are needed: one for a server, one for its client")
    say(f"{platform.machine()}, {processors} processors, Linux {platform.release()}")
    private, shared = chosen("enabled"), chosen("shmem_enabled")
    say(f"huge pages: private memory {private}, shared memory {shared}")
    if private == "always" and shared not in ("always", "force"):
        say("warning: the peers of alloc get huge pages by themselves, shared memory does not")
    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"warning: load average {load:.2f}: other programs run; take the figures with care")


def judge(folder):
    """Say which targets the results in the folder reach; 1 if there are no results."""
    results = report.read_results(folder, BENCHMARKS)
    if not results:
        print(f"bench: error: no results in {folder}; run scripts/bench first", file=sys.stderr)
        return 1
    cases = {name: module.CASES for name, module in BENCHMARKS.items()}
    try:
        print(report.targets(results, cases))
    except benchlib.BenchError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    return 0


def run_all(context, names, folder):
    """Run benchmarks and write their files: the rows of each by name, and the names of the failed."""
    results, failed = {}, []
    for name in names:
        path = os.path.join(folder, name + ".json")
        if os.path.exists(path):
            os.unlink(path)  # an old file must not pass for this run's
        try:
            rows = BENCHMARKS[name].run(context)
            benchlib.write_rows(path, rows)
            results[name] = rows
            context.say(f"{name}: {path}")
        except benchlib.BenchError as error:
            print(f"bench: error: {name}: {error}", file=sys.stderr)
            failed.append(name)
    return results, failed


def main():
    """Run what was asked for; 1 if a benchmark could not measure."""
    args = parse()
    if args.list:
        print(describe())
        return 0
    folder = os.path.abspath(args.out)
    if args.targets:
        return judge(folder)
    repeat = args.repeat or (1 if args.quick else 5)
    context = benchlib.Context(os.path.abspath(args.build_dir), args.quick, repeat, args.tools_dir)
    try:
        look_at_machine(context.say)
    except benchlib.BenchError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    results, failed = run_all(context, args.names or list(BENCHMARKS), folder)
    if args.json:
        print(json.dumps(report.as_data(results), indent=1))
    else:
        for name, rows in results.items():
            print(report.table(name, rows))
    sys.stdout.flush()
    if args.quick:
        context.say("a quick run: the figures say only that everything works")
    if failed:
        print(f"bench: error: not measured: {' '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
