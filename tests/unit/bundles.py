"""Bundles for the tests of reports: one of a GPU, whose start and memory were recorded, and ways to spoil one."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from bringup import artifacts, bundle, caches, derive, image, ledger
from bringup.bundle import RECORD, Bundle
from bringup.records import CheckRecord, ProbeRecord, RunRecord, Status, Verdict
from bringup.signature import SUMS
from bringup.timeline import Anchors, build, read_events
from tests.unit import samples
from tests.unit.test_ledger import sample_of

DATA = Path(__file__).parents[1] / "data"
NAME = "plain-warm"  # vLLM 0.26.0 on an H200, its caches kept
SOURCES = {
    "model": "flag",
    "gpu_memory_utilization": "environment",
    "vllm_args": "flag",
    "port": "default",
    "suite": "flag",
}


def on_a_gpu() -> dict[str, str]:
    """The files of a bundle: timeline, memory and caches as recorded, the host as recorded, the answers made up."""
    log = (DATA / "timeline" / f"{NAME}.jsonl").read_text("utf-8")
    anchors = json.loads((DATA / "timeline" / "anchors.json").read_text("utf-8"))[NAME]
    made = build(read_events(log), Anchors(**anchors))
    seen = sample_of(NAME)
    stages = [ledger.Stage(s.name, s.begin, s.end) for s in made.stages if s.begin is not None and s.end is not None]
    seen = dataclasses.replace(seen, stages=stages, after=None)
    held = ledger.make(seen).to_dict() | {"samples": derive.curve(seen.observation)}
    host = json.loads((DATA / "hosts" / "h200.json").read_text("utf-8"))["facts"]
    plan = samples.plan("gpu", gpu_memory_utilization=0.6, vllm_args=("--max-num-seqs", "64"), model="tiny-qwen2")
    labels = samples.labels("gpu") | {"org.opencontainers.image.revision": "8ee4856faf46e0d8a93cd22d2d8c442db5eb8112"}
    record = RunRecord(
        tool_version="0.1.0", command="up", started="2026-11-23T15:59:51.414+00:00",
        finished="2026-11-23T16:00:40.100+00:00", verdict=Verdict.PASS,
        plan=plan.to_dict() | {"sources": SOURCES}, host=host,
        image=image.summary({"Id": samples.IMAGE.id, "Size": 14 * 10**9, "Config": {"Labels": labels}}),
        container=dataclasses.asdict(samples.OWN),
        checks=(check(Status.PASS), check(Status.WARN)), probes=tuple(probes()),
        started_to_first_token=anchors["first_token"] - anchors["asked"], timeline=made.to_dict(), ledger=held,
        caches=caches.judge(read_events(log), None, None).to_dict(),
    )  # fmt: skip
    answer = {"choices": [{"text": " One request after another."}], "usage": {"completion_tokens": 5}}
    return files(record.to_dict()) | {"sample_response.json": artifacts.as_json(answer), "server.log": "INFO started\n"}


def files(record: dict[str, Any]) -> dict[str, str]:
    """A record, and the files beside it that repeat its parts."""
    parts = {f"{n}.json": artifacts.as_json(v) for n in ("timeline", "ledger", "caches") if (v := record.get(n))}
    return {RECORD: artifacts.as_json(record), **parts}


def check(status: Status) -> CheckRecord:
    return CheckRecord(
        name=f"check-{status}", status=status, found="13 GiB free", needed="16 GiB free", remedy="end the other one",
    )  # fmt: skip


def probes() -> list[ProbeRecord]:
    gaps = random.Random(1)
    data = {"first": 0.021, "gaps": [round(gaps.uniform(0.004, 0.009), 6) for _ in range(95)]}
    return [
        ProbeRecord(name="reachable", status=Status.PASS, expected="GET /health: 200", found="200", seconds=0.004),
        ProbeRecord(name="streaming", status=Status.PASS, expected="chunks", found="96 chunks", seconds=0.6, data=data),
        ProbeRecord(name="auth", status=Status.SKIP, expected="HTTP 401", found="no key is set"),
    ]


def loaded(made: dict[str, str], name: str = "b", faults: tuple[str, ...] = ()) -> Bundle:
    """As it would be read."""
    contents = {n: text.encode("utf-8", "backslashreplace") for n, text in made.items()}
    return Bundle(Path(name), json.loads(made[RECORD]), contents, faults)


def changed(made: dict[str, str], **keys: Any) -> dict[str, str]:
    """With other values in its record, and without the files that repeat them."""
    record = json.loads(made[RECORD]) | keys
    return {n: t for n, t in made.items() if n.removesuffix(".json") not in keys} | {RECORD: artifacts.as_json(record)}


def written(directory: Path, made: dict[str, str]) -> Path:
    """On the disk, with its sums."""
    path = artifacts.write(directory, made, [])
    assert (path / SUMS).is_file()
    assert bundle.read(path).faults == ()
    return path


JUNK: tuple[Any, ...] = (
    None,
    [],
    {},
    "",
    "x",
    "<b>",
    -1,
    0,
    1e308,
    float("nan"),
    float("-inf"),
    True,
    [[1]],
    [None],
    {"a": {"b": 1}},
    10**400,
)


def spoiled(made: dict[str, str], seed: int, times: int = 40) -> dict[str, str]:
    """With values of the wrong shape at random places of its record."""
    chance = random.Random(seed)
    record = json.loads(made[RECORD])
    for _ in range(times):
        at: Any = record
        while True:
            keys = list(at) if isinstance(at, dict) else range(len(at))
            if not keys:
                break
            key = chance.choice(list(keys))
            if not isinstance(at[key], dict | list) or not at[key] or chance.random() < 0.25:
                at[key] = copy.deepcopy(chance.choice(JUNK))
                break
            at = at[key]
    return files(record) | {"server.log": "x"}
