#!/usr/bin/env python3
"""Markdown of a directory of start.py's results: totals and ratios, stages, decode rates, memory.

usage: summary.py DIR [--plain ARM] [--bare OUT.json]

p50 is the median of all runs of that arm and state; the ratio is ours by plain, of the medians, in the same state.
--bare writes the figures without samples and logs, small enough to keep in a repository.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import bringup.timeline as starts

BARE = ("arm", "ours", "state", "to_200_s", "to_first_token_s", "second_request_s", "exit_s", "released_s", "failed")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table; every column but the first is right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def load(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All runs, in the order of their starts."""
    found = [(p, json.loads(p.read_text("utf-8"))) for p in directory.glob("*.json")]
    runs = [(p, r) for p, r in found if isinstance(r, dict) and "asked" in r and "arm" in r]
    return sorted(runs, key=lambda run: run[1]["asked"])


def totals(runs: list[dict[str, Any]], plain: str) -> str:
    """Spawn to first token: all values, the median, and its ratio to plain's in the same state."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    lost: dict[tuple[str, str], int] = defaultdict(int)
    for r in runs:
        key = (r["state"], r["arm"])
        if "failed" in r:
            lost[key] += 1
        else:
            groups[key].append(r["to_first_token_s"])
    rows = []
    for state, arm in sorted({*groups, *lost}, key=lambda key: (key[0], key[1] != plain, key[1])):
        values, base = groups[state, arm], groups.get((state, plain))
        ratio = f"{median(values) / median(base):.2f}" if values and base and arm != plain else ""
        shown = " ".join(f"{v:.1f}" for v in values)
        p50 = f"{median(values):.1f}" if values else ""
        rows.append([f"{state}, {arm}", str(len(values)), p50, ratio, shown, str(lost[state, arm] or "")])
    return table(["state, arm", "n", "p50 s", "ratio", "all values", "failed"], rows)


def timeline(path: Path, run: dict[str, Any]) -> starts.Timeline:
    """Where the time of one start went, by its log records and the clock outside."""
    text = path.with_suffix(".jsonl").read_text("utf-8", errors="replace")
    clock = starts.Anchors(run["asked"], run["asked"], run["first_200"], run["first_token"])
    return starts.build(starts.read_events(text), clock)


def stages(runs: list[tuple[Path, dict[str, Any]]]) -> str:
    """Median seconds of each stage of the path, an arm and state a column; the gaps; the share that has a name."""
    columns: dict[tuple[str, str], list[starts.Timeline]] = defaultdict(list)
    for path, run in runs:
        if "failed" not in run and path.with_suffix(".jsonl").exists():
            columns[run["state"], run["arm"]].append(timeline(path, run))
    names = list(dict.fromkeys(s.name for made in columns.values() for t in made for s in t.stages if s.path))
    names.sort(key=lambda n: min(_begin(t, n) for made in columns.values() for t in made))
    rows = []
    for name in names:
        cells = [[sum(s.seconds or 0.0 for s in t.stages if s.path and s.name == name) for t in made]
                 for made in columns.values()]  # fmt: skip
        rows.append([name, *(f"{median(c):.2f}" if any(c) else "" for c in cells)])
    whole = [[t.whole or 0.0 for t in made] for made in columns.values()]
    gaps = [[sum(g.end - g.begin for g in t.gaps) for t in made] for made in columns.values()]
    least = [min(t.coverage or 0.0 for t in made) for made in columns.values()]
    rows += [["gaps", *(f"{median(g):.2f}" for g in gaps)], ["**whole**", *(f"{median(w):.2f}" for w in whole)]]
    rows += [["least share with a name", *(f"{c:.1%}" for c in least)]]
    return table(["stage", *(f"{state}, {arm} (n={len(made)})" for (state, arm), made in columns.items())], rows)


def _begin(made: starts.Timeline, name: str) -> float:
    """Seconds into the start at which a stage of the path began; one that was not observed comes last."""
    found = [s.begin for s in made.stages if s.path and s.name == name and s.begin is not None]
    return found[0] - (made.begin or 0.0) if found else float("inf")


def rates(runs: list[dict[str, Any]], plain: str) -> str:
    """Decode rates: the median over the medians of each start, and its ratio to plain's."""
    groups: dict[tuple[int, str], list[float]] = defaultdict(list)
    for r in runs:
        for d in r.get("decode", []):
            groups[d["streams"], r["arm"]].append(d["tok_s_median"])
    rows = []
    for (streams, arm), values in sorted(groups.items(), key=lambda g: (g[0][0], g[0][1] != plain)):
        base = groups.get((streams, plain))
        ratio = f"{median(values) / median(base):.3f}" if base else ""
        rows.append([f"{arm}, {streams} streams", f"{median(values):.0f}", ratio, " ".join(f"{v:.0f}" for v in values)])
    return table(["profile", "tok/s", "ratio", "all starts"], rows)


def peak(run: dict[str, Any]) -> str:
    """Most GPU memory in use by anybody, over what was in use before, in GiB."""
    used = [sample[1] for sample in run["memory"]]
    return f"{(max(used) - run['gpu_before']) / 2**30:.2f}" if used else ""


def bare(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The figures alone."""
    kept = []
    for r in runs:
        slim = {k: r[k] for k in BARE if k in r} | {"peak_gib": peak(r)}
        slim["decode"] = [{k: d[k] for k in ("streams", "tokens_each", "tok_s_median")} for d in r.get("decode", [])]
        kept.append(slim)
    return kept


def memory(runs: list[dict[str, Any]]) -> str:
    """GPU memory: most in use above what was in use before, and seconds until it was all back."""
    rows = [[f"{r['arm']}, {r['state']}", peak(r), f"{r['released_s']:.1f}"] for r in runs if "failed" not in r]
    return table(["start", "peak GiB", "released after s"], rows)


def answers(runs: list[dict[str, Any]]) -> str:
    """Whether all greedy answers to the same prompt are one text."""
    said: dict[str, list[str]] = defaultdict(list)
    for r in runs:
        if "answer" in r:
            said[r["answer"]].append(r["arm"])
    if len(said) < 2:
        return f"The first answers of all {sum(map(len, said.values()))} starts are the same text.\n"
    parts = [f"{len(names)} starts of {', '.join(sorted(set(names)))}" for names in said.values()]
    return f"The first answers are {len(said)} texts: {'; '.join(parts)}.\n"


def main() -> None:
    """Print the report; write the bare figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--plain", default="plain", help="the arm that the others are compared with")
    parser.add_argument("--bare", type=Path)
    given = parser.parse_args()
    loaded = load(given.directory)
    runs = [r for _, r in loaded]
    if not runs:
        parser.error(f"{given.directory} holds no results of start.py")
    print("## Process spawn to first streamed token\n\n" + totals(runs, given.plain))
    print("## Stages, median seconds\n\n" + stages(loaded))
    if any(r.get("decode") for r in runs):
        print("## Decode, tokens a second\n\n" + rates(runs, given.plain))
    if any(r["memory"] for r in runs):
        print("## GPU memory\n\n" + memory(runs))
    print("## Answers\n\n" + answers(runs))
    if given.bare:
        given.bare.write_text(json.dumps(bare(runs), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
