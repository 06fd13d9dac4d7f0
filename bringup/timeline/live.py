"""A start while it happens: its console's lines as they come, what has ended, what is under way. Pure.

Of a running container only the console can be read a line at a time; the marks are in server.jsonl. So this tells
apart a little less than the timeline that is made afterwards, and what is expected is taken from a console as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from bringup.timeline import rules
from bringup.timeline.build import Stage, bounds, path_stages, under_way
from bringup.timeline.events import Event, read_events
from bringup.timeline.points import Anchors, Points, find
from bringup.timeline.rules import Data, Match, StageRule
from bringup.timeline.show import SHOWN

SETTLED = 2.0  # seconds after which an end is told: a further line of the same stage would have come by then
LATE, AT_LEAST = 2.0, 10.0  # a stage is late at twice what is expected, and 10 s above it


@dataclass(frozen=True)
class Expected:
    """An earlier start of the same: seconds by stage, seconds of the whole, and where it is kept."""

    stages: dict[str, float]
    whole: float
    source: str


def expected(console: str, anchors: Anchors, source: str) -> Expected | None:
    """What a start took, by its console; None if that tells of none, or it was not seen to its end."""
    follower = Follower()
    follower.feed(console, anchors)
    if follower.whole is None or not follower.recognised:
        return None
    return Expected({s.id: s.seconds or 0.0 for s in follower.ended}, follower.whole, source)


@dataclass
class Follower:
    """Reads a start as it grows."""

    expected: Expected | None = None
    ended: list[Stage] = field(default_factory=list)
    whole: float | None = None  # seconds, once there was a token
    last_line: str = ""
    _events: list[Event] = field(default_factory=list)
    _found: list[Match] = field(default_factory=list)
    _told: set[str] = field(default_factory=set)
    _going: tuple[StageRule, float] | None = None  # since when

    @property
    def recognised(self) -> bool:
        """Whether a line of a start was among those that were read."""
        return bool(self._found)

    def feed(self, console: str, anchors: Anchors) -> None:
        """Take the lines that are new, with the engine's timestamps, and the clock outside as far as it got."""
        new = read_events(console)
        if new:
            self.last_line = new[-1].text
        self._found += rules.matches(new, rules.load().rules, len(self._events))
        self._events += new
        points = find(self._events, self._found, anchors)
        begin, end, _ = bounds(points)
        self.ended = path_stages(_shown(), points, begin, end, finished=True)[0]
        if anchors.first_token is not None and begin is not None and end is not None:
            self.whole = end - begin
        self._going = self._under_way(points)

    def _under_way(self, points: Points) -> tuple[StageRule, float] | None:
        """The stage that the log is in: of those after the last that ended, one that the earlier start had, too."""
        stages = [rule for rule in _shown().stages if rule.path and rule.unless not in points.at]
        last = self.ended[-1].id if self.ended else ""
        after = [rule.id for rule in stages].index(last) + 1 if last else 0
        likely = self.expected.stages if self.expected else ()
        going = under_way(points, [r for r in stages[after:] if r.id in likely]) or under_way(points, stages[after:])
        return (going[0], going[1][1].t) if going and going[1][1].t is not None else None

    def news(self, now: float) -> list[str]:
        """Lines that are to be told once: stages that have ended, and one that takes much longer than before."""
        lines = []
        for stage in self.ended:
            settled = self.whole is not None or (stage.end is not None and now - stage.end >= SETTLED)
            if settled and stage.id not in self._told:
                self._told.add(stage.id)
                if (stage.seconds or 0.0) >= SHOWN:
                    lines.append(f"  {stage.name}: {stage.seconds:.1f} s{self._before(stage.id, 'last time')}")
        if (late := self._late(now)) and late not in self._told:
            self._told.add(late)
            log = f"; the log's last line: {self.last_line}" if self.last_line else ""
            lines.append(f"  {self.now(now)}: much longer than last time{log}")
        return lines

    def now(self, now: float) -> str:
        """The stage that is under way, for how long, and how long it is expected to take."""
        if self._going is None or self.whole is not None:
            return ""
        rule, since = self._going
        return f"{rule.name} {max(0.0, now - since):.0f} s{self._before(rule.id, 'of about')}"

    def _before(self, stage: str, words: str) -> str:
        known = self.expected.stages.get(stage) if self.expected else None
        return "" if known is None else f" ({words} {known:.1f} s)"

    def _late(self, now: float) -> str:
        """A name for being late with the stage under way; empty as long as it is not."""
        if self._going is None or self.expected is None:
            return ""
        rule, since = self._going
        known = self.expected.stages.get(rule.id)
        late = known is not None and now - since > max(LATE * known, known + AT_LEAST)
        return f"late: {rule.id}" if late else ""


def _shown() -> Data:
    """The stages whose end a console can show."""
    data = rules.load()
    return replace(data, stages=tuple(r for r in data.stages if _visible(r.end)))


def _visible(points: Iterable[str]) -> bool:
    return any(not name.startswith("mark:") and not name.endswith(".born") for name in points)
