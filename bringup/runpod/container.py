"""A pod as the container behind a server: by SSH, and by RunPod's API for what SSH cannot tell."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from bringup.artifacts import STATE
from bringup.edge.docker import ContainerState
from bringup.edge.runpod import RunPod
from bringup.edge.ssh import Ssh
from bringup.errors import EvidenceMissing
from bringup.runpod import bodies
from bringup.runpod.run import LOG_SECONDS

MOST_LINES = 5000  # that RunPod gives of a log
PYTHON = "/opt/venv/bin/python"
# The image has no `ps`. Columns as the engine's; one object a process.
PROCESSES = """
import json, os, pwd
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        with open(f"/proc/{pid}/status") as f:
            status = dict(line.split(":", 1) for line in f)
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            words = f.read().replace(b"\\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        continue
    uid = int(status["Uid"].split()[0])
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    rss = status.get("VmRSS", "0").split()[0]
    print(json.dumps({"PID": pid, "PPID": status["PPid"].strip(), "USER": user, "RSS": rss,
                      "COMMAND": words or "[" + status["Name"].strip() + "]"}))
"""


@dataclass(frozen=True)
class PodContainer:
    """See `server.Container`."""

    cloud: RunPod
    pod: str
    ssh: Ssh

    def state(self) -> ContainerState:
        """How RunPod says that it is doing now; it tells no exit code."""
        found = self.cloud.pod(self.pod)
        status = str(found.get("status")).lower()
        return ContainerState(
            id=self.pod, name=str(found.get("name")), status=status, exit_code=0, oom_killed=False,
            started=_started(found), image_id="",
        )  # fmt: skip

    def top(self) -> list[dict[str, str]]:
        """Its processes, as /proc has them."""
        code, output = self.execute([PYTHON, "-I", "-c", PROCESSES])
        try:
            rows = [{str(k): str(v) for k, v in json.loads(line).items()} for line in output.splitlines()]
        except (ValueError, AttributeError):
            rows = []
        if code or not rows:
            raise EvidenceMissing(f"the pod does not list its processes: {' '.join(output.split())[:80] or code}")
        return rows

    def execute(self, argv: list[str]) -> tuple[int, str]:
        """Run a program inside."""
        return self.ssh.execute(argv)

    def copy_out(self, path: str) -> bytes:
        """One file from inside; what is below the state directory, wherever that is in this pod."""
        return self.ssh.copy_out(self._state + path.removeprefix(STATE) if path.startswith(f"{STATE}/") else path)

    @cached_property
    def _state(self) -> str:
        """On a pod's volume it is elsewhere, and then the sessions of the image's sshd have its name."""
        with contextlib.suppress(EvidenceMissing):
            code, said = self.execute(["sh", "-c", 'printf %s "$BRINGUP_STATE_DIR"'])
            if code == 0 and re.fullmatch(r"/[\w./-]{1,200}", said):
                return said
        return STATE

    def logs(self, tail: int | None = None, since: int | None = None) -> str:
        """Its console output, as far back as RunPod goes."""
        lines = self.cloud.logs(self.pod, tail or MOST_LINES, LOG_SECONDS)
        first = "" if since is None else datetime.fromtimestamp(since, UTC).isoformat()
        return "".join(f"{at} {line}\n" for at, line in lines if at >= first)

    def inspect(self) -> dict[str, Any]:
        """What RunPod says of it, without its variables."""
        return bodies.public(self.cloud.pod(self.pod))


def _started(found: dict[str, Any]) -> str:
    """When its container started, ISO 8601; empty where RunPod does not say."""
    uptime = (found.get("runtime") or {}).get("uptime")
    if not isinstance(uptime, int | float):
        return ""
    return (datetime.now(UTC) - timedelta(seconds=uptime)).isoformat()
