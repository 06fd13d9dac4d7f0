"""What the fault tests share: a small model on a test hub, and what must hold however a fetch ends."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

from bringup.lock import LockedModel
from tests.hub import lock_of, make_repo, noise

REPO = "org/model"
WORK = ".bringup-fetch"
MARKER = "WEIGHTS_TEST_RUN"  # in the environment of what a test starts, and so of all that this starts
GOES = 5.0  # seconds for the kernel to end what it was told to end, on a busy machine


def model_of(root: Path, files: Mapping[str, bytes], *, token: str = "") -> LockedModel:
    """A repository with these files, and its lock."""
    return lock_of(root, REPO, make_repo(root, REPO, files, token=token, gated=bool(token)), "model")


def files_of(sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Files of these sizes, each with a content of its own."""
    return {path: noise(size, path) for path, size in sizes.items()}


def environment(run: str, **extra: str) -> dict[str, str]:
    """This process's environment without anybody's settings, marked so that its processes can be found."""
    own = re.compile(r"(BRINGUP|HF|HUGGING_FACE)_")
    here = {k: v for k, v in os.environ.items() if not own.match(k)}
    return here | {MARKER: _mark(run), "NO_PROXY": "127.0.0.1,localhost"} | extra


def _mark(run: str) -> str:
    return f"{os.getpid()}-{run}"  # another pytest may run the same tests


def living(run: str) -> list[str]:
    """Processes that were started by this run, in any generation, and still live."""
    wanted = f"{MARKER}={_mark(run)}".encode()
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ends while we look
            if (
                process.name.isdigit()
                and wanted in (process / "environ").read_bytes().split(b"\0")
                and (process / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            ):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
    return found


def survivors(run: str) -> list[str]:
    """Processes of this run that do not end."""
    until = time.monotonic() + GOES
    while (found := living(run)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def wrong_files(model: LockedModel, directory: Path) -> list[str]:
    """What lies under a final name and is not what the lock says: seen in the bytes, by none of our code."""
    locked = {f.path: f for f in model.files}
    wrong = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name == WORK or name.startswith(f"{WORK}/") or (path.is_dir() and not path.is_symlink()):
            continue
        odd = name not in locked or path.is_symlink() or not path.is_file()
        if odd or hashlib.sha256(path.read_bytes()).hexdigest() != locked[name].sha256:
            wrong.append(name)
    return wrong


def complete(model: LockedModel, directory: Path) -> bool:
    """Is everything there, right, and nothing else?"""
    there = {p.relative_to(directory).as_posix() for p in directory.rglob("*") if not p.is_dir()}
    return there == {f.path for f in model.files} and not wrong_files(model, directory)


def lock_is_free(directory: Path) -> bool:
    """Could another fetch begin?"""
    try:
        with (directory / WORK / "lock").open("r+") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False
    return True
