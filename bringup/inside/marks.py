"""Marks in server.jsonl: what our processes reached, and when; vLLM's own records begin seconds after its processes."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from bringup.inside import events

VARIABLE = "BRINGUP_SERVER_LOG"  # server.jsonl, as the entry point tells the processes it starts
_log = logging.getLogger("bringup.inside.marks")
_log.propagate = False


def begin(path: str | None = None) -> None:
    """Write this process's marks to `path`, or to where the entry point said; first of all when it was started."""
    target = path or os.environ.get(VARIABLE)
    if not target:
        return
    _log.setLevel(logging.INFO)
    _log.handlers = [events.Handler(target)]
    _log.info("process started at %.3f", born())


def reached(name: str) -> None:
    """One mark; without `begin` nobody hears it."""
    _log.info("reached %s", name)


def born() -> float:
    """Epoch seconds of this process's start, by the kernel (10 ms steps)."""
    stat = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
    up = float(Path("/proc/uptime").read_text("utf-8").split()[0])
    return time.time() - up + int(stat[19]) / os.sysconf("SC_CLK_TCK")
