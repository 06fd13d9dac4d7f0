"""The kernel's page cache of this host, dropped so that a start reads its files from the disk."""

from __future__ import annotations

import os
from pathlib import Path

DROP = Path("/proc/sys/vm/drop_caches")


def drop(path: Path = DROP) -> str:
    """Drop clean pages, directory entries and inodes (proc(5): 3); empty, or why it could not be done.

    Nothing is lost: what was not written yet is written first.
    """
    os.sync()
    try:
        path.write_text("3\n", "ascii")
    except OSError as e:
        return f"{path}: {e.strerror}"
    return ""
