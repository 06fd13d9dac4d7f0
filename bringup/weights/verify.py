"""Is what lies in a directory what the lock says? Every byte, sizes first, hashes in threads."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bringup.errors import WeightsDiffer
from bringup.lock import LockedModel


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def verify_dir(model: LockedModel, directory: Path) -> None:
    """Compare a directory with the lock, every byte; sizes first, hashes in threads.

    Raises:
        WeightsDiffer: naming every file that is missing, unexpected or different.
    """
    locked = {f.path: f for f in model.files}
    present = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file() or p.is_symlink()}
    wrong = [f"missing: {p}" for p in sorted(locked.keys() - present)]
    wrong += [f"not in the lock: {p}" for p in sorted(present - locked.keys())]
    same_size = []
    for f in (locked[p] for p in sorted(locked.keys() & present)):
        found = (directory / f.path).stat(follow_symlinks=False).st_size
        if (directory / f.path).is_symlink():
            wrong.append(f"a symbolic link: {f.path}")
        elif found != f.size:
            wrong.append(f"size of {f.path}: {found} bytes, the lock says {f.size}")
        else:
            same_size.append(f)
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda f: sha256_of(directory / f.path), same_size)
        wrong += [
            f"sha256 of {f.path}: {h}, the lock says {f.sha256}"
            for f, h in zip(same_size, hashes, strict=True)
            if h != f.sha256
        ]
    if wrong:
        raise WeightsDiffer(
            f"weights of {model.name} in {directory} differ from the lock: {wrong[0]}"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
            hint="rebuild the image, or restore the directory; the lock is never changed silently",
            detail="\n".join(wrong),
        )
