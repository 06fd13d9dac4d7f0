"""Weights by lock: what must be there, is it there, and put it there.

The lock (`bringup/data/weights.lock`, JSON) names every file of a model with its size in bytes and its sha256; hub
models also carry a repository and a 40-hex commit. Nothing here trusts anything but the lock. The Dockerfile's
weights stage runs this module by itself (`python -m bringup.weights stage`), so it needs the standard library and,
for hub models, hf_transfer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from bringup.errors import BringupError, BuildFailed, UsageError, WeightsDiffer

LOCK = Path(__file__).parent / "data" / "weights.lock"
SCHEMA = 1
DEADLINE = 3600.0  # seconds for one file; a stalled transfer must end
_SAFE = (".safetensors", ".json", ".txt", ".jinja", ".model")


@dataclass(frozen=True)
class LockedFile:
    """One file: path relative to the model's directory, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class LockedModel:
    """One model of the lock; `repo` and `revision` are empty for a model that lies in this repository."""

    name: str
    source: str
    license: str
    files: tuple[LockedFile, ...]
    repo: str = ""
    revision: str = ""

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
        raise UsageError(f"the weights lock {path} cannot be read: {e}", hint="restore it from git") from e
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or not isinstance(raw.get("models"), dict):
        found = raw.get("schema") if isinstance(raw, dict) else None
        raise UsageError(
            f"the weights lock {path} has schema {found!r} or no models; schema {SCHEMA} with models is needed",
            hint="restore it from git",
        )
    return {name: _entry(name, entry) for name, entry in raw["models"].items()}


def _entry(name: str, raw: dict[str, Any]) -> LockedModel:
    try:
        files = tuple(LockedFile(f["path"], int(f["size"]), f["sha256"]) for f in raw["files"])
        model = LockedModel(name, raw["source"], raw["license"], files, raw.get("repo", ""), raw.get("revision", ""))
        if not all(isinstance(text, str) for f in files for text in (f.path, f.sha256)):
            raise TypeError("path and sha256 must be texts")
    except (KeyError, TypeError, ValueError) as e:
        raise UsageError(f"weights lock: the entry {name!r} is incomplete ({e!r})") from e
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) or not files:
        raise UsageError(f"weights lock: {name!r} is no usable model name, or it has no files")
    if len({f.path for f in files}) != len(files):
        raise UsageError(f"weights lock: {name}: a file is locked twice")
    for f in files:
        pure = PurePosixPath(f.path)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != f.path:
            raise UsageError(f"weights lock: {name}: {f.path!r} leaves the model's directory")
        if pure.suffix not in _SAFE:
            raise UsageError(f"weights lock: {name}: {f.path!r} is not safetensors, JSON or plain text")
        if not re.fullmatch(r"[0-9a-f]{64}", f.sha256) or f.size < 0:
            raise UsageError(f"weights lock: {name}: {f.path!r} has no full sha256 or size")
    if model.source == "hub" and not (model.repo and re.fullmatch(r"[0-9a-f]{40}", model.revision)):
        raise UsageError(f"weights lock: {name}: a hub model needs a repo and a 40-hex commit")
    return model


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


def stage(model: LockedModel, source: Path, out: Path, token: str | None = None) -> None:
    """Put a model's files into `out`, verified: copied from `source`/<name>, or fetched from the hub by commit.

    `out` appears complete or not at all.

    Raises:
        WeightsDiffer: a file is not what the lock says.
        BuildFailed: a file could not be fetched.
    """
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        for f in model.files:
            target = part / f.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if model.source == "hub":
                fetch(hub_url(model, f), target, f, token)
            elif not (source / model.name / f.path).is_file():
                raise WeightsDiffer(f"{source / model.name / f.path} is missing", hint="restore it from git")
            else:
                shutil.copyfile(source / model.name / f.path, target)
        verify_dir(model, part)
        part.replace(out)
    except OSError as e:
        raise BuildFailed(f"{out} could not be written: {e}", hint="free space, or name an empty directory") from e
    finally:
        shutil.rmtree(part, ignore_errors=True)


def hub_url(model: LockedModel, file: LockedFile) -> str:
    """Where the Hub serves one file at the locked commit (`HF_ENDPOINT` names a mirror)."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{model.repo}/resolve/{model.revision}/{quote(file.path)}"


def fetch(url: str, target: Path, file: LockedFile, token: str | None, deadline: float = DEADLINE) -> None:
    """Fetch one file by hf_transfer in a child process, then check size and sha256.

    hf_transfer holds Python's global lock for the whole call and can return success on a wrong file, so it gets a
    process of its own with a deadline, a fresh file name, and no trust.

    Raises:
        BuildFailed: no transfer; WeightsDiffer: the bytes are wrong.
    """
    if file.size == 0:  # a range request of nothing is an error to hf_transfer
        target.touch()
        return
    temp = target.with_name(f"{target.name}.{os.getpid()}.{time.monotonic_ns()}")
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    child = context.Process(target=_download, args=(url, str(temp), token, errors), daemon=True)
    try:
        child.start()
        child.join(deadline)
        if child.is_alive():
            raise BuildFailed(f"{url} was not complete after {deadline:.0f} s", hint="check the network and retry")
        if child.exitcode:
            why = errors.get() if not errors.empty() else f"exit {child.exitcode}"
            raise BuildFailed(
                f"hf_transfer could not fetch {url}: {why}", hint="check the network, the token, and the lock"
            )
        found = temp.stat().st_size
        if found != file.size or sha256_of(temp) != file.sha256:
            raise WeightsDiffer(
                f"{url} gave {found} bytes that are not the locked ones ({file.size} bytes, sha256 {file.sha256})"
            )
        with temp.open("rb") as f:
            os.fsync(f.fileno())
        temp.replace(target)
    finally:
        if child.is_alive():
            child.kill()
            child.join()
        temp.unlink(missing_ok=True)


def _download(url: str, path: str, token: str | None, errors: Any) -> None:
    try:
        import hf_transfer  # only here: the image's weights stage has it, a person's machine need not

        headers = {"authorization": f"Bearer {token}"} if token else None
        hf_transfer.download(url, path, 16, 10 * 2**20, parallel_failures=3, max_retries=5, headers=headers)
    except Exception as e:  # whatever it was, the parent must learn it
        errors.put(f"{type(e).__name__}: {e}")
        sys.exit(1)


def main(argv: list[str] | None = None) -> int:
    """The weights stage of the Dockerfile."""
    parser = argparse.ArgumentParser(prog="python -m bringup.weights")
    parser.add_argument("action", choices=["stage", "verify"])
    parser.add_argument("--model", required=True, help="name of the model in the lock")
    parser.add_argument("--lock", type=Path, default=LOCK)
    parser.add_argument("--source", type=Path, default=Path("models"), help="directory of the models shipped here")
    parser.add_argument("--out", type=Path, required=True, help="directory of the model's files")
    parser.add_argument("--token-file", type=Path, help="file with a Hub token, for gated models")
    args = parser.parse_args(argv)
    try:
        models = read_lock(args.lock)
        if args.model not in models:
            raise UsageError(
                f"the model {args.model!r} is not pinned in the weights lock (pinned: {', '.join(models)})",
                hint="build a pinned model, or add its repo, commit, sizes and sha256 to bringup/data/weights.lock",
            )
        model = models[args.model]
        if args.action == "verify":
            verify_dir(model, args.out)
        else:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            token = args.token_file.read_text().strip() if args.token_file and args.token_file.is_file() else None
            stage(model, args.source, args.out, token)
    except BringupError as e:
        sys.stderr.write(f"{e.message}\n" + (f"  {e.hint}\n" if e.hint else ""))
        return int(e.exit_code)
    sys.stderr.write(f"{model.name}: {len(model.files)} files, {model.size} bytes, all as locked ({model.digest})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
