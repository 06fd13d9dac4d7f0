"""A comparison for people: tables (title, columns, rows), then what it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bringup.benchmark.figures import Spread
from bringup.comparison.nodes import Nodes
from bringup.comparison.noise import Call
from bringup.comparison.sides import Comparison, Difference, Starts, Timing
from bringup.derive import Table, size

LONG = 44  # characters of a value, of those that are longer the middle is left out
CLAIMS = {Call.SLOWER: "SLOWER", Call.FASTER: "faster", Call.SAME: "", Call.NOT_COMPARED: "not compared"}


def tables(made: Comparison) -> Iterator[Table]:
    """What differs, where there is anything to show."""
    base, other = made.base.name, made.other.name
    if made.facts:
        yield "what differs", ("of", "what", base, other), [(d.area, *_plain(d)) for d in made.facts]
    for starts in made.starts:
        yield _starts(starts, base, other)
    for title, found in (("caches", made.caches), ("probes: status", made.statuses)):
        if found:
            yield title, (title.partition(":")[0], base, other), [_plain(d) for d in found]
    if told := [p for p in made.probes if p.change.call is not Call.SAME]:
        yield "probes: time", ("probe", base, other, "change", ""), [_times(t, 0) for t in told]
    if made.fingerprint:
        yield "log probabilities", ("verdict", "what"), [(made.fingerprint.verdict, made.fingerprint.why)]
    if made.memory:
        sizes: list[tuple[str, ...]] = [
            (f"{m.row}, {m.by}", size(m.base), size(m.other), _percent(m.percent)) for m in made.memory
        ]
        yield "memory that differs", ("memory", base, other, "change"), sizes


def nodes_table(made: Nodes) -> Table:
    """A line for each node; what stands out is marked."""
    rows: list[tuple[str, ...]] = [
        (
            ("* " if row.outlier else "  ") + row.name, row.verdict, row.caches,
            "-" if row.whole is None else f"{row.whole:.2f}", _percent(row.percent),
            "; ".join((*row.worse, *row.unlike)),
        )
        for row in made.rows
    ]  # fmt: skip
    columns = ("node", "verdict", "caches", "first token s", "vs median", "what stands out")
    return f"{len(rows)} nodes, {sum(r.outlier for r in made.rows)} of them unlike the others (*)", columns, rows


def conclusion(made: Comparison | Nodes) -> list[str]:
    """The lines below the tables."""
    lines = [f"worse: {line}" for line in made.regressions]
    lines += [f"not known: {line}" for line in made.doubts]
    if isinstance(made, Comparison):
        lines += [f"note: {line}" for line in made.notes]
    word = {"fail": "a regression", "unknown": "unknown", "pass": f"no regression past {made.threshold:g} %"}
    return [*lines, f"verdict: {word[made.verdict]}"]


def _plain(d: Difference) -> tuple[str, str, str]:
    return d.name, _shortened(d.base), _shortened(d.other)


def _shortened(text: str) -> str:
    return text if len(text) <= LONG else f"{text[: LONG // 2 + 6]}...{text[-8:]}"


def _starts(starts: Starts, base: str, other: str) -> Table:
    a, b = starts.runs
    states = starts.base if starts.base == starts.other else f"{starts.base} beside {starts.other}"
    rows = [_times(starts.whole, 0)]
    rows += [_times(stage, 1 + depth) for depth, stage in _ordered(starts.stages) if _worth(stage)]
    title = f"start, caches {states}: median of {a} and {b} runs (least to most), seconds"
    return title, ("stage", base, other, "change", ""), rows


def _worth(t: Timing) -> bool:
    """A stage that takes no time on either side, and changed nothing, is left out."""
    sides = [s.p50 for s in (t.change.base, t.change.other) if s]
    return t.change.call in (Call.SLOWER, Call.FASTER) or max(sides, default=0.0) >= 0.05


def _ordered(stages: Iterable[Timing]) -> Iterator[tuple[int, Timing]]:
    """Each stage, then what lies inside it, with how deep it lies; every stage once, whatever their parents are."""
    left = {s.id: s for s in stages}

    def below(parent: str, depth: int) -> Iterator[tuple[int, Timing]]:
        for s in [s for s in left.values() if s.parent == parent]:
            if left.pop(s.id, None):
                yield depth, s
                yield from below(s.id, depth + 1)

    outermost = [s for s in left.values() if s.parent not in left]
    for stage in (*outermost, *left.values()):
        if left.pop(stage.id, None):
            yield 0, stage
            yield from below(stage.id, 1)


def _times(t: Timing, depth: int) -> tuple[str, ...]:
    change = t.change
    said = CLAIMS.get(change.call, f"({change.why})")
    return "  " * depth + t.name, _spread(change.base), _spread(change.other), _percent(change.percent), said


def _spread(side: Spread | None) -> str:
    if side is None:
        return "-"
    return f"{side.p50:.2f}" if side.n == 1 else f"{side.p50:.2f} ({side.low:.2f}-{side.high:.2f})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f} %"
