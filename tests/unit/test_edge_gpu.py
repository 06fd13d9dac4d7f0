"""Facts of the GPUs, from a made-up NVML."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bringup.edge import gpu, gpu_health
from bringup.edge.gpu_health import NA, GpuHealth, GpuProcess

GIB = 2**30


class NvmlError(Exception):
    """Stands for pynvml.NVMLError; `value` is nvmlReturn_t."""

    def __init__(self, text: str = "", value: int = 999) -> None:
        super().__init__(text)
        self.value = value


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

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        if uuid not in ("GPU-0", "GPU-1"):
            raise NvmlError("Not Found")
        return int(uuid.removeprefix("GPU-"))

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
    assert state.count == 2
    assert replace(state.gpus[1], health=GpuHealth()) == gpu.GpuFacts(
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


def test_without_the_bindings_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # what an absent module looks like to `import`
    assert gpu.read() == gpu.GpuState(available=False, error=gpu.NO_BINDINGS)
    assert gpu.memory_by_pid() is None
    with gpu.meter() as read_now:
        assert read_now() is None


# ---- health


class Healthy(Nvml):
    """A made-up pynvml whose GPUs answer every question."""

    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION = 230

    def __init__(self) -> None:
        super().__init__()
        self.processes = {0: [(10**9, 3 * GIB)], 1: []}
        self.recovery = SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=1))
        self.answers: dict[str, Any] = {
            "Brand": 14, "PciInfo": SimpleNamespace(busId=b"00000000:0A:00.0"), "MinorNumber": 3, "MigMode": [1, 0],
            "MaxMigDeviceCount": 7, "ComputeMode": 3, "PersistenceMode": 1, "EccMode": [1, 1],
            "RemappedRows": (1, 2, 1, 0), "RetiredPagesPendingStatus": 0, "CurrentClocksEventReasons": 1 | 64 | 1 << 12,
            "Temperature": 41, "TemperatureThreshold": 92, "MarginTemperature": 46, "CurrPcieLinkGeneration": 4,
            "MaxPcieLinkGeneration": 5, "CurrPcieLinkWidth": 8, "MaxPcieLinkWidth": 16,
        }  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        answers = self.__dict__.get("answers", {})
        if (what := name.removeprefix("nvmlDeviceGet")) in answers:
            return lambda *_: answers[what]
        raise AttributeError(name)

    def nvmlDeviceGetTotalEccErrors(self, _: int, kind: int, counter: int) -> int:  # noqa: N802
        return {(1, 0): 5, (1, 1): 9}[kind, counter]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _: int, index: int) -> int:  # noqa: N802
        if index not in (0, 4):
            raise NvmlError("Not Found", 6)
        return index

    def nvmlDeviceGetFieldValues(self, _: int, ids: list[int]) -> list[Any]:  # noqa: N802
        assert ids == [230]
        return [self.recovery]


HEALTH = GpuHealth(
    brand="nvidia", bus="0000:0a:00", minor=3, mig=True, mig_pending=False, mig_instances=2,
    compute_mode="exclusive-process", persistence=True, ecc=True, uncorrected=5, uncorrected_lifetime=9, remapped=2,
    remap_pending=True, remap_failed=False, retired_pending=False, recovery="gpu-reset",
    clocks=("idle", "hw-thermal", "bit-12"), temperature=41, slowdown=92, margin=46, pcie_generation=4,
    pcie_generation_max=5, pcie_width=8, pcie_width_max=16, processes=(GpuProcess(pid=10**9, used=3 * GIB),),
)  # fmt: skip


def test_every_signal_is_read() -> None:
    assert gpu_health.read(Healthy(), 0) == HEALTH
    assert None not in [getattr(HEALTH, f.name) for f in fields(GpuHealth)]


@pytest.mark.parametrize(("value", "signal"), [(3, NA), (13, None), (4, None), (999, None)])
def test_what_a_card_does_not_have_is_told_from_what_it_does_not_say(value: int, signal: Any) -> None:
    nvml = Healthy()

    def refuses(*_: object) -> Any:
        raise NvmlError("no", value)

    names = [f"nvmlDeviceGet{name}" for name in nvml.answers]
    others = ("TotalEccErrors", "FieldValues", "ComputeRunningProcesses")
    for name in (*names, *(f"nvmlDeviceGet{other}" for other in others)):
        setattr(nvml, name, refuses)
    seen = gpu_health.read(nvml, 0)
    expected = {f.name: signal for f in fields(GpuHealth)} | {"processes": None}
    assert {f.name: getattr(seen, f.name) for f in fields(GpuHealth)} == expected


@pytest.mark.parametrize(("returned", "signal"), [(3, NA), (2, NA), (999, None)])
def test_a_driver_without_the_recovery_action(returned: int, signal: Any) -> None:
    nvml = Healthy()
    nvml.recovery.nvmlReturn = returned
    assert gpu_health.read(nvml, 0).recovery == signal


def test_one_signal_that_fails_takes_no_other_with_it() -> None:
    nvml = Healthy()
    nvml.nvmlDeviceGetTemperature = fails("Unknown Error")  # type: ignore[attr-defined]
    assert gpu_health.read(nvml, 0) == replace(HEALTH, temperature=None)


def test_without_mig_no_instances_are_asked_for() -> None:
    nvml = Healthy()
    nvml.answers["MigMode"] = [0, 0]
    nvml.nvmlDeviceGetMigDeviceHandleByIndex = fails("must not be asked")  # type: ignore[method-assign]
    assert gpu_health.read(nvml, 0).mig_instances == NA


def test_a_process_is_named_without_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def text(path: Path, *_: object) -> str:
        read.append(str(path))
        return "python3\n"

    monkeypatch.setattr(Path, "read_text", text)
    (process,) = gpu_health.read(Healthy(), 0).processes or ()
    assert process.name == "python3"
    assert read == ["/proc/1000000000/comm"]
