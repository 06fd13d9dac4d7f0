"""Keeps one server as an engine keeps a container: `python -m bringup.edge.keeper DIRECTORY ID PROGRAM [ARGUMENTS...]`.

It is what `bringup up --target local` leaves behind. It writes the program's console with times, passes SIGTERM on,
kills all that is left of the program when that ends, and writes down how it ended. In DIRECTORY: `started.json`,
`console.log` (and `console.1.log`, what was before it) and `ended.json`. The lock that it is given it holds as long as
it lives; no program that it starts inherits it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from bringup.edge import host, objects, proc

STARTED, ENDED = "started.json", "ended.json"
CONSOLE, OLDER = "console.log", "console.1.log"
LARGEST = 20 * 2**20  # bytes of one file of the console, as in compose.yaml
GRACE = 10  # seconds between SIGTERM and SIGKILL, as `docker compose down --timeout 10`
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def iso(nanoseconds: int) -> str:
    """A time as the engine writes it before a line: 2026-01-31T12:00:00.123456789Z."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09}Z"


def write(path: Path, value: Mapping[str, Any]) -> None:
    """One JSON file that only this user can read, whole or not at all."""
    objects.write(path, value, 0o600)


class Console:
    """What the program says, each line with its time; no two lines have the same."""

    def __init__(self, directory: Path) -> None:
        self._path, self._older = directory / CONSOLE, directory / OLDER
        self._older.unlink(missing_ok=True)
        self._file = self._open("wb")
        self._last = 0

    def _open(self, mode: str) -> IO[bytes]:
        return open(self._path, mode, buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))

    def follow(self, stream: IO[bytes]) -> None:
        """Copy every line, to the end of the last process that holds the other end."""
        for line in stream:
            self._last = max(self._last + 1, time.time_ns())
            with suppress(OSError):  # a full disk must not end the server
                self._file.write(iso(self._last).encode() + b" " + line.rstrip(b"\n") + b"\n")
                if self._file.tell() > LARGEST:
                    self._path.replace(self._older)
                    full, self._file = self._file, self._open("wb")
                    full.close()


class Keeper:
    """Starts the program, and waits until nothing is left of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._asked = False
        self._child: subprocess.Popen[bytes] | None = None

    def keep(self, name: str, argv: Sequence[str]) -> int:
        """Start it, and see it end; its exit code, or minus the signal that ended it. `name`: the start's id."""
        # Whoever loses its parent below us becomes our child: so none is lost, and none stays as a zombie.
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGALRM, lambda *_: self._signal(signal.SIGKILL))
        console = Console(self._directory)
        reading, writing = os.pipe()
        pipe = os.fstat(writing)
        me = proc.identity(os.getpid())
        assert me is not None  # noqa: S101 - we run
        write(self._directory / STARTED, {
            "id": name, "pid": me.pid, "start": me.start, "boot": me.boot, "pipe": [pipe.st_dev, pipe.st_ino],
            "started": iso(time.time_ns()), "oom_kills": host.oom_kills(),
        })  # fmt: skip
        # A keeper that is killed takes the program along: SIGTERM, which the entry point passes on.
        self._child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=writing, stderr=writing,
            preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0),  # noqa: PLW1509 - no thread yet
        )  # fmt: skip
        os.close(writing)
        if self._asked:  # it came before there was a child to pass it to
            self._stop(signal.SIGTERM)
        with os.fdopen(reading, "rb") as stream:
            reader = threading.Thread(target=console.follow, args=(stream,), daemon=True)
            reader.start()
            code = self._wait(self._child)
            self._kill_rest()
            reader.join(5)
        return code

    def _stop(self, *_: object) -> None:
        self._asked = True
        self._signal(signal.SIGTERM)
        signal.alarm(GRACE)

    def _signal(self, number: signal.Signals) -> None:
        """To the program, unless its end was heard of: not by Popen's own method, which would hear of it."""
        if self._child is not None and self._child.returncode is None:
            os.kill(self._child.pid, number)

    @staticmethod
    def _wait(child: subprocess.Popen[bytes]) -> int:
        while True:
            pid, status = os.waitpid(-1, 0)  # also of those that were left to us
            if pid == child.pid:
                child.returncode = os.waitstatus_to_exitcode(status)
                return child.returncode

    @staticmethod
    def _kill_rest() -> None:
        """What the program leaves is killed, as the end of a container's first process ends all of it.

        The children of who is killed are ours next.
        """
        me = os.getpid()
        while True:
            for pid in [pid for pid, parent in proc.parents().items() if parent == me]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # our own child: its number is not given anew before we heard of it
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def main(args: list[str]) -> int:
    """Keep one program; see the module."""
    directory, name, argv = Path(args[0]), args[1], args[2:]
    code = Keeper(directory).keep(name, argv)
    # As an engine says it: 128 + n for signal n.
    write(directory / ENDED, {
        "id": name, "code": code if code >= 0 else 128 - code, "ended": iso(time.time_ns()),
        "oom_kills": host.oom_kills(),
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
