"""A start while it happens, with recorded consoles and a clock that the test turns."""

from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime

import pytest

from bringup.timeline import Anchors
from bringup.timeline.live import Expected, Follower, expected
from bringup.timeline.show import SHOWN
from tests.unit import timeline_logs as logs

STAMP = "%Y-%m-%dT%H:%M:%S.%f000Z"


def console(name: str) -> str:
    """As the engine gives it, with the carriage returns of its bars."""
    return (logs.DATA / f"{name}.log").read_bytes().decode()


COLD = expected(console("console-cold"), logs.clock("console-cold"), "the cold one")


def at(line: str) -> float:
    """When the engine had a line."""
    return datetime.fromisoformat(line.partition(" ")[0]).timestamp()


def until(clock: Anchors, now: float) -> Anchors:
    """What the clock outside has seen by then."""
    known = dataclasses.asdict(clock)
    return Anchors(**{name: t if t is not None and t <= now else None for name, t in known.items()})


def replay(name: str, earlier: Expected | None = None, step: float = 1.0) -> tuple[Follower, list[str], list[str]]:
    """Look every `step` seconds: what was told, and the stages that were seen under way, each once."""
    lines, clock = [line + "\n" for line in console(name).split("\n") if line], logs.clock(name)
    follower, told, going = Follower(earlier), [], []
    assert clock.container_started
    now = clock.container_started
    while follower.whole is None:
        now += step
        new = [line for line in lines if at(line) <= now]
        lines = lines[len(new) :]
        follower.feed("".join(new), until(clock, now))
        told += follower.news(now)
        going += [follower.now(now)] if follower.now(now) else []
    return follower, told, list(dict.fromkeys(re.sub(r" \d+ s.*", "", text) for text in going))


@pytest.mark.parametrize("name", ["console-cold", "console-warm"])
@pytest.mark.parametrize("step", [0.25, 1.0, 7.0])
def test_each_stage_is_told_once_when_it_has_ended(name: str, step: float) -> None:
    follower, told, _ = replay(name, step=step)
    assert [line.partition(":")[0] for line in told] != []
    names = [s.name for s in follower.ended if (s.seconds or 0.0) >= SHOWN]
    assert [line.strip().rpartition(": ")[0] for line in told] == names
    assert follower.whole == pytest.approx(sum(s.seconds or 0.0 for s in follower.ended), rel=0.02)
    assert follower.now(0.0) == "", "nothing is under way after the first token"


def test_the_figures_are_those_of_the_log() -> None:
    follower, told, _ = replay("console-warm")
    seconds = {s.name: s.seconds for s in follower.ended}
    differ = []
    for line in told:
        name, _, figure = line.strip().rpartition(": ")
        if float(figure.removesuffix(" s")) != pytest.approx(seconds[name], abs=0.06):
            differ.append(name)
    assert differ == ["model load"], "a CPU does not log its end: what is told is the end of the read"


def test_what_is_under_way_is_what_the_earlier_start_had() -> None:
    _, _, going = replay("console-warm", COLD)
    assert going == ["API process: start and imports", "executor and worker", "memory profiling", "kernel warm-up"]
    _, _, unknown = replay("console-warm")
    assert unknown[-1] == "KV cache allocated, kernels prepared", "which a GPU would do next"


def test_before_the_first_line_the_imports_are_under_way() -> None:
    follower = Follower(COLD)
    follower.feed("", Anchors(asked=100.0, container_started=100.3))
    assert follower.now(105.3) == "API process: start and imports 5 s (of about 11.2 s)"
    assert follower.news(105.3) == ["  container started: 0.3 s (last time 0.3 s)"]
    assert Follower().now(1.0) == ""


def test_an_earlier_start_gives_the_figures_beside() -> None:
    assert COLD is not None
    assert (round(COLD.whole, 1), COLD.source) == (58.5, "the cold one")
    _, told, _ = replay("console-warm", COLD)
    assert "  memory profiling: 11.8 s (last time 36.3 s)" in told
    assert not [line for line in told if "longer" in line], "a start that is faster is not late"


def test_a_stage_that_takes_much_longer_is_told_once_with_the_last_line() -> None:
    clock = logs.clock("console-warm")
    assert clock.container_started
    lines = [line for line in console("console-warm").split("\n") if line]
    head = [line for line in lines if at(line) < clock.container_started + 15]
    follower = Follower(COLD)
    follower.feed("\n".join(head), until(clock, at(head[-1])))
    began = at(head[-1])
    assert not [t for t in follower.news(began + 15) if "longer" in t], "expected are 8.2 s"
    late = [t for second in range(16, 60) for t in follower.news(began + second)]
    (line,) = late
    assert line.startswith("  executor and worker 1")
    assert "much longer than last time; the log's last line: " in line
    blind = Follower()
    blind.feed("\n".join(head), until(clock, at(head[-1])))
    assert not [t for t in blind.news(began + 600) if "longer" in t], "nothing is known to be longer than"


def test_line_by_line_is_the_same_as_at_once() -> None:
    clock = logs.clock("console-cold")
    text = console("console-cold")
    whole, single = Follower(), Follower()
    whole.feed(text, clock)
    for line in text.split("\n"):
        single.feed(line + "\n", clock)
    assert single.ended == whole.ended
    assert single.whole == whole.whole


def test_a_start_without_an_end_is_nothing_to_expect() -> None:
    clock = dataclasses.replace(logs.clock("console-cold"), first_token=None)
    assert expected(console("console-cold"), clock, "x") is None
    assert expected("2026-01-01T00:00:00.000000000Z hello\n", logs.clock("console-cold"), "x") is None


@pytest.mark.parametrize(("release", "runner"), logs.STARTS)
def test_every_release_is_followed(release: str, runner: str) -> None:
    shown = logs.as_console(release, runner).split("\n")
    follower = Follower()
    told: list[str] = []
    for line, text in zip(logs.lines(release, runner), shown, strict=False):
        now = logs.ASKED + line["at"]
        follower.feed(f"{datetime.fromtimestamp(now, UTC).strftime(STAMP)} {text}\n", until(logs.CLOCK, now))
        told += follower.news(now)
    follower.feed("", logs.CLOCK)
    told += follower.news(logs.ASKED + 60)
    assert follower.whole == 46.25
    names = [line.strip().rpartition(": ")[0] for line in told]
    assert {"API process: start and imports", "model load", "memory profiling", "graph capture"} <= set(names)
    assert len(names) == len(set(names))
