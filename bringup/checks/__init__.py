"""Looks at the host before anything starts. `facts.gather` is the only I/O; every check is a pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bringup.checks import engine, gpu, health, host, place
from bringup.checks.facts import HostFacts, choose_flavour, choose_here, gather, gather_engine_gpu
from bringup.checks.finding import card
from bringup.plan import Plan
from bringup.records import CheckRecord
from bringup.settings import LOCAL

__all__ = [
    "CHECKS", "HERE", "OF_ENGINE", "ON_GPU", "SOURCES", "HostFacts", "card", "choose_flavour", "choose_here", "examine",
    "gather", "gather_engine_gpu",
]  # fmt: skip

# By name, causes before what they cause: the first failure is the one to act on.
CHECKS: dict[str, Callable[[HostFacts, Plan], CheckRecord]] = {
    "engine": engine.engine,
    "compose": engine.compose,
    "buildx": engine.buildx,
    "architecture": engine.architecture,
    "cpu": host.cpu,
    "gpu": gpu.gpu,
    "driver": gpu.driver,
    "capability": gpu.capability,
    "devices": gpu.devices,
    "runtime": gpu.runtime,
    "toolkit": gpu.toolkit,
    "torch": gpu.torch,
    "vram": health.vram,
    "mig": health.mig,
    "compute-mode": health.compute_mode,
    "ecc": health.ecc,
    "remap": health.remap,
    "xid": health.xid,
    "throttle": health.throttle,
    "temperature": health.temperature,
    "pcie": health.pcie,
    "persistence": health.persistence,
    "memory": host.memory,
    "disk": host.disk,
    "port": host.port,
    "image": engine.image,
}
# Of a local server: these in place of the engine's, and all else as above.
OF_ENGINE = ("engine", "compose", "buildx", "architecture", "runtime", "toolkit", "torch", "image")
HERE: dict[str, Callable[[HostFacts, Plan], CheckRecord]] = {
    "engine": place.engine,
    "interpreter": place.interpreter,
    "weights": place.weights,
    **{name: check for name, check in CHECKS.items() if name not in OF_ENGINE},
    "disk": place.disk,
    "shm": place.shm,
    "volume": place.volume,
}
# A server on a CPU has no business with these; that it uses none is what `gpu` says.
ON_GPU = frozenset(
    name for name, check in CHECKS.items() if name != "gpu" and check.__module__ in (gpu.__name__, health.__name__)
)
# Where the signal comes from; after the semicolon, where the need does.
SOURCES = {
    "engine": "the engine's /info; the oldest that this project is tested with",
    "compose": "`docker compose version`; v1 cannot reserve a GPU",
    "buildx": "`docker buildx version`",
    "architecture": "the engine's /info; the architecture of the locked wheels",
    "cpu": "flags in /proc/cpuinfo; the instructions of vLLM's CPU build",
    "gpu": "NVML nvmlInit, nvmlDeviceGetCount, nvmlDeviceGetHandleByIndex",
    "driver": "NVML nvmlSystemGetDriverVersion; NVIDIA CUDA Compatibility, minor version compatibility",
    "capability": "NVML nvmlDeviceGetCudaComputeCapability; torch._C._cuda_getArchFlags() of the locked wheel",
    "devices": "/dev, NVML nvmlDeviceGetMinorNumber",
    "runtime": "the engine's /info: Runtimes, DiscoveredDevices",
    "toolkit": "`nvidia-ctk --version`; NVIDIA's bulletins on CVE-2024-0132, CVE-2025-23359, CVE-2025-23266",
    "torch": "torch.cuda.is_available() and a sum, in a container of the image",
    "vram": "NVML nvmlDeviceGetMemoryInfo, nvmlDeviceGetComputeRunningProcesses; vLLM's share, `bringup models fit`",
    "mig": "NVML nvmlDeviceGetMigMode, nvmlDeviceGetMigDeviceHandleByIndex",
    "compute-mode": "NVML nvmlDeviceGetComputeMode",
    "ecc": "NVML nvmlDeviceGetEccMode, nvmlDeviceGetTotalEccErrors",
    "remap": "NVML nvmlDeviceGetRemappedRows, nvmlDeviceGetRetiredPagesPendingStatus",
    "xid": "/dev/kmsg, NVML field GET_GPU_RECOVERY_ACTION; NVIDIA's Xid catalogue",
    "throttle": "NVML nvmlDeviceGetCurrentClocksEventReasons",
    "temperature": "NVML nvmlDeviceGetTemperature, nvmlDeviceGetMarginTemperature, nvmlDeviceGetTemperatureThreshold",
    "pcie": "NVML nvmlDeviceGetCurrPcieLinkWidth, nvmlDeviceGetCurrPcieLinkGeneration and their maxima",
    "persistence": "NVML nvmlDeviceGetPersistenceMode",
    "memory": "/proc/meminfo and control groups; measured starts",
    "disk": "free space of the engine's directory, or the local server's; measured builds",
    "port": "listening on it for a moment",
    "image": "the engine's image: architecture and labels",
    "interpreter": "metadata of the installed packages; the version of the locks",
    "weights": "the directory is there",
    "shm": "statvfs of /dev/shm; measured starts",
    "volume": "the mount at /workspace and its free space",
}


def examine(facts: HostFacts, plan: Plan) -> tuple[CheckRecord, ...]:
    """All checks that the plan's target and flavour have, in order, each with its source."""
    known = HERE if plan.target == LOCAL else CHECKS
    asked = (name for name in known if plan.flavour == "gpu" or name not in ON_GPU)
    return tuple(dataclasses.replace(known[name](facts, plan), source=SOURCES[name]) for name in asked)
