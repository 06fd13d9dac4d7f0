"""A server's memory in pages of 2 MiB, once it serves: its Python finds its way to it with fewer misses of the TLB.

vLLM's API process and its engine hold half a GiB of objects each, in pages of 4 KiB, and a token touches those of more
than a thousand calls. Python's allocator takes memory in pieces of 1 MiB or less, too small for a large page when they
are first touched. Where large pages are on for everybody, the kernel's daemon makes them later, by default of 16 MiB in
10 s. `madvise(MADV_COLLAPSE)` (Linux 6.1, no privilege) does it at once. Where the kernel refuses, everything stays.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bringup.inside import marks

SIZE = 2 * 2**20  # bytes of a large page where pages have 4 KiB, on x86-64 and on 64-bit Arm
SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")  # Documentation/admin-guide/mm/transhuge.rst
MADV_COLLAPSE = 25  # include/uapi/asm-generic/mman-common.h
AFTER = 5.0  # seconds from ready, so that it takes nothing from the start and from the first answer
# Of a range of 2 MiB, before it becomes one page: the rest of it is new memory. Stacks of threads hold a few KiB.
LEAST = 0.75
_libc = ctypes.CDLL(None, use_errno=True)


def once_ready(holder: Any, name: str) -> None:
    """Begin when this call, the last of its process's start, has returned for the first time.

    Raises:
        AttributeError: there is no such call.
    """
    call = getattr(holder, name)
    begun = threading.Event()

    @functools.wraps(call)
    def called(*args: Any, **given: Any) -> Any:
        result = call(*args, **given)
        if not begun.is_set():
            begun.set()
            threading.Thread(target=settle, name="hugepages", daemon=True).start()
        return result

    setattr(holder, name, called)


def settle(after: float = AFTER) -> None:
    """Wait, then collapse what this process holds, and say in the log how much it was."""
    time.sleep(after)
    begun = time.monotonic()
    try:
        if int(SIZE_FILE.read_text("ascii")) != SIZE:
            return
        maps = Path("/proc/self/maps").read_text("utf-8", "surrogateescape").splitlines()
    except (OSError, ValueError):  # a kernel without large pages, or one that is not Linux's
        return
    asked: list[int] = []
    for area in areas(maps):
        with suppress(OSError):  # another thread has given it back meanwhile
            asked += dense(*area)
    done = sum(advise(start) for start in asked)
    marks.told(f"hugepages: {done} of {len(asked)} in {time.monotonic() - begun:.2f} s")


def areas(maps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Whole ranges of 2 MiB, from and to, in private memory that may be written and is no file's.

    Args:
        maps: lines as in /proc/PID/maps (proc_pid_maps(5)).
    """
    for line in maps:
        place, permissions, _offset, _device, inode, *name = line.split(None, 5)
        ordinary = not name or name[0].startswith(("[heap]", "[anon:"))
        if permissions == "rw-p" and inode == "0" and ordinary:
            start, end = (int(number, 16) for number in place.split("-"))
            start, end = -(-start // SIZE) * SIZE, end // SIZE * SIZE
            if start < end:
                yield start, end


def dense(start: int, end: int) -> Iterator[int]:
    """Where the ranges of 2 MiB begin of which at least `LEAST` is in use.

    Raises:
        OSError: the memory has changed meanwhile.
    """
    pages = SIZE // mmap.PAGESIZE
    used = bytearray((end - start) // mmap.PAGESIZE)
    buffer = (ctypes.c_ubyte * len(used)).from_buffer(used)
    if _libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(end - start), buffer):
        raise OSError(ctypes.get_errno(), "mincore")
    for number in range(len(used) // pages):
        if used.count(1, number * pages, (number + 1) * pages) >= LEAST * pages:  # mm/mincore.c: 0 or 1
            yield start + number * SIZE


def advise(start: int) -> bool:
    """Make one page of the 2 MiB from `start`; False when the kernel does not."""
    return not _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(SIZE), MADV_COLLAPSE)
