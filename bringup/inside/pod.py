"""What the host of a pod says by variables of its own: which pod this is, and the ports at which it asks for health.

The names are RunPod's (docs/runpod.md, "In the pod"). Pure but for the look at what is mounted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bringup.errors import UsageError
from bringup.inside import gate
from bringup.plan import SERVER_PORT
from bringup.settings import between

POD = "RUNPOD_POD_ID"
API_KEY = "RUNPOD_API_KEY"  # of this pod; for whoever logs in, never for the server
VOLUMES = (Path("/workspace"), Path("/runpod-volume"))  # of pods, and of endpoints' workers
PORT, PORT_HEALTH, HEALTH_PATH = "PORT", "PORT_HEALTH", "HEALTH_CHECK_PATH"
PING = "/ping"  # what a load balancer of RunPod asks for unless it is told otherwise
_PATH = re.compile(r"/[A-Za-z0-9._~/-]{0,127}")


@dataclass(frozen=True)
class Ports:
    """Where the server listens, and where its host asks for health.

    `health`: a port of its own, which answers from the first second on; None: there is none. `path`: what is asked for
    there, or without it on the server's port; empty where nobody said that anything would be.
    """

    server: int = SERVER_PORT
    health: int | None = None
    path: str = ""

    @property
    def meaning(self) -> str:
        """What an operator should know, one line; empty without any of the variables."""
        if not self.path:
            return ""
        if self.health:
            return (
                f"health: GET {self.path} on port {self.health} is 204 while the server loads, 200 when it answers, "
                "503 when it hangs or is dead"
            )
        return (
            f"health: GET {self.path} is answered on the server's own port {self.server}, where nothing listens while "
            f"it loads: set {PORT_HEALTH} to another port for 204 meanwhile"
        )


def ports(environ: Mapping[str, str]) -> Ports:
    """The ports that the variables say; empty variables count as unset.

    Raises:
        UsageError: one of them cannot be used; it is named, with what was found.
    """
    given = {name: environ.get(name, "") for name in (PORT, PORT_HEALTH, HEALTH_PATH)}
    server = _port(PORT, given[PORT]) or SERVER_PORT
    health = _port(PORT_HEALTH, given[PORT_HEALTH])
    path = given[HEALTH_PATH] or PING
    if not _PATH.fullmatch(path):
        raise UsageError(f"{HEALTH_PATH}: {path!r} is no path like {PING}", hint="letters, digits and ._~-/ after a /")
    if path in gate.ROUTES and path != gate.OPEN:
        raise UsageError(f"{HEALTH_PATH}: {path} is a route of the server", hint=f"use {PING}")
    return Ports(server, health if health != server else None, path if any(given.values()) else "")


def _port(name: str, text: str) -> int | None:
    try:
        return int(between(1, 65535, int)(text)) if text else None
    except ValueError as e:
        raise UsageError(f"{name}: {e}", hint="correct or unset the variable") from e


def volumes(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The volumes that are mounted in this pod; none outside a pod."""
    return tuple(v for v in VOLUMES if environ.get(POD) and os.path.ismount(v))
