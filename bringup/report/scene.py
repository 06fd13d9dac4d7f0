"""Plots as shapes with a tone each, in pixels from the top left; a page and a picture draw the same ones. Pure.

A tone is a meaning (ink, muted, rule, accent, soft, other, bad), and whoever draws knows its colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FONT = 12  # pixels
CHARACTER = 6.4  # pixels, on average; wide enough for any sans-serif
Points = tuple[tuple[float, float], ...]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Rect:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    tone: str


@dataclass(frozen=True)
class Line:
    """A line through points; `filled` closes it down to the last `y` of its ends."""

    points: Points
    tone: str
    thick: float = 1.0
    dashed: bool = False
    filled: bool = False


@dataclass(frozen=True)
class Text:
    """One line of text, `y` is its base line."""

    x: float
    y: float
    text: str
    tone: str = "muted"
    anchor: Anchor = "start"


Shape = Rect | Line | Text


@dataclass(frozen=True)
class Scene:
    """A plot in one size."""

    width: int
    height: int
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Plot:
    """A plot for wide and for narrow pages. `name`: a word; `label`: what it shows, for those who do not see it."""

    name: str
    title: str
    label: str
    wide: Scene
    narrow: Scene


@dataclass(frozen=True)
class Series:
    """Values over a common x. `soft`: with the area below it filled."""

    name: str
    points: Points
    tone: str
    soft: bool = False


@dataclass(frozen=True)
class Level:
    """A value that is the same all along."""

    name: str
    value: float
    tone: str


def width_of(text: str) -> float:
    """About how many pixels a text takes."""
    return CHARACTER * len(text)


def fitted(text: str, width: float) -> str:
    """A text cut to a width in pixels."""
    most = max(1, int(width / CHARACTER))
    return text if len(text) <= most else text[: most - 1] + "…"


def ticks(high: float, most: int) -> list[float]:
    """Round numbers from 0 to not beyond `high`, at most so many steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > 0:
        return [0.0]
    raw = high / most
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [n * step for n in range(int(high / step * (1 + 1e-9)) + 1)]


def tick_text(value: float) -> str:
    """A tick without zeros that say nothing."""
    return f"{value:.6g}"


@dataclass(frozen=True)
class Frame:
    """The inner field of a plot: pixels of its edges, and the values at the right and the upper one."""

    left: float
    top: float
    right: float
    bottom: float
    x_high: float
    y_high: float

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return round(self.left + (self.right - self.left) * value / self.x_high, 2)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return round(self.bottom - (self.bottom - self.top) * value / self.y_high, 2)

    def x_axis(self, unit: str, *, top: float | None = None) -> list[Shape]:
        """Ticks below the field; lines through it from `top`, where one is given."""
        shapes: list[Shape] = []
        marks = ticks(self.x_high, max(2, int((self.right - self.left) / 90)))
        for value in marks:
            x = self.x(value)
            if top is not None:
                shapes.append(Line(((x, top), (x, self.bottom)), "rule"))
            last = value == marks[-1]
            label = f"{tick_text(value)} {unit}" if last else tick_text(value)
            shapes.append(Text(x, self.bottom + 16, label, anchor="start" if value == 0 else "middle"))
        return shapes

    def y_axis(self, unit: str) -> list[Shape]:
        """Lines through the field with their values at the left; the unit above."""
        shapes: list[Shape] = []
        for value in ticks(self.y_high, 4):
            y = self.y(value)
            shapes.append(Line(((self.left, y), (self.right, y)), "rule"))
            shapes.append(Text(self.left - 6, y + 4, tick_text(value), anchor="end"))
        return [*shapes, Text(self.left - 6, self.top - 10, unit, anchor="end")]


def legend(entries: Sequence[Series | Level], left: float, width: float) -> tuple[list[Shape], float]:
    """What each line is, in as many rows as it takes; the shapes, and the pixels that they take from the top."""
    shapes: list[Shape] = []
    x, y = left, 14.0
    for entry in entries:
        need = 24 + width_of(entry.name) + 14
        if x > left and x + need > left + width:
            x, y = left, y + 18
        shapes.append(Line(((x, y - 4), (x + 18, y - 4)), entry.tone, 2.0, dashed=isinstance(entry, Level)))
        shapes.append(Text(x + 24, y, fitted(entry.name, width - 24)))
        x += need
    return shapes, y + 8
