"""Whoever watches a run: what the workflow reports to. The command line's is `console.Console`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from bringup.ready import Seen
from bringup.records import CheckRecord, ProbeRecord
from bringup.timeline.live import Expected


class Watch(Protocol):
    """Whoever watches a run."""

    def step(self, name: str) -> AbstractContextManager[Callable[[str], None]]:
        """A step begins; what it yields takes lines of detail."""

    def start(self, name: str, expected: Expected | None) -> AbstractContextManager[Seen]:
        """The wait for a start begins; what it yields takes the log as it grows. `expected`: an earlier start."""

    def say(self, text: str) -> None:
        """One line for people."""

    def checks(self, records: tuple[CheckRecord, ...]) -> None:
        """The checks' table."""

    def probes(self, records: tuple[ProbeRecord, ...]) -> None:
        """The probes' table."""

    def table(self, title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
        """Any other table; columns but the first hold figures."""
