# SPDX-License-Identifier: BSD-3-Clause
"""Tables of results: every figure beside its peers, and what became of the targets of targets.json."""

import json
import os
import time

from benchlib import DISTURBED, BenchError

OURS = ("libpreserve", "kvstore")
TARGETS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "targets.json")
# A figure whose samples lie further apart than this share of it is marked.
WIDE = 0.10


def short(value):
    """A number with three or more significant digits."""
    if value >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}" if value >= 1 else f"{value:.3g}"


def spread(entry):
    """How far the samples of a figure lie apart, as a share of it."""
    return (entry["max"] - entry["min"]) / entry["value"] if entry["value"] else 0.0


def disturbed(entry):
    """Did other programs run during some of its samples?"""
    return any(share is not None and share > DISTURBED for share in entry["others"])


def figure(entry):
    """A figure as it stands in a table, with its marks."""
    marks = ("~" if spread(entry) > WIDE else "") + ("!" if disturbed(entry) else "")
    return short(entry["value"]) + marks


def times_better(ours, peer):
    """How many times better ours is; below 1 the peer is better."""
    good, bad = (ours, peer) if ours["better"] == "more" else (peer, ours)
    return good["value"] / bad["value"] if bad["value"] else float("inf")


def grouped(name, rows):
    """(case, threads, our row, the peers' rows) for each case and number of threads."""
    groups = {}
    for entry in rows:
        groups.setdefault((entry["case"], entry["threads"]), []).append(entry)
    for (case, threads), entries in groups.items():
        ours = [e for e in entries if e["impl"] in OURS]
        if len(ours) != 1 or len(entries) < 2:
            raise BenchError(f"{name}: {case}: {len(ours)} rows of ours among {len(entries)}")
        yield case, threads, ours[0], [e for e in entries if e is not ours[0]]


def columns(lines, right=()):
    """Lines of cells as text, the columns below each other."""
    widths = [max((len(line[i]) for line in lines if i < len(line)), default=0)
              for i in range(max(len(line) for line in lines))]
    return "\n".join(
        "  ".join(
            cell.rjust(widths[i]) if i in right and number else cell.ljust(widths[i])
            for i, cell in enumerate(line)
        ).rstrip()
        for number, line in enumerate(lines)
    )


def table(name, rows):
    """The results of one benchmark: a line for each case and number of threads."""
    lines = [["case", "threads", "unit", "better", "ours", "peers (times better than the peer)"]]
    marked = []
    for case, threads, ours, peers in grouped(name, rows):
        lines.append(
            [case, str(threads), ours["unit"], ours["better"], figure(ours)]
            + [f"{p['impl']} {figure(p)} ({short(times_better(ours, p))})" for p in peers]
        )
        marked += [e for e in [ours] + peers if spread(e) > WIDE or disturbed(e)]
    text = f"\n{name}\n{columns(lines, right=(1, 4))}"
    if marked:
        text += (
            f"\n~ samples further apart than {WIDE:.0%} of the figure; ! other programs took more than"
            f" {DISTURBED:.0%} of the\nprocessors. All samples of these, and the others' share:"
        )
        for e in marked:
            text += f"\n  {e['case']}, threads {e['threads']}, {e['impl']}: "
            text += " ".join(short(sample) for sample in e["samples"])
            if disturbed(e):
                shares = ("?" if share is None else f"{share:.0%}" for share in e["others"])
                text += f" (others {' '.join(shares)})"
    return text


def as_data(results):
    """All rows of a run, ours with the ratio to each peer, for --json."""
    found = []
    for name, rows in results.items():
        for _, _, ours, peers in grouped(name, rows):
            ratios = {p["impl"]: round(times_better(ours, p), 4) for p in peers}
            found += [{**ours, "times_better": ratios}] + peers
    return found


# ---- targets


def read_results(folder, names):
    """Benchmark to (rows, time of the run), of those that have been run."""
    found = {}
    for name in names:
        path = os.path.join(folder, name + ".json")
        if os.path.exists(path):
            with open(path, encoding="ascii") as file:
                found[name] = json.load(file), os.path.getmtime(path)
    return found


def one_row(rows, case, impl, threads):
    """The row of a side, or None; impl None: ours."""
    for e in rows:
        side = e["impl"] in OURS if impl is None else e["impl"] == impl
        if e["case"] == case and side and e["threads"] == threads:
            return e
    return None


def compared(target, rows, threads):
    """(value, lowest, highest, disturbed) of what a target is about, or None if it was not measured. A
    ratio's range is that of the repeats, in each of which the sides were measured one after the other."""
    ours = one_row(rows, target["case"], None, threads)
    if not ours:
        return None
    if "times" not in target:
        return ours["value"], ours["min"], ours["max"], disturbed(ours)
    if target["times"] in {e["case"] for e in rows}:
        other = one_row(rows, target["times"], None, threads)
    else:
        other = one_row(rows, target["case"], target["times"], threads)
    if not other or not other["value"]:
        return None
    pairs = [a / b for a, b in zip(ours["samples"], other["samples"]) if b]
    value = ours["value"] / other["value"]
    return value, min(pairs), max(pairs), disturbed(ours) or disturbed(other)


def verdict(target, value):
    """Was it reached?"""
    if "at_least" in target:
        return value >= target["at_least"]
    return value <= target["at_most"]


def read_targets(cases):
    """The targets. One of a case that no benchmark has would never be measured: an error."""
    with open(TARGETS, encoding="ascii") as file:
        wanted = json.load(file)
    for target in wanted:
        if target["case"] not in cases.get(target["bench"], ()):
            raise BenchError(f"{TARGETS}: {target['bench']} has no case {target['case']}")
        if ("at_least" in target) == ("at_most" in target):
            raise BenchError(f"{TARGETS}: {target['case']}: at_least or at_most?")
    return wanted


def targets(results, cases):
    """A line for each target and number of threads: what is wanted, what the last run had. `cases`: those
    of each benchmark, by name."""
    wanted = read_targets(cases)
    lines = [["benchmark", "target", "threads", "wanted", "last run", "lowest", "highest", ""]]
    tally = {"met": 0, "missed": 0, "not measured": 0}
    for target in wanted:
        rows = results[target["bench"]][0] if target["bench"] in results else []
        sign, limit = (">=", "at_least") if "at_least" in target else ("<=", "at_most")
        for threads in target["threads"]:
            got = compared(target, rows, threads)
            line = [target["bench"], target["text"], str(threads), f"{sign} {short(target[limit])}"]
            state = "not measured"
            if got:
                state = "met" if verdict(target, got[0]) else "missed"
                line += [short(part) for part in got[:3]]
                line += [state + (", disturbed" if got[3] else "")]
            else:
                line += ["-", "-", "-", state]
            tally[state] += 1
            lines.append(line)
    ages = ", ".join(
        f"{name} {time.strftime('%Y-%m-%d %H:%M', time.localtime(when))}"
        for name, (_, when) in results.items()
    )
    return (
        columns(lines, right=(2, 4, 5, 6))
        + "\n\n" + ", ".join(f"{count} {state}" for state, count in tally.items())
        + f"\nruns: {ages}"
    )
