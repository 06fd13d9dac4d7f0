"""Two small models, one local and one of a hub, and their files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from blake3 import blake3

from bringup.lock import LockedFile, LockedModel

FILES = {
    "config.json": b'{"a": 1}\n',
    "model.safetensors": bytes(range(256)) * 40,
    "sub/tokenizer.json": b"{}",
    "empty.txt": b"",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def locked(**changes: Any) -> LockedModel:
    files = tuple(LockedFile(path, len(data), sha(data)) for path, data in FILES.items())
    return LockedModel(**({"name": "m", "source": "local:models/m", "license": "MIT", "files": files} | changes))


def fast(**changes: Any) -> LockedModel:
    """The same with the BLAKE3 of each file."""
    files = tuple(LockedFile(p, len(data), sha(data), blake3(data).hexdigest()) for p, data in FILES.items())
    return locked(files=files, **changes)


MODEL = locked()
HUB = locked(source="hub", repo="org/m", revision=COMMIT)


def put(directory: Path, files: dict[str, bytes] | None = None) -> Path:
    for path, data in (FILES if files is None else files).items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


def flip(directory: Path, position: int, name: str = "model.safetensors") -> None:
    data = bytearray((directory / name).read_bytes())
    data[position] ^= 1
    (directory / name).write_bytes(data)
