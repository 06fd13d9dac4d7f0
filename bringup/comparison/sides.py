"""Two sides of one or more runs each: what they were made of, what took longer, what passed before and does not now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bringup import fingerprint
from bringup.comparison.noise import ENOUGH, MANY, ONE, Call, Change, judge
from bringup.comparison.runs import Run, Stage
from bringup.errors import Exit
from bringup.records import Status, Verdict

THRESHOLD = 10.0  # percent
SHARE = 0.01  # of the whole start; a stage that changed by less matters to nobody
LEAST = 0.1  # seconds, where the whole is not known, and for a probe
ABSENT = "-"


@dataclass(frozen=True)
class Side:
    """Runs of the same thing. `name`: how the user named it."""

    name: str
    runs: tuple[Run, ...]

    def of_state(self, state: str) -> Side:
        """The runs whose caches were like that."""
        return Side(self.name, tuple(r for r in self.runs if r.state == state))

    @property
    def state(self) -> str:
        """That of most of its runs."""
        return self.states.most_common(1)[0][0]

    @property
    def states(self) -> Counter[str]:
        """How many runs there are of each state of the caches."""
        return Counter(r.state for r in self.runs)


@dataclass(frozen=True)
class Difference:
    """Something that is not the same on both sides, in words; several values of a side with how many runs have each."""

    area: str
    name: str
    base: str
    other: str


@dataclass(frozen=True)
class Timing:
    """One time beside the other: a stage (`parent`: the one it is part of), a probe, or the whole start (id empty)."""

    id: str
    name: str
    parent: str | None
    change: Change

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {"id": self.id, "name": self.name, "parent": self.parent} | self.change.to_dict()


@dataclass(frozen=True)
class Starts:
    """Starts beside each other. `base`, `other`: the state of their caches, and how many runs."""

    base: str
    other: str
    runs: tuple[int, int]
    whole: Timing
    stages: tuple[Timing, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "caches": {"base": self.base, "other": self.other},
            "runs": {"base": self.runs[0], "other": self.runs[1]},
            "whole": self.whole.to_dict(),
            "stages": [s.to_dict() for s in self.stages],
        }


@dataclass(frozen=True)
class Memory:
    """One row of the memory ledger, by who says it: medians in bytes."""

    row: str
    by: str
    base: int | None
    other: int | None
    percent: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All of it. `regressions`: what became worse; `doubts`: why that cannot be said; `notes`: what else to know.
    `fingerprint`: the pair of runs that is least alike, None where a side has none."""

    base: Side
    other: Side
    threshold: float
    facts: tuple[Difference, ...]
    starts: tuple[Starts, ...]
    caches: tuple[Difference, ...]
    memory: tuple[Memory, ...]
    statuses: tuple[Difference, ...]
    probes: tuple[Timing, ...]
    fingerprint: fingerprint.Comparison | None
    regressions: tuple[str, ...]
    doubts: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """A regression beats a doubt."""
        return verdict_of(self.regressions, self.doubts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        sides = {
            name: {"name": side.name, "runs": [r.name for r in side.runs], "caches": dict(side.states)}
            for name, side in (("base", self.base), ("other", self.other))
        }
        return {
            "verdict": self.verdict,
            "threshold_percent": self.threshold,
            **sides,
            "regressions": list(self.regressions),
            "doubts": list(self.doubts),
            "notes": list(self.notes),
            "differences": [asdict(d) for d in self.facts],
            "starts": [s.to_dict() for s in self.starts],
            "caches": [asdict(d) for d in self.caches],
            "memory": [asdict(m) for m in self.memory],
            "statuses": [asdict(d) for d in self.statuses],
            "probes": [p.to_dict() for p in self.probes],
            "fingerprint": asdict(self.fingerprint) if self.fingerprint else None,
        }


def verdict_of(regressions: Sequence[str], doubts: Sequence[str]) -> Verdict:
    """Fail: something became worse. Unknown: nobody can say."""
    if regressions:
        return Verdict.FAIL
    return Verdict.UNKNOWN if doubts else Verdict.PASS


def exit_for(verdict: Verdict) -> Exit:
    """The exit code of a comparison."""
    return {Verdict.PASS: Exit.PASS, Verdict.FAIL: Exit.REGRESSION, Verdict.UNKNOWN: Exit.UNKNOWN}[verdict]


def compare(base: Side, other: Side, threshold: float = THRESHOLD) -> Comparison:
    """The second side held against the first; `threshold` in percent."""
    facts = tuple(differences(base, other, lambda r: r.facts))
    starts, doubts, notes = _starts(base, other, threshold)
    regressions = [line for s in starts for line in _slower(s)]
    doubts += [line for s in starts for line in _unproven(s)]
    statuses, worse, unasked = _statuses(base, other)
    prints = least_alike(base, other)
    if prints and prints.verdict == "differs" and not any(d.area == "weights" and "lock" not in d.name for d in facts):
        doubts.append(f"log probabilities of the same weights differ: {prints.why}")
    for side in (base, other):
        doubts += [f"{r.name} disagrees with its sums: {', '.join(r.faults)}" for r in side.runs if r.faults]
    return Comparison(
        base=base,
        other=other,
        threshold=threshold,
        facts=facts,
        starts=tuple(starts),
        caches=tuple(differences(base, other, lambda r: {("caches", name): v for name, v in r.caches.items()})),
        memory=tuple(_memory(base, other)),
        statuses=tuple(statuses),
        probes=tuple(_probe_times(base, other, threshold)),
        fingerprint=prints,
        regressions=(*worse, *regressions),
        doubts=(*unasked, *doubts),
        notes=tuple(notes),
    )


def differences(
    base: Side, other: Side, of: Callable[[Run], dict[tuple[str, str], str]]
) -> Iterable[Difference]:  # fmt: skip
    """What the two sides do not have alike, in the order in which it is found."""
    for area, name in dict.fromkeys(key for side in (base, other) for r in side.runs for key in of(r)):
        texts = [_said([of(r).get((area, name), ABSENT) for r in side.runs]) for side in (base, other)]
        if texts[0] != texts[1]:
            yield Difference(area, name, *texts)


def _said(values: Sequence[str]) -> str:
    """One value, or each with its count."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({n} of {len(values)})" for value, n in counts.most_common())


def _starts(base: Side, other: Side, threshold: float) -> tuple[list[Starts], list[str], list[str]]:
    """Like beside like: starts whose caches were in the same state. Where there is no such pair, all are shown."""
    sides = [Side(s.name, tuple(r for r in s.runs if r.started and not r.error)) for s in (base, other)]
    lacking = [s.name for s in sides if not s.runs]
    if len(lacking) == 2:
        return [], [], ["neither side saw a start"]
    if lacking:
        return [], [f"{lacking[0]}: no start was seen that came to a token"], []
    doubts = [f"{r.name}: no timeline" for s in sides for r in s.runs if not r.timed]
    a, b = sides
    common = [state for state in a.states if state in b.states]
    notes = [
        f"{side.name}: {n} {state} start{'s'[: n > 1]} without a counterpart"
        for side in sides for state, n in side.states.items() if common and state not in common
    ]  # fmt: skip
    if "unknown" in common:
        doubts.append("what the caches did is not known on either side: a cold start may stand beside a warm one")
    if not common:
        states = " beside ".join(_several(side) for side in sides)
        return [_side_by_side(a, b, threshold)], [f"starts: the caches differ, {states}", *doubts], notes
    return [_side_by_side(a.of_state(s), b.of_state(s), threshold) for s in common], doubts, notes


def _several(side: Side) -> str:
    return " and ".join(side.states)


def _side_by_side(a: Side, b: Side, threshold: float) -> Starts:
    alike = _several(a) == _several(b)

    def judged(of: Callable[[Run], float | None], spreads: float, least: float) -> Change:
        one, two = ([v for r in side.runs if (v := of(r)) is not None] for side in (a, b))
        change = judge(one, two, threshold, spreads=spreads, least=least)
        return change if alike else replace(change, call=Call.NOT_COMPARED, why="the caches differ")

    def stage(s: Stage) -> Timing:
        return Timing(s.id, s.name, s.parent, judged(lambda r: r.seconds_of(s.id), MANY, least))

    whole = judged(lambda r: r.whole, ONE, 0.0)
    least = SHARE * whole.base.p50 if whole.base else LEAST
    known: dict[str, Stage] = {}
    for run in (*a.runs, *b.runs):
        known = run.stages | known  # what was seen first names it
    order = dict.fromkeys(id_ for run in (*a.runs, *b.runs) for id_ in run.stages)
    return Starts(
        base=_several(a), other=_several(b), runs=(len(a.runs), len(b.runs)),
        whole=Timing("", "container start to first token", None, whole), stages=tuple(stage(known[i]) for i in order),
    )  # fmt: skip


def _slower(starts: Starts) -> Iterable[str]:
    for t in (starts.whole, *starts.stages):
        if t.change.call is Call.SLOWER:
            yield f"{starts.base} start: {told(t)}"


def told(timing: Timing) -> str:
    """A change in words."""
    change = timing.change
    assert change.base is not None  # noqa: S101 - only what both sides have is told
    assert change.other is not None  # noqa: S101
    share = "" if change.percent is None else f" ({change.percent:+.1f} %)"
    return f"{timing.name} {change.base.p50:.2f} s -> {change.other.p50:.2f} s{share}"


def _unproven(starts: Starts) -> Iterable[str]:
    """Of the whole start, or of the stages where the whole was not seen: with few runs some stage always differs."""
    whole = starts.whole.change
    if (whole.base is None) != (whole.other is None):
        yield "only one side saw its start from the outside"
    for t in (starts.whole,) if whole.base and whole.other else starts.stages:
        few = t.change.call is Call.NOT_CLAIMED and min(starts.runs) < ENOUGH
        if few and (t.change.percent is None or t.change.percent > 0):
            yield f"{told(t)}: {t.change.why}"


def _memory(base: Side, other: Side) -> Iterable[Memory]:
    for row, by in dict.fromkeys(key for side in (base, other) for r in side.runs for key in r.memory):
        a, b = (_median([r.memory[row, by] for r in side.runs if (row, by) in r.memory]) for side in (base, other))
        if a != b:
            percent = round(100 * (b - a) / a, 1) if a and b is not None else None
            yield Memory(row, by, a, b, percent)


def _median(values: Sequence[int]) -> int | None:
    return sorted(values)[len(values) // 2] if values else None


def _statuses(base: Side, other: Side) -> tuple[list[Difference], list[str], list[str]]:
    """What the probes said, and of those that always passed before: which do not, and which were not asked."""
    found = list(differences(base, other, lambda r: {("probes", name): s for name, (s, _) in r.probes.items()}))
    worse, unasked = [], []
    failed = [r for r in other.runs if r.error]
    if failed and not any(r.error for r in base.runs):
        worse.append(f"{len(failed)} of {len(other.runs)} runs failed: {failed[0].error}")
    for difference in found:
        name = difference.name
        if difference.base != Status.PASS:
            continue
        now = {r.probes[name][0] if name in r.probes else Status.SKIP for r in other.runs if not r.error}
        if now - {Status.PASS, Status.SKIP}:
            worse.append(f"probe {name}: pass -> {difference.other}")
        elif Status.SKIP in now:
            unasked.append(f"probe {name} passed, and was not asked on the other side")
    return found, worse, unasked


def least_alike(base: Side, other: Side) -> fingerprint.Comparison | None:
    """The fingerprints of the two sides, the pair that is the furthest apart."""
    order = ("differs", "unknown", "same")
    pairs = [
        fingerprint.compare_fingerprints(a.fingerprint, b.fingerprint)
        for a in base.runs for b in other.runs if a.fingerprint and b.fingerprint
    ]  # fmt: skip
    return min(pairs, key=lambda c: (order.index(c.verdict), -(c.mean or 0.0)), default=None)


def _probe_times(base: Side, other: Side, threshold: float) -> Iterable[Timing]:
    """Of probes that passed: a probe that failed has the time of something else."""
    for name in dict.fromkeys(name for side in (base, other) for r in side.runs for name in r.probes):
        a, b = (
            [r.probes[name][1] for r in side.runs if name in r.probes and r.probes[name][0] == Status.PASS]
            for side in (base, other)
        )
        if a and b:
            yield Timing(name, name, None, judge(a, b, threshold, spreads=MANY, least=LEAST))
