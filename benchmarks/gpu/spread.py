"""How well a figure is known."""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence
from statistics import fmean

OUTSIDE = 0.025  # on each side
LEAST = 6  # values, with fewer both ends together lie outside more often


def enough_rounds(text: str) -> int:
    """A number of rounds that has an interval, as argparse's `type`."""
    if (number := int(text)) < LEAST:
        raise argparse.ArgumentTypeError(f"fewer than {LEAST} rounds have no interval")
    return number


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The confidence interval of the median, at least 95 %, by order statistics: it supposes nothing about the values.

    Raises:
        ValueError: fewer than `LEAST` values have none.
    """
    ordered, n = sorted(values), len(values)
    if n < LEAST:
        raise ValueError(f"{n} values have no such interval, needed are {LEAST}")
    below, out = 0.5**n, 0  # the chance that no more than `out` values lie below the median
    while below + math.comb(n, out + 1) * 0.5**n <= OUTSIDE:
        out += 1
        below += math.comb(n, out) * 0.5**n
    return ordered[out], ordered[n - 1 - out]


def ratio(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """The mean of several ratios of two means, each of the values above and below."""
    return fmean(fmean(above) / fmean(below) for above, below in pairs)


def bootstrap(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], draws: int = 10_000) -> tuple[float, float]:
    """The interval that holds `ratio` with 95 %: percentiles of what is drawn anew.

    From n values n - 1 are drawn: so the spread of their mean is right where n is small as well (Rao and Wu, 1988).

    Args:
        pairs: of each ratio the values above and below, two at least.
        draws: how often to draw.
    """
    draw = random.Random(0)  # noqa: S311 - the same values, the same interval

    def anew(values: Sequence[float]) -> list[float]:
        return draw.choices(values, k=len(values) - 1)

    ordered = sorted(ratio([(anew(above), anew(below)) for above, below in pairs]) for _ in range(draws))
    return ordered[round(draws * OUTSIDE)], ordered[round(draws * (1 - OUTSIDE)) - 1]
