"""The rules are sound: every wording is recognised, every stage has points that a rule or a clock can make."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bringup.timeline import rules
from bringup.timeline.events import Event
from bringup.timeline.rules import Form, Rule, figure, pattern_of

ROOT = Path(__file__).resolve().parents[2]
DATA = rules.load()
FORMS = [(rule, form) for rule in DATA.rules for form in rule.forms if form.text]
OUTSIDE = {
    "asked", "container", "first-200", "first-token", "entry.born", "api.born", "engine.born", "api.first", "api.last",
    "engine.first", "worker.first",
}  # fmt: skip


def made_of(form: Form) -> tuple[str, tuple[Any, ...]]:
    """A message as vLLM would have made it from the template."""
    kinds = re.findall(r"%(?:\.\d+)?([sdrfg])", form.text)
    values: tuple[Any, ...] = tuple(f"v{n}" if k in "sr" else n + 1 for n, k in enumerate(kinds))
    return form.text % values if values else form.text, values


@pytest.mark.parametrize(("rule", "form"), FORMS, ids=lambda x: x.text if isinstance(x, Form) else x.stage)
def test_every_wording_is_recognised_as_record_and_as_text(rule: Rule, form: Form) -> None:
    text, values = made_of(form)
    wanted = {name: value for name, value in zip(form.fields, values, strict=True) if name}
    level = "" if rule.console else "INFO"
    for exact in (True, False):
        event = Event(t=1.0, level=level, msg=form.text if exact else text, args=values, text=text, exact=exact)
        found = [m for m in rules.matches([event], [rule]) if m.exact is exact]
        assert len(found) == 1, "one event, one match for each rule"
        if exact:
            assert found[0].values == wanted
        else:
            assert {k: str(v) for k, v in found[0].values.items()}.items() >= {
                k: v for k, v in ((k, str(v)) for k, v in wanted.items()) if not v.isdigit()
            }.items()


def test_a_record_of_a_console_is_no_bar_and_a_bar_is_no_record() -> None:
    (bar,) = [r for r in DATA.rules if r.stage == "weights-download" and r.console]
    text = "model.safetensors: 100%|##########| 3.09G/3.09G [00:15<00:00, 203MB/s]"
    assert [m.values for m in rules.matches([Event(text=text)], [bar])] == [{"seconds": "00:15"}]
    assert rules.matches([Event(text=text, level="INFO")], [bar]) == []


def test_what_a_template_says_is_known_again_and_what_is_strange_stays_so() -> None:
    loaded = Event(t=1.0, level="INFO", msg="Loading weights took %.2f seconds", args=(1.5,), exact=True,
                   text="Loading weights took 1.50 seconds")  # fmt: skip
    strange = Event(t=1.0, level="INFO", msg="nothing", text="nothing", exact=True)
    found = rules.matches([strange, loaded, strange, loaded], DATA.rules)
    assert [(m.index, m.rule.stage) for m in found] == [(1, "weights-read"), (3, "weights-read")]


def test_every_point_of_a_stage_can_be_made() -> None:
    made = set(OUTSIDE)
    for rule in DATA.rules:
        kinds = {"point": [""], "begin": [".begin"], "end": [".end"], "duration": [".begin", ".end"]}
        made |= {rule.stage + k for k in kinds[rule.kind]}
    for stage in DATA.stages:
        named = [*stage.begin, *stage.end, *([stage.parallel] if stage.parallel else [])]
        assert [n for n in named if n not in made and not n.startswith("mark:")] == [], stage.id
    for rule in DATA.rules:
        assert set(rule.after) | set(rule.before) <= made


def test_stages_are_named_once_and_their_parents_and_rows_exist() -> None:
    ids = [s.id for s in DATA.stages]
    assert len(set(ids)) == len(ids)
    assert len({s.name for s in DATA.stages}) == len(ids)
    assert {p for s in DATA.stages for p in s.parent} <= set(ids)
    assert {i for row in DATA.rows for i in row.stages} <= set(ids)
    assert all(s.why and s.what for s in DATA.stages)
    assert len(DATA.rows) == 15


def test_the_page_names_every_stage() -> None:
    page = " ".join((ROOT / "docs" / "timeline.md").read_text("utf-8").split())
    assert [s.name for s in DATA.stages if s.name not in page] == []


def test_the_marks_are_those_that_our_processes_write() -> None:
    inside = "".join(p.read_text("utf-8") for p in (ROOT / "bringup" / "inside").glob("*.py"))
    points = {p for s in DATA.stages for p in (*s.begin, *s.end, s.parallel, s.unless) if p.startswith("mark:")}
    written = set(re.findall(r'reached\(\s*"([^"]+)"', inside))
    assert {p.removeprefix("mark:") for p in points} - written == set()


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1.0), ("22.78", 22.78), ("188,512", 188512.0), ("00:15", 15.0), ("1:02:03", 3723.0), ("", None),
        ("x", None), (True, None), (None, None), ("1e9", None), (float("inf"), None), ([], None),
    ],
)  # fmt: skip
def test_figures(value: Any, number: float | None) -> None:
    assert figure(value) == number


def test_a_template_as_a_pattern() -> None:
    assert re.match(pattern_of("took %s GiB and %.2f seconds"), "took 2.9 GiB and 1.50 seconds more").groups() == (  # type: ignore[union-attr]
        "2.9", "1.50",
    )  # fmt: skip
    assert re.match(pattern_of("path %s"), "path /a b").groups() == ("/a b",)  # type: ignore[union-attr]
    assert re.match(pattern_of("with config: %s"), "with config:").groups() == (None,)  # type: ignore[union-attr]
    assert not re.match(pattern_of("a.b (%d)"), "axb (1)")
