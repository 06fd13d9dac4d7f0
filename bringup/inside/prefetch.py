"""Ask the kernel for the files that the server's imports will read, before they are asked for one by one.

With a cold page cache thousands of small reads follow one after the other. The list of files is written when the image
is built (`python -m bringup.inside.prefetch FILE`), by importing what the server imports.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

LIST = Path("/opt/bringup/imports.txt")
WORKERS = 8  # a disk serves several requests at a time


def needed(modules: Iterable[object], maps: str, prefix: str) -> list[str]:
    """Files below `prefix` that these modules were loaded from, and the libraries in `maps` (/proc/PID/maps)."""
    cached = {getattr(m, "__cached__", None) or getattr(m, "__file__", None) for m in modules}
    mapped = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if ".so" in line}
    return sorted(str(f) for f in cached | mapped if f and str(f).startswith(f"{prefix}/"))


def ask(files: list[str]) -> None:
    """Read ahead; a file that is not there is passed over."""
    for file in files:
        with suppress(OSError):
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)


def start(listed: Path = LIST) -> list[threading.Thread]:
    """Ask in the background; no list, nothing to do."""
    try:
        files = listed.read_text("utf-8").splitlines()
    except OSError:
        return []
    threads = [threading.Thread(target=ask, args=(files[n::WORKERS],), daemon=True) for n in range(WORKERS)]
    for thread in threads:
        thread.start()
    return threads


def record(target: Path, flavour: str) -> int:
    """Import as the server does, and write the list; the number of files."""
    from bringup.inside import serve, standby

    for name in (*serve.API, *standby.ENGINE, *standby.of(flavour)):
        with suppress(Exception):  # where the image is built there may be no GPU, and some modules ask for one
            importlib.import_module(name)
    files = needed(list(sys.modules.values()), Path("/proc/self/maps").read_text("utf-8"), sys.prefix)
    target.write_text("".join(f"{f}\n" for f in files), "utf-8")
    return len(files)


if __name__ == "__main__":
    print(record(Path(sys.argv[1]), os.environ.get("BRINGUP_FLAVOUR", "")), "files are imported")  # noqa: T201
