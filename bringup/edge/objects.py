"""JSON objects in files of their own, read leniently and written whole."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no file, no JSON, or something else than an object."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path, value: Mapping[str, Any], mode: int = 0o666) -> None:
    """Write the file, whole or not at all; `mode` as for open(2), before the umask."""
    part = path.with_suffix(f".{os.getpid()}.part")
    with open(part, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, mode)) as f:
        json.dump(value, f, indent=1)
    part.replace(path)
