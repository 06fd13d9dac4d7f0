"""One `up` or `collect` as it goes on: whose pod, what is asked of it, and what was seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bringup.edge.runpod import ApiError, RunPod
from bringup.errors import NeverReady
from bringup.key import secrets
from bringup.plan import Plan
from bringup.ready import LAST_LINES, Moments
from bringup.redact import redact
from bringup.runpod import bodies
from bringup.runpod.state import Owned, State
from bringup.settings import Settings
from bringup.watch import Watch

PROXY = "https://{pod}-{port}.proxy.runpod.net"
LOG_SECONDS = 5.0


@dataclass(kw_only=True)
class Run:
    """What it needs. `poll`: seconds between looks; `proxy`: the endpoint's address, with {pod} and {port}.

    `leave`: a pod that passed goes on running. `ssh_key`: the file of the private key for its sshd, None is no SSH;
    `host_key`: of its sshd, by hand. `sent`: a create may have reached RunPod; `facts`: what was seen; `moments`: when.
    """

    cloud: RunPod
    state: State
    plan: Plan
    settings: Settings
    watch: Watch
    owned: Owned
    leave: bool = True
    poll: float = 5.0
    proxy: str = PROXY
    ssh_key: Path | None = None
    host_key: str | None = None
    sent: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    moments: Moments = field(default_factory=Moments)

    def look(self) -> dict[str, Any]:
        """The pod as RunPod has it, its status as a word; what may be kept of it is a fact.

        Raises:
            NeverReady: RunPod has it no more; ApiError: nobody knows.
        """
        try:
            found = self.cloud.pod(self.owned.id or "")
        except ApiError as e:
            if e.status != 404:
                raise
            raise NeverReady("the pod was lost: RunPod has none of its id any more", hint="start another") from e
        self.facts["pod"] = bodies.public(found)
        return found | {"status": str(found.get("status"))}

    def log(self) -> str:
        """The end of the pod's console, without secrets; empty where it cannot be had."""
        lines = self.cloud.logs(self.owned.id or "", LAST_LINES, LOG_SECONDS)
        return redact("\n".join(line for _, line in lines), secrets(self.settings))
