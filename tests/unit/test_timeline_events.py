"""Lines become events: server.jsonl, and the console of any release, through whatever printed it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from bringup.timeline.events import Event, read_events
from bringup.timeline.points import timed


def one(line: str, reference: datetime | None = None) -> Event:
    (event,) = read_events(line, reference)
    return event


SHAPES = {
    "0.11.2 in colour": "\x1b[1;36m(APIServer pid=1)\x1b[0;0m INFO 03-01 12:00:09 [api_server.py:1977] hello 5",
    "formatter": "(APIServer pid=1) INFO 03-01 12:00:09 [api_server.py:1977] hello 5",
    "twice": "(APIServer pid=1) (pid=1) INFO 03-01 12:00:09 [api_server.py:1977] hello 5",
    "docker": "2026-03-01T12:00:09.250000000Z (APIServer pid=1) INFO 03-01 12:00:09 [api_server.py:1977] hello 5",
    "compose": "server-1  | (APIServer pid=1) INFO 03-01 12:00:09 [api_server.py:1977] hello 5",
    "windows": "(APIServer pid=1) INFO 03-01 12:00:09 [api_server.py:1977] hello 5\r",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_the_console_is_the_same_event(shape: str) -> None:
    event = one(SHAPES[shape])
    assert (event.pid, event.proc, event.level, event.file, event.line, event.text) == (
        1, "APIServer", "INFO", "api_server.py", 1977, "hello 5",
    )  # fmt: skip
    if shape == "docker":
        assert (event.t, event.local) == (datetime(2026, 3, 1, 12, 0, 9, 250000, UTC).timestamp(), False)
    else:
        assert (event.t, event.local) == (datetime(2000, 3, 1, 12, 0, 9, tzinfo=UTC).timestamp(), True)
    assert not event.exact


def test_a_record_keeps_template_and_values() -> None:
    record = {"t": 5.5, "pid": 7, "proc": "EngineCore", "level": "INFO", "logger": "vllm.x", "func": "f",
              "file": "x.py", "line": 3, "msg": "took %.2f s", "args": [1.234]}  # fmt: skip
    event = one(json.dumps(record))
    assert (event.t, event.local, event.exact) == (5.5, False, True)
    assert (event.msg, event.args, event.text) == ("took %.2f s", (1.234,), "took 1.23 s")
    assert (event.pid, event.proc, event.logger, event.file, event.line) == (7, "EngineCore", "vllm.x", "x.py", 3)


@pytest.mark.parametrize(
    ("msg", "args", "text"),
    [
        ("plain %", [], "plain %"),
        ("took %.2f s", ["long"], "took long s"),
        ("%s and %s", ["one"], "one and %s"),
        ("%s", {"a": 1}, "{'a': 1}"),
        ("%d of %d", [1, 2, 3], "1 of 2"),
    ],
)
def test_values_that_do_not_fit_are_put_in_as_they_are(msg: str, args: Any, text: str) -> None:
    assert one(json.dumps({"t": 1, "msg": msg, "args": args})).text == text


@pytest.mark.parametrize(
    "line", ["{", "{}", '{"t": 1}', '{"msg": "x"}', '{"t": "1", "msg": "x"}', '{"t": NaN, "msg": "x"}']
)
def test_what_is_no_record_is_left_out(line: str) -> None:
    assert read_events(line) == ()


def test_a_mark_and_a_birth() -> None:
    made = {"t": 2.0, "pid": 1, "logger": "bringup.inside.marks", "msg": "reached %s", "args": ["api imports"]}
    assert one(json.dumps(made)).mark == "api imports"
    assert one(json.dumps(made | {"logger": "vllm.x"})).mark == ""
    birth = made | {"msg": "process started at %.3f", "args": [1.5]}
    assert (one(json.dumps(birth)).born, one(json.dumps(made)).born) == (1.5, None)


def test_of_a_bar_the_last_state_counts() -> None:
    event = one("a.safetensors:  50%|#  |\ra.safetensors: 100%|###| 3.09G/3.09G [00:15<00:00, 203MB/s]")
    assert event.text.startswith("a.safetensors: 100%")
    assert (event.level, event.t) == ("", None)


def test_a_line_without_a_time_gets_that_of_the_line_before() -> None:
    events = timed(read_events("INFO:     early\n(A pid=1) INFO 03-01 12:00:09 [x.py:1] hello\nINFO:     late\n"))
    assert [(e.t is None, e.approximate) for e in events] == [(True, False), (False, False), (False, True)]
    assert events[2].t == events[1].t


def test_with_a_moment_of_reference_console_times_have_a_year_and_a_zone() -> None:
    line = "INFO 12-31 23:59:59 [x.py:1] hello"
    zone = timezone(timedelta(hours=2))
    event = one(line, datetime(2027, 1, 1, 0, 5, tzinfo=zone))
    assert (event.t, event.local) == (datetime(2026, 12, 31, 23, 59, 59, tzinfo=zone).timestamp(), False)


def test_a_log_that_runs_into_the_new_year_stays_in_order() -> None:
    first, second = read_events("INFO 12-31 23:59:59 [x.py:1] a\nINFO 01-01 00:00:04 [x.py:1] b")
    assert first.t is not None
    assert second.t == first.t + 5


@pytest.mark.parametrize("line", ["INFO 13-45 99:00:00 [x.py:1] x", "2026-99-99T00:00:00Z INFO [x.py:1] x"])
def test_a_time_that_is_none_leaves_the_line(line: str) -> None:
    assert one(line).t is None
