"""What a report is made of; the page and the Markdown summary are two ways to write the same parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bringup.report.scene import Plot


@dataclass(frozen=True)
class Note:
    """A paragraph. `absent`: it says that something is not in the bundle."""

    text: str
    absent: bool = False


@dataclass(frozen=True)
class Fact:
    """One thing that is known; `code`: it is a name of a machine, not a word."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Column:
    """`kind` of its cells: text, number, code, or status (pass, fail, ...: shown as such)."""

    name: str
    kind: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows of text below a caption, the first cell of each names it. `folded`: shown when asked for."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False


def table(caption: str, columns: Sequence[Column], rows: Iterable[tuple[str, ...]], *, folded: bool = False) -> Table:
    """A table without the columns that no row has anything in."""
    listed = tuple(rows)
    kept = [n for n in range(len(columns)) if n == 0 or any(row[n] for row in listed)]
    return Table(caption, tuple(columns[n] for n in kept), tuple(tuple(row[n] for n in kept) for row in listed), folded)


@dataclass(frozen=True)
class Quote:
    """Text as a program or a model wrote it."""

    caption: str
    text: str


Part = Note | Facts | Table | Quote | Plot


@dataclass(frozen=True)
class Section:
    """A heading and what is below it; `short`: it is in the Markdown summary, too."""

    id: str
    title: str
    parts: tuple[Part, ...]
    short: bool = False

    def kinds(self) -> tuple[tuple[str, Part], ...]:
        """The parts, each with the name of its kind."""
        return tuple((type(p).__name__.lower(), p) for p in self.parts)


@dataclass(frozen=True)
class Report:
    """All of it. `verdict`: pass, fail or unknown; `why`: what decided it, most telling first; `sums`: whether the
    bundle is as it was written, and `intact` False where it is not (None: nobody can say yet)."""

    name: str
    verdict: str
    headline: str
    why: tuple[tuple[str, str, str], ...]
    sums: str
    intact: bool | None
    sections: tuple[Section, ...]

    def plots(self) -> tuple[Plot, ...]:
        """Every plot."""
        return tuple(p for s in self.sections for p in s.parts if isinstance(p, Plot))
