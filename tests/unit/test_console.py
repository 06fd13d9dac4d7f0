"""What a person sees of a start: on a pipe, with -v, with --quiet, with NO_COLOR."""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Callable

import pytest

from bringup import console
from bringup.console import Console
from bringup.errors import NeverReady
from bringup.ready import Moments
from bringup.records import CheckRecord, Status
from bringup.timeline.live import Expected

LINES = [
    f"2026-01-01T00:00:{second}.000000000Z ({process}) INFO 01-01 00:00:{second} [x.py:1] {text}"
    for second, process, text in (
        ("09", "APIServer pid=7", "vLLM server version 0.32.0, serving model /m"),
        ("10", "APIServer pid=7", "Using max model len 2048"),
        ("12", "EngineCore pid=8", "Initializing a V1 LLM engine (v0.32.0) with config: x"),
    )
]
BEGIN = 1767225600.0
STAGES = [
    "  container started: 1.0 s",
    "  API process: start and imports: 8.0 s",
    "  config: 1.0 s",
    "  tokenizer, engine process: start and imports: 2.0 s",
]


def show(made: Console, expected: Expected | None = None) -> None:
    """A start of three lines, two looks and a token."""
    with made.start("wait", expected) as seen:
        seen(LINES[0] + "\n", Moments(asked=BEGIN, container_started=BEGIN + 1))
        seen("\n".join(LINES[1:]) + "\n", Moments(asked=BEGIN, container_started=BEGIN + 1, first_token=BEGIN + 12))


def err(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, text = capsys.readouterr()
    assert out == "", "standard output is for results"
    return text.splitlines()


def test_a_pipe_gets_a_line_for_each_stage_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console())
    *stages, last = err(capsys)
    assert stages == STAGES
    assert re.fullmatch(r"wait: \d+\.\d s", last)


def test_what_is_expected_is_told_first(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(), Expected({"config": 0.5}, 20.0, "b"))
    lines = err(capsys)
    assert lines[0] == "expected: 20 s to the first token, as in b"
    assert "  config: 1.0 s (last time 0.5 s)" in lines


def test_verbose_has_every_line_of_the_console_once(capsys: pytest.CaptureFixture[str]) -> None:
    show(Console(verbose=True))
    lines = err(capsys)
    assert [line for line in lines if line.startswith("  | ")] == [f"  | {x.partition(' ')[2]}" for x in LINES]
    assert set(STAGES) <= set(lines)


def test_quiet_has_errors_and_what_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    made = Console(quiet=True, verbose=True)
    show(made, Expected({}, 20.0, "b"))
    with made.step("x") as detail:
        detail("y")
    with made.transfer("t"):
        pass
    made.say("z")
    made.checks((CheckRecord(name="c", status=Status.FAIL, found="f", needed="n"),))
    made.probes(())
    made.table("t", ("a", "b"), [("1", "2")])
    assert err(capsys) == []
    made.error(NeverReady("it died", detail="last line", hint="look"))
    made.tell("verdict: fail")
    assert err(capsys) == ["  | last line", "bringup: it died", "  -> look", "verdict: fail"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Console, Terminal]]:
    """A console on a terminal that remembers all it was sent."""

    def make(**variables: str) -> tuple[Console, Terminal]:
        for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"TERM": "xterm-256color"} | variables).items():
            monkeypatch.setenv(name, value)
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        return Console(), stream

    return make


def test_a_terminal_shows_the_stage_that_is_under_way_and_keeps_those_that_ended(
    terminal: Callable[..., tuple[Console, Terminal]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, stream = terminal()
    monkeypatch.setattr(time, "time", lambda: BEGIN + 5)
    with made.start("wait", Expected({"api-imports": 9.0}, 20.0, "b")) as seen:
        seen("", Moments(asked=BEGIN, container_started=BEGIN + 1))
        made.rich._live_stack[0].refresh()
        shown = stream.getvalue()
    assert re.search(r"wait \.\.\. \d s of about 20 s  API process: start and imports 4 s \(of about 9\.0 s\)", shown)
    assert "  container started: 1.0 s" in shown
    assert stream.getvalue().endswith("\x1b[?25h" + stream.getvalue().rpartition("\x1b[?25h")[2]), "the cursor is back"


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=["NO_COLOR", "a dumb terminal"])
def test_no_colour_where_none_is_wanted(
    terminal: Callable[..., tuple[Console, Terminal]], variables: dict[str, str]
) -> None:
    coloured, stream = terminal()
    table = (CheckRecord(name="c", status=Status.FAIL, found="f", needed="n"),)
    coloured.checks(table)
    assert re.search(r"\x1b\[[0-9;]*31m", stream.getvalue()), "red, where nobody minds"
    plain, stream = terminal(**variables)
    plain.checks(table)
    assert not re.search(r"\x1b\[[0-9;]*3\dm", stream.getvalue())


def test_a_pipe_that_is_forced_to_colour_is_still_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    show(Console())
    assert "\x1b[?25l" not in "\n".join(err(capsys)), "no line is drawn anew in a CI's log"


def test_silence_is_broken_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "START_HEARTBEAT", 0.0)
    beaten = threading.Event()
    made = Console()
    tell = made.tell

    def told(text: str) -> None:
        tell(text)
        if text.startswith("wait ..."):
            beaten.set()

    monkeypatch.setattr(made, "tell", told)
    with made.start("wait", None):
        assert beaten.wait(30), "no sign of life"
    assert err(capsys)[0].startswith("wait ... 0 s")
