"""Marks: what our processes reached, as records in server.jsonl."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bringup.inside import marks
from tests.unit.launchfakes import lines, reached


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """server.jsonl as the environment names it; the logger is as before afterwards."""
    logger = logging.getLogger("bringup.inside.marks")
    handlers, level = logger.handlers[:], logger.level
    logger.handlers = []
    monkeypatch.setenv(marks.VARIABLE, str(tmp_path / "server.jsonl"))
    yield tmp_path / "server.jsonl"
    logger.handlers = handlers
    logger.setLevel(level)


def test_the_process_first_then_the_marks_in_order(log: Path) -> None:
    marks.begin()
    for name in ("api imports", "config made", "engine ready"):
        marks.reached(name)
    first, *rest = lines(log)
    assert first["msg"] == "process started at %.3f"
    assert [(e["msg"], e["args"]) for e in rest] == [
        ("reached %s", ["api imports"]),
        ("reached %s", ["config made"]),
        ("reached %s", ["engine ready"]),
    ]
    assert {(e["logger"], e["pid"], e["level"]) for e in (first, *rest)} == {
        ("bringup.inside.marks", os.getpid(), "INFO")
    }
    assert first["t"] <= rest[0]["t"] <= rest[-1]["t"]


def test_the_process_start_is_the_kernels() -> None:
    born = marks.born()
    assert born < time.time()
    # The kernel's own statement of the same: the directory of the process in /proc, made at its start or later.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    assert born == pytest.approx(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / 100, abs=1)


def test_a_path_that_is_given_beats_the_environment(log: Path, tmp_path: Path) -> None:
    marks.begin(str(tmp_path / "other.jsonl"))
    marks.reached("entry")
    assert reached(tmp_path / "other.jsonl") == ["entry"]
    assert not log.exists()


def test_begun_twice_each_mark_stands_once(log: Path) -> None:
    marks.begin()
    marks.begin()
    marks.reached("entry")
    assert reached(log) == ["entry"]


def test_without_a_path_nobody_hears_them(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(marks.VARIABLE)
    marks.begin()
    marks.reached("api imports")
    assert not log.exists()
    assert capsys.readouterr() == ("", "")


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, log: Path) -> None:
    marks.begin(str(tmp_path / "missing" / "server.jsonl"))
    marks.reached("entry")
    assert list(tmp_path.iterdir()) == []
