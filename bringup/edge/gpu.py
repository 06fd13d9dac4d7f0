"""The only door to NVML (pynvml, from the package nvidia-ml-py): what the driver says of the host's GPUs.

A host without a driver is a fact, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from bringup.edge import gpu_health
from bringup.edge.gpu_health import GpuHealth

NO_BINDINGS = "the Python package nvidia-ml-py is not installed"  # nothing is known of the driver then


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """One GPU as the driver sees it; memory in bytes, compute capability like "9.0"."""

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_used: int
    compute_capability: str
    health: GpuHealth = field(default_factory=GpuHealth)


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """All GPUs. `available`: the driver answered; `error`: what NVML could not tell, in its own words.

    A GPU that NVML counts but cannot read (lost, fallen off the bus) is missing from `gpus` and named in `error`.
    `driver` and `cuda` (the newest that the driver runs) are version texts such as 580.95.05 and 13.0; `count`: how
    many GPUs NVML counts.
    """

    available: bool
    error: str = ""
    driver: str | None = None
    cuda: str | None = None
    count: int | None = None
    gpus: tuple[GpuFacts, ...] = ()


@contextmanager
def _nvml() -> Iterator[Any]:
    import pynvml  # here: most commands never look at a GPU

    nvml: Any = pynvml
    nvml.nvmlInit()
    try:
        yield nvml
    finally:
        with suppress(nvml.NVMLError):  # a driver that went away must not hide what was read before
            nvml.nvmlShutdown()


def _nvml_error() -> type[Exception]:
    try:
        import pynvml
    except ImportError:
        return ImportError  # which `_nvml` will raise

    error: type[Exception] = pynvml.NVMLError
    return error


def read() -> GpuState:
    """What the driver says now."""
    error = _nvml_error()
    try:
        with _nvml() as nvml:
            driver = _text(nvml.nvmlSystemGetDriverVersion())
            number = int(nvml.nvmlSystemGetCudaDriverVersion_v2())  # 13010 is 13.1
            found: list[GpuFacts] = []
            wrong: list[str] = []
            count = int(nvml.nvmlDeviceGetCount())
            for index in range(count):
                try:
                    found.append(_one(nvml, index))
                except error as e:
                    wrong.append(f"GPU {index}: {e}")
    except error as e:
        return GpuState(available=False, error=NO_BINDINGS if isinstance(e, ImportError) else str(e))
    return GpuState(
        available=True,
        error="; ".join(wrong),
        driver=driver or None,
        cuda=f"{number // 1000}.{number % 1000 // 10}",
        count=count,
        gpus=tuple(found),
    )


def _one(nvml: Any, index: int) -> GpuFacts:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return GpuFacts(
        index=index,
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        name=_text(nvml.nvmlDeviceGetName(handle)),
        memory_total=int(memory.total),
        memory_used=int(memory.used),
        compute_capability=f"{major}.{minor}",
        health=gpu_health.read(nvml, handle),
    )


def memory_by_pid(asked: str | None = "all") -> dict[int, int] | None:
    """Bytes of GPU memory per compute process (process ids of the host), summed over the GPUs that are `asked` for.

    Empty when no process uses a GPU; None when NVML does not tell: no driver, a GPU that cannot be read, or a
    process whose memory it hides (WSL, some virtual GPUs).
    """
    with meter(asked) as read_now:
        now = read_now()
    return now.by_pid if now else None


def memory_used(asked: str | None = "all") -> int | None:
    """Bytes in use on the GPUs that are `asked` for together, or None when there is none or one cannot be read."""
    with meter(asked) as read_now:
        now = read_now()
    return sum(now.used) if now else None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


@dataclass(frozen=True)
class Reading:
    """Bytes in use now: of each GPU, and of each compute process over all GPUs (None: NVML hides it)."""

    used: tuple[int, ...]
    by_pid: dict[int, int] | None


@contextmanager
def meter(asked: str | None = "all") -> Iterator[Callable[[], Reading | None]]:
    """For who reads often: NVML is opened once. The reader gives None for what a driver does not tell, as above.

    `asked`: which GPUs to look at, as the setting `gpus` says it; None is the first one.
    """
    error = _nvml_error()
    with ExitStack() as open_:
        try:
            nvml = open_.enter_context(_nvml())
            handles = _reserved(nvml, asked)
        except error:
            handles = []

        def read_now() -> Reading | None:
            try:
                used = tuple(int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
            except error:
                return None
            return Reading(used, _by_pid(nvml, handles)) if handles else None

        yield read_now


def _reserved(nvml: Any, asked: str | None) -> list[Any]:
    """The GPUs that a reservation means. NVML counts as the engine's ways do, by the PCI bus.

    A MIG device that is named by its place (1:0) is looked at as its whole card.
    """
    kind, _, names = (asked or "1").partition("=")
    if kind == "device":
        ids = dict.fromkeys(name.split(":")[0] for name in names.split(","))
        by_index, by_uuid = nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID
        return [by_index(int(name)) if name.isdigit() else by_uuid(name) for name in ids]
    count = int(nvml.nvmlDeviceGetCount())
    first = count if kind == "all" else min(int(kind), count)
    return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(first)]


def _by_pid(nvml: Any, handles: list[Any]) -> dict[int, int] | None:
    used: dict[int, int] = {}
    try:
        for handle in handles:
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.usedGpuMemory is None:
                    return None
                used[process.pid] = used.get(process.pid, 0) + int(process.usedGpuMemory)
    except _nvml_error():
        return None
    return used
