"""Put a model's files where they are served from, by the lock."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bringup.errors import BuildFailed, WeightsDiffer
from bringup.lock import LockedFile, LockedModel
from bringup.weights.verify import sha256_of, verify_dir

DEADLINE = 3600.0  # seconds for one file; a stalled transfer must end


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
        hf_transfer.download(  # type: ignore[attr-defined]  # its one file is compiled
            url, path, 16, 10 * 2**20, parallel_failures=3, max_retries=5, headers=headers
        )
    except Exception as e:  # whatever it was, the parent must learn it
        errors.put(f"{type(e).__name__}: {e}")
        sys.exit(1)
