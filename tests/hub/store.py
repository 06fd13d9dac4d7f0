"""What the test hub serves: repositories in a directory, as commits of blobs.

ROOT/ORG/NAME/repo.json names the commits and their files; ROOT/ORG/NAME/blobs/SHA256 holds each content once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

LFS_FROM = 10_000_000  # bytes; the Hub wants LFS above that, and has it for every .safetensors


@dataclass(frozen=True)
class Entry:
    """A file of a commit; `oid` is the git blob's sha1 (of the pointer, for LFS), as the Hub's API gives it."""

    path: str
    size: int
    oid: str
    sha256: str
    lfs: bool

    @property
    def etag(self) -> str:
        """What /resolve calls the content."""
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Repo:
    """A repository. Without `token`, everybody may read it; `gated` lets everybody see the file list at least."""

    directory: Path
    refs: Mapping[str, str]
    commits: Mapping[str, Mapping[str, Entry]]
    token: str
    gated: bool

    def commit(self, revision: str) -> str | None:
        """The 40-hex commit of a branch, a tag or a commit."""
        return revision if revision in self.commits else self.refs.get(revision)

    def blob(self, entry: Entry) -> Path:
        """Where the content lies."""
        return self.directory / "blobs" / entry.sha256


def load(root: Path, name: str) -> Repo | None:
    """A repository of the directory, or None."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        return None
    try:
        raw = json.loads((root / name / "repo.json").read_text("utf-8"))
    except OSError:
        return None
    commits = {sha: {e["path"]: Entry(**e) for e in entries} for sha, entries in raw["commits"].items()}
    return Repo(root / name, raw["refs"], commits, raw["token"], raw["gated"])


def make_repo(
    root: Path,
    name: str,
    files: Mapping[str, bytes | Path],
    *,
    refs: tuple[str, ...] = ("main",),
    token: str = "",
    gated: bool = False,
) -> str:
    """Add a commit to a repository, which is made when it is new; `refs` (branches, tags) point to it then.

    A `Path` is linked, not copied. With `token` only who sends it may read: as in a private repository, or with
    `gated` as in one whose licence must be accepted first.
    """
    directory = root / name
    (directory / "blobs").mkdir(parents=True, exist_ok=True)
    entries = [_add(directory / "blobs", path, content) for path, content in sorted(files.items())]
    sha = git_sha1("commit", "".join(f"{e.sha256} {e.path}\n" for e in entries).encode())
    index = directory / "repo.json"
    raw: dict[str, Any] = json.loads(index.read_text("utf-8")) if index.exists() else {"refs": {}, "commits": {}}
    raw["refs"] |= dict.fromkeys(refs, sha)
    raw["commits"][sha] = [vars(e) for e in entries]
    temp = index.with_suffix(".new")
    temp.write_text(json.dumps(raw | {"token": token, "gated": gated}), "utf-8")
    temp.replace(index)
    return sha


def noise(size: int, seed: str = "") -> bytes:
    """Bytes without a pattern, the same for the same seed."""
    return hashlib.shake_128(seed.encode()).digest(size)


def add_blob(root: Path, name: str, content: bytes) -> str:
    """Put a content into a repository that no commit has (yet); its sha256."""
    return _add(root / name / "blobs", "", content).sha256


def _add(blobs: Path, path: str, content: bytes | Path) -> Entry:
    if isinstance(content, Path):
        size = content.stat().st_size
        with content.open("rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        if not (blobs / sha256).exists():
            (blobs / sha256).symlink_to(content.resolve())
    else:
        size, sha256 = len(content), hashlib.sha256(content).hexdigest()
        temp = blobs / f"{sha256}.{os.getpid()}.{threading.get_ident()}"
        temp.write_bytes(content)
        temp.replace(blobs / sha256)
    lfs = size > LFS_FROM or PurePosixPath(path).suffix == ".safetensors"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return Entry(path, size, git_sha1("blob", pointer if lfs else (blobs / sha256).read_bytes()), sha256, lfs)


def git_sha1(kind: str, data: bytes) -> str:
    """Git's name of an object."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()  # noqa: S324 - git's own choice
