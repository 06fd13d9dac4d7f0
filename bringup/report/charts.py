"""The three plots: the stages of a start, memory over time, and the gaps between tokens. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bringup.report.reading import seconds
from bringup.report.scene import Frame, Level, Line, Plot, Rect, Scene, Series, Shape, Text, fitted, legend, width_of

WIDE, NARROW = 880, 356  # pixels
LABELS = 268  # pixels for the names of stages on a wide page
KINDS = {"accent": "one after another", "soft": "inside the one above", "other": "beside", "rule": "in no stage"}
HEIGHT = {WIDE: 250, NARROW: 230}  # of a plot with axes


@dataclass(frozen=True)
class Bar:
    """One interval of a start, seconds since its begin. `depth`: inside how many others; `tone`: see `KINDS`;
    `finished`: False if the log ends in it."""

    name: str
    begin: float
    end: float
    depth: int
    tone: str
    finished: bool = True

    @property
    def took(self) -> str:
        """What is written beside it."""
        return seconds(self.end - self.begin) + ("" if self.finished else ", not finished")


def both(name: str, title: str, label: str, draw: Callable[[int], Scene]) -> Plot:
    """A plot in both sizes."""
    return Plot(name, title, label, draw(WIDE), draw(NARROW))


def waterfall(bars: Sequence[Bar], whole: float, label: str) -> Plot:
    """A bar a stage, in the order of time."""
    return both("waterfall", "Start-up", label, lambda width: _waterfall(bars, whole, width))


def _waterfall(bars: Sequence[Bar], whole: float, width: int) -> Scene:
    narrow = width == NARROW
    left, row = (2.0, 33) if narrow else (float(LABELS), 21)
    used = [Series(name, (), tone) for tone, name in KINDS.items() if any(b.tone == tone for b in bars)]
    shapes, above = legend(used, 2, width - 4)
    bottom = above + row * len(bars) + 8
    frame = Frame(left, above, width - (20 if narrow else 56), bottom, whole, 1)
    shapes += frame.x_axis("s", top=above)
    for n, bar in enumerate(bars):
        y, indent = above + n * row + 6, 12.0 * bar.depth
        tone = "muted" if bar.depth or bar.tone != "accent" else "ink"
        if narrow:
            shapes.append(
                Text(left + indent, y + 11, fitted(bar.name, width - left - indent - 14 - width_of(bar.took)), tone)
            )
        else:
            shapes.append(Text(indent, y + 12, fitted(bar.name, LABELS - indent - 8), tone))
        top = y + (16 if narrow else 3)
        begin, end = frame.x(bar.begin), frame.x(bar.end)
        shapes.append(Rect(begin, top, max(end - begin, 1.5), 10 if narrow else 11, bar.tone))
        if narrow:
            shapes.append(Text(width - 2, y + 11, bar.took, anchor="end"))
        elif end + 8 + width_of(bar.took) <= width:
            shapes.append(Text(end + 6, y + 12, bar.took))
        else:
            shapes.append(Text(begin - 6, y + 12, bar.took, anchor="end"))
    return Scene(width, int(bottom) + 24, tuple(shapes))


def memory(series: Sequence[Series], levels: Sequence[Level], label: str) -> Plot:
    """GiB over seconds."""
    highest = max([y for s in series for _, y in s.points] + [level.value for level in levels])
    end = max(x for s in series for x, _ in s.points)
    return both(
        "memory", "Memory", label, lambda width: _over_time(series, levels, (end or 1.0, highest * 1.08 or 1.0), width)
    )


def _over_time(series: Sequence[Series], levels: Sequence[Level], high: tuple[float, float], width: int) -> Scene:
    shapes, below = legend([*series, *levels], 2, width - 4)
    frame = Frame(44, below + 26, width - 24, below + HEIGHT[width], *high)
    shapes += [*frame.y_axis("GiB"), *frame.x_axis("s")]
    for s in series:
        line = tuple((frame.x(x), frame.y(y)) for x, y in s.points)
        if s.soft:
            shapes.append(Line(((line[0][0], frame.bottom), *line, (line[-1][0], frame.bottom)), "soft", filled=True))
        shapes.append(Line(line, s.tone, 1.8))
    shapes += [_level(frame, level) for level in levels]
    return Scene(width, int(frame.bottom) + 24, tuple(shapes))


def _level(frame: Frame, level: Level) -> Shape:
    y = frame.y(level.value)
    return Line(((frame.left, y), (frame.right, y)), level.tone, 1.4, dashed=True)


def tokens(gaps: Sequence[float], levels: Sequence[Level], label: str) -> Plot:
    """A thin bar a gap, milliseconds, in the order of the stream."""
    highest = max([*gaps, *(level.value for level in levels)]) * 1.08 or 1.0
    return both("tokens", "Tokens", label, lambda width: _gaps(gaps, levels, highest, width))


def _gaps(gaps: Sequence[float], levels: Sequence[Level], highest: float, width: int) -> Scene:
    shapes, below = legend(levels, 2, width - 4)
    frame = Frame(44, below + 26, width - 24, below + HEIGHT[width] - 60, len(gaps), highest)
    shapes += frame.y_axis("ms")
    step = (frame.right - frame.left) / len(gaps)
    for n, gap in enumerate(gaps):
        top = frame.y(gap)
        if frame.bottom > top:
            bar = max(step * 0.7, 0.6)
            shapes.append(
                Rect(round(frame.left + n * step, 2), top, round(bar, 2), round(frame.bottom - top, 2), "accent")
            )
    shapes += [_level(frame, level) for level in levels]
    shapes += [
        Text(frame.left, frame.bottom + 16, "gap 1"),
        Text(frame.right, frame.bottom + 16, f"gap {len(gaps)}", anchor="end"),
    ]
    return Scene(width, int(frame.bottom) + 24, tuple(shapes))
