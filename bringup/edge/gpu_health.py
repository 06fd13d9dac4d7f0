"""What NVML tells of one GPU beside its size: faults, limits, links, modes, and who uses it.

A signal is a value, `NA` (this card or its driver has no such thing) or None (it was not told).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

NA: Literal["n/a"] = "n/a"
Number: TypeAlias = int | Literal["n/a"] | None
Flag: TypeAlias = bool | Literal["n/a"] | None
Word: TypeAlias = str | None

# nvmlReturn_t: what a card, or a driver older than the question, answers
_NOT_SUPPORTED, _INVALID_ARGUMENT = 3, 2
_BRANDS = {
    1: "quadro", 2: "tesla", 3: "nvs", 4: "grid", 5: "geforce", 6: "titan", 12: "quadro-rtx", 13: "nvidia-rtx",
    14: "nvidia", 15: "geforce-rtx", 16: "titan-rtx",
}  # fmt: skip
_COMPUTE_MODES = {0: "default", 1: "exclusive-thread", 2: "prohibited", 3: "exclusive-process"}
_RECOVERY = {
    0: "none", 1: "gpu-reset", 2: "node-reboot", 3: "drain-p2p", 4: "drain-and-reset", 5: "recover-imex-domain",
    6: "bus-reset", 7: "system-reboot",
}  # fmt: skip
# nvmlClocksEventReasons
_CLOCKS = {
    1: "idle", 2: "application-clocks", 4: "sw-power-cap", 8: "hw-slowdown", 16: "sync-boost", 32: "sw-thermal",
    64: "hw-thermal", 128: "hw-power-brake", 256: "display-clocks", 512: "board-limit", 1024: "reliability",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GpuProcess:
    """A compute process: id as this host sees it, bytes of GPU memory and the program's name where they are told."""

    pid: int
    used: int | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class GpuHealth:
    """The signals of one GPU.

    `bus`: PCI address as the kernel writes it; `minor`: of /dev/nvidiaN. `uncorrected`: ECC errors since the driver was
    loaded, `uncorrected_lifetime` ever. `remapped`: rows remapped for uncorrectable errors. `recovery`: what the driver
    asks for. `clocks`: why they are no higher.
    Temperatures in degrees Celsius; `margin`: those left to the slowdown.
    """

    brand: Word = None
    bus: Word = None
    minor: Number = None
    mig: Flag = None
    mig_pending: Flag = None
    mig_instances: Number = None
    compute_mode: Word = None
    persistence: Flag = None
    ecc: Flag = None
    uncorrected: Number = None
    uncorrected_lifetime: Number = None
    remapped: Number = None
    remap_pending: Flag = None
    remap_failed: Flag = None
    retired_pending: Flag = None
    recovery: Word = None
    clocks: tuple[str, ...] | Literal["n/a"] | None = None
    temperature: Number = None
    slowdown: Number = None
    margin: Number = None
    pcie_generation: Number = None
    pcie_generation_max: Number = None
    pcie_width: Number = None
    pcie_width_max: Number = None
    processes: tuple[GpuProcess, ...] | None = None


def read(nvml: Any, handle: Any) -> GpuHealth:
    """All signals of a GPU; each is asked by itself, so that one that fails takes no other with it."""

    def ask(name: str, *arguments: Any, take: Callable[[Any], Any] = int) -> Any:
        return _ask(nvml, name, handle, *arguments, take=take)

    mig = ask("nvmlDeviceGetMigMode", take=lambda modes: tuple(bool(mode) for mode in modes))
    rows = ask("nvmlDeviceGetRemappedRows", take=tuple)
    return GpuHealth(
        brand=ask("nvmlDeviceGetBrand", take=lambda n: _BRANDS.get(n, f"brand-{n}")),
        bus=ask("nvmlDeviceGetPciInfo", take=lambda pci: address(_text(pci.busId))),
        minor=ask("nvmlDeviceGetMinorNumber"),
        mig=_part(mig, 0),
        mig_pending=_part(mig, 1),
        mig_instances=_instances(nvml, handle) if _part(mig, 0) is True else NA if mig is not None else None,
        compute_mode=ask("nvmlDeviceGetComputeMode", take=lambda n: _COMPUTE_MODES.get(n, f"mode-{n}")),
        persistence=ask("nvmlDeviceGetPersistenceMode", take=bool),
        ecc=ask("nvmlDeviceGetEccMode", take=lambda modes: bool(modes[0])),
        uncorrected=ask("nvmlDeviceGetTotalEccErrors", 1, 0),  # uncorrected; volatile
        uncorrected_lifetime=ask("nvmlDeviceGetTotalEccErrors", 1, 1),
        remapped=_part(rows, 1),
        remap_pending=_part(rows, 2, bool),
        remap_failed=_part(rows, 3, bool),
        retired_pending=ask("nvmlDeviceGetRetiredPagesPendingStatus", take=bool),
        recovery=_recovery(nvml, handle),
        clocks=ask("nvmlDeviceGetCurrentClocksEventReasons", take=reasons),
        temperature=ask("nvmlDeviceGetTemperature", 0),  # the GPU's own sensor
        slowdown=ask("nvmlDeviceGetTemperatureThreshold", 1),
        margin=ask("nvmlDeviceGetMarginTemperature"),
        pcie_generation=ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        pcie_generation_max=ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        pcie_width=ask("nvmlDeviceGetCurrPcieLinkWidth"),
        pcie_width_max=ask("nvmlDeviceGetMaxPcieLinkWidth"),
        processes=_processes(nvml, handle),
    )


def _ask(nvml: Any, name: str, *arguments: Any, take: Callable[[Any], Any]) -> Any:
    function = getattr(nvml, name, None)
    if function is None:  # nvidia-ml-py is older than the question
        return None
    try:
        return take(function(*arguments))
    except nvml.NVMLError as e:
        return NA if getattr(e, "value", None) == _NOT_SUPPORTED else None


def _part(answer: Any, index: int, take: Callable[[Any], Any] = lambda value: value) -> Any:
    return take(answer[index]) if isinstance(answer, tuple) else answer


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def address(bus: str) -> str:
    """A PCI address as the kernel writes it: 00000000:0A:00.0 and 0000:0a:00 are 0000:0a:00."""
    domain, _, rest = bus.lower().partition(":")
    return f"{domain[-4:]}:{rest.split('.')[0]}"


def reasons(bits: int) -> tuple[str, ...]:
    """The names of nvmlClocksEventReasons' bits; one that is not known is named by its number."""
    return tuple(_CLOCKS.get(1 << n, f"bit-{n}") for n in range(bits.bit_length()) if bits >> n & 1)


def _recovery(nvml: Any, handle: Any) -> Any:
    field = getattr(nvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", None)
    if field is None:
        return None

    def take(values: Any) -> Any:
        (value,) = values
        if value.nvmlReturn:
            return NA if value.nvmlReturn in (_NOT_SUPPORTED, _INVALID_ARGUMENT) else None
        return _RECOVERY.get(value.value.uiVal, f"action-{value.value.uiVal}")

    return _ask(nvml, "nvmlDeviceGetFieldValues", handle, [field], take=take)


def _instances(nvml: Any, handle: Any) -> int | None:
    found = 0
    most = _ask(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle, take=int)
    if not isinstance(most, int):
        return None
    for index in range(most):
        try:
            nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:  # no instance at this index
            continue
        found += 1
    return found


def _processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...] | None:
    found = _ask(nvml, "nvmlDeviceGetComputeRunningProcesses", handle, take=list)
    if not isinstance(found, list):
        return None
    return tuple(GpuProcess(pid=p.pid, used=p.usedGpuMemory, name=_name(p.pid)) for p in found)


def _name(pid: int) -> str | None:
    """The program's name alone: its arguments may hold secrets."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip() or None
    except OSError:  # ended, or in a process namespace that this one does not see
        return None
