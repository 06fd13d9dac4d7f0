"""What probes and artifacts may ask of a running server; types only.

Targets implement `Container`; a server at a bare address has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bringup.clock import Offset
from bringup.edge import proc
from bringup.edge.docker import ContainerState
from bringup.edge.http import Http
from bringup.plan import Expect, Plan


class Container(Protocol):
    """The container, or what stands in its place, behind a server.

    `id`: one for each start; `python`: its interpreter; `state_dir`: where the server keeps caches and log;
    `vram_before`: see `Server`, where the target remembers it.
    """

    @property
    def id(self) -> str: ...  # noqa: D102 - above
    @property
    def python(self) -> str: ...  # noqa: D102
    @property
    def state_dir(self) -> str: ...  # noqa: D102
    @property
    def vram_before(self) -> int | None: ...  # noqa: D102

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
        """All that the engine says of it, in the engine's words."""

    def image(self) -> dict[str, Any]:
        """What it was started from, as `docker image inspect` says it; empty where that is gone."""

    def members(self) -> proc.Members:
        """Its processes, as this host sees them."""


class Target(Protocol):
    """Where a project's server runs. Everything it starts, `down` stops."""

    def container(self) -> Container | None:
        """The project's server, running or not."""

    def up(self, plan: Plan, on_line: Callable[[str], None] | None = None) -> Container:
        """Start it; one that runs as the plan has it is left as it is.

        Raises:
            TargetUnavailable: it cannot be started, for a reason that is known.
            NeverReady: for another.
        """

    def down(self, *, volumes: bool = False) -> None:
        """Stop and remove what the project has; with `volumes` its caches too."""

    def image(self, plan: Plan) -> dict[str, Any] | None:
        """What it is started from, as `docker image inspect` says it; None: it is not there."""

    def has_caches(self) -> bool:
        """Whether an earlier start of the project left caches."""

    def clock(self) -> Offset:
        """The clock that `ContainerState.started` is told by."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running server, as the probes see it.

    `deadline`: seconds that one probe may take. `vram_before`: bytes of GPU memory in use before the start, None
    when the start was not observed. `gpus`: those that it was given, as the setting says it. `own_gpus`: they are given
    to this machine alone, and their driver names processes by ids that are unknown here.
    """

    http: Http
    expect: Expect
    deadline: float
    container: Container | None = None
    vram_before: int | None = None
    gpus: str | None = "all"
    own_gpus: bool = False
