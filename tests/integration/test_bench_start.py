"""Starts timed on the real engine: one cold, one warm, and nothing left. Absolute times are told, not asserted."""

from __future__ import annotations

import json
from pathlib import Path

import docker
import pytest

from tests.integration.support import SESSION, bringup, free_port, leftovers

pytestmark = pytest.mark.integration

PROJECT = f"{SESSION}-timed"


def volumes(engine: docker.DockerClient) -> list[str]:
    return [str(v.name) for v in engine.volumes.list() if str(v.name).startswith(PROJECT)]


def test_a_cold_and_a_warm_start_beside_somebodys_caches(
    engine: docker.DockerClient, image: str, tmp_path: Path, figures: list[str]
) -> None:
    theirs = engine.volumes.create(f"{PROJECT}_state", labels={"com.docker.compose.project": PROJECT})
    done = bringup(
        "bench", "start", "--json", "-n", "1", "--flavour", "cpu", "--project", PROJECT, "--port", str(free_port()),
        "--artifacts", str(tmp_path),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert leftovers(engine, f"{PROJECT}-bench") == []
    assert volumes(engine) == [theirs.name], "the benchmark's own volume goes, the project's stays"
    made = done.json()
    assert [(s["kind"], s["status"], s["released"]) for s in made["starts"]] == [
        ("cold", "pass", "released"), ("warm", "pass", "released"),
    ]  # fmt: skip
    cold, warm = made["starts"]
    assert cold["page_cache"] == "dropped" or cold["page_cache"].startswith("not dropped: ")
    assert warm["page_cache"] == "kept"
    bundle = Path(made["bundle"])
    for start in (cold, warm):
        record = json.loads((bundle.parent / start["bundle"] / "record.json").read_text())
        assert record["plan"]["project"] == f"{PROJECT}-bench"
        assert start["to_first_token"] == pytest.approx(record["started_to_first_token"], abs=0.001)
        assert 0 < start["to_ready"] <= start["to_first_token"]
    assert made["summary"]["cold"]["to_ready"]["p50"] == cold["to_ready"]
    assert json.loads((bundle / "bench-start.json").read_text()) == {k: v for k, v in made.items() if k != "bundle"}
    figures.append(f"bench start, first token, warm / cold: {made['warm_to_cold'].get('to_first_token', 'no ratio')}")
