"""Device files, the kernel's log and the toolkit, from a made-up root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bringup.edge import node, process
from bringup.edge.node import Xid
from bringup.edge.process import Outcome
from bringup.errors import TargetUnavailable

RECORDS = [
    b"6,1,100000,-;Linux version 6.8.0\n SUBSYSTEM=x\n",
    b"3,2,5000000,-;NVRM: Xid (PCI:0000:0A:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n",
    b"3,3,6500000,-;NVRM: Xid (PCI:0000:0b:00): 31, pid=42, name=python3, Ch 00000008\n",
    b"3,4,7000000,-;NVRM: Xid (PCI:0000:0b:00): 31, pid=42, name=python3, Ch 00000009\n",
    b"3,5,8000000,-;usb 1-1: Xid is no error of a GPU\n",
]
SEEN = (Xid(bus="0000:0a:00", code=79, count=1, last=5.0), Xid(bus="0000:0b:00", code=31, count=2, last=7.0))


def no_toolkit(*_: Any, **__: Any) -> Outcome:
    raise TargetUnavailable("the program 'nvidia-ctk' is not on the PATH")


@pytest.fixture(autouse=True)
def absent_toolkit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "run", no_toolkit)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reading the kernel's log gives, one record (or error) a call; then nothing more."""
    given: list[Any] = list(RECORDS)
    reads: Iterator[Any] = iter(())

    def read(_: int, __: int) -> bytes:
        nonlocal reads
        if given:
            reads = iter([*given, BlockingIOError()])
            given.clear()
        one = next(reads)
        if isinstance(one, Exception):
            raise one
        assert isinstance(one, bytes)
        return one

    monkeypatch.setattr(os, "read", read)
    return given


def a_root(tmp_path: Path, *names: str) -> Path:
    (tmp_path / "dev").mkdir()
    for name in names:
        (tmp_path / "dev" / name).touch()
    return tmp_path


def test_what_there_is_around_a_gpu(tmp_path: Path, log: list[Any]) -> None:
    root = a_root(tmp_path, "nvidiactl", "nvidia-uvm", "nvidia0", "nvidia10", "nvidia2", "nvidia-uvm-tools", "kmsg")
    found = node.read(root)
    assert (found.control, found.uvm, found.cards, found.wsl) == (True, True, (0, 2, 10), False)
    assert found.toolkit == ""
    assert (found.xids, found.log_from) == (SEEN, 0.1)


def test_a_host_without_any_of_it(tmp_path: Path) -> None:
    found = node.read(a_root(tmp_path))
    assert (found.control, found.uvm, found.cards, found.wsl) == (False, False, (), False)
    assert (found.xids, found.log_from) == (None, None)  # no log is no evidence


def test_wsl(tmp_path: Path) -> None:
    assert node.read(a_root(tmp_path, "dxg")).wsl is True


def test_a_record_that_was_overwritten_is_passed_over(tmp_path: Path, log: list[Any]) -> None:
    log.insert(1, BrokenPipeError())
    records = node.kernel_log(a_root(tmp_path, "kmsg") / "dev/kmsg")
    assert records is not None
    assert len(records) == len(RECORDS)
    assert node.xids(records) == SEEN


@pytest.mark.parametrize("first", [PermissionError(), b""], ids=["not permitted", "empty"])
def test_a_log_that_gives_nothing_is_not_a_log_without_errors(tmp_path: Path, log: list[Any], first: Any) -> None:
    log[:] = [first]
    assert node.kernel_log(a_root(tmp_path, "kmsg") / "dev/kmsg") is None


def test_something_else_in_the_place_of_the_log_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "_RECORDS", 1000)
    monkeypatch.setattr(os, "read", lambda *_: b"noise\n")
    assert node.kernel_log(a_root(tmp_path, "kmsg") / "dev/kmsg") is None


@pytest.mark.parametrize(
    ("code", "out", "version"),
    [
        (
            0,
            "NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d0db00d9b1d73c0128c8962c55f4d\n",
            "1.17.8",
        ),
        (0, "something else", None),
        (1, "NVIDIA Container Toolkit CLI version 1.17.8", None),
    ],
)
def test_the_toolkit_says_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, out: str, version: str | None
) -> None:
    monkeypatch.setattr(process, "run", lambda argv, **_: Outcome(tuple(argv), code, out, "", 0.1))
    assert node.read(a_root(tmp_path)).toolkit == version


def test_a_toolkit_that_hangs_is_not_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_: Any, **__: Any) -> Outcome:
        raise TargetUnavailable("`nvidia-ctk --version` gave no result within 10 s")

    monkeypatch.setattr(process, "run", hangs)
    assert node.read(a_root(tmp_path)).toolkit is None
