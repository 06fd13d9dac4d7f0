"""`bringup verify URL URL ...`: many servers at once, one bundle each, and a summary."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bringup.errors import UsageError
from bringup.records import exit_for
from bringup.settings import Settings

SHOWN = 10  # nodes of the summary that pass
SUMMARY = "summary.json"
COLUMNS = ("verdict", "node", "s", "model", "first finding")


def verify_many(
    watch: Any, settings: Settings, urls: Sequence[str], source: Path | None, asked: tuple[str, ...],
    named: str | None, jobs: int | None,
) -> int:  # fmt: skip
    """Ask all of them; the exit code of the worst: fail (7), then unknown (9), then pass (0)."""
    from bringup import artifacts, many, probes
    from bringup.console import plain
    from bringup.console_nodes import shown
    from bringup.key import api_key

    each = many.addresses(urls, _text(source) if source else "")
    api_key(settings)  # one that cannot be read is told once, and before anyone is asked
    processes = many.processes_for(len(each))
    jobs = many.at_once(jobs or many.JOBS, len(each), processes)
    artifacts.check_destination(settings.artifacts, settings.sign_key)
    directory = (settings.artifacts / time.strftime("%Y%m%dT%H%M%SZ-verify", time.gmtime())).absolute()
    names = asked or probes.SUITES[settings.suite]
    found: list[many.Outcome] = []
    began = time.monotonic()
    with shown(watch, len(each)) as nodes:

        def ask(url: str, on_probe: Callable[[str], None]) -> many.Outcome:
            outcome = many.verify(url, settings, named, asked, on_probe)
            return many.kept(directory, outcome, settings, names)

        try:
            for outcome in many.sweep(each, jobs, ask, nodes.at, processes):
                found.append(outcome)
                nodes.done(outcome)
        finally:  # of those that were being written when someone interrupted it
            for part in directory.glob(".*.part"):
                shutil.rmtree(part, ignore_errors=True)
    made = many.summary(found, time.monotonic() - began, jobs)
    with suppress(OSError):  # each bundle that is missing is told
        (directory / SUMMARY).write_text(artifacts.as_json(made.to_dict()), "utf-8")
    watch.say(plain(("", COLUMNS, _rows(made)), COLUMNS))
    counts = ", ".join(f"{n} {verdict}" for verdict, n in made.counts.items())
    watch.say(f"{len(found)} nodes in {made.seconds:.1f} s: {counts}; the slowest took {made.slowest[0].seconds:.1f} s")
    watch.say(f"evidence: {directory}")
    watch.say(f"verdict: {made.verdict}")
    watch.result(made.to_dict() | {"directory": str(directory)})
    return exit_for(made.verdict)


def _text(source: Path) -> str:
    try:
        data = sys.stdin.buffer.read() if source == Path("-") else source.read_bytes()
        return data.decode("utf-8")
    except (OSError, ValueError) as e:
        raise UsageError(f"{source} cannot be read: {e}", hint="give --from a text file with an address a line") from e


def _rows(made: Any) -> list[tuple[str, ...]]:
    """Those that are not pass, then the slowest of the others."""
    bad = [n for n in made.nodes if n.verdict != "pass"]
    good = [n for n in made.nodes if n.verdict == "pass"]
    rows: list[tuple[str, ...]] = [
        (n.verdict, n.url, f"{n.seconds:.2f}", n.model or "", n.why) for n in (*bad, *good[:SHOWN])
    ]
    return [*rows, ("pass", f"and {len(good) - SHOWN} more", "", "", "")] if len(good) > SHOWN else rows
