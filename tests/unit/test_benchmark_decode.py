"""benchmarks/gpu/decode.py: what two servers' rates are compared by, and what must be equal for that."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DIRECTORY = Path(__file__).parents[2] / "benchmarks/gpu"
HIT = "INFO Directly load AOT compilation from path /caches/torch_aot_compile/{}/rank_0_0/model\n"
MISS = "INFO saved AOT compiled function to /caches/torch_aot_compile/{}/rank_0_0/model\n"


@pytest.fixture(scope="module")
def decode() -> Iterator[Any]:
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DIRECTORY)
        yield importlib.import_module("decode")
    for name in set(sys.modules) - before:  # "start" and "watch" are names that others may have
        if str(DIRECTORY) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def test_relative_takes_out_what_hits_all_in_a_round(decode: Any) -> None:
    draw = random.Random(0)
    machine = [draw.uniform(0.5, 2) for _ in range(9)]
    bursts = {
        name: [dict.fromkeys(decode.FIGURES, speed * now) for now in machine]
        for name, speed in (("plain.1.1", 100.0), ("default.1.1", 98.0))
    }
    found = decode.relative(bursts)
    for figure in decode.FIGURES:
        assert found["plain.1.1"][figure] == pytest.approx(100 / 99)
        assert found["default.1.1"][figure] == pytest.approx(98 / 99)
    (said, *_) = decode.compared(1, [{"plain": [found["plain.1.1"]], "default": [found["default.1.1"]]}])
    assert "default by plain, tokens/s: 0.980 (1 and 1 starts: no interval)" in said


@pytest.mark.parametrize(
    ("plain", "default", "fault"),
    [
        (HIT.format("a"), HIT.format("a"), ""),
        ("", "", ""),  # a CPU, or eager: nothing of the kind
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
