"""From points to stages: the path from the request for a start to its first token, cut without overlap.

What no stage covers is a gap and is shown as one: path stages and gaps add up to the whole. Other stages lie inside a
stage of the path, or beside it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bringup.timeline import rules
from bringup.timeline.events import Event
from bringup.timeline.points import Anchors, Point, Points, find, timed
from bringup.timeline.rules import Data, StageRule

TINY = 1e-6  # seconds
NEAR = 1.0  # seconds by which a stage may reach out of the one it is part of: console times are whole seconds
MOMENT = "it began, and its end is not in this log"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An interval of the start.

    `begin`, `end`: epoch seconds (the log's own where `Timeline.zone` says so), None where the log has no times.
    `seconds`: how long; `stated`: in vLLM's words. `parent`: id of the stage it is part of. `path`: it is one of those
    that the whole is cut into. `since`, `until`: the points that bound it. `finished`: False if the log ends within it.
    `approximate`: its times are good to a second or so.
    """

    id: str
    name: str
    what: str
    role: str
    begin: float | None
    end: float | None
    seconds: float | None
    stated: float | None
    stated_coarse: int
    path: bool
    parent: str | None
    since: str
    until: str
    finished: bool
    approximate: bool


@dataclass(frozen=True)
class Gap:
    """Time of the whole that no stage covers, between two stages (empty: the begin or the end of all)."""

    begin: float
    end: float
    after: str
    before: str


@dataclass(frozen=True)
class Missing:
    """A stage that was not observed, and why that may be."""

    id: str
    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One of the 15 stages that people quote. `seen`: the log tells of it, with or without a time.

    `seconds`: how long, None where nobody can tell; `at_most`: instead, where only whole seconds below it are known.
    """

    number: int
    title: str
    stage: str
    seen: bool
    seconds: float | None
    at_most: float | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One start. `zone`: epoch, log (times comparable only among themselves) or none (the log has no times).

    `finished`: the server was seen to come up. `recognised`: anything of vLLM or of this project was in the log.
    """

    anchors: Anchors
    zone: str
    begin: float | None
    end: float | None
    finished: bool
    recognised: bool
    stages: tuple[Stage, ...]
    gaps: tuple[Gap, ...]
    missing: tuple[Missing, ...]
    rows: tuple[Row, ...]
    facts: dict[str, float | int | str]

    @property
    def whole(self) -> float | None:
        """Seconds from the first to the last moment."""
        return None if self.begin is None or self.end is None else self.end - self.begin

    @property
    def named(self) -> float:
        """Seconds that stages of the path cover."""
        return sum(s.seconds or 0.0 for s in self.stages if s.path)

    @property
    def coverage(self) -> float | None:
        """The named share of the whole, 0 to 1; None where there is no whole."""
        return self.named / self.whole if self.whole else None

    def to_dict(self) -> dict[str, Any]:
        """timeline.json."""
        return {
            "zone": self.zone,
            "begin": self.begin,
            "end": self.end,
            "whole_seconds": self.whole,
            "named_seconds": self.named,
            "coverage": self.coverage,
            "finished": self.finished,
            "recognised": self.recognised,
            "anchors": dataclasses.asdict(self.anchors),
            "stages": [dataclasses.asdict(s) for s in self.stages],
            "gaps": [dataclasses.asdict(g) | {"seconds": g.end - g.begin} for g in self.gaps],
            "not_observed": [dataclasses.asdict(m) for m in self.missing],
            "rows": [dataclasses.asdict(r) for r in self.rows],
            "facts": dict(self.facts),
        }


def build(events: Iterable[Event], anchors: Anchors) -> Timeline:
    """The timeline of the last start in a log; any log has one, if only an empty one."""
    data = rules.load()
    lines = timed(events)
    found = rules.matches(lines, data.rules)
    points = find(lines, found, anchors)
    begin, end, finished = bounds(points)
    path, gaps, missing = path_stages(data, points, begin, end, finished)
    inner, unseen = _inner(data, points, end)
    stages = _nested(data, path, inner)
    seen = {s.id for s in stages}
    missing = [m for m in (*missing, *unseen) if m.id not in seen]
    return Timeline(
        anchors=anchors,
        zone=points.zone,
        begin=begin,
        end=end,
        finished=finished,
        recognised=bool(found) or any(p.source == "mark" for p in points.at.values()),
        stages=tuple(stages),
        gaps=tuple(gaps),
        missing=tuple(missing),
        rows=tuple(_rows(data, points, stages)),
        facts=points.facts,
    )


def bounds(points: Points) -> tuple[float | None, float | None, bool]:
    """From where to where the whole reaches, and whether the server came up."""
    inside = [p.t for name, p in points.at.items() if p.t is not None and p.source != "clock"]
    asked = points.first(["asked", "container"])
    up = points.first(["first-token", "first-200", "server-up.end", "server-built.end"])
    finished = up is not None
    begin = asked[1].t if asked and points.zone != "log" else min(inside, default=None)
    end = up[1].t if up else (points.last if inside else None)
    if up and up[1].source == "clock" and points.zone == "log":
        end = max(inside, default=None)
    if begin is None or end is None:
        return None, None, finished
    return begin, max(begin, end), finished


def _span(points: Points, rule: StageRule, limit: float) -> tuple[tuple[str, Point], tuple[str, Point]] | None:
    """The points that bound a stage; None if one of them was not seen."""
    until = points.first(rule.end)
    if until is None:
        return None
    t = until[1].t
    since = points.first(rule.begin, limit if t is None else t)
    return (since, until) if since else None


def path_stages(
    data: Data, points: Points, begin: float | None, end: float | None, finished: bool
) -> tuple[list[Stage], list[Gap], list[Missing]]:
    """Cut the whole into the stages of the path, in their order, and gaps."""
    stages: list[Stage] = []
    gaps: list[Gap] = []
    missing: list[Missing] = []
    cursor = begin if begin is not None else 0.0
    limit = end if end is not None else math.inf

    def cut(rule: StageRule, since: tuple[str, Point], until: tuple[str, Point], *, whole: bool = True) -> None:
        nonlocal cursor
        first, last = since[1].t, until[1].t
        if first is None or last is None or begin is None or end is None:
            stages.append(_stage(rule, points, since, until))
            return
        b = min(max(first, cursor), limit)
        e = min(max(last, b), limit)
        if b - cursor > TINY:
            gaps.append(Gap(cursor, b, stages[-1].id if stages else "", rule.id))
        else:
            b = cursor
        stages.append(replace(_stage(rule, points, since, until), begin=b, end=e, seconds=e - b, finished=whole))
        cursor = e

    open_: list[StageRule] = []  # after the last stage that was seen
    for rule in data.stages:
        if not rule.path or rule.unless in points.at:
            continue
        span = _span(points, rule, limit)
        if span is None:
            open_.append(rule)
            missing.append(Missing(rule.id, rule.name, rule.why))
            continue
        other = points.at.get(rule.parallel)
        if other and other.is_before(span[1][1]):
            continue  # beside the path: `_inner` has it
        open_ = []
        cut(rule, *span)
    if begin is not None and end is not None:
        if not finished and (going := under_way(points, open_)):
            cut(*going, ("", Point(end, -1, "text")), whole=False)
        if end - cursor > TINY:
            gaps.append(Gap(cursor, end, stages[-1].id if stages else "", ""))
    return stages, gaps, missing


def under_way(points: Points, rules_: Sequence[StageRule]) -> tuple[StageRule, tuple[str, Point]] | None:
    """The stage that a log ends in: the first one whose begin was seen, after the last one that was seen to end."""
    for rule in rules_:
        since = points.first(rule.begin)
        if since and since[1].t is not None:
            return rule, since
    return None


def _inner(data: Data, points: Points, end: float | None) -> tuple[list[Stage], list[Missing]]:
    """The stages that are part of others, and those of the path that ran beside it."""
    stages, missing = [], []
    limit = end if end is not None else math.inf
    for rule in data.stages:
        other = points.at.get(rule.parallel)
        span = _span(points, rule, limit)
        if rule.path and not (span and other and other.is_before(span[1][1])):
            continue
        if span is None:
            missing.append(Missing(rule.id, rule.name, rule.why))
            continue
        made = replace(_stage(rule, points, *span), path=False)
        if made.begin is not None and made.end is not None and max(made.begin, made.end) > limit:
            made = replace(made, begin=min(made.begin, limit), end=min(made.end, limit))
        stages.append(made)
    return stages, missing


def _stage(rule: StageRule, points: Points, since: tuple[str, Point], until: tuple[str, Point]) -> Stage:
    """A stage as its points have it."""
    stated = points.stated.get(rule.id)
    begin, end = since[1].t, until[1].t
    if begin is None or end is None:
        begin = end = None
        seconds = stated.seconds if stated else None
    else:
        begin = min(begin, end)
        seconds = stated.seconds if stated and not stated.coarse else end - begin
    return Stage(
        id=rule.id, name=rule.name, what=rule.what, role=rule.role, begin=begin, end=end, seconds=seconds,
        stated=stated.seconds if stated else None, stated_coarse=stated.coarse if stated else 0, path=rule.path,
        parent=None, since=since[0], until=until[0], finished=True,
        approximate=since[1].approximate or until[1].approximate,
    )  # fmt: skip


def _nested(data: Data, path: list[Stage], inner: list[Stage]) -> list[Stage]:
    """All stages, those inside others with their parent, and within its bounds."""
    parents = {rule.id: rule.parent for rule in data.stages}
    found = {s.id: s for s in (*path, *inner)}
    done = {s.id: s for s in path}

    def settle(stage: Stage) -> Stage:
        if stage.id in done:
            return done[stage.id]
        for name in parents[stage.id]:
            if name in found and (fitted := _within(stage, settle(found[name]))):
                done[stage.id] = fitted
                return fitted
        done[stage.id] = stage
        return stage

    return [settle(s) for s in (*path, *inner)]


def _within(stage: Stage, parent: Stage) -> Stage | None:
    """The stage as part of another; None if it reaches out of it too far to be."""
    if stage.begin is None or stage.end is None or parent.begin is None or parent.end is None:
        return replace(stage, parent=parent.id)
    if stage.begin < parent.begin - NEAR or stage.end > parent.end + NEAR:
        return None
    begin = min(max(stage.begin, parent.begin), parent.end)
    return replace(stage, parent=parent.id, begin=begin, end=min(max(stage.end, begin), parent.end))


def _rows(data: Data, points: Points, stages: Iterable[Stage]) -> Iterable[Row]:
    """The 15 stages that people quote, each by the first stage that was seen for it."""
    known = {s.id: s for s in stages}
    why = {rule.id: rule.why for rule in data.stages}
    for number, row in enumerate(data.rows, 1):
        names = {name for name in row.stages if {name, f"{name}.begin", f"{name}.end"} & points.at.keys()}
        chosen = next((i for i in row.stages if i in known), None) or next((i for i in row.stages if i in names), None)
        stage = known.get(chosen or "")
        rough = stage is not None and stage.stated_coarse > 0 and not stage.stated
        yield Row(
            number=number,
            title=row.title,
            stage=chosen or "",
            seen=chosen is not None,
            seconds=stage.seconds if stage and not rough else None,
            at_most=float(stage.stated_coarse) if stage and rough else None,
            why="" if stage else (MOMENT if chosen else why[row.stages[0]]),
        )
