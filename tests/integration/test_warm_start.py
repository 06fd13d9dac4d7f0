"""Caches on the real CPU image: a cold start misses, a warm one is proven to hit, a changed factor is named.

vLLM's CPU backend uses torch's cache of compiled graphs only, and profile `default` compiles. The starts follow each
other in the order of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
import requests

from tests.integration.support import MODEL, SESSION, bringup, free_port, leftovers

pytestmark = pytest.mark.integration

PROJECT = f"{SESSION}-caches"
WARM = f"{SESSION}:warm"
PROMPTS = ("Explain what a GPU is in one sentence:", "Explain KV cache in one sentence:", "The quick brown")


@dataclass(frozen=True)
class Started:
    """One start: what its caches did, what it answered, its log, seconds from container start to first token."""

    caches: dict[str, Any]
    answers: list[str]
    log: str
    seconds: float


@dataclass(frozen=True)
class Starter:
    """Starts the server with the project's volume, asks, and takes it down again."""

    artifacts: Path
    image: str
    project: str = PROJECT

    def __call__(self, profile: str = "default", vllm: tuple[str, ...] = ()) -> Started:
        port = free_port()
        where = ["--image", self.image, "--project", self.project, "--port", str(port)]
        where += ["--artifacts", str(self.artifacts), "--timeout", "10m"]
        more = ("--", *vllm) if vllm else ()
        up = bringup("up", "--json", "--flavour", "cpu", "--profile", profile, *where, *more, timeout=900)
        assert up.code == 0, up.err
        record = up.json()
        answers = [ask(port, prompt) for prompt in PROMPTS]
        assert bringup("down", "--project", self.project).code == 0
        bundle = Path(record["bundle"])
        caches = json.loads((bundle / "caches.json").read_text())
        assert caches == record["caches"]
        log = (bundle / "server.log").read_text()
        return Started({c["name"]: c for c in caches["caches"]}, answers, log, record["started_to_first_token"])


def ask(port: int, prompt: str) -> str:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 32, "temperature": 0}
    answer = requests.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
    return str(answer.json()["choices"][0]["text"])


@pytest.fixture(scope="module")
def start(engine: docker.DockerClient, image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    yield Starter(tmp_path_factory.mktemp("artifacts"), image)
    bringup("down", "--project", PROJECT, "--volumes")
    assert leftovers(engine, PROJECT) == []


@pytest.fixture(scope="module")
def cold(start: Starter) -> Started:
    return start()


@pytest.fixture(scope="module")
def warm(start: Starter, cold: Started) -> Started:
    del cold
    return start()


@pytest.fixture(scope="module")
def changed(start: Starter, warm: Started) -> Started:
    del warm
    return start(vllm=("--dtype", "float32"))


def test_a_cold_start_misses_and_says_so(cold: Started, figures: list[str]) -> None:
    figures.append(f"compiling start with empty caches: {cold.seconds:.1f} s")
    found = cold.caches["inductor"]
    assert found["verdict"] == "miss"
    assert any("cache miss for key" in line for line in found["evidence"])
    assert found["why"] == "the cache was empty before this start"
    assert {n: cold.caches[n]["verdict"] for n in ("vllm-aot", "vllm-compile", "triton", "startup-plan")} == {
        "vllm-aot": "off", "vllm-compile": "off", "triton": "off", "startup-plan": "off",
    }  # fmt: skip


def test_a_warm_start_is_proven_to_hit(warm: Started, figures: list[str]) -> None:
    figures.append(f"the same with its caches: {warm.seconds:.1f} s")
    found = warm.caches["inductor"]
    assert (found["verdict"], found["differs"]) == ("hit", [])
    assert any("fx graph cache hit for key" in line for line in found["evidence"])


def test_a_changed_factor_is_named(changed: Started) -> None:
    found = changed.caches["inductor"]
    assert found["verdict"] == "miss"
    assert found["differs"] == [{"factor": "argument --dtype", "before": None, "now": "float32"}]


def test_answers_do_not_depend_on_caches(start: Starter, cold: Started, warm: Started) -> None:
    eager = start(profile="eager")
    assert cold.answers == warm.answers == eager.answers
    assert all(cold.answers)
    assert {eager.caches[n]["verdict"] for n in ("vllm-aot", "vllm-compile", "inductor")} == {"off"}


def test_caches_of_the_image(
    engine: docker.DockerClient, base: str, cold: Started, tmp_path: Path, figures: list[str]
) -> None:
    project = f"{PROJECT}-baked"
    where = ("--flavour", "cpu", "--project", project, "--artifacts", str(tmp_path), "--image", WARM)
    try:
        env = {"BRINGUP_BASE": base} if base else None
        built = bringup("build", "--json", "--warm", "--profile", "default", *where, env=env, timeout=900)
        assert built.code == 0, built.err
        assert built.json()["labels"]["dev.bringup.warm"]
        assert leftovers(engine, f"{project}-warm") == []
        seeded = Starter(tmp_path, WARM, project)()
        figures.append(f"the same from caches of the image: {seeded.seconds:.1f} s")
        assert "the image's were put in place" in seeded.log
        assert seeded.caches["inductor"]["verdict"] == "hit"
        assert seeded.answers == cold.answers
    finally:
        bringup("down", "--project", project, "--volumes")
        if engine.images.list(WARM):
            engine.images.remove(WARM, force=True)
    assert leftovers(engine, project) == []
