"""The summary for a ticket or a job's page: GitHub's Markdown, with nothing in it that a server's words could start."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bringup.report.parts import Facts, Note, Part, Quote, Report, Table

SIGNS = {"pass": "✅", "warn": "⚠️", "unknown": "❔", "fail": "❌", "skip": "⏭️"}
MOST = 20  # findings that are named above the tables
_SPECIAL = str.maketrans(
    {c: f"\\{c}" for c in "\\`*_[]{}|~#!$"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}
)


def escaped(text: str) -> str:
    """Text that is shown as it is: no markup, no table cell's end, nobody mentioned."""
    return " ".join(text.split()).translate(_SPECIAL)


def markdown(report: Report) -> str:
    """The verdict with its reasons, and the sections that are marked as short."""
    lines = [f"## {SIGNS[report.verdict]} {report.verdict}: {escaped(report.headline)}", ""]
    for status, who, found in report.why[:MOST]:
        named = "" if who == "run" else f"**{escaped(who)}**: "
        lines.append(f"- {SIGNS[status]} {status} {named}{escaped(found)}")
    if len(report.why) > MOST:
        lines.append(f"- and {len(report.why) - MOST} more")
    sums = escaped(report.sums)
    lines += ["", f"**{sums}**" if report.intact is False else sums, ""]
    for section in report.sections:
        if section.short:
            lines += [f"### {section.title}", ""]
            for part in section.parts:
                lines += _part(part)
    return "\n".join([*lines, f"Bundle {escaped(report.name)}"]) + "\n"


def _part(part: Part) -> list[str]:
    if isinstance(part, Note):
        said = escaped(part.text)
        return [f"*{said}*" if part.absent else said, ""]
    if isinstance(part, Facts):
        return _rows(("", ""), [(f.name, f.value) for f in part.facts])
    if isinstance(part, Quote):
        return [f"{escaped(part.caption)}:", "", *_fenced(part.text), ""]
    if isinstance(part, Table) and not part.folded:
        return _rows(tuple(c.name for c in part.columns), part.rows)
    return []


def _rows(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [[escaped(value) for value in row] for row in rows]
    head = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return [*head, *(f"| {' | '.join(row)} |" for row in cells), ""]


def _fenced(text: str) -> list[str]:
    """A block of code whose fence is longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return [fence, text, fence]
