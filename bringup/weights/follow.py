"""Hash and flush a file while it still comes, so that little of either is left when it is there.

hf_transfer writes its chunks in any order and leaves holes between them; the filesystem tells where the first hole is
(SEEK_HOLE). What this reads before that may yet be wrong: a filesystem without holes, a chunk that is written twice. So
it never decides alone. It feeds sha256 and BLAKE3 with the same bytes; when the file is complete, the BLAKE3 of the
whole file is computed with all cores. If both are equal, the file is what went into the sha256; if not, the file is
hashed again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bringup.weights.digest import Digests, digests, has_blake3, new_blake3

LEAST = 64 * 2**20  # a smaller file is hashed when it is there
MARGIN = 8 * 2**20  # bytes before the hole that may still be on their way into the file
PIECE = 4 * 2**20
DIRTY = 64 * 2**20  # bytes that may wait for their flush
PAUSE = 0.05


class Follower:
    """Follows one attempt at a file; `check` raises when all is over. `hashing`: else it only flushes."""

    def __init__(self, path: Path, size: int, check: Callable[[], None], *, hashing: bool = True) -> None:
        self._path, self._size, self._check = path, size, check
        self._complete, self._stopped = threading.Event(), threading.Event()
        self._seen: Digests | None = None
        parts = [self._flush] + ([self._hash] if hashing and has_blake3() else [])
        self._threads = [threading.Thread(target=self._follow, args=(p,), daemon=True) for p in parts]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """The attempt failed: let the file go."""
        self._stopped.set()

    def complete(self) -> None:
        """All bytes are in the file."""
        self._complete.set()

    def digests(self) -> Digests:
        """The hashes of the complete file."""
        for thread in self._threads[1:]:
            while thread.is_alive():
                self._check()
                thread.join(PAUSE)
        seen = self._seen
        if seen is not None and digests(self._path, self._check, sha256=False).blake3 == seen.blake3:
            return seen
        return digests(self._path, self._check)

    def _follow(self, part: Callable[[int], None]) -> None:
        """Run a part on the open file; whatever ends it, the file is still hashed and flushed at its end."""
        try:
            while not self._path.exists():
                self._pause()
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                part(fd)
            finally:
                os.close(fd)
        except (OSError, _Stop):
            pass

    def _go_on(self) -> None:
        try:
            self._check()
        except BaseException as e:
            raise _Stop from e
        if self._stopped.is_set():
            raise _Stop

    def _pause(self) -> None:
        self._go_on()
        self._stopped.wait(PAUSE)

    def _flush(self, fd: int) -> None:
        flushed = 0
        while not self._complete.is_set():
            self._pause()
            there = os.fstat(fd).st_blocks * 512
            if there - flushed >= DIRTY:
                os.fdatasync(fd)
                flushed = there

    def _hash(self, fd: int) -> None:
        sha, fast, at = hashlib.sha256(), new_blake3(), 0
        spare, buffer = (memoryview(bytearray(PIECE)) for _ in range(2))
        with ThreadPoolExecutor(1) as pool:  # sha256 is the slow one: nothing else is done in its thread
            busy: Future[Any] = pool.submit(int)
            while at < self._size:
                complete = self._complete.is_set()  # before the look at the file
                ready = self._size if complete else self._front(fd, at) - MARGIN
                if ready - at < (1 if complete else PIECE):
                    self._pause()
                    continue
                while at < ready:
                    got = os.preadv(fd, [buffer[: ready - at]], at)
                    if not got:  # shorter than it was: somebody else must find out why
                        return
                    fast.update(buffer[:got])
                    busy.result()
                    busy = pool.submit(sha.update, buffer[:got])
                    spare, buffer = buffer, spare
                    at += got
                    self._go_on()
            busy.result()
        self._seen = Digests(sha.hexdigest(), fast.hexdigest())

    def _front(self, fd: int, at: int) -> int:
        """Where the first hole is."""
        try:
            return os.lseek(fd, at, os.SEEK_HOLE)
        except OSError:  # nothing is there yet
            return at


class _Stop(Exception):
    """Nothing is left to do."""
