"""Other processes, from /proc: whose they are, and their memory; None and empty: the kernel did not tell."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


Belongs = Callable[[Path], bool]  # takes /proc/PID; may raise OSError


def in_container(container: str) -> Belongs:
    """By the container's id of 64 hex digits, which stands in its processes' control groups' paths.

    So it is true of cgroup v1 and v2, of either cgroup driver, and of processes that moved to another parent; it needs
    the engine to run on this host and no rights.
    """
    return lambda process: container in (process / "cgroup").read_text("ascii", "replace")


def saying_to(pipe: tuple[int, int]) -> Belongs:
    """By the pipe (device and inode) that is their standard error: it is inherited, whatever else a process does.

    It needs the rights of the processes' user.
    """

    def belongs(process: Path) -> bool:
        found = (process / "fd/2").stat()
        return (found.st_dev, found.st_ino) == pipe

    return belongs


class Members:
    """The processes that belong together. Each is looked at once: what it belongs to is what it was born into."""

    def __init__(self, belongs: Belongs, root: Path = _ROOT) -> None:
        self._belongs = belongs
        self._root = root
        self._looked: set[int] = set()
        self._found: set[int] = set()

    def pids(self) -> frozenset[int]:
        """Process ids (of this host) of those that run now."""
        try:
            now = {int(name) for name in os.listdir(self._root) if name.isdigit()}  # noqa: PTH208 - four times a second
        except OSError:
            return frozenset()
        for pid in now - self._looked:
            try:
                if self._belongs(self._root / str(pid)):
                    self._found.add(pid)
            except OSError:
                continue
        self._looked = now  # a number that comes back is another process
        self._found &= now
        return frozenset(self._found)


def rss(pid: int, root: Path = _ROOT) -> int | None:
    """Bytes of a process that are in memory (proc(5), statm's second field times the page size).

    Pages that several processes share are counted in each of them.
    """
    try:
        return int((root / str(pid) / "statm").read_text("ascii").split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def pss(pid: int, root: Path = _ROOT) -> int | None:
    """Bytes in memory with shared pages divided among their sharers; of others' processes only root may read it.

    It walks the page tables (tens of milliseconds), so it is nothing to ask often.
    """
    try:
        text = (root / str(pid) / "smaps_rollup").read_text("ascii", "replace")
    except OSError:
        return None
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


@dataclass(frozen=True)
class Identity:
    """One process, and no later one with its number. `start`: clock ticks to it from `boot`, the kernel's own id."""

    pid: int
    start: int
    boot: str


def identity(pid: int, root: Path = _ROOT) -> Identity | None:
    """Who has this number now; None: nobody, or one that has ended and waits for its parent to hear of it."""
    try:
        # proc(5): the name in parentheses may hold anything; the state is field 3, the start field 22
        fields = (root / str(pid) / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else Identity(pid, int(fields[19]), boot(root))
    except (OSError, ValueError, IndexError):
        return None


def boot(root: Path = _ROOT) -> str:
    """The kernel's own id of this boot; empty: it has none."""
    try:
        return (root / "sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def parents(root: Path = _ROOT) -> dict[int, int]:
    """Parent of every process, by number."""
    found = {}
    for path in root.glob("[0-9]*/stat"):
        try:
            found[int(path.parent.name)] = int(path.read_text("ascii", "replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return found


def command(pid: int, root: Path = _ROOT) -> str:
    """A process's command line, or its name where it has none (any more)."""
    try:
        words = (root / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
        return words or (root / str(pid) / "comm").read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def initial_pid_namespace(root: Path = _ROOT) -> bool | None:
    """Whether process ids here are the host's own, as the driver of a GPU tells them; None: the kernel does not say.

    The first namespace has a number of its own, PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h.
    """
    try:
        return str((root / "self/ns/pid").readlink()) == "pid:[4026531836]"
    except OSError:
        return None
