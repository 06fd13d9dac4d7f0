"""Who times arrivals must not wait for a CPU behind what it measures; and if it had to, it must know.

On two busy cores a reader that was ready to run was seen to get no CPU for 1.7 s while vLLM's engine and worker
spun: a correct stream then looks like one block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SCHEDSTAT = Path("/proc/thread-self/schedstat")  # time run, time waited to run (nanoseconds), times run


class Waited:
    """Seconds that this thread was ready to run and had no CPU since the block began; 0 where Linux does not say."""

    def __init__(self) -> None:
        self._begun = self._now()

    @property
    def seconds(self) -> float:
        """Up to now."""
        return self._now() - self._begun

    @staticmethod
    def _now() -> float:
        try:
            return int(SCHEDSTAT.read_text("ascii").split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0


@contextmanager
def attention() -> Iterator[Waited]:
    """Run this thread before ordinary ones where the host allows it (root), and measure how long it had to wait."""
    policy, param = os.sched_getscheduler(0), os.sched_getparam(0)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        yield Waited()
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, policy, param)
