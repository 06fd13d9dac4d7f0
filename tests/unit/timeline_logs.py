"""Logs for the tests of the timeline: recorded ones, and ones made from each release's templates."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bringup.timeline import Anchors

DATA = Path(__file__).parents[1] / "data" / "timeline"
TEMPLATES = tomllib.loads((DATA / "templates.toml").read_text("utf-8"))
RELEASES: list[str] = TEMPLATES["releases"]
ASKED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC).timestamp()
CLOCK = Anchors(ASKED, ASKED + 0.5, ASKED + 46.0, ASKED + 46.25)
STARTS = [(r, "V1") for r in RELEASES] + [(r, "V2") for r in RELEASES[RELEASES.index("0.22.1") :]]
PIDS = {"api": 1, "uvicorn": 1, "engine": 77}


def recorded(name: str) -> str:
    """A recorded log."""
    return (DATA / name).read_text("utf-8")


def clock(name: str) -> Anchors:
    """What was seen from outside of that start."""
    return Anchors(**json.loads(recorded("anchors.json"))[name])


def lines(release: str, runner: str) -> list[dict[str, Any]]:
    """The lines of one start, in their order."""
    at = RELEASES.index(release)
    return [
        line
        for line in TEMPLATES["line"]
        if RELEASES.index(line.get("from", RELEASES[0])) <= at <= RELEASES.index(line.get("to", RELEASES[-1]))
        and line.get("runner", runner) == runner
    ]


def _args(line: dict[str, Any], release: str) -> tuple[Any, ...]:
    return tuple(release if a == "RELEASE" else a for a in line["args"])


def as_records(release: str, runner: str) -> str:
    """The start as server.jsonl has it."""
    made = []
    for line in lines(release, runner):
        by = line["by"]
        made.append({
            "t": ASKED + line["at"], "pid": PIDS[by], "proc": "EngineCore" if by == "engine" else "MainProcess",
            "level": "INFO", "logger": "uvicorn.error" if by == "uvicorn" else "vllm.x", "func": "f", "file": "x.py",
            "line": 1, "msg": line["msg"], "args": list(_args(line, release)),
        })  # fmt: skip
    return "".join(json.dumps(record) + "\n" for record in made)


def as_console(release: str, runner: str, zone: float = 0.0) -> str:
    """The start as that release's console shows it; `zone`: hours by which the server's zone is ahead of UTC."""
    made = []
    cyan, off = ("\x1b[36m", "\x1b[0;0m") if release == "0.11.2" else ("", "")
    for line in lines(release, runner):
        by, args = line["by"], _args(line, release)
        text = line["msg"] % args if args else line["msg"]
        if "console" in line:
            text = line["console"].replace("RELEASE", release)
        engine = "EngineCore_DP0" if RELEASES.index(release) < RELEASES.index("0.18.1") else "EngineCore"
        process = f"{cyan}({engine if by == 'engine' else 'APIServer'} pid={PIDS[by]}){off} "
        when = datetime.fromtimestamp(ASKED + line["at"] + 3600 * zone, UTC).strftime("%m-%d %H:%M:%S")
        if by == "uvicorn":
            made.append(f"{process if RELEASES.index(release) < RELEASES.index('0.32.0') else ''}INFO:     {text}")
        else:
            made.append(f"{process}INFO {when} [x.py:1] {text}")
    return "\n".join(made) + "\n"
