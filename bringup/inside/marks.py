"""Marks in server.jsonl: what our processes reached, and when; vLLM's own records begin seconds after its processes."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
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
    with suppress(OSError, ValueError, IndexError):  # a log must never break the server
        _log.info("process started at %.3f", born())


def reached(name: str) -> None:
    """One mark; without `begin` nobody hears it."""
    _log.info("reached %s", name)


def told(text: str) -> None:
    """One line that is no mark: of what happens while the server serves."""
    _log.info("%s", text)


def left_out(part: str, why: str) -> None:
    """Say, to people as well, that in one thing this start goes vLLM's own way."""
    _log.warning("%s left out: %s", part, why)
    sys.stderr.write(f"bringup: {part} left out: {why}; the start is vLLM's own in that\n")


def born() -> float:
    """Epoch seconds of this process's start, by the kernel (10 ms steps)."""
    stat = Path("/proc/self/stat").read_text("utf-8").rpartition(")")[2].split()
    # Not /proc/uptime: LXC hosts put the container's own there, and the start is counted from the host's.
    up = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - up + int(stat[19]) / os.sysconf("SC_CLK_TCK")
