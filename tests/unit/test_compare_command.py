"""`bringup compare`: which paths are what, exit codes, and the two outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.recorded_bundles import DATA, probe_says, record, slower, written
from tests.unit.test_cli import Invoke, invoke

__all__ = ["invoke"]
WARM = str(DATA / "compare-warm")
COLD = str(DATA / "compare-cold")


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Three warm starts, each half as long again."""
    for n in (1, 2, 3):
        changed = record(f"compare-warm/{n}")
        slower(1.5)(changed)
        written(tmp_path / "slow" / str(n), changed)
    return tmp_path / "slow"


def test_two_directories_of_runs(invoke: Invoke, slow: Path) -> None:
    code, out, _ = invoke("compare", "--json", WARM, str(slow))
    made = json.loads(out)
    assert (code, made["verdict"], made["base"]["name"], made["other"]["runs"]) == (
        1,
        "fail",
        "compare-warm",
        ["1", "2", "3"],
    )
    assert made["starts"][0]["whole"]["call"] == "slower"
    code, out, _ = invoke("compare", WARM, str(slow))
    assert code == 1
    assert "SLOWER" in out
    assert out.rstrip().endswith("verdict: a regression")
    assert invoke("compare", "--threshold", "60", WARM, str(slow))[0] == 0


def test_two_bundles(invoke: Invoke, slow: Path) -> None:
    code, out, _ = invoke("compare", f"{WARM}/1", str(slow / "1" / "record.json"))
    assert code == 9
    assert "needs 3 runs a side" in out


def test_baselines_are_one_side(invoke: Invoke, slow: Path) -> None:
    named = [a for n in (1, 2, 3) for a in ("--baseline", f"{WARM}/{n}")]
    code, out, _ = invoke("compare", "--json", *named, *(str(slow / n) for n in "123"))
    made = json.loads(out)
    assert (code, len(made["base"]["runs"]), len(made["other"]["runs"])) == (1, 3, 3)


def test_cold_beside_warm_is_unknown(invoke: Invoke) -> None:
    code, out, _ = invoke("compare", COLD, WARM)
    assert code == 9
    assert "not known: starts: the caches differ, cold beside warm" in out


def test_many_are_nodes(invoke: Invoke, tmp_path: Path) -> None:
    for n in range(5):
        changed = record("compare-warm/2")
        probe_says("chat", "fail" if n == 4 else "pass")(changed)
        written(tmp_path / "nodes" / f"node{n}", changed)
    each = [str(tmp_path / "nodes" / f"node{n}") for n in range(5)]
    for paths in (each, [str(tmp_path / "nodes")]):
        code, out, _ = invoke("compare", "--json", *paths)
        made = json.loads(out)
        assert code == 1
        assert [row["name"] for row in made["nodes"] if row["outlier"]] == ["node4"]
    code, out, _ = invoke("compare", *each)
    assert "* node4" in out
    assert "worse: node4: failed: chat" in out


@pytest.mark.parametrize("paths", [("nowhere", WARM), (WARM, "nowhere"), (f"{WARM}/1",), ()])
def test_no_bundle_is_usage(invoke: Invoke, paths: tuple[str, ...]) -> None:
    code, _, err = invoke("compare", *paths)
    assert code == 2
    assert "Traceback" not in err


def test_names_that_are_alike_are_told_apart(invoke: Invoke) -> None:
    made = json.loads(invoke("compare", "--json", f"{WARM}/1", f"{COLD}/1", f"{WARM}/2")[1])
    assert [row["name"] for row in made["nodes"]] == [f"{WARM}/1", f"{COLD}/1", "2"]
