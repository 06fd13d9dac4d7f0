"""Facts of this host: memory, disk, CPU, system, and who holds a port. Read from /proc and /sys, nothing is run.

None means that the host did not tell; every reader takes the root of the file system it looks into.
"""

from __future__ import annotations

import errno
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_ROOT = Path("/")
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


@dataclass(frozen=True, kw_only=True)
class HostInfo:
    """The machine: `system` is the release's pretty name, `avx2` and `avx512` are None when the flags are unknown."""

    system: str | None
    kernel: str
    architecture: str
    cpus: int
    avx2: bool | None
    avx512: bool | None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of memory that this process may use: the host's, or the tightest control group's if that is less."""

    total: int
    available: int


def info(root: Path = _ROOT) -> HostInfo:
    """The machine and its system."""
    flags = _cpu_flags(root)
    return HostInfo(
        system=_pretty_name(root),
        kernel=platform.release(),
        architecture=platform.machine(),
        cpus=os.cpu_count() or 1,
        avx2=None if flags is None else "avx2" in flags,
        avx512=None if flags is None else "avx512f" in flags,
    )


def _cpu_flags(root: Path) -> set[str] | None:
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return set(value.split())
    return None


def _pretty_name(root: Path) -> str | None:
    for path in ("etc/os-release", "usr/lib/os-release"):
        for line in _lines(root / path):
            name, _, value = line.partition("=")
            if name == "PRETTY_NAME":
                return value.strip().strip("\"'")
    return None


def memory(root: Path = _ROOT) -> Memory | None:
    """Total and available memory, or None when /proc/meminfo does not tell."""
    sizes = {}
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            sizes[name] = int(number[0]) * 1024
    try:
        total, available = sizes["MemTotal"], sizes["MemAvailable"]
    except KeyError:
        return None
    for limit, used in _cgroups(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total=total, available=available)


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of this process's control group and of all above it, where there is a limit."""
    for directory, names in _groups(root):
        limit, used = _number(directory / names.limit), _number(directory / names.used)
        if limit is not None and used is not None:
            # the page cache that the kernel gives back first counts as free, as in MemAvailable
            yield limit, used - _stat(directory / "memory.stat", names.inactive)


def oom_kills(root: Path = _ROOT) -> int:
    """How many processes of our control group the kernel has killed for want of memory; 0 where it does not tell."""
    return max((_stat(directory / names.events, "oom_kill") for directory, names in _groups(root)), default=0)


@dataclass(frozen=True)
class _Names:
    """What the memory controller calls its files and its inactive page cache."""

    limit: str
    used: str
    inactive: str
    events: str


_V2 = _Names("memory.max", "memory.current", "inactive_file", "memory.events")
_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control")


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The directories of this process's control group and of all above it, v2 and v1."""
    mounts = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            bases, names = [mounts, mounts / "unified"], _V2  # "unified" is the v2 tree of a hybrid host
        elif "memory" in controllers.split(","):
            bases, names = [mounts / "memory"], _V1
        else:
            continue
        for base in bases:
            here = base / path.lstrip("/")
            for directory in (here, *here.parents):
                if not directory.is_relative_to(base):
                    break
                yield directory, names


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None  # "max" is no limit


def _stat(path: Path, name: str) -> int:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def disk_free(path: str | Path) -> int | None:
    """Free bytes where a path lies (or would lie: the nearest parent that exists), or None if nobody tells."""
    wanted = Path(path)
    for place in (wanted, *wanted.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None


def engine_is_here() -> bool:
    """Whether the Docker Engine shares this host's memory, disk and ports: it is reached by a socket file."""
    return urlsplit(os.environ.get("DOCKER_HOST", "")).scheme in ("", "unix")


def port_holder(address: str, port: int, root: Path = _ROOT) -> str | None:
    """Who keeps us from listening on an address and port; None when nobody does.

    Tried by listening for a moment, so that the answer is the kernel's; the holder's name is read from /proc when
    we may see it.
    """
    address = "127.0.0.1" if address == "localhost" else address
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the engine does: TIME_WAIT is not a holder
            if s.family == socket.AF_INET6:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.bind((address, port))
            s.listen(1)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            return _owner(port, root)
        if e.errno == errno.EACCES:  # a low port and we are not root, but the engine is: look who listens
            return _owner(port, root) if _listening(port, root) else None
        return f"the kernel ({e.strerror or e}): {address} cannot be listened on"
    return None


def _listening(port: int, root: Path) -> set[str]:
    """Socket inodes that listen on a port, on any address."""
    inodes = set()
    for table in ("proc/net/tcp", "proc/net/tcp6"):
        for line in _lines(root / table)[1:]:
            columns = line.split()
            if columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(columns[9])
    return inodes


def _owner(port: int, root: Path) -> str:
    wanted = {f"socket:[{inode}]" for inode in _listening(port, root)}
    for process in (root / "proc").glob("[0-9]*"):
        try:
            for fd in (process / "fd").iterdir():
                if str(fd.readlink()) in wanted:
                    return f"{''.join(_lines(process / 'comm')).strip() or 'a program'} (pid {process.name})"
        except OSError:  # it ended meanwhile, or belongs to someone else
            continue
    return "another process"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
