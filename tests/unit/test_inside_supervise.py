"""The supervisor: the container's exit code tells a dead server from one that was asked to stop."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from bringup.errors import WeightsDiffer
from bringup.inside import supervise


class FakeChild:
    """Ends with `code`; `during` happens while it is waited for."""

    def __init__(self, code: int, during: Callable[[], None] = lambda: None) -> None:
        self.code, self.during = code, during
        self.got: list[int] = []

    def send_signal(self, sig: int, /) -> None:
        self.got.append(sig)

    def wait(self) -> int:
        self.during()
        return self.code


def run(child: FakeChild, before: Callable[[], None] = lambda: None) -> int:
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
    assert run(child) == 0
    assert child.got == [number]


def test_a_signal_before_the_child_is_not_lost() -> None:
    child = FakeChild(-15)
    assert run(child, before=lambda: signal.raise_signal(signal.SIGTERM)) == 143
    assert child.got == [signal.SIGTERM]


def test_handlers_are_given_back() -> None:
    handlers = {s: signal.getsignal(s) for s in supervise.PASSED_ON}
    run(FakeChild(0))
    assert {s: signal.getsignal(s) for s in supervise.PASSED_ON} == handlers


def test_the_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert run(FakeChild(0)) == 6
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
