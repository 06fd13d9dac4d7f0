"""`bringup doctor` on this machine: what is recorded is judged the same, and torch is asked in a real container."""

from __future__ import annotations

import json
from pathlib import Path

import docker
import pytest

from bringup.edge import gpu
from tests.integration.support import bringup, free_port

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("image")]
IMAGE = "bringup:cpu-tiny-qwen2"


def test_a_recorded_host_is_judged_as_the_one_that_was_looked_at(tmp_path: Path) -> None:
    ask = ("doctor", "--flavour", "cpu", "--model", "tiny-qwen2", "--port", str(free_port()), "--json")
    seen = bringup(*ask, "--save-facts", "host.json", cwd=tmp_path)
    again = bringup(*ask, "--facts", "host.json", cwd=tmp_path)
    assert seen.code == again.code == 0, seen.err
    assert json.loads(seen.out) == json.loads(again.out)
    assert {r["status"] for r in json.loads(seen.out)} <= {"pass", "skip", "warn"}
    assert [p.name for p in tmp_path.iterdir()] == ["host.json"]


def test_an_engine_that_cannot_give_a_gpu_is_told_by_a_real_container(engine: docker.DockerClient) -> None:
    if gpu.read().gpus:
        pytest.skip("this host has a GPU")
    before = {c.id for c in engine.containers.list(all=True, filters={"ancestor": IMAGE})}
    done = bringup("doctor", "--flavour", "gpu", "--model", "tiny-qwen2", "--image", IMAGE, "--in-image", "--json")
    assert done.code == 3, done.err
    torch = next(r for r in json.loads(done.out) if r["name"] == "torch")
    assert torch["status"] == "fail"
    assert "no container with a GPU" in torch["found"] or "has no GPU" in torch["found"]
    left = {c.id for c in engine.containers.list(all=True, filters={"ancestor": IMAGE, "status": "created"})}
    assert left <= before
