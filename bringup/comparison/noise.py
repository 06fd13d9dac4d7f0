"""When a difference between two sets of times may be claimed; docs/compare.md explains the rule, with error rates."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from bringup.benchmark.figures import Spread, spread

ENOUGH = 3  # runs a side; with fewer, two sides that are alike are told apart by chance every third time
CHANCE = 0.05  # of the rank test, one-sided: with 3 runs a side the least there is
ONE, MANY = (
    1.0,
    2.0,
)  # spreads that medians must be apart: for one figure, and for one of many, where some differ by luck
MAD = 0.6745  # of a normal distribution, median absolute deviation by standard deviation
OUTLIER = 3.5  # modified z-score (Iglewicz and Hoaglin)
NODES = 4  # the fewest values that one of them can stand out from


class Call(StrEnum):
    """What may be said of a difference. `NOT_CLAIMED`: it is past the threshold, and these runs do not prove it."""

    SAME = "same"
    SLOWER = "slower"
    FASTER = "faster"
    NOT_CLAIMED = "not claimed"
    NOT_COMPARED = "not compared"


@dataclass(frozen=True, kw_only=True)
class Change:
    """Two sets of seconds beside each other; `percent` of the first's median; `why`: what the call rests on."""

    base: Spread | None
    other: Spread | None
    percent: float | None
    call: Call
    why: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        sides = {n: s.to_dict() if s else None for n, s in (("base", self.base), ("other", self.other))}
        return sides | {"percent": self.percent, "call": self.call, "why": self.why}


def judge(
    base: Sequence[float], other: Sequence[float], threshold: float, *, spreads: float = ONE, least: float = 0.0
) -> Change:
    """Compare seconds of one kind.

    Args:
        threshold: percent of the first's median that a change must be past.
        spreads: how many times the wider side's spread the medians must be apart.
        least: seconds; a smaller change matters to nobody.
    """
    a, b = spread(base), spread(other)
    if a is None or b is None:
        side = "neither side" if a is b else "one side"
        return Change(base=a, other=b, percent=None, call=Call.NOT_COMPARED, why=f"{side} has it")
    change = b.p50 - a.p50
    percent = round(100 * change / a.p50, 1) if a.p50 else (math.inf if change else 0.0)

    def call(what: Call, why: str) -> Change:
        return Change(base=a, other=b, percent=percent if math.isfinite(percent) else None, call=what, why=why)

    if abs(percent) <= threshold or abs(change) <= least:
        return call(Call.SAME, "")
    if min(a.n, b.n) < ENOUGH:
        return call(Call.NOT_CLAIMED, f"needs {ENOUGH} runs a side")
    chance = rank_test(base, other) if change > 0 else rank_test(other, base)
    if chance > CHANCE:
        return call(Call.NOT_CLAIMED, f"the two sides overlap (rank test, p {chance:.2f})")
    noise = spreads * max(width(a), width(b))
    if abs(change) <= noise:
        return call(Call.NOT_CLAIMED, f"within the noise of {noise:.2f} s")
    why = f"rank test, p {chance:.3f}; {abs(change):.2f} s is more than the noise of {noise:.2f} s"
    return call(Call.SLOWER if change > 0 else Call.FASTER, why)


def width(side: Spread) -> float:
    """How far the runs of one side lie apart: the quartiles' distance, or of few runs all of it."""
    return side.high - side.low if side.iqr is None else side.iqr


def rank_test(low: Sequence[float], high: Sequence[float]) -> float:
    """The exact one-sided Mann-Whitney test: how often chance puts `high` so far above `low`; ties help chance."""
    above = sum(h > v for h in high for v in low)
    ways = _ways(len(low), len(high))
    return sum(ways[above:]) / sum(ways)


def _ways(n: int, m: int) -> list[int]:
    """How many orders of n and m values have 0, 1, ... n*m pairs in which the second is the larger."""
    counts = [1] + [0] * (n * m)
    for i in range(1, m + 1):  # the Gaussian binomial coefficient: product of (1 - q^(n+i)) / (1 - q^i)
        for k in range(n * m, n + i - 1, -1):
            counts[k] -= counts[k - n - i]
        for k in range(i, n * m + 1):
            counts[k] += counts[k - i]
    return counts


@dataclass(frozen=True)
class Place:
    """Where one value lies among all: percent of the median beyond it, and whether it stands out."""

    percent: float | None
    outlier: bool


def places(
    values: Sequence[float | None], threshold: float, *, spreads: float = ONE, least: float = 0.0
) -> list[Place]:  # fmt: skip
    """Of each value its place among the others; one stands out by its modified z-score, threshold and `least` together.

    `threshold`, `least`: see `judge`; `spreads`: how many times past its limit the score must be. The median and the
    median of the distances from it: a node that is far off moves neither. With fewer than `NODES` values none stands
    out.
    """
    known = [v for v in values if v is not None]
    if not known:
        return [Place(None, outlier=False) for _ in values]
    middle = statistics.median(known)
    distance = statistics.median(abs(v - middle) for v in known)

    def place(value: float | None) -> Place:
        if value is None or not middle:
            return Place(None, outlier=False)
        percent = 100 * (value - middle) / middle
        far = MAD * abs(value - middle) > spreads * OUTLIER * distance and abs(percent) > threshold
        return Place(round(percent, 1), outlier=far and abs(value - middle) > least and len(known) >= NODES)

    return [place(v) for v in values]
