"""`bringup timeline`: where the time of a start went, from a bundle or from any log of vLLM."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from bringup.bundle import RECORD
from bringup.commands import standard
from bringup.edge import objects
from bringup.errors import EvidenceMissing, Exit, UsageError
from bringup.options import takes
from bringup.settings import Settings

LOGS = ("server.jsonl", "server.log")  # the better one first
LEFT = ("stage", "not told because", "stage, and why it may not be seen")


@click.command("timeline")
@standard
@takes("artifacts")
@click.argument("path", required=False, type=click.Path(exists=True, allow_dash=True, path_type=Path))
def timeline(watch: Any, settings: Settings, sources: dict[str, str], path: Path | None) -> int:  # noqa: ARG001
    """Show where the time of a start went: stage by stage, gaps, and what nobody can see.

    PATH: a bundle, a server.jsonl, or the console output of any vLLM from 0.11 to 0.33, `-` for standard input; without
    it the newest bundle. A bundle adds the clock outside vLLM: when the start was asked for, and the first token.
    """
    from bringup import timeline as reader
    from bringup.console import plain

    where = path or _newest(settings.artifacts)
    text, anchors = _read(where)
    made = reader.build(reader.read_events(text), reader.Anchors(**anchors))
    if not made.recognised:
        raise EvidenceMissing(
            f"no line of a vLLM start in {'standard input' if where == Path('-') else where}",
            hint="give a bundle, its server.jsonl, or the console output of vLLM 0.11 to 0.33",
            id="no-start-in-log",
        )
    watch.result(made.to_dict(), "\n\n".join(plain(table, LEFT) for table in reader.tables(made)))
    return Exit.PASS


def _newest(directory: Path) -> Path:
    """The bundle that was written last; names begin with the UTC time."""
    found = sorted(p.parent for p in directory.glob("*/record.json")) if directory.is_dir() else []
    if not found:
        raise UsageError(f"no bundle in {directory}", hint="give PATH: a bundle or a log; `bringup up` writes a bundle")
    return found[-1]


def _read(where: Path) -> tuple[str, dict[str, float | None]]:
    """The log, and what the bundle knows of the clock outside."""
    if where == Path("-"):
        return sys.stdin.buffer.read().decode("utf-8", "replace"), {}
    if not where.is_dir():
        return _load(where), {}
    for name in LOGS:
        if (where / name).is_file():
            return _load(where / name), _anchors(where)
    raise EvidenceMissing(f"{where} holds no {' and no '.join(LOGS)}", hint="give a bundle or a log file", id="no-log")


def _load(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8", "replace")
    except OSError as e:
        raise UsageError(f"{file} cannot be read: {e.strerror}", hint="give a file that this user may read") from e


def _anchors(bundle: Path) -> dict[str, float | None]:
    """Of timeline.json, or of the record of a run before there was one."""
    known = objects.read(bundle / "timeline.json").get("anchors")
    if isinstance(known, dict):
        names = ("asked", "container_started", "first_200", "first_token")
        return {name: _number(known.get(name)) for name in names}
    record = objects.read(bundle / RECORD)
    container, seconds = record.get("container"), _number(record.get("started_to_first_token"))
    try:
        started = datetime.fromisoformat(container["started"]).timestamp() if isinstance(container, dict) else None
    except (KeyError, TypeError, ValueError, OverflowError):
        started = None
    if started is None or seconds is None:
        return {}
    return {"container_started": started, "first_token": started + seconds}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
