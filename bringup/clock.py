"""How far other clocks are from this host's, so that times of several machines can be put beside each other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from bringup.errors import BringupError

LOOKS = 3  # the quickest of them is the least uncertain


@dataclass(frozen=True, kw_only=True)
class Offset:
    """Seconds by which a clock is ahead of this host's, give or take `uncertainty_seconds`; None: `reason` says why.

    The other clock was read at some moment of the look, taken as its middle: the uncertainty is half of the look.
    """

    offset_seconds: float | None
    uncertainty_seconds: float | None
    method: str
    reason: str = ""


def offset(ask: Callable[[], float], method: str) -> Offset:
    """Look at another clock; `ask` gives its epoch seconds and may raise BringupError or ValueError."""
    best: tuple[float, float] | None = None
    for _ in range(LOOKS):
        wall, begun = time.time(), time.monotonic()
        try:
            told = ask()
        except (BringupError, ValueError) as e:
            return Offset(offset_seconds=None, uncertainty_seconds=None, method=method, reason=str(e))
        half = (time.monotonic() - begun) / 2
        seen = half, told - (wall + half)
        best = min(best or seen, seen)
    assert best is not None  # noqa: S101 - there is at least one look
    return Offset(offset_seconds=round(best[1], 6), uncertainty_seconds=round(best[0], 6), method=method)
