"""How well a median is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

OUTSIDE = 0.025  # on each side


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The confidence interval of the median, at least 95 %, by order statistics: it supposes nothing about the values.

    Raises:
        ValueError: fewer than six values have none.
    """
    ordered, n = sorted(values), len(values)
    below, out = 0.5**n, 0  # the chance that no more than `out` values lie below the median
    if below > OUTSIDE:
        raise ValueError(f"{n} values have no such interval, needed are six")
    while below + math.comb(n, out + 1) * 0.5**n <= OUTSIDE:
        out += 1
        below += math.comb(n, out) * 0.5**n
    return ordered[out], ordered[n - 1 - out]
