"""Prefetch: which files the server's imports read, and that asking for them never gets in the way."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from bringup.inside import prefetch


def module(**given: str | None) -> ModuleType:
    made = ModuleType("x")
    made.__dict__.update(given)
    return made


def test_what_was_imported_and_mapped_below_the_prefix() -> None:
    modules = [
        module(__cached__="/v/lib/__pycache__/a.pyc", __file__="/v/lib/a.py"),
        module(__cached__=None, __file__="/v/lib/b.so"),
        module(__file__="/elsewhere/c.py", __cached__="/elsewhere/__pycache__/c.pyc"),
        module(),
    ]
    maps = "\n".join(
        [
            "7f00-7f01 r-xp 00000000 08:01 42                         /v/lib/with space/libd.so.1",
            "7f02-7f03 r--p 00000000 08:01 42                         /v/lib/with space/libd.so.1",
            "7f04-7f05 r--p 00000000 08:01 43                         /usr/lib/libc.so.6",
            "7f06-7f07 rw-p 00000000 00:00 0 ",
        ]
    )
    expected = ["/v/lib/__pycache__/a.pyc", "/v/lib/b.so", "/v/lib/with space/libd.so.1"]
    assert prefetch.needed(modules, maps, "/v") == expected


def test_asks_for_each_file_and_passes_over_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{tmp_path / 'gone'}\n{tmp_path / 'list'}\n{tmp_path}\n")
    threads = prefetch.start(tmp_path / "list")
    assert len(threads) == prefetch.WORKERS
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_no_list_is_no_work(tmp_path: Path) -> None:
    assert prefetch.start(tmp_path / "none") == []


def test_the_running_interpreters_own_files() -> None:
    files = prefetch.needed(list(sys.modules.values()), Path("/proc/self/maps").read_text(), sys.prefix)
    assert any("pytest" in f for f in files)
    assert all(Path(f).is_file() for f in files)
