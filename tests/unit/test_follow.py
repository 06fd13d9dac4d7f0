"""Hashing a file while it comes: right whatever the order of its parts, and never believed without a second look."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bringup.weights import follow
from bringup.weights.digest import Digests, digests, nothing
from bringup.weights.follow import Follower

DATA = os.urandom(64 * 4096)
PAGE = 4096


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "MARGIN", PAGE)
    monkeypatch.setattr(follow, "PIECE", 2 * PAGE)
    monkeypatch.setattr(follow, "DIRTY", 8 * PAGE)
    monkeypatch.setattr(follow, "PAUSE", 0.002)


@pytest.fixture
def full_hashes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The looks at the complete file: was sha256 computed there?"""
    looks: list[bool] = []

    def watched(path: Path, check: Callable[[], None] = nothing, *, sha256: bool = True) -> Digests:
        looks.append(sha256)
        return digests(path, check, sha256=sha256)

    monkeypatch.setattr(follow, "digests", watched)
    return looks


def write(path: Path, at: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.pwrite(fd, data, at)
    finally:
        os.close(fd)


def ended(follower: Follower) -> bool:
    for thread in follower._threads:
        thread.join(5)
    return not any(t.is_alive() for t in follower._threads)


def test_parts_in_any_order(tmp_path: Path, full_hashes: list[bool]) -> None:
    path = tmp_path / "f"
    follower = Follower(path, len(DATA), nothing)
    time.sleep(0.01)  # it waits for the file
    for part in [0, 1, 3, 2, 7, 6, 5, 4]:
        write(path, part * 8 * PAGE, DATA[part * 8 * PAGE : (part + 1) * 8 * PAGE])
        time.sleep(0.01)
    follower.complete()
    found = follower.digests()
    (tmp_path / "g").write_bytes(DATA)
    assert found == digests(tmp_path / "g")
    assert full_hashes == [False]  # the sha256 is what was computed on the way
    assert ended(follower)


def test_bytes_that_changed_after_they_were_read(tmp_path: Path, full_hashes: list[bool]) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(len(DATA)))  # a filesystem that shows no holes, or a part that is written twice
    follower = Follower(path, len(DATA), nothing)
    time.sleep(0.1)
    write(path, 0, DATA)
    follower.complete()
    found = follower.digests()
    assert found == digests(path)
    assert full_hashes == [False, True]


def test_a_file_that_becomes_shorter(tmp_path: Path, full_hashes: list[bool]) -> None:
    path = tmp_path / "f"
    path.write_bytes(DATA[: 10 * PAGE])
    follower = Follower(path, len(DATA), nothing)
    follower.complete()
    assert ended(follower)
    path.write_bytes(DATA)
    assert follower.digests() == digests(path)
    assert full_hashes == [True]


def test_an_attempt_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(DATA[: 10 * PAGE])
    follower = Follower(path, len(DATA), nothing)
    follower.stop()
    assert ended(follower)


def test_it_ends_when_all_is_over(tmp_path: Path) -> None:
    over: list[None] = []

    def check() -> None:
        if over:
            raise KeyboardInterrupt

    (tmp_path / "f").write_bytes(DATA[: 10 * PAGE])
    followers = [Follower(tmp_path / name, len(DATA), check) for name in ("f", "never there")]
    over.append(None)
    assert all(ended(f) for f in followers)


def test_without_the_package_or_without_hashing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_hashes: list[bool]
) -> None:
    path = tmp_path / "f"
    path.write_bytes(DATA)
    assert len(Follower(path, len(DATA), nothing, hashing=False)._threads) == 1
    monkeypatch.setattr(follow, "has_blake3", lambda: False)
    follower = Follower(path, len(DATA), nothing)
    follower.complete()
    assert follower.digests().sha256 == digests(path).sha256
    assert full_hashes == [True]
