"""Facts of the GPUs, from a made-up NVML."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bringup.edge import gpu

GIB = 2**30


class NvmlError(Exception):
    """Stands for pynvml.NVMLError."""


def fails(text: str) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise NvmlError(text)

    return call


class Nvml:
    """A made-up pynvml with two GPUs."""

    NVMLError = NvmlError

    def __init__(self) -> None:
        self.opened = 0
        self.processes: dict[int, list[tuple[int, int | None]]] = {0: [(10, 3 * GIB), (11, GIB)], 1: [(10, 5 * GIB)]}
        self.count = 2
        self.lost: set[int] = set()

    def nvmlInit(self) -> None:  # noqa: N802
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> bytes | str:  # noqa: N802
        return b"580.95.05"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return 13010

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index in self.lost:
            raise NvmlError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=80 * GIB, used=(handle + 1) * GIB, free=0)

    def nvmlDeviceGetCudaComputeCapability(self, _: int) -> tuple[int, int]:  # noqa: N802
        return (9, 0)

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, _: int) -> str:  # noqa: N802
        return "NVIDIA H100"

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes[handle]]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    fake = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_gpus(nvml: Nvml) -> None:
    state = gpu.read()
    assert (state.available, state.error, state.driver, state.cuda) == (True, "", "580.95.05", "13.1")
    assert [g.index for g in state.gpus] == [0, 1]
    assert state.gpus[1] == gpu.GpuFacts(
        index=1, uuid="GPU-1", name="NVIDIA H100", memory_total=80 * GIB, memory_used=2 * GIB, compute_capability="9.0"
    )
    assert nvml.opened == 0


def test_no_driver_is_a_fact(nvml: Nvml) -> None:
    nvml.nvmlInit = fails("NVML Shared Library Not Found")  # type: ignore[method-assign]
    assert gpu.read() == gpu.GpuState(available=False, error="NVML Shared Library Not Found")
    assert gpu.memory_by_pid() is None
    assert gpu.memory_used() is None


@pytest.mark.parametrize(
    "call", ["nvmlSystemGetDriverVersion", "nvmlSystemGetCudaDriverVersion_v2", "nvmlDeviceGetCount"]
)
def test_a_driver_that_breaks_off_is_a_fact_and_is_shut_down(nvml: Nvml, call: str) -> None:
    setattr(nvml, call, fails("Driver/library version mismatch"))
    assert gpu.read() == gpu.GpuState(available=False, error="Driver/library version mismatch")
    assert nvml.opened == 0


def test_a_lost_gpu_is_named_and_the_other_one_is_read(nvml: Nvml) -> None:
    nvml.lost = {0}
    state = gpu.read()
    assert (state.available, state.error, [g.index for g in state.gpus]) == (True, "GPU 0: GPU is lost", [1])
    assert gpu.memory_used() is None  # half of the evidence is none
    assert gpu.memory_by_pid() is None
    assert nvml.opened == 0


def test_a_shutdown_that_fails_hides_nothing(nvml: Nvml) -> None:
    nvml.nvmlShutdown = fails("Unknown Error")  # type: ignore[method-assign]
    assert len(gpu.read().gpus) == 2


def test_memory_by_process_is_summed_over_gpus(nvml: Nvml) -> None:
    assert gpu.memory_by_pid() == {10: 8 * GIB, 11: GIB}
    assert nvml.opened == 0


def test_no_process_is_an_answer(nvml: Nvml) -> None:
    nvml.processes = {0: [], 1: []}
    assert gpu.memory_by_pid() == {}


def test_a_process_whose_memory_is_hidden_is_no_answer(nvml: Nvml) -> None:
    nvml.processes[1] = [(12, None)]
    assert gpu.memory_by_pid() is None


def test_memory_used_of_all_gpus(nvml: Nvml) -> None:
    assert gpu.memory_used() == 3 * GIB


def test_a_driver_without_gpus_gives_no_memory(nvml: Nvml) -> None:
    nvml.count = 0
    assert gpu.read().gpus == ()
    assert gpu.memory_used() is None
    assert gpu.memory_by_pid() is None


def test_the_meter_opens_nvml_once(nvml: Nvml) -> None:
    with gpu.meter() as read_now:
        assert nvml.opened == 1
        assert read_now() == gpu.Reading((GIB, 2 * GIB), {10: 8 * GIB, 11: GIB})
        nvml.processes = {0: [(12, None)], 1: []}
        assert read_now() == gpu.Reading((GIB, 2 * GIB), None)
        nvml.nvmlDeviceGetMemoryInfo = fails("GPU is lost")  # type: ignore[method-assign]
        assert read_now() is None
    assert nvml.opened == 0


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_a_meter_without_a_driver_reads_nothing(nvml: Nvml, call: str) -> None:
    setattr(nvml, call, fails("Driver Not Loaded"))
    with gpu.meter() as read_now:
        assert read_now() is None
    assert nvml.opened == 0
