"""Two sides: what differs, what is claimed, and what stays unknown, of recorded starts and changed ones."""

from __future__ import annotations

from typing import Any

import pytest

from bringup.comparison import show, sides
from bringup.comparison.noise import Call
from bringup.comparison.runs import cache_state, from_bundle
from bringup.comparison.sides import Side, compare
from bringup.errors import Exit
from bringup.records import Verdict
from tests.unit.recorded_bundles import Change, probe_says, run, side, slower


def setting(name: str, value: str) -> Change:
    def change(record: dict[str, Any]) -> None:
        record["plan"]["environment"][name] = value

    return change


def test_the_same_starts_differ_in_nothing() -> None:
    made = compare(side(), side())
    assert (made.verdict, made.facts, made.statuses, made.memory) == (Verdict.PASS, (), (), ())
    assert {t.change.call for s in made.starts for t in (s.whole, *s.stages)} == {Call.SAME}
    assert sides.exit_for(made.verdict) == 0


def test_a_slower_start_is_a_regression() -> None:
    made = compare(side(), side(change=slower(1.5)))
    assert made.regressions == ("warm start: container start to first token 37.92 s -> 56.88 s (+50.0 %)",)
    assert sides.exit_for(made.verdict) == Exit.REGRESSION
    assert compare(side(), side(change=slower(1.5)), threshold=60).verdict is Verdict.PASS
    faster = compare(side(change=slower(1.5)), side())
    assert (faster.verdict, faster.starts[0].whole.change.call) == (Verdict.PASS, Call.FASTER)


def test_a_slower_stage_is_one_too_and_is_named() -> None:
    made = compare(side(), side(change=slower(3.0, "model-load")))
    assert [line.partition(" 1.")[0] for line in made.regressions] == ["warm start: model load"]


def test_fewer_than_three_runs_claim_nothing() -> None:
    made = compare(side(runs=2), side(change=slower(1.5)))
    assert made.regressions == ()
    assert made.verdict is Verdict.UNKNOWN
    assert made.doubts[0].endswith("needs 3 runs a side")
    assert compare(side(runs=1), side(runs=1)).verdict is Verdict.PASS  # nothing past the threshold


def test_cold_and_warm_are_not_held_against_each_other() -> None:
    made = compare(side("cold"), side("warm"))
    assert made.doubts == ("starts: the caches differ, cold beside warm",)
    assert {t.change.call for t in (made.starts[0].whole, *made.starts[0].stages)} == {Call.NOT_COMPARED}
    assert [(d.name, d.base, d.other) for d in made.caches] == [("inductor", "miss", "hit")]


def test_like_is_held_against_like() -> None:
    both = Side("before", side("cold").runs + side("warm").runs)
    made = compare(both, Side("after", side("cold").runs + side("warm", slower(1.5)).runs))
    assert [(s.base, s.other, s.runs) for s in made.starts] == [("cold", "cold", (3, 3)), ("warm", "warm", (3, 3))]
    assert [line.split(" ", 1)[0] for line in made.regressions] == ["warm"]
    made = compare(both, side("warm"))
    assert [s.base for s in made.starts] == ["warm"]
    assert made.notes == ("before: 3 cold starts without a counterpart",)
    assert made.verdict is Verdict.PASS


def test_what_nobody_said_of_the_caches_is_a_doubt() -> None:
    def forgets(record: dict[str, Any]) -> None:
        record["caches"] = None

    made = compare(side(change=forgets), side(change=forgets))
    assert made.verdict is Verdict.UNKNOWN
    assert made.starts[0].base == "unknown"


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("hit off", "warm"),
        ("miss", "cold"),
        ("hit miss", "partly"),
        ("off off", "unused"),
        ("unknown", "unknown"),
        ("", "unknown"),
    ],
)
def test_states_of_caches(said: str, state: str) -> None:
    assert cache_state(dict(enumerate(said.split()))) == state  # type: ignore[arg-type]


def test_a_side_without_timeline_is_unknown() -> None:
    def forgets(record: dict[str, Any]) -> None:
        record["timeline"] = None

    made = compare(side(), side(change=forgets))
    assert made.verdict is Verdict.UNKNOWN
    assert len([d for d in made.doubts if "no timeline" in d]) == 3


def test_a_side_without_a_start_is_unknown_and_two_of_them_are_not() -> None:
    def address(record: dict[str, Any]) -> None:
        record.update(timeline=None, container={}, caches=None, started_to_first_token=None)

    assert compare(side(), side(change=address)).doubts[0] == "warm: no start was seen that came to a token"
    both = compare(side(change=address), side(change=address))
    assert (both.verdict, both.starts, both.notes) == (Verdict.PASS, (), ("neither side saw a start",))


def test_a_probe_that_passed_and_does_not_is_a_regression_after_one_run() -> None:
    for status in ("fail", "unknown"):
        made = compare(side(runs=1), side(runs=1, change=probe_says("streaming", status)))
        assert made.regressions == (f"probe streaming: pass -> {status}",)
    mixed = Side("after", (*side(runs=2).runs, run("compare-warm/3", probe_says("chat", "fail"))))
    assert compare(side(), mixed).regressions == ("probe chat: pass -> pass (2 of 3), fail (1 of 3)",)


def test_a_probe_that_always_wavered_is_no_regression() -> None:
    mixed = Side("before", (*side(runs=2).runs, run("compare-warm/3", probe_says("chat", "fail"))))
    made = compare(mixed, side(change=probe_says("chat", "fail")))
    assert (made.regressions, [d.name for d in made.statuses]) == ((), ["chat"])


def test_a_probe_that_is_not_asked_any_more_is_unknown() -> None:
    made = compare(side(), side(change=probe_says("process", "skip")))
    assert (made.verdict, made.doubts) == (
        Verdict.UNKNOWN, ("probe process passed, and was not asked on the other side",),
    )  # fmt: skip


def test_a_start_that_failed_is_a_regression_and_its_times_are_not_counted() -> None:
    def dies(record: dict[str, Any]) -> None:
        record.update(error="the server died", verdict="fail", probes=[], started_to_first_token=None)

    made = compare(side(), Side("after", (*side().runs, run("compare-warm/3", dies))))
    assert made.regressions == ("1 of 4 runs failed: the server died",)
    assert made.starts[0].runs == (3, 3)


def test_what_a_run_was_made_of() -> None:
    def other(record: dict[str, Any]) -> None:
        record["image"]["id"] = "sha256:2"
        record["image"]["labels"]["dev.bringup.wheels-lock-sha256"] = "ff"
        record["image"]["labels"]["dev.bringup.weights-digest"] = "ee"
        record["model"] = {"repo": "some/model", "revision": "ab" * 20, "digest": "ee"}
        record["host"]["gpu"] = {"driver": "580.95.05", "gpus": [{"name": "NVIDIA H100"}] * 2}
        record["plan"]["argv"] += ["--max-num-seqs", "64", "--enforce-eager"]
        next(p for p in record["probes"] if p["name"] == "version")["data"]["said"] = "0.33.0"

    made = compare(side(), side(change=other))
    found = {(d.area, d.name): d.other for d in made.facts}
    assert found == {
        ("image", "id"): "sha256:2", ("image", "wheels lock (sha256)"): "ff", ("weights", "weights digest"): "ee",
        ("weights", "repository"): "some/model", ("weights", "commit"): "ab" * 20,
        ("weights", "digest of the pinned files"): "ee",
        ("host", "GPUs"): "2 x NVIDIA H100", ("host", "GPU driver"): "580.95.05", ("vLLM", "vLLM version"): "0.33.0",
        ("settings", "--max-num-seqs"): "64", ("settings", "--enforce-eager"): "set",
    }  # fmt: skip
    assert all(d.base for d in made.facts)


def test_runs_of_one_side_that_differ_among_themselves() -> None:
    mixed = Side("after", (*side(runs=2).runs, run("compare-warm/3", setting("BRINGUP_PROFILE", "fast"))))
    (found,) = compare(side(), mixed).facts
    assert (found.base, found.other) == ("default", "default (2 of 3), fast (1 of 3)")


def test_memory() -> None:
    def grows(record: dict[str, Any]) -> None:
        for row in record["ledger"]["rows"]:
            if row["name"] == "total":
                row["measured"] *= 2

    (found,) = compare(side(), side(change=grows)).memory
    assert (found.row, found.by, found.percent) == ("total", "measured", 100.0)


def test_a_bundle_that_was_changed_is_no_evidence() -> None:
    from dataclasses import replace

    forged = Side("after", tuple(replace(r, faults=("record.json differs from its sum",)) for r in side().runs))
    assert compare(side(), forged).verdict is Verdict.UNKNOWN


@pytest.mark.parametrize("value", [None, [], "x", 3, {"stages": [{"id": 1}, {"seconds": "x"}], "rows": [1]}])
def test_a_record_of_nonsense_is_read_all_the_same(value: Any) -> None:
    from pathlib import Path

    from bringup.bundle import Bundle

    names = ("timeline", "ledger", "caches", "plan", "host", "image", "probes", "container", "started_to_first_token")
    odd = Side("odd", (from_bundle(Bundle(Path("odd"), dict.fromkeys(names, value), {}, ())),))
    assert compare(side(), odd).verdict is not Verdict.PASS
    assert list(show.tables(compare(side(), odd)))


def test_the_tables_hold_every_stage_once_whatever_their_parents_are() -> None:
    def tangled(record: dict[str, Any]) -> None:
        by_id = {s["id"]: s for s in record["timeline"]["stages"]}
        by_id["executor"]["parent"], by_id["worker-start"]["parent"] = "worker-start", "executor"

    made = compare(side(change=tangled), side(change=tangled))
    rows = next(rows for title, _, rows in show.tables(made) if title.startswith("start"))
    names = [row[0].strip() for row in rows]
    assert len(names) == len(set(names))
    assert {"executor and worker", "worker process: start and imports"} <= set(names)


def other_values(record: dict[str, Any]) -> None:
    data = next(p for p in record["probes"] if p["name"] == "logprobs")["data"]
    data["logprobs"] = [v - 0.5 for v in data["logprobs"]]


def test_log_probabilities_are_compared_with_tolerance() -> None:
    def rounded(record: dict[str, Any]) -> None:
        data = next(p for p in record["probes"] if p["name"] == "logprobs")["data"]
        data["logprobs"] = [v - 0.01 for v in data["logprobs"]]

    made = compare(side(), side(change=rounded))
    assert made.fingerprint is not None
    assert (made.fingerprint.verdict, made.verdict) == ("same", Verdict.PASS)


def test_other_log_probabilities_of_the_same_weights_are_a_doubt() -> None:
    mixed = Side("after", (*side(runs=2).runs, run("compare-warm/3", other_values)))
    made = compare(side(), mixed)
    assert (made.verdict, len(made.doubts)) == (Verdict.UNKNOWN, 1)
    assert made.doubts[0].startswith("log probabilities of the same weights differ: 16 log probabilities differ by 0.5")

    def others(record: dict[str, Any]) -> None:
        other_values(record)
        record["image"]["labels"]["dev.bringup.weights-digest"] = "ee"

    made = compare(side(), side(change=others))
    assert made.fingerprint is not None
    assert (made.fingerprint.verdict, made.verdict) == ("differs", Verdict.PASS)


def test_without_log_probabilities_nothing_is_said_of_them() -> None:
    def smoke(record: dict[str, Any]) -> None:
        record["probes"] = [p for p in record["probes"] if p["name"] != "logprobs"]

    assert compare(side(change=smoke), side()).fingerprint is None
