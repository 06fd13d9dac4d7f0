"""Caches that are part of the image: packed when it is built (`python -m bringup.inside.warm pack`), put in place by a
start whose own caches are empty.

They are of use to the very same server on the very same kind of device only: one factor that differs, and they stay
where they are. Whether vLLM then loads them, its log alone can tell.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from bringup.edge import objects
from bringup.inside import profile

WARM = Path("/opt/bringup/warm")
FACTORS, ARCHIVE = "factors.json", "caches.tar"
# Not startup_plan: it holds a memory size of the machine that built the image.
PACKED = ("torch_compile_cache", "inductor", "triton", "flashinfer_autotune_cache", ".cache/flashinfer", "modelinfos")
PASSING = (".lock", ".tmp", ".part")  # files that belong to somebody at work
SHOWN = 3  # differing factors that a line names


def before_start(
    argv: Sequence[str], environment: Mapping[str, str], state: Path, log: logging.Logger, warm: Path = WARM
) -> None:
    """Fill empty caches with the image's, and write down what a miss can be explained with.

    A server never fails to start because of it.
    """
    cache, run = profile.cache_of(state, environment), state / "run"
    found = profile.factors(argv, environment)
    try:
        if seed(warm, cache, found, log) and not (run / profile.LAST).exists():
            objects.write(run / profile.LAST, {"schema": profile.SCHEMA, "factors": found})
        profile.remember(found, cache, run)
    except OSError as e:
        log.warning("caches: nothing was written down (%s), so that a miss cannot be explained", e.strerror or e)


def seed(warm: Path, cache: Path, found: Mapping[str, str], log: logging.Logger) -> bool:
    """Whether the image's caches were put in place; else a line says why not, if the image has any."""
    try:
        text = (warm / FACTORS).read_bytes()
    except FileNotFoundError:
        return False
    except OSError as e:
        log.warning("caches: the image's cannot be used: %s", e)
        return False
    if any(profile.entries(cache).values()):
        log.info("caches: kept from earlier starts; the image's own are not needed")
        return False
    begun = time.monotonic()
    try:
        made = json.loads(text)
        if reason := unfit(made["factors"], found):
            log.info("caches: empty, and the image's are not used: %s", reason)
            return False
        _unpack(warm / ARCHIVE, made["sha256"], cache)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, tarfile.TarError, EOFError) as e:
        log.warning("caches: empty, and the image's cannot be used: %s", e)
        return False
    log.info("caches: empty, so the image's were put in place (%d bytes in %.2f s)", (warm / ARCHIVE).stat().st_size,
             time.monotonic() - begun)  # fmt: skip
    return True


def unfit(made: Mapping[str, str], found: Mapping[str, str]) -> str:
    """The factors that differ, empty when none does."""
    names = sorted(n for n in made.keys() | found.keys() if made.get(n) != found.get(n))
    told = [f"{n} was {made.get(n, 'unset')}, here {found.get(n, 'unset')}" for n in names[:SHOWN]]
    return "; ".join(told) + (f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _unpack(archive: Path, digest: str, cache: Path) -> None:
    """All of it beside the caches first, then one rename for each.

    Raises:
        OSError: it cannot be read, or there is no room.
        ValueError: it is not what was packed.
    """
    with archive.open("rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != digest:
        raise ValueError(f"{archive} is not what was packed: sha256 {found[:16]}, needed {digest[:16]}")
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(".warm-*"):  # of a start that was killed
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=".warm-", dir=cache))
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                _extract(tar, member, part)
        for child in sorted(part.iterdir()):
            if not (cache / child.name).exists():
                child.rename(cache / child.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """One file; Python 3.11.2 has no extraction filter yet."""
    name = PurePosixPath(member.name)
    source = tar.extractfile(member) if member.isreg() else None
    if source is None or name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{member.name!r} does not belong into an archive of caches")
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as f:
        shutil.copyfileobj(source, f)
    if member.mode & 0o100:
        path.chmod(0o775)


def pack(cache: Path, target: Path) -> int:
    """Write the caches as one archive without times and owners; the number of files."""
    files = sorted(
        file
        for name in PACKED
        for file in (cache / name).rglob("*")
        if file.is_file() and not file.is_symlink() and not file.name.endswith(PASSING)
    )
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for file in files:
            member = tarfile.TarInfo(file.relative_to(cache).as_posix())
            member.size = file.stat().st_size
            member.mode = 0o775 if os.access(file, os.X_OK) else 0o664
            with file.open("rb") as f:
                tar.addfile(member, f)
    return len(files)


def main(args: list[str], environ: Mapping[str, str]) -> int:
    """Pack this container's caches: `pack` writes run/caches.tar and prints what factors.json is to hold."""
    if args != ["pack"]:
        sys.stderr.write("bringup: usage: python -m bringup.inside.warm pack\n")
        return 2
    state = Path(environ.get("BRINGUP_STATE_DIR") or profile.DEFAULT)
    made: dict[str, Any] = profile.of_this_container(state / "run")
    if not made:
        sys.stderr.write("bringup: nothing is known of this container's start\n")
        return 1
    archive = state / "run" / ARCHIVE
    files = pack(profile.cache_of(state, environ), archive)
    with archive.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    told = {"schema": profile.SCHEMA, "factors": made["factors"], "sha256": digest, "files": files}
    sys.stdout.write(json.dumps({**told, "archive": str(archive), "bytes": archive.stat().st_size}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
