"""A server's memory in large pages: which memory that is, when it begins, and what a kernel says to it."""

from __future__ import annotations

import ctypes
import logging
import mmap
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bringup.inside import hugepages, marks
from tests.machine import kernel
from tests.unit.launchfakes import wait_for

MIB = 2**20
SIZE = hugepages.SIZE
# As in /proc/PID/maps; the numbers are multiples of 2 MiB where the name says "whole".
MAPS = {
    "whole": "7f0000000000-7f0000400000 rw-p 00000000 00:00 0 ",
    "heap": "55d5e0100000-55d5e0700000 rw-p 00000000 00:00 0                          [heap]",
    "named": "7f1000000000-7f1000200000 rw-p 00000000 00:00 0                          [anon:cpython:pymalloc]",
    "small": "7f2000100000-7f20002ff000 rw-p 00000000 00:00 0 ",
    "stack": "7ffd00000000-7ffd00400000 rw-p 00000000 00:00 0                          [stack]",
    "code": "7f3000000000-7f3000400000 r-xp 00000000 fe:00 1234                       /usr/lib/libtorch_cpu.so",
    "data": "7f4000000000-7f4000400000 rw-p 00200000 fe:00 1234                       /usr/lib/libtorch_cpu.so",
    "deleted": "7f5000000000-7f5000400000 rw-p 00000000 00:01 99                       /tmp/a file (deleted)",
    "shared": "7f6000000000-7f6000400000 rw-s 00000000 00:05 0                        /dev/nvidia0",
    "reserved": "7f7000000000-7f7000400000 ---p 00000000 00:00 0 ",
}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("whole", [(0x7F0000000000, 0x7F0000400000)]),
        ("heap", [(0x55D5E0200000, 0x55D5E0600000)]),
        ("named", [(0x7F1000000000, 0x7F1000200000)]),
        *((name, []) for name in ("small", "stack", "code", "data", "deleted", "shared", "reserved")),
    ],
)
def test_only_private_memory_that_is_no_files(name: str, found: list[tuple[int, int]]) -> None:
    assert list(hugepages.areas([MAPS[name]])) == found


def test_every_line_of_this_process_is_read() -> None:
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = list(hugepages.areas(lines))
    assert found
    assert all(start % SIZE == end % SIZE == 0 < end - start for start, end in found)


@pytest.fixture
def memory() -> Iterator[tuple[mmap.mmap, int]]:
    """Eight whole ranges of new memory, none of it in use; where they begin."""
    area = mmap.mmap(-1, 9 * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = ctypes.c_char.from_buffer(area)
    start = -(-ctypes.addressof(view) // SIZE) * SIZE
    offset = start - ctypes.addressof(view)
    del view
    area.madvise(mmap.MADV_NOHUGEPAGE)  # a kernel that makes all memory large would take it whole
    yield area, offset
    area.close()


def address(area: mmap.mmap, offset: int) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area, offset))


def use(area: mmap.mmap, offset: int, size: int) -> None:
    for place in range(offset, offset + size, mmap.PAGESIZE):
        area[place] = 1


@pytest.mark.skipif(mmap.PAGESIZE != 4096, reason="large pages are not of 2 MiB here")
def test_what_is_in_use_for_the_most_part(memory: tuple[mmap.mmap, int]) -> None:
    area, offset = memory
    start = address(area, offset)
    use(area, offset, SIZE)
    use(area, offset + SIZE, int(0.75 * SIZE))
    use(area, offset + 2 * SIZE, int(0.75 * SIZE) - mmap.PAGESIZE)  # a page too few
    use(area, offset + 4 * SIZE, mmap.PAGESIZE)  # a thread's stack
    assert list(hugepages.dense(start, start + 8 * SIZE)) == [start, start + SIZE]


def test_memory_that_is_gone_is_an_error() -> None:
    with pytest.raises(OSError, match="mincore"):
        list(hugepages.dense(1, SIZE + 1))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(marks, "told", seen.append)
    return seen


def large(start: int) -> int:
    """KiB in large pages of the mapping that begins there or before (smaps in proc_pid_smaps(5))."""
    for part in re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]:
        low, high = (int(n, 16) for n in part.split(None, 1)[0].split("-"))
        if low <= start < high:
            return int(part.partition("AnonHugePages:")[2].split()[0])
    raise AssertionError(f"no mapping at {start:x}")


def collapses() -> bool:
    """Whether this kernel can do it at all."""
    return mmap.PAGESIZE == 4096 and hugepages.SIZE_FILE.exists() and kernel() >= (6, 1)


@pytest.mark.skipif(not collapses(), reason="Linux 6.1 with transparent large pages")
def test_the_kernel_makes_large_pages_and_the_content_stays(
    memory: tuple[mmap.mmap, int], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    area, offset = memory
    start = address(area, offset)
    area.madvise(mmap.MADV_HUGEPAGE)
    content = bytes(range(256)) * (3 * SIZE // 256)
    for place in range(0, len(content), mmap.PAGESIZE):  # by pieces, so that the pages are small ones first
        area[offset + place : offset + place + mmap.PAGESIZE] = content[place : place + mmap.PAGESIZE]
    monkeypatch.setattr(hugepages, "areas", lambda _: [(start, start + 8 * SIZE)])
    hugepages.settle(0)
    assert re.fullmatch(r"hugepages: 3 of 3 in \d+\.\d\d s", told[0])
    assert large(start) == 3 * SIZE / 1024
    assert area[offset : offset + len(content)] == content


def test_an_area_that_is_gone_is_passed_over(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def dense(start: int, end: int) -> Iterator[int]:
        if start == SIZE:
            raise OSError
        yield from range(start, end, SIZE)

    def advise(start: int) -> bool:
        asked.append(start)
        return True

    asked: list[int] = []
    monkeypatch.setattr(hugepages, "SIZE_FILE", SimpleNamespace(read_text=lambda _: f"{SIZE}\n"))
    monkeypatch.setattr(hugepages, "areas", lambda _: [(SIZE, 2 * SIZE), (4 * SIZE, 6 * SIZE)])
    monkeypatch.setattr(hugepages, "dense", dense)
    monkeypatch.setattr(hugepages, "advise", advise)
    hugepages.settle(0)
    assert asked == [4 * SIZE, 5 * SIZE]
    assert told[0].startswith("hugepages: 2 of 2 in ")


def test_a_kernel_that_refuses_is_told(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []
    monkeypatch.setattr(hugepages, "SIZE_FILE", SimpleNamespace(read_text=lambda _: f"{SIZE}\n"))
    monkeypatch.setattr(hugepages, "areas", lambda _: [(SIZE, 3 * SIZE)])
    monkeypatch.setattr(hugepages, "dense", lambda start, end: range(start, end, SIZE))

    def madvise(start: ctypes.c_void_p, size: ctypes.c_size_t, advice: int) -> int:
        asked.append((start.value or 0, size.value, advice))
        return -1

    monkeypatch.setattr(hugepages, "_libc", SimpleNamespace(madvise=madvise))
    hugepages.settle(0)
    assert asked == [(SIZE, SIZE, 25), (2 * SIZE, SIZE, 25)]
    assert told[0].startswith("hugepages: 0 of 2 in ")


@pytest.mark.parametrize("content", [None, "", f"{512 * MIB}\n"])
def test_a_kernel_without_large_pages_of_two_mib_is_left_alone(
    content: str | None, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hpage_pmd_size"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(hugepages, "SIZE_FILE", file)
    monkeypatch.setattr(hugepages, "areas", lambda _: pytest.fail("looked at its memory"))
    hugepages.settle(0)
    assert told == []


# When


class Engine:
    """One whose start may fail."""

    def __init__(self, seen: list[str], name: str, fails: bool = False) -> None:
        seen.append(name)
        if fails:
            raise MemoryError


def test_it_begins_once_when_the_first_start_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    made = type("Made", (Engine,), {"__init__": Engine.__init__})
    monkeypatch.setattr(hugepages, "settle", lambda: seen.append(threading.current_thread().name))
    hugepages.once_ready(made, "__init__")
    with pytest.raises(MemoryError):
        made(seen, "failed", fails=True)
    wait_for("hugepages")
    assert seen == ["failed"]
    for name in ("first", "second"):
        made(seen, name=name)
        wait_for("hugepages")
    assert seen == ["failed", "first", "hugepages", "second"]


def test_what_does_not_exist_is_an_error() -> None:
    with pytest.raises(AttributeError):
        hugepages.once_ready(SimpleNamespace(), "freeze_gc_heap")


def test_it_is_told_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger(marks.__name__)
    monkeypatch.setattr(logger, "handlers", logger.handlers[:])
    monkeypatch.setattr(logger, "level", logger.level)
    marks.begin(str(tmp_path / "server.jsonl"))
    marks.told("hugepages: 3 of 4 in 0.10 s")
    assert '"hugepages: 3 of 4 in 0.10 s"' in (tmp_path / "server.jsonl").read_text().splitlines()[-1]
