"""Run the server as a child, pass signals on, and make the exit code tell what happened.

vLLM cannot simply take this process's place: when its engine dies after the start, its API process shuts down in
good order and exits 0 (seen with 0.32.0), and nobody could tell a dead server from one that was asked to stop.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Protocol

from bringup.errors import Exit

# Number of a pipe's read end, for `serve`: one byte means that the weights are as locked, its end that they are not.
GATE = "BRINGUP_GATE"
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Child(Protocol):
    """The part of `subprocess.Popen` that is needed here."""

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
) -> int:
    """Run the server until it ends.

    Returns:
        The container's exit code.
    """
    asked: list[int] = []
    children: list[Child] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for child in children:
            child.send_signal(number)

    before = {s: signal.signal(s, on_signal) for s in PASSED_ON}
    try:
        child = start(argv, environment)
        children.append(child)
        for number in asked[:]:  # came before there was a child to pass it to
            child.send_signal(number)
        code, what = exit_code(child.wait(), bool(asked))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    (log.info if code == 0 else log.error)("vLLM %s", what)
    return code
