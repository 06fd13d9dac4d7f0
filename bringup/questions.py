"""Questions with answers that can be checked, for models of which no exact answers are known. Data, and pure judges."""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "questions.toml"
NUMBER = re.compile(r"\d+")
FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """What is asked, and what a right answer has: a number, one of some words, or a JSON value."""

    ask: str
    number: int | None = None
    words: tuple[str, ...] = ()
    json: Any = None

    def right(self, answer: str) -> bool:
        """Whether an answer is right, however it is phrased."""
        if self.number is not None:
            asked = set(NUMBER.findall(self.ask)) - {str(self.number)}
            return set(NUMBER.findall(answer)) - asked == {str(self.number)}
        if self.words:
            return any(re.search(rf"\b{re.escape(word)}\b", answer, re.IGNORECASE) for word in self.words)
        fenced = FENCE.fullmatch(answer)
        try:
            return bool(json.loads(fenced[1] if fenced else answer) == self.json)
        except ValueError:
            return False


@dataclass(frozen=True)
class Threshold:
    """For models of at least so many parameters: the share of right answers that passes, and below which it fails."""

    parameters: int
    passes: float
    fails: float


@functools.cache
def load(path: Path = DATA) -> tuple[tuple[Question, ...], tuple[Threshold, ...]]:
    """The questions in the file's order, and the thresholds, the largest models first."""
    raw: Mapping[str, Any] = tomllib.loads(path.read_text("utf-8"))
    asked = tuple(
        Question(q["ask"], q.get("number"), tuple(q.get("words", ())), q.get("json")) for q in raw["question"]
    )
    rows = sorted((Threshold(**row) for row in raw["threshold"]), key=lambda t: t.parameters, reverse=True)
    return asked, tuple(rows)


def threshold(rows: Sequence[Threshold], parameters: int | None) -> tuple[Threshold, str]:
    """What holds for a model of that many parameters, and the rule in words; None: nobody knows how many it has."""
    if parameters is None:
        strict = rows[0]
        return Threshold(0, strict.passes, 0.0), f"of a model of unknown size at least {strict.passes:.0%} right"
    row = next(r for r in rows if parameters >= r.parameters)
    return row, f"of a model of {parameters / 1e9:.2g} billion parameters at least {row.passes:.0%} right"
