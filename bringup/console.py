"""What a person sees: steps with their times, tables, one line for each failure. All of it on standard error.

Standard output carries the result as JSON under `--json`, and what was asked for by name otherwise.
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bringup.errors import BringupError
from bringup.records import CheckRecord, ProbeRecord, Status, StepRecord
from bringup.redact import redact
from bringup.timeline.live import Expected, Follower

if TYPE_CHECKING:
    from rich.console import Console as Rich

    from bringup.ready import Moments, Seen
    from bringup.weights.progress import Progress

DETAIL = 120  # characters of the latest line of a program below
HEARTBEAT = 10.0  # seconds without a line after which a step gives a sign of life, where there is no terminal
START_HEARTBEAT = 60.0  # the same for a start, whose stages are lines already
STYLES = {
    Status.PASS: "green",
    Status.WARN: "yellow",
    Status.FAIL: "bold red",
    Status.UNKNOWN: "bold yellow",
    Status.SKIP: "dim",
}


class Console:
    """The only printer.

    `as_json`: standard output is for machines; `verbose`: show what the programs below say; `quiet`: only errors and
    what is told, which beats `verbose`.
    """

    def __init__(self, *, as_json: bool = False, verbose: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.verbose = verbose
        self.quiet = quiet
        self._rich: Rich | None = None
        self._said = time.monotonic()

    @property
    def rich(self) -> Rich:
        """Made on first use: importing rich costs more than printing help."""
        if self._rich is None:
            from rich.console import Console as Rich

            self._rich = Rich(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else 140)
        return self._rich

    @property
    def in_place(self) -> bool:
        """Whether a line can be drawn anew; FORCE_COLOR makes rich take a pipe for a terminal."""
        return sys.stderr.isatty() and self.rich.is_interactive and not (self.verbose or self.quiet)

    def say(self, text: str) -> None:
        """One line for people."""
        if not self.quiet:
            self.tell(text)

    def tell(self, text: str) -> None:
        """One line that --quiet shows, too: an error, a verdict, where the evidence is."""
        self._said = time.monotonic()
        self.rich.print(text, markup=False, soft_wrap=True)

    def _draw(self, table: Any) -> None:
        if not self.quiet:
            self.rich.print(table)

    def result(self, value: Any, text: str | None = None) -> None:
        """The result: JSON under --json, else `text` on standard output; without what looks like a secret."""
        if self.as_json:
            sys.stdout.write(redact(json.dumps(value, indent=2, ensure_ascii=False, default=str)) + "\n")
        elif text:
            sys.stdout.write(redact(text.rstrip("\n")) + "\n")

    def error(self, error: BringupError) -> None:
        """A failure: what, then the next action, then what helps to understand it."""
        if error.detail:
            self.tell("\n".join(f"  | {line}" for line in error.detail.splitlines()))
        self.tell(f"bringup: {error.line}")
        if error.hint:
            self.tell(f"  -> {error.hint}")
        if self.as_json:
            self.result({"error": error.message, "id": error.id, "hint": error.hint, "exit_code": int(error.exit_code)})

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show a step while it runs, with its elapsed time, and how long it took; yields a sink for its detail."""
        started = time.monotonic()
        latest = [""]

        def line() -> str:
            detail = f"  {latest[0]}" if latest[0] else ""
            return f"{name} ... {time.monotonic() - started:.0f} s{detail}"

        def detail(text: str) -> None:
            latest[0] = text[:DETAIL]
            if self.verbose:
                self.say(f"  | {text}")

        with self._showing(line, HEARTBEAT):
            yield detail
        self.say(f"{name}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def start(self, name: str, expected: Expected | None) -> Iterator[Seen]:
        """Show a start by its log: a line for each stage that ended, and on a terminal the one that is under way."""
        started = time.monotonic()
        follower = Follower(expected)
        whole = f" of about {expected.whole:.0f} s" if expected else ""

        def line() -> str:
            parts = (f"{name} ... {time.monotonic() - started:.0f} s{whole}", follower.now(time.time()))
            return "  ".join(filter(None, (*parts, follower.last_line[:DETAIL])))

        def seen(console: str, moments: Moments) -> None:
            if self.verbose:
                for text in console.splitlines():
                    self.say(f"  | {text.partition(' ')[2]}")
            follower.feed(console, moments.anchors())
            for text in follower.news(time.time()):
                self.say(text)

        if expected:
            self.say(f"expected: {expected.whole:.0f} s to the first token, as in {expected.source}")
        with self._showing(line, START_HEARTBEAT):
            yield seen
        self.say(f"{name}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def _showing(self, line: Callable[[], str], heartbeat: float) -> Iterator[None]:
        """Meanwhile show a line that changes: in place, or where that cannot be after so long without another line."""
        if self.in_place:
            from rich.live import Live
            from rich.text import Text

            class Now:
                def __rich__(self) -> Text:
                    return Text(line(), overflow="ellipsis", no_wrap=True)

            with Live(Now(), console=self.rich, refresh_per_second=4, transient=True):
                yield
            return
        done = threading.Event()

        def beat() -> None:
            while not done.wait(max(0.1, self._said + heartbeat - time.monotonic())):
                if time.monotonic() - self._said >= heartbeat:
                    self.say(line())

        thread = threading.Thread(target=beat, daemon=True)
        self._said = time.monotonic()
        if not self.quiet:
            thread.start()
        try:
            yield
        finally:
            done.set()
            if not self.quiet:
                thread.join()

    @contextmanager
    def transfer(self, name: str) -> Iterator[Callable[[Progress], None]]:
        """Show a fetch: a bar for each file on its way and one for all; a line now and then without a terminal."""
        self.say(name)
        if self.rich.is_terminal and not self.quiet:
            with _bars(self.rich) as show:
                yield show
            return
        from bringup.weights.progress import now_and_then

        yield now_and_then(self.say)

    def checks(self, records: tuple[CheckRecord, ...]) -> None:
        """The table of the checks; a remedy under each one that is not fine."""
        table = _table("check", "", "found", "needed")
        table.columns[0].max_width = 16
        said: dict[tuple[str, ...], list[CheckRecord]] = {}
        for r in records:  # one cause (no driver, no engine) keeps many checks from knowing anything: one row
            one = (r.status, r.found, r.remedy) if r.status is Status.UNKNOWN else (r.name,)
            said.setdefault(one, []).append(r)
        for r, *others in said.values():
            names, needed = ", ".join(x.name for x in (r, *others)), r.needed if not others else ""
            table.add_row(names, _mark(r.status), r.found, needed)
            if r.remedy and r.status is not Status.PASS:
                table.add_row("", "", f"-> {r.remedy}", "")
        self._draw(table)

    def probes(self, records: tuple[ProbeRecord, ...]) -> None:
        """The table of the probes."""
        table = _table("probe", "", "found", "expected", "s")
        for r in records:
            table.add_row(r.name, _mark(r.status), r.found, r.expected, f"{r.seconds:.2f}")
        self._draw(table)

    def table(self, title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
        """Any other table, with its title above; columns but the first hold figures."""
        self.say(title)
        table = _table(*columns)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*row)
        self._draw(table)

    def steps(self, records: tuple[StepRecord, ...]) -> None:
        """Where the time went."""
        self.say("  ".join(f"{r.name} {r.seconds:.1f} s" for r in records))


@contextmanager
def _bars(rich: Rich) -> Iterator[Callable[[Progress], None]]:
    from rich import progress as bars

    shown: dict[str, bars.TaskID] = {}
    with bars.Progress(
        bars.TextColumn("{task.description}", markup=False), bars.BarColumn(), bars.DownloadColumn(),
        bars.TransferSpeedColumn(), bars.TimeRemainingColumn(), bars.TextColumn("{task.fields[state]}"),
        console=rich, transient=True,
    ) as display:  # fmt: skip
        whole = display.add_task("all files", total=None, state="")

        def show(now: Progress) -> None:
            for f in now.files:
                if f.state not in ("waiting", "present") and f.path not in shown:
                    shown[f.path] = display.add_task(f.path, total=f.size, state="")
                if f.path in shown:
                    visible = f.state != "done"
                    display.update(shown[f.path], completed=f.done, state=f.state, visible=visible)
            display.update(whole, completed=now.done, total=now.size)

        yield show


def _table(*columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def plain(table: tuple[str, tuple[str, ...], Iterable[tuple[str, ...]]], left: Collection[str] = ()) -> str:
    """A table (title, columns, rows) as text for standard output; the columns named in `left` hold words."""
    from rich.console import Console as Rich

    title, columns, rows = table
    made = _table(*columns)
    for name, column in zip(columns, made.columns, strict=True):
        column.justify = "left" if name in left else "right"
    for row in rows:
        made.add_row(*row)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 140
    page = io.StringIO()
    Rich(file=page, width=width, color_system=None, markup=False).print(made)
    return "\n".join([title, *(line.rstrip() for line in page.getvalue().strip("\n").splitlines())])


def _mark(status: Status) -> Any:
    from rich.text import Text

    return Text(status.value, style=STYLES[status])
