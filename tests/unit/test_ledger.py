"""The ledger against what an H200 showed, and against everything that can be missing.

tests/data/memory: vLLM 0.26.0 serving Qwen2.5-1.5B's shape at 0.6 of an H200; NVML by process every quarter of a
second (a sample is left out where nothing changed), and vLLM's own records about memory.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup import catalog, fit, ledger
from bringup.ledger import GIB, Observation, Sample, Seen, Stage
from bringup.lock import LockedFile, LockedModel

DATA = Path(__file__).parents[1] / "data" / "memory"
H200 = 143771 * 2**20
MIB = 2**20
STATED = {  # GiB, as in the records
    "plain-cold": {"activation_gib": 0.57, "graphs_gib": 0.50390625, "kv_cache_gib": 80.11},
    "plain-warm": {"activation_gib": 0.51, "graphs_gib": 0.50390625, "kv_cache_gib": 80.17},
    "eager": {"activation_gib": 0.54, "graphs_gib": 0.0, "kv_cache_gib": 80.14},
}


def sample_of(name: str) -> Seen:
    """What the ledger is made from, of a recorded start."""
    raw = json.loads((DATA / f"{name}.json").read_text())
    said = {r["msg"].split(" %")[0].rstrip("."): r for r in raw["said"]}
    samples = [Sample(raw["t0"] + t, (used,), {int(p): n for p, n in by.items()}) for t, used, by in raw["memory"]]
    first_token = raw["t0"] + raw["first_token_s"]
    stages = [Stage(ledger.LOAD, said["Loading model from scratch"]["t"], said["Model loading took"]["t"])]
    if "Graph capturing finished in" in said:
        end = said["Graph capturing finished in"]
        stages.append(Stage("graphs", end["t"] - end["args"][0], end["t"]))
    stages.append(Stage("everything", raw["t0"], first_token))
    model = catalog.load()["qwen2.5-1.5b-instruct"]
    return Seen(
        flavour="gpu",
        observation=Observation(tuple(s for s in samples if s.t <= first_token), frozenset(samples[-4].by_pid or {})),
        serving=next(s for s in reversed(samples) if s.by_pid),
        after=samples[-1],
        facts={"weights_gib": 2.98, "non_torch_gib": 0.22, **STATED[name]},
        stages=stages,
        predicted=ledger.predict(model.shape, model.weights, raw["argv"], H200),
        card=H200,
    )


def rows(made: ledger.Ledger) -> dict[str, ledger.Row]:
    return {row.name: row for row in made.rows}


def moments(made: ledger.Ledger) -> dict[str, ledger.Moment]:
    return {m.name: m for m in made.moments}


@pytest.mark.parametrize("name", STATED)
def test_a_recorded_start_on_an_h200(name: str) -> None:
    made = ledger.make(sample_of(name))
    seen, when = rows(made), moments(made)
    for row in ("weights", "KV cache"):  # `models fit` against vLLM
        difference = ledger.percent(seen[row].stated, seen[row].predicted)
        assert difference is not None
        assert abs(difference) < 2, row
    stated, measured = seen["total"].stated, seen["total"].measured
    assert stated == sum(row.stated or 0 for row in made.rows if row.name not in ("total", ledger.CONTEXT))
    assert measured is not None
    assert 85 * GIB < measured < 86 * GIB
    assert seen[ledger.CONTEXT].measured == measured - stated
    assert 0.5 * GIB < measured - stated < 2 * GIB, "a CUDA context and little else"
    assert when["before"].card == when["after"].card == 615 * MIB + 64 * 1024
    assert (when["before"].server, when["after"].server) == (0, 0)
    assert (when["peak"].server or 0) >= measured
    assert when["peak"].stage == {"eager": "serving"}.get(name, "everything")
    assert when["serving"].server == measured
    assert made.unknown == ()


def test_memory_grows_by_the_weights_while_they_are_loaded() -> None:
    """Independent of vLLM's own figure: what NVML shows more at the end of the load than at its beginning."""
    seen = rows(ledger.make(sample_of("plain-warm")))
    assert seen["weights"].measured == 3963617280 - 715128832
    assert abs(ledger.percent(seen["weights"].measured, seen["weights"].stated) or 99) < 2
    assert seen["KV cache"].measured is None, "it comes within one sample of its neighbours"


def test_the_runbooks_breakdown_from_measured_data() -> None:
    made = ledger.make(replace(sample_of("plain-warm"), on_disk=150 * MIB))
    table = ledger.breakdown(made)
    assert [name for name, _, _ in table] == [
        "model weights", "compile cache", "KV cache", "CUDA graphs", "all else", "total",
    ]  # fmt: skip
    sizes = {name: size for name, size, _ in table}
    assert sizes.pop("compile cache") == 150 * MIB
    assert "disk" in table[1][2], "it is no memory, and not in the total"
    assert sizes.pop("total") == sum(size or 0 for size in sizes.values())
    assert made.to_dict()["breakdown"][-1] == {"component": "total", "bytes": 92243230720, "from": "measured (NVML)"}


def test_ledger_json_is_json_and_has_the_differences() -> None:
    made = json.loads(json.dumps(ledger.make(sample_of("eager")).to_dict()))
    row = made["rows"][0]
    assert row["stated_to_predicted_percent"] == ledger.percent(row["stated"], row["predicted"])
    assert row["measured_to_stated_percent"] is not None
    assert [m["name"] for m in made["moments"]] == ["before", "peak", "serving", "after"]


# ---- what is missing is missing


def test_nothing_seen_is_no_zero() -> None:
    made = ledger.make(Seen(flavour="gpu"))
    assert {(row.predicted, row.stated, row.measured) for row in made.rows} == {(None, None, None)}
    assert {(m.card, m.server, m.rss) for m in made.moments} == {(None, None, None)}
    assert moments(made)["peak"].note.startswith("not observed")
    assert ledger.NO_NVML in made.unknown


def test_nvml_that_hides_processes_leaves_the_card() -> None:
    seen = sample_of("plain-warm")
    blind = [replace(s, by_pid=None) for s in seen.observation.samples]
    assert seen.serving is not None
    made = ledger.make(replace(
        seen, observation=Observation(tuple(blind), seen.observation.pids), serving=replace(seen.serving, by_pid=None),
    ))  # fmt: skip
    assert rows(made)["total"].measured is None
    assert rows(made)[ledger.CONTEXT].measured is None
    assert (moments(made)["serving"].card, moments(made)["serving"].server) == (92897411072, None)
    assert rows(made)["weights"].measured is None


def test_others_on_the_card_are_not_ours() -> None:
    seen = sample_of("plain-warm")
    assert seen.serving is not None
    serving = replace(seen.serving, by_pid={**(seen.serving.by_pid or {}), 99999: 5 * GIB})
    assert rows(ledger.make(replace(seen, serving=serving)))["total"].measured == 92243230720
    made = ledger.make(replace(seen, observation=replace(seen.observation, pids=frozenset({1}))))
    assert rows(made)["total"].measured is None, "of a process without a byte nothing was seen"


@pytest.mark.parametrize("key", ["weights_gib", "kv_cache_gib", "graphs_gib"])
def test_what_vllm_does_not_state(key: str) -> None:
    seen = sample_of("plain-warm")
    made = ledger.make(replace(seen, facts={k: v for k, v in seen.facts.items() if k != key}))
    total = rows(made)["total"]
    assert any("not stated" in line for line in made.unknown)
    assert total.measured == 92243230720
    if key == "graphs_gib":
        assert total.note == "stated: without CUDA graphs"
    else:
        assert (total.stated, rows(made)[ledger.CONTEXT].measured) == (None, None)


def test_a_failed_start_has_what_was_seen() -> None:
    seen = sample_of("plain-warm")
    early = Observation(seen.observation.samples[:8], seen.observation.pids, "RuntimeError: x")
    made = ledger.make(replace(seen, observation=early, serving=None, facts={"weights_gib": 2.98}))
    assert (moments(made)["peak"].server, moments(made)["serving"].note) == (3848273920, "it does not serve")
    assert moments(made)["peak"].stage == ledger.LOAD
    assert "sampling ended early: RuntimeError: x" in made.unknown


def test_the_peak_is_in_the_shortest_stage_that_was_under_way() -> None:
    stages = [Stage("start", 0, 10), Stage("load", 2, 5), Stage("read", 3, 4)]
    assert [ledger.stage_at(stages, t) for t in (1, 2.5, 3.5, 11)] == ["start", "load", "read", ""]
    assert ledger.stage_at([], 1) == ""


def test_a_server_that_ran_before_has_only_its_present() -> None:
    seen = sample_of("plain-warm")
    made = ledger.make(replace(seen, observation=Observation((), seen.observation.pids), after=None))
    when = moments(made)
    assert (when["before"].card, when["before"].note) == (None, "not observed: it ran before")
    assert (when["peak"].server, when["peak"].stage) == (92243230720, "serving")
    assert when["after"].note == "it still runs"


# ---- the cpu flavour


def test_on_a_cpu_it_is_the_processes_memory() -> None:
    samples = (Sample(1.0), Sample(2.0, rss=5 * GIB), Sample(3.0, rss=3 * GIB))
    made = ledger.make(Seen(
        flavour="cpu", observation=Observation(samples), serving=Sample(4.0, rss=3 * GIB, pss=2 * GIB),
        facts={"kv_cache_gib": 1.0}, stages=[Stage(ledger.LOAD, 1.5, 2.5)], weights=4 * MIB,
    ))  # fmt: skip
    seen, when = rows(made), moments(made)
    assert (seen["weights"].predicted, seen["KV cache"].stated, seen["total"].measured) == (4 * MIB, GIB, 2 * GIB)
    assert "PSS" in seen["total"].note
    assert (when["before"].rss, when["before"].note) == (None, "no process yet")
    assert (when["peak"].rss, when["peak"].stage, when["serving"].rss) == (5 * GIB, ledger.LOAD, 3 * GIB)
    assert "weights: not stated by vLLM" in made.unknown
    assert [name for name, _, _ in ledger.breakdown(made)] == [
        "model weights", "compile cache", "KV cache", "all else", "total",
    ]  # fmt: skip
    assert ledger.NO_RSS in ledger.make(Seen(flavour="cpu", serving=Sample(4.0))).unknown


# ---- prediction


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ((), {}),
        (("--gpu-memory-utilization", "0.6"), {"utilization": 0.6}),
        (("--gpu_memory_utilization=0.6", "--max_model_len=4096"), {"utilization": 0.6, "max_model_len": 4096}),
        (("--gpu-memory-utilization", "0.9", "--gpu-memory-utilization=0.5"), {"utilization": 0.5}),
        (("--max-num-seqs", "8", "--enforce-eager"), {"max_num_seqs": 8, "eager": True}),
        (("--max-model-len", "auto", "--max-num-seqs"), {}),
    ],
)
def test_the_prediction_is_that_of_models_fit(argv: tuple[str, ...], changed: dict[str, Any]) -> None:
    model = catalog.load()["qwen2.5-1.5b-instruct"]
    assert model.shape is not None
    assert model.weights is not None
    expected = fit.fit(model.shape, model.weights, fit.Asked(vram=H200, **changed))
    assert ledger.predict(model.shape, model.weights, argv, H200) == expected


def test_no_prediction_without_dimensions_or_card() -> None:
    model = catalog.load()["qwen2.5-1.5b-instruct"]
    assert ledger.predict(None, model.weights, (), H200) is None
    assert ledger.predict(model.shape, None, (), H200) is None
    assert ledger.predict(model.shape, model.weights, (), None) is None


# ---- files

LOCKED = LockedModel("m", "local:x", "MIT", (
    LockedFile("config.json", 660, "a" * 64), LockedFile("model.safetensors", 3, "b" * 64),
    LockedFile("model.safetensors.index.json", 3, "c" * 64), LockedFile("sub/merges.txt", 3, "d" * 64),
    LockedFile("odd.txt", 3, "e" * 64),
))  # fmt: skip


def record(**changed: Any) -> str:
    known: dict[str, Any] = {
        "logger": "bringup.inside", "msg": "weights of %s are as locked: %d files, digest %s",
        "args": ["m", 5, LOCKED.digest],
    }  # fmt: skip
    return json.dumps(known | changed)


def test_files_and_what_they_are_for() -> None:
    made = ledger.files(LOCKED, f"no json\n{record()}\n")
    assert [(f.path, f.purpose, f.verified) for f in made] == [
        ("config.json", "architecture and dimensions", True),
        ("model.safetensors", "weights", True),
        ("model.safetensors.index.json", "which file holds which weight", True),
        ("sub/merges.txt", "merges of byte pairs", True),
        ("odd.txt", "other", True),
    ]
    assert ledger.files(None, record()) == ()


@pytest.mark.parametrize(
    "log",
    [
        "",
        "weights of %s are as locked",
        record(logger="vllm.logger"),
        record(args=["other", 5, LOCKED.digest]),
        record(args=["m", 5, "0" * 64]),
        record(args=[]),
        record(args=None),
        record(msg="not: weights of %s are as locked"),
        '["weights of %s are as locked"]',
    ],
)
def test_verified_only_if_the_entry_point_says_so_of_these_files(log: str) -> None:
    assert {f.verified for f in ledger.files(LOCKED, log)} == {None}
    made = ledger.make(Seen(flavour="cpu", files=ledger.files(LOCKED, log)))
    assert "files: no record of this start says that they are as locked" in made.unknown
