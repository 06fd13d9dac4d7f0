"""What this host has around its GPUs: the driver's device files, its kernel messages, the container toolkit."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bringup.edge import process
from bringup.edge.gpu_health import address
from bringup.errors import TargetUnavailable

_ROOT = Path("/")
_RECORDS = 500_000  # more than any kernel log holds; a stand-in for /dev/kmsg may never end
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)")


@dataclass(frozen=True, kw_only=True)
class Xid:
    """One kind of error of one GPU in the kernel log; `last`: seconds from boot to the newest of `count`."""

    bus: str
    code: int
    count: int
    last: float


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """None: not looked at, or not told.

    `control`, `uvm`: /dev/nvidiactl and /dev/nvidia-uvm are there; `cards`: the N of each /dev/nvidiaN; `wsl`: the GPU
    is reached through /dev/dxg instead. `toolkit`: version of nvidia-container-toolkit, empty where its program is not
    on the PATH. `xids`: what the kernel log has; it reaches back to `log_from` seconds after boot.
    """

    control: bool | None = None
    uvm: bool | None = None
    cards: tuple[int, ...] | None = None
    wsl: bool | None = None
    toolkit: str | None = None
    xids: tuple[Xid, ...] | None = None
    log_from: float | None = None


def read(root: Path = _ROOT) -> NodeFacts:
    """Look at all of it."""
    cards = sorted(int(p.name[6:]) for p in (root / "dev").glob("nvidia[0-9]*") if p.name[6:].isdigit())
    records = kernel_log(root / "dev/kmsg")
    return NodeFacts(
        control=(root / "dev/nvidiactl").exists(),
        uvm=(root / "dev/nvidia-uvm").exists(),
        cards=tuple(cards),
        wsl=(root / "dev/dxg").exists(),
        toolkit=_toolkit(),
        xids=None if records is None else xids(records),
        log_from=records[0][0] if records else None,
    )


def kernel_log(path: Path) -> list[tuple[float, str]] | None:
    """The kernel's messages, each with its seconds after boot; None when they may not be read or there are none."""
    found: list[tuple[float, str]] = []
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        for _ in range(_RECORDS):
            try:
                record = os.read(descriptor, 8192)
            except BrokenPipeError:  # overwritten while we read: the next one is there
                continue
            except OSError:  # BlockingIOError: this was the last one
                break
            if not record:
                break
            found += _record(record.decode("utf-8", "replace"))
    finally:
        os.close(descriptor)
    return found or None


def _record(text: str) -> list[tuple[float, str]]:
    """One record of /dev/kmsg: `priority,number,microseconds,flags;message`, then lines that continue it."""
    head, _, message = text.partition(";")
    fields = head.split(",")
    if len(fields) < 3 or not fields[2].isdigit():
        return []
    return [(int(fields[2]) / 1e6, message.split("\n", 1)[0])]


def xids(records: list[tuple[float, str]]) -> tuple[Xid, ...]:
    """The driver's errors among kernel messages, by GPU and code. Pure."""
    seen: dict[tuple[str, int], tuple[int, float]] = {}
    for moment, message in records:
        if match := _XID.search(message):
            key = address(match[1]), int(match[2])
            seen[key] = seen.get(key, (0, 0.0))[0] + 1, moment
    return tuple(Xid(bus=bus, code=code, count=n, last=last) for (bus, code), (n, last) in sorted(seen.items()))


def _toolkit() -> str | None:
    try:
        outcome = process.run(["nvidia-ctk", "--version"], timeout=10)
    except TargetUnavailable as e:
        return "" if "not on the PATH" in e.message else None
    match = re.search(r"version (\S+)", outcome.out)
    return match[1] if outcome.code == 0 and match else None
