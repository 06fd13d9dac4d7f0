"""What the real server answered to everything that the probes ask: asks by their digest, answers as they came."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parents[1] / "data" / "stub" / "recording.json.gz"
OWN, WRONG, NONE = "own key", "wrong key", "no key"


@dataclass(frozen=True)
class Ask:
    """One request: `auth` says whose key it carried, never which."""

    method: str
    path: str
    auth: str
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        """The body; an empty object where it is no JSON object."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def digest(self) -> str:
        """What it is found by again; the order of keys in the body does not matter."""
        try:
            body = json.dumps(json.loads(self.body), sort_keys=True).encode()
        except ValueError:
            body = self.body
        kind = self.content_type.partition(";")[0]
        return hashlib.sha256(
            b"\0".join([*(f"{self.method} {self.path} {self.auth} {kind}".encode(),), body])
        ).hexdigest()


@dataclass(frozen=True)
class Exchange:
    """A request and its answer: a whole body, or the data of each event of a stream; a huge request is left out."""

    method: str
    path: str
    auth: str
    kind: str
    request: str
    status: int
    content_type: str
    body: str
    events: tuple[str, ...] = ()

    @property
    def ask(self) -> Ask:
        """The request."""
        return Ask(self.method, self.path, self.auth, self.kind, self.request.encode())


def save(exchanges: dict[str, Exchange], path: Path = PATH) -> None:
    """Write a recording; the same exchanges give the same bytes."""
    text = json.dumps({k: dataclasses.asdict(e) for k, e in exchanges.items()}, ensure_ascii=False, indent=0)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


@functools.cache
def load(path: Path = PATH) -> dict[str, Exchange]:
    """The exchanges by their ask's digest."""
    raw = json.loads(gzip.decompress(path.read_bytes()))
    return {k: Exchange(**{**e, "events": tuple(e["events"])}) for k, e in raw.items()}
