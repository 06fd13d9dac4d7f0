"""benchmarks/gpu/decode.py: what two servers' rates are compared by, and what must be equal for that."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

HIT = "INFO Directly load AOT compilation from path /caches/torch_aot_compile/{}/rank_0_0/model\n"
READY = "INFO 11-29 09:20:00 [core.py:340] init engine (profile, create kv cache, warmup model) took {} s\n"
MISS = "INFO saved AOT compiled function to /caches/torch_aot_compile/{}/rank_0_0/model\n"


@pytest.fixture(scope="module")
def decode(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("decode")


def test_a_turn_takes_out_what_hits_all(decode: Any) -> None:
    draw = random.Random(0)
    asked = []
    for _ in range(9):
        machine = draw.uniform(0.5, 2)
        speeds = {"plain.1.1": 100 * machine, "default.1.1": 98 * machine}
        asked.append({name: dict.fromkeys(decode.FIGURES, speed) for name, speed in speeds.items()})
    own = decode.side_by_side(asked)
    for figure in decode.FIGURES:
        assert own["plain.1.1"][figure] == pytest.approx(100 / 99)
        assert own["default.1.1"][figure] == pytest.approx(98 / 99)
    (said, *_) = decode.compared(1, [{"plain": [own["plain.1.1"]], "default": [own["default.1.1"]]}])
    assert "default by plain, tokens/s: 0.980 (1 and 1 starts: no interval)" in said


def test_what_slows_some_turns_down_is_not_in_the_undisturbed_rate(decode: Any) -> None:
    slow = [1.0, 0.4, 0.7, 0.9, 1.0, 0.5, 0.6, 0.8, 1.0, 0.3]
    asked = [
        {"plain.1.1": dict.fromkeys(decode.FIGURES, 100 * s), "default.1.1": dict.fromkeys(decode.FIGURES, 98 * s * s)}
        for s in slow
    ]
    own = decode.side_by_side(asked)
    wave = {"plain": [own["plain.1.1"]], "default": [own["default.1.1"]]}
    said = [line for line in decode.compared(1, [wave]) if "undisturbed" in line]
    assert said == [
        "  1 streams  default by plain, tokens/s after the first, undisturbed: 0.980 (1 and 1 starts: no interval)"
    ]
    assert own["default.1.1"]["tok_s"] < 0.9 < own["plain.1.1"]["tok_s"], "in most turns it is slower"


def test_a_turn_has_one_start_of_each_arm_and_a_round_all_starts(decode: Any) -> None:
    arms = [["a.1.1", "a.1.2", "a.1.3"], ["b.1.1", "b.1.2", "b.1.3"], ["c.1.1"]]
    draw = random.Random(0)
    rounds = [decode.turns(arms, draw) for _ in range(50)]
    for turns in rounds:
        assert all(sorted(name[0] for name in turn) == ["a", "b", "c"] for turn in turns)
        assert {name for turn in turns for name in turn} == {name for arm in arms for name in arm}
    first = [turns[0] for turns in rounds]
    assert len({tuple(turn) for turn in first}) > 20  # another order, other starts side by side


@pytest.mark.parametrize(
    ("plain", "default", "fault"),
    [
        (HIT.format("a"), HIT.format("a"), ""),
        ("", "", ""),  # a CPU, or eager: nothing of the kind
        (READY.format(13), READY.format(32), ""),
        (HIT.format("b"), HIT.format("a"), "plain-same.1.1 runs .*/b/.* default .*/a/"),
        (HIT.format("a"), MISS.format("a"), "default.1.1 compiled .*/a/.*start.py ARM\\+cold"),
        (MISS.format("a"), HIT.format("a"), "plain-same.1.1 compiled .*/a/"),
        (HIT.format("a"), "", "plain-same.1.1 runs .*/a/"),
    ],
)
def test_plain_with_our_caches_runs_our_code(decode: Any, plain: str, default: str, fault: str) -> None:
    arms = decode.start.arms(["plain-same@default:"])
    logs = {"plain-same.1.1": plain, "default.1.1": default, "plain.1.1": HIT.format("c")}
    starts = {name: arms[name.split(".")[0]] for name in logs}
    if not fault:
        decode.same_code(logs, starts)
        return
    with pytest.raises(SystemExit, match=fault):
        decode.same_code(logs, starts)


def test_plain_with_our_caches_is_given_our_path(decode: Any, tmp_path: Path) -> None:
    start = decode.start
    (tmp_path / "model").mkdir()
    bench = start.Bench(tmp_path / "model", "tiny", tmp_path, tmp_path, tmp_path, "0.1", start.Gpu())
    arms = start.arms(["plain-same@default:"])
    models = {}
    for name in ("plain", "plain-same"):
        argv, environment = start.command_line(bench, arms[name], tmp_path / f"{name}.jsonl")
        models[name] = argv[argv.index("--model") + 1]
        assert ("VLLM_CACHE_ROOT" in environment) == (name == "plain-same")
    assert models == {"plain": str(tmp_path / "model"), "plain-same": "/opt/bringup/models/tiny"}


def test_a_server_that_was_left_over_is_not_taken_for_the_one_that_was_started(
    decode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode.probe, "wait_healthy", lambda *_: (1.0, 2.0))
    monkeypatch.setattr(decode, "family", lambda _: {7: 0.0, 8: 0.0})
    monkeypatch.setattr(decode, "command", {7: "python -m bringup.inside.serve", 8: "VLLM::EngineCore"}.get)
    starting = decode.Starting("plain.1.1", 18003, Path("/x.log"), SimpleNamespace(pid=7, poll=lambda: 1), 0.0)
    assert starting.answering().pids == {"API": 7, "engine": 8}
    monkeypatch.setattr(decode, "family", lambda _: {7: 0.0})
    with pytest.raises(SystemExit, match=r"what answers on port 18003 is no process of plain\.1\.1"):
        starting.answering()
