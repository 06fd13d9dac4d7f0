"""Hashes of files: sha256, which the lock is made of, and BLAKE3, which is several times faster.

Files are mapped, not read: no copy, and hashlib and blake3 both let other threads run meanwhile. BLAKE3 uses all cores
for one file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SLICE = 64 * 2**20  # bytes between two looks at whether to go on


@dataclass(frozen=True)
class Digests:
    """Both hashes in hex; one that was not computed is empty."""

    sha256: str = ""
    blake3: str = ""


def nothing() -> None:
    """Never stops."""


def has_blake3() -> bool:
    """Is the blake3 package there? The image's own environment has it; another one may not."""
    return importlib.util.find_spec("blake3") is not None


def new_blake3() -> Any:
    """A BLAKE3 that uses all cores."""
    from blake3 import blake3

    return blake3(max_threads=blake3.AUTO)


def digests(
    path: Path, check: Callable[[], None] = nothing, *, sha256: bool = True, blake3: bool | None = None
) -> Digests:
    """Hash a file in one pass, so that both hashes are of the same bytes; `check` may raise to stop it.

    BLAKE3 is left out where the package is missing, unless `blake3` says that it is wanted.
    """
    sha = hashlib.sha256() if sha256 else None
    fast = new_blake3() if (has_blake3() if blake3 is None else blake3) else None
    with path.open("rb") as f:
        size = f.seek(0, 2)
        if size:  # nothing cannot be mapped
            with mmap.mmap(f.fileno(), size, prot=mmap.PROT_READ) as data, memoryview(data) as view:
                data.madvise(mmap.MADV_SEQUENTIAL)
                for start in range(0, size, SLICE):
                    check()
                    with view[start : start + SLICE] as part:
                        for h in (sha, fast):
                            if h is not None:
                                h.update(part)
    return Digests(sha.hexdigest() if sha else "", fast.hexdigest() if fast else "")
