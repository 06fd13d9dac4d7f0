"""Ask the kernel for the files that the server's imports will read, before they are asked for one by one.

With a cold page cache each library of torch is read page by page as it is linked, one after the other. The list of
files is written when the image is built (`python -m bringup.inside.prefetch DIRECTORY`), beside the pack of bytecode
(see `pack`), by importing what the server imports.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

from bringup.inside import pack

LIST = Path("/opt/bringup/imports.txt")
WORKERS = 8  # a disk serves several requests at a time


def libraries(maps: str, places: list[str]) -> list[str]:
    """Shared libraries below these places in `maps` (/proc/PID/maps)."""
    mapped = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if ".so" in line}
    return sorted(f for f in mapped if any(f.startswith(f"{p}/") for p in places))


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
        files = [str(pack.PACK), *listed.read_text("utf-8").splitlines()]
    except OSError:
        return []
    threads = [threading.Thread(target=ask, args=(files[n::WORKERS],), daemon=True) for n in range(WORKERS)]
    for thread in threads:
        thread.start()
    return threads


def record(directory: Path, flavour: str) -> None:
    """Import as the server does, and write the pack and the list."""
    from bringup.inside import serve, standby

    key, places = pack.installation(), pack.directories()
    for name in (*serve.API, *standby.ENGINE, *standby.of(flavour)):
        with suppress(Exception):  # where the image is built there may be no GPU, and some modules ask for one
            importlib.import_module(name)
    modules = pack.write(directory / pack.PACK.name, list(sys.modules.values()), key, places)
    files = libraries(Path("/proc/self/maps").read_text("utf-8"), places)
    (directory / LIST.name).write_text("".join(f"{f}\n" for f in files), "utf-8")
    size = (directory / pack.PACK.name).stat().st_size
    print(f"{pack.PACK.name}: {modules} modules, {size} bytes; {LIST.name}: {len(files)} libraries")  # noqa: T201


if __name__ == "__main__":
    record(Path(sys.argv[1]), os.environ.get("BRINGUP_FLAVOUR", ""))
