"""Named moments of a start: from the rules' matches, our marks and the clock outside; and what vLLM stated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from bringup.timeline.events import Event
from bringup.timeline.rules import Match, Rule, figure

QUARTER = 900.0  # seconds; zones differ by multiples of a quarter of an hour, and so do years
SLACK = 5.0  # seconds by which two clocks may differ
TEXT_FACTS = {"vllm_version", "attention_backend"}
TEXT_LIMIT = 200


@dataclass(frozen=True)
class Anchors:
    """What was seen from outside, epoch seconds; None: not seen.

    `asked`: somebody asked for the start; `container_started`: the container engine's word; `first_200`: /health
    answered 200; `first_token`: a token arrived.
    """

    asked: float | None = None
    container_started: float | None = None
    first_200: float | None = None
    first_token: float | None = None


@dataclass(frozen=True)
class Point:
    """A moment. `t`: epoch seconds, None where the log has no times. `index`: of its line, -1 for the clock outside.

    `source`: clock, mark, template (an exact record) or text. `approximate`: good to a second or so.
    """

    t: float | None
    index: int
    source: str
    approximate: bool = False

    def is_before(self, other: Point) -> bool:
        """By time where both have one; lines of the same time by their order."""
        if self.t is None or other.t is None or self.t == other.t:
            return self.index < other.index
        return self.t < other.t


@dataclass(frozen=True)
class Stated:
    """A duration in vLLM's words, seconds. `coarse`: how many figures in whole seconds it is the sum of, else 0."""

    seconds: float
    coarse: int = 0


@dataclass
class Points:
    """All that was found; `zone`: epoch (times are comparable with other clocks), log (only among themselves), none."""

    at: dict[str, Point] = field(default_factory=dict)
    stated: dict[str, Stated] = field(default_factory=dict)
    facts: dict[str, float | int | str] = field(default_factory=dict)
    last: float | None = None
    zone: str = "none"

    def first(self, names: Iterable[str], until: float = math.inf) -> tuple[str, Point] | None:
        """The first of these points that was seen with a time up to `until`; else the first seen at all."""
        seen = [(name, self.at[name]) for name in names if name in self.at]
        timed = [(name, p) for name, p in seen if p.t is not None]
        fitting = [(name, p) for name, p in timed if p.t is not None and p.t <= until]
        return next(iter(fitting or timed or seen), None)

    def put(self, name: str, point: Point, *, last: bool = False) -> None:
        """Keep the earliest point of a name, or the latest."""
        known = self.at.get(name)
        if known is None or (known.is_before(point) if last else point.is_before(known)):
            self.at[name] = point


def find(events: Sequence[Event], found: Sequence[Match], anchors: Anchors) -> Points:
    """All points of the last start in a log. `found`: the rules' matches in these events."""
    begin = _last_start(events, found)
    kept = [m for m in found if m.index >= begin]
    start = events[begin:]
    shift = _shift(start, kept, anchors)
    made = Points()
    clock = {
        "asked": anchors.asked, "container": anchors.container_started, "first-200": anchors.first_200,
        "first-token": anchors.first_token,
    }  # fmt: skip
    for name, moment in clock.items():
        if moment is not None and math.isfinite(moment):
            made.at[name] = Point(moment, -1, "clock")
    api, engine, worker = _processes(kept)
    _marks(made, start, begin, api, engine)
    _first_lines(made, start, begin, (api, engine, worker), shift)
    others = {"api": {engine, worker} - {api}, "engine": {api} - {engine, worker}}
    for waiting in (False, True):  # a rule that depends on another point is applied when that one is known
        for m in kept:
            if bool(m.rule.before or m.rule.after) == waiting and (
                m.event.pid is None or m.event.pid not in others.get(m.rule.role, set())
            ):
                _apply(made, m, shift)
    times = [_time(e, shift) for e in start]
    if "api.first" not in made.at and (said := made.first(["banner", "arguments"])):  # a log without process ids
        made.at["api.first"] = said[1]
    made.last = max((t for t in times if t is not None), default=None)
    if any(t is not None for t in times):
        local = shift is None and all(e.local for e in start if e.t is not None)
        made.zone = "log" if local else "epoch"
    return made


def timed(events: Iterable[Event]) -> tuple[Event, ...]:
    """Lines without a time (bars, uvicorn's) get that of the line before them."""
    last: Event | None = None
    made = []
    for e in events:
        if e.t is None and last is not None:
            made.append(replace(e, t=last.t, local=last.local, approximate=True))
            continue
        if e.t is not None:
            last = e
        made.append(e)
    return tuple(made)


def _last_start(events: Sequence[Event], found: Sequence[Match]) -> int:
    """Where the last start begins in a log that holds several (a container that was started again)."""
    banners = [m.index for m in found if m.rule.stage == "banner"]
    engines = [m.index for m in found if m.rule.stage == "engine-config"]
    begin = 0
    for before, banner in pairwise(banners):
        if any(before < e < banner for e in engines):
            begin = banner
    while begin and _ours(events[begin - 1]):
        begin -= 1
    return begin


def _ours(e: Event) -> bool:
    return e.logger.startswith("bringup.") or e.text.startswith("bringup: ")


def _shift(events: Sequence[Event], found: Sequence[Match], anchors: Anchors) -> float | None:
    """Seconds that bring console times to the clock outside; None: they cannot be compared."""
    up = [m.event.t for m in found if m.event.local and m.event.t is not None and m.rule.stage == "server-built"]
    end = anchors.first_200 if anchors.first_200 is not None else anchors.first_token
    if up and end is not None:
        return math.floor((end + SLACK - max(up)) / QUARTER) * QUARTER
    first = next((e.t for e in events if e.local and e.t is not None), None)
    start = anchors.container_started if anchors.container_started is not None else anchors.asked
    if first is not None and start is not None:
        return math.ceil((start - SLACK - first) / QUARTER) * QUARTER
    return None


def _time(e: Event, shift: float | None) -> float | None:
    return e.t + shift if e.local and e.t is not None and shift is not None else e.t


def _processes(found: Sequence[Match]) -> tuple[int | None, int | None, int | None]:
    """Process ids of the API server, of the engine, and of the worker where it is a process of its own."""

    def pids(role: str) -> list[int]:
        return [m.event.pid for m in found if m.rule.starts and m.rule.role == role and m.event.pid is not None]

    engines = pids("engine")
    api, engine = next(iter(pids("api")), None), next(iter(engines), None)
    return api, engine, next((pid for pid in engines if pid != engine), None)


def _marks(made: Points, events: Sequence[Event], offset: int, api: int | None, engine: int | None) -> None:
    """Our own processes' marks and births."""
    by: dict[str, int | None] = {}
    births: dict[int | None, tuple[float, int]] = {}
    for index, e in enumerate(events, offset):
        if e.mark:
            by.setdefault(e.mark, e.pid)
            made.put(f"mark:{e.mark}", Point(e.t, index, "mark"))
        elif e.born is not None:
            births.setdefault(e.pid, (e.born, index))
    api = by.get("api imports") if api is None else api
    engine = by.get("standby imports") if engine not in births else engine
    for name, pid in (("entry", by.get("entry")), ("api", api), ("engine", engine)):
        if pid is not None and pid in births:
            made.at[f"{name}.born"] = Point(*births[pid], "mark")


def _first_lines(
    made: Points, events: Sequence[Event], offset: int, pids: tuple[int | None, ...], shift: float | None
) -> None:
    """The first record of each of vLLM's processes, and the API server's last one before the engine's first."""
    api, engine, _ = pids
    records = [(i, e) for i, e in enumerate(events, offset) if e.level and not _ours(e) and e.pid is not None]
    for name, pid in zip(("api", "engine", "worker"), pids, strict=True):
        for index, e in records:
            if pid is not None and e.pid == pid:
                made.put(f"{name}.first", _point(e, index, shift))
    first = made.at.get("engine.first")
    for index, e in records:
        if first and e.pid == api != engine and (p := _point(e, index, shift)).is_before(first):
            made.put("api.last", p, last=True)


def _point(e: Event, index: int, shift: float | None, *, coarse: bool = False) -> Point:
    rough = e.local or e.approximate or coarse
    return Point(_time(e, shift), index, "template" if e.exact else "text", rough)


def _apply(made: Points, m: Match, shift: float | None) -> None:
    """One match: its points, its duration, its facts."""
    rule, point = m.rule, _point(m.event, m.index, shift)
    if not _counts(made, rule, point):
        return
    if rule.kind == "point":
        made.put(rule.stage, point)
    elif rule.kind == "begin":
        made.put(f"{rule.stage}.begin", point)
    else:
        made.put(f"{rule.stage}.end", point, last=True)
    if rule.kind == "duration" and (seconds := figure(m.values.get("seconds"))) is not None and seconds >= 0:
        _duration(made, m, point, seconds)
    for name, fact in rule.facts.items():
        _fact(made, fact, m.values.get(name))
    for name, state in rule.states.items():
        if made.facts.get(name) != "recompiled":  # what is compiled again is saved again
            made.facts[name] = state


def _counts(made: Points, rule: Rule, point: Point) -> bool:
    if rule.after:
        other = made.first(rule.after)
        return other is not None and other[1].is_before(point)
    if rule.before:
        other = made.first(rule.before)
        return other is None or point.is_before(other[1])
    return True


def _duration(made: Points, m: Match, point: Point, seconds: float) -> None:
    rule = m.rule
    coarse = int(rule.coarse and not m.exact)
    known = made.stated.get(rule.stage)
    if known and rule.sum:
        made.stated[rule.stage] = Stated(known.seconds + seconds, known.coarse + coarse)
    else:
        made.stated[rule.stage] = Stated(seconds, coarse)
    begin = None if point.t is None else point.t - seconds
    made.put(f"{rule.stage}.begin", Point(begin, point.index, point.source, point.approximate or bool(coarse)))


def _fact(made: Points, name: str, value: object) -> None:
    """The first word on it counts: it has the most digits."""
    if value is None or name in made.facts:
        return
    if name in TEXT_FACTS:
        made.facts[name] = str(value)[:TEXT_LIMIT]
    elif (number := figure(value)) is not None:
        made.facts[name] = int(number) if name == "kv_tokens" else number
