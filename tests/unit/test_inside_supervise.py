"""The supervisor: the container's exit code tells a dead server from one that was asked to stop."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bringup.errors import WeightsDiffer
from bringup.inside import supervise


class FakeChild:
    """Ends with `code`; `during` happens while it is waited for."""

    def __init__(self, code: int, during: Callable[[], None] = lambda: None) -> None:
        self.code, self.during, self.pid = code, during, 1 << 23  # more than the kernel gives
        self.got: list[int] = []

    def send_signal(self, sig: int, /) -> None:
        self.got.append(sig)

    def wait(self) -> int:
        self.during()
        return self.code


def run(child: FakeChild, before: Callable[[], None] = lambda: None) -> supervise.End:
    def start(argv: Sequence[str], environment: Mapping[str, str]) -> FakeChild:
        assert (argv, environment) == (("server",), {"A": "b"})
        before()
        return child

    return supervise.supervise(("server",), {"A": "b"}, logging.getLogger("test"), start)


@pytest.mark.parametrize(
    ("code", "asked", "expected"),
    [
        (0, True, 0),
        (0, False, 6),
        (1, False, 6),
        (1, True, 1),
        (2, False, 2),
        (-9, False, 137),
        (-15, True, 143),
        (-11, True, 139),
    ],
)
def test_exit_codes(code: int, asked: bool, expected: int) -> None:
    assert supervise.exit_code(code, asked)[0] == expected


@pytest.mark.parametrize("number", supervise.PASSED_ON)
def test_signals_are_passed_on_once(number: signal.Signals) -> None:
    child = FakeChild(0, lambda: signal.raise_signal(number))
    assert run(child) == supervise.End(0, "vLLM stopped as asked (exit 0)", asked=True)
    assert child.got == [number]


def test_a_signal_before_the_child_is_not_lost() -> None:
    child = FakeChild(-15)
    assert run(child, before=lambda: signal.raise_signal(signal.SIGTERM)).code == 143
    assert child.got == [signal.SIGTERM]


def test_handlers_are_given_back() -> None:
    mine = (*supervise.PASSED_ON, signal.SIGALRM)
    handlers = {s: signal.getsignal(s) for s in mine}
    run(FakeChild(0, lambda: signal.raise_signal(signal.SIGTERM)))
    assert {s: signal.getsignal(s) for s in mine} == handlers
    assert signal.alarm(0) == 0


def test_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert run(FakeChild(0)).code == 6
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("ERROR", "vLLM died: it ended by itself (exit 0); the lines above say why")
    ]


class FakePopen(FakeChild):
    """Holds the gate's read end open, as the server it stands for would."""

    made: list[FakePopen]

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], **given: Any) -> None:
        super().__init__(0)
        assert argv == ("server",)
        assert given == {"pass_fds": (int(env[supervise.GATE]),), "start_new_session": True}
        self.gate = os.dup(int(env[supervise.GATE]))
        self.killed = False
        self.made.append(self)

    def kill(self) -> None:
        self.killed = True

    def word(self) -> bytes:
        try:
            return os.read(self.gate, 9)
        finally:
            os.close(self.gate)


@pytest.fixture
def popen(monkeypatch: pytest.MonkeyPatch) -> list[FakePopen]:
    FakePopen.made = []
    monkeypatch.setattr(subprocess, "Popen", FakePopen)
    return FakePopen.made


def test_the_server_gets_the_word_after_the_check(popen: list[FakePopen]) -> None:
    started: list[int] = []
    child = supervise.start_beside(("server",), {"A": "b"}, lambda: started.append(len(popen)))
    assert started == [1]
    assert child is popen[0]
    assert popen[0].word() == b"1"
    assert not popen[0].killed


def test_other_weights_end_the_server_without_the_word(popen: list[FakePopen]) -> None:
    def check() -> None:
        raise WeightsDiffer("no", hint="")

    with pytest.raises(WeightsDiffer):
        supervise.start_beside(("server",), {}, check)
    assert popen[0].killed
    assert popen[0].word() == b""


def test_a_server_that_died_meanwhile_is_left_to_the_supervisor(popen: list[FakePopen]) -> None:
    child = supervise.start_beside(("server",), {}, lambda: os.close(popen[0].gate))
    assert child is popen[0]


# The end of all that the server started


def process(proc: Path, pid: int, name: str, state: str, session: int) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) {state} 1 {pid} {session} 0 -1 4194304")


def killed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: seen.append((pid, number)))
    return seen


def test_what_is_left_of_a_session_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, name, state, session in (
        (7, "api", "Z", 7), (8, "VLLM::x) R 1 1 99", "T", 7), (9, "worker", "R", 7), (10, "sshd", "S", 10),
    ):  # fmt: skip
        process(tmp_path, pid, name, state, session)
    (tmp_path / "11").mkdir()  # it ended meanwhile
    seen = killed(monkeypatch)
    supervise.end_session(7, proc=tmp_path)
    assert sorted(seen) == [(8, signal.SIGKILL), (9, signal.SIGKILL)]


def test_what_ends_by_itself_is_not_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(tmp_path, 8, "resource tracker", "S", 7)
    seen = killed(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda _: shutil.rmtree(tmp_path / "8"))
    supervise.end_session(7, patience=60, proc=tmp_path)
    assert seen == []


def test_a_server_that_does_not_end_is_killed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the alarm that its first signal sets, and no later one puts off."""
    alarms: list[int] = []
    ended: list[tuple[int, float]] = []
    stopping: list[str] = []
    monkeypatch.setattr(signal, "alarm", alarms.append)
    monkeypatch.setattr(supervise, "end_session", lambda pid, patience=0.0: ended.append((pid, patience)))

    def during() -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGALRM):
            signal.raise_signal(number)

    child = FakeChild(-9, during)
    argv = ("server", "--shutdown-timeout", "3")
    log = logging.getLogger("test")
    end = supervise.supervise(argv, {}, log, lambda *_: child, lambda: stopping.append("now"))
    assert end == supervise.End(137, "vLLM was ended by SIGKILL", asked=True)
    assert alarms == [3 + supervise.AFTER_DRAIN, 0]
    assert ended == [(child.pid, 0.0), (child.pid, supervise.PATIENCE)]
    assert stopping == ["now"]
    assert "did not end within 7 s, and is killed" in caplog.text


@pytest.mark.parametrize("number", supervise.PASSED_ON)
def test_a_held_container_ends_at_a_signal(number: signal.Signals, caplog: pytest.LogCaptureFixture) -> None:
    before = {s: signal.getsignal(s) for s in supervise.PASSED_ON}
    pauses: list[int] = []

    def pause() -> None:
        pauses.append(1)
        if len(pauses) == 3:
            signal.raise_signal(number)

    try:
        supervise.hold(supervise.End(6, "vLLM died: (exit 1)"), logging.getLogger("test"), pause)
        signal.raise_signal(number)  # and a second one does not disturb the end
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
    assert len(pauses) == 3
    (line,) = [r.getMessage() for r in caplog.records]
    assert "vLLM died: (exit 1)" in line
    assert "SIGTERM" in line
    assert line.endswith("exit code 6")
