"""Memory of other processes, from /proc; None and empty sets mean that the kernel did not tell."""

from __future__ import annotations

import os
import re
from pathlib import Path

_ROOT = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Members:
    """The processes of one container, by the id of 64 hex digits that stands in their control groups' paths.

    So it is true of cgroup v1 and v2, of either cgroup driver, and of processes that moved to another parent; it needs
    the engine to run on this host and no rights. A process is looked at once: none moves into a container later.
    """

    def __init__(self, container: str, root: Path = _ROOT) -> None:
        self._container = container
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
                text = (self._root / str(pid) / "cgroup").read_text("ascii", "replace")
            except OSError:
                continue
            if self._container in text:
                self._found.add(pid)
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
