"""What runs under a process and what the GPU holds, sampled from outside by a thread: no answer of the server's own."""

from __future__ import annotations

import importlib
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[int, float] | None:
    """Parent and age (seconds since boot at birth) of a process; fields 4 and 22 of /proc/PID/stat."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rsplit(")", 1)[1].split()
        return int(fields[1]), int(fields[19]) / TICK
    except (OSError, IndexError, ValueError):
        return None


def family(root: int) -> dict[int, float]:
    """Descendants of a process, itself included, with their births in epoch seconds."""
    uptime = float(Path("/proc/uptime").read_text("ascii").split()[0])
    boot = time.time() - uptime
    known = {int(p.name): s for p in Path("/proc").iterdir() if p.name.isdigit() and (s := _stat(int(p.name)))}
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in known.items():
        children.setdefault(parent, []).append(pid)
    found, todo = {}, [root]
    while todo:
        pid = todo.pop()
        if pid in known and pid not in found:
            found[pid] = boot + known[pid][1]
            todo += children.get(pid, [])
    return found


def command(pid: int) -> str:
    """What a process is called, its first 160 characters; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace").replace("\0", " ").strip()[:160]
    except OSError:
        return ""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process's first thread so far, to the nanosecond; first field of /proc/PID/schedstat."""
    return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0]) / 1e9


class Gpu:
    """The first GPU by NVML; without one, nothing is sampled."""

    def __init__(self) -> None:
        self.nvml: Any = None
        try:
            nvml: Any = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self.handle = nvml.nvmlDeviceGetHandleByIndex(0)
            self.nvml = nvml
        except Exception as e:  # no module, no driver, no GPU: they differ by machine, the answer does not
            self.problem = str(e)

    def used(self) -> tuple[int, dict[int, int]] | None:
        """Bytes in use on the card, and by process."""
        if self.nvml is None:
            return None
        by = {p.pid: p.usedGpuMemory or 0 for p in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)}
        return int(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used), by

    def name(self) -> str:
        """Card and driver."""
        if self.nvml is None:
            return "none"
        return f"{self.nvml.nvmlDeviceGetName(self.handle)}, driver {self.nvml.nvmlSystemGetDriverVersion()}"


class Watch:
    """A thread that samples one process tree and the GPU, from `with` to its end."""

    def __init__(self, root: int, gpu: Gpu, every: float = 0.2) -> None:
        self.root, self.gpu, self.every = root, gpu, every
        self.births: dict[int, list[Any]] = {}  # pid: epoch seconds, command
        self.memory: list[list[Any]] = []  # epoch seconds, bytes in use, bytes by pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            for pid, born in family(self.root).items():
                seen = self.births.setdefault(pid, [born, ""])
                seen[1] = command(pid) or seen[1]
            if (used := self.gpu.used()) is not None:
                self.memory.append([time.time(), *used])
            self._stop.wait(self.every)
