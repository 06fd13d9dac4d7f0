"""The verdict rule over every combination of answers, and records as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest

from bringup.errors import Exit
from bringup.records import (
    SCHEMA,
    CheckRecord,
    ProbeRecord,
    RunRecord,
    Status,
    StepRecord,
    Verdict,
    exit_for,
    verdict_of,
)

COMBINATIONS = [c for size in range(4) for c in itertools.product(Status, repeat=size)]


def probes(*statuses: Status) -> list[ProbeRecord]:
    return [ProbeRecord(name=f"p{i}", status=s, expected="e", found="f") for i, s in enumerate(statuses)]


@pytest.mark.parametrize("statuses", COMBINATIONS, ids="-".join)
def test_verdict(statuses: tuple[Status, ...]) -> None:
    verdict = verdict_of(probes(*statuses))
    # said from the reader's side: a pass needs a pass, and nothing that is bad or was not seen
    assert (verdict is Verdict.PASS) == (
        "pass" in statuses and all(s in ("pass", "warn", "skip") for s in statuses)
    )  # fmt: skip
    assert (verdict is Verdict.FAIL) == ("fail" in statuses)
    assert verdict is verdict_of(probes(*reversed(statuses)))


@pytest.mark.parametrize("statuses", COMBINATIONS, ids="-".join)
def test_one_more_bad_answer_never_makes_it_better(statuses: tuple[Status, ...]) -> None:
    order = [Verdict.FAIL, Verdict.UNKNOWN, Verdict.PASS]
    before = verdict_of(probes(*statuses))
    for bad in (Status.FAIL, Status.UNKNOWN):
        assert order.index(verdict_of(probes(*statuses, bad))) <= order.index(before)


def test_there_are_no_other_answers() -> None:
    assert {str(s) for s in Status} == {"pass", "warn", "fail", "unknown", "skip"}
    assert len(COMBINATIONS) == 1 + 5 + 25 + 125


@pytest.mark.parametrize(
    ("verdict", "code"),
    [(Verdict.PASS, Exit.PASS), (Verdict.FAIL, Exit.PROBE_FAILED), (Verdict.UNKNOWN, Exit.UNKNOWN)],
)
def test_exit_codes_of_verdicts(verdict: Verdict, code: Exit) -> None:
    assert exit_for(verdict) is code


def test_only_a_pass_exits_with_zero() -> None:
    assert [v for v in Verdict if exit_for(v) == 0] == [Verdict.PASS]


def test_a_run_becomes_json_and_keeps_everything() -> None:
    run = RunRecord(
        tool_version="1", command="up", started="a", finished="b", verdict=Verdict.PASS, plan={"port": 8000}, host={},
        image={}, container={},
        checks=(CheckRecord(name="disk", status=Status.WARN, found="f", needed="n", remedy="r", source="s"),),
        steps=(StepRecord(name="up", seconds=1.5),),
        probes=(ProbeRecord(name="p", status=Status.PASS, expected="e", found="f", seconds=0.25, data={"bytes": 7}),),
        started_to_first_token=12.5,
    )  # fmt: skip
    again = json.loads(json.dumps(run.to_dict()))
    assert again.keys() == {f.name for f in dataclasses.fields(RunRecord)}
    assert (again["schema"], again["verdict"], again["started_to_first_token"]) == (SCHEMA, "pass", 12.5)
    check = {"name": "disk", "status": "warn", "found": "f", "needed": "n", "remedy": "r", "source": "s"}
    assert again["checks"] == [check]
    assert again["steps"] == [{"name": "up", "seconds": 1.5, "detail": ""}]
    assert again["probes"][0]["status"] == "pass"
    assert again["probes"][0]["data"] == {"bytes": 7}


def test_records_are_frozen() -> None:
    (record,) = probes(Status.FAIL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.status = Status.PASS  # type: ignore[misc]


def test_exit_codes_are_those_of_the_documentation() -> None:
    assert [(e.name, int(e)) for e in Exit] == [
        ("PASS", 0), ("BUG", 1), ("USAGE", 2), ("CHECK_FAILED", 3), ("BUILD_FAILED", 4), ("WEIGHTS_DIFFER", 5),
        ("NEVER_READY", 6), ("PROBE_FAILED", 7), ("TARGET_UNAVAILABLE", 8), ("UNKNOWN", 9),
        ("BUNDLE_DIFFERS", 10), ("INTERRUPTED", 130), ("TERMINATED", 143),
    ]  # fmt: skip
    assert len({e.meaning for e in Exit}) == len(Exit)
