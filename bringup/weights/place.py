"""The directory that weights are put into: one fetcher at a time, temp files apart, final names for good files only."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bringup.errors import BringupError, CheckFailed, TargetUnavailable, UsageError
from bringup.lock import is_ours

WORK = ".bringup-fetch"  # below the directory: the same filesystem, so that a rename is one step
PAUSE = 0.1  # seconds between two looks at a held lock
FULL = (errno.ENOSPC, errno.EDQUOT)


class Place:
    """A directory that this process holds the lock of."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._work = directory / WORK
        self._names = itertools.count(1)

    def fresh(self) -> Path:
        """A name in the temp directory that nothing ever had: hf_transfer does not truncate what it finds."""
        return self._work / str(next(self._names))

    def put(self, temp: Path, path: str) -> None:
        """Give a checked and flushed file its final name."""
        with self.writing():
            target = self.directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            temp.chmod(0o644)
            temp.replace(target)

    def flush(self) -> None:
        """Make the names as durable as the bytes."""
        with self.writing():
            for directory, below, _ in os.walk(self.directory):
                below[:] = [name for name in below if name != WORK]
                flush(Path(directory))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn what the filesystem refuses into our errors."""
        try:
            yield
        except OSError as e:
            raise unwritable(self.directory, e) from e

    def free(self) -> int:
        """Bytes that this user may still write here."""
        fs = os.statvfs(self.directory)
        return fs.f_bavail * fs.f_frsize


def flush(path: Path) -> None:
    """fsync of a file or a directory."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def unwritable(directory: Path, error: OSError) -> BringupError:
    """What an error of the filesystem means: no space, or no way to write there."""
    if error.errno in FULL:
        return CheckFailed(
            f"the disk of {directory} is full: {error.strerror}", hint="free space, then fetch again: whole files stay",
            id="disk-full",
        )  # fmt: skip
    return UsageError(
        f"{directory} cannot be written: {error.strerror or error}", hint="name a directory that you may write to",
        id="directory-unwritable",
    )  # fmt: skip


@contextmanager
def hold(directory: Path, deadline: float) -> Iterator[Place]:
    """Make the directory, wait for its lock until `deadline` (monotonic), and leave no trace of the work.

    A killed fetcher leaves temp files, but no lock: the next one clears them.

    Raises:
        TargetUnavailable: another fetcher holds it (fetch-busy).
        UsageError: it cannot be written to (directory-unwritable).
        CheckFailed: the disk is full (disk-full).
    """
    place = Place(directory)
    made: list[Path] = []
    try:
        with place.writing():
            made = [p for p in (directory, *directory.parents) if not p.exists()]
            fd = _lock(directory, deadline)
    except BaseException:
        _remove(made)
        raise
    try:
        with place.writing():
            _clear(directory / WORK)
        yield place
    finally:
        with contextlib.suppress(OSError):
            _clear(directory / WORK)
            (directory / WORK / "lock").unlink()
            (directory / WORK).rmdir()  # fails where the next one has made its lock already: then it is theirs
        os.close(fd)
        _remove(made)


def _lock(directory: Path, deadline: float) -> int:
    while True:
        (directory / WORK).mkdir(parents=True, exist_ok=True)
        path = directory / WORK / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)  # group 0 shares a volume
        except FileNotFoundError:  # its last holder has removed the directory since
            continue
        if is_ours(fd, path):
            return fd
        if time.monotonic() >= deadline:
            raise TargetUnavailable(
                f"another fetch works in {directory} and did not end before the deadline",
                hint="wait for it, or raise --fetch-timeout", id="fetch-busy",
            )  # fmt: skip
        time.sleep(PAUSE)


def _clear(work: Path) -> None:
    for entry in work.iterdir():
        if entry.name == "lock":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _remove(made: list[Path]) -> None:
    """Remove the directories that we made and that hold nothing: a failed fetch leaves none."""
    for path in made:
        with contextlib.suppress(OSError):
            path.rmdir()
