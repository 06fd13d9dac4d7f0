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


def bootstrap(mine: Sequence[float], base: Sequence[float], draws: int = 10_000) -> tuple[float, float]:
    """The interval that holds the ratio of two means with 95 %: percentiles of ratios of values drawn anew."""
    draw = random.Random(0)  # noqa: S311 - the same values, the same interval
    drawn = (fmean(draw.choices(mine, k=len(mine))) / fmean(draw.choices(base, k=len(base))) for _ in range(draws))
    ordered = sorted(drawn)
    return ordered[round(draws * OUTSIDE)], ordered[round(draws * (1 - OUTSIDE)) - 1]
