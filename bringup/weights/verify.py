"""Is what lies in a directory what the lock says? Every byte; names, kinds and sizes first, then hashes in threads."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bringup.errors import WeightsDiffer
from bringup.lock import LockedFile, LockedModel
from bringup.weights.digest import digests, has_blake3, nothing

KINDS = {
    stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory", stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """One way in which a directory is not what the lock says."""

    id: str
    text: str


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex."""
    return digests(path, blake3=False).sha256


def verify_dir(model: LockedModel, directory: Path) -> None:
    """Compare a directory with the lock, every byte: by BLAKE3 where the lock has it, else by sha256.

    Raises:
        WeightsDiffer: every difference in `detail`, the first one in the message and as `id`: weights-missing,
            weights-extra, weights-not-a-file, weights-unreadable, weights-size, weights-hash.
    """
    wrong, worth = survey(model, directory)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        wrong += [d for d in pool.map(lambda f: compare(directory / f.path, f), worth) if d]
    if wrong:
        raise differs(model, directory, wrong)


def differs(model: LockedModel, directory: Path, wrong: list[Difference], hint: str = "") -> WeightsDiffer:
    """The error that names these differences."""
    return WeightsDiffer(
        f"weights of {model.name} in {directory} differ from the lock: {wrong[0].text}"
        + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
        hint=hint or "fetch the files again, or restore the directory; the lock is never changed silently",
        detail="\n".join(d.text for d in wrong),
        id=wrong[0].id,
    )


def survey(model: LockedModel, directory: Path, ignore: str = "") -> tuple[list[Difference], list[LockedFile]]:
    """What names, kinds and sizes tell: the differences, and the files whose content is worth a look.

    `ignore`: the name of one entry of the directory that is not looked at.
    """
    found = dict(_walk(directory, "", ignore))
    parents = {str(p) for f in model.files for p in Path(f.path).parents} - {"."}
    missing, extra, odd, size, worth = [], [], [], [], []
    for f in sorted(model.files, key=lambda f: f.path):
        entry = found.pop(f.path, None)
        if isinstance(entry, os.stat_result) and stat.S_ISREG(entry.st_mode):
            if entry.st_size == f.size:
                worth.append(f)
            else:
                text = f"size of {f.path}: {entry.st_size} bytes, the lock says {f.size}"
                size.append(Difference("weights-size", text))
        elif isinstance(entry, os.stat_result):
            odd.append(Difference("weights-not-a-file", f"{_kind(entry)}: {f.path}"))
        elif entry is None and not any(
            str(p) in found and not _is_directory(found[str(p)]) for p in Path(f.path).parents
        ):
            missing.append(Difference("weights-missing", f"missing: {f.path}"))
    for path, entry in sorted(found.items()):
        if isinstance(entry, OSError):
            odd.append(Difference("weights-unreadable", f"cannot be read: {path}: {entry.strerror}"))
        elif path in parents and not _is_directory(entry):
            odd.append(Difference("weights-not-a-file", f"{_kind(entry)}: {path}"))
        elif not stat.S_ISDIR(entry.st_mode):
            extra.append(Difference("weights-extra", f"not in the lock: {path}"))
    return missing + extra + odd + size, worth


def compare(path: Path, file: LockedFile, check: Callable[[], None] = nothing) -> Difference | None:
    """Hash one file: by BLAKE3 where the lock has it and the package is there, else by sha256."""
    fast = bool(file.blake3) and has_blake3()
    try:
        hashes = digests(path, check, sha256=not fast, blake3=fast)
    except OSError as e:
        return Difference("weights-unreadable", f"cannot be read: {file.path}: {e.strerror}")
    name, is_, locked = ("BLAKE3", hashes.blake3, file.blake3) if fast else ("sha256", hashes.sha256, file.sha256)
    return (
        None if is_ == locked else Difference("weights-hash", f"{name} of {file.path}: {is_}, the lock says {locked}")
    )


def _walk(directory: Path, prefix: str, ignore: str) -> Iterator[tuple[str, os.stat_result | OSError]]:
    """Everything below a directory by its path there, without following links; an error stands for what it hides."""
    try:
        with os.scandir(directory) as entries:
            inside = sorted(e.name for e in entries if e.name != ignore)
    except FileNotFoundError:
        return
    except OSError as e:
        yield prefix.removesuffix("/") or ".", e
        return
    for name in inside:
        try:
            status = (directory / name).lstat()
        except FileNotFoundError:  # gone meanwhile
            continue
        except OSError as e:
            yield prefix + name, e
            continue
        yield prefix + name, status
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(directory / name, f"{prefix}{name}/", "")


def _is_directory(entry: os.stat_result | OSError) -> bool:
    return isinstance(entry, os.stat_result) and stat.S_ISDIR(entry.st_mode)


def _kind(entry: os.stat_result) -> str:
    return KINDS.get(stat.S_IFMT(entry.st_mode), "no file")
