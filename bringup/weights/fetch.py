"""Put a model's files into a directory by the lock alone: from the hub, or from this repository.

A file appears under its name only after its size and sha256 were right and it was flushed; `config.json` comes last,
so that an incomplete directory is not taken for a model. What is there and right already stays.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from bringup.errors import CheckFailed, TargetUnavailable, UsageError, WeightsDiffer
from bringup.lock import LockedFile, LockedModel
from bringup.weights.digest import Digests, digests
from bringup.weights.lanes import LAST, How, Job, Lanes, carrier
from bringup.weights.place import WORK, Place, flush, hold
from bringup.weights.progress import FileProgress, Progress
from bringup.weights.receipt import Carried, Receipt
from bringup.weights.verify import compare, differs, survey

__all__ = ["How", "completed", "copy", "fetch"]

COPY_TIMEOUT = 600.0  # seconds that a copy waits for another one to end
PACKAGES = ("hf_transfer", "requests", "blake3")


def unwatched(progress: Progress) -> None:
    """Shows nothing."""


def fetch(
    model: LockedModel,
    directory: Path,
    how: How,
    watch: Callable[[Progress], None] = unwatched,
    *,
    _digest: Callable[[Path, Callable[[], None]], Digests] = digests,
) -> Receipt:
    """Fetch a model from the hub; `watch` is called several times a second, in this thread.

    Raises:
        UsageError: no access, no such repository, commit or file; the directory cannot be written.
        CheckFailed: no space; no hf_transfer where it is demanded.
        WeightsDiffer: the hub, or the directory, has something else than the lock.
        TargetUnavailable: the hub, or another fetch, kept us waiting until the deadline or the last attempt.
    """
    started, began = time.monotonic(), _now()
    deadline = started + how.timeout
    available = importlib.util.find_spec("hf_transfer") is not None
    if how.transfer == "hf_transfer" and not available:
        raise CheckFailed(
            "hf_transfer is not installed, and it is what shall carry the weights",
            hint="pip install hf_transfer; or allow plain http: --transfer auto", id="hf-transfer-missing",
        )  # fmt: skip
    shown = Progress(model.name, how.transfer, [FileProgress(f.path, f.size) for f in model.files])
    with hold(directory, deadline) as place:
        present, missing = _look(model, place, shown, deadline)
        jobs = []
        for f in sorted(missing, key=lambda f: -f.size):  # the longest first, so that the lanes end together
            by, note = carrier(f, how.transfer, available)
            jobs.append(Job(file=f, shown=_shown(shown, f), by=by, note=note))
        lanes = Lanes(model, how, place, jobs, shown, deadline, _digest)
        if jobs:
            lanes.run(watch)
    return _receipt(model, how.endpoint, how.transfer, began, started, [*present, *lanes.carried])


def copy(model: LockedModel, source: Path, directory: Path) -> Receipt:
    """Copy a model from a directory of this repository, as carefully as from the hub.

    Raises:
        WeightsDiffer: the source lacks a file, or has another one; nothing wrong gets a name.
        UsageError, CheckFailed, TargetUnavailable: as for `fetch`.
    """
    started, began = time.monotonic(), _now()
    deadline = started + COPY_TIMEOUT
    shown = Progress(model.name, "copy", [FileProgress(f.path, f.size) for f in model.files])
    with hold(directory, deadline) as place:
        carried, missing = _look(model, place, shown, deadline)
        for f in sorted(missing, key=lambda f: f.path == LAST):
            if f.path == LAST:
                place.flush()
            carried.append(_copy_file(model, source, f, place))
        place.flush()
    return _receipt(model, str(source), "copy", began, started, carried)


def _copy_file(model: LockedModel, source: Path, file: LockedFile, place: Place) -> Carried:
    origin, temp, started = source / file.path, place.fresh(), time.monotonic()
    if origin.is_symlink() or not origin.is_file():
        raise WeightsDiffer(f"{origin} is missing, or no file", hint="restore it from git", id="weights-missing")
    with place.writing():
        shutil.copyfile(origin, temp)
        seconds = time.monotonic() - started
        hashes = digests(temp)
        flush(temp)
    if temp.stat().st_size != file.size or hashes.sha256 != file.sha256:
        raise WeightsDiffer(
            f"{origin} of {model.name} has {temp.stat().st_size} bytes and sha256 {hashes.sha256}; "
            f"{file.size} bytes and {file.sha256} are locked", hint="restore it from git", id="weights-hash",
        )  # fmt: skip
    place.put(temp, file.path)
    return Carried(path=file.path, size=file.size, sha256=file.sha256, blake3=hashes.blake3, by="copy",
                   seconds=round(seconds, 4))  # fmt: skip


def _look(model: LockedModel, place: Place, shown: Progress, deadline: float) -> tuple[list[Carried], list[LockedFile]]:
    """The files that are there and right, and those to bring.

    Raises:
        WeightsDiffer: something else is there that a fetch must not remove.
        CheckFailed: there is no space for what is to be brought.
    """
    wrong, worth = survey(model, place.directory, ignore=WORK)
    foreign = [d for d in wrong if d.id in ("weights-extra", "weights-not-a-file", "weights-unreadable")]
    if foreign:
        raise differs(model, place.directory, foreign, "remove it, or name another directory: fetch deletes nothing")

    def check() -> None:
        if time.monotonic() >= deadline:
            raise TargetUnavailable(
                f"the deadline passed while {place.directory} was compared with the lock",
                hint="raise --fetch-timeout", id="fetch-deadline",
            )  # fmt: skip

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        same = pool.map(lambda f: _same(place.directory / f.path, f, check), worth)
    present = {c.path: c for c in same if c}
    for file in shown.files:
        if file.path in present:
            file.done, file.state = file.size, "present"
    missing = [f for f in model.files if f.path not in present]
    _check_space(model, place, missing)
    return list(present.values()), missing


def _same(path: Path, file: LockedFile, check: Callable[[], None]) -> Carried | None:
    fast = ""
    if file.blake3:
        right, fast = compare(path, file, check) is None, file.blake3
    else:
        hashes = digests(path, check)
        right, fast = hashes.sha256 == file.sha256, hashes.blake3
    if not right:
        return None
    return Carried(path=file.path, size=file.size, sha256=file.sha256, blake3=fast, by="present", attempts=0)


def _check_space(model: LockedModel, place: Place, missing: Iterable[LockedFile]) -> None:
    needed, free = sum(f.size for f in missing), place.free()
    if needed > free:
        raise CheckFailed(
            f"{place.directory}: {needed} bytes are needed for {model.name}, {free} are free ({needed / 1e9:.2f} GB, "
            f"{free / 1e9:.2f} GB)", hint="free space, or name a directory on another disk", id="disk-space",
        )  # fmt: skip


def _shown(progress: Progress, file: LockedFile) -> FileProgress:
    return next(p for p in progress.files if p.path == file.path)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _receipt(
    model: LockedModel, endpoint: str, transfer: str, began: str, started: float, files: list[Carried]
) -> Receipt:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            versions[name] = importlib.metadata.version(name)
    order = [f.path for f in model.files]
    return Receipt(
        model=model.name, repo=model.repo, revision=model.revision, digest=model.digest, endpoint=endpoint,
        transfer=transfer, started=began, seconds=round(time.monotonic() - started, 3),
        files=tuple(sorted(files, key=lambda f: order.index(f.path))), versions=versions,
    )  # fmt: skip


def completed(model: LockedModel, receipt: Receipt) -> LockedModel:
    """The model's entry with the BLAKE3 of each file, as the receipt saw them beside a right sha256.

    Raises:
        UsageError: the receipt lacks one.
    """
    seen = {f.path: f.blake3 for f in receipt.files}
    if not all(seen.get(f.path) for f in model.files):
        raise UsageError("no BLAKE3 was computed", hint="install the package blake3")
    return replace(model, files=tuple(replace(f, blake3=seen[f.path]) for f in model.files))
