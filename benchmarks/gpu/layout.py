#!/usr/bin/env python3
"""Give a host what the image has under /opt/bringup, so that the image's entry point runs there without a container.

usage: layout.py MODEL_DIR [--model NAME] [--root /opt/bringup] [--locks FILE...]     (as root)

Makes ROOT/models/NAME (a link to MODEL_DIR) and ROOT/weights.lock, in which NAME's files are those of MODEL_DIR with
their own hashes. Each further lock FILE gets the same entry, for a checkout whose host side must agree with it. It is
for weights that no hub has: never do this to a checkout that you build images to deploy from.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from pathlib import Path

from blake3 import blake3

from bringup.lock import LOCK, SAFE, LockedFile, read_lock, write_lock


def locked(path: Path) -> LockedFile:
    """One file with its size and both hashes."""
    quick = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
    with path.open("rb") as f:
        return LockedFile(path.name, path.stat().st_size, hashlib.file_digest(f, "sha256").hexdigest(), quick)


def main() -> None:
    """Link the model and write the locks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default="qwen2.5-1.5b-instruct", help="an entry of the weights lock")
    parser.add_argument("--root", type=Path, default=Path("/opt/bringup"))
    parser.add_argument("--locks", type=Path, nargs="*", default=[])
    given = parser.parse_args()
    files = tuple(locked(p) for p in sorted(given.directory.iterdir()) if p.suffix in SAFE)
    entries = read_lock(LOCK)
    entries[given.model] = dataclasses.replace(entries[given.model], files=files)
    link = given.root / "models" / given.model
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.resolve() != given.directory.resolve():
        link.unlink(missing_ok=True)
        link.symlink_to(given.directory.resolve())
    for lock in (given.root / "weights.lock", *given.locks):
        write_lock(entries, lock)
    print(f"{link} -> {given.directory}: {sum(f.size for f in files):,} bytes, digest {entries[given.model].digest}")


if __name__ == "__main__":
    main()
