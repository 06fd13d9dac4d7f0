"""N nodes beside each other: which one is not like the others, by medians, which no single node moves."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bringup.comparison.noise import MANY, NODES, Place, places
from bringup.comparison.sides import LEAST, SHARE, THRESHOLD, Side, verdict_of
from bringup.fingerprint import compare_fingerprints
from bringup.records import Status, Verdict


@dataclass(frozen=True, kw_only=True)
class Row:
    """One node. `whole`: seconds to the first token, the median of its runs; `percent`: beyond the median of all nodes
    whose caches were in the same state. `worse`: what must not be; `unlike`: what else the others do not have."""

    name: str
    runs: int
    verdict: str
    caches: str
    whole: float | None
    percent: float | None
    worse: tuple[str, ...]
    unlike: tuple[str, ...]

    @property
    def outlier(self) -> bool:
        """Whether anything about it is marked."""
        return bool(self.worse or self.unlike)


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The nodes in the order in which they were named."""

    threshold: float
    rows: tuple[Row, ...]
    regressions: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """Fail: a node is worse than the others."""
        return verdict_of(self.regressions, self.doubts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "verdict": self.verdict,
            "threshold_percent": self.threshold,
            "regressions": list(self.regressions),
            "doubts": list(self.doubts),
            "nodes": [vars(row) | {"outlier": row.outlier} for row in self.rows],
        }


def line_up(nodes: Sequence[Side], threshold: float = THRESHOLD) -> Nodes:
    """Every node held against all of them; `threshold` in percent of the median."""
    times, doubts = _times(nodes, threshold)
    odd = [(*a, *b) for a, b in zip(_odd(nodes), _other_words(nodes), strict=True)]
    rows = tuple(_row(node, times[i], odd[i]) for i, node in enumerate(nodes))
    for node in nodes:
        doubts += [f"{node.name}: {r.name} disagrees with its sums" for r in node.runs if r.faults]
        doubts += [f"{node.name}: {r.name} has no timeline" for r in node.runs if r.started and not r.timed]
    return Nodes(
        threshold=threshold,
        rows=rows,
        regressions=tuple(f"{row.name}: {'; '.join(row.worse)}" for row in rows if row.worse),
        doubts=(*(f"{row.name}: verdict unknown" for row in rows if row.verdict == Verdict.UNKNOWN), *doubts),
    )


@dataclass(frozen=True)
class _Times:
    whole: float | None
    percent: float | None
    slow: tuple[str, ...]
    unlike: tuple[str, ...]


def _times(nodes: Sequence[Side], threshold: float) -> tuple[dict[int, _Times], list[str]]:
    """By the node's number: its times among the nodes with caches in the same state, and what could not be told."""
    found: dict[int, _Times] = {}
    doubts: list[str] = []
    for state in dict.fromkeys(node.state for node in nodes):
        members = [i for i, node in enumerate(nodes) if node.state == state]
        group = [nodes[i].of_state(state) for i in members]
        wholes = [_median([r.whole for r in n.runs if r.whole is not None and not r.error]) for n in group]
        known = [w for w in wholes if w is not None]
        least = SHARE * statistics.median(known) if known else LEAST
        columns = {"start": places(wholes, threshold, least=least)}
        stages = _stages(group).items()
        columns |= {name: places(v, threshold, spreads=MANY, least=least) for name, v in stages}
        probes = {name: places(v, threshold, spreads=MANY, least=LEAST) for name, v in _probes(group).items()}
        for n, i in enumerate(members):
            marked = [(name, p[n].percent or 0.0) for name, p in columns.items() if p[n].outlier]
            slow = [f"{name} {percent:+.0f} %" for name, percent in marked if percent > 0]
            unlike = [f"{name} {percent:+.0f} %" for name, percent in marked if percent < 0]
            unlike += [f"probe {name} {p[n].percent:+.0f} %" for name, p in probes.items() if _slower(p[n])]
            found[i] = _Times(wholes[n], columns["start"][n].percent, tuple(slow), tuple(unlike))
        far = [p.percent for p in columns["start"] if p.percent is not None and p.percent > threshold]
        if far and len(known) < NODES:
            doubts.append(f"{state} starts differ by more than {threshold:g} %: to tell an outlier needs {NODES} nodes")
    return found, doubts


def _stages(group: Sequence[Side]) -> dict[str, list[float | None]]:
    """Medians by the stage's name, a value for each node."""
    names = {s.id: s.name for n in group for r in n.runs for s in r.stages.values()}
    return {
        name: [_median([r.stages[id_].seconds for r in n.runs if id_ in r.stages and not r.error]) for n in group]
        for id_, name in names.items()
    }


def _probes(group: Sequence[Side]) -> dict[str, list[float | None]]:
    """The same of the probes that passed."""
    names = dict.fromkeys(name for n in group for r in n.runs for name in r.probes)
    said = {name: [[r.probes[name] for r in n.runs if name in r.probes] for n in group] for name in names}
    return {name: [_median([t for s, t in of if s == Status.PASS]) for of in each] for name, each in said.items()}


def _slower(place: Place) -> bool:
    return place.outlier and (place.percent or 0.0) > 0


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _odd(nodes: Sequence[Side]) -> list[tuple[str, ...]]:
    """Of each node the facts that more than half of the nodes have otherwise."""
    own = [node.runs[-1].facts | {("caches", "caches"): node.state} for node in nodes]
    found: list[list[str]] = [[] for _ in nodes]
    for key in dict.fromkeys(key for facts in own for key in facts):
        values = [facts.get(key, "-") for facts in own]
        usual, count = Counter(values).most_common(1)[0]
        if count * 2 <= len(nodes):
            continue
        for n, value in enumerate(values):
            if value != usual:
                found[n].append(f"{key[1]} {_short(value)}, not {_short(usual)}")
    return [tuple(lines) for lines in found]


def _other_words(nodes: Sequence[Side]) -> list[tuple[str, ...]]:
    """Of each node whether its fingerprint is unlike those of more than half of the others that have one."""
    prints = [node.runs[-1].fingerprint for node in nodes]
    found: list[tuple[str, ...]] = []
    for n, own in enumerate(prints):
        others = [p for i, p in enumerate(prints) if p and i != n]
        unlike = sum(compare_fingerprints(own, p).verdict == "differs" for p in others) if own else 0
        found.append(("other log probabilities",) if unlike * 2 > len(others) else ())
    return found


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:24]}..."


def _row(node: Side, times: _Times, odd: tuple[str, ...]) -> Row:
    last = node.runs[-1]
    worse = tuple(_worse(node))
    verdicts = {r.verdict for r in node.runs}
    verdict = next((v for v in (Verdict.FAIL, Verdict.UNKNOWN) if v in verdicts), last.verdict)
    return Row(
        name=node.name, runs=len(node.runs), verdict=verdict, caches=node.state, whole=times.whole,
        percent=times.percent, worse=(*worse, *times.slow), unlike=(*times.unlike, *odd),
    )  # fmt: skip


def _worse(node: Side) -> Iterator[str]:
    """What failed on it, in any of its runs."""
    for run in node.runs:
        if run.error:
            yield run.error
            return
    failed = [name for run in node.runs for name, (status, _) in run.probes.items() if status == Status.FAIL]
    if failed:
        yield f"failed: {', '.join(dict.fromkeys(failed))}"
