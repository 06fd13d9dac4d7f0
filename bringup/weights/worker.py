"""The parent's side of a carrying process: start it, watch what comes, kill it when nothing does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from bringup.errors import TargetUnavailable
from bringup.weights.carry import PIECE, READY, Failure, Task, incomplete, serve

TICK = 0.1  # seconds between two looks at whether to go on
MINIMUM = PIECE  # bytes that must come in every `stall_timeout`: a slow drip ends too
START = 60.0  # seconds for Python to start on a busy machine


class Stalled(Failure):
    """Too little came for too long."""


class Worker:
    """One child process, for one thread: the child dies with the thread that made this."""

    def __init__(self, endpoint: str, token: str | None, stall_timeout: float) -> None:
        self._stall = stall_timeout
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, os.getpid(), endpoint, token, stall_timeout + 5), daemon=True
        )
        # The child inherits what is blocked: Ctrl-C on the terminal must not meet it before it ignores that.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._ready = False
        self.seconds = 0.0  # that the latest task took

    @property
    def alive(self) -> bool:
        """Can it take a task?"""
        return self._process.is_alive()

    def carry(self, task: Task, watch: Callable[[int], None], check: Callable[[], None]) -> Failure | None:
        """Carry one file; `watch` gets the bytes so far, `check` may raise to stop it all.

        None: it says that it is done. After anything but an answer the process is dead.
        """
        try:
            self._wait_ready(check)
            started = time.monotonic()
            self._pipe.send(task)
            try:
                answer = self._listen(task, watch, check)
            finally:
                self.seconds = time.monotonic() - started
        except (EOFError, OSError):
            self._process.join(1)
            code = self._process.exitcode
            self.kill()
            return Failure(incomplete(task, f"its process ended ({'by itself' if code is None else f'exit {code}'})"))
        except BaseException:
            self.kill()
            raise
        if isinstance(answer, Stalled):
            self.kill()
        return answer

    def _wait_ready(self, check: Callable[[], None]) -> None:
        started = time.monotonic()
        while not self._ready:
            check()
            if self._pipe.poll(TICK):
                self._ready = self._pipe.recv() == READY
            elif time.monotonic() - started > START:
                raise EOFError

    def _listen(self, task: Task, watch: Callable[[int], None], check: Callable[[], None]) -> Failure | None:
        since, mark, now_at = time.monotonic(), 0, 0
        while True:
            check()
            if self._pipe.poll(TICK):
                said: Any = self._pipe.recv()
                if not isinstance(said, int):
                    return said  # type: ignore[no-any-return]
                watch(said)
                now_at = said
                mark = min(mark, said)  # it began anew
            if now_at - mark >= MINIMUM:
                since, mark = time.monotonic(), now_at
            elif time.monotonic() - since > self._stall:
                return Stalled(
                    TargetUnavailable(
                        f"{task.file.path} stalled: less than {MINIMUM} bytes came by {task.by} in {self._stall:g} s",
                        hint="check the network; for a slow link raise --stall-timeout, or --transfer http",
                        id="transfer-stalled",
                    )
                )

    def kill(self) -> None:
        """End it now; what it was writing stays where it was."""
        self._process.kill()
        self._process.join(1)
        self._pipe.close()
