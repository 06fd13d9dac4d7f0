"""Facts in files: what cannot be used is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bringup.checks import recorded
from bringup.errors import UsageError
from tests.unit.samples import FACTS


def text(**changes: Any) -> str:
    return json.dumps(json.loads(recorded.dump(FACTS, tool="1")) | changes)


def facts(*path: Any, value: Any) -> str:
    raw = json.loads(recorded.dump(FACTS))
    inner = raw["facts"]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return json.dumps(raw)


def lacking(name: str) -> str:
    raw = json.loads(recorded.dump(FACTS))
    del raw["facts"][name]
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[]", "`schema` is missing"),
        ("{}", "`schema` is missing"),
        (text(schema=2), "schema 2, and this version reads 1"),
        (text(schema="1"), "schema '1'"),
        (text(facts=None), "facts: an object is needed, not null"),
        (lacking("memory"), "facts.memory is missing"),
        (facts("nonsense", value=1), "facts.nonsense is not known"),
        (facts("local", value=1), "facts.local: int 1 cannot be bool"),
        (facts("memory", "total", value="many"), 'facts.memory.total: str "many" cannot be int'),
        (facts("memory", "total", value=True), "facts.memory.total: bool true cannot be int"),
        (facts("engine", "runtimes", value=["runc", None]), "facts.engine.runtimes[1]: null cannot be str"),
        (facts("image", "labels", value={"a": 1}), "facts.image.labels.a: int 1 cannot be str"),
        (facts("gpu", "gpus", value=[{"index": 0}]), "facts.gpu.gpus[0].compute_capability is missing"),
        (facts("node", "log_from", value="boot"), "facts.node.log_from"),
    ],
)
def test_a_broken_file_is_told_by_its_first_fault(content: str, words: str) -> None:
    with pytest.raises(UsageError) as e:
        recorded.load(content, "host.json")
    assert words in e.value.message
    assert e.value.message.startswith("host.json: ")
    assert e.value.id == "facts-unusable"
    assert "--save-facts" in e.value.hint


def test_what_was_written_is_read() -> None:
    assert recorded.load(recorded.dump(FACTS, tool="1", taken="now"), "x") == FACTS


def test_a_field_that_a_file_does_not_have_was_not_told() -> None:
    assert recorded.load(lacking("torch"), "x").torch is None


def test_the_head_says_where_it_comes_from() -> None:
    head = json.loads(recorded.dump(FACTS, tool="1", taken="now"))
    assert (head["schema"], head["tool"], head["taken"]) == (1, "1", "now")
