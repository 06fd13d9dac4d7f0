"""Which flavour and why; and gathering the facts, from a made-up engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bringup.checks.facts import (
    HostFacts,
    ImageFacts,
    can_reserve_gpu,
    choose_flavour,
    gather,
    gather_engine_gpu,
    gather_gpu_alone,
    gather_here,
    needs_cdi,
)
from bringup.edge import gpu, host, node
from bringup.edge.docker import ContainerState, Engine, EngineFacts
from bringup.edge.gpu import GpuState
from bringup.edge.node import NodeFacts
from bringup.edge.place import Place
from bringup.errors import EvidenceMissing, TargetUnavailable
from bringup.plan import Plan
from tests.unit.samples import ENGINE, GPU, H100, NO_ENGINE, NO_GPU, NODE, OWN, labels, plan

CPU_PLAN = plan()
GPU_PLAN = plan("gpu")

# ---- of this machine alone


def test_a_local_server_asks_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Engine, "facts", lambda _: pytest.fail("an engine was asked"))
    monkeypatch.setattr(gpu, "read", lambda: NO_GPU)
    monkeypatch.setattr(host, "port_holder", lambda *_: None)
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    seen = gather_here(replace(CPU_PLAN, target="local"), Place(), gather_gpu_alone(), OWN, tmp_path, True)
    assert (seen.local, seen.target, seen.own_container, seen.weights) == (True, "local", OWN, True)
    assert not seen.engine.reachable
    assert seen.disk_free is not None
    assert seen.image.present is None


# ---- the flavour

CDI = replace(ENGINE, gpu_devices=("nvidia.com/gpu=0",))
RUNTIME = replace(ENGINE, runtimes=("nvidia", "runc"))


@pytest.mark.parametrize(
    ("asked", "engine_facts", "gpu_state", "flavour", "reason"),
    [
        ("cpu", RUNTIME, GPU, "cpu", "cpu was asked for"),
        ("gpu", NO_ENGINE, NO_GPU, "gpu", "gpu was asked for"),
        ("auto", RUNTIME, GPU, "gpu", "NVIDIA H100, and the engine has the nvidia runtime"),
        ("auto", CDI, GPU, "gpu", "NVIDIA H100, and the engine has CDI devices"),
        ("auto", CDI, replace(GPU, gpus=(H100, H100)), "gpu", "2 x NVIDIA H100, and the engine has CDI devices"),
        ("auto", RUNTIME, NO_GPU, "cpu", "no NVIDIA driver answers (NVML: NVML Shared Library Not Found)"),
        ("auto", RUNTIME, replace(NO_GPU, error=gpu.NO_BINDINGS), "cpu",
         "whether there is a GPU is not known: the Python package nvidia-ml-py is not installed"),
        ("auto", RUNTIME, replace(GPU, gpus=()), "cpu", "the NVIDIA driver shows no usable GPU"),
        ("auto", RUNTIME, replace(GPU, gpus=(), error="GPU 0: GPU is lost"), "cpu",
         "the NVIDIA driver shows no usable GPU (GPU 0: GPU is lost)"),
        ("auto", ENGINE, GPU, "cpu", "a GPU is there, but the engine has neither the nvidia runtime nor CDI devices"),
        ("auto", NO_ENGINE, GPU, "cpu", "a GPU is there, but the Docker Engine does not answer"),
    ],
)  # fmt: skip
def test_flavour(asked: str, engine_facts: EngineFacts, gpu_state: GpuState, flavour: str, reason: str) -> None:
    assert choose_flavour(asked, engine_facts, gpu_state) == (flavour, reason)


@pytest.mark.parametrize(
    ("facts", "can", "by_cdi"),
    [
        (ENGINE, False, False),
        (RUNTIME, True, False),
        (CDI, True, True),
        (replace(CDI, runtimes=("nvidia",)), True, False),
        (NO_ENGINE, False, False),
    ],
)
def test_who_can_reserve_a_gpu(facts: EngineFacts, can: bool, by_cdi: bool) -> None:
    assert (can_reserve_gpu(facts), needs_cdi(facts)) == (can, by_cdi)


# ---- gathering


class FakeEngine(Engine):
    """An engine with one image and one container."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ENGINE
        self.raw: Callable[[], dict[str, Any] | None] = lambda: {
            "Id": "sha256:1", "Size": 5, "Architecture": "amd64", "Config": {"Labels": labels()},
        }  # fmt: skip
        self.container: Callable[[], ContainerState | None] = lambda: OWN
        self.ports: dict[str, Any] = {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000"}], "9/tcp": None}
        self.asked: list[tuple[str, ...]] = []

    def facts(self) -> EngineFacts:
        self.asked.append(("facts",))
        return self.said

    def image(self, reference: str) -> dict[str, Any] | None:
        self.asked.append(("image", reference))
        return self.raw()

    def find(self, project: str, service: str) -> ContainerState | None:
        self.asked.append(("find", project, service))
        return self.container()

    def inspect(self, container: str) -> dict[str, Any]:
        assert container == OWN.id
        return {"NetworkSettings": {"Ports": self.ports}}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(gpu, "read", lambda: GPU)
    monkeypatch.setattr(host, "port_holder", lambda address, port: f"{address} {port}")
    monkeypatch.setattr(node, "read", lambda: NODE)
    monkeypatch.setattr(host, "disk_free", lambda path: {"/var/lib/docker": 7}[str(path)])
    return FakeEngine()


def gone() -> Any:
    raise TargetUnavailable("the Docker Engine does not answer")


def vanished() -> Any:
    raise EvidenceMissing("the container is gone")


def test_gather(fake: FakeEngine) -> None:
    found = gather(CPU_PLAN, fake)
    assert found.engine == ENGINE
    assert found.gpu == GPU
    assert found.local is True
    assert (found.disk_free, found.port_holder) == (7, "127.0.0.1 8000")
    assert found.image == ImageFacts(present=True, id="sha256:1", size=5, architecture="amd64", labels=labels())
    assert found.own_container == OWN
    assert ("image", "bringup:cpu-tiny-qwen2") in fake.asked
    assert ("find", "bringup", "server") in fake.asked


def test_what_is_known_is_not_asked_again(fake: FakeEngine) -> None:
    known = gather_engine_gpu(fake)
    assert known == (ENGINE, GPU)
    assert gather(CPU_PLAN, fake, known).engine is ENGINE
    assert fake.asked.count(("facts",)) == 1


def test_an_engine_that_does_not_answer_is_asked_nothing_more(fake: FakeEngine) -> None:
    fake.said = NO_ENGINE
    found = gather(CPU_PLAN, fake)
    assert (found.image.present, found.own_container, found.disk_free) == (None, None, None)
    assert fake.asked == [("facts",)]


def test_an_engine_that_goes_away_leaves_unknown_not_absent(fake: FakeEngine) -> None:
    fake.raw = fake.container = gone
    found = gather(CPU_PLAN, fake)
    assert (found.image.present, found.own_container) == (None, None)


def test_no_image_is_absent(fake: FakeEngine) -> None:
    fake.raw = lambda: None
    assert gather(CPU_PLAN, fake).image == ImageFacts(present=False)


def test_of_an_images_variables_only_its_cuda_is_kept(fake: FakeEngine) -> None:
    config = {"Labels": labels(), "Env": ["CUDA_VERSION=13.0.3", "TOKEN=secret", "ODD"]}
    fake.raw = lambda: {"Id": "sha256:1", "Config": config}
    found = gather(CPU_PLAN, fake).image
    assert found.cuda == "13.0.3"
    assert "secret" not in repr(found)


@pytest.mark.parametrize(("a_plan", "driver", "looked"), [
    (CPU_PLAN, NO_GPU, False), (CPU_PLAN, GPU, True), (GPU_PLAN, NO_GPU, True),
])  # fmt: skip
def test_what_is_around_a_gpu_is_looked_at_where_there_may_be_one(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch, a_plan: Plan, driver: GpuState, looked: bool
) -> None:
    monkeypatch.setattr(gpu, "read", lambda: driver)
    assert gather(a_plan, fake).node == (NODE if looked else NodeFacts())
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2376")
    assert gather(a_plan, fake).node == NodeFacts()  # another host's is not this one's


def test_an_image_without_labels(fake: FakeEngine) -> None:
    fake.raw = lambda: {"Id": "sha256:1", "Config": {"Labels": None}}
    assert gather(CPU_PLAN, fake).image == ImageFacts(present=True, id="sha256:1")


@pytest.mark.parametrize(
    ("container", "ports"),
    [
        pytest.param(lambda: None, None, id="none"),
        pytest.param(lambda: replace(OWN, status="exited"), None, id="not running"),
        pytest.param(lambda: OWN, {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8001"}]}, id="other port"),
        pytest.param(lambda: OWN, {"8000/tcp": None}, id="nothing published"),
        pytest.param(vanished, None, id="gone while looking"),
    ],
)
def test_a_container_that_does_not_hold_the_port_is_not_ours(
    fake: FakeEngine, container: Callable[[], Any], ports: dict[str, Any] | None
) -> None:
    fake.container = container
    fake.ports = fake.ports if ports is None else ports
    assert gather(CPU_PLAN, fake).own_container is None


def test_a_paused_server_still_holds_its_port(fake: FakeEngine) -> None:
    fake.container = lambda: replace(OWN, status="paused")
    assert gather(CPU_PLAN, fake).own_container is not None


def test_the_disk_of_another_host_is_not_this_one(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2376")
    found = gather(CPU_PLAN, fake)
    assert (found.local, found.disk_free) == (False, None)


def test_facts_become_json(fake: FakeEngine) -> None:
    found = dataclasses.asdict(gather(GPU_PLAN, fake))
    again = json.loads(json.dumps(found))
    assert again["gpu"]["gpus"][0]["name"] == "NVIDIA H100"
    assert again["engine"]["runtimes"] == ["io.containerd.runc.v2", "runc"]
    assert again["image"]["labels"] == labels()
    assert again.keys() == {f.name for f in dataclasses.fields(HostFacts)}
