"""A bundle as it lies on a disk: read, and held against its own sums."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup.artifacts import SUMS
from bringup.errors import UsageError

RECORD = "record.json"


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    `faults`: what does not agree with its SHA256SUMS (a file that differs, is missing, or is not listed); empty when
    all does. `files`: contents by name, SHA256SUMS left out.
    """

    directory: Path
    record: dict[str, Any]
    files: dict[str, bytes]
    faults: tuple[str, ...]

    def text(self, name: str) -> str | None:
        """A file's text, or None where the bundle has no such file."""
        data = self.files.get(name)
        return None if data is None else data.decode("utf-8", "replace")

    def json(self, name: str) -> Any:
        """A file's JSON, or None where the bundle has no such file, or it holds none."""
        try:
            return json.loads(self.text(name) or "")
        except ValueError:
            return None


def read(directory: Path) -> Bundle:
    """Read a bundle, or the directory of the record that is named.

    Raises:
        UsageError: there is none, or its record cannot be read.
    """
    at = directory.parent if directory.name == RECORD else directory
    try:
        files = {p.name: p.read_bytes() for p in sorted(at.iterdir()) if p.is_file()}
        record = json.loads(files[RECORD])
    except (OSError, KeyError, ValueError) as e:
        found = f"no {RECORD}" if isinstance(e, KeyError) else str(e)
        raise UsageError(f"{directory} is no bundle: {found}", hint="name a directory that `bringup up` wrote") from e
    if not isinstance(record, dict):
        raise UsageError(f"{directory} is no bundle: {RECORD} holds no object", hint="collect the evidence again")
    sums = files.pop(SUMS, None)
    return Bundle(at, record, files, _faults(files, sums))


def _faults(files: dict[str, bytes], sums: bytes | None) -> tuple[str, ...]:
    if sums is None:
        return (f"{SUMS} is missing",)
    listed = {}
    for line in sums.decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    found = [f"{name} is missing" for name in listed if name not in files]
    for name, data in files.items():
        if name not in listed:
            found.append(f"{name} is not in {SUMS}")
        elif hashlib.sha256(data).hexdigest() != listed[name]:
            found.append(f"{name} differs from its sum")
    return tuple(found)
