"""The weights lock: the one list of what the files of a model must be.

JSON, schema 1: every file of a model with its path, size in bytes and sha256; hub models also carry a repository and a
40-hex commit, and what config.json says about the model's size. A file may carry a BLAKE3 too, computed from bytes
whose sha256 was right: as strong, and several times faster to check at every start. Nothing that handles weights trusts
anything but the lock.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bringup.errors import UsageError

LOCK = Path(__file__).parent / "data" / "weights.lock"
SCHEMA = 1
SAFE = (".safetensors", ".json", ".txt", ".jinja", ".model")  # data only: nothing here is executed or unpickled
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")  # of a model
REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
BUSY = 30.0  # seconds that another writer may take; it needs milliseconds


@dataclass(frozen=True)
class LockedFile:
    """One file: path relative to the model's directory, size in bytes, sha256 and (perhaps) BLAKE3 in hex."""

    path: str
    size: int
    sha256: str
    blake3: str = ""


@dataclass(frozen=True)
class LockedModel:
    """One model of the lock; `repo` and `revision` are empty for a model that lies in this repository.

    `config` is a part of the model's config.json, as far as memory is computed from it; empty where nobody read it.
    """

    name: str
    source: str
    license: str
    files: tuple[LockedFile, ...]
    repo: str = ""
    revision: str = ""
    config: Mapping[str, str | int | float | bool] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)

    @property
    def digest(self) -> str:
        """sha256 over the sorted "sha256  path" lines: one value for the whole tree."""
        lines = sorted(f"{f.sha256}  {f.path}\n" for f in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_lock(path: Path = LOCK) -> dict[str, LockedModel]:
    """All models of a lock file.

    Raises:
        UsageError: the file is missing, is no JSON, or an entry is incomplete or unsafe.
    """
    try:
        raw = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"the weights lock {path} cannot be read: {e}", hint="restore it from git",
                         id="lock-unreadable") from e  # fmt: skip
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or not isinstance(raw.get("models"), dict):
        found = raw.get("schema") if isinstance(raw, dict) else None
        raise UsageError(
            f"the weights lock {path} has schema {found!r} or no models; schema {SCHEMA} with models is needed",
            hint="restore it from git", id="lock-unreadable",
        )  # fmt: skip
    try:
        return {name: _entry(name, entry) for name, entry in raw["models"].items()}
    except UsageError as e:
        e.id, e.hint = "lock-unusable", "restore it from git, or pin the model again: bringup lock MODEL"
        raise


def _entry(name: str, raw: dict[str, Any]) -> LockedModel:
    try:
        files = tuple(LockedFile(f["path"], int(f["size"]), f["sha256"], f.get("blake3", "")) for f in raw["files"])
        model = LockedModel(name, raw["source"], raw["license"], files, raw.get("repo", ""), raw.get("revision", ""),
                            raw.get("config", {}))  # fmt: skip
        if not all(isinstance(text, str) for f in files for text in (f.path, f.sha256, f.blake3)):
            raise TypeError("path and hashes must be texts")
        if not all(isinstance(text, str) for text in (model.source, model.license, model.repo, model.revision)):
            raise TypeError("source, license, repo and revision must be texts")
        if not isinstance(model.config, dict) or not all(map(_scalar, model.config.values())):
            raise TypeError("config must hold texts, numbers and booleans")
    except (KeyError, TypeError, ValueError) as e:
        raise UsageError(f"weights lock: the entry {name!r} is incomplete ({e!r})") from e
    if not NAME.fullmatch(name) or not files:
        raise UsageError(f"weights lock: {name!r} is no usable model name, or it has no files")
    if len({f.path for f in files}) != len(files):
        raise UsageError(f"weights lock: {name}: a file is locked twice")
    for f in files:
        _check_file(name, f)
    if model.source == "hub" and not (REPO.fullmatch(model.repo) and COMMIT.fullmatch(model.revision)):
        raise UsageError(f"weights lock: {name}: a hub model needs a repo and a 40-hex commit")
    return model


def is_plain(path: str) -> bool:
    """Is it a relative path that stays below its directory, in its shortest spelling, and safe to print?"""
    pure = PurePosixPath(path)
    stays = not pure.is_absolute() and ".." not in pure.parts and pure.parts != ()
    return stays and str(pure) == path and "\\" not in path and path.isprintable()


def _check_file(name: str, f: LockedFile) -> None:
    if not is_plain(f.path):
        raise UsageError(f"weights lock: {name}: {f.path!r} leaves the model's directory, or is no plain path")
    if PurePosixPath(f.path).suffix not in SAFE:
        raise UsageError(f"weights lock: {name}: {f.path!r} is not safetensors, JSON or plain text")
    if not re.fullmatch(r"[0-9a-f]{64}", f.sha256) or f.size < 0:
        raise UsageError(f"weights lock: {name}: {f.path!r} has no full sha256 or size")
    if not re.fullmatch(r"([0-9a-f]{64})?", f.blake3):
        raise UsageError(f"weights lock: {name}: {f.path!r} has a BLAKE3 that is none")


def _scalar(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


@contextmanager
def changing(path: Path = LOCK) -> Iterator[dict[str, LockedModel]]:
    """The models of a lock file, to be changed in place; written at the end if they changed.

    Whoever else changes the file meanwhile waits, so that no entry is lost. A file that is not there has no models.

    Raises:
        UsageError: it cannot be read or written, or somebody else does not come to an end.
    """
    with _alone(path.with_name(f".{path.name}.writing")):
        models = read_lock(path) if path.exists() else {}
        yield models
        if not path.exists() or render(models) != path.read_text("utf-8"):
            write_lock(models, path)


@contextmanager
def _alone(mark: Path) -> Iterator[None]:
    """Hold the file `mark`, which is gone at the end; the system lets go of it if this process is killed."""
    ends = time.monotonic() + BUSY
    while (handle := _hold(mark)) is None:
        if time.monotonic() > ends:
            raise UsageError(
                f"another process holds {mark} for more than {BUSY:.0f} s",
                hint="end it, then try again",
                id="lock-busy",
            )
        time.sleep(0.05)
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)
        os.close(handle)


def _hold(mark: Path) -> int | None:
    """The file, ours alone; None while it is somebody else's, or was removed by its holder as we opened it."""
    try:
        handle = os.open(mark, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as e:
        raise UsageError(f"{mark.parent} cannot be written: {e.strerror or e}") from e
    try:
        return handle if is_ours(handle, mark) else None
    except OSError as e:
        raise UsageError(f"{mark} cannot be locked: {e.strerror or e}") from e


def is_ours(handle: int, mark: Path) -> bool:
    """Lock an open file without waiting: is it ours, and still what others find at `mark`? Else it is closed.

    Its holder unlinks it at the end, so that one who opened it before may lock what nobody else will ever find.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), mark.lstat()):
            return True
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return False


def write_lock(models: Mapping[str, LockedModel], path: Path = LOCK) -> None:
    """Write a lock that `read_lock` reads back: complete or not at all, the same text for the same content.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False, encoding="utf-8") as f:
            try:
                f.write(render(models))
                f.flush()
                os.fsync(f.fileno())
                Path(f.name).chmod(0o644)
                Path(f.name).replace(path)
            except BaseException:
                Path(f.name).unlink(missing_ok=True)
                raise
    except OSError as e:
        raise UsageError(f"the weights lock {path} cannot be written: {e.strerror or e}") from e


def render(models: Mapping[str, LockedModel]) -> str:
    """The text of a lock."""
    entries = {}
    for name, model in sorted(models.items()):
        raw = {k: v for k, v in dataclasses.asdict(model).items() if v and k not in ("name", "files")}
        raw |= {"config": dict(sorted(model.config.items()))} if model.config else {}
        files = [{k: v for k, v in dataclasses.asdict(f).items() if v != ""} for f in model.files]
        entries[name] = raw | {"files": sorted(files, key=lambda f: str(f["path"]))}
    return json.dumps({"schema": SCHEMA, "models": entries}, indent=2) + "\n"
