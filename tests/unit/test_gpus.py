"""The GPUs that a server is given: Docker's words in, a reservation of Compose out, and back from the engine."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from bringup import gpus
from bringup.edge import gpu as edge
from bringup.errors import UsageError
from bringup.settings import gpu_request
from bringup.targets.compose import ComposeTarget
from tests.unit.fakes import plan, state
from tests.unit.test_compose_target import Programs, programs, target
from tests.unit.test_edge_gpu import GIB, Nvml, nvml

__all__ = ["nvml", "programs"]  # fixtures
UUID = "GPU-4cf8db2d-06c0-7d70-1a51-e59b25b2c16c"
MIG = "MIG-b1b1f0f3-ff2d-5e6c-8a2d-1c2d3e4f5a6b"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("all", "all"), (" all ", "all"), ("1", "1"), ("16", "16"),
        ("device=0", "device=0"), ("device=0,2", "device=0,2"), ("device=2, 0", "device=2,0"),
        ('"device=0,2"', "device=0,2"),  # what a shell leaves of '"device=0,2"', the way Docker wants it
        (f"device={UUID}", f"device={UUID}"), (f"device={MIG},1:0", f"device={MIG},1:0"),
        ("device=nvidia.com/gpu=0,nvidia.com/gpu=1", "device=0,1"),
    ],
)  # fmt: skip
def test_dockers_words(text: str, value: str) -> None:
    assert gpu_request(text) == value
    assert gpu_request(value) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "none", "0", "-1", "01", "1.5", "2,3", "0,2", "device", "device=", "device=0,", "device=x", "device=00",
        "device=-1", "device=all", "devices=0", "count=2", "device=GPU-", "device=0 1", "device=$(id)", "ALL", "1000",
        "all,capabilities=utility", 'device=0"}]', "device=GPU-1\nGPU-2", "²",
    ],
)  # fmt: skip
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not all, a number of GPUs, or device="):
        gpu_request(text)


@pytest.mark.parametrize("text", ["device=0,0", f"device={UUID},{UUID}", "device=1,nvidia.com/gpu=1"])
def test_a_gpu_is_named_once(text: str) -> None:
    with pytest.raises(ValueError, match="twice"):
        gpu_request(text)


REQUESTS: list[tuple[str | None, dict[str, Any], list[str]]] = [
    (None, {"count": 1}, ["0"]),
    ("1", {"count": 1}, ["0"]),
    ("3", {"count": 3}, ["0", "1", "2"]),
    ("all", {"count": "all"}, ["all"]),
    ("device=2", {"device_ids": ["2"]}, ["2"]),
    (f"device=0,{UUID},1:0", {"device_ids": ["0", UUID, "1:0"]}, ["0", UUID, "1:0"]),
]


@pytest.mark.parametrize(("asked", "by_runtime", "by_cdi"), REQUESTS)
def test_the_reservation(asked: str | None, by_runtime: dict[str, Any], by_cdi: list[str]) -> None:
    assert gpus.request(asked, cdi=False) == {"driver": "nvidia", "capabilities": ["gpu"], **by_runtime}
    assert gpus.request(asked, cdi=True) == {
        "driver": "cdi", "capabilities": ["gpu"], "device_ids": [f"nvidia.com/gpu={name}" for name in by_cdi],
    }  # fmt: skip


@pytest.mark.parametrize(("asked", "cdi"), list(itertools.product([r[0] for r in REQUESTS], [False, True])))
def test_the_override_replaces_the_list(asked: str | None, cdi: bool) -> None:
    lines = gpus.override("server", asked, cdi=cdi).splitlines()
    path = [line.strip() for line in lines[:-1]]
    assert path == ["services:", "server:", "deploy:", "resources:", "reservations:"]
    key, tag, devices = lines[-1].strip().split(" ", 2)
    assert (key, tag) == ("devices:", "!override")
    assert json.loads(devices) == [gpus.request(asked, cdi=cdi)]
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("requests", "asked"),
    [
        (None, None),
        ([], None),
        ([{"Driver": "nvidia", "Count": 1, "DeviceIDs": None}], "1"),
        ([{"Driver": "nvidia", "Count": -1, "DeviceIDs": []}], "all"),
        ([{"Driver": "nvidia", "Count": 0, "DeviceIDs": ["0", UUID]}], f"device=0,{UUID}"),
        ([{"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=0", "nvidia.com/gpu=2"]}], "device=0,2"),
        ([{"Driver": "cdi", "Count": 0, "DeviceIDs": ["nvidia.com/gpu=all"]}], "all"),
    ],
)
def test_what_a_container_has(requests: Any, asked: str | None) -> None:
    assert gpus.of_container({"HostConfig": {"DeviceRequests": requests}}) == asked
    assert gpus.of_container({}) is None


# ---- plan and compose


def test_gpus_and_the_cpu_flavour_contradict_each_other() -> None:
    with pytest.raises(UsageError, match=r"--gpus 2 asks for GPUs, and the cpu flavour uses none \(because\)"):
        plan(gpus="2")


def test_the_plan_has_what_was_asked_for() -> None:
    made = plan("gpu", gpus="device=0,2")
    assert (made.gpus, made.to_dict()["gpus"]) == ("device=0,2", "device=0,2")
    assert made.reservation == gpus.override("server", "device=0,2", cdi=False)
    by_cdi = replace(made, compose_files=("compose.yaml", "compose.cdi.yaml"))
    assert by_cdi.reservation == gpus.override("server", "device=0,2", cdi=True)
    assert plan("gpu").reservation == gpus.override("server", None, cdi=False)
    assert plan().reservation is None


def test_compose_is_given_the_reservation_last(programs: Programs) -> None:
    made = plan("gpu", gpus="all")
    target(state()).up(made)
    call = programs.calls[-1]
    files = [call["argv"][i + 1] for i, a in enumerate(call["argv"]) if a == "--file"]
    assert files[-1] == "-"
    assert call["feed"] == made.reservation


def test_without_a_gpu_compose_reads_no_input(programs: Programs) -> None:
    made: ComposeTarget = target(state())
    made.up(plan())
    made.down()
    assert [(call["feed"], "-" in call["argv"]) for call in programs.calls] == [("", False)] * 2


# ---- NVML looks at those alone


@pytest.mark.parametrize(
    ("asked", "used"),
    [
        (None, (1,)), ("1", (1,)), ("2", (1, 2)), ("5", (1, 2)), ("all", (1, 2)), ("device=1", (2,)),
        ("device=1,0", (2, 1)), ("device=GPU-1", (2,)), ("device=1:0,1:1", (2,)),
    ],
)  # fmt: skip
def test_the_memory_of_the_reserved_gpus(nvml: Nvml, asked: str | None, used: tuple[int, ...]) -> None:
    with edge.meter(asked) as read_now:
        now = read_now()
    assert now is not None
    assert now.used == tuple(n * GIB for n in used)
    assert edge.memory_used(asked) == sum(used) * GIB
    assert edge.memory_by_pid("device=1") == {10: 5 * GIB}


@pytest.mark.parametrize("asked", ["device=7", "device=GPU-9"])
def test_a_gpu_that_is_not_there_leaves_nothing_known(nvml: Nvml, asked: str) -> None:
    nvml.lost = {7}
    assert edge.memory_used(asked) is None
    assert edge.memory_by_pid(asked) is None


def test_another_gpu_that_is_lost_does_not_matter(nvml: Nvml) -> None:
    nvml.lost = {1}
    assert edge.memory_used("device=0") == GIB
    assert edge.memory_used("all") is None
