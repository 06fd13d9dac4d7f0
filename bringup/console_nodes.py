"""What a person sees while many nodes are asked: a table that lives, or without a terminal a line for each one done."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bringup.console import Console
from bringup.many import Outcome
from bringup.records import Verdict

if TYPE_CHECKING:
    from rich.live import Live

MARGIN = 4  # lines of the terminal that are left to what is above and below
STYLES = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.UNKNOWN: "bold yellow"}


class Nodes:
    """Who is being asked what, and what was found; told by many threads."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._console = console
        self._lock = threading.Lock()
        self._running: dict[str, tuple[float, str]] = {}
        self._bad: list[Outcome] = []
        self._counts: Counter[str] = Counter()
        self.live: Live | None = None

    def at(self, url: str, probe: str) -> None:
        """This node is asked that now."""
        with self._lock:
            began, _ = self._running.get(url, (time.monotonic(), ""))
            self._running[url] = began, probe
            if self.live is not None and not self.live.is_started:
                self.live.start()

    def done(self, outcome: Outcome) -> None:
        """This node has its verdict."""
        with self._lock:
            self._running.pop(outcome.url, None)
            self._counts[outcome.verdict] += 1
            if outcome.verdict is not Verdict.PASS:
                self._bad.append(outcome)
        if self.live is None:
            self._console.say(f"[{self._done}/{self._total}] {line(outcome)}")

    @property
    def _done(self) -> int:
        return sum(self._counts.values())

    def __rich__(self) -> Any:
        """The head, those that are not pass, and as many of the others as there is room for, the oldest first."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        now = time.monotonic()
        with self._lock:
            rest = self._total - self._done
            counts = ", ".join(f"{n} {verdict}" for verdict, n in self._counts.items())
            title = f"{self._done} of {self._total} nodes done{f': {counts}' if counts else ''}; {rest} to go"
            bad, running = list(self._bad), sorted(self._running.items(), key=lambda item: item[1][0])
        room = max(self._console.rich.height - MARGIN, 2)
        for outcome in bad[-room // 2 :]:
            verdict = Text(outcome.verdict, style=STYLES[outcome.verdict])
            table.add_row(verdict, Text(outcome.url), Text(outcome.why, no_wrap=True, overflow="ellipsis"))
        for url, (began, probe) in running[: room - min(len(bad), room // 2)]:
            table.add_row(Text("..."), Text(url), Text(f"{probe} {now - began:.0f} s"))
        whole = Table.grid()
        whole.add_row(Text(title))
        whole.add_row(table)
        return whole


def line(outcome: Outcome) -> str:
    """One node in one line."""
    why = f": {outcome.why}" if outcome.why else ""
    return f"{outcome.verdict}  {outcome.url}  {outcome.seconds:.1f} s{why}"


@contextmanager
def shown(console: Console, total: int) -> Iterator[Nodes]:
    """Show the nodes while the block runs, from the first that is told on: a display has a thread, and who asks may
    have to fork before there is one."""
    nodes = Nodes(total, console)
    if console.rich.is_terminal:
        from rich.live import Live

        nodes.live = Live(nodes, console=console.rich, refresh_per_second=4, transient=True)
    try:
        yield nodes
    finally:
        if nodes.live is not None:
            nodes.live.stop()
