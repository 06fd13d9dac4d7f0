"""What probes and artifacts may ask of a running server; types only.

Targets implement `Container`; a server at a bare address has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from bringup.edge.docker import ContainerState
from bringup.edge.http import Http
from bringup.plan import Expect


class Container(Protocol):
    """The container (later: the pod, the process) behind a server."""

    def state(self) -> ContainerState:
        """How it is doing now."""

    def top(self) -> list[dict[str, str]]:
        """Its processes, one dict of `ps` columns each."""

    def execute(self, argv: list[str]) -> tuple[int, str]:
        """Run a program inside: exit code and output."""

    def copy_out(self, path: str) -> bytes:
        """The bytes of one file inside."""

    def logs(self, tail: int | None = None, since: int | None = None) -> str:
        """Its console output, each line with the engine's time before it; `since`: epoch seconds."""

    def inspect(self) -> dict[str, Any]:
        """All that the engine says of it."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server, as the probes see it.

    `deadline`: seconds that one probe may take. `vram_before`: bytes of GPU memory in use before the start, None
    when the start was not observed. `gpus`: those that it was given, as the setting says it.
    """

    http: Http
    expect: Expect
    deadline: float
    container: Container | None = None
    vram_before: int | None = None
    gpus: str | None = "all"
