"""A plot as a picture, for where no page can be shown."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from bringup.report.scene import FONT, Line, Plot, Rect, Shape

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

SCALE = 4  # drawn so many times larger, and made half of that again: smooth edges, and twice the pixels of a page
MARGIN = 16
TITLE = 34  # pixels above for the title
COLOURS = {  # as on a page in the light
    "page": "#ffffff", "ink": "#1b1f24", "muted": "#59626c", "rule": "#dfe2e5", "accent": "#33608f", "soft": "#b9cde2",
    "other": "#8c6a1f",
}  # fmt: skip
ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def png(plot: Plot) -> bytes:
    """The wide plot with its title above."""
    from PIL import Image, ImageDraw, ImageFont

    scene = plot.wide
    size = (scene.width + 2 * MARGIN, scene.height + 2 * MARGIN + TITLE)
    image = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), COLOURS["page"])
    draw = ImageDraw.Draw(image)
    heading, font = (ImageFont.load_default(size=pixels * SCALE) for pixels in (FONT + 4, FONT))
    draw.text((MARGIN * SCALE, (MARGIN + 14) * SCALE), plot.title, COLOURS["ink"], heading, "ls")
    for shape in scene.shapes:
        _draw(draw, shape, font)
    made = io.BytesIO()
    image.reduce(SCALE // 2).save(made, "PNG", optimize=True)
    return made.getvalue()


def _at(x: float, y: float) -> tuple[float, float]:
    return ((x + MARGIN) * SCALE, (y + MARGIN + TITLE) * SCALE)


def _draw(draw: ImageDraw.ImageDraw, shape: Shape, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    colour = COLOURS[shape.tone]
    if isinstance(shape, Rect):
        draw.rectangle([_at(shape.x, shape.y), _at(shape.x + shape.width, shape.y + shape.height)], colour)
    elif isinstance(shape, Line) and shape.filled:
        draw.polygon([_at(x, y) for x, y in shape.points], colour)
    elif isinstance(shape, Line):
        for part in _dashes(shape) if shape.dashed else [shape.points]:
            draw.line([_at(x, y) for x, y in part], colour, round(shape.thick * SCALE), joint="curve")
    else:
        draw.text(_at(shape.x, shape.y), shape.text, colour, font, ANCHORS[shape.anchor])


def _dashes(line: Line, on: float = 5, off: float = 4) -> list[tuple[tuple[float, float], ...]]:
    """A level line in pieces."""
    (begin, y), (end, _) = line.points[0], line.points[-1]
    count = int((end - begin) / (on + off)) + 1
    starts = (begin + n * (on + off) for n in range(count))
    return [((x, y), (min(x + on, end), y)) for x in starts if x < end]
