"""Run the server as a child, pass signals on, and make the exit code tell what happened.

vLLM cannot simply take this process's place: when its engine dies after the start, its API process shuts down in
good order and exits 0 (seen with 0.32.0), and nobody could tell a dead server from one that was asked to stop. Nor does
it always end: with an engine that hangs, or a reader that does not read, it waits for ever.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from bringup.errors import Exit
from bringup.profile import given

# Number of a pipe's read end, for `serve`: one byte means that the weights are as locked, its end that they are not.
GATE = "BRINGUP_GATE"
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# Docker and RunPod kill 10 s after they asked; running requests get the first of them, then vLLM's own end.
DRAIN_OPTION = "--shutdown-timeout"
DRAIN = 4  # seconds
AFTER_DRAIN = 4  # seconds; then nobody is asked any more
PATIENCE = 1.0  # seconds for what a server that is gone has left running (its resource tracker cleans up, and ends)
HOLD = "BRINGUP_HOLD"


class Child(Protocol):
    """The part of `subprocess.Popen` that is needed here."""

    pid: int

    def send_signal(self, sig: int, /) -> None:
        """Signal the process, if it still runs."""

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""


def start_server(argv: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Start the server in a session of its own: tini signals our group, and the server is to get each signal once."""
    return subprocess.Popen(argv, env=environment, start_new_session=True)


def start_beside(argv: Sequence[str], environment: Mapping[str, str], check: Callable[[], None]) -> Child:
    """Start the server, which imports and then waits, and meanwhile check its weights.

    Raises:
        BringupError: what `check` raises; the server is gone then, and has read of the model no more than the name of
            its architecture.
    """
    reading, writing = os.pipe()
    try:
        child = subprocess.Popen(
            argv, env={**environment, GATE: str(reading)}, pass_fds=(reading,), start_new_session=True
        )
    except OSError:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    try:
        check()
        with suppress(BrokenPipeError):  # it died meanwhile: whoever waits for it says so
            os.write(writing, b"1")
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        os.close(writing)
    return child


@dataclass(frozen=True)
class End:
    """How a start ended: the container's exit code, what to say of it, and whether a signal had asked for the end."""

    code: int
    what: str
    asked: bool = False


def drain_arguments(argv: Sequence[str]) -> tuple[str, ...]:
    """vLLM's arguments that let running requests finish; none where the user gave some."""
    return () if given(argv, DRAIN_OPTION) else (DRAIN_OPTION, str(DRAIN))


def grace(argv: Sequence[str]) -> int:
    """Seconds from the first signal to the moment when the server is killed."""
    text = given(argv, DRAIN_OPTION) or ""
    return (int(text) if text.isdigit() else DRAIN) + AFTER_DRAIN


def exit_code(code: int, asked: bool) -> tuple[int, str]:
    """The container's exit code and what to say.

    Args:
        code: how the server ended, as `Popen.wait` tells it.
        asked: whether a signal had asked it to stop.
    """
    if code < 0:
        return 128 - code, f"was ended by {signal.Signals(-code).name}"
    if asked:
        return code, f"stopped as asked (exit {code})"
    if code == Exit.USAGE:
        return int(Exit.USAGE), "refused its arguments (exit 2)"
    return int(Exit.NEVER_READY), f"died: it ended by itself (exit {code}); the lines above say why"


def supervise(
    argv: Sequence[str],
    environment: Mapping[str, str],
    log: logging.Logger,
    start: Callable[[Sequence[str], Mapping[str, str]], Child] = start_server,
    stopping: Callable[[], None] = lambda: None,
) -> End:
    """Run the server until it ends, of itself or by a signal, and with it all that it started.

    `stopping` is called in a signal's handler, when the first one comes.
    """
    asked: list[int] = []
    children: list[Child] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if not asked:
            signal.alarm(grace(argv))
            stopping()
        asked.append(number)
        for child in children:
            child.send_signal(number)

    def too_late(_number: int, _frame: FrameType | None) -> None:
        log.error("vLLM did not end within %d s, and is killed", grace(argv))
        for child in children:
            end_session(child.pid)

    before = {s: signal.signal(s, on_signal) for s in PASSED_ON} | {
        signal.SIGALRM: signal.signal(signal.SIGALRM, too_late)
    }
    try:
        child = start(argv, environment)
        children.append(child)
        for number in asked[:]:  # came before there was a child to pass it to
            child.send_signal(number)
        code, what = exit_code(child.wait(), bool(asked))
        end_session(child.pid, PATIENCE)
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
    (log.info if code == 0 else log.error)("vLLM %s", what)
    return End(code, f"vLLM {what}", bool(asked))


def end_session(session: int, patience: float = 0.0, proc: Path = Path("/proc")) -> None:
    """Kill what runs in a session after `patience` seconds; returns as soon as there is nothing, or it is killed."""
    deadline = time.monotonic() + patience
    while (left := _members(session, proc)) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _members(session: int, proc: Path) -> list[int]:
    """The processes of a session that are not dead yet (proc(5), stat: state and session are fields 3 and 6)."""
    found = []
    for file in proc.glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _parent, _group, of = file.read_text("ascii", "replace").rpartition(") ")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(int(file.parent.name))
    return found


class _Asked(Exception):
    """A signal came."""


def hold(end: End, log: logging.Logger, pause: Callable[[], object] = signal.pause) -> None:
    """Keep the container for somebody to look into it, until a signal."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        for s in PASSED_ON:  # one is enough
            signal.signal(s, signal.SIG_IGN)
        raise _Asked

    with suppress(_Asked):
        for s in PASSED_ON:
            signal.signal(s, on_signal)
        log.error(
            "%s holds the container after its server's end, for a look inside: %s. SIGTERM (docker stop, or `kill 1` "
            "in a session) ends it with exit code %d", HOLD, end.what, end.code,
        )  # fmt: skip
        while True:
            pause()
