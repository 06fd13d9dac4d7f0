"""A bundle as it lies on a disk: read, and held against its own sums and their signature."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup import schema, signature
from bringup.errors import BundleDiffers, UsageError
from bringup.signature import SIGNATURE, SUMS

RECORD = "record.json"
_HINT = "name a directory that `bringup up` wrote"


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    `faults`: what does not agree with its SHA256SUMS (a file that differs, is missing, or is not listed); empty when
    all does. `files`: contents by name, SHA256SUMS and its signature left out.
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
        UsageError: there is none, or its record cannot be read: no JSON, not of its schema, of a newer one.
    """
    at = _place(directory)
    files, faults = _look(at)
    try:
        record = json.loads(files[RECORD])
    except (KeyError, ValueError) as e:
        found = f"no {RECORD}" if isinstance(e, KeyError) else str(e)
        raise UsageError(f"{directory} is no bundle: {found}", hint=_HINT) from e
    if not isinstance(record, dict):
        raise UsageError(f"{directory} is no bundle: {RECORD} holds no object", hint="collect the evidence again")
    schema.require(record)
    return Bundle(at, record, files, faults)


def verify(directory: Path, allowed_signers: Path | None) -> str:
    """Hold a bundle against its sums and, given a file of allowed signers, these against their signature.

    Returns:
        One line of what was verified.

    Raises:
        BundleDiffers: naming each file that differs, is missing or is not listed; or the signature is wrong.
        EvidenceMissing: there is no signature, or no ssh-keygen to check it.
        UsageError: there is no such directory, or the file of the signers cannot be read.
    """
    at = _place(directory)
    files, faults = _look(at)
    if not files:
        raise UsageError(f"{directory} is no bundle: it holds no files", hint=_HINT)
    if faults:
        raise BundleDiffers(f"{directory}: {'; '.join(faults)}", hint="do not trust this bundle; ask for it again")
    said = f"{len(files)} files are as {SUMS} says"
    if allowed_signers:
        return f"{said}, signed by {signature.check(at, allowed_signers)}"
    found = "its signature was" if (at / SIGNATURE).is_file() else "it has no signature; who wrote it was"
    return f"{said}; {found} not checked"


def _place(directory: Path) -> Path:
    return directory.parent if directory.name == RECORD else directory


def _look(at: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The contents of a bundle's files, and what does not agree with its sums.

    Raises:
        UsageError: there is no such directory, or a file in it cannot be read.
    """
    try:
        entries = sorted(at.iterdir())
        files = {p.name: p.read_bytes() for p in entries if p.is_file()}
    except OSError as e:
        raise UsageError(f"{at} is no bundle: {e}", hint=_HINT) from e
    strange = [p.name for p in entries if p.is_symlink() or not p.is_file()]
    files.pop(SIGNATURE, None)
    sums = files.pop(SUMS, None)
    return files, (*_faults(files, sums), *(f"{name} is no regular file" for name in strange))


def _faults(files: dict[str, bytes], sums: bytes | None) -> tuple[str, ...]:
    if sums is None:
        return (f"{SUMS} is missing",)
    listed: dict[str, str] = {}
    found = []
    for number, line in enumerate(sums.decode("utf-8", "replace").splitlines(), 1):
        digest, _, name = line.partition("  ")
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not name or name in listed:
            found.append(f"line {number} of {SUMS} is no sum of another file")
        listed[name] = digest
    found += [f"{name} is missing" for name in listed if name not in files]
    for name, data in files.items():
        if name not in listed:
            found.append(f"{name} is not in {SUMS}")
        elif hashlib.sha256(data).hexdigest() != listed[name]:
            found.append(f"{name} differs from its sum")
    return tuple(found)
