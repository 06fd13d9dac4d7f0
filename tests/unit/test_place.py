"""The directory that weights come into: one fetcher at a time, nothing left behind, errors that say what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.errors import BringupError, CheckFailed, TargetUnavailable, UsageError
from bringup.weights.place import WORK, hold


def later(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def test_a_file_gets_its_name_and_nothing_else_stays(tmp_path: Path) -> None:
    with hold(tmp_path / "a/b", later()) as there:
        temp = there.fresh()
        temp.write_bytes(b"x")
        assert there.fresh() != temp
        there.put(temp, "sub/x.json")
        there.fresh().write_bytes(b"half")
        there.flush()
    assert [p.name for p in (tmp_path / "a/b").rglob("*")] == ["sub", "x.json"]
    assert (tmp_path / "a/b/sub/x.json").stat().st_mode & 0o777 == 0o644


def test_a_fetch_that_brought_nothing_leaves_no_directory(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "a/b", later()):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with hold(tmp_path / "a", later()):
        pass
    assert (tmp_path / "a").is_dir()


def test_what_a_killed_one_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / WORK / "deep").mkdir(parents=True)
    (tmp_path / WORK / "deep/1").touch()
    (tmp_path / WORK / "2").symlink_to(tmp_path)
    (tmp_path / WORK / "lock").touch()
    with hold(tmp_path, later()):
        assert [p.name for p in (tmp_path / WORK).iterdir()] == ["lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_second_one_waits_until_its_deadline(tmp_path: Path) -> None:
    with hold(tmp_path, later()) as first:
        first.fresh().write_bytes(b"half")
        started = time.monotonic()
        with pytest.raises(TargetUnavailable) as caught, hold(tmp_path, later(0.3)):
            pass
        assert time.monotonic() - started >= 0.3
        assert caught.value.id == "fetch-busy"
        assert len(list((tmp_path / WORK).iterdir())) == 2  # what the first one has is untouched


def test_a_lock_that_its_holder_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder unlinks the file between our open and our flock: what we locked is not what others find."""
    real = fcntl.flock
    opened: list[int] = []

    def flock(fd: int, how: int) -> None:
        if not opened:
            (tmp_path / WORK / "lock").unlink()
        opened.append(os.fstat(fd).st_ino)
        real(fd, how)

    monkeypatch.setattr("fcntl.flock", flock)
    with hold(tmp_path, later()):
        assert (tmp_path / WORK / "lock").stat().st_ino == opened[-1]
    assert len(opened) == 2


def a_file(path: Path) -> None:
    path.touch()


def a_link_for_the_lock(path: Path) -> None:
    (path / WORK).mkdir(parents=True)
    (path / WORK / "lock").symlink_to(path / "elsewhere")


@pytest.mark.parametrize("change", [a_file, a_link_for_the_lock])
def test_a_directory_that_cannot_be_used(tmp_path: Path, change: Callable[[Path], None]) -> None:
    change(tmp_path / "d")
    with pytest.raises(UsageError, match="cannot be written") as caught, hold(tmp_path / "d", later()):
        pass
    assert caught.value.id == "directory-unwritable"
    assert not (tmp_path / "d/elsewhere").exists()


@pytest.mark.parametrize(
    ("code", "error", "id_"),
    [
        (errno.ENOSPC, CheckFailed, "disk-full"), (errno.EDQUOT, CheckFailed, "disk-full"),
        (errno.EROFS, UsageError, "directory-unwritable"), (errno.EACCES, UsageError, "directory-unwritable"),
    ],
)  # fmt: skip
def test_what_the_filesystem_says(tmp_path: Path, code: int, error: type[BringupError], id_: str) -> None:
    with hold(tmp_path, later()) as there, pytest.raises(error) as caught, there.writing():
        raise OSError(code, os.strerror(code))
    assert caught.value.id == id_
    assert os.strerror(code) in caught.value.message
    assert caught.value.hint
