"""The only door to other programs: run one, with its output and its time."""

from __future__ import annotations

import collections
import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup.errors import TargetUnavailable

Detached = subprocess.Popen[bytes]


@dataclass(frozen=True)
class Outcome:
    """What a program did: exit code, its whole standard output, the last lines of both streams, seconds."""

    argv: tuple[str, ...]
    code: int
    out: str
    tail: str
    seconds: float


def run(
    argv: Sequence[str],
    *,
    extra_env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    timeout: float | None = None,
    cwd: Path | None = None,
    feed: str = "",
    source: Path | None = None,
) -> Outcome:
    """Run a program to its end; `on_line` sees each line of standard error as it comes.

    `feed`: its standard input, a few kilobytes at most (more than a pipe holds would wait for the program).
    `source`: a file that is its standard input instead, byte for byte.

    The program gets its own process group's signals from the terminal as any child does; when this call is
    interrupted, it is terminated (killed after 10 s), never left running.

    Raises:
        TargetUnavailable: the program is not installed, or did not end within `timeout` seconds.
        OSError: `source` cannot be read.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise TargetUnavailable(
            f"the program {argv[0]!r} is not on the PATH",
            hint='run `./scripts/engine up` and `eval "$(./scripts/engine env)"`, or install Docker',
        )
    started = time.monotonic()
    tail: collections.deque[str] = collections.deque(maxlen=40)
    given = contextlib.nullcontext(subprocess.PIPE if feed else subprocess.DEVNULL)
    with source.open("rb") if source else given as stdin:
        child = subprocess.Popen(
            [program, *argv[1:]],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, **(extra_env or {})},
            cwd=cwd,
        )
    out: list[str] = []

    def read_out() -> None:
        assert child.stdout  # noqa: S101 - PIPE above
        for line in child.stdout:
            out.append(line)
            tail.append(line.rstrip())

    def read_err() -> None:
        assert child.stderr  # noqa: S101 - PIPE above
        for line in child.stderr:
            tail.append(line.rstrip())
            if on_line and line.strip():
                on_line(line.rstrip())

    readers = [threading.Thread(target=f, daemon=True) for f in (read_out, read_err)]
    for reader in readers:
        reader.start()
    try:
        if child.stdin:
            with contextlib.suppress(BrokenPipeError), child.stdin:  # it ended without reading: its exit code tells
                child.stdin.write(feed)
        code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        stop(child)
        raise TargetUnavailable(
            f"`{' '.join(argv[:4])}` gave no result within {timeout:.0f} s", hint="is the Docker Engine overloaded?"
        ) from None
    except BaseException:
        stop(child)
        raise
    for reader in readers:
        reader.join(5)
    return Outcome(tuple(argv), code, "".join(out), "\n".join(tail), time.monotonic() - started)


def detach(argv: Sequence[str], environment: Mapping[str, str], directory: Path, errors: Path, given: int) -> Detached:
    """Start a program that outlives us: in a session of its own, so that no terminal's signal reaches it.

    `directory`: where it runs; `errors`: a file that gets what it says, in place of what was there; `given`: a file
    descriptor that it has too.

    Raises:
        OSError: the program or the file cannot be opened.
    """
    with errors.open("wb") as said:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, cwd=directory,
            start_new_session=True, pass_fds=(given,),
        )  # fmt: skip


def stop(child: subprocess.Popen[Any]) -> None:
    """SIGTERM, and SIGKILL when that has not ended it within 10 s."""
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
