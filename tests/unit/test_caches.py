"""Hit, miss, off or unknown: from recorded starts, and from every line that could be taken for something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bringup.caches import Answer, CacheVerdict, differences, judge
from bringup.timeline import read_events

DATA = Path(__file__).parents[1] / "data"
READY = "INFO 11-24 10:00:09 [core.py:402] init engine (profile, create kv cache, warmup model) took 3.47 s"
CONFIG = "INFO 11-24 10:00:01 [core.py:93] Initializing a V1 LLM engine (v0.11.2) with config: model='m', seed=0"
NAMES = ["vllm-aot", "vllm-compile", "inductor", "triton", "flashinfer-autotune", "flashinfer-jit", "startup-plan"]


def kept(factors: dict[str, str] | None = None, container: str = "c", **entries: dict[str, int]) -> dict[str, Any]:
    named = {name.replace("_", "-"): found for name, found in entries.items()}
    return {"schema": 1, "container": container, "factors": factors, "entries": named}


def recorded(name: str, before: Any = None, now: Any = None) -> dict[str, CacheVerdict]:
    return {c.name: c for c in judge(read_events((DATA / name).read_text("utf-8")), before, now).caches}


def told(*lines: str, before: Any = None, now: Any = None) -> dict[str, CacheVerdict]:
    return {c.name: c for c in judge(read_events("\n".join(lines)), before, now).caches}


def answers(verdicts: dict[str, CacheVerdict], *names: str) -> list[str]:
    return [str(verdicts[n].verdict) for n in names or NAMES[:3]]


# ---- recorded starts


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("timeline/plain-cold.jsonl", ["miss", "miss", "unknown"]),  # an H200, vLLM 0.26
        ("timeline/plain-cold.log", ["miss", "miss", "unknown"]),
        ("timeline/plain-warm.jsonl", ["hit", "hit", "hit"]),
        ("timeline/eager.jsonl", ["off", "off", "off"]),
        ("timeline/launcher-cold.jsonl", ["miss", "miss", "unknown"]),
        ("timeline/launcher-warm.jsonl", ["hit", "hit", "hit"]),
        ("timeline/cpu-0.32.jsonl", ["off", "off", "off"]),
        ("caches/cpu-cold.jsonl", ["off", "off", "miss"]),
        ("caches/cpu-warm.jsonl", ["off", "off", "hit"]),
        ("caches/cpu-aot-refused.jsonl", ["miss", "off", "miss"]),
        ("timeline/failed-no-flashinfer.log", ["unknown", "unknown", "unknown"]),
    ],
)
def test_what_recorded_starts_say(name: str, wanted: list[str]) -> None:
    found = recorded(name)
    assert list(found) == NAMES
    assert answers(found) == wanted
    assert all(c.evidence for c in found.values() if c.verdict in (Answer.HIT, Answer.MISS))


def test_the_line_that_proves_it_is_there() -> None:
    (line,) = recorded("timeline/plain-warm.jsonl")["vllm-aot"].evidence
    assert line.startswith("Directly load AOT compilation from path /")
    cold = recorded("timeline/plain-cold.jsonl")
    assert any("saved AOT compiled function to" in line for line in cold["vllm-aot"].evidence)
    assert any("Compiling a graph for compile range (1, 8192) takes" in line for line in cold["vllm-compile"].evidence)


def test_the_remembered_memory_plan_is_seen() -> None:
    cold, warm = recorded("timeline/launcher-cold.jsonl"), recorded("timeline/launcher-warm.jsonl")
    assert answers(cold, "startup-plan") + answers(warm, "startup-plan") == ["miss", "hit"]
    assert answers(recorded("timeline/plain-warm.jsonl"), "startup-plan") == ["off"]


def test_what_vllm_refuses_is_told_with_its_reason() -> None:
    refused = recorded("caches/cpu-aot-refused.jsonl")["vllm-aot"]
    assert refused.why == "vLLM refused the entry: 'function' object has no attribute 'finalize_loading'"


# ---- why it was missed


def test_a_miss_names_the_factors_that_differ() -> None:
    before = kept({"argument --max-model-len": "2048", "vllm": "0.32.0", "gpu": "H100"}, inductor={"inductor/ab": 1})
    now = kept({"argument --max-model-len": "1024", "vllm": "0.32.0", "argument --dtype": "half", "gpu": "H100"})
    missed = recorded("caches/cpu-cold.jsonl", before, now)["inductor"]
    assert [(d.factor, d.before, d.now) for d in missed.differs] == [
        ("argument --dtype", None, "half"), ("argument --max-model-len", "2048", "1024"),
    ]  # fmt: skip
    assert "argument --dtype (unset -> half), argument --max-model-len (2048 -> 1024)" in missed.why
    assert "empty" not in missed.why


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        (kept({"a": "1"}), kept({"a": "1"}), "the cache was empty before this start"),
        (kept({"a": "1"}), kept({"a": "2"}), "the cache was empty before this start; differs"),
        (kept(None, inductor={"x": 1}), kept({"a": "1"}), "nothing is known of an earlier start"),
        (kept({"a": "1"}, inductor={"x": 1}), kept({"a": "1"}), "no known factor differs"),
        (None, None, "nothing is known of an earlier start"),
        (kept({"a": "1"}), None, "nothing is known of an earlier start"),
        (None, kept({"a": "1"}), "nothing is known of an earlier start"),
        ({"schema": 99, "factors": {"a": "1"}}, kept({"a": "2"}), "nothing is known of an earlier start"),
        (["no", "dict"], {"schema": 1, "factors": 5, "entries": 6}, "nothing is known of an earlier start"),
        (kept({"a": "1"}, "old", inductor={"x": 1}), kept({"a": "2"}), "nothing is known of an earlier start"),
    ],
)
def test_a_miss_says_what_is_known(before: Any, now: Any, why: str) -> None:
    assert recorded("caches/cpu-cold.jsonl", before, now)["inductor"].why.startswith(why)


def test_a_hit_needs_no_reason() -> None:
    found = recorded("caches/cpu-warm.jsonl", kept({"a": "1"}), kept({"a": "2"}))["inductor"]
    assert (found.verdict, found.differs) == (Answer.HIT, ())


def test_differences_need_both_sides() -> None:
    assert differences(None, {"a": "1"}) == differences({"a": "1"}, None) == ()


# ---- one line is not enough


def test_one_miss_among_hits_is_a_miss() -> None:
    loaded = "Directly load the compiled graph(s) for compile range (1, 8) from the cache, took 0.9 s"
    found = told(loaded, "Compiling a graph for compile range (9, 16) takes 1.0 s", READY)
    assert answers(found, "vllm-compile") == ["miss"]
    assert answers(told("fx graph cache hit for key a", "fx graph cache miss for key b"), "inductor") == ["miss"]
    assert answers(
        told("Directly load AOT compilation from path /a", "saved AOT compiled function to /b"), "vllm-aot"
    ) == ["miss"]


def test_what_the_cache_would_not_take_is_a_miss() -> None:
    bypassed = "Bypassing FX Graph Cache because 'unsupported'"
    assert answers(told("AOTAutograd cache hit for key a", bypassed), "inductor") == ["miss"]


def test_a_model_loaded_and_compiled_again_is_no_hit() -> None:
    lines = (
        "Directly load AOT compilation from path /a",
        "Compiling model again due to a load failure from /a, reason: x",
    )
    assert answers(told(*lines, READY)) == ["miss", "off", "off"]


def test_silence_proves_nothing_before_the_engine_is_ready() -> None:
    assert set(answers(told(CONFIG), "vllm-aot", "vllm-compile", "inductor", "startup-plan")) == {"unknown"}
    assert answers(told(CONFIG, READY), "vllm-aot", "startup-plan") == ["off", "off"]
    assert set(answers(told(""), *NAMES)) == {"unknown"}


@pytest.mark.parametrize(
    "line", [f"{CONFIG}, enforce_eager=True, x=1", "Enforce eager set, disabling torch.compile and CUDAGraphs."]
)
def test_eager_compiles_nothing(line: str) -> None:
    assert answers(told(line)) == ["off", "off", "off"]


def test_switched_off_by_variable() -> None:
    assert answers(told("[backbone] vLLM's torch.compile cache is disabled."), "vllm-compile") == ["off"]


def test_the_lines_of_0_11() -> None:
    cold = ("Cache the graph for dynamic shape for later use", "Compiling a graph for dynamic shape takes 8.00 s")
    warm = "Directly load the compiled graph(s) for dynamic shape from the cache, took 1.000 s"
    assert answers(told(CONFIG, *cold, READY)) == ["off", "miss", "unknown"]
    assert answers(told(CONFIG, warm, READY)) == ["off", "hit", "hit"]


# ---- caches without a line of their own


def test_triton_by_its_entries() -> None:
    few, more = {"triton/a": 1}, {"triton/a": 1, "triton/b": 2}
    new = told(READY, before=kept({}, triton=few), now=kept({}, triton=more))["triton"]
    assert (new.verdict, new.evidence) == (Answer.MISS, ("new entry: triton/b",))
    assert new.why.startswith("1 new entries besides 1")
    same = told(READY, before=kept({}, triton=few), now=kept({}, triton=few))["triton"]
    assert (same.verdict, same.evidence) == (Answer.UNKNOWN, ())
    assert answers(told(READY, before=kept({}), now=kept({})), "triton") == ["off"]
    assert answers(told(READY), "triton") == ["unknown"]
    assert answers(recorded("timeline/plain-warm.jsonl"), "triton") == ["unknown"]
    assert answers(recorded("timeline/cpu-0.32.jsonl"), "triton") == ["off"]
    assert answers(told("Triton is installed, but doesn't include CPU backend. Disabling Triton."), "triton") == ["off"]


def test_flashinfers_tuning_by_its_file() -> None:
    file = "flashinfer_autotune_cache/0.6/90a/k/autotune_configs.json"
    line = f"Using FlashInfer autotune cache file: /var/lib/bringup/cache/{file}"
    there = kept({}, flashinfer_autotune={file: 9})
    assert answers(told(line, before=there, now=there), "flashinfer-autotune") == ["hit"]
    assert answers(told(line, before=kept({}), now=there), "flashinfer-autotune") == ["miss"]
    assert answers(told(line), "flashinfer-autotune") == ["unknown"]
    off = "Skipping FlashInfer autotune because it is disabled."
    assert answers(told(off), "flashinfer-autotune") == ["off"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("Startup plan not applied: current free memory (1.00 GiB) is below the recorded baseline (2.00 GiB)", "miss"),
        ("Ignoring unreadable startup plan /x: bad", "miss"),
        ("Failed to save startup plan to /x: no room", "miss"),
        ("Applying persisted startup plan (fingerprint ab): kv_cache_memory_bytes=1 (1.00 GiB)", "hit"),
    ],
)
def test_the_startup_plan(line: str, wanted: str) -> None:
    assert answers(told(line), "startup-plan") == [wanted]


def test_a_long_line_is_cut_and_the_file_is_json() -> None:
    found = judge(read_events("saved AOT compiled function to /" + "x" * 1000), None, None).to_dict()
    entry = json.loads(json.dumps(found))["caches"][0]
    assert (entry["name"], entry["verdict"], len(entry["evidence"][0])) == ("vllm-aot", "miss", 401)
