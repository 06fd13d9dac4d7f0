"""Prefetch: which libraries the server's imports load, and that asking for them never gets in the way."""

from __future__ import annotations

from pathlib import Path

from bringup.inside import prefetch


def test_libraries_below_the_places() -> None:
    maps = "\n".join(
        [
            "7f00-7f01 r-xp 00000000 08:01 42                         /v/lib/with space/libd.so.1",
            "7f02-7f03 r--p 00000000 08:01 42                         /v/lib/with space/libd.so.1",
            "7f04-7f05 r--p 00000000 08:01 43                         /usr/lib/libc.so.6",
            "7f04-7f05 r--p 00000000 08:01 43                         /v/lib/a.pyc",
            "7f06-7f07 rw-p 00000000 00:00 0 ",
        ]
    )
    assert prefetch.libraries(maps, ["/v"]) == ["/v/lib/with space/libd.so.1"]


def test_asks_for_each_file_and_passes_over_what_is_gone(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{tmp_path / 'gone'}\n{tmp_path / 'list'}\n{tmp_path}\n")
    threads = prefetch.start(tmp_path / "list")
    assert len(threads) == prefetch.WORKERS
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_no_list_is_no_work(tmp_path: Path) -> None:
    assert prefetch.start(tmp_path / "none") == []
