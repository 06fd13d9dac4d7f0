"""How far a fetch is, for whoever shows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

HEARTBEAT = 10.0  # seconds between two lines where nothing can be drawn anew


@dataclass
class FileProgress:
    """One file. `state`: waiting, fetching, retrying, checking, done, present (it was there and right already)."""

    path: str
    size: int
    done: int = 0
    state: str = "waiting"


@dataclass
class Progress:
    """All files of a model; `transport` is what was asked for."""

    model: str
    transport: str
    files: list[FileProgress] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    @property
    def done(self) -> int:
        """Bytes that are there, checked or not."""
        return sum(f.done for f in self.files)

    def line(self) -> str:
        """One line: how much, and what is on its way."""
        ready = sum(f.state in ("done", "present") for f in self.files)
        busy = ", ".join(f"{f.path} ({f.state})" for f in self.files if f.state in ("fetching", "checking", "retrying"))
        return (
            f"{self.model}: {ready} of {len(self.files)} files, {self.done / 1e6:.0f} of {self.size / 1e6:.0f} MB"
            + (f": {busy}" if busy else "")
        )


def now_and_then(say: Callable[[str], None]) -> Callable[[Progress], None]:
    """Shows a fetch as a line every HEARTBEAT seconds."""
    due = time.monotonic() + HEARTBEAT

    def show(progress: Progress) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due += HEARTBEAT
            say(progress.line())

    return show
