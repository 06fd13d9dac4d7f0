"""Which line says what: the rules of data/timeline.toml, and their matches in a log."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from bringup.timeline.events import Event

_CONVERSION = re.compile(r"%(?:\.\d+)?([sdrfg])")
_VALUES = {"s": "(.*?)", "r": "(.*?)", "d": r"(-?\d+)", "f": r"(-?[\d.]+)", "g": r"(-?[\d.e+-]+)"}


@dataclass(frozen=True, kw_only=True)
class Form:
    """One wording: `text` is vLLM's template, empty where only `pattern` describes it.

    `first`, `last`: the first and the last release of vLLM in which it was seen. `runner`: V1, V2 or CPU where only
    that model runner says it.
    """

    text: str
    pattern: re.Pattern[str]
    fields: tuple[str, ...]
    first: str
    last: str
    runner: str = ""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a line means; see the head of data/timeline.toml."""

    stage: str
    kind: str
    forms: tuple[Form, ...]
    role: str = ""
    starts: bool = False
    coarse: bool = False
    console: bool = False
    sum: bool = False
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    facts: dict[str, str]
    states: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class StageRule:
    """What lies between which points; see the head of data/timeline.toml."""

    id: str
    name: str
    begin: tuple[str, ...]
    end: tuple[str, ...]
    what: str
    why: str
    role: str = ""
    path: bool = False
    parent: tuple[str, ...] = ()
    parallel: str = ""
    unless: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One of the 15 stages that people quote, and the stages that stand for it, the first that was seen."""

    title: str
    stages: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Data:
    """data/timeline.toml, ready to use."""

    releases: tuple[str, ...]
    rules: tuple[Rule, ...]
    stages: tuple[StageRule, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Match:
    """An event that a rule knows. `exact`: by its template, not by its text."""

    index: int
    event: Event
    rule: Rule
    values: dict[str, Any]
    exact: bool


@cache
def load() -> Data:
    """The rules, read once."""
    raw = tomllib.loads(files("bringup").joinpath("data/timeline.toml").read_text("utf-8"))
    return Data(
        releases=tuple(raw["releases"]),
        rules=tuple(_rule(r) for r in raw["rule"]),
        stages=tuple(StageRule(**_tuples(s)) for s in raw["stage"]),
        rows=tuple(Row(**_tuples(r)) for r in raw["row"]),
    )


def _tuples(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _rule(table: dict[str, Any]) -> Rule:
    given = {"facts": {}, "states": {}} | _tuples(table)
    return Rule(**given | {"forms": tuple(_form(f) for f in table["forms"])})


def _form(table: dict[str, Any]) -> Form:
    first, _, last = table["versions"].partition("-")
    text = table.get("text", "")
    pattern = table["regex"] if "regex" in table else pattern_of(text)
    return Form(
        text=text, pattern=re.compile(pattern), fields=tuple(table["fields"]), first=first, last=last,
        runner=table.get("runner", ""),
    )  # fmt: skip


def pattern_of(template: str) -> str:
    """A template of logging (`%s`, `%d`, `%.2f`) as a regular expression with a group for each value.

    The tail is free: vLLM appends to its messages more often than it changes their beginning.
    """
    parts = _CONVERSION.split(template)
    made = re.escape(parts[0])
    for kind, literal in zip(parts[1::2], parts[2::2], strict=True):
        value = _VALUES[kind]
        made += (value if literal or kind != "s" else value.replace("*?", "*")) + re.escape(literal)
    last = r"\ (.*)"
    return f"{made.removesuffix(last)}(?:{last})?" if made.endswith(last) else made  # quoted without its value


def matches(events: Iterable[Event], rules: Iterable[Rule], first: int = 0) -> list[Match]:
    """Every event that a rule knows, in the log's order; one event may be known to several rules.

    `first`: the index of the first of these events in their log.
    """
    wanted = tuple(rules)
    found = []
    strange = set()  # templates that no rule knows: a server that ran for weeks has few of them, very often
    for index, event in enumerate(events, first):
        if event.exact and event.msg in strange:
            continue
        made = [m for rule in wanted if (m := _match(index, event, rule))]
        if not made and event.exact and not event.msg.startswith("%"):  # "%s" alone can be anything
            strange.add(event.msg)
        found += made
    return found


def _match(index: int, event: Event, rule: Rule) -> Match | None:
    if bool(event.level) == rule.console or event.logger.startswith("bringup."):
        return None  # a bare line of the console is a bar, and a record is none
    for form in rule.forms:
        if event.exact and form.text and event.msg == form.text and len(event.args) == len(form.fields):
            return Match(index=index, event=event, rule=rule, values=_named(form, event.args), exact=True)
        if hit := form.pattern.match(event.text):
            return Match(index=index, event=event, rule=rule, values=_named(form, hit.groups()), exact=False)
    return None


def _named(form: Form, values: Iterable[Any]) -> dict[str, Any]:
    return {name: value for name, value in zip(form.fields, values, strict=False) if name}


def figure(value: Any) -> float | None:
    """A number of a message: `22.78`, `188,512`, or a bar's clock `00:15` in seconds; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e15 else None
    text = str(value).replace(",", "").strip()
    if re.fullmatch(r"(\d+:)?\d+:\d+", text) and len(text) < 12:
        total = 0
        for part in text.split(":"):
            total = total * 60 + int(part)
        return float(total)
    return float(text) if re.fullmatch(r"-?\d{1,15}(\.\d*)?", text) else None
