"""A bundle rendered: a page, a summary, and what test machines read. Nothing here needs more than the bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from bringup.artifacts import Pages
from bringup.bundle import RECORD, Bundle
from bringup.report.page import html
from bringup.report.summary import markdown
from bringup.report.view import report

PAGE, SUMMARY = "report.html", "summary.md"


def pages(tell: Callable[[str], None]) -> Pages:
    """What makes the page and the summary that lie in a bundle, from what else is in it.

    A fault of ours here must not cost the evidence: `tell` is told, and there are none.
    """

    def make(directory: Path, files: Mapping[str, bytes]) -> dict[str, str]:
        try:
            made = report(Bundle(directory, json.loads(files[RECORD]), dict(files), ()), inside=True)
            return {PAGE: html(made), SUMMARY: markdown(made)}
        except Exception as e:  # noqa: BLE001, RUF100
            tell(f"the bundle has no {PAGE}: {type(e).__name__}: {e}")
            return {}

    return make
