"""What a fetch did: who carried each file, how long it took. Evidence, and never needed to check anything."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bringup.errors import UsageError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Carried:
    """One file. `by`: hf_transfer, http, copy (from a directory), present (it was there and right already).

    `seconds`: transfer alone, of the attempt that succeeded (and of those that it went on from); `attempts`: 0 for a
    file that was present; `note`: why it was not the transport that was asked for; `blake3`: of the very bytes whose
    sha256 was right, empty if it was not computed.
    """

    path: str
    size: int
    sha256: str
    by: str
    seconds: float = 0.0
    attempts: int = 1
    note: str = ""
    blake3: str = ""

    @property
    def rate(self) -> float:
        """MB/s (10^6 bytes)."""
        return self.size / 1e6 / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A whole fetch: `seconds` of wall time until every file was checked and flushed; `started` in ISO 8601 UTC."""

    model: str
    repo: str
    revision: str
    digest: str
    endpoint: str
    transfer: str
    started: str
    seconds: float
    files: tuple[Carried, ...]
    versions: dict[str, str]
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, with each file's rate in MB/s."""
        raw = dataclasses.asdict(self)
        raw["files"] = [dataclasses.asdict(f) | {"rate": round(f.rate, 1)} for f in self.files]
        return raw

    def write(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            UsageError: it cannot be written there.
        """
        try:
            path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", "utf-8")
        except OSError as e:
            raise UsageError(f"the receipt {path} cannot be written: {e.strerror or e}") from e

    def summary(self) -> str:
        """One line: bytes by transport, and the time."""
        carriers = {c: [f for f in self.files if f.by == c] for c in sorted({f.by for f in self.files})}
        parts = (f"{len(fs)} by {c} ({sum(f.size for f in fs) / 1e6:.1f} MB)" for c, fs in carriers.items())
        moved = sum(f.size for f in self.files if f.by != "present")
        rate = f", {moved / 1e6 / self.seconds:.1f} MB/s" if moved and self.seconds > 0 else ""
        return f"{self.model}: {len(self.files)} files in {self.seconds:.1f} s{rate}: " + ", ".join(parts)
