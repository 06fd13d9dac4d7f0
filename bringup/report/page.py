"""The page: one file that loads nothing, for a browser, a ticket or a printer."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from bringup import __version__
from bringup.report.parts import Report
from bringup.report.reading import NONE
from bringup.report.scene import Line, Scene, Shape

DATA = files("bringup") / "data"


def html(report: Report) -> str:
    """The report as an HTML page; the only style a browser may use in it is its own, by its hash."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    style = (DATA / "report.css").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((DATA / "report.html.j2").read_text("utf-8"))
    return template.render(
        report=report, style=Markup(style), style_hash=f"sha256-{digest}", version=__version__,  # noqa: S704 - our file
        shapes=_shapes, points=_points, none_given=NONE,
    )  # fmt: skip


def _shapes(scene: Scene) -> list[tuple[str, Shape]]:
    return [(type(s).__name__.lower(), s) for s in scene.shapes]


def _points(line: Line) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in line.points)
