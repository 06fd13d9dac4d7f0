"""N nodes: the one that is not like the others is found, however far off it is."""

from __future__ import annotations

from typing import Any

import pytest

from bringup.comparison import show
from bringup.comparison.nodes import line_up
from bringup.comparison.sides import Side
from bringup.records import Verdict
from tests.unit.recorded_bundles import Change, probe_says, renamed, run, side, slower


def nodes(count: int = 8, odd: Change = lambda _: None) -> list[Side]:
    """That many nodes of one start each, a little apart; the last one is odd."""
    return [
        Side(f"n{n}", (run("compare-warm/2", odd if n == count - 1 else slower(1 + n / 1000)),)) for n in range(count)
    ]


def test_nodes_alike() -> None:
    made = line_up(nodes())
    assert made.verdict is Verdict.PASS
    assert not any(row.outlier for row in made.rows)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (slower(1.6), "start +59 %"),
        (slower(3.0, "model-load"), "model load +200 %"),
        (probe_says("streaming", "fail"), "failed: streaming"),
    ],
)
def test_a_worse_node_is_marked(odd: Change, said: str) -> None:
    made = line_up(nodes(odd=odd))
    assert [row.name for row in made.rows if row.outlier] == ["n7"]
    assert made.regressions == (f"n7: {said}",)
    assert made.verdict is Verdict.FAIL
    title, _, rows = show.nodes_table(made)
    assert title == "8 nodes, 1 of them unlike the others (*)"
    assert [row[0] for row in rows if row[0].startswith("*")] == ["* n7"]


def driver(record: dict[str, Any]) -> None:
    record["host"]["kernel"] = "6"
    record["host"]["gpu"] = {"driver": "570.1"}


@pytest.mark.parametrize(("odd", "said"), [(slower(0.5), "start -50 %"), (driver, "GPU driver 570.1, not -")])
def test_an_unlike_node_is_marked_and_no_regression(odd: Change, said: str) -> None:
    made = line_up(nodes(odd=odd))
    assert (made.verdict, made.rows[-1].unlike) == (Verdict.PASS, (said,))


def test_a_node_that_failed_to_start() -> None:
    def dies(record: dict[str, Any]) -> None:
        record.update(error="the server died", verdict="fail", started_to_first_token=None)

    made = line_up(nodes(odd=dies))
    assert made.regressions == ("n7: the server died",)


def test_a_node_of_unknown_verdict_leaves_the_whole_unknown() -> None:
    def unsure(record: dict[str, Any]) -> None:
        record["verdict"] = "unknown"

    assert line_up(nodes(odd=unsure)).verdict is Verdict.UNKNOWN


def test_three_nodes_cannot_tell_which_one_is_odd() -> None:
    made = line_up(nodes(3, odd=slower(1.6)))
    assert (made.verdict, made.regressions) == (Verdict.UNKNOWN, ())
    assert "needs 4 nodes" in made.doubts[0]
    assert line_up(nodes(3)).verdict is Verdict.PASS


def test_a_cold_node_is_not_slow_but_cold() -> None:
    made = line_up([*nodes(5), renamed(side("cold", runs=1), "cold")])
    assert made.rows[-1].worse == ()
    assert made.rows[-1].unlike == ("caches cold, not warm",)
    assert made.rows[-1].percent == 0


def test_a_node_of_several_runs_has_the_median_of_them() -> None:
    made = line_up([renamed(side(), f"n{n}") for n in range(4)])
    assert {(row.runs, round(row.whole or 0, 2)) for row in made.rows} == {(3, 37.92)}


def test_a_node_of_other_weights_is_unlike() -> None:
    def other(record: dict[str, Any]) -> None:
        data = next(p for p in record["probes"] if p["name"] == "logprobs")["data"]
        data["logprobs"] = [v - 0.5 for v in data["logprobs"]]

    made = line_up(nodes(odd=other))
    assert [row.unlike for row in made.rows if row.outlier] == [("other log probabilities",)]


def test_a_probe_that_is_slow_on_one_node_is_marked() -> None:
    def waits(record: dict[str, Any]) -> None:
        next(p for p in record["probes"] if p["name"] == "streaming")["seconds"] *= 4

    made = line_up(nodes(odd=waits))
    assert made.verdict is Verdict.PASS
    assert [row.unlike for row in made.rows if row.outlier] == [("probe streaming +300 %",)]
